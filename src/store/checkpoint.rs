//! What the writer notes about the queues: changed cursors, or everything.

use super::control::{Control, Cursor, lane_number};
use super::frame::{Kind, Parts};
use super::log::Log;
use super::{Store, lock};

/// The frame of a note.
pub(super) fn note<'a>(time_ms: u64, payload: &'a [u8]) -> Parts<'a> {
    Parts {
        kind: Kind::Control,
        time_ms,
        lanes: &[],
        topic: b"",
        properties: b"",
        payload,
    }
}

/// The cursors that changed since they were last noted.
pub(super) fn changed_cursors(log: &Log) -> Vec<Cursor> {
    let queues = std::mem::take(&mut *lock(&log.dirty));
    let mut cursors = Vec::new();
    for queue in queues {
        let mut state = queue.lock();
        state.is_listed = false;
        for (priority, lane) in state.lanes.iter_mut().enumerate() {
            if std::mem::take(&mut lane.is_dirty) {
                cursors.push(lane.cursor(lane_number(queue.number, priority)));
            }
        }
    }
    cursors
}

/// All that has to be known, for the beginning of a segment.
pub(super) fn checkpoint(store: &Store, log: &Log, now_ms: u64) -> Control {
    let mut control = Control {
        checkpoint: true,
        clock: Some(store.clock().save(now_ms)),
        segments: log.catalog().keys().copied().collect(),
        cursors: lock(&log.orphans).clone(),
        ..Control::default()
    };
    for queue in store.queues() {
        control
            .endpoints
            .push((queue.number, queue.endpoint().to_string()));
        let state = queue.lock();
        for (priority, lane) in state.lanes.iter().enumerate() {
            if lane.last_seq > 0 {
                control
                    .cursors
                    .push(lane.cursor(lane_number(queue.number, priority)));
            }
        }
    }
    control
}
