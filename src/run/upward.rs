//! What `[upstream]` means: its files read, ready for the forwarder.

use std::fmt::Display;
use std::path::Path;
use std::sync::Arc;

use rustls::{ClientConfig, RootCertStore};

use crate::client::{ClientError, roots, trusting};
use crate::config::{Config, DrainOrder, MqttVersion, Transport, Upstream, UpstreamKind};
use crate::files;
use crate::hub::{Dialect, Forwarding, Inbound};
use crate::identity::Secret;
use crate::limits::TOPIC_BYTES_MAX;
use crate::limits::pace::Pace;
use crate::session::UpwardTiming;
use crate::upstream::dial::{InWebSocket, Reach};
use crate::upstream::filters::Filters;
use crate::upstream::settings::{Account, Settings};

/// In `data_dir`: the topic filters that the cloud may have of us.
const FILTERS_FILE: &str = "upstream-filters.json";
/// From the first byte to CONNACK, where the server was never quicker.
const ACCEPT_MS: u64 = 20_000;
/// A WebSocket message may hold several packets.
const WEBSOCKET_BYTES_MIN: usize = 4 << 20;
/// How long a server may leave publications unacknowledged though it answers otherwise.
const ACK_STALL_MS: u64 = 60_000;

/// Reads the files that `[upstream]` names; `None` where there is no cloud. What cannot be read or
/// used is an error, each with its file.
pub(super) fn load(config: &Config) -> Result<Option<Settings>, Vec<String>> {
    let upstream = &config.upstream;
    if upstream.kind == UpstreamKind::None {
        return Ok(None);
    }
    let mut errors = Vec::new();
    let tls = match upstream.transport {
        Transport::Tls | Transport::Wss => tls(upstream).map_err(|error| errors.push(error)).ok(),
        _ => None,
    };
    let password = upstream.password_file.as_deref().map(password).transpose();
    let password = password.map_err(|error| errors.push(error)).ok().flatten();
    if !errors.is_empty() {
        return Err(errors);
    }
    let account = match upstream.kind {
        UpstreamKind::IotHub => Account::IotHub {
            hostname: config.iothub_hostname.clone(),
            ttl_seconds: upstream.token_ttl_seconds,
        },
        UpstreamKind::Mqtt | UpstreamKind::None => Account::Mqtt {
            client_id: upstream
                .client_id
                .clone()
                .unwrap_or_else(|| config.device_id.clone()),
            username: upstream.username.clone(),
            password: password.map(|bytes| Secret::new(&bytes)),
        },
    };
    let is_iothub = upstream.kind == UpstreamKind::IotHub;
    Ok(Some(Settings {
        reach: Reach {
            servers: upstream.servers.clone(),
            tls,
            websocket: websocket(config),
            proxy: upstream.proxy.clone(),
        },
        account,
        is_v5: upstream.version == MqttVersion::V5,
        forwarding: Arc::new(forwarding(upstream)),
        timing: UpwardTiming {
            accept_ms: ACCEPT_MS,
            dead_peer_ms: upstream.dead_peer_seconds * 1000,
            ack_stall_ms: ACK_STALL_MS,
            window: upstream.window,
        },
        idle_ms: is_iothub.then_some(upstream.idle_timeout_seconds * 1000),
        has_certificate: upstream.certificate.is_some(),
        pace: Pace::new(upstream.max_messages_per_second),
        filters: Filters::new(
            config.data_dir.join(FILTERS_FILE),
            files::write_private,
            upstream
                .subscribe
                .iter()
                .map(|one| one.filter.clone())
                .collect(),
        ),
        random: || files::random().map_or(0, u64::from_le_bytes),
    }))
}

fn websocket(config: &Config) -> Option<InWebSocket> {
    let upstream = &config.upstream;
    let is_wanted = matches!(upstream.transport, Transport::Ws | Transport::Wss);
    let packet_bytes = config.limits.max_message_bytes + TOPIC_BYTES_MAX;
    is_wanted.then(|| InWebSocket {
        path: upstream.path.clone(),
        message_bytes_max: packet_bytes.max(WEBSOCKET_BYTES_MIN),
    })
}

fn forwarding(upstream: &Upstream) -> Forwarding {
    let inbound = upstream.subscribe.iter().map(|one| Inbound {
        filter: one.filter.clone(),
        input: one.input.clone(),
    });
    Forwarding {
        dialect: match upstream.kind {
            UpstreamKind::IotHub => Dialect::IotHub,
            UpstreamKind::Mqtt | UpstreamKind::None => Dialect::Topic(upstream.topic.clone()),
        },
        acknowledged: upstream.qos > 0,
        max_message_bytes: upstream.max_message_bytes,
        live_share: (upstream.drain == DrainOrder::LiveFirst).then_some(upstream.live_share),
        inbound: inbound.collect(),
    }
}

fn tls(upstream: &Upstream) -> Result<Arc<ClientConfig>, String> {
    let bad = |error: ClientError| format!("[upstream]: {error}");
    let roots = match upstream.ca.as_deref() {
        Some(ca) => roots(&read("ca", ca)?).map_err(|error| at(ca, &error))?,
        None => system_roots()?,
    };
    if let (true, Some(ca)) = (roots.is_empty(), &upstream.ca) {
        return Err(at(ca, &"holds no certificate"));
    }
    let client = match (&upstream.certificate, &upstream.key) {
        (Some(certificate), Some(key)) => {
            Some((read("certificate", certificate)?, read("key", key)?))
        }
        _ => None,
    };
    let client = client
        .as_ref()
        .map(|(chain, key)| (chain.as_slice(), key.as_slice()));
    trusting(roots, client).map_err(bad)
}

/// The authorities that the system trusts.
fn system_roots() -> Result<RootCertStore, String> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    let (added, _) = roots.add_parsable_certificates(found.certs);
    if added > 0 {
        return Ok(roots);
    }
    let why = found.errors.first().map(ToString::to_string);
    let why = why.unwrap_or_else(|| "it has none".to_owned());
    Err(format!(
        "[upstream]: the system's certificate authorities cannot be read: {why}; \
         install the package ca-certificates, or name a file with `ca`"
    ))
}

fn read(key: &str, path: &Path) -> Result<Vec<u8>, String> {
    let why = |error| at(path, &format!("{error} (`{key}` in [upstream])"));
    std::fs::read(path).map_err(why)
}

/// The password is the file's first line.
fn password(path: &Path) -> Result<Vec<u8>, String> {
    let bytes = read("password_file", path)?;
    let line = bytes
        .split(|byte| *byte == b'\n')
        .next()
        .unwrap_or_default();
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    if line.is_empty() {
        return Err(at(path, &"holds no password"));
    }
    Ok(line.to_vec())
}

fn at(path: &Path, error: &dyn Display) -> String {
    format!("{}: {error}", path.display())
}
