//! Topic names and topic filters: what is well formed, and which name a filter matches.
//!
//! The rules are those of MQTT 3.1.1 §4.7, which MQTT 5 kept. Nothing here allocates.
//! Names and filters are byte-wise: case counts, `/a` and `a` differ, and nothing is normalized.

pub mod relation;
pub mod template;

use thiserror::Error;

pub use self::relation::{covers, overlaps};

/// The longest topic name or filter, in bytes of UTF-8 (MQTT 3.1.1 §4.7.3).
pub const TOPIC_BYTES_MAX: usize = u16::MAX as usize;

/// Why a text is no topic name or no topic filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Error)]
#[non_exhaustive]
pub enum TopicError {
    /// Names and filters have at least one character (MQTT 3.1.1 §4.7.3).
    #[error("it is empty")]
    Empty,
    /// The length prefix on the wire has two bytes (MQTT 3.1.1 §4.7.3).
    #[error("it has {bytes} bytes, more than 65535")]
    TooLong {
        /// Its length in bytes of UTF-8.
        bytes: usize,
    },
    /// U+0000 is never allowed (MQTT 3.1.1 §4.7.3).
    #[error("it contains the character U+0000")]
    Nul,
    /// U+0001 to U+001F and U+007F to U+009F, which a receiver may refuse (MQTT 3.1.1 §1.5.3,
    /// MQTT 5 §1.5.4).
    #[error("it contains a control character")]
    Control,
    /// `+` and `#` belong to filters only (MQTT 3.1.1 §4.7.1).
    #[error("it is a name and contains a wildcard, + or #")]
    WildcardInName,
    /// `#` shares its level with other characters (MQTT 3.1.1 §4.7.1.2).
    #[error("# does not stand alone in its level")]
    MultiLevelNotAlone,
    /// `#` is followed by another level (MQTT 3.1.1 §4.7.1.2).
    #[error("# is not the last level")]
    MultiLevelNotLast,
    /// `+` shares its level with other characters (MQTT 3.1.1 §4.7.1.3).
    #[error("+ does not stand alone in its level")]
    SingleLevelNotAlone,
}

/// Checks a topic name, as a PUBLISH or a will carries it (MQTT 3.1.1 §4.7).
///
/// # Errors
///
/// [`TopicError`] if it is empty, longer than [`TOPIC_BYTES_MAX`], or contains a control character,
/// `+` or `#`.
#[inline]
pub fn check_name(name: &str) -> Result<(), TopicError> {
    // No early exit: the compiler turns this into a few vector compares for a usual topic.
    let forbidden = name.bytes().fold(false, |found, byte| {
        found | (byte < b' ') | (byte == b'+') | (byte == b'#') | (byte == DELETE)
    });
    if forbidden || has_high_control(name) || name.is_empty() || name.len() > TOPIC_BYTES_MAX {
        return Err(name_error(name));
    }
    Ok(())
}

/// Checks a topic filter, as a SUBSCRIBE or UNSUBSCRIBE carries it (MQTT 3.1.1 §4.7).
///
/// # Errors
///
/// [`TopicError`] if it is empty, longer than [`TOPIC_BYTES_MAX`], contains a control character, or
/// has a wildcard where none may stand.
pub fn check_filter(filter: &str) -> Result<(), TopicError> {
    check_length(filter)?;
    if has_high_control(filter) {
        return Err(TopicError::Control);
    }
    let mut previous = b'/';
    let mut bytes = filter.bytes().peekable();
    while let Some(byte) = bytes.next() {
        let opens_level = previous == b'/';
        match (byte, bytes.peek()) {
            (0, _) => return Err(TopicError::Nul),
            (1..b' ' | DELETE, _) => return Err(TopicError::Control),
            (b'#', None) if opens_level => {}
            (b'#', Some(b'/')) if opens_level => return Err(TopicError::MultiLevelNotLast),
            (b'#', _) => return Err(TopicError::MultiLevelNotAlone),
            (b'+', None | Some(b'/')) if opens_level => {}
            (b'+', _) => return Err(TopicError::SingleLevelNotAlone),
            _ => {}
        }
        previous = byte;
    }
    Ok(())
}

