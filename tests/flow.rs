//! Messages from outputs to inputs: order, priorities, time to live, copies, what is counted.
#![allow(missing_docs, clippy::unwrap_used, clippy::indexing_slicing)]

mod common;

use common::scene::{left_behind, receiver, route, routes};
use common::wire::{self, numbered, numbers};
use common::{Hub, Setup, inputs, message, message_with_topic, output, publish, receive};
use edgehub::client::Packet;
use edgehub::mqtt::{QoS, SubAckCode};

const DROPPED: &str = "edgehub_messages_dropped_total";

#[tokio::test]
async fn messages_pass_over_tls_in_order() {
    let setup = Setup::new(&routes(&[("a/out", "b/in")]), &["a", "b"]);
    let hub = setup.start();
    let mut b = hub.connect_tls("edge-1/b").await;
    b.subscribe(&inputs("b")).await.unwrap();
    let mut a = hub.connect_tls("edge-1/a").await;
    for number in 0..100_u32 {
        publish(
            &mut a,
            &output("a", "out", ""),
            number.to_string().as_bytes(),
        )
        .await;
    }
    for number in 0..100_u32 {
        let expected = ("in".to_owned(), number.to_string().into_bytes());
        assert_eq!(message(&mut b).await, expected);
    }
    assert_eq!(hub.terminate(), Some(0));
}

#[tokio::test]
async fn each_sender_keeps_its_order_at_each_endpoint() {
    let pairs = [
        ("a/x", "b/x"),
        ("a/y", "b/y"),
        ("c/x", "b/x"),
        ("c/y", "b/y"),
    ];
    let setup = Setup::new(&routes(&pairs), &["a", "b", "c"]);
    let hub = setup.start();
    let mut b = receiver(&hub, "b").await;
    let send = async |module: &str| {
        let mut client = hub.connect(&format!("edge-1/{module}")).await;
        let messages: Vec<_> = (0..1000)
            .map(|number| {
                let out = ["x", "y"][number % 2];
                (output(module, out, ""), format!("{module} {out} {number}"))
            })
            .collect();
        wire::publish_many(&mut client, &messages).await;
    };
    let (_, _, received) = tokio::join!(send("a"), send("c"), wire::bodies(&mut b, 2000));
    for (module, out, first) in [("a", "x", 0), ("a", "y", 1), ("c", "x", 0), ("c", "y", 1)] {
        let prefix = format!("{module} {out} ");
        let got: Vec<_> = received
            .iter()
            .filter_map(|body| body.strip_prefix(&prefix)?.parse::<usize>().ok())
            .collect();
        let expected: Vec<usize> = (first..1000).step_by(2).collect();
        assert_eq!(got, expected, "{prefix}");
    }
}

#[tokio::test]
async fn priorities_of_an_absent_module_drain_first() {
    let one = |number: usize| {
        let text = route(&format!("a/p{number}"), "b/in");
        format!("\"r{number}\":{{\"route\":\"{text}\",\"priority\":{number}}}")
    };
    let all: Vec<_> = (0..10).map(one).collect();
    let setup = Setup::new(&format!("{{{}}}", all.join(",")), &["a", "b"]);
    let hub = setup.start();
    left_behind(&hub, "b").await;
    let mut a = hub.connect("edge-1/a").await;
    let mut messages = Vec::new();
    for number in 0..5 {
        for priority in (0..10).rev() {
            let topic = output("a", &format!("p{priority}"), "");
            messages.push((topic, format!("{priority} {number}")));
        }
    }
    wire::publish_many(&mut a, &messages).await;
    let status = hub.status();
    let lanes = status["queues"].as_array().unwrap().iter();
    assert_eq!(lanes.filter(|lane| lane["messages"] == 5).count(), 10);
    let mut b = hub.connect("edge-1/b").await;
    let expected: Vec<_> = (0..10)
        .flat_map(|priority| (0..5).map(move |number| format!("{priority} {number}")))
        .collect();
    assert_eq!(wire::bodies(&mut b, 50).await, expected);
}

