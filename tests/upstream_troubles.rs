//! What goes wrong on the way up: each trouble is named where people look, and passes.
#![allow(missing_docs, clippy::unwrap_used, clippy::indexing_slicing)]

#[path = "cloud/mod.rs"]
mod cloud;
mod common;
mod upward;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use edgehub::mqtt::QoS;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};

use cloud::checks::{Numbered, Sent};
use cloud::faults::{Mode, Proxy};
use cloud::record::{Message, now_us};
use cloud::sink::Sink;
use common::{Hub, closed, message, message_with_topic, output, publish, scene};
use upward::{
    Above, CONNECTED, Due, FAILURES, ROUTES, STATE, Scene, lead_to, link_says, log_says,
    nothing_waits, tcp, upstream,
};

const DROPPED: &str = "edgehub_messages_dropped_total";
/// What the log says first when there is no way up.
const DOWN: &str = "no connection to the cloud, messages wait";
/// A dead peer is found within this.
const FOUND: Duration = Duration::from_secs(10);

fn failures(hub: &Hub, reason: &str) -> f64 {
    hub.metric(FAILURES, &[&format!("reason=\"{reason}\"")])
}

/// The trouble is in the log, in `/status` and in the metrics.
fn told(hub: &Hub, reason: &str, text: &str) {
    link_says(hub, "backing_off", &[text]);
    log_says(hub, &["WARN", &format!("reason=\"{reason}\""), DOWN, text]);
    assert!(failures(hub, reason) > 0.0);
}

/// The wrong servers and authorities, then the right ones.
async fn certificates(wrong: impl Fn(&Above, &common::Setup) -> String, text: &str) {
    let above = Above::start();
    let mut below = above.below(ROUTES);
    below.extra = wrong(&above, &below);
    let hub = below.start();
    let mut sent = Sent::default();
    upward::send(&hub, &mut sent, 20).await;
    told(&hub, "tls", text);
    lead_to(&mut below, &hub, above.tls("localhost", &above.setup));
    let (mut sink, mut due) = (above.sink().await, Due::default());
    while !due.all(20) {
        due.note(&message(&mut sink).await.1);
    }
    nothing_waits(&hub);
    link_says(&hub, "connected", &[]);
    log_says(&hub, &["INFO", "connected to the cloud"]);
}

#[tokio::test]
async fn a_cloud_of_another_authority_is_told_until_its_own_is_configured() {
    let text = "an authority that is not trusted: set `ca` in [upstream]";
    certificates(|above, below| above.tls("localhost", below), text).await;
}

#[tokio::test]
async fn a_cloud_under_another_name_is_told_until_its_own_is_configured() {
    let text = "for another name: write one of its names into `servers` (localhost)";
    certificates(|above, _| above.tls("127.0.0.1", &above.setup), text).await;
}

#[tokio::test]
async fn a_name_that_does_not_resolve_is_passed_over_and_alone_it_is_told() {
    let mut scene = Scene::new("mqtt", "");
    let nowhere = "nowhere.invalid:1883";
    let address = scene.proxy.address().to_string();
    scene.setup.extra = upstream("mqtt", &[nowhere, &address], "tcp", "");
    let hub = scene.setup.start();
    scene.send(&hub, 20).await;
    scene.arrived(&hub);
    assert_eq!(failures(&hub, "dns"), 0.0);
    let alone = upstream("mqtt", &[nowhere], "tcp", "");
    lead_to(&mut scene.setup, &hub, alone);
    scene.send(&hub, 20).await;
    told(
        &hub,
        "dns",
        "nowhere.invalid:1883: the name does not resolve",
    );
    lead_to(
        &mut scene.setup,
        &hub,
        tcp("mqtt", scene.proxy.address(), ""),
    );
    scene.arrived(&hub);
    link_says(&hub, "connected", &[]);
}

#[tokio::test]
async fn a_device_whose_clock_is_a_day_behind_is_told_and_one_a_day_ahead_gets_in() {
    const DAY: i64 = 24 * 3600;
    let mut scene = Scene::new("iothub", "");
    scene.sink.turn(|knobs| {
        knobs.tokens_expire = true;
        knobs.ahead_seconds = DAY;
    });
    let hub = scene.setup.start();
    scene.send(&hub, 20).await;
    told(&hub, "refused", "not authorized (5)");
    log_says(&hub, &[DOWN, "is the clock right?"]);
    assert_eq!(scene.sink.counts().messages, 0);
    scene.sink.turn(|knobs| knobs.ahead_seconds = 0);
    scene.arrived(&hub);
    drop(hub);

    let mut scene = Scene::new("iothub", "");
    scene.sink.turn(|knobs| {
        knobs.tokens_expire = true;
        knobs.ahead_seconds = -DAY;
    });
    let hub = scene.setup.start();
    scene.send(&hub, 20).await;
    scene.arrived(&hub);
    assert_eq!(hub.metric(FAILURES, &[]), 0.0);
}

