//! What comes down from the cloud: messages of subscribed topics, for inputs of modules.

use std::sync::Arc;

use bytes::Bytes;

use super::route::{BAG_BYTES_MAX, TOPIC};
use super::{Hub, Now, Uplink, beside, brief, lose};
use crate::identity::Identity;
use crate::iothub::bag;
use crate::message::{Message, Origin, Properties};
use crate::mqtt::Publish;
use crate::mqtt::v5::{self, ReasonCode};
use crate::store::{self, Append, Copy};
use crate::topic;

/// The module id that such messages carry as their sender's; a deployed module has no `$`.
const ABOVE: &str = "$upstream";

/// A message on its way down.
#[derive(Debug)]
pub struct Descending {
    message: Arc<Message>,
    copies: Vec<Copy>,
}

impl Hub {
    /// Makes a message of what came from above; 3.1.1 has no properties.
    ///
    /// # Errors
    /// What PUBACK says, where that has words for it, of a message that is counted and not taken;
    /// success of one that no subscription asks for.
    pub fn descending(
        &self,
        uplink: &Uplink,
        (publish, sent): (&Publish<'_>, v5::Properties<'_>),
        now: Now,
    ) -> Result<Descending, ReasonCode> {
        let max = self.limits().max_message_bytes;
        let origin = Origin::new(Identity::module(self.device_id(), ABOVE), None);
        let from = origin.sender.as_str();
        if publish.payload.len() > max {
            self.count_dropped("too_large", from, "");
            return Err(ReasonCode::QuotaExceeded);
        }
        let mut properties = Properties::default();
        let is_whole = beside::add_what_fits(sent, &mut properties);
        let expiry_ms = sent.message_expiry_ms();
        // The sender may want less, never more.
        let ttl_ms = self.routing().ttl_ms.into_iter().chain(expiry_ms).min();
        let copies = self.copies(uplink, publish.topic, ttl_ms);
        if copies.is_empty() {
            self.count_dropped("no_route", from, "");
            return Err(ReasonCode::Success);
        }
        properties.set(TOPIC, Some(publish.topic));
        let mut encoded = Vec::new();
        bag::encode(&properties, &origin.sender, &mut encoded);
        if encoded.len() > BAG_BYTES_MAX && !sent.is_empty() {
            self.count_dropped("properties_too_long", from, "");
            return Err(ReasonCode::QuotaExceeded);
        }
        if !is_whole && self.may_log() {
            let topic = brief(publish.topic);
            tracing::warn!(
                topic,
                "a message from the cloud is taken without a property: it has no name, is \
                 correlation data that is no text, or one too many"
            );
        }
        let message = Message {
            bag: encoded.into(),
            payload: Bytes::copy_from_slice(publish.payload),
            origin: Arc::new(origin),
            received_ms: now.ms,
        };
        Ok(Descending {
            message: Arc::new(message),
            copies,
        })
    }

    /// One for each input whose subscription matches.
    fn copies(&self, uplink: &Uplink, topic: &str, ttl_ms: Option<u64>) -> Vec<Copy> {
        let mut copies: Vec<Copy> = Vec::new();
        let inbound = uplink.forwarding().inbound.iter();
        for inbound in inbound.filter(|one| topic::matches(&one.filter, topic)) {
            let queue = self.store.queue(&inbound.input);
            if !copies.iter().any(|copy| Arc::ptr_eq(&copy.queue, &queue)) {
                copies.push(Copy::of(&queue, ttl_ms));
            }
        }
        copies.sort_by_key(|copy| Arc::as_ptr(&copy.queue));
        copies
    }

    /// Appends it to its queues; `None` while there is no room, of which the mailbox is told with
    /// [`crate::mailbox::SPACE`]. It is kept once everything up to the seq is.
    pub fn descend(&self, uplink: &mut Uplink, message: &Descending, now: Now) -> Option<u64> {
        let mailbox = Arc::clone(uplink.mailbox());
        let append = Append {
            message: &message.message,
            copies: &message.copies,
            waiter: &mailbox,
            is_patient: true,
            is_last: false,
            now_ms: now.ms,
        };
        let scratch = &mut uplink.scratch;
        let appended = self
            .store
            .append(&append, &mut scratch.idle, &mut scratch.losses);
        store::wake(&mut scratch.idle);
        lose(self, &mut scratch.losses);
        appended.ok()
    }

    /// Has the connection told with [`crate::mailbox::DURABLE`] when everything up to `seq` is
    /// kept.
    pub fn await_descended(&self, uplink: &Uplink, seq: u64) {
        self.store.await_kept(seq, uplink.mailbox());
    }
}
