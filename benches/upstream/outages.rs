//! How soon the hub is back once the network is.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::sleep;

use super::bridge::Bridge;
use super::scene::{Kind, Module, Scene, setup};
use crate::cloud::checks::Numbered;
use crate::cloud::faults::{Mode, Proxy};
use crate::cloud::record::{Entry, Reader, now_us};
use crate::cloud::sink::Sink;
use crate::support::rng::Rng;
use crate::support::start;
use crate::support::targets::Targets;

const PER_SECOND: u64 = 50;
const BACK_MS_MAX: f64 = 2_000.0;
const FIRST_MS_MAX: f64 = 100.0;
/// For the first message at all, and for the hub to be back.
const LIMIT: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(5);
const STORE: &str = "sync = \"os\"";

/// What was seen after the network came back.
enum Back {
    /// A new connection, and then its first message; microseconds since 1970.
    New { connected_us: u64, first_us: u64 },
    /// The old connection went on with a message that was sent since.
    Old { fresh_us: u64 },
}

/// One outage: the hub works, the way is cut for so long, and healed.
pub async fn outage(
    kind: Kind,
    dir: &Path,
    mode: Mode,
    seconds: u64,
    targets: &mut Targets,
) -> Result<(), String> {
    let record = dir.join("record");
    let sink = Sink::start(([127, 0, 0, 1], 0).into(), &record).map_err(|e| e.to_string())?;
    let proxy = Proxy::start(sink.address()).map_err(|error| error.to_string())?;
    let setup = setup(kind, proxy.address(), &dir.join("data"), STORE, &["m0"]);
    let hub = start(setup.dir.path())?;
    let scene = Scene::new();
    scene.hub.send_replace(Some(hub.tcp()));
    Bridge::hire(kind, &hub, proxy.address(), &scene);
    let module = Module::new("m0", &hub.key("edge-1/m0"), Rng::new(1), PER_SECOND);
    let module = tokio::spawn(module.run(Arc::clone(&scene)));
    let mut watch = Watch {
        reader: Reader::open(&record).map_err(|error| error.to_string())?,
        since: Instant::now(),
    };
    watch.message().await?;
    proxy.set(mode);
    sleep(Duration::from_secs(seconds)).await;
    let next = [0, 1].map(|lane| scene.sent().next("m0", lane));
    let healed_us = now_us();
    proxy.set(Mode::Pass);
    watch.since = Instant::now();
    let is_fresh = |message: &Numbered| message.number >= next[usize::from(message.lane)];
    let back = watch.back(healed_us, is_fresh).await?;
    scene.hub.send_replace(None);
    module.abort();
    hub.kill();
    let ms = |from: u64, to: u64| to.saturating_sub(from) as f64 / 1e3;
    let what = format!("{mode:?} {seconds} s");
    match back {
        Back::New {
            connected_us,
            first_us,
        } => {
            let (back, first) = (ms(healed_us, connected_us), ms(connected_us, first_us));
            targets.at_most(
                &format!("{what}: healed to CONNACK"),
                back,
                BACK_MS_MAX,
                "ms",
            );
            let what = format!("{what}: CONNACK to first PUBLISH");
            targets.at_most(&what, first, FIRST_MS_MAX, "ms");
        }
        Back::Old { fresh_us } => {
            let what = format!("{what}: healed to PUBLISH, same connection");
            targets.at_most(&what, ms(healed_us, fresh_us), BACK_MS_MAX, "ms");
        }
    }
    Ok(())
}

/// Follows a record.
struct Watch {
    reader: Reader,
    since: Instant,
}

impl Watch {
    async fn more(&mut self) -> Result<Vec<Entry>, String> {
        loop {
            let entries = self.reader.more().map_err(|error| error.to_string())?;
            if !entries.is_empty() {
                return Ok(entries);
            }
            if self.since.elapsed() > LIMIT {
                return Err("nothing reaches the cloud".to_owned());
            }
            sleep(LOOK_EVERY).await;
        }
    }

    async fn message(&mut self) -> Result<(), String> {
        let is_message = |entry: &Entry| matches!(entry, Entry::Message(_));
        while !self.more().await?.iter().any(is_message) {}
        Ok(())
    }

    /// Messages that were on their way in the old connection do not count.
    async fn back(
        &mut self,
        healed_us: u64,
        is_fresh: impl Fn(&Numbered) -> bool,
    ) -> Result<Back, String> {
        let mut connected = None;
        loop {
            for entry in self.more().await? {
                match (entry, connected) {
                    (Entry::Connected(new), _) if new.time_us >= healed_us => {
                        connected = Some((new.connection, new.time_us));
                    }
                    (Entry::Message(message), Some((connection, connected_us)))
                        if message.connection == connection =>
                    {
                        return Ok(Back::New {
                            connected_us,
                            first_us: message.time_us,
                        });
                    }
                    (Entry::Message(message), None) => {
                        let body = Numbered::read(&message.payload);
                        if body.is_some_and(|body| is_fresh(&body)) {
                            let fresh_us = message.time_us;
                            return Ok(Back::Old { fresh_us });
                        }
                    }
                    _ => {}
                }
            }
        }
    }
}
