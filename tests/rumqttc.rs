//! rumqttc, a client in Rust, on plain topics: every transport, both versions, every QoS.
#![allow(missing_docs, clippy::unwrap_used, clippy::indexing_slicing)]

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::{Hub, LIMIT, Setup, TRANSPORTS};
use edgehub::client::tls_config;
use rumqttc::{TlsConfiguration, Transport};

const COUNT: usize = 20;

/// What arrived: topic, payload, QoS, RETAIN.
type Arrived = (String, String, u8, bool);

/// Where the client connects to, and how.
fn way(setup: &Setup, hub: &Hub, transport: &str) -> (String, u16, Transport) {
    let port = hub.address(transport).port();
    let ca = std::fs::read(setup.path("certs/ca.pem")).unwrap();
    let tls = || TlsConfiguration::Rustls(Arc::clone(&tls_config(&ca, None).unwrap()));
    let name = || "localhost".to_owned();
    match transport {
        "tcp" => (name(), port, Transport::Tcp),
        "tls" => (name(), port, Transport::tls_with_config(tls())),
        "ws" => (format!("ws://localhost:{port}/mqtt"), port, Transport::Ws),
        _ => {
            let way = Transport::wss_with_config(tls());
            (format!("wss://localhost:{port}/mqtt"), port, way)
        }
    }
}

/// The retained message, and all others in the order of each QoS.
fn check(mut arrived: Vec<Arrived>, what: &str) {
    let is_retained = |one: &Arrived| one.0 == "in/retained";
    let at = arrived.iter().position(is_retained).unwrap();
    let retained = arrived.remove(at);
    assert_eq!(
        retained,
        ("in/retained".into(), "kept".into(), 2, true),
        "{what}"
    );
    for qos in 0..3 {
        let own: Vec<_> = arrived.iter().filter(|one| one.2 == qos).cloned().collect();
        let expected = (0..COUNT).map(|n| (format!("in/{qos}"), format!("{n} ä"), qos, false));
        assert_eq!(own, expected.collect::<Vec<_>>(), "{what}");
    }
}

/// One run with the client of one version, whose modules have the same names in them.
macro_rules! run {
    ($scene:expr, $transport:expr, $client:path, $qos:path, $packet:path) => {{
        use $client as client;
        use $packet as Packet;
        use $qos as QoS;
        let (setup, hub) = $scene;
        let (host, port, way) = way(setup, hub, $transport);
        let mut options = client::MqttOptions::new("rumqttc", host, port);
        options
            .set_transport(way)
            .set_keep_alive(Duration::from_secs(60));
        let (sender, mut events) = client::AsyncClient::new(options, 10);
        let sending = tokio::spawn(async move {
            let qos = [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce];
            sender
                .publish("in/retained", qos[2], true, "kept")
                .await
                .unwrap();
            sender.subscribe("in/#", qos[2]).await.unwrap();
            for n in 0..COUNT {
                for qos in qos {
                    let topic = format!("in/{}", qos as u8);
                    sender
                        .publish(topic, qos, false, format!("{n} ä"))
                        .await
                        .unwrap();
                }
            }
            sender
        });
        let mut arrived: Vec<Arrived> = Vec::new();
        while arrived.len() < 3 * COUNT + 1 {
            let event = tokio::time::timeout(LIMIT, events.poll()).await.unwrap();
            let event = event.unwrap();
            if let client::Event::Incoming(Packet::Publish(one)) = event {
                arrived.push((
                    String::from_utf8(Vec::from(one.topic)).unwrap(),
                    String::from_utf8(one.payload.to_vec()).unwrap(),
                    one.qos as u8,
                    one.retain,
                ));
            }
        }
        let sender = sending.await.unwrap();
        sender.disconnect().await.unwrap();
        arrived
    }};
}

#[tokio::test]
async fn rumqttc_of_3_1_1() {
    let setup = Setup::open_everywhere("{}", &[]);
    let scene = (&setup, &setup.start());
    for transport in TRANSPORTS {
        let arrived = run!(scene, transport, rumqttc, rumqttc::QoS, rumqttc::Packet);
        check(arrived, transport);
    }
}

#[tokio::test]
async fn rumqttc_of_mqtt_5() {
    let setup = Setup::open_everywhere("{}", &[]);
    let scene = (&setup, &setup.start());
    for transport in TRANSPORTS {
        let arrived = run!(
            scene,
            transport,
            rumqttc::v5,
            rumqttc::v5::mqttbytes::QoS,
            rumqttc::v5::mqttbytes::v5::Packet
        );
        check(arrived, transport);
    }
}
