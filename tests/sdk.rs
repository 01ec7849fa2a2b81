//! Microsoft's own module SDKs against the hub, end to end over TLS: the programs in `tests/sdk`
//! use the unmodified Python and Node packages. See `tests/sdk/module.py` for how they are driven.

// The hubs under test share the SDKs' constant port on loopback addresses of their own.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

#[path = "sdk/hub.rs"]
mod hub;
#[path = "sdk/install.rs"]
mod install;
#[path = "sdk/messages.rs"]
mod messages;
#[path = "sdk/module.rs"]
mod module;
#[path = "sdk/process.rs"]
mod process;

use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use hub::{GATEWAY, Hub, connection_field, with_key};
use messages::{Machine, assert_same, awkward, end, received_as};
use module::{Module, Sdk};
use process::Process;

#[test]
fn python_to_python() {
    carries_everything(Sdk::Python, Sdk::Python);
}

#[test]
fn node_to_node() {
    carries_everything(Sdk::Node, Sdk::Node);
}

#[test]
fn python_to_node() {
    carries_everything(Sdk::Python, Sdk::Node);
}

#[test]
fn node_to_python() {
    carries_everything(Sdk::Node, Sdk::Python);
}

/// A thousand messages from an output to an input: all, in order, each as it was sent.
fn carries_everything(from: Sdk, to: Sdk) {
    let hub = Hub::start(json!({ "one": route_to("receiver", "in") }), json!({}));
    let mut sender = Module::connect(from, &hub, "sender");
    let mut receiver = Module::connect(to, &hub, "receiver");
    receiver.listen();

    let messages: Vec<Value> = (0..1000).map(awkward).chain([end()]).collect();
    let begin = Instant::now();
    sender.send("out", &messages);
    let sent = begin.elapsed();
    let received = receiver.messages_to_end(&["in"]);
    println!(
        "{from:?} to {to:?}: acknowledged in {sent:?}, delivered in {:?}",
        begin.elapsed()
    );

    assert_same(&received_as(&messages, "in", "sender"), &received);
}

#[test]
fn conditional_routes_python() {
    delivers_subsets(Sdk::Python);
}

#[test]
fn conditional_routes_node() {
    delivers_subsets(Sdk::Node);
}

/// A condition on a property, on a system property and on the body: each input gets its subset.
fn delivers_subsets(sdk: Sdk) {
    let inputs = ["urgent", "inspected", "hot"];
    let routes = json!({
        "property": "FROM /messages/modules/sender/outputs/out WHERE level = 'high' \
            INTO BrokeredEndpoint(\"/modules/receiver/inputs/urgent\")",
        "system": "FROM /messages/modules/sender/outputs/* WHERE $userId = 'inspector' \
            INTO BrokeredEndpoint(\"/modules/receiver/inputs/inspected\")",
        "body": "FROM /messages/modules/sender/* WHERE $body.machine.temperature > 70 \
            INTO BrokeredEndpoint(\"/modules/receiver/inputs/hot\")",
    });
    let hub = Hub::start(routes, json!({}));
    let mut sender = Module::connect(sdk, &hub, "sender");
    let mut receiver = Module::connect(sdk, &hub, "receiver");
    receiver.listen();

    let machines = Machine::all();
    let messages: Vec<Value> = machines
        .iter()
        .map(Machine::message)
        .chain([end()])
        .collect();
    sender.send("out", &messages);
    let received = receiver.messages_to_end(&inputs);

    let subset = |matches: fn(&Machine) -> bool| -> Vec<Value> {
        machines
            .iter()
            .filter(|machine| matches(machine))
            .map(Machine::message)
            .chain([end()])
            .collect()
    };
    let subsets = [
        subset(|machine| machine.high),
        subset(|machine| machine.inspected),
        subset(|machine| machine.json && machine.temperature > 70),
    ];
    for (input, expected) in inputs.into_iter().zip(subsets) {
        let got: Vec<Value> = received
            .iter()
            .filter(|m| m["input"] == input)
            .cloned()
            .collect();
        assert_same(&received_as(&expected, input, "sender"), &got);
    }
}

