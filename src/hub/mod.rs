//! The meeting place: the order of the steps, and the only place where siblings meet.
//!
//! A message's way is [`Hub::publish`]: authorize → accept → route → append → (ack when stored) →
//! [`Hub::deliver`]. Everything here is called with the time; nothing waits, and no lock is held
//! from one call to the next.

mod address;
mod append;
mod attach;
mod beside;
mod certificates;
mod client;
mod counts;
mod deliver;
mod failures;
mod inbound;
mod leave;
mod ledger;
mod log_budget;
mod login;
mod matched;
mod outgoing;
mod plain;
mod publish;
mod refused;
mod requests;
mod retained;
mod route;
mod routing;
mod rules;
#[cfg(test)]
pub(crate) mod sample;
mod status;
mod subscribe;
mod suspicion;
mod sys;
mod uplink;
mod users;
mod ways;

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use dashmap::DashMap;

pub use attach::Attached;
pub use client::{Client, Token};
pub use failures::Doubt;
pub use inbound::Descending;
pub use log_budget::brief;
pub use login::{Login, LoginRefused, Outcome, Peer};
pub use publish::Published;
pub use refused::Refused;
pub use routing::Routing;
pub use status::LinkStatus;
pub use uplink::Uplink;
pub use users::PasswordCheck;
pub use ways::{Dialect, Forwarding, Inbound};

use crate::identity::Identity;
use crate::identity::registry::Registry;
use crate::identity::rules::Rules;
use crate::limits::Limits;
use crate::limits::pace::Pace;
use crate::mailbox::{Mailbox, RECHECK, ROUTES};
use crate::manifest::Manifest;
use crate::mqtt::PacketId;
use crate::observe::{self, Metrics};
use crate::routes::{RouteDiff, RouteTable};
use crate::store::journal::{Journal, Subscription};
use crate::store::{self, Bounds, Loss, LossReason, Store};

/// The time, by two clocks.
#[derive(Debug, Clone, Copy)]
pub struct Now {
    /// Milliseconds of a monotonic clock.
    pub ms: u64,
    /// Seconds since 1970.
    pub unix: u64,
    /// Milliseconds since 1970, by the system's clock as it is.
    pub wall_ms: u64,
}

/// What the hub is told by the configuration; swapped whole at a reload.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The edge device this hub runs on.
    pub device_id: String,
    /// The name that SAS tokens are scoped to.
    pub iothub_hostname: String,
    /// The name that clients connect to.
    pub gateway_hostname: String,
    /// Every bound.
    pub limits: Limits,
    /// Bounds of the queues.
    pub bounds: Bounds,
    /// How the log writes; `None`: there is none.
    pub log: Option<store::Options>,
}

/// What outlives the process, opened.
#[derive(Debug)]
pub struct Durable {
    /// The messages.
    pub store: Arc<Store>,
    /// The subscriptions of persistent sessions.
    pub journal: Journal,
    /// Those that were kept, by identity.
    pub sessions: BTreeMap<String, Vec<Subscription>>,
    /// Acknowledged messages that were gone at the start, at the most.
    pub lost_messages: u64,
    /// Messages that `edgehub store purge` dropped since the hub last ran.
    pub purged_messages: u64,
}

/// What is kept per identity while it is connected, or has a persistent session.
#[derive(Debug, Default)]
struct Slot {
    current: Option<Arc<Mailbox>>,
    waiting: Option<Arc<Mailbox>>,
    since_unix: u64,
    subscriptions: Option<Vec<Subscription>>,
    /// Who it is in the plain topic space, if it has subscribed there.
    subscriber: Option<Arc<plain::Subscriber>>,
    /// Whether the journal has these subscriptions.
    recorded: bool,
    parked: client::Parked,
    /// How long it is kept after its connection, in seconds; `u32::MAX`: for ever.
    expiry_s: u32,
    /// Since when it has no connection, in seconds since 1970; 0: it has one, or nobody looked yet.
    left_unix: u64,
    /// A will that waits.
    late_will: Option<leave::LateWill>,
    refused: VecDeque<(PacketId, String)>,
    /// Nobody knows the client: what it was refused goes with its session.
    is_strange: bool,
}

/// Retained messages are looked through for expired ones, in seconds; nobody gets such a one.
const EXPIRE_RETAINED_EVERY_S: u64 = 30;

