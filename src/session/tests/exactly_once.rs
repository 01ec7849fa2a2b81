//! QoS 2, both ways.

use std::collections::BTreeSet;

use super::*;

#[test]
fn qos_2_from_the_client_is_taken_once() {
    let mut session = active(10);
    let first = session.handle_packet(0, publish(QoS::ExactlyOnce));
    assert!(matches!(first, Ok(Event::Publish(..))));
    session.acknowledge((QoS::ExactlyOnce, id(9)), (5, 0), ReasonCode::Success);
    // It is not on disk yet, and comes again.
    let again = session.handle_packet(0, publish(QoS::ExactlyOnce));
    assert!(matches!(again, Ok(Event::None)));
    assert!(written(&mut session).is_empty());
    session.handle_kept(5);
    assert_eq!(written(&mut session), ["pubrec 9", "pubrec 9"]);
    // Also on the next connection, until it is released.
    let left = session.park();
    let mut session = active(10);
    session.resume(1, BTreeSet::new(), left.unreleased);
    let again = session.handle_packet(0, publish(QoS::ExactlyOnce));
    assert!(matches!(again, Ok(Event::None)));
    let released = session.handle_packet(0, FromClient::PubRel(id(9)));
    assert!(matches!(released, Ok(Event::Released(it)) if it == id(9)));
    // PUBCOMP waits until that is on disk, also when PUBREL comes again.
    session.complete(id(9), 2);
    let released = session.handle_packet(0, FromClient::PubRel(id(9)));
    assert!(matches!(released, Ok(Event::Released(it)) if it == id(9)));
    session.complete(id(9), 2);
    session.handle_state(1);
    assert_eq!(written(&mut session), ["pubrec 9"]);
    session.handle_state(2);
    let answers = ["pubcomp 9", "pubcomp 9"];
    assert_eq!(written(&mut session), answers);
    let new = session.handle_packet(0, publish(QoS::ExactlyOnce));
    assert!(matches!(new, Ok(Event::Publish(..))));
}

#[test]
fn an_acknowledgement_of_another_qos_closes() {
    for (qos, packet) in [
        (QoS::AtLeastOnce, FromClient::PubRec(id(1))),
        (QoS::AtLeastOnce, FromClient::PubComp(id(1))),
        (QoS::ExactlyOnce, FromClient::PubAck(id(1))),
        (QoS::ExactlyOnce, FromClient::PubComp(id(1))),
    ] {
        let mut session = active(10);
        deliver(&mut session, 0, qos, 1);
        let result = session.handle_packet(0, packet);
        assert!(matches!(result, Err(Close::ProtocolError(_))), "{packet:?}");
    }
    let mut session = active(10);
    deliver(&mut session, 0, QoS::ExactlyOnce, 1);
    session.handle_packet(0, FromClient::PubRec(id(1))).unwrap();
    let result = session.handle_packet(0, FromClient::PubAck(id(1)));
    assert!(matches!(result, Err(Close::ProtocolError(_))));
}

#[test]
fn qos_2_to_the_client_is_done_with_pubrec_and_its_id_with_pubcomp() {
    let mut session = active(10);
    deliver(&mut session, 0, QoS::ExactlyOnce, 7);
    deliver(&mut session, 0, QoS::ExactlyOnce, 8);
    assert_eq!(written(&mut session).len(), 2);
    let received = session.handle_packet(0, FromClient::PubRec(id(1)));
    assert!(matches!(received, Ok(Event::Received(it, 7)) if it == id(1)));
    // PUBREL waits until that is on disk, also when PUBREC comes again.
    session.release(id(1), 3);
    let again = session.handle_packet(0, FromClient::PubRec(id(1)));
    assert!(matches!(again, Ok(Event::None)));
    session.handle_state(2);
    assert!(written(&mut session).is_empty());
    session.handle_state(3);
    assert_eq!(written(&mut session), ["pubrel 1", "pubrel 1"]);
    assert_eq!(session.room(), 1);
    let left = session.park();
    let mut session = active(10);
    session.resume(
        left.outbound.next_id,
        left.outbound.released,
        left.unreleased,
    );
    for flight in left.outbound.in_flight {
        redeliver(&mut session, flight);
    }
    let again = ["pubrel 1", "publish 2 dup in/bag 8"];
    assert_eq!(written(&mut session), again);
    let completed = session.handle_packet(0, FromClient::PubComp(id(1)));
    assert!(matches!(completed, Ok(Event::Completed(it)) if it == id(1)));
    let received = session.handle_packet(0, FromClient::PubRec(id(2)));
    assert!(matches!(received, Ok(Event::Received(_, 8))));
    session.release(id(2), 0);
    session
        .handle_packet(0, FromClient::PubComp(id(2)))
        .unwrap();
    assert_eq!(session.room(), 3);
}

#[test]
fn a_message_has_the_packet_id_that_is_wanted_unless_it_is_in_use() {
    let mut session = active(10);
    let payload = Bytes::from_static(b"x");
    let out = Outgoing::new(b"t", b"", &payload);
    let at = (0, QoS::ExactlyOnce);
    for (token, wanted) in [(1, 500), (2, 500), (3, 2)] {
        session.deliver_as(at, &out, token, Some(id(wanted)));
    }
    deliver(&mut session, 0, QoS::AtLeastOnce, 4);
    let ids: Vec<_> = written(&mut session)
        .iter()
        .map(|packet| packet.split(' ').nth(1).unwrap().to_owned())
        .collect();
    assert_eq!(ids, ["500", "1", "2", "3"]);
}
