//! The property bag: the message properties that the last segment of a topic carries (facts §1.8).
//!
//! `key=value` joined with `&`, both percent-encoded. System properties have short wire names such
//! as `$.mid`; all other keys are application properties. Who sent a message is never taken from
//! its bag (`DESIGN` §4).

use std::borrow::Cow;

use percent_encoding::{percent_decode, utf8_percent_encode};
use thiserror::Error;

use super::ENCODED;
use crate::identity::Identity;
use crate::message::{Properties, SystemProperty, Value};

/// The most properties that a bag may have; finding repeated names takes quadratic time.
pub const PROPERTIES_MAX: usize = 512;

/// Wire names (facts §1.8), in the order in which they are sent. Those without a second name are
/// only received.
const WIRE_NAMES: [(&str, Option<&str>, SystemProperty); 14] = [
    ("$.mid", Some("%24.mid="), SystemProperty::MessageId),
    ("$.cid", Some("%24.cid="), SystemProperty::CorrelationId),
    ("$.uid", Some("%24.uid="), SystemProperty::UserId),
    ("$.to", Some("%24.to="), SystemProperty::To),
    ("$.exp", Some("%24.exp="), SystemProperty::Expiry),
    ("$.ct", Some("%24.ct="), SystemProperty::ContentType),
    ("$.ce", Some("%24.ce="), SystemProperty::ContentEncoding),
    ("$.ctime", Some("%24.ctime="), SystemProperty::CreationTime),
    (
        "$.schema",
        Some("%24.schema="),
        SystemProperty::MessageSchema,
    ),
    ("$.sub", Some("%24.sub="), SystemProperty::Subject),
    ("$.on", None, SystemProperty::OutputName),
    ("$.ifid", None, SystemProperty::InterfaceId),
    ("ack", Some("ack="), SystemProperty::Ack),
    (
        "iothub-operation",
        Some("iothub-operation="),
        SystemProperty::Operation,
    ),
];

/// Pairs that do not go up (facts §7).
const NOT_FORWARDED: [&[u8]; 2] = [b"ack=", b"%24.exp="];

/// Names, in any case, that would say who sent a message: not taken from a client (`DESIGN` §4).
const UNTRUSTED: [&str; 6] = [
    "deviceId",
    "moduleId",
    "$.cdid",
    "$.cmid",
    "$connectionDeviceId",
    "$connectionModuleId",
];

/// Why a text is no property bag.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Error)]
#[non_exhaustive]
pub enum BagError {
    /// A key is empty, as in `=1`, `a=1&&b=2` or `a=1&`.
    #[error("a property has no name")]
    EmptyKey,
    /// A value contains `=`, which would have to be `%3D`.
    #[error("a value contains an unescaped =")]
    ExtraEquals,
    /// `%` is not followed by two hex digits.
    #[error("a % is not followed by two hex digits")]
    BadEscape,
    /// What was decoded is not UTF-8.
    #[error("a name or value is not UTF-8")]
    NotUtf8,
    /// More than [`PROPERTIES_MAX`].
    #[error("there are more than {PROPERTIES_MAX} properties")]
    TooMany,
}

/// Reads a bag into `properties`. An empty bag has no properties; a `?` before the first key, which
/// some documents show, is not part of it. A key without a value is null, and of equal keys the
/// last counts. `+` stays a plus.
///
/// # Errors
///
/// [`BagError`]; `properties` then holds what came before the mistake.
pub fn decode(segment: &str, properties: &mut Properties) -> Result<(), BagError> {
    let segment = segment.strip_prefix('?').unwrap_or(segment);
    if segment.is_empty() {
        return Ok(());
    }
    let mut decoded = Vec::with_capacity(segment.len());
    for (at, pair) in segment.split('&').enumerate() {
        if at == PROPERTIES_MAX {
            return Err(BagError::TooMany);
        }
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        if key.is_empty() {
            return Err(BagError::EmptyKey);
        }
        if value.contains('=') {
            return Err(BagError::ExtraEquals);
        }
        decoded.clear();
        unescape(key, &mut decoded)?;
        let key_bytes = decoded.len();
        unescape(value, &mut decoded)?;
        let (key, value) = decoded.split_at_checked(key_bytes).unwrap_or_default();
        let key = std::str::from_utf8(key).map_err(|_| BagError::NotUtf8)?;
        let value = std::str::from_utf8(value).map_err(|_| BagError::NotUtf8)?;
        set(properties, key, (!value.is_empty()).then_some(value));
    }
    Ok(())
}

