//! One file of the log: what is known of it in memory, how it is sealed, how a lane's list is read.

use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use super::control::Control;
use super::disk::{Disk, DiskFile, PAGE_BYTES};
use super::frame::Kind;
use super::index::{self, Entry, ListBuilder, ListsByLane, SUMMARY_BYTES, Summary};
use super::layout::{Footer, salt, segment_path};
use super::lock;
use super::record::message_bytes;
use super::scan::{Found, Scanner};

/// Room for the summaries and the footer that an empty segment needs.
const SEAL_BYTES_MIN: u64 = 2 * PAGE_BYTES as u64;

/// What a segment holds of its lanes.
#[derive(Debug)]
enum Lists {
    /// All of it in memory: the segment grows, or could not be sealed.
    Built(ListsByLane),
    /// In the file, summaries in memory in the order of lanes.
    Sealed(Box<[Summary]>),
}

/// A segment with messages.
#[derive(Debug)]
pub struct Segment {
    /// Its id, which is its file's name too.
    pub id: u64,
    /// No frame in it has a lower seq.
    pub base_seq: u64,
    /// When it was begun, in milliseconds since 1970 of the trusted clock; 0: not known.
    pub time_ms: u64,
    /// Bytes of its file.
    pub size: AtomicU64,
    /// Where its frames end.
    pub data_end: AtomicU64,
    /// Whether it takes no more frames.
    sealed: AtomicBool,
    lists: Mutex<Lists>,
}

impl Lists {
    fn summary(&self, lane: u32) -> Option<Summary> {
        match self {
            Self::Built(lists) => lists.get(&lane).map(ListBuilder::summary),
            Self::Sealed(all) => {
                let at = all.binary_search_by_key(&lane, |summary| summary.lane);
                at.ok().and_then(|at| all.get(at)).copied()
            }
        }
    }
}

/// Segments by id.
pub type Catalog = BTreeMap<u64, Arc<Segment>>;

impl Segment {
    /// An empty segment, or one that was scanned.
    #[must_use]
    pub fn growing(
        id: u64,
        (base_seq, time_ms): (u64, u64),
        (size, data_end): (u64, u64),
        lists: ListsByLane,
    ) -> Self {
        Self {
            id,
            base_seq,
            time_ms,
            size: AtomicU64::new(size),
            data_end: AtomicU64::new(data_end),
            sealed: AtomicBool::new(false),
            lists: Mutex::new(Lists::Built(lists)),
        }
    }

    /// A sealed segment, as its footer says.
    #[must_use]
    pub fn sealed(id: u64, begun: (u64, u64), ends: (u64, u64), lanes: Vec<Summary>) -> Self {
        Self {
            sealed: AtomicBool::new(true),
            lists: Mutex::new(Lists::Sealed(lanes.into())),
            ..Self::growing(id, begun, ends, ListsByLane::new())
        }
    }

