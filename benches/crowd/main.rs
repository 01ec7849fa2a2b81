//! What a crowd costs those who have nothing to do with it: a client with 10,000 subscriptions,
//! 100,000 retained messages, 10,000 kept sessions.
//!
//! `cargo bench --bench crowd [-- --rounds N --messages N --check]`
//!
//! Two hubs run beside each other, one with the crowd and one without. In turns, a publisher sends
//! the same messages to both, for one subscriber: to one topic, and to 200 topics in turns, so that
//! nothing is at hand and each message has to be matched. What counts is the hub's own CPU time.
//! `--check` fails where a message costs 20 % more with the crowd.
#![allow(
    missing_docs,
    dead_code,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing
)]

#[path = "../../tests/common/mod.rs"]
mod common;
#[path = "../support/mod.rs"]
mod support;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use bytes::{Buf, BytesMut};
use common::{Hub, Setup, cpu_time};
use edgehub::mqtt::{
    self, Connect, FromClient, FromServer, PacketId, Publish, QoS, SubAckCode, encode_from_client,
};
use support::Options;

/// Largest share that a crowd may add to the cost of a message.
const GROWTH_MAX: f64 = 0.2;
const SUBSCRIPTIONS: usize = 10_000;
const RETAINED: usize = 100_000;
const SESSIONS: usize = 10_000;
/// Publishes in flight.
const WINDOW: usize = 100;
const TOPICS: usize = 200;

