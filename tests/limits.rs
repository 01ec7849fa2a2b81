//! Bounds of what clients do: connections of one login, connects and messages in a second.
#![allow(missing_docs, clippy::unwrap_used, clippy::indexing_slicing)]

mod common;

use std::time::{Duration, Instant};

use edgehub::client::ClientError;
use edgehub::mqtt::ConnectReturnCode;
use edgehub::mqtt::v5::ReasonCode;

use common::five::{Five, Got};
use common::{Hub, Setup, message, output, publish, scene};

const FAILED: &str = "edgehub_client_connect_failed_total";

fn setup(limits: &str) -> Setup {
    let mut setup = Setup::new(&scene::routes(&[("a/out", "b/in")]), &["a", "b"]);
    setup.listeners += "anonymous = true\n";
    setup.extra = format!("[limits]\n{limits}\n");
    setup
}

async fn anonymous(hub: &Hub, id: &str) -> (Five, ReasonCode, Vec<String>) {
    let (five, connack) = Five::anonymous(hub, id, true, &[]).await;
    match connack {
        Got::ConnAck {
            reason, properties, ..
        } => (five, reason, properties),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_login_has_so_many_connections_and_modules_are_not_counted() {
    let setup = setup("max_connections_per_login = 2");
    let hub = setup.start();
    let (one, reason, _) = anonymous(&hub, "one").await;
    assert_eq!(reason, ReasonCode::Success);
    let (_two, reason, _) = anonymous(&hub, "two").await;
    assert_eq!(reason, ReasonCode::Success);
    let (_, reason, properties) = anonymous(&hub, "three").await;
    assert_eq!(reason, ReasonCode::QuotaExceeded);
    let why = "ReasonString(\"login refused: over max_connections_per_login\")";
    assert_eq!(properties, [why]);
    // The same client again takes its own place.
    let (_again, reason, _) = anonymous(&hub, "two").await;
    assert_eq!(reason, ReasonCode::Success);
    for module in ["edge-1/a", "edge-1/b"] {
        hub.connect(module).await.disconnect().await.unwrap();
    }
    one.leave(ReasonCode::Success, &[]).await;
    let (_, reason, _) = anonymous(&hub, "three").await;
    assert_eq!(reason, ReasonCode::Success);
}

#[tokio::test]
async fn connects_over_the_rate_are_refused_and_told_so() {
    let setup = setup("max_connects_per_second = 3");
    let hub = setup.start();
    let begin = Instant::now();
    let mut last = hub.connect("edge-1/a").await;
    let mut refused = 0;
    for _ in 0..10 {
        let (_, reason, _) = anonymous(&hub, "x").await;
        if reason != ReasonCode::Success {
            assert_eq!(reason, ReasonCode::ConnectionRateExceeded);
            refused += 1;
        }
        let mut three = edgehub::client::Client::tcp(hub.tcp()).await.unwrap();
        match three.connect(&hub.hello("edge-1/b")).await {
            Ok(_) => last = three,
            Err(ClientError::Refused(code)) => {
                assert_eq!(code, ConnectReturnCode::ServerUnavailable);
                refused += 1;
            }
            Err(error) => panic!("{error}"),
        }
    }
    // Three at once, and three in each second since.
    let (first, most) = (3.0, 3.0 + 3.0 * begin.elapsed().as_secs_f64());
    let taken = f64::from(21 - refused);
    assert!((first..=most).contains(&taken), "{taken} in {most}");
    let counted = hub.metric(FAILED, &["reason=\"connect_rate\""]);
    assert_eq!(counted, f64::from(refused));
    drop(last);
    hub.until("the next second lets clients in", |hub| {
        let mut socket = std::net::TcpStream::connect(hub.tcp()).unwrap();
        let connect = b"\x10\x0d\x00\x04MQTT\x04\x02\x00\x00\x00\x01y";
        std::io::Write::write_all(&mut socket, connect).unwrap();
        let mut connack = [0; 4];
        std::io::Read::read_exact(&mut socket, &mut connack).unwrap();
        connack == [0x20, 2, 0, 0]
    });
}

#[tokio::test]
async fn who_publishes_too_much_is_read_from_more_slowly_and_loses_nothing() {
    // A stall closes at once; this is none.
    let setup = setup("max_messages_per_second = 50\npublish_stall_seconds = 0");
    let hub = setup.start();
    let mut b = scene::receiver(&hub, "b").await;
    let mut a = hub.connect("edge-1/a").await;
    let begin = Instant::now();
    let topic = output("a", "out", "");
    let qos = edgehub::mqtt::QoS::AtLeastOnce;
    for n in 0..60 {
        a.publish(&topic, qos, format!("{n}").as_bytes())
            .await
            .unwrap();
    }
    for n in 0..60 {
        assert_eq!(message(&mut b).await.1, format!("{n}").as_bytes());
    }
    // Five may go at once, and then one every 20 ms.
    let took = begin.elapsed();
    assert!(took >= Duration::from_millis(1050), "{took:?}");
    assert!(hub.metric("edgehub_publishers_slowed_total", &["id=\"edge-1/a\""]) > 0.0);
    let mut other = hub.connect("edge-1/b").await;
    publish(&mut other, &output("b", "out", ""), b"x").await;
}

/// A client of MQTT 5 is told, and has to keep to it; one of 3.1.1 cannot be told.
#[tokio::test]
async fn keep_alives_are_bounded_where_clients_can_be_told() {
    let setup = setup("max_keep_alive_seconds = 1");
    let hub = setup.start();
    let mut module = hub.connect("edge-1/a").await;
    let begin = Instant::now();
    let (mut five, reason, properties) = anonymous(&hub, "five").await;
    assert_eq!(reason, ReasonCode::Success);
    let told = "ServerKeepAlive(1)".to_owned();
    assert!(properties.contains(&told), "{properties:?}");
    assert_eq!(
        five.receive().await,
        Got::Disconnect(ReasonCode::KeepAliveTimeout)
    );
    let took = begin.elapsed();
    assert!(took >= Duration::from_millis(1500), "{took:?}");
    // It has been as quiet, for as long.
    publish(&mut module, &output("a", "out", ""), b"x").await;
}
