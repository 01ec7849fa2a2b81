//! Statements of MQTT 5 that no other test proves, packet by packet over a real socket.
//! `normative.md` lists all statements with their tests.
#![allow(missing_docs, clippy::unwrap_used, clippy::indexing_slicing)]

mod common;
#[path = "normative/talk.rs"]
mod talk;

use std::time::{Duration, Instant};

use edgehub::mqtt::v5::{Property, ReasonCode};

use common::Hub;
use common::five::{Five, Got};
use talk::{Talk, open};

/// A client has gone without a word, and the hub has noticed.
fn connected(hub: &Hub, count: u8) {
    hub.until("the hub notices who is gone", |hub| {
        hub.metric("edgehub_connected_clients", &[]) == f64::from(count)
    });
}

/// What a logged-in client may not send, and the reason in the DISCONNECT.
const MALFORMED: &[(&str, &str, &str)] = &[
    ("reserved type 0", "00 00", "81"),
    ("CONNACK", "20 03 00 00 00", "82"),
    ("PUBLISH with DUP and QoS 0", "38 05 0001 61 00 78", "81"),
    ("QoS 3", "36 07 0001 61 0001 00 78", "81"),
    ("PUBACK with flags", "41 02 0001", "81"),
    ("PUBREC with flags", "51 02 0001", "81"),
    ("PUBREL without its flags", "60 02 0001", "81"),
    ("PUBCOMP with flags", "71 02 0001", "81"),
    (
        "SUBSCRIBE without its flags",
        "80 07 0001 00 0001 61 00",
        "81",
    ),
    (
        "UNSUBSCRIBE without its flags",
        "a0 06 0001 00 0001 61",
        "81",
    ),
    ("PINGREQ with flags", "c1 00", "81"),
    ("DISCONNECT with flags", "e1 00", "81"),
    ("AUTH with flags", "f1 00", "81"),
    ("a length longer than needed", "c0 80 00", "81"),
    (
        "a property length longer than needed",
        "30 05 0001 61 80 00",
        "81",
    ),
    ("no property length", "30 03 0001 61", "81"),
    ("topic not UTF-8", "30 04 0001 ff 00", "81"),
    ("topic with a surrogate", "30 06 0003 eda080 00", "81"),
    ("topic with NUL", "30 06 0003 610062 00", "81"),
    (
        "user property not UTF-8",
        "30 0b 0001 61 07 26 0001 ff 0001 61",
        "81",
    ),
    (
        "user property with NUL",
        "30 0b 0001 61 07 26 0001 61 0001 00",
        "81",
    ),
    (
        "content type not UTF-8",
        "30 08 0001 61 04 03 0001 ff",
        "81",
    ),
    (
        "response topic not UTF-8",
        "30 08 0001 61 04 08 0001 ff",
        "81",
    ),
    ("response topic with #", "30 08 0001 61 04 08 0001 23", "81"),
    ("topic with +", "30 04 0001 2b 00", "81"),
    ("topic with #", "30 06 0003 612f23 00", "81"),
    ("no topic and no alias", "30 03 0000 00", "82"),
    ("packet id 0", "32 06 0001 61 0000 00", "82"),
    ("topic alias 0", "30 07 0001 61 03 23 0000", "94"),
    (
        "topic alias over the maximum",
        "30 07 0001 61 03 23 000b",
        "94",
    ),
    ("an alias that is not known", "30 06 0000 03 23 0001", "82"),
    (
        "subscription identifier in PUBLISH",
        "30 06 0001 61 02 0b 01",
        "82",
    ),
    ("SUBSCRIBE of id 0", "82 07 0000 00 0001 61 00", "82"),
    ("SUBSCRIBE without filters", "82 03 0001 00", "82"),
    ("SUBSCRIBE with NUL", "82 07 0001 00 0001 00 00", "81"),
    ("SUBSCRIBE not UTF-8", "82 07 0001 00 0001 ff 00", "81"),
    (
        "SUBSCRIBE with an empty filter",
        "82 06 0001 00 0000 00",
        "81",
    ),
    ("SUBSCRIBE to a#", "82 08 0001 00 0002 6123 00", "81"),
    ("SUBSCRIBE to #/a", "82 09 0001 00 0003 232f61 00", "81"),
    ("SUBSCRIBE to a+", "82 08 0001 00 0002 612b 00", "81"),
    (
        "SUBSCRIBE with a reserved bit",
        "82 07 0001 00 0001 61 40",
        "81",
    ),
    (
        "SUBSCRIBE with the other reserved bit",
        "82 07 0001 00 0001 61 80",
        "81",
    ),
    ("SUBSCRIBE with QoS 3", "82 07 0001 00 0001 61 03", "82"),
    (
        "No Local and shared",
        "82 10 0001 00 000a 2473686172652f672f62 04",
        "82",
    ),
    (
        "$share without a name",
        "82 0f 0001 00 0009 2473686172652f2f61 00",
        "81",
    ),
    (
        "$share without a filter",
        "82 0e 0001 00 0008 2473686172652f67 00",
        "81",
    ),
    (
        "$share with + in the name",
        "82 10 0001 00 000a 2473686172652f2b2f62 00",
        "81",
    ),
    (
        "$share with # in the name",
        "82 10 0001 00 000a 2473686172652f232f62 00",
        "81",
    ),
    ("UNSUBSCRIBE without filters", "a2 03 0001 00", "82"),
    ("UNSUBSCRIBE not UTF-8", "a2 06 0001 00 0001 ff", "81"),
    ("PUBACK with a code that it has not", "40 03 0001 01", "81"),
    ("DISCONNECT with a code of servers", "e0 01 8e", "81"),
    ("AUTH where no method was agreed on", "f0 02 18 00", "82"),
    (
        "AUTH again where no method was agreed on",
        "f0 02 19 00",
        "82",
    ),
    (
        "a session that is to be kept after all",
        "e0 07 00 05 11 0000000a",
        "82",
    ),
];

