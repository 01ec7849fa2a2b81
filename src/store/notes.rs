//! The log's own notes at start: put together, and compared with what there is.

use std::collections::{BTreeSet, HashMap};
use std::io;

use super::clock::Saved;
use super::control::{Control, Cursor};
use super::layout::salt;
use super::recover::{Damaged, Known, Recovered, seq_end};
use super::segment::{Scanned, scan};

/// The log's own notes, put together.
#[derive(Debug, Default)]
pub struct Notes {
    /// Names of endpoints by number.
    pub endpoints: HashMap<u32, String>,
    /// Cursors by lane.
    pub cursors: HashMap<u32, Cursor>,
    /// Segments that there should be.
    pub segments: BTreeSet<u64>,
    /// The trusted clock.
    pub clock: Option<Saved>,
    /// The last note says that the log was closed in good order.
    pub closed: bool,
}

impl Notes {
    fn apply(&mut self, control: Control) {
        if control.checkpoint {
            *self = Self::default();
        }
        self.closed = control.closed;
        self.endpoints.extend(control.endpoints);
        for cursor in control.cursors {
            self.cursors.insert(cursor.lane, cursor);
        }
        self.segments.extend(control.segments);
        for id in control.freed {
            self.segments.remove(&id);
        }
        if control.clock.is_some() {
            self.clock = control.clock;
        }
    }
}

/// Takes the notes in, from the newest segment that has a checkpoint on. `newest` is what was
/// found in the last one, where it was scanned.
pub(super) fn notes(
    known: &[Known],
    store_id: u64,
    mut newest: Option<Scanned>,
    recovered: &mut Recovered,
) -> io::Result<()> {
    let mut layers = Vec::new();
    for (at, one) in known.iter().enumerate().rev() {
        // Without a header, where it was scanned from was a guess.
        let scanned = match newest.take().filter(|_| one.header.is_some()) {
            Some(scanned) => scanned,
            None => {
                let last_seq = if at + 1 == known.len() {
                    recovered.last.1 + 1
                } else {
                    u64::MAX
                };
                let seq_end = seq_end(known.get(at..).unwrap_or_default());
                let seqs = (None, seq_end.unwrap_or(last_seq));
                scan(&*one.file, salt(store_id, one.id), one.size, seqs)?
            }
        };
        let mut found = scanned.notes;
        let has_checkpoint = found.iter().any(|control| control.checkpoint);
        // Messages behind the last note: whatever it says, it was not the end.
        if !scanned.ends_with_note
            && let Some(last) = found.last_mut()
        {
            last.closed = false;
        }
        layers.push((one.id, found));
        if has_checkpoint {
            break;
        }
    }
    for (id, found) in layers.into_iter().rev() {
        for control in found {
            recovered.notes.apply(control);
        }
        recovered.notes.segments.insert(id);
    }
    Ok(())
}

/// Compares what there is with what there should be.
pub(super) fn chain(known: &[Known], recovered: &mut Recovered) {
    let ids: Vec<u64> = recovered.catalog.keys().copied().collect();
    for id in recovered.notes.segments.clone() {
        if ids.contains(&id) || recovered.retired.contains(&id) {
            continue;
        }
        let before = ids.iter().copied().filter(|other| *other < id).max();
        let after = known.iter().find(|one| one.id > id);
        let first = before.and_then(|before| recovered.last_seqs.get(&before).copied());
        let last = after
            .and_then(|one| one.header)
            .map(|header| header.base_seq);
        let (first, last) = (
            first.unwrap_or(0) + 1,
            last.unwrap_or_else(|| first.unwrap_or(0) + 1),
        );
        recovered
            .remarks
            .push(format!("segment {id:016x} is missing"));
        let seqs = (first, last.saturating_sub(1).max(first));
        recovered.damaged.push(Damaged::new(seqs, id));
    }
    for pair in known.windows(2) {
        let [one, next] = pair else { continue };
        let (Some(header), Some(last)) = (next.header, recovered.last_seqs.get(&one.id)) else {
            continue;
        };
        let repacked = header.repacked || one.header.is_some_and(|header| header.repacked);
        if header.previous_id != one.id || repacked {
            continue;
        }
        let last = *last;
        if last < header.previous_last_seq {
            let seqs = (last + 1, header.previous_last_seq);
            recovered.damaged.push(Damaged::new(seqs, one.id));
        }
    }
}
