//! How long sessions are kept, and wills that wait, against the real binary.
#![allow(missing_docs, clippy::unwrap_used, clippy::indexing_slicing)]

mod common;

use std::time::{Duration, Instant};

use edgehub::client::{Client, Hello, Packet};
use edgehub::mqtt::v5::{Connect, FromClient, Place, Properties, Property, ReasonCode, Will};
use edgehub::mqtt::{PacketId, QoS};

use common::five::{Five, Got, list};
use common::{End, Hub, Setup, wire};

const FOREVER: [Property<'_>; 1] = [Property::SessionExpiry(u32::MAX)];

fn open() -> Setup {
    Setup::open("{}", &["a"])
}

fn is_present(connack: &Got) -> bool {
    match connack {
        Got::ConnAck {
            session_present, ..
        } => *session_present,
        other => panic!("{other:?}"),
    }
}

/// Sessions that the hub has.
fn sessions(hub: &Hub) -> usize {
    hub.status()["clients"].as_array().unwrap().len()
}

/// A client with a will that waits.
async fn with_will(hub: &Hub, expiry_s: u32, delay_s: u32) -> Five {
    let expiry = list(Place::Connect, &[Property::SessionExpiry(expiry_s)]);
    let delay = list(Place::Will, &[Property::WillDelay(delay_s)]);
    let mut five = Five::open(hub.tcp()).await;
    five.send(&FromClient::Connect(Connect {
        clean_start: false,
        keep_alive_seconds: 60,
        properties: Properties::parse(&expiry, Place::Connect).unwrap(),
        client_id: "sensor",
        will: Some(Will {
            properties: Properties::parse(&delay, Place::Will).unwrap(),
            topic: "gone",
            payload: b"x",
            qos: QoS::AtLeastOnce,
            retain: false,
        }),
        username: None,
        password: None,
    }))
    .await;
    assert!(matches!(
        five.receive().await,
        Got::ConnAck {
            reason: ReasonCode::Success,
            ..
        }
    ));
    five
}

async fn watcher(hub: &Hub) -> Five {
    let (mut watcher, _) = Five::anonymous(hub, "watcher", true, &[]).await;
    watcher.subscribe("gone").await;
    watcher
}

#[tokio::test]
async fn a_session_is_kept_for_as_long_as_was_asked() {
    let setup = open();
    let hub = setup.start();
    let short = [Property::SessionExpiry(2)];
    let (mut five, connack) = Five::anonymous(&hub, "short", false, &short).await;
    assert!(!is_present(&connack));
    five.subscribe("a").await;
    drop(five);
    let (five, connack) = Five::anonymous(&hub, "short", false, &short).await;
    assert!(is_present(&connack));
    let left = Instant::now();
    drop(five);
    hub.until("it has expired", |hub| sessions(hub) == 0);
    assert!(left.elapsed() >= Duration::from_secs(2));
    let (five, connack) = Five::anonymous(&hub, "short", false, &[]).await;
    assert!(!is_present(&connack));
    five.leave(ReasonCode::Success, &[]).await;
}

/// In 3.1.1, where a refusal closes the connection: what comes again is acknowledged.
#[tokio::test]
async fn a_refused_publish_does_not_keep_a_session_for_ever() {
    let setup = open();
    let hub = setup.start();
    let hello = Hello {
        client_id: "stubborn".to_owned(),
        username: None,
        password: None,
        clean_session: false,
        keep_alive_seconds: 0,
    };
    let refused = wire::publish("$no/such", 1, b"x");
    for closes in [true, false] {
        let mut client = Client::tcp(hub.tcp()).await.unwrap();
        client.connect(&hello).await.unwrap();
        client.send_bytes(&refused).await.unwrap();
        match client.receive().await {
            Err(_) => assert!(closes),
            Ok(packet) => {
                assert!(!closes);
                assert_eq!(packet, Packet::PubAck(PacketId::new(1).unwrap()));
            }
        }
    }
    let dropped = "edgehub_messages_dropped_total";
    assert_eq!(hub.metric(dropped, &["reason=\"refused_again\""]), 1.0);
}

#[tokio::test]
async fn it_expires_over_restarts_too() {
    for end in End::ALL {
        let setup = open();
        let hub = setup.start();
        for (id, seconds) in [("short", 2), ("long", 1000), ("ever", u32::MAX)] {
            let kept = [Property::SessionExpiry(seconds)];
            let (mut five, _) = Five::anonymous(&hub, id, false, &kept).await;
            five.subscribe("a").await;
        }
        hub.until("all are gone", |hub| {
            hub.metric("edgehub_connected_clients", &[]) == 0.0
        });
        hub.end(end);
        let hub = setup.start();
        hub.until("one has expired", |hub| sessions(hub) == 2);
        for id in ["long", "ever"] {
            let (_, connack) = Five::anonymous(&hub, id, false, &[]).await;
            assert!(is_present(&connack), "{id}");
        }
    }
}

#[tokio::test]
async fn a_will_waits_for_its_delay_or_the_sessions_end() {
    let setup = open();
    let hub = setup.start();
    let mut watcher = watcher(&hub).await;
    for (expiry_s, delay_s) in [(1000, 2), (2, 1000)] {
        let began = Instant::now();
        drop(with_will(&hub, expiry_s, delay_s).await);
        assert_eq!(watcher.message().await.0, "gone");
        let took = began.elapsed();
        assert!(took >= Duration::from_secs(2), "{took:?}");
        assert!(took < Duration::from_secs(10), "{took:?}");
    }
}

#[tokio::test]
async fn a_will_is_not_sent_if_the_client_comes_back_in_time() {
    let setup = open();
    let hub = setup.start();
    let mut watcher = watcher(&hub).await;
    drop(with_will(&hub, 1000, 3).await);
    hub.until("it is gone", |hub| {
        hub.metric("edgehub_connected_clients", &[]) == 1.0
    });
    let (sensor, connack) =
        Five::anonymous(&hub, "sensor", false, &[Property::SessionExpiry(1000)]).await;
    assert!(is_present(&connack));
    let began = Instant::now();
    hub.until("its time passes", |_| began.elapsed().as_secs() > 5);
    let (mut marker, _) = Five::anonymous(&hub, "marker", true, &[]).await;
    marker.publish("gone", b"marker", &[]).await;
    assert_eq!(watcher.message().await.1, b"marker");
    sensor.leave(ReasonCode::Success, &[]).await;
    // A clean start ends the session, and with it the wait.
    drop(with_will(&hub, 1000, 1000).await);
    hub.until("it is gone", |hub| {
        hub.metric("edgehub_connected_clients", &[]) == 2.0
    });
    let (_sensor, connack) = Five::anonymous(&hub, "sensor", true, &[]).await;
    assert!(!is_present(&connack));
    assert_eq!(watcher.message().await.1, b"x");
    // Without a session to wait in, a will goes at once.
    drop(with_will(&hub, 0, 1000).await);
    assert_eq!(watcher.message().await.1, b"x");
}

#[tokio::test]
async fn there_is_an_end_to_sessions_and_to_what_they_leave_on_disk() {
    let mut setup = open();
    setup.extra += "[limits]\nmax_sessions = 20\n[store]\nsegment_bytes = \"4MiB\"\n\
        max_bytes = \"256MiB\"\n";
    let hub = setup.start();
    let (mut sender, _) = Five::anonymous(&hub, "sender", true, &[]).await;
    let short = [Property::SessionExpiry(1)];
    for round in 0..3 {
        for n in 0..10 {
            let id = format!("{round}-{n}");
            let (mut five, _) = Five::anonymous(&hub, &id, true, &short).await;
            five.subscribe("fill").await;
        }
        let payload = vec![b'x'; 100_000];
        let told = sender.publish("fill", &payload, &[]).await;
        assert_eq!(told, ReasonCode::Success);
        hub.until("they have expired", |hub| sessions(hub) == 1);
    }
    // 64 MiB through 4 MiB segments: what those sessions had is gone from the disk.
    let (mut last, _) = Five::anonymous(&hub, "last", true, &[Property::SessionExpiry(1000)]).await;
    last.subscribe("through").await;
    let payload = vec![b'x'; 500_000];
    for _ in 0..128 {
        let told = sender.publish("through", &payload, &[]).await;
        assert_eq!(told, ReasonCode::Success);
        assert_eq!(last.message().await.1.len(), payload.len());
    }
    hub.until("their queues are gone", |hub| {
        let queues = &hub.status()["queues"];
        queues.as_array().unwrap().len() <= 2
    });
    for n in 0..18 {
        let (_, connack) = Five::anonymous(&hub, &format!("full-{n}"), true, &FOREVER).await;
        assert!(!is_present(&connack));
    }
    let (_, connack) = Five::anonymous(&hub, "too many", true, &FOREVER).await;
    assert!(
        matches!(
            connack,
            Got::ConnAck {
                reason: ReasonCode::QuotaExceeded,
                ..
            }
        ),
        "{connack:?}"
    );
    // One that is not kept may come in, and one that is there already.
    let (_, connack) = Five::anonymous(&hub, "not kept", true, &[]).await;
    assert!(!is_present(&connack));
    let (_, connack) = Five::anonymous(&hub, "full-3", false, &FOREVER).await;
    assert!(is_present(&connack));
}

#[tokio::test]
async fn what_waited_for_an_ended_session_is_nobodys_after_a_crash() {
    let setup = open();
    let hub = setup.start();
    let (mut sender, _) = Five::anonymous(&hub, "sender", true, &[]).await;
    for id in ["comes again", "does not"] {
        let (mut five, _) = Five::anonymous(&hub, id, true, &FOREVER).await;
        five.subscribe("a").await;
    }
    hub.until("they are gone", |hub| {
        hub.metric("edgehub_connected_clients", &[]) == 1.0
    });
    for _ in 0..3 {
        assert_eq!(sender.publish("a", b"old", &[]).await, ReasonCode::Success);
    }
    let (gone, _) = Five::anonymous(&hub, "does not", true, &[]).await;
    let (mut five, connack) = Five::anonymous(&hub, "comes again", true, &FOREVER).await;
    assert!(!is_present(&connack));
    five.subscribe("a").await;
    // Its SUBACK says that all of that is on disk, but for what the log notes later.
    drop((gone, five));
    hub.end(End::Killed);
    let hub = setup.start();
    let (mut five, connack) = Five::anonymous(&hub, "comes again", false, &FOREVER).await;
    assert!(is_present(&connack));
    let (mut sender, _) = Five::anonymous(&hub, "sender", true, &[]).await;
    assert_eq!(sender.publish("a", b"new", &[]).await, ReasonCode::Success);
    assert_eq!(five.message().await.1, b"new");
    hub.until("nothing waits for anybody", |hub| {
        hub.metric("edgehub_queue_length", &["$session"]) == 0.0
    });
}

#[tokio::test]
async fn topics_go_as_numbers_to_clients_that_take_them() {
    let setup = open();
    let hub = setup.start();
    let takes = [Property::TopicAliasMaximum(2)];
    let (mut receiver, _) = Five::anonymous(&hub, "receiver", true, &takes).await;
    receiver.subscribe("sensors/#").await;
    let (mut sender, _) = Five::anonymous(&hub, "sender", true, &[]).await;
    let user = [Property::User("n", "1")];
    for (topic, sent, alias) in [
        ("sensors/1", "sensors/1", 1),
        ("sensors/1", "", 1),
        ("sensors/2", "sensors/2", 2),
        ("sensors/1", "", 1),
    ] {
        assert_eq!(
            sender.publish(topic, b"x", &user).await,
            ReasonCode::Success
        );
        let got = receiver.receive().await;
        let Got::Publish {
            topic, properties, ..
        } = &got
        else {
            panic!("{got:?}");
        };
        let expected = [
            "User(\"n\", \"1\")".to_owned(),
            format!("TopicAlias({alias})"),
        ];
        assert_eq!((&**topic, &properties[..]), (sent, &expected[..]));
        receiver.acknowledge(&got).await;
    }
}
