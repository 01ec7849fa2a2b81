//! The hub in the foreground: read the files, bind, say who is there, wait, reload, drain.

use std::collections::HashMap;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use notify::{RecursiveMode, Watcher};
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};

use crate::config::{Config, StoreConfig, Sync as SyncPolicy, WhenFull};
use crate::diagnostic::{Diagnostic, Severity};
use crate::files;
use crate::http;
use crate::hub::{Hub, Settings};
use crate::mailbox::DRAIN;
use crate::observe::{self, Metrics};
use crate::server::tls::{SharedTls, TlsState};
use crate::server::{self, Clock, Shared};
use crate::store::Bounds;
use crate::store::journal::Journal;

/// Between two looks at expired messages and gauges.
const SWEEP_EVERY: Duration = Duration::from_secs(1);
/// Sweeps between two clean-ups of the metrics' sample buffers.
const SWEEPS_PER_UPKEEP: u32 = 5;
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
    log: SetLevel,
    _lock: std::fs::File,
}

struct Bound {
    address: SocketAddr,
    stop: watch::Sender<bool>,
}

/// Changes the log level of the running process.
pub type SetLevel = Box<dyn Fn(&str) -> Result<(), String> + Send + Sync>;

/// What the watched files held when they were last read, so that only changes count.
#[derive(Debug, Default)]
struct Seen(HashMap<PathBuf, Vec<u8>>);

