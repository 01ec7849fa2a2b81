//! The way up in MQTT 5: against mosquitto, a second hub, and a cloud that refuses.
#![allow(missing_docs, clippy::unwrap_used, clippy::indexing_slicing)]

#[path = "cloud/mod.rs"]
mod cloud;
mod common;
mod upward;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Instant;

use edgehub::client::Client;
use edgehub::mqtt::v5::{self, FromClient, Properties, Property, ReasonCode};
use rustix::process::Signal;

use common::five::{Five, Got};
use common::{End, Hub, LIMIT, OPEN, Setup, message_with_topic, output, publish, scene};
use upward::five::{Answer, Cloud, OK, TEXT};
use upward::mosquitto::{Mosquitto, PASSWORD, USER};
use upward::{CONNECTED, MODULES, ROUTES, STATE, link_says, log_says, nothing_waits, tcp};

const VERSION: &str = "version = \"5\"\n";
const DROPPED: &str = "edgehub_messages_dropped_total";
const KEPT: [Property<'_>; 1] = [Property::SessionExpiry(u32::MAX)];
const EACH: u32 = 300;

fn below(cloud: &Cloud, more: &str) -> Setup {
    let mut setup = Setup::new(ROUTES, &MODULES);
    setup.extra = tcp("mqtt", cloud.address, &format!("{VERSION}{more}"));
    setup
}

async fn say(client: &mut Client, module: &str, body: &str) {
    publish(client, &output(module, "out", ""), body.as_bytes()).await;
}

/// A client of a mosquitto, let in.
async fn at_mosquitto(mosquitto: &Mosquitto) -> Five {
    let mut five = Five::open(mosquitto.tcp).await;
    five.send(&FromClient::Connect(v5::Connect {
        clean_start: true,
        keep_alive_seconds: 0,
        properties: Properties::EMPTY,
        client_id: "watcher",
        will: None,
        username: Some(USER),
        password: Some(PASSWORD.as_bytes()),
    }))
    .await;
    let connack = five.receive().await;
    let is_in = matches!(&connack, Got::ConnAck { reason, .. } if *reason == ReasonCode::Success);
    assert!(is_in, "{connack:?}");
    five
}

/// The next message, acknowledged: topic, body, properties.
async fn next(five: &mut Five) -> (String, String, Vec<String>) {
    let got = five.receive().await;
    five.acknowledge(&got).await;
    match got {
        Got::Publish {
            topic,
            payload,
            properties,
            ..
        } => (topic, String::from_utf8(payload).unwrap(), properties),
        other => panic!("{other:?} instead of a message"),
    }
}

/// Seconds of the message expiry, which is taken out.
fn expiry(properties: &mut Vec<String>) -> Option<u32> {
    let expiry = |one: &String| {
        let inner = one.strip_prefix("MessageExpiry(")?.strip_suffix(')')?;
        inner.parse().ok()
    };
    let seconds = properties.iter().find_map(expiry);
    properties.retain(|one| expiry(one).is_none());
    seconds
}

#[tokio::test]
async fn mosquitto_gets_everything_in_order_with_its_properties_beside_the_topic() {
    let mosquitto = Mosquitto::start();
    let more = format!("{VERSION}topic = \"plant/{{module}}/{{output}}/\"\n");
    let setup = mosquitto.below(ROUTES, &more);
    let hub = setup.start();
    let mut watcher = at_mosquitto(&mosquitto).await;
    watcher.subscribe("plant/#").await;
    let sending = async {
        for module in MODULES {
            let mut client = hub.connect(&format!("edge-1/{module}")).await;
            for number in 0..EACH {
                let bag = format!(
                    "n={number}&name=%C3%A4%20%26%3D%2F&lines=1%0A2&none&%24.mid=m{number}&\
                     %24.cid=c%2F1&%24.ct=text%2Fplain&%24.ce=utf-8"
                );
                let topic = output(module, "out", &bag);
                publish(&mut client, &topic, format!("{number}").as_bytes()).await;
            }
        }
    };
    let watching = async {
        let mut due: BTreeMap<String, u32> = BTreeMap::new();
        for _ in 0..EACH * 3 {
            let (topic, body, mut properties) = next(&mut watcher).await;
            let number = due.entry(topic.clone()).or_default();
            assert_eq!(body, number.to_string(), "{topic}");
            // The time to live of the manifest.
            let left = expiry(&mut properties);
            assert!(
                left.is_some_and(|left| (7100..=7201).contains(&left)),
                "{left:?}"
            );
            let module = topic.split('/').nth(1).unwrap();
            let expected = [
                "PayloadFormat(true)".to_owned(),
                "ContentType(\"text/plain\")".to_owned(),
                "CorrelationData([99, 47, 49])".to_owned(),
                format!("User(\"n\", \"{number}\")"),
                "User(\"name\", \"ä &=/\")".to_owned(),
                "User(\"lines\", \"1%0A2\")".to_owned(),
                "User(\"none\", \"\")".to_owned(),
                format!("User(\"$.mid\", \"m{number}\")"),
                "User(\"$.ce\", \"utf-8\")".to_owned(),
                "User(\"$.cdid\", \"edge-1\")".to_owned(),
                format!("User(\"$.cmid\", \"{module}\")"),
            ];
            properties.sort();
            let mut expected = expected.to_vec();
            expected.sort();
            assert_eq!(properties, expected);
            *number += 1;
        }
        due
    };
    let (due, ()) = tokio::join!(watching, sending);
    let topics: Vec<_> = due.keys().map(String::as_str).collect();
    assert_eq!(topics, ["plant/a/out/", "plant/b/out/", "plant/c/out/"]);
    nothing_waits(&hub);
    assert_eq!(hub.metric(DROPPED, &[]), 0.0);
    assert_eq!(hub.metric(upward::FAILURES, &[]), 0.0);
}

/// The properties that a module finds in its input's topic.
async fn command(client: &mut Client) -> (String, String) {
    let (topic, body, _) = message_with_topic(client).await;
    let bag = topic.strip_prefix("devices/edge-1/modules/b/inputs/commands/");
    (bag.unwrap().to_owned(), String::from_utf8(body).unwrap())
}

#[tokio::test]
async fn commands_keep_their_properties_also_those_that_came_while_the_hub_was_down() {
    for end in End::ALL {
        let mosquitto = Mosquitto::start();
        let subscribe = "subscribe = [{ filter = \"down/+\", input = \"b/commands\" }]\n";
        let setup = mosquitto.below(ROUTES, &format!("{VERSION}{subscribe}"));
        let hub = setup.start();
        mosquitto.until("grants the filter", |one| {
            one.log_text().contains("edge-1 1 down/+")
        });
        let mut sender = at_mosquitto(&mosquitto).await;
        let mut b = scene::receiver(&hub, "b").await;
        let properties = [
            Property::ContentType("application/json"),
            Property::CorrelationData(b"c-1"),
            Property::MessageExpiry(600),
            Property::User("line", "7/8"),
            Property::User("$.mid", "m1"),
            Property::User("$.cdid", "somebody"),
        ];
        let bag = "line=7%2F8&mqtt-topic=down%2F1&%24.mid=m1&%24.cid=c-1&\
                   %24.ct=application%2Fjson&%24.cdid=edge-1&%24.cmid=%24upstream";
        sender.publish("down/1", b"now", &properties).await;
        assert_eq!(command(&mut b).await, (bag.to_owned(), "now".to_owned()));
        mosquitto.until("has the acknowledgement", |one| {
            one.log_text().contains("Received PUBACK from edge-1")
        });
        hub.end(end);
        for _ in 0..20 {
            sender.publish("down/1", b"later", &properties).await;
        }
        let hub = setup.start();
        let mut b = hub.connect("edge-1/b").await;
        for number in 0..20 {
            let mut got = command(&mut b).await;
            if end == End::Killed && number == 0 && got.1 == "now" {
                // Its acknowledgement was not on disk yet.
                got = command(&mut b).await;
            }
            assert_eq!(got, (bag.to_owned(), "later".to_owned()));
        }
    }
}

/// Where 3.1.1 brokers close the connection, they say it of the message.
#[tokio::test]
async fn a_topic_that_is_not_allowed_holds_its_sender_up_until_it_is() {
    let (some, all) = (
        "user gateway\ntopic readwrite plant/b\ntopic read plant/#\n",
        "user gateway\ntopic readwrite plant/#\n",
    );
    // With 0, which is no limit, this mosquitto closes the connection as well.
    let config = "acl_file acl\nmax_queued_messages 10000\n";
    let mosquitto = Mosquitto::with_file(config, ("acl", some));
    let more = format!("{VERSION}topic = \"plant/{{module}}\"\n");
    let setup = mosquitto.below(ROUTES, &more);
    let hub = setup.start();
    let mut watcher = at_mosquitto(&mosquitto).await;
    watcher.subscribe("plant/#").await;
    let mut a = hub.connect("edge-1/a").await;
    let mut b = hub.connect("edge-1/b").await;
    for number in 0..20 {
        say(&mut a, "a", &number.to_string()).await;
    }
    for number in 0..20 {
        say(&mut b, "b", &number.to_string()).await;
        let (topic, body, _) = next(&mut watcher).await;
        assert_eq!((&*topic, body), ("plant/b", number.to_string()));
    }
    log_says(
        &hub,
        &["from=\"edge-1/a\"", "wait", "not authorized (0x87)"],
    );
    assert_eq!(
        hub.status()["upstreamHeld"],
        serde_json::json!(["edge-1/a"])
    );
    assert_eq!(hub.metric(upward::FAILURES, &[]), 0.0);
    std::fs::write(mosquitto.path("acl"), all).unwrap();
    mosquitto.signal(Signal::HUP);
    for number in 0..20 {
        let (topic, body, _) = next(&mut watcher).await;
        assert_eq!((&*topic, body), ("plant/a", number.to_string()));
    }
    nothing_waits(&hub);
    assert_eq!(hub.metric(DROPPED, &[]), 0.0);
    assert_eq!(hub.status()["upstreamHeld"], serde_json::json!([]));
}

/// The broker says how large, so that nothing has to be tried.
#[tokio::test]
async fn a_message_over_the_brokers_limit_is_counted_and_holds_nobody_up() {
    let mosquitto = Mosquitto::with("max_packet_size 4000\n");
    let more = format!("{VERSION}topic = \"plant/{{module}}\"\n");
    let setup = mosquitto.below(ROUTES, &more);
    let hub = setup.start();
    let mut watcher = at_mosquitto(&mosquitto).await;
    watcher.subscribe("plant/#").await;
    let mut a = hub.connect("edge-1/a").await;
    say(&mut a, "a", "before").await;
    say(&mut a, "a", &"x".repeat(5000)).await;
    say(&mut a, "a", "behind").await;
    for expected in ["before", "behind"] {
        assert_eq!(next(&mut watcher).await.1, expected);
    }
    let labels = ["reason=\"too_large_for_cloud\"", "from=\"edge-1/a\""];
    assert_eq!(hub.metric(DROPPED, &labels), 1.0);
    log_says(&hub, &["from=\"edge-1/a\"", "maximum packet size"]);
    assert_eq!(hub.metric(upward::FAILURES, &[]), 0.0);
}

/// A hub at an address that it keeps over restarts, on which anybody may use plain topics.
fn parent(routes: &str, modules: &[&str]) -> (Setup, SocketAddr) {
    let mut setup = Setup::new(routes, modules);
    let address = upward::mosquitto::free_address();
    setup.listeners =
        format!("[[listener]]\nbind = \"{address}\"\ntransport = \"tcp\"\nanonymous = true\n");
    OPEN.clone_into(&mut setup.extra);
    (setup, address)
}

/// Sends from all modules, while the hub above ends and comes back twice.
async fn send_over_restarts(hub: &Hub, above: &Setup, mut running: Hub) -> Hub {
    let mut clients = Vec::new();
    for module in MODULES {
        clients.push(hub.connect(&format!("edge-1/{module}")).await);
    }
    for number in 0..EACH {
        for (client, module) in clients.iter_mut().zip(MODULES) {
            let topic = output(module, "out", &format!("n={number}"));
            publish(client, &topic, format!("{module} {number}").as_bytes()).await;
        }
        let end = match number {
            100 => End::Killed,
            200 => End::Clean,
            _ => continue,
        };
        running.end(end);
        running = above.start();
    }
    running
}

/// Notes a body such as `a 7`: each module's numbers come in order, but for those that come again.
fn note(due: &mut BTreeMap<String, u32>, body: &str) -> bool {
    let (module, number) = body.split_once(' ').unwrap();
    let number: u32 = number.parse().unwrap();
    let next = due.entry(module.to_owned()).or_default();
    assert!(number <= *next, "{body} came before {next}");
    *next = (*next).max(number + 1);
    MODULES.iter().all(|module| due.get(*module) == Some(&EACH))
}

#[tokio::test]
async fn a_hub_above_gets_plain_topics_over_its_restarts_without_loss() {
    let (above, address) = parent("{}", &["sink"]);
    let running = above.start();
    let (mut five, _) = Five::anonymous_at(address, "watcher", false, &KEPT).await;
    five.subscribe("up/#").await;
    five.leave(ReasonCode::Success, &[]).await;
    let mut setup = Setup::new(ROUTES, &MODULES);
    let more = format!("{VERSION}topic = \"up/{{module}}\"\n");
    setup.extra = tcp("mqtt", address, &more);
    let hub = setup.start();
    let _running = send_over_restarts(&hub, &above, running).await;
    nothing_waits(&hub);
    let (mut five, connack) = Five::anonymous_at(address, "watcher", false, &KEPT).await;
    assert!(
        matches!(
            connack,
            Got::ConnAck {
                session_present: true,
                ..
            }
        ),
        "{connack:?}"
    );
    let mut due = BTreeMap::new();
    loop {
        let (topic, body, mut properties) = next(&mut five).await;
        let (module, number) = body.split_once(' ').unwrap();
        assert_eq!(topic, format!("up/{module}"));
        assert!(expiry(&mut properties).is_some());
        assert_eq!(properties[0], format!("User(\"n\", \"{number}\")"));
        if note(&mut due, &body) {
            break;
        }
    }
    assert_eq!(hub.metric(DROPPED, &[]), 0.0);
}

#[tokio::test]
async fn a_hub_above_gets_modules_messages_over_its_restarts_without_loss() {
    let routes = r#"{"in":
        "FROM /messages/* INTO BrokeredEndpoint(\"/modules/sink/inputs/in\")"}"#;
    let (above, address) = parent(routes, &["a", "b", "c", "sink"]);
    let running = above.start();
    scene::left_behind(&running, "sink").await;
    let mut setup = Setup::new(ROUTES, &MODULES);
    let name = "identities.json";
    std::fs::copy(above.path(name), setup.path(name)).unwrap();
    setup.extra = tcp("iothub", address, VERSION);
    let hub = setup.start();
    let running = send_over_restarts(&hub, &above, running).await;
    let mut sink = running.connect("edge-1/sink").await;
    let mut due = BTreeMap::new();
    loop {
        let (topic, body, _) = message_with_topic(&mut sink).await;
        let body = String::from_utf8(body).unwrap();
        let (module, number) = body.split_once(' ').unwrap();
        // It was in flight when the hub above ended.
        let topic = topic.replace("&mqtt-dup=true", "");
        let bag = format!("n={number}&edgehub-hops=1&%24.cdid=edge-1&%24.cmid={module}");
        assert_eq!(
            topic,
            format!("devices/edge-1/modules/sink/inputs/in/{bag}")
        );
        if note(&mut due, &body) {
            break;
        }
    }
    nothing_waits(&hub);
    assert_eq!(hub.metric(DROPPED, &[]), 0.0);
}

