//! The frame: one record of the log, with one checksum for its header and one for its body.
//!
//! ```text
//!  0 u32 sync word      4 u32 header checksum (8..48 and the lanes, seeded with the salt)
//!  8 u64 seq           16 u32 body bytes    20 u32 body checksum
//! 24 u64 trusted ms    32 u16 topic bytes   34 u16 lanes  36 u8 kind  37 u8 flags  38 u16 0
//! 40 u32 property bytes                     44 u32 seq less the durable seq when written
//! 48 lanes × { u32 lane, u32 expiry in seconds since 1970, 0 never }
//!    topic | properties | payload | zeros up to a multiple of 8
//! ```
//!
//! Little endian; checksums are CRC-32C. With a damaged body the header still says how long the
//! frame is, whose it was and which one: exactly one message is lost. The next frame begins right
//! behind, or on the next page boundary.

/// Begins every frame.
pub const SYNC_WORD: u32 = 0x4D52_4649;
/// Bytes of a header without lanes.
pub const HEADER_BYTES: usize = 48;
/// Bytes per lane in the header.
pub const LANE_BYTES: usize = 8;
/// The longest header.
pub const HEADER_BYTES_MAX: usize = HEADER_BYTES + LANES_MAX * LANE_BYTES;
/// Frames begin at multiples of this.
pub const ALIGN: usize = 8;
/// Lanes that one frame lists; a wider fan-out takes several frames.
pub const LANES_MAX: usize = 4096;
/// No seq and no segment's id ever comes here; what claims to is none, whatever its checksum.
pub const COUNT_END: u64 = 1 << 62;

/// What a frame holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// A message.
    Data = 1,
    /// What the log notes for itself, as JSON.
    Control = 2,
    /// A key and its value (`state`).
    State = 3,
}

impl Kind {
    fn read(byte: u8) -> Option<Self> {
        match byte {
            1 => Some(Self::Data),
            2 => Some(Self::Control),
            3 => Some(Self::State),
            _ => None,
        }
    }
}

/// One queue that a message goes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LaneRef {
    /// The lane's number.
    pub lane: u32,
    /// When this copy expires, in seconds since 1970 of the trusted clock; 0: never.
    pub expires_s: u32,
}

/// What is to be written.
#[derive(Debug, Clone, Copy)]
pub struct Parts<'a> {
    /// What it is.
    pub kind: Kind,
    /// Trusted time in milliseconds since 1970.
    pub time_ms: u64,
    /// At most [`LANES_MAX`].
    pub lanes: &'a [LaneRef],
    /// At most 65,535 bytes.
    pub topic: &'a [u8],
    /// Properties.
    pub properties: &'a [u8],
    /// The rest.
    pub payload: &'a [u8],
}

impl Parts<'_> {
    /// Bytes of the whole frame.
    #[must_use]
    pub fn frame_bytes(&self) -> usize {
        let body = self.topic.len() + self.properties.len() + self.payload.len();
        (HEADER_BYTES + self.lanes.len() * LANE_BYTES + body).next_multiple_of(ALIGN)
    }

    /// The checksum of the body.
    #[must_use]
    pub fn body_crc(&self) -> u32 {
        let crc = crc32c::crc32c(self.topic);
        let crc = crc32c::crc32c_append(crc, self.properties);
        crc32c::crc32c_append(crc, self.payload)
    }

    /// Appends header, lanes, topic and properties, but neither payload nor padding. The header
    /// has no checksum until [`seal`].
    pub fn encode_front(&self, seq: u64, body_crc: u32, out: &mut Vec<u8>) {
        let body = self.topic.len() + self.properties.len() + self.payload.len();
        out.extend_from_slice(&SYNC_WORD.to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&seq.to_le_bytes());
        out.extend_from_slice(&(body as u32).to_le_bytes());
        out.extend_from_slice(&body_crc.to_le_bytes());
        out.extend_from_slice(&self.time_ms.to_le_bytes());
        out.extend_from_slice(&(self.topic.len() as u16).to_le_bytes());
        out.extend_from_slice(&(self.lanes.len() as u16).to_le_bytes());
        out.extend_from_slice(&[self.kind as u8, 0, 0, 0]);
        out.extend_from_slice(&(self.properties.len() as u32).to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        for lane in self.lanes {
            out.extend_from_slice(&lane.lane.to_le_bytes());
            out.extend_from_slice(&lane.expires_s.to_le_bytes());
        }
        out.extend_from_slice(self.topic);
        out.extend_from_slice(self.properties);
    }

    /// Appends the whole frame; the header has no checksum until [`seal`].
    pub fn encode(&self, seq: u64, out: &mut Vec<u8>) {
        self.encode_front(seq, self.body_crc(), out);
        out.extend_from_slice(self.payload);
        out.resize(out.len().next_multiple_of(ALIGN), 0);
    }
}

