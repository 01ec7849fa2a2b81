//! How a message of a queue goes to the client whose queue it is.

use std::num::NonZeroU32;
use std::sync::Arc;

use bytes::BytesMut;

use super::client::Input;
use super::plain::Subscriber;
use crate::identity::Identity;
use crate::message::{Message, Plain};
use crate::mqtt::QoS;
use crate::mqtt::v5::{Place, Properties, Property};
use crate::session::Outgoing;
use crate::store::journal::Subscription;
use crate::subscriptions::Trie;

/// What a client has in the plain topic space.
#[derive(Debug)]
pub(super) struct PlainSide {
    pub subscriber: Arc<Subscriber>,
    filters: Trie<Subscription>,
    shared: Vec<Subscription>,
}

impl PlainSide {
    pub fn new(subscriber: Arc<Subscriber>) -> Self {
        Self {
            subscriber,
            filters: Trie::default(),
            shared: Vec::new(),
        }
    }

    /// The side of a session that goes on.
    pub fn of(subscriber: Arc<Subscriber>, subscriptions: &[Subscription]) -> Self {
        let mut side = Self::new(subscriber);
        let plain = subscriptions.iter().filter(|one| one.is_plain());
        plain.for_each(|one| side.add(one));
        side
    }

    /// Adds a subscription, or changes it.
    pub fn add(&mut self, subscription: &Subscription) {
        self.remove(subscription);
        if subscription.share().is_some() {
            self.shared.push(subscription.clone());
        } else {
            let filter = &subscription.filter;
            self.filters.insert(filter, subscription.clone(), |_| true);
        }
    }

    /// Removes a subscription.
    pub fn remove(&mut self, subscription: &Subscription) {
        if subscription.share().is_some() {
            self.shared.retain(|one| one.filter != subscription.filter);
        } else {
            self.filters.remove(&subscription.filter, |_| true);
        }
    }

    /// What the subscriptions say that a message is for.
    fn choose(&self, plain: &Plain<'_>, is_own: bool) -> Choice {
        let mut choice = Choice::default();
        let shared = self.shared.iter();
        shared
            .filter(|one| plain.filter == Some(&*one.filter))
            .for_each(|one| choice.add(one));
        self.filters.for_each_match(plain.topic, |one| {
            let is_meant = plain.filter.is_none_or(|filter| filter == one.filter);
            if is_meant && !(is_own && one.no_local) {
                choice.add(one);
            }
        });
        choice
    }
}

/// What the subscriptions that match say about a message.
#[derive(Debug, Default)]
struct Choice {
    qos: Option<QoS>,
    retain: bool,
    ids: Vec<NonZeroU32>,
}

impl Choice {
    fn add(&mut self, subscription: &Subscription) {
        self.qos = self.qos.max(Some(subscription.granted()));
        self.retain |= subscription.retain_as_published;
        self.ids.extend(NonZeroU32::new(subscription.id));
    }
}

/// How a message goes to its receiver; `None` if no subscription wants it any more.
pub(super) fn outgoing<'a>(
    (input, message): (&'a Input, &'a Message),
    (identity, side): (&Identity, Option<&PlainSide>),
    now_ms: u64,
    scratch: &'a mut BytesMut,
) -> Option<(QoS, Outgoing<'a>)> {
    if !input.is_plain {
        let out = Outgoing::new(&input.topic_prefix, &message.bag, &message.payload);
        return Some((input.qos, out));
    }
    let plain = Plain::parse(&message.bag)?;
    let choice = side?.choose(&plain, message.origin.sender == *identity);
    let qos = choice.qos?.min(qos(plain.qos));
    Some((
        qos,
        plain_outgoing(message, &plain, &choice, now_ms, scratch),
    ))
}

/// A message that was sent already goes again, whether a subscription wants it still or not
/// (MQTT-3.10.4-3).
pub(super) fn again<'a>(
    (input, message): (&'a Input, &'a Message),
    (identity, side): (&Identity, Option<&PlainSide>),
    now_ms: u64,
    scratch: &'a mut BytesMut,
) -> Outgoing<'a> {
    let plain = Plain::parse(&message.bag).filter(|_| input.is_plain);
    let Some(plain) = plain else {
        return Outgoing::new(&input.topic_prefix, &message.bag, &message.payload);
    };
    let is_own = message.origin.sender == *identity;
    let choice = side.map(|side| side.choose(&plain, is_own));
    plain_outgoing(
        message,
        &plain,
        &choice.unwrap_or_default(),
        now_ms,
        scratch,
    )
}

fn plain_outgoing<'a>(
    message: &'a Message,
    plain: &Plain<'a>,
    choice: &Choice,
    now_ms: u64,
    scratch: &'a mut BytesMut,
) -> Outgoing<'a> {
    let waited_ms = now_ms.saturating_sub(message.received_ms);
    scratch.clear();
    Outgoing {
        topic_prefix: plain.topic.as_bytes(),
        topic_suffix: b"",
        payload: &message.payload,
        retain: plain.is_retained || (choice.retain && plain.retain),
        properties: properties(plain.properties, &choice.ids, waited_ms, scratch),
    }
}

/// The publisher's properties with what is left of the expiry, and the subscriptions' identifiers
/// (MQTT 5 §3.3.2.3.3, §3.3.2.3.8).
fn properties<'a>(
    kept: &'a [u8],
    ids: &[NonZeroU32],
    waited_ms: u64,
    scratch: &'a mut BytesMut,
) -> Properties<'a> {
    let kept = Properties::parse(kept, Place::ServerPublish).unwrap_or_default();
    if ids.is_empty() && kept.message_expiry_ms().is_none() {
        return kept;
    }
    let waited_s = u32::try_from(waited_ms / 1000).unwrap_or(u32::MAX);
    let ids = ids.iter().copied().map(Property::SubscriptionId);
    let written = kept.encode_with_expiry(|sent| sent.saturating_sub(waited_s), ids, scratch);
    debug_assert!(written.is_ok(), "{written:?}");
    Properties::parse(scratch, Place::ServerPublish).unwrap_or_default()
}

/// As [`Plain`] has it.
pub(super) fn qos(qos: u8) -> QoS {
    match qos {
        0 => QoS::AtMostOnce,
        1 => QoS::AtLeastOnce,
        _ => QoS::ExactlyOnce,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mqtt::v5::encode_properties;

    #[test]
    fn the_expiry_shrinks_and_identifiers_are_added() {
        let (mut kept, mut scratch) = (BytesMut::new(), BytesMut::new());
        let sent = [
            Property::MessageExpiry(10),
            Property::User("a", "1"),
            Property::User("a", "2"),
        ];
        encode_properties(&mut kept, Place::ServerPublish, sent.into_iter()).unwrap();
        let ids: Vec<_> = [3, 300].into_iter().filter_map(NonZeroU32::new).collect();
        let left = properties(&kept, &ids, 4999, &mut scratch);
        let expected = [
            Property::MessageExpiry(6),
            Property::User("a", "1"),
            Property::User("a", "2"),
            Property::SubscriptionId(ids[0]),
            Property::SubscriptionId(ids[1]),
        ];
        assert_eq!(left.iter().collect::<Vec<_>>(), expected);
        let mut scratch = BytesMut::new();
        let left = properties(&kept, &[], 20_000, &mut scratch);
        assert_eq!(left.iter().next(), Some(Property::MessageExpiry(0)));
    }
}
