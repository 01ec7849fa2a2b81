//! Bytes to packets.
//!
//! The order of the checks is the order of arrival: first byte, remaining length, the caller's
//! limit, the length a type must have, and only then, with the whole packet there, its fields. A
//! peer that does not speak MQTT is therefore found out by its first byte or two, and a length it
//! claims is compared, never reserved.

use super::packet::{
    ConnAck, Connect, ConnectReturnCode, Publish, PublishHead, QoS, SubAck, SubAckCodes, Subscribe,
    SubscribeFilters, Unsubscribe, UnsubscribeFilters, Will,
};
use super::reader::Reader;
use super::{DecodeError, FromClient, FromServer, Malformed};

/// Reads one packet of a client from the beginning of `buf` (MQTT 3.1.1 §2, §3).
///
/// Gives the packet and its length in bytes, after which the next one begins; `None` if more bytes
/// are needed. The packet borrows from `buf`. `packet_bytes_max` limits the entire packet, fixed
/// header included, and applies as soon as the fixed header is there.
///
/// # Errors
///
/// [`DecodeError`]; the same bytes followed by others give the same error. Errors in the first byte
/// and in the fixed header are found without the rest.
#[inline]
pub fn decode_from_client(
    buf: &[u8],
    packet_bytes_max: usize,
) -> Result<Option<(FromClient<'_>, usize)>, DecodeError> {
    let Some(frame) = Frame::read::<false>(buf, packet_bytes_max, Sender::Client)? else {
        return Ok(None);
    };
    let mut body = Reader::new(frame.body);
    let packet = match frame.kind {
        Kind::Publish => FromClient::Publish(publish(&mut body, frame.first)?),
        Kind::PubAck => FromClient::PubAck(body.packet_id()?),
        Kind::PubRec => FromClient::PubRec(body.packet_id()?),
        Kind::PubRel => FromClient::PubRel(body.packet_id()?),
        Kind::PubComp => FromClient::PubComp(body.packet_id()?),
        Kind::Connect => FromClient::Connect(connect(body)?),
        Kind::Subscribe => FromClient::Subscribe(Subscribe {
            packet_id: body.packet_id()?,
            filters: SubscribeFilters::parse(body.rest())?,
        }),
        Kind::Unsubscribe => FromClient::Unsubscribe(Unsubscribe {
            packet_id: body.packet_id()?,
            filters: UnsubscribeFilters::parse(body.rest())?,
        }),
        Kind::PingReq => FromClient::PingReq,
        Kind::Disconnect => FromClient::Disconnect,
        // The first byte was refused for these; said again so that the match is complete.
        Kind::ConnAck | Kind::SubAck | Kind::UnsubAck | Kind::PingResp | Kind::Auth => {
            return Err(frame.kind.wrong_sender().into());
        }
    };
    Ok(Some((packet, frame.packet_bytes)))
}

/// Reads one packet of a server from the beginning of `buf` (MQTT 3.1.1 §2, §3).
///
/// The mirror of [`decode_from_client`], with the same result, limit and errors.
///
/// # Errors
///
/// [`DecodeError`], but never [`DecodeError::UnsupportedProtocol`].
#[inline]
pub fn decode_from_server(
    buf: &[u8],
    packet_bytes_max: usize,
) -> Result<Option<(FromServer<'_>, usize)>, DecodeError> {
    let Some(frame) = Frame::read::<false>(buf, packet_bytes_max, Sender::Server)? else {
        return Ok(None);
    };
    let mut body = Reader::new(frame.body);
    let packet = match frame.kind {
        Kind::Publish => FromServer::Publish(publish(&mut body, frame.first)?),
        Kind::PubAck => FromServer::PubAck(body.packet_id()?),
        Kind::PubRec => FromServer::PubRec(body.packet_id()?),
        Kind::PubRel => FromServer::PubRel(body.packet_id()?),
        Kind::PubComp => FromServer::PubComp(body.packet_id()?),
        Kind::ConnAck => FromServer::ConnAck(connack(body)?),
        Kind::SubAck => FromServer::SubAck(SubAck {
            packet_id: body.packet_id()?,
            codes: SubAckCodes::parse(body.rest())?,
        }),
        Kind::UnsubAck => FromServer::UnsubAck(body.packet_id()?),
        Kind::PingResp => FromServer::PingResp,
        Kind::Connect
        | Kind::Subscribe
        | Kind::Unsubscribe
        | Kind::PingReq
        | Kind::Disconnect
        | Kind::Auth => {
            return Err(frame.kind.wrong_sender().into());
        }
    };
    Ok(Some((packet, frame.packet_bytes)))
}

