//! What is counted, and under which labels.

use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering};

use metrics::Counter;

use super::client::Client;
use super::{Hub, Now};
use crate::observe;
use crate::store::Loss;

/// Output names that get metric labels of their own.
const OUTPUT_LABELS_MAX: usize = 1000;

impl Hub {
    /// Brings the gauges up to date and renders all metrics as Prometheus text.
    #[must_use]
    pub fn render_metrics(&self, now: Now) -> String {
        self.store_metrics(now);
        let lengths = self
            .store
            .status()
            .into_iter()
            .map(|row| (row.endpoint, row.priority, row.messages));
        self.metrics.queues(lengths, self.store.used_bytes());
        let (messages, bytes) = self.retained.size();
        let gauges = [
            (observe::SUBSCRIPTIONS, self.space.subscriptions() as f64),
            (observe::RETAINED_MESSAGES, messages as f64),
            (observe::RETAINED_BYTES, bytes as f64),
        ];
        for (name, value) in gauges {
            self.metrics.gauge(name, &[]).set(value);
        }
        self.metrics.render()
    }

    fn store_metrics(&self, now: Now) {
        let Some(counters) = self.store.counters() else {
            return;
        };
        let count = |name, value: &AtomicU64| {
            let value = value.load(Ordering::Relaxed);
            self.metrics.counter(name, &[]).absolute(value);
        };
        count(observe::STORE_WRITTEN, &counters.written_bytes);
        count(observe::STORE_MESSAGES, &counters.message_bytes);
        count(observe::STORE_SYNCS, &counters.syncs);
        count(observe::STORE_ERRORS, &counters.errors);
        let (bytes, segments) = self.store.disk_usage();
        let state = match self.store.troubles() {
            (true, _) => 2.0,
            (false, true) => 1.0,
            (false, false) => 0.0,
        };
        let oldest = self.store.oldest_ms(now.ms) as f64 / 1000.0;
        for (name, value) in [
            (observe::STORE_FILE_BYTES, bytes as f64),
            (observe::STORE_SEGMENTS, segments as f64),
            (observe::STORE_OLDEST, oldest),
            (observe::STORE_STATE, state),
        ] {
            self.metrics.gauge(name, &[]).set(value);
        }
    }

    /// Counts messages that the store gave up; who sent them is not always known.
    pub(super) fn count_loss(&self, reason: &'static str, loss: &Loss) {
        let origin = loss.origin.as_deref();
        let output = origin.and_then(|origin| origin.output.as_deref());
        let output = self.output_label(output, true);
        let from = origin.map_or("unknown", |origin| self.id_label(&origin.sender));
        self.dropped(reason, from, output)
            .increment(loss.messages as u64);
    }

    pub(super) fn count_dropped(&self, reason: &str, from: &str, output: &str) {
        self.dropped(reason, from, output).increment(1);
    }

    pub(super) fn dropped(&self, reason: &str, from: &str, output: &str) -> Counter {
        let labels = [
            ("reason", reason),
            ("from", from),
            ("from_route_output", output),
        ];
        self.metrics.counter(observe::MESSAGES_DROPPED, &labels)
    }

    /// Counts a publish that was refused before, and is acknowledged now.
    pub fn count_refused_again(&self, client: &Client) {
        self.count_dropped("refused_again", &client.label, "");
    }

    /// A client publishes more than `max_messages_per_second`.
    pub fn count_slowed(&self, client: &Client) {
        let labels = [("id", &*client.label)];
        let counter = self.metrics.counter(observe::PUBLISH_SLOWED, &labels);
        counter.increment(1);
        if self.may_log() {
            let id = client.identity.as_str();
            tracing::info!(id, "over max_messages_per_second: read more slowly");
        }
    }

    /// Counts a message that found no room within `publish_stall_seconds`.
    pub fn count_unacknowledged(&self, client: &Client) {
        let labels = [
            ("reason", "storage_full"),
            ("from", &*client.label),
            ("from_route_output", ""),
        ];
        let counter = self.metrics.counter(observe::MESSAGES_UNACK, &labels);
        counter.increment(1);
    }

    /// Counts a packet over the limit, which was never read whole.
    pub fn count_too_large(&self, client: &Client) {
        self.count_dropped("too_large", &client.label, "");
    }

    /// The output as a label. Clients choose these names, so only those that a route takes get a
    /// label of their own, and of these only so many; the rest is `other`.
    pub(super) fn output_label<'a>(&self, name: Option<&'a str>, routed: bool) -> &'a str {
        let Some(name) = name else {
            return "";
        };
        if !routed {
            return "other";
        }
        let mut known = self
            .output_labels
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if known.contains(name) {
            return name;
        }
        if known.len() >= OUTPUT_LABELS_MAX {
            return "other";
        }
        known.insert(name.to_owned());
        name
    }
}
