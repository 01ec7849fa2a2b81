//! One identity, one space: what reaches into another's is refused, logged and counted.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing
)]

mod common;

use std::fs;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use edgehub::client::{Client, Hello, Packet};
use edgehub::identity::{Authentication, Identity};
use edgehub::mqtt::{Connect, FromClient, PacketId, Publish, QoS, SubAckCode, Will};

use common::{
    Hub, Setup, closed, edgehub, inputs, message, message_with_topic, output, publish, receive,
};

const DROPPED: &str = "edgehub_messages_dropped_total";
/// Everything goes to b, and what a test wants a to see goes to a too.
const ROUTES: &str = r#"{
"all":"FROM /messages/* INTO BrokeredEndpoint(\"/modules/b/inputs/in\")",
"to_a":"FROM /messages/* WHERE sentinel = 'a' INTO BrokeredEndpoint(\"/modules/a/inputs/in\")"}"#;

fn setup() -> Setup {
    let setup = Setup::new(ROUTES, &["a", "b", "c"]);
    setup.write_config();
    for id in ["edge-1", "edge-2"] {
        let added = edgehub(
            setup.dir.path(),
            &["identity", "add", id, "--config", "edgehub.toml"],
        );
        assert!(added.status.success(), "{added:?}");
    }
    setup
}

/// A hub together with its folder.
struct Started {
    hub: Hub,
    _setup: Setup,
}

impl std::ops::Deref for Started {
    type Target = Hub;

    fn deref(&self) -> &Hub {
        &self.hub
    }
}

fn start(level: &str) -> Started {
    let mut setup = setup();
    setup.extra = format!("[log]\nlevel = \"{level}\"\n");
    let hub = setup.start();
    Started { hub, _setup: setup }
}

fn publication(topic: &str, packet_id: u16, dup: bool) -> FromClient<'_> {
    let packet_id = PacketId::new(packet_id);
    FromClient::Publish(Publish {
        dup,
        qos: if packet_id.is_some() {
            QoS::AtLeastOnce
        } else {
            QoS::AtMostOnce
        },
        retain: false,
        topic,
        packet_id,
        payload: b"posed",
    })
}

const OTHER: &str = "other_identity";
const BAD: &str = "bad_topic";
const RESERVED: &str = "reserved_topic";
const PLAIN: &str = "plain_topic";
/// Who publishes to which topic, and the reason for which that is refused.
const POSED: [(&str, &str, &str); 21] = [
    (
        "edge-1/a",
        "devices/edge-1/modules/c/messages/events/%24.on=out",
        OTHER,
    ),
    (
        "edge-1/a",
        "devices/edge-1/modules/b/messages/events/",
        OTHER,
    ),
    ("edge-1/a", "devices/edge-1/messages/events/x=1", OTHER),
    (
        "edge-1/a",
        "devices/edge-2/modules/a/messages/events/",
        OTHER,
    ),
    ("edge-1/a", "devices/edge-2/messages/events", OTHER),
    (
        "edge-1/a",
        "devices/EDGE-1/modules/A/messages/events/",
        OTHER,
    ),
    (
        "edge-1/a",
        "devices/edge-1/modules/%61/messages/events/",
        OTHER,
    ),
    ("edge-1", "devices/edge-1/modules/a/messages/events/", OTHER),
    ("edge-1", "devices/edge-2/messages/events/", OTHER),
    ("edge-2", "devices/edge-1/messages/events/", OTHER),
    (
        "edge-1/a",
        "devices/edge-1/modules/b/inputs/in/%24.cdid=edge-1",
        BAD,
    ),
    ("edge-1/a", "devices/edge-1/modules/a/inputs/in/", BAD),
    (
        "edge-1/a",
        "devices/edge-1/modules/a/messages/events/x=1/y/z",
        BAD,
    ),
    ("edge-1/a", "devices/edge-1/modules//messages/events/", BAD),
    ("edge-1/a", "devices/edge-1/messages/devicebound/x=1", BAD),
    ("edge-1/a", "$SYS/broker", RESERVED),
    (
        "edge-1/a",
        "$share/g/devices/edge-1/modules/b/inputs/in",
        RESERVED,
    ),
    ("edge-1/a", "$iothub", RESERVED),
    ("edge-1/a", "sensors/temperature", PLAIN),
    ("edge-1/a", "/devices/edge-1/modules/b/inputs/in/", PLAIN),
    (
        "edge-1/a",
        "Devices/edge-1/modules/b/messages/events/",
        PLAIN,
    ),
];