#[tokio::test]
async fn tokens_are_renewed_without_a_gap() {
    let (above, address) = parent("{}", &["a", "b", "c"]);
    let running = above.start();
    let mut setup = Setup::new(ROUTES, &MODULES);
    let name = "identities.json";
    std::fs::copy(above.path(name), setup.path(name)).unwrap();
    let more = format!("{VERSION}token_ttl_seconds = 5\n");
    setup.extra = tcp("iothub", address, &more);
    let hub = setup.start();
    let mut a = hub.connect("edge-1/a").await;
    let connects = |hub: &Hub| hub.metric("edgehub_upstream_connects_total", &["edge-1/a"]);
    let started = Instant::now();
    let mut number = 0;
    while connects(&hub) < 3.0 {
        say(&mut a, "a", &number.to_string()).await;
        number += 1;
        assert!(started.elapsed() < LIMIT, "{}", hub.log_text());
    }
    nothing_waits(&hub);
    assert_eq!(upward::sent_up(&hub), f64::from(number));
    assert_eq!(hub.metric(upward::FAILURES, &[]), 0.0);
    assert_eq!(running.terminate(), Some(0));
}

#[tokio::test]
async fn what_the_cloud_will_never_take_is_given_up_and_told() {
    let cloud = Cloud::start();
    cloud.decide(|_, body| match body {
        "3" => Answer::Ack(ReasonCode::PayloadFormatInvalid),
        "7" => Answer::Ack(ReasonCode::TopicNameInvalid),
        _ => OK,
    });
    let setup = below(&cloud, "");
    let hub = setup.start();
    let mut a = hub.connect("edge-1/a").await;
    for number in 0..10 {
        say(&mut a, "a", &number.to_string()).await;
    }
    nothing_waits(&hub);
    let labels = ["reason=\"refused_by_cloud\"", "from=\"edge-1/a\""];
    assert_eq!(hub.metric(DROPPED, &labels), 2.0);
    assert_eq!(upward::sent_up(&hub), 8.0);
    for code in ["payload format invalid (0x99)", "topic name invalid (0x90)"] {
        log_says(&hub, &["given up", "from=\"edge-1/a\"", code, TEXT]);
    }
    let bodies: Vec<_> = cloud.came().into_iter().map(|one| one.body).collect();
    let all: Vec<_> = (0..10).map(|number| number.to_string()).collect();
    assert_eq!(bodies, all);
}

