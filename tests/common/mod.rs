//! A real hub for integration tests: the built binary, port 0, a temporary folder.
#![allow(dead_code, missing_docs, clippy::unwrap_used, clippy::expect_used)]
#![allow(clippy::indexing_slicing)]

pub mod five;
pub mod scene;
pub mod wire;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use edgehub::client::{Client, ClientError, Hello, Packet, tls_config};
use edgehub::identity::{Authentication, Identity};
use edgehub::iothub::sas;
use serde_json::Value;

pub const BINARY: &str = env!("CARGO_BIN_EXE_edgehub");
pub const DEVICE: &str = "edge-1";
pub const IOTHUB: &str = "hub.example";
/// The bound of everything that a test waits for.
pub const LIMIT: Duration = Duration::from_secs(20);

/// What the listeners of a hub can be.
pub const TRANSPORTS: [&str; 4] = ["tcp", "tls", "ws", "wss"];
/// Rules by which everybody may use all plain topics.
pub const OPEN: &str = "[[authorization]]\n\
    identities = [\"{{anonymous}}\", \"{{iot:identity}}\"]\n\
    allow = [{ operations = [\"mqtt:publish\", \"mqtt:subscribe\"], resources = [\"#\"] }]\n";

/// A folder with everything that a hub needs.
pub struct Setup {
    pub dir: tempfile::TempDir,
    pub extra: String,
    pub listeners: String,
}

impl Setup {
    /// `routes` is the JSON object of the manifest's routes; `modules` get identities with keys.
    pub fn new(routes: &str, modules: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let setup = Self {
            dir,
            extra: String::new(),
            listeners: "[[listener]]\nbind = \"127.0.0.1:0\"\ntransport = \"tls\"\n\
                        [[listener]]\nbind = \"127.0.0.1:0\"\ntransport = \"tcp\"\n"
                .to_owned(),
        };
        setup.write_manifest(routes, modules, 7200);
        certs(&setup.path("certs"), &["localhost"], &[]);
        setup
    }

    /// As [`Self::new`]; everybody may come over tcp and use all plain topics.
    pub fn open(routes: &str, modules: &[&str]) -> Self {
        let mut setup = Self::new(routes, modules);
        setup.listeners += "anonymous = true\n";
        OPEN.clone_into(&mut setup.extra);
        setup
    }

    /// As [`Self::open`], over every transport.
    pub fn open_everywhere(routes: &str, modules: &[&str]) -> Self {
        let mut setup = Self::open(routes, modules);
        let listener = |transport| {
            format!(
                "[[listener]]\nbind = \"127.0.0.1:0\"\ntransport = \"{transport}\"\n\
                 anonymous = true\n"
            )
        };
        setup.listeners = TRANSPORTS.map(listener).concat();
        setup
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn write_manifest(&self, routes: &str, modules: &[&str], ttl: i64) {
        let modules: Vec<_> = modules
            .iter()
            .map(|name| {
                format!("\"{name}\":{{\"type\":\"docker\",\"settings\":{{\"image\":\"i\"}}}}")
            })
            .collect();
        let manifest = format!(
            r#"{{"modulesContent":{{
"$edgeAgent":{{"properties.desired":{{"schemaVersion":"1.1","modules":{{{}}}}}}},
"$edgeHub":{{"properties.desired":{{"schemaVersion":"1.1","routes":{routes},
"storeAndForwardConfiguration":{{"timeToLiveSecs":{ttl}}}}}}}}}}}"#,
            modules.join(",")
        );
        replace(&self.path("manifest.json"), &manifest);
    }

    /// Writes `edgehub.toml`; `extra` (sections such as `[limits]`) goes at its end.
    pub fn write_config(&self) {
        let text = format!(
            "device_id = \"{DEVICE}\"\niothub_hostname = \"{IOTHUB}\"\n\
             gateway_hostname = \"localhost\"\nmanifest = \"manifest.json\"\n\
             identities = \"identities.json\"\n{}\
             [tls]\ncertificate = \"certs/server.pem\"\nkey = \"certs/server.key\"\n\
             client_ca = \"certs/ca.pem\"\n[http]\nbind = \"127.0.0.1:0\"\n{}",
            self.listeners, self.extra
        );
        replace(&self.path("edgehub.toml"), &text);
    }

    pub fn start(&self) -> Hub {
        self.write_config();
        Hub::start(self.dir.path())
    }
}

/// Replaces a file in one step, as editors and agents do.
pub fn replace(path: &Path, text: &str) {
    let new = path.with_extension("tmp");
    fs::write(&new, text).unwrap();
    fs::rename(new, path).unwrap();
}

