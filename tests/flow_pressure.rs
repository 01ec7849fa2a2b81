//! Back-pressure: a queue that is full holds those back who send to it, and nobody else.
#![allow(missing_docs, clippy::unwrap_used, clippy::indexing_slicing)]

mod common;

use std::time::{Duration, Instant};

use common::scene::{left_behind, queue, receiver, routes};
use common::wire::{self, numbers};
use common::{Hub, Setup, closed, inputs, message, output, publish, receive};
use edgehub::client::{Client, Packet};
use edgehub::mqtt::QoS;

/// How long a publisher is watched to see that nothing more is acknowledged.
const WATCH: Duration = Duration::from_millis(300);
const CLOSED: &str = "edgehub_connections_closed_total";
const DROPPED: &str = "edgehub_messages_dropped_total";

/// Module a sends to b, module c to d, under these limits.
fn two_pairs(limits: &str) -> Setup {
    let pairs = [("a/out", "b/in"), ("c/out", "d/in"), ("a/both", "b/in")];
    let mut all = pairs.to_vec();
    all.push(("a/both", "d/other"));
    let mut setup = Setup::new(&routes(&all), &["a", "b", "c", "d"]);
    setup.extra = format!("[limits]\n{limits}\n");
    setup
}

/// Publishes numbers with ids that are one higher, all in one write.
async fn send(client: &mut Client, out: &str, numbers: std::ops::Range<u16>, padding: usize) {
    let topic = output("a", out, "");
    let bytes: Vec<u8> = numbers
        .flat_map(|number| wire::publish(&topic, number + 1, &body(number, padding)))
        .collect();
    client.send_bytes(&bytes).await.unwrap();
}

fn body(number: u16, padding: usize) -> Vec<u8> {
    format!("{number:0padding$}").into_bytes()
}

async fn assert_silent(client: &mut Client) {
    let more = tokio::time::timeout(WATCH, client.receive()).await;
    assert!(more.is_err(), "{more:?}");
}

#[tokio::test]
async fn a_queue_full_of_messages_stops_its_sender_until_it_drains() {
    let setup = two_pairs("endpoint_max_messages = 50");
    let hub = setup.start();
    left_behind(&hub, "b").await;
    let mut a = hub.connect("edge-1/a").await;
    send(&mut a, "out", 0..300, 0).await;
    wire::acknowledged(&mut a, 1..51).await;
    assert_silent(&mut a).await;
    assert_eq!(queue(&hub, "b/in").0, 50);
    assert_eq!(
        hub.metric("edgehub_queue_length", &["endpoint=\"b/in\""]),
        50.0
    );
    let mut b = hub.connect("edge-1/b").await;
    let (bodies, ()) = tokio::join!(
        wire::bodies(&mut b, 300),
        wire::acknowledged(&mut a, 51..301)
    );
    assert_eq!(bodies, numbers(0..300));
    wire::ping(&mut b).await;
    assert_eq!(queue(&hub, "b/in"), (0, 0));
    assert_eq!(hub.metric(DROPPED, &[]), 0.0);
}

#[tokio::test]
async fn a_receiver_that_reads_nothing_fills_its_queue_and_no_more() {
    const COUNT: u16 = 2000;
    const LIMIT: u64 = 256 * 1024;
    let setup = two_pairs(
        "max_message_bytes = \"64KiB\"\nendpoint_max_bytes = \"256KiB\"\nmax_inflight = 40",
    );
    let hub = setup.start();
    let mut b = receiver(&hub, "b").await;
    let mut a = hub.connect("edge-1/a").await;
    let publisher = tokio::spawn(async move {
        for batch in 0..COUNT / 100 {
            let numbers = batch * 100..(batch + 1) * 100;
            send(&mut a, "out", numbers.clone(), 1000).await;
            wire::acknowledged(&mut a, numbers.start + 1..numbers.end + 1).await;
        }
    });
    // Less than one more message of 1,000 bytes and its properties is missing to the limit.
    let full = |hub: &Hub| {
        let used = hub.metric("edgehub_queue_bytes", &[]) as u64;
        assert!(used <= LIMIT, "{used}");
        used > LIMIT - 1300
    };
    let hub = tokio::task::spawn_blocking(move || {
        hub.until("the queue is full", full);
        // Watched a while longer, it stays within its limit.
        let watched = Instant::now();
        while watched.elapsed() < WATCH {
            assert!(full(&hub));
        }
        hub
    })
    .await
    .unwrap();
    assert!(!publisher.is_finished());
    let bodies = wire::bodies(&mut b, usize::from(COUNT)).await;
    let expected: Vec<_> = (0..COUNT).map(|number| body(number, 1000)).collect();
    let got: Vec<_> = bodies.into_iter().map(String::into_bytes).collect();
    assert!(got == expected);
    publisher.await.unwrap();
    wire::ping(&mut b).await;
    assert_eq!(queue(&hub, "b/in"), (0, 0));
}

