//! A client of MQTT 5 that sends what it is told and says what it gets.

use std::collections::VecDeque;
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
    PubRec(u16, ReasonCode),
    PubRel(u16),
    PubComp(u16),
    SubAck(Vec<ReasonCode>),
    UnsubAck(Vec<ReasonCode>),
    Publish {
        topic: String,
        packet_id: Option<u16>,
        qos: QoS,
        dup: bool,
        retain: bool,
        payload: Vec<u8>,
        properties: Vec<String>,
    },
    Disconnect(ReasonCode),
    Closed,
}

/// One connection.
pub struct Five {
    socket: TcpStream,
    input: BytesMut,
    next_id: u16,
    /// Came before what was waited for.
    held: VecDeque<Got>,
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
            held: VecDeque::new(),
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

    /// Connects without credentials; also the CONNACK.
    pub async fn anonymous(
        hub: &Hub,
        client_id: &str,
        clean_start: bool,
        properties: &[Property<'_>],
    ) -> (Self, Got) {
        Self::anonymous_at(hub.tcp(), client_id, clean_start, properties).await
    }

    /// As [`Self::anonymous`], by the address.
    pub async fn anonymous_at(
        address: SocketAddr,
        client_id: &str,
        clean_start: bool,
        properties: &[Property<'_>],
    ) -> (Self, Got) {
        let mut five = Self::open(address).await;
        let properties = list(Place::Connect, properties);
        five.send(&FromClient::Connect(Connect {
            clean_start,
            keep_alive_seconds: 60,
            properties: Properties::parse(&properties, Place::Connect).unwrap(),
            client_id,
            will: None,
            username: None,
            password: None,
        }))
        .await;
        let connack = five.receive().await;
        (five, connack)
    }

    /// Connects as a user, for this connection alone; also the CONNACK.
    pub async fn user(hub: &Hub, client_id: &str, name: &str, password: &str) -> (Self, Got) {
        let mut five = Self::open(hub.tcp()).await;
        five.send(&FromClient::Connect(Connect {
            clean_start: true,
            keep_alive_seconds: 60,
            properties: Properties::EMPTY,
            client_id,
            will: None,
            username: Some(name),
            password: Some(password.as_bytes()),
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
        match self.held.pop_front() {
            Some(held) => held,
            None => self.read().await,
        }
    }

    async fn read(&mut self) -> Got {
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

    /// Sends a message, and waits for nothing.
    pub async fn publish_as(
        &mut self,
        topic: &str,
        (qos, retain, dup): (QoS, bool, bool),
        payload: &[u8],
        properties: &[Property<'_>],
    ) {
        let properties = list(Place::ClientPublish, properties);
        let packet_id = (qos != QoS::AtMostOnce).then(|| PacketId::new(self.next_id).unwrap());
        self.next_id += u16::from(packet_id.is_some());
        self.send(&FromClient::Publish(Publish {
            dup,
            qos,
            retain,
            topic,
            packet_id,
            properties: Properties::parse(&properties, Place::ClientPublish).unwrap(),
            payload,
        }))
        .await;
    }

    /// Subscribes to one filter with QoS 1.
    pub async fn subscribe(&mut self, filter: &str) -> ReasonCode {
        self.subscribe_as(filter, 1, &[]).await
    }

    /// Subscribes to one filter with an options byte.
    pub async fn subscribe_as(
        &mut self,
        filter: &str,
        options: u8,
        properties: &[Property<'_>],
    ) -> ReasonCode {
        let mut bytes = Vec::from((filter.len() as u16).to_be_bytes());
        bytes.extend(filter.as_bytes());
        bytes.push(options);
        let properties = list(Place::Subscribe, properties);
        self.send(&FromClient::Subscribe(Subscribe {
            packet_id: PacketId::new(60_000).unwrap(),
            properties: Properties::parse(&properties, Place::Subscribe).unwrap(),
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
        self.acknowledge(&got).await;
        match got {
            Got::Publish { topic, payload, .. } => (topic, payload),
            other => panic!("{other:?} instead of a message"),
        }
    }

    /// Acknowledges a message as its QoS asks for, to the end.
    pub async fn acknowledge(&mut self, message: &Got) {
        let Got::Publish { packet_id, qos, .. } = message else {
            panic!("{message:?} instead of a message");
        };
        let Some(id) = packet_id.and_then(PacketId::new) else {
            return;
        };
        let ack = Ack::success(id);
        if *qos != QoS::ExactlyOnce {
            self.send(&FromClient::PubAck(ack)).await;
            return;
        }
        self.send(&FromClient::PubRec(ack)).await;
        self.wait_for(&Got::PubRel(id.get())).await;
        self.send(&FromClient::PubComp(ack)).await;
    }

    /// Waits for a packet, and keeps messages that come before it.
    async fn wait_for(&mut self, wanted: &Got) {
        loop {
            let got = self.read().await;
            if got == *wanted {
                return;
            }
            assert!(matches!(got, Got::Publish { .. }), "{got:?}");
            self.held.push_back(got);
        }
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

fn words(properties: Properties<'_>) -> Vec<String> {
    let words = properties.iter().map(|property| format!("{property:?}"));
    words.collect()
}

fn got(packet: &FromServer<'_>) -> Got {
    match packet {
        FromServer::ConnAck(connack) => Got::ConnAck {
            session_present: connack.session_present,
            reason: connack.reason,
            properties: words(connack.properties),
        },
        FromServer::PubAck(ack) => Got::PubAck(ack.packet_id.get(), ack.reason),
        FromServer::SubAck(answers) => Got::SubAck(answers.codes.iter().collect()),
        FromServer::Publish(publish) => Got::Publish {
            topic: publish.topic.to_owned(),
            packet_id: publish.packet_id.map(PacketId::get),
            qos: publish.qos,
            dup: publish.dup,
            retain: publish.retain,
            payload: publish.payload.to_vec(),
            properties: words(publish.properties),
        },
        FromServer::PubRec(ack) => Got::PubRec(ack.packet_id.get(), ack.reason),
        FromServer::PubRel(ack) => Got::PubRel(ack.packet_id.get()),
        FromServer::PubComp(ack) => Got::PubComp(ack.packet_id.get()),
        FromServer::UnsubAck(answers) => Got::UnsubAck(answers.codes.iter().collect()),
        FromServer::Disconnect(notice) => Got::Disconnect(notice.reason),
        other => panic!("{other:?}"),
    }
}
