//! What the hub keeps for one connection.

use std::collections::{BTreeSet, VecDeque};
use std::sync::{Arc, OnceLock};

use bytes::{Bytes, BytesMut};
use metrics::{Counter, Histogram};

use super::ledger::Ledger;
use super::login::Proof;
use super::matched::Matched;
use super::outgoing::PlainSide;
use super::retained::Pending;
use super::routing::Routing;
use super::ways::{Grounded, Way};
use crate::identity::Identity;
use crate::mailbox::Mailbox;
use crate::message::{Message, Origin, Priority, Properties, Target};
use crate::mqtt::{PacketId, QoS};
use crate::observe::Runs;
use crate::store::journal::Subscription;
use crate::store::{Copy, Delivery, Loss, Queue};

/// Answers to requests that may wait for the client, beyond which requests are not answered:
/// as many as a client has outstanding at the very most.
pub(super) const RESPONSES_MAX: usize = 64;

/// Plain topics of which a client has at hand who gets them.
const MATCHES_MAX: usize = 8;

/// How the hub knows a delivery again when the client acknowledges it.
#[derive(Debug)]
pub enum Token {
    /// A queued message. It is on disk, so only what its acknowledgement needs is kept.
    Queued {
        /// Its place in its queue.
        place: Place,
        /// Who sent it.
        origin: Arc<Origin>,
        /// When the hub took it, in milliseconds of the hub's clock.
        received_ms: u64,
    },
    /// An answer to a request; nobody waits for its acknowledgement.
    Response,
}

/// Where a delivered message is queued.
#[derive(Debug, Clone)]
pub struct Place {
    /// Its queue.
    pub queue: Arc<Queue>,
    /// Its lane.
    pub priority: Priority,
    /// Which one it is.
    pub seq: u64,
}

impl Place {
    /// Whether it is in memory only.
    pub(super) fn is_live(&self) -> bool {
        self.queue.endpoint().is_live()
    }

    /// Whether it is the same message's.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        self.seq == other.seq
            && self.priority == other.priority
            && Arc::ptr_eq(&self.queue, &other.queue)
    }
}

/// An answer that waits to be sent.
#[derive(Debug)]
pub(super) struct Response {
    pub topic: String,
    pub payload: Bytes,
}

/// A queue that the client's subscriptions cover: an input, or its session's.
#[derive(Debug)]
pub(super) struct Input {
    pub queue: Arc<Queue>,
    pub topic_prefix: Bytes,
    pub qos: QoS,
    /// Its messages are of the plain topic space.
    pub is_plain: bool,
    /// False once a fetch found it empty, until the queue wakes the client.
    pub pending: bool,
}

/// A counter of delivered messages and what it counts; a receiver has few of them.
pub(super) struct Sent {
    pub origin: Arc<Origin>,
    pub queue: Arc<Queue>,
    pub priority: Priority,
    pub counter: Counter,
    pub duration: Runs,
}

/// What is known about one output of the client.
pub(super) struct Output {
    pub origin: Arc<Origin>,
    pub source: String,
    pub candidates: Box<[u16]>,
    pub received: Counter,
    pub no_route: Counter,
    /// The sender's way to the cloud, once one of its messages takes it.
    pub way: OnceLock<Arc<Way>>,
    pub queue_full: Counter,
}

/// An accepted message with its copies: routed once, and kept here while there is no room.
pub(super) struct Held {
    pub message: Arc<Message>,
    pub output: Arc<Output>,
    pub targets: usize,
    pub copies: Vec<Copy>,
    /// What else the message is, for others: each to all of its queues or to none.
    pub others: VecDeque<(Arc<Message>, Vec<Copy>)>,
    /// For queues in memory, which hold nobody back.
    pub live: Vec<(Arc<Message>, Copy)>,
    /// The version of the small state that has it as a retained message; 0: it is none.
    pub version: u64,
    /// Why there is no copy for the cloud though a route leads there.
    pub grounded: Option<Grounded>,
}

impl Held {
    /// A message that goes to nobody yet; `copies` is empty.
    pub fn new(message: Message, output: &Arc<Output>, copies: Vec<Copy>) -> Self {
        Self {
            message: Arc::new(message),
            output: Arc::clone(output),
            targets: 0,
            copies,
            others: VecDeque::new(),
            live: Vec::new(),
            version: 0,
            grounded: None,
        }
    }

    /// Whether no queue gets it.
    pub fn is_for_nobody(&self) -> bool {
        self.copies.is_empty() && self.others.is_empty() && self.live.is_empty()
    }
}

/// The topic of the last publish, parsed: modules send many messages with the same one.
pub(super) struct ParsedTopic {
    pub topic: String,
    pub output: Arc<Output>,
    pub properties: Properties,
    pub bag: Bytes,
    /// Hubs that the message passed before this one.
    pub hops: u8,
    /// How long the sender says that it is of use.
    pub expiry_ms: Option<u64>,
}

/// A will, kept until the connection ends (MQTT 3.1.1 §3.1.2.5).
#[derive(Debug, Clone)]
pub struct Will {
    /// Where it is published.
    pub topic: String,
    /// What is published.
    pub payload: Bytes,
    /// How it is published.
    pub qos: QoS,
    /// How long after the connection's end, in seconds.
    pub delay_s: u32,
    /// Whether it asks to be retained.
    pub retain: bool,
    /// Its properties as they came, which 3.1.1 has not (MQTT 5 §3.1.3.2).
    pub properties: Bytes,
}