/// The hub.
#[derive(Debug)]
pub struct Hub {
    settings: ArcSwap<Settings>,
    registry: ArcSwap<Registry>,
    routing: ArcSwap<Routing>,
    generation: AtomicU64,
    device_id: String,
    slots: DashMap<Identity, Slot>,
    connected: AtomicUsize,
    /// Connections by login, of those in no registry.
    logins: DashMap<Box<str>, usize>,
    connects: Pace,
    next_anonymous: AtomicU64,
    failures: failures::Failures,
    passwords: users::Passwords,
    output_labels: Mutex<HashSet<String>>,
    /// Before this time no other unrouted message is explained in the log.
    explained_ms: AtomicU64,
    /// What of the files was refused while running, by kind; the old version is in force.
    refused_files: Mutex<BTreeMap<&'static str, Vec<String>>>,
    log_budget: log_budget::LogBudget,
    store: Arc<Store>,
    space: plain::Space,
    retained: retained::Retained,
    /// When the hub started, in milliseconds of its clock; 0: not known yet.
    since_ms: AtomicU64,
    rules: ArcSwap<Rules>,
    statements: Mutex<rules::Statements>,
    journal: Journal,
    ways: ways::Ways,
    /// How the links to the cloud stand, by identity.
    links: Mutex<BTreeMap<String, LinkStatus>>,
    metrics: Arc<Metrics>,
}

impl Hub {
    /// A hub with what was kept, and no routes yet.
    #[must_use]
    pub fn new(
        settings: Settings,
        registry: Registry,
        durable: Durable,
        metrics: Arc<Metrics>,
    ) -> Self {
        let Durable {
            store,
            journal,
            sessions,
            lost_messages,
            purged_messages,
        } = durable;
        let slots = DashMap::with_shard_amount(16);
        let hub = Self {
            ways: ways::Ways::kept(&store),
            links: Mutex::default(),
            store,
            space: plain::Space::new(),
            retained: retained::Retained::default(),
            since_ms: AtomicU64::new(0),
            rules: ArcSwap::default(),
            statements: Mutex::default(),
            device_id: settings.device_id.clone(),
            connects: Pace::at_once(settings.limits.max_connects_per_second),
            settings: ArcSwap::from_pointee(settings),
            registry: ArcSwap::from_pointee(registry),
            routing: ArcSwap::from_pointee(Routing::empty()),
            generation: AtomicU64::new(0),
            slots,
            connected: AtomicUsize::new(0),
            logins: DashMap::with_shard_amount(4),
            next_anonymous: AtomicU64::new(1),
            failures: failures::Failures::default(),
            passwords: users::Passwords::default(),
            output_labels: Mutex::default(),
            explained_ms: AtomicU64::new(0),
            refused_files: Mutex::default(),
            log_budget: log_budget::LogBudget::default(),
            journal,
            metrics,
        };
        hub.restore_sessions(sessions);
        hub.clear_ended();
        for (reason, messages) in [("damaged", lost_messages), ("purged", purged_messages)] {
            if messages > 0 {
                hub.dropped(reason, "unknown", "").increment(messages);
            }
        }
        hub
    }

    /// Takes over the sessions and retained messages that were kept.
    fn restore_sessions(&self, sessions: BTreeMap<String, Vec<Subscription>>) {
        let expiries = self.journal.take_expiries();
        let ledgers = self.journal.take_ledgers();
        let kept_seq = self.store.kept();
        let unread = self.retained.load(self.journal.take_retained());
        if unread > 0 {
            tracing::error!(unread, "retained messages do not read and are lost");
        }
        for (identity, subscriptions) in sessions {
            if let Some(identity) = Identity::read(&identity) {
                let (expiry_s, left_unix) = expiries
                    .get(identity.as_str())
                    .copied()
                    .unwrap_or((u32::MAX, 0));
                let written = ledgers.get(identity.as_str());
                let ledger = written.and_then(|value| ledger::Ledger::read(value, kept_seq));
                self.correct_ledger(&identity, written, ledger.as_ref());
                let slot = Slot {
                    subscriber: self
                        .plain_side(&identity, &subscriptions, true)
                        .map(|side| side.subscriber),
                    subscriptions: Some(subscriptions),
                    recorded: true,
                    expiry_s,
                    left_unix,
                    parked: client::Parked::restored(ledger),
                    ..Slot::default()
                };
                self.slots.insert(identity, slot);
            }
        }
        // Before any seq of those is given to another message.
        self.journal.settle();
    }

    /// Every bound.
    #[must_use]
    pub fn limits(&self) -> Limits {
        self.settings.load().limits.clone()
    }

    /// The edge device this hub runs on.
    #[must_use]
    pub fn device_id(&self) -> &str {
        &self.device_id
    }

    /// The metrics.
    #[must_use]
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// Clients connected now.
    #[must_use]
    pub fn connected(&self) -> usize {
        self.connected.load(Ordering::Acquire)
    }

    /// The highest version of kept subscriptions that may be acknowledged: it is on disk, or the
    /// disk refused it and it is tried again.
    #[must_use]
    pub fn settled(&self) -> u64 {
        self.journal.settled()
    }

    /// The highest version of the small state that is on disk.
    #[must_use]
    pub fn durable(&self) -> u64 {
        self.journal.durable()
    }

