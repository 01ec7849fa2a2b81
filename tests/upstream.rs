//! The way up: messages that leave for the cloud, through outages, in order, none lost.
#![allow(missing_docs, clippy::unwrap_used, clippy::indexing_slicing)]

#[path = "cloud/mod.rs"]
mod cloud;
mod common;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use cloud::faults::{Mode, Proxy};
use cloud::record::{Entry, Message, read};
use cloud::sink::Sink;
use common::{Hub, LIMIT, Setup, output, publish};
use edgehub::client::Client;
use edgehub::mqtt::ConnectReturnCode;

const MODULES: [&str; 3] = ["a", "b", "c"];
const ROUTES: &str = r#"{"up":"FROM /messages/* INTO $upstream"}"#;
const STATE: &str = "edgehub_upstream_state";
const CONNECTED: f64 = 2.0;

/// A hub's folder, a cloud and the way between them.
struct Scene {
    setup: Setup,
    sink: Sink,
    proxy: Proxy,
}

impl Scene {
    fn new(kind: &str, more: &str) -> Self {
        let mut setup = Setup::new(ROUTES, &MODULES);
        let loopback = SocketAddr::from(([127, 0, 0, 1], 0));
        let sink = Sink::start(loopback, &setup.path("record")).unwrap();
        let proxy = Proxy::start(sink.address()).unwrap();
        setup.extra = format!(
            "[upstream]\nkind = \"{kind}\"\nservers = [\"{}\"]\ntransport = \"tcp\"\n{more}",
            proxy.address()
        );
        Self { setup, sink, proxy }
    }

    fn record(&self) -> PathBuf {
        self.setup.path("record")
    }

    /// Messages that the cloud has, in their order.
    fn messages(&self) -> Vec<Message> {
        let entries = read(&self.record()).unwrap().into_iter();
        let messages = entries.filter_map(|entry| match entry {
            Entry::Message(message) => Some(message),
            _ => None,
        });
        messages.collect()
    }

    /// Waits until the cloud has so many different messages, and checks order and bodies.
    fn all(&self, hub: &Hub, each: usize) {
        let started = Instant::now();
        loop {
            let mut firsts: BTreeMap<String, Vec<usize>> = BTreeMap::new();
            for message in self.messages() {
                let (sender, number) = body(&message);
                let numbers = firsts.entry(sender).or_default();
                if numbers.last().is_none_or(|last| number > *last) {
                    numbers.push(number);
                }
            }
            let whole: Vec<_> = (0..each).collect();
            if MODULES.iter().all(|name| firsts.get(*name) == Some(&whole)) {
                return;
            }
            let counts: Vec<_> = firsts.iter().map(|(name, all)| (name, all.len())).collect();
            let late = started.elapsed() > LIMIT;
            assert!(!late, "{counts:?} of {each}\n{}", hub.log_text());
            std::thread::yield_now();
        }
    }
}

fn body(message: &Message) -> (String, usize) {
    let text = std::str::from_utf8(&message.payload).unwrap();
    let (sender, number) = text.split_once(' ').unwrap();
    (sender.to_owned(), number.parse().unwrap())
}

async fn senders(hub: &Hub) -> Vec<Client> {
    let mut clients = Vec::new();
    for module in MODULES {
        clients.push(hub.connect(&format!("edge-1/{module}")).await);
    }
    clients
}

async fn send(clients: &mut [Client], numbers: std::ops::Range<usize>) {
    for number in numbers {
        for (client, module) in clients.iter_mut().zip(MODULES) {
            let topic = output(module, "out", &format!("n={number}&%24.ct=text%2Fplain"));
            publish(client, &topic, format!("{module} {number}").as_bytes()).await;
        }
    }
}