/// Whether a name may be one that routes publish to: a plain topic that does not begin with `$`
/// (`DESIGN` §5).
#[must_use]
pub fn is_publishable(name: &str) -> bool {
    is_plain(name) && name != "devices" && !name.starts_with('$')
}

/// Whether a name or filter is of the plain topic space: what begins with `$iothub/` or `devices/`
/// is private to clients (`DESIGN` §2).
#[must_use]
pub fn is_plain(text: &str) -> bool {
    !text.starts_with("devices/") && !text.starts_with("$iothub/")
}

/// Whether a filter matches a name (MQTT 3.1.1 §4.7).
///
/// `+` stands for exactly one level, which may be empty; `#` for any number of levels, none
/// included, so that `a/#` matches `a`. A filter that begins with a wildcard matches no name that
/// begins with `$` (§4.7.2). Both texts must have passed [`check_filter`] and [`check_name`]; for
/// others the answer has no meaning.
#[must_use]
pub fn matches(filter: &str, name: &str) -> bool {
    if name.starts_with('$') && filter.starts_with(['+', '#']) {
        return false;
    }
    let mut name_levels = name.split('/');
    for filter_level in filter.split('/') {
        if filter_level == "#" {
            return true;
        }
        match name_levels.next() {
            Some(level) if filter_level == "+" || filter_level == level => {}
            _ => return false,
        }
    }
    name_levels.next().is_none()
}

const DELETE: u8 = 0x7f;

/// Whether there is one of U+0080 to U+009F: two bytes in UTF-8, of which the first is C2.
fn has_high_control(text: &str) -> bool {
    let bytes = text.as_bytes();
    let pairs = bytes.iter().zip(bytes.get(1..).unwrap_or_default());
    pairs.fold(false, |found, (first, second)| {
        found | (*first == 0xc2 && *second < 0xa0)
    })
}

/// Says what is wrong with a name that is known to be wrong.
#[cold]
fn name_error(name: &str) -> TopicError {
    match check_length(name) {
        Err(error) => error,
        Ok(()) if name.contains('\0') => TopicError::Nul,
        Ok(()) if name.contains(char::is_control) => TopicError::Control,
        Ok(()) => TopicError::WildcardInName,
    }
}

fn check_length(topic: &str) -> Result<(), TopicError> {
    match topic.len() {
        0 => Err(TopicError::Empty),
        bytes if bytes > TOPIC_BYTES_MAX => Err(TopicError::TooLong { bytes }),
        _ => Ok(()),
    }
}