#[tokio::test]
async fn tokens_that_expire_amid_a_drain_cost_nothing() {
    // At most 30 in two tenths of a second: 1000 of each module take longer than a token lasts.
    let mut scene = Scene::new("iothub", "token_ttl_seconds = 5\nwindow = 30\n");
    scene.proxy.set(Mode::Refuse);
    scene.sink.turn(|knobs| knobs.tokens_expire = true);
    let hub = scene.setup.start();
    scene.send(&hub, 1000).await;
    let before = hub.metric(FAILURES, &[]);
    assert_eq!(before, failures(&hub, "unreachable"));
    scene.proxy.set(Mode::Latency(Duration::from_millis(100)));
    scene.arrived(&hub);
    let counts = scene.sink.counts();
    assert_eq!((counts.expired, counts.refused), (0, 0), "{counts:?}");
    assert!(counts.accepted >= 6, "{counts:?}");
    assert_eq!(hub.metric(FAILURES, &[]), failures(&hub, "unreachable"));
}

/// An HTTP proxy that knows one server under another name.
#[derive(Clone)]
struct HttpProxy {
    server: SocketAddr,
    refuses: Arc<AtomicBool>,
    tunnels: Arc<AtomicU64>,
}

const NAME: &str = "cloud.invalid:1883";

impl HttpProxy {
    async fn start(server: SocketAddr) -> (Self, SocketAddr) {
        let proxy = Self {
            server,
            refuses: Arc::new(AtomicBool::new(true)),
            tunnels: Arc::default(),
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let serving = proxy.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let one = serving.clone();
                tokio::spawn(async move { one.tunnel(client).await });
            }
        });
        (proxy, address)
    }

    async fn tunnel(&self, client: TcpStream) -> io::Result<()> {
        let mut client = BufReader::new(client);
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if client.read_line(&mut head).await? == 0 {
                return Ok(());
            }
        }
        let is_ours = head.starts_with(&format!("CONNECT {NAME} HTTP/1.1\r\n"));
        if !is_ours || self.refuses.load(Ordering::Acquire) {
            return client.write_all(b"HTTP/1.1 403 Forbidden\r\n\r\n").await;
        }
        let mut server = TcpStream::connect(self.server).await?;
        self.tunnels.fetch_add(1, Ordering::AcqRel);
        let answer = b"HTTP/1.1 200 Connection established\r\nVia: 1.1 test\r\n\r\n";
        client.write_all(answer).await?;
        copy_bidirectional(&mut client, &mut server).await.map(drop)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_http_proxy_that_refuses_is_told_and_one_that_forwards_is_used() {
    let mut scene = Scene::new("iothub", "");
    let (proxy, address) = HttpProxy::start(scene.sink.address()).await;
    let more = format!("proxy = \"http://{address}\"\n");
    scene.setup.extra = upstream("iothub", &[NAME], "tcp", &more);
    let hub = scene.setup.start();
    scene.send(&hub, 50).await;
    told(
        &hub,
        "proxy",
        "the proxy must allow CONNECT to this server and port",
    );
    proxy.refuses.store(false, Ordering::Release);
    scene.arrived(&hub);
    assert_eq!(proxy.tunnels.load(Ordering::Acquire), 3);
    let server = hub.status()["upstream"][0]["server"].to_string();
    assert!(
        server.contains(&format!("{NAME} (proxy {address}")),
        "{server}"
    );
}

/// Where a lane's messages are in the record.
fn places(record: &[Numbered], lane: u8) -> Vec<usize> {
    let all = record.iter().enumerate();
    let of_lane = all.filter(|(_, one)| one.lane == lane);
    of_lane.map(|(place, _)| place).collect()
}

