//! Where things are: file names, the pages that begin and end a segment, salts.
//!
//! ```text
//! FORMAT                      "edgehub store 1" and the store's id
//! END                         how far the log has come at least
//! seg/{id, 16 hex digits}.seg header page | checkpoint | frames … | lists | summaries | footer
//! free/{id}.seg               segments that wait to be used again
//! state/                      small state ([`super::state`])
//! quarantine/                 copies of damaged places, for support
//! ```
//!
//! A spare segment already lies in `seg/`, under its coming id, with a marker in place of the
//! header: rolling to it needs no change of names. One that was another segment before says so in
//! its last page too, until it is sealed.

use super::disk::PAGE_BYTES;
use super::frame::{COUNT_END, read_u16, read_u32, read_u64};
use super::index::{SUMMARY_BYTES, Summary};

/// The folder of data segments.
pub const SEGMENTS: &str = "seg";
/// The folder of segments that wait to be used again.
pub const FREE: &str = "free";
/// The folder of damaged places.
pub const QUARANTINE: &str = "quarantine";
/// The file that names the format.
pub const FORMAT: &str = "FORMAT";
/// The file that says how far the log has come at least; after a good end, exactly.
pub const END: &str = "END";
/// The format that this version writes.
pub const FORMAT_VERSION: u16 = 1;

const HEADER_MAGIC: &[u8; 8] = b"EHUBSEG\x01";
const FOOTER_MAGIC: &[u8; 8] = b"EHUBEND\x01";
const SPARE_MAGIC: &[u8; 8] = b"EHUBNEW\x01";
/// Bytes of a page that its checksum covers, from 16 on.
const CHECKED: std::ops::Range<usize> = 16..PAGE_BYTES;

/// The path of a segment.
#[must_use]
pub fn segment_path(id: u64) -> String {
    format!("{SEGMENTS}/{id:016x}.seg")
}

/// The path of a segment that waits to be used again.
#[must_use]
pub fn free_path(id: u64) -> String {
    format!("{FREE}/{id:016x}.seg")
}

/// The id in a segment's name.
#[must_use]
pub fn segment_id(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".seg")?;
    let id = u64::from_str_radix(digits, 16).ok()?;
    (digits.len() == 16 && id < COUNT_END).then_some(id)
}

/// The content of `FORMAT`: version, the store's id, checksum.
#[must_use]
pub fn format_text(store_id: u64) -> String {
    let text = format!("edgehub store {FORMAT_VERSION}\n{store_id:016x}\n");
    let crc = crc32c::crc32c(text.as_bytes());
    format!("{text}{crc:08x}\n")
}

/// Reads `FORMAT`: the version and the store's id; `None` where it is damaged.
#[must_use]
pub fn read_format(text: &str) -> Option<(u16, u64)> {
    let (front, crc) = text.strip_suffix('\n')?.rsplit_once('\n')?;
    let crc = u32::from_str_radix(crc, 16).ok()?;
    let mut lines = front.lines();
    let version = lines.next()?.strip_prefix("edgehub store ")?.parse().ok()?;
    let id = u64::from_str_radix(lines.next()?, 16).ok()?;
    (crc32c::crc32c(format!("{front}\n").as_bytes()) == crc).then_some((version, id))
}

/// The content of `END`: the newest segment, a seq in it, checksum.
#[must_use]
pub fn end_text((segment, seq): (u64, u64)) -> String {
    let text = format!("{segment:016x} {seq}");
    let crc = crc32c::crc32c(text.as_bytes());
    format!("{text} {crc:08x}\n")
}

/// Reads `END`; `None` where it is damaged.
#[must_use]
pub fn read_end(text: &str) -> Option<(u64, u64)> {
    let mut words = text.split_whitespace();
    let segment = u64::from_str_radix(words.next()?, 16).ok()?;
    let seq = words.next()?.parse().ok()?;
    (end_text((segment, seq)) == text && seq < COUNT_END).then_some((segment, seq))
}

