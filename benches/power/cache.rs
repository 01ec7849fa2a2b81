//! A disk with a volatile write cache, in memory: what was flushed is safe, what was not is up to
//! chance when the power goes.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::time::Instant;

use crate::rng::Rng;

pub const SECTOR_BYTES: usize = 512;
/// A page of the kernel and of the file system, in sectors.
pub const PAGE_SECTORS: u64 = 8;
/// Contents of one sector that the cache still knows; older ones are forgotten.
const VERSIONS_MAX: usize = 4;

type Sector = [u8; SECTOR_BYTES];

/// What became of the sectors that were in the cache.
#[derive(Debug, Clone, Copy, Default)]
pub struct Fate {
    pub kept: u64,
    pub lost: u64,
    /// Sectors that hold something that nobody wrote.
    pub garbage: u64,
}

pub struct CachedDisk {
    durable: Vec<u8>,
    /// By number of the sector: what was written since the last flush, the newest last.
    cached: BTreeMap<u64, Vec<Sector>>,
    cut_at: Option<Instant>,
    pub writes: u64,
    pub flushes: u64,
}

impl CachedDisk {
    pub fn new(bytes: usize) -> Self {
        Self {
            durable: vec![0; bytes],
            cached: BTreeMap::new(),
            cut_at: None,
            writes: 0,
            flushes: 0,
        }
    }

    pub fn bytes(&self) -> usize {
        self.durable.len()
    }

    pub fn is_on(&self) -> bool {
        self.cut_at.is_none()
    }

    pub fn cut_at(&self) -> Option<Instant> {
        self.cut_at
    }

    /// How many sectors are not safe.
    pub fn unflushed(&self) -> u64 {
        self.cached.len() as u64
    }

    /// What a reader sees: the cache above the disk. Also without power, for a kernel that is
    /// about to be gone.
    pub fn read(&self, offset: u64, bytes: usize) -> Vec<u8> {
        let start = (offset as usize).min(self.durable.len());
        let end = (start + bytes).min(self.durable.len());
        let mut data = self.durable[start..end].to_vec();
        let sectors = start as u64 / SECTOR_BYTES as u64..(end as u64).div_ceil(512);
        for (sector, versions) in self.cached.range(sectors) {
            let Some(newest) = versions.last() else {
                continue;
            };
            let at = *sector as usize * SECTOR_BYTES;
            let (from, to) = (at.max(start), (at + SECTOR_BYTES).min(end));
            data[from - start..to - start].copy_from_slice(&newest[from - at..to - at]);
        }
        data
    }

    /// Takes whole sectors into the cache; false without power, and for anything else.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> bool {
        let end = offset as usize + data.len();
        let is_whole = (offset as usize | data.len()).is_multiple_of(SECTOR_BYTES);
        if !self.is_on() || !is_whole || end > self.durable.len() {
            return false;
        }
        let first = offset / SECTOR_BYTES as u64;
        for (sector, content) in (first..).zip(data.chunks_exact(SECTOR_BYTES)) {
            let versions = self.cached.entry(sector).or_default();
            if versions.len() == VERSIONS_MAX {
                versions.remove(0);
            }
            let mut owned = [0; SECTOR_BYTES];
            owned.copy_from_slice(content);
            versions.push(owned);
        }
        self.writes += 1;
        true
    }

    /// Makes everything safe; false without power.
    pub fn flush(&mut self) -> bool {
        if !self.is_on() {
            return false;
        }
        for (sector, versions) in std::mem::take(&mut self.cached) {
            if let Some(newest) = versions.last() {
                put(&mut self.durable, sector, &newest[..]);
            }
        }
        self.flushes += 1;
        true
    }

    /// The power goes: from now on nothing is written any more.
    pub fn cut(&mut self) {
        self.cut_at.get_or_insert_with(Instant::now);
    }

    /// Decides what the disk holds when the power is back. Each sector that was not flushed is
    /// kept or lost by itself (reordering, tearing), sometimes in an earlier version. A page in
    /// flight, inside of `garbage` (ranges of sectors), may come back as noise in part, with the
    /// sectors of it that had been safe.
    pub fn restore(&mut self, rng: &mut Rng, garbage: &[Range<u64>]) -> Fate {
        let cached = std::mem::take(&mut self.cached);
        let kept_percent = rng.one_of(&[0, 10, 50, 50, 90, 100]);
        let mut fate = Fate::default();
        let mut pages = BTreeSet::new();
        for (sector, versions) in &cached {
            pages.insert(sector / PAGE_SECTORS);
            if !rng.percent(kept_percent) {
                fate.lost += 1;
                continue;
            }
            fate.kept += 1;
            let older = rng.percent(25);
            let version = match versions.len() {
                count if older => rng.below(count as u64) as usize,
                count => count - 1,
            };
            put(&mut self.durable, *sector, &versions[version][..]);
        }
        let hit_percent = rng.one_of(&[5, 50, 100]);
        for page in pages {
            let first = page * PAGE_SECTORS;
            let inside =
                |range: &Range<u64>| range.start <= first && first + PAGE_SECTORS <= range.end;
            if garbage.iter().any(inside) && rng.percent(hit_percent) {
                fate.garbage += self.spoil(first, rng);
            }
        }
        self.cut_at = None;
        fate
    }

    /// Noise into about half of the sectors of a page.
    fn spoil(&mut self, first: u64, rng: &mut Rng) -> u64 {
        let mut spoiled = 0;
        for sector in first..first + PAGE_SECTORS {
            if rng.percent(50) {
                let mut noise = [0; SECTOR_BYTES];
                rng.fill(&mut noise);
                put(&mut self.durable, sector, &noise);
                spoiled += 1;
            }
        }
        spoiled
    }
}

fn put(durable: &mut [u8], sector: u64, content: &[u8]) {
    let at = sector as usize * SECTOR_BYTES;
    durable[at..at + SECTOR_BYTES].copy_from_slice(content);
}