#[tokio::test]
async fn messages_of_three_modules_arrive_in_order_with_their_properties() {
    for kind in ["mqtt", "iothub"] {
        let scene = Scene::new(kind, "");
        let hub = scene.setup.start();
        let mut clients = senders(&hub).await;
        send(&mut clients, 0..100).await;
        scene.all(&hub, 100);
        for message in scene.messages() {
            let (sender, number) = body(&message);
            let more = match kind {
                "mqtt" => format!("&%24.cdid=edge-1&%24.cmid={sender}"),
                _ => String::new(),
            };
            let expected = format!(
                "devices/edge-1/modules/{sender}/messages/events/\
                 n={number}&%24.ct=text%2Fplain{more}"
            );
            assert_eq!(message.topic, expected);
            let client_id = match kind {
                "mqtt" => "edge-1".to_owned(),
                _ => format!("edge-1/{sender}"),
            };
            assert_eq!(message.client_id, client_id);
        }
        hub.until("nothing waits", |hub| {
            hub.metric("edgehub_queue_length", &["upstream"]) == 0.0
        });
        let sent = hub.metric("edgehub_messages_sent_total", &["to=\"upstream\""]);
        assert_eq!(sent, 300.0);
        assert_eq!(hub.terminate(), Some(0));
    }
}

#[tokio::test]
async fn what_comes_during_an_outage_waits_and_follows_at_once() {
    for (kind, mode) in [
        ("mqtt", Mode::Refuse),
        ("mqtt", Mode::Reset),
        ("iothub", Mode::Refuse),
    ] {
        let scene = Scene::new(kind, "");
        let hub = scene.setup.start();
        let mut clients = senders(&hub).await;
        send(&mut clients, 0..20).await;
        scene.all(&hub, 20);
        scene.proxy.set(mode);
        send(&mut clients, 20..50).await;
        hub.until("the link is down", |hub| {
            hub.metric(STATE, &[]) != CONNECTED
        });
        scene.proxy.set(Mode::Pass);
        scene.all(&hub, 50);
        let status = hub.status();
        let links = status["upstream"].as_array().unwrap();
        assert_eq!(links.len(), if kind == "mqtt" { 1 } else { 3 });
        assert!(links[0]["lastFailure"].is_string(), "{status}");
    }
}

#[tokio::test]
async fn a_backlog_survives_the_hub_and_goes_up_after_its_restart() {
    for end in common::End::ALL {
        let scene = Scene::new("mqtt", "");
        scene.proxy.set(Mode::Refuse);
        let hub = scene.setup.start();
        let mut clients = senders(&hub).await;
        send(&mut clients, 0..30).await;
        hub.end(end);
        scene.proxy.set(Mode::Pass);
        let hub = scene.setup.start();
        scene.all(&hub, 30);
    }
}

#[tokio::test]
async fn a_refused_identity_holds_nobody_else_up() {
    let scene = Scene::new("iothub", "");
    scene.sink.turn(|knobs| {
        let code = ConnectReturnCode::NotAuthorized;
        knobs.refuse.insert("edge-1/b".to_owned(), code);
    });
    let hub = scene.setup.start();
    let mut clients = senders(&hub).await;
    send(&mut clients, 0..30).await;
    let count = |name: &str| {
        let messages = scene.messages();
        messages.iter().filter(|one| body(one).0 == name).count()
    };
    hub.until("the others pass", |_| count("a") >= 30 && count("c") >= 30);
    assert_eq!(count("b"), 0);
    hub.until("the refusal is shown", |hub| {
        let status = hub.status();
        let links = status["upstream"].as_array().unwrap().clone();
        links.iter().any(|link| {
            let failure = link["lastFailure"].as_str().unwrap_or_default();
            link["id"] == "edge-1/b" && failure.contains("not authorized")
        })
    });
    scene.sink.turn(|knobs| knobs.refuse.clear());
    scene.all(&hub, 30);
}

#[tokio::test]
async fn tokens_are_renewed_without_a_gap() {
    let scene = Scene::new("iothub", "token_ttl_seconds = 5\n");
    scene.sink.turn(|knobs| knobs.tokens_expire = true);
    let hub = scene.setup.start();
    let mut clients = senders(&hub).await;
    let started = Instant::now();
    let mut sent = 0;
    while started.elapsed() < Duration::from_secs(11) {
        send(&mut clients, sent..sent + 1).await;
        sent += 1;
    }
    scene.all(&hub, sent);
    let counts = scene.sink.counts();
    assert_eq!(counts.expired, 0, "{counts:?}");
    assert!(counts.accepted >= 6, "{counts:?}");
    assert_eq!(hub.metric("edgehub_upstream_failures_total", &[]), 0.0);
}
