//! The configuration file: as written (`reader`, a TOML tree whose every value knows its place),
//! then as meant ([`Config`]). The rest of the program never sees an unparsed text.
//!
//! All errors come at once, each with its place, because a device far away is visited once.

mod check;
mod read;
mod reader;
mod section;
#[cfg(test)]
mod tests;
mod upstream;
mod values;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use toml::de::DeTable;

use crate::diagnostic::{Diagnostic, Diagnostics, Position};
use crate::identity::rules::Statement;
use crate::limits::{CONFIG_BYTES_MAX, Limits};
use reader::Reader;
pub use upstream::{DrainOrder, MqttVersion, Subscription, Upstream, UpstreamKind};
pub use values::AddressRange;

/// Environment variables with this prefix override keys of the file.
pub const VARIABLE_PREFIX: &str = "EDGEHUB_";

/// The whole configuration; paths are ready to open.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// The file it was read from.
    pub file: PathBuf,
    /// The edge device this hub runs on. Mandatory.
    pub device_id: String,
    /// The name that SAS tokens are scoped to. Mandatory.
    pub iothub_hostname: String,
    /// The name modules connect to. Default `localhost`.
    pub gateway_hostname: String,
    /// Where the hub keeps its state. Default `data`, beside the file.
    pub data_dir: PathBuf,
    /// The deployment manifest. Mandatory.
    pub manifest: PathBuf,
    /// The identities file. Mandatory.
    pub identities: PathBuf,
    /// The users file. Default: none.
    pub users: Option<PathBuf>,
    /// Where the hub listens. Default: one, TLS on 0.0.0.0:8883.
    pub listeners: Vec<Listener>,
    /// The hub's own certificate; there whenever a listener needs it.
    pub tls: Option<Tls>,
    /// How messages are kept.
    pub store: StoreConfig,
    /// Every bound.
    pub limits: Limits,
    /// Threads.
    pub server: Server,
    /// The cloud, or the hub above this one.
    pub upstream: Upstream,
    /// Metrics and health; `None`: not served.
    pub http: Option<Http>,
    /// Who may use plain topics: each `[[authorization]]`, in the order of the file.
    pub authorization: Vec<Statement>,
    /// What is logged, and how.
    pub log: Log,
}

/// One `[[listener]]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Listener {
    /// Address and port; port 0 takes any free one. Mandatory.
    pub bind: SocketAddr,
    /// What runs on the socket. Default `tls`.
    pub transport: Transport,
    /// Whether clients without credentials are let in. Default `false`.
    pub anonymous: bool,
    /// Allows `anonymous` on an address other than loopback. Default `false`.
    pub allow_remote_anonymous: bool,
    /// Allows `tcp` and `ws` on an address other than loopback. Default `false`.
    pub allow_cleartext: bool,
    /// Addresses whose PROXY protocol header is believed. Default: none.
    pub trusted_proxies: Vec<AddressRange>,
}

/// What runs on a listener's sockets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// MQTT on plain TCP.
    Tcp,
    /// MQTT on TLS.
    Tls,
    /// MQTT in WebSocket on plain TCP.
    Ws,
    /// MQTT in WebSocket on TLS, and the HTTPS API.
    Wss,
}

impl Transport {
    /// Whether the transport is encrypted.
    #[must_use]
    pub fn is_encrypted(self) -> bool {
        matches!(self, Self::Tls | Self::Wss)
    }

    /// The name in the configuration.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Tls => "tls",
            Self::Ws => "ws",
            Self::Wss => "wss",
        }
    }
}

/// `[tls]`. That the files exist is checked where they are opened.
#[derive(Debug, Clone, PartialEq)]
pub struct Tls {
    /// PEM file with the server's certificate chain. Mandatory in the section.
    pub certificate: PathBuf,
    /// PEM file with its private key. Mandatory in the section.
    pub key: PathBuf,
    /// PEM file with the trust bundle for client certificates. Default: none.
    pub client_ca: Option<PathBuf>,
    /// Lowest version that is accepted. Default `1.2`.
    pub min_version: TlsVersion,
}

/// A TLS version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum TlsVersion {
    /// `1.2`
    Tls12,
    /// `1.3`
    Tls13,
}

/// `[store]`.
#[derive(Debug, Clone, PartialEq)]
pub struct StoreConfig {
    /// When a message counts as kept. Default `always`.
    pub sync: Sync,
    /// Budget of syncs for flash media; 0, the default: no limit.
    pub max_syncs_per_second: u32,
    /// Bytes on disk. Default 1 GiB.
    pub max_bytes: u64,
    /// Bytes that stay free on the volume. Default 64 MiB.
    pub min_free_bytes: u64,
    /// What happens when there is no room. Default `reject`.
    pub when_full: WhenFull,
    /// Size of one data file, in bytes. Default 8 MiB.
    pub segment_bytes: u64,
}

