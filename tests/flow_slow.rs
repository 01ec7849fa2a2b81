//! A receiver that takes little: what it acknowledged counts, whatever still waits for it.
#![allow(missing_docs, clippy::unwrap_used, clippy::indexing_slicing)]

mod common;

use bytes::BytesMut;
use edgehub::client::Client;
use edgehub::mqtt::{PacketId, QoS, encode_subscribe};

use common::{Hub, Setup, inputs, message, output, publish};

const ROUTE: &str = r#"{"r":"FROM /messages/modules/a/outputs/out INTO BrokeredEndpoint(\"/modules/b/inputs/in\")"}"#;
const MESSAGES: u64 = 40;
const TAKEN: u64 = 7;

fn queued(hub: &Hub) -> u64 {
    hub.status()["queues"][0]["messages"].as_u64().unwrap()
}

/// Subscribes without waiting: messages may come before the SUBACK.
async fn subscribe(client: &mut Client) {
    let mut packet = BytesMut::new();
    let filter = inputs("b");
    let filters = std::iter::once((filter.as_str(), QoS::AtLeastOnce));
    encode_subscribe(&mut packet, PacketId::new(7).unwrap(), filters).unwrap();
    client.send_bytes(&packet).await.unwrap();
}

#[tokio::test]
async fn acknowledgements_count_while_the_hub_has_more_to_write() {
    let setup = Setup::new(ROUTE, &["a", "b"]);
    let hub = setup.start();
    let mut a = hub.connect("edge-1/a").await;
    let body = vec![b'x'; 1_000_000];
    for _ in 0..MESSAGES {
        publish(&mut a, &output("a", "out", ""), &body).await;
    }
    let mut b = hub.connect("edge-1/b").await;
    subscribe(&mut b).await;
    for _ in 0..TAKEN {
        message(&mut b).await;
    }
    // It reads no further; the hub's writes block, and its reads must not.
    hub.until("acknowledged messages leave the queue", |hub| {
        queued(hub) == MESSAGES - TAKEN
    });
    drop(b);
    let mut b = hub.connect("edge-1/b").await;
    for _ in TAKEN..MESSAGES {
        assert_eq!(message(&mut b).await.1.len(), body.len());
    }
    hub.until("the queue is empty", |hub| queued(hub) == 0);
}

#[tokio::test]
async fn a_receiver_may_send_while_much_waits_for_it() {
    let setup = Setup::new(ROUTE, &["a", "b"]);
    let hub = setup.start();
    let mut a = hub.connect("edge-1/a").await;
    let body = vec![b'x'; 1_000_000];
    for _ in 0..MESSAGES {
        publish(&mut a, &output("a", "out", ""), &body).await;
    }
    let mut b = hub.connect("edge-1/b").await;
    // Answers come behind a megabyte or more; writing must not wait for reading.
    subscribe(&mut b).await;
    let topic = output("b", "own", "");
    for _ in 0..MESSAGES {
        b.publish(&topic, QoS::AtLeastOnce, &body).await.unwrap();
    }
    for _ in 0..MESSAGES {
        assert_eq!(message(&mut b).await.1.len(), body.len());
    }
}
