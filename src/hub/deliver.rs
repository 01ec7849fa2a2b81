//! What goes to a client: its inputs' messages, answers to its requests, its subscriptions.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;

use super::client::{Client, Input, Place, Sent, Token};
use super::{Hub, Now, brief, lose};
use crate::identity::policy;
use crate::iothub::topics;
use crate::mqtt::{PacketId, QoS, SubAckCode, Unsubscribe};
use crate::observe::{self, Delivered};
use crate::session::{InFlight, Outgoing, Session};
use crate::store::journal::Subscription;
use crate::store::{Delivery, Queue};

/// Messages fetched from a queue at a time: one lock for many, and other inputs get their turn.
const FETCH_MAX: usize = 32;
/// As a metric's label.
const TOO_LARGE_FOR_CLIENT: &str = "too_large_for_client";

impl Hub {
    /// Fills the client's window from its queues, inputs taking turns, until the window is full,
    /// the queues are empty or `max_output_bytes` wait to be written.
    pub fn deliver(&self, client: &mut Client, session: &mut Session<Token>, now: Now) {
        if client.routing.generation != self.generation() {
            self.take_routing(client);
        }
        if client.subscribed && !session.awaits_disk() {
            client.subscribed = false;
            self.refresh_inputs(client);
        }
        let output_max = self.limits().max_output_bytes;
        if !self.resume(client, session, output_max, now) {
            return;
        }
        self.respond(client, session, now);
        let mut idle_turns = 0;
        while idle_turns < client.inputs.len() {
            let room_bytes = output_max.saturating_sub(session.output().len());
            if session.room() == 0 || room_bytes == 0 {
                break;
            }
            client.next_input = (client.next_input + 1) % client.inputs.len();
            let delivered = self.deliver_input(client, session, room_bytes, now);
            idle_turns = if delivered { 0 } else { idle_turns + 1 };
        }
        lose(self, &mut client.scratch.losses);
        client.process.flush();
    }

    /// One turn of one input; false if there was nothing.
    fn deliver_input(
        &self,
        client: &mut Client,
        session: &mut Session<Token>,
        room_bytes: usize,
        now: Now,
    ) -> bool {
        let Some(input) = client.inputs.get_mut(client.next_input) else {
            return false;
        };
        if !input.pending {
            return false;
        }
        let room = (session.room().min(FETCH_MAX), room_bytes as u64);
        let scratch = &mut client.scratch;
        let fetched = &mut scratch.fetched;
        let into = (&mut *fetched, &mut scratch.losses);
        self.store
            .fetch(&input.queue, &client.mailbox, room, now.ms, into);
        input.pending = !fetched.is_empty();
        let qos = if input.qos == 0 {
            QoS::AtMostOnce
        } else {
            QoS::AtLeastOnce
        };
        let any = !fetched.is_empty();
        let (mut done, mut too_large) = (Vec::new(), Vec::new());
        for delivery in fetched.drain(..) {
            let message = &delivery.message;
            let waited_ms = now.ms.saturating_sub(message.received_ms);
            client.process.add(waited_ms as f64 / 1000.0);
            let out = Outgoing {
                topic_prefix: &input.topic_prefix,
                topic_suffix: &message.bag,
                payload: &message.payload,
            };
            let token = token(&input.queue, &delivery);
            if session.takes(qos, &out) {
                done.extend(session.deliver(now.ms, qos, &out, token));
            } else {
                too_large.push(token);
            }
        }
        for token in done {
            self.delivered(client, token, now);
        }
        for token in too_large {
            self.give_up_too_large(client, token);
        }
        any
    }

    /// A message that is larger than the client's packets counts as delivered (MQTT 5 §3.1.2.11.4).
    fn give_up_too_large(&self, client: &Client, token: Token) {
        let Token::Queued { place, origin, .. } = token else {
            return;
        };
        self.store
            .acknowledge(&place.queue, place.priority, place.seq);
        let from = self.id_label(&origin.sender).to_owned();
        let output = self.output_label(origin.output.as_deref(), true);
        self.count_dropped(TOO_LARGE_FOR_CLIENT, &from, output);
        if self.may_log() {
            let id = client.identity().as_str();
            tracing::warn!(id, from, "a message is larger than the client's packets");
        }
    }

    /// The client acknowledged a delivery, or none was asked of it.
    pub fn delivered(&self, client: &mut Client, token: Token, now: Now) {
        self.done_with(&mut client.sent, token, now);
    }