#[cfg(test)]
#[allow(clippy::indexing_slicing)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names() {
        for good in [
            "a",
            "/",
            "//",
            "a/b",
            "$iothub/x",
            "$",
            " ",
            "é/ü",
            "\u{feff}a",
            "a/\u{a0}",
        ] {
            assert_eq!(check_name(good), Ok(()), "{good:?}");
        }
        for (bad, why) in [
            ("", TopicError::Empty),
            ("\0", TopicError::Nul),
            ("a/b\0", TopicError::Nul),
            ("+\0", TopicError::Nul),
            ("a\u{1}", TopicError::Control),
            ("\u{1f}", TopicError::Control),
            ("a/\u{7f}b", TopicError::Control),
            ("\u{80}", TopicError::Control),
            ("\u{9f}/", TopicError::Control),
            ("+", TopicError::WildcardInName),
            ("#", TopicError::WildcardInName),
            ("a/+/b", TopicError::WildcardInName),
            ("a/b#", TopicError::WildcardInName),
            (
                "0123456789abcdef0123456789abcdef+",
                TopicError::WildcardInName,
            ),
            ("é+", TopicError::WildcardInName),
        ] {
            assert_eq!(check_name(bad), Err(why), "{bad:?}");
        }
    }

    #[test]
    fn filters() {
        for good in [
            "a",
            "/",
            "#",
            "+",
            "/#",
            "+/+",
            "a/+/b",
            "a/#",
            "+/a/#",
            "//",
            "/+",
            "+/",
            "$share/g/#",
            "$SYS/#",
            "é/+",
        ] {
            assert_eq!(check_filter(good), Ok(()), "{good:?}");
        }
        for (bad, why) in [
            ("", TopicError::Empty),
            ("\0", TopicError::Nul),
            ("a/+/\0", TopicError::Nul),
            ("#/", TopicError::MultiLevelNotLast),
            ("#/a", TopicError::MultiLevelNotLast),
            ("a/#/b", TopicError::MultiLevelNotLast),
            ("a#", TopicError::MultiLevelNotAlone),
            ("#a", TopicError::MultiLevelNotAlone),
            ("##", TopicError::MultiLevelNotAlone),
            ("a/b#", TopicError::MultiLevelNotAlone),
            ("+#", TopicError::SingleLevelNotAlone),
            ("#+", TopicError::MultiLevelNotAlone),
            ("a+", TopicError::SingleLevelNotAlone),
            ("+a", TopicError::SingleLevelNotAlone),
            ("++", TopicError::SingleLevelNotAlone),
            ("a/+b/c", TopicError::SingleLevelNotAlone),
            ("a/b+/c", TopicError::SingleLevelNotAlone),
        ] {
            assert_eq!(check_filter(bad), Err(why), "{bad:?}");
        }
    }

    #[test]
    fn length_is_counted_in_bytes() {
        let longest = "é".repeat(32767) + "a";
        assert_eq!(longest.len(), TOPIC_BYTES_MAX);
        assert_eq!(check_name(&longest), Ok(()));
        assert_eq!(check_filter(&longest), Ok(()));
        let longer = "é".repeat(32768);
        let too_long = Err(TopicError::TooLong { bytes: 65536 });
        assert_eq!(check_name(&longer), too_long);
        assert_eq!(check_filter(&longer), too_long);
    }

    #[test]
    fn matching() {
        for (filter, name, expected) in [
            ("a", "a", true),
            ("a", "A", false),
            ("a", "/a", false),
            ("a", "a/", false),
            ("a/b", "a", false),
            ("a/b", "a/bc", false),
            ("#", "a", true),
            ("#", "/", true),
            ("#", "a/b/c", true),
            ("a/#", "a", true),
            ("a/#", "a/", true),
            ("a/#", "a/b/c", true),
            ("a/#", "ab", false),
            ("+", "a", true),
            ("+", "/a", false),
            ("+", "a/b", false),
            ("+/+", "/a", true),
            ("/+", "/a", true),
            ("/+", "/", true),
            ("a/+", "a", false),
            ("a/+", "a/", true),
            ("a/+", "a/b/c", false),
            ("a/+/c", "a/b/c", true),
            ("a/+/c", "a/b/d", false),
            ("a/+/#", "a/b", true),
            ("a/+/#", "a", false),
            ("+/b/#", "a/b/c/d", true),
            ("#", "$SYS", false),
            ("#", "$SYS/a", false),
            ("+/a", "$SYS/a", false),
            ("+/#", "$SYS/a", false),
            ("$SYS/#", "$SYS/a", true),
            ("$SYS/+", "$SYS/a", true),
            ("$SYS/#", "$SYS", true),
            ("a/+", "a/$b", true),
            ("/#", "/$SYS", true),
            ("é/+", "é/ü", true),
        ] {
            assert_eq!(matches(filter, name), expected, "{filter} {name}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_safe(filter in "\\PC*", name in "[+#/a$\0é]{0,8}") {
            let wildcard = name.contains(['+', '#', '\0']);
            prop_assert_eq!(check_name(&name).is_ok(), !wildcard && !name.is_empty());
            let _ = check_filter(&filter);
            let _ = matches(&filter, &name);
        }

        #[test]
        fn filters_agree_with_their_levels(filter in "[+#/a]{1,8}") {
            let levels: Vec<&str> = filter.split('/').collect();
            let last = levels.len() - 1;
            let good = levels.iter().enumerate().all(|(at, level)| {
                *level == "+" || (*level == "#" && at == last) || !level.contains(['+', '#'])
            });
            prop_assert_eq!(check_filter(&filter).is_ok(), good);
        }

        #[test]
        fn a_name_matches_itself_and_its_generalizations(name in "[a-c/]{1,8}", at in 0_usize..8) {
            prop_assert!(matches(&name, &name));
            let mut levels: Vec<&str> = name.split('/').collect();
            let at = at % levels.len();
            levels[at] = "+";
            prop_assert!(matches(&levels.join("/"), &name));
            levels.truncate(at);
            levels.push("#");
            prop_assert!(matches(&levels.join("/"), &name));
        }
    }
}
