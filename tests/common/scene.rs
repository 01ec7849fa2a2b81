//! Who is there: routes between modules, receivers that listen or have left.

use std::path::Path;

use edgehub::client::{Client, Hello};
use serde_json::Value;

use super::{Hub, Setup, edgehub, inputs};

/// The routes of a manifest as JSON, from pairs of output and input: `("a/out", "b/in")`.
pub fn routes(pairs: &[(&str, &str)]) -> String {
    let routes: Vec<_> = pairs
        .iter()
        .enumerate()
        .map(|(number, pair)| format!("\"r{number}\":\"{}\"", route(pair.0, pair.1)))
        .collect();
    format!("{{{}}}", routes.join(","))
}

pub fn route(from: &str, to: &str) -> String {
    let (a, out) = from.split_once('/').unwrap();
    let (b, input) = to.split_once('/').unwrap();
    format!(
        "FROM /messages/modules/{a}/outputs/{out} \
         INTO BrokeredEndpoint(\\\"/modules/{b}/inputs/{input}\\\")"
    )
}

/// Connected with a persistent session and subscribed to its inputs.
pub async fn receiver(hub: &Hub, module: &str) -> Client {
    let mut client = hub.connect(&format!("edge-1/{module}")).await;
    client.subscribe(&inputs(module)).await.unwrap();
    client
}

/// A persistent session that waits for its module to come back.
pub async fn left_behind(hub: &Hub, module: &str) {
    receiver(hub, module).await.disconnect().await.unwrap();
}

/// Sends CONNECT and returns session-present.
pub async fn login(hub: &Hub, hello: &Hello) -> (Client, bool) {
    let mut client = Client::tcp(hub.tcp()).await.unwrap();
    let present = client.connect(hello).await.unwrap();
    (client, present)
}

/// How a module introduces itself for a clean session.
pub fn clean(hub: &Hub, identity: &str) -> Hello {
    let mut hello = hub.hello(identity);
    hello.clean_session = true;
    hello
}

/// A client that vanishes without a word, and a hub that has noticed.
pub async fn vanish(hub: &Hub, client: Client, identity: &str) {
    drop(client);
    hub.until("the hub notices that a client is gone", |hub| {
        let status = hub.status();
        let clients = status["clients"].as_array().unwrap();
        clients
            .iter()
            .all(|row| row["id"] != identity || row["connected"] == false)
    });
}

/// One number of an endpoint's queue, all lanes together.
fn sum(queues: &Value, endpoint: &str, key: &str) -> u64 {
    let rows = queues.as_array().unwrap().iter();
    let rows: Vec<_> = rows.filter(|row| row["endpoint"] == endpoint).collect();
    assert!(!rows.is_empty(), "no {endpoint} in {queues}");
    rows.iter().map(|row| row[key].as_u64().unwrap()).sum()
}

/// Messages and bytes that wait for an input.
pub fn queue(hub: &Hub, endpoint: &str) -> (u64, u64) {
    let queues = &hub.status()["queues"];
    (
        sum(queues, endpoint, "messages"),
        sum(queues, endpoint, "bytes"),
    )
}

/// Messages that an input's module has and did not acknowledge.
pub fn in_flight(hub: &Hub, endpoint: &str) -> u64 {
    sum(&hub.status()["queues"], endpoint, "inFlight")
}

/// What a hub would find that started now, as JSON of `edgehub store inspect`.
pub fn inspect(dir: &Path) -> Value {
    let args = ["store", "inspect", "--data", "data", "--json"];
    let shown = edgehub(dir, &args);
    assert!(shown.status.success(), "{shown:?}");
    serde_json::from_slice(&shown.stdout).unwrap()
}

/// Messages that wait for an input by what is on disk: acknowledgements are noted there later.
pub fn on_disk(dir: &Path, endpoint: &str) -> u64 {
    sum(&inspect(dir)["queues"], endpoint, "messages")
}

/// Changes the manifest under a running hub; returns once the new one counts.
pub fn reload(setup: &Setup, hub: &Hub, routes: &str, modules: &[&str], ttl: i64) {
    let generation = |hub: &Hub| hub.status()["configuration"]["generation"].as_u64();
    let before = generation(hub).unwrap();
    setup.write_manifest(routes, modules, ttl);
    hub.until("the new manifest counts", |hub| {
        generation(hub) == Some(before + 1)
    });
}
