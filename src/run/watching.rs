//! Which files are watched, and which of them really changed.

use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc;

use crate::config::{Config, Upstream};
use crate::files;

/// What the watched files held when they were last read, so that only changes count.
#[derive(Debug, Default)]
pub(super) struct Seen(HashMap<PathBuf, Vec<u8>>);

impl Seen {
    /// Whether a file is another than when it was last asked for.
    pub(super) fn changed(&mut self, path: &Path) -> bool {
        let content = std::fs::read(path).unwrap_or_default();
        let digest = ring::digest::digest(&ring::digest::SHA256, &content);
        let digest = digest.as_ref().to_vec();
        self.0.insert(path.to_owned(), digest.clone()) != Some(digest)
    }
}

/// The files whose changes count.
pub(super) fn watched(config: &Config) -> Vec<PathBuf> {
    let mut paths = vec![
        config.file.clone(),
        config.manifest.clone(),
        config.identities.clone(),
    ];
    if let Some(tls) = &config.tls {
        paths.extend([tls.certificate.clone(), tls.key.clone()]);
        paths.extend(tls.client_ca.clone());
    }
    paths.extend(config.users.clone());
    paths.extend(upstream_files(&config.upstream).cloned());
    paths
}

/// The files that `[upstream]` names.
pub(super) fn upstream_files(upstream: &Upstream) -> impl Iterator<Item = &PathBuf> {
    let Upstream {
        ca,
        certificate,
        key,
        password_file,
        ..
    } = upstream;
    [ca, certificate, key, password_file].into_iter().flatten()
}

/// Watches folders for changes of files in them.
#[derive(Debug)]
pub(super) struct Watch {
    watcher: Option<RecommendedWatcher>,
    names: Arc<Mutex<HashSet<OsString>>>,
}

impl Watch {
    /// A watch that tells `changes`. Without one in the system, SIGHUP remains.
    pub(super) fn new(changes: mpsc::Sender<()>) -> Self {
        let names = Arc::new(Mutex::new(HashSet::new()));
        let concerns = {
            let names = Arc::clone(&names);
            move |path: &PathBuf| {
                let name = path.file_name().unwrap_or_default();
                let names = names.lock().unwrap_or_else(PoisonError::into_inner);
                // Mounted configurations are swapped behind links such as `..data`.
                names.contains(name) || name.as_encoded_bytes().starts_with(b"..")
            }
        };
        let notified = move |event: notify::Result<notify::Event>| {
            let relevant =
                |event: notify::Event| !event.kind.is_access() && event.paths.iter().any(&concerns);
            if event.is_ok_and(relevant) {
                // One waiting notification is enough.
                let _ = changes.try_send(());
            }
        };
        let watcher = notify::recommended_watcher(notified)
            .inspect_err(|error| tracing::warn!(%error, "no file watching; use SIGHUP"))
            .ok();
        Self { watcher, names }
    }

    /// Watches the folders of files: files are replaced, not rewritten.
    pub(super) fn add(&mut self, paths: &[PathBuf]) {
        let Some(watcher) = &mut self.watcher else {
            return;
        };
        let own = paths.iter().filter_map(|path| path.file_name());
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        names.extend(own.map(ToOwned::to_owned));
        drop(names);
        let mut folders: Vec<_> = paths.iter().map(|path| files::parent(path)).collect();
        folders.sort();
        folders.dedup();
        for folder in folders {
            if let Err(error) = watcher.watch(&folder, RecursiveMode::NonRecursive) {
                tracing::warn!(folder = %folder.display(), %error, "not watched; use SIGHUP");
            }
        }
    }
}
