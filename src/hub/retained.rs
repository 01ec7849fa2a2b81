//! Retained messages: the last one of each plain topic, for those who subscribe later
//! (MQTT 5 §3.3.1.3).

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::{Arc, PoisonError, RwLock};

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::beside::whole_seconds;
use super::client::Client;
use super::outgoing::qos;
use super::refused::Refused;
use super::{Hub, Now, sys};
use crate::mailbox::DELIVERY;
use crate::message::{Message, Origin, Plain};
use crate::mqtt::v5::{Place, Properties};
use crate::mqtt::{Publish, QoS};
use crate::store::Copy;
use crate::store::journal::Subscription;
use crate::topic;

/// Messages in a session's queue up to which retained ones are added to it.
const AHEAD_MAX: usize = 100;
/// Topics that are looked at in one turn of a client.
const LOOKS_MAX: usize = 500;
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
pub(super) struct One {
    qos: u8,
    /// Milliseconds since 1970; `None`: it is kept for ever.
    expires_ms: Option<u64>,
    origin: Arc<Origin>,
    properties: Bytes,
    payload: Bytes,
}

/// What a new subscription brings: retained messages, looked for a stretch at a time, so that no
/// filter takes the time of others.
#[derive(Debug)]
pub(super) struct Pending {
    filter: Arc<str>,
    granted: QoS,
    from: From,
}

#[derive(Debug)]
enum From {
    /// All topics behind this one are to be looked at.
    Topics(Option<Arc<str>>),
    /// These messages.
    Given(VecDeque<(Arc<str>, Arc<One>)>),
}

/// What a look for the next message found.
enum Next {
    Message(Arc<str>, Arc<One>),
    /// Nothing on this stretch, but there are more.
    Later,
    Nothing,
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

    /// As it goes to a subscription.
    fn message(&self, (topic, filter): (&str, &str), left_ms: Option<u64>, now: Now) -> Message {
        let properties = with_expiry(&self.properties, left_ms);
        let plain = Plain {
            qos: self.qos,
            retain: true,
            is_retained: true,
            topic,
            filter: Some(filter),
            properties: &properties,
        };
        Message {
            origin: Arc::clone(&self.origin),
            bag: plain.encode(),
            payload: self.payload.clone(),
            received_ms: now.ms,
        }
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

    /// The next one that a filter matches behind a topic, among so many; where to go on is noted
    /// in `after`.
    fn next(
        &self,
        filter: &str,
        after: &mut Option<Arc<str>>,
        now: Now,
        looks: &mut usize,
    ) -> Next {
        let messages = self.messages.read().unwrap_or_else(PoisonError::into_inner);
        // Topics that match begin with what stands before the first wildcard.
        let wild = filter.find(['+', '#']);
        let start = filter.get(..wild.unwrap_or(filter.len())).unwrap_or("");
        // `a/#` matches `a`, too.
        let start = start.strip_suffix('/').unwrap_or(start);
        let from = match after.as_deref() {
            Some(topic) => Bound::Excluded(topic),
            None => Bound::Included(start),
        };
        let range = messages.by_topic.range::<str, _>((from, Bound::Unbounded));
        let mut last = None;
        for (topic, one) in range.take_while(|(topic, _)| topic.starts_with(start)) {
            if *looks == 0 {
                *after = last.or_else(|| after.take());
                return Next::Later;
            }
            *looks -= 1;
            if topic::matches(filter, topic) && !one.is_expired(now) {
                *after = Some(Arc::clone(topic));
                return Next::Message(Arc::clone(topic), Arc::clone(one));
            }
            last = Some(Arc::clone(topic));
        }
        Next::Nothing
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
        // Asked for again, it begins again.
        client.retained.retain(|one| one.filter != filter);
        let values = self.sys_for(&filter, now);
        let from = match filter.starts_with(sys::PREFIX) {
            true => From::Given(values),
            false => From::Topics(None),
        };
        client.retained.push_back(Pending {
            filter,
            granted: subscription.granted(),
            from,
        });
    }

    /// Puts retained messages into the session's queues, as long as these are short; looks at so
    /// many topics, and comes back to the rest.
    pub(super) fn pump_retained(&self, client: &mut Client, now: Now) {
        let sides = client.plain.iter();
        let is_ahead = sides
            .flat_map(|side| side.subscriber.queues())
            .any(|queue| queue.messages() >= AHEAD_MAX);
        if is_ahead {
            return;
        }
        let mut looks = LOOKS_MAX;
        while let Some(mut pending) = client.retained.pop_front() {
            let next = match &mut pending.from {
                From::Given(values) => match values.pop_front() {
                    Some((topic, one)) => Next::Message(topic, one),
                    None => Next::Nothing,
                },
                From::Topics(after) => self.retained.next(&pending.filter, after, now, &mut looks),
            };
            match next {
                Next::Nothing => continue,
                Next::Later => {
                    client.retained.push_front(pending);
                    // Others first.
                    client.mailbox.raise(DELIVERY);
                    return;
                }
                Next::Message(topic, one) => {
                    let is_room_left = self.queue_retained(client, &pending, (topic, one), now);
                    client.retained.push_front(pending);
                    if !is_room_left {
                        return;
                    }
                }
            }
        }
    }

    /// Puts one into the session's queue; false if that was enough for now.
    fn queue_retained(
        &self,
        client: &mut Client,
        pending: &Pending,
        (topic, one): (Arc<str>, Arc<One>),
        now: Now,
    ) -> bool {
        self.deliveries_waiting(client);
        let side = client.plain.as_ref();
        let queue = side.and_then(|side| {
            let granted = qos(one.qos).min(pending.granted);
            side.subscriber.queue(granted).cloned()
        });
        let Some(queue) = queue else {
            return true;
        };
        let left_ms = one.expires_ms.map(|at| at.saturating_sub(now.wall_ms));
        let message = one.message((&topic, &pending.filter), left_ms, now);
        let messages = queue.messages();
        let copy = Copy::of(&queue, left_ms);
        let it = (&Arc::new(message), std::slice::from_ref(&copy));
        if self.append_to(client, it, false, now).is_err() {
            // Its own queue is full, or the store.
            self.count_dropped("queue_full", &client.label, "");
        }
        messages < AHEAD_MAX
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

/// A message of the hub itself.
pub(super) fn own(payload: Bytes, origin: &Arc<Origin>) -> Arc<One> {
    Arc::new(One {
        qos: 0,
        expires_ms: None,
        origin: Arc::clone(origin),
        properties: Bytes::new(),
        payload,
    })
}

/// The properties with what is left of the expiry.
fn with_expiry(properties: &Bytes, left_ms: Option<u64>) -> Bytes {
    let Some(left_ms) = left_ms else {
        return properties.clone();
    };
    let left_s = whole_seconds(left_ms);
    let known = Properties::parse(properties, Place::ServerPublish).unwrap_or_default();
    let mut out = BytesMut::new();
    let written = known.encode_with_expiry(|_| left_s, std::iter::empty(), &mut out);
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
            for stretch in [1, 3, 100] {
                let (mut found, mut after) = (Vec::new(), None);
                loop {
                    let mut looks = stretch;
                    match retained.next(filter, &mut after, NOW, &mut looks) {
                        Next::Message(topic, _) => found.push(topic.to_string()),
                        Next::Later => assert_eq!(looks, 0),
                        Next::Nothing => break,
                    }
                }
                assert_eq!(found, expected, "{filter}");
            }
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
