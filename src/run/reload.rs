//! Reading changed files while running: a bad new version is refused, the old one stays.

use std::path::Path;
use std::sync::Arc;

use super::upward;
use super::watching::{upstream_files, watched};
use super::{Running, make_identities, read_users, report, route_problems, settings};
use crate::config::Config;
use crate::diagnostic::{Severity, texts};
use crate::files;
use crate::observe;
use crate::server::tls::TlsState;
use crate::upstream::Forwarder;

impl Running {
    /// Reads what changed. A bad new version is refused with the reason, the old one stays.
    pub(super) async fn reload(&mut self) {
        let paths = watched(&self.config);
        let changed: Vec<_> = paths
            .into_iter()
            .filter(|path| self.files.changed(path))
            .collect();
        if changed.is_empty() && !self.manifest_pending {
            return;
        }
        let is = |path: &Path| changed.iter().any(|changed| changed == path);
        let before = (
            self.config.upstream.clone(),
            self.config.iothub_hostname.clone(),
        );
        if is(&self.config.file) {
            self.reload_config();
        }
        if is(&self.config.manifest) || self.manifest_pending {
            self.reload_manifest();
        }
        let identities = is(&self.config.identities) || self.files.changed(&self.config.identities);
        if identities {
            self.reload_identities();
        }
        if self.config.users.as_deref().is_some_and(is) {
            self.reload_users();
        }
        let tls = self.config.tls.as_ref();
        let certificates = tls.is_some_and(|tls| {
            is(&tls.certificate) || is(&tls.key) || tls.client_ca.as_deref().is_some_and(is)
        });
        if certificates || identities {
            self.reload_tls();
        }
        let (upstream, hostname) = &before;
        if *upstream != self.config.upstream
            || *hostname != self.config.iothub_hostname
            || upstream_files(&self.config.upstream).any(|path| is(path))
        {
            self.reload_upstream().await;
        }
    }

    /// Connections to the cloud are made anew; messages wait meanwhile.
    async fn reload_upstream(&mut self) {
        let path = self.config.file.clone();
        let settings = match upward::load(&self.config) {
            Ok(settings) => settings,
            Err(errors) => return self.refused("upstream", &path, &errors),
        };
        if let Some(forwarder) = self.forwarder.take() {
            forwarder.stop().await;
        }
        self.forwarder = match settings {
            Some(settings) => Some(Forwarder::start(settings, &self.hub, self.shared.clock)),
            None => {
                self.hub.set_forwarding(None);
                None
            }
        };
        self.reloaded("upstream", &path);
    }

    fn reload_config(&mut self) {
        let path = self.config.file.clone();
        let loaded = Config::load(&path).map_err(|diagnostics| {
            let (errors, warnings): (Vec<_>, Vec<_>) = diagnostics
                .into_iter()
                .partition(|d| d.severity == Severity::Error);
            report(&warnings);
            texts(&errors)
        });
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
        self.hub.set_authorization(config.authorization.clone());
        let files_moved = config.manifest != self.config.manifest
            || config.identities != self.config.identities
            || config.users != self.config.users
            || config.tls != self.config.tls;
        self.config = config;
        self.reloaded("config", &path);
        if files_moved {
            let paths = watched(&self.config);
            self.watch.add(&paths);
            for path in &paths {
                self.files.changed(path);
            }
            self.reload_manifest();
            self.reload_identities();
            self.reload_users();
            self.reload_tls();
        }
    }

    fn reload_manifest(&mut self) {
        let path = self.config.manifest.clone();
        // One that is refused for its own sake is not read again before it changes.
        self.manifest_pending = false;
        let (manifest, table, diagnostics) =
            match files::read_manifest(&path, self.config.limits.max_routes) {
                Ok(read) => read,
                Err(errors) => return self.refused("manifest", &path, &texts(&errors)),
            };
        report(&diagnostics);
        if let Err(errors) = make_identities(&self.config, &manifest) {
            self.manifest_pending = true;
            return self.refused("manifest", &path, &errors);
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

    fn reload_users(&mut self) {
        let path = self.config.users.clone();
        let path = path.unwrap_or_else(|| self.config.file.clone());
        match read_users(&self.config) {
            Ok(users) => {
                let changed = self.hub.set_users(users);
                tracing::info!(?changed, "users");
                self.reloaded("users", &path);
            }
            Err(errors) => self.refused("users", &path, &errors),
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
        self.hub.set_refused(what, &[]);
        tracing::info!(what, file = %path.display(), "reloaded");
    }

    fn refused(&self, what: &'static str, path: &Path, errors: &[String]) {
        self.count_reload(what, "refused");
        self.hub.set_refused(what, errors);
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
    fixed("log.format", old.log.format == new.log.format);
    fixed("store.sync", old.store.sync == new.store.sync);
    changes
}
