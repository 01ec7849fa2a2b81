//! What hostile clients do, and a hub that goes on serving: connections that lead nowhere.
#![allow(missing_docs, clippy::unwrap_used, clippy::indexing_slicing)]

mod common;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use common::scene::routes;
use common::wire;
use common::{Hub, LIMIT, Setup, closed, inputs, output};
use edgehub::client::{Client, ClientError, Hello, Packet};
use edgehub::mqtt::{ConnectReturnCode, QoS};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// What a well-behaved client is served within, whatever the others do.
const SERVED: Duration = Duration::from_secs(1);
/// How much more memory than before may stay.
const MEMORY_KIB: u64 = 6 * 1024;

fn setup() -> Setup {
    Setup::new(&routes(&[("a/self", "a/in")]), &["a", "b"])
}

/// A hub, its well-behaved client, and what it needed before the others came.
struct Scene {
    hub: Hub,
    hello: Hello,
    idle_kib: u64,
    idle_files: usize,
}

impl Scene {
    async fn new(setup: &Setup) -> Self {
        let hub = setup.start();
        let hello = hub.hello("edge-1/a");
        let mut scene = Self {
            hub,
            hello,
            idle_kib: 0,
            idle_files: 0,
        };
        let mut client = Client::tcp(scene.hub.tcp()).await.unwrap();
        client.connect(&scene.hello).await.unwrap();
        client.subscribe(&inputs("a")).await.unwrap();
        client.disconnect().await.unwrap();
        for tls in [true, false] {
            scene.serves(tls).await;
        }
        scene.idle_kib = scene.memory_kib();
        scene.idle_files = scene.files();
        scene
    }

    fn process(&self, name: &str) -> String {
        format!("/proc/{}/{name}", self.hub.child.id())
    }

    fn memory_kib(&self) -> u64 {
        let status = std::fs::read_to_string(self.process("status")).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:"));
        let kib = line.unwrap().split_whitespace().nth(1);
        kib.unwrap().parse().unwrap()
    }

    fn files(&self) -> usize {
        std::fs::read_dir(self.process("fd")).unwrap().count()
    }

    /// Logs in, sends itself a message and gets it, all within a second.
    async fn serves(&self, tls: bool) {
        let started = Instant::now();
        let served = async {
            let mut client = if tls {
                self.hub.tls(None).await.unwrap()
            } else {
                Client::tcp(self.hub.tcp()).await.unwrap()
            };
            client.connect(&self.hello).await.unwrap();
            let topic = output("a", "self", "");
            let sent = client.publish(&topic, QoS::AtLeastOnce, b"hello").await;
            let (mut acknowledged, mut received) = (false, false);
            while !(acknowledged && received) {
                match client.receive().await.unwrap() {
                    Packet::PubAck(id) => acknowledged = Some(id) == *sent.as_ref().unwrap(),
                    Packet::Publish { packet_id, .. } => {
                        client.acknowledge(packet_id.unwrap()).await.unwrap();
                        received = true;
                    }
                    other => panic!("{other:?}"),
                }
            }
            client.disconnect().await.unwrap();
        };
        let result = tokio::time::timeout(LIMIT, served).await;
        let took = started.elapsed();
        assert!(result.is_ok() && took < SERVED, "served after {took:?}");
    }

    /// Memory and files are back where they were.
    fn recovers(&self) {
        self.hub.until("the connections are gone", |_| {
            self.files() <= self.idle_files + 8
        });
        let started = Instant::now();
        loop {
            let (idle, now) = (self.idle_kib, self.memory_kib());
            if now <= idle + MEMORY_KIB {
                return;
            }
            let waits = started.elapsed() < LIMIT / 2;
            assert!(waits, "{now} KiB are left, {idle} KiB before");
            std::thread::yield_now();
        }
    }
}

/// As many sockets as the system lets us have, at most `wanted`.
fn sockets(wanted: usize) -> usize {
    let hard = getrlimit(Resource::Nofile).maximum;
    let all = Rlimit {
        current: hard,
        maximum: hard,
    };
    setrlimit(Resource::Nofile, all).unwrap();
    hard.map_or(wanted, |hard| wanted.min(hard as usize - 200))
}

