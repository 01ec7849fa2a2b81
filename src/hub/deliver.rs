//! What goes to a client: its inputs' messages, answers to its requests, its subscriptions.

use std::collections::VecDeque;
use std::sync::Arc;

use super::client::{Client, Place, Resumed, Sent, Token};
use super::ledger::packet_id;
use super::outgoing::{again, outgoing, qos};
use super::{Hub, Now, lose};
use crate::message::Endpoint;
use crate::mqtt::QoS;
use crate::observe::Delivered;
use crate::session::{InFlight, Outgoing, Session};
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
        loop {
            if !client.subscribed {
                self.pump_retained(client, now);
            }
            let delivered = self.deliver_inputs(client, session, output_max, now);
            if client.retained.is_empty() || !delivered {
                break;
            }
        }
        lose(self, &mut client.scratch.losses);
        client.process.flush();
    }

    /// All inputs in turns; whether anything was delivered.
    fn deliver_inputs(
        &self,
        client: &mut Client,
        session: &mut Session<Token>,
        output_max: usize,
        now: Now,
    ) -> bool {
        let (mut idle_turns, mut any) = (0, false);
        while idle_turns < client.inputs.len() {
            let room_bytes = output_max.saturating_sub(session.output().len());
            if session.room() == 0 || room_bytes == 0 {
                break;
            }
            client.next_input = (client.next_input + 1) % client.inputs.len();
            let delivered = self.deliver_input(client, session, room_bytes, now);
            idle_turns = if delivered { 0 } else { idle_turns + 1 };
            any |= delivered;
        }
        any
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
        self.store_of(&input.queue)
            .fetch(&input.queue, &client.mailbox, room, now.ms, into);
        input.pending = !fetched.is_empty();
        let any = !fetched.is_empty();
        let (mut done, mut too_large, mut unwanted) = (Vec::new(), Vec::new(), Vec::new());
        for delivery in fetched.drain(..) {
            let message = &delivery.message;
            let waited_ms = now.ms.saturating_sub(message.received_ms);
            client.process.add(waited_ms as f64 / 1000.0);
            let token = token(&input.queue, &delivery);
            if input.is_plain
                && !input.queue.endpoint().is_live()
                && client.ledger.has(delivery.seq)
            {
                unwanted.push(token);
                continue;
            }
            let side = (&client.identity, client.plain.as_ref());
            let prepared = outgoing((input, message), side, now.ms, &mut scratch.properties);
            let Some((qos, out)) = prepared else {
                unwanted.push(token);
                continue;
            };
            if session.takes(qos, &out) {
                let wanted = match (&token, qos) {
                    (Token::Queued { place, .. }, QoS::ExactlyOnce) if !place.is_live() => {
                        packet_id(place)
                    }
                    _ => None,
                };
                done.extend(session.deliver_as((now.ms, qos), &out, token, wanted));
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
        for token in unwanted {
            if let Token::Queued { place, .. } = token {
                self.finish(&place);
            }
        }
        any
    }

    /// A message is done with.
    pub(super) fn finish(&self, place: &Place) {
        self.store_of(&place.queue)
            .acknowledge(&place.queue, place.priority, place.seq);
    }

    /// A message that is larger than the client's packets counts as delivered (MQTT 5 §3.1.2.11.4).
    fn give_up_too_large(&self, client: &Client, token: Token) {
        let Token::Queued { place, origin, .. } = token else {
            return;
        };
        self.finish(&place);
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
        self.finish(&place);
        let known = counters.iter().position(|sent| sent.is_of(&origin, &place));
        let at = known.unwrap_or_else(|| {
            if counters.len() >= SENT_MAX {
                counters.clear();
            }
            let metrics = self.metrics.sent(Delivered {
                from: self.id_label(&origin.sender),
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
        while let Some((packet_id, sent_qos, place)) = client.resumed.front() {
            if session.output().len() >= output_max || session.room() == 0 {
                return false;
            }
            let (packet_id, sent_qos) = (*packet_id, *sent_qos);
            let input = client.inputs.iter().find(|input| {
                Arc::ptr_eq(&input.queue, &place.queue) && input.qos > QoS::AtMostOnce
            });
            if let Some(input) = input {
                let at = (place.priority, place.seq);
                let fetched = self.store_of(&place.queue).fetch_one(
                    &place.queue,
                    &client.mailbox,
                    at,
                    now.ms,
                );
                match fetched {
                    Ok(delivery) => {
                        let message = &delivery.message;
                        let token = token(&place.queue, &delivery);
                        let side = (&client.identity, client.plain.as_ref());
                        let scratch = &mut client.scratch.properties;
                        let out = again((input, message), side, now.ms, scratch);
                        if session.takes(sent_qos, &out) {
                            let in_flight = InFlight {
                                packet_id,
                                qos: sent_qos,
                                token,
                            };
                            session.redeliver(&out, in_flight);
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
    pub(super) fn release(&self, in_flight: VecDeque<InFlight<Token>>) -> VecDeque<Resumed> {
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
            parked.push_back((flight.packet_id, flight.qos, place));
        }
        for (place, seqs) in by_lane {
            let store = self.store_of(&place.queue);
            if matches!(place.queue.endpoint(), Endpoint::Session { .. }) {
                // They are sent again, however long that takes (MQTT-4.3.3-7, MQTT-4.4.0-1).
                store.release_sent(&place.queue, place.priority, &seqs);
            } else {
                store.release(&place.queue, place.priority, &seqs);
            }
        }
        parked
    }

    fn respond(&self, client: &mut Client, session: &mut Session<Token>, now: Now) {
        let Some(qos) = client.response_qos.map(qos) else {
            client.responses.clear();
            return;
        };
        while session.room() > 0 {
            let Some(response) = client.responses.pop_front() else {
                return;
            };
            let out = Outgoing::new(response.topic.as_bytes(), b"", &response.payload);
            session.deliver(now.ms, qos, &out, Token::Response);
        }
    }

    /// More is kept: look again at what waited for that.
    pub fn deliveries_kept(&self, client: &mut Client) {
        let plain = client.inputs.iter_mut().filter(|input| input.is_plain);
        plain.for_each(|input| input.pending = true);
    }

    /// A queue of the client has messages: look at all of them again.
    pub fn deliveries_waiting(&self, client: &mut Client) {
        for input in &mut client.inputs {
            input.pending = true;
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
