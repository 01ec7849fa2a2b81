//! A user's password as the users file keeps it: hashed by bcrypt, as `htpasswd -B` writes it, or
//! by Argon2id, as a PHC string.
//!
//! What a line may ask for is bounded: nobody's login takes seconds or much memory.

use std::fmt;
use std::str::FromStr;

use argon2::password_hash::phc::ParamsString;
use argon2::{Algorithm, Argon2, Params, PasswordHash, PasswordHasher, Version};
use base64::alphabet::BCRYPT;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use base64::engine::{DecodePaddingMode, Engine as _};
use subtle::ConstantTimeEq as _;
use thiserror::Error;

/// Highest cost of bcrypt: each step doubles the work, and at 12 it takes about 250 ms on a
/// desktop and a second on a small board.
pub const BCRYPT_COST_MAX: u32 = 12;
/// Lowest cost that bcrypt has.
const BCRYPT_COST_MIN: u32 = 4;
/// Most memory of Argon2id (its `m`), in KiB; two are computed at a time.
pub const ARGON2_KIB_MAX: u32 = 64 * 1024;
/// Most work of Argon2id: memory in KiB times passes (`m` × `t`).
pub const ARGON2_WORK_MAX: u32 = 4 * ARGON2_KIB_MAX;
/// Most lanes of Argon2id (its `p`).
const ARGON2_LANES_MAX: u32 = 16;
/// Longest password in bytes: a longer one is nobody's.
pub const PASSWORD_BYTES_MAX: usize = 1024;
/// What bcrypt looks at of a password and the NUL at its end.
const BCRYPT_BYTES_MAX: usize = 72;

/// What the hub's own command writes: as hard to guess as the 19 MiB that are often recommended,
/// with half of the memory and twice the passes, for devices with little of it.
const OWN_KIB: u32 = 9 * 1024;
const OWN_PASSES: u32 = 4;

/// bcrypt's own base64.
const BCRYPT_BASE64: GeneralPurpose = GeneralPurpose::new(
    &BCRYPT,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::RequireNone)
        .with_decode_allow_trailing_bits(true),
);

/// Why a text is no hash that counts. Never contains any of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum HashError {
    /// Another algorithm, or a password as it is.
    #[error("the password is not hashed by bcrypt or Argon2id")]
    Unknown,
    /// It begins like bcrypt.
    #[error("the bcrypt hash does not read: it is $2y$COST$ and 53 more characters")]
    Bcrypt,
    /// It takes too long, or bcrypt has no such cost.
    #[error("bcrypt's cost {0} is not from {BCRYPT_COST_MIN} to {BCRYPT_COST_MAX}")]
    BcryptCost(u32),
    /// It begins like Argon2id.
    #[error("the Argon2id hash does not read: it is $argon2id$v=19$m=…,t=…,p=…$SALT$HASH")]
    Argon2,
    /// It takes too much memory.
    #[error("Argon2id's m is over {ARGON2_KIB_MAX} KiB")]
    Argon2Memory,
    /// It takes too long.
    #[error("Argon2id's m × t is over {ARGON2_WORK_MAX}")]
    Argon2Work,
    /// More lanes than there is use for.
    #[error("Argon2id's p is over {ARGON2_LANES_MAX}")]
    Argon2Lanes,
}

/// A password's hash. Printing shows `***`.
#[derive(Clone)]
pub struct StoredHash {
    text: Box<str>,
    parts: Parts,
}

#[derive(Clone)]
enum Parts {
    Bcrypt {
        cost: u32,
        salt: [u8; 16],
        hash: [u8; 23],
    },
    Argon2(Box<PasswordHash>, Params),
}

impl StoredHash {
    /// Reads a hash.
    ///
    /// # Errors
    /// What is wrong with it, or that it costs too much.
    pub fn parse(text: &str) -> Result<Self, HashError> {
        let parts = if let Some(rest) = ["$2a$", "$2b$", "$2y$"]
            .iter()
            .find_map(|start| text.strip_prefix(start))
        {
            parse_bcrypt(rest)?
        } else if text.starts_with("$argon2id$") {
            parse_argon2(text)?
        } else {
            return Err(HashError::Unknown);
        };
        let text = text.into();
        Ok(Self { text, parts })
    }

