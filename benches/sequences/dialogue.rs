//! One dialogue: what is sent, what has to come back, and how it ends.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use bytes::BytesMut;
use edgehub::mqtt::{self, Connect, FromClient, PacketId, Publish, QoS};
use serde::Deserialize;

use crate::said::{self, Said};

/// For an answer, and for the end of a connection.
const LIMIT: Duration = Duration::from_secs(1);

#[derive(Debug, Deserialize)]
pub struct Dialogue {
    pub name: String,
    pub version: String,
    steps: Vec<Step>,
    end: End,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Step {
    Send(String),
    Recv(String),
    OtherPublishes(Other),
    Subscribe(Subscription),
    Unsubscribe(Subscription),
}

#[derive(Debug, Deserialize)]
struct Other {
    topic: String,
    #[serde(default)]
    qos: u8,
    #[serde(default)]
    retain: bool,
    #[serde(default)]
    payload: String,
}

#[derive(Debug, Deserialize)]
struct Subscription {
    topic: String,
    #[serde(default)]
    qos: u8,
}

#[derive(Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
enum End {
    Open,
    Closed,
}

impl Dialogue {
    /// Holds the dialogue with the server at that address.
    pub fn run(&self, address: SocketAddr) -> Result<(), String> {
        let is_v5 = self.version == "5";
        let mut line = Line::open(address, is_v5)?;
        for (index, step) in self.steps.iter().enumerate() {
            let in_step = |why: String| format!("step {}: {why}", index + 1);
            match step {
                Step::Send(hex) => line.send(&bytes(hex)?),
                Step::Recv(hex) => {
                    let expected = said::read_all(&bytes(hex)?, is_v5).map_err(in_step)?;
                    for one in expected {
                        line.expect(&one).map_err(in_step)?;
                    }
                }
                Step::OtherPublishes(other) => other.publish(address).map_err(in_step)?,
                Step::Subscribe(one) => line.subscribe(one).map_err(in_step)?,
                Step::Unsubscribe(one) => line.unsubscribe(one).map_err(in_step)?,
            }
        }
        match self.end {
            End::Closed => line.expect_close(),
            End::Open => {
                line.send(&[0xc0, 0]);
                line.expect(&Said::Pong)
            }
        }
    }
}

/// A connection, and what came on it.
struct Line {
    socket: TcpStream,
    is_v5: bool,
    input: Vec<u8>,
}

impl Line {
    fn open(address: SocketAddr, is_v5: bool) -> Result<Self, String> {
        let socket = TcpStream::connect(address).map_err(|error| error.to_string())?;
        socket.set_nodelay(true).unwrap();
        socket.set_read_timeout(Some(LIMIT)).unwrap();
        Ok(Self {
            socket,
            is_v5,
            input: Vec::new(),
        })
    }

    /// A server that has closed already is noticed at the next answer.
    fn send(&mut self, bytes: &[u8]) {
        let _ = self.socket.write_all(bytes);
    }

    /// The next packet; `None`: the server closed the connection.
    fn next(&mut self) -> Result<Option<Said>, String> {
        loop {
            let read = said::read(&self.input, self.is_v5);
            let read = read.map_err(|error| format!("{error}: {:02x?}", self.input))?;
            if let Some((said, length)) = read {
                self.input.drain(..length);
                return Ok(Some(said));
            }
            let mut bytes = [0; 4096];
            match self.socket.read(&mut bytes) {
                Ok(0) => return Ok(None),
                Ok(count) => self.input.extend(&bytes[..count]),
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(None),
                Err(_) => return Err("nothing came".to_owned()),
            }
        }
    }

    fn expect(&mut self, expected: &Said) -> Result<(), String> {
        match self.next() {
            Ok(Some(said)) if said == *expected => Ok(()),
            Ok(None) if *expected == Said::Goodbye => Ok(()),
            Ok(None) => Err(format!("closed instead of {expected:?}")),
            Ok(Some(said)) => Err(format!("{said:?} instead of {expected:?}")),
            Err(why) => Err(format!("{why} instead of {expected:?}")),
        }
    }

