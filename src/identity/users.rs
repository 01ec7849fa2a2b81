//! The users file: who may log in by user name and password without being in the registry
//! (`DESIGN` §3.2). One `NAME:HASH` a line, as `htpasswd` writes it.

use std::collections::HashMap;
use std::sync::Arc;

use thiserror::Error;

use super::ID_BYTES_MAX;
use super::password::{HashError, StoredHash};

/// Most users of a file.
pub const USERS_MAX: usize = 10_000;

/// Why a text is no name that a user, or a certificate that stands for itself, may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum NameError {
    /// There is nothing.
    #[error("the name is empty")]
    Empty,
    /// As long as the registry's ids may be.
    #[error("the name is longer than {ID_BYTES_MAX} bytes")]
    Long,
    /// Topics and rules could mean more than one.
    #[error("the name has one of the characters / + # and control characters")]
    Character,
    /// Nobody would see it.
    #[error("the name begins or ends with a space")]
    Space,
    /// Rules would take it for a variable.
    #[error("the name has {{{{ in it, where rules have variables")]
    Variable,
    /// It would be read as a device's or module's (facts §1.3).
    #[error("the name looks like the user name of a device or module: it has api-version= in it")]
    Device,
    /// Only users: it ends the name in the file.
    #[error("the name has a colon")]
    Colon,
}

/// Checks the name of a user or of a certificate, as rules call it after `user:` and `cert:`.
///
/// # Errors
/// What no name may have.
pub fn check_name(name: &str) -> Result<(), NameError> {
    let is_bad = |c: char| matches!(c, '/' | '+' | '#') || c.is_control();
    if name.is_empty() {
        Err(NameError::Empty)
    } else if name.len() > ID_BYTES_MAX {
        Err(NameError::Long)
    } else if name.contains(is_bad) {
        Err(NameError::Character)
    } else if name.trim() != name {
        Err(NameError::Space)
    } else if name.contains("{{") {
        Err(NameError::Variable)
    } else if name.contains("api-version=") {
        Err(NameError::Device)
    } else {
        Ok(())
    }
}

/// Checks the name of a user.
///
/// # Errors
/// What no user's name may have.
pub fn check_user_name(name: &str) -> Result<(), NameError> {
    check_name(name)?;
    if name.contains(':') {
        return Err(NameError::Colon);
    }
    Ok(())
}

/// Whether CONNECT's user name is one of this file's kind, known or not: those of devices and
/// modules have slashes (facts §1.3).
#[must_use]
pub fn is_user_name(name: &str) -> bool {
    !name.is_empty() && !name.contains('/') && !name.contains("api-version=")
}

/// What is wrong with a users file, and where. Never contains any of a hash, nor of a line that
/// may be a password.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UsersError {
    /// In bytes from the start of the file.
    pub offset: usize,
    /// What is wrong.
    pub problem: UsersProblem,
}

/// What can be wrong with a users file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum UsersProblem {
    /// A line without a colon.
    #[error("the line is not NAME:HASH")]
    NoColon,
    /// A name that nobody may have.
    #[error("{0}")]
    Name(NameError),
    /// A hash that does not count.
    #[error("{0}")]
    Hash(HashError),
    /// Which one would count?
    #[error("this user is there already, in line {0}")]
    Twice(usize),
    /// The file is no list of users of one device.
    #[error("more than {USERS_MAX} users")]
    TooMany,
}

impl UsersProblem {
    /// What to do about it.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::NoColon => Some("comments begin with #"),
            Self::Hash(HashError::BcryptCost(_)) => Some("such as `htpasswd -B -C 10`"),
            Self::Hash(_) => Some("`edgehub users add NAME` or `htpasswd -B` write one"),
            Self::Name(_) | Self::Twice(_) | Self::TooMany => None,
        }
    }
}

/// Every user with its password's hash: an immutable snapshot.
#[derive(Debug, Clone, Default)]
pub struct Users {
    /// By name, sorted.
    entries: Vec<(Box<str>, Arc<StoredHash>)>,
}

