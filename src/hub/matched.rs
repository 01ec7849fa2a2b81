//! Who gets what is published to a plain topic.

use std::sync::Arc;

use super::client::Held;
use super::plain::Subscriber;
use crate::message::{Message, Priority};
use crate::mqtt::QoS;
use crate::store::{Copy, Queue};

/// Who gets what is published to one topic, as of one state of the index.
#[derive(Debug)]
pub(super) struct Matched {
    pub topic: String,
    pub generation: u64,
    /// Each session once, with its highest QoS.
    pub subscribers: Vec<(Arc<Subscriber>, QoS)>,
    pub shared: Vec<Share>,
}

/// The sessions of which one gets a message.
#[derive(Debug)]
pub(super) struct Share {
    pub filter: Arc<str>,
    pub members: Vec<(Arc<Subscriber>, QoS)>,
    /// Whose turn it is.
    pub next: usize,
}

impl Share {
    /// The next member, by turns: one that is connected, else one whose session is kept.
    pub fn choose(&mut self, qos: QoS) -> Option<(Arc<Subscriber>, QoS)> {
        let count = self.members.len();
        let turns = || (0..count).map(|turn| (self.next + turn) % count);
        let wanted = |one: &Subscriber, granted: QoS| {
            one.kept.is_some() && qos.min(granted) != QoS::AtMostOnce
        };
        let find = |is_fit: &dyn Fn(&Subscriber, QoS) -> bool| {
            turns().find(|at| {
                let member = self.members.get(*at);
                member.is_some_and(|(one, granted)| is_fit(one, *granted))
            })
        };
        let at = find(&|one, _| one.is_connected()).or_else(|| find(&wanted))?;
        self.next = at + 1;
        self.members.get(at).cloned()
    }
}

impl Matched {
    /// Adds the queues of all that get a message; `message` makes the one for a shared filter.
    pub fn fill(
        &mut self,
        held: &mut Held,
        (sent, ttl_ms): (QoS, Option<u64>),
        message: impl Fn(Option<&str>) -> Arc<Message>,
    ) {
        let copy = |queue: &Arc<Queue>| Copy {
            queue: Arc::clone(queue),
            priority: Priority::DEFAULT,
            ttl_ms,
        };
        for (subscriber, granted) in &self.subscribers {
            match subscriber.queue(sent.min(*granted)) {
                Some(queue) if queue.endpoint().is_live() => held.live.push(copy(queue)),
                Some(queue) => held.copies.push(copy(queue)),
                None => {}
            }
        }
        for share in &mut self.shared {
            let chosen = share.choose(sent);
            let queue = chosen.as_ref();
            let queue = queue.and_then(|(one, granted)| one.queue(sent.min(*granted)));
            if let Some(queue) = queue {
                let message = message(Some(&share.filter));
                held.shared.push_back((message, copy(queue)));
            }
        }
        // One order of locks for everybody.
        held.copies.sort_by_key(|copy| Arc::as_ptr(&copy.queue));
    }
}
