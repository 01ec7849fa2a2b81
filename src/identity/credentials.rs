//! What a client shows to prove who it is: a SAS token or a certificate (facts §2.1, §2.4).
//!
//! Everything here only reads what was shown; [`super::authenticate()`] decides. Secrets are kept
//! in [`Secret`], which never prints itself.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use percent_encoding::percent_decode_str;
use ring::{digest, hmac};
use thiserror::Error;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::Identity;

/// Longest password that is read as a token, in bytes; the SDKs' tokens have about 200.
pub const TOKEN_BYTES_MAX: usize = 4096;

/// Everything that one connection has shown.
#[derive(Debug, Clone)]
pub struct Credentials {
    /// Who the client says it is, by client id and user name (facts §1.3).
    pub identity: Identity,
    /// The password of the CONNECT packet, if there was one that is not empty.
    pub password: Option<Password>,
    /// The client certificate of the TLS handshake, whose signature the handshake has verified.
    pub certificate: Option<ClientCertificate>,
}

/// A password, read as far as it can be.
#[derive(Debug, Clone)]
pub enum Password {
    /// A well-formed SAS token.
    Sas(SasToken),
    /// Anything else, which no identity accepts.
    Other(Secret),
}

impl Password {
    /// Reads the password of a CONNECT packet; an empty one counts as none (facts §1.3).
    #[must_use]
    pub fn read(password: &[u8]) -> Option<Self> {
        if password.is_empty() {
            return None;
        }
        Some(match SasToken::read(password) {
            Ok(token) => Self::Sas(token),
            Err(_) => Self::Other(Secret::new(password)),
        })
    }
}

/// Bytes that must not be seen: a key, or a password. Printing shows `***`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Box<[u8]>);

impl Secret {
    /// Keeps a copy of the bytes.
    #[must_use]
    pub fn new(bytes: &[u8]) -> Self {
        Self(bytes.into())
    }

    /// Reads a key as the registry writes it (facts §3.1); `None` if it is no base64 or is empty.
    #[must_use]
    pub fn from_base64(text: &str) -> Option<Self> {
        let bytes = BASE64.decode(text).ok()?;
        (!bytes.is_empty()).then(|| Self(bytes.into()))
    }

