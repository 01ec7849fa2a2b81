//! The specification's Receiver half: answers that wait for the disk, and the QoS 2 messages that
//! the client has not released yet (MQTT 5 §4.3, §4.6).

use std::collections::{BTreeSet, VecDeque};

use super::sender::Step;
use super::{Close, Event, PUBACK_BYTES, Session, Verdict};
use crate::mqtt::v5::{Properties, ReasonCode};
use crate::mqtt::{self, FromServer, PacketId, Publish, QoS};

/// An answer to the client.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// To a message of QoS 1.
    PubAck(PacketId, Verdict),
    /// To a message of QoS 2.
    PubRec(PacketId, Verdict),
    /// To PUBREC.
    PubRel(PacketId),
    /// To PUBREL.
    PubComp(PacketId),
    /// To PINGREQ.
    PingResp,
}

#[derive(Debug)]
struct Waiting {
    /// Everything up to this seq of the log has to be kept.
    seq: u64,
    /// Everything up to this version of the small state has to be durable.
    version: u64,
    answer: Answer,
}

/// What came from the client and is not done with.
#[derive(Debug, Default)]
pub(super) struct Receiver {
    /// In the order of their messages (MQTT-4.6.0-2); a PINGRESP waits behind them, so that a
    /// client that pings to learn how far the hub is gets a true answer.
    waiting: VecDeque<Waiting>,
    kept_seq: u64,
    durable_version: u64,
    /// Packet ids of QoS 2 messages that were taken, until PUBREL (MQTT-4.3.3-10).
    unreleased: BTreeSet<PacketId>,
}

impl Receiver {
    /// Queues an answer until so much is kept.
    pub fn push(&mut self, (seq, version): (u64, u64), answer: Answer) {
        if let Answer::PubRec(packet_id, verdict) = &answer
            && !verdict.code.is_failure()
        {
            self.unreleased.insert(*packet_id);
        }
        self.waiting.push_back(Waiting {
            seq,
            version,
            answer,
        });
    }

    /// Queues an answer behind all others.
    pub fn push_behind(&mut self, answer: Answer) {
        let back = self.waiting.back();
        let (seq, version) = back.map_or((0, 0), |last| (last.seq, last.version));
        self.waiting.push_back(Waiting {
            seq,
            version,
            answer,
        });
    }

    /// Everything up to `seq` is kept.
    pub fn kept(&mut self, seq: u64) {
        self.kept_seq = self.kept_seq.max(seq);
    }

    /// Everything up to `version` is durable.
    pub fn durable(&mut self, version: u64) {
        self.durable_version = self.durable_version.max(version);
    }

    /// The next answer that need not wait any more.
    pub fn next(&mut self) -> Option<Answer> {
        let first = self.waiting.front()?;
        if first.seq > self.kept_seq || first.version > self.durable_version {
            return None;
        }
        self.waiting.pop_front().map(|first| first.answer)
    }

    /// The oldest message whose answer waits for the log.
    pub fn unkept_seq(&self) -> Option<u64> {
        let first = self.waiting.front();
        first
            .map(|first| first.seq)
            .filter(|seq| *seq > self.kept_seq)
    }

    /// Whether a QoS 2 message was taken already (§4.3.3).
    pub fn has_taken(&self, packet_id: PacketId) -> bool {
        self.unreleased.contains(&packet_id)
    }

    /// The client released a QoS 2 message.
    pub fn release(&mut self, packet_id: PacketId) {
        self.unreleased.remove(&packet_id);
    }

    /// Goes on with what the previous connection had not released.
    pub fn resume(&mut self, unreleased: BTreeSet<PacketId>) {
        self.unreleased = unreleased;
    }

    /// What is left for the next connection. A message whose PUBREC never left comes again; it was
    /// taken all the same.
    pub fn park(self) -> BTreeSet<PacketId> {
        self.unreleased
    }
}

