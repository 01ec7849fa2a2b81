//! The bytes of a state file: its header page, and what a frame says about a key.

use crate::store::disk::PAGE_BYTES;
use crate::store::frame::{self, Body, Header, Kind, LaneRef, Parts, read_u32, read_u64};

/// The folder, below the store's root.
pub const DIR: &str = "state";
/// A new generation until it is complete.
pub const UNFINISHED: &str = "state/new";
/// The last damaged generation, kept for support.
pub const DAMAGED: &str = "state/damaged";

/// Bytes of a frame without key and value.
pub const FRONT_BYTES: usize = frame::HEADER_BYTES + LANES as usize * frame::LANE_BYTES;
/// Lanes of every frame: the hash of its key, and that of the key of the frame before it.
pub const LANES: u16 = 2;
/// The hash where there is no frame before.
pub const NO_KEY: u64 = 0;
/// The hash of the empty key, which marks have.
pub const MARK: u64 = FNV_OFFSET;

const MAGIC: &[u8; 8] = b"EDGEHUBS";
const VERSION: u32 = 1;
const CHECKSUM_AT: usize = PAGE_BYTES - 4;
const REMOVED: &[u8] = b"-";
const FNV_OFFSET: u64 = 0xCBF2_9CE4_8422_2325;
const FNV_PRIME: u64 = 0x0000_0100_0000_01B3;

/// The path of a generation.
#[must_use]
pub fn path_of(generation: u64) -> String {
    format!("{DIR}/{generation:016x}.log")
}

/// The generation that a file's name says.
#[must_use]
pub fn generation_of(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".log").filter(|name| name.len() == 16)?;
    let generation = u64::from_str_radix(digits, 16).ok()?;
    // Numbers that no count reaches are none, and a name is ours only as we write it.
    (generation < 1 << 62 && path_of(generation).ends_with(name)).then_some(generation)
}

/// The salt of a generation's frames. No two generations of a store have the same for four
/// thousand million generations.
#[must_use]
pub fn salt_of(store_id: u64, generation: u64) -> u32 {
    let salt = crc32c::crc32c(b"edgehub state");
    let salt = crc32c::crc32c_append(salt, &store_id.to_le_bytes());
    crc32c::crc32c_append(salt, &generation.to_le_bytes())
}

/// The hash of a key (FNV-1a).
#[must_use]
pub fn key_hash(key: &[u8]) -> u64 {
    key.iter().fold(FNV_OFFSET, |hash, byte| step(hash, *byte))
}

fn step(hash: u64, byte: u8) -> u64 {
    (hash ^ u64::from(byte)).wrapping_mul(FNV_PRIME)
}

/// The key with this hash, if it begins `bytes`.
#[must_use]
pub fn key_with(hash: u64, bytes: &[u8]) -> Option<&str> {
    let mut running = FNV_OFFSET;
    let longest = bytes.iter().take(usize::from(u16::MAX));
    let last = longest.enumerate().find(|(_, byte)| {
        running = step(running, **byte);
        running == hash
    });
    str::from_utf8(bytes.get(..=last?.0)?).ok()
}

/// The header page of a generation whose snapshot has `keys` keys.
#[must_use]
pub fn header_page(store_id: u64, generation: u64, keys: u64) -> Vec<u8> {
    let mut page = Vec::with_capacity(PAGE_BYTES);
    page.extend_from_slice(MAGIC);
    page.extend_from_slice(&VERSION.to_le_bytes());
    page.extend_from_slice(&salt_of(store_id, generation).to_le_bytes());
    page.extend_from_slice(&generation.to_le_bytes());
    page.extend_from_slice(&store_id.to_le_bytes());
    page.extend_from_slice(&keys.to_le_bytes());
    page.resize(CHECKSUM_AT, 0);
    let checksum = crc32c::crc32c(&page);
    page.extend_from_slice(&checksum.to_le_bytes());
    page
}

