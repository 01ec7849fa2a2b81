//! Metrics and tracing. Every metric name stands in this file and nowhere else; counters are
//! handed to those who count, nothing is global.
//!
//! Names and labels are those of the system we replace (facts §9.1), so that its dashboards go on
//! working; what it never counted is added with the same prefix.

mod summary;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use metrics::{Counter, Gauge, Histogram, Key, Label, Level, Metadata, Recorder};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle, PrometheusRecorder};

use crate::message::{Endpoint, Priority};
use summary::Summaries;

const TARGET: &str = "edgehub";
/// Quantiles are those of the last one to two times this.
const WINDOW: Duration = Duration::from_secs(60);

/// Messages accepted from clients, by `id` and `route_output`.
pub const MESSAGES_RECEIVED: &str = "edgehub_messages_received_total";
/// Messages acknowledged by their receivers.
pub const MESSAGES_SENT: &str = "edgehub_messages_sent_total";
/// Messages that were not delivered, by `reason`.
pub const MESSAGES_DROPPED: &str = "edgehub_messages_dropped_total";
/// Publishes that were not acknowledged, by `reason`.
pub const MESSAGES_UNACK: &str = "edgehub_messages_unack_total";
/// Refused logins, by `id` and `reason`.
pub const CONNECT_FAILED: &str = "edgehub_client_connect_failed_total";
/// Logins.
pub const CONNECT_SUCCESS: &str = "edgehub_client_connect_success_total";
/// Ended connections of clients that were in.
pub const DISCONNECT: &str = "edgehub_client_disconnect_total";
/// Connections closed by the hub or lost, by `reason`; those that never logged in included.
pub const CONNECTIONS_CLOSED: &str = "edgehub_connections_closed_total";
/// Times that a client was read from more slowly because it published too much, by `id`.
pub const PUBLISH_SLOWED: &str = "edgehub_publishers_slowed_total";
/// Refused topic filters, by `id`.
pub const SUBSCRIBE_REFUSED: &str = "edgehub_subscriptions_refused_total";
/// Requests on `$iothub` topics that this version acknowledges and does not serve.
pub const NOT_SERVED: &str = "edgehub_requests_not_served_total";
/// Twin GET requests.
pub const GET_TWIN: &str = "edgehub_gettwin_total";
/// Messages waiting or in flight, by `endpoint` and `priority`.
pub const QUEUE_LENGTH: &str = "edgehub_queue_length";
/// Bytes of all queued messages.
pub const QUEUE_BYTES: &str = "edgehub_queue_bytes";
/// Subscriptions to plain topics.
pub const SUBSCRIPTIONS: &str = "edgehub_subscriptions";
/// Retained messages.
pub const RETAINED_MESSAGES: &str = "edgehub_retained_messages";
/// What they take.
pub const RETAINED_BYTES: &str = "edgehub_retained_bytes";
/// Bytes of the store's files.
pub const STORE_FILE_BYTES: &str = "edgehub_store_file_bytes";
/// Segments with messages.
pub const STORE_SEGMENTS: &str = "edgehub_store_segments";
/// About how long the oldest message waits.
pub const STORE_OLDEST: &str = "edgehub_store_oldest_message_seconds";
/// 0: well, 1: full, 2: the disk refuses.
pub const STORE_STATE: &str = "edgehub_store_state";
/// Bytes handed to the disk.
pub const STORE_WRITTEN: &str = "edgehub_store_written_bytes_total";
/// Bytes of the messages among them.
pub const STORE_MESSAGES: &str = "edgehub_store_message_bytes_total";
/// Syncs.
pub const STORE_SYNCS: &str = "edgehub_store_syncs_total";
/// Errors of the disk.
pub const STORE_ERRORS: &str = "edgehub_store_disk_errors_total";
/// How long a sync takes.
pub const STORE_SYNC_DURATION: &str = "edgehub_store_sync_duration_seconds";
/// Clients connected now.
pub const CONNECTED_CLIENTS: &str = "edgehub_connected_clients";
/// Size of accepted messages.
pub const MESSAGE_SIZE: &str = "edgehub_message_size_bytes";
/// From acceptance to the receiver's acknowledgement.
pub const SEND_DURATION: &str = "edgehub_message_send_duration_seconds";
/// From acceptance to the hand-over to the receiver's connection.
pub const PROCESS_DURATION: &str = "edgehub_message_process_duration_seconds";
/// Logins to the cloud, by `id`.
pub const UPSTREAM_CONNECTS: &str = "edgehub_upstream_connects_total";
/// Tries that failed and connections to the cloud that were lost, by `id` and `reason`.
pub const UPSTREAM_FAILURES: &str = "edgehub_upstream_failures_total";
/// 0: idle, 1: connecting, 2: connected, 3: degraded, 4: backing off; by `id`.
pub const UPSTREAM_STATE: &str = "edgehub_upstream_state";
/// Reloads, by `what` (config, manifest, identities, certificate) and `result` (ok, refused).
pub const RELOADS: &str = "edgehub_reloads_total";

