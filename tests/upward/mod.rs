//! Modules whose messages lead to the cloud, and clouds that they lead to.
#![allow(dead_code, missing_docs, clippy::unwrap_used, clippy::indexing_slicing)]

pub mod five;
pub mod mosquitto;

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Instant;

use edgehub::client::Client;

use crate::cloud::checks::{Numbered, Sent, check};
use crate::cloud::faults::Proxy;
use crate::cloud::record::{Entry, Message, read};
use crate::cloud::sink::Sink;
use crate::common::{Hub, LIMIT, Setup, output, wire};

pub const MODULES: [&str; 3] = ["a", "b", "c"];
pub const ROUTES: &str = r#"{"up":"FROM /messages/* INTO $upstream"}"#;
pub const STATE: &str = "edgehub_upstream_state";
pub const FAILURES: &str = "edgehub_upstream_failures_total";
/// The value of [`STATE`].
pub const CONNECTED: f64 = 2.0;
/// Messages of one connection in flight, where nothing else is configured.
const WINDOW: u64 = 100;
/// Bytes of most messages.
const BODY_BYTES: usize = 64;

/// A hub's folder, a cloud that writes down what it gets, and the way between them.
pub struct Scene {
    pub setup: Setup,
    pub sink: Sink,
    pub proxy: Proxy,
    pub sent: Sent,
}

impl Scene {
    /// `more` are lines of `[upstream]` beside those that lead to the cloud.
    pub fn new(kind: &str, more: &str) -> Self {
        Self::with_routes(ROUTES, kind, more)
    }

    pub fn with_routes(routes: &str, kind: &str, more: &str) -> Self {
        let mut setup = Setup::new(routes, &MODULES);
        let loopback = SocketAddr::from(([127, 0, 0, 1], 0));
        let sink = Sink::start(loopback, &setup.path("record")).unwrap();
        let proxy = Proxy::start(sink.address()).unwrap();
        setup.extra = tcp(kind, proxy.address(), more);
        Self {
            setup,
            sink,
            proxy,
            sent: Sent::default(),
        }
    }

    pub fn record(&self) -> PathBuf {
        self.setup.path("record")
    }

    /// Messages that the cloud has, in their order.
    pub fn messages(&self) -> Vec<Message> {
        messages(read(&self.record()).unwrap())
    }

    /// So many messages of each module, acknowledged when this returns.
    pub async fn send(&mut self, hub: &Hub, each: usize) {
        send(hub, &mut self.sent, each).await;
    }

    /// So many messages of one module's output, acknowledged when this returns.
    pub async fn send_lane(&mut self, hub: &Hub, at: (&str, u8), output: &str, count: usize) {
        let (module, lane) = at;
        let messages = publish(&mut self.sent, module, lane, count);
        send_all(hub, module, output, &messages).await;
        messages.iter().for_each(|one| self.sent.acknowledge(one));
    }

    /// Waits until the cloud has everything, then reads its record as the promises want it.
    pub fn arrived(&self, hub: &Hub) {
        arrived(&self.record(), &self.sent, hub);
    }

    /// Waits until the cloud has seen the end of all connections: nothing more comes on them.
    pub fn all_ended(&self) {
        let started = Instant::now();
        let is_open = |entries: &[Entry]| {
            let begun = entries
                .iter()
                .filter(|one| matches!(one, Entry::Connected(_)));
            let ended = entries.iter().filter(|one| matches!(one, Entry::Ended(_)));
            begun.count() > ended.count()
        };
        while is_open(&read(&self.record()).unwrap()) {
            assert!(started.elapsed() < LIMIT, "a connection does not end");
            std::thread::yield_now();
        }
    }

    /// Waits until the cloud has so many messages.
    pub fn has(&self, hub: &Hub, count: u64) {
        hub.until("messages arrive", |_| self.sink.counts().messages >= count);
    }
}

/// `[upstream]` that leads to an address without TLS.
pub fn tcp(kind: &str, address: SocketAddr, more: &str) -> String {
    upstream(kind, &[&address.to_string()], "tcp", more)
}

pub fn upstream(kind: &str, servers: &[&str], transport: &str, more: &str) -> String {
    format!(
        "[upstream]\nkind = \"{kind}\"\nservers = {servers:?}\ntransport = \"{transport}\"\n{more}"
    )
}

pub fn messages(entries: Vec<Entry>) -> Vec<Message> {
    let messages = entries.into_iter().filter_map(|entry| match entry {
        Entry::Message(message) => Some(message),
        _ => None,
    });
    messages.collect()
}

fn publish(sent: &mut Sent, module: &str, lane: u8, count: usize) -> Vec<Numbered> {
    (0..count).map(|_| sent.publish(module, lane)).collect()
}

