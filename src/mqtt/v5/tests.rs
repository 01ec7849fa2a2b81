#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use bytes::BytesMut;
use proptest::{collection::vec, prelude::*};

use super::ReasonCode as Reason;
use super::*;
use crate::mqtt::tests::{MAX, hex, table};
use crate::mqtt::{EncodeError, PacketId, QoS, UnsubscribeFilters, packet_length};

fn id(id: u16) -> PacketId {
    PacketId::new(id).unwrap()
}

/// Properties from hex digits; leaked, for tables.
fn list(text: &str, place: Place) -> Properties<'static> {
    Properties::parse(hex(text).leak(), place).unwrap()
}

fn notice(reason: Reason, properties: Properties<'_>) -> Notice<'_> {
    Notice { reason, properties }
}

fn ack(packet_id: u16, reason: Reason, properties: Properties<'_>) -> Ack<'_> {
    let packet_id = id(packet_id);
    Ack {
        packet_id,
        reason,
        properties,
    }
}

const NONE: Properties<'static> = Properties::EMPTY;

const CONNECT: Connect<'static> = Connect {
    clean_start: true,
    keep_alive_seconds: 60,
    properties: NONE,
    client_id: "",
    will: None,
    username: None,
    password: None,
};

const PUBLISH: Publish<'static> = Publish {
    dup: false,
    qos: QoS::AtMostOnce,
    retain: false,
    topic: "a",
    packet_id: None,
    properties: NONE,
    payload: b"hi",
};

fn from_client() -> [(&'static str, FromClient<'static>); 24] {
    use FromClient::*;
    use Place::{ClientAuth, ClientDisconnect, ClientPublish, Received};
    let filters = SubscribeFilters::parse(b"\0\x03a/#\x02\0\x01+\x1d\0\x0a$share/g/b\x28").unwrap();
    let gone = UnsubscribeFilters::parse(b"\0\x03a/#\0\x01+").unwrap();
    let will = Will {
        properties: list("18 00000005 03 0001 74", Place::Will),
        topic: "w",
        payload: &[255],
        qos: QoS::AtLeastOnce,
        retain: true,
    };
    let text = list("1f 0001 72 26 0001 6e 0001 76", Received);
    table! {
        "10 0d 0004 4d515454 05 02 003c 00 0000" => Connect(CONNECT);
        "10 1d 0004 4d515454 05 40 003c 0b 11 ffffffff 21 0014 22 0001 0000 0003 0001ff" =>
            Connect(super::Connect {
                clean_start: false, password: Some(&[0, 1, 255]),
                properties: list("11 ffffffff 21 0014 22 0001", Place::Connect), ..CONNECT
            });
        "10 26 0004 4d515454 05 ec 0000 00 0002 c3a9
         09 18 00000005 03 0001 74 0001 77 0001 ff 0001 75 0002 00ff" =>
            Connect(super::Connect {
                clean_start: false, keep_alive_seconds: 0, client_id: "é", will: Some(will),
                username: Some("u"), password: Some(&[0, 255]), ..CONNECT
            });
        "30 06 0001 61 00 6869" => Publish(PUBLISH);
        "30 04 0001 2f 00" => Publish(super::Publish { topic: "/", payload: b"", ..PUBLISH });
        "3b 08 0001 61 0007 00 6869" =>
            Publish(super::Publish {
                dup: true, qos: QoS::AtLeastOnce, retain: true, packet_id: Some(id(7)), ..PUBLISH
            });
        "34 0a 0000 ffff 03 23 0001 6869" =>
            Publish(super::Publish {
                qos: QoS::ExactlyOnce, topic: "", packet_id: Some(id(65535)),
                properties: list("23 0001", ClientPublish), ..PUBLISH
            });
        "30 0b 0001 61 05 02 0000000a 6869" =>
            Publish(super::Publish {
                properties: list("02 0000000a", ClientPublish), ..PUBLISH
            });
        "40 02 0001" => PubAck(Ack::success(id(1)));
        "40 03 0001 10" => PubAck(ack(1, Reason::NoMatchingSubscribers, NONE));
        "40 0f 0001 87 0b 1f 0001 72 26 0001 6e 0001 76" =>
            PubAck(ack(1, Reason::NotAuthorized, text));
        "50 02 0100" => PubRec(Ack::success(id(256)));
        "50 0f 0100 00 0b 1f 0001 72 26 0001 6e 0001 76" => PubRec(ack(256, Reason::Success, text));
        "62 02 ffff" => PubRel(Ack::success(id(65535)));
        "62 03 ffff 92" => PubRel(ack(65535, Reason::PacketIdNotFound, NONE));
        "70 02 1234" => PubComp(Ack::success(id(0x1234)));
        "82 1c 0007 02 0b 05 0003 612f23 02 0001 2b 1d 000a 2473686172652f672f62 28" =>
            Subscribe(super::Subscribe {
                packet_id: id(7), properties: list("0b 05", Place::Subscribe), filters,
            });
        "a2 0b 0007 00 0003 612f23 0001 2b" =>
            Unsubscribe(super::Unsubscribe { packet_id: id(7), properties: NONE, filters: gone });
        "c0 00" => PingReq;
        "e0 00" => Disconnect(notice(Reason::Success, NONE));
        "e0 01 04" => Disconnect(notice(Reason::DisconnectWithWill, NONE));
        "e0 07 00 05 11 00000000" =>
            Disconnect(notice(Reason::Success, list("11 00000000", ClientDisconnect)));
        "f0 06 18 04 15 0001 6d" =>
            Auth(notice(Reason::ContinueAuthentication, list("15 0001 6d", ClientAuth)));
        "f0 06 19 04 15 0001 6d" =>
            Auth(notice(Reason::ReAuthenticate, list("15 0001 6d", ClientAuth)));
    }
}