/// Sets a property by its name on the wire, such as `$.on`; names that only the hub may set are
/// left out.
pub fn set(properties: &mut Properties, key: &str, value: Option<&str>) {
    // The length is compared first, so that most names cost one comparison each.
    let wire = WIRE_NAMES.iter().find(|(name, _, _)| *name == key);
    if let Some((_, _, property)) = wire {
        properties.set_system(*property, value);
    } else if !is_untrusted(key) {
        properties.set(key, value);
    }
}

fn is_untrusted(key: &str) -> bool {
    UNTRUSTED.iter().any(|name| name.eq_ignore_ascii_case(key))
}

/// Appends the decoded text.
fn unescape(text: &str, out: &mut Vec<u8>) -> Result<(), BagError> {
    let mut rest = text.as_bytes();
    while let Some(at) = rest.iter().position(|byte| *byte == b'%') {
        let (plain, escaped) = rest.split_at_checked(at).unwrap_or_default();
        let Some(([_, high, low], after)) = escaped.split_first_chunk::<3>() else {
            return Err(BagError::BadEscape);
        };
        out.extend_from_slice(plain);
        out.push(hex(*high)? << 4 | hex(*low)?);
        rest = after;
    }
    out.extend_from_slice(rest);
    Ok(())
}

fn hex(digit: u8) -> Result<u8, BagError> {
    match digit {
        b'0'..=b'9' => Ok(digit - b'0'),
        b'a'..=b'f' => Ok(digit - b'a' + 10),
        b'A'..=b'F' => Ok(digit - b'A' + 10),
        _ => Err(BagError::BadEscape),
    }
}

/// Appends the bag of a delivery: application properties, system properties, then the sender. It is
/// never empty and has no `/`, `#` or `+`, so it is one topic level. A null or empty value is sent
/// as `key=`, which all SDKs can read.
///
/// The bag may be longer than the one that was received: who adds it to a topic has to look at the
/// whole length.
pub fn encode(properties: &Properties, sender: &Identity, out: &mut Vec<u8>) {
    out.reserve(properties.bytes() + 160);
    for (name, value) in properties.iter().filter(|(name, _)| !is_untrusted(name)) {
        escape(name, out);
        out.push(b'=');
        escape(value.unwrap_or_default(), out);
        out.push(b'&');
    }
    for (_, sent_as, property) in WIRE_NAMES {
        let Some(sent_as) = sent_as else { continue };
        let value = match properties.system(property) {
            Value::Missing => continue,
            Value::Null => "",
            Value::Text(value) => value,
        };
        out.extend_from_slice(sent_as.as_bytes());
        escape(value, out);
        out.push(b'&');
    }
    out.extend_from_slice(b"%24.cdid=");
    escape(sender.device_id(), out);
    if let Some(module) = sender.module_id() {
        out.extend_from_slice(b"&%24.cmid=");
        escape(module, out);
    }
}

/// The system properties that receivers get, by their names in a bag, apart from content type and
/// correlation id, for which MQTT 5 has places.
pub fn system(properties: &Properties) -> impl Iterator<Item = (&str, &str)> + Clone {
    let named = WIRE_NAMES.iter().filter(|(_, sent_as, property)| {
        let has_place = matches!(
            property,
            SystemProperty::ContentType | SystemProperty::CorrelationId
        );
        sent_as.is_some() && !has_place
    });
    named.filter_map(|(name, _, property)| {
        let value = properties.system_text(*property)?;
        Some((*name, value))
    })
}

