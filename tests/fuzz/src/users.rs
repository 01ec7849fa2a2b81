//! Any text as a users file, and users who come and go in it.

use edgehub::identity::password::StoredHash;
use edgehub::identity::users::{Users, changed, check_user_name, with_user, without_user};

const TEXT_BYTES_MAX: usize = 16 * 1024;
/// Nobody's name in what is fuzzed, or it is the same user then.
const FRESH: &str = "fresh";

/// Runs one input.
pub fn run(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(&input[..input.len().min(TEXT_BYTES_MAX)]) else {
        return;
    };
    if let Ok(hash) = StoredHash::parse(text) {
        assert_eq!(StoredHash::parse(hash.text()).unwrap().text(), hash.text());
    }
    let users = match Users::parse(text) {
        Ok(users) => users,
        Err(errors) => {
            assert!(!errors.is_empty());
            for error in errors {
                assert!(text.is_char_boundary(error.offset), "{error:?}: {text:?}");
                let _ = (error.problem.to_string(), error.problem.hint());
            }
            return;
        }
    };
    let names: Vec<&str> = users.names().collect();
    assert!(names.is_sorted_by(|one, other| one < other));
    for name in names.iter().take(8) {
        assert_eq!(check_user_name(name), Ok(()));
        let hash = users.get(name).expect("it was just named");
        // Written again, nothing has changed; without it, it alone.
        let again = read(&with_user(text, name, hash));
        assert_eq!(changed(&users, &again), [""; 0]);
        let without = read(&without_user(text, name).expect("it has a line"));
        assert_eq!(changed(&users, &without), [*name]);
    }
    let Some(hash) = names.first().and_then(|name| users.get(name)) else {
        return;
    };
    let more = with_user(text, FRESH, hash);
    let with = read(&more);
    assert_eq!(with.get(FRESH), Some(hash));
    if users.get(FRESH).is_none() {
        assert_eq!(changed(&users, &with), [FRESH]);
        let without = read(&without_user(&more, FRESH).expect("it has a line"));
        assert_eq!(changed(&users, &without), [""; 0]);
    }
}

/// A file that was sound before it was changed.
fn read(text: &str) -> Users {
    Users::parse(text).unwrap_or_else(|errors| panic!("{errors:?}: {text:?}"))
}
