//! Who gets what is published to a plain topic.

use std::sync::Arc;

use super::client::Held;
use super::plain::Subscriber;
use crate::message::Message;
use crate::mqtt::QoS;
use crate::store::Copy;

/// Who gets what is published to one topic, as of one state of the index.
#[derive(Debug)]
pub(super) struct Matched {
    pub topic: String,
    pub generation: u64,
    /// The client may publish to it.
    pub is_allowed: bool,
    /// The routes that take messages from it, by index.
    pub routes: Box<[u16]>,
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
    /// How many get a message.
    pub fn targets(&self) -> usize {
        self.subscribers.len() + self.shared.len()
    }

    /// Adds the queues of all that get a message: what is kept to `copies`, the rest to `held`.
    /// `for_share` makes the message for a shared filter.
    pub fn fill(
        &mut self,
        (held, copies): (&mut Held, &mut Vec<Copy>),
        message: &Arc<Message>,
        (sent, ttl_ms): (QoS, Option<u64>),
        for_share: impl Fn(&str) -> Message,
    ) {
        for (subscriber, granted) in &self.subscribers {
            let Some(queue) = subscriber.queue(sent.min(*granted)) else {
                continue;
            };
            let copy = Copy::of(queue, ttl_ms);
            match queue.endpoint().is_live() {
                true => held.live.push((Arc::clone(message), copy)),
                false => copies.push(copy),
            }
        }
        for share in &mut self.shared {
            let Some((one, granted)) = share.choose(sent) else {
                continue;
            };
            let Some(queue) = one.queue(sent.min(granted)) else {
                continue;
            };
            let copy = Copy::of(queue, ttl_ms);
            let message = Arc::new(for_share(&share.filter));
            match queue.endpoint().is_live() {
                true => held.live.push((message, copy)),
                false => held.others.push_back((message, vec![copy])),
            }
        }
        // One order of locks for everybody.
        copies.sort_by_key(|copy| Arc::as_ptr(&copy.queue));
    }
}
