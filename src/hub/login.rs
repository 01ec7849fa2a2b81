//! Who is let in.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;

use super::client::{Client, Token, Will};
use super::users::PasswordCheck;
use super::{Hub, Now, brief};
use crate::identity::password::StoredHash;
use crate::identity::registry::{self, Registry};
use crate::identity::rules::{self, Action, CERTIFICATE_PREFIX, Decision, USER_PREFIX};
use crate::identity::{self, Audience, ClientCertificate, Credentials, Denied, Identity, Password};
use crate::iothub::username::UserName;
use crate::mailbox::RECHECK;
use crate::mqtt::v5::{Properties, Property, ReasonCode};
use crate::mqtt::{Connect, ConnectReturnCode, Publish};
use crate::observe::{self};
use crate::session::{Close, Refusal, Session};

/// A client that may come in.
#[derive(Debug, Clone)]
pub struct Login {
    pub(super) identity: Identity,
    /// Where it comes from.
    pub(super) address: IpAddr,
    /// How it proved who it is; `None` for clients without credentials.
    pub(super) proof: Option<Proof>,
    pub(super) expires_unix: Option<u64>,
    /// What there was of its session is forgotten.
    pub(super) clean: bool,
    /// The session is kept after the connection.
    pub(super) persistent: bool,
    /// For so long, in seconds; `u32::MAX`: for ever.
    pub(super) expiry_s: u32,
    pub(super) is_v5: bool,
    /// The hub chose its client id.
    pub(super) is_assigned: bool,
    /// It is a hub itself, one below.
    pub(super) is_hub: bool,
    pub(super) will: Option<Will>,
    /// The client's keep-alive in seconds; 0: none.
    pub keep_alive_seconds: u16,
}

/// What is looked at again when something has changed while the client is connected.
#[derive(Debug, Clone)]
pub(super) enum Proof {
    /// A device or module, by what it showed.
    Registry(Credentials),
    /// A certificate that stands for itself.
    Certificate(Box<ClientCertificate>),
    /// A user, by the hash that its password had.
    User {
        name: Box<str>,
        hash: Arc<StoredHash>,
    },
}

/// What comes of a CONNECT.
#[derive(Debug)]
pub enum Outcome {
    /// The client may come in.
    In(Box<Login>),
    /// Its password is to be checked first; [`Hub::checked`] goes on.
    Check(Box<PasswordCheck>),
}

/// A client that may not.
#[derive(Debug)]
pub struct LoginRefused {
    /// The code for CONNACK.
    pub code: Refusal,
    /// How long the answer is held back: guessing is slow, the right credentials never are.
    pub delay_ms: u64,
    /// Why, for the log.
    pub close: Close,
}

/// Why a client is kept out.
#[derive(Debug)]
pub(super) struct KeptOut {
    code: Refusal,
    /// For the metrics.
    reason: &'static str,
    text: String,
}

impl KeptOut {
    pub fn new(code: impl Into<Refusal>, reason: &'static str, text: String) -> Self {
        let code = code.into();
        Self { code, reason, text }
    }
}

/// Who somebody says it is: failures are held against that, and the address.
pub(super) struct Claim<'a> {
    pub address: IpAddr,
    /// The client id, or the user as rules call it.
    pub name: &'a str,
    /// It is a user that exists.
    pub is_known: bool,
}

/// What the connection knows about the client beside the CONNECT packet.
#[derive(Debug, Clone)]
pub struct Peer {
    /// Where it comes from.
    pub address: IpAddr,
    /// Its certificate, if it showed one.
    pub certificate: Option<ClientCertificate>,
    /// Whether the listener lets clients without credentials in.
    pub anonymous: bool,
}

impl Hub {
    /// Decides about a CONNECT, which comes with its will's properties (facts §1.3, `DESIGN` §4).
    ///
    /// # Errors
    /// The return code, and how long to hold it back.
    pub fn login(
        &self,
        came: (&Connect<'_>, Properties<'_>),
        session: &Session<Token>,
        peer: &Peer,
        now: Now,
    ) -> Result<Outcome, LoginRefused> {
        if self.connects.take(1, now.ms) == 0 {
            let nobody = Claim {
                address: peer.address,
                name: "",
                is_known: false,
            };
            return Err(self.refuse(too_many_connects(), &nobody, now));
        }
        let user = self.user_name(came.0);
        let user = user.map(|name| format!("{USER_PREFIX}{name}"));
        let claim = Claim {
            address: peer.address,
            name: user.as_deref().unwrap_or(came.0.client_id),
            is_known: false,
        };
        match self.login_inner(came, session, peer, now) {
            Ok(Outcome::In(login)) => Ok(Outcome::In(self.let_in(login, &claim))),
            Ok(check) => Ok(check),
            Err(refusal) => Err(self.refuse(refusal, &claim, now)),
        }
    }

    /// The right credentials were shown.
    pub(super) fn let_in(&self, login: Box<Login>, claim: &Claim<'_>) -> Box<Login> {
        self.failures.forget(claim.address, claim.name);
        login
    }

