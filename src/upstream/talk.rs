//! One connection to the cloud, from CONNECT to its end: moves bytes, waits, decides nothing.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, ReadBuf};
use tokio::time::Sleep;

use super::dial::{Dialed, Stream, dial};
use super::intake::{Intake, Inward};
use super::link::Failure;
use super::settings::Settings;
use super::standing::Standing;
use super::words::{Broken, subscribed};
use crate::hub::{Hub, Now, Token, Uplink};
use crate::limits::TOPIC_BYTES_MAX;
use crate::mailbox::{DELIVERY, DRAIN, DURABLE, Mailbox, RECHECK, ROUTES, SPACE};
use crate::mqtt;
use crate::mqtt::v5::{self, ReasonCode};
use crate::server::{Clock, socket};
use crate::session::{Above, Lost, Unasked, Upward};

/// Read at a time.
const READ_BYTES: usize = 8 * 1024;
/// How long a connection that is to end waits for what is in flight.
const LEAVE_MS: u64 = 2000;
/// How long a server may take to close after our leave.
const LINGER: Duration = Duration::from_secs(1);
/// Between two looks whether answers are late.
const LOOK_MS: u64 = 500;
/// Until the next try to get a connection for a new token.
const RENEW_AGAIN_MS: u64 = 10_000;

/// How a connection ended.
#[derive(Debug)]
pub enum End {
    /// It was lost, or never came to be.
    Lost(Failure),
    /// Nothing was sent for long.
    Idle,
    /// It was asked to end.
    Left,
    /// A new one is there, for a login with a new token.
    Renewed(Dialed),
}

type Dialling = Pin<Box<dyn Future<Output = Result<Dialed, Failure>> + Send>>;

/// What a connection is for, and who is told of it.
pub struct Ends<'a> {
    /// Where messages come from.
    pub hub: &'a Arc<Hub>,
    /// The clock of all times.
    pub clock: Clock,
    /// Deadlines and bounds.
    pub settings: &'a Arc<Settings>,
    /// Wakes the connection.
    pub mailbox: &'a Mailbox,
    /// What it empties.
    pub uplink: &'a mut Uplink,
    /// Told of what changes.
    pub standing: &'a mut Standing,
}

/// A connection and what it needs.
pub struct Talk<'a> {
    io: Stream,
    ends: Ends<'a>,
    upward: Upward<Token>,
    /// When a new token is needed.
    renew_ms: u64,
    state: State,
}

struct State {
    input: BytesMut,
    unflushed: bool,
    /// The socket did not take all that there was.
    is_full: bool,
    timer: Pin<Box<Sleep>>,
    sent_ms: u64,
    is_late: bool,
    /// When answers were last late.
    late_ms: Option<u64>,
    /// The server closed it.
    is_closed: bool,
    /// When there may be another message, after the bound was reached.
    pace_ms: u64,
    intake: Intake,
    /// What was subscribed to.
    asked: Vec<String>,
    renewing: Option<Dialling>,
    renewed: Option<Dialed>,
    /// It ends as soon as nothing is in flight, or then.
    leaves_ms: Option<u64>,
}

impl<'a> Talk<'a> {
    /// A connection on which CONNECT is about to be written; its token is to be replaced at
    /// `renew_ms`.
    pub fn new(io: Stream, ends: Ends<'a>, upward: Upward<Token>, renew_ms: u64) -> Self {
        let clock = ends.clock;
        let now_ms = clock.ms();
        Self {
            io,
            ends,
            upward,
            renew_ms,
            state: State {
                input: BytesMut::new(),
                unflushed: false,
                is_full: false,
                timer: Box::pin(tokio::time::sleep_until(clock.instant(now_ms))),
                sent_ms: now_ms,
                is_late: false,
                late_ms: None,
                is_closed: false,
                pace_ms: u64::MAX,
                intake: Intake::default(),
                asked: Vec::new(),
                renewing: None,
                renewed: None,
                leaves_ms: None,
            },
        }
    }

