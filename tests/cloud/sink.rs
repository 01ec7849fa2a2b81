//! A cloud that writes down what it gets: an MQTT 3.1.1 server for QoS 0 and 1 on the hub's codec.
//!
//! Every PUBLISH is in the record, and the record on disk, before its PUBACK leaves; one sync is
//! for all that one read gave. Sessions are in the record as well, so a sink that is started again
//! on the same file knows its clients. A client id has one connection, the latest; nothing of an
//! older one is written down after the CONNACK of the next.

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use edgehub::mqtt::{
    self, ConnAck, ConnectReturnCode, FromClient, FromServer, PacketId, QoS, SubAckCode,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::{Notify, watch};
use tokio::time::{sleep, timeout};

use super::port;
use super::record::{Connected, Ended, Entry, Message, Why, Writer, now_us};

const PACKET_MAX: usize = 1 << 20;
const READ_BYTES: usize = 1 << 16;
/// From the connection to CONNECT.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// What a test may change while the sink runs.
#[derive(Debug, Clone, Default)]
pub struct Knobs {
    /// Everybody is refused with this code.
    pub refuse_all: Option<ConnectReturnCode>,
    /// These client ids are refused.
    pub refuse: HashMap<String, ConnectReturnCode>,
    /// PUBACKs wait until this is false again; what waits when its connection ends is never sent.
    pub hold: bool,
    /// A connection ends when the token in its password is past, and none begins after that.
    pub tokens_expire: bool,
    /// The clock by which logins are judged is so far ahead of that of the others.
    pub ahead_seconds: i64,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Clients that were let in, and that were not.
    pub accepted: u64,
    pub refused: u64,
    pub messages: u64,
    pub pubacks: u64,
    pub taken_over: u64,
    pub expired: u64,
}

/// A running sink.
pub struct Sink {
    address: SocketAddr,
    shared: Arc<Shared>,
    runtime: Option<Runtime>,
}

impl Sink {
    /// Listens, port 0 for any, and goes on with the record that is there.
    pub fn start(address: SocketAddr, record: &Path) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        let listener = {
            let _guard = runtime.enter();
            port::listen(address)?
        };
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            state: Mutex::new(State::open(record)?),
            knobs: watch::Sender::default(),
        });
        runtime.spawn(accept(listener, Arc::clone(&shared)));
        Ok(Self {
            address,
            shared,
            runtime: Some(runtime),
        })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn turn(&self, turn: impl FnOnce(&mut Knobs)) {
        self.shared.knobs.send_modify(turn);
    }

    pub fn counts(&self) -> Counts {
        self.shared.state().counts
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            super::stop(runtime);
        }
    }
}

struct Shared {
    state: Mutex<State>,
    knobs: watch::Sender<Knobs>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

struct State {
    writer: Writer,
    /// Clients with a session.
    sessions: HashSet<String>,
    /// Per client id its connection, and how to tell it that the client has another one.
    current: HashMap<String, (u64, Arc<Notify>)>,
    connections: u64,
    counts: Counts,
}

impl State {
    fn open(record: &Path) -> io::Result<Self> {
        let (mut writer, entries) = Writer::open(record)?;
        let (mut sessions, mut connections) = (HashSet::new(), 0);
        for entry in entries {
            if let Entry::Connected(connected) = entry {
                connections = connections.max(connected.connection);
                keep(&mut sessions, &connected.client_id, connected.clean_session);
            }
        }
        writer.add(&Entry::Started { time_us: now_us() });
        writer.sync()?;
        Ok(Self {
            writer,
            sessions,
            current: HashMap::new(),
            connections,
            counts: Counts::default(),
        })
    }

    /// Lets a client in: its connection's number, session present, and what tells it to leave.
    fn enter(&mut self, login: &Login) -> (u64, bool, Arc<Notify>) {
        let session_present = !login.clean_session && self.sessions.contains(&login.client_id);
        keep(&mut self.sessions, &login.client_id, login.clean_session);
        self.connections += 1;
        let (connection, leave) = (self.connections, Arc::new(Notify::new()));
        let place = (connection, Arc::clone(&leave));
        let before = self.current.insert(login.client_id.clone(), place);
        if let Some((_, leave)) = before {
            leave.notify_one();
            self.counts.taken_over += 1;
        }
        self.writer.add(&Entry::Connected(Connected {
            time_us: now_us(),
            connection,
            client_id: login.client_id.clone(),
            username: login.username.clone(),
            clean_session: login.clean_session,
            session_present,
        }));
        self.writer.sync().unwrap();
        self.counts.accepted += 1;
        (connection, session_present, leave)
    }

