//! The simulated disk itself, before anything is concluded from it.

use std::collections::BTreeSet;

use edgehub::store::disk::PAGE_BYTES;

use super::*;

#[path = "runs.rs"]
mod runs;

const POWER: CrashMode = CrashMode::Power { garbage: false };
const GARBAGE: CrashMode = CrashMode::Power { garbage: true };

fn sim(seed: u64) -> Arc<SimDisk> {
    SimDisk::new(seed, Faults::default())
}

fn put(file: &Arc<dyn DiskFile>, bytes: &[u8], offset: u64) -> io::Result<()> {
    file.write_at(&[IoSlice::new(bytes)], offset)
}

/// A durable file of so many pages, full of `byte`.
fn durable(disk: &SimDisk, path: &str, byte: u8, pages: usize) -> Arc<dyn DiskFile> {
    let file = disk.create(path).unwrap();
    put(&file, &vec![byte; pages * PAGE_BYTES], 0).unwrap();
    file.sync_data().unwrap();
    disk.sync_dir("").unwrap();
    file
}

/// The bytes that fill the sectors of a file.
fn sectors(disk: &SimDisk, path: &str) -> Vec<Vec<u8>> {
    let bytes = disk.read_file(path);
    let distinct = |sector: &[u8]| sector.iter().copied().collect::<BTreeSet<_>>();
    let chunks = bytes.chunks(SECTOR_BYTES).map(distinct);
    chunks.map(|bytes| bytes.into_iter().collect()).collect()
}

fn code(result: io::Result<()>) -> Option<i32> {
    result.unwrap_err().raw_os_error()
}

#[test]
fn power_keeps_or_loses_each_sector_and_nothing_that_was_synced() {
    let (mut lost, mut kept, mut mixed) = (0, 0, 0);
    for seed in 0..300 {
        let disk = sim(seed);
        let file = durable(&disk, "a", 1, 3);
        put(&file, &[2; PAGE_BYTES], PAGE_BYTES as u64).unwrap();
        disk.crash(POWER);
        let sectors = sectors(&disk, "a");
        assert!(sectors.iter().all(|bytes| matches!(bytes[..], [1 | 2])));
        let new = sectors.iter().filter(|bytes| bytes[..] == [2]).count();
        assert!(
            sectors[..8]
                .iter()
                .chain(&sectors[16..])
                .all(|bytes| bytes[..] == [1])
        );
        match new {
            0 => lost += 1,
            8 => kept += 1,
            _ => mixed += 1,
        }
    }
    assert!(
        lost > 20 && kept > 20 && mixed > 20,
        "{lost} {kept} {mixed}"
    );
}

#[test]
fn garbage_spoils_neighbours_in_the_page_only() {
    let mut spoilt = 0;
    for seed in 0..300 {
        let disk = sim(seed);
        let file = durable(&disk, "a", 1, 3);
        put(&file, &[2; SECTOR_BYTES], PAGE_BYTES as u64).unwrap();
        disk.crash(GARBAGE);
        let sectors = sectors(&disk, "a");
        assert!(
            sectors[..8]
                .iter()
                .chain(&sectors[16..])
                .all(|bytes| bytes[..] == [1])
        );
        spoilt += usize::from(sectors[9..16].iter().any(|bytes| bytes[..] != [1]));
    }
    assert!(spoilt > 20, "{spoilt}");
}

#[test]
fn lengths_are_kept_or_lost_and_what_is_lost_reads_as_zeros() {
    let mut seen = BTreeSet::new();
    for seed in 0..300 {
        let disk = sim(seed);
        let file = durable(&disk, "a", 1, 1);
        put(&file, &[2; PAGE_BYTES], PAGE_BYTES as u64).unwrap();
        file.set_len(100).unwrap();
        file.allocate(3 * PAGE_BYTES as u64).unwrap();
        put(&file, &[3; 10], 2 * PAGE_BYTES as u64).unwrap();
        disk.crash(POWER);
        let bytes = disk.read_file("a");
        match bytes.len() {
            // What the cut off page held is gone from the cache.
            4096 => assert!(bytes.iter().all(|byte| *byte == 1)),
            8192 => assert!(bytes[4096..].iter().all(|byte| *byte == 0)),
            100 => assert_eq!(bytes, [1; 100]),
            12288 => assert!(bytes[100..8192].iter().all(|byte| *byte == 0)),
            len => panic!("{len} bytes"),
        }
        seen.insert(bytes.len());
        disk.open("a").unwrap().set_len(12288).unwrap();
        assert!(
            disk.read_file("a")[bytes.len()..]
                .iter()
                .all(|byte| *byte == 0)
        );
    }
    assert_eq!(seen.len(), 4);
}

