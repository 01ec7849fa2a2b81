//! Start: what is on the disk becomes what is in memory.
//!
//! It never fails because of what the files hold. What is damaged is skipped and reported; what
//! was torn when the power went was never acknowledged, and is dropped. The frame after a gap
//! tells the two apart: it says up to where the log was durable when it was written.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::sync::Arc;

use super::disk::{Disk, DiskFile, PAGE_BYTES, read_text, replace};
use super::index::Summary;
use super::layout::{
    END, FORMAT, FORMAT_VERSION, FREE, Footer, HeaderPage, QUARANTINE, SEGMENTS, SegmentHeader,
    format_text, read_end, read_format, read_spare, salt, segment_id, segment_path,
};
use super::notes::{Notes, chain, notes};
use super::segment::{Catalog, Scanned, Segment, scan};

/// Messages that were acknowledged and cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damaged {
    /// The first and the last seq.
    pub seqs: (u64, u64),
    /// The segment, or the one before the gap.
    pub segment: u64,
}

impl Damaged {
    pub(super) fn new(seqs: (u64, u64), segment: u64) -> Self {
        Self { seqs, segment }
    }

    /// How many messages that may be.
    pub(super) fn messages_max(&self) -> u64 {
        self.seqs.1.saturating_sub(self.seqs.0).saturating_add(1)
    }

    /// What is said of it.
    #[must_use]
    pub fn sentence(&self) -> String {
        let ((first, last), segment) = (self.seqs, self.segment);
        format!("seq {first} to {last} cannot be read (segment {segment:016x})")
    }
}

/// A segment that takes frames again.
#[derive(Debug)]
pub struct Continued {
    /// The segment.
    pub segment: Arc<Segment>,
    /// Its file.
    pub file: Arc<dyn DiskFile>,
    /// Frames in it.
    pub frames: u64,
}

/// What was found.
#[derive(Debug, Default)]
pub struct Recovered {
    /// The store's id; `None`: an empty folder.
    pub store_id: Option<u64>,
    /// All segments with frames.
    pub catalog: Catalog,
    /// The one to go on with, after a clean end.
    pub active: Option<Continued>,
    /// Segments in `seg/` that were never used, with their sizes.
    pub spares: Vec<(u64, u64)>,
    /// Segments in `seg/` that nobody needs any more, with their sizes.
    pub obsolete: Vec<(u64, u64)>,
    /// Segments in `free/`, with their sizes.
    pub free: Vec<(u64, u64)>,
    /// Cursors and names.
    pub notes: Notes,
    /// The first seq that was never used.
    pub next_seq: u64,
    /// The first segment id that was never used.
    pub next_segment: u64,
    /// The newest segment and its last seq.
    pub last: (u64, u64),
    /// Segments that were given up: their files say so.
    pub(super) retired: BTreeSet<u64>,
    /// The last seq of every segment.
    pub(super) last_seqs: HashMap<u64, u64>,
    /// Acknowledged messages that are gone.
    pub damaged: Vec<Damaged>,
    /// What else was noticed.
    pub remarks: Vec<String>,
    /// `FORMAT` has to be written.
    pub needs_format: bool,
}

impl Recovered {
    /// Whether the last end was a clean one, or there was none before.
    #[must_use]
    pub fn was_closed(&self) -> bool {
        self.active.is_some() || self.catalog.is_empty()
    }

    fn remark_unsealed(&mut self, segment: u64, sealed: io::Result<()>) {
        if let Err(error) = sealed {
            let what = format!("segment {segment:016x} could not be sealed: {error}");
            self.remarks.push(what);
        }
    }
}

pub(super) struct Known {
    pub id: u64,
    pub header: Option<SegmentHeader>,
    /// It is marked as a spare.
    pub is_marked: bool,
    /// What its last page tells; `None`: it was not sealed.
    pub footer: Option<Footer>,
    pub file: Arc<dyn DiskFile>,
    pub size: u64,
}

