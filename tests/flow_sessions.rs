//! Sessions: what comes again after a connection has gone, takeover, wills, restarts.
#![allow(missing_docs, clippy::unwrap_used, clippy::indexing_slicing)]

mod common;

use common::scene::{clean, login, receiver, routes, vanish};
use common::wire::{self, Got, numbered, numbers, take_all};
use common::{Setup, closed, inputs, output, publish, receive};
use edgehub::client::{Client, Packet};
use edgehub::mqtt::{PacketId, QoS};
use edgehub::session::CHOSEN_ID_MAX;

fn one_route() -> Setup {
    Setup::new(&routes(&[("a/out", "b/in")]), &["a", "b", "c"])
}

/// Subscribes; the answer comes with or after the first messages.
async fn subscribe_later(b: &mut Client) {
    let packet = wire::subscribe(7, &[(&inputs("b"), QoS::AtLeastOnce)]);
    b.send_bytes(&packet).await.unwrap();
}

fn seen(all: &[Got]) -> Vec<(&str, bool, u16)> {
    all.iter()
        .map(|got| (&*got.body, got.dup, got.id.map_or(0, PacketId::get)))
        .collect()
}

#[tokio::test]
async fn unacknowledged_messages_come_again_before_newer_ones() {
    let setup = one_route();
    let hub = setup.start();
    let mut a = hub.connect("edge-1/a").await;
    let mut b = receiver(&hub, "b").await;
    let topic = output("a", "out", "");
    wire::publish_many(&mut a, &numbered(&topic, 0..5)).await;
    let first = take_all(&mut b, 5).await;
    assert_eq!(seen(&first)[0], ("0", false, 1));
    drop(b);
    wire::publish_many(&mut a, &numbered(&topic, 5..8)).await;
    for _ in 0..3 {
        let (mut b, present) = login(&hub, &hub.hello("edge-1/b")).await;
        assert!(present);
        let all = take_all(&mut b, 8).await;
        let bodies: Vec<_> = all.iter().map(|got| got.body.clone()).collect();
        assert_eq!(bodies, numbers(0..8));
        for (got, before) in all.iter().zip(&first) {
            assert!(got.dup, "{got:?}");
            assert_eq!(got.id, before.id);
        }
        let mut ids: Vec<_> = all.iter().map(|got| got.id).collect();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), 8, "each message has an id of its own");
    }
    let mut b = hub.connect("edge-1/b").await;
    assert_eq!(wire::bodies(&mut b, 8).await, numbers(0..8));
    wire::ping(&mut b).await;
    assert_eq!(hub.metric("edgehub_queue_bytes", &[]), 0.0);
}

#[tokio::test]
async fn acknowledgements_in_any_order_count() {
    let setup = one_route();
    let hub = setup.start();
    let mut a = hub.connect("edge-1/a").await;
    let mut b = receiver(&hub, "b").await;
    let topic = output("a", "out", "");
    wire::publish_many(&mut a, &numbered(&topic, 0..20)).await;
    let all = take_all(&mut b, 20).await;
    let odd = all
        .iter()
        .rev()
        .filter(|got| got.id.unwrap().get() % 2 == 1);
    let mut acks: Vec<u8> = odd.flat_map(|got| wire::puback(got.id.unwrap())).collect();
    // An id that never was in flight, and one that was acknowledged before, mean nothing.
    acks.extend(wire::puback(wire::id(60_000)));
    acks.extend(wire::puback(wire::id(1)));
    b.send_bytes(&acks).await.unwrap();
    wire::ping(&mut b).await;
    drop(b);
    let mut b = hub.connect("edge-1/b").await;
    let again = take_all(&mut b, 10).await;
    let even: Vec<_> = all
        .iter()
        .filter(|got| got.id.unwrap().get() % 2 == 0)
        .collect();
    for (got, before) in again.iter().zip(even) {
        assert_eq!(
            (&got.body, got.id, got.dup),
            (&before.body, before.id, true)
        );
        b.acknowledge(got.id.unwrap()).await.unwrap();
    }
    wire::ping(&mut b).await;
    assert_eq!(hub.metric("edgehub_queue_bytes", &[]), 0.0);
}

