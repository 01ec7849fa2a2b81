//! The ways to the cloud: one for each sender, so that none of them holds another up.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use super::client::{Client, Output};
use super::route::{HOPS_MAX, TOO_MANY_HOPS};
use super::{Hub, Routing};
use crate::identity::Identity;
use crate::mailbox::{Mailbox, ROUTES};
use crate::message::{Endpoint, Properties, Value};
use crate::routes::View;
use crate::store::{Queue, Store};
use crate::topic::template::Template;

/// What `[upstream]` says of messages.
#[derive(Debug, Clone, PartialEq)]
pub struct Forwarding {
    /// How they are addressed.
    pub dialect: Dialect,
    /// Whether the cloud acknowledges them.
    pub acknowledged: bool,
    /// Largest message, body and properties, in bytes; `None`: what the hub itself takes.
    pub max_message_bytes: Option<usize>,
    /// While there is a backlog, this many of a hundred messages are new ones; `None`: the oldest
    /// go first.
    pub live_share: Option<u8>,
    /// What comes from above, and the inputs it is for.
    pub inbound: Vec<Inbound>,
}

/// How messages are addressed up there.
#[derive(Debug, Clone, PartialEq)]
pub enum Dialect {
    /// As the IoT Hub wants it (facts §1.6).
    IotHub,
    /// By a template of one's own.
    Topic(Template),
}

/// A subscription up there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inbound {
    /// What is subscribed to.
    pub filter: String,
    /// The input that gets it.
    pub input: Endpoint,
}

/// Why a message does not go up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grounded {
    /// There is no cloud.
    NoUpstream,
    /// The cloud does not take one so large.
    TooLarge {
        /// Body and properties.
        bytes: usize,
        /// The limit.
        max: usize,
    },
    /// It has passed [`HOPS_MAX`] hubs: it goes round.
    TooManyHops,
}

/// The reason of [`Grounded::TooLarge`] in metrics.
pub(super) const TOO_LARGE_FOR_CLOUD: &str = "too_large_for_cloud";
/// The property that counts them, set by a hub that gets a message from a hub.
const HOPS: &str = "edgehub-hops";

impl Grounded {
    /// A short stable word for metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::NoUpstream => "no_upstream",
            Self::TooLarge { .. } => TOO_LARGE_FOR_CLOUD,
            Self::TooManyHops => TOO_MANY_HOPS,
        }
    }
}

impl Hub {
    /// The queue in which a message waits for the cloud.
    pub(super) fn way_up<'a>(
        &self,
        routing: &Routing,
        output: &'a Output,
        hops: u8,
        message: &View<'_>,
    ) -> Result<&'a Arc<Queue>, Grounded> {
        let Some(forwarding) = &routing.forwarding else {
            return Err(Grounded::NoUpstream);
        };
        let bytes = message.body.len() + message.properties.bytes();
        if let Some(max) = forwarding.max_message_bytes.filter(|max| bytes > *max) {
            return Err(Grounded::TooLarge { bytes, max });
        }
        if hops >= HOPS_MAX {
            return Err(Grounded::TooManyHops);
        }
        let way = output.way.get_or_init(|| {
            let (way, is_new) = self.ways.of(&output.origin.sender, &self.store);
            if is_new {
                self.ways.announce(ROUTES);
            }
            way
        });
        Ok(way.queue(forwarding.live_share.is_some()))
    }

    /// Hubs that a message has passed; one that comes from a hub has passed that one, too.
    pub(super) fn count_hops(&self, client: &Client, properties: &mut Properties) -> u8 {
        let known = match properties.get(HOPS) {
            Value::Text(text) => text.parse().unwrap_or(0),
            Value::Missing | Value::Null => 0_u8,
        };
        if !client.is_hub {
            return known;
        }
        let hops = known.saturating_add(1);
        properties.set(HOPS, Some(&hops.to_string()));
        hops
    }
}

/// One sender's way.
#[derive(Debug)]
pub struct Way {
    /// Whose it is.
    pub sender: Identity,
    /// What waits, oldest first.
    backlog: Arc<Queue>,
    /// What came while the link was up, where there is a live share.
    live: OnceLock<Arc<Queue>>,
    is_up: AtomicBool,
    /// The cloud closes the connection at one of its messages.
    is_held: AtomicBool,
}

