//! The session against a clock that the tests own.

mod exactly_once;
mod model;

use std::io::IoSlice;

use bytes::{Bytes, BytesMut};

use super::*;
use crate::mqtt::{Subscribe, SubscribeFilters};

const TIMING: Timing = Timing {
    connect_ms: 10_000,
    publish_stall_ms: 60_000,
    ack_stall_ms: 300_000,
    window: 3,
};

const CONNECT: Connect<'static> = Connect {
    clean_session: false,
    keep_alive_seconds: 10,
    client_id: "d/m",
    will: None,
    username: None,
    password: None,
};

fn id(id: u16) -> PacketId {
    PacketId::new(id).unwrap()
}

fn publish(qos: QoS) -> FromClient<'static> {
    FromClient::Publish(Publish {
        dup: false,
        qos,
        retain: false,
        topic: "t",
        packet_id: (qos != QoS::AtMostOnce).then(|| id(9)),
        payload: b"p",
    })
}

fn subscribe(packet_id: u16) -> Subscribe<'static> {
    Subscribe {
        packet_id: id(packet_id),
        filters: SubscribeFilters::parse(b"\0\x01a\x01").unwrap(),
    }
}

fn welcome(keep_alive_seconds: u16) -> Welcome<'static> {
    Welcome {
        keep_alive_seconds,
        ..Welcome::default()
    }
}

/// A session that is in since 0 ms, its CONNACK written.
fn active(keep_alive_seconds: u16) -> Session<u32> {
    let mut session = Session::new(TIMING, 0);
    let event = session.handle_packet(0, FromClient::Connect(CONNECT));
    assert!(matches!(event, Ok(Event::Connect(..))));
    session.accept(0, &welcome(keep_alive_seconds));
    assert_eq!(written(&mut session), ["connack 0"]);
    session
}

fn bytes(session: &mut Session<u32>) -> BytesMut {
    let mut all = BytesMut::new();
    while !session.output().is_empty() {
        let mut slices = [IoSlice::new(&[]); 8];
        let filled = session.output().slices(&mut slices);
        let before = all.len();
        for slice in &slices[..filled] {
            all.extend_from_slice(slice);
        }
        let written = all.len() - before;
        session.output().advance(written);
    }
    all
}

/// What the session has written, a few words for each packet.
fn written(session: &mut Session<u32>) -> Vec<String> {
    let all = bytes(session);
    let mut rest = &all[..];
    let mut packets = Vec::new();
    while !rest.is_empty() {
        let (packet, used) = mqtt::decode_from_server(rest, 1 << 20).unwrap().unwrap();
        packets.push(words(&packet));
        rest = &rest[used..];
    }
    packets
}

fn words(packet: &FromServer<'_>) -> String {
    match packet {
        FromServer::ConnAck(connack) if connack.session_present => "connack present".to_owned(),
        FromServer::ConnAck(connack) => format!("connack {}", connack.code as u8),
        FromServer::Publish(publish) => {
            let dup = if publish.dup { " dup" } else { "" };
            let id = publish.packet_id.map_or(0, PacketId::get);
            let payload = String::from_utf8_lossy(publish.payload);
            format!("publish {id}{dup} {} {payload}", publish.topic)
        }
        FromServer::PubAck(id) => format!("puback {}", id.get()),
        FromServer::SubAck(suback) => {
            let codes: Vec<_> = suback.codes.iter().collect();
            format!("suback {} {codes:?}", suback.packet_id.get())
        }
        FromServer::UnsubAck(id) => format!("unsuback {}", id.get()),
        FromServer::PubRec(id) => format!("pubrec {}", id.get()),
        FromServer::PubRel(id) => format!("pubrel {}", id.get()),
        FromServer::PubComp(id) => format!("pubcomp {}", id.get()),
        FromServer::PingResp => "pingresp".to_owned(),
    }
}

fn deliver(session: &mut Session<u32>, now_ms: u64, qos: QoS, token: u32) -> Option<u32> {
    let payload = Bytes::from(token.to_string());
    let out = Outgoing::new(b"in/", b"bag", &payload);
    session.deliver(now_ms, qos, &out, token)
}

fn redeliver(session: &mut Session<u32>, in_flight: InFlight<u32>) {
    let payload = Bytes::from(in_flight.token.to_string());
    let out = Outgoing::new(b"in/", b"bag", &payload);
    session.redeliver(&out, in_flight);
}