/// Completes the header at the beginning of `frame`: how far the log was durable, and the checksum.
pub fn seal(frame: &mut [u8], salt: u32, durable_seq: u64) {
    let (Some(seq), Some(lanes)) = (read_u64(frame, 8), read_u16(frame, 34)) else {
        debug_assert!(false, "a frame has a header");
        return;
    };
    let delta = u32::try_from(seq.saturating_sub(durable_seq)).unwrap_or(u32::MAX);
    if let Some(field) = frame.get_mut(44..48) {
        field.copy_from_slice(&delta.to_le_bytes());
    }
    let crc = header_crc(frame, lanes, salt).unwrap_or_default();
    if let Some(field) = frame.get_mut(4..8) {
        field.copy_from_slice(&crc.to_le_bytes());
    }
}

fn header_crc(frame: &[u8], lanes: u16, salt: u32) -> Option<u32> {
    let end = HEADER_BYTES + usize::from(lanes) * LANE_BYTES;
    Some(crc32c::crc32c_append(salt, frame.get(8..end)?))
}

/// A frame's header, checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Its number; every frame of the log has its own, without gaps.
    pub seq: u64,
    /// What it is.
    pub kind: Kind,
    /// Trusted time in milliseconds since 1970.
    pub time_ms: u64,
    /// Everything up to this seq was durable when the frame was written.
    pub durable_seq: u64,
    /// How many lanes.
    pub lanes: u16,
    /// Bytes of topic, properties and payload.
    pub body_bytes: u32,
    topic_bytes: u16,
    property_bytes: u32,
    body_crc: u32,
}

/// Why bytes are no frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoFrame {
    /// More bytes are needed to tell.
    Short,
    /// They are not, or no longer.
    Bad,
}

/// A frame's body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Body<'a> {
    /// The topic.
    pub topic: &'a [u8],
    /// The properties.
    pub properties: &'a [u8],
    /// The payload.
    pub payload: &'a [u8],
}

impl Header {
    /// Reads and checks the header at the beginning of `bytes`.
    ///
    /// # Errors
    /// [`NoFrame`].
    pub fn read(bytes: &[u8], salt: u32) -> Result<Self, NoFrame> {
        let fixed = bytes.get(..HEADER_BYTES).ok_or(NoFrame::Short)?;
        if read_u32(fixed, 0) != Some(SYNC_WORD) {
            return Err(NoFrame::Bad);
        }
        let header = Self::fields(fixed).ok_or(NoFrame::Bad)?;
        let lanes = header.lanes;
        if usize::from(lanes) > LANES_MAX || header.seq >= COUNT_END {
            return Err(NoFrame::Bad);
        }
        let crc = header_crc(bytes, lanes, salt).ok_or(NoFrame::Short)?;
        let parts = u64::from(header.topic_bytes) + u64::from(header.property_bytes);
        if read_u32(fixed, 4) != Some(crc) || parts > u64::from(header.body_bytes) {
            return Err(NoFrame::Bad);
        }
        Ok(header)
    }

    fn fields(fixed: &[u8]) -> Option<Self> {
        let seq = read_u64(fixed, 8)?;
        Some(Self {
            seq,
            kind: Kind::read(*fixed.get(36)?)?,
            time_ms: read_u64(fixed, 24)?,
            durable_seq: seq.saturating_sub(u64::from(read_u32(fixed, 44)?)),
            lanes: read_u16(fixed, 34)?,
            body_bytes: read_u32(fixed, 16)?,
            topic_bytes: read_u16(fixed, 32)?,
            property_bytes: read_u32(fixed, 40)?,
            body_crc: read_u32(fixed, 20)?,
        })
    }

    /// Bytes from the beginning of the frame to its body.
    #[must_use]
    pub fn body_at(&self) -> usize {
        HEADER_BYTES + usize::from(self.lanes) * LANE_BYTES
    }

    /// Bytes of properties and payload.
    #[must_use]
    pub fn message_part_bytes(&self) -> u32 {
        self.body_bytes - u32::from(self.topic_bytes)
    }

    /// Bytes of the whole frame.
    #[must_use]
    pub fn frame_bytes(&self) -> usize {
        (self.body_at() + self.body_bytes as usize).next_multiple_of(ALIGN)
    }

    /// The lanes of the frame that begins `bytes`.
    pub fn lanes<'a>(&self, bytes: &'a [u8]) -> impl Iterator<Item = LaneRef> + use<'a> {
        lanes(bytes, self.lanes)
    }

    /// The body of the frame that begins `bytes`, its checksum checked.
    ///
    /// # Errors
    /// [`NoFrame`].
    pub fn body<'a>(&self, bytes: &'a [u8]) -> Result<Body<'a>, NoFrame> {
        let start = self.body_at();
        let body = bytes
            .get(start..start + self.body_bytes as usize)
            .ok_or(NoFrame::Short)?;
        if crc32c::crc32c(body) != self.body_crc {
            return Err(NoFrame::Bad);
        }
        let (topic, rest) = body
            .split_at_checked(usize::from(self.topic_bytes))
            .ok_or(NoFrame::Bad)?;
        let (properties, payload) = rest
            .split_at_checked(self.property_bytes as usize)
            .ok_or(NoFrame::Bad)?;
        Ok(Body {
            topic,
            properties,
            payload,
        })
    }
}

