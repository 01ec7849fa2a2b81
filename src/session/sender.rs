//! The specification's Sender half: packet ids, the in-flight window, redelivery
//! (MQTT 3.1.1 §2.3.1, §4.3, §4.4, §4.6).

use std::collections::{BTreeSet, VecDeque};

use super::{Outgoing, Output};
use crate::mqtt::{PacketId, QoS};

/// Packet ids that the sender chooses go from 1 to here. Those above are for messages whose id is
/// known beforehand, so that neither ever takes one of the other.
pub const CHOSEN_ID_MAX: u16 = 0x7fff;

/// A message of QoS 1 or 2 that was sent and not yet acknowledged.
#[derive(Debug)]
pub struct InFlight<T> {
    /// Its packet id, kept when it is sent again.
    pub packet_id: PacketId,
    /// 1 or 2.
    pub qos: QoS,
    /// What the hub needs to know it by.
    pub token: T,
}

/// What a peer says of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// QoS 1: it has it.
    Acknowledged,
    /// QoS 2: it has it.
    Received,
    /// QoS 2: it is done with it.
    Completed,
}

/// What a connection leaves of the messages that it sent.
#[derive(Debug)]
pub struct Outbound<T> {
    /// Sent and not acknowledged, oldest first.
    pub in_flight: VecDeque<InFlight<T>>,
    /// Packet ids of QoS 2 messages that the peer has, and not their release.
    pub released: BTreeSet<PacketId>,
    /// The packet id to go on with.
    pub next_id: u16,
}

/// The messages in flight to one peer, oldest first.
#[derive(Debug)]
pub struct Sender<T> {
    window: usize,
    in_flight: VecDeque<InFlight<T>>,
    /// Packet ids of QoS 2 messages that the peer has, until PUBCOMP (MQTT 5 §4.3.3).
    released: BTreeSet<PacketId>,
    next_id: u16,
    /// How many ids from `next_id` on are known to be free.
    free_ids: u16,
    /// The wait for an acknowledgement counts from here.
    acknowledged_ms: u64,
}

impl<T> Sender<T> {
    /// Nothing in flight; at most `window` (≥ 1) messages at a time, and fewer than there are ids.
    #[must_use]
    pub fn new(window: u16) -> Self {
        Self {
            window: usize::from(window.clamp(1, CHOSEN_ID_MAX - 1)),
            in_flight: VecDeque::new(),
            released: BTreeSet::new(),
            next_id: 1,
            free_ids: CHOSEN_ID_MAX,
            acknowledged_ms: 0,
        }
    }

    /// The peer takes no more than `window` (≥ 1) messages at a time.
    pub fn narrow(&mut self, window: u16) {
        self.window = self.window.min(usize::from(window.max(1)));
    }

    /// Writes a message; it is in flight until acknowledged, but with QoS 0 the token comes back at
    /// once.
    pub fn deliver(
        &mut self,
        output: &mut Output,
        (now_ms, qos): (u64, QoS),
        (out, wanted): (&Outgoing<'_>, Option<PacketId>),
        token: T,
    ) -> Option<T> {
        if qos == QoS::AtMostOnce {
            output.publish(out, (qos, None), false);
            return Some(token);
        }
        if self.is_empty() {
            self.acknowledged_ms = now_ms;
        }
        let packet_id = self.send_as(qos, token, wanted);
        output.publish(out, (qos, Some(packet_id)), false);
        None
    }

    /// Writes a message of the previous connection again, DUP set and under its old packet id
    /// (MQTT 3.1.1 §4.4).
    pub fn redeliver(&mut self, output: &mut Output, out: &Outgoing<'_>, in_flight: InFlight<T>) {
        output.publish(out, (in_flight.qos, Some(in_flight.packet_id)), true);
        self.resume(in_flight);
    }

    /// The peer acknowledges, or could not: its time begins anew.
    pub fn hear(&mut self, now_ms: u64) {
        self.acknowledged_ms = now_ms;
    }

    /// When the peer last acknowledged, or could not have.
    #[must_use]
    pub fn heard_ms(&self) -> u64 {
        self.acknowledged_ms
    }

    /// When the peer will have acknowledged nothing for `stall_ms` (0: for ever) though it should.
    #[must_use]
    pub fn stalls_at(&self, stall_ms: u64) -> Option<u64> {
        (!self.is_empty() && stall_ms > 0).then(|| self.acknowledged_ms + stall_ms)
    }

    /// How many more messages may be sent now.
    #[must_use]
    pub fn room(&self) -> usize {
        let used = self.in_flight.len() + self.released.len();
        self.window.saturating_sub(used)
    }

    /// Whether nothing waits for an acknowledgement.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.in_flight.is_empty() && self.released.is_empty()
    }

