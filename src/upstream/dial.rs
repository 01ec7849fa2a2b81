//! One connection to the cloud: names, sockets, proxy, TLS, over several servers.
//!
//! A network that swallows packets answers nothing, and TCP waits seconds before it asks again.
//! So an attempt that is silent for [`HEDGE_MS`] gets company: the next one begins beside it, and
//! the first that is done wins. The earlier one goes on, since on a slow link it is the nearest to
//! its end.

mod attempt;
mod handshake;
#[cfg(test)]
mod tests;

use std::fmt;
use std::future::poll_fn;
use std::net::Ipv6Addr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, timeout, timeout_at};

use super::link::{Failure, Reason};
pub use handshake::tls_failure;

/// An attempt that says nothing for so long gets company, in milliseconds.
pub const HEDGE_MS: u64 = 1000;
/// [`dial`] gives up after this.
pub const DIAL_LIMIT: Duration = Duration::from_secs(20);
/// Attempts that run at a time.
const ATTEMPTS_MAX: usize = 8;

/// A server's name or address, and its port.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Server {
    /// A DNS name or an IP address; IPv6 without brackets.
    pub host: String,
    /// Not 0.
    pub port: u16,
}

impl Server {
    /// Reads `host:port`, `host`, `[IPv6]:port` or `[IPv6]`.
    ///
    /// # Errors
    /// What is wrong and what to write instead. The text itself is not repeated: it may hold a
    /// password.
    pub fn parse(text: &str, default_port: u16) -> Result<Self, String> {
        if text.contains('@') {
            return Err("user names and passwords are not supported here: write host:port".into());
        }
        if text.contains('/') {
            return Err(
                "write host:port alone, without a scheme such as mqtts:// or a path".into(),
            );
        }
        let (host, port) = if let Some(rest) = text.strip_prefix('[') {
            let (host, rest) = rest
                .split_once(']')
                .ok_or("the bracket is not closed: write [::1]:8883")?;
            if host.parse::<Ipv6Addr>().is_err() {
                return Err("no IPv6 address between the brackets: write [::1]:8883".into());
            }
            let port = match rest.strip_prefix(':') {
                None if rest.is_empty() => None,
                None => return Err("only :port may follow the bracket: write [::1]:8883".into()),
                port => port,
            };
            (host, port)
        } else {
            match text.split_once(':') {
                Some((_, rest)) if rest.contains(':') => {
                    return Err("an IPv6 address goes into brackets: write [::1]:8883".into());
                }
                Some((host, port)) => (host, Some(port)),
                None => (text, None),
            }
        };
        if host.is_empty() {
            return Err("the host is missing: write host:port".into());
        }
        // The names that TLS can check.
        if ServerName::try_from(host).is_err() {
            return Err(
                "this is neither a host name (letters, digits, '-', '.') nor an IP \
                        address: write host:port, other alphabets in their xn-- form"
                    .into(),
            );
        }
        let port = match port {
            None => default_port,
            Some(port) => port
                .parse()
                .ok()
                .filter(|number| *number != 0 && port.bytes().all(|byte| byte.is_ascii_digit()))
                .ok_or("the port must be a number from 1 to 65535")?,
        };
        Ok(Self {
            host: host.to_owned(),
            port,
        })
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port } = self;
        if host.contains(':') {
            write!(f, "[{host}]:{port}")
        } else {
            write!(f, "{host}:{port}")
        }
    }
}

/// What a WebSocket handshake asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InWebSocket {
    /// Path and query, from `/` on.
    pub path: String,
    /// The longest message of the server that is taken, in bytes.
    pub message_bytes_max: usize,
}

/// How the cloud is reached.
#[derive(Debug, Clone)]
pub struct Reach {
    /// In the order of preference.
    pub servers: Vec<Server>,
    /// None: plain TCP. The certificate must be for [`Server::host`].
    pub tls: Option<Arc<ClientConfig>>,
    /// MQTT goes in WebSocket (MQTT 3.1.1 §6).
    pub websocket: Option<InWebSocket>,
    /// An HTTP proxy that all servers are reached by; it also looks their names up.
    pub proxy: Option<Server>,
}

/// What a connection reads from and writes to.
pub trait Socket: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Socket for T {}

/// TCP without delay, with TLS over it where [`Reach::tls`] says so, and WebSocket over that.
pub type Stream = Box<dyn Socket>;

/// A connection.
pub struct Dialed {
    /// Where nothing has been read or written yet.
    pub io: Stream,
    /// Its end for the log: `host:port (address)`, with the proxy where there is one.
    pub server: String,
    /// Since [`dial`] was called.
    pub took: Duration,
}

impl fmt::Debug for Dialed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dialed")
            .field("server", &self.server)
            .field("took", &self.took)
            .finish_non_exhaustive()
    }
}