#[test]
fn a_kill_loses_nothing_and_makes_nothing_durable() {
    let mut kept = 0;
    for seed in 0..100 {
        let disk = sim(seed);
        disk.create_dir("d").unwrap();
        let file = disk.create("d/a").unwrap();
        put(&file, &[7; 1000], 50).unwrap();
        disk.reopen();
        assert!(file.size().is_err());
        assert_eq!(disk.list("").unwrap(), ["d"]);
        let bytes = disk.read_file("d/a");
        assert_eq!((bytes.len(), &bytes[50..]), (1050, &[7; 1000][..]));
        disk.crash(POWER);
        kept += usize::from(disk.exists("d/a"));
    }
    assert!((10..90).contains(&kept), "{kept}");
}

#[test]
fn a_crash_keeps_a_prefix_of_the_changes_of_names() {
    let mut seen = BTreeSet::new();
    for seed in 0..200 {
        let disk = sim(seed);
        durable(&disk, "a", 1, 1);
        durable(&disk, "b", 2, 1);
        disk.rename("a", "c").unwrap();
        disk.remove("b").unwrap();
        disk.rename("c", "b").unwrap();
        disk.create("new").unwrap().sync_data().unwrap();
        disk.crash(POWER);
        seen.insert(disk.files().join(" "));
        if disk.exists("a") || disk.exists("c") {
            assert_eq!(
                disk.read_file(if disk.exists("a") { "a" } else { "c" })[0],
                1
            );
            assert!(!disk.exists("b") || disk.read_file("b")[0] == 2);
        } else {
            assert_eq!(disk.read_file("b")[0], 1);
        }
    }
    let all = ["a b", "b", "b c", "b new", "c"];
    assert_eq!(seen.iter().collect::<Vec<_>>(), all);
}

#[test]
fn names_are_durable_after_a_sync_of_the_folder() {
    for seed in 0..50 {
        let disk = sim(seed);
        disk.create_dir("d/e").unwrap();
        let file = disk.create("d/e/a.tmp").unwrap();
        put(&file, b"x", 0).unwrap();
        file.sync_data().unwrap();
        disk.rename("d/e/a.tmp", "d/e/a").unwrap();
        disk.sync_dir("d/e").unwrap();
        disk.crash(GARBAGE);
        assert_eq!(disk.files(), ["d/e/a"]);
        assert_eq!(disk.read_file("d/e/a"), b"x");
    }
}

#[test]
fn what_a_failed_sync_dropped_is_read_but_never_durable() {
    let (mut lost, mut kept) = (0, 0);
    for seed in 0..100 {
        let disk = sim(seed);
        let file = durable(&disk, "a", 1, 2);
        disk.set_faults(Faults {
            fail_call: Some((0, FaultKind::Io)),
            fail_calls: Calls::SYNC_DATA,
            ..Faults::default()
        });
        file.set_len(seed % 2 * PAGE_BYTES as u64).unwrap();
        put(&file, &[2; PAGE_BYTES], 0).unwrap();
        assert_eq!(code(file.sync_data()), Some(5));
        file.sync_data().unwrap();
        // Written again, it counts again.
        put(&file, &[3; SECTOR_BYTES], 0).unwrap();
        file.sync_data().unwrap();
        let before = sectors(&disk, "a");
        assert!(before[1..8].iter().all(|bytes| bytes[..] == [2]));
        disk.reopen();
        assert_eq!(sectors(&disk, "a"), before);
        disk.crash(POWER);
        let after = sectors(&disk, "a");
        assert_eq!(after[0], [3]);
        lost += after[1..8]
            .iter()
            .filter(|bytes| matches!(bytes[..], [0 | 1]))
            .count();
        kept += after[1..8].iter().filter(|bytes| bytes[..] == [2]).count();
    }
    assert_eq!(lost + kept, 700);
    assert!(lost > 100 && kept > 100, "{lost} {kept}");
}

#[test]
fn the_capacity_bounds_what_is_allocated_and_not_what_is_written_again() {
    let page = PAGE_BYTES as u64;
    for seed in 0..20 {
        let disk = sim(seed);
        disk.set_faults(Faults {
            capacity_bytes: 4 * page,
            ..Faults::default()
        });
        let file = disk.create("a").unwrap();
        file.allocate(3 * page).unwrap();
        assert_eq!(disk.free_bytes().unwrap(), page);
        let other = disk.create("b").unwrap();
        assert_eq!(code(other.allocate(2 * page)), Some(28));
        assert_eq!(code(put(&other, &[1; 2 * PAGE_BYTES], 0)), Some(28));
        assert!(disk.file_len("b") <= page);
        other.set_len(100 * page).unwrap();
        put(&other, &[1; 1], 0).unwrap();
        assert_eq!(disk.free_bytes().unwrap(), 0);
        assert_eq!(code(put(&other, &[1; 1], 7 * page)), Some(28));
        put(&file, &[2; 3 * PAGE_BYTES], 0).unwrap();
        put(&other, &[2; 10], 20).unwrap();
        // An open file keeps its room, and what a crash would bring back is not given away.
        disk.remove("a").unwrap();
        assert_eq!(disk.free_bytes().unwrap(), 0);
        drop(file);
        assert_eq!(disk.free_bytes().unwrap(), 3 * page);
        other.allocate(4 * page).unwrap();
        disk.crash(POWER);
        assert!(!disk.exists("a"));
    }
}

