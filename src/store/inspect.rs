//! A look at a store from outside, also while a hub runs on it: nothing is written, no lock taken.
//!
//! Files then change and vanish between two looks. So a pass that meets a vanished file is done
//! again, and damage counts only where two passes find it.

mod snapshot;
pub mod verify;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::control::{Cursor, lane_number, of_lane, priority_at};
use super::disk::{Disk, RealDisk};
use super::frame::{HEADER_BYTES, HEADER_BYTES_MAX, Header};
use super::index::{Entry, Position};
use super::journal::{Subscription, sessions};
use super::layout::{FORMAT, SEGMENTS, salt, segment_path};
use super::recover::{Damaged, Recovered, recover};
use super::segment::Segment;
use super::state;
use crate::message::Priority;
use snapshot::Snapshot;

/// Passes until files have kept still for the length of one.
const PASSES_MAX: usize = 20;

/// What waits in one lane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaneReport {
    /// The endpoint, as `/status` shows it.
    pub endpoint: String,
    /// The priority.
    pub priority: Priority,
    /// Messages that wait, those that have expired included until the hub gives them up.
    pub messages: u64,
    /// Their bytes, as quotas count them.
    pub bytes: u64,
    /// The oldest of them: its seq, and when it was stored in milliseconds since 1970.
    pub oldest: Option<(u64, u64)>,
    /// Segments that hold some of them.
    pub segments: u64,
}

/// What a store holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Inspection {
    /// The store's id.
    pub store_id: u64,
    /// It was closed in good order. False while a hub runs on it, and after a crash.
    pub was_closed: bool,
    /// What waits, by endpoint and priority. A known endpoint has at least one row.
    pub lanes: Vec<LaneReport>,
    /// Segments in use.
    pub segments: u64,
    /// Bytes of their files.
    pub segment_bytes: u64,
    /// Segments that wait to be used, or used again.
    pub spares: u64,
    /// Bytes of their files.
    pub spare_bytes: u64,
    /// Sessions that are kept: the identity, and its subscriptions.
    pub sessions: BTreeMap<String, Vec<Subscription>>,
    /// Acknowledged things that cannot be read any more, in sentences.
    pub damage: Vec<String>,
    /// What else was noticed.
    pub remarks: Vec<String>,
}

impl Inspection {
    /// The names of all endpoints, sorted.
    #[must_use]
    pub fn endpoints(&self) -> BTreeSet<&str> {
        self.lanes
            .iter()
            .map(|lane| lane.endpoint.as_str())
            .collect()
    }
}

/// Looks at the store in `root`.
///
/// # Errors
/// There is none (`NotFound`), it cannot be read, or a newer version wrote it.
pub fn inspect(root: &Path) -> io::Result<Inspection> {
    let mut before: Option<Inspection> = None;
    passes(root, |disk| {
        let mut found = look(disk)?;
        let first = before.replace(found.clone());
        if found.damage.is_empty() {
            return Ok(Some(found));
        }
        Ok(first.map(|first| {
            found.damage.retain(|damage| first.damage.contains(damage));
            found
        }))
    })
}

/// Does passes until one has a result.
fn passes<T>(
    root: &Path,
    mut pass: impl FnMut(&Snapshot) -> io::Result<Option<T>>,
) -> io::Result<T> {
    let mut vanished = io::Error::from(io::ErrorKind::NotFound);
    for _ in 0..PASSES_MAX {
        let real = RealDisk::existing(root);
        if real.list(SEGMENTS)?.is_empty() && real.open(FORMAT).is_err() {
            let what = format!("{}: there is no store", root.display());
            return Err(io::Error::new(io::ErrorKind::NotFound, what));
        }
        match pass(&Snapshot::new(Arc::new(real))) {
            Ok(Some(done)) => return Ok(done),
            Ok(None) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => vanished = error,
            Err(error) => return Err(error),
        }
    }
    Err(vanished)
}