/// When a message counts as kept, and is acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sync {
    /// After the disk has confirmed it: survives a loss of power.
    Always,
    /// After the write; the disk is asked to confirm every so often.
    Interval {
        /// Milliseconds between two confirmations. Default 1,000.
        ms: u64,
    },
    /// After the write: survives a crash of the hub, not of the system.
    Os,
    /// At once, without a disk.
    Memory,
}

/// What happens when the store or a queue is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhenFull {
    /// New messages are refused.
    Reject,
    /// The oldest of the least urgent make room.
    DropOldest,
}

/// `[server]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Server {
    /// Threads; 0, the default: one per core.
    pub workers: usize,
}

/// `[http]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Http {
    /// Address and port. Default 127.0.0.1:9600 where the section is there.
    pub bind: SocketAddr,
}

/// `[log]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Log {
    /// `error`, `warn`, `info`, `debug` or `trace`, or a list such as
    /// `info,edgehub::session=debug`. Default `info`.
    pub level: String,
    /// Text or JSON lines. Default `text`.
    pub format: LogFormat,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For programs: one JSON object in each line.
    Json,
}

impl Config {
    /// Reads and checks a configuration file, with the overrides of this process's environment.
    ///
    /// # Errors
    ///
    /// Everything that is wrong, in the order of the file, warnings included.
    pub fn load(path: &Path) -> Result<(Self, Vec<Diagnostic>), Vec<Diagnostic>> {
        let unreadable = |message: String| {
            vec![
                Diagnostic::error(path, Position::WHOLE_FILE, message)
                    .with_hint("`--config` names the configuration file"),
            ]
        };
        let text = read_text(path).map_err(unreadable)?;
        Self::parse(&text, path, &environment()?)
    }

    /// Checks a configuration. `file` is used for messages and relative paths only;
    /// `environment` holds the variables that may override keys.
    ///
    /// # Errors
    ///
    /// Everything that is wrong, in the order of the file, warnings included.
    pub fn parse(
        text: &str,
        file: &Path,
        environment: &BTreeMap<String, String>,
    ) -> Result<(Self, Vec<Diagnostic>), Vec<Diagnostic>> {
        // Some editors begin a file with a byte order mark.
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let (root, syntax) = DeTable::parse_recoverable(text);
        let mut reader = Reader::new(file, text, environment);
        reader.broken_syntax = !syntax.is_empty();
        let mut unchecked = read::config(&mut reader, root.get_ref());
        if syntax.is_empty() {
            check::config(&mut reader, &mut unchecked);
        }
        reader.check_variables();
        let mut diagnostics = reader.into_diagnostics();
        if !syntax.is_empty() {
            diagnostics = with_syntax_errors(text, file, &syntax, diagnostics);
        }
        if diagnostics.has_errors() {
            return Err(diagnostics.into_sorted());
        }
        Ok((unchecked.config, diagnostics.into_sorted()))
    }
}

/// The syntax errors, and of the others those that are in sound lines.
fn with_syntax_errors(
    text: &str,
    file: &Path,
    errors: &[toml::de::Error],
    others: Diagnostics,
) -> Diagnostics {
    let mut diagnostics = Diagnostics::default();
    let mut broken_lines = BTreeSet::new();
    for error in errors {
        let span = error.span();
        let position = span.map_or(Position::WHOLE_FILE, |span| Position::of(text, span.start));
        // What follows in the same line is a consequence more often than not.
        if broken_lines.insert(position.line) {
            let message = error.message().lines().collect::<Vec<_>>().join(", ");
            diagnostics.push(Diagnostic::error(file, position, message));
        }
    }
    diagnostics.extend(others.into_iter().filter(|other| {
        let consequence = other.file == file && broken_lines.contains(&other.line);
        !consequence
    }));
    diagnostics
}

fn read_text(path: &Path) -> Result<String, String> {
    let cannot = |error: std::io::Error| format!("cannot be read: {error}");
    let file = std::fs::File::open(path).map_err(cannot)?;
    let mut bytes = Vec::new();
    file.take(CONFIG_BYTES_MAX as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(cannot)?;
    if bytes.len() > CONFIG_BYTES_MAX {
        return Err(format!("is larger than {CONFIG_BYTES_MAX} bytes"));
    }
    String::from_utf8(bytes)
        .map_err(|error| format!("is not UTF-8 at byte {}", error.utf8_error().valid_up_to()))
}

fn environment() -> Result<BTreeMap<String, String>, Vec<Diagnostic>> {
    let mut variables = BTreeMap::new();
    let mut errors = Vec::new();
    for (name, value) in std::env::vars_os() {
        let Some(name) = name
            .to_str()
            .filter(|name| name.starts_with(VARIABLE_PREFIX))
        else {
            continue;
        };
        match value.into_string() {
            Ok(value) => drop(variables.insert(name.to_owned(), value)),
            Err(_) => errors.push(reader::variable_error(name, "is not valid Unicode")),
        }
    }
    if errors.is_empty() {
        Ok(variables)
    } else {
        Err(errors)
    }
}