#[tokio::test]
async fn publishing_as_somebody_else_closes_the_connection() {
    let hub = start("info");
    let mut b = hub.connect("edge-1/b").await;
    b.subscribe(&inputs("b")).await.unwrap();
    for (who, topic, reason) in POSED {
        for packet_id in [0, 11] {
            let (reason, from) = (format!("reason=\"{reason}\""), format!("from=\"{who}\""));
            let labels = [reason.as_str(), from.as_str()];
            let before = hub.metric(DROPPED, &labels);
            let mut client = hub.connect(who).await;
            client
                .send(&publication(topic, packet_id, false))
                .await
                .unwrap();
            closed(&mut client).await;
            assert_eq!(
                hub.metric(DROPPED, &labels),
                before + 1.0,
                "{who} {topic} {reason}"
            );
        }
        let (id, topic) = (format!("id={who:?} "), format!("topic={topic:?}"));
        let log = hub.log_text();
        let logged = log
            .lines()
            .any(|line| line.contains("WARN") && line.contains(&id) && line.contains(&topic));
        assert!(logged, "{who} {topic}: not in the log");
    }
    hub.until("all ends are counted", |hub| {
        hub.metric("edgehub_connections_closed_total", &["\"publish_refused\""]) as u64 == 42
    });
    let mut a = hub.connect("edge-1/a").await;
    publish(&mut a, &output("a", "out", ""), b"own").await;
    assert_eq!(message(&mut b).await, ("in".to_owned(), b"own".to_vec()));
}

#[tokio::test]
async fn filters_beyond_the_own_space_are_refused() {
    let hub = start("info");
    let mut a = hub.connect("edge-1/a").await;
    let mut device = hub.connect("edge-1").await;
    let filters = [
        "devices/edge-1/modules/b/inputs/#",
        "devices/edge-1/modules/b/#",
        "devices/edge-1/modules/b/inputs/in/+",
        "devices/edge-2/modules/a/inputs/#",
        "devices/edge-1/modules/A/inputs/#",
        "devices/edge-1/messages/devicebound/#",
        "devices/edge-1/messages/events/#",
        "devices/edge-1/modules/+/inputs/#",
        "devices/edge-1/modules/#",
        "devices/edge-1/+/b/inputs/#",
        "devices/+/modules/b/inputs/#",
        "devices/+/modules/a/inputs/#",
        "devices/#",
        "devices",
        "#",
        "+/#",
        "+/edge-1/modules/b/inputs/#",
        "+/+/+/+/+/+/+",
        "/#",
        "$share/g/#",
        "$share/g/devices/edge-1/modules/b/inputs/#",
        "$share/g/devices/edge-1/modules/a/inputs/#",
        "$share/g/+/edge-1/modules/b/inputs/#",
        "$SYS/#",
        "$iothub",
        "+/twin/res/#",
        "sensors/#",
        "sensors/temperature",
    ];
    for (number, filter) in filters.iter().enumerate() {
        assert_eq!(
            a.subscribe(filter).await.unwrap(),
            SubAckCode::Failure,
            "{filter}"
        );
        let log = hub.log_text();
        let line = log
            .lines()
            .find(|line| line.contains("WARN") && line.contains(&format!("{filter:?}")));
        let line = line.unwrap_or_else(|| panic!("{filter} is not in the log"));
        assert!(
            line.contains("edge-1/a") && line.contains("reason="),
            "{line}"
        );
        let labels = ["id=\"edge-1/a\""];
        let refused = hub.metric("edgehub_subscriptions_refused_total", &labels);
        assert_eq!(refused as usize, number + 1, "{filter}");
    }
    for filter in ["devices/edge-1/modules/b/inputs/#", "devices/edge-1/#", "#"] {
        assert_eq!(
            device.subscribe(filter).await.unwrap(),
            SubAckCode::Failure,
            "{filter}"
        );
    }
    let granted = SubAckCode::Granted(QoS::AtLeastOnce);
    assert_eq!(a.subscribe(&inputs("a")).await.unwrap(), granted);
    // What goes to b passes a by: the first that a sees is its own.
    let mut c = hub.connect("edge-1/c").await;
    publish(&mut c, &output("c", "out", ""), b"for b").await;
    publish(&mut c, &output("c", "out", "sentinel=a"), b"for a").await;
    assert_eq!(message(&mut a).await.1, b"for a");
    let rows = hub.status()["clients"].to_string();
    assert!(
        !rows.contains("modules/b/") && !rows.contains("$share"),
        "{rows}"
    );
}

