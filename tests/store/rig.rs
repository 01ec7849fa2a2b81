//! A store without threads on the simulated disk, and the few things that tests do with it.
#![allow(dead_code, clippy::unwrap_used, clippy::indexing_slicing)]

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use edgehub::identity::Identity;
use edgehub::mailbox::Mailbox;
use edgehub::message::{Endpoint, Message, Origin, Priority};
use edgehub::store::disk::Disk;
use edgehub::store::{
    Append, Bounds, Copy, Delivery, Loss, Opened, Options, Queue, Step, Store, SyncPolicy,
};

/// 2026-11-22.
pub const WALL_MS: u64 = 1_795_305_600_000;
pub const ENDPOINTS: usize = 4;
pub const LANES: [u64; 3] = [0, 5, 10];
/// Steps that a store may take to come to rest.
const STEPS_MAX: usize = 10_000;

/// An endpoint and one of its lanes.
pub type LaneKey = (usize, usize);

/// What a message goes to, and for how long.
#[derive(Debug, Clone, Copy)]
pub struct Target<'a> {
    pub endpoints: &'a [usize],
    pub lane: usize,
    pub ttl_ms: Option<u64>,
}

/// Options with segments of a size.
pub fn options(segment_bytes: u64) -> Options {
    Options {
        sync: SyncPolicy::Always,
        max_syncs_per_second: 0,
        max_bytes: 1 << 32,
        min_free_bytes: 0,
        segment_bytes,
        message_bytes_max: segment_bytes / 3,
        drop_oldest: false,
    }
}

/// Who appends.
pub struct Sender {
    waiter: Arc<Mailbox>,
    origin: Arc<Origin>,
}

impl Sender {
    pub fn new() -> Self {
        Self {
            waiter: Arc::default(),
            origin: Arc::new(Origin::new(Identity::module("d", "m"), Some("out"))),
        }
    }

    /// Appends a message; its seq, or `None` where there is no room.
    pub fn append(
        &self,
        (store, queues): (&Store, &[Arc<Queue>]),
        target: Target<'_>,
        payload: &Bytes,
        now_ms: u64,
    ) -> Option<u64> {
        let copies = target.endpoints.iter().map(|at| Copy {
            queue: Arc::clone(&queues[*at]),
            priority: priority(target.lane),
            ttl_ms: target.ttl_ms,
        });
        let copies: Vec<_> = copies.collect();
        let message = Arc::new(Message {
            origin: Arc::clone(&self.origin),
            bag: Bytes::from_static(b"%24.cdid=d"),
            payload: payload.clone(),
            received_ms: now_ms,
        });
        let append = Append {
            message: &message,
            copies: &copies,
            waiter: &self.waiter,
            is_patient: true,
            is_last: false,
            now_ms,
        };
        let appended = store.append(&append, &mut Vec::new(), &mut Vec::new());
        appended.ok()
    }
}

/// A store and those who use it.
pub struct Rig {
    pub store: Store,
    pub queues: Vec<Arc<Queue>>,
    pub now_ms: u64,
    /// The system's clock less the hub's.
    pub wall_ahead_ms: u64,
    reader: Arc<Mailbox>,
    sender: Sender,
}

impl Rig {
    /// Opens the store, and has its spares made.
    pub fn open(
        disk: Arc<dyn Disk>,
        options: Options,
        (now_ms, wall_ms): (u64, u64),
    ) -> io::Result<(Self, Opened)> {
        let bounds = Bounds {
            max_bytes: 1 << 40,
            endpoint_max_bytes: 1 << 40,
            endpoint_max_messages: 1 << 40,
            drop_oldest: false,
        };
        let (store, opened) = Store::open(disk, options, bounds, 7, (now_ms, wall_ms))?;
        let rig = Self {
            queues: (0..ENDPOINTS).map(|n| store.queue(&endpoint(n))).collect(),
            store,
            now_ms,
            wall_ahead_ms: wall_ms - now_ms,
            reader: Arc::default(),
            sender: Sender::new(),
        };
        rig.store.keep_step(now_ms, false);
        rig.store.write_step(now_ms);
        Ok((rig, opened))
    }

    /// Appends a message; its seq, or `None` where there is no room.
    pub fn append(&self, target: Target<'_>, payload: &Bytes) -> Option<u64> {
        let at = (&self.store, &*self.queues);
        self.sender.append(at, target, payload, self.now_ms)
    }

    /// Takes messages of one endpoint.
    pub fn fetch(&self, at: usize, room: usize, losses: &mut Vec<Loss>) -> Vec<Delivery> {
        let mut out = Vec::new();
        let into = (&mut out, losses);
        let room = (room, 1 << 20);
        let queue = &self.queues[at];
        self.store
            .fetch(queue, &self.reader, room, self.now_ms, into);
        out
    }

    /// A receiver acknowledges.
    pub fn acknowledge(&self, at: usize, delivery: &Delivery) {
        let queue = &self.queues[at];
        self.store
            .acknowledge(queue, delivery.priority, delivery.seq);
    }

    /// One step of the writer, and one of the keeper where it waits for that.
    pub fn write(&self) -> Step {
        let step = self.store.write_step(self.now_ms);
        if matches!(step, Step::Blocked { .. }) {
            self.store.keep_step(self.now_ms, true);
        }
        step
    }

    /// Reads for receivers until there is nothing more to read.
    pub fn rest(&self) {
        let mut steps = 0;
        while self.store.keep_step(self.now_ms, false) {
            steps += 1;
            assert!(steps < STEPS_MAX, "the keeper does not come to rest");
        }
    }

    /// What is due once a second.
    pub fn tick(&self, losses: &mut Vec<Loss>) {
        let time = (self.now_ms, self.wall_ahead_ms + self.now_ms);
        self.store.sweep(time, losses);
        self.store.write_step(self.now_ms);
        self.store.keep_step(self.now_ms, true);
        self.store.sweep(time, losses);
    }

    /// Takes and acknowledges everything, in the order of delivery.
    pub fn drain(&self, losses: &mut Vec<Loss>) -> Result<Vec<(usize, Delivery)>, String> {
        let mut all = Vec::new();
        for at in 0..ENDPOINTS {
            let mut idle = 0;
            let mut steps = 0;
            while idle < 3 {
                let fetched = self.fetch(at, 1000, losses);
                idle = if fetched.is_empty() { idle + 1 } else { 0 };
                for delivery in fetched {
                    self.acknowledge(at, &delivery);
                    all.push((at, delivery));
                }
                while self.store.keep_step(self.now_ms, false) && steps < STEPS_MAX {
                    steps += 1;
                }
                steps += 1;
                if steps > STEPS_MAX {
                    return Err("the keeper does not come to rest".to_owned());
                }
            }
        }
        let time = (self.now_ms, self.wall_ahead_ms + self.now_ms);
        self.store.sweep(time, losses);
        Ok(all)
    }

    /// Messages that wait, by the store's own count.
    pub fn waiting(&self) -> usize {
        self.store.status().iter().map(|row| row.messages).sum()
    }
}

pub fn endpoint(n: usize) -> Endpoint {
    Endpoint::Input {
        module: format!("m{n}").into(),
        input: "in".into(),
    }
}

pub fn priority(lane: usize) -> Priority {
    Priority::new(LANES[lane]).unwrap_or(Priority::DEFAULT)
}

pub fn lane_of(priority: Priority) -> usize {
    let index = priority.index() as u64;
    LANES.iter().position(|lane| *lane == index).unwrap()
}
