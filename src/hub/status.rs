//! What `/status` shows.

use std::collections::BTreeMap;
use std::sync::{MutexGuard, PoisonError};

use serde::Serialize;

use super::Hub;

/// The hub at a glance.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    device_id: String,
    configuration: Configuration,
    clients: Vec<ClientStatus>,
    routes: Vec<RouteStatus>,
    queues: Vec<QueueRow>,
    queued_bytes: u64,
    retained_messages: usize,
    retained_bytes: u64,
    upstream: Vec<LinkStatus>,
    /// Senders at whose messages the cloud closes the connection.
    upstream_held: Vec<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Configuration {
    generation: u64,
    /// 200, or 400 where a route is bad (facts §5.2).
    code: u16,
    problems: Vec<String>,
    /// Changed files that were refused while running; their old versions are in force.
    refused: BTreeMap<&'static str, Vec<String>>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct ClientStatus {
    id: String,
    connected: bool,
    /// Seconds since 1970.
    connected_since: Option<u64>,
    persistent: bool,
    subscriptions: Vec<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct RouteStatus {
    name: String,
    route: String,
    endpoint: String,
    priority: String,
    hits: u64,
    misses: u64,
    undefined: u64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct QueueRow {
    endpoint: String,
    priority: String,
    messages: usize,
    in_flight: usize,
    bytes: u64,
}

/// How a link to the cloud stands.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LinkStatus {
    /// The identity that it is for, or `upstream` for all.
    pub id: String,
    /// `idle`, `connecting`, `connected`, `degraded` or `backing_off`.
    pub state: &'static str,
    /// Seconds since 1970.
    pub since: u64,
    /// Where it leads, or led last.
    pub server: Option<String>,
    /// Why it was lost, or could not be made, last.
    pub last_failure: Option<String>,
    /// Tries so far.
    pub tries: u64,
}

impl Hub {
    /// Shows how a link stands.
    pub fn set_link(&self, link: LinkStatus) {
        self.links().insert(link.id.clone(), link);
    }

    /// A link is not there any more.
    pub fn forget_link(&self, id: &str) {
        self.links().remove(id);
    }

    fn links(&self) -> MutexGuard<'_, BTreeMap<String, LinkStatus>> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Identities connected, routes with hits, queues.
    #[must_use]
    pub fn status(&self) -> Status {
        let routing = self.routing();
        let (retained_messages, retained_bytes) = self.retained.size();
        let refused = self
            .refused_files
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        Status {
            device_id: self.device_id().to_owned(),
            configuration: Configuration {
                generation: routing.generation,
                code: if routing.problems.is_empty() && refused.is_empty() {
                    200
                } else {
                    400
                },
                problems: routing.problems.clone(),
                refused,
            },
            clients: self.client_rows(),
            routes: routing
                .table
                .routes()
                .iter()
                .map(|route| route_row(route))
                .collect(),
            queues: self.queue_rows(),
            queued_bytes: self.store.used_bytes(),
            retained_messages,
            retained_bytes,
            upstream: self.links().values().cloned().collect(),
            upstream_held: self.held_senders(),
        }
    }

    /// Messages that wait for the cloud, those in flight among them.
    #[must_use]
    pub fn waiting_upward(&self) -> usize {
        let rows = self.store.status().into_iter();
        let upward = rows.filter(|row| row.endpoint.is_upward());
        upward.map(|row| row.messages).sum()
    }

    fn client_rows(&self) -> Vec<ClientStatus> {
        let mut rows: Vec<_> = self
            .slots
            .iter()
            .map(|slot| ClientStatus {
                id: slot.key().to_string(),
                connected: slot.current.is_some(),
                connected_since: slot.current.as_ref().map(|_| slot.since_unix),
                persistent: slot.subscriptions.is_some(),
                subscriptions: slot
                    .subscriptions
                    .iter()
                    .flatten()
                    .map(|subscription| subscription.filter.clone())
                    .collect(),
            })
            .collect();
        rows.sort_by(|a, b| a.id.cmp(&b.id));
        rows
    }

    fn queue_rows(&self) -> Vec<QueueRow> {
        let row = |row: crate::store::QueueStatus| QueueRow {
            endpoint: row.endpoint.to_string(),
            priority: row.priority.to_string(),
            messages: row.messages,
            in_flight: row.in_flight,
            bytes: row.bytes,
        };
        self.store.status().into_iter().map(row).collect()
    }
}

fn route_row(route: &crate::routes::Route) -> RouteStatus {
    let counters = route.counters();
    RouteStatus {
        name: route.name().to_owned(),
        route: route.text().to_owned(),
        endpoint: route.endpoint().to_string(),
        priority: route.priority().to_string(),
        hits: counters.hits(),
        misses: counters.misses(),
        undefined: counters.undefined(),
    }
}
