//! mosquitto as the cloud.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use edgehub::client::{Client, Hello, tls_config};
use rustix::process::{Pid, Signal, kill_process};

use super::{MODULES, upstream};
use crate::common::{LIMIT, Setup, certs};

pub const USER: &str = "gateway";
/// With characters that a file of passwords could trip over.
pub const PASSWORD: &str = "pass: w#rd %41 ü";

/// A running mosquitto with TLS and a password.
pub struct Mosquitto {
    child: Child,
    /// With TLS.
    pub address: SocketAddr,
    /// Without.
    pub tcp: SocketAddr,
    dir: tempfile::TempDir,
}

impl Mosquitto {
    pub fn start() -> Self {
        Self::with("")
    }

    /// `more` are lines of its configuration.
    pub fn with(more: &str) -> Self {
        Self::with_file(more, ("more", ""))
    }

    /// The same with a file beside it.
    pub fn with_file(more: &str, (name, text): (&str, &str)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (address, tcp) = (free_address(), free_address());
        certs(&dir.path().join("certs"), &[&address.ip().to_string()], &[]);
        let mut password = installed(&["/usr/bin/mosquitto_passwd", "mosquitto_passwd"]);
        password.args(["-c", "-b", "passwords", USER, PASSWORD]);
        let made = password.current_dir(&dir).output().unwrap();
        assert!(made.status.success(), "{made:?}");
        let config = format!(
            "allow_anonymous false\npassword_file passwords\n\
             listener {} {}\nlistener {} {}\n\
             certfile certs/server.pem\nkeyfile certs/server.key\npersistence false\nuser root\n\
             max_inflight_messages 0\nmax_queued_messages 0\nset_tcp_nodelay true\n\
             log_dest stderr\nlog_type all\n{more}",
            tcp.port(),
            tcp.ip(),
            address.port(),
            address.ip(),
        );
        fs::write(dir.path().join("mosquitto.conf"), config).unwrap();
        fs::write(dir.path().join(name), text).unwrap();
        let log = fs::File::create(dir.path().join("log")).unwrap();
        let child = installed(&["/usr/sbin/mosquitto", "mosquitto"])
            .args(["-c", "mosquitto.conf"])
            .current_dir(&dir)
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let mosquitto = Self {
            child,
            address,
            tcp,
            dir,
        };
        mosquitto.until("listens", |one| TcpStream::connect(one.address).is_ok());
        mosquitto
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn log_text(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap()
    }

    pub fn until(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        let started = Instant::now();
        while !holds(self) {
            let late = started.elapsed() > LIMIT;
            assert!(!late, "mosquitto never {what}\n{}", self.log_text());
            std::thread::yield_now();
        }
    }

    /// A hub's folder whose cloud this is.
    pub fn below(&self, routes: &str, more: &str) -> Setup {
        let mut setup = Setup::new(routes, &MODULES);
        fs::write(setup.path("password"), format!("{PASSWORD}\n")).unwrap();
        let more = format!(
            "ca = {:?}\nusername = \"{USER}\"\npassword_file = \"password\"\n{more}",
            self.path("certs/ca.pem")
        );
        setup.extra = upstream("mqtt", &[&self.address.to_string()], "tls", &more);
        setup
    }

    /// A plain client, logged in.
    pub async fn client(&self) -> Client {
        let config = tls_config(&fs::read(self.path("certs/ca.pem")).unwrap(), None).unwrap();
        let name = self.address.ip().to_string();
        let mut client = Client::tls(self.address, &name, config).await.unwrap();
        let hello = Hello {
            client_id: "plain".to_owned(),
            username: Some(USER.to_owned()),
            password: Some(PASSWORD.to_owned()),
            clean_session: true,
            keep_alive_seconds: 0,
        };
        client.connect(&hello).await.unwrap();
        client
    }
}

impl Mosquitto {
    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }
}

impl Drop for Mosquitto {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The first of the programs that is there.
fn installed(programs: &[&str]) -> Command {
    let starts = |program: &&&str| {
        let mut help = Command::new(program);
        help.arg("-h").stdout(Stdio::null()).stderr(Stdio::null());
        help.status().is_ok()
    };
    let found = programs.iter().find(starts);
    let found = found.unwrap_or_else(|| {
        panic!("{programs:?}: not installed; tests/run does it, and so does the package mosquitto")
    });
    Command::new(found)
}

/// An address that is free and stays so: no other process of the tests is on this part of the
/// loopback.
pub fn free_address() -> SocketAddr {
    let [_, high, middle, low] = std::process::id().to_be_bytes();
    let ip = Ipv4Addr::new(127, 128 | high, middle, low);
    TcpListener::bind((ip, 0)).unwrap().local_addr().unwrap()
}
