//! What is done to a store and its model, and how often it was done.

use bytes::Bytes;
use proptest::prelude::*;

use crate::rig::{ENDPOINTS, LANES};

/// A message of the model.
#[derive(Debug, Clone)]
pub struct Known {
    pub payload: Bytes,
    pub expires_ms: Option<u64>,
    /// Put back as sent: it does not expire before the next restart.
    pub is_sent: bool,
}

/// One operation. Numbers are taken modulo what there is.
#[derive(Debug, Clone)]
pub enum Op {
    Append {
        first: usize,
        fan_out: usize,
        lane: usize,
        size: usize,
        ttl_ms: Option<u64>,
        is_patient: bool,
    },
    Fetch {
        at: usize,
        room: usize,
        bytes: u64,
    },
    /// A message that is known by its seq, as after a reconnection.
    FetchOne {
        at: usize,
        nth: usize,
    },
    Acknowledge {
        nth: usize,
        count: usize,
    },
    Release {
        nth: usize,
    },
    /// The receiver goes; everything in flight comes again.
    Reconnect {
        at: usize,
    },
    Pass {
        ms: u64,
    },
    Purge {
        at: usize,
    },
    /// Nobody refers to the queue until it is needed again.
    Forget {
        at: usize,
    },
    Limit {
        messages: usize,
        bytes: u64,
    },
    Write,
    Keep,
    /// Only on disk: closed in good order and opened again.
    Restart,
}

/// Operations as they come, mostly appends, fetches and acknowledgements.
pub fn ops(most: usize) -> impl Strategy<Value = Vec<Op>> {
    let ttl = prop_oneof![3 => Just(None), 1 => (1..6000_u64).prop_map(Some)];
    let append = (
        0..ENDPOINTS,
        1..4_usize,
        0..LANES.len(),
        0..300_usize,
        ttl,
        any::<bool>(),
    );
    let append = append.prop_map(
        |(first, fan_out, lane, size, ttl_ms, is_patient)| Op::Append {
            first,
            // What a loss says is then enough to know whose it is.
            fan_out: if ttl_ms.is_some() { 1 } else { fan_out },
            lane,
            size,
            ttl_ms,
            is_patient,
        },
    );
    let bytes = prop_oneof![3 => Just(1 << 20), 1 => 0..3000_u64];
    let fetch = (0..ENDPOINTS, 0..12_usize, bytes);
    let fetch = fetch.prop_map(|(at, room, bytes)| Op::Fetch { at, room, bytes });
    let acknowledge = (any::<usize>(), 1..6_usize);
    let acknowledge = acknowledge.prop_map(|(nth, count)| Op::Acknowledge { nth, count });
    let fetch_one = (0..ENDPOINTS, any::<usize>());
    let limit = (1..60_usize, 300..20_000_u64);
    let op = prop_oneof![
        30 => append,
        18 => fetch,
        15 => acknowledge,
        3 => fetch_one.prop_map(|(at, nth)| Op::FetchOne { at, nth }),
        3 => any::<usize>().prop_map(|nth| Op::Release { nth }),
        3 => (0..ENDPOINTS).prop_map(|at| Op::Reconnect { at }),
        4 => (0..3000_u64).prop_map(|ms| Op::Pass { ms }),
        1 => (0..ENDPOINTS).prop_map(|at| Op::Purge { at }),
        1 => (0..ENDPOINTS).prop_map(|at| Op::Forget { at }),
        1 => limit.prop_map(|(messages, bytes)| Op::Limit { messages, bytes }),
        4 => Just(Op::Write),
        4 => Just(Op::Keep),
        1 => Just(Op::Restart),
    ];
    proptest::collection::vec(op, 1..most)
}

/// What a run did.
#[derive(Debug, Default, Clone, Copy)]
pub struct Done {
    pub ops: u64,
    pub appended: u64,
    pub refused: u64,
    pub delivered: u64,
    pub acknowledged: u64,
    pub expired: u64,
    pub dropped: u64,
    pub purged: u64,
    pub restarts: u64,
}

impl Done {
    pub fn add(&mut self, other: &Self) {
        self.ops += other.ops;
        self.appended += other.appended;
        self.refused += other.refused;
        self.delivered += other.delivered;
        self.acknowledged += other.acknowledged;
        self.expired += other.expired;
        self.dropped += other.dropped;
        self.purged += other.purged;
        self.restarts += other.restarts;
    }
}