impl Way {
    /// Where a new message goes.
    pub(super) fn queue(&self, has_live_share: bool) -> &Arc<Queue> {
        let is_live = has_live_share && self.is_up.load(Ordering::Relaxed);
        let live = self.live.get().filter(|_| is_live);
        live.unwrap_or(&self.backlog)
    }

    /// Makes the queue of what is live; it is there before the link is up.
    pub(super) fn open_live(&self, store: &Store) {
        self.live.get_or_init(|| queue(&self.sender, true, store));
    }

    /// The backlog, and what is live if there is such a queue.
    pub(super) fn queues(&self) -> impl Iterator<Item = (&Arc<Queue>, bool)> {
        let live = self.live.get().map(|queue| (queue, true));
        std::iter::once((&self.backlog, false)).chain(live)
    }

    pub(super) fn is_held(&self) -> bool {
        self.is_held.load(Ordering::Relaxed)
    }

    pub(super) fn set_held(&self, is_held: bool) {
        self.is_held.store(is_held, Ordering::Relaxed);
    }

    pub(super) fn set_up(&self, is_up: bool) {
        self.is_up.store(is_up, Ordering::Relaxed);
    }
}

fn queue(sender: &Identity, live: bool, store: &Store) -> Arc<Queue> {
    let sender = sender.clone();
    store.queue(&Endpoint::Cloud { sender, live })
}

/// All ways.
#[derive(Debug, Default)]
pub(super) struct Ways(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    by_sender: BTreeMap<Identity, Arc<Way>>,
    /// Who wants to know of new ones, and which sender it serves if it is one.
    watchers: Vec<(Weak<Mailbox>, Option<Identity>)>,
}

impl Ways {
    /// Those of senders whose messages the store kept.
    pub fn kept(store: &Store) -> Self {
        let ways = Self::default();
        for queue in store.queues_of(Endpoint::is_upward) {
            if let Endpoint::Cloud { sender, live } = queue.endpoint() {
                let (way, _) = ways.of(sender, store);
                if *live {
                    way.live.get_or_init(|| queue.clone());
                }
            }
        }
        ways
    }

    /// A sender's way; true if it is a new one.
    pub fn of(&self, sender: &Identity, store: &Store) -> (Arc<Way>, bool) {
        let mut state = self.lock();
        if let Some(way) = state.by_sender.get(sender) {
            return (Arc::clone(way), false);
        }
        let way = Arc::new(Way {
            sender: sender.clone(),
            backlog: queue(sender, false, store),
            live: OnceLock::new(),
            is_up: AtomicBool::new(false),
            is_held: AtomicBool::new(false),
        });
        state.by_sender.insert(sender.clone(), Arc::clone(&way));
        (way, true)
    }

    /// All of them, by sender.
    pub fn all(&self) -> Vec<Arc<Way>> {
        self.lock().by_sender.values().cloned().collect()
    }

    /// Has a mailbox, which serves one sender or all, told of new ways as long as it lives.
    pub fn watch(&self, mailbox: &Arc<Mailbox>, serves: Option<Identity>) {
        let mut state = self.lock();
        state.watchers.retain(|(other, _)| other.strong_count() > 0);
        state.watchers.push((Arc::downgrade(mailbox), serves));
    }

    /// Tells all who watch.
    pub fn announce(&self, bits: u32) {
        self.announce_if(bits, |_| true);
    }

    /// Tells those who serve one of these senders.
    pub fn announce_to(&self, senders: &[Identity], bits: u32) {
        let concerns = |sender: &Identity| senders.contains(sender);
        self.announce_if(bits, |serves| serves.is_some_and(concerns));
    }

    fn announce_if(&self, bits: u32, concerns: impl Fn(Option<&Identity>) -> bool) {
        let watchers = self.lock().watchers.clone();
        for (watcher, serves) in &watchers {
            if let Some(watcher) = watcher.upgrade().filter(|_| concerns(serves.as_ref())) {
                watcher.raise(bits);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
