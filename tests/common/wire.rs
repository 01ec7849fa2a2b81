//! Packets as bytes, for tests that write more than one at a time or what no client would.

use bytes::BytesMut;
use edgehub::client::{Client, Hello, Packet};
use edgehub::mqtt::{self, Connect, FromClient, PacketId, Publish, QoS, SubAckCode, Will};

use super::receive;

pub const PING: &[u8] = &[0xc0, 0];
pub const DISCONNECT: &[u8] = &[0xe0, 0];

pub fn encode(packet: &FromClient<'_>) -> Vec<u8> {
    let mut out = BytesMut::new();
    mqtt::encode_from_client(packet, &mut out).unwrap();
    out.to_vec()
}

pub fn connect(hello: &Hello) -> Vec<u8> {
    connect_with(hello, None)
}

/// CONNECT with a will: its topic and payload.
pub fn connect_with(hello: &Hello, will: Option<(&str, &[u8])>) -> Vec<u8> {
    encode(&FromClient::Connect(Connect {
        clean_session: hello.clean_session,
        keep_alive_seconds: hello.keep_alive_seconds,
        client_id: &hello.client_id,
        will: will.map(|(topic, payload)| Will {
            topic,
            payload,
            qos: QoS::AtLeastOnce,
            retain: false,
        }),
        username: hello.username.as_deref(),
        password: hello.password.as_deref().map(str::as_bytes),
    }))
}

/// PUBLISH of QoS 1, or with id 0 of QoS 0.
pub fn publish(topic: &str, id: u16, payload: &[u8]) -> Vec<u8> {
    publish_dup(topic, id, payload, false)
}

pub fn publish_dup(topic: &str, id: u16, payload: &[u8], dup: bool) -> Vec<u8> {
    let packet_id = PacketId::new(id);
    encode(&FromClient::Publish(Publish {
        dup,
        qos: packet_id.map_or(QoS::AtMostOnce, |_| QoS::AtLeastOnce),
        retain: false,
        topic,
        packet_id,
        payload,
    }))
}

pub fn puback(id: PacketId) -> Vec<u8> {
    encode(&FromClient::PubAck(id))
}

pub fn id(id: u16) -> PacketId {
    PacketId::new(id).unwrap()
}

pub fn subscribe(packet_id: u16, filters: &[(&str, QoS)]) -> Vec<u8> {
    let mut out = BytesMut::new();
    mqtt::encode_subscribe(&mut out, id(packet_id), filters.iter().copied()).unwrap();
    out.to_vec()
}

pub fn unsubscribe(packet_id: u16, filters: &[&str]) -> Vec<u8> {
    let mut out = BytesMut::new();
    mqtt::encode_unsubscribe(&mut out, id(packet_id), filters.iter().copied()).unwrap();
    out.to_vec()
}

/// A delivery: topic, body, DUP and packet id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Got {
    pub topic: String,
    pub body: String,
    pub dup: bool,
    pub id: Option<PacketId>,
}

impl Got {
    pub fn of(packet: Packet) -> Option<Self> {
        match packet {
            Packet::Publish {
                topic,
                payload,
                dup,
                packet_id,
            } => Some(Self {
                topic,
                body: String::from_utf8_lossy(&payload).into_owned(),
                dup,
                id: packet_id,
            }),
            _ => None,
        }
    }
}

/// The next message, not acknowledged.
pub async fn take(client: &mut Client) -> Got {
    loop {
        if let Some(got) = Got::of(receive(client).await.unwrap()) {
            return got;
        }
    }
}

/// The next messages, not acknowledged.
pub async fn take_all(client: &mut Client, count: usize) -> Vec<Got> {
    let mut all = Vec::with_capacity(count);
    while all.len() < count {
        all.push(take(client).await);
    }
    all
}

/// The bodies of the next messages, each acknowledged as it comes: a full queue waits for that.
pub async fn bodies(client: &mut Client, count: usize) -> Vec<String> {
    let mut bodies = Vec::with_capacity(count);
    while bodies.len() < count {
        let got = take(client).await;
        bodies.push(got.body);
        if let Some(id) = got.id {
            client.acknowledge(id).await.unwrap();
        }
    }
    bodies
}

/// The bodies of all messages up to the one with this body, each acknowledged as it comes.
pub async fn bodies_to(client: &mut Client, last: &str) -> Vec<String> {
    let mut all = Vec::new();
    while all.last().is_none_or(|body| body != last) {
        all.extend(bodies(client, 1).await);
    }
    all
}

/// Publishes many messages, hundreds in one write, and waits for all acknowledgements.
pub async fn publish_many(client: &mut Client, messages: &[(String, String)]) {
    for (batch, chunk) in messages.chunks(500).enumerate() {
        let ids = (0..chunk.len()).map(|at| ((batch * 500 + at) % 65_535 + 1) as u16);
        let mut bytes = Vec::new();
        for ((topic, body), id) in chunk.iter().zip(ids.clone()) {
            bytes.extend(publish(topic, id, body.as_bytes()));
        }
        client.send_bytes(&bytes).await.unwrap();
        acknowledged(client, ids).await;
    }
}

/// Waits for PUBACKs with just these ids.
pub async fn acknowledged(client: &mut Client, ids: impl Iterator<Item = u16>) {
    for expected in ids {
        let packet = receive(client).await.unwrap();
        assert_eq!(packet, Packet::PubAck(id(expected)));
    }
}

/// The numbers as messages on one topic.
pub fn numbered(topic: &str, numbers: std::ops::Range<usize>) -> Vec<(String, String)> {
    numbers
        .map(|number| (topic.to_owned(), number.to_string()))
        .collect()
}

pub fn numbers(numbers: std::ops::Range<usize>) -> Vec<String> {
    numbers.map(|number| number.to_string()).collect()
}

/// Subscribes at QoS 1; messages may come before the SUBACK and are returned.
pub async fn subscribe_amid(client: &mut Client, filter: &str) -> Vec<Got> {
    let packet = subscribe(7, &[(filter, QoS::AtLeastOnce)]);
    client.send_bytes(&packet).await.unwrap();
    let mut early = Vec::new();
    loop {
        match receive(client).await.unwrap() {
            Packet::SubAck(_, codes) => {
                assert_eq!(codes, [SubAckCode::Granted(QoS::AtLeastOnce)]);
                return early;
            }
            other => early.extend(Got::of(other)),
        }
    }
}

/// Proves that the connection is served.
pub async fn ping(client: &mut Client) {
    client.send_bytes(PING).await.unwrap();
    assert_eq!(receive(client).await.unwrap(), Packet::PingResp);
}

/// Has the hub deal with everything that was sent to it; messages come before or amid its answer.
pub async fn ping_amid(client: &mut Client) -> Vec<Got> {
    client.send_bytes(PING).await.unwrap();
    let mut early = Vec::new();
    loop {
        match receive(client).await.unwrap() {
            Packet::PingResp => return early,
            other => early.extend(Got::of(other)),
        }
    }
}

/// Everything until the connection ends.
pub async fn rest(client: &mut Client) -> Vec<Packet> {
    let mut packets = Vec::new();
    while let Ok(packet) = receive(client).await {
        packets.push(packet);
    }
    packets
}

/// Bytes from hex digits; blanks are for the reader.
pub fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u32> = text
        .chars()
        .filter_map(|digit| digit.to_digit(16))
        .collect();
    digits
        .chunks(2)
        .map(|pair| (pair[0] << 4 | pair[1]) as u8)
        .collect()
}
