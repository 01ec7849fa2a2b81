//! The faulty way to a server does what it says.
#![allow(missing_docs, clippy::unwrap_used, clippy::indexing_slicing)]

mod cloud;

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use cloud::faults::{Mode, Proxy};

const LIMIT: Duration = Duration::from_secs(20);
/// How long a silence is listened to.
const SILENCE: Duration = Duration::from_millis(200);

/// A proxy and the server behind it.
struct Scene {
    proxy: Proxy,
    server: TcpListener,
}

impl Scene {
    fn new() -> Self {
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let proxy = Proxy::start(server.local_addr().unwrap()).unwrap();
        Self { proxy, server }
    }

    fn client(&self) -> TcpStream {
        let socket = TcpStream::connect(self.proxy.address()).unwrap();
        socket.set_read_timeout(Some(LIMIT)).unwrap();
        socket.set_nodelay(true).unwrap();
        socket
    }

    /// Both ends of a connection.
    fn pair(&self) -> (TcpStream, TcpStream) {
        let client = self.client();
        let (server, _) = self.server.accept().unwrap();
        server.set_read_timeout(Some(LIMIT)).unwrap();
        server.set_nodelay(true).unwrap();
        (client, server)
    }
}

fn passes(from: &mut TcpStream, to: &mut TcpStream, bytes: &[u8]) {
    from.write_all(bytes).unwrap();
    let mut read = vec![0; bytes.len()];
    to.read_exact(&mut read).unwrap();
    assert_eq!(read, bytes);
}

fn is_silent(socket: &mut TcpStream) {
    socket.set_read_timeout(Some(SILENCE)).unwrap();
    let error = socket.read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::WouldBlock);
    socket.set_read_timeout(Some(LIMIT)).unwrap();
}

