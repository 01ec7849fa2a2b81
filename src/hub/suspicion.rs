//! Which message the cloud closes the connection at: brokers do so where a message is over their
//! limit, or its topic not allowed. What follows it must not wait for ever.

use std::collections::VecDeque;

use super::client::{Place, Token};
use crate::session::InFlight;

/// Connections in a row, after which messages are sent one by one.
const CAREFUL_AFTER: u32 = 3;
/// How long the queue of such a message is left alone, at first and at most.
const HOLD_MS: (u64, u64) = (10_000, 600_000);

/// What is known of connections that the server closed.
#[derive(Debug, Default)]
pub(super) struct Suspicion {
    /// Those in a row that it closed with messages in flight, none of them acknowledged.
    closed: u32,
    /// It has acknowledged something on this connection.
    acknowledged: bool,
    /// The message that was alone in flight the last time.
    alone: Option<Place>,
}

impl Suspicion {
    /// A connection begins.
    pub fn begin(&mut self) {
        self.acknowledged = false;
    }

    /// The server acknowledged a message.
    pub fn acknowledge(&mut self) {
        *self = Self {
            acknowledged: true,
            ..Self::default()
        };
    }

    /// Whether one message at a time is sent, to see at which one the connection ends.
    pub fn is_careful(&self) -> bool {
        self.closed >= CAREFUL_AFTER
    }

    /// A connection ended, by the server or otherwise. Returns the message that it ended at, once
    /// that is sure.
    pub fn end(&mut self, in_flight: &VecDeque<InFlight<Token>>, by_server: bool) -> Option<Place> {
        if !by_server || self.acknowledged || in_flight.is_empty() {
            return None;
        }
        self.closed += 1;
        let mut all = in_flight.iter();
        let (Some(flight), None) = (all.next(), all.next()) else {
            return None;
        };
        let Token::Queued { place, .. } = &flight.token else {
            return None;
        };
        let before = self.alone.replace(place.clone());
        before.filter(|before| self.is_careful() && before.is_same(place))
    }
}

/// How long a queue is held for the so many-th time, in milliseconds.
pub(super) fn hold_ms(times: u32) -> u64 {
    let (first, most) = HOLD_MS;
    (first << times.saturating_sub(1).min(16)).min(most)
}