    /// Talks until one side ends it; also returns the packet id to go on with. What was in flight
    /// then goes back to its queues.
    pub async fn run(mut self) -> (End, u16) {
        let end = std::future::poll_fn(|cx| self.poll(cx)).await;
        if !matches!(end, End::Lost(_)) {
            self.upward.disconnect();
            let _ = std::future::poll_fn(|cx| Poll::Ready(self.write(cx))).await;
            if self.state.intake.owes() {
                self.linger().await;
            }
        } else if self.upward.says_why() {
            let _ = std::future::poll_fn(|cx| Poll::Ready(self.write(cx))).await;
        }
        let (in_flight, next_id) = self.upward.park();
        let now = self.ends.clock.now();
        self.ends
            .hub
            .link_down(self.ends.uplink, in_flight, self.state.is_closed, now);
        (end, next_id)
    }

    /// Closed with unread messages in it, a connection takes back the acknowledgements on it
    /// (RFC 1122 §4.2.2.13), and the server sends again what was taken.
    async fn linger(&mut self) {
        let until_closed = async {
            let mut bytes = [0; READ_BYTES];
            while matches!(self.io.read(&mut bytes).await, Ok(1..)) {}
        };
        let _ = tokio::time::timeout(LINGER, until_closed).await;
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        let end = ready!(self.poll_inner(cx));
        Poll::Ready(end.unwrap_or_else(|broken| {
            self.state.is_closed = broken.is_by_server();
            let (is_active, is_v5) = (self.upward.is_active(), self.upward.is_v5());
            End::Lost(broken.failure(self.ends.standing.server(), is_active, is_v5))
        }))
    }

    /// Mail, packets in, messages out, bytes out, and again while there is progress.
    fn poll_inner(&mut self, cx: &mut Context<'_>) -> Poll<Result<End, Broken>> {
        let output_max = self.ends.hub.limits().max_output_bytes;
        loop {
            let now = self.ends.clock.now();
            self.take_mail(cx, now);
            self.upward.handle_timeout(now.ms)?;
            self.renew(cx, now);
            let read = self.read(cx, now)?;
            self.forward(now);
            let was_full = self.upward.output().len() >= output_max;
            self.write(cx)?;
            self.look(now);
            if let Some(end) = self.end(now) {
                return Poll::Ready(Ok(end));
            }
            let has_room_again = was_full && self.upward.output().len() < output_max;
            if !read && !has_room_again {
                // What was sent may have set a deadline.
                if self.wait(cx, now).is_pending() {
                    self.go_idle();
                    return Poll::Pending;
                }
            }
            ready!(tokio::task::coop::poll_proceed(cx)).made_progress();
        }
    }

    fn take_mail(&mut self, cx: &Context<'_>, now: Now) {
        let mail = self.ends.mailbox.take(cx.waker());
        if mail & ROUTES != 0 {
            self.ends.hub.refresh_sources(self.ends.uplink);
        }
        if mail & DELIVERY != 0 {
            self.ends.hub.upward_waiting(self.ends.uplink);
        }
        let (intake, inward) = self.intake();
        if mail & SPACE != 0 {
            if intake.go_on(inward, now) && intake.owes() {
                self.leave_soon(now);
            }
        } else if mail & DURABLE != 0 {
            intake.acknowledge(inward);
        }
        // The key may be another one: log in again with it.
        let is_own = mail & RECHECK != 0 && self.renew_ms != u64::MAX;
        if mail & DRAIN != 0 || is_own {
            self.leave_soon(now);
        }
    }

    fn leave_soon(&mut self, now: Now) {
        self.state.leaves_ms.get_or_insert(now.ms + LEAVE_MS);
    }

