//! A small volume of its own: an ext4 image behind a loop device, or a folder that somebody made
//! on such a volume.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// Size of the image.
const IMAGE_BYTES: u64 = 256 << 20;
/// A folder on a larger volume would take for ever to fill.
const VOLUME_BYTES_MAX: u64 = 1 << 30;

/// Waits until its input ends, as it does however the bench ends, and cleans up. Signals of the
/// terminal are not for it.
const JANITOR: &str = r#"
trap '' INT TERM HUP
cat >/dev/null
mountpoint -q "$1/volume" && { umount "$1/volume" || umount -l "$1/volume"; }
rm -rf --one-file-system "$1"
"#;

pub struct Volume {
    /// Where the hub may write.
    pub dir: PathBuf,
    janitor: Option<Child>,
}

impl Volume {
    /// An image, mounted: needs root.
    pub fn image() -> Result<Self, String> {
        if !rustix::process::geteuid().is_root() {
            return Err("not root: name a folder on a small volume with --dir".to_owned());
        }
        let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
        let folder = folder.keep();
        let volume = Self {
            dir: folder.join("volume"),
            janitor: Some(janitor(&folder)),
        };
        let image = folder.join("image");
        let made = File::create(&image).and_then(|file| file.set_len(IMAGE_BYTES));
        made.and_then(|()| fs::create_dir(&volume.dir))
            .map_err(|error| error.to_string())?;
        run(Command::new("mkfs.ext4")
            // What is initialized later is written while others measure.
            .args(["-q", "-F", "-m", "0", "-E"])
            .arg("lazy_itable_init=0,lazy_journal_init=0")
            .arg(&image))?;
        run(Command::new("mount")
            .args(["-o", "loop"])
            .arg(&image)
            .arg(&volume.dir))?;
        Ok(volume)
    }

    /// A new folder in one that is there.
    pub fn folder(parent: &Path) -> Result<Self, String> {
        let dir = parent.join(format!("edgehub-full-{}", std::process::id()));
        fs::create_dir(&dir).map_err(|error| format!("{}: {error}", dir.display()))?;
        let volume = Self { dir, janitor: None };
        let bytes = volume.bytes().0;
        if bytes > VOLUME_BYTES_MAX {
            return Err(format!(
                "{} is on a volume of {} MiB, at most {}",
                parent.display(),
                bytes >> 20,
                VOLUME_BYTES_MAX >> 20
            ));
        }
        Ok(volume)
    }

    /// Size, and what is free.
    pub fn bytes(&self) -> (u64, u64) {
        let stat = rustix::fs::statvfs(&self.dir).unwrap();
        (stat.f_blocks * stat.f_frsize, stat.f_bavail * stat.f_frsize)
    }

    pub fn free(&self) -> u64 {
        self.bytes().1
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        match &mut self.janitor {
            Some(janitor) => {
                drop(janitor.stdin.take());
                let _ = janitor.wait();
            }
            None => {
                let _ = fs::remove_dir_all(&self.dir);
            }
        }
    }
}

fn janitor(folder: &Path) -> Child {
    Command::new("sh")
        .args(["-c", JANITOR, "janitor"])
        .arg(folder)
        .stdin(Stdio::piped())
        .process_group(0)
        .spawn()
        .unwrap()
}

fn run(command: &mut Command) -> Result<(), String> {
    let output = command
        .output()
        .map_err(|error| format!("{command:?}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let why = String::from_utf8_lossy(&output.stderr);
    Err(format!("{command:?}: {}", why.trim()))
}
