//! What lies behind the lock of the simulated disk: files, names, and how lives end.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, IoSlice};

use super::faults::{Calls, CrashMode, FaultKind, Faults, Rng, Verdict, power_is_off};
use super::inode::{Image, Inode, PAGE, SECTOR_BYTES};
use super::names::{NameOp, Names, parent, plain};
use super::{Counters, SimState};

pub(super) struct World {
    rng: Rng,
    /// Orders listings, which no caller may rely on.
    list_salt: u64,
    pub(super) faults: Faults,
    pub(super) counters: Counters,
    pub(super) generation: u64,
    pub(super) off: bool,
    inodes: BTreeMap<u64, Inode>,
    next_inode: u64,
    names: Names,
    durable_names: Names,
    /// Changes of names that are not durable, in order.
    pending: Vec<NameOp>,
}

fn not_found() -> io::Error {
    io::Error::from_raw_os_error(2)
}

fn is_a_dir() -> io::Error {
    io::Error::from_raw_os_error(21)
}

fn stale() -> io::Error {
    io::Error::other("opened before the last crash")
}

impl World {
    pub(super) fn new(seed: u64, faults: Faults) -> Self {
        let mut rng = Rng::new(seed);
        Self {
            list_salt: rng.next(),
            rng,
            faults,
            counters: Counters::default(),
            generation: 0,
            off: false,
            inodes: BTreeMap::new(),
            next_inode: 0,
            names: Names::default(),
            durable_names: Names::default(),
            pending: Vec::new(),
        }
    }

    /// Refuses whoever belongs to an earlier life, and everybody while the power is off.
    fn check(&self, generation: Option<u64>) -> io::Result<()> {
        if generation.is_some_and(|generation| generation != self.generation) {
            return Err(stale());
        }
        if self.off {
            return Err(power_is_off());
        }
        Ok(())
    }

    /// Counts a mutating call that is about to be made.
    fn judge(&mut self, kind: Calls) -> Verdict {
        self.counters.calls += 1;
        let verdict = self.faults.judge(kind);
        self.off |= verdict == Verdict::Cut;
        verdict
    }

    /// The files that exist, by name.
    pub(super) fn files(&self) -> &BTreeMap<String, u64> {
        &self.names.files
    }

    fn find(&self, path: &str) -> io::Result<u64> {
        if self.names.is_dir(path) {
            return Err(is_a_dir());
        }
        self.names.files.get(path).copied().ok_or_else(not_found)
    }

    /// The inode behind an open handle.
    pub(super) fn inode(&mut self, file: u64) -> io::Result<&mut Inode> {
        self.inodes.get_mut(&file).ok_or_else(stale)
    }

    /// The file of this name, for the helpers of tests.
    pub(super) fn named(&mut self, path: &str) -> &mut Inode {
        let file = self.names.files.get(&plain(path));
        let inode = file.and_then(|file| self.inodes.get_mut(file));
        inode.unwrap_or_else(|| panic!("no file {path}"))
    }

    fn change(&mut self, op: NameOp) {
        self.names.apply(op.clone());
        self.pending.push(op);
    }

    pub(super) fn commit_names(&mut self) {
        for op in self.pending.drain(..) {
            self.durable_names.apply(op);
        }
        self.forget_files();
    }

    /// Frees the files that nobody can reach any more, now or after a crash.
    fn forget_files(&mut self) {
        if self.pending.is_empty() {
            self.inodes.retain(|_, one| one.linked || one.opens > 0);
        }
    }

    fn free_pages(&self) -> u64 {
        let living = self
            .inodes
            .values()
            .filter(|one| one.linked || one.opens > 0);
        let used: u64 = living.map(Inode::pages).sum();
        (self.faults.capacity_bytes / PAGE).saturating_sub(used)
    }

    /// How many of so many pages can be taken. Room that a crash would take back, because what
    /// freed it is not durable, is made durable first, as a journaling file system does.
    fn room(&mut self, wanted: u64) -> u64 {
        if wanted == 0 {
            return 0;
        }
        let free = self.free_pages();
        let held = self.inodes.values().map(|one| {
            let lives = one.linked || one.opens > 0;
            one.pages_max() - if lives { one.pages() } else { 0 }
        });
        if wanted > free.saturating_sub(held.sum()) {
            self.commit_names();
            self.inodes.values_mut().for_each(Inode::commit_meta);
        }
        free.min(wanted)
    }

