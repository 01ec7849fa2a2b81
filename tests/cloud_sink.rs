//! The recording cloud does what it says, and the checks of its record can fail.
#![allow(missing_docs, clippy::unwrap_used, clippy::indexing_slicing)]

mod cloud;

use std::fs::OpenOptions;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use cloud::checks::{Findings, Numbered, Sent, check};
use cloud::faults::{Mode, Proxy};
use cloud::port::Port;
use cloud::record::{self, Connected, Ended, Entry, Message, Reader, Why};
use cloud::sink::{Counts, Sink};
use cloud::stand_in::{Broke, StandIn};
use edgehub::client::{Client, ClientError, Hello, Packet};
use edgehub::mqtt::{ConnectReturnCode, FromClient, PacketId, QoS};
use tokio::time::timeout;

const LIMIT: Duration = Duration::from_secs(20);
const WINDOW: usize = 100;

/// A sink on a port that stays the same.
struct Scene {
    dir: tempfile::TempDir,
    port: Port,
    sink: Option<Sink>,
}

impl Scene {
    fn new() -> Self {
        let mut scene = Self {
            dir: tempfile::tempdir().unwrap(),
            port: Port::reserve().unwrap(),
            sink: None,
        };
        scene.restart();
        scene
    }

    fn restart(&mut self) {
        self.sink = None;
        let sink = Sink::start(self.port.address(), &self.record());
        self.sink = Some(sink.unwrap());
    }

    fn sink(&self) -> &Sink {
        self.sink.as_ref().unwrap()
    }

    fn counts(&self) -> Counts {
        self.sink().counts()
    }

    fn record(&self) -> PathBuf {
        self.dir.path().join("record")
    }

    fn entries(&self) -> Vec<Entry> {
        record::read(&self.record()).unwrap()
    }

    fn messages(&self) -> Vec<Message> {
        let only = |entry| match entry {
            Entry::Message(message) => Some(message),
            _ => None,
        };
        self.entries().into_iter().filter_map(only).collect()
    }

    async fn connect(&self, hello: &Hello) -> Result<(Client, bool), ClientError> {
        let mut client = Client::tcp(self.port.address()).await?;
        let session_present = client.connect(hello).await?;
        Ok((client, session_present))
    }
}

fn hello(client_id: &str, clean_session: bool) -> Hello {
    Hello {
        client_id: client_id.to_owned(),
        clean_session,
        ..Hello::default()
    }
}

fn with_token(expiry: u64) -> Hello {
    Hello {
        username: Some("hub.example/edge-1/sensor/?api-version=2021-04-12".to_owned()),
        password: Some(format!("SharedAccessSignature sr=r&sig=s&se={expiry}")),
        ..hello("edge-1/sensor", false)
    }
}

fn unix_now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap()
}

async fn receive(client: &mut Client) -> Result<Packet, ClientError> {
    let packet = timeout(LIMIT, client.receive()).await;
    packet.unwrap()
}

async fn acknowledged(client: &mut Client) -> Option<PacketId> {
    match receive(client).await.unwrap() {
        Packet::PubAck(id) => Some(id),
        other => panic!("expected PUBACK, got {other:?}"),
    }
}

/// How a module's messages are named above.
fn topic(message: &Numbered) -> String {
    let (sender, bag) = (&message.sender, message.bag());
    format!("devices/edge-1/modules/{sender}/messages/events/{bag}&%24.cdid=edge-1")
}

#[tokio::test]
async fn what_is_acknowledged_is_in_the_record() {
    let scene = Scene::new();
    let before = record::now_us();
    let (mut client, _) = scene.connect(&hello("edge-1", false)).await.unwrap();
    let at_least_once = client
        .publish("a/b", QoS::AtLeastOnce, b"one")
        .await
        .unwrap();
    assert_eq!(acknowledged(&mut client).await, at_least_once);
    client
        .publish("a/c", QoS::AtMostOnce, b"two")
        .await
        .unwrap();
    client.disconnect().await.unwrap();
    let mut reader = Reader::open(&scene.record()).unwrap();
    let mut entries = Vec::new();
    let began = Instant::now();
    while !matches!(entries.last(), Some(Entry::Ended(_))) {
        assert!(began.elapsed() < LIMIT, "{entries:?}");
        entries.extend(reader.more().unwrap());
    }
    let [
        Entry::Started { .. },
        Entry::Connected(connected),
        Entry::Message(one),
        Entry::Message(two),
        Entry::Ended(ended),
    ] = &entries[..]
    else {
        panic!("{entries:?}");
    };
    assert_eq!(connected.client_id, "edge-1");
    assert!((before..=record::now_us()).contains(&one.time_us));
    let seen = |message: &Message| {
        let (client, id) = (message.client_id.clone(), message.packet_id);
        (client, id, message.dup, message.topic.clone())
    };
    assert_eq!(seen(one), ("edge-1".to_owned(), 1, false, "a/b".to_owned()));
    assert_eq!(seen(two), ("edge-1".to_owned(), 0, false, "a/c".to_owned()));
    assert_eq!(
        (&one.payload[..], &two.payload[..]),
        (&b"one"[..], &b"two"[..])
    );
    assert_eq!((ended.connection, ended.why), (1, Why::Disconnect));
}