impl Users {
    /// Reads a users file.
    ///
    /// # Errors
    /// Everything that is wrong with it, in its order.
    pub fn parse(text: &str) -> Result<Self, Vec<UsersError>> {
        let mut errors = Vec::new();
        let mut lines: HashMap<&str, usize> = HashMap::new();
        let mut users = Self::default();
        for line in Line::all(text) {
            let mut wrong = |offset, problem| errors.push(UsersError { offset, problem });
            let at = line.offset;
            let Some((name, hash)) = line.text.split_once(':') else {
                wrong(at, UsersProblem::NoColon);
                continue;
            };
            if users.entries.len() >= USERS_MAX {
                wrong(at, UsersProblem::TooMany);
                break;
            }
            let checked =
                check_user_name(name).map_err(|error| wrong(at, UsersProblem::Name(error)));
            match StoredHash::parse(hash) {
                Ok(hash) if checked.is_ok() => users.entries.push((name.into(), Arc::new(hash))),
                Ok(_) => {}
                Err(error) => wrong(at + name.len() + 1, UsersProblem::Hash(error)),
            }
            if let Some(first) = lines.insert(name, line.number) {
                wrong(at, UsersProblem::Twice(first));
            }
        }
        if !errors.is_empty() {
            return Err(errors);
        }
        users.entries.sort_by(|one, other| one.0.cmp(&other.0));
        Ok(users)
    }

    /// The hash of a user's password.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Arc<StoredHash>> {
        let place = self.entries.binary_search_by(|entry| (*entry.0).cmp(name));
        self.entries.get(place.ok()?).map(|(_, hash)| hash)
    }

    /// Somebody's hash, for one who is not there: `pick` chooses whose, and should be the same for
    /// the same name. So nobody can tell by the time taken who is there.
    #[must_use]
    pub fn stand_in(&self, pick: u64) -> Option<&Arc<StoredHash>> {
        let place = pick.checked_rem(self.entries.len() as u64)?;
        self.entries
            .get(usize::try_from(place).ok()?)
            .map(|(_, hash)| hash)
    }

    /// All names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.iter().map(|(name, _)| &**name)
    }
}

/// The users that are not the same in both: there, away, or with another password.
#[must_use]
pub fn changed(old: &Users, new: &Users) -> Vec<String> {
    let is_other = |name: &&str| old.get(name) != new.get(name);
    let mut names: Vec<_> = old.names().chain(new.names()).filter(is_other).collect();
    names.sort_unstable();
    names.dedup();
    names.into_iter().map(str::to_owned).collect()
}

/// A line of the file that says something.
struct Line<'a> {
    text: &'a str,
    number: usize,
    /// Where it begins, without the spaces before it.
    offset: usize,
    /// From where to where it goes, with spaces and its end.
    whole: (usize, usize),
}

impl<'a> Line<'a> {
    fn all(text: &'a str) -> impl Iterator<Item = Self> {
        let mut end = 0;
        (1..)
            .zip(text.split_inclusive('\n'))
            .filter_map(move |(number, whole)| {
                let start = end;
                end += whole.len();
                let from = whole.trim_start();
                let said = from.trim_end();
                (!said.is_empty() && !said.starts_with('#')).then_some(Self {
                    text: said,
                    number,
                    offset: start + whole.len() - from.len(),
                    whole: (start, end),
                })
            })
    }

    fn is_of(&self, name: &str) -> bool {
        self.text
            .split_once(':')
            .is_some_and(|(own, _)| own == name)
    }
}

/// The file with a user's line, in its place if there was one. The rest stays as it is.
#[must_use]
pub fn with_user(text: &str, name: &str, hash: &StoredHash) -> String {
    let line = format!("{name}:{}\n", hash.text());
    let known = Line::all(text).find(|line| line.is_of(name));
    let (start, end) = known.map_or((text.len(), text.len()), |line| line.whole);
    let (before, after) = (text.get(..start).unwrap_or_default(), text.get(end..));
    let gap = if before.is_empty() || before.ends_with('\n') {
        ""
    } else {
        "\n"
    };
    format!("{before}{gap}{line}{}", after.unwrap_or_default())
}

