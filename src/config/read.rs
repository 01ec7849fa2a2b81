//! The sections and keys of the file, each with its range and default: the first stage.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use toml::de::DeTable;

use super::reader::Reader;
use super::section::Section;
use super::upstream;
use super::values::{
    Refusal, choose, parse_bind, parse_device_id, parse_hostname, parse_level, parse_range,
};
use super::{
    Config, Http, Listener, Log, LogFormat, Server, StoreConfig, Sync, Tls, TlsVersion, Transport,
    WhenFull,
};
use crate::identity::rules::{Grant, Operation, Statement, check_identity, check_resource};
use crate::limits::{Limits, Ranges};

pub(super) const ROOT_KEYS: [&str; 7] = [
    "device_id",
    "iothub_hostname",
    "gateway_hostname",
    "data_dir",
    "manifest",
    "identities",
    "users",
];

/// A configuration whose keys were read and not yet compared with each other. Where a key is
/// missing or broken, an error says so, and a stand-in has its place.
pub(super) struct Unchecked {
    pub(super) config: Config,
    /// For each listener its path in the reader: `listener[0]`.
    pub(super) listener_paths: Vec<String>,
}

pub(super) fn config<'a>(reader: &mut Reader<'a>, table: &'a DeTable<'a>) -> Unchecked {
    let file = reader.file.to_path_buf();
    let mut root = reader.root(table);
    let device_id = root.parsed("device_id", parse_device_id);
    let device_id = root.require("device_id", device_id);
    let iothub_hostname = root.parsed("iothub_hostname", parse_hostname);
    let iothub_hostname = root.require("iothub_hostname", iothub_hostname);
    let gateway_hostname = root.parsed("gateway_hostname", parse_hostname);
    let data_dir = root.path("data_dir");
    let manifest = root.path("manifest");
    let manifest = root.require("manifest", manifest);
    let identities = root.path("identities");
    let identities = root.require("identities", identities);
    let users = root.path("users");
    let data_dir = data_dir.unwrap_or_else(|| root.beside_file("data"));
    let (listeners, listener_paths) = listeners(&mut root);
    let config = Config {
        file,
        device_id: device_id.unwrap_or_default(),
        iothub_hostname: iothub_hostname.unwrap_or_default(),
        gateway_hostname: gateway_hostname.unwrap_or_else(|| "localhost".to_owned()),
        data_dir,
        manifest: manifest.unwrap_or_default(),
        identities: identities.unwrap_or_default(),
        users,
        listeners,
        tls: tls(root.section("tls")),
        store: store(root.section("store")),
        limits: limits(root.section("limits")),
        server: server(root.section("server")),
        upstream: upstream::read(root.section("upstream")),
        http: http(root.section("http")),
        authorization: authorization(&mut root),
        log: log(root.section("log")),
    };
    root.finish(&[]);
    Unchecked {
        config,
        listener_paths,
    }
}

pub(super) const TRANSPORTS: [(&str, Transport); 4] = [
    ("tcp", Transport::Tcp),
    ("tls", Transport::Tls),
    ("ws", Transport::Ws),
    ("wss", Transport::Wss),
];

fn listeners(root: &mut Section<'_, '_>) -> (Vec<Listener>, Vec<String>) {
    let mut listeners = Vec::new();
    let mut paths = Vec::new();
    for (index, value) in root.tables("listener").into_iter().enumerate() {
        let Some(mut section) = root.element("listener", index, value) else {
            continue;
        };
        let bind = section.parsed("bind", parse_bind);
        let bind = section.require("bind", bind);
        let transport = section.choice("transport", &TRANSPORTS, Transport::Tls);
        let anonymous = section.flag("anonymous");
        let allow_remote_anonymous = section.flag("allow_remote_anonymous");
        let allow_cleartext = section.flag("allow_cleartext");
        let trusted_proxies = section.list("trusted_proxies", parse_range);
        section.finish(&ROOT_KEYS);
        if let Some(bind) = bind {
            listeners.push(Listener {
                bind,
                transport,
                anonymous,
                allow_remote_anonymous,
                allow_cleartext,
                trusted_proxies,
            });
            paths.push(format!("listener[{index}]"));
        }
    }
    (listeners, paths)
}

