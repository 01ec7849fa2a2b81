//! The command line: what each command prints, which files it makes, how it ends.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing
)]

mod common;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use edgehub::client::{Client, Hello, Packet};
use edgehub::mqtt::FromClient;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use common::{
    BINARY, DEVICE, Hub, IOTHUB, LIMIT, Setup, certs, closed, edgehub, inputs, output, publish,
    receive, replace,
};

fn out(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn err(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// Runs a command that must succeed and returns what it printed.
fn ok(dir: &Path, args: &[&str]) -> String {
    let output = edgehub(dir, args);
    assert!(output.status.success(), "{args:?}: {output:?}");
    out(&output)
}

fn fails(dir: &Path, args: &[&str], code: i32) -> String {
    let output = edgehub(dir, args);
    assert_eq!(output.status.code(), Some(code), "{args:?}: {output:?}");
    assert_eq!(out(&output), "", "{args:?} prints errors to stdout");
    let text = err(&output);
    assert!(!text.trim().is_empty(), "{args:?} says nothing");
    assert!(!text.contains("panicked"), "{text}");
    text
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

fn setup() -> Setup {
    let setup = Setup::new("{}", &["a", "b"]);
    setup.write_config();
    setup
}

const CONFIG: [&str; 2] = ["--config", "edgehub.toml"];

#[test]
fn quickstart_ends_after_the_messages_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("made/for/this");
    let args = [
        "quickstart",
        "--messages",
        "7",
        "--dir",
        folder.to_str().unwrap(),
    ];
    for _ in 0..2 {
        let output = edgehub(dir.path(), &args);
        assert!(output.status.success(), "{output:?}");
        let text = out(&output);
        let passed = text
            .lines()
            .filter(|line| line.contains(" -> monitor/"))
            .count();
        assert_eq!(passed, 7, "{text}");
        assert!(text.contains("7 messages passed"), "{text}");
        assert!(!err(&output).contains("ERROR"), "{}", err(&output));
        for name in ["ca.key", "server.key", "identities.json"] {
            assert_eq!(mode(&folder.join(name)), 0o600, "{name}");
        }
        assert_eq!(mode(&folder), 0o700);
    }
}

/// The stand-in cloud is not part of the hub; where it is missing, the error says how it is made.
#[test]
fn quickstart_with_a_cloud_says_what_it_needs() {
    let dir = tempfile::tempdir().unwrap();
    let alone = dir.path().join("edgehub");
    fs::copy(BINARY, &alone).unwrap();
    let command = Command::new(alone)
        .args(["quickstart", "--upstream", "--dir", "made"])
        .current_dir(dir.path())
        .output()
        .unwrap();
    assert_eq!(command.status.code(), Some(69), "{command:?}");
    assert_eq!(out(&command), "");
    let text = err(&command);
    assert!(text.contains("edge-cloud: there is no"), "{text}");
    assert!(text.contains("--features edge-cloud` makes it"), "{text}");
    assert!(!dir.path().join("made").exists());
}

#[tokio::test]
async fn run_takes_the_quickstarts_folder() {
    let dir = tempfile::tempdir().unwrap();
    ok(dir.path(), &["quickstart", "--messages", "1", "--dir", "."]);
    let path = dir.path().join("edgehub.toml");
    let text = fs::read_to_string(&path).unwrap();
    let ports: Vec<_> = text
        .lines()
        .map(|line| match line.split_once("127.0.0.1:") {
            Some((before, _)) => format!("{before}127.0.0.1:0\""),
            None => line.to_owned(),
        })
        .collect();
    replace(&path, &ports.join("\n"));
    let hub = Hub::start(dir.path());
    assert_eq!(hub.get("/ready").0, 200);
    assert_eq!(hub.terminate(), Some(0));
}

#[test]
fn check_reports_all_errors_at_once() {
    let setup = setup();
    let good = fs::read_to_string(setup.path("edgehub.toml")).unwrap();
    let bad = good.replace(
        "gateway_hostname = \"localhost\"",
        "gateway_hostnam = \"localhost\"",
    ) + "[limits]\nmax_conections = 5\nmax_inflight = 0\n[store]\nsync = \"alway\"\n\
           [listner]\n[log]\nlevel = 3\n";
    replace(&setup.path("edgehub.toml"), &bad);
    let text = fails(setup.dir.path(), &["check", CONFIG[0], CONFIG[1]], 1);
    for (key, hint) in [
        ("gateway_hostnam ", "gateway_hostname"),
        ("max_conections", "max_connections"),
        ("max_inflight", ""),
        ("sync", "always"),
        ("[listner]", "listener"),
        ("level", ""),
    ] {
        let mut lines = bad.lines().enumerate();
        let (number, line) = lines.find(|(_, line)| line.contains(key)).unwrap();
        let number = number + 1;
        let found = text.lines().find(|found| {
            found.starts_with(&format!("edgehub.toml:{number}:")) && found.contains("error")
        });
        let found = found.unwrap_or_else(|| panic!("nothing on line {number}, {line}:\n{text}"));
        let column: usize = found.split(':').nth(2).unwrap().parse().expect(found);
        assert!((1..=line.len() + 1).contains(&column), "{found}");
        assert!(found.contains(hint), "{found} has no hint {hint}");
    }
    // The same errors keep the hub from starting.
    let run = fails(setup.dir.path(), &["run", CONFIG[0], CONFIG[1]], 78);
    assert_eq!(run, text);
}

#[test]
fn check_looks_into_all_files() {
    let setup = setup();
    let text = ok(setup.dir.path(), &["check", CONFIG[0], CONFIG[1]]);
    assert!(text.contains("no errors"), "{text}");
    let bad = r#"{
"one":"FROM /messages/* INTO $upstream trailing",
"two":"FROM /messages/* WHERE a == 1 INTO $upstream",
"three":"FROM /messages/* INTO BrokeredEndpoint(\"/modules/b/inputs/in\")"}"#;
    setup.write_manifest(bad, &["a", "b"], 7200);
    replace(
        &setup.path("identities.json"),
        "{\"identities\":[{\"deviceId\":\"a b\"}]}",
    );
    replace(&setup.path("certs/server.key"), "no key");
    let args = ["check", CONFIG[0], CONFIG[1]];
    let text = fails(setup.dir.path(), &args, 1);
    for part in [
        "one",
        "two",
        "identities.json: line 1, column 16",
        "server.key",
    ] {
        assert!(text.contains(part), "no {part}:\n{text}");
    }
    assert!(!text.contains("route 'three'"), "{text}");
    let text = fails(
        setup.dir.path(),
        &["check", "--manifest", "manifest.json"],
        1,
    );
    for (line, route) in [(4, "one"), (5, "two")] {
        let place = format!("manifest.json:{line}:");
        let named = |found: &&str| found.starts_with(&place) && found.contains(route);
        let found = text.lines().find(named);
        assert!(
            found.is_some_and(|found| found.contains("error")),
            "{place}\n{text}"
        );
    }
    setup.write_manifest("{}", &["a"], 7200);
    ok(setup.dir.path(), &["check", "--manifest", "manifest.json"]);
    fails(
        setup.dir.path(),
        &["check", "--manifest", "missing.json"],
        1,
    );
    fails(setup.dir.path(), &["check", "--config", "missing.toml"], 1);
}

#[test]
fn check_warns_of_messages_that_have_nowhere_to_go() {
    let setup = setup();
    let up = r#"{"r":"FROM /messages/* INTO $upstream"}"#;
    setup.write_manifest(up, &["a"], 7200);
    let text = ok(setup.dir.path(), &["check", CONFIG[0], CONFIG[1]]);
    let warned = |line: &str| line.contains("warning") && line.contains("$upstream");
    assert!(text.lines().any(warned), "{text}");
}

#[test]
fn run_says_why_it_does_not_start() {
    let files = [
        ("manifest.json", "{"),
        ("identities.json", "{"),
        ("certs/server.pem", "none"),
        ("certs/server.key", "none"),
        ("certs/ca.pem", "none"),
        ("edgehub.toml", "device_id ="),
    ];
    for (file, bad) in files {
        let setup = setup();
        replace(&setup.path(file), bad);
        let text = fails(setup.dir.path(), &["run", CONFIG[0], CONFIG[1]], 78);
        assert!(text.contains(file), "{file}: {text}");
    }
    // All of it at once.
    let setup = setup();
    for (file, bad) in [files[0], files[1], files[2]] {
        replace(&setup.path(file), bad);
    }
    let text = fails(setup.dir.path(), &["run", CONFIG[0], CONFIG[1]], 78);
    for (file, _) in [files[0], files[1], files[2]] {
        assert!(text.contains(file), "{file}: {text}");
    }
    let text = fails(setup.dir.path(), &["run", "--config", "missing.toml"], 78);
    assert!(text.contains("missing.toml"), "{text}");
}

#[test]
fn wrong_command_lines_end_with_64() {
    let setup = setup();
    let dir = setup.dir.path();
    for args in [
        &[][..],
        &["runn"],
        &["run"],
        &["run", "--config"],
        &["run", "--config", "edgehub.toml", "extra"],
        &["check"],
        &[
            "check",
            "--config",
            "edgehub.toml",
            "--manifest",
            "manifest.json",
        ],
        &["quickstart", "--messages", "many"],
        &["identity", "list"],
        &["identity", "add", "a/b/c", "--config", "edgehub.toml"],
        &[
            "identity",
            "add",
            "x",
            "--type",
            "magic",
            "--config",
            "edgehub.toml",
        ],
        &[
            "identity",
            "add",
            "x",
            "--type",
            "self-signed",
            "--config",
            "edgehub.toml",
        ],
        &[
            "identity",
            "add",
            "x",
            "--thumbprint",
            "00",
            "--config",
            "edgehub.toml",
        ],
        &["token", "--config", "edgehub.toml"],
        &[
            "token",
            "--config",
            "edgehub.toml",
            "--identity",
            "edge-1/a",
            "--ttl",
            "-5",
        ],
        &["certs", "new", "--dir", "certs"],
    ] {
        fails(dir, args, 64);
    }
    for args in [&["--help"][..], &["--version"], &["run", "--help"]] {
        assert!(ok(dir, args).contains("edgehub"), "{args:?}");
    }
}

#[tokio::test]
async fn identities_are_listed_added_and_removed_under_a_running_hub() {
    let setup = setup();
    let dir = setup.dir.path();
    let hub = setup.start();
    let run = |args: &[&str]| ok(dir, &[args, &CONFIG].concat());
    assert_eq!(
        run(&["identity", "list"]),
        "edge-1/a\tsas\tenabled\nedge-1/b\tsas\tenabled\n"
    );
    run(&["identity", "add", "edge-1/new"]);
    run(&["identity", "add", "leaf", "--type", "certificate-authority"]);
    let print = "AB:".repeat(20);
    run(&[
        "identity",
        "add",
        "cam",
        "--type",
        "self-signed",
        "--thumbprint",
        &print,
    ]);
    assert_eq!(mode(&setup.path("identities.json")), 0o600);
    let listed = run(&["identity", "list"]);
    for line in [
        "edge-1/new\tsas\tenabled",
        "leaf\tcertificateAuthority",
        "cam\tselfSigned",
    ] {
        assert!(listed.contains(line), "{listed}");
    }
    let twice = ["identity", "add", "edge-1/new", CONFIG[0], CONFIG[1]];
    assert!(fails(dir, &twice, 1).contains("edge-1/new"));
    let text = run(&["identity", "connection-string", "edge-1/new"]);
    let key = BASE64_STANDARD.encode(hub.key("edge-1/new"));
    let expected = format!(
        "HostName={IOTHUB};DeviceId={DEVICE};ModuleId=new;SharedAccessKey={key};\
         GatewayHostName=localhost\n"
    );
    assert_eq!(text, expected);
    let by_certificate = [
        "identity",
        "connection-string",
        "leaf",
        CONFIG[0],
        CONFIG[1],
    ];
    fails(dir, &by_certificate, 1);
    hub.until("the hub knows it", |hub| {
        hub.log_text().contains("edge-1/new")
    });
    let mut client = hub.connect("edge-1/new").await;
    run(&["identity", "remove", "edge-1/new"]);
    closed(&mut client).await;
    let again = ["identity", "remove", "edge-1/new", CONFIG[0], CONFIG[1]];
    assert!(fails(dir, &again, 1).contains("edge-1/new"));
    assert!(!run(&["identity", "list"]).contains("new"));
}

#[test]
fn identities_added_at_the_same_time_are_all_kept() {
    let setup = setup();
    let names: Vec<_> = (0..12)
        .map(|number| format!("edge-1/new-{number}"))
        .collect();
    let started: Vec<_> = names
        .iter()
        .map(|name| {
            Command::new(BINARY)
                .args(["identity", "add", name, CONFIG[0], CONFIG[1]])
                .current_dir(setup.dir.path())
                .stdout(Stdio::null())
                .spawn()
                .unwrap()
        })
        .collect();
    for mut child in started {
        assert!(child.wait().unwrap().success());
    }
    let listed = ok(
        setup.dir.path(),
        &["identity", "list", CONFIG[0], CONFIG[1]],
    );
    for name in names {
        assert!(
            listed.contains(&format!("{name}\t")),
            "{name} is missing:\n{listed}"
        );
    }
}

#[tokio::test]
async fn tokens_open_the_hub() {
    let setup = setup();
    let hub = setup.start();
    let dir = setup.dir.path();
    let token = |more: &[&str]| {
        let args = ["token", CONFIG[0], CONFIG[1], "--identity", "edge-1/a"];
        ok(dir, &[&args, more].concat()).trim().to_owned()
    };
    let mut hello = hub.hello("edge-1/a");
    for password in [token(&[]), token(&["--ttl", "5"])] {
        hello.password = Some(password);
        let mut client = hub.tls(None).await.unwrap();
        client.connect(&hello).await.unwrap();
    }
    let now = common::unix_now();
    let expiry = |token: &str| token.rsplit_once("se=").unwrap().1.parse::<u64>().unwrap();
    let (hour, short) = (expiry(&token(&[])), expiry(&token(&["--ttl", "5"])));
    assert!((now + 3600..now + 3660).contains(&hour) && (now + 5..now + 65).contains(&short));
    let unknown = ["token", CONFIG[0], CONFIG[1], "--identity", "edge-1/nobody"];
    assert!(fails(dir, &unknown, 1).contains("edge-1/nobody"));
}

#[tokio::test]
async fn certificates_are_made_for_all_names() {
    let setup = Setup::new("{}", &["a", "b"]);
    let dir = setup.path("certs");
    let ca = fs::read(dir.join("ca.pem")).unwrap();
    let clients = ["edge-1/a", "leaf-7"];
    certs(
        &dir,
        &["gateway.example", "localhost", "127.0.0.1"],
        &clients,
    );
    assert_eq!(
        fs::read(dir.join("ca.pem")).unwrap(),
        ca,
        "the authority stays"
    );
    assert_eq!(mode(&dir), 0o700);
    for name in ["ca", "server", "client-edge-1-a", "client-leaf-7"] {
        assert_eq!(mode(&dir.join(format!("{name}.key"))), 0o600, "{name}");
        assert!(dir.join(format!("{name}.pem")).exists(), "{name}");
    }
    let hub = setup.start();
    let config = || edgehub::client::tls_config(&ca, None).unwrap();
    for name in ["gateway.example", "localhost", "127.0.0.1"] {
        Client::tls(hub.address("tls"), name, config())
            .await
            .unwrap();
    }
    for name in ["other.example", "example", "127.0.0.2"] {
        Client::tls(hub.address("tls"), name, config())
            .await
            .unwrap_err();
    }
    let no_name = [
        "certs",
        "new",
        "--dir",
        "x",
        "--hostname",
        "localhost",
        "--client",
        "a/b/c",
    ];
    let text = err(&edgehub(setup.dir.path(), &no_name));
    assert!(text.contains("a/b/c"), "{text}");
}

#[test]
fn metrics_stand_in_the_readme() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md");
    let text = fs::read_to_string(path).unwrap_or_default();
    if !text.contains("edgehub_") {
        eprintln!("the README has no metrics yet");
        return;
    }
    for name in edgehub::observe::names() {
        assert!(text.contains(name), "{name} is not in the README");
    }
}

