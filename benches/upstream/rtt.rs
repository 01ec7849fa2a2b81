//! Whether the window is full on a long way.

use std::path::Path;
use std::time::{Duration, Instant};

use tokio::time::sleep;

use super::bridge::Bridge;
use super::scene::{Kind, MESSAGE_BYTES, Scene, WINDOW, setup};
use crate::cloud::faults::{Mode, Proxy};
use crate::cloud::record::{self, Entry};
use crate::cloud::sink::Sink;
use crate::support::pump::{Pump, Span};
use crate::support::start;
use crate::support::targets::Targets;

const MESSAGES: u64 = 10_000;
const PUMP_WINDOW: usize = 100;
const LIMIT: Duration = Duration::from_secs(120);
const SHARE_MIN: f64 = 0.9;
const STORE: &str = "sync = \"os\"";

/// Queues messages while nobody is there, and drains them with this round trip.
pub async fn drain(
    kind: Kind,
    dir: &Path,
    trip: Duration,
    targets: &mut Targets,
) -> Result<(), String> {
    let record = dir.join("record");
    let sink = Sink::start(([127, 0, 0, 1], 0).into(), &record).map_err(|e| e.to_string())?;
    let proxy = Proxy::start(sink.address()).map_err(|error| error.to_string())?;
    proxy.set(Mode::Refuse);
    let setup = setup(kind, proxy.address(), &dir.join("data"), STORE, &["p0"]);
    let hub = start(setup.dir.path())?;
    let scene = Scene::new();
    scene.hub.send_replace(Some(hub.tcp()));
    Bridge::hire(kind, &hub, proxy.address(), &scene);
    let mut pump = Pump::connect(&hub, 0, 1, MESSAGE_BYTES).await?;
    pump.run(PUMP_WINDOW, Span::count(MESSAGES as u32)).await?;
    pump.leave().await?;
    proxy.set(Mode::Latency(trip / 2));
    let began = Instant::now();
    while sink.counts().messages < MESSAGES {
        if began.elapsed() > LIMIT {
            let messages = sink.counts().messages;
            return Err(format!("{messages} of {MESSAGES} messages came in time"));
        }
        sleep(Duration::from_millis(20)).await;
    }
    scene.hub.send_replace(None);
    hub.kill();
    let entries = record::read(&record).map_err(|error| error.to_string())?;
    let times = entries.iter().filter_map(|entry| match entry {
        Entry::Message(message) => Some(message.time_us),
        _ => None,
    });
    let times: Vec<u64> = times.collect();
    // The first window comes at once, each of the others after a round trip.
    let seconds = (times[times.len() - 1] - times[0]) as f64 / 1e6;
    let rate = (times.len() as u64 - WINDOW) as f64 / seconds;
    let bound = WINDOW as f64 / trip.as_secs_f64();
    println!("{rate:.0} messages/s, window / round trip {bound:.0}");
    targets.at_least("share of window / round trip", rate / bound, SHARE_MIN, "");
    Ok(())
}
