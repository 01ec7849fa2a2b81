//! MQTT clients as they are, on plain topics, over every transport and in both versions.
#![cfg(target_os = "linux")]
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing
)]

mod common;
#[path = "sdk/install.rs"]
mod install;
#[path = "sdk/process.rs"]
#[allow(dead_code)]
mod process;

use std::process::Command;

use serde_json::{Value, json};

use common::{Hub, Setup, TRANSPORTS};
use install::{node_modules, python, python_with, source};

const COUNT: usize = 20;
const VERSIONS: [&str; 2] = ["3.1.1", "5"];

/// What a receiver of QoS 2 gets: the retained message, and all in the order of each QoS. One of
/// QoS 2 is there for the program only once it is released.
fn check(arrived: &Value, what: &str) {
    let mut arrived = arrived.as_array().unwrap().clone();
    let is_retained = |one: &Value| one[0] == "in/retained";
    let at = arrived.iter().position(is_retained).expect(what);
    let retained = arrived.remove(at);
    assert_eq!(retained, json!(["in/retained", "kept", 2, true]), "{what}");
    for qos in 0..3 {
        let own: Vec<_> = arrived.iter().filter(|one| one[2] == qos).collect();
        let expected: Vec<_> = (0..COUNT)
            .map(|number| json!([format!("in/{qos}"), format!("{number} ä"), qos, false]))
            .collect();
        assert_eq!(own, expected.iter().collect::<Vec<_>>(), "{what}");
    }
}

/// Runs a program for each transport and version.
fn everywhere(program: impl Fn() -> Command) {
    let setup = Setup::open_everywhere("{}", &[]);
    let hub = setup.start();
    let ca = setup.path("certs/ca.pem");
    for transport in TRANSPORTS {
        for version in VERSIONS {
            let port = hub.address(transport).port().to_string();
            let mut command = program();
            command.args([transport, &port]).arg(&ca);
            command.args([version, &COUNT.to_string()]);
            let out = command.output().unwrap();
            let error = String::from_utf8_lossy(&out.stderr);
            assert!(out.status.success(), "{transport} {version}: {error}");
            let arrived: Value = serde_json::from_slice(&out.stdout).unwrap();
            check(&arrived, &format!("{transport} {version}"));
        }
    }
}

#[test]
fn paho_1() {
    let python = python();
    everywhere(|| {
        let mut command = Command::new(&python);
        command.arg(source("plain.py"));
        command
    });
}

#[test]
fn paho_2() {
    let python = python_with("paho2", "requirements-paho2.txt");
    everywhere(|| {
        let mut command = Command::new(&python);
        command.arg(source("plain.py"));
        command
    });
}

#[test]
fn mqtt_js() {
    let modules = node_modules();
    everywhere(|| {
        let mut command = Command::new("node");
        command.arg(source("plain.js")).env("NODE_PATH", &modules);
        command
    });
}

#[test]
fn mosquitto_clients() {
    let setup = Setup::open_everywhere("{}", &[]);
    let hub = setup.start();
    let ca = setup.path("certs/ca.pem");
    let ca = ca.to_str().unwrap();
    for transport in ["tcp", "tls"] {
        for version in ["mqttv311", "mqttv5"] {
            for qos in ["0", "1", "2"] {
                let port = hub.address(transport).port().to_string();
                let common = ["-h", "localhost", "-p", &port, "-V", version, "-q", qos];
                let tls = ["--cafile", ca];
                let tls = if transport == "tls" { &tls[..] } else { &[] };
                let publish = |topic: &str, more: &[&str]| {
                    let mut command = Command::new("mosquitto_pub");
                    command.args(common).args(tls).args(more);
                    let status = command.args(["-t", topic]).status().unwrap();
                    assert!(status.success(), "{transport} {version} {qos}");
                };
                publish("kept", &["-r", "-m", "retained"]);
                let subscriber = Command::new("mosquitto_sub")
                    .args(common)
                    .args(tls)
                    .args(["-t", "+", "-C", "2", "-W", "20", "-F", "%t %q %r %p"])
                    .stdout(std::process::Stdio::piped())
                    .spawn()
                    .unwrap();
                wait_for_subscription(&hub);
                publish("now", &["-m", "live"]);
                let out = subscriber.wait_with_output().unwrap();
                let text = String::from_utf8(out.stdout).unwrap();
                let expected = format!("kept {qos} 1 retained\nnow {qos} 0 live\n");
                assert_eq!(text, expected, "{transport} {version} {qos}");
            }
        }
    }
}

fn wait_for_subscription(hub: &Hub) {
    hub.until("it has subscribed", |hub| {
        let clients = &hub.status()["clients"];
        let clients = clients.as_array().unwrap();
        clients.len() == 1 && hub.metric("edgehub_subscriptions", &[]) == 1.0
    });
}
