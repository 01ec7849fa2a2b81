//! The plain topic space: who has subscribed to what, and the way of a message to them.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use bytes::{Bytes, BytesMut};

use super::client::{Client, Held, Output};
use super::matched::{Matched, Share};
use super::outgoing::{PlainSide, qos};
use super::refused::Refused;
use super::{Hub, Now};
use crate::identity::Identity;
use crate::mailbox::Mailbox;
use crate::message::{Endpoint, Message, Origin, Plain, Priority, Source};
use crate::mqtt::v5::{Place, Properties, Property, encode_properties};
use crate::mqtt::{Publish, QoS};
use crate::store::journal::Subscription;
use crate::store::{Append, Bounds, Copy, Loss, Queue, Store};
use crate::subscriptions::Trie;

/// Levels of a topic or filter: matching goes as deep.
pub(super) const LEVELS_MAX: usize = 128;
/// Bytes of all filters of plain topics.
const FILTER_BYTES_MAX: u64 = 64 << 20;
/// What waits in memory: QoS 0, and sessions that end with their connections.
const LIVE: Bounds = Bounds {
    max_bytes: 64 << 20,
    endpoint_max_bytes: 8 << 20,
    endpoint_max_messages: 10_000,
    drop_oldest: false,
};

/// The plain topic space.
#[derive(Debug)]
pub(super) struct Space {
    index: RwLock<Trie<Member>>,
    /// Counts up with every change of the index.
    generation: AtomicU64,
    live: Store,
    /// What waits for kept sessions, never too little: counted once a second, and added to.
    kept_bytes: AtomicU64,
    /// Of the filters in the index.
    filter_bytes: AtomicU64,
}

/// The session of a client that has subscribed to plain topics.
#[derive(Debug)]
pub(super) struct Subscriber {
    identity: Identity,
    /// What is kept while it is away; none for a session that ends with its connection.
    pub kept: Option<Arc<Queue>>,
    /// What is not.
    pub live: Arc<Queue>,
    connected: AtomicBool,
}

/// One subscription in the index.
#[derive(Debug)]
struct Member {
    subscriber: Arc<Subscriber>,
    qos: QoS,
    no_local: bool,
    /// The whole filter of a shared subscription: one of those with the same gets a message.
    share: Option<Arc<str>>,
}

impl Space {
    pub fn new() -> Self {
        Self {
            index: RwLock::default(),
            generation: AtomicU64::new(1),
            live: Store::memory(LIVE, (0, 0)),
            kept_bytes: AtomicU64::new(0),
            filter_bytes: AtomicU64::new(0),
        }
    }

    /// What waits in memory.
    pub fn live(&self) -> &Store {
        &self.live
    }

    /// How many subscriptions there are.
    pub fn subscriptions(&self) -> usize {
        let index = self.index.read().unwrap_or_else(PoisonError::into_inner);
        index.len()
    }

    /// The queues in memory of the connected sessions that get a topic of the hub.
    pub fn live_copies(&self, topic: &str) -> Vec<Copy> {
        let matched = self.find(topic, &Identity::plain("hub", ""));
        let connected = matched.subscribers.iter();
        connected
            .filter(|(one, _)| one.is_connected())
            .map(|(one, _)| Copy::of(&one.live, None))
            .collect()
    }

    /// Adds a message to a queue in memory; false if it has no room. Each may take half of what
    /// the others leave, so that a few who do not read leave enough for those who do.
    pub fn add_live(
        &self,
        (message, copy): (&Arc<Message>, &Copy),
        waiter: &Arc<Mailbox>,
        now_ms: u64,
        (idle, losses): (&mut Vec<Arc<Mailbox>>, &mut Vec<Loss>),
    ) -> bool {
        let free = LIVE.max_bytes.saturating_sub(self.live.used_bytes());
        let has_room = copy.queue.bytes() + message.bytes() <= free / 2;
        let append = Append::unasked((message, copy), waiter, now_ms);
        has_room && self.live.append(&append, idle, losses).is_ok()
    }

    /// Whether a message may be added to the queue of a kept session: like in memory, of half of
    /// what the disk may hold, at most `queue_max`.
    pub fn has_kept_room(&self, queue: &Queue, bytes: u64, (max, queue_max): (u64, u64)) -> bool {
        let used = self.kept_bytes.load(Ordering::Relaxed);
        let share = (max / 2).saturating_sub(used) / 2;
        queue.bytes() + bytes <= share.min(queue_max)
    }

