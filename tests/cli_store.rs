//! `edgehub store`: what it shows, what it finds damaged, what it drops.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing
)]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use edgehub::identity::Identity;
use edgehub::mailbox::Mailbox;
use edgehub::message::{Endpoint, Message, Origin, Priority};
use edgehub::store::disk::{Disk, RealDisk};
use edgehub::store::inspect::inspect;
use edgehub::store::inspect::verify::verify;
use edgehub::store::journal::{Journal, Subscription};
use edgehub::store::{Append, Bounds, Copy, Options, Queue, Store, SyncPolicy};
use serde_json::Value;

use common::{Setup, edgehub, unix_now};

const ENDPOINTS: [&str; 2] = ["monitor/alerts", "monitor/readings"];
const PRIORITIES: [u64; 2] = [2, 10];
const MESSAGES: u64 = 100;
const OPTIONS: Options = Options {
    sync: SyncPolicy::Always,
    max_syncs_per_second: 0,
    max_bytes: 64 << 20,
    min_free_bytes: 0,
    // Several segments, so that sealed ones are among them.
    segment_bytes: 64 << 10,
    message_bytes_max: 16 << 10,
    drop_oldest: false,
};

/// A folder with a configuration and a store in its `data`.
struct Scene {
    setup: Setup,
    dir: PathBuf,
}

/// Messages and bytes by endpoint and priority.
type Rows = BTreeMap<(String, String), (u64, u64)>;

impl Scene {
    fn new() -> Self {
        let setup = Setup::new("{}", &["monitor"]);
        setup.write_config();
        let dir = setup.path("data/store");
        Self { setup, dir }
    }

    fn open(&self) -> Store {
        let disk: Arc<dyn Disk> = Arc::new(RealDisk::new(&self.dir).unwrap());
        let bounds = Bounds {
            max_bytes: OPTIONS.max_bytes,
            endpoint_max_bytes: OPTIONS.max_bytes,
            endpoint_max_messages: 100_000,
            drop_oldest: false,
        };
        let (store, opened) = Store::open(
            Arc::clone(&disk),
            OPTIONS,
            bounds,
            77,
            (1000, unix_now() * 1000),
        )
        .unwrap();
        assert!(opened.lost.is_empty(), "{:?}", opened.lost);
        // As the hub does it: the small state belongs to a store.
        Journal::open(disk, store.id().unwrap(), true).unwrap();
        store
    }

    /// A store with messages for two endpoints with two priorities each, not ended yet.
    fn filled(&self) -> Store {
        let store = self.open();
        store.keep_step(1000, true);
        store.write_step(1000);
        for n in 0..MESSAGES {
            assert!(append(&store, n));
            step(&store, 1000 + n);
        }
        store
    }

    fn run(&self, args: &[&str], code: i32) -> (String, String) {
        let output = edgehub(self.setup.dir.path(), &[&["store"], args].concat());
        assert_eq!(output.status.code(), Some(code), "{args:?}: {output:?}");
        let text = |bytes| String::from_utf8(bytes).unwrap();
        let (out, err) = (text(output.stdout), text(output.stderr));
        assert!(!err.contains("panicked"), "{err}");
        (out, err)
    }

    fn inspect(&self) -> Value {
        let (out, _) = self.run(&["inspect", "--data", "data", "--json"], 0);
        serde_json::from_str(&out).expect(&out)
    }

    fn verify(&self, code: i32) -> String {
        let (out, err) = self.run(&["verify", "--data", "data"], code);
        format!("{out}{err}")
    }

    fn purge(&self, endpoint: &str, code: i32) -> (String, String) {
        let at = ["--config", "edgehub.toml", "--endpoint", endpoint];
        self.run(&[&["purge"][..], &at].concat(), code)
    }

    /// The segment files, oldest first.
    fn segments(&self) -> Vec<PathBuf> {
        let names = fs::read_dir(self.dir.join("seg")).unwrap();
        let mut paths: Vec<_> = names.map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        paths
    }

