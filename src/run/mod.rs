//! The hub in the foreground: read the files, bind, say who is there, wait, reload, drain.

mod durable;
mod heap;
mod reload;
mod upward;
mod watching;

use std::collections::HashMap;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use serde_json::json;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};

use crate::config::{Config, StoreConfig, WhenFull};
use crate::diagnostic::{Diagnostic, Severity, texts};
use crate::files;
use crate::http;
use crate::hub::{Hub, Settings};
use crate::identity::Registry;
use crate::identity::users::Users;
use crate::mailbox::DRAIN;
use crate::manifest::Manifest;
use crate::observe::Metrics;
use crate::routes::RouteTable;
use crate::server::tls::{SharedTls, TlsState};
use crate::server::{self, Clock, Shared};
use crate::store::Bounds;
use crate::upstream::{Forwarder, settings};
pub use durable::{STORE_DIR, Stopped, note_purged};
use heap::Heap;
use watching::{Seen, Watch, watched};

/// Between two looks at expired messages and gauges.
const SWEEP_EVERY: Duration = Duration::from_secs(1);
/// Files change in bursts: a reload waits until they have been quiet for this long.
const SETTLE: Duration = Duration::from_millis(100);
/// Between two looks whether all clients have gone while draining.
const DRAIN_CHECK: Duration = Duration::from_millis(10);

/// Why the hub did not start.
#[derive(Debug)]
pub enum StartError {
    /// Something is wrong with the configuration or a file that it names.
    Configuration(Vec<String>),
    /// The system refused, for example a port that is in use.
    System(String),
}

/// A hub that is bound and serving.
pub struct Running {
    config: Config,
    hub: Arc<Hub>,
    shared: Shared,
    listeners: HashMap<usize, Bound>,
    http: Option<SocketAddr>,
    stop: watch::Sender<bool>,
    files: Seen,
    watch: Watch,
    changed: mpsc::Receiver<()>,
    /// The manifest was refused for the sake of another file: read it again when one changes.
    manifest_pending: bool,
    forwarder: Option<Forwarder>,
    log: SetLevel,
    _lock: std::fs::File,
}

struct Bound {
    address: SocketAddr,
    stop: watch::Sender<bool>,
}

/// Changes the log level of the running process.
pub type SetLevel = Box<dyn Fn(&str) -> Result<(), String> + Send + Sync>;

/// What the configuration's files hold.
struct Read {
    manifest: (Manifest, RouteTable, Vec<Diagnostic>),
    registry: Registry,
    users: Option<Users>,
    tls: SharedTls,
    upstream: Option<settings::Settings>,
}

impl Read {
    /// Reads all files and makes identities for modules that have none; all problems at once.
    fn all(config: &Config, files: &mut Seen) -> Result<Self, Vec<String>> {
        let mut problems = Vec::new();
        let mut keep = |errors: Vec<String>| problems.extend(errors);
        let manifest = files::read_manifest(&config.manifest, config.limits.max_routes)
            .map_err(|errors| keep(texts(&errors)));
        if let Ok((manifest, _, diagnostics)) = &manifest {
            report(diagnostics);
            make_identities(config, manifest).unwrap_or_else(&mut keep);
        }
        files.changed(&config.identities);
        let registry = files::read_identities(&config.identities).map_err(&mut keep);
        let ask = registry.as_ref().is_ok_and(Registry::has_x509);
        let tls: SharedTls = Arc::new(ArcSwapOption::empty());
        match config.tls.as_ref().map(|tls| TlsState::load(tls, ask)) {
            Some(Ok(state)) => tls.store(Some(Arc::new(state))),
            Some(Err(error)) => keep(vec![error]),
            None => {}
        }
        let users = read_users(config).map_err(&mut keep);
        let upstream = upward::load(config).map_err(&mut keep);
        match (manifest, registry, users, upstream) {
            (Ok(manifest), Ok(registry), Ok(users), Ok(upstream)) if problems.is_empty() => {
                Ok(Self {
                    manifest,
                    registry,
                    users,
                    tls,
                    upstream,
                })
            }
            _ => Err(problems),
        }
    }
}

/// The users, if there is a file of them.
fn read_users(config: &Config) -> Result<Option<Users>, Vec<String>> {
    let users = config.users.as_deref().map(files::read_users);
    users.transpose().map_err(|errors| texts(&errors))
}

/// Identities for the manifest's modules that have none.
fn make_identities(config: &Config, manifest: &Manifest) -> Result<(), Vec<String>> {
    let made = files::ensure_identities(&config.identities, &config.device_id, manifest)?;
    if !made.is_empty() {
        tracing::info!(identities = ?made, "identities made for modules");
    }
    Ok(())
}

