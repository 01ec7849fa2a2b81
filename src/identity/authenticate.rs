//! Who gets in: whether a client is who it says (facts §2.2, §2.4, `DESIGN` §4, §5).
//!
//! [`authenticate`] is the only way to an [`Authenticated`], so what needs one cannot skip it.

use thiserror::Error;

use super::credentials::{Password, SasToken, Signer, TokenError};
use super::{
    Authentication, ClientCertificate, Credentials, Entry, Identity, Registry, Thumbprint,
};

/// A token counts for this long after it has expired, in seconds (facts §2.2).
pub const CLOCK_SKEW_SECONDS: u64 = 300;

/// The hosts that a token may be meant for; an empty one counts for nothing (facts §2.2).
#[derive(Debug, Clone, Copy)]
pub struct Audience<'a> {
    /// The name of the IoT Hub, which the SDKs put into tokens.
    pub iothub_hostname: &'a str,
    /// The name that clients connect to.
    pub gateway_hostname: &'a str,
}

impl Audience<'_> {
    fn includes(&self, host: &str) -> bool {
        let own = [self.iothub_hostname, self.gateway_hostname];
        own.iter()
            .any(|own| !own.is_empty() && own.eq_ignore_ascii_case(host))
    }
}

/// Proof that a client is who it says; made by [`authenticate`] only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authenticated {
    identity: Identity,
    expires_at: Option<u64>,
}

impl Authenticated {
    /// Who it is.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The last second, since 1970, at which what was shown still counts: a token's expiry with
    /// [`CLOCK_SKEW_SECONDS`], or the last second of a certificate.
    #[must_use]
    pub fn expires_at(&self) -> Option<u64> {
        self.expires_at
    }
}

/// Why a client was not let in. The texts never contain anything that was shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Error)]
#[non_exhaustive]
pub enum Denied {
    /// Neither a password nor a certificate.
    #[error("the client showed neither a password nor a certificate")]
    NoCredentials,
    /// The password is no SAS token.
    #[error("the password is no SAS token: {0}")]
    MalformedToken(TokenError),
    /// The token expired more than the tolerated time ago.
    #[error("the token has expired")]
    TokenExpired,
    /// The token is meant for another host.
    #[error("the token is meant for neither the IoT Hub's nor the gateway's host name")]
    TokenHost,
    /// The token is meant for another identity.
    #[error("the token is meant for another identity")]
    TokenIdentity,
    /// Neither key of the identity signed the token.
    #[error("the token is signed with another key")]
    TokenSignature,
    /// The identity does not use keys.
    #[error("the identity is not registered for authentication with keys")]
    TokenNotAccepted,
    /// The identity is not listed.
    #[error("the identity is not registered")]
    UnknownIdentity,
    /// The identity's status.
    #[error("the identity is disabled")]
    Disabled,
    /// The status of the device on which the module lives.
    #[error("the module's device is disabled")]
    DeviceDisabled,
    /// The identity's authentication is `none`.
    #[error("the identity is registered without any means of authentication")]
    NoMethod,
    /// The identity does not use certificates.
    #[error("the identity is not registered for authentication with certificates")]
    CertificateNotAccepted,
    /// The certificate's validity begins later.
    #[error("the certificate is not yet valid")]
    CertificateNotYetValid,
    /// The certificate's validity has ended.
    #[error("the certificate has expired")]
    CertificateExpired,
    /// The certificate is not made for clients (`DESIGN` §5).
    #[error("the certificate's extended key usage does not name client authentication")]
    CertificateUsage,
    /// The certificate's subject is not the identity (`DESIGN` §5).
    #[error("the certificate's common name is not the identity")]
    CertificateName,
    /// The certificate could sign others (facts §2.4).
    #[error("the certificate is a certificate authority's")]
    CertificateIsCa,
    /// Nothing in the trust bundle vouches for the certificate.
    #[error("the certificate does not come from a trusted authority")]
    CertificateUntrusted,
    /// The certificate is not the registered one.
    #[error("the certificate has another thumbprint than those registered")]
    CertificateThumbprint,
}

impl Denied {
    /// A short name for logs and metrics, which stays the same.
    #[must_use]
    pub fn reason(self) -> &'static str {
        match self {
            Self::NoCredentials => "no_credentials",
            Self::MalformedToken(_) => "malformed_token",
            Self::TokenExpired => "token_expired",
            Self::TokenHost => "token_host",
            Self::TokenIdentity => "token_identity",
            Self::TokenSignature => "token_signature",
            Self::TokenNotAccepted => "token_not_accepted",
            Self::UnknownIdentity => "unknown_identity",
            Self::Disabled => "disabled",
            Self::DeviceDisabled => "device_disabled",
            Self::NoMethod => "no_method",
            Self::CertificateNotAccepted => "certificate_not_accepted",
            Self::CertificateNotYetValid => "certificate_not_yet_valid",
            Self::CertificateExpired => "certificate_expired",
            Self::CertificateUsage => "certificate_usage",
            Self::CertificateName => "certificate_name",
            Self::CertificateIsCa => "certificate_is_ca",
            Self::CertificateUntrusted => "certificate_untrusted",
            Self::CertificateThumbprint => "certificate_thumbprint",
        }
    }
}

