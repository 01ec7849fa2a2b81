//! One attempt: name, socket, proxy, TLS.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::Arc;

use rustls::pki_types::ServerName;
use socket2::SockRef;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio_rustls::TlsConnector;

use super::handshake;
use super::{Connected, InWebSocket, Reach, Server};
use crate::server::WebSocket;
use crate::upstream::link::{Failure, Reason};
use crate::upstream::proxy;

/// Lookups cannot be called off: a thread each waits for the name server to answer.
static LOOKUPS: Semaphore = Semaphore::const_new(16);
/// A second or so of a slow link. Without this bound, Linux keeps megabytes.
const UNSENT_BYTES_MAX: u32 = 32 * 1024;

/// Connects to `server`, beginning with the address of number `round`, modulo their count.
pub(super) async fn attempt(
    reach: &Reach,
    server: &Server,
    round: usize,
) -> Result<Connected, Failure> {
    let (hop, who) = match &reach.proxy {
        None => (server, server.to_string()),
        Some(proxy) => (proxy, format!("proxy {proxy}")),
    };
    let mut addresses = look_up(hop, &who).await?;
    let begin = round % addresses.len().max(1);
    addresses.rotate_left(begin);
    let (mut tcp, address) = connect(&who, &addresses).await?;
    let place = match &reach.proxy {
        None if who == address.to_string() => who,
        None => format!("{server} ({address})"),
        Some(proxy) => {
            let place = format!("{server} (proxy {proxy}, {address})");
            proxy::connect(&mut tcp, server).await.map_err(|failure| {
                let text = format!("{place}: {failure}");
                Failure { text, ..failure }
            })?;
            place
        }
    };
    let Some(tls) = &reach.tls else {
        return upgrade(reach, server, (Box::new(tcp), place)).await;
    };
    let name = ServerName::try_from(server.host.clone()).map_err(|error| Failure {
        reason: Reason::Tls,
        text: format!("{place}: no name for a certificate: {error}"),
    })?;
    let connector = TlsConnector::from(Arc::clone(tls));
    match connector.connect(name, tcp).await {
        Ok(stream) => upgrade(reach, server, (Box::new(stream), place)).await,
        Err(error) => Err(handshake::failure(&place, &error)),
    }
}

/// Makes a WebSocket of it where that is wanted.
async fn upgrade(
    reach: &Reach,
    server: &Server,
    (stream, place): Connected,
) -> Result<Connected, Failure> {
    let Some(InWebSocket {
        path,
        message_bytes_max,
    }) = &reach.websocket
    else {
        return Ok((stream, place));
    };
    let at = (&*server.to_string(), &**path);
    match WebSocket::connect(stream, at, *message_bytes_max).await {
        Ok(socket) => Ok((Box::new(socket), place)),
        Err(error) => Err(handshake::no_websocket(&place, path, error)),
    }
}

/// The addresses of `server`, which texts call `who`.
async fn look_up(server: &Server, who: &str) -> Result<Vec<SocketAddr>, Failure> {
    let Server { host, port } = server;
    if let Ok(ip) = host.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(ip, *port)]);
    }
    let permit = LOOKUPS.acquire().await;
    let name = (host.clone(), *port);
    let found = tokio::task::spawn_blocking(move || {
        let _permit = permit;
        name.to_socket_addrs().map(Vec::from_iter)
    });
    let why = match found.await {
        Ok(Ok(addresses)) if addresses.is_empty() => "it has no address".to_owned(),
        Ok(Ok(addresses)) => return Ok(addresses),
        Ok(Err(error)) => error.to_string(),
        Err(error) => error.to_string(),
    };
    Err(Failure {
        reason: Reason::Dns,
        text: format!(
            "{who}: the name does not resolve ({why}): check its spelling, and the name \
             server of this device"
        ),
    })
}

/// Sent at once, and what cannot be sent yet stays here: whoever waits for an answer has to know
/// whether the question has left.
fn prepared(tcp: TcpStream) -> io::Result<TcpStream> {
    tcp.set_nodelay(true)?;
    SockRef::from(&tcp).set_tcp_notsent_lowat(UNSENT_BYTES_MAX)?;
    Ok(tcp)
}

/// The first address that accepts, in their order.
async fn connect(who: &str, addresses: &[SocketAddr]) -> Result<(TcpStream, SocketAddr), Failure> {
    let mut telling: Option<(io::Error, SocketAddr)> = None;
    for address in addresses {
        let connected = TcpStream::connect(address).await;
        let error = match connected.and_then(prepared) {
            Ok(tcp) => return Ok((tcp, *address)),
            Err(error) => error,
        };
        // A refusal says more than an address family that this device does not have.
        if telling.is_none() || error.kind() == ErrorKind::ConnectionRefused {
            telling = Some((error, *address));
        }
    }
    let text = match telling {
        None => format!("{who}: no address"),
        Some((error, address)) => {
            let hint = match error.kind() {
                ErrorKind::ConnectionRefused => ": is the server running, and is the port right?",
                ErrorKind::NetworkUnreachable | ErrorKind::HostUnreachable => {
                    ": is this device's network up?"
                }
                ErrorKind::PermissionDenied => ": does a firewall of this device forbid it?",
                _ => "",
            };
            format!("{who} ({address}): {error}{hint}")
        }
    };
    Err(Failure {
        reason: Reason::Unreachable,
        text,
    })
}
