//! Why a connection ends.

use crate::mqtt::DecodeError;
use crate::mqtt::v5::ReasonCode;

/// Why a connection ends. The sentence goes to the log, the label to the metrics.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Close {
    /// DISCONNECT: the only ending that voids the will.
    #[error("the client disconnected")]
    Disconnect,
    /// The socket was closed without DISCONNECT.
    #[error("the connection was closed without DISCONNECT")]
    ConnectionLost,
    /// The socket failed.
    #[error("the connection failed: {0}")]
    Io(String),
    /// Bytes that are no MQTT 3.1.1, or a packet over the limit.
    #[error("{0}")]
    Decode(DecodeError),
    /// The first packet was not CONNECT (MQTT-3.1.0-1).
    #[error("the first packet was not CONNECT")]
    NotConnected,
    /// A second CONNECT (MQTT-3.1.0-2).
    #[error("a second CONNECT on the same connection")]
    SecondConnect,
    /// No CONNECT in time.
    #[error("no CONNECT within the connect timeout")]
    ConnectTimeout,
    /// Nothing was received for one and a half times the keep-alive (MQTT-3.1.2-24).
    #[error("nothing received for one and a half times the keep-alive")]
    KeepAlive,
    /// What CONNACK said is not available here, asked for all the same (MQTT 5 §3.2.2.3).
    #[error("the client uses what the hub said it has not: {what}")]
    NotAvailable {
        /// In words.
        what: &'static str,
        /// As DISCONNECT says it.
        reason: ReasonCode,
    },
    /// A packet that makes no sense here (MQTT 5 §4.13.1).
    #[error("protocol error: {0}")]
    ProtocolError(&'static str),
    /// The client was not let in.
    #[error("login refused: {0}")]
    LoginRefused(String),
    /// A publish was refused; MQTT 3.1.1 has no other way to say so.
    #[error("publish refused: {0}")]
    PublishRefused(String),
    /// There was no room for a publish within `publish_stall_seconds`.
    #[error("no room for the message within publish_stall_seconds")]
    PublishStalled,
    /// Deliveries stayed unacknowledged for `ack_stall_seconds`.
    #[error("deliveries unacknowledged for ack_stall_seconds")]
    AckStalled,
    /// Another connection came with the same client id (MQTT-3.1.4-2).
    #[error("another connection took this identity over")]
    TakenOver,
    /// The credentials are no longer valid.
    #[error("credentials no longer valid: {0}")]
    Revoked(String),
    /// Newer connections needed the place before this one had logged in.
    #[error("dropped before login to make room for newer connections")]
    Evicted,
    /// The hub is going down.
    #[error("the hub is shutting down")]
    Draining,
}

impl Close {
    /// A short stable word for metrics.
    #[must_use]
    pub fn label(&self) -> &'static str {
        match self {
            Self::Disconnect => "disconnect",
            Self::ConnectionLost => "connection_lost",
            Self::Io(_) => "io",
            Self::Decode(DecodeError::TooLarge { .. }) => "packet_too_large",
            Self::Decode(_) => "malformed",
            Self::NotConnected | Self::SecondConnect | Self::ProtocolError(_) => "protocol",
            Self::NotAvailable { .. } => "not_available",
            Self::ConnectTimeout => "connect_timeout",
            Self::KeepAlive => "keep_alive",
            Self::LoginRefused(_) => "login_refused",
            Self::PublishRefused(_) => "publish_refused",
            Self::PublishStalled => "publish_stalled",
            Self::AckStalled => "ack_stalled",
            Self::TakenOver => "taken_over",
            Self::Revoked(_) => "revoked",
            Self::Evicted => "evicted",
            Self::Draining => "draining",
        }
    }

    /// What DISCONNECT says, where the connection is not gone already (MQTT 5 §3.14.2.1).
    #[must_use]
    pub fn reason_code(&self) -> Option<ReasonCode> {
        use ReasonCode as Reason;
        Some(match self {
            Self::Disconnect | Self::ConnectionLost | Self::Io(_) | Self::LoginRefused(_) => {
                return None;
            }
            Self::Decode(error) => error.reason_code(),
            Self::NotConnected | Self::SecondConnect | Self::ProtocolError(_) => {
                Reason::ProtocolError
            }
            Self::NotAvailable { reason, .. } => *reason,
            Self::ConnectTimeout | Self::Evicted => Reason::ServerBusy,
            Self::KeepAlive => Reason::KeepAliveTimeout,
            Self::PublishRefused(_) | Self::Revoked(_) => Reason::NotAuthorized,
            Self::PublishStalled => Reason::QuotaExceeded,
            Self::AckStalled => Reason::ImplementationSpecific,
            Self::TakenOver => Reason::SessionTakenOver,
            Self::Draining => Reason::ServerShuttingDown,
        })
    }
}