const COUNTERS: &[(&str, &str)] = &[
    (MESSAGES_RECEIVED, "Messages accepted from clients"),
    (MESSAGES_SENT, "Messages acknowledged by their receivers"),
    (
        MESSAGES_DROPPED,
        "Messages that were not delivered, by reason",
    ),
    (
        MESSAGES_UNACK,
        "Publishes that were not acknowledged, by reason",
    ),
    (CONNECT_FAILED, "Refused logins, by reason"),
    (CONNECT_SUCCESS, "Logins"),
    (
        DISCONNECT,
        "Ended connections of clients that were logged in",
    ),
    (CONNECTIONS_CLOSED, "Ended connections, by reason"),
    (
        PUBLISH_SLOWED,
        "Times that a client was read from more slowly, by client",
    ),
    (SUBSCRIBE_REFUSED, "Refused topic filters"),
    (NOT_SERVED, "Requests on $iothub topics that are not served"),
    (GET_TWIN, "Twin GET requests"),
    (RELOADS, "Reloads of files while running"),
    (UPSTREAM_CONNECTS, "Logins to the cloud"),
    (
        UPSTREAM_FAILURES,
        "Failed tries and lost connections to the cloud",
    ),
    (STORE_WRITTEN, "Bytes handed to the disk"),
    (STORE_MESSAGES, "Bytes of messages handed to the disk"),
    (STORE_SYNCS, "Syncs of the store"),
    (STORE_ERRORS, "Errors of the disk"),
];

const GAUGES: &[(&str, &str)] = &[
    (QUEUE_LENGTH, "Messages waiting or in flight"),
    (QUEUE_BYTES, "Bytes of all queued messages"),
    (SUBSCRIPTIONS, "Subscriptions to plain topics"),
    (RETAINED_MESSAGES, "Retained messages"),
    (RETAINED_BYTES, "Bytes of all retained messages"),
    (CONNECTED_CLIENTS, "Clients connected now"),
    (STORE_FILE_BYTES, "Bytes of the store's files"),
    (STORE_SEGMENTS, "Segments with messages"),
    (STORE_OLDEST, "About how long the oldest message waits"),
    (
        UPSTREAM_STATE,
        "0 idle, 1 connecting, 2 connected, 3 degraded, 4 backing off",
    ),
    (STORE_STATE, "0 well, 1 full, 2 the disk refuses"),
];

const SUMMARIES: &[(&str, &str)] = &[
    (MESSAGE_SIZE, "Size of accepted messages"),
    (
        SEND_DURATION,
        "From acceptance to the receiver's acknowledgement",
    ),
    (
        PROCESS_DURATION,
        "From acceptance to the hand-over to the connection",
    ),
    (STORE_SYNC_DURATION, "How long a sync of the store takes"),
];

/// Every metric name, for the test that compares them with the README.
#[must_use]
pub fn names() -> Vec<&'static str> {
    let counters = COUNTERS.iter().map(|row| row.0);
    let gauges = GAUGES.iter().map(|row| row.0);
    let summaries = SUMMARIES.iter().map(|row| row.0);
    counters.chain(gauges).chain(summaries).collect()
}

