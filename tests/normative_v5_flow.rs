//! Statements of MQTT 5 about messages and subscriptions that no other test proves, packet by
//! packet over a real socket. `normative.md` lists all statements with their tests.
#![allow(missing_docs, clippy::unwrap_used, clippy::indexing_slicing)]

mod common;
#[path = "normative/talk.rs"]
mod talk;

use std::time::Instant;

use edgehub::mqtt::QoS;
use edgehub::mqtt::v5::Property;

use common::five::{Five, Got};
use common::{End, Hub};
use talk::{Talk, open};

/// CONNECT of a client `k` whose session is kept for as long as the hub runs.
const KEPT: &str = "k > 10 'MQTT' 05 00 003c 05 11 ffffffff 'k'";

/// A client has gone without a word, and the hub has noticed.
fn connected(hub: &Hub, count: u8) {
    hub.until("the hub notices who is gone", |hub| {
        hub.metric("edgehub_connected_clients", &[]) == f64::from(count)
    });
}

/// Lets so many milliseconds pass: what they are waited for cannot be seen from outside.
fn pass(hub: &Hub, ms: u128) {
    let began = Instant::now();
    hub.until("the time passes", |_| began.elapsed().as_millis() > ms);
}

#[tokio::test]
async fn text_is_taken_as_it_is() {
    let setup = open();
    let hub = setup.start();
    let mut talk = Talk::new(&hub);
    talk.play(
        "s = 5
        s > 82 0001 00 '\u{feff}bom' 00 'caf\u{e9}' 00
        s < 90 0001 00 00 00
        p = 5
        p > 30 'bom' 00 =no
        p > 30 'cafe\u{301}' 00 =no
        p > 30 'CAF\u{e9}' 00 =no
        p > 30 '\u{feff}bom' 07 03 '\u{feff}x' =yes
        s < 30 '\u{feff}bom' 07 03 '\u{feff}x' =yes
        p > 30 'caf\u{e9}' 00 =yes
        s < 30 'caf\u{e9}' 00 =yes",
    )
    .await;
}

#[tokio::test]
async fn properties_go_to_the_receiver_as_they_came() {
    let setup = open();
    let hub = setup.start();
    let mut talk = Talk::new(&hub);
    let all = "35 01 01 03 'text/plain' 08 'answer/to' 09 0002 00ff \
        26 'b' '1' 26 'a' '2' 26 'b' '3'";
    let lines = format!(
        "s = 5
        s > 82 0001 00 'prop' 00
        s < 90 0001 00 00
        t = 5
        t > 82 0001 00 'prop' 01
        t < 90 0001 00 01
        p = 5
        p > 31 'prop' {all} =x
        s < 30 'prop' {all} =x
        t < 30 'prop' {all} =x
        u = 5
        u > 82 0001 00 'prop' 00
        u < 90 0001 00 00
        u < 31 'prop' {all} =x"
    );
    talk.play(&lines).await;
}

#[tokio::test]
async fn retained_messages() {
    let setup = open();
    let hub = setup.start();
    let mut talk = Talk::new(&hub);
    // DUP and RETAIN go no further, but RETAIN to who wants it as published.
    talk.play(
        "s = 5
        s > 82 0001 00 'r/#' 01
        s < 90 0001 00 01
        t = 5
        t > 82 0001 00 'r/#' 08
        t < 90 0001 00 00
        p = 5
        p > 3b 'r/one' 0001 00 =one
        p < 40 0001
        s < 32 'r/one' 0001 00 =one
        s > 40 0001
        t < 31 'r/one' 00 =one
        p > 30 'r/one' 00 =live
        s < 30 'r/one' 00 =live
        t < 30 'r/one' 00 =live
        p > 30 'r/two' 00 =live
        s < 30 'r/two' 00 =live
        t < 30 'r/two' 00 =live",
    )
    .await;
    // The message of each topic that was retained last.
    talk.play(
        "a = 5
        a > 82 0001 00 'r/#' 02
        a < 90 0001 00 02
        a < 33 'r/one' 0001 00 =one
        a > 40 0001
        p > 31 'r/one' 00 =zero
        a < 30 'r/one' 00 =zero
        b = 5
        b > 82 0001 00 'r/#' 02
        b < 90 0001 00 02
        b < 31 'r/one' 00 =zero
        p > 31 'r/one' 00
        a < 30 'r/one' 00
        b < 30 'r/one' 00
        c = 5
        c > 82 0001 00 'r/#' 02
        c < 90 0001 00 02
        p > 30 'r/marker' 00
        c < 30 'r/marker' 00",
    )
    .await;
}