impl Seen {
    fn changed(&mut self, path: &Path) -> bool {
        let content = std::fs::read(path).unwrap_or_default();
        let digest = ring::digest::digest(&ring::digest::SHA256, &content);
        let digest = digest.as_ref().to_vec();
        self.0.insert(path.to_owned(), digest.clone()) != Some(digest)
    }
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
        let mut problems = Vec::new();
        let manifest = match files::read_manifest(&config.manifest, config.limits.max_routes) {
            Ok((manifest, table, diagnostics)) => {
                report(&diagnostics);
                Some((manifest, table, diagnostics))
            }
            Err(diagnostics) => {
                problems.extend(diagnostics.iter().map(ToString::to_string));
                None
            }
        };
        if let Some((manifest, ..)) = &manifest {
            let made = files::ensure_identities(&config.identities, &config.device_id, manifest);
            match made {
                Ok(made) if made.is_empty() => {}
                Ok(made) => tracing::info!(identities = ?made, "identities made for modules"),
                Err(errors) => problems.extend(errors),
            }
        }
        let registry = files::read_identities(&config.identities).map_err(|errors| {
            problems.extend(errors);
        });
        let ask = registry.as_ref().is_ok_and(|registry| registry.has_x509());
        let tls: SharedTls = Arc::new(ArcSwapOption::empty());
        if let Some(settings) = &config.tls {
            match TlsState::load(settings, ask) {
                Ok(state) => tls.store(Some(Arc::new(state))),
                Err(error) => problems.push(error),
            }
        }
        let (Some((manifest, table, diagnostics)), Ok(registry), true) =
            (manifest, registry, problems.is_empty())
        else {
            return Err(StartError::Configuration(problems));
        };
        let sync = config.store.sync == SyncPolicy::Always;
        let (journal, (sessions, damage)) = Journal::open(data, sync).map_err(at_data)?;
        for line in damage {
            tracing::error!(line, "a kept session is lost: the line does not read");
        }
        let metrics = instance()
            .and_then(|id| Metrics::new(&config.iothub_hostname, &config.device_id, &id))
            .map_err(StartError::System)?;
        let hub = Hub::new(settings(&config), registry, journal, sessions, metrics);
        hub.set_routes(table, &manifest, route_problems(&diagnostics));
        let hub = Arc::new(hub);
        let shared = Shared::new(Arc::clone(&hub), Clock::start(), tls);
        let (stop, _) = watch::channel(false);
        let mut running = Self {
            listeners: HashMap::new(),
            http: None,
            shared,
            hub,
            stop,
            files: Seen::default(),
            log,
            _lock: lock,
            config,
        };
        running.listen()?;
        running.serve_http()?;
        for path in running.watched() {
            running.files.changed(&path);
        }
        Ok(running)
    }

    /// The addresses of the MQTT listeners, in the order of the configuration.
    #[must_use]
    pub fn addresses(&self) -> Vec<SocketAddr> {
        let mut places: Vec<_> = self.listeners.iter().collect();
        places.sort_by_key(|(place, _)| **place);
        places.into_iter().map(|(_, bound)| bound.address).collect()
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
    /// # Errors
    /// The system has no signals for us.
    pub async fn serve(mut self) -> io::Result<()> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut hang_up = signal(SignalKind::hangup())?;
        let (changes, mut changed) = mpsc::channel(1);
        let _watcher = self.watch(changes);
        let mut sweep = tokio::time::interval(SWEEP_EVERY);
        let mut sweeps = 0;
        loop {
            tokio::select! {
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
                _ = hang_up.recv() => self.reload(),
                Some(()) = changed.recv() => {
                    tokio::time::sleep(SETTLE).await;
                    let _ = changed.try_recv();
                    self.reload();
                }
                _ = sweep.tick() => {
                    self.hub.sweep(self.shared.clock.now());
                    sweeps += 1;
                    if sweeps % SWEEPS_PER_UPKEEP == 0 {
                        self.hub.metrics().upkeep();
                    }
                }
            }
        }
        self.drain().await;
        Ok(())
    }

    /// Stops accepting, tells all clients to go and waits for them, so long at most.
    pub async fn drain(&self) {
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
        tokio::spawn(http::serve(socket, Arc::clone(&self.hub), stopped));
        Ok(())
    }

    fn watched(&self) -> Vec<PathBuf> {
        let config = &self.config;
        let mut paths = vec![
            config.file.clone(),
            config.manifest.clone(),
            config.identities.clone(),
        ];
        if let Some(tls) = &config.tls {
            paths.extend([tls.certificate.clone(), tls.key.clone()]);
            paths.extend(tls.client_ca.clone());
        }
        paths
    }

    /// Watches the folders of all files: files are replaced, not rewritten.
    fn watch(&self, changes: mpsc::Sender<()>) -> Option<notify::RecommendedWatcher> {
        let notified = move |event: notify::Result<notify::Event>| {
            if event.is_ok_and(|event| !event.kind.is_access()) {
                // One waiting notification is enough.
                let _ = changes.try_send(());
            }
        };
        let mut watcher = notify::recommended_watcher(notified)
            .inspect_err(|error| tracing::warn!(%error, "no file watching; use SIGHUP"))
            .ok()?;
        let mut folders: Vec<_> = self
            .watched()
            .iter()
            .map(|path| files::parent(path))
            .collect();
        folders.sort();
        folders.dedup();
        for folder in folders {
            if let Err(error) = watcher.watch(&folder, RecursiveMode::NonRecursive) {
                tracing::warn!(folder = %folder.display(), %error, "not watched; use SIGHUP");
            }
        }
        Some(watcher)
    }

    /// Reads what changed. A bad new version is refused with the reason, the old one stays.
    fn reload(&mut self) {
        let paths = self.watched();
        let changed: Vec<_> = paths
            .into_iter()
            .filter(|path| self.files.changed(path))
            .collect();
        if changed.is_empty() {
            return;
        }
        let is = |path: &Path| changed.iter().any(|changed| changed == path);
        if is(&self.config.file) {
            self.reload_config();
        }
        if is(&self.config.manifest) {
            self.reload_manifest();
        }
        let identities = is(&self.config.identities) || self.files.changed(&self.config.identities);
        if identities {
            self.reload_identities();
        }
        let tls = self.config.tls.as_ref();
        let certificates = tls.is_some_and(|tls| {
            is(&tls.certificate) || is(&tls.key) || tls.client_ca.as_deref().is_some_and(is)
        });
        if certificates || identities {
            self.reload_tls();
        }
    }

    fn reload_config(&mut self) {
        let path = self.config.file.clone();
        let loaded = Config::load(&path).map_err(|errors| texts(&errors));
        let result = loaded.and_then(|(config, warnings)| {
            report(&warnings);
            let fixed = fixed_changes(&self.config, &config);
            if fixed.is_empty() {
                Ok(config)
            } else {
                Err(fixed)
            }
        });
        let config = match result {
            Ok(config) => config,
            Err(errors) => return self.refused("config", &path, &errors),
        };
        if let Err(error) = (self.log)(&config.log.level) {
            return self.refused("config", &path, &[error]);
        }
        self.hub.configure(settings(&config));
        let files_moved = config.manifest != self.config.manifest
            || config.identities != self.config.identities
            || config.tls != self.config.tls;
        self.config = config;
        self.reloaded("config", &path);
        if files_moved {
            self.reload_manifest();
            self.reload_identities();
            self.reload_tls();
        }
    }

    fn reload_manifest(&mut self) {
        let path = self.config.manifest.clone();
        let (manifest, table, diagnostics) =
            match files::read_manifest(&path, self.config.limits.max_routes) {
                Ok(read) => read,
                Err(errors) => return self.refused("manifest", &path, &texts(&errors)),
            };
        report(&diagnostics);
        let made =
            files::ensure_identities(&self.config.identities, &self.config.device_id, &manifest);
        match made {
            Ok(made) if made.is_empty() => {}
            Ok(made) => tracing::info!(identities = ?made, "identities made for modules"),
            Err(errors) => return self.refused("manifest", &path, &errors),
        }
        let diff = self
            .hub
            .set_routes(table, &manifest, route_problems(&diagnostics));
        tracing::info!(added = ?diff.added, removed = ?diff.removed, changed = ?diff.changed,
            unchanged = diff.unchanged.len(), "routes");
        self.reloaded("manifest", &path);
    }

    fn reload_identities(&mut self) {
        let path = self.config.identities.clone();
        match files::read_identities(&path) {
            Ok(registry) => {
                let changed = self.hub.set_registry(registry);
                tracing::info!(?changed, "identities");
                self.reloaded("identities", &path);
            }
            Err(errors) => self.refused("identities", &path, &errors),
        }
    }

    fn reload_tls(&mut self) {
        let Some(tls) = &self.config.tls else {
            return;
        };
        let path = tls.certificate.clone();
        match TlsState::load(tls, self.hub.registry().has_x509()) {
            Ok(state) => {
                self.shared.tls.store(Some(Arc::new(state)));
                self.reloaded("certificate", &path);
            }
            Err(error) => self.refused("certificate", &path, &[error]),
        }
    }

    fn reloaded(&self, what: &'static str, path: &Path) {
        self.count_reload(what, "ok");
        tracing::info!(what, file = %path.display(), "reloaded");
    }

    fn refused(&self, what: &'static str, path: &Path, errors: &[String]) {
        self.count_reload(what, "refused");
        for error in errors {
            tracing::error!(what, "{error}");
        }
        tracing::error!(what, file = %path.display(), "refused; the old version stays in force");
    }

    fn count_reload(&self, what: &str, result: &str) {
        let labels = [("what", what), ("result", result)];
        self.hub
            .metrics()
            .counter(observe::RELOADS, &labels)
            .increment(1);
    }
}

