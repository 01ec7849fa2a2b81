//! One lane of a queue: the messages of one endpoint and priority, oldest first.
//!
//! ```text
//! in flight | ready (in memory) | gap (on disk only) | tail (in memory)
//! ```
//!
//! A lane whose receiver keeps up has no gap. One that falls behind, or has no receiver, keeps the
//! gap as two numbers: where to read on, and how many messages lie there. The tail collects what
//! arrives while the gap is nearly read, so that the lane meets the present again.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use super::clock::TrustedClock;
use super::control::{ACKED_MAX, Cursor};
use super::index::{Entry, Summary};
use crate::message::Message;

/// What arrives behind a gap of more messages than this stays on disk.
const TAIL_GAP_MAX: usize = 4096;

/// A message in memory.
#[derive(Debug)]
pub(super) struct Waiting {
    pub seq: u64,
    /// In seconds of the trusted clock; 0: never.
    pub expires_s: u32,
    pub message: Arc<Message>,
}

/// A message handed out and not acknowledged.
#[derive(Debug)]
pub(super) struct InFlight {
    pub seq: u64,
    pub bytes: u64,
    pub expires_s: u32,
    /// The message itself, where there is no disk to read it from again.
    pub message: Option<Arc<Message>>,
}

/// Messages that are on disk only.
#[derive(Debug, Default)]
pub(super) struct Gap {
    /// The first seq that may be one of them.
    pub from: u64,
    pub messages: usize,
    pub bytes: u64,
}

/// What the lists of a damaged store hold, and the counts above them do not.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub(super) struct Miscount {
    /// Messages that were not counted.
    pub messages: usize,
    /// Bytes that were not counted.
    pub bytes: u64,
    /// Bytes that were counted and are not there.
    pub too_many_bytes: u64,
}

/// One lane.
#[derive(Debug, Default)]
pub(super) struct Lane {
    pub in_flight: VecDeque<InFlight>,
    pub ready: VecDeque<Waiting>,
    pub gap: Option<Gap>,
    pub tail: VecDeque<Waiting>,
    /// Done with, though an older one is not.
    pub acked: BTreeSet<u64>,
    /// The same for all between a first and a last.
    pub dropped: Vec<(u64, u64)>,
    /// Put back though the receiver may have them: they do not expire any more.
    pub sent: BTreeSet<u64>,
    /// The newest message.
    pub last_seq: u64,
    /// Counts up when what a reader may be reading is no longer what follows.
    pub epoch: u64,
    /// The cursor changed since it was last noted.
    pub is_dirty: bool,
}

/// What a disk read found.
#[derive(Debug)]
pub(super) struct Read {
    pub entry: Entry,
    /// `None`: damaged.
    pub found: Option<(u32, Arc<Message>)>,
}

impl Read {
    /// How long the message is: its own frame knows that best.
    pub fn bytes(&self) -> u64 {
        match &self.found {
            Some((_, message)) => message.bytes(),
            None => self.entry.bytes,
        }
    }
}

/// Where to read on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Request {
    pub from: u64,
    /// Messages from here on are in memory.
    pub to: u64,
    pub epoch: u64,
    /// The newest message that could lie there.
    pub last_seq: u64,
}

impl Lane {
    /// Messages that wait.
    pub fn waiting(&self) -> usize {
        let gap = self.gap.as_ref().map_or(0, |gap| gap.messages);
        self.ready.len() + gap + self.tail.len()
    }

    /// Whether nothing waits and nothing is in flight.
    pub fn is_empty(&self) -> bool {
        self.in_flight.is_empty() && self.waiting() == 0
    }

    /// Bytes of the messages that wait.
    pub fn waiting_bytes(&self) -> u64 {
        self.gap.as_ref().map_or(0, |gap| gap.bytes) + self.memory_bytes()
    }

    /// Bytes of the messages in memory that wait.
    pub fn memory_bytes(&self) -> u64 {
        bytes_of(&self.ready) + bytes_of(&self.tail)
    }

    /// The oldest message that is not done with; one past the newest where all are.
    pub fn oldest(&self) -> u64 {
        let in_flight = self.in_flight.front().map(|flight| flight.seq);
        let ready = self.ready.front().map(|waiting| waiting.seq);
        let gap = self.gap.as_ref().map(|gap| gap.from);
        let tail = self.tail.front().map(|waiting| waiting.seq);
        let all = [in_flight, ready, gap, tail];
        all.into_iter().flatten().min().unwrap_or(self.last_seq + 1)
    }