    fn lists(&self) -> MutexGuard<'_, Lists> {
        lock(&self.lists)
    }

    /// Whether it takes no more frames.
    #[must_use]
    pub fn is_sealed(&self) -> bool {
        self.sealed.load(Ordering::Acquire)
    }

    /// From here on it takes no more frames, sealed on the disk or not.
    pub fn close(&self) {
        self.sealed.store(true, Ordering::Release);
    }

    /// Adds the frames of a batch to the lists.
    pub fn add(&self, entries: impl Iterator<Item = (u32, Entry, u32)>) {
        let mut lists = self.lists();
        let Lists::Built(lists) = &mut *lists else {
            debug_assert!(false, "a sealed segment takes no frames");
            return;
        };
        for (lane, entry, expires_s) in entries {
            index::add(lists, lane, entry, expires_s);
        }
    }

    /// What it holds of a lane.
    #[must_use]
    pub fn summary(&self, lane: u32) -> Option<Summary> {
        self.lists().summary(lane)
    }

    /// What it holds of every lane.
    #[must_use]
    pub fn summaries(&self) -> Vec<Summary> {
        match &*self.lists() {
            Lists::Built(lists) => lists.values().map(ListBuilder::summary).collect(),
            Lists::Sealed(all) => all.to_vec(),
        }
    }

    /// The list of a lane from byte `from` on; empty where there is no more.
    ///
    /// # Errors
    /// The list cannot be read or is damaged; [`Segment::list_or_rebuild`] makes it anew.
    pub fn list(&self, disk: &dyn Disk, lane: u32, from: usize) -> io::Result<Vec<u8>> {
        let summary = match &*self.lists() {
            Lists::Built(lists) => {
                let list = lists.get(&lane).map(ListBuilder::list).unwrap_or_default();
                return Ok(list.get(from..).unwrap_or_default().to_vec());
            }
            sealed @ Lists::Sealed(_) => sealed.summary(lane),
        };
        let Some(summary) = summary else {
            return Ok(Vec::new());
        };
        let mut list = vec![0; summary.list_bytes as usize];
        let file = disk.open(&segment_path(self.id))?;
        let read = file.read_at(&mut list, summary.list_at)?;
        let is_sound = crc32c::crc32c(&list) == summary.list_crc
            && (from > 0 || summary.agrees(&list, self.data_end.load(Ordering::Acquire)));
        if read < list.len() || !is_sound {
            let what = format!("the list of a lane in segment {:016x} is damaged", self.id);
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
        Ok(list.split_off(from.min(list.len())))
    }

    /// As [`Segment::list`]; where that is damaged, `tell` hears why, and all lists are made anew
    /// from the frames.
    ///
    /// # Errors
    /// Whatever the disk answers.
    pub fn list_or_rebuild(
        &self,
        (disk, store_id): (&dyn Disk, u64),
        lane: u32,
        from: usize,
        tell: impl FnOnce(io::Error),
    ) -> io::Result<Vec<u8>> {
        match self.list(disk, lane, from) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => tell(error),
            done => return done,
        }
        self.rebuild(disk, store_id)?;
        self.list(disk, lane, from)
    }

    /// Scans the frames and keeps the lists in memory, since those in the file are damaged.
    fn rebuild(&self, disk: &dyn Disk, store_id: u64) -> io::Result<()> {
        let file = disk.open(&segment_path(self.id))?;
        let salt = salt(store_id, self.id);
        let data_end = self.data_end.load(Ordering::Acquire);
        let scanned = scan(&*file, salt, data_end, (Some(self.base_seq), u64::MAX))?;
        *self.lists() = Lists::Built(scanned.lists);
        Ok(())
    }

    /// Bytes that lists, summaries and footer will take, at the most.
    #[must_use]
    pub fn seal_bytes(&self) -> u64 {
        match &*self.lists() {
            Lists::Built(lists) => {
                let lists = lists.values();
                let bytes = lists.map(|list| list.list().len() + SUMMARY_BYTES);
                bytes.sum::<usize>() as u64 + SEAL_BYTES_MIN
            }
            Lists::Sealed(_) => 0,
        }
    }

    /// Writes lists, summaries and the footer behind the frames, and forgets the lists in memory.
    /// With `cut`, the file ends there; otherwise the footer is its last page.
    ///
    /// # Errors
    /// Whatever the disk answers; then the lists stay in memory.
    pub fn seal(
        &self,
        file: &dyn DiskFile,
        (last_seq, frames): (u64, u64),
        cut: bool,
    ) -> io::Result<()> {
        self.close();
        let data_end = self.data_end.load(Ordering::Acquire);
        let lists_at = data_end.next_multiple_of(PAGE_BYTES as u64);
        let mut lists = self.lists();
        let Lists::Built(built) = &*lists else {
            return Ok(());
        };
        let mut bytes = Vec::new();
        let mut all: Vec<_> = built.values().collect();
        all.sort_by_key(|list| list.summary().lane);
        let mut summaries = Vec::with_capacity(all.len());
        for list in all {
            summaries.push(list.sealed(lists_at + bytes.len() as u64));
            bytes.extend_from_slice(list.list());
        }
        let summaries_at = lists_at + bytes.len() as u64;
        let start = bytes.len();
        summaries
            .iter()
            .for_each(|summary| summary.encode(&mut bytes));
        let footer = Footer {
            id: self.id,
            last_seq,
            frames,
            data_end,
            summaries_at,
            summaries: summaries.len() as u64,
            summaries_crc: u64::from(crc32c::crc32c(bytes.get(start..).unwrap_or_default())),
        };
        bytes.resize(bytes.len().next_multiple_of(PAGE_BYTES), 0);
        let end = lists_at + bytes.len() as u64;
        let size = self.size.load(Ordering::Acquire);
        let footer_at = if cut {
            end
        } else {
            size.saturating_sub(PAGE_BYTES as u64)
        };
        if footer_at < end || footer_at + PAGE_BYTES as u64 > size {
            return Err(io::Error::other("no room for the footer"));
        }
        file.write_at(&[IoSlice::new(&bytes)], lists_at)?;
        file.write_at(&[IoSlice::new(&footer.encode())], footer_at)?;
        if cut {
            let size = footer_at + PAGE_BYTES as u64;
            file.set_len(size)?;
            self.size.store(size, Ordering::Release);
        }
        *lists = Lists::Sealed(summaries.into());
        Ok(())
    }
}