#[tokio::test]
async fn aliases_belong_to_a_connection() {
    let setup = open();
    let hub = setup.start();
    let mut talk = Talk::new(&hub);
    // Those of the client are its own; who takes none gets none.
    talk.play(
        "s = 5
        s > 82 0001 00 'alias/#' 00
        s < 90 0001 00 00
        p = 5",
    )
    .await;
    for alias in 1..=10 {
        let lines = format!(
            "p > 30 'alias/{alias}' 03 23 {alias:04x} =named
            s < 30 'alias/{alias}' 00 =named"
        );
        talk.play(&lines).await;
    }
    for alias in 1..=10 {
        let lines = format!(
            "p > 30 '' 03 23 {alias:04x} =short
            s < 30 'alias/{alias}' 00 =short"
        );
        talk.play(&lines).await;
    }
    talk.play(
        "p .
        p = 5
        p > 30 '' 03 23 0001 =short
        p <~ e0 82
        p |",
    )
    .await;
    // Those of the hub are no more than the client takes.
    for _ in 0..2 {
        talk.play(
            "t > 10 'MQTT' 05 02 003c 03 22 0002 't'
            t <~ 20 0000
            t > 82 0001 00 'topics/#' 00
            t < 90 0001 00 00
            p = 5
            p > 30 'topics/1' 00 & 30 'topics/1' 00 & 30 'topics/2' 00 & 30 'topics/3' 00
            t < 30 'topics/1' 03 23 0001
            t < 30 '' 03 23 0001
            t < 30 'topics/2' 03 23 0002
            t < 30 'topics/3' 03 23 0001
            t .
            p .",
        )
        .await;
    }
}

#[tokio::test]
async fn what_the_client_takes_at_a_time() {
    let setup = open();
    let hub = setup.start();
    let mut talk = Talk::new(&hub);
    // One of QoS 1; everything else comes all the same.
    talk.play(
        "s > 10 'MQTT' 05 02 003c 03 21 0001 's'
        s <~ 20 0000
        s > 82 0001 00 'rm/#' 02
        s < 90 0001 00 02
        p = 5
        p > 32 'rm/a' 0001 00 & 32 'rm/b' 0002 00 & 34 'rm/c' 0003 00
        p < 40 0001
        p < 40 0002
        p < 50 0003
        s < 32 'rm/a' ?a 00
        s > c0
        s < d0
        s > 82 0002 00 'other' 00
        s < 90 0002 00 00
        s > a2 0003 00 'other'
        s < b0 0003 00 00
        s > 34 'own' 0004 00
        s < 50 0004 10
        s > 62 0004
        s < 70 0004
        s > 40 ?a
        s < 32 'rm/b' ?b 00
        s > 40 ?b
        s < 34 'rm/c' ?c 00",
    )
    .await;
    // One of QoS 2 until it is complete, or refused.
    talk.play(
        "p > 62 0003 & 34 'rm/d' 0004 00 & 32 'rm/e' 0005 00
        p < 70 0003
        p < 50 0004
        p < 40 0005
        s > 50 ?c
        s < 62 ?c
        s > c0
        s < d0
        s > 70 ?c
        s < 34 'rm/d' ?d 00
        s > 50 ?d 80
        s < 32 'rm/e' ?e 00
        s > 40 ?e",
    )
    .await;
}

#[tokio::test]
async fn what_a_client_refuses_does_not_come_again() {
    let setup = open();
    let hub = setup.start();
    let mut talk = Talk::new(&hub);
    let lines = format!(
        "{KEPT}
        k <~ 20 0000
        k > 82 0001 00 'no/#' 02
        k < 90 0001 00 02
        p = 5
        p > 32 'no/1' 0001 00 & 34 'no/2' 0002 00 & 32 'no/3' 0003 00
        p < 40 0001
        p < 50 0002
        p < 40 0003
        k < 32 'no/1' ?one 00
        k < 34 'no/2' ?two 00
        k < 32 'no/3' ?three 00
        k > 40 ?one 97 & 50 ?two 80 & c0
        k < d0
        k .
        {KEPT}
        k <~ 20 0100
        k < 3a 'no/3' ?three 00"
    );
    talk.play(&lines).await;
}

