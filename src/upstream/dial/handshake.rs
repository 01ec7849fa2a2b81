//! Why TLS failed, in words that say what to do.

use std::io;

use rustls::pki_types::UnixTime;
use rustls::{AlertDescription, CertificateError, Error};
use time::OffsetDateTime;
use tokio_tungstenite::tungstenite::Error as WsError;
use tokio_tungstenite::tungstenite::error::ProtocolError;

use crate::upstream::link::{Failure, Reason};
use crate::upstream::proxy::is_farewell;

/// Names of a certificate that a text lists.
const NAMES_MAX: usize = 5;

/// What TLS says of an error on a connection to `place`; None if it is the socket's. Good for
/// errors after the handshake too: with TLS 1.3 a server refuses our certificate only then.
#[must_use]
pub fn tls_failure(place: &str, error: &io::Error) -> Option<Failure> {
    let error = error.get_ref()?.downcast_ref::<Error>()?;
    Some(Failure {
        reason: Reason::Tls,
        text: format!("{place}: {}", explain(error)),
    })
}

/// Why a handshake failed. A server that ends it without a word has answered.
pub(super) fn failure(place: &str, error: &io::Error) -> Failure {
    if let Some(failure) = tls_failure(place, error) {
        return failure;
    }
    if is_farewell(error) {
        return Failure {
            reason: Reason::Tls,
            text: format!(
                "{place}: the server closed the connection during the TLS handshake: does it \
                 speak TLS on this port, and does it ask for `certificate` and `key`?"
            ),
        };
    }
    Failure {
        reason: Reason::Unreachable,
        text: format!("{place}: the connection broke during the TLS handshake: {error}"),
    }
}

/// Why there is no WebSocket.
pub(super) fn no_websocket(place: &str, path: &str, error: WsError) -> Failure {
    let why = match error {
        WsError::Io(error) => return broken(place, &error),
        WsError::Protocol(ProtocolError::HandshakeIncomplete) => {
            let error = io::ErrorKind::UnexpectedEof.into();
            return broken(place, &error);
        }
        WsError::Http(answer) => format!(
            "the server answers {}: is the `path` {path} in [upstream] right?",
            answer.status()
        ),
        WsError::Protocol(ProtocolError::SecWebSocketSubProtocolError(_)) => {
            format!("the server does not speak MQTT at {path}: check `path` in [upstream]")
        }
        error => format!(
            "the server's answer is no WebSocket handshake: check the port, and `transport` in \
             [upstream]: {error}"
        ),
    };
    Failure {
        reason: Reason::Refused,
        text: format!("{place}: {why}"),
    }
}

/// The socket broke during the handshake of WebSocket, or the server closed it, which is an answer.
fn broken(place: &str, error: &io::Error) -> Failure {
    if let Some(failure) = tls_failure(place, error) {
        return failure;
    }
    if is_farewell(error) {
        return Failure {
            reason: Reason::Refused,
            text: format!(
                "{place}: the server closed the connection during the WebSocket handshake: \
                 does it speak WebSocket on this port?"
            ),
        };
    }
    Failure {
        reason: Reason::Unreachable,
        text: format!("{place}: the connection broke during the WebSocket handshake: {error}"),
    }
}

fn explain(error: &Error) -> String {
    match error {
        Error::InvalidCertificate(error) => explain_certificate(error),
        Error::AlertReceived(alert) => explain_alert(*alert),
        Error::InvalidMessage(_) => "the server's answer is no TLS: check the port, and \
             `transport` in [upstream]"
            .to_owned(),
        error => format!("the TLS handshake failed: {error}"),
    }
}

fn explain_certificate(error: &CertificateError) -> String {
    use CertificateError as E;
    match error {
        // Two authorities of one name differ in their keys only.
        E::UnknownIssuer | E::BadSignature => "the server's certificate is of an authority that \
             is not trusted: set `ca` in [upstream] to that authority's certificate"
            .to_owned(),
        E::ExpiredContext { time, not_after } => format!(
            "the server's certificate was valid until {}, and this device's clock says {}: \
             renew the certificate or set the clock",
            date(*not_after),
            date(*time)
        ),
        E::NotValidYetContext { time, not_before } => format!(
            "the server's certificate is valid from {}, and this device's clock says {}: \
             set the clock",
            date(*not_before),
            date(*time)
        ),
        E::Expired | E::NotValidYet => "the server's certificate is out of its time: renew it or \
             set this device's clock"
            .to_owned(),
        E::NotValidForNameContext { presented, .. } if presented.is_empty() => {
            "the server's certificate has no name in it: it needs a subjectAltName".to_owned()
        }
        E::NotValidForNameContext { presented, .. } => {
            let names: Vec<_> = presented.iter().take(NAMES_MAX).map(bare).collect();
            let more = if presented.len() > NAMES_MAX {
                ", …"
            } else {
                ""
            };
            format!(
                "the server's certificate is for another name: write one of its names into \
                 `servers` ({}{more})",
                names.join(", ")
            )
        }
        E::Revoked => "the server's certificate is revoked".to_owned(),
        E::InvalidPurpose | E::InvalidPurposeContext { .. } => {
            "the server's certificate is not for servers: it needs the extended key usage \
             serverAuth"
                .to_owned()
        }
        error => format!("the server's certificate is not accepted: {error}"),
    }
}

fn explain_alert(alert: AlertDescription) -> String {
    use AlertDescription as A;
    let hint = match alert {
        A::CertificateRequired => {
            "the server asks for a client certificate: set `certificate` and `key` in [upstream]"
        }
        A::NoCertificate
        | A::BadCertificate
        | A::UnsupportedCertificate
        | A::CertificateRevoked
        | A::CertificateExpired
        | A::CertificateUnknown
        | A::UnknownCA
        | A::AccessDenied
        | A::DecryptError => {
            "the server does not accept this device's client certificate: check `certificate` \
             and `key` in [upstream]"
        }
        A::HandshakeFailure => {
            "the server refused the handshake: it may ask for a client certificate (`certificate` \
             and `key` in [upstream]), or share no cipher suite"
        }
        A::ProtocolVersion => "the server speaks neither TLS 1.2 nor TLS 1.3",
        A::UnrecognisedName => "the server does not know the name: check `servers` in [upstream]",
        _ => "the server refused the TLS handshake",
    };
    format!("{hint} (alert {alert:?})")
}

/// Year, month and day, UTC.
fn date(time: UnixTime) -> String {
    let seconds = i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
    OffsetDateTime::from_unix_timestamp(seconds).map_or_else(
        |_| format!("{seconds} s after 1970"),
        |time| time.date().to_string(),
    )
}

/// The name in `DnsName("name")` or `IpAddress(address)`, which come from outside.
fn bare(name: &String) -> String {
    let inner = name.split_once('(').map_or(&**name, |(_, inner)| inner);
    let inner = inner.trim_end_matches(')').trim_matches('"');
    inner.escape_debug().collect()
}
