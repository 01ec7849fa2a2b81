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
    /// It is a retained one, for this filter only.
    pub filter: Option<&'static str>,
    /// For a while no subscription wanted it: it may have been dropped then.
    pub may_be_gone: bool,
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
        retain: message.filter.is_some() || (message.retain && as_published),
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
                        ..message.clone()
                    };
                    self.queue(message, qos, true);
                }
            }
        }
    }

    /// The client got a message: is it one that it had to get, just so?
    pub fn receive(&mut self, (number, is_v5): (usize, bool), delivery: &Delivery) {
        let fits = |session: &Self, message: &Message| {
            let Some(choice) = choose(session, message, number) else {
                return false;
            };
            let identifiers = if is_v5 {
                choice.identifiers
            } else {
                Vec::new()
            };
            let same = (message.topic, &message.payload) == (&delivery.topic, &delivery.payload);
            same && (choice.qos, choice.retain) == (delivery.qos, delivery.retain)
                && identifiers == delivery.subscriptions
        };
        if delivery.dup {
            let flight = self.resumed.pop_front().expect("something was in flight");
            assert_eq!((flight.id, flight.qos), (delivery.id, delivery.qos));
            assert_eq!(flight.message.topic, delivery.topic);
            assert_eq!(flight.message.payload, delivery.payload);
            self.in_flight.push(flight);
            return;
        }
        assert!(
            self.resumed.is_empty(),
            "{delivery:?} before {:?}",
            self.resumed
        );
        let find = |queue: &VecDeque<Message>| {
            let skips =
                |message: &&Message| message.may_be_gone || choose(self, message, number).is_none();
            let skipped = queue.iter().take_while(skips).count();
            let mut near = queue.iter().take(skipped + 1);
            near.position(|message| fits(self, message))
        };
        let (at, is_live) = match find(&self.kept) {
            Some(at) => (at, false),
            None => match find(&self.live) {
                Some(at) => (at, true),
                None => panic!("{delivery:?} of {:?} and {:?}", self.kept, self.live),
            },
        };
        let queue = if is_live {
            &mut self.live
        } else {
            &mut self.kept
        };
        let message = queue.drain(..=at).next_back().unwrap();
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
}