fn is_reset(socket: &mut TcpStream) {
    let error = socket.read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

fn is_closed(socket: &mut TcpStream) {
    assert_eq!(socket.read(&mut [0]).unwrap(), 0);
}

#[test]
fn passes_both_ways_and_counts() {
    let scene = Scene::new();
    let (mut client, mut server) = scene.pair();
    passes(&mut client, &mut server, b"up and");
    passes(&mut server, &mut client, b"down");
    // One direction may end before the other.
    client.shutdown(Shutdown::Write).unwrap();
    is_closed(&mut server);
    passes(&mut server, &mut client, b"still");
    drop(server);
    is_closed(&mut client);
    let counts = scene.proxy.counts();
    let seen = (counts.connections(), counts.up_bytes(), counts.down_bytes());
    assert_eq!(seen, (1, 6, 9));
}

#[test]
fn a_server_that_has_gone_resets() {
    let Scene { proxy, server } = Scene::new();
    drop(server);
    let mut client = TcpStream::connect(proxy.address()).unwrap();
    is_reset(&mut client);
}

#[test]
fn refuses_and_comes_back_on_the_same_port() {
    let scene = Scene::new();
    let (mut client, mut server) = scene.pair();
    scene.proxy.set(Mode::Refuse);
    is_closed(&mut client);
    is_closed(&mut server);
    for _ in 0..3 {
        let refused = TcpStream::connect(scene.proxy.address()).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    }
    scene.proxy.set(Mode::Pass);
    let (mut client, mut server) = scene.pair();
    passes(&mut client, &mut server, b"again");
    assert_eq!(scene.proxy.counts().connections(), 2);
}

#[test]
fn resets_old_and_new_connections() {
    let scene = Scene::new();
    let (mut client, mut server) = scene.pair();
    scene.proxy.set(Mode::Reset);
    is_reset(&mut client);
    is_reset(&mut server);
    is_reset(&mut scene.client());
    scene.proxy.set(Mode::Pass);
    let (mut client, mut server) = scene.pair();
    passes(&mut client, &mut server, b"again");
}

#[test]
fn a_black_hole_swallows_nothing_of_older_connections_and_all_of_new_ones() {
    let scene = Scene::new();
    let (mut client, mut server) = scene.pair();
    passes(&mut client, &mut server, b"before");
    let (ending, mut ended) = scene.pair();
    scene.proxy.set(Mode::BlackHole);
    client.write_all(b"up in the hole").unwrap();
    server.write_all(b"down in the hole").unwrap();
    drop(ending);
    let mut buried = scene.client();
    buried.write_all(b"hello").unwrap();
    is_silent(&mut client);
    is_silent(&mut server);
    is_silent(&mut ended);
    is_silent(&mut buried);
    scene.proxy.set(Mode::Pass);
    passes(&mut client, &mut server, b"");
    let mut read = [0; 14];
    server.read_exact(&mut read).unwrap();
    assert_eq!(&read, b"up in the hole");
    let mut read = [0; 16];
    client.read_exact(&mut read).unwrap();
    assert_eq!(&read, b"down in the hole");
    is_closed(&mut ended);
    passes(&mut client, &mut server, b"after");
    is_silent(&mut buried);
    // Nobody ever connected to the server for it.
    let (mut next, mut accepted) = scene.pair();
    passes(&mut next, &mut accepted, b"next");
    scene.proxy.set(Mode::Reset);
    is_reset(&mut buried);
}

#[test]
fn latency_delays_everything_and_limits_nothing() {
    const LATENCY: Duration = Duration::from_millis(60);
    const BYTES: usize = 8 << 20;
    let scene = Scene::new();
    let (mut client, mut server) = scene.pair();
    scene.proxy.set(Mode::Latency(LATENCY));
    let began = Instant::now();
    passes(&mut client, &mut server, b"there");
    assert!(began.elapsed() >= LATENCY, "{:?}", began.elapsed());
    passes(&mut server, &mut client, b"and back");
    assert!(began.elapsed() >= 2 * LATENCY, "{:?}", began.elapsed());
    // A wait for each chunk would take half a minute.
    let bytes: Vec<u8> = (0..BYTES).map(|at| (at / 7 % 251) as u8).collect();
    let sent = bytes.clone();
    let began = Instant::now();
    let writer = thread::spawn(move || client.write_all(&sent).map(|()| client));
    let mut read = vec![0; BYTES];
    server.read_exact(&mut read).unwrap();
    let took = began.elapsed();
    assert!(took >= LATENCY && took < Duration::from_secs(5), "{took:?}");
    assert!(read == bytes, "not what was sent, or not in order");
    // What is on its way stays in front of what is faster.
    let mut client = writer.join().unwrap().unwrap();
    client.write_all(b"slow ").unwrap();
    scene.proxy.set(Mode::Pass);
    client.write_all(b"and fast").unwrap();
    let mut read = [0; 13];
    server.read_exact(&mut read).unwrap();
    assert_eq!(&read, b"slow and fast");
}

#[test]
fn a_trickle_takes_its_time() {
    const EVERY: Duration = Duration::from_millis(10);
    let scene = Scene::new();
    let (mut client, mut server) = scene.pair();
    let bytes = 3;
    scene.proxy.set(Mode::Trickle {
        bytes,
        every: EVERY,
    });
    let began = Instant::now();
    passes(&mut client, &mut server, b"one, two, three, four, five");
    // Nine pieces, and eight waits between them.
    assert!(began.elapsed() >= 8 * EVERY, "{:?}", began.elapsed());
    // The rest of a long one comes at once when it is over.
    let long = vec![b'x'; 100_000];
    client.write_all(&long).unwrap();
    server.read_exact(&mut [0; 30]).unwrap();
    scene.proxy.set(Mode::Pass);
    let began = Instant::now();
    let mut rest = vec![0; long.len() - 30];
    server.read_exact(&mut rest).unwrap();
    assert!(
        began.elapsed() < Duration::from_secs(5),
        "{:?}",
        began.elapsed()
    );
}

#[test]
fn half_open_connections_end_for_the_server_alone() {
    let scene = Scene::new();
    let (mut client, mut server) = scene.pair();
    passes(&mut client, &mut server, b"before");
    scene.proxy.set(Mode::HalfOpen);
    is_closed(&mut server);
    client.write_all(b"into nothing").unwrap();
    is_silent(&mut client);
    let (mut next, mut accepted) = scene.pair();
    passes(&mut next, &mut accepted, b"next");
    scene.proxy.set(Mode::Pass);
    is_silent(&mut client);
    passes(&mut accepted, &mut next, b"goes on");
    assert_eq!(scene.proxy.counts().connections(), 2);
}
