//! How other parts of the hub get the attention of the task that owns a connection: bits that
//! are raised from anywhere and taken by the owner. Bounded by nature, nothing is queued.

use std::sync::atomic::{AtomicU32, Ordering};
use std::task::Waker;

use atomic_waker::AtomicWaker;

/// Raised when an endpoint of the connection's module has a message to deliver.
pub const DELIVERY: u32 = 1;
/// Raised when a queue that refused the connection's message has space again.
pub const SPACE: u32 = 1 << 1;
/// Raised when another connection took this identity over (MQTT 3.1.1 §3.1.4).
pub const TAKEN_OVER: u32 = 1 << 2;
/// Raised when the previous connection of this identity has gone.
pub const ATTACH: u32 = 1 << 3;
/// Raised when identities changed and the credentials must be checked again.
pub const RECHECK: u32 = 1 << 4;
/// Raised when the set of endpoints changed.
pub const ROUTES: u32 = 1 << 5;
/// Raised when something that an acknowledgement waits for is on disk.
pub const DURABLE: u32 = 1 << 6;
/// Raised when the hub is going down.
pub const DRAIN: u32 = 1 << 7;
/// Raised when a not yet authenticated connection must make room for a newer one.
pub const EVICTED: u32 = 1 << 8;

/// Bits raised for the owner of one connection.
#[derive(Debug, Default)]
pub struct Mailbox {
    raised: AtomicU32,
    waker: AtomicWaker,
}

impl Mailbox {
    /// Raises bits and wakes the owner unless they were up already.
    pub fn raise(&self, bits: u32) {
        if self.raised.fetch_or(bits, Ordering::AcqRel) & bits != bits {
            self.waker.wake();
        }
    }

    /// Takes all raised bits. The owner registers its waker first, so that no bit is missed.
    pub fn take(&self, waker: &Waker) -> u32 {
        self.waker.register(waker);
        if self.raised.load(Ordering::Acquire) == 0 {
            return 0;
        }
        self.raised.swap(0, Ordering::AcqRel)
    }
}