fn main() {
    let options = Options::read();
    let rounds = options.number("--rounds", 7) as usize;
    let messages = options.number("--messages", 60_000) as usize;
    let (with, without) = (Bench::start(), Bench::start());
    println!(
        "resident, nobody there              {:>8.1} MiB",
        with.hub.resident_mib()
    );
    with.gather();
    let mut growth: f64 = 0.0;
    for (what, topics) in [("one topic", 1), ("200 topics in turns", TOPICS)] {
        let mut costs = [Vec::new(), Vec::new()];
        let mut pairs = [&without, &with].map(|bench| Pair::new(&bench.hub, topics));
        for pair in &mut pairs {
            pair.send(messages / 4);
        }
        for _ in 0..rounds {
            for ((bench, pair), costs) in [&without, &with].iter().zip(&mut pairs).zip(&mut costs) {
                let before = bench.cpu();
                pair.send(messages);
                let used = bench.cpu() - before;
                costs.push(used.as_secs_f64() * 1e6 / messages as f64);
            }
        }
        let [alone, crowded] = costs.map(median);
        let more = crowded / alone - 1.0;
        growth = growth.max(more);
        println!(
            "{what:<24} alone {alone:>6.2} us CPU a message, with the crowd {crowded:>6.2}: \
             {:+.1} % (under {:.0})",
            more * 100.0,
            GROWTH_MAX * 100.0
        );
    }
    if options.flag("--check") {
        assert!(growth < GROWTH_MAX, "a message costs {growth:.2} more");
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

struct Bench {
    _setup: Setup,
    hub: Hub,
}

impl Bench {
    fn start() -> Self {
        let mut setup = Setup::open("{}", &["a"]);
        setup.extra += &format!(
            "[limits]\nmax_subscriptions = {SUBSCRIPTIONS}\nmax_sessions = 20000\n\
             [log]\nlevel = \"warn\"\n"
        );
        let hub = setup.start();
        Self { _setup: setup, hub }
    }

    fn cpu(&self) -> Duration {
        cpu_time(self.hub.child.id())
    }

    /// The crowd comes, one part after the other.
    fn gather(&self) {
        self.part(&format!("{SUBSCRIPTIONS} subscriptions of one"), || {
            let mut many = Peer::connect(&self.hub, "many", false);
            let filters: Vec<String> = (0..SUBSCRIPTIONS)
                .map(|n| match n % 4 {
                    0 => format!("crowd/{n}/#"),
                    1 => format!("+/{n}/x"),
                    2 => format!("bench/+/{n}"),
                    _ => format!("bench/{n}"),
                })
                .collect();
            for some in filters.chunks(100) {
                many.subscribe(some, QoS::AtLeastOnce);
            }
            many.leave();
        });
        self.part(&format!("{RETAINED} retained messages"), || {
            let mut sender = Peer::connect(&self.hub, "sender", true);
            for n in 0..RETAINED {
                let topic = format!("retained/{}/{n}", n % 100);
                sender.publish(&topic, true, b"twenty bytes of it..");
                if n >= WINDOW {
                    sender.next(4);
                }
            }
            (0..WINDOW).for_each(|_| sender.next(4));
            sender.leave();
        });
        self.part(&format!("{SESSIONS} kept sessions"), || {
            for n in 0..SESSIONS {
                let mut one = Peer::connect(&self.hub, &format!("session-{n}"), false);
                one.subscribe(&[format!("sessions/{n}")], QoS::AtLeastOnce);
                one.leave();
            }
        });
    }

    fn part(&self, what: &str, work: impl FnOnce()) {
        let (before, began, cpu) = (self.hub.resident_mib(), Instant::now(), self.cpu());
        work();
        let (took, used) = (began.elapsed(), self.cpu() - cpu);
        let after = self.hub.resident_mib();
        println!(
            "{what:<36}{:>+8.1} MiB   {:>6.2} s, {:.2} s of CPU",
            after - before,
            took.as_secs_f64(),
            used.as_secs_f64()
        );
    }
}

/// A publisher and its subscriber.
struct Pair {
    sender: Peer,
    receiver: Peer,
    topics: Vec<String>,
}

impl Pair {
    fn new(hub: &Hub, topics: usize) -> Self {
        let mut receiver = Peer::connect(hub, "receiver", true);
        let topics: Vec<String> = (0..topics)
            .map(|n| format!("bench/one/{n}/value"))
            .collect();
        for some in topics.chunks(100) {
            receiver.subscribe(some, QoS::AtMostOnce);
        }
        Self {
            sender: Peer::connect(hub, "sender", true),
            receiver,
            topics,
        }
    }

    /// Sends messages of 64 bytes at QoS 1 and takes them at QoS 0.
    fn send(&mut self, messages: usize) {
        let payload = [b'x'; 64];
        let mut sent = 0;
        while sent < messages {
            let batch = WINDOW.min(messages - sent);
            for n in sent..sent + batch {
                let topic = &self.topics[n % self.topics.len()];
                self.sender.queue(topic, false, &payload);
            }
            self.sender.flush();
            for _ in 0..batch {
                self.sender.next(4);
                self.receiver.next(3);
            }
            sent += batch;
        }
    }
}

/// A client that waits for nothing but what it is told to.
struct Peer {
    socket: TcpStream,
    input: BytesMut,
    output: BytesMut,
    next_id: u16,
}

impl Peer {
    fn connect(hub: &Hub, client_id: &str, clean_session: bool) -> Self {
        let socket = TcpStream::connect(hub.tcp()).unwrap();
        socket.set_nodelay(true).unwrap();
        socket.set_read_timeout(Some(common::LIMIT)).unwrap();
        let mut peer = Self {
            socket,
            input: BytesMut::with_capacity(1 << 16),
            output: BytesMut::new(),
            next_id: 0,
        };
        peer.send(&FromClient::Connect(Connect {
            clean_session,
            keep_alive_seconds: 0,
            client_id,
            will: None,
            username: None,
            password: None,
        }));
        peer.next(2);
        peer
    }

    fn id(&mut self) -> PacketId {
        self.next_id = self.next_id % u16::MAX + 1;
        PacketId::new(self.next_id).unwrap()
    }

    fn send(&mut self, packet: &FromClient<'_>) {
        encode_from_client(packet, &mut self.output).unwrap();
        self.flush();
    }

    fn flush(&mut self) {
        self.socket.write_all(&self.output).unwrap();
        self.output.clear();
    }

    fn queue(&mut self, topic: &str, retain: bool, payload: &[u8]) {
        let packet_id = Some(self.id());
        let publish = FromClient::Publish(Publish {
            dup: false,
            qos: QoS::AtLeastOnce,
            retain,
            topic,
            packet_id,
            payload,
        });
        encode_from_client(&publish, &mut self.output).unwrap();
    }

    fn publish(&mut self, topic: &str, retain: bool, payload: &[u8]) {
        self.queue(topic, retain, payload);
        self.flush();
    }

    fn subscribe(&mut self, filters: &[String], qos: QoS) {
        let id = self.id();
        let filters = filters.iter().map(|filter| (filter.as_str(), qos));
        mqtt::encode_subscribe(&mut self.output, id, filters).unwrap();
        self.flush();
        self.next(9);
    }

    /// The next packet, which is of this type (its number on the wire).
    fn next(&mut self, wanted: u8) {
        loop {
            if let Some((packet, used)) = mqtt::decode_from_server(&self.input, 1 << 20).unwrap() {
                let kind = match &packet {
                    FromServer::ConnAck(_) => 2,
                    FromServer::Publish(_) => 3,
                    FromServer::PubAck(_) => 4,
                    FromServer::SubAck(suback) => {
                        assert!(suback.codes.iter().all(|code| code != SubAckCode::Failure));
                        9
                    }
                    other => panic!("{other:?}"),
                };
                assert_eq!(kind, wanted);
                self.input.advance(used);
                return;
            }
            let mut more = [0; 1 << 14];
            let read = self.socket.read(&mut more).unwrap();
            assert!(read > 0, "the hub closed the connection");
            self.input.extend_from_slice(&more[..read]);
        }
    }

    fn leave(mut self) {
        self.send(&FromClient::Disconnect);
        // The session is put away when the hub has closed.
        assert_eq!(self.socket.read(&mut [0; 16]).unwrap(), 0);
    }
}
