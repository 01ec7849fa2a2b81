//! Who is let in.

use std::net::IpAddr;
use std::sync::atomic::Ordering;

use bytes::Bytes;

use super::client::{Client, Token, Will};
use super::{Hub, Now, brief};
use crate::identity::rules::{Action, Decision};
use crate::identity::{self, Audience, ClientCertificate, Credentials, Denied, Identity, Password};
use crate::iothub::username::UserName;
use crate::mqtt::v5::{Properties, Property, ReasonCode};
use crate::mqtt::{Connect, ConnectReturnCode, Publish};
use crate::observe::{self};
use crate::session::{Close, Refusal, Session};

/// A client that may come in.
#[derive(Debug)]
pub struct Login {
    pub(super) identity: Identity,
    /// Where it comes from.
    pub(super) address: IpAddr,
    pub(super) credentials: Option<Credentials>,
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
    ) -> Result<Login, LoginRefused> {
        let connect = came.0;
        if self.connects.take(1, now.ms) == 0 {
            return Err(self.too_many_connects(peer));
        }
        match self.login_inner(came, session, peer, now) {
            Ok(login) => {
                self.failures.forget(peer.address, connect.client_id);
                Ok(login)
            }
            Err((code, reason, text)) => {
                let claimed = connect.client_id;
                let known = Identity::parse(claimed);
                let id = known
                    .as_ref()
                    .map_or("unknown", |known| self.id_label(known));
                let labels = [("id", id), ("reason", reason)];
                self.metrics
                    .counter(observe::CONNECT_FAILED, &labels)
                    .increment(1);
                let delay_ms = self.failures.count(peer.address, claimed, now.ms);
                if self.may_log() {
                    let client = brief(claimed);
                    tracing::warn!(client, address = %peer.address, reason, "{text}");
                }
                Err(LoginRefused {
                    code: code.into(),
                    delay_ms,
                    close: Close::LoginRefused(text),
                })
            }
        }
    }

    fn too_many_connects(&self, peer: &Peer) -> LoginRefused {
        let (reason, text) = ("connect_rate", "over max_connects_per_second");
        let labels = [("id", "unknown"), ("reason", reason)];
        let counter = self.metrics.counter(observe::CONNECT_FAILED, &labels);
        counter.increment(1);
        if self.may_log() {
            tracing::warn!(address = %peer.address, reason, "{text}");
        }
        LoginRefused {
            code: Refusal {
                v311: ConnectReturnCode::ServerUnavailable,
                v5: ReasonCode::ConnectionRateExceeded,
            },
            delay_ms: 0,
            close: Close::LoginRefused(text.to_owned()),
        }
    }

    fn login_inner(
        &self,
        (connect, will_properties): (&Connect<'_>, Properties<'_>),
        session: &Session<Token>,
        peer: &Peer,
        now: Now,
    ) -> Result<Login, (ConnectReturnCode, &'static str, String)> {
        use ConnectReturnCode as Code;
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
        let mut login = Login {
            identity: Identity::device("{{anonymous}}"),
            address: peer.address,
            credentials: None,
            expires_unix: None,
            clean: connect.clean_session,
            persistent: expiry_s > 0,
            expiry_s,
            is_v5: session.is_v5(),
            is_assigned: false,
            is_hub: false,
            will,
            keep_alive_seconds: connect.keep_alive_seconds,
        };
        let claimed = match connect.username {
            Some(name) => {
                let name = UserName::parse(name).map_err(|error| {
                    let text = format!("user name: {error}");
                    (Code::BadUserNameOrPassword, "bad_user_name", text)
                })?;
                login.is_hub = name.is_hub();
                name.identity
            }
            None if peer.anonymous && peer.certificate.is_none() => {
                login.is_assigned = connect.client_id.is_empty();
                if login.is_assigned && !connect.clean_session && !login.is_v5 {
                    let text = "an empty client id needs a clean session".to_owned();
                    return Err((Code::IdentifierRejected, "client_id_mismatch", text));
                }
                if connect.client_id.len() > CLIENT_ID_BYTES_MAX {
                    let text = format!("a client id of over {CLIENT_ID_BYTES_MAX} bytes");
                    return Err((Code::IdentifierRejected, "client_id_mismatch", text));
                }
                login.identity = self.anonymous(connect.client_id, now);
                return self.check_connect(login);
            }
            None => Identity::parse(connect.client_id).ok_or_else(|| {
                let text = "no user name, and the client id names no identity".to_owned();
                (Code::NotAuthorized, "no_credentials", text)
            })?,
        };
        if claimed.as_str() != connect.client_id {
            let text = format!("the client id is not the user name's identity {claimed}");
            return Err((Code::IdentifierRejected, "client_id_mismatch", text));
        }
        let credentials = Credentials {
            identity: claimed,
            password: connect.password.and_then(Password::read),
            certificate: peer.certificate.clone(),
        };
        let authenticated = self
            .authenticate(&credentials, now)
            .map_err(|denied| (Code::NotAuthorized, denied.reason(), denied.to_string()))?;
        login.identity = authenticated.identity().clone();
        login.expires_unix = authenticated.expires_at();
        login.credentials = Some(credentials);
        self.check_connect(login)
    }

    /// Rules may keep out whom nothing else does.
    fn check_connect(
        &self,
        login: Login,
    ) -> Result<Login, (ConnectReturnCode, &'static str, String)> {
        match self.decide(&login.identity, Action::Connect) {
            Decision::Allowed | Decision::NoRule => Ok(login),
            Decision::Denied => {
                let code = ConnectReturnCode::NotAuthorized;
                Err((code, "denied_by_rule", DENIED.to_owned()))
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

    /// Checks a connected client's credentials again: its token ran out, or identities changed.
    ///
    /// # Errors
    /// Why the connection must be closed.
    pub fn recheck(&self, client: &mut Client, now: Now) -> Result<(), Close> {
        if let Some(credentials) = &client.credentials {
            let authenticated = self
                .authenticate(credentials, now)
                .map_err(|denied| Close::Revoked(denied.to_string()))?;
            client.expires_unix = authenticated.expires_at();
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
        let Some(packet_id) = publish.packet_id.filter(|_| client.credentials.is_some()) else {
            return false;
        };
        let Some(mut slot) = self.slots.get_mut(&client.identity) else {
            return false;
        };
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

    /// An identity as a metric label: those that are known, and `unknown`.
    pub(super) fn id_label<'a>(&self, identity: &'a Identity) -> &'a str {
        let known = self.registry.load().get(identity).is_some();
        if known {
            identity.as_str()
        } else if identity.is_plain() {
            identity.device_id()
        } else {
            "unknown"
        }
    }

    /// Whoever shows nothing is known by its client id, or by one that was not there before.
    fn anonymous(&self, client_id: &str, now: Now) -> Identity {
        if !client_id.is_empty() {
            return Identity::plain(ANONYMOUS, client_id);
        }
        let number = self.next_anonymous.fetch_add(1, Ordering::Relaxed);
        Identity::plain(ANONYMOUS, &format!("#{:x}-{number}", now.wall_ms))
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
/// Longest client id of a client that is in no registry.
const CLIENT_ID_BYTES_MAX: usize = 256;
/// What clients without credentials are.
const ANONYMOUS: &str = "anonymous";
/// Refused publishes remembered per identity.
const REFUSED_MAX: usize = 16;
