//! Reads a store whole and checks every checksum.

use std::io;
use std::path::Path;

use super::snapshot::Snapshot;
use super::{endpoint_of, passes, priority_of};
use crate::message::Priority;
use crate::store::control::Control;
use crate::store::disk::{Disk, DiskFile, PAGE_BYTES, read_text};
use crate::store::frame::{Header, Kind};
use crate::store::index::{Position, Summary};
use crate::store::layout::{
    FORMAT, Footer, HeaderPage, SegmentHeader, read_format, salt, segment_path,
};
use crate::store::recover::{Recovered, recover};
use crate::store::scan::{Found, Scanner};
use crate::store::state;

/// A damaged place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// The file, below the store's folder.
    pub file: String,
    /// Where in it, in bytes.
    pub offset: Option<u64>,
    /// The first and the last seq that it costs.
    pub seqs: Option<(u64, u64)>,
    /// The endpoints and priorities that they went to, where they are known.
    pub lanes: Vec<(String, Priority)>,
    /// What is wrong.
    pub what: String,
}

/// What a store was found to be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Segments that were read.
    pub segments: u64,
    /// Sound frames in them.
    pub frames: u64,
    /// Bytes of the segments' files.
    pub bytes: u64,
    /// Values in the small state.
    pub values: u64,
    /// Every damaged place.
    pub damaged: Vec<Damage>,
    /// What was noticed and is no damage.
    pub remarks: Vec<String>,
}

/// Reads the store in `root` whole.
///
/// # Errors
/// There is none (`NotFound`), it cannot be read, or a newer version wrote it. Damage is no error.
pub fn verify(root: &Path) -> io::Result<Verdict> {
    let mut before: Option<Vec<Damage>> = None;
    passes(root, |disk| {
        let mut verdict = Pass::new(disk)?.all()?;
        let first = before.replace(verdict.damaged.clone());
        if verdict.damaged.is_empty() {
            return Ok(Some(verdict));
        }
        Ok(first.map(|first| {
            verdict.damaged.retain(|damage| first.contains(damage));
            verdict
        }))
    })
}

/// A segment as its first page and its last one say.
struct Book {
    id: u64,
    path: String,
    header: Option<SegmentHeader>,
    footer: Option<Footer>,
    summaries: Vec<Summary>,
    is_newest: bool,
}

/// A frame that is damaged or missing.
struct Lost {
    offset: u64,
    seqs: (u64, u64),
    lanes: Vec<u32>,
    what: &'static str,
}

struct Pass<'a> {
    disk: &'a Snapshot,
    recovered: Recovered,
    verdict: Verdict,
}

impl<'a> Pass<'a> {
    fn new(disk: &'a Snapshot) -> io::Result<Self> {
        Ok(Self {
            recovered: recover(disk, false)?,
            disk,
            verdict: Verdict::default(),
        })
    }

    fn all(mut self) -> io::Result<Verdict> {
        self.format()?;
        let ids: Vec<u64> = self.recovered.catalog.keys().copied().collect();
        let mut books = Vec::with_capacity(ids.len());
        for (at, id) in ids.iter().enumerate() {
            books.push(self.book(*id, at + 1 == ids.len())?);
        }
        for (at, book) in books.iter().enumerate() {
            let next = books.iter().skip(at + 1).find_map(|next| next.header);
            self.segment(book, next)?;
        }
        self.chain();
        let id = self.recovered.store_id.unwrap_or_default();
        let state = state::read::load(self.disk, id)?;
        self.verdict.values = state.values.len() as u64;
        for what in state.damage {
            let file = state::format::DIR.to_owned();
            self.note(file, None, None, &[], what);
        }
        let foreign = self.recovered.remarks.iter();
        let foreign = foreign.filter(|remark| remark.ends_with("belongs to another store"));
        self.verdict.remarks.extend(foreign.cloned());
        Ok(self.verdict)
    }

    fn note(
        &mut self,
        file: String,
        offset: Option<u64>,
        seqs: Option<(u64, u64)>,
        lanes: &[u32],
        what: impl Into<String>,
    ) {
        let name = |lane: &u32| (endpoint_of(&self.recovered, *lane), priority_of(*lane));
        let lanes = lanes.iter().map(name).collect();
        self.verdict.damaged.push(Damage {
            file,
            offset,
            seqs,
            lanes,
            what: what.into(),
        });
    }