    /// The cursor, to be kept on disk.
    pub fn cursor(&self, lane: u32) -> Cursor {
        Cursor {
            lane,
            floor: self.oldest() - 1,
            acked: self.acked.iter().take(ACKED_MAX).copied().collect(),
        }
    }

    /// Adds a new message behind all others: to memory if `cached`.
    pub fn push(&mut self, waiting: Waiting, cached: bool) -> bool {
        self.last_seq = waiting.seq;
        let Some(gap) = &mut self.gap else {
            if cached {
                self.ready.push_back(waiting);
                return true;
            }
            self.gap = Some(Gap {
                from: waiting.seq,
                messages: 1,
                bytes: waiting.message.bytes(),
            });
            return false;
        };
        if cached && (!self.tail.is_empty() || gap.messages <= TAIL_GAP_MAX) {
            self.tail.push_back(waiting);
            return true;
        }
        gap.messages += 1;
        gap.bytes += waiting.message.bytes();
        false
    }

    /// Forgets the tail's messages, which are on disk too. Returns the bytes given back.
    pub fn forget_tail(&mut self) -> u64 {
        let Some(gap) = &mut self.gap else {
            return 0;
        };
        let bytes = bytes_of(&self.tail);
        gap.messages += self.tail.len();
        gap.bytes += bytes;
        self.tail = VecDeque::new();
        bytes
    }

    /// Forgets all messages in memory, which are on disk too. Returns the bytes given back.
    pub fn forget(&mut self) -> u64 {
        let tail = self.forget_tail();
        let Some(first) = self.ready.front().map(|waiting| waiting.seq) else {
            return tail;
        };
        let bytes = bytes_of(&self.ready);
        let gap = self.gap.get_or_insert_default();
        gap.from = first;
        gap.messages += self.ready.len();
        gap.bytes += bytes;
        self.ready = VecDeque::new();
        self.epoch += 1;
        tail + bytes
    }

    /// Takes a message that waited into flight.
    pub fn launch(&mut self, flight: InFlight) {
        let place = match self.in_flight.back() {
            Some(last) if last.seq > flight.seq => self
                .in_flight
                .partition_point(|other| other.seq < flight.seq),
            _ => self.in_flight.len(),
        };
        self.in_flight.insert(place, flight);
    }

    /// Takes a message out of flight.
    pub fn land(&mut self, seq: u64) -> Option<InFlight> {
        let at = match self.in_flight.front() {
            Some(front) if front.seq == seq => 0,
            _ => self.flight_at(seq)?,
        };
        self.in_flight.remove(at)
    }

    fn flight_at(&self, seq: u64) -> Option<usize> {
        let found = self
            .in_flight
            .binary_search_by_key(&seq, |flight| flight.seq);
        found.ok()
    }

    /// A message in flight was acknowledged; what it took.
    pub fn acknowledge(&mut self, seq: u64) -> Option<u64> {
        let flight = self.land(seq)?;
        self.done(seq);
        Some(flight.bytes)
    }

    /// A message is done with, acknowledged or given up: it must not come again, even if what is
    /// in flight before it is read anew.
    pub fn done(&mut self, seq: u64) {
        let oldest = self.oldest();
        if seq > oldest {
            self.acked.insert(seq);
        }
        self.sent.remove(&seq);
        self.prune(oldest);
        self.is_dirty = true;
    }

    /// All messages of the lane from `first` to `last` are done with.
    pub fn all_done(&mut self, first: u64, last: u64) {
        if first == last {
            self.done(first);
        } else if last > self.oldest() {
            self.dropped.push((first, last));
        }
        self.is_dirty = true;
    }

    /// Forgets what lies below the oldest message.
    pub fn prune(&mut self, oldest: u64) {
        while self.acked.first().is_some_and(|acked| *acked < oldest) {
            self.acked.pop_first();
        }
        while self.sent.first().is_some_and(|sent| *sent < oldest) {
            self.sent.pop_first();
        }
        if !self.dropped.is_empty() {
            self.dropped.retain(|(_, last)| *last >= oldest);
        }
    }

    /// Remembers messages in flight that must not expire when they are put back.
    pub fn keep_sent(&mut self, seqs: &[u64]) {
        let in_flight = seqs.iter().filter(|seq| self.flight_at(**seq).is_some());
        let in_flight: Vec<u64> = in_flight.copied().collect();
        self.sent.extend(in_flight);
    }

    /// Whether a message that waits has expired.
    pub fn is_expired(
        &self,
        (clock, now_ms): (&TrustedClock, u64),
        (expires_s, seq): (u32, u64),
    ) -> bool {
        clock.is_expired(now_ms, expires_s, seq) && !self.sent.contains(&seq)
    }

