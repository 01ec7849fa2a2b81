//! A hub in memory, for unit tests: of this room and of those that use it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use super::{Durable, Hub, LoginRefused, Now, Outcome, Peer, Settings, Token};
use crate::identity::Registry;
use crate::limits::Limits;
use crate::mqtt::Connect;
use crate::mqtt::v5::Properties;
use crate::observe::Metrics;
use crate::session::{Session, Timing};
use crate::store::journal::Journal;
use crate::store::{Bounds, Store};

/// When it starts.
pub(crate) const NOW: Now = Now {
    ms: 1000,
    unix: 1_700_000_000,
    wall_ms: 1_700_000_000_000,
};

/// Nothing is configured, and nothing was kept.
pub(crate) fn hub() -> Hub {
    let bounds = Bounds {
        max_bytes: 1 << 30,
        endpoint_max_bytes: 1 << 30,
        endpoint_max_messages: 1 << 20,
        drop_oldest: false,
    };
    let settings = Settings {
        device_id: "edge-1".to_owned(),
        iothub_hostname: "hub.example".to_owned(),
        gateway_hostname: "localhost".to_owned(),
        limits: Limits::default(),
        bounds,
        log: None,
    };
    let durable = Durable {
        store: Arc::new(Store::memory(bounds, (NOW.ms, NOW.wall_ms))),
        journal: Journal::memory(),
        sessions: BTreeMap::new(),
        lost_messages: 0,
        purged_messages: 0,
    };
    let metrics = Metrics::new("hub.example", "edge-1", "1");
    Hub::new(settings, Registry::default(), durable, metrics)
}

/// Somebody comes with a user name and a password.
pub(crate) fn login(
    hub: &Hub,
    address: impl Into<IpAddr>,
    (name, password): (&str, &str),
) -> Result<Outcome, LoginRefused> {
    let connect = Connect {
        clean_session: true,
        keep_alive_seconds: 0,
        client_id: "x",
        will: None,
        username: Some(name),
        password: Some(password.as_bytes()),
    };
    let timing = Timing {
        connect_ms: 1,
        publish_stall_ms: 1,
        ack_stall_ms: 1,
        window: 1,
    };
    let session: Session<Token> = Session::new(timing, 0);
    let peer = Peer {
        address: address.into(),
        certificate: None,
        anonymous: false,
    };
    hub.login((&connect, Properties::EMPTY), &session, &peer, NOW)
}
