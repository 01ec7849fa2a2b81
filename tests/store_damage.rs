//! Stores whose files are damaged, deleted or cut, whose disk fails, whose clock jumps: what is
//! lost, and whether it is told. The long run is `cargo bench --bench store_damage`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    missing_docs
)]

#[path = "store/clocks.rs"]
mod clocks;
#[path = "store/damage.rs"]
mod damage;
#[path = "store/expiry.rs"]
mod expiry;
#[path = "store/failing.rs"]
mod failing;
#[path = "store/rig.rs"]
mod rig;
#[path = "store/sim_disk.rs"]
mod sim_disk;

use std::io::IoSlice;

use edgehub::store::disk::Disk;

use damage::{Built, Damage, Ended, Total, build};
use failing::{Fault, Seen};
use sim_disk::{FaultKind, Faults, SimDisk};

const BYTES: u64 = 256 * 1024;
const PAGE: u64 = 4096;
/// Of the bits of all files, one in so many is tried; of those of the special pages, more.
const FLIP_EVERY: u64 = 80_021;
const FLIP_SPECIAL_EVERY: u64 = 1531;
const ZERO_EVERY: usize = 7;

/// Tries all damages, and tells of those that went wrong at once.
fn check_all(name: &str, built: &Built, damages: impl Iterator<Item = Damage>) -> Total {
    let disk = SimDisk::new(1, Faults::default());
    let mut total = Total::default();
    let mut failed = Vec::new();
    for damage in damages {
        match built.check(&disk, damage) {
            Ok(outcome) => total.add(outcome),
            Err(why) => failed.push(format!("{damage:?}: {why}")),
        }
    }
    println!("{name}: {total:?}");
    let some: Vec<_> = failed.iter().take(10).collect();
    assert!(failed.is_empty(), "{} failed: {some:#?}", failed.len());
    total
}

/// Bits all over the files, and more of the header, checkpoint and footer of two segments.
fn flips(built: &Built) -> Vec<Damage> {
    let mut flips = Vec::new();
    for (file, (_, len)) in built.files.iter().enumerate() {
        let bits = (0..len * 8).step_by(FLIP_EVERY as usize);
        flips.extend(bits.map(|bit| Damage::Flip { file, bit }));
    }
    let segments = built.segments();
    for file in [*segments.first().unwrap(), built.newest()] {
        let len = built.files[file].1;
        for page in [0, PAGE, len - PAGE] {
            let bits = (page * 8..(page + PAGE) * 8).step_by(FLIP_SPECIAL_EVERY as usize);
            flips.extend(bits.map(|bit| Damage::Flip { file, bit }));
        }
    }
    flips
}

fn zeros(built: &Built, len: u64) -> Vec<Damage> {
    let segments = built.segments().into_iter();
    let of = |file: usize| (0..built.files[file].1).step_by(len as usize);
    segments
        .flat_map(|file| of(file).map(move |at| Damage::Zero { file, at, len }))
        .collect()
}

#[test]
fn a_flipped_bit_costs_one_message_at_most_and_is_told() {
    for ended in [Ended::Closed, Ended::Killed, Ended::Repacked] {
        let built = build(1, BYTES, ended);
        println!("{} messages, {} files", built.messages(), built.files.len());
        let total = check_all(
            &format!("{ended:?}, flips"),
            &built,
            flips(&built).into_iter(),
        );
        assert!(total.cases > 50 && total.with_loss > 0);
        // Also behind the damage, where a batch was not proven.
        assert!(ended == Ended::Killed || total.missing == total.with_loss);
        assert!(ended == Ended::Killed || total.untold == 0);
    }
}

#[test]
fn a_zeroed_sector_or_page_costs_what_lies_in_it_and_is_told() {
    for ended in [Ended::Closed, Ended::Killed, Ended::Repacked] {
        let built = build(2, BYTES, ended);
        let pages = zeros(&built, PAGE).into_iter().step_by(ZERO_EVERY);
        let sectors = zeros(&built, 512).into_iter().step_by(8 * ZERO_EVERY - 1);
        let total = check_all(&format!("{ended:?}, zeros"), &built, pages.chain(sectors));
        assert!(total.cases > 20 && total.with_loss > 0);
        assert!(ended == Ended::Killed || total.untold == 0);
    }
}

