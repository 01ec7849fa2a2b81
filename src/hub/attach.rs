//! The one connection that each identity may have, and the session that it goes on with.

use std::collections::VecDeque;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::client::{Client, Scratch, Token};
use super::ledger::Ledger;
use super::outgoing::PlainSide;
use super::plain::Subscriber;
use super::{Hub, Login, Now, Slot};
use crate::identity::Identity;
use crate::limits::TOPIC_BYTES_MAX;
use crate::mailbox::{Mailbox, RECHECK, TAKEN_OVER};
use crate::observe::{self, Runs};
use crate::session::{Session, Welcome};
use crate::store::journal::Subscription;

/// Whether a client got its place.
#[derive(Debug)]
pub enum Attached {
    /// It is in, and its CONNACK is on the way.
    In(Box<Client>),
    /// The previous connection of this identity has to go first;
    /// [`crate::mailbox::ATTACH`] tells when.
    Wait,
    /// There is no place for another client, by this limit.
    Full(&'static str),
}

impl Hub {
    /// Gives the client its place, if it is free. Otherwise the connection that has it is told to
    /// go (MQTT 3.1.1 §3.1.4), and so is one that already waited.
    pub fn attach(
        &self,
        login: &Login,
        mailbox: &Arc<Mailbox>,
        session: &mut Session<Token>,
        now: Now,
    ) -> Attached {
        if self.is_one_too_many(login) {
            return Attached::Full("max_sessions");
        }
        let mut slot = self.slots.entry(login.identity.clone()).or_default();
        if let Some(current) = &slot.current {
            current.raise(TAKEN_OVER);
            let waiting = slot.waiting.replace(Arc::clone(mailbox));
            if let Some(other) = waiting.filter(|other| !Arc::ptr_eq(other, mailbox)) {
                other.raise(TAKEN_OVER);
            }
            return Attached::Wait;
        }
        if let Err(limit) = self.enter(&login.identity) {
            return Attached::Full(limit);
        }
        // One that waited and has not come yet is older than this one.
        let waiting = slot.waiting.take();
        if let Some(other) = waiting.filter(|other| !Arc::ptr_eq(other, mailbox)) {
            other.raise(TAKEN_OVER);
        }
        // What has expired is as if it had ended.
        let is_clean = login.clean || slot.is_expired(now.unix);
        slot.current = Some(Arc::clone(mailbox));
        slot.since_unix = now.unix;
        let present = !is_clean && slot.subscriptions.is_some();
        let parked = std::mem::take(&mut slot.parked);
        let late_will = slot.late_will.take();
        (slot.expiry_s, slot.left_unix) = (login.expiry_s, 0);
        let goes_on = login.persistent && !is_clean;
        let ended = !goes_on && slot.subscriptions.is_some();
        let former = if goes_on {
            slot.subscriptions.clone()
        } else {
            slot.recorded = false;
            slot.subscriptions.take()
        };
        let subscriber = slot.subscriber.take();
        drop(slot);
        if let Some(will) = late_will.filter(|_| is_clean) {
            self.publish_late(will, now);
        }
        let former = former.unwrap_or_default();
        let (subscriptions, plain) = self.go_on(subscriber, former, is_clean.then_some(now));
        let mut client = self.new_client(login, mailbox, subscriptions, plain);
        if ended {
            self.forget_session(&login.identity, mailbox);
        }
        if !present {
            // A kept session outlives a restart even before its first SUBSCRIBE.
            self.keep_subscriptions(&client);
        }
        self.refresh_inputs(&mut client);
        session.accept(now.ms, &self.welcome(login, present));
        session.handle_kept(self.store.kept());
        if !is_clean {
            session.resume(parked.next_id, parked.released, parked.unreleased);
            client.resumed = parked.in_flight;
            client.ledger = parked.ledger;
        }
        self.metrics
            .counter(observe::CONNECT_SUCCESS, &[("id", &client.label)])
            .increment(1);
        self.count_connected();
        // Identities may have changed between the login and here; nobody told this connection.
        mailbox.raise(RECHECK);
        if self.may_tell(&login.identity) {
            let (id, address) = (login.identity.as_str(), login.address);
            tracing::info!(id, %address, session_present = present, "client connected");
        }
        Attached::In(Box::new(client))
    }

    /// The subscriptions of the session, unless it is to be forgotten.
    fn go_on(
        &self,
        subscriber: Option<Arc<Subscriber>>,
        former: Vec<Subscription>,
        ended: Option<Now>,
    ) -> (Vec<Subscription>, Option<PlainSide>) {
        let Some(now) = ended else {
            let plain = subscriber.map(|subscriber| PlainSide::of(subscriber, &former));
            return (former, plain);
        };
        if let Some(subscriber) = &subscriber {
            self.end_subscriber(subscriber, &former, now);
        }
        (Vec::new(), None)
    }

    /// Counts a connection, unless that is over a limit.
    fn enter(&self, identity: &Identity) -> Result<(), &'static str> {
        let limits = self.limits();
        let connected = self.connected.fetch_add(1, Ordering::AcqRel);
        let mut limit = (connected >= limits.max_connections).then_some("max_connections");
        if limit.is_none() && identity.is_plain() {
            let mut count = self.logins.entry(identity.rule_name().into()).or_default();
            let is_full = *count >= limits.max_connections_per_login;
            limit = is_full.then_some("max_connections_per_login");
            *count += usize::from(!is_full);
        }
        match limit {
            None => Ok(()),
            Some(limit) => {
                self.connected.fetch_sub(1, Ordering::AcqRel);
                Err(limit)
            }
        }
    }