    /// Counts a failed login and tells it.
    pub(super) fn refuse(&self, refusal: KeptOut, claim: &Claim<'_>, now: Now) -> LoginRefused {
        let KeptOut { code, reason, text } = refusal;
        let known = Identity::parse(claim.name);
        let id = match &known {
            _ if claim.is_known => claim.name,
            Some(known) => self.id_label(known),
            None => "unknown",
        };
        let labels = [("id", id), ("reason", reason)];
        let counter = self.metrics.counter(observe::CONNECT_FAILED, &labels);
        counter.increment(1);
        let is_ours = code.v311 == ConnectReturnCode::ServerUnavailable;
        let delay_ms = match is_ours {
            true => 0,
            false => self.failures.count(claim.address, claim.name, now.ms),
        };
        if self.may_log() {
            // Who mixes them up has a password in the place of the user name.
            let is_user = claim.name.starts_with(USER_PREFIX) && !claim.is_known;
            let client = if is_user { "unknown user" } else { claim.name };
            let client = brief(client);
            tracing::warn!(client, address = %claim.address, reason, "{text}");
        }
        LoginRefused {
            code,
            delay_ms,
            close: Close::LoginRefused(text),
        }
    }

    fn login_inner(
        &self,
        (connect, will_properties): (&Connect<'_>, Properties<'_>),
        session: &Session<Token>,
        peer: &Peer,
        now: Now,
    ) -> Result<Outcome, KeptOut> {
        use ConnectReturnCode as Code;
        let mut login = new_login(connect, will_properties, session, peer);
        if let Some(name) = self.user_name(connect) {
            return self.login_user(name, connect, login, now);
        }
        if let Some(shown) = self.stands_for_itself(connect, peer) {
            return self.login_certificate(shown, connect, login, now);
        }
        let claimed = match connect.username {
            Some(name) => {
                let name = UserName::parse(name).map_err(|error| {
                    let text = format!("user name: {error}");
                    KeptOut::new(Code::BadUserNameOrPassword, "bad_user_name", text)
                })?;
                login.is_hub = name.is_hub();
                name.identity
            }
            None if peer.anonymous && peer.certificate.is_none() => {
                login.identity = self.plain_identity(ANONYMOUS, connect, &mut login, now)?;
                return self.check_connect(login).map(Outcome::In);
            }
            None => Identity::parse(connect.client_id).ok_or_else(|| {
                let text = "no user name, and the client id names no identity".to_owned();
                KeptOut::new(Code::NotAuthorized, "no_credentials", text)
            })?,
        };
        if claimed.as_str() != connect.client_id {
            let text = format!("the client id is not the user name's identity {claimed}");
            let code = Code::IdentifierRejected;
            return Err(KeptOut::new(code, "client_id_mismatch", text));
        }
        let credentials = Credentials {
            identity: claimed,
            password: connect.password.and_then(Password::read),
            certificate: peer.certificate.clone(),
        };
        let authenticated = self.authenticate(&credentials, now).map_err(|denied| {
            KeptOut::new(Code::NotAuthorized, denied.reason(), denied.to_string())
        })?;
        login.identity = authenticated.identity().clone();
        login.expires_unix = authenticated.expires_at();
        login.proof = Some(Proof::Registry(credentials));
        self.check_connect(login).map(Outcome::In)
    }

    /// Rules may keep out whom nothing else does.
    pub(super) fn check_connect(&self, login: Login) -> Result<Box<Login>, KeptOut> {
        match self.decide(&login.identity, Action::Connect) {
            Decision::Allowed | Decision::NoRule => Ok(Box::new(login)),
            Decision::Denied => {
                let code = ConnectReturnCode::NotAuthorized;
                Err(KeptOut::new(code, "denied_by_rule", DENIED.to_owned()))
            }
        }
    }

    fn authenticate(
        &self,
        credentials: &Credentials,
        now: Now,
    ) -> Result<identity::Authenticated, Denied> {
        let settings = self.settings.load();
        let audience = Audience {
            iothub_hostname: &settings.iothub_hostname,
            gateway_hostname: &settings.gateway_hostname,
        };
        identity::authenticate(&self.registry.load(), credentials, &audience, now.unix)
    }

    /// Takes new identities; clients whose own entry changed are checked again.
    pub fn set_registry(&self, registry: Registry) -> Vec<Identity> {
        let old = self.registry.swap(Arc::new(registry));
        let changed = registry::changed(&old, &self.registry.load());
        self.ways.announce_to(&changed, RECHECK);
        for identity in &changed {
            // A module depends on its device's entry too.
            self.announce_if(RECHECK, |client| {
                let name = client.rule_name();
                client == identity
                    || client.device_id() == identity.as_str()
                    || name.strip_prefix(CERTIFICATE_PREFIX) == Some(identity.as_str())
            });
        }
        changed
    }

