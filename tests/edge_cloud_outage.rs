//! The hub and the stand-in cloud, both as they are built: what reaches the cloud through its
//! outages, and the quickstart that shows one.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing
)]

mod cloud;
mod common;
#[path = "edge_cloud/process.rs"]
mod process;

use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use cloud::checks::{Numbered, properties};
use cloud::port::Port;
use common::{BINARY, Hub, LIMIT, Setup, edgehub, output, receive};
use edgehub::client::{Client, Packet};
use edgehub::mqtt::QoS;
use process::Cloud;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::sync::watch;

const MODULES: [&str; 3] = ["a", "b", "c"];
/// Messages of each module: 10,000 together.
const COUNTS: [u32; 3] = [3334, 3333, 3333];
/// What each of them sends before the cloud is away.
const BEFORE: u32 = 1700;
/// Unacknowledged publishes of one module.
const OPEN_MAX: u32 = 50;
/// The hub's default for `upstream.window`.
const WINDOW: usize = 100;

/// Sends a module's messages; in the middle it waits until the cloud is gone.
async fn send(mut client: Client, module: &str, count: u32, mut gone: watch::Receiver<bool>) {
    let mut open = 0;
    for number in 0..count {
        if number == BEFORE {
            gone.wait_for(|gone| *gone).await.unwrap();
        }
        if open == OPEN_MAX {
            acknowledged(&mut client).await;
            open -= 1;
        }
        let message = Numbered::new(module, 0, number);
        let topic = output(module, "out", &message.bag());
        let payload = message.payload(100);
        let sent = client.publish(&topic, QoS::AtLeastOnce, &payload).await;
        assert!(sent.unwrap().is_some());
        open += 1;
    }
    for _ in 0..open {
        acknowledged(&mut client).await;
    }
}

async fn acknowledged(client: &mut Client) {
    let packet = receive(client).await.unwrap();
    assert!(matches!(packet, Packet::PubAck(_)), "{packet:?}");
}

/// What one process of the cloud got: the numbers of each module in their order.
#[derive(Default)]
struct Got(HashMap<String, Vec<u32>>);

impl Got {
    /// Takes in a message, which has to be as it was sent.
    fn add(&mut self, line: &Value) {
        let payload = line["payload"].as_str().unwrap();
        let message = Numbered::read(payload.as_bytes()).expect(payload);
        let topic = line["topic"].as_str().unwrap();
        let own = format!("devices/edge-1/modules/{}/messages/events/", message.sender);
        assert!(topic.starts_with(&own), "{topic}");
        let mut expected: HashMap<_, _> = message.properties().into_iter().collect();
        expected.insert("$.cdid".to_owned(), "edge-1".to_owned());
        expected.insert("$.cmid".to_owned(), message.sender.clone());
        let bag = topic.rsplit('/').next().unwrap();
        assert_eq!(properties(bag), expected, "{topic}");
        self.0
            .entry(message.sender)
            .or_default()
            .push(message.number);
    }

    fn len(&self) -> usize {
        self.0.values().map(Vec::len).sum()
    }

    /// The first and the last number of a module; all between them came, once and in order.
    fn range(&self, module: &str) -> (u32, u32) {
        let numbers = &self.0[module];
        let (first, last) = (numbers[0], numbers[numbers.len() - 1]);
        let whole: Vec<_> = (first..=last).collect();
        assert_eq!(*numbers, whole, "{module}");
        (first, last)
    }
}

fn waiting(hub: &Hub) -> u64 {
    let status = hub.status();
    let rows = status["queues"].as_array().unwrap().iter();
    let upward = rows.filter(|row| row["endpoint"].as_str().unwrap().starts_with("$upstream"));
    upward.map(|row| row["messages"].as_u64().unwrap()).sum()
}

