//! The child process behind `cuts` and `garbage`: a FUSE file system with one file, `disk.img`,
//! that behaves as a disk with a volatile write cache.
//!
//! Orders come as lines on stdin and are answered by a line each on stdout:
//!
//! * `cut now`, `cut writes N`, `cut flush` cut at once, after N more writes, instead of a flush;
//!   the answer comes when that has happened, which is at once if nothing else happens:
//!   `cut UNFLUSHED WRITES FLUSHES MICROSECONDS-AGO`.
//! * `restore FIRST-END …` with the sectors that may become garbage gives the power back:
//!   `restored KEPT LOST GARBAGE`.
//!
//! The end of stdin unmounts and ends.

use std::ffi::OsStr;
use std::io::{self, BufRead, Write};
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, UNIX_EPOCH};

use fuser::{
    Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    LockOwner, MountOption, OpenFlags, ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry, ReplyOpen,
    ReplyWrite, Request, WriteFlags,
};

use crate::cache::CachedDisk;
use crate::rng::Rng;

pub const FILE: &str = "disk.img";
const FILE_INODE: INodeNo = INodeNo(2);
/// How long an order to cut waits for its moment.
const MOMENT: Duration = Duration::from_millis(400);
/// What the kernel may remember of names and sizes: neither changes.
const TTL: Duration = Duration::from_secs(3600);

/// When to cut.
#[derive(Clone, Copy)]
enum Armed {
    No,
    AfterWrites(u64),
    AtFlush,
}

struct State {
    disk: CachedDisk,
    armed: Armed,
    /// How long a flush takes.
    flush_time: Duration,
}

impl State {
    fn write(&mut self, offset: u64, data: &[u8]) -> bool {
        let written = self.disk.write(offset, data);
        if let Armed::AfterWrites(count) = &mut self.armed {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.disk.cut();
            }
        }
        written
    }

    fn flush(&mut self) -> bool {
        if matches!(self.armed, Armed::AtFlush) {
            self.disk.cut();
        }
        self.disk.flush()
    }
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Serves the disk until stdin ends.
pub fn serve(mount_point: &Path, bytes: usize, seed: u64) -> io::Result<()> {
    let shared = Arc::new(Shared {
        state: Mutex::new(State {
            disk: CachedDisk::new(bytes),
            armed: Armed::No,
            flush_time: Duration::ZERO,
        }),
        changed: Condvar::new(),
    });
    let mut config = Config::default();
    config.mount_options = vec![MountOption::FSName("edgehub-power".to_owned())];
    let session = fuser::spawn_mount(Files(Arc::clone(&shared)), mount_point, &config)?;
    let mut answers = io::stdout();
    writeln!(answers, "ready")?;
    let mut rng = Rng::new(seed);
    for order in io::stdin().lock().lines() {
        let answer = obey(&order?, &shared, &mut rng);
        writeln!(answers, "{answer}")?;
    }
    session.umount_and_join()
}

fn obey(order: &str, shared: &Shared, rng: &mut Rng) -> String {
    let words: Vec<&str> = order.split(' ').collect();
    match words.as_slice() {
        ["cut", "now"] => cut(shared, Armed::AfterWrites(0), Duration::ZERO),
        ["cut", "flush"] => cut(shared, Armed::AtFlush, MOMENT),
        ["cut", "writes", count] => {
            let count = count.parse().unwrap_or(1);
            cut(shared, Armed::AfterWrites(count), MOMENT)
        }
        ["restore", ranges @ ..] => {
            let ranges: Vec<_> = ranges.iter().filter_map(|range| parse(range)).collect();
            let mut state = shared.lock();
            let fate = state.disk.restore(rng, &ranges);
            state.armed = Armed::No;
            state.flush_time = Duration::from_micros(rng.one_of(&[0, 0, 1_000, 5_000]));
            format!("restored {} {} {}", fate.kept, fate.lost, fate.garbage)
        }
        _ => format!("unknown order: {order}"),
    }
}

fn cut(shared: &Shared, armed: Armed, moment: Duration) -> String {
    let mut state = shared.lock();
    state.armed = armed;
    let waiting = shared
        .changed
        .wait_timeout_while(state, moment, |state| state.disk.is_on());
    let mut state = waiting.unwrap_or_else(PoisonError::into_inner).0;
    state.disk.cut();
    let disk = &state.disk;
    let ago_us = disk.cut_at().map_or(0, |at| at.elapsed().as_micros());
    format!(
        "cut {} {} {} {ago_us}",
        disk.unflushed(),
        disk.writes,
        disk.flushes
    )
}

fn parse(range: &str) -> Option<Range<u64>> {
    let (first, end) = range.split_once('-')?;
    Some(first.parse().ok()?..end.parse().ok()?)
}

/// The folder and its one file.
struct Files(Arc<Shared>);

impl Files {
    fn attributes(&self, inode: INodeNo) -> Option<FileAttr> {
        let bytes = self.0.lock().disk.bytes() as u64;
        let (kind, perm, size) = match inode {
            INodeNo::ROOT => (FileType::Directory, 0o700, 0),
            FILE_INODE => (FileType::RegularFile, 0o600, bytes),
            _ => return None,
        };
        Some(FileAttr {
            ino: inode,
            size,
            blocks: size / 512,
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind,
            perm,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        })
    }

    fn reply_attributes(&self, inode: INodeNo, reply: ReplyAttr) {
        match self.attributes(inode) {
            Some(attributes) => reply.attr(&TTL, &attributes),
            None => reply.error(Errno::ENOENT),
        }
    }

    /// Tells the one who ordered a cut, if it has happened.
    fn done(&self, state: MutexGuard<'_, State>) {
        let is_off = !state.disk.is_on();
        drop(state);
        if is_off {
            self.0.changed.notify_all();
        }
    }
}

impl Filesystem for Files {
    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.attributes(FILE_INODE) {
            Some(attributes) if name == FILE => reply.entry(&TTL, &attributes, Generation(0)),
            _ => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, inode: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        self.reply_attributes(inode, reply);
    }

    /// Past the kernel's page cache: what is read after a cut is what the disk holds.
    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let data = self.0.lock().disk.read(offset, size as usize);
        reply.data(&data);
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let mut state = self.0.lock();
        if state.write(offset, data) {
            reply.written(data.len() as u32);
        } else {
            reply.error(Errno::EIO);
        }
        self.done(state);
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        let flush_time = self.0.lock().flush_time;
        thread::sleep(flush_time);
        let mut state = self.0.lock();
        if state.flush() {
            reply.ok();
        } else {
            reply.error(Errno::EIO);
        }
        self.done(state);
    }

    /// A handle is closed: no reason to make anything safe.
    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }
}
