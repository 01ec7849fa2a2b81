//! Reads a lane from disk, a window at a time: from segment to segment by their lists, many frames
//! with one read where they lie close together.

use std::io;
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::disk::DiskFile;
use super::frame::{HEADER_BYTES_MAX, Header, Kind};
use super::index::{Entry, Position, Summary};
use super::lane::{Read, Request};
use super::layout::{salt, segment_path};
use super::log::Log;
use super::record::Decoder;
use super::segment::Segment;
use crate::message::Message;

/// Messages of one window.
const WINDOW_MESSAGES: usize = 2048;
/// Bytes of one window; one message may go beyond.
const WINDOW_BYTES: u64 = 512 * 1024;
/// Frames with no more than this between them are read together.
const JOIN_BYTES: u64 = 16 * 1024;
/// What a frame may have beside the message as quotas count it: header, lanes, topic.
const EXTRA_BYTES: u64 = 512;

/// The place that a lane was read up to.
#[derive(Debug, Default)]
pub(super) struct Reader {
    lane: u32,
    /// Everything below was read.
    next_seq: u64,
    at: Option<Place>,
    decoder: Decoder,
    /// Something was read since [`Reader::rests`] was asked.
    is_used: bool,
}

#[derive(Debug)]
struct Place {
    segment: Arc<Segment>,
    file: Arc<dyn DiskFile>,
    /// A stretch of the lane's list.
    list: Vec<u8>,
    /// Bytes of the list before that stretch.
    before: usize,
    position: Position,
}

/// What was read: the messages, where to go on, and whether nothing asked for is missing.
pub(super) type Window = (Vec<Read>, u64, bool);

impl Reader {
    /// A reader of a lane that has not begun.
    pub fn new(lane: u32) -> Self {
        Self {
            lane,
            ..Self::default()
        }
    }

    /// Whether nothing was read since this was asked last.
    pub fn rests(&mut self) -> bool {
        !std::mem::take(&mut self.is_used)
    }

    /// Reads on. `received_ms` turns a frame's trusted time into the hub's.
    ///
    /// # Errors
    /// A list or a file cannot be opened; damaged messages are no error.
    pub fn window(
        &mut self,
        log: &Log,
        request: Request,
        received_ms: &dyn Fn(u64) -> u64,
    ) -> io::Result<Window> {
        self.is_used = true;
        // Lists are complete up to here before the first of them is looked at.
        let kept = log.kept();
        if self.next_seq != request.from {
            self.at = None;
            self.next_seq = request.from;
        }
        let mut entries: Vec<Entry> = Vec::new();
        let mut bytes = 0;
        let mut at_end = false;
        while entries.len() < WINDOW_MESSAGES && bytes < WINDOW_BYTES {
            let entry = self.next_entry(log, entries.is_empty())?;
            // Those from `to` on are in memory.
            let Some(entry) = entry.filter(|entry| entry.seq < request.to) else {
                at_end = true;
                break;
            };
            if entry.seq >= request.from {
                bytes += entry.bytes;
                entries.push(entry);
            }
        }
        // Nothing that is written yet lies before the first that is not.
        let written = if at_end {
            request.from.max(kept + 1).min(request.to)
        } else {
            request.from
        };
        let next = entries.last().map_or(written, |entry| entry.seq + 1);
        let is_all = at_end && entries.is_empty() && kept >= request.last_seq;
        let read = match &self.at {
            Some(place) => place.read(log, self.lane, &entries, &mut self.decoder, received_ms),
            None => Vec::new(),
        };
        self.next_seq = next;
        if at_end && request.to != u64::MAX {
            // The entry that was looked at last may be asked for yet.
            self.at = None;
        }
        Ok((read, next, is_all))
    }

    /// The entry here. A window stays in one segment: with `may_move`, the next one is entered.
    fn next_entry(&mut self, log: &Log, may_move: bool) -> io::Result<Option<Entry>> {
        loop {
            if let Some(place) = &mut self.at {
                if let Some(entry) = place.position.next(&place.list) {
                    return Ok(Some(entry));
                }
                let sealed = place.segment.is_sealed();
                let before = place.before + place.list.len();
                let more = list_of(log, &place.segment, self.lane, before)?;
                place.before = before;
                place.list = more;
                place.position.go_on();
                if !place.list.is_empty() {
                    continue;
                }
                if !sealed || !may_move {
                    return Ok(None);
                }
            }
            if !self.enter(log)? {
                return Ok(None);
            }
        }
    }

    /// Goes to the next segment that has something of the lane; false if there is none.
    fn enter(&mut self, log: &Log) -> io::Result<bool> {
        let behind = match &self.at {
            Some(place) => Bound::Excluded(place.segment.id),
            None => Bound::Unbounded,
        };
        loop {
            let found = {
                let catalog = log.catalog();
                let mut segments = catalog.range((behind, Bound::Unbounded));
                segments.find_map(|(_, segment)| {
                    let part = segment.summary(self.lane)?;
                    (part.last_seq >= self.next_seq).then(|| Arc::clone(segment))
                })
            };
            let Some(segment) = found else {
                return Ok(false);
            };
            match self.open(log, &segment) {
                // What is behind it can be read; what was in it is counted at the end.
                Err(error) if error.kind() == io::ErrorKind::NotFound => log.vanished(&segment),
                opened => {
                    self.at = Some(opened?);
                    return Ok(true);
                }
            }
        }
    }

