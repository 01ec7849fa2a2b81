//! Every bound of the program, with its reason. Memory and disk use follow from this page.
//!
//! [`Limits`] holds what the `[limits]` section may set; the constants are fixed, by a protocol
//! or because no one needs another value.

pub mod pace;

use std::ops::RangeInclusive;

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;

/// Largest body of an MQTT packet: the protocol's length field has four bytes of seven bits.
pub const PACKET_BYTES_MAX: usize = 268_435_455;

/// Largest MQTT topic: the protocol's string length has two bytes.
pub const TOPIC_BYTES_MAX: usize = u16::MAX as usize;

/// Largest packet of a client that is not in yet: two ids, a token and a small will are far below
/// it, and `max_pending_connections` of them are what strangers can make the hub hold.
pub const CONNECT_BYTES_MAX: usize = 64 * 1024;

/// Longest PROXY header of version 2: addresses take at most 216 bytes, what proxies say of TLS
/// beside them a few hundred. Version 1 has a bound of its own.
pub const PROXY_HEADER_BYTES_MAX: usize = 4 * KIB;

/// One read buffer per thread, not per connection: enough for hundreds of small packets in one
/// read, small enough to stay in the core's cache.
pub const READ_BUFFER_BYTES: usize = 64 * 1024;

/// Largest configuration file that is read: far above any that a person writes, small enough
/// that a wrong path (a disk image, a log) does no harm.
pub const CONFIG_BYTES_MAX: usize = MIB;

/// Largest manifest that is read: the cloud's own bounds are 50 modules with 32 KiB each.
pub const MANIFEST_BYTES_MAX: usize = 2 * MIB;

/// Deepest nesting of a manifest's objects and arrays, which bounds recursion.
pub const MANIFEST_DEPTH_MAX: usize = 64;

/// Largest users file that is read: every user that there may be, with the longest name and hash.
pub const USERS_BYTES_MAX: usize = 4 * MIB;

/// Room in a segment of the store beside the largest message: header and footer (4 KiB each),
/// the frame's header with its list of receivers, and the topic.
pub const SEGMENT_OVERHEAD_BYTES: usize = 2 * 4 * KIB + 40 * KIB + TOPIC_BYTES_MAX + 1;

/// Unit in which flash cards allocate: segments that are not a multiple of it wear the card.
pub const SEGMENT_STEP_BYTES: u64 = 4 * MIB as u64;

/// Bytes of one segment: what was asked for, but a small store has at least eight of them, as far
/// as its largest message allows.
#[must_use]
pub fn segment_bytes(asked: u64, max_bytes: u64, message_bytes: u64) -> u64 {
    const PAGE: u64 = 4096;
    asked
        .min(max_bytes / 8)
        .max((message_bytes + 16 * PAGE).min(asked))
        .next_multiple_of(PAGE)
}