#[tokio::test]
async fn qos_1_and_2_from_the_client() {
    let setup = open();
    let hub = setup.start();
    let mut talk = Talk::new(&hub);
    talk.play(
        "s = 5
        s > 82 0001 00 'q/#' 00
        s < 90 0001 00 00
        p = 5
        p > 32 'q/one' 0007 00 =1
        p < 40 0007
        s < 30 'q/one' 00 =1
        p > 3a 'q/one' 0007 00 =1
        p < 40 0007
        s < 30 'q/one' 00 =1
        p > 34 'q/two' 0009 00 =1
        p < 50 0009
        s < 30 'q/two' 00 =1
        p > 3c 'q/two' 0009 00 =1
        p < 50 0009
        p > 62 0009
        p < 70 0009
        p > 34 'q/two' 0009 00 =2
        p < 50 0009
        s < 30 'q/two' 00 =2
        p > 62 0009
        p < 70 0009",
    )
    .await;
    // What was refused was not taken: the same id is another message.
    talk.play(
        "p > 32 'forbidden/x' 0001 00 =x
        p < 40 0001 87
        p > 34 'forbidden/x' 0001 00 =x
        p < 50 0001 87
        p > 34 'q/two' 0001 00 =3
        p < 50 0001
        s < 30 'q/two' 00 =3
        p > 62 0001
        p < 70 0001
        p > 34 'nobody' 0003 00 & 34 'nobody' 0001 00 & 34 'nobody' 0002 00
        p < 50 0003 10
        p < 50 0001 10
        p < 50 0002 10",
    )
    .await;
    // An expired one is answered to the end.
    talk.play(
        "p > 34 'q/two' 0004 05 02 00000000 =4
        p < 50 0004
        p > 62 0004
        p < 70 0004",
    )
    .await;
}

#[tokio::test]
async fn qos_2_to_the_client() {
    let setup = open();
    let hub = setup.start();
    let mut talk = Talk::new(&hub);
    talk.play(
        "s = 5
        s > 82 0001 00 'q/#' 02
        s < 90 0001 00 02
        p = 5
        p > 34 'q/1' 0001 00 =1 & 34 'q/2' 0002 00 =2 & 34 'q/3' 0003 00 =3
        p < 50 0001
        p < 50 0002
        p < 50 0003
        s < 34 'q/1' ?a 00 =1
        s < 34 'q/2' ?b 00 =2
        s < 34 'q/3' ?c 00 =3
        s > 50 ?b & 50 ?a & 50 ?c
        s < 62 ?b
        s < 62 ?a
        s < 62 ?c
        s > 50 ?a
        s < 62 ?a
        s > 70 ?a & 70 ?b & 70 ?c & 50 0fff
        s < 62 0fff 92",
    )
    .await;
}

#[tokio::test]
async fn subscriptions() {
    let setup = open();
    let hub = setup.start();
    let mut talk = Talk::new(&hub);
    // The same filter again is another subscription in its place.
    talk.play(
        "p = 5
        p > 33 'sub/r' 0001 00 =kept
        p < 40 0001 10
        s = 5
        s > 82 0001 02 0b 07 'sub/r' 01
        s < 90 0001 00 01
        s < 33 'sub/r' 0001 02 0b 07 =kept
        s > 40 0001 & 82 0002 00 'sub/r' 00
        s < 90 0002 00 00
        s < 31 'sub/r' 00 =kept
        p > 32 'sub/r' 0002 00 =new
        p < 40 0002
        s < 30 'sub/r' 00 =new",
    )
    .await;
    // Several filters, with an answer for each; the lower QoS counts, of two filters the higher.
    talk.play(
        "s > 82 0003 00 'm/1' 00 'm/2' 01 'forbidden/x' 02 'm/3' 02 'm/+' 00
        s < 90 0003 00 00 01 87 02 00
        p > 34 'm/1' 0003 00 & 34 'm/2' 0004 00 & 34 'm/3' 0005 00
        p < 50 0003
        p < 50 0004
        p < 50 0005
        s < 30 'm/1' 00
        s < 32 'm/2' ?two 00
        s < 34 'm/3' ?three 00
        s > 40 ?two & 50 ?three
        s < 62 ?three
        s > 70 ?three
        p > 30 'm/3' 00
        s < 30 'm/3' 00",
    )
    .await;
    // What is its own it does not get, though others do; the other way round it does.
    talk.play(
        "s > 82 0004 00 'own' 04
        s < 90 0004 00 00
        o = 5
        o > 82 0004 00 'own' 00
        o < 90 0004 00 00
        s > 30 'own' 00 =s
        o < 30 'own' 00 =s
        o > 30 'own' 00 =o
        s < 30 'own' 00 =o
        o < 30 'own' 00 =o",
    )
    .await;
    // Filters are taken away as they are written.
    talk.play(
        "s > a2 0005 00 'm/+' 'm/1' 'm/#' 'm/3'
        s < b0 0005 00 00 00 11 00
        s > a2 0006 00 'm/3'
        s < b0 0006 00 11
        p > 30 'm/1' 00 =no & 30 'm/4' 00 =no & 30 'm/2' 00 =yes
        s < 30 'm/2' 00 =yes
        s > 82 0007 00 '$share/g/m/9' 00
        s < 90 0007 00 00
        s > a2 0008 00 'm/9' '$share/h/m/9' '$share/g/m/9'
        s < b0 0008 00 11 11 00
        p > 30 'm/9' 00 =no & 30 'm/2' 00 =yes
        s < 30 'm/2' 00 =yes",
    )
    .await;
}

