//! A message of the plain topic space as it waits: its topic, and what was published with it,
//! stand where a message between modules has its property bag.

use bytes::{BufMut, Bytes};

/// What stands in [`super::Message::bag`]:
///
/// ```text
/// u8 QoS (2 bits), retain, is retained, has a filter | u16 bytes, topic | [u16 bytes, filter] |
/// properties as MQTT 5 has them on the wire
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plain<'a> {
    /// The QoS it was published with, 0 to 2.
    pub qos: u8,
    /// RETAIN was set when it was published.
    pub retain: bool,
    /// It was there before the subscription that it is sent for (MQTT 5 §3.3.1.3).
    pub is_retained: bool,
    /// The topic name.
    pub topic: &'a str,
    /// The one subscription that it is for, as the client named it; `None`: all that match.
    pub filter: Option<&'a str>,
    /// Properties of a PUBLISH, without their length.
    pub properties: &'a [u8],
}

const QOS: u8 = 0b11;
const RETAIN: u8 = 1 << 2;
const IS_RETAINED: u8 = 1 << 3;
const HAS_FILTER: u8 = 1 << 4;

impl<'a> Plain<'a> {
    /// As it is kept. Topic and filter have at most 65,535 bytes, as in MQTT.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let filter_bytes = self.filter.map_or(0, |filter| 2 + filter.len());
        let bytes = 3 + self.topic.len() + filter_bytes + self.properties.len();
        let mut out = Vec::with_capacity(bytes);
        let flag = |is_set: bool, flag| if is_set { flag } else { 0 };
        out.put_u8(
            self.qos & QOS
                | flag(self.retain, RETAIN)
                | flag(self.is_retained, IS_RETAINED)
                | flag(self.filter.is_some(), HAS_FILTER),
        );
        for text in std::iter::once(self.topic).chain(self.filter) {
            out.put_u16(u16::try_from(text.len()).unwrap_or(u16::MAX));
            out.put_slice(text.as_bytes());
        }
        out.put_slice(self.properties);
        out.into()
    }

    /// Reads what [`Plain::encode`] wrote; `None` where it is something else.
    #[must_use]
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        let (flags, rest) = bytes.split_first()?;
        let has = |flag| flags & flag != 0;
        let (topic, mut rest) = text(rest)?;
        let mut filter = None;
        if has(HAS_FILTER) {
            let (one, behind) = text(rest)?;
            (filter, rest) = (Some(one), behind);
        }
        Some(Self {
            qos: flags & QOS,
            retain: has(RETAIN),
            is_retained: has(IS_RETAINED),
            topic,
            filter,
            properties: rest,
        })
    }
}

fn text(bytes: &[u8]) -> Option<(&str, &[u8])> {
    let (length, rest) = bytes.split_first_chunk()?;
    let (text, rest) = rest.split_at_checked(usize::from(u16::from_be_bytes(*length)))?;
    Some((std::str::from_utf8(text).ok()?, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_read_as_it_was_written() {
        for (qos, retain, is_retained, filter) in [
            (0, false, false, None),
            (1, true, false, Some("$share/g/a/#")),
            (2, true, true, Some("a/+")),
        ] {
            let plain = Plain {
                qos,
                retain,
                is_retained,
                topic: "a/b",
                filter,
                properties: &[1, 0],
            };
            let bytes = plain.encode();
            assert_eq!(Plain::parse(&bytes), Some(plain));
            for cut in 0..bytes.len() - 2 {
                assert_eq!(Plain::parse(&bytes[..cut]), None, "{cut}");
            }
        }
    }

    #[test]
    fn what_is_not_text_is_refused() {
        assert_eq!(Plain::parse(&[0, 0, 1, 0xff]), None);
        assert_eq!(Plain::parse(b""), None);
    }
}
