//! The routes and what hangs on them, as one snapshot that is swapped whole.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Map, Value};

use super::ways::Forwarding;
use crate::diagnostic::Diagnostic;
use crate::manifest::{Manifest, Ttl};
use crate::message::Endpoint;
use crate::routes::{Route, RouteDiff, RouteTable};
use crate::store::{Queue, Store};
use crate::topic::template::Template;

/// Routes, their queues, and the modules' desired properties.
#[derive(Debug, Clone)]
pub struct Routing {
    /// Counts up with every change; a client that holds an older snapshot takes the new one.
    pub generation: u64,
    /// The compiled routes.
    pub table: RouteTable,
    /// Where each of the table's endpoints is.
    pub outlets: Vec<Outlet>,
    /// The queues of inputs that get messages from above.
    pub inbound: Vec<Arc<Queue>>,
    /// Time to live of messages whose route names none; `None`: for ever.
    pub ttl_ms: Option<u64>,
    /// Desired properties by module.
    pub desired: BTreeMap<String, Map<String, Value>>,
    /// What was wrong with the routes; those that were not are running.
    pub problems: Vec<String>,
    /// What leads to the cloud goes there like this; `None`: there is none.
    pub forwarding: Option<Arc<Forwarding>>,
}

/// Where an endpoint of the routes is.
#[derive(Debug, Clone)]
pub enum Outlet {
    /// An input.
    Queue(Arc<Queue>),
    /// The cloud, where each sender has a queue of its own.
    Cloud,
    /// A plain topic.
    Topic(Arc<Template>),
}

impl Routing {
    /// The queues of inputs that routes lead to.
    pub(super) fn queues(&self) -> impl Iterator<Item = &Arc<Queue>> {
        self.outlets.iter().filter_map(|outlet| match outlet {
            Outlet::Queue(queue) => Some(queue),
            Outlet::Cloud | Outlet::Topic(_) => None,
        })
    }

    /// Compiles the routes of a manifest. A bad route is reported with its place in the manifest
    /// and left out (`DESIGN` §4).
    #[must_use]
    pub fn compile(manifest: &Manifest, file: &std::path::Path) -> (RouteTable, Vec<Diagnostic>) {
        let mut routes = Vec::new();
        let mut diagnostics = Vec::new();
        for route in &manifest.routes {
            let compiled =
                Route::compile(&route.name, &route.text, route.priority, route.ttl_seconds);
            let (problems, is_error) = match compiled {
                Ok(compiled) => {
                    let warnings = compiled.warnings().to_vec();
                    routes.push(Arc::new(compiled));
                    (warnings, false)
                }
                Err(errors) => (errors, true),
            };
            for problem in problems {
                let message = format!("route '{}': {}", route.name, problem.message);
                let position = route.locate(problem.offset);
                let diagnostic = if is_error {
                    Diagnostic::error(file, position, message)
                } else {
                    Diagnostic::warning(file, position, message)
                };
                diagnostics.push(match problem.hint {
                    Some(hint) => diagnostic.with_hint(hint),
                    None => diagnostic,
                });
            }
        }
        (RouteTable::new(routes), diagnostics)
    }

    /// Puts a snapshot together; routes that `old` has too keep their counters.
    #[must_use]
    pub fn new(
        mut table: RouteTable,
        manifest: &Manifest,
        problems: Vec<String>,
        old: &Self,
        store: &Store,
    ) -> (Self, RouteDiff) {
        let diff = table.adopt(&old.table);
        let outlets = table
            .endpoints()
            .iter()
            .map(|endpoint| match endpoint {
                Endpoint::Upstream | Endpoint::Cloud { .. } | Endpoint::Session { .. } => {
                    Outlet::Cloud
                }
                Endpoint::Topic { template } => {
                    // It was read when the route was compiled.
                    Outlet::Topic(Arc::new(Template::parse(template).unwrap_or_default()))
                }
                Endpoint::Input { .. } => Outlet::Queue(store.queue(endpoint)),
            })
            .collect();
        let routing = Self {
            generation: old.generation + 1,
            table,
            outlets,
            inbound: old.inbound.clone(),
            ttl_ms: match manifest.ttl {
                Ttl::Forever => None,
                Ttl::Seconds(seconds) => Some(u64::from(seconds) * 1000),
            },
            desired: manifest.desired.clone(),
            problems,
            forwarding: old.forwarding.clone(),
        };
        (routing, diff)
    }

    /// No routes at all.
    #[must_use]
    pub fn empty() -> Self {
        Self {
            generation: 0,
            table: RouteTable::new(Vec::new()),
            outlets: Vec::new(),
            inbound: Vec::new(),
            ttl_ms: None,
            desired: BTreeMap::new(),
            problems: Vec::new(),
            forwarding: None,
        }
    }
}
