//! A message as a frame holds it, and back.

use std::sync::Arc;

use bytes::Bytes;

use super::frame::{Body, Header, Kind, LaneRef, Parts};
use crate::message::{Message, Origin};

/// The parts of a message's frame.
#[must_use]
pub fn parts<'a>(message: &'a Message, lanes: &'a [LaneRef], time_ms: u64) -> Parts<'a> {
    Parts {
        kind: Kind::Data,
        time_ms,
        lanes,
        topic: message.origin.text().as_bytes(),
        properties: &message.bag,
        payload: &message.payload,
    }
}

/// What a message takes of a quota, from its frame.
#[must_use]
pub fn message_bytes(header: &Header) -> u64 {
    u64::from(header.message_part_bytes()) + Message::OVERHEAD_BYTES
}

/// Makes messages of frames; what many of them share is made once.
#[derive(Debug, Default)]
pub struct Decoder {
    topic: Vec<u8>,
    origin: Option<Arc<Origin>>,
    bag: Bytes,
}

impl Decoder {
    /// The message of a sound frame; `None` where its topic names no sender. `received_ms` is when
    /// it was stored, by the hub's clock.
    pub fn decode(&mut self, body: &Body<'_>, received_ms: u64) -> Option<Message> {
        if self.origin.is_none() || self.topic != body.topic {
            let origin = Origin::parse(std::str::from_utf8(body.topic).ok()?)?;
            self.topic = body.topic.to_vec();
            self.origin = Some(Arc::new(origin));
        }
        if self.bag != body.properties {
            self.bag = Bytes::copy_from_slice(body.properties);
        }
        Some(Message {
            origin: self.origin.clone()?,
            bag: self.bag.clone(),
            // To exact size: a message that waits must not pin what else was read with it.
            payload: Bytes::copy_from_slice(body.payload),
            received_ms,
        })
    }
}
