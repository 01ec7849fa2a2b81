//! What a kept session has to remember of QoS 2 over the end of the hub (MQTT 5 §4.3.3).
//!
//! A message of the client is taken once: its packet id is kept with the seq under which the log
//! has it, before PUBREC. A message to the client has a packet id that follows from its seq, so
//! that it is the same one after a restart; that the client has it is kept before PUBREL.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::client::{Client, Place, Token};
use super::{Hub, Now};
use crate::identity::Identity;
use crate::message::Priority;
use crate::mqtt::{PacketId, Publish, QoS};
use crate::session::CHOSEN_ID_MAX;
use crate::store::journal;

/// Packet ids of taken messages that are kept together: a client may have all of them open, and a
/// change is to cost the same however many there are.
const PART_IDS: u16 = 64;

/// Packet ids and seqs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Ledger {
    /// Messages of the client that it has not released; kept in parts of their own.
    #[serde(default, skip_serializing)]
    taken: BTreeMap<u16, u64>,
    /// Messages that the client has, and not their release.
    released: BTreeMap<u16, u64>,
    /// All messages of the session's queue up to this seq are done with: the log notes that only
    /// later.
    floor: u64,
    /// And these.
    acked: Vec<u64>,
}

impl Ledger {
    /// Reads what was kept; messages after `kept_seq` are not in the log: they were not taken, and
    /// others will have their seqs.
    pub fn read(kept: &journal::Ledger, kept_seq: u64) -> Option<Self> {
        let mut ledger = match kept.get(&None) {
            Some(value) => serde_json::from_slice(value).ok()?,
            None => Self::default(),
        };
        for (_, part) in kept.iter().filter(|(number, _)| number.is_some()) {
            let taken: BTreeMap<u16, u64> = serde_json::from_slice(part).ok()?;
            ledger.taken.extend(taken);
        }
        ledger.taken.retain(|_, seq| *seq <= kept_seq);
        let released = ledger.released.values_mut();
        released
            .filter(|seq| **seq > kept_seq)
            .for_each(|seq| *seq = 0);
        ledger.floor = ledger.floor.min(kept_seq);
        ledger.acked.retain(|seq| *seq <= kept_seq);
        Some(ledger)
    }

    /// Takes over how far the queue is. Of that the log knows less after a crash than this did.
    fn advance(&mut self, floor: u64, acked: Vec<u64>) {
        self.floor = self.floor.max(floor);
        self.acked.extend(acked);
        self.acked.sort_unstable();
        self.acked.dedup();
        let floor = self.floor;
        self.acked.retain(|seq| *seq > floor);
    }

    /// All of it, as it is kept.
    pub fn write(&self) -> journal::Ledger {
        let numbers: BTreeSet<_> = self.taken.keys().map(|id| id / PART_IDS).collect();
        let parts = numbers
            .into_iter()
            .filter_map(|number| Some((Some(number), self.part(number)?)));
        let rest = self.rest().map(|rest| (None, rest));
        parts.chain(rest).collect()
    }

    /// Taken messages whose packet ids belong together.
    fn part(&self, number: u16) -> Option<Bytes> {
        let first = number * PART_IDS;
        let taken: BTreeMap<_, _> = self.taken.range(first..=first + (PART_IDS - 1)).collect();
        let json = serde_json::to_vec(&taken).ok();
        json.filter(|_| !taken.is_empty()).map(Bytes::from)
    }

    fn rest(&self) -> Option<Bytes> {
        let is_done = self.floor == 0 && self.acked.is_empty();
        let is_empty = self.released.is_empty() && is_done;
        let json = serde_json::to_vec(self).ok().filter(|_| !is_empty);
        json.map(Bytes::from)
    }

    pub fn taken(&self) -> BTreeSet<PacketId> {
        self.taken
            .keys()
            .copied()
            .filter_map(PacketId::new)
            .collect()
    }

    pub fn released(&self) -> BTreeSet<PacketId> {
        let ids = self.released.keys().copied();
        ids.filter_map(PacketId::new).collect()
    }

    /// Whether the client has a message already.
    pub fn has(&self, seq: u64) -> bool {
        let is_done = seq <= self.floor || self.acked.contains(&seq);
        is_done || self.released.values().any(|known| *known == seq)
    }
}

/// The packet id of a message of QoS 2: of those that no other message has.
pub(super) fn packet_id(place: &Place) -> Option<PacketId> {
    let first = u64::from(CHOSEN_ID_MAX) + 1;
    let id = first + place.seq % (u64::from(u16::MAX) - first + 1);
    u16::try_from(id).ok().and_then(PacketId::new)
}

impl Hub {
    /// Has what was read of a session written again where the log does not bear it out.
    pub(super) fn correct_ledger(
        &self,
        identity: &Identity,
        written: Option<&journal::Ledger>,
        ledger: Option<&Ledger>,
    ) {
        let correct = ledger.map(Ledger::write).unwrap_or_default();
        let written_parts = written.into_iter().flatten().map(|(part, _)| *part);
        let parts: BTreeSet<_> = written_parts.chain(correct.keys().copied()).collect();
        for part in parts {
            let value = correct.get(&part);
            if written.and_then(|written| written.get(&part)) != value {
                let change = (part, value.cloned());
                self.journal
                    .record_ledger(identity.as_str(), change, &Arc::default());
            }
        }
    }

    /// A message of QoS 2 was taken; returns the version of the small state that knows it.
    pub(super) fn note_taken(&self, client: &mut Client, publish: &Publish<'_>, seq: u64) -> u64 {
        let Some(packet_id) = publish.packet_id else {
            return 0;
        };
        if publish.qos != QoS::ExactlyOnce || !client.persistent {
            return 0;
        }
        client.ledger.taken.insert(packet_id.get(), seq);
        self.keep_taken(client, packet_id)
    }

