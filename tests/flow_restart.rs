//! What a restart of the hub leaves as it was, after a clean end and after a crash: queues, their
//! order, what is acknowledged, sessions.
#![allow(missing_docs, clippy::unwrap_used, clippy::indexing_slicing)]

mod common;

use std::time::{Duration, Instant};

use common::scene::{
    clean, in_flight, inspect, left_behind, login, on_disk, queue, receiver, reload, route, routes,
    vanish,
};
use common::wire::{self, Got, numbered, numbers, take_all};
use common::{End, Hub, Setup, edgehub, inputs, message, output, publish};
use edgehub::client::Client;
use edgehub::mqtt::PacketId;

const MODULES: [&str; 4] = ["a", "b", "c", "d"];
const DROPPED: &str = "edgehub_messages_dropped_total";

/// Module a sends to an input of b.
fn one_route() -> Setup {
    Setup::new(&routes(&[("a/out", "b/in")]), &MODULES)
}

async fn send(hub: &Hub, out: &str, numbers: std::ops::Range<usize>) {
    let mut a = hub.connect("edge-1/a").await;
    wire::publish_many(&mut a, &numbered(&output("a", out, ""), numbers)).await;
}

fn bodies(all: &[Got]) -> Vec<String> {
    all.iter().map(|got| got.body.clone()).collect()
}

fn ids(all: &[Got]) -> Vec<Option<PacketId>> {
    all.iter().map(|got| got.id).collect()
}

async fn acknowledge(client: &mut Client, all: &[Got], numbers: &[usize]) {
    let acks = numbers.iter().map(|at| wire::puback(all[*at].id.unwrap()));
    let acks = acks.collect::<Vec<_>>().concat();
    client.send_bytes(&acks).await.unwrap();
}

/// Nothing waits for the module: what comes next is what is sent now.
async fn nothing_more(hub: &Hub, b: &mut Client) {
    send(hub, "out", 4711..4712).await;
    assert_eq!(wire::bodies(b, 1).await, ["4711"]);
    hub.until("the queue is empty", |hub| queue(hub, "b/in") == (0, 0));
}

#[tokio::test]
async fn delivery_goes_on_after_what_was_acknowledged() {
    for end in End::ALL {
        let mut setup = one_route();
        setup.extra = "[limits]\nmax_inflight = 10\n".to_owned();
        let hub = setup.start();
        let mut b = receiver(&hub, "b").await;
        send(&hub, "out", 0..30).await;
        let first = take_all(&mut b, 10).await;
        assert_eq!(bodies(&first), numbers(0..10));
        // Some in order, some not; of the others some are in flight, some were never delivered.
        acknowledge(&mut b, &first, &[0, 1, 2, 3, 6, 8]).await;
        if end == End::Killed {
            hub.until("the acknowledgements are on disk", |hub| {
                on_disk(&hub.dir, "b/in") == 24
            });
        } else {
            hub.until("the acknowledgements count", |hub| {
                queue(hub, "b/in").0 == 24
            });
        }
        hub.end(end);
        let hub = setup.start();
        assert_eq!(queue(&hub, "b/in").0, 24);
        let (mut b, present) = login(&hub, &hub.hello("edge-1/b")).await;
        assert!(present);
        let mut expected = ["4", "5", "7", "9"].map(str::to_owned).to_vec();
        expected.extend(numbers(10..30));
        assert_eq!(wire::bodies(&mut b, 24).await, expected);
        nothing_more(&hub, &mut b).await;
    }
}

#[tokio::test]
async fn a_crash_repeats_no_more_than_the_last_second() {
    let setup = one_route();
    let mut hub = setup.start();
    left_behind(&hub, "b").await;
    send(&hub, "out", 0..200).await;
    for round in 0..3 {
        let first = round * 60;
        let mut b = hub.connect("edge-1/b").await;
        // What the last round acknowledged right before its end may come again, in its place.
        let mut again = 0;
        let mut taken = Vec::new();
        while taken.len() < 60 {
            let got = wire::take(&mut b).await;
            let number: usize = got.body.parse().unwrap();
            let place = first + taken.len();
            assert!(number <= place && number + 30 >= first, "{number}");
            if number == place {
                taken.push(got);
            } else {
                assert!(taken.is_empty(), "{number} out of order");
                again += 1;
                b.acknowledge(got.id.unwrap()).await.unwrap();
            }
        }
        println!("round {round}: {again} came again");
        acknowledge(&mut b, &taken, &(0..30).collect::<Vec<_>>()).await;
        let waits = 200 - first as u64 - 30;
        let began = Instant::now();
        hub.until("the acknowledgements are on disk", |hub| {
            on_disk(&hub.dir, "b/in") == waits
        });
        let took = began.elapsed();
        assert!(took < Duration::from_secs(5), "noted after {took:?}");
        acknowledge(&mut b, &taken, &(30..60).collect::<Vec<_>>()).await;
        wire::ping_amid(&mut b).await;
        hub.kill();
        hub = setup.start();
    }
    let mut b = hub.connect("edge-1/b").await;
    let rest = wire::bodies_to(&mut b, "199").await;
    let first: usize = rest[0].parse().unwrap();
    assert!((150..=180).contains(&first), "{first}");
    assert_eq!(rest, numbers(first..200));
    nothing_more(&hub, &mut b).await;
}

