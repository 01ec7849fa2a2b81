//! The main job with no configuration: a hub on loopback, two demo modules over real TLS
//! connections, and what passes between them; or, with a cloud, how its outage passes.

mod cloud;
mod modules;
mod outage;

use std::fs;
use std::io::{self, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::time::Duration;

use tokio::time::{Interval, MissedTickBehavior};

use crate::certs::Authority;
use crate::client::{Client, ClientError};
use crate::config::Config;
use crate::diagnostic::texts;
use crate::run::{Running, SetLevel, StartError};
pub use cloud::Cloud;

/// The manifest that the quickstart runs.
pub const MANIFEST: &str = include_str!("../routes/quickstart.json");
/// The same with one more route, to the cloud.
pub const MANIFEST_UPSTREAM: &str = include_str!("../routes/upstream.json");

const DEVICE: &str = "edge-1";
const IOTHUB: &str = "example.azure-devices.net";
const HOST: &str = "localhost";
/// Where modules of the SDKs look for a hub; another port is taken if this one is busy.
const PORT: u16 = 8883;
const HTTP_PORT: u16 = 9600;
/// Between two messages for somebody who watches, and where a count was asked for.
const PACE: Duration = Duration::from_millis(500);
const PACE_COUNTED: Duration = Duration::from_millis(5);

/// Makes certificates, manifest and configuration in a folder; certificates only where there are
/// none. With a cloud there is a route to it, and what waits is on disk.
///
/// # Errors
/// A sentence about the file or port.
pub fn prepare(dir: &Path, cloud: Option<&Cloud>) -> Result<Config, String> {
    let text = |error: io::Error| format!("{}: {error}", dir.display());
    let authority = Authority::open(dir).map_err(|error| error.to_string())?;
    if !dir.join("server.pem").exists() {
        let names = [HOST.to_owned(), "127.0.0.1".to_owned()];
        authority
            .server(&names)
            .map_err(|error| error.to_string())?;
    }
    let manifest = cloud.map_or(MANIFEST, |_| MANIFEST_UPSTREAM);
    fs::write(dir.join("manifest.json"), manifest).map_err(text)?;
    let path = dir.join("edgehub.toml");
    fs::write(&path, configuration(cloud.map(Cloud::address))).map_err(text)?;
    let (config, _) = Config::load(&path).map_err(|errors| texts(&errors).join("\n"))?;
    Ok(config)
}

fn configuration(cloud: Option<SocketAddr>) -> String {
    let (port, http) = (free_port(PORT), free_port(HTTP_PORT));
    let kept = match cloud {
        None => "[store]\nsync = \"memory\"\n".to_owned(),
        Some(address) => format!(
            r#"[store]
sync = "always"

[upstream]
kind = "mqtt"
servers = ["{address}"]
ca = "ca.pem"
"#
        ),
    };
    format!(
        r#"# Made by `edgehub quickstart`; `edgehub run --config` takes it as it is.
device_id = "{DEVICE}"
iothub_hostname = "{IOTHUB}"
gateway_hostname = "{HOST}"
manifest = "manifest.json"
identities = "identities.json"
data_dir = "{data}"

[[listener]]
bind = "127.0.0.1:{port}"

[tls]
certificate = "server.pem"
key = "server.key"

{kept}
[http]
bind = "127.0.0.1:{http}"

[log]
level = "warn"
"#,
        data = if cloud.is_some() { "upstream" } else { "data" },
    )
}

/// Runs hub and demo modules until Ctrl-C, or until `messages` have passed; with a cloud, which
/// is started and stopped, until so many readings have reached it.
///
/// # Errors
/// What keeps the hub or the cloud from starting, or a demo module from talking to the hub; a
/// message that does not reach the cloud in order.
pub async fn run(
    dir: &Path,
    config: Config,
    set_level: SetLevel,
    messages: Option<u64>,
    mut cloud: Option<Cloud>,
) -> Result<(), StartError> {
    if let Some(cloud) = &mut cloud {
        cloud.start(dir).await.map_err(StartError::System)?;
    }
    let mut hub = Running::start(config.clone(), set_level)?;
    let Some(address) = hub.addresses().first().copied() else {
        return Err(StartError::System("no listener".to_owned()));
    };
    say(&format!(
        "hub on {HOST}:{} (TLS), certificates in {}",
        address.port(),
        dir.display()
    ));
    if let Some(cloud) = &cloud {
        say(&format!("cloud on {} (TLS)", cloud.address()));
    }
    say("route readings: every message of sensor/temperature goes to monitor/readings");
    say("route alerts:   those WHERE $body.celsius > 30 go to monitor/alerts as well");
    let show = async {
        let clients = modules::connect(dir, &config, address).await;
        let clients = clients.map_err(|error| error.to_string())?;
        match &mut cloud {
            None => demo(clients, messages)
                .await
                .map_err(|error| error.to_string()),
            Some(cloud) => outage::show(dir, hub.hub(), cloud, clients, messages).await,
        }
    };
    let result = tokio::select! {
        result = show => result.map_err(|error| StartError::System(format!("demo: {error}"))),
        _ = tokio::signal::ctrl_c() => Ok(()),
    };
    hub.drain().await;
    result
}

async fn demo(
    (mut sensor, mut monitor): (Client, Client),
    messages: Option<u64>,
) -> Result<(), ClientError> {
    let mut pace = pace(messages);
    let mut sent = 0_u64;
    let mut passed = 0_u64;
    while messages.is_none_or(|messages| passed < messages) {
        tokio::select! {
            _ = pace.tick() => {
                modules::measure(&mut sensor, sent, &sent.to_string()).await?;
                sent += 1;
            }
            packet = monitor.receive() => {
                if let Some((topic, body)) = modules::take(&mut monitor, packet?).await? {
                    let input = modules::input(&topic);
                    let body = String::from_utf8_lossy(&body);
                    say(&format!("sensor/temperature -> monitor/{input:<8} {body}"));
                    passed += 1;
                }
            }
        }
    }
    say(&format!("{passed} messages passed"));
    sensor.disconnect().await?;
    monitor.disconnect().await
}

/// When the sensor measures.
fn pace(messages: Option<u64>) -> Interval {
    let mut pace = tokio::time::interval(messages.map_or(PACE, |_| PACE_COUNTED));
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    pace
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
