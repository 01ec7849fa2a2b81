//! Loop devices, mounts, and the programs that make and check file systems. Whatever was made is
//! undone when its guard is dropped.

use std::fs;
use std::io::Read;
use std::ops::Range;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::cache::{PAGE_SECTORS, SECTOR_BYTES};

/// The bound of every program and of everything that is waited for here.
const LIMIT: Duration = Duration::from_secs(15);
const STEP: Duration = Duration::from_millis(5);

/// How a program ended, and what it printed.
pub struct Ended {
    pub code: Option<i32>,
    pub text: String,
}

/// Runs a program to its end, out of reach of Ctrl-C.
pub fn run(program: &str, args: &[&str]) -> Result<Ended, String> {
    let failed = |error: std::io::Error| format!("{program}: {error}");
    let (mut reader, writer) = std::io::pipe().map_err(failed)?;
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .stdout(writer.try_clone().map_err(failed)?)
        .stderr(writer)
        .process_group(0)
        .spawn()
        .map_err(failed)?;
    let reading = thread::spawn(move || {
        let mut text = Vec::new();
        let _ = reader.read_to_end(&mut text);
        String::from_utf8_lossy(&text).into_owned()
    });
    let Some(status) = within(|| child.try_wait().transpose()) else {
        let _ = child.kill();
        return Err(format!("{program} {args:?} takes too long"));
    };
    Ok(Ended {
        code: status.map_err(failed)?.code(),
        text: reading.join().unwrap_or_default(),
    })
}

/// Runs a program that has to succeed and returns what it printed.
pub fn must(program: &str, args: &[&str]) -> Result<String, String> {
    let ended = run(program, args)?;
    if ended.code == Some(0) {
        return Ok(ended.text);
    }
    let text = ended.text.trim();
    Err(format!("{program} {args:?}: {:?}: {text}", ended.code))
}

/// Asks again and again until there is an answer, or the limit is reached.
fn within<T>(mut ask: impl FnMut() -> Option<T>) -> Option<T> {
    let started = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return Some(answer);
        }
        if started.elapsed() > LIMIT {
            return None;
        }
        thread::sleep(STEP);
    }
}

pub fn text(path: &Path) -> &str {
    path.to_str().unwrap_or_default()
}

/// A file as a block device.
pub struct Loop {
    device: Option<String>,
}

impl Loop {
    pub fn attach(file: &Path, direct: bool) -> Result<Self, String> {
        let direct = if direct { "on" } else { "off" };
        let direct = format!("--direct-io={direct}");
        let device = must("losetup", &["--find", "--show", &direct, text(file)])?;
        Ok(Self {
            device: Some(device.trim().to_owned()),
        })
    }

    pub fn device(&self) -> &str {
        self.device.as_deref().unwrap_or_default()
    }

    /// Detaches and waits until the device is free.
    pub fn detach(mut self) -> Result<(), String> {
        self.detach_now()
    }

    fn detach_now(&mut self) -> Result<(), String> {
        let Some(device) = self.device.take() else {
            return Ok(());
        };
        must("losetup", &["--detach", &device])?;
        let name = device.trim_start_matches("/dev/");
        let backing = format!("/sys/block/{name}/loop/backing_file");
        let free = within(|| (!Path::new(&backing).exists()).then_some(()));
        free.ok_or_else(|| format!("{device} stays attached"))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        if let Err(error) = self.detach_now() {
            eprintln!("left behind: {error}");
        }
    }
}

/// A mounted file system.
pub struct Mount {
    point: Option<PathBuf>,
}

impl Mount {
    pub fn ext4(device: &str, point: &Path) -> Result<Self, String> {
        must("mount", &["-t", "ext4", device, text(point)])?;
        Ok(Self {
            point: Some(point.to_owned()),
        })
    }

    pub fn unmount(mut self) -> Result<(), String> {
        self.unmount_now()
    }

