//! The way of a message through the house: authorize → accept → route → append → deliver.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;

use super::client::{Client, Held, Output, ParsedTopic};
use super::plain::is_shallow;
use super::refused::Refused;
use super::route::BAG_BYTES_MAX;
use super::ways::Grounded;
use super::{Hub, Now, beside};
use crate::identity::policy::{self, Forbidden, Permit};
use crate::identity::rules::Action;
use crate::iothub::bag;
use crate::iothub::topics::Incoming;
use crate::message::{Message, Origin, Properties, Source, SystemProperty};
use crate::mqtt::Publish;
use crate::mqtt::v5;
use crate::observe;
use crate::store;
use crate::topic;

/// Outputs whose routes a client has at hand; one that uses more looks them up again.
const OUTPUTS_MAX: usize = 16;

/// What became of a publish.
#[derive(Debug)]
pub enum Published {
    /// Taken for all its receivers, or of no concern to any: acknowledge once everything up to
    /// this seq is kept.
    Accepted {
        /// 0: at once.
        seq: u64,
        /// And everything up to this version of the small state; 0: at once.
        version: u64,
        /// Nobody gets it: no route matched.
        is_unrouted: bool,
    },
    /// No room now: try the same packet again when told so.
    HeldBack,
    /// No room, and the client can be told (`DESIGN` §4).
    Full,
    /// Refused for good.
    Refused(Refused),
}

impl Published {
    pub(super) const DONE: Self = Self::Accepted {
        seq: 0,
        version: 0,
        is_unrouted: false,
    };
}

/// A PUBLISH as it came; 3.1.1 has no properties.
type Came<'a> = (&'a Publish<'a>, v5::Properties<'a>);

impl Hub {
    /// Takes a message. `Accepted` means that every endpoint whose route matched has it.
    pub fn publish(&self, client: &mut Client, publish: Came<'_>, now: Now) -> Published {
        match self.publish_inner(client, publish, now) {
            Ok(published) => published,
            Err(refused) => {
                self.count_dropped(refused.label(), &client.label, "");
                Published::Refused(refused)
            }
        }
    }

    fn publish_inner(
        &self,
        client: &mut Client,
        came: Came<'_>,
        now: Now,
    ) -> Result<Published, Refused> {
        let publish = came.0;
        if let Some(held) = client.held.take() {
            return Ok(self.append(client, publish, held, now));
        }
        if client.routing.generation != self.generation() {
            self.take_routing(client);
        }
        if topic::is_plain(publish.topic) {
            let held = self.publish_plain(client, came, now)?;
            return self.append_first(client, publish, held, now);
        }
        if !same_topic(client, came) {
            match self.authorize(client, came)? {
                Some(parsed) => client.parsed = Some(parsed),
                None => return Ok(Published::DONE),
            }
        }
        let Some(mut held) = self.accept(client, publish, now)? else {
            return Ok(Published::DONE);
        };
        self.route(client, &mut held, publish.qos, now);
        if held.targets == 0 {
            self.explain_unrouted(client, &held, now);
        }
        self.append_first(client, publish, held, now)
    }

    fn append_first(
        &self,
        client: &mut Client,
        publish: &Publish<'_>,
        mut held: Held,
        now: Now,
    ) -> Result<Published, Refused> {
        if let Some(Grounded::TooLarge { bytes, max }) = held.grounded
            && held.is_for_nobody()
        {
            return Err(Refused::TooLargeForCloud { bytes, max });
        }
        self.leave_out_full(&mut held);
        Ok(self.append(client, publish, held, now))
    }

    /// The topic names what the client wants, and the policy says whether it may. Telemetry comes
    /// back parsed; requests are answered here.
    fn authorize(
        &self,
        client: &mut Client,
        came: Came<'_>,
    ) -> Result<Option<ParsedTopic>, Refused> {
        let publish = came.0;
        let limits = self.limits();
        if publish.topic.len() > limits.max_topic_bytes {
            return Err(Refused::TopicTooLong {
                bytes: publish.topic.len(),
                max: limits.max_topic_bytes,
            });
        }
        if client.identity.is_plain() {
            return Err(Forbidden::Reserved.into());
        }
        let incoming = Incoming::read(publish.topic);
        if let Incoming::MalformedDevices(reason) = incoming {
            return Err(reason.into());
        }
        let publication = incoming.publication(publish.topic);
        let permit = policy::authorize_publish(client.identity(), publication)?;
        if let Incoming::Telemetry { bag, .. } = incoming {
            return self.parse(client, &permit, came, bag).map(Some);
        }
        self.request(client, &incoming);
        Ok(None)
    }