#[tokio::test]
async fn what_the_cloud_refuses_for_now_comes_again_in_order_and_holds_nobody_else_up() {
    for code in [
        ReasonCode::QuotaExceeded,
        ReasonCode::UnspecifiedError,
        ReasonCode::ImplementationSpecific,
    ] {
        let cloud = Cloud::start();
        let mut refusals = 30;
        cloud.decide(move |topic, _| {
            if topic == "up/b" || refusals == 0 {
                return OK;
            }
            refusals -= 1;
            Answer::Ack(code)
        });
        // So that some are in flight together.
        cloud.greet(ReasonCode::Success, &[]);
        let setup = below(&cloud, "topic = \"up/{module}\"\n");
        let hub = setup.start();
        let mut a = hub.connect("edge-1/a").await;
        let mut b = hub.connect("edge-1/b").await;
        let packets: Vec<_> = (0..29)
            .map(|number| (output("a", "out", ""), format!("a {number}")))
            .collect();
        common::wire::publish_many(&mut a, &packets).await;
        cloud.until("all were refused once", |cloud| cloud.came().len() >= 29);
        say(&mut b, "b", "b 0").await;
        cloud.until("the other passes", |cloud| {
            cloud.kept().contains(&"b 0".to_owned())
        });
        nothing_waits(&hub);
        let kept: Vec<_> = cloud.kept();
        let of_a: Vec<_> = kept.iter().filter(|body| body.starts_with('a')).collect();
        let all: Vec<_> = (0..29).map(|number| format!("a {number}")).collect();
        assert!(of_a.into_iter().eq(all.iter()), "{kept:?}");
        assert_eq!(hub.metric(DROPPED, &[]), 0.0);
        assert_eq!(hub.metric(upward::FAILURES, &[]), 0.0);
        log_says(&hub, &["wait_s=1", &code.to_string(), TEXT]);
    }
}

