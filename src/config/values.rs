//! Texts of the configuration that stand for something: sizes, addresses, host names, levels.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use toml::de::DeValue;

use crate::diagnostic::nearest;

/// A message and perhaps a hint, for a value that does not parse.
pub(super) type Refusal = (String, Option<String>);

/// A number of bytes, printed with the largest binary unit that divides it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Size(u64);

const UNITS: [(&str, u64); 6] = [
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("KB", 1_000),
];

impl From<u64> for Size {
    fn from(bytes: u64) -> Self {
        Self(bytes)
    }
}

impl From<usize> for Size {
    fn from(bytes: usize) -> Self {
        Self(bytes as u64)
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = UNITS
            .iter()
            .take(3)
            .find(|(_, unit)| self.0 >= *unit && self.0.is_multiple_of(*unit));
        match unit {
            Some((name, unit)) => write!(f, "{}{name}", self.0 / unit),
            None => write!(f, "{} bytes", self.0),
        }
    }
}

/// Reads a size: a number of bytes, perhaps with a unit. `Ok(None)`: beyond 64 bits.
pub(super) fn parse_size(text: &str) -> Result<Option<u64>, ()> {
    let text = text.trim();
    let digits_end = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (digits, unit) = text.split_at(digits_end);
    let unit = unit.trim();
    let factor = match UNITS
        .iter()
        .find(|(name, _)| name.eq_ignore_ascii_case(unit))
    {
        Some((_, factor)) => *factor,
        None if unit.is_empty() => 1,
        None => return Err(()),
    };
    if digits.is_empty() {
        return Err(());
    }
    let number = digits.parse::<u64>().ok();
    Ok(number.and_then(|number| number.checked_mul(factor)))
}

/// A kind of value, with its article.
pub(super) fn kind_of(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "an integer",
        DeValue::Float(_) => "a float",
        DeValue::Boolean(_) => "a boolean",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "an array",
        DeValue::Table(_) => "a table",
    }
}

/// `"a", "b" or "c"`.
pub(super) fn alternatives<'a>(words: impl Iterator<Item = &'a str>) -> String {
    let mut words: Vec<String> = words.map(|word| format!("{word:?}")).collect();
    match words.pop() {
        Some(last) if !words.is_empty() => format!("{} or {last}", words.join(", ")),
        last => last.unwrap_or_default(),
    }
}

/// The choice that a word stands for.
pub(super) fn choose<T: Copy>(text: &str, choices: &[(&'static str, T)]) -> Result<T, Refusal> {
    let words = || choices.iter().map(|(word, _)| *word);
    match choices.iter().find(|(word, _)| *word == text) {
        Some((_, choice)) => Ok(*choice),
        None => Err((
            format!("must be {}, not {text:?}", alternatives(words())),
            did_you_mean(text, words()),
        )),
    }
}

/// The hint for a misspelt name, if something near exists.
pub(super) fn did_you_mean<'c>(
    name: &str,
    candidates: impl IntoIterator<Item = &'c str>,
) -> Option<String> {
    nearest(name, candidates).map(|near| format!("did you mean `{near}`?"))
}

/// An address and a port.
pub(super) fn parse_bind(text: &str) -> Result<SocketAddr, Refusal> {
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    let hint = match text.rsplit_once(':') {
        Some(("", port)) => format!("\"0.0.0.0:{port}\" for all addresses"),
        Some(("localhost", port)) => format!("\"127.0.0.1:{port}\" for this machine only"),
        None if text.parse::<IpAddr>().is_ok() => format!("add a port: \"{text}:8883\""),
        _ => "an IP address and a port, such as \"0.0.0.0:8883\" or \"[::]:8883\"".to_owned(),
    };
    let message = format!("is not an address with a port: {text:?}");
    Err((message, Some(hint)))
}

/// A host name or an IP address, without scheme, port or path.
pub(super) fn parse_hostname(text: &str) -> Result<String, Refusal> {
    let label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    let name = text.len() <= 253 && text.split('.').all(label);
    if name || text.parse::<IpAddr>().is_ok() {
        return Ok(text.to_owned());
    }
    let message = format!("is not a host name: {text:?}");
    let hint = "the name alone, without scheme, port or path";
    Err((message, Some(hint.to_owned())))
}

/// A device id.
pub(super) fn parse_device_id(text: &str) -> Result<String, Refusal> {
    if crate::identity::is_valid_id(text) {
        return Ok(text.to_owned());
    }
    let message = format!("is not a device id: {text:?}");
    let hint = "1 to 128 ASCII letters, digits and - : . + % _ # * ? ! ( ) , = @ ; $ '";
    Err((message, Some(hint.to_owned())))
}

/// A log level, or a list of `target=level`.
pub(super) fn parse_level(text: &str) -> Result<String, Refusal> {
    const LEVELS: [(&str, ()); 5] = [
        ("error", ()),
        ("warn", ()),
        ("info", ()),
        ("debug", ()),
        ("trace", ()),
    ];
    for part in text.split(',') {
        let (target, level) = match part.split_once('=') {
            Some((target, level)) => (target.trim(), level.trim()),
            None => ("edgehub", part.trim()),
        };
        let target_is_path = !target.is_empty()
            && target
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"_:-".contains(&b));
        if !target_is_path {
            let message = format!("has a target that is not a module path: {target:?}");
            return Err((message, Some("such as \"info,edgehub=debug\"".to_owned())));
        }
        choose(level, &LEVELS)?;
    }
    Ok(text.to_owned())
}