#[tokio::test]
async fn refused_filters_leave_their_neighbours_alone() {
    let hub = start("info");
    let mut a = hub.connect("edge-1/a").await;
    let (own, other) = (inputs("a"), inputs("b"));
    let filters = [own.as_str(), &other, "#"].map(|filter| (filter, QoS::AtLeastOnce));
    let mut packet = bytes::BytesMut::new();
    let id = PacketId::new(5).unwrap();
    edgehub::mqtt::encode_subscribe(&mut packet, id, filters.into_iter()).unwrap();
    a.send_bytes(&packet).await.unwrap();
    let codes = vec![
        SubAckCode::Granted(QoS::AtLeastOnce),
        SubAckCode::Failure,
        SubAckCode::Failure,
    ];
    assert_eq!(receive(&mut a).await.unwrap(), Packet::SubAck(id, codes));
}

#[tokio::test]
async fn iothub_topics_are_the_connections_own() {
    let hub = start("info");
    let (mut a, mut b) = (hub.connect("edge-1/a").await, hub.connect("edge-1/b").await);
    for client in [&mut a, &mut b] {
        for filter in ["$iothub/twin/res/#", "$iothub/methods/POST/#", "$iothub/#"] {
            let granted = SubAckCode::Granted(QoS::AtLeastOnce);
            assert_eq!(client.subscribe(filter).await.unwrap(), granted, "{filter}");
        }
    }
    // Answers and calls that b makes up reach nobody, and are counted.
    let forged = [
        "$iothub/twin/res/200/?$rid=1",
        "$iothub/methods/POST/stop/?$rid=1",
        "$iothub/methods/res/200/?$rid=1",
        "$iothub/twin/PATCH/properties/desired/?$version=2",
    ];
    for topic in forged {
        publish(&mut b, topic, b"{\"forged\":true}").await;
    }
    let counted = hub.metric("edgehub_requests_not_served_total", &["id=\"edge-1/b\""]);
    assert_eq!(counted as usize, forged.len());
    for (client, rid) in [(&mut a, "of-a"), (&mut b, "of-b")] {
        let topic = format!("$iothub/twin/GET/?$rid={rid}");
        client.publish(&topic, QoS::AtMostOnce, b"").await.unwrap();
        let (topic, body, _) = message_with_topic(client).await;
        assert_eq!(topic, format!("$iothub/twin/res/200/?$rid={rid}"));
        assert!(!String::from_utf8_lossy(&body).contains("forged"));
    }
}

