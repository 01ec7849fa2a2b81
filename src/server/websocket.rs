//! MQTT in WebSocket: the bytes of binary messages as a stream (MQTT 3.1.1 §6, MQTT 5 §6).

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use futures_core::Stream;
use futures_sink::Sink;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_tungstenite::tungstenite::client::ClientRequestBuilder;
use tokio_tungstenite::tungstenite::handshake::server::{ErrorResponse, Request, Response};
use tokio_tungstenite::tungstenite::http::{HeaderValue, StatusCode, Uri, header};
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{WebSocketStream, accept_hdr_async_with_config, client_async_with_config};

/// The sub-protocol (MQTT-6.0.0-3).
const PROTOCOL: &str = "mqtt";
/// Of each connection, for good.
const READ_BUFFER_BYTES: usize = 4 * 1024;
/// Bytes of one message that we send, about: small packets share one.
const MESSAGE_BYTES: usize = 16 * 1024;

/// Any socket below.
pub(crate) trait Socket: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Socket for S {}

/// A WebSocket as a stream of bytes.
pub struct WebSocket {
    inner: WebSocketStream<Box<dyn Socket>>,
    /// What was received and not read yet.
    rest: Bytes,
}

impl WebSocket {
    /// The server's half of the handshake, at any path; a message of the client has at most
    /// `message_bytes_max`.
    ///
    /// # Errors
    /// Why there is no WebSocket.
    pub(crate) async fn accept(
        socket: Box<dyn Socket>,
        message_bytes_max: usize,
    ) -> Result<Self, String> {
        let config = config(message_bytes_max);
        let inner = accept_hdr_async_with_config(socket, choose_protocol, Some(config))
            .await
            .map_err(|error| error.to_string())?;
        Ok(Self::over(inner))
    }

    /// The client's half, with the server `host:port`; a message of the server has at most
    /// `message_bytes_max`.
    ///
    /// # Errors
    /// Why there is no WebSocket.
    pub async fn connect<S>(
        socket: S,
        (host, path): (&str, &str),
        message_bytes_max: usize,
    ) -> Result<Self, Error>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        // TLS, where there is any, is below.
        let uri = Uri::builder().scheme("ws").authority(host);
        let uri = uri.path_and_query(path).build()?;
        let request = ClientRequestBuilder::new(uri).with_sub_protocol(PROTOCOL);
        let config = Some(config(message_bytes_max));
        let socket: Box<dyn Socket> = Box::new(socket);
        let (inner, _) = client_async_with_config(request, socket, config).await?;
        Ok(Self::over(inner))
    }

    fn over(inner: WebSocketStream<Box<dyn Socket>>) -> Self {
        let rest = Bytes::new();
        Self { inner, rest }
    }

    fn inner(&mut self) -> Pin<&mut WebSocketStream<Box<dyn Socket>>> {
        Pin::new(&mut self.inner)
    }

    fn poll_send(&mut self, cx: &mut Context<'_>, bytes: Bytes) -> Poll<io::Result<usize>> {
        ready!(self.inner().poll_ready(cx)).map_err(io_error)?;
        let written = bytes.len();
        self.inner()
            .start_send(Message::Binary(bytes))
            .map_err(io_error)?;
        Poll::Ready(Ok(written))
    }
}

fn config(message_bytes_max: usize) -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER_BYTES)
        .write_buffer_size(0)
        .max_frame_size(Some(message_bytes_max))
        .max_message_size(Some(message_bytes_max))
}

/// Takes `mqtt` among what the client offers.
#[allow(clippy::result_large_err, reason = "the callback's type is given")]
fn choose_protocol(request: &Request, mut response: Response) -> Result<Response, ErrorResponse> {
    let offered = request.headers().get_all(header::SEC_WEBSOCKET_PROTOCOL);
    let mut offered = offered
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','));
    if !offered.any(|protocol| protocol.trim() == PROTOCOL) {
        let text = "the sub-protocol has to be mqtt".to_owned();
        let mut refused = ErrorResponse::new(Some(text));
        *refused.status_mut() = StatusCode::BAD_REQUEST;
        return Err(refused);
    }
    let name = HeaderValue::from_static(PROTOCOL);
    let headers = response.headers_mut();
    headers.insert(header::SEC_WEBSOCKET_PROTOCOL, name);
    Ok(response)
}

impl AsyncRead for WebSocket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.rest.is_empty() {
            match ready!(self.inner().poll_next(cx)) {
                Some(Ok(Message::Binary(bytes))) => self.rest = bytes,
                Some(Ok(Message::Text(_))) => {
                    let text = "a text message, which MQTT has not (MQTT-6.0.0-1)";
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, text)));
                }
                // Pings and farewells are answered below, the latter by reading on to the end
                // (RFC 6455 §5.5.1).
                Some(Ok(
                    Message::Ping(_) | Message::Pong(_) | Message::Frame(_) | Message::Close(_),
                )) => {}
                None => return Poll::Ready(Ok(())),
                Some(Err(error)) => return Poll::Ready(Err(io_error(error))),
            }
        }
        let bytes = self.rest.len().min(buf.remaining());
        buf.put_slice(self.rest.get(..bytes).unwrap_or_default());
        self.rest.advance(bytes);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for WebSocket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.inner().poll_ready(cx)).map_err(io_error)?;
        self.poll_send(cx, Bytes::copy_from_slice(buf))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        // Before anything is copied.
        ready!(self.inner().poll_ready(cx)).map_err(io_error)?;
        let mut bytes = BytesMut::new();
        for slice in slices {
            if !bytes.is_empty() && bytes.len() + slice.len() > MESSAGE_BYTES {
                break;
            }
            bytes.extend_from_slice(slice);
        }
        self.poll_send(cx, bytes.freeze())
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.inner().poll_flush(cx).map_err(io_error)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.inner().poll_close(cx).map_err(io_error)
    }
}

fn io_error(error: Error) -> io::Error {
    match error {
        Error::Io(error) => error,
        Error::ConnectionClosed | Error::AlreadyClosed => io::ErrorKind::BrokenPipe.into(),
        Error::Protocol(
            tokio_tungstenite::tungstenite::error::ProtocolError::ResetWithoutClosingHandshake,
        ) => io::ErrorKind::ConnectionReset.into(),
        other => io::Error::new(io::ErrorKind::InvalidData, other.to_string()),
    }
}