/// Decides whether a client is who it says (facts §2.2, §2.4). If it shows both a password and a
/// certificate, the password alone counts (facts §1.3). Ask again with the same credentials when
/// the registry has changed or time has passed.
///
/// # Errors
///
/// [`Denied`] with the first reason.
pub fn authenticate(
    registry: &Registry,
    credentials: &Credentials,
    audience: &Audience<'_>,
    now_unix_seconds: u64,
) -> Result<Authenticated, Denied> {
    let Credentials {
        identity,
        password,
        certificate,
    } = credentials;
    let expires_at = match (password, certificate) {
        (Some(Password::Sas(token)), _) => {
            check_token(registry, identity, token, audience, now_unix_seconds)?
        }
        (Some(Password::Other(password)), _) => {
            let why = SasToken::read(password.as_bytes()).err();
            return Err(Denied::MalformedToken(why.unwrap_or(TokenError::NotAToken)));
        }
        (None, Some(shown)) => check_certificate(registry, identity, shown, now_unix_seconds)?,
        (None, None) => return Err(Denied::NoCredentials),
    };
    let identity = identity.clone();
    Ok(Authenticated {
        identity,
        expires_at: Some(expires_at),
    })
}

/// Checks a token in the order of facts §2.2 and returns when it stops counting.
///
/// The signature is computed with two keys in any case, so that the time taken does not tell
/// whether an identity is registered.
fn check_token(
    registry: &Registry,
    identity: &Identity,
    token: &SasToken,
    audience: &Audience<'_>,
    now: u64,
) -> Result<u64, Denied> {
    let expires_at = token.expiry().saturating_add(CLOCK_SKEW_SECONDS);
    if expires_at < now {
        return Err(Denied::TokenExpired);
    }
    if !audience.includes(token.host()) {
        return Err(Denied::TokenHost);
    }
    let signer = token.signer(identity).ok_or(Denied::TokenIdentity)?;
    let entry = registry.get(identity);
    let signing = match signer {
        Signer::Own => entry,
        Signer::Device => registry.device_of(identity),
    };
    let is_genuine = is_signed(token, signing);
    let entry = entry.ok_or(Denied::UnknownIdentity)?;
    let signing = signing.ok_or(Denied::UnknownIdentity)?;
    for entry in [entry, signing] {
        match entry.authentication() {
            Authentication::Sas { .. } => {}
            Authentication::None => return Err(Denied::NoMethod),
            Authentication::SelfSigned(_) | Authentication::CertificateAuthority => {
                return Err(Denied::TokenNotAccepted);
            }
        }
    }
    if !is_genuine {
        return Err(Denied::TokenSignature);
    }
    check_enabled(registry, entry)?;
    Ok(expires_at)
}

/// Whether one of the entry's keys signed; always tries two keys.
fn is_signed(token: &SasToken, entry: Option<&Entry>) -> bool {
    let keys = match entry.map(Entry::authentication) {
        Some(Authentication::Sas { primary, secondary }) => [Some(primary), secondary.as_ref()],
        _ => [None, None],
    };
    keys.into_iter().fold(false, |genuine, key| {
        let matches = token.is_signed_by(key.map_or(&[0; 32], |key| key.as_bytes()));
        genuine | (matches & key.is_some())
    })
}

/// Checks a certificate (facts §2.4, `DESIGN` §5) and returns when it stops counting.
fn check_certificate(
    registry: &Registry,
    identity: &Identity,
    shown: &ClientCertificate,
    now: u64,
) -> Result<u64, Denied> {
    let entry = registry.get(identity).ok_or(Denied::UnknownIdentity)?;
    let thumbprints = match entry.authentication() {
        Authentication::Sas { .. } => return Err(Denied::CertificateNotAccepted),
        Authentication::None => return Err(Denied::NoMethod),
        Authentication::SelfSigned(thumbprints) => Some(thumbprints),
        Authentication::CertificateAuthority => None,
    };
    let is_registered = |all: &Vec<_>| all.iter().any(|one: &Thumbprint| one.is_of(shown));
    check_use(shown, now)?;
    if shown.common_name.as_deref() != Some(identity.as_str()) {
        return Err(Denied::CertificateName);
    }
    match thumbprints {
        Some(thumbprints) if is_registered(thumbprints) => {}
        Some(_) => return Err(Denied::CertificateThumbprint),
        None => check_authority(shown)?,
    }
    check_enabled(registry, entry)?;
    Ok(shown.not_after)
}

/// Whether a certificate that names no identity of the registry is good: the trust bundle vouches
/// for it, and it is made for clients. Returns its last second, since 1970. Who it is, and whether
/// anybody wants it, is for others to say.
///
/// # Errors
///
/// [`Denied`] with the first reason.
pub fn vouched_for(shown: &ClientCertificate, now_unix_seconds: u64) -> Result<u64, Denied> {
    check_use(shown, now_unix_seconds)?;
    check_authority(shown)?;
    Ok(shown.not_after)
}

fn check_use(shown: &ClientCertificate, now: u64) -> Result<(), Denied> {
    if now < shown.not_before {
        return Err(Denied::CertificateNotYetValid);
    }
    if now > shown.not_after {
        return Err(Denied::CertificateExpired);
    }
    if !shown.is_for_client_auth {
        return Err(Denied::CertificateUsage);
    }
    Ok(())
}

fn check_authority(shown: &ClientCertificate) -> Result<(), Denied> {
    if shown.is_ca {
        return Err(Denied::CertificateIsCa);
    }
    if !shown.ca_trusted {
        return Err(Denied::CertificateUntrusted);
    }
    Ok(())
}

/// A module is enabled only if its device is, where that is listed (facts §3.1).
fn check_enabled(registry: &Registry, entry: &Entry) -> Result<(), Denied> {
    if !entry.is_enabled() {
        return Err(Denied::Disabled);
    }
    match registry.device_of(entry.identity()) {
        Some(device) if !device.is_enabled() => Err(Denied::DeviceDisabled),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
