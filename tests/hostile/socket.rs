//! One connection to the hub, as bytes: plain or in TLS, with an end that is not mistaken for
//! silence.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};

/// The bound of each wait.
pub const PATIENCE: Duration = Duration::from_secs(10);

enum Stream {
    Plain(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

/// One connection.
pub struct Socket {
    stream: Stream,
    input: Vec<u8>,
    /// When something was sent last, or the connection came to be.
    pub sent: Instant,
}

impl Socket {
    /// # Errors
    /// In words.
    pub fn open(address: SocketAddr) -> Result<Self, String> {
        let stream = TcpStream::connect_timeout(&address, PATIENCE).map_err(|e| e.to_string())?;
        stream.set_nodelay(true).map_err(|e| e.to_string())?;
        stream
            .set_read_timeout(Some(PATIENCE))
            .and_then(|()| stream.set_write_timeout(Some(PATIENCE)))
            .map_err(|e| e.to_string())?;
        Ok(Self {
            stream: Stream::Plain(stream),
            input: Vec::new(),
            sent: Instant::now(),
        })
    }

    /// Shakes hands.
    ///
    /// # Errors
    /// In words.
    pub fn secure(self, config: &Arc<ClientConfig>) -> Result<Self, String> {
        let Stream::Plain(socket) = self.stream else {
            return Err("TLS in TLS".to_owned());
        };
        let name = ServerName::try_from("localhost").map_err(|e| e.to_string())?;
        let client = ClientConnection::new(Arc::clone(config), name).map_err(|e| e.to_string())?;
        let mut stream = StreamOwned::new(client, socket);
        while stream.conn.is_handshaking() {
            let StreamOwned { conn, sock } = &mut stream;
            conn.complete_io(sock).map_err(|e| e.to_string())?;
        }
        Ok(Self {
            stream: Stream::Tls(Box::new(stream)),
            ..self
        })
    }

    /// The socket below.
    pub fn tcp(&self) -> &TcpStream {
        match &self.stream {
            Stream::Plain(socket) => socket,
            Stream::Tls(stream) => stream.get_ref(),
        }
    }

    /// Sends all of it, unless the hub closes meanwhile: what it said before that is read later.
    pub fn send(&mut self, bytes: &[u8]) {
        let _ = match &mut self.stream {
            Stream::Plain(socket) => socket.write_all(bytes),
            Stream::Tls(stream) => stream.write_all(bytes).and_then(|()| stream.flush()),
        };
        self.sent = Instant::now();
    }

    /// Sends bytes beside TLS.
    pub fn send_raw(&mut self, bytes: &[u8]) {
        let _ = self.tcp().write_all(bytes);
        self.sent = Instant::now();
    }

    /// Ends its own side.
    pub fn shut(&self) {
        let _ = self.tcp().shutdown(Shutdown::Write);
    }

    /// Reads once; 0 at the end.
    fn read(&mut self) -> Result<usize, String> {
        let mut buffer = [0; 16 * 1024];
        let read = match &mut self.stream {
            Stream::Plain(socket) => socket.read(&mut buffer),
            Stream::Tls(stream) => stream.read(&mut buffer),
        };
        match read {
            Ok(bytes) => {
                self.input.extend_from_slice(&buffer[..bytes]);
                Ok(bytes)
            }
            Err(error) => match error.kind() {
                ErrorKind::WouldBlock | ErrorKind::TimedOut => {
                    Err(format!("nothing came for {PATIENCE:?}"))
                }
                // A reset is an end too, and so is one without the farewell of TLS.
                _ => Ok(0),
            },
        }
    }

    /// The next bytes.
    ///
    /// # Errors
    /// In words, when the connection ends before there are so many.
    pub fn take(&mut self, count: usize) -> Result<Vec<u8>, String> {
        while self.input.len() < count {
            if self.read()? == 0 {
                let got = super::notation::shown(&self.input);
                return Err(format!("closed after {got}"));
            }
        }
        Ok(self.input.drain(..count).collect())
    }

    /// The next packet.
    ///
    /// # Errors
    /// In words.
    pub fn packet(&mut self) -> Result<Vec<u8>, String> {
        let mut packet = self.take(2)?;
        let (mut length, mut shift) = (usize::from(packet[1] & 0x7f), 7);
        while packet[packet.len() - 1] & 0x80 != 0 {
            packet.extend(self.take(1)?);
            length |= usize::from(packet[packet.len() - 1] & 0x7f) << shift;
            shift += 7;
        }
        packet.extend(self.take(length)?);
        Ok(packet)
    }

    /// Everything up to the end of the connection.
    ///
    /// # Errors
    /// In words, when it does not end.
    pub fn rest(&mut self) -> Result<Vec<u8>, String> {
        while self.read()? > 0 {}
        Ok(std::mem::take(&mut self.input))
    }

    /// Nothing comes for so long.
    ///
    /// # Errors
    /// What came.
    pub fn silent(&mut self, time: Duration) -> Result<(), String> {
        let until = Instant::now() + time;
        while self.input.is_empty() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            let _ = self.tcp().set_read_timeout(Some(left));
            let read = self.read();
            let _ = self.tcp().set_read_timeout(Some(PATIENCE));
            if read == Ok(0) {
                return Err("closed".to_owned());
            }
        }
        Err(super::notation::shown(&self.input))
    }

    /// Whether the hub has closed; waits for nothing, and what came is lost.
    pub fn has_ended(&mut self) -> bool {
        let _ = self.tcp().set_nonblocking(true);
        let ended = loop {
            match self.tcp().read(&mut [0; 256]) {
                Ok(0) => break true,
                Ok(_) => {}
                Err(error) => break error.kind() != ErrorKind::WouldBlock,
            }
        };
        let _ = self.tcp().set_nonblocking(false);
        ended
    }

    /// Ends with a reset instead of a farewell.
    pub fn reset(self) {
        let _ = socket2::SockRef::from(self.tcp()).set_linger(Some(Duration::ZERO));
    }
}
