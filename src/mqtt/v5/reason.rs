//! Reason codes (MQTT 5 §2.4, table 2-6).

use std::fmt;

use super::place::Place::{
    ClientAuth, ClientDisconnect, ConnAck, Received, Released, ServerAuth, ServerDisconnect,
    SubAck, UnsubAck,
};
use super::place::{Place, Places};

/// The enum, its bytes and the packets of each code, from one list.
macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $byte:literal in [$($place:ident),*];)*) => {
        /// What became of a request, or why a connection ends (MQTT 5 §2.4). From 0x80 on it is a
        /// failure.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum ReasonCode { $($(#[$doc])* $name = $byte),* }

        impl ReasonCode {
            #[cfg(test)]
            const ALL: &[Self] = &[$(Self::$name),*];

            const fn places(self) -> Places {
                match self { $(Self::$name => Places::of(&[$($place),*])),* }
            }

            const fn known(byte: u8) -> Option<Self> {
                match byte { $($byte => Some(Self::$name),)* _ => None }
            }
        }
    };
}

reasons! {
    /// Success, normal disconnection, or granted with QoS 0.
    Success = 0x00 in [
        ConnAck, Received, Released, SubAck, UnsubAck, ClientDisconnect, ServerDisconnect,
        ServerAuth
    ];
    /// Granted with at most QoS 1.
    GrantedQos1 = 0x01 in [SubAck];
    /// Granted with at most QoS 2.
    GrantedQos2 = 0x02 in [SubAck];
    /// Goodbye, and the will is to be published.
    DisconnectWithWill = 0x04 in [ClientDisconnect];
    /// Taken, and nobody has subscribed.
    NoMatchingSubscribers = 0x10 in [Received];
    /// There was no such subscription.
    NoSubscriptionExisted = 0x11 in [UnsubAck];
    /// The authentication goes on.
    ContinueAuthentication = 0x18 in [ClientAuth, ServerAuth];
    /// The authentication begins again.
    ReAuthenticate = 0x19 in [ClientAuth];
    /// The reason is not told, or no other fits.
    UnspecifiedError = 0x80 in [
        ConnAck, Received, SubAck, UnsubAck, ClientDisconnect, ServerDisconnect
    ];
    /// A packet could not be read.
    MalformedPacket = 0x81 in [ConnAck, ClientDisconnect, ServerDisconnect];
    /// A packet that should not have come, or not so.
    ProtocolError = 0x82 in [ConnAck, ClientDisconnect, ServerDisconnect];
    /// Valid, and not accepted by this implementation.
    ImplementationSpecific = 0x83 in [
        ConnAck, Received, SubAck, UnsubAck, ClientDisconnect, ServerDisconnect
    ];
    /// The version of MQTT is not spoken here.
    UnsupportedProtocolVersion = 0x84 in [ConnAck];
    /// The client id is not allowed here.
    ClientIdNotValid = 0x85 in [ConnAck];
    /// The user name or password is not accepted.
    BadUserNameOrPassword = 0x86 in [ConnAck];
    /// The client may not do this.
    NotAuthorized = 0x87 in [ConnAck, Received, SubAck, UnsubAck, ServerDisconnect];
    /// The server is not available.
    ServerUnavailable = 0x88 in [ConnAck];
    /// The server is busy: later.
    ServerBusy = 0x89 in [ConnAck, ServerDisconnect];
    /// The client is banned.
    Banned = 0x8A in [ConnAck];
    /// The server shuts down.
    ServerShuttingDown = 0x8B in [ServerDisconnect];
    /// The authentication method is not known here, or not the one that was begun.
    BadAuthenticationMethod = 0x8C in [ConnAck, ServerDisconnect];
    /// Nothing came for 1.5 times the keep-alive.
    KeepAliveTimeout = 0x8D in [ServerDisconnect];
    /// Another connection has the session now.
    SessionTakenOver = 0x8E in [ServerDisconnect];
    /// The filter is well formed and not accepted here.
    TopicFilterInvalid = 0x8F in [SubAck, UnsubAck, ServerDisconnect];
    /// The topic name is well formed and not accepted here.
    TopicNameInvalid = 0x90 in [ConnAck, Received, ClientDisconnect, ServerDisconnect];
    /// The packet id is in use.
    PacketIdInUse = 0x91 in [Received, SubAck, UnsubAck];
    /// The packet id is not known.
    PacketIdNotFound = 0x92 in [Released];
    /// More messages in flight than allowed.
    ReceiveMaximumExceeded = 0x93 in [ClientDisconnect, ServerDisconnect];
    /// A topic alias that is 0, too large or without a topic.
    TopicAliasInvalid = 0x94 in [ClientDisconnect, ServerDisconnect];
    /// The packet is larger than allowed.
    PacketTooLarge = 0x95 in [ConnAck, ClientDisconnect, ServerDisconnect];
    /// Messages come too fast.
    MessageRateTooHigh = 0x96 in [ClientDisconnect, ServerDisconnect];
    /// A limit is reached.
    QuotaExceeded = 0x97 in [ConnAck, Received, SubAck, ClientDisconnect, ServerDisconnect];
    /// An administrator ended the connection.
    AdministrativeAction = 0x98 in [ClientDisconnect, ServerDisconnect];
    /// The payload is not what its format says.
    PayloadFormatInvalid = 0x99 in [ConnAck, Received, ClientDisconnect, ServerDisconnect];
    /// The server keeps no retained messages.
    RetainNotSupported = 0x9A in [ConnAck, ServerDisconnect];
    /// The QoS is over the one that the server said.
    QosNotSupported = 0x9B in [ConnAck, ServerDisconnect];
    /// Another server is to be used for now.
    UseAnotherServer = 0x9C in [ConnAck, ServerDisconnect];
    /// Another server is to be used from now on.
    ServerMoved = 0x9D in [ConnAck, ServerDisconnect];
    /// There are no shared subscriptions here.
    SharedSubscriptionsNotSupported = 0x9E in [SubAck, ServerDisconnect];
    /// Connections come too fast.
    ConnectionRateExceeded = 0x9F in [ConnAck, ServerDisconnect];
    /// The connection lasted as long as it may.
    MaximumConnectTime = 0xA0 in [ServerDisconnect];
    /// There are no subscription identifiers here.
    SubscriptionIdsNotSupported = 0xA1 in [SubAck, ServerDisconnect];
    /// There are no subscriptions with wildcards here.
    WildcardSubscriptionsNotSupported = 0xA2 in [SubAck, ServerDisconnect];
}