    /// Hashes a password by Argon2id; `salt` is random. Takes as long as a login.
    ///
    /// # Errors
    /// There is no memory for it.
    pub fn make(password: &[u8], salt: [u8; 16]) -> Result<Self, String> {
        let failed = |error: &dyn fmt::Display| format!("the password cannot be hashed: {error}");
        let params = Params::new(OWN_KIB, OWN_PASSES, 1, None).map_err(|error| failed(&error))?;
        let made = argon2(params).hash_password_with_salt(password, &salt);
        let text = made.map_err(|error| failed(&error))?.to_string();
        Self::parse(&text).map_err(|error| failed(&error))
    }

    /// The hash as it is written.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Whether it is this password's; `None` where there is no memory to find out. Takes long, on
    /// purpose: up to about a second on a small device.
    #[must_use]
    pub fn is_of(&self, password: &[u8]) -> Option<bool> {
        match &self.parts {
            Parts::Bcrypt { cost, salt, hash } => {
                let mut text = [0; BCRYPT_BYTES_MAX];
                // A text in C ends at its NUL; what is longer than bcrypt looks at is cut.
                let bytes = (password.len() + 1).min(BCRYPT_BYTES_MAX);
                for (to, from) in text.iter_mut().zip(password) {
                    *to = *from;
                }
                let found = bcrypt::bcrypt(*cost, *salt, text.get(..bytes)?);
                let same: bool = found.get(..hash.len())?.ct_eq(hash).into();
                Some(same && !password.contains(&0))
            }
            Parts::Argon2(stored, params) => {
                let (salt, hash) = (stored.salt.as_ref()?, stored.hash.as_ref()?);
                let mut found = vec![0; hash.len()];
                argon2(params.clone())
                    .hash_password_into(password, salt, &mut found)
                    .ok()?;
                Some(found.ct_eq(hash.as_bytes()).into())
            }
        }
    }
}

fn argon2(params: Params) -> Argon2<'static> {
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
}

/// `COST$`, 22 characters of salt and 31 of hash.
fn parse_bcrypt(rest: &str) -> Result<Parts, HashError> {
    let (cost, rest) = rest.split_once('$').ok_or(HashError::Bcrypt)?;
    let is_cost = cost.len() == 2 && cost.bytes().all(|byte| byte.is_ascii_digit());
    let cost = u32::from_str(cost).ok().filter(|_| is_cost);
    let cost = cost.ok_or(HashError::Bcrypt)?;
    let (salt, hash) = rest.split_at_checked(22).ok_or(HashError::Bcrypt)?;
    let salt = BCRYPT_BASE64.decode(salt).ok();
    let hash = BCRYPT_BASE64.decode(hash).ok();
    let parts = Parts::Bcrypt {
        cost,
        salt: fixed(salt)?,
        hash: fixed(hash)?,
    };
    if !(BCRYPT_COST_MIN..=BCRYPT_COST_MAX).contains(&cost) {
        return Err(HashError::BcryptCost(cost));
    }
    Ok(parts)
}

fn fixed<const N: usize>(bytes: Option<Vec<u8>>) -> Result<[u8; N], HashError> {
    bytes
        .and_then(|bytes| bytes.try_into().ok())
        .ok_or(HashError::Bcrypt)
}

