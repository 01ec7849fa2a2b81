//! Statements of MQTT 3.1.1 over a real socket. Numbers are those of the standard.
#![allow(missing_docs, clippy::unwrap_used, clippy::indexing_slicing)]

mod common;

use std::collections::HashSet;

use common::scene::{receiver, routes};
use common::wire::{self, hex, numbers, rest};
use common::{Hub, Setup, closed, inputs, output, publish, receive};
use edgehub::client::{Client, Packet};
use edgehub::mqtt::{ConnectReturnCode, QoS, SubAckCode};

const CLOSED: &str = "edgehub_connections_closed_total";

/// Module a sends to b and to itself, c stands by.
fn setup() -> Setup {
    let pairs = [("a/out", "b/in"), ("a/self", "a/in")];
    Setup::new(&routes(&pairs), &["a", "b", "c"])
}

async fn raw(hub: &Hub) -> Client {
    Client::tcp(hub.tcp()).await.unwrap()
}

fn accepted(session_present: bool) -> Packet {
    let code = ConnectReturnCode::Accepted;
    Packet::ConnAck {
        session_present,
        code,
    }
}

/// What a logged-in client may not send.
const MALFORMED: [(&str, &str); 47] = [
    ("reserved type 0", "00 00"),
    ("reserved type 15", "f0 00"),
    ("CONNACK", "20 02 00 00"),
    ("SUBACK", "90 03 0001 00"),
    ("UNSUBACK", "b0 02 0001"),
    ("PINGRESP", "d0 00"),
    ("PINGREQ with flags", "c1 00"),
    ("PINGREQ with a body", "c0 01 00"),
    ("DISCONNECT with flags", "e2 00"),
    ("DISCONNECT with a body", "e0 01 00"),
    ("PUBACK with flags", "42 02 0001"),
    ("PUBACK too short", "40 01 00"),
    ("PUBACK too long", "40 03 000100"),
    ("PUBACK of id 0", "40 02 0000"),
    ("PUBREL without its flags", "60 02 0001"),
    ("remaining length of five bytes", "c0 8080808000"),
    ("remaining length without end", "30 ffffffff"),
    ("QoS 3", "36 06 0001 61 0001 78"),
    ("DUP at QoS 0", "38 04 0001 61 78"),
    ("empty topic", "30 03 0000 78"),
    ("topic with +", "30 05 0003 612f2b"),
    ("topic with #", "30 05 0003 612f23"),
    ("topic with NUL", "30 05 0003 612f00"),
    ("topic that is not UTF-8", "30 04 0002 c328"),
    ("topic with a surrogate", "30 05 0003 eda080"),
    ("topic longer than the packet", "30 04 0010 6161"),
    ("PUBLISH without a topic", "30 00"),
    ("PUBLISH of one byte", "30 01 00"),
    ("PUBLISH of id 0", "32 05 0001 61 0000"),
    ("PUBLISH without an id", "32 03 0001 61"),
    ("PUBLISH with half an id", "32 04 0001 61 00"),
    ("SUBSCRIBE without flags", "80 06 0001 0001 61 00"),
    ("SUBSCRIBE without filters", "82 02 0001"),
    ("SUBSCRIBE of id 0", "82 06 0000 0001 61 00"),
    ("SUBSCRIBE with an empty filter", "82 05 0001 0000 00"),
    ("SUBSCRIBE with QoS 3", "82 06 0001 0001 61 03"),
    ("SUBSCRIBE with reserved bits", "82 06 0001 0001 61 04"),
    ("SUBSCRIBE without a QoS", "82 05 0001 0001 61"),
    ("SUBSCRIBE to a#", "82 07 0001 0002 6123 00"),
    ("SUBSCRIBE to #/a", "82 08 0001 0003 232f61 00"),
    ("SUBSCRIBE to a+", "82 07 0001 0002 612b 00"),
    ("SUBSCRIBE with NUL", "82 06 0001 0001 00 00"),
    ("SUBSCRIBE that is not UTF-8", "82 06 0001 0001 ff 00"),
    ("UNSUBSCRIBE without flags", "a0 05 0001 0001 61"),
    ("UNSUBSCRIBE without filters", "a2 02 0001"),
    ("UNSUBSCRIBE of id 0", "a2 05 0000 0001 61"),
    ("UNSUBSCRIBE longer than the packet", "a2 05 0001 0002 61"),
];

