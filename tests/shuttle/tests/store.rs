//! The threads of the store in many orders: those who append and wait, the writer, the keeper,
//! the receiver, the close. Nothing ever times out here, so a wake-up that is missing is a
//! deadlock, which shuttle reports.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

#[path = "../../fuzz/src/memory_disk.rs"]
mod memory_disk;
#[path = "store/watched_disk.rs"]
mod watched_disk;

use std::future::poll_fn;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;

use bytes::Bytes;
use edgehub::identity::Identity;
use edgehub::mailbox::{DELIVERY, DURABLE, Mailbox, SPACE};
use edgehub::message::{Endpoint, Message, Origin, Priority};
use edgehub::store::journal::{Journal, Subscription};
use edgehub::store::{Append, Bounds, Copy, NowMs, Options, Queue, Store, SyncPolicy, wake};
use shuttle::sync::Arc;
use shuttle::thread;
use watched_disk::WatchedDisk;

const WALL_MS: u64 = 1_795_305_600_000;

/// Runs a scene in so many orders, of two kinds; or again in the one that failed.
fn check(scene: fn()) {
    if let Ok(schedule) = std::env::var("SHUTTLE_REPLAY") {
        shuttle::replay(scene, &schedule);
        return;
    }
    let number = std::env::var("SHUTTLE_ITERATIONS");
    let iterations = number.map_or(200, |number| number.parse().expect("a number"));
    let began = std::time::Instant::now();
    shuttle::check_random(scene, iterations);
    shuttle::check_pct(scene, iterations, 3);
    println!(
        "{} orders in {} s",
        2 * iterations,
        began.elapsed().as_secs()
    );
}

/// A store with its threads.
struct Scene {
    store: Arc<Store>,
    disk: Arc<WatchedDisk>,
    now_ms: NowMs,
}

fn options() -> Options {
    Options {
        sync: SyncPolicy::Always,
        max_syncs_per_second: 0,
        max_bytes: 1 << 30,
        min_free_bytes: 0,
        segment_bytes: 64 * 1024,
        message_bytes_max: 16 * 1024,
        drop_oldest: false,
    }
}

fn open(disk: &Arc<WatchedDisk>, now_ms: u64) -> Arc<Store> {
    let bounds = Bounds {
        max_bytes: 1 << 30,
        endpoint_max_bytes: 1 << 30,
        endpoint_max_messages: 1 << 30,
        drop_oldest: false,
    };
    let own: Arc<dyn edgehub::store::disk::Disk> = Arc::<WatchedDisk>::clone(disk);
    let time = (now_ms, WALL_MS + now_ms);
    let (store, opened) = Store::open(own, options(), bounds, 7, time).unwrap();
    assert!(opened.lost.is_empty());
    Arc::new(store)
}

impl Scene {
    fn new() -> Self {
        let disk = Arc::new(WatchedDisk::default());
        let clock = AtomicU64::new(1000);
        let scene = Self {
            store: open(&disk, 1000),
            disk,
            now_ms: Arc::new(move || clock.fetch_add(1, Ordering::Relaxed)),
        };
        scene.store.start(&scene.now_ms).unwrap();
        scene
    }

    /// Everything up to what is said to be kept was synced.
    fn look(&self) -> u64 {
        let kept = self.store.kept();
        assert!(kept <= self.disk.synced(), "{kept} is not on the disk");
        kept
    }

    fn end(&self) {
        self.store.close((self.now_ms)());
        self.look();
    }
}

fn queue(store: &Store, name: &str) -> Arc<Queue> {
    store.queue(&Endpoint::Input {
        module: name.into(),
        input: "in".into(),
    })
}

/// Waits until one of these bits was raised.
fn wait(mailbox: &Mailbox, bits: u32) {
    shuttle::future::block_on(poll_fn(|context| {
        if mailbox.take(context.waker()) & bits == 0 {
            Poll::Pending
        } else {
            Poll::Ready(())
        }
    }));
}

