//! What a connection ended of, in words that say what to do, and whom it concerns.

use std::io;

use super::dial::tls_failure;
use super::link::{Failure, Reason};
use crate::mqtt::v5::ReasonCode;
use crate::mqtt::{ConnectReturnCode, QoS};
use crate::session::{Lost, Why};

/// Why a connection cannot go on.
#[derive(Debug)]
pub(super) enum Broken {
    /// The conversation.
    Lost(Lost),
    /// The socket.
    Io(io::Error),
}

impl From<Lost> for Broken {
    fn from(lost: Lost) -> Self {
        Self::Lost(lost)
    }
}

impl From<io::Error> for Broken {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl Broken {
    /// Whether the server ended it, perhaps for what was sent to it.
    pub(super) fn is_by_server(&self) -> bool {
        match self {
            Self::Io(_) => true,
            Self::Lost(Lost::SentAway(why)) => blames_us(why.code),
            Self::Lost(_) => false,
        }
    }

    /// What to tell people; `is_active`: the server had let us in.
    pub(super) fn failure(&self, server: &str, is_active: bool, is_v5: bool) -> Failure {
        let (reason, text) = match self {
            Self::Io(error) => match tls_failure(server, error) {
                Some(failure) => return failure,
                // With TLS its text tells of a farewell that is missing, and where to read of that.
                None if error.kind() == io::ErrorKind::UnexpectedEof => {
                    (Reason::Lost, "the server closed the connection".to_owned())
                }
                None => (Reason::Lost, error.to_string()),
            },
            Self::Lost(Lost::Refused(code)) => (Reason::Refused, refusal(*code, is_v5)),
            Self::Lost(Lost::RefusedWith(why)) => {
                let hint = hint(why.code);
                let text = format!("the server refused the login: {why}{hint}");
                (Reason::Refused, text)
            }
            Self::Lost(lost @ Lost::SentAway(why)) if turns_away(why) => {
                (Reason::Refused, format!("{lost}{}", hint(why.code)))
            }
            Self::Lost(lost @ Lost::QosZeroOnly) => {
                let text = format!("{lost}: `qos = 0` in [upstream] gives up their safe arrival");
                (Reason::Refused, text)
            }
            Self::Lost(lost) => (Reason::Lost, lost.to_string()),
        };
        let was_in = is_active || reason == Reason::Refused;
        Failure {
            reason: if was_in { reason } else { Reason::Unreachable },
            text: format!("{server}: {text}"),
        }
    }
}

/// Whether a server that says this wants to be left alone for a while.
fn turns_away(why: &Why) -> bool {
    matches!(
        why.code,
        ReasonCode::NotAuthorized
            | ReasonCode::ServerBusy
            | ReasonCode::BadAuthenticationMethod
            | ReasonCode::SessionTakenOver
            | ReasonCode::MessageRateTooHigh
            | ReasonCode::QuotaExceeded
            | ReasonCode::AdministrativeAction
            | ReasonCode::UseAnotherServer
            | ReasonCode::ServerMoved
            | ReasonCode::ConnectionRateExceeded
    )
}

/// Whether a DISCONNECT with this code may be about a message that was sent.
fn blames_us(code: ReasonCode) -> bool {
    matches!(
        code,
        ReasonCode::UnspecifiedError
            | ReasonCode::MalformedPacket
            | ReasonCode::ProtocolError
            | ReasonCode::ImplementationSpecific
            | ReasonCode::NotAuthorized
            | ReasonCode::TopicNameInvalid
            | ReasonCode::PacketTooLarge
            | ReasonCode::QuotaExceeded
            | ReasonCode::PayloadFormatInvalid
            | ReasonCode::QosNotSupported
    )
}

/// What to do about a refusal, as far as the code says it.
fn hint(code: ReasonCode) -> &'static str {
    match code {
        ReasonCode::NotAuthorized | ReasonCode::BadUserNameOrPassword => {
            " (is the identity known and enabled there, are its keys or its password the same, is \
             the clock right?)"
        }
        ReasonCode::UnsupportedProtocolVersion => " (`version = \"3.1.1\"` may be spoken there)",
        ReasonCode::ClientIdNotValid => " (`client_id` in [upstream] says another one)",
        ReasonCode::SessionTakenOver => " (another client has this client id)",
        ReasonCode::UseAnotherServer | ReasonCode::ServerMoved => {
            " (`servers` in [upstream] is to name it)"
        }
        _ => "",
    }
}

