//! One file of the simulated disk: what is durable of it, and what is only in the page cache.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

use edgehub::store::disk::PAGE_BYTES;

use super::faults::Rng;

/// What a power cut tears.
pub const SECTOR_BYTES: usize = 512;
const SECTORS: usize = PAGE_BYTES / SECTOR_BYTES;
pub(super) const PAGE: u64 = PAGE_BYTES as u64;
/// Nothing is cut off.
const UNCUT: u64 = u64::MAX;

type Page = [u8; PAGE_BYTES];
type Pages = Arc<BTreeMap<u64, Arc<Page>>>;

/// A length, and how many pages are allocated from the beginning without a gap.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Meta {
    len: u64,
    pages: u64,
}

/// A page in the cache. Bit `n` of a mask stands for sector `n`.
#[derive(Debug, Clone)]
struct Cached {
    bytes: Page,
    /// The sector is read from here.
    present: u8,
    /// The sector is written by the next sync. One that is present and not dirty was dropped by
    /// a sync that failed: no sync will ever write it.
    dirty: u8,
}

/// A file with or without names.
#[derive(Debug, Clone)]
pub(super) struct Inode {
    durable: Pages,
    durable_meta: Meta,
    cache: BTreeMap<u64, Box<Cached>>,
    meta: Meta,
    /// Durable bytes from here on were cut off since the last sync; they read as zeros.
    cut: u64,
    /// The `meta` and `cut` after each change since the last sync.
    history: Vec<(Meta, u64)>,
    /// Allocated pages behind the first `meta.pages`.
    scattered: BTreeSet<u64>,
    /// The most pages that were allocated since the last sync.
    peak: u64,
    /// Open handles.
    pub(super) opens: u64,
    /// Whether it has a name now, durable or not.
    pub(super) linked: bool,
}

impl Default for Inode {
    fn default() -> Self {
        Self {
            durable: Pages::default(),
            durable_meta: Meta::default(),
            cache: BTreeMap::new(),
            meta: Meta::default(),
            cut: UNCUT,
            history: Vec::new(),
            scattered: BTreeSet::new(),
            peak: 0,
            opens: 0,
            linked: true,
        }
    }
}

/// Content as a snapshot keeps it.
#[derive(Debug, Clone)]
pub(super) struct Image {
    pages: Pages,
    meta: Meta,
}

/// The parts of a range in each page: page, start in the page, range in the buffer.
fn pieces(offset: u64, len: usize) -> impl Iterator<Item = (u64, usize, Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let at = offset + done as u64;
        let start = (at % PAGE) as usize;
        let take = (PAGE_BYTES - start).min(len - done);
        done += take;
        (take > 0).then(|| (at / PAGE, start, done - take..done))
    })
}

fn sector(number: usize) -> Range<usize> {
    number * SECTOR_BYTES..(number + 1) * SECTOR_BYTES
}

/// What the durable pages hold, as far as it is not cut off.
fn read_durable(pages: &Pages, cut: u64, page: u64, start: usize, part: &mut [u8]) {
    match pages.get(&page) {
        Some(bytes) => part.copy_from_slice(&bytes[start..start + part.len()]),
        None => part.fill(0),
    }
    let visible = cut.saturating_sub(page * PAGE + start as u64);
    if visible < part.len() as u64 {
        part[visible as usize..].fill(0);
    }
}

fn page_mut(pages: &mut BTreeMap<u64, Arc<Page>>, page: u64) -> &mut Page {
    let slot = pages.entry(page);
    Arc::make_mut(slot.or_insert_with(|| Arc::new([0; PAGE_BYTES])))
}

/// Zeros from `len` on; touches nothing where there is nothing else already.
fn cut_pages(pages: &mut Pages, len: u64) {
    let whole = len.div_ceil(PAGE);
    if pages.range(whole..).next().is_some() {
        Arc::make_mut(pages).split_off(&whole);
    }
    let (last, tail) = (len / PAGE, (len % PAGE) as usize);
    let last_page = pages.get(&last);
    if tail > 0 && last_page.is_some_and(|page| page[tail..].iter().any(|byte| *byte != 0)) {
        page_mut(Arc::make_mut(pages), last)[tail..].fill(0);
    }
}

impl Inode {
    pub(super) fn of(image: &Image) -> Self {
        let mut inode = Self {
            durable: Arc::clone(&image.pages),
            durable_meta: image.meta,
            meta: image.meta,
            ..Self::default()
        };
        inode.count_scattered();
        inode
    }

