//! A connection of either version of MQTT, with all that QoS 2 needs.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use edgehub::client::ClientError;
use edgehub::mqtt::v5::{
    self, Ack, Connect as ConnectFive, Notice, Place, Properties, Property, ReasonCode, Subscribe,
    SubscribeFilters,
};
use edgehub::mqtt::{self, Connect, ConnectReturnCode, FromClient, FromServer, PacketId, QoS};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const PACKET_MAX: usize = 1 << 20;
/// The longest that a login or a leave may take.
const EXCHANGE_LIMIT: Duration = Duration::from_secs(20);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    Four,
    Five,
}

/// Who connects, and for how long its session is to be kept.
#[derive(Debug, Clone)]
pub struct Hello {
    pub client_id: String,
    pub version: Version,
    pub clean: bool,
    /// Seconds; of MQTT 5 only. 3.1.1 keeps what is not clean for ever.
    pub expiry_s: u32,
}

/// A message as it came.
#[derive(Debug, Clone)]
pub struct Message {
    pub topic: String,
    pub payload: Vec<u8>,
    pub qos: QoS,
    pub packet_id: Option<PacketId>,
    pub retain: bool,
}

/// A packet of the hub.
#[derive(Debug)]
pub enum Said {
    Publish(Message),
    PubAck(PacketId),
    PubRec(PacketId),
    PubRel(PacketId),
    PubComp(PacketId),
    SubAck(PacketId),
    /// Everything else, refusals too.
    Other(String),
}

/// An answer to a message, or to an answer.
#[derive(Debug, Clone, Copy)]
pub enum Answer {
    Ack,
    Rec,
    Rel,
    Comp,
}

/// A message to send.
pub struct Sending<'a> {
    pub topic: &'a str,
    pub payload: &'a [u8],
    pub qos: QoS,
    pub packet_id: PacketId,
    pub dup: bool,
    pub retain: bool,
}

pub struct Wire {
    socket: TcpStream,
    version: Version,
    input: BytesMut,
    output: BytesMut,
}

impl Wire {
    /// Logged in, and whether the hub had a session.
    pub async fn login(address: SocketAddr, hello: &Hello) -> Result<(Self, bool), ClientError> {
        let login = Self::login_unbounded(address, hello);
        let ended = tokio::time::timeout(EXCHANGE_LIMIT, login).await;
        ended.map_err(|_| unexpected("nothing in time".to_owned()))?
    }

    async fn login_unbounded(
        address: SocketAddr,
        hello: &Hello,
    ) -> Result<(Self, bool), ClientError> {
        let socket = TcpStream::connect(address).await?;
        socket.set_nodelay(true)?;
        let mut wire = Self {
            socket,
            version: hello.version,
            input: BytesMut::with_capacity(1 << 16),
            output: BytesMut::new(),
        };
        wire.connect(hello)?;
        wire.flush().await?;
        loop {
            let Some((present, used)) = wire.connack()? else {
                wire.read().await?;
                continue;
            };
            wire.input.advance(used);
            return Ok((wire, present));
        }
    }

    fn connect(&mut self, hello: &Hello) -> Result<(), ClientError> {
        if self.version == Version::Four {
            let connect = FromClient::Connect(Connect {
                clean_session: hello.clean,
                keep_alive_seconds: 60,
                client_id: &hello.client_id,
                will: None,
                username: None,
                password: None,
            });
            mqtt::encode_from_client(&connect, &mut self.output)?;
            return Ok(());
        }
        let expiry = Property::SessionExpiry(hello.expiry_s);
        let wanted = (hello.expiry_s > 0).then_some(expiry);
        let mut properties = BytesMut::new();
        v5::encode_properties(&mut properties, Place::Connect, wanted.into_iter())?;
        let connect = v5::FromClient::Connect(ConnectFive {
            clean_start: hello.clean,
            keep_alive_seconds: 60,
            properties: Properties::parse(&properties, Place::Connect).unwrap(),
            client_id: &hello.client_id,
            will: None,
            username: None,
            password: None,
        });
        v5::encode_from_client(&connect, &mut self.output)?;
        Ok(())
    }

