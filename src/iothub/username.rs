//! The user name of a CONNECT packet: who connects, and with what (facts §1.3).
//!
//! `HOST/DEVICE[/MODULE]/?api-version=…&DeviceClientType=…`: the host is not looked at, nor the
//! value of the version, and the question mark may be missing. It is split at every `/` before
//! anything is decoded.

use percent_encoding::{percent_decode_str, utf8_percent_encode};
use thiserror::Error;

use super::ENCODED;
use crate::identity::{Identity, is_valid_id};

/// How the user names of old machine-learning containers end, with their slashes (facts §1.3).
const UNESCAPED: &str = "/api-version=2017-06-30/DeviceClientType=\
                         Microsoft.Azure.Devices.Client/1.5.1-preview-003";

/// What a user name says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserName {
    /// Who connects. The client id must be the same text.
    pub identity: Identity,
    /// The version of the service's interface; never empty.
    pub api_version: String,
    /// The SDK and its version.
    pub client_type: Option<String>,
    /// The plug-and-play model.
    pub model_id: Option<String>,
    /// On whose behalf a nested hub connects (facts §2.7).
    pub auth_chain: Option<String>,
}

/// Why a text is no user name of a device or module.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Error)]
#[non_exhaustive]
pub enum UserNameError {
    /// Too few or too many slashes.
    #[error("it is not HOST/DEVICE/?… or HOST/DEVICE/MODULE/?…")]
    Segments,
    /// The device or module is empty, or could not be registered.
    #[error("its {0} is not valid")]
    Id(&'static str),
    /// There is no `api-version`, or it is blank.
    #[error("its api-version is missing")]
    ApiVersion,
    /// A value is not UTF-8 once it is decoded.
    #[error("its {0} is not percent-encoded UTF-8")]
    Encoding(&'static str),
}

impl UserName {
    /// Reads a user name.
    ///
    /// # Errors
    ///
    /// [`UserNameError`] if it is none of the forms above.
    pub fn parse(text: &str) -> Result<Self, UserNameError> {
        if let Some(known) = parse_unescaped(text) {
            return known;
        }
        let mut segments = text.split('/').map(str::trim);
        let mut next = || segments.next().ok_or(UserNameError::Segments);
        let (_host, device, third) = (next()?, next()?, next()?);
        let (module, fields) = match segments.next() {
            Some(fields) => (third, fields),
            None => ("", third),
        };
        if segments.next().is_some() {
            return Err(UserNameError::Segments);
        }
        let identity = identity(device, module)?;
        let fields = match fields.strip_prefix('?') {
            Some(fields) => fields,
            None if fields.contains("api-version=") => fields,
            None => return Err(UserNameError::ApiVersion),
        };
        let api_version =
            field(fields, "api-version")?.filter(|version| !version.trim().is_empty());
        Ok(Self {
            identity,
            api_version: api_version.ok_or(UserNameError::ApiVersion)?,
            client_type: field(fields, "DeviceClientType")?,
            model_id: field(fields, "model-id")?,
            auth_chain: field(fields, "auth-chain")?,
        })
    }
}

/// The client type of this hub, before its version: whoever gets messages from it counts hops.
const HUB_TYPE: &str = "edgehub/";
/// The version of the service's interface that the hub speaks upwards.
const API_VERSION: &str = "2018-06-30";

impl UserName {
    /// Whether it is a hub that connects.
    #[must_use]
    pub fn is_hub(&self) -> bool {
        let client_type = self.client_type.as_deref();
        client_type.is_some_and(|name| name.starts_with(HUB_TYPE))
    }

    /// The user name with which the hub connects upwards for an identity.
    #[must_use]
    pub fn of_hub(iothub_hostname: &str, identity: &Identity) -> String {
        let client_type = format!("{HUB_TYPE}{}", env!("CARGO_PKG_VERSION"));
        let client_type = utf8_percent_encode(&client_type, ENCODED);
        format!(
            "{iothub_hostname}/{identity}/?api-version={API_VERSION}&DeviceClientType={client_type}"
        )
    }
}

/// The one form with slashes in its values; `None` if the text is another.
fn parse_unescaped(text: &str) -> Option<Result<UserName, UserNameError>> {
    let at = text.len().checked_sub(UNESCAPED.len())?;
    let (who, end) = text.split_at_checked(at)?;
    if !end.eq_ignore_ascii_case(UNESCAPED) {
        return None;
    }
    let (_, who) = who.split_once('/')?;
    let (device, module) = who.split_once('/')?;
    Some(
        identity(device.trim(), module.trim()).map(|identity| UserName {
            identity,
            api_version: "2017-06-30".to_owned(),
            client_type: Some("Microsoft.Azure.Devices.Client/1.5.1-preview-003".to_owned()),
            model_id: None,
            auth_chain: None,
        }),
    )
}

/// An empty module means the device itself.
fn identity(device: &str, module: &str) -> Result<Identity, UserNameError> {
    if !is_valid_id(device) {
        return Err(UserNameError::Id("device id"));
    }
    match module {
        "" => Ok(Identity::device(device)),
        module if is_valid_id(module) => Ok(Identity::module(device, module)),
        _ => Err(UserNameError::Id("module id")),
    }
}

/// The first value with this name, decoded.
fn field(fields: &str, name: &'static str) -> Result<Option<String>, UserNameError> {
    let mut pairs = fields
        .split('&')
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    let Some((_, value)) = pairs.find(|(key, _)| *key == name) else {
        return Ok(None);
    };
    match percent_decode_str(value).decode_utf8() {
        Ok(value) => Ok(Some(value.into_owned())),
        Err(_) => Err(UserNameError::Encoding(name)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_the_sdks_send() {
        for (text, who, version, client) in [
            (
                "hub.net/d/m/?api-version=2019-10-01&DeviceClientType=azure-iot-device-iothub-py\
                 %2F2.14.0%283.11.7%3BLinux%29",
                "d/m",
                "2019-10-01",
                "azure-iot-device-iothub-py/2.14.0(3.11.7;Linux)",
            ),
            (
                "hub.net/d/m/?api-version=2021-04-12&DeviceClientType=azure-iot-device%2F1.18.4\
                 %20(node%20v20)",
                "d/m",
                "2021-04-12",
                "azure-iot-device/1.18.4 (node v20)",
            ),
            (
                "hub.net/d/?api-version=2020-09-30&DeviceClientType=.NET%2F1.21&DeviceClientType=b",
                "d",
                "2020-09-30",
                ".NET/1.21",
            ),
            (
                "hub.net/d/m/api-version=2017-06-30/devicecLienttype=\
                 Microsoft.Azure.Devices.Client/1.5.1-preview-003",
                "d/m",
                "2017-06-30",
                "Microsoft.Azure.Devices.Client/1.5.1-preview-003",
            ),
        ] {
            let name = UserName::parse(text).unwrap();
            assert_eq!(name.identity.as_str(), who);
            assert_eq!(name.api_version, version);
            assert_eq!(name.client_type.as_deref(), Some(client));
        }
    }

    #[test]
    fn other_forms() {
        for (text, who) in [
            ("h/d/?api-version=1", "d"),
            ("/d/?api-version=1", "d"),
            ("h/d/api-version=1", "d"),
            ("h/d/m/api-version=1", "d/m"),
            ("h/d//?api-version=1", "d"),
            (" h / d / m / ?api-version=1", "d/m"),
            ("h/d/m/?x&api-version=anything&y=", "d/m"),
        ] {
            let name = UserName::parse(text).unwrap();
            assert_eq!(name.identity.as_str(), who, "{text}");
            assert_eq!(name.client_type, None);
        }
        let nested = "h/d/m/?api-version=1&model-id=dtmi%3Aa%3B1&auth-chain=d%2Fm%3Be1%3Be2";
        let nested = UserName::parse(nested).unwrap();
        assert_eq!(nested.model_id.as_deref(), Some("dtmi:a;1"));
        assert_eq!(nested.auth_chain.as_deref(), Some("d/m;e1;e2"));
    }

    #[test]
    fn refused_forms() {
        for (text, why) in [
            ("", UserNameError::Segments),
            ("h/d", UserNameError::Segments),
            ("h/d?api-version=1", UserNameError::Segments),
            ("h/d/m/n/?api-version=1", UserNameError::Segments),
            (
                "h/d/m/?api-version=1&DeviceClientType=a/b",
                UserNameError::Segments,
            ),
            ("h//?api-version=1", UserNameError::Id("device id")),
            ("h/ /m/?api-version=1", UserNameError::Id("device id")),
            ("h/d/a b/?api-version=1", UserNameError::Id("module id")),
            ("h/d/m", UserNameError::ApiVersion),
            ("h/d/m/", UserNameError::ApiVersion),
            ("h/d/m/?", UserNameError::ApiVersion),
            ("h/d/m/?api-version=", UserNameError::ApiVersion),
            ("h/d/m/?api-version=%20", UserNameError::ApiVersion),
            ("h/d/m/?Api-Version=1", UserNameError::ApiVersion),
            (
                "h/d/m/?api-version=1&model-id=%ff",
                UserNameError::Encoding("model-id"),
            ),
        ] {
            assert_eq!(UserName::parse(text), Err(why), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_safe(text in "\\PC*", end in "[/?=&%a-]{0,20}") {
            let _ = UserName::parse(&text);
            let _ = UserName::parse(&format!("{text}{UNESCAPED}"));
            let _ = UserName::parse(&format!("h/d/?api-version={end}"));
        }
    }
}
