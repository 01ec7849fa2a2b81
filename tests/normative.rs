//! Statements of MQTT 3.1.1 that no other test proves, packet by packet over a real socket.
//! `normative.md` lists all statements with their tests.
#![allow(missing_docs, clippy::unwrap_used, clippy::indexing_slicing)]

mod common;
#[path = "normative/talk.rs"]
mod talk;

use std::time::{Duration, Instant};

use common::Hub;
use talk::{Talk, open};

/// A client has gone without a word, and the hub has noticed.
fn connected(hub: &Hub, count: u8) {
    hub.until("the hub notices who is gone", |hub| {
        hub.metric("edgehub_connected_clients", &[]) == f64::from(count)
    });
}

/// No normalization, no case folding, and a BOM is a character.
#[tokio::test]
async fn text_is_taken_as_it_is() {
    let setup = open();
    let hub = setup.start();
    let mut talk = Talk::new(&hub);
    talk.play(
        "s = 4
        s > 82 0001 '\u{feff}bom' 00 'caf\u{e9}' 00
        s < 90 0001 00 00
        p = 4
        p > 30 'bom' =no
        p > 30 'cafe\u{301}' =no
        p > 30 'CAF\u{e9}' =no
        p > 30 'caf\u{e9}/' =no
        p > 30 '\u{feff}bom' =yes
        s < 30 '\u{feff}bom' =yes
        p > 30 'caf\u{e9}' =yes
        s < 30 'caf\u{e9}' =yes",
    )
    .await;
}

#[tokio::test]
async fn client_ids() {
    let setup = open();
    let hub = setup.start();
    let mut talk = Talk::new(&hub);
    // None goes with a clean session only; each such client is one of its own.
    talk.play(
        "a > 10 'MQTT' 04 00 003c ''
        a < 20 0002
        a |
        a > 10 'MQTT' 04 02 003c ''
        a < 20 0000
        b > 10 'MQTT' 04 02 003c ''
        b < 20 0000
        a > 82 0001 'ids' 00
        a < 90 0001 00
        b > 82 0001 'ids' 00
        b < 90 0001 00
        p = 4
        p > 30 'ids' =x
        a < 30 'ids' =x
        b < 30 'ids' =x",
    )
    .await;
    let all = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
    let bytes = all.len();
    let ids = (0..bytes).flat_map(|at| [&all[at..=at], &all[at..bytes.min(at + 23)]]);
    for id in ids {
        let hello = format!("c > 10 'MQTT' 04 02 003c '{id}'\nc < 20 0000\nc > e0\nc |");
        talk.play(&hello).await;
    }
    let long = "x".repeat(300);
    let hello = format!("c > 10 'MQTT' 04 00 003c '{long}'\nc < 20 0002\nc |");
    talk.play(&hello).await;
}

#[tokio::test]
async fn what_follows_a_refused_connect_is_not_read() {
    let setup = open();
    let hub = setup.start();
    let mut talk = Talk::new(&hub);
    talk.play(
        "a > 10 'MQTT' 04 00 003c '' & 31 'refused' =no
        a < 20 0002
        a |
        s = 4
        s > 82 0001 'refused' 00
        s < 90 0001 00
        s > 30 'refused' =marker
        s < 30 'refused' =marker",
    )
    .await;
}

