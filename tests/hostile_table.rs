//! Hostile input of every kind against the real binary, and what the standard says to it, while
//! well-behaved clients measure how long they are served and memory is watched.
//!
//! `hostile/*.txt` are the tables: a line is a dialogue, with the clause that asks for its end.
//! `hostile/storms.rs` has what one connection cannot do: floods, drips, storms. Both leave the
//! hub as they found it.
#![allow(missing_docs, clippy::unwrap_used, clippy::indexing_slicing)]

mod common;
#[path = "hostile/notation.rs"]
mod notation;
#[path = "hostile/rows.rs"]
mod rows;
#[path = "hostile/served.rs"]
mod served;
#[path = "hostile/socket.rs"]
mod socket;
#[path = "hostile/storms.rs"]
mod storms;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use common::scene::routes;
use common::wire;
use common::{Hub, LIMIT, Setup, inputs, output};
use edgehub::client::tls_config;
use edgehub::mqtt::QoS;
use rows::{Ports, Row};
use served::{Client, Watch};
use socket::Socket;
use storms::Storm;

/// How much more memory than before may stay: pages with something left in them.
const MEMORY_KIB: u64 = 6 * 1024;

const TABLES: [&str; 4] = [
    include_str!("hostile/packets.txt"),
    include_str!("hostile/connect.txt"),
    include_str!("hostile/sessions.txt"),
    include_str!("hostile/transports.txt"),
];

/// Everybody may do everything with plain topics, over all transports.
fn setup(limits: &str) -> Setup {
    let mut setup = Setup::open_everywhere(
        &routes(&[("a/self", "a/in"), ("c/out", "b/in")]),
        &["a", "b", "c", "d"],
    );
    setup.extra += &format!("[limits]\nconnect_timeout_seconds = 2\n{limits}");
    setup
}

/// A hub, and what it needed before the others came.
struct Scene {
    hub: Hub,
    ports: Ports,
    idle_kib: u64,
    idle_files: BTreeMap<String, usize>,
}

impl Scene {
    fn new(setup: &Setup) -> Self {
        let hub = setup.start();
        let ca = std::fs::read(hub.dir.join("certs/ca.pem")).unwrap();
        let ports = Ports {
            listeners: hub.listeners.clone(),
            tls: tls_config(&ca, None).unwrap(),
        };
        let mut scene = Self {
            hub,
            ports,
            idle_kib: 0,
            idle_files: BTreeMap::new(),
        };
        // What the hub makes at first use is there afterwards.
        let sockets = |scene: &Self| scene.files().get("socket").copied();
        let fresh = sockets(&scene);
        let watch = scene.watch();
        watch.amid("nothing");
        for row in rows::parse(WARM).unwrap() {
            rows::run(&row, "warm", &scene.ports).unwrap();
        }
        watch.end();
        scene
            .hub
            .until("who came first is gone", |_| sockets(&scene) == fresh);
        scene.idle_files = scene.files();
        scene.idle_kib = scene.memory_kib();
        scene
    }

    /// A module that waits for the disk in each round, and a plain client that does not.
    fn watch(&self) -> Watch {
        let hello = self.hub.hello("edge-1/a");
        let mut module = Socket::open(self.hub.address("tls")).unwrap();
        module = module.secure(&self.ports.tls).unwrap();
        module.send(&wire::connect(&hello));
        assert_eq!(module.packet().unwrap()[..2], [0x20, 2]);
        module.send(&wire::subscribe(1, &[(&inputs("a"), QoS::AtLeastOnce)]));
        assert_eq!(module.packet(), Ok(vec![0x90, 3, 0, 1, 1]));
        let mut plain = Socket::open(self.hub.tcp()).unwrap();
        let names = notation::Names {
            is_v5: true,
            row: "good".to_owned(),
            client: "good".to_owned(),
        };
        let bytes = |text| notation::bytes(text, &names).unwrap();
        plain.send(&bytes("10('MQTT' L 02 003c ~ &)"));
        assert_eq!(plain.packet().unwrap()[0], 0x20);
        plain.send(&bytes("82(0001 ~ '@/self' 01)"));
        assert_eq!(plain.packet().unwrap(), bytes("90(0001 ~ 01)"));
        let clients = vec![
            Client {
                name: "module over TLS",
                socket: module,
                publish: wire::publish(&output("a", "self", ""), 1, b"hello"),
                is_durable: true,
            },
            Client {
                name: "plain client",
                socket: plain,
                publish: bytes("32('@/self' 0001 ~ \"hello\")"),
                is_durable: false,
            },
        ];
        Watch::start(clients, &self.hub.dir, self.hub.child.id())
    }

