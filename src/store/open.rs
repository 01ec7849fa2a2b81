//! Opening a store on disk, and what is done with it beside appending and fetching: sweeping,
//! closing, looking at it.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use super::clock::TrustedClock;
use super::control::{Cursor, endpoint_number, next_number, of_lane};
use super::disk::{Disk, PAGE_BYTES, replace};
use super::index::Position;
use super::keeper::Keeper;
use super::lane::Gap;
use super::layout::{END, end_text, free_path, segment_path};
use super::log::{Counters, Log, Options, Spare};
use super::queue::Queue;
use super::recover::{Damaged, Recovered, found, recover};
use super::writer::{Active, Step, Writer};
use super::{Bounds, Loss, LossReason, Store, lock};
use crate::message::{Endpoint, Priority};

/// What was found on disk for one endpoint: its lanes.
#[derive(Debug, Default)]
pub(super) struct Found {
    lanes: Vec<(usize, FoundLane)>,
}

#[derive(Debug, Default, Clone)]
struct FoundLane {
    cursor: Cursor,
    last_seq: u64,
    messages: usize,
    bytes: u64,
}

/// What opening a store came upon.
#[derive(Debug, Default)]
pub struct Opened {
    /// Messages found, of endpoints known by name or not.
    pub messages: usize,
    /// Acknowledged messages that are gone, in sentences.
    pub lost: Vec<String>,
    /// How many there are at the most: notes of the log had seqs among them.
    pub lost_messages: u64,
    /// Other things worth a line in the log.
    pub remarks: Vec<String>,
    /// The last end was a clean one, or there was none before.
    pub was_closed: bool,
}

impl Store {
    /// Opens the store below `disk`, or makes one there; `random` names a new one.
    ///
    /// # Errors
    /// Whatever the disk answers, or that a newer version wrote the store. Damage is no error.
    pub fn open(
        disk: Arc<dyn Disk>,
        options: Options,
        bounds: Bounds,
        random: u64,
        (now_ms, wall_ms): (u64, u64),
    ) -> io::Result<(Self, Opened)> {
        let mut recovered = recover(&*disk, true)?;
        let store_id = recovered.store_id.unwrap_or(random);
        if recovered.needs_format {
            // On a full disk it can wait: segments know whose they are.
            let made = found(&*disk, store_id);
            if recovered.catalog.is_empty() {
                made?;
            }
        }
        let saved = recovered.notes.clock.take();
        let clock = TrustedClock::new(now_ms, wall_ms, recovered.next_seq, saved);
        let (mut lanes, remarks) = found_lanes(&*disk, &recovered);
        let lost = recovered.damaged.iter().map(Damaged::sentence);
        let opened = Opened {
            messages: lanes.values().map(|lane| lane.messages).sum(),
            lost: lost.collect(),
            lost_messages: recovered.damaged.iter().map(Damaged::messages_max).sum(),
            remarks: [recovered.remarks.clone(), remarks].concat(),
            was_closed: recovered.was_closed(),
        };
        let log = log_of(disk, store_id, options, &mut recovered)?;
        let store = Self::new(bounds, clock, Some(Box::new(log)));
        let mut unclaimed: HashMap<u32, Found> = HashMap::new();
        for (lane, found) in lanes.drain() {
            let (number, priority) = of_lane(lane);
            unclaimed
                .entry(number)
                .or_default()
                .lanes
                .push((priority, found));
        }
        *lock(&store.unclaimed) = unclaimed;
        for (number, name) in &recovered.notes.endpoints {
            if let Some(endpoint) = Endpoint::parse(name) {
                store.adopt(&endpoint, *number);
            }
        }
        store.note_orphans();
        Ok((store, opened))
    }

    /// Makes the queue of an endpoint that is known from the disk.
    fn adopt(&self, endpoint: &Endpoint, number: u32) {
        let mut queues = self.queues.write().unwrap_or_else(PoisonError::into_inner);
        let queue = Arc::new(Queue::new(endpoint.clone(), number, false));
        self.claim(&queue);
        queues.insert(endpoint.clone(), queue);
    }