/// Seeds the frame checksums of one use of a segment file, so that what an earlier use left in it
/// never validates: a bijection of the segment's id, keyed with the store's.
#[must_use]
pub fn salt(store_id: u64, segment_id: u64) -> u32 {
    let mut x = (segment_id as u32) ^ (store_id as u32);
    x = (x ^ (x >> 16)).wrapping_mul(0x85EB_CA6B);
    x = (x ^ (x >> 13)).wrapping_mul(0xC2B2_AE35);
    (x ^ (x >> 16)) ^ ((store_id >> 32) as u32) ^ ((segment_id >> 32) as u32)
}

/// The first page of a segment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SegmentHeader {
    /// The store it belongs to.
    pub store_id: u64,
    /// Its id.
    pub id: u64,
    /// No frame in it has a lower seq.
    pub base_seq: u64,
    /// The segment before it when it was begun; 0: none.
    pub previous_id: u64,
    /// The last seq of that.
    pub previous_last_seq: u64,
    /// Trusted time when it was begun, in milliseconds since 1970.
    pub time_ms: u64,
    /// It holds what was left of several others: seqs have gaps.
    pub repacked: bool,
}

/// What the first page says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeaderPage {
    /// A segment in use.
    Good(SegmentHeader),
    /// Of a newer format: not ours to touch.
    Newer(u16),
    /// Neither: a spare, or damaged.
    None,
}

impl SegmentHeader {
    /// The page.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let fields = [
            self.store_id,
            self.id,
            self.base_seq,
            self.previous_id,
            self.previous_last_seq,
            self.time_ms,
        ];
        page(HEADER_MAGIC, u16::from(self.repacked), &fields)
    }

    /// Reads the page.
    #[must_use]
    pub fn read(page: &[u8]) -> HeaderPage {
        if page.get(..8) != Some(HEADER_MAGIC) {
            return HeaderPage::None;
        }
        match read_u16(page, 8) {
            Some(FORMAT_VERSION) => {}
            Some(version) if version > FORMAT_VERSION && is_sound(page) => {
                return HeaderPage::Newer(version);
            }
            _ => return HeaderPage::None,
        }
        if !is_sound(page) {
            return HeaderPage::None;
        }
        let field = |place: usize| read_u64(page, 16 + 8 * place).unwrap_or_default();
        if field(2).max(field(4)) >= COUNT_END {
            return HeaderPage::None;
        }
        HeaderPage::Good(Self {
            store_id: field(0),
            id: field(1),
            base_seq: field(2),
            previous_id: field(3),
            previous_last_seq: field(4),
            time_ms: field(5),
            repacked: read_u16(page, 10) == Some(1),
        })
    }
}

/// The last page of a sealed segment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Footer {
    /// The segment's id.
    pub id: u64,
    /// The last seq, of any kind of frame.
    pub last_seq: u64,
    /// Frames, of any kind.
    pub frames: u64,
    /// Where the frames end.
    pub data_end: u64,
    /// Where the summaries begin.
    pub summaries_at: u64,
    /// How many there are.
    pub summaries: u64,
    /// Their checksum.
    pub summaries_crc: u64,
}