/// Starts the hub, prints the ready line and serves.
///
/// # Errors
/// What [`Running::start`] says.
pub async fn run(config: Config, log: SetLevel) -> Result<(), StartError> {
    let running = Running::start(config, log)?;
    let line = running.ready_line();
    let mut out = io::stdout().lock();
    // Nobody may be listening; that is no reason not to serve.
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
    drop(out);
    running
        .serve()
        .await
        .map_err(|error| StartError::System(error.to_string()))
}

/// What needs a restart cannot change in a reload.
fn fixed_changes(old: &Config, new: &Config) -> Vec<String> {
    let mut changes = Vec::new();
    let mut fixed = |key: &str, same: bool| {
        if !same {
            changes.push(format!("`{key}` changed, which needs a restart"));
        }
    };
    fixed("device_id", old.device_id == new.device_id);
    fixed("data_dir", old.data_dir == new.data_dir);
    fixed("[[listener]]", old.listeners == new.listeners);
    fixed("[server]", old.server == new.server);
    fixed("[http]", old.http == new.http);
    fixed("store.sync", old.store.sync == new.store.sync);
    changes
}

fn settings(config: &Config) -> Settings {
    Settings {
        device_id: config.device_id.clone(),
        iothub_hostname: config.iothub_hostname.clone(),
        gateway_hostname: config.gateway_hostname.clone(),
        limits: config.limits.clone(),
        bounds: bounds(config),
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

fn texts(diagnostics: &[Diagnostic]) -> Vec<String> {
    diagnostics.iter().map(ToString::to_string).collect()
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
    let file = std::fs::File::create(data.join("LOCK"))?;
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
fn raise_file_limit() {
    let raised = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let wanted = rustix::process::Rlimit {
        current: raised.maximum,
        maximum: raised.maximum,
    };
    if let Err(error) = rustix::process::setrlimit(rustix::process::Resource::Nofile, wanted) {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}
