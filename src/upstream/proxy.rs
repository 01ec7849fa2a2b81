//! Through an HTTP proxy: CONNECT, and the head of its answer.

use std::io::{self, ErrorKind};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::dial::Server;
use super::link::{Failure, Reason};

/// Largest head of an answer.
const HEAD_BYTES_MAX: usize = 8 * 1024;
/// What the head ends with.
const HEAD_END: &[u8] = b"\r\n\r\n";
/// What it begins with.
const VERSION: &[u8] = b"HTTP/1.";
/// Of a status line in the log.
const LINE_CHARS_MAX: usize = 120;

/// Has the proxy connect to `server`. Whatever follows the head of its answer is left in `tcp`.
///
/// # Errors
/// [`Reason::Proxy`] with the proxy's status, or because it does not speak HTTP;
/// [`Reason::Unreachable`] if the connection to it breaks.
pub(super) async fn connect(tcp: &mut TcpStream, server: &Server) -> Result<(), Failure> {
    let request = format!("CONNECT {server} HTTP/1.1\r\nHost: {server}\r\n\r\n");
    tcp.write_all(request.as_bytes()).await.map_err(broken)?;
    let head = read_head(tcp).await?;
    let line = head.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let line = String::from_utf8_lossy(line);
    let code = line.split(' ').nth(1).filter(|code| is_code(code));
    let hint = match code {
        Some(code) if code.starts_with('2') => return Ok(()),
        Some("407") => ": proxies with credentials are not supported",
        Some("403" | "405") => ": the proxy must allow CONNECT to this server and port",
        Some("502" | "503" | "504") => ": the proxy does not reach the server",
        Some(_) => "",
        None => return Err(no_proxy(&head)),
    };
    let line = printable(&line);
    Err(refused(format!("the proxy answered '{line}'{hint}")))
}

fn is_code(code: &str) -> bool {
    code.len() == 3 && code.bytes().all(|byte| byte.is_ascii_digit())
}

/// Takes the head out of the socket and nothing behind it, since that is the server's already.
async fn read_head(tcp: &mut TcpStream) -> Result<Vec<u8>, Failure> {
    let mut head = Vec::new();
    let mut seen = [0; 1024];
    loop {
        let count = tcp.peek(&mut seen).await.map_err(broken)?;
        if count == 0 {
            return Err(broken(ErrorKind::UnexpectedEof.into()));
        }
        let old = head.len();
        head.extend_from_slice(seen.get(..count).unwrap_or_default());
        if !head.starts_with(VERSION) && !VERSION.starts_with(&head) {
            return Err(no_proxy(&head));
        }
        // The end may have begun with the bytes before.
        let from = old.saturating_sub(HEAD_END.len() - 1);
        let mut tails = head.windows(HEAD_END.len()).skip(from);
        let end = tails.position(|window| window == HEAD_END);
        head.truncate(end.map_or(head.len(), |at| from + at + HEAD_END.len()));
        let taken = seen.get_mut(..head.len() - old).unwrap_or_default();
        tcp.read_exact(taken).await.map_err(broken)?;
        if end.is_some() {
            return Ok(head);
        }
        if head.len() >= HEAD_BYTES_MAX {
            let kib = HEAD_BYTES_MAX / 1024;
            return Err(refused(format!("the proxy's answer is over {kib} KiB")));
        }
    }
}

fn refused(text: String) -> Failure {
    Failure {
        reason: Reason::Proxy,
        text,
    }
}

fn no_proxy(head: &[u8]) -> Failure {
    let begin = head.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let begin = printable(&String::from_utf8_lossy(begin));
    refused(format!(
        "what answers is no HTTP proxy ('{begin}'): check `proxy` in [upstream]"
    ))
}

fn broken(error: io::Error) -> Failure {
    if is_farewell(&error) {
        return refused("the proxy closed the connection instead of answering".to_owned());
    }
    Failure {
        reason: Reason::Unreachable,
        text: format!("the connection to the proxy broke: {error}"),
    }
}

/// Whether it was the other side that ended the connection, and not the network.
pub(super) fn is_farewell(error: &io::Error) -> bool {
    use ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    matches!(
        error.kind(),
        UnexpectedEof | ConnectionReset | ConnectionAborted | BrokenPipe
    )
}

/// The beginning of a text from outside, fit for one line of the log.
fn printable(text: &str) -> String {
    let line = text.trim_end().chars().take(LINE_CHARS_MAX);
    line.flat_map(char::escape_debug).collect()
}
