//! Drives one session over one socket: moves bytes, waits, decides nothing.

mod packets;

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

use super::clock::{Clock, expiry_check_ms};
use super::passwords::{PasswordQueue, Ticket};
use super::pending::Pending;
use super::{Shared, socket};
use crate::hub::{Client, Hub, Login, Now, Peer, Token};
use crate::limits;
use crate::limits::pace::Pace;
use crate::mailbox::{
    ATTACH, DELIVERY, DRAIN, DURABLE, EVICTED, Mailbox, RECHECK, ROUTES, SPACE, TAKEN_OVER,
};
use crate::mqtt::DecodeError;
use crate::observe;
use crate::session::{Close, Session, Timing};

thread_local! {
    /// One read buffer per thread: a connection that waits has none of its own.
    static SCRATCH: std::cell::RefCell<Box<[u8]>> =
        std::cell::RefCell::new(vec![0; limits::READ_BUFFER_BYTES].into());
}

/// One client's connection.
pub struct Connection<S> {
    io: S,
    hub: Arc<Hub>,
    clock: Clock,
    passwords: PasswordQueue,
    peer: Peer,
    mailbox: Arc<Mailbox>,
    pending: Option<Pending>,
    session: Session<Token>,
    stage: Stage,
    /// The start of a packet whose rest has not arrived, or packets that are held back.
    partial: BytesMut,
    /// Bytes of a refused message that are still to come and to be thrown away.
    skip: usize,
    unflushed: bool,
    /// The store knows that PUBACKs wait for it.
    awaits_kept: bool,
    timer: Pin<Box<Sleep>>,
    timer_ms: u64,
    /// When to look at the credentials' expiry again.
    expiry_ms: u64,
    /// How many messages it may publish.
    pace: Pace,
    /// Until when it is not read from, because it published more.
    paced_ms: u64,
    /// The time, read once per turn.
    now: Now,
    /// Packets since the connection last waited.
    packets: u32,
}

/// A turn with fewer packets than this is a quiet one, after which buffers are given back.
const QUIET_PACKETS: u32 = 4;
/// Reads from a connection that was taken over, at most.
const LAST_READS_MAX: usize = 16;
/// How long a refused client has to take its CONNACK before the socket goes.
const LINGER: Duration = Duration::from_secs(1);

enum Stage {
    Before,
    /// Waits until its password was checked.
    Checking(Box<Checking>),
    /// Waits until the previous connection of the identity has gone.
    Waiting(Box<Login>),
    In(Box<Client>),
}

struct Checking {
    ticket: Ticket,
    /// When it has waited too long.
    deadline_ms: u64,
}

