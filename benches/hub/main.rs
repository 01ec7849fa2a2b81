//! End to end: a module's output to another's input over plain TCP at QoS 1, beside the same load
//! through mosquitto in the same run.
//!
//! `cargo bench --bench hub [-- --messages N --rounds N --bytes N --window N --check]`
//!
//! Server on core 0, generator on core 1 (one thread, two connections). Rounds alternate between
//! the two servers, so that both see the same noise; the best round of each counts. CPU is what
//! the kernel accounts to the server's threads. `--check` fails below the ratios of the README.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing
)]

#[path = "../../tests/common/mod.rs"]
mod common;
#[allow(dead_code)]
mod load;

use std::fs;
use std::io::Write;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use load::{Load, Measured};

const RATE_MIN: f64 = 2.5;
const CPU_MAX: f64 = 1.0 / 3.0;

struct Options {
    load: Load,
    rounds: usize,
    check: bool,
}

fn main() {
    let options = options();
    load::pin_to_core(1);
    let hub = Hub::start();
    let mosquitto = Mosquitto::start();
    let (mut best_hub, mut best_peer) = (None, None);
    for round in 0..options.rounds {
        let ours = hub.measure(&options.load);
        println!("round {round}  edgehub    {ours}");
        best_hub = better(best_hub, ours);
        if let Some(mosquitto) = &mosquitto {
            let theirs = mosquitto.measure(&options.load);
            println!("round {round}  mosquitto  {theirs}");
            best_peer = better(best_peer, theirs);
        }
    }
    let Some(hub) = best_hub else { return };
    println!("best     edgehub    {hub}");
    let Some(peer) = best_peer else {
        println!("mosquitto is not installed: nothing to compare with");
        assert!(!options.check, "--check needs mosquitto");
        return;
    };
    println!("best     mosquitto  {peer}");
    let rate = hub.per_second / peer.per_second;
    let cpu = hub.cpu_us / peer.cpu_us;
    println!(
        "ratio    rate {rate:.2} (at least {RATE_MIN})   CPU per message {cpu:.3} (at most {CPU_MAX:.3})"
    );
    if options.check {
        assert!(
            rate >= RATE_MIN && cpu <= CPU_MAX,
            "below the promised ratios"
        );
    }
}

fn options() -> Options {
    let args: Vec<String> = std::env::args().collect();
    let number = |name: &str, default: usize| {
        let at = args.iter().position(|arg| arg == name);
        at.map_or(default, |at| args[at + 1].parse().expect("a number"))
    };
    Options {
        load: Load {
            messages: number("--messages", 200_000),
            bytes: number("--bytes", 256),
            window: number("--window", 100),
        },
        rounds: number("--rounds", 3),
        check: args.iter().any(|arg| arg == "--check"),
    }
}

fn better(best: Option<Measured>, new: Measured) -> Option<Measured> {
    match best {
        Some(best) if best.per_second >= new.per_second => Some(best),
        _ => Some(new),
    }
}

struct Hub {
    hub: common::Hub,
    _setup: common::Setup,
}

impl Hub {
    fn start() -> Self {
        let route = r#"{"r":"FROM /messages/modules/a/outputs/out INTO BrokeredEndpoint(\"/modules/b/inputs/in\")"}"#;
        let mut setup = common::Setup::new(route, &["a", "b"]);
        setup.extra = "[server]\nworkers = 1\n[log]\nlevel = \"error\"\n".to_owned();
        let hub = setup.start();
        load::move_to_core(hub.child.id(), 0);
        Self { hub, _setup: setup }
    }

    fn measure(&self, load: &Load) -> Measured {
        let login = |module: &str| {
            let identity = format!("edge-1/{module}");
            let socket = TcpStream::connect(self.hub.tcp()).unwrap();
            load::Connection::login(socket, &self.hub.hello(&identity))
        };
        let mut subscriber = login("b");
        subscriber.subscribe(&common::inputs("b"));
        let publisher = login("a");
        let topic = common::output("a", "out", "");
        load.run(publisher, subscriber, &topic, self.hub.child.id())
    }
}

struct Mosquitto {
    child: Child,
    address: SocketAddr,
    _dir: tempfile::TempDir,
}

impl Mosquitto {
    /// `None` where it is not installed.
    fn start() -> Option<Self> {
        let program = ["/usr/sbin/mosquitto", "mosquitto"]
            .into_iter()
            .find(|program| {
                let mut help = Command::new(program);
                help.arg("-h").stdout(Stdio::null()).stderr(Stdio::null());
                help.status().is_ok()
            })?;
        let port = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mosquitto.conf");
        let mut config = fs::File::create(&path).unwrap();
        writeln!(
            config,
            "listener {} 127.0.0.1\nallow_anonymous true\npersistence false\nset_tcp_nodelay true\n\
             max_inflight_messages 0\nmax_queued_messages 0\nlog_dest none",
            port.port()
        )
        .unwrap();
        let child = Command::new(program)
            .arg("-c")
            .arg(&path)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        load::move_to_core(child.id(), 0);
        let started = Instant::now();
        while TcpStream::connect(port).is_err() {
            assert!(
                started.elapsed() < Duration::from_secs(10),
                "mosquitto does not listen"
            );
        }
        Some(Self {
            child,
            address: port,
            _dir: dir,
        })
    }

    fn measure(&self, load: &Load) -> Measured {
        let login = |id: &str| {
            let hello = edgehub::client::Hello {
                client_id: id.to_owned(),
                clean_session: true,
                ..Default::default()
            };
            load::Connection::login(TcpStream::connect(self.address).unwrap(), &hello)
        };
        let mut subscriber = login("b");
        subscriber.subscribe("devices/edge-1/modules/a/messages/events/#");
        let publisher = login("a");
        let topic = common::output("a", "out", "");
        load.run(publisher, subscriber, &topic, self.child.id())
    }
}

impl Drop for Mosquitto {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
