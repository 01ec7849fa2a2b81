//! A connection that takes many packets per read and sends many per write, and what is in a
//! message.

use std::net::SocketAddr;
use std::sync::LazyLock;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use edgehub::client::{ClientError, Hello};
use edgehub::mqtt::{
    self, Connect, ConnectReturnCode, FromClient, FromServer, PacketId, PublishParts, QoS,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::rng::Rng;

const PACKET_MAX: usize = 1 << 20;
/// The longest that a login or a leave may take.
const EXCHANGE_LIMIT: Duration = Duration::from_secs(20);

pub struct Link {
    socket: TcpStream,
    input: BytesMut,
    pub output: BytesMut,
}

impl Link {
    /// Logged in, and whether the hub had a session.
    pub async fn login(address: SocketAddr, hello: &Hello) -> Result<(Self, bool), ClientError> {
        let login = Self::login_unbounded(address, hello);
        let late = |_| ClientError::Unexpected {
            expected: "CONNACK",
            got: "nothing in time".to_owned(),
        };
        tokio::time::timeout(EXCHANGE_LIMIT, login)
            .await
            .map_err(late)?
    }

    async fn login_unbounded(
        address: SocketAddr,
        hello: &Hello,
    ) -> Result<(Self, bool), ClientError> {
        let socket = TcpStream::connect(address).await?;
        socket.set_nodelay(true)?;
        let mut link = Self {
            socket,
            input: BytesMut::with_capacity(1 << 16),
            output: BytesMut::new(),
        };
        let connect = FromClient::Connect(Connect {
            clean_session: hello.clean_session,
            keep_alive_seconds: hello.keep_alive_seconds,
            client_id: &hello.client_id,
            will: None,
            username: hello.username.as_deref(),
            password: hello.password.as_deref().map(str::as_bytes),
        });
        mqtt::encode_from_client(&connect, &mut link.output)?;
        link.flush().await?;
        loop {
            if let Some((packet, used)) = mqtt::decode_from_server(&link.input, PACKET_MAX)? {
                let FromServer::ConnAck(answer) = packet else {
                    return Err(ClientError::Unexpected {
                        expected: "CONNACK",
                        got: format!("{packet:?}"),
                    });
                };
                let (present, code) = (answer.session_present, answer.code);
                link.input.advance(used);
                return match code {
                    ConnectReturnCode::Accepted => Ok((link, present)),
                    code => Err(ClientError::Refused(code)),
                };
            }
            link.read().await?;
        }
    }

    pub fn subscribe(&mut self, filter: &str) -> Result<(), ClientError> {
        let id = PacketId::new(1).unwrap();
        let filters = std::iter::once((filter, QoS::AtLeastOnce));
        mqtt::encode_subscribe(&mut self.output, id, filters)?;
        Ok(())
    }

    /// Adds a message to what the next flush writes.
    pub fn publish(
        &mut self,
        topic: &str,
        packet_id: PacketId,
        payload: &[u8],
        dup: bool,
    ) -> Result<(), ClientError> {
        let head = PublishParts {
            dup,
            qos: QoS::AtLeastOnce,
            retain: false,
            topic_prefix: topic.as_bytes(),
            topic_suffix: b"",
            packet_id: Some(packet_id),
            properties: None,
            payload_len: payload.len(),
        };
        mqtt::encode_publish_head(&mut self.output, head)?;
        self.output.extend_from_slice(payload);
        Ok(())
    }

    pub async fn flush(&mut self) -> Result<(), ClientError> {
        while self.output.has_remaining() {
            self.socket.write_buf(&mut self.output).await?;
        }
        Ok(())
    }

    /// Reads once. Nothing is lost where this is given up in between.
    pub async fn read(&mut self) -> Result<(), ClientError> {
        self.input.reserve(1 << 16);
        match self.socket.read_buf(&mut self.input).await? {
            0 => Err(ClientError::Closed),
            _ => Ok(()),
        }
    }

    /// Hands over every packet that is there, with the place for answers; says how many.
    pub fn each(
        &mut self,
        mut take: impl FnMut(FromServer<'_>, &mut BytesMut),
    ) -> Result<usize, ClientError> {
        let mut count = 0;
        while let Some((packet, used)) = mqtt::decode_from_server(&self.input, PACKET_MAX)? {
            take(packet, &mut self.output);
            self.input.advance(used);
            count += 1;
        }
        Ok(count)
    }

    /// Takes leave: DISCONNECT, and waits until the hub has closed.
    pub async fn leave(mut self) -> Result<(), ClientError> {
        mqtt::encode_from_client(&FromClient::Disconnect, &mut self.output)?;
        self.flush().await?;
        self.socket.shutdown().await?;
        let gone = async { while self.read().await.is_ok() {} };
        let _ = tokio::time::timeout(EXCHANGE_LIMIT, gone).await;
        Ok(())
    }
}

/// What is in a message: whose it is and which one. The rest of it follows from that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Body {
    pub publisher: usize,
    pub output: usize,
    /// Counts the messages of this publisher and output.
    pub ordinal: u32,
    /// Counts the messages of this publisher.
    pub counter: u32,
    pub bytes: usize,
}

/// Bytes of a body that has nothing behind its header.
pub const BODY_BYTES_MIN: usize = 16;
/// Longest body.
pub const BODY_BYTES_MAX: usize = 1 << 16;

static NOISE: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut rng = Rng::new(7);
    let words = (0..(BODY_BYTES_MAX + 256) / 8).map(|_| rng.next());
    words.flat_map(u64::to_le_bytes).collect()
});

impl Body {
    pub fn write(&self, out: &mut Vec<u8>) {
        out.clear();
        out.extend((self.publisher as u16).to_le_bytes());
        out.extend((self.output as u16).to_le_bytes());
        out.extend(self.ordinal.to_le_bytes());
        out.extend(self.counter.to_le_bytes());
        out.extend((self.bytes as u32).to_le_bytes());
        out.extend_from_slice(self.rest());
    }

    /// `None`: not what was sent, in length or in any byte.
    pub fn read(payload: &[u8]) -> Option<Self> {
        let (head, rest) = payload.split_at_checked(BODY_BYTES_MIN)?;
        let short = |at: usize| usize::from(u16::from_le_bytes([head[at], head[at + 1]]));
        let long = |at: usize| u32::from_le_bytes(head[at..at + 4].try_into().unwrap());
        let body = Self {
            publisher: short(0),
            output: short(2),
            ordinal: long(4),
            counter: long(8),
            bytes: long(12) as usize,
        };
        let fits = body.bytes == payload.len() && body.bytes <= BODY_BYTES_MAX;
        (fits && rest == body.rest()).then_some(body)
    }

    fn rest(&self) -> &'static [u8] {
        let from = (self.counter as usize + self.publisher) % 256;
        &NOISE[from..from + self.bytes - BODY_BYTES_MIN]
    }
}
