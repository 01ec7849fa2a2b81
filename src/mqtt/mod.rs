//! The MQTT 3.1.1 codec: bytes to packets and back, without I/O, clock or allocation of its own.
//!
//! Packets are named by who sends them: a server reads [`FromClient`] and writes [`FromServer`],
//! an upstream link or a scripted client does the reverse, both on the same code. Decoding borrows
//! everything from the caller's buffer and refuses whatever the standard says must be refused;
//! what comes out of it needs no further checking of form. No input makes it panic.
//!
//! A driver appends what it reads to a buffer and calls [`decode_from_client`] until that says
//! that bytes are missing; [`packet_length`] tells how many. After an error nothing that follows in
//! the buffer can be trusted, so the connection has to be closed (MQTT 3.1.1 §4.8). Two errors
//! allow a last word: [`DecodeError::UnsupportedProtocol`] is answered with a CONNACK, and a
//! PUBLISH that is [`DecodeError::TooLarge`] can be named in the log by [`peek_publish`].
//!
//! Section numbers in this module are those of MQTT 3.1.1 (OASIS Standard, 29 October 2014).

mod decode;
mod encode;
mod packet;

use thiserror::Error;

use crate::topic::TopicError;

pub use decode::{decode_from_client, decode_from_server, packet_length, peek_publish};
pub use encode::{
    EncodeError, PublishParts, encode_from_client, encode_from_server, encode_puback,
    encode_pubcomp, encode_publish_head, encode_pubrec, encode_pubrel, encode_suback,
    encode_subscribe, encode_unsubscribe,
};
pub use packet::{
    ConnAck, Connect, ConnectReturnCode, PacketId, Publish, PublishHead, QoS, SubAck, SubAckCode,
    SubAckCodes, Subscribe, SubscribeFilters, Unsubscribe, UnsubscribeFilters, Will,
};

/// The longest body of a packet in bytes, that is, without the fixed header (§2.2.3).
pub const REMAINING_LENGTH_MAX: usize = 268_435_455;

