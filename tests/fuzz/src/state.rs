//! Any files of the small state.

use std::io::ErrorKind;
use std::sync::Arc;

use super::edits::STORE_ID;
use super::sim_disk::CrashMode;
use super::state_files::{StateFile, disk_of};
use bytes::Bytes;
use edgehub::store::disk::Disk;
use edgehub::store::state::read::load;
use edgehub::store::state::write::Writer;

const GENERATIONS_MAX: usize = 3;

/// Runs one input.
pub fn run(input: &[u8]) {
    let Some((first, sync, files)) = super::given::<(u64, bool, Vec<StateFile>)>(input) else {
        return;
    };
    let generations = (0..GENERATIONS_MAX as u64).map(|n| first.wrapping_add(n));
    let files: Vec<_> = generations.zip(files).collect();
    let disk = disk_of(&files, "k");
    let size: u64 = disk.files().iter().map(|path| disk.file_len(path)).sum();
    let loaded = match load(&*disk, STORE_ID) {
        Ok(loaded) => loaded,
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::Unsupported);
            return;
        }
    };
    let held: usize = loaded
        .values
        .iter()
        .map(|(key, value)| key.len() + value.len())
        .sum();
    assert!(
        held as u64 <= size,
        "{held} bytes of values in {size} bytes of files"
    );
    let mounted = || -> Arc<dyn Disk> { disk.mount() };
    let (mut writer, values, _) = Writer::open(mounted(), STORE_ID, sync).expect("opens");
    assert_eq!(values, loaded.values);
    // What was read is whole again.
    let (_, again, damage) = Writer::open(mounted(), STORE_ID, sync).expect("opens");
    assert_eq!((again, damage), (values.clone(), Vec::new()));
    let (mut after, _, _) = Writer::open(mounted(), STORE_ID, sync).expect("opens");
    std::mem::swap(&mut writer, &mut after);
    writer.put("fresh".to_owned(), Some(Bytes::from_static(b"value")));
    writer.write().expect("it is written");
    drop(writer);
    disk.crash(if sync {
        CrashMode::Power { garbage: false }
    } else {
        CrashMode::Kill
    });
    let (_, again, damage) = Writer::open(mounted(), STORE_ID, sync).expect("opens");
    let mut expected = values;
    expected.insert("fresh".to_owned(), Bytes::from_static(b"value"));
    assert_eq!((again, damage), (expected, Vec::new()));
}