    /// Takes new settings; the device id does not change while running.
    pub fn configure(&self, settings: Settings) {
        self.store.set_bounds(settings.bounds);
        if let Some(options) = settings.log {
            self.store.set_options(options);
        }
        self.connects.set(settings.limits.max_connects_per_second);
        self.settings.store(Arc::new(settings));
        self.announce(RECHECK);
    }

    /// Shows in the status that a changed file was refused, or with no errors that it is good.
    pub fn set_refused(&self, what: &'static str, errors: &[String]) {
        let mut refused = self
            .refused_files
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if errors.is_empty() {
            refused.remove(what);
        } else {
            refused.insert(what, errors.to_vec());
        }
    }

    /// The identities.
    #[must_use]
    pub fn registry(&self) -> Arc<Registry> {
        self.registry.load_full()
    }

    /// Takes new routes, swapped whole; unchanged ones keep their counters.
    pub fn set_routes(
        &self,
        table: RouteTable,
        manifest: &Manifest,
        problems: Vec<String>,
    ) -> RouteDiff {
        self.set_manifest_authorization(manifest.authorizations.clone());
        let (routing, diff) = Routing::new(table, manifest, problems, &self.routing(), &self.store);
        self.swap_routing(routing);
        diff
    }

    /// From now on messages for the cloud go there like this; `None`: they do not.
    pub fn set_forwarding(&self, forwarding: Option<Forwarding>) {
        let old = self.routing();
        let inbound = forwarding.iter().flat_map(|forwarding| &forwarding.inbound);
        let inbound = inbound.map(|inbound| self.store.queue(&inbound.input));
        self.swap_routing(Routing {
            generation: old.generation + 1,
            inbound: inbound.collect(),
            forwarding: forwarding.map(Arc::new),
            ..(*old).clone()
        });
    }

    fn swap_routing(&self, routing: Routing) {
        let generation = routing.generation;
        self.routing.store(Arc::new(routing));
        self.generation.store(generation, Ordering::Release);
        self.announce(ROUTES);
    }

    /// The routes.
    #[must_use]
    pub fn routing(&self) -> Arc<Routing> {
        self.routing.load_full()
    }

    /// Gives up what expired, and refreshes the gauges; called once a second.
    pub fn sweep(&self, now: Now) {
        let (unknown, relaxed) = (0, Ordering::Relaxed);
        let _ = self
            .since_ms
            .compare_exchange(unknown, now.ms, relaxed, relaxed);
        let mut losses = Vec::new();
        self.store.sweep((now.ms, now.wall_ms), &mut losses);
        self.space.live().sweep((now.ms, now.ms), &mut losses);
        self.end_sessions(now);
        if now.unix.is_multiple_of(sys::EVERY_S) {
            self.publish_sys(now);
        }
        if now.unix.is_multiple_of(EXPIRE_RETAINED_EVERY_S) {
            self.expire_retained(now);
        }
        lose(self, &mut losses);
        let syncs = self.metrics.summary(observe::STORE_SYNC_DURATION, &[]);
        for micros in self.store.take_sync_samples() {
            syncs.record(f64::from(micros) / 1e6);
        }
        let suppressed = self.log_budget.refill();
        if suppressed > 0 {
            tracing::warn!(
                suppressed,
                "lines about refused clients left out; they are counted"
            );
        }
    }

    /// Writes what the store still has to, and ends it in good order.
    pub fn close_store(&self, now: Now) {
        self.store.close(now.ms);
    }

    /// Whether a line about a refused client may go to the log now.
    #[must_use]
    pub fn may_log(&self) -> bool {
        self.log_budget.take()
    }

    fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    fn announce_if(&self, bits: u32, concerns: impl Fn(&Identity) -> bool) {
        for slot in &self.slots {
            if concerns(slot.key())
                && let Some(current) = &slot.current
            {
                current.raise(bits);
            }
        }
    }
}

/// Counts messages that the store gave up, by reason; they show in the log as one line a batch.
fn lose(hub: &Hub, losses: &mut Vec<Loss>) {
    if losses.is_empty() {
        return;
    }
    let mut by_reason: BTreeMap<&'static str, usize> = BTreeMap::new();
    for loss in losses.drain(..) {
        let reason = match loss.reason {
            LossReason::Expired => "ttl_expiry",
            LossReason::DroppedOldest => "dropped_oldest",
            LossReason::Damaged => "damaged",
            LossReason::Purged => "purged",
        };
        hub.count_loss(reason, &loss);
        *by_reason.entry(reason).or_default() += loss.messages;
        if loss.reason == LossReason::Damaged {
            let endpoint = loss.endpoint.map(|endpoint| endpoint.to_string());
            let (first_seq, last_seq) = loss.seqs;
            let messages = loss.messages;
            tracing::error!(endpoint, first_seq, last_seq, messages, "damaged on disk");
        }
    }
    tracing::warn!(?by_reason, "messages given up");
}
