//! Where a message goes by the routes: inputs, the cloud, plain topics; and from plain topics on.
//!
//! `FROM /topics/{filter}` and `INTO Topic("{name}")` are our own. What a route publishes to a
//! topic is taken by the routes from that topic, up to [`HOPS_MAX`] times.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;

use super::address::fill_in;
use super::client::{Client, Held, Output};
use super::matched::Matched;
use super::plain::is_shallow;
use super::routing::{Outlet, Routing};
use super::ways::Grounded;
use super::{Hub, Now, beside, brief};
use crate::identity::Identity;
use crate::iothub::bag;
use crate::message::{Message, Origin, Plain, Properties, Source, Target};
use crate::mqtt::v5;
use crate::mqtt::{Publish, QoS};
use crate::routes::{View, explain};
use crate::store::Copy;
use crate::topic;
use crate::topic::template::Template;

/// Hubs, or topics on one hub, that a message may pass (`DESIGN` §5).
pub(super) const HOPS_MAX: u8 = 8;
/// Topics that one message is published to by routes, at most.
const TOPICS_MAX: usize = 100;
/// Routes that the sampled log line about an unrouted message explains.
const EXPLAINED_ROUTES_MAX: usize = 20;
/// The property that says which topic a message came from.
pub(super) const TOPIC: &str = "mqtt-topic";
/// The reason of messages that go round, in metrics.
pub(super) const TOO_MANY_HOPS: &str = "too_many_hops";
/// Longest property bag that is delivered: escaping may make it longer than it came, and the
/// receiver's topic must stay below 65,536 bytes.
pub(super) const BAG_BYTES_MAX: usize = 40 * 1024;

/// A topic that a route leads to, and how long the message lives there, in milliseconds.
type Sink = (Arc<Template>, Option<u64>);

/// A message as routes see it.
struct Routed<'a> {
    candidates: &'a [u16],
    view: View<'a>,
    output: &'a Arc<Output>,
    hops: u8,
    /// How long its sender says that it is of use.
    expiry_ms: Option<u64>,
}

/// What the routes said beside the queues.
#[derive(Default)]
struct Found {
    /// How many endpoints get the message.
    targets: usize,
    sinks: Vec<Sink>,
    /// Why there is no copy for the cloud though a route leads there.
    grounded: Option<Grounded>,
}

/// A message that goes to plain topics, or comes from one.
struct Crossing {
    /// As inputs and the cloud see it.
    output: Arc<Output>,
    properties: Properties,
    payload: Bytes,
    /// As subscribers of plain topics get them.
    beside: Bytes,
    qos: QoS,
    hops: u8,
    expiry_ms: Option<u64>,
}

impl Hub {
    /// Finds the message's endpoints and prepares one copy for each.
    pub(super) fn route(&self, client: &mut Client, held: &mut Held, qos: QoS, now: Now) {
        let Client {
            routing,
            parsed: Some(parsed),
            scratch,
            ..
        } = client
        else {
            return;
        };
        let it = Routed {
            candidates: &held.output.candidates,
            view: View {
                source: &held.output.source,
                properties: &parsed.properties,
                body: &held.message.payload,
            },
            output: &held.output,
            hops: parsed.hops,
            expiry_ms: parsed.expiry_ms,
        };
        let targets = &mut scratch.targets;
        let found = self.evaluate(routing, &it, targets, &mut held.copies);
        held.targets += found.targets;
        held.grounded = found.grounded;
        if found.sinks.is_empty() {
            return;
        }
        let mut crossing = Crossing {
            properties: parsed.properties.clone(),
            beside: beside::of(&parsed.properties, parsed.expiry_ms),
            payload: held.message.payload.clone(),
            qos,
            hops: parsed.hops,
            expiry_ms: parsed.expiry_ms,
            output: Arc::clone(&held.output),
        };
        self.cross(client, held, &mut crossing, found.sinks, now);
    }