/// What `[limits]` may set. Every value has a default and a range ([`Ranges`]).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Largest message, in bytes: body and the names and values of its properties.
    /// Default 1 MiB: four times what the cloud takes.
    pub max_message_bytes: usize,
    /// Authenticated connections. Default 10,000.
    pub max_connections: usize,
    /// Connections with the same login: of one user name or certificate under different client ids,
    /// or without credentials. Default 10,000. Modules and devices have one each.
    pub max_connections_per_login: usize,
    /// Longest keep-alive, in seconds: clients of MQTT 5 that ask for more, or for none, are told
    /// this one (MQTT 5 §3.2.2.3.14). Default 0: no bound.
    pub max_keep_alive_seconds: u16,
    /// CONNECTs of all clients in a second; beyond it they are refused. Default 0: no bound.
    pub max_connects_per_second: u32,
    /// PUBLISHes of one client in a second; beyond it the client is not read from for a moment.
    /// Default 0: no bound.
    pub max_messages_per_second: u32,
    /// Connections that have not authenticated yet; the oldest is dropped for a new one, so that
    /// silent connections cannot keep others out. Default 1,024.
    pub max_pending_connections: usize,
    /// Deliveries to one client that it has not acknowledged yet; above 32,766 there are no packet
    /// ids for more. Default 100.
    pub max_inflight: u16,
    /// Subscriptions of one session. Default 100.
    pub max_subscriptions: usize,
    /// Longest topic with its property bag, in bytes. Default 8,192; at most 65,535 (MQTT).
    pub max_topic_bytes: usize,
    /// Seconds for the TLS handshake and the CONNECT packet together. Default 10.
    pub connect_timeout_seconds: u64,
    /// Seconds that a publisher may be held back by a full store before it is disconnected.
    /// Default 60; 0: at once.
    pub publish_stall_seconds: u64,
    /// Seconds without any acknowledgement from a client that has deliveries open, after which it
    /// is disconnected. Default 300; 0: never.
    pub ack_stall_seconds: u64,
    /// Seconds that connections get to finish after a stop was asked for. Default 10.
    pub drain_timeout_seconds: u64,
    /// Bytes that may wait for one endpoint. Default 64 MiB.
    pub endpoint_max_bytes: u64,
    /// Messages that may wait for one endpoint. Default 1,000,000.
    pub endpoint_max_messages: u64,
    /// Bytes that may wait to be written to one connection before deliveries to it pause.
    /// Default 256 KiB.
    pub max_output_bytes: usize,
    /// Routes of the manifest. Default 1,000.
    pub max_routes: usize,
    /// Sessions, of which those without credentials may be refused. Default 10,000.
    pub max_sessions: usize,
    /// Retained messages. Default 100,000.
    pub max_retained_messages: usize,
    /// Bytes of all retained messages, which are in memory too: topics, properties and payloads,
    /// and 256 for each. Default 64 MiB.
    pub max_retained_bytes: u64,
}

impl Limits {
    /// The values that hold where the configuration says nothing.
    pub const DEFAULT: Self = Self {
        max_message_bytes: MIB,
        max_connections: 10_000,
        max_connections_per_login: 10_000,
        max_keep_alive_seconds: 0,
        max_connects_per_second: 0,
        max_messages_per_second: 0,
        max_pending_connections: 1_024,
        max_inflight: 100,
        max_subscriptions: 100,
        max_topic_bytes: 8_192,
        connect_timeout_seconds: 10,
        publish_stall_seconds: 60,
        ack_stall_seconds: 300,
        drain_timeout_seconds: 10,
        endpoint_max_bytes: 64 * MIB as u64,
        endpoint_max_messages: 1_000_000,
        max_output_bytes: 256 * KIB,
        max_routes: 1_000,
        max_sessions: 10_000,
        max_retained_messages: 100_000,
        max_retained_bytes: 64 * MIB as u64,
    };
}

