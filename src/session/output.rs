//! Bytes that wait to be written to one connection.

use std::collections::VecDeque;
use std::io::IoSlice;

use bytes::{Buf, Bytes, BytesMut};

use super::aliases::Aliases;
use crate::mqtt::v5::{self, Properties};
use crate::mqtt::{self, PacketId, PublishParts, QoS};

/// Payloads from this size on are written by reference, smaller ones are copied: below it the
/// copy costs less than another slice in the vectored write.
const BY_REFERENCE_BYTES_MIN: usize = 4 * 1024;

/// One PUBLISH.
#[derive(Debug)]
pub struct Outgoing<'a> {
    /// First part of the topic, which is the same for many messages.
    pub topic_prefix: &'a [u8],
    /// The rest of the topic: the property bag.
    pub topic_suffix: &'a [u8],
    /// The body.
    pub payload: &'a Bytes,
    /// Whether RETAIN is set.
    pub retain: bool,
    /// Sent to peers of MQTT 5 only.
    pub properties: Properties<'a>,
}

impl<'a> Outgoing<'a> {
    /// A message without RETAIN and properties.
    #[must_use]
    pub fn new(topic_prefix: &'a [u8], topic_suffix: &'a [u8], payload: &'a Bytes) -> Self {
        Self {
            topic_prefix,
            topic_suffix,
            payload,
            retain: false,
            properties: Properties::EMPTY,
        }
    }

    /// Bytes of the whole packet in MQTT 5, to a peer that knows no alias of its topic.
    #[must_use]
    pub fn packet_bytes_v5(&self, qos: QoS) -> usize {
        let topic = 2 + self.topic_prefix.len() + self.topic_suffix.len();
        let packet_id = if qos == QoS::AtMostOnce { 0 } else { 2 };
        let properties = v5::list_bytes(self.properties);
        v5::packet_bytes(topic + packet_id + properties + self.payload.len())
    }
}

/// A write queue: packets are encoded into one buffer, large payloads are chained in between.
#[derive(Debug, Default)]
pub struct Output {
    /// Packets are those of MQTT 5.
    is_v5: bool,
    aliases: Option<Box<Aliases>>,
    chunks: VecDeque<Bytes>,
    chunk_bytes: usize,
    tail: BytesMut,
}

impl Output {
    /// From here on packets are those of MQTT 5.
    pub fn speak_v5(&mut self) {
        self.is_v5 = true;
    }

    /// From here on topics go as numbers to a client that takes so many, and packets of so many
    /// bytes.
    pub fn use_aliases(&mut self, topics_max: u16, packet_bytes_max: u32) {
        self.aliases = Some(Box::new(Aliases::new(topics_max, packet_bytes_max)));
    }

    /// The buffer that packets are encoded into.
    pub fn tail(&mut self) -> &mut BytesMut {
        &mut self.tail
    }

    /// Adds a PUBLISH; there is a packet id unless the QoS is 0.
    pub fn publish(
        &mut self,
        out: &Outgoing<'_>,
        (qos, packet_id): (QoS, Option<PacketId>),
        dup: bool,
    ) {
        let mut aliases = self.aliases.take();
        let short = aliases.as_mut().and_then(|aliases| {
            aliases.shorten(out, out.packet_bytes_v5(qos) - out.topic_prefix.len())
        });
        let out = short.as_ref().unwrap_or(out);
        let head = PublishParts {
            dup,
            qos,
            retain: out.retain,
            topic_prefix: out.topic_prefix,
            topic_suffix: out.topic_suffix,
            packet_id,
            properties: self.is_v5.then_some(out.properties),
            payload_len: out.payload.len(),
        };
        match mqtt::encode_publish_head(&mut self.tail, head) {
            Ok(()) => self.payload(out.payload),
            Err(error) => debug_assert!(false, "accepted messages are encodable: {error}"),
        }
        self.aliases = aliases;
    }

    /// Adds a payload after the head that was just encoded.
    pub fn payload(&mut self, payload: &Bytes) {
        if payload.len() < BY_REFERENCE_BYTES_MIN {
            self.tail.extend_from_slice(payload);
            return;
        }
        let head = self.tail.split().freeze();
        self.chunk_bytes += head.len() + payload.len();
        self.chunks.push_back(head);
        self.chunks.push_back(payload.clone());
    }

    /// Bytes that wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.chunk_bytes + self.tail.len()
    }

    /// Whether nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Fills `slices` with what comes next and returns how many were filled.
    pub fn slices<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let parts = self
            .chunks
            .iter()
            .map(|chunk| &chunk[..])
            .chain(std::iter::once(&self.tail[..]))
            .filter(|part| !part.is_empty());
        let mut filled = 0;
        for (slot, part) in slices.iter_mut().zip(parts) {
            *slot = IoSlice::new(part);
            filled += 1;
        }
        filled
    }

    /// Removes `written` bytes from the front; an emptied buffer gives its memory back.
    pub fn advance(&mut self, mut written: usize) {
        while let Some(front) = self.chunks.front_mut() {
            let part = front.len().min(written);
            front.advance(part);
            self.chunk_bytes -= part;
            written -= part;
            if !front.is_empty() {
                return;
            }
            self.chunks.pop_front();
        }
        self.tail.advance(written.min(self.tail.len()));
        if self.tail.is_empty() {
            self.tail.clear();
        }
    }

    /// Gives the buffers' memory back; called when the connection goes idle.
    pub fn shrink(&mut self) {
        if self.is_empty() {
            *self = Self {
                is_v5: self.is_v5,
                aliases: self.aliases.take(),
                ..Self::default()
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_leave_in_order_whatever_the_write_sizes() {
        for step in [1, 7, 1000, 100_000] {
            let mut output = Output::default();
            let mut expected = Vec::new();
            for size in [10, 5000, 3, 4096, 0, 20] {
                output.tail().extend_from_slice(b"head");
                let payload = Bytes::from(vec![size as u8; size]);
                output.payload(&payload);
                expected.extend_from_slice(b"head");
                expected.extend_from_slice(&payload);
            }
            let mut written = Vec::new();
            while !output.is_empty() {
                let mut slices = [IoSlice::new(&[]); 4];
                let filled = output.slices(&mut slices);
                assert!(filled > 0);
                let all: Vec<u8> = slices[..filled].iter().flat_map(|s| s.to_vec()).collect();
                let part = all.len().min(step);
                written.extend_from_slice(&all[..part]);
                output.advance(part);
            }
            assert!(written == expected, "step {step}");
        }
    }
}