/// What a turn found.
enum Turn {
    Progress,
    Idle,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<S> {
    /// A connection whose transport is up; `pending` is its place among those not logged in, and
    /// the time for CONNECT counts from `since`, when it was accepted.
    pub fn new(
        io: S,
        shared: Shared,
        peer: Peer,
        mailbox: Arc<Mailbox>,
        pending: Pending,
        since: Now,
    ) -> Self {
        let Shared {
            hub,
            clock,
            passwords,
            ..
        } = shared;
        let limits = hub.limits();
        let timing = Timing {
            connect_ms: limits.connect_timeout_seconds * 1000,
            publish_stall_ms: limits.publish_stall_seconds * 1000,
            ack_stall_ms: limits.ack_stall_seconds * 1000,
            window: limits.max_inflight,
        };
        let session = Session::new(timing, since.ms);
        let timer_ms = session.next_timeout().unwrap_or(u64::MAX);
        Self {
            timer: Box::pin(tokio::time::sleep_until(clock.instant(timer_ms))),
            io,
            hub,
            clock,
            passwords,
            peer,
            mailbox,
            pending: Some(pending),
            session,
            stage: Stage::Before,
            partial: BytesMut::new(),
            skip: 0,
            unflushed: false,
            awaits_kept: false,
            timer_ms,
            expiry_ms: u64::MAX,
            pace: Pace::new(limits.max_messages_per_second),
            paced_ms: u64::MAX,
            now: since,
            packets: 0,
        }
    }

    /// Serves the client until one side ends it.
    pub async fn serve(mut self) {
        let close = poll_fn(|cx| self.poll(cx)).await;
        let now = self.clock.now();
        if !matches!(close, Close::ConnectionLost | Close::Io(_)) {
            if close != Close::Disconnect {
                self.session.say_goodbye(&close);
            }
            // A refusal's CONNACK, or answers to what came before the last packet; one try is all.
            let _ = poll_fn(|cx| Poll::Ready(self.write(cx))).await;
        }
        self.pending = None;
        if matches!(close, Close::LoginRefused(_)) {
            let _ = tokio::time::timeout(LINGER, socket::linger(&mut self.io)).await;
        }
        let address = self.peer.address;
        let label = [("reason", close.label())];
        let counter = self
            .hub
            .metrics()
            .counter(observe::CONNECTIONS_CLOSED, &label);
        counter.increment(1);
        match self.stage {
            Stage::In(client) => {
                if close == Close::PublishStalled {
                    self.hub.count_unacknowledged(&client);
                }
                if matches!(close, Close::Decode(_) | Close::SecondConnect) {
                    let id = client.identity().as_str();
                    tracing::warn!(id, %address, "connection closed: {close}");
                }
                self.hub.detach(*client, self.session, &close, now);
            }
            Stage::Waiting(login) => self.hub.stop_waiting(&login, &self.mailbox),
            Stage::Before
                if matches!(close, Close::Decode(DecodeError::TooLarge { .. }))
                    && self.hub.may_log() =>
            {
                tracing::warn!(%address, "connection closed before CONNECT: {close}");
            }
            Stage::Before | Stage::Checking(_) => {
                tracing::debug!(%address, "connection closed: {close}")
            }
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Close> {
        match self.poll_inner(cx) {
            Poll::Ready(Err(close) | Ok(close)) => Poll::Ready(close),
            Poll::Pending => Poll::Pending,
        }
    }

    /// Mail, packets in, deliveries out, bytes out, and again while there is progress.
    fn poll_inner(&mut self, cx: &mut Context<'_>) -> Poll<Result<Close, Close>> {
        let output_max = self.hub.limits().max_output_bytes;
        loop {
            self.now = self.clock.now();
            self.take_mail(cx)?;
            self.take_answer(cx)?;
            self.check_timer(cx)?;
            let read = self.read(cx, output_max)?;
            if let Stage::In(client) = &mut self.stage {
                self.hub.end_of_batch(client);
                if let (false, Some(seq)) = (self.awaits_kept, self.session.unkept_seq()) {
                    self.awaits_kept = true;
                    self.hub.await_kept(client, seq);
                }
                self.hub.deliver(client, &mut self.session, self.now);
            }
            let was_full = self.session.output().len() >= output_max;
            self.write(cx)?;
            let has_room_again = was_full && self.session.output().len() < output_max;
            if matches!(read, Turn::Idle) && !has_room_again && !self.take_answer(cx)? {
                // What was delivered may have set a deadline.
                self.check_timer(cx)?;
                self.go_idle();
                return Poll::Pending;
            }
            ready!(tokio::task::coop::poll_proceed(cx)).made_progress();
        }
    }

    fn take_mail(&mut self, cx: &mut Context<'_>) -> Result<(), Close> {
        let mail = self.mailbox.take(cx.waker());
        if mail == 0 {
            return Ok(());
        }
        if mail & TAKEN_OVER != 0 {
            self.read_last(cx)?;
        }
        for (bit, close) in [
            (TAKEN_OVER, Close::TakenOver),
            (DRAIN, Close::Draining),
            (EVICTED, Close::Evicted),
        ] {
            if mail & bit != 0 {
                return Err(close);
            }
        }
        let now = self.now;
        if mail & ATTACH != 0 {
            self.attach()?;
        }
        if let Stage::In(client) = &mut self.stage {
            if mail & RECHECK != 0 {
                self.hub.recheck(client, now)?;
                self.expiry_ms = expiry_check_ms(client.expires_unix(), now);
                self.pace.set(self.hub.limits().max_messages_per_second);
            }
            if mail & ROUTES != 0 {
                self.hub.take_routing(client);
            }
            if mail & DELIVERY != 0 {
                self.hub.deliveries_waiting(client);
            }
            if mail & DURABLE != 0 {
                self.awaits_kept = false;
                self.hub.deliveries_kept(client);
                self.session.handle_durable(self.hub.settled());
                self.session.handle_state(self.hub.durable());
                self.hub.settle_received(client, now);
                self.session.handle_kept(self.hub.kept());
            }
        }
        if mail & SPACE != 0 {
            self.session.go_on(now.ms);
        }
        Ok(())
    }

    /// Goes on once the password was checked, or has waited for too long; false if it goes on as
    /// before.
    fn take_answer(&mut self, cx: &mut Context<'_>) -> Result<bool, Close> {
        let Stage::Checking(checking) = &mut self.stage else {
            return Ok(false);
        };
        let answer = match checking.ticket.poll(cx) {
            Poll::Ready(answer) => answer,
            Poll::Pending if checking.deadline_ms <= self.now.ms => None,
            Poll::Pending => return Ok(false),
        };
        let checked = self.hub.checked(checking.ticket.check(), answer, self.now);
        self.decided(checked)?;
        Ok(true)
    }

    fn check_timer(&mut self, cx: &mut Context<'_>) -> Result<(), Close> {
        loop {
            let session_ms = self.session.next_timeout().unwrap_or(u64::MAX);
            let deadlines = [self.expiry_ms, self.paced_ms, self.answer_ms()];
            let due_ms = deadlines.into_iter().fold(session_ms, u64::min);
            // A deadline that moved out is noticed when the old one fires.
            if due_ms < self.timer_ms {
                self.timer_ms = due_ms;
                self.timer.as_mut().reset(self.clock.instant(due_ms));
            }
            if self.timer_ms == u64::MAX || self.timer.as_mut().poll(cx).is_pending() {
                return Ok(());
            }
            self.now = self.clock.now();
            if self.paced_ms <= self.now.ms {
                self.paced_ms = u64::MAX;
                self.session.go_on(self.now.ms);
            }
            self.session.handle_timeout(self.now.ms)?;
            if let Stage::In(client) = &mut self.stage
                && self.expiry_ms <= self.now.ms
            {
                if client
                    .expires_unix()
                    .is_some_and(|expires| expires < self.now.unix)
                {
                    self.hub.recheck(client, self.now)?;
                }
                self.expiry_ms = expiry_check_ms(client.expires_unix(), self.now);
            }
            self.timer_ms = u64::MAX;
            self.take_answer(cx)?;
        }
    }

    /// By when the password has to be checked.
    fn answer_ms(&self) -> u64 {
        match &self.stage {
            Stage::Checking(checking) => checking.deadline_ms,
            _ => u64::MAX,
        }
    }

    /// Reads once and handles all packets that are complete.
    fn read(&mut self, cx: &mut Context<'_>, output_max: usize) -> Result<Turn, Close> {
        if !self.session.wants_packets() || self.session.unread_answer_bytes() >= output_max {
            return Ok(Turn::Idle);
        }
        if !self.partial.is_empty() {
            // Packets that were held back come before anything new.
            let mut partial = std::mem::take(&mut self.partial);
            let used = self.handle(&partial)?;
            partial.advance(used);
            self.partial = partial;
            if !self.session.wants_packets() {
                return Ok(Turn::Idle);
            }
        }
        SCRATCH.with_borrow_mut(|scratch| self.read_into(cx, scratch))
    }

    /// Takes what has arrived before the new connection did: acknowledgements count, and after a
    /// DISCONNECT there is no will.
    fn read_last(&mut self, cx: &mut Context<'_>) -> Result<(), Close> {
        for _ in 0..LAST_READS_MAX {
            if matches!(self.read(cx, usize::MAX)?, Turn::Idle) {
                break;
            }
        }
        Ok(())
    }

    fn read_into(&mut self, cx: &mut Context<'_>, scratch: &mut [u8]) -> Result<Turn, Close> {
        // A short rest goes in front of what is read now; a packet larger than the thread's buffer
        // gathers in the connection's own.
        let gathers = self.partial.len() >= scratch.len() / 2;
        let kept = if gathers { 0 } else { self.partial.len() };
        let (front, back) = scratch.split_at_mut(kept);
        if !gathers {
            front.copy_from_slice(&self.partial);
        }
        let mut buf = ReadBuf::new(back);
        match Pin::new(&mut self.io).poll_read(cx, &mut buf) {
            Poll::Pending => return Ok(Turn::Idle),
            Poll::Ready(result) => result.map_err(socket::io_error)?,
        }
        let read = buf.filled().len();
        if read == 0 {
            return Err(Close::ConnectionLost);
        }
        let filled = scratch.get(..kept + read).unwrap_or_default();
        if gathers {
            self.partial.extend_from_slice(filled);
            return Ok(Turn::Progress);
        }
        self.partial.clear();
        let used = self.handle(filled)?;
        let rest = filled.get(used..).unwrap_or_default();
        if !rest.is_empty() {
            self.partial.extend_from_slice(rest);
        }
        Ok(Turn::Progress)
    }

    fn write(&mut self, cx: &mut Context<'_>) -> Result<(), Close> {
        socket::write(&mut self.io, self.session.output(), &mut self.unflushed, cx)
            .map_err(socket::io_error)
    }

    /// A quiet connection that waits holds no empty buffers.
    fn go_idle(&mut self) {
        let packets = std::mem::take(&mut self.packets);
        if self.partial.is_empty() {
            self.partial = BytesMut::new();
        }
        if packets >= QUIET_PACKETS {
            return;
        }
        self.session.output().shrink();
        if let Stage::In(client) = &mut self.stage {
            client.shrink();
        }
    }
}
