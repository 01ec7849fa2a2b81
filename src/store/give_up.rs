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
                let lanes: Vec<_> = (0..state.lanes.len())
                    .filter(|index| state.lanes.get(*index).is_some_and(|l| l.gap.is_some()))
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
                            give_up(log, &queue, index, segment, &part, &mut losses);
                        }
                    }
                }
            }
            for loss in &mut losses {
                loss.reason = LossReason::Expired;
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
            let mut losses = Vec::new();
            give_up(log, queue, index, &segment, &part, &mut losses);
            store.lose(queue, losses);
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
    losses: &mut Vec<Loss>,
) {
    let mut state = queue.lock();
    let Some(lane) = state.lanes.get(index) else {
        return;
    };
    // What is in memory or in flight is given up where it is met.
    let mut part = *whole;
    if let Some(request) = lane.request() {
        part.last_seq = part.last_seq.min(request.to - 1);
    }
    let in_flight = lane.in_flight.iter().map(|flight| flight.seq);
    if in_flight.into_iter().any(|seq| seq >= part.first_seq) {
        return;
    }
    let known = (part.first_seq, part.last_seq);
    let Some(request) = lane.request().filter(|_| !lane.dropped.contains(&known)) else {
        return;
    };
    if request.from > part.last_seq || !lane.pins(part.first_seq, part.last_seq) {
        return;
    }
    let (mut messages, mut bytes) = (part.messages as usize, part.bytes);
    if request.from > part.first_seq || whole.last_seq > part.last_seq || lane.has_exceptions(&part)
    {
        let Ok(list) = segment.list(&*log.disk, part.lane, 0) else {
            return;
        };
        (messages, bytes) = (0, 0);
        let entries = Position::default().entries_of(&list);
        let asked = request.from..request.to.min(part.last_seq + 1);
        for entry in entries.filter(|e| asked.contains(&e.seq) && lane.awaits(e.seq)) {
            messages += 1;
            bytes += entry.bytes;
        }
    }
    let Some(lane) = state.lanes.get_mut(index) else {
        return;
    };
    lane.drop_part(&part, messages, bytes);
    state.messages -= messages;
    state.bytes = state.bytes.saturating_sub(bytes);
    if messages > 0 {
        losses.push(Loss::unread(LossReason::DroppedOldest, known, messages));
    }
    if !std::mem::replace(&mut state.is_listed, true) {
        log.note_cursor(queue);
    }
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
    lane.advance(last + 1, messages, bytes);
    // What is in flight before it may have to be read again.
    lane.all_done(request.from, last);
    state.messages -= messages;
    state.bytes = state.bytes.saturating_sub(bytes);
    let seqs = (request.from, last);
    Some(Loss::unread(LossReason::DroppedOldest, seqs, messages))
}
