//! Retained messages: the last one of each plain topic, for those who subscribe later
//! (MQTT 5 §3.3.1.3).

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::{Arc, PoisonError, RwLock};

use bytes::{Buf, BufMut, Bytes};

use super::client::Client;
use super::outgoing::qos;
use super::refused::Refused;
use super::{Hub, Now};
use crate::message::{Message, Origin, Plain, Priority};
use crate::mqtt::v5::{Place, Properties, Property};
use crate::mqtt::{Publish, QoS};
use crate::store::Copy;
use crate::store::journal::Subscription;
use crate::topic;

/// Messages in a session's queue up to which retained ones are added to it.
const AHEAD_MAX: usize = 100;
/// Book-keeping of one message, beside its topic, properties and payload.
const OVERHEAD_BYTES: u64 = 256;

/// All retained messages, by topic.
#[derive(Debug, Default)]
pub(super) struct Retained {
    messages: RwLock<Messages>,
}

#[derive(Debug, Default)]
struct Messages {
    by_topic: BTreeMap<Arc<str>, Arc<One>>,
    bytes: u64,
}

/// A retained message.
#[derive(Debug, PartialEq, Eq)]
struct One {
    qos: u8,
    /// Milliseconds since 1970; `None`: it is kept for ever.
    expires_ms: Option<u64>,
    origin: Arc<Origin>,
    properties: Bytes,
    payload: Bytes,
}

/// A retained message on its way to a new subscription.
#[derive(Debug)]
pub(super) struct Pending {
    topic: Arc<str>,
    one: Arc<One>,
    filter: Arc<str>,
    granted: QoS,
}

impl One {
    /// As it is kept on disk:
    ///
    /// ```text
    /// u8 QoS | u64 expires_ms, or 0 | u16 bytes, sender | u32 bytes, properties | payload
    /// ```
    fn encode(&self) -> Bytes {
        let origin = self.origin.text();
        let bytes = 15 + origin.len() + self.properties.len() + self.payload.len();
        let mut out = Vec::with_capacity(bytes);
        out.put_u8(self.qos);
        out.put_u64(self.expires_ms.unwrap_or(0));
        out.put_u16(u16::try_from(origin.len()).unwrap_or(u16::MAX));
        out.put_slice(origin.as_bytes());
        out.put_u32(self.properties.len() as u32);
        out.put_slice(&self.properties);
        out.put_slice(&self.payload);
        out.into()
    }

    /// Reads that; `None` where it is something else.
    fn decode(mut value: Bytes) -> Option<Self> {
        let qos = value.try_get_u8().ok()?;
        let expires_ms = value.try_get_u64().ok()?;
        let origin_bytes = usize::from(value.try_get_u16().ok()?);
        let origin = split(&mut value, origin_bytes)?;
        let origin = Origin::parse(std::str::from_utf8(&origin).ok()?)?;
        let property_bytes = value.try_get_u32().ok()? as usize;
        let properties = split(&mut value, property_bytes)?;
        Properties::parse(&properties, Place::ServerPublish).ok()?;
        Some(Self {
            qos,
            expires_ms: (expires_ms > 0).then_some(expires_ms),
            origin: Arc::new(origin),
            properties,
            payload: value,
        })
    }

    fn bytes(&self, topic: &str) -> u64 {
        (topic.len() + self.properties.len() + self.payload.len()) as u64 + OVERHEAD_BYTES
    }

    fn is_expired(&self, now: Now) -> bool {
        self.expires_ms.is_some_and(|at| at <= now.wall_ms)
    }
}

fn split(value: &mut Bytes, bytes: usize) -> Option<Bytes> {
    (bytes <= value.len()).then(|| value.split_to(bytes))
}

impl Messages {
    fn set(&mut self, topic: &str, one: Option<Arc<One>>) {
        let old = match one {
            Some(one) => {
                self.bytes += one.bytes(topic);
                self.by_topic.insert(topic.into(), one)
            }
            None => self.by_topic.remove(topic),
        };
        self.bytes -= old.map_or(0, |old| old.bytes(topic));
    }
}

impl Retained {
    /// Takes over what the disk has; returns how many do not read.
    pub fn load(&self, kept: Vec<(String, Bytes)>) -> usize {
        let mut messages = self
            .messages
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        let mut unread = 0;
        for (topic, value) in kept {
            match One::decode(value) {
                Some(one) => messages.set(&topic, Some(Arc::new(one))),
                None => unread += 1,
            }
        }
        unread
    }

    /// How many there are, and their bytes.
    pub fn size(&self) -> (usize, u64) {
        let messages = self.messages.read().unwrap_or_else(PoisonError::into_inner);
        (messages.by_topic.len(), messages.bytes)
    }