/// Looks at everything. With `repair`, unsealed segments are sealed; otherwise nothing is written.
///
/// # Errors
/// Whatever the disk answers, or that a newer version wrote the store.
pub fn recover(disk: &dyn Disk, repair: bool) -> io::Result<Recovered> {
    let mut recovered = Recovered {
        next_segment: 1,
        next_seq: 1,
        ..Recovered::default()
    };
    recovered.store_id = format(disk, &mut recovered)?;
    recovered.needs_format = recovered.store_id.is_none();
    let mut known = headers(disk, &mut recovered)?;
    let Some(store_id) = recovered.store_id else {
        let spares = known.iter().filter(|one| one.is_marked);
        recovered.spares = spares.map(|one| (one.id, one.size)).collect();
        return Ok(recovered);
    };
    split_spares(store_id, &mut known, &mut recovered)?;
    drop_repacked(&mut known, &mut recovered);
    let mut newest = None;
    for (at, one) in known.iter().enumerate() {
        let from_here = known.get(at..).unwrap_or_default();
        newest = segment(one, store_id, from_here, repair, &mut recovered)?;
    }
    let frames = newest.as_ref().map(|scanned| scanned.frames);
    notes(&known, store_id, newest, &mut recovered)?;
    chain(&known, &mut recovered);
    missed_end(disk, &mut recovered);
    for cursor in recovered.notes.cursors.values() {
        let highest = cursor.acked.iter().copied().max().unwrap_or(0);
        recovered.next_seq = recovered.next_seq.max(cursor.floor.max(highest) + 1);
    }
    recovered.next_seq = recovered.next_seq.max(recovered.last.1 + 1).max(1);
    if let (Some(last), Some(frames)) = (known.last(), frames) {
        finish(last, frames, repair, &mut recovered);
    }
    Ok(recovered)
}

/// The first seq that does not belong to the first of these segments: what was torn at its end,
/// and what could not be written there, went on in the next one.
pub(super) fn seq_end(known: &[Known]) -> Option<u64> {
    let one = known.first()?;
    let next = known.iter().skip(1).find_map(|next| next.header)?;
    let end = if next.previous_id == one.id {
        next.previous_last_seq + 1
    } else {
        next.base_seq
    };
    Some(end)
}

/// What the segment after the first of these knows to be kept in it.
fn kept_seq(known: &[Known]) -> u64 {
    let next = known.get(1).and_then(|next| next.header);
    let own = known.first().map(|one| one.id);
    next.filter(|next| Some(next.previous_id) == own)
        .map_or(0, |next| next.previous_last_seq)
}

/// Reads `FORMAT`; one with a wrong checksum counts as none.
fn format(disk: &dyn Disk, recovered: &mut Recovered) -> io::Result<Option<u64>> {
    let Ok(file) = disk.open(FORMAT) else {
        return Ok(None);
    };
    match read_format(&read_text(&*file)?) {
        Some((FORMAT_VERSION, id)) => Ok(Some(id)),
        Some((version, _)) => Err(newer(FORMAT, version.into())),
        None => {
            recovered
                .remarks
                .push("FORMAT is damaged; it is written anew".to_owned());
            Ok(None)
        }
    }
}

/// The refusal of a store of which this file has a newer format.
pub(super) fn newer(path: &str, version: u32) -> io::Error {
    let what = format!(
        "{path}: the store was written by a newer version (format {version}); \
         run that version, or move the store away"
    );
    io::Error::new(io::ErrorKind::Unsupported, what)
}

fn headers(disk: &dyn Disk, recovered: &mut Recovered) -> io::Result<Vec<Known>> {
    for name in disk.list(FREE)? {
        if let Some(id) = segment_id(&name) {
            let size = disk.open(&format!("{FREE}/{name}"))?.size()?;
            recovered.free.push((id, size));
            recovered.retired.insert(id);
            recovered.next_segment = recovered.next_segment.max(id + 1);
        }
    }
    let mut ids: Vec<_> = disk
        .list(SEGMENTS)?
        .iter()
        .filter_map(|name| segment_id(name))
        .collect();
    ids.sort_unstable();
    let mut known = Vec::new();
    for id in ids {
        recovered.next_segment = recovered.next_segment.max(id + 1);
        let file = disk.open(&segment_path(id))?;
        let size = file.size()?;
        let mut page = vec![0; PAGE_BYTES];
        let header = match file.read_at(&mut page, 0) {
            Ok(PAGE_BYTES) => SegmentHeader::read(&page),
            _ => HeaderPage::None,
        };
        let header = match header {
            HeaderPage::Newer(version) => return Err(newer(&segment_path(id), version.into())),
            HeaderPage::Good(header) if header.id == id => Some(header),
            HeaderPage::Good(_) | HeaderPage::None => None,
        };
        let marker = read_spare(&page);
        let is_marked = marker.is_some();
        let mut page = vec![0; PAGE_BYTES];
        let end = size.saturating_sub(PAGE_BYTES as u64);
        let was_read = file.read_at(&mut page, end).is_ok();
        let marker_at_end = read_spare(&page).filter(|_| was_read);
        recovered.retired.extend(marker.or(marker_at_end));
        known.push(Known {
            id,
            header,
            is_marked,
            footer: Footer::read(&page, id).filter(|_| was_read),
            file,
            size,
        });
    }
    if recovered.store_id.is_none() {
        recovered.store_id = id_of_most(&known);
    }
    let own = recovered.store_id;
    known.retain(|one| {
        let foreign = one
            .header
            .is_some_and(|header| Some(header.store_id) != own);
        if foreign {
            let what = format!("segment {:016x} belongs to another store", one.id);
            recovered.remarks.push(what);
        }
        !foreign
    });
    Ok(known)
}