    /// Takes a packet id that is not in use for a new message.
    pub fn send(&mut self, qos: QoS, token: T) -> PacketId {
        self.send_as(qos, token, None)
    }

    /// The same, by this id unless it is in use.
    fn send_as(&mut self, qos: QoS, token: T, wanted: Option<PacketId>) -> PacketId {
        let packet_id = match wanted.filter(|wanted| !self.uses(*wanted)) {
            Some(wanted) => {
                self.free_ids = 0;
                wanted
            }
            None => self.free_id(),
        };
        self.in_flight.push_back(InFlight {
            packet_id,
            qos,
            token,
        });
        packet_id
    }

    fn uses(&self, packet_id: PacketId) -> bool {
        let is_it = |flight: &InFlight<T>| flight.packet_id == packet_id;
        self.released.contains(&packet_id) || self.in_flight.iter().any(is_it)
    }

    /// A packet id that no message has, for a packet of another kind.
    pub fn lend_id(&mut self) -> PacketId {
        self.free_id()
    }

    /// Takes a message of the previous connection over under its old packet id.
    pub fn resume(&mut self, in_flight: InFlight<T>) {
        self.in_flight.push_back(in_flight);
        self.free_ids = 0;
    }

    /// The peer acknowledged a message of QoS 1; `None` where none with this id is in flight.
    pub fn acknowledge(&mut self, packet_id: PacketId) -> Option<T> {
        self.land(packet_id, QoS::AtLeastOnce)
    }

    /// The peer has a message of QoS 2, or with `failed` refuses it; `None` where none with this id
    /// is in flight.
    pub fn received(&mut self, packet_id: PacketId, failed: bool) -> Option<T> {
        let token = self.land(packet_id, QoS::ExactlyOnce)?;
        if !failed {
            self.released.insert(packet_id);
        }
        Some(token)
    }

    /// Whether a message of QoS 2 waits for PUBCOMP.
    #[must_use]
    pub fn is_released(&self, packet_id: PacketId) -> bool {
        self.released.contains(&packet_id)
    }

    /// The peer is done with a message of QoS 2.
    pub fn complete(&mut self, packet_id: PacketId) -> bool {
        self.released.remove(&packet_id)
    }

    /// Whether an acknowledgement is one that this message cannot get: it is in flight with another
    /// QoS, or beyond that step (MQTT 5 §4.3).
    #[must_use]
    pub fn contradicts(&self, packet_id: PacketId, step: Step) -> bool {
        if self.released.contains(&packet_id) {
            return step == Step::Acknowledged;
        }
        let mut in_flight = self.in_flight.iter();
        let flight = in_flight.find(|flight| flight.packet_id == packet_id);
        flight.is_some_and(|flight| match flight.qos {
            QoS::ExactlyOnce => step != Step::Received,
            QoS::AtMostOnce | QoS::AtLeastOnce => step != Step::Acknowledged,
        })
    }

    fn land(&mut self, packet_id: PacketId, qos: QoS) -> Option<T> {
        let is_it = |flight: &InFlight<T>| flight.packet_id == packet_id && flight.qos == qos;
        let at = self.in_flight.iter().position(is_it)?;
        self.in_flight.remove(at).map(|flight| flight.token)
    }

    /// What is left for the next connection.
    #[must_use]
    pub fn park(self) -> Outbound<T> {
        Outbound {
            in_flight: self.in_flight,
            released: self.released,
            next_id: self.next_id,
        }
    }

    /// Goes on with what the peer has of the previous connection.
    pub fn release(&mut self, released: BTreeSet<PacketId>) {
        self.released = released;
        self.free_ids = 0;
    }

    /// Goes on with the ids of the previous connection.
    pub fn continue_ids(&mut self, next_id: u16) {
        self.next_id = if next_id > CHOSEN_ID_MAX {
            1
        } else {
            next_id.max(1)
        };
        self.free_ids = 0;
    }

    /// The window is smaller than the number of ids, so there is a free one.
    fn free_id(&mut self) -> PacketId {
        loop {
            if self.free_ids == 0 {
                self.free_ids = self.distance_to_used();
            }
            let id = self.next_id;
            self.next_id = if id >= CHOSEN_ID_MAX { 1 } else { id + 1 };
            if self.free_ids > 0 {
                self.free_ids -= 1;
                if let Some(id) = PacketId::new(id) {
                    return id;
                }
            }
        }
    }

