//! Checks across keys: the second stage.

use std::net::{Ipv4Addr, SocketAddr};

use super::read::Unchecked;
use super::reader::{Origin, Reader};
use super::upstream;
use super::{Config, Listener, StoreConfig, Sync, Transport};
use crate::limits::{self, SEGMENT_OVERHEAD_BYTES, SEGMENT_STEP_BYTES};

/// Fewer segments than this keep no messages.
const SEGMENTS_MIN: u64 = 3;

/// Adds what follows from other keys, and complains about those that contradict each other.
pub(super) fn config(reader: &mut Reader<'_>, unchecked: &mut Unchecked) {
    default_listener(reader, unchecked);
    for (listener, path) in unchecked
        .config
        .listeners
        .iter()
        .zip(&unchecked.listener_paths)
    {
        exposed(reader, listener, path);
        trusts_everybody(reader, listener, path);
    }
    encrypted_without_tls(reader, unchecked);
    taken_twice(reader, unchecked);
    store(reader, &unchecked.config);
    let hostname = unchecked.config.iothub_hostname.clone();
    upstream::check(reader, &mut unchecked.config.upstream, &hostname);
}

/// Anybody could claim to be anybody.
fn trusts_everybody(reader: &mut Reader<'_>, listener: &Listener, path: &str) {
    if listener.trusted_proxies.iter().any(|range| range.is_all()) {
        let origin = reader.origin(&[&format!("{path}.trusted_proxies")]);
        let message = "every address is a trusted proxy, so clients can claim any address";
        let hint = "name the proxies' own addresses".to_owned();
        reader.warning(&origin, message.to_owned(), Some(hint));
    }
}

fn default_listener(reader: &mut Reader<'_>, unchecked: &mut Unchecked) {
    if reader.is_written("listener") {
        if !reader.is_written("listener[0]") {
            let origin = reader.origin(&["listener"]);
            let hint = "leave `listener` out for TLS on 0.0.0.0:8883".to_owned();
            reader.error(&origin, "there is no listener".to_owned(), Some(hint));
        }
        return;
    }
    unchecked.listener_paths.push("listener".to_owned());
    unchecked.config.listeners.push(Listener {
        bind: SocketAddr::from((Ipv4Addr::UNSPECIFIED, 8883)),
        transport: Transport::Tls,
        anonymous: false,
        allow_remote_anonymous: false,
        allow_cleartext: false,
        trusted_proxies: Vec::new(),
    });
    if !reader.is_written("tls") {
        let message = "`[tls]` is missing, which the default listener needs".to_owned();
        let hint = "without `[[listener]]` the hub listens with TLS on 0.0.0.0:8883".to_owned();
        reader.error(&Origin::Absent, message, Some(hint));
    }
}

/// Listeners that anyone on the network can reach.
fn exposed(reader: &mut Reader<'_>, listener: &Listener, path: &str) {
    let address = listener.bind.ip();
    if address.to_canonical().is_loopback() {
        return;
    }
    if listener.anonymous && !listener.allow_remote_anonymous {
        let origin = reader.origin(&[&format!("{path}.anonymous")]);
        let message = format!("anonymous clients are let in from the network, on {address}");
        let hint = "bind to 127.0.0.1, or set `allow_remote_anonymous = true`".to_owned();
        reader.error(&origin, message, Some(hint));
    }
    if !listener.transport.is_encrypted() && !listener.allow_cleartext {
        let transport = format!("{path}.transport");
        let origin = reader.origin(&[&transport]);
        let name = listener.transport.name();
        let message = format!("transport {name:?} sends keys in clear text, on {address}");
        let hint = "use \"tls\", bind to 127.0.0.1, or set `allow_cleartext = true`".to_owned();
        reader.error(&origin, message, Some(hint));
    }
}

fn encrypted_without_tls(reader: &mut Reader<'_>, unchecked: &Unchecked) {
    if reader.is_written("tls") || !reader.is_written("listener") {
        return;
    }
    let listeners = unchecked.config.listeners.iter();
    for (listener, path) in listeners.zip(&unchecked.listener_paths) {
        if listener.transport.is_encrypted() {
            let origin = reader.origin(&[&format!("{path}.transport"), path]);
            let name = listener.transport.name();
            let message = format!("transport {name:?} needs a `[tls]` section");
            let hint = "it names `certificate` and `key`".to_owned();
            reader.error(&origin, message, Some(hint));
        }
    }
}

