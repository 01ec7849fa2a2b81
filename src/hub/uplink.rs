//! What goes up: the queues of the senders that one connection to the cloud serves.

use std::collections::VecDeque;
use std::sync::Arc;

mod hold;

use bytes::BytesMut;

use super::address::address;
use super::client::{Resumed, Scratch, Sent, Token};
use super::deliver::token;
use super::suspicion::Suspicion;
use super::ways::{Dialect, Forwarding, TOO_LARGE_FOR_CLOUD, Way};
use super::{Hub, Now, beside, lose};
use crate::identity::Identity;
use crate::mailbox::Mailbox;
use crate::message::Priority;
use crate::mqtt::{PacketId, QoS};
use crate::observe::{self, Runs};
use crate::session::{InFlight, Outgoing, Upward};
use crate::store::{Delivery, Queue};
use hold::{Probe, release_held};

/// Messages fetched from a queue at a time: one lock for many, and others get their turn.
const FETCH_MAX: usize = 32;
/// The same where new messages and the backlog take turns by their shares.
const FETCH_SHARED: usize = 4;

/// What the hub keeps for one connection to the cloud.
pub struct Uplink {
    /// The only sender that it serves; `None`: all of them.
    only: Option<Identity>,
    mailbox: Arc<Mailbox>,
    forwarding: Arc<Forwarding>,
    sources: Vec<Source>,
    next: usize,
    /// Hundredths of a turn that new messages have saved up.
    live_turns: u32,
    is_up: bool,
    suspicion: Suspicion,
    /// Some queue is left alone, or was and has not passed since.
    has_held: bool,
    /// In flight on the connection before, to be sent again before anything else.
    resumed: VecDeque<Resumed>,
    sent: Vec<Sent>,
    process: Runs,
    pub(super) scratch: Scratch,
    topic: Vec<u8>,
    suffix: Vec<u8>,
    properties: BytesMut,
}

/// One queue that the connection empties.
struct Source {
    way: Arc<Way>,
    queue: Arc<Queue>,
    is_live: bool,
    /// False once it was found empty, until the queue wakes the connection.
    pending: bool,
    /// Until when it is left alone, and how often it was.
    held_ms: u64,
    held_times: u32,
    probe: Probe,
}

impl Uplink {
    pub(super) fn forwarding(&self) -> &Forwarding {
        &self.forwarding
    }

    /// When the next queue that was left alone is tried again; `u64::MAX`: there is none.
    #[must_use]
    pub fn held_ms(&self, now_ms: u64) -> u64 {
        if !self.has_held {
            return u64::MAX;
        }
        let held = self.sources.iter().map(|source| source.held_ms);
        held.filter(|until| *until > now_ms)
            .min()
            .unwrap_or(u64::MAX)
    }

    pub(super) fn mailbox(&self) -> &Arc<Mailbox> {
        &self.mailbox
    }
}

impl std::fmt::Debug for Uplink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Uplink")
            .field("only", &self.only)
            .field("sources", &self.sources.len())
            .finish_non_exhaustive()
    }
}

impl Hub {
    /// The hub's end of a connection to the cloud that serves one sender, or all.
    #[must_use]
    pub fn uplink(
        &self,
        only: Option<Identity>,
        forwarding: Arc<Forwarding>,
        mailbox: &Arc<Mailbox>,
    ) -> Uplink {
        self.ways.watch(mailbox, only.clone());
        let label = only
            .as_ref()
            .map_or("upstream", |identity| self.id_label(identity));
        let process = self
            .metrics
            .summary(observe::PROCESS_DURATION, &[("id", label)]);
        let mut uplink = Uplink {
            only,
            mailbox: Arc::clone(mailbox),
            forwarding,
            sources: Vec::new(),
            next: 0,
            live_turns: 0,
            is_up: false,
            suspicion: Suspicion::default(),
            has_held: false,
            resumed: VecDeque::new(),
            sent: Vec::new(),
            process: Runs::new(process),
            scratch: Scratch::default(),
            topic: Vec::new(),
            suffix: Vec::new(),
            properties: BytesMut::new(),
        };
        self.refresh_sources(&mut uplink);
        uplink
    }

