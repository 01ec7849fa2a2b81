//! Any bytes as a frame; any frame as bytes.

use arbitrary::Arbitrary;
use edgehub::store::frame::{COUNT_END, HEADER_BYTES, Header, Kind, LaneRef, NoFrame, Parts, seal};

#[derive(Debug, Arbitrary)]
struct Given {
    seq: u64,
    salt: u32,
    durable_seq: u64,
    time_ms: u64,
    kind: u8,
    lanes: Vec<(u32, u32)>,
    topic: Vec<u8>,
    properties: Vec<u8>,
    payload: Vec<u8>,
    /// What is changed afterwards, and whether the header is sealed again.
    changes: Vec<(u16, u8)>,
    reseals: bool,
}

/// Runs one input.
pub fn run(input: &[u8]) {
    let Some((given, raw)) = super::given::<(Given, Vec<u8>)>(input) else {
        return;
    };
    for salt in [0, given.salt] {
        read(&raw, salt);
    }
    let mut sealed = raw;
    if sealed.len() >= HEADER_BYTES {
        let lanes = usize::from(u16::from_le_bytes([sealed[34], sealed[35]]));
        sealed[..4].copy_from_slice(&0x4D52_4649_u32.to_le_bytes());
        if sealed.len() >= HEADER_BYTES + 8 * lanes {
            seal(&mut sealed, given.salt, given.durable_seq);
        }
        read(&sealed, given.salt);
    }
    written(&given);
}

/// Reads what may be a frame; a sound one is written again as it was.
fn read(bytes: &[u8], salt: u32) {
    let Ok(header) = Header::read(bytes, salt) else {
        return;
    };
    let lanes: Vec<LaneRef> = header.lanes(bytes).collect();
    assert_eq!(lanes.len(), usize::from(header.lanes));
    let Ok(body) = header.body(bytes) else {
        return;
    };
    let parts = Parts {
        kind: header.kind,
        time_ms: header.time_ms,
        lanes: &lanes,
        topic: body.topic,
        properties: body.properties,
        payload: body.payload,
    };
    let mut again = Vec::new();
    parts.encode(header.seq, &mut again);
    assert_eq!(again.len(), header.frame_bytes());
    seal(&mut again, salt, header.durable_seq);
    assert_eq!(Header::read(&again, salt), Ok(header));
    assert_eq!(header.body(&again), Ok(body));
}

/// A frame that was written reads as it was given, and not when it was changed.
fn written(given: &Given) {
    let kind = [Kind::Data, Kind::Control, Kind::State][usize::from(given.kind) % 3];
    let lanes: Vec<_> = given
        .lanes
        .iter()
        .take(4096)
        .map(|&(lane, expires_s)| LaneRef { lane, expires_s })
        .collect();
    let parts = Parts {
        kind,
        time_ms: given.time_ms,
        lanes: &lanes,
        topic: given.topic.get(..65_535).unwrap_or(&given.topic),
        properties: &given.properties,
        payload: &given.payload,
    };
    let mut frame = Vec::new();
    let seq = given.seq % COUNT_END;
    parts.encode(seq, &mut frame);
    seal(&mut frame, given.salt, given.durable_seq);
    assert_eq!(frame.len(), parts.frame_bytes());
    let header = Header::read(&frame, given.salt).expect("it was just written");
    assert_eq!(header.seq, seq);
    let body = header.body(&frame).expect("it was just written");
    assert_eq!(
        (body.topic, body.properties, body.payload),
        (parts.topic, parts.properties, parts.payload)
    );
    assert!(header.lanes(&frame).eq(lanes.iter().copied()));
    let end = header.body_at() + header.body_bytes as usize;
    for short in [
        0,
        HEADER_BYTES - 1,
        header.body_at() - 1,
        end.saturating_sub(1),
    ] {
        let short = &frame[..short.min(end - 1)];
        let whole =
            Header::read(short, given.salt).and_then(|header| header.body(short).map(|_| ()));
        assert_eq!(whole, Err(NoFrame::Short));
    }
    let mut changed = frame;
    for (at, byte) in &given.changes {
        let at = usize::from(*at) % changed.len();
        changed[at] ^= byte;
    }
    read(&changed, given.salt);
    if given.reseals {
        let lanes = usize::from(u16::from_le_bytes([changed[34], changed[35]]));
        if changed.len() >= HEADER_BYTES + 8 * lanes {
            seal(&mut changed, given.salt, given.durable_seq);
            read(&changed, given.salt);
        }
    }
}
