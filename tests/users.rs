//! Users: clients that are no modules and log in by user name and password.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing
)]

mod common;

use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use edgehub::client::{Client, ClientError, Hello, Packet};
use edgehub::mqtt::v5::ReasonCode;
use edgehub::mqtt::{ConnectReturnCode, SubAckCode};
use tokio::net::{TcpSocket, TcpStream};

use common::five::{Five, Got};
use common::{BINARY, Hub, LIMIT, Setup, closed, edgehub, publish, replace, wire};

/// Of `hunter2`, at the lowest costs that there are.
const BCRYPT: &str = "$2y$04$abcdefghijklmnopqrstuuV3duMsC0HpUex6N9qapiuOHHWkwRXVm";
const ARGON2: &str =
    "$argon2id$v=19$m=8,t=1,p=1$c2FsdHNhbHRzYWx0$c3IyBvIK7HbKkJ1DTguBW6I6Fqq4+1EIutR5o2TcDIQ";
/// Of `hunter2`, at a cost that lets several wait for each other.
const SLOW: &str = "$2y$10$abcdefghijklmnopqrstuu7gIUFBKrYXdzQy8HrouzMJyZ4cijAb2";
/// Of `hunter2`: takes far less than a second, and hundreds of it far more.
const BRIEF: &str = "$2y$09$abcdefghijklmnopqrstuuLieHxIPRN63hzBMVmW1ggMWxjrK8Lmi";
const RIGHT: &str = "hunter2";
const WRONG: &str = "swordfish";
const STRANGER: &str = "127.0.0.2";

const RULES: &str = "[[authorization]]\nidentities = [\"user:ann\"]\n\
    allow = [{ operations = [\"mqtt:publish\", \"mqtt:subscribe\"], resources = [\"ann/#\"] }]\n\
    [[authorization]]\nidentities = [\"user:bob\"]\n\
    allow = [{ operations = [\"mqtt:subscribe\"], resources = [\"ann/public\"] }]\n";

fn setup(users: &str) -> Setup {
    let mut setup = Setup::new("{}", &["a"]);
    setup.listeners = format!("users = \"users.txt\"\n{}", setup.listeners);
    setup.extra = RULES.to_owned();
    replace(&setup.path("users.txt"), users);
    setup
}

/// ann and bob, and a device of the registry.
fn two_users() -> Setup {
    setup(&format!("ann:{BCRYPT}\nbob:{ARGON2}\n"))
}

fn hello(name: &str, password: &str, client_id: &str) -> Hello {
    Hello {
        client_id: client_id.to_owned(),
        username: Some(name.to_owned()),
        password: Some(password.to_owned()),
        clean_session: true,
        keep_alive_seconds: 60,
    }
}

/// Sends CONNECT on a connection; its code.
async fn answer(client: &mut Client, hello: &Hello) -> u8 {
    match tokio::time::timeout(LIMIT, client.connect(hello)).await {
        Ok(Ok(_)) => 0,
        Ok(Err(ClientError::Refused(code))) => code as u8,
        other => panic!("{}: {other:?}", hello.client_id),
    }
}

async fn log_in(hub: &Hub, hello: &Hello) -> (Client, u8) {
    let mut client = Client::tcp(hub.tcp()).await.unwrap();
    let code = answer(&mut client, hello).await;
    (client, code)
}

async fn user(hub: &Hub, name: &str) -> Client {
    let (client, code) = log_in(hub, &hello(name, RIGHT, name)).await;
    assert_eq!(code, 0, "{name}");
    client
}

async fn reason(hub: &Hub, name: &str, password: &str) -> ReasonCode {
    match Five::user(hub, "five", name, password).await.1 {
        Got::ConnAck { reason, .. } => reason,
        other => panic!("{other:?}"),
    }
}

fn failed(hub: &Hub, reason: &str) -> u64 {
    let label = format!("reason=\"{reason}\"");
    hub.metric("edgehub_client_connect_failed_total", &[&label]) as u64
}

