//! What comes from above: taken in order, held while there is no room, acknowledged once kept.

use std::collections::VecDeque;

use crate::hub::{Descending, Hub, Now, Token, Uplink};
use crate::mqtt::PacketId;
use crate::mqtt::v5::ReasonCode;
use crate::session::Upward;

/// Messages that found no room and are kept here; the rest is left unacknowledged.
pub(super) const HELD_MAX: u16 = 100;

/// The messages of one connection that are not done with.
#[derive(Default)]
pub(super) struct Intake {
    /// What was appended and has to be acknowledged, by seq, and what is said of it.
    pending: VecDeque<(PacketId, u64, ReasonCode)>,
    held: VecDeque<(Option<PacketId>, Descending)>,
    /// Messages were left unacknowledged: only a new connection brings them again, and until
    /// then none that came after them may be taken.
    owes: bool,
}

/// Where messages go.
pub(super) struct Inward<'a> {
    pub(super) hub: &'a Hub,
    pub(super) uplink: &'a mut Uplink,
    pub(super) upward: &'a mut Upward<Token>,
}

impl Intake {
    /// Whether all that was taken is acknowledged.
    pub(super) fn is_quiet(&self) -> bool {
        self.pending.is_empty()
    }

    /// Whether messages were left to the server.
    pub(super) fn owes(&self) -> bool {
        self.owes
    }

    /// Takes a message in, or holds it until there is room; of one that is not taken, what the
    /// server is told.
    pub(super) fn take(
        &mut self,
        to: Inward<'_>,
        packet_id: Option<PacketId>,
        message: Result<Descending, ReasonCode>,
        now: Now,
    ) {
        if self.owes {
            return;
        }
        let message = match message {
            Ok(message) => message,
            Err(reason) => {
                if let Some(packet_id) = packet_id {
                    self.pending.push_back((packet_id, 0, reason));
                    self.acknowledge(to);
                }
                return;
            }
        };
        if self.held.is_empty() && self.append(to.hub, to.uplink, packet_id, &message, now) {
            self.acknowledge(to);
        } else {
            self.hold(packet_id, message);
        }
    }

    fn hold(&mut self, packet_id: Option<PacketId>, message: Descending) {
        if self.held.len() < usize::from(HELD_MAX) {
            self.held.push_back((packet_id, message));
        } else {
            self.owes = true;
            tracing::warn!("messages from the cloud find no room; they are left to the cloud");
        }
    }

    fn append(
        &mut self,
        hub: &Hub,
        uplink: &mut Uplink,
        packet_id: Option<PacketId>,
        message: &Descending,
        now: Now,
    ) -> bool {
        let Some(seq) = hub.descend(uplink, message, now) else {
            return false;
        };
        if let Some(packet_id) = packet_id {
            self.pending
                .push_back((packet_id, seq, ReasonCode::Success));
            hub.await_descended(uplink, seq);
        }
        true
    }

    /// There may be room again for what is held; false: not for all of it.
    pub(super) fn go_on(&mut self, to: Inward<'_>, now: Now) -> bool {
        while let Some((packet_id, message)) = self.held.pop_front() {
            if !self.append(to.hub, to.uplink, packet_id, &message, now) {
                self.held.push_front((packet_id, message));
                break;
            }
        }
        self.acknowledge(to);
        self.held.is_empty()
    }

    /// Acknowledges what is kept, in the order in which it came.
    pub(super) fn acknowledge(&mut self, to: Inward<'_>) {
        let kept = to.hub.kept();
        while let Some((packet_id, seq, reason)) = self.pending.front() {
            if *seq > kept {
                return;
            }
            to.upward.acknowledge(*packet_id, *reason);
            self.pending.pop_front();
        }
    }
}