    /// The bytes themselves, to sign with.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The key as the registry and connection strings write it.
    #[must_use]
    pub fn to_base64(&self) -> String {
        BASE64.encode(&self.0)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// Why a password is no SAS token. The texts never contain any of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Error)]
#[non_exhaustive]
pub enum TokenError {
    /// Longer than [`TOKEN_BYTES_MAX`].
    #[error("it is longer than {TOKEN_BYTES_MAX} bytes")]
    TooLong,
    /// Not UTF-8.
    #[error("it is not UTF-8 text")]
    NotText,
    /// Not the word `SharedAccessSignature` and one more word (facts §2.1).
    #[error("it is not the word SharedAccessSignature followed by the fields")]
    NotAToken,
    /// A field without `=`.
    #[error("one of its fields has no value")]
    NoValue,
    /// A field that must be there is missing or empty.
    #[error("its field {0} is missing")]
    Missing(&'static str),
    /// A field is there twice.
    #[error("its field {0} is there twice")]
    Repeated(&'static str),
    /// `sr` names no device and no module.
    #[error("its field sr is not HOST/devices/DEVICE or HOST/devices/DEVICE/modules/MODULE")]
    Resource,
    /// `sig` is no base64.
    #[error("its field sig is not percent-encoded base64")]
    Signature,
    /// `se` is no number.
    #[error("its field se is not a time in whole seconds")]
    Expiry,
}

/// A SAS token that is well formed, and not yet verified (facts §2.1).
#[derive(Clone)]
pub struct SasToken {
    /// What was signed: `sr` as it stood in the token, a line feed, and `se`.
    signed: String,
    signature: Vec<u8>,
    expiry: u64,
    /// `sr` decoded: `HOST/devices/DEVICE[/modules/MODULE]`.
    resource: String,
}

/// Whose key has to have signed a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signer {
    /// The identity's own.
    Own,
    /// That of the device on which the module lives (facts §2.2, step 5).
    Device,
}

impl SasToken {
    /// Reads a password.
    ///
    /// # Errors
    ///
    /// [`TokenError`] if it is no well-formed token.
    pub fn read(password: &[u8]) -> Result<Self, TokenError> {
        if password.len() > TOKEN_BYTES_MAX {
            return Err(TokenError::TooLong);
        }
        Self::parse(std::str::from_utf8(password).map_err(|_| TokenError::NotText)?)
    }

    /// Reads `SharedAccessSignature sr=…&sig=…&se=…`: fields in any order, their names in any
    /// case, unknown ones ignored. `sr` is signed as it stands, the others are decoded.
    ///
    /// # Errors
    ///
    /// [`TokenError`] if it is no well-formed token.
    pub fn parse(token: &str) -> Result<Self, TokenError> {
        let mut words = token.split_whitespace();
        let (Some("SharedAccessSignature"), Some(fields), None) =
            (words.next(), words.next(), words.next())
        else {
            return Err(TokenError::NotAToken);
        };
        let (mut sr, mut sig, mut se) = (None, None, None);
        for field in fields.split('&') {
            let (name, value) = field.split_once('=').ok_or(TokenError::NoValue)?;
            for (wanted, slot) in [("sr", &mut sr), ("sig", &mut sig), ("se", &mut se)] {
                if name.eq_ignore_ascii_case(wanted) && slot.replace(value).is_some() {
                    return Err(TokenError::Repeated(wanted));
                }
            }
        }
        let sr = sr.ok_or(TokenError::Missing("sr"))?;
        let sig = decoded(sig.ok_or(TokenError::Missing("sig"))?).ok_or(TokenError::Signature)?;
        let se = decoded(se.ok_or(TokenError::Missing("se"))?).ok_or(TokenError::Expiry)?;
        let resource = decoded(sr).ok_or(TokenError::Resource)?;
        split_resource(&resource).ok_or(TokenError::Resource)?;
        if se.is_empty() || !se.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(TokenError::Expiry);
        }
        Ok(Self {
            signed: format!("{sr}\n{se}"),
            signature: BASE64.decode(sig).map_err(|_| TokenError::Signature)?,
            expiry: se.parse().map_err(|_| TokenError::Expiry)?,
            resource,
        })
    }

    /// When it expires, in seconds since 1970, without any tolerance.
    #[must_use]
    pub fn expiry(&self) -> u64 {
        self.expiry
    }

    /// The host that it is meant for.
    #[must_use]
    pub fn host(&self) -> &str {
        split_resource(&self.resource).map_or("", |(host, _, _)| host)
    }

    /// Whose key must have signed it to stand for this identity; `None` if it names another one.
    /// Ids are compared without regard to case (facts §2.2, step 2).
    #[must_use]
    pub fn signer(&self, identity: &Identity) -> Option<Signer> {
        let (_, device, module) = split_resource(&self.resource)?;
        if !device.eq_ignore_ascii_case(identity.device_id()) {
            return None;
        }
        match (module, identity.module_id()) {
            (None, None) => Some(Signer::Own),
            (None, Some(_)) => Some(Signer::Device),
            (Some(named), Some(own)) if named.eq_ignore_ascii_case(own) => Some(Signer::Own),
            (Some(_), _) => None,
        }
    }

    /// Whether this key signed it; takes the same time whatever the signature is.
    #[must_use]
    pub fn is_signed_by(&self, key: &[u8]) -> bool {
        let key = hmac::Key::new(hmac::HMAC_SHA256, key);
        hmac::verify(&key, self.signed.as_bytes(), &self.signature).is_ok()
    }
}

impl fmt::Debug for SasToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SasToken")
            .field("resource", &self.resource)
            .field("expiry", &self.expiry)
            .finish_non_exhaustive()
    }
}

fn decoded(text: &str) -> Option<String> {
    let text = percent_decode_str(text).decode_utf8().ok()?;
    Some(text.into_owned())
}

/// Host, device and module of a decoded audience, which has three or five parts (facts §2.2).
fn split_resource(resource: &str) -> Option<(&str, &str, Option<&str>)> {
    let mut parts = resource.split('/');
    let (host, devices, device) = (parts.next()?, parts.next()?, parts.next()?);
    let module = match (parts.next(), parts.next(), parts.next()) {
        (None, _, _) => None,
        (Some("modules"), Some(module), None) if !module.is_empty() => Some(module),
        _ => return None,
    };
    let whole = !host.is_empty() && devices == "devices" && !device.is_empty();
    whole.then_some((host, device, module))
}