#[tokio::test]
async fn unacknowledged_messages_come_again_after_each_restart() {
    let setup = one_route();
    let mut hub = setup.start();
    left_behind(&hub, "b").await;
    let mut newest = 8;
    send(&hub, "out", 0..newest).await;
    for end in [End::Clean, End::Killed, End::Killed, End::Clean] {
        let (mut b, present) = login(&hub, &hub.hello("edge-1/b")).await;
        assert!(present);
        let first = take_all(&mut b, newest).await;
        assert_eq!(bodies(&first), numbers(0..newest));
        vanish(&hub, b, "edge-1/b").await;
        // Still the same hub: under the same ids, marked as sent before.
        let mut b = hub.connect("edge-1/b").await;
        let again = take_all(&mut b, newest).await;
        assert_eq!(bodies(&again), numbers(0..newest));
        assert_eq!(ids(&again), ids(&first));
        assert!(again.iter().all(|got| got.dup), "{again:?}");
        send(&hub, "out", newest..newest + 1).await;
        newest += 1;
        hub.end(end);
        hub = setup.start();
    }
    let mut b = hub.connect("edge-1/b").await;
    let all = take_all(&mut b, newest).await;
    assert_eq!(bodies(&all), numbers(0..newest));
    let mut distinct = ids(&all);
    distinct.sort_unstable();
    distinct.dedup();
    assert_eq!(distinct.len(), newest, "each has an id of its own");
    assert!(distinct[0].is_some());
    acknowledge(&mut b, &all, &(0..newest).collect::<Vec<_>>()).await;
    hub.until("all count", |hub| queue(hub, "b/in") == (0, 0));
    hub.end(End::Clean);
    let hub = setup.start();
    let mut b = hub.connect("edge-1/b").await;
    nothing_more(&hub, &mut b).await;
}

#[tokio::test]
async fn a_kept_session_needs_no_subscribe_after_restarts() {
    let setup = one_route();
    let mut hub = setup.start();
    left_behind(&hub, "b").await;
    for (round, end) in (0..).zip([End::Clean, End::Killed, End::Clean]) {
        send(&hub, "out", round * 20..round * 20 + 20).await;
        hub.end(end);
        hub = setup.start();
        let status = hub.status();
        let rows = status["clients"].as_array().unwrap();
        let b = rows.iter().find(|row| row["id"] == "edge-1/b").unwrap();
        assert_eq!(b["subscriptions"], serde_json::json!([inputs("b")]));
        assert_eq!(
            (&b["persistent"], &b["connected"]),
            (&true.into(), &false.into())
        );
        let (mut b, present) = login(&hub, &hub.hello("edge-1/b")).await;
        assert!(present);
        let expected = numbers(round * 20..round * 20 + 20);
        assert_eq!(wire::bodies(&mut b, 20).await, expected);
        hub.until("the last acknowledgements are on disk", |hub| {
            on_disk(&hub.dir, "b/in") == 0
        });
        b.disconnect().await.unwrap();
    }
}

#[tokio::test]
async fn a_clean_session_ends_and_the_queue_of_its_input_does_not() {
    for end in End::ALL {
        let setup = one_route();
        let hub = setup.start();
        left_behind(&hub, "b").await;
        let (mut b, present) = login(&hub, &clean(&hub, "edge-1/b")).await;
        assert!(!present);
        b.subscribe(&inputs("b")).await.unwrap();
        send(&hub, "out", 0..5).await;
        let taken = take_all(&mut b, 5).await;
        acknowledge(&mut b, &taken, &[0, 1]).await;
        hub.until(
            "the session before it and what is acknowledged are gone",
            |hub| {
                let sessions = &inspect(&hub.dir)["sessions"];
                let is_kept = |row: &serde_json::Value| row["identity"] == "edge-1/b";
                !sessions.as_array().unwrap().iter().any(is_kept) && on_disk(&hub.dir, "b/in") == 3
            },
        );
        hub.end(end);
        let hub = setup.start();
        for hello in [clean(&hub, "edge-1/b"), hub.hello("edge-1/b")] {
            let (mut b, present) = login(&hub, &hello).await;
            assert!(!present, "{hello:?}");
            wire::ping(&mut b).await;
            assert_eq!((queue(&hub, "b/in").0, in_flight(&hub, "b/in")), (3, 0));
            vanish(&hub, b, "edge-1/b").await;
        }
        send(&hub, "out", 5..8).await;
        let (mut b, present) = login(&hub, &hub.hello("edge-1/b")).await;
        assert!(present, "the last session was a persistent one");
        let early = wire::subscribe_amid(&mut b, &inputs("b")).await;
        assert!(early.is_empty(), "{early:?}");
        assert_eq!(wire::bodies(&mut b, 6).await, numbers(2..8));
        nothing_more(&hub, &mut b).await;
    }
}

