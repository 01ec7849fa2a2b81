//! The main job with no configuration: a hub on loopback, two demo modules over real TLS
//! connections, and what passes between them.

use std::fs;
use std::io::{self, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::ClientConfig;

use crate::certs::Authority;
use crate::client::{Client, ClientError, Hello, Packet, tls_config};
use crate::config::Config;
use crate::diagnostic::texts;
use crate::files;
use crate::identity::{Authentication, Identity};

use crate::iothub::sas;
use crate::mqtt::QoS;
use crate::run::{Running, SetLevel, StartError};

/// The manifest that the quickstart runs.
pub const MANIFEST: &str = include_str!("../routes/quickstart.json");

const DEVICE: &str = "edge-1";
const IOTHUB: &str = "example.azure-devices.net";
const HOST: &str = "localhost";
/// Where modules of the SDKs look for a hub; another port is taken if this one is busy.
const PORT: u16 = 8883;
const HTTP_PORT: u16 = 9600;
/// Between two messages for somebody who watches, and where a count was asked for.
const PACE: Duration = Duration::from_millis(500);
const PACE_COUNTED: Duration = Duration::from_millis(5);
/// The demo modules' tokens last longer than anybody watches.
const TOKEN_SECONDS: u64 = 7 * 24 * 3600;

/// Makes certificates, manifest and configuration in a folder, unless they are there already.
///
/// # Errors
/// A sentence about the file or port.
pub fn prepare(dir: &Path) -> Result<Config, String> {
    let text = |error: io::Error| format!("{}: {error}", dir.display());
    let authority = Authority::open(dir).map_err(|error| error.to_string())?;
    if !dir.join("server.pem").exists() {
        let names = [HOST.to_owned(), "127.0.0.1".to_owned()];
        authority
            .server(&names)
            .map_err(|error| error.to_string())?;
    }
    fs::write(dir.join("manifest.json"), MANIFEST).map_err(text)?;
    let (port, http) = (free_port(PORT), free_port(HTTP_PORT));
    let config = format!(
        r#"# Made by `edgehub quickstart`; `edgehub run --config` takes it as it is.
device_id = "{DEVICE}"
iothub_hostname = "{IOTHUB}"
gateway_hostname = "{HOST}"
manifest = "manifest.json"
identities = "identities.json"

[[listener]]
bind = "127.0.0.1:{port}"

[tls]
certificate = "server.pem"
key = "server.key"

[store]
sync = "memory"

[http]
bind = "127.0.0.1:{http}"

[log]
level = "warn"
"#
    );
    let path = dir.join("edgehub.toml");
    fs::write(&path, config).map_err(text)?;
    let (config, _) = Config::load(&path).map_err(|errors| texts(&errors).join("\n"))?;
    Ok(config)
}

/// Runs hub and demo modules until Ctrl-C, or until `messages` have passed.
///
/// # Errors
/// What keeps the hub from starting, or a demo module from talking to it.
pub async fn run(
    dir: &Path,
    config: Config,
    set_level: SetLevel,
    messages: Option<u64>,
) -> Result<(), StartError> {
    let mut hub = Running::start(config.clone(), set_level)?;
    let Some(address) = hub.addresses().first().copied() else {
        return Err(StartError::System("no listener".to_owned()));
    };
    say(&format!(
        "hub on {HOST}:{} (TLS), certificates in {}",
        address.port(),
        dir.display()
    ));
    say("route readings: every message of sensor/temperature goes to monitor/readings");
    say("route alerts:   those WHERE $body.celsius > 30 go to monitor/alerts as well");
    let demo = demo(dir, &config, address, messages);
    let result = tokio::select! {
        result = demo => result.map_err(|error| StartError::System(format!("demo: {error}"))),
        _ = tokio::signal::ctrl_c() => Ok(()),
    };
    hub.drain().await;
    result
}

async fn demo(
    dir: &Path,
    config: &Config,
    address: SocketAddr,
    messages: Option<u64>,
) -> Result<(), ClientError> {
    let ca = fs::read(dir.join("ca.pem"))?;
    let tls = tls_config(&ca, None)?;
    let mut monitor = connect(config, address, &tls, "monitor").await?;
    let inputs = format!("devices/{DEVICE}/modules/monitor/inputs/#");
    monitor.subscribe(&inputs).await?;
    let mut sensor = connect(config, address, &tls, "sensor").await?;
    say("modules sensor and monitor are connected, each as its own identity");
    let pace = if messages.is_some() {
        PACE_COUNTED
    } else {
        PACE
    };
    let mut tick = tokio::time::interval(pace);
    let mut sent = 0_u64;
    let mut passed = 0_u64;
    while messages.is_none_or(|messages| passed < messages) {
        tokio::select! {
            _ = tick.tick() => {
                measure(&mut sensor, sent).await?;
                sent += 1;
            }
            packet = monitor.receive() => {
                if show(&mut monitor, packet?).await? {
                    passed += 1;
                }
            }
        }
    }
    say(&format!("{passed} messages passed"));
    sensor.disconnect().await?;
    monitor.disconnect().await
}

/// Sends one reading and waits until the hub has it.
async fn measure(sensor: &mut Client, number: u64) -> Result<(), ClientError> {
    let celsius = 24.0 + f64::from((number % 5) as u32) * 2.0;
    let payload = format!("{{\"celsius\":{celsius:.1}}}");
    let topic = format!(
        "devices/{DEVICE}/modules/sensor/messages/events/%24.on=temperature\
         &%24.mid={number}&%24.ct=application%2Fjson&%24.ce=utf-8"
    );
    sensor
        .publish(&topic, QoS::AtLeastOnce, payload.as_bytes())
        .await?;
    sensor.receive().await?;
    Ok(())
}

/// Prints a message and acknowledges it.
async fn show(monitor: &mut Client, packet: Packet) -> Result<bool, ClientError> {
    let Packet::Publish {
        topic,
        payload,
        packet_id,
        ..
    } = packet
    else {
        return Ok(false);
    };
    let input = topic.split('/').nth(5).unwrap_or_default();
    let body = String::from_utf8_lossy(&payload);
    say(&format!("sensor/temperature -> monitor/{input:<8} {body}"));
    if let Some(packet_id) = packet_id {
        monitor.acknowledge(packet_id).await?;
    }
    Ok(true)
}

async fn connect(
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

/// The port, or 0 for any where it is taken.
fn free_port(port: u16) -> u16 {
    match TcpListener::bind(("127.0.0.1", port)) {
        Ok(_) => port,
        Err(_) => 0,
    }
}

fn say(line: &str) {
    // A closed stdout ends the show, not the hub.
    let _ = writeln!(io::stdout().lock(), "{line}");
}
