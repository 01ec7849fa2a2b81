//! Stores as a version of the hub left them, kept in `tests/fixtures`: how they are made, packed
//! without their zeros, and what is in them.
#![allow(dead_code, clippy::unwrap_used, clippy::indexing_slicing)]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use edgehub::mailbox::Mailbox;
use edgehub::mqtt::QoS;
use edgehub::store::disk::{Disk, RealDisk};
use edgehub::store::journal::{Journal, Subscription};

use super::rig::{ENDPOINTS, LANES, Rig, Target, WALL_MS, lane_of, options};

pub const SEGMENT_BYTES: u64 = 64 * 1024;
/// When the stores ended, by the hub's clock.
pub const END_MS: u64 = 100_000;
pub const HOUR_MS: u64 = 3_600_000;
pub const MONTH_MS: u64 = 30 * 24 * HOUR_MS;
/// Blocks of zeros of this size are left out.
const BLOCK_BYTES: usize = 64;
const STORE_ID: u64 = 7;

/// How a store ended, which is also the name of its folder.
pub const ENDS: [&str; 2] = ["closed", "killed"];

/// A copy that waits: endpoint, lane, seq, which message it is, and its time to live.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Row {
    pub at: usize,
    pub lane: usize,
    pub seq: u64,
    pub number: u64,
    pub ttl_ms: u64,
}

/// The payload of the message of this number.
pub fn payload(number: u64) -> Bytes {
    let text = format!("message {number} ");
    let length = 20 + number as usize * 37 % 700;
    Bytes::from(
        text.into_bytes()
            .into_iter()
            .cycle()
            .take(length)
            .collect::<Vec<_>>(),
    )
}

/// Its time to live; 0: for ever.
pub fn ttl_ms(number: u64) -> u64 {
    match number % 7 {
        0 => HOUR_MS,
        3 => MONTH_MS,
        _ => 0,
    }
}

/// Its lane.
fn lane(number: u64) -> usize {
    (number / 3) as usize % LANES.len()
}

/// Its endpoints.
fn endpoints(number: u64) -> Vec<usize> {
    let first = number as usize % ENDPOINTS;
    let count = if number.is_multiple_of(5) { 3 } else { 1 };
    let mut all: Vec<_> = (0..count).map(|n| (first + n) % ENDPOINTS).collect();
    all.sort_unstable();
    all
}

/// The sessions that are kept.
pub fn sessions() -> BTreeMap<String, Vec<Subscription>> {
    let subscription = |filter: &str, qos: u8| {
        let qos = [QoS::AtMostOnce, QoS::AtLeastOnce][usize::from(qos)];
        Subscription::new(filter, qos)
    };
    let input = "devices/edge-1/modules/camera/inputs/#";
    BTreeMap::from([
        ("edge-1/camera".to_owned(), vec![subscription(input, 1)]),
        (
            "leaf-7".to_owned(),
            vec![
                subscription("devices/leaf-7/messages/devicebound/#", 0),
                subscription("$iothub/twin/res/#", 0),
            ],
        ),
        ("edge-1/quiet".to_owned(), Vec::new()),
    ])
}

struct Making {
    rig: Rig,
    rows: Vec<Row>,
    number: u64,
}

impl Making {
    fn append(&mut self, count: u64) {
        for number in self.number..self.number + count {
            let endpoints = endpoints(number);
            let ttl_ms = ttl_ms(number);
            let target = Target {
                endpoints: &endpoints,
                lane: lane(number),
                ttl_ms: (ttl_ms > 0).then_some(ttl_ms),
            };
            let seq = self.rig.append(target, &payload(number)).unwrap();
            self.rows.extend(endpoints.into_iter().map(|at| Row {
                at,
                lane: lane(number),
                seq,
                number,
                ttl_ms,
            }));
        }
        self.number += count;
        self.rig.write();
        self.rig.rest();
    }

    /// Takes so many, and acknowledges one in `every`; the last are given back.
    fn receive(&mut self, at: usize, count: usize, every: usize) {
        let mut fetched = Vec::new();
        let mut idle = 0;
        while fetched.len() < count {
            self.rig.rest();
            let some = self.rig.fetch(at, count - fetched.len(), &mut Vec::new());
            idle = if some.is_empty() { idle + 1 } else { 0 };
            assert!(idle < 3, "fewer wait at {at} than {count}");
            fetched.extend(some);
        }
        for delivery in fetched.iter().step_by(every) {
            self.rig.acknowledge(at, delivery);
            let own = (at, lane_of(delivery.priority), delivery.seq);
            self.rows.retain(|row| (row.at, row.lane, row.seq) != own);
        }
    }

    fn receive_all(&mut self) {
        for at in 0..ENDPOINTS {
            let count = self.rows.iter().filter(|row| row.at == at).count();
            self.receive(at, count, 1);
        }
    }