    /// The number of a new queue's endpoint.
    pub(super) fn number(
        &self,
        queues: &HashMap<Endpoint, Arc<Queue>>,
        endpoint: &Endpoint,
    ) -> u32 {
        let mut number = endpoint_number(endpoint);
        while queues.values().any(|queue| queue.number == number) {
            number = next_number(number);
        }
        if let Some(log) = &self.log {
            log.front().endpoints.push((number, endpoint.to_string()));
        }
        number
    }

    /// Gives a new queue what the disk has for it.
    pub(super) fn claim(&self, queue: &Queue) {
        let Some(found) = lock(&self.unclaimed).remove(&queue.number) else {
            return;
        };
        let mut state = queue.lock();
        for (priority, found) in found.lanes {
            let Some(lane) = state.lanes.get_mut(priority) else {
                continue;
            };
            lane.last_seq = found.last_seq;
            lane.acked = found.cursor.acked.into_iter().collect();
            if found.messages > 0 {
                lane.gap = Some(Gap {
                    from: found.cursor.floor + 1,
                    messages: found.messages,
                    bytes: found.bytes,
                });
            }
            state.messages += found.messages;
            state.bytes += found.bytes;
        }
        drop(state);
        self.note_orphans();
    }

    fn note_orphans(&self) {
        if let Some(log) = &self.log {
            let unclaimed = lock(&self.unclaimed);
            let lanes = unclaimed.values().flat_map(|found| &found.lanes);
            *lock(&log.orphans) = lanes.map(|(_, found)| found.cursor.clone()).collect();
        }
    }

    /// Once a second: compares the clocks, gives up what expired, has cursors noted, forgets empty
    /// queues that nothing refers to. Hands out all losses since the last time.
    pub fn sweep(&self, (now_ms, wall_ms): (u64, u64), losses: &mut Vec<Loss>) {
        let next_seq = match &self.log {
            Some(log) => log.front().next_seq,
            None => self.next_seq.load(Ordering::Relaxed),
        };
        let steps = {
            let mut clock = self.clock.write().unwrap_or_else(PoisonError::into_inner);
            let steps = clock.observe(now_ms, wall_ms, next_seq);
            if let Some(log) = self.log.as_ref().filter(|_| steps) {
                let oldest = log.segments().first().map_or(0, |one| one.base_seq);
                clock.prune(oldest);
            }
            steps
        };
        for queue in self.queues() {
            let before = losses.len();
            let clock = self.clock();
            let mut state = queue.lock();
            let freed = state.expire((&clock, now_ms), &self.cache, losses);
            if losses.len() > before {
                self.note_cursor(&queue, &mut state);
            }
            drop(state);
            drop(clock);
            self.free(&queue, freed);
        }
        losses.append(&mut lock(&self.losses));
        if let Some(log) = &self.log {
            let mut front = log.front();
            front.note |= steps || !lock(&log.dirty).is_empty();
            log.wake_writer(front);
        }
        let oldest_seq = self.log.as_ref().map(|log| {
            let oldest = log.catalog().values().map(|segment| segment.base_seq).min();
            oldest.unwrap_or(next_seq)
        });
        let mut queues = self.queues.write().unwrap_or_else(PoisonError::into_inner);
        queues.retain(|_, queue| {
            let is_in_use = || Arc::strong_count(queue) > 1 || !queue.is_empty();
            match oldest_seq {
                None => is_in_use(),
                // On disk a queue stands for its cursor, which old segments may need yet. Clients
                // choose the names of sessions, so that there is no end to them.
                Some(oldest_seq) => {
                    let is_session = matches!(queue.endpoint(), Endpoint::Session { .. });
                    !is_session || is_in_use() || queue.last_seq() >= oldest_seq
                }
            }
        });
    }

    /// One step of the writer, for those who run the store without threads.
    pub fn write_step(&self, now_ms: u64) -> Step {
        self.log.as_ref().map_or(Step::Idle, |log| {
            let mut writer = lock(&log.writer);
            let step = writer.step(self, log, now_ms, false);
            writer.tell_room(log);
            step
        })
    }

    /// One step of the keeper, likewise; with `tick` it looks at everything. True: there is more.
    pub fn keep_step(&self, now_ms: u64, tick: bool) -> bool {
        self.log
            .as_ref()
            .is_some_and(|log| lock(&log.keeper).step(self, log, now_ms, tick))
    }

