//! What a client's packets ask for, and what becomes of that.

use tokio::io::{AsyncRead, AsyncWrite};

use super::super::clock::expiry_check_ms;
use super::{Checking, Connection, Stage};
use crate::hub::{Attached, Login, LoginRefused, Outcome, Published, Token, brief};
use crate::limits;
use crate::mqtt::v5::{self, Properties, ReasonCode};
use crate::mqtt::{self, Connect, ConnectReturnCode, DecodeError, Publish};
use crate::session::{Close, Event, Refusal, Verdict};

/// What a packet asks of the hub, and the packet's length.
type Decoded<'a> = Result<Option<(Result<Event<'a, Token>, Close>, usize)>, DecodeError>;

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<S> {
    /// Handles the complete packets of `bytes`, returns how many bytes are done with.
    pub(super) fn handle(&mut self, bytes: &[u8]) -> Result<usize, Close> {
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
        if let Event::Connect(connect, will_properties) = &event {
            self.connect(connect, *will_properties)?;
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
            Event::Subscribe {
                packet_id,
                filters,
                id,
            } => {
                let wanted = (filters.as_slice(), id);
                self.hub
                    .subscribe(client, (&mut self.session, packet_id), wanted, now);
                self.session.handle_durable(self.hub.settled());
            }
            Event::Unsubscribe(unsubscribe) => {
                self.hub.unsubscribe(client, &mut self.session, unsubscribe);
                self.session.handle_durable(self.hub.settled());
            }
            Event::Delivered(token) => self.hub.delivered(client, token, now),
            Event::Received(packet_id, token) => {
                let version = self.hub.received(client, packet_id, token);
                self.hub.settle_received(client, now);
                self.session.handle_state(self.hub.durable());
                self.session.release(packet_id, version);
            }
            Event::Completed(packet_id) => self.hub.completed(client, packet_id),
            Event::Released(packet_id) => {
                let version = self.hub.released(client, packet_id);
                self.session.handle_state(self.hub.durable());
                self.session.complete(packet_id, version);
            }
            Event::Disconnect { voids_will } => {
                if voids_will {
                    client.void_will();
                }
                if let Some(seconds) = self.session.expiry_seconds() {
                    client.set_expiry(seconds);
                }
                return Err(Close::Disconnect);
            }
            Event::None | Event::Connect(..) => {}
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
        let (mut kept_at, mut verdict) = ((0, 0), ReasonCode::Success.into());
        let topic = match publish.topic {
            "" => self.session.aliased_topic(properties),
            named => named,
        };
        let named = Publish { topic, ..*publish };
        if self.pace.take(1, now.ms) == 0 {
            self.slow_down();
            return Ok(false);
        }
        let (qos, packet_id) = (publish.qos, publish.packet_id);
        let published = self.hub.publish(client, (&named, properties), now);
        match published {
            Published::Accepted {
                seq,
                version,
                is_unrouted,
            } => {
                kept_at = (seq, version);
                if is_unrouted {
                    verdict = ReasonCode::NoMatchingSubscribers.into();
                }
            }
            Published::HeldBack => {
                // It is offered again.
                self.pace.give_back(1);
                self.session.hold_back(now.ms);
                return Ok(false);
            }
            Published::Full => {
                let why = "no room: a queue that the message goes to is full, or the store";
                verdict = Verdict::because(ReasonCode::QuotaExceeded, why);
            }
            Published::Refused(why) => {
                verdict = Verdict::because(why.reason_code(), &why);
                let topic = topic.to_owned();
                let publish = &Publish {
                    topic: &topic,
                    ..*publish
                };
                self.refused(publish, why.to_string())?;
            }
        }
        if let Some(packet_id) = packet_id {
            self.session.handle_state(self.hub.durable());
            self.session.acknowledge((qos, packet_id), kept_at, verdict);
        }
        Ok(true)
    }

    /// The client publishes more than it may in a second: it is not read from for a moment.
    fn slow_down(&mut self) {
        let now_ms = self.now.ms;
        self.session.slow_down(now_ms);
        self.paced_ms = self.pace.next_ms(now_ms);
        if let Stage::In(client) = &self.stage {
            self.hub.count_slowed(client);
        }
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
            let it = (head.qos, packet_id);
            self.session.acknowledge(it, (0, 0), ReasonCode::Success);
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

    fn connect(
        &mut self,
        connect: &Connect<'_>,
        will_properties: Properties<'_>,
    ) -> Result<(), Close> {
        let now = self.now;
        let came = (connect, will_properties);
        match self.hub.login(came, &self.session, &self.peer, now) {
            Ok(Outcome::In(login)) => self.decided(Ok(login)),
            Ok(Outcome::Check(check)) => {
                let wait_ms = self.hub.limits().connect_timeout_seconds * 1000;
                self.stage = Stage::Checking(Box::new(Checking {
                    ticket: self.passwords.submit(check),
                    deadline_ms: now.ms + wait_ms,
                }));
                Ok(())
            }
            Err(refused) => self.decided(Err(refused)),
        }
    }

    /// The hub has decided who comes in.
    pub(super) fn decided(
        &mut self,
        decision: Result<Box<Login>, LoginRefused>,
    ) -> Result<(), Close> {
        let now = self.now;
        match decision {
            Ok(login) => {
                self.stage = Stage::Waiting(login);
                self.attach()
            }
            Err(refused) => {
                self.stage = Stage::Before;
                let (code, close) = (refused.code, refused.close);
                self.session.refuse(now.ms, refused.delay_ms, code, close);
                self.session.handle_timeout(now.ms)
            }
        }
    }

    pub(super) fn attach(&mut self) -> Result<(), Close> {
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
            Attached::Full(limit) => {
                let close = Close::LoginRefused(format!("over {limit}"));
                let code = Refusal {
                    v311: ConnectReturnCode::ServerUnavailable,
                    v5: ReasonCode::QuotaExceeded,
                };
                self.session.refuse(now.ms, 0, code, close);
                self.session.handle_timeout(now.ms)
            }
        }
    }
}