    /// Those that a filter matches.
    fn matching(&self, filter: &str, now: Now) -> Vec<(Arc<str>, Arc<One>)> {
        let messages = self.messages.read().unwrap_or_else(PoisonError::into_inner);
        // Topics that match begin with what stands before the first wildcard.
        let wild = filter.find(['+', '#']);
        let start = filter.get(..wild.unwrap_or(filter.len())).unwrap_or("");
        // `a/#` matches `a`, too.
        let start = start.strip_suffix('/').unwrap_or(start);
        let range = (Bound::Included(start), Bound::Unbounded);
        messages
            .by_topic
            .range::<str, _>(range)
            .take_while(|(topic, _)| topic.starts_with(start))
            .filter(|(topic, one)| topic::matches(filter, topic) && !one.is_expired(now))
            .map(|(topic, one)| (Arc::clone(topic), Arc::clone(one)))
            .collect()
    }
}

impl Hub {
    /// Keeps a message that asks for it, or with an empty payload forgets the one before. Returns
    /// the version of the small state that has it.
    pub(super) fn retain(
        &self,
        client: &Client,
        publish: &Publish<'_>,
        (properties, expiry_ms): (&[u8], Option<u64>),
        (origin, now): (&Arc<Origin>, Now),
    ) -> Result<u64, Refused> {
        let topic = publish.topic;
        let one = (!publish.payload.is_empty()).then(|| {
            Arc::new(One {
                qos: publish.qos as u8,
                expires_ms: expiry_ms.map(|expiry_ms| now.wall_ms + expiry_ms),
                origin: Arc::clone(origin),
                properties: Bytes::copy_from_slice(properties),
                payload: Bytes::copy_from_slice(publish.payload),
            })
        });
        let limits = self.limits();
        let mut messages = self
            .retained
            .messages
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        let old = messages.by_topic.get(topic);
        if one.is_none() && old.is_none() {
            return Ok(0);
        }
        if let Some(one) = &one {
            let others = messages.by_topic.len() - usize::from(old.is_some());
            let bytes = messages.bytes - old.map_or(0, |old| old.bytes(topic)) + one.bytes(topic);
            if others >= limits.max_retained_messages || bytes > limits.max_retained_bytes {
                return Err(Refused::RetainedFull);
            }
        }
        let value = one.as_ref().map(|one| one.encode());
        messages.set(topic, one);
        // Under the lock, so that the disk has them in the same order.
        Ok(self.journal.record_retained(topic, value, &client.mailbox))
    }

    /// Has what is retained for a new subscription sent.
    pub(super) fn send_retained(&self, client: &mut Client, subscription: &Subscription, now: Now) {
        let filter: Arc<str> = subscription.filter.as_str().into();
        let found = self.retained.matching(&filter, now).into_iter();
        client.retained.extend(found.map(|(topic, one)| Pending {
            topic,
            one,
            filter: Arc::clone(&filter),
            granted: subscription.granted(),
        }));
        client.retained.extend(self.sys_for(&filter, now));
    }

    /// Puts retained messages into the session's queues, as long as these are short.
    pub(super) fn pump_retained(&self, client: &mut Client, now: Now) {
        if client.retained.is_empty() {
            return;
        }
        self.deliveries_waiting(client);
        while let Some(next) = client.retained.front() {
            let side = client.plain.as_ref();
            let queue = side.and_then(|side| {
                let granted = qos(next.one.qos).min(next.granted);
                side.subscriber.queue(granted).cloned()
            });
            let Some(queue) = queue else {
                client.retained = VecDeque::new();
                return;
            };
            if queue.messages() >= AHEAD_MAX {
                return;
            }
            let (message, ttl_ms) = next.message(now);
            let copy = Copy {
                queue,
                priority: Priority::DEFAULT,
                ttl_ms,
            };
            let it = (&Arc::new(message), std::slice::from_ref(&copy));
            if self.append_to(client, it, true, now).is_err() {
                return;
            }
            client.retained.pop_front();
        }
    }

    /// Forgets those whose time has passed.
    pub(super) fn expire_retained(&self, now: Now) {
        let mut messages = self
            .retained
            .messages
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        let expired = messages
            .by_topic
            .iter()
            .filter(|(_, one)| one.is_expired(now));
        let expired: Vec<_> = expired.map(|(topic, _)| Arc::clone(topic)).collect();
        let nobody = Arc::default();
        for topic in expired {
            messages.set(&topic, None);
            self.journal.record_retained(&topic, None, &nobody);
        }
    }
}