    pub(super) fn free_bytes(&self, generation: Option<u64>) -> io::Result<u64> {
        self.check(generation)?;
        Ok(self.free_pages() * PAGE)
    }

    pub(super) fn list(&self, generation: Option<u64>, dir: &str) -> io::Result<Vec<String>> {
        self.check(generation)?;
        let dir = plain(dir);
        if self.names.files.contains_key(&dir) {
            return Err(io::Error::from_raw_os_error(20));
        }
        let mut names = self.names.children(&dir);
        names.sort_by_cached_key(|name| {
            let mix = |hash, byte| Rng::new(hash ^ u64::from(byte)).next();
            name.bytes().fold(self.list_salt, mix)
        });
        Ok(names)
    }

    pub(super) fn create_dir(&mut self, generation: Option<u64>, dir: &str) -> io::Result<()> {
        self.check(generation)?;
        let dir = plain(dir);
        let mut missing = Vec::new();
        let mut at = dir.as_str();
        while !self.names.is_dir(at) {
            if self.names.files.contains_key(at) {
                return Err(io::Error::from_raw_os_error(17));
            }
            missing.push(at.to_owned());
            at = parent(at);
        }
        let verdict = self.judge(Calls::CREATE_DIR);
        if verdict.applies(&mut self.rng) {
            for dir in missing.into_iter().rev() {
                self.change(NameOp::MakeDir(dir));
            }
        }
        verdict.result()
    }

    /// Opens a file and returns its number and the generation.
    pub(super) fn open(&mut self, generation: Option<u64>, path: &str) -> io::Result<(u64, u64)> {
        self.check(generation)?;
        let file = self.find(&plain(path))?;
        self.inode(file)?.opens += 1;
        Ok((file, self.generation))
    }

    pub(super) fn close(&mut self, generation: u64, file: u64) {
        if generation == self.generation
            && let Some(inode) = self.inodes.get_mut(&file)
        {
            inode.opens -= 1;
            if !inode.linked && inode.opens == 0 {
                self.forget_files();
            }
        }
    }

    pub(super) fn create(&mut self, generation: Option<u64>, path: &str) -> io::Result<(u64, u64)> {
        self.check(generation)?;
        let path = plain(path);
        if self.names.is_dir(&path) {
            return Err(is_a_dir());
        }
        if !self.names.is_dir(parent(&path)) {
            return Err(not_found());
        }
        let verdict = self.judge(Calls::CREATE);
        if verdict.applies(&mut self.rng) {
            match self.names.files.get(&path).copied() {
                Some(file) => self.inode(file)?.set_len(0),
                None => {
                    let file = self.next_inode;
                    self.next_inode += 1;
                    self.inodes.insert(file, Inode::default());
                    self.change(NameOp::Link(path.clone(), file));
                }
            }
        }
        verdict.result()?;
        self.open(generation, &path)
    }

    fn unlink(&mut self, file: Option<u64>) {
        if let Some(inode) = file.and_then(|file| self.inodes.get_mut(&file)) {
            inode.linked = false;
        }
    }

    pub(super) fn rename(&mut self, life: Option<u64>, from: &str, to: &str) -> io::Result<()> {
        self.check(life)?;
        let (from, to) = (plain(from), plain(to));
        self.find(&from)?;
        if self.names.is_dir(&to) {
            return Err(is_a_dir());
        }
        if !self.names.is_dir(parent(&to)) {
            return Err(not_found());
        }
        let verdict = self.judge(Calls::RENAME);
        if from != to && verdict.applies(&mut self.rng) {
            let replaced = self.names.files.get(&to).copied();
            self.unlink(replaced);
            self.change(NameOp::Rename(from, to));
        }
        verdict.result()
    }

    pub(super) fn remove(&mut self, generation: Option<u64>, path: &str) -> io::Result<()> {
        self.check(generation)?;
        let path = plain(path);
        let file = self.find(&path)?;
        let verdict = self.judge(Calls::REMOVE);
        if verdict.applies(&mut self.rng) {
            self.unlink(Some(file));
            self.change(NameOp::Unlink(path));
        }
        verdict.result()
    }