fn delivered(event: Result<Event<'_, u32>, Close>) -> Option<u32> {
    match event.unwrap() {
        Event::Delivered(token) => Some(token),
        _ => None,
    }
}

/// Due exactly then: nothing a millisecond before, and the caller is woken in time.
fn assert_closes_at(session: &mut Session<u32>, at_ms: u64, close: &Close) {
    let next = session.next_timeout().unwrap();
    assert!(next <= at_ms, "woken at {next} for {close:?} at {at_ms}");
    assert_eq!(session.handle_timeout(at_ms - 1), Ok(()));
    assert_eq!(session.handle_timeout(at_ms).as_ref(), Err(close));
}

#[test]
fn connect_has_to_come_in_time() {
    let mut session = Session::new(TIMING, 500);
    assert!(session.wants_packets() && !session.is_active());
    assert_closes_at(&mut session, 10_500, &Close::ConnectTimeout);
    assert!(written(&mut session).is_empty());
}

#[test]
fn a_login_that_takes_its_time_is_no_connect_timeout() {
    let mut session = Session::<u32>::new(TIMING, 0);
    assert!(
        session
            .handle_packet(9_999, FromClient::Connect(CONNECT))
            .is_ok()
    );
    assert!(!session.wants_packets());
    assert_eq!(session.next_timeout(), None);
    assert_eq!(session.handle_timeout(1_000_000), Ok(()));
    session.accept(
        1_000_000,
        &Welcome {
            session_present: true,
            ..welcome(10)
        },
    );
    assert_eq!(written(&mut session), ["connack present"]);
    assert_closes_at(&mut session, 1_015_000, &Close::KeepAlive);
}

#[test]
fn a_refusal_waits_for_its_time_and_closes() {
    let mut session = Session::<u32>::new(TIMING, 0);
    let _ = session.handle_packet(0, FromClient::Connect(CONNECT));
    let close = Close::LoginRefused("no".to_owned());
    session.refuse(100, 400, ConnectReturnCode::NotAuthorized, close.clone());
    assert!(!session.wants_packets());
    assert_eq!(session.next_timeout(), Some(500));
    assert_eq!(session.handle_timeout(499), Ok(()));
    assert!(written(&mut session).is_empty());
    assert_eq!(session.handle_timeout(500), Err(close));
    assert_eq!(written(&mut session), ["connack 5"]);
}

#[test]
fn keep_alive_ends_at_one_and_a_half() {
    let mut session = active(10);
    assert_closes_at(&mut session, 15_000, &Close::KeepAlive);
    for packet in [FromClient::PingReq, publish(QoS::AtMostOnce)] {
        let mut session = active(10);
        let _ = session.handle_packet(14_000, packet).unwrap();
        assert_closes_at(&mut session, 29_000, &Close::KeepAlive);
    }
}

#[test]
fn what_the_hub_sends_is_no_sign_of_life_of_the_client() {
    let mut session = active(10);
    deliver(&mut session, 14_000, QoS::AtMostOnce, 1);
    session.acknowledge((QoS::AtLeastOnce, id(1)), (0, 0), ReasonCode::Success);
    assert_closes_at(&mut session, 15_000, &Close::KeepAlive);
}

#[test]
fn keep_alive_0_is_none() {
    let mut session = active(0);
    assert_eq!(session.next_timeout(), None);
    assert_eq!(session.handle_timeout(u64::MAX / 2), Ok(()));
}

#[test]
fn the_longest_keep_alive_is_kept() {
    let mut session = active(u16::MAX);
    assert_closes_at(&mut session, 98_302_500, &Close::KeepAlive);
}

#[test]
fn deliveries_left_unacknowledged_end_the_connection() {
    let mut session = active(0);
    deliver(&mut session, 1_000, QoS::AtLeastOnce, 1);
    deliver(&mut session, 200_000, QoS::AtLeastOnce, 2);
    // Any acknowledgement counts: handlers may take their time.
    let event = session.handle_packet(290_000, FromClient::PubAck(id(2)));
    assert_eq!(delivered(event), Some(2));
    assert_closes_at(&mut session, 590_000, &Close::AckStalled);
    let event = session.handle_packet(580_000, FromClient::PubAck(id(1)));
    assert_eq!(delivered(event), Some(1));
    assert_eq!(session.next_timeout(), None);
    // After a pause, the time starts with the delivery, not with the last acknowledgement.
    deliver(&mut session, 2_000_000, QoS::AtLeastOnce, 3);
    assert_closes_at(&mut session, 2_300_000, &Close::AckStalled);
}