    /// Checks a connected client's credentials again: its token ran out, or identities changed.
    ///
    /// # Errors
    /// Why the connection must be closed.
    pub fn recheck(&self, client: &mut Client, now: Now) -> Result<(), Close> {
        match &client.proof {
            Some(Proof::Registry(credentials)) => {
                let authenticated = self
                    .authenticate(credentials, now)
                    .map_err(|denied| Close::Revoked(denied.to_string()))?;
                client.expires_unix = authenticated.expires_at();
            }
            Some(Proof::User { name, hash }) if !self.is_current(name, hash) => {
                let text = "the user was removed, or has another password";
                return Err(Close::Revoked(text.to_owned()));
            }
            Some(Proof::Certificate(shown)) => {
                let checked = self.check_certificate(shown, now);
                let (_, expires_unix) = checked.map_err(|why| Close::Revoked(why.text))?;
                client.expires_unix = Some(expires_unix);
            }
            Some(Proof::User { .. }) | None => {}
        }
        if self.decide(&client.identity, Action::Connect) == Decision::Denied {
            return Err(Close::Revoked(DENIED.to_owned()));
        }
        self.cut_subscriptions(client);
        Ok(())
    }

    /// Remembers a refused publish; true if the very same one was refused before, in which case it
    /// is acknowledged, lest the client sends it for ever (`DESIGN` §4).
    pub fn refused_before(&self, client: &Client, publish: &Publish<'_>) -> bool {
        let Some(packet_id) = publish.packet_id else {
            return false;
        };
        let Some(mut slot) = self.slots.get_mut(&client.identity) else {
            return false;
        };
        slot.is_strange = client.proof.is_none();
        let refused = &mut slot.refused;
        let known = refused
            .iter()
            .position(|(id, topic)| *id == packet_id && topic == publish.topic);
        if let Some(known) = known {
            refused.remove(known);
            return true;
        }
        if refused.len() >= REFUSED_MAX {
            refused.pop_front();
        }
        refused.push_back((packet_id, publish.topic.to_owned()));
        false
    }

    /// Takes the newest routes over.
    pub fn take_routing(&self, client: &mut Client) {
        client.routing = self.routing();
        client.outputs.clear();
        client.parsed = None;
        client.crossing_output = None;
        client.matches.clear();
        self.refresh_inputs(client);
    }

    /// Raises bits at all connected clients.
    pub fn announce(&self, bits: u32) {
        for slot in &self.slots {
            if let Some(current) = &slot.current {
                current.raise(bits);
            }
        }
    }

    /// An identity as a metric label: those that are known, users and anonymous clients by their
    /// names in rules, and `unknown`.
    pub(super) fn id_label<'a>(&self, identity: &'a Identity) -> &'a str {
        let known = self.registry.load().get(identity).is_some();
        if known {
            identity.as_str()
        } else if identity.is_plain() {
            identity.rule_name()
        } else {
            "unknown"
        }
    }

    /// A client id that was not there before.
    pub(super) fn new_client_id(&self, now: Now) -> String {
        let number = self.next_anonymous.fetch_add(1, Ordering::Relaxed);
        format!("#{:x}-{number}", now.wall_ms)
    }
}

fn too_many_connects() -> KeptOut {
    let code = Refusal {
        v311: ConnectReturnCode::ServerUnavailable,
        v5: ReasonCode::ConnectionRateExceeded,
    };
    let text = "over max_connects_per_second";
    KeptOut::new(code, "connect_rate", text.to_owned())
}

/// What a CONNECT asks for, of somebody who is not known yet.
fn new_login(
    connect: &Connect<'_>,
    will_properties: Properties<'_>,
    session: &Session<Token>,
    peer: &Peer,
) -> Login {
    let will = connect.will.as_ref().map(|will| Will {
        topic: will.topic.to_owned(),
        payload: Bytes::copy_from_slice(will.payload),
        qos: will.qos,
        delay_s: delay(will_properties),
        retain: will.retain,
        properties: Bytes::copy_from_slice(will_properties.as_bytes()),
    });
    let expiry_s = session
        .expiry_seconds()
        .unwrap_or(if connect.clean_session { 0 } else { u32::MAX });
    Login {
        identity: Identity::device(rules::ANONYMOUS),
        address: peer.address,
        proof: None,
        expires_unix: None,
        clean: connect.clean_session,
        persistent: expiry_s > 0,
        expiry_s,
        is_v5: session.is_v5(),
        is_assigned: false,
        is_hub: false,
        will,
        keep_alive_seconds: connect.keep_alive_seconds,
    }
}

/// How long a will waits, in seconds (MQTT 5 §3.1.3.2.2).
fn delay(properties: Properties<'_>) -> u32 {
    let delay = properties.find(|property| match property {
        Property::WillDelay(seconds) => Some(seconds),
        _ => None,
    });
    delay.unwrap_or(0)
}

/// Why a client may not connect that could.
const DENIED: &str = "an authorization rule denies mqtt:connect";
/// What clients without credentials are.
const ANONYMOUS: &str = "anonymous";
/// Refused publishes remembered per identity.
const REFUSED_MAX: usize = 16;
