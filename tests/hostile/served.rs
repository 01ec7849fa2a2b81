//! Well-behaved clients amid the others, and what they had to wait.
//!
//! Each sends itself a message of QoS 1 again and again; a round ends with both the acknowledgement
//! and the message. No round may take longer than [`SERVED`].
//!
//! Other programs share the machine, and a round may be slow because of them. Controls tell, in the
//! same moments, what the machine withheld:
//!
//! - the kernel counts how long each thread was ready to run and had no core (`schedstat`): it is
//!   read around each round for the client's own thread, and all the time for those of the hub;
//! - a thread that only sleeps for two milliseconds at a time says how much too late it woke: what
//!   the whole machine lost to its host;
//! - for clients that wait for the disk, one that writes a page to it and syncs it. It waits for
//!   one sync of the hub's at most, which is below [`NOISE`].
//!
//! A hub that is busy or blocked is not waiting for a core, so none of this pardons it. What the
//! controls lost within a slow round is taken off it, once: of the hub's threads only the one that
//! waited longest counts.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::socket::Socket;

/// What a well-behaved client is served within.
pub const SERVED: Duration = Duration::from_millis(250);
/// What the sleeper and the disk may lose without telling anything.
const NOISE: Duration = Duration::from_millis(20);
const PAUSE: Duration = Duration::from_millis(5);

/// One client that behaves: what it sends.
pub struct Client {
    pub name: &'static str,
    pub socket: Socket,
    /// PUBLISH of QoS 1 with packet id 1, which comes back to it.
    pub publish: Vec<u8>,
    /// Its rounds wait for the disk.
    pub is_durable: bool,
}

/// A round.
#[derive(Debug, Clone)]
struct Round {
    client: &'static str,
    is_durable: bool,
    /// What went on then.
    amid: String,
    started: Instant,
    took: Duration,
    /// So long the client itself was ready to run.
    unscheduled: Duration,
}

/// From when to when a control got nothing.
type Starved = (Instant, Instant);

/// What the controls found.
#[derive(Default)]
struct Controls {
    sleeper: Vec<Starved>,
    disk: Vec<Starved>,
    /// By thread of the hub.
    hub: BTreeMap<String, Vec<Starved>>,
}

/// The clients and the controls, while they run.
pub struct Watch {
    ends: Arc<AtomicBool>,
    amid: Arc<Mutex<String>>,
    clients: Vec<JoinHandle<Vec<Round>>>,
    sleeper: JoinHandle<Vec<Starved>>,
    disk: JoinHandle<Vec<Starved>>,
    hub: JoinHandle<BTreeMap<String, Vec<Starved>>>,
}

impl Watch {
    /// `folder` is on the disk that the hub uses, which has this process id.
    pub fn start(clients: Vec<Client>, folder: &Path, hub: u32) -> Self {
        let ends = Arc::new(AtomicBool::new(false));
        let amid = Arc::new(Mutex::new(String::new()));
        let file = File::create(folder.join("control")).unwrap();
        let run = |client: Client| {
            let (ends, amid) = (Arc::clone(&ends), Arc::clone(&amid));
            std::thread::spawn(move || rounds(client, &ends, &amid))
        };
        let clients = clients.into_iter().map(run).collect();
        let sleeps = Arc::clone(&ends);
        let sleeper = std::thread::spawn(move || {
            let nap = Duration::from_millis(2);
            control(&sleeps, nap, || std::thread::sleep(nap))
        });
        let syncs = Arc::clone(&ends);
        let disk = std::thread::spawn(move || {
            control(&syncs, Duration::ZERO, || {
                (&file).write_all(&[0; 4096]).unwrap();
                file.sync_data().unwrap();
                std::thread::sleep(PAUSE);
            })
        });
        let looks = Arc::clone(&ends);
        let hub = std::thread::spawn(move || watch_threads(hub, &looks));
        Self {
            ends,
            amid,
            clients,
            sleeper,
            disk,
            hub,
        }
    }

    /// Says what goes on from now.
    pub fn amid(&self, what: &str) {
        what.clone_into(&mut self.amid.lock().unwrap());
    }

