use std::collections::VecDeque;

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::identity::Identity;
use crate::message::Origin;

fn bounds() -> Bounds {
    Bounds {
        max_bytes: 1 << 20,
        endpoint_max_bytes: 1 << 20,
        endpoint_max_messages: 1000,
        drop_oldest: false,
    }
}

fn message(payload: &[u8]) -> Arc<Message> {
    Arc::new(Message {
        origin: Arc::new(Origin {
            sender: Identity::module("d", "m"),
            output: None,
        }),
        bag: Bytes::new(),
        payload: Bytes::copy_from_slice(payload),
        received_ms: 0,
    })
}

fn input(name: &str) -> Endpoint {
    Endpoint::Input {
        module: "m".into(),
        input: name.into(),
    }
}

fn copy(queue: &Arc<Queue>, priority: u64, expires_ms: u64) -> Copy {
    Copy {
        queue: Arc::clone(queue),
        priority: Priority::new(priority).unwrap_or(Priority::DEFAULT),
        expires_ms,
    }
}

struct Bench {
    store: Store,
    consumer: Arc<Mailbox>,
    idle: Vec<Arc<Mailbox>>,
    losses: Vec<Loss>,
}

impl Bench {
    fn new(bounds: Bounds) -> Self {
        Self {
            store: Store::new(bounds),
            consumer: Arc::default(),
            idle: Vec::new(),
            losses: Vec::new(),
        }
    }

    fn append(&mut self, payload: &[u8], copies: &[Copy]) -> Result<u64, Full> {
        let (idle, losses) = (&mut self.idle, &mut self.losses);
        let waiter = Some(&self.consumer);
        self.store
            .append(&message(payload), copies, waiter, idle, losses)
    }

    fn fetch(&mut self, queue: &Queue, max: usize, now_ms: u64) -> Vec<Delivery> {
        let mut out = Vec::new();
        let losses = &mut self.losses;
        self.store.fetch(
            queue,
            &self.consumer,
            (max, u64::MAX),
            now_ms,
            &mut out,
            losses,
        );
        out
    }
}

fn bodies(deliveries: &[Delivery]) -> Vec<&[u8]> {
    deliveries.iter().map(|d| &d.message.payload[..]).collect()
}

#[test]
fn urgent_lanes_go_first_and_each_lane_keeps_its_order() {
    let mut bench = Bench::new(bounds());
    let queue = bench.store.queue(&input("i"));
    for (body, priority) in [(b"a", 9), (b"b", 0), (b"c", 99), (b"d", 0)] {
        bench
            .append(body, &[copy(&queue, priority, u64::MAX)])
            .unwrap();
    }
    let got = bench.fetch(&queue, 10, 0);
    assert_eq!(bodies(&got), [b"b", b"d", b"a", b"c"]);
}

#[test]
fn what_was_not_acknowledged_comes_again_first_and_in_order() {
    let mut bench = Bench::new(bounds());
    let queue = bench.store.queue(&input("i"));
    for body in [b"a", b"b", b"c", b"d"] {
        bench.append(body, &[copy(&queue, 1, u64::MAX)]).unwrap();
    }
    let got = bench.fetch(&queue, 3, 0);
    bench.store.acknowledge(&queue, got[1].seq);
    bench.store.release(&queue, &[got[0].seq, got[2].seq]);
    let again = bench.fetch(&queue, 10, 0);
    assert_eq!(bodies(&again), [b"a", b"c", b"d"]);
    let flags: Vec<_> = again.iter().map(|d| d.redelivered).collect();
    assert_eq!(flags, [true, true, false]);
}

#[test]
fn a_message_is_in_all_its_queues_or_in_none() {
    let mut bench = Bench::new(Bounds {
        endpoint_max_messages: 1,
        ..bounds()
    });
    let (a, b) = (
        bench.store.queue(&input("a")),
        bench.store.queue(&input("b")),
    );
    bench.append(b"1", &[copy(&b, 1, u64::MAX)]).unwrap();
    let refused = bench.append(b"2", &[copy(&a, 1, u64::MAX), copy(&b, 1, u64::MAX)]);
    assert_eq!(
        refused,
        Err(Full {
            endpoint: input("b")
        })
    );
    assert!(bench.fetch(&a, 1, 0).is_empty());
    let used = bench.store.used_bytes();
    assert_eq!(used, message(b"1").bytes());
}

#[test]
fn a_held_back_sender_is_told_when_there_is_space() {
    let mut bench = Bench::new(Bounds {
        endpoint_max_messages: 2,
        ..bounds()
    });
    let queue = bench.store.queue(&input("i"));
    for _ in 0..2 {
        bench.append(b"x", &[copy(&queue, 1, u64::MAX)]).unwrap();
    }
    bench
        .append(b"y", &[copy(&queue, 1, u64::MAX)])
        .unwrap_err();
    let waker = std::task::Waker::noop();
    assert_eq!(bench.consumer.take(waker), 0);
    for delivery in bench.fetch(&queue, 2, 0) {
        bench.store.acknowledge(&queue, delivery.seq);
    }
    assert_eq!(bench.consumer.take(waker) & SPACE, SPACE);
}

#[test]
fn the_whole_store_has_a_bound_too() {
    let mut bench = Bench::new(Bounds {
        max_bytes: 3 * message(b"x").bytes(),
        ..bounds()
    });
    let (a, b) = (
        bench.store.queue(&input("a")),
        bench.store.queue(&input("b")),
    );
    let both = [copy(&a, 1, u64::MAX), copy(&b, 1, u64::MAX)];
    bench.append(b"x", &both).unwrap();
    bench.append(b"y", &both).unwrap_err();
    bench.append(b"z", &both[..1]).unwrap();
    for delivery in bench.fetch(&a, 9, 0) {
        bench.store.acknowledge(&a, delivery.seq);
    }
    assert_eq!(bench.consumer.take(std::task::Waker::noop()) & SPACE, SPACE);
    bench.append(b"y", &both).unwrap();
}

