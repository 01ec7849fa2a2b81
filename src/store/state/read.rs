//! Reads state files: whatever is good in them, and a sentence for each thing that was lost.
//!
//! What stands behind the last good frame was never acknowledged and is dropped silently. Of a
//! frame that was acknowledged and does not read, the key is mostly known: its own header has the
//! key's hash, and so has the next frame's. The key is then dropped: an older value would be
//! wrong, for its owner was told that the newer one is kept.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::sync::Arc;

use bytes::Bytes;

use super::format::{self, Chain, Entry};
use crate::store::disk::{Disk, DiskFile, PAGE_BYTES};
use crate::store::frame::{ALIGN, HEADER_BYTES, Header, Kind, SYNC_WORD, read_u16, read_u32};
use crate::store::layout::END;
use crate::store::recover::newer;

/// Bytes that one read asks for.
const READ_BYTES: usize = 64 * PAGE_BYTES;
/// Generations that are read at most; more than two need crash upon crash.
const GENERATIONS_MAX: usize = 8;

/// The keys and their values.
pub type Values = BTreeMap<String, Bytes>;

/// What the state files hold.
#[derive(Debug, Default)]
pub struct Loaded {
    /// The keys and their values.
    pub values: Values,
    /// A sentence for each thing that was lost.
    pub damage: Vec<String>,
    /// The highest generation that has a file; 0 for none.
    pub highest: u64,
    /// Generations with damage.
    pub damaged: BTreeSet<u64>,
    /// Where the newest file can be continued.
    pub(super) tail: Option<Tail>,
}

/// Where a file without any damage goes on.
#[derive(Debug)]
pub(super) struct Tail {
    pub(super) file: Arc<dyn DiskFile>,
    /// Behind the last good frame.
    pub(super) end: u64,
    pub(super) chain: Chain,
    /// Keys of the last batch. Nothing proves that it was synced: it must be written once more.
    pub(super) unproven: BTreeSet<String>,
}

/// Reads the newest state and changes nothing.
///
/// # Errors
/// The folder or a file cannot be opened, or a newer version wrote it. Damaged and unreadable
/// content is no error.
pub fn load(disk: &dyn Disk, store_id: u64) -> io::Result<Loaded> {
    let names = disk.list(format::DIR)?;
    let mut generations: Vec<_> = names
        .iter()
        .filter_map(|name| format::generation_of(name))
        .collect();
    generations.sort_unstable_by(|a, b| b.cmp(a));
    generations.truncate(GENERATIONS_MAX);
    if generations.is_empty() && disk.open(END).is_ok() {
        let damage = format!("{}/ is empty: what was kept in it is lost", format::DIR);
        return Ok(Loaded {
            damage: vec![damage],
            ..Loaded::default()
        });
    }
    load_newest(disk, store_id, &generations)
}

/// `generations`: the newest first. Older ones are read only if the newest is not complete.
fn load_newest(disk: &dyn Disk, store_id: u64, generations: &[u64]) -> io::Result<Loaded> {
    let Some((&generation, older)) = generations.split_first() else {
        return Ok(Loaded::default());
    };
    let path = format::path_of(generation);
    let file = disk.open(&path)?;
    let (bytes, mut damage) = read_all(&*file, &path)?;
    if let Some(version) = format::newer_version(&bytes) {
        return Err(newer(&path, version));
    }
    let page = format::read_page(&bytes, store_id, generation);
    let salt = format::salt_of(store_id, generation);
    let frames = frames(&bytes, salt);
    let complete = is_complete(&frames, page.ok());
    if let Err(problem) = page {
        damage.push(format!("{path}: {problem}"));
    }
    let mut loaded = if complete {
        Loaded::default()
    } else {
        let keys = frames.len();
        damage.push(format!(
            "{path}: the snapshot has an end no longer; {keys} frames of it read"
        ));
        load_newest(disk, store_id, older)?
    };
    let mut walk = Walk::new(
        &bytes,
        &frames,
        std::mem::take(&mut loaded.values),
        page.ok(),
    );
    walk.all(&frames);
    damage.extend(walk.sentences(&path, &frames));
    // What is damaged could look otherwise with more behind it.
    let clean = damage.is_empty() && !walk.torn;
    loaded.tail = clean.then(|| tail(file, salt, &frames, walk.acked));
    if !damage.is_empty() {
        loaded.damaged.insert(generation);
    }
    loaded.damage.extend(damage);
    loaded.values = walk.values;
    loaded.highest = generation;
    Ok(loaded)
}

