//! A receiver that takes little: what it acknowledged counts, whatever still waits for it.
#![allow(missing_docs, clippy::unwrap_used, clippy::indexing_slicing)]

mod common;

use edgehub::mqtt::QoS;

use common::{Hub, Setup, inputs, message, output, publish};

const ROUTE: &str = r#"{"r":"FROM /messages/modules/a/outputs/out INTO BrokeredEndpoint(\"/modules/b/inputs/in\")"}"#;
const MESSAGES: u64 = 40;
const TAKEN: u64 = 7;

fn queued(hub: &Hub) -> u64 {
    hub.status()["queues"][0]["messages"].as_u64().unwrap()
}

/// A hub with large messages for b, which is away.
async fn backlog() -> (Setup, Hub, Vec<u8>) {
    let setup = Setup::new(ROUTE, &["a", "b"]);
    let hub = setup.start();
    let mut a = hub.connect("edge-1/a").await;
    let body = vec![b'x'; 1_000_000];
    for _ in 0..MESSAGES {
        publish(&mut a, &output("a", "out", ""), &body).await;
    }
    (setup, hub, body)
}

#[tokio::test]
async fn acknowledgements_count_while_the_hub_has_more_to_write() {
    let (_setup, hub, body) = backlog().await;
    let mut b = hub.connect("edge-1/b").await;
    b.subscribe(&inputs("b")).await.unwrap();
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
    let (_setup, hub, body) = backlog().await;
    let mut b = hub.connect("edge-1/b").await;
    // Answers come behind a megabyte or more; writing must not wait for reading.
    b.subscribe(&inputs("b")).await.unwrap();
    let topic = output("b", "own", "");
    for _ in 0..MESSAGES {
        b.publish(&topic, QoS::AtLeastOnce, &body).await.unwrap();
    }
    for _ in 0..MESSAGES {
        assert_eq!(message(&mut b).await.1.len(), body.len());
    }
}