#[tokio::test]
async fn new_messages_do_not_wait_for_a_backlog_and_urgent_ones_for_nothing() {
    const BACKLOG: usize = 1500;
    const NEW: usize = 100;
    const URGENT: usize = 50;
    let routes = r#"{
        "rest":{"route":"FROM /messages/modules/a/outputs/out INTO $upstream","priority":5},
        "urgent":{"route":"FROM /messages/modules/a/outputs/urgent INTO $upstream","priority":0}}"#;
    let mut scene = Scene::with_routes(routes, "mqtt", "drain = \"live-first\"\nwindow = 20\n");
    scene.proxy.set(Mode::Refuse);
    let hub = scene.setup.start();
    scene.send_lane(&hub, ("a", 0), "out", BACKLOG).await;
    scene.send_lane(&hub, ("a", 1), "urgent", URGENT).await;
    // The link is up, and no more than a window leaves while the others come.
    scene.sink.turn(|knobs| knobs.hold = true);
    scene.proxy.set(Mode::Pass);
    scene.has(&hub, 20);
    scene.send_lane(&hub, ("a", 2), "out", NEW).await;
    scene.send_lane(&hub, ("a", 3), "urgent", URGENT).await;
    scene.sink.turn(|knobs| knobs.hold = false);
    scene.arrived(&hub);
    let read = |message: &Message| Numbered::read(&message.payload).unwrap();
    let record: Vec<_> = scene.messages().iter().map(read).collect();
    // Urgent ones go first, although they came last. Turns are of four messages.
    let urgent = record.iter().take(2 * URGENT + 8);
    assert_eq!(urgent.filter(|one| one.lane % 2 == 1).count(), 2 * URGENT);
    // Of the others four of five are new ones until there are none.
    let new_end = *places(&record, 2).last().unwrap();
    assert!(new_end < 2 * URGENT + NEW * 5 / 4 + 8, "{new_end}");
    let backlog = places(&record, 0);
    assert!(backlog[NEW / 8] < new_end, "the backlog has its share");
}

#[tokio::test]
async fn no_more_than_so_many_messages_leave_in_a_second_of_all_modules_together() {
    let mut scene = Scene::new("iothub", "max_messages_per_second = 200\n");
    scene.proxy.set(Mode::Refuse);
    let hub = scene.setup.start();
    scene.send(&hub, 200).await;
    scene.proxy.set(Mode::Pass);
    let began = Instant::now();
    scene.arrived(&hub);
    // A tenth of a second's messages may leave at once.
    let (took, least) = (
        began.elapsed(),
        Duration::from_millis((600 - 20) * 1000 / 200),
    );
    assert!(took >= least, "{took:?}");
}

#[tokio::test]
async fn a_message_too_large_for_the_cloud_is_refused_or_goes_where_else_it_can() {
    let routes = r#"{
        "only":"FROM /messages/modules/a/outputs/only INTO $upstream",
        "both":"FROM /messages/modules/a/outputs/both INTO $upstream",
        "in":"FROM /messages/modules/a/outputs/both INTO BrokeredEndpoint(\"/modules/b/inputs/in\")"
    }"#;
    let mut scene = Scene::with_routes(routes, "iothub", "");
    let hub = scene.setup.start();
    let too_large = |hub: &Hub| hub.metric(DROPPED, &["reason=\"too_large_for_cloud\""]);
    let large = vec![b'x'; 256 * 1024 + 1];
    let mut a = hub.connect("edge-1/a").await;
    let only = output("a", "only", "");
    a.publish(&only, QoS::AtLeastOnce, &large).await.unwrap();
    closed(&mut a).await;
    assert_eq!(too_large(&hub), 1.0);
    log_says(
        &hub,
        &["WARN", "edge-1/a", "and the cloud takes at most 262144"],
    );

    let mut b = scene::receiver(&hub, "b").await;
    let mut a = hub.connect("edge-1/a").await;
    publish(&mut a, &output("a", "both", ""), &large).await;
    let (_, body, _) = message_with_topic(&mut b).await;
    assert!(body == large);
    assert_eq!(too_large(&hub), 2.0);
    scene.send_lane(&hub, ("a", 0), "only", 10).await;
    scene.arrived(&hub);
}

