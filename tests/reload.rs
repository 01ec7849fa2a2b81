//! Nothing needs a restart: files change under a running hub, and bad ones change nothing.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing
)]

mod common;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::Command;

use edgehub::client::{Hello, tls_config};
use edgehub::mqtt::SubAckCode;
use ring::digest;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use serde_json::{Value, json};

use common::{
    DEVICE, Hub, IOTHUB, Setup, certs, closed, edgehub, inputs, message, output, publish, replace,
};

const TO_IN: &str = concat!(
    r#"{"r":"FROM /messages/modules/a/outputs/out "#,
    r#"INTO BrokeredEndpoint(\"/modules/b/inputs/in\")"}"#
);
const TO_OTHER: &str = concat!(
    r#"{"r":"FROM /messages/modules/a/outputs/out "#,
    r#"INTO BrokeredEndpoint(\"/modules/b/inputs/other\")"}"#
);

/// A hub whose log stays empty: the log lies in the watched folder, and would stir the watcher.
fn quiet_setup() -> Setup {
    let mut setup = Setup::new(TO_IN, &["a", "b"]);
    setup.extra = "[log]\nlevel = \"error\"\n".to_owned();
    setup
}

fn reloads(hub: &Hub, what: &str, result: &str) -> u64 {
    let (what, result) = (format!("what=\"{what}\""), format!("result=\"{result}\""));
    hub.metric("edgehub_reloads_total", &[&what, &result]) as u64
}

/// Waits for so many reloads of a kind.
fn reloaded(hub: &Hub, what: &str, result: &str, count: u64) {
    let text = format!("{count} reloads of {what}, {result}");
    hub.until(&text, |hub| reloads(hub, what, result) >= count);
}

/// Modules a and b, connected; b is subscribed to its inputs.
async fn pair(hub: &Hub) -> (edgehub::client::Client, edgehub::client::Client) {
    let mut b = hub.connect_tls("edge-1/b").await;
    b.subscribe(&inputs("b")).await.unwrap();
    (hub.connect_tls("edge-1/a").await, b)
}

/// One message from a, and the input at which b gets it.
async fn passes(
    pair: &mut (edgehub::client::Client, edgehub::client::Client),
    body: &str,
) -> String {
    publish(&mut pair.0, &output("a", "out", ""), body.as_bytes()).await;
    let (input, received) = message(&mut pair.1).await;
    assert_eq!(String::from_utf8_lossy(&received), body);
    input
}

/// Waits for a line in the log, which may come after what it tells of was counted.
fn says(hub: &Hub, level: &str, parts: &[&str]) {
    hub.until(&format!("{level} {parts:?}"), |hub| {
        logged(hub, level, parts)
    });
}

fn logged(hub: &Hub, level: &str, parts: &[&str]) -> bool {
    let log = hub.log_text();
    let mut lines = log.lines().filter(|line| line.contains(level));
    lines.any(|line| parts.iter().all(|part| line.contains(part)))
}

