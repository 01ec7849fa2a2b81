//! `[upstream]`: the cloud, or the hub above this one.

use std::net::IpAddr;
use std::path::PathBuf;

use super::Transport;
use super::read::{ROOT_KEYS, TRANSPORTS, any_text};
use super::reader::Reader;
use super::section::Section;
use super::values::Refusal;
use crate::message::Endpoint;
use crate::topic;
use crate::topic::template::Template;
use crate::upstream::dial::Server;

/// Where MQTT is in WebSocket: as brokers have it, and the IoT Hub.
const PATHS: (&str, &str) = ("/mqtt", "/$iothub/websocket");
/// Port of HTTP proxies.
const PROXY_PORT: u16 = 3128;
/// Largest message that the IoT Hub takes (facts §1.2).
const IOTHUB_MESSAGE_BYTES_MAX: usize = 256 * 1024;
/// Where messages go up there, the property bag behind it.
const TOPIC: &str = "devices/{device}/modules/{module}/messages/events/";

/// `[upstream]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Upstream {
    /// What is up there. Default `none`.
    pub kind: UpstreamKind,
    /// In order of preference. Default with `iothub`: `iothub_hostname`.
    pub servers: Vec<Server>,
    /// PEM file with the authorities that may sign the server's certificate. Default: those that
    /// the system trusts.
    pub ca: Option<PathBuf>,
    /// PEM file with the client certificate.
    pub certificate: Option<PathBuf>,
    /// PEM file with its private key.
    pub key: Option<PathBuf>,
    /// Client id, with `mqtt`. Default: `device_id`.
    pub client_id: Option<String>,
    /// User name, with `mqtt`.
    pub username: Option<String>,
    /// File that holds the password and nothing else, with `mqtt`.
    pub password_file: Option<PathBuf>,
    /// How to connect: `tls`, the default, `tcp`, `wss` or `ws`.
    pub transport: Transport,
    /// Path and query of the WebSocket. Default `/mqtt`, with `iothub` `/$iothub/websocket`.
    pub path: String,
    /// Topic to publish to, with `mqtt`. Default
    /// `devices/{device}/modules/{module}/messages/events/`.
    pub topic: Template,
    /// What is subscribed to, with `mqtt`.
    pub subscribe: Vec<Subscription>,
    /// Quality of service of publications: 0 or 1. Default 1.
    pub qos: u8,
    /// What is spoken. Default 3.1.1.
    pub version: MqttVersion,
    /// HTTP proxy to connect through.
    pub proxy: Option<Server>,
    /// Messages sent and not acknowledged yet, of one connection. Default 100.
    pub window: u16,
    /// Order in which a backlog leaves. Default `fifo`.
    pub drain: DrainOrder,
    /// Of a hundred messages, so many are new ones while a backlog drains, with `live-first`.
    /// Default 80.
    pub live_share: u8,
    /// Most messages in a second; 0, the default: no limit.
    pub max_messages_per_second: u32,
    /// Largest message, body and properties, in bytes. Default with `iothub`: 256 KiB.
    pub max_message_bytes: Option<usize>,
    /// A server from which nothing comes for so long is gone. Default 10 seconds.
    pub dead_peer_seconds: u64,
    /// A connection of a module that sent nothing for so long is closed, with `iothub`.
    /// Default 3600 seconds (facts §7).
    pub idle_timeout_seconds: u64,
    /// For how long a token is made, with `iothub`. Default 3600 seconds.
    pub token_ttl_seconds: u64,
}

/// What is upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UpstreamKind {
    /// Nothing.
    None,
    /// The cloud's hub, or an edge hub above this one.
    IotHub,
    /// Any MQTT broker.
    Mqtt,
}

/// A version of MQTT.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MqttVersion {
    /// 3.1.1.
    V311,
    /// 5.
    V5,
}

/// Order in which a backlog leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DrainOrder {
    /// Oldest first, within a priority.
    Fifo,
    /// What is new gets most turns.
    LiveFirst,
}

/// A subscription up there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subscription {
    /// The topic filter.
    pub filter: String,
    /// The input that gets its messages: `MODULE/INPUT`.
    pub input: Endpoint,
}