impl ReasonCode {
    /// The code for a byte; `None` for one that such a packet cannot carry (§2.4).
    #[must_use]
    pub const fn from_byte(byte: u8, place: Place) -> Option<Self> {
        match Self::known(byte) {
            Some(code) if code.may_stand_in(place) => Some(code),
            _ => None,
        }
    }

    /// The byte on the wire.
    #[must_use]
    pub const fn to_byte(self) -> u8 {
        self as u8
    }

    /// Whether such a packet can carry this code (§2.4).
    #[must_use]
    pub const fn may_stand_in(self, place: Place) -> bool {
        self.places().has(place)
    }

    /// 0x80 and above (§2.4).
    #[must_use]
    pub const fn is_failure(self) -> bool {
        self.to_byte() >= 0x80
    }
}

impl fmt::Display for ReasonCode {
    /// Its name in words and its number: `quota exceeded (0x97)`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, letter) in format!("{self:?}").char_indices() {
            if at > 0 && letter.is_ascii_uppercase() {
                f.write_str(" ")?;
            }
            write!(f, "{}", letter.to_ascii_lowercase())?;
        }
        write!(f, " ({:#04x})", self.to_byte())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_shown_in_words() {
        for (code, words) in [
            (ReasonCode::QuotaExceeded, "quota exceeded (0x97)"),
            (ReasonCode::PacketIdInUse, "packet id in use (0x91)"),
            (ReasonCode::Success, "success (0x00)"),
        ] {
            assert_eq!(code.to_string(), words);
        }
    }

    /// Tables 3-1, 3-4 to 3-9, 3-10 (by sender) and 3-12 of the standard, as bytes.
    const TABLES: &[(Place, &[u8])] = &[
        (
            ConnAck,
            &[
                0x00, 0x80, 0x81, 0x82, 0x83, 0x84, 0x85, 0x86, 0x87, 0x88, 0x89, 0x8A, 0x8C, 0x90,
                0x95, 0x97, 0x99, 0x9A, 0x9B, 0x9C, 0x9D, 0x9F,
            ],
        ),
        (
            Received,
            &[0x00, 0x10, 0x80, 0x83, 0x87, 0x90, 0x91, 0x97, 0x99],
        ),
        (Released, &[0x00, 0x92]),
        (
            SubAck,
            &[
                0x00, 0x01, 0x02, 0x80, 0x83, 0x87, 0x8F, 0x91, 0x97, 0x9E, 0xA1, 0xA2,
            ],
        ),
        (UnsubAck, &[0x00, 0x11, 0x80, 0x83, 0x87, 0x8F, 0x91]),
        (
            ClientDisconnect,
            &[
                0x00, 0x04, 0x80, 0x81, 0x82, 0x83, 0x90, 0x93, 0x94, 0x95, 0x96, 0x97, 0x98, 0x99,
            ],
        ),
        (
            ServerDisconnect,
            &[
                0x00, 0x80, 0x81, 0x82, 0x83, 0x87, 0x89, 0x8B, 0x8C, 0x8D, 0x8E, 0x8F, 0x90, 0x93,
                0x94, 0x95, 0x96, 0x97, 0x98, 0x99, 0x9A, 0x9B, 0x9C, 0x9D, 0x9E, 0x9F, 0xA0, 0xA1,
                0xA2,
            ],
        ),
        (ClientAuth, &[0x18, 0x19]),
        (ServerAuth, &[0x00, 0x18]),
        (Place::Connect, &[]),
        (Place::ClientPublish, &[]),
    ];

    #[test]
    fn each_packet_has_the_codes_of_its_table() {
        for (place, allowed) in TABLES {
            for byte in 0..=0xff {
                let code = ReasonCode::from_byte(byte, *place);
                assert_eq!(
                    code.is_some(),
                    allowed.contains(&byte),
                    "{place:?} {byte:#x}"
                );
                assert!(code.is_none_or(|code| code.to_byte() == byte));
                assert!(code.is_none_or(|code| code.is_failure() == (byte >= 0x80)));
            }
        }
        assert!(ReasonCode::ALL.iter().all(|code| {
            let stands = |row: &(Place, &[u8])| row.1.contains(&code.to_byte());
            TABLES.iter().any(stands)
        }));
    }
}