#[tokio::test]
async fn malformed_packets_are_told_so_and_close() {
    let setup = open();
    let hub = setup.start();
    let mut talk = Talk::new(&hub);
    for (name, bytes, reason) in MALFORMED {
        println!("{name}");
        let lines = format!(
            "a = 5
            a > c0
            a < d0
            a >~ {bytes}
            a <~ e0 {reason}
            a |"
        );
        talk.play(&lines).await;
    }
}

/// What may not come first; there is no DISCONNECT before a CONNACK.
const NO_CONNECT: &[(&str, &str)] = &[
    ("PINGREQ", "c0 00"),
    ("AUTH", "f0 00"),
    ("DISCONNECT", "e0 00"),
    (
        "other protocol name",
        "10 0d 0004 4d515455 05 02 003c 00 0000",
    ),
    ("flags", "11 0d 0004 4d515454 05 02 003c 00 0000"),
    (
        "reserved connect flag",
        "10 0d 0004 4d515454 05 03 003c 00 0000",
    ),
    (
        "will QoS without a will",
        "10 0d 0004 4d515454 05 0a 003c 00 0000",
    ),
    (
        "will RETAIN without a will",
        "10 0d 0004 4d515454 05 22 003c 00 0000",
    ),
    (
        "will QoS 3",
        "10 14 0004 4d515454 05 1e 003c 00 0000 00 0001 77 0001 78",
    ),
    (
        "a will that is not there",
        "10 0d 0004 4d515454 05 06 003c 00 0000",
    ),
    (
        "a will without a payload",
        "10 11 0004 4d515454 05 06 003c 00 0000 00 0001 77",
    ),
    (
        "a will that is not announced",
        "10 14 0004 4d515454 05 02 003c 00 0000 00 0001 77 0001 78",
    ),
    (
        "will topic not UTF-8",
        "10 14 0004 4d515454 05 06 003c 00 0000 00 0001 ff 0001 78",
    ),
    (
        "a user name that is not there",
        "10 0d 0004 4d515454 05 82 003c 00 0000",
    ),
    (
        "a user name that is not announced",
        "10 10 0004 4d515454 05 02 003c 00 0000 0001 75",
    ),
    (
        "user name not UTF-8",
        "10 10 0004 4d515454 05 82 003c 00 0000 0001 ff",
    ),
    (
        "a password that is not there",
        "10 0d 0004 4d515454 05 42 003c 00 0000",
    ),
    (
        "a password that is not announced",
        "10 13 0004 4d515454 05 82 003c 00 0000 0001 75 0001 70",
    ),
    ("no client id", "10 0b 0004 4d515454 05 02 003c 00"),
    (
        "client id not UTF-8",
        "10 0e 0004 4d515454 05 02 003c 00 0001 ff",
    ),
    (
        "client id with NUL",
        "10 0e 0004 4d515454 05 02 003c 00 0001 00",
    ),
    (
        "a property twice",
        "10 17 0004 4d515454 05 02 003c 0a 11 00000001 11 00000001 0000",
    ),
    (
        "Receive Maximum 0",
        "10 10 0004 4d515454 05 02 003c 03 21 0000 0000",
    ),
    (
        "Maximum Packet Size 0",
        "10 12 0004 4d515454 05 02 003c 05 27 00000000 0000",
    ),
    (
        "a property of CONNACK",
        "10 11 0004 4d515454 05 02 003c 04 12 0001 61 0000",
    ),
    (
        "an unknown property",
        "10 0f 0004 4d515454 05 02 003c 02 7f 00 0000",
    ),
];

