//! One line to the cloud: connects, talks, and connects again.

use std::num::{NonZeroU16, NonZeroU32};
use std::sync::Arc;

use bytes::BytesMut;
use tokio::sync::watch;

use super::dial::{Dialed, dial};
use super::intake::HELD_MAX;
use super::link::{Failure, Reason};
use super::settings::{Account, Settings};
use super::standing::Standing;
use super::talk::{End, Ends, Talk, packet_bytes_max};
use crate::hub::{Hub, Now, Token, Uplink};
use crate::identity::{Authentication, Entry, Identity};
use crate::iothub::sas;
use crate::iothub::username::UserName;
use crate::mailbox::{Mailbox, RECHECK};
use crate::mqtt::v5::{self, Place, Properties, Property, encode_properties};
use crate::mqtt::{Connect, EncodeError};
use crate::server::Clock;
use crate::session::{Upward, UpwardTiming};

/// A token is replaced after two thirds of its time.
const RENEW_PART: (u64, u64) = (2, 3);

/// What all lines share.
#[derive(Debug, Clone)]
pub struct Surroundings {
    /// Where messages come from.
    pub hub: Arc<Hub>,
    /// The clock of all times.
    pub clock: Clock,
    /// What `[upstream]` says.
    pub settings: Arc<Settings>,
    /// Counts changes of the device's network.
    pub network: watch::Receiver<u64>,
    /// True: end.
    pub stop: watch::Receiver<bool>,
}

/// One line: the connections, one after the other, of one sender or of all.
pub struct Line {
    around: Surroundings,
    only: Option<Identity>,
    mailbox: Arc<Mailbox>,
    uplink: Uplink,
    standing: Standing,
    /// A connection that is ready for the next login.
    ready: Option<Dialed>,
    next_id: u16,
}

/// What a CONNECT says.
struct Login {
    client_id: String,
    username: Option<String>,
    password: Option<Vec<u8>>,
    /// When it has to be said anew.
    renew_ms: u64,
}

enum Attempt {
    Failed(Failure),
    Idle,
    /// Go on at once.
    Again,
    Stopped,
}

impl Line {
    /// A line for one sender, or for all.
    #[must_use]
    pub fn new(around: Surroundings, only: Option<Identity>) -> Self {
        let mailbox = Arc::new(Mailbox::default());
        let forwarding = Arc::clone(&around.settings.forwarding);
        let uplink = around.hub.uplink(only.clone(), forwarding, &mailbox);
        let id = only.as_ref().map_or("upstream", Identity::as_str);
        Self {
            standing: Standing::new(&around.hub, around.clock, id, around.settings.random),
            around,
            only,
            mailbox,
            uplink,
            ready: None,
            next_id: 1,
        }
    }

    /// Connects and forwards until it is stopped.
    pub async fn run(mut self) {
        loop {
            if !self.until_due().await {
                return;
            }
            // A login with a new token follows the one before without a gap.
            if self.ready.is_none() {
                self.standing.connecting();
            }
            match self.attempt().await {
                Attempt::Failed(failure) => self.standing.failed(failure),
                Attempt::Idle => self.standing.idle(),
                Attempt::Again => {}
                Attempt::Stopped => return,
            }
        }
    }

    /// Waits until there is something to do and the next try is due; false: stopped.
    async fn until_due(&mut self) -> bool {
        if self.ready.is_some() {
            return !*self.around.stop.borrow();
        }
        // A line for one sender connects when there is something to send.
        while self.only.is_some() && !self.around.hub.has_upward(&mut self.uplink) {
            tokio::select! {
                biased;
                _ = self.around.stop.wait_for(|stop| *stop) => return false,
                _ = mail(&self.mailbox) => {}
            }
        }
        loop {
            let due_ms = self.standing.due_ms();
            let due = tokio::time::sleep_until(self.around.clock.instant(due_ms));
            tokio::select! {
                biased;
                _ = self.around.stop.wait_for(|stop| *stop) => return false,
                () = due => return true,
                Ok(()) = self.around.network.changed() => self.standing.hurry(),
                raised = mail(&self.mailbox) => {
                    if raised & RECHECK != 0 {
                        self.standing.hurry();
                    }
                }
            }
        }
    }