    fn process(&self, name: &str) -> String {
        format!("/proc/{}/{name}", self.hub.child.id())
    }

    fn memory_kib(&self) -> u64 {
        memory_kib(self.hub.child.id())
    }

    /// What the open files are: sockets, files of a folder, others by name.
    fn files(&self) -> BTreeMap<String, usize> {
        let mut files = BTreeMap::new();
        for file in std::fs::read_dir(self.process("fd")).unwrap() {
            let Ok(target) = std::fs::read_link(file.unwrap().path()) else {
                // It was closed meanwhile.
                continue;
            };
            let target = target.strip_prefix(&self.hub.dir).unwrap_or(&target);
            // Files of the store take turns.
            let folder = target
                .parent()
                .filter(|folder| target.is_relative() && !folder.as_os_str().is_empty());
            let kind = folder.unwrap_or(target).to_string_lossy();
            let kind = kind.split(':').next().unwrap_or_default().to_owned();
            *files.entry(kind).or_default() += 1;
        }
        files
    }

    fn storm(&self, is_v5: bool) -> Storm<'_> {
        Storm {
            hub: &self.hub,
            ports: &self.ports,
            is_v5,
            process: self.hub.child.id(),
        }
    }

    fn rage(&self, storms: &[storms::Row], watch: &Watch) {
        for (name, clause, versions, storm) in storms {
            assert!(!clause.is_empty());
            for is_v5 in *versions {
                watch.amid(name);
                let started = Instant::now();
                storm(&self.storm(*is_v5));
                let version = if *is_v5 { "5" } else { "3.1.1" };
                let (took, kib) = (started.elapsed(), self.memory_kib());
                println!("{name} ({version}): {took:?}, {kib} KiB");
            }
        }
    }

    /// Files are just those of before, and memory but for so much.
    fn recovers(&self) {
        let started = Instant::now();
        loop {
            let files = self.files();
            if files == self.idle_files {
                break;
            }
            let not_in = |other: &BTreeMap<String, usize>, one: (&String, &usize)| {
                other.get(one.0) != Some(one.1)
            };
            let more = files.iter().filter(|one| not_in(&self.idle_files, *one));
            let less = self.idle_files.iter().filter(|one| not_in(&files, *one));
            let (more, less): (Vec<_>, Vec<_>) = (more.collect(), less.collect());
            assert!(
                started.elapsed() < LIMIT / 2,
                "{more:?} are open, {less:?} were"
            );
            std::thread::yield_now();
        }
        let started = Instant::now();
        loop {
            let (idle, now) = (self.idle_kib, self.memory_kib());
            if now <= idle + MEMORY_KIB {
                println!("memory: {idle} KiB when idle before, {now} KiB after");
                return;
            }
            let waits = started.elapsed() < LIMIT / 2;
            assert!(waits, "{now} KiB are left, {idle} KiB before");
            std::thread::yield_now();
        }
    }
}

/// Resident memory of a process.
fn memory_kib(process: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let kib = line.unwrap().split_whitespace().nth(1);
    kib.unwrap().parse().unwrap()
}