#[tokio::test]
async fn sessions_are_kept_over_a_restart_on_the_same_port() {
    let mut scene = Scene::new();
    let mut presents = Vec::new();
    for (client_id, clean_session) in [
        ("a", false),
        ("a", false),
        ("b", true),
        ("c", false),
        ("c", true),
    ] {
        let hello = hello(client_id, clean_session);
        presents.push(scene.connect(&hello).await.unwrap().1);
    }
    assert_eq!(presents, [false, true, false, false, false]);
    scene.sink = None;
    // As a kill may leave it.
    let mut torn = OpenOptions::new()
        .append(true)
        .open(scene.record())
        .unwrap();
    torn.write_all(&[9, 0, 0, 0, 1, 2]).unwrap();
    scene.restart();
    let mut presents = Vec::new();
    for client_id in ["a", "b", "c"] {
        presents.push(scene.connect(&hello(client_id, false)).await.unwrap().1);
    }
    assert_eq!(presents, [true, false, false]);
    let connections = scene.entries().into_iter().filter_map(|entry| match entry {
        Entry::Connected(connected) => Some(connected.connection),
        _ => None,
    });
    assert!(connections.eq(1..=8));
}

#[tokio::test]
async fn the_latest_connection_of_a_client_counts() {
    let scene = Scene::new();
    let (mut first, _) = scene.connect(&hello("edge-1", false)).await.unwrap();
    let (mut other, _) = scene.connect(&hello("edge-2", false)).await.unwrap();
    let (mut second, _) = scene.connect(&hello("edge-1", false)).await.unwrap();
    assert!(matches!(
        receive(&mut first).await,
        Err(ClientError::Closed)
    ));
    for client in [&mut second, &mut other] {
        client.publish("a", QoS::AtLeastOnce, b"x").await.unwrap();
        acknowledged(client).await;
    }
    assert_eq!(scene.counts().taken_over, 1);
    let from: Vec<_> = scene
        .messages()
        .iter()
        .map(|message| message.connection)
        .collect();
    assert_eq!(from, [3, 2]);
}

#[tokio::test]
async fn pubacks_wait_while_they_are_held() {
    let scene = Scene::new();
    let (mut client, _) = scene.connect(&hello("edge-1", false)).await.unwrap();
    scene.sink().turn(|knobs| knobs.hold = true);
    let first = client.publish("a", QoS::AtLeastOnce, b"1").await.unwrap();
    let second = client.publish("a", QoS::AtLeastOnce, b"2").await.unwrap();
    client.send(&FromClient::PingReq).await.unwrap();
    assert_eq!(receive(&mut client).await.unwrap(), Packet::PingResp);
    assert_eq!((scene.messages().len(), scene.counts().pubacks), (2, 0));
    scene.sink().turn(|knobs| knobs.hold = false);
    assert_eq!(acknowledged(&mut client).await, first);
    assert_eq!(acknowledged(&mut client).await, second);
}

#[tokio::test]
async fn clients_are_refused_by_name_and_all_at_once() {
    let scene = Scene::new();
    let refused = async |client_id| match scene.connect(&hello(client_id, false)).await {
        Err(ClientError::Refused(code)) => Some(code),
        Err(other) => panic!("{other}"),
        Ok(_) => None,
    };
    let not_now = ConnectReturnCode::ServerUnavailable;
    let never = ConnectReturnCode::NotAuthorized;
    scene.sink().turn(|knobs| {
        knobs.refuse.insert("a".to_owned(), never);
    });
    assert_eq!(
        (refused("a").await, refused("b").await),
        (Some(never), None)
    );
    scene.sink().turn(|knobs| knobs.refuse_all = Some(not_now));
    assert_eq!(
        (refused("a").await, refused("b").await),
        (Some(never), Some(not_now))
    );
    scene.sink().turn(|knobs| *knobs = Default::default());
    assert_eq!((refused("a").await, refused("b").await), (None, None));
    assert_eq!((scene.counts().refused, scene.counts().accepted), (3, 3));
}