/// A subscription that is made again and again loses nothing.
#[tokio::test]
async fn a_new_subscription_in_place_of_an_old_one_interrupts_nothing() {
    const COUNT: usize = 200;
    let setup = open();
    let hub = setup.start();
    let mut talk = Talk::new(&hub);
    let ready = "s = 5\ns > 82 0001 00 'on' 00\ns < 90 0001 00 00\np = 5";
    talk.play(ready).await;
    let mut lines = String::new();
    let mut expected = Vec::new();
    for number in 0..COUNT {
        lines += &format!("p > 30 'on' 00 ={number}\ns > 82 0001 00 'on' 00\n");
        expected.push(format!("30 'on' 00 ={number}"));
        expected.push("90 0001 00 00".to_owned());
    }
    lines += &format!("s <& {}", expected.join(" & "));
    talk.play(&lines).await;
}

#[tokio::test]
async fn what_was_sent_is_completed_after_unsubscribe() {
    let setup = open();
    let hub = setup.start();
    let mut talk = Talk::new(&hub);
    let lines = format!(
        "{KEPT}
        k <~ 20 0000
        k > 82 0001 00 'd/#' 02
        k < 90 0001 00 02
        p = 5
        p > 32 'd/1' 0001 07 26 'k' 'v' =1 & 34 'd/2' 0002 00 =2
        p < 40 0001
        p < 50 0002
        k < 32 'd/1' ?one 07 26 'k' 'v' =1
        k < 34 'd/2' ?two 00 =2
        k > a2 0002 00 'd/#'
        k < b0 0002 00 00
        p > 32 'd/1' 0003 00 =no
        p < 40 0003 10
        k .
        {KEPT}
        k <~ 20 0100
        k < 3a 'd/1' ?one 07 26 'k' 'v' =1
        k < 3c 'd/2' ?two 00 =2
        k > 40 ?one & 50 ?two
        k < 62 ?two
        k > 70 ?two & c0
        k < d0"
    );
    talk.play(&lines).await;
}

/// The seconds that a message says are left to it.
fn left(got: &Got) -> u32 {
    let Got::Publish { properties, .. } = got else {
        panic!("{got:?}");
    };
    let left = properties[0].strip_prefix("MessageExpiry(").unwrap();
    left.strip_suffix(')').unwrap().parse().unwrap()
}