fn from_server() -> [(&'static str, FromServer<'static>); 18] {
    use FromServer::*;
    use Place::ServerDisconnect;
    let answers = |codes: &'static [u8], place| Answers {
        packet_id: id(7),
        properties: NONE,
        codes: ReasonCodes::parse(codes, place).unwrap(),
    };
    let connack = |session_present, reason, properties| {
        ConnAck(super::ConnAck {
            session_present,
            reason,
            properties,
        })
    };
    let can = "12 0001 61 13 000a 24 01 27 00100000";
    table! {
        "20 03 00 00 00" => connack(false, Reason::Success, NONE);
        "20 03 01 00 00" => connack(true, Reason::Success, NONE);
        "20 03 00 84 00" => connack(false, Reason::UnsupportedProtocolVersion, NONE);
        "20 11 00 00 0e 12 0001 61 13 000a 24 01 27 00100000" =>
            connack(false, Reason::Success, list(can, Place::ConnAck));
        "30 06 0001 61 00 6869" => Publish(PUBLISH);
        "30 0b 0001 61 05 0b 01 0b 80 01 6869" =>
            Publish(super::Publish {
                properties: list("0b 01 0b 80 01", Place::ServerPublish), ..PUBLISH
            });
        "40 02 0001" => PubAck(Ack::success(id(1)));
        "40 03 0001 97" => PubAck(ack(1, Reason::QuotaExceeded, NONE));
        "50 03 0001 91" => PubRec(ack(1, Reason::PacketIdInUse, NONE));
        "62 02 ffff" => PubRel(Ack::success(id(65535)));
        "70 03 1234 92" => PubComp(ack(0x1234, Reason::PacketIdNotFound, NONE));
        "90 07 0007 00 00 01 02 87" => SubAck(answers(&[0, 1, 2, 0x87], Place::SubAck));
        "b0 05 0007 00 00 11" => UnsubAck(answers(&[0, 0x11], Place::UnsubAck));
        "d0 00" => PingResp;
        "e0 00" => Disconnect(notice(Reason::Success, NONE));
        "e0 01 8e" => Disconnect(notice(Reason::SessionTakenOver, NONE));
        "e0 06 9d 04 1c 0001 73" =>
            Disconnect(notice(Reason::ServerMoved, list("1c 0001 73", ServerDisconnect)));
        "f0 06 18 04 15 0001 6d" =>
            Auth(notice(Reason::ContinueAuthentication, list("15 0001 6d", Place::ServerAuth)));
    }
}

