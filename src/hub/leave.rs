//! What a connection leaves behind: its will, its session, what was in flight.

use std::collections::VecDeque;
use std::sync::Arc;

use super::client::{Client, Parked, Token};
use super::plain::Subscriber;
use super::{Hub, Now, Published, brief};
use crate::identity::Identity;
use crate::mailbox::{ATTACH, Mailbox};
use crate::message::Endpoint;
use crate::mqtt::v5::{Place, Properties};
use crate::mqtt::{Publish, QoS};
use crate::observe;
use crate::session::{Close, InFlight, Session};

/// A will that waits, and whose it is (MQTT 5 §3.1.3.2.2).
#[derive(Debug)]
pub(super) struct LateWill {
    due_ms: u64,
    client: Box<Client>,
}

impl Hub {
    /// Takes a connection's place away: its will is published unless void, what is in flight waits
    /// for the next connection (persistent session) or goes back to its queue.
    pub fn detach(&self, mut client: Client, session: Session<Token>, close: &Close, now: Now) {
        client.is_going = true;
        let late = client.will.as_ref().map_or(0, |will| will.delay_s);
        let is_late = late > 0 && client.persistent;
        if !is_late {
            self.publish_will(&mut client, now);
        }
        self.end_of_batch(&mut client);
        let mut left = session.park();
        if !client.persistent {
            self.finish_sent(&mut left.outbound.in_flight);
        }
        let mut in_flight = self.release(left.outbound.in_flight);
        in_flight.extend(client.resumed.iter().cloned());
        for input in &client.inputs {
            self.store_of(&input.queue)
                .detach(&input.queue, &client.mailbox);
        }
        self.unsettle_received(&mut client);
        let subscriber = self.leave_space(&mut client, now);
        let parked = if client.persistent {
            // What was in memory is gone.
            in_flight.retain(|(_, _, place)| !place.is_live());
            Parked {
                in_flight,
                next_id: left.outbound.next_id,
                released: left.outbound.released,
                unreleased: left.unreleased,
                ledger: std::mem::take(&mut client.ledger),
            }
        } else {
            Parked::default()
        };
        self.count_leave(&client, close);
        let Some(mut slot) = self.slots.get_mut(&client.identity) else {
            return;
        };
        slot.current = None;
        slot.parked = parked;
        slot.subscriber = subscriber.filter(|_| client.persistent);
        (slot.expiry_s, slot.left_unix) = (client.expiry_s, now.unix);
        let ended = !client.persistent && slot.subscriptions.take().is_some();
        slot.recorded &= !ended;
        let waiting = slot.waiting.clone();
        let forget = waiting.is_none() && slot.is_empty();
        if client.persistent && client.expiry_s < u32::MAX {
            let kept = (&*client.subscriptions, client.expiry_s, now.unix);
            let id = client.identity.as_str();
            self.journal.record_until(id, kept, &client.mailbox);
        }
        let identity = client.identity.clone();
        let mailbox = Arc::clone(&client.mailbox);
        slot.late_will = is_late.then(|| LateWill {
            due_ms: now.ms + u64::from(late) * 1000,
            client: Box::new(client),
        });
        drop(slot);
        if ended {
            self.forget_session(&identity, &mailbox);
        }
        if let Some(waiting) = waiting {
            waiting.raise(ATTACH);
        } else if forget {
            self.slots.remove_if(&identity, |_, slot| slot.is_empty());
        }
    }

    /// The small state forgets a session.
    pub(super) fn forget_session(&self, identity: &Identity, mailbox: &Arc<Mailbox>) {
        self.journal.record(identity.as_str(), None, mailbox);
        self.journal.forget_ledger(identity.as_str(), mailbox);
    }

    /// What was sent with QoS 2 to a session that ends is nobody else's (MQTT-4.8.2-5).
    fn finish_sent(&self, in_flight: &mut VecDeque<InFlight<Token>>) {
        in_flight.retain(|flight| match &flight.token {
            Token::Queued { place, .. } if flight.qos == QoS::ExactlyOnce && place.is_live() => {
                self.finish(place);
                self.dropped("not_connected", "unknown", "").increment(1);
                false
            }
            _ => true,
        });
    }