    fn format(&mut self) -> io::Result<()> {
        let what = match self.disk.open(FORMAT) {
            Ok(file) => match read_format(&read_text(&*file)?) {
                Some((_, id)) if Some(id) == self.recovered.store_id => return Ok(()),
                Some(_) => "it is of another store",
                None => "it does not read",
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => "it is missing",
            Err(error) => return Err(error),
        };
        self.note(FORMAT.to_owned(), None, None, &[], what);
        Ok(())
    }

    /// Reads and checks what stands around a segment's frames.
    fn book(&mut self, id: u64, is_newest: bool) -> io::Result<Book> {
        let path = segment_path(id);
        let file = self.disk.open(&path)?;
        let size = file.size()?;
        self.verdict.segments += 1;
        self.verdict.bytes += size;
        let mut book = Book {
            id,
            header: None,
            footer: None,
            summaries: Vec::new(),
            is_newest,
            path: path.clone(),
        };
        match SegmentHeader::read(&page_at(&*file, 0)) {
            HeaderPage::Good(header) if header.id == id => book.header = Some(header),
            _ => self.note(path.clone(), Some(0), None, &[], "the segment's header"),
        }
        let footer_at = size.saturating_sub(PAGE_BYTES as u64);
        let page = page_at(&*file, footer_at);
        book.footer = Footer::read(&page, id);
        let Some(footer) = book.footer else {
            // Pages of an earlier use of the file are sound; their footer names another segment.
            if page.starts_with(b"EHUBEND") && Footer::read_any(&page).is_none() {
                if is_newest {
                    let remark = format!("{path} at byte {footer_at}: a torn end; made anew");
                    self.verdict.remarks.push(remark);
                } else {
                    self.note(path, Some(footer_at), None, &[], "the segment's footer");
                }
            }
            return Ok(book);
        };
        let fits = footer.summaries_bytes() as u64 <= size;
        let bytes = if fits {
            bytes_at(&*file, footer.summaries_at, footer.summaries_bytes())
        } else {
            Vec::new()
        };
        match footer.summaries(&bytes) {
            Some(summaries) => book.summaries = summaries,
            None => self.note(
                path.clone(),
                Some(footer.summaries_at),
                None,
                &[],
                "the segment's table of lists",
            ),
        }
        for part in &book.summaries {
            let list = bytes_at(&*file, part.list_at, part.list_bytes as usize);
            if list.len() < part.list_bytes as usize || crc32c::crc32c(&list) != part.list_crc {
                let what = "the list of an endpoint's messages; it is made anew from the frames";
                self.note(path.clone(), Some(part.list_at), None, &[part.lane], what);
            }
        }
        Ok(book)
    }

    /// Reads all frames of a segment. `next`: the header of the one after it.
    fn segment(&mut self, book: &Book, next: Option<SegmentHeader>) -> io::Result<()> {
        let file = self.disk.open(&book.path)?;
        let own = book.header.map(|header| header.base_seq);
        let repacked = book.header.is_some_and(|header| header.repacked);
        let follows = next.filter(|next| next.previous_id == book.id);
        let (end, seq_end) = match (&book.footer, follows, next) {
            (Some(footer), ..) => (footer.data_end, footer.last_seq + 1),
            (None, Some(next), _) => (file.size()?, next.previous_last_seq + 1),
            (None, None, next) => {
                let seq_end = next.map_or(u64::MAX, |next| next.base_seq);
                (file.size()?, seq_end)
            }
        };
        let mut walk = Walk {
            lost: Vec::new(),
            next_seq: own.unwrap_or(0),
            frames: 0,
            sound: 0,
            durable_seq: follows.map_or(0, |next| next.previous_last_seq),
            checks_gaps: !repacked,
        };
        let id = self.recovered.store_id.unwrap_or_default();
        let from = own.map_or(0, |seq| seq.saturating_sub(1));
        let range = (PAGE_BYTES as u64, end);
        let mut scanner = Scanner::new(&*file, salt(id, book.id), range, (from, seq_end));
        let mut hole = None;
        while let Some(found) = scanner.next()? {
            match found {
                Found::Damage { from } => hole = Some(from),
                Found::Frame {
                    offset,
                    header,
                    bytes,
                    is_sound,
                } => walk.frame(hole.take(), (offset, &header, bytes), is_sound),
            }
        }
        let data_end = scanner.data_end();
        if let Some(footer) = &book.footer {
            walk.durable_seq = u64::MAX;
            if walk.frames < footer.frames && walk.next_seq <= footer.last_seq {
                let seqs = (walk.next_seq, footer.last_seq);
                walk.lose(data_end, seqs, Vec::new(), GONE);
            }
        }
        self.verdict.frames += walk.sound;
        self.judge(book, &*file, walk);
        Ok(())
    }

    /// What was never acknowledged is a remark, all else is damage.
    fn judge(&mut self, book: &Book, file: &dyn DiskFile, walk: Walk) {
        let missing = walk.lost.iter().filter(|lost| lost.seqs.0 <= lost.seqs.1);
        let torn = missing.map(|lost| lost.seqs.0);
        let torn = torn.filter(|seq| *seq > walk.durable_seq).min();
        for lost in walk.lost {
            if torn.is_some_and(|torn| lost.seqs.0 >= torn) {
                if Some(lost.seqs.0) == torn {
                    let newest = if book.is_newest {
                        "the newest segment"
                    } else {
                        "it"
                    };
                    self.verdict.remarks.push(format!(
                        "{} at byte {}: {newest} ends torn before seq {}: nothing shows that it was acknowledged",
                        book.path, lost.offset, lost.seqs.0
                    ));
                }
                continue;
            }
            let mut lanes = lost.lanes;
            if lanes.is_empty() && lost.what == GONE {
                lanes = listed(book, file, lost.seqs);
            }
            let seqs = Some(lost.seqs).filter(|(first, last)| first <= last);
            self.note(
                book.path.clone(),
                Some(lost.offset),
                seqs,
                &lanes,
                lost.what,
            );
        }
    }

    /// What recovery finds by comparing segments with each other.
    fn chain(&mut self) {
        for damaged in std::mem::take(&mut self.recovered.damaged) {
            let file = segment_path(damaged.segment);
            let covers = |known: &Damage| {
                known.file == file
                    && known
                        .seqs
                        .is_some_and(|seqs| seqs.0 <= damaged.seqs.0 && damaged.seqs.1 <= seqs.1)
            };
            if self.verdict.damaged.iter().any(covers) {
                continue;
            }
            let what = if self.recovered.catalog.contains_key(&damaged.segment) {
                GONE
            } else {
                "the segment is missing, or its beginning does not read"
            };
            self.note(file, None, Some(damaged.seqs), &[], what);
        }
    }
}

const GONE: &str = "frames do not read";

/// A pass over a segment's frames.
struct Walk {
    lost: Vec<Lost>,
    /// The first seq that is not seen yet.
    next_seq: u64,
    frames: u64,
    sound: u64,
    /// Up to here the log was durable, as later frames say.
    durable_seq: u64,
    /// A repacked segment has gaps by nature.
    checks_gaps: bool,
}

impl Walk {
    fn lose(&mut self, offset: u64, seqs: (u64, u64), lanes: Vec<u32>, what: &'static str) {
        self.lost.push(Lost {
            offset,
            seqs,
            lanes,
            what,
        });
    }