/// Identifies a counter of delivered messages.
#[derive(Debug, Clone, Copy)]
pub struct Delivered<'a> {
    /// The sender, as a label.
    pub from: &'a str,
    /// Its output.
    pub output: &'a str,
    /// The receiver.
    pub to: &'a Endpoint,
    /// The receiving device, for the `to` label.
    pub device: &'a str,
    /// The lane.
    pub priority: Priority,
}

/// The hub's metrics.
pub struct Metrics {
    recorder: PrometheusRecorder,
    handle: PrometheusHandle,
    summaries: Summaries,
    turned: Mutex<Instant>,
    queues: Mutex<HashMap<(String, Priority), Gauge>>,
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Metrics")
    }
}

impl Metrics {
    /// Metrics with the labels that all series carry: `iothub`, `edge_device` and
    /// `instance_number`.
    #[must_use]
    pub fn new(iothub: &str, device: &str, instance: &str) -> Arc<Self> {
        let common = [
            ("iothub", iothub),
            ("edge_device", device),
            ("instance_number", instance),
        ];
        let label =
            |builder: PrometheusBuilder, (name, value)| builder.add_global_label(name, value);
        let recorder = common.into_iter().fold(PrometheusBuilder::new(), label);
        let recorder = recorder.build_recorder();
        for (name, text) in COUNTERS {
            recorder.describe_counter((*name).into(), None, (*text).into());
        }
        for (name, text) in GAUGES {
            recorder.describe_gauge((*name).into(), None, (*text).into());
        }
        let handle = recorder.handle();
        Arc::new(Self {
            recorder,
            handle,
            summaries: Summaries::new(SUMMARIES, &key("", &common)),
            turned: Mutex::new(Instant::now()),
            queues: Mutex::default(),
        })
    }

    /// The Prometheus text.
    #[must_use]
    pub fn render(&self) -> String {
        let mut text = self.handle.render();
        self.summaries.write(&mut text);
        text
    }

    /// Lets old values go out of the summaries' quantiles; called every second or so.
    pub fn upkeep(&self) {
        let mut turned = self.turned.lock().unwrap_or_else(PoisonError::into_inner);
        if turned.elapsed() >= WINDOW {
            *turned = Instant::now();
            self.summaries.turn();
        }
    }

    /// A counter; callers on the hot path keep it.
    pub fn counter(&self, name: &'static str, labels: &[(&'static str, &str)]) -> Counter {
        self.recorder
            .register_counter(&key(name, labels), &METADATA)
    }

    /// A gauge.
    pub fn gauge(&self, name: &'static str, labels: &[(&'static str, &str)]) -> Gauge {
        self.recorder.register_gauge(&key(name, labels), &METADATA)
    }

    /// A summary.
    pub fn summary(&self, name: &'static str, labels: &[(&'static str, &str)]) -> Histogram {
        Histogram::from_arc(self.summaries.series(name, &key(name, labels)))
    }

    /// The counter of messages that one sender's output got to one input.
    pub fn sent(&self, delivered: Delivered<'_>) -> (Counter, Histogram) {
        let Delivered {
            from,
            output,
            to,
            device,
            priority,
        } = delivered;
        let (to, input) = match to {
            Endpoint::Upstream | Endpoint::Cloud { .. } => ("upstream".to_owned(), ""),
            Endpoint::Session { .. } | Endpoint::Topic { .. } => ("session".to_owned(), ""),
            Endpoint::Input { module, input } => (format!("{device}/{module}"), &**input),
        };
        let priority = priority.to_string();
        let labels = [
            ("from", from),
            ("to", &to),
            ("from_route_output", output),
            ("to_route_input", input),
        ];
        let counted = [
            labels[0],
            labels[1],
            labels[2],
            labels[3],
            ("priority", &priority),
        ];
        (
            self.counter(MESSAGES_SENT, &counted),
            self.summary(SEND_DURATION, &labels),
        )
    }

    /// Sets the queue gauges; lanes that are gone go to 0.
    pub fn queues(&self, lengths: impl Iterator<Item = (Endpoint, Priority, usize)>, bytes: u64) {
        let mut gauges = self.queues.lock().unwrap_or_else(PoisonError::into_inner);
        for gauge in gauges.values() {
            gauge.set(0.0);
        }
        let mut by_label: BTreeMap<(String, Priority), usize> = BTreeMap::new();
        for (endpoint, priority, length) in lengths {
            // Clients choose the names of their sessions.
            let label = match endpoint {
                Endpoint::Session { .. } => "$session".to_owned(),
                known => known.to_string(),
            };
            *by_label.entry((label, priority)).or_default() += length;
        }
        for (key, length) in by_label {
            let gauge = gauges
                .entry(key)
                .or_insert_with_key(|(endpoint, priority)| {
                    let priority = priority.to_string();
                    let labels = [("endpoint", &**endpoint), ("priority", &*priority)];
                    self.gauge(QUEUE_LENGTH, &labels)
                });
            gauge.set(length as f64);
        }
        self.gauge(QUEUE_BYTES, &[]).set(bytes as f64);
    }
}

