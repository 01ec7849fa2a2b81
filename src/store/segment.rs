//! One file of the log: what is known of it in memory, how it is sealed, how a lane's list is read.

use std::collections::{BTreeMap, HashMap};
use std::io::{self, IoSlice};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use super::disk::{Disk, DiskFile, PAGE_BYTES};
use super::frame::Kind;
use super::index::{Entry, ListBuilder, SUMMARY_BYTES, Summary};
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
    Built(HashMap<u32, ListBuilder>),
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

/// Segments by id.
pub type Catalog = BTreeMap<u64, Arc<Segment>>;

impl Segment {
    /// An empty segment, or one that was scanned.
    #[must_use]
    pub fn growing(
        id: u64,
        (base_seq, time_ms): (u64, u64),
        (size, data_end): (u64, u64),
        lists: HashMap<u32, ListBuilder>,
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
    pub fn sealed(
        id: u64,
        (base_seq, time_ms): (u64, u64),
        (size, data_end): (u64, u64),
        lanes: Vec<Summary>,
    ) -> Self {
        Self {
            id,
            base_seq,
            time_ms,
            size: AtomicU64::new(size),
            data_end: AtomicU64::new(data_end),
            sealed: AtomicBool::new(true),
            lists: Mutex::new(Lists::Sealed(lanes.into())),
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
            lists
                .entry(lane)
                .or_insert_with(|| ListBuilder::new(lane))
                .push(entry, expires_s);
        }
    }

    /// What it holds of a lane.
    #[must_use]
    pub fn summary(&self, lane: u32) -> Option<Summary> {
        match &*self.lists() {
            Lists::Built(lists) => lists.get(&lane).map(ListBuilder::summary),
            Lists::Sealed(all) => {
                let at = all.binary_search_by_key(&lane, |summary| summary.lane);
                at.ok().and_then(|at| all.get(at)).copied()
            }
        }
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
    /// The list cannot be read or is damaged; [`Segment::rebuild`] makes it anew.
    pub fn list(&self, disk: &dyn Disk, lane: u32, from: usize) -> io::Result<Vec<u8>> {
        let summary = match &*self.lists() {
            Lists::Built(lists) => {
                let list = lists.get(&lane).map(ListBuilder::list).unwrap_or_default();
                return Ok(list.get(from..).unwrap_or_default().to_vec());
            }
            Lists::Sealed(all) => {
                let at = all.binary_search_by_key(&lane, |summary| summary.lane);
                at.ok().and_then(|at| all.get(at)).copied()
            }
        };
        let Some(summary) = summary else {
            return Ok(Vec::new());
        };
        let mut list = vec![0; summary.list_bytes as usize];
        let file = disk.open(&segment_path(self.id))?;
        let read = file.read_at(&mut list, summary.list_at)?;
        if read < list.len() || crc32c::crc32c(&list) != summary.list_crc {
            let what = format!("the list of a lane in segment {:016x} is damaged", self.id);
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
        Ok(list.split_off(from.min(list.len())))
    }

    /// Scans the frames and keeps the lists in memory, since those in the file are damaged.
    ///
    /// # Errors
    /// Whatever the disk answers.
    pub fn rebuild(&self, disk: &dyn Disk, store_id: u64, seq_end: u64) -> io::Result<()> {
        let file = disk.open(&segment_path(self.id))?;
        let scanned = scan(
            &*file,
            salt(store_id, self.id),
            self.data_end.load(Ordering::Acquire),
            (Some(self.base_seq), seq_end),
            &mut |_| {},
        )?;
        *self.lists() = Lists::Built(scanned.lists);
        Ok(())
    }

    /// Bytes that lists, summaries and footer will take, at the most.
    #[must_use]
    pub fn seal_bytes(&self) -> u64 {
        match &*self.lists() {
            Lists::Built(lists) => {
                let lists = lists.values();
                lists.map(|list| list_bytes(list.list().len())).sum::<u64>() + SEAL_BYTES_MIN
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

/// Bytes of a list with its summary.
fn list_bytes(list: usize) -> u64 {
    (list + SUMMARY_BYTES) as u64
}

/// What a scan of a segment found.
#[derive(Debug, Default)]
pub struct Scanned {
    /// The lists of its lanes.
    pub lists: HashMap<u32, ListBuilder>,
    /// The first and the last seq; 0: none.
    pub seqs: (u64, u64),
    /// Frames of any kind.
    pub frames: u64,
    /// Behind the last frame.
    pub data_end: u64,
    /// Everything up to here was durable when the last frame was written.
    pub durable_seq: u64,
    /// Gaps in the seqs, both ends included.
    pub gaps: Vec<(u64, u64)>,
    /// Stretches of bytes that are no frames, before others that are.
    pub damage: Vec<(u64, u64)>,
    /// Messages whose bodies are damaged, by seq with a lane each.
    pub bodies: Vec<(u64, Vec<u32>)>,
}

/// A frame that a scan passes on.
#[derive(Debug)]
pub struct Visited<'a> {
    /// What it is.
    pub kind: Kind,
    /// Its payload.
    pub payload: &'a [u8],
}

/// Scans the frames of a segment up to `end`. `visit` gets every sound one. Without `base_seq`
/// nobody knows where it should begin.
///
/// # Errors
/// Whatever the disk answers.
pub fn scan(
    file: &dyn DiskFile,
    salt: u32,
    end: u64,
    (base_seq, seq_end): (Option<u64>, u64),
    visit: &mut dyn FnMut(&Visited<'_>),
) -> io::Result<Scanned> {
    let mut scanned = Scanned::default();
    // In front is the checkpoint, with the seq before the first.
    let first_seq = base_seq.map_or(0, |base_seq| base_seq.saturating_sub(1));
    let range = (PAGE_BYTES as u64, end);
    let mut scanner = Scanner::new(file, salt, range, (first_seq, seq_end));
    while let Some(found) = scanner.next()? {
        match found {
            Found::Damage { from, to } => scanned.damage.push((from, to)),
            Found::Frame {
                offset,
                header,
                bytes,
                is_sound,
            } => {
                if header.kind == Kind::Data && base_seq.is_some_and(|base| header.seq < base) {
                    // It is in the segment before, too.
                    continue;
                }
                if header.seq > scanned.seqs.1 + 1 && scanned.frames > 0 {
                    scanned.gaps.push((scanned.seqs.1 + 1, header.seq - 1));
                }
                if scanned.frames == 0 {
                    if let Some(base_seq) = base_seq.filter(|base_seq| header.seq > *base_seq) {
                        scanned.gaps.push((base_seq, header.seq - 1));
                    }
                    scanned.seqs.0 = header.seq;
                }
                scanned.seqs.1 = header.seq;
                scanned.frames += 1;
                scanned.durable_seq = scanned.durable_seq.max(header.durable_seq);
                if header.kind == Kind::Data {
                    let entry = Entry {
                        seq: header.seq,
                        offset,
                        bytes: message_bytes(&header),
                    };
                    let lanes: Vec<_> = header.lanes(bytes).collect();
                    for lane in &lanes {
                        scanned
                            .lists
                            .entry(lane.lane)
                            .or_insert_with(|| ListBuilder::new(lane.lane))
                            .push(entry, lane.expires_s);
                    }
                    if !is_sound {
                        let lanes = lanes.iter().map(|lane| lane.lane).collect();
                        scanned.bodies.push((header.seq, lanes));
                    }
                }
                if let (true, Ok(body)) = (is_sound, header.body(bytes)) {
                    visit(&Visited {
                        kind: header.kind,
                        payload: body.payload,
                    });
                }
            }
        }
    }
    scanned.data_end = scanner.data_end();
    Ok(scanned)
}
