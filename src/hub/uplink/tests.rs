//! The order in which messages go up, with a store in memory and a server that is packets only.

mod five;

use bytes::Bytes;

use super::*;
use crate::hub::Dialect;
use crate::hub::Inbound;
use crate::hub::sample::{NOW, hub};
use crate::iothub::bag;
use crate::message::{Message, Origin, Properties};
use crate::mqtt::{
    ConnAck, Connect, ConnectReturnCode, FromClient, FromServer, Publish, decode_from_client,
};
use crate::session::{Above, UpwardTiming};
use crate::store::{Append, Copy};

fn forwarding(live_share: Option<u8>) -> Arc<Forwarding> {
    Arc::new(Forwarding {
        dialect: Dialect::IotHub,
        acknowledged: true,
        max_message_bytes: None,
        live_share,
        inbound: Vec::<Inbound>::new(),
    })
}

/// Puts a message of a sender into its queue, as a route does.
fn put(hub: &Hub, sender: &str, priority: u64, live_share: bool, body: &str) {
    let sender = Identity::parse(sender).unwrap();
    let (way, _) = hub.ways.of(&sender, &hub.store);
    let mut bag = Vec::new();
    bag::encode(&Properties::default(), &sender, &mut bag);
    let message = Arc::new(Message {
        origin: Arc::new(Origin::new(sender, Some("out"))),
        bag: bag.into(),
        payload: Bytes::copy_from_slice(body.as_bytes()),
        received_ms: NOW.ms,
    });
    let copies = [Copy {
        queue: Arc::clone(way.queue(live_share)),
        priority: Priority::new(priority).unwrap_or(Priority::DEFAULT),
        ttl_ms: None,
    }];
    let append = Append {
        message: &message,
        copies: &copies,
        waiter: &Arc::new(Mailbox::default()),
        is_patient: true,
        is_last: false,
        now_ms: NOW.ms,
    };
    let appended = hub.store.append(&append, &mut Vec::new(), &mut Vec::new());
    appended.unwrap();
}

/// A conversation in which the server let us in.
fn upward(window: u16, next_id: u16) -> Upward<Token> {
    let timing = UpwardTiming {
        accept_ms: 5000,
        dead_peer_ms: 10_000,
        ack_stall_ms: 60_000,
        window,
    };
    let connect = Connect {
        clean_session: false,
        keep_alive_seconds: 30,
        client_id: "edge-1",
        will: None,
        username: None,
        password: None,
    };
    let mut upward = Upward::new(timing, &connect, NOW.ms).unwrap();
    let written = upward.output().len();
    upward.output().advance(written);
    upward.continue_ids(next_id);
    let accepted = FromServer::ConnAck(ConnAck {
        session_present: true,
        code: ConnectReturnCode::Accepted,
    });
    upward.handle_packet(NOW.ms, accepted).unwrap();
    upward
}

/// What was sent: body, packet id, DUP.
fn sent(upward: &mut Upward<Token>) -> Vec<(String, u16, bool)> {
    let bytes = upward.output().tail().to_vec();
    upward.output().advance(bytes.len());
    let mut rest = &bytes[..];
    let mut all = Vec::new();
    while let Some((packet, used)) = decode_from_client(rest, 1 << 20).unwrap() {
        if let FromClient::Publish(Publish {
            payload,
            packet_id,
            dup,
            ..
        }) = packet
        {
            let body = String::from_utf8(payload.to_vec()).unwrap();
            all.push((body, packet_id.unwrap().get(), dup));
        }
        rest = &rest[used..];
    }
    all
}

fn bodies(upward: &mut Upward<Token>) -> Vec<String> {
    sent(upward).into_iter().map(|(body, ..)| body).collect()
}

