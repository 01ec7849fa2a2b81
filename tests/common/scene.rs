//! Who is there: routes between modules, receivers that listen or have left.

use edgehub::client::Client;

use super::{Hub, inputs};

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