fn parse_argon2(text: &str) -> Result<Parts, HashError> {
    let stored = PasswordHash::new(text).map_err(|_| HashError::Argon2)?;
    let number = |params: &ParamsString, name| params.get_decimal(name).ok_or(HashError::Argon2);
    let memory_kib = number(&stored.params, "m")?;
    let passes = number(&stored.params, "t")?;
    let lanes = number(&stored.params, "p")?;
    let hash = stored.hash.as_ref().ok_or(HashError::Argon2)?;
    let has_all = stored.version == Some(Version::V0x13.into())
        && stored.params.iter().count() == 3
        && stored
            .salt
            .as_ref()
            .is_some_and(|salt| salt.len() >= argon2::MIN_SALT_LEN);
    if !has_all {
        return Err(HashError::Argon2);
    }
    if memory_kib > ARGON2_KIB_MAX {
        return Err(HashError::Argon2Memory);
    }
    if u64::from(memory_kib) * u64::from(passes) > u64::from(ARGON2_WORK_MAX) {
        return Err(HashError::Argon2Work);
    }
    if lanes > ARGON2_LANES_MAX {
        return Err(HashError::Argon2Lanes);
    }
    let params = Params::new(memory_kib, passes, lanes, Some(hash.len()));
    let params = params.map_err(|_| HashError::Argon2)?;
    Ok(Parts::Argon2(Box::new(stored), params))
}

impl fmt::Debug for StoredHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// Two are equal if they are written alike: that takes no hashing.
impl PartialEq for StoredHash {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for StoredHash {}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of public test vectors, and of other implementations.
    const KNOWN: [(&str, &str); 7] = [
        (
            "",
            "$2a$06$DCq7YPn5Rq63x1Lad4cll.TV4S6ytwfsfvkgY8jIucDrjc8deX1s.",
        ),
        (
            "a",
            "$2a$06$m0CrhHm10qJ3lXRY.5zDGO3rS2KdeeWLuGmsfGlMfOxih58VYVfxe",
        ),
        (
            "abc",
            "$2a$06$If6bvum7DFjUnE9p2uDeDu0YHzrHM6tf.iqN8.yx.jNN1ILEf7h0i",
        ),
        ("hunter2", BCRYPT_Y),
        ("pässwörd", BCRYPT_B),
        ("hunter2", ARGON2_SMALL),
        ("hunter2", ARGON2_LANES),
    ];
    const BCRYPT_Y: &str = "$2y$04$abcdefghijklmnopqrstuuV3duMsC0HpUex6N9qapiuOHHWkwRXVm";
    const BCRYPT_B: &str = "$2b$05$abcdefghijklmnopqrstuuZVEMa1pjhlynBQ1qXmSvGBJpN9h1w8G";
    const ARGON2_SMALL: &str =
        "$argon2id$v=19$m=8,t=1,p=1$c2FsdHNhbHRzYWx0$c3IyBvIK7HbKkJ1DTguBW6I6Fqq4+1EIutR5o2TcDIQ";
    const ARGON2_LANES: &str =
        "$argon2id$v=19$m=64,t=2,p=4$MDEyMzQ1Njc4OWFiY2RlZg$bR031xBZVJOXQxe8/ia9KwjZA240Kdga";

    #[test]
    fn hashes_of_others_are_understood() {
        for (password, text) in KNOWN {
            let hash = StoredHash::parse(text).unwrap();
            assert_eq!(hash.is_of(password.as_bytes()), Some(true), "{text}");
            for wrong in [
                "hunter",
                "hunter22",
                "Hunter2",
                "A",
                "b",
                "hunter2\0",
                "a\0a",
            ] {
                assert_eq!(
                    hash.is_of(wrong.as_bytes()),
                    Some(false),
                    "{text} {wrong:?}"
                );
            }
            assert_eq!(hash.text(), text);
            assert_eq!(format!("{hash:?}"), "***");
        }
    }

    #[test]
    fn bcrypt_looks_at_72_bytes_and_argon2_at_all() {
        let long = "x".repeat(72);
        let longer = "x".repeat(80);
        let bcrypt =
            StoredHash::parse("$2y$04$abcdefghijklmnopqrstuubzadhGtS2zEF.gu0yd0opP6cVzb.e0i")
                .unwrap();
        assert_eq!(bcrypt.is_of(long.as_bytes()), Some(true));
        assert_eq!(bcrypt.is_of(longer.as_bytes()), Some(true));
        assert_eq!(bcrypt.is_of(&long.as_bytes()[1..]), Some(false));
        let argon2 = StoredHash::make(long.as_bytes(), [7; 16]).unwrap();
        assert_eq!(argon2.is_of(long.as_bytes()), Some(true));
        assert_eq!(argon2.is_of(longer.as_bytes()), Some(false));
    }