#[tokio::test]
async fn the_terms_of_the_cloud_are_kept() {
    let cloud = Cloud::start();
    let terms = [
        Property::ReceiveMaximum(3.try_into().unwrap()),
        Property::MaximumPacketSize(200.try_into().unwrap()),
        Property::ServerKeepAlive(1),
        Property::SessionExpiry(30),
        Property::WildcardSubscriptionAvailable(false),
        Property::RetainAvailable(false),
    ];
    cloud.greet(ReasonCode::Success, &terms);
    cloud.answer_in_batches(3);
    let subscribe = "subscribe = [{ filter = \"down/+\", input = \"b/x\" }, \
                     { filter = \"down/1\", input = \"b/x\" }]\n";
    let setup = below(&cloud, subscribe);
    let hub = setup.start();
    let mut a = hub.connect("edge-1/a").await;
    let packets: Vec<_> = (0..30)
        .map(|number| (output("a", "out", ""), number.to_string()))
        .collect();
    common::wire::publish_many(&mut a, &packets).await;
    nothing_waits(&hub);
    assert_eq!(cloud.in_flight_max(), 3);
    say(&mut a, "a", &"x".repeat(200)).await;
    let labels = ["reason=\"too_large_for_cloud\""];
    hub.until("it is counted", |hub| hub.metric(DROPPED, &labels) == 1.0);
    let hello = &cloud.hellos()[0];
    for part in [
        "clean_start: false",
        "SessionExpiry(4294967295)",
        "ReceiveMaximum(100)",
    ] {
        assert!(hello.contains(part), "{hello}");
    }
    let subscribed = cloud.heard();
    assert!(
        subscribed[0].contains("\"down/1\"") && !subscribed[0].contains('+'),
        "{subscribed:?}"
    );
    log_says(&hub, &["no filters with wildcards", "down/+"]);
    log_says(&hub, &["keeps messages for us", "seconds=30"]);
    assert_eq!(hub.metric(STATE, &[]), CONNECTED);
}