#[tokio::test]
async fn a_message_that_goes_round_two_hubs_stops_after_eight() {
    let mut first = common::Setup::new(ROUTES, &upward::MODULES);
    let one = first.start();
    let mut second = common::Setup::new(ROUTES, &upward::MODULES);
    let name = "identities.json";
    std::fs::copy(first.path(name), second.path(name)).unwrap();
    second.extra = tcp("iothub", one.tcp(), "");
    let two = second.start();
    let proxy = Proxy::start(two.tcp()).unwrap();
    proxy.set(Mode::Refuse);
    lead_to(&mut first, &one, tcp("iothub", proxy.address(), ""));
    // The other hub comes as this module, which has to be gone by then.
    let mut a = one.connect("edge-1/a").await;
    for _ in 0..10 {
        publish(&mut a, &output("a", "out", ""), b"round").await;
    }
    a.disconnect().await.unwrap();
    proxy.set(Mode::Pass);
    let stopped = |hub: &Hub| hub.metric(DROPPED, &["reason=\"too_many_hops\""]);
    one.until("all have stopped", |one| stopped(one) >= 10.0);
    assert_eq!((stopped(&one), stopped(&two)), (10.0, 0.0));
    for hub in [&one, &two] {
        nothing_waits(hub);
        hub.until("all are counted", |hub| upward::sent_up(hub) == 40.0);
        assert_eq!(hub.metric(DROPPED, &[]), stopped(hub));
    }
}

#[tokio::test]
async fn another_cloud_is_used_without_a_restart_and_gets_the_backlog() {
    let mut scene = Scene::new("mqtt", "");
    scene.setup.extra = String::new();
    scene.proxy.set(Mode::Refuse);
    let hub = scene.setup.start();
    upward::send(&hub, &mut Sent::default(), 5).await;
    assert_eq!(hub.metric(DROPPED, &["reason=\"no_upstream\""]), 15.0);
    assert_eq!(hub.status()["upstream"].as_array().unwrap().len(), 0);

    lead_to(
        &mut scene.setup,
        &hub,
        tcp("mqtt", scene.proxy.address(), ""),
    );
    scene.send(&hub, 50).await;
    told(
        &hub,
        "unreachable",
        "is the server running, and is the port right?",
    );

    let loopback = SocketAddr::from(([127, 0, 0, 1], 0));
    let record = scene.setup.path("other");
    let other = Sink::start(loopback, &record).unwrap();
    lead_to(&mut scene.setup, &hub, tcp("mqtt", other.address(), ""));
    scene.send(&hub, 50).await;
    upward::arrived(&record, &scene.sent, &hub);
    link_says(&hub, "connected", &[]);
    assert_eq!(scene.sink.counts().messages, 0);
}

/// Connections die without a word, under way.
async fn dead_connections(mode: Mode) {
    for (kind, links, id) in [("mqtt", 1.0, "upstream"), ("iothub", 3.0, "edge-1/a")] {
        let mut scene = Scene::new(kind, "dead_peer_seconds = 2\n");
        let hub = scene.setup.start();
        scene.send(&hub, 20).await;
        scene.arrived(&hub);
        scene.proxy.set(mode);
        let began = Instant::now();
        scene.send(&hub, 300).await;
        hub.until("all links are found dead", |hub| {
            failures(hub, "lost") >= links
        });
        assert!(began.elapsed() < FOUND, "{:?}", began.elapsed());
        log_says(&hub, &["WARN", DOWN, "and has not answered"]);
        if mode == Mode::BlackHole {
            let state = hub.metric(STATE, &[&format!("id=\"{id}\"")]);
            assert!(state > 0.0 && state != CONNECTED, "{state}");
            scene.proxy.set(Mode::Pass);
        }
        scene.arrived(&hub);
        link_says(&hub, "connected", &[]);
    }
}

#[tokio::test]
async fn half_open_connections_are_found_soon_and_nothing_of_them_is_lost() {
    dead_connections(Mode::HalfOpen).await;
}

#[tokio::test]
async fn a_black_hole_is_found_soon_and_nothing_that_went_into_it_is_lost() {
    dead_connections(Mode::BlackHole).await;
}

#[tokio::test]
async fn a_hub_that_is_killed_amid_a_drain_goes_on_after_its_restart() {
    for kind in ["mqtt", "iothub"] {
        let mut scene = Scene::new(kind, "max_messages_per_second = 1000\n");
        scene.proxy.set(Mode::Refuse);
        let hub = scene.setup.start();
        scene.send(&hub, 700).await;
        scene.proxy.set(Mode::Pass);
        scene.has(&hub, 300);
        hub.kill();
        scene.all_ended();
        scene.sent.hub_kills.push(now_us());
        let counts = scene.sink.counts();
        assert!(counts.messages < scene.sent.published, "{counts:?}");
        let hub = scene.setup.start();
        scene.send(&hub, 20).await;
        scene.arrived(&hub);
        log_says(&hub, &["not closed in good order"]);
    }
}