#[tokio::test]
async fn another_pair_goes_on_while_one_is_held_back() {
    let setup = two_pairs("endpoint_max_messages = 10");
    let hub = setup.start();
    left_behind(&hub, "b").await;
    let mut d = receiver(&hub, "d").await;
    let (mut a, mut c) = (hub.connect("edge-1/a").await, hub.connect("edge-1/c").await);
    send(&mut a, "out", 0..100, 0).await;
    wire::acknowledged(&mut a, 1..11).await;
    for number in 0..500_u16 {
        let started = Instant::now();
        publish(&mut c, &output("c", "out", ""), &body(number, 0)).await;
        assert_eq!(message(&mut d).await.1, body(number, 0));
        assert!(started.elapsed() < Duration::from_secs(1), "{number}");
    }
    assert_silent(&mut a).await;
    assert_eq!(queue(&hub, "b/in").0, 10);
}

#[tokio::test]
async fn a_message_is_taken_by_all_its_endpoints_or_by_none() {
    let setup = two_pairs("endpoint_max_messages = 10");
    let hub = setup.start();
    left_behind(&hub, "b").await;
    let mut d = receiver(&hub, "d").await;
    let mut a = hub.connect("edge-1/a").await;
    send(&mut a, "both", 0..15, 0).await;
    wire::acknowledged(&mut a, 1..11).await;
    assert_eq!(wire::bodies(&mut d, 10).await, numbers(0..10));
    assert_silent(&mut d).await;
    let mut b = hub.connect("edge-1/b").await;
    let (at_b, at_d, ()) = tokio::join!(
        wire::bodies(&mut b, 15),
        wire::bodies(&mut d, 5),
        wire::acknowledged(&mut a, 11..16)
    );
    assert_eq!((at_b, at_d), (numbers(0..15), numbers(10..15)));
}

#[tokio::test]
async fn a_stalled_publisher_is_closed_and_its_resend_is_stored_once() {
    let setup = two_pairs("endpoint_max_messages = 5\npublish_stall_seconds = 1");
    let hub = setup.start();
    left_behind(&hub, "b").await;
    let mut d = receiver(&hub, "d").await;
    let (mut a, mut c) = (hub.connect("edge-1/a").await, hub.connect("edge-1/c").await);
    let started = Instant::now();
    send(&mut a, "out", 0..8, 0).await;
    wire::acknowledged(&mut a, 1..6).await;
    let stalled = async {
        closed(&mut a).await;
        started.elapsed()
    };
    let (took, ()) = tokio::join!(stalled, async {
        for number in 0..100 {
            publish(&mut c, &output("c", "out", ""), &body(number, 0)).await;
            assert_eq!(message(&mut d).await.1, body(number, 0));
        }
    });
    assert!(took >= Duration::from_secs(1), "{took:?}");
    assert!(took < Duration::from_secs(5), "{took:?}");
    assert_eq!(hub.metric(CLOSED, &["publish_stalled"]), 1.0);
    // Sent again as clients do, and again held back.
    let mut a = hub.connect("edge-1/a").await;
    let topic = output("a", "out", "");
    let again: Vec<u8> = (5..8)
        .flat_map(|number| wire::publish_dup(&topic, number + 1, &body(number, 0), true))
        .collect();
    a.send_bytes(&again).await.unwrap();
    let mut b = hub.connect("edge-1/b").await;
    let (bodies, ()) = tokio::join!(wire::bodies(&mut b, 8), wire::acknowledged(&mut a, 6..9));
    assert_eq!(bodies, numbers(0..8));
    wire::ping(&mut b).await;
}

#[tokio::test]
async fn keep_alive_does_not_end_a_publisher_that_is_held_back() {
    let setup = two_pairs("endpoint_max_messages = 5");
    let hub = setup.start();
    left_behind(&hub, "b").await;
    let mut hello = hub.hello("edge-1/a");
    hello.keep_alive_seconds = 1;
    let mut a = Client::tcp(hub.tcp()).await.unwrap();
    a.connect(&hello).await.unwrap();
    send(&mut a, "out", 0..6, 0).await;
    a.send_bytes(wire::PING).await.unwrap();
    wire::acknowledged(&mut a, 1..6).await;
    let past_keep_alive = Duration::from_millis(2500);
    let more = tokio::time::timeout(past_keep_alive, a.receive()).await;
    assert!(more.is_err(), "{more:?}");
    let mut b = hub.connect("edge-1/b").await;
    assert_eq!(wire::bodies(&mut b, 6).await, numbers(0..6));
    wire::acknowledged(&mut a, 6..7).await;
    assert_eq!(receive(&mut a).await.unwrap(), Packet::PingResp);
    // Not held back any longer, it has to give signs of life again.
    closed(&mut a).await;
    assert_eq!(hub.metric(CLOSED, &["keep_alive"]), 1.0);
}