/// A packet that a client sends (§2.2.1, table 2.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FromClient<'a> {
    /// Asks for a session (§3.1).
    Connect(Connect<'a>),
    /// Carries a message (§3.3).
    Publish(Publish<'a>),
    /// Acknowledges a message of QoS 1 (§3.4).
    PubAck(PacketId),
    /// QoS 2, received (§3.5).
    PubRec(PacketId),
    /// QoS 2, released (§3.6).
    PubRel(PacketId),
    /// QoS 2, complete (§3.7).
    PubComp(PacketId),
    /// Asks for messages (§3.8).
    Subscribe(Subscribe<'a>),
    /// Gives up subscriptions (§3.10).
    Unsubscribe(Unsubscribe<'a>),
    /// Asks for a sign of life (§3.12).
    PingReq,
    /// Says goodbye; the will is dropped (§3.14).
    Disconnect,
}

/// A packet that a server sends (§2.2.1, table 2.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FromServer<'a> {
    /// Answers a CONNECT (§3.2).
    ConnAck(ConnAck),
    /// Carries a message (§3.3).
    Publish(Publish<'a>),
    /// Acknowledges a message of QoS 1 (§3.4).
    PubAck(PacketId),
    /// QoS 2, received (§3.5).
    PubRec(PacketId),
    /// QoS 2, released (§3.6).
    PubRel(PacketId),
    /// QoS 2, complete (§3.7).
    PubComp(PacketId),
    /// Answers a SUBSCRIBE (§3.9).
    SubAck(SubAck<'a>),
    /// Answers an UNSUBSCRIBE (§3.11).
    UnsubAck(PacketId),
    /// Answers a PINGREQ (§3.13).
    PingResp,
}

/// Why bytes are not a packet to work with. The connection has to be closed (§4.8).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// The bytes break a rule of the standard.
    #[error("malformed packet: {0}")]
    Malformed(#[from] Malformed),
    /// The packet is longer than the caller allows. Known from the fixed header alone.
    #[error("a packet of {packet_bytes} bytes; at most {max} are allowed")]
    TooLarge {
        /// Length of the entire packet in bytes, fixed header included.
        packet_bytes: usize,
        /// The caller's limit, counted the same way.
        max: usize,
    },
    /// A CONNECT for another version of MQTT, to be answered with
    /// [`ConnectReturnCode::UnacceptableProtocolVersion`] (§3.1.2.2). The rest of it is not read.
    #[error("protocol level {level} is not supported")]
    UnsupportedProtocol {
        /// The level asked for: 3 for MQTT 3.1, 5 for MQTT 5; not 4, save under an old name.
        level: u8,
    },
}

/// The rule of the standard that a packet breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Error)]
#[non_exhaustive]
pub enum Malformed {
    /// Types 0 and 15 are reserved (§2.2.1).
    #[error("packet type {0} is reserved")]
    ReservedType(u8),
    /// A client sends no CONNACK, a server no CONNECT, and so on (§2.2.1, table 2.1).
    #[error("packet type {0} is never sent by this side")]
    WrongSender(u8),
    /// The four low bits of the first byte are fixed for every type but PUBLISH (§2.2.2).
    #[error("the fixed header has the flags {flags:#06b} where {expected:#06b} is required")]
    HeaderFlags {
        /// The flags found.
        flags: u8,
        /// The flags that this type must have.
        expected: u8,
    },
    /// QoS 3 in a PUBLISH, a will or a SUBSCRIBE (§3.3.1.2, §3.1.2.6, §3.8.3).
    #[error("QoS 3 does not exist")]
    QosThree,
    /// A PUBLISH of QoS 0 is never a repetition (§3.3.1.1).
    #[error("DUP is set on a PUBLISH of QoS 0")]
    DupAtQosZero,
    /// The remaining length has at most four bytes (§2.2.3).
    #[error("the remaining length does not end within four bytes")]
    RemainingLength,
    /// Acknowledgements, CONNACK, pings and DISCONNECT have one length only (§3.2, §3.4 and on).
    #[error("the remaining length is {found} where {expected} is required")]
    BodyLength {
        /// The length that this type must have, in bytes.
        expected: usize,
        /// The remaining length found, in bytes.
        found: usize,
    },
    /// The remaining length is too small for what the packet must hold (§2.2.3).
    #[error("a field runs past the end of the packet")]
    Truncated,
    /// The remaining length is greater than what the packet holds (§3.1.3).
    #[error("{0} bytes follow the last field")]
    TrailingBytes(usize),
    /// Text is well-formed UTF-8 without surrogates (§1.5.3).
    #[error("a text is not UTF-8")]
    Utf8,
    /// Text never contains U+0000 (§1.5.3).
    #[error("a text contains the character U+0000")]
    Nul,
    /// The topic of a PUBLISH or of a will (§3.3.2.1, §4.7).
    #[error("the topic name is not allowed: {0}")]
    TopicName(TopicError),
    /// A filter of a SUBSCRIBE or UNSUBSCRIBE (§4.7.1, §4.7.3).
    #[error("the topic filter is not allowed: {0}")]
    TopicFilter(TopicError),
    /// 0 is no packet id (§2.3.1).
    #[error("the packet id is 0")]
    PacketIdZero,
    /// The first field of a CONNECT is neither `MQTT` nor `MQIsdp` (§3.1.2.1).
    #[error("the protocol name is not MQTT")]
    ProtocolName,
    /// Bit 0 of the connect flags (§3.1.2.3).
    #[error("the reserved connect flag is set")]
    ConnectFlagReserved,
    /// Will QoS and will retain are 0 without a will (§3.1.2.6, §3.1.2.7).
    #[error("will QoS or will retain is set without a will")]
    WillFlagsWithoutWill,
    /// A password needs a user name (§3.1.2.9).
    #[error("there is a password and no user name")]
    PasswordWithoutUsername,
    /// A SUBSCRIBE or UNSUBSCRIBE has at least one filter (§3.8.3, §3.10.3).
    #[error("there is no topic filter")]
    NoFilters,
    /// The six high bits beside a requested QoS (§3.8.3).
    #[error("reserved bits are set in the requested QoS {0:#04x}")]
    RequestedQosReserved(u8),
    /// The seven high bits of the CONNACK flags (§3.2.2.1).
    #[error("reserved bits are set in the CONNACK flags {0:#04x}")]
    ConnAckFlagsReserved(u8),
    /// CONNACK codes above 5 are reserved (§3.2.2.3).
    #[error("the CONNACK return code {0} is reserved")]
    ConnAckReturnCode(u8),
    /// A refusal never comes with a session (§3.2.2.2).
    #[error("a refusing CONNACK says that a session is present")]
    SessionPresentInRefusal,
    /// A SUBACK answers at least one filter (§3.9.3).
    #[error("there is no return code")]
    NoReturnCodes,
    /// SUBACK codes other than 0x00, 0x01, 0x02 and 0x80 are reserved (§3.9.3).
    #[error("the SUBACK return code {0:#04x} is reserved")]
    SubAckReturnCode(u8),
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
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
}