#[test]
fn restart_python() {
    survives_restart(Sdk::Python);
}

#[test]
fn restart_node() {
    survives_restart(Sdk::Node);
}

/// The hub is killed and started again: clients come back by themselves and messages flow. The
/// Python client does not subscribe again, so the hub must have kept its subscriptions, and asks
/// for its twin: the answer goes to one of them.
fn survives_restart(sdk: Sdk) {
    let routes = json!({ "one": route_to("receiver", "in") });
    let mut hub = Hub::start(routes, json!({ "receiver": { "interval": 5 } }));
    let mut sender = Module::connect(sdk, &hub, "sender");
    let mut receiver = Module::connect(sdk, &hub, "receiver");
    sender.listen(); // the Node client reconnects by itself only when it waits for something
    receiver.listen();
    receiver.ask(json!({ "cmd": "get_twin" })).expect("a twin");
    receiver.ask(json!({ "cmd": "watch" })).expect("watching");
    let early = [awkward(0), awkward(1)];
    sender.send("out", &early);
    let before = receiver.messages(early.len());
    assert_same(&received_as(&early, "in", "sender"), &before);

    hub.kill();
    if sdk == Sdk::Python {
        sender.connection(false); // the Node client tells only of those that it gives up
        receiver.connection(false);
    }
    hub.launch();
    let begin = Instant::now();
    sender.connection(true);
    receiver.connection(true);
    println!("{sdk:?} reconnected in {:?}", begin.elapsed());
    if sdk == Sdk::Python {
        assert_eq!(receiver.desired()["interval"], 5);
    }

    // A message whose acknowledgement the kill swallowed may come again: at least once.
    let messages: Vec<Value> = (2..100).map(awkward).chain([end()]).collect();
    sender.send("out", &messages);
    let mut after = receiver.messages_to_end(&["in"]);
    while after.first().is_some_and(|first| before.contains(first)) {
        after.remove(0);
    }
    assert_same(&received_as(&messages, "in", "sender"), &after);
}

#[test]
fn backlog_python() {
    delivers_backlog(Sdk::Python);
}

#[test]
fn backlog_node() {
    delivers_backlog(Sdk::Node);
}

/// Messages for two modules that are away, one of which never was there, survive a crash of the
/// hub and come in their order: to the one at once, to the other when it subscribes.
fn delivers_backlog(sdk: Sdk) {
    let routes = json!({ "one": route_to("receiver", "in"), "two": route_to("late", "in") });
    let mut hub = Hub::start(routes, json!({ "late": {} }));
    let mut sender = Module::connect(sdk, &hub, "sender");
    let mut receiver = Module::connect(sdk, &hub, "receiver");
    receiver.listen();
    let early = [awkward(0), awkward(1)];
    sender.send("out", &early);
    let before = receiver.messages(early.len());
    assert_same(&received_as(&early, "in", "sender"), &before);
    drop(receiver);

    let messages: Vec<Value> = (2..100).map(awkward).chain([end()]).collect();
    sender.send("out", &messages);
    drop(sender);
    hub.kill();
    hub.launch();

    // The handler is there before the connection, which this makes: its session was kept.
    let mut receiver = Module::start(sdk, &hub, &hub.connection_string("receiver"));
    receiver.listen();
    let mut after = receiver.messages_to_end(&["in"]);
    // A message whose acknowledgement the kill swallowed may come again: at least once.
    while after.first().is_some_and(|first| before.contains(first)) {
        after.remove(0);
    }
    assert_same(&received_as(&messages, "in", "sender"), &after);

    let mut late = Module::connect(sdk, &hub, "late");
    late.listen();
    let all = [&early[..], &messages].concat();
    assert_same(
        &received_as(&all, "in", "sender"),
        &late.messages_to_end(&["in"]),
    );
}

#[test]
fn twin_python() {
    answers_twin(Sdk::Python);
}

#[test]
fn twin_node() {
    answers_twin(Sdk::Node);
}

