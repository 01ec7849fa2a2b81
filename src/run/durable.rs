//! The store that the configuration asks for.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use super::{StartError, bounds};
use crate::config::{Config, Sync as SyncPolicy, WhenFull};
use crate::files;
use crate::hub::Durable;
use crate::limits::{SEGMENT_OVERHEAD_BYTES, segment_bytes};
use crate::server::Clock;
use crate::store::disk::{Disk, RealDisk};
use crate::store::journal::Journal;
use crate::store::{self, FORMAT, Opened, Options, Store};

/// The folder of the store in `data_dir`.
pub const STORE_DIR: &str = "store";

/// In `data_dir`: how many messages `edgehub store purge` dropped since the hub last ran, which
/// counts them.
const PURGED_FILE: &str = "purged";

/// Notes purged messages for the hub's next start.
///
/// # Errors
/// The note cannot be written.
pub fn note_purged(config: &Config, messages: u64) -> std::io::Result<()> {
    let path = config.data_dir.join(PURGED_FILE);
    let all = noted_purged(&path).saturating_add(messages);
    files::write_private(&path, all.to_string().as_bytes())
}

fn noted_purged(path: &Path) -> u64 {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.parse().unwrap_or(0)
}

fn take_purged(config: &Config) -> u64 {
    let path = config.data_dir.join(PURGED_FILE);
    let messages = noted_purged(&path);
    if messages > 0 {
        tracing::info!(messages, "messages were dropped by `edgehub store purge`");
        let _ = std::fs::remove_file(&path);
    }
    messages
}

/// Opens the store, or makes it, and starts its threads.
pub(super) fn open(config: &Config, clock: Clock) -> Result<Durable, StartError> {
    let dir = config.data_dir.join(STORE_DIR);
    let Some(options) = options(config) else {
        if dir.join(FORMAT).exists() {
            let store = dir.display();
            tracing::warn!(%store, "store.sync is \"memory\": what waits in this store stays there");
        }
        return Ok(Durable {
            store: Arc::new(Store::memory(bounds(config), time(clock))),
            journal: Journal::memory(),
            sessions: BTreeMap::new(),
            lost_messages: 0,
            purged_messages: 0,
        });
    };
    let at = |error: std::io::Error| StartError::System(format!("{}: {error}", dir.display()));
    let disk: Arc<dyn Disk> = Arc::new(RealDisk::new(&dir).map_err(at)?);
    let (store, opened) = open_store(Arc::clone(&disk), config, options, clock).map_err(at)?;
    for remark in &opened.remarks {
        tracing::warn!(remark, "store");
    }
    for lost in &opened.lost {
        tracing::error!(
            lost,
            "acknowledged messages are lost: the disk no longer has them"
        );
    }
    let messages = opened.messages;
    if !opened.was_closed {
        tracing::warn!(
            messages,
            "the store was not closed in good order; recovered"
        );
    } else if messages > 0 {
        tracing::info!(messages, "messages wait in the store");
    }
    let store = Arc::new(store);
    let now_ms: store::NowMs = Arc::new(move || clock.ms());
    store.start(&now_ms).map_err(at)?;
    let syncs = options.sync != store::SyncPolicy::Os;
    let (journal, (sessions, damage)) =
        Journal::open(disk, store.id().unwrap_or_default(), syncs).map_err(at)?;
    for damage in damage {
        tracing::error!(damage, "kept sessions are damaged");
    }
    Ok(Durable {
        store,
        journal,
        sessions,
        lost_messages: opened.lost_messages,
        purged_messages: take_purged(config),
    })
}

fn open_store(
    disk: Arc<dyn Disk>,
    config: &Config,
    options: Options,
    clock: Clock,
) -> std::io::Result<(Store, Opened)> {
    let random = files::random().map(u64::from_le_bytes)?;
    Store::open(disk, options, bounds(config), random, time(clock))
}

/// By the monotonic clock and by the system's.
fn time(clock: Clock) -> (u64, u64) {
    let now = clock.now();
    (now.ms, now.wall_ms)
}

/// The store of a hub that does not run, for maintenance: without threads, and with the lock that
/// keeps a hub from starting.
#[derive(Debug)]
pub struct Stopped {
    /// The store.
    pub store: Store,
    /// What opening it came upon.
    pub opened: Opened,
    /// The clock that its times are of.
    pub clock: Clock,
    _lock: std::fs::File,
}

impl Stopped {
    /// Opens the store of a configuration, which must be there.
    ///
    /// # Errors
    /// The configuration keeps nothing on disk, a hub runs, or the store cannot be opened.
    pub fn open(config: &Config) -> Result<Self, StartError> {
        let system = |error: String| StartError::System(error);
        let Some(options) = options(config) else {
            let line = "store.sync is \"memory\": nothing is kept on disk".to_owned();
            return Err(StartError::Configuration(vec![line]));
        };
        let data = &config.data_dir;
        let lock = super::lock(data).map_err(|error| {
            let hint = match error.kind() {
                std::io::ErrorKind::AddrInUse => "; stop that hub first",
                _ => "",
            };
            system(format!("{}: {error}{hint}", data.display()))
        })?;
        let dir = data.join(STORE_DIR);
        let at = |error: std::io::Error| system(format!("{}: {error}", dir.display()));
        let disk = Arc::new(RealDisk::existing(&dir));
        let clock = Clock::start();
        let (store, opened) = open_store(disk, config, options, clock).map_err(at)?;
        Ok(Self {
            store,
            opened,
            clock,
            _lock: lock,
        })
    }
}

/// How the log writes; `None`: there is none.
pub(super) fn options(config: &Config) -> Option<Options> {
    let store = &config.store;
    let sync = match store.sync {
        SyncPolicy::Always => store::SyncPolicy::Always,
        SyncPolicy::Interval { ms } => store::SyncPolicy::Interval { ms },
        SyncPolicy::Os => store::SyncPolicy::Os,
        SyncPolicy::Memory => return None,
    };
    let message_bytes = config.limits.max_message_bytes + SEGMENT_OVERHEAD_BYTES;
    Some(Options {
        sync,
        max_syncs_per_second: store.max_syncs_per_second,
        max_bytes: store.max_bytes,
        min_free_bytes: store.min_free_bytes,
        segment_bytes: segment_bytes(store.segment_bytes, store.max_bytes, message_bytes as u64),
        message_bytes_max: message_bytes as u64,
        drop_oldest: store.when_full == WhenFull::DropOldest,
    })
}
