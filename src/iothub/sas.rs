//! SAS tokens and connection strings, made for clients (facts §2.1, §3.2).

use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use percent_encoding::utf8_percent_encode;
use ring::hmac;

use super::ENCODED;
use crate::identity::{Identity, Secret};

pub use crate::identity::credentials::{SasToken, TokenError};

/// What a token of this identity is for: `HOST/devices/DEVICE[/modules/MODULE]` (facts §2.2).
#[must_use]
pub fn resource(iothub_hostname: &str, identity: &Identity) -> String {
    let mut resource = format!("{iothub_hostname}/devices/{}", identity.device_id());
    if let Some(module) = identity.module_id() {
        resource.push_str("/modules/");
        resource.push_str(module);
    }
    resource
}

/// Signs a token for a [`resource`], which counts until `expiry`, in seconds since 1970.
#[must_use]
pub fn sign(key: &[u8], resource: &str, expiry: u64) -> String {
    let resource = utf8_percent_encode(resource, ENCODED).to_string();
    let key = hmac::Key::new(hmac::HMAC_SHA256, key);
    let signature = hmac::sign(&key, format!("{resource}\n{expiry}").as_bytes());
    let signature = BASE64.encode(signature);
    let signature = utf8_percent_encode(&signature, ENCODED);
    format!("SharedAccessSignature sr={resource}&sig={signature}&se={expiry}")
}

/// The connection string of an identity that reaches the hub by a gateway's name (facts §3.2).
#[must_use]
pub fn connection_string(
    iothub_hostname: &str,
    gateway_hostname: Option<&str>,
    identity: &Identity,
    key: &Secret,
) -> String {
    let mut text = format!(
        "HostName={iothub_hostname};DeviceId={}",
        identity.device_id()
    );
    // Writing to a String does not fail.
    if let Some(module) = identity.module_id() {
        let _ = write!(text, ";ModuleId={module}");
    }
    let _ = write!(text, ";SharedAccessKey={}", key.to_base64());
    if let Some(gateway) = gateway_hostname {
        let _ = write!(text, ";GatewayHostName={gateway}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signs_what_is_encoded_in_the_token() {
        let identity = Identity::module("edge-1", "sensor");
        let resource = resource("hub.net", &identity);
        assert_eq!(resource, "hub.net/devices/edge-1/modules/sensor");
        let text = sign(b"key", &resource, 1_700_000_000);
        let (before, after) = text.split_once("&sig=").unwrap();
        let signed = "SharedAccessSignature sr=hub.net%2Fdevices%2Fedge-1%2Fmodules%2Fsensor";
        assert_eq!(before, signed);
        assert!(after.ends_with("%3D&se=1700000000"), "{after}");
        let token = SasToken::parse(&text).unwrap();
        assert!(token.is_signed_by(b"key"));
        assert!(!token.is_signed_by(b"another key") && !token.is_signed_by(b""));
        assert_eq!((token.host(), token.expiry()), ("hub.net", 1_700_000_000));
    }

    /// Expected value computed with another implementation of HMAC-SHA256.
    #[test]
    fn agrees_with_others() {
        let text = sign(b"0123456789abcdef", "hub.net/devices/d", 17);
        let signature = "XiByBP1OZm25ZXHuha3N%2FCH5mQwdk7GDZS7pygo5cEo%3D";
        let resource = "hub.net%2Fdevices%2Fd";
        let expected = format!("SharedAccessSignature sr={resource}&sig={signature}&se=17");
        assert_eq!(text, expected);
    }

    #[test]
    fn connection_strings() {
        let key = Secret::new(&[0, 1, 2]);
        let module = Identity::module("d", "m");
        assert_eq!(
            connection_string("hub.net", Some("gw"), &module, &key),
            "HostName=hub.net;DeviceId=d;ModuleId=m;SharedAccessKey=AAEC;GatewayHostName=gw"
        );
        assert_eq!(
            connection_string("hub.net", None, &Identity::device("d"), &key),
            "HostName=hub.net;DeviceId=d;SharedAccessKey=AAEC"
        );
        assert_eq!(resource("h", &Identity::device("d")), "h/devices/d");
    }
}