#[tokio::test]
async fn malformed_packets_close_their_connection_and_no_other() {
    let setup = setup();
    let hub = setup.start();
    let mut bystander = receiver(&hub, "b").await;
    let hello = wire::connect(&hub.hello("edge-1/c"));
    for (number, (name, text)) in MALFORMED.iter().enumerate() {
        let mut client = raw(&hub).await;
        let mut bytes = hello.clone();
        bytes.extend(wire::PING);
        bytes.extend(hex(text));
        // What follows is not read any more.
        bytes.extend(wire::publish(&output("c", "late", ""), 1, b""));
        client.send_bytes(&bytes).await.unwrap();
        let answers = rest(&mut client).await;
        assert_eq!(answers, [accepted(number > 0), Packet::PingResp], "{name}");
        wire::ping(&mut bystander).await;
    }
    let count = MALFORMED.len() as f64;
    assert_eq!(hub.metric(CLOSED, &["malformed"]), count);
    let dropped = hub.metric("edgehub_messages_dropped_total", &[]);
    assert_eq!(dropped, 0.0);
}

#[tokio::test]
async fn other_violations_close_too() {
    let setup = setup();
    let hub = setup.start();
    let hello = wire::connect(&hub.hello("edge-1/c"));
    for (name, bytes, reason) in [
        ("second CONNECT", hello.clone(), "protocol"),
        (
            "MQTT 5 CONNECT",
            hex("10 0d 0004 4d515454 05 02 003c 00 0000"),
            "protocol",
        ),
    ] {
        let before = hub.metric(CLOSED, &[reason]);
        let mut client = hub.connect("edge-1/c").await;
        client.send_bytes(&bytes).await.unwrap();
        assert_eq!(rest(&mut client).await, [], "{name}");
        hub.until("the close is counted", |hub| {
            hub.metric(CLOSED, &[reason]) == before + 1.0
        });
    }
}

#[tokio::test]
async fn before_connect_nothing_is_answered() {
    let setup = setup();
    let hub = setup.start();
    for (name, text) in [
        ("PINGREQ", "c0 00"),
        ("PUBLISH", "30 04 0001 61 78"),
        ("SUBSCRIBE", "82 06 0001 0001 61 00"),
        ("DISCONNECT", "e0 00"),
        ("CONNACK", "20 02 00 00"),
        ("HTTP", "474554202f20485454502f312e310d0a0d0a"),
        ("TLS", "160301 00c8 010000c4 0303"),
        ("wrong protocol name", "10 0c 0004 4d515455 04 02 003c 0000"),
        ("lower case", "10 0c 0004 6d717474 04 02 003c 0000"),
        ("CONNECT with flags", "11 0c 0004 4d515454 04 02 003c 0000"),
        (
            "reserved connect flag",
            "10 0c 0004 4d515454 04 03 003c 0000",
        ),
        (
            "will QoS without a will",
            "10 0c 0004 4d515454 04 0a 003c 0000",
        ),
        (
            "will retain without a will",
            "10 0c 0004 4d515454 04 22 003c 0000",
        ),
        (
            "will QoS 3",
            "10 12 0004 4d515454 04 1e 003c 0000 0001 77 0001 78",
        ),
        (
            "will topic with #",
            "10 12 0004 4d515454 04 06 003c 0000 0001 23 0001 78",
        ),
        (
            "password without a user",
            "10 0f 0004 4d515454 04 42 003c 0000 0001 70",
        ),
        ("no client id", "10 0a 0004 4d515454 04 02 003c"),
        (
            "client id with NUL",
            "10 0d 0004 4d515454 04 02 003c 0001 00",
        ),
        (
            "client id that is not UTF-8",
            "10 0d 0004 4d515454 04 02 003c 0001 ff",
        ),
        (
            "bytes after the last field",
            "10 0d 0004 4d515454 04 02 003c 0000 00",
        ),
        ("oversized CONNECT", "10 ffffff7f 0004 4d515454 04 02 003c"),
    ] {
        let mut client = raw(&hub).await;
        client.send_bytes(&hex(text)).await.unwrap();
        assert_eq!(rest(&mut client).await, [], "{name}");
    }
    assert_eq!(hub.metric("edgehub_client_connect_success_total", &[]), 0.0);
}

