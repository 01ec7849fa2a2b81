//! What a segment holds of each lane: a summary that stays in memory, and a list of its frames
//! that is read when the lane is.
//!
//! A list entry is three numbers, each as the difference to the entry before it (seq, offset in
//! units of 8 bytes) or as it is (message bytes), in variable length: 4 to 6 bytes together.

use std::collections::HashMap;

use super::frame::{ALIGN, read_u32, read_u64};

/// Bytes of an encoded [`Summary`].
pub const SUMMARY_BYTES: usize = 56;
/// The longest list entry.
pub const ENTRY_BYTES_MAX: u64 = 15;

/// What a segment holds of one lane.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Summary {
    /// The lane.
    pub lane: u32,
    /// Frames.
    pub messages: u32,
    /// Bytes of the messages, as quotas count them.
    pub bytes: u64,
    /// The first frame.
    pub first_seq: u64,
    /// The last frame.
    pub last_seq: u64,
    /// The latest expiry, in seconds since 1970; 0: some never expire.
    pub expires_s: u32,
    /// Where the list begins in the file (sealed segments).
    pub list_at: u64,
    /// Bytes of the list.
    pub list_bytes: u32,
    /// Checksum of the list.
    pub list_crc: u32,
}

impl Summary {
    /// Appends the encoded summary.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.lane.to_le_bytes());
        out.extend_from_slice(&self.messages.to_le_bytes());
        out.extend_from_slice(&self.bytes.to_le_bytes());
        out.extend_from_slice(&self.first_seq.to_le_bytes());
        out.extend_from_slice(&self.last_seq.to_le_bytes());
        out.extend_from_slice(&self.list_at.to_le_bytes());
        out.extend_from_slice(&self.expires_s.to_le_bytes());
        out.extend_from_slice(&self.list_bytes.to_le_bytes());
        out.extend_from_slice(&self.list_crc.to_le_bytes());
        out.extend_from_slice(&[0; 4]);
    }

    /// Whether a list, whose frames lie before `data_end`, is the one that was summed up.
    #[must_use]
    pub fn agrees(&self, list: &[u8], data_end: u64) -> bool {
        let mut entries = Position::default().entries_of(list);
        let Some(first) = entries.next() else {
            return self.messages == 0;
        };
        let (mut last, mut messages, mut bytes) = (first, 1, first.bytes);
        for entry in entries {
            messages += 1;
            bytes = entry.bytes.saturating_add(bytes);
            last = entry;
        }
        (first.seq, last.seq) == (self.first_seq, self.last_seq)
            && (messages, bytes) == (self.messages, self.bytes)
            && last.offset < data_end
    }

    /// Reads one summary.
    #[must_use]
    pub fn read(bytes: &[u8]) -> Option<Self> {
        Some(Self {
            lane: read_u32(bytes, 0)?,
            messages: read_u32(bytes, 4)?,
            bytes: read_u64(bytes, 8)?,
            first_seq: read_u64(bytes, 16)?,
            last_seq: read_u64(bytes, 24)?,
            list_at: read_u64(bytes, 32)?,
            expires_s: read_u32(bytes, 40)?,
            list_bytes: read_u32(bytes, 44)?,
            list_crc: read_u32(bytes, 48)?,
        })
    }
}

/// One frame in a lane.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Entry {
    /// Its number.
    pub seq: u64,
    /// Where it begins in the file.
    pub offset: u64,
    /// Bytes of the message, as quotas count them.
    pub bytes: u64,
}

/// The list of a lane while its segment grows.
#[derive(Debug)]
pub struct ListBuilder {
    summary: Summary,
    list: Vec<u8>,
    last: Entry,
}

impl ListBuilder {
    /// An empty list.
    #[must_use]
    pub fn new(lane: u32) -> Self {
        Self {
            summary: Summary {
                lane,
                expires_s: 1,
                ..Summary::default()
            },
            list: Vec::new(),
            last: Entry::default(),
        }
    }

    /// Adds a frame, which comes behind all others in seq and place.
    pub fn push(&mut self, entry: Entry, expires_s: u32) {
        if self.summary.messages == 0 {
            self.summary.first_seq = entry.seq;
        }
        put(&mut self.list, entry.seq - self.last.seq);
        put(
            &mut self.list,
            (entry.offset - self.last.offset) / ALIGN as u64,
        );
        put(&mut self.list, entry.bytes);
        self.last = entry;
        self.summary.messages += 1;
        self.summary.bytes += entry.bytes;
        self.summary.last_seq = entry.seq;
        // Never is later than any time.
        let latest = &mut self.summary.expires_s;
        *latest = if expires_s == 0 || *latest == 0 {
            0
        } else {
            expires_s.max(*latest)
        };
    }

