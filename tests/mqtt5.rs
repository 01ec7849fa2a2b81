//! Modules that speak MQTT 5, beside those of 3.1.1, against the real binary.
#![allow(missing_docs, clippy::unwrap_used, clippy::indexing_slicing)]

mod common;

use std::time::Instant;

use edgehub::client::Packet;
use edgehub::mqtt::v5::{Connect, FromClient, Place, Properties, Property, ReasonCode, Will};
use edgehub::mqtt::{ConnectReturnCode, QoS};

use common::five::{Five, Got};
use common::{End, Hub, Setup, inputs, message_with_topic, output, publish, receive, scene};

const MODULES: [&str; 3] = ["a", "b", "c"];
const ROUTES: &str = r#"{
"warm":"FROM /messages/modules/a/outputs/out WHERE temp > '30' INTO BrokeredEndpoint(\"/modules/b/inputs/warm\")",
"all":"FROM /messages/modules/a/outputs/out INTO BrokeredEndpoint(\"/modules/c/inputs/all\")",
"will":"FROM /messages/* WHERE MessageType = 'Will' INTO BrokeredEndpoint(\"/modules/c/inputs/wills\")"}"#;
/// Where a module's messages go when what they are for is said beside the topic.
const EVENTS: &str = "devices/edge-1/modules/a/messages/events/";

fn temp(value: &str) -> [Property<'_>; 2] {
    [Property::User("$.on", "out"), Property::User("temp", value)]
}

fn reason(got: &Got) -> ReasonCode {
    match got {
        Got::ConnAck { reason, .. } => *reason,
        other => panic!("{other:?} instead of a CONNACK"),
    }
}

fn is_present(got: &Got) -> bool {
    match got {
        Got::ConnAck {
            session_present, ..
        } => *session_present,
        other => panic!("{other:?} instead of a CONNACK"),
    }
}

/// A module of MQTT 5 that subscribed to its inputs.
async fn receiver(hub: &Hub, module: &str) -> Five {
    let (mut five, connack) = Five::module(hub, module, &[Property::SessionExpiry(60)]).await;
    assert_eq!(reason(&connack), ReasonCode::Success);
    assert_eq!(
        five.subscribe(&inputs(module)).await,
        ReasonCode::GrantedQos1
    );
    five
}

#[tokio::test]
async fn properties_beside_the_topic_count_like_those_in_it_for_both_versions() {
    let setup = Setup::new(ROUTES, &MODULES);
    let hub = setup.start();
    let mut b = receiver(&hub, "b").await;
    let mut c = scene::receiver(&hub, "c").await;
    let (mut a, _) = Five::module(&hub, "a", &[]).await;
    let typed = [
        &temp("31")[..],
        &[
            Property::ContentType("application/json"),
            Property::CorrelationData(b"7"),
            // What the connection says, nobody else may.
            Property::User("$.cmid", "c"),
        ],
    ]
    .concat();
    assert_eq!(a.publish(EVENTS, b"one", &typed).await, ReasonCode::Success);
    let (topic, payload) = b.message().await;
    assert_eq!(payload, b"one");
    let (_, bag) = topic.rsplit_once('/').unwrap();
    for part in [
        "temp=31",
        "%24.ct=application%2Fjson",
        "%24.cid=7",
        "%24.cmid=a",
    ] {
        assert!(bag.split('&').any(|pair| pair == part), "{part} in {topic}");
    }
    let (topic, payload, _) = message_with_topic(&mut c).await;
    assert_eq!(
        (topic.rsplit('/').next().unwrap(), &payload[..]),
        (bag, &b"one"[..])
    );
    // The same topic with other properties is routed by those.
    assert_eq!(
        a.publish(EVENTS, b"two", &temp("29")).await,
        ReasonCode::Success
    );
    let in_topic = output("a", "out", "temp=32");
    assert_eq!(
        a.publish(&in_topic, b"three", &[]).await,
        ReasonCode::Success
    );
    assert_eq!(b.message().await.1, b"three");
    for expected in ["two", "three"] {
        assert_eq!(message_with_topic(&mut c).await.1, expected.as_bytes());
    }
    // And a message of 3.1.1 reaches a module of MQTT 5.
    drop(a);
    let mut a = hub.connect("edge-1/a").await;
    publish(&mut a, &in_topic, b"four").await;
    assert_eq!(b.message().await.1, b"four");
}