/// A request as it stands: status line, head and body.
fn request(hub: &Hub, method: &str, path: &str) -> (String, String) {
    let mut socket = TcpStream::connect(hub.address("http")).unwrap();
    socket.set_read_timeout(Some(LIMIT)).unwrap();
    let request = format!("{method} {path} HTTP/1.1\r\nHost: hub\r\nConnection: close\r\n\r\n");
    socket.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.to_ascii_lowercase(), body.to_owned())
}

#[tokio::test]
async fn health_and_status_over_http() {
    let setup = setup();
    let hub = setup.start();
    let _a = hub.connect("edge-1/a").await;
    for (path, code) in [
        ("/ready", "200"),
        ("/live", "200"),
        ("/metrics", "200"),
        ("/status", "200"),
        ("/status?x=1", "200"),
        ("/", "404"),
        ("/metricsx", "404"),
        ("/ready/../status", "404"),
    ] {
        let (head, _) = request(&hub, "GET", path);
        assert!(
            head.starts_with(&format!("http/1.1 {code} ")),
            "{path}: {head}"
        );
    }
    for (method, path) in [
        ("POST", "/ready"),
        ("PUT", "/status"),
        ("DELETE", "/metrics"),
    ] {
        let (head, _) = request(&hub, method, path);
        assert!(head.starts_with("http/1.1 405 "), "{method} {path}: {head}");
        // Which methods there are must stand beside a 405 (RFC 9110 §15.5.6).
        assert!(head.contains("\r\nallow: "), "{method} {path}: {head}");
    }
    let (head, body) = request(&hub, "GET", "/status");
    assert!(head.contains("content-type: application/json"), "{head}");
    let status: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(status["deviceId"], DEVICE);
    let client = &status["clients"][0];
    assert_eq!(
        (&client["id"], &client["connected"]),
        (&"edge-1/a".into(), &true.into())
    );
    let (head, body) = request(&hub, "GET", "/metrics");
    assert!(
        head.contains("content-type: text/plain; version=0.0.4"),
        "{head}"
    );
    assert!(body.contains("edgehub_connected_clients{"), "{body}");
}

