//! Files of the small state to begin with.

use std::io::IoSlice;
use std::sync::Arc;

use arbitrary::Arbitrary;
use edgehub::store::disk::Disk;
use edgehub::store::frame::{HEADER_BYTES, LANE_BYTES, SYNC_WORD, read_u16, read_u32};
use edgehub::store::state::format::{self, Chain, Entry};

use super::edits::STORE_ID;
use super::sim_disk::{Faults, SimDisk};

/// One file of the state.
#[derive(Debug, Arbitrary)]
pub enum StateFile {
    /// Any bytes.
    Raw(Vec<u8>),
    /// Entries, and what is changed afterwards.
    Written {
        snapshot: Vec<(u8, Vec<u8>)>,
        journal: Vec<(u8, Option<Vec<u8>>)>,
        has_mark: bool,
        more_keys: i8,
        changes: Vec<(u16, u8)>,
        reseals: bool,
        cut: Option<u16>,
    },
}

impl StateFile {
    /// Its bytes, with keys of this prefix.
    pub fn bytes(&self, generation: u64, prefix: &str) -> Vec<u8> {
        let (snapshot, journal, changes) = match self {
            Self::Raw(bytes) => return bytes.clone(),
            Self::Written {
                snapshot,
                journal,
                changes,
                ..
            } => (snapshot, journal, changes),
        };
        let Self::Written {
            has_mark,
            more_keys,
            reseals,
            cut,
            ..
        } = self
        else {
            return Vec::new();
        };
        let keys = (snapshot.len() as u64).saturating_add_signed(i64::from(*more_keys));
        let mut bytes = format::header_page(STORE_ID, generation, keys);
        let salt = format::salt_of(STORE_ID, generation);
        let mut chain = Chain::new(salt);
        for (key, value) in snapshot {
            let key = format!("{prefix}{key}");
            chain.push(Entry::Set(&key, value), &mut bytes);
        }
        if *has_mark {
            chain.acked = chain.seq;
            chain.push(Entry::Mark, &mut bytes);
        }
        for (key, value) in journal {
            let key = format!("{prefix}{key}");
            bytes.resize(bytes.len().next_multiple_of(4096), 0);
            chain.acked = chain.seq;
            chain.push(Entry::of(&key, value.as_deref()), &mut bytes);
        }
        for (at, byte) in changes {
            let at = usize::from(*at) % bytes.len();
            bytes[at] ^= byte;
        }
        if *reseals {
            reseal(&mut bytes, salt);
        }
        if let Some(cut) = cut {
            bytes.truncate(usize::from(*cut));
        }
        bytes
    }
}

/// Makes all checksums right that are not.
fn reseal(bytes: &mut [u8], salt: u32) {
    let crc = crc32c::crc32c(&bytes[..4092]);
    bytes[4092..4096].copy_from_slice(&crc.to_le_bytes());
    for at in (4096..bytes.len()).step_by(8) {
        let frame = &mut bytes[at..];
        if read_u32(frame, 0) != Some(SYNC_WORD) || frame.len() < HEADER_BYTES {
            continue;
        }
        let body_at = HEADER_BYTES + usize::from(read_u16(frame, 34).unwrap_or(0)) * LANE_BYTES;
        let body_end = body_at + read_u32(frame, 16).unwrap_or(0) as usize;
        if let Some(body) = frame.get(body_at..body_end) {
            let crc = crc32c::crc32c(body);
            frame[20..24].copy_from_slice(&crc.to_le_bytes());
        }
        if let Some(checked) = frame.get(8..body_at) {
            let crc = crc32c::crc32c_append(salt, checked);
            frame[4..8].copy_from_slice(&crc.to_le_bytes());
        }
    }
}

/// A disk with these generations, durably.
pub fn disk_of(files: &[(u64, StateFile)], prefix: &str) -> Arc<SimDisk> {
    let disk = SimDisk::new(1, Faults::default());
    disk.create_dir(format::DIR).unwrap();
    for (generation, file) in files {
        let bytes = file.bytes(*generation, prefix);
        let created = disk.create(&format::path_of(*generation)).unwrap();
        created.write_at(&[IoSlice::new(&bytes)], 0).unwrap();
    }
    let all = disk.snapshot();
    disk.restore(&all);
    disk
}