#[tokio::test]
async fn the_sender_is_told_what_became_of_a_message() {
    let mut setup = Setup::new(ROUTES, &MODULES);
    setup.extra = "[limits]\nendpoint_max_messages = 2\nmax_message_bytes = \"10KB\"\n".to_owned();
    let hub = setup.start();
    let (mut a, connack) = Five::module(&hub, "a", &[]).await;
    let Got::ConnAck { properties, .. } = connack else {
        panic!("{connack:?}");
    };
    assert!(
        properties.contains(&"TopicAliasMaximum(10)".to_owned()),
        "{properties:?}"
    );
    let out = output("a", "out", "");
    for (topic, bytes, told) in [
        (
            &*output("a", "nowhere", ""),
            1,
            ReasonCode::NoMatchingSubscribers,
        ),
        (&*output("b", "out", ""), 1, ReasonCode::NotAuthorized),
        ("plain/topic", 1, ReasonCode::NotAuthorized),
        (
            "devices/edge-1/modules/a/messages/events/%zz=1",
            1,
            ReasonCode::TopicNameInvalid,
        ),
        (&out, 10_001, ReasonCode::QuotaExceeded),
        (&out, 1, ReasonCode::Success),
        (&out, 1, ReasonCode::Success),
        // The queue is full now, and nobody waits.
        (&out, 1, ReasonCode::QuotaExceeded),
    ] {
        let payload = vec![b'x'; bytes];
        assert_eq!(a.publish(topic, &payload, &[]).await, told, "{topic}");
    }
    let dropped = |reason: &str| {
        let reason = format!("reason=\"{reason}\"");
        hub.metric("edgehub_messages_dropped_total", &[&reason])
    };
    assert_eq!(dropped("queue_full"), 1.0);
    assert_eq!(dropped("other_identity"), 1.0);
    assert_eq!(dropped("too_large"), 1.0);
    let mut c = receiver(&hub, "c").await;
    for _ in 0..2 {
        assert_eq!(c.message().await.1, b"x");
    }
    hub.until("there is room", |hub| scene::queue(hub, "c/all").0 == 0);
    assert_eq!(a.publish(&out, b"again", &[]).await, ReasonCode::Success);
    assert_eq!(c.message().await.1, b"again");
}

#[tokio::test]
async fn a_session_is_kept_as_long_as_the_client_wants() {
    for end in End::ALL {
        let setup = Setup::new(ROUTES, &MODULES);
        let hub = setup.start();
        let c = receiver(&hub, "c").await;
        c.leave(ReasonCode::Success, &[]).await;
        hub.end(end);
        let hub = setup.start();
        let forever = [Property::SessionExpiry(u32::MAX)];
        let (mut c, connack) = Five::module(&hub, "c", &forever).await;
        assert!(is_present(&connack), "{connack:?}");
        // Its subscription is still there.
        let (mut a, _) = Five::module(&hub, "a", &[]).await;
        let out = output("a", "out", "");
        assert_eq!(a.publish(&out, b"kept", &[]).await, ReasonCode::Success);
        assert_eq!(c.message().await.1, b"kept");
        // It changes its mind.
        c.leave(ReasonCode::Success, &[Property::SessionExpiry(0)])
            .await;
        let (c, connack) = Five::module(&hub, "c", &forever).await;
        assert!(!is_present(&connack), "{connack:?}");
        c.leave(ReasonCode::Success, &[]).await;
        // Continued without being kept, it ends with its connection.
        let (c, connack) = Five::module(&hub, "c", &[]).await;
        assert!(is_present(&connack), "{connack:?}");
        drop(c);
        hub.until("c is gone", |hub| {
            hub.metric("edgehub_client_disconnect_total", &["edge-1/c"]) >= 3.0
        });
        let (c, connack) = Five::module(&hub, "c", &forever).await;
        assert!(!is_present(&connack), "{connack:?}");
        c.leave(ReasonCode::Success, &[]).await;
        let (_, connack) = Five::login(&hub, "c", true, &forever).await;
        assert!(!is_present(&connack), "{connack:?}");
    }
}

