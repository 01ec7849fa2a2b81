//! Messages and packets over the limits: refused once, acknowledged when they come again, skipped.
#![allow(missing_docs, clippy::unwrap_used, clippy::indexing_slicing)]

mod common;

use common::scene::{receiver, routes};
use common::wire::{self, hex, numbered, numbers, rest};
use common::{Setup, closed, output, receive};
use edgehub::client::{Client, Packet};

const DROPPED: &str = "edgehub_messages_dropped_total";

fn small() -> Setup {
    let mut setup = Setup::new(&routes(&[("a/out", "b/in")]), &["a", "b"]);
    setup.extra = "[limits]\nmax_message_bytes = \"4KiB\"\n".to_owned();
    setup
}

/// MQTT 3.1.1 can refuse a message by closing only; one that comes again is acknowledged.
#[tokio::test]
async fn oversize_messages_are_refused_and_acknowledged_when_they_come_again() {
    let setup = small();
    let hub = setup.start();
    let mut b = receiver(&hub, "b").await;
    let topic = output("a", "out", "");
    // Over the limit of a message, and over that of a packet, which is not even read whole.
    for (round, bytes) in [5_000, 100_000, 5_000_000].into_iter().enumerate() {
        let body = vec![b'x'; bytes];
        let mut a = hub.connect("edge-1/a").await;
        let _ = a.send_bytes(&wire::publish(&topic, 9, &body)).await;
        assert_eq!(rest(&mut a).await, [], "{bytes} bytes");
        let again = (round as f64) + 1.0;
        let mut a = hub.connect("edge-1/a").await;
        // What follows in the same write is read as if nothing had been.
        let mut packets = wire::publish_dup(&topic, 9, &body, true);
        packets.extend(wire::publish(
            &topic,
            10,
            format!("after {bytes}").as_bytes(),
        ));
        packets.extend(wire::PING);
        a.send_bytes(&packets).await.unwrap();
        wire::acknowledged(&mut a, 9..11).await;
        assert_eq!(receive(&mut a).await.unwrap(), Packet::PingResp);
        assert_eq!(wire::bodies(&mut b, 1).await, [format!("after {bytes}")]);
        assert_eq!(hub.metric(DROPPED, &["refused_again"]), again);
        assert_eq!(hub.metric(DROPPED, &["too_large"]), 2.0 * again);
        wire::publish_many(&mut a, &numbered(&topic, 0..10)).await;
        assert_eq!(wire::bodies(&mut b, 10).await, numbers(0..10));
    }
}

#[tokio::test]
async fn an_oversize_message_is_skipped_wherever_it_is_cut() {
    let setup = small();
    let hub = setup.start();
    let mut a = hub.connect("edge-1/a").await;
    let topic = output("a", "nowhere", "");
    let big = wire::publish(&topic, 9, &vec![0xc0; 80_000]);
    let _ = a.send_bytes(&big).await;
    closed(&mut a).await;
    for cut in [
        1,
        2,
        4,
        5,
        6,
        40,
        topic.len() + 6,
        topic.len() + 8,
        65_000,
        79_999,
    ] {
        let mut a = hub.connect("edge-1/a").await;
        let mut bytes = big.clone();
        bytes.extend(wire::publish(&topic, 10, b"small"));
        // Half a packet is read by itself when a ping before it is answered after it was sent.
        a.send_bytes(&[wire::PING, &bytes[..cut]].concat())
            .await
            .unwrap();
        assert_eq!(receive(&mut a).await.unwrap(), Packet::PingResp);
        a.send_bytes(&bytes[cut..]).await.unwrap();
        wire::acknowledged(&mut a, 9..11).await;
        wire::ping(&mut a).await;
        // It is refused anew, so that the next one is the second again.
        let _ = a.send_bytes(&big).await;
        closed(&mut a).await;
    }
}

#[tokio::test]
async fn oversize_packets_without_a_second_chance_close() {
    let setup = small();
    let hub = setup.start();
    let topic = output("a", "out", "");
    let body = vec![b'x'; 80_000];
    let subscribe = [&hex("82 80 80 10 0001")[..], &[0; 100]].concat();
    for (name, packet) in [
        ("QoS 0", wire::publish(&topic, 0, &body)),
        ("SUBSCRIBE", subscribe),
    ] {
        for _ in 0..2 {
            let mut a = hub.connect("edge-1/a").await;
            let _ = a.send_bytes(&packet).await;
            assert_eq!(rest(&mut a).await, [], "{name}");
        }
    }
}

#[tokio::test]
async fn a_login_over_the_limits_of_a_packet_is_closed_not_read() {
    let setup = small();
    let hub = setup.start();
    let mut client = Client::tcp(hub.tcp()).await.unwrap();
    let head = hex("30 ffffff7f 0001 61");
    client.send_bytes(&head).await.unwrap();
    closed(&mut client).await;
    assert_eq!(hub.metric(DROPPED, &[]), 0.0);
}
