//! Listeners and the connections that come through them.

mod clock;
mod connection;
mod passwords;
mod pending;
mod proxy;
pub(crate) mod socket;
pub mod tls;
mod websocket;

use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

pub use clock::Clock;
use connection::Connection;
use passwords::PasswordQueue;
use pending::Pending;
pub use pending::PendingSet;
use tls::SharedTls;
pub use websocket::WebSocket;

use crate::config::{Listener, Transport};
use crate::hub::{Hub, Now, Peer};
use crate::identity::ClientCertificate;
use crate::limits;
use crate::mailbox::{EVICTED, Mailbox};
use crate::observe;

/// Connections that the kernel holds for us while we accept.
const BACKLOG: i32 = 1024;
/// Pause after an error of accept, such as no free file descriptor.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);

/// The reason for which a connection is closed whose proxy does not introduce it well.
const PROXY_HEADER: &str = "proxy_header";

/// What every connection needs.
#[derive(Debug, Clone)]
pub struct Shared {
    /// The hub.
    pub hub: Arc<Hub>,
    /// The clock.
    pub clock: Clock,
    /// Certificates and keys.
    pub tls: SharedTls,
    /// Connections before login.
    pub pending: PendingSet,
    /// Passwords that wait to be checked.
    passwords: PasswordQueue,
}

impl Shared {
    /// Ties hub, clock and TLS together.
    #[must_use]
    pub fn new(hub: Arc<Hub>, clock: Clock, tls: SharedTls) -> Self {
        Self {
            passwords: PasswordQueue::new(Arc::clone(&hub), clock),
            hub,
            clock,
            tls,
            pending: PendingSet::default(),
        }
    }
}