#[test]
fn pings_are_no_acknowledgement_and_0_waits_for_ever() {
    let mut session = active(0);
    deliver(&mut session, 0, QoS::AtLeastOnce, 1);
    let _ = session.handle_packet(299_999, FromClient::PingReq).unwrap();
    assert_closes_at(&mut session, 300_000, &Close::AckStalled);
    let patient = Timing {
        ack_stall_ms: 0,
        ..TIMING
    };
    let mut session = Session::new(patient, 0);
    let _ = session.handle_packet(0, FromClient::Connect(CONNECT));
    session.accept(0, &welcome(0));
    deliver(&mut session, 0, QoS::AtLeastOnce, 1);
    assert_eq!(session.next_timeout(), None);
}

#[test]
fn a_held_back_publish_suspends_keep_alive_and_ends_in_a_stall() {
    let mut session = active(10);
    session.hold_back(5_000);
    assert!(!session.wants_packets());
    assert_eq!(session.handle_timeout(20_000), Ok(()), "keep-alive");
    // Offered again and held back again: the time runs from the first.
    session.hold_back(40_000);
    assert_closes_at(&mut session, 65_000, &Close::PublishStalled);
}

#[test]
fn a_publish_that_goes_on_starts_keep_alive_anew() {
    let mut session = active(10);
    session.hold_back(5_000);
    session.go_on(50_000);
    assert!(session.wants_packets());
    assert_closes_at(&mut session, 65_000, &Close::KeepAlive);
    let mut session = active(10);
    session.go_on(14_000);
    assert_closes_at(&mut session, 15_000, &Close::KeepAlive);
}

#[test]
fn acknowledgements_that_a_held_back_client_cannot_send_are_not_missed() {
    let mut session = active(0);
    deliver(&mut session, 0, QoS::AtLeastOnce, 1);
    session.hold_back(290_000);
    assert_eq!(session.handle_timeout(310_000), Ok(()));
    // Its acknowledgements may have been waiting all the while; they are read only now.
    session.go_on(320_000);
    assert_eq!(session.handle_timeout(320_000), Ok(()));
    let event = session.handle_packet(320_000, FromClient::PubAck(id(1)));
    assert_eq!(delivered(event), Some(1));
}

#[test]
fn suback_and_unsuback_wait_for_the_disk_in_their_order() {
    let mut session = active(10);
    let event = session.handle_packet(0, FromClient::Subscribe(subscribe(7)));
    assert!(matches!(event, Ok(Event::Subscribe { .. })));
    let codes = vec![Ok(QoS::AtLeastOnce), Err(ReasonCode::NotAuthorized.into())];
    session.subscribed(id(7), codes, 5);
    session.unsubscribed(id(8), vec![true], 6);
    session.handle_durable(4);
    assert!(session.awaits_disk());
    assert!(written(&mut session).is_empty());
    // Other things do not wait for the disk.
    let _ = session.handle_packet(0, FromClient::PingReq).unwrap();
    assert_eq!(written(&mut session), ["pingresp"]);
    session.handle_durable(5);
    let suback = "suback 7 [Granted(AtLeastOnce), Failure]";
    assert_eq!(written(&mut session), [suback]);
    session.handle_durable(9);
    assert_eq!(written(&mut session), ["unsuback 8"]);
    assert!(!session.awaits_disk());
}

#[test]
fn what_was_in_flight_comes_again_under_its_packet_ids() {
    let mut session = active(10);
    for token in 1..=3 {
        deliver(&mut session, 0, QoS::AtLeastOnce, token);
    }
    let sent = [
        "publish 1 in/bag 1",
        "publish 2 in/bag 2",
        "publish 3 in/bag 3",
    ];
    assert_eq!(written(&mut session), sent);
    let event = session.handle_packet(0, FromClient::PubAck(id(2)));
    assert_eq!(delivered(event), Some(2));
    let left = session.park().outbound;
    let mut session = active(10);
    session.resume(left.next_id, left.released, BTreeSet::new());
    for flight in left.in_flight {
        redeliver(&mut session, flight);
    }
    assert_eq!(session.room(), 1);
    deliver(&mut session, 0, QoS::AtLeastOnce, 4);
    let again = [
        "publish 1 dup in/bag 1",
        "publish 3 dup in/bag 3",
        "publish 4 in/bag 4",
    ];
    assert_eq!(written(&mut session), again);
    for (id_, token) in [(3, 3), (1, 1), (4, 4)] {
        let event = session.handle_packet(0, FromClient::PubAck(id(id_)));
        assert_eq!(delivered(event), Some(token));
    }
}