type Encode<P> = fn(&P, &mut BytesMut) -> Result<(), EncodeError>;
type Decode<P> = fn(&'static [u8], usize) -> Result<Option<(P, usize)>, DecodeError>;

fn check<P: PartialEq + std::fmt::Debug>(
    text: &str,
    packet: &P,
    encode: Encode<P>,
    decode: Decode<P>,
) {
    let mut out = BytesMut::new();
    encode(packet, &mut out).unwrap();
    assert_eq!(out, hex(text), "{packet:?}");
    let length = out.len();
    out.extend_from_slice(&[0xff]);
    let bytes = out.to_vec().leak();
    for cut in 0..length {
        assert_eq!(decode(&bytes[..cut], length), Ok(None), "{text} {cut}");
    }
    assert_eq!(packet_length(bytes), Ok(Some(length)));
    let read = decode(bytes, length).unwrap().unwrap();
    assert_eq!((&read.0, read.1), (packet, length));
    let (packet_bytes, max) = (length, length - 1);
    let too_large = Err(DecodeError::TooLarge { packet_bytes, max });
    assert_eq!(decode(&bytes[..2], max), too_large, "{text}");
}

#[test]
fn every_packet_is_written_and_read_and_waited_for() {
    for (text, packet) in from_client() {
        check(text, &packet, encode_from_client, decode_from_client);
    }
    for (text, packet) in from_server() {
        check(text, &packet, encode_from_server, decode_from_server);
    }
}

/// What may be longer than needed: a reason code that says success, and a length of 0.
#[test]
fn acknowledgements_in_their_long_forms() {
    for (text, short) in [
        ("40 03 0001 00", "40 02 0001"),
        ("40 04 0001 00 00", "40 02 0001"),
        ("62 04 0001 92 00", "62 03 0001 92"),
        ("e0 01 00", "e0 00"),
        ("e0 02 04 00", "e0 01 04"),
    ] {
        let (long, short) = (hex(text), hex(short));
        let read = decode_from_client(&long, MAX).unwrap().unwrap();
        let expected = decode_from_client(&short, MAX).unwrap().unwrap();
        assert_eq!((read.0, read.1), (expected.0, long.len()), "{text}");
    }
}

/// What a server must refuse: a reason, and packets that give it, divided by commas.
const REFUSED_FROM_CLIENT: &[(Malformed, &str)] = &{
    use Malformed::*;
    table! {
    ReservedType(0) => "00 00";
    WrongSender(2) => "20 03 00 00 00";
    WrongSender(9) => "90 04 0001 00 00";
    WrongSender(11) => "b0 04 0001 00 00";
    WrongSender(13) => "d0 00";
    flags(1, 0) => "11, 41 02 0001, 51 02 0001, 71 02 0001, c1 00, e1 00, f1 00";
    flags(0, 2) => "60 02 0001, 80 07 0001 00 0001 61 00, a0 06 0001 00 0001 61";
    QosThree => "36 06 0001 61 0001 00";
    RequestedQosThree => "82 07 0001 00 0001 61 03";
    QosThree => "10 0d 0004 4d515454 05 1e 003c 00 0000";
    DupAtQosZero => "38 04 0001 61 00";
    RemainingLength => "30 ff ff ff ff, c0 80 80 80 80";
    VariableInteger => "c0 80 00, e0 80 80 00, 40 82 00 0001, 30 05 0001 61 80 00";
    VariableInteger => "30 08 0001 61 80 80 80 80 01";
    BodyLength { expected: 0, found: 1 } => "c0 01 00";
    PacketIdZero => "40 02 0000, 50 02 0000, 62 02 0000, 70 02 0000, 32 06 0001 61 0000 00";
    PacketIdZero => "82 07 0000 00 0001 61 00, a2 06 0000 00 0001 61";
    Truncated => "30 03 0001 61, 30 00, 32 05 0001 61 0001, 40 00, 40 01 00, 62 01 00";
    Truncated => "82 00, 82 02 0001, 82 06 0001 00 0001 61, a2 02 0001, 10 00";
    Truncated => "30 05 0001 61 02 01, 40 04 0001 00 01, e0 02 00 05, 82 03 0001 01";
    Truncated => "10 0a 0004 4d515454 05 02 003c, 10 0c 0004 4d515454 05 02 003c 00 00";
    Truncated => "10 0d 0004 4d515454 05 06 003c 00 0000, 10 0d 0004 4d515454 05 42 003c 00 0000";
    TrailingBytes(1) => "10 0e 0004 4d515454 05 02 003c 00 0000 00, 40 05 0001 00 00 00";
    TrailingBytes(2) => "e0 04 00 00 00 00, f0 08 18 04 15 0001 6d 00 00";
    Utf8 => "30 04 0001 ff 00, 10 0e 0004 4d515454 05 02 003c 00 0001 ff";
    Nul => "10 0e 0004 4d515454 05 02 003c 00 0001 00";
    TopicName(TopicError::Empty) => "30 03 0000 00, 30 08 0000 05 02 00000001";
    TopicName(TopicError::WildcardInName) => "30 04 0001 2b 00, 30 07 0001 23 03 23 0001";
    TopicName(TopicError::Nul) => "30 04 0001 00 00";
    TopicFilter(TopicError::Empty) => "82 06 0001 00 0000 00, a2 05 0001 00 0000";
    TopicFilter(TopicError::MultiLevelNotLast) => "82 09 0001 00 0003 232f61 00";
    NoFilters => "82 03 0001 00, a2 03 0001 00";
    SubscriptionOptionsReserved(0x40) => "82 07 0001 00 0001 61 40";
    SubscriptionOptionsReserved(0x80) => "82 07 0001 00 0001 61 80";
    RetainHandlingThree => "82 07 0001 00 0001 61 30";
    NoLocalShared => "82 10 0001 00 000a 2473686172652f672f62 04";
    ShareName => "82 0e 0001 00 0008 2473686172652f67 00, 82 0e 0001 00 0008 2473686172652f2f 00";
    ShareName => "82 10 0001 00 000a 2473686172652f2b2f62 00, 82 0f 0001 00 0009 2473686172652f672f 00";
    ShareName => "a2 0d 0001 00 0008 2473686172652f67";
    ProtocolName => "10 0d 0004 4d515458 05 02 003c 00 0000";
    ConnectFlagReserved => "10 0d 0004 4d515454 05 03 003c 00 0000";
    WillFlagsWithoutWill => "10 0d 0004 4d515454 05 0a 003c 00 0000";
    ReasonCode(1) => "40 03 0001 01, 50 03 0001 01, e0 01 01";
    ReasonCode(0x80) => "62 03 0001 80, 70 03 0001 80, f0 01 80";
    ReasonCode(0x8e) => "e0 01 8e";
    ReasonCode(0) => "f0 00, f0 06 00 04 15 0001 6d";
    PropertyUnknown(0) => "30 05 0001 61 01 00";
    PropertyUnknown(0x7f) => "30 05 0001 61 01 7f";
    SubscriptionIdOfClient => "30 06 0001 61 02 0b 01";
    PropertyMisplaced(0x0b) => "a2 08 0001 02 0b 01 0001 61";
    PropertyMisplaced(0x1f) => "82 0b 0001 04 1f 0001 72 0001 61 00";
    PropertyMisplaced(0x12) => "10 11 0004 4d515454 05 02 003c 04 12 0001 61 0000";
    PropertyMisplaced(0x1c) => "e0 06 00 04 1c 0001 73";
    PropertyTwice(0x02) => "30 0e 0001 61 0a 02 00000001 02 00000001";
    PropertyTwice(0x11) => "10 17 0004 4d515454 05 02 003c 0a 11 00000001 11 00000001 0000";
    PropertyZero(0x21) => "10 10 0004 4d515454 05 02 003c 03 21 0000 0000";
    PropertyZero(0x0b) => "82 09 0001 02 0b 00 0001 61 00";
    PropertyFlag { id: 0x17, value: 2 } => "10 0f 0004 4d515454 05 02 003c 02 17 02 0000";
    TopicAliasZero => "30 07 0001 61 03 23 0000";
    AuthenticationDataAlone => "10 11 0004 4d515454 05 02 003c 04 16 0001 00 0000";
    }
};

/// What a client must refuse.
const REFUSED_FROM_SERVER: &[(Malformed, &str)] = &{
    use Malformed::*;
    table! {
    WrongSender(1) => "10 0d 0004 4d515454 05 02 003c 00 0000";
    WrongSender(8) => "82 07 0001 00 0001 61 00";
    WrongSender(10) => "a2 06 0001 00 0001 61";
    WrongSender(12) => "c0 00";
    ConnAckFlagsReserved(2) => "20 03 02 00 00";
    SessionPresentInRefusal => "20 03 01 87 00";
    ReasonCode(1) => "20 03 00 01 00, b0 04 0001 00 01";
    ReasonCode(4) => "e0 01 04, 90 04 0001 00 04";
    ReasonCode(0x19) => "f0 01 19";
    NoReturnCodes => "90 03 0001 00, b0 03 0001 00";
    Truncated => "20 00, 20 02 00 00, 90 02 0001";
    TrailingBytes(1) => "20 04 00 00 00 00";
    PropertyMisplaced(0x11) => "e0 07 00 05 11 00000000";
    }
};

const fn flags(flags: u8, expected: u8) -> Malformed {
    Malformed::HeaderFlags { flags, expected }
}

fn refuse_all(table: &[(Malformed, &str)], decode: impl Fn(&[u8]) -> Option<DecodeError>) {
    for (reason, packets) in table {
        for packet in packets.split(',') {
            let mut bytes = hex(packet);
            assert_eq!(decode(&bytes), Some((*reason).into()), "{packet}");
            bytes.extend([0xc0, 0x00]);
            assert_eq!(decode(&bytes), Some((*reason).into()), "{packet} and more");
        }
    }
}

#[test]
fn a_server_refuses_what_must_be_refused() {
    refuse_all(REFUSED_FROM_CLIENT, |buf| decode_from_client(buf, 99).err());
}

#[test]
fn a_client_refuses_what_must_be_refused() {
    refuse_all(REFUSED_FROM_SERVER, |buf| decode_from_server(buf, 99).err());
}

#[test]
fn other_versions_are_told_from_nonsense() {
    for (text, level) in [
        ("10 0c 0004 4d515454 04 02 003c 0000", 4),
        ("10 0e 0006 4d5149736470 03 02 003c 0000", 3),
        ("10 0d 0004 4d515454 06 02 003c 00 0000", 6),
    ] {
        let unsupported = DecodeError::UnsupportedProtocol { level };
        assert_eq!(
            decode_from_client(&hex(text), MAX),
            Err(unsupported),
            "{text}"
        );
        assert_eq!(
            unsupported.reason_code(),
            Reason::UnsupportedProtocolVersion
        );
    }
}

#[test]
fn every_refusal_has_a_code_that_goes_into_a_disconnect() {
    for (rule, _) in REFUSED_FROM_CLIENT {
        let code = DecodeError::from(*rule).reason_code();
        assert!(
            code.is_failure() && code.may_stand_in(Place::ServerDisconnect),
            "{rule}"
        );
    }
    let too_large = DecodeError::TooLarge {
        packet_bytes: 9,
        max: 8,
    };
    assert_eq!(too_large.reason_code(), Reason::PacketTooLarge);
    assert_eq!(
        Malformed::TopicAliasZero.reason_code(),
        Reason::TopicAliasInvalid
    );
    for rule in [
        Malformed::PropertyTwice(1),
        Malformed::RequestedQosThree,
        Malformed::SubscriptionIdOfClient,
    ] {
        assert_eq!(rule.reason_code(), Reason::ProtocolError, "{rule}");
    }
    for rule in [
        Malformed::Utf8,
        Malformed::TopicName(TopicError::Nul),
        Malformed::TopicName(TopicError::WildcardInName),
        Malformed::TopicFilter(TopicError::MultiLevelNotLast),
        Malformed::ShareName,
    ] {
        assert_eq!(rule.reason_code(), Reason::MalformedPacket, "{rule}");
    }
}

#[test]
fn what_could_not_be_read_is_not_written() {
    let misplaced = list("1f 0001 72", Place::Received);
    let packets = [
        (
            FromClient::PubAck(ack(1, Reason::PacketIdNotFound, NONE)),
            EncodeError::ReasonCode,
        ),
        (
            FromClient::Publish(Publish {
                properties: misplaced,
                ..PUBLISH
            }),
            EncodeError::Properties(Malformed::PropertyMisplaced(0x1f)),
        ),
        (
            FromClient::Publish(Publish {
                topic: "",
                ..PUBLISH
            }),
            EncodeError::TopicName(TopicError::Empty),
        ),
        (
            FromClient::Publish(Publish {
                dup: true,
                ..PUBLISH
            }),
            EncodeError::DupAtQosZero,
        ),
        (
            FromClient::Publish(Publish {
                packet_id: Some(id(1)),
                ..PUBLISH
            }),
            EncodeError::PacketIdAgainstQos,
        ),
        (
            FromClient::Connect(Connect {
                client_id: "\0",
                ..CONNECT
            }),
            EncodeError::Nul,
        ),
        (
            FromClient::Disconnect(notice(Reason::SessionTakenOver, NONE)),
            EncodeError::ReasonCode,
        ),
    ];
    for (packet, why) in packets {
        let mut out = BytesMut::from("before");
        assert_eq!(
            encode_from_client(&packet, &mut out),
            Err(why),
            "{packet:?}"
        );
        assert_eq!(out, "before");
    }
    let answers = Answers {
        packet_id: id(1),
        properties: NONE,
        codes: ReasonCodes::parse(&[0], Place::UnsubAck).unwrap(),
    };
    let mut out = BytesMut::new();
    let written = encode_from_server(&FromServer::SubAck(answers), &mut out);
    assert_eq!((written, out.len()), (Err(EncodeError::ReasonCode), 0));
}

/// What can be read is written so that it is read as the same.
fn read_and_write_back(bytes: &[u8]) {
    let mut out = BytesMut::new();
    if let Ok(Some((packet, length))) = decode_from_client(bytes, MAX) {
        encode_from_client(&packet, &mut out).unwrap();
        assert_eq!(decode_from_client(&out, MAX), Ok(Some((packet, out.len()))));
        assert!(out.len() <= length);
    }
    out.clear();
    if let Ok(Some((packet, length))) = decode_from_server(bytes, MAX) {
        encode_from_server(&packet, &mut out).unwrap();
        assert_eq!(decode_from_server(&out, MAX), Ok(Some((packet, out.len()))));
        assert!(out.len() <= length);
    }
}

proptest! {
    #[test]
    fn any_bytes_are_safe(mut bytes in vec(any::<u8>(), 2..64), fit: bool) {
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
