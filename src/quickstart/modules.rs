//! The demo modules: a sensor and a monitor, each a client of the hub over TLS.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use rustls::ClientConfig;

use super::{DEVICE, HOST, IOTHUB, say};
use crate::client::{Client, ClientError, Hello, Packet, tls_config};
use crate::config::Config;
use crate::files;
use crate::identity::{Authentication, Identity};
use crate::iothub::sas;
use crate::mqtt::QoS;

/// The demo modules' tokens last longer than anybody watches.
const TOKEN_SECONDS: u64 = 7 * 24 * 3600;

/// Sends one reading under a message id and waits until the hub has it.
pub(super) async fn measure(sensor: &mut Client, number: u64, id: &str) -> Result<(), ClientError> {
    let celsius = 24.0 + f64::from((number % 5) as u32) * 2.0;
    let payload = format!("{{\"celsius\":{celsius:.1}}}");
    let topic = format!(
        "devices/{DEVICE}/modules/sensor/messages/events/%24.on=temperature\
         &%24.mid={id}&%24.ct=application%2Fjson&%24.ce=utf-8"
    );
    sensor
        .publish(&topic, QoS::AtLeastOnce, payload.as_bytes())
        .await?;
    sensor.receive().await?;
    Ok(())
}

/// Acknowledges a message; its topic and body.
pub(super) async fn take(
    monitor: &mut Client,
    packet: Packet,
) -> Result<Option<(String, Bytes)>, ClientError> {
    let Packet::Publish {
        topic,
        payload,
        packet_id,
        ..
    } = packet
    else {
        return Ok(None);
    };
    if let Some(packet_id) = packet_id {
        monitor.acknowledge(packet_id).await?;
    }
    Ok(Some((topic, payload)))
}

/// The input that a message came to.
pub(super) fn input(topic: &str) -> &str {
    topic.split('/').nth(5).unwrap_or_default()
}

/// Both modules, each connected as its own identity; the monitor listens to its inputs.
pub(super) async fn connect(
    dir: &Path,
    config: &Config,
    address: SocketAddr,
) -> Result<(Client, Client), ClientError> {
    let ca = fs::read(dir.join("ca.pem"))?;
    let tls = tls_config(&ca, None)?;
    let mut monitor = login(config, address, &tls, "monitor").await?;
    let inputs = format!("devices/{DEVICE}/modules/monitor/inputs/#");
    monitor.subscribe(&inputs).await?;
    let sensor = login(config, address, &tls, "sensor").await?;
    say("modules sensor and monitor are connected, each as its own identity");
    Ok((sensor, monitor))
}

async fn login(
    config: &Config,
    address: SocketAddr,
    tls: &Arc<ClientConfig>,
    module: &str,
) -> Result<Client, ClientError> {
    let identity = Identity::module(DEVICE, module);
    let registry = files::read_identities(&config.identities)
        .map_err(|errors| io::Error::other(errors.join("\n")))?;
    let entry = registry.get(&identity).map(|entry| entry.authentication());
    let Some(Authentication::Sas { primary, .. }) = entry else {
        return Err(io::Error::other(format!("{identity} has no key")).into());
    };
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let expiry = now.map_or(0, |now| now.as_secs()) + TOKEN_SECONDS;
    let resource = sas::resource(IOTHUB, &identity);
    let mut client = Client::tls(address, HOST, Arc::clone(tls)).await?;
    let hello = Hello {
        client_id: identity.to_string(),
        username: Some(format!("{IOTHUB}/{identity}/?api-version=2021-04-12")),
        password: Some(sas::sign(primary.as_bytes(), &resource, expiry)),
        clean_session: true,
        keep_alive_seconds: 60,
    };
    client.connect(&hello).await?;
    Ok(client)
}