    /// Session present of the CONNACK that is there, and its length.
    fn connack(&self) -> Result<Option<(bool, usize)>, ClientError> {
        if self.version == Version::Four {
            let read = mqtt::decode_from_server(&self.input, PACKET_MAX)?;
            return match read {
                Some((FromServer::ConnAck(answer), used)) => match answer.code {
                    ConnectReturnCode::Accepted => Ok(Some((answer.session_present, used))),
                    code => Err(ClientError::Refused(code)),
                },
                Some((other, _)) => Err(unexpected(format!("{other:?}"))),
                None => Ok(None),
            };
        }
        match v5::decode_from_server(&self.input, PACKET_MAX)? {
            Some((v5::FromServer::ConnAck(answer), used)) if !answer.reason.is_failure() => {
                Ok(Some((answer.session_present, used)))
            }
            Some((other, _)) => Err(unexpected(format!("{other:?}"))),
            None => Ok(None),
        }
    }

    /// Adds a SUBSCRIBE to what the next flush writes.
    pub fn subscribe(
        &mut self,
        packet_id: PacketId,
        filter: &str,
        qos: QoS,
    ) -> Result<(), ClientError> {
        if self.version == Version::Four {
            let filters = std::iter::once((filter, qos));
            mqtt::encode_subscribe(&mut self.output, packet_id, filters)?;
            return Ok(());
        }
        let mut bytes = Vec::from((filter.len() as u16).to_be_bytes());
        bytes.extend(filter.as_bytes());
        bytes.push(qos as u8);
        let subscribe = v5::FromClient::Subscribe(Subscribe {
            packet_id,
            properties: Properties::EMPTY,
            filters: SubscribeFilters::parse(&bytes).unwrap(),
        });
        v5::encode_from_client(&subscribe, &mut self.output)?;
        Ok(())
    }

    /// Adds a message to what the next flush writes.
    pub fn publish(&mut self, sending: &Sending<'_>) -> Result<(), ClientError> {
        let Sending {
            topic,
            payload,
            qos,
            packet_id,
            dup,
            retain,
        } = *sending;
        let packet_id = Some(packet_id);
        if self.version == Version::Four {
            let publish = FromClient::Publish(mqtt::Publish {
                dup,
                qos,
                retain,
                topic,
                packet_id,
                payload,
            });
            mqtt::encode_from_client(&publish, &mut self.output)?;
            return Ok(());
        }
        let publish = v5::FromClient::Publish(v5::Publish {
            dup,
            qos,
            retain,
            topic,
            packet_id,
            properties: Properties::EMPTY,
            payload,
        });
        v5::encode_from_client(&publish, &mut self.output)?;
        Ok(())
    }

    /// Adds an answer to what the next flush writes.
    pub fn answer(&mut self, answer: Answer, id: PacketId) -> Result<(), ClientError> {
        if self.version == Version::Four {
            let packet = match answer {
                Answer::Ack => FromClient::PubAck(id),
                Answer::Rec => FromClient::PubRec(id),
                Answer::Rel => FromClient::PubRel(id),
                Answer::Comp => FromClient::PubComp(id),
            };
            mqtt::encode_from_client(&packet, &mut self.output)?;
            return Ok(());
        }
        let ack = Ack::success(id);
        let packet = match answer {
            Answer::Ack => v5::FromClient::PubAck(ack),
            Answer::Rec => v5::FromClient::PubRec(ack),
            Answer::Rel => v5::FromClient::PubRel(ack),
            Answer::Comp => v5::FromClient::PubComp(ack),
        };
        v5::encode_from_client(&packet, &mut self.output)?;
        Ok(())
    }

