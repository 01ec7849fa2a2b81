mod crash;
mod disk;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use super::write::Writer;
use super::{State, format};
use crate::mailbox::{DURABLE, Mailbox};
use crate::store::disk::{Disk, PAGE_BYTES, RealDisk};
use crate::store::frame::SYNC_WORD;
use disk::SimDisk;

const STORE: u64 = 0xE46E;

fn real(dir: &Path) -> Arc<dyn Disk> {
    Arc::new(RealDisk::new(dir).unwrap())
}

fn path(dir: &Path, generation: u64) -> PathBuf {
    dir.join(format::path_of(generation))
}

fn value(text: &str) -> Option<Bytes> {
    Some(Bytes::copy_from_slice(text.as_bytes()))
}

type Texts = BTreeMap<String, String>;

fn texts(values: &BTreeMap<String, Bytes>) -> Texts {
    let text = |value: &Bytes| String::from_utf8(value.to_vec()).unwrap();
    values
        .iter()
        .map(|(key, value)| (key.clone(), text(value)))
        .collect()
}

fn load(dir: &Path) -> (Texts, Vec<String>) {
    let loaded = super::read::load(&RealDisk::existing(dir), STORE).unwrap();
    (texts(&loaded.values), loaded.damage)
}

/// A value of some length that begins so.
fn long(text: &str) -> String {
    format!("{text:-<250}")
}

/// Generation 2: a snapshot of six keys, then batches of changes, closed as at a clean end.
/// Returns what lives, and what lives after each change.
fn sample(dir: &Path, sync: bool) -> (Texts, Vec<Texts>) {
    let (mut writer, ..) = Writer::open(real(dir), STORE, sync).unwrap();
    for n in 0..6 {
        writer.put(format!("session/m{n}"), value(&long("old")));
    }
    writer.write().unwrap();
    let (mut writer, found, _) = Writer::open(real(dir), STORE, sync).unwrap();
    let mut now = texts(&found);
    let mut after = vec![now.clone()];
    let batches: [&[(u8, &str)]; 4] = [
        &[(0, "first"), (1, "first"), (2, "only")],
        &[(0, "second"), (3, "")],
        &[(1, "second"), (4, "only")],
        &[(3, "again"), (4, "")],
    ];
    for batch in batches {
        for (n, text) in batch {
            let key = format!("session/m{n}");
            let text = (!text.is_empty()).then(|| long(text));
            writer.put(key.clone(), text.as_deref().and_then(value));
            match text {
                Some(text) => now.insert(key, text),
                None => now.remove(&key),
            };
            after.push(now.clone());
        }
        writer.write().unwrap();
    }
    writer.close();
    assert_eq!(load(dir), (now.clone(), Vec::new()));
    (now, after)
}

/// Keys that are not as they should be.
fn missing(found: &Texts, all: &Texts, context: &str) -> Vec<String> {
    for (key, text) in found {
        assert_eq!(all.get(key), Some(text), "{context}: {key}");
    }
    let missing = all.keys().filter(|key| !found.contains_key(*key));
    missing.cloned().collect()
}

#[test]
fn a_flipped_bit_costs_at_most_its_key_and_never_gives_a_wrong_value() {
    for sync in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let (all, _) = sample(dir.path(), sync);
        let path = path(dir.path(), 2);
        let good = fs::read(&path).unwrap();
        let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
        // Nothing stands behind the last mark that could miss it.
        let mark = good
            .windows(4)
            .rposition(|some| some == SYNC_WORD.to_le_bytes())
            .unwrap();
        for at in 0..good.len() {
            // Of the zeros between, a few are enough; and with sync, a bit of each byte.
            if at % 64 > 0 && good[at..].iter().take(64).all(|byte| *byte == 0) {
                continue;
            }
            for bit in (0..8).filter(|bit| !sync || at % 8 == *bit) {
                file.write_all_at(&[good[at] ^ (1 << bit)], at as u64)
                    .unwrap();
                let context = format!("sync {sync}, byte {at}, bit {bit}");
                let (found, damage) = load(dir.path());
                let missing = missing(&found, &all, &context);
                assert!(
                    missing.len() <= 1 && damage.len() <= 1,
                    "{context}: {damage:?}"
                );
                let silent = good[at] == 0 || at >= mark;
                assert!(silent || damage.len() == 1, "{context}");
                for key in missing {
                    // Where the key itself was hit and stands nowhere else, nothing names it.
                    let named = damage[0].contains(&key) || damage[0].contains("nothing names");
                    assert!(named, "{context}: {damage:?}");
                }
            }
            file.write_all_at(&good[at..=at], at as u64).unwrap();
        }
    }
}

