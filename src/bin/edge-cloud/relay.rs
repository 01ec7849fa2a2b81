//! What stands between clients and the broker: the port that clients see, TLS, and an end after
//! which no acknowledgement leaves.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

/// How long a client may take for the handshake.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);
/// Before the next try when the system has no socket to give.
const ACCEPT_PAUSE: Duration = Duration::from_millis(10);

/// Relays connections to the broker until the other half of `stop` is dropped. When it returns,
/// all of them are closed.
pub async fn serve(
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    broker: SocketAddr,
    mut stop: oneshot::Receiver<()>,
) {
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            _ = &mut stop => break,
            Some(_) = connections.join_next() => continue,
            accepted = listener.accept() => accepted,
        };
        let Ok((socket, _)) = accepted else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        // A connection that fails concerns its client alone, who sees its end.
        connections.spawn(connection(socket, tls.clone(), broker));
    }
    connections.shutdown().await;
}

async fn connection(
    socket: TcpStream,
    tls: Option<TlsAcceptor>,
    broker: SocketAddr,
) -> io::Result<()> {
    socket.set_nodelay(true)?;
    let Some(tls) = tls else {
        return relay(socket, broker).await;
    };
    let socket = tokio::time::timeout(HANDSHAKE_LIMIT, tls.accept(socket)).await??;
    relay(socket, broker).await
}

async fn relay(
    mut client: impl AsyncRead + AsyncWrite + Unpin,
    broker: SocketAddr,
) -> io::Result<()> {
    let mut broker = TcpStream::connect(broker).await?;
    broker.set_nodelay(true)?;
    copy_bidirectional(&mut client, &mut broker).await?;
    Ok(())
}
