//! Reads the frames of a segment one after the other, past whatever is damaged.

use std::io;

use super::disk::{DiskFile, PAGE_BYTES};
use super::frame::{ALIGN, HEADER_BYTES, HEADER_BYTES_MAX, Header, NoFrame, SYNC_WORD};

/// Bytes read at a time.
const CHUNK_BYTES: usize = 256 * 1024;

/// What was found.
#[derive(Debug)]
pub enum Found<'a> {
    /// A frame.
    Frame {
        /// Where it begins.
        offset: u64,
        /// Its header.
        header: Header,
        /// All of its bytes.
        bytes: &'a [u8],
        /// Whether the body's checksum is right.
        is_sound: bool,
    },
    /// No frames from here up to the next one found.
    Damage {
        /// Where it begins.
        from: u64,
    },
}

/// A pass over a stretch of a file.
pub struct Scanner<'a> {
    file: &'a dyn DiskFile,
    salt: u32,
    offset: u64,
    end: u64,
    /// No frame has a lower seq.
    expected_seq: u64,
    /// Frames from here on belong to somebody else.
    seq_end: u64,
    buf: Vec<u8>,
    buf_at: u64,
    pending: Option<(u64, Header)>,
    /// Behind the last frame.
    data_end: u64,
}

impl<'a> Scanner<'a> {
    /// A pass over `from..end`, which begins on a page; frames below `first_seq` or from
    /// `seq_end` on are not ours.
    #[must_use]
    pub fn new(
        file: &'a dyn DiskFile,
        salt: u32,
        (from, end): (u64, u64),
        (first_seq, seq_end): (u64, u64),
    ) -> Self {
        Self {
            file,
            salt,
            offset: from,
            end,
            expected_seq: first_seq,
            seq_end,
            buf: Vec::new(),
            buf_at: from,
            pending: None,
            data_end: from,
        }
    }

    /// Behind the last frame found so far.
    #[must_use]
    pub fn data_end(&self) -> u64 {
        self.data_end
    }

    /// The next frame, or the damage before it; `None` at the end.
    ///
    /// # Errors
    /// Whatever the disk answers. A place that cannot be read counts as damage if others can.
    pub fn next(&mut self) -> io::Result<Option<Found<'_>>> {
        if let Some((offset, header)) = self.pending.take() {
            return self.frame(offset, header).map(Some);
        }
        let from = self.offset;
        if let Some(header) = self.header_at(from)? {
            return self.frame(from, header).map(Some);
        }
        let boundary = from.next_multiple_of(PAGE_BYTES as u64);
        let is_padding = boundary > from && self.is_zero(from, boundary)?;
        if (is_padding || boundary == from)
            && boundary < self.end
            && let Some(header) = self.header_at(boundary)?
        {
            return self.frame(boundary, header).map(Some);
        }
        let Some((offset, header)) = self.resync(from + ALIGN as u64)? else {
            self.offset = self.end;
            return Ok(None);
        };
        self.pending = Some((offset, header));
        Ok(Some(Found::Damage { from }))
    }

    fn frame(&mut self, offset: u64, header: Header) -> io::Result<Found<'_>> {
        let length = header.frame_bytes();
        self.expected_seq = header.seq + 1;
        self.offset = offset + length as u64;
        self.data_end = self.offset;
        let bytes = self.view(offset, length)?;
        let is_sound = header.body(bytes).is_ok();
        Ok(Found::Frame {
            offset,
            header,
            bytes,
            is_sound,
        })
    }

    /// A good header here that may come next.
    fn header_at(&mut self, offset: u64) -> io::Result<Option<Header>> {
        let (salt, end) = (self.salt, self.end);
        let (expected, seq_end) = (self.expected_seq, self.seq_end);
        let mut bytes = self.view(offset, HEADER_BYTES)?;
        let mut read = Header::read(bytes, salt);
        if read == Err(NoFrame::Short) && bytes.len() >= HEADER_BYTES {
            bytes = self.view(offset, HEADER_BYTES_MAX)?;
            read = Header::read(bytes, salt);
        }
        Ok(read.ok().filter(|header| {
            let fits = offset + header.frame_bytes() as u64 <= end;
            fits && header.seq >= expected && header.seq < seq_end
        }))
    }

    /// The next good header from `from` on, in steps of 8 bytes.
    fn resync(&mut self, from: u64) -> io::Result<Option<(u64, Header)>> {
        let word = SYNC_WORD.to_le_bytes();
        let mut at = from;
        while at < self.end {
            let buf_at = at;
            let view = self.view(at, CHUNK_BYTES)?;
            if view.len() < HEADER_BYTES {
                return Ok(None);
            }
            let mut candidates = memchr::memmem::find_iter(view, &word)
                .filter(|place| place % ALIGN == 0)
                .map(|place| buf_at + place as u64)
                .collect::<Vec<_>>()
                .into_iter();
            let next = at + (view.len() - HEADER_BYTES + ALIGN) as u64 / 8 * 8;
            for candidate in candidates.by_ref() {
                if let Some(header) = self.header_at(candidate)? {
                    return Ok(Some((candidate, header)));
                }
            }
            at = next;
        }
        Ok(None)
    }

    fn is_zero(&mut self, from: u64, to: u64) -> io::Result<bool> {
        let bytes = self.view(from, (to - from) as usize)?;
        Ok(bytes.iter().all(|byte| *byte == 0))
    }

    /// `length` bytes at `offset`, fewer at the end.
    fn view(&mut self, offset: u64, length: usize) -> io::Result<&[u8]> {
        let length = length.min(self.end.saturating_sub(offset) as usize);
        let buf_end = self.buf_at + self.buf.len() as u64;
        if offset < self.buf_at || offset + length as u64 > buf_end {
            self.buf.resize(length.max(CHUNK_BYTES), 0);
            self.buf_at = offset;
            let read = read_or_zero(self.file, &mut self.buf, offset)?;
            self.buf.truncate(read);
        }
        let start = (offset - self.buf_at) as usize;
        let end = (start + length).min(self.buf.len());
        Ok(self.buf.get(start..end).unwrap_or_default())
    }
}

/// Reads what can be read; pages that fail twice count as zeros, so the damage stays theirs.
fn read_or_zero(file: &dyn DiskFile, buf: &mut [u8], offset: u64) -> io::Result<usize> {
    if let Ok(read) = file.read_at(buf, offset) {
        return Ok(read);
    }
    let size = file.size()?;
    let length = (buf.len() as u64).min(size.saturating_sub(offset)) as usize;
    let mut done = 0;
    for page in buf.chunks_mut(PAGE_BYTES) {
        if done >= length {
            break;
        }
        if file.read_at(page, offset + done as u64).is_err() {
            page.fill(0);
        }
        done += page.len();
    }
    Ok(length)
}
