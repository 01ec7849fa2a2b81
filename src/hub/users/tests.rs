//! Users log in, without a socket and with nobody who waits.

use super::*;
use crate::hub::sample::{self, NOW};

/// Of `hunter2`.
const HASH: &str = "$2y$04$abcdefghijklmnopqrstuuV3duMsC0HpUex6N9qapiuOHHWkwRXVm";
/// Of `hunter2` too.
const OTHER: &str =
    "$argon2id$v=19$m=8,t=1,p=1$c2FsdHNhbHRzYWx0$c3IyBvIK7HbKkJ1DTguBW6I6Fqq4+1EIutR5o2TcDIQ";

fn hub(users: &str) -> Hub {
    let hub = sample::hub();
    hub.set_password_key(&[7; 32]);
    set(&hub, users);
    hub
}

fn set(hub: &Hub, users: &str) {
    hub.set_users(Some(Users::parse(users).unwrap()));
}

fn login(hub: &Hub, name: &str, password: &str) -> Result<Outcome, LoginRefused> {
    sample::login(hub, [127, 0, 0, 1], (name, password))
}

/// The check that a login needs; it fails where none is needed.
fn check(hub: &Hub, name: &str, password: &str) -> Box<PasswordCheck> {
    match login(hub, name, password).unwrap() {
        Outcome::Check(check) => check,
        Outcome::In(login) => panic!("{login:?}"),
    }
}

fn carried_out(hub: &Hub, check: &PasswordCheck) -> Result<Box<Login>, LoginRefused> {
    hub.checked(check, check.carry_out(), NOW)
}

#[test]
fn a_right_password_is_checked_once() {
    let hub = hub(&format!("ann:{HASH}\nbob:{OTHER}"));
    for name in ["ann", "bob"] {
        let is_in = carried_out(&hub, &check(&hub, name, "hunter2")).unwrap();
        assert_eq!(is_in.identity.rule_name(), format!("user:{name}"));
    }
    for name in ["ann", "bob"] {
        let known = login(&hub, name, "hunter2").unwrap();
        assert!(matches!(known, Outcome::In(_)), "{known:?}");
        // Another password is another question.
        check(&hub, name, "hunter3");
    }
    check(&hub, "carl", "hunter2");
    // Written otherwise, it is another password, until it is shown again.
    set(&hub, &format!("ann:{OTHER}\nbob:{OTHER}"));
    carried_out(&hub, &check(&hub, "ann", "hunter2")).unwrap();
    let known = login(&hub, "bob", "hunter2").unwrap();
    assert!(matches!(known, Outcome::In(_)), "{known:?}");
}

#[test]
fn wrong_passwords_and_strangers_are_checked_every_time() {
    let hub = hub(&format!("ann:{HASH}"));
    for _ in 0..2 {
        let wrong = check(&hub, "ann", "hunter3");
        assert_eq!(wrong.carry_out(), Some(false));
        let refused = carried_out(&hub, &wrong).unwrap_err();
        assert_eq!(refused.code.v311, ConnectReturnCode::NotAuthorized);
        // With the password of the one whose hash stands in.
        let stranger = check(&hub, "carl", "hunter2");
        assert_eq!(stranger.hash.text(), HASH);
        assert_eq!(stranger.carry_out(), Some(false));
        assert!(carried_out(&hub, &stranger).is_err());
    }
}

#[test]
fn the_answer_counts_only_for_the_password_of_now() {
    let hub = hub(&format!("ann:{HASH}"));
    for after in [format!("ann:{OTHER}"), String::new()] {
        set(&hub, &format!("ann:{HASH}"));
        let check = check(&hub, "ann", "hunter2");
        set(&hub, &after);
        assert!(carried_out(&hub, &check).is_err());
    }
    let without_users = login(&hub, "ann", "hunter2").unwrap_err();
    assert_eq!(without_users.code.v311, ConnectReturnCode::NotAuthorized);
    hub.set_users(None);
    let without_a_file = login(&hub, "ann", "hunter2").unwrap_err();
    let code = ConnectReturnCode::BadUserNameOrPassword;
    assert_eq!(without_a_file.code.v311, code);
}

#[test]
fn what_cannot_be_found_out_is_nobodys_fault() {
    let hub = hub(&format!("ann:{HASH}"));
    let check = check(&hub, "ann", "hunter2");
    let refused = hub.checked(&check, None, NOW).unwrap_err();
    assert_eq!(refused.code.v311, ConnectReturnCode::ServerUnavailable);
    assert_eq!(refused.delay_ms, 0);
    assert_eq!(hub.doubt(&check, NOW), Doubt::default());
    let again = hub.checked(&check, Some(false), NOW).unwrap_err();
    assert_eq!(again.delay_ms, 0, "the first failure");
    assert!(hub.doubt(&check, NOW) > Doubt::default());
}

#[test]
fn secrets_are_not_printed() {
    let hub = hub(&format!("ann:{HASH}"));
    let check = check(&hub, "ann", "hunter2");
    let printed = format!("{check:?} {hub:?}");
    for secret in ["hunter2", HASH, "104, 117, 110, 116"] {
        assert!(!printed.contains(secret), "{secret}");
    }
}

#[test]
fn so_many_are_remembered_and_the_longest_unused_goes() {
    let mut known = Known::default();
    let tag = |number: usize| {
        let mut tag = [0; 32];
        tag[..8].copy_from_slice(&number.to_be_bytes());
        tag
    };
    for number in 0..KNOWN_MAX {
        known.add(tag(number), number as u64);
    }
    assert!(known.has(&tag(0), KNOWN_MAX as u64));
    known.add(tag(KNOWN_MAX), KNOWN_MAX as u64 + 1);
    assert_eq!(known.tags.len(), KNOWN_MAX);
    assert!(known.has(&tag(0), 0) && known.has(&tag(KNOWN_MAX), 0));
    assert!(!known.has(&tag(1), 0));
}