#[tokio::test]
async fn a_token_that_is_past_ends_its_connection() {
    let scene = Scene::new();
    let expiry = unix_now().as_secs() + 2;
    // Where nobody looks at tokens, one that is past is as good.
    let (mut unwatched, _) = scene.connect(&with_token(1)).await.unwrap();
    unwatched.send(&FromClient::PingReq).await.unwrap();
    assert_eq!(receive(&mut unwatched).await.unwrap(), Packet::PingResp);
    scene.sink().turn(|knobs| knobs.tokens_expire = true);
    assert!(matches!(
        receive(&mut unwatched).await,
        Err(ClientError::Closed)
    ));
    let (mut client, _) = scene.connect(&with_token(expiry)).await.unwrap();
    let (mut longer, _) = scene.connect(&hello("edge-1/other", false)).await.unwrap();
    assert!(matches!(
        receive(&mut client).await,
        Err(ClientError::Closed)
    ));
    assert!(unix_now() >= Duration::from_secs(expiry), "too early");
    let again = scene.connect(&with_token(expiry)).await.err();
    let not_authorized = ConnectReturnCode::NotAuthorized;
    assert!(matches!(again, Some(ClientError::Refused(code)) if code == not_authorized));
    longer.send(&FromClient::PingReq).await.unwrap();
    assert_eq!(receive(&mut longer).await.unwrap(), Packet::PingResp);
    assert_eq!(scene.counts().expired, 2);
    let why: Vec<_> = scene.entries().into_iter().filter_map(ending).collect();
    assert_eq!(why, [Why::TokenExpired, Why::TokenExpired]);
}

fn ending(entry: Entry) -> Option<Why> {
    match entry {
        Entry::Ended(ended) => Some(ended.why),
        _ => None,
    }
}

/// Sends through everything that can go wrong, and has all of it explained.
#[tokio::test]
async fn a_client_that_keeps_its_session_passes_the_checks_through_all_faults() {
    let mut scene = Scene::new();
    let proxy = Proxy::start(scene.port.address()).unwrap();
    let address = proxy.address();
    let mut client = StandIn::new("edge-1", WINDOW);
    let mut sent = Sent::default();
    for number in 0..12_000 {
        let message = sent.publish(["a", "b", "c"][number % 3], (number / 3 % 2) as u8);
        client.queue(topic(&message), message.payload(256));
        sent.acknowledge(&message);
    }
    let slow = [
        Mode::Latency(Duration::from_millis(20)),
        Mode::Trickle {
            bytes: 100,
            every: Duration::from_millis(1),
        },
    ];
    for mode in slow {
        proxy.set(mode);
        client.forward(address, 20).await.unwrap();
        proxy.set(Mode::Pass);
        client.forward(address, 200).await.unwrap();
    }
    for mode in [Mode::Refuse, Mode::Reset, Mode::BlackHole, Mode::HalfOpen] {
        client.forward(address, 200).await.unwrap();
        proxy.set(mode);
        breaks(&mut client, address).await;
        if mode != Mode::HalfOpen {
            breaks(&mut client, address).await;
        }
        proxy.set(Mode::Pass);
    }
    client.forward(address, 200).await.unwrap();
    scene.sink().turn(|knobs| knobs.hold = true);
    breaks(&mut client, address).await;
    breaks(&mut client, address).await;
    scene.restart();
    client.forward(address, usize::MAX / 2).await.unwrap();
    let findings = check(&scene.entries(), &sent, WINDOW as u64);
    assert_eq!(findings.faults(), 0, "{findings}");
    assert_eq!(findings.different, 12_000);
    assert!(findings.again >= WINDOW as u64, "{findings}");
    assert_eq!(findings.again_max, WINDOW as u64);
}

async fn breaks(client: &mut StandIn, address: SocketAddr) {
    let broke = client.forward(address, usize::MAX / 2).await;
    assert!(
        matches!(broke, Err(Broke::Silent | Broke::Client(_))),
        "{broke:?}"
    );
}

/// A record made by hand: connections of one client, and what each brought.
#[derive(Default)]
struct Made {
    entries: Vec<Entry>,
    connection: u64,
    time_us: u64,
}

impl Made {
    fn connect(&mut self) -> &mut Self {
        self.connection += 1;
        self.time_us += 1;
        self.entries.push(Entry::Connected(Connected {
            time_us: self.time_us,
            connection: self.connection,
            client_id: "edge-1".to_owned(),
            username: String::new(),
            clean_session: false,
            session_present: self.connection > 1,
        }));
        self
    }

    /// With the number as packet id.
    fn message(&mut self, number: u32, dup: bool) -> &mut Self {
        let body = Numbered::new("a", 0, number);
        self.time_us += 1;
        self.entries.push(Entry::Message(Message {
            time_us: self.time_us,
            connection: self.connection,
            client_id: "edge-1".to_owned(),
            packet_id: number as u16 + 1,
            dup,
            topic: topic(&body),
            payload: body.payload(64),
        }));
        self
    }

