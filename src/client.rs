//! A small MQTT client on the hub's own codec, for the quickstart's demo modules, tests and
//! benches: one connection, QoS 0 and 1, packets in and out as they are.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::{Buf, Bytes, BytesMut};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::mqtt::{
    self, Connect, ConnectReturnCode, FromClient, FromServer, PacketId, Publish, QoS, SubAckCode,
};

/// Largest packet that the client takes, in bytes.
const PACKET_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Why an exchange with the hub failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The socket or TLS.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The hub ended the connection.
    #[error("the hub closed the connection")]
    Closed,
    /// The hub sent something that is no MQTT.
    #[error("{0}")]
    Decode(#[from] mqtt::DecodeError),
    /// Something to send is no MQTT.
    #[error("{0}")]
    Encode(#[from] mqtt::EncodeError),
    /// CONNACK with another code than 0.
    #[error("login refused: {0:?}")]
    Refused(ConnectReturnCode),
    /// Another packet than the one that was due.
    #[error("expected {expected}, got {got}")]
    Unexpected {
        /// What was due.
        expected: &'static str,
        /// What came.
        got: String,
    },
    /// Certificates or names that TLS cannot use.
    #[error("{0}")]
    Tls(String),
}

/// A packet of the hub, owned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Packet {
    /// A message.
    Publish {
        /// Its topic.
        topic: String,
        /// Its body.
        payload: Bytes,
        /// Whether it was sent before.
        dup: bool,
        /// Set with QoS 1: to be acknowledged.
        packet_id: Option<PacketId>,
    },
    /// An acknowledgement of a message.
    PubAck(PacketId),
    /// An answer to SUBSCRIBE.
    SubAck(PacketId, Vec<SubAckCode>),
    /// An answer to UNSUBSCRIBE.
    UnsubAck(PacketId),
    /// CONNACK.
    ConnAck {
        /// Whether the hub had a session.
        session_present: bool,
        /// 0 or the reason.
        code: ConnectReturnCode,
    },
    /// PINGRESP.
    PingResp,
    /// A packet of QoS 2.
    Other(String),
}

impl Packet {
    fn from_server(packet: &FromServer<'_>) -> Self {
        match packet {
            FromServer::Publish(publish) => Self::Publish {
                topic: publish.topic.to_owned(),
                payload: Bytes::copy_from_slice(publish.payload),
                dup: publish.dup,
                packet_id: publish.packet_id,
            },
            FromServer::PubAck(id) => Self::PubAck(*id),
            FromServer::SubAck(suback) => {
                Self::SubAck(suback.packet_id, suback.codes.iter().collect())
            }
            FromServer::UnsubAck(id) => Self::UnsubAck(*id),
            FromServer::ConnAck(connack) => Self::ConnAck {
                session_present: connack.session_present,
                code: connack.code,
            },
            FromServer::PingResp => Self::PingResp,
            other => Self::Other(format!("{other:?}")),
        }
    }
}

/// How a client introduces itself.
#[derive(Debug, Clone, Default)]
pub struct Hello {
    /// The client id: `device` or `device/module`.
    pub client_id: String,
    /// The user name.
    pub username: Option<String>,
    /// The password: a SAS token.
    pub password: Option<String>,
    /// Whether the session ends with the connection.
    pub clean_session: bool,
    /// Keep-alive in seconds; 0: none.
    pub keep_alive_seconds: u16,
}

trait Socket: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Socket for T {}

/// One connection to a hub.
pub struct Client {
    socket: Box<dyn Socket>,
    input: BytesMut,
    output: BytesMut,
    next_id: u16,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Client")
    }
}

impl Client {
    /// Connects over plain TCP.
    ///
    /// # Errors
    /// The socket's.
    pub async fn tcp(address: SocketAddr) -> Result<Self, ClientError> {
        let socket = TcpStream::connect(address).await?;
        socket.set_nodelay(true)?;
        Ok(Self::over(socket))
    }

    /// Connects over TLS; the hub's certificate must be for `hostname`.
    ///
    /// # Errors
    /// The socket's, and a handshake that failed.
    pub async fn tls(
        address: SocketAddr,
        hostname: &str,
        config: Arc<ClientConfig>,
    ) -> Result<Self, ClientError> {
        let socket = TcpStream::connect(address).await?;
        socket.set_nodelay(true)?;
        let name = ServerName::try_from(hostname.to_owned())
            .map_err(|error| ClientError::Tls(error.to_string()))?;
        let socket = TlsConnector::from(config).connect(name, socket).await?;
        Ok(Self::over(socket))
    }

    /// A client on a connection that is there already.
    #[must_use]
    pub fn over(socket: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) -> Self {
        Self {
            socket: Box::new(socket),
            input: BytesMut::new(),
            output: BytesMut::new(),
            next_id: 1,
        }
    }

    /// Logs in and returns session-present.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with the hub's return code.
    pub async fn connect(&mut self, hello: &Hello) -> Result<bool, ClientError> {
        let connect = FromClient::Connect(Connect {
            clean_session: hello.clean_session,
            keep_alive_seconds: hello.keep_alive_seconds,
            client_id: &hello.client_id,
            will: None,
            username: hello.username.as_deref(),
            password: hello.password.as_deref().map(str::as_bytes),
        });
        self.send(&connect).await?;
        match self.receive().await? {
            Packet::ConnAck {
                session_present,
                code: ConnectReturnCode::Accepted,
            } => Ok(session_present),
            Packet::ConnAck { code, .. } => Err(ClientError::Refused(code)),
            other => Err(unexpected("CONNACK", &other)),
        }
    }

