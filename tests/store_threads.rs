//! Threads that use one store at the same time wait for each other, and never for ever.
#![allow(missing_docs, clippy::unwrap_used, clippy::indexing_slicing)]

#[path = "store/rig.rs"]
mod rig;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use bytes::Bytes;
use edgehub::mailbox::Mailbox;
use edgehub::message::Endpoint;
use edgehub::store::{Bounds, Queue, Store};
use rig::{Sender, Target, WALL_MS};

const MESSAGES: u64 = 50_000;
const BOUNDS: Bounds = Bounds {
    max_bytes: 1 << 30,
    endpoint_max_bytes: 1 << 30,
    endpoint_max_messages: 1 << 20,
    drop_oldest: false,
};

fn append_all(store: &Store, queues: &[Arc<Queue>]) {
    let sender = Sender::new();
    let payload = Bytes::from_static(b"payload");
    let target = Target {
        endpoints: &[0, 1],
        lane: 0,
        ttl_ms: Some(3_600_000),
    };
    for _ in 0..MESSAGES {
        assert!(
            sender
                .append((store, queues), target, &payload, 1000)
                .is_some()
        );
    }
}

fn take_all(store: &Store, queue: &Arc<Queue>) {
    let consumer: Arc<Mailbox> = Arc::default();
    let (mut out, mut losses) = (Vec::new(), Vec::new());
    let mut taken = 0;
    while taken < MESSAGES {
        let room = (100, 1 << 20);
        store.fetch(queue, &consumer, room, 1000, (&mut out, &mut losses));
        taken += out.len() as u64;
        for delivery in out.drain(..) {
            store.acknowledge(queue, delivery.priority, delivery.seq);
        }
    }
    assert!(losses.is_empty());
}

#[test]
fn appending_taking_and_setting_the_clock_do_not_block_each_other() {
    let store = Store::memory(BOUNDS, (1000, WALL_MS));
    let mut queues: Vec<_> = (0..2)
        .map(|n| {
            store.queue(&Endpoint::Input {
                module: format!("m{n}").into(),
                input: "in".into(),
            })
        })
        .collect();
    queues.sort_by_key(Arc::as_ptr);
    let done = AtomicBool::new(false);
    let sweeps = AtomicU64::new(0);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                store.sweep((1000, WALL_MS), &mut Vec::new());
                sweeps.fetch_add(1, Ordering::Relaxed);
            }
        });
        let workers = [
            scope.spawn(|| append_all(&store, &queues)),
            scope.spawn(|| take_all(&store, &queues[0])),
            scope.spawn(|| take_all(&store, &queues[1])),
        ];
        for worker in workers {
            worker.join().unwrap();
        }
        done.store(true, Ordering::Relaxed);
    });
    assert!(sweeps.into_inner() > 0);
    assert_eq!(store.used_bytes(), 0);
}
