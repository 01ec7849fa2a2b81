//! The subscriptions of persistent sessions, as a part of the small state: the key is `session/`
//! and the identity, the value a JSON list.

mod ledgers;

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::state::State;
use super::state::read::Values;
use crate::mailbox::Mailbox;
use crate::mqtt::QoS;
use crate::store::disk::Disk;
use crate::topic;
pub use ledgers::Ledger;
use ledgers::Ledgers;

const PREFIX: &str = "session/";
const RETAINED: &str = "retained/";
/// A subscription as it is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subscription {
    /// The topic filter.
    pub filter: String,
    /// The granted QoS, 0 to 2.
    pub qos: u8,
    /// Nothing that the client published itself (MQTT 5 §3.8.3.1).
    #[serde(default, skip_serializing_if = "is_false")]
    pub no_local: bool,
    /// RETAIN stays as it was published (MQTT 5 §3.8.3.1).
    #[serde(default, skip_serializing_if = "is_false")]
    pub retain_as_published: bool,
    /// The identifier that messages carry, or 0 (MQTT 5 §3.8.2.1.2).
    #[serde(default, skip_serializing_if = "is_zero")]
    pub id: u32,
}

fn is_false(flag: &bool) -> bool {
    !flag
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

impl Subscription {
    /// One without options.
    #[must_use]
    pub fn new(filter: &str, qos: QoS) -> Self {
        Self {
            filter: filter.to_owned(),
            qos: qos as u8,
            no_local: false,
            retain_as_published: false,
            id: 0,
        }
    }

    /// Whether it is one of the plain topic space.
    #[must_use]
    pub fn is_plain(&self) -> bool {
        topic::is_plain(&self.filter)
    }

    /// The granted QoS.
    #[must_use]
    pub fn granted(&self) -> QoS {
        match self.qos {
            0 => QoS::AtMostOnce,
            1 => QoS::AtLeastOnce,
            _ => QoS::ExactlyOnce,
        }
    }

    /// Name and filter, where it is a shared one (MQTT 5 §4.8.2).
    #[must_use]
    pub fn share(&self) -> Option<(&str, &str)> {
        self.filter.strip_prefix("$share/")?.split_once('/')
    }
}

/// Keeps sessions and retained messages. Dropping it writes what waits.
#[derive(Debug)]
pub struct Journal {
    state: State,
    /// What was read, until somebody takes it.
    retained: Mutex<Vec<(String, Bytes)>>,
    expiries: Mutex<BTreeMap<String, (u32, u64)>>,
    ledgers: Ledgers,
}

/// What was read at start: the sessions, and a sentence for each thing that was lost.
pub type Restored = (BTreeMap<String, Vec<Subscription>>, Vec<String>);

/// A session as it is kept.
#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
enum Kept {
    ForEver(Vec<Subscription>),
    Until {
        subscriptions: Vec<Subscription>,
        /// How long after its connection, in seconds.
        expiry: u32,
        /// When that ended, in seconds since 1970; 0: not known.
        left: u64,
    },
}

/// The sessions among the values of the small state; `damage` is what was lost before.
pub(super) fn sessions(values: Values, mut damage: Vec<String>) -> Restored {
    let mut sessions = BTreeMap::new();
    for (key, value) in values {
        let Some(identity) = key.strip_prefix(PREFIX) else {
            continue;
        };
        match serde_json::from_slice(&value) {
            Ok(Kept::ForEver(subscriptions) | Kept::Until { subscriptions, .. }) => {
                sessions.insert(identity.to_owned(), subscriptions);
            }
            Err(error) => damage.push(format!("the value of {key:?} does not read: {error}")),
        }
    }
    (sessions, damage)
}

impl Journal {
    /// Reads the sessions of a store, and starts their writer. `sync` says whether a change is on
    /// disk before it counts as durable.
    ///
    /// # Errors
    /// Whatever the disk answers, except that it is full; damaged content is no error.
    pub fn open(disk: Arc<dyn Disk>, store_id: u64, sync: bool) -> io::Result<(Self, Restored)> {
        let (state, values, damage) = State::open(disk, store_id, sync)?;
        let retained = values.iter().filter_map(|(key, value)| {
            let topic = key.strip_prefix(RETAINED)?;
            Some((topic.to_owned(), value.clone()))
        });
        let retained = retained.collect();
        let expiries = values.iter().filter_map(|(key, value)| {
            let identity = key.strip_prefix(PREFIX)?;
            match serde_json::from_slice(value).ok()? {
                Kept::Until { expiry, left, .. } => Some((identity.to_owned(), (expiry, left))),
                Kept::ForEver(_) => None,
            }
        });
        let expiries = expiries.collect();
        let ledgers = Ledgers::read(&values);
        let journal = Self {
            state,
            expiries: Mutex::new(expiries),
            ledgers,
            retained: Mutex::new(retained),
        };
        Ok((journal, sessions(values, damage)))
    }

    /// A journal that keeps nothing: every version is durable at once.
    #[must_use]
    pub fn memory() -> Self {
        Self {
            state: State::memory(),
            retained: Mutex::default(),
            expiries: Mutex::default(),
            ledgers: Ledgers::default(),
        }
    }

    /// The retained messages that were read, by topic.
    #[must_use]
    pub fn take_retained(&self) -> Vec<(String, Bytes)> {
        std::mem::take(&mut *self.retained.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Of the sessions that were read and are not kept for ever: how long after their connection,
    /// in seconds, and when that ended, in seconds since 1970 (0: not known).
    #[must_use]
    pub fn take_expiries(&self) -> BTreeMap<String, (u32, u64)> {
        std::mem::take(&mut *self.expiries.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// What sessions that were read have to remember of QoS 2, by identity.
    #[must_use]
    pub fn take_ledgers(&self) -> BTreeMap<String, Ledger> {
        self.ledgers.take()
    }

    /// Records a part of what a session has to remember of QoS 2, or with `None` that there is
    /// nothing. Returns a version, as [`Journal::record`].
    pub fn record_ledger(
        &self,
        identity: &str,
        change: (Option<u16>, Option<Bytes>),
        waiter: &Arc<Mailbox>,
    ) -> u64 {
        self.ledgers.record((&self.state, waiter), identity, change)
    }

    /// Records that a session has nothing to remember of QoS 2. As [`Journal::record_ledger`].
    pub fn forget_ledger(&self, identity: &str, waiter: &Arc<Mailbox>) {
        self.ledgers.forget((&self.state, waiter), identity);
    }

    /// Records the retained message of a topic, or with `None` that there is none any more.
    /// Returns a version, as [`Journal::record`].
    pub fn record_retained(&self, topic: &str, value: Option<Bytes>, waiter: &Arc<Mailbox>) -> u64 {
        let key = format!("{RETAINED}{topic}");
        let recorded = self.state.record(&key, value, waiter);
        recorded.unwrap_or_else(|error| {
            tracing::error!(%error, topic, "a retained message can never be kept");
            u64::MAX
        })
    }

    /// Records the subscriptions of an identity, or with `None` that its session has ended.
    /// Returns a version; it is settled once [`Journal::settled`] has reached it, and `waiter`
    /// then gets [`DURABLE`](crate::mailbox::DURABLE).
    pub fn record(
        &self,
        identity: &str,
        subscriptions: Option<&[Subscription]>,
        waiter: &Arc<Mailbox>,
    ) -> u64 {
        match subscriptions {
            Some(list) => self.record_until(identity, (list, u32::MAX, 0), waiter),
            None => self.record_value(identity, Ok(None), waiter),
        }
    }

    /// Records a session that is kept for so many seconds after its connection (`u32::MAX`: for
    /// ever), and when that ended, in seconds since 1970 (0: it has not). As [`Journal::record`].
    pub fn record_until(
        &self,
        identity: &str,
        (subscriptions, expiry, left): (&[Subscription], u32, u64),
        waiter: &Arc<Mailbox>,
    ) -> u64 {
        let subscriptions = subscriptions.to_vec();
        let kept = match expiry {
            u32::MAX => Kept::ForEver(subscriptions),
            _ => Kept::Until {
                subscriptions,
                expiry,
                left,
            },
        };
        let value = serde_json::to_vec(&kept).map(|json| Some(Bytes::from(json)));
        self.record_value(identity, value, waiter)
    }

    fn record_value(
        &self,
        identity: &str,
        value: Result<Option<Bytes>, serde_json::Error>,
        waiter: &Arc<Mailbox>,
    ) -> u64 {
        let key = format!("{PREFIX}{identity}");
        let value = value.map_err(io::Error::from);
        let recorded = value.and_then(|value| self.state.record(&key, value, waiter));
        recorded.unwrap_or_else(|error| {
            tracing::error!(%error, identity, "a session can never be kept");
            // Never durable, so it is never acknowledged.
            u64::MAX
        })
    }

    /// The newest version, for one who has nothing to record but waits for all before: `waiter`
    /// gets [`DURABLE`](crate::mailbox::DURABLE) once it is settled, unless it is already.
    pub fn watch(&self, waiter: &Arc<Mailbox>) -> u64 {
        self.state.watch(waiter)
    }

    /// Waits until everything that was recorded is settled.
    pub fn settle(&self) {
        self.state.settle();
    }

    /// The newest version that was recorded.
    #[must_use]
    pub fn newest(&self) -> u64 {
        self.state.newest()
    }

    /// The highest version that can be acknowledged: it is on disk, or the disk has refused it.
    #[must_use]
    pub fn settled(&self) -> u64 {
        self.state.settled()
    }

    /// The highest version that is on disk together with all before it.
    #[must_use]
    pub fn durable(&self) -> u64 {
        self.state.durable()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::{Path, PathBuf};

    use super::*;
    use crate::store::disk::RealDisk;

    fn open(dir: &Path, sync: bool) -> (Journal, Restored) {
        Journal::open(Arc::new(RealDisk::new(dir).unwrap()), 7, sync).unwrap()
    }

    fn file(dir: &Path) -> PathBuf {
        let names = fs::read_dir(dir.join("state")).unwrap();
        let mut logs: Vec<_> = names
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.extension().is_some_and(|end| end == "log"))
            .collect();
        assert_eq!(logs.len(), 1, "{logs:?}");
        logs.pop().unwrap()
    }

    fn subscription(filter: &str) -> Subscription {
        Subscription::new(filter, QoS::AtLeastOnce)
    }

    #[test]
    fn the_last_value_counts_and_a_torn_one_is_dropped() {
        for sync in [true, false] {
            let dir = tempfile::tempdir().unwrap();
            let mailbox = Arc::new(Mailbox::default());
            {
                let (journal, (restored, _)) = open(dir.path(), sync);
                assert!(restored.is_empty());
                journal.record("d/a", Some(&[subscription("x")]), &mailbox);
                journal.record("d/b", Some(&[subscription("y")]), &mailbox);
                journal.record("d/b", None, &mailbox);
                journal.record("d/a", Some(&[subscription("z")]), &mailbox);
            }
            let mut bytes = fs::read(file(dir.path())).unwrap();
            bytes.extend_from_slice(&0x4D52_4649_u32.to_le_bytes());
            bytes.extend_from_slice(b"torn");
            fs::write(file(dir.path()), &bytes).unwrap();
            let (journal, (restored, damage)) = open(dir.path(), sync);
            assert_eq!(restored.len(), 1);
            assert_eq!(restored.get("d/a"), Some(&vec![subscription("z")]));
            assert!(damage.is_empty(), "{damage:?}");
            drop(journal);
            assert_eq!(fs::metadata(file(dir.path())).unwrap().len(), 2 * 4096);
        }
    }

    #[test]
    fn a_damaged_frame_costs_only_itself_and_is_kept_for_support() {
        let dir = tempfile::tempdir().unwrap();
        let mailbox = Arc::new(Mailbox::default());
        let (journal, _) = open(dir.path(), true);
        for identity in ["d/a", "d/b", "d/c"] {
            journal.record(identity, Some(&[subscription("rotten")]), &mailbox);
        }
        drop(journal);
        let path = file(dir.path());
        let mut bytes = fs::read(&path).unwrap();
        let at = bytes.windows(3).position(|some| some == b"d/b").unwrap();
        bytes[at + 20] ^= 1;
        fs::write(&path, &bytes).unwrap();
        let (journal, (restored, damage)) = open(dir.path(), true);
        assert_eq!(restored.keys().collect::<Vec<_>>(), ["d/a", "d/c"]);
        assert_eq!(damage.len(), 1, "{damage:?}");
        assert!(damage[0].contains("\"session/d/b\""), "{damage:?}");
        assert_eq!(fs::read(dir.path().join("state/damaged")).unwrap(), bytes);
        drop(journal);
        assert_eq!(open(dir.path(), true).1.1, Vec::<String>::new());
    }

    #[test]
    fn durable_reaches_every_version_and_wakes_who_waits() {
        let dir = tempfile::tempdir().unwrap();
        let mailbox = Arc::new(Mailbox::default());
        let (journal, _) = open(dir.path(), true);
        let last = (0..50)
            .map(|n| journal.record(&format!("d/{n}"), Some(&[]), &mailbox))
            .max()
            .unwrap();
        assert_eq!((last, journal.newest()), (50, 50));
        let started = std::time::Instant::now();
        while journal.durable() < last {
            assert!(started.elapsed().as_secs() < 20, "never durable");
            std::thread::yield_now();
        }
        drop(journal);
        let waker = std::task::Waker::noop();
        assert_eq!(mailbox.take(waker), crate::mailbox::DURABLE);
    }

    #[test]
    fn the_file_stays_near_what_lives_in_it() {
        let dir = tempfile::tempdir().unwrap();
        let mailbox = Arc::new(Mailbox::default());
        let (journal, _) = open(dir.path(), false);
        let filters: Vec<_> = (0..10).map(|_| subscription(&"x".repeat(1000))).collect();
        for _ in 0..500 {
            let version = journal.record("d/a", Some(&filters), &mailbox);
            // Otherwise most of them would never be written.
            while journal.durable() < version {
                std::thread::yield_now();
            }
        }
        drop(journal);
        let bytes = fs::metadata(file(dir.path())).unwrap().len();
        assert!(bytes < 2 * 256 * 1024, "{bytes} bytes");
        assert_eq!(open(dir.path(), false).1.0["d/a"], filters);
    }

    #[test]
    fn where_no_new_file_can_be_written_the_old_one_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let mailbox = Arc::new(Mailbox::default());
        let (journal, _) = open(dir.path(), true);
        journal.record("d/a", Some(&[subscription("x")]), &mailbox);
        drop(journal);
        // A folder in its place keeps the new file from being written.
        fs::create_dir(dir.path().join("state/new")).unwrap();
        let old = file(dir.path());
        let (journal, (restored, _)) = open(dir.path(), true);
        assert_eq!(restored.len(), 1);
        journal.record("d/b", Some(&[subscription("y")]), &mailbox);
        drop(journal);
        assert_eq!(file(dir.path()), old);
        let (_journal, (restored, damage)) = open(dir.path(), true);
        assert_eq!((restored.len(), damage.len()), (2, 0));
    }

    #[test]
    fn without_a_disk_all_is_durable_at_once() {
        let mailbox = Arc::new(Mailbox::default());
        let journal = Journal::memory();
        let version = journal.record("d/a", Some(&[]), &mailbox);
        assert_eq!((version, journal.durable(), journal.newest()), (1, 1, 1));
        let waker = std::task::Waker::noop();
        assert_eq!(mailbox.take(waker), crate::mailbox::DURABLE);
    }

    #[test]
    fn a_value_that_is_no_session_is_reported() {
        let dir = tempfile::tempdir().unwrap();
        let disk: Arc<dyn Disk> = Arc::new(RealDisk::new(dir.path()).unwrap());
        let (state, ..) = State::open(Arc::clone(&disk), 7, false).unwrap();
        let mailbox = Arc::new(Mailbox::default());
        let value = Some(Bytes::from_static(b"{"));
        state
            .record("session/d/a", value.clone(), &mailbox)
            .unwrap();
        state.record("other/d/a", value, &mailbox).unwrap();
        assert!(state.record("", None, &mailbox).is_err());
        drop(state);
        let (_journal, (restored, damage)) = open(dir.path(), false);
        assert_eq!((restored.len(), damage.len()), (0, 1), "{damage:?}");
    }
}