    /// Writes everything that waits and notes that the log ends in good order. Without threads.
    pub fn end(&self, now_ms: u64) {
        let Some(log) = &self.log else {
            return;
        };
        let mut writer = lock(&log.writer);
        log.front().note |= !lock(&log.dirty).is_empty();
        // What was on its way, what waits, the last note: each is a batch.
        for _ in 0..4 {
            if writer.step(self, log, now_ms, false) != Step::Done {
                break;
            }
        }
        if writer.has_active()
            && writer.step(self, log, now_ms, true) == Step::Done
            && let Err(error) = replace(&*log.disk, END, &end_text(writer.last))
        {
            // Without it, a segment that vanishes later is not missed.
            tracing::warn!(%error, "where the log ends could not be noted");
        }
    }

    /// The queues of kept sessions of the plain topic space.
    #[must_use]
    pub fn session_queues(&self) -> Vec<Arc<Queue>> {
        let mut queues = self.queues();
        queues.retain(|queue| matches!(queue.endpoint(), Endpoint::Session { live: false, .. }));
        queues
    }

    /// Bytes that wait for sessions of the plain topic space.
    #[must_use]
    pub fn session_bytes(&self) -> u64 {
        let queues = self.session_queues();
        queues.iter().map(|queue| queue.bytes()).sum()
    }

    /// Up to which message a lane is done with, and which later ones are.
    #[must_use]
    pub fn cursor(&self, queue: &Queue, priority: Priority) -> (u64, Vec<u64>) {
        let state = queue.lock();
        let cursor = state.lanes.get(priority.index()).map(|lane| lane.cursor(0));
        cursor.map_or((0, Vec::new()), |cursor| (cursor.floor, cursor.acked))
    }

    /// The store's id; `None` without a disk.
    #[must_use]
    pub fn id(&self) -> Option<u64> {
        self.log.as_ref().map(|log| log.store_id)
    }

    /// Numbers that only grow; `None` without a disk.
    #[must_use]
    pub fn counters(&self) -> Option<&Counters> {
        self.log.as_ref().map(|log| &log.counters)
    }

    /// Bytes of all files, and segments in use.
    #[must_use]
    pub fn disk_usage(&self) -> (u64, usize) {
        self.log.as_ref().map_or((0, 0), |log| {
            (log.file_bytes.load(Ordering::Relaxed), log.catalog().len())
        })
    }

    /// About how long the oldest message waits, in milliseconds: since its segment was begun.
    #[must_use]
    pub fn oldest_ms(&self, now_ms: u64) -> u64 {
        let Some(log) = &self.log else {
            return 0;
        };
        if self.queues().iter().all(|queue| queue.is_empty()) {
            return 0;
        }
        let oldest = log.segments().first().map_or(0, |segment| segment.time_ms);
        let known = (oldest > 0).then(|| self.trusted_ms(now_ms).saturating_sub(oldest));
        known.unwrap_or(0)
    }

    /// Whether the disk refuses, and whether the store is full.
    #[must_use]
    pub fn troubles(&self) -> (bool, bool) {
        self.log.as_ref().map_or((false, false), |log| {
            (
                log.has_failed.load(Ordering::Acquire),
                log.is_full.load(Ordering::Relaxed),
            )
        })
    }

    /// Microseconds of the syncs since the last call.
    #[must_use]
    pub fn take_sync_samples(&self) -> Vec<u32> {
        self.log.as_ref().map_or_else(Vec::new, |log| {
            std::mem::take(&mut *lock(&log.sync_samples))
        })
    }

    /// Changes what may change while running: the budgets.
    pub fn set_options(&self, options: Options) {
        if let Some(log) = &self.log {
            let mut known = lock(&log.options);
            *known = Options {
                sync: known.sync,
                segment_bytes: known.segment_bytes,
                ..options
            };
            drop(known);
            log.wake_keeper();
        }
    }

    /// Drops everything that waits in an endpoint's queue; how many messages that were.
    pub fn purge(&self, endpoint: &Endpoint) -> usize {
        let Some(queue) = self.queues().into_iter().find(|q| q.endpoint() == endpoint) else {
            return 0;
        };
        let messages = self.clear(&queue);
        let loss = Loss::unread(LossReason::Purged, (0, 0), messages);
        self.lose(&queue, vec![loss]);
        messages
    }

