//! The way up to real clouds: a second hub and mosquitto.
#![allow(missing_docs, clippy::unwrap_used, clippy::indexing_slicing)]

#[path = "cloud/mod.rs"]
mod cloud;
mod common;
mod upward;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use edgehub::client::Client;
use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use rustix::process::Signal;

use cloud::checks::Numbered;
use common::{End, Hub, LIMIT, message_with_topic, output, publish, scene, wire};
use upward::mosquitto::Mosquitto;
use upward::{Above, Due, MODULES, ROUTES, lead_to, log_says, nothing_waits, tcp};

/// Messages of each of three modules: ten thousand in all.
const EACH: u32 = 3334;

/// What a message carries: names and values as the module means them.
fn properties(message: &Numbered) -> BTreeMap<String, String> {
    let (module, number) = (&message.sender, message.number);
    [
        ("line", format!("Halle {}/b", number % 3)),
        ("größe & co", "c=d+e% é#?/$\u{1f980}".to_owned()),
        ("$.mid", format!("{module}-{number}/ä")),
        ("$.cid", format!("{{{number}}}&x=y")),
        ("$.uid", "Üser 1".to_owned()),
        ("$.ct", "application/json; charset=utf-8".to_owned()),
        ("$.ce", "utf-8".to_owned()),
        ("$.ctime", "2026-02-03T04:05:06.789+01:00".to_owned()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into()
}

/// The property bag as a module writes it.
fn bag(properties: &BTreeMap<String, String>) -> String {
    let encoded = |text| utf8_percent_encode(text, NON_ALPHANUMERIC);
    let pair = |(name, value)| format!("{}={}", encoded(name), encoded(value));
    let pairs: Vec<_> = properties
        .iter()
        .map(|(name, value)| pair((name.as_str(), value.as_str())))
        .collect();
    pairs.join("&")
}

/// The topic before its bag, and what the bag says.
fn parts(topic: &str) -> (&str, BTreeMap<String, String>) {
    let (path, bag) = topic.rsplit_once('/').unwrap();
    let decoded = |text| percent_decode_str(text).decode_utf8().unwrap().into_owned();
    let pairs = bag.split('&').map(|pair| pair.split_once('=').unwrap());
    let pairs = pairs.map(|(name, value)| (decoded(name), decoded(value)));
    (path, pairs.collect())
}

/// One module's messages, hundreds in flight; all are acknowledged when this returns.
async fn send(hub: &Hub, module: &str) {
    let mut client = hub.connect(&format!("edge-1/{module}")).await;
    let packet = |number| {
        let message = Numbered::new(module, 0, number);
        let topic = output(module, "out", &bag(&properties(&message)));
        (topic, String::from_utf8(message.payload(100)).unwrap())
    };
    let packets: Vec<_> = (0..EACH).map(packet).collect();
    wire::publish_many(&mut client, &packets).await;
}

/// Sends from all modules and takes what arrives: all of it once, in each module's order. `fits`
/// looks at each message's topic.
async fn all_arrive(hub: &Hub, receiver: &mut Client, fits: impl Fn(&Numbered, &str)) {
    let arrive = async {
        let mut due = Due::default();
        while !due.all(EACH) {
            let (topic, payload, _) = message_with_topic(receiver).await;
            fits(&due.note(&payload), &topic);
        }
    };
    tokio::join!(
        arrive,
        send(hub, MODULES[0]),
        send(hub, MODULES[1]),
        send(hub, MODULES[2])
    );
    nothing_waits(hub);
    let all = f64::from(EACH * 3);
    hub.until("all are counted", |hub| upward::sent_up(hub) == all);
    assert_eq!(hub.metric(upward::FAILURES, &[]), 0.0);
}

/// A second hub gets everything as its own module's messages.
async fn to_a_second_hub(above: &Above, upstream: String) {
    let mut below = above.below(ROUTES);
    below.extra = upstream;
    let hub = below.start();
    let mut sink = above.sink().await;
    all_arrive(&hub, &mut sink, |message, topic| {
        let (path, found) = parts(topic);
        assert_eq!(path, "devices/edge-1/modules/sink/inputs/in");
        let mut expected = properties(message);
        expected.insert("edgehub-hops".to_owned(), "1".to_owned());
        expected.insert("$.cdid".to_owned(), "edge-1".to_owned());
        expected.insert("$.cmid".to_owned(), message.sender.clone());
        assert_eq!(found, expected);
    })
    .await;
    let dropped = |hub: &Hub| hub.metric("edgehub_messages_dropped_total", &[]);
    assert_eq!((dropped(&hub), dropped(&above.hub)), (0.0, 0.0));
    assert_eq!(hub.terminate(), Some(0));
}

#[tokio::test]
async fn a_second_hub_gets_everything_once_in_order_and_as_it_was_sent() {
    let above = Above::start();
    to_a_second_hub(&above, tcp("iothub", above.hub.tcp(), "")).await;
}

#[tokio::test]
async fn a_second_hub_gets_everything_over_tls() {
    let above = Above::start();
    to_a_second_hub(&above, above.tls("localhost", &above.setup)).await;
}

#[tokio::test]
async fn mosquitto_gets_everything_once_in_order_and_as_it_was_sent() {
    let mosquitto = Mosquitto::start();
    let topic = "topic = \"plant/{device}/{module}/{output}/{property:line}/\"\n";
    let setup = mosquitto.below(ROUTES, topic);
    let hub = setup.start();
    let mut plain = mosquitto.client().await;
    plain.subscribe("plant/#").await.unwrap();
    all_arrive(&hub, &mut plain, |message, topic| {
        let (path, found) = parts(topic);
        let (module, line) = (&message.sender, message.number % 3);
        assert_eq!(path, format!("plant/edge-1/{module}/out/Halle {line}%2Fb"));
        let mut expected = properties(message);
        expected.insert("$.cdid".to_owned(), "edge-1".to_owned());
        expected.insert("$.cmid".to_owned(), module.clone());
        assert_eq!(found, expected);
    })
    .await;
    assert_eq!(hub.terminate(), Some(0));
}

/// The next command of a module: topic up there, and body.
async fn command(client: &mut Client) -> (String, String) {
    let (topic, payload, _) = message_with_topic(client).await;
    let (path, found) = parts(&topic);
    assert_eq!(path, "devices/edge-1/modules/b/inputs/commands");
    let body = String::from_utf8(payload).unwrap();
    (found["mqtt-topic"].clone(), body)
}

#[tokio::test]
async fn commands_of_mosquitto_reach_their_module_also_those_that_came_while_the_hub_was_down() {
    for end in End::ALL {
        let mosquitto = Mosquitto::start();
        let subscribe = "subscribe = [{ filter = \"down/+\", input = \"b/commands\" }]\n";
        let setup = mosquitto.below(ROUTES, subscribe);
        let hub = setup.start();
        mosquitto.until("grants the filter", |one| {
            one.log_text().contains("edge-1 1 down/+")
        });
        let mut plain = mosquitto.client().await;
        let mut b = scene::receiver(&hub, "b").await;
        publish(&mut plain, "down/now", b"first").await;
        let first = ("down/now".to_owned(), "first".to_owned());
        assert_eq!(command(&mut b).await, first);
        mosquitto.until("has the acknowledgement", |one| {
            one.log_text().contains("Received PUBACK from edge-1")
        });
        hub.end(end);
        for number in 0..50 {
            publish(&mut plain, &format!("down/{number}"), b"later").await;
        }
        let hub = setup.start();
        let mut b = hub.connect("edge-1/b").await;
        for number in 0..50 {
            let later = (format!("down/{number}"), "later".to_owned());
            let mut next = command(&mut b).await;
            if end == End::Killed && number == 0 && next == first {
                // Its acknowledgement was not on disk yet.
                next = command(&mut b).await;
            }
            assert_eq!(next, later);
        }
        publish(&mut plain, "down/again", b"last").await;
        let last = ("down/again".to_owned(), "last".to_owned());
        assert_eq!(command(&mut b).await, last);
    }
}

#[tokio::test]
async fn a_filter_taken_out_is_given_up_at_the_broker_also_over_a_restart() {
    let mosquitto = Mosquitto::start();
    let subscribe = |filter: &str| {
        let entry = format!("{{ filter = \"{filter}\", input = \"b/commands\" }}");
        mosquitto
            .below(ROUTES, &format!("subscribe = [{entry}]\n"))
            .extra
    };
    let mut setup = mosquitto.below(ROUTES, "");
    setup.extra = subscribe("first/+");
    let hub = setup.start();
    let granted = |filter: &str| {
        let line = format!("edge-1 1 {filter}");
        mosquitto.until("grants the filter", |one| one.log_text().contains(&line));
    };
    let given_up = |filter: &str| {
        let lines = "Received UNSUBSCRIBE from edge-1\n";
        mosquitto.until("hears of it", |one| {
            let log = one.log_text();
            let mut after = log.split(lines).skip(1);
            after.any(|rest| {
                rest.lines()
                    .next()
                    .is_some_and(|line| line.ends_with(filter))
            })
        });
    };
    granted("first/+");
    lead_to(&mut setup, &hub, subscribe("second/+"));
    granted("second/+");
    given_up("first/+");
    assert_eq!(hub.terminate(), Some(0));
    setup.extra = subscribe("third/+");
    let hub = setup.start();
    granted("third/+");
    given_up("second/+");
    let mut plain = mosquitto.client().await;
    publish(&mut plain, "first/x", b"gone").await;
    publish(&mut plain, "second/x", b"gone").await;
    publish(&mut plain, "third/x", b"there").await;
    let mut b = scene::receiver(&hub, "b").await;
    let there = ("third/x".to_owned(), "there".to_owned());
    assert_eq!(command(&mut b).await, there);
    let sent = mosquitto
        .log_text()
        .matches("Sending PUBLISH to edge-1")
        .count();
    assert_eq!(sent, 1);
}

/// The module's queue has no room for all of it, and the broker sends more than it said.
#[tokio::test]
async fn a_burst_of_commands_over_the_queue_arrives_in_order() {
    const BURST: u32 = 3000;
    let mosquitto = Mosquitto::start();
    let subscribe = "subscribe = [{ filter = \"down/+\", input = \"b/commands\" }]\n";
    let mut setup = mosquitto.below(ROUTES, subscribe);
    setup.extra += "[limits]\nendpoint_max_messages = 200\n";
    let hub = setup.start();
    mosquitto.until("grants the filter", |one| {
        one.log_text().contains("edge-1 1 down/+")
    });
    let mut plain = mosquitto.client().await;
    let packets = |number: u32| ("down/x".to_owned(), number.to_string());
    let packets: Vec<_> = (0..BURST).map(packets).collect();
    wire::publish_many(&mut plain, &packets).await;
    log_says(&hub, &["messages from the cloud find no room"]);
    let mut b = scene::receiver(&hub, "b").await;
    let (mut expected, mut received) = (0, 0);
    while expected < BURST {
        let number: u32 = command(&mut b).await.1.parse().unwrap();
        received += 1;
        assert!(number <= expected, "{number} came before {expected}");
        expected = expected.max(number + 1);
    }
    assert!(received < BURST * 2, "{received}");
}

/// Brokers close the connection at what is over their limit.
#[tokio::test]
async fn a_message_that_the_broker_does_not_take_holds_only_its_sender_up() {
    let mosquitto = Mosquitto::with("max_packet_size 4000\n");
    let setup = mosquitto.below(ROUTES, "topic = \"plant/{module}\"\n");
    let hub = setup.start();
    let mut plain = mosquitto.client().await;
    plain.subscribe("plant/#").await.unwrap();
    let mut a = hub.connect("edge-1/a").await;
    let mut b = hub.connect("edge-1/b").await;
    publish(&mut a, &output("a", "out", ""), &[b'x'; 5000]).await;
    publish(&mut a, &output("a", "out", ""), b"behind").await;
    for number in 0..100 {
        let body = format!("b {number}");
        publish(&mut b, &output("b", "out", ""), body.as_bytes()).await;
    }
    for number in 0..100 {
        let (topic, body, _) = message_with_topic(&mut plain).await;
        assert_eq!(topic, "plant/b");
        assert_eq!(body, format!("b {number}").into_bytes());
    }
    hub.until("the sender is shown as held", |hub| {
        hub.status()["upstreamHeld"] == serde_json::json!(["edge-1/a"])
    });
    let log = hub.log_text();
    assert!(
        log.contains("closes the connection at a message of this sender"),
        "{log}"
    );
    let waits = hub.metric("edgehub_queue_length", &["$upstream/edge-1/a"]);
    assert_eq!(waits, 2.0);
}

/// Its kernel takes what is sent to it, and it answers nothing.
#[tokio::test]
async fn a_broker_that_hangs_is_found_while_messages_go_to_it() {
    let mosquitto = Mosquitto::start();
    let setup = mosquitto.below(ROUTES, "dead_peer_seconds = 2\n");
    let hub = setup.start();
    let mut plain = mosquitto.client().await;
    plain.subscribe("#").await.unwrap();
    let mut a = hub.connect("edge-1/a").await;
    let mut number = 0..;
    publish(&mut a, &output("a", "out", ""), b"0").await;
    nothing_waits(&hub);
    number.next();
    mosquitto.signal(Signal::STOP);
    let stopped = Instant::now();
    let lost = |hub: &Hub| hub.metric("edgehub_upstream_failures_total", &["lost"]) > 0.0;
    let mut every = tokio::time::interval(Duration::from_millis(50));
    while !lost(&hub) {
        every.tick().await;
        let body = number.next().unwrap_or_default().to_string();
        publish(&mut a, &output("a", "out", ""), body.as_bytes()).await;
        assert!(stopped.elapsed() < LIMIT, "{}", hub.log_text());
    }
    // Two seconds after the last that was heard of it, which may be before the stop.
    assert!(
        stopped.elapsed() < Duration::from_secs(4),
        "{}",
        hub.log_text()
    );
    mosquitto.signal(Signal::CONT);
    nothing_waits(&hub);
    let mut expected = 0;
    while expected < number.start {
        let (_, body, _) = message_with_topic(&mut plain).await;
        let body: u32 = String::from_utf8(body).unwrap().parse().unwrap();
        assert!(body <= expected, "{body} came before {expected}");
        expected = expected.max(body + 1);
    }
}