#[tokio::test]
async fn messages_expire_by_the_time_of_their_route_or_of_the_manifest() {
    let short = route("a/short", "b/in");
    let all = format!(
        "{{\"s\":{{\"route\":\"{short}\",\"timeToLiveSecs\":1}},\"m\":\"{}\",\
         \"l\":{{\"route\":\"{}\",\"timeToLiveSecs\":7200}}}}",
        route("a/manifest", "b/in"),
        route("a/long", "b/in")
    );
    let setup = Setup::new(&all, &["a", "b"]);
    setup.write_manifest(&all, &["a", "b"], 2);
    let hub = setup.start();
    left_behind(&hub, "b").await;
    let mut a = hub.connect("edge-1/a").await;
    for (out, count) in [("short", 3), ("manifest", 4), ("long", 5)] {
        let topic = output("a", out, "");
        wire::publish_many(&mut a, &numbered(&topic, 0..count)).await;
    }
    // They share a lane with some that stay, so it shows when somebody comes for them.
    let began = std::time::Instant::now();
    hub.until("their time passes", |_| began.elapsed().as_millis() > 3100);
    let mut b = hub.connect("edge-1/b").await;
    publish(&mut a, &output("a", "long", ""), b"last").await;
    let mut expected = numbers(0..5);
    expected.push("last".to_owned());
    assert_eq!(wire::bodies(&mut b, 6).await, expected);
    let expired = |hub: &Hub, out: &str| {
        let label = format!("from_route_output=\"{out}\"");
        hub.metric(DROPPED, &["reason=\"ttl_expiry\"", &label]) as u32
    };
    hub.until("the short ones are counted", |hub| {
        expired(hub, "short") == 3
    });
    hub.until("the others are counted", |hub| {
        expired(hub, "manifest") == 4
    });
    assert_eq!(expired(&hub, "long"), 0);
}

#[tokio::test]
async fn a_message_waits_for_a_module_that_never_was_there() {
    let setup = Setup::new(&routes(&[("a/out", "b/in")]), &["a", "b"]);
    let hub = setup.start();
    let mut a = hub.connect("edge-1/a").await;
    let messages = numbered(&output("a", "out", ""), 0..500);
    wire::publish_many(&mut a, &messages).await;
    let mut b = hub.connect("edge-1/b").await;
    let early = wire::subscribe_amid(&mut b, &inputs("b")).await;
    let mut got: Vec<_> = early.iter().map(|got| got.body.clone()).collect();
    for got in &early {
        b.acknowledge(got.id.unwrap()).await.unwrap();
    }
    got.extend(wire::bodies(&mut b, 500 - early.len()).await);
    assert_eq!(got, numbers(0..500));
    wire::ping(&mut b).await;
    assert_eq!(
        hub.metric("edgehub_queue_length", &["endpoint=\"b/in\""]),
        0.0
    );
    assert_eq!(hub.metric("edgehub_queue_bytes", &[]), 0.0);
}

#[tokio::test]
async fn several_routes_to_one_endpoint_are_one_copy() {
    let pairs = [("a/out", "b/in"), ("a/*", "b/in"), ("a/out", "b/in")];
    let setup = Setup::new(&routes(&pairs), &["a", "b"]);
    let hub = setup.start();
    let mut b = receiver(&hub, "b").await;
    let mut a = hub.connect("edge-1/a").await;
    publish(&mut a, &output("a", "out", ""), b"all three").await;
    publish(&mut a, &output("a", "other", ""), b"only one").await;
    assert_eq!(wire::bodies(&mut b, 2).await, ["all three", "only one"]);
    wire::ping(&mut b).await;
}