/// Reading a twin gives the manifest's desired properties; writing one, which this version does not
/// do, comes back to the caller and leaves the client working.
fn answers_twin(sdk: Sdk) {
    let wanted = json!({ "interval": 5, "unit": "°C", "limits": { "low": -1.5, "on": true } });
    let hub = Hub::start(json!({}), json!({ "reader": wanted }));
    let mut reader = Module::connect(sdk, &hub, "reader");

    for _ in 0..2 {
        let mut twin = reader.ask(json!({ "cmd": "get_twin" })).expect("a twin");
        let version = twin["desired"].as_object_mut().unwrap().remove("$version");
        assert!(
            version.is_some_and(|version| version.is_u64()),
            "no desired.$version"
        );
        assert_eq!(twin["desired"], wanted);

        let patched = reader.ask(json!({ "cmd": "report", "patch": { "seen": 5 } }));
        // Python reads the status in the topic, Node the code in the body.
        assert!(patched.is_err(), "the patch seems to have worked");
    }
}

#[test]
fn wrong_key_python() {
    refuses_wrong_key(Sdk::Python, "CredentialError");
}

#[test]
fn wrong_key_node() {
    refuses_wrong_key(Sdk::Node, "UnauthorizedError");
}

/// A wrong key is refused at once and by name, the right one is not locked out by it, and neither
/// is written to the log.
fn refuses_wrong_key(sdk: Sdk, error: &str) {
    let hub = Hub::start(json!({}), json!({ "module": {} }));
    let right = hub.connection_string("module");
    let wrong = with_key(&right, "d3Jvbmcga2V5IHdyb25nIGtleSB3cm9uZyBrZXkgISE=");

    for _ in 0..3 {
        let begin = Instant::now();
        let refusal = Module::start(sdk, &hub, &wrong).ask(json!({ "cmd": "connect" }));
        let (name, text) = refusal.expect_err("the wrong key was accepted");
        assert_eq!(name, error, "{text}");
        let spent = begin.elapsed();
        assert!(spent < Duration::from_secs(10), "{spent:?} for a refusal");
    }
    Module::start(sdk, &hub, &right)
        .ask(json!({ "cmd": "connect" }))
        .expect("the right key");

    let log = hub.log();
    for connection in [&right, &wrong] {
        let key = connection_field(connection, "SharedAccessKey");
        assert!(!log.contains(key), "a key is in the log");
    }
    assert!(!log.contains("sig="), "a token is in the log");
}

/// A common client library, over MQTT 5: all that goes beside the topic arrives.
#[test]
fn paho_over_mqtt_5() {
    const COUNT: usize = 200;
    let hub = Hub::start(json!({ "one": route_to("receiver", "in") }), json!({}));
    let mut command = Command::new(install::python());
    command
        .arg(install::source("mqtt5.py"))
        .args([GATEWAY, &hub.address().to_string()])
        .arg(hub.path("certs/ca.pem"))
        .arg(COUNT.to_string())
        .env("SENDER", hub.connection_string("sender"))
        .env("RECEIVER", hub.connection_string("receiver"));
    let patience = Duration::from_secs(60);
    let printed = Process::run("paho", &mut command, &hub.path("paho.log"), patience);
    let arrived: Vec<(String, String)> = serde_json::from_str(&printed).unwrap();
    assert_eq!(arrived.len(), COUNT);
    for (number, (bag, body)) in arrived.iter().enumerate() {
        assert_eq!(*body, format!("{{\"number\": {number}}}"));
        for pair in [
            &format!("gr%C3%B6%C3%9Fe%20%26%20co={number}%2F%C3%A4%3D%C3%A9"),
            &format!("%24.cid=c{number}"),
            "%24.ct=application%2Fjson",
            "%24.cmid=sender",
        ] {
            assert!(bag.split('&').any(|one| one == pair), "{pair} in {bag}");
        }
    }
}

fn route_to(module: &str, input: &str) -> String {
    format!(
        "FROM /messages/modules/sender/outputs/out \
         INTO BrokeredEndpoint(\"/modules/{module}/inputs/{input}\")"
    )
}
