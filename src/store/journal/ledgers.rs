//! What sessions have to remember of QoS 2, in parts that change each by itself: the key is
//! `qos2/` and the identity, or `qos2-part/`, the number of the part in hex, `/` and the identity.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

use super::super::state::State;
use super::super::state::read::Values;
use crate::mailbox::Mailbox;

const WHOLE: &str = "qos2/";
const PART: &str = "qos2-part/";

/// The parts of one session; the one without a number is for all that is not numbered.
pub type Ledger = BTreeMap<Option<u16>, Bytes>;

/// Those of all sessions, by identity.
#[derive(Debug, Default)]
pub(super) struct Ledgers {
    /// What was read, until somebody takes it.
    read: Mutex<BTreeMap<String, Ledger>>,
    /// The numbered parts that there are.
    parts: Mutex<BTreeMap<String, BTreeSet<u16>>>,
}

impl Ledgers {
    pub fn read(values: &Values) -> Self {
        let mut read: BTreeMap<String, Ledger> = BTreeMap::new();
        let mut parts: BTreeMap<String, BTreeSet<u16>> = BTreeMap::new();
        for (key, value) in values {
            let Some((identity, part)) = owner(key) else {
                continue;
            };
            let ledger = read.entry(identity.to_owned()).or_default();
            ledger.insert(part, value.clone());
            if let Some(part) = part {
                parts.entry(identity.to_owned()).or_default().insert(part);
            }
        }
        Self {
            read: Mutex::new(read),
            parts: Mutex::new(parts),
        }
    }

    pub fn take(&self) -> BTreeMap<String, Ledger> {
        std::mem::take(&mut *self.read.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Notes which parts there are before one changes.
    pub fn record(
        &self,
        (state, waiter): (&State, &Arc<Mailbox>),
        identity: &str,
        (part, value): (Option<u16>, Option<Bytes>),
    ) -> u64 {
        let Some(number) = part else {
            return put(state, &format!("{WHOLE}{identity}"), value, waiter);
        };
        let mut parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        match parts.get_mut(identity) {
            Some(numbers) if value.is_none() => {
                numbers.remove(&number);
                if numbers.is_empty() {
                    parts.remove(identity);
                }
            }
            Some(numbers) => drop(numbers.insert(number)),
            None if value.is_none() => {}
            None => drop(parts.insert(identity.to_owned(), BTreeSet::from([number]))),
        }
        put(state, &part_key(identity, number), value, waiter)
    }

    pub fn forget(&self, (state, waiter): (&State, &Arc<Mailbox>), identity: &str) {
        let mut parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        for number in parts.remove(identity).unwrap_or_default() {
            put(state, &part_key(identity, number), None, waiter);
        }
        put(state, &format!("{WHOLE}{identity}"), None, waiter);
    }
}

fn put(state: &State, key: &str, value: Option<Bytes>, waiter: &Arc<Mailbox>) -> u64 {
    let recorded = state.record(key, value, waiter);
    recorded.unwrap_or_else(|error| {
        tracing::error!(%error, key, "the QoS 2 state can never be kept");
        u64::MAX
    })
}

fn part_key(identity: &str, number: u16) -> String {
    format!("{PART}{number:x}/{identity}")
}

/// Whose a key is, and which part.
fn owner(key: &str) -> Option<(&str, Option<u16>)> {
    if let Some(identity) = key.strip_prefix(WHOLE) {
        return Some((identity, None));
    }
    let (number, identity) = key.strip_prefix(PART)?.split_once('/')?;
    Some((identity, Some(u16::from_str_radix(number, 16).ok()?)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::disk::RealDisk;

    #[test]
    fn parts_come_back_each_by_itself_and_go_together() {
        let dir = tempfile::tempdir().unwrap();
        let open = || {
            let disk = Arc::new(RealDisk::new(dir.path()).unwrap());
            let (state, values, _) = State::open(disk, 7, true).unwrap();
            (state, Ledgers::read(&values))
        };
        let nobody = Arc::default();
        let text = |text: &'static str| Some(Bytes::from_static(text.as_bytes()));
        let (state, ledgers) = open();
        let to = (&state, &nobody);
        for identity in ["d/a", "1/d/a"] {
            ledgers.record(to, identity, (None, text("rest")));
            ledgers.record(to, identity, (Some(0), text("x")));
            ledgers.record(to, identity, (Some(0x3ff), text("y")));
        }
        ledgers.record(to, "d/a", (Some(0), None));
        drop(state);
        let (state, ledgers) = open();
        let read = ledgers.take();
        let parts = |identity: &str| read[identity].keys().copied().collect::<Vec<_>>();
        assert_eq!(parts("d/a"), [None, Some(0x3ff)]);
        assert_eq!(parts("1/d/a"), [None, Some(0), Some(0x3ff)]);
        assert_eq!(read["d/a"][&Some(0x3ff)], "y");
        ledgers.forget((&state, &nobody), "1/d/a");
        drop(state);
        assert_eq!(open().1.take().keys().collect::<Vec<_>>(), ["d/a"]);
    }
}