    fn unmount_now(&mut self) -> Result<(), String> {
        match self.point.take() {
            Some(point) => unmount(&point),
            None => Ok(()),
        }
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if let Err(error) = self.unmount_now() {
            eprintln!("left behind: {error}");
        }
    }
}

/// Unmounts what is mounted there, if anything is: politely for a second, then by force.
pub fn unmount(point: &Path) -> Result<(), String> {
    for _ in 0..20 {
        if !is_mounted(point) || run("umount", &[text(point)])?.code == Some(0) {
            return Ok(());
        }
        thread::sleep(Duration::from_millis(50));
    }
    must("umount", &["--lazy", text(point)]).map(drop)
}

pub fn is_mounted(point: &Path) -> bool {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let mut points = mounts.lines().filter_map(|line| line.split(' ').nth(1));
    points.any(|mounted| Path::new(mounted) == point)
}

/// A new ext4 with 4 KiB blocks, written out in full: nothing is left for the background.
pub fn make_ext4(device: &str) -> Result<(), String> {
    let extended = "nodiscard,lazy_itable_init=0,lazy_journal_init=0";
    let args = ["-q", "-F", "-b", "4096", "-N", "4096", "-E", extended];
    let args: Vec<&str> = args.into_iter().chain([device]).collect();
    must("mkfs.ext4", &args).map(drop)
}

/// Checks an ext4 that is not mounted and whose journal is replayed; repairs it if it must.
/// Returns what was wrong.
pub fn check_ext4(device: &str) -> Result<Option<String>, String> {
    let checked = run("e2fsck", &["-f", "-n", device])?;
    if checked.code == Some(0) {
        return Ok(None);
    }
    repair_ext4(device)?;
    Ok(Some(checked.text))
}

pub fn repair_ext4(device: &str) -> Result<(), String> {
    let repaired = run("e2fsck", &["-f", "-y", device])?;
    match repaired.code {
        Some(0..=3) => Ok(()),
        code => Err(format!("e2fsck -fy: {code:?}: {}", repaired.text)),
    }
}

/// Where on the disk the files below a folder lie (FIEMAP), as ranges of sectors.
pub fn extents(folder: &Path) -> Result<Vec<Range<u64>>, String> {
    let mut files = Vec::new();
    collect(folder, &mut files);
    let mut ranges = Vec::new();
    if files.is_empty() {
        return Ok(ranges);
    }
    let args: Vec<&str> = ["-v", "-b4096"]
        .into_iter()
        .chain(files.iter().map(String::as_str))
        .collect();
    // Files that vanish meanwhile make it fail for them alone.
    let listed = run("filefrag", &args)?;
    let page_sectors = 4096 / SECTOR_BYTES as u64;
    assert_eq!(page_sectors, PAGE_SECTORS);
    for line in listed.text.lines() {
        if let Some(blocks) = extent(line) {
            ranges.push(blocks.start * page_sectors..blocks.end * page_sectors);
        }
    }
    Ok(ranges)
}

/// The physical blocks of a line such as ` 0:  0.. 99:  171.. 270: 100: last`; `None` for other
/// lines and for data that has no place yet.
fn extent(line: &str) -> Option<Range<u64>> {
    let fields: Vec<&str> = line.split(':').map(str::trim).collect();
    let [number, _, physical, _, flags @ ..] = fields.as_slice() else {
        return None;
    };
    number.parse::<u64>().ok()?;
    let is_nowhere = |flag: &&str| flag.contains("delalloc") || flag.contains("unknown");
    if flags.iter().any(is_nowhere) {
        return None;
    }
    let (first, last) = physical.split_once("..")?;
    let last: u64 = last.trim().parse().ok()?;
    Some(first.trim().parse().ok()?..last + 1)
}

fn collect(folder: &Path, files: &mut Vec<String>) {
    let Ok(entries) = fs::read_dir(folder) else {
        return;
    };
    for entry in entries.flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => collect(&entry.path(), files),
            Ok(kind) if kind.is_file() => files.push(text(&entry.path()).to_owned()),
            _ => {}
        }
    }
}
