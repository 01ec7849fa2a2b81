//! Small state on disk: the subscriptions of persistent sessions, one JSON line per change.
//!
//! The last line of an identity counts. At start, and when it has grown to twice what lives in it,
//! the file is written anew. What cannot be written is tried again until it can; until then nobody
//! is told that it is kept. A torn last line, left by a
//! crash, was never acknowledged and is dropped; any other line that does not read is reported and
//! skipped. One thread writes; changes that wait together share one sync (group commit).

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::mailbox::{DURABLE, Mailbox};

/// The file is not written anew below twice what lives in it and this.
const REWRITE_BYTES_MIN: u64 = 256 * 1024;
/// Between two tries while the disk refuses.
const RETRY_EVERY: Duration = Duration::from_secs(1);
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
    identity: String,
    lives: bool,
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
    /// Reads the journal of `dir`, writes it anew if there is room, and starts its writer. `sync`
    /// says whether a change is on disk before it counts as durable.
    ///
    /// # Errors
    /// Whatever the file system answers, except that it is full; damaged content is no error.
    pub fn open(dir: &Path, sync: bool) -> io::Result<(Self, Restored)> {
        let path = dir.join("sessions.jsonl");
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error),
        };
        let (sessions, mut damage) = read(&String::from_utf8_lossy(&bytes));
        if !damage.is_empty()
            && let Err(error) = fs::write(dir.join("sessions.jsonl.damaged"), &bytes)
        {
            damage.push(format!("no copy was kept: {error}"));
        }
        let mut writer = Writer::new(dir, path, &sessions, sync);
        if let Err(error) = writer.rewrite() {
            tracing::warn!(%error, "sessions.jsonl cannot be written anew; it goes on as it is");
            writer.go_on(&bytes)?;
        }
        let (changes, waiting) = mpsc::sync_channel::<Change>(CHANGES_MAX);
        let durable = Arc::new(AtomicU64::new(0));
        let watermark = Arc::clone(&durable);
        let thread = std::thread::Builder::new()
            .name("journal".to_owned())
            .spawn(move || writer.run(&waiting, &watermark))?;
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
                identity: identity.to_owned(),
                lives: subscriptions.is_some(),
                line,
                waiter: Arc::clone(waiter),
            };
            // The writer lives as long as the journal; were it gone, the version would never
            // become durable and nothing would be acknowledged.
            let _ = changes.send(change);
        }
        version
    }

    /// The newest version that was recorded.
    #[must_use]
    pub fn newest(&self) -> u64 {
        self.next_version.load(Ordering::Acquire) - 1
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

fn line_of(identity: &str, subscriptions: &[Subscription]) -> String {
    let line = Line {
        identity: identity.to_owned(),
        subscriptions: Some(subscriptions.to_vec()),
    };
    serde_json::to_string(&line).unwrap_or_default()
}

/// The thread's end: the file, how much of it is good, and the lines that live.
struct Writer {
    dir: PathBuf,
    path: PathBuf,
    file: Option<File>,
    good_bytes: u64,
    live: BTreeMap<String, String>,
    live_bytes: u64,
    rewrite_at: u64,
    sync: bool,
    /// Versions that are written, beyond the watermark: threads may hand theirs over out of order.
    ahead: BTreeSet<u64>,
}

impl Writer {
    fn new(
        dir: &Path,
        path: PathBuf,
        sessions: &BTreeMap<String, Vec<Subscription>>,
        sync: bool,
    ) -> Self {
        let live: BTreeMap<_, _> = sessions
            .iter()
            .map(|(identity, subscriptions)| (identity.clone(), line_of(identity, subscriptions)))
            .collect();
        Self {
            dir: dir.to_owned(),
            path,
            file: None,
            good_bytes: 0,
            live_bytes: live.values().map(|line| line.len() as u64 + 1).sum(),
            live,
            rewrite_at: 0,
            sync,
            ahead: BTreeSet::new(),
        }
    }

    /// Writes the living lines into a new file, which then takes the place of the old one.
    fn rewrite(&mut self) -> io::Result<()> {
        let new = self.path.with_extension("jsonl.new");
        let written = self.write_new(&new);
        if written.is_err() {
            // Half a file would only take room.
            let _ = fs::remove_file(&new);
        }
        let file = written?;
        fs::rename(&new, &self.path)?;
        File::open(&self.dir)?.sync_all()?;
        self.file = Some(file);
        self.good_bytes = self.live_bytes;
        self.rewrite_at = 2 * self.live_bytes + REWRITE_BYTES_MIN;
        Ok(())
    }

    fn write_new(&self, new: &Path) -> io::Result<File> {
        let mut file = OpenOptions::new()
            .create(true)
            .write(true)
            .truncate(true)
            .mode(0o600)
            .open(new)?;
        let mut text = String::new();
        for line in self.live.values() {
            text.push_str(line);
            text.push('\n');
        }
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        Ok(file)
    }

    /// Goes on behind the last whole line of the file that is there.
    fn go_on(&mut self, bytes: &[u8]) -> io::Result<()> {
        let whole = memchr::memrchr(b'\n', bytes).map_or(0, |at| at as u64 + 1);
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&self.path)?;
        file.set_len(whole)?;
        self.file = Some(file);
        self.good_bytes = whole;
        self.rewrite_at = 2 * whole + REWRITE_BYTES_MIN;
        Ok(())
    }

    fn run(mut self, waiting: &mpsc::Receiver<Change>, durable: &AtomicU64) {
        let mut batch = Vec::new();
        let mut failing = false;
        loop {
            let next = if failing {
                match waiting.recv_timeout(RETRY_EVERY) {
                    Ok(change) => Ok(Some(change)),
                    Err(mpsc::RecvTimeoutError::Timeout) => Ok(None),
                    Err(mpsc::RecvTimeoutError::Disconnected) => Err(mpsc::RecvError),
                }
            } else {
                waiting.recv().map(Some)
            };
            let Ok(next) = next else {
                return;
            };
            batch.extend(next);
            batch.extend(waiting.try_iter().take(CHANGES_MAX));
            match self.write(&batch) {
                Ok(()) => {
                    if failing {
                        tracing::info!("subscriptions are kept on disk again");
                    }
                    failing = false;
                    self.confirm(&mut batch, durable);
                }
                Err(error) => {
                    if !failing {
                        tracing::error!(%error, "subscriptions cannot be kept on disk; \
                            not acknowledged until they can");
                    }
                    failing = true;
                }
            }
        }
    }

    /// Appends behind the good part; what a failed write left is cut off again.
    fn write(&mut self, batch: &[Change]) -> io::Result<()> {
        let mut text = String::new();
        for change in batch {
            text.push_str(&change.line);
            text.push('\n');
        }
        let Some(file) = &self.file else {
            return Err(io::Error::other("the file is not open"));
        };
        let written = file.write_all_at(text.as_bytes(), self.good_bytes);
        let written = written.and_then(|()| if self.sync { file.sync_data() } else { Ok(()) });
        if written.is_err() {
            let _ = file.set_len(self.good_bytes);
        }
        written?;
        self.good_bytes += text.len() as u64;
        Ok(())
    }

    fn confirm(&mut self, batch: &mut Vec<Change>, durable: &AtomicU64) {
        self.ahead.extend(batch.iter().map(|change| change.version));
        let mut reached = durable.load(Ordering::Acquire);
        while self.ahead.remove(&(reached + 1)) {
            reached += 1;
        }
        durable.store(reached, Ordering::Release);
        for change in batch.drain(..) {
            change.waiter.raise(DURABLE);
            let old = if change.lives {
                self.live_bytes += change.line.len() as u64 + 1;
                self.live.insert(change.identity, change.line)
            } else {
                self.live.remove(&change.identity)
            };
            self.live_bytes -= old.map_or(0, |line| line.len() as u64 + 1);
        }
        if self.good_bytes > self.rewrite_at
            && let Err(error) = self.rewrite()
        {
            tracing::warn!(%error, "sessions.jsonl cannot be written anew; it goes on growing");
            self.rewrite_at = 2 * self.good_bytes;
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

    #[test]
    fn the_file_stays_near_what_lives_in_it() {
        let dir = tempfile::tempdir().unwrap();
        let mailbox = Arc::new(Mailbox::default());
        let (journal, _) = Journal::open(dir.path(), false).unwrap();
        let filters: Vec<_> = (0..10).map(|_| subscription(&"x".repeat(1000))).collect();
        for _ in 0..500 {
            journal.record("d/a", Some(&filters), &mailbox);
        }
        drop(journal);
        let bytes = fs::metadata(dir.path().join("sessions.jsonl"))
            .unwrap()
            .len();
        assert!(bytes < 2 * REWRITE_BYTES_MIN, "{bytes} bytes");
        let (_journal, (restored, _)) = Journal::open(dir.path(), false).unwrap();
        assert_eq!(restored["d/a"], filters);
    }

    #[test]
    fn where_no_new_file_can_be_written_the_old_one_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let good = "{\"identity\":\"d/a\",\"subscriptions\":[{\"filter\":\"x\",\"qos\":1}]}\n";
        let path = dir.path().join("sessions.jsonl");
        fs::write(&path, format!("{good}{{\"identity\":\"torn")).unwrap();
        // A folder in its place keeps the new file from being written.
        fs::create_dir(dir.path().join("sessions.jsonl.new")).unwrap();
        let mailbox = Arc::new(Mailbox::default());
        let (journal, (restored, _)) = Journal::open(dir.path(), true).unwrap();
        assert_eq!(restored.len(), 1);
        journal.record("d/b", Some(&[subscription("y")]), &mailbox);
        drop(journal);
        let (_journal, (restored, damage)) = Journal::open(dir.path(), true).unwrap();
        assert_eq!((restored.len(), damage.len()), (2, 0));
    }
}
