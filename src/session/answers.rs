//! SUBACK and UNSUBACK, which wait for the disk.

use super::{Granted, Session};
use crate::mqtt::{self, FromServer, PacketId, SubAckCode};

#[derive(Debug)]
enum Acknowledgement {
    Sub(Vec<Granted>),
    /// Which of the subscriptions there were.
    Unsub(Vec<bool>),
}

#[derive(Debug)]
pub(super) struct PendingAck {
    version: u64,
    packet_id: PacketId,
    acknowledgement: Acknowledgement,
}

impl<T> Session<T> {
    /// Sends SUBACK once `version` is durable.
    pub fn subscribed(&mut self, packet_id: PacketId, codes: Vec<Granted>, version: u64) {
        self.pending.push_back(PendingAck {
            version,
            packet_id,
            acknowledgement: Acknowledgement::Sub(codes),
        });
    }

    /// Sends UNSUBACK once `version` is durable; `existed` says which subscriptions there were.
    pub fn unsubscribed(&mut self, packet_id: PacketId, existed: Vec<bool>, version: u64) {
        self.pending.push_back(PendingAck {
            version,
            packet_id,
            acknowledgement: Acknowledgement::Unsub(existed),
        });
    }

    /// Everything up to `version` is on disk, or the disk has refused it.
    pub fn handle_durable(&mut self, version: u64) {
        while self
            .pending
            .front()
            .is_some_and(|ack| ack.version <= version)
        {
            let Some(ack) = self.pending.pop_front() else {
                return;
            };
            match ack.acknowledgement {
                Acknowledgement::Unsub(existed) if self.is_v5() => {
                    self.unsuback_v5(ack.packet_id, &existed);
                }
                Acknowledgement::Sub(codes) if self.is_v5() => {
                    self.suback_v5(ack.packet_id, &codes);
                }
                Acknowledgement::Unsub(_) => self.encode(&FromServer::UnsubAck(ack.packet_id)),
                Acknowledgement::Sub(codes) => {
                    let code = |granted: &Granted| {
                        let granted = granted.as_ref().copied();
                        granted.map_or(SubAckCode::Failure, SubAckCode::Granted)
                    };
                    let codes = codes.iter().map(code);
                    let written = mqtt::encode_suback(self.output.tail(), ack.packet_id, codes);
                    debug_assert!(written.is_ok(), "as many codes as filters, never none");
                }
            }
        }
    }

    /// Whether SUBACK or UNSUBACK wait for the disk.
    #[must_use]
    pub fn awaits_disk(&self) -> bool {
        !self.pending.is_empty()
    }
}