/// 3.1.2.2: the server must answer with return code 1 and close.
#[tokio::test]
async fn other_protocol_levels_are_told_so() {
    let setup = setup();
    let hub = setup.start();
    for (name, text) in [
        ("level 6", "10 0d 0004 4d515454 06 02 003c 00 0000"),
        ("MQTT 3.1", "10 0e 0006 4d5149736470 03 02 003c 0000"),
        ("level 0", "10 0c 0004 4d515454 00 02 003c 0000"),
        ("a bridge's level", "10 0c 0004 4d515454 84 02 003c 0000"),
    ] {
        let mut client = raw(&hub).await;
        client.send_bytes(&hex(text)).await.unwrap();
        let refused = Packet::ConnAck {
            session_present: false,
            code: ConnectReturnCode::UnacceptableProtocolVersion,
        };
        assert_eq!(rest(&mut client).await, [refused], "{name}");
    }
}

#[tokio::test]
async fn packets_may_be_cut_anywhere() {
    let setup = setup();
    let hub = setup.start();
    let hello = wire::connect(&hub.hello("edge-1/a"));
    let mut bytes = hello.clone();
    bytes.extend(wire::subscribe(1, &[(&inputs("a"), QoS::AtLeastOnce)]));
    bytes.extend(wire::publish(&output("a", "nowhere", ""), 2, b"body"));
    bytes.extend(wire::PING);
    for cut in 1..bytes.len() {
        let mut client = raw(&hub).await;
        client.send_bytes(&bytes[..cut]).await.unwrap();
        let mut answers = Vec::new();
        if cut >= hello.len() {
            // The first half has been read once it is answered.
            answers.push(receive(&mut client).await.unwrap());
        }
        client.send_bytes(&bytes[cut..]).await.unwrap();
        while answers.len() < 4 {
            answers.push(receive(&mut client).await.unwrap());
        }
        assert_eq!(answers[0], accepted(cut > 1), "cut at {cut}");
        let kinds = [
            Packet::SubAck(wire::id(1), vec![SubAckCode::Granted(QoS::AtLeastOnce)]),
            Packet::PubAck(wire::id(2)),
            Packet::PingResp,
        ];
        assert!(
            kinds.iter().all(|kind| answers.contains(kind)),
            "{answers:?}"
        );
    }
    let mut client = raw(&hub).await;
    for byte in &bytes {
        client.send_bytes(std::slice::from_ref(byte)).await.unwrap();
    }
    while receive(&mut client).await.unwrap() != Packet::PingResp {}
}

#[tokio::test]
async fn many_packets_in_one_write_are_all_handled() {
    let setup = setup();
    let hub = setup.start();
    let mut b = receiver(&hub, "b").await;
    let mut a = hub.connect("edge-1/a").await;
    let mut bytes = Vec::new();
    let mut expected = Vec::new();
    for number in 0..1500_u16 {
        let body = number.to_string();
        bytes.extend(wire::publish(
            &output("a", "out", ""),
            number + 1,
            body.as_bytes(),
        ));
        expected.push(Packet::PubAck(wire::id(number + 1)));
        if number % 100 == 0 {
            bytes.extend(wire::PING);
            expected.push(Packet::PingResp);
        }
    }
    a.send_bytes(&bytes).await.unwrap();
    let (bodies, ()) = tokio::join!(wire::bodies(&mut b, 1500), async {
        for packet in &expected {
            assert_eq!(&receive(&mut a).await.unwrap(), packet);
        }
    });
    assert_eq!(bodies, numbers(0..1500));
}

