//! A way to a server on which everything can go wrong that goes wrong on networks.
//!
//! The proxy listens on a port of the loopback and has a thread of its own. Its mode counts from
//! the moment at which [`Proxy::set`] returns; connections that it ends are gone a little later.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc as blocking;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until};

use super::port::{self, Port};

/// Bytes of one read.
const CHUNK_BYTES: usize = 16 * 1024;
/// Chunks on their way in one direction: 16 MiB.
const CHUNKS_MAX: usize = 1024;

/// How the way behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Pass,
    /// Nobody listens on the port; connections are closed.
    Refuse,
    /// Connections are reset, new ones as soon as they are accepted.
    Reset,
    /// Nothing moves, and nothing is closed. Connections from before go on afterwards where they
    /// were; those that were made meanwhile stay dead.
    BlackHole,
    /// Everything takes so long in each direction, however much it is.
    Latency(Duration),
    /// So many bytes at a time, and a wait after each time.
    Trickle {
        bytes: usize,
        every: Duration,
    },
    /// Connections end for the server, and stay open and silent for the client; new ones pass.
    HalfOpen,
}

/// What went through.
#[derive(Debug, Default)]
pub struct Counts {
    connections: AtomicU64,
    up_bytes: AtomicU64,
    down_bytes: AtomicU64,
}

impl Counts {
    /// Connections that were accepted.
    pub fn connections(&self) -> u64 {
        self.connections.load(Ordering::Acquire)
    }

    /// Bytes that were passed on to the server.
    pub fn up_bytes(&self) -> u64 {
        self.up_bytes.load(Ordering::Acquire)
    }

    /// Bytes that were passed on to clients.
    pub fn down_bytes(&self) -> u64 {
        self.down_bytes.load(Ordering::Acquire)
    }
}

type Order = (Mode, blocking::SyncSender<()>);

/// A running proxy.
pub struct Proxy {
    port: Port,
    counts: Arc<Counts>,
    orders: mpsc::UnboundedSender<Order>,
    runtime: Option<Runtime>,
}

impl Proxy {
    /// In front of a server, which need not be there yet.
    pub fn start(server: SocketAddr) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        let port = Port::reserve()?;
        let counts = Arc::new(Counts::default());
        let (orders, given) = mpsc::unbounded_channel();
        let gate = Gate {
            address: port.address(),
            server,
            counts: Arc::clone(&counts),
            mode: watch::Sender::new(Mode::Refuse),
        };
        runtime.spawn(gate.keep(given));
        let proxy = Self {
            port,
            counts,
            orders,
            runtime: Some(runtime),
        };
        proxy.set(Mode::Pass);
        Ok(proxy)
    }

    pub fn address(&self) -> SocketAddr {
        self.port.address()
    }

    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Changes the mode, and waits until it counts.
    pub fn set(&self, mode: Mode) {
        let (done, wait) = blocking::sync_channel(1);
        self.orders.send((mode, done)).unwrap();
        wait.recv().unwrap();
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            super::stop(runtime);
        }
    }
}

/// Accepts connections while the mode allows it.
struct Gate {
    address: SocketAddr,
    server: SocketAddr,
    counts: Arc<Counts>,
    mode: watch::Sender<Mode>,
}

impl Gate {
    async fn keep(self, mut orders: mpsc::UnboundedReceiver<Order>) {
        let mut listener: Option<TcpListener> = None;
        loop {
            tokio::select! {
                biased;
                order = orders.recv() => {
                    let Some((mode, done)) = order else { return };
                    self.mode.send_replace(mode);
                    if mode == Mode::Refuse {
                        listener = None;
                    } else if listener.is_none() {
                        listener = Some(port::listen(self.address).unwrap());
                    }
                    let _ = done.send(());
                }
                accepted = accept(listener.as_ref()) => {
                    self.counts.connections.fetch_add(1, Ordering::AcqRel);
                    let way = Way {
                        counts: Arc::clone(&self.counts),
                        mode: self.mode.subscribe(),
                    };
                    tokio::spawn(way.serve(accepted, self.server));
                }
            }
        }
    }
}

async fn accept(listener: Option<&TcpListener>) -> TcpStream {
    loop {
        let Some(listener) = listener else {
            return std::future::pending().await;
        };
        if let Ok((socket, _)) = listener.accept().await {
            return socket;
        }
    }
}

/// How a connection ends.
enum Fate {
    Close,
    Reset,
    HalfOpen,
}

/// One connection.
struct Way {
    counts: Arc<Counts>,
    mode: watch::Receiver<Mode>,
}