#[test]
fn drop_oldest_gives_up_the_least_urgent_first_and_says_so() {
    let mut bench = Bench::new(Bounds {
        endpoint_max_messages: 2,
        drop_oldest: true,
        ..bounds()
    });
    let queue = bench.store.queue(&input("i"));
    bench.append(b"a", &[copy(&queue, 0, u64::MAX)]).unwrap();
    bench.append(b"b", &[copy(&queue, 9, u64::MAX)]).unwrap();
    bench.append(b"c", &[copy(&queue, 9, u64::MAX)]).unwrap();
    assert_eq!(bench.losses.len(), 1);
    assert_eq!(bench.losses[0].reason, LossReason::DroppedOldest);
    assert_eq!(bodies(&bench.fetch(&queue, 9, 0)), [b"a", b"c"]);
}

#[test]
fn expired_messages_are_lost_aloud_at_fetch_and_at_sweep() {
    let mut bench = Bench::new(bounds());
    let queue = bench.store.queue(&input("i"));
    bench.append(b"a", &[copy(&queue, 1, 10)]).unwrap();
    bench.append(b"b", &[copy(&queue, 1, 20)]).unwrap();
    bench.append(b"c", &[copy(&queue, 1, 30)]).unwrap();
    assert_eq!(bodies(&bench.fetch(&queue, 1, 15)), [b"b"]);
    let mut losses = Vec::new();
    bench.store.sweep(30, &mut losses);
    assert_eq!((bench.losses.len(), losses.len()), (1, 1));
    assert_eq!(bench.store.used_bytes(), message(b"b").bytes());
}

#[test]
fn a_receiver_that_found_nothing_is_woken_once() {
    let mut bench = Bench::new(bounds());
    let queue = bench.store.queue(&input("i"));
    assert!(bench.fetch(&queue, 1, 0).is_empty());
    bench.append(b"a", &[copy(&queue, 1, u64::MAX)]).unwrap();
    bench.append(b"b", &[copy(&queue, 1, u64::MAX)]).unwrap();
    assert_eq!(bench.idle.len(), 1);
}

#[derive(Debug, Clone)]
enum Action {
    Append { priority: u64, ttl_ms: u64 },
    Fetch(usize),
    AcknowledgeOldest,
    AcknowledgeNewest,
    ReleaseAll,
    Tick,
    Sweep,
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        4 => (0..12u64, 1..40u64).prop_map(|(priority, ttl_ms)| Action::Append { priority, ttl_ms }),
        3 => (0..4usize).prop_map(Action::Fetch),
        2 => Just(Action::AcknowledgeOldest),
        1 => Just(Action::AcknowledgeNewest),
        1 => Just(Action::ReleaseAll),
        2 => Just(Action::Tick),
        1 => Just(Action::Sweep),
    ]
}

/// The queue as a reader would write it down: all entries in one list.
#[derive(Default)]
struct Model {
    waiting: Vec<(u64, usize, u64)>,
    in_flight: VecDeque<(u64, usize, u64)>,
}

impl Model {
    fn fetch(&mut self, max: usize, now: u64) -> Vec<u64> {
        self.waiting.sort_by_key(|&(seq, lane, _)| (lane, seq));
        let mut got = Vec::new();
        let mut rest = Vec::new();
        for entry in std::mem::take(&mut self.waiting) {
            if got.len() == max {
                rest.push(entry);
            } else if entry.2 > now {
                got.push(entry.0);
                self.in_flight.push_back(entry);
            }
        }
        self.waiting = rest;
        got
    }
}

proptest! {
    #[test]
    fn agrees_with_a_plain_list(actions in proptest::collection::vec(action(), 1..200)) {
        let mut bench = Bench::new(bounds());
        let queue = bench.store.queue(&input("i"));
        let mut model = Model::default();
        let mut now = 0;
        for action in actions {
            match action {
                Action::Append { priority, ttl_ms } => {
                    let copies = [copy(&queue, priority, now + ttl_ms)];
                    let lane = copies[0].priority.index();
                    let seq = bench.append(b"x", &copies).unwrap();
                    model.waiting.push((seq, lane, now + ttl_ms));
                }
                Action::Fetch(max) => {
                    let got: Vec<_> =
                        bench.fetch(&queue, max, now).iter().map(|d| d.seq).collect();
                    prop_assert_eq!(got, model.fetch(max, now));
                }
                Action::AcknowledgeOldest => {
                    if let Some((seq, ..)) = model.in_flight.pop_front() {
                        bench.store.acknowledge(&queue, seq);
                    }
                }
                Action::AcknowledgeNewest => {
                    if let Some((seq, ..)) = model.in_flight.pop_back() {
                        bench.store.acknowledge(&queue, seq);
                    }
                }
                Action::ReleaseAll => {
                    let seqs: Vec<_> = model.in_flight.iter().map(|e| e.0).collect();
                    bench.store.release(&queue, &seqs);
                    model.waiting.extend(model.in_flight.drain(..));
                }
                Action::Tick => now += 7,
                Action::Sweep => {
                    bench.store.sweep(now, &mut Vec::new());
                    model.waiting.retain(|entry| entry.2 > now);
                }
            }
            let status = bench.store.status();
            let held: usize = status.iter().map(|row| row.messages).sum();
            prop_assert_eq!(held, model.waiting.len() + model.in_flight.len());
            prop_assert_eq!(bench.store.used_bytes(), held as u64 * message(b"x").bytes());
        }
    }
}
