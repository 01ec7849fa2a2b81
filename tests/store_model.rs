//! Random operations on a store, in memory and on a disk, against a model. The long run is
//! `cargo bench --bench store_sim -- --model memory|disk`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    missing_docs
)]

#[path = "store/model.rs"]
mod model;
#[path = "store/rig.rs"]
mod rig;
#[path = "store/sim_disk.rs"]
mod sim_disk;

use model::{Kind, Op, ops, run};
use proptest::prelude::*;

/// What once went wrong.
#[test]
fn what_is_purged_frees_its_room_and_does_not_come_again() {
    let append = |lane| Op::Append {
        first: 0,
        fan_out: 1,
        lane,
        size: 10,
        ttl_ms: None,
        is_patient: true,
    };
    let fetch = Op::Fetch {
        at: 0,
        room: 1,
        bytes: 1 << 20,
    };
    for kind in [Kind::Memory { drop_oldest: false }, Kind::Disk] {
        let appends = (0..5).map(|_| append(2));
        let mut ops: Vec<_> = appends.collect();
        ops.extend([fetch.clone(), Op::Purge { at: 0 }, Op::Reconnect { at: 0 }]);
        ops.extend([append(2), fetch.clone(), fetch.clone()]);
        let done = run(kind, &ops);
        assert_eq!((done.purged, done.delivered), (4, 3), "{done:?}");
    }
}

fn check(kind: Kind, cases: u32) {
    let config = ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::with_cases(cases)
    };
    proptest!(config, |(ops in ops(300))| {
        run(kind, &ops);
    });
}

#[test]
fn in_memory_it_agrees_with_the_model() {
    check(Kind::Memory { drop_oldest: false }, 200);
}

#[test]
fn in_memory_it_agrees_where_the_oldest_are_dropped() {
    check(Kind::Memory { drop_oldest: true }, 200);
}

#[test]
fn on_disk_it_agrees_with_the_model() {
    check(Kind::Disk, 60);
}
