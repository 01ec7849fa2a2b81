//! An accepted message goes to its queues: to all or to none.

use std::sync::Arc;

use super::client::{Client, Held};
use super::{Hub, Now, Published, lose};
use crate::message::{Endpoint, Message};
use crate::mqtt::{Publish, QoS};
use crate::store::{self, Append, Copy};

impl Hub {
    /// Appends to all queues or to none, and counts what nobody gets.
    pub(super) fn append(
        &self,
        client: &mut Client,
        publish: &Publish<'_>,
        mut held: Held,
        now: Now,
    ) -> Published {
        // A client of MQTT 5 is told at once instead of waiting (`DESIGN` §4), unless there will be
        // room in a moment.
        let is_patient =
            publish.qos != QoS::AtMostOnce && (!client.is_v5 || self.store.drops_oldest());
        let mut seq = 0;
        loop {
            let other = held.others.front();
            let (message, copies) =
                other.map_or((&held.message, &held.copies), |(one, copies)| (one, copies));
            match self.append_to(client, (message, copies), is_patient, now) {
                Ok(appended) => seq = seq.max(appended),
                Err(full) => return full_for(client, publish, held, (is_patient, &full)),
            }
            if held.others.pop_front().is_none() {
                break;
            }
        }
        let version = held.version.max(self.note_taken(client, publish, seq));
        self.append_live(client, &held, now);
        let Client { scratch, .. } = client;
        let output = &held.output;
        output.received.increment(1);
        if held.targets == 0 {
            output.no_route.increment(1);
        }
        if let Some(why) = held.grounded {
            let name = output.origin.output.as_deref();
            let label = self.output_label(name, true);
            self.count_dropped(why.label(), &client.label, label);
        }
        scratch.copies = held.copies;
        scratch.copies.clear();
        Published::Accepted {
            seq,
            version,
            is_unrouted: held.targets == 0,
        }
    }

    /// A session that is over its share loses the message, or whoever does not come back would hold
    /// everybody up.
    pub(super) fn leave_out_full(&self, held: &mut Held) {
        let settings = self.settings.load();
        let bounds = (
            settings.bounds.max_bytes,
            settings.limits.endpoint_max_bytes,
        );
        let messages_max = settings.bounds.endpoint_max_messages;
        let queue_full = &held.output.queue_full;
        let leave_out = |message: &Message, copies: &mut Vec<Copy>| {
            let bytes = message.bytes();
            copies.retain(|copy| {
                let queue = &copy.queue;
                if !matches!(queue.endpoint(), Endpoint::Session { .. }) {
                    return true;
                }
                let has_room = queue.messages() < messages_max
                    && self.space.has_kept_room(queue, bytes, bounds);
                if has_room {
                    self.space.add_kept(bytes);
                } else {
                    queue_full.increment(1);
                }
                has_room
            });
        };
        leave_out(&held.message, &mut held.copies);
        for (message, copies) in &mut held.others {
            leave_out(message, copies);
        }
    }

    /// Appends to the queues of one store; returns the seq to wait for.
    pub(super) fn append_to(
        &self,
        client: &mut Client,
        (message, copies): (&Arc<Message>, &[Copy]),
        is_patient: bool,
        now: Now,
    ) -> Result<u64, store::Full> {
        let Some(first) = copies.first() else {
            return Ok(0);
        };
        let Client {
            scratch, mailbox, ..
        } = client;
        let append = Append {
            message,
            copies,
            waiter: mailbox,
            is_patient,
            is_last: client.is_going,
            now_ms: now.ms,
        };
        let (idle, losses) = (&mut scratch.idle, &mut scratch.losses);
        let appended = self.store_of(&first.queue).append(&append, idle, losses);
        lose(self, losses);
        let is_live = first.queue.endpoint().is_live();
        let seq = appended?;
        if is_live {
            return Ok(0);
        }
        client.appended_seq = seq;
        Ok(seq)
    }
}

/// What becomes of a message for which there was no room.
fn full_for(
    client: &mut Client,
    publish: &Publish<'_>,
    held: Held,
    (is_patient, full): (bool, &store::Full),
) -> Published {
    // The writer needs a moment only: nothing is dropped for that.
    if is_patient || full.place == store::Place::Writer {
        client.held = Some(held);
        return Published::HeldBack;
    }
    held.output.queue_full.increment(1);
    match publish.qos {
        QoS::AtMostOnce => Published::DONE,
        QoS::AtLeastOnce | QoS::ExactlyOnce => Published::Full,
    }
}