#[tokio::test]
async fn a_session_goes_on_where_it_was() {
    let setup = open();
    let hub = setup.start();
    let mut talk = Talk::new(&hub);
    talk.play(
        "k > 10 'MQTT' 04 00 003c 'k'
        k < 20 0000
        k > 82 0001 'kept/#' 01 'kept/two' 02
        k < 90 0001 01 02
        p = 4
        p > 33 'kept/r' 0001 =r
        p < 40 0001
        k < 32 'kept/r' 0001 =r
        k > 40 0001 & e0
        k |
        p > 32 'kept/one' 0002 =1 & 34 'kept/two' 0003 =2
        p <& 40 0002 & 50 0003
        p > 62 0003
        p < 70 0003
        k > 10 'MQTT' 04 00 003c 'k'
        k < 20 0100
        k < 32 'kept/one' ?one =1
        k < 34 'kept/two' ?two =2
        k .
        k > 10 'MQTT' 04 00 003c 'k'
        k < 20 0100
        k < 3a 'kept/one' ?one =1
        k < 3c 'kept/two' ?two =2
        k > 50 ?two
        k < 62 ?two
        k .
        k > 10 'MQTT' 04 00 003c 'k'
        k < 20 0100
        k < 62 ?two
        k < 3a 'kept/one' ?one =1
        k > 70 ?two & 40 ?one & e0
        k |
        k > 10 'MQTT' 04 00 003c 'k'
        k < 20 0100
        p > 32 'kept/one' 0004 =3
        p < 40 0004
        k < 32 'kept/one' ?three =3",
    )
    .await;
    // A clean one has none of that; what is retained belongs to no session.
    talk.play(
        "k .
        k > 10 'MQTT' 04 02 003c 'k'
        k < 20 0000
        p > 32 'kept/one' 0005 =4
        p < 40 0005
        k > 82 0001 'kept/r' 01
        k < 90 0001 01
        k < 33 'kept/r' 0001 =r
        k .
        k > 10 'MQTT' 04 00 003c 'k'
        k < 20 0000
        p > 32 'kept/r' 0006 =5
        p < 40 0006
        k > 82 0001 'kept/r' 00
        k < 90 0001 00
        k < 31 'kept/r' =r",
    )
    .await;
}

#[tokio::test]
async fn wills() {
    let setup = open();
    let hub = setup.start();
    let mut talk = Talk::new(&hub);
    // Not retained, and published once.
    talk.play(
        "s = 4
        s > 82 0001 'gone/#' 02
        s < 90 0001 02
        w > 10 'MQTT' 04 0e 003c 'w' 'gone/one' 'lost'
        w < 20 0000
        w .
        s < 32 'gone/one' 0001 =lost
        s > 40 0001
        w = 4
        w .",
    )
    .await;
    connected(&hub, 1);
    talk.play(
        "t = 4
        t > 82 0001 'gone/#' 00
        t < 90 0001 00
        t > 30 'gone/marker' =1
        t < 30 'gone/marker' =1
        s < 30 'gone/marker' =1",
    )
    .await;
    // Retained, with QoS 2 and 0.
    talk.play(
        "w > 10 'MQTT' 04 36 003c 'w' 'gone/two' 'kept'
        w < 20 0000
        w .
        s < 34 'gone/two' ?two =kept
        s > 50 ?two
        s < 62 ?two
        s > 70 ?two
        t < 30 'gone/two' =kept
        w > 10 'MQTT' 04 26 003c 'w' 'gone/zero' 'kept'
        w < 20 0000
        w .
        s < 30 'gone/zero' =kept
        t < 30 'gone/zero' =kept
        u = 4
        u > 82 0001 'gone/two' 02 'gone/zero' 02
        u < 90 0001 02 02
        u <& 35 'gone/two' 0001 =kept & 31 'gone/zero' =kept",
    )
    .await;
    // A leave voids it.
    talk.play(
        "w > 10 'MQTT' 04 0e 003c 'w' 'gone/void' 'no'
        w < 20 0000
        w > e0
        w |
        w = 4
        w > 30 'gone/marker' =2
        t < 30 'gone/marker' =2
        s < 30 'gone/marker' =2",
    )
    .await;
}

#[tokio::test]
async fn one_and_a_half_keep_alives_without_a_packet() {
    let setup = open();
    let hub = setup.start();
    let mut talk = Talk::new(&hub);
    talk.play("s = 4\ns > 82 0001 'late' 00\ns < 90 0001 00")
        .await;
    let started = Instant::now();
    talk.play(
        "w > 10 'MQTT' 04 06 0001 'w' 'late' 'x'
        w < 20 0000
        w |
        s < 30 'late' =x",
    )
    .await;
    let took = started.elapsed();
    let due = Duration::from_millis(1450)..Duration::from_secs(5);
    assert!(due.contains(&took), "closed after {took:?}");
}