#[tokio::test]
async fn one_message_fans_out_to_three_inputs() {
    let pairs = [("a/out", "b/x"), ("a/out", "b/y"), ("a/out", "c/z")];
    let setup = Setup::new(&routes(&pairs), &["a", "b", "c"]);
    let hub = setup.start();
    let (mut b, mut c) = (receiver(&hub, "b").await, receiver(&hub, "c").await);
    let mut a = hub.connect("edge-1/a").await;
    wire::publish_many(&mut a, &numbered(&output("a", "out", ""), 0..50)).await;
    let (mut x, mut y) = (Vec::new(), Vec::new());
    for _ in 0..100 {
        match message(&mut b).await {
            (input, body) if input == "x" => x.push(String::from_utf8(body).unwrap()),
            (_, body) => y.push(String::from_utf8(body).unwrap()),
        }
    }
    let expected = numbers(0..50);
    assert_eq!((&x, &y), (&expected, &expected));
    assert_eq!(wire::bodies(&mut c, 50).await, expected);
}

#[tokio::test]
async fn deliveries_have_the_qos_of_the_subscription() {
    let setup = Setup::new(&routes(&[("a/out", "b/in")]), &["a", "b"]);
    let hub = setup.start();
    let mut b = hub.connect("edge-1/b").await;
    let mut a = hub.connect("edge-1/a").await;
    let topic = output("a", "out", "");
    for (qos, with_id) in [(QoS::AtMostOnce, false), (QoS::ExactlyOnce, true)] {
        let packet = wire::subscribe(1, &[(&inputs("b"), qos)]);
        b.send_bytes(&packet).await.unwrap();
        let granted = SubAckCode::Granted(qos.min(QoS::AtLeastOnce));
        let suback = Packet::SubAck(wire::id(1), vec![granted]);
        assert_eq!(receive(&mut b).await.unwrap(), suback);
        // A publish of QoS 0 is kept like any other once it is here.
        a.publish(&topic, QoS::AtMostOnce, b"0").await.unwrap();
        publish(&mut a, &topic, b"1").await;
        for body in ["0", "1"] {
            let got = wire::take(&mut b).await;
            assert_eq!((&*got.body, got.id.is_some()), (body, with_id), "{qos:?}");
            if let Some(id) = got.id {
                b.acknowledge(id).await.unwrap();
            }
        }
        wire::ping(&mut b).await;
        assert_eq!(hub.metric("edgehub_queue_bytes", &[]), 0.0, "{qos:?}");
    }
}

#[tokio::test]
async fn what_nobody_gets_is_acknowledged_and_counted() {
    let up = "{\"up\":\"FROM /messages/modules/a/outputs/up INTO $upstream\"}";
    let setup = Setup::new(up, &["a"]);
    let hub = setup.start();
    let mut a = hub.connect("edge-1/a").await;
    // Names that no route knows are no labels.
    for (out, label, reason, count) in [
        ("nowhere", "other", "no_route", 3),
        ("up", "up", "no_upstream", 5),
    ] {
        wire::publish_many(&mut a, &numbered(&output("a", out, ""), 0..count)).await;
        let labels = [
            format!("reason=\"{reason}\""),
            format!("from_route_output=\"{label}\""),
            "from=\"edge-1/a\"".to_owned(),
        ];
        let labels: Vec<_> = labels.iter().map(String::as_str).collect();
        assert_eq!(hub.metric(DROPPED, &labels), count as f64, "{reason}");
    }
    assert_eq!(hub.metric(DROPPED, &[]), 8.0);
    let received = hub.metric("edgehub_messages_received_total", &["edge-1/a"]);
    assert_eq!(received, 8.0);
}

#[tokio::test]
async fn the_oldest_makes_room_where_that_is_wanted() {
    let mut setup = Setup::new(&routes(&[("a/out", "b/in")]), &["a", "b"]);
    setup.extra = "[store]\nwhen_full = \"drop-oldest\"\n\
                   [limits]\nendpoint_max_messages = 10\n"
        .to_owned();
    let hub = setup.start();
    left_behind(&hub, "b").await;
    let mut a = hub.connect("edge-1/a").await;
    wire::publish_many(&mut a, &numbered(&output("a", "out", ""), 0..25)).await;
    assert_eq!(hub.metric(DROPPED, &["reason=\"dropped_oldest\""]), 15.0);
    let mut b = hub.connect("edge-1/b").await;
    assert_eq!(wire::bodies(&mut b, 10).await, numbers(15..25));
}