fn look(disk: &Snapshot) -> io::Result<Inspection> {
    let recovered = recover(disk, false)?;
    let store_id = recovered.store_id.unwrap_or_default();
    let mut remarks = recovered.remarks.clone();
    let lanes = lanes(disk, &recovered, &mut remarks)?;
    let kept = state::read::load(disk, store_id)?;
    let (sessions, of_state) = sessions(kept.values, kept.damage);
    let damaged = recovered.damaged.iter().map(Damaged::sentence);
    let idle = [&recovered.spares, &recovered.free, &recovered.obsolete];
    let idle = || idle.into_iter().flatten();
    let segments = recovered.catalog.values();
    Ok(Inspection {
        store_id,
        was_closed: recovered.was_closed(),
        lanes,
        segments: recovered.catalog.len() as u64,
        segment_bytes: segments.map(|one| one.size.load(Ordering::Acquire)).sum(),
        spares: idle().count() as u64,
        spare_bytes: idle().map(|(_, size)| size).sum(),
        sessions,
        damage: damaged.chain(of_state).collect(),
        remarks,
    })
}

/// What waits in every lane, in the order of endpoints and priorities.
fn lanes(
    disk: &Snapshot,
    recovered: &Recovered,
    remarks: &mut Vec<String>,
) -> io::Result<Vec<LaneReport>> {
    let mut found: BTreeMap<(String, usize), LaneReport> = BTreeMap::new();
    for number in recovered.notes.endpoints.keys() {
        let lane = lane_number(*number, Priority::DEFAULT.index());
        found.insert(key_of(recovered, lane), empty(recovered, lane));
    }
    let nothing = Cursor::default();
    for segment in recovered.catalog.values() {
        for part in segment.summaries() {
            let cursor = recovered.notes.cursors.get(&part.lane).unwrap_or(&nothing);
            if part.last_seq <= cursor.floor {
                continue;
            }
            let list = list_of(disk, recovered, segment, part.lane, remarks)?;
            let waits =
                |entry: &Entry| entry.seq > cursor.floor && !cursor.acked.contains(&entry.seq);
            let mut waiting = Position::default().entries_of(&list).filter(waits);
            let Some(first) = waiting.next() else {
                continue;
            };
            let report = found
                .entry(key_of(recovered, part.lane))
                .or_insert_with(|| empty(recovered, part.lane));
            if report.messages == 0 {
                report.oldest = stored_ms(disk, recovered, segment.id, &first);
            }
            report.segments += 1;
            for entry in std::iter::once(first).chain(waiting) {
                report.messages += 1;
                report.bytes += entry.bytes;
            }
        }
    }
    Ok(found.into_values().collect())
}

fn list_of(
    disk: &Snapshot,
    recovered: &Recovered,
    segment: &Segment,
    lane: u32,
    remarks: &mut Vec<String>,
) -> io::Result<Vec<u8>> {
    let disk = (disk as &dyn Disk, recovered.store_id.unwrap_or_default());
    segment.list_or_rebuild(disk, lane, 0, |error| {
        remarks.push(format!("{error}; counted from its frames"));
    })
}

/// When a message was stored, from its frame; `None` where that cannot be read.
fn stored_ms(
    disk: &Snapshot,
    recovered: &Recovered,
    segment: u64,
    entry: &Entry,
) -> Option<(u64, u64)> {
    let file = disk.open(&segment_path(segment)).ok()?;
    let salt = salt(recovered.store_id?, segment);
    for length in [HEADER_BYTES * 4, HEADER_BYTES_MAX] {
        let mut bytes = vec![0; length];
        let read = file.read_at(&mut bytes, entry.offset).ok()?;
        let header = Header::read(bytes.get(..read)?, salt).ok();
        if let Some(header) = header.filter(|header| header.seq == entry.seq) {
            return Some((header.seq, header.time_ms));
        }
    }
    None
}

fn key_of(recovered: &Recovered, lane: u32) -> (String, usize) {
    (endpoint_of(recovered, lane), of_lane(lane).1)
}

fn empty(recovered: &Recovered, lane: u32) -> LaneReport {
    LaneReport {
        endpoint: endpoint_of(recovered, lane),
        priority: priority_of(lane),
        messages: 0,
        bytes: 0,
        oldest: None,
        segments: 0,
    }
}

/// The name of a lane's endpoint; a text with its number where the name is lost.
fn endpoint_of(recovered: &Recovered, lane: u32) -> String {
    let (number, _) = of_lane(lane);
    let name = recovered.notes.endpoints.get(&number);
    name.map_or_else(|| format!("unknown-{number:07x}"), String::clone)
}

fn priority_of(lane: u32) -> Priority {
    priority_at(of_lane(lane).1)
}
