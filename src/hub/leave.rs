//! What a connection leaves behind: its will, its session, what was in flight.

use std::sync::atomic::Ordering;

use super::client::{Client, Parked, Token};
use super::{Hub, Now, Published, brief};
use crate::mailbox::ATTACH;
use crate::mqtt::v5::{Place, Properties};
use crate::mqtt::{Publish, QoS};
use crate::observe;
use crate::session::{Close, Session};

impl Hub {
    /// Takes a connection's place away: its will is published unless void, what is in flight waits
    /// for the next connection (persistent session) or goes back to its queue.
    pub fn detach(&self, mut client: Client, session: Session<Token>, close: &Close, now: Now) {
        client.is_going = true;
        self.publish_will(&mut client, now);
        self.end_of_batch(&mut client);
        let (in_flight, next_id) = session.park();
        let mut in_flight = self.release(in_flight);
        in_flight.extend(client.resumed.iter().cloned());
        for input in &client.inputs {
            self.store.detach(&input.queue, &client.mailbox);
        }
        let mut parked = Parked { in_flight, next_id };
        if !client.persistent {
            parked.in_flight.clear();
        }
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

    /// Publishes the will as telemetry with `MessageType=Will` (facts §1.2).
    fn publish_will(&self, client: &mut Client, now: Now) {
        let Some(will) = client.will.take() else {
            return;
        };
        let topic = will.topic.strip_suffix('/').unwrap_or(&will.topic);
        let separator = if topic.ends_with("/events") { '/' } else { '&' };
        let topic = format!("{topic}{separator}MessageType=Will");
        let publish = Publish {
            dup: false,
            qos: QoS::AtMostOnce,
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
