//! What bounds a queue, over restarts: time to live, quotas of endpoints, the size of the store.
#![allow(missing_docs, clippy::unwrap_used, clippy::indexing_slicing)]

mod common;

use std::ops::Range;
use std::time::Duration;

use common::scene::{left_behind, on_disk, queue, receiver, reload, route, routes};
use common::wire::{self, numbered, numbers};
use common::{End, Hub, Setup, message, output, publish};
use edgehub::client::{Client, Packet};

const MODULES: [&str; 5] = ["a", "b", "c", "d", "e"];
/// How long a packet is waited for before the metrics are looked at.
const GLANCE: Duration = Duration::from_millis(50);
const DROPPED: &str = "edgehub_messages_dropped_total";

/// A manifest's routes from pairs, each with more fields: `("a/out", "b/in", "\"priority\":1")`.
fn routes_with(all: &[(&str, &str, &str)]) -> String {
    let one = |(number, (from, to, more)): (usize, &(&str, &str, &str))| {
        let text = route(from, to);
        format!("\"r{number}\":{{\"route\":\"{text}\"{more}}}")
    };
    let all: Vec<_> = all.iter().enumerate().map(one).collect();
    format!("{{{}}}", all.join(","))
}

/// Publishes numbers as they are, in one write; the packet ids are one higher.
async fn send(client: &mut Client, out: &str, numbers: Range<u16>, dup: bool) {
    let topic = output("a", out, "");
    let bytes: Vec<u8> = numbers
        .flat_map(|n| wire::publish_dup(&topic, n + 1, n.to_string().as_bytes(), dup))
        .collect();
    client.send_bytes(&bytes).await.unwrap();
}

fn dropped(hub: &Hub, reason: &str) -> f64 {
    hub.metric(DROPPED, &[&format!("reason=\"{reason}\"")])
}

/// Routes to b with these times to live or that of the manifest, and some to c.
fn timed(short: u32, long: u32) -> String {
    let ttl = |seconds: u32| format!(",\"timeToLiveSecs\":{seconds}");
    routes_with(&[
        ("a/short", "b/in", &ttl(short)),
        ("a/manifest", "b/in", ""),
        ("a/long", "b/in", &ttl(long)),
        ("a/brief", "c/in", &ttl(1)),
        ("a/fixed", "c/in", &ttl(7200)),
    ])
}

async fn expiry(end: End) {
    let setup = Setup::new("{}", &MODULES);
    setup.write_manifest(&timed(1, 7200), &MODULES, 1);
    let hub = setup.start();
    left_behind(&hub, "b").await;
    left_behind(&hub, "c").await;
    let mut a = hub.connect("edge-1/a").await;
    // One that lives on comes first: those that share its lane are given up when they are met.
    for round in 0..3 {
        for (out, count) in [("long", 2), ("short", 1), ("manifest", 1)] {
            let numbers = round * count..(round + 1) * count;
            wire::publish_many(&mut a, &numbered(&output("a", out, ""), numbers)).await;
        }
    }
    // What is queued keeps its time; what comes later gets the new one.
    reload(&setup, &hub, &timed(7200, 1), &MODULES, 7200);
    for out in ["short", "long", "manifest"] {
        publish(&mut a, &output("a", out, ""), out.as_bytes()).await;
    }
    hub.end(end);
    let hub = setup.start();
    let mut a = hub.connect("edge-1/a").await;
    // Nobody comes for c's: they are given up by themselves, and the older ones of b are over too.
    wire::publish_many(&mut a, &numbered(&output("a", "brief", ""), 0..5)).await;
    hub.until("c's messages expire", |hub| queue(hub, "c/in") == (0, 0));
    hub.until("they are counted", |hub| dropped(hub, "ttl_expiry") == 5.0);
    let mut b = hub.connect("edge-1/b").await;
    let mut expected = numbers(0..6);
    expected.extend(["short", "manifest"].map(str::to_owned));
    assert_eq!(wire::bodies(&mut b, 8).await, expected);
    for (out, count) in [("short", 3.0), ("manifest", 3.0), ("long", 1.0)] {
        let labels = [
            "reason=\"ttl_expiry\"",
            &format!("from_route_output=\"{out}\""),
        ];
        hub.until("each is counted", |hub| {
            hub.metric(DROPPED, &labels) == count
        });
    }
    hub.until("the queue is empty", |hub| queue(hub, "b/in") == (0, 0));
    assert_eq!(hub.metric(DROPPED, &[]), 12.0);
    // Nor do they come in another life.
    hub.end(end);
    let hub = setup.start();
    let mut a = hub.connect("edge-1/a").await;
    publish(&mut a, &output("a", "fixed", ""), b"new").await;
    let mut c = hub.connect("edge-1/c").await;
    assert_eq!(wire::bodies(&mut c, 1).await, ["new"]);
}

