//! Clients that are in and behave oddly. With its neighbours this covers the faults seen in other
//! hubs, as far as they concern QoS 0 and 1 of MQTT 3.1.1.
//!
//! Here: topics that are not ASCII, UNSUBSCRIBE after a session was resumed, DISCONNECT amid a
//! flood, CONNACK sent by a client, client ids with odd characters, clients that come and go, ever
//! new topics. `protocol`: filters under `$`, UNSUBSCRIBE of unknown and of two filters.
//! `flow_takeover`: `e0 01 00` and the will, the will of a takeover. `flow_sessions`:
//! acknowledgements out of order. `flow`: 500 messages for an absent module, no higher QoS than the
//! subscription's. `flow_pressure`: full and sent again, keep-alive, a slow receiver. `hostile`:
//! silent connections, 100 refused logins. `session::tests`: keep-alive 0.
//!
//! `hostile_table` has them all for plain topics, in both versions, with what concerns WebSocket,
//! retained messages, QoS 2, shared subscriptions and MQTT 5.
#![allow(missing_docs, clippy::unwrap_used, clippy::indexing_slicing)]

mod common;

use std::time::{Duration, Instant};

use common::scene::{receiver, routes};
use common::wire::{self, numbered, numbers, rest};
use common::{Hub, Setup, closed, edgehub, inputs, message_with_topic, output, publish, receive};
use edgehub::client::{Client, ClientError, Packet};
use edgehub::mqtt::{ConnectReturnCode, QoS, SubAckCode};

const CLOSED: &str = "edgehub_connections_closed_total";

fn setup() -> Setup {
    Setup::new(&routes(&[("a/out", "b/in")]), &["a", "b"])
}

#[tokio::test]
async fn a_connack_of_a_client_closes_it() {
    let setup = setup();
    let hub = setup.start();
    let mut b = receiver(&hub, "b").await;
    let mut stranger = Client::tcp(hub.tcp()).await.unwrap();
    let mut a = hub.connect("edge-1/a").await;
    for client in [&mut stranger, &mut a] {
        client.send_bytes(&[0x20, 2, 0, 0]).await.unwrap();
        assert_eq!(rest(client).await, []);
    }
    wire::ping(&mut b).await;
    assert_eq!(hub.metric(CLOSED, &["malformed"]), 2.0);
}

#[tokio::test]
async fn a_sender_that_takes_leave_amid_its_flood_loses_nothing() {
    const COUNT: usize = 3000;
    let setup = setup();
    let hub = setup.start();
    let mut b = receiver(&hub, "b").await;
    let hello = hub.hello("edge-1/a");
    let topic = output("a", "out", "");
    let mut bytes = wire::connect_with(&hello, Some((&topic, b"will")));
    for (number, (topic, body)) in numbered(&topic, 0..COUNT).iter().enumerate() {
        bytes.extend(wire::publish(topic, number as u16 + 1, body.as_bytes()));
    }
    bytes.extend(wire::DISCONNECT);
    // What comes after the leave is not read.
    bytes.extend(wire::publish(&topic, 9, b"too late"));
    let mut a = Client::tcp(hub.tcp()).await.unwrap();
    a.send_bytes(&bytes).await.unwrap();
    assert_eq!(wire::bodies(&mut b, COUNT).await, numbers(0..COUNT));
    closed(&mut a).await;
    let mut a = hub.connect("edge-1/a").await;
    publish(&mut a, &topic, b"marker").await;
    assert_eq!(wire::bodies(&mut b, 1).await, ["marker"]);
}

#[tokio::test]
async fn a_receiver_that_takes_leave_amid_a_flood_gets_the_rest_later() {
    const COUNT: usize = 3000;
    let setup = setup();
    let hub = setup.start();
    let mut b = receiver(&hub, "b").await;
    let mut a = hub.connect("edge-1/a").await;
    let messages = numbered(&output("a", "out", ""), 0..COUNT);
    let flood = tokio::spawn(async move { wire::publish_many(&mut a, &messages).await });
    let mut next = 0;
    for round in 0..10 {
        while next < (round + 1) * 100 {
            next = take_next(&mut b, next).await;
        }
        b.disconnect().await.unwrap();
        b = hub.connect("edge-1/b").await;
    }
    while next < COUNT {
        next = take_next(&mut b, next).await;
    }
    flood.await.unwrap();
    wire::ping(&mut b).await;
    assert_eq!(hub.metric("edgehub_queue_bytes", &[]), 0.0);
}