/// The file without a user's line; `None` if there is none.
#[must_use]
pub fn without_user(text: &str, name: &str) -> Option<String> {
    let (start, end) = Line::all(text).find(|line| line.is_of(name))?.whole;
    Some(format!("{}{}", text.get(..start)?, text.get(end..)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "$2y$04$abcdefghijklmnopqrstuuV3duMsC0HpUex6N9qapiuOHHWkwRXVm";
    const B: &str = "$2b$05$abcdefghijklmnopqrstuuZVEMa1pjhlynBQ1qXmSvGBJpN9h1w8G";

    #[test]
    fn a_line_is_a_user() {
        let text = format!("# users\n\n  ann:{A}\r\nB\u{fc}ro 2:{B}  \n#x:{A}");
        let users = Users::parse(&text).unwrap();
        assert_eq!(users.names().collect::<Vec<_>>(), ["B\u{fc}ro 2", "ann"]);
        assert_eq!(users.get("ann").unwrap().text(), A);
        assert_eq!(users.get("B\u{fc}ro 2").unwrap().text(), B);
        assert_eq!(users.get("Ann"), None);
        assert_eq!(users.get("x"), None);
        assert_eq!(Users::parse("").unwrap().names().count(), 0);
    }

    #[test]
    fn every_mistake_has_its_place_and_says_nothing_of_the_hash() {
        let lines = [
            format!("ann:{A}"),
            "hunter2".to_owned(),
            " a/b:secret1".to_owned(),
            format!("ann:{B}"),
            format!(":{A}"),
            format!("bob:{}", A.replace("$04$", "$15$")),
            "carl:secret2".to_owned(),
        ];
        let text = lines.join("\n");
        let errors = Users::parse(&text).unwrap_err();
        let said: Vec<_> = errors
            .iter()
            .map(|error| {
                let position = crate::diagnostic::Position::of(&text, error.offset);
                format!("{}:{}: {}", position.line, position.column, error.problem)
            })
            .collect();
        assert_eq!(
            said,
            [
                "2:1: the line is not NAME:HASH",
                "3:2: the name has one of the characters / + # and control characters",
                "3:6: the password is not hashed by bcrypt or Argon2id",
                "4:1: this user is there already, in line 1",
                "5:1: the name is empty",
                "6:5: bcrypt's cost 15 is not from 4 to 12",
                "7:6: the password is not hashed by bcrypt or Argon2id",
            ]
        );
        assert!(!said.join("\n").contains("secret") && !said.join("\n").contains("hunter"));
    }

    #[test]
    fn names_are_nobody_elses() {
        let long = "x".repeat(ID_BYTES_MAX + 1);
        for (name, expected) in [
            ("", NameError::Empty),
            (&long, NameError::Long),
            ("a/b", NameError::Character),
            ("a+", NameError::Character),
            ("#", NameError::Character),
            ("a\0", NameError::Character),
            ("a\u{7f}", NameError::Character),
            (" a", NameError::Space),
            ("a ", NameError::Space),
            ("{{anonymous}}", NameError::Variable),
            ("edge-1?api-version=1", NameError::Device),
            ("a:b", NameError::Colon),
        ] {
            assert_eq!(check_user_name(name), Err(expected), "{name:?}");
        }
        assert_eq!(check_name("urn:a:b"), Ok(()));
        for name in ["ann", "Büro 2", "a@b.example", "$x", "-", &long[1..]] {
            assert_eq!(check_user_name(name), Ok(()), "{name:?}");
        }
        for name in ["hub/edge-1/?api-version=1", "a/b", "x?api-version=1", ""] {
            assert!(!is_user_name(name), "{name:?}");
        }
        assert!(is_user_name("ann") && is_user_name("a:b"));
    }

    #[test]
    fn there_are_so_many_users_at_most() {
        let lines =
            |count: usize| -> String { (0..count).map(|n| format!("u{n}:{A}\n")).collect() };
        assert_eq!(
            Users::parse(&lines(USERS_MAX)).unwrap().names().count(),
            USERS_MAX
        );
        let errors = Users::parse(&lines(USERS_MAX + 5)).unwrap_err();
        assert_eq!(errors.len(), 1);
        assert_eq!(errors[0].problem, UsersProblem::TooMany);
    }

    #[test]
    fn who_is_not_there_costs_what_somebody_costs() {
        let users = Users::parse(&format!("a:{A}\nb:{B}")).unwrap();
        let whose: Vec<_> = (0..4)
            .map(|pick| users.stand_in(pick).unwrap().text())
            .collect();
        assert_eq!(whose, [A, B, A, B]);
        assert_eq!(Users::default().stand_in(7), None);
    }

    #[test]
    fn changes_are_found_by_name_and_hash() {
        let old = Users::parse(&format!("a:{A}\nb:{A}\nc:{A}")).unwrap();
        let new = Users::parse(&format!("c:{A}\nb:{B}\nd:{A}")).unwrap();
        assert_eq!(changed(&old, &new), ["a", "b", "d"]);
        assert_eq!(changed(&old, &old), [""; 0]);
    }

    #[test]
    fn edits_leave_the_rest_as_it_is() {
        let hash = StoredHash::parse(B).unwrap();
        let text = format!("# all\n  ann:{A}\r\n\nbob:{A}");
        assert_eq!(
            with_user(&text, "ann", &hash),
            format!("# all\nann:{B}\n\nbob:{A}")
        );
        assert_eq!(
            with_user(&text, "carl", &hash),
            format!("{text}\ncarl:{B}\n")
        );
        assert_eq!(with_user("", "ann", &hash), format!("ann:{B}\n"));
        assert_eq!(
            without_user(&text, "ann").unwrap(),
            format!("# all\n\nbob:{A}")
        );
        assert_eq!(without_user(&text, "carl"), None);
        assert_eq!(without_user(&text, "# all"), None);
    }
}