#[tokio::test]
async fn a_module_that_never_connected_gets_all() {
    for end in End::ALL {
        let setup = one_route();
        let hub = setup.start();
        send(&hub, "out", 0..300).await;
        hub.end(end);
        let hub = setup.start();
        assert_eq!(queue(&hub, "b/in").0, 300);
        send(&hub, "out", 300..400).await;
        let (mut b, present) = login(&hub, &hub.hello("edge-1/b")).await;
        assert!(!present);
        let early = wire::subscribe_amid(&mut b, &inputs("b")).await;
        assert!(early.is_empty(), "{early:?}");
        assert_eq!(wire::bodies(&mut b, 400).await, numbers(0..400));
        nothing_more(&hub, &mut b).await;
    }
}

/// Routes of every priority and one without, from outputs p0 to p10 to the same input.
fn all_priorities() -> String {
    let one = |number: usize| {
        let text = route(&format!("a/p{number}"), "b/in");
        let priority = if number < 10 {
            format!(",\"priority\":{number}")
        } else {
            String::new()
        };
        format!("\"r{number}\":{{\"route\":\"{text}\"{priority}}}")
    };
    let all: Vec<_> = (0..=10).map(one).collect();
    format!("{{{}}}", all.join(","))
}

#[tokio::test]
async fn priorities_drain_in_their_order_after_a_restart() {
    for end in End::ALL {
        let mut setup = Setup::new(&all_priorities(), &MODULES);
        setup.extra = "[limits]\nmax_inflight = 7\n".to_owned();
        let hub = setup.start();
        left_behind(&hub, "b").await;
        let mut a = hub.connect("edge-1/a").await;
        let of = |priority: usize, number: usize| {
            let topic = output("a", &format!("p{priority}"), "");
            (topic, format!("{priority} {number}"))
        };
        let every = (0..4).flat_map(|number| (0..=10).rev().map(move |lane| (lane, number)));
        let messages: Vec<_> = every.map(|(lane, number)| of(lane, number)).collect();
        wire::publish_many(&mut a, &messages).await;
        // Half-way through the second lane.
        let mut b = hub.connect("edge-1/b").await;
        let first = take_all(&mut b, 7).await;
        let expected: Vec<_> = (0..7).map(|n| format!("{} {}", n / 4, n % 4)).collect();
        assert_eq!(bodies(&first), expected);
        acknowledge(&mut b, &first, &[0, 1, 2, 3, 4, 5]).await;
        hub.until("the acknowledgements are on disk", |hub| {
            on_disk(&hub.dir, "b/in") == 44 - 6
        });
        hub.end(end);
        let hub = setup.start();
        let mut a = hub.connect("edge-1/a").await;
        wire::publish_many(&mut a, &[of(10, 4), of(9, 4), of(0, 4)]).await;
        let mut b = hub.connect("edge-1/b").await;
        let mut expected = ["0 4", "1 2", "1 3"].map(str::to_owned).to_vec();
        for lane in 2..=10 {
            let count = if lane < 9 { 4 } else { 5 };
            expected.extend((0..count).map(|number| format!("{lane} {number}")));
        }
        assert_eq!(wire::bodies(&mut b, 41).await, expected);
        hub.until("the queue is empty", |hub| queue(hub, "b/in") == (0, 0));
    }
}