fn tls(mut section: Section<'_, '_>) -> Option<Tls> {
    let mut certificate = section.path("certificate");
    let mut key = section.path("key");
    let client_ca = section.path("client_ca");
    let versions = [("1.2", TlsVersion::Tls12), ("1.3", TlsVersion::Tls13)];
    let min_version = section.choice("min_version", &versions, TlsVersion::Tls12);
    if section.is_written() {
        certificate = section.require("certificate", certificate);
        key = section.require("key", key);
    }
    section.finish(&ROOT_KEYS);
    Some(Tls {
        certificate: certificate?,
        key: key?,
        client_ca,
        min_version,
    })
}

fn store(mut section: Section<'_, '_>) -> StoreConfig {
    let ms = section.number("interval_ms", 1..=600_000, 1_000);
    let syncs = [
        ("always", Sync::Always),
        ("interval", Sync::Interval { ms }),
        ("os", Sync::Os),
        ("memory", Sync::Memory),
    ];
    let store = StoreConfig {
        sync: section.choice("sync", &syncs, Sync::Always),
        max_syncs_per_second: section.number("max_syncs_per_second", 0..=1_000_000, 0),
        max_bytes: section.size("max_bytes", 1 << 20..=1 << 50, 1 << 30),
        min_free_bytes: section.size("min_free_bytes", 0..=1 << 50, 64 << 20),
        when_full: section.choice(
            "when_full",
            &[
                ("reject", WhenFull::Reject),
                ("drop-oldest", WhenFull::DropOldest),
            ],
            WhenFull::Reject,
        ),
        segment_bytes: section.size("segment_bytes", 1 << 20..=1 << 30, 8 << 20),
    };
    section.finish(&ROOT_KEYS);
    store
}

fn limits(mut section: Section<'_, '_>) -> Limits {
    let default = Limits::DEFAULT;
    let s = &mut section;
    let limits = Limits {
        max_message_bytes: s.size(
            "max_message_bytes",
            Ranges::MAX_MESSAGE_BYTES,
            default.max_message_bytes,
        ),
        max_connections: s.number(
            "max_connections",
            Ranges::CONNECTIONS,
            default.max_connections,
        ),
        max_connections_per_login: s.number(
            "max_connections_per_login",
            Ranges::CONNECTIONS,
            default.max_connections_per_login,
        ),
        max_connects_per_second: s.number(
            "max_connects_per_second",
            Ranges::PER_SECOND,
            default.max_connects_per_second,
        ),
        max_messages_per_second: s.number(
            "max_messages_per_second",
            Ranges::PER_SECOND,
            default.max_messages_per_second,
        ),
        max_pending_connections: s.number(
            "max_pending_connections",
            Ranges::CONNECTIONS,
            default.max_pending_connections,
        ),
        max_inflight: s.number("max_inflight", Ranges::MAX_INFLIGHT, default.max_inflight),
        max_subscriptions: s.number(
            "max_subscriptions",
            Ranges::MAX_SUBSCRIPTIONS,
            default.max_subscriptions,
        ),
        max_topic_bytes: s.size(
            "max_topic_bytes",
            Ranges::MAX_TOPIC_BYTES,
            default.max_topic_bytes,
        ),
        ..time_limits(s)
    };
    section.finish(&ROOT_KEYS);
    limits
}

fn time_limits(s: &mut Section<'_, '_>) -> Limits {
    let default = Limits::DEFAULT;
    Limits {
        max_keep_alive_seconds: s.number(
            "max_keep_alive_seconds",
            Ranges::KEEP_ALIVE,
            default.max_keep_alive_seconds,
        ),
        connect_timeout_seconds: s.number(
            "connect_timeout_seconds",
            Ranges::CONNECT_TIMEOUT_SECONDS,
            default.connect_timeout_seconds,
        ),
        publish_stall_seconds: s.number(
            "publish_stall_seconds",
            Ranges::STALL_SECONDS,
            default.publish_stall_seconds,
        ),
        ack_stall_seconds: s.number(
            "ack_stall_seconds",
            Ranges::STALL_SECONDS,
            default.ack_stall_seconds,
        ),
        drain_timeout_seconds: s.number(
            "drain_timeout_seconds",
            Ranges::DRAIN_TIMEOUT_SECONDS,
            default.drain_timeout_seconds,
        ),
        ..queue_limits(s)
    }
}

