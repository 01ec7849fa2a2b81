//! What has to hold of a store, whatever its files held before it was opened.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use edgehub::store::disk::PAGE_BYTES;
use edgehub::store::frame::{Header, Kind, SYNC_WORD, read_u32};

use super::edits::{Files, salt, segment_of};
use super::memory_disk::MemoryDisk;
use super::rig::{ENDPOINTS, LaneKey, Rig, Target, WALL_MS, lane_of, options};

/// Of stores that are opened again; those before may have had others.
const SEGMENT_BYTES: u64 = 128 * 1024;
/// More than any of these stores can hold.
const COPIES_MAX: usize = 100_000;
const ZEROS: [u8; PAGE_BYTES] = [0; PAGE_BYTES];
const FRESH: &[u8] = b"after the edits";

type Taken = BTreeMap<LaneKey, BTreeMap<u64, Bytes>>;

/// Opens it; `None` where it says that a newer version wrote it.
fn open(disk: &Arc<MemoryDisk>, now_ms: u64) -> Option<Rig> {
    let time = (now_ms, WALL_MS + now_ms);
    match Rig::open(Arc::clone(disk) as _, options(SEGMENT_BYTES), time) {
        Ok((rig, _)) => Some(rig),
        Err(error) if error.kind() == io::ErrorKind::Unsupported => None,
        Err(error) => panic!("open: {error}"),
    }
}

/// Takes everything and acknowledges nothing.
fn take(rig: &Rig) -> Taken {
    let mut taken = Taken::new();
    let mut last: BTreeMap<LaneKey, u64> = BTreeMap::new();
    let mut copies = 0;
    for at in 0..ENDPOINTS {
        let mut idle = 0;
        while idle < 3 {
            let fetched = rig.fetch(at, 1000, &mut Vec::new());
            idle = if fetched.is_empty() { idle + 1 } else { 0 };
            for delivery in fetched {
                let lane = (at, lane_of(delivery.priority));
                let before = last.insert(lane, delivery.seq);
                assert!(
                    before < Some(delivery.seq),
                    "{lane:?}: {} after {before:?}",
                    delivery.seq
                );
                let payload = delivery.message.payload.clone();
                taken.entry(lane).or_default().insert(delivery.seq, payload);
                copies += 1;
                assert!(copies < COPIES_MAX);
            }
            rig.rest();
        }
    }
    taken
}

/// Everything in the files that has the right checksums.
fn sound(files: &Files<'_>, store_id: u64) -> HashSet<(u64, u32)> {
    let mut sound = HashSet::new();
    for (name, bytes) in files.bytes() {
        let Some(segment) = segment_of(name) else {
            continue;
        };
        let salt = salt(store_id, segment);
        let pages = bytes.chunks(PAGE_BYTES).zip((0..).step_by(PAGE_BYTES));
        let pages = pages.filter(|(page, _)| !ZEROS.starts_with(page));
        for at in pages.flat_map(|(page, at)| (at..at + page.len()).step_by(8)) {
            if read_u32(bytes, at) != Some(SYNC_WORD) {
                continue;
            }
            let Ok(header) = Header::read(&bytes[at..], salt) else {
                continue;
            };
            if let Ok(body) = header.body(&bytes[at..])
                && header.kind == Kind::Data
            {
                sound.insert((header.seq, crc32c::crc32c(body.payload)));
            }
        }
    }
    sound
}

/// Opening succeeds; what comes out was in the files with right checksums, in order; opened
/// again, the same comes, or more if the log was `forged`; a new message is kept and, unless it
/// was, is there after a kill.
pub fn check(files: &Files<'_>, forged: bool) {
    let disk = &files.disk();
    let now_ms = 10_000_000;
    let Some(rig) = open(disk, now_ms) else {
        return;
    };
    let first = take(&rig);
    let sound = sound(files, rig.store.id().unwrap());
    for (seq, payload) in first.values().flatten() {
        assert!(
            sound.contains(&(*seq, crc32c::crc32c(payload))),
            "{seq} was in no file"
        );
    }
    drop(rig);
    if !files.say_whose_they_are() {
        return;
    }
    let mut rig = open(disk, now_ms).expect("it opened before");
    let second = take(&rig);
    // A forged note may hide messages until its place has been written anew: then there are more.
    let is_there = |lane: &LaneKey, seq: &u64| {
        let lane = second.get(lane);
        lane.is_some_and(|messages| messages.contains_key(seq))
    };
    let mut all = first
        .iter()
        .flat_map(|(lane, messages)| messages.keys().map(move |seq| (lane, seq)));
    let is_less = !all.all(|(lane, seq)| is_there(lane, seq));
    assert!(
        first == second || (forged && !is_less),
        "{:?} and then {:?}",
        seqs(&first),
        seqs(&second)
    );
    let all: Vec<usize> = (0..ENDPOINTS).collect();
    let target = Target {
        endpoints: &all,
        lane: 1,
        ttl_ms: None,
    };
    let fresh = rig.append(target, &Bytes::from_static(FRESH));
    assert!(forged || fresh.is_some(), "no room for a new message");
    let fresh = fresh.unwrap_or_default();
    for _ in 0..8 {
        rig.write();
        rig.now_ms += 1000;
    }
    if forged {
        return;
    }
    assert!(rig.store.kept() >= fresh);
    drop(rig);
    let rig = open(disk, now_ms + 20_000).expect("it opened before");
    let third = take(&rig);
    for at in 0..ENDPOINTS {
        let payload = third.get(&(at, 1)).and_then(|lane| lane.get(&fresh));
        assert!(
            payload.is_some_and(|payload| payload == FRESH),
            "{fresh} is not at {at}"
        );
    }
}

fn seqs(taken: &Taken) -> Vec<(LaneKey, BTreeSet<u64>)> {
    let lanes = taken.iter();
    lanes
        .map(|(lane, messages)| (*lane, messages.keys().copied().collect()))
        .collect()
}