#[test]
fn a_cut_file_opens_with_what_came_before_the_cut() {
    for sync in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let (_, after) = sample(dir.path(), sync);
        let path = path(dir.path(), 2);
        let good = fs::read(&path).unwrap();
        let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
        file.set_len(0).unwrap();
        let mut reached = 0;
        for len in 0..good.len() {
            if len > 0 {
                let at = len - 1;
                file.write_all_at(&good[at..len], at as u64).unwrap();
            }
            if sync && len > 3 * PAGE_BYTES && len % 61 > 0 {
                continue;
            }
            let (found, damage) = load(dir.path());
            // In the snapshot, keys come one by one; then there are all, with their changes.
            let old = &after[0];
            if found.len() < old.len() && reached == 0 {
                assert!(missing(&found, old, &format!("{len} bytes")).len() == 6 - found.len());
                assert!(!damage.is_empty(), "{len} bytes");
                continue;
            }
            let now = after.iter().skip(reached).position(|texts| *texts == found);
            reached += now.unwrap_or_else(|| panic!("{len} bytes: {found:?}"));
        }
        assert_eq!(reached, after.len() - 1);
    }
}

#[test]
fn of_two_generations_the_newer_counts_and_the_older_goes() {
    let dir = tempfile::tempdir().unwrap();
    let (all, after) = sample(dir.path(), true);
    let newer = fs::read(path(dir.path(), 2)).unwrap();
    // The older one, as it was before it was removed.
    let before = tempfile::tempdir().unwrap();
    let (mut writer, ..) = Writer::open(real(before.path()), STORE, true).unwrap();
    for (key, text) in &after[0] {
        writer.put(key.clone(), value(text));
    }
    writer.put("session/gone".to_owned(), value("gone"));
    writer.write().unwrap();
    let older = fs::read(path(before.path(), 1)).unwrap();
    let both = |newer: &[u8]| {
        fs::write(path(dir.path(), 1), &older).unwrap();
        fs::write(path(dir.path(), 2), newer).unwrap();
        fs::write(dir.path().join(format::UNFINISHED), b"half").unwrap();
        let found = load(dir.path());
        drop(Writer::open(real(dir.path()), STORE, true).unwrap());
        assert!(path(dir.path(), 3).exists() && !path(dir.path(), 1).exists());
        assert!(!path(dir.path(), 2).exists());
        assert!(!dir.path().join(format::UNFINISHED).exists());
        assert_eq!(load(dir.path()).0, found.0);
        fs::remove_file(path(dir.path(), 3)).unwrap();
        found
    };
    assert_eq!(both(&newer), (all.clone(), Vec::new()));
    // A damaged header or mark alone does not bring the older one back.
    for at in [3, PAGE_BYTES - 1] {
        let mut bytes = newer.clone();
        bytes[at] ^= 1;
        let (found, damage) = both(&bytes);
        assert_eq!((found, damage.len()), (all.clone(), 1), "{damage:?}");
    }
    // Where the newer one is not whole, both together are the state.
    let (found, damage) = both(&newer[..PAGE_BYTES + 200]);
    assert_eq!(found.len(), 7);
    assert!(
        damage.len() == 3 && found.contains_key("session/gone"),
        "{damage:?}"
    );
    assert_eq!(
        fs::read(dir.path().join(format::DAMAGED)).unwrap().len(),
        PAGE_BYTES + 200
    );
    let (found, damage) = both(b"");
    assert!(damage.len() == 2 && found.len() == 7, "{damage:?}");
}

#[test]
fn a_file_of_another_store_or_generation_gives_nothing() {
    let dir = tempfile::tempdir().unwrap();
    sample(dir.path(), true);
    let loaded = super::read::load(&RealDisk::existing(dir.path()), STORE + 1).unwrap();
    assert!(
        loaded.values.is_empty() && loaded.damage.len() == 2,
        "{:?}",
        loaded.damage
    );
    fs::rename(path(dir.path(), 2), path(dir.path(), 9)).unwrap();
    assert!(load(dir.path()).0.is_empty());
    let (mut writer, found, damage) = Writer::open(real(dir.path()), STORE, true).unwrap();
    assert!(found.is_empty() && damage.len() == 2, "{damage:?}");
    writer.put("a".to_owned(), value("1"));
    writer.write().unwrap();
    assert_eq!(load(dir.path()).0.len(), 1);
}

#[test]
fn a_run_of_lost_pages_costs_what_was_in_them() {
    let dir = tempfile::tempdir().unwrap();
    let (mut writer, ..) = Writer::open(real(dir.path()), STORE, false).unwrap();
    for n in 0..400 {
        writer.put(format!("session/m{n:03}"), value(&"v".repeat(100)));
        writer.write().unwrap();
    }
    writer.close();
    let path = path(dir.path(), 1);
    let mut bytes = fs::read(&path).unwrap();
    bytes[5 * PAGE_BYTES..7 * PAGE_BYTES].fill(0);
    fs::write(&path, &bytes).unwrap();
    let (found, damage) = load(dir.path());
    assert!((350..360).contains(&found.len()), "{} keys", found.len());
    // The first began on the page before, and the next good frame knows the last.
    assert_eq!(damage.len(), 2, "{damage:?}");
    let said = format!("{} values of unknown keys", 398 - found.len());
    assert!(damage[1].contains(&said), "{damage:?}");
}

