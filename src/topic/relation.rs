//! How two topic filters stand to each other: whether one covers the other, whether they overlap.
//!
//! Both are about the names that [`matches`](super::matches) says a filter matches. Filters must
//! have passed [`check_filter`](super::check_filter); for others the answers have no meaning.

/// Whether every name that `narrow` matches is matched by `wide` too.
///
/// `+/#` covers `#`, since every name has a first level; a wildcard in the first level covers no
/// filter that begins with `$` (MQTT 3.1.1 §4.7.2). The length of names is not considered.
#[must_use]
pub fn covers(wide: &str, narrow: &str) -> bool {
    if begins_with_wildcard(wide) && narrow.starts_with('$') {
        return false;
    }
    let mut narrow_levels = without_empty_name(narrow).split('/');
    for wide_level in wide.split('/') {
        if wide_level == "#" {
            return true;
        }
        match narrow_levels.next() {
            // It matches the name that ends here, and `wide` goes on.
            None | Some("#") => return false,
            Some(narrow_level) if wide_level == "+" || wide_level == narrow_level => {}
            Some(_) => return false,
        }
    }
    narrow_levels.next().is_none()
}

/// Whether some name is matched by both filters.
#[must_use]
pub fn overlaps(one: &str, other: &str) -> bool {
    let apart = |one: &str, other: &str| begins_with_wildcard(one) && other.starts_with('$');
    if apart(one, other) || apart(other, one) {
        return false;
    }
    let mut other_levels = without_empty_name(other).split('/');
    for level in without_empty_name(one).split('/') {
        match (level, other_levels.next()) {
            // `#` takes whatever is left of the other, and nothing left as well.
            ("#", _) | (_, Some("#")) => return true,
            (_, None) => return false,
            (level, Some(other)) if level == "+" || other == "+" || level == other => {}
            _ => return false,
        }
    }
    matches!(other_levels.next(), None | Some("#"))
}

/// A filter of the same names that does not seem to match the empty text, which is no name.
fn without_empty_name(filter: &str) -> &str {
    match filter {
        "#" => "+/#",
        "/#" => "/+/#",
        filter => filter,
    }
}

fn begins_with_wildcard(filter: &str) -> bool {
    filter.starts_with(['+', '#'])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{check_filter, matches};
    use super::*;

    /// Filter, filter, whether the first covers the second, the second the first, whether they
    /// overlap.
    const TABLE: [(&str, &str, bool, bool, bool); 31] = [
        ("a", "a", true, true, true),
        ("a", "b", false, false, false),
        ("a", "A", false, false, false),
        ("a", "a/b", false, false, false),
        ("a", "a/", false, false, false),
        ("+", "a", true, false, true),
        ("#", "a", true, false, true),
        ("#", "+", true, false, true),
        ("#", "+/#", true, true, true),
        ("/#", "#", false, true, true),
        ("/#", "+", false, false, false),
        ("/#", "/+/#", true, true, true),
        ("/#", "+/#", false, true, true),
        ("a/#", "a", true, false, true),
        ("a/#", "a/", true, false, true),
        ("a/#", "a/b/+", true, false, true),
        ("a/#", "a/+/#", true, false, true),
        ("a/#", "ab", false, false, false),
        ("a/#", "+", false, false, true),
        ("a/+", "+/b", false, false, true),
        ("a/+/c", "a/b/+", false, false, true),
        ("a/+/c", "a/b/d", false, false, false),
        ("+/+", "+", false, false, false),
        ("+/+/#", "+/#", false, true, true),
        ("a/b/#", "a/+", false, false, true),
        ("a/b/c/#", "a/+", false, false, false),
        ("#", "$a", false, false, false),
        ("+/b", "$a/b", false, false, false),
        ("+/#", "$a/#", false, false, false),
        ("$a/#", "$a/+", true, false, true),
        ("a/#", "a/$b", true, false, true),
    ];

    #[test]
    fn relations() {
        for (one, other, covered, covering, overlap) in TABLE {
            assert_eq!(covers(one, other), covered, "{one} {other}");
            assert_eq!(covers(other, one), covering, "{other} {one}");
            assert_eq!(overlaps(one, other), overlap, "{one} {other}");
            assert_eq!(overlaps(other, one), overlap, "{other} {one}");
        }
    }

    /// All names of up to four levels from an alphabet with letters that no filter below has.
    fn names() -> Vec<String> {
        let alphabet = ["", "a", "b", "z", "$s", "$z"];
        let mut longest: Vec<String> = alphabet.map(str::to_owned).to_vec();
        let mut names = longest.clone();
        for _ in 1..4 {
            let longer = longest.iter();
            longest = longer
                .flat_map(|name| alphabet.map(|level| format!("{name}/{level}")))
                .collect();
            names.extend_from_slice(&longest);
        }
        names.retain(|name| !name.is_empty());
        names
    }

    fn filter() -> impl Strategy<Value = String> {
        let level = prop::sample::select(vec!["", "a", "b", "$s", "+", "+"]);
        let levels = prop::collection::vec(level, 0..=3);
        let filter = (levels, any::<bool>()).prop_map(|(mut levels, open)| {
            if open || levels.is_empty() {
                levels.push("#");
            }
            levels.join("/")
        });
        filter.prop_filter("a filter", |filter| check_filter(filter).is_ok())
    }

    proptest! {
        #[test]
        fn relations_are_those_of_the_matched_names(one in filter(), other in filter()) {
            let (mut covered, mut overlap) = (true, false);
            for name in names() {
                let (by_one, by_other) = (matches(&one, &name), matches(&other, &name));
                covered &= by_one || !by_other;
                overlap |= by_one && by_other;
            }
            prop_assert_eq!(covers(&one, &other), covered, "{} covers {}", one, other);
            prop_assert_eq!(overlaps(&one, &other), overlap, "{} overlaps {}", one, other);
        }
    }
}