#[tokio::test]
async fn what_a_removed_route_has_queued_waits_for_its_return() {
    for end in End::ALL {
        let pairs = [("a/out", "b/in"), ("a/out", "d/in")];
        let setup = Setup::new(&routes(&pairs), &MODULES);
        let hub = setup.start();
        left_behind(&hub, "b").await;
        left_behind(&hub, "d").await;
        send(&hub, "out", 0..10).await;
        reload(&setup, &hub, "{}", &MODULES, 7200);
        assert_eq!((queue(&hub, "b/in").0, queue(&hub, "d/in").0), (10, 10));
        send(&hub, "out", 10..12).await;
        assert_eq!(hub.metric(DROPPED, &["reason=\"no_route\""]), 2.0);
        hub.end(end);
        let hub = setup.start();
        let mut d = hub.connect("edge-1/d").await;
        wire::ping(&mut d).await;
        assert_eq!((queue(&hub, "d/in").0, in_flight(&hub, "d/in")), (10, 0));
        // It returns while d is there and b is not.
        reload(&setup, &hub, &routes(&pairs), &MODULES, 7200);
        assert_eq!(wire::bodies(&mut d, 10).await, numbers(0..10));
        send(&hub, "out", 12..20).await;
        let mut b = hub.connect("edge-1/b").await;
        let expected = [numbers(0..10), numbers(12..20)].concat();
        assert_eq!(wire::bodies(&mut b, 18).await, expected);
        assert_eq!(wire::bodies(&mut d, 8).await, numbers(12..20));
        nothing_more(&hub, &mut b).await;
        assert_eq!(hub.metric(DROPPED, &[]), 0.0);
    }
}

#[tokio::test]
async fn a_route_that_returns_with_the_restart_delivers_too() {
    for end in End::ALL {
        let setup = one_route();
        let hub = setup.start();
        let mut b = receiver(&hub, "b").await;
        send(&hub, "out", 0..10).await;
        // In flight when the route goes; what is acknowledged after that counts all the same.
        let taken = take_all(&mut b, 10).await;
        reload(&setup, &hub, "{}", &MODULES, 7200);
        acknowledge(&mut b, &taken, &[0, 1, 2]).await;
        hub.until("the acknowledgements are on disk", |hub| {
            on_disk(&hub.dir, "b/in") == 7
        });
        setup.write_manifest(&routes(&[("a/out", "b/in")]), &MODULES, 7200);
        hub.end(end);
        let hub = setup.start();
        send(&hub, "out", 10..15).await;
        let mut b = hub.connect("edge-1/b").await;
        assert_eq!(wire::bodies(&mut b, 12).await, numbers(3..15));
        nothing_more(&hub, &mut b).await;
    }
}

#[tokio::test]
async fn what_was_purged_is_gone_and_the_rest_is_delivered() {
    for end in End::ALL {
        let pairs = [("a/out", "b/in"), ("a/out", "b/other"), ("a/out", "d/in")];
        let setup = Setup::new(&routes(&pairs), &MODULES);
        let hub = setup.start();
        left_behind(&hub, "b").await;
        left_behind(&hub, "d").await;
        send(&hub, "out", 0..20).await;
        hub.end(end);
        let purge = [
            "store",
            "purge",
            "--config",
            "edgehub.toml",
            "--endpoint",
            "b/in",
        ];
        let purged = edgehub(setup.dir.path(), &purge);
        assert!(purged.status.success(), "{purged:?}");
        let hub = setup.start();
        let waits = ["b/in", "b/other", "d/in"].map(|endpoint| queue(&hub, endpoint).0);
        assert_eq!(waits, [0, 20, 20]);
        let dropped =
            |hub: &Hub| hub.metric("edgehub_messages_dropped_total", &["reason=\"purged\""]);
        assert_eq!(dropped(&hub), 20.0);
        let mut b = hub.connect("edge-1/b").await;
        for number in 0..20 {
            let expected = ("other".to_owned(), number.to_string().into_bytes());
            assert_eq!(message(&mut b).await, expected);
        }
        let mut d = hub.connect("edge-1/d").await;
        assert_eq!(wire::bodies(&mut d, 20).await, numbers(0..20));
        let mut a = hub.connect("edge-1/a").await;
        publish(&mut a, &output("a", "out", ""), b"new").await;
        let mut inputs = [message(&mut b).await, message(&mut b).await];
        inputs.sort();
        let expected = ["in", "other"].map(|input| (input.to_owned(), b"new".to_vec()));
        assert_eq!(inputs, expected);
        assert_eq!(wire::bodies(&mut d, 1).await, ["new"]);
    }
}

#[tokio::test]
async fn a_kept_session_without_subscriptions_outlives_restarts() {
    for end in End::ALL {
        let setup = one_route();
        let hub = setup.start();
        let (b, present) = login(&hub, &hub.hello("edge-1/b")).await;
        assert!(!present);
        vanish(&hub, b, "edge-1/b").await;
        hub.until("the session is on disk", |hub| {
            let state = std::fs::read_dir(hub.dir.join("data/store/state")).unwrap();
            state.flatten().any(|file| {
                std::fs::read(file.path())
                    .unwrap()
                    .windows(16)
                    .any(|part| part == b"session/edge-1/b")
            })
        });
        hub.end(end);
        let hub = setup.start();
        let (_, present) = login(&hub, &hub.hello("edge-1/b")).await;
        assert!(present);
    }
}