    async fn attempt(&mut self) -> Attempt {
        let settings = Arc::clone(&self.around.settings);
        let dialed = match self.ready.take() {
            Some(dialed) => dialed,
            None => tokio::select! {
                biased;
                _ = self.around.stop.wait_for(|stop| *stop) => return Attempt::Stopped,
                dialed = dial(&settings.reach) => match dialed {
                    Ok(dialed) => dialed,
                    Err(failure) => return Attempt::Failed(failure),
                },
            },
        };
        let clock = self.around.clock;
        let now = clock.now();
        let dial_ms = dialed.took.as_millis() as u64;
        let timing = UpwardTiming {
            accept_ms: self.standing.asking(dialed.server, dial_ms),
            ..settings.timing
        };
        let login = match self.login(now) {
            Ok(login) => login,
            Err(text) => return Attempt::Failed(refused(text)),
        };
        let mut upward = match self.hello(timing, &login, now.ms) {
            Ok(upward) => upward,
            Err(error) => return Attempt::Failed(refused(error.to_string())),
        };
        upward.continue_ids(self.next_id);
        let ends = Ends {
            hub: &self.around.hub,
            clock,
            settings: &self.around.settings,
            mailbox: &self.mailbox,
            uplink: &mut self.uplink,
            standing: &mut self.standing,
        };
        let (end, next_id) = Talk::new(dialed.io, ends, upward, login.renew_ms)
            .run()
            .await;
        self.next_id = next_id;
        match end {
            End::Lost(failure) => Attempt::Failed(failure),
            End::Idle => Attempt::Idle,
            End::Renewed(dialed) => {
                self.ready = Some(dialed);
                Attempt::Again
            }
            End::Left => Attempt::Again,
        }
    }

    /// A conversation that begins with CONNECT, in a session that is kept.
    fn hello(
        &self,
        timing: UpwardTiming,
        login: &Login,
        now_ms: u64,
    ) -> Result<Upward<Token>, EncodeError> {
        let keep_alive_ms = timing.dead_peer_ms / 1000 * 3;
        let keep_alive_seconds = u16::try_from(keep_alive_ms).unwrap_or(u16::MAX);
        if !self.around.settings.is_v5 {
            let connect = Connect {
                clean_session: false,
                keep_alive_seconds,
                client_id: &login.client_id,
                will: None,
                username: login.username.as_deref(),
                password: login.password.as_deref(),
            };
            return Upward::new(timing, &connect, now_ms);
        }
        let packet_bytes = u32::try_from(packet_bytes_max(&self.around.hub)).unwrap_or(u32::MAX);
        let asked = [
            Some(Property::SessionExpiry(u32::MAX)),
            NonZeroU16::new(HELD_MAX).map(Property::ReceiveMaximum),
            NonZeroU32::new(packet_bytes).map(Property::MaximumPacketSize),
        ];
        let mut bytes = BytesMut::new();
        encode_properties(&mut bytes, Place::Connect, asked.into_iter().flatten())?;
        let connect = v5::Connect {
            clean_start: false,
            keep_alive_seconds,
            properties: Properties::parse(&bytes, Place::Connect).unwrap_or_default(),
            client_id: &login.client_id,
            will: None,
            username: login.username.as_deref(),
            password: login.password.as_deref(),
        };
        Upward::new_v5(timing, &connect, now_ms)
    }

    fn login(&self, now: Now) -> Result<Login, String> {
        let (hostname, ttl_seconds) = match &self.around.settings.account {
            Account::Mqtt {
                client_id,
                username,
                password,
            } => {
                return Ok(Login {
                    client_id: client_id.clone(),
                    username: username.clone(),
                    password: password.as_ref().map(|secret| secret.as_bytes().to_vec()),
                    renew_ms: u64::MAX,
                });
            }
            Account::IotHub {
                hostname,
                ttl_seconds,
            } => (hostname, *ttl_seconds),
        };
        let Some(identity) = &self.only else {
            return Err("the line has no identity".to_owned());
        };
        let registry = self.around.hub.registry();
        let entry = registry.get(identity);
        let token = match entry.map(Entry::authentication) {
            Some(Authentication::Sas { primary, .. }) => {
                let resource = sas::resource(hostname, identity);
                let expiry = now.unix + ttl_seconds;
                Some(sas::sign(primary.as_bytes(), &resource, expiry))
            }
            // By the certificate of `[upstream]`, if there is one.
            Some(_) if self.around.settings.has_certificate => None,
            Some(_) => {
                return Err(format!(
                    "{identity} has no key in the identities file, and [upstream] no certificate"
                ));
            }
            None => return Err(format!("{identity} is not in the identities file")),
        };
        let renew_ms = ttl_seconds * 1000 * RENEW_PART.0 / RENEW_PART.1;
        Ok(Login {
            client_id: identity.as_str().to_owned(),
            username: Some(UserName::of_hub(hostname, identity)),
            renew_ms: if token.is_some() {
                now.ms + renew_ms
            } else {
                u64::MAX
            },
            password: token.map(String::into_bytes),
        })
    }
}

fn refused(text: String) -> Failure {
    Failure {
        reason: Reason::Refused,
        text,
    }
}

/// Waits for mail and takes it.
pub async fn mail(mailbox: &Mailbox) -> u32 {
    std::future::poll_fn(|cx| match mailbox.take(cx.waker()) {
        0 => std::task::Poll::Pending,
        raised => std::task::Poll::Ready(raised),
    })
    .await
}