    /// Asks the routes: queues go to `copies`, topics come back.
    fn evaluate(
        &self,
        routing: &Routing,
        it: &Routed<'_>,
        targets: &mut Vec<Target>,
        copies: &mut Vec<Copy>,
    ) -> Found {
        routing.table.evaluate(it.candidates, &it.view, targets);
        let mut found = Found {
            targets: targets.len(),
            ..Found::default()
        };
        for target in targets.iter() {
            let ttl_ms = match target.ttl_seconds {
                Some(seconds) => Some(u64::from(seconds) * 1000),
                None => routing.ttl_ms,
            };
            // The sender may want less, never more.
            let ttl_ms = ttl_ms.into_iter().chain(it.expiry_ms).min();
            let queue = match routing.outlets.get(target.endpoint) {
                Some(Outlet::Queue(queue)) => Ok(queue),
                Some(Outlet::Topic(template)) => {
                    found.sinks.push((Arc::clone(template), ttl_ms));
                    continue;
                }
                Some(Outlet::Cloud) | None => self.way_up(routing, it.output, it.hops, &it.view),
            };
            match queue {
                Ok(queue) => copies.push(Copy {
                    queue: Arc::clone(queue),
                    priority: target.priority,
                    ttl_ms,
                }),
                Err(why) => found.grounded = Some(why),
            }
        }
        if copies.len() > 1 {
            // One order of locks for everybody, whatever table they route by.
            copies.sort_by_key(|copy| Arc::as_ptr(&copy.queue));
        }
        found
    }

    /// Publishes a message to topics that routes lead to; the routes from there take it on.
    fn cross(
        &self,
        client: &mut Client,
        held: &mut Held,
        crossing: &mut Crossing,
        sinks: Vec<Sink>,
        now: Now,
    ) {
        let mut waiting: VecDeque<(Sink, u8)> = sinks.into_iter().map(|sink| (sink, 1)).collect();
        let mut left = TOPICS_MAX;
        while let Some(((template, ttl_ms), hop)) = waiting.pop_front() {
            if hop > HOPS_MAX || left == 0 {
                self.lose_on_the_way(client, held, TOO_MANY_HOPS);
                continue;
            }
            left -= 1;
            let Some(name) = self.sink_name(&template, crossing) else {
                self.lose_on_the_way(client, held, "bad_topic");
                continue;
            };
            let mut matched = self.matched(client, &name);
            if matched.targets() == 0 && matched.routes.is_empty() {
                self.lose_on_the_way(client, held, "no_subscriber");
            }
            let own = Arc::new(crossing.message(&name, None, now));
            let mut copies = Vec::new();
            let how = (crossing.qos, ttl_ms);
            matched.fill((held, &mut copies), &own, how, |filter| {
                crossing.message(&name, Some(filter), now)
            });
            if !copies.is_empty() {
                held.others.push_back((own, copies));
            }
            let more = self.take_from(client, held, crossing, &matched, now);
            waiting.extend(more.into_iter().map(|sink| (sink, hop + 1)));
            client.keep_matched(matched);
        }
    }

    /// The routes from a topic take a message that was published to it; where they publish it to
    /// comes back.
    fn take_from(
        &self,
        client: &mut Client,
        held: &mut Held,
        crossing: &mut Crossing,
        matched: &Matched,
        now: Now,
    ) -> Vec<Sink> {
        if matched.routes.is_empty() {
            return Vec::new();
        }
        crossing.properties.set(TOPIC, Some(&matched.topic));
        let source = Source::Topic(&matched.topic).to_string();
        let it = Routed {
            candidates: &matched.routes,
            view: View {
                source: &source,
                properties: &crossing.properties,
                body: &crossing.payload,
            },
            output: &crossing.output,
            hops: crossing.hops,
            expiry_ms: crossing.expiry_ms,
        };
        let mut copies = Vec::new();
        let targets = &mut client.scratch.targets;
        let found = self.evaluate(&client.routing, &it, targets, &mut copies);
        held.targets += found.targets;
        held.grounded = found.grounded.or(held.grounded);
        let sinks = found.sinks;
        if copies.is_empty() {
            return sinks;
        }
        let origin = &crossing.output.origin;
        let mut bag = Vec::new();
        bag::encode(&crossing.properties, &origin.sender, &mut bag);
        if bag.len() > BAG_BYTES_MAX {
            self.lose_on_the_way(client, held, "properties_too_long");
            return sinks;
        }
        let message = Message {
            origin: Arc::clone(origin),
            bag: bag.into(),
            payload: crossing.payload.clone(),
            received_ms: now.ms,
        };
        held.others.push_back((Arc::new(message), copies));
        sinks
    }