/// Addresses that share their first bits, such as `10.0.0.0/8`; a single address has all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AddressRange {
    address: IpAddr,
    bits: u8,
}

impl AddressRange {
    /// Reads `address` or `address/bits`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().ok()?;
        let all = if address.is_ipv4() { 32 } else { 128 };
        let bits = match bits {
            Some(bits) => bits.parse().ok()?,
            None => all,
        };
        (bits <= all).then_some(Self { address, bits })
    }

    /// Whether every address of its family is one of them.
    pub(super) fn is_all(&self) -> bool {
        self.bits == 0
    }

    /// Whether an address is one of them; IPv4 in IPv6 counts as IPv4.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address.to_canonical()) {
            (IpAddr::V4(own), IpAddr::V4(other)) => {
                let differ = u32::from(own) ^ u32::from(other);
                differ.leading_zeros() >= u32::from(self.bits)
            }
            (IpAddr::V6(own), IpAddr::V6(other)) => {
                let differ = u128::from(own) ^ u128::from(other);
                differ.leading_zeros() >= u32::from(self.bits)
            }
            _ => false,
        }
    }
}

pub(super) fn parse_range(text: &str) -> Result<AddressRange, Refusal> {
    AddressRange::parse(text).ok_or_else(|| {
        let message = format!("is not an address or a range: {text:?}");
        (
            message,
            Some("such as \"10.0.0.7\" or \"10.0.0.0/8\"".to_owned()),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_binary_and_decimal_units() {
        for (text, bytes) in [
            ("0", 0),
            ("17", 17),
            ("1KiB", 1_024),
            (" 64 MiB ", 67_108_864),
            ("1gib", 1_073_741_824),
            ("5KB", 5_000),
            ("5MB", 5_000_000),
            ("2GB", 2_000_000_000),
        ] {
            assert_eq!(parse_size(text), Ok(Some(bytes)), "{text}");
        }
        for text in ["", "MiB", "1.5GiB", "-1", "5TiB", "5 M iB", "1KiB2"] {
            assert_eq!(parse_size(text), Err(()), "{text}");
        }
        assert_eq!(parse_size("99999999999GiB"), Ok(None));
        assert_eq!(parse_size("99999999999999999999999"), Ok(None));
        assert_eq!(Size(65_536).to_string(), "64KiB");
        assert_eq!(Size(3 << 30).to_string(), "3GiB");
        assert_eq!(Size(1_000).to_string(), "1000 bytes");
        assert_eq!(Size(0).to_string(), "0 bytes");
    }

    #[test]
    fn address_ranges_compare_the_first_bits() {
        let contains = |range: &str, address: &str| {
            AddressRange::parse(range)
                .unwrap()
                .contains(address.parse().unwrap())
        };
        assert!(contains("10.0.0.0/8", "10.255.1.2"));
        assert!(!contains("10.0.0.0/8", "11.0.0.0"));
        assert!(contains("10.0.0.7", "10.0.0.7"));
        assert!(contains("10.0.0.7", "::ffff:10.0.0.7"));
        assert!(!contains("10.0.0.7", "10.0.0.6"));
        assert!(contains("0.0.0.0/0", "1.2.3.4"));
        assert!(contains("fd00::/8", "fd12::1"));
        assert!(!contains("fd00::/8", "fe12::1"));
        assert!(!contains("fd00::/8", "10.0.0.1"));
        for broken in [
            "",
            "10.0.0.0/33",
            "10.0.0",
            "::/129",
            "10.0.0.0/x",
            "1.2.3.4/",
        ] {
            assert_eq!(AddressRange::parse(broken), None, "{broken}");
        }
    }

    #[test]
    fn host_names_are_names_alone() {
        for name in [
            "localhost",
            "example.azure-devices.net",
            "10.0.0.1",
            "::1",
            "hub_1",
        ] {
            assert!(parse_hostname(name).is_ok(), "{name}");
        }
        let long = "x".repeat(64);
        for name in ["https://x", "a:8883", "a/b", "a b", "a..b", ".a", &long] {
            assert!(parse_hostname(name).is_err(), "{name}");
        }
    }

    #[test]
    fn levels_may_be_lists() {
        for level in ["info", "info,edgehub::session=debug", "warn, edgehub=trace"] {
            assert!(parse_level(level).is_ok(), "{level}");
        }
        for level in [
            "loud",
            "INFO",
            "info,",
            "=debug",
            "info,edgehub=",
            "a b=info",
        ] {
            assert!(parse_level(level).is_err(), "{level}");
        }
    }
}