pub(super) fn read(mut section: Section<'_, '_>) -> Upstream {
    let kinds = [
        ("none", UpstreamKind::None),
        ("iothub", UpstreamKind::IotHub),
        ("mqtt", UpstreamKind::Mqtt),
    ];
    let drains = [
        ("fifo", DrainOrder::Fifo),
        ("live-first", DrainOrder::LiveFirst),
    ];
    let versions = [("3.1.1", MqttVersion::V311), ("5", MqttVersion::V5)];
    let kind = section.choice("kind", &kinds, UpstreamKind::None);
    let transport = section.choice("transport", &TRANSPORTS, Transport::Tls);
    let port = port_of(transport);
    let server = |text: &str| Server::parse(text, port).map_err(|error| (error, None));
    let path = section.parsed("path", path);
    if path.is_some() && !is_websocket(transport) {
        let origin = section.reader.origin(&["upstream.path"]);
        let message = "`path` has no effect without WebSocket".to_owned();
        let hint = Some("`transport = \"wss\"` uses it".to_owned());
        section.reader.warning(&origin, message, hint);
    }
    let usual = match kind {
        UpstreamKind::IotHub => PATHS.1,
        UpstreamKind::Mqtt | UpstreamKind::None => PATHS.0,
    };
    let max_message_bytes = section.size("max_message_bytes", 0..=1 << 28, 0_usize);
    let default_bytes = (kind == UpstreamKind::IotHub).then_some(IOTHUB_MESSAGE_BYTES_MAX);
    let upstream = Upstream {
        kind,
        servers: section.list("servers", server),
        ca: section.path("ca"),
        certificate: section.path("certificate"),
        key: section.path("key"),
        client_id: section.text("client_id"),
        username: section.text("username"),
        password_file: section.path("password_file"),
        transport,
        path: path.unwrap_or_else(|| usual.to_owned()),
        topic: topic_of(&mut section),
        subscribe: subscriptions(&mut section),
        qos: section.number("qos", 0..=1, 1),
        version: section.choice("version", &versions, MqttVersion::V311),
        proxy: section.parsed("proxy", proxy),
        window: section.number("window", 1..=u16::MAX, 100),
        drain: section.choice("drain", &drains, DrainOrder::Fifo),
        live_share: section.number("live_share", 1..=99, 80),
        max_messages_per_second: section.number("max_messages_per_second", 0..=u32::MAX, 0),
        max_message_bytes: Some(max_message_bytes)
            .filter(|bytes| *bytes > 0)
            .or(default_bytes),
        dead_peer_seconds: section.number("dead_peer_seconds", 2..=3600, 10),
        idle_timeout_seconds: section.number("idle_timeout_seconds", 1..=86_400, 3600),
        token_ttl_seconds: section.number("token_ttl_seconds", 5..=31_536_000, 3600),
    };
    section.finish(&ROOT_KEYS);
    upstream
}

fn is_websocket(transport: Transport) -> bool {
    matches!(transport, Transport::Ws | Transport::Wss)
}

fn port_of(transport: Transport) -> u16 {
    match transport {
        Transport::Tls => 8883,
        Transport::Tcp => 1883,
        Transport::Wss => 443,
        Transport::Ws => 80,
    }
}

fn path(text: &str) -> Result<String, Refusal> {
    let is_path = text.starts_with('/')
        && !text.contains(['#', '"', '<', '>', '\\', '^', '`', '{', '|', '}'])
        && text.bytes().all(|byte| byte.is_ascii_graphic());
    let hint = || Some("such as \"/mqtt\"".to_owned());
    is_path
        .then(|| text.to_owned())
        .ok_or_else(|| ("is no path of a URL".to_owned(), hint()))
}

fn topic_of(section: &mut Section<'_, '_>) -> Template {
    let parse = |text: &str| -> Result<Template, Refusal> {
        Template::parse(text).map_err(|error| (format!("is no topic: {error}"), None))
    };
    let topic = section.parsed("topic", parse);
    topic
        .or_else(|| Template::parse(TOPIC).ok())
        .unwrap_or_default()
}

fn subscriptions(section: &mut Section<'_, '_>) -> Vec<Subscription> {
    let mut list = Vec::new();
    for (index, value) in section.tables("subscribe").into_iter().enumerate() {
        let Some(mut one) = section.element("subscribe", index, value) else {
            continue;
        };
        let filter = one.parsed("filter", filter);
        let filter = one.require("filter", filter);
        let input = one.parsed("input", input);
        let input = one.require("input", input);
        one.finish(&[]);
        if let (Some(filter), Some(input)) = (filter, input) {
            list.push(Subscription { filter, input });
        }
    }
    list
}

fn filter(text: &str) -> Result<String, Refusal> {
    let text = any_text(text)?;
    topic::check_filter(&text).map_err(|error| (format!("is no filter: {error}"), None))?;
    if text.starts_with('$') {
        return Err((
            "begins with $, which is not for subscribing".to_owned(),
            None,
        ));
    }
    Ok(text)
}