    /// The summary so far.
    #[must_use]
    pub fn summary(&self) -> Summary {
        self.summary
    }

    /// The encoded list so far.
    #[must_use]
    pub fn list(&self) -> &[u8] {
        &self.list
    }

    /// The summary for the sealed segment, whose list is written at `list_at`.
    #[must_use]
    pub fn sealed(&self, list_at: u64) -> Summary {
        Summary {
            list_at,
            list_bytes: self.list.len() as u32,
            list_crc: crc32c::crc32c(&self.list),
            ..self.summary
        }
    }
}

/// The lists of a segment that is not sealed.
pub type ListsByLane = HashMap<u32, ListBuilder>;

/// Adds a frame to the list of one of its lanes.
pub fn add(lists: &mut ListsByLane, lane: u32, entry: Entry, expires_s: u32) {
    lists
        .entry(lane)
        .or_insert_with(|| ListBuilder::new(lane))
        .push(entry, expires_s);
}

/// Reads a list from the front; `at` is kept by the caller between calls.
#[derive(Debug, Clone, Copy, Default)]
pub struct Position {
    at: usize,
    last: Entry,
}

impl Position {
    /// The entry here, if there is one and the list is sound; moves on behind it.
    pub fn next(&mut self, list: &[u8]) -> Option<Entry> {
        let mut at = self.at;
        let seq = take(list, &mut at)?;
        let offset = take(list, &mut at)?;
        let bytes = take(list, &mut at)?;
        let entry = Entry {
            seq: self.last.seq.checked_add(seq)?,
            offset: self
                .last
                .offset
                .checked_add(offset.checked_mul(ALIGN as u64)?)?,
            bytes,
        };
        self.at = at;
        self.last = entry;
        Some(entry)
    }

    /// The list goes on in another buffer, from its first byte.
    pub fn go_on(&mut self) {
        self.at = 0;
    }

    /// The entries from here on.
    pub fn entries_of(self, list: &[u8]) -> impl Iterator<Item = Entry> + '_ {
        let mut position = self;
        std::iter::from_fn(move || position.next(list))
    }
}

fn put(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn take(bytes: &[u8], at: &mut usize) -> Option<u64> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let byte = *bytes.get(*at)?;
        *at += 1;
        value |= u64::from(byte & 0x7F).checked_shl(shift)?;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_reads_as_it_was_built() {
        let mut builder = ListBuilder::new(7);
        let mut expected = Vec::new();
        let mut entry = Entry::default();
        for n in 1..1000_u64 {
            entry = Entry {
                seq: entry.seq + 1 + n % 3,
                offset: entry.offset + 8 * (1 + n * n % 5000),
                bytes: n * 37 % 100_000,
            };
            builder.push(entry, 100 + n as u32);
            expected.push(entry);
        }
        let read: Vec<_> = Position::default().entries_of(builder.list()).collect();
        assert_eq!(read, expected);
        let summary = builder.sealed(8192);
        assert_eq!((summary.messages, summary.expires_s), (999, 1099));
        assert!(builder.list().len() < 999 * 7);
        let mut bytes = Vec::new();
        summary.encode(&mut bytes);
        assert_eq!(bytes.len(), SUMMARY_BYTES);
        assert_eq!(Summary::read(&bytes), Some(summary));
        assert!(summary.agrees(builder.list(), entry.offset + 1));
        assert!(
            !summary.agrees(builder.list(), entry.offset),
            "a frame lies behind the end"
        );
        let shorter = &builder.list()[..builder.list().len() - 1];
        assert!(!summary.agrees(shorter, u64::MAX) && !summary.agrees(&[], u64::MAX));
        for other in [
            Summary {
                messages: 998,
                ..summary
            },
            Summary {
                bytes: 0,
                ..summary
            },
            Summary {
                first_seq: 1,
                ..summary
            },
            Summary {
                last_seq: u64::MAX,
                ..summary
            },
        ] {
            assert!(!other.agrees(builder.list(), u64::MAX));
        }
        builder.push(
            Entry {
                seq: 5000,
                offset: 1 << 40,
                bytes: 1,
            },
            0,
        );
        assert_eq!(builder.summary().expires_s, 0, "one never expires");
    }

    #[test]
    fn a_list_that_ends_inside_an_entry_ends_before_it() {
        let mut builder = ListBuilder::new(1);
        for n in 1..4_u64 {
            let entry = Entry {
                seq: 300 * n,
                offset: 80_000 * n,
                bytes: 999,
            };
            builder.push(entry, 0);
        }
        let list = builder.list();
        for end in 0..list.len() {
            assert!(Position::default().entries_of(&list[..end]).count() < 3);
        }
        assert_eq!(Position::default().entries_of(&[0xFF; 40]).count(), 0);
    }
}
