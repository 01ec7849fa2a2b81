//! What a client subscribes to, and which queues that covers.

use std::num::NonZeroU32;
use std::sync::Arc;

use bytes::Bytes;

use super::client::{Client, Input, Token};
use super::outgoing::{PlainSide, qos};
use super::plain::{LEVELS_MAX, is_shallow};
use super::{Hub, Now, brief};
use crate::identity::policy::{self, Forbidden};
use crate::identity::rules::Action;
use crate::iothub::topics;
use crate::mqtt::v5::{self, ReasonCode, RetainHandling, SubscriptionOptions};
use crate::mqtt::{PacketId, QoS, Unsubscribe};
use crate::observe;
use crate::session::{Granted, Session, Verdict};
use crate::store::journal::Subscription;
use crate::topic;

/// All sessions together have as many filters as may be.
const FILTERS_FULL: (ReasonCode, &str) = (
    ReasonCode::QuotaExceeded,
    "the filters of all sessions are over 64 MiB",
);

impl Hub {
    /// Adds subscriptions; the SUBACK goes out once they are on disk.
    pub fn subscribe(
        &self,
        client: &mut Client,
        (session, packet_id): (&mut Session<Token>, PacketId),
        (filters, id): (&[(&str, SubscriptionOptions)], Option<NonZeroU32>),
        now: Now,
    ) {
        let codes: Vec<_> = filters
            .iter()
            .map(|(filter, options)| self.subscribe_one(client, filter, (*options, id), now))
            .collect();
        let version = self.keep_subscriptions(client);
        session.subscribed(packet_id, codes, version);
        // It takes effect behind the SUBACK: few clients expect messages before it.
        client.subscribed = true;
    }

    fn subscribe_one(
        &self,
        client: &mut Client,
        filter: &str,
        (options, id): (SubscriptionOptions, Option<NonZeroU32>),
        now: Now,
    ) -> Granted {
        let known = client
            .subscriptions
            .iter()
            .position(|known| known.filter == filter);
        let mut subscription = Subscription {
            filter: filter.to_owned(),
            qos: options.qos as u8,
            no_local: options.no_local,
            retain_as_published: options.retain_as_published,
            id: id.map_or(0, NonZeroU32::get),
        };
        if let Err((code, reason)) = self.may_subscribe(client, &subscription, known.is_none()) {
            return self.refuse_subscription(client, filter, (code, &reason));
        }
        if subscription.is_plain() {
            if known.is_none() && !self.space.has_filter_room(filter.len() as u64) {
                return self.refuse_subscription(client, filter, FILTERS_FULL);
            }
            self.subscribe_plain(client, &subscription);
            let sends = match options.retain_handling {
                RetainHandling::Send => true,
                RetainHandling::SendIfNew => known.is_none(),
                RetainHandling::DoNotSend => false,
            };
            if sends && subscription.share().is_none() {
                self.send_retained(client, &subscription, now);
            }
        } else {
            // Inputs know no QoS 2.
            subscription.qos = subscription.qos.min(QoS::AtLeastOnce as u8);
        }
        let granted = subscription.granted();
        match known.and_then(|known| client.subscriptions.get_mut(known)) {
            Some(known) => *known = subscription,
            None => client.subscriptions.push(subscription),
        }
        Ok(granted)
    }

    fn refuse_subscription(
        &self,
        client: &Client,
        filter: &str,
        (code, reason): (ReasonCode, &str),
    ) -> Granted {
        if self.may_log() {
            let (id, filter) = (client.identity().as_str(), brief(filter));
            tracing::warn!(id, filter, reason, "subscription refused");
        }
        let labels = [("id", &*client.label)];
        let counter = self.metrics.counter(observe::SUBSCRIBE_REFUSED, &labels);
        counter.increment(1);
        Err(Verdict::because(code, reason))
    }