/// The length in bytes of the entire packet at the beginning of `buf`, fixed header included
/// (MQTT 3.1.1 §2.2.3); `None` if the fixed header is not complete.
///
/// Looks at the remaining length only. At most 268 435 460.
///
/// # Errors
///
/// [`Malformed::RemainingLength`].
#[inline]
pub fn packet_length(buf: &[u8]) -> Result<Option<usize>, DecodeError> {
    let lengths = remaining_length(buf)?;
    Ok(lengths.map(|lengths| lengths.packet_bytes()))
}

/// Reads the head of a PUBLISH at the beginning of `buf`, whose payload need not be there
/// (MQTT 3.1.1 §3.3.1, §3.3.2). Meant for a message that is too large to be read: it can still be
/// refused by name.
///
/// `None` if the packet is no PUBLISH, if its head is incomplete, or if decoding would find
/// the head malformed. No limit applies.
#[must_use]
pub fn peek_publish(buf: &[u8]) -> Option<PublishHead<'_>> {
    let first = *buf.first()?;
    if first >> 4 != Kind::Publish as u8 {
        return None;
    }
    let lengths = remaining_length(buf).ok()??;
    let arrived = buf.get(lengths.header_bytes..)?;
    let body = arrived.get(..lengths.body_bytes).unwrap_or(arrived);
    let publish = publish(&mut Reader::new(body), first).ok()?;
    Some(PublishHead {
        dup: publish.dup,
        qos: publish.qos,
        retain: publish.retain,
        topic: publish.topic,
        packet_id: publish.packet_id,
        total_len: lengths.packet_bytes(),
    })
}

/// Who sent the bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Sender {
    Client,
    Server,
}

/// The type of a packet (§2.2.1, table 2.1; MQTT 5 §2.1.2).
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Connect = 1,
    ConnAck = 2,
    Publish = 3,
    PubAck = 4,
    PubRec = 5,
    PubRel = 6,
    PubComp = 7,
    Subscribe = 8,
    SubAck = 9,
    Unsubscribe = 10,
    UnsubAck = 11,
    PingReq = 12,
    PingResp = 13,
    Disconnect = 14,
    /// MQTT 5 only.
    Auth = 15,
}

impl Kind {
    /// Checks all that a first byte can say: type, sender and flags.
    #[inline]
    fn check<const V5: bool>(first: u8, sender: Sender) -> Result<Self, Malformed> {
        use Sender::{Client, Server};
        let (kind, never_by, expected) = match first >> 4 {
            1 => (Self::Connect, Some(Server), 0),
            2 => (Self::ConnAck, Some(Client), 0),
            3 => return publish_flags(first).map(|_| Self::Publish),
            4 => (Self::PubAck, None, 0),
            5 => (Self::PubRec, None, 0),
            6 => (Self::PubRel, None, 0b0010),
            7 => (Self::PubComp, None, 0),
            8 => (Self::Subscribe, Some(Server), 0b0010),
            9 => (Self::SubAck, Some(Client), 0),
            10 => (Self::Unsubscribe, Some(Server), 0b0010),
            11 => (Self::UnsubAck, Some(Client), 0),
            12 => (Self::PingReq, Some(Server), 0),
            13 => (Self::PingResp, Some(Client), 0),
            14 => (Self::Disconnect, (!V5).then_some(Server), 0),
            15 if V5 => (Self::Auth, None, 0),
            packet_type => return Err(Malformed::ReservedType(packet_type)),
        };
        if never_by == Some(sender) {
            return Err(kind.wrong_sender());
        }
        let flags = first & 0x0f;
        if flags != expected {
            return Err(Malformed::HeaderFlags { flags, expected });
        }
        Ok(kind)
    }