/// 3.1.4: clients may send packets right after CONNECT, without waiting for CONNACK.
#[tokio::test]
async fn connect_subscribe_and_publish_go_in_one_write() {
    let setup = setup();
    let hub = setup.start();
    let mut bytes = wire::connect(&hub.hello("edge-1/a"));
    bytes.extend(wire::subscribe(1, &[(&inputs("a"), QoS::AtLeastOnce)]));
    bytes.extend(wire::publish(&output("a", "self", ""), 2, b"mine"));
    // The second time, the first connection has to go before the CONNECT is answered.
    let mut older: Option<Client> = None;
    for present in [false, true] {
        let mut client = raw(&hub).await;
        client.send_bytes(&bytes).await.unwrap();
        assert_eq!(receive(&mut client).await.unwrap(), accepted(present));
        let mut answers = HashSet::new();
        while answers.len() < 3 {
            match receive(&mut client).await.unwrap() {
                Packet::SubAck(id, codes) => {
                    assert_eq!(codes, [SubAckCode::Granted(QoS::AtLeastOnce)]);
                    assert!(answers.insert(("suback", id.get())));
                }
                Packet::PubAck(id) => assert!(answers.insert(("puback", id.get()))),
                Packet::Publish {
                    payload, packet_id, ..
                } => {
                    assert_eq!(&payload[..], b"mine");
                    client.acknowledge(packet_id.unwrap()).await.unwrap();
                    answers.insert(("publish", 0));
                }
                other => panic!("{other:?}"),
            }
        }
        assert!(answers.contains(&("suback", 1)) && answers.contains(&("puback", 2)));
        wire::ping(&mut client).await;
        if let Some(mut older) = older.replace(client) {
            closed(&mut older).await;
        }
    }
}

/// 3.8.4: one return code for each filter, in their order.
#[tokio::test]
async fn suback_has_a_code_for_each_filter_in_order() {
    let setup = setup();
    let hub = setup.start();
    let mut b = hub.connect("edge-1/b").await;
    let own = inputs("b");
    let foreign = inputs("a");
    let filters = [
        (&*own, QoS::AtLeastOnce),
        (&*foreign, QoS::AtLeastOnce),
        ("$iothub/methods/POST/#", QoS::AtMostOnce),
        ("#", QoS::AtMostOnce),
        ("devices/edge-1/modules/b/inputs/in/#", QoS::ExactlyOnce),
        ("$SYS/#", QoS::AtMostOnce),
        ("+/edge-1/modules/b/inputs/#", QoS::AtLeastOnce),
        (
            "$share/group/devices/edge-1/modules/b/inputs/#",
            QoS::AtLeastOnce,
        ),
        (&*own, QoS::AtMostOnce),
    ];
    b.send_bytes(&wire::subscribe(77, &filters)).await.unwrap();
    let (one, zero) = (
        SubAckCode::Granted(QoS::AtLeastOnce),
        SubAckCode::Granted(QoS::AtMostOnce),
    );
    let no = SubAckCode::Failure;
    let codes = vec![one, no, zero, no, one, no, no, no, zero];
    assert_eq!(
        receive(&mut b).await.unwrap(),
        Packet::SubAck(wire::id(77), codes)
    );
    let refused = hub.metric("edgehub_subscriptions_refused_total", &["edge-1/b"]);
    assert_eq!(refused, 5.0);
}

/// 3.10.4: UNSUBACK comes whether or not a filter was known, once for the packet.
#[tokio::test]
async fn unsubscribe_is_answered_once() {
    let setup = setup();
    let hub = setup.start();
    let mut b = receiver(&hub, "b").await;
    let own = inputs("b");
    for (id, filters) in [
        (5, vec!["never/subscribed"]),
        (6, vec!["$iothub/#", "a/+/b"]),
        (7, vec![&*own, "never/subscribed"]),
    ] {
        let mut bytes = wire::unsubscribe(id, &filters);
        bytes.extend(wire::PING);
        b.send_bytes(&bytes).await.unwrap();
        let mut answers = vec![
            receive(&mut b).await.unwrap(),
            receive(&mut b).await.unwrap(),
        ];
        // The answer waits for the disk, the other one does not.
        answers.sort_by_key(|packet| *packet == Packet::PingResp);
        assert_eq!(answers, [Packet::UnsubAck(wire::id(id)), Packet::PingResp]);
    }
    let mut a = hub.connect("edge-1/a").await;
    publish(&mut a, &output("a", "out", ""), b"nobody listens").await;
    wire::ping(&mut b).await;
    let status = hub.status();
    assert_eq!(
        status["queues"]
            .as_array()
            .unwrap()
            .iter()
            .find(|row| row["endpoint"] == "b/in")
            .unwrap()["messages"],
        1
    );
}
