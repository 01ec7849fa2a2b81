//! One connection per identity: takeover, and the wills of connections that ended.
#![allow(missing_docs, clippy::unwrap_used, clippy::indexing_slicing)]

mod common;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::task::Waker;

use common::scene::{receiver, routes};
use common::wire::{self, numbered, numbers};
use common::{Hub, Setup, closed, message_with_topic, output, publish, receive};
use edgehub::client::{Client, Packet};
use edgehub::hub::{Attached, Client as Attachment, Durable, Now, Outcome, Peer, Settings, Token};
use edgehub::identity::registry::Registry;
use edgehub::limits::Limits;
use edgehub::mailbox::{ATTACH, Mailbox, TAKEN_OVER};
use edgehub::mqtt::v5::Properties;
use edgehub::mqtt::{Connect, ConnectReturnCode};
use edgehub::observe::Metrics;
use edgehub::session::{Close, Session, Timing};
use edgehub::store::journal::Journal;
use edgehub::store::{Bounds, Store};

fn one_route() -> Setup {
    Setup::new(&routes(&[("a/out", "b/in")]), &["a", "b", "c"])
}

#[tokio::test]
async fn the_second_connection_wins_and_nothing_is_lost() {
    let setup = one_route();
    let hub = setup.start();
    let mut a = hub.connect("edge-1/a").await;
    let mut first = receiver(&hub, "b").await;
    let topic = output("a", "out", "");
    wire::publish_many(&mut a, &numbered(&topic, 0..10)).await;
    let mut acks = Vec::new();
    for number in 0..10 {
        let got = wire::take(&mut first).await;
        assert_eq!(got.body, number.to_string());
        if number < 4 {
            acks.extend(wire::puback(got.id.unwrap()));
        }
    }
    first.send_bytes(&acks).await.unwrap();
    wire::ping(&mut first).await;
    let mut second = hub.connect("edge-1/b").await;
    closed(&mut first).await;
    wire::publish_many(&mut a, &numbered(&topic, 10..20)).await;
    let all = wire::bodies(&mut second, 16).await;
    assert_eq!(all, numbers(4..20));
    wire::ping(&mut second).await;
    let taken_over = hub.metric("edgehub_connections_closed_total", &["taken_over"]);
    assert_eq!(taken_over, 1.0);
    assert_eq!(hub.metric("edgehub_connected_clients", &[]), 2.0);
}

#[tokio::test]
async fn nothing_is_lost_in_fifty_takeovers_amid_messages() {
    const COUNT: usize = 5000;
    let setup = one_route();
    let hub = setup.start();
    let mut b = receiver(&hub, "b").await;
    let mut a = hub.connect("edge-1/a").await;
    let messages = numbered(&output("a", "out", ""), 0..COUNT);
    let publisher = tokio::spawn(async move {
        wire::publish_many(&mut a, &messages).await;
    });
    // What is new comes in order; what comes again was not known to be acknowledged.
    let mut next = 0;
    for round in 0..50 {
        for _ in 0..40 {
            let got = wire::take(&mut b).await;
            let number: usize = got.body.parse().unwrap();
            assert!(
                number <= next,
                "{number} came before {next} in round {round}"
            );
            assert!(got.dup || number == next, "{got:?} without DUP");
            next = next.max(number + 1);
            if !number.is_multiple_of(3) {
                b.acknowledge(got.id.unwrap()).await.unwrap();
            }
        }
        let mut newer = hub.connect("edge-1/b").await;
        closed(&mut b).await;
        std::mem::swap(&mut b, &mut newer);
    }
    while next < COUNT {
        let got = wire::take(&mut b).await;
        let number: usize = got.body.parse().unwrap();
        assert!(number <= next, "{number} came before {next}");
        next = next.max(number + 1);
        b.acknowledge(got.id.unwrap()).await.unwrap();
    }
    publisher.await.unwrap();
    wire::ping(&mut b).await;
    assert_eq!(hub.metric("edgehub_queue_bytes", &[]), 0.0);
}