impl Footer {
    /// The page.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let fields = [
            self.id,
            self.last_seq,
            self.frames,
            self.data_end,
            self.summaries_at,
            self.summaries,
            self.summaries_crc,
        ];
        page(FOOTER_MAGIC, 0, &fields)
    }

    /// Reads the page; `None` where it is no footer of this segment.
    #[must_use]
    pub fn read(page: &[u8], id: u64) -> Option<Self> {
        Self::read_any(page).filter(|footer| footer.id == id)
    }

    /// Reads the page, whichever segment it ends; `None` where it is no footer.
    #[must_use]
    pub fn read_any(page: &[u8]) -> Option<Self> {
        let known = page.get(..8) == Some(FOOTER_MAGIC)
            && read_u16(page, 8) == Some(FORMAT_VERSION)
            && is_sound(page);
        let field = |place: usize| read_u64(page, 16 + 8 * place);
        let footer = Self {
            id: field(0)?,
            last_seq: field(1)?,
            frames: field(2)?,
            data_end: field(3)?,
            summaries_at: field(4)?,
            summaries: field(5)?,
            summaries_crc: field(6)?,
        };
        let fits = footer.last_seq < COUNT_END && footer.data_end <= footer.summaries_at;
        (known && fits).then_some(footer)
    }

    /// Bytes of all summaries.
    #[must_use]
    pub fn summaries_bytes(&self) -> usize {
        (self.summaries as usize).saturating_mul(SUMMARY_BYTES)
    }

    /// Reads the summaries; `None` where they are damaged.
    #[must_use]
    pub fn summaries(&self, bytes: &[u8]) -> Option<Vec<Summary>> {
        if u64::from(crc32c::crc32c(bytes)) != self.summaries_crc {
            return None;
        }
        let read = bytes.chunks(SUMMARY_BYTES).map(Summary::read);
        let summaries = read.collect::<Option<Vec<_>>>()?;
        let fits = |one: &Summary| {
            let list_end = one.list_at.checked_add(u64::from(one.list_bytes));
            one.first_seq <= one.last_seq
                && one.last_seq <= self.last_seq
                && one.bytes < COUNT_END
                && list_end
                    .is_some_and(|end| self.data_end <= one.list_at && end <= self.summaries_at)
        };
        let is_sorted = summaries.is_sorted_by(|a, b| a.lane < b.lane);
        (is_sorted && summaries.iter().all(fits)).then_some(summaries)
    }
}

/// The page that marks a spare segment, and names the segment that it was before; 0: none.
#[must_use]
pub fn spare_page(old: u64) -> Vec<u8> {
    page(SPARE_MAGIC, 0, &[old])
}

/// Reads such a page: which segment it was.
#[must_use]
pub fn read_spare(page: &[u8]) -> Option<u64> {
    let known = page.get(..8) == Some(SPARE_MAGIC) && is_sound(page);
    read_u64(page, CHECKED.start).filter(|_| known)
}

/// A page of numbers.
fn page(magic: &[u8; 8], flags: u16, fields: &[u64]) -> Vec<u8> {
    let mut page = Vec::with_capacity(PAGE_BYTES);
    page.extend_from_slice(magic);
    page.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
    page.extend_from_slice(&flags.to_le_bytes());
    page.extend_from_slice(&[0; 4]);
    for field in fields {
        page.extend_from_slice(&field.to_le_bytes());
    }
    finish(page)
}

/// Fills the page up, and writes its checksum.
fn finish(mut page: Vec<u8>) -> Vec<u8> {
    page.resize(PAGE_BYTES, 0);
    let crc = page_crc(&page);
    if let Some(field) = page.get_mut(12..16) {
        field.copy_from_slice(&crc.to_le_bytes());
    }
    page
}

fn page_crc(page: &[u8]) -> u32 {
    let crc = crc32c::crc32c(page.get(..12).unwrap_or_default());
    crc32c::crc32c_append(crc, page.get(CHECKED).unwrap_or_default())
}