    pub(super) fn wrong_sender(self) -> Malformed {
        Malformed::WrongSender(self as u8)
    }

    /// The remaining length in bytes of a type that has one only.
    #[inline]
    fn body_bytes<const V5: bool>(self) -> Option<usize> {
        match self {
            Self::PingReq | Self::PingResp => Some(0),
            _ if V5 => None,
            Self::Auth => None,
            Self::Connect | Self::Publish => None,
            Self::Subscribe | Self::SubAck | Self::Unsubscribe => None,
            Self::ConnAck | Self::UnsubAck => Some(2),
            Self::PubAck | Self::PubRec | Self::PubRel | Self::PubComp => Some(2),
            Self::Disconnect => Some(0),
        }
    }
}

/// DUP, QoS and RETAIN of a PUBLISH's first byte (§3.3.1).
#[inline]
pub(super) fn publish_flags(first: u8) -> Result<(bool, QoS, bool), Malformed> {
    let dup = first & 0b1000 != 0;
    let qos = QoS::from_bits((first >> 1) & 0b11).ok_or(Malformed::QosThree)?;
    if dup && qos == QoS::AtMostOnce {
        return Err(Malformed::DupAtQosZero);
    }
    Ok((dup, qos, first & 1 != 0))
}

/// One whole packet, cut out of the buffer.
pub(super) struct Frame<'a> {
    pub(super) kind: Kind,
    pub(super) first: u8,
    pub(super) body: &'a [u8],
    pub(super) packet_bytes: usize,
}

impl<'a> Frame<'a> {
    #[inline]
    pub(super) fn read<const V5: bool>(
        buf: &'a [u8],
        packet_bytes_max: usize,
        sender: Sender,
    ) -> Result<Option<Self>, DecodeError> {
        let Some(&first) = buf.first() else {
            return Ok(None);
        };
        let kind = Kind::check::<V5>(first, sender)?;
        let Some(lengths) = remaining_length(buf)? else {
            return Ok(None);
        };
        let found = lengths.body_bytes;
        if V5 && !lengths.is_shortest() {
            return Err(Malformed::VariableInteger.into());
        }
        let packet_bytes = lengths.packet_bytes();
        if packet_bytes > packet_bytes_max {
            let max = packet_bytes_max;
            return Err(DecodeError::TooLarge { packet_bytes, max });
        }
        if let Some(expected) = kind.body_bytes::<V5>()
            && expected != found
        {
            return Err(Malformed::BodyLength { expected, found }.into());
        }
        let body = buf.get(lengths.header_bytes..packet_bytes);
        Ok(body.map(|body| Self {
            kind,
            first,
            body,
            packet_bytes,
        }))
    }
}

/// The lengths in bytes that a fixed header tells.
struct Lengths {
    header_bytes: usize,
    body_bytes: usize,
}

impl Lengths {
    #[inline]
    fn packet_bytes(&self) -> usize {
        self.header_bytes + self.body_bytes
    }

    /// As MQTT 5 wants it (§1.5.5).
    #[inline]
    fn is_shortest(&self) -> bool {
        self.header_bytes == 2 || self.body_bytes >> (7 * (self.header_bytes - 2)) > 0
    }
}

/// Reads the remaining length behind the first byte: one to four bytes of seven bits, the lowest
/// first (§2.2.3). `None` if it is not complete.
///
/// More bytes than the number needs are accepted: 3.1.1 does not ask for the shortest form, only
/// that there be no fifth byte (MQTT 5 does, in its §1.5.5).
#[inline]
fn remaining_length(buf: &[u8]) -> Result<Option<Lengths>, Malformed> {
    let mut body_bytes = 0;
    for (index, byte) in buf.iter().skip(1).take(4).enumerate() {
        body_bytes |= usize::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            let header_bytes = index + 2;
            return Ok(Some(Lengths {
                header_bytes,
                body_bytes,
            }));
        }
    }
    match buf.len() {
        0..=4 => Ok(None),
        _ => Err(Malformed::RemainingLength),
    }
}