#[tokio::test]
async fn client_ids_with_odd_characters() {
    let setup = setup();
    setup.write_config();
    let odd = ["a-b:c.d%_*?!(),=@;$'", "%2e%2E", "null", &"x".repeat(128)];
    for module in odd {
        let id = format!("edge-1/{module}");
        let args = ["identity", "add", "--config", "edgehub.toml", &id];
        let added = edgehub(setup.dir.path(), &args);
        assert!(added.status.success(), "{added:?}");
    }
    let hub = setup.start();
    for module in odd {
        let mut client = hub.connect(&format!("edge-1/{module}")).await;
        let granted = client.subscribe(&inputs(module)).await.unwrap();
        assert_eq!(granted, SubAckCode::Granted(QoS::AtLeastOnce), "{module}");
        publish(&mut client, &output(module, "out", ""), b"odd").await;
    }
    let long = "x".repeat(2_000);
    let ids = [
        "",
        "/",
        "edge-1/",
        "/a",
        "edge-1/a/b",
        "edge-1/é",
        "edge-1/\u{1}",
        "../a",
        &long,
    ];
    let codes = [
        ConnectReturnCode::IdentifierRejected,
        ConnectReturnCode::BadUserNameOrPassword,
        ConnectReturnCode::NotAuthorized,
    ];
    let (address, hello) = (hub.tcp(), hub.hello("edge-1/a"));
    let mut attempts = Vec::new();
    for id in ids {
        for username in [hello.username.clone(), None, Some(id.to_owned())] {
            let mut hello = hello.clone();
            id.clone_into(&mut hello.client_id);
            hello.password = username.as_ref().and(hello.password);
            hello.username = username;
            attempts.push(tokio::spawn(async move {
                let mut client = Client::tcp(address).await.unwrap();
                let started = Instant::now();
                let refused = client.connect(&hello).await;
                let took = started.elapsed();
                let id: String = hello.client_id.chars().take(20).collect();
                assert!(
                    matches!(&refused, Err(ClientError::Refused(code)) if codes.contains(code)),
                    "{id}: {refused:?}"
                );
                // Answers to failed logins are slowed, a few in a row by less than a second.
                assert!(took < Duration::from_secs(5), "{id}: after {took:?}");
            }));
        }
    }
    for attempt in attempts {
        attempt.await.unwrap();
    }
    let mut a = hub.connect("edge-1/a").await;
    wire::ping(&mut a).await;
}

/// The longest CONNECT, which takes more than one read, is refused as soon as any other.
#[tokio::test]
async fn a_long_connect_is_refused_in_time() {
    let setup = setup();
    let hub = setup.start();
    let mut hello = hub.hello("edge-1/a");
    hello.client_id = "x".repeat(30_000);
    hello.username = Some("y".repeat(30_000));
    for attempt in 0..3 {
        let mut client = Client::tcp(hub.tcp()).await.unwrap();
        let started = Instant::now();
        let refused = client.connect(&hello).await;
        assert!(
            matches!(refused, Err(ClientError::Refused(_))),
            "{refused:?}"
        );
        // From the second one on the answer is slowed, by less than half a second.
        let took = started.elapsed();
        assert!(took < Duration::from_secs(5), "{attempt}: after {took:?}");
    }
}

#[tokio::test]
async fn topics_that_are_not_ascii() {
    let all =
        r#"{"r":"FROM /messages/modules/a/* INTO BrokeredEndpoint(\"/modules/b/inputs/ñ\")"}"#;
    let setup = Setup::new(all, &["a", "b"]);
    let hub = setup.start();
    let mut b = receiver(&hub, "b").await;
    let mut a = hub.connect("edge-1/a").await;
    for (bag, sent) in [
        ("größe=5€", "gr%C3%B6%C3%9Fe=5%E2%82%AC&"),
        ("e=😀", "e=%F0%9F%98%80&"),
        ("%24.mid=ж", "%24.mid=%D0%B6&"),
    ] {
        publish(&mut a, &output("a", "выход", bag), b"m").await;
        let (topic, _, _) = message_with_topic(&mut b).await;
        let prefix = "devices/edge-1/modules/b/inputs/ñ/";
        let expected = format!("{prefix}{sent}%24.cdid=edge-1&%24.cmid=a");
        assert_eq!(topic, expected);
    }
    let received = hub.metric("edgehub_messages_received_total", &["выход"]);
    assert_eq!(received, 3.0);
    // Another module by any name is another module.
    let foreign = "devices/edge-1/modules/ä/messages/events/";
    a.send_bytes(&wire::publish(foreign, 1, b"")).await.unwrap();
    assert_eq!(rest(&mut a).await, []);
}

