//! A hub, the way to its cloud, and modules that send numbered messages.

use std::collections::VecDeque;
use std::fmt::Display;
use std::future::pending;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use edgehub::client::{ClientError, Hello};
use edgehub::mqtt::{FromServer, PacketId};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use crate::cloud::checks::{Numbered, Sent};
use crate::common::{DEVICE, Setup, hello, output};
use crate::support::link::Link;
use crate::support::rng::Rng;

/// Messages that one client of the cloud may have in flight.
pub const WINDOW: u64 = 100;
/// Modules that send, and what messages are long.
pub const MODULES: [&str; 3] = ["m0", "m1", "m2"];
pub const MESSAGE_BYTES: usize = 256;
/// What a module has in flight to the hub.
const MODULE_WINDOW: usize = 16;
const TTL_SECONDS: i64 = 7 * 86_400;
/// Faults that are told in full; the others are counted.
const TOLD_MAX: usize = 20;

/// How the hub reaches the cloud.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// As one client.
    Mqtt,
    /// As one client per module.
    IotHub,
    /// Not at all: a module of this program carries the messages, see `bridge.rs`.
    Bridge,
}

impl Kind {
    pub fn read(text: &str) -> Self {
        match text {
            "mqtt" => Self::Mqtt,
            "iothub" => Self::IotHub,
            "bridge" => Self::Bridge,
            other => panic!("--kind {other}: mqtt, iothub or bridge"),
        }
    }
}

/// A hub's folder: output `o0` of each module goes up with priority 0, all others behind it.
pub fn setup(kind: Kind, cloud: SocketAddr, data: &Path, store: &str, modules: &[&str]) -> Setup {
    let mut modules = modules.to_vec();
    let sink = match kind {
        Kind::Mqtt | Kind::IotHub => "$upstream",
        Kind::Bridge => {
            modules.push("bridge");
            "BrokeredEndpoint(\\\"/modules/bridge/inputs/up\\\")"
        }
    };
    let mut routes = vec![format!(
        "\"all\":{{\"route\":\"FROM /messages/modules/* INTO {sink}\"}}"
    )];
    for module in &modules {
        routes.push(format!(
            "\"urgent-{module}\":{{\"route\":\"FROM /messages/modules/{module}/outputs/o0 \
             INTO {sink}\",\"priority\":0}}"
        ));
    }
    let mut setup = Setup::new("{}", &modules);
    setup.write_manifest(&format!("{{{}}}", routes.join(",")), &modules, TTL_SECONDS);
    setup.listeners = format!("data_dir = {data:?}\n{}", setup.listeners);
    let up = |kind| {
        format!("[upstream]\nkind = \"{kind}\"\nservers = [\"{cloud}\"]\ntransport = \"tcp\"\n")
    };
    let upstream = match kind {
        Kind::Mqtt => up("mqtt"),
        Kind::IotHub => up("iothub"),
        Kind::Bridge => String::new(),
    };
    setup.extra = format!(
        "[store]\n{store}\n[limits]\nmax_message_bytes = \"64KiB\"\n\
         endpoint_max_bytes = \"64GiB\"\nendpoint_max_messages = 1_000_000_000\n{upstream}\
         [log]\nlevel = \"warn\"\n"
    );
    setup.write_config();
    setup
}

/// What goes on, as modules see it.
pub struct Scene {
    /// Where the hub is; `None` while there is none.
    pub hub: watch::Sender<Option<SocketAddr>>,
    /// Modules send no more, and leave when all is acknowledged.
    pub finish: watch::Sender<bool>,
    sent: Mutex<Sent>,
    faults: Mutex<Vec<String>>,
}