/// A DER certificate could not be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Error)]
#[error("the client certificate is not a well-formed X.509 certificate")]
pub struct CertificateError;

/// What counts of a client certificate (facts §2.4, `DESIGN` §5).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientCertificate {
    /// SHA-1 of the DER, which old thumbprints are.
    pub sha1: [u8; 20],
    /// SHA-256 of the DER.
    pub sha256: [u8; 32],
    /// The subject's common name, if it has exactly one that is text.
    pub common_name: Option<String>,
    /// Whether its basic constraints say that it is a certificate authority.
    pub is_ca: bool,
    /// Whether its extended key usage names client authentication.
    pub is_for_client_auth: bool,
    /// First second of its validity, since 1970.
    pub not_before: u64,
    /// Last second of its validity, since 1970.
    pub not_after: u64,
    /// Whether the TLS shell found a chain from it to the trust bundle.
    pub ca_trusted: bool,
}

impl ClientCertificate {
    /// Reads a leaf certificate. `ca_trusted` says whether its chain leads to the trust bundle.
    ///
    /// # Errors
    ///
    /// [`CertificateError`] if it is no X.509 certificate, or an extension is there twice.
    pub fn from_der(leaf: &[u8], ca_trusted: bool) -> Result<Self, CertificateError> {
        let (rest, certificate) = X509Certificate::from_der(leaf).map_err(|_| CertificateError)?;
        if !rest.is_empty() {
            return Err(CertificateError);
        }
        let constraints = certificate
            .basic_constraints()
            .map_err(|_| CertificateError)?;
        let usage = certificate
            .extended_key_usage()
            .map_err(|_| CertificateError)?;
        let mut names = certificate.subject().iter_common_name();
        let common_name = match (names.next(), names.next()) {
            (Some(name), None) => name.as_str().ok().map(str::to_owned),
            _ => None,
        };
        let validity = certificate.validity();
        Ok(Self {
            sha1: digest_of(&digest::SHA1_FOR_LEGACY_USE_ONLY, leaf)?,
            sha256: digest_of(&digest::SHA256, leaf)?,
            common_name,
            is_ca: constraints.is_some_and(|extension| extension.value.ca),
            is_for_client_auth: usage.is_some_and(|extension| extension.value.client_auth),
            not_before: seconds(validity.not_before.timestamp()),
            not_after: seconds(validity.not_after.timestamp()),
            ca_trusted,
        })
    }
}

fn digest_of<const N: usize>(
    algorithm: &'static digest::Algorithm,
    bytes: &[u8],
) -> Result<[u8; N], CertificateError> {
    let digest = digest::digest(algorithm, bytes);
    digest.as_ref().try_into().map_err(|_| CertificateError)
}