/// The cloud keeps nothing: what the second process gets the hub had on its disk, or got later.
#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_messages_of_three_modules_survive_a_restart_of_the_cloud() {
    let port = Port::reserve().unwrap();
    let bind = port.address().to_string();
    let mut setup = Setup::new(r#"{"up":"FROM /messages/* INTO $upstream"}"#, &MODULES);
    setup.extra =
        format!("[upstream]\nkind = \"mqtt\"\nservers = [\"{bind}\"]\ntransport = \"tcp\"\n");
    let cloud = Cloud::start(&["--bind", &bind]);
    let hub = setup.start();
    let (tell, gone) = watch::channel(false);
    let mut senders = Vec::new();
    for (module, count) in MODULES.into_iter().zip(COUNTS) {
        let client = hub.connect(&format!("edge-1/{module}")).await;
        senders.push(tokio::spawn(send(client, module, count, gone.clone())));
    }

    let mut first = Got::default();
    while first.len() < 3000 {
        first.add(&cloud.message().1);
    }
    cloud.signal(Signal::TERM);
    let (code, rest, errors) = cloud.end();
    assert_eq!((code, &*errors), (Some(0), ""));
    let (end, rest) = rest.split_last().unwrap();
    rest.iter().for_each(|line| first.add(line));
    assert_eq!(end["messages"], first.len());
    tell.send(true).unwrap();
    hub.until("a backlog has grown", |hub| waiting(hub) >= 1000);

    let cloud = Cloud::start(&["--bind", &bind]);
    let mut second = Got::default();
    let is_last = |got: &Got, module: &str, count: u32| {
        let numbers = got.0.get(module).and_then(|numbers| numbers.last());
        numbers == Some(&(count - 1))
    };
    let mut ends = MODULES.into_iter().zip(COUNTS);
    while !ends
        .clone()
        .all(|(module, count)| is_last(&second, module, count))
    {
        second.add(&cloud.message().1);
    }
    for sender in senders {
        sender.await.unwrap();
    }
    hub.until("nothing waits", |hub| waiting(hub) == 0);

    let again = ends.try_fold(0, |again, (module, _)| {
        let ((from, last), (next, _)) = (first.range(module), second.range(module));
        assert_eq!(from, 0, "{module}");
        (next <= last + 1).then(|| again + (last + 1 - next) as usize)
    });
    // Only what was in flight may have come twice.
    let again = again.expect("a message is missing between the two");
    assert!(again <= WINDOW, "{again} came twice");
    assert_eq!(first.len() + second.len() - again, 10_000);
    assert_eq!(hub.metric("edgehub_messages_dropped_total", &[]), 0.0);
    cloud.signal(Signal::TERM);
    assert_eq!(cloud.end().1.len(), 1, "nothing comes after the last");
    assert_eq!(hub.terminate(), Some(0));
}

/// The lines of the quickstart in their order: each holds all of the words.
fn told(text: &str, story: &[&[&str]]) {
    let mut lines = text.lines();
    for words in story {
        let found = lines.any(|line| words.iter().all(|word| line.contains(word)));
        assert!(found, "no {words:?} in its place:\n{text}");
    }
}

#[test]
fn the_quickstart_shows_an_outage_from_its_beginning_to_its_end() {
    let dir = tempfile::tempdir().unwrap();
    let made = dir.path().join("made");
    let made = made.to_str().unwrap();
    for _ in 0..2 {
        let args = ["quickstart", "--upstream", "--messages", "300", "--dir"];
        let output = edgehub(dir.path(), &[&args[..], &[made]].concat());
        assert!(output.status.success(), "{output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        told(
            &text,
            &[
                &["hub on localhost:", made],
                &["cloud on 127.0.0.1:"],
                &["readings 100,", "in the cloud 100,", "waiting 0"],
                &["the cloud is stopped"],
                &["readings 200,", "in the cloud 100,", "waiting 100"],
                &["the cloud is started again"],
                &[
                    "caught up: 100 readings in order, the first ",
                    " ms and the last ",
                ],
                &[
                    "readings 300,",
                    "at the monitor ",
                    "in the cloud 300,",
                    "waiting 0",
                ],
                &["300 readings are in the cloud, in order, none lost; 0 came twice"],
            ],
        );
        let log = String::from_utf8(output.stderr).unwrap();
        assert!(log.contains("no connection to the cloud"), "{log}");
        assert!(!log.contains("ERROR"), "{log}");
        assert!(TcpStream::connect(cloud_address(&text)).is_err());
    }
}

fn cloud_address(text: &str) -> SocketAddr {
    let line = text.lines().find(|line| line.starts_with("cloud on "));
    let word = line.and_then(|line| line.split(' ').nth(2)).expect(text);
    word.parse().unwrap()
}

/// A quickstart that goes on until it is told to end; killed when dropped.
struct Quickstart(Child);

impl Drop for Quickstart {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn the_cloud_ends_with_the_quickstart() {
    for (signal, code) in [
        (Signal::INT, Some(0)),
        (Signal::TERM, None),
        (Signal::KILL, None),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let child = Command::new(BINARY)
            .args(["quickstart", "--upstream", "--dir", "made"])
            .current_dir(dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut quickstart = Quickstart(child);
        let stdout = BufReader::new(quickstart.0.stdout.take().unwrap());
        let mut text = String::new();
        let mut lines = stdout.lines();
        while !text.contains("modules sensor and monitor are connected") {
            text.push_str(&lines.next().expect("it ended").unwrap());
            text.push('\n');
        }
        let address = cloud_address(&text);
        drop(TcpStream::connect(address).unwrap());
        kill_process(Pid::from_child(&quickstart.0), signal).unwrap();
        assert_eq!(quickstart.0.wait().unwrap().code(), code, "{signal:?}");
        let started = Instant::now();
        while TcpStream::connect(address).is_ok() {
            assert!(started.elapsed() < LIMIT, "{signal:?}: it goes on");
            std::thread::yield_now();
        }
    }
}