impl Default for Limits {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// What each field of [`Limits`] may be set to.
#[derive(Debug)]
pub struct Ranges;

impl Ranges {
    /// A packet holds the topic and some headers beside the message.
    pub const MAX_MESSAGE_BYTES: RangeInclusive<usize> = KIB..=(255 * MIB);
    /// A million connections need more memory than the devices this runs on have.
    pub const CONNECTIONS: RangeInclusive<usize> = 1..=1_000_000;
    /// Of `max_keep_alive_seconds`.
    pub const KEEP_ALIVE: RangeInclusive<u16> = 0..=u16::MAX;
    /// 0: no bound.
    pub const PER_SECOND: RangeInclusive<u32> = 0..=10_000_000;
    /// Packet ids are 1 to 65,535.
    pub const MAX_INFLIGHT: RangeInclusive<u16> = 1..=u16::MAX;
    /// Filters of one session are searched on each of its reconnections.
    pub const MAX_SUBSCRIPTIONS: RangeInclusive<usize> = 1..=100_000;
    /// Below 256 bytes the hub's own topics with a module id do not fit.
    pub const MAX_TOPIC_BYTES: RangeInclusive<usize> = 256..=TOPIC_BYTES_MAX;
    /// A handshake that needs an hour is not one.
    pub const CONNECT_TIMEOUT_SECONDS: RangeInclusive<u64> = 1..=3_600;
    /// Up to a day; 0 only where the field says what it means.
    pub const STALL_SECONDS: RangeInclusive<u64> = 0..=86_400;
    /// 0 closes connections at once.
    pub const DRAIN_TIMEOUT_SECONDS: RangeInclusive<u64> = 0..=3_600;
    /// Any queue has to take at least one message.
    pub const ENDPOINT_MAX_BYTES: RangeInclusive<u64> = KIB as u64..=(1 << 50);
    /// Any queue has to take at least one message.
    pub const ENDPOINT_MAX_MESSAGES: RangeInclusive<u64> = 1..=(1 << 40);
    /// At least a packet's worth, at most what a connection may cost.
    pub const MAX_OUTPUT_BYTES: RangeInclusive<usize> = 4 * KIB..=(64 * MIB);
    /// Every message is compared with every route of its source.
    pub const MAX_ROUTES: RangeInclusive<usize> = 1..=100_000;
    /// As connections.
    pub const MAX_SESSIONS: RangeInclusive<usize> = 1..=1_000_000;
    /// 0: none are kept.
    pub const MAX_RETAINED_MESSAGES: RangeInclusive<usize> = 0..=10_000_000;
    /// 0: none are kept.
    pub const MAX_RETAINED_BYTES: RangeInclusive<u64> = 0..=(1 << 40);
}

const _: () = {
    let limits = Limits::DEFAULT;
    // The largest message with the longest topic fits a packet, with room for its headers.
    assert!(*Ranges::MAX_MESSAGE_BYTES.end() + 2 * TOPIC_BYTES_MAX < PACKET_BYTES_MAX);
    assert!(limits.max_topic_bytes <= TOPIC_BYTES_MAX);
    // A queue takes the largest message.
    assert!(limits.max_message_bytes as u64 <= limits.endpoint_max_bytes);
    // A full manifest fits below the bound: 50 modules with 32 KiB each.
    assert!(50 * 32 * KIB <= MANIFEST_BYTES_MAX);
    // A client gets more time than a stranger, a slow handler more than a full store.
    assert!(limits.connect_timeout_seconds <= limits.publish_stall_seconds);
    assert!(limits.ack_stall_seconds >= limits.publish_stall_seconds);
    // Strangers never outnumber clients.
    assert!(limits.max_pending_connections <= limits.max_connections);
    // Every route may have an endpoint of its own.
    // A default segment takes the largest default message.
    assert!(limits.max_message_bytes + SEGMENT_OVERHEAD_BYTES <= 2 * SEGMENT_STEP_BYTES as usize);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_lie_in_their_ranges() {
        let limits = Limits::default();
        assert!(Ranges::MAX_MESSAGE_BYTES.contains(&limits.max_message_bytes));
        assert!(Ranges::CONNECTIONS.contains(&limits.max_connections));
        assert!(Ranges::CONNECTIONS.contains(&limits.max_pending_connections));
        assert!(Ranges::CONNECTIONS.contains(&limits.max_connections_per_login));
        assert!(Ranges::PER_SECOND.contains(&limits.max_connects_per_second));
        assert!(Ranges::PER_SECOND.contains(&limits.max_messages_per_second));
        assert!(Ranges::MAX_INFLIGHT.contains(&limits.max_inflight));
        assert!(Ranges::MAX_SUBSCRIPTIONS.contains(&limits.max_subscriptions));
        assert!(Ranges::MAX_TOPIC_BYTES.contains(&limits.max_topic_bytes));
        assert!(Ranges::CONNECT_TIMEOUT_SECONDS.contains(&limits.connect_timeout_seconds));
        assert!(Ranges::STALL_SECONDS.contains(&limits.publish_stall_seconds));
        assert!(Ranges::STALL_SECONDS.contains(&limits.ack_stall_seconds));
        assert!(Ranges::DRAIN_TIMEOUT_SECONDS.contains(&limits.drain_timeout_seconds));
        assert!(Ranges::ENDPOINT_MAX_BYTES.contains(&limits.endpoint_max_bytes));
        assert!(Ranges::ENDPOINT_MAX_MESSAGES.contains(&limits.endpoint_max_messages));
        assert!(Ranges::MAX_OUTPUT_BYTES.contains(&limits.max_output_bytes));
        assert!(Ranges::MAX_ROUTES.contains(&limits.max_routes));
        assert!(Ranges::MAX_SESSIONS.contains(&limits.max_sessions));
        assert!(Ranges::MAX_RETAINED_MESSAGES.contains(&limits.max_retained_messages));
        assert!(Ranges::MAX_RETAINED_BYTES.contains(&limits.max_retained_bytes));
    }
}