    fn expect_close(&mut self) -> Result<(), String> {
        loop {
            match self.next() {
                Ok(None) => return Ok(()),
                Ok(Some(Said::Goodbye)) => {}
                Ok(Some(said)) => return Err(format!("{said:?} instead of the end")),
                Err(why) => return Err(format!("{why}, and the connection stays open")),
            }
        }
    }

    fn subscribe(&mut self, one: &Subscription) -> Result<(), String> {
        // A v5 SUBSCRIBE has no properties here; its options are the QoS of 3.1.1.
        let properties: &[u8] = if self.is_v5 { &[0] } else { &[] };
        self.request(0x82, properties, one, &[one.qos]);
        self.expect(&Said::Answers {
            kind: "SUBACK",
            packet_id: 1,
            granted: vec![Some(one.qos)],
        })
    }

    fn unsubscribe(&mut self, one: &Subscription) -> Result<(), String> {
        let (properties, granted): (&[u8], _) = if self.is_v5 {
            (&[0], vec![Some(0)])
        } else {
            (&[], Vec::new())
        };
        self.request(0xa2, properties, one, &[]);
        self.expect(&Said::Answers {
            kind: "UNSUBACK",
            packet_id: 1,
            granted,
        })
    }

    fn request(&mut self, first: u8, properties: &[u8], one: &Subscription, end: &[u8]) {
        let topic = one.topic.as_bytes();
        let length = (topic.len() as u16).to_be_bytes();
        let body = [&[0, 1], properties, &length, topic, end].concat();
        let head = [first, u8::try_from(body.len()).unwrap()];
        self.send(&[&head[..], &body].concat());
    }
}

impl Other {
    /// Another client, of 3.1.1, publishes and is acknowledged.
    fn publish(&self, address: SocketAddr) -> Result<(), String> {
        let mut line = Line::open(address, false)?;
        let qos = QoS::from_bits(self.qos).ok_or("no such QoS")?;
        let packet_id = (qos != QoS::AtMostOnce).then(|| PacketId::new(1).unwrap());
        let connect = FromClient::Connect(Connect {
            clean_session: true,
            keep_alive_seconds: 0,
            client_id: "other",
            will: None,
            username: None,
            password: None,
        });
        line.send(&written(&connect)?);
        line.expect(&Said::Welcome {
            session_present: false,
        })?;
        let publish = FromClient::Publish(Publish {
            dup: false,
            qos,
            retain: self.retain,
            topic: &self.topic,
            packet_id,
            payload: self.payload.as_bytes(),
        });
        line.send(&written(&publish)?);
        let ack = |kind| Said::Ack {
            kind,
            packet_id: 1,
            is_failure: false,
        };
        match qos {
            QoS::AtMostOnce => {}
            QoS::AtLeastOnce => line.expect(&ack("PUBACK"))?,
            QoS::ExactlyOnce => {
                line.expect(&ack("PUBREC"))?;
                line.send(&[0x62, 2, 0, 1]);
                line.expect(&ack("PUBCOMP"))?;
            }
        }
        line.send(&[0xe0, 0]);
        line.expect_close()
    }
}

fn written(packet: &FromClient<'_>) -> Result<Vec<u8>, String> {
    let mut out = BytesMut::new();
    mqtt::encode_from_client(packet, &mut out).map_err(|error| error.to_string())?;
    Ok(out.to_vec())
}

fn bytes(hex: &str) -> Result<Vec<u8>, String> {
    let digit = |digit: u8| (digit as char).to_digit(16).ok_or("no hex");
    let digits: Result<Vec<u32>, _> = hex.bytes().map(digit).collect();
    let pairs = digits?;
    let pairs = pairs.chunks(2);
    Ok(pairs.map(|pair| (pair[0] << 4 | pair[1]) as u8).collect())
}
