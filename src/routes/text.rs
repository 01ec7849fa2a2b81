//! What functions do with text: the replaced system counts and compares UTF-16 code units, so
//! this does too (facts §4.4).

use std::borrow::Cow;
use std::cmp::Ordering;

/// Length in UTF-16 code units.
pub(super) fn utf16_length(text: &str) -> usize {
    if text.is_ascii() {
        return text.len();
    }
    text.chars().map(char::len_utf16).sum()
}

/// Ordinal comparison by UTF-16 code units. It differs from the order of UTF-8 bytes only where
/// a character above U+FFFF meets one from U+E000 to U+FFFF: surrogates sort before those.
pub(super) fn compare_utf16(left: &str, right: &str) -> Ordering {
    let differing = left.bytes().zip(right.bytes()).find(|(l, r)| l != r);
    match differing {
        None => left.len().cmp(&right.len()),
        Some((l, r)) if l >= 0xEE && r >= 0xEE => (l < 0xF0).cmp(&(r < 0xF0)).then(l.cmp(&r)),
        Some((l, r)) => l.cmp(&r),
    }
}

/// Part of a text by UTF-16 code units, fractions cut off; `None` where it is out of range.
/// Without a length the start may be the end of the text (facts §4.4). A surrogate pair that is
/// cut in two leaves a replacement character.
pub(super) fn substring(text: &str, start: f64, length: Option<f64>) -> Option<Cow<'_, str>> {
    let total = utf16_length(text);
    let start = units(start)?;
    let end = match length {
        None => total,
        Some(length) => start.checked_add(units(length)?)?,
    };
    let start_max = if length.is_some() {
        total.checked_sub(1)?
    } else {
        total
    };
    if start > start_max || end > total {
        return None;
    }
    match (byte_offset(text, start), byte_offset(text, end)) {
        (Some(start), Some(end)) => text.get(start..end).map(Cow::Borrowed),
        _ => {
            let units: Vec<u16> = text.encode_utf16().skip(start).take(end - start).collect();
            Some(Cow::Owned(String::from_utf16_lossy(&units)))
        }
    }
}

/// A position or length: the whole part of a number that is at least 0 and fits.
fn units(number: f64) -> Option<usize> {
    let whole = number.trunc();
    (whole >= 0.0 && whole <= f64::from(i32::MAX)).then_some(whole as usize)
}

/// The byte where a code unit begins; `None` inside a surrogate pair.
fn byte_offset(text: &str, unit: usize) -> Option<usize> {
    if text.is_ascii() {
        return Some(unit);
    }
    let mut passed = 0;
    for (at, c) in text.char_indices() {
        if passed >= unit {
            return (passed == unit).then_some(at);
        }
        passed += c.len_utf16();
    }
    (passed == unit).then_some(text.len())
}

/// Where a text begins inside another, in UTF-16 code units, or -1.
pub(super) fn index_of(text: &str, wanted: &str) -> f64 {
    match text.find(wanted) {
        Some(at) => utf16_length(text.get(..at).unwrap_or_default()) as f64,
        None => -1.0,
    }
}

/// Upper case by the invariant culture: one character for one, never `ß` to `SS`, and the
/// dotless i stays.
pub(super) fn upper(text: &str) -> String {
    text.chars()
        .map(|c| match c {
            'ı' => c,
            _ => single(c, c.to_uppercase()),
        })
        .collect()
}

/// Lower case by the invariant culture.
pub(super) fn lower(text: &str) -> String {
    text.chars().map(|c| single(c, c.to_lowercase())).collect()
}

fn single(c: char, mut mapped: impl Iterator<Item = char>) -> char {
    match (mapped.next(), mapped.next()) {
        (Some(only), None) => only,
        _ => c,
    }
}