    /// So much waits for kept sessions, or will.
    pub fn add_kept(&self, bytes: u64) {
        self.kept_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// So much waits for kept sessions, counted.
    pub fn set_kept(&self, bytes: u64) {
        self.kept_bytes.store(bytes, Ordering::Relaxed);
    }

    /// Whether there may be another filter of so many bytes.
    pub fn has_filter_room(&self, bytes: u64) -> bool {
        self.filter_bytes.load(Ordering::Relaxed) + bytes <= FILTER_BYTES_MAX
    }

    /// Who may publish what is decided anew.
    pub fn forget_matches(&self) {
        self.generation.fetch_add(1, Ordering::Release);
    }

    /// Adds a subscription of a session, or changes it.
    pub fn subscribe(&self, subscriber: &Arc<Subscriber>, subscription: &Subscription) {
        let member = Member {
            subscriber: Arc::clone(subscriber),
            qos: subscription.granted(),
            no_local: subscription.no_local,
            share: subscription
                .share()
                .map(|_| subscription.filter.as_str().into()),
        };
        let (filter, is_same) = place(subscriber, subscription);
        if self
            .change(|index| index.insert(filter, member, is_same))
            .is_none()
        {
            let bytes = subscription.filter.len() as u64;
            self.filter_bytes.fetch_add(bytes, Ordering::Relaxed);
        }
    }

    /// Removes a subscription of a session.
    pub fn unsubscribe(&self, subscriber: &Arc<Subscriber>, subscription: &Subscription) {
        let (filter, is_same) = place(subscriber, subscription);
        if self.change(|index| index.remove(filter, is_same)).is_some() {
            let bytes = subscription.filter.len() as u64;
            self.filter_bytes.fetch_sub(bytes, Ordering::Relaxed);
        }
    }

    fn change<T>(&self, change: impl FnOnce(&mut Trie<Member>) -> T) -> T {
        let mut index = self.index.write().unwrap_or_else(PoisonError::into_inner);
        let changed = change(&mut index);
        self.generation.fetch_add(1, Ordering::Release);
        changed
    }

    /// Finds who gets what `sender` publishes to a topic.
    fn find(&self, topic: &str, sender: &Identity) -> Matched {
        let index = self.index.read().unwrap_or_else(PoisonError::into_inner);
        let generation = self.generation.load(Ordering::Acquire);
        let mut subscribers: Vec<(Arc<Subscriber>, QoS)> = Vec::new();
        let mut shared: Vec<Share> = Vec::new();
        index.for_each_match(topic, |member| {
            let found = (Arc::clone(&member.subscriber), member.qos);
            if let Some(filter) = &member.share {
                match shared.iter_mut().find(|share| share.filter == *filter) {
                    Some(share) => share.members.push(found),
                    None => shared.push(Share {
                        filter: Arc::clone(filter),
                        members: vec![found],
                        next: 0,
                    }),
                }
            } else if !member.no_local || member.subscriber.identity != *sender {
                subscribers.push(found);
            }
        });
        drop(index);
        // Of a session's subscriptions the highest QoS counts.
        subscribers.sort_by_key(|(one, qos)| (Arc::as_ptr(one), std::cmp::Reverse(*qos)));
        subscribers.dedup_by(|one, other| Arc::ptr_eq(&one.0, &other.0));
        Matched {
            topic: topic.to_owned(),
            generation,
            is_allowed: false,
            routes: Box::default(),
            subscribers,
            shared,
        }
    }
}

/// Where a subscription stands in the index, and how it is known there.
fn place<'a>(
    subscriber: &'a Arc<Subscriber>,
    subscription: &'a Subscription,
) -> (&'a str, impl Fn(&Member) -> bool + 'a) {
    let share = subscription.share();
    let filter = share.map_or(&*subscription.filter, |(_, filter)| filter);
    let share = share.map(|_| &*subscription.filter);
    (filter, move |known: &Member| {
        Arc::ptr_eq(&known.subscriber, subscriber) && known.share.as_deref() == share
    })
}

impl Subscriber {
    pub fn is_connected(&self) -> bool {
        self.connected.load(Ordering::Acquire)
    }

    /// What is kept, and what is not.
    pub fn queues(&self) -> impl Iterator<Item = &Arc<Queue>> {
        self.kept.iter().chain([&self.live])
    }

    /// The queue for a message that it gets with such a QoS; none for what is not kept for it
    /// while it is away.
    pub fn queue(&self, qos: QoS) -> Option<&Arc<Queue>> {
        match &self.kept {
            Some(kept) if qos != QoS::AtMostOnce => Some(kept),
            _ => self.is_connected().then_some(&self.live),
        }
    }

    /// It has a connection, or not.
    pub fn set_connected(&self, connected: bool) {
        self.connected.store(connected, Ordering::Release);
    }
}