/// Appends a message of so many bytes that begins with a number, as soon as there is room.
fn append(
    scene: &Scene,
    queues: &[Arc<Queue>],
    mailbox: &Arc<Mailbox>,
    (number, size): (u64, usize),
) -> u64 {
    let mut payload = number.to_le_bytes().to_vec();
    payload.resize(8 + size, 1);
    let origin = Origin::new(Identity::module("d", "m"), Some("out"));
    let message = Arc::new(Message {
        origin: Arc::new(origin),
        bag: Bytes::new(),
        payload: Bytes::from(payload),
        received_ms: 0,
    });
    let copies: Vec<_> = queues
        .iter()
        .map(|queue| Copy {
            queue: Arc::clone(queue),
            priority: Priority::DEFAULT,
            ttl_ms: None,
        })
        .collect();
    loop {
        let append = Append {
            message: &message,
            copies: &copies,
            waiter: mailbox,
            is_patient: true,
            is_last: false,
            now_ms: (scene.now_ms)(),
        };
        let mut idle = Vec::new();
        let appended = scene.store.append(&append, &mut idle, &mut Vec::new());
        wake(&mut idle);
        match appended {
            Ok(seq) => return seq,
            Err(_) => wait(mailbox, SPACE),
        }
    }
}

fn sorted(queues: &[&Arc<Queue>]) -> Vec<Arc<Queue>> {
    let mut queues: Vec<_> = queues.iter().map(|queue| Arc::clone(queue)).collect();
    queues.sort_by_key(Arc::as_ptr);
    queues
}

/// Two senders, each of which waits for each of its messages.
fn senders_wait() {
    let scene = Arc::new(Scene::new());
    let shared = queue(&scene.store, "shared");
    let senders: Vec<_> = (0..2)
        .map(|sender| {
            let scene = Arc::clone(&scene);
            let own = queue(&scene.store, &format!("own-{sender}"));
            let queues = sorted(&[&shared, &own]);
            thread::spawn(move || {
                let mailbox = Arc::new(Mailbox::default());
                let mut last = 0;
                for number in 0..2 {
                    let seq = append(&scene, &queues, &mailbox, (number, 10));
                    assert!(seq > last);
                    scene.store.await_kept(seq, &mailbox);
                    while scene.store.kept() < seq {
                        wait(&mailbox, DURABLE);
                    }
                    last = scene.look();
                    assert!(last >= seq);
                }
            })
        })
        .collect();
    let mut kept = 0;
    for _ in 0..3 {
        let now = scene.look();
        assert!(kept <= now, "{now} after {kept}");
        kept = now;
        thread::yield_now();
    }
    senders
        .into_iter()
        .for_each(|sender| sender.join().unwrap());
    scene.end();
    let status = scene.store.status();
    assert_eq!(status.iter().map(|row| row.messages).sum::<usize>(), 8);
}

#[test]
fn everybody_who_waits_is_woken_and_nothing_is_kept_before_it_is_synced() {
    check(senders_wait);
}

/// A receiver that goes and comes back while messages arrive; they fill several segments.
fn receive_all(size: usize, count: u64) {
    let scene = Arc::new(Scene::new());
    let shared = queue(&scene.store, "shared");
    let receiver = {
        let (scene, shared) = (Arc::clone(&scene), Arc::clone(&shared));
        thread::spawn(move || receive(&scene, &shared, count))
    };
    let mailbox = Arc::new(Mailbox::default());
    for number in 0..count {
        let seq = append(
            &scene,
            std::slice::from_ref(&shared),
            &mailbox,
            (number, size),
        );
        scene.store.await_kept(seq, &mailbox);
    }
    receiver.join().unwrap();
    scene.end();
    assert_eq!(
        scene
            .store
            .status()
            .iter()
            .map(|row| row.messages)
            .sum::<usize>(),
        0
    );
}