    /// Takes a delivered message out of its queue, and counts it.
    pub(super) fn done_with(&self, counters: &mut Vec<Sent>, token: Token, now: Now) {
        let Token::Queued {
            place,
            origin,
            received_ms,
        } = token
        else {
            return;
        };
        self.store
            .acknowledge(&place.queue, place.priority, place.seq);
        let known = counters.iter().position(|sent| sent.is_of(&origin, &place));
        let at = known.unwrap_or_else(|| {
            if counters.len() >= SENT_MAX {
                counters.clear();
            }
            let metrics = self.metrics.sent(Delivered {
                from: &origin.sender,
                output: self.output_label(origin.output.as_deref(), true),
                to: place.queue.endpoint(),
                device: self.device_id(),
                priority: place.priority,
            });
            counters.push(Sent::new(&origin, &place, metrics));
            counters.len() - 1
        });
        if let Some(sent) = counters.get_mut(at) {
            sent.counter.increment(1);
            let took_ms = now.ms.saturating_sub(received_ms);
            sent.duration.add(took_ms as f64 / 1000.0);
        }
    }

    /// Sends messages of the previous connection again, in their order and under their old ids;
    /// true once that is done. What the client no longer subscribes to stays queued.
    fn resume(
        &self,
        client: &mut Client,
        session: &mut Session<Token>,
        output_max: usize,
        now: Now,
    ) -> bool {
        while let Some((packet_id, place)) = client.resumed.front() {
            if session.output().len() >= output_max || session.room() == 0 {
                return false;
            }
            let packet_id = *packet_id;
            let input = client
                .inputs
                .iter()
                .find(|input| Arc::ptr_eq(&input.queue, &place.queue) && input.qos > 0);
            if let Some(input) = input {
                let at = (place.priority, place.seq);
                let fetched = self
                    .store
                    .fetch_one(&place.queue, &client.mailbox, at, now.ms);
                match fetched {
                    Ok(delivery) => {
                        let message = &delivery.message;
                        let out = Outgoing {
                            topic_prefix: &input.topic_prefix,
                            topic_suffix: &message.bag,
                            payload: &message.payload,
                        };
                        let token = token(&place.queue, &delivery);
                        if session.takes(QoS::AtLeastOnce, &out) {
                            session.redeliver(&out, InFlight { packet_id, token });
                        } else {
                            self.give_up_too_large(client, token);
                        }
                    }
                    Err(true) => return false,
                    // It expired, or the queue was purged.
                    Err(false) => {}
                }
            }
            client.resumed.pop_front();
        }
        true
    }

    /// Puts what was in flight back into its queues; returns it with its ids, in its order.
    pub(super) fn release(
        &self,
        in_flight: VecDeque<InFlight<Token>>,
    ) -> VecDeque<(PacketId, Place)> {
        // By lane, so that a lane is put in order once.
        let mut by_lane: Vec<(Place, Vec<u64>)> = Vec::new();
        let mut parked = VecDeque::new();
        for flight in in_flight {
            let Token::Queued { place, .. } = flight.token else {
                continue;
            };
            let known = by_lane.iter_mut().find(|(known, _)| {
                known.priority == place.priority && Arc::ptr_eq(&known.queue, &place.queue)
            });
            match known {
                Some((_, seqs)) => seqs.push(place.seq),
                None => by_lane.push((place.clone(), vec![place.seq])),
            }
            parked.push_back((flight.packet_id, place));
        }
        for (place, seqs) in by_lane {
            self.store.release(&place.queue, place.priority, &seqs);
        }
        parked
    }

    fn respond(&self, client: &mut Client, session: &mut Session<Token>, now: Now) {
        let Some(qos) = client.response_qos else {
            client.responses.clear();
            return;
        };
        while session.room() > 0 {
            let Some(response) = client.responses.pop_front() else {
                return;
            };
            let out = Outgoing {
                topic_prefix: response.topic.as_bytes(),
                topic_suffix: b"",
                payload: &response.payload,
            };
            let qos = if qos == 0 {
                QoS::AtMostOnce
            } else {
                QoS::AtLeastOnce
            };
            session.deliver(now.ms, qos, &out, Token::Response);
        }
    }

    /// A queue of the client has messages: look at all of them again.
    pub fn deliveries_waiting(&self, client: &mut Client) {
        for input in &mut client.inputs {
            input.pending = true;
        }
    }