#[tokio::test]
async fn why_the_cloud_refuses_or_leaves_is_told() {
    let cloud = Cloud::start();
    let text = Property::ReasonString(TEXT);
    let moved = Property::ServerReference("other.example:8883");
    cloud.greet(ReasonCode::ServerMoved, &[text, moved]);
    let setup = below(&cloud, "");
    let hub = setup.start();
    let words = [
        "server moved (0x9d)",
        TEXT,
        "other.example:8883",
        "`servers`",
    ];
    link_says(&hub, "backing_off", &words);
    cloud.greet(
        ReasonCode::Success,
        &[Property::MaximumQos(edgehub::mqtt::QoS::AtMostOnce)],
    );
    link_says(&hub, "backing_off", &["takes no QoS 1", "`qos = 0`"]);
    cloud.until("it is told", |cloud| {
        let heard = cloud.heard();
        heard
            .iter()
            .any(|one| one.contains("ImplementationSpecific"))
    });
    cloud.greet(ReasonCode::Success, &[]);
    hub.until("it is let in", |hub| hub.metric(STATE, &[]) == CONNECTED);
    let mut is_first = true;
    cloud.decide(move |_, _| {
        if std::mem::take(&mut is_first) {
            Answer::Leave(ReasonCode::ServerBusy)
        } else {
            OK
        }
    });
    let mut a = hub.connect("edge-1/a").await;
    say(&mut a, "a", "0").await;
    nothing_waits(&hub);
    log_says(&hub, &["reason=\"refused\"", "server busy (0x89)", TEXT]);
    assert_eq!(cloud.kept(), ["0"]);
    assert_eq!(hub.metric(DROPPED, &[]), 0.0);
}