#[tokio::test]
async fn qos_0_is_never_held_back_but_counted() {
    let setup = two_pairs("endpoint_max_messages = 5");
    let hub = setup.start();
    left_behind(&hub, "b").await;
    let mut a = hub.connect("edge-1/a").await;
    for number in 0..9 {
        let topic = output("a", "out", "");
        a.publish(&topic, QoS::AtMostOnce, &body(number, 0))
            .await
            .unwrap();
    }
    wire::ping(&mut a).await;
    assert_eq!(hub.metric(DROPPED, &["reason=\"queue_full\""]), 4.0);
    let mut b = hub.connect("edge-1/b").await;
    assert_eq!(wire::bodies(&mut b, 5).await, numbers(0..5));
    wire::ping(&mut b).await;
}

#[tokio::test]
async fn several_senders_share_the_space_that_comes_free() {
    let pairs = [("a/out", "b/in"), ("c/out", "b/in"), ("d/out", "b/in")];
    let mut setup = Setup::new(&routes(&pairs), &["a", "b", "c", "d"]);
    setup.extra = "[limits]\nendpoint_max_messages = 16\n".to_owned();
    let hub = setup.start();
    left_behind(&hub, "b").await;
    let sender = async |module: &str| {
        let mut client = hub.connect(&format!("edge-1/{module}")).await;
        let messages: Vec<_> = (0..300)
            .map(|number| (output(module, "out", ""), format!("{module} {number}")))
            .collect();
        wire::publish_many(&mut client, &messages).await;
    };
    let receive = async {
        let mut b = hub.connect("edge-1/b").await;
        wire::bodies(&mut b, 900).await
    };
    let (_, _, _, bodies) = tokio::join!(sender("a"), sender("c"), sender("d"), receive);
    for module in ["a", "c", "d"] {
        let prefix = format!("{module} ");
        let got: Vec<_> = bodies
            .iter()
            .filter_map(|body| body.strip_prefix(&prefix))
            .collect();
        assert_eq!(got, numbers(0..300), "{module}");
    }
}

#[tokio::test]
async fn a_message_that_was_held_back_counts_once() {
    let setup = two_pairs("endpoint_max_messages = 5");
    let hub = setup.start();
    left_behind(&hub, "b").await;
    let mut a = hub.connect("edge-1/a").await;
    send(&mut a, "out", 0..20, 0).await;
    wire::acknowledged(&mut a, 1..6).await;
    let mut b = hub.connect("edge-1/b").await;
    let (bodies, ()) = tokio::join!(wire::bodies(&mut b, 20), wire::acknowledged(&mut a, 6..21));
    assert_eq!(bodies, numbers(0..20));
    let received = hub.metric("edgehub_messages_received_total", &[]);
    let sizes = hub.metric("edgehub_message_size_bytes_count", &["edge-1/a"]);
    let hits = hub.status()["routes"][0]["hits"].as_u64();
    assert_eq!((received, sizes, hits), (20.0, 20.0, Some(20)));
}

#[tokio::test]
async fn a_client_that_acknowledges_nothing_is_closed_and_gets_all_again() {
    let setup = two_pairs("ack_stall_seconds = 1");
    let hub = setup.start();
    // With and without another deadline to wake the connection.
    for keep_alive_seconds in [60, 0] {
        let mut hello = hub.hello("edge-1/b");
        hello.keep_alive_seconds = keep_alive_seconds;
        let mut b = Client::tcp(hub.tcp()).await.unwrap();
        b.connect(&hello).await.unwrap();
        b.subscribe(&inputs("b")).await.unwrap();
        let mut a = hub.connect("edge-1/a").await;
        send(&mut a, "out", 0..3, 0).await;
        wire::acknowledged(&mut a, 1..4).await;
        let started = Instant::now();
        closed(&mut b).await;
        let took = started.elapsed();
        let mut b = hub.connect("edge-1/b").await;
        for number in 0..3 {
            let got = wire::take(&mut b).await;
            assert_eq!((got.body, got.dup), (number.to_string(), true));
            b.acknowledge(got.id.unwrap()).await.unwrap();
        }
        wire::ping(&mut b).await;
        assert!(
            took < Duration::from_secs(5),
            "closed after {took:?} with keep-alive {keep_alive_seconds}"
        );
    }
    assert_eq!(hub.metric(CLOSED, &["ack_stalled"]), 2.0);
}