fn queue_limits(section: &mut Section<'_, '_>) -> Limits {
    let default = Limits::DEFAULT;
    Limits {
        endpoint_max_bytes: section.size(
            "endpoint_max_bytes",
            Ranges::ENDPOINT_MAX_BYTES,
            default.endpoint_max_bytes,
        ),
        endpoint_max_messages: section.number(
            "endpoint_max_messages",
            Ranges::ENDPOINT_MAX_MESSAGES,
            default.endpoint_max_messages,
        ),
        max_output_bytes: section.size(
            "max_output_bytes",
            Ranges::MAX_OUTPUT_BYTES,
            default.max_output_bytes,
        ),
        max_routes: section.number("max_routes", Ranges::MAX_ROUTES, default.max_routes),
        max_sessions: section.number("max_sessions", Ranges::MAX_SESSIONS, default.max_sessions),
        max_retained_messages: section.number(
            "max_retained_messages",
            Ranges::MAX_RETAINED_MESSAGES,
            default.max_retained_messages,
        ),
        max_retained_bytes: section.size(
            "max_retained_bytes",
            Ranges::MAX_RETAINED_BYTES,
            default.max_retained_bytes,
        ),
        ..default
    }
}

fn server(mut section: Section<'_, '_>) -> Server {
    let workers = section.number("workers", 0..=1_024, 0);
    section.finish(&ROOT_KEYS);
    Server { workers }
}

fn http(mut section: Section<'_, '_>) -> Option<Http> {
    let bind = section.parsed("bind", parse_bind);
    let default = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9600);
    let http = section.is_written().then(|| Http {
        bind: bind.unwrap_or(default),
    });
    section.finish(&ROOT_KEYS);
    http
}

fn authorization(root: &mut Section<'_, '_>) -> Vec<Statement> {
    let mut list = Vec::new();
    for (index, value) in root.tables("authorization").into_iter().enumerate() {
        let Some(mut section) = root.element("authorization", index, value) else {
            continue;
        };
        let identities = section.filled_list("identities", |text| stated(text, check_identity));
        list.push(Statement {
            identities,
            allow: grants(&mut section, "allow"),
            deny: grants(&mut section, "deny"),
        });
        section.finish(&ROOT_KEYS);
    }
    list
}

fn grants(section: &mut Section<'_, '_>, key: &'static str) -> Vec<Grant> {
    let mut grants = Vec::new();
    for (index, value) in section.tables(key).into_iter().enumerate() {
        let Some(mut section) = section.element(key, index, value) else {
            continue;
        };
        let resource = |text: &str| stated(text, check_resource);
        let operation = |text: &str| choose(text, &Operation::NAMES);
        let mut grant = Grant {
            operations: section.filled_list("operations", operation),
            resources: Vec::new(),
        };
        grant.resources = if grant.needs_resources() {
            section.filled_list("resources", resource)
        } else {
            section.list("resources", resource)
        };
        section.finish(&[]);
        grants.push(grant);
    }
    grants
}

/// A text of a statement, if its rules take it.
fn stated(text: &str, check: fn(&str) -> Result<(), String>) -> Result<String, Refusal> {
    match check(text) {
        Ok(()) => Ok(text.to_owned()),
        Err(why) => Err((format!("holds {text:?}, which {why}"), None)),
    }
}

fn log(mut section: Section<'_, '_>) -> Log {
    let formats = [("text", LogFormat::Text), ("json", LogFormat::Json)];
    let log = Log {
        level: section
            .parsed("level", parse_level)
            .unwrap_or_else(|| "info".to_owned()),
        format: section.choice("format", &formats, LogFormat::Text),
    };
    section.finish(&ROOT_KEYS);
    log
}

pub(super) fn any_text(text: &str) -> Result<String, Refusal> {
    if text.is_empty() {
        return Err(("holds an empty string".to_owned(), None));
    }
    Ok(text.to_owned())
}