#[tokio::test]
async fn before_connect_nobody_is_let_in() {
    let setup = open();
    let hub = setup.start();
    let mut talk = Talk::new(&hub);
    for (name, bytes) in NO_CONNECT {
        println!("{name}");
        talk.play(&format!("a >~ {bytes}\na |")).await;
    }
    assert_eq!(hub.metric("edgehub_client_connect_success_total", &[]), 0.0);
}

/// The whole CONNACK: nothing is in it that was not asked for or does not concern the client.
#[tokio::test]
async fn connack_says_no_more_than_it_has_to() {
    let setup = open();
    let hub = setup.start();
    let mut talk = Talk::new(&hub);
    let ids = [
        "a",
        "0123456789abcdefghijklm",
        "nopqrstuvwxyzABCDEFGHIJ",
        "KLMNOPQRSTUVWXYZ",
    ];
    let asked = ["00", "02 19 00", "02 19 01", "04 17 00 19 01"];
    for (id, properties) in ids.into_iter().zip(asked) {
        let lines = format!(
            "a > 10 'MQTT' 05 02 003c {properties} '{id}'
            a < 20 0000 08 27 0010ffff 22 000a
            a > e0
            a |"
        );
        talk.play(&lines).await;
    }
}

#[tokio::test]
async fn who_is_refused() {
    let setup = open();
    let hub = setup.start();
    let mut talk = Talk::new(&hub);
    let long = "x".repeat(300);
    // What follows a refused CONNECT is not read.
    let lines = format!(
        "a > 10 'MQTT' 05 02 003c 00 '{long}' & 31 'refused' 00 =no
        a <~ 20 0085
        a |
        a > 10 'MQTT' 05 02 003c 06 15 'SCR' 'a' & 31 'refused' 00 =no
        a <~ 20 008c
        a |
        s = 5
        s > 82 0001 00 'refused' 00
        s < 90 0001 00 00
        s > 30 'refused' 00 =marker
        s < 30 'refused' 00 =marker"
    );
    talk.play(&lines).await;
    // A second CONNECT is a protocol error, and has no CONNACK.
    talk.play(
        "a = 5
        a > 10 'MQTT' 05 02 003c 00 'a'
        a <~ e0 82
        a |",
    )
    .await;
}

#[tokio::test]
async fn a_client_without_an_id_gets_one_of_its_own() {
    let setup = open();
    let hub = setup.start();
    let kept = [Property::SessionExpiry(60)];
    let mut ids = Vec::new();
    for _ in 0..3 {
        let (five, connack) = Five::anonymous(&hub, "", true, &kept).await;
        let Got::ConnAck { properties, .. } = connack else {
            panic!("{connack:?}");
        };
        let id = properties.iter().find_map(|one| {
            let id = one.strip_prefix("AssignedClientId(\"")?;
            id.strip_suffix("\")")
        });
        let id = id.unwrap().to_owned();
        assert!(!ids.contains(&id), "{id}");
        ids.push(id);
        five.leave(ReasonCode::Success, &[]).await;
    }
    // As if the client had chosen it.
    for id in ids {
        let (_, connack) = Five::anonymous(&hub, &id, false, &kept).await;
        let present = matches!(
            connack,
            Got::ConnAck {
                session_present: true,
                ..
            }
        );
        assert!(present, "{connack:?}");
    }
}

