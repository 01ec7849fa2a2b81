//! A disk in memory that fails, forgets and tears.

use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::sync::{Arc, Mutex, MutexGuard};

use crate::store::disk::{Disk, DiskFile, PAGE_BYTES};

/// Pseudo-random numbers (xorshift).
#[derive(Debug, Clone)]
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % end
    }
}

#[derive(Debug, Default)]
struct Node {
    /// As a reader sees it.
    seen: Vec<u8>,
    /// As it is after a crash, unless more has come to the disk by chance.
    kept: Vec<u8>,
    /// Pages that a sync writes.
    dirty: std::collections::BTreeSet<usize>,
}

type Names = BTreeMap<String, Arc<Mutex<Node>>>;

#[derive(Debug)]
struct Inner {
    names: Names,
    /// The names after each change since the last sync, the synced ones first.
    past: Vec<Names>,
    random: Random,
    /// Operations until the power fails.
    power: u64,
    /// One in so many changes fails; 0: none.
    fail_one_in: u64,
}

/// The disk.
#[derive(Debug, Clone)]
pub struct SimDisk(Arc<Mutex<Inner>>);

impl SimDisk {
    pub fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(Inner {
            names: Names::new(),
            past: vec![Names::new()],
            random: Random(seed),
            power: u64::MAX,
            fail_one_in: 0,
        })))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap()
    }

    pub fn plan(&self, power: u64, fail_one_in: u64) {
        let mut inner = self.lock();
        inner.power = power;
        inner.fail_one_in = fail_one_in;
    }

    pub fn is_off(&self) -> bool {
        self.lock().power == 0
    }

    /// The disk for the next process; with `power`, the power was lost in between.
    pub fn restart(&self, power: bool) -> Self {
        self.plan(u64::MAX, 0);
        if !power {
            return self.clone();
        }
        let inner = self.lock();
        let mut random = inner.random.clone();
        let keep = random.below(inner.past.len() as u64) as usize;
        let mut names = Names::new();
        for (name, node) in &inner.past[keep] {
            let bytes = after_crash(&node.lock().unwrap(), &mut random);
            let node = Node {
                seen: bytes.clone(),
                kept: bytes,
                ..Node::default()
            };
            names.insert(name.clone(), Arc::new(Mutex::new(node)));
        }
        Self(Arc::new(Mutex::new(Inner {
            past: vec![names.clone()],
            names,
            random,
            power: u64::MAX,
            fail_one_in: 0,
        })))
    }

    pub fn names(&self) -> Vec<String> {
        self.lock().names.keys().cloned().collect()
    }

    fn change(&self) -> io::Result<MutexGuard<'_, Inner>> {
        let mut inner = self.lock();
        if inner.power == 0 {
            return Err(io::Error::other("no power"));
        }
        inner.power -= 1;
        let odds = inner.fail_one_in;
        if odds > 0 && inner.random.below(odds) == 0 {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(inner)
    }
}

/// Of what was not synced, each sector of 512 bytes may be there or not, or the page is lost.
fn after_crash(node: &Node, random: &mut Random) -> Vec<u8> {
    let mut bytes = node.kept.clone();
    if random.below(2) == 0 {
        bytes.resize(node.seen.len().max(bytes.len()), 0);
    }
    for page in &node.dirty {
        let mode = random.below(4);
        for at in (page * PAGE_BYTES..(page + 1) * PAGE_BYTES).step_by(512) {
            let end = (at + 512).min(node.seen.len()).min(bytes.len());
            if at < end && (mode == 0 || mode == 1 && random.below(2) == 0) {
                bytes[at..end].copy_from_slice(&node.seen[at..end]);
            } else if at < end && mode == 2 {
                bytes[at..end].fill(0xAA);
            }
        }
    }
    bytes
}