impl Pending {
    /// A value of `$SYS` for a filter.
    pub fn sys((topic, filter): (&str, &str), payload: Bytes, origin: &Arc<Origin>) -> Self {
        Self {
            topic: topic.into(),
            one: Arc::new(One {
                qos: 0,
                expires_ms: None,
                origin: Arc::clone(origin),
                properties: Bytes::new(),
                payload,
            }),
            filter: filter.into(),
            granted: QoS::AtMostOnce,
        }
    }

    /// The message for its subscription, and how long it is of use.
    fn message(&self, now: Now) -> (Message, Option<u64>) {
        let one = &self.one;
        let left_ms = one.expires_ms.map(|at| at.saturating_sub(now.wall_ms));
        let properties = with_expiry(&one.properties, left_ms);
        let plain = Plain {
            qos: one.qos,
            retain: true,
            is_retained: true,
            topic: &self.topic,
            filter: Some(&self.filter),
            properties: &properties,
        };
        let message = Message {
            origin: Arc::clone(&one.origin),
            bag: plain.encode(),
            payload: one.payload.clone(),
            received_ms: now.ms,
        };
        (message, left_ms)
    }
}

/// The properties with what is left of the expiry.
fn with_expiry(properties: &Bytes, left_ms: Option<u64>) -> Bytes {
    let Some(left_ms) = left_ms else {
        return properties.clone();
    };
    let left_s = u32::try_from(left_ms.div_ceil(1000)).unwrap_or(u32::MAX);
    let known = Properties::parse(properties, Place::ServerPublish).unwrap_or_default();
    let left = known.iter().map(|property| match property {
        Property::MessageExpiry(_) => Property::MessageExpiry(left_s),
        other => other,
    });
    let mut out = bytes::BytesMut::new();
    let written = crate::mqtt::v5::encode_properties(&mut out, Place::ServerPublish, left);
    debug_assert!(written.is_ok(), "{written:?}");
    out.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::Identity;

    const NOW: Now = Now {
        ms: 5000,
        unix: 1_800_000_000,
        wall_ms: 1_800_000_000_000,
    };

    fn one(payload: &'static str, expires_ms: Option<u64>) -> One {
        One {
            qos: 1,
            expires_ms,
            origin: Arc::new(Origin::new(Identity::plain("anonymous", "a/b"), None)),
            properties: Bytes::from_static(&[1, 1]),
            payload: Bytes::from_static(payload.as_bytes()),
        }
    }

    #[test]
    fn it_is_read_as_it_was_written() {
        for known in [one("x", None), one("", Some(7))] {
            let bytes = known.encode();
            for cut in 0..bytes.len() - known.payload.len() {
                assert_eq!(One::decode(bytes.slice(..cut)), None, "{cut}");
            }
            assert_eq!(One::decode(bytes), Some(known));
        }
    }

    #[test]
    fn a_filter_finds_what_matches_and_has_not_expired() {
        let retained = Retained::default();
        let topics = ["a", "a/b", "a/b/c", "a/c", "ab", "b", "$x/a", "/a"];
        let values = topics.map(|topic| (topic.to_owned(), one("x", None).encode()));
        assert_eq!(retained.load(values.into()), 0);
        let late = one("x", Some(NOW.wall_ms));
        assert_eq!(retained.load(vec![("a/late".into(), late.encode())]), 0);
        assert_eq!(retained.load(vec![("a/bad".into(), Bytes::new())]), 1);
        for (filter, expected) in [
            ("a/#", &["a", "a/b", "a/b/c", "a/c"][..]),
            ("a/+", &["a/b", "a/c"]),
            ("a/b", &["a/b"]),
            ("+/b/#", &["a/b", "a/b/c"]),
            ("#", &["/a", "a", "a/b", "a/b/c", "a/c", "ab", "b"]),
            ("$x/#", &["$x/a"]),
            ("x", &[]),
        ] {
            let found = retained.matching(filter, NOW);
            let found: Vec<_> = found.iter().map(|(topic, _)| &**topic).collect();
            assert_eq!(found, expected, "{filter}");
        }
    }

    #[test]
    fn bytes_follow_what_is_there() {
        let mut messages = Messages::default();
        messages.set("a", Some(Arc::new(one("long payload", None))));
        messages.set("b", Some(Arc::new(one("x", None))));
        messages.set("a", Some(Arc::new(one("y", None))));
        messages.set("b", None);
        messages.set("c", None);
        let left = one("y", None).bytes("a");
        assert_eq!((messages.by_topic.len(), messages.bytes), (1, left));
    }
}
