//! A client of MQTT 5 that sends what it is told and says what it gets.

use std::net::SocketAddr;

use bytes::{Buf, BytesMut};
use edgehub::mqtt::v5::{
    self, Ack, Connect, FromClient, FromServer, Notice, Place, Properties, Property, Publish,
    ReasonCode, Subscribe, SubscribeFilters,
};
use edgehub::mqtt::{PacketId, QoS};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{Hub, LIMIT};

/// What came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Got {
    ConnAck {
        session_present: bool,
        reason: ReasonCode,
        properties: Vec<String>,
    },
    PubAck(u16, ReasonCode),
    SubAck(Vec<ReasonCode>),
    Publish {
        topic: String,
        packet_id: Option<u16>,
        dup: bool,
        payload: Vec<u8>,
    },
    Disconnect(ReasonCode),
    Closed,
}

/// One connection.
pub struct Five {
    socket: TcpStream,
    input: BytesMut,
    next_id: u16,
}

/// Properties for a packet.
pub fn list(place: Place, properties: &[Property<'_>]) -> Vec<u8> {
    let mut out = BytesMut::new();
    v5::encode_properties(&mut out, place, properties.iter().copied()).unwrap();
    out.to_vec()
}

impl Five {
    /// A connection on which nothing was said.
    pub async fn open(address: SocketAddr) -> Self {
        let socket = TcpStream::connect(address).await.unwrap();
        socket.set_nodelay(true).unwrap();
        Self {
            socket,
            input: BytesMut::new(),
            next_id: 1,
        }
    }

    /// A module's connection, let in; also the CONNACK.
    pub async fn module(hub: &Hub, module: &str, properties: &[Property<'_>]) -> (Self, Got) {
        Self::login(hub, module, false, properties).await
    }

    /// As [`Self::module`], with the choice to forget the session.
    pub async fn login(
        hub: &Hub,
        module: &str,
        clean_start: bool,
        properties: &[Property<'_>],
    ) -> (Self, Got) {
        let mut five = Self::open(hub.tcp()).await;
        let hello = hub.hello(&format!("edge-1/{module}"));
        let properties = list(Place::Connect, properties);
        five.send(&FromClient::Connect(Connect {
            clean_start,
            keep_alive_seconds: 60,
            properties: Properties::parse(&properties, Place::Connect).unwrap(),
            client_id: &hello.client_id,
            will: None,
            username: hello.username.as_deref(),
            password: hello.password.as_ref().map(|password| password.as_bytes()),
        }))
        .await;
        let connack = five.receive().await;
        (five, connack)
    }

    pub async fn send(&mut self, packet: &FromClient<'_>) {
        let mut out = BytesMut::new();
        v5::encode_from_client(packet, &mut out).unwrap();
        self.socket.write_all(&out).await.unwrap();
    }

    /// The next packet.
    pub async fn receive(&mut self) -> Got {
        loop {
            let read = v5::decode_from_server(&self.input, 1 << 24).unwrap();
            if let Some((packet, length)) = read {
                let got = got(&packet);
                self.input.advance(length);
                return got;
            }
            let read = self.socket.read_buf(&mut self.input);
            match tokio::time::timeout(LIMIT, read).await.unwrap() {
                Ok(1..) => {}
                Ok(0) | Err(_) => return Got::Closed,
            }
        }
    }

    /// Publishes with QoS 1; returns what the PUBACK says.
    pub async fn publish(
        &mut self,
        topic: &str,
        payload: &[u8],
        properties: &[Property<'_>],
    ) -> ReasonCode {
        let properties = list(Place::ClientPublish, properties);
        let id = self.next_id;
        self.next_id += 1;
        self.send(&FromClient::Publish(Publish {
            dup: false,
            qos: QoS::AtLeastOnce,
            retain: false,
            topic,
            packet_id: PacketId::new(id),
            properties: Properties::parse(&properties, Place::ClientPublish).unwrap(),
            payload,
        }))
        .await;
        match self.receive().await {
            Got::PubAck(acknowledged, reason) if acknowledged == id => reason,
            other => panic!("{other:?} instead of a PUBACK"),
        }
    }

    /// Subscribes to one filter with QoS 1.
    pub async fn subscribe(&mut self, filter: &str) -> ReasonCode {
        let mut bytes = Vec::from((filter.len() as u16).to_be_bytes());
        bytes.extend(filter.as_bytes());
        bytes.push(1);
        self.send(&FromClient::Subscribe(Subscribe {
            packet_id: PacketId::new(60_000).unwrap(),
            properties: Properties::EMPTY,
            filters: SubscribeFilters::parse(&bytes).unwrap(),
        }))
        .await;
        match self.receive().await {
            Got::SubAck(codes) => codes[0],
            other => panic!("{other:?} instead of a SUBACK"),
        }
    }

    /// The next message, acknowledged: its topic and payload.
    pub async fn message(&mut self) -> (String, Vec<u8>) {
        let got = self.receive().await;
        let Got::Publish {
            topic,
            packet_id,
            payload,
            ..
        } = got
        else {
            panic!("{got:?} instead of a message");
        };
        if let Some(id) = packet_id.and_then(PacketId::new) {
            self.send(&FromClient::PubAck(Ack::success(id))).await;
        }
        (topic, payload)
    }

    /// Takes leave, and waits for the server to close.
    pub async fn leave(mut self, reason: ReasonCode, properties: &[Property<'_>]) {
        let properties = list(Place::ClientDisconnect, properties);
        self.send(&FromClient::Disconnect(Notice {
            reason,
            properties: Properties::parse(&properties, Place::ClientDisconnect).unwrap(),
        }))
        .await;
        assert_eq!(self.receive().await, Got::Closed);
    }
}

fn got(packet: &FromServer<'_>) -> Got {
    match packet {
        FromServer::ConnAck(connack) => Got::ConnAck {
            session_present: connack.session_present,
            reason: connack.reason,
            properties: connack
                .properties
                .iter()
                .map(|property| format!("{property:?}"))
                .collect(),
        },
        FromServer::PubAck(ack) => Got::PubAck(ack.packet_id.get(), ack.reason),
        FromServer::SubAck(answers) => Got::SubAck(answers.codes.iter().collect()),
        FromServer::Publish(publish) => Got::Publish {
            topic: publish.topic.to_owned(),
            packet_id: publish.packet_id.map(PacketId::get),
            dup: publish.dup,
            payload: publish.payload.to_vec(),
        },
        FromServer::Disconnect(notice) => Got::Disconnect(notice.reason),
        other => panic!("{other:?}"),
    }
}