fn receive(scene: &Scene, shared: &Arc<Queue>, count: u64) {
    let mailbox = Arc::new(Mailbox::default());
    let mut next = 0;
    let mut goes = vec![3, 1];
    while next < count {
        let (mut out, mut losses) = (Vec::new(), Vec::new());
        let into = (&mut out, &mut losses);
        let now_ms = (scene.now_ms)();
        scene
            .store
            .fetch(shared, &mailbox, (2, 1 << 20), now_ms, into);
        assert!(losses.is_empty(), "{losses:?}");
        if out.is_empty() {
            wait(&mailbox, DELIVERY);
            continue;
        }
        for (delivery, expected) in out.iter().zip(next..) {
            let number = u64::from_le_bytes(delivery.message.payload[..8].try_into().unwrap());
            assert_eq!(number, expected);
        }
        if goes.pop_if(|at| next >= *at).is_some() {
            // All of it comes again, from the disk.
            let seqs: Vec<u64> = out.iter().map(|delivery| delivery.seq).collect();
            scene.store.release(shared, Priority::DEFAULT, &seqs);
            scene.store.detach(shared, &mailbox);
            continue;
        }
        for delivery in &out {
            scene
                .store
                .acknowledge(shared, delivery.priority, delivery.seq);
        }
        next += out.len() as u64;
    }
}

#[test]
fn a_receiver_that_comes_and_goes_gets_everything_once_in_order() {
    check(|| receive_all(10, 5));
}

#[test]
fn a_receiver_gets_everything_across_segments() {
    check(|| receive_all(12_000, 6));
}

/// The store is closed while somebody appends.
fn close_meanwhile() {
    let scene = Arc::new(Scene::new());
    let shared = queue(&scene.store, "shared");
    let sender = {
        let (scene, shared) = (Arc::clone(&scene), Arc::clone(&shared));
        thread::spawn(move || {
            let mailbox = Arc::new(Mailbox::default());
            let queues = [shared];
            (0..3)
                .map(|number| {
                    let seq = append(&scene, &queues, &mailbox, (number, 10));
                    scene.store.await_kept(seq, &mailbox);
                    seq
                })
                .collect::<Vec<u64>>()
        })
    };
    scene.end();
    let seqs = sender.join().unwrap();
    let kept = scene.look();
    let disk = Arc::clone(&scene.disk);
    drop(shared);
    drop(scene);
    let store = open(&disk, 10_000);
    let shared = queue(&store, "shared");
    let (mut out, mailbox) = (Vec::new(), Arc::new(Mailbox::default()));
    for _ in 0..4 {
        store.fetch(
            &shared,
            &mailbox,
            (100, 1 << 20),
            10_000,
            (&mut out, &mut Vec::new()),
        );
        while store.keep_step(10_000, false) {}
    }
    let came: Vec<u64> = out.iter().map(|delivery| delivery.seq).collect();
    let due: Vec<u64> = seqs.iter().copied().filter(|seq| *seq <= kept).collect();
    assert!(
        came.starts_with(&due) && seqs.starts_with(&came),
        "{kept}: {seqs:?}, {came:?}"
    );
}

#[test]
fn what_was_kept_when_the_store_was_closed_is_there() {
    check(close_meanwhile);
}

/// Two who record sessions and wait, and the end.
fn sessions() {
    let disk = Arc::new(WatchedDisk::default());
    let own: Arc<dyn edgehub::store::disk::Disk> = Arc::<WatchedDisk>::clone(&disk);
    let (journal, _) = Journal::open(Arc::clone(&own), 7, true).unwrap();
    let journal = Arc::new(journal);
    let clients: Vec<_> = ["d/a", "d/b"]
        .into_iter()
        .map(|identity| {
            let journal = Arc::clone(&journal);
            thread::spawn(move || {
                let mailbox = Arc::new(Mailbox::default());
                for qos in 0..2 {
                    let subscription = Subscription {
                        qos,
                        ..Subscription::new("a/#", edgehub::mqtt::QoS::AtMostOnce)
                    };
                    let version = journal.record(identity, Some(&[subscription]), &mailbox);
                    while journal.durable() < version {
                        wait(&mailbox, DURABLE);
                    }
                }
                assert!(journal.watch(&mailbox) >= 2);
            })
        })
        .collect();
    clients
        .into_iter()
        .for_each(|client| client.join().unwrap());
    assert_eq!(journal.durable(), journal.newest());
    drop(journal);
    let (_journal, (restored, damage)) = Journal::open(own, 7, true).unwrap();
    assert_eq!((restored.len(), damage.len()), (2, 0));
    assert!(restored.values().all(|own| own[0].qos == 1));
}

#[test]
fn everybody_who_waits_for_a_session_is_woken() {
    check(sessions);
}