/// What a scan of a segment found.
#[derive(Debug, Default)]
pub struct Scanned {
    /// The lists of its lanes.
    pub lists: ListsByLane,
    /// The last seq; 0: none.
    pub last_seq: u64,
    /// Frames of any kind.
    pub frames: u64,
    /// Behind the last frame.
    pub data_end: u64,
    /// Everything up to here was durable when the last frame was written.
    pub durable_seq: u64,
    /// Gaps in the seqs, both ends included.
    pub gaps: Vec<(u64, u64)>,
    /// Messages whose bodies are damaged.
    pub bodies: Vec<u64>,
    /// What the log noted for itself.
    pub notes: Vec<Control>,
    /// The last sound frame is a note.
    pub ends_with_note: bool,
}

/// Scans the frames of a segment up to `end`. Without `base_seq` nobody knows where it should
/// begin.
///
/// # Errors
/// Whatever the disk answers.
pub fn scan(
    file: &dyn DiskFile,
    salt: u32,
    end: u64,
    (base_seq, seq_end): (Option<u64>, u64),
) -> io::Result<Scanned> {
    let mut scanned = Scanned::default();
    // In front is the checkpoint, with the seq before the first.
    let first_seq = base_seq.map_or(0, |base_seq| base_seq.saturating_sub(1));
    let range = (PAGE_BYTES as u64, end);
    let mut scanner = Scanner::new(file, salt, range, (first_seq, seq_end));
    while let Some(found) = scanner.next()? {
        let Found::Frame {
            offset,
            header,
            bytes,
            is_sound,
        } = found
        else {
            continue;
        };
        if header.kind == Kind::Data && base_seq.is_some_and(|base| header.seq < base) {
            // It is in the segment before, too.
            continue;
        }
        let expected = match base_seq {
            _ if scanned.frames > 0 => scanned.last_seq + 1,
            Some(base_seq) => base_seq,
            // Whatever was durable may have been elsewhere; the rest of the batch was here.
            None => header.durable_seq + 1,
        };
        if header.seq > expected {
            scanned.gaps.push((expected, header.seq - 1));
        }
        scanned.last_seq = header.seq;
        scanned.frames += 1;
        scanned.durable_seq = scanned.durable_seq.max(header.durable_seq);
        if header.kind == Kind::Data {
            let entry = Entry {
                seq: header.seq,
                offset,
                bytes: message_bytes(&header),
            };
            for lane in header.lanes(bytes) {
                index::add(&mut scanned.lists, lane.lane, entry, lane.expires_s);
            }
            if !is_sound {
                scanned.bodies.push(header.seq);
            }
        }
        if is_sound {
            scanned.ends_with_note = header.kind == Kind::Control;
        }
        if header.kind == Kind::Control
            && let Ok(body) = header.body(bytes)
        {
            scanned.notes.extend(Control::read(body.payload));
        }
    }
    scanned.data_end = scanner.data_end();
    Ok(scanned)
}
