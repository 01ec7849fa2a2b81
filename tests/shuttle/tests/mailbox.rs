//! No bit of a mailbox and no wake-up is lost, in any order of what its owner and another thread
//! do; nor with two others, as far as the order changes no more often than `PREEMPTIONS`.

mod made {
    #![allow(dead_code, missing_docs)]
    include!(concat!(env!("OUT_DIR"), "/mailbox_root.rs"));
}

use loom::future::block_on;
use loom::sync::Arc;
use loom::thread;
use made::mailbox::{DELIVERY, DRAIN, Mailbox, SPACE};
use std::future::poll_fn;
use std::task::Poll;

const PREEMPTIONS: usize = 3;

/// Three threads in all orders would take hours.
fn bounded(scene: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound.get_or_insert(PREEMPTIONS);
    builder.check(scene);
}

/// Waits until all of these bits were taken.
fn wait(mailbox: &Mailbox, bits: u32) {
    let mut taken = 0;
    block_on(poll_fn(|context| {
        taken |= mailbox.take(context.waker());
        if taken & bits == bits {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }));
    assert_eq!(taken, bits);
}

#[test]
fn one_who_raises_wakes_the_owner() {
    loom::model(|| {
        let mailbox = Arc::new(Mailbox::default());
        let own = Arc::clone(&mailbox);
        let other = thread::spawn(move || own.raise(DELIVERY));
        wait(&mailbox, DELIVERY);
        other.join().unwrap();
    });
}

#[test]
fn two_who_raise_different_bits_both_arrive() {
    bounded(|| {
        let mailbox = Arc::new(Mailbox::default());
        let others: Vec<_> = [DELIVERY, SPACE]
            .into_iter()
            .map(|bit| {
                let own = Arc::clone(&mailbox);
                thread::spawn(move || own.raise(bit))
            })
            .collect();
        wait(&mailbox, DELIVERY | SPACE);
        others.into_iter().for_each(|other| other.join().unwrap());
    });
}

#[test]
fn one_who_raises_twice_and_one_who_raises_the_same_are_heard() {
    bounded(|| {
        let mailbox = Arc::new(Mailbox::default());
        let own = Arc::clone(&mailbox);
        let first = thread::spawn(move || {
            own.raise(DELIVERY);
            own.raise(DRAIN);
        });
        let own = Arc::clone(&mailbox);
        let second = thread::spawn(move || own.raise(DELIVERY | SPACE));
        wait(&mailbox, DELIVERY | SPACE | DRAIN);
        first.join().unwrap();
        second.join().unwrap();
    });
}

/// What was raised before its bit is seen by who takes the bit.
#[test]
fn what_was_written_before_is_seen_after() {
    use loom::sync::atomic::{AtomicU32, Ordering};
    loom::model(|| {
        let mailbox = Arc::new(Mailbox::default());
        let told = Arc::new(AtomicU32::new(0));
        let (own, own_told) = (Arc::clone(&mailbox), Arc::clone(&told));
        let other = thread::spawn(move || {
            own_told.store(7, Ordering::Relaxed);
            own.raise(DELIVERY);
        });
        wait(&mailbox, DELIVERY);
        assert_eq!(told.load(Ordering::Relaxed), 7);
        other.join().unwrap();
    });
}
