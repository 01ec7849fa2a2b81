//! Repacking: what is still needed of several segments moves into one, which takes the place of
//! the last of them. Seqs stay, so nothing is reordered. Without it, one message for an endpoint
//! that never comes would hold a whole segment.

use std::io::{self, IoSlice};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Store;
use super::control::of_lane;
use super::disk::{DiskFile, PAGE_BYTES};
use super::frame::{self, Header, Kind};
use super::index::{self, Entry, ListsByLane, Summary};
use super::keeper::{Keeper, Queues, by_number, pinned};
use super::lane::Lane;
use super::layout::{SEGMENTS, SegmentHeader, salt, segment_path};
use super::log::{Log, Spare};
use super::record::message_bytes;
use super::scan::{Found, Scanner};
use super::segment::Segment;

/// A segment is worth it when no more than this part of it is needed: one quarter.
const LIVE_PART: u64 = 4;
/// Copied with one write.
const CHUNK_BYTES: usize = 1 << 20;

impl Keeper {
    /// Repacks one run of neighbours, if there is one that pays; true if it did.
    pub(super) fn repack(&mut self, store: &Store, log: &Log) -> bool {
        let queues = by_number(store);
        let run = run_of(log, &queues);
        let Some(last) = run.last().cloned() else {
            return false;
        };
        // The last spare: the others are about to be written.
        let Some(spare) = log.last_spare() else {
            return false;
        };
        let (spare_id, spare_size) = (spare.id, spare.size);
        match copy(log, &queues, &run, &spare) {
            Ok(segment) => {
                let segment = Arc::new(segment);
                let size = segment.size.load(Ordering::Acquire);
                let old = last.size.load(Ordering::Acquire);
                log.file_bytes
                    .fetch_sub(spare_size - size, Ordering::Relaxed);
                log.file_bytes.fetch_sub(old, Ordering::Relaxed);
                let mut catalog = log.catalog();
                catalog.insert(last.id, segment);
                let mut front = log.front();
                for segment in run.iter().filter(|segment| segment.id != last.id) {
                    catalog.remove(&segment.id);
                    let size = segment.size.load(Ordering::Acquire);
                    self.freeing.insert(segment.id, size);
                    front.freed.push(segment.id);
                }
                front.note |= run.len() > 1;
                log.wake_writer(front);
                drop(catalog);
                // Places in the old files mean nothing in the new one.
                self.readers.clear();
                log.counters
                    .repacked
                    .fetch_add(run.len() as u64, Ordering::Relaxed);
                true
            }
            Err(error) => {
                tracing::warn!(%error, "segments could not be repacked");
                let _ = log.remove_file(&segment_path(spare_id), spare_size);
                false
            }
        }
    }
}

/// The first run of sealed neighbours with little in each, and together no more than one segment.
fn run_of(log: &Log, queues: &Queues) -> Vec<Arc<Segment>> {
    let room = log.options().segment_bytes / 2;
    let mut run: Vec<Arc<Segment>> = Vec::new();
    let mut total = 0;
    for segment in log.segments() {
        let parts = if segment.is_sealed() {
            pinned(queues, &segment)
        } else {
            Vec::new()
        };
        let known = parts
            .iter()
            .all(|part| queues.contains_key(&of_lane(part.lane).0));
        let live: u64 = parts.iter().map(|part| live_bytes(queues, part)).sum();
        let size = segment.size.load(Ordering::Acquire);
        let pays = live > 0 && known && live * LIVE_PART < size && size > 16 * PAGE_BYTES as u64;
        // Small ones join a run, but are none by themselves.
        let joins = live > 0 && known && live * LIVE_PART < log.options().segment_bytes;
        if (pays || (joins && !run.is_empty())) && total + live < room {
            total += live;
            run.push(segment);
        } else if !run.is_empty() {
            break;
        } else if pays {
            run.push(segment);
            break;
        }
    }
    run
}

/// About how much of a part is still needed, with its frames.
fn live_bytes(queues: &Queues, part: &Summary) -> u64 {
    let (number, index) = of_lane(part.lane);
    let Some(queue) = queues.get(&number) else {
        return u64::MAX / 1024;
    };
    let state = queue.lock();
    let oldest = state.lanes.get(index).map_or(0, Lane::oldest);
    let frames = u64::from(part.messages) * 64;
    let all = part.bytes + frames;
    if oldest <= part.first_seq {
        return all;
    }
    let span = part.last_seq - part.first_seq + 1;
    let left = (part.last_seq + 1).saturating_sub(oldest);
    (u128::from(all) * u128::from(left) / u128::from(span)) as u64 + 1
}

