//! The stand-in cloud: the built binary on port 0, with this package's client.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing
)]

mod common;
#[path = "edge_cloud/process.rs"]
mod process;

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use edgehub::client::{Client, ClientError, Hello, Packet};
use edgehub::identity::{Entry, Identity, Registry};
use edgehub::iothub::sas;
use edgehub::mqtt::{FromClient, QoS};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use common::{DEVICE, IOTHUB, certs, closed, publish, receive, unix_now};
use process::{CLOUD, Cloud};

const TOPIC: &str = "devices/edge-1/messages/events/";
const PRIMARY: [u8; 32] = [1; 32];
const SECONDARY: [u8; 32] = [2; 32];
const WRONG: [u8; 32] = [9; 32];
const NOBODY: &str = "{\"identities\":[]}";

/// Runs it to an end that comes before the ready line.
fn fails(args: &[&str], code: i32) -> String {
    let output: Output = Command::new(CLOUD).args(args).output().unwrap();
    assert_eq!(output.status.code(), Some(code), "{args:?}: {output:?}");
    assert!(output.stdout.is_empty(), "{output:?}");
    String::from_utf8(output.stderr).unwrap()
}

fn anybody(client_id: &str) -> Hello {
    Hello {
        client_id: client_id.to_owned(),
        clean_session: true,
        keep_alive_seconds: 60,
        ..Hello::default()
    }
}

fn with_token(identity: &str, host: &str, key: &[u8], expiry: u64) -> Hello {
    let of = Identity::parse(identity).unwrap();
    Hello {
        username: Some(format!("{IOTHUB}/{identity}/?api-version=2021-04-12")),
        password: Some(sas::sign(key, &sas::resource(host, &of), expiry)),
        ..anybody(of.device_id())
    }
}

fn identities(dir: &Path) -> String {
    let mut registry = Registry::parse(NOBODY).unwrap();
    for id in [DEVICE, "edge-1/sensor"] {
        let identity = Identity::parse(id).unwrap();
        registry
            .add(Entry::sas(identity, &PRIMARY, &SECONDARY))
            .unwrap();
    }
    let path = dir.join("identities.json");
    fs::write(&path, registry.to_json()).unwrap();
    path.to_str().unwrap().to_owned()
}

/// Publishes a message and waits until it is acknowledged and printed.
async fn passes(cloud: &Cloud, client: &mut Client, payload: &str) {
    publish(client, TOPIC, payload.as_bytes()).await;
    let (topic, line) = cloud.message();
    assert_eq!((&*topic, line["payload"].as_str()), (TOPIC, Some(payload)));
}

/// Takes leave and waits until the broker has seen it: it mixes up connections of one client id
/// that overlap.
async fn leave(mut client: Client) {
    client.send(&FromClient::Disconnect).await.unwrap();
    closed(&mut client).await;
}

/// What a refusal is: the connection ends before a CONNACK.
fn closed_without_connack(result: Result<(Client, bool), ClientError>, what: &str) {
    match result {
        Err(ClientError::Closed) => {}
        Err(ClientError::Io(error)) if error.kind() == std::io::ErrorKind::ConnectionReset => {}
        other => panic!("{what}: {other:?}"),
    }
}

#[tokio::test]
async fn prints_what_reaches_it() {
    let cloud = Cloud::start(&[]);
    assert_eq!(cloud.transport, "tcp");
    assert!(cloud.address.ip().is_loopback() && cloud.address.port() != 0);
    let (mut client, _) = cloud.tcp(&anybody(DEVICE)).await.unwrap();
    passes(&cloud, &mut client, "text \"quoted\"\n").await;
    passes(&cloud, &mut client, "").await;
    publish(&mut client, "other/topic", &[0xff, 0]).await;
    let (topic, line) = cloud.message();
    assert_eq!(topic, "other/topic");
    assert_eq!(line["payload_base64"], "/wA=");
    assert!(line.get("payload").is_none());
    let sent = client.publish(TOPIC, QoS::AtMostOnce, b"unacknowledged");
    assert_eq!(sent.await.unwrap(), None);
    assert_eq!(cloud.message().1["payload"], "unacknowledged");
    cloud.signal(Signal::INT);
    let (code, rest, errors) = cloud.end();
    assert_eq!((code, &*errors), (Some(0), ""));
    assert_eq!(rest.len(), 1);
    assert_eq!(
        (&rest[0]["event"], &rest[0]["messages"]),
        (&"end".into(), &4.into())
    );
}

