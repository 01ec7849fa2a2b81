//! What the log notes for itself, in frames of their own between the messages: cursors, the names
//! of lanes, which segments there are, the time.
//!
//! Each segment begins with a checkpoint that holds all of it, so only the newest one has to be
//! read at start. Losing a note loses no message: cursors that stand further back only deliver
//! again, and a lane's number follows from its endpoint's name.

use serde::{Deserialize, Serialize};

use super::clock::Saved;
use super::frame::COUNT_END;
use crate::message::{Endpoint, Priority};

/// Acknowledged seqs above a floor that a note lists; beyond it they are delivered again.
pub const ACKED_MAX: usize = 1024;

/// One note.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Control {
    /// It holds everything, and replaces all before it.
    #[serde(rename = "k", default, skip_serializing_if = "is_false")]
    pub checkpoint: bool,
    /// The log was closed in good order; nothing was on its way.
    #[serde(rename = "z", default, skip_serializing_if = "is_false")]
    pub closed: bool,
    /// Numbers of endpoints.
    #[serde(rename = "e", default, skip_serializing_if = "Vec::is_empty")]
    pub endpoints: Vec<(u32, String)>,
    /// Cursors.
    #[serde(rename = "c", default, skip_serializing_if = "Vec::is_empty")]
    pub cursors: Vec<Cursor>,
    /// Segments in use before this one.
    #[serde(rename = "s", default, skip_serializing_if = "Vec::is_empty")]
    pub segments: Vec<u64>,
    /// Segments given up, on purpose.
    #[serde(rename = "f", default, skip_serializing_if = "Vec::is_empty")]
    pub freed: Vec<u64>,
    /// The trusted clock.
    #[serde(rename = "t", default, skip_serializing_if = "Option::is_none")]
    pub clock: Option<Saved>,
}

#[allow(clippy::trivially_copy_pass_by_ref)]
fn is_false(flag: &bool) -> bool {
    !flag
}

/// How far a lane was acknowledged.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cursor {
    /// The lane.
    #[serde(rename = "l")]
    pub lane: u32,
    /// Everything up to here is done.
    #[serde(rename = "f")]
    pub floor: u64,
    /// These are done as well.
    #[serde(rename = "a", default, skip_serializing_if = "Vec::is_empty")]
    pub acked: Vec<u64>,
}

impl Control {
    /// As written in a frame's payload.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Reads a frame's payload. Fields that a later version adds are skipped.
    #[must_use]
    pub fn read(payload: &[u8]) -> Option<Self> {
        let mut control: Self = serde_json::from_slice(payload).ok()?;
        let is_seq = |seq: &u64| *seq < COUNT_END;
        control
            .cursors
            .retain(|cursor| is_seq(&cursor.floor) && cursor.acked.iter().all(is_seq));
        Some(control)
    }
}

/// The low bits of a lane's number, which are its priority.
const PRIORITY_BITS: u32 = 4;
const ENDPOINT_MASK: u32 = u32::MAX >> PRIORITY_BITS;

/// The number that an endpoint's name leads to; where two meet, the later one takes the next.
#[must_use]
pub fn endpoint_number(endpoint: &Endpoint) -> u32 {
    crc32c::crc32c(endpoint.to_string().as_bytes()) & ENDPOINT_MASK
}

/// The number after this one.
#[must_use]
pub fn next_number(number: u32) -> u32 {
    (number + 1) & ENDPOINT_MASK
}

/// The number of a lane.
#[must_use]
pub fn lane_number(endpoint: u32, priority: usize) -> u32 {
    endpoint << PRIORITY_BITS | priority as u32
}

/// The priority with this index; beyond all, the default.
#[must_use]
pub fn priority_at(index: usize) -> Priority {
    Priority::new(index as u64).unwrap_or(Priority::DEFAULT)
}

/// The endpoint and the priority of a lane.
#[must_use]
pub fn of_lane(lane: u32) -> (u32, usize) {
    (lane >> PRIORITY_BITS, (lane & 0xF) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_read_as_written_and_later_fields_are_skipped() {
        let control = Control {
            checkpoint: true,
            endpoints: vec![(5, "m/in".to_owned())],
            cursors: vec![Cursor {
                lane: lane_number(5, 10),
                floor: 77,
                acked: vec![79, 80],
            }],
            freed: vec![3],
            ..Control::default()
        };
        assert_eq!(Control::read(&control.encode()), Some(control));
        let later = Control::read(b"{\"c\":[{\"l\":1,\"f\":2,\"new\":3}],\"other\":{}}").unwrap();
        assert_eq!(later.cursors.len(), 1);
        assert_eq!(of_lane(lane_number(0x0ABC_DEF1, 10)), (0x0ABC_DEF1, 10));
        assert_eq!(Control::read(b"{"), None);
    }

    #[test]
    fn a_cursor_that_no_count_reaches_is_none() {
        let text = b"{\"c\":[{\"l\":4294967295,\"f\":18446744073709551615},{\"l\":1,\"f\":2}]}";
        let control = Control::read(text).unwrap();
        assert_eq!(control.cursors.len(), 1);
        let text = b"{\"c\":[{\"l\":1,\"f\":2,\"a\":[3,18446744073709551615]}]}";
        assert_eq!(Control::read(text), Some(Control::default()));
    }
}