    /// Puts messages in flight back to their places: in memory where they are, else in the gap.
    /// Returns the bytes in memory that were given back.
    pub fn release(&mut self, seqs: &[u64]) -> u64 {
        let mut forgotten = 0;
        for seq in seqs {
            let Some(flight) = self.land(*seq) else {
                continue;
            };
            if let Some(message) = flight.message {
                let place = self
                    .ready
                    .partition_point(|waiting| waiting.seq < flight.seq);
                let waiting = Waiting {
                    seq: flight.seq,
                    expires_s: flight.expires_s,
                    message,
                };
                self.ready.insert(place, waiting);
                continue;
            }
            forgotten += self.forget();
            let gap = self.gap.get_or_insert_with(|| Gap {
                from: flight.seq,
                ..Gap::default()
            });
            gap.from = gap.from.min(flight.seq);
            gap.messages += 1;
            gap.bytes += flight.bytes;
            self.epoch += 1;
        }
        forgotten
    }

    /// Where a reader has to read on, if there is a gap.
    pub fn request(&self) -> Option<Request> {
        let gap = self.gap.as_ref()?;
        let to = self.tail.front().map_or(u64::MAX, |waiting| waiting.seq);
        Some(Request {
            from: gap.from,
            to,
            epoch: self.epoch,
            last_seq: self.last_seq.min(to - 1),
        })
    }

    /// Whether a message read from disk is one that waits.
    pub fn awaits(&self, seq: u64) -> bool {
        let dropped = |(first, last): &(u64, u64)| (*first..=*last).contains(&seq);
        let is_done = self.acked.contains(&seq) || self.dropped.iter().any(dropped);
        !is_done && self.flight_at(seq).is_none()
    }

    /// Whether a message on disk is still needed: it waits, or is in flight.
    pub fn needs(&self, seq: u64) -> bool {
        seq >= self.oldest() && (self.awaits(seq) || self.flight_at(seq).is_some())
    }

    /// Whether some messages of a segment's part may be done with, though older ones are not.
    pub fn has_exceptions(&self, part: &Summary) -> bool {
        let overlaps = |(from, to): &(u64, u64)| *from <= part.last_seq && *to >= part.first_seq;
        !self.acked.is_empty() || !self.in_flight.is_empty() || self.dropped.iter().any(overlaps)
    }

    /// Moves the beginning of the gap; without messages in it there is none, and the tail is next.
    /// What was found is right where it contradicts what was counted.
    pub fn advance(&mut self, from: u64, messages: usize, bytes: u64) -> Miscount {
        let Some(gap) = &mut self.gap else {
            return Miscount::default();
        };
        let mut miscount = Miscount {
            messages: messages.saturating_sub(gap.messages),
            bytes: bytes.saturating_sub(gap.bytes),
            too_many_bytes: 0,
        };
        gap.from = gap.from.max(from);
        gap.messages = gap.messages.saturating_sub(messages);
        gap.bytes = gap.bytes.saturating_sub(bytes);
        if gap.messages == 0 {
            miscount.too_many_bytes = gap.bytes;
            self.gap = None;
            self.ready.append(&mut self.tail);
        }
        let oldest = self.oldest();
        self.prune(oldest);
        miscount
    }

    /// Gives up what lies in the gap of one segment. `messages` and `bytes` are those that waited.
    pub fn drop_part(&mut self, part: &Summary, messages: usize, bytes: u64) -> Miscount {
        self.dropped.push((part.first_seq, part.last_seq));
        let from = self.gap.as_ref().map_or(0, |gap| gap.from);
        let from = if from >= part.first_seq && from <= part.last_seq {
            part.last_seq + 1
        } else {
            from
        };
        self.epoch += 1;
        self.is_dirty = true;
        self.advance(from, messages, bytes)
    }

    /// Whether a segment's part of the lane is still needed.
    pub fn pins(&self, first: u64, last: u64) -> bool {
        if self.oldest() > last {
            return false;
        }
        let covered = |(from, to): &(u64, u64)| *from <= first && *to >= last;
        if !self.dropped.iter().any(covered) {
            return true;
        }
        let inside = |seq: u64| (first..=last).contains(&seq);
        self.in_flight.iter().any(|flight| inside(flight.seq))
            || self
                .ready
                .iter()
                .chain(&self.tail)
                .any(|waiting| inside(waiting.seq))
    }
}

fn bytes_of(messages: &VecDeque<Waiting>) -> u64 {
    let bytes = messages.iter().map(|waiting| waiting.message.bytes());
    bytes.sum()
}
