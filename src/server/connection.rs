//! Drives one session over one socket: moves bytes, waits, decides nothing.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

use super::clock::{Clock, expiry_check_ms};
use super::pending::Pending;
use super::socket;
use crate::hub::{Attached, Client, Hub, Login, Now, Peer, Published, Token, brief};
use crate::limits;
use crate::mailbox::{
    ATTACH, DELIVERY, DRAIN, DURABLE, EVICTED, Mailbox, RECHECK, ROUTES, SPACE, TAKEN_OVER,
};
use crate::mqtt::v5::{self, Properties, ReasonCode};
use crate::mqtt::{self, Connect, ConnectReturnCode, DecodeError, Publish, QoS};
use crate::observe;
use crate::session::{Close, Event, Session, Timing};

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
    /// The time, read once per turn.
    now: Now,
    /// Packets since the connection last waited.
    packets: u32,
}

/// A turn with fewer packets than this is a quiet one, after which buffers are given back.
const QUIET_PACKETS: u32 = 4;
/// How long a refused client has to take its CONNACK before the socket goes.
const LINGER: Duration = Duration::from_secs(1);

enum Stage {
    Before,
    /// Waits until the previous connection of the identity has gone.
    Waiting(Box<Login>),
    In(Box<Client>),
}

/// What a packet asks of the hub, and the packet's length.
type Decoded<'a> = Result<Option<(Result<Event<'a, Token>, Close>, usize)>, DecodeError>;

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
        hub: Arc<Hub>,
        clock: Clock,
        peer: Peer,
        mailbox: Arc<Mailbox>,
        pending: Pending,
        since: Now,
    ) -> Self {
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
            now: since,
            packets: 0,
        }
    }

    /// Serves the client until one side ends it.
    pub async fn serve(mut self) {
        let close = poll_fn(|cx| self.poll(cx)).await;
        let now = self.clock.now();
        if !matches!(
            close,
            Close::Disconnect | Close::ConnectionLost | Close::Io(_)
        ) {
            self.session.say_goodbye(&close);
            // A refusal's CONNACK, or answers to what came before a bad packet; one try is all.
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
            Stage::Before => tracing::debug!(%address, "connection closed: {close}"),
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
            if matches!(read, Turn::Idle) && !has_room_again {
                // What was delivered may have set a deadline.
                self.check_timer(cx)?;
                self.go_idle();
                return Poll::Pending;
            }
            ready!(tokio::task::coop::poll_proceed(cx)).made_progress();
        }
    }

    fn take_mail(&mut self, cx: &Context<'_>) -> Result<(), Close> {
        let mail = self.mailbox.take(cx.waker());
        if mail == 0 {
            return Ok(());
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
            }
            if mail & ROUTES != 0 {
                self.hub.take_routing(client);
            }
            if mail & DELIVERY != 0 {
                self.hub.deliveries_waiting(client);
            }
            if mail & DURABLE != 0 {
                self.awaits_kept = false;
                self.session.handle_durable(self.hub.settled());
                self.session.handle_kept(self.hub.kept());
            }
        }
        if mail & SPACE != 0 {
            self.session.go_on(now.ms);
        }
        Ok(())
    }

    fn check_timer(&mut self, cx: &mut Context<'_>) -> Result<(), Close> {
        loop {
            let session_ms = self.session.next_timeout().unwrap_or(u64::MAX);
            let due_ms = session_ms.min(self.expiry_ms);
            // A deadline that moved out is noticed when the old one fires.
            if due_ms < self.timer_ms {
                self.timer_ms = due_ms;
                self.timer.as_mut().reset(self.clock.instant(due_ms));
            }
            if self.timer_ms == u64::MAX || self.timer.as_mut().poll(cx).is_pending() {
                return Ok(());
            }
            self.now = self.clock.now();
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

    /// Handles the complete packets of `bytes`, returns how many bytes are done with.
    fn handle(&mut self, bytes: &[u8]) -> Result<usize, Close> {
        let limits = self.hub.limits();
        let mut used = self.skip.min(bytes.len());
        self.skip -= used;
        while self.session.wants_packets() {
            let packet_max = if self.session.is_active() {
                limits.max_message_bytes + limits::TOPIC_BYTES_MAX
            } else {
                limits::CONNECT_BYTES_MAX
            };
            let rest = bytes.get(used..).unwrap_or_default();
            match self.decode(rest, packet_max) {
                Ok(Some((event, length))) => {
                    if !self.event(event?)? {
                        break;
                    }
                    used += length;
                }
                Ok(None) => break,
                Err(DecodeError::TooLarge { packet_bytes, max }) if !self.session.is_v5() => {
                    let error = DecodeError::TooLarge { packet_bytes, max };
                    if !self.too_large(rest, error)? {
                        break;
                    }
                    used += rest.len().min(packet_bytes);
                    self.skip = packet_bytes.saturating_sub(rest.len());
                }
                Err(DecodeError::UnsupportedProtocol { level }) => {
                    return Err(self.unsupported(level));
                }
                Err(error) => return Err(Close::Decode(error)),
            }
        }
        Ok(used)
    }

    /// Reads one packet and hands it to the session; the version is that of CONNECT.
    fn decode<'a>(&mut self, bytes: &'a [u8], packet_max: usize) -> Decoded<'a> {
        let now_ms = self.now.ms;
        if !self.session.is_v5() {
            match mqtt::decode_from_client(bytes, packet_max) {
                Err(DecodeError::UnsupportedProtocol { level: 5 })
                    if matches!(self.stage, Stage::Before) => {}
                decoded => {
                    let Some((packet, length)) = decoded? else {
                        return Ok(None);
                    };
                    return Ok(Some((self.session.handle_packet(now_ms, packet), length)));
                }
            }
        }
        let Some((packet, length)) = v5::decode_from_client(bytes, packet_max)? else {
            return Ok(None);
        };
        Ok(Some((
            self.session.handle_packet_v5(now_ms, packet),
            length,
        )))
    }

    /// Handles what a packet asks for; false if it must be offered again later.
    fn event(&mut self, event: Event<'_, Token>) -> Result<bool, Close> {
        let now = self.now;
        self.packets += 1;
        if let Event::Connect(connect) = &event {
            self.connect(connect)?;
            return Ok(true);
        }
        let Stage::In(client) = &mut self.stage else {
            return match event {
                Event::Disconnect { .. } => Err(Close::Disconnect),
                _ => Ok(true),
            };
        };
        match event {
            Event::Publish(publish, properties) => return self.publish(&publish, properties),
            Event::Subscribe { packet_id, filters } => {
                let wanted = (packet_id, filters.as_slice());
                self.hub.subscribe(client, &mut self.session, wanted);
                self.session.handle_durable(self.hub.settled());
            }
            Event::Unsubscribe(unsubscribe) => {
                self.hub.unsubscribe(client, &mut self.session, unsubscribe);
                self.session.handle_durable(self.hub.settled());
            }
            Event::Delivered(token) => self.hub.delivered(client, token, now),
            Event::Disconnect { voids_will } => {
                if voids_will {
                    client.void_will();
                }
                if self.session.is_v5() && !self.session.wants_to_be_kept() {
                    client.set_persistent(false);
                }
                return Err(Close::Disconnect);
            }
            Event::None | Event::Connect(_) => {}
        }
        Ok(true)
    }

    fn publish(
        &mut self,
        publish: &Publish<'_>,
        properties: Properties<'_>,
    ) -> Result<bool, Close> {
        let Stage::In(client) = &mut self.stage else {
            return Ok(true);
        };
        let now = self.now;
        let (mut kept_at, mut reason) = (0, ReasonCode::Success);
        match self.hub.publish(client, (publish, properties), now) {
            Published::Accepted { seq, is_unrouted } => {
                kept_at = seq;
                if is_unrouted {
                    reason = ReasonCode::NoMatchingSubscribers;
                }
            }
            Published::HeldBack => {
                self.session.hold_back(now.ms);
                return Ok(false);
            }
            Published::Full => reason = ReasonCode::QuotaExceeded,
            Published::Refused(why) => {
                reason = why.reason_code();
                self.refused(publish, why.to_string())?;
            }
        }
        if let Some(packet_id) = publish.packet_id {
            self.session.acknowledge(packet_id, kept_at, reason);
        }
        Ok(true)
    }

    /// MQTT 5 has a reason code for it. MQTT 3.1.1 can only close; a client that insists is
    /// acknowledged (`DESIGN` §4).
    fn refused(&mut self, publish: &Publish<'_>, why: String) -> Result<(), Close> {
        let Stage::In(client) = &self.stage else {
            return Err(Close::PublishRefused(why));
        };
        let is_told = self.session.is_v5();
        let again = !is_told && self.hub.refused_before(client, publish);
        if self.hub.may_log() {
            let (id, topic) = (client.identity().as_str(), brief(publish.topic));
            let what = match (is_told, again) {
                (true, _) => "refused",
                (false, true) => "refused again and acknowledged",
                (false, false) => "refused, connection closed",
            };
            tracing::warn!(id, topic, "publish {what}: {why}");
        }
        if is_told {
            return Ok(());
        }
        if again {
            self.hub.count_refused_again(client);
            return Ok(());
        }
        Err(Close::PublishRefused(why))
    }

    /// A packet over the limit: a PUBLISH is refused by name once its topic has arrived. True if
    /// it is to be skipped and the connection goes on, false if more bytes are needed.
    fn too_large(&mut self, bytes: &[u8], error: DecodeError) -> Result<bool, Close> {
        if !self.session.is_active() {
            return Err(Close::Decode(error));
        }
        let Some(head) = mqtt::peek_publish(bytes) else {
            let is_publish = bytes.first().is_some_and(|first| first >> 4 == 3);
            if is_publish && bytes.len() < limits::TOPIC_BYTES_MAX {
                return Ok(false);
            }
            return Err(Close::Decode(error));
        };
        if head.qos == QoS::ExactlyOnce {
            return Err(Close::QosNotAvailable);
        }
        if let Stage::In(client) = &self.stage {
            self.hub.count_too_large(client);
        }
        let publish = Publish {
            dup: head.dup,
            qos: head.qos,
            retain: head.retain,
            topic: head.topic,
            packet_id: head.packet_id,
            payload: &[],
        };
        self.refused(&publish, error.to_string())?;
        if let Some(packet_id) = head.packet_id {
            self.session.acknowledge(packet_id, 0, ReasonCode::Success);
        }
        Ok(true)
    }

    fn unsupported(&mut self, level: u8) -> Close {
        if !matches!(self.stage, Stage::Before) {
            return Close::SecondConnect;
        }
        let code = ConnectReturnCode::UnacceptableProtocolVersion;
        let close = Close::LoginRefused(format!("protocol level {level} is not spoken"));
        let now = self.now;
        self.session.refuse(now.ms, 0, code, close.clone());
        self.session.handle_timeout(now.ms).err().unwrap_or(close)
    }

    fn connect(&mut self, connect: &Connect<'_>) -> Result<(), Close> {
        let now = self.now;
        match self.hub.login(connect, &self.session, &self.peer, now) {
            Ok(login) => {
                self.stage = Stage::Waiting(Box::new(login));
                self.attach()
            }
            Err(refused) => {
                let (code, close) = (refused.code, refused.close);
                self.session.refuse(now.ms, refused.delay_ms, code, close);
                self.session.handle_timeout(now.ms)
            }
        }
    }

    fn attach(&mut self) -> Result<(), Close> {
        let Stage::Waiting(login) = &self.stage else {
            return Ok(());
        };
        let now = self.now;
        match self
            .hub
            .attach(login, &self.mailbox, &mut self.session, now)
        {
            Attached::In(client) => {
                self.expiry_ms = expiry_check_ms(client.expires_unix(), now);
                self.stage = Stage::In(client);
                self.pending = None;
                Ok(())
            }
            Attached::Wait => Ok(()),
            Attached::Full => {
                let close = Close::LoginRefused("over max_connections".to_owned());
                let code = ConnectReturnCode::ServerUnavailable;
                self.session.refuse(now.ms, 0, code, close);
                self.session.handle_timeout(now.ms)
            }
        }
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