    fn count_leave(&self, client: &Client, close: &Close) {
        let id = client.identity.as_str();
        let labels = [("id", &*client.label)];
        self.metrics
            .counter(observe::DISCONNECT, &labels)
            .increment(1);
        self.leave(&client.identity);
        self.count_connected();
        if self.may_tell(&client.identity) {
            tracing::info!(id, reason = close.label(), "client disconnected: {close}");
        }
    }

    /// Ends sessions whose time has passed, and publishes wills whose time has come; once a second.
    pub(super) fn end_sessions(&self, now: Now) {
        let (mut expired, mut wills) = (Vec::new(), Vec::new());
        self.space.set_kept(self.store.session_bytes());
        for mut slot in self.slots.iter_mut() {
            if slot.current.is_some() || slot.waiting.is_some() {
                continue;
            }
            if slot.left_unix == 0 {
                // It was there when the hub started.
                slot.left_unix = now.unix;
            }
            let is_expired = slot.is_expired(now.unix);
            let is_due = slot
                .late_will
                .as_ref()
                .is_some_and(|will| will.due_ms <= now.ms || is_expired);
            if is_due {
                wills.extend(slot.late_will.take());
            }
            if is_expired {
                expired.push((
                    slot.key().clone(),
                    slot.subscriptions.take().unwrap_or_default(),
                    slot.subscriber.take(),
                ));
                slot.parked = Parked::default();
                slot.recorded = false;
            }
        }
        for will in wills {
            self.publish_late(will, now);
        }
        for (identity, subscriptions, subscriber) in expired {
            tracing::info!(id = identity.as_str(), "session expired");
            if let Some(subscriber) = subscriber {
                self.end_subscriber(&subscriber, &subscriptions, now);
            }
            self.forget_session(&identity, &Arc::default());
            self.slots.remove_if(&identity, |_, slot| slot.is_empty());
        }
    }

    /// Clears the queues of sessions that are no more: the hub may have been killed before the log
    /// had noted that.
    pub(super) fn clear_ended(&self) {
        for queue in self.store.session_queues() {
            let Endpoint::Session { client, .. } = queue.endpoint() else {
                continue;
            };
            let slot = self.slots.get(client);
            if slot.is_none_or(|slot| slot.subscriber.is_none()) {
                self.store.clear(&queue);
            }
        }
    }

    /// Publishes a will that waited.
    pub(super) fn publish_late(&self, mut will: LateWill, now: Now) {
        self.publish_will(&mut will.client, now);
        self.end_of_batch(&mut will.client);
    }

    /// The connection of a session in the plain topic space is gone: what is not kept for it goes.
    fn leave_space(&self, client: &mut Client, now: Now) -> Option<Arc<Subscriber>> {
        let subscriber = client.plain.take()?.subscriber;
        subscriber.set_connected(false);
        if client.persistent {
            let messages = self.space.live().clear(&subscriber.live) as u64;
            self.dropped("not_connected", "unknown", "")
                .increment(messages);
        } else {
            self.end_subscriber(&subscriber, &client.subscriptions, now);
        }
        Some(subscriber)
    }

    /// Publishes the will; under `devices/` as telemetry with `MessageType=Will` (facts §1.2).
    fn publish_will(&self, client: &mut Client, now: Now) {
        let Some(will) = client.will.take() else {
            return;
        };
        let topic = if will.topic.starts_with("devices/") {
            let topic = will.topic.strip_suffix('/').unwrap_or(&will.topic);
            let separator = if topic.ends_with("/events") { '/' } else { '&' };
            format!("{topic}{separator}MessageType=Will")
        } else {
            will.topic.clone()
        };
        // It needs no answer, so that no packet id is looked at.
        let publish = Publish {
            dup: false,
            qos: will.qos,
            retain: will.retain,
            topic: &topic,
            packet_id: None,
            payload: &will.payload,
        };
        // Checked when they came.
        let properties = Properties::parse(&will.properties, Place::Will).unwrap_or_default();
        let published = self.publish(client, (&publish, properties), now);
        let (id, topic) = (client.identity.as_str(), brief(&will.topic));
        match published {
            Published::Refused(why) => tracing::warn!(id, topic, "will refused: {why}"),
            Published::HeldBack | Published::Full => {
                self.count_dropped("queue_full", &client.label, "");
                tracing::warn!(id, topic, "no room for a will");
            }
            published => tracing::debug!(id, topic, ?published, "will published"),
        }
    }
}