#[tokio::test]
async fn twin_get_is_answered_from_the_manifest() {
    let setup = Setup::new("{}", &["a"]);
    let manifest = std::fs::read_to_string(setup.path("manifest.json")).unwrap();
    let mut manifest: serde_json::Value = serde_json::from_str(&manifest).unwrap();
    manifest["modulesContent"]["a"] = serde_json::json!({"properties.desired": {"rate": 7}});
    common::replace(&setup.path("manifest.json"), &manifest.to_string());
    let hub = setup.start();
    let mut a = hub.connect("edge-1/a").await;
    let granted = a.subscribe("$iothub/twin/res/#").await.unwrap();
    assert_eq!(granted, SubAckCode::Granted(QoS::AtLeastOnce));
    publish(&mut a, "$iothub/twin/GET/?$rid=r-1", b"").await;
    let (topic, body, _) = message_with_topic(&mut a).await;
    assert_eq!(topic, "$iothub/twin/res/200/?$rid=r-1");
    let twin: serde_json::Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(twin["desired"]["rate"], 7);
    assert!(twin["desired"]["$version"].is_u64() && twin["reported"].is_object());
    let patch = "$iothub/twin/PATCH/properties/reported/?$rid=r-2";
    publish(&mut a, patch, b"{\"x\":1}").await;
    let (topic, _, _) = message_with_topic(&mut a).await;
    assert_eq!(topic, "$iothub/twin/res/501/?$rid=r-2");
    let not_served = hub.metric("edgehub_requests_not_served_total", &["twin_patch"]);
    assert_eq!(not_served, 1.0);
}

#[tokio::test]
async fn a_delivery_names_its_properties_anew_and_its_sender_last() {
    let setup = Setup::new(&routes(&[("a/out", "b/in")]), &["a", "b"]);
    let hub = setup.start();
    let mut b = receiver(&hub, "b").await;
    let mut a = hub.connect("edge-1/a").await;
    let prefix = "devices/edge-1/modules/b/inputs/in/";
    let sender = "%24.cdid=edge-1&%24.cmid=a";
    for (bag, expected) in [
        ("", String::new()),
        ("k%20ey=v%2Fal%26&x=", "k%20ey=v%2Fal%26&x=&".to_owned()),
        (
            "%24.mid=m1&%24.cid=c1&z=1&%24.ct=application%2Fjson&%24.ce=utf-8",
            "z=1&%24.mid=m1&%24.cid=c1&%24.ct=application%2Fjson&%24.ce=utf-8&".to_owned(),
        ),
        (
            "$.mid=raw&ключ=знач",
            "%D0%BA%D0%BB%D1%8E%D1%87=%D0%B7%D0%BD%D0%B0%D1%87&%24.mid=raw&".to_owned(),
        ),
        (
            "deviceId=evil&moduleId=evil&%24.cdid=evil&%24.cmid=evil&k=v",
            "k=v&".to_owned(),
        ),
        (
            "%24connectionDeviceId=evil&%24ConnectionModuleId=evil",
            String::new(),
        ),
    ] {
        publish(&mut a, &output("a", "out", bag), b"m").await;
        let (topic, _, _) = message_with_topic(&mut b).await;
        assert_eq!(topic, format!("{prefix}{expected}{sender}"), "{bag}");
    }
}

#[tokio::test]
async fn a_mebibyte_passes_byte_for_byte() {
    let mut setup = Setup::new(&routes(&[("a/out", "b/in")]), &["a", "b"]);
    setup.extra = "[limits]\nmax_message_bytes = \"2MiB\"\n".to_owned();
    let hub = setup.start();
    let (mut a, mut b) = (
        hub.connect_tls("edge-1/a").await,
        hub.connect_tls("edge-1/b").await,
    );
    b.subscribe(&inputs("b")).await.unwrap();
    let mut state = 1_u32;
    let body: Vec<u8> = std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    })
    .take(1 << 20)
    .collect();
    for _ in 0..3 {
        publish(&mut a, &output("a", "out", ""), &body).await;
        let (_, received) = message(&mut b).await;
        assert!(received == body, "{} bytes differ", received.len());
    }
}