#[tokio::test]
async fn of_fifty_at_once_one_stays() {
    let setup = one_route();
    let hub = setup.start();
    let hello = wire::connect(&hub.hello("edge-1/b"));
    let mut clients = Vec::new();
    for _ in 0..50 {
        let mut client = Client::tcp(hub.tcp()).await.unwrap();
        client.send_bytes(&hello).await.unwrap();
        clients.push(client);
    }
    let ended = "edgehub_connections_closed_total";
    hub.until("all but one are closed", |hub| {
        hub.metric(ended, &["taken_over"]) == 49.0
    });
    hub.until("one is in", |hub| {
        hub.metric("edgehub_connected_clients", &[]) == 1.0
    });
    let mut alive = 0;
    for mut client in clients {
        let _ = client.send_bytes(wire::PING).await;
        let mut packets = Vec::new();
        let served = loop {
            match receive(&mut client).await {
                Ok(Packet::PingResp) => break true,
                Ok(packet) => packets.push(packet),
                Err(_) => break false,
            }
        };
        alive += usize::from(served);
        assert!(packets.len() <= 1, "{packets:?}");
        for packet in packets {
            let accepted = matches!(packet, Packet::ConnAck { code, .. }
                if code == ConnectReturnCode::Accepted);
            assert!(accepted, "{packet:?}");
        }
    }
    assert_eq!(alive, 1);
}

/// A hub without sockets, to call in the order that a race would have.
struct Inside {
    hub: edgehub::hub::Hub,
}

const NOW: Now = Now {
    ms: 0,
    unix: 0,
    wall_ms: 0,
};

impl Inside {
    fn new() -> Self {
        let settings = Settings {
            device_id: "d".to_owned(),
            iothub_hostname: "h".to_owned(),
            gateway_hostname: "g".to_owned(),
            limits: Limits::DEFAULT,
            bounds: Bounds {
                max_bytes: 1 << 20,
                endpoint_max_bytes: 1 << 20,
                endpoint_max_messages: 100,
                drop_oldest: false,
            },
            log: None,
        };
        let metrics = Metrics::new("h", "d", "1");
        let registry = Registry::default();
        let durable = Durable {
            store: Arc::new(Store::memory(settings.bounds, (0, 0))),
            journal: Journal::memory(),
            sessions: BTreeMap::new(),
            lost_messages: 0,
            purged_messages: 0,
        };
        let hub = edgehub::hub::Hub::new(settings, registry, durable, metrics);
        Self { hub }
    }

    fn attach(&self, mailbox: &Arc<Mailbox>) -> Option<(Box<Attachment>, Session<Token>)> {
        let connect = Connect {
            clean_session: true,
            keep_alive_seconds: 0,
            client_id: "same",
            will: None,
            username: None,
            password: None,
        };
        let peer = Peer {
            address: [127, 0, 0, 1].into(),
            certificate: None,
            anonymous: true,
        };
        let timing = Timing {
            connect_ms: 1,
            publish_stall_ms: 1,
            ack_stall_ms: 1,
            window: 1,
        };
        let mut session = Session::new(timing, 0);
        let came = (&connect, Properties::EMPTY);
        let verdict = self.hub.login(came, &session, &peer, NOW).unwrap();
        let Outcome::In(login) = verdict else {
            panic!("{verdict:?}");
        };
        match self.hub.attach(&login, mailbox, &mut session, NOW) {
            Attached::In(client) => Some((client, session)),
            Attached::Wait | Attached::Full(_) => None,
        }
    }
}

#[test]
fn the_newest_connection_wins_also_over_one_that_waits() {
    let inside = Inside::new();
    let boxes: Vec<Arc<Mailbox>> = (0..3).map(|_| Arc::default()).collect();
    let mail = |at: usize| boxes[at].take(Waker::noop());
    let (client, session) = inside.attach(&boxes[0]).unwrap();
    assert!(inside.attach(&boxes[1]).is_none(), "waits for the first");
    assert_eq!(mail(0) & TAKEN_OVER, TAKEN_OVER);
    inside.hub.detach(*client, session, &Close::TakenOver, NOW);
    assert_eq!(mail(1) & ATTACH, ATTACH);
    // Before the second one comes to it, a third one is there.
    let third = inside.attach(&boxes[2]);
    assert_eq!(mail(1) & TAKEN_OVER, TAKEN_OVER, "the second one has to go");
    if third.is_none() {
        assert_eq!(mail(2) & ATTACH, ATTACH, "the third one gets the place");
    }
}

