//! Files of the store that go while the hub runs, or while it does not: what is left is delivered,
//! and what is lost is told.
#![allow(missing_docs, clippy::unwrap_used, clippy::indexing_slicing)]

mod common;

use std::fs;
use std::ops::Range;
use std::path::PathBuf;

use common::scene::{left_behind, queue, routes};
use common::wire::{self, numbered};
use common::{Hub, Setup, output};

const DROPPED: &str = "edgehub_messages_dropped_total";
const LOST: &str = "acknowledged messages are lost";
const MESSAGES: usize = 300;

/// Module a sends to an input of b, and segments are small.
fn small_segments() -> Setup {
    let mut setup = Setup::new(&routes(&[("a/out", "b/in")]), &["a", "b"]);
    setup.extra = "[store]\nsegment_bytes = \"1MiB\"\nmax_bytes = \"64MiB\"\n[limits]\n\
                   max_message_bytes = \"32KiB\"\n"
        .to_owned();
    setup
}

async fn send(hub: &Hub, numbers: Range<usize>) {
    let mut a = hub.connect("edge-1/a").await;
    let padded: Vec<_> = numbered(&output("a", "out", ""), numbers)
        .into_iter()
        .map(|(topic, number)| (topic, format!("{number:>16000}")))
        .collect();
    for some in padded.chunks(50) {
        wire::publish_many(&mut a, some).await;
    }
}

/// The store's segments that hold messages, in order.
fn segments(setup: &Setup) -> Vec<PathBuf> {
    let dir = fs::read_dir(setup.path("data/store/seg")).unwrap();
    let mut paths: Vec<_> = dir.map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| fs::read(path).unwrap().starts_with(b"EHUBSEG"));
    paths.sort();
    paths
}

/// Everything that comes, up to the last message, which must come.
async fn rest(hub: &Hub) -> Vec<usize> {
    let mut b = hub.connect("edge-1/b").await;
    let mut all = Vec::new();
    while all.last() != Some(&(MESSAGES - 1)) {
        let got = wire::take(&mut b).await;
        b.acknowledge(got.id.unwrap()).await.unwrap();
        all.push(got.body.trim().parse().unwrap());
    }
    all
}

#[tokio::test]
async fn a_newest_segment_that_goes_after_a_crash_is_missed() {
    let setup = small_segments();
    let hub = setup.start();
    left_behind(&hub, "b").await;
    send(&hub, 0..MESSAGES).await;
    let newest = segments(&setup).pop().unwrap();
    let id = u64::from_str_radix(newest.file_stem().unwrap().to_str().unwrap(), 16).unwrap();
    hub.until("it is written down that the segment was begun", |_| {
        let end = fs::read_to_string(setup.path("data/store/END")).unwrap_or_default();
        end.starts_with(&format!("{id:016x}"))
    });
    hub.kill();
    fs::remove_file(newest).unwrap();
    let hub = setup.start();
    assert!(hub.log_text().contains(LOST), "{}", hub.log_text());
    assert!(hub.metric(DROPPED, &["damaged"]) >= 1.0);
    assert!(queue(&hub, "b/in").0 < MESSAGES as u64);
}

#[tokio::test]
async fn a_segment_that_goes_while_the_hub_runs_stops_nothing() {
    let setup = small_segments();
    let hub = setup.start();
    left_behind(&hub, "b").await;
    send(&hub, 0..MESSAGES).await;
    hub.kill();
    let hub = setup.start();
    let all = segments(&setup);
    fs::remove_file(&all[all.len() / 2]).unwrap();
    let came = rest(&hub).await;
    assert!(came.is_sorted() && came.len() < MESSAGES);
    hub.until("the queue is empty", |hub| queue(hub, "b/in") == (0, 0));
    let lost = (MESSAGES - came.len()) as f64;
    hub.until("what is lost is counted", |hub| {
        hub.metric(DROPPED, &["damaged"]) == lost
    });
    assert!(hub.log_text().contains("a file of the store has gone"));
}
