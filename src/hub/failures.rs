//! Failed logins: guessing gets slow, and nobody is locked out.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Mutex, PoisonError};

use crate::identity;

/// Addresses and identities whose failed logins are remembered, and as many addresses alone.
const FAILURES_MAX: usize = 4096;
/// The longest that the answer to a failed login is held back.
const FAILURE_DELAY_MS_MAX: u64 = 5_000;
/// After this time without another one, failed logins are forgotten.
const FAILURES_FORGOTTEN_MS: u64 = 60_000;
/// Bits of an IPv6 address that are one customer's: they can choose the rest for each connection.
const NETWORK_BITS: u32 = 64;

/// How many logins failed, and when the last one did.
type Count = (u32, u64);

/// Failed logins by address and claimed identity.
#[derive(Debug, Default)]
pub(super) struct Failures(Mutex<Tables>);

#[derive(Debug, Default)]
struct Tables {
    of_both: HashMap<(IpAddr, String), Count>,
    of_address: HashMap<IpAddr, Count>,
}

/// How much speaks against a login before it is looked at: less goes first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Doubt {
    /// Recent failures from its address.
    address: u32,
    /// Of these, those with the same claimed identity.
    both: u32,
}

impl Doubt {
    /// Whether nothing speaks against it.
    #[must_use]
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }
}

impl Failures {
    /// Counts one more and says how long to hold the answer back.
    pub(super) fn count(&self, address: IpAddr, claimed: &str, now_ms: u64) -> u64 {
        let mut tables = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Tables {
            of_both,
            of_address,
        } = &mut *tables;
        add(of_address, network(address), now_ms);
        match add(of_both, (address, shortened(claimed)), now_ms) {
            None => FAILURE_DELAY_MS_MAX,
            Some(0 | 1) => 0,
            Some(n) => (50_u64 << n.min(10)).min(FAILURE_DELAY_MS_MAX),
        }
    }

    /// The right credentials were shown. Those who guess at the same address stay known.
    pub(super) fn forget(&self, address: IpAddr, claimed: &str) {
        let mut tables = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !tables.of_both.is_empty() {
            tables.of_both.remove(&(address, shortened(claimed)));
        }
    }

    /// What speaks against a login of this identity from this address.
    pub(super) fn doubt(&self, address: IpAddr, claimed: &str, now_ms: u64) -> Doubt {
        let tables = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let recent = |count: Option<&Count>| match count {
            Some((count, last_ms)) if *last_ms + FAILURES_FORGOTTEN_MS > now_ms => *count,
            _ => 0,
        };
        let both = (address, shortened(claimed));
        Doubt {
            address: recent(tables.of_address.get(&network(address))),
            both: recent(tables.of_both.get(&both)),
        }
    }
}

/// Counts one more; `None` if the table is full of recent ones.
fn add<K: Eq + Hash>(table: &mut HashMap<K, Count>, key: K, now_ms: u64) -> Option<u32> {
    if table.len() >= FAILURES_MAX && !table.contains_key(&key) {
        table.retain(|_, (_, last_ms)| *last_ms + FAILURES_FORGOTTEN_MS > now_ms);
        if table.len() >= FAILURES_MAX {
            return None;
        }
    }
    let (count, last_ms) = table.entry(key).or_insert((0, now_ms));
    if *last_ms + FAILURES_FORGOTTEN_MS <= now_ms {
        *count = 0;
    }
    *last_ms = now_ms;
    *count = count.saturating_add(1);
    Some(*count)
}

fn shortened(claimed: &str) -> String {
    claimed.chars().take(identity::ID_BYTES_MAX).collect()
}

fn network(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(address) => {
            let prefix = u128::MAX << (u128::BITS - NETWORK_BITS);
            Ipv6Addr::from_bits(address.to_bits() & prefix).into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_get_slower_and_are_forgotten() {
        let failures = Failures::default();
        let here = IpAddr::from([127, 0, 0, 1]);
        let delays: Vec<_> = (0..8).map(|n| failures.count(here, "d/m", n)).collect();
        assert_eq!(delays, [0, 200, 400, 800, 1600, 3200, 5000, 5000]);
        assert_eq!(failures.count(here, "d/other", 8), 0);
        failures.forget(here, "d/m");
        assert_eq!(failures.count(here, "d/m", 9), 0);
        assert_eq!(failures.count(here, "d/m", 10 + FAILURES_FORGOTTEN_MS), 0);
    }

    #[test]
    fn addresses_without_failures_go_first_then_names_without() {
        let failures = Failures::default();
        let [here, there] = [[127, 0, 0, 1], [127, 0, 0, 2]].map(IpAddr::from);
        failures.count(here, "user:a", 0);
        failures.count(here, "user:a", 1);
        let doubt = |address, name| failures.doubt(address, name, 2);
        assert_eq!(doubt(there, "user:a"), Doubt::default());
        assert!(doubt(there, "user:a") < doubt(here, "user:b"));
        assert!(doubt(here, "user:b") < doubt(here, "user:a"));
        // One right password does not clear the address.
        failures.forget(here, "user:a");
        assert!(doubt(there, "user:a") < doubt(here, "user:a"));
        let later = failures.doubt(here, "user:a", 2 + FAILURES_FORGOTTEN_MS);
        assert_eq!(later, Doubt::default());
    }

    #[test]
    fn a_network_of_addresses_is_one() {
        let failures = Failures::default();
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        failures.count(address("2001:db8::1"), "user:a", 0);
        let same = failures.doubt(address("2001:db8::ffff:2"), "user:b", 0);
        let other = failures.doubt(address("2001:db8:0:1::1"), "user:b", 0);
        assert!(other < same);
        assert_eq!(other, Doubt::default());
    }

    #[test]
    fn the_tables_are_bounded() {
        let failures = Failures::default();
        for n in 0..FAILURES_MAX as u32 + 20 {
            failures.count(IpAddr::V4((n + 1).into()), "user:a", 0);
        }
        let tables = failures.0.lock().unwrap();
        assert_eq!(tables.of_both.len(), FAILURES_MAX);
        assert_eq!(tables.of_address.len(), FAILURES_MAX);
    }
}