    /// Senders whose messages go up, or went.
    #[must_use]
    pub fn upward_senders(&self) -> Vec<Identity> {
        let ways = self.ways.all();
        ways.iter().map(|way| way.sender.clone()).collect()
    }

    /// Has a mailbox told with [`crate::mailbox::ROUTES`] of new senders.
    pub fn watch_senders(&self, mailbox: &Arc<Mailbox>) {
        self.ways.watch(mailbox, None);
    }

    /// Raises bits at all connections to the cloud.
    pub fn announce_upward(&self, bits: u32) {
        self.ways.announce(bits);
    }

    /// Takes in the queues of new senders.
    pub fn refresh_sources(&self, uplink: &mut Uplink) {
        let serves = |way: &Arc<Way>| uplink.only.as_ref().is_none_or(|only| *only == way.sender);
        for way in self.ways.all().into_iter().filter(serves) {
            if uplink.forwarding.live_share.is_some() {
                way.open_live(&self.store);
            }
            way.set_up(uplink.is_up);
            for (queue, is_live) in way.queues() {
                let is_known = |source: &Source| Arc::ptr_eq(&source.queue, queue);
                if !uplink.sources.iter().any(is_known) {
                    uplink.sources.push(Source {
                        queue: Arc::clone(queue),
                        way: Arc::clone(&way),
                        is_live,
                        pending: true,
                        held_ms: 0,
                        held_times: 0,
                        probe: Probe::None,
                    });
                }
            }
        }
    }

    /// Whether anything waits; if not, the mailbox is told of the first message.
    #[must_use]
    pub fn has_upward(&self, uplink: &mut Uplink) -> bool {
        self.refresh_sources(uplink);
        let mut waits = false;
        // All of them listen from now on.
        for source in &uplink.sources {
            waits |= !self.store.listen(&source.queue, &uplink.mailbox);
        }
        waits
    }

    /// The connection is up: what comes from now on is new, what waits is backlog.
    pub fn link_up(&self, uplink: &mut Uplink, session_present: bool) {
        uplink.is_up = true;
        uplink.suspicion.begin();
        if !session_present {
            // The server knows nothing of those ids; the messages are in their queues.
            uplink.resumed.clear();
        }
        self.refresh_sources(uplink);
        self.upward_waiting(uplink);
    }

    /// The connection is gone, closed by the server or otherwise: what was in flight goes back to
    /// its queues, to be sent again first.
    pub fn link_down(
        &self,
        uplink: &mut Uplink,
        in_flight: VecDeque<InFlight<Token>>,
        by_server: bool,
        now: Now,
    ) {
        uplink.is_up = false;
        let culprit = uplink.suspicion.end(&in_flight, by_server);
        let mut parked = self.release(in_flight);
        parked.append(&mut uplink.resumed);
        uplink.resumed = parked;
        if let Some(place) = culprit {
            hold::at_end(uplink, &place, now);
        }
        hold::leave_refused(uplink);
        for source in &mut uplink.sources {
            source.probe.put_back();
            source.way.set_up(false);
            self.store.detach(&source.queue, &uplink.mailbox);
        }
        uplink.scratch = Scratch::default();
        uplink.sent.clear();
        uplink.process.flush();
    }

    /// A queue has messages: look at all of them again.
    pub fn upward_waiting(&self, uplink: &mut Uplink) {
        for source in &mut uplink.sources {
            source.pending = true;
        }
    }

