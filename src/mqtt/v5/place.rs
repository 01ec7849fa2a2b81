//! Where a property or a reason code stands: the packet, and who sent it where that matters.

/// A packet of MQTT 5, as far as properties and reason codes tell packets apart (§2.2.2.2, §2.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum Place {
    /// CONNECT (§3.1.2.11).
    Connect = 1,
    /// The will in a CONNECT (§3.1.3.2).
    Will = 1 << 1,
    /// CONNACK (§3.2.2.3).
    ConnAck = 1 << 2,
    /// PUBLISH of a client (§3.3.2.3).
    ClientPublish = 1 << 3,
    /// PUBLISH of a server (§3.3.2.3).
    ServerPublish = 1 << 4,
    /// PUBACK or PUBREC (§3.4.2, §3.5.2).
    Received = 1 << 5,
    /// PUBREL or PUBCOMP (§3.6.2, §3.7.2).
    Released = 1 << 6,
    /// SUBSCRIBE (§3.8.2.1).
    Subscribe = 1 << 7,
    /// SUBACK (§3.9.2.1).
    SubAck = 1 << 8,
    /// UNSUBSCRIBE (§3.10.2.1).
    Unsubscribe = 1 << 9,
    /// UNSUBACK (§3.11.2.1).
    UnsubAck = 1 << 10,
    /// DISCONNECT of a client (§3.14.2).
    ClientDisconnect = 1 << 11,
    /// DISCONNECT of a server (§3.14.2).
    ServerDisconnect = 1 << 12,
    /// AUTH of a client (§3.15.2).
    ClientAuth = 1 << 13,
    /// AUTH of a server (§3.15.2).
    ServerAuth = 1 << 14,
}

/// A set of places.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Places(u16);

impl Places {
    pub(super) const fn of(places: &[Place]) -> Self {
        let mut set = 0;
        let mut rest = places;
        while let [first, others @ ..] = rest {
            set |= *first as u16;
            rest = others;
        }
        Self(set)
    }

    pub(super) const fn has(self, place: Place) -> bool {
        self.0 & place as u16 != 0
    }
}