#[tokio::test]
async fn wills() {
    let setup = open();
    let hub = setup.start();
    let mut talk = Talk::new(&hub);
    // Its properties are those of the message, in their order; it is published once.
    talk.play(
        "s = 5
        s > 82 0001 00 'gone/#' 02
        s < 90 0001 00 02
        w > 10 'MQTT' 05 0e 003c 00 'w' 23 01 01 03 't' 08 'r' 09 0001 ff \
        26 'b' '1' 26 'a' '2' 26 'b' '3' 'gone/one' 'lost'
        w <~ 20 0000
        w .
        s < 32 'gone/one' 0001 23 01 01 03 't' 08 'r' 09 0001 ff \
        26 'b' '1' 26 'a' '2' 26 'b' '3' =lost
        s > 40 0001
        w = 5
        w .",
    )
    .await;
    connected(&hub, 1);
    talk.play(
        "t = 5
        t > 82 0001 00 'gone/#' 00
        t < 90 0001 00 00
        t > 30 'gone/marker' 00 =1
        t < 30 'gone/marker' 00 =1
        s < 30 'gone/marker' 00 =1
        w > 10 'MQTT' 05 36 003c 00 'w' 00 'gone/two' 'kept'
        w <~ 20 0000
        w > e0 04
        w |
        s < 34 'gone/two' ?two 00 =kept
        s > 50 ?two
        s < 62 ?two
        s > 70 ?two
        t < 30 'gone/two' 00 =kept
        u = 5
        u > 82 0001 00 'gone/two' 02
        u < 90 0001 00 02
        u < 35 'gone/two' 0001 00 =kept
        w > 10 'MQTT' 05 06 003c 00 'w' 00 'gone/void' 'no'
        w <~ 20 0000
        w > e0
        w |
        w = 5
        w > 30 'gone/marker' 00 =2
        t < 30 'gone/marker' 00 =2
        s < 30 'gone/marker' 00 =2",
    )
    .await;
}

#[tokio::test]
async fn one_and_a_half_keep_alives_without_a_packet() {
    let setup = open();
    let hub = setup.start();
    let mut talk = Talk::new(&hub);
    talk.play("s = 5\ns > 82 0001 00 'late' 00\ns < 90 0001 00 00")
        .await;
    let started = Instant::now();
    talk.play(
        "w > 10 'MQTT' 05 06 0001 00 'w' 00 'late' 'x'
        w <~ 20 0000
        w <~ e0 8d
        w |
        s < 30 'late' 00 =x",
    )
    .await;
    let took = started.elapsed();
    let due = Duration::from_millis(1450)..Duration::from_secs(5);
    assert!(due.contains(&took), "closed after {took:?}");
}

/// With packets of at most so few bytes there is no room for reasons in words.
#[tokio::test]
async fn reasons_in_words_only_where_they_fit() {
    let setup = open();
    let hub = setup.start();
    let mut talk = Talk::new(&hub);
    let long = "x".repeat(300);
    let lines = format!(
        "a > 10 'MQTT' 05 02 003c 05 27 00000008 '{long}'
        a < 20 0085 00
        a |
        a > 10 'MQTT' 05 02 003c 05 27 00000008 'a'
        a < 20 0000 00
        a > 32 'forbidden/x' 0001 00
        a < 40 0001 87
        a > 34 'forbidden/x' 0002 00
        a < 50 0002 87
        a > 82 0003 00 'forbidden/x' 00
        a < 90 0003 00 87
        a > a2 0004 00 'never'
        a < b0 0004 00 11
        a > f0 18 00
        a < e0 82
        a |"
    );
    talk.play(&lines).await;
    // Who wants no problem information is told none but at the end.
    talk.play(
        "b = 5
        b > 32 'forbidden/x' 0001 00 & 34 'forbidden/x' 0002 00
        b < 40 0001 87
        b < 50 0002 87
        b > 82 0003 00 'forbidden/x' 00
        b < 90 0003 00 87",
    )
    .await;
}