#[test]
fn a_port_in_use_is_told() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for first in [true, false] {
        let setup = setup();
        let path = setup.path("edgehub.toml");
        let text = fs::read_to_string(&path).unwrap();
        let (before, after) = if first {
            text.split_once("127.0.0.1:0").unwrap()
        } else {
            text.rsplit_once("127.0.0.1:0").unwrap()
        };
        replace(&path, &format!("{before}{address}{after}"));
        let text = fails(setup.dir.path(), &["run", CONFIG[0], CONFIG[1]], 69);
        assert!(text.contains(&address) && text.contains("in use"), "{text}");
    }
}

#[tokio::test]
async fn two_hubs_do_not_share_a_data_folder() {
    let setup = setup();
    let hub = setup.start();
    let text = fails(setup.dir.path(), &["run", CONFIG[0], CONFIG[1]], 69);
    assert!(
        text.contains("another hub") && text.contains("data"),
        "{text}"
    );
    hub.connect("edge-1/a").await;
    assert_eq!(mode(&setup.path("data")), 0o700);
    // A killed hub leaves nothing that keeps the next one out.
    hub.kill();
    setup.start().connect("edge-1/a").await;
}

#[tokio::test]
async fn sigterm_ends_with_0_whoever_is_connected() {
    let setup = setup();
    let hub = setup.start();
    let mut b = hub.connect_tls("edge-1/b").await;
    b.subscribe(&inputs("b")).await.unwrap();
    let mut a = hub.connect("edge-1/a").await;
    publish(&mut a, &output("a", "out", ""), b"x").await;
    let _half_open = TcpStream::connect(hub.address("tls")).unwrap();
    let _before_login = hub.tls(None).await.unwrap();
    let mut slow = hub.tls(None).await.unwrap();
    slow.send(&FromClient::PingReq).await.unwrap();
    assert_eq!(hub.terminate(), Some(0));
    closed(&mut a).await;
    closed(&mut b).await;
}