    /// A frame, and the bytes before it that are none.
    fn frame(
        &mut self,
        hole: Option<u64>,
        (offset, header, bytes): (u64, &Header, &[u8]),
        is_sound: bool,
    ) {
        let has_start = self.frames > 0 || self.next_seq > 0;
        let gap = has_start && header.seq > self.next_seq && self.checks_gaps;
        if gap || hole.is_some() {
            let seqs = (self.next_seq, header.seq.saturating_sub(1));
            self.lose(hole.unwrap_or(offset), seqs, Vec::new(), GONE);
        }
        self.next_seq = self.next_seq.max(header.seq + 1);
        self.frames += 1;
        self.durable_seq = self.durable_seq.max(header.durable_seq);
        let seqs = (header.seq, header.seq);
        if !is_sound {
            let lanes = header.lanes(bytes).map(|lane| lane.lane).collect();
            let what = match header.kind {
                Kind::Data => "the body of a message",
                Kind::Control | Kind::State => "the body of a note of the log",
            };
            self.lose(offset, seqs, lanes, what);
            return;
        }
        self.sound += 1;
        let payload = header.body(bytes).map(|body| body.payload);
        if header.kind == Kind::Control && payload.is_ok_and(|text| Control::read(text).is_none()) {
            self.lose(offset, seqs, Vec::new(), "a note of the log does not read");
        }
    }
}

/// The lanes that lost frames went to, by the lists of a sealed segment.
fn listed(book: &Book, file: &dyn DiskFile, (first, last): (u64, u64)) -> Vec<u32> {
    let holds = |part: &&Summary| {
        let list = bytes_at(file, part.list_at, part.list_bytes as usize);
        crc32c::crc32c(&list) == part.list_crc
            && Position::default()
                .entries_of(&list)
                .any(|entry| (first..=last).contains(&entry.seq))
    };
    let parts = book.summaries.iter().filter(holds);
    parts.map(|part| part.lane).collect()
}

fn page_at(file: &dyn DiskFile, at: u64) -> Vec<u8> {
    bytes_at(file, at, PAGE_BYTES)
}

/// What can be read there: nothing where the disk refuses, as then nothing is sound.
fn bytes_at(file: &dyn DiskFile, at: u64, length: usize) -> Vec<u8> {
    let size = file.size().unwrap_or(0);
    let length = length.min(usize::try_from(size).unwrap_or(usize::MAX));
    let mut bytes = vec![0; length];
    let read = file.read_at(&mut bytes, at).unwrap_or(0);
    bytes.truncate(read);
    bytes
}
