//! MQTT 5 upwards against a clock that the tests own.

use bytes::Bytes;

use super::*;
use crate::mqtt::v5::{Answers, ReasonCodes, decode_from_client, encode_properties};
use crate::session::InFlight;

const TIMING: UpwardTiming = UpwardTiming {
    accept_ms: 5000,
    dead_peer_ms: 10_000,
    ack_stall_ms: 60_000,
    window: 5,
};

fn list(place: Place, properties: &[Property<'static>]) -> Properties<'static> {
    let mut out = BytesMut::new();
    encode_properties(&mut out, place, properties.iter().copied()).unwrap();
    Properties::parse(out.to_vec().leak(), place).unwrap()
}

/// A conversation on which CONNECT was written.
fn asking() -> Upward<u32> {
    let connect = Connect {
        clean_start: false,
        keep_alive_seconds: 60,
        properties: list(Place::Connect, &[Property::SessionExpiry(u32::MAX)]),
        client_id: "edge-1",
        will: None,
        username: None,
        password: Some(b"secret"),
    };
    Upward::new_v5(TIMING, &connect, 0).unwrap()
}

fn connack(
    upward: &mut Upward<u32>,
    reason: ReasonCode,
    properties: &[Property<'static>],
) -> Result<(), Lost> {
    let answer = FromServer::ConnAck(ConnAck {
        session_present: false,
        reason,
        properties: list(Place::ConnAck, properties),
    });
    upward.handle_packet_v5(100, answer).map(|above| {
        let is_in = matches!(above, Above::Accepted { .. });
        assert!(is_in, "{above:?}");
    })
}

/// One in which the server let us in on these terms, with nothing to write.
fn accepted(properties: &[Property<'static>]) -> Upward<u32> {
    let mut upward = asking();
    connack(&mut upward, ReasonCode::Success, properties).unwrap();
    written(&mut upward);
    upward
}

/// What waits to be written, as text.
fn written(upward: &mut Upward<u32>) -> Vec<String> {
    let bytes = upward.output().tail().split();
    let mut rest = &bytes[..];
    let mut all = Vec::new();
    while let Some((packet, used)) = decode_from_client(rest, 1 << 20).unwrap() {
        all.push(format!("{packet:?}"));
        rest = &rest[used..];
    }
    assert!(rest.is_empty());
    all
}

fn send(upward: &mut Upward<u32>, token: u32) {
    let body = Bytes::from_static(b"body");
    let mut out = Outgoing::new(b"a/", b"b", &body);
    out.properties = list(Place::ClientPublish, &[Property::User("n", "1")]);
    let done = upward.deliver(200, QoS::AtLeastOnce, &out, token);
    assert_eq!(done, None);
}

fn ack(id: u16, reason: ReasonCode, properties: &[Property<'static>]) -> FromServer<'static> {
    FromServer::PubAck(Ack {
        packet_id: PacketId::new(id).unwrap(),
        reason,
        properties: list(Place::Received, properties),
    })
}

#[test]
fn the_session_is_kept_and_a_password_needs_no_name() {
    let said = written(&mut asking());
    assert_eq!(said.len(), 1);
    for part in [
        "clean_start: false",
        "SessionExpiry(4294967295)",
        "client_id: \"edge-1\"",
        "username: None",
    ] {
        assert!(said[0].contains(part), "{part} in {said:?}");
    }
    let mut upward = accepted(&[]);
    assert_eq!(upward.kept_seconds(), Some(u32::MAX));
    let other = FromServer::ConnAck(ConnAck {
        session_present: false,
        reason: ReasonCode::Success,
        properties: NONE,
    });
    assert!(upward.handle_packet_v5(300, other).is_err());
}

#[test]
fn the_terms_of_connack_are_kept() {
    let upward = accepted(&[]);
    assert_eq!(upward.room(), 5);
    assert!(upward.takes_qos_1() && upward.takes_filter("a/#"));
    let mut upward = accepted(&[
        Property::SessionExpiry(30),
        Property::ReceiveMaximum(2.try_into().unwrap()),
        Property::MaximumQos(QoS::AtMostOnce),
        Property::MaximumPacketSize(20.try_into().unwrap()),
        Property::WildcardSubscriptionAvailable(false),
        Property::ServerKeepAlive(4),
    ]);
    assert_eq!(upward.room(), 2);
    assert_eq!(upward.kept_seconds(), Some(30));
    assert!(!upward.takes_qos_1());
    assert!(upward.takes_filter("a/b") && !upward.takes_filter("a/+") && !upward.takes_filter("#"));
    // Half of the server's keep-alive after what was sent last, which was CONNECT.
    assert_eq!(upward.next_timeout(), 2000);
    // 2 of the fixed header, 2 + 3 of the topic, 2 of the id, 1 of no properties.
    for (bytes, takes) in [(10, true), (11, false)] {
        let body = Bytes::from(vec![0; bytes]);
        let out = Outgoing::new(b"a/", b"b", &body);
        assert_eq!(upward.takes(QoS::AtLeastOnce, &out), takes, "{bytes}");
        upward.deliver(200, QoS::AtLeastOnce, &out, 1);
        assert_eq!(upward.output().tail().len() <= 20, takes, "{bytes}");
        upward.output().tail().clear();
    }
}

#[test]
fn a_refused_message_is_told_from_a_kept_one() {
    let mut upward = accepted(&[]);
    (1..=4).for_each(|token| send(&mut upward, token));
    let said = written(&mut upward);
    assert!(said[3].contains("User(\"n\", \"1\")"), "{said:?}");
    for (id, reason) in [
        (2, ReasonCode::Success),
        (1, ReasonCode::NoMatchingSubscribers),
    ] {
        let above = upward.handle_packet_v5(300, ack(id, reason, &[]));
        let is_kept = matches!(above, Ok(Above::Delivered(token)) if token == u32::from(id));
        assert!(is_kept, "{above:?}");
    }
    let text = Property::ReasonString("no room\nhere");
    let above = upward.handle_packet_v5(300, ack(3, ReasonCode::QuotaExceeded, &[text]));
    let Ok(Above::Refused(3, why)) = above else {
        panic!("{above:?}");
    };
    assert_eq!(why.to_string(), "quota exceeded (0x97): no room\\nhere");
    assert_eq!(upward.room(), 4);
    let unknown = upward.handle_packet_v5(300, ack(9, ReasonCode::QuotaExceeded, &[]));
    assert!(matches!(unknown, Ok(Above::None)), "{unknown:?}");
    // What is left goes again as it was, under its id.
    let (mut in_flight, next_id) = upward.park();
    let left = in_flight.pop_front().unwrap();
    assert_eq!((left.token, next_id, in_flight.len()), (4, 5, 0));
    let mut upward = accepted(&[]);
    let body = Bytes::from_static(b"body");
    upward.redeliver(
        &Outgoing::new(b"a/", b"b", &body),
        InFlight {
            packet_id: left.packet_id,
            qos: left.qos,
            token: left.token,
        },
    );
    let said = written(&mut upward);
    assert!(
        said[0].contains("dup: true") && said[0].contains("PacketId(4)"),
        "{said:?}"
    );
}

#[test]
fn refusals_and_farewells_say_why() {
    let mut upward = asking();
    let reference = Property::ServerReference("other:8883");
    let text = Property::ReasonString("moved");
    let refused = connack(&mut upward, ReasonCode::ServerMoved, &[text, reference]);
    let Err(Lost::RefusedWith(why)) = refused else {
        panic!("{refused:?}");
    };
    let words = "server moved (0x9d): moved; it names another server: other:8883";
    assert_eq!(why.to_string(), words);
    assert!(!upward.is_active());
    let goodbye = FromServer::Disconnect(Notice {
        reason: ReasonCode::ServerShuttingDown,
        properties: NONE,
    });
    for mut upward in [asking(), accepted(&[])] {
        let ended = upward.handle_packet_v5(200, goodbye);
        let Err(Lost::SentAway(why)) = ended else {
            panic!("{ended:?}");
        };
        assert_eq!(why.to_string(), "server shutting down (0x8b)");
        // Nobody is there any more to be told.
        assert!(!upward.says_why());
    }
    let long = "ä".repeat(1000);
    let long = Property::ReasonString(long.leak());
    let why = Why::read(ReasonCode::Banned, list(Place::ConnAck, &[long]));
    assert_eq!(why.text, Some("ä".repeat(TEXT_CHARS)));
}

#[test]
fn what_a_server_must_not_send_is_answered_with_the_reason() {
    let publish = |qos, properties: &[Property<'static>]| {
        FromServer::Publish(Publish {
            dup: false,
            qos,
            retain: false,
            topic: "a",
            packet_id: (qos != QoS::AtMostOnce).then(|| PacketId::new(1).unwrap()),
            properties: list(Place::ServerPublish, properties),
            payload: b"",
        })
    };
    let alias = Property::TopicAlias(1.try_into().unwrap());
    for packet in [
        publish(QoS::ExactlyOnce, &[]),
        publish(QoS::AtLeastOnce, &[alias]),
        FromServer::PubRec(Ack::success(PacketId::new(1).unwrap())),
        FromServer::Auth(Notice {
            reason: ReasonCode::ContinueAuthentication,
            properties: NONE,
        }),
    ] {
        let mut upward = accepted(&[]);
        let lost = upward.handle_packet_v5(200, packet);
        assert!(matches!(lost, Err(Lost::Unexpected(_))), "{lost:?}");
        assert!(upward.says_why());
        assert_eq!(&upward.output().tail()[..], [0xe0, 1, 0x82]);
    }
    // Before CONNACK nothing but CONNECT may be said.
    let mut upward = asking();
    written(&mut upward);
    assert!(upward.handle_packet_v5(200, FromServer::PingResp).is_err());
    assert!(!upward.says_why() && upward.output().is_empty());
    // Bytes that are no packet.
    let mut upward = accepted(&[]);
    let bytes = [0x40, 2, 0, 0];
    let error = v5::decode_from_server(&bytes, 100).unwrap_err();
    assert!(matches!(upward.undecoded(&bytes, &error), Lost::Decode(_)));
    assert_eq!(&upward.output().tail()[..], [0xe0, 1, 0x82]);
}

#[test]
fn the_answer_of_a_server_of_3_1_1_is_understood() {
    let bytes = [0x20, 2, 0, 1];
    let error = v5::decode_from_server(&bytes, 100).unwrap_err();
    let lost = asking().undecoded(&bytes, &error);
    let code = ConnectReturnCode::UnacceptableProtocolVersion;
    assert_eq!(lost, Lost::Refused(code));
    let lost = accepted(&[]).undecoded(&bytes, &error);
    assert!(matches!(lost, Lost::Decode(_)), "{lost:?}");
}

#[test]
fn filters_are_asked_for_and_answered_one_by_one() {
    let filters = ["a/#".to_owned(), "b".to_owned()];
    let mut upward = accepted(&[]);
    upward.subscribe(&filters).unwrap();
    upward.unsubscribe(&filters).unwrap();
    let said = written(&mut upward);
    for part in ["\"a/#\"", "\"b\"", "AtLeastOnce", "SendIfNew"] {
        assert!(said[0].contains(part), "{part} in {said:?}");
    }
    assert!(
        said[1].starts_with("Unsubscribe") && said[1].contains("\"a/#\""),
        "{said:?}"
    );
    let codes = [0x01, 0x87];
    let answer = FromServer::SubAck(Answers {
        packet_id: PacketId::new(1).unwrap(),
        properties: NONE,
        codes: ReasonCodes::parse(&codes, Place::SubAck).unwrap(),
    });
    let above = upward.handle_packet_v5(200, answer);
    let Ok(Above::Subscribed(granted)) = above else {
        panic!("{above:?}");
    };
    assert_eq!(
        granted,
        [Ok(QoS::AtLeastOnce), Err(ReasonCode::NotAuthorized)]
    );
    let mut upward = accepted(&[Property::MaximumPacketSize(12.try_into().unwrap())]);
    let unasked = upward.subscribe(&filters);
    assert_eq!(unasked, Err(Unasked::TooLarge { bytes: 15, max: 12 }));
    assert!(upward.output().is_empty());
}

#[test]
fn a_message_that_is_not_taken_is_acknowledged_with_the_reason() {
    let mut upward = accepted(&[]);
    let id = PacketId::new(7).unwrap();
    upward.acknowledge(id, ReasonCode::Success);
    upward.acknowledge(id, ReasonCode::QuotaExceeded);
    assert_eq!(
        &upward.output().tail()[..],
        [0x40, 2, 0, 7, 0x40, 3, 0, 7, 0x97]
    );
}