    /// Flips a bit behind the first place that has `text`; the file's name.
    fn damage(&self, text: &str) -> String {
        for path in self.segments() {
            let bytes = fs::read(&path).unwrap();
            let text = text.as_bytes();
            if let Some(at) = bytes.windows(text.len()).position(|some| some == text) {
                flip(&path, at + text.len() + 3);
                return path.file_name().unwrap().to_str().unwrap().to_owned();
            }
        }
        panic!("no {text} in the store");
    }
}

/// Whether there was room.
fn append(store: &Store, n: u64) -> bool {
    let sender = Identity::module("edge-1", "sensor");
    let message = Arc::new(Message {
        origin: Arc::new(Origin::new(sender, Some("out"))),
        bag: Bytes::from_static(b"%24.cdid=edge-1"),
        payload: Bytes::from(format!("message {n} ").repeat(200)),
        received_ms: 1000,
    });
    let copies = [Copy {
        queue: store.queue(&endpoint(ENDPOINTS[(n % 3 / 2) as usize])),
        priority: Priority::new(PRIORITIES[(n % 2) as usize]).unwrap_or(Priority::DEFAULT),
        ttl_ms: None,
    }];
    let append = Append {
        message: &message,
        copies: &copies,
        waiter: &Arc::default(),
        is_patient: false,
        is_last: false,
        now_ms: 1000 + n,
    };
    let (mut idle, mut losses) = (Vec::new(), Vec::new());
    store.append(&append, &mut idle, &mut losses).is_ok()
}

fn step(store: &Store, now_ms: u64) {
    store.write_step(now_ms);
    store.keep_step(now_ms, true);
    store.write_step(now_ms);
}

/// Fetches and acknowledges what waits for an endpoint.
fn drain(store: &Store, name: &str, consumer: &Arc<Mailbox>, now_ms: u64) {
    let queue = store.queue(&endpoint(name));
    let (mut out, mut losses) = (Vec::new(), Vec::new());
    let into = (&mut out, &mut losses);
    store.fetch(&queue, consumer, (20, 1 << 20), now_ms, into);
    assert!(losses.is_empty(), "{losses:?}");
    for delivery in out {
        store.acknowledge(&queue, delivery.priority, delivery.seq);
    }
}

fn flip(path: &Path, at: usize) {
    let file = fs::File::options().read(true).write(true).open(path);
    let file = file.unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at as u64).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at as u64).unwrap();
}

fn endpoint(name: &str) -> Endpoint {
    Endpoint::parse(name).unwrap()
}

fn rows_of(store: &Store) -> Rows {
    let rows = store.status().into_iter().map(|row| {
        let key = (row.endpoint.to_string(), row.priority.to_string());
        (key, (row.messages as u64, row.bytes))
    });
    rows.collect()
}

fn rows_in(shown: &Value) -> Rows {
    let rows = shown["queues"].as_array().unwrap().iter().map(|row| {
        let text = |key: &str| row[key].as_str().unwrap().to_owned();
        let number = |key: &str| row[key].as_u64().unwrap();
        let key = (text("endpoint"), text("priority"));
        (key, (number("messages"), number("bytes")))
    });
    rows.collect()
}

/// Everything below a folder, with its content.
fn content(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut all = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            all.insert(path.clone(), Vec::new());
            all.extend(content(&path));
        } else {
            let bytes = fs::read(&path).unwrap();
            all.insert(path, bytes);
        }
    }
    all
}