#[tokio::test]
async fn a_clean_session_drops_subscriptions_and_keeps_messages() {
    let setup = one_route();
    let hub = setup.start();
    let mut a = hub.connect("edge-1/a").await;
    let mut b = receiver(&hub, "b").await;
    let topic = output("a", "out", "");
    wire::publish_many(&mut a, &numbered(&topic, 0..3)).await;
    take_all(&mut b, 3).await;
    drop(b);
    let (mut b, present) = login(&hub, &clean(&hub, "edge-1/b")).await;
    assert!(!present, "a clean session is never present");
    wire::publish_many(&mut a, &numbered(&topic, 3..5)).await;
    // Nothing is subscribed, so the answer to the ping is the first packet.
    wire::ping(&mut b).await;
    subscribe_later(&mut b).await;
    assert_eq!(wire::bodies(&mut b, 2).await, numbers(0..2));
    vanish(&hub, b, "edge-1/b").await;
    let (mut b, present) = login(&hub, &hub.hello("edge-1/b")).await;
    assert!(!present, "the clean session has ended with its connection");
    wire::ping(&mut b).await;
    subscribe_later(&mut b).await;
    assert_eq!(wire::bodies(&mut b, 3).await, numbers(2..5));
}

#[tokio::test]
async fn session_present_says_what_was_kept() {
    let setup = one_route();
    let hub = setup.start();
    let persistent = hub.hello("edge-1/b");
    for (hello, expected) in [
        (&persistent, false),
        (&persistent, true),
        (&clean(&hub, "edge-1/b"), false),
        (&persistent, false),
        (&persistent, true),
    ] {
        let (client, present) = login(&hub, hello).await;
        assert_eq!(present, expected);
        client.disconnect().await.unwrap();
    }
}

#[tokio::test]
async fn subscriptions_survive_a_crash_of_the_hub() {
    let setup = one_route();
    let hub = setup.start();
    let mut b = receiver(&hub, "b").await;
    let mut c = hub.connect("edge-1/c").await;
    c.subscribe(&inputs("c")).await.unwrap();
    c.send_bytes(&wire::unsubscribe(9, &[&inputs("c")]))
        .await
        .unwrap();
    assert_eq!(
        receive(&mut c).await.unwrap(),
        Packet::UnsubAck(wire::id(9))
    );
    wire::ping(&mut b).await;
    hub.kill();
    for _ in 0..2 {
        let hub = setup.start();
        let (mut b, present) = login(&hub, &hub.hello("edge-1/b")).await;
        assert!(present);
        let mut a = hub.connect("edge-1/a").await;
        publish(&mut a, &output("a", "out", ""), b"after").await;
        assert_eq!(wire::bodies(&mut b, 1).await, ["after"]);
        let status = hub.status();
        let rows = status["clients"].as_array().unwrap();
        let c = rows.iter().find(|row| row["id"] == "edge-1/c").unwrap();
        assert_eq!(c["subscriptions"], serde_json::json!([]));
        hub.kill();
    }
}

#[tokio::test]
async fn packet_ids_go_round() {
    const COUNT: usize = 70_000;
    let setup = one_route();
    let hub = setup.start();
    let mut b = receiver(&hub, "b").await;
    let mut a = hub.connect("edge-1/a").await;
    let messages = numbered(&output("a", "out", ""), 0..COUNT);
    let publisher = tokio::spawn(async move {
        wire::publish_many(&mut a, &messages).await;
    });
    let mut next = 1_u16;
    let mut acks = Vec::new();
    for number in 0..COUNT {
        let got = wire::take(&mut b).await;
        assert_eq!((got.body, got.dup), (number.to_string(), false));
        assert_eq!(got.id, PacketId::new(next), "message {number}");
        // Those above are for messages of QoS 2 of plain topics.
        next = if next == CHOSEN_ID_MAX { 1 } else { next + 1 };
        acks.extend(wire::puback(got.id.unwrap()));
        if number % 40 == 0 || number + 1 == COUNT {
            b.send_bytes(&acks).await.unwrap();
            acks.clear();
        }
    }
    publisher.await.unwrap();
    wire::ping(&mut b).await;
    assert_eq!(hub.metric("edgehub_messages_sent_total", &[]), COUNT as f64);
}

#[tokio::test]
async fn sigterm_closes_clients_and_exits_0_amid_messages() {
    let setup = one_route();
    let hub = setup.start();
    let mut b = receiver(&hub, "b").await;
    let mut a = hub.connect("edge-1/a").await;
    let messages = numbered(&output("a", "out", ""), 0..500);
    wire::publish_many(&mut a, &messages).await;
    wire::take(&mut b).await;
    assert_eq!(hub.terminate(), Some(0));
    closed(&mut a).await;
    closed(&mut b).await;
}