    fn open(&self, log: &Log, segment: &Arc<Segment>) -> io::Result<Place> {
        Ok(Place {
            list: list_of(log, segment, self.lane, 0)?,
            file: log.disk.open(&segment_path(segment.id))?,
            before: 0,
            position: Position::default(),
            segment: Arc::clone(segment),
        })
    }
}

impl Place {
    fn read(
        &self,
        log: &Log,
        lane: u32,
        entries: &[Entry],
        decoder: &mut Decoder,
        received_ms: &dyn Fn(u64) -> u64,
    ) -> Vec<Read> {
        let salt = salt(log.store_id, self.segment.id);
        let mut read = Vec::with_capacity(entries.len());
        let mut rest = entries;
        while let Some(first) = rest.first() {
            let mut end = first.offset + first.bytes + EXTRA_BYTES;
            let joined = rest.iter().skip(1).take_while(|next| {
                let near = next.offset <= end + JOIN_BYTES;
                let joins = near && next.offset - first.offset < 2 * WINDOW_BYTES;
                if joins {
                    end = next.offset + next.bytes + EXTRA_BYTES;
                }
                joins
            });
            let count = 1 + joined.count();
            let (run, after) = rest.split_at_checked(count).unwrap_or((rest, &[]));
            rest = after;
            let data_end = self.segment.data_end.load(Ordering::Acquire);
            let length = end.min(data_end).saturating_sub(first.offset) as usize;
            let bytes = read_twice(&*self.file, first.offset, length);
            for entry in run {
                let at = (entry.offset - first.offset) as usize;
                let frame = bytes.get(at..).unwrap_or_default();
                let mut found = decode(frame, entry, (lane, salt), decoder, received_ms);
                if found.is_none() {
                    let left = data_end.saturating_sub(entry.offset) as usize;
                    let length = frame_bytes(&*self.file, entry, salt).min(left);
                    let again = read_twice(&*self.file, entry.offset, length);
                    found = decode(&again, entry, (lane, salt), decoder, received_ms);
                    if found.is_none() {
                        log.quarantine(self.segment.id, entry.offset, &again);
                    }
                }
                let entry = *entry;
                read.push(Read { entry, found });
            }
        }
        read
    }
}

/// The bytes of a lane's list from `from` on; made anew from the frames where it is damaged.
fn list_of(log: &Log, segment: &Segment, lane: u32, from: usize) -> io::Result<Vec<u8>> {
    let disk = (&*log.disk, log.store_id);
    let before = segment.summary(lane);
    let list = segment.list_or_rebuild(disk, lane, from, |error| {
        tracing::warn!(%error, "made anew from its frames");
    })?;
    let (had, has) = (before, segment.summary(lane));
    let messages = |part: Option<Summary>| part.map_or(0, |part| part.messages);
    if let Some(part) = had.filter(|_| messages(has) < messages(had)) {
        // They are counted when the rest of the queue was read; here it is known which they are.
        let lost = messages(had) - messages(has);
        let (first_seq, last_seq) = (part.first_seq, part.last_seq);
        let file = segment_path(segment.id);
        tracing::error!(
            file,
            lost,
            first_seq,
            last_seq,
            "messages are damaged on disk"
        );
    }
    Ok(list)
}

/// What can be read, at the second try if need be.
fn read_twice(file: &dyn DiskFile, offset: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    let read = file
        .read_at(&mut bytes, offset)
        .or_else(|_| file.read_at(&mut bytes, offset));
    bytes.truncate(read.unwrap_or(0));
    bytes
}

/// The length that a frame's own header gives it.
fn frame_bytes(file: &dyn DiskFile, entry: &Entry, salt: u32) -> usize {
    let guess = (entry.bytes + EXTRA_BYTES) as usize;
    let front = read_twice(file, entry.offset, HEADER_BYTES_MAX);
    Header::read(&front, salt).map_or(guess, |header| header.frame_bytes())
}

fn decode(
    frame: &[u8],
    entry: &Entry,
    (lane, salt): (u32, u32),
    decoder: &mut Decoder,
    received_ms: &dyn Fn(u64) -> u64,
) -> Option<(u32, Arc<Message>)> {
    let header = Header::read(frame, salt).ok()?;
    if header.seq != entry.seq || header.kind != Kind::Data {
        return None;
    }
    let own = header.lanes(frame).find(|own| own.lane == lane)?;
    let body = header.body(frame).ok()?;
    let message = decoder.decode(&body, received_ms(header.time_ms))?;
    Some((own.expires_s, Arc::new(message)))
}
