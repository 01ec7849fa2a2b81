//! MQTT in WebSocket, where clients do what they may and what they may not.
#![allow(missing_docs, clippy::unwrap_used, clippy::indexing_slicing)]

mod common;

use std::net::SocketAddr;

use bytes::BytesMut;
use edgehub::mqtt::{self, Connect, FromClient, FromServer, Publish, QoS};
use futures_core::Stream;
use futures_sink::Sink;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{WebSocketStream, client_async};

use common::{LIMIT, Setup};

fn setup() -> Setup {
    let mut setup = Setup::open_everywhere("{}", &[]);
    setup.extra += "[limits]\nconnect_timeout_seconds = 2\n";
    setup
}

struct Socket {
    inner: WebSocketStream<TcpStream>,
    input: BytesMut,
}

impl Socket {
    async fn open(address: SocketAddr, protocol: Option<&str>) -> Result<Self, Error> {
        let socket = TcpStream::connect(address).await.unwrap();
        let mut request = "ws://localhost/any/path?at=all".into_client_request()?;
        if let Some(protocol) = protocol {
            let value = HeaderValue::from_str(protocol).unwrap();
            request
                .headers_mut()
                .insert("Sec-WebSocket-Protocol", value);
        }
        let (inner, response) = client_async(request, socket).await?;
        let chosen = response.headers().get("Sec-WebSocket-Protocol");
        assert_eq!(chosen.unwrap(), "mqtt");
        let input = BytesMut::new();
        Ok(Self { inner, input })
    }

    async fn send(&mut self, message: Message) {
        self.try_send(message).await.unwrap();
    }

    async fn try_send(&mut self, message: Message) -> Result<(), Error> {
        let mut message = Some(message);
        std::future::poll_fn(|cx| {
            let mut inner = std::pin::Pin::new(&mut self.inner);
            if message.is_some() {
                std::task::ready!(inner.as_mut().poll_ready(cx))?;
                inner.as_mut().start_send(message.take().unwrap())?;
            }
            inner.poll_flush(cx)
        })
        .await
    }

    async fn receive(&mut self) -> Option<Message> {
        let next = std::future::poll_fn(|cx| std::pin::Pin::new(&mut self.inner).poll_next(cx));
        tokio::time::timeout(LIMIT, next).await.unwrap()?.ok()
    }

    /// The next packet's name.
    async fn packet(&mut self) -> String {
        loop {
            if let Some((packet, used)) = mqtt::decode_from_server(&self.input, 1 << 20).unwrap() {
                let name = match packet {
                    FromServer::Publish(publish) => {
                        format!("{} {}", publish.topic, publish.payload.len())
                    }
                    other => format!("{other:?}")[..7].to_owned(),
                };
                bytes::Buf::advance(&mut self.input, used);
                return name;
            }
            match self.receive().await.unwrap() {
                Message::Binary(bytes) => self.input.extend_from_slice(&bytes),
                other => panic!("{other:?}"),
            }
        }
    }

    /// Whether the server closes, after whatever it still sends.
    async fn is_closed(&mut self) -> bool {
        while let Some(message) = self.receive().await {
            if let Message::Close(_) = message {
                return true;
            }
        }
        true
    }
}

fn encoded(packet: &FromClient<'_>) -> Vec<u8> {
    let mut out = BytesMut::new();
    mqtt::encode_from_client(packet, &mut out).unwrap();
    out.to_vec()
}

fn connect() -> Vec<u8> {
    encoded(&FromClient::Connect(Connect {
        clean_session: true,
        keep_alive_seconds: 60,
        client_id: "socket",
        will: None,
        username: None,
        password: None,
    }))
}

fn publish(payload: &[u8]) -> Vec<u8> {
    encoded(&FromClient::Publish(Publish {
        dup: false,
        qos: QoS::AtMostOnce,
        retain: false,
        topic: "a",
        packet_id: None,
        payload,
    }))
}

#[tokio::test]
async fn packets_and_messages_need_not_begin_together() {
    let setup = setup();
    let hub = setup.start();
    let address = hub.address("ws");
    let mut socket = Socket::open(address, Some("other, mqtt")).await.unwrap();
    let mut subscribe = BytesMut::new();
    let filters = std::iter::once(("#", QoS::AtMostOnce));
    let id = mqtt::PacketId::new(1).unwrap();
    mqtt::encode_subscribe(&mut subscribe, id, filters).unwrap();
    let large = vec![b'x'; 300_000];
    let all = [
        connect(),
        subscribe.to_vec(),
        publish(b"1"),
        publish(&large),
        publish(b"22"),
    ]
    .concat();
    // A byte at a time, then all at once.
    let (slowly, rest) = all.split_at(connect().len() + subscribe.len());
    for byte in slowly {
        socket.send(Message::Binary(vec![*byte].into())).await;
    }
    socket.send(Message::Ping(b"there?".to_vec().into())).await;
    assert_eq!(socket.packet().await, "ConnAck");
    assert_eq!(socket.packet().await, "SubAck(");
    assert_eq!(
        socket.receive().await,
        Some(Message::Pong(b"there?".to_vec().into()))
    );
    socket.send(Message::Binary(rest.to_vec().into())).await;
    for expected in ["a 1", "a 300000", "a 2"] {
        assert_eq!(socket.packet().await, expected);
    }
}

#[tokio::test]
async fn what_is_no_mqtt_is_refused() {
    let setup = setup();
    let hub = setup.start();
    let address = hub.address("ws");
    for protocol in [None, Some("mqttv3.1"), Some("chat")] {
        let refused = Socket::open(address, protocol).await.err().unwrap();
        let Error::Http(response) = refused else {
            panic!("{refused:?}");
        };
        assert_eq!(response.status(), 400);
    }
    let mut socket = Socket::open(address, Some("mqtt")).await.unwrap();
    socket.send(Message::Binary(connect().into())).await;
    assert_eq!(socket.packet().await, "ConnAck");
    socket.send(Message::text("hello")).await;
    assert!(socket.is_closed().await);
    // More than the largest packet in one message.
    let mut socket = Socket::open(address, Some("mqtt")).await.unwrap();
    let large = vec![0; 2 << 20];
    // Its end may be cut off while it is sent.
    let sent = socket.try_send(Message::Binary(large.into()));
    let _ = tokio::time::timeout(LIMIT, sent).await.unwrap();
    assert!(socket.is_closed().await);
    // Plain MQTT, and an HTTP request that never ends.
    let half = b"GET / HTTP/1.1\r\nHost: localhost\r\n".to_vec();
    for bytes in [connect(), half] {
        let mut socket = TcpStream::connect(address).await.unwrap();
        socket.write_all(&bytes).await.unwrap();
        let mut answer = Vec::new();
        let read = socket.read_to_end(&mut answer);
        let _ = tokio::time::timeout(LIMIT, read).await.unwrap();
        assert!(!answer.starts_with(&[0x20]), "{answer:?}");
    }
    hub.until("all are counted", |hub| {
        hub.metric("edgehub_connections_closed_total", &["websocket_handshake"]) == 5.0
    });
}
