//! Publishers, which send again what was not acknowledged, and consumers, which write down what
//! they receive before they acknowledge it.

use std::collections::VecDeque;
use std::future::pending;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use edgehub::client::{ClientError, Hello};
use edgehub::mqtt::{self, FromServer, PacketId, Publish};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::ledger::Ledger;
use super::link::{BODY_BYTES_MIN, Body, Link};
use super::rng::Rng;
use crate::common::{DEVICE, hello, inputs, output};

/// For clients to notice the end of a hub or of a phase.
const END_LIMIT: Duration = Duration::from_secs(30);

/// What everybody does; it only ever goes forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd)]
pub enum Phase {
    /// Publishers publish, consumers consume.
    Traffic,
    /// Publishers wait for what is not acknowledged yet, and leave.
    Finish,
    /// Consumers leave as well.
    Over,
    /// Everybody breaks off.
    Cut,
}

/// One run of the hub, as its clients see it.
pub struct Scene {
    pub address: SocketAddr,
    pub ledger: Arc<Mutex<Ledger>>,
    pub phase: watch::Sender<Phase>,
    /// Told at every acknowledgement of a message.
    pub acknowledged: Notify,
    /// Whether a connection that ends is the hub's fault.
    pub up: AtomicBool,
}

impl Scene {
    pub fn new(address: SocketAddr, ledger: &Arc<Mutex<Ledger>>) -> Arc<Self> {
        Arc::new(Self {
            address,
            ledger: Arc::clone(ledger),
            phase: watch::Sender::new(Phase::Traffic),
            acknowledged: Notify::new(),
            up: AtomicBool::new(true),
        })
    }

    pub fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap()
    }

    /// The hub is about to end: connections may.
    pub fn down(&self) {
        self.up.store(false, Ordering::Release);
        self.ledger().clock.stop();
    }

    /// A client's turn ended: was it to?
    fn judge(&self, name: &str, ended: Result<(), ClientError>) {
        let up = self.up.load(Ordering::Acquire);
        let harmless =
            |error: &ClientError| matches!(error, ClientError::Io(_) | ClientError::Closed) && !up;
        match ended {
            Err(error) if !harmless(&error) => self.ledger().faults.other(format!(
                "{name}: {error}{}",
                if up { ", with the hub up" } else { "" }
            )),
            _ => {}
        }
    }
}

/// How a publisher behaves for a while.
#[derive(Clone, Copy)]
pub struct Pace {
    pub window: usize,
    /// Between two messages.
    pub gap: Duration,
    /// How many new messages at most.
    pub messages: u64,
    /// Bodies are this long, or of many lengths.
    pub bytes: Option<usize>,
}

pub struct Publisher {
    index: usize,
    name: String,
    key: Vec<u8>,
    topics: Vec<String>,
    rng: Rng,
    next_id: u16,
    in_flight: VecDeque<(PacketId, Body)>,
    payload: Vec<u8>,
}

impl Publisher {
    pub fn new(index: usize, key: Vec<u8>, outputs: usize, rng: Rng) -> Self {
        let name = format!("p{index}");
        let topic = |number| output(&name, &format!("o{number}"), "");
        Self {
            index,
            topics: (0..outputs).map(topic).collect(),
            name,
            key,
            rng,
            next_id: 1,
            in_flight: VecDeque::new(),
            payload: Vec::new(),
        }
    }

    /// Messages that wait for their acknowledgement.
    pub fn open(&self) -> usize {
        self.in_flight.len()
    }

    /// Publishes until the connection ends, or until it is over and all is acknowledged.
    pub async fn run(mut self, scene: Arc<Scene>, pace: Pace) -> Self {
        let ended = self.turn(&scene, pace).await;
        scene.judge(&self.name, ended);
        self
    }