#[tokio::test]
async fn a_refused_publish_that_returns_is_acknowledged_and_counted() {
    let hub = start("info");
    let mut b = hub.connect("edge-1/b").await;
    b.subscribe(&inputs("b")).await.unwrap();
    let topic = output("c", "out", "");
    let mut a = hub.connect_tls("edge-1/a").await;
    a.send(&publication(&topic, 7, false)).await.unwrap();
    closed(&mut a).await;
    // As an SDK does it: a new connection, DUP, the same packet id.
    let mut a = hub.connect_tls("edge-1/a").await;
    a.send(&publication(&topic, 7, true)).await.unwrap();
    assert_eq!(
        receive(&mut a).await.unwrap(),
        Packet::PubAck(PacketId::new(7).unwrap())
    );
    let labels = ["reason=\"refused_again\"", "from=\"edge-1/a\""];
    assert_eq!(hub.metric(DROPPED, &labels), 1.0);
    assert!(hub.log_text().contains("refused again and acknowledged"));
    // The connection goes on, and only what is its own is delivered.
    publish(&mut a, &output("a", "out", ""), b"own").await;
    assert_eq!(message(&mut b).await.1, b"own");
    // Another topic with that packet id, or another packet id, was not refused before.
    for (topic, packet_id) in [(output("c", "more", ""), 7), (topic, 8)] {
        a.send(&publication(&topic, packet_id, true)).await.unwrap();
        closed(&mut a).await;
        a = hub.connect_tls("edge-1/a").await;
    }
    // Nor is it remembered for other identities.
    let mut c = hub.connect("edge-1/c").await;
    c.send(&publication(&output("b", "out", ""), 9, true))
        .await
        .unwrap();
    closed(&mut c).await;
    a.send(&publication(&output("b", "out", ""), 9, true))
        .await
        .unwrap();
    closed(&mut a).await;
    assert_eq!(hub.metric(DROPPED, &labels), 1.0);
    let mut c = hub.connect("edge-1/c").await;
    publish(&mut c, &output("c", "out", ""), b"last").await;
    assert_eq!(message(&mut b).await.1, b"last");
}