#[tokio::test]
async fn what_expires_while_a_session_is_away() {
    for end in [None, Some(End::Clean), Some(End::Killed)] {
        let setup = open();
        let mut hub = setup.start();
        let kept = [Property::SessionExpiry(u32::MAX)];
        let (mut away, _) = Five::anonymous(&hub, "away", false, &kept).await;
        let number = [Property::SubscriptionId(7.try_into().unwrap())];
        // With No Local and Retain As Published.
        away.subscribe_as("a", 0b1101, &number).await;
        drop(away);
        connected(&hub, 0);
        let began = Instant::now();
        let (mut sender, _) = Five::anonymous(&hub, "sender", true, &[]).await;
        for (seconds, payload) in [(1, b"short"), (100, b"along")] {
            let expiry = [Property::MessageExpiry(seconds)];
            let retained = (QoS::AtLeastOnce, true, false);
            sender.publish_as("a", retained, payload, &expiry).await;
            assert!(matches!(sender.receive().await, Got::PubAck(..)));
        }
        if let Some(end) = end {
            hub.end(end);
            hub = setup.start();
        }
        pass(&hub, 2100);
        let (mut away, _) = Five::anonymous(&hub, "away", false, &kept).await;
        let got = away.receive().await;
        let (mut late, _) = Five::anonymous(&hub, "late", true, &[]).await;
        late.subscribe("a").await;
        let retained = late.receive().await;
        let passed = u32::try_from(began.elapsed().as_secs()).unwrap();
        for (got, numbers) in [(&got, &["SubscriptionId(7)"][..]), (&retained, &[])] {
            let left = left(got);
            let due = 98 - passed..=98;
            assert!(due.contains(&left), "{left} of 100 s, {passed} passed");
            let Got::Publish {
                payload,
                retain: true,
                properties,
                ..
            } = got
            else {
                panic!("{got:?}");
            };
            assert_eq!(payload, b"along");
            assert_eq!(properties[1..], *numbers);
        }
    }
}

/// A message has its properties for those who know them.
#[tokio::test]
async fn versions_meet() {
    let setup = open();
    let hub = setup.start();
    let mut talk = Talk::new(&hub);
    talk.play(
        "s = 4
        s > 82 0001 'v/#' 02
        s < 90 0001 02
        t = 5
        t > 82 0001 00 'v/#' 02
        t < 90 0001 00 02
        p = 5
        p > 33 'v/5' 0001 07 26 'k' 'v' =5
        p < 40 0001
        s < 32 'v/5' 0001 =5
        t < 32 'v/5' 0001 07 26 'k' 'v' =5
        q = 4
        q > 33 'v/4' 0001 =4
        q < 40 0001
        s < 32 'v/4' 0002 =4
        t < 32 'v/4' 0002 00 =4
        u = 4
        u > 82 0001 'v/5' 00 'v/4' 00
        u < 90 0001 00 00
        u <& 31 'v/5' =5 & 31 'v/4' =4",
    )
    .await;
}

/// Neither does a session expire nor is anything sent again while the connection lasts.
#[tokio::test]
async fn a_connection_that_is_quiet_for_a_while() {
    let setup = open();
    let hub = setup.start();
    let mut talk = Talk::new(&hub);
    talk.play(
        "s > 10 'MQTT' 05 02 0000 05 11 00000001 's'
        s <~ 20 0000
        s > 82 0001 00 'quiet' 02
        s < 90 0001 00 02
        p = 5
        p > 32 'quiet' 0001 00 =1 & 34 'quiet' 0002 00 =2
        p < 40 0001
        p < 50 0002
        s < 32 'quiet' ?one 00 =1
        s < 34 'quiet' ?two 00 =2",
    )
    .await;
    pass(&hub, 3100);
    talk.play(
        "s > c0
        s < d0
        s > 50 ?two
        s < 62 ?two
        p > 30 'quiet' 00 =3
        s < 30 'quiet' 00 =3",
    )
    .await;
}

#[tokio::test]
async fn messages_keep_their_order_on_a_topic() {
    const COUNT: u8 = 60;
    let setup = open();
    let hub = setup.start();
    let (mut receiver, _) = Five::anonymous(&hub, "receiver", true, &[]).await;
    receiver.subscribe_as("a", 2, &[]).await;
    let (mut sender, _) = Five::anonymous(&hub, "sender", true, &[]).await;
    for number in 0..COUNT {
        for qos in [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce] {
            let flags = (qos, false, false);
            sender.publish_as("a", flags, &[number], &[]).await;
        }
    }
    let mut numbers = [0; 3];
    for _ in 0..3 * usize::from(COUNT) {
        let got = receiver.receive().await;
        receiver.acknowledge(&got).await;
        let Got::Publish { qos, payload, .. } = got else {
            panic!("{got:?}");
        };
        let next = &mut numbers[qos as usize];
        assert_eq!(payload, [*next], "{qos:?}");
        *next += 1;
    }
    assert_eq!(numbers, [COUNT; 3]);
}

