//! What happens to a queue without its reader: it is read on from disk, and messages are given up.

use std::sync::Arc;

use super::clock::TrustedClock;
use super::lane::{Read, Request, Waiting};
use super::queue::{Cache, State, earlier};
use super::{Loss, LossReason};
use crate::mailbox::Mailbox;

impl State {
    /// Takes what was read from disk for a lane, in the order of seqs. `next` is where to read on;
    /// with `is_all`, nothing that was asked for is missing. Returns the reader to be woken.
    pub fn refill(
        &mut self,
        (index, request): (usize, Request),
        (read, next, is_all): (Vec<Read>, u64, bool),
        (clock, now_ms): (&TrustedClock, u64),
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
        for Read { entry, found } in read {
            let seq = entry.seq;
            if seq >= now.to {
                break;
            }
            if !lane.awaits(seq) {
                in_run = false;
                continue;
            }
            messages += 1;
            bytes += entry.bytes;
            let loss = match found {
                None => Loss::unread(LossReason::Damaged, (seq, seq), 1),
                Some((expires_s, message)) if clock.is_expired(now_ms, expires_s, seq) => {
                    Loss::of(LossReason::Expired, seq, &message)
                }
                Some((expires_s, message)) => {
                    cache.take(entry.bytes);
                    self.cached += entry.bytes;
                    self.next_expiry_s = earlier(self.next_expiry_s, expires_s);
                    let waiting = Waiting {
                        seq,
                        expires_s,
                        message,
                    };
                    lane.ready.push_back(waiting);
                    in_run = false;
                    continue;
                }
            };
            losses.push(loss);
            lost = (lost.0 + 1, lost.1 + entry.bytes);
            match runs.last_mut().filter(|_| in_run) {
                Some(run) => run.1 = seq,
                None => runs.push((seq, seq)),
            }
            in_run = true;
        }
        lane.advance(next, messages, bytes);
        if let Some(gap) = lane.gap.as_ref().filter(|_| is_all) {
            // Counted, and nowhere to be found.
            let rest = (gap.messages, gap.bytes);
            losses.push(Loss::unread(
                LossReason::Damaged,
                (request.from, next),
                rest.0,
            ));
            lost = (lost.0 + rest.0, lost.1 + rest.1);
            lane.advance(next, rest.0, rest.1);
        }
        for (first, last) in runs {
            lane.all_done(first, last);
        }
        lane.is_dirty |= lost.0 > 0;
        self.messages -= lost.0;
        self.bytes -= lost.1.min(self.bytes);
        let woken = !lane.ready.is_empty() || lane.gap.is_none();
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