fn input(text: &str) -> Result<Endpoint, Refusal> {
    let hint = || Some("such as \"worker/commands\"".to_owned());
    match Endpoint::parse(text) {
        Some(endpoint @ Endpoint::Input { .. }) => Ok(endpoint),
        _ => Err(("is no input, MODULE/INPUT".to_owned(), hint())),
    }
}

/// A proxy's URL; the text may hold a password, so that no message repeats it.
fn proxy(text: &str) -> Result<Server, Refusal> {
    if text.contains('@') {
        let message = "must not hold a user name or a password".to_owned();
        return Err((message, None));
    }
    let hint = || Some("such as \"http://proxy.example:3128\"".to_owned());
    let Some(address) = text.strip_prefix("http://") else {
        return Err(("is not the URL of an HTTP proxy".to_owned(), hint()));
    };
    let address = address.strip_suffix('/').unwrap_or(address);
    Server::parse(address, PROXY_PORT).map_err(|error| (error, hint()))
}

/// What contradicts other keys.
pub(super) fn check(reader: &mut Reader<'_>, upstream: &mut Upstream, iothub_hostname: &str) {
    if upstream.kind == UpstreamKind::None {
        return;
    }
    let mut error = |key: &str, message: &str, hint: Option<&str>| {
        let origin = reader.origin(&[&format!("upstream.{key}"), "upstream.kind"]);
        reader.error(&origin, message.to_owned(), hint.map(ToOwned::to_owned));
    };
    if upstream.certificate.is_some() != upstream.key.is_some() {
        let message = "`certificate` and `key` belong together";
        error("certificate", message, None);
    }
    let is_iothub = upstream.kind == UpstreamKind::IotHub;
    let is_cloud = upstream.servers.is_empty() && is_iothub;
    if is_cloud {
        let port = match upstream.transport {
            Transport::Tls | Transport::Tcp => port_of(Transport::Tls),
            transport => port_of(transport),
        };
        upstream
            .servers
            .extend(Server::parse(iothub_hostname, port));
    }
    if upstream.servers.is_empty() {
        let hint = Some("such as [\"broker.example:8883\"]");
        error("servers", "`servers` is missing", hint);
    }
    let only_mqtt = [
        ("client_id", upstream.client_id.is_some()),
        ("username", upstream.username.is_some()),
        ("password_file", upstream.password_file.is_some()),
        ("subscribe", !upstream.subscribe.is_empty()),
    ];
    for (key, is_set) in only_mqtt {
        if is_set && is_iothub {
            let message = format!("`{key}` has no effect with kind \"iothub\"");
            let hint = "each module logs in with its own identity";
            error(key, &message, Some(hint));
        }
    }
    let is_v311 = upstream.version == MqttVersion::V311;
    if is_v311 && upstream.password_file.is_some() && upstream.username.is_none() {
        let message = "a password needs a `username` (MQTT 3.1.1 §3.1.2.9)";
        error("password_file", message, None);
    }
    if is_cloud && !is_v311 {
        let origin = reader.origin(&["upstream.version", "upstream.kind"]);
        let message = "the IoT Hub itself speaks MQTT 3.1.1".to_owned();
        let hint = "\"5\" is for an edgehub above this one, which `servers` names";
        reader.warning(&origin, message, Some(hint.to_owned()));
    }
    remarks(reader, upstream);
}

/// What is allowed and hardly meant.
fn remarks(reader: &mut Reader<'_>, upstream: &Upstream) {
    let mut warning = |key: &str, message: &str, hint: &str| {
        let origin = reader.origin(&[&format!("upstream.{key}"), "upstream.kind"]);
        reader.warning(&origin, message.to_owned(), Some(hint.to_owned()));
    };
    if upstream.transport.is_encrypted() {
        return;
    }
    for (key, path) in [("ca", &upstream.ca), ("certificate", &upstream.certificate)] {
        if path.is_some() {
            let message = format!("`{key}` has no effect without TLS");
            warning(key, &message, "`transport = \"tls\"` uses it");
        }
    }
    let is_near = |server: &Server| {
        let address = server.host.parse::<IpAddr>();
        server.host == "localhost" || address.is_ok_and(|address| address.is_loopback())
    };
    if upstream.password_file.is_some() && !upstream.servers.iter().all(is_near) {
        let message = "the password goes over the network as it is";
        warning("transport", message, "`transport = \"tls\"` protects it");
    }
}