    pub(super) fn sync_dir(&mut self, generation: Option<u64>, dir: &str) -> io::Result<()> {
        self.check(generation)?;
        if !self.names.is_dir(&plain(dir)) {
            return Err(not_found());
        }
        let verdict = self.judge(Calls::SYNC_DIR);
        self.counters.dir_syncs += 1;
        match verdict {
            Verdict::Done => self.commit_names(),
            Verdict::Fails(_) => self.commit_some_names(),
            Verdict::Cut => {}
        }
        verdict.result()
    }

    fn commit_some_names(&mut self) {
        let count = self.rng.prefix(self.pending.len());
        for op in self.pending.drain(..count) {
            self.durable_names.apply(op);
        }
        self.forget_files();
    }

    pub(super) fn size(&mut self, generation: u64, file: u64) -> io::Result<u64> {
        self.check(Some(generation))?;
        Ok(self.inode(file)?.len())
    }

    pub(super) fn read(
        &mut self,
        generation: u64,
        file: u64,
        buf: &mut [u8],
        offset: u64,
    ) -> io::Result<usize> {
        self.check(Some(generation))?;
        self.counters.reads += 1;
        if self.faults.judge_read() {
            return Err(FaultKind::Io.error());
        }
        Ok(self.inode(file)?.read(buf, offset))
    }