const METADATA: Metadata<'static> = Metadata::new(TARGET, Level::INFO, None);

fn key(name: &'static str, labels: &[(&'static str, &str)]) -> Key {
    let labels: Vec<_> = labels
        .iter()
        .map(|(name, value)| Label::new(*name, (*value).to_owned()))
        .collect();
    Key::from_parts(name, labels)
}

/// A summary on the hot path: equal values in a row are recorded together.
#[derive(Debug)]
pub struct Runs {
    summary: Histogram,
    value: f64,
    count: usize,
}

impl Runs {
    /// Records into `summary`.
    #[must_use]
    pub fn new(summary: Histogram) -> Self {
        Self {
            summary,
            value: 0.0,
            count: 0,
        }
    }

    /// Adds a value.
    pub fn add(&mut self, value: f64) {
        if value.to_bits() != self.value.to_bits() {
            self.flush();
            self.value = value;
        }
        self.count += 1;
    }

    /// Records what is still held; called at the end of a batch.
    pub fn flush(&mut self) {
        if self.count > 0 {
            self.summary.record_many(self.value, self.count);
            self.count = 0;
        }
    }
}

impl Drop for Runs {
    fn drop(&mut self) {
        self.flush();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_carry_the_common_labels_and_runs_lose_nothing() {
        let metrics = Metrics::new("hub.example", "edge-1", "1");
        metrics
            .counter(MESSAGES_DROPPED, &[("reason", "no_route")])
            .increment(2);
        let mut runs = Runs::new(metrics.summary(MESSAGE_SIZE, &[("id", "edge-1/a")]));
        for value in [256.0, 256.0, 17.0, 256.0] {
            runs.add(value);
        }
        runs.flush();
        let text = metrics.render();
        let dropped = text
            .lines()
            .find(|l| l.starts_with(MESSAGES_DROPPED))
            .unwrap();
        for part in [
            "iothub=\"hub.example\"",
            "edge_device=\"edge-1\"",
            "reason=\"no_route\"",
        ] {
            assert!(dropped.contains(part), "{dropped}");
        }
        assert!(dropped.ends_with(" 2"));
        assert!(text.contains("edgehub_message_size_bytes_count"), "{text}");
        let sum = text
            .lines()
            .find(|l| l.starts_with("edgehub_message_size_bytes_sum"));
        assert!(sum.unwrap().ends_with(" 785"), "{text}");
    }

    #[test]
    fn a_queue_that_is_gone_shows_zero() {
        let metrics = Metrics::new("h", "d", "1");
        metrics.queues([(Endpoint::Upstream, Priority::DEFAULT, 3)].into_iter(), 7);
        metrics.queues(std::iter::empty(), 0);
        let text = metrics.render();
        let line = text
            .lines()
            .find(|l| l.starts_with("edgehub_queue_length{"))
            .unwrap();
        assert!(line.ends_with(" 0"), "{line}");
    }
}