/// Rows that touch every transport once.
const WARM: &str = "
tcp | both | - | in; > 31('@' ~ \"x\"); > 82(0001 ~ '@' 01); < 90(0001 ~ 01) 31('@' ~ \"x\"); leave
deleted | both | - | in; > 31('@' ~) c000; < d000; leave
kept | both | - | in kept; leave; in; leave
tls | both | - | over tls; in; leave
ws | 3 | - | over ws; > #82(10('MQTT' L 02 003c ~ &)); < 82 04 20020000; drop
wss | 3 | - | over wss; > #82(10('MQTT' L 02 003c ~ &)); < 82 04 20020000; drop
";

/// Runs rows, a few beside each other, and says which went wrong.
fn run_all(rows: &[Row], ports: &Ports) -> Vec<String> {
    const BESIDE: usize = 8;
    let (next, wrong) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..BESIDE {
            scope.spawn(|| {
                while let number = next.fetch_add(1, Ordering::Relaxed)
                    && let Some(row) = rows.get(number)
                {
                    if let Err(error) = rows::run(row, &format!("r{number}"), ports) {
                        wrong.lock().unwrap().push(error);
                    }
                }
            });
        }
    });
    wrong.into_inner().unwrap()
}

#[test]
fn every_row_is_answered_as_the_standard_says() {
    let rows: Vec<_> = TABLES
        .iter()
        .flat_map(|table| rows::parse(table).unwrap())
        .collect();
    assert!(rows.len() >= 300, "{} rows", rows.len());
    let setup = setup("");
    let scene = Scene::new(&setup);
    let watch = scene.watch();
    watch.amid("the tables");
    let wrong = run_all(&rows, &scene.ports);
    watch.end();
    let mut text = String::new();
    for error in &wrong {
        writeln!(text, "{error}").unwrap();
    }
    assert!(
        wrong.is_empty(),
        "{} of {}:\n{text}",
        wrong.len(),
        rows.len()
    );
    println!("{} rows", rows.len());
    scene.recovers();
}

/// Bounds that floods reach in a moment.
const LIMITS: &str = "max_subscriptions = 8000\nmax_retained_messages = 1500\n\
    max_sessions = 400\nendpoint_max_messages = 2000\npublish_stall_seconds = 1\n";

/// After each wave the memory is what it was, save for pages with something left in them.
#[test]
fn storms_pass_and_leave_nothing_behind() {
    let setup = setup(LIMITS);
    let scene = Scene::new(&setup);
    let watch = scene.watch();
    std::thread::scope(|scope| {
        // Its answers are slowed, for five seconds in the end.
        scope.spawn(|| storms::refused(&scene.storm(false)));
        scene.rage(storms::LARGE, &watch);
        scene.rage(storms::OTHERS, &watch);
    });
    watch.end();
    scene.recovers();
    let watch = scene.watch();
    scene.rage(storms::LARGE, &watch);
    watch.end();
    scene.recovers();
}

/// The tables would notice: rows that expect what does not happen.
#[test]
fn wrong_answers_are_noticed() {
    let setup = setup("");
    let scene = Scene::new(&setup);
    let wrong = rows::parse(
        "
another reason | 5 | - | in; > 36('a' 0001 ~ \"x\"); close 82
no reason | 5 | - | in; > 36('a' 0001 ~ \"x\"); close
an end too early | both | - | in; > e000; ping
no end | both | - | > 10('MQTT' L 02 0001 ~ &); connack; after 3.5 close
another code | both | - | > 10('MQTT' L 82 003c ~ & 'nonsense'); refused 05 87
no refusal | both | - | > 10('MQTT' L 02 003c ~ &); refused 05 87
another answer | both | - | in; > 82(0001 ~ 'a' 00); < 90(0001 ~ 01)
no answer | both | - | in; > e000; < d000
an answer too many | both | - | in; > c000 c000; < d000; > e000; close
a session | both | - | in again
no silence | both | - | in; > c000; silent 0.1
an upgrade | 3 | - | port ws; upgrade mqtt; http 400
another alert | 3 | - | port tls; > 16 0303 ffff; alert 28
",
    )
    .unwrap();
    for (number, row) in wrong.iter().enumerate() {
        let own = format!("wrong{number}");
        assert!(rows::run(row, &own, &scene.ports).is_err(), "{}", row.name);
    }
}