/// The server acknowledges these ids.
fn acknowledge(hub: &Hub, uplink: &mut Uplink, upward: &mut Upward<Token>, ids: &[u16]) {
    for id in ids {
        let packet = FromServer::PubAck(PacketId::new(*id).unwrap());
        match upward.handle_packet(NOW.ms, packet).unwrap() {
            Above::Delivered(token) => hub.forwarded(uplink, token, NOW),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn the_most_urgent_go_first_and_senders_take_turns() {
    let hub = hub();
    let mailbox = Arc::new(Mailbox::default());
    let mut uplink = hub.uplink(None, forwarding(None), &mailbox);
    for number in 0..100 {
        put(&hub, "edge-1/a", 5, false, &format!("a{number}"));
    }
    for number in 0..10 {
        put(&hub, "edge-1/b", 5, false, &format!("b{number}"));
    }
    put(&hub, "edge-1/c", 0, false, "urgent");
    put(&hub, "leaf", 9, false, "leaf");
    let mut upward = upward(1000, 1);
    hub.link_up(&mut uplink, true);
    hub.forward(&mut uplink, &mut upward, 1000, NOW);
    let order = bodies(&mut upward);
    assert_eq!(order.len(), 112);
    assert_eq!(order[0], "urgent");
    assert_eq!(order[111], "leaf");
    let at = |body: &str| order.iter().position(|other| other == body).unwrap();
    assert!(at("b9") < 1 + FETCH_MAX + 10 + 1, "b waits for all of a");
    for (sender, count) in [("a", 100), ("b", 10)] {
        let own = order.iter().filter(|body| body.starts_with(sender));
        let expected: Vec<_> = (0..count)
            .map(|number| format!("{sender}{number}"))
            .collect();
        assert!(own.eq(expected.iter()), "{order:?}");
    }
}

#[test]
fn what_was_in_flight_goes_first_under_its_ids_where_the_session_lives() {
    for present in [true, false] {
        let hub = hub();
        let mailbox = Arc::new(Mailbox::default());
        let mut uplink = hub.uplink(None, forwarding(None), &mailbox);
        for number in 0..6 {
            put(&hub, "edge-1/a", 5, false, &number.to_string());
        }
        let mut first = upward(4, 1);
        hub.link_up(&mut uplink, true);
        hub.forward(&mut uplink, &mut first, 100, NOW);
        assert_eq!(bodies(&mut first), ["0", "1", "2", "3"]);
        acknowledge(&hub, &mut uplink, &mut first, &[2]);
        let (in_flight, next_id) = first.park();
        hub.link_down(&mut uplink, in_flight, true, NOW);
        let mut second = upward(4, next_id);
        hub.link_up(&mut uplink, present);
        hub.forward(&mut uplink, &mut second, 100, NOW);
        let again = |body: &str, id| (body.to_owned(), id, present);
        let mut expected = vec![again("0", 1), again("2", 3), again("3", 4)];
        if !present {
            expected = vec![again("0", 5), again("2", 6), again("3", 7)];
        }
        let next = if present { 5 } else { 8 };
        expected.push(("4".to_owned(), next, false));
        assert_eq!(sent(&mut second), expected, "session present: {present}");
        let ids: Vec<_> = expected.iter().map(|(_, id, _)| *id).collect();
        acknowledge(&hub, &mut uplink, &mut second, &ids);
        hub.forward(&mut uplink, &mut second, 100, NOW);
        assert_eq!(bodies(&mut second), ["5"]);
    }
}

#[test]
fn a_message_at_which_the_server_closes_the_connection_holds_only_its_sender_up() {
    let hub = hub();
    let mailbox = Arc::new(Mailbox::default());
    let mut uplink = hub.uplink(None, forwarding(None), &mailbox);
    for (sender, bodies) in [
        ("edge-1/a", ["a0", "poison", "a2"]),
        ("edge-1/b", ["b0", "b1", "b2"]),
    ] {
        for body in bodies {
            put(&hub, sender, 5, false, body);
        }
    }
    let mut now = NOW;
    let mut next_id = 1;
    let mut came = Vec::new();
    let mut connections = 0;
    // The server acknowledges until it meets the one that it does not like.
    while came.len() < 4 {
        connections += 1;
        assert!(connections < 20, "{came:?}");
        let mut upward = upward(100, next_id);
        hub.link_up(&mut uplink, true);
        let mut is_open = true;
        while is_open && came.len() < 4 {
            hub.forward(&mut uplink, &mut upward, 100, now);
            let messages = sent(&mut upward);
            assert!(!messages.is_empty(), "{came:?}");
            for (body, id, _) in messages {
                if body == "poison" {
                    is_open = false;
                    break;
                }
                acknowledge(&hub, &mut uplink, &mut upward, &[id]);
                came.push(body);
            }
        }
        let in_flight;
        (in_flight, next_id) = upward.park();
        hub.link_down(&mut uplink, in_flight, true, now);
        now.ms += 100;
    }
    came.sort();
    assert_eq!(came, ["a0", "b0", "b1", "b2"]);
    assert_eq!(hub.held_senders(), ["edge-1/a"]);
    let held_ms = uplink.held_ms(now.ms);
    assert!(held_ms > now.ms && held_ms <= now.ms + 10_000, "{held_ms}");
    // The server has changed its mind.
    now.ms = held_ms;
    let mut upward = upward(100, next_id);
    hub.link_up(&mut uplink, true);
    hub.forward(&mut uplink, &mut upward, 100, now);
    let messages = sent(&mut upward);
    let bodies: Vec<_> = messages.iter().map(|(body, ..)| &**body).collect();
    assert_eq!(bodies, ["poison", "a2"]);
    let ids: Vec<_> = messages.iter().map(|(_, id, _)| *id).collect();
    acknowledge(&hub, &mut uplink, &mut upward, &ids);
    assert!(hub.held_senders().is_empty());
}

#[test]
fn new_messages_have_their_share_while_a_backlog_drains() {
    for share in [80, 50, 20] {
        let hub = hub();
        let mailbox = Arc::new(Mailbox::default());
        let mut uplink = hub.uplink(None, forwarding(Some(share)), &mailbox);
        for number in 0..2000 {
            put(&hub, "edge-1/a", 5, true, &format!("old {number}"));
        }
        let mut upward = upward(2000, 1);
        hub.link_up(&mut uplink, true);
        hub.refresh_sources(&mut uplink);
        for number in 0..2000 {
            put(&hub, "edge-1/a", 5, true, &format!("new {number}"));
        }
        put(&hub, "edge-1/a", 0, true, "urgent");
        hub.upward_waiting(&mut uplink);
        hub.forward(&mut uplink, &mut upward, 1000, NOW);
        let order = bodies(&mut upward);
        assert_eq!((order.len(), &*order[0]), (1000, "urgent"));
        let new = order.iter().filter(|body| body.starts_with("new")).count();
        let expected = usize::from(share) * 10;
        assert!(
            new.abs_diff(expected) < 20,
            "{share}: {new} of 1000 are new"
        );
        let old: Vec<_> = order
            .iter()
            .filter(|body| body.starts_with("old"))
            .collect();
        let in_order: Vec<_> = (0..old.len())
            .map(|number| format!("old {number}"))
            .collect();
        assert!(old.into_iter().eq(in_order.iter()));
    }
}

#[test]
fn a_line_for_one_sender_sees_no_other() {
    let hub = hub();
    let mailbox = Arc::new(Mailbox::default());
    let only = Identity::parse("edge-1/b").unwrap();
    let mut uplink = hub.uplink(Some(only), forwarding(None), &mailbox);
    put(&hub, "edge-1/a", 5, false, "a");
    assert!(!hub.has_upward(&mut uplink));
    put(&hub, "edge-1/b", 5, false, "b");
    assert!(hub.has_upward(&mut uplink));
    let mut upward = upward(10, 1);
    hub.link_up(&mut uplink, false);
    assert_eq!(hub.forward(&mut uplink, &mut upward, 10, NOW), 1);
    assert_eq!(bodies(&mut upward), ["b"]);
}