/// So many lanes of the frame that begins `bytes`.
pub fn lanes(bytes: &[u8], count: u16) -> impl Iterator<Item = LaneRef> + use<'_> {
    let end = HEADER_BYTES + usize::from(count) * LANE_BYTES;
    let lanes = bytes.get(HEADER_BYTES..end).unwrap_or_default();
    lanes.chunks_exact(LANE_BYTES).map(|lane| LaneRef {
        lane: read_u32(lane, 0).unwrap_or_default(),
        expires_s: read_u32(lane, 4).unwrap_or_default(),
    })
}

/// The little-endian number at `at`.
#[must_use]
pub fn read_u16(bytes: &[u8], at: usize) -> Option<u16> {
    let field = bytes.get(at..at + 2)?.try_into().ok()?;
    Some(u16::from_le_bytes(field))
}

/// The little-endian number at `at`.
#[must_use]
pub fn read_u32(bytes: &[u8], at: usize) -> Option<u32> {
    let field = bytes.get(at..at + 4)?.try_into().ok()?;
    Some(u32::from_le_bytes(field))
}

/// The little-endian number at `at`.
#[must_use]
pub fn read_u64(bytes: &[u8], at: usize) -> Option<u64> {
    let field = bytes.get(at..at + 8)?.try_into().ok()?;
    Some(u64::from_le_bytes(field))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SALT: u32 = 0x1234_5678;

    fn sample() -> Vec<u8> {
        let parts = Parts {
            kind: Kind::Data,
            time_ms: 1_790_000_000_123,
            lanes: &[
                LaneRef {
                    lane: 0x1234_5670,
                    expires_s: 0,
                },
                LaneRef {
                    lane: 9,
                    expires_s: 77,
                },
            ],
            topic: b"edge-1/a",
            properties: b"x=1",
            payload: b"hello there",
        };
        let mut frame = Vec::new();
        parts.encode(42, &mut frame);
        assert_eq!(frame.len(), parts.frame_bytes());
        seal(&mut frame, SALT, 40);
        frame
    }

    #[test]
    fn a_frame_comes_back_as_it_was_written() {
        let frame = sample();
        let header = Header::read(&frame, SALT).unwrap();
        assert_eq!((header.seq, header.durable_seq), (42, 40));
        assert_eq!(header.frame_bytes(), frame.len());
        let lanes: Vec<_> = header.lanes(&frame).map(|lane| lane.expires_s).collect();
        assert_eq!(lanes, [0, 77]);
        let body = header.body(&frame).unwrap();
        assert_eq!(
            (body.topic, body.properties, body.payload),
            (&b"edge-1/a"[..], &b"x=1"[..], &b"hello there"[..])
        );
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let good = sample();
        let header = Header::read(&good, SALT).unwrap();
        let body_end = header.body_at() + header.body_bytes as usize;
        for bit in 0..body_end * 8 {
            let mut frame = good.clone();
            frame[bit / 8] ^= 1 << (bit % 8);
            let read = Header::read(&frame, SALT).and_then(|header| {
                header.body(&frame)?;
                Ok(header)
            });
            assert!(read.is_err(), "bit {bit}");
            if bit / 8 >= header.body_at() {
                assert_eq!(Header::read(&frame, SALT), Ok(header), "bit {bit}");
            }
        }
    }

    #[test]
    fn a_seq_that_no_count_reaches_is_none() {
        for (seq, good) in [(COUNT_END - 1, true), (COUNT_END, false), (u64::MAX, false)] {
            let mut frame = sample();
            frame[8..16].copy_from_slice(&seq.to_le_bytes());
            seal(&mut frame, SALT, 40);
            assert_eq!(Header::read(&frame, SALT).is_ok(), good, "{seq}");
        }
    }

    #[test]
    fn a_frame_of_another_use_of_the_file_is_none() {
        let frame = sample();
        for salt in [0, 1, SALT ^ 1, !SALT] {
            assert_eq!(Header::read(&frame, salt), Err(NoFrame::Bad));
        }
        for short in 0..frame.len() - 8 {
            let header = Header::read(&frame[..short], SALT);
            let whole = header.and_then(|header| header.body(&frame[..short]).map(|_| ()));
            assert_eq!(whole, Err(NoFrame::Short), "{short} bytes");
        }
    }
}
