//! Small state on disk: the subscriptions of persistent sessions, one JSON line per change.
//!
//! The last line of an identity counts. At start the file is read and written anew, so it does not
//! grow with time but only with the number of changes since the start. A torn last line, left by a
//! crash, was never acknowledged and is dropped; any other line that does not read is reported and
//! skipped. One thread writes; changes that wait together share one sync (group commit).

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;

use serde::{Deserialize, Serialize};

use crate::mailbox::{DURABLE, Mailbox};

/// Changes that may wait for the disk before those who make them wait too.
const CHANGES_MAX: usize = 1024;

/// A subscription as it is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subscription {
    /// The topic filter.
    pub filter: String,
    /// The granted QoS, 0 or 1.
    pub qos: u8,
}

#[derive(Debug, Serialize, Deserialize)]
struct Line {
    identity: String,
    /// `None`: the session has ended.
    subscriptions: Option<Vec<Subscription>>,
}

struct Change {
    version: u64,
    line: String,
    waiter: Arc<Mailbox>,
}

/// The journal's writing end.
#[derive(Debug)]
pub struct Journal {
    changes: Option<mpsc::SyncSender<Change>>,
    next_version: AtomicU64,
    durable: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

/// What was read at start: the sessions, and a sentence for each line that did not read.
pub type Restored = (BTreeMap<String, Vec<Subscription>>, Vec<String>);

impl Journal {
    /// Reads the journal of `dir`, writes it anew and starts its writer. `sync` says whether a
    /// change is on disk before it counts as durable.
    ///
    /// # Errors
    /// Whatever the file system answers; damaged content is no error.
    pub fn open(dir: &Path, sync: bool) -> io::Result<(Self, Restored)> {
        let path = dir.join("sessions.jsonl");
        let (sessions, damage) = match fs::read_to_string(&path) {
            Ok(text) => read(&text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Default::default(),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                let text = String::from_utf8_lossy(&fs::read(&path)?).into_owned();
                read(&text)
            }
            Err(error) => return Err(error),
        };
        if !damage.is_empty() {
            fs::copy(&path, dir.join("sessions.jsonl.damaged"))?;
        }
        let mut file = rewrite(dir, &path, &sessions)?;
        let (changes, waiting) = mpsc::sync_channel::<Change>(CHANGES_MAX);
        let durable = Arc::new(AtomicU64::new(0));
        let watermark = Arc::clone(&durable);
        let thread = std::thread::Builder::new()
            .name("journal".to_owned())
            .spawn(move || write_changes(&mut file, &waiting, &watermark, sync))?;
        let journal = Self {
            changes: Some(changes),
            next_version: AtomicU64::new(1),
            durable,
            thread: Some(thread),
        };
        Ok((journal, (sessions, damage)))
    }

    /// Records the subscriptions of an identity, or with `None` that its session has ended.
    /// Returns a version; it is durable once [`Journal::durable`] has reached it, and `waiter`
    /// then gets [`DURABLE`].
    pub fn record(
        &self,
        identity: &str,
        subscriptions: Option<&[Subscription]>,
        waiter: &Arc<Mailbox>,
    ) -> u64 {
        let version = self.next_version.fetch_add(1, Ordering::AcqRel);
        let line = Line {
            identity: identity.to_owned(),
            subscriptions: subscriptions.map(<[_]>::to_vec),
        };
        let line = serde_json::to_string(&line).unwrap_or_default();
        if let Some(changes) = &self.changes {
            let change = Change {
                version,
                line,
                waiter: Arc::clone(waiter),
            };
            // The writer lives as long as the journal; were it gone, the version would never
            // become durable and nothing would be acknowledged.
            let _ = changes.send(change);
        }
        version
    }