/// The store's id where `FORMAT` does not tell it: the one that most headers have, of several the
/// oldest one's. A segment may have strayed in from another store.
fn id_of_most(known: &[Known]) -> Option<u64> {
    let ids = || known.iter().filter_map(|one| Some(one.header?.store_id));
    let count = |id: &u64| ids().filter(|other| other == id).count();
    // Of equal ones `max_by_key` takes the last.
    let ids: Vec<u64> = ids().collect();
    ids.into_iter().rev().max_by_key(count)
}

/// Takes the spares out. One that has an older id than a segment in use should have been used:
/// it is looked at as a segment whose header is lost.
fn split_spares(
    store_id: u64,
    known: &mut Vec<Known>,
    recovered: &mut Recovered,
) -> io::Result<()> {
    let with_header = known.iter().filter(|one| one.header.is_some());
    let newest_good = with_header.map(|one| one.id).max().unwrap_or(0);
    for one in std::mem::take(known) {
        if one.header.is_some() {
            known.push(one);
            continue;
        }
        let salt = salt(store_id, one.id);
        let is_used = (!one.is_marked || one.id < newest_good)
            && scan(&*one.file, salt, one.size, (None, u64::MAX))?.frames > 0;
        if is_used {
            let what = format!("the header of segment {:016x} is damaged", one.id);
            recovered.remarks.push(what);
            known.push(one);
        } else {
            recovered.spares.push((one.id, one.size));
        }
    }
    Ok(())
}

/// Takes out the segments whose messages are in a repacked one already: the end came before their
/// files were removed.
fn drop_repacked(known: &mut Vec<Known>, recovered: &mut Recovered) {
    let repacked: Vec<_> = known
        .iter()
        .filter_map(|one| one.header)
        .filter(|header| header.repacked)
        .collect();
    known.retain(|one| {
        let Some(own) = one.header else {
            return true;
        };
        let covered = repacked
            .iter()
            .any(|header| own.id < header.id && own.base_seq >= header.base_seq);
        if covered {
            recovered.obsolete.push((one.id, one.size));
            recovered.retired.insert(one.id);
        }
        !covered
    });
}

/// Takes one segment in: by its footer, or by a scan, which is handed back. `from_here` are this
/// segment and those behind it.
fn segment(
    one: &Known,
    store_id: u64,
    from_here: &[Known],
    repair: bool,
    recovered: &mut Recovered,
) -> io::Result<Option<Scanned>> {
    let seq_end = seq_end(from_here);
    let base_seq = one.header.map_or(0, |header| header.base_seq);
    let begun = (base_seq, one.header.map_or(0, |header| header.time_ms));
    let own_base = match one.header {
        Some(header) => Some(header.base_seq),
        // Its header is lost; it goes on where the one before ends.
        None => (recovered.last.0 > 0).then_some(recovered.last.1 + 1),
    };
    let seqs = (own_base, seq_end.unwrap_or(u64::MAX));
    let sealed = one.footer.as_ref();
    if let Some((footer, summaries)) =
        sealed.and_then(|sealed| Some((sealed, summaries(one, sealed)?)))
    {
        let (size, end) = (one.size, footer.data_end);
        let segment = Segment::sealed(one.id, begun, (size, end), summaries);
        recovered.catalog.insert(one.id, Arc::new(segment));
        recovered.last = (one.id, footer.last_seq.max(base_seq.saturating_sub(1)));
        recovered.last_seqs.insert(one.id, recovered.last.1);
        return Ok(None);
    }
    let salt = salt(store_id, one.id);
    let mut scanned = scan(&*one.file, salt, one.size, seqs)?;
    scanned.durable_seq = scanned.durable_seq.max(kept_seq(from_here));
    let cut = torn_at(&scanned);
    if let Some(cut) = cut {
        recovered.next_seq = recovered.next_seq.max(scanned.last_seq + 1);
        scanned = scan(&*one.file, salt, one.size, (own_base, cut))?;
    }
    // Even where nothing in it can be read, it does not end before it begins.
    let before = own_base.map_or(0, |base_seq| base_seq.saturating_sub(1));
    let last_seq = scanned.last_seq.max(before);
    let repacked = one.header.is_some_and(|header| header.repacked);
    if !repacked {
        // Where it begins is a guess without a header: seqs are left out after a torn end.
        let guessed = one.header.is_none() && scanned.gaps.first().map(|gap| gap.0) == own_base;
        let gaps = scanned.gaps.iter().skip(usize::from(guessed));
        let damaged = gaps.map(|gap| Damaged::new(*gap, one.id));
        recovered.damaged.extend(damaged);
    } else if let Some(end) = seq_end.filter(|end| last_seq + 1 < *end) {
        // It had its footer before it had its name; without one, its end may be cut off.
        let seqs = (last_seq + 1, end - 1);
        recovered.damaged.push(Damaged::new(seqs, one.id));
    }
    recovered.last = (one.id, last_seq);
    recovered.last_seqs.insert(one.id, last_seq);
    let size = (one.size, scanned.data_end);
    let lists = std::mem::take(&mut scanned.lists);
    let segment = Arc::new(Segment::growing(one.id, begun, size, lists));
    if from_here.len() > 1 {
        segment.close();
        if repair {
            let sealed = seal(&segment, one, (last_seq, scanned.frames), false);
            recovered.remark_unsealed(one.id, sealed);
        }
    }
    recovered.catalog.insert(one.id, segment);
    Ok(Some(scanned))
}