impl Scene {
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            hub: watch::Sender::new(None),
            finish: watch::Sender::new(false),
            sent: Mutex::default(),
            faults: Mutex::default(),
        })
    }

    pub fn sent(&self) -> MutexGuard<'_, Sent> {
        self.sent.lock().unwrap()
    }

    pub fn fault(&self, what: impl Display) {
        let mut faults = self.faults.lock().unwrap();
        faults.push(what.to_string());
        if faults.len() <= TOLD_MAX {
            println!("FAULT {what}");
        }
    }

    pub fn faults(&self) -> usize {
        self.faults.lock().unwrap().len()
    }

    /// A connection to this hub ended, as it may where the hub has gone.
    pub fn judge(&self, name: &str, address: SocketAddr, error: &ClientError) {
        let has_gone = *self.hub.borrow() != Some(address);
        let may = has_gone && matches!(error, ClientError::Io(_) | ClientError::Closed);
        if !may {
            self.fault(format!("{name}: {error}, with the hub up"));
        }
    }
}

/// A module that sends what is not acknowledged again.
pub struct Module {
    hello: Hello,
    name: &'static str,
    rng: Rng,
    /// Between two messages.
    gap: Duration,
    next_id: u16,
    in_flight: VecDeque<(PacketId, Numbered)>,
}

impl Module {
    pub fn new(name: &'static str, key: &[u8], rng: Rng, per_second: u64) -> Self {
        Self {
            hello: Hello {
                keep_alive_seconds: 0,
                ..hello(&format!("{DEVICE}/{name}"), key)
            },
            name,
            rng,
            gap: Duration::from_secs(1) / per_second as u32,
            next_id: 1,
            in_flight: VecDeque::new(),
        }
    }

    /// Sends until told to finish, through all restarts of the hub.
    pub async fn run(mut self, scene: Arc<Scene>) {
        let mut hub = scene.hub.subscribe();
        loop {
            let address = match hub.wait_for(Option::is_some).await {
                Ok(address) => address.unwrap(),
                Err(_) => return,
            };
            match self.turn(&scene, address).await {
                Ok(()) => return,
                Err(error) => scene.judge(self.name, address, &error),
            }
            if hub.wait_for(|hub| *hub != Some(address)).await.is_err() {
                return;
            }
        }
    }

    /// One connection.
    async fn turn(&mut self, scene: &Scene, address: SocketAddr) -> Result<(), ClientError> {
        let mut finish = scene.finish.subscribe();
        let (mut link, _) = Link::login(address, &self.hello).await?;
        for at in 0..self.in_flight.len() {
            let (id, message) = self.in_flight[at].clone();
            self.write(&mut link, id, &message, true)?;
            scene.sent().send_again(&message);
        }
        let mut due = Instant::now();
        loop {
            let over = *finish.borrow_and_update();
            while !over && due <= Instant::now() && self.in_flight.len() < MODULE_WINDOW {
                let lane = self.rng.below(2) as u8;
                let message = scene.sent().publish(self.name, lane);
                let id = PacketId::new(self.next_id).unwrap();
                self.next_id = self.next_id.checked_add(1).unwrap_or(1);
                self.write(&mut link, id, &message, false)?;
                self.in_flight.push_back((id, message));
                // A module does not make up for what it could not send.
                due = (due + self.gap).max(Instant::now());
            }
            if over && self.in_flight.is_empty() {
                return link.leave().await;
            }
            link.flush().await?;
            let room = !over && self.in_flight.len() < MODULE_WINDOW;
            let next = async {
                match room {
                    true => sleep_until(due).await,
                    false => pending().await,
                }
            };
            tokio::select! {
                read = link.read() => read?,
                () = next => {}
                _ = finish.changed() => {}
            }
            self.acknowledged(&mut link, scene)?;
        }
    }

    fn write(
        &self,
        link: &mut Link,
        id: PacketId,
        message: &Numbered,
        dup: bool,
    ) -> Result<(), ClientError> {
        let topic = output(self.name, &format!("o{}", message.lane), &message.bag());
        link.publish(&topic, id, &message.payload(MESSAGE_BYTES), dup)
    }

    fn acknowledged(&mut self, link: &mut Link, scene: &Scene) -> Result<(), ClientError> {
        let taken = link.each(|packet, _| match packet {
            FromServer::PubAck(id) if self.in_flight.front().is_some_and(|open| open.0 == id) => {
                if let Some((_, message)) = self.in_flight.pop_front() {
                    scene.sent().acknowledge(&message);
                }
            }
            other => scene.fault(format!("{}: unexpected {other:?}", self.name)),
        });
        taken.map(drop)
    }
}