#[tokio::test]
async fn the_time_to_live_is_that_of_the_enqueue_after_a_clean_end() {
    expiry(End::Clean).await;
}

#[tokio::test]
async fn the_time_to_live_is_that_of_the_enqueue_after_a_crash() {
    expiry(End::Killed).await;
}

/// Messages of c to d, while others may be held back: each is acknowledged and delivered.
async fn passes(hub: &Hub, count: u16) {
    let mut d = receiver(hub, "d").await;
    let mut c = hub.connect("edge-1/c").await;
    for number in 0..count {
        let body = format!("{number} of c");
        publish(&mut c, &output("c", "out", ""), body.as_bytes()).await;
        assert_eq!(message(&mut d).await.1, body.as_bytes());
    }
    d.disconnect().await.unwrap();
}

#[tokio::test]
async fn a_full_endpoint_holds_its_sender_back_over_restarts() {
    let pairs = [("a/both", "b/in"), ("a/both", "e/in"), ("c/out", "d/in")];
    let mut setup = Setup::new(&routes(&pairs), &MODULES);
    setup.extra = "[limits]\nendpoint_max_messages = 10\n".to_owned();
    let mut hub = setup.start();
    left_behind(&hub, "b").await;
    let mut e = receiver(&hub, "e").await;
    let mut a = hub.connect("edge-1/a").await;
    send(&mut a, "both", 0..20, false).await;
    wire::acknowledged(&mut a, 1..11).await;
    assert_eq!(wire::bodies(&mut e, 10).await, numbers(0..10));
    for end in [End::Clean, End::Killed, End::Clean] {
        // The others go on, and the hub has no PUBACK for a all the while.
        passes(&hub, 20).await;
        hub.until("what e and d acknowledged is on disk", |hub| {
            on_disk(&hub.dir, "e/in") == 0 && on_disk(&hub.dir, "d/in") == 0
        });
        assert_eq!((queue(&hub, "b/in").0, queue(&hub, "e/in").0), (10, 0));
        hub.end(end);
        assert_eq!(wire::rest(&mut a).await, []);
        hub = setup.start();
        a = hub.connect("edge-1/a").await;
        // As clients do: what was not acknowledged is sent again, and then more.
        send(&mut a, "both", 10..20, true).await;
        send(&mut a, "both", 20..25, false).await;
    }
    let mut b = hub.connect("edge-1/b").await;
    let mut e = hub.connect("edge-1/e").await;
    let (at_b, at_e, ()) = tokio::join!(
        wire::bodies(&mut b, 25),
        wire::bodies(&mut e, 15),
        wire::acknowledged(&mut a, 11..26)
    );
    assert_eq!((at_b, at_e), (numbers(0..25), numbers(10..25)));
    hub.until("the queue is empty", |hub| queue(hub, "b/in") == (0, 0));
    assert_eq!(hub.metric(DROPPED, &[]), 0.0);
}