fn tail(file: Arc<dyn DiskFile>, salt: u32, frames: &[Frame<'_>], acked: u64) -> Tail {
    let last = frames.iter().rfind(|frame| frame.entry.is_some());
    let unproven = frames.iter().filter(|frame| frame.seq > acked);
    let unproven = unproven.filter_map(|frame| match frame.entry? {
        Entry::Set(key, _) | Entry::Remove(key) => Some(key.to_owned()),
        Entry::Mark => None,
    });
    Tail {
        file,
        end: last.map_or(PAGE_BYTES, |last| last.end) as u64,
        chain: Chain {
            salt,
            seq: last.map_or(0, |last| last.seq),
            hash: last.map_or(format::NO_KEY, |last| last.own),
            acked,
        },
        unproven: unproven.collect(),
    }
}

/// The whole file. Pages that the disk does not give are zeros and a sentence.
fn read_all(file: &dyn DiskFile, path: &str) -> io::Result<(Vec<u8>, Vec<String>)> {
    let size = usize::try_from(file.size()?).map_err(io::Error::other)?;
    let mut bytes = vec![0; size];
    let mut damage = Vec::new();
    for (at, chunk) in (0..).step_by(READ_BYTES).zip(bytes.chunks_mut(READ_BYTES)) {
        if file.read_at(chunk, at).is_ok() {
            continue;
        }
        for (at, page) in (at..).step_by(PAGE_BYTES).zip(chunk.chunks_mut(PAGE_BYTES)) {
            if let Err(error) = file.read_at(page, at) {
                page.fill(0);
                damage.push(format!(
                    "{path} at byte {at}: a page cannot be read: {error}"
                ));
            }
        }
    }
    Ok((bytes, damage))
}

/// A frame with a good header.
#[derive(Debug)]
struct Frame<'a> {
    at: usize,
    end: usize,
    seq: u64,
    acked: u64,
    /// The hash of its key.
    own: u64,
    /// The hash of the key of the frame before it.
    before: u64,
    /// `None`: the body is damaged.
    entry: Option<Entry<'a>>,
}

/// All frames with a good header, their numbers rising.
fn frames(bytes: &[u8], salt: u32) -> Vec<Frame<'_>> {
    let mut found: Vec<Frame<'_>> = Vec::new();
    let mut last_good = 0;
    let mut at = PAGE_BYTES;
    while at + HEADER_BYTES <= bytes.len() {
        let frame = frame_at(bytes, at, salt).filter(|frame| frame.seq > last_good);
        let Some(frame) = frame else {
            // Padding is passed in these steps, too.
            at += ALIGN;
            continue;
        };
        // A number that comes again: what a failed write left, before it was tried again.
        while found.last().is_some_and(|last| last.seq >= frame.seq) {
            found.pop();
        }
        if frame.entry.is_some() {
            last_good = frame.seq;
            at = frame.end;
        } else {
            // The length is good, but a torn batch may have been overwritten further on.
            at += ALIGN;
        }
        found.push(frame);
    }
    found
}

fn frame_at(bytes: &[u8], at: usize, salt: u32) -> Option<Frame<'_>> {
    let rest = bytes.get(at..)?;
    if read_u32(rest, 0) != Some(SYNC_WORD) || read_u16(rest, 34) != Some(format::LANES) {
        return None;
    }
    let header = Header::read(rest, salt).ok()?;
    let (own, before) = format::hashes(&header, rest)?;
    let body = header.body(rest).ok();
    (header.kind == Kind::State).then(|| Frame {
        at,
        end: at + header.frame_bytes(),
        seq: header.seq,
        acked: header.durable_seq,
        own,
        before,
        entry: body.and_then(|body| Entry::read(&body)),
    })
}

/// Whether the whole snapshot was once here: a mark is, or was, or more than its keys are.
fn is_complete(frames: &[Frame<'_>], keys: Option<u64>) -> bool {
    let marked = |frame: &Frame<'_>| frame.own == format::MARK || frame.before == format::MARK;
    let last = frames.last().map_or(0, |frame| frame.seq);
    frames.iter().any(marked) || keys.is_some_and(|keys| last >= keys)
}

/// Frames that were acknowledged and do not read.
struct Lost {
    at: usize,
    last: u64,
    count: u64,
    /// Of the last one.
    hash: Option<u64>,
    key: Option<String>,
}

/// Goes through the frames in order.
struct Walk<'a> {
    bytes: &'a [u8],
    values: Values,
    /// Up to this number, frames are proven to have been acknowledged.
    acked: u64,
    complete: bool,
    /// The number of the snapshot's mark, where the header page says it.
    mark: Option<u64>,
    lost: Vec<Lost>,
    /// Whether the last batch has gaps: it was never acknowledged.
    torn: bool,
    /// Keys by their hash; made when it is needed.
    names: HashMap<u64, String>,
}