impl Running {
    /// Reads everything, binds all listeners and serves. Must be called within a runtime.
    ///
    /// # Errors
    /// What is wrong, all of it at once where it is the configuration.
    pub fn start(config: Config, log: SetLevel) -> Result<Self, StartError> {
        raise_file_limit();
        let system =
            |error: io::Error, what: String| StartError::System(format!("{what}: {error}"));
        let data = &config.data_dir;
        let at_data = |error| system(error, data.display().to_string());
        files::make_private_dir(data).map_err(at_data)?;
        let lock = lock(data).map_err(|error| system(error, data.display().to_string()))?;
        // First watch, then look at the files, then read them: no change is missed in between.
        let (changes, changed) = mpsc::channel(1);
        let mut watch = Watch::new(changes);
        watch.add(&watched(&config));
        let mut files = Seen::default();
        for path in watched(&config) {
            files.changed(&path);
        }
        let config = match Config::load(&config.file) {
            Ok((config, _)) => config,
            Err(diagnostics) => return Err(StartError::Configuration(texts(&diagnostics))),
        };
        let read = Read::all(&config, &mut files).map_err(StartError::Configuration)?;
        let (manifest, table, diagnostics) = read.manifest;
        let no_random = |error: io::Error| StartError::System(error.to_string());
        let key = files::random().map_err(no_random)?;
        let instance = instance().map_err(StartError::System)?;
        let metrics = Metrics::new(&config.iothub_hostname, &config.device_id, &instance);
        let clock = Clock::start();
        let durable = durable::open(&config, clock)?;
        let settings = settings(&config);
        let hub = Hub::new(settings, read.registry, durable, metrics);
        hub.set_password_key(&key);
        hub.set_users(read.users);
        hub.set_authorization(config.authorization.clone());
        hub.set_routes(table, &manifest, route_problems(&diagnostics));
        let hub = Arc::new(hub);
        let start = |settings| Forwarder::start(settings, &hub, clock);
        let forwarder = read.upstream.map(start);
        let shared = Shared::new(Arc::clone(&hub), clock, read.tls);
        let (stop, _) = watch::channel(false);
        let mut running = Self {
            listeners: HashMap::new(),
            http: None,
            shared,
            hub,
            stop,
            files,
            watch,
            changed,
            manifest_pending: false,
            forwarder,
            log,
            _lock: lock,
            config,
        };
        running.listen()?;
        running.serve_http()?;
        Ok(running)
    }

    /// The addresses of the MQTT listeners, in the order of the configuration.
    #[must_use]
    pub fn addresses(&self) -> Vec<SocketAddr> {
        let mut places: Vec<_> = self.listeners.iter().collect();
        places.sort_by_key(|(place, _)| **place);
        places.into_iter().map(|(_, bound)| bound.address).collect()
    }

    /// The hub itself.
    #[must_use]
    pub fn hub(&self) -> &Hub {
        &self.hub
    }

    /// The line that tells scripts that everything is bound.
    #[must_use]
    pub fn ready_line(&self) -> String {
        let mut listeners = Vec::new();
        for (place, listener) in self.config.listeners.iter().enumerate() {
            if let Some(bound) = self.listeners.get(&place) {
                let address = bound.address.to_string();
                let transport = listener.transport.name();
                listeners.push(json!({ "transport": transport, "address": address }));
            }
        }
        if let Some(http) = self.http {
            listeners.push(json!({ "transport": "http", "address": http.to_string() }));
        }
        json!({ "event": "ready", "listeners": listeners }).to_string()
    }

    /// Serves until SIGTERM or SIGINT, then drains. Reloads what changes, and all of it at SIGHUP.
    ///
    pub async fn serve(mut self, mut signals: Signals) {
        let mut sweep = tokio::time::interval(SWEEP_EVERY);
        let mut heap = Heap::new();
        loop {
            tokio::select! {
                _ = signals.terminate.recv() => break,
                _ = signals.interrupt.recv() => break,
                _ = signals.hang_up.recv() => self.reload().await,
                Some(()) = self.changed.recv() => {
                    tokio::time::sleep(SETTLE).await;
                    let _ = self.changed.try_recv();
                    self.reload().await;
                }
                _ = sweep.tick() => {
                    self.hub.sweep(self.shared.clock.now());
                    self.hub.metrics().upkeep();
                    heap.upkeep();
                }
            }
        }
        self.drain().await;
    }

    /// Stops accepting, tells all clients to go and waits for them, so long at most.
    pub async fn drain(&mut self) {
        tracing::info!("shutting down");
        let _ = self.stop.send(true);
        for bound in self.listeners.values() {
            let _ = bound.stop.send(true);
        }
        self.hub.announce(DRAIN);
        let limit = Duration::from_secs(self.config.limits.drain_timeout_seconds);
        let gone = async {
            while self.hub.connected() > 0 {
                tokio::time::sleep(DRAIN_CHECK).await;
            }
        };
        if tokio::time::timeout(limit, gone).await.is_err() {
            tracing::warn!(
                left = self.hub.connected(),
                "clients left after drain_timeout_seconds"
            );
        }
        if let Some(forwarder) = self.forwarder.take() {
            forwarder.stop().await;
        }
        self.hub.close_store(self.shared.clock.now());
    }

