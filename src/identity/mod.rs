//! Who a client is, `device` or `device/module`, and how it proves that.
//!
//! [`Registry`] lists the identities, [`Credentials`] is what a client shows, [`authenticate()`]
//! decides who it is, and [`policy::authorize`] what it may do; [`rules`] say who may use which
//! plain topics.

pub mod authenticate;
pub mod credentials;
pub mod password;
pub mod policy;
pub mod registry;
pub mod rules;
pub mod users;

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use serde_json::{Value, json};

pub use self::authenticate::{Audience, Authenticated, Denied, authenticate};
pub use self::credentials::{ClientCertificate, Credentials, Password, SasToken, Secret};
pub use self::registry::Registry;

/// Longest device or module id that is accepted, in bytes (IoT Hub registry limit).
pub const ID_BYTES_MAX: usize = 128;

/// A device or module identity, cheap to clone. Compared exactly (facts §1.3).
#[derive(Clone)]
pub struct Identity {
    text: Arc<str>,
    device_bytes: usize,
}

impl Identity {
    /// A device identity. The id must have passed [`is_valid_id`].
    #[must_use]
    pub fn device(device: &str) -> Self {
        Self {
            text: device.into(),
            device_bytes: device.len(),
        }
    }

    /// A module identity. Both ids must have passed [`is_valid_id`].
    #[must_use]
    pub fn module(device: &str, module: &str) -> Self {
        Self {
            text: format!("{device}/{module}").into(),
            device_bytes: device.len(),
        }
    }

    /// Reads `device` or `device/module`; `None` where an id is not valid.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        match text.split_once('/') {
            None => is_valid_id(text).then(|| Self::device(text)),
            Some((device, module)) => {
                (is_valid_id(device) && is_valid_id(module)).then(|| Self::module(device, module))
            }
        }
    }

    /// One that is in no registry: a client of the plain topic space, of such a kind, by the id
    /// that it chose, which may be any text.
    #[must_use]
    pub fn plain(kind: &str, client_id: &str) -> Self {
        Self::module(&format!("{{{{{kind}}}}}"), client_id)
    }

    /// Whether it is in no registry, as those of [`Identity::plain`].
    #[must_use]
    pub fn is_plain(&self) -> bool {
        self.text.starts_with("{{")
    }

    /// What rules call it: [`rules::Who::name`].
    #[must_use]
    pub fn rule_name(&self) -> &str {
        let kind = self.device_id();
        match kind
            .strip_prefix("{{")
            .and_then(|kind| kind.strip_suffix("}}"))
        {
            None => self.as_str(),
            Some("anonymous") => kind,
            Some(named) => named,
        }
    }

    /// Reads what [`Identity::as_str`] gave, whether it is in the registry's form or not.
    #[must_use]
    pub fn read(text: &str) -> Option<Self> {
        if text.starts_with("{{") {
            let (kind, client_id) = text.split_once('/')?;
            return Some(Self::module(kind, client_id));
        }
        Self::parse(text)
    }

    /// The device id.
    #[must_use]
    pub fn device_id(&self) -> &str {
        self.text.get(..self.device_bytes).unwrap_or_default()
    }

    /// The module id, absent for a device.
    #[must_use]
    pub fn module_id(&self) -> Option<&str> {
        self.text.get(self.device_bytes + 1..)
    }

    /// `device` or `device/module`, which is also the MQTT client id (facts §1.3).
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl PartialEq for Identity {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for Identity {}

impl PartialOrd for Identity {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Identity {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.text.cmp(&other.text)
    }
}

impl Hash for Identity {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.text.hash(state);
    }
}

impl std::borrow::Borrow<str> for Identity {
    fn borrow(&self) -> &str {
        &self.text
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Whether a text may be a device or module id: 1 to 128 ASCII letters, digits and the
/// registry's punctuation (`- : . + % _ # * ? ! ( ) , = @ ; $ '`).
///
/// `#` and `+` are the registry's, and harmless here: ids are compared, never used as filters.
#[must_use]
pub fn is_valid_id(id: &str) -> bool {
    !id.is_empty()
        && id.len() <= ID_BYTES_MAX
        && id
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-:.+%_#*?!(),=@;$'".contains(&b))
}

/// How an identity proves itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Authentication {
    /// By a token that one of two keys has signed.
    Sas {
        /// Tried first.
        primary: Secret,
        /// Tried second.
        secondary: Option<Secret>,
    },
    /// By a certificate with one of these thumbprints.
    SelfSigned(Vec<Thumbprint>),
    /// By a certificate that the trust bundle vouches for.
    CertificateAuthority,
    /// Not at all: it never authenticates.
    None,
}

/// The hash of a certificate's DER.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Thumbprint {
    /// SHA-1, 40 hex digits.
    Sha1([u8; 20]),
    /// SHA-256, 64 hex digits.
    Sha256([u8; 32]),
}

