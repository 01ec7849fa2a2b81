//! Retained messages, against the real binary.
#![allow(missing_docs, clippy::unwrap_used, clippy::indexing_slicing)]

mod common;

use std::time::Instant;

use edgehub::client::Packet;
use edgehub::mqtt::QoS;
use edgehub::mqtt::v5::{Property, ReasonCode};

use common::five::{Five, Got};
use common::{End, Hub, Setup, receive};

const RETAINED: (QoS, bool, bool) = (QoS::AtLeastOnce, true, false);

fn open() -> Setup {
    Setup::open("{}", &["a"])
}

async fn client(hub: &Hub, id: &str) -> Five {
    Five::anonymous(hub, id, true, &[]).await.0
}

async fn retain(sender: &mut Five, topic: &str, payload: &[u8], properties: &[Property<'_>]) {
    sender
        .publish_as(topic, RETAINED, payload, properties)
        .await;
    let got = sender.receive().await;
    assert!(
        matches!(got, Got::PubAck(_, reason) if !reason.is_failure()),
        "{got:?}"
    );
}

/// Topic, payload, RETAIN and properties of the next message, acknowledged.
async fn message(five: &mut Five) -> (String, Vec<u8>, bool, Vec<String>) {
    let got = five.receive().await;
    let Got::Publish {
        topic,
        payload,
        retain,
        properties,
        ..
    } = got.clone()
    else {
        panic!("{got:?}");
    };
    five.acknowledge(&got).await;
    (topic, payload, retain, properties)
}

#[tokio::test]
async fn the_last_message_of_each_topic_is_sent_to_who_comes_later() {
    for end in End::ALL {
        let setup = open();
        let hub = setup.start();
        let mut sender = client(&hub, "sender").await;
        let user = [Property::User("k", "v"), Property::MessageExpiry(10_000)];
        for (topic, payload, properties) in [
            ("a/1", &b"old"[..], &[][..]),
            ("a/1", b"new", &user),
            ("a/2", b"gone", &[]),
            ("a/2", b"", &[]),
            ("b", b"other", &[]),
        ] {
            retain(&mut sender, topic, payload, properties).await;
        }
        hub.end(end);
        let hub = setup.start();
        assert_eq!(hub.status()["retainedMessages"], 2);
        let mut receiver = client(&hub, "receiver").await;
        let number = [Property::SubscriptionId(5.try_into().unwrap())];
        receiver.subscribe_as("a/#", 1, &number).await;
        let (topic, payload, is_retained, properties) = message(&mut receiver).await;
        assert_eq!(
            (&*topic, &*payload, is_retained),
            ("a/1", &b"new"[..], true)
        );
        assert_eq!(properties[0], "User(\"k\", \"v\")");
        assert!(
            properties[1].starts_with("MessageExpiry("),
            "{properties:?}"
        );
        assert_eq!(properties[2], "SubscriptionId(5)");
        // One that is published now is not marked, and only the last comes to the next.
        let mut sender = client(&hub, "sender").await;
        retain(&mut sender, "a/1", b"newer", &[]).await;
        let (_, payload, is_retained, _) = message(&mut receiver).await;
        assert_eq!((&*payload, is_retained), (&b"newer"[..], false));
        let mut old = hub.connect("edge-1/a").await;
        for (filter, expected) in [("+", &b"other"[..]), ("+/1", b"newer")] {
            old.subscribe(filter).await.unwrap();
            let got = receive(&mut old).await.unwrap();
            let Packet::Publish {
                payload, packet_id, ..
            } = got
            else {
                panic!("{got:?}");
            };
            assert_eq!(payload, expected);
            old.acknowledge(packet_id.unwrap()).await.unwrap();
        }
    }
}

#[tokio::test]
async fn what_a_subscription_brings_is_its_choice() {
    let setup = open();
    let hub = setup.start();
    let mut sender = client(&hub, "sender").await;
    retain(&mut sender, "a", b"x", &[]).await;
    let mut receiver = client(&hub, "receiver").await;
    // Bits 4 and 5: 0 always, 1 if the subscription is new, 2 never.
    for (filter, options, comes) in [
        ("a", 0x01, true),
        ("a", 0x01, true),
        ("a", 0x11, false),
        ("+", 0x11, true),
        ("#", 0x21, false),
        ("$share/g/a", 0x01, false),
    ] {
        assert_eq!(
            receiver.subscribe_as(filter, options, &[]).await,
            ReasonCode::GrantedQos1
        );
        if comes {
            let (_, payload, is_retained, _) = message(&mut receiver).await;
            assert_eq!((&*payload, is_retained), (&b"x"[..], true), "{filter}");
        }
    }
    let mut marker = client(&hub, "marker").await;
    marker.publish("end", b"end", &[]).await;
    // Two of its subscriptions match; nothing else came before.
    assert_eq!(message(&mut receiver).await.0, "end");
}

#[tokio::test]
async fn many_come_as_fast_as_they_are_taken() {
    let mut setup = open();
    setup.extra += "[limits]\nmax_retained_messages = 1000\nmax_inflight = 10\n";
    let hub = setup.start();
    let mut sender = client(&hub, "sender").await;
    for n in 0..1000 {
        retain(&mut sender, &format!("many/{n}"), b"x", &[]).await;
    }
    sender.publish_as("one/more", RETAINED, b"x", &[]).await;
    let got = sender.receive().await;
    assert!(
        matches!(got, Got::PubAck(_, ReasonCode::QuotaExceeded)),
        "{got:?}"
    );
    // In place of another one, it fits.
    retain(&mut sender, "many/7", b"y", &[]).await;
    let mut receiver = client(&hub, "receiver").await;
    for qos in [0, 1, 2] {
        receiver.subscribe_as("many/#", qos, &[]).await;
        let mut topics = std::collections::BTreeSet::new();
        for _ in 0..1000 {
            topics.insert(message(&mut receiver).await.0);
        }
        assert_eq!(topics.len(), 1000);
    }
}

#[tokio::test]
async fn a_retained_message_expires() {
    let setup = open();
    let hub = setup.start();
    let mut sender = client(&hub, "sender").await;
    retain(&mut sender, "short", b"x", &[Property::MessageExpiry(1)]).await;
    retain(&mut sender, "long", b"y", &[]).await;
    let began = Instant::now();
    hub.until("its time passes", |_| began.elapsed().as_millis() > 1100);
    let mut receiver = client(&hub, "receiver").await;
    receiver.subscribe("+").await;
    assert_eq!(message(&mut receiver).await.0, "long");
}
