//! Users: whose password is to be checked, what was found right before, whose turn it is.
//!
//! A password takes long to check, on purpose. So [`Hub::login`] gives a [`PasswordCheck`] back,
//! which somebody carries out elsewhere and tells [`Hub::checked`] about.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use arc_swap::ArcSwapOption;
use ring::hmac;

use super::failures::Doubt;
use super::login::{Claim, KeptOut, Login, LoginRefused, Outcome, Proof};
use super::{Hub, Now};
use crate::identity::password::{PASSWORD_BYTES_MAX, StoredHash};
use crate::identity::rules::USER_PREFIX;
use crate::identity::users::{self, Users};
use crate::identity::{Identity, Secret};
use crate::mailbox::RECHECK;
use crate::mqtt::v5::ReasonCode;
use crate::mqtt::{Connect, ConnectReturnCode};
use crate::session::Refusal;

/// Passwords that were found right and are remembered: as many as clients come back at a time.
const KNOWN_MAX: usize = 4096;

/// The users, and which of their passwords were found right already.
#[derive(Debug, Default)]
pub(super) struct Passwords {
    /// `None`: the configuration names no users file.
    users: ArcSwapOption<Users>,
    /// Of this process alone.
    key: OnceLock<hmac::Key>,
    known: Mutex<Known>,
}

/// Tags of user, password and hash that go together, with the time at which each was last of use.
#[derive(Debug, Default)]
struct Known {
    tags: HashMap<[u8; 32], u64>,
}

impl Known {
    fn has(&mut self, tag: &[u8; 32], now_ms: u64) -> bool {
        let Some(last_ms) = self.tags.get_mut(tag) else {
            return false;
        };
        *last_ms = now_ms;
        true
    }

    fn add(&mut self, tag: [u8; 32], now_ms: u64) {
        if self.tags.len() >= KNOWN_MAX && !self.tags.contains_key(&tag) {
            let oldest = self.tags.iter().min_by_key(|(_, last_ms)| **last_ms);
            if let Some(oldest) = oldest.map(|(tag, _)| *tag) {
                self.tags.remove(&oldest);
            }
        }
        self.tags.insert(tag, now_ms);
    }
}

impl Passwords {
    /// The user's hash as it is now.
    fn get(&self, name: &str) -> Option<Arc<StoredHash>> {
        self.users.load().as_ref()?.get(name).map(Arc::clone)
    }

    fn tag(&self, parts: &[&[u8]]) -> Option<[u8; 32]> {
        let mut context = hmac::Context::with_key(self.key.get()?);
        for part in parts {
            context.update(&(part.len() as u64).to_be_bytes());
            context.update(part);
        }
        context.sign().as_ref().try_into().ok()
    }
}

/// A password that is to be checked. Whoever does it must not hold others up: it takes long.
#[derive(Debug)]
pub struct PasswordCheck {
    /// What comes of it if the password is right.
    login: Login,
    name: Box<str>,
    /// The user's hash, or somebody's for one who is not there.
    hash: Arc<StoredHash>,
    is_user: bool,
    password: Secret,
    /// By which it is known again.
    tag: [u8; 32],
}

impl PasswordCheck {
    /// Whether the password is right; `None` where that cannot be found out now.
    #[must_use]
    pub fn carry_out(&self) -> Option<bool> {
        let is_right = self.hash.is_of(self.password.as_bytes())?;
        Some(is_right && self.is_user)
    }

    fn claim(&self) -> String {
        format!("{USER_PREFIX}{}", self.name)
    }
}

impl Hub {
    /// Takes the random key under which passwords that were right are remembered; the first stays.
    pub fn set_password_key(&self, key: &[u8; 32]) {
        let key = hmac::Key::new(hmac::HMAC_SHA256, key);
        self.passwords.key.get_or_init(|| key);
    }

    /// Takes new users; `None`: there is no users file. Connections of those who left or have
    /// another password now are closed. Returns their names.
    pub fn set_users(&self, users: Option<Users>) -> Vec<String> {
        let old = self.passwords.users.swap(users.map(Arc::new));
        let none = Users::default();
        let new = self.passwords.users.load();
        let changed = users::changed(
            old.as_deref().unwrap_or(&none),
            new.as_deref().unwrap_or(&none),
        );
        if !changed.is_empty() {
            self.announce_if(RECHECK, |identity| {
                let name = identity.rule_name().strip_prefix(USER_PREFIX);
                let named = name.filter(|_| identity.is_plain());
                named.is_some_and(|name| changed.iter().any(|changed| changed == name))
            });
        }
        changed
    }

