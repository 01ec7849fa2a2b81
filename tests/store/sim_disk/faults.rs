//! What may go wrong on the simulated disk, and the dice that decide.

use std::io;
use std::ops::BitOr;

/// A small seeded source of numbers (SplitMix64).
#[derive(Debug, Clone)]
pub struct Rng(u64);

impl Rng {
    /// The numbers of this seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `end`; 0 where `end` is 0.
    pub fn below(&mut self, end: u64) -> u64 {
        let wide = u128::from(self.next()) * u128::from(end);
        u64::try_from(wide >> 64).unwrap_or(0)
    }

    /// Whether something happens that happens `ppm` times in a million; 0 draws no number.
    pub fn happens(&mut self, ppm: u32) -> bool {
        ppm > 0 && self.below(1_000_000) < u64::from(ppm)
    }

    /// Heads or tails.
    pub fn coin(&mut self) -> bool {
        self.next() >> 63 == 1
    }

    /// Random bytes.
    pub fn fill(&mut self, bytes: &mut [u8]) {
        for part in bytes.chunks_mut(8) {
            let number = self.next().to_le_bytes();
            part.copy_from_slice(&number[..part.len()]);
        }
    }

    /// How many of `all` survive, in order: often none or all, else any number.
    pub fn prefix(&mut self, all: usize) -> usize {
        match self.below(4) {
            0 => 0,
            1 => all,
            _ => usize::try_from(self.below(all as u64 + 1)).unwrap_or(all),
        }
    }
}

/// A set of kinds of mutating calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Calls(u16);

impl Calls {
    /// `DiskFile::write_at`.
    pub const WRITE: Self = Self(1);
    /// `DiskFile::sync_data`.
    pub const SYNC_DATA: Self = Self(1 << 1);
    /// `Disk::sync_dir`.
    pub const SYNC_DIR: Self = Self(1 << 2);
    /// `Disk::rename`.
    pub const RENAME: Self = Self(1 << 3);
    /// `Disk::remove`.
    pub const REMOVE: Self = Self(1 << 4);
    /// `Disk::create`.
    pub const CREATE: Self = Self(1 << 5);
    /// `Disk::create_dir`.
    pub const CREATE_DIR: Self = Self(1 << 6);
    /// `DiskFile::allocate`.
    pub const ALLOCATE: Self = Self(1 << 7);
    /// `DiskFile::set_len`.
    pub const SET_LEN: Self = Self(1 << 8);
    /// All of them.
    pub const ALL: Self = Self((1 << 9) - 1);

    /// Whether a kind is in the set.
    pub fn contains(self, kind: Self) -> bool {
        self.0 & kind.0 == kind.0
    }
}

impl BitOr for Calls {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// How an injected fault shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultKind {
    /// `EIO`.
    Io,
    /// `ENOSPC`.
    NoSpace,
}

impl FaultKind {
    /// What the caller gets.
    pub fn error(self) -> io::Error {
        io::Error::from_raw_os_error(match self {
            Self::Io => 5,
            Self::NoSpace => 28,
        })
    }
}

/// How a life of the disk ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CrashMode {
    /// The process dies; what it wrote stays in the page cache.
    Kill,
    /// The power is cut; what was not synced is kept or lost, sector by sector.
    Power {
        /// Un-synced sectors, and their neighbours in the same page, may turn into garbage.
        garbage: bool,
    },
}

/// What goes wrong. Calls are counted from when this is set; call 0 is the next one.
#[derive(Debug, Clone)]
pub struct Faults {
    /// This call, counted among those of `fail_calls`, fails.
    pub fail_call: Option<(u64, FaultKind)>,
    /// So many of the `fail_calls` fail in a row.
    pub fail_count: u64,
    /// The kinds of calls that `fail_call` counts and fails.
    pub fail_calls: Calls,
    /// From this `read_at` on, so many fail with `EIO`.
    pub fail_reads: Option<(u64, u64)>,
    /// The power is cut during this mutating call, whatever its kind.
    pub crash_at: Option<u64>,
    /// Writes in a million that land in other pages of the file instead.
    pub misdirect_ppm: u32,
    /// Writes in a million that land in other pages of the file as well.
    pub duplicate_ppm: u32,
    /// What all allocated pages may take together.
    pub capacity_bytes: u64,
}

impl Default for Faults {
    fn default() -> Self {
        Self {
            fail_call: None,
            fail_count: 1,
            fail_calls: Calls::ALL,
            fail_reads: None,
            crash_at: None,
            misdirect_ppm: 0,
            duplicate_ppm: 0,
            capacity_bytes: 1 << 40,
        }
    }
}

/// What becomes of a mutating call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Done,
    Fails(FaultKind),
    /// The power goes during the call.
    Cut,
}

impl Verdict {
    pub(super) fn result(self) -> io::Result<()> {
        match self {
            Self::Done => Ok(()),
            Self::Fails(kind) => Err(kind.error()),
            Self::Cut => Err(power_is_off()),
        }
    }

    /// Whether a call that does all or nothing does it: a cut one may have.
    pub(super) fn applies(self, rng: &mut Rng) -> bool {
        match self {
            Self::Done => true,
            Self::Fails(_) => false,
            Self::Cut => rng.coin(),
        }
    }
}

pub(super) fn power_is_off() -> io::Error {
    io::Error::other("the power is off")
}

impl Faults {
    /// Counts a mutating call and says what becomes of it.
    pub(super) fn judge(&mut self, kind: Calls) -> Verdict {
        if let Some(left) = &mut self.crash_at {
            if *left == 0 {
                self.crash_at = None;
                return Verdict::Cut;
            }
            *left -= 1;
        }
        match &mut self.fail_call {
            Some((left, _)) if *left > 0 && self.fail_calls.contains(kind) => {
                *left -= 1;
                Verdict::Done
            }
            Some((_, fault)) if self.fail_count > 0 && self.fail_calls.contains(kind) => {
                self.fail_count -= 1;
                Verdict::Fails(*fault)
            }
            _ => Verdict::Done,
        }
    }

    /// Counts a read and says whether it fails.
    pub(super) fn judge_read(&mut self) -> bool {
        match &mut self.fail_reads {
            Some((left, _)) if *left > 0 => {
                *left -= 1;
                false
            }
            Some((_, count)) if *count > 0 => {
                *count -= 1;
                true
            }
            _ => false,
        }
    }
}
