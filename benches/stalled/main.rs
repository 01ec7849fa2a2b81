//! One pair floods the hub, another sends 1,000 messages a second: what the second pair sees while
//! the first one's receiver reads, and while it does not.
//!
//! `cargo bench --bench stalled [-- --seconds N --check]`
//!
//! Open loop: a message is due every millisecond whatever happened to the ones before, and its
//! latency counts from when it was due. Hub on core 0, all clients on core 1.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing
)]

#[path = "../../tests/common/mod.rs"]
mod common;
#[path = "../hub/load.rs"]
#[allow(dead_code)]
mod load;

use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::{Hub, Setup, inputs, output};
use edgehub::client::{Client, Packet};
use edgehub::mqtt::QoS;
use hdrhistogram::Histogram;

const ROUTES: &str = r#"{
"flood":"FROM /messages/modules/a/outputs/out INTO BrokeredEndpoint(\"/modules/b/inputs/in\")",
"pace":"FROM /messages/modules/c/outputs/out INTO BrokeredEndpoint(\"/modules/d/inputs/in\")"}"#;
/// Quota of each queue, and what may be in it beside: nothing.
const QUOTA: usize = 50_000;

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let seconds = args
        .iter()
        .position(|arg| arg == "--seconds")
        .map_or(5, |at| args[at + 1].parse().expect("a number"));
    load::pin_to_core(1);
    let reading = round(true, seconds);
    let stalled = round(false, seconds);
    let ratio = stalled.p99_ms / reading.p99_ms;
    println!("p99 stalled : reading = {ratio:.2} (at most 2)");
    if args.iter().any(|arg| arg == "--check") {
        assert!(ratio <= 2.0 && stalled.queue <= QUOTA && stalled.arrived == stalled.sent);
    }
}

struct Seen {
    p99_ms: f64,
    queue: usize,
    sent: usize,
    arrived: usize,
}

fn round(receiver_reads: bool, seconds: u64) -> Seen {
    let mut setup = Setup::new(ROUTES, &["a", "b", "c", "d"]);
    setup.extra = format!(
        "[server]\nworkers = 1\n[log]\nlevel = \"error\"\n\
         [limits]\nendpoint_max_messages = {QUOTA}\n"
    );
    let hub = setup.start();
    load::move_to_core(hub.child.id(), 0);
    let stop = AtomicBool::new(false);
    let login = |module: &str| {
        let socket = TcpStream::connect(hub.tcp()).unwrap();
        load::Connection::login(socket, &hub.hello(&format!("edge-1/{module}")))
    };
    let mut receiver = login("b");
    receiver.subscribe(&inputs("b"));
    let flood = login("a");
    let topic = output("a", "out", "");
    let reader = receiver_reads.then_some(&mut receiver);
    let (flooded, (latency, sent, arrived), queue) = thread::scope(|scope| {
        let flood = scope.spawn(|| load::flood(flood, reader, &topic, &stop));
        let paced = pace(&hub, seconds);
        let queue = queue_length(&hub);
        stop.store(true, Ordering::Release);
        (flood.join().unwrap(), paced, queue)
    });
    let p99_ms = latency.value_at_quantile(0.99) as f64 / 1000.0;
    println!(
        "receiver {}: {arrived} of {sent} arrived, p50 {:.2} ms, p99 {p99_ms:.2} ms, max {:.2} ms; \
         flood {} messages/s, its queue {queue} (quota {QUOTA})",
        if receiver_reads { "reads  " } else { "stalled" },
        latency.value_at_quantile(0.5) as f64 / 1000.0,
        latency.max() as f64 / 1000.0,
        flooded as u64 / seconds,
    );
    Seen {
        p99_ms,
        queue,
        sent,
        arrived,
    }
}

/// 1,000 messages a second for so long; latencies in microseconds.
fn pace(hub: &Hub, seconds: u64) -> (Histogram<u64>, usize, usize) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let mut receiver = hub.connect("edge-1/d").await;
        receiver.subscribe(&inputs("d")).await.unwrap();
        let mut sender = hub.connect("edge-1/c").await;
        let count = seconds as usize * 1000;
        let start = Instant::now();
        let (sent, latency) = tokio::join!(
            send(&mut sender, start, count),
            arrive(&mut receiver, start, count)
        );
        let arrived = latency.len() as usize;
        (latency, sent, arrived)
    })
}

async fn send(sender: &mut Client, start: Instant, count: usize) -> usize {
    let topic = output("c", "out", "");
    for number in 0..count {
        let due = start + Duration::from_millis(number as u64);
        tokio::time::sleep_until(due.into()).await;
        let payload = (number as u64).to_le_bytes();
        sender
            .publish(&topic, QoS::AtMostOnce, &payload)
            .await
            .unwrap();
    }
    count
}

async fn arrive(receiver: &mut Client, start: Instant, count: usize) -> Histogram<u64> {
    let mut latency = Histogram::new(3).unwrap();
    while (latency.len() as usize) < count {
        let packet = tokio::time::timeout(Duration::from_secs(10), receiver.receive()).await;
        let Ok(Ok(Packet::Publish {
            payload, packet_id, ..
        })) = packet
        else {
            return latency;
        };
        let number = u64::from_le_bytes(payload[..8].try_into().unwrap());
        let due = start + Duration::from_millis(number);
        latency.record(due.elapsed().as_micros() as u64).unwrap();
        receiver.acknowledge(packet_id.unwrap()).await.unwrap();
    }
    latency
}

fn queue_length(hub: &Hub) -> usize {
    let status = hub.status();
    let queues = status["queues"].as_array().unwrap();
    let of_b = queues.iter().filter(|queue| queue["endpoint"] == "b/in");
    of_b.map(|queue| queue["messages"].as_u64().unwrap() as usize)
        .sum()
}