#[test]
fn inspect_shows_what_the_store_says_before_and_after_its_end() {
    let scene = Scene::new();
    let store = scene.filled();
    let rows = rows_of(&store);
    assert_eq!(rows.len(), 4);
    assert_eq!(rows.values().map(|row| row.0).sum::<u64>(), MESSAGES);
    let disk: Arc<dyn Disk> = Arc::new(RealDisk::new(&scene.dir).unwrap());
    let (journal, _) = Journal::open(disk, 77, true).unwrap();
    let filter = |filter: &str| Subscription::new(filter, edgehub::mqtt::QoS::AtLeastOnce);
    let filters = [filter("a/#"), filter("b/#")];
    journal.record("edge-1/monitor", Some(&filters), &Arc::default());
    drop(journal);
    let before = content(&scene.dir);
    let shown = scene.inspect();
    assert_eq!(rows_in(&shown), rows);
    assert_eq!(shown["closed"], false);
    assert_eq!(shown["store_id"], format!("{:016x}", 77));
    assert_eq!(shown["damage"], Value::Array(Vec::new()));
    assert_eq!(shown["sessions"][0]["identity"], "edge-1/monitor");
    assert_eq!(shown["sessions"][0]["filters"], 2);
    assert_eq!(shown["queues"][0]["oldest_seq"], 1);
    assert!(shown["queues"][0]["oldest_age_seconds"].as_u64().unwrap() < 600);
    assert!(shown["segments"].as_u64().unwrap() > 3, "{shown}");
    assert!(scene.verify(0).contains(" 0 damaged"));
    assert_eq!(content(&scene.dir), before, "something was written");
    store.end(2000);
    let shown = scene.inspect();
    assert_eq!(rows_in(&shown), rows);
    assert_eq!(shown["closed"], true);
    assert!(scene.verify(0).contains(" 0 damaged"));
    let (text, _) = scene.run(&["inspect", "--data", "data"], 0);
    for name in ENDPOINTS.iter().chain(&["edge-1/monitor", "OLDEST"]) {
        assert!(text.contains(name), "{text}");
    }
}

#[test]
fn acknowledged_messages_are_not_shown() {
    let scene = Scene::new();
    let store = scene.filled();
    let queue: Arc<Queue> = store.queue(&endpoint(ENDPOINTS[0]));
    let consumer = Arc::new(Mailbox::default());
    let mut done = 0;
    for _ in 0..50 {
        let (mut out, mut losses) = (Vec::new(), Vec::new());
        let into = (&mut out, &mut losses);
        store.fetch(&queue, &consumer, (10, 1 << 20), 3000, into);
        for delivery in out.iter().filter(|delivery| delivery.seq % 5 != 0) {
            store.acknowledge(&queue, delivery.priority, delivery.seq);
            done += 1;
        }
        store.keep_step(3000, true);
        store.write_step(3000);
    }
    assert!(done > 20, "{done}");
    store.sweep((4000, unix_now() * 1000), &mut Vec::new());
    store.write_step(4000);
    let messages = |rows: &Rows| rows.values().map(|row| row.0).sum::<u64>();
    let shown = rows_in(&scene.inspect());
    assert_eq!(messages(&shown), MESSAGES - done);
    store.end(5000);
    drop(store);
    assert_eq!(rows_of(&scene.open()), shown);
}

#[test]
fn verify_names_each_damaged_place() {
    let scene = Scene::new();
    let store = scene.filled();
    store.end(2000);
    drop(store);
    // Of the second endpoint with the first priority: n % 3 == 2, n % 2 == 0.
    let file = scene.damage("message 8 message 8 ");
    let text = scene.verify(1);
    for part in [
        &*file,
        ", seq 1",
        "monitor/readings priority 2",
        ": 1 damaged",
    ] {
        assert!(text.contains(part), "no {part}: {text}");
    }
    let segments = scene.segments();
    let bytes = fs::read(&segments[1]).unwrap();
    // The list of a lane, before the tables and the footer.
    let data_end = u64::from_le_bytes(bytes[bytes.len() - 4096 + 40..][..8].try_into().unwrap());
    flip(&segments[1], (data_end as usize).next_multiple_of(4096) + 2);
    assert!(
        scene.verify(1).contains(": 2 damaged"),
        "{}",
        scene.verify(1)
    );
    // A frame's header in the third, and the header of the fourth.
    let sync_word = 0x4D52_4649_u32.to_le_bytes();
    let bytes = fs::read(&segments[2]).unwrap();
    let mut frames = (8192..bytes.len()).step_by(8);
    let second = frames
        .rfind(|at| bytes[*at..].starts_with(&sync_word))
        .unwrap();
    flip(&segments[2], second + 9);
    flip(&segments[3], 20);
    let text = scene.verify(1);
    assert!(text.contains("frames do not read, seq "), "{text}");
    assert!(text.contains("the segment's header"), "{text}");
    assert!(text.contains(": 4 damaged"), "{text}");
    fs::remove_file(&segments[1]).unwrap();
    assert!(scene.verify(1).contains("the segment is missing"));
    let damage = &scene.inspect()["damage"];
    assert!(!damage.as_array().unwrap().is_empty());
}