/// CONNECT after the fixed header (§3.1.2, §3.1.3).
fn connect(mut body: Reader<'_>) -> Result<Connect<'_>, DecodeError> {
    let name = body.binary()?;
    let level = body.byte()?;
    match (name, level) {
        (b"MQTT", 4) => {}
        (b"MQTT" | b"MQIsdp", _) => return Err(DecodeError::UnsupportedProtocol { level }),
        _ => return Err(Malformed::ProtocolName.into()),
    }
    let flags = ConnectFlags::read(&mut body)?;
    if flags.password && !flags.username {
        return Err(Malformed::PasswordWithoutUsername.into());
    }
    let connect = Connect {
        clean_session: flags.clean,
        keep_alive_seconds: body.number()?,
        client_id: body.string()?,
        will: match flags.will {
            None => None,
            Some((qos, retain)) => Some(Will {
                topic: body.topic_name()?,
                payload: body.binary()?,
                qos,
                retain,
            }),
        },
        username: flags.username.then(|| body.string()).transpose()?,
        password: flags.password.then(|| body.binary()).transpose()?,
    };
    body.finish()?;
    Ok(connect)
}

/// The connect flags (§3.1.2.3).
pub(super) struct ConnectFlags {
    pub(super) clean: bool,
    /// QoS and RETAIN of the will.
    pub(super) will: Option<(QoS, bool)>,
    pub(super) username: bool,
    pub(super) password: bool,
}

impl ConnectFlags {
    pub(super) fn read(body: &mut Reader<'_>) -> Result<Self, Malformed> {
        const USERNAME: u8 = 0x80;
        const PASSWORD: u8 = 0x40;
        const WILL_RETAIN: u8 = 0x20;
        const WILL: u8 = 0x04;
        const CLEAN_SESSION: u8 = 0x02;
        const RESERVED: u8 = 0x01;

        let flags = body.byte()?;
        let has = |flag: u8| flags & flag != 0;
        let will_qos = QoS::from_bits((flags >> 3) & 0b11).ok_or(Malformed::QosThree)?;
        if has(RESERVED) {
            return Err(Malformed::ConnectFlagReserved);
        }
        if !has(WILL) && (has(WILL_RETAIN) || will_qos != QoS::AtMostOnce) {
            return Err(Malformed::WillFlagsWithoutWill);
        }
        Ok(Self {
            clean: has(CLEAN_SESSION),
            will: has(WILL).then(|| (will_qos, has(WILL_RETAIN))),
            username: has(USERNAME),
            password: has(PASSWORD),
        })
    }
}

/// CONNACK after the fixed header (§3.2.2).
fn connack(mut body: Reader<'_>) -> Result<ConnAck, Malformed> {
    let flags = body.byte()?;
    let byte = body.byte()?;
    if flags > 1 {
        return Err(Malformed::ConnAckFlagsReserved(flags));
    }
    let code = ConnectReturnCode::from_byte(byte).ok_or(Malformed::ConnAckReturnCode(byte))?;
    let session_present = flags == 1;
    if session_present && code != ConnectReturnCode::Accepted {
        return Err(Malformed::SessionPresentInRefusal);
    }
    Ok(ConnAck {
        session_present,
        code,
    })
}

/// The rest of a PUBLISH (§3.3.2, §3.3.3).
#[inline]
fn publish<'a>(body: &mut Reader<'a>, first: u8) -> Result<Publish<'a>, Malformed> {
    let (dup, qos, retain) = publish_flags(first)?;
    let topic = body.topic_name()?;
    let packet_id = match qos {
        QoS::AtMostOnce => None,
        QoS::AtLeastOnce | QoS::ExactlyOnce => Some(body.packet_id()?),
    };
    Ok(Publish {
        dup,
        qos,
        retain,
        topic,
        packet_id,
        payload: body.rest(),
    })
}