/// Routes by who sent a message; `to("x", …)` leads to the input x of b.
fn routes_by_connection() -> String {
    let to = |name: &str, from: &str| {
        let sink = format!(r#"BrokeredEndpoint(\"/modules/b/inputs/{name}\")"#);
        format!(r#""{name}":"FROM /messages/{from} INTO {sink}""#)
    };
    let routes = [
        to("a", "* WHERE $connectionModuleId = 'a'"),
        to("x", "* WHERE $connectionDeviceId = 'x'"),
        to("u", "* WHERE deviceId = 'x' OR moduleId = 'a'"),
        to("c", "modules/c/*"),
    ];
    format!("{{{}}}", routes.join(","))
}

#[tokio::test]
async fn user_properties_do_not_pose_as_the_connections() {
    let setup = Setup::new(&routes_by_connection(), &["a", "b", "c"]);
    let hub = setup.start();
    let mut b = hub.connect("edge-1/b").await;
    b.subscribe(&inputs("b")).await.unwrap();
    let mut c = hub.connect("edge-1/c").await;
    for bag in [
        "%24.cdid=x&%24.cmid=a",
        "$.cdid=x&$.cmid=a",
        "%24%2Ecdid=x&%24%2ecmid=a",
        "%24.CDID=x&%24.CMID=a",
        "deviceId=x&moduleId=a",
        "DEVICEID=x&ModuleID=a",
        "%64eviceId=x&%6DoduleId=a",
        "$connectionDeviceId=x&$connectionModuleId=a",
        "%24connectionDeviceId=x&%24connectionModuleId=a",
        "%24CONNECTIONDEVICEID=x&%24connectionmoduleid=a",
        "connectionDeviceId=x&connectionModuleId=a",
        "iothub-connection-device-id=x&iothub-connection-module-id=a",
        "ok=1&%24.cmid=a&%24.cmid=a&%24.cmid",
    ] {
        publish(&mut c, &output("c", "out", bag), b"").await;
        let (topic, _, _) = message_with_topic(&mut b).await;
        let (prefix, received) = topic.rsplit_once('/').unwrap();
        assert_eq!(prefix, "devices/edge-1/modules/b/inputs/c", "{bag}");
        for (key, value) in [("%24.cdid", "edge-1"), ("%24.cmid", "c")] {
            let named = |pair: &&str| {
                let name = pair.split('=').next().unwrap_or_default();
                let name = name
                    .to_ascii_lowercase()
                    .replace("%2e", ".")
                    .replace('$', "%24");
                name == key
            };
            let found: Vec<_> = received.split('&').filter(named).collect();
            assert_eq!(
                found,
                [format!("{key}={value}")],
                "{bag} came as {received}"
            );
        }
        for untrusted in ["deviceid=", "moduleid=", "%24connection"] {
            let posed = received
                .split('&')
                .any(|pair| pair.to_ascii_lowercase().starts_with(untrusted));
            assert!(!posed, "{bag} came as {received}");
        }
    }
    // The real one counts, whatever the bag says.
    let mut a = hub.connect("edge-1/a").await;
    publish(&mut a, &output("a", "out", "%24.cmid=c&moduleId=c"), b"").await;
    let (topic, _, _) = message_with_topic(&mut b).await;
    assert_eq!(
        topic,
        "devices/edge-1/modules/b/inputs/a/%24.cdid=edge-1&%24.cmid=a"
    );
}

/// Connects with a will for `topic`, and drops the connection without DISCONNECT.
async fn lost_with_will(hub: &Hub, identity: &str, topic: &str) {
    let hello = hub.hello(identity);
    let mut client = Client::tcp(hub.tcp()).await.unwrap();
    let will = Will {
        topic,
        payload: b"will",
        qos: QoS::AtMostOnce,
        retain: false,
    };
    let connect = FromClient::Connect(Connect {
        clean_session: true,
        keep_alive_seconds: 60,
        client_id: &hello.client_id,
        will: Some(will),
        username: hello.username.as_deref(),
        password: hello.password.as_deref().map(str::as_bytes),
    });
    client.send(&connect).await.unwrap();
    let answer = receive(&mut client).await.unwrap();
    assert!(matches!(answer, Packet::ConnAck { .. }), "{answer:?}");
}

#[tokio::test]
async fn a_will_in_anothers_name_is_refused() {
    let hub = start("info");
    let mut b = hub.connect("edge-1/b").await;
    b.subscribe(&inputs("b")).await.unwrap();
    let posed = "devices/edge-1/modules/c/messages/events/";
    lost_with_will(&hub, "edge-1/a", posed).await;
    hub.until("the refused will is counted", |hub| {
        let labels = ["reason=\"other_identity\"", "from=\"edge-1/a\""];
        hub.metric(DROPPED, &labels) as u64 == 1
    });
    lost_with_will(
        &hub,
        "edge-1/a",
        "devices/edge-1/modules/a/messages/events/",
    )
    .await;
    let (topic, body, _) = message_with_topic(&mut b).await;
    assert_eq!(body, b"will");
    assert!(topic.ends_with("%24.cdid=edge-1&%24.cmid=a"), "{topic}");
    hub.until("the refused will is in the log", |hub| {
        let log = hub.log_text();
        log.lines()
            .any(|line| line.contains("WARN") && line.contains(posed))
    });
}

#[tokio::test]
async fn outputs_without_a_route_are_no_labels() {
    let sink = r#"BrokeredEndpoint(\"/modules/b/inputs/in\")"#;
    let routes = format!(r#"{{"r":"FROM /messages/modules/a/outputs/routed INTO {sink}"}}"#);
    let setup = Setup::new(&routes, &["a", "b"]);
    let hub = setup.start();
    let mut a = hub.connect("edge-1/a").await;
    for name in ["routed", "made-up-1", "made-up-2"] {
        publish(&mut a, &output("a", name, ""), b"").await;
    }
    let metrics = hub.get("/metrics").1;
    assert!(metrics.contains("route_output=\"routed\""), "{metrics}");
    let made_up = metrics.lines().find(|line| line.contains("made-up"));
    assert_eq!(made_up, None, "a client chooses a label");
}

#[tokio::test]
async fn a_client_without_credentials_takes_nobodys_place() {
    let mut setup = setup();
    setup.listeners = setup
        .listeners
        .replace("\"tcp\"", "\"tcp\"\nanonymous = true");
    let hub = setup.start();
    let mut b = hub.connect("edge-1/b").await;
    b.subscribe(&inputs("b")).await.unwrap();
    for client_id in ["edge-1/b", "edge-1", "b"] {
        let hello = Hello {
            client_id: client_id.to_owned(),
            clean_session: true,
            ..Hello::default()
        };
        let mut stranger = Client::tcp(hub.tcp()).await.unwrap();
        stranger.connect(&hello).await.unwrap();
        for filter in [inputs("b").as_str(), "$iothub/#", "$iothub/twin/res/#", "#"] {
            let code = stranger.subscribe(filter).await.unwrap();
            assert_eq!(code, SubAckCode::Failure, "{client_id} {filter}");
        }
        stranger
            .send(&publication(&output("b", "out", ""), 1, false))
            .await
            .unwrap();
        closed(&mut stranger).await;
    }
    // b is still in, and gets only what modules send.
    let mut a = hub.connect("edge-1/a").await;
    publish(&mut a, &output("a", "out", ""), b"own").await;
    assert_eq!(message(&mut b).await.1, b"own");
    assert_eq!(
        hub.metric("edgehub_connections_closed_total", &["taken_over"]),
        0.0
    );
}

fn keys(hub: &Hub, identity: &str) -> Vec<Vec<u8>> {
    let registry = edgehub::files::read_identities(&hub.dir.join("identities.json")).unwrap();
    let identity = Identity::parse(identity).unwrap();
    match registry.get(&identity).unwrap().authentication() {
        Authentication::Sas { primary, secondary } => [Some(primary), secondary.as_ref()]
            .into_iter()
            .flatten()
            .map(|key| key.as_bytes().to_vec())
            .collect(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn keys_and_tokens_are_nowhere_to_be_read() {
    let hub = start("trace");
    let mut secrets = vec!["hunter2-garbage".to_owned()];
    for identity in ["edge-1/a", "edge-1/b", "edge-1/c", "edge-1"] {
        for key in keys(&hub, identity) {
            secrets.push(BASE64_STANDARD.encode(&key));
            secrets.push(format!("{key:?}"));
            secrets.push(key.iter().map(|byte| format!("{byte:02x}")).collect());
        }
    }
    let right = hub.hello("edge-1/a");
    let wrong = common::hello("edge-1/b", b"wrong");
    let mut garbage = hub.hello("edge-1/c");
    garbage.password = Some("hunter2-garbage".to_owned());
    let mut broken = hub.hello("edge-1/c");
    broken.password = broken.password.map(|token| token.replace("&se=", "&se=x"));
    for hello in [&right, &wrong, &garbage, &broken] {
        let signature = hello.password.as_deref().unwrap_or_default();
        let signature = signature
            .split(['=', '&'])
            .nth(3)
            .unwrap_or("hunter2-garbage");
        secrets.push(signature.to_owned());
        secrets.push(
            signature
                .replace("%2F", "/")
                .replace("%2B", "+")
                .replace("%3D", "="),
        );
        let mut client = hub.tls(None).await.unwrap();
        let _ = client.connect(hello).await;
    }
    let mut a = hub.connect_tls("edge-1/a").await;
    publish(&mut a, &output("a", "out", ""), b"x").await;
    // Identities that change are named in the log, and one that does not read is refused there.
    let path = hub.dir.join("identities.json");
    let text = fs::read_to_string(&path).unwrap();
    let swapped = text
        .replace("primaryKey", "x")
        .replace("secondaryKey", "primaryKey");
    common::replace(&path, &swapped.replace("\"x\"", "\"secondaryKey\""));
    let reloaded = |hub: &Hub, result| {
        let labels = ["what=\"identities\"", result];
        hub.metric("edgehub_reloads_total", &labels) as u64 == 1
    };
    hub.until("reloaded", |hub| reloaded(hub, "\"ok\""));
    let key = BASE64_STANDARD.encode(&keys(&hub, "edge-1/b")[0]);
    common::replace(&path, &text.replace(&key, &format!("{}!", &key[1..])));
    hub.until("refused", |hub| reloaded(hub, "\"refused\""));
    secrets.push(key[1..].to_owned());
    let log = hub.log_text();
    assert!(
        log.contains("TRACE") || log.contains("DEBUG"),
        "the log is not at trace"
    );
    let shown = [log, hub.get("/metrics").1, hub.get("/status").1];
    for secret in &secrets {
        for text in &shown {
            let line = text.lines().find(|line| line.contains(secret.as_str()));
            assert_eq!(line, None, "a secret is shown");
        }
    }
}