    /// Ends it; all rounds were quick enough, or the controls say why not.
    pub fn end(self) {
        self.ends.store(true, Ordering::Relaxed);
        let rounds: Vec<_> = self
            .clients
            .into_iter()
            .map(|client| client.join().unwrap())
            .collect();
        let controls = Controls {
            sleeper: self.sleeper.join().unwrap(),
            disk: self.disk.join().unwrap(),
            hub: self.hub.join().unwrap(),
        };
        let slow = rounds.iter().flat_map(|rounds| judge(rounds, &controls));
        let slow: Vec<_> = slow.collect();
        assert!(slow.is_empty(), "\n{}", slow.join("\n"));
    }
}

fn rounds(mut client: Client, ends: &AtomicBool, amid: &Mutex<String>) -> Vec<Round> {
    let mut rounds = Vec::new();
    loop {
        let before = unscheduled("/proc/thread-self/schedstat");
        let started = Instant::now();
        let round = round(&mut client);
        let took = started.elapsed();
        let amid = amid.lock().unwrap().clone();
        if let Err(error) = round {
            panic!("{} amid {amid}: {error}", client.name);
        }
        rounds.push(Round {
            client: client.name,
            is_durable: client.is_durable,
            amid,
            started,
            took,
            unscheduled: unscheduled("/proc/thread-self/schedstat").saturating_sub(before),
        });
        if ends.load(Ordering::Relaxed) {
            break;
        }
        std::thread::sleep(PAUSE);
    }
    client.socket.send(&[0xe0, 0]);
    assert_eq!(client.socket.rest(), Ok(Vec::new()));
    rounds
}

/// Until the message is acknowledged and here.
fn round(client: &mut Client) -> Result<(), String> {
    client.socket.send(&client.publish);
    let (mut acknowledged, mut received) = (false, false);
    while !(acknowledged && received) {
        let packet = client.socket.packet()?;
        match packet[0] {
            0x40 if packet[2..4] == [0, 1] => acknowledged = true,
            0x32 if !received => {
                // The remaining length of these small packets has two bytes at most.
                let body = if packet[1] & 0x80 == 0 { 2 } else { 3 };
                let topic = usize::from(u16::from_be_bytes([packet[body], packet[body + 1]]));
                let id = body + 2 + topic;
                client.socket.send(&[0x40, 2, packet[id], packet[id + 1]]);
                received = true;
            }
            _ => return Err(super::notation::shown(&packet)),
        }
    }
    Ok(())
}

/// Does something that takes `usual`, again and again, and says when it took longer.
fn control(ends: &AtomicBool, usual: Duration, mut act: impl FnMut()) -> Vec<Starved> {
    let mut starved = Vec::new();
    while !ends.load(Ordering::Relaxed) {
        let due = Instant::now() + usual;
        act();
        let now = Instant::now();
        if now.saturating_duration_since(due) > NOISE {
            starved.push((due, now));
        }
    }
    starved
}

/// How long a thread was ready to run and had no core, ever; nothing if it is gone.
fn unscheduled(path: &str) -> Duration {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let nanos = text.split(' ').nth(1).and_then(|nanos| nanos.parse().ok());
    Duration::from_nanos(nanos.unwrap_or(0))
}

/// Looks at all threads of the hub until it ends.
fn watch_threads(hub: u32, ends: &AtomicBool) -> BTreeMap<String, Vec<Starved>> {
    let mut known: BTreeMap<String, Duration> = BTreeMap::new();
    let mut starved: BTreeMap<String, Vec<Starved>> = BTreeMap::new();
    while !ends.load(Ordering::Relaxed) {
        let tasks = std::fs::read_dir(format!("/proc/{hub}/task"));
        for task in tasks.into_iter().flatten().flatten() {
            let path = format!("{}/schedstat", task.path().display());
            let waited = unscheduled(&path);
            let now = Instant::now();
            let before = known.insert(path.clone(), waited);
            let more = before.map_or(Duration::ZERO, |before| waited.saturating_sub(before));
            if !more.is_zero() {
                // It is counted when the thread gets its core.
                starved.entry(path).or_default().push((now - more, now));
            }
        }
        std::thread::sleep(PAUSE);
    }
    starved
}