#[test]
fn signals_right_after_the_ready_line_are_heard() {
    // Many at a time: a busy machine stretches what lies between the line and the handlers.
    let start_and_stop = |signal: Signal| {
        let setup = setup();
        let mut hub = setup.start();
        kill_process(Pid::from_child(&hub.child), signal).unwrap();
        let status = hub.child.wait().unwrap();
        assert_eq!(status.code(), Some(0), "{signal:?}: {status}");
    };
    std::thread::scope(|scope| {
        for signal in [Signal::TERM, Signal::INT].repeat(12) {
            scope.spawn(move || start_and_stop(signal));
        }
    });
}

#[tokio::test]
async fn clients_cannot_forge_lines_of_the_log() {
    let routes = r#"{
"source":"FROM /messages/modules/a/outputs/o INTO BrokeredEndpoint(\"/modules/b/inputs/in\")",
"value":"FROM /messages/* WHERE x = 'y' INTO BrokeredEndpoint(\"/modules/b/inputs/in\")"}"#;
    let mut setup = Setup::new(routes, &["a", "b"]);
    setup.extra = "[log]\nlevel = \"debug\"\n".to_owned();
    let hub = setup.start();
    let forged = "2026-01-01T00:00:00.000000Z ERROR forged";
    let escaped = "%0A2026-01-01T00%3A00%3A00.000000Z%20ERROR%20forged%1B%5B31m";
    let mut a = hub.connect("edge-1/a").await;
    let bag = format!("x={escaped}&{escaped}=1&%24.mid={escaped}");
    publish(&mut a, &output("a", escaped, &bag), b"x").await;
    for name in [&format!("a\n{forged}"), "\u{1b}[31mred"] {
        let hello = Hello {
            client_id: name.to_owned(),
            username: Some(format!("{IOTHUB}/{name}/?api-version=2021-04-12")),
            password: Some(format!("\n{forged}")),
            ..Hello::default()
        };
        let mut client = Client::tcp(hub.tcp()).await.unwrap();
        client.connect(&hello).await.unwrap_err();
    }
    // No topic may have a control character.
    let topic = format!("x\n{forged}\u{1b}[31m");
    let length = topic.len() as u8;
    let head = [0x30, 2 + length, 0, length];
    a.send_bytes(&[&head, topic.as_bytes()].concat())
        .await
        .unwrap();
    closed(&mut a).await;
    hub.until("the end is logged", |hub| {
        hub.log_text().contains("client disconnected")
    });
    let log = hub.log_text();
    assert!(
        !log.lines().any(|line| line.starts_with("2026-01-01")),
        "a forged line"
    );
    assert!(!log.contains('\u{1b}'), "an escape sequence");
}

