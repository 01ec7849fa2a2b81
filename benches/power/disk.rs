//! The two kinds of disk that lose their power: an ext4 that is shut down by ioctl, and an ext4 on
//! a fake disk with a volatile cache.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use crate::cache::Fate;
use crate::fake_disk;
use crate::mount::{self, Loop, Mount};
use crate::rng::Rng;

const DISK_BYTES: u64 = 256 << 20;
/// Helpers answer within this time.
const LIMIT: Duration = Duration::from_secs(10);

/// `EXT4_IOC_SHUTDOWN` (0x8004587D) with `EXT4_GOING_FLAGS_NOLOGFLUSH` (2), at each line of stdin.
/// Python makes the call, since there is no safe way to it from Rust.
const SHUTDOWN: &str = "
import fcntl, os, struct, sys
print('ready', flush=True)
for line in sys.stdin:
    fd = os.open(sys.argv[1], os.O_RDONLY)
    fcntl.ioctl(fd, 0x8004587D, struct.pack('I', 2))
    os.close(fd)
    print('done', flush=True)
";

/// A power cut that has happened.
pub struct Cut {
    /// Until then there was power for certain.
    pub at: Instant,
    /// How it was timed.
    pub when: String,
    /// Sectors in the cache; none are counted by a real kernel.
    pub unflushed: u64,
    /// Flushes that have reached the disk, ever.
    pub flushes: u64,
}

/// What was found when the power came back.
#[derive(Default)]
pub struct Restored {
    pub fate: Fate,
    /// What was wrong with the file system itself.
    pub repaired: Option<String>,
}

pub trait Disk {
    /// Where the file system is mounted.
    fn folder(&self) -> &Path;

    /// Whether it is there at all.
    fn check(&mut self) -> Result<(), String>;

    /// Takes the power away; returns when it is gone.
    fn cut(&mut self, rng: &mut Rng) -> Result<Cut, String>;

    /// Back again: unmounted, the journal replayed, checked, mounted. Nobody may use it meanwhile.
    fn restore(&mut self) -> Result<Restored, String>;
}

/// A process that obeys orders, a line each, and answers each by a line.
struct Helper {
    child: Child,
    orders: Option<ChildStdin>,
    answers: Receiver<String>,
}

