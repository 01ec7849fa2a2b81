//! A port of the loopback that stays the same while nobody listens on it.

use std::io;
use std::net::SocketAddr;

use tokio::net::{TcpListener, TcpSocket};

const BACKLOG: u32 = 1024;

/// Bound and not listening: connections are refused, and nobody else is given the port, not even
/// as the local end of a connection to itself.
pub struct Port {
    _socket: TcpSocket,
    address: SocketAddr,
}

impl Port {
    pub fn reserve() -> io::Result<Self> {
        let socket = bound(([127, 0, 0, 1], 0).into())?;
        Ok(Self {
            address: socket.local_addr()?,
            _socket: socket,
        })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

/// Listens, even where the port is reserved. Has to be called within a runtime.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    bound(address)?.listen(BACKLOG)
}

fn bound(address: SocketAddr) -> io::Result<TcpSocket> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.set_reuseport(true)?;
    socket.bind(address)?;
    Ok(socket)
}