/// The summaries of a sealed segment.
fn summaries(one: &Known, footer: &Footer) -> Option<Vec<Summary>> {
    let at = one.size.saturating_sub(PAGE_BYTES as u64);
    let length = footer.summaries_bytes();
    if at.checked_sub(footer.summaries_at) < Some(length as u64) {
        return None;
    }
    let mut bytes = vec![0; length];
    one.file.read_at(&mut bytes, footer.summaries_at).ok()?;
    footer.summaries(&bytes)
}

/// The first seq that is missing or damaged and was never durable: what follows was not either.
fn torn_at(scanned: &Scanned) -> Option<u64> {
    let gaps = scanned.gaps.iter().map(|gap| gap.0);
    gaps.chain(scanned.bodies.iter().copied())
        .filter(|seq| *seq > scanned.durable_seq)
        .min()
}

/// The newest segment is gone on with where it was closed in good order and nothing came after,
/// and sealed otherwise: within a segment, seqs are left out by damage only.
fn finish(one: &Known, frames: u64, repair: bool, recovered: &mut Recovered) {
    let Some(segment) = recovered.catalog.get(&one.id).cloned() else {
        return;
    };
    let is_whole = recovered.next_seq == recovered.last.1 + 1;
    if recovered.notes.closed && one.header.is_some() && is_whole {
        recovered.active = Some(Continued {
            segment,
            file: Arc::clone(&one.file),
            frames,
        });
        return;
    }
    segment.close();
    if repair {
        let sealed = seal(&segment, one, (recovered.last.1, frames), true);
        recovered.remark_unsealed(one.id, sealed);
    }
}

/// Seals a segment for good: what a kill left in the page cache counts as kept from here on, and
/// what was left out must not come back.
fn seal(segment: &Segment, one: &Known, seqs: (u64, u64), cut: bool) -> io::Result<()> {
    one.file.sync_data()?;
    segment.seal(&*one.file, seqs, cut)?;
    one.file.sync_data()
}

/// Compares where the log ends with how far it had come.
fn missed_end(disk: &dyn Disk, recovered: &mut Recovered) {
    let text = disk.open(END).and_then(|file| read_text(&*file));
    let Some((segment, seq)) = text.ok().and_then(|text| read_end(&text)) else {
        return;
    };
    let last_seq = recovered.last.1;
    if last_seq < seq {
        // One that was given up had nothing but notes left.
        if !recovered.retired.contains(&segment) {
            let seqs = (last_seq + 1, seq);
            recovered.damaged.push(Damaged::new(seqs, segment));
        }
        recovered.next_seq = recovered.next_seq.max(seq + 1);
    }
}

/// Makes the folders and `FORMAT` of a store.
///
/// # Errors
/// Whatever the disk answers.
pub fn found(disk: &dyn Disk, store_id: u64) -> io::Result<()> {
    for dir in [SEGMENTS, FREE, QUARANTINE] {
        disk.create_dir(dir)?;
    }
    replace(disk, FORMAT, &format_text(store_id))
}