    async fn turn(&mut self, scene: &Scene, pace: Pace) -> Result<(), ClientError> {
        let mut phase = scene.phase.subscribe();
        let hello = introduction(&self.name, &self.key);
        let (mut link, _) = Link::login(scene.address, &hello).await?;
        self.send_again(&mut link, scene)?;
        let mut left = pace.messages;
        let mut due = Instant::now();
        loop {
            let now = *phase.borrow_and_update();
            if now == Phase::Cut {
                return Ok(());
            }
            let finish = now >= Phase::Finish;
            let room = |open: usize, left| !finish && left > 0 && open < pace.window;
            while room(self.in_flight.len(), left) && due <= Instant::now() {
                self.publish(&mut link, scene, pace.bytes)?;
                left -= 1;
                due += pace.gap;
            }
            if finish && self.in_flight.is_empty() {
                return link.leave().await;
            }
            link.flush().await?;
            let next = async {
                match room(self.in_flight.len(), left) {
                    true => sleep_until(due).await,
                    false => pending().await,
                }
            };
            tokio::select! {
                read = link.read() => read?,
                () = next => {}
                _ = phase.changed() => {}
            }
            self.take_acknowledgements(&mut link, scene)?;
        }
    }

    fn publish(
        &mut self,
        link: &mut Link,
        scene: &Scene,
        bytes: Option<usize>,
    ) -> Result<(), ClientError> {
        let output = self.rng.between(0, self.topics.len() as u64 - 1) as usize;
        let bytes = bytes.unwrap_or_else(|| any_length(&mut self.rng));
        let body = scene.ledger().publish(self.index, output, bytes);
        let id = PacketId::new(self.next_id).unwrap();
        self.next_id = self.next_id.checked_add(1).unwrap_or(1);
        self.in_flight.push_back((id, body));
        body.write(&mut self.payload);
        link.publish(&self.topics[output], id, &self.payload, false)
    }

    /// The same packets once more, in their order.
    fn send_again(&mut self, link: &mut Link, scene: &Scene) -> Result<(), ClientError> {
        for (id, body) in &self.in_flight {
            body.write(&mut self.payload);
            link.publish(&self.topics[body.output], *id, &self.payload, true)?;
            scene.ledger().send_again(body);
        }
        Ok(())
    }

    /// MQTT wants acknowledgements in the order of the messages.
    fn take_acknowledgements(&mut self, link: &mut Link, scene: &Scene) -> Result<(), ClientError> {
        let in_flight = &mut self.in_flight;
        let mut ledger = scene.ledger();
        let taken = link.each(|packet, _| match packet {
            FromServer::PubAck(id) if in_flight.front().is_some_and(|(front, _)| *front == id) => {
                if let Some((_, body)) = in_flight.pop_front() {
                    ledger.acknowledge(&body);
                    scene.acknowledged.notify_one();
                }
            }
            FromServer::PubAck(id) => {
                let at = in_flight.iter().position(|(open, _)| *open == id);
                let body = at.and_then(|at| in_flight.remove(at));
                if let Some((_, body)) = body {
                    ledger.acknowledge(&body);
                }
                let what = format!("{}: PUBACK {id:?} out of turn", self.name);
                ledger.faults.other(what);
            }
            other => {
                let what = format!("{}: unexpected {other:?}", self.name);
                ledger.faults.other(what);
            }
        });
        taken.map(drop)
    }
}

/// How a consumer behaves for a while.
#[derive(Clone, Copy)]
pub struct Habit {
    /// Between messages and their acknowledgements.
    pub pause: Option<Duration>,
    /// Breaks off so long after each login, this many times.
    pub break_off: Option<(Duration, u32)>,
}

/// Reads and acknowledges.
pub const CALM: Habit = Habit {
    pause: None,
    break_off: None,
};

pub struct Consumer {
    index: usize,
    name: String,
    key: Vec<u8>,
    subscribed: bool,
}

