#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use super::*;
use bytes::BytesMut;
use proptest::{collection::vec, prelude::*};

/// An array of pairs, with one line each that stays one.
macro_rules! table {
    ($($left:expr => $right:expr;)*) => { [$(($left, $right)),*] };
}
pub(super) use table;

pub(super) const MAX: usize = 1 << 20;

/// Bytes from hex digits; blanks are for the reader.
pub(super) fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u32> = text
        .chars()
        .filter_map(|digit| digit.to_digit(16))
        .collect();
    digits
        .chunks(2)
        .map(|pair| (pair[0] << 4 | pair[1]) as u8)
        .collect()
}

fn id(id: u16) -> PacketId {
    PacketId::new(id).unwrap()
}

pub(super) const CONNECT: Connect<'static> = Connect {
    clean_session: true,
    keep_alive_seconds: 60,
    client_id: "",
    will: None,
    username: None,
    password: None,
};

pub(super) fn publish<'a>(qos: QoS, topic: &'a str, payload: &'a [u8]) -> Publish<'a> {
    Publish {
        dup: false,
        qos,
        retain: false,
        topic,
        packet_id: (qos != QoS::AtMostOnce).then(|| id(10)),
        payload,
    }
}

fn from_client() -> [(&'static str, FromClient<'static>); 16] {
    use {FromClient::*, QoS::*};
    let filters = SubscribeFilters::parse(b"\0\x03a/#\x02\0\x01+\0").unwrap();
    let gone = UnsubscribeFilters::parse(b"\0\x03a/#\0\x01+").unwrap();
    let packet_id = id(7);
    let will = Will {
        topic: "w",
        payload: &[255],
        qos: AtLeastOnce,
        retain: true,
    };
    table! {
        "10 0c 0004 4d515454 04 02 003c 0000" => Connect(CONNECT);
        "10 0c 0004 4d515454 04 00 003c 0000" =>
            Connect(super::Connect { clean_session: false, ..CONNECT });
        "10 1b 0004 4d515454 04 ec 0000 0002 c3a9 0001 77 0001 ff 0001 75 0002 00ff" =>
            Connect(super::Connect {
                clean_session: false, keep_alive_seconds: 0, client_id: "é",
                will: Some(will), username: Some("u"), password: Some(&[0, 255]),
            });
        "10 14 0004 4d515454 04 96 003c 0000 0001 77 0001 ff 0000" =>
            Connect(super::Connect {
                will: Some(Will { qos: ExactlyOnce, retain: false, ..will }),
                username: Some(""), ..CONNECT
            });
        "30 05 0001 61 6869" => Publish(publish(AtMostOnce, "a", b"hi"));
        "30 03 0001 2f" => Publish(publish(AtMostOnce, "/", b""));
        "32 07 0001 61 000a 6869" => Publish(publish(AtLeastOnce, "a", b"hi"));
        "3d 07 0003 612f62 000a" =>
            Publish(super::Publish {
                dup: true, retain: true, ..publish(ExactlyOnce, "a/b", b"")
            });
        "40 02 0001" => PubAck(id(1));
        "50 02 0100" => PubRec(id(256));
        "62 02 ffff" => PubRel(id(65535));
        "70 02 1234" => PubComp(id(0x1234));
        "82 0c 0007 0003 612f23 02 0001 2b 00" =>
            Subscribe(super::Subscribe { packet_id, filters });
        "a2 0a 0007 0003 612f23 0001 2b" =>
            Unsubscribe(super::Unsubscribe { packet_id, filters: gone });
        "c0 00" => PingReq;
        "e0 00" => Disconnect;
    }
}

