//! Bytes between a connection and its socket.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::session::{Close, Output};

/// Slices of one vectored write.
const SLICES_MAX: usize = 32;

/// Writes as much as the socket takes. `unflushed`: something was written and not flushed yet.
pub(crate) fn write<S: AsyncWrite + Unpin>(
    io: &mut S,
    output: &mut Output,
    unflushed: &mut bool,
    cx: &mut Context<'_>,
) -> io::Result<()> {
    while !output.is_empty() {
        let mut slices = [IoSlice::new(&[]); SLICES_MAX];
        let filled = output.slices(&mut slices);
        let slices = slices.get(..filled).unwrap_or_default();
        match Pin::new(&mut *io).poll_write_vectored(cx, slices) {
            Poll::Pending => return Ok(()),
            Poll::Ready(Ok(0)) => return Err(io::ErrorKind::BrokenPipe.into()),
            Poll::Ready(written) => {
                output.advance(written?);
                *unflushed = true;
            }
        }
    }
    if *unflushed && let Poll::Ready(flushed) = Pin::new(&mut *io).poll_flush(cx) {
        flushed?;
        *unflushed = false;
    }
    Ok(())
}

/// Peers that vanish are ordinary: a reset, or an end without the TLS farewell.
pub(super) fn io_error(error: io::Error) -> Close {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    match error.kind() {
        UnexpectedEof | ConnectionReset | ConnectionAborted | BrokenPipe => Close::ConnectionLost,
        _ => Close::Io(error.to_string()),
    }
}

/// Ends our side and reads until the client has ended its own: a socket that is dropped with
/// unread bytes resets the connection, and with it the CONNACK that is still on its way.
pub(super) async fn linger<S: AsyncRead + AsyncWrite + Unpin>(io: &mut S) -> io::Result<()> {
    io.shutdown().await?;
    let mut sink = [0; 1024];
    while io.read(&mut sink).await? > 0 {}
    Ok(())
}
