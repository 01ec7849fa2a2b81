//! Edits of the files of a store. Those that know the format make the checksums right again, so
//! that what they changed is looked at.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use arbitrary::Arbitrary;
use edgehub::store::disk::PAGE_BYTES;
use edgehub::store::frame::{self, COUNT_END, HEADER_BYTES, Header, Kind, LANE_BYTES, Parts};
use edgehub::store::frame::{read_u16, read_u32, read_u64};

use super::damage::{Built, Ended, build};
use super::memory_disk::MemoryDisk;
use super::sim_disk::{Faults, SimDisk};

/// The id of every store here; `Rig` gives it.
pub const STORE_ID: u64 = 7;
/// No file becomes longer.
const FILE_BYTES_MAX: usize = 1 << 20;
const SUMMARY_BYTES: usize = 56;

/// One edit. Places and numbers are taken modulo what there is.
#[derive(Debug, Arbitrary)]
pub enum Edit {
    Bytes {
        file: u8,
        at: u32,
        bytes: Vec<u8>,
    },
    Zero {
        file: u8,
        at: u32,
        len: u16,
    },
    Cut {
        file: u8,
        len: u32,
    },
    Delete {
        file: u8,
    },
    Copy {
        from: u8,
        to: u8,
    },
    New {
        is_free: bool,
        id: u64,
        bytes: Vec<u8>,
    },
    /// A field of a frame's header, sealed again.
    Header {
        frame: u16,
        at: u8,
        bytes: [u8; 8],
        len: u8,
    },
    /// Bytes of a frame's body, sealed again.
    Body {
        frame: u16,
        at: u16,
        bytes: Vec<u8>,
    },
    /// A note in the place of another.
    Cursor {
        note: u16,
        lane: u32,
        floor: u64,
        acked: Vec<u64>,
    },
    /// The same, of segments.
    Segments {
        note: u16,
        used: Vec<u64>,
        freed: Vec<u64>,
        flags: u8,
    },
    /// A field of the first or the last page, with its checksum.
    Page {
        file: u8,
        is_last: bool,
        at: u8,
        bytes: [u8; 8],
        len: u8,
    },
    /// A field of a summary, and the checksums above it.
    Summary {
        file: u8,
        at: u16,
        bytes: [u8; 8],
        len: u8,
    },
    /// Bytes of a list, and the checksums above it.
    List {
        file: u8,
        summary: u16,
        at: u16,
        bytes: Vec<u8>,
    },
    Format {
        version: u16,
        id: u64,
    },
    Closed {
        segment: u64,
        seq: u64,
    },
}

impl Edit {
    /// Whether it makes the log say something else about itself, with the right checksums. What
    /// comes of the messages is then anybody's guess.
    pub fn forges(&self) -> bool {
        !matches!(
            self,
            Self::Bytes { .. }
                | Self::Zero { .. }
                | Self::Cut { .. }
                | Self::Delete { .. }
                | Self::Copy { .. }
                | Self::Body { .. }
        )
    }
}

/// A complete store to begin with.
pub struct Base {
    pub built: Built,
    files: BTreeMap<String, Vec<u8>>,
}

/// One that was closed, one that was killed, one that was repacked.
pub static BASES: LazyLock<Vec<Base>> = LazyLock::new(bases);

fn bases() -> Vec<Base> {
    let base = |ended| {
        let built = build(1, 64 * 1024, ended);
        let disk = SimDisk::new(1, Faults::default());
        disk.restore(&built.state);
        let names = built.files.iter().map(|(name, _)| name.clone());
        let files = names.map(|name| {
            let bytes = disk.read_file(&name);
            (name, bytes)
        });
        Base {
            files: files.collect(),
            built,
        }
    };
    [Ended::Closed, Ended::Killed, Ended::Repacked]
        .map(base)
        .into()
}

/// Edited files.
pub struct Files<'a> {
    base: &'a Base,
    files: BTreeMap<String, Vec<u8>>,
}

/// As `layout::salt`.
pub fn salt(store_id: u64, segment_id: u64) -> u32 {
    let mut x = (segment_id as u32) ^ (store_id as u32);
    x = (x ^ (x >> 16)).wrapping_mul(0x85EB_CA6B);
    x = (x ^ (x >> 13)).wrapping_mul(0xC2B2_AE35);
    (x ^ (x >> 16)) ^ ((store_id >> 32) as u32) ^ ((segment_id >> 32) as u32)
}