    /// Adds subscriptions; the SUBACK goes out once they are on disk.
    pub fn subscribe(
        &self,
        client: &mut Client,
        session: &mut Session<Token>,
        (packet_id, filters): (PacketId, &[(&str, QoS)]),
    ) {
        let codes: Vec<_> = filters
            .iter()
            .map(|(filter, qos)| self.subscribe_one(client, filter, *qos))
            .collect();
        let version = self.keep_subscriptions(client);
        session.subscribed(packet_id, codes, version);
        // It takes effect behind the SUBACK: few clients expect messages before it.
        client.subscribed = true;
    }

    fn subscribe_one(&self, client: &mut Client, filter: &str, qos: QoS) -> SubAckCode {
        let refused = if client.credentials.is_none() {
            Some("plain topics are not available in this version".to_owned())
        } else {
            policy::authorize_subscribe(client.identity(), filter)
                .err()
                .map(|forbidden| forbidden.to_string())
        };
        let known = client
            .subscriptions
            .iter()
            .position(|known| known.filter == filter);
        let refused = refused.or_else(|| {
            if filter.len() > self.limits().max_topic_bytes {
                return Some("over max_topic_bytes".to_owned());
            }
            let full = client.subscriptions.len() >= self.limits().max_subscriptions;
            (full && known.is_none()).then(|| "over max_subscriptions".to_owned())
        });
        if let Some(reason) = refused {
            if self.may_log() {
                let (id, filter) = (client.identity().as_str(), brief(filter));
                tracing::warn!(id, filter, reason, "subscription refused");
            }
            let id = &*client.label;
            let counter = self
                .metrics
                .counter(observe::SUBSCRIBE_REFUSED, &[("id", id)]);
            counter.increment(1);
            return SubAckCode::Failure;
        }
        let qos = qos.min(QoS::AtLeastOnce);
        let subscription = Subscription {
            filter: filter.to_owned(),
            qos: qos as u8,
        };
        match known.and_then(|known| client.subscriptions.get_mut(known)) {
            Some(known) => *known = subscription,
            None => client.subscriptions.push(subscription),
        }
        SubAckCode::Granted(qos)
    }

    /// Removes subscriptions; the UNSUBACK goes out once that is on disk.
    pub fn unsubscribe(
        &self,
        client: &mut Client,
        session: &mut Session<Token>,
        unsubscribe: Unsubscribe<'_>,
    ) {
        let mut existed = Vec::new();
        for filter in unsubscribe.filters.iter() {
            let before = client.subscriptions.len();
            client.subscriptions.retain(|known| known.filter != filter);
            existed.push(client.subscriptions.len() < before);
        }
        let version = self.keep_subscriptions(client);
        session.unsubscribed(unsubscribe.packet_id, existed, version);
        self.refresh_inputs(client);
    }

    /// Works out which queues the client's subscriptions cover.
    pub(super) fn refresh_inputs(&self, client: &mut Client) {
        let filters: Vec<_> = client
            .subscriptions
            .iter()
            .map(|known| (known.filter.clone(), known.qos))
            .collect();
        client.response_qos = filters
            .iter()
            .filter(|(filter, _)| crate::topic::matches(filter, "$iothub/twin/res/200/"))
            .map(|(_, qos)| *qos)
            .max();
        let identity = client.identity.clone();
        let Some(module) = identity.module_id() else {
            return;
        };
        if identity.device_id() != self.device_id() {
            return;
        }
        // A queue that no route leads to any more waits, until one does again or its messages
        // expire (`DESIGN` §4).
        let routing = &client.routing;
        let queues = routing.queues.iter().flatten().chain(&routing.inbound);
        let own = queues.filter(|queue| queue.is_of(module));
        let inputs = own.filter_map(|queue| {
            let qos = topics::input_qos(&filters, &identity, queue.input())?;
            Some(Input {
                topic_prefix: Bytes::from(topics::input_prefix(&identity, queue.input())),
                queue: Arc::clone(queue),
                qos,
                pending: true,
            })
        });
        let inputs: Vec<_> = inputs.collect();
        for old in std::mem::replace(&mut client.inputs, inputs) {
            let stays = |new: &Input| Arc::ptr_eq(&new.queue, &old.queue);
            if !client.inputs.iter().any(stays) {
                self.store.detach(&old.queue, &client.mailbox);
            }
        }
    }
}

/// How a delivery is known again.
pub(super) fn token(queue: &Arc<Queue>, delivery: &Delivery) -> Token {
    Token::Queued {
        place: Place {
            queue: Arc::clone(queue),
            priority: delivery.priority,
            seq: delivery.seq,
        },
        origin: Arc::clone(&delivery.message.origin),
        received_ms: delivery.message.received_ms,
    }
}

/// Counters of deliveries that a client has at hand.
const SENT_MAX: usize = 32;