    #[test]
    fn what_the_command_writes_is_within_the_bounds() {
        let made = StoredHash::make(b"secret", [1; 16]).unwrap();
        let start = "$argon2id$v=19$m=9216,t=4,p=1$AQEBAQEBAQEBAQEBAQEBAQ$";
        assert!(made.text().starts_with(start), "{}", made.text());
        assert_eq!(made.is_of(b"secret"), Some(true));
        assert_ne!(made, StoredHash::make(b"secret", [2; 16]).unwrap());
    }

    #[test]
    fn what_costs_too_much_or_does_not_read_is_refused() {
        let salt_and_hash = "c2FsdHNhbHRzYWx0$aGFzaGhhc2hoYXNoaGFzaA";
        let argon2 = |params: &str| format!("$argon2id${params}${salt_and_hash}");
        let bcrypt = |cost: &str| BCRYPT_Y.replacen("$04$", &format!("${cost}$"), 1);
        for (text, expected) in [
            (String::new(), HashError::Unknown),
            ("hunter2".to_owned(), HashError::Unknown),
            ("$apr1$x$y".to_owned(), HashError::Unknown),
            ("{SHA}x".to_owned(), HashError::Unknown),
            ("$2x$04$x".to_owned(), HashError::Unknown),
            (
                "$argon2i$v=19$m=8,t=1,p=1$x$y".to_owned(),
                HashError::Unknown,
            ),
            (bcrypt("13"), HashError::BcryptCost(13)),
            (bcrypt("31"), HashError::BcryptCost(31)),
            (bcrypt("99"), HashError::BcryptCost(99)),
            (bcrypt("03"), HashError::BcryptCost(3)),
            (bcrypt("4"), HashError::Bcrypt),
            (bcrypt("+4"), HashError::Bcrypt),
            (BCRYPT_Y[..59].to_owned(), HashError::Bcrypt),
            (format!("{BCRYPT_Y}x"), HashError::Bcrypt),
            (BCRYPT_Y.replacen('V', "é", 1), HashError::Bcrypt),
            ("$2y$".to_owned(), HashError::Bcrypt),
            (argon2("v=19$m=65537,t=1,p=1"), HashError::Argon2Memory),
            (
                argon2("v=19$m=4294967295,t=4294967295,p=1"),
                HashError::Argon2Memory,
            ),
            (argon2("v=19$m=65536,t=5,p=1"), HashError::Argon2Work),
            (argon2("v=19$m=8,t=4294967295,p=1"), HashError::Argon2Work),
            (argon2("v=19$m=1024,t=1,p=17"), HashError::Argon2Lanes),
            (argon2("v=19$m=8,t=1,p=2"), HashError::Argon2),
            (argon2("v=19$m=7,t=1,p=1"), HashError::Argon2),
            (argon2("v=19$m=8,t=0,p=1"), HashError::Argon2),
            (argon2("v=19$m=8,t=1,p=0"), HashError::Argon2),
            (argon2("v=19$m=8,t=1"), HashError::Argon2),
            (argon2("v=19$m=8,t=1,p=1,keyid=YQ"), HashError::Argon2),
            (argon2("v=16$m=8,t=1,p=1"), HashError::Argon2),
            (argon2("m=8,t=1,p=1"), HashError::Argon2),
            (
                "$argon2id$v=19$m=8,t=1,p=1$c2FsdHNhbHRzYWx0".to_owned(),
                HashError::Argon2,
            ),
            (
                "$argon2id$v=19$m=8,t=1,p=1$YQ$aGFzaGhhc2hoYXNo".to_owned(),
                HashError::Argon2,
            ),
            ("$argon2id$".to_owned(), HashError::Argon2),
        ] {
            assert_eq!(StoredHash::parse(&text).err(), Some(expected), "{text}");
        }
        assert!(StoredHash::parse(&argon2("v=19$m=65536,t=4,p=16")).is_ok());
        assert!(StoredHash::parse(&bcrypt("12")).is_ok());
    }
}