impl Hub {
    /// The store that a queue belongs to.
    pub(super) fn store_of(&self, queue: &Queue) -> &Store {
        if queue.endpoint().is_live() {
            self.space.live()
        } else {
            &self.store
        }
    }

    /// A session that subscribes to plain topics, or did when the hub last ran.
    pub(super) fn subscriber(&self, identity: &Identity, is_kept: bool) -> Arc<Subscriber> {
        let endpoint = |live| Endpoint::Session {
            client: identity.clone(),
            live,
        };
        Arc::new(Subscriber {
            identity: identity.clone(),
            kept: is_kept.then(|| self.store.queue(&endpoint(false))),
            live: self.space.live.queue(&endpoint(true)),
            connected: AtomicBool::new(false),
        })
    }

    /// What waits in memory for a shared subscription goes to another member (MQTT 5 §4.8.2).
    fn pass_on(&self, queue: &Arc<Queue>, now: Now) {
        let live = self.space.live();
        let nobody = Arc::default();
        let (mut waiting, mut losses, mut idle) = (Vec::new(), Vec::new(), Vec::new());
        let room = (usize::MAX, u64::MAX);
        let into = (&mut waiting, &mut losses);
        live.fetch(queue, &nobody, room, now.ms, into);
        // What nobody gets goes back, or it would be in flight for ever.
        let mut left = Vec::new();
        for delivery in &waiting {
            let message = &delivery.message;
            let plain = Plain::parse(&message.bag);
            let Some((plain, filter)) = plain.and_then(|plain| Some((plain, plain.filter?))) else {
                left.push(delivery.seq);
                continue;
            };
            let mut matched = self.space.find(plain.topic, &message.origin.sender);
            let share = matched.shared.iter_mut().find(|one| &*one.filter == filter);
            let sent = qos(plain.qos);
            let chosen = share.and_then(|share| share.choose(sent));
            let other = chosen
                .as_ref()
                .and_then(|(one, granted)| one.queue(sent.min(*granted)));
            let Some(other) = other else {
                left.push(delivery.seq);
                continue;
            };
            let properties = Properties::parse(plain.properties, Place::ServerPublish);
            let waited_ms = now.ms.saturating_sub(message.received_ms);
            let ttl_ms = properties.unwrap_or_default().message_expiry_ms();
            let ttl_ms = ttl_ms.map(|ttl_ms| ttl_ms.saturating_sub(waited_ms));
            let copy = Copy::of(other, ttl_ms);
            let append = Append::unasked((message, &copy), &nobody, now.ms);
            let appended = self.store_of(other).append(&append, &mut idle, &mut losses);
            match appended {
                Ok(_) => live.acknowledge(queue, delivery.priority, delivery.seq),
                Err(_) => left.push(delivery.seq),
            }
        }
        live.release(queue, Priority::DEFAULT, &left);
        live.detach(queue, &nobody);
        crate::store::wake(&mut idle);
        self.store.flush();
    }

    /// What a session has in the plain topic space by its subscriptions, entered in the index;
    /// none without a plain one.
    pub(super) fn plain_side(
        &self,
        identity: &Identity,
        subscriptions: &[Subscription],
        is_kept: bool,
    ) -> Option<PlainSide> {
        let mut plain = subscriptions.iter().filter(|one| one.is_plain()).peekable();
        plain.peek()?;
        let mut side = PlainSide::new(self.subscriber(identity, is_kept));
        for subscription in plain {
            side.add(subscription);
            self.space.subscribe(&side.subscriber, subscription);
        }
        Some(side)
    }

    /// A session has ended: its subscriptions, and what waits for it.
    pub(super) fn end_subscriber(
        &self,
        subscriber: &Arc<Subscriber>,
        filters: &[Subscription],
        now: Now,
    ) {
        for subscription in filters.iter().filter(|one| one.is_plain()) {
            self.space.unsubscribe(subscriber, subscription);
        }
        self.pass_on(&subscriber.live, now);
        let messages = self.space.live.clear(&subscriber.live);
        self.dropped("not_connected", "unknown", "")
            .increment(messages as u64);
        if let Some(kept) = &subscriber.kept {
            let messages = self.store.clear(kept);
            self.dropped("session_ended", "unknown", "")
                .increment(messages as u64);
        }
    }

    /// Whether the client published to this topic last, and neither rules nor subscriptions have
    /// changed since.
    pub(super) fn knows(&self, client: &Client, topic: &str) -> bool {
        let known = self.known_match(client, topic);
        known.is_some_and(|at| client.matches.get(at).is_some_and(|known| known.is_allowed))
    }

    fn known_match(&self, client: &Client, topic: &str) -> Option<usize> {
        let generation = self.space.generation.load(Ordering::Acquire);
        let mut known = client.matches.iter();
        known.rposition(|known| known.generation == generation && known.topic == topic)
    }