impl<T> Session<T> {
    /// A QoS 2 message that was taken already is answered, and not taken again (MQTT-4.3.3-10).
    pub(super) fn handle_publish<'a>(
        &mut self,
        publish: Publish<'a>,
        properties: Properties<'a>,
    ) -> Event<'a, T> {
        match publish.packet_id {
            Some(packet_id)
                if publish.qos == QoS::ExactlyOnce && self.receiver.has_taken(packet_id) =>
            {
                self.answer_behind(Answer::PubRec(packet_id, ReasonCode::Success.into()));
                Event::None
            }
            // The id is that of a QoS 2 message that is not released; 3.1.1 has no word for it.
            Some(packet_id)
                if publish.qos == QoS::AtLeastOnce
                    && self.is_v5()
                    && self.receiver.has_taken(packet_id) =>
            {
                let verdict = ReasonCode::PacketIdInUse.into();
                self.answer_behind(Answer::PubAck(packet_id, verdict));
                Event::None
            }
            _ => Event::Publish(publish, properties),
        }
    }

    pub(super) fn handle_puback<'a>(
        &mut self,
        now_ms: u64,
        packet_id: PacketId,
    ) -> Result<Event<'a, T>, Close> {
        self.check_step(packet_id, Step::Acknowledged)?;
        self.sender.hear(now_ms);
        let token = self.sender.acknowledge(packet_id);
        Ok(token.map_or(Event::None, Event::Delivered))
    }

    fn check_step(&self, packet_id: PacketId, step: Step) -> Result<(), Close> {
        if self.sender.contradicts(packet_id, step) {
            return Err(Close::ProtocolError("an acknowledgement of another QoS"));
        }
        Ok(())
    }

    /// The client has a message of QoS 2, or refuses it: for the hub it is delivered.
    pub(super) fn handle_pubrec<'a>(
        &mut self,
        now_ms: u64,
        packet_id: PacketId,
        failed: bool,
    ) -> Result<Event<'a, T>, Close> {
        self.check_step(packet_id, Step::Received)?;
        self.sender.hear(now_ms);
        match self.sender.received(packet_id, failed) {
            Some(token) if failed => return Ok(Event::Delivered(token)),
            Some(token) => return Ok(Event::Received(packet_id, token)),
            None => {}
        }
        if self.sender.is_released(packet_id) {
            self.answer_behind(Answer::PubRel(packet_id));
        } else if !failed {
            self.pubrel(packet_id, false);
        }
        Ok(Event::None)
    }

    /// Sends PUBREL once everything up to a version of the small state is kept.
    pub fn release(&mut self, packet_id: PacketId, version: u64) {
        self.receiver.push((0, version), Answer::PubRel(packet_id));
        self.answer();
    }

    pub(super) fn handle_pubrel<'a>(&mut self, packet_id: PacketId) -> Event<'a, T> {
        // One that is not known was released before: after a loss the client cannot know
        // (MQTT 5 §3.7.2.1), and it may not be on disk yet.
        self.receiver.release(packet_id);
        Event::Released(packet_id)
    }

    /// Sends PUBCOMP once everything up to a version of the small state is kept: with it the
    /// client takes the packet id for another message.
    pub fn complete(&mut self, packet_id: PacketId, version: u64) {
        self.receiver.push((0, version), Answer::PubComp(packet_id));
        self.answer();
    }

    pub(super) fn handle_pubcomp<'a>(
        &mut self,
        now_ms: u64,
        packet_id: PacketId,
    ) -> Result<Event<'a, T>, Close> {
        self.check_step(packet_id, Step::Completed)?;
        self.sender.hear(now_ms);
        match self.sender.complete(packet_id) {
            true => Ok(Event::Completed(packet_id)),
            false => Ok(Event::None),
        }
    }

    pub(super) fn pubrel(&mut self, packet_id: PacketId, known: bool) {
        if self.is_v5() {
            self.pubrel_v5(packet_id, known);
        } else {
            self.encode(&FromServer::PubRel(packet_id));
        }
    }

    pub(super) fn handle_ping(&mut self) {
        self.answer_behind(Answer::PingResp);
    }

    fn answer_behind(&mut self, answer: Answer) {
        self.receiver.push_behind(answer);
        self.answer();
    }

    /// Sends the answers that need not wait any more.
    pub(super) fn answer(&mut self) {
        while let Some(answer) = self.receiver.next() {
            match answer {
                Answer::PubAck(packet_id, verdict) => self.puback(packet_id, &verdict),
                Answer::PubRec(packet_id, verdict) if self.is_v5() => {
                    self.pubrec_v5(packet_id, &verdict);
                }
                Answer::PubRec(packet_id, _) => self.encode(&FromServer::PubRec(packet_id)),
                Answer::PubRel(packet_id) => self.pubrel(packet_id, true),
                Answer::PubComp(packet_id) if self.is_v5() => self.pubcomp_v5(packet_id),
                Answer::PubComp(packet_id) => self.encode(&FromServer::PubComp(packet_id)),
                Answer::PingResp => self.encode(&FromServer::PingResp),
            }
        }
    }

    /// Sends PUBACK or PUBREC, by the message's QoS, once everything up to a seq of the log and a
    /// version of the small state is kept, and behind those before it; 3.1.1 knows no reason but
    /// success.
    pub fn acknowledge(
        &mut self,
        (qos, packet_id): (QoS, PacketId),
        kept: (u64, u64),
        verdict: impl Into<Verdict>,
    ) {
        let verdict = verdict.into();
        let answer = match qos {
            QoS::ExactlyOnce => Answer::PubRec(packet_id, verdict),
            QoS::AtMostOnce | QoS::AtLeastOnce => Answer::PubAck(packet_id, verdict),
        };
        self.receiver.push(kept, answer);
        self.answer();
    }

    /// Everything up to `seq` is kept.
    pub fn handle_kept(&mut self, seq: u64) {
        self.receiver.kept(seq);
        self.answer();
    }

    /// The oldest message whose answer waits for the log.
    #[must_use]
    pub fn unkept_seq(&self) -> Option<u64> {
        self.receiver.unkept_seq()
    }

    fn puback(&mut self, packet_id: PacketId, verdict: &Verdict) {
        if self.is_v5() {
            self.puback_v5(packet_id, verdict);
            return;
        }
        self.answer_bytes += PUBACK_BYTES;
        mqtt::encode_puback(self.output.tail(), packet_id);
    }
}