/// `edgehub users`, with a password on stdin.
fn users(setup: &Setup, args: &[&str], password: &str) -> Output {
    let mut child = Command::new(BINARY)
        .arg("users")
        .args(args)
        .args(["--config", "edgehub.toml"])
        .current_dir(setup.dir.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    // One that is not asked for ends before it is written.
    let _ = stdin.write_all(password.as_bytes());
    drop(stdin);
    child.wait_with_output().unwrap()
}

#[tokio::test]
async fn who_comes_in_and_who_does_not() {
    let setup = two_users();
    let hub = setup.start();
    let long = "x".repeat(2000);
    for (name, password, code, label) in [
        ("ann", RIGHT, 0, ""),
        ("bob", RIGHT, 0, ""),
        ("ann", WRONG, 5, "user_password"),
        ("bob", WRONG, 5, "user_password"),
        ("bob", &long, 5, "user_password"),
        ("Ann", RIGHT, 5, "unknown_user"),
        ("carl", RIGHT, 5, "unknown_user"),
        ("carl", &long, 5, "unknown_user"),
        ("{{anonymous}}", RIGHT, 5, "unknown_user"),
        ("edge-1", RIGHT, 5, "unknown_user"),
        ("ann", "", 5, "no_credentials"),
        ("user/ann", RIGHT, 4, "bad_user_name"),
        ("", RIGHT, 4, "bad_user_name"),
    ] {
        let before = failed(&hub, label);
        let got = log_in(&hub, &hello(name, password, "client")).await.1;
        assert_eq!(got, code, "{name}");
        let told = match code {
            0 => ReasonCode::Success,
            _ => ReasonCode::BadUserNameOrPassword,
        };
        assert_eq!(reason(&hub, name, password).await, told, "{name}");
        if code != 0 {
            assert_eq!(failed(&hub, label), before + 2, "{name}");
        }
    }
    let metrics = hub.get("/metrics").1;
    assert!(metrics.contains("id=\"user:ann\""));
    let log = hub.log_text();
    for secret in [RIGHT, WRONG, "carl", &long[..100], BCRYPT, "$argon2id$"] {
        assert!(!log.contains(secret), "{secret} is in the log");
        assert!(!metrics.contains(secret), "{secret} is a label");
    }
}

#[tokio::test]
async fn without_a_users_file_there_are_no_users() {
    let setup = Setup::new("{}", &[]);
    let hub = setup.start();
    let (_, code) = log_in(&hub, &hello("ann", RIGHT, "x")).await;
    assert_eq!((code, failed(&hub, "bad_user_name")), (4, 1));
}

#[tokio::test]
async fn users_have_what_rules_give_them_and_no_modules_topics() {
    let setup = two_users();
    let hub = setup.start();
    let mut bob = user(&hub, "bob").await;
    assert_ne!(
        bob.subscribe("ann/public").await.unwrap(),
        SubAckCode::Failure
    );
    for filter in [
        "#",
        "ann/#",
        "devices/edge-1/modules/a/inputs/#",
        "$iothub/twin/res/#",
    ] {
        assert_eq!(
            bob.subscribe(filter).await.unwrap(),
            SubAckCode::Failure,
            "{filter}"
        );
    }
    let mut ann = user(&hub, "ann").await;
    publish(&mut ann, "ann/public", b"hello").await;
    assert_eq!(common::message_with_topic(&mut bob).await.0, "ann/public");
    for (name, topic) in [
        ("bob", "ann/public"),
        ("ann", "bob/x"),
        ("ann", "devices/edge-1/modules/a/messages/events/"),
        ("ann", "$iothub/twin/GET/?$rid=1"),
    ] {
        let (mut five, _) = Five::user(&hub, "five", name, RIGHT).await;
        let refused = five.publish(topic, b"x", &[]).await;
        assert!(refused.is_failure(), "{name} {topic}: {refused:?}");
    }
    // The same client id is another client's with another user.
    let mut same = log_in(&hub, &hello("bob", RIGHT, "ann")).await.0;
    publish(&mut ann, "ann/public", b"still there").await;
    assert_eq!(common::message_with_topic(&mut bob).await.1, b"still there");
    // And of the same user it takes the connection over.
    let (_again, code) = log_in(&hub, &hello("bob", RIGHT, "ann")).await;
    assert_eq!(code, 0);
    closed(&mut same).await;
}

#[tokio::test]
async fn an_empty_client_id_is_filled_in() {
    let setup = two_users();
    let hub = setup.start();
    assert_eq!(log_in(&hub, &hello("ann", RIGHT, "")).await.1, 0);
    let mut kept = hello("ann", RIGHT, "");
    kept.clean_session = false;
    assert_eq!(log_in(&hub, &kept).await.1, 2);
    let (_, connack) = Five::user(&hub, "", "ann", RIGHT).await;
    let Got::ConnAck { properties, .. } = connack else {
        panic!("{connack:?}");
    };
    assert!(
        properties
            .iter()
            .any(|one| one.contains("AssignedClientId"))
    );
}

#[test]
fn mosquitto_clients() {
    let setup = two_users();
    let hub = setup.start();
    let ca = setup.path("certs/ca.pem");
    let tls = ["--cafile", ca.to_str().unwrap()];
    for (transport, tls) in [("tcp", &[][..]), ("tls", &tls)] {
        let port = hub.address(transport).port().to_string();
        for (version, refused) in [("mqttv311", 5), ("mqttv5", 134)] {
            let common = ["-h", "localhost", "-p", &port, "-V", version, "-q", "1"];
            let publish = |password: &str| {
                let mut command = Command::new("mosquitto_pub");
                command.args(common).args(tls);
                command.args([
                    "-u",
                    "ann",
                    "-P",
                    password,
                    "-t",
                    "ann/public",
                    "-r",
                    "-m",
                    "hi",
                ]);
                command.output().unwrap().status.code()
            };
            assert_eq!(publish(RIGHT), Some(0), "{transport} {version}");
            assert_eq!(publish(WRONG), Some(refused), "{transport} {version}");
            let output = Command::new("mosquitto_sub")
                .args(common)
                .args(tls)
                .args([
                    "-u",
                    "bob",
                    "-P",
                    RIGHT,
                    "-t",
                    "ann/public",
                    "-C",
                    "1",
                    "-W",
                    "20",
                ])
                .output()
                .unwrap();
            assert_eq!(output.stdout, b"hi\n", "{transport} {version}: {output:?}");
        }
    }
}

#[tokio::test]
async fn a_reload_closes_who_left_or_has_another_password_and_nobody_else() {
    let lines = ["ann", "bob", "carl"].map(|name| format!("{name}:{BCRYPT}\n"));
    let setup = setup(&lines.concat());
    let hub = setup.start();
    let mut ann = user(&hub, "ann").await;
    let mut bob = user(&hub, "bob").await;
    let mut carl = user(&hub, "carl").await;
    let changed = users(&setup, &["add", "bob"], "correct horse\n");
    assert_eq!(changed.stdout, b"changed bob\n", "{changed:?}");
    closed(&mut bob).await;
    let removed = users(&setup, &["remove", "carl"], "");
    assert_eq!(removed.stdout, b"removed carl\n", "{removed:?}");
    closed(&mut carl).await;
    assert_eq!(log_in(&hub, &hello("bob", RIGHT, "x")).await.1, 5);
    assert_eq!(log_in(&hub, &hello("bob", "correct horse", "x")).await.1, 0);
    assert_eq!(log_in(&hub, &hello("carl", RIGHT, "x")).await.1, 5);
    // A broken file is refused, and the old one stays.
    replace(&setup.path("users.txt"), "ann:hunter2\n");
    hub.until("the file is refused", |hub| {
        hub.metric(
            "edgehub_reloads_total",
            &["what=\"users\"", "result=\"refused\""],
        ) == 1.0
    });
    assert!(
        hub.log_text()
            .contains("users.txt:1:5: error: the password is not hashed")
    );
    assert!(!hub.log_text().contains("hunter2"));
    publish(&mut ann, "ann/x", b"still in").await;
    assert_eq!(log_in(&hub, &hello("ann", RIGHT, "x")).await.1, 0);
    hub.until("the ends are counted", |hub| {
        hub.metric("edgehub_connections_closed_total", &["\"revoked\""]) as u64 == 2
    });
    // Without a file there are no users.
    let config = std::fs::read_to_string(setup.path("edgehub.toml")).unwrap();
    let config = config.replace("users = \"users.txt\"\n", "");
    replace(&setup.path("edgehub.toml"), &config);
    closed(&mut ann).await;
    assert_eq!(log_in(&hub, &hello("ann", RIGHT, "x")).await.1, 4);
}

#[test]
fn the_command_edits_the_file() {
    let setup = setup("");
    setup.write_config();
    std::fs::remove_file(setup.path("users.txt")).unwrap();
    assert_eq!(users(&setup, &["list"], "").status.code(), Some(78));
    let added = users(&setup, &["add", "bob"], "one\ntwo\n");
    assert_eq!(added.stdout, b"added bob\n", "{added:?}");
    let added = users(&setup, &["add", "ann"], "without an end");
    assert_eq!(added.status.code(), Some(0));
    assert_eq!(users(&setup, &["list"], "").stdout, b"ann\nbob\n");
    let path = setup.path("users.txt");
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(
        text.starts_with("bob:$argon2id$v=19$m=9216,t=4,p=1$"),
        "{text}"
    );
    let users_now = edgehub::files::read_users(&path).unwrap();
    assert_eq!(users_now.get("bob").unwrap().is_of(b"one"), Some(true));
    assert_eq!(
        users_now.get("ann").unwrap().is_of(b"without an end"),
        Some(true)
    );
    let long = "x".repeat(1025);
    for (args, password, code, said) in [
        (["remove", "carl"], "", 1, "there is no user carl"),
        (["add", "a/b"], "x", 64, "one of the characters"),
        (["add", "a:b"], "x", 64, "colon"),
        (["add", "ann"], "\n", 64, "1 to 1024 bytes"),
        (["add", "ann"], &long, 64, "1 to 1024 bytes"),
    ] {
        let output = users(&setup, &args, password);
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{args:?} {error}");
        assert!(error.contains(said), "{args:?} {error}");
    }
    assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
    assert_eq!(
        users(&setup, &["remove", "bob"], "").stdout,
        b"removed bob\n"
    );
    assert_eq!(users(&setup, &["list"], "").stdout, b"ann\n");
}

#[test]
fn a_broken_file_is_told_whole_and_starts_no_hub() {
    let setup = setup(&format!("# all\nann:{BCRYPT}\nbob\n  ann:secret\n"));
    setup.write_config();
    for (command, code) in [("check", 1), ("run", 78)] {
        let output = edgehub(setup.dir.path(), &[command, "--config", "edgehub.toml"]);
        assert_eq!(output.status.code(), Some(code), "{command}");
        let error = String::from_utf8(output.stderr).unwrap();
        for line in [
            "users.txt:3:1: error: the line is not NAME:HASH (hint: comments begin with #)",
            "users.txt:4:3: error: this user is there already, in line 2",
            "users.txt:4:7: error: the password is not hashed by bcrypt or Argon2id \
             (hint: `edgehub users add NAME` or `htpasswd -B` write one)",
        ] {
            assert!(error.contains(line), "{command}: {line}\n{error}");
        }
        assert!(!error.contains("secret"), "{error}");
    }
    std::fs::remove_file(setup.path("users.txt")).unwrap();
    let output = edgehub(setup.dir.path(), &["check", "--config", "edgehub.toml"]);
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(
        error.contains("`edgehub users add NAME` makes the file"),
        "{error}"
    );
}

/// How long it takes to be refused; from this address it is the first time.
async fn refused_after(hub: &Hub, from: &str, name: &str) -> Duration {
    let mut client = Client::over(open(hub, from).await);
    let began = Instant::now();
    let code = answer(&mut client, &hello(name, WRONG, "x")).await;
    assert_eq!(code, 5);
    began.elapsed()
}

#[tokio::test]
async fn nobody_can_tell_by_the_time_who_is_a_user() {
    let setup = setup(&format!("ann:{SLOW}\nbob:{SLOW}\n"));
    let hub = setup.start();
    let (mut there, mut away) = (LIMIT, LIMIT);
    for number in 1..6 {
        let from = format!("127.0.1.{number}");
        there = there.min(refused_after(&hub, &from, "ann").await);
        away = away.min(refused_after(&hub, &from, "carl").await);
    }
    // Without a hash it would be a hundredth.
    assert!(there < away * 4 && away < there * 4, "{there:?} {away:?}");
    assert!(
        there > Duration::from_millis(10),
        "{there:?}: was it hashed?"
    );
}

async fn open(hub: &Hub, from: &str) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket
        .bind(SocketAddr::new(from.parse().unwrap(), 0))
        .unwrap();
    let socket = socket.connect(hub.tcp()).await.unwrap();
    socket.set_nodelay(true).unwrap();
    socket
}

