//! What the hub takes: size of the binary, time to ready, resident memory idle and with 1,000 idle
//! TLS connections.
//!
//! `cargo bench --bench footprint [-- --check]`; `--check` fails above the README's figures.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing
)]

#[path = "../tests/common/mod.rs"]
mod common;

use std::fs;
use std::time::Instant;

use common::{BINARY, Hub, Setup, inputs};

const CONNECTIONS: usize = 1_000;
const STARTS: usize = 20;
const MIB: f64 = 1024.0 * 1024.0;

fn main() {
    let check = std::env::args().any(|arg| arg == "--check");
    let binary = fs::metadata(BINARY).unwrap().len() as f64 / MIB;
    let modules: Vec<String> = (0..CONNECTIONS).map(|n| format!("m{n}")).collect();
    let modules: Vec<&str> = modules.iter().map(String::as_str).collect();
    let few = Setup::new("{}", &["a", "b"]);
    let ready_ms = start_ms(&few);
    let hub = few.start();
    let idle = hub.resident_mib();
    drop(hub);
    let route = r#"{"r":"FROM /messages/* INTO BrokeredEndpoint(\"/modules/m0/inputs/in\")"}"#;
    let many = Setup::new(route, &modules);
    let hub = many.start();
    let before = hub.resident_mib();
    let connected = connected(&hub, &modules);
    println!("binary                              {binary:>7.2} MiB   (under 15)");
    println!("start to ready, median of {STARTS}        {ready_ms:>7.2} ms    (under 50)");
    println!("resident, idle                      {idle:>7.2} MiB   (under 10)");
    println!("resident, {CONNECTIONS} identities, idle     {before:>7.2} MiB");
    println!("resident, {CONNECTIONS} TLS connections      {connected:>7.2} MiB   (under 40)");
    if check {
        assert!(binary < 15.0 && ready_ms < 50.0 && idle < 10.0 && connected < 40.0);
    }
}

/// From the start of the process to its ready line; identities exist already.
fn start_ms(setup: &Setup) -> f64 {
    drop(setup.start());
    let mut times: Vec<f64> = (0..STARTS)
        .map(|_| {
            let started = Instant::now();
            let hub = Hub::start(setup.dir.path());
            let took = started.elapsed().as_secs_f64() * 1000.0;
            drop(hub);
            took
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// Resident memory with all modules connected over TLS, subscribed, and idle.
fn connected(hub: &Hub, modules: &[&str]) -> f64 {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let mut clients = Vec::new();
        for module in modules {
            let mut client = hub.connect_tls(&format!("edge-1/{module}")).await;
            client.subscribe(&inputs(module)).await.unwrap();
            clients.push(client);
        }
        hub.resident_mib()
    })
}