    /// All content that is read now, as if it were durable.
    pub(super) fn image(&self) -> Image {
        let mut pages = Arc::clone(&self.durable);
        cut_pages(&mut pages, self.cut);
        for (page, cached) in &self.cache {
            let to = page_mut(Arc::make_mut(&mut pages), *page);
            for n in (0..SECTORS).filter(|n| cached.present >> n & 1 == 1) {
                to[sector(n)].copy_from_slice(&cached.bytes[sector(n)]);
            }
        }
        let meta = self.meta;
        Image { pages, meta }
    }

    pub(super) fn len(&self) -> u64 {
        self.meta.len
    }

    /// Pages that are allocated now.
    pub(super) fn pages(&self) -> u64 {
        self.meta.pages + self.scattered.len() as u64
    }

    /// Pages that may be allocated again after a power cut.
    pub(super) fn pages_max(&self) -> u64 {
        self.peak
    }

    pub(super) fn has_page(&self, page: u64) -> bool {
        page < self.meta.pages || self.scattered.contains(&page)
    }

    /// Pages that `allocate` of this length would have to take.
    pub(super) fn pages_missing(&self, len: u64) -> u64 {
        let wanted = len.div_ceil(PAGE).max(self.meta.pages);
        let scattered = self.scattered.range(..wanted).count() as u64;
        wanted - self.meta.pages - scattered
    }

    pub(super) fn read(&self, buf: &mut [u8], offset: u64) -> usize {
        let left = self.meta.len.saturating_sub(offset);
        let len = usize::try_from(left).map_or(buf.len(), |left| left.min(buf.len()));
        for (page, start, range) in pieces(offset, len) {
            let part = &mut buf[range];
            let cached = self.cache.get(&page);
            if cached.is_none_or(|cached| cached.present != u8::MAX) {
                read_durable(&self.durable, self.cut, page, start, part);
            }
            let Some(cached) = cached else {
                continue;
            };
            let end = start + part.len();
            for n in start / SECTOR_BYTES..end.div_ceil(SECTOR_BYTES) {
                if cached.present >> n & 1 == 1 {
                    let (from, to) = (sector(n).start.max(start), sector(n).end.min(end));
                    part[from - start..to - start].copy_from_slice(&cached.bytes[from..to]);
                }
            }
        }
        len
    }

    /// Lengthens and allocates as a write does, without its bytes.
    pub(super) fn claim(&mut self, offset: u64, len: usize) {
        if len > 0 {
            for page in offset / PAGE..(offset + len as u64).div_ceil(PAGE) {
                if page >= self.meta.pages {
                    self.scattered.insert(page);
                }
            }
            self.meta.len = self.meta.len.max(offset + len as u64);
            self.note();
        }
    }

    pub(super) fn write(&mut self, bytes: &[u8], offset: u64) {
        for (page, start, range) in pieces(offset, bytes.len()) {
            let part = &bytes[range];
            let end = start + part.len();
            let cached = self.cache.entry(page).or_insert_with(|| {
                Box::new(Cached {
                    bytes: [0; PAGE_BYTES],
                    present: 0,
                    dirty: 0,
                })
            });
            for n in start / SECTOR_BYTES..end.div_ceil(SECTOR_BYTES) {
                let whole = start <= sector(n).start && sector(n).end <= end;
                if cached.present >> n & 1 == 0 && !whole {
                    let to = &mut cached.bytes[sector(n)];
                    read_durable(&self.durable, self.cut, page, sector(n).start, to);
                }
                cached.present |= 1 << n;
                cached.dirty |= 1 << n;
            }
            cached.bytes[start..end].copy_from_slice(part);
        }
        self.claim(offset, bytes.len());
    }

    pub(super) fn allocate(&mut self, len: u64) {
        self.meta.pages = self.meta.pages.max(len.div_ceil(PAGE));
        self.scattered = self.scattered.split_off(&self.meta.pages);
        self.meta.len = self.meta.len.max(len);
        self.note();
    }

    pub(super) fn set_len(&mut self, len: u64) {
        if len < self.meta.len {
            let pages = len.div_ceil(PAGE);
            self.cut = self.cut.min(len);
            self.cache.split_off(&pages);
            self.scattered.split_off(&pages);
            self.meta.pages = self.meta.pages.min(pages);
            let tail = (len % PAGE) as usize;
            if tail > 0
                && let Some(cached) = self.cache.get_mut(&(len / PAGE))
            {
                cached.bytes[tail..].fill(0);
            }
        }
        self.meta.len = len;
        self.note();
    }