/// Binds a listener; the real address tells the port where 0 was asked for.
///
/// # Errors
/// Whatever the system answers, such as a port in use.
pub fn bind(address: SocketAddr) -> io::Result<(TcpListener, SocketAddr)> {
    let domain = socket2::Domain::for_address(address);
    let socket = socket2::Socket::new(domain, socket2::Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    let listener = TcpListener::from_std(socket.into())?;
    let address = listener.local_addr()?;
    Ok((listener, address))
}

/// Accepts connections until `stop` changes.
pub async fn accept(
    listener: TcpListener,
    settings: Listener,
    shared: Shared,
    mut stop: watch::Receiver<bool>,
) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stop.changed() => return,
        };
        match accepted {
            Ok((socket, address)) => {
                admit(socket, address.ip().to_canonical(), &settings, &shared);
            }
            Err(error) => {
                tracing::warn!(%error, bind = %settings.bind, "cannot accept a connection");
                shared.pending.evict_oldest();
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

fn admit(mut socket: TcpStream, address: IpAddr, settings: &Listener, shared: &Shared) {
    let peer = Peer {
        address,
        certificate: None,
        anonymous: settings.anonymous,
    };
    let mut arrival = Arrival::new(peer, shared.clone());
    if let Err(error) = prepare(&socket) {
        tracing::debug!(%error, "socket options");
    }
    let transport = settings.transport;
    let mut proxies = settings.trusted_proxies.iter();
    let is_proxied = proxies.any(|range| range.contains(address));
    let remote_anonymous = settings.allow_remote_anonymous;
    tokio::spawn(async move {
        if !speaks(&socket, &arrival.shared, &arrival.mailbox).await {
            return;
        }
        if is_proxied && !arrival.introduce(&mut socket, remote_anonymous).await {
            return;
        }
        // Boxed: while it waits for the first bytes, a task is small.
        match transport {
            Transport::Tcp => Box::pin(arrival.serve(socket)).await,
            Transport::Tls => Box::pin(arrival.secure(socket, false)).await,
            Transport::Ws => Box::pin(arrival.upgrade(Box::new(socket))).await,
            Transport::Wss => Box::pin(arrival.secure(socket, true)).await,
        }
    });
}

/// Serves a client over a stream that is up, until one side ends it: what becomes of every
/// connection that a listener accepts.
pub async fn serve<S: AsyncRead + AsyncWrite + Unpin>(stream: S, peer: Peer, shared: Shared) {
    Arrival::new(peer, shared).serve(stream).await;
}

/// A connection on its way to its session.
struct Arrival {
    shared: Shared,
    peer: Peer,
    mailbox: Arc<Mailbox>,
    pending: Pending,
    /// When it was accepted.
    since: Now,
}

impl Arrival {
    fn new(peer: Peer, shared: Shared) -> Self {
        let mailbox = Arc::new(Mailbox::default());
        let max = shared.hub.limits().max_pending_connections;
        let since = shared.clock.now();
        let pending = shared.pending.enter(&mailbox, max, since.ms);
        Self {
            shared,
            peer,
            mailbox,
            pending,
            since,
        }
    }

    async fn serve<S: AsyncRead + AsyncWrite + Unpin>(self, stream: S) {
        let (peer, mailbox, place) = (self.peer, self.mailbox, self.pending);
        let connection = Connection::new(stream, self.shared, peer, mailbox, place, self.since);
        Box::pin(connection.serve()).await;
    }

    /// Waits for a handshake within the time for CONNECT.
    async fn within<T>(
        &self,
        what: &str,
        reason: &str,
        handshake: impl Future<Output = Result<T, String>>,
    ) -> Option<T> {
        let now = self.shared.clock.now();
        let spent = Duration::from_millis(now.ms.saturating_sub(self.since.ms));
        let deadline = connect_timeout(&self.shared).saturating_sub(spent);
        let handshake = tokio::select! {
            done = Box::pin(handshake) => done,
            () = tokio::time::sleep(deadline) => Err("timeout".to_owned()),
            () = evicted(&self.mailbox) => Err("evicted".to_owned()),
        };
        match handshake {
            Ok(done) => Some(done),
            Err(error) => {
                count_closed(&self.shared, reason);
                let address = self.peer.address;
                if reason != PROXY_HEADER {
                    tracing::debug!(%address, error, "{what} failed");
                } else if self.shared.hub.may_log() {
                    // Of a machine that the operator named: something is not set up right.
                    tracing::warn!(%address, error, "{what} failed");
                }
                None
            }
        }
    }

    /// Reads who is behind a trusted proxy; false if the proxy does not say it as it must.
    async fn introduce(&mut self, socket: &mut TcpStream, remote_anonymous: bool) -> bool {
        let header = proxy::read_header(socket);
        let header = self.within("PROXY header", PROXY_HEADER, header).await;
        let Some(proxy::Header { client }) = header else {
            return false;
        };
        // A proxy on loopback brings clients from anywhere.
        let is_near = client.is_some_and(|client| client.is_loopback());
        self.peer.anonymous &= remote_anonymous || is_near;
        self.peer.address = client.unwrap_or(self.peer.address);
        true
    }

    async fn secure(mut self, socket: TcpStream, is_websocket: bool) {
        let handshake = handshake(socket, &self.shared.tls);
        let done = self
            .within("TLS handshake", "tls_handshake", handshake)
            .await;
        let Some((stream, certificate)) = done else {
            return;
        };
        self.peer.certificate = certificate;
        if is_websocket {
            self.upgrade(Box::new(stream)).await;
        } else {
            self.serve(stream).await;
        }
    }

    async fn upgrade(self, socket: Box<dyn websocket::Socket>) {
        let max = self.shared.hub.limits().max_message_bytes + limits::TOPIC_BYTES_MAX;
        let handshake = WebSocket::accept(socket, max);
        let done = self.within("WebSocket handshake", "websocket_handshake", handshake);
        if let Some(stream) = done.await {
            self.serve(stream).await;
        }
    }
}

/// Waits for the client's first bytes; a silent one costs no more than this.
async fn speaks(socket: &TcpStream, shared: &Shared, mailbox: &Mailbox) -> bool {
    let reason = tokio::select! {
        readable = socket.readable() => match readable {
            Ok(()) => return true,
            Err(_) => "connection_lost",
        },
        () = tokio::time::sleep(connect_timeout(shared)) => "connect_timeout",
        () = evicted(mailbox) => "evicted",
    };
    count_closed(shared, reason);
    false
}

fn connect_timeout(shared: &Shared) -> Duration {
    Duration::from_secs(shared.hub.limits().connect_timeout_seconds)
}

fn count_closed(shared: &Shared, reason: &str) {
    let label = [("reason", reason)];
    let counter = shared
        .hub
        .metrics()
        .counter(observe::CONNECTIONS_CLOSED, &label);
    counter.increment(1);
}

/// No delay for small packets, and dead peers without keep-alive are found by TCP.
fn prepare(socket: &TcpStream) -> io::Result<()> {
    socket.set_nodelay(true)?;
    let keepalive = socket2::TcpKeepalive::new().with_time(Duration::from_secs(120));
    socket2::SockRef::from(socket).set_tcp_keepalive(&keepalive)
}

type TlsStream = tokio_rustls::server::TlsStream<TcpStream>;

async fn handshake(
    socket: TcpStream,
    tls: &SharedTls,
) -> Result<(TlsStream, Option<ClientCertificate>), String> {
    let state = tls.load_full().ok_or("no certificate")?;
    let stream = TlsAcceptor::from(Arc::clone(&state.config))
        .accept(socket)
        .await
        .map_err(|error| error.to_string())?;
    let certificate = stream
        .get_ref()
        .1
        .peer_certificates()
        .and_then(|chain| state.client_certificate(chain));
    Ok((stream, certificate))
}

/// Waits until the connection is told to make room for a newer one.
pub async fn evicted(mailbox: &Mailbox) {
    poll_fn(|cx| {
        if mailbox.take(cx.waker()) & EVICTED == 0 {
            Poll::Pending
        } else {
            Poll::Ready(())
        }
    })
    .await;
}