struct Target<'a> {
    file: &'a dyn DiskFile,
    at: u64,
    buf: Vec<u8>,
    lists: ListsByLane,
    frames: u64,
    last_seq: u64,
}

impl Target<'_> {
    fn flush(&mut self, log: &Log) -> io::Result<()> {
        self.file.write_at(&[IoSlice::new(&self.buf)], self.at)?;
        log.counters
            .written_bytes
            .fetch_add(self.buf.len() as u64, Ordering::Relaxed);
        self.at += self.buf.len() as u64;
        self.buf.clear();
        Ok(())
    }
}

/// Copies what is needed into the spare's file and gives it the last segment's name.
fn copy(log: &Log, queues: &Queues, run: &[Arc<Segment>], spare: &Spare) -> io::Result<Segment> {
    let (Some(first), Some(last)) = (run.first(), run.last()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let header = SegmentHeader {
        store_id: log.store_id,
        id: last.id,
        base_seq: first.base_seq,
        previous_id: 0,
        previous_last_seq: 0,
        time_ms: first.time_ms,
        repacked: true,
    };
    let mut target = Target {
        file: &*spare.file,
        at: 0,
        buf: header.encode(),
        lists: ListsByLane::new(),
        frames: 0,
        last_seq: first.base_seq.saturating_sub(1),
    };
    for source in run {
        copy_one(log, queues, source, last.id, &mut target)?;
    }
    let data_end = target.at + target.buf.len() as u64;
    target
        .buf
        .resize(target.buf.len().next_multiple_of(PAGE_BYTES), 0);
    target.flush(log)?;
    let seqs = (target.last_seq, target.frames);
    let ends = (spare.size, data_end);
    let begun = (first.base_seq, first.time_ms);
    let segment = Segment::growing(last.id, begun, ends, target.lists);
    segment.seal(&*spare.file, seqs, true)?;
    spare.file.sync_data()?;
    log.disk
        .rename(&segment_path(spare.id), &segment_path(last.id))?;
    if let Err(error) = log.disk.sync_dir(SEGMENTS) {
        // Whichever of the two files has the name after a loss of power will do.
        tracing::warn!(%error, "the store's folder could not be synced");
    }
    Ok(segment)
}

fn copy_one(
    log: &Log,
    queues: &Queues,
    source: &Segment,
    target_id: u64,
    target: &mut Target<'_>,
) -> io::Result<()> {
    let file = log.disk.open(&segment_path(source.id))?;
    let range = (PAGE_BYTES as u64, source.data_end.load(Ordering::Acquire));
    let own = salt(log.store_id, source.id);
    let seqs = (source.base_seq.saturating_sub(1), u64::MAX);
    let mut scanner = Scanner::new(&*file, own, range, seqs);
    while let Some(found) = scanner.next()? {
        let Found::Frame { header, bytes, .. } = found else {
            continue;
        };
        // Notes end a segment too.
        target.last_seq = target.last_seq.max(header.seq);
        // Damaged bodies move too: whoever meets them reports them.
        if header.kind != Kind::Data || !is_needed(queues, &header, bytes) {
            continue;
        }
        let entry = Entry {
            seq: header.seq,
            offset: target.at + target.buf.len() as u64,
            bytes: message_bytes(&header),
        };
        for lane in header.lanes(bytes) {
            index::add(&mut target.lists, lane.lane, entry, lane.expires_s);
        }
        let start = target.buf.len();
        target.buf.extend_from_slice(bytes);
        if let Some(frame) = target.buf.get_mut(start..) {
            frame::seal(frame, salt(log.store_id, target_id), header.durable_seq);
        }
        target.frames += 1;
        if target.buf.len() >= CHUNK_BYTES {
            target.flush(log)?;
        }
    }
    Ok(())
}

fn is_needed(queues: &Queues, header: &Header, bytes: &[u8]) -> bool {
    header.lanes(bytes).any(|lane| {
        let (number, index) = of_lane(lane.lane);
        let Some(queue) = queues.get(&number) else {
            return true;
        };
        let state = queue.lock();
        let lane = state.lanes.get(index);
        lane.is_some_and(|lane| lane.needs(header.seq))
    })
}
