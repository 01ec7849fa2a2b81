//! MQTT 5 against a clock that the tests own.

use bytes::{Bytes, BytesMut};

use super::super::{InFlight, Timing};
use super::*;
use crate::mqtt::Malformed;

const TIMING: Timing = Timing {
    connect_ms: 10_000,
    publish_stall_ms: 60_000,
    ack_stall_ms: 300_000,
    window: 3,
};

const CONNECT: v5::Connect<'static> = v5::Connect {
    clean_start: true,
    keep_alive_seconds: 10,
    properties: Properties::EMPTY,
    client_id: "d/m",
    will: None,
    username: None,
    password: None,
};

const NONE: Properties<'static> = Properties::EMPTY;

fn id(id: u16) -> PacketId {
    PacketId::new(id).unwrap()
}

fn list(place: Place, properties: &[Property<'static>]) -> Properties<'static> {
    let mut out = BytesMut::new();
    encode_properties(&mut out, place, properties.iter().copied()).unwrap();
    Properties::parse(out.to_vec().leak(), place).unwrap()
}

/// What waits to be written, as text.
fn written(session: &mut Session<u32>) -> Vec<String> {
    let bytes = session.output().tail().split();
    let mut rest = &bytes[..];
    let mut all = Vec::new();
    while let Some((packet, length)) = v5::decode_from_server(rest, 1 << 20).unwrap() {
        all.push(match packet {
            FromServer::ConnAck(one) => format!("connack {:?} {:?}", one.reason, one.properties),
            FromServer::PubAck(one) => format!("puback {} {:?}", one.packet_id, one.reason),
            FromServer::SubAck(one) => format!("suback {} {:?}", one.packet_id, one.codes),
            FromServer::UnsubAck(one) => format!("unsuback {} {:?}", one.packet_id, one.codes),
            FromServer::Disconnect(one) => format!("disconnect {:?}", one.reason),
            FromServer::Publish(one) => format!("publish {} {:?}", one.topic, one.packet_id),
            FromServer::PingResp => "pong".to_owned(),
            other => panic!("{other:?}"),
        });
        rest = &rest[length..];
    }
    assert!(rest.is_empty());
    all
}

/// A session that a client with such properties is in, and its CONNACK.
fn active(properties: &[Property<'static>], is_kept: bool) -> (Session<u32>, String) {
    let mut session = Session::new(TIMING, 0);
    let connect = v5::Connect {
        properties: list(Place::Connect, properties),
        ..CONNECT
    };
    let event = session.handle_packet_v5(0, FromClient::Connect(connect));
    assert!(matches!(event, Ok(Event::Connect(..))), "{event:?}");
    let welcome = Welcome {
        keep_alive_seconds: 10,
        is_kept,
        ..Welcome::default()
    };
    session.accept(0, &welcome);
    let connack = written(&mut session).remove(0);
    (session, connack)
}

fn publish(properties: Properties<'static>, qos: QoS) -> FromClient<'static> {
    FromClient::Publish(v5::Publish {
        dup: false,
        qos,
        retain: false,
        topic: "t",
        packet_id: (qos != QoS::AtMostOnce).then(|| id(9)),
        properties,
        payload: b"p",
    })
}

fn out(payload: &Bytes) -> Outgoing<'_> {
    Outgoing::new(b"a/", b"b", payload)
}

#[test]
fn connack_has_the_hubs_bounds_and_how_long_the_session_is_kept() {
    for (asked, is_kept, told) in [
        (None, false, ""),
        (Some(0), false, ""),
        (Some(60), true, ""),
        (Some(u32::MAX), true, ""),
        (Some(60), false, "SessionExpiry(0), "),
    ] {
        let asked: Vec<_> = asked.map(Property::SessionExpiry).into_iter().collect();
        let (_, connack) = active(&asked, is_kept);
        let expected = format!("connack Success [{told}TopicAliasMaximum(10)]");
        assert_eq!(connack, expected);
    }
}

#[test]
fn enhanced_authentication_is_refused_with_its_code() {
    let connect = v5::Connect {
        properties: list(Place::Connect, &[Property::AuthenticationMethod("m")]),
        ..CONNECT
    };
    let mut session: Session<u32> = Session::new(TIMING, 0);
    let refused = session.handle_packet_v5(0, FromClient::Connect(connect));
    assert!(
        matches!(refused, Err(Close::LoginRefused(_))),
        "{refused:?}"
    );
    assert_eq!(
        written(&mut session),
        [
            "connack BadAuthenticationMethod [ReasonString(\"login refused: enhanced \
             authentication is not available\")]"
        ]
    );
}

#[test]
fn a_refused_login_has_the_code_of_mqtt_5() {
    let mut session: Session<u32> = Session::new(TIMING, 0);
    let event = session.handle_packet_v5(0, FromClient::Connect(CONNECT));
    assert!(matches!(event, Ok(Event::Connect(..))));
    let close = Close::LoginRefused("wrong key".to_owned());
    let code = ConnectReturnCode::NotAuthorized;
    session.refuse(0, 500, code, close.clone());
    assert_eq!(session.handle_timeout(499), Ok(()));
    assert_eq!(session.handle_timeout(500), Err(close));
    assert_eq!(written(&mut session), ["connack NotAuthorized []"]);
}

#[test]
fn answers_carry_reasons() {
    let (mut session, _) = active(&[], false);
    session.acknowledge(
        (QoS::AtLeastOnce, id(1)),
        (0, 0),
        ReasonCode::NoMatchingSubscribers,
    );
    session.acknowledge((QoS::AtLeastOnce, id(2)), (7, 0), ReasonCode::QuotaExceeded);
    let ping = session.handle_packet_v5(1, FromClient::PingReq);
    assert!(matches!(ping, Ok(Event::None)));
    assert_eq!(written(&mut session), ["puback 1 NoMatchingSubscribers"]);
    session.handle_kept(7);
    assert_eq!(written(&mut session), ["puback 2 QuotaExceeded", "pong"]);
    let codes = vec![Ok(QoS::AtLeastOnce), Err(ReasonCode::NotAuthorized.into())];
    session.subscribed(id(3), codes, 0);
    session.unsubscribed(id(4), vec![true, false], 0);
    session.handle_durable(0);
    let answered = [
        "suback 3 [GrantedQos1, NotAuthorized]",
        "unsuback 4 [Success, NoSubscriptionExisted]",
    ];
    assert_eq!(written(&mut session), answered);
}

#[test]
fn what_the_hub_said_it_has_not_ends_the_connection() {
    let alias = Property::TopicAlias(11.try_into().unwrap());
    let notice = Notice {
        reason: ReasonCode::ContinueAuthentication,
        properties: NONE,
    };
    for (packet, reason) in [
        (
            publish(list(Place::ClientPublish, &[alias]), QoS::AtMostOnce),
            ReasonCode::TopicAliasInvalid,
        ),
        (FromClient::Connect(CONNECT), ReasonCode::ProtocolError),
        (FromClient::Auth(notice), ReasonCode::ProtocolError),
    ] {
        let (mut session, _) = active(&[], false);
        let close = session.handle_packet_v5(1, packet).unwrap_err();
        assert_eq!(close.reason_code(), Some(reason), "{close}");
        session.say_goodbye(&close);
        assert_eq!(written(&mut session), [format!("disconnect {reason:?}")]);
    }
    // In 3.1.1 there is no such packet, and nobody is told after a leave.
    let (mut session, _) = active(&[], false);
    session.say_goodbye(&Close::Disconnect);
    session.say_goodbye(&Close::Decode(Malformed::Utf8.into()));
    assert_eq!(written(&mut session), ["disconnect MalformedPacket"]);
}

#[test]
fn leaving_may_change_how_long_the_session_is_kept() {
    let leave = |session: &mut Session<u32>, reason, properties| {
        session.handle_packet_v5(1, FromClient::Disconnect(Notice { reason, properties }))
    };
    let seconds = |seconds| list(Place::ClientDisconnect, &[Property::SessionExpiry(seconds)]);
    let (mut session, _) = active(&[Property::SessionExpiry(60)], true);
    assert_eq!(session.expiry_seconds(), Some(60));
    let event = leave(&mut session, ReasonCode::Success, seconds(0));
    assert!(matches!(event, Ok(Event::Disconnect { voids_will: true })));
    assert_eq!(session.expiry_seconds(), Some(0));
    let (mut session, _) = active(&[], false);
    let event = leave(&mut session, ReasonCode::Success, seconds(60));
    assert!(matches!(event, Err(Close::ProtocolError(_))), "{event:?}");
    let (mut session, _) = active(&[], false);
    let event = leave(&mut session, ReasonCode::DisconnectWithWill, NONE);
    assert!(matches!(event, Ok(Event::Disconnect { voids_will: false })));
}

#[test]
fn the_clients_bounds_are_kept() {
    let window = Property::ReceiveMaximum(2.try_into().unwrap());
    let bytes = Property::MaximumPacketSize(100.try_into().unwrap());
    let (mut session, _) = active(&[window, bytes], false);
    assert_eq!(session.room(), 2);
    let (small, large) = (Bytes::from(vec![0; 80]), Bytes::from(vec![0; 100]));
    assert!(session.takes(QoS::AtLeastOnce, &out(&small)));
    assert!(!session.takes(QoS::AtLeastOnce, &out(&large)));
    // Exactly: two bytes of header, the topic with its length, an id, no properties.
    for (qos, most) in [(QoS::AtMostOnce, 92), (QoS::AtLeastOnce, 90)] {
        let bytes = |bytes| Bytes::from(vec![0; bytes]);
        assert!(session.takes(qos, &out(&bytes(most))), "{qos:?}");
        assert!(!session.takes(qos, &out(&bytes(most + 1))), "{qos:?}");
    }
    for token in [1, 2] {
        let done = session.deliver(0, QoS::AtLeastOnce, &out(&small), token);
        assert_eq!(done, None);
    }
    assert_eq!(session.room(), 0);
    assert_eq!(session.output().len(), 2 * (2 + 2 + 3 + 2 + 1 + 80));
    let both = [
        "publish a/b Some(PacketId(1))",
        "publish a/b Some(PacketId(2))",
    ];
    assert_eq!(written(&mut session), both);
    let ack = FromClient::PubAck(Ack::success(id(1)));
    let event = session.handle_packet_v5(1, ack);
    assert!(matches!(event, Ok(Event::Delivered(1))), "{event:?}");
    let in_flight = session.park().outbound.in_flight;
    let left: Vec<_> = in_flight
        .iter()
        .map(|one: &InFlight<u32>| one.token)
        .collect();
    assert_eq!(left, [2]);
}

#[test]
fn an_answer_that_is_larger_than_the_client_takes_is_not_sent() {
    let bytes = |bytes: u32| Property::MaximumPacketSize(bytes.try_into().unwrap());
    let (mut session, connack) = active(&[bytes(5)], false);
    assert_eq!(connack, "connack Success []");
    session.subscribed(id(3), vec![Err(ReasonCode::NotAuthorized.into()); 10], 0);
    session.handle_durable(0);
    session.acknowledge((QoS::AtLeastOnce, id(4)), (0, 0), ReasonCode::Success);
    assert_eq!(written(&mut session), ["puback 4 Success"]);
}

#[test]
fn user_properties_reach_the_hub() {
    let user = [Property::User("temp", "31"), Property::MessageExpiry(5)];
    let user = list(Place::ClientPublish, &user);
    let (mut session, _) = active(&[], false);
    let event = session.handle_packet_v5(1, publish(user, QoS::AtLeastOnce));
    let Ok(Event::Publish(publish, properties)) = event else {
        panic!("{event:?}");
    };
    assert_eq!((publish.topic, publish.packet_id), ("t", Some(id(9))));
    assert_eq!(properties, user);
}

/// The reason strings of what waits to be written; empty where there is none.
fn reasons(session: &mut Session<u32>) -> Vec<String> {
    let bytes = session.output().tail().split();
    let mut rest = &bytes[..];
    let mut all = Vec::new();
    while let Some((packet, length)) = v5::decode_from_server(rest, 1 << 20).unwrap() {
        let properties = match packet {
            FromServer::PubAck(one) | FromServer::PubRec(one) => one.properties,
            FromServer::SubAck(one) => one.properties,
            FromServer::ConnAck(one) => one.properties,
            FromServer::Disconnect(one) => one.properties,
            other => panic!("{other:?}"),
        };
        let reason = properties.find(|property| match property {
            Property::ReasonString(text) => Some(text.to_owned()),
            _ => None,
        });
        all.push(reason.unwrap_or_default());
        rest = &rest[length..];
    }
    all
}

#[test]
fn reasons_in_words_go_where_they_are_wanted_and_fit() {
    let small = Property::MaximumPacketSize(21.try_into().unwrap());
    for (properties, told) in [
        (&[][..], ["over a limit", "not yours", "at the end"]),
        (
            &[Property::RequestProblemInformation(true)],
            ["over a limit", "not yours", "at the end"],
        ),
        (
            &[Property::RequestProblemInformation(false)],
            ["", "", "at the end"],
        ),
        (&[small], ["over a limit", "not yours", ""]),
    ] {
        let (mut session, _) = active(properties, false);
        let verdict = || Verdict::because(ReasonCode::QuotaExceeded, "over a\nlimit");
        session.acknowledge((QoS::AtLeastOnce, id(1)), (0, 0), verdict());
        session.acknowledge((QoS::ExactlyOnce, id(2)), (0, 0), verdict());
        let codes = [None, Some("not yours"), Some("nor this")].map(|why| match why {
            None => Ok(QoS::AtMostOnce),
            Some(why) => Err(Verdict::because(ReasonCode::NotAuthorized, why)),
        });
        session.subscribed(id(3), codes.to_vec(), 0);
        session.handle_durable(0);
        session.say_goodbye(&Close::ProtocolError("at the end"));
        let [publish, filter, last] = told;
        let last = match last {
            "" => String::new(),
            last => format!("protocol error: {last}"),
        };
        let expected = [publish, publish, filter, &last];
        assert_eq!(reasons(&mut session), expected, "{properties:?}");
    }
    let long = Verdict::because(ReasonCode::QuotaExceeded, "ä".repeat(1000));
    let (mut session, _) = active(&[], false);
    session.acknowledge((QoS::AtLeastOnce, id(1)), (0, 0), long);
    assert_eq!(reasons(&mut session), ["ä".repeat(256)]);
}

#[test]
fn strangers_are_not_told_what_is_wrong_with_their_credentials() {
    for (code, told) in [
        (ConnectReturnCode::NotAuthorized, ""),
        (ConnectReturnCode::ServerUnavailable, "login refused: why"),
    ] {
        let mut session: Session<u32> = Session::new(TIMING, 0);
        let event = session.handle_packet_v5(0, FromClient::Connect(CONNECT));
        assert!(matches!(event, Ok(Event::Connect(..))));
        session.refuse(0, 0, code, Close::LoginRefused("why".to_owned()));
        assert!(session.handle_timeout(0).is_err());
        assert_eq!(reasons(&mut session), [told]);
    }
}

#[test]
fn topics_go_as_numbers_to_a_client_that_takes_them() {
    let (mut session, _) = active(&[Property::TopicAliasMaximum(1)], false);
    let payload = Bytes::from_static(b"x");
    for topic in [b"sensors/1", b"sensors/1", b"sensors/2", b"sensors/1"] {
        let out = Outgoing::new(topic, b"", &payload);
        session.deliver(0, QoS::AtMostOnce, &out, 1);
    }
    session.output().shrink();
    let all = written(&mut session);
    let topics = ["sensors/1", "", "sensors/2", "sensors/1"];
    assert_eq!(all, topics.map(|topic| format!("publish {topic} None")));
}