#[tokio::test]
async fn serves_tls() {
    let dir = tempfile::tempdir().unwrap();
    certs(dir.path(), &["localhost"], &[]);
    let other = tempfile::tempdir().unwrap();
    certs(other.path(), &["localhost"], &[]);
    let (certificate, key) = (dir.path().join("server.pem"), dir.path().join("server.key"));
    let files = [certificate.to_str().unwrap(), key.to_str().unwrap()];
    let cloud = Cloud::start(&["--tls", files[0], files[1]]);
    assert_eq!(cloud.transport, "tls");
    // One that says nothing keeps nobody else from the handshake.
    let silent = tokio::net::TcpStream::connect(cloud.address).await.unwrap();
    let hello = anybody(DEVICE);
    let mut client = cloud.tls(&dir.path().join("ca.pem"), &hello).await.unwrap();
    passes(&cloud, &mut client, "through TLS").await;
    let large = "x".repeat(300_000);
    passes(&cloud, &mut client, &large).await;
    // Plain MQTT and another authority get nowhere.
    assert!(cloud.tcp(&hello).await.is_err());
    let stranger = cloud.tls(&other.path().join("ca.pem"), &hello).await;
    assert!(matches!(stranger, Err(ClientError::Io(_))), "{stranger:?}");
    passes(&cloud, &mut client, "still there").await;
    drop(silent);
}