    pub async fn flush(&mut self) -> Result<(), ClientError> {
        while self.output.has_remaining() {
            self.socket.write_buf(&mut self.output).await?;
        }
        Ok(())
    }

    /// Reads once. Nothing is lost where this is given up in between.
    pub async fn read(&mut self) -> Result<(), ClientError> {
        self.input.reserve(1 << 16);
        match self.socket.read_buf(&mut self.input).await? {
            0 => Err(ClientError::Closed),
            _ => Ok(()),
        }
    }

    /// The next packet that is there whole.
    pub fn next(&mut self) -> Result<Option<Said>, ClientError> {
        let said = match self.version {
            Version::Four => {
                let read = mqtt::decode_from_server(&self.input, PACKET_MAX)?;
                read.map(|(packet, used)| (said_four(&packet), used))
            }
            Version::Five => {
                let read = v5::decode_from_server(&self.input, PACKET_MAX)?;
                read.map(|(packet, used)| (said_five(&packet), used))
            }
        };
        Ok(said.map(|(said, used)| {
            self.input.advance(used);
            said
        }))
    }

    /// Takes leave: DISCONNECT, and waits until the hub has closed.
    pub async fn leave(mut self) -> Result<(), ClientError> {
        let goodbye = Notice {
            reason: ReasonCode::Success,
            properties: Properties::EMPTY,
        };
        match self.version {
            Version::Four => mqtt::encode_from_client(&FromClient::Disconnect, &mut self.output)?,
            Version::Five => {
                let packet = v5::FromClient::Disconnect(goodbye);
                v5::encode_from_client(&packet, &mut self.output)?;
            }
        }
        self.flush().await?;
        self.socket.shutdown().await?;
        let gone = async { while self.read().await.is_ok() {} };
        let _ = tokio::time::timeout(EXCHANGE_LIMIT, gone).await;
        Ok(())
    }
}

fn said_four(packet: &FromServer<'_>) -> Said {
    match packet {
        FromServer::Publish(publish) => Said::Publish(Message {
            topic: publish.topic.to_owned(),
            payload: publish.payload.to_vec(),
            qos: publish.qos,
            packet_id: publish.packet_id,
            retain: publish.retain,
        }),
        FromServer::PubAck(id) => Said::PubAck(*id),
        FromServer::PubRec(id) => Said::PubRec(*id),
        FromServer::PubRel(id) => Said::PubRel(*id),
        FromServer::PubComp(id) => Said::PubComp(*id),
        FromServer::SubAck(answer) if answer.codes.iter().all(|code| code.to_byte() < 0x80) => {
            Said::SubAck(answer.packet_id)
        }
        other => Said::Other(format!("{other:?}")),
    }
}

fn said_five(packet: &v5::FromServer<'_>) -> Said {
    match packet {
        v5::FromServer::Publish(publish) => Said::Publish(Message {
            topic: publish.topic.to_owned(),
            payload: publish.payload.to_vec(),
            qos: publish.qos,
            packet_id: publish.packet_id,
            retain: publish.retain,
        }),
        v5::FromServer::PubAck(ack) if !ack.reason.is_failure() => Said::PubAck(ack.packet_id),
        v5::FromServer::PubRec(ack) if !ack.reason.is_failure() => Said::PubRec(ack.packet_id),
        // 0x92 says that the id is not known: after a loss that is no error (§3.6.2.1).
        v5::FromServer::PubRel(ack) => Said::PubRel(ack.packet_id),
        v5::FromServer::PubComp(ack) => Said::PubComp(ack.packet_id),
        v5::FromServer::SubAck(answer) if !answer.codes.iter().any(ReasonCode::is_failure) => {
            Said::SubAck(answer.packet_id)
        }
        other => Said::Other(format!("{other:?}")),
    }
}

fn unexpected(got: String) -> ClientError {
    ClientError::Unexpected {
        expected: "CONNACK",
        got,
    }
}