    /// Subscribes at QoS 1 and waits for the answer.
    ///
    /// # Errors
    /// The connection's, and a packet that is not SUBACK.
    pub async fn subscribe(&mut self, filter: &str) -> Result<SubAckCode, ClientError> {
        let id = self.packet_id();
        let filters = std::iter::once((filter, QoS::AtLeastOnce));
        mqtt::encode_subscribe(&mut self.output, id, filters)?;
        self.flush().await?;
        match self.receive().await? {
            Packet::SubAck(answer, codes) if answer == id => {
                Ok(codes.first().copied().unwrap_or(SubAckCode::Failure))
            }
            other => Err(unexpected("SUBACK", &other)),
        }
    }

    /// Sends a message and returns its packet id with QoS 1.
    ///
    /// # Errors
    /// The connection's.
    pub async fn publish(
        &mut self,
        topic: &str,
        qos: QoS,
        payload: &[u8],
    ) -> Result<Option<PacketId>, ClientError> {
        let packet_id = (qos != QoS::AtMostOnce).then(|| self.packet_id());
        self.send(&FromClient::Publish(Publish {
            dup: false,
            qos,
            retain: false,
            topic,
            packet_id,
            payload,
        }))
        .await?;
        Ok(packet_id)
    }

    /// Sends any packet.
    ///
    /// # Errors
    /// The connection's.
    pub async fn send(&mut self, packet: &FromClient<'_>) -> Result<(), ClientError> {
        mqtt::encode_from_client(packet, &mut self.output)?;
        self.flush().await
    }

    /// Sends bytes as they are, packets or not.
    ///
    /// # Errors
    /// The connection's.
    pub async fn send_bytes(&mut self, bytes: &[u8]) -> Result<(), ClientError> {
        self.socket.write_all(bytes).await?;
        self.socket.flush().await?;
        Ok(())
    }

    /// Receives the next packet.
    ///
    /// # Errors
    /// [`ClientError::Closed`] at the end of the connection.
    pub async fn receive(&mut self) -> Result<Packet, ClientError> {
        loop {
            if let Some((packet, used)) = mqtt::decode_from_server(&self.input, PACKET_BYTES_MAX)? {
                let packet = Packet::from_server(&packet);
                self.input.advance(used);
                return Ok(packet);
            }
            self.input.reserve(4096);
            if self.socket.read_buf(&mut self.input).await? == 0 {
                return Err(ClientError::Closed);
            }
        }
    }

    /// Acknowledges a message.
    ///
    /// # Errors
    /// The connection's.
    pub async fn acknowledge(&mut self, packet_id: PacketId) -> Result<(), ClientError> {
        self.send(&FromClient::PubAck(packet_id)).await
    }

    /// Takes leave.
    ///
    /// # Errors
    /// The connection's.
    pub async fn disconnect(mut self) -> Result<(), ClientError> {
        self.send(&FromClient::Disconnect).await?;
        self.socket.shutdown().await?;
        Ok(())
    }

    async fn flush(&mut self) -> Result<(), ClientError> {
        self.socket.write_all(&self.output).await?;
        self.socket.flush().await?;
        self.output.clear();
        Ok(())
    }

    fn packet_id(&mut self) -> PacketId {
        loop {
            let id = PacketId::new(self.next_id);
            self.next_id = self.next_id.wrapping_add(1);
            if let Some(id) = id {
                return id;
            }
        }
    }
}

/// TLS settings that trust one authority, with a client certificate where one is given.
///
/// # Errors
/// PEM that does not read.
pub fn tls_config(
    ca_pem: &[u8],
    client: Option<(&[u8], &[u8])>,
) -> Result<Arc<ClientConfig>, ClientError> {
    trusting(roots(ca_pem)?, client)
}

/// The authorities of a PEM text.
///
/// # Errors
/// PEM that does not read.
pub fn roots(ca_pem: &[u8]) -> Result<RootCertStore, ClientError> {
    let bad = |error: &dyn fmt::Display| ClientError::Tls(error.to_string());
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(ca_pem) {
        let certificate = certificate.map_err(|error| bad(&error))?;
        roots.add(certificate).map_err(|error| bad(&error))?;
    }
    Ok(roots)
}

/// TLS settings that trust these authorities, with a client certificate where one is given.
///
/// # Errors
/// PEM that does not read.
pub fn trusting(
    roots: RootCertStore,
    client: Option<(&[u8], &[u8])>,
) -> Result<Arc<ClientConfig>, ClientError> {
    let bad = |error: &dyn fmt::Display| ClientError::Tls(error.to_string());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| bad(&error))?
        .with_root_certificates(roots);
    let config = match client {
        None => builder.with_no_client_auth(),
        Some((chain, key)) => {
            let chain = CertificateDer::pem_slice_iter(chain)
                .collect::<Result<Vec<_>, _>>()
                .map_err(|error| bad(&error))?;
            let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| bad(&error))?;
            builder
                .with_client_auth_cert(chain, key)
                .map_err(|error| bad(&error))?
        }
    };
    Ok(Arc::new(config))
}

fn unexpected(expected: &'static str, got: &Packet) -> ClientError {
    ClientError::Unexpected {
        expected,
        got: format!("{got:?}"),
    }
}