/// Who is not let in, and what stderr says of it: what lets a device and a module in, with a fault.
fn refused(device: &Hello, module: &Hello) -> [(Hello, &'static str); 8] {
    let later = unix_now() + 3600;
    let of_another = Hello {
        password: with_token("edge-2", IOTHUB, &PRIMARY, later).password,
        ..device.clone()
    };
    let without_password = Hello {
        password: None,
        ..device.clone()
    };
    let other_id = Hello {
        client_id: "edge-2".to_owned(),
        ..device.clone()
    };
    let module_id = Hello {
        client_id: "edge-1/sensor".to_owned(),
        ..module.clone()
    };
    [
        (
            with_token(DEVICE, IOTHUB, &WRONG, later),
            "signed with another key",
        ),
        (
            with_token(DEVICE, "x.example", &PRIMARY, later),
            "host name",
        ),
        (
            with_token(DEVICE, IOTHUB, &PRIMARY, 1_700_000_000),
            "expired",
        ),
        (
            with_token("edge-2", IOTHUB, &PRIMARY, later),
            "not registered",
        ),
        (of_another, "meant for another identity"),
        (without_password, "neither a password"),
        (other_id, "not the device id"),
        (module_id, "not the device id"),
    ]
}

#[tokio::test]
async fn lets_in_by_token() {
    let dir = tempfile::tempdir().unwrap();
    let file = identities(dir.path());
    let cloud = Cloud::start(&["--identities", &file, "--iothub-hostname", IOTHUB]);
    let later = unix_now() + 3600;
    let good = [
        with_token(DEVICE, IOTHUB, &PRIMARY, later),
        with_token(DEVICE, IOTHUB, &SECONDARY, later),
        with_token("edge-1/sensor", IOTHUB, &PRIMARY, later),
    ];
    for hello in &good {
        let (mut client, _) = cloud.tcp(hello).await.unwrap();
        passes(&cloud, &mut client, "in").await;
        leave(client).await;
    }
    let bad = refused(&good[0], &good[2]);
    for (hello, why) in &bad {
        closed_without_connack(cloud.tcp(hello).await, why);
    }
    // rumqttd refuses these by itself, and nothing is printed.
    closed_without_connack(cloud.tcp(&anybody(DEVICE)).await, "no user name");
    let (mut client, _) = cloud.tcp(&good[0]).await.unwrap();
    passes(&cloud, &mut client, "still in").await;
    cloud.signal(Signal::TERM);
    let (code, rest, errors) = cloud.end();
    assert_eq!(code, Some(0));
    assert_eq!(rest[0]["messages"], 4);
    let errors: Vec<_> = errors.lines().collect();
    assert_eq!(errors.len(), bad.len(), "{errors:?}");
    for (line, (hello, why)) in errors.iter().zip(&bad) {
        let who = format!("edge-cloud: refused {:?}: ", hello.client_id);
        assert!(
            line.starts_with(&who) && line.contains(why),
            "{line}: {why}"
        );
        assert!(!line.contains("sig="), "{line}");
    }
}

/// What the documentation says of the broker's limits; clients of `kind = "iothub"` are the first.
#[tokio::test]
async fn closes_on_client_ids_that_the_broker_does_not_take() {
    let cloud = Cloud::start(&[]);
    for id in ["edge-1/sensor", "edge-1/$edgeHub", "a+b", "a#b"] {
        closed_without_connack(cloud.tcp(&anybody(id)).await, id);
    }
    let no_keep_alive = Hello {
        keep_alive_seconds: 0,
        ..anybody(DEVICE)
    };
    closed_without_connack(cloud.tcp(&no_keep_alive).await, "keep-alive 0");
    let (mut client, _) = cloud.tcp(&anybody(DEVICE)).await.unwrap();
    passes(&cloud, &mut client, "others are served").await;
    // Acknowledged, and for nobody.
    publish(&mut client, "$iothub/twin", b"lost").await;
    passes(&cloud, &mut client, "the next").await;
}

/// A topic on which the broker panics: the process ends with an error instead of hanging on.
#[tokio::test]
async fn ends_with_the_broker() {
    let cloud = Cloud::start(&[]);
    let (mut client, _) = cloud.tcp(&anybody(DEVICE)).await.unwrap();
    let sent = client.publish("\u{e9}t\u{e9}", QoS::AtLeastOnce, b"").await;
    assert!(sent.unwrap().is_some());
    let (code, rest, errors) = cloud.end();
    assert_eq!(code, Some(69), "{errors}");
    assert!(rest.is_empty(), "{rest:?}");
}

/// Publishes numbers, up to a hundred under way, until `count` or the end of the connection, and
/// sends SIGTERM after so many acknowledgements. Returns the numbers that were acknowledged.
async fn flood(cloud: Pid, client: &mut Client, count: usize, term_after: usize) -> Vec<usize> {
    let mut acknowledged = Vec::new();
    let mut sent = 0;
    while acknowledged.len() < count {
        if sent < count && sent - acknowledged.len() < 100 {
            let payload = sent.to_string();
            let publish = client.publish(TOPIC, QoS::AtLeastOnce, payload.as_bytes());
            match publish.await {
                Ok(id) => assert_eq!(usize::from(id.unwrap().get()), sent + 1),
                Err(_) => break,
            }
            sent += 1;
            continue;
        }
        match receive(client).await {
            Ok(Packet::PubAck(id)) => acknowledged.push(usize::from(id.get()) - 1),
            Ok(other) => panic!("{other:?}"),
            Err(_) => break,
        }
        if acknowledged.len() == term_after {
            kill_process(cloud, Signal::TERM).unwrap();
        }
    }
    // What the socket still holds was acknowledged as well.
    while acknowledged.len() < count
        && let Ok(Packet::PubAck(id)) = receive(client).await
    {
        acknowledged.push(usize::from(id.get()) - 1);
    }
    acknowledged
}

/// Every number that was acknowledged is in its lines, in order, and the last line counts them.
fn all_printed(ended: (Option<i32>, Vec<Value>, String), acknowledged: &[usize]) {
    let (code, lines, errors) = ended;
    assert_eq!((code, &*errors), (Some(0), ""));
    let (end, messages) = lines.split_last().unwrap();
    assert_eq!(end["messages"], messages.len());
    let number = |line: &Value| line["payload"].as_str().unwrap().parse().unwrap();
    let printed: Vec<usize> = messages.iter().map(number).collect();
    assert!(printed.iter().copied().eq(0..printed.len()));
    let missing = acknowledged
        .iter()
        .filter(|number| **number >= printed.len());
    assert_eq!(missing.count(), 0, "acknowledged and not printed");
}

/// Nobody takes its lines while it acknowledges, so most of them wait in the broker at the signal.
#[tokio::test]
async fn prints_what_waits_in_the_broker_before_it_ends() {
    const COUNT: usize = 5000;
    let cloud = Cloud::start(&[]);
    let (mut client, _) = cloud.tcp(&anybody(DEVICE)).await.unwrap();
    let pid = Pid::from_child(&cloud.child);
    let acknowledged = flood(pid, &mut client, COUNT, COUNT / 2).await;
    assert_eq!(acknowledged.len(), COUNT);
    all_printed(cloud.end(), &acknowledged);
}

/// The signal falls into the middle of a flood that goes on until the connection ends.
#[tokio::test]
async fn acknowledges_nothing_that_it_will_not_print() {
    const COUNT: usize = 60_000;
    let cloud = Cloud::start(&[]);
    let (mut client, _) = cloud.tcp(&anybody(DEVICE)).await.unwrap();
    let pid = Pid::from_child(&cloud.child);
    let ended = std::thread::spawn(move || cloud.end());
    let acknowledged = flood(pid, &mut client, COUNT, 1000).await;
    assert!(acknowledged.len() >= 1000);
    all_printed(ended.join().unwrap(), &acknowledged);
}

#[tokio::test]
async fn a_restart_forgets_everything() {
    // Holds the port for this test: bound, so that nobody else is given it, and not listening.
    let reserved = tokio::net::TcpSocket::new_v4().unwrap();
    reserved.set_reuseaddr(true).unwrap();
    reserved.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = reserved.local_addr().unwrap();
    let bind = address.to_string();
    let persistent = Hello {
        clean_session: false,
        ..anybody(DEVICE)
    };
    for _ in 0..2 {
        let cloud = Cloud::start(&["--bind", &bind]);
        assert_eq!(cloud.address, address);
        let (mut client, present) = cloud.tcp(&persistent).await.unwrap();
        assert!(!present);
        passes(&cloud, &mut client, "one").await;
        leave(client).await;
        let (_, present) = cloud.tcp(&persistent).await.unwrap();
        assert!(present);
        fails(&["--bind", &bind], 69);
        cloud.signal(Signal::KILL);
        assert_eq!(cloud.end().0, None);
    }
}

#[tokio::test]
async fn ends_after_the_messages_asked_for() {
    for quiet in [false, true] {
        let mut args = vec!["--messages", "3"];
        args.extend(quiet.then_some("--quiet"));
        let cloud = Cloud::start(&args);
        let (mut client, _) = cloud.tcp(&anybody(DEVICE)).await.unwrap();
        for _ in 0..3 {
            client.publish(TOPIC, QoS::AtLeastOnce, b"x").await.unwrap();
        }
        let (code, rest, errors) = cloud.end();
        assert_eq!((code, &*errors), (Some(0), ""));
        assert_eq!(rest.len(), if quiet { 1 } else { 4 });
        assert_eq!(rest.last().unwrap()["messages"], 3);
    }
}

#[tokio::test]
async fn ends_with_its_stdin_where_it_is_told_to() {
    let mut cloud = Cloud::start_with(&["--until-stdin-ends"], Stdio::piped());
    let (mut client, _) = cloud.tcp(&anybody(DEVICE)).await.unwrap();
    passes(&cloud, &mut client, "one").await;
    publish(&mut client, TOPIC, b"two").await;
    drop(cloud.child.stdin.take());
    let (code, rest, errors) = cloud.end();
    assert_eq!((code, &*errors), (Some(0), ""));
    assert_eq!(rest[0]["payload"], "two");
    assert_eq!(rest[1]["messages"], 2);
}

#[test]
fn says_what_is_wrong_before_it_listens() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let empty = file("empty.json", NOBODY);
    let broken = file("broken.json", "{");
    fails(&["--identities", &empty], 64);
    fails(&["--iothub-hostname", IOTHUB], 64);
    fails(&["--tls", &empty], 64);
    for (path, why) in [(&empty, "no identity"), (&broken, "broken.json")] {
        let errors = fails(&["--identities", path, "--iothub-hostname", IOTHUB], 78);
        assert!(errors.contains(why), "{errors}");
    }
    let errors = fails(&["--tls", &empty, &broken], 78);
    assert!(errors.contains("no certificate"), "{errors}");
}
