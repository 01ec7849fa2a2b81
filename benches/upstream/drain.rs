//! A long backlog into mosquitto, beside a load generator alone, and what an urgent message waits
//! meanwhile.

use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use edgehub::client::{ClientError, Hello};
use edgehub::mqtt::{self, FromServer, PacketId};
use hdrhistogram::Histogram;
use tokio::time::sleep;

use super::bridge::Bridge;
use super::broker::Broker;
use super::load::{Connection, flood};
use super::scene::{Kind, MESSAGE_BYTES, Scene, setup};
use crate::cloud::port::Port;
use crate::cloud::record::now_us;
use crate::common::{Hub, output};
use crate::support::link::Link;
use crate::support::pump::{Pump, Span, hello, histogram};
use crate::support::targets::Targets;
use crate::support::{queued, start};

const PUMPS: usize = 4;
const PUMP_WINDOW: usize = 200;
const LIVE_EVERY: Duration = Duration::from_millis(20);
/// How long the load generator runs, before the drain and after it.
const ALONE: Duration = Duration::from_secs(5);
const LIMIT: Duration = Duration::from_secs(600);
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// The drain is over when so many messages are left: what is live is always there.
const REST: u64 = 1_000;
const SHARE_MIN: f64 = 0.8;
const LIVE_MS_MAX: f64 = 200.0;
/// Live messages without which nothing is said about their latency.
const LIVE_MIN: u64 = 100;
const STORE: &str = "sync = \"os\"\nmax_bytes = \"8GiB\"";

/// Fills, drains, compares.
pub async fn drain(
    kind: Kind,
    dir: &Path,
    messages: u64,
    targets: &mut Targets,
) -> Result<(), String> {
    let (port, other) = (Port::reserve(), Port::reserve());
    let port = port.map_err(|error| error.to_string())?;
    let other = other.map_err(|error| error.to_string())?;
    let modules = ["p0", "p1", "p2", "p3", "live"];
    let setup = setup(kind, port.address(), &dir.join("data"), STORE, &modules);
    let hub = start(setup.dir.path())?;
    let scene = Scene::new();
    scene.hub.send_replace(Some(hub.tcp()));
    Bridge::hire(kind, &hub, port.address(), &scene);
    fill(&hub, messages).await?;
    println!("queued {}", queued(&hub));
    let before = alone(dir, &other).await?;
    println!("load generator alone, before: {before:.0} messages/s");
    let (rate, times) = measure(&hub, dir, &port).await?;
    scene.hub.send_replace(None);
    let after = alone(dir, &other).await?;
    println!("load generator alone, after:  {after:.0} messages/s");
    println!("drain: {rate:.0} messages/s");
    let ms = |percentile| times.value_at_percentile(percentile) as f64 / 1e3;
    println!("live: {} messages, p50 {:.1} ms", times.len(), ms(50.0));
    targets.at_least(
        "drain / load generator",
        rate / before.midpoint(after),
        SHARE_MIN,
        "",
    );
    targets.at_most(
        "live messages during the drain, p99",
        ms(99.0),
        LIVE_MS_MAX,
        "ms",
    );
    targets.holds("there were enough live messages", times.len() >= LIVE_MIN);
    Ok(())
}

async fn fill(hub: &Hub, messages: u64) -> Result<(), String> {
    let mut pumps = Vec::new();
    for number in 0..PUMPS {
        let mut pump = Pump::connect(hub, number, 1, MESSAGE_BYTES).await?;
        let share = (messages / PUMPS as u64) as u32;
        pumps.push(tokio::spawn(async move {
            pump.run(PUMP_WINDOW, Span::count(share)).await?;
            pump.leave().await
        }));
    }
    for pump in pumps {
        pump.await.map_err(|error| error.to_string())??;
    }
    Ok(())
}

/// What the load generator gets into a mosquitto of its own, messages per second.
async fn alone(dir: &Path, port: &Port) -> Result<f64, String> {
    let broker = Broker::start(dir, port.address())?;
    let socket = TcpStream::connect(broker.address).map_err(|error| error.to_string())?;
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let flooding = std::thread::spawn(move || {
        let publisher = Connection::login(socket, &client("generator"));
        let began = Instant::now();
        let topic = output("p0", "", "").replace("%24.on=", "%24.cdid=edge-1&%24.cmid=p0");
        let acknowledged = flood(publisher, None, &topic, &stopped);
        acknowledged as f64 / began.elapsed().as_secs_f64()
    });
    sleep(ALONE).await;
    stop.store(true, Ordering::Release);
    flooding
        .join()
        .map_err(|_| "the load generator failed".to_owned())
}

