//! When to connect to the cloud, and when to try again; without I/O and clocks.
//!
//! While nobody answers up there (no route, no name, refused, silence), a try costs the cloud
//! nothing, and one a second finds the network's return at once. A server that answers and turns
//! us away is given time: full jitter below a bound that doubles from 0.5 to 30 seconds, and stays
//! at 0.5 as long as each connection brings messages up. A change of the device's network makes
//! the next try due at once.

use std::fmt;

/// The first bound of a wait.
const WAIT_MS_MIN: u64 = 500;
/// The last one.
const WAIT_MS_MAX: u64 = 30_000;
/// Between two tries while nobody answers.
const PROBE_MS: u64 = 1000;
/// The shortest and the longest wait for CONNACK.
const ACCEPT_MS_MIN: u64 = 1500;
const ACCEPT_MS_MAX: u64 = 20_000;
/// After so long without a connection the server may have become slower than it was.
const PATIENCE_MS: u64 = 300_000;
/// A connection that ends sooner was no success.
const STEADY_MS: u64 = 5000;

/// Where the link is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Nothing to send, or not begun.
    Idle,
    /// A try is on.
    Connecting,
    /// The server let us in.
    Connected,
    /// Connected, and answers are late.
    Degraded,
    /// Between two tries.
    BackingOff,
}

impl State {
    /// Its name in metrics, `/status` and the log.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Connecting => "connecting",
            Self::Connected => "connected",
            Self::Degraded => "degraded",
            Self::BackingOff => "backing_off",
        }
    }
}

/// Why a try failed or a connection ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// What sort it is; a change of it is worth a line in the log.
    pub reason: Reason,
    /// In words.
    pub text: String,
}

/// Sorts of failures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// The server's name does not resolve.
    Dns,
    /// No connection, or no answer on it.
    Unreachable,
    /// Certificates, ours or theirs.
    Tls,
    /// The proxy would not.
    Proxy,
    /// CONNACK with another code than 0, or DISCONNECT of a server that wants to be left alone.
    Refused,
    /// A connection that was up ended.
    Lost,
}

impl Reason {
    /// Its label in metrics.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Dns => "dns",
            Self::Unreachable => "unreachable",
            Self::Tls => "tls",
            Self::Proxy => "proxy",
            Self::Refused => "refused",
            Self::Lost => "lost",
        }
    }

    /// Whether somebody answered, who is given time.
    fn has_answered(self) -> bool {
        matches!(self, Self::Tls | Self::Proxy | Self::Refused)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// What is worth a line in the log: states that lasted, not tries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Up, after so many milliseconds without.
    Up {
        /// Milliseconds since it was last up, or since the first try.
        down_ms: u64,
    },
    /// Answers are late.
    Degraded,
    /// They come again.
    Recovered,
    /// Down, or down for another reason.
    Down(Failure),
}

/// One link.
#[derive(Debug, Clone)]
pub struct Link {
    state: State,
    since_ms: u64,
    /// Connected since, degraded or not.
    up_ms: Option<u64>,
    /// A message was acknowledged on it.
    has_delivered: bool,
    /// Without a connection since.
    down_ms: Option<u64>,
    /// Failures in a row of servers that answered, short connections among them.
    refusals: u32,
    /// When the try began that is on, or was last.
    began_ms: u64,
    /// When the next try is due.
    due_ms: u64,
    /// From CONNECT to CONNACK, when that last worked.
    accepted_in_ms: Option<u64>,
    /// What was said last about being down.
    said: Option<Reason>,
    last: Option<Failure>,
    tries: u64,
}

impl Link {
    /// Not connected, and due at once.
    #[must_use]
    pub fn new(now_ms: u64) -> Self {
        Self {
            state: State::Idle,
            since_ms: now_ms,
            up_ms: None,
            has_delivered: false,
            down_ms: None,
            refusals: 0,
            began_ms: now_ms,
            due_ms: now_ms,
            accepted_in_ms: None,
            said: None,
            last: None,
            tries: 0,
        }
    }

    /// Where it is.
    #[must_use]
    pub fn state(&self) -> State {
        self.state
    }

    /// Since when.
    #[must_use]
    pub fn since_ms(&self) -> u64 {
        self.since_ms
    }

    /// Why it is down, or was last.
    #[must_use]
    pub fn last(&self) -> Option<&Failure> {
        self.last.as_ref()
    }

    /// Tries so far.
    #[must_use]
    pub fn tries(&self) -> u64 {
        self.tries
    }

    /// When the next try is due.
    #[must_use]
    pub fn due_ms(&self) -> u64 {
        self.due_ms
    }

