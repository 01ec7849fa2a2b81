//! What a server of MQTT 5 gets, and what becomes of what it refuses.

use super::*;
use crate::hub::suspicion::hold_ms;
use crate::message::SystemProperty;
use crate::mqtt::v5::{
    self, Ack, Place as At, Properties as List, Property, ReasonCode, encode_properties,
};
use crate::topic::template::Template;

fn list(place: At, properties: &[Property<'static>]) -> List<'static> {
    let mut out = BytesMut::new();
    encode_properties(&mut out, place, properties.iter().copied()).unwrap();
    List::parse(out.to_vec().leak(), place).unwrap()
}

/// A conversation in which the server let us in on these terms.
fn upward(window: u16, terms: &[Property<'static>]) -> Upward<Token> {
    let timing = UpwardTiming {
        accept_ms: 5000,
        dead_peer_ms: 10_000,
        ack_stall_ms: 60_000,
        window,
    };
    let connect = v5::Connect {
        clean_start: false,
        keep_alive_seconds: 30,
        properties: List::EMPTY,
        client_id: "edge-1",
        will: None,
        username: None,
        password: None,
    };
    let mut upward = Upward::new_v5(timing, &connect, NOW.ms).unwrap();
    upward.output().tail().clear();
    let accepted = v5::FromServer::ConnAck(v5::ConnAck {
        session_present: true,
        reason: ReasonCode::Success,
        properties: list(At::ConnAck, terms),
    });
    upward.handle_packet_v5(NOW.ms, accepted).unwrap();
    upward
}

/// A publication: topic, body, packet id, properties.
type Sent = (String, String, u16, Vec<String>);

fn sent(upward: &mut Upward<Token>) -> Vec<Sent> {
    let bytes = upward.output().tail().split();
    let mut rest = &bytes[..];
    let mut all = Vec::new();
    while let Some((packet, used)) = v5::decode_from_client(rest, 1 << 20).unwrap() {
        let v5::FromClient::Publish(publish) = packet else {
            panic!("{packet:?}");
        };
        all.push((
            publish.topic.to_owned(),
            String::from_utf8(publish.payload.to_vec()).unwrap(),
            publish.packet_id.map_or(0, PacketId::get),
            publish
                .properties
                .iter()
                .map(|one| format!("{one:?}"))
                .collect(),
        ));
        rest = &rest[used..];
    }
    all
}

fn bodies(upward: &mut Upward<Token>) -> Vec<(String, u16)> {
    let sent = sent(upward).into_iter();
    sent.map(|(_, body, id, _)| (body, id)).collect()
}

/// The server answers a publication.
fn answer(
    (hub, uplink, upward): (&Hub, &mut Uplink, &mut Upward<Token>),
    (id, reason): (u16, ReasonCode),
    now: Now,
) {
    let packet = v5::FromServer::PubAck(Ack {
        packet_id: PacketId::new(id).unwrap(),
        reason,
        properties: List::EMPTY,
    });
    match upward.handle_packet_v5(now.ms, packet).unwrap() {
        Above::Delivered(token) => hub.forwarded(uplink, token, now),
        Above::Refused(token, why) => hub.refused_above(uplink, token, &why, now),
        other => panic!("{other:?}"),
    }
}

fn later(ms: u64) -> Now {
    Now {
        ms: NOW.ms + ms,
        ..NOW
    }
}

fn dropped(hub: &Hub, reason: &str) -> String {
    let text = hub.metrics().render();
    let is_it = |line: &&str| line.contains(&format!("reason=\"{reason}\""));
    let line = text.lines().find(is_it).unwrap_or_default();
    line.rsplit(' ').next().unwrap().to_owned()
}

fn waiting(hub: &Hub) -> usize {
    let ways = hub.ways.all();
    let queues = ways.iter().flat_map(|way| way.queues());
    queues.map(|(queue, _)| queue.messages()).sum()
}

/// A message with properties, that lives for a while.
fn put_with(hub: &Hub, bag: &Properties, body: &[u8], ttl_ms: Option<u64>) {
    let sender = Identity::parse("edge-1/a").unwrap();
    let (way, _) = hub.ways.of(&sender, &hub.store);
    let mut encoded = Vec::new();
    bag::encode(bag, &sender, &mut encoded);
    let message = Arc::new(Message {
        origin: Arc::new(Origin::new(sender, Some("out"))),
        bag: encoded.into(),
        payload: Bytes::copy_from_slice(body),
        received_ms: NOW.ms,
    });
    let copies = [Copy {
        queue: Arc::clone(way.queue(false)),
        priority: Priority::DEFAULT,
        ttl_ms,
    }];
    let append = Append {
        message: &message,
        copies: &copies,
        waiter: &Arc::new(Mailbox::default()),
        is_patient: true,
        is_last: false,
        now_ms: NOW.ms,
    };
    hub.store
        .append(&append, &mut Vec::new(), &mut Vec::new())
        .unwrap();
}

fn by_template(template: &str) -> Arc<Forwarding> {
    Arc::new(Forwarding {
        dialect: Dialect::Topic(Template::parse(template).unwrap()),
        ..(*forwarding(None)).clone()
    })
}

#[test]
fn properties_go_beside_the_topic_with_what_is_left_of_the_time() {
    let mut bag = Properties::default();
    bag.set("temp", Some("21.5 °C"));
    bag.set("none", None);
    bag.set("lines", Some("1\n2"));
    for (property, value) in [
        (SystemProperty::ContentType, "text/plain"),
        (SystemProperty::ContentEncoding, "UTF-8"),
        (SystemProperty::CorrelationId, "c/1"),
        (SystemProperty::MessageId, "m1"),
    ] {
        bag.set_system(property, Some(value));
    }
    let common = [
        "ContentType(\"text/plain\")",
        "CorrelationData([99, 47, 49])",
        "User(\"temp\", \"21.5 °C\")",
        "User(\"none\", \"\")",
        "User(\"lines\", \"1%0A2\")",
        "User(\"$.mid\", \"m1\")",
        "User(\"$.ce\", \"UTF-8\")",
        "User(\"$.cdid\", \"edge-1\")",
        "User(\"$.cmid\", \"a\")",
    ];
    for (template, topic) in [
        ("up/{module}/", "up/a/"),
        ("up/{property:temp}", "up/21.5 %C2%B0C"),
    ] {
        let hub = hub();
        let mailbox = Arc::new(Mailbox::default());
        let mut uplink = hub.uplink(None, by_template(template), &mailbox);
        put_with(&hub, &bag, "é".as_bytes(), Some(10_000));
        put_with(&hub, &bag, b"\x41", None);
        let mut upward = upward(10, &[]);
        hub.link_up(&mut uplink, true);
        hub.forward(&mut uplink, &mut upward, 10, later(2500));
        let [first, second] = &sent(&mut upward)[..] else {
            panic!();
        };
        assert_eq!((&*first.0, &*second.0), (topic, topic));
        // Seven and a half seconds are left, as full ones, to the clock's full second at the most.
        assert_eq!(first.3[0], "PayloadFormat(true)");
        let seconds = ["MessageExpiry(8)", "MessageExpiry(9)"];
        assert!(seconds.contains(&&*first.3[1]), "{first:?}");
        assert_eq!(first.3[2..], common);
        assert_eq!(second.3[1..], common);
    }
}

#[test]
fn to_a_hub_the_bag_stays_in_the_topic_and_a_payload_that_is_no_text_is_not_called_one() {
    let mut bag = Properties::default();
    bag.set("n", Some("1"));
    bag.set_system(SystemProperty::ContentEncoding, Some("utf-8"));
    let to_hub = "devices/edge-1/modules/a/messages/events/n=1&%24.ce=utf-8";
    for (forwarding, topic, properties) in [
        (forwarding(None), to_hub, 0),
        // Format, `n`, `$.ce`, `$.cdid`, `$.cmid`.
        (by_template("a"), "a", 5),
    ] {
        let hub = hub();
        let mailbox = Arc::new(Mailbox::default());
        let mut uplink = hub.uplink(None, forwarding, &mailbox);
        put_with(&hub, &bag, b"x", None);
        let mut upward = upward(10, &[]);
        hub.link_up(&mut uplink, true);
        hub.forward(&mut uplink, &mut upward, 10, NOW);
        let all = sent(&mut upward);
        assert_eq!((&*all[0].0, all[0].3.len()), (topic, properties), "{all:?}");
    }
    let message = Message {
        origin: Arc::new(Origin::new(Identity::parse("d/m").unwrap(), None)),
        bag: Bytes::from_static(b"%24.ce=utf-8"),
        payload: Bytes::from_static(&[0xff]),
        received_ms: 0,
    };
    let mut out = BytesMut::new();
    let list = beside::upwards(&message, false, None, &mut out);
    assert!(list.iter().eq([Property::User("$.ce", "utf-8")]));
}

#[test]
fn what_the_server_will_never_take_is_given_up_and_counted() {
    for code in [
        ReasonCode::TopicNameInvalid,
        ReasonCode::PayloadFormatInvalid,
    ] {
        let hub = hub();
        let mailbox = Arc::new(Mailbox::default());
        let mut uplink = hub.uplink(None, forwarding(None), &mailbox);
        for number in 0..3 {
            put(&hub, "edge-1/a", 5, false, &number.to_string());
        }
        let mut upward = upward(10, &[]);
        hub.link_up(&mut uplink, true);
        hub.forward(&mut uplink, &mut upward, 10, NOW);
        assert_eq!(sent(&mut upward).len(), 3);
        answer((&hub, &mut uplink, &mut upward), (2, code), NOW);
        for id in [1, 3] {
            let sides = (&hub, &mut uplink, &mut upward);
            answer(sides, (id, ReasonCode::Success), NOW);
        }
        assert_eq!(waiting(&hub), 0);
        assert_eq!(dropped(&hub, "refused_by_cloud"), "1");
        assert_eq!(uplink.held_ms(NOW.ms), u64::MAX);
    }
}

#[test]
fn what_is_refused_for_now_goes_again_in_order_beginning_with_one() {
    let hub = hub();
    let mailbox = Arc::new(Mailbox::default());
    let mut uplink = hub.uplink(None, forwarding(None), &mailbox);
    for number in 0..6 {
        put(&hub, "edge-1/a", 5, false, &number.to_string());
    }
    let mut upward = upward(4, &[]);
    hub.link_up(&mut uplink, true);
    hub.forward(&mut uplink, &mut upward, 4, NOW);
    assert_eq!(bodies(&mut upward).len(), 4);
    let quota = ReasonCode::QuotaExceeded;
    let kept = ReasonCode::Success;
    // Of those in flight the server has room for one that comes behind the first.
    for (id, code) in [(1, quota), (2, kept), (3, quota), (4, quota)] {
        answer((&hub, &mut uplink, &mut upward), (id, code), NOW);
    }
    put(&hub, "edge-1/b", 5, false, "other");
    hub.refresh_sources(&mut uplink);
    hub.forward(&mut uplink, &mut upward, 4, NOW);
    assert_eq!(bodies(&mut upward), [("other".to_owned(), 5)]);
    answer((&hub, &mut uplink, &mut upward), (5, kept), NOW);
    assert_eq!(hub.held_senders(), ["edge-1/a"]);
    // Refused again: it waits for twice as long.
    let mut wait_ms = 1000;
    let mut now = NOW;
    for id in 6..9 {
        assert_eq!(uplink.held_ms(now.ms), now.ms + wait_ms);
        now.ms += wait_ms;
        assert!(hub.forward(&mut uplink, &mut upward, 4, now) == 1);
        assert_eq!(bodies(&mut upward), [("0".to_owned(), id)]);
        // Nothing follows while the answer is due.
        assert!(hub.forward(&mut uplink, &mut upward, 4, later(60_000)) == 0);
        answer((&hub, &mut uplink, &mut upward), (id, quota), now);
        wait_ms *= 2;
    }
    now.ms += wait_ms;
    hub.forward(&mut uplink, &mut upward, 4, now);
    assert_eq!(bodies(&mut upward), [("0".to_owned(), 9)]);
    answer((&hub, &mut uplink, &mut upward), (9, kept), now);
    assert!(hub.held_senders().is_empty());
    hub.forward(&mut uplink, &mut upward, 4, now);
    let rest = ["2", "3", "4", "5"].into_iter().zip(10..);
    let rest: Vec<_> = rest.map(|(body, id)| (body.to_owned(), id)).collect();
    assert_eq!(bodies(&mut upward), rest);
    for id in 10..14 {
        answer((&hub, &mut uplink, &mut upward), (id, kept), now);
    }
    assert_eq!(waiting(&hub), 0);
    assert_eq!(dropped(&hub, "refused_by_cloud"), "");
}

#[test]
fn a_probe_whose_connection_ends_is_one_again() {
    let hub = hub();
    let mailbox = Arc::new(Mailbox::default());
    let mut uplink = hub.uplink(None, forwarding(None), &mailbox);
    for number in 0..3 {
        put(&hub, "edge-1/a", 5, false, &number.to_string());
    }
    let mut first = upward(10, &[]);
    hub.link_up(&mut uplink, true);
    hub.forward(&mut uplink, &mut first, 10, NOW);
    assert_eq!(bodies(&mut first).len(), 3);
    let refused = (1, ReasonCode::NotAuthorized);
    answer((&hub, &mut uplink, &mut first), refused, NOW);
    // As long as where a server closes the connection instead.
    assert_eq!(uplink.held_ms(NOW.ms), NOW.ms + hold_ms(1));
    // Those behind it were in flight, too; they wait as well, though the session goes on.
    let (in_flight, _) = first.park();
    hub.link_down(&mut uplink, in_flight, true, NOW);
    let mut second = upward(10, &[]);
    hub.link_up(&mut uplink, true);
    assert_eq!(hub.forward(&mut uplink, &mut second, 10, NOW), 0);
    let now = later(hold_ms(1));
    assert_eq!(hub.forward(&mut uplink, &mut second, 10, now), 1);
    assert_eq!(bodies(&mut second), [("0".to_owned(), 1)]);
    let (in_flight, _) = second.park();
    hub.link_down(&mut uplink, in_flight, false, now);
    let mut third = upward(10, &[]);
    hub.link_up(&mut uplink, true);
    hub.forward(&mut uplink, &mut third, 10, now);
    assert_eq!(bodies(&mut third), [("0".to_owned(), 1)]);
    let kept = (1, ReasonCode::Success);
    answer((&hub, &mut uplink, &mut third), kept, now);
    hub.forward(&mut uplink, &mut third, 10, now);
    assert_eq!(bodies(&mut third).len(), 2);
}

#[test]
fn a_message_that_is_larger_than_the_servers_packets_holds_nobody_up() {
    let hub = hub();
    let mailbox = Arc::new(Mailbox::default());
    let mut uplink = hub.uplink(None, forwarding(None), &mailbox);
    put(&hub, "edge-1/a", 5, false, "small");
    put(&hub, "edge-1/a", 5, false, &"x".repeat(200));
    put(&hub, "edge-1/a", 5, false, "behind");
    let limit = Property::MaximumPacketSize(200.try_into().unwrap());
    let mut upward = upward(10, &[limit]);
    hub.link_up(&mut uplink, true);
    hub.forward(&mut uplink, &mut upward, 10, NOW);
    let bodies: Vec<_> = bodies(&mut upward)
        .into_iter()
        .map(|(body, _)| body)
        .collect();
    assert_eq!(bodies, ["small", "behind"]);
    assert_eq!(dropped(&hub, "too_large_for_cloud"), "1");
    assert_eq!(waiting(&hub), 2);
}