impl<'a> Walk<'a> {
    fn new(bytes: &'a [u8], frames: &[Frame<'_>], values: Values, keys: Option<u64>) -> Self {
        let acked = frames.iter().map(|frame| frame.acked).max();
        let mark = keys.map(|keys| keys.saturating_add(1));
        Self {
            bytes,
            values,
            // A snapshot is whole, mark included, before the file gets its name.
            acked: acked.max(mark).unwrap_or_default(),
            complete: is_complete(frames, keys),
            mark,
            lost: Vec::new(),
            torn: false,
            names: HashMap::new(),
        }
    }

    fn all(&mut self, frames: &[Frame<'_>]) {
        let mut next = 1;
        let mut end = PAGE_BYTES;
        for frame in frames {
            if frame.seq > next {
                let before = frame.seq - 1;
                self.lose(frames, self.place(end), (next, before), Some(frame.before));
            }
            match frame.entry {
                Some(Entry::Set(key, value)) => {
                    let value = Bytes::copy_from_slice(value);
                    self.values.insert(key.to_owned(), value);
                }
                Some(Entry::Remove(key)) => {
                    self.values.remove(key);
                }
                Some(Entry::Mark) => {}
                None => self.lose(frames, frame.at, (frame.seq, frame.seq), Some(frame.own)),
            }
            next = frame.seq + 1;
            end = frame.end;
        }
        if next <= self.acked {
            let hash = (self.mark == Some(self.acked)).then_some(format::MARK);
            self.lose(frames, self.place(end), (next, self.acked), hash);
        }
    }

    /// Where the frame behind `end` should be: right there, or on the next page.
    fn place(&self, end: usize) -> usize {
        let padded = matches!(read_u32(self.bytes, end), Some(0) | None);
        let at = if padded {
            end.next_multiple_of(PAGE_BYTES)
        } else {
            end
        };
        at.min(self.bytes.len())
    }

    /// Frames `first..=last` do not read; `hash` is that of the last one's key.
    fn lose(
        &mut self,
        frames: &[Frame<'_>],
        at: usize,
        (first, last): (u64, u64),
        hash: Option<u64>,
    ) {
        let known = last <= self.acked;
        self.torn |= !known;
        if first > self.acked {
            return;
        }
        let hash = hash.filter(|_| known);
        let key = hash.and_then(|hash| self.key_of(frames, at, hash));
        // Where the snapshot is not whole, the older generation has mostly the same.
        if self.complete
            && let Some(key) = &key
        {
            self.values.remove(key);
        }
        self.lost.push(Lost {
            at,
            last,
            count: last.min(self.acked) - first + 1,
            hash,
            key,
        });
    }

    fn key_of(&mut self, frames: &[Frame<'_>], at: usize, hash: u64) -> Option<String> {
        if self.names.is_empty() {
            for key in self.values.keys() {
                self.names
                    .insert(format::key_hash(key.as_bytes()), key.clone());
            }
            for frame in frames {
                if let Some(Entry::Set(key, _) | Entry::Remove(key)) = frame.entry {
                    self.names.insert(frame.own, key.to_owned());
                }
            }
        }
        if let Some(key) = self.names.get(&hash) {
            return Some(key.clone());
        }
        let topic = self.bytes.get(at + format::FRONT_BYTES..)?;
        format::key_with(hash, topic).map(str::to_owned)
    }

    /// A sentence for each loss.
    fn sentences(&self, path: &str, frames: &[Frame<'_>]) -> Vec<String> {
        let mut newest = HashMap::new();
        if !self.lost.is_empty() {
            let good = frames.iter().filter(|frame| frame.entry.is_some());
            newest.extend(good.map(|frame| (frame.own, frame.seq)));
        }
        let sentence = |lost: &Lost| {
            let newer = lost.hash.and_then(|hash| newest.get(&hash));
            let last = match (&lost.key, lost.hash) {
                (_, Some(format::MARK)) => "a mark is lost, nothing else".to_owned(),
                (Some(key), _) if newer.is_some_and(|newer| *newer > lost.last) => {
                    format!("an older value of {key:?} is lost, the newest is good")
                }
                (Some(key), _) if self.values.contains_key(key) => {
                    format!("the newest value of {key:?} is lost, an older one is taken")
                }
                (Some(key), _) => format!("the newest value of {key:?} is lost, so is the key"),
                (None, _) => "the value of a key is lost that nothing names".to_owned(),
            };
            let more = match lost.count {
                ..=1 => String::new(),
                count => format!("{} values of unknown keys are lost; ", count - 1),
            };
            format!("{path} at byte {}: {more}{last}", lost.at)
        };
        self.lost.iter().map(sentence).collect()
    }
}