/// Connects to one of the servers: the first that is done wins.
///
/// An attempt that fails starts the next server at once until each was tried; one that is silent
/// for [`HEDGE_MS`] gets the next beside it, round and round, without those that turned us away.
/// Dropping the future ends all attempts.
///
/// # Errors
/// The most telling failure once every server has failed: a server or a proxy that answered and
/// refused, before one that is not reached, before a name that does not resolve.
/// [`Reason::Unreachable`] if [`DIAL_LIMIT`] passes and nobody has refused.
pub async fn dial(reach: &Reach) -> Result<Dialed, Failure> {
    let since = Instant::now();
    let mut race = Race {
        reach,
        running: Vec::new(),
        next: 0,
        silent_at: since + Duration::from_millis(HEDGE_MS),
        turned_away: Vec::new(),
        failure: None,
    };
    let (io, server) = match timeout(DIAL_LIMIT, race.run()).await {
        Ok(result) => result?,
        Err(_) => return Err(race.timed_out()),
    };
    let took = since.elapsed();
    Ok(Dialed { io, server, took })
}

/// A stream, and where it leads.
type Connected = (Stream, String);

/// An attempt that is not done.
struct Attempt<'a> {
    /// Which server it is for.
    server: usize,
    run: Pin<Box<dyn Future<Output = Result<Connected, Failure>> + Send + 'a>>,
}

/// The attempts of one call.
struct Race<'a> {
    reach: &'a Reach,
    /// The oldest first.
    running: Vec<Attempt<'a>>,
    /// The number of the next attempt; its server is this modulo their count.
    next: usize,
    /// When the youngest attempt has been silent for long enough.
    silent_at: Instant,
    /// Servers that answered and refused.
    turned_away: Vec<usize>,
    /// The most telling so far, of equal ones the first.
    failure: Option<Failure>,
}

impl Race<'_> {
    async fn run(&mut self) -> Result<Connected, Failure> {
        self.begin();
        while !self.running.is_empty() {
            match timeout_at(self.silent_at, poll_fn(|cx| self.poll_done(cx))).await {
                Ok((_, Ok(connected))) => return Ok(connected),
                Ok((server, Err(failure))) => {
                    self.failed(server, failure);
                    if self.next < self.reach.servers.len() {
                        self.begin();
                    }
                }
                Err(_) => self.begin(),
            }
        }
        Err(self.failure.take().unwrap_or_else(|| Failure {
            reason: Reason::Unreachable,
            text: "no server is named: set `servers` in [upstream]".to_owned(),
        }))
    }

    /// Begins an attempt with the next server that did not turn us away.
    fn begin(&mut self) {
        self.silent_at = Instant::now() + Duration::from_millis(HEDGE_MS);
        let count = self.reach.servers.len();
        let number = (self.next..self.next + count)
            .find(|number| !self.turned_away.contains(&(number % count)));
        let Some(number) = number else { return };
        let Some(server) = self.reach.servers.get(number % count) else {
            return;
        };
        // The oldest stays: a link may be so slow that no younger one could be done in time.
        if self.running.len() == ATTEMPTS_MAX {
            self.running.remove(1);
        }
        self.running.push(Attempt {
            server: number % count,
            run: Box::pin(attempt::attempt(self.reach, server, number / count)),
        });
        self.next = number + 1;
    }

    /// Takes out an attempt that is done: its server and what came of it.
    fn poll_done(&mut self, cx: &mut Context<'_>) -> Poll<(usize, Result<Connected, Failure>)> {
        let done = self.running.iter_mut().enumerate().find_map(|(at, one)| {
            match one.run.as_mut().poll(cx) {
                Poll::Ready(result) => Some((at, one.server, result)),
                Poll::Pending => None,
            }
        });
        let Some((at, server, result)) = done else {
            return Poll::Pending;
        };
        self.running.remove(at);
        Poll::Ready((server, result))
    }

    fn failed(&mut self, server: usize, failure: Failure) {
        if weight(failure.reason) == ANSWERED && !self.turned_away.contains(&server) {
            self.turned_away.push(server);
        }
        let known = self.failure.as_ref().map(|known| weight(known.reason));
        if known < Some(weight(failure.reason)) {
            self.failure = Some(failure);
        }
    }

    /// Nobody let us in, and somebody is still silent.
    fn timed_out(self) -> Failure {
        let names: Vec<_> = self.reach.servers.iter().map(Server::to_string).collect();
        let seconds = DIAL_LIMIT.as_secs();
        let silence = format!("{}: no answer within {seconds} s", names.join(", "));
        match self.failure {
            Some(failure) if weight(failure.reason) == ANSWERED => failure,
            Some(failure) => Failure {
                reason: Reason::Unreachable,
                text: format!("{silence}; {failure}"),
            },
            None => Failure {
                reason: Reason::Unreachable,
                text: silence,
            },
        }
    }
}

/// The weight of somebody's refusal.
const ANSWERED: u8 = 2;

/// How telling a failure is.
fn weight(reason: Reason) -> u8 {
    match reason {
        Reason::Dns => 0,
        Reason::Unreachable | Reason::Lost => 1,
        Reason::Tls | Reason::Proxy | Reason::Refused => ANSWERED,
    }
}