/// How many keys the snapshot has, from the header page at the beginning of `bytes`.
///
/// # Errors
/// What is wrong with it.
pub fn read_page(bytes: &[u8], store_id: u64, generation: u64) -> Result<u64, &'static str> {
    let page = bytes.get(..CHECKSUM_AT).ok_or("the header is cut off")?;
    if read_u32(bytes, CHECKSUM_AT) != Some(crc32c::crc32c(page)) || !page.starts_with(MAGIC) {
        return Err("the header is damaged");
    }
    if read_u32(page, 8) != Some(VERSION) {
        return Err("another version of the hub has written it");
    }
    if read_u64(page, 16) != Some(generation) || read_u64(page, 24) != Some(store_id) {
        return Err("it belongs to another store or was renamed");
    }
    read_u64(page, 32).ok_or("the header is cut off")
}

/// The version of a sound header page at the beginning of `bytes` that a newer hub has written.
#[must_use]
pub fn newer_version(bytes: &[u8]) -> Option<u32> {
    let page = bytes.get(..CHECKSUM_AT)?;
    let is_sound = read_u32(bytes, CHECKSUM_AT) == Some(crc32c::crc32c(page));
    let version = read_u32(page, 8).filter(|version| *version > VERSION)?;
    (is_sound && page.starts_with(MAGIC)).then_some(version)
}

/// What a frame says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry<'a> {
    /// The key has this value now.
    Set(&'a str, &'a [u8]),
    /// The key is gone.
    Remove(&'a str),
    /// All before this is complete: the end of the snapshot, and of a file that was closed.
    Mark,
}

impl<'a> Entry<'a> {
    /// What a value, or none, makes of a key.
    #[must_use]
    pub fn of(key: &'a str, value: Option<&'a [u8]>) -> Self {
        value.map_or(Self::Remove(key), |value| Self::Set(key, value))
    }

    /// Reads a frame's body.
    #[must_use]
    pub fn read(body: &Body<'a>) -> Option<Self> {
        let key = str::from_utf8(body.topic).ok()?;
        match (key, body.properties) {
            ("", b"") => Some(Self::Mark),
            ("", _) => None,
            (key, b"") => Some(Self::Set(key, body.payload)),
            (key, REMOVED) => Some(Self::Remove(key)),
            _ => None,
        }
    }

    fn fields(&self) -> (&'a [u8], &'static [u8], &'a [u8]) {
        match *self {
            Self::Set(key, value) => (key.as_bytes(), b"", value),
            Self::Remove(key) => (key.as_bytes(), REMOVED, b""),
            Self::Mark => (b"", b"", b""),
        }
    }
}

/// Where a file's frames have come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chain {
    /// The file's salt.
    pub salt: u32,
    /// The last frame's number; the first frame of a file has 1.
    pub seq: u64,
    /// The hash of the last frame's key.
    pub hash: u64,
    /// Up to this number, frames were acknowledged.
    pub acked: u64,
}

impl Chain {
    /// Before the first frame of a file.
    #[must_use]
    pub fn new(salt: u32) -> Self {
        Self {
            salt,
            seq: 0,
            hash: NO_KEY,
            acked: 0,
        }
    }

    /// Appends the next frame.
    pub fn push(&mut self, entry: Entry<'_>, out: &mut Vec<u8>) {
        let (topic, properties, payload) = entry.fields();
        let hash = key_hash(topic);
        let parts = Parts {
            kind: Kind::State,
            time_ms: 0,
            lanes: &[lane_of(hash), lane_of(self.hash)],
            topic,
            properties,
            payload,
        };
        self.seq += 1;
        self.hash = hash;
        let at = out.len();
        parts.encode(self.seq, out);
        frame::seal(out.get_mut(at..).unwrap_or_default(), self.salt, self.acked);
    }
}

/// The bytes of the frame that sets a key.
#[must_use]
pub fn frame_bytes(key: &str, value: &[u8]) -> u64 {
    (FRONT_BYTES + key.len() + value.len()).next_multiple_of(frame::ALIGN) as u64
}

fn lane_of(hash: u64) -> LaneRef {
    LaneRef {
        lane: (hash >> 32) as u32,
        expires_s: hash as u32,
    }
}

fn hash_of(lane: LaneRef) -> u64 {
    u64::from(lane.lane) << 32 | u64::from(lane.expires_s)
}

/// The hashes of the frame that begins `bytes`: its own, and that of the frame before it.
#[must_use]
pub fn hashes(header: &Header, bytes: &[u8]) -> Option<(u64, u64)> {
    let mut lanes = header.lanes(bytes);
    Some((hash_of(lanes.next()?), hash_of(lanes.next()?)))
}