    pub(super) fn write(
        &mut self,
        generation: u64,
        file: u64,
        parts: &[IoSlice<'_>],
        offset: u64,
    ) -> io::Result<()> {
        self.check(Some(generation))?;
        let joined;
        let mut bytes: &[u8] = match parts {
            [one] => one,
            many => {
                joined = many.iter().map(|part| &**part).collect::<Vec<_>>().concat();
                &joined
            }
        };
        if offset
            .checked_add(bytes.len() as u64)
            .is_none_or(|end| end > i64::MAX as u64)
        {
            return Err(io::Error::from_raw_os_error(27));
        }
        let verdict = self.judge(Calls::WRITE);
        let mut done = verdict.result();
        if done.is_err() {
            bytes = &bytes[..self.some_sectors(bytes.len(), offset)];
        }
        let fits = self.fitting(file, bytes.len(), offset)?;
        if fits < bytes.len() {
            done = done.and_then(|()| Err(FaultKind::NoSpace.error()));
            bytes = &bytes[..self.some_sectors(fits, offset)];
        }
        self.counters.writes += 1;
        self.counters.bytes_written += bytes.len() as u64;
        self.put(file, bytes, offset)?;
        done
    }

    /// A random beginning of a write that ends where a sector ends.
    fn some_sectors(&mut self, len: usize, offset: u64) -> usize {
        let head = (offset % SECTOR_BYTES as u64) as usize;
        let sectors = self.rng.prefix((head + len).div_ceil(SECTOR_BYTES));
        (sectors * SECTOR_BYTES).saturating_sub(head).min(len)
    }

    /// How much of a write the capacity allows.
    fn fitting(&mut self, file: u64, len: usize, offset: u64) -> io::Result<usize> {
        let pages = offset / PAGE..(offset + len as u64).div_ceil(PAGE);
        let inode = self.inode(file)?;
        let missing: Vec<u64> = pages.filter(|page| !inode.has_page(*page)).collect();
        let room = self.room(missing.len() as u64) as usize;
        let end = missing
            .get(room)
            .map(|page| (page * PAGE).saturating_sub(offset));
        Ok(end.map_or(len, |end| end as usize))
    }

    /// Writes to the right place, unless the dice send it to a wrong one.
    fn put(&mut self, file: u64, bytes: &[u8], offset: u64) -> io::Result<()> {
        let strays = self.rng.happens(self.faults.misdirect_ppm);
        let doubles = self.rng.happens(self.faults.duplicate_ppm);
        let len = self.inode(file)?.len();
        let (page, pages) = (offset / PAGE, len.div_ceil(PAGE));
        let mut wrong = None;
        if (strays || doubles) && pages > 1 && !bytes.is_empty() {
            let other = self.rng.below(pages - 1);
            let other = other + u64::from(other >= page);
            let at = other * PAGE + offset % PAGE;
            let room = len.saturating_sub(at).min(bytes.len() as u64);
            wrong = Some((&bytes[..room as usize], at));
        }
        let inode = self.inode(file)?;
        match wrong {
            Some(_) if strays => inode.claim(offset, bytes.len()),
            _ => inode.write(bytes, offset),
        }
        if let Some((bytes, at)) = wrong {
            inode.write(bytes, at);
        }
        Ok(())
    }

    pub(super) fn sync_data(&mut self, generation: u64, file: u64) -> io::Result<()> {
        self.check(Some(generation))?;
        let verdict = self.judge(Calls::SYNC_DATA);
        self.counters.syncs += 1;
        let inode = self.inodes.get_mut(&file).ok_or_else(stale)?;
        match verdict {
            Verdict::Done => inode.sync(),
            Verdict::Fails(_) => inode.sync_badly(&mut self.rng),
            Verdict::Cut => {}
        }
        verdict.result()
    }

    pub(super) fn allocate(&mut self, generation: u64, file: u64, len: u64) -> io::Result<()> {
        self.check(Some(generation))?;
        if len == 0 || len > i64::MAX as u64 {
            return Err(io::Error::from_raw_os_error(22));
        }
        let verdict = self.judge(Calls::ALLOCATE);
        let reached = match verdict {
            Verdict::Done => len,
            // It may have got so far.
            _ => self.rng.prefix((len / PAGE) as usize) as u64 * PAGE,
        };
        let missing = self.inode(file)?.pages_missing(reached);
        if self.room(missing) < missing {
            verdict.result()?;
            return Err(FaultKind::NoSpace.error());
        }
        self.inode(file)?.allocate(reached);
        verdict.result()
    }

    pub(super) fn set_len(&mut self, generation: u64, file: u64, len: u64) -> io::Result<()> {
        self.check(Some(generation))?;
        if len > i64::MAX as u64 {
            return Err(io::Error::from_raw_os_error(27));
        }
        let verdict = self.judge(Calls::SET_LEN);
        if verdict.applies(&mut self.rng) {
            self.inode(file)?.set_len(len);
        }
        verdict.result()
    }

    /// Ends this life; the next one finds what is left.
    pub(super) fn crash(&mut self, mode: CrashMode) {
        self.generation += 1;
        self.off = false;
        self.inodes.values_mut().for_each(|one| one.opens = 0);
        if let CrashMode::Power { garbage } = mode {
            self.commit_some_names();
            self.pending.clear();
            self.names = self.durable_names.clone();
            let linked: BTreeSet<u64> = self.names.files.values().copied().collect();
            self.inodes.retain(|file, _| linked.contains(file));
            for inode in self.inodes.values_mut() {
                inode.linked = true;
                inode.lose_power(garbage, &mut self.rng);
            }
        }
        self.forget_files();
    }

    pub(super) fn snapshot(&self) -> SimState {
        let image = |(path, file): (&String, &u64)| {
            let inode = self.inodes.get(file)?;
            Some((path.clone(), inode.image()))
        };
        SimState {
            files: self.names.files.iter().filter_map(image).collect(),
            dirs: self.names.dirs.clone(),
        }
    }

    pub(super) fn restore(&mut self, state: &SimState) {
        self.generation += 1;
        self.off = false;
        self.pending.clear();
        self.inodes.clear();
        self.names.files.clear();
        self.names.dirs = state.dirs.clone();
        for (path, image) in &state.files {
            let file = self.next_inode;
            self.next_inode += 1;
            self.inodes.insert(file, Inode::of(image));
            self.names.files.insert(path.clone(), file);
        }
        self.durable_names = self.names.clone();
    }

    /// Removes a file for good, and makes all names durable.
    pub(super) fn delete(&mut self, path: &str) {
        self.named(path).linked = false;
        self.change(NameOp::Unlink(plain(path)));
        self.commit_names();
    }
}

/// The files that a snapshot holds.
pub(super) type Images = BTreeMap<String, Image>;