/// Runs the binary to its end.
pub fn edgehub(dir: &Path, args: &[&str]) -> Output {
    Command::new(BINARY)
        .args(args)
        .current_dir(dir)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

pub fn certs(dir: &Path, hostnames: &[&str], clients: &[&str]) {
    let mut command = Command::new(BINARY);
    command.args(["certs", "new", "--dir"]).arg(dir);
    for hostname in hostnames {
        command.args(["--hostname", hostname]);
    }
    for client in clients {
        command.args(["--client", client]);
    }
    let output = command.output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

/// How a hub ends before it is started again on the same data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// By SIGTERM: it drains and closes its store.
    Clean,
    /// By SIGKILL, as in a crash.
    Killed,
}

impl End {
    pub const ALL: [Self; 2] = [Self::Clean, Self::Killed];
}

/// A running hub; killed when dropped, with its log printed if the test failed.
pub struct Hub {
    pub child: Child,
    pub dir: PathBuf,
    pub listeners: Vec<(String, SocketAddr)>,
    pub log: PathBuf,
}

impl Hub {
    pub fn start(dir: &Path) -> Self {
        let log = dir.join("hub.log");
        let file = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&log)
            .unwrap();
        let mut child = Command::new(BINARY)
            .args(["run", "--config", "edgehub.toml"])
            .current_dir(dir)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(file)
            .spawn()
            .unwrap();
        let mut line = String::new();
        let stdout = child.stdout.as_mut().unwrap();
        BufReader::new(stdout).read_line(&mut line).unwrap();
        let ready: Value = serde_json::from_str(&line)
            .unwrap_or_else(|_| panic!("no ready line: {}", fs::read_to_string(&log).unwrap()));
        let listeners = ready["listeners"]
            .as_array()
            .unwrap()
            .iter()
            .map(|listener| {
                let transport = listener["transport"].as_str().unwrap().to_owned();
                (
                    transport,
                    listener["address"].as_str().unwrap().parse().unwrap(),
                )
            })
            .collect();
        Self {
            child,
            dir: dir.to_owned(),
            listeners,
            log,
        }
    }

    pub fn address(&self, transport: &str) -> SocketAddr {
        let found = self
            .listeners
            .iter()
            .find(|listener| listener.0 == transport);
        found.unwrap().1
    }

    pub fn tcp(&self) -> SocketAddr {
        self.address("tcp")
    }

    pub fn log_text(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// SIGTERM, then the exit code.
    pub fn terminate(mut self) -> Option<i32> {
        let pid = self.child.id().to_string();
        let sent = Command::new("kill").args(["-TERM", &pid]).status().unwrap();
        assert!(sent.success());
        let started = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            assert!(started.elapsed() < LIMIT, "does not end at SIGTERM");
            std::thread::yield_now();
        }
    }

    /// SIGKILL, as a power cut for the process.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Ends it in one way or the other.
    pub fn end(self, end: End) {
        println!("the hub ends: {end:?}");
        match end {
            End::Clean => assert_eq!(self.terminate(), Some(0)),
            End::Killed => self.kill(),
        }
    }

    /// Resident memory, in MiB.
    pub fn resident_mib(&self) -> f64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:"));
        let kib = line.unwrap().split_whitespace().nth(1).unwrap();
        kib.parse::<f64>().unwrap() / 1024.0
    }

    /// `GET path` of the metrics listener: code and body.
    pub fn get(&self, path: &str) -> (u16, String) {
        let mut socket = TcpStream::connect(self.address("http")).unwrap();
        socket.set_read_timeout(Some(LIMIT)).unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: hub\r\nConnection: close\r\n\r\n");
        socket.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let code = head.split(' ').nth(1).unwrap().parse().unwrap();
        (code, body.to_owned())
    }

    /// Sum of a metric's series that carry all of `labels` (such as `reason="no_route"`).
    pub fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        let (_, text) = self.get("/metrics");
        text.lines()
            .filter(|line| line.starts_with(name) && !line.starts_with('#'))
            .filter(|line| labels.iter().all(|label| line.contains(label)))
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum()
    }

    pub fn status(&self) -> Value {
        serde_json::from_str(&self.get("/status").1).unwrap()
    }

    /// Waits until something holds, looking again and again.
    pub fn until(&self, what: &str, mut holds: impl FnMut(&Self) -> bool) {
        let started = Instant::now();
        while !holds(self) {
            assert!(
                started.elapsed() < LIMIT,
                "never: {what}\n{}",
                self.log_text()
            );
            std::thread::yield_now();
        }
    }

    pub fn key(&self, identity: &str) -> Vec<u8> {
        let registry = edgehub::files::read_identities(&self.dir.join("identities.json")).unwrap();
        let identity = Identity::parse(identity).unwrap();
        match registry.get(&identity).unwrap().authentication() {
            Authentication::Sas { primary, .. } => primary.as_bytes().to_vec(),
            other => panic!("{identity}: {other:?}"),
        }
    }

    /// How a module introduces itself with the right token, persistent session.
    pub fn hello(&self, identity: &str) -> Hello {
        hello(identity, &self.key(identity))
    }

    /// Connected over plain TCP as a module, with a persistent session.
    pub async fn connect(&self, identity: &str) -> Client {
        let mut client = Client::tcp(self.tcp()).await.unwrap();
        client.connect(&self.hello(identity)).await.unwrap();
        client
    }

    /// Connected over TLS as a module.
    pub async fn connect_tls(&self, identity: &str) -> Client {
        let mut client = self.tls(None).await.unwrap();
        client.connect(&self.hello(identity)).await.unwrap();
        client
    }

    /// A TLS connection before CONNECT, with a client certificate (`certs/NAME.pem`) if wanted.
    pub async fn tls(&self, certificate: Option<&str>) -> Result<Client, ClientError> {
        let read = |name: String| fs::read(self.dir.join("certs").join(name)).unwrap();
        let pair =
            certificate.map(|name| (read(format!("{name}.pem")), read(format!("{name}.key"))));
        let pair = pair.as_ref().map(|(chain, key)| (&chain[..], &key[..]));
        let config = tls_config(&read("ca.pem".to_owned()), pair)?;
        Client::tls(self.address("tls"), "localhost", Arc::clone(&config)).await
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- hub log ---\n{}", self.log_text());
        }
    }
}