#[tokio::test]
async fn shared_subscriptions_and_qos() {
    let setup = open();
    let hub = setup.start();
    let mut talk = Talk::new(&hub);
    talk.play(
        "s = 5
        s > 82 0001 00 '$share/g/jobs/#' 01
        s < 90 0001 00 01
        p = 5
        p > 34 'jobs/1' 0001 00 =1
        p < 50 0001
        s < 32 'jobs/1' 0001 00 =1
        t = 5
        t > 82 0001 00 '$share/g/jobs/#' 01
        t < 90 0001 00 01",
    )
    .await;
    // What one member refuses no other gets.
    talk.play(
        "s > 40 0001 80 & e0
        s |
        p > 32 'jobs/2' 0002 00 =2
        p < 40 0002
        t < 32 'jobs/2' 0001 00 =2",
    )
    .await;
}

#[tokio::test]
async fn a_shared_message_of_qos_2_stays_with_its_member() {
    let setup = open();
    let hub = setup.start();
    let mut talk = Talk::new(&hub);
    let lines = format!(
        "{KEPT}
        k <~ 20 0000
        k > 82 0001 00 '$share/g/jobs' 02
        k < 90 0001 00 02
        p = 5
        p > 34 'jobs' 0001 00 =1
        p < 50 0001
        k < 34 'jobs' ?one 00 =1
        t = 5
        t > 82 0001 00 '$share/g/jobs' 02
        t < 90 0001 00 02
        k ."
    );
    talk.play(&lines).await;
    connected(&hub, 2);
    // It waits for the member to come back.
    let lines = format!(
        "p > 30 'jobs' 00 =marker
        t < 30 'jobs' 00 =marker
        {KEPT}
        k <~ 20 0100
        k < 3c 'jobs' ?one 00 =1
        k > 50 ?one
        k < 62 ?one
        k > 70 ?one & e0
        k |"
    );
    talk.play(&lines).await;
    // A member whose session ends takes what it was sent with it.
    talk.play(
        "u = 5
        u > 82 0001 00 '$share/h/work' 02
        u < 90 0001 00 02
        p > 34 'work' 0002 00 =2
        p < 50 0002
        u < 34 'work' 0001 00 =2
        t > 82 0001 00 '$share/h/work' 02
        t < 90 0001 00 02
        u .",
    )
    .await;
    connected(&hub, 2);
    talk.play(
        "p > 30 'work' 00 =marker
        t < 30 'work' 00 =marker",
    )
    .await;
}

/// What goes from one member of a shared subscription to another expires as it would have.
#[tokio::test]
async fn what_is_passed_on_expires_too() {
    let setup = open();
    let hub = setup.start();
    let mut talk = Talk::new(&hub);
    let lines = format!(
        "s = 5
        s > 82 0001 00 '$share/g/jobs' 01
        s < 90 0001 00 01
        p = 5
        p > 32 'jobs' 0001 05 02 00000002 =1
        p < 40 0001
        s < 32 'jobs' 0001 05 02 00000002 =1
        {KEPT}
        k <~ 20 0000
        k > 82 0001 00 '$share/g/jobs' 01
        k < 90 0001 00 01
        k ."
    );
    talk.play(&lines).await;
    connected(&hub, 2);
    talk.play("s .").await;
    connected(&hub, 1);
    let waiting = hub.metric("edgehub_queue_length", &["$session"]);
    assert_eq!(waiting, 1.0, "it waits for the other one");
    pass(&hub, 3100);
    let lines = format!(
        "{KEPT}
        k <~ 20 0100
        p > 32 'jobs' 0002 00 =marker
        p < 40 0002
        k < 32 'jobs' ?one 00 =marker"
    );
    talk.play(&lines).await;
}

/// What was sent with QoS 2 is completed, however long that takes.
#[tokio::test]
async fn what_was_sent_does_not_expire() {
    let setup = open();
    let hub = setup.start();
    let mut talk = Talk::new(&hub);
    let lines = format!(
        "{KEPT}
        k <~ 20 0000
        k > 82 0001 00 'e' 02
        k < 90 0001 00 02
        p = 5
        p > 34 'e' 0001 05 02 00000001 =1
        p < 50 0001
        k < 34 'e' ?one 05 02 00000001 =1
        k ."
    );
    talk.play(&lines).await;
    pass(&hub, 2100);
    let lines = format!(
        "{KEPT}
        k <~ 20 0100
        k < 3c 'e' ?one 05 02 00000000 =1"
    );
    talk.play(&lines).await;
}
