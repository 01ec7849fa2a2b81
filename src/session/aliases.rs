//! Topic aliases towards a client: a topic that goes to it again goes as a number
//! (MQTT 5 §3.3.2.3.4).

use std::num::NonZeroU16;
use std::ops::RangeInclusive;

use bytes::BytesMut;

use super::Outgoing;
use crate::mqtt::v5::{self, Place, Properties, Property};

/// Most topics of one client that have an alias, whatever it offers.
const TOPICS_MAX: usize = 16;
/// Bytes of topics that get one: shorter ones gain nothing, longer ones cost memory.
const TOPIC_BYTES: RangeInclusive<usize> = 8..=256;
/// Bytes of the property on the wire, and of lengths that grow by it.
const PROPERTY_BYTES: usize = 5;

/// What numbers stand for on one connection.
#[derive(Debug)]
pub(super) struct Aliases {
    /// The alias of each is one more than its place.
    topics: Vec<Box<[u8]>>,
    topics_max: usize,
    /// Whose alias goes to the next new topic, once all are given.
    next: usize,
    packet_bytes_max: usize,
    properties: BytesMut,
}

impl Aliases {
    /// For a client that takes so many aliases, and packets of so many bytes.
    pub fn new(topics_max: u16, packet_bytes_max: u32) -> Self {
        Self {
            topics: Vec::new(),
            topics_max: usize::from(topics_max).min(TOPICS_MAX),
            next: 0,
            packet_bytes_max: packet_bytes_max as usize,
            properties: BytesMut::new(),
        }
    }

    /// The message with the alias of its topic, and without the topic if the client knows it;
    /// `None` if it goes as it is.
    pub fn shorten<'a>(
        &'a mut self,
        out: &Outgoing<'a>,
        without_topic_bytes: usize,
    ) -> Option<Outgoing<'a>> {
        let topic = out.topic_prefix;
        if self.topics_max == 0
            || !out.topic_suffix.is_empty()
            || !TOPIC_BYTES.contains(&topic.len())
        {
            return None;
        }
        let known = self.topics.iter().position(|known| **known == *topic);
        let at = match known {
            Some(at) => at,
            None if without_topic_bytes + topic.len() + PROPERTY_BYTES > self.packet_bytes_max => {
                return None;
            }
            None if self.topics.len() < self.topics_max => {
                self.topics.push(topic.into());
                self.topics.len() - 1
            }
            None => {
                let at = self.next;
                self.next = (at + 1) % self.topics_max;
                *self.topics.get_mut(at)? = topic.into();
                at
            }
        };
        let alias = u16::try_from(at + 1).ok().and_then(NonZeroU16::new)?;
        self.properties.clear();
        let all = out.properties.iter().chain([Property::TopicAlias(alias)]);
        v5::encode_properties(&mut self.properties, Place::ServerPublish, all).ok()?;
        Some(Outgoing {
            topic_prefix: if known.is_some() { b"" } else { topic },
            properties: Properties::parse(&self.properties, Place::ServerPublish).ok()?,
            ..*out
        })
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    /// Topic and alias as they would be sent.
    fn sent(aliases: &mut Aliases, topic: &'static str) -> (String, u16) {
        let payload = Bytes::from_static(b"x");
        let out = Outgoing::new(topic.as_bytes(), b"", &payload);
        let short = aliases.shorten(&out, 10);
        let out = short.as_ref().unwrap_or(&out);
        let alias = out.properties.topic_alias().map_or(0, NonZeroU16::get);
        let topic = std::str::from_utf8(out.topic_prefix).unwrap();
        (topic.to_owned(), alias)
    }

    #[test]
    fn a_topic_goes_once_and_then_as_a_number() {
        let mut aliases = Aliases::new(2, u32::MAX);
        for (topic, expected, alias) in [
            ("sensors/1", "sensors/1", 1),
            ("sensors/1", "", 1),
            ("sensors/2", "sensors/2", 2),
            ("short", "short", 0),
            ("sensors/1", "", 1),
            ("sensors/3", "sensors/3", 1),
            ("sensors/1", "sensors/1", 2),
            ("sensors/3", "", 1),
            ("sensors/2", "sensors/2", 1),
        ] {
            let expected = (expected.to_owned(), alias);
            assert_eq!(sent(&mut aliases, topic), expected, "{topic}");
        }
    }

    #[test]
    fn none_where_the_client_takes_none_or_the_packet_would_be_too_large() {
        for mut aliases in [Aliases::new(0, u32::MAX), Aliases::new(9, 23)] {
            assert_eq!(sent(&mut aliases, "sensors/1"), ("sensors/1".into(), 0));
        }
        assert_eq!(sent(&mut Aliases::new(9, 24), "sensors/1").1, 1);
    }
}