#[tokio::test]
async fn an_interrupt_drains_and_ends_with_0() {
    let setup = setup();
    let hub = setup.start();
    let mut a = hub.connect("edge-1/a").await;
    a.send(&FromClient::PingReq).await.unwrap();
    assert_eq!(receive(&mut a).await.unwrap(), Packet::PingResp);
    let pid = hub.child.id().to_string();
    let sent = Command::new("kill").args(["-INT", &pid]).status().unwrap();
    assert!(sent.success());
    closed(&mut a).await;
    let mut hub = hub;
    let code = hub.child.wait().unwrap().code();
    assert_eq!(code, Some(0));
    assert!(hub.log_text().contains("shutting down"));
}

#[test]
fn the_ready_line_names_every_listener() {
    let setup = setup();
    let mut child = Command::new(BINARY)
        .args([
            "run",
            "--config",
            setup.path("edgehub.toml").to_str().unwrap(),
        ])
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let stdout = child.stdout.as_mut().unwrap();
    BufReader::new(stdout).read_line(&mut line).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    let ready: Value = serde_json::from_str(&line).unwrap();
    assert_eq!(ready["event"], "ready");
    let listeners = ready["listeners"].as_array().unwrap();
    let names: Vec<_> = listeners
        .iter()
        .map(|one| one["transport"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["tls", "tcp", "http"]);
    for one in listeners {
        let address = one["address"].as_str().unwrap();
        assert!(!address.ends_with(":0"), "{address}");
    }
    // Relative paths are relative to the file, not to where the hub was started.
    assert!(setup.path("data").is_dir() && setup.path("identities.json").exists());
}