#[test]
fn a_deleted_or_cut_file_costs_its_own_messages_and_is_told() {
    for ended in [Ended::Closed, Ended::Repacked] {
        let built = build(3, BYTES, ended);
        delete_and_cut(&built);
    }
}

fn delete_and_cut(built: &Built) {
    let files = 0..built.files.len();
    let deleted = files.clone().map(|file| Damage::Delete { file });
    let total = check_all("deleted", built, deleted);
    assert!(total.with_loss > 0);
    let cut = files.flat_map(|file| {
        let whole = built.files[file].1;
        let lengths = [0, 1, PAGE, 3 * PAGE, 40_000, whole / 2, whole - 1];
        let lengths = lengths.into_iter().filter(move |len| *len < whole);
        lengths.map(move |len| Damage::Cut { file, len })
    });
    let total = check_all("cut", built, cut);
    assert!(total.with_loss > 0);
}

#[test]
fn a_call_that_fails_costs_nothing_that_was_kept() {
    const OPERATIONS: u64 = 600;
    let whole = failing::run(1, OPERATIONS, None).unwrap();
    println!("without faults: {whole:?}");
    let mut all = Seen::default();
    let mut failed = Vec::new();
    for kind in [FaultKind::Io, FaultKind::NoSpace] {
        for count in [1, 3] {
            for at in (count - 1..whole.calls).step_by(7) {
                let fault = Fault { at, kind, count };
                match failing::run(1, OPERATIONS, Some(fault)) {
                    Ok(seen) => all.add(seen),
                    Err(why) => failed.push(format!("{fault:?}: {why}")),
                }
            }
        }
    }
    println!("with faults: {all:?}");
    let some: Vec<_> = failed.iter().take(10).collect();
    assert!(failed.is_empty(), "{} failed: {some:#?}", failed.len());
    assert!(all.errors > 0);
}

#[test]
fn a_long_queue_expires_without_being_read() {
    let expired = expiry::expire(100_000);
    println!("{expired:?}");
    assert_eq!(expired.reported, expired.messages);
    assert_eq!((expired.waiting, expired.reads), (0, 0));
    assert!(expired.segments_before > 1 && expired.segments_after <= 1);
}

#[test]
fn a_segment_that_strayed_in_from_another_store_hides_nothing() {
    let built = build(4, BYTES, Ended::Closed);
    let time = (10_000_000, rig::WALL_MS + 10_000_000);
    let messages = |disk: &SimDisk| {
        let options = rig::options(Ended::Closed.segment_bytes());
        let (_, opened) = rig::Rig::open(disk.mount(), options, time).unwrap();
        opened.messages
    };
    let disk = SimDisk::new(1, Faults::default());
    disk.restore(&built.state);
    let all = messages(&disk);
    assert!(all > 0);
    for is_format_lost in [false, true] {
        disk.restore(&built.state);
        let (own, _) = &built.files[*built.segments().first().unwrap()];
        let mut page = disk.read_file(own)[..PAGE as usize].to_vec();
        // Another store's id, and the segment's: older than any here.
        page[16..24].copy_from_slice(&99_u64.to_le_bytes());
        page[24..32].copy_from_slice(&0_u64.to_le_bytes());
        let crc = crc32c::crc32c_append(crc32c::crc32c(&page[..12]), &page[16..]);
        page[12..16].copy_from_slice(&crc.to_le_bytes());
        let stray = disk.create("seg/0000000000000000.seg").unwrap();
        stray.write_at(&[IoSlice::new(&page)], 0).unwrap();
        if is_format_lost {
            disk.delete("FORMAT");
        }
        assert_eq!(messages(&disk), all, "without FORMAT: {is_format_lost}");
    }
}