fn is_sound(page: &[u8]) -> bool {
    page.len() == PAGE_BYTES && read_u32(page, 12) == Some(page_crc(page))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::index::ListBuilder;

    #[test]
    fn pages_read_as_written_and_not_when_damaged() {
        let header = SegmentHeader {
            store_id: 7,
            id: 9,
            base_seq: 100,
            previous_id: 8,
            previous_last_seq: 99,
            time_ms: 1_790_000_000_000,
            repacked: true,
        };
        let page = header.encode();
        assert_eq!(SegmentHeader::read(&page), HeaderPage::Good(header));
        let footer = Footer {
            id: 9,
            last_seq: 120,
            frames: 21,
            ..Footer::default()
        };
        let end = footer.encode();
        assert_eq!(Footer::read(&end, 9), Some(footer));
        assert_eq!(Footer::read(&end, 10), None);
        let spare = spare_page(8);
        assert_eq!(read_spare(&spare), Some(8));
        assert_eq!(read_spare(&end), None);
        for bit in (0..PAGE_BYTES * 8).step_by(7) {
            let (mut page, mut end, mut spare) = (page.clone(), end.clone(), spare.clone());
            page[bit / 8] ^= 1 << (bit % 8);
            end[bit / 8] ^= 1 << (bit % 8);
            spare[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(read_spare(&spare), None, "bit {bit}");
            assert_eq!(SegmentHeader::read(&page), HeaderPage::None, "bit {bit}");
            assert_eq!(Footer::read(&end, 9), None, "bit {bit}");
        }
    }

    #[test]
    fn pages_that_contradict_themselves_are_none_whatever_their_checksums() {
        for (base_seq, previous_last_seq) in [(u64::MAX, 1), (1, COUNT_END)] {
            let header = SegmentHeader {
                base_seq,
                previous_last_seq,
                ..SegmentHeader::default()
            };
            assert_eq!(SegmentHeader::read(&header.encode()), HeaderPage::None);
        }
        let footer = Footer {
            last_seq: 9,
            data_end: 8192,
            summaries_at: 8300,
            ..Footer::default()
        };
        let wrong = [(COUNT_END, 8192), (9, 9000)];
        for (last_seq, data_end) in wrong {
            let footer = Footer {
                last_seq,
                data_end,
                ..footer
            };
            assert_eq!(Footer::read(&footer.encode(), 0), None);
        }
        let mut one = ListBuilder::new(5).sealed(8200);
        (one.first_seq, one.last_seq, one.list_bytes) = (2, 9, 100);
        let sums = |change: &dyn Fn(&mut Summary)| {
            let (mut bytes, mut changed) = (Vec::new(), one);
            one.encode(&mut bytes);
            change(&mut changed);
            changed.encode(&mut bytes);
            let summaries_crc = u64::from(crc32c::crc32c(&bytes));
            let footer = Footer {
                summaries_crc,
                ..footer
            };
            footer.summaries(&bytes).map(|all| all.len())
        };
        assert_eq!(sums(&|one| one.lane = 6), Some(2));
        assert_eq!(sums(&|_| {}), None, "a lane twice");
        assert_eq!(sums(&|one| (one.lane, one.first_seq) = (6, 10)), None);
        assert_eq!(sums(&|one| (one.lane, one.last_seq) = (6, 10)), None);
        assert_eq!(sums(&|one| (one.lane, one.list_at) = (6, 8000)), None);
        assert_eq!(sums(&|one| (one.lane, one.list_at) = (6, u64::MAX)), None);
        assert_eq!(sums(&|one| (one.lane, one.list_bytes) = (6, 101)), None);
        assert_eq!(sums(&|one| (one.lane, one.bytes) = (6, u64::MAX)), None);
    }

    #[test]
    fn a_newer_format_is_recognised() {
        let mut page = SegmentHeader::default().encode();
        page[8] = 2;
        let page = finish(page);
        assert_eq!(SegmentHeader::read(&page), HeaderPage::Newer(2));
    }

    #[test]
    fn names_and_salts_differ() {
        assert_eq!(segment_id("0000000000000a17.seg"), Some(0xa17));
        for name in ["a17.seg", "0000000000000a17.idx", "x000000000000a17.seg"] {
            assert_eq!(segment_id(name), None, "{name}");
        }
        assert_eq!(segment_id("ffffffffffffffff.seg"), None);
        assert_eq!(read_end(&end_text((1, 9))), Some((1, 9)));
        assert_eq!(read_end(&end_text((1, u64::MAX))), None);
        let salts: std::collections::HashSet<_> = (0..10_000).map(|id| salt(77, id)).collect();
        assert_eq!(salts.len(), 10_000);
        assert_eq!(read_format(&format_text(5)), Some((1, 5)));
        assert_eq!(read_format(&format_text(5).replace(" 1", " 2")), None);
    }
}