    /// Reads once and handles all packets that are complete; false if there was nothing.
    fn read(&mut self, cx: &mut Context<'_>, now: Now) -> Result<bool, Broken> {
        let mut bytes = [0; READ_BYTES];
        let mut buf = ReadBuf::new(&mut bytes);
        match Pin::new(&mut self.io).poll_read(cx, &mut buf) {
            Poll::Pending => return Ok(false),
            Poll::Ready(result) => result?,
        }
        if buf.filled().is_empty() {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        let mut input = std::mem::take(&mut self.state.input);
        input.extend_from_slice(buf.filled());
        let packet_max = packet_bytes_max(self.ends.hub);
        while let Some(used) = self.take_packet(&input, packet_max, now)? {
            input.advance(used);
        }
        self.state.input = input;
        Ok(true)
    }

    /// Handles the first packet of `input`; its length, if it is complete.
    fn take_packet(
        &mut self,
        input: &[u8],
        packet_max: usize,
        now: Now,
    ) -> Result<Option<usize>, Broken> {
        let (above, used) = if self.upward.is_v5() {
            match v5::decode_from_server(input, packet_max) {
                Ok(None) => return Ok(None),
                Ok(Some((packet, used))) => (self.upward.handle_packet_v5(now.ms, packet)?, used),
                Err(error) => return Err(self.upward.undecoded(input, &error).into()),
            }
        } else {
            let decoded = mqtt::decode_from_server(input, packet_max);
            match decoded.map_err(|error| Lost::Decode(error.to_string()))? {
                None => return Ok(None),
                Some((packet, used)) => (self.upward.handle_packet(now.ms, packet)?, used),
            }
        };
        match above {
            Above::None => {}
            Above::Accepted { session_present } => self.accepted(session_present, now)?,
            Above::Delivered(token) => {
                self.ends.standing.delivered();
                self.ends.hub.forwarded(self.ends.uplink, token, now);
            }
            Above::Refused(token, why) => {
                let hub = self.ends.hub;
                hub.refused_above(self.ends.uplink, token, &why, now);
            }
            Above::Message(publish, properties) => {
                let came = (&publish, properties);
                let message = self.ends.hub.descending(self.ends.uplink, came, now);
                let (intake, inward) = self.intake();
                intake.take(inward, publish.packet_id, message, now);
            }
            Above::Subscribed(codes) => {
                subscribed(&self.state.asked, &codes, self.upward.is_v5());
            }
            Above::Unsubscribed => self.ends.settings.filters.settled(),
        }
        Ok(Some(used))
    }

    fn accepted(&mut self, session_present: bool, now: Now) -> Result<(), Lost> {
        if self.ends.settings.forwarding.acknowledged && !self.upward.takes_qos_1() {
            self.upward.complain(ReasonCode::ImplementationSpecific);
            return Err(Lost::QosZeroOnly);
        }
        self.state.sent_ms = now.ms;
        self.ends.hub.link_up(self.ends.uplink, session_present);
        let filters = &self.ends.settings.filters;
        let gone = filters.begin(session_present);
        let mut written = Ok(());
        if !gone.is_empty() {
            written = self.upward.unsubscribe(&gone);
        }
        let (asked, left): (Vec<_>, Vec<_>) = filters
            .wanted()
            .iter()
            .cloned()
            .partition(|filter| self.upward.takes_filter(filter));
        for filter in left {
            tracing::warn!(filter, "the cloud takes no filters with wildcards");
        }
        if !asked.is_empty() {
            let kept_seconds = self.upward.kept_seconds().unwrap_or(u32::MAX);
            self.ends.standing.kept(kept_seconds);
            written = written.and_then(|()| self.upward.subscribe(&asked));
        }
        self.state.asked = asked;
        if let Err(error) = &written {
            debug_assert!(matches!(error, Unasked::TooLarge { .. }), "{error:?}");
            tracing::warn!("the cloud is not asked for its messages: {error}");
        }
        self.ends.standing.accepted(now.ms);
        Ok(())
    }

    fn intake(&mut self) -> (&mut Intake, Inward<'_>) {
        let inward = Inward {
            hub: self.ends.hub,
            uplink: self.ends.uplink,
            upward: &mut self.upward,
        };
        (&mut self.state.intake, inward)
    }

    fn forward(&mut self, now: Now) {
        self.state.pace_ms = u64::MAX;
        if self.state.leaves_ms.is_some() {
            return;
        }
        let room = self.upward.room();
        if room == 0 {
            return;
        }
        let pace = &self.ends.settings.pace;
        let allowed = pace.take(room, now.ms);
        if allowed == 0 {
            self.state.pace_ms = pace.next_ms(now.ms);
            return;
        }
        let sent = self
            .ends
            .hub
            .forward(self.ends.uplink, &mut self.upward, allowed, now);
        pace.give_back(allowed - sent.min(allowed));
        if sent > 0 {
            self.state.sent_ms = now.ms;
        }
        if sent == allowed && allowed < room {
            self.state.pace_ms = pace.next_ms(now.ms);
        }
    }

    fn write(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        let before = self.upward.output().len();
        let unflushed = &mut self.state.unflushed;
        socket::write(&mut self.io, self.upward.output(), unflushed, cx)?;
        let left = self.upward.output().len();
        if left < before {
            self.upward.wrote(self.ends.clock.ms(), self.state.is_full);
        }
        self.state.is_full = left > 0;
        Ok(())
    }

    /// Tells when answers begin to be late, or come again.
    fn look(&mut self, now: Now) {
        let steady_ms = self.ends.settings.timing.dead_peer_ms;
        if self.upward.is_active() && self.upward.is_degraded(now.ms) {
            self.state.late_ms = Some(now.ms);
        }
        // Answers that are late now and then are late, and told so once.
        let is_recent = |late_ms| now.ms < late_ms + steady_ms;
        let is_late = self.state.late_ms.is_some_and(is_recent);
        if is_late != self.state.is_late {
            self.state.is_late = is_late;
            self.ends.standing.late(is_late, now.ms);
        }
    }

    /// Gets the next connection ready before the token of this one expires.
    fn renew(&mut self, cx: &mut Context<'_>, now: Now) {
        let state = &mut self.state;
        if now.ms >= self.renew_ms && state.renewing.is_none() && state.renewed.is_none() {
            self.renew_ms = now.ms + RENEW_AGAIN_MS;
            let settings = Arc::clone(self.ends.settings);
            state.renewing = Some(Box::pin(async move { dial(&settings.reach).await }));
        }
        let Some(renewing) = &mut state.renewing else {
            return;
        };
        if let Poll::Ready(dialed) = renewing.as_mut().poll(cx) {
            state.renewing = None;
            if let Ok(dialed) = dialed {
                state.renewed = Some(dialed);
                state.leaves_ms.get_or_insert(now.ms + LEAVE_MS);
            }
        }
    }

    fn end(&mut self, now: Now) -> Option<End> {
        if let Some(leaves_ms) = self.state.leaves_ms {
            let is_quiet = self.upward.is_quiet() && self.state.intake.is_quiet();
            if !is_quiet && now.ms < leaves_ms {
                return None;
            }
            return Some(match self.state.renewed.take() {
                Some(dialed) => End::Renewed(dialed),
                None => End::Left,
            });
        }
        let idle_ms = self.ends.settings.idle_ms?;
        let is_idle = self.upward.is_active()
            && self.upward.is_quiet()
            && now.ms >= self.state.sent_ms + idle_ms;
        is_idle.then_some(End::Idle)
    }

    /// Until the next deadline; ready if it has passed.
    fn wait(&mut self, cx: &mut Context<'_>, now: Now) -> Poll<()> {
        let upward = &self.upward;
        let idle_ms = self.ends.settings.idle_ms;
        let looks = upward.is_active() && !upward.is_quiet();
        let deadlines = [
            upward.next_timeout(),
            self.state.pace_ms,
            self.ends.uplink.held_ms(now.ms),
            self.renew_ms,
            self.state.leaves_ms.unwrap_or(u64::MAX),
            match idle_ms {
                Some(idle_ms) if upward.is_quiet() => self.state.sent_ms + idle_ms,
                _ => u64::MAX,
            },
            if looks || self.state.is_late {
                now.ms + LOOK_MS
            } else {
                u64::MAX
            },
        ];
        let due_ms = deadlines.into_iter().min().unwrap_or(u64::MAX);
        let mut timer = self.state.timer.as_mut();
        // One that has passed and changes nothing must not keep the thread busy.
        let due_ms = due_ms.max(now.ms + 1);
        timer.as_mut().reset(self.ends.clock.instant(due_ms));
        timer.poll(cx)
    }

    /// A quiet connection that waits holds no empty buffers.
    fn go_idle(&mut self) {
        if self.state.input.is_empty() {
            self.state.input = BytesMut::new();
        }
        if self.upward.is_quiet() {
            self.upward.output().shrink();
        }
    }
}

/// The longest packet that is taken: a message with its topic and properties.
pub(super) fn packet_bytes_max(hub: &Hub) -> usize {
    hub.limits().max_message_bytes + TOPIC_BYTES_MAX
}