    /// Ids from `next_id` up to the nearest one in use, going round past [`CHOSEN_ID_MAX`].
    fn distance_to_used(&self) -> u16 {
        let all = CHOSEN_ID_MAX;
        let in_flight = self.in_flight.iter().map(|flight| flight.packet_id);
        in_flight
            .chain(self.released.iter().copied())
            .map(PacketId::get)
            .filter(|id| *id <= all)
            .map(|id| {
                if id >= self.next_id {
                    id - self.next_id
                } else {
                    all - self.next_id + id
                }
            })
            .min()
            .unwrap_or(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_go_round_and_skip_those_in_use() {
        let mut sender = Sender::new(10);
        let stuck = sender.send(QoS::AtLeastOnce, "stuck");
        assert_eq!(stuck.get(), 1);
        let mut seen = 0_u32;
        for _ in 0..200_000 {
            let id = sender.send(QoS::AtLeastOnce, "quick");
            assert_ne!(id, stuck);
            assert_eq!(sender.acknowledge(id), Some("quick"));
            seen += 1;
        }
        assert_eq!(seen, 200_000);
        assert_eq!(sender.acknowledge(stuck), Some("stuck"));
        assert_eq!(sender.acknowledge(stuck), None);
    }

    #[test]
    fn resumed_messages_keep_their_ids_and_count_in_the_window() {
        let mut first = Sender::new(3);
        let ids: Vec<_> = (0..2).map(|n| first.send(QoS::AtLeastOnce, n)).collect();
        let left = first.park();
        let mut second = Sender::new(3);
        for flight in left.in_flight {
            second.resume(flight);
        }
        second.continue_ids(left.next_id);
        assert_eq!(second.room(), 1);
        assert!(!ids.contains(&second.send(QoS::AtLeastOnce, 9)));
        assert_eq!(second.acknowledge(ids[1]), Some(1));
        assert_eq!(second.acknowledge(ids[0]), Some(0));
    }

    #[test]
    fn an_id_of_qos_2_is_in_use_until_it_is_complete() {
        let mut sender = Sender::new(2);
        let first = sender.send(QoS::ExactlyOnce, "first");
        assert_eq!(sender.acknowledge(first), None);
        assert_eq!(sender.received(first, false), Some("first"));
        assert_eq!(sender.received(first, false), None);
        assert!(sender.is_released(first) && !sender.is_empty());
        assert_eq!(sender.room(), 1);
        sender.continue_ids(first.get());
        let second = sender.send(QoS::AtLeastOnce, "second");
        assert_ne!(second, first);
        assert_eq!(sender.received(second, false), None);
        sender.complete(first);
        assert_eq!(sender.room(), 1);
        let third = sender.send(QoS::ExactlyOnce, "third");
        assert_eq!(sender.received(third, true), Some("third"));
        assert!(!sender.is_released(third));
    }

    #[test]
    fn an_id_known_beforehand_is_never_taken_by_another_message() {
        let mut sender = Sender::new(u16::MAX);
        let above = PacketId::new(CHOSEN_ID_MAX + 1).unwrap();
        for n in 0..CHOSEN_ID_MAX - 1 {
            assert!(sender.send(QoS::AtLeastOnce, n) < above);
        }
        assert_eq!(sender.room(), 0);
        assert_eq!(sender.lend_id().get(), CHOSEN_ID_MAX);
        assert_eq!(sender.send_as(QoS::ExactlyOnce, 0, Some(above)), above);
        // Unless there are two for it.
        let other = sender.acknowledge(PacketId::new(7).unwrap());
        assert!(other.is_some());
        let second = sender.send_as(QoS::ExactlyOnce, 1, Some(above));
        assert!(second < above);
    }

    #[test]
    fn ids_resumed_ahead_are_skipped() {
        let mut sender = Sender::new(100);
        for id in [3_u16, 1, 65_535] {
            let packet_id = PacketId::new(id).unwrap();
            sender.resume(InFlight {
                packet_id,
                qos: QoS::AtLeastOnce,
                token: id,
            });
        }
        sender.continue_ids(65_535);
        let ids: Vec<_> = (0..3)
            .map(|_| sender.send(QoS::AtLeastOnce, 0).get())
            .collect();
        assert_eq!(ids, [2, 4, 5]);
    }
}