/// So many messages of each module at the same time, noted and acknowledged when this returns.
pub async fn send(hub: &Hub, sent: &mut Sent, each: usize) {
    let [a, b, c] = MODULES.map(|module| publish(sent, module, 0, each));
    tokio::join!(
        send_all(hub, MODULES[0], "out", &a),
        send_all(hub, MODULES[1], "out", &b),
        send_all(hub, MODULES[2], "out", &c),
    );
    for message in [a, b, c].iter().flatten() {
        sent.acknowledge(message);
    }
}

async fn send_all(hub: &Hub, module: &str, to: &str, messages: &[Numbered]) {
    let mut client = hub.connect(&format!("edge-1/{module}")).await;
    let packet = |message: &Numbered| {
        let payload = String::from_utf8(message.payload(BODY_BYTES)).unwrap();
        (output(module, to, &message.bag()), payload)
    };
    let packets: Vec<_> = messages.iter().map(packet).collect();
    wire::publish_many(&mut client, &packets).await;
    client.disconnect().await.unwrap();
}

/// Waits until nothing is left to go up, then reads a cloud's record as the promises want it.
pub fn arrived(record: &Path, sent: &Sent, hub: &Hub) {
    nothing_waits(hub);
    let findings = check(&read(record).unwrap(), sent, WINDOW);
    assert_eq!(findings.faults(), 0, "{findings}\n{}", hub.log_text());
    assert_eq!(findings.different, sent.published, "{findings}");
}

/// Waits until the cloud has acknowledged everything.
pub fn nothing_waits(hub: &Hub) {
    hub.until("nothing waits", |hub| {
        hub.metric("edgehub_queue_length", &["upstream"]) == 0.0
    });
}

/// Messages that the cloud acknowledged.
pub fn sent_up(hub: &Hub) -> f64 {
    hub.metric("edgehub_messages_sent_total", &["to=\"upstream\""])
}

/// Waits for a link of `/status` with such a state and a last failure that says all of this.
pub fn link_says(hub: &Hub, state: &str, parts: &[&str]) {
    hub.until(&format!("{state}, {parts:?}"), |hub| {
        let status = hub.status();
        let links = status["upstream"].as_array().unwrap();
        links.iter().any(|link| {
            let failure = link["lastFailure"].as_str().unwrap_or_default();
            link["state"] == state && parts.iter().all(|part| failure.contains(part))
        })
    });
}

/// Waits for a line of the log with all of this.
pub fn log_says(hub: &Hub, parts: &[&str]) {
    hub.until(&format!("the log says {parts:?}"), |hub| {
        let log = hub.log_text();
        let mut lines = log.lines();
        lines.any(|line| parts.iter().all(|part| line.contains(part)))
    });
}

/// Another `[upstream]` under a running hub; returns once it counts.
pub fn lead_to(setup: &mut Setup, hub: &Hub, upstream: String) {
    let reloads = |hub: &Hub| {
        let labels = ["what=\"upstream\"", "result=\"ok\""];
        hub.metric("edgehub_reloads_total", &labels)
    };
    let before = reloads(hub);
    setup.extra = upstream;
    setup.write_config();
    hub.until("the new [upstream] counts", |hub| reloads(hub) > before);
}

/// A second hub as the cloud, with a module that gets all that comes up.
pub struct Above {
    pub setup: Setup,
    pub hub: Hub,
}

impl Above {
    const INTO: &str = r#"{"in":
        "FROM /messages/* INTO BrokeredEndpoint(\"/modules/sink/inputs/in\")"}"#;

    pub fn start() -> Self {
        let setup = Setup::new(Self::INTO, &["a", "b", "c", "sink"]);
        let hub = setup.start();
        Self { setup, hub }
    }

    /// The folder of a hub below: the same modules with the same keys.
    pub fn below(&self, routes: &str) -> Setup {
        let setup = Setup::new(routes, &MODULES);
        let name = "identities.json";
        fs::copy(self.setup.path(name), setup.path(name)).unwrap();
        setup
    }

    /// `[upstream]` that leads here with TLS, by a name; `trusted` signed the certificate.
    pub fn tls(&self, name: &str, trusted: &Setup) -> String {
        let server = format!("{name}:{}", self.hub.address("tls").port());
        let ca = format!("ca = {:?}\n", trusted.path("certs/ca.pem"));
        upstream("iothub", &[&server], "tls", &ca)
    }

    pub async fn sink(&self) -> Client {
        crate::common::scene::receiver(&self.hub, "sink").await
    }
}

/// Of each module the next number that is due.
#[derive(Default)]
pub struct Due(std::collections::BTreeMap<String, u32>);

impl Due {
    /// Notes a body; every one comes once, in the order in which it was sent.
    pub fn note(&mut self, payload: &[u8]) -> Numbered {
        let got = Numbered::read(payload).unwrap();
        let due = self.0.entry(got.sender.clone()).or_default();
        assert_eq!(got.number, *due, "of {}", got.sender);
        *due += 1;
        got
    }

    pub fn all(&self, each: u32) -> bool {
        MODULES
            .iter()
            .all(|module| self.0.get(*module) == Some(&each))
    }
}