#[tokio::test]
async fn a_new_manifest_counts_and_connections_stay() {
    let setup = Setup::new(TO_IN, &["a", "b"]);
    let hub = setup.start();
    let mut pair = pair(&hub).await;
    assert_eq!(passes(&mut pair, "1").await, "in");
    setup.write_manifest(TO_OTHER, &["a", "b", "added"], 7200);
    reloaded(&hub, "manifest", "ok", 1);
    assert_eq!(passes(&mut pair, "2").await, "other");
    // The new module has keys by now.
    hub.until("the added module has an identity", |hub| {
        let path = hub.dir.join("identities.json");
        fs::read_to_string(path).unwrap().contains("\"added\"")
    });
    reloaded(&hub, "identities", "ok", 1);
    hub.connect("edge-1/added").await;
    let mode = fs::metadata(setup.path("identities.json"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(
        hub.metric("edgehub_client_connect_success_total", &[]) as u64,
        3
    );
    let status = hub.status();
    assert_eq!(status["configuration"]["code"], 200);
    assert_eq!(status["configuration"]["generation"], 2);
}

#[tokio::test]
async fn a_bad_manifest_changes_nothing() {
    let setup = Setup::new(TO_IN, &["a", "b"]);
    let hub = setup.start();
    let mut pair = pair(&hub).await;
    let good = fs::read_to_string(setup.path("manifest.json")).unwrap();
    let other = good.replace("inputs/in", "inputs/other");
    for (number, bad) in [
        "",
        "{",
        "[]",
        "no JSON at all",
        &other.replace("}}}}", "}}}"),
        &other.replacen(
            "\"schemaVersion\":\"1.1\",\"routes\"",
            "\"schemaVersion\":\"9.0\",\"routes\"",
            1,
        ),
    ]
    .iter()
    .enumerate()
    {
        replace(&setup.path("manifest.json"), bad);
        reloaded(&hub, "manifest", "refused", number as u64 + 1);
        assert_eq!(passes(&mut pair, bad).await, "in", "{bad}");
    }
    says(&hub, "ERROR", &["manifest.json:1:2", "what=\"manifest\""]);
    says(
        &hub,
        "ERROR",
        &["manifest.json", "the old version stays in force"],
    );
    assert_eq!(reloads(&hub, "manifest", "ok"), 0);
    fs::remove_file(setup.path("manifest.json")).unwrap();
    reloaded(&hub, "manifest", "refused", 7);
    assert_eq!(passes(&mut pair, "gone").await, "in");
    replace(&setup.path("manifest.json"), &other);
    reloaded(&hub, "manifest", "ok", 1);
    assert_eq!(passes(&mut pair, "good").await, "other");
}

/// Three routes of which the second, on a line of its own, is bad.
fn with_bad_route(good: &str, bad: &str) -> String {
    let to = |input: &str| format!(r#"INTO BrokeredEndpoint(\"/modules/b/inputs/{input}\")"#);
    format!(
        "{{\n\"first\":\"FROM /messages/modules/a/outputs/out {}\",\n  \"second\":\"FROM \
         /messages/* WHERE {bad} {}\",\n\"third\":\"FROM /messages/modules/a/* {}\"}}",
        to(good),
        to("never"),
        to("third")
    )
}

/// What `/status` says about the second route, which must be bad at its own place.
fn problem_of_second(hub: &Hub, manifest: &str) {
    let configuration = hub.status()["configuration"].clone();
    assert_eq!(configuration["code"], 400, "{configuration}");
    let problems = configuration["problems"].as_array().unwrap();
    assert!(!problems.is_empty(), "{configuration}");
    let lines = manifest.lines().enumerate();
    let mut lines = lines.filter(|(_, line)| line.contains("\"second\""));
    let (line, text) = lines.next().unwrap();
    for problem in problems {
        let problem = problem.as_str().unwrap();
        assert!(problem.contains("second"), "{problem}");
        let (_, place) = problem.split_once("manifest.json:").expect(problem);
        let mut place = place.split(':');
        let mut number = || {
            place
                .next()
                .unwrap()
                .trim()
                .parse::<usize>()
                .expect(problem)
        };
        assert_eq!(number(), line + 1, "{problem}");
        let (from, to) = (text.find("WHERE").unwrap(), text.find("Brokered").unwrap());
        assert!((from..=to).contains(&number()), "{problem}\n{text}");
    }
}

#[tokio::test]
async fn one_bad_route_leaves_the_others_running() {
    let routes = with_bad_route("in", "a = = b");
    let setup = Setup::new(&routes, &["a", "b"]);
    let hub = setup.start();
    let manifest = fs::read_to_string(setup.path("manifest.json")).unwrap();
    problem_of_second(&hub, &manifest);
    let mut pair = pair(&hub).await;
    let mut both = vec![passes(&mut pair, "1").await, message(&mut pair.1).await.0];
    both.sort();
    assert_eq!(both, ["in", "third"]);
    for (number, bad) in ["a ==", "unknown_function(a)", "'open"].iter().enumerate() {
        let good = format!("in{number}");
        setup.write_manifest(&with_bad_route(&good, bad), &["a", "b"], 7200);
        hub.until("the new routes are shown", |hub| {
            hub.status()["routes"].to_string().contains(&good)
        });
        let manifest = fs::read_to_string(setup.path("manifest.json")).unwrap();
        problem_of_second(&hub, &manifest);
        let mut both = vec![passes(&mut pair, "2").await, message(&mut pair.1).await.0];
        both.sort();
        assert_eq!(both, [good.as_str(), "third"]);
        says(&hub, "ERROR", &["manifest.json:", "second"]);
    }
    setup.write_manifest(&with_bad_route("in", "a = b"), &["a", "b"], 7200);
    hub.until("all is well", |hub| {
        hub.status()["configuration"]["code"] == 200
    });
}

/// The certificate that the hub shows in a new handshake.
async fn shown(hub: &Hub, setup: &Setup) -> Vec<u8> {
    let ca = fs::read(setup.path("certs/ca.pem")).unwrap();
    let config = tls_config(&ca, None).unwrap();
    let socket = tokio::net::TcpStream::connect(hub.address("tls"))
        .await
        .unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let connector = tokio_rustls::TlsConnector::from(config);
    let stream = connector.connect(name, socket).await.unwrap();
    stream.get_ref().1.peer_certificates().unwrap()[0].to_vec()
}

fn in_file(setup: &Setup) -> Vec<u8> {
    let path = setup.path("certs/server.pem");
    CertificateDer::from_pem_file(path).unwrap().to_vec()
}

#[tokio::test]
async fn a_renewed_certificate_is_shown_and_connections_stay() {
    let setup = Setup::new(TO_IN, &["a", "b"]);
    let hub = setup.start();
    let mut pair = pair(&hub).await;
    let old = shown(&hub, &setup).await;
    assert_eq!(old, in_file(&setup));
    certs(&setup.path("certs"), &["localhost"], &[]);
    let new = in_file(&setup);
    assert_ne!(old, new);
    reloaded(&hub, "certificate", "ok", 1);
    let started = std::time::Instant::now();
    while shown(&hub, &setup).await != new {
        assert!(
            started.elapsed() < common::LIMIT,
            "still the old certificate"
        );
    }
    assert_eq!(passes(&mut pair, "on the old connection").await, "in");
    hub.connect_tls("edge-1/a").await;
    // A key that is not the certificate's: the pair in use stays.
    let (key, other) = (setup.path("certs/server.key"), setup.path("certs/ca.key"));
    replace(&key, &fs::read_to_string(other).unwrap());
    reloaded(&hub, "certificate", "refused", 1);
    says(
        &hub,
        "ERROR",
        &["server.pem", "server.key", "do not go together"],
    );
    replace(&setup.path("certs/server.pem"), "no certificate");
    reloaded(&hub, "certificate", "refused", 2);
    assert_eq!(shown(&hub, &setup).await, new);
}

#[tokio::test]
async fn limits_names_and_log_level_follow_the_configuration() {
    let mut setup = Setup::new(TO_IN, &["a", "b"]);
    let hub = setup.start();
    let mut pair = pair(&hub).await;
    let unrouted = output("a", "unrouted", "");
    publish(&mut pair.0, &unrouted, &[b'x'; 2000]).await;
    assert!(!logged(&hub, "DEBUG", &[""]));
    setup.extra = "[limits]\nmax_message_bytes = 1500\nmax_subscriptions = 1\n\
                   [log]\nlevel = \"debug\"\n"
        .to_owned();
    setup.write_config();
    reloaded(&hub, "config", "ok", 1);
    publish(&mut pair.0, &unrouted, &[b'x'; 1000]).await;
    hub.until("debug lines", |hub| {
        logged(hub, "DEBUG", &["edgehub::hub::route"])
    });
    let refused = pair.1.subscribe("$iothub/methods/POST/#").await.unwrap();
    assert_eq!(refused, SubAckCode::Failure);
    let mut large = pair.0;
    let qos = edgehub::mqtt::QoS::AtLeastOnce;
    large.publish(&unrouted, qos, &[b'x'; 2000]).await.unwrap();
    closed(&mut large).await;
    assert_eq!(
        hub.metric("edgehub_messages_dropped_total", &["too_large"]) as u64,
        1
    );
    // Back to fewer lines; b, whose tokens are for the old name, has to come again.
    let text = fs::read_to_string(setup.path("edgehub.toml")).unwrap();
    let text = text
        .replace("\"debug\"", "\"warn\"")
        .replace(IOTHUB, "new.example");
    replace(&setup.path("edgehub.toml"), &text);
    reloaded(&hub, "config", "ok", 2);
    closed(&mut pair.1).await;
    let mut old = hub.tls(None).await.unwrap();
    old.connect(&hub.hello("edge-1/b")).await.unwrap_err();
    let lines = hub.log_text().lines().count();
    let printed = edgehub(
        setup.dir.path(),
        &[
            "token",
            "--config",
            "edgehub.toml",
            "--identity",
            "edge-1/b",
        ],
    );
    let mut hello = hub.hello("edge-1/b");
    hello.password = Some(String::from_utf8(printed.stdout).unwrap().trim().to_owned());
    hub.tls(None).await.unwrap().connect(&hello).await.unwrap();
    let log = hub.log_text();
    let more: Vec<_> = log
        .lines()
        .skip(lines)
        .filter(|line| line.contains("INFO"))
        .collect();
    assert!(more.is_empty(), "{more:?}");
}

#[tokio::test]
async fn a_bad_configuration_changes_nothing() {
    let setup = Setup::new(TO_IN, &["a", "b"]);
    let hub = setup.start();
    let mut pair = pair(&hub).await;
    let good = fs::read_to_string(setup.path("edgehub.toml")).unwrap();
    let bind = hub.tcp().to_string();
    let cases = [
        (good.replace("device_id", "devise_id"), "device_id"),
        (
            format!("{good}[limits]\nmax_subscriptions = 0\n"),
            "max_subscriptions",
        ),
        (format!("{good}[log]\nlevel = \"loud\"\n"), "level"),
        ("device_id = ".to_owned(), "edgehub.toml:1:"),
        (
            good.replace(DEVICE, "edge-2"),
            "`device_id` changed, which needs a restart",
        ),
        (
            format!("data_dir = \"other\"\n{good}"),
            "`data_dir` changed, which needs a restart",
        ),
        (good.replace("127.0.0.1:0", &bind), "needs a restart"),
        (
            format!("{good}[server]\nworkers = 2\n"),
            "`[server]` changed, which needs a restart",
        ),
        (
            format!("{good}[store]\nsync = \"memory\"\n"),
            "needs a restart",
        ),
        (
            good.replace(DEVICE, "edge-2") + "[limits]\nmax_subscriptions = 1\n",
            "`device_id` changed",
        ),
    ];
    for (number, (text, reason)) in cases.iter().enumerate() {
        replace(&setup.path("edgehub.toml"), text);
        reloaded(&hub, "config", "refused", number as u64 + 1);
        says(&hub, "ERROR", &["what=\"config\"", reason]);
    }
    assert_eq!(reloads(&hub, "config", "ok"), 0);
    let granted = pair.1.subscribe("$iothub/methods/POST/#").await.unwrap();
    assert_ne!(granted, SubAckCode::Failure);
    assert_eq!(passes(&mut pair, "as before").await, "in");
    assert_eq!(hub.status()["deviceId"], DEVICE);
}

#[tokio::test]
async fn a_new_log_format_takes_effect_or_is_refused() {
    let mut setup = Setup::new(TO_IN, &["a", "b"]);
    let hub = setup.start();
    hub.connect("edge-1/b").await;
    setup.extra = "[log]\nformat = \"json\"\n".to_owned();
    setup.write_config();
    hub.until("the configuration was read", |hub| {
        reloads(hub, "config", "ok") + reloads(hub, "config", "refused") > 0
    });
    hub.connect("edge-1/a").await;
    hub.until("JSON lines, or the word that it needs a restart", |hub| {
        let log = hub.log_text();
        let json = log.lines().last().is_some_and(|line| line.starts_with('{'));
        json || log.contains("needs a restart")
    });
}

#[tokio::test]
async fn files_may_be_rewritten_in_place() {
    let setup = Setup::new(TO_IN, &["a", "b"]);
    let hub = setup.start();
    let mut pair = pair(&hub).await;
    let manifest = setup.path("manifest.json");
    let text = fs::read_to_string(&manifest).unwrap();
    fs::write(&manifest, text.replace("inputs/in", "inputs/other")).unwrap();
    reloaded(&hub, "manifest", "ok", 1);
    assert_eq!(passes(&mut pair, "1").await, "other");
    let identities = setup.path("identities.json");
    let mut registry: Value =
        serde_json::from_str(&fs::read_to_string(&identities).unwrap()).unwrap();
    let entries = registry["identities"].as_array_mut().unwrap();
    entries.retain(|entry| entry["moduleId"] != "b");
    fs::write(&identities, registry.to_string()).unwrap();
    closed(&mut pair.1).await;
    let config = setup.path("edgehub.toml");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text + "[limits]\nmax_subscriptions = 1\n").unwrap();
    reloaded(&hub, "config", "ok", 1);
    publish(&mut pair.0, &output("a", "unrouted", ""), b"stays").await;
}

#[tokio::test]
async fn bad_identities_change_nothing() {
    let setup = Setup::new(TO_IN, &["a", "b"]);
    let hub = setup.start();
    let mut pair = pair(&hub).await;
    let path = setup.path("identities.json");
    let good = fs::read_to_string(&path).unwrap();
    let bad = good.replacen("\"sas\"", "\"magic\"", 1);
    for (number, bad) in ["{", "{}", "[1]", &bad].iter().enumerate() {
        // Read beforehand: the file does not hold it now.
        let hello = hub.hello("edge-1/a");
        replace(&path, bad);
        reloaded(&hub, "identities", "refused", number as u64 + 1);
        assert_eq!(passes(&mut pair, bad).await, "in", "{bad}");
        let mut again = hub.tls(None).await.unwrap();
        again.connect(&hello).await.unwrap();
        pair.0 = again;
        replace(&path, &good);
        reloaded(&hub, "identities", "ok", number as u64 + 1);
    }
    says(&hub, "ERROR", &["identities.json", "what=\"identities\""]);
}

#[tokio::test]
async fn a_manifest_refused_for_bad_identities_counts_once_they_are_good() {
    let setup = Setup::new(TO_IN, &["a", "b"]);
    let hub = setup.start();
    let mut pair = pair(&hub).await;
    let path = setup.path("identities.json");
    let good = fs::read_to_string(&path).unwrap();
    replace(&path, "{");
    reloaded(&hub, "identities", "refused", 1);
    setup.write_manifest(TO_OTHER, &["a", "b"], 7200);
    hub.until("the manifest was read", |hub| {
        reloads(hub, "manifest", "ok") + reloads(hub, "manifest", "refused") > 0
    });
    replace(&path, &good);
    reloaded(&hub, "identities", "ok", 1);
    reloaded(&hub, "manifest", "ok", 1);
    assert_eq!(passes(&mut pair, "1").await, "other");
}

#[tokio::test]
async fn files_in_another_folder_are_watched_from_then_on() {
    let setup = quiet_setup();
    let hub = setup.start();
    let mut pair = pair(&hub).await;
    let moved = setup.path("moved");
    fs::create_dir(&moved).unwrap();
    let manifest = fs::read_to_string(setup.path("manifest.json")).unwrap();
    replace(
        &moved.join("manifest.json"),
        &manifest.replace("inputs/in", "inputs/moved"),
    );
    let config = fs::read_to_string(setup.path("edgehub.toml")).unwrap();
    let config = config.replace("\"manifest.json\"", "\"moved/manifest.json\"");
    replace(&setup.path("edgehub.toml"), &config);
    reloaded(&hub, "manifest", "ok", 1);
    assert_eq!(passes(&mut pair, "1").await, "moved");
    replace(
        &moved.join("manifest.json"),
        &manifest.replace("inputs/in", "inputs/changed"),
    );
    hub.until("the change is noticed", |hub| {
        hub.status()["routes"].to_string().contains("changed")
    });
    assert_eq!(passes(&mut pair, "2").await, "changed");
}

fn hang_up(hub: &Hub) {
    let pid = hub.child.id().to_string();
    let sent = Command::new("kill").args(["-HUP", &pid]).status().unwrap();
    assert!(sent.success());
}

#[tokio::test]
async fn a_hang_up_reads_what_nobody_watches() {
    let setup = quiet_setup();
    // What a link leads to may change without any event in the folder of the link.
    let (link, target) = (setup.path("manifest.json"), setup.path("mounted/data.json"));
    fs::create_dir(setup.path("mounted")).unwrap();
    fs::rename(&link, &target).unwrap();
    symlink(&target, &link).unwrap();
    let hub = setup.start();
    let mut pair = pair(&hub).await;
    let text = fs::read_to_string(&target).unwrap();
    fs::write(&target, text.replace("inputs/in", "inputs/other")).unwrap();
    hang_up(&hub);
    reloaded(&hub, "manifest", "ok", 1);
    assert_eq!(passes(&mut pair, "1").await, "other");
    // Without a change nothing happens, and the hub stays.
    hang_up(&hub);
    assert_eq!(passes(&mut pair, "2").await, "other");
    assert_eq!(reloads(&hub, "manifest", "ok"), 1);
}

#[tokio::test]
async fn a_change_right_after_the_start_is_not_missed() {
    for _ in 0..5 {
        let setup = quiet_setup();
        setup.write_config();
        let text = fs::read_to_string(setup.path("manifest.json")).unwrap();
        fs::write(
            setup.path("next.json"),
            text.replace("inputs/in", "inputs/other"),
        )
        .unwrap();
        let hub = Hub::start(setup.dir.path());
        fs::rename(setup.path("next.json"), setup.path("manifest.json")).unwrap();
        hub.until("the change is noticed", |hub| {
            hub.status()["routes"].to_string().contains("inputs/other")
        });
    }
}

#[tokio::test]
async fn the_first_thumbprint_makes_the_hub_ask_for_certificates() {
    let setup = Setup::new(TO_IN, &["a", "b"]);
    certs(&setup.path("certs"), &["localhost"], &["edge-1/camera"]);
    setup.write_config();
    let config = fs::read_to_string(setup.path("edgehub.toml")).unwrap();
    let without = config.replace("client_ca = \"certs/ca.pem\"\n", "");
    assert_ne!(config, without);
    replace(&setup.path("edgehub.toml"), &without);
    let hub = Hub::start(setup.dir.path());
    hub.connect_tls("edge-1/a").await;
    let leaf = CertificateDer::from_pem_file(setup.path("certs/client-edge-1-camera.pem"));
    let digest = digest::digest(&digest::SHA256, &leaf.unwrap());
    let thumbprint: String = digest
        .as_ref()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let path = setup.path("identities.json");
    let mut registry: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    registry["identities"].as_array_mut().unwrap().push(json!({
        "deviceId": DEVICE, "moduleId": "camera", "authentication":
        { "type": "selfSigned", "x509Thumbprint": { "primaryThumbprint": thumbprint } } }));
    replace(&path, &registry.to_string());
    reloaded(&hub, "certificate", "ok", 1);
    let hello = Hello {
        client_id: "edge-1/camera".to_owned(),
        username: Some(format!("{IOTHUB}/edge-1/camera/?api-version=2021-04-12")),
        ..Hello::default()
    };
    let mut client = hub.tls(Some("client-edge-1-camera")).await.unwrap();
    client
        .connect(&Hello {
            clean_session: true,
            ..hello
        })
        .await
        .unwrap();
}

#[tokio::test]
async fn a_new_trust_bundle_counts_for_new_clients() {
    let setup = Setup::new(TO_IN, &["a", "b"]);
    let config = "edgehub.toml";
    setup.write_config();
    let add = [
        "identity",
        "add",
        "leaf-7",
        "--type",
        "certificate-authority",
    ];
    let added = edgehub(
        setup.dir.path(),
        &[&add[..], &["--config", config]].concat(),
    );
    assert!(added.status.success(), "{added:?}");
    let hub = setup.start();
    let foreign = setup.path("certs/foreign");
    certs(&foreign, &["localhost"], &["leaf-7"]);
    let hello = Hello {
        client_id: "leaf-7".to_owned(),
        username: Some(format!("{IOTHUB}/leaf-7/?api-version=2021-04-12")),
        clean_session: true,
        ..Hello::default()
    };
    let certificate = Some("foreign/client-leaf-7");
    let mut client = hub.tls(certificate).await.unwrap();
    client.connect(&hello).await.unwrap_err();
    let ca = setup.path("certs/ca.pem");
    let both = [&ca, &foreign.join("ca.pem")].map(|path| fs::read_to_string(path).unwrap());
    replace(&ca, &both.concat());
    reloaded(&hub, "certificate", "ok", 1);
    let mut client = hub.tls(certificate).await.unwrap();
    client.connect(&hello).await.unwrap();
}