    /// The highest version that is on disk together with all before it.
    #[must_use]
    pub fn durable(&self) -> u64 {
        self.durable.load(Ordering::Acquire)
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        drop(self.changes.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn read(text: &str) -> Restored {
    let mut sessions = BTreeMap::new();
    let mut damage = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let torn = !text.ends_with('\n') && text.lines().count() == number + 1;
        match serde_json::from_str::<Line>(line) {
            Ok(Line {
                identity,
                subscriptions: Some(subscriptions),
            }) => {
                sessions.insert(identity, subscriptions);
            }
            Ok(Line { identity, .. }) => {
                sessions.remove(&identity);
            }
            Err(_) if torn || line.is_empty() => {}
            Err(error) => damage.push(format!("sessions.jsonl:{}: {error}", number + 1)),
        }
    }
    (sessions, damage)
}

fn rewrite(
    dir: &Path,
    path: &PathBuf,
    sessions: &BTreeMap<String, Vec<Subscription>>,
) -> io::Result<File> {
    let new = dir.join("sessions.jsonl.new");
    let mut text = String::new();
    for (identity, subscriptions) in sessions {
        let line = Line {
            identity: identity.clone(),
            subscriptions: Some(subscriptions.clone()),
        };
        text.push_str(&serde_json::to_string(&line).map_err(io::Error::other)?);
        text.push('\n');
    }
    let mut file = OpenOptions::new()
        .create(true)
        .write(true)
        .truncate(true)
        .mode(0o600)
        .open(&new)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    File::open(dir)?.sync_all()?;
    Ok(file)
}

fn write_changes(
    file: &mut File,
    waiting: &mpsc::Receiver<Change>,
    durable: &AtomicU64,
    sync: bool,
) {
    // Versions may arrive out of order from different threads; the watermark is contiguous.
    let mut ahead = std::collections::BTreeSet::new();
    while let Ok(first) = waiting.recv() {
        let batch: Vec<_> = std::iter::once(first)
            .chain(waiting.try_iter().take(CHANGES_MAX))
            .collect();
        let mut text = String::new();
        for change in &batch {
            text.push_str(&change.line);
            text.push('\n');
        }
        let written = file
            .write_all(text.as_bytes())
            .and_then(|()| if sync { file.sync_data() } else { Ok(()) });
        if let Err(error) = written {
            tracing::error!(%error, "subscriptions cannot be kept on disk; not acknowledged");
            continue;
        }
        ahead.extend(batch.iter().map(|change| change.version));
        let mut reached = durable.load(Ordering::Acquire);
        while ahead.remove(&(reached + 1)) {
            reached += 1;
        }
        durable.store(reached, Ordering::Release);
        for change in batch {
            change.waiter.raise(DURABLE);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subscription(filter: &str) -> Subscription {
        Subscription {
            filter: filter.to_owned(),
            qos: 1,
        }
    }

    #[test]
    fn the_last_line_counts_and_a_torn_one_is_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let mailbox = Arc::new(Mailbox::default());
        {
            let (journal, (restored, _)) = Journal::open(dir.path(), true).unwrap();
            assert!(restored.is_empty());
            journal.record("d/a", Some(&[subscription("x")]), &mailbox);
            journal.record("d/b", Some(&[subscription("y")]), &mailbox);
            journal.record("d/b", None, &mailbox);
            journal.record("d/a", Some(&[subscription("z")]), &mailbox);
        }
        let path = dir.path().join("sessions.jsonl");
        let mut text = fs::read_to_string(&path).unwrap();
        text.push_str("{\"identity\":\"d/c\",\"subs");
        fs::write(&path, &text).unwrap();
        let (journal, (restored, damage)) = Journal::open(dir.path(), true).unwrap();
        assert_eq!(restored.len(), 1);
        assert_eq!(restored.get("d/a"), Some(&vec![subscription("z")]));
        assert!(damage.is_empty());
        drop(journal);
        assert_eq!(fs::read_to_string(&path).unwrap().lines().count(), 1);
    }

    #[test]
    fn a_damaged_line_costs_only_itself_and_is_kept_for_support() {
        let dir = tempfile::tempdir().unwrap();
        let good = "{\"identity\":\"d/a\",\"subscriptions\":[{\"filter\":\"x\",\"qos\":1}]}\n";
        fs::write(dir.path().join("sessions.jsonl"), format!("rot\n{good}")).unwrap();
        let (_journal, (restored, damage)) = Journal::open(dir.path(), true).unwrap();
        assert_eq!(restored.len(), 1);
        assert_eq!(damage.len(), 1, "{damage:?}");
        assert!(damage[0].starts_with("sessions.jsonl:1:"));
        assert!(dir.path().join("sessions.jsonl.damaged").exists());
    }

    #[test]
    fn durable_reaches_every_version() {
        let dir = tempfile::tempdir().unwrap();
        let mailbox = Arc::new(Mailbox::default());
        let (journal, _) = Journal::open(dir.path(), true).unwrap();
        let last = (0..50)
            .map(|n| journal.record(&format!("d/{n}"), Some(&[]), &mailbox))
            .max()
            .unwrap();
        let started = std::time::Instant::now();
        while journal.durable() < last {
            assert!(started.elapsed().as_secs() < 20, "never durable");
            std::thread::yield_now();
        }
    }
}