    /// As [`Store::purge`], and the caller counts them.
    pub fn clear(&self, queue: &Arc<Queue>) -> usize {
        let mut state = queue.lock();
        let before = state.bytes;
        let messages = state.purge(&self.cache);
        let freed = before - state.bytes;
        self.note_cursor(queue, &mut state);
        drop(state);
        self.free(queue, freed);
        messages
    }
}

fn log_of(
    disk: Arc<dyn Disk>,
    store_id: u64,
    options: Options,
    recovered: &mut Recovered,
) -> io::Result<Log> {
    let catalog = std::mem::take(&mut recovered.catalog);
    let files: u64 = catalog
        .values()
        .map(|s| s.size.load(Ordering::Acquire))
        .sum();
    let active = recovered.active.take().map(|continued| {
        let end = continued.segment.data_end.load(Ordering::Acquire);
        Active {
            segment: continued.segment,
            file: continued.file,
            end: end.next_multiple_of(PAGE_BYTES as u64),
            tail: Vec::new(),
            frames: continued.frames,
            old: 0,
        }
    });
    let durable_seq = recovered.next_seq - 1;
    let writer = Writer::new(active, recovered.last, durable_seq);
    let mut keeper = Keeper::new(recovered.next_segment, recovered.free.clone());
    let mut spares = std::collections::VecDeque::new();
    recovered.spares.sort_unstable();
    let newest = recovered.last.0;
    for (id, size) in &recovered.spares {
        // Only ids behind the newest segment keep the order; other sizes are of other settings.
        if *id > newest && *size == options.segment_bytes {
            let file = disk.open(&segment_path(*id))?;
            spares.push_back(Spare {
                id: *id,
                size: *size,
                file,
                old: 0,
            });
        } else {
            keeper.freeing.insert(*id, *size);
        }
    }
    keeper.freeing.extend(recovered.obsolete.iter().copied());
    keeper.pool.retain(|(id, size)| {
        let fits = *size == options.segment_bytes;
        if !fits && disk.remove(&free_path(*id)).is_err() {
            tracing::warn!(id, "a file in free/ could not be removed");
        }
        fits
    });
    let sizes = recovered.spares.iter().chain(&recovered.obsolete);
    let spare_bytes: u64 = sizes.chain(&keeper.pool).map(|(_, size)| size).sum();
    let unfit: Vec<u64> = keeper.freeing.keys().copied().collect();
    let log = Log::new(
        disk,
        store_id,
        options,
        recovered.next_seq,
        catalog,
        writer,
        keeper,
    );
    *lock(&log.spares) = spares;
    *lock(&log.freed) = unfit;
    log.file_bytes.store(files + spare_bytes, Ordering::Relaxed);
    Ok(log)
}

/// What waits in each lane, by the lists and the cursors.
fn found_lanes(disk: &dyn Disk, recovered: &Recovered) -> (HashMap<u32, FoundLane>, Vec<String>) {
    let mut lanes: HashMap<u32, FoundLane> = HashMap::new();
    let mut remarks = Vec::new();
    for (lane, cursor) in &recovered.notes.cursors {
        let found = FoundLane {
            cursor: cursor.clone(),
            last_seq: cursor.floor,
            ..FoundLane::default()
        };
        lanes.insert(*lane, found);
    }
    for segment in recovered.catalog.values() {
        for part in segment.summaries() {
            let found = lanes.entry(part.lane).or_default();
            found.cursor.lane = part.lane;
            found.last_seq = found.last_seq.max(part.last_seq);
            let (floor, acked) = (found.cursor.floor, &found.cursor.acked);
            if part.last_seq <= floor {
                continue;
            }
            let touches = |seq: &u64| (part.first_seq..=part.last_seq).contains(seq);
            if part.first_seq > floor && !acked.iter().any(touches) {
                found.messages += part.messages as usize;
                found.bytes += part.bytes;
                continue;
            }
            let store_id = recovered.store_id.unwrap_or_default();
            let list = segment.list_or_rebuild((disk, store_id), part.lane, 0, |error| {
                remarks.push(format!("{error}; made anew from its frames"));
            });
            let list = list.unwrap_or_default();
            for entry in Position::default().entries_of(&list) {
                if entry.seq > floor && !acked.contains(&entry.seq) {
                    found.messages += 1;
                    found.bytes += entry.bytes;
                }
            }
        }
    }
    (lanes, remarks)
}