    /// A message that came to a plain topic goes on by the routes from there.
    pub(super) fn route_plain(
        &self,
        client: &mut Client,
        held: &mut Held,
        (publish, sent_beside): (&Publish<'_>, v5::Properties<'_>),
        (matched, expiry_ms): (&Matched, Option<u64>),
        now: Now,
    ) {
        if matched.routes.is_empty() {
            return;
        }
        let output = self.crossing_output(client);
        let sender = &output.origin.sender;
        let mut properties = Properties::default();
        beside::add_what_fits(sent_beside, &mut properties);
        beside::guess_json(publish.payload, &mut properties);
        if publish.retain {
            properties.set("mqtt-retain", Some("true"));
        }
        properties.set_sender(sender);
        let hops = self.count_hops(client, &mut properties);
        let plain = Plain::parse(&held.message.bag);
        let mut crossing = Crossing {
            properties,
            payload: held.message.payload.clone(),
            beside: Bytes::copy_from_slice(plain.map_or(&[], |plain| plain.properties)),
            qos: publish.qos,
            hops,
            expiry_ms,
            output,
        };
        let sinks = self.take_from(client, held, &mut crossing, matched, now);
        self.cross(client, held, &mut crossing, sinks, now);
    }

    /// As whose message inputs and the cloud get what a client publishes to plain topics: one in
    /// no registry publishes in the name of this device.
    fn crossing_output(&self, client: &mut Client) -> Arc<Output> {
        if let Some(known) = &client.crossing_output {
            return Arc::clone(known);
        }
        let sender = match client.identity.is_plain() {
            true => Identity::device(self.device_id()),
            false => client.identity.clone(),
        };
        let origin = Origin::new(sender, None);
        let output = Arc::new(self.bare_output(client, origin, ("", "no_route")));
        Arc::clone(client.crossing_output.insert(output))
    }

    /// The name of the topic that a message goes to; `None` if it is none for routes.
    fn sink_name(&self, template: &Template, crossing: &Crossing) -> Option<String> {
        let origin = &crossing.output.origin;
        let property = |name: &str| crossing.properties.get(name).text().map(Cow::Borrowed);
        let mut name = Vec::new();
        template
            .write(|variable| fill_in(origin, variable, property), &mut name)
            .ok()?;
        let name = String::from_utf8(name).ok()?;
        let is_fit = name.len() <= self.limits().max_topic_bytes
            && is_shallow(&name)
            && topic::is_publishable(&name);
        if !is_fit && self.may_log() {
            let topic = brief(&name);
            tracing::warn!(topic, "a route leads to a topic that is not for routes");
        }
        is_fit.then_some(name)
    }

    fn lose_on_the_way(&self, client: &Client, held: &Held, reason: &str) {
        let name = held.output.origin.output.as_deref();
        let label = self.output_label(name, true);
        self.count_dropped(reason, &client.label, label);
    }

    /// Why no route took the message, as a sample: one message a second, at debug.
    pub(super) fn explain_unrouted(&self, client: &Client, held: &Held, now: Now) {
        if !tracing::enabled!(tracing::Level::DEBUG) {
            return;
        }
        let (last_ms, Some(parsed)) = (&self.explained_ms, &client.parsed) else {
            return;
        };
        if now.ms < last_ms.load(Ordering::Relaxed)
            || last_ms.swap(now.ms + 1000, Ordering::Relaxed) > now.ms
        {
            return;
        }
        let source = held.output.source.as_str();
        let view = View {
            source,
            properties: &parsed.properties,
            body: &held.message.payload,
        };
        let routes = client
            .routing
            .table
            .routes()
            .iter()
            .take(EXPLAINED_ROUTES_MAX);
        let why: Vec<_> = routes
            .map(|route| explain(route, &view).to_string())
            .collect();
        let (from, why) = (client.identity.as_str(), why.join("; "));
        // As fields, in which what the client chose is escaped.
        tracing::debug!(from, source, why, "no route took a message");
    }
}

impl Crossing {
    fn message(&self, topic: &str, filter: Option<&str>, now: Now) -> Message {
        let plain = Plain {
            qos: self.qos as u8,
            retain: false,
            is_retained: false,
            topic,
            filter,
            properties: &self.beside,
        };
        Message {
            origin: Arc::clone(&self.output.origin),
            bag: plain.encode(),
            payload: self.payload.clone(),
            received_ms: now.ms,
        }
    }
}