#[tokio::test]
async fn the_end_of_a_connection_has_its_reason() {
    let setup = Setup::new(ROUTES, &MODULES);
    let hub = setup.start();
    let (mut first, _) = Five::module(&hub, "a", &[]).await;
    let (mut second, connack) = Five::module(&hub, "a", &[]).await;
    assert_eq!(reason(&connack), ReasonCode::Success);
    assert_eq!(
        first.receive().await,
        Got::Disconnect(ReasonCode::SessionTakenOver)
    );
    assert_eq!(first.receive().await, Got::Closed);
    assert_eq!(hub.terminate(), Some(0));
    assert_eq!(
        second.receive().await,
        Got::Disconnect(ReasonCode::ServerShuttingDown)
    );
}

#[tokio::test]
async fn a_login_that_is_refused_has_its_reason_in_either_version() {
    let setup = Setup::new(ROUTES, &MODULES);
    let hub = setup.start();
    let connect = Connect {
        clean_start: true,
        keep_alive_seconds: 60,
        properties: Properties::EMPTY,
        client_id: "edge-1/a",
        will: None,
        username: Some("nonsense"),
        password: Some(b"wrong"),
    };
    let mut five = Five::open(hub.tcp()).await;
    five.send(&FromClient::Connect(connect)).await;
    assert_eq!(
        reason(&five.receive().await),
        ReasonCode::BadUserNameOrPassword
    );
    assert_eq!(five.receive().await, Got::Closed);
    let mut hello = hub.hello("edge-1/a");
    hello.username = Some("nonsense".to_owned());
    let mut client = edgehub::client::Client::tcp(hub.tcp()).await.unwrap();
    let refused = client.connect(&hello).await.unwrap_err();
    let code = format!("{:?}", ConnectReturnCode::BadUserNameOrPassword);
    assert!(format!("{refused:?}").contains(&code), "{refused:?}");
}

#[tokio::test]
async fn an_anonymous_client_is_told_the_name_it_got() {
    let mut setup = Setup::new(ROUTES, &MODULES);
    setup.listeners += "anonymous = true\n";
    let hub = setup.start();
    let mut five = Five::open(hub.tcp()).await;
    let expiry = common::five::list(Place::Connect, &[Property::SessionExpiry(60)]);
    five.send(&FromClient::Connect(Connect {
        clean_start: false,
        keep_alive_seconds: 60,
        properties: Properties::parse(&expiry, Place::Connect).unwrap(),
        client_id: "",
        will: None,
        username: None,
        password: None,
    }))
    .await;
    let Got::ConnAck { properties, .. } = five.receive().await else {
        panic!("no CONNACK");
    };
    let has = |start: &str| properties.iter().any(|one| one.starts_with(start));
    assert!(has("AssignedClientId(\"#"), "{properties:?}");
}

#[tokio::test]
async fn a_message_expires_when_its_sender_says() {
    let setup = Setup::new(ROUTES, &MODULES);
    let hub = setup.start();
    let (mut a, _) = Five::module(&hub, "a", &[]).await;
    let out = output("a", "out", "");
    let soon = [Property::MessageExpiry(1)];
    assert_eq!(a.publish(&out, b"short", &soon).await, ReasonCode::Success);
    assert_eq!(a.publish(&out, b"long", &[]).await, ReasonCode::Success);
    let began = Instant::now();
    hub.until("its time passes", |_| began.elapsed().as_millis() > 2100);
    let mut c = receiver(&hub, "c").await;
    assert_eq!(c.message().await.1, b"long");
    hub.until("it is counted", |hub| {
        hub.metric("edgehub_messages_dropped_total", &["ttl_expiry"]) == 1.0
    });
}