    fn may_subscribe(
        &self,
        client: &Client,
        subscription: &Subscription,
        is_new: bool,
    ) -> Result<(), (ReasonCode, String)> {
        let filter = &*subscription.filter;
        let limits = self.limits();
        if filter.len() > limits.max_topic_bytes {
            return Err((ReasonCode::QuotaExceeded, "over max_topic_bytes".to_owned()));
        }
        if is_new && client.subscriptions.len() >= limits.max_subscriptions {
            let text = "over max_subscriptions".to_owned();
            return Err((ReasonCode::QuotaExceeded, text));
        }
        let allowed = if !subscription.is_plain() {
            if client.identity.is_plain() {
                Err(Forbidden::Reserved)
            } else {
                policy::authorize_subscribe(client.identity(), filter).map(|_| ())
            }
        } else {
            let shared = v5::shared(filter);
            let Ok(shared) = shared else {
                let text = "$share has no name or no filter".to_owned();
                return Err((ReasonCode::TopicFilterInvalid, text));
            };
            let inner = shared.map_or(filter, |(_, inner)| inner);
            if !is_shallow(inner) {
                let text = format!("more than {LEVELS_MAX} levels");
                return Err((ReasonCode::TopicFilterInvalid, text));
            }
            if !topic::is_plain(inner) {
                Err(Forbidden::Reserved)
            } else {
                self.may(client, Action::Subscribe(inner))
            }
        };
        allowed.map_err(|why| (ReasonCode::NotAuthorized, why.to_string()))
    }

    fn subscribe_plain(&self, client: &mut Client, subscription: &Subscription) {
        if client.plain.is_none() {
            let subscriber = self.subscriber(&client.identity, client.persistent);
            subscriber.set_connected(true);
            client.plain = Some(PlainSide::new(subscriber));
            // What a former session left in the queue is not for this one, even if the log forgets
            // by a crash that it is done with.
            self.keep_ledger(client);
        }
        let Some(side) = &mut client.plain else {
            return;
        };
        side.add(subscription);
        self.space.subscribe(&side.subscriber, subscription);
    }

    /// Removes subscriptions; the UNSUBACK goes out once that is on disk.
    pub fn unsubscribe(
        &self,
        client: &mut Client,
        session: &mut Session<Token>,
        unsubscribe: Unsubscribe<'_>,
    ) {
        let mut existed = Vec::new();
        for filter in unsubscribe.filters.iter() {
            existed.push(self.forget_subscription(client, filter));
        }
        let version = self.keep_subscriptions(client);
        session.unsubscribed(unsubscribe.packet_id, existed, version);
        self.refresh_inputs(client);
    }

    /// Removes a subscription; whether there was one.
    pub(super) fn forget_subscription(&self, client: &mut Client, filter: &str) -> bool {
        let is_it = |known: &Subscription| known.filter == filter;
        let Some(at) = client.subscriptions.iter().position(is_it) else {
            return false;
        };
        let subscription = client.subscriptions.remove(at);
        if let Some(side) = client.plain.as_mut().filter(|_| subscription.is_plain()) {
            side.remove(&subscription);
            self.space.unsubscribe(&side.subscriber, &subscription);
        }
        true
    }

    /// Works out which queues the client's subscriptions cover.
    pub(super) fn refresh_inputs(&self, client: &mut Client) {
        let filters: Vec<_> = client
            .subscriptions
            .iter()
            .map(|known| (known.filter.clone(), known.qos))
            .collect();
        client.response_qos = filters
            .iter()
            .filter(|(filter, _)| topic::matches(filter, "$iothub/twin/res/200/"))
            .map(|(_, qos)| *qos)
            .max();
        let mut inputs = self.inputs(client, &filters);
        if let Some(side) = &client.plain {
            inputs.extend(side.subscriber.queues().map(|queue| Input {
                topic_prefix: Bytes::new(),
                queue: Arc::clone(queue),
                qos: QoS::ExactlyOnce,
                is_plain: true,
                pending: true,
            }));
        }
        for old in std::mem::replace(&mut client.inputs, inputs) {
            let stays = |new: &Input| Arc::ptr_eq(&new.queue, &old.queue);
            if !client.inputs.iter().any(stays) {
                self.store_of(&old.queue)
                    .detach(&old.queue, &client.mailbox);
            }
        }
    }

    /// The queues of a module's inputs that its filters cover.
    fn inputs(&self, client: &Client, filters: &[(String, u8)]) -> Vec<Input> {
        let identity = &client.identity;
        let Some(module) = identity.module_id() else {
            return Vec::new();
        };
        if identity.device_id() != self.device_id() {
            return Vec::new();
        }
        // A queue that no route leads to any more waits, until one does again or its messages
        // expire (`DESIGN` §4).
        let routing = &client.routing;
        let queues = routing.queues().chain(&routing.inbound);
        let own = queues.filter(|queue| queue.is_of(module));
        let inputs = own.filter_map(|queue| {
            let asked = topics::input_qos(filters, identity, queue.input())?;
            Some(Input {
                topic_prefix: Bytes::from(topics::input_prefix(identity, queue.input())),
                queue: Arc::clone(queue),
                qos: qos(asked),
                is_plain: false,
                pending: true,
            })
        });
        inputs.collect()
    }
}