/// How much of a round the machine withheld.
fn withheld(round: &Round, controls: &Controls) -> Duration {
    let disk = if round.is_durable {
        &controls.disk[..]
    } else {
        &[]
    };
    let nothing = Vec::new();
    let threads = controls.hub.values().chain([&nothing]);
    let of_hub = threads.map(|thread| covered(round, [thread, disk, &controls.sleeper]));
    of_hub.max().unwrap_or_default() + round.unscheduled
}

/// How much of a round lies in any of these.
fn covered(round: &Round, all: [&[Starved]; 3]) -> Duration {
    let ended = round.started + round.took;
    let all = all.into_iter().flatten();
    let mut inside: Vec<_> = all
        .map(|(from, to)| (*from.max(&round.started), *to.min(&ended)))
        .filter(|(from, to)| from < to)
        .collect();
    inside.sort_unstable();
    let (mut sum, mut until) = (Duration::ZERO, round.started);
    for (from, to) in inside {
        sum += to.saturating_duration_since(from.max(until));
        until = until.max(to);
    }
    sum
}

/// Rounds that were too slow; prints what all of them took.
fn judge(rounds: &[Round], controls: &Controls) -> Vec<String> {
    let mut times: Vec<_> = rounds.iter().map(|round| round.took).collect();
    times.sort_unstable();
    let (Some(first), Some(most)) = (rounds.first(), times.last()) else {
        return vec!["a client had no round".to_owned()];
    };
    let at = |part: usize| times[(times.len() - 1) * part / 1000];
    let (mut pardoned, mut longest) = (0, Duration::ZERO);
    let mut slow = Vec::new();
    for round in rounds {
        let without = withheld(round, controls);
        let own = round.took.saturating_sub(without);
        longest = longest.max(own);
        let Round {
            client, amid, took, ..
        } = round;
        if own > SERVED {
            slow.push(format!(
                "{client} was served after {took:?} amid {amid}, of which {without:?} the machine's"
            ));
        } else if *took > SERVED {
            pardoned += 1;
        }
    }
    println!(
        "{}: {} rounds, median {:?}, 99 % {:?}, 99.9 % {:?}, longest {most:?}; without what the \
         machine withheld {longest:?} ({pardoned} pardoned)",
        first.client,
        times.len(),
        at(500),
        at(990),
        at(999),
    );
    slow
}

#[test]
fn only_what_the_machine_withheld_is_pardoned() {
    let started = Instant::now();
    let ms = Duration::from_millis;
    let slow = |took: u64, controls: &Controls| {
        [false, true].map(|is_durable| {
            let round = Round {
                client: "client",
                is_durable,
                amid: String::new(),
                started: started + ms(100),
                took: ms(took),
                unscheduled: Duration::ZERO,
            };
            judge(&[round], controls).len()
        })
    };
    let starved = |from: u64, to: u64| vec![(started + ms(from), started + ms(to))];
    let mut controls = Controls::default();
    assert_eq!(slow(250, &controls), [0, 0]);
    assert_eq!(slow(251, &controls), [1, 1]);
    // Only who waits for the disk is pardoned for it.
    controls.disk = starved(200, 260);
    assert_eq!(slow(300, &controls), [1, 0]);
    // What two controls lost at the same time is lost once.
    controls.sleeper = starved(220, 280);
    assert_eq!(slow(310, &controls), [0, 0]);
    assert_eq!(slow(340, &controls), [1, 1]);
    // The thread that waited longest counts, as far as it was within the round.
    controls.hub.insert("one".to_owned(), starved(60, 160));
    controls.hub.insert("two".to_owned(), starved(300, 340));
    assert_eq!(slow(370, &controls), [0, 0]);
    assert_eq!(slow(390, &controls), [1, 0]);
    assert_eq!(slow(900, &controls), [1, 1]);
}
