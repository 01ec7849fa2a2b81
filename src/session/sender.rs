//! The specification's Sender half: packet ids, the in-flight window, redelivery
//! (MQTT 3.1.1 §2.3.1, §4.3, §4.4, §4.6).

use std::collections::VecDeque;

use super::{Outgoing, Output};
use crate::mqtt::{PacketId, QoS};

/// A QoS 1 message that was sent and not yet acknowledged.
#[derive(Debug)]
pub struct InFlight<T> {
    /// Its packet id, kept when it is sent again.
    pub packet_id: PacketId,
    /// What the hub needs to know it by.
    pub token: T,
}

/// The messages in flight to one peer, oldest first.
#[derive(Debug)]
pub struct Sender<T> {
    window: usize,
    in_flight: VecDeque<InFlight<T>>,
    next_id: u16,
    /// How many ids from `next_id` on are known to be free.
    free_ids: u16,
    /// The wait for an acknowledgement counts from here.
    acknowledged_ms: u64,
}

impl<T> Sender<T> {
    /// Nothing in flight; at most `window` (≥ 1) messages at a time.
    #[must_use]
    pub fn new(window: u16) -> Self {
        Self {
            window: usize::from(window.max(1)),
            in_flight: VecDeque::new(),
            next_id: 1,
            free_ids: u16::MAX,
            acknowledged_ms: 0,
        }
    }

    /// The peer takes no more than `window` (≥ 1) messages at a time.
    pub fn narrow(&mut self, window: u16) {
        self.window = self.window.min(usize::from(window.max(1)));
    }

    /// Writes a message; with QoS 1 it is in flight until acknowledged, with QoS 0 the token comes
    /// straight back.
    pub fn deliver(
        &mut self,
        output: &mut Output,
        (now_ms, qos): (u64, QoS),
        out: &Outgoing<'_>,
        token: T,
    ) -> Option<T> {
        if qos == QoS::AtMostOnce {
            output.publish(out, None, false);
            return Some(token);
        }
        if self.is_empty() {
            self.acknowledged_ms = now_ms;
        }
        let packet_id = self.send(token);
        output.publish(out, Some(packet_id), false);
        None
    }

    /// Writes a message of the previous connection again, DUP set and under its old packet id
    /// (MQTT 3.1.1 §4.4).
    pub fn redeliver(&mut self, output: &mut Output, out: &Outgoing<'_>, in_flight: InFlight<T>) {
        output.publish(out, Some(in_flight.packet_id), true);
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
        self.window.saturating_sub(self.in_flight.len())
    }

    /// Whether nothing waits for an acknowledgement.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.in_flight.is_empty()
    }

    /// Takes a packet id that is not in use for a new message.
    pub fn send(&mut self, token: T) -> PacketId {
        let packet_id = self.free_id();
        self.in_flight.push_back(InFlight { packet_id, token });
        packet_id
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

    /// The client acknowledged a message; `None` where the id is not in flight.
    pub fn acknowledge(&mut self, packet_id: PacketId) -> Option<T> {
        let at = self
            .in_flight
            .iter()
            .position(|flight| flight.packet_id == packet_id)?;
        self.in_flight.remove(at).map(|flight| flight.token)
    }

    /// What is in flight, oldest first, and the id to go on with.
    #[must_use]
    pub fn park(self) -> (VecDeque<InFlight<T>>, u16) {
        (self.in_flight, self.next_id)
    }

    /// Goes on with the ids of the previous connection.
    pub fn continue_ids(&mut self, next_id: u16) {
        self.next_id = next_id.max(1);
        self.free_ids = 0;
    }

    /// The window is far smaller than the number of ids, so a free one is always near.
    fn free_id(&mut self) -> PacketId {
        loop {
            if self.free_ids == 0 {
                self.free_ids = self.distance_to_used();
            }
            let id = self.next_id;
            self.next_id = if id == u16::MAX { 1 } else { id + 1 };
            if self.free_ids > 0 {
                self.free_ids -= 1;
                if let Some(id) = PacketId::new(id) {
                    return id;
                }
            }
        }
    }

    /// Ids from `next_id` up to the nearest one in use, going round past 65,535.
    fn distance_to_used(&self) -> u16 {
        let all = u16::MAX;
        self.in_flight
            .iter()
            .map(|flight| {
                let id = flight.packet_id.get();
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
        let stuck = sender.send("stuck");
        assert_eq!(stuck.get(), 1);
        let mut seen = 0_u32;
        for _ in 0..200_000 {
            let id = sender.send("quick");
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
        let ids: Vec<_> = (0..2).map(|n| first.send(n)).collect();
        let (in_flight, next_id) = first.park();
        let mut second = Sender::new(3);
        for flight in in_flight {
            second.resume(flight);
        }
        second.continue_ids(next_id);
        assert_eq!(second.room(), 1);
        assert!(!ids.contains(&second.send(9)));
        assert_eq!(second.acknowledge(ids[1]), Some(1));
        assert_eq!(second.acknowledge(ids[0]), Some(0));
    }

    #[test]
    fn ids_resumed_ahead_are_skipped() {
        let mut sender = Sender::new(100);
        for id in [3_u16, 1, 65_535] {
            let packet_id = PacketId::new(id).unwrap();
            sender.resume(InFlight {
                packet_id,
                token: id,
            });
        }
        sender.continue_ids(65_535);
        let ids: Vec<_> = (0..3).map(|_| sender.send(0).get()).collect();
        assert_eq!(ids, [2, 4, 5]);
    }
}