    fn note(&mut self) {
        self.peak = self.peak.max(self.pages());
        let state = (self.meta, self.cut);
        let last = self.history.last();
        if state != last.copied().unwrap_or((self.durable_meta, UNCUT)) {
            self.history.push(state);
        }
    }

    /// Makes the length and the allocation durable.
    pub(super) fn commit_meta(&mut self) {
        if self.cut != UNCUT {
            cut_pages(&mut self.durable, self.cut);
        }
        self.cut = UNCUT;
        self.durable_meta = self.meta;
        self.history.clear();
        self.peak = self.pages();
    }

    /// Makes what is dirty durable, and length and allocation with it.
    pub(super) fn sync(&mut self) {
        self.commit_meta();
        if self.cache.is_empty() {
            return;
        }
        let pages = Arc::make_mut(&mut self.durable);
        self.cache.retain(|page, cached| {
            if cached.dirty == u8::MAX {
                pages.insert(*page, Arc::new(cached.bytes));
            } else if cached.dirty != 0 {
                let to = page_mut(pages, *page);
                for n in (0..SECTORS).filter(|n| cached.dirty >> n & 1 == 1) {
                    to[sector(n)].copy_from_slice(&cached.bytes[sector(n)]);
                }
            }
            cached.present &= !cached.dirty;
            cached.dirty = 0;
            cached.present != 0
        });
    }

    /// A sync that fails: some sectors reach the disk, and no sync will try the others again.
    pub(super) fn sync_badly(&mut self, rng: &mut Rng) {
        if self.cut != UNCUT || rng.coin() {
            self.commit_meta();
        }
        let chance = rng.below(5) * 256;
        let pages = Arc::make_mut(&mut self.durable);
        self.cache.retain(|page, cached| {
            for n in (0..SECTORS).filter(|n| cached.dirty >> n & 1 == 1) {
                if rng.below(1024) < chance {
                    page_mut(pages, *page)[sector(n)].copy_from_slice(&cached.bytes[sector(n)]);
                    cached.present &= !(1 << n);
                }
            }
            cached.dirty = 0;
            cached.present != 0
        });
    }

    /// What a power cut leaves.
    pub(super) fn lose_power(&mut self, garbage: bool, rng: &mut Rng) {
        let (meta, cut) = match rng.prefix(self.history.len()) {
            0 => (self.durable_meta, UNCUT),
            changes => self.history[changes - 1],
        };
        cut_pages(&mut self.durable, cut);
        let keep = [0, 128, 512, 896, 1024][rng.below(5) as usize];
        let garbage = garbage && rng.coin();
        for (page, cached) in std::mem::take(&mut self.cache) {
            if cached.dirty == 0 {
                continue;
            }
            // The card was rewriting the whole page.
            let rewriting = garbage && rng.coin();
            for n in 0..SECTORS {
                let dirty = cached.dirty >> n & 1 == 1;
                let kept = dirty && rng.below(1024) < keep;
                let spoilt = match dirty {
                    true => !kept && garbage && rng.coin(),
                    false => rewriting && rng.below(4) == 0,
                };
                if kept || spoilt {
                    let to = &mut page_mut(Arc::make_mut(&mut self.durable), page)[sector(n)];
                    to.copy_from_slice(&cached.bytes[sector(n)]);
                    if spoilt {
                        spoil(to, rng);
                    }
                }
            }
        }
        cut_pages(&mut self.durable, meta.len);
        self.meta = meta;
        self.cut = UNCUT;
        self.count_scattered();
        self.commit_meta();
    }

    fn count_scattered(&mut self) {
        let behind = self.durable.range(self.meta.pages..);
        self.scattered = behind.map(|(page, _)| *page).collect();
        self.peak = self.pages();
    }

    /// Changes bytes on the disk and in the cache alike, below the end of the file.
    pub(super) fn corrupt(&mut self, offset: u64, len: u64, change: impl Fn(&mut [u8])) {
        self.commit_meta();
        let len = len.min(self.meta.len.saturating_sub(offset)) as usize;
        for (page, start, range) in pieces(offset, len) {
            let there = start..start + range.len();
            change(&mut page_mut(Arc::make_mut(&mut self.durable), page)[there.clone()]);
            if let Some(cached) = self.cache.get_mut(&page) {
                change(&mut cached.bytes[there]);
            }
        }
    }
}

/// Zeros, erased flash, or anything.
fn spoil(bytes: &mut [u8], rng: &mut Rng) {
    match rng.below(6) {
        0 => bytes.fill(0),
        1 => bytes.fill(u8::MAX),
        _ => rng.fill(bytes),
    }
}