/// Two sockets on one port: the second would not open.
fn taken_twice(reader: &mut Reader<'_>, unchecked: &Unchecked) {
    let config = &unchecked.config;
    let paths = unchecked.listener_paths.iter();
    let mut sockets: Vec<(SocketAddr, String)> = config
        .listeners
        .iter()
        .zip(paths)
        .map(|(listener, path)| (listener.bind, format!("{path}.bind")))
        .collect();
    if let Some(http) = &config.http {
        sockets.push((http.bind, "http.bind".to_owned()));
    }
    for (index, (bind, path)) in sockets.iter().enumerate() {
        let earlier = sockets.iter().take(index);
        if let Some((other, _)) = earlier
            .into_iter()
            .find(|(other, _)| collide(*other, *bind))
        {
            let origin = reader.origin(&[path, "http"]);
            let message = format!("{bind} is taken: the file binds {other} already");
            reader.error(&origin, message, None);
        }
    }
}

fn collide(one: SocketAddr, other: SocketAddr) -> bool {
    one.port() != 0
        && one.port() == other.port()
        && one.is_ipv4() == other.is_ipv4()
        && (one.ip() == other.ip() || one.ip().is_unspecified() || other.ip().is_unspecified())
}

fn store(reader: &mut Reader<'_>, config: &Config) {
    let StoreConfig {
        sync,
        segment_bytes,
        ..
    } = config.store;
    if !segment_bytes.is_multiple_of(SEGMENT_STEP_BYTES) {
        let origin = reader.origin(&["store.segment_bytes"]);
        let message = "`segment_bytes` is not a multiple of 4MiB".to_owned();
        let hint = "flash cards allocate in such steps, and wear faster otherwise".to_owned();
        reader.warning(&origin, message, Some(hint));
    }
    if reader.is_written("store.interval_ms") && !matches!(sync, Sync::Interval { .. }) {
        let origin = reader.origin(&["store.interval_ms"]);
        let message = "`interval_ms` has no effect".to_owned();
        let hint = "it belongs to `sync = \"interval\"`".to_owned();
        reader.warning(&origin, message, Some(hint));
    }
    sizes(reader, config);
}

/// Sizes of which one has to hold another.
fn sizes(reader: &mut Reader<'_>, config: &Config) {
    let (max_bytes, segment_bytes) = (config.store.max_bytes, config.store.segment_bytes);
    let sync = config.store.sync;
    let message_bytes = config.limits.max_message_bytes as u64;
    let paths = ["store.max_bytes", "store.segment_bytes"];
    let needed = SEGMENTS_MIN
        * limits::segment_bytes(
            segment_bytes,
            max_bytes,
            message_bytes + SEGMENT_OVERHEAD_BYTES as u64,
        );
    if sync != Sync::Memory && max_bytes < needed && reader.is_sound(&paths) {
        let origin = reader.origin(&paths);
        let message = format!("`max_bytes` ({max_bytes}) is less than the store needs: {needed}");
        let hint = "one segment to write, one in reserve for acknowledgements, one to turn over; \
                    lower `max_message_bytes` makes segments smaller";
        reader.error(&origin, message, Some(hint.to_owned()));
    }
    let room = segment_bytes.saturating_sub(SEGMENT_OVERHEAD_BYTES as u64);
    let paths = ["limits.max_message_bytes", "store.segment_bytes"];
    if message_bytes > room && reader.is_sound(&paths) {
        let origin = reader.origin(&paths);
        let message = format!(
            "`max_message_bytes` ({message_bytes}) does not fit a segment, \
             which has room for {room}"
        );
        let hint = "raise `segment_bytes` in `[store]`".to_owned();
        reader.error(&origin, message, Some(hint));
    }
    let paths = ["limits.endpoint_max_bytes", "limits.max_message_bytes"];
    if message_bytes > config.limits.endpoint_max_bytes && reader.is_sound(&paths) {
        let origin = reader.origin(&paths);
        let message = "`endpoint_max_bytes` is less than `max_message_bytes`".to_owned();
        let hint = "the largest message would never be queued".to_owned();
        reader.error(&origin, message, Some(hint));
    }
}