#[test]
fn calls_fail_as_told() {
    let disk = sim(6);
    let file = durable(&disk, "a", 1, 1);
    disk.set_faults(Faults {
        fail_call: Some((1, FaultKind::NoSpace)),
        fail_count: 2,
        fail_calls: Calls::WRITE | Calls::RENAME,
        fail_reads: Some((1, 1)),
        ..Faults::default()
    });
    put(&file, &[2; 10], 0).unwrap();
    file.sync_data().unwrap();
    assert_eq!(code(disk.rename("a", "b")), Some(28));
    assert_eq!(code(put(&file, &[2; 10], 0)), Some(28));
    disk.rename("a", "b").unwrap();
    let read = || file.read_at(&mut [0; 4], 0).map(drop);
    read().unwrap();
    assert_eq!(code(read()), Some(5));
    read().unwrap();
}

#[test]
fn the_power_goes_during_a_call_and_stays_off() {
    let mut reached = BTreeSet::new();
    for seed in 0..100 {
        let disk = sim(seed);
        let file = durable(&disk, "a", 1, 1);
        disk.set_faults(Faults {
            crash_at: Some(1),
            ..Faults::default()
        });
        file.sync_data().unwrap();
        assert!(put(&file, &[2; PAGE_BYTES], 0).is_err());
        assert!(disk.power_is_off() && disk.open("a").is_err() && file.size().is_err());
        disk.reopen();
        reached.insert(
            sectors(&disk, "a")
                .iter()
                .filter(|one| one[..] == [2])
                .count(),
        );
        disk.open("a").unwrap();
    }
    assert!(reached.len() > 5, "{reached:?}");
}

#[test]
fn an_old_life_cannot_touch_the_new_one() {
    let disk = sim(7);
    let life = disk.mount();
    let file = durable(&life, "a", 1, 1);
    disk.crash(POWER);
    assert!(put(&file, b"x", 0).is_err() && file.sync_data().is_err());
    assert!(life.create("b").is_err() && life.remove("a").is_err() && life.list("").is_err());
    drop(file);
    assert_eq!(disk.files(), ["a"]);
    disk.mount().create("b").unwrap();
}

#[test]
fn open_files_outlive_their_names() {
    let disk = sim(8);
    let old = durable(&disk, "a", 1, 1);
    let new = durable(&disk, "b", 2, 1);
    disk.rename("b", "a").unwrap();
    disk.sync_dir("").unwrap();
    put(&old, &[3; 10], 0).unwrap();
    old.sync_data().unwrap();
    put(&new, &[4; 10], 0).unwrap();
    assert_eq!(old.read_at(&mut [0; 9000], 0).unwrap(), PAGE_BYTES);
    assert_eq!(disk.read_file("a")[..11], [4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 2]);
}

#[test]
fn writes_stray() {
    let disk = sim(9);
    let file = durable(&disk, "a", 1, 4);
    let set = |misdirect_ppm, duplicate_ppm| {
        disk.set_faults(Faults {
            misdirect_ppm,
            duplicate_ppm,
            ..Faults::default()
        });
    };
    let pages = || {
        let bytes = disk.read_file("a");
        bytes
            .chunks(PAGE_BYTES)
            .map(|page| page[0])
            .collect::<Vec<_>>()
    };
    set(1_000_000, 0);
    put(&file, &[2; PAGE_BYTES], 0).unwrap();
    assert_eq!(pages()[0], 1);
    assert_eq!(pages().iter().filter(|byte| **byte == 2).count(), 1);
    set(0, 1_000_000);
    put(&file, &[3; PAGE_BYTES], 0).unwrap();
    assert_eq!(pages()[0], 3);
    assert_eq!(pages().iter().filter(|byte| **byte == 3).count(), 2);
}

#[test]
fn snapshots_come_back_after_any_damage() {
    let disk = sim(10);
    let file = durable(&disk, "a", 1, 2);
    durable(&disk, "b", 2, 2);
    put(&file, &[5; 10], 4090).unwrap();
    let state = disk.snapshot();
    let whole = (disk.read_file("a"), disk.read_file("b"));
    disk.flip_bit("a", 8 * 4091 + 1);
    assert_eq!(disk.read_file("a")[4091], 7);
    disk.zero("a", 4085, 10);
    assert_eq!(
        disk.read_file("a")[4085..4096],
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5]
    );
    disk.truncate("b", 5);
    disk.delete("a");
    disk.crash(POWER);
    assert_eq!(
        (disk.files(), disk.file_len("b")),
        (vec!["b".to_owned()], 5)
    );
    disk.restore(&state);
    disk.crash(POWER);
    assert!((disk.read_file("a"), disk.read_file("b")) == whole);
}