#[tokio::test]
async fn retained_messages() {
    let setup = open();
    let hub = setup.start();
    let mut talk = Talk::new(&hub);
    talk.play(
        "s = 4
        s > 82 0001 'r/#' 01
        s < 90 0001 01
        p = 4
        p > 3b 'r/one' 0001 =one
        p < 40 0001
        s < 32 'r/one' 0001 =one
        s > 40 0001
        a = 4
        a > 82 0001 'r/one' 02
        a < 90 0001 02
        a < 33 'r/one' 0001 =one
        a > 40 0001 & e0
        a |",
    )
    .await;
    // One of QoS 0 takes its place; one without RETAIN neither that nor any.
    talk.play(
        "p > 31 'r/one' =zero
        s < 30 'r/one' =zero
        p > 30 'r/one' =live
        s < 30 'r/one' =live
        p > 30 'r/two' =live
        s < 30 'r/two' =live
        a = 4
        a > 82 0001 'r/#' 02
        a < 90 0001 02
        a < 31 'r/one' =zero
        p > 30 'r/marker' =1
        s < 30 'r/marker' =1
        a < 30 'r/marker' =1
        a > e0
        a |",
    )
    .await;
    // An empty one takes it away, and goes to who is there.
    talk.play(
        "p > 33 'r/one' 0002
        p < 40 0002
        s < 32 'r/one' 0002
        s > 40 0002
        a = 4
        a > 82 0001 'r/#' 02
        a < 90 0001 02
        p > 30 'r/marker' =2
        a < 30 'r/marker' =2
        s < 30 'r/marker' =2",
    )
    .await;
}

#[tokio::test]
async fn qos_1_and_2_from_the_client() {
    let setup = open();
    let hub = setup.start();
    let mut talk = Talk::new(&hub);
    talk.play(
        "s = 4
        s > 82 0001 'q/#' 00
        s < 90 0001 00
        p = 4
        p > 32 'q/one' 0007 =1
        p < 40 0007
        s < 30 'q/one' =1
        p > 3a 'q/one' 0007 =1
        p < 40 0007
        s < 30 'q/one' =1
        p > 34 'q/two' 0009 =1
        p < 50 0009
        s < 30 'q/two' =1
        p > 3c 'q/two' 0009 =1
        p < 50 0009
        p > 62 0009
        p < 70 0009
        p > 62 0009
        p < 70 0009
        p > 34 'q/two' 0009 =2
        p < 50 0009
        s < 30 'q/two' =2
        p > 62 0009
        p < 70 0009",
    )
    .await;
    // Answers come in the order of what they answer.
    talk.play(
        "p > 34 'q/a' 0003 & 34 'q/a' 0001 & 34 'q/a' 0002
        p < 50 0003
        p < 50 0001
        p < 50 0002
        p > 32 'q/a' 0006 & 32 'q/a' 0004 & 32 'q/a' 0005
        p < 40 0006
        p < 40 0004
        p < 40 0005",
    )
    .await;
}