    /// Fills the window from the queues, the most urgent first, senders taking turns. Sends
    /// `allowance` messages at the most and returns how many it sent.
    pub fn forward(
        &self,
        uplink: &mut Uplink,
        upward: &mut Upward<Token>,
        allowance: usize,
        now: Now,
    ) -> usize {
        let output_max = self.limits().max_output_bytes;
        let allowance = if uplink.suspicion.is_careful() {
            allowance.min(usize::from(upward.is_quiet()))
        } else {
            allowance
        };
        let mut sent = 0;
        while !uplink.resumed.is_empty() {
            let room = upward.output().len() < output_max && sent < allowance;
            if !room || !self.send_again(uplink, upward, now) {
                return sent;
            }
            sent += 1;
        }
        loop {
            let room_bytes = output_max.saturating_sub(upward.output().len());
            let room = upward.room().min(allowance - sent);
            if room == 0 || room_bytes == 0 {
                break;
            }
            let Some(at) = self.choose(uplink, now) else {
                break;
            };
            let room = (room, room_bytes as u64);
            sent += self.forward_from(uplink, at, upward, room, now);
        }
        lose(self, &mut uplink.scratch.losses);
        uplink.process.flush();
        sent
    }

    /// The queue whose turn it is.
    fn choose(&self, uplink: &mut Uplink, now: Now) -> Option<usize> {
        let mut best: Option<(Priority, bool, usize, usize)> = None;
        let count = uplink.sources.len();
        let wants_live = match uplink.forwarding.live_share {
            Some(share) => {
                uplink.live_turns = (uplink.live_turns + u32::from(share)).min(199);
                uplink.live_turns >= 100
            }
            None => false,
        };
        for (at, source) in uplink.sources.iter_mut().enumerate() {
            if !source.pending || source.held_ms > now.ms || source.probe.is_out() {
                continue;
            }
            let Some(priority) = self.store.most_urgent(&source.queue) else {
                source.pending = !self.store.listen(&source.queue, &uplink.mailbox);
                continue;
            };
            let is_urgent = priority.index() == 0;
            // By urgency, then by whose share it is, then in turn.
            let rank = (
                if is_urgent || uplink.forwarding.live_share.is_none() {
                    priority
                } else {
                    Priority::DEFAULT
                },
                !is_urgent && source.is_live != wants_live,
                (at + count - uplink.next) % count,
                at,
            );
            if best.is_none_or(|best| rank < best) {
                best = Some(rank);
            }
        }
        let (_, is_other, _, at) = best?;
        if wants_live {
            uplink.live_turns -= 100;
        }
        if is_other {
            // Nothing of that share waits, so it saves nothing up either.
            uplink.live_turns = 0;
        }
        uplink.next = (at + 1) % count;
        Some(at)
    }

    fn forward_from(
        &self,
        uplink: &mut Uplink,
        at: usize,
        upward: &mut Upward<Token>,
        (room, room_bytes): (usize, u64),
        now: Now,
    ) -> usize {
        let Some(source) = uplink.sources.get_mut(at) else {
            return 0;
        };
        let turn = match uplink.forwarding.live_share {
            Some(_) => FETCH_SHARED,
            None => FETCH_MAX,
        };
        let mut fetched = std::mem::take(&mut uplink.scratch.fetched);
        let into = (&mut fetched, &mut uplink.scratch.losses);
        let is_probe = source.probe.is_due();
        let room = if is_probe { 1 } else { room.min(turn) };
        let room = (room, room_bytes);
        self.store
            .fetch(&source.queue, &uplink.mailbox, room, now.ms, into);
        source.pending = !fetched.is_empty();
        let queue = Arc::clone(&source.queue);
        let sent = fetched.len();
        for delivery in fetched.drain(..) {
            let waited_ms = now.ms.saturating_sub(delivery.message.received_ms);
            uplink.process.add(waited_ms as f64 / 1000.0);
            let token = token(&queue, &delivery);
            let is_out = self.send_up(uplink, upward, &delivery, (token, None), now);
            if let Some(source) = uplink.sources.get_mut(at).filter(|_| is_probe && is_out) {
                source.probe = Probe::Out(delivery.seq);
            }
        }
        uplink.scratch.fetched = fetched;
        sent
    }