fn refusal(code: ConnectReturnCode, is_v5: bool) -> String {
    let what = match code {
        ConnectReturnCode::NotAuthorized => {
            "not authorized (5): is the identity known and enabled there, are its keys the same, \
             is the clock right?"
        }
        ConnectReturnCode::BadUserNameOrPassword => "bad user name or password (4)",
        ConnectReturnCode::IdentifierRejected => "client id rejected (2)",
        ConnectReturnCode::ServerUnavailable => "not available now (3)",
        ConnectReturnCode::UnacceptableProtocolVersion if is_v5 => {
            "it does not speak MQTT 5 (1): `version = \"3.1.1\"` may be spoken there"
        }
        ConnectReturnCode::UnacceptableProtocolVersion => "it does not speak MQTT 3.1.1 (1)",
        ConnectReturnCode::Accepted => "accepted (0)",
    };
    format!("the server refused the login: {what}")
}

/// Tells of filters that the server did not grant.
pub(super) fn subscribed(filters: &[String], codes: &[Result<QoS, ReasonCode>], is_v5: bool) {
    for (filter, code) in filters.iter().zip(codes) {
        match code {
            Err(reason) if is_v5 => {
                tracing::warn!(filter, %reason, "the cloud refused the subscription");
            }
            Err(_) => tracing::warn!(filter, "the cloud refused the subscription"),
            Ok(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn why(code: ReasonCode) -> Why {
        Why {
            code,
            text: Some("as it says".to_owned()),
        }
    }

    #[test]
    fn what_a_server_says_is_told_with_its_reason_string_and_what_to_do() {
        for (lost, reason, text) in [
            (
                Lost::RefusedWith(why(ReasonCode::Banned)),
                Reason::Refused,
                "cloud:1: the server refused the login: banned (0x8a): as it says",
            ),
            (
                Lost::RefusedWith(why(ReasonCode::UnsupportedProtocolVersion)),
                Reason::Refused,
                "cloud:1: the server refused the login: unsupported protocol version (0x84): \
                 as it says (`version = \"3.1.1\"` may be spoken there)",
            ),
            (
                Lost::SentAway(why(ReasonCode::ServerBusy)),
                Reason::Refused,
                "cloud:1: the server ended the connection: server busy (0x89): as it says",
            ),
            (
                Lost::SentAway(why(ReasonCode::ServerShuttingDown)),
                Reason::Lost,
                "cloud:1: the server ended the connection: server shutting down (0x8b): as it says",
            ),
        ] {
            let failure = Broken::Lost(lost).failure("cloud:1", true, true);
            assert_eq!((failure.reason, &*failure.text), (reason, text));
        }
        let old = Lost::Refused(ConnectReturnCode::UnacceptableProtocolVersion);
        let text = Broken::Lost(old).failure("c", false, true).text;
        assert!(text.contains("does not speak MQTT 5 (1)"), "{text}");
    }

    #[test]
    fn only_what_may_be_about_a_message_makes_one_suspicious() {
        let blames = |code| Broken::Lost(Lost::SentAway(why(code))).is_by_server();
        assert!(blames(ReasonCode::PacketTooLarge) && blames(ReasonCode::TopicNameInvalid));
        assert!(!blames(ReasonCode::ServerShuttingDown) && !blames(ReasonCode::SessionTakenOver));
        assert!(Broken::Io(io::ErrorKind::ConnectionReset.into()).is_by_server());
        assert!(!Broken::Lost(Lost::Silent(1)).is_by_server());
    }
}