#[tokio::test]
async fn bytes_of_an_endpoint_hold_back_as_well_after_a_restart() {
    for end in End::ALL {
        let mut setup = Setup::new(&routes(&[("a/out", "b/in")]), &MODULES);
        setup.extra =
            "[limits]\nmax_message_bytes = \"16KiB\"\nendpoint_max_bytes = \"64KiB\"\n".to_owned();
        let mut hub = setup.start();
        left_behind(&hub, "b").await;
        let mut a = hub.connect("edge-1/a").await;
        let topic = output("a", "out", "");
        let large = |number: u16| format!("{number:010000}");
        let packets = |numbers: Range<u16>| -> Vec<u8> {
            let one = |n: u16| wire::publish(&topic, n + 1, large(n).as_bytes());
            numbers.flat_map(one).collect()
        };
        // Six of 10,000 bytes and their properties fit, a seventh does not.
        a.send_bytes(&packets(0..8)).await.unwrap();
        wire::acknowledged(&mut a, 1..7).await;
        let before = queue(&hub, "b/in");
        hub.end(end);
        assert_eq!(wire::rest(&mut a).await, []);
        hub = setup.start();
        assert_eq!(queue(&hub, "b/in"), before);
        a = hub.connect("edge-1/a").await;
        a.send_bytes(&packets(6..8)).await.unwrap();
        hub.end(End::Clean);
        assert_eq!(wire::rest(&mut a).await, []);
        hub = setup.start();
        assert_eq!(queue(&hub, "b/in"), before);
        a = hub.connect("edge-1/a").await;
        a.send_bytes(&packets(6..8)).await.unwrap();
        let mut b = hub.connect("edge-1/b").await;
        let (bodies, ()) = tokio::join!(wire::bodies(&mut b, 8), wire::acknowledged(&mut a, 7..9));
        assert!(bodies == (0..8).map(large).collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn the_newest_survive_where_the_oldest_make_room() {
    for end in End::ALL {
        let urgent = ("a/urgent", "b/in", ",\"priority\":0");
        let bulk = ("a/bulk", "b/in", ",\"priority\":5");
        let mut setup = Setup::new(&routes_with(&[urgent, bulk]), &MODULES);
        setup.extra = "[store]\nwhen_full = \"drop-oldest\"\n\
                       [limits]\nendpoint_max_messages = 10\n"
            .to_owned();
        let hub = setup.start();
        left_behind(&hub, "b").await;
        let mut a = hub.connect("edge-1/a").await;
        wire::publish_many(&mut a, &numbered(&output("a", "urgent", ""), 0..4)).await;
        wire::publish_many(&mut a, &numbered(&output("a", "bulk", ""), 0..25)).await;
        assert_eq!(dropped(&hub, "dropped_oldest"), 19.0);
        if end == End::Killed {
            // Until that is noted, a crash brings back what was given up.
            hub.until("the losses are on disk", |hub| {
                on_disk(&hub.dir, "b/in") == 10
            });
        }
        hub.end(end);
        let hub = setup.start();
        assert_eq!(queue(&hub, "b/in").0, 10);
        assert_eq!(dropped(&hub, "dropped_oldest"), 0.0);
        let mut a = hub.connect("edge-1/a").await;
        wire::publish_many(&mut a, &numbered(&output("a", "bulk", ""), 25..29)).await;
        assert_eq!(dropped(&hub, "dropped_oldest"), 4.0);
        let mut b = hub.connect("edge-1/b").await;
        let expected = [numbers(0..4), numbers(23..29)].concat();
        assert_eq!(wire::bodies(&mut b, 10).await, expected);
        hub.until("the queue is empty", |hub| queue(hub, "b/in") == (0, 0));
        assert_eq!(hub.metric(DROPPED, &[]), 4.0);
    }
}

/// A store of a few segments, for messages of 60,000 bytes.
fn small_store(when_full: &str) -> Setup {
    let mut setup = Setup::new(&routes(&[("a/out", "b/in")]), &MODULES);
    setup.extra = format!(
        "[store]\nwhen_full = \"{when_full}\"\nmax_bytes = \"4MiB\"\n\
         [limits]\nmax_message_bytes = \"96KiB\"\n"
    );
    setup
}

async fn send_large(client: &mut Client, numbers: Range<usize>) {
    for number in numbers {
        let body = large(number);
        let bytes = wire::publish(&output("a", "out", ""), number as u16 + 1, body.as_bytes());
        client.send_bytes(&bytes).await.unwrap();
    }
}

fn large(number: usize) -> String {
    format!("{number:060000}")
}

/// Numbers of large messages, in a readable size.
fn numbers_of(bodies: &[String]) -> Vec<usize> {
    bodies.iter().map(|body| body.parse().unwrap()).collect()
}

fn is_full(hub: &Hub) -> bool {
    hub.metric("edgehub_store_state", &[]) == 1.0
}

#[tokio::test]
async fn a_full_store_starts_again_drains_and_takes_more() {
    const MORE: usize = 60;
    for end in End::ALL {
        let setup = small_store("reject");
        let hub = setup.start();
        left_behind(&hub, "b").await;
        let mut a = hub.connect("edge-1/a").await;
        let mut kept = 0;
        send_large(&mut a, 0..1).await;
        loop {
            match tokio::time::timeout(GLANCE, a.receive()).await {
                Ok(packet) => {
                    assert_eq!(packet.unwrap(), Packet::PubAck(wire::id(kept as u16 + 1)));
                    kept += 1;
                    send_large(&mut a, kept..kept + 1).await;
                }
                Err(_) if is_full(&hub) => break,
                Err(_) => {}
            }
        }
        hub.end(end);
        kept += wire::rest(&mut a).await.len();
        println!("{kept} messages fit");
        assert!((10..70).contains(&kept), "{kept} in 4 MiB");
        let hub = setup.start();
        // The first that found no room may have been stored without its sender's knowledge.
        assert!((kept..=kept + 1).contains(&(queue(&hub, "b/in").0 as usize)));
        let mut a = hub.connect("edge-1/a").await;
        let mut b = hub.connect("edge-1/b").await;
        let (last, last_body) = (kept + MORE, large(kept + MORE));
        let send = async {
            for number in kept..=last {
                send_large(&mut a, number..number + 1).await;
                wire::acknowledged(&mut a, std::iter::once(number as u16 + 1)).await;
            }
        };
        let (bodies, ()) = tokio::join!(wire::bodies_to(&mut b, &last_body), send);
        let mut received = numbers_of(&bodies);
        received.dedup();
        assert_eq!(received, (0..=last).collect::<Vec<_>>());
        hub.until("the store is well", |hub| !is_full(hub));
        assert_eq!(hub.metric(DROPPED, &[]), 0.0);
    }
}

#[tokio::test]
async fn a_full_store_gives_up_its_oldest_and_counts_them() {
    const COUNT: usize = 120;
    for end in End::ALL {
        let setup = small_store("drop-oldest");
        let hub = setup.start();
        left_behind(&hub, "b").await;
        let mut a = hub.connect("edge-1/a").await;
        for number in 0..COUNT {
            send_large(&mut a, number..number + 1).await;
            wire::acknowledged(&mut a, std::iter::once(number as u16 + 1)).await;
        }
        let left = |hub: &Hub| queue(hub, "b/in").0 as usize;
        hub.until("there is room, and all losses are counted", |hub| {
            !is_full(hub) && left(hub) + dropped(hub, "dropped_oldest") as usize == COUNT
        });
        let before = left(&hub);
        assert!((10..70).contains(&before), "{before} in 4 MiB");
        hub.end(end);
        let hub = setup.start();
        let waits = left(&hub);
        // A crash may bring back what was given up in the last second.
        let more = if end == End::Killed { COUNT } else { before };
        assert!((before..=more).contains(&waits), "{waits}");
        let mut b = hub.connect("edge-1/b").await;
        let received = numbers_of(&wire::bodies(&mut b, waits).await);
        assert_eq!(received, (COUNT - waits..COUNT).collect::<Vec<_>>());
        assert_eq!(hub.metric(DROPPED, &[]), 0.0);
    }
}