#[tokio::test]
async fn commands_that_fit_no_module_are_answered_with_the_reason() {
    let cloud = Cloud::start();
    cloud.send_down(
        "down/1",
        b"binary",
        &[Property::CorrelationData(&[0xff, 0])],
    );
    let many = vec![Property::User("n", "1"); 513];
    cloud.send_down("down/2", b"many", &many);
    let long = "x".repeat(41_000).leak();
    cloud.send_down("down/3", b"long", &[Property::User("n", long)]);
    cloud.send_down(
        "down/4",
        b"last",
        &[Property::User("n", "1"), Property::User("", "x")],
    );
    let subscribe = "subscribe = [{ filter = \"down/+\", input = \"b/commands\" }]\n";
    let setup = below(&cloud, subscribe);
    let hub = setup.start();
    let mut b = scene::receiver(&hub, "b").await;
    for (topic, body, more) in [
        ("down%2F1", "binary", ""),
        ("down%2F2", "many", "n=1&"),
        ("down%2F4", "last", "n=1&"),
    ] {
        let bag = format!("{more}mqtt-topic={topic}&%24.cdid=edge-1&%24.cmid=%24upstream");
        assert_eq!(command(&mut b).await, (bag, body.to_owned()));
    }
    cloud.until("all are acknowledged", |cloud| cloud.heard().len() == 5);
    let heard = cloud.heard();
    for (at, id, reason) in [
        (1, 1, "Success"),
        (2, 2, "Success"),
        (3, 3, "QuotaExceeded"),
        (4, 4, "Success"),
    ] {
        let puback = &heard[at];
        assert!(
            puback.starts_with("PubAck") && puback.contains(reason),
            "{puback}"
        );
        assert!(puback.contains(&format!("PacketId({id})")), "{puback}");
    }
    let labels = ["reason=\"properties_too_long\""];
    assert_eq!(hub.metric(DROPPED, &labels), 1.0);
    assert_eq!(hub.metric(DROPPED, &[]), 1.0);
    for topic in ["down/1", "down/2", "down/4"] {
        log_says(&hub, &["taken without a property", topic]);
    }
}