/// A number as .NET reads it in the invariant culture with the `Float` style: blanks around,
/// a sign, digits with a point, an exponent; `Infinity` and `NaN`. NaN where it is none.
pub(super) fn as_number(text: &str) -> f64 {
    let is_blank = |c: char| matches!(c, '\t'..='\r' | ' ');
    let text = text.trim_start_matches(is_blank);
    let text = text.trim_end_matches('\0').trim_end_matches(is_blank);
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    if unsigned.eq_ignore_ascii_case("infinity") {
        let sign = if text.starts_with('-') { -1.0 } else { 1.0 };
        return f64::INFINITY * sign;
    }
    if is_decimal(unsigned) {
        text.parse().unwrap_or(f64::NAN)
    } else {
        f64::NAN
    }
}

/// `1`, `1.5`, `.5`, `5.`, each with an exponent or without.
fn is_decimal(text: &str) -> bool {
    let (number, exponent) = match text.split_once(['e', 'E']) {
        Some((number, exponent)) => (number, Some(exponent)),
        None => (text, None),
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    let exponent_valid = exponent.is_none_or(|exponent| {
        let exponent = exponent.strip_prefix(['-', '+']).unwrap_or(exponent);
        !exponent.is_empty() && digits(exponent)
    });
    whole.len() + fraction.len() > 0 && digits(whole) && digits(fraction) && exponent_valid
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_is_that_of_utf16_code_units() {
        let texts = ["", "A", "a", "aa", "é", "\u{FFFD}", "𝄞", "\u{E000}", "日"];
        for left in texts {
            for right in texts {
                let expected = left.encode_utf16().cmp(right.encode_utf16());
                assert_eq!(compare_utf16(left, right), expected, "{left} {right}");
            }
        }
    }

    #[test]
    fn parts_are_counted_in_code_units() {
        assert_eq!(substring("abc", 1.0, None).as_deref(), Some("bc"));
        assert_eq!(substring("abc", 3.0, None).as_deref(), Some(""));
        assert_eq!(substring("abc", 3.0, Some(0.0)), None);
        assert_eq!(substring("abc", 2.0, Some(1.0)).as_deref(), Some("c"));
        assert_eq!(substring("abc", 2.0, Some(2.0)), None);
        assert_eq!(substring("abc", -1.0, None), None);
        assert_eq!(substring("abc", f64::NAN, None), None);
        assert_eq!(substring("abc", f64::INFINITY, None), None);
        assert_eq!(substring("abc", 1.9, Some(1.9)).as_deref(), Some("b"));
        assert_eq!(substring("", 0.0, None).as_deref(), Some(""));
        assert_eq!(substring("", 0.0, Some(0.0)), None);
        assert_eq!(substring("a𝄞b", 3.0, None).as_deref(), Some("b"));
        assert_eq!(substring("a𝄞b", 2.0, None).as_deref(), Some("\u{FFFD}b"));
        assert_eq!(index_of("a𝄞b", "b"), 3.0);
        assert_eq!(index_of("abc", ""), 0.0);
        assert_eq!(utf16_length("a𝄞b"), 4);
    }

    #[test]
    fn case_maps_one_to_one() {
        assert_eq!(upper("straße ı é"), "STRAßE ı É");
        assert_eq!(lower("ÀΣ İ"), "àσ İ");
    }

    #[test]
    fn numbers_are_read_as_dotnet_does() {
        let yes: [(&str, f64); 12] = [
            ("1", 1.0),
            (" 1\t", 1.0),
            ("+1.5", 1.5),
            ("-.5", -0.5),
            ("5.", 5.0),
            ("1e3", 1000.0),
            ("1E-3", 0.001),
            ("0100", 100.0),
            ("1e400", f64::INFINITY),
            ("-1e400", f64::NEG_INFINITY),
            ("infinity", f64::INFINITY),
            ("-Infinity", f64::NEG_INFINITY),
        ];
        for (text, expected) in yes {
            assert_eq!(as_number(text), expected, "{text}");
        }
        let no = [
            "", " ", "abc", "1,5", "1,000", "0x10", "- 5", "1e", "e5", ".", "1.2.3", "inf", "nan",
            "1 2", "--1", "1_0", "$5",
        ];
        for text in no {
            assert!(as_number(text).is_nan(), "{text}");
        }
    }
}