#[tokio::test]
async fn qos_2_to_the_client() {
    let setup = open();
    let hub = setup.start();
    let mut talk = Talk::new(&hub);
    talk.play(
        "s = 4
        s > 82 0001 'q/#' 02
        s < 90 0001 02
        p = 4
        p > 34 'q/1' 0001 =1 & 34 'q/2' 0002 =2 & 34 'q/3' 0003 =3
        p < 50 0001
        p < 50 0002
        p < 50 0003
        s < 34 'q/1' ?a =1
        s < 34 'q/2' ?b =2
        s < 34 'q/3' ?c =3
        s > 50 ?b & 50 ?a & 50 ?c
        s < 62 ?b
        s < 62 ?a
        s < 62 ?c
        s > 50 ?a
        s < 62 ?a
        s > 70 ?a & 70 ?b & 70 ?c & c0
        s < d0",
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
        "p = 4
        p > 33 'sub/r' 0001 =kept
        p < 40 0001
        s = 4
        s > 82 0001 'sub/r' 01
        s < 90 0001 01
        s < 33 'sub/r' 0001 =kept
        s > 40 0001 & 82 0002 'sub/r' 00
        s < 90 0002 00
        s < 31 'sub/r' =kept
        p > 32 'sub/r' 0002 =new
        p < 40 0002
        s < 30 'sub/r' =new",
    )
    .await;
    // Several filters, with an answer for each; where they overlap the highest QoS counts.
    talk.play(
        "s > 82 0003 'm/1' 00 'm/2' 01 'forbidden/x' 02 'm/3' 02 'm/+' 00
        s < 90 0003 00 01 80 02 00
        p > 34 'm/1' 0003 =1
        p < 50 0003
        p > 62 0003
        p < 70 0003
        s < 30 'm/1' =1
        p > 34 'm/2' 0003 =2
        p < 50 0003
        p > 62 0003
        p < 70 0003
        s < 32 'm/2' ?two =2
        s > 40 ?two
        p > 34 'm/3' 0003 =3
        p < 50 0003
        p > 62 0003
        p < 70 0003
        s < 34 'm/3' ?three =3
        s > 50 ?three
        s < 62 ?three
        s > 70 ?three
        p > 30 'm/3' =0
        s < 30 'm/3' =0",
    )
    .await;
    // Filters are taken away as they are written.
    talk.play(
        "s > a2 0004 'm/+' 'm/1' 'm/#' 'never'
        s < b0 0004
        p > 30 'm/1' =no & 30 'm/4' =no & 30 'm/2' =yes
        s < 30 'm/2' =yes
        p > 32 'forbidden/x' 0009 =x
        p |",
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
    talk.play("s = 4\ns > 82 0001 'on' 00\ns < 90 0001 00\np = 4")
        .await;
    let mut lines = String::new();
    let mut expected = Vec::new();
    for number in 0..COUNT {
        lines += &format!("p > 30 'on' ={number}\ns > 82 0001 'on' 00\n");
        expected.push(format!("30 'on' ={number}"));
        expected.push("90 0001 00".to_owned());
    }
    lines += &format!("s <& {}", expected.join(" & "));
    talk.play(&lines).await;
}

#[tokio::test]
async fn what_was_sent_is_completed_after_unsubscribe() {
    let setup = open();
    let hub = setup.start();
    let mut talk = Talk::new(&hub);
    talk.play(
        "k > 10 'MQTT' 04 00 003c 'k'
        k < 20 0000
        k > 82 0001 'd/#' 02
        k < 90 0001 02
        p = 4
        p > 32 'd/1' 0001 =1 & 34 'd/2' 0002 =2
        p < 40 0001
        p < 50 0002
        k < 32 'd/1' ?one =1
        k < 34 'd/2' ?two =2
        k > a2 0002 'd/#'
        k < b0 0002
        p > 32 'd/1' 0003 =no
        p < 40 0003
        k .
        k > 10 'MQTT' 04 00 003c 'k'
        k < 20 0100
        k < 3a 'd/1' ?one =1
        k < 3c 'd/2' ?two =2
        k > 40 ?one & 50 ?two
        k < 62 ?two
        k > 70 ?two & c0
        k < d0",
    )
    .await;
}

/// What came before DISCONNECT is answered, though the client may not wait for it.
#[tokio::test]
async fn disconnect_cuts_no_answer_off() {
    let setup = open();
    let hub = setup.start();
    let mut talk = Talk::new(&hub);
    talk.play(
        "a = 4
        a > c0 & e0
        a < d0
        a |
        b = 5
        b > c0 & 82 0001 00 'x' 00 & e0
        b <& d0 & 90 0001 00 00
        b |",
    )
    .await;
}
