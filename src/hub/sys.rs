//! `$SYS`: the state of the hub as topics, as operators of MQTT servers know them.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;

use super::retained::{One, own};
use super::{Hub, Now};
use crate::identity::Identity;
use crate::message::{Message, Origin, Plain};
use crate::topic;

/// Every so many seconds subscribers get all values.
pub(super) const EVERY_S: u64 = 10;
/// What its topics begin with.
pub(super) const PREFIX: &str = "$SYS/";

impl Hub {
    /// The topics and what they say now.
    fn sys_values(&self, now: Now) -> [(&'static str, String); 9] {
        let (retained, retained_bytes) = self.retained.size();
        let rows = self.store.status();
        let waiting: usize = rows.iter().map(|row| row.messages).sum();
        let version = concat!("edgehub ", env!("CARGO_PKG_VERSION")).to_owned();
        let since_ms = self.since_ms.load(Ordering::Relaxed);
        let uptime_s = now.ms.saturating_sub(since_ms) / 1000;
        let connected = self.connected().to_string();
        [
            ("$SYS/broker/version", version),
            ("$SYS/broker/uptime", format!("{uptime_s} seconds")),
            ("$SYS/broker/clients/connected", connected),
            ("$SYS/broker/clients/total", self.slots.len().to_string()),
            (
                "$SYS/broker/subscriptions/count",
                self.space.subscriptions().to_string(),
            ),
            ("$SYS/broker/retained messages/count", retained.to_string()),
            (
                "$SYS/broker/retained messages/bytes",
                retained_bytes.to_string(),
            ),
            ("$SYS/broker/store/messages/count", waiting.to_string()),
            (
                "$SYS/broker/store/messages/bytes",
                self.store.used_bytes().to_string(),
            ),
        ]
    }

    fn sys_origin() -> Arc<Origin> {
        Arc::new(Origin::new(Identity::plain("hub", ""), None))
    }

    /// What a new subscription gets at once.
    pub(super) fn sys_for(&self, filter: &str, now: Now) -> VecDeque<(Arc<str>, Arc<One>)> {
        if !filter.starts_with(PREFIX) {
            return VecDeque::new();
        }
        let origin = Self::sys_origin();
        let values = self.sys_values(now).into_iter();
        values
            .filter(|(topic, _)| topic::matches(filter, topic))
            .map(|(topic, value)| (topic.into(), own(value.into(), &origin)))
            .collect()
    }

    /// Sends all values to those who have subscribed.
    pub(super) fn publish_sys(&self, now: Now) {
        let origin = Self::sys_origin();
        let (mut idle, mut losses) = (Vec::new(), Vec::new());
        for (topic, value) in self.sys_values(now) {
            let copies = self.space.live_copies(topic);
            if copies.is_empty() {
                continue;
            }
            let plain = Plain {
                qos: 0,
                retain: true,
                is_retained: false,
                topic,
                filter: None,
                properties: &[],
            };
            let message = Arc::new(Message {
                origin: Arc::clone(&origin),
                bag: plain.encode(),
                payload: Bytes::from(value),
                received_ms: now.ms,
            });
            for copy in &copies {
                let into = (&mut idle, &mut losses);
                // Who has no room for it gets the next.
                let it = (&message, copy);
                self.space.add_live(it, &Arc::default(), now.ms, into);
            }
        }
        crate::store::wake(&mut idle);
    }
}