fn from_server() -> [(&'static str, FromServer<'static>); 15] {
    use {ConnectReturnCode::*, FromServer::*};
    let connack = |session_present, code| {
        ConnAck(super::ConnAck {
            session_present,
            code,
        })
    };
    let codes = SubAckCodes::parse(&[0, 1, 2, 0x80]).unwrap();
    table! {
        "20 02 00 00" => connack(false, Accepted);
        "20 02 01 00" => connack(true, Accepted);
        "20 02 00 01" => connack(false, UnacceptableProtocolVersion);
        "20 02 00 02" => connack(false, IdentifierRejected);
        "20 02 00 03" => connack(false, ServerUnavailable);
        "20 02 00 04" => connack(false, BadUserNameOrPassword);
        "20 02 00 05" => connack(false, NotAuthorized);
        "34 07 0001 61 000a 6869" => Publish(publish(QoS::ExactlyOnce, "a", b"hi"));
        "40 02 0001" => PubAck(id(1));
        "50 02 0100" => PubRec(id(256));
        "62 02 ffff" => PubRel(id(65535));
        "70 02 1234" => PubComp(id(0x1234));
        "90 06 0007 00 01 02 80" => SubAck(super::SubAck { packet_id: id(7), codes });
        "b0 02 0007" => UnsubAck(id(7));
        "d0 00" => PingResp;
    }
}

