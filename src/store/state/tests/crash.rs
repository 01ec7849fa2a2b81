//! The writer on a disk that fails, forgets and tears: what was confirmed is there.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;

use super::disk::{Random, SimDisk};
use crate::store::state::write::Writer;

/// What was ever put to each key, and how much of it is confirmed.
#[derive(Debug, Default)]
struct Model {
    puts: BTreeMap<String, Vec<Option<Bytes>>>,
    /// From here on, each of the puts may be what counts.
    confirmed: BTreeMap<String, usize>,
}

impl Model {
    fn put(&mut self, key: &str, value: Option<Bytes>) {
        let puts = self
            .puts
            .entry(key.to_owned())
            .or_insert_with(|| vec![None]);
        puts.push(value);
    }

    fn confirm(&mut self) {
        for (key, puts) in &self.puts {
            self.confirmed.insert(key.clone(), puts.len() - 1);
        }
    }

    /// Checks what a start has found; if that is `kept`, it is confirmed.
    fn check(&mut self, found: &BTreeMap<String, Bytes>, kept: bool, context: &str) {
        for key in found.keys() {
            assert!(self.puts.contains_key(key), "{context}: {key} is new");
        }
        for (key, puts) in &mut self.puts {
            let from = self.confirmed.get(key).copied().unwrap_or_default();
            let value = found.get(key).cloned();
            assert!(puts[from..].contains(&value), "{context}: {key}");
            puts.push(value);
        }
        if kept {
            self.confirm();
        }
    }
}

fn live_through(seed: u64, sync: bool, fail_one_in: u64) {
    let mut random = Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
    let mut disk = SimDisk::new(random.0);
    let mut model = Model::default();
    for life in 0..6 {
        let context = format!("seed {seed}, life {life}");
        disk.plan(random.below(60), fail_one_in);
        if let Ok((mut writer, found, damage)) = Writer::open(Arc::new(disk.clone()), 1, sync) {
            // A batch whose sync failed may be missed, though all of it was written once more.
            assert!(
                damage.is_empty() || sync && fail_one_in > 0,
                "{context}: {damage:?}"
            );
            model.check(&found, writer.is_written(), &context);
            while !disk.is_off() {
                for _ in 0..random.below(4) {
                    let key = format!("k{}", random.below(5));
                    let len = [10, 300, 6000][random.below(3) as usize];
                    let value = vec![random.below(256) as u8; len];
                    let value = (random.below(4) > 0).then(|| Bytes::from(value));
                    model.put(&key, value.clone());
                    writer.put(key, value);
                }
                if writer.write().is_ok() {
                    model.confirm();
                }
                if random.below(10) == 0 {
                    writer.force_rewrite();
                }
            }
            if random.below(2) == 0 {
                writer.close();
            }
        }
        disk = disk.restart(sync && random.below(3) > 0);
    }
    let (writer, found, damage) = Writer::open(Arc::new(disk.clone()), 1, sync).unwrap();
    assert!(
        damage.is_empty() || sync && fail_one_in > 0,
        "seed {seed}: {damage:?}"
    );
    model.check(&found, true, &format!("seed {seed}, end"));
    assert!(writer.is_written());
    let names = disk.names();
    let logs = names.iter().filter(|name| name.ends_with(".log")).count();
    let others = names.iter().filter(|name| *name == "state/damaged").count();
    assert_eq!((logs, names.len() - others), (1, 1), "{names:?}");
}

fn seeds() -> u64 {
    let seeds = std::env::var("STATE_SEEDS").ok();
    seeds.and_then(|seeds| seeds.parse().ok()).unwrap_or(150)
}

#[test]
fn after_a_loss_of_power_all_that_was_confirmed_is_there() {
    for seed in 0..seeds() {
        live_through(seed, true, 0);
    }
}

#[test]
fn on_a_failing_disk_only_what_is_kept_is_confirmed() {
    for seed in 0..seeds() {
        live_through(seed, true, 2 + seed % 9);
    }
}

#[test]
fn without_sync_all_that_was_confirmed_outlives_the_process() {
    for seed in 0..seeds() {
        live_through(seed, false, seed % 10);
    }
}