/// So many guesses at once, which nobody answers yet.
async fn flood(hub: &Hub, from: &str, names: &[&str], count: usize) -> Vec<Client> {
    let mut clients = Vec::new();
    for number in 0..count {
        let mut client = Client::over(open(hub, from).await);
        let name = names[number % names.len()];
        let guess = hello(name, WRONG, &format!("guess-{number}"));
        client.send_bytes(&wire::connect(&guess)).await.unwrap();
        clients.push(client);
    }
    clients
}

#[tokio::test]
async fn a_flood_of_wrong_passwords_holds_only_itself_up() {
    const GUESSES: usize = 60;
    let names = ["ann", "bob", "carl", "dora", "emil", "fritz", "gina"];
    let lines = names.map(|name| format!("{name}:{SLOW}\n"));
    let setup = setup(&lines.concat());
    let hub = setup.start();
    let guesses = flood(&hub, STRANGER, &["ann", "gina", "nobody"], GUESSES).await;
    // Whoever comes from elsewhere goes first, the guessed one too; and of those at the same
    // address whoever has no failures.
    for name in ["ann", "bob", "carl", "dora"] {
        user(&hub, name).await;
    }
    for name in ["emil", "fritz"] {
        let mut client = Client::over(open(&hub, STRANGER).await);
        let code = answer(&mut client, &hello(name, RIGHT, name)).await;
        assert_eq!(code, 0, "{name}");
    }
    // Even under the name that is guessed: the newest is next.
    let mut client = Client::over(open(&hub, STRANGER).await);
    let code = answer(&mut client, &hello("gina", RIGHT, "gina")).await;
    assert_eq!(code, 0);
    let done = failed(&hub, "user_password") + failed(&hub, "unknown_user");
    assert!(done < GUESSES as u64 * 2 / 3, "{done} guesses went first");
    // Who leaves while it waits leaves the queue.
    drop(guesses);
    user(&hub, "ann").await;
}

#[tokio::test]
async fn who_waits_too_long_is_told_to_come_back() {
    let mut setup = setup(&format!("ann:{BRIEF}\n"));
    setup.extra += "[limits]\nconnect_timeout_seconds = 1\n";
    let hub = setup.start();
    let count = 400;
    let mut guesses = flood(&hub, STRANGER, &["ann"], count).await;
    let (mut busy, mut wrong) = (0, 0);
    for guess in &mut guesses {
        let connack = tokio::time::timeout(LIMIT, guess.receive()).await;
        match connack.unwrap().unwrap() {
            Packet::ConnAck {
                code: ConnectReturnCode::ServerUnavailable,
                ..
            } => {
                busy += 1;
            }
            Packet::ConnAck {
                code: ConnectReturnCode::NotAuthorized,
                ..
            } => wrong += 1,
            other => panic!("{other:?}"),
        }
    }
    assert!(busy > 0 && wrong > 0, "{busy} {wrong}");
    assert_eq!(
        (failed(&hub, "overloaded"), failed(&hub, "user_password")),
        (busy, wrong)
    );
    user(&hub, "ann").await;
}