#[tokio::test]
async fn what_the_client_cannot_take_is_not_sent_and_counted() {
    let setup = Setup::new(ROUTES, &MODULES);
    let hub = setup.start();
    let bounds = [
        Property::MaximumPacketSize(300.try_into().unwrap()),
        Property::ReceiveMaximum(1.try_into().unwrap()),
    ];
    let (mut c, _) = Five::module(&hub, "c", &bounds).await;
    assert_eq!(c.subscribe(&inputs("c")).await, ReasonCode::GrantedQos1);
    let (mut a, _) = Five::module(&hub, "a", &[]).await;
    let out = output("a", "out", "");
    for payload in [&[b'x'; 400][..], b"one", b"two"] {
        assert_eq!(a.publish(&out, payload, &[]).await, ReasonCode::Success);
    }
    let got = c.receive().await;
    assert!(
        matches!(&got, Got::Publish { payload, .. } if payload == b"one"),
        "{got:?}"
    );
    let dropped = hub.metric("edgehub_messages_dropped_total", &["too_large_for_client"]);
    assert_eq!(dropped, 1.0);
    hub.until("one is in flight", |hub| {
        scene::in_flight(hub, "c/all") == 1
    });
    drop(c);
    // It was not acknowledged: it comes again to another connection.
    let mut c = receiver(&hub, "c").await;
    assert_eq!(c.message().await.1, b"one");
    assert_eq!(c.message().await.1, b"two");
}

#[tokio::test]
async fn the_will_is_published_unless_the_leave_was_normal() {
    let setup = Setup::new(ROUTES, &MODULES);
    let hub = setup.start();
    let mut c = scene::receiver(&hub, "c").await;
    let told = [Property::User("why", "power"), Property::WillDelay(0)];
    let told = common::five::list(Place::Will, &told);
    for (leave, payload) in [
        (Some(ReasonCode::Success), "void"),
        (Some(ReasonCode::DisconnectWithWill), "asked for"),
        (None, "gone"),
    ] {
        let hello = hub.hello("edge-1/a");
        let mut a = Five::open(hub.tcp()).await;
        a.send(&FromClient::Connect(Connect {
            clean_start: true,
            keep_alive_seconds: 60,
            properties: Properties::EMPTY,
            client_id: &hello.client_id,
            will: Some(Will {
                properties: Properties::parse(&told, Place::Will).unwrap(),
                topic: EVENTS,
                payload: payload.as_bytes(),
                qos: QoS::AtLeastOnce,
                retain: true,
            }),
            username: hello.username.as_deref(),
            password: hello.password.as_ref().map(|password| password.as_bytes()),
        }))
        .await;
        assert_eq!(reason(&a.receive().await), ReasonCode::Success);
        match leave {
            Some(reason) => a.leave(reason, &[]).await,
            None => drop(a),
        }
    }
    for expected in ["asked for", "gone"] {
        let got = receive(&mut c).await.unwrap();
        let Packet::Publish { payload, topic, .. } = got else {
            panic!("{got:?}");
        };
        assert_eq!(payload, expected.as_bytes());
        for part in ["why=power", "mqtt-retain=true", "MessageType=Will"] {
            assert!(topic.contains(part), "{part} in {topic}");
        }
    }
}

#[tokio::test]
async fn whoever_waits_for_room_gets_it_before_one_who_does_not() {
    let routes = r#"{"all":"FROM /messages/* INTO BrokeredEndpoint(\"/modules/c/inputs/all\")"}"#;
    let mut setup = Setup::new(routes, &MODULES);
    setup.extra = "[limits]\nendpoint_max_messages = 16\n".to_owned();
    let hub = setup.start();
    let mut c = hub.connect("edge-1/c").await;
    let (mut b, _) = Five::module(&hub, "b", &[]).await;
    let mut a = hub.connect("edge-1/a").await;
    for _ in 0..16 {
        publish(&mut a, &output("a", "out", ""), b"x").await;
    }
    let topic = output("a", "out", "");
    let waiting = a.publish(&topic, QoS::AtLeastOnce, b"x").await.unwrap();
    let out = output("b", "out", "");
    assert_eq!(b.publish(&out, b"y", &[]).await, ReasonCode::QuotaExceeded);
    c.subscribe(&inputs("c")).await.unwrap();
    let mut taken = Vec::new();
    for _ in 0..16 {
        let got = receive(&mut c).await.unwrap();
        let Packet::Publish { packet_id, .. } = got else {
            panic!("{got:?}");
        };
        taken.push(packet_id.unwrap());
    }
    c.acknowledge(taken[0]).await.unwrap();
    hub.until("one was taken", |hub| scene::queue(hub, "c/all").0 == 15);
    // There is room for one message, and somebody waits for more.
    assert_eq!(b.publish(&out, b"y", &[]).await, ReasonCode::QuotaExceeded);
    c.acknowledge(taken[1]).await.unwrap();
    let got = receive(&mut a).await.unwrap();
    assert_eq!(got, Packet::PubAck(waiting.unwrap()));
    assert_eq!(b.publish(&out, b"y", &[]).await, ReasonCode::Success);
}

