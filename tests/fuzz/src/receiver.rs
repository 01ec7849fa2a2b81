//! One session's part of the model of a broker: what its subscriptions bring it, and what the
//! client has of that.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use edgehub::topic::matches;

use super::wire::Delivery;

#[derive(Debug, Clone)]
pub struct Subscription {
    pub qos: u8,
    pub no_local: bool,
    pub retain_as_published: bool,
    pub identifier: u32,
}

/// A message that a session has to get.
#[derive(Debug, Clone)]
pub struct Message {
    pub topic: &'static str,
    pub payload: Vec<u8>,
    pub qos: u8,
    pub retain: bool,
    pub sender: usize,
    /// It is for this filter only: it is a retained one, or the filter is a shared one.
    pub filter: Option<&'static str>,
    pub is_retained: bool,
    /// For a while no subscription wanted it: it may have been dropped then.
    pub may_be_gone: bool,
}

/// A message for one of those who share a subscription (MQTT 5 §4.8.2).
#[derive(Debug)]
pub struct Shared {
    pub message: Message,
    /// Who may have been chosen.
    pub could: Vec<usize>,
    /// One of them has gone since, so that it may be lost, or another one's.
    pub is_loose: bool,
}

/// The filter behind `$share/NAME/`, if it is a shared one.
pub fn shared(filter: &str) -> Option<&str> {
    filter
        .strip_prefix("$share/")?
        .split_once('/')
        .map(|parts| parts.1)
}

/// A message that the client has not acknowledged.
#[derive(Debug, Clone)]
pub struct InFlight {
    pub id: u16,
    pub qos: u8,
    pub is_live: bool,
    pub message: Message,
}

#[derive(Debug, Default)]
pub struct Session {
    /// There is something to go on with.
    pub exists: bool,
    pub subscriptions: BTreeMap<&'static str, Subscription>,
    /// Once it has subscribed: whether what it misses is kept for it.
    pub keeps: Option<bool>,
    pub kept: VecDeque<Message>,
    pub live: VecDeque<Message>,
    pub in_flight: Vec<InFlight>,
    /// Of the previous connection, to be sent again.
    pub resumed: VecDeque<InFlight>,
    pub released: BTreeSet<u16>,
    pub unreleased: BTreeSet<u16>,
    /// New subscriptions whose retained messages are still to come, with their QoS.
    pub new: VecDeque<(&'static str, u8)>,
}

/// How a message goes to a session.
pub struct Choice {
    pub qos: u8,
    pub retain: bool,
    pub identifiers: Vec<u32>,
}

/// What a session's subscriptions say of a message; `None` if none matches (MQTT 5 §3.3.4).
pub fn choose(session: &Session, message: &Message, number: usize) -> Option<Choice> {
    let is_own = message.sender == number;
    let all = session.subscriptions.iter();
    let matching: Vec<_> = all
        .filter(|(filter, one)| {
            if let Some(inner) = shared(filter) {
                return message.filter == Some(**filter) && matches(inner, message.topic);
            }
            let is_meant = message.filter.is_none_or(|own| own == **filter);
            is_meant && matches(filter, message.topic) && !(is_own && one.no_local)
        })
        .map(|(_, one)| one)
        .collect();
    let granted = matching.iter().map(|one| one.qos).max()?;
    let as_published = matching.iter().any(|one| one.retain_as_published);
    let mut identifiers: Vec<u32> = matching.iter().map(|one| one.identifier).collect();
    identifiers.retain(|identifier| *identifier > 0);
    identifiers.sort_unstable();
    Some(Choice {
        qos: granted.min(message.qos),
        retain: message.is_retained || (message.retain && as_published),
        identifiers,
    })
}

impl Session {
    pub fn queue(&mut self, message: Message, qos: u8, is_connected: bool) {
        if qos > 0 && self.keeps == Some(true) {
            self.kept.push_back(message);
        } else if is_connected {
            self.live.push_back(message);
        }
    }

    /// New subscriptions bring what is retained, once what was in flight is sent again.
    pub fn new_messages(&mut self, retained: &BTreeMap<&'static str, Message>) {
        if !self.resumed.is_empty() {
            return;
        }
        while let Some((filter, granted)) = self.new.pop_front() {
            for message in retained.values() {
                if matches(filter, message.topic) {
                    let qos = message.qos.min(granted);
                    let message = Message {
                        filter: Some(filter),
                        is_retained: true,
                        ..message.clone()
                    };
                    self.queue(message, qos, true);
                }
            }
        }
    }

    /// The client got a message: is it one that it had to get, just so?
    pub fn receive(
        &mut self,
        (number, is_v5): (usize, bool),
        delivery: &Delivery,
        pool: &mut Vec<Shared>,
    ) {
        if delivery.dup {
            let flight = self.resumed.pop_front().expect("something was in flight");
            assert_eq!((flight.id, flight.qos), (delivery.id, delivery.qos));
            assert_eq!(flight.message.topic, delivery.topic);
            assert_eq!(flight.message.payload, delivery.payload);
            self.in_flight.push(flight);
            return;
        }
        let before = &self.resumed;
        assert!(before.is_empty(), "{delivery:?} before {before:?}");
        let (message, is_live) = self.find((number, is_v5), delivery, pool);
        let id = delivery.id;
        if delivery.qos > 0 {
            let is_used = self.in_flight.iter().any(|flight| flight.id == id);
            assert!(!is_used && !self.released.contains(&id), "{id} is in use");
            self.in_flight.push(InFlight {
                id,
                qos: delivery.qos,
                is_live,
                message,
            });
        }
    }

    /// Takes a message from where it waits: the first one of a queue that is wanted.
    fn find(
        &mut self,
        (number, is_v5): (usize, bool),
        delivery: &Delivery,
        pool: &mut Vec<Shared>,
    ) -> (Message, bool) {
        let fits = |message: &Message| {
            let Some(mut choice) = choose(self, message, number) else {
                return false;
            };
            choice.identifiers.retain(|_| is_v5);
            let same = (message.topic, &message.payload) == (&delivery.topic, &delivery.payload);
            same && (choice.qos, choice.retain) == (delivery.qos, delivery.retain)
                && choice.identifiers == delivery.subscriptions
        };
        let find = |queue: &VecDeque<Message>| {
            let skips =
                |message: &&Message| message.may_be_gone || choose(self, message, number).is_none();
            let skipped = queue.iter().take_while(skips).count();
            queue.iter().take(skipped + 1).position(fits)
        };
        if let Some(at) = find(&self.kept) {
            return (self.kept.drain(..=at).next_back().unwrap(), false);
        }
        if let Some(at) = find(&self.live) {
            return (self.live.drain(..=at).next_back().unwrap(), true);
        }
        let is_due = |one: &Shared| !one.is_loose && one.could.contains(&number);
        // Payloads may be the same: one that has to come is there before one that may.
        let mut all = pool.iter();
        let due = all.position(|one| is_due(one) && fits(&one.message));
        let mut all = pool.iter();
        let at = due.or_else(|| all.position(|one| one.is_loose && fits(&one.message)));
        let at = at.unwrap_or_else(|| {
            panic!(
                "{delivery:?} of {:?}, {:?} and {pool:?}",
                self.kept, self.live
            )
        });
        let is_live = delivery.qos == 0 || self.keeps != Some(true);
        (pool.remove(at).message, is_live)
    }
}