impl Disk for SimDisk {
    fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        let inner = self.lock();
        let below = |name: &String| Some(name.strip_prefix(dir)?.strip_prefix('/')?.to_owned());
        Ok(inner.names.keys().filter_map(below).collect())
    }

    fn create_dir(&self, _dir: &str) -> io::Result<()> {
        self.change().map(drop)
    }

    fn open(&self, path: &str) -> io::Result<Arc<dyn DiskFile>> {
        let inner = self.lock();
        let node = inner.names.get(path).ok_or(io::ErrorKind::NotFound)?;
        Ok(Arc::new(SimFile(self.clone(), Arc::clone(node))))
    }

    fn create(&self, path: &str) -> io::Result<Arc<dyn DiskFile>> {
        let mut inner = self.change()?;
        let node = Arc::new(Mutex::new(Node::default()));
        inner.names.insert(path.to_owned(), Arc::clone(&node));
        let names = inner.names.clone();
        inner.past.push(names);
        drop(inner);
        Ok(Arc::new(SimFile(self.clone(), node)))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut inner = self.change()?;
        let node = inner.names.remove(from).ok_or(io::ErrorKind::NotFound)?;
        inner.names.insert(to.to_owned(), node);
        let names = inner.names.clone();
        inner.past.push(names);
        Ok(())
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        let mut inner = self.change()?;
        inner.names.remove(path).ok_or(io::ErrorKind::NotFound)?;
        let names = inner.names.clone();
        inner.past.push(names);
        Ok(())
    }

    fn sync_dir(&self, _dir: &str) -> io::Result<()> {
        let mut inner = self.change()?;
        let names = inner.names.clone();
        inner.past = vec![names];
        Ok(())
    }

    fn free_bytes(&self) -> io::Result<u64> {
        Ok(u64::MAX)
    }
}

#[derive(Debug)]
struct SimFile(SimDisk, Arc<Mutex<Node>>);

impl DiskFile for SimFile {
    fn size(&self) -> io::Result<u64> {
        Ok(self.1.lock().unwrap().seen.len() as u64)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let node = self.1.lock().unwrap();
        let rest = node.seen.get(offset as usize..).unwrap_or_default();
        let read = rest.len().min(buf.len());
        buf[..read].copy_from_slice(&rest[..read]);
        Ok(read)
    }

    fn write_at(&self, parts: &[IoSlice<'_>], offset: u64) -> io::Result<()> {
        let power = self.0.lock().power;
        let failed = self.0.change().map(drop);
        let mut node = self.1.lock().unwrap();
        let mut bytes: Vec<u8> = parts.iter().flat_map(|part| part.to_vec()).collect();
        if failed.is_err() {
            if power == 0 {
                return failed;
            }
            let some = self.0.lock().random.below(bytes.len() as u64 + 1);
            bytes.truncate(some as usize);
        }
        let (start, end) = (offset as usize, offset as usize + bytes.len());
        if node.seen.len() < end {
            node.seen.resize(end, 0);
        }
        node.seen[start..end].copy_from_slice(&bytes);
        node.dirty
            .extend(start / PAGE_BYTES..end.div_ceil(PAGE_BYTES));
        failed
    }

    fn sync_data(&self) -> io::Result<()> {
        let failed = self.0.change().map(drop);
        let mut node = self.1.lock().unwrap();
        if failed.is_err() {
            if !self.0.is_off() {
                // The pages count as clean now, and have never come to the disk.
                node.dirty.clear();
            }
            return failed;
        }
        let Node { seen, kept, dirty } = &mut *node;
        kept.resize(seen.len(), 0);
        for page in std::mem::take(dirty) {
            let end = ((page + 1) * PAGE_BYTES).min(seen.len());
            let start = (page * PAGE_BYTES).min(end);
            kept[start..end].copy_from_slice(&seen[start..end]);
        }
        Ok(())
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        self.set_len(len)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        if self.0.is_off() {
            return Err(io::Error::other("no power"));
        }
        self.1.lock().unwrap().seen.resize(len as usize, 0);
        Ok(())
    }
}