    /// Who gets what is published to a topic; [`Client::keep_matched`] keeps it for the next time.
    pub(super) fn matched(&self, client: &mut Client, topic: &str) -> Matched {
        if let Some(at) = self.known_match(client, topic) {
            return client.matches.remove(at);
        }
        let mut matched = self.space.find(topic, &client.identity);
        // Old ones would keep the queues of sessions that are no more.
        let is_new = |known: &Matched| known.generation == matched.generation;
        client.matches.retain(is_new);
        let table = &client.routing.table;
        if table.takes_topics() {
            matched.routes = table.candidates(&Source::Topic(topic).to_string());
        }
        matched
    }

    /// Prepares a message for the sessions that have subscribed to its topic.
    pub(super) fn accept_plain(
        &self,
        client: &mut Client,
        (publish, sent_beside): (&Publish<'_>, Properties<'_>),
        now: Now,
    ) -> Result<Held, Refused> {
        let (properties, expiry_ms) = kept_properties(sent_beside);
        let bytes = publish.payload.len() + properties.len();
        let max = self.limits().max_message_bytes;
        if bytes > max {
            return Err(Refused::TooLarge { bytes, max });
        }
        client.sizes.add(bytes as f64);
        let output = self.plain_output(client);
        // Before it is known who has subscribed: whoever does from now on finds it here.
        let version = match publish.retain {
            false => 0,
            true => {
                let kept = (&*properties, expiry_ms);
                self.retain(client, publish, kept, (&output.origin, now))?
            }
        };
        let mut matched = self.matched(client, publish.topic);
        matched.is_allowed = true;
        let payload = Bytes::copy_from_slice(publish.payload);
        let message = |filter: Option<&str>| {
            let plain = Plain {
                qos: publish.qos as u8,
                retain: publish.retain,
                is_retained: false,
                topic: publish.topic,
                filter,
                properties: &properties,
            };
            Message {
                origin: Arc::clone(&output.origin),
                bag: plain.encode(),
                payload: payload.clone(),
                received_ms: now.ms,
            }
        };
        let mut copies = std::mem::take(&mut client.scratch.copies);
        let mut held = Held::new(message(None), &output, Vec::new());
        (held.version, held.targets) = (version, matched.targets());
        let own = Arc::clone(&held.message);
        let how = (publish.qos, expiry_ms);
        matched.fill((&mut held, &mut copies), &own, how, |filter| {
            message(Some(filter))
        });
        held.copies = copies;
        let came = (publish, sent_beside);
        self.route_plain(client, &mut held, came, (&matched, expiry_ms), now);
        client.keep_matched(matched);
        Ok(held)
    }

    /// Appends to the queues in memory; a full one loses the message, and nobody waits for it.
    pub(super) fn append_live(&self, client: &mut Client, held: &Held, now: Now) {
        let scratch = &mut client.scratch;
        let into = (&mut scratch.idle, &mut scratch.losses);
        for (message, copy) in &held.live {
            let it = (message, copy);
            if !self
                .space
                .add_live(it, &client.mailbox, now.ms, (into.0, into.1))
            {
                held.output.queue_full.increment(1);
            }
        }
    }

    /// Counters and origin of what a client publishes to plain topics.
    fn plain_output(&self, client: &mut Client) -> Arc<Output> {
        if let Some(known) = &client.plain_output {
            return Arc::clone(known);
        }
        let origin = Origin::new(client.identity.clone(), None);
        let output = Arc::new(self.bare_output(client, origin, ("", "no_subscriber")));
        Arc::clone(client.plain_output.insert(output))
    }
}

/// What of a publisher's properties receivers get, and how long the message is of use in
/// milliseconds (MQTT 5 §3.3.2.3).
fn kept_properties(sent: Properties<'_>) -> (BytesMut, Option<u64>) {
    let mut bytes = BytesMut::new();
    let mut expiry_ms = None;
    if !sent.is_empty() {
        let is_own =
            |one: &Property<'_>| matches!(one, Property::TopicAlias(_) | Property::WillDelay(_));
        let kept = sent.iter().filter(|one| !is_own(one));
        let written = encode_properties(&mut bytes, Place::ServerPublish, kept);
        debug_assert!(written.is_ok(), "what came may go: {written:?}");
        expiry_ms = sent.message_expiry_ms();
    }
    (bytes, expiry_ms)
}

/// Whether a topic or filter has at most [`LEVELS_MAX`] levels.
pub(super) fn is_shallow(topic: &str) -> bool {
    topic.bytes().filter(|byte| *byte == b'/').count() < LEVELS_MAX
}