impl Thumbprint {
    /// Reads hex digits in either case; colons and spaces between them do not count.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let digits: Option<Vec<u8>> = text
            .chars()
            .filter(|c| !matches!(c, ':' | ' '))
            .map(|c| c.to_digit(16).map(|digit| digit as u8))
            .collect();
        let digits = digits?;
        let (pairs, odd) = digits.as_chunks::<2>();
        let bytes: Vec<u8> = pairs.iter().map(|[high, low]| high << 4 | low).collect();
        match bytes.len() {
            _ if !odd.is_empty() => None,
            20 => bytes.try_into().ok().map(Self::Sha1),
            32 => bytes.try_into().ok().map(Self::Sha256),
            _ => None,
        }
    }

    /// Whether a certificate has it.
    #[must_use]
    pub fn is_of(&self, certificate: &ClientCertificate) -> bool {
        match self {
            Self::Sha1(hash) => *hash == certificate.sha1,
            Self::Sha256(hash) => *hash == certificate.sha256,
        }
    }
}

/// One identity of the registry. Printing it never shows a key.
#[derive(Clone)]
pub struct Entry {
    identity: Identity,
    enabled: bool,
    authentication: Authentication,
    /// Its JSON as it stands in the file.
    text: String,
}

impl Entry {
    /// A new, enabled identity with two keys.
    #[must_use]
    pub fn sas(identity: Identity, primary: &[u8; 32], secondary: &[u8; 32]) -> Self {
        let (primary, secondary) = (Secret::new(primary), Secret::new(secondary));
        let authentication = json!({"type": "sas", "symmetricKey": {
            "primaryKey": primary.to_base64(), "secondaryKey": secondary.to_base64()}});
        let secondary = Some(secondary);
        Self::new(
            identity,
            &authentication,
            Authentication::Sas { primary, secondary },
        )
    }

    /// A new, enabled identity with a thumbprint as a user writes it; `None` if it is none.
    #[must_use]
    pub fn self_signed(identity: Identity, thumbprint: &str) -> Option<Self> {
        let hash = Thumbprint::parse(thumbprint)?;
        let authentication = json!({"type": "selfSigned", "x509Thumbprint": {
            "primaryThumbprint": thumbprint, "secondaryThumbprint": ""}});
        Some(Self::new(
            identity,
            &authentication,
            Authentication::SelfSigned(vec![hash]),
        ))
    }

    /// A new, enabled identity that a certificate of the trust bundle proves.
    #[must_use]
    pub fn certificate_authority(identity: Identity) -> Self {
        let authentication = json!({"type": "certificateAuthority"});
        Self::new(
            identity,
            &authentication,
            Authentication::CertificateAuthority,
        )
    }

    fn new(identity: Identity, json: &Value, authentication: Authentication) -> Self {
        let device = Value::from(identity.device_id());
        let module = identity.module_id().map_or_else(String::new, |module| {
            format!("\n      \"moduleId\": {},", Value::from(module))
        });
        let text = format!(
            "{{\n      \"deviceId\": {device},{module}\n      \"status\": \"enabled\",\
             \n      \"authentication\": {json}\n    }}"
        );
        Self {
            identity,
            enabled: true,
            authentication,
            text,
        }
    }

    /// Who it is.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Whether its own status is `enabled`; a module also depends on its device.
    #[must_use]
    pub fn is_enabled(&self) -> bool {
        self.enabled
    }

    /// How it proves itself.
    #[must_use]
    pub fn authentication(&self) -> &Authentication {
        &self.authentication
    }
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entry")
            .field("identity", &self.identity)
            .field("enabled", &self.enabled)
            .field("authentication", &self.authentication)
            .finish_non_exhaustive()
    }
}

/// Two entries are equal if they authenticate alike; how they are written does not count.
impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.identity == other.identity
            && self.enabled == other.enabled
            && self.authentication == other.authentication
    }
}

impl Eq for Entry {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_devices_and_modules() {
        let module = Identity::parse("edge-1/sensor").unwrap();
        assert_eq!(module.device_id(), "edge-1");
        assert_eq!(module.module_id(), Some("sensor"));
        assert_eq!(module.to_string(), "edge-1/sensor");
        let device = Identity::parse("leaf-7").unwrap();
        assert_eq!((device.device_id(), device.module_id()), ("leaf-7", None));
    }

    #[test]
    fn thumbprints_are_sha_1_or_sha_256() {
        assert_eq!(
            Thumbprint::parse(&"Aa:".repeat(20)),
            Some(Thumbprint::Sha1([0xaa; 20]))
        );
        assert_eq!(
            Thumbprint::parse(&"0f ".repeat(32)),
            Some(Thumbprint::Sha256([0x0f; 32]))
        );
        for bad in [
            String::new(),
            "a".repeat(41),
            "a".repeat(39),
            "g".repeat(40),
            "é".repeat(20),
        ] {
            assert_eq!(Thumbprint::parse(&bad), None, "{bad}");
        }
    }

    #[test]
    fn refuses_what_is_no_id() {
        for bad in ["", "/", "a/", "/b", "a/b/c", "a b", "ü", "a\0"] {
            assert!(Identity::parse(bad).is_none(), "{bad:?}");
        }
        assert!(!is_valid_id(&"x".repeat(129)));
    }
}