    /// The user name of a CONNECT, if it is one that the users file could have.
    pub(super) fn user_name<'a>(&self, connect: &Connect<'a>) -> Option<&'a str> {
        let name = connect.username.filter(|name| users::is_user_name(name))?;
        self.passwords.users.load().is_some().then_some(name)
    }

    /// Decides about a user, as far as that takes no time.
    pub(super) fn login_user(
        &self,
        name: &str,
        connect: &Connect<'_>,
        mut login: Login,
        now: Now,
    ) -> Result<Outcome, KeptOut> {
        let password = connect.password.unwrap_or_default();
        if password.is_empty() {
            let text = "a user name without a password";
            return Err(refusal("no_credentials", text));
        }
        let kind = format!("{USER_PREFIX}{name}");
        login.identity = self.plain_identity(&kind, connect, &mut login, now)?;
        let users = self.passwords.users.load();
        let user = users.as_ref().and_then(|users| users.get(name));
        let pick = self.passwords.tag(&[name.as_bytes()]).unwrap_or_default();
        let pick = pick
            .first_chunk()
            .map_or(0, |bytes| u64::from_be_bytes(*bytes));
        let stand_in = || users.as_ref().and_then(|users| users.stand_in(pick));
        let Some(hash) = user.or_else(stand_in) else {
            return Err(unknown());
        };
        if password.len() > PASSWORD_BYTES_MAX {
            return Err(wrong(user.is_some()));
        }
        let parts = [name.as_bytes(), password, hash.text().as_bytes()];
        let Some(tag) = self.passwords.tag(&parts) else {
            return Err(unknown());
        };
        login.proof = Some(Proof::User {
            name: name.into(),
            hash: Arc::clone(hash),
        });
        if user.is_some() && self.known().has(&tag, now.ms) {
            return self.check_connect(login).map(Outcome::In);
        }
        Ok(Outcome::Check(Box::new(PasswordCheck {
            login,
            name: name.into(),
            hash: Arc::clone(hash),
            is_user: user.is_some(),
            password: Secret::new(password),
            tag,
        })))
    }

    /// Goes on with a login whose password was checked, with [`PasswordCheck::carry_out`]'s answer.
    ///
    /// # Errors
    /// The return code, and how long to hold it back.
    pub fn checked(
        &self,
        check: &PasswordCheck,
        answer: Option<bool>,
        now: Now,
    ) -> Result<Box<Login>, LoginRefused> {
        let (login, name) = (&check.login, &*check.name);
        let claim = Claim {
            address: login.address,
            name: &check.claim(),
            is_known: check.is_user,
        };
        let verdict = match answer {
            None => Err(busy()),
            Some(false) => Err(wrong(check.is_user)),
            Some(true) if !self.is_current(name, &check.hash) => Err(wrong(true)),
            Some(true) => {
                self.known().add(check.tag, now.ms);
                self.check_connect(login.clone())
            }
        };
        match verdict {
            Ok(login) => Ok(self.let_in(login, &claim)),
            Err(refusal) => Err(self.refuse(refusal, &claim, now)),
        }
    }

    /// What speaks against a check, of several that wait: less goes first.
    #[must_use]
    pub fn doubt(&self, check: &PasswordCheck, now: Now) -> Doubt {
        let address: IpAddr = check.login.address;
        self.failures.doubt(address, &check.claim(), now.ms)
    }

    /// Whether a user's password is still the one that was shown.
    pub(super) fn is_current(&self, name: &str, hash: &StoredHash) -> bool {
        self.passwords.get(name).is_some_and(|now| *now == *hash)
    }

    /// A client that is in no registry, by the client id that it chose or that it gets.
    pub(super) fn plain_identity(
        &self,
        kind: &str,
        connect: &Connect<'_>,
        login: &mut Login,
        now: Now,
    ) -> Result<Identity, KeptOut> {
        let rejected = |text: String| {
            let code = ConnectReturnCode::IdentifierRejected;
            KeptOut::new(code, "client_id_mismatch", text)
        };
        login.is_assigned = connect.client_id.is_empty();
        if login.is_assigned && !connect.clean_session && !login.is_v5 {
            let text = "an empty client id needs a clean session";
            return Err(rejected(text.to_owned()));
        }
        if connect.client_id.len() > CLIENT_ID_BYTES_MAX {
            let text = format!("a client id of over {CLIENT_ID_BYTES_MAX} bytes");
            return Err(rejected(text));
        }
        if login.is_assigned {
            return Ok(Identity::plain(kind, &self.new_client_id(now)));
        }
        Ok(Identity::plain(kind, connect.client_id))
    }

    fn known(&self) -> std::sync::MutexGuard<'_, Known> {
        let known = &self.passwords.known;
        known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Longest client id of a client that is in no registry.
const CLIENT_ID_BYTES_MAX: usize = 256;

fn wrong(is_user: bool) -> KeptOut {
    if !is_user {
        return unknown();
    }
    refusal("user_password", "the password is not the user's")
}

fn unknown() -> KeptOut {
    refusal("unknown_user", "there is no such user")
}

/// In MQTT 3.1.1 code 4 means a user name that does not read, and some clients give up at it.
fn refusal(reason: &'static str, text: &str) -> KeptOut {
    let code = Refusal {
        v311: ConnectReturnCode::NotAuthorized,
        v5: ReasonCode::BadUserNameOrPassword,
    };
    KeptOut::new(code, reason, text.to_owned())
}

fn busy() -> KeptOut {
    let text = "the password could not be checked in time".to_owned();
    KeptOut::new(ConnectReturnCode::ServerUnavailable, "overloaded", text)
}

#[cfg(test)]
mod tests;