fn client(client_id: &str) -> Hello {
    Hello {
        client_id: client_id.to_owned(),
        clean_session: true,
        ..Hello::default()
    }
}

/// The rate of the drain, and the latencies of live messages in microseconds.
async fn measure(hub: &Hub, dir: &Path, port: &Port) -> Result<(f64, Histogram<u64>), String> {
    let broker = Broker::start(dir, port.address())?;
    let times = Arc::new(Mutex::new(histogram()));
    let receiving = Receiver::connect(&broker).await?.run(Arc::clone(&times));
    let receiving = tokio::spawn(receiving);
    let full = queued(hub);
    let began = Instant::now();
    // Until the hub has found the cloud.
    let mut first = full;
    while first == full {
        look(began, "the drain does not begin").await?;
        first = queued(hub);
    }
    let at = Instant::now();
    let sending = tokio::spawn(send_live(hub.tcp(), hello(hub, "live")));
    let mut left = first;
    while left > REST {
        look(began, "the drain does not end").await?;
        left = queued(hub);
    }
    let rate = (first - left) as f64 / at.elapsed().as_secs_f64();
    for task in [sending, receiving] {
        if task.is_finished() {
            task.await.map_err(|error| error.to_string())??;
        } else {
            task.abort();
        }
    }
    let times = times.lock().unwrap().clone();
    Ok((rate, times))
}

async fn look(began: Instant, why: &str) -> Result<(), String> {
    sleep(LOOK_EVERY).await;
    if began.elapsed() > LIMIT {
        return Err(why.to_owned());
    }
    Ok(())
}

/// Sends urgent messages that say when they were sent, and never comes back.
async fn send_live(address: SocketAddr, hello: Hello) -> Result<(), String> {
    let (mut link, _) = Link::login(address, &hello).await.map_err(told)?;
    let topic = output("live", "o0", "");
    let mut due = tokio::time::Instant::now();
    let mut id = PacketId::new(1).unwrap();
    loop {
        let payload = format!("{:<MESSAGE_BYTES$}", now_us());
        link.publish(&topic, id, payload.as_bytes(), false)
            .map_err(told)?;
        id = PacketId::new(id.get().checked_add(1).unwrap_or(1)).unwrap();
        link.flush().await.map_err(told)?;
        due += LIVE_EVERY;
        while due > tokio::time::Instant::now() {
            tokio::select! {
                read = link.read() => read.map_err(told)?,
                () = tokio::time::sleep_until(due) => {}
            }
            link.each(|_, _| ()).map_err(told)?;
        }
    }
}

fn told(error: ClientError) -> String {
    error.to_string()
}

/// Who waits for live messages at the cloud.
struct Receiver(Link);

impl Receiver {
    async fn connect(broker: &Broker) -> Result<Self, String> {
        let login = Link::login(broker.address, &client("receiver")).await;
        let (mut link, _) = login.map_err(told)?;
        link.subscribe("devices/edge-1/modules/live/messages/events/#")
            .map_err(told)?;
        link.flush().await.map_err(told)?;
        Ok(Self(link))
    }

    /// Writes down how long each was on its way, in microseconds.
    async fn run(mut self, times: Arc<Mutex<Histogram<u64>>>) -> Result<(), String> {
        loop {
            self.0.read().await.map_err(told)?;
            let now = now_us();
            let each = |packet: FromServer<'_>, out: &mut BytesMut| {
                let FromServer::Publish(publish) = packet else {
                    return;
                };
                let text = str::from_utf8(publish.payload).unwrap();
                let sent: u64 = text.trim_end().parse().unwrap();
                times.lock().unwrap().saturating_record(now - sent);
                if let Some(id) = publish.packet_id {
                    mqtt::encode_puback(out, id);
                }
            };
            self.0.each(each).map_err(told)?;
            self.0.flush().await.map_err(told)?;
        }
    }
}