type Encode<P> = fn(&P, &mut BytesMut) -> Result<(), EncodeError>;
type Decode<P> = fn(&'static [u8], usize) -> Result<Option<(P, usize)>, DecodeError>;

fn check<P>(text: &str, packet: P, encode: Encode<P>, decode: Decode<P>)
where
    P: PartialEq + std::fmt::Debug,
{
    let mut out = BytesMut::new();
    encode(&packet, &mut out).unwrap();
    assert_eq!(out, hex(text), "{packet:?}");
    let length = out.len();
    out.extend_from_slice(&[0xff]);
    let bytes = Box::leak(Box::<[u8]>::from(&*out));
    for cut in 0..length {
        assert_eq!(decode(&bytes[..cut], length), Ok(None), "{text} {cut}");
    }
    assert_eq!(packet_length(bytes), Ok(Some(length)));
    assert_eq!(decode(bytes, length), Ok(Some((packet, length))));
    let (packet_bytes, max) = (length, length - 1);
    let too_large = Err(DecodeError::TooLarge { packet_bytes, max });
    assert_eq!(decode(&bytes[..2], max), too_large, "{text}");
}

#[test]
fn every_packet_is_written_and_read_and_waited_for() {
    for (text, packet) in from_client() {
        check(text, packet, encode_from_client, decode_from_client);
    }
    for (text, packet) in from_server() {
        check(text, packet, encode_from_server, decode_from_server);
    }
}

#[test]
fn other_versions_are_told_from_nonsense() {
    for (text, level) in [
        ("10 0d 0004 4d515454 05 02 003c 00 0000", 5),
        ("10 0e 0006 4d5149736470 03 02 003c 0000", 3),
        ("10 0e 0006 4d5149736470 04 02 003c 0000", 4),
        ("10 07 0004 4d515454 84", 0x84),
        ("10 07 0004 4d515454 00", 0),
    ] {
        let unsupported = Err(DecodeError::UnsupportedProtocol { level });
        assert_eq!(decode_from_client(&hex(text), MAX), unsupported, "{text}");
    }
}

#[test]
fn remaining_lengths() {
    for (text, length) in [
        ("", Ok(None)),
        ("30", Ok(None)),
        ("30 80 80 80", Ok(None)),
        ("30 7f", Ok(Some(129))),
        ("30 80 01", Ok(Some(131))),
        ("30 ff 7f", Ok(Some(16386))),
        ("30 80 80 01", Ok(Some(16388))),
        ("30 80 80 80 01", Ok(Some(2097157))),
        ("30 ff ff ff 7f", Ok(Some(268435460))),
        ("30 ff ff ff ff", Err(Malformed::RemainingLength.into())),
    ] {
        assert_eq!(packet_length(&hex(text)), length, "{text}");
    }
    // Longer than needed, which 3.1.1 allows.
    let ping = Ok(Some((FromClient::PingReq, 5)));
    assert_eq!(decode_from_client(&hex("c0 80 80 80 00"), MAX), ping);
}

#[test]
fn the_head_of_a_publish_shows_early() {
    let bytes = hex("3d ff ff ff 7f 0003 612f62 000a 00");
    for cut in 0..12 {
        assert_eq!(peek_publish(&bytes[..cut]), None, "{cut}");
    }
    let head = peek_publish(&bytes[..12]).unwrap();
    assert_eq!(
        (head.dup, head.qos, head.retain),
        (true, QoS::ExactlyOnce, true)
    );
    assert_eq!((head.topic, head.packet_id), ("a/b", Some(id(10))));
    assert_eq!(head.total_len, 268435460);
    assert_eq!(peek_publish(&bytes), Some(head));
    for none in [
        "36 7f 0001 61 0001",
        "32 03 0001 61 0001",
        "30 7f 0001 2b",
        "40 02 0001",
    ] {
        assert_eq!(peek_publish(&hex(none)), None, "{none}");
    }
}

#[test]
fn a_head_goes_before_any_payload_that_fits() {
    let head = |payload_len| PublishParts {
        dup: false,
        qos: QoS::AtLeastOnce,
        retain: true,
        topic_prefix: b"a/",
        topic_suffix: b"b",
        packet_id: PacketId::new(258),
        properties: None,
        payload_len,
    };
    for payload_len in [0, 120, 121, 16376, 16377, 2097144, 2097145, 268435448] {
        let mut out = BytesMut::new();
        encode_publish_head(&mut out, head(payload_len)).unwrap();
        assert_eq!(packet_length(&out), Ok(Some(out.len() + payload_len)));
        let seen = peek_publish(&out).unwrap();
        assert_eq!((seen.topic, seen.packet_id), ("a/b", PacketId::new(258)));
    }
    for (payload_len, bytes) in [(268435449, 268435456), (usize::MAX, usize::MAX)] {
        let mut out = BytesMut::new();
        let result = encode_publish_head(&mut out, head(payload_len));
        assert_eq!(result, Err(EncodeError::PacketTooLong { bytes }));
        assert!(out.is_empty());
    }
}

/// What can be read is written as it was, save a length that was longer than needed.
fn read_and_write_back(bytes: &[u8]) {
    let mut out = BytesMut::new();
    let mut read_bytes = 0;
    if let Ok(Some((packet, length))) = decode_from_client(bytes, MAX) {
        encode_from_client(&packet, &mut out).unwrap();
        assert_eq!(decode_from_client(&out, MAX), Ok(Some((packet, out.len()))));
        read_bytes = length;
    } else if let Ok(Some((packet, length))) = decode_from_server(bytes, MAX) {
        encode_from_server(&packet, &mut out).unwrap();
        assert_eq!(decode_from_server(&out, MAX), Ok(Some((packet, out.len()))));
        read_bytes = length;
    }
    assert!(out.len() < read_bytes || out == bytes[..read_bytes]);
    let total_len = peek_publish(bytes).map(|head| head.total_len);
    assert!(total_len.is_none() || Ok(total_len) == packet_length(bytes));
}

proptest! {
    #[test]
    fn any_bytes_are_safe(mut bytes in vec(any::<u8>(), 2..48), fit: bool) {
        if fit {
            bytes[1] = bytes.len() as u8 - 2;
        }
        read_and_write_back(&bytes);
    }

    #[test]
    fn damaged_packets_are_refused_or_mean_what_they_say(
        index: usize, damage in vec((any::<usize>(), any::<u8>()), 1..4),
    ) {
        let client = from_client().into_iter().map(|(text, _)| hex(text));
        let server = from_server().into_iter().map(|(text, _)| hex(text));
        let mut all: Vec<_> = client.chain(server).collect();
        let index = index % all.len();
        let bytes = &mut all[index];
        for (at, byte) in damage {
            let at = at % bytes.len();
            bytes[at] = byte;
            read_and_write_back(bytes);
        }
    }
}