impl Consumer {
    pub fn new(index: usize, key: Vec<u8>) -> Self {
        Self {
            index,
            name: format!("c{index}"),
            key,
            subscribed: false,
        }
    }

    pub fn index(&self) -> usize {
        self.index
    }

    /// Consumes until the connection ends, or until it is over.
    pub async fn run(mut self, scene: Arc<Scene>, habit: Habit) -> Self {
        let (after, times) = habit.break_off.unwrap_or_default();
        for _ in 0..times {
            let broke = self.turn(&scene, habit.pause, Some(after)).await;
            if !matches!(broke, Ok(true)) {
                scene.judge(&self.name, broke.map(drop));
                return self;
            }
        }
        let ended = self.turn(&scene, habit.pause, None).await;
        scene.judge(&self.name, ended.map(drop));
        self
    }

    /// One connection; true if it broke off by itself.
    async fn turn(
        &mut self,
        scene: &Scene,
        pause: Option<Duration>,
        break_off: Option<Duration>,
    ) -> Result<bool, ClientError> {
        let mut phase = scene.phase.subscribe();
        let hello = introduction(&self.name, &self.key);
        let (mut link, present) = Link::login(scene.address, &hello).await?;
        if self.subscribed && !present {
            let what = format!("{}: its session is gone", self.name);
            scene.ledger().faults.other(what);
        }
        if !(present && self.subscribed) {
            link.subscribe(&inputs(&self.name))?;
        }
        let end = break_off.map(|after| Instant::now() + after);
        let breaks = async move {
            match end {
                Some(end) => sleep_until(end).await,
                None => pending().await,
            }
        };
        tokio::pin!(breaks);
        loop {
            let messages = self.take(&mut link, scene)?;
            let answers = async {
                if let Some(pause) = pause.filter(|_| messages > 0) {
                    sleep(pause).await;
                }
                link.flush().await
            };
            tokio::select! {
                written = answers => written?,
                () = &mut breaks => break,
            }
            let now = *phase.borrow_and_update();
            match now {
                Phase::Traffic | Phase::Finish => {}
                Phase::Over => {
                    link.leave().await?;
                    return Ok(false);
                }
                Phase::Cut => break,
            }
            tokio::select! {
                read = link.read() => read?,
                _ = phase.changed() => {}
                () = &mut breaks => break,
            }
        }
        // What was received last is written down, and not acknowledged.
        scene.ledger().consumer_broke(self.index);
        Ok(true)
    }

    fn take(&mut self, link: &mut Link, scene: &Scene) -> Result<usize, ClientError> {
        let mut ledger = scene.ledger();
        link.each(|packet, out| match packet {
            FromServer::Publish(Publish {
                topic,
                payload,
                packet_id: Some(id),
                ..
            }) => {
                ledger.receive(self.index, topic, payload);
                mqtt::encode_puback(out, id);
            }
            FromServer::SubAck(_) => self.subscribed = true,
            other => {
                let what = format!("{}: unexpected {other:?}", self.name);
                ledger.faults.other(what);
            }
        })
    }
}

/// What tasks give back, in order.
pub async fn all<T>(tasks: Vec<JoinHandle<T>>) -> Result<Vec<T>, String> {
    let mut done = Vec::with_capacity(tasks.len());
    for task in tasks {
        let ended = timeout(END_LIMIT, task).await;
        let late = |_| "a client's turn does not end".to_owned();
        done.push(ended.map_err(late)?.map_err(|error| error.to_string())?);
    }
    Ok(done)
}

fn introduction(name: &str, key: &[u8]) -> Hello {
    hello(&format!("{DEVICE}/{name}"), key)
}

/// Mostly short, now and then over several pages of the disk.
pub fn any_length(rng: &mut Rng) -> usize {
    let longest = match rng.between(0, 99) {
        0..70 => 300,
        70..95 => 2_000,
        _ => 20_000,
    };
    rng.between(BODY_BYTES_MIN as u64, longest) as usize
}
