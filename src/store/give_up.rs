//! Messages on disk that are given up: expired ones, and the oldest where that is the policy.

use std::sync::Arc;

use super::control::{lane_number, of_lane};
use super::index::{Position, Summary};
use super::keeper::{Keeper, by_number, pinned};
use super::log::Log;
use super::queue::{Queue, State};
use super::segment::Segment;
use super::{Loss, LossReason, Store};

impl Keeper {
    /// Gives up parts of segments in which a lane's messages have all expired, without reading.
    pub(super) fn expire(&self, store: &Store, log: &Log, now_ms: u64) {
        let segments = log.segments();
        for queue in store.queues() {
            let mut losses = Vec::new();
            {
                let clock = store.clock();
                let state = queue.lock();
                let lanes = state.lanes.iter().enumerate();
                let lanes: Vec<_> = lanes
                    .filter(|(_, lane)| lane.gap.is_some())
                    .map(|(index, _)| index)
                    .collect();
                drop(state);
                for index in lanes {
                    let lane = lane_number(queue.number, index);
                    for segment in &segments {
                        let Some(part) = segment.summary(lane) else {
                            continue;
                        };
                        if clock.is_expired(now_ms, part.expires_s, part.first_seq)
                            && clock.is_expired(now_ms, part.expires_s, part.last_seq)
                        {
                            let reason = LossReason::Expired;
                            losses.extend(give_up(log, &queue, index, segment, &part, reason));
                        }
                    }
                }
            }
            store.lose(&queue, losses);
        }
    }

    /// Gives up the segment whose most urgent message is the least urgent, the oldest such.
    pub(super) fn drop_oldest(&self, store: &Store, log: &Log) -> bool {
        let queues = by_number(store);
        let mut victim: Option<(usize, Arc<Segment>)> = None;
        for segment in log.segments() {
            if !segment.is_sealed() {
                continue;
            }
            let parts = pinned(&queues, &segment);
            let urgent = parts.iter().map(|part| of_lane(part.lane).1).min();
            if let Some(urgent) = urgent
                && victim.as_ref().is_none_or(|(best, _)| urgent > *best)
            {
                victim = Some((urgent, segment));
            }
        }
        let Some((_, segment)) = victim else {
            return false;
        };
        for part in pinned(&queues, &segment) {
            let (number, index) = of_lane(part.lane);
            let Some(queue) = queues.get(&number) else {
                continue;
            };
            let reason = LossReason::DroppedOldest;
            let lost = give_up(log, queue, index, &segment, &part, reason);
            store.lose(queue, lost.into_iter().collect());
        }
        true
    }
}

/// Gives up what waits on disk of one part of a lane.
fn give_up(
    log: &Log,
    queue: &Arc<Queue>,
    index: usize,
    segment: &Segment,
    whole: &Summary,
    reason: LossReason,
) -> Option<Loss> {
    let mut state = queue.lock();
    let lane = state.lanes.get(index)?;
    let request = lane.request()?;
    // What is in memory or in flight is given up where it is met.
    let mut part = *whole;
    part.last_seq = part.last_seq.min(request.to - 1);
    let seqs = (part.first_seq, part.last_seq);
    let mut in_flight = lane.in_flight.iter();
    if in_flight.any(|flight| flight.seq >= part.first_seq)
        || lane.dropped.contains(&seqs)
        || request.from > part.last_seq
        || !lane.pins(part.first_seq, part.last_seq)
        || (reason == LossReason::Expired && lane.sent.range(seqs.0..=seqs.1).next().is_some())
    {
        return None;
    }
    let (mut messages, mut bytes) = (part.messages as usize, part.bytes);
    if request.from > part.first_seq || whole.last_seq > part.last_seq || lane.has_exceptions(&part)
    {
        let list = segment.list(&*log.disk, part.lane, 0).ok()?;
        (messages, bytes) = (0, 0);
        let entries = Position::default().entries_of(&list);
        let asked = request.from..request.to.min(part.last_seq + 1);
        for entry in entries.filter(|e| asked.contains(&e.seq) && lane.awaits(e.seq)) {
            messages += 1;
            bytes += entry.bytes;
        }
    }
    let lane = state.lanes.get_mut(index)?;
    let miscount = lane.drop_part(&part, messages, bytes);
    state.recount(miscount);
    state.messages -= messages;
    state.bytes = state.bytes.saturating_sub(bytes);
    log.note_cursor(queue, &mut state);
    (messages > 0).then(|| Loss::unread(reason, seqs, messages))
}

/// Gives up the oldest messages on disk of a queue's least urgent lane, until an eighth of its
/// quota is free: lists are read for it, so it is not done for each message.
pub(super) fn drop_from_disk(
    log: &Log,
    number: u32,
    state: &mut State,
    (wanted_bytes, wanted_messages): (u64, usize),
) -> Option<Loss> {
    let lanes = state.lanes.iter().enumerate().rev();
    let (index, lane) = lanes.into_iter().find(|(_, lane)| lane.waiting() > 0)?;
    let request = lane.request()?;
    let mut in_flight = lane.in_flight.iter();
    if in_flight.any(|flight| flight.seq >= request.from) {
        return None;
    }
    let number = lane_number(number, index);
    let (mut messages, mut bytes, mut last) = (0, 0, 0);
    'segments: for segment in log.segments() {
        let part = segment.summary(number);
        if part.is_none_or(|part| part.last_seq < request.from) {
            continue;
        }
        let list = segment.list(&*log.disk, number, 0).ok()?;
        for entry in Position::default().entries_of(&list) {
            let enough = messages > 0 && (messages >= wanted_messages || bytes >= wanted_bytes);
            if enough || entry.seq >= request.to {
                break 'segments;
            }
            if entry.seq >= request.from && lane.awaits(entry.seq) {
                messages += 1;
                bytes += entry.bytes;
                last = entry.seq;
            }
        }
    }
    if messages == 0 {
        return None;
    }
    let lane = state.lanes.get_mut(index)?;
    lane.epoch += 1;
    let miscount = lane.advance(last + 1, messages, bytes);
    // What is in flight before it may have to be read again.
    lane.all_done(request.from, last);
    state.recount(miscount);
    state.messages -= messages;
    state.bytes = state.bytes.saturating_sub(bytes);
    let seqs = (request.from, last);
    Some(Loss::unread(LossReason::DroppedOldest, seqs, messages))
}