/// The segment that a file is.
pub fn segment_of(name: &str) -> Option<u64> {
    let digits = name.strip_prefix("seg/")?.strip_suffix(".seg")?;
    u64::from_str_radix(digits, 16).ok()
}

impl<'a> Files<'a> {
    pub fn new(base: &'a Base) -> Self {
        Self {
            base,
            files: base.files.clone(),
        }
    }

    pub fn bytes(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.files
            .iter()
            .map(|(name, bytes)| (name.as_str(), bytes.as_slice()))
    }

    /// Whether anything still says which store it is. Without, it becomes another one, for which
    /// what is in the files never counts; `Rig` would give that the same id again.
    pub fn say_whose_they_are(&self) -> bool {
        self.files
            .iter()
            .any(|(name, bytes)| match segment_of(name) {
                None => name == "FORMAT" && is_format(bytes),
                Some(id) => is_header(bytes, id),
            })
    }

    /// Puts them on a disk.
    pub fn disk(&self) -> Arc<MemoryDisk> {
        MemoryDisk::with(self.bytes())
    }

    fn name(&self, file: u8) -> Option<String> {
        let count = self.files.len().max(1);
        self.files.keys().nth(usize::from(file) % count).cloned()
    }

    fn segment(&self, file: u8) -> Option<(String, u64)> {
        let segments = self.files.keys().filter(|name| segment_of(name).is_some());
        let segments: Vec<_> = segments.cloned().collect();
        let name = segments.get(usize::from(file) % segments.len().max(1))?;
        Some((name.clone(), segment_of(name)?))
    }

    fn set(&mut self, name: &str, bytes: Vec<u8>) {
        self.files.insert(name.to_owned(), bytes);
    }

    fn edit(&mut self, name: &str) -> Option<&mut Vec<u8>> {
        let bytes = self.files.get_mut(name)?;
        Some(bytes)
    }

    /// Applies an edit, where it has a place.
    pub fn apply(&mut self, edit: &Edit) -> Option<()> {
        match edit {
            Edit::Bytes { file, at, bytes } => {
                let name = self.name(*file)?;
                overwrite(self.edit(&name)?, *at as usize, bytes);
            }
            Edit::Zero { file, at, len } => {
                let name = self.name(*file)?;
                overwrite(self.edit(&name)?, *at as usize, &vec![0; usize::from(*len)]);
            }
            Edit::Cut { file, len } => {
                let name = self.name(*file)?;
                self.edit(&name)?.resize(*len as usize % FILE_BYTES_MAX, 0);
            }
            Edit::Delete { file } => {
                let name = self.name(*file)?;
                self.files.remove(&name);
            }
            Edit::Copy { from, to } => {
                let bytes = self.files.get(&self.name(*from)?)?.clone();
                let name = self.name(*to)?;
                self.set(&name, bytes);
            }
            Edit::New { is_free, id, bytes } => {
                let dir = if *is_free { "free" } else { "seg" };
                self.set(&format!("{dir}/{id:016x}.seg"), bytes.clone());
            }
            Edit::Format { version, id } => {
                let text = format!("edgehub store {version}\n{id:016x}\n");
                let crc = crc32c::crc32c(text.as_bytes());
                self.set("FORMAT", format!("{text}{crc:08x}\n").into_bytes());
            }
            Edit::Closed { segment, seq } => {
                let text = format!("{segment:016x} {seq}");
                let crc = crc32c::crc32c(text.as_bytes());
                self.set("END", format!("{text} {crc:08x}\n").into_bytes());
            }
            _ => self.apply_checked(edit)?,
        }
        Some(())
    }