    /// A try begins.
    pub fn connecting(&mut self, now_ms: u64) {
        self.down_ms.get_or_insert(now_ms);
        self.tries += 1;
        self.began_ms = now_ms;
        self.enter(State::Connecting, now_ms);
    }

    /// How long to wait for CONNACK on a connection that took `dial_ms` to make. A server that
    /// answered before is not waited for much longer than it took then: a network that
    /// swallowed CONNECT does not give it back, and the next try may get through.
    #[must_use]
    pub fn accept_ms(&self, dial_ms: u64, now_ms: u64) -> u64 {
        let down_ms = self.down_ms.map_or(0, |since| now_ms.saturating_sub(since));
        let known = self.accepted_in_ms.filter(|_| down_ms < PATIENCE_MS);
        let usual_ms = known.map_or(ACCEPT_MS_MAX, |known_ms| known_ms * 4);
        usual_ms
            .max(dial_ms * 3)
            .clamp(ACCEPT_MS_MIN, ACCEPT_MS_MAX)
    }

    /// The server let us in, so long after CONNECT; no news where one connection follows another.
    pub fn connected(&mut self, took_ms: u64, now_ms: u64) -> Option<Change> {
        self.accepted_in_ms = Some(took_ms);
        let was_up = self.up_ms.replace(now_ms).is_some();
        self.has_delivered = false;
        let down_ms = now_ms.saturating_sub(self.down_ms.take().unwrap_or(now_ms));
        self.said = None;
        self.enter(State::Connected, now_ms);
        (!was_up).then_some(Change::Up { down_ms })
    }

    /// The server acknowledged a message.
    pub fn delivered(&mut self) {
        self.has_delivered = true;
    }

    /// Whether answers are late.
    pub fn degraded(&mut self, is_late: bool, now_ms: u64) -> Option<Change> {
        match (self.state, is_late) {
            (State::Connected, true) => {
                self.enter(State::Degraded, now_ms);
                Some(Change::Degraded)
            }
            (State::Degraded, false) => {
                self.enter(State::Connected, now_ms);
                Some(Change::Recovered)
            }
            _ => None,
        }
    }

    /// A try failed, or the connection ended. `random` is any number, for the jitter.
    pub fn failed(&mut self, failure: Failure, now_ms: u64, random: u64) -> Option<Change> {
        let was_up = self.up_ms.take().map(|since| now_ms.saturating_sub(since));
        if was_up.is_some_and(|lasted_ms| self.has_delivered || lasted_ms >= STEADY_MS) {
            self.refusals = 0;
        }
        self.down_ms.get_or_insert(now_ms);
        let wait_ms = match was_up {
            // The way back is often open already.
            Some(lasted_ms) if lasted_ms >= STEADY_MS && failure.reason != Reason::Refused => 0,
            // One try a second, the time of the last one included.
            None if !failure.reason.has_answered() => {
                (self.began_ms + PROBE_MS).saturating_sub(now_ms)
            }
            _ => {
                let bound = WAIT_MS_MIN << self.refusals.min(16);
                self.refusals += 1;
                random % (bound.min(WAIT_MS_MAX) + 1)
            }
        };
        self.due_ms = now_ms + wait_ms;
        self.enter(State::BackingOff, now_ms);
        let is_news = self.said != Some(failure.reason);
        self.said = Some(failure.reason);
        self.last = Some(failure.clone());
        is_news.then_some(Change::Down(failure))
    }

    /// The device's network changed: whatever was in the way may be gone.
    pub fn network_changed(&mut self, now_ms: u64) {
        if self.state == State::BackingOff {
            self.due_ms = self.due_ms.min(now_ms);
        }
    }

    /// Nothing to send for long: the connection was closed on purpose.
    pub fn idle(&mut self, now_ms: u64) {
        self.up_ms = None;
        self.down_ms = None;
        self.due_ms = now_ms;
        self.enter(State::Idle, now_ms);
    }