/// Opens sockets that start to say something and never go on, a thousand a second at most: faster
/// than that, those that log in are dropped among the others to make room.
fn half_open(address: SocketAddr, count: usize) -> Vec<TcpStream> {
    let starts: [&[u8]; 4] = [b"", &[0x10], &[0x10, 0x40, 0, 4], &[0x16, 3, 1, 0, 200, 1]];
    let started = Instant::now();
    (0..count)
        .map(|number| {
            let due = Duration::from_millis(number as u64);
            std::thread::sleep(due.saturating_sub(started.elapsed()));
            let mut socket = TcpStream::connect_timeout(&address, LIMIT).unwrap();
            // The hub may have dropped it already, to make room for those that came after.
            let _ = socket.write_all(starts[number % starts.len()]);
            socket
        })
        .collect()
}

#[tokio::test]
async fn ten_thousand_half_open_sockets_keep_nobody_out() {
    let setup = setup();
    let scene = Scene::new(&setup).await;
    let half = sockets(10_000) / 2;
    let floods: Vec<_> = ["tcp", "tls"]
        .map(|transport| scene.hub.address(transport))
        .into_iter()
        .map(|address| std::thread::spawn(move || half_open(address, half)))
        .collect();
    let mut rounds = 0;
    while rounds < 10 || floods.iter().any(|flood| !flood.is_finished()) {
        scene.serves(rounds % 2 == 0).await;
        rounds += 1;
    }
    let open: Vec<_> = floods
        .into_iter()
        .map(|flood| flood.join().unwrap())
        .collect();
    assert_eq!(open.iter().map(Vec::len).sum::<usize>(), 2 * half);
    scene.hub.until("only so many wait for their login", |_| {
        scene.files() <= scene.idle_files + 1024 + 8
    });
    scene.serves(true).await;
    drop(open);
    scene.recovers();
    scene.serves(false).await;
}

#[tokio::test]
async fn half_open_sockets_that_are_all_kept_are_small() {
    const EACH_KIB: u64 = 16;
    let mut setup = setup();
    setup.extra = "[limits]\nmax_connections = 10000\nmax_pending_connections = 10000\n".to_owned();
    let scene = Scene::new(&setup).await;
    let half = sockets(3_000) / 2;
    let (tcp, tls) = (scene.hub.tcp(), scene.hub.address("tls"));
    let mut after_kib = Vec::new();
    for _ in 0..10 {
        let floods = [tcp, tls].map(|to| std::thread::spawn(move || half_open(to, half)));
        let open = floods.map(|flood| flood.join().unwrap());
        let grown = scene.memory_kib().saturating_sub(scene.idle_kib);
        let most = 2 * half as u64 * EACH_KIB;
        assert!(grown <= most, "{grown} KiB for {} sockets", 2 * half);
        scene.serves(true).await;
        scene.serves(false).await;
        drop(open);
        scene
            .hub
            .until("they are gone", |_| scene.files() <= scene.idle_files + 8);
        after_kib.push(scene.memory_kib());
    }
    // What the allocator keeps of earlier waves is enough for later ones: nothing leaks. Threads
    // share it out differently in each wave, by some MiB; a leak of 1 KiB a socket would be 15.
    let (early, late) = after_kib.split_at(5);
    let (early, late) = (early.iter().max().unwrap(), late.iter().max().unwrap());
    assert!(*late <= early + 12 * 1024, "{after_kib:?}");
}

/// Sends bytes one at a time, for longer than the connect timeout, and returns how long the hub
/// took part in that.
fn dribble(address: SocketAddr, bytes: &[u8]) -> Duration {
    let mut socket = TcpStream::connect(address).unwrap();
    let started = Instant::now();
    socket
        .set_read_timeout(Some(Duration::from_millis(40)))
        .unwrap();
    for byte in bytes.iter().cycle() {
        assert!(started.elapsed() < LIMIT, "never closed");
        if socket.write_all(std::slice::from_ref(byte)).is_err() {
            break;
        }
        match socket.read(&mut [0; 64]) {
            Ok(0) => break,
            Err(error) if error.kind() != std::io::ErrorKind::WouldBlock => break,
            _ => {}
        }
    }
    started.elapsed()
}

