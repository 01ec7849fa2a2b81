//! What a connection leaves behind: its will, its session, what was in flight.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::client::{Client, Parked, Token};
use super::plain::Subscriber;
use super::{Hub, Now, Published, brief};
use crate::mailbox::ATTACH;
use crate::mqtt::Publish;
use crate::mqtt::v5::{Place, Properties};
use crate::observe;
use crate::session::{Close, Session};

impl Hub {
    /// Takes a connection's place away: its will is published unless void, what is in flight waits
    /// for the next connection (persistent session) or goes back to its queue.
    pub fn detach(&self, mut client: Client, session: Session<Token>, close: &Close, now: Now) {
        client.is_going = true;
        self.publish_will(&mut client, now);
        self.end_of_batch(&mut client);
        let left = session.park();
        let mut in_flight = self.release(left.outbound.in_flight);
        in_flight.extend(client.resumed.iter().cloned());
        for input in &client.inputs {
            self.store_of(&input.queue)
                .detach(&input.queue, &client.mailbox);
        }
        let subscriber = client.plain.take().map(|side| side.subscriber);
        if let Some(subscriber) = &subscriber {
            self.leave_space(subscriber, &client);
        }
        let parked = if client.persistent {
            // What was in memory is gone.
            in_flight.retain(|(_, _, place)| !place.is_live());
            Parked {
                in_flight,
                next_id: left.outbound.next_id,
                released: left.outbound.released,
                unreleased: left.unreleased,
            }
        } else {
            Parked::default()
        };
        let id = client.identity.as_str();
        let labels = [("id", &*client.label)];
        self.metrics
            .counter(observe::DISCONNECT, &labels)
            .increment(1);
        self.connected.fetch_sub(1, Ordering::AcqRel);
        self.count_connected();
        tracing::info!(id, reason = close.label(), "client disconnected: {close}");
        let Some(mut slot) = self.slots.get_mut(&client.identity) else {
            return;
        };
        slot.current = None;
        slot.parked = parked;
        slot.subscriber = subscriber.filter(|_| client.persistent);
        let ended = !client.persistent && slot.subscriptions.take().is_some();
        slot.recorded &= !ended;
        let waiting = slot.waiting.clone();
        let forget = waiting.is_none() && slot.is_empty();
        drop(slot);
        if ended {
            self.journal
                .record(client.identity.as_str(), None, &client.mailbox);
        }
        if let Some(waiting) = waiting {
            waiting.raise(ATTACH);
        } else if forget {
            self.slots
                .remove_if(&client.identity, |_, slot| slot.is_empty());
        }
    }

    /// The connection of a session in the plain topic space is gone: what is not kept for it goes.
    fn leave_space(&self, subscriber: &Arc<Subscriber>, client: &Client) {
        subscriber.set_connected(false);
        if client.persistent {
            let messages = self.space.live().clear(&subscriber.live) as u64;
            self.dropped("not_connected", "unknown", "")
                .increment(messages);
        } else {
            self.end_subscriber(subscriber, &client.subscriptions);
        }
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
            published => tracing::debug!(id, topic, ?published, "will published"),
        }
    }
}