#[test]
fn a_client_that_comes_back_without_acknowledging_stalls_too() {
    let mut session = active(0);
    let in_flight = InFlight {
        packet_id: id(1),
        qos: QoS::AtLeastOnce,
        token: 1,
    };
    redeliver(&mut session, in_flight);
    assert_closes_at(&mut session, 300_000, &Close::AckStalled);
}

#[test]
fn the_window_is_the_limit_and_qos_0_does_not_count() {
    let mut session = active(10);
    for token in 1..=3 {
        assert_eq!(session.room(), 4 - token as usize);
        assert_eq!(deliver(&mut session, 0, QoS::AtLeastOnce, token), None);
    }
    assert_eq!(session.room(), 0);
    assert_eq!(deliver(&mut session, 0, QoS::AtMostOnce, 9), Some(9));
    assert_eq!(written(&mut session)[3], "publish 0 in/bag 9");
    let unknown = session.handle_packet(0, FromClient::PubAck(id(77)));
    assert_eq!(delivered(unknown), None);
    assert_eq!(session.room(), 0);
    let event = session.handle_packet(0, FromClient::PubAck(id(2)));
    assert_eq!(delivered(event), Some(2));
    let twice = session.handle_packet(0, FromClient::PubAck(id(2)));
    assert_eq!(delivered(twice), None);
    assert_eq!(session.room(), 1);
}

#[test]
fn the_first_packet_is_connect_and_no_other_is() {
    for packet in [
        publish(QoS::AtLeastOnce),
        FromClient::PingReq,
        FromClient::Disconnect,
        FromClient::Subscribe(subscribe(1)),
        FromClient::PubAck(id(1)),
    ] {
        let mut session = Session::<u32>::new(TIMING, 0);
        let result = session.handle_packet(0, packet);
        assert!(matches!(result, Err(Close::NotConnected)), "{packet:?}");
    }
    let mut session = active(10);
    let second = session.handle_packet(1, FromClient::Connect(CONNECT));
    assert!(matches!(second, Err(Close::SecondConnect)));
    assert!(
        written(&mut session).is_empty(),
        "no answer to a second CONNECT"
    );
}

#[test]
fn pings_are_answered_and_disconnect_is_the_end() {
    let mut session = active(10);
    for _ in 0..2 {
        let event = session.handle_packet(0, FromClient::PingReq);
        assert!(matches!(event, Ok(Event::None)));
    }
    assert_eq!(written(&mut session), ["pingresp", "pingresp"]);
    let event = session.handle_packet(0, FromClient::Disconnect);
    assert!(matches!(event, Ok(Event::Disconnect { voids_will: true })));
    assert!(!session.wants_packets());
    assert_eq!(session.next_timeout(), None);
    let late = session.handle_packet(0, FromClient::PingReq);
    assert!(matches!(late, Ok(Event::None)));
    assert!(written(&mut session).is_empty());
}

#[test]
fn pubacks_wait_for_the_disk_in_their_order() {
    let mut session = active(0);
    let _ = written(&mut session);
    session.acknowledge((QoS::AtLeastOnce, id(1)), (5, 0), ReasonCode::Success);
    session.acknowledge((QoS::AtLeastOnce, id(2)), (0, 0), ReasonCode::Success);
    let ping = session.handle_packet(0, FromClient::PingReq);
    assert!(matches!(ping, Ok(Event::None)));
    session.acknowledge((QoS::AtLeastOnce, id(3)), (7, 0), ReasonCode::Success);
    assert!(written(&mut session).is_empty());
    assert_eq!(session.unkept_seq(), Some(5));
    session.handle_kept(6);
    assert_eq!(written(&mut session), ["puback 1", "puback 2", "pingresp"]);
    session.handle_kept(9);
    assert_eq!(written(&mut session), ["puback 3"]);
    session.acknowledge((QoS::AtLeastOnce, id(4)), (8, 0), ReasonCode::Success);
    assert_eq!(written(&mut session), ["puback 4"]);
    assert_eq!(session.unkept_seq(), None);
}
