//! The threads of a store on disk: one writes, one keeps house.

use std::io;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use super::log::{Front, Log};
use super::writer::Step;
use super::{Store, lock};

/// The hub's clock in milliseconds.
pub type NowMs = Arc<dyn Fn() -> u64 + Send + Sync>;

impl Store {
    /// Starts the writer and the keeper. [`Store::close`] ends them.
    ///
    /// # Errors
    /// The system has no more threads.
    pub fn start(self: &Arc<Self>, now_ms: &NowMs) -> io::Result<()> {
        let Some(log) = &self.log else {
            return Ok(());
        };
        lock(&log.keeper).begin(log);
        lock(&log.writer).tell_room(log);
        let mut threads = Vec::new();
        for (name, run) in [
            ("store-writer", write as fn(&Self, &NowMs)),
            ("store-keeper", keep),
        ] {
            let (store, now_ms) = (Arc::clone(self), Arc::clone(now_ms));
            let thread = std::thread::Builder::new().name(name.to_owned());
            threads.push(thread.spawn(move || run(&store, &now_ms))?);
        }
        lock(&self.threads).append(&mut threads);
        Ok(())
    }

    /// Writes everything, notes the clean end, and ends the threads.
    pub fn close(&self, now_ms: u64) {
        let Some(log) = &self.log else {
            return;
        };
        let mut front = log.front();
        front.stop = true;
        front.writer_sleeps = false;
        drop(front);
        log.writer_wakes.notify_all();
        log.wake_keeper();
        for thread in lock(&self.threads).drain(..) {
            // A thread that panicked has said so; the process aborts in a release build.
            let _ = thread.join();
        }
        self.end(now_ms);
    }
}

fn write(store: &Store, now_ms: &NowMs) {
    let Some(log) = &store.log else {
        return;
    };
    let mut blocked_until = 0;
    loop {
        let (sync_due, may_sync) = {
            let writer = lock(&log.writer);
            (
                writer.sync_due_ms(log.options().sync),
                writer.may_sync_ms(log),
            )
        };
        let mut front = log.front();
        if front.stop {
            return;
        }
        if std::mem::take(&mut front.supplied) {
            blocked_until = 0;
            drop(front);
            lock(&log.writer).tell_room(log);
            continue;
        }
        let now = now_ms();
        let has_work = !front.batch.is_empty() || front.note || !front.freed.is_empty();
        let earliest = may_sync.max(blocked_until);
        let wait_ms = if has_work || blocked_until > now {
            earliest.saturating_sub(now)
        } else {
            sync_due.map_or(u64::MAX, |due| due.saturating_sub(now))
        };
        if wait_ms == 0 {
            drop(front);
        } else if sleep(log, front, wait_ms) && may_sync > now_ms() {
            // Woken by more work, for which the wear budget has no sync yet.
            continue;
        }
        let mut writer = lock(&log.writer);
        let step = writer.step(store, log, now_ms(), false);
        blocked_until = match step {
            Step::Blocked { until_ms } => until_ms,
            Step::Idle | Step::Done => 0,
        };
        if step != Step::Done {
            writer.tell_room(log);
        }
    }
}

/// Waits until woken (true) or for so long.
fn sleep(log: &Log, mut front: MutexGuard<'_, Front>, wait_ms: u64) -> bool {
    front.writer_sleeps = true;
    let wait = Duration::from_millis(wait_ms.min(3_600_000));
    let woken = log.writer_wakes.wait_timeout(front, wait);
    let (mut front, timeout) = woken.unwrap_or_else(PoisonError::into_inner);
    front.writer_sleeps = false;
    !timeout.timed_out()
}

fn keep(store: &Store, now_ms: &NowMs) {
    let Some(log) = &store.log else {
        return;
    };
    loop {
        let (more, due_ms) = {
            let mut keeper = lock(&log.keeper);
            let more = keeper.step(store, log, now_ms(), false);
            (more, keeper.due_ms(log))
        };
        if log.front().stop {
            return;
        }
        if more {
            continue;
        }
        let (woken, wakes) = &log.keeper_wakes;
        let woken = lock(woken);
        let wait = Duration::from_millis(due_ms.saturating_sub(now_ms()).max(1));
        let waited = wakes.wait_timeout_while(woken, wait, |woken| !*woken);
        let (mut woken, _) = waited.unwrap_or_else(PoisonError::into_inner);
        *woken = false;
    }
}
