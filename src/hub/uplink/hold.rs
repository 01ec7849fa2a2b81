//! Queues that are left alone for a while, since the cloud does not take the message at their
//! head; those of others pass.

use std::sync::Arc;

use super::{Source, Uplink};
use crate::hub::client::{Place, Token};
use crate::hub::suspicion::hold_ms;
use crate::hub::{Hub, Now};
use crate::mqtt::v5::ReasonCode;
use crate::session::Why;
use crate::store::Queue;

/// How long a queue waits whose message the cloud refuses for now, at first and at most.
const LATER_MS: (u64, u64) = (1000, 60_000);
/// The reason in metrics.
const REFUSED_BY_CLOUD: &str = "refused_by_cloud";

/// How a queue whose message was refused begins again: with one message, so that those behind it
/// do not overtake it where it is refused once more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Probe {
    /// Nothing was refused.
    None,
    /// The next message is the one.
    Due,
    /// The one with this seq is on its way.
    Out(u64),
}

impl Probe {
    pub fn is_due(self) -> bool {
        self == Self::Due
    }

    pub fn is_out(self) -> bool {
        matches!(self, Self::Out(_))
    }

    /// The connection is gone, and with it the answer.
    pub fn put_back(&mut self) {
        if self.is_out() {
            *self = Self::Due;
        }
    }

    /// Whether the answer to this message is the one that is waited for.
    fn is_settled_by(self, seq: u64) -> bool {
        match self {
            Self::None => true,
            Self::Due => false,
            Self::Out(probe) => probe == seq,
        }
    }
}

/// What becomes of a message that the cloud will not have (MQTT 5 §3.4.2.1).
#[derive(Debug, Clone, Copy)]
enum Fate {
    /// It is given up: neither time nor anybody up there can make it another one.
    GivenUp,
    /// It is sent again, after so long for the so many-th time.
    Waits(fn(u32) -> u64),
}

impl Fate {
    fn of(code: ReasonCode) -> Self {
        match code {
            ReasonCode::TopicNameInvalid | ReasonCode::PayloadFormatInvalid => Self::GivenUp,
            // Until somebody allows it: as where servers close the connection instead.
            ReasonCode::NotAuthorized => Self::Waits(hold_ms),
            // Quotas, packet ids in use, and what is not explained.
            _ => Self::Waits(later_ms),
        }
    }
}

fn later_ms(times: u32) -> u64 {
    let (first, most) = LATER_MS;
    (first << times.saturating_sub(1).min(16)).min(most)
}

impl Hub {
    /// The cloud will not have a message, and says why (MQTT 5 §3.4.2.1).
    pub fn refused_above(&self, uplink: &mut Uplink, token: Token, why: &Why, now: Now) {
        uplink.suspicion.acknowledge();
        let Token::Queued { place, origin, .. } = &token else {
            return;
        };
        let from = origin.sender.as_str();
        match Fate::of(why.code) {
            Fate::GivenUp => {
                if uplink.has_held {
                    release_held(uplink, place);
                }
                let label = self.id_label(&origin.sender);
                let output = self.output_label(origin.output.as_deref(), true);
                self.count_dropped(REFUSED_BY_CLOUD, label, output);
                if self.may_log() {
                    tracing::warn!(from, "the cloud refuses a message, it is given up: {why}");
                }
                self.give_up(token);
            }
            Fate::Waits(wait_ms) => {
                self.store
                    .release(&place.queue, place.priority, &[place.seq]);
                let is_waiting = |source: &Source| source.held_ms > now.ms;
                let source = source_of(uplink, &place.queue);
                // Of several that were in flight one is enough.
                if source.is_none_or(|source| is_waiting(source)) {
                    return;
                }
                let wait_s = hold(uplink, place, wait_ms, now) / 1000;
                if let Some(source) = source_of(uplink, &place.queue) {
                    source.probe = Probe::Due;
                    source.pending = true;
                }
                if self.may_log() {
                    tracing::warn!(
                        from,
                        wait_s,
                        "the cloud refuses a message, those of its sender wait: {why}"
                    );
                }
            }
        }
    }
}

fn source_of<'a>(uplink: &'a mut Uplink, queue: &Arc<Queue>) -> Option<&'a mut Source> {
    let mut sources = uplink.sources.iter_mut();
    sources.find(|source| Arc::ptr_eq(&source.queue, queue))
}

/// A message of a queue that was left alone has passed.
pub(super) fn release_held(uplink: &mut Uplink, place: &Place) {
    for source in &mut uplink.sources {
        let is_it = source.held_times > 0 && Arc::ptr_eq(&source.queue, &place.queue);
        if is_it && source.probe.is_settled_by(place.seq) {
            if source.probe != Probe::None {
                source.probe = Probe::None;
                source.pending = true;
            }
            source.held_times = 0;
            source.way.set_held(false);
        }
    }
    uplink.has_held = uplink.sources.iter().any(|source| source.held_times > 0);
}

/// A connection ended: what was in flight of queues that wait for a probe waits with them, instead
/// of being sent again first.
pub(super) fn leave_refused(uplink: &mut Uplink) {
    let sources = &uplink.sources;
    let is_refused = |place: &Place| {
        let is_it = |one: &Source| Arc::ptr_eq(&one.queue, &place.queue);
        let mut sources = sources.iter();
        sources.any(|one| one.probe != Probe::None && is_it(one))
    };
    uplink.resumed.retain(|(_, _, place)| !is_refused(place));
}

/// The cloud closed the connection at this message: leaves its queue alone, so that others pass.
pub(super) fn at_end(uplink: &mut Uplink, place: &Place, now: Now) {
    let wait_s = hold(uplink, place, hold_ms, now) / 1000;
    let Some(source) = source_of(uplink, &place.queue) else {
        return;
    };
    let from = source.way.sender.as_str();
    tracing::warn!(
        from,
        wait_s,
        "the cloud closes the connection at a message of this sender; its messages wait: is it \
         over the server's limit (max_message_bytes), or its topic not allowed there?"
    );
}

/// Leaves the queue of a message alone for a while, in milliseconds.
fn hold(uplink: &mut Uplink, place: &Place, wait_ms: fn(u32) -> u64, now: Now) -> u64 {
    let is_it = |queue: &Arc<Queue>| Arc::ptr_eq(queue, &place.queue);
    uplink.resumed.retain(|(_, _, other)| !is_it(&other.queue));
    let Some(source) = source_of(uplink, &place.queue) else {
        return 0;
    };
    source.held_times += 1;
    let wait_ms = wait_ms(source.held_times);
    source.held_ms = now.ms + wait_ms;
    source.way.set_held(true);
    uplink.has_held = true;
    wait_ms
}