    #[allow(clippy::too_many_lines)] // an arm for each kind of edit
    fn apply_checked(&mut self, edit: &Edit) -> Option<()> {
        match edit {
            Edit::Header {
                frame,
                at,
                bytes,
                len,
            } => {
                let (name, start, header) = self.frame(usize::from(*frame), |_| true)?;
                let at = 8 + usize::from(*at) % (header.body_at() - 8);
                let len = usize::from(*len) % 8 + 1;
                let file = self.edit(&name)?;
                overwrite(file, start + at, bytes.get(..len)?);
                seal(file, start, segment_of(&name)?);
            }
            Edit::Body { frame, at, bytes } => {
                let (name, start, header) = self.frame(usize::from(*frame), |_| true)?;
                let body = header.body_bytes as usize;
                let at = usize::from(*at) % (body + 1);
                let bytes = bytes.get(..bytes.len().min(body - at))?;
                let file = self.edit(&name)?;
                overwrite(file, start + header.body_at() + at, bytes);
                seal_body(file, start, &header, segment_of(&name)?);
            }
            Edit::Cursor {
                note,
                lane,
                floor,
                acked,
            } => {
                let json = format!(r#"{{"c":[{{"l":{lane},"f":{floor},"a":{acked:?}}}]}}"#);
                self.note(usize::from(*note), json.as_bytes())?;
            }
            Edit::Segments {
                note,
                used,
                freed,
                flags,
            } => {
                let (k, z) = (flags & 1 == 1, flags & 2 == 2);
                let json = format!(r#"{{"k":{k},"z":{z},"s":{used:?},"f":{freed:?}}}"#);
                self.note(usize::from(*note), json.as_bytes())?;
            }
            Edit::Page {
                file,
                is_last,
                at,
                bytes,
                len,
            } => {
                let (name, _) = self.segment(*file)?;
                let file = self.edit(&name)?;
                let pages = file.len() / PAGE_BYTES;
                let page = if *is_last { pages.checked_sub(1)? } else { 0 };
                let page = file.get_mut(page * PAGE_BYTES..(page + 1) * PAGE_BYTES)?;
                let at = 8 + usize::from(*at) % 72;
                let len = usize::from(*len) % 8 + 1;
                page.get_mut(at..at + len)?
                    .copy_from_slice(bytes.get(..len)?);
                seal_page(page);
            }
            Edit::Summary {
                file,
                at,
                bytes,
                len,
            } => {
                let (name, _) = self.segment(*file)?;
                let file = self.edit(&name)?;
                let (start, end) = summaries(file)?;
                let own = start + usize::from(*at) / SUMMARY_BYTES * SUMMARY_BYTES % (end - start);
                // Not how many messages there are: nothing else says that.
                let at = own + 16 + usize::from(*at) % (SUMMARY_BYTES - 16);
                let len = (usize::from(*len) % 8 + 1).min(end - at);
                overwrite(file, at, bytes.get(..len)?);
                seal_summaries(file)?;
            }
            Edit::List {
                file,
                summary,
                at,
                bytes,
            } => {
                let (name, _) = self.segment(*file)?;
                let file = self.edit(&name)?;
                let (start, end) = summaries(file)?;
                let count = (end - start) / SUMMARY_BYTES;
                let own = start + usize::from(*summary) % count * SUMMARY_BYTES;
                let list_at = usize::try_from(read_u64(file, own + 32)?).ok()?;
                let list_end = list_at.checked_add(read_u32(file, own + 44)? as usize)?;
                let at = list_at + usize::from(*at) % (list_end - list_at).max(1);
                overwrite(
                    file,
                    at,
                    bytes.get(..bytes.len().min(list_end.checked_sub(at)?))?,
                );
                let crc = crc32c::crc32c(file.get(list_at..list_end)?);
                overwrite(file, own + 48, &crc.to_le_bytes());
                seal_summaries(file)?;
            }
            _ => {}
        }
        Some(())
    }

    /// The nth frame that is still where it was.
    fn frame(
        &self,
        nth: usize,
        is_one: impl Fn(&super::damage::Frame) -> bool,
    ) -> Option<(String, usize, Header)> {
        let frames = &self.base.built.frames;
        let some: Vec<_> = frames.iter().filter(|frame| is_one(frame)).collect();
        let frame = some.get(nth % some.len().max(1))?;
        let name = &self.base.built.files.get(frame.file)?.0;
        let start = frame.bytes.start as usize;
        let bytes = self.files.get(name)?.get(start..)?;
        let header = Header::read(bytes, salt(STORE_ID, segment_of(name)?)).ok()?;
        (header.frame_bytes() <= bytes.len()).then(|| (name.clone(), start, header))
    }

    /// Puts JSON in the place of a note, with blanks behind it.
    fn note(&mut self, nth: usize, json: &[u8]) -> Option<()> {
        let (name, start, header) = self.frame(nth, |frame| !frame.is_data)?;
        let mut payload = json.to_vec();
        payload.resize(payload.len().max(header.body_bytes as usize), b' ');
        let payload = payload.get(..header.body_bytes as usize)?;
        let file = self.edit(&name)?;
        overwrite(file, start + header.body_at(), payload);
        seal_body(file, start, &header, segment_of(&name)?);
        Some(())
    }

    /// Adds a note behind the newest frame.
    pub fn add_note(&mut self, payload: &[u8]) -> Option<()> {
        let last = self
            .base
            .built
            .frames
            .iter()
            .max_by_key(|frame| frame.seq)?;
        let name = self.base.built.files.get(last.file)?.0.clone();
        let parts = Parts {
            kind: Kind::Control,
            time_ms: super::rig::WALL_MS,
            lanes: &[],
            topic: b"",
            properties: b"",
            payload,
        };
        let mut bytes = Vec::new();
        parts.encode(last.seq + 1, &mut bytes);
        frame::seal(&mut bytes, salt(STORE_ID, segment_of(&name)?), last.seq);
        let at = (last.bytes.end as usize).next_multiple_of(PAGE_BYTES);
        overwrite(self.edit(&name)?, at, &bytes);
        Some(())
    }
}

fn is_format(bytes: &[u8]) -> bool {
    let Some((front, crc)) = bytes.split_last_chunk::<9>() else {
        return false;
    };
    let own = format!("{:08x}\n", crc32c::crc32c(front));
    front.starts_with(b"edgehub store 1\n") && own.as_bytes() == crc
}

fn is_header(bytes: &[u8], id: u64) -> bool {
    let Some(page) = bytes.get(..PAGE_BYTES) else {
        return false;
    };
    let mut sealed = page.to_vec();
    seal_page(&mut sealed);
    page.starts_with(b"EHUBSEG\x01")
        && sealed == page
        && read_u16(page, 8) == Some(1)
        && read_u64(page, 24) == Some(id)
        && [32, 48]
            .iter()
            .all(|at| read_u64(page, *at) < Some(COUNT_END))
}

fn overwrite(file: &mut [u8], at: usize, bytes: &[u8]) {
    let at = at % file.len().max(1);
    let end = (at + bytes.len()).min(file.len());
    file[at..end].copy_from_slice(&bytes[..end - at]);
}

/// Seals the header of the frame at `start`; how far the log was durable stays as it is.
fn seal(file: &mut [u8], start: usize, segment: u64) {
    let frame = &mut file[start..];
    let lanes = usize::from(read_u16(frame, 34).unwrap_or_default());
    let end = HEADER_BYTES + lanes * LANE_BYTES;
    if let Some(checked) = frame.get(8..end) {
        let crc = crc32c::crc32c_append(salt(STORE_ID, segment), checked);
        frame[4..8].copy_from_slice(&crc.to_le_bytes());
    }
}

fn seal_body(file: &mut [u8], start: usize, header: &Header, segment: u64) {
    let body = start + header.body_at();
    let crc = crc32c::crc32c(&file[body..body + header.body_bytes as usize]);
    file[start + 20..start + 24].copy_from_slice(&crc.to_le_bytes());
    seal(file, start, segment);
}

fn seal_page(page: &mut [u8]) {
    let crc = crc32c::crc32c_append(crc32c::crc32c(&page[..12]), &page[16..]);
    page[12..16].copy_from_slice(&crc.to_le_bytes());
}

/// Where the summaries of a sealed segment lie.
fn summaries(file: &[u8]) -> Option<(usize, usize)> {
    let footer = file.get(file.len().checked_sub(PAGE_BYTES)?..)?;
    if !footer.starts_with(b"EHUBEND\x01") {
        return None;
    }
    let start = usize::try_from(read_u64(footer, 16 + 4 * 8)?).ok()?;
    let count = usize::try_from(read_u64(footer, 16 + 5 * 8)?).ok()?;
    let end = count.checked_mul(SUMMARY_BYTES)?.checked_add(start)?;
    (count > 0 && end <= file.len()).then_some((start, end))
}

fn seal_summaries(file: &mut [u8]) -> Option<()> {
    let (start, end) = summaries(file)?;
    let crc = u64::from(crc32c::crc32c(&file[start..end]));
    let at = file.len() - PAGE_BYTES;
    let footer = &mut file[at..];
    footer[16 + 6 * 8..16 + 7 * 8].copy_from_slice(&crc.to_le_bytes());
    seal_page(footer);
    Some(())
}