fn will_topic() -> String {
    output("a", "out", "")
}

/// Connected as module a with a will.
async fn with_will(hub: &Hub, will: &str) -> Client {
    let packet = wire::connect_with(
        &hub.hello("edge-1/a"),
        Some((&will_topic(), will.as_bytes())),
    );
    let mut client = Client::tcp(hub.tcp()).await.unwrap();
    client.send_bytes(&packet).await.unwrap();
    let connack = receive(&mut client).await.unwrap();
    assert!(matches!(connack, Packet::ConnAck { code, .. }
        if code == ConnectReturnCode::Accepted));
    client
}

async fn assert_will(b: &mut Client, body: &str) {
    let (topic, payload, _) = message_with_topic(b).await;
    assert_eq!(String::from_utf8(payload).unwrap(), body);
    assert!(topic.contains("/inputs/in/MessageType=Will&"), "{topic}");
    assert!(topic.ends_with("&%24.cdid=edge-1&%24.cmid=a"), "{topic}");
}

#[tokio::test]
async fn a_will_is_telemetry_after_an_end_without_disconnect() {
    let setup = one_route();
    let hub = setup.start();
    let mut b = receiver(&hub, "b").await;
    drop(with_will(&hub, "lost").await);
    assert_will(&mut b, "lost").await;
    // `e0 01 00` is no DISCONNECT of MQTT 3.1.1, whatever it means elsewhere.
    for bytes in [&[0xe0, 1, 0][..], &[0x20, 2, 0, 0], &[0xff]] {
        let mut client = with_will(&hub, "malformed").await;
        client.send_bytes(bytes).await.unwrap();
        closed(&mut client).await;
        assert_will(&mut b, "malformed").await;
    }
}

#[tokio::test]
async fn disconnect_voids_the_will() {
    let setup = one_route();
    let hub = setup.start();
    let mut b = receiver(&hub, "b").await;
    let mut client = with_will(&hub, "void").await;
    client.send_bytes(wire::DISCONNECT).await.unwrap();
    closed(&mut client).await;
    // Whatever would have been published is on its way before this.
    let mut client = with_will(&hub, "void").await;
    publish(&mut client, &will_topic(), b"marker").await;
    let (_, payload, _) = message_with_topic(&mut b).await;
    assert_eq!(payload, b"marker");
}

#[tokio::test]
async fn a_takeover_publishes_the_will_of_the_connection_that_goes() {
    let setup = one_route();
    let hub = setup.start();
    let mut b = receiver(&hub, "b").await;
    let mut older = with_will(&hub, "older").await;
    let mut newer = with_will(&hub, "newer").await;
    closed(&mut older).await;
    assert_will(&mut b, "older").await;
    publish(&mut newer, &will_topic(), b"marker").await;
    let (_, payload, _) = message_with_topic(&mut b).await;
    assert_eq!(payload, b"marker");
    drop(newer);
    assert_will(&mut b, "newer").await;
}

#[tokio::test]
async fn a_will_is_published_as_the_client_itself_only() {
    let setup = one_route();
    let hub = setup.start();
    let mut b = receiver(&hub, "b").await;
    let packet = wire::connect_with(
        &hub.hello("edge-1/c"),
        Some((&will_topic(), b"as somebody else")),
    );
    let mut c = Client::tcp(hub.tcp()).await.unwrap();
    c.send_bytes(&packet).await.unwrap();
    let _ = receive(&mut c).await;
    drop(c);
    let dropped = "edgehub_messages_dropped_total";
    hub.until("the will is refused and counted", |hub| {
        hub.metric(dropped, &["reason=\"other_identity\"", "edge-1/c"]) == 1.0
    });
    let mut a = hub.connect("edge-1/a").await;
    publish(&mut a, &will_topic(), b"marker").await;
    let (_, payload, _) = message_with_topic(&mut b).await;
    assert_eq!(payload, b"marker");
}