/// Time on a core of all threads of a process so far.
pub fn cpu_time(pid: u32) -> Duration {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    tasks
        .filter_map(|task| {
            let text = fs::read_to_string(task.ok()?.path().join("schedstat")).ok()?;
            Some(Duration::from_nanos(text.split(' ').next()?.parse().ok()?))
        })
        .sum()
}

pub fn unix_now() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.unwrap().as_secs()
}

pub fn hello(identity: &str, key: &[u8]) -> Hello {
    let id = Identity::parse(identity).unwrap();
    let token = sas::sign(key, &sas::resource(IOTHUB, &id), unix_now() + 3600);
    Hello {
        client_id: identity.to_owned(),
        username: Some(format!("{IOTHUB}/{identity}/?api-version=2021-04-12")),
        password: Some(token),
        clean_session: false,
        keep_alive_seconds: 60,
    }
}

/// The topic of a module's output with some properties.
pub fn output(module: &str, output: &str, bag: &str) -> String {
    let more = if bag.is_empty() {
        String::new()
    } else {
        format!("&{bag}")
    };
    format!("devices/{DEVICE}/modules/{module}/messages/events/%24.on={output}{more}")
}

pub fn inputs(module: &str) -> String {
    format!("devices/{DEVICE}/modules/{module}/inputs/#")
}

/// The next packet, within the limit.
pub async fn receive(client: &mut Client) -> Result<Packet, ClientError> {
    tokio::time::timeout(LIMIT, client.receive())
        .await
        .expect("nothing received in time")
}

/// The next message: input, body; acknowledged.
pub async fn message(client: &mut Client) -> (String, Vec<u8>) {
    let (topic, payload, _) = message_with_topic(client).await;
    (
        topic.split('/').nth(5).unwrap_or_default().to_owned(),
        payload,
    )
}

/// The next message: topic, body, DUP; acknowledged.
pub async fn message_with_topic(client: &mut Client) -> (String, Vec<u8>, bool) {
    loop {
        if let Packet::Publish {
            topic,
            payload,
            dup,
            packet_id,
        } = receive(client).await.unwrap()
        {
            if let Some(packet_id) = packet_id {
                client.acknowledge(packet_id).await.unwrap();
            }
            return (topic, payload.to_vec(), dup);
        }
    }
}

/// Publishes at QoS 1 and waits for the acknowledgement.
pub async fn publish(client: &mut Client, topic: &str, payload: &[u8]) {
    let id = client
        .publish(topic, edgehub::mqtt::QoS::AtLeastOnce, payload)
        .await
        .unwrap();
    match receive(client).await.unwrap() {
        Packet::PubAck(acknowledged) => assert_eq!(Some(acknowledged), id),
        other => panic!("expected PUBACK, got {other:?}"),
    }
}

/// Waits for the hub to close the connection.
pub async fn closed(client: &mut Client) {
    loop {
        match receive(client).await {
            Ok(_) => {}
            Err(_) => return,
        }
    }
}
