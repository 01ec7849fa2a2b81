//! Long random runs on the simulated disk.

use super::*;

#[test]
fn reads_see_writes_of_any_shape() {
    let disk = sim(1);
    let mut file = disk.create("a").unwrap();
    let mut model = vec![0; 5 * PAGE_BYTES];
    let mut rng = Rng::new(2);
    for _ in 0..500 {
        let at = rng.below(4 * PAGE_BYTES as u64) as usize;
        let mut bytes = vec![0; rng.below(PAGE_BYTES as u64) as usize];
        rng.fill(&mut bytes);
        let (head, tail) = bytes.split_at(bytes.len() / 3);
        let parts = [IoSlice::new(head), IoSlice::new(tail)];
        file.write_at(&parts, at as u64).unwrap();
        model[at..at + bytes.len()].copy_from_slice(&bytes);
        let len = rng.below(5 * PAGE_BYTES as u64);
        match rng.below(8) {
            0 => file.sync_data().unwrap(),
            1 => {
                file.set_len(len).unwrap();
                model[len as usize..].fill(0);
            }
            2 => {
                disk.restore(&disk.snapshot());
                assert!(file.size().is_err());
                file = disk.open("a").unwrap();
            }
            3 => {
                disk.reopen();
                file = disk.open("a").unwrap();
            }
            _ => {}
        }
        let len = file.size().unwrap() as usize;
        assert!(disk.read_file("a") == model[..len]);
        let mut some = vec![1; 700];
        let read = file.read_at(&mut some, at as u64).unwrap();
        assert_eq!(read, len.saturating_sub(at).min(700));
        assert!(some[..read] == model[at..at + read]);
    }
}

#[test]
fn pages_that_nobody_touched_after_their_sync_survive_everything() {
    for seed in 0..500 {
        let disk = sim(seed);
        let file = durable(&disk, "a", 1, 8);
        let mut rng = Rng::new(seed);
        let mut synced = disk.read_file("a");
        let mut touched = BTreeSet::new();
        for _ in 0..rng.below(30) {
            let at = rng.below(8 * PAGE_BYTES as u64);
            let mut bytes = vec![0; rng.below(6000) as usize];
            rng.fill(&mut bytes);
            let end = match rng.below(6) {
                0 => {
                    file.sync_data().unwrap();
                    synced = disk.read_file("a");
                    touched.clear();
                    continue;
                }
                1 => file.set_len(at).map(|()| u64::MAX).unwrap(),
                2 => file.allocate(at + 1).map(|()| 0).unwrap(),
                _ => {
                    put(&file, &bytes, at).unwrap();
                    at + bytes.len() as u64
                }
            };
            touched.extend((0..16).filter(|page| (at / 4096..end.div_ceil(4096)).contains(page)));
        }
        disk.crash(GARBAGE);
        let after = disk.read_file("a");
        for (page, bytes) in (0..).zip(synced.chunks(PAGE_BYTES)) {
            let start = page as usize * PAGE_BYTES;
            assert!(
                touched.contains(&page) || after[start..].starts_with(bytes),
                "{seed}"
            );
        }
    }
}

/// A long run of everything, and what was seen on the way.
fn life(seed: u64) -> (Vec<String>, SimState) {
    let faults = Faults {
        capacity_bytes: 1 << 20,
        misdirect_ppm: 10_000,
        fail_call: Some((40, FaultKind::Io)),
        fail_count: 3,
        ..Faults::default()
    };
    let disk = SimDisk::new(seed, faults);
    let mut rng = Rng::new(seed);
    let mut seen = Vec::new();
    for _ in 0..150 {
        let path = format!("{}", rng.below(4));
        let (at, bytes) = (rng.below(100_000), vec![1; rng.below(9000) as usize]);
        let done = match (rng.below(9), disk.open(&path)) {
            (0, _) | (_, Err(_)) => disk.create(&path).map(drop),
            (1, _) => disk.rename(&path, &format!("{}", rng.below(4))),
            (2, _) => disk.sync_dir(""),
            (3, _) => {
                disk.crash([CrashMode::Kill, POWER, GARBAGE][rng.below(3) as usize]);
                Ok(())
            }
            (4, Ok(file)) => file.sync_data(),
            (5, Ok(file)) => file.allocate(at),
            (6, Ok(file)) => file.set_len(at),
            (_, Ok(file)) => put(&file, &bytes, at),
        };
        seen.push(format!(
            "{done:?} {:?} {:?}",
            disk.list(""),
            disk.free_bytes()
        ));
        let files = disk.files();
        seen.extend(
            files
                .iter()
                .map(|path| format!("{path} {}", disk.file_len(path))),
        );
    }
    (seen, disk.snapshot())
}

#[test]
fn the_seed_decides() {
    for seed in 0..100 {
        let (first, second) = (life(seed), life(seed));
        assert_eq!(first.0, second.0);
        assert_eq!(format!("{:?}", first.1), format!("{:?}", second.1));
    }
    assert_ne!(life(1).0, life(2).0);
}