/// The bag that goes up, of one that [`encode`] wrote: without the sender, whom the cloud knows
/// from the connection, and without what is between hub and module only (facts §7).
pub fn forward(bag: &[u8], out: &mut Vec<u8>) {
    let sender = memchr::memmem::rfind(bag, b"%24.cdid=").unwrap_or(bag.len());
    let own = bag.get(..sender).unwrap_or_default();
    let own = own.strip_suffix(b"&").unwrap_or(own);
    let is_local = |pair: &&[u8]| NOT_FORWARDED.iter().any(|name| pair.starts_with(name));
    let begin = out.len();
    for pair in own
        .split(|byte| *byte == b'&')
        .filter(|pair| !is_local(pair))
    {
        if out.len() > begin {
            out.push(b'&');
        }
        out.extend_from_slice(pair);
    }
}

/// The pairs of a bag that [`encode`] wrote: names as they stand on the wire, such as `$.mid`, and
/// values still percent-encoded, for [`text`].
pub fn pairs(bag: &[u8]) -> impl Iterator<Item = (Cow<'_, str>, &[u8])> {
    let pairs = bag.split(|byte| *byte == b'&');
    pairs.filter_map(|pair| {
        let at = memchr::memchr(b'=', pair)?;
        let (name, value) = pair.split_at_checked(at)?;
        Some((text(name), value.get(1..)?))
    })
}

/// A name or value of such a bag as a text of MQTT 5. One with characters for which a peer may
/// refuse the packet stays percent-encoded: control characters and what is no character
/// (MQTT 5 §1.5.4).
#[must_use]
pub fn text(escaped: &[u8]) -> Cow<'_, str> {
    let is_unfit = |c: char| {
        let code = u32::from(c);
        c.is_control() || (0xfdd0..=0xfdef).contains(&code) || code & 0xfffe == 0xfffe
    };
    match percent_decode(escaped).decode_utf8() {
        Ok(text) if !text.contains(is_unfit) => text,
        _ => String::from_utf8_lossy(escaped),
    }
}

/// What such a value stands for.
#[must_use]
pub fn bytes(escaped: &[u8]) -> Cow<'_, [u8]> {
    percent_decode(escaped).into()
}

/// An application property of a bag that [`encode`] wrote, decoded.
#[must_use]
pub fn property<'a>(bag: &'a [u8], name: &str) -> Option<Cow<'a, str>> {
    let mut pairs = bag.split(|byte| *byte == b'&');
    pairs.find_map(|pair| {
        let at = memchr::memchr(b'=', pair)?;
        let (key, value) = pair.split_at_checked(at)?;
        let key = percent_decode(key).decode_utf8().ok()?;
        let value = percent_decode(value.get(1..)?).decode_utf8().ok()?;
        key.eq_ignore_ascii_case(name).then_some(value)
    })
}