#[tokio::test]
async fn with_drop_oldest_nothing_is_refused() {
    let mut setup = Setup::new(ROUTES, &MODULES);
    setup.extra = "[limits]\nmax_message_bytes = \"200KB\"\n\
        [store]\nmax_bytes = \"16MiB\"\nwhen_full = \"drop-oldest\"\n"
        .to_owned();
    let hub = setup.start();
    let (mut a, _) = Five::module(&hub, "a", &[]).await;
    let payload = vec![b'x'; 100_000];
    for _ in 0..300 {
        let told = a.publish(&output("a", "out", ""), &payload, &[]).await;
        assert_eq!(told, ReasonCode::Success);
    }
}

#[tokio::test]
async fn what_is_sent_again_keeps_to_what_the_client_takes_now() {
    let setup = Setup::new(ROUTES, &MODULES);
    let hub = setup.start();
    let mut c = receiver(&hub, "c").await;
    let (mut a, _) = Five::module(&hub, "a", &[]).await;
    let out = output("a", "out", "");
    let large = [b'x'; 400];
    for payload in [&b"one"[..], &large, b"two"] {
        assert_eq!(a.publish(&out, payload, &[]).await, ReasonCode::Success);
        assert!(matches!(c.receive().await, Got::Publish { .. }));
    }
    drop(c);
    let now = [
        Property::SessionExpiry(60),
        Property::ReceiveMaximum(1.try_into().unwrap()),
        Property::MaximumPacketSize(300.try_into().unwrap()),
    ];
    let (mut c, connack) = Five::module(&hub, "c", &now).await;
    assert!(is_present(&connack));
    for expected in [b"one", b"two"] {
        hub.until("one is in flight", |hub| {
            scene::in_flight(hub, "c/all") == 1
        });
        let (_, payload) = c.message().await;
        assert_eq!(payload, expected);
    }
    let dropped = hub.metric("edgehub_messages_dropped_total", &["too_large_for_client"]);
    assert_eq!(dropped, 1.0);
}

#[tokio::test]
async fn a_session_that_is_no_longer_to_be_kept_does_not_outlive_a_crash() {
    let setup = Setup::new(ROUTES, &MODULES);
    let hub = setup.start();
    drop(receiver(&hub, "c").await);
    let (_c, connack) = Five::module(&hub, "c", &[]).await;
    assert!(is_present(&connack));
    // A SUBACK says that whatever was to be written before it is on disk.
    drop(receiver(&hub, "b").await);
    hub.end(End::Killed);
    let hub = setup.start();
    let (_, connack) = Five::module(&hub, "c", &[]).await;
    assert!(!is_present(&connack), "{connack:?}");
}

#[tokio::test]
async fn correlation_data_that_is_no_text_is_refused() {
    let setup = Setup::new(ROUTES, &MODULES);
    let hub = setup.start();
    let (mut a, _) = Five::module(&hub, "a", &[]).await;
    let bytes = [Property::CorrelationData(b"\xff\x00")];
    let told = a.publish(&output("a", "out", ""), b"x", &bytes).await;
    assert_eq!(told, ReasonCode::ImplementationSpecific);
}
