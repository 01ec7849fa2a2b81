//! Takes fields from the front of a packet's body.

use crate::topic;

use super::Malformed;
use super::packet::{PacketId, QoS};

/// Takes fields from the front of a packet's body.
#[derive(Clone)]
pub(in crate::mqtt) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    #[inline]
    pub(in crate::mqtt) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    pub(in crate::mqtt) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// A length of two bytes and UTF-8, nothing else checked (§1.5.3).
    #[inline]
    pub(in crate::mqtt) fn text(&mut self) -> Result<&'a str, Malformed> {
        std::str::from_utf8(self.binary()?).map_err(|_| Malformed::Utf8)
    }

    pub(in crate::mqtt) fn topic_filter(&mut self) -> Result<&'a str, Malformed> {
        let filter = self.text()?;
        topic::check_filter(filter).map_err(Malformed::TopicFilter)?;
        Ok(filter)
    }

    /// A requested QoS with its reserved bits (§3.8.3).
    pub(in crate::mqtt) fn requested_qos(&mut self) -> Result<QoS, Malformed> {
        match self.byte()? {
            3 => Err(Malformed::RequestedQosThree),
            byte => QoS::from_bits(byte).ok_or(Malformed::RequestedQosReserved(byte)),
        }
    }

    #[inline]
    pub(in crate::mqtt) fn topic_name(&mut self) -> Result<&'a str, Malformed> {
        let name = self.text()?;
        topic::check_name(name).map_err(Malformed::TopicName)?;
        Ok(name)
    }

    pub(in crate::mqtt) fn string(&mut self) -> Result<&'a str, Malformed> {
        let text = self.text()?;
        if text.as_bytes().contains(&0) {
            return Err(Malformed::Nul);
        }
        Ok(text)
    }

    #[inline]
    pub(in crate::mqtt) fn packet_id(&mut self) -> Result<PacketId, Malformed> {
        PacketId::new(self.number()?).ok_or(Malformed::PacketIdZero)
    }

    /// A length of two bytes and that many bytes (§3.1.3.3).
    #[inline]
    pub(in crate::mqtt) fn binary(&mut self) -> Result<&'a [u8], Malformed> {
        let bytes = usize::from(self.number()?);
        self.take(bytes)
    }

    /// Two bytes, the higher first (§1.5.2).
    #[inline]
    pub(in crate::mqtt) fn number(&mut self) -> Result<u16, Malformed> {
        let (taken, rest) = self.rest.split_first_chunk().ok_or(Malformed::Truncated)?;
        self.rest = rest;
        Ok(u16::from_be_bytes(*taken))
    }

    #[inline]
    pub(in crate::mqtt) fn byte(&mut self) -> Result<u8, Malformed> {
        let (taken, rest) = self.rest.split_first().ok_or(Malformed::Truncated)?;
        self.rest = rest;
        Ok(*taken)
    }

    /// Four bytes, the highest first (MQTT 5 §1.5.3).
    pub(in crate::mqtt) fn long_number(&mut self) -> Result<u32, Malformed> {
        let (taken, rest) = self.rest.split_first_chunk().ok_or(Malformed::Truncated)?;
        self.rest = rest;
        Ok(u32::from_be_bytes(*taken))
    }

    /// A variable byte integer in its shortest form (MQTT 5 §1.5.5).
    #[inline]
    pub(in crate::mqtt) fn variable(&mut self) -> Result<u32, Malformed> {
        let mut number = 0;
        for shift in [0, 7, 14, 21] {
            let byte = self.byte()?;
            number |= u32::from(byte & 0x7f) << shift;
            if byte == 0 && shift > 0 {
                return Err(Malformed::VariableInteger);
            }
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err(Malformed::VariableInteger)
    }

    /// So many bytes.
    #[inline]
    pub(in crate::mqtt) fn take(&mut self, bytes: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self
            .rest
            .split_at_checked(bytes)
            .ok_or(Malformed::Truncated)?;
        self.rest = rest;
        Ok(taken)
    }

    /// All that is left.
    #[inline]
    pub(in crate::mqtt) fn rest(&self) -> &'a [u8] {
        self.rest
    }

    pub(in crate::mqtt) fn finish(self) -> Result<(), Malformed> {
        match self.rest.len() {
            0 => Ok(()),
            bytes => Err(Malformed::TrailingBytes(bytes)),
        }
    }
}