fn escape(text: &str, out: &mut Vec<u8>) {
    for part in utf8_percent_encode(text, ENCODED) {
        out.extend_from_slice(part.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(bag: &str) -> Result<Properties, BagError> {
        let mut properties = Properties::default();
        decode(bag, &mut properties).map(|()| properties)
    }

    fn written(properties: &Properties, sender: &str) -> String {
        let mut out = Vec::new();
        encode(properties, &Identity::parse(sender).unwrap(), &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn what_the_sdks_send() {
        let bag = "%24.on=out&%24.mid=1-2&%24.cid=c&%24.uid=u&%24.ct=application%2Fjson\
                   &%24.ce=utf-8&temp=21.5%20C&Room=a+b";
        let read = read(bag).unwrap();
        for (property, text) in [
            (SystemProperty::OutputName, "out"),
            (SystemProperty::MessageId, "1-2"),
            (SystemProperty::CorrelationId, "c"),
            (SystemProperty::UserId, "u"),
            (SystemProperty::ContentType, "application/json"),
            (SystemProperty::ContentEncoding, "utf-8"),
        ] {
            assert_eq!(read.system_text(property), Some(text));
        }
        let all: Vec<_> = read.iter().collect();
        assert_eq!(all, [("temp", Some("21.5 C")), ("Room", Some("a+b"))]);
        assert_eq!(
            written(&read, "edge1/sensor"),
            "temp=21.5%20C&Room=a%2Bb&%24.mid=1-2&%24.cid=c&%24.uid=u\
             &%24.ct=application%2Fjson&%24.ce=utf-8&%24.cdid=edge1&%24.cmid=sensor"
        );
    }

    #[test]
    fn what_goes_up_has_neither_sender_nor_local_properties() {
        for (bag, up) in [
            ("", ""),
            ("a=1", "a=1"),
            ("a=1&%24.mid=7", "a=1&%24.mid=7"),
            (
                "ack=full&a=%26b&%24.exp=2026&%24.on=x&back=1",
                "a=%26b&back=1",
            ),
            ("ack=full", ""),
        ] {
            for sender in ["edge-1/sensor", "leaf"] {
                let bag = written(&read(bag).unwrap(), sender);
                let mut out = b"x".to_vec();
                forward(bag.as_bytes(), &mut out);
                assert_eq!(String::from_utf8(out).unwrap(), format!("x{up}"));
            }
        }
        let bag = written(
            &read("a=1&Line=7%2F8%20%C3%A4&%24.cdid=forged").unwrap(),
            "d/m",
        );
        assert_eq!(property(bag.as_bytes(), "line").as_deref(), Some("7/8 ä"));
        assert_eq!(property(bag.as_bytes(), "$.cdid").as_deref(), Some("d"));
        assert_eq!(property(bag.as_bytes(), "other"), None);
    }

    #[test]
    fn pairs_are_texts_and_what_is_unfit_for_mqtt_5_stays_encoded() {
        let sent = read("a=%26b%3D%20%C3%A4&n=&t=x%0Ay&%00k=1&z=%EF%BF%BE&%24.mid=7").unwrap();
        let bag = written(&sent, "d/m");
        let pairs: Vec<_> = pairs(bag.as_bytes())
            .map(|(name, value)| (name.into_owned(), text(value).into_owned()))
            .collect();
        let expected = [
            ("a", "&b= ä"),
            ("n", ""),
            ("t", "x%0Ay"),
            ("%00k", "1"),
            ("z", "%EF%BF%BE"),
            ("$.mid", "7"),
            ("$.cdid", "d"),
            ("$.cmid", "m"),
        ];
        assert_eq!(pairs, expected.map(|(a, b)| (a.to_owned(), b.to_owned())));
        assert_eq!(super::pairs(b"").count(), 0);
    }

    #[test]
    fn every_wire_name_is_read_and_sent_as_the_table_says() {
        for (name, sent_as, property) in WIRE_NAMES {
            let encoded = name.replace('$', "%24");
            for bag in [format!("{name}=v"), format!("{encoded}=v")] {
                let read = read(&bag).unwrap();
                assert_eq!(read.system_text(property), Some("v"));
                assert_eq!(read.iter().count(), 0);
                let sent = written(&read, "d");
                match sent_as {
                    Some(sent_as) => {
                        assert_eq!(sent, format!("{encoded}=v&%24.cdid=d"), "{sent_as}")
                    }
                    None => assert_eq!(sent, "%24.cdid=d"),
                }
            }
        }
        for plain in [
            "$.MID",
            "ACK",
            "$.diagid",
            "iothub-message-id",
            "messageId",
            "$x",
        ] {
            assert_eq!(
                read(&format!("{plain}=v")).unwrap().get(plain),
                Value::Text("v")
            );
        }
    }

    #[test]
    fn the_sender_is_never_taken_from_the_bag() {
        let bag = "$.cdid=x&%24.cmid=x&$.CDID=x&deviceId=x&MODULEID=x&%64eviceId=x\
                   &$connectionDeviceId=x&%24connectionmoduleid=x&ok=1";
        let read = read(bag).unwrap();
        assert_eq!(read.iter().collect::<Vec<_>>(), [("ok", Some("1"))]);
        assert_eq!(written(&read, "d/m"), "ok=1&%24.cdid=d&%24.cmid=m");
        let mut own = Properties::default();
        own.set("$.CdId", Some("x"));
        own.set_system(SystemProperty::ConnectionDeviceId, Some("x"));
        assert_eq!(written(&own, "d"), "%24.cdid=d");
    }

    #[test]
    fn nulls_duplicates_and_the_question_mark() {
        let read = read("?a&b=&c=1&C=2&$.mid=1&$.mid=2&$.to").unwrap();
        let all: Vec<_> = read.iter().collect();
        assert_eq!(all, [("a", None), ("b", None), ("c", Some("2"))]);
        assert_eq!(read.system_text(SystemProperty::MessageId), Some("2"));
        assert_eq!(read.system(SystemProperty::To), Value::Null);
        assert_eq!(
            written(&read, "d"),
            "a=&b=&c=2&%24.mid=2&%24.to=&%24.cdid=d"
        );
        assert_eq!(
            written(&Properties::default(), "d#+/m"),
            "%24.cdid=d%23%2B&%24.cmid=m"
        );
        for empty in ["", "?"] {
            let mut properties = Properties::default();
            assert_eq!(decode(empty, &mut properties), Ok(()));
            assert_eq!(properties.bytes(), 0);
        }
    }

    #[test]
    fn refuses_what_is_no_bag() {
        for (bag, why) in [
            ("=1", BagError::EmptyKey),
            ("&", BagError::EmptyKey),
            ("a=1&", BagError::EmptyKey),
            ("a=1&&b=1", BagError::EmptyKey),
            ("?=1", BagError::EmptyKey),
            ("a=b=c", BagError::ExtraEquals),
            ("a==", BagError::ExtraEquals),
            ("a=%", BagError::BadEscape),
            ("a=%2", BagError::BadEscape),
            ("a%zz=1", BagError::BadEscape),
            ("a=%+1", BagError::BadEscape),
            ("a=%ff", BagError::NotUtf8),
            ("%c3=%a4", BagError::NotUtf8),
        ] {
            assert_eq!(read(bag).err(), Some(why), "{bag}");
        }
        let most = vec!["a"; PROPERTIES_MAX].join("&");
        assert!(read(&most).is_ok());
        assert_eq!(read(&format!("{most}&a")).err(), Some(BagError::TooMany));
    }

    proptest! {
        #[test]
        fn any_bag_is_safe(bag in "([%$.&=?a-f0-9]|\\PC){0,60}") {
            let _ = read(&bag);
        }

        #[test]
        fn what_is_written_reads_as_it_was(
            given in prop::collection::vec(("\\PC{1,6}", "\\PC{0,6}"), 0..8),
            system in "\\PC{1,6}",
        ) {
            let mut properties = Properties::default();
            for (name, value) in &given {
                if WIRE_NAMES.iter().all(|(wire, _, _)| wire != name) {
                    properties.set(name, (!value.is_empty()).then_some(value));
                }
            }
            properties.set_system(SystemProperty::UserId, Some(&system));
            let bag = written(&properties, "d/m");
            prop_assert!(!bag.is_empty() && !bag.contains(['/', '#', '+', '\0']));
            let again = read(&bag).unwrap();
            prop_assert!(again.iter().eq(properties.iter()));
            prop_assert_eq!(again.system_text(SystemProperty::UserId), Some(system.as_str()));
        }
    }
}