    /// Writes down what one read gave; false if the client has another connection by now.
    fn record(&mut self, client_id: &str, connection: u64, messages: Vec<Message>) -> bool {
        let current = self.current.get(client_id);
        if current.is_none_or(|(current, _)| *current != connection) {
            return false;
        }
        self.counts.messages += messages.len() as u64;
        for message in messages {
            self.writer.add(&Entry::Message(message));
        }
        self.writer.sync().unwrap();
        true
    }

    fn ended(&mut self, client_id: &str, connection: u64, why: Why) {
        if self.current.get(client_id).map(|(current, _)| *current) == Some(connection) {
            self.current.remove(client_id);
        }
        self.counts.expired += u64::from(why == Why::TokenExpired);
        self.writer.add(&Entry::Ended(Ended {
            time_us: now_us(),
            connection,
            why,
        }));
        self.writer.sync().unwrap();
    }
}

fn keep(sessions: &mut HashSet<String>, client_id: &str, clean_session: bool) {
    if clean_session {
        sessions.remove(client_id);
    } else {
        sessions.insert(client_id.to_owned());
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    loop {
        if let Ok((socket, _)) = listener.accept().await {
            let _ = socket.set_nodelay(true);
            tokio::spawn(serve(socket, Arc::clone(&shared)));
        }
    }
}

/// What a CONNECT says.
struct Login {
    client_id: String,
    username: String,
    clean_session: bool,
    /// When its token is past, in seconds since 1970.
    expiry: Option<u64>,
}

async fn serve(socket: TcpStream, shared: Arc<Shared>) {
    let mut wire = Wire {
        socket,
        input: BytesMut::new(),
        output: BytesMut::new(),
    };
    let Ok(Ok(login)) = timeout(CONNECT_LIMIT, wire.login()).await else {
        return;
    };
    let code = refusal(&shared.knobs.borrow(), &login);
    if code != ConnectReturnCode::Accepted {
        shared.state().counts.refused += 1;
        let _ = wire.answer(false, code).await;
        return;
    }
    let (connection, session_present, leave) = shared.state().enter(&login);
    let talk = async {
        wire.answer(session_present, ConnectReturnCode::Accepted)
            .await?;
        talk(&mut wire, &shared, &login, connection).await
    };
    let why = tokio::select! {
        biased;
        () = leave.notified() => Why::TakenOver,
        () = expires(&shared, login.expiry) => Why::TokenExpired,
        why = talk => why.unwrap_or(Why::Lost),
    };
    shared.state().ended(&login.client_id, connection, why);
}

fn refusal(knobs: &Knobs, login: &Login) -> ConnectReturnCode {
    let named = knobs.refuse.get(&login.client_id).copied();
    let now = (now_us() / 1_000_000).saturating_add_signed(knobs.ahead_seconds);
    let past = |expiry: u64| expiry <= now;
    if knobs.tokens_expire && login.expiry.is_some_and(past) {
        return ConnectReturnCode::NotAuthorized;
    }
    let code = named.or(knobs.refuse_all);
    code.unwrap_or(ConnectReturnCode::Accepted)
}

/// Resolves when the token is past, where that matters.
async fn expires(shared: &Shared, expiry: Option<u64>) {
    let Some(expiry) = expiry else {
        return std::future::pending().await;
    };
    let left = Duration::from_micros((expiry * 1_000_000).saturating_sub(now_us()));
    sleep(left).await;
    let mut knobs = shared.knobs.subscribe();
    let _ = knobs.wait_for(|knobs| knobs.tokens_expire).await;
}

/// Takes packets, writes messages down, answers; why the connection is over.
async fn talk(wire: &mut Wire, shared: &Shared, login: &Login, connection: u64) -> io::Result<Why> {
    let mut knobs = shared.knobs.subscribe();
    let mut held: Vec<PacketId> = Vec::new();
    loop {
        if !knobs.borrow_and_update().hold {
            shared.state().counts.pubacks += held.len() as u64;
            for id in held.drain(..) {
                mqtt::encode_puback(&mut wire.output, id);
            }
        }
        wire.flush().await?;
        tokio::select! {
            read = wire.read() => read?,
            _ = knobs.changed() => continue,
        }
        let (mut messages, mut over) = (Vec::new(), None);
        while over.is_none()
            && let Some((packet, used)) = match mqtt::decode_from_client(&wire.input, PACKET_MAX) {
                Ok(decoded) => decoded,
                Err(_) => return Ok(Why::Protocol),
            }
        {
            match packet {
                FromClient::Publish(publish) if publish.qos != QoS::ExactlyOnce => {
                    messages.push(Message {
                        time_us: now_us(),
                        connection,
                        client_id: login.client_id.clone(),
                        packet_id: publish.packet_id.map_or(0, PacketId::get),
                        dup: publish.dup,
                        topic: publish.topic.to_owned(),
                        payload: publish.payload.to_vec(),
                    });
                }
                other => over = answer(&other, &mut wire.output),
            }
            wire.input.advance(used);
        }
        let ids = messages.iter();
        let ids: Vec<_> = ids
            .map(|message| PacketId::new(message.packet_id))
            .collect();
        let recorded = shared
            .state()
            .record(&login.client_id, connection, messages);
        if !recorded {
            return Ok(Why::TakenOver);
        }
        held.extend(ids.into_iter().flatten());
        if let Some(why) = over {
            return Ok(why);
        }
    }
}

/// Answers what is no message; why the connection is over, if it is.
fn answer(packet: &FromClient<'_>, out: &mut BytesMut) -> Option<Why> {
    match packet {
        FromClient::Subscribe(subscribe) => {
            let granted = |(_, qos)| match qos {
                QoS::AtMostOnce => SubAckCode::Granted(QoS::AtMostOnce),
                QoS::AtLeastOnce | QoS::ExactlyOnce => SubAckCode::Granted(QoS::AtLeastOnce),
            };
            let codes = subscribe.filters.iter().map(granted);
            mqtt::encode_suback(out, subscribe.packet_id, codes).unwrap();
        }
        FromClient::Unsubscribe(unsubscribe) => {
            let packet = FromServer::UnsubAck(unsubscribe.packet_id);
            mqtt::encode_from_server(&packet, out).unwrap();
        }
        FromClient::PingReq => mqtt::encode_from_server(&FromServer::PingResp, out).unwrap(),
        FromClient::PubAck(_) => {}
        FromClient::Disconnect => return Some(Why::Disconnect),
        _ => return Some(Why::Protocol),
    }
    None
}

/// A connection's bytes.
struct Wire {
    socket: TcpStream,
    input: BytesMut,
    output: BytesMut,
}

impl Wire {
    async fn login(&mut self) -> io::Result<Login> {
        loop {
            let decoded = mqtt::decode_from_client(&self.input, PACKET_MAX);
            if let Some((packet, used)) = decoded.map_err(io::Error::other)? {
                let FromClient::Connect(connect) = packet else {
                    return Err(io::Error::other("no CONNECT"));
                };
                let login = Login {
                    client_id: connect.client_id.to_owned(),
                    username: connect.username.unwrap_or_default().to_owned(),
                    clean_session: connect.clean_session,
                    expiry: connect.password.and_then(expiry),
                };
                self.input.advance(used);
                return Ok(login);
            }
            self.read().await?;
        }
    }

    async fn answer(&mut self, session_present: bool, code: ConnectReturnCode) -> io::Result<()> {
        let answer = FromServer::ConnAck(ConnAck {
            session_present,
            code,
        });
        mqtt::encode_from_server(&answer, &mut self.output).unwrap();
        self.flush().await
    }

    async fn flush(&mut self) -> io::Result<()> {
        while self.output.has_remaining() {
            self.socket.write_buf(&mut self.output).await?;
        }
        Ok(())
    }

    /// Reads once. Nothing is lost where this is given up in between.
    async fn read(&mut self) -> io::Result<()> {
        self.input.reserve(READ_BYTES);
        match self.socket.read_buf(&mut self.input).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }
}

/// The `se` of a token, `SharedAccessSignature sr=…&sig=…&se=…` in any order.
fn expiry(password: &[u8]) -> Option<u64> {
    let fields = std::str::from_utf8(password).ok()?;
    let fields = fields.strip_prefix("SharedAccessSignature ")?;
    let expiry = fields
        .split('&')
        .find_map(|field| field.strip_prefix("se="))?;
    expiry.parse().ok()
}
