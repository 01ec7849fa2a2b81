//! Stores that earlier versions wrote, kept in `tests/fixtures`: this one reads them whole. Made
//! by `cargo bench --bench store_fixtures`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    missing_docs
)]

#[path = "store/fixture.rs"]
mod fixture;
#[path = "store/rig.rs"]
mod rig;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use edgehub::store::disk::RealDisk;
use edgehub::store::inspect::inspect;
use edgehub::store::inspect::verify::verify;
use edgehub::store::journal::Journal;
use edgehub::store::{Loss, LossReason, Opened};
use fixture::{END_MS, ENDS, HOUR_MS, MONTH_MS, Row, SEGMENT_BYTES};
use rig::{Rig, WALL_MS, lane_of, options};
use tempfile::TempDir;

/// Every format that was ever released.
const FORMATS: &[&str] = &["store-v1"];
const STORE_ID: u64 = 7;

/// A store of the fixtures, in a folder of its own, and what waits in it.
struct Kept {
    name: String,
    dir: TempDir,
    rows: Vec<Row>,
}

fn all() -> Vec<Kept> {
    let stores = FORMATS
        .iter()
        .flat_map(|format| ENDS.map(|ended| kept(format, ended)));
    stores.collect()
}

fn kept(format: &str, ended: &str) -> Kept {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(format);
    let dir = tempfile::tempdir().unwrap();
    fixture::unpack(&folder.join(ended), dir.path());
    let rows = fs::read_to_string(folder.join(format!("{ended}.txt"))).unwrap();
    Kept {
        name: format!("{format}/{ended}"),
        dir,
        rows: fixture::of_text(&rows),
    }
}

impl Kept {
    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Opens it some time after its end.
    fn open(&self, later_ms: u64) -> io::Result<(Rig, Opened)> {
        let disk = Arc::new(RealDisk::new(self.dir.path()).unwrap());
        let wall_ms = WALL_MS + END_MS + 10_000 + later_ms;
        Rig::open(disk, options(SEGMENT_BYTES), (1000, wall_ms))
    }

    /// Takes everything, and acknowledges it.
    fn take(&self, rig: &Rig, losses: &mut Vec<Loss>) -> Vec<Row> {
        let taken = rig
            .drain(losses)
            .unwrap()
            .into_iter()
            .map(|(at, delivery)| {
                let (lane, seq) = (lane_of(delivery.priority), delivery.seq);
                let known = self
                    .rows
                    .iter()
                    .find(|row| (row.at, row.lane, row.seq) == (at, lane, seq));
                let row = *known.unwrap_or_else(|| panic!("{}: seq {seq} at {at}", self.name));
                assert_eq!(delivery.message.payload, fixture::payload(row.number));
                assert_eq!(delivery.message.origin.text(), "d/m\0out");
                assert_eq!(&delivery.message.bag[..], b"%24.cdid=d");
                row
            });
        let mut rows: Vec<_> = taken.collect();
        rows.sort_unstable();
        rows
    }
}

#[test]
fn every_message_waits_where_it_was_and_what_was_acknowledged_does_not() {
    for kept in all() {
        let (rig, opened) = kept.open(0).unwrap();
        assert_eq!(
            opened.was_closed,
            kept.name.ends_with("closed"),
            "{}",
            kept.name
        );
        assert!(
            opened.lost.is_empty() && opened.remarks.is_empty(),
            "{opened:?}"
        );
        assert_eq!(opened.messages, kept.rows.len(), "{}", kept.name);
        assert_eq!(rig.store.id(), Some(STORE_ID));
        let mut losses = Vec::new();
        assert_eq!(kept.take(&rig, &mut losses), kept.rows, "{}", kept.name);
        assert!(losses.is_empty(), "{losses:?}");
        // And it stays so with this version's own notes.
        rig.store.end(rig.now_ms + 1000);
        drop(rig);
        let (rig, opened) = kept.open(1000).unwrap();
        assert_eq!((opened.messages, opened.was_closed), (0, true));
        assert!(kept.take(&rig, &mut Vec::new()).is_empty());
    }
}

