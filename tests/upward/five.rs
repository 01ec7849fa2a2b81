//! A cloud of MQTT 5 that does as it is told, and keeps what it took.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use bytes::{Buf, BytesMut};
use edgehub::mqtt::v5::{
    self, Ack, Answers, ConnAck, FromClient, FromServer, Notice, Place, Properties, Property,
    ReasonCode, ReasonCodes,
};
use edgehub::mqtt::{PacketId, QoS};

use crate::common::LIMIT;
use crate::common::five::list;

/// What becomes of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// PUBACK with this code, and a text with failures.
    Ack(ReasonCode),
    /// DISCONNECT with this code and a text.
    Leave(ReasonCode),
}

pub const OK: Answer = Answer::Ack(ReasonCode::Success);
/// What the cloud says with everything that is no success.
pub const TEXT: &str = "the cloud says so";

/// A message as it came.
#[derive(Debug, Clone)]
pub struct Took {
    pub topic: String,
    pub body: String,
    pub properties: Vec<String>,
    pub answer: Answer,
}

type Decide = Box<dyn FnMut(&str, &str) -> Answer + Send>;

struct State {
    /// What CONNACK says.
    connack: (ReasonCode, Vec<Property<'static>>),
    decide: Decide,
    /// What CONNECT said, one line each.
    hellos: Vec<String>,
    took: Vec<Took>,
    /// PUBACKs wait until so many messages are in flight.
    batch: usize,
    in_flight_max: usize,
    /// What came beside: DISCONNECT, SUBSCRIBE, PUBACK.
    heard: Vec<String>,
    /// Sent to who subscribes: topic, body, properties.
    down: Vec<(&'static str, &'static [u8], Vec<Property<'static>>)>,
}

/// The cloud; its threads end with their connections.
pub struct Cloud {
    pub address: SocketAddr,
    state: Arc<Mutex<State>>,
}

impl Cloud {
    pub fn start() -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(Mutex::new(State {
            connack: (ReasonCode::Success, Vec::new()),
            decide: Box::new(|_, _| OK),
            hellos: Vec::new(),
            took: Vec::new(),
            batch: 1,
            in_flight_max: 0,
            heard: Vec::new(),
            down: Vec::new(),
        }));
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let shared = Arc::clone(&shared);
                let stream = stream.unwrap();
                stream.set_nodelay(true).unwrap();
                std::thread::spawn(move || serve(stream, &shared));
            }
        });
        Self { address, state }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// What CONNACK says from now on.
    pub fn greet(&self, reason: ReasonCode, properties: &[Property<'static>]) {
        self.state().connack = (reason, properties.to_vec());
    }

    /// What becomes of messages from now on, by topic and body.
    pub fn decide(&self, decide: impl FnMut(&str, &str) -> Answer + Send + 'static) {
        self.state().decide = Box::new(decide);
    }

    /// PUBACKs wait until so many messages are in flight.
    pub fn answer_in_batches(&self, batch: usize) {
        self.state().batch = batch;
    }

    /// Who subscribes gets this.
    pub fn send_down(
        &self,
        topic: &'static str,
        body: &'static [u8],
        properties: &[Property<'static>],
    ) {
        self.state().down.push((topic, body, properties.to_vec()));
    }

    /// All messages that came, in their order.
    pub fn came(&self) -> Vec<Took> {
        self.state().took.clone()
    }

    /// Bodies of those that were taken, in their order.
    pub fn kept(&self) -> Vec<String> {
        let came = self.came().into_iter();
        let kept = came.filter(|one| one.answer == OK);
        kept.map(|one| one.body).collect()
    }

    pub fn hellos(&self) -> Vec<String> {
        self.state().hellos.clone()
    }

    pub fn heard(&self) -> Vec<String> {
        self.state().heard.clone()
    }

    pub fn in_flight_max(&self) -> usize {
        self.state().in_flight_max
    }

    pub fn until(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        let started = Instant::now();
        while !holds(self) {
            let late = started.elapsed() > LIMIT;
            assert!(!late, "{what}: {:?} {:?}", self.kept(), self.heard());
            std::thread::yield_now();
        }
    }
}

/// One connection, to its end.
fn serve(mut stream: TcpStream, shared: &Mutex<State>) {
    let mut input = BytesMut::new();
    let mut unanswered = Vec::new();
    loop {
        let mut bytes = [0; 1 << 16];
        match stream.read(&mut bytes) {
            Ok(count @ 1..) => input.extend_from_slice(&bytes[..count]),
            Ok(0) | Err(_) => return,
        }
        let mut out = BytesMut::new();
        let mut goes_on = true;
        while let Some((packet, used)) = v5::decode_from_client(&input, 1 << 24).unwrap() {
            let mut state = shared.lock().unwrap();
            goes_on &= state.handle(&packet, &mut unanswered, &mut out);
            drop(state);
            input.advance(used);
        }
        if stream.write_all(&out).is_err() || !goes_on {
            return;
        }
    }
}

impl State {
    /// False: the connection ends.
    fn handle(
        &mut self,
        packet: &FromClient<'_>,
        unanswered: &mut Vec<(PacketId, ReasonCode)>,
        out: &mut BytesMut,
    ) -> bool {
        match packet {
            FromClient::Connect(connect) => {
                self.hellos.push(format!("{connect:?}"));
                let (reason, properties) = self.connack.clone();
                let properties = list(Place::ConnAck, &properties);
                let session_present = self.hellos.len() > 1 && !reason.is_failure();
                let packet = FromServer::ConnAck(ConnAck {
                    session_present,
                    reason,
                    properties: Properties::parse(&properties, Place::ConnAck).unwrap(),
                });
                put(&packet, out);
                !reason.is_failure()
            }
            FromClient::Publish(publish) => {
                let body = String::from_utf8_lossy(publish.payload).into_owned();
                let answer = (self.decide)(publish.topic, &body);
                self.took.push(Took {
                    topic: publish.topic.to_owned(),
                    body,
                    properties: publish
                        .properties
                        .iter()
                        .map(|one| format!("{one:?}"))
                        .collect(),
                    answer,
                });
                match answer {
                    Answer::Leave(reason) => {
                        leave(reason, out);
                        return false;
                    }
                    Answer::Ack(reason) => {
                        unanswered.extend(publish.packet_id.map(|id| (id, reason)));
                    }
                }
                self.in_flight_max = self.in_flight_max.max(unanswered.len());
                if unanswered.len() >= self.batch {
                    unanswered
                        .drain(..)
                        .for_each(|(id, code)| ack(id, code, out));
                }
                true
            }
            FromClient::Subscribe(subscribe) => {
                self.subscribed(subscribe, out);
                true
            }
            FromClient::PingReq => {
                put(&FromServer::PingResp, out);
                true
            }
            other => {
                self.heard.push(format!("{other:?}"));
                !matches!(other, FromClient::Disconnect(_))
            }
        }
    }

    /// Grants everything, and sends what there is.
    fn subscribed(&mut self, subscribe: &v5::Subscribe<'_>, out: &mut BytesMut) {
        self.heard.push(format!("{subscribe:?}"));
        let codes: Vec<_> = subscribe.filters.iter().map(|_| 1).collect();
        let packet = FromServer::SubAck(Answers {
            packet_id: subscribe.packet_id,
            properties: Properties::EMPTY,
            codes: ReasonCodes::parse(&codes, Place::SubAck).unwrap(),
        });
        put(&packet, out);
        for (number, (topic, payload, properties)) in (1..).zip(self.down.drain(..)) {
            let properties = list(Place::ServerPublish, &properties);
            let packet = FromServer::Publish(v5::Publish {
                dup: false,
                qos: QoS::AtLeastOnce,
                retain: false,
                topic,
                packet_id: PacketId::new(number),
                properties: Properties::parse(&properties, Place::ServerPublish).unwrap(),
                payload,
            });
            put(&packet, out);
        }
    }
}

fn put(packet: &FromServer<'_>, out: &mut BytesMut) {
    v5::encode_from_server(packet, out).unwrap();
}

fn ack(packet_id: PacketId, reason: ReasonCode, out: &mut BytesMut) {
    let text = Property::ReasonString(TEXT);
    let text: &[_] = if reason.is_failure() { &[text] } else { &[] };
    let properties = list(Place::Received, text);
    let packet = FromServer::PubAck(Ack {
        packet_id,
        reason,
        properties: Properties::parse(&properties, Place::Received).unwrap(),
    });
    put(&packet, out);
}

fn leave(reason: ReasonCode, out: &mut BytesMut) {
    let place = Place::ServerDisconnect;
    let properties = list(place, &[Property::ReasonString(TEXT)]);
    let packet = FromServer::Disconnect(Notice {
        reason,
        properties: Properties::parse(&properties, place).unwrap(),
    });
    put(&packet, out);
}