/// One after the other over WebSocket, with TLS and without.
#[tokio::test]
async fn a_hub_above_is_reached_in_websocket() {
    for (transport, version) in [("ws", "3.1.1"), ("wss", "5"), ("ws", "5")] {
        let routes = r#"{"in":
            "FROM /messages/* INTO BrokeredEndpoint(\"/modules/sink/inputs/in\")"}"#;
        let mut above = Setup::new(routes, &["a", "b", "c", "sink"]);
        for transport in ["ws", "wss"] {
            above.listeners +=
                &format!("[[listener]]\nbind = \"127.0.0.1:0\"\ntransport = \"{transport}\"\n");
        }
        let running = above.start();
        let mut sink = scene::receiver(&running, "sink").await;
        let mut setup = Setup::new(ROUTES, &MODULES);
        let name = "identities.json";
        std::fs::copy(above.path(name), setup.path(name)).unwrap();
        let server = format!("localhost:{}", running.address(transport).port());
        let more = format!(
            "version = \"{version}\"\nca = {:?}\n",
            above.path("certs/ca.pem")
        );
        setup.extra = upward::upstream("iothub", &[&server], transport, &more);
        let hub = setup.start();
        let mut clients = Vec::new();
        for module in MODULES {
            clients.push(hub.connect(&format!("edge-1/{module}")).await);
        }
        for number in 0..100 {
            for (client, module) in clients.iter_mut().zip(MODULES) {
                // Some are larger than a message of WebSocket is made.
                let body = format!("{module} {number} {}", "x".repeat(number * 400));
                say(client, module, &body).await;
            }
        }
        let mut due: BTreeMap<String, usize> = BTreeMap::new();
        for _ in 0..300 {
            let (_, body, _) = message_with_topic(&mut sink).await;
            let body = String::from_utf8(body).unwrap();
            let [module, number, rest] = body.split(' ').collect::<Vec<_>>()[..] else {
                panic!("{body}");
            };
            let next = due.entry(module.to_owned()).or_default();
            assert_eq!((number, rest.len()), (&*next.to_string(), *next * 400));
            *next += 1;
        }
        nothing_waits(&hub);
        assert_eq!(hub.metric(DROPPED, &[]), 0.0);
        assert_eq!(hub.metric(upward::FAILURES, &[]), 0.0);
    }
}

#[tokio::test]
async fn with_qos_0_a_cloud_that_takes_no_more_is_enough() {
    let cloud = Cloud::start();
    let qos = Property::MaximumQos(edgehub::mqtt::QoS::AtMostOnce);
    cloud.greet(ReasonCode::Success, &[qos]);
    let setup = below(&cloud, "qos = 0\n");
    let hub = setup.start();
    let mut a = hub.connect("edge-1/a").await;
    for number in 0..10 {
        say(&mut a, "a", &number.to_string()).await;
    }
    cloud.until("all came", |cloud| cloud.kept().len() == 10);
    let topic = "devices/edge-1/modules/a/messages/events/";
    assert!(cloud.came().iter().all(|one| one.topic == topic));
    nothing_waits(&hub);
}