    fn tick(&mut self) {
        for _ in 0..3 {
            self.rig.now_ms += 1000;
            self.rig.tick(&mut Vec::new());
        }
    }
}

/// Makes a store; returns what waits in it.
pub fn make(root: &Path, ended: &str) -> Vec<Row> {
    let disk: Arc<dyn Disk> = Arc::new(RealDisk::new(root).unwrap());
    let time = (1000, WALL_MS + 1000);
    let (rig, _) = Rig::open(Arc::clone(&disk), options(SEGMENT_BYTES), time).unwrap();
    let mut making = Making {
        rig,
        rows: Vec::new(),
        number: 1,
    };
    // A segment that is given up, and its file used again.
    while making.rig.store.disk_usage().1 < 2 {
        making.append(12);
    }
    making.receive_all();
    making.tick();
    // Two that are sealed, and the one that is written.
    while making.rig.store.disk_usage().1 < 3 {
        making.append(12);
    }
    making.receive(0, 20, 1);
    making.receive(1, 30, 2);
    making.append(12);
    making.receive(3, 5, 3);
    making.tick();
    making.append(3);
    making.rig.now_ms = END_MS;
    making.tick();
    if ended == "closed" {
        making.rig.store.end(making.rig.now_ms);
    }
    keep_sessions(disk);
    making.rows.sort_unstable();
    making.rows
}

fn keep_sessions(disk: Arc<dyn Disk>) {
    let mailbox = Arc::new(Mailbox::default());
    let (journal, _) = Journal::open(disk, STORE_ID, true).unwrap();
    let record = |identity: &str, subscriptions: Option<&[Subscription]>| {
        let version = journal.record(identity, subscriptions, &mailbox);
        while journal.durable() < version {
            std::thread::yield_now();
        }
    };
    record("edge-1/gone", Some(&[]));
    record("leaf-7", Some(&[]));
    for (identity, subscriptions) in sessions() {
        record(&identity, Some(&subscriptions));
    }
    record("edge-1/gone", None);
}

/// Rows as text, one a line.
pub fn to_text(rows: &[Row]) -> String {
    let mut text = "endpoint lane seq number ttl_ms\n".to_owned();
    for row in rows {
        let Row {
            at,
            lane,
            seq,
            number,
            ttl_ms,
        } = row;
        writeln!(text, "{at} {lane} {seq} {number} {ttl_ms}").unwrap();
    }
    text
}

/// The rows of a text.
pub fn of_text(text: &str) -> Vec<Row> {
    let row = |line: &str| {
        let fields: Vec<u64> = line.split(' ').map(|word| word.parse().unwrap()).collect();
        Row {
            at: fields[0] as usize,
            lane: fields[1] as usize,
            seq: fields[2],
            number: fields[3],
            ttl_ms: fields[4],
        }
    };
    text.lines().skip(1).map(row).collect()
}

/// Copies a folder; each file becomes its length (u64) and what is not zero in it: runs of place
/// (u32), length (u32) and bytes, little endian.
pub fn pack(from: &Path, to: &Path) {
    each_file(from, to, &|path, to| {
        let bytes = fs::read(path).unwrap();
        let mut packed = (bytes.len() as u64).to_le_bytes().to_vec();
        let blocks: Vec<_> = bytes.chunks(BLOCK_BYTES).collect();
        let mut at = 0;
        for run in blocks.chunk_by(|a, b| is_zero(a) == is_zero(b)) {
            let run = run.concat();
            if !is_zero(&run) {
                packed.extend_from_slice(&(at as u32).to_le_bytes());
                packed.extend_from_slice(&(run.len() as u32).to_le_bytes());
                packed.extend_from_slice(&run);
            }
            at += run.len();
        }
        fs::write(to, packed).unwrap();
    });
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| *byte == 0)
}

/// The reverse of [`pack`]; with the folders that a store has without files, too.
pub fn unpack(from: &Path, to: &Path) {
    for dir in ["free", "quarantine"] {
        fs::create_dir_all(to.join(dir)).unwrap();
    }
    each_file(from, to, &|path, to| {
        let packed = fs::read(path).unwrap();
        let (length, mut rest) = packed.split_at(8);
        let mut bytes = vec![0; u64::from_le_bytes(length.try_into().unwrap()) as usize];
        while !rest.is_empty() {
            let number = |at: usize| u32::from_le_bytes(rest[at..at + 4].try_into().unwrap());
            let (at, length) = (number(0) as usize, number(4) as usize);
            bytes[at..at + length].copy_from_slice(&rest[8..8 + length]);
            rest = &rest[8 + length..];
        }
        fs::write(to, bytes).unwrap();
    });
}

fn each_file(from: &Path, to: &Path, copy: &dyn Fn(&Path, &Path)) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            each_file(&entry.path(), &to, copy);
        } else {
            copy(&entry.path(), &to);
        }
    }
}
