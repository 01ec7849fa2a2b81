//! What is counted of messages that go nowhere, and under which labels.

use std::sync::PoisonError;

use metrics::Counter;

use super::Hub;
use super::client::Client;
use crate::observe;
use crate::store::Loss;

/// Output names that get metric labels of their own.
const OUTPUT_LABELS_MAX: usize = 1000;

impl Hub {
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