#[test]
fn a_torn_tail_is_a_remark() {
    let scene = Scene::new();
    drop(scene.filled());
    let file = scene.damage(&format!("message {} ", MESSAGES - 1));
    let text = scene.verify(0);
    assert!(
        text.contains("ends torn before seq") && text.contains(&file),
        "{text}"
    );
    assert!(text.contains(" 0 damaged"), "{text}");
}

#[test]
fn purge_drops_one_endpoint_and_says_how_many() {
    for closed in [true, false] {
        let scene = Scene::new();
        let store = scene.filled();
        let before = rows_of(&store);
        if closed {
            store.end(2000);
        }
        drop(store);
        let (out, _) = scene.purge(ENDPOINTS[1], 0);
        let of_second = before.iter().filter(|(key, _)| key.0 == ENDPOINTS[1]);
        let dropped: u64 = of_second.map(|(_, row)| row.0).sum();
        assert!(out.contains(&format!("{dropped} messages")), "{out}");
        let mut left = before.clone();
        left.retain(|key, _| key.0 == ENDPOINTS[0]);
        left.insert(
            (ENDPOINTS[1].to_owned(), Priority::DEFAULT.to_string()),
            (0, 0),
        );
        let shown = scene.inspect();
        assert_eq!(
            (rows_in(&shown), &shown["closed"]),
            (left.clone(), &Value::Bool(true))
        );
        assert!(scene.verify(0).contains(" 0 damaged"));
        let (out, _) = scene.purge(ENDPOINTS[1], 0);
        assert!(out.starts_with("0 messages"), "{out}");
        let store = scene.open();
        assert_eq!(rows_of(&store), left);
    }
}

#[test]
fn purge_says_what_is_in_its_way() {
    let scene = Scene::new();
    let (_, err) = scene.purge(ENDPOINTS[0], 69);
    assert!(err.contains("there is no store"), "{err}");
    assert!(!scene.dir.exists());
    let store = scene.filled();
    let before = rows_of(&store);
    store.end(2000);
    drop(store);
    let (_, err) = scene.purge("monitor/alert", 1);
    for part in ["did you mean monitor/alerts?", ENDPOINTS[1]] {
        assert!(err.contains(part), "{err}");
    }
    scene.purge("nonsense", 1);
    let hub = scene.setup.start();
    let (_, err) = scene.purge(ENDPOINTS[0], 69);
    assert!(
        err.contains("another hub runs") && err.contains("stop"),
        "{err}"
    );
    assert_eq!(rows_in(&scene.inspect()), before);
    scene.verify(0);
    assert_eq!(hub.terminate(), Some(0));
    assert_eq!(rows_in(&scene.inspect()), before);
}

#[test]
fn nothing_looks_damaged_while_the_store_is_written() {
    let scene = Scene::new();
    let store = scene.filled();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let consumer = Arc::new(Mailbox::default());
            for n in MESSAGES.. {
                append(&store, n);
                step(&store, 1000 + n);
                if n % 10 == 0 {
                    drain(
                        &store,
                        ENDPOINTS[(n % 20 / 10) as usize],
                        &consumer,
                        1000 + n,
                    );
                }
                if stop.load(Ordering::Relaxed) {
                    break;
                }
            }
        });
        let looks = std::panic::catch_unwind(|| {
            for _ in 0..40 {
                let shown = inspect(&scene.dir).unwrap();
                assert!(shown.damage.is_empty(), "{:?}", shown.damage);
                let verdict = verify(&scene.dir).unwrap();
                assert!(verdict.damaged.is_empty(), "{:?}", verdict.damaged);
                assert!(verdict.segments > 0);
            }
        });
        stop.store(true, Ordering::Relaxed);
        looks.unwrap();
    });
}

#[test]
fn a_missing_folder_is_an_error_and_is_not_made() {
    let scene = Scene::new();
    for command in ["inspect", "verify"] {
        let (out, err) = scene.run(&[command, "--data", "nowhere"], 69);
        assert!(out.is_empty() && err.contains("nowhere"), "{err}");
        assert!(!scene.setup.path("nowhere").exists());
        scene.run(&[command], 64);
    }
}