/// A message that was in flight, to be sent again under its packet id.
pub(super) type Resumed = (PacketId, QoS, Place);

/// What a persistent session leaves behind for the next connection: which messages were in flight
/// under which ids. The messages are back in their queues.
#[derive(Debug, Default)]
pub struct Parked {
    pub(super) in_flight: VecDeque<Resumed>,
    pub(super) next_id: u16,
    /// QoS 2 messages that the client has, and not their release.
    pub(super) released: BTreeSet<PacketId>,
    /// QoS 2 messages of the client that it has not released.
    pub(super) unreleased: BTreeSet<PacketId>,
    pub(super) ledger: Ledger,
}

impl Parked {
    /// What is left after a restart.
    pub(super) fn restored(ledger: Option<Ledger>) -> Self {
        let ledger = ledger.unwrap_or_default();
        Self {
            next_id: 1,
            released: ledger.released(),
            unreleased: ledger.taken(),
            ledger,
            ..Self::default()
        }
    }
}

/// One connected client.
pub struct Client {
    pub(super) identity: Identity,
    /// The identity as a metric label.
    pub(super) label: Box<str>,
    pub(super) mailbox: Arc<Mailbox>,
    /// How it proved who it is; `None` for clients without credentials.
    pub(super) proof: Option<Proof>,
    pub(super) expires_unix: Option<u64>,
    pub(super) persistent: bool,
    /// How long its session is kept after the connection, in seconds; `u32::MAX`: for ever.
    pub(super) expiry_s: u32,
    /// It speaks MQTT 5, in which it can be told why a message is not taken.
    pub(super) is_v5: bool,
    /// It is a hub itself, one below.
    pub(super) is_hub: bool,
    pub(super) will: Option<Will>,
    pub(super) subscriptions: Vec<Subscription>,
    /// Subscriptions were added that do not take effect yet.
    pub(super) subscribed: bool,
    pub(super) routing: Arc<Routing>,
    pub(super) inputs: Vec<Input>,
    pub(super) next_input: usize,
    pub(super) outputs: Vec<Arc<Output>>,
    pub(super) held: Option<Held>,
    pub(super) parsed: Option<ParsedTopic>,
    /// In flight to the previous connection, to be sent again before anything else.
    pub(super) resumed: VecDeque<Resumed>,
    /// Its QoS 2 messages that are not complete.
    pub(super) ledger: Ledger,
    /// Messages that it has, which leave their queues once the disk knows that (a version of the
    /// small state).
    pub(super) received: VecDeque<(u64, Token)>,
    /// Its subscriptions to plain topics.
    pub(super) plain: Option<PlainSide>,
    /// Retained messages that its subscriptions bring.
    pub(super) retained: VecDeque<Pending>,
    /// Who gets what it publishes to the plain topics that it last did, the newest behind.
    pub(super) matches: Vec<Matched>,
    /// Counters and origin of what it publishes to plain topics.
    pub(super) plain_output: Option<Arc<Output>>,
    /// The same where routes take it from there.
    pub(super) crossing_output: Option<Arc<Output>>,
    /// The connection has ended; what is published now is its will.
    pub(super) is_going: bool,
    /// The newest message appended in this batch; 0: none.
    pub(super) appended_seq: u64,
    pub(super) responses: VecDeque<Response>,
    pub(super) response_qos: Option<u8>,
    pub(super) sent: Vec<Sent>,
    pub(super) sizes: Runs,
    pub(super) process: Runs,
    pub(super) scratch: Scratch,
}

/// Buffers that are used again for every message.
#[derive(Default)]
pub(super) struct Scratch {
    pub targets: Vec<Target>,
    pub copies: Vec<Copy>,
    pub idle: Vec<Arc<Mailbox>>,
    pub losses: Vec<Loss>,
    pub fetched: Vec<Delivery>,
    pub properties: BytesMut,
}

impl Client {
    /// Who it is.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// When its credentials must be checked again, in seconds since 1970.
    #[must_use]
    pub fn expires_unix(&self) -> Option<u64> {
        self.expires_unix
    }

    /// Keeps at hand who gets what is published to a plain topic.
    pub(super) fn keep_matched(&mut self, matched: Matched) {
        if self.matches.len() >= MATCHES_MAX {
            self.matches.remove(0);
        }
        self.matches.push(matched);
    }

    /// Voids the will: the client took its leave with DISCONNECT.
    pub fn void_will(&mut self) {
        self.will = None;
    }

    /// How long the session is kept after the connection, in seconds: a client of MQTT 5 may
    /// change its mind.
    pub fn set_expiry(&mut self, seconds: u32) {
        self.persistent = seconds > 0;
        self.expiry_s = seconds;
    }

    /// Gives the memory of empty buffers back; called when the connection goes idle.
    pub fn shrink(&mut self) {
        self.scratch = Scratch::default();
        self.responses.shrink_to_fit();
    }
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client")
            .field("identity", &self.identity)
            .finish_non_exhaustive()
    }
}

impl Sent {
    pub(super) fn new(
        origin: &Arc<Origin>,
        place: &Place,
        (counter, duration): (Counter, Histogram),
    ) -> Self {
        Self {
            origin: Arc::clone(origin),
            queue: Arc::clone(&place.queue),
            priority: place.priority,
            counter,
            duration: Runs::new(duration),
        }
    }

    pub(super) fn is_of(&self, origin: &Arc<Origin>, place: &Place) -> bool {
        self.priority == place.priority
            && Arc::ptr_eq(&self.origin, origin)
            && Arc::ptr_eq(&self.queue, &place.queue)
    }
}