#[tokio::test]
async fn slow_handshakes_and_connects_end_at_the_connect_timeout() {
    let mut setup = setup();
    setup.extra = "[limits]\nconnect_timeout_seconds = 2\n".to_owned();
    let scene = Scene::new(&setup).await;
    // Long enough for all of the time: a TLS record and a CONNECT, both of 16 KiB.
    let hello = [
        &[0x16, 3, 1, 0x3f, 0xff, 1, 0, 0x3f, 0xfb, 3, 3][..],
        &[7; 4000],
    ]
    .concat();
    let connect = [
        &[0x10, 0xff, 0x7f, 0, 4][..],
        b"MQTT",
        &[4, 0xc2, 0, 60, 0x20, 0],
    ]
    .concat();
    let connect = [&connect[..], &[b'x'; 4000]].concat();
    let slow: Vec<_> = (0..40)
        .map(|number| {
            let (address, bytes) = match number % 2 {
                0 => (scene.hub.tcp(), connect.clone()),
                _ => (scene.hub.address("tls"), hello.clone()),
            };
            std::thread::spawn(move || dribble(address, &bytes))
        })
        .collect();
    while slow.iter().any(|thread| !thread.is_finished()) {
        scene.serves(true).await;
        scene.serves(false).await;
    }
    for thread in slow {
        let took = thread.join().unwrap();
        let due = Duration::from_millis(1900)..Duration::from_secs(4);
        assert!(due.contains(&took), "closed after {took:?}");
    }
    scene.recovers();
}

/// How long until the hub closes a connection that says nothing.
async fn silent(mut client: Client, since: Instant) -> Duration {
    closed(&mut client).await;
    since.elapsed()
}

#[tokio::test]
async fn silent_connections_end_at_the_connect_timeout() {
    let mut setup = setup();
    setup.extra = "[limits]\nconnect_timeout_seconds = 2\n".to_owned();
    let hub = setup.start();
    let started = Instant::now();
    let tcp = Client::tcp(hub.tcp()).await.unwrap();
    let before_handshake = Client::tcp(hub.address("tls")).await.unwrap();
    let after_handshake = hub.tls(None).await.unwrap();
    let (one, two, three) = tokio::join!(
        silent(tcp, started),
        silent(before_handshake, started),
        silent(after_handshake, started)
    );
    for took in [one, two, three] {
        let due = Duration::from_millis(1900)..Duration::from_secs(4);
        assert!(due.contains(&took), "{one:?} {two:?} {three:?}");
    }
}

/// Handshake and CONNECT have one deadline together.
#[tokio::test]
async fn a_slow_handshake_does_not_buy_time_for_connect() {
    let mut setup = setup();
    setup.extra = "[limits]\nconnect_timeout_seconds = 3\n".to_owned();
    let hub = setup.start();
    let ca = std::fs::read(hub.dir.join("certs/ca.pem")).unwrap();
    let config = edgehub::client::tls_config(&ca, None).unwrap();
    let started = Instant::now();
    let socket = tokio::net::TcpStream::connect(hub.address("tls"))
        .await
        .unwrap();
    // The handshake starts when most of the time is over.
    tokio::time::sleep(Duration::from_millis(2500)).await;
    let name = rustls::pki_types::ServerName::try_from("localhost").unwrap();
    let connector = tokio_rustls::TlsConnector::from(config);
    let mut socket = connector.connect(name, socket).await.unwrap();
    let mut end = [0; 16];
    let ended = tokio::io::AsyncReadExt::read(&mut socket, &mut end);
    let _ = tokio::time::timeout(LIMIT, ended).await.unwrap();
    let took = started.elapsed();
    assert!(took < Duration::from_millis(4500), "closed after {took:?}");
}

/// Bytes that are the same in every run.
fn noise(seed: u32, count: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2_654_435_761) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        (state >> 11) as u8
    };
    (0..count).map(|_| next()).collect()
}

/// Writes all of it, says goodbye and waits for the hub to do the same.
fn shout(address: SocketAddr, bytes: &[u8]) {
    let mut socket = TcpStream::connect(address).unwrap();
    socket.set_read_timeout(Some(LIMIT)).unwrap();
    let _ = socket.write_all(bytes);
    let _ = socket.shutdown(std::net::Shutdown::Write);
    let mut answer = Vec::new();
    // A reset is an end too.
    match socket.read_to_end(&mut answer) {
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => panic!("never closed"),
        _ => {}
    }
}