    /// Sends one message of the connection before again, under its old id; false if it has to be
    /// read from disk first.
    fn send_again(&self, uplink: &mut Uplink, upward: &mut Upward<Token>, now: Now) -> bool {
        let Some((packet_id, _, place)) = uplink.resumed.front() else {
            return false;
        };
        let (packet_id, at) = (*packet_id, (place.priority, place.seq));
        let queue = Arc::clone(&place.queue);
        match self.store.fetch_one(&queue, &uplink.mailbox, at, now.ms) {
            Ok(delivery) => {
                let token = token(&queue, &delivery);
                self.send_up(uplink, upward, &delivery, (token, Some(packet_id)), now);
            }
            Err(true) => return false,
            // It expired, or the queue was purged.
            Err(false) => {}
        }
        uplink.resumed.pop_front();
        true
    }

    /// False: it cannot be sent, and is given up.
    fn send_up(
        &self,
        uplink: &mut Uplink,
        upward: &mut Upward<Token>,
        delivery: &Delivery,
        (token, packet_id): (Token, Option<PacketId>),
        now: Now,
    ) -> bool {
        let message = &delivery.message;
        uplink.topic.clear();
        uplink.suffix.clear();
        let (topic, suffix) = (&mut uplink.topic, &mut uplink.suffix);
        let dialect = &uplink.forwarding.dialect;
        let from = message.origin.sender.as_str();
        if let Err(unfit) = address(dialect, message, upward.is_v5(), topic, suffix) {
            tracing::warn!(from, "a message for the cloud is given up: {unfit}");
            self.count_dropped("bad_topic", from, "");
            self.give_up(token);
            return false;
        }
        let mut out = Outgoing::new(&uplink.topic, &uplink.suffix, &message.payload);
        if upward.is_v5() {
            let left_ms = self.store.time_left_ms(delivery, now.ms);
            let is_in_topic = *dialect == Dialect::IotHub;
            let properties = &mut uplink.properties;
            out.properties = beside::upwards(message, is_in_topic, left_ms, properties);
        }
        let qos = match (packet_id, uplink.forwarding.acknowledged) {
            (None, false) => QoS::AtMostOnce,
            _ => QoS::AtLeastOnce,
        };
        if !upward.takes(qos, &out) {
            let bytes = out.packet_bytes_v5(qos);
            if self.may_log() {
                tracing::warn!(
                    from,
                    bytes,
                    "a message is given up: it is over the maximum packet size of the cloud"
                );
            }
            self.count_dropped(TOO_LARGE_FOR_CLOUD, from, "");
            self.give_up(token);
            return false;
        }
        if let Some(packet_id) = packet_id {
            let in_flight = InFlight {
                packet_id,
                qos,
                token,
            };
            upward.redeliver(&out, in_flight);
        } else if let Some(token) = upward.deliver(now.ms, qos, &out, token) {
            self.forwarded(uplink, token, now);
        }
        true
    }

    /// The cloud acknowledged a message, or is not asked to.
    pub fn forwarded(&self, uplink: &mut Uplink, token: Token, now: Now) {
        uplink.suspicion.acknowledge();
        if let Token::Queued { place, .. } = &token
            && uplink.has_held
        {
            release_held(uplink, place);
        }
        self.done_with(&mut uplink.sent, token, now);
    }

    /// Senders at whose messages the cloud closes the connection.
    pub(super) fn held_senders(&self) -> Vec<String> {
        let ways = self.ways.all();
        let held = ways.iter().filter(|way| way.is_held());
        held.map(|way| way.sender.to_string()).collect()
    }

    fn give_up(&self, token: Token) {
        if let Token::Queued { place, .. } = token {
            self.store
                .acknowledge(&place.queue, place.priority, place.seq);
        }
    }
}

#[cfg(test)]
mod tests;