    /// The client released a message of QoS 2 that it had sent; returns the version of the small
    /// state that knows it. Otherwise another message with this packet id would be taken for it
    /// after a crash.
    pub fn released(&self, client: &mut Client, packet_id: PacketId) -> u64 {
        // If it was released on the last connection, that may still be on its way to the disk.
        client.ledger.taken.remove(&packet_id.get());
        self.keep_taken(client, packet_id)
    }

    fn keep_taken(&self, client: &Client, packet_id: PacketId) -> u64 {
        if !client.persistent {
            return 0;
        }
        let number = packet_id.get() / PART_IDS;
        let change = (Some(number), client.ledger.part(number));
        self.journal
            .record_ledger(client.identity.as_str(), change, &client.mailbox)
    }

    /// The client has a message of QoS 2; returns the version of the small state that knows it.
    /// Only then the message leaves its queue: if the disk knew that first, nobody would ever
    /// release the packet id at the client.
    pub fn received(&self, client: &mut Client, packet_id: PacketId, token: Token) -> u64 {
        let mut version = 0;
        if let Token::Queued { place, .. } = &token
            && client.persistent
            && !place.is_live()
        {
            client.ledger.released.insert(packet_id.get(), place.seq);
            version = self.keep_ledger(client);
        }
        client.received.push_back((version, token));
        version
    }

    /// Takes messages out of their queues of which the disk knows that the client has them.
    pub fn settle_received(&self, client: &mut Client, now: Now) {
        let durable = self.journal.durable();
        while let Some((version, _)) = client.received.front() {
            if *version > durable {
                return;
            }
            if let Some((_, token)) = client.received.pop_front() {
                self.delivered(client, token, now);
            }
        }
    }

    /// Puts those back of which it does not; they are not sent again.
    pub(super) fn unsettle_received(&self, client: &mut Client) {
        for (_, token) in std::mem::take(&mut client.received) {
            if let Token::Queued { place, .. } = token {
                self.store_of(&place.queue)
                    .release(&place.queue, place.priority, &[place.seq]);
            }
        }
    }

    /// The client is done with a message of QoS 2.
    pub fn completed(&self, client: &mut Client, packet_id: PacketId) {
        if let Some(seq) = client.ledger.released.remove(&packet_id.get()) {
            // After a crash the queue may not know it.
            client.ledger.advance(0, vec![seq]);
            self.keep_ledger(client);
        }
    }

    /// Has kept what the client has, and how far the session's queue is; returns the version.
    pub(super) fn keep_ledger(&self, client: &mut Client) -> u64 {
        if !client.persistent {
            return 0;
        }
        let kept = client
            .plain
            .as_ref()
            .and_then(|side| side.subscriber.kept.as_ref());
        if let Some(queue) = kept {
            let (floor, acked) = self.store.cursor(queue, Priority::DEFAULT);
            client.ledger.advance(floor, acked);
        }
        let (id, change) = (client.identity.as_str(), (None, client.ledger.rest()));
        self.journal.record_ledger(id, change, &client.mailbox)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ledger(released: &[(u16, u64)], floor: u64, acked: &[u64]) -> Ledger {
        Ledger {
            released: released.iter().copied().collect(),
            floor,
            acked: acked.to_vec(),
            ..Ledger::default()
        }
    }

    #[test]
    fn what_was_done_with_stays_so_where_the_log_knows_less() {
        let mut ledger = ledger(&[], 4, &[7]);
        // The queue of a hub that was killed begins with all of it.
        ledger.advance(0, vec![]);
        ledger.advance(0, vec![6]);
        let has = |ledger: &Ledger| (1..=8).filter(|seq| ledger.has(*seq)).collect::<Vec<_>>();
        assert_eq!(has(&ledger), [1, 2, 3, 4, 6, 7]);
        ledger.advance(6, vec![8]);
        assert_eq!((ledger.floor, &*ledger.acked), (6, &[7, 8][..]));
        assert_eq!(has(&ledger), [1, 2, 3, 4, 5, 6, 7, 8]);
    }

    #[test]
    fn what_the_log_lost_is_another_message() {
        let kept = ledger(&[(2, 1), (9, 8)], 6, &[7, 8]).write();
        let read = Ledger::read(&kept, 5).unwrap_or_default();
        assert_eq!(read, ledger(&[(2, 1), (9, 0)], 5, &[]));
        // The client waits for both releases all the same.
        assert_eq!(read.released().len(), 2);
        assert!(!read.has(8) && read.has(1));
    }

    #[test]
    fn taken_messages_are_kept_in_parts() {
        let all = Ledger {
            taken: [1, 63, 64, 40_000, 65_535].map(|id| (id, 100)).into(),
            ..ledger(&[(7, 3)], 2, &[])
        };
        let mut kept = all.write();
        let parts: Vec<_> = kept.keys().copied().collect();
        assert_eq!(parts, [None, Some(0), Some(1), Some(625), Some(1023)]);
        assert_eq!(Ledger::read(&kept, 100), Some(all.clone()));
        // A part that is empty is none, and so is the rest.
        assert_eq!(
            (all.part(2), Ledger::default().write()),
            (None, BTreeMap::new())
        );
        // As they were kept at first, all together.
        let old = br#"{"taken":{"5":9},"released":{},"floor":0,"acked":[]}"#;
        kept = BTreeMap::from([(None, Bytes::from_static(old))]);
        let read = Ledger::read(&kept, 9).unwrap_or_default();
        assert_eq!(read.taken, BTreeMap::from([(5, 9)]));
        assert_eq!(read.write().keys().copied().collect::<Vec<_>>(), [Some(0)]);
    }
}