#[tokio::test]
async fn garbage_harms_only_its_own_connection() {
    let setup = setup();
    let scene = Scene::new(&setup).await;
    let (tcp, tls) = (scene.hub.tcp(), scene.hub.address("tls"));
    let shouting = std::thread::spawn(move || {
        for seed in 0..400 {
            let mut bytes = noise(seed, 1 + seed as usize * 7);
            // Some of it begins like what it should be.
            match seed % 4 {
                0 => bytes[0] = 0x10,
                1 => bytes
                    .splice(0..0, *b"\x10\x40\0\x04MQTT\x04\xc2")
                    .for_each(drop),
                2 => bytes.splice(0..0, [0x16, 3, 1, 1, 0]).for_each(drop),
                _ => {}
            }
            shout(if seed % 2 == 0 { tcp } else { tls }, &bytes);
        }
    });
    while !shouting.is_finished() {
        scene.serves(true).await;
        scene.serves(false).await;
    }
    shouting.join().unwrap();
    // The same from a client that is in.
    let hello = wire::connect(&scene.hub.hello("edge-1/b"));
    let address = scene.hub.tcp();
    let shouting = std::thread::spawn(move || {
        for seed in 1000..1200 {
            shout(address, &[&hello[..], &noise(seed, 2000)].concat());
        }
    });
    while !shouting.is_finished() {
        scene.serves(true).await;
    }
    shouting.join().unwrap();
    scene.recovers();
}

#[tokio::test]
async fn claimed_lengths_cost_nothing() {
    let setup = setup();
    let scene = Scene::new(&setup).await;
    let mut open = Vec::new();
    // 256 MiB, which is too much, and 1 MiB, which is not, each 500 times.
    for claimed in [[0xff, 0xff, 0xff, 0x7f], [0x80, 0x80, 0xc0, 0]] {
        let head = [&[0x10][..], &claimed, &[0, 4], b"MQTT"].concat();
        for _ in 0..500 {
            let mut socket = TcpStream::connect(scene.hub.tcp()).unwrap();
            let _ = socket.write_all(&head);
            open.push(socket);
        }
    }
    scene.serves(true).await;
    scene.serves(false).await;
    let grown = scene.memory_kib().saturating_sub(scene.idle_kib);
    assert!(grown < MEMORY_KIB, "{grown} KiB more");
    drop(open);
    scene.recovers();
}

/// A CONNECT is a few kilobytes: who is not in yet may not fill the memory with a larger one.
#[tokio::test]
async fn long_connects_do_not_fill_the_memory() {
    const BODY: usize = 1_000_000;
    let setup = setup();
    let scene = Scene::new(&setup).await;
    // Two strings of 64 KiB and a will take no more than this; it goes on beyond.
    let connect = [
        &[0x10, 0x80, 0x80, 0xc0, 0, 0, 4][..],
        b"MQTT",
        &[4, 2, 0, 60],
    ]
    .concat();
    let address = scene.hub.tcp();
    let senders: Vec<_> = (0..100)
        .map(|_| {
            let head = connect.clone();
            std::thread::spawn(move || {
                let mut socket = TcpStream::connect(address).unwrap();
                let _ = socket.write_all(&head);
                let _ = socket.write_all(&vec![0; BODY]);
                socket
            })
        })
        .collect();
    let open: Vec<_> = senders
        .into_iter()
        .map(|sender| sender.join().unwrap())
        .collect();
    scene.serves(true).await;
    let grown = scene.memory_kib().saturating_sub(scene.idle_kib);
    assert!(
        grown < 3 * MEMORY_KIB,
        "{grown} KiB more for {} clients",
        open.len()
    );
}

/// SDKs try again and again after a refusal; the right credentials are let in all the while.
#[tokio::test]
async fn a_hundred_refused_logins_lock_nobody_out() {
    let setup = setup();
    let scene = Scene::new(&setup).await;
    let mut wrong = scene.hello.clone();
    wrong.password = Some(scene.hub.hello("edge-1/b").password.unwrap());
    let address = scene.hub.tcp();
    let attempt = async |hello: &Hello| {
        let mut client = Client::tcp(address).await.unwrap();
        client.connect(hello).await
    };
    let tries: Vec<_> = (0..100)
        .map(|_| {
            let wrong = wrong.clone();
            tokio::spawn(async move {
                let mut client = Client::tcp(address).await.unwrap();
                let refused = client.connect(&wrong).await;
                let code = match refused {
                    Err(ClientError::Refused(code)) => code,
                    other => panic!("{other:?}"),
                };
                assert_eq!(code, ConnectReturnCode::NotAuthorized);
            })
        })
        .collect();
    while tries.iter().any(|attempt| !attempt.is_finished()) {
        scene.serves(true).await;
        scene.serves(false).await;
    }
    for attempt in tries {
        attempt.await.unwrap();
    }
    assert!(attempt(&scene.hello).await.is_ok());
    let failed = "edgehub_client_connect_failed_total";
    assert_eq!(scene.hub.metric(failed, &["edge-1/a"]), 100.0);
}