#[test]
fn times_to_live_are_those_that_were_given() {
    for later_ms in [HOUR_MS, MONTH_MS] {
        for kept in all() {
            // A day is believed at once; more has to hold for a while.
            let (mut rig, _) = kept.open(later_ms).unwrap();
            let mut losses = Vec::new();
            for _ in 0..700 {
                rig.now_ms += 1000;
                rig.tick(&mut losses);
            }
            let alive = |row: &&Row| row.ttl_ms == 0 || row.ttl_ms > later_ms;
            let expected: Vec<_> = kept.rows.iter().filter(alive).copied().collect();
            assert!(!expected.is_empty() && expected.len() < kept.rows.len());
            assert_eq!(kept.take(&rig, &mut losses), expected, "{}", kept.name);
            let expired = losses
                .iter()
                .filter(|loss| loss.reason == LossReason::Expired);
            let expired: usize = expired.map(|loss| loss.messages).sum();
            assert_eq!(expired, kept.rows.len() - expected.len(), "{}", kept.name);
        }
    }
}

#[test]
fn sessions_are_those_that_were_kept() {
    for kept in all() {
        let disk = Arc::new(RealDisk::new(kept.dir.path()).unwrap());
        let (_journal, (sessions, damage)) = Journal::open(disk, STORE_ID, true).unwrap();
        assert_eq!((sessions, damage), (fixture::sessions(), Vec::new()));
    }
}

#[test]
fn from_outside_it_looks_the_same_and_is_sound() {
    for kept in all() {
        let seen = inspect(kept.dir.path()).unwrap();
        let messages: u64 = seen.lanes.iter().map(|lane| lane.messages).sum();
        assert_eq!(messages, kept.rows.len() as u64, "{}", kept.name);
        assert_eq!(seen.sessions, fixture::sessions());
        assert!(seen.segments > 2 && seen.damage.is_empty(), "{seen:?}");
        let verdict = verify(kept.dir.path()).unwrap();
        assert!(
            verdict.damaged.is_empty() && verdict.frames > 0,
            "{verdict:?}"
        );
    }
}

/// The checksum of a page, as the format has it.
fn seal(page: &mut [u8]) {
    let crc = crc32c::crc32c_append(crc32c::crc32c(&page[..12]), &page[16..4096]);
    page[12..16].copy_from_slice(&crc.to_le_bytes());
}

#[test]
fn a_newer_format_is_refused_by_the_file_that_has_it() {
    let refused = |kept: &Kept, file: &str| {
        let error = kept.open(0).err().expect("it opened").to_string();
        assert!(
            error.contains(file) && error.contains("format 2"),
            "{error}"
        );
        let error = inspect(kept.dir.path())
            .expect_err("it was read")
            .to_string();
        assert!(
            error.contains(file) && error.contains("format 2"),
            "{error}"
        );
    };
    for kept in all() {
        let text = fs::read_to_string(kept.path("FORMAT")).unwrap();
        let newer = text.replace("edgehub store 1", "edgehub store 2");
        let front = newer
            .rsplit_once('\n')
            .unwrap()
            .0
            .rsplit_once('\n')
            .unwrap()
            .0;
        let crc = crc32c::crc32c(format!("{front}\n").as_bytes());
        fs::write(kept.path("FORMAT"), format!("{front}\n{crc:08x}\n")).unwrap();
        refused(&kept, "FORMAT");
        fs::write(kept.path("FORMAT"), text).unwrap();
        let names = fs::read_dir(kept.path("seg")).unwrap();
        let mut names: Vec<_> = names.map(|name| name.unwrap().path()).collect();
        names.sort();
        let used = |path: &&PathBuf| fs::read(path).unwrap().starts_with(b"EHUBSEG");
        let oldest = names.iter().find(used).unwrap();
        let mut bytes = fs::read(oldest).unwrap();
        bytes[8] = 2;
        seal(&mut bytes);
        fs::write(oldest, &bytes).unwrap();
        refused(&kept, oldest.file_name().unwrap().to_str().unwrap());
    }
}

#[test]
fn a_newer_small_state_is_refused_by_its_file() {
    for kept in all() {
        let names = fs::read_dir(kept.path("state")).unwrap();
        let path = names.map(|name| name.unwrap().path()).next().unwrap();
        let mut bytes = fs::read(&path).unwrap();
        bytes[8] = 2;
        let crc = crc32c::crc32c(&bytes[..4092]);
        bytes[4092..4096].copy_from_slice(&crc.to_le_bytes());
        fs::write(&path, &bytes).unwrap();
        let disk = Arc::new(RealDisk::new(kept.dir.path()).unwrap());
        let error = Journal::open(disk, STORE_ID, true).expect_err("it opened");
        let name = path.file_name().unwrap().to_str().unwrap();
        let text = error.to_string();
        assert!(text.contains(name) && text.contains("format 2"), "{text}");
        assert_eq!(fs::read(&path).unwrap(), bytes, "it was changed");
    }
}