    fn listen(&mut self) -> Result<(), StartError> {
        let mut errors = Vec::new();
        for (place, listener) in self.config.listeners.iter().enumerate() {
            match server::bind(listener.bind) {
                Ok((socket, address)) => {
                    let (stop, stopped) = watch::channel(false);
                    let shared = self.shared.clone();
                    tokio::spawn(server::accept(socket, listener.clone(), shared, stopped));
                    self.listeners.insert(place, Bound { address, stop });
                }
                Err(error) => errors.push(format!("cannot listen on {}: {error}", listener.bind)),
            }
        }
        if errors.is_empty() {
            return Ok(());
        }
        Err(StartError::System(errors.join("\n")))
    }

    fn serve_http(&mut self) -> Result<(), StartError> {
        let Some(settings) = &self.config.http else {
            return Ok(());
        };
        let (socket, address) = server::bind(settings.bind).map_err(|error| {
            StartError::System(format!("cannot listen on {}: {error}", settings.bind))
        })?;
        self.http = Some(address);
        let stopped = self.stop.subscribe();
        tokio::spawn(http::serve(socket, self.shared.clone(), stopped));
        Ok(())
    }
}

/// Starts the hub, prints the ready line and serves.
///
/// # Errors
/// What [`Running::start`] says.
pub async fn run(config: Config, log: SetLevel) -> Result<(), StartError> {
    let system = |error: io::Error| StartError::System(error.to_string());
    let signals = Signals::listen().map_err(system)?;
    let running = Running::start(config, log)?;
    let line = running.ready_line();
    let mut out = io::stdout().lock();
    // Nobody may be listening; that is no reason not to serve.
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
    drop(out);
    running.serve(signals).await;
    Ok(())
}

/// What is wrong with the files that `[upstream]` names.
#[must_use]
pub fn check_upstream(config: &Config) -> Vec<String> {
    upward::load(config).err().unwrap_or_default()
}

/// The signals that the hub answers to; from here on none is lost.
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
}

impl Signals {
    /// Listens for SIGTERM, SIGINT and SIGHUP.
    ///
    /// # Errors
    /// The system has no signals for us.
    pub fn listen() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }
}

fn settings(config: &Config) -> Settings {
    Settings {
        device_id: config.device_id.clone(),
        iothub_hostname: config.iothub_hostname.clone(),
        gateway_hostname: config.gateway_hostname.clone(),
        limits: config.limits.clone(),
        bounds: bounds(config),
        log: durable::options(config),
    }
}

fn bounds(config: &Config) -> Bounds {
    let StoreConfig {
        max_bytes,
        when_full,
        ..
    } = config.store;
    let messages = config.limits.endpoint_max_messages;
    Bounds {
        max_bytes,
        endpoint_max_bytes: config.limits.endpoint_max_bytes,
        endpoint_max_messages: usize::try_from(messages).unwrap_or(usize::MAX),
        drop_oldest: when_full == WhenFull::DropOldest,
    }
}

fn route_problems(diagnostics: &[Diagnostic]) -> Vec<String> {
    let errors = diagnostics.iter().filter(|d| d.severity == Severity::Error);
    errors.map(ToString::to_string).collect()
}

/// Writes diagnostics to the log.
pub fn report(diagnostics: &[Diagnostic]) {
    for diagnostic in diagnostics {
        match diagnostic.severity {
            Severity::Error => tracing::error!("{diagnostic}"),
            Severity::Warning => tracing::warn!("{diagnostic}"),
        }
    }
}

/// One hub per data folder.
fn lock(data: &Path) -> io::Result<std::fs::File> {
    let file = std::fs::OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(data.join("LOCK"))?;
    file.try_lock().map_err(|_| {
        io::Error::new(
            io::ErrorKind::AddrInUse,
            "another hub runs on this data_dir",
        )
    })?;
    Ok(file)
}

fn instance() -> Result<String, String> {
    let bytes: [u8; 12] = files::random().map_err(|error| error.to_string())?;
    Ok(BASE64_URL_SAFE_NO_PAD.encode(bytes))
}

/// Every connection is a file: take as many as the system lets us have.
pub fn raise_file_limit() {
    let raised = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let wanted = rustix::process::Rlimit {
        current: raised.maximum,
        maximum: raised.maximum,
    };
    if let Err(error) = rustix::process::setrlimit(rustix::process::Resource::Nofile, wanted) {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}
