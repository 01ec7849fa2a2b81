//! Routes from plain topics and to them, against the real binary.
#![allow(missing_docs, clippy::unwrap_used, clippy::indexing_slicing)]

mod common;

use edgehub::mqtt::QoS;
use edgehub::mqtt::v5::{Property, ReasonCode};

use common::five::{Five, Got};
use common::{End, Hub, Setup, inputs, message, output, publish, scene};

const KEPT: [Property<'_>; 1] = [Property::SessionExpiry(u32::MAX)];
const DROPPED: &str = "edgehub_messages_dropped_total";

/// A hub with these routes, on which everybody may use all plain topics.
fn setup(routes: &[(&str, &str)]) -> Setup {
    let routes: serde_json::Map<_, _> = routes
        .iter()
        .map(|(name, text)| ((*name).to_owned(), (*text).into()))
        .collect();
    let routes = serde_json::Value::Object(routes).to_string();
    Setup::open(&routes, &["a", "b", "c"])
}

async fn client(hub: &Hub, id: &str) -> Five {
    let (five, connack) = Five::anonymous(hub, id, false, &KEPT).await;
    assert!(
        matches!(&connack, Got::ConnAck { reason, .. } if *reason == ReasonCode::Success),
        "{connack:?}"
    );
    five
}

fn dropped(hub: &Hub, reason: &str) -> f64 {
    hub.metric(DROPPED, &[&format!("reason=\"{reason}\"")])
}

#[tokio::test]
async fn a_sensors_topic_is_filtered_and_kept_for_a_module() {
    let setup = setup(&[(
        "hot",
        "FROM /topics/factory/+/temperature WHERE $body.celsius > 30 AND line = 'x' \
         INTO BrokeredEndpoint(\"/modules/b/inputs/hot\")",
    )]);
    let hub = setup.start();
    let mut sensor = client(&hub, "sensor").await;
    let line = [Property::User("line", "x")];
    for (topic, body, properties) in [
        (
            "factory/7/temperature",
            "{\"celsius\": 31, \"n\": 1}",
            &line[..],
        ),
        (
            "factory/7/temperature",
            "{\"celsius\": 30, \"n\": 2}",
            &line,
        ),
        ("factory/7/temperature", "{\"celsius\": 31, \"n\": 3}", &[]),
        ("factory/7/temperature", "celsius=31", &line),
        ("factory/7/pressure", "{\"celsius\": 31, \"n\": 4}", &line),
        (
            "factory/8/temperature",
            " {\"celsius\": 99.5, \"n\": 5}",
            &line,
        ),
    ] {
        let taken = matches!(body.as_bytes(), [.., b'1' | b'5', b'}']);
        let expected = match taken {
            true => ReasonCode::Success,
            false => ReasonCode::NoMatchingSubscribers,
        };
        let got = sensor.publish(topic, body.as_bytes(), properties).await;
        assert_eq!(got, expected, "{topic} {body}");
    }
    assert_eq!(dropped(&hub, "no_subscriber"), 4.0);
    hub.end(End::Killed);

    let hub = setup.start();
    let mut b = scene::receiver(&hub, "b").await;
    for expected in [
        ("factory%2F7%2Ftemperature", "{\"celsius\": 31, \"n\": 1}"),
        (
            "factory%2F8%2Ftemperature",
            " {\"celsius\": 99.5, \"n\": 5}",
        ),
    ] {
        let (topic, body, _) = common::message_with_topic(&mut b).await;
        assert_eq!(body, expected.1.as_bytes());
        let bag = topic.rsplit('/').next().unwrap();
        for pair in [
            "line=x",
            &format!("mqtt-topic={}", expected.0),
            "%24.ct=application%2Fjson",
            "%24.ce=utf-8",
            "%24.cdid=edge-1",
        ] {
            assert!(bag.split('&').any(|own| own == pair), "{bag}: {pair}");
        }
        assert!(!bag.contains("%24.cmid"), "{bag}");
    }
}

#[tokio::test]
async fn an_output_is_a_topic_for_those_who_have_subscribed_also_after_a_crash() {
    let setup = setup(&[(
        "out",
        "FROM /messages/modules/a/* WHERE level > '3' \
         INTO Topic(\"factory/{module}/{output}/{property:line}\")",
    )]);
    let hub = setup.start();
    let mut kept = client(&hub, "kept").await;
    kept.subscribe_as("factory/#", 2, &[]).await;
    kept.leave(ReasonCode::Success, &[]).await;
    let mut shared = client(&hub, "shared").await;
    shared.subscribe_as("$share/g/factory/a/+/#", 1, &[]).await;

    let mut a = hub.connect("edge-1/a").await;
    let bag = "level=5&line=a/b%2B%23&%24.ct=text%2Fplain&%24.cid=c-1&%24.mid=m-1";
    let topic = output("a", "out", &bag.replace("a/b", "a%2Fb"));
    publish(&mut a, &topic, b"first").await;
    publish(&mut a, &output("a", "out", "level=2"), b"low").await;
    publish(&mut a, &output("a", "none", "level=4"), b"second").await;
    let named = ["factory/a/out/a%2Fb%2B%23", "factory/a/none/_"];
    assert_eq!(
        shared.message().await,
        (named[0].to_owned(), b"first".to_vec())
    );
    assert_eq!(
        shared.message().await,
        (named[1].to_owned(), b"second".to_vec())
    );
    assert_eq!(dropped(&hub, "no_route"), 1.0);
    hub.end(End::Killed);

    let hub = setup.start();
    let mut kept = client(&hub, "kept").await;
    let got = kept.receive().await;
    let Got::Publish {
        topic,
        qos,
        retain,
        payload,
        properties,
        ..
    } = &got
    else {
        panic!("{got:?}");
    };
    assert_eq!(
        (&**topic, *qos, *retain),
        (named[0], QoS::AtLeastOnce, false)
    );
    assert_eq!(payload, b"first");
    let expected = [
        Property::ContentType("text/plain"),
        Property::CorrelationData(b"c-1"),
        Property::User("level", "5"),
        Property::User("line", "a/b+#"),
        Property::User("$.mid", "m-1"),
    ];
    assert_eq!(
        *properties,
        expected.map(|property| format!("{property:?}"))
    );
    kept.acknowledge(&got).await;
    assert_eq!(
        kept.message().await,
        (named[1].to_owned(), b"second".to_vec())
    );
}

#[tokio::test]
async fn a_topic_leads_to_another_and_what_goes_round_ends() {
    let setup = setup(&[
        ("on", "FROM /topics/in/# INTO Topic(\"out/{property:n}\")"),
        ("round", "FROM /topics/round INTO Topic(\"round\")"),
        (
            "twice1",
            "FROM /topics/many WHERE 1 = 1 INTO Topic(\"many\")",
        ),
        ("twice2", "FROM /topics/many INTO Topic(\"{property:m}\")"),
        (
            "input",
            "FROM /topics/out/+ INTO BrokeredEndpoint(\"/modules/c/inputs/all\")",
        ),
    ]);
    let hub = setup.start();
    let mut b = client(&hub, "b").await;
    b.subscribe("out/+").await;
    b.subscribe("round").await;
    let mut c = scene::receiver(&hub, "c").await;
    let mut sensor = client(&hub, "sensor").await;
    let n = [Property::User("n", "1")];
    assert_eq!(sensor.publish("in/x", b"on", &n).await, ReasonCode::Success);
    assert_eq!(b.message().await, ("out/1".to_owned(), b"on".to_vec()));
    assert_eq!(message(&mut c).await, ("all".to_owned(), b"on".to_vec()));

    sensor.publish("round", b"r", &[]).await;
    // The one that was published, and eight more.
    for _ in 0..9 {
        assert_eq!(b.message().await, ("round".to_owned(), b"r".to_vec()));
    }
    assert_eq!(dropped(&hub, "too_many_hops"), 1.0);

    // Each makes two of itself: a message has an end for all that.
    let m = [Property::User("m", "many")];
    sensor.publish("many", b"m", &m).await;
    let lost = dropped(&hub, "too_many_hops");
    assert!((2.0..=300.0).contains(&lost), "{lost}");
    sensor.publish("out/2", b"end", &[]).await;
    assert_eq!(b.message().await, ("out/2".to_owned(), b"end".to_vec()));
}

#[tokio::test]
async fn what_a_message_chooses_never_leads_out_of_the_plain_topics() {
    let setup = setup(&[
        ("own", "FROM /messages/* INTO Topic(\"{property:to}/x\")"),
        (
            "split",
            "FROM /messages/* INTO Topic(\"dev{property:rest}/x\")",
        ),
    ]);
    let hub = setup.start();
    let mut all = client(&hub, "all").await;
    all.subscribe("#").await;
    let mut a = hub.connect("edge-1/a").await;
    for bag in [
        "to=$SYS&rest=1",
        "to=devices&rest=ices",
        "to=%24iothub&rest=2",
    ] {
        publish(&mut a, &output("a", "out", bag), b"x").await;
    }
    publish(&mut a, &output("a", "out", "to=end&rest=3"), b"x").await;
    let mut topics = Vec::new();
    while topics.last().is_none_or(|last| last != "dev3/x") {
        topics.push(all.message().await.0);
    }
    assert_eq!(topics, ["dev1/x", "dev2/x", "end/x", "dev3/x"]);
    assert_eq!(dropped(&hub, "bad_topic"), 4.0);
}

#[tokio::test]
async fn a_reload_changes_what_topics_lead_to() {
    let setup = setup(&[(
        "r",
        "FROM /topics/t INTO BrokeredEndpoint(\"/modules/b/inputs/one\")",
    )]);
    let hub = setup.start();
    let mut sensor = client(&hub, "sensor").await;
    assert_eq!(sensor.publish("t", b"1", &[]).await, ReasonCode::Success);
    let routes = r#"{"r":"FROM /topics/t INTO Topic(\"u\")"}"#;
    scene::reload(&setup, &hub, routes, &["a", "b", "c"], 7200);
    let mut plain = hub.connect("edge-1/c").await;
    plain.subscribe("u").await.unwrap();
    assert_eq!(sensor.publish("t", b"2", &[]).await, ReasonCode::Success);
    assert_eq!(common::message_with_topic(&mut plain).await.0, "u");
    let mut b = hub.connect("edge-1/b").await;
    b.subscribe(&inputs("b")).await.unwrap();
    // The first message was routed when that was the route, and waits for its input.
    let routes = r#"{"r":"FROM /topics/t INTO BrokeredEndpoint(\"/modules/b/inputs/one\")"}"#;
    scene::reload(&setup, &hub, routes, &["a", "b", "c"], 7200);
    assert_eq!(message(&mut b).await, ("one".to_owned(), b"1".to_vec()));
}