    fn enter(&mut self, state: State, now_ms: u64) {
        if self.state != state {
            self.state = state;
            self.since_ms = now_ms;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(reason: Reason) -> Failure {
        Failure {
            reason,
            text: reason.label().to_owned(),
        }
    }

    #[test]
    fn servers_that_answer_are_given_time_with_full_jitter() {
        let mut link = Link::new(0);
        let mut now_ms = 0;
        for bound in [500, 1000, 2000, 4000, 8000, 16_000, 30_000, 30_000, 30_000] {
            for random in [0, bound / 2, bound] {
                let mut copy = link.clone();
                copy.connecting(now_ms);
                copy.failed(failure(Reason::Refused), now_ms, random);
                assert_eq!(copy.due_ms(), now_ms + random, "bound {bound}");
                copy.connecting(now_ms);
                copy.failed(failure(Reason::Unreachable), now_ms, random);
                assert_eq!(copy.due_ms(), now_ms + PROBE_MS);
                copy.connecting(now_ms);
                copy.failed(failure(Reason::Dns), now_ms + 5000, random);
                assert_eq!(copy.due_ms(), now_ms + 5000);
            }
            link.connecting(now_ms);
            link.failed(failure(Reason::Refused), now_ms, bound + 1);
            assert_eq!(link.due_ms(), now_ms, "the bound itself is the most");
            now_ms += 50_000;
        }
        link.connecting(now_ms);
        link.connected(50, now_ms);
        link.failed(failure(Reason::Lost), now_ms + 4999, 30_000);
        assert_eq!(
            link.due_ms(),
            now_ms + 34_999,
            "a short connection is no success"
        );
        link.connecting(now_ms);
        link.connected(50, now_ms);
        link.failed(failure(Reason::Lost), now_ms + 5000, 30_000);
        assert_eq!(link.due_ms(), now_ms + 5000, "a steady one is");
        link.connecting(now_ms);
        link.connected(50, now_ms);
        link.failed(failure(Reason::Refused), now_ms + 5000, 400);
        assert_eq!(
            link.due_ms(),
            now_ms + 5400,
            "one that turned us away is not"
        );
        link.failed(failure(Reason::Refused), now_ms, 1001);
        assert_eq!(link.due_ms(), now_ms, "1001 is over the second bound");
    }

    #[test]
    fn a_lost_connection_is_tried_at_once_and_so_is_a_changed_network() {
        let mut link = Link::new(0);
        link.connecting(0);
        link.connected(5, 10);
        link.failed(failure(Reason::Lost), 6000, 77);
        assert_eq!((link.due_ms(), link.state()), (6000, State::BackingOff));
        link.connecting(6000);
        link.failed(failure(Reason::Unreachable), 6100, 77);
        assert_eq!(link.due_ms(), 7000);
        link.network_changed(6200);
        assert_eq!(link.due_ms(), 6200);
    }

    #[test]
    fn a_server_that_closes_often_and_takes_messages_is_not_given_more_time() {
        let mut link = Link::new(0);
        for round in 0..20 {
            let now_ms = round * 10_000;
            link.connecting(now_ms);
            link.connected(5, now_ms + 10);
            link.delivered();
            link.failed(failure(Reason::Lost), now_ms + 100, u64::MAX);
            assert!(link.due_ms() <= now_ms + 100 + WAIT_MS_MIN, "{round}");
        }
    }

    #[test]
    fn a_server_is_waited_for_as_long_as_it_is_known_to_need() {
        let mut link = Link::new(0);
        link.connecting(0);
        assert_eq!(link.accept_ms(10, 0), ACCEPT_MS_MAX);
        link.connected(30, 100);
        link.failed(failure(Reason::Lost), 20_000, 0);
        assert_eq!(link.accept_ms(10, 20_000), ACCEPT_MS_MIN);
        assert_eq!(link.accept_ms(2000, 20_000), 6000);
        assert_eq!(link.accept_ms(10, 320_000), ACCEPT_MS_MAX);
        link.connected(3000, 330_000);
        link.failed(failure(Reason::Lost), 340_000, 0);
        assert_eq!(link.accept_ms(10, 340_000), 12_000);
    }

    #[test]
    fn changes_are_told_once_and_tries_are_not() {
        let mut link = Link::new(0);
        let mut told = Vec::new();
        link.connecting(0);
        told.extend(link.failed(failure(Reason::Dns), 100, 0));
        for now_ms in 1..50 {
            link.connecting(now_ms * 1000);
            told.extend(link.failed(failure(Reason::Unreachable), now_ms * 1000, 0));
        }
        link.connecting(60_000);
        told.extend(link.connected(50, 60_500));
        told.extend(link.connected(50, 60_550));
        told.extend(link.degraded(false, 60_600));
        told.extend(link.degraded(true, 61_000));
        told.extend(link.degraded(true, 61_500));
        told.extend(link.degraded(false, 62_000));
        told.extend(link.failed(failure(Reason::Lost), 63_000, 0));
        assert_eq!(
            told,
            [
                Change::Down(failure(Reason::Dns)),
                Change::Down(failure(Reason::Unreachable)),
                Change::Up { down_ms: 60_500 },
                Change::Degraded,
                Change::Recovered,
                Change::Down(failure(Reason::Lost)),
            ]
        );
        assert_eq!(link.tries(), 51);
        assert_eq!(link.since_ms(), 63_000);
        assert_eq!(link.last(), Some(&failure(Reason::Lost)));
    }
}
