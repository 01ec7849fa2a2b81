//! What happens to a queue without its reader: it is read on from disk, and messages are given up.

use std::sync::Arc;

use super::clock::TrustedClock;
use super::lane::{Miscount, Read, Request, Waiting};
use super::queue::{Cache, State, earlier};
use super::{Loss, LossReason};
use crate::mailbox::Mailbox;
use crate::message::Priority;

impl State {
    /// Has messages in flight not expire when they are put back.
    pub fn keep_sent(&mut self, priority: Priority, seqs: &[u64]) {
        if let Some(lane) = self.lanes.get_mut(priority.index()) {
            lane.keep_sent(seqs);
        }
    }

    /// The message that is handed out next, if it has to be kept first.
    pub fn early(&self, kept: u64) -> Option<u64> {
        if !self.only_kept {
            return None;
        }
        let next = self.lanes.iter().find_map(|lane| lane.ready.front())?;
        (next.seq > kept).then_some(next.seq)
    }

    /// Corrects the counts by what was found on disk.
    pub(super) fn recount(&mut self, miscount: Miscount) {
        self.messages += miscount.messages;
        self.bytes += miscount.bytes;
        self.bytes = self.bytes.saturating_sub(miscount.too_many_bytes);
    }

    /// Takes what was read from disk for a lane, in the order of seqs. `next` is where to read on;
    /// with `is_all`, nothing that was asked for is missing. Returns the reader to be woken.
    pub fn refill(
        &mut self,
        (index, request): (usize, Request),
        (read, next, is_all): (Vec<Read>, u64, bool),
        time: (&TrustedClock, u64),
        cache: &Cache,
        losses: &mut Vec<Loss>,
    ) -> Option<Arc<Mailbox>> {
        let lane = self.lanes.get_mut(index)?;
        let now = lane.request().filter(|now| now.epoch == request.epoch)?;
        // What came while the disk was read is in memory, or was not looked for.
        let next = next.min(now.to);
        let is_all = is_all && now == request;
        let (mut messages, mut bytes, mut lost) = (0, 0, (0, 0));
        let mut runs: Vec<(u64, u64)> = Vec::new();
        let mut in_run = false;
        for one in read {
            let (seq, own_bytes) = (one.entry.seq, one.bytes());
            if seq >= now.to {
                break;
            }
            if !lane.awaits(seq) {
                in_run = false;
                continue;
            }
            messages += 1;
            bytes += own_bytes;
            let loss = match one.found {
                None => Loss::unread(LossReason::Damaged, (seq, seq), 1),
                Some((expires_s, message)) if lane.is_expired(time, (expires_s, seq)) => {
                    Loss::of(LossReason::Expired, seq, &message)
                }
                Some((expires_s, message)) => {
                    cache.take(own_bytes);
                    self.cached += own_bytes;
                    self.next_expiry_s = earlier(self.next_expiry_s, expires_s);
                    lane.ready.push_back(Waiting {
                        seq,
                        expires_s,
                        message,
                    });
                    in_run = false;
                    continue;
                }
            };
            losses.push(loss);
            lost = (lost.0 + 1, lost.1 + own_bytes);
            match runs.last_mut().filter(|_| in_run) {
                Some(run) => run.1 = seq,
                None => runs.push((seq, seq)),
            }
            in_run = true;
        }
        let miscount = lane.advance(next, messages, bytes);
        if let Some(gap) = lane.gap.as_ref().filter(|_| is_all) {
            // Counted, and nowhere to be found.
            let rest = (gap.messages, gap.bytes);
            let seqs = (request.from, next);
            losses.push(Loss::unread(LossReason::Damaged, seqs, rest.0));
            lost = (lost.0 + rest.0, lost.1 + rest.1);
            let _ = lane.advance(next, rest.0, rest.1);
        }
        for (first, last) in runs {
            lane.all_done(first, last);
        }
        lane.is_dirty |= lost.0 > 0;
        let woken = !lane.ready.is_empty() || lane.gap.is_none();
        self.recount(miscount);
        self.messages -= lost.0;
        self.bytes -= lost.1.min(self.bytes);
        (woken && std::mem::take(&mut self.idle))
            .then(|| self.consumer.clone())
            .flatten()
    }

