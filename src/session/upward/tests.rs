//! MQTT 3.1.1 upwards against a clock that the tests own.

use bytes::Bytes;

use super::*;
use crate::mqtt::ConnAck;

const TIMING: UpwardTiming = UpwardTiming {
    accept_ms: 5000,
    dead_peer_ms: 10_000,
    ack_stall_ms: 60_000,
    window: 2,
};

fn upward() -> Upward<u32> {
    let connect = Connect {
        clean_session: true,
        keep_alive_seconds: 60,
        client_id: "edge-1",
        will: None,
        username: None,
        password: None,
    };
    Upward::new(TIMING, &connect, 0).unwrap()
}

fn accepted() -> Upward<u32> {
    let mut upward = upward();
    let answer = FromServer::ConnAck(ConnAck {
        session_present: false,
        code: ConnectReturnCode::Accepted,
    });
    let above = upward.handle_packet(100, answer);
    assert!(matches!(above, Ok(Above::Accepted { .. })), "{above:?}");
    upward
}

fn send(upward: &mut Upward<u32>, now_ms: u64, token: u32) {
    let body = Bytes::from_static(b"body");
    let out = Outgoing::new(b"a/", b"b", &body);
    let done = upward.deliver(now_ms, QoS::AtLeastOnce, &out, token);
    assert_eq!(done, None);
}

fn written(upward: &mut Upward<u32>) -> Vec<u8> {
    let bytes = upward.output().tail().to_vec();
    upward.output().advance(bytes.len());
    bytes
}

#[test]
fn nothing_is_sent_before_connack_and_its_absence_ends_it() {
    let mut upward = upward();
    assert_eq!(upward.room(), 0);
    assert_eq!(upward.next_timeout(), 5000);
    assert_eq!(upward.handle_timeout(4999), Ok(()));
    assert_eq!(upward.handle_timeout(5000), Err(Lost::NotAccepted));
    assert!(upward.handle_packet(10, FromServer::PingResp).is_err());
}

#[test]
fn acknowledgements_free_the_window_in_any_order() {
    let mut upward = accepted();
    send(&mut upward, 200, 7);
    send(&mut upward, 200, 8);
    assert_eq!(upward.room(), 0);
    let second = FromServer::PubAck(PacketId::new(2).unwrap());
    let above = upward.handle_packet(300, second);
    assert!(matches!(above, Ok(Above::Delivered(8))), "{above:?}");
    assert_eq!(upward.room(), 1);
    let (in_flight, next_id) = upward.park();
    let left: Vec<_> = in_flight.iter().map(|flight| flight.token).collect();
    assert_eq!((left, next_id), (vec![7], 3));
}

#[test]
fn a_silent_server_is_asked_and_then_gone() {
    let mut upward = accepted();
    written(&mut upward);
    assert_eq!(upward.next_timeout(), 5100);
    assert_eq!(upward.handle_timeout(5100), Ok(()));
    assert_eq!(written(&mut upward), [0xC0, 0]);
    assert!(upward.is_degraded(7600) && !upward.is_degraded(7599));
    assert_eq!(upward.handle_timeout(10_099), Ok(()));
    assert_eq!(upward.handle_timeout(10_100), Err(Lost::Silent(10_000)));
    // After a sleep of the device it is asked first, too.
    let mut upward = accepted();
    assert_eq!(upward.handle_timeout(3_600_000), Ok(()));
    assert_eq!(upward.handle_timeout(3_604_999), Ok(()));
    let answered = upward.handle_packet(3_605_000, FromServer::PingResp);
    assert!(matches!(answered, Ok(Above::None)), "{answered:?}");
    assert_eq!(upward.handle_timeout(3_605_001), Ok(()));
}

#[test]
fn messages_that_go_to_a_server_that_hangs_do_not_hide_it() {
    let mut upward = accepted();
    for now_ms in (200..10_000).step_by(200) {
        upward.wrote(now_ms, false);
        assert_eq!(upward.handle_timeout(now_ms), Ok(()));
    }
    assert!(upward.is_degraded(9800));
    let silent = Err(Lost::Silent(10_100));
    assert_eq!(upward.handle_timeout(10_200), silent);
    // A large message on a slow link: the server is there as long as it moves.
    let mut upward = accepted();
    for now_ms in (200..30_000).step_by(200) {
        upward.wrote(now_ms, true);
        assert_eq!(upward.handle_timeout(now_ms), Ok(()));
    }
    assert_eq!(upward.handle_timeout(34_800), Ok(()));
    assert_eq!(upward.handle_timeout(39_800), Err(Lost::Silent(10_000)));
}

#[test]
fn a_server_that_acknowledges_nothing_is_left() {
    let mut upward = accepted();
    send(&mut upward, 1000, 1);
    for now_ms in (2000..61_000).step_by(1000) {
        assert!(upward.handle_packet(now_ms, FromServer::PingResp).is_ok());
        assert_eq!(upward.handle_timeout(now_ms), Ok(()));
    }
    assert_eq!(upward.handle_timeout(61_000), Err(Lost::AckStalled(60_000)));
}
