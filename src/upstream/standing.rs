//! How a link stands, and who is told: the log once per change, metrics and `/status` always.

use std::sync::Arc;

use super::link::{Change, Failure, Link, Reason, State};
use crate::hub::{Hub, LinkStatus};
use crate::observe;
use crate::server::Clock;

/// One link to the cloud, and those who watch it.
#[derive(Debug)]
pub struct Standing {
    link: Link,
    hub: Arc<Hub>,
    clock: Clock,
    /// The identity that it is for, or `upstream` for all.
    id: String,
    server: String,
    random: fn() -> u64,
    /// When CONNECT was sent.
    asked_ms: u64,
    /// For how long the server keeps the session, as it said last.
    kept_seconds: u32,
}

impl Standing {
    /// A link that was not tried yet.
    #[must_use]
    pub fn new(hub: &Arc<Hub>, clock: Clock, id: &str, random: fn() -> u64) -> Self {
        let standing = Self {
            link: Link::new(clock.ms()),
            hub: Arc::clone(hub),
            clock,
            id: id.to_owned(),
            server: String::new(),
            random,
            asked_ms: 0,
            kept_seconds: u32::MAX,
        };
        standing.show();
        standing
    }

    /// The server's end of the connection, for people.
    #[must_use]
    pub fn server(&self) -> &str {
        &self.server
    }

    /// When the next try is due.
    #[must_use]
    pub fn due_ms(&self) -> u64 {
        self.link.due_ms()
    }

    /// A try begins.
    pub fn connecting(&mut self) {
        self.link.connecting(self.clock.ms());
        self.show();
    }

    /// CONNECT goes out on a connection that took `dial_ms` to make; returns how long to wait for
    /// its answer.
    pub fn asking(&mut self, server: String, dial_ms: u64) -> u64 {
        self.server = server;
        self.asked_ms = self.clock.ms();
        self.link.accept_ms(dial_ms, self.asked_ms)
    }

    /// The server let us in.
    pub fn accepted(&mut self, now_ms: u64) {
        let took_ms = now_ms.saturating_sub(self.asked_ms);
        let change = self.link.connected(took_ms, now_ms);
        self.count(observe::UPSTREAM_CONNECTS, None);
        self.tell(change);
    }

    /// The server has messages for us, and keeps them for so long without a connection;
    /// `u32::MAX`: for ever.
    pub fn kept(&mut self, seconds: u32) {
        let is_news = self.kept_seconds != seconds;
        self.kept_seconds = seconds;
        if is_news && seconds < u32::MAX {
            let (id, server) = (&*self.id, &*self.server);
            tracing::warn!(
                id,
                server,
                seconds,
                "the cloud keeps messages for us for so long only while there is no connection"
            );
        }
    }

    /// The server acknowledged a message.
    pub fn delivered(&mut self) {
        self.link.delivered();
    }

    /// Answers are late, or are not any more.
    pub fn late(&mut self, is_late: bool, now_ms: u64) {
        let change = self.link.degraded(is_late, now_ms);
        self.tell(change);
    }

    /// A try failed, or the connection was lost.
    pub fn failed(&mut self, failure: Failure) {
        self.count(observe::UPSTREAM_FAILURES, Some(failure.reason));
        let random = (self.random)();
        let change = self.link.failed(failure, self.clock.ms(), random);
        self.tell(change);
    }

    /// It was closed on purpose, and nothing is wrong.
    pub fn idle(&mut self) {
        self.link.idle(self.clock.ms());
        self.show();
    }

    /// What was in the way may be gone: the next try is due.
    pub fn hurry(&mut self) {
        self.link.network_changed(self.clock.ms());
    }

    fn tell(&self, change: Option<Change>) {
        self.show();
        let (id, server) = (&*self.id, &*self.server);
        match change {
            None => {}
            Some(Change::Up { down_ms }) => {
                tracing::info!(id, server, down_ms, "connected to the cloud");
            }
            Some(Change::Degraded) => {
                tracing::warn!(id, server, "answers of the cloud are late");
            }
            Some(Change::Recovered) => {
                tracing::info!(id, server, "the cloud answers in time again");
            }
            Some(Change::Down(failure)) => {
                let reason = failure.reason.label();
                tracing::warn!(
                    id,
                    reason,
                    "no connection to the cloud, messages wait: {failure}"
                );
            }
        }
    }

    fn count(&self, name: &'static str, reason: Option<Reason>) {
        let id = ("id", &*self.id);
        let metrics = self.hub.metrics();
        let counter = match reason {
            Some(reason) => metrics.counter(name, &[id, ("reason", reason.label())]),
            None => metrics.counter(name, &[id]),
        };
        counter.increment(1);
    }

    fn show(&self) {
        let state = self.link.state();
        let number = match state {
            State::Idle => 0.0,
            State::Connecting => 1.0,
            State::Connected => 2.0,
            State::Degraded => 3.0,
            State::BackingOff => 4.0,
        };
        let gauge = self
            .hub
            .metrics()
            .gauge(observe::UPSTREAM_STATE, &[("id", &self.id)]);
        gauge.set(number);
        let now = self.clock.now();
        let since_s = now.ms.saturating_sub(self.link.since_ms()) / 1000;
        self.hub.set_link(LinkStatus {
            id: self.id.clone(),
            state: state.name(),
            since: now.unix.saturating_sub(since_s),
            server: (!self.server.is_empty()).then(|| self.server.clone()),
            last_failure: self.link.last().map(ToString::to_string),
            tries: self.link.tries(),
        });
    }
}

impl Drop for Standing {
    fn drop(&mut self) {
        self.hub.forget_link(&self.id);
        let labels = [("id", &*self.id)];
        let gauge = self.hub.metrics().gauge(observe::UPSTREAM_STATE, &labels);
        gauge.set(0.0);
    }
}
