//! Frames that wait to be written: encoded by those who append, completed by the writer.

use std::io::IoSlice;

use bytes::Bytes;

use super::disk::PAGE_BYTES;
use super::frame::{self, ALIGN, LaneRef, Parts};

/// Payloads from this size on are written by reference; smaller ones are copied.
const BY_REFERENCE_BYTES_MIN: usize = 16 * 1024;

const ZEROS: [u8; PAGE_BYTES] = [0; PAGE_BYTES];

/// One frame of a batch.
#[derive(Debug)]
pub struct Pending {
    /// Its number.
    pub seq: u64,
    /// Bytes of the message, as quotas count them; 0: not a message.
    pub message_bytes: u32,
    lanes: u16,
    at: usize,
    front_bytes: usize,
    payload: Option<Bytes>,
}

impl Pending {
    /// Bytes of the whole frame.
    #[must_use]
    pub fn frame_bytes(&self) -> usize {
        let payload = self.payload.as_ref().map_or(0, Bytes::len);
        (self.front_bytes + payload).next_multiple_of(ALIGN)
    }
}

/// Frames in the order of their seqs.
#[derive(Debug, Default)]
pub struct Batch {
    buf: Vec<u8>,
    frames: Vec<Pending>,
    bytes: usize,
}

impl Batch {
    /// Bytes of all frames.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Its frames.
    #[must_use]
    pub fn frames(&self) -> &[Pending] {
        &self.frames
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Empties it; the memory stays for the next batch, unless it is much.
    pub fn clear(&mut self) {
        self.buf.clear();
        if self.buf.capacity() > 4 * 1024 * 1024 {
            self.buf = Vec::new();
        }
        self.frames.clear();
        self.bytes = 0;
    }

    /// Adds a frame whose body has this checksum. `payload` are the bytes of `parts.payload`.
    pub fn push(
        &mut self,
        seq: u64,
        parts: &Parts<'_>,
        body_crc: u32,
        payload: Option<&Bytes>,
        message_bytes: u32,
    ) {
        let at = self.buf.len();
        parts.encode_front(seq, body_crc, &mut self.buf);
        let payload = payload.filter(|payload| payload.len() >= BY_REFERENCE_BYTES_MIN);
        if payload.is_none() {
            self.buf.extend_from_slice(parts.payload);
        }
        let front_bytes = self.buf.len() - at;
        self.buf.resize(self.buf.len().next_multiple_of(ALIGN), 0);
        let pending = Pending {
            seq,
            message_bytes,
            lanes: parts.lanes.len() as u16,
            at,
            front_bytes,
            payload: payload.cloned(),
        };
        self.bytes += pending.frame_bytes();
        self.frames.push(pending);
    }

    /// Completes the headers of some frames for the segment that they go to.
    pub fn seal(&mut self, some: std::ops::Range<usize>, salt: u32, durable_seq: u64) {
        for pending in self.frames.get(some).unwrap_or_default() {
            if let Some(frame) = self.buf.get_mut(pending.at..) {
                frame::seal(frame, salt, durable_seq);
            }
        }
    }

    /// The lanes of a frame.
    pub fn lanes(&self, pending: &Pending) -> impl Iterator<Item = LaneRef> + use<'_> {
        let frame = self.buf.get(pending.at..).unwrap_or_default();
        frame::lanes(frame, pending.lanes)
    }

    /// The bytes of some frames, with `before` in front and zeros up to a whole page behind.
    #[must_use]
    pub fn slices<'a>(
        &'a self,
        some: std::ops::Range<usize>,
        before: &'a [u8],
    ) -> Vec<IoSlice<'a>> {
        let mut slices = vec![IoSlice::new(before)];
        let mut add = |bytes: &'a [u8]| {
            if !bytes.is_empty() {
                slices.push(IoSlice::new(bytes));
            }
        };
        let some = self.frames.get(some).unwrap_or_default();
        let mut from = some.first().map_or(0, |first| first.at);
        let mut to = from;
        for pending in some {
            to = pending.at + pending.front_bytes;
            let Some(payload) = &pending.payload else {
                to = to.next_multiple_of(ALIGN);
                continue;
            };
            add(self.buf.get(from..to).unwrap_or_default());
            add(payload);
            let padding = pending.frame_bytes() - pending.front_bytes - payload.len();
            add(ZEROS.get(..padding).unwrap_or_default());
            to = to.next_multiple_of(ALIGN);
            from = to;
        }
        add(self.buf.get(from..to).unwrap_or_default());
        let total: usize = slices.iter().map(|slice| slice.len()).sum();
        let rest = total.next_multiple_of(PAGE_BYTES) - total;
        slices.push(IoSlice::new(ZEROS.get(..rest).unwrap_or_default()));
        slices
    }
}

/// The last `count` bytes of `slices`, of which the last `skip` do not count.
#[must_use]
pub fn last_bytes(slices: &[IoSlice<'_>], count: usize, skip: usize) -> Vec<u8> {
    let total: usize = slices.iter().map(|slice| slice.len()).sum();
    let end = total.saturating_sub(skip);
    let start = end.saturating_sub(count);
    let mut at = 0;
    let mut bytes = Vec::with_capacity(count);
    for slice in slices {
        let from = start.max(at) - at;
        let to = end.min(at + slice.len()).saturating_sub(at);
        bytes.extend_from_slice(slice.get(from..to).unwrap_or_default());
        at += slice.len();
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::super::frame::{Header, Kind};
    use super::*;

    #[test]
    fn slices_hold_all_frames_in_order_and_whole_pages() {
        let mut batch = Batch::default();
        let sizes = [
            3,
            100,
            BY_REFERENCE_BYTES_MIN,
            5000,
            BY_REFERENCE_BYTES_MIN + 3,
            0,
        ];
        for (n, size) in sizes.into_iter().enumerate() {
            let payload = Bytes::from(vec![n as u8; size]);
            let parts = Parts {
                kind: Kind::Data,
                time_ms: 1,
                lanes: &[LaneRef {
                    lane: n as u32,
                    expires_s: 0,
                }],
                topic: b"t",
                properties: b"",
                payload: &payload,
            };
            batch.push(n as u64, &parts, parts.body_crc(), Some(&payload), 1);
        }
        for some in [0..6, 0..2, 2..3, 3..6, 5..6] {
            batch.seal(some.clone(), 9, 0);
            let before = [7; 40];
            let slices = batch.slices(some.clone(), &before);
            let bytes: Vec<u8> = slices.iter().flat_map(|slice| slice.to_vec()).collect();
            assert_eq!(bytes.len() % PAGE_BYTES, 0);
            let mut at = before.len();
            for n in some {
                let frame = &bytes[at..];
                let header = Header::read(frame, 9).unwrap();
                assert_eq!(header.seq, n as u64);
                let body = header.body(frame).unwrap();
                assert_eq!(body.payload, vec![n as u8; sizes[n]]);
                assert_eq!(header.frame_bytes(), batch.frames()[n].frame_bytes());
                at += header.frame_bytes();
            }
            assert!(bytes[at..].iter().all(|byte| *byte == 0));
            let skip = bytes.len() - at;
            assert_eq!(last_bytes(&slices, 50, skip), &bytes[at - 50..at]);
        }
    }
}