/// Times before 1970 count as 1970.
fn seconds(timestamp: i64) -> u64 {
    u64::try_from(timestamp).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TOKEN: &str = "SharedAccessSignature sr=hub.net%2Fdevices%2FEdge-1%2Fmodules%2Fsensor\
                         &sig=qqo%3D&se=1700000000&skn=";

    #[test]
    fn reads_a_token_in_any_field_order_and_case() {
        let token = SasToken::parse(TOKEN).unwrap();
        assert_eq!((token.host(), token.expiry()), ("hub.net", 1_700_000_000));
        assert_eq!(
            token.signed,
            "hub.net%2Fdevices%2FEdge-1%2Fmodules%2Fsensor\n1700000000"
        );
        assert_eq!(token.signature, [0xaa, 0xaa]);
        let other = "SharedAccessSignature SE=17&Sig=qqo%3d&sR=h/devices/d";
        let token = SasToken::parse(other).unwrap();
        assert_eq!((token.host(), token.expiry()), ("h", 17));
    }

    #[test]
    fn says_whose_key_must_have_signed() {
        let id = |text| Identity::parse(text).unwrap();
        let module = SasToken::parse(TOKEN).unwrap();
        assert_eq!(module.signer(&id("edge-1/SENSOR")), Some(Signer::Own));
        for other in ["edge-1", "edge-1/filter", "edge-2/sensor"] {
            assert_eq!(module.signer(&id(other)), None, "{other}");
        }
        let device = SasToken::parse("SharedAccessSignature sr=h/devices/d&sig=qqo=&se=1").unwrap();
        assert_eq!(device.signer(&id("d")), Some(Signer::Own));
        assert_eq!(device.signer(&id("d/m")), Some(Signer::Device));
        assert_eq!(device.signer(&id("e/m")), None);
    }

    #[test]
    fn refuses_what_is_no_token() {
        for bad in [
            "",
            "secret",
            "SharedAccessSignature",
            "sharedaccesssignature sr=h",
        ] {
            assert_eq!(
                SasToken::parse(bad).err(),
                Some(TokenError::NotAToken),
                "{bad}"
            );
        }
        for (fields, why) in [
            ("sr=h/devices/d&sig=qqo%3D &se=1", TokenError::NotAToken),
            ("sr=h/devices/d&sig=qqo%3D&se", TokenError::NoValue),
            ("sig=qqo%3D&se=1", TokenError::Missing("sr")),
            ("sr=h/devices/d&se=1", TokenError::Missing("sig")),
            ("sr=h/devices/d&sig=qqo%3D", TokenError::Missing("se")),
            ("sr=h/devices/d&se=1&SE=2", TokenError::Repeated("se")),
            ("sr=h/devices/d&sig=%%%&se=1", TokenError::Signature),
            ("sr=h/devices/d&sig=%FF&se=1", TokenError::Signature),
            ("sr=h/devices/d&sig=qqo%3D&se=+1", TokenError::Expiry),
            ("sr=h/devices/d&sig=qqo%3D&se=", TokenError::Expiry),
            ("sr=h/devices&sig=qqo%3D&se=1", TokenError::Resource),
            ("sr=h/devices/d/modules&sig=a&se=1", TokenError::Resource),
            (
                "sr=h/devices/d/modules/m/x&sig=a&se=1",
                TokenError::Resource,
            ),
            ("sr=/devices/d&sig=a&se=1", TokenError::Resource),
            ("sr=h/things/d&sig=a&se=1", TokenError::Resource),
        ] {
            let token = format!("SharedAccessSignature {fields}");
            assert_eq!(SasToken::parse(&token).err(), Some(why), "{fields}");
        }
        assert_eq!(SasToken::read(&[0xff]).err(), Some(TokenError::NotText));
        let long = vec![b'a'; TOKEN_BYTES_MAX + 1];
        assert_eq!(SasToken::read(&long).err(), Some(TokenError::TooLong));
    }

    #[test]
    fn secrets_do_not_print() {
        let shown = format!(
            "{:?} {:?}",
            Secret::new(b"hidden"),
            Password::read(b"hidden")
        );
        assert!(
            !shown.contains("hidden") && !shown.contains("104"),
            "{shown}"
        );
        let shown = format!("{:?}", SasToken::parse(TOKEN).unwrap());
        assert!(
            !shown.contains("qqo") && !shown.contains("170, "),
            "{shown}"
        );
        assert!(Password::read(b"").is_none());
        assert_eq!(Secret::from_base64("AAEC").unwrap().as_bytes(), [0, 1, 2]);
        assert_eq!(Secret::from_base64(""), None);
        assert_eq!(Secret::from_base64("AAE"), None);
    }

    #[test]
    fn what_is_no_certificate_is_an_error() {
        assert_eq!(
            ClientCertificate::from_der(b"", true),
            Err(CertificateError)
        );
        assert_eq!(
            ClientCertificate::from_der(&[0x30, 0x03, 2, 1, 1], true),
            Err(CertificateError)
        );
    }

    proptest! {
        #[test]
        fn any_password_is_safe(
            bytes in prop::collection::vec(any::<u8>(), 0..200),
            text in "\\PC*",
        ) {
            let _ = Password::read(&bytes);
            let _ = SasToken::parse(&format!("SharedAccessSignature {text}"));
            let _ = ClientCertificate::from_der(&bytes, false);
        }
    }
}