impl Helper {
    /// Starts it, out of reach of Ctrl-C, and waits until it says `ready`.
    fn start(mut command: Command) -> Result<Self, String> {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .process_group(0)
            .spawn()
            .map_err(|error| format!("{command:?}: {error}"))?;
        let (sender, answers) = mpsc::channel();
        if let Some(stdout) = child.stdout.take() {
            thread::spawn(move || {
                for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                    let _ = sender.send(line);
                }
            });
        }
        let orders = child.stdin.take();
        let helper = Self {
            child,
            orders,
            answers,
        };
        match helper.answer()?.as_str() {
            "ready" => Ok(helper),
            other => Err(format!("helper: {other}")),
        }
    }

    fn order(&mut self, order: &str) -> Result<String, String> {
        let Some(orders) = &mut self.orders else {
            return Err("helper: gone".to_owned());
        };
        writeln!(orders, "{order}").map_err(|error| format!("helper: {error}"))?;
        self.answer()
    }

    fn answer(&self) -> Result<String, String> {
        let answer = self.answers.recv_timeout(LIMIT);
        answer.map_err(|error| format!("helper: {error}"))
    }

    fn check(&mut self) -> Result<(), String> {
        match self.child.try_wait() {
            Ok(None) => Ok(()),
            ended => Err(format!("helper: {ended:?}")),
        }
    }

    /// The numbers after the first word of an answer.
    fn numbers<const N: usize>(&mut self, order: &str, word: &str) -> Result<[u64; N], String> {
        let answer = self.order(order)?;
        let mut words = answer.split(' ');
        let first = words.next();
        let numbers: Vec<u64> = words.filter_map(|word| word.parse().ok()).collect();
        match <[u64; N]>::try_from(numbers) {
            Ok(numbers) if first == Some(word) => Ok(numbers),
            _ => Err(format!("helper: {answer}")),
        }
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        drop(self.orders.take());
        let started = Instant::now();
        while started.elapsed() < Duration::from_secs(3) {
            if matches!(self.child.try_wait(), Ok(Some(_))) {
                return;
            }
            thread::sleep(Duration::from_millis(5));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A real ext4 on a loop device, cut by the shutdown ioctl without a flush of the journal.
/// Fields are dropped in this order.
pub struct ShutdownDisk {
    mount: Option<Mount>,
    device: Loop,
    helper: Helper,
    folder: PathBuf,
    _dir: tempfile::TempDir,
}

impl ShutdownDisk {
    pub fn new() -> Result<Self, String> {
        let dir = temporary()?;
        let image = dir.path().join("disk.img");
        let file = std::fs::File::create(&image).map_err(|error| error.to_string())?;
        file.set_len(DISK_BYTES)
            .map_err(|error| error.to_string())?;
        let folder = subfolder(&dir, "mount")?;
        let mut command = Command::new("python3");
        command.args(["-c", SHUTDOWN]).arg(&folder);
        let helper = Helper::start(command)?;
        let device = Loop::attach(&image, false)?;
        mount::make_ext4(device.device())?;
        let mount = Some(Mount::ext4(device.device(), &folder)?);
        Ok(Self {
            mount,
            device,
            helper,
            folder,
            _dir: dir,
        })
    }
}

impl Disk for ShutdownDisk {
    fn folder(&self) -> &Path {
        &self.folder
    }

    fn check(&mut self) -> Result<(), String> {
        self.helper.check()
    }

    fn cut(&mut self, _: &mut Rng) -> Result<Cut, String> {
        let at = Instant::now();
        match self.helper.order("cut")?.as_str() {
            "done" => Ok(Cut {
                at,
                when: "shutdown".to_owned(),
                unflushed: 0,
                flushes: 0,
            }),
            other => Err(other.to_owned()),
        }
    }

    fn restore(&mut self) -> Result<Restored, String> {
        if let Some(mount) = self.mount.take() {
            mount.unmount()?;
        }
        let (mount, repaired) = mount_checked(self.device.device(), &self.folder)?;
        self.mount = Some(mount);
        Ok(Restored {
            repaired,
            ..Default::default()
        })
    }
}

/// An ext4 on a loop device on the one file of a FUSE file system. Fields are dropped in this
/// order.
pub struct FakeDisk {
    mount: Option<Mount>,
    device: Option<Loop>,
    fuse: Fuse,
    folder: PathBuf,
    garbage: bool,
    _dir: tempfile::TempDir,
}

/// The FUSE file system and the process that serves it.
struct Fuse {
    helper: Option<Helper>,
    point: PathBuf,
}

impl Drop for Fuse {
    fn drop(&mut self) {
        drop(self.helper.take());
        if let Err(error) = mount::unmount(&self.point) {
            eprintln!("left behind: {error}");
        }
    }
}

impl Fuse {
    fn helper(&mut self) -> Result<&mut Helper, String> {
        self.helper.as_mut().ok_or_else(|| "no disk".to_owned())
    }
}

impl FakeDisk {
    pub fn new(seed: u64, garbage: bool) -> Result<Self, String> {
        let dir = temporary()?;
        let folder = subfolder(&dir, "mount")?;
        let point = subfolder(&dir, "fuse")?;
        let mut fuse = Fuse {
            helper: None,
            point,
        };
        let program = std::env::current_exe().map_err(|error| error.to_string())?;
        let mut command = Command::new(program);
        command.arg("--fake-disk").arg(&fuse.point);
        command.args(["--bytes", &DISK_BYTES.to_string()]);
        command.args(["--seed", &seed.to_string()]);
        fuse.helper = Some(Helper::start(command)?);
        let device = Loop::attach(&fuse.point.join(fake_disk::FILE), true)?;
        mount::make_ext4(device.device())?;
        let mount = Some(Mount::ext4(device.device(), &folder)?);
        Ok(Self {
            mount,
            device: Some(device),
            fuse,
            folder,
            garbage,
            _dir: dir,
        })
    }
}

impl Disk for FakeDisk {
    fn folder(&self) -> &Path {
        &self.folder
    }

    fn check(&mut self) -> Result<(), String> {
        self.fuse.helper()?.check()
    }

    fn cut(&mut self, rng: &mut Rng) -> Result<Cut, String> {
        let when = match rng.below(100) {
            0..25 => "now".to_owned(),
            25..70 => format!("writes {}", 1 + rng.below(12)),
            _ => "flush".to_owned(),
        };
        let helper = self.fuse.helper()?;
        let [unflushed, writes, flushes, ago_us] = helper.numbers(&format!("cut {when}"), "cut")?;
        let at = Instant::now() - Duration::from_micros(ago_us);
        if writes == 0 || flushes == 0 {
            return Err(format!("{writes} writes, {flushes} flushes reach the disk"));
        }
        Ok(Cut {
            at,
            when,
            unflushed,
            flushes,
        })
    }

    /// The files' places on the disk are what the kernel last knew: garbage is kept to them, and
    /// the file system's own blocks are torn and reordered only.
    fn restore(&mut self) -> Result<Restored, String> {
        let mut order = "restore".to_owned();
        if self.garbage {
            for range in mount::extents(&self.folder)? {
                order.push_str(&format!(" {}-{}", range.start, range.end));
            }
        }
        if let Some(mount) = self.mount.take() {
            mount.unmount()?;
        }
        if let Some(device) = self.device.take() {
            device.detach()?;
        }
        let [kept, lost, garbage] = self.fuse.helper()?.numbers(&order, "restored")?;
        let device = Loop::attach(&self.fuse.point.join(fake_disk::FILE), true)?;
        let device = self.device.insert(device);
        let (mount, repaired) = mount_checked(device.device(), &self.folder)?;
        self.mount = Some(mount);
        let fate = Fate {
            kept,
            lost,
            garbage,
        };
        Ok(Restored { fate, repaired })
    }
}

/// Mounts for the kernel to replay the journal, checks what came out of it, mounts again.
fn mount_checked(device: &str, folder: &Path) -> Result<(Mount, Option<String>), String> {
    let mut repaired = None;
    match Mount::ext4(device, folder) {
        Ok(mount) => mount.unmount()?,
        Err(error) => {
            mount::repair_ext4(device)?;
            repaired = Some(error);
        }
    }
    let found = mount::check_ext4(device)?;
    let mount = Mount::ext4(device, folder)?;
    Ok((mount, repaired.or(found)))
}

fn temporary() -> Result<tempfile::TempDir, String> {
    let dir = tempfile::Builder::new().prefix("edgehub-power-").tempdir();
    dir.map_err(|error| error.to_string())
}

fn subfolder(dir: &tempfile::TempDir, name: &str) -> Result<PathBuf, String> {
    let path = dir.path().join(name);
    std::fs::create_dir(&path).map_err(|error| error.to_string())?;
    Ok(path)
}
