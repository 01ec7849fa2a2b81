//! All routes of a manifest, by source: message to endpoints (facts §4.3, §4.7).

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::route::Route;
use super::source::{folded, topic_of};
use super::values::Outcome;
use super::{ROUTES_MAX, View};
use crate::message::{Endpoint, Target};

/// How often a route was asked about a message from one of its sources, and what it said.
#[derive(Debug, Default)]
pub struct RouteCounters {
    hits: AtomicU64,
    misses: AtomicU64,
    undefined: AtomicU64,
}

impl RouteCounters {
    /// Messages that the route took.
    #[must_use]
    pub fn hits(&self) -> u64 {
        self.hits.load(Ordering::Relaxed)
    }

    /// Messages whose condition was false.
    #[must_use]
    pub fn misses(&self) -> u64 {
        self.misses.load(Ordering::Relaxed)
    }

    /// Messages whose condition was undefined: something it asks for was not there.
    #[must_use]
    pub fn undefined(&self) -> u64 {
        self.undefined.load(Ordering::Relaxed)
    }

    fn count(&self, outcome: Outcome) {
        let counter = match outcome {
            Outcome::True => &self.hits,
            Outcome::False => &self.misses,
            Outcome::Undefined => &self.undefined,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// What a reload changed, by route name, each list sorted.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct RouteDiff {
    /// Only in the new table.
    pub added: Vec<String>,
    /// Only in the old table.
    pub removed: Vec<String>,
    /// In both, with another text, priority or time to live.
    pub changed: Vec<String>,
    /// The same in both.
    pub unchanged: Vec<String>,
}

/// The routes that run, indexed by source. Immutable: a reload swaps the whole table.
#[derive(Debug, Default, Clone)]
pub struct RouteTable {
    routes: Vec<Arc<Route>>,
    endpoints: Vec<Endpoint>,
    /// For each route, the index of its endpoint.
    endpoint_of: Vec<usize>,
    /// Routes by the folded prefix of their source.
    by_prefix: HashMap<Box<str>, Vec<u16>>,
    /// Longest prefix in `by_prefix`, so that long sources cost no more.
    prefix_max: usize,
    /// Routes from plain topics.
    from_topics: Vec<u16>,
}

impl RouteTable {
    /// Indexes routes. More than [`ROUTES_MAX`] of them do not fit: the rest is left out.
    #[must_use]
    pub fn new(mut routes: Vec<Arc<Route>>) -> Self {
        routes.truncate(ROUTES_MAX);
        let mut table = Self::default();
        let mut known: HashMap<Endpoint, usize> = HashMap::new();
        for (route, index) in routes.iter().zip(0_u16..) {
            let endpoint = *known.entry(route.endpoint().clone()).or_insert_with(|| {
                table.endpoints.push(route.endpoint().clone());
                table.endpoints.len() - 1
            });
            table.endpoint_of.push(endpoint);
            if route.source.filter.is_some() {
                table.from_topics.push(index);
                continue;
            }
            let prefix = &route.source.prefix;
            table.prefix_max = table.prefix_max.max(prefix.len());
            table
                .by_prefix
                .entry(prefix.clone())
                .or_default()
                .push(index);
        }
        table.routes = routes;
        table
    }

    /// The routes, in the order in which they were given.
    #[must_use]
    pub fn routes(&self) -> &[Arc<Route>] {
        &self.routes
    }

    /// Every endpoint once; [`Target::endpoint`] is an index into this.
    #[must_use]
    pub fn endpoints(&self) -> &[Endpoint] {
        &self.endpoints
    }

    /// The routes that take messages from this source, by index, in order. The answer is the
    /// same for every message of that source, so a session keeps it.
    #[must_use]
    pub fn candidates(&self, source: &str) -> Box<[u16]> {
        if topic_of(source).is_some() {
            let is_from = |index: &u16| {
                let route = self.routes.get(usize::from(*index));
                route.is_some_and(|route| route.source.matches(source))
            };
            return self.from_topics.iter().copied().filter(is_from).collect();
        }
        let folded = folded(source);
        let mut candidates: Vec<u16> = folded
            .match_indices('/')
            .map(|(at, _)| at + 1)
            .take_while(|end| *end <= self.prefix_max)
            .filter_map(|end| self.by_prefix.get(folded.get(..end)?))
            .flatten()
            .copied()
            .collect();
        candidates.sort_unstable();
        candidates.into()
    }

    /// Whether a route takes messages of plain topics.
    #[must_use]
    pub fn takes_topics(&self) -> bool {
        !self.from_topics.is_empty()
    }

    /// Where a message goes: each endpoint once, with the smallest priority number among the
    /// routes that match and that route's time to live; of equal ones the first (facts §4.7).
    pub fn evaluate(&self, candidates: &[u16], view: &View<'_>, targets: &mut Vec<Target>) {
        targets.clear();
        for index in candidates {
            let index = usize::from(*index);
            let (Some(route), Some(endpoint)) =
                (self.routes.get(index), self.endpoint_of.get(index))
            else {
                continue;
            };
            let outcome = route.condition_outcome(view);
            route.counters().count(outcome);
            if outcome != Outcome::True {
                continue;
            }
            let target = Target {
                endpoint: *endpoint,
                priority: route.priority(),
                ttl_seconds: route.ttl_seconds(),
            };
            let known = targets
                .iter_mut()
                .find(|known| known.endpoint == target.endpoint);
            match known {
                Some(known) if target.priority < known.priority => *known = target,
                Some(_) => {}
                None => targets.push(target),
            }
        }
    }

    /// What differs from the table that ran before.
    #[must_use]
    pub fn diff(&self, old: &Self) -> RouteDiff {
        let old_routes = old.by_name();
        let new_routes = self.by_name();
        let mut diff = RouteDiff::default();
        for (name, route) in &new_routes {
            let list = match old_routes.get(name) {
                None => &mut diff.added,
                Some(old) if route.is_same(old) => &mut diff.unchanged,
                Some(_) => &mut diff.changed,
            };
            list.push((*name).to_owned());
        }
        for name in old_routes.keys() {
            if !new_routes.contains_key(name) {
                diff.removed.push((*name).to_owned());
            }
        }
        diff
    }

    /// Takes over the routes of the table that ran before that are the same, and so their
    /// counters; says what differs.
    pub fn adopt(&mut self, old: &Self) -> RouteDiff {
        let diff = self.diff(old);
        let old_routes = old.by_name();
        for route in &mut self.routes {
            if let Some(old) = old_routes.get(route.name())
                && route.is_same(old)
            {
                *route = Arc::clone(old);
            }
        }
        diff
    }

    fn by_name(&self) -> BTreeMap<&str, &Arc<Route>> {
        self.routes
            .iter()
            .map(|route| (route.name(), route))
            .collect()
    }
}