#[tokio::test]
async fn unsubscribe_after_a_session_was_resumed() {
    let setup = setup();
    let hub = setup.start();
    let b = receiver(&hub, "b").await;
    let mut a = hub.connect("edge-1/a").await;
    let topic = output("a", "out", "");
    drop(b);
    let mut b = hub.connect("edge-1/b").await;
    let unsubscribe = wire::unsubscribe(3, &[&inputs("b"), "unknown"]);
    b.send_bytes(&unsubscribe).await.unwrap();
    assert_eq!(
        receive(&mut b).await.unwrap(),
        Packet::UnsubAck(wire::id(3))
    );
    wire::publish_many(&mut a, &numbered(&topic, 0..5)).await;
    wire::ping(&mut b).await;
    drop(b);
    // It is gone for the next connection, too.
    let mut b = hub.connect("edge-1/b").await;
    wire::ping(&mut b).await;
    let early = wire::subscribe_amid(&mut b, &inputs("b")).await;
    let mut got: Vec<_> = early.iter().map(|got| got.body.clone()).collect();
    got.extend(wire::bodies(&mut b, 5 - early.len()).await);
    assert_eq!(got, numbers(0..5));
}

/// What was in flight when its subscription went waits for the next one, before newer messages.
#[tokio::test]
async fn unsubscribe_keeps_what_was_in_flight() {
    let setup = setup();
    let hub = setup.start();
    let mut b = receiver(&hub, "b").await;
    let mut a = hub.connect("edge-1/a").await;
    let topic = output("a", "out", "");
    wire::publish_many(&mut a, &numbered(&topic, 0..4)).await;
    for number in 0..4 {
        assert_eq!(wire::take(&mut b).await.body, number.to_string());
    }
    let unsubscribe = wire::unsubscribe(3, &[&inputs("b")]);
    b.send_bytes(&unsubscribe).await.unwrap();
    assert_eq!(
        receive(&mut b).await.unwrap(),
        Packet::UnsubAck(wire::id(3))
    );
    wire::publish_many(&mut a, &numbered(&topic, 4..6)).await;
    drop(b);
    let mut b = hub.connect("edge-1/b").await;
    wire::ping(&mut b).await;
    let early = wire::subscribe_amid(&mut b, &inputs("b")).await;
    let mut got: Vec<_> = early.iter().map(|got| got.body.clone()).collect();
    for got in &early {
        b.acknowledge(got.id.unwrap()).await.unwrap();
    }
    got.extend(wire::bodies(&mut b, 6 - early.len()).await);
    assert_eq!(got, numbers(0..6));
}

fn memory_kib(hub: &Hub) -> u64 {
    let status = format!("/proc/{}/status", hub.child.id());
    let status = std::fs::read_to_string(status).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let kib = line.unwrap().split_whitespace().nth(1);
    kib.unwrap().parse().unwrap()
}

#[tokio::test]
async fn clients_that_come_and_go_leave_no_memory_behind() {
    let setup = setup();
    let hub = setup.start();
    let hello = hub.hello("edge-1/b");
    let come_and_go = async |count: usize| {
        for number in 0..count {
            let mut client = Client::tcp(hub.tcp()).await.unwrap();
            client.connect(&hello).await.unwrap();
            if number % 2 == 0 {
                client.disconnect().await.unwrap();
            }
        }
    };
    come_and_go(300).await;
    let before = memory_kib(&hub);
    come_and_go(4000).await;
    hub.until("all have gone", |hub| {
        hub.metric("edgehub_connected_clients", &[]) == 0.0
    });
    let after = memory_kib(&hub);
    assert!(after < before + 4 * 1024, "{before} KiB, then {after} KiB");
}

#[tokio::test]
async fn ever_new_topics_cost_no_memory_and_no_time() {
    let setup = setup();
    let hub = setup.start();
    let mut a = hub.connect("edge-1/a").await;
    let topics = |from: usize| -> Vec<(String, String)> {
        (from..from + 10_000)
            .map(|number| {
                let bag = format!("%24.mid={number}&key{number}=value");
                (output("a", &format!("out{number}"), &bag), String::new())
            })
            .collect()
    };
    let mut first = Duration::ZERO;
    let mut before = 0;
    for round in 0..4 {
        let topics = topics(round * 10_000);
        let started = Instant::now();
        wire::publish_many(&mut a, &topics).await;
        let took = started.elapsed();
        if round == 0 {
            (first, before) = (took, memory_kib(&hub));
        }
        let most = 4 * first + Duration::from_secs(1);
        assert!(took < most, "{took:?} in round {round}, {first:?} before");
    }
    let after = memory_kib(&hub);
    assert!(after < before + 4 * 1024, "{before} KiB, then {after} KiB");
}

/// Takes the message that is due, or one that comes again; returns which one is due then.
async fn take_next(client: &mut Client, next: usize) -> usize {
    let got = wire::take(client).await;
    let number: usize = got.body.parse().unwrap();
    assert!(
        number == next || got.dup && number < next,
        "{got:?}, not {next}"
    );
    client.acknowledge(got.id.unwrap()).await.unwrap();
    next.max(number + 1)
}
