//! The plain topic space, in both versions, against the real binary.
#![allow(missing_docs, clippy::unwrap_used, clippy::indexing_slicing)]

mod common;

use edgehub::mqtt::QoS;
use edgehub::mqtt::v5::{Ack, FromClient, Property, ReasonCode};
use edgehub::mqtt::{PacketId, SubAckCode};

use common::five::{Five, Got};
use common::{End, Hub, Setup, inputs, output, scene};

const ROUTES: &str = r#"{
"all":"FROM /messages/modules/a/outputs/out INTO BrokeredEndpoint(\"/modules/c/inputs/all\")"}"#;
const KEPT: [Property<'_>; 1] = [Property::SessionExpiry(u32::MAX)];
const ONCE: (QoS, bool, bool) = (QoS::ExactlyOnce, false, false);

/// A hub on which everybody may use all plain topics.
fn open() -> Setup {
    Setup::open(ROUTES, &["a", "b", "c"])
}

async fn client(hub: &Hub, id: &str) -> Five {
    let (five, connack) = Five::anonymous(hub, id, true, &[]).await;
    assert!(
        matches!(
            connack,
            Got::ConnAck {
                reason: ReasonCode::Success,
                ..
            }
        ),
        "{connack:?}"
    );
    five
}

fn id(id: u16) -> PacketId {
    PacketId::new(id).unwrap()
}

async fn exactly_once(sender: &mut Five, topic: &str, payload: &[u8]) {
    sender.publish_as(topic, ONCE, payload, &[]).await;
    let Got::PubRec(packet_id, ReasonCode::Success) = sender.receive().await else {
        panic!("no PUBREC");
    };
    let release = FromClient::PubRel(Ack::success(id(packet_id)));
    sender.send(&release).await;
    assert_eq!(sender.receive().await, Got::PubComp(packet_id));
}

#[tokio::test]
async fn the_lower_qos_of_both_counts() {
    let setup = open();
    let hub = setup.start();
    let all = [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce];
    let mut sender = client(&hub, "sender").await;
    for wanted in all {
        let mut receiver = client(&hub, "receiver").await;
        let granted = receiver.subscribe_as("a/+/c", wanted as u8, &[]).await;
        assert_eq!(granted.to_byte(), wanted as u8);
        for sent in all {
            let payload = format!("{sent:?}");
            sender
                .publish_as("a/b/c", (sent, false, false), payload.as_bytes(), &[])
                .await;
            match sent {
                QoS::AtMostOnce => {}
                QoS::AtLeastOnce => {
                    let got = sender.receive().await;
                    assert!(
                        matches!(got, Got::PubAck(_, ReasonCode::Success)),
                        "{got:?}"
                    );
                }
                QoS::ExactlyOnce => {
                    let Got::PubRec(packet_id, ReasonCode::Success) = sender.receive().await else {
                        panic!("no PUBREC");
                    };
                    let release = FromClient::PubRel(Ack::success(id(packet_id)));
                    sender.send(&release).await;
                    assert_eq!(sender.receive().await, Got::PubComp(packet_id));
                }
            }
            let got = receiver.receive().await;
            let Got::Publish {
                topic,
                qos,
                retain,
                payload: body,
                packet_id,
                ..
            } = got
            else {
                panic!("{got:?}");
            };
            assert_eq!((&*topic, qos, retain), ("a/b/c", sent.min(wanted), false));
            assert_eq!(body, payload.as_bytes());
            if let Some(packet_id) = packet_id {
                let answer = match qos {
                    QoS::ExactlyOnce => FromClient::PubRec(Ack::success(id(packet_id))),
                    _ => FromClient::PubAck(Ack::success(id(packet_id))),
                };
                receiver.send(&answer).await;
                if qos == QoS::ExactlyOnce {
                    assert_eq!(receiver.receive().await, Got::PubRel(packet_id));
                    receiver
                        .send(&FromClient::PubComp(Ack::success(id(packet_id))))
                        .await;
                }
            }
        }
        receiver.leave(ReasonCode::Success, &[]).await;
    }
}

#[tokio::test]
async fn without_a_rule_nothing_is_allowed() {
    let mut setup = Setup::new(ROUTES, &["a", "b", "c"]);
    setup.listeners += "anonymous = true\n";
    setup.extra = "[[authorization]]\n\
        identities = [\"{{anonymous}}\"]\n\
        allow = [{ operations = [\"mqtt:publish\"], resources = [\"open/#\"] },\n\
            { operations = [\"mqtt:subscribe\"],\n\
              resources = [\"own/{{mqtt:client_id}}/#\"] }]\n\
        deny = [{ operations = [\"mqtt:publish\"], resources = [\"open/secret\"] }]\n\
        [[authorization]]\n\
        identities = [\"edge-1/b\"]\n\
        deny = [{ operations = [\"mqtt:connect\"] }]\n"
        .to_owned();
    let hub = setup.start();
    let mut one = client(&hub, "one").await;
    for (topic, told) in [
        ("open/a", ReasonCode::NoMatchingSubscribers),
        ("open/secret", ReasonCode::NotAuthorized),
        ("closed", ReasonCode::NotAuthorized),
        ("$SYS/a", ReasonCode::NotAuthorized),
        (
            "devices/edge-1/modules/a/messages/events/",
            ReasonCode::NotAuthorized,
        ),
    ] {
        assert_eq!(one.publish(topic, b"x", &[]).await, told, "{topic}");
    }
    for (filter, told) in [
        ("own/one/a", ReasonCode::GrantedQos1),
        ("own/one/#", ReasonCode::GrantedQos1),
        ("$share/g/own/one/+", ReasonCode::GrantedQos1),
        ("own/two/a", ReasonCode::NotAuthorized),
        ("own/+/a", ReasonCode::NotAuthorized),
        ("#", ReasonCode::NotAuthorized),
        (
            "$share/g/devices/edge-1/modules/a/#",
            ReasonCode::NotAuthorized,
        ),
        (
            "devices/edge-1/modules/a/inputs/#",
            ReasonCode::NotAuthorized,
        ),
        ("$iothub/#", ReasonCode::NotAuthorized),
    ] {
        assert_eq!(one.subscribe(filter).await, told, "{filter}");
    }
    // A wildcard as a client id stands for itself.
    let mut plus = client(&hub, "+").await;
    assert_eq!(plus.subscribe("own/+/a").await, ReasonCode::NotAuthorized);
    let (_, connack) = Five::module(&hub, "b", &[]).await;
    assert!(
        matches!(
            connack,
            Got::ConnAck {
                reason: ReasonCode::NotAuthorized,
                ..
            }
        ),
        "{connack:?}"
    );
    // In 3.1.1 a refused subscription is a code, a refused publish the end.
    let mut old = hub.connect("edge-1/a").await;
    assert_eq!(old.subscribe("a/b").await.unwrap(), SubAckCode::Failure);
    old.publish("a/b", QoS::AtMostOnce, b"x").await.unwrap();
    assert!(common::wire::rest(&mut old).await.is_empty());
}

#[tokio::test]
async fn modules_use_plain_topics_beside_their_own() {
    let setup = open();
    let hub = setup.start();
    let mut c = scene::receiver(&hub, "c").await;
    let granted = SubAckCode::Granted(QoS::AtLeastOnce);
    assert_eq!(c.subscribe("#").await.unwrap(), granted);
    let mut sensor = client(&hub, "sensor").await;
    assert_eq!(sensor.subscribe("#").await, ReasonCode::GrantedQos1);
    let (mut a, _) = Five::module(&hub, "a", &[]).await;
    assert_eq!(
        a.publish(&output("a", "out", ""), b"routed", &[]).await,
        ReasonCode::Success
    );
    assert_eq!(a.publish("plain", b"both", &[]).await, ReasonCode::Success);
    // A module's message to its hub is nobody else's.
    assert_eq!(
        sensor.message().await,
        ("plain".to_owned(), b"both".to_vec())
    );
    let mut got = Vec::new();
    for _ in 0..2 {
        let (topic, payload, _) = common::message_with_topic(&mut c).await;
        got.push((topic.starts_with("devices/"), payload));
    }
    got.sort();
    let expected = [(false, b"both"[..].into()), (true, b"routed"[..].into())];
    assert_eq!(got, expected);
    assert_eq!(inputs("c"), "devices/edge-1/modules/c/inputs/#");
}

#[tokio::test]
async fn a_kept_session_gets_what_came_while_it_was_away() {
    for end in End::ALL {
        let setup = open();
        let hub = setup.start();
        let (mut away, _) = Five::anonymous(&hub, "away/with space", false, &KEPT).await;
        let exactly_once_too = away.subscribe_as("a/#", 2, &[]).await;
        assert_eq!(exactly_once_too, ReasonCode::GrantedQos2);
        drop(away);
        hub.until("it is gone", |hub| {
            hub.metric("edgehub_connected_clients", &[]) == 0.0
        });
        let mut sender = client(&hub, "sender").await;
        sender
            .publish_as("a/0", (QoS::AtMostOnce, false, false), b"not kept", &[])
            .await;
        let user = [Property::User("k", "v"), Property::MessageExpiry(1000)];
        assert_eq!(
            sender.publish("a/1", b"one", &user).await,
            ReasonCode::Success
        );
        exactly_once(&mut sender, "a/2", b"two").await;
        hub.end(end);
        let hub = setup.start();
        let mut sender = client(&hub, "sender").await;
        assert_eq!(
            sender.publish("a", b"three", &[]).await,
            ReasonCode::Success
        );
        let (mut away, connack) = Five::anonymous(&hub, "away/with space", false, &KEPT).await;
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
        let got = away.receive().await;
        let Got::Publish {
            topic,
            qos,
            properties,
            packet_id,
            ..
        } = &got
        else {
            panic!("{got:?}");
        };
        assert_eq!((&**topic, *qos), ("a/1", QoS::AtLeastOnce));
        assert_eq!(properties[0], "User(\"k\", \"v\")");
        assert!(
            properties[1].starts_with("MessageExpiry("),
            "{properties:?}"
        );
        let ack = FromClient::PubAck(Ack::success(id(packet_id.unwrap())));
        away.send(&ack).await;
        assert_eq!(away.message().await, ("a/2".to_owned(), b"two".to_vec()));
        assert_eq!(away.message().await, ("a".to_owned(), b"three".to_vec()));
        hub.until("nothing is left", |hub| {
            hub.metric("edgehub_queue_length", &["$session"]) == 0.0
        });
    }
}

#[tokio::test]
async fn a_clean_start_forgets_subscriptions_and_messages() {
    let setup = open();
    let hub = setup.start();
    let (mut away, _) = Five::anonymous(&hub, "away", false, &KEPT).await;
    assert_eq!(away.subscribe("a").await, ReasonCode::GrantedQos1);
    drop(away);
    hub.until("it is gone", |hub| {
        hub.metric("edgehub_connected_clients", &[]) == 0.0
    });
    let mut sender = client(&hub, "sender").await;
    assert_eq!(sender.publish("a", b"one", &[]).await, ReasonCode::Success);
    let (mut away, connack) = Five::anonymous(&hub, "away", true, &KEPT).await;
    assert!(
        matches!(
            connack,
            Got::ConnAck {
                session_present: false,
                ..
            }
        ),
        "{connack:?}"
    );
    let dropped = hub.metric("edgehub_messages_dropped_total", &["session_ended"]);
    assert_eq!(dropped, 1.0);
    assert_eq!(
        sender.publish("a", b"two", &[]).await,
        ReasonCode::NoMatchingSubscribers
    );
    assert_eq!(away.subscribe("b").await, ReasonCode::GrantedQos1);
    assert_eq!(
        sender.publish("b", b"three", &[]).await,
        ReasonCode::Success
    );
    assert_eq!(away.message().await.1, b"three");
}

#[tokio::test]
async fn options_and_identifiers_of_a_subscription() {
    let setup = open();
    let hub = setup.start();
    let mut one = client(&hub, "one").await;
    let mut two = client(&hub, "two").await;
    // QoS 1 and no local; QoS 0 and retain as published.
    for (filter, options, number) in [("a/#", 0b0101, 7_u32), ("a/+", 0b1000, 300)] {
        let number = [Property::SubscriptionId(number.try_into().unwrap())];
        let granted = one.subscribe_as(filter, options, &number).await;
        assert!(!granted.is_failure());
    }
    let typed = [
        Property::PayloadFormat(true),
        Property::ContentType("text/plain"),
        Property::ResponseTopic("answers/1"),
        Property::CorrelationData(&[0, 255]),
    ];
    let retained = (QoS::ExactlyOnce, true, false);
    two.publish_as("a/b", retained, b"x", &typed).await;
    let got = one.receive().await;
    let Got::Publish {
        qos,
        retain,
        mut properties,
        ..
    } = got
    else {
        panic!("{got:?}");
    };
    assert_eq!((qos, retain), (QoS::AtLeastOnce, true));
    let mut expected = [
        "PayloadFormat(true)",
        "ContentType(\"text/plain\")",
        "ResponseTopic(\"answers/1\")",
        "CorrelationData([0, 255])",
        "SubscriptionId(7)",
        "SubscriptionId(300)",
    ];
    properties.sort();
    expected.sort_unstable();
    assert_eq!(properties, expected);
    // Its own message comes through the one subscription only.
    let at_most_once = (QoS::AtMostOnce, true, false);
    one.publish_as("a/c", at_most_once, b"own", &[]).await;
    let got = one.receive().await;
    let Got::Publish {
        qos, properties, ..
    } = got
    else {
        panic!("{got:?}");
    };
    assert_eq!(qos, QoS::AtMostOnce);
    assert_eq!(properties, ["SubscriptionId(300)"]);
    // After the end of one the other goes on.
    let end = edgehub::mqtt::v5::Unsubscribe {
        packet_id: id(9),
        properties: edgehub::mqtt::v5::Properties::EMPTY,
        filters: edgehub::mqtt::UnsubscribeFilters::parse(b"\0\x03a/+\0\x01x").unwrap(),
    };
    one.send(&FromClient::Unsubscribe(end)).await;
    let codes = [ReasonCode::Success, ReasonCode::NoSubscriptionExisted];
    assert_eq!(one.receive().await, Got::UnsubAck(codes.to_vec()));
    two.publish_as("a/d", at_most_once, b"y", &[]).await;
    let got = one.receive().await;
    let Got::Publish {
        retain, properties, ..
    } = got
    else {
        panic!("{got:?}");
    };
    assert_eq!(
        (retain, properties),
        (false, vec!["SubscriptionId(7)".to_owned()])
    );
}

#[tokio::test]
async fn of_a_shared_subscription_one_member_gets_each_message() {
    let setup = open();
    let hub = setup.start();
    let mut members = Vec::new();
    for name in ["one", "two", "three"] {
        let (mut member, _) = Five::anonymous(&hub, name, true, &KEPT).await;
        let granted = member.subscribe_as("$share/group/jobs/+", 1, &[]).await;
        assert_eq!(granted, ReasonCode::GrantedQos1);
        members.push(member);
    }
    let mut other = client(&hub, "other").await;
    assert_eq!(other.subscribe("jobs/#").await, ReasonCode::GrantedQos1);
    let mut sender = client(&hub, "sender").await;
    for n in 0..9 {
        let told = sender.publish("jobs/a", &[n], &[]).await;
        assert_eq!(told, ReasonCode::Success);
    }
    let mut all = Vec::new();
    for member in &mut members {
        for _ in 0..3 {
            all.push(member.message().await.1[0]);
        }
    }
    all.sort_unstable();
    assert_eq!(all, [0, 1, 2, 3, 4, 5, 6, 7, 8]);
    for n in 0..9 {
        assert_eq!(other.message().await.1, [n]);
    }
    // Who is away gets nothing while others are there, and all when nobody is.
    let three = members.pop();
    drop(members);
    hub.until("two are gone", |hub| {
        hub.metric("edgehub_connected_clients", &[]) == 3.0
    });
    let mut three = three.unwrap();
    for n in 10..13 {
        assert_eq!(
            sender.publish("jobs/a", &[n], &[]).await,
            ReasonCode::Success
        );
        assert_eq!(three.message().await.1, [n]);
    }
    drop((three, other));
    hub.until("all are gone", |hub| {
        hub.metric("edgehub_connected_clients", &[]) == 1.0
    });
    assert_eq!(
        sender.publish("jobs/a", &[20], &[]).await,
        ReasonCode::Success
    );
    let waiting = hub.metric("edgehub_queue_length", &["$session"]);
    assert_eq!(waiting, 1.0);
}

#[tokio::test]
async fn what_a_member_leaves_undone_goes_to_another() {
    let setup = open();
    let hub = setup.start();
    let mut lazy = client(&hub, "lazy").await;
    let mut busy = client(&hub, "busy").await;
    for member in [&mut lazy, &mut busy] {
        let granted = member.subscribe_as("$share/g/jobs", 1, &[]).await;
        assert_eq!(granted, ReasonCode::GrantedQos1);
    }
    let mut sender = client(&hub, "sender").await;
    for n in 0..200 {
        let told = sender.publish("jobs", &[n], &[]).await;
        assert_eq!(told, ReasonCode::Success);
    }
    let mut all = Vec::new();
    for _ in 0..100 {
        all.push(busy.message().await.1[0]);
    }
    drop(lazy);
    for _ in 0..100 {
        all.push(busy.message().await.1[0]);
    }
    all.sort_unstable();
    assert_eq!(all, (0..200).collect::<Vec<_>>());
}

#[tokio::test]
async fn an_alias_stands_for_its_topic() {
    let setup = open();
    let hub = setup.start();
    let mut receiver = client(&hub, "receiver").await;
    receiver.subscribe("a/b").await;
    let mut sender = client(&hub, "sender").await;
    let alias = [Property::TopicAlias(3.try_into().unwrap())];
    for topic in ["a/b", ""] {
        assert_eq!(
            sender.publish(topic, b"x", &alias).await,
            ReasonCode::Success
        );
        let got = receiver.receive().await;
        let Got::Publish {
            topic,
            properties,
            packet_id,
            ..
        } = got
        else {
            panic!("{got:?}");
        };
        assert_eq!((&*topic, properties.len()), ("a/b", 0));
        let ack = FromClient::PubAck(Ack::success(id(packet_id.unwrap())));
        receiver.send(&ack).await;
    }
    let unknown = [Property::TopicAlias(4.try_into().unwrap())];
    let at_most_once = (QoS::AtMostOnce, false, false);
    sender.publish_as("", at_most_once, b"x", &unknown).await;
    assert_eq!(
        sender.receive().await,
        Got::Disconnect(ReasonCode::ProtocolError)
    );
}

#[tokio::test]
async fn exactly_once_holds_over_lost_connections() {
    let setup = open();
    let hub = setup.start();
    let (mut receiver, _) = Five::anonymous(&hub, "receiver", false, &KEPT).await;
    receiver.subscribe_as("a", 2, &[]).await;
    let (mut sender, _) = Five::anonymous(&hub, "sender", false, &KEPT).await;
    sender.publish_as("a", ONCE, b"one", &[]).await;
    let Got::PubRec(sent, ReasonCode::Success) = sender.receive().await else {
        panic!("no PUBREC");
    };
    drop(sender);
    let (mut sender, _) = Five::anonymous(&hub, "sender", false, &KEPT).await;
    // Its first packet id again: the PUBREC was lost.
    sender
        .publish_as("a", (QoS::ExactlyOnce, false, true), b"one", &[])
        .await;
    assert_eq!(
        sender.receive().await,
        Got::PubRec(sent, ReasonCode::Success)
    );
    sender
        .send(&FromClient::PubRel(Ack::success(id(sent))))
        .await;
    assert_eq!(sender.receive().await, Got::PubComp(sent));
    let got = receiver.receive().await;
    let Got::Publish {
        packet_id,
        dup: false,
        ..
    } = got
    else {
        panic!("{got:?}");
    };
    let delivered = packet_id.unwrap();
    drop(receiver);
    let (mut receiver, _) = Five::anonymous(&hub, "receiver", false, &KEPT).await;
    let got = receiver.receive().await;
    let Got::Publish {
        packet_id,
        dup: true,
        ..
    } = got
    else {
        panic!("{got:?}");
    };
    assert_eq!(packet_id, Some(delivered));
    let received = FromClient::PubRec(Ack::success(id(delivered)));
    receiver.send(&received).await;
    assert_eq!(receiver.receive().await, Got::PubRel(delivered));
    drop(receiver);
    let (mut receiver, _) = Five::anonymous(&hub, "receiver", false, &KEPT).await;
    assert_eq!(receiver.receive().await, Got::PubRel(delivered));
    let complete = FromClient::PubComp(Ack::success(id(delivered)));
    receiver.send(&complete).await;
    // There was one message, and there is no other.
    exactly_once(&mut sender, "a", b"two").await;
    assert_eq!(receiver.message().await.1, b"two");
}

#[tokio::test]
async fn a_reload_ends_what_is_no_longer_allowed() {
    let setup = open();
    let hub = setup.start();
    let mut receiver = client(&hub, "receiver").await;
    for filter in ["a/#", "b/#"] {
        assert_eq!(receiver.subscribe(filter).await, ReasonCode::GrantedQos1);
    }
    let mut sender = client(&hub, "sender").await;
    assert_eq!(sender.publish("a/1", b"1", &[]).await, ReasonCode::Success);
    assert_eq!(receiver.message().await.1, b"1");
    let config = setup.path("edgehub.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    let narrow = text.replace("resources = [\"#\"]", "resources = [\"b/#\"]");
    assert_ne!(text, narrow);
    std::fs::write(&config, narrow).unwrap();
    hub.until("it is in force", |hub| {
        hub.log_text().contains("no rule allows it any more")
    });
    assert_eq!(
        sender.publish("a/1", b"2", &[]).await,
        ReasonCode::NotAuthorized
    );
    assert_eq!(sender.publish("b/1", b"3", &[]).await, ReasonCode::Success);
    assert_eq!(receiver.message().await.1, b"3");
}

#[tokio::test]
async fn a_will_goes_to_a_plain_topic() {
    let setup = open();
    let hub = setup.start();
    let mut watcher = client(&hub, "watcher").await;
    watcher.subscribe("gone/+").await;
    let mut sensor = Five::open(hub.tcp()).await;
    sensor
        .send(&FromClient::Connect(edgehub::mqtt::v5::Connect {
            clean_start: true,
            keep_alive_seconds: 60,
            properties: edgehub::mqtt::v5::Properties::EMPTY,
            client_id: "sensor",
            will: Some(edgehub::mqtt::v5::Will {
                properties: edgehub::mqtt::v5::Properties::EMPTY,
                topic: "gone/sensor",
                payload: b"power",
                qos: QoS::ExactlyOnce,
                retain: false,
            }),
            username: None,
            password: None,
        }))
        .await;
    assert!(matches!(sensor.receive().await, Got::ConnAck { .. }));
    drop(sensor);
    let expected = ("gone/sensor".to_owned(), b"power".to_vec());
    assert_eq!(watcher.message().await, expected);
}

#[tokio::test]
async fn the_hubs_state_is_in_sys_for_those_who_may_see_everything() {
    let mut setup = open();
    setup.extra += "[[authorization]]\nidentities = [\"user:x\"]\n\
        allow = [{ operations = [\"mqtt:publish\"], resources = [\"a\"] }]\n";
    let hub = setup.start();
    let mut one = client(&hub, "one").await;
    let granted = one.subscribe("$SYS/broker/clients/+").await;
    assert_eq!(granted, ReasonCode::GrantedQos1);
    for _ in 0..2 {
        let got = one.receive().await;
        let Got::Publish {
            topic,
            payload,
            qos: QoS::AtMostOnce,
            retain: true,
            ..
        } = got
        else {
            panic!("{got:?}");
        };
        assert!(topic.starts_with("$SYS/broker/clients/"), "{topic}");
        assert_eq!(payload, b"1");
    }
    // A change comes by itself, within ten seconds.
    let _two = client(&hub, "two").await;
    loop {
        let (topic, payload) = one.message().await;
        if topic == "$SYS/broker/clients/connected" && payload == b"2" {
            break;
        }
    }
    // `#` is for topics without a dollar sign.
    let mut three = client(&hub, "three").await;
    three.subscribe("#").await;
    let mut four = client(&hub, "four").await;
    assert_eq!(four.publish("a", b"x", &[]).await, ReasonCode::Success);
    assert_eq!(three.message().await.0, "a");
    let told = four.publish("$SYS/broker/uptime", b"0", &[]).await;
    assert_eq!(told, ReasonCode::NotAuthorized);
}

/// The sender after the hub has come back: its messages under these ids again, as after a lost
/// PUBREC.
async fn sends_again(hub: &Hub, ids: std::ops::RangeInclusive<u16>) -> Five {
    let (mut sender, _) = Five::anonymous(hub, "sender", false, &KEPT).await;
    for n in ids {
        let packet = edgehub::mqtt::v5::Publish {
            dup: true,
            qos: QoS::ExactlyOnce,
            retain: false,
            topic: "a",
            packet_id: Some(id(n)),
            properties: edgehub::mqtt::v5::Properties::EMPTY,
            payload: &[n as u8],
        };
        sender.send(&FromClient::Publish(packet)).await;
        assert_eq!(sender.receive().await, Got::PubRec(n, ReasonCode::Success));
        sender.send(&FromClient::PubRel(Ack::success(id(n)))).await;
        assert_eq!(sender.receive().await, Got::PubComp(n));
    }
    sender
}

#[tokio::test]
async fn exactly_once_holds_over_the_end_of_the_hub() {
    for end in End::ALL {
        let setup = open();
        let hub = setup.start();
        let (mut receiver, _) = Five::anonymous(&hub, "receiver", false, &KEPT).await;
        receiver.subscribe_as("a", 2, &[]).await;
        let (mut sender, _) = Five::anonymous(&hub, "sender", false, &KEPT).await;
        for n in 1..=3_u16 {
            sender.publish_as("a", ONCE, &[n as u8], &[]).await;
            let told = Got::PubRec(n, ReasonCode::Success);
            assert_eq!(sender.receive().await, told);
        }
        sender.send(&FromClient::PubRel(Ack::success(id(1)))).await;
        assert_eq!(sender.receive().await, Got::PubComp(1));
        let mut ids = Vec::new();
        for n in 1..=3 {
            let got = receiver.receive().await;
            let Got::Publish {
                packet_id, payload, ..
            } = got
            else {
                panic!("{got:?}");
            };
            assert_eq!(payload, [n]);
            ids.push(packet_id.unwrap());
        }
        // The first is done with, the second was received, the third not.
        for at in [0, 1] {
            let received = FromClient::PubRec(Ack::success(id(ids[at])));
            receiver.send(&received).await;
            assert_eq!(receiver.receive().await, Got::PubRel(ids[at]));
        }
        let complete = FromClient::PubComp(Ack::success(id(ids[0])));
        receiver.send(&complete).await;
        hub.until("that is known", |hub| {
            hub.metric("edgehub_queue_length", &["$session"]) == 1.0
        });
        hub.end(end);
        let hub = setup.start();
        let (mut receiver, _) = Five::anonymous(&hub, "receiver", false, &KEPT).await;
        let mut got = vec![receiver.receive().await, receiver.receive().await];
        got.sort_by_key(|one| matches!(one, Got::Publish { .. }));
        // What was completed may be released once more: that changes nothing.
        while let Some(Got::PubRel(released)) = got.first() {
            assert!(ids[..2].contains(released), "{released}");
            let complete = FromClient::PubComp(Ack::success(id(*released)));
            receiver.send(&complete).await;
            got.remove(0);
            if !got.iter().any(|one| matches!(one, Got::Publish { .. })) {
                got.push(receiver.receive().await);
            }
        }
        // Under the same id, by which a client knows it again.
        let [
            Got::Publish {
                packet_id, payload, ..
            },
        ] = &got[..]
        else {
            panic!("{got:?}");
        };
        assert_eq!((packet_id.unwrap(), &payload[..]), (ids[2], &[3_u8][..]));
        let mut sender = sends_again(&hub, 2..=3).await;
        receiver.acknowledge(&got[0]).await;
        exactly_once(&mut sender, "a", b"last").await;
        assert_eq!(receiver.message().await.1, b"last");
    }
}