impl Way {
    async fn serve(mut self, mut client: TcpStream, server: SocketAddr) {
        let mode = *self.mode.borrow_and_update();
        match mode {
            Mode::Refuse => return,
            Mode::Reset => return reset(&client),
            Mode::BlackHole => return self.bury(client).await,
            _ => {}
        }
        let Ok(mut server) = TcpStream::connect(server).await else {
            return reset(&client);
        };
        let _ = client.set_nodelay(true);
        let _ = server.set_nodelay(true);
        match self.carry(&mut client, &mut server).await {
            Fate::Close => {}
            Fate::Reset => {
                reset(&client);
                reset(&server);
            }
            Fate::HalfOpen => {
                drop(server);
                self.bury(client).await;
            }
        }
    }

    /// Carries in both directions until both are over or the mode ends it.
    async fn carry(&mut self, client: &mut TcpStream, server: &mut TcpStream) -> Fate {
        let (from_client, to_client) = client.split();
        let (from_server, to_server) = server.split();
        let mode = self.mode.clone();
        let counts = &self.counts;
        let both = async {
            let up = carry(from_client, to_server, mode.clone(), &counts.up_bytes);
            let down = carry(from_server, to_client, mode.clone(), &counts.down_bytes);
            let ended = tokio::try_join!(up, down);
            // A reset does not come through a hole either.
            let mut mode = mode.clone();
            passing(&mut mode).await;
            ended
        };
        tokio::select! {
            biased;
            fate = fate(&mut self.mode) => fate,
            ended = both => ended.map_or(Fate::Reset, |_| Fate::Close),
        }
    }

    /// Keeps a connection open on which nothing happens any more.
    async fn bury(mut self, client: TcpStream) {
        loop {
            match fate(&mut self.mode).await {
                Fate::Close => return,
                Fate::Reset => return reset(&client),
                Fate::HalfOpen => {}
            }
        }
    }
}

/// What the next mode that ends connections does to this one.
async fn fate(mode: &mut watch::Receiver<Mode>) -> Fate {
    while mode.changed().await.is_ok() {
        let now = *mode.borrow_and_update();
        match now {
            Mode::Refuse => return Fate::Close,
            Mode::Reset => return Fate::Reset,
            Mode::HalfOpen => return Fate::HalfOpen,
            Mode::Pass | Mode::BlackHole | Mode::Latency(_) | Mode::Trickle { .. } => {}
        }
    }
    Fate::Close
}

/// Closes with RST.
fn reset(socket: &TcpStream) {
    let _ = SockRef::from(socket).set_linger(Some(Duration::ZERO));
}

async fn carry(
    from: ReadHalf<'_>,
    to: WriteHalf<'_>,
    mode: watch::Receiver<Mode>,
    bytes: &AtomicU64,
) -> io::Result<()> {
    let (queue, queued) = mpsc::channel(CHUNKS_MAX);
    let read = read(from, queue, mode.clone());
    let write = write(queued, to, mode, bytes);
    tokio::try_join!(read, write).map(drop)
}

/// Reads, and says when each chunk is due at the other end.
async fn read(
    mut from: ReadHalf<'_>,
    queue: mpsc::Sender<(Instant, Bytes)>,
    mut mode: watch::Receiver<Mode>,
) -> io::Result<()> {
    let mut due = Instant::now();
    loop {
        passing(&mut mode).await;
        let mut chunk = BytesMut::with_capacity(CHUNK_BYTES);
        if from.read_buf(&mut chunk).await? == 0 {
            return Ok(());
        }
        let latency = match *mode.borrow() {
            Mode::Latency(latency) => latency,
            _ => Duration::ZERO,
        };
        // What came later does not overtake what was slow.
        due = due.max(Instant::now() + latency);
        if queue.send((due, chunk.freeze())).await.is_err() {
            return Ok(());
        }
    }
}

/// Writes what is due, as the mode wants it; then the end.
async fn write(
    mut queued: mpsc::Receiver<(Instant, Bytes)>,
    mut to: WriteHalf<'_>,
    mut mode: watch::Receiver<Mode>,
    bytes: &AtomicU64,
) -> io::Result<()> {
    while let Some((due, mut chunk)) = queued.recv().await {
        if due > Instant::now() {
            sleep_until(due).await;
        }
        while chunk.has_remaining() {
            let (piece, wait) = match passing(&mut mode).await {
                Mode::Trickle { bytes, every } => (bytes.clamp(1, chunk.len()), every),
                _ => (chunk.len(), Duration::ZERO),
            };
            to.write_all(&chunk[..piece]).await?;
            bytes.fetch_add(piece as u64, Ordering::AcqRel);
            chunk.advance(piece);
            if !wait.is_zero() {
                sleep(wait).await;
            }
        }
    }
    passing(&mut mode).await;
    to.shutdown().await
}

/// Waits while nothing moves; the mode that then holds.
async fn passing(mode: &mut watch::Receiver<Mode>) -> Mode {
    let moves = mode.wait_for(|mode| *mode != Mode::BlackHole).await;
    let moves = moves.ok().map(|mode| *mode);
    match moves {
        Some(mode) => mode,
        // The proxy has gone.
        None => std::future::pending().await,
    }
}