    fn parse(
        &self,
        client: &mut Client,
        permit: &Permit,
        (publish, sent_beside): Came<'_>,
        bag: &str,
    ) -> Result<ParsedTopic, Refused> {
        let sender = permit.identity();
        let mut properties = Properties::default();
        bag::decode(bag, &mut properties)?;
        let expiry_ms = beside::add(sent_beside, &mut properties).map_err(Refused::Properties)?;
        if publish.retain {
            properties.set("mqtt-retain", Some("true"));
        }
        if publish.dup {
            properties.set("mqtt-dup", Some("true"));
        }
        properties.set_sender(sender);
        let hops = self.count_hops(client, &mut properties);
        let name = properties.system_text(SystemProperty::OutputName);
        let output = self.output(client, sender.module_id().and(name));
        let mut encoded = Vec::with_capacity(bag.len() + 64);
        bag::encode(&properties, sender, &mut encoded);
        if encoded.len() > BAG_BYTES_MAX {
            let (bytes, max) = (encoded.len(), BAG_BYTES_MAX);
            return Err(Refused::BagTooLong { bytes, max });
        }
        Ok(ParsedTopic {
            // No topic is empty: what flags and properties added is not for the next message.
            topic: if publish.dup || publish.retain || !sent_beside.is_empty() {
                String::new()
            } else {
                publish.topic.to_owned()
            },
            output,
            properties,
            bag: Bytes::from(encoded),
            hops,
            expiry_ms,
        })
    }

    /// What is known about an output, its routes first of all.
    fn output(&self, client: &mut Client, name: Option<&str>) -> Arc<Output> {
        let is_known = |output: &&Arc<Output>| output.origin.output.as_deref() == name;
        if let Some(known) = client.outputs.iter().find(is_known) {
            return Arc::clone(known);
        }
        if client.outputs.len() >= OUTPUTS_MAX {
            client.outputs.clear();
        }
        let sender = client.identity().clone();
        let source = match sender.module_id() {
            None => Source::Device,
            Some(module) => Source::Module {
                module,
                output: name,
            },
        }
        .to_string();
        let candidates = client.routing.table.candidates(&source);
        let label = self.output_label(name, !candidates.is_empty());
        let output = Arc::new(Output {
            source,
            candidates,
            ..self.bare_output(client, Origin::new(sender, name), (label, "no_route"))
        });
        client.outputs.push(Arc::clone(&output));
        output
    }

    /// An output without routes: counters and origin of what the client publishes.
    pub(super) fn bare_output(
        &self,
        client: &Client,
        origin: Origin,
        (label, no_route): (&str, &str),
    ) -> Output {
        let labels = [("id", &*client.label), ("route_output", label)];
        let dropped = |reason| self.dropped(reason, &client.label, label);
        Output {
            no_route: dropped(no_route),
            queue_full: dropped("queue_full"),
            way: OnceLock::new(),
            origin: Arc::new(origin),
            source: String::new(),
            candidates: Box::default(),
            received: self.metrics.counter(observe::MESSAGES_RECEIVED, &labels),
        }
    }

    /// Makes the message: from here on it is the hub's.
    fn accept(
        &self,
        client: &mut Client,
        publish: &Publish<'_>,
        now: Now,
    ) -> Result<Option<Held>, Refused> {
        let Some(parsed) = &client.parsed else {
            return Ok(None);
        };
        let bytes = publish.payload.len() + parsed.properties.bytes();
        let max = self.limits().max_message_bytes;
        if bytes > max {
            return Err(Refused::TooLarge { bytes, max });
        }
        client.sizes.add(bytes as f64);
        let message = Message {
            origin: Arc::clone(&parsed.output.origin),
            bag: parsed.bag.clone(),
            // To exact size: a queued message must not pin the read buffer.
            payload: Bytes::copy_from_slice(publish.payload),
            received_ms: now.ms,
        };
        let copies = std::mem::take(&mut client.scratch.copies);
        Ok(Some(Held::new(message, &parsed.output, copies)))
    }

    /// The topic is one of the plain space: whoever may gets it to those who have subscribed.
    fn publish_plain(
        &self,
        client: &mut Client,
        came: Came<'_>,
        now: Now,
    ) -> Result<Held, Refused> {
        let topic = came.0.topic;
        let max = self.limits().max_topic_bytes;
        let bytes = topic.len();
        if bytes > max {
            return Err(Refused::TopicTooLong { bytes, max });
        }
        if !is_shallow(topic) {
            return Err(Refused::TopicTooDeep);
        }
        if topic.starts_with('$') {
            return Err(Forbidden::Reserved.into());
        }
        if !self.knows(client, topic) {
            self.may(client, Action::Publish(topic))?;
        }
        self.accept_plain(client, came, now)
    }

    /// Ends a batch of publishes: has it written, wakes the receivers, records the samples.
    pub fn end_of_batch(&self, client: &mut Client) {
        if std::mem::take(&mut client.appended_seq) > 0 {
            self.store.flush();
        }
        store::wake(&mut client.scratch.idle);
        client.sizes.flush();
        for sent in &mut client.sent {
            sent.duration.flush();
        }
    }

    /// Has the client told with `DURABLE` when everything up to `seq` is kept.
    pub fn await_kept(&self, client: &Client, seq: u64) {
        self.store.await_kept(seq, &client.mailbox);
    }

    /// Everything up to this seq is kept.
    #[must_use]
    pub fn kept(&self) -> u64 {
        self.store.kept()
    }
}

/// Whether the topic was parsed already; DUP and RETAIN become properties, so they count too.
fn same_topic(client: &Client, (publish, sent_beside): Came<'_>) -> bool {
    !publish.dup
        && !publish.retain
        && sent_beside.is_empty()
        && client
            .parsed
            .as_ref()
            .is_some_and(|parsed| parsed.topic == publish.topic)
}