    /// Gives up messages in memory that have expired; returns the bytes freed.
    pub fn expire(
        &mut self,
        (clock, now_ms): (&TrustedClock, u64),
        cache: &Cache,
        losses: &mut Vec<Loss>,
    ) -> u64 {
        if u64::from(self.next_expiry_s) * 1000 > clock.now_ms(now_ms) {
            return 0;
        }
        let mut next = u32::MAX;
        let mut freed = 0;
        let before = losses.len();
        for lane in &mut self.lanes {
            let lost = losses.len();
            for part in [&mut lane.ready, &mut lane.tail] {
                part.retain(|waiting| {
                    if lane.sent.contains(&waiting.seq) {
                        return true;
                    }
                    let alive = !clock.is_expired(now_ms, waiting.expires_s, waiting.seq);
                    if alive {
                        next = earlier(next, waiting.expires_s);
                    } else {
                        freed += waiting.message.bytes();
                        losses.push(Loss::of(LossReason::Expired, waiting.seq, &waiting.message));
                    }
                    alive
                });
            }
            for loss in losses.get(lost..).unwrap_or_default() {
                lane.done(loss.seqs.0);
            }
        }
        self.next_expiry_s = next;
        self.messages -= losses.len() - before;
        self.bytes -= freed;
        self.forgotten(freed, cache);
        freed
    }

    /// Gives up the oldest message in memory of the least urgent lane that has any message;
    /// `None`: it is on disk, or there is none.
    pub fn drop_oldest(&mut self, cache: &Cache) -> Option<Loss> {
        let lane = self
            .lanes
            .iter_mut()
            .rev()
            .find(|lane| lane.waiting() > 0)?;
        let waiting = lane.ready.pop_front()?;
        lane.done(waiting.seq);
        let bytes = waiting.message.bytes();
        self.messages -= 1;
        self.bytes -= bytes;
        self.forgotten(bytes, cache);
        Some(Loss::of(
            LossReason::DroppedOldest,
            waiting.seq,
            &waiting.message,
        ))
    }

    /// Gives up everything that waits; returns how many messages.
    pub fn purge(&mut self, cache: &Cache) -> usize {
        let mut messages = 0;
        let mut bytes = 0;
        let mut cached = 0;
        for lane in &mut self.lanes {
            messages += lane.waiting();
            bytes += lane.waiting_bytes();
            cached += lane.memory_bytes();
            lane.ready.clear();
            lane.tail.clear();
            lane.gap = None;
            lane.epoch += 1;
            lane.is_dirty = true;
            // What is in flight may be put back, and is then read without these.
            let mut first = lane.oldest();
            for flight in &lane.in_flight {
                if first < flight.seq {
                    lane.dropped.push((first, flight.seq - 1));
                }
                first = flight.seq + 1;
            }
            if !lane.in_flight.is_empty() && first <= lane.last_seq {
                lane.dropped.push((first, lane.last_seq));
            }
            let oldest = lane.oldest();
            lane.prune(oldest);
        }
        self.messages -= messages;
        self.bytes -= bytes;
        self.forgotten(cached, cache);
        messages
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::super::index::Entry;
    use super::super::lane::Gap;
    use super::*;
    use crate::identity::Identity;
    use crate::message::{Message, Origin};

    /// Messages of a queue whose gap was counted as `messages` of `bytes`, and that were found.
    fn found(messages: usize, bytes: u64, seqs: std::ops::Range<u64>) -> (State, Cache) {
        let (clock, cache) = (TrustedClock::new(0, 0, 1, None), Cache::default());
        let mut state = State::default();
        (state.messages, state.bytes) = (messages, bytes);
        let from = seqs.start;
        state.lanes[0].gap = Some(Gap {
            from,
            messages,
            bytes,
        });
        state.lanes[0].last_seq = seqs.end - 1;
        let request = state.lanes[0].request().unwrap();
        let next = seqs.end;
        let read = seqs.map(|seq| {
            let message = Message {
                origin: Arc::new(Origin::new(Identity::device("d"), None)),
                bag: Bytes::new(),
                payload: Bytes::from_static(b"found"),
                received_ms: 0,
            };
            let entry = Entry {
                seq,
                offset: 0,
                bytes: 9,
            };
            let found = Some((0, Arc::new(message)));
            Read { entry, found }
        });
        let read = (read.collect(), next, true);
        state.refill((0, request), read, (&clock, 0), &cache, &mut Vec::new());
        (state, cache)
    }

    #[test]
    fn what_is_found_counts_whatever_was_counted_before() {
        let consumer = Arc::default();
        for (messages, bytes) in [(2, 266), (1, 9), (1, 1 << 40), (2, 0)] {
            let (mut state, cache) = found(messages, bytes, 5..7);
            assert_eq!((state.messages, state.bytes, state.cached), (2, 266, 266));
            let mut fetched = Vec::new();
            let clock = TrustedClock::new(0, 0, 1, None);
            let out = (&mut fetched, &mut Vec::new());
            state.fetch(&consumer, (9, 999), (&clock, 0, 9), &cache, out);
            assert_eq!(fetched.len(), 2);
            for delivery in fetched {
                state.acknowledge(delivery.priority, delivery.seq).unwrap();
            }
            assert_eq!((state.messages, state.bytes, state.cached), (0, 0, 0));
        }
    }
}