#[test]
fn after_a_failed_sync_all_goes_into_a_new_generation() {
    let disk = SimDisk::new(7);
    let (mut writer, ..) = Writer::open(Arc::new(disk.clone()), STORE, true).unwrap();
    writer.put("a".to_owned(), value("1"));
    writer.write().unwrap();
    // The next write comes through, its sync does not; neither does the first rewrite.
    disk.plan(1, 0);
    writer.put("b".to_owned(), value("2"));
    assert!(writer.write().is_err() && !writer.is_written());
    assert!(writer.write().is_err());
    disk.plan(u64::MAX, 0);
    writer.write().unwrap();
    assert!(writer.is_written());
    assert_eq!(disk.names(), ["state/0000000000000003.log"]);
    let (_, found, damage) = Writer::open(Arc::new(disk.restart(true)), STORE, true).unwrap();
    assert!(
        found.len() == 2 && damage.is_empty(),
        "{found:?} {damage:?}"
    );
}

#[test]
fn a_file_that_grows_is_written_anew_and_a_full_disk_only_puts_it_off() {
    let disk = SimDisk::new(7);
    let (mut writer, ..) = Writer::open(Arc::new(disk.clone()), STORE, true).unwrap();
    let put = |writer: &mut Writer| {
        writer.put("a".to_owned(), value(&"x".repeat(100_000)));
        writer.write().unwrap();
    };
    for _ in 0..5 {
        put(&mut writer);
    }
    disk.plan(u64::MAX, 1);
    assert!(writer.compact().is_err() && writer.is_written());
    disk.plan(u64::MAX, 0);
    put(&mut writer);
    writer.compact().unwrap();
    assert_eq!(disk.names(), ["state/0000000000000001.log"]);
    for _ in 0..5 {
        put(&mut writer);
    }
    writer.compact().unwrap();
    assert_eq!(disk.names(), ["state/0000000000000003.log"]);
}

#[test]
fn on_a_full_disk_the_first_start_waits_for_room() {
    let disk = SimDisk::new(7);
    disk.plan(u64::MAX, 1);
    let (mut writer, ..) = Writer::open(Arc::new(disk.clone()), STORE, true).unwrap();
    writer.put("a".to_owned(), value("1"));
    assert!(writer.write().is_err() && !writer.is_written());
    disk.plan(u64::MAX, 0);
    writer.write().unwrap();
    assert!(writer.is_written());
}

#[test]
fn while_the_disk_refuses_changes_are_settled_and_later_durable() {
    let disk = SimDisk::new(7);
    let (state, ..) = State::open(Arc::new(disk.clone()), STORE, true).unwrap();
    disk.plan(u64::MAX, 1);
    let mailbox = Arc::new(Mailbox::default());
    let version = state.record("a", value("1"), &mailbox).unwrap();
    let started = std::time::Instant::now();
    let until = |what: &dyn Fn() -> bool| {
        while !what() {
            assert!(started.elapsed().as_secs() < 20, "never");
            std::thread::yield_now();
        }
    };
    let waker = std::task::Waker::noop();
    until(&|| mailbox.take(waker) == DURABLE);
    assert_eq!((version, state.settled(), state.durable()), (1, 1, 0));
    // Nobody waits for what the disk has refused already.
    assert_eq!(state.watch(&mailbox), 1);
    disk.plan(u64::MAX, 0);
    until(&|| state.durable() == 1);
    // Whoever was told that it waits is told when it does no longer.
    until(&|| mailbox.take(waker) == DURABLE);
}

#[test]
fn what_was_read_from_a_disk_that_refuses_is_a_version_too() {
    let disk = SimDisk::new(7);
    let (mut writer, ..) = Writer::open(Arc::new(disk.clone()), STORE, true).unwrap();
    writer.put("a".to_owned(), value("1"));
    writer.write().unwrap();
    disk.plan(u64::MAX, 1);
    let (state, found, _) = State::open(Arc::new(disk.clone()), STORE, true).unwrap();
    assert_eq!((found.len(), state.newest(), state.durable()), (1, 1, 0));
    disk.plan(u64::MAX, 0);
    drop(state);
    let (_, found, _) = Writer::open(Arc::new(disk.restart(true)), STORE, true).unwrap();
    assert_eq!(found.len(), 1);
}