    fn last(&mut self) -> &mut Message {
        match self.entries.last_mut() {
            Some(Entry::Message(message)) => message,
            other => panic!("{other:?}"),
        }
    }

    fn check(&self, sent: &Sent) -> Findings {
        check(&self.entries, sent, 2)
    }
}

fn sent(count: u32) -> Sent {
    let mut sent = Sent::default();
    for _ in 0..count {
        let message = sent.publish("a", 0);
        sent.acknowledge(&message);
    }
    sent
}

#[test]
fn what_is_right_is_no_fault() {
    let mut made = Made::default();
    made.connect().message(0, false).message(1, false);
    made.connect().message(1, true).message(2, false);
    let findings = made.check(&sent(3));
    assert_eq!(
        (findings.faults(), findings.different, findings.again),
        (0, 3, 1)
    );
    // Sent by its module twice, and so here twice on a connection.
    let mut twice = sent(1);
    twice.send_again(&Numbered::new("a", 0, 0));
    let mut made = Made::default();
    made.connect().message(0, false).message(0, false);
    made.last().topic.push_str("&mqtt-dup=true");
    let findings = made.check(&twice);
    assert_eq!((findings.faults(), findings.copies), (0, 1));
    // Published and never acknowledged.
    let mut open = sent(1);
    open.publish("a", 0);
    let mut made = Made::default();
    made.connect().message(0, false);
    assert_eq!(made.check(&open).faults(), 0);
}

#[test]
fn what_is_lost_or_out_of_order_is_found() {
    let mut made = Made::default();
    made.connect().message(2, false).message(0, false);
    let findings = made.check(&sent(3));
    // Once for the first time after a later one, and once on its connection.
    assert_eq!((findings.lost, findings.out_of_order), (1, 2));
    let mut made = Made::default();
    made.connect().message(0, false).message(1, false);
    made.connect().message(1, true).message(0, true);
    assert_eq!(made.check(&sent(2)).out_of_order, 1);
}

#[test]
fn duplicates_without_a_reason_are_found() {
    let mut made = Made::default();
    made.connect().message(0, false).message(0, true);
    assert_eq!(made.check(&sent(1)).unexplained, 1);
    let mut made = Made::default();
    made.connect().message(0, false);
    made.connect().message(0, true).message(0, true);
    let findings = made.check(&sent(1));
    assert_eq!((findings.again, findings.unexplained), (1, 1));
    // More of them than can have been in flight.
    let mut made = Made::default();
    for dup in [false, true] {
        made.connect();
        for number in 0..3 {
            made.message(number, dup);
        }
    }
    assert_eq!(made.check(&sent(3)).too_many_again, 1);
    // The hub was killed before all of it had arrived, or after.
    for kill in [1, 4] {
        let mut killed = sent(3);
        killed.hub_kills.push(kill);
        assert_eq!(made.check(&killed).faults(), 0);
    }
}

#[test]
fn what_goes_against_the_session_is_found() {
    let mut made = Made::default();
    made.connect().message(0, false).message(1, false);
    made.connect()
        .message(0, false)
        .message(1, true)
        .last()
        .packet_id = 9;
    let findings = made.check(&sent(2));
    assert_eq!((findings.against_session, findings.faults()), (2, 2));
    let Some(Entry::Connected(connected)) = made.entries.get_mut(3) else {
        panic!("{made:?}", made = made.entries);
    };
    connected.session_present = false;
    assert_eq!(made.check(&sent(2)).faults(), 0);
}

#[test]
fn what_was_not_sent_so_is_found() {
    let damages: [fn(&mut Message); 8] = [
        |message| message.topic.push_str("&mqtt-dup=true"),
        |message| message.client_id = "edge-1/b".to_owned(),
        |message| message.payload[40] ^= 1,
        |message| message.payload.truncate(3),
        |message| message.topic = message.topic.replace("%24%2Emid=a%2D0%2D0", "x=y"),
        |message| message.topic.push_str("&more=1"),
        |message| message.topic = message.topic.replace("/a/", "/b/"),
        |message| message.payload = Numbered::new("a", 0, 1).payload(64),
    ];
    for damage in damages {
        let mut made = Made::default();
        damage(made.connect().message(0, false).last());
        let findings = made.check(&sent(1));
        assert_eq!(
            (findings.damaged, findings.lost),
            (1, 1),
            "{:?}",
            made.entries
        );
    }
    let mut made = Made::default();
    made.connect().message(0, false);
    made.last().client_id = "edge-1/a".to_owned();
    assert_eq!(made.check(&sent(1)).faults(), 0);
    made.entries.push(Entry::Ended(Ended {
        time_us: 9,
        connection: 1,
        why: Why::Protocol,
    }));
    assert_eq!(made.check(&sent(1)).protocol, 1);
}