    /// One connection less.
    pub(super) fn leave(&self, identity: &Identity) {
        self.connected.fetch_sub(1, Ordering::AcqRel);
        if identity.is_plain() {
            let login = identity.rule_name();
            if let Some(mut count) = self.logins.get_mut(login) {
                *count -= 1;
            }
            self.logins.remove_if(login, |_, count| *count == 0);
        }
    }

    /// Whether a session would be over `max_sessions`. Those of the registry are counted, not
    /// refused: it bounds them.
    fn is_one_too_many(&self, login: &Login) -> bool {
        login.persistent
            && login.identity.is_plain()
            && self.slots.len() >= self.limits().max_sessions
            && !self.slots.contains_key(&login.identity)
    }

    /// Whether a connection of a client may be told: those in no registry are told within the
    /// budget of lines.
    pub(super) fn may_tell(&self, identity: &Identity) -> bool {
        !identity.is_plain() || self.may_log()
    }

    fn welcome<'a>(&self, login: &'a Login, session_present: bool) -> Welcome<'a> {
        let limits = self.limits();
        let packet_bytes_max = limits.max_message_bytes + TOPIC_BYTES_MAX;
        let (asked, most) = (login.keep_alive_seconds, limits.max_keep_alive_seconds);
        Welcome {
            session_present,
            keep_alive_seconds: asked,
            server_keep_alive: (most > 0 && (asked == 0 || asked > most)).then_some(most),
            is_kept: login.persistent,
            assigned_client_id: login.identity.module_id().filter(|_| login.is_assigned),
            packet_bytes_max: u32::try_from(packet_bytes_max)
                .ok()
                .and_then(NonZeroU32::new),
        }
    }

    /// A connection that waited for its place has gone before it got it.
    pub fn stop_waiting(&self, login: &Login, mailbox: &Arc<Mailbox>) {
        if let Some(mut slot) = self.slots.get_mut(&login.identity) {
            slot.waiting = slot
                .waiting
                .take()
                .filter(|other| !Arc::ptr_eq(other, mailbox));
        }
    }

    pub(super) fn keep_subscriptions(&self, client: &Client) -> u64 {
        if !client.persistent {
            return 0;
        }
        if let Some(mut slot) = self.slots.get_mut(&client.identity) {
            if slot.subscriptions.as_ref() == Some(&client.subscriptions) && slot.recorded {
                // Nothing new; whatever is still on its way to the disk comes first.
                return self.journal.watch(&client.mailbox);
            }
            slot.subscriptions = Some(client.subscriptions.clone());
            slot.recorded = true;
        }
        let id = client.identity.as_str();
        let kept = (&*client.subscriptions, client.expiry_s, 0);
        self.journal.record_until(id, kept, &client.mailbox)
    }

    fn new_client(
        &self,
        login: &Login,
        mailbox: &Arc<Mailbox>,
        subscriptions: Vec<Subscription>,
        plain: Option<PlainSide>,
    ) -> Client {
        if let Some(side) = &plain {
            side.subscriber.set_connected(true);
        }
        let label = self.id_label(&login.identity);
        let summary = |name| Runs::new(self.metrics.summary(name, &[("id", label)]));
        let client = Client {
            identity: login.identity.clone(),
            label: label.into(),
            mailbox: Arc::clone(mailbox),
            proof: login.proof.clone(),
            expires_unix: login.expires_unix,
            persistent: login.persistent,
            expiry_s: login.expiry_s,
            is_v5: login.is_v5,
            is_hub: login.is_hub,
            will: login.will.clone(),
            subscriptions,
            plain,
            ledger: Ledger::default(),
            received: VecDeque::new(),
            retained: VecDeque::new(),
            matches: Vec::new(),
            plain_output: None,
            crossing_output: None,
            subscribed: false,
            routing: self.routing(),
            inputs: Vec::new(),
            next_input: 0,
            outputs: Vec::new(),
            held: None,
            parsed: None,
            resumed: VecDeque::new(),
            is_going: false,
            appended_seq: 0,
            responses: VecDeque::new(),
            response_qos: None,
            sent: Vec::new(),
            sizes: summary(observe::MESSAGE_SIZE),
            process: summary(observe::PROCESS_DURATION),
            scratch: Scratch::default(),
        };
        if client.persistent
            && let Some(mut slot) = self.slots.get_mut(&client.identity)
        {
            slot.subscriptions.get_or_insert_default();
        }
        client
    }

    pub(super) fn count_connected(&self) {
        let connected = self.connected.load(Ordering::Acquire);
        self.metrics
            .gauge(observe::CONNECTED_CLIENTS, &[])
            .set(connected as f64);
    }
}

impl Slot {
    /// Whether its time has passed: never too early, though these are whole seconds.
    pub(super) fn is_expired(&self, now_unix: u64) -> bool {
        let is_kept = self.current.is_none() && self.subscriptions.is_some();
        let lasts = self.expiry_s < u32::MAX && self.left_unix > 0;
        is_kept && lasts && self.left_unix + u64::from(self.expiry_s) < now_unix
    }

    pub(super) fn is_empty(&self) -> bool {
        self.current.is_none()
            && self.waiting.is_none()
            && self.subscriptions.is_none()
            && self.parked.in_flight.is_empty()
            && (self.refused.is_empty() || self.is_strange)
    }
}
