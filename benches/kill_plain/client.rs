//! Clients with kept sessions, as the specifications want them: what is not acknowledged is sent
//! again under its packet id, PUBREL too, and a message whose id was not released is taken once.

use std::collections::{BTreeMap, VecDeque};
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use edgehub::client::ClientError;
use edgehub::mqtt::{PacketId, QoS};
use tokio::time::{Instant, sleep, sleep_until};

use super::ledger::{self, ONCE_AT_LEAST, ONCE_EXACTLY, SHARED, STREAMS, To};
use super::scene::Scene;
use super::wire::{Answer, Hello, Message, Said, Sending, Version, Wire};
use crate::support::clients::{Phase, any_length};
use crate::support::link::Body;
use crate::support::rng::Rng;

/// Packet ids of SUBSCRIBE begin here; messages stay below.
const SUBSCRIBE_IDS: u16 = 60_000;

/// What a client subscribes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wants {
    /// `q/#`, with this QoS.
    Both(QoS),
    /// The messages of QoS 1 or 2 alone.
    One(usize),
    /// Its part of those for the group.
    Share,
}

/// A filter, and the round in which the client subscribes to it.
#[derive(Debug, Clone, Copy)]
pub struct Subscription {
    pub wants: Wants,
    pub from_round: u32,
    /// SUBACK has come; it is not subscribed to again.
    pub is_acknowledged: bool,
}

impl Wants {
    const fn filter(self) -> (&'static str, QoS) {
        match self {
            Self::Both(qos) => ("q/#", qos),
            Self::One(ONCE_AT_LEAST) => ("q/1/#", QoS::AtLeastOnce),
            Self::One(_) => ("q/2/+", QoS::ExactlyOnce),
            Self::Share => ("$share/group/s/#", QoS::AtLeastOnce),
        }
    }

    fn has(self, stream: usize) -> bool {
        match self {
            Self::Both(_) => stream == ONCE_AT_LEAST || stream == ONCE_EXACTLY,
            Self::One(one) => stream == one,
            Self::Share => stream == SHARED,
        }
    }
}

/// How a client behaves in a round.
#[derive(Clone, Copy)]
pub struct Habit {
    /// Messages in flight, by stream kind alike.
    pub window: usize,
    /// Between two messages.
    pub gap: Duration,
    /// How many new messages at most.
    pub messages: u64,
    /// Between what comes and the answers to it.
    pub pause: Option<Duration>,
    /// Breaks off so long after each login, this many times.
    pub break_off: Option<(Duration, u32)>,
}

/// Publishes nothing new, and answers at once.
pub const CALM: Habit = Habit {
    window: 1,
    gap: Duration::ZERO,
    messages: 0,
    pause: None,
    break_off: None,
};

/// How a client chooses packet ids; both are usual.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ids {
    /// The lowest that is free.
    Lowest,
    /// The next one, going round.
    Next,
}

/// A message on its way to the hub.
struct Flight {
    packet_id: PacketId,
    body: Body,
    /// PUBREC has come: PUBREL goes out until PUBCOMP comes.
    is_released: bool,
}

pub struct Client {
    index: usize,
    hello: Hello,
    /// Its number among the publishers.
    publisher: Option<usize>,
    ids: Ids,
    subscriptions: Vec<Subscription>,
    /// A CONNACK has come: there is a session from then on.
    is_known: bool,
    next_id: u16,
    flights: VecDeque<Flight>,
    /// Messages of QoS 2 that were received and not released, by packet id.
    received: BTreeMap<PacketId, Vec<u8>>,
    payload: Vec<u8>,
    rng: Rng,
}

impl Client {
    pub fn new(
        index: usize,
        (version, ids): (Version, Ids),
        publisher: Option<usize>,
        subscriptions: Vec<Subscription>,
        rng: Rng,
    ) -> Self {
        Self {
            index,
            hello: Hello {
                client_id: format!("c{index}"),
                version,
                clean: false,
                expiry_s: u32::MAX,
            },
            publisher,
            ids,
            subscriptions,
            is_known: false,
            next_id: 1,
            flights: VecDeque::new(),
            received: BTreeMap::new(),
            payload: Vec::new(),
            rng,
        }
    }

    pub fn index(&self) -> usize {
        self.index
    }

    /// Messages that wait for their acknowledgement.
    pub fn open(&self) -> usize {
        self.flights.len()
    }

    fn name(&self) -> &str {
        &self.hello.client_id
    }

    /// Goes on until the hub ends, or until it is over.
    pub async fn run(mut self, scene: Arc<Scene>, habit: Habit) -> Self {
        let (after, times) = habit.break_off.unwrap_or_default();
        let mut left = habit.messages;
        for turn in 0..=times {
            let break_off = (turn < times).then_some(after);
            let ended = self.turn(&scene, habit, &mut left, break_off).await;
            if !matches!(ended, Ok(true)) {
                scene.judge(self.name(), ended.map(drop));
                return self;
            }
        }
        self
    }

    /// One connection; true if it broke off by itself.
    async fn turn(
        &mut self,
        scene: &Scene,
        habit: Habit,
        left: &mut u64,
        break_off: Option<Duration>,
    ) -> Result<bool, ClientError> {
        let mut phase = scene.phase.subscribe();
        let mut wire = self.begin(scene).await?;
        let end = break_off.map(|after| Instant::now() + after);
        let breaks = async move {
            match end {
                Some(end) => sleep_until(end).await,
                None => pending().await,
            }
        };
        tokio::pin!(breaks);
        let mut due = Instant::now();
        loop {
            let came = self.take(&mut wire, scene)?;
            let now = *phase.borrow_and_update();
            let is_over = now >= Phase::Over;
            while self.has_room(now, habit, *left) && due <= Instant::now() {
                self.publish(&mut wire, scene)?;
                *left -= 1;
                due += habit.gap;
            }
            let answers = async {
                if let Some(pause) = habit.pause.filter(|_| came > 0) {
                    sleep(pause).await;
                }
                wire.flush().await
            };
            tokio::select! {
                written = answers => written?,
                () = &mut breaks => break,
            }
            if is_over {
                wire.leave().await?;
                return Ok(false);
            }
            let next = async {
                match self.has_room(now, habit, *left) {
                    true => sleep_until(due).await,
                    false => pending().await,
                }
            };
            tokio::select! {
                read = wire.read() => read?,
                () = next => {}
                _ = phase.changed() => {}
                () = &mut breaks => break,
            }
        }
        // What was received last is written down, and not answered.
        scene.ledger().session_broke(self.index);
        Ok(true)
    }

    fn has_room(&self, phase: Phase, habit: Habit, left: u64) -> bool {
        let wants = self.publisher.is_some() && phase == Phase::Traffic && left > 0;
        wants && self.flights.len() < habit.window
    }

    /// Logs in, and goes on where the last connection broke.
    async fn begin(&mut self, scene: &Scene) -> Result<Wire, ClientError> {
        let (mut wire, present) = Wire::login(scene.address, &self.hello).await?;
        if self.is_known && !present {
            let what = format!(
                "round {}: {}: its session is gone",
                scene.round,
                self.name()
            );
            scene.ledger().faults.other(what);
        }
        self.is_known = true;
        for flight in &self.flights {
            if flight.is_released {
                wire.answer(Answer::Rel, flight.packet_id)?;
                continue;
            }
            let removes = {
                let mut ledger = scene.ledger();
                ledger.send_again(&flight.body);
                ledger.removes(&flight.body)
            };
            send(&mut wire, flight, (removes, true), &mut self.payload)?;
        }
        for (at, wanted) in (0..).zip(&self.subscriptions) {
            if !wanted.is_acknowledged && wanted.from_round <= scene.round {
                let (filter, qos) = wanted.wants.filter();
                let id = PacketId::new(SUBSCRIBE_IDS + at).unwrap();
                wire.subscribe(id, filter, qos)?;
            }
        }
        Ok(wire)
    }

    fn publish(&mut self, wire: &mut Wire, scene: &Scene) -> Result<(), ClientError> {
        let Some(publisher) = self.publisher else {
            return Ok(());
        };
        // Messages of QoS 2 more often than the others.
        let stream = match self.rng.below(10) {
            0..=1 => ONCE_AT_LEAST,
            2..=5 => ONCE_EXACTLY,
            6..=7 => SHARED,
            _ => self.rng.between(SHARED as u64 + 1, STREAMS as u64 - 1) as usize,
        };
        let removes = ledger::is_retained(stream) && self.rng.percent(25);
        let bytes = any_length(&mut self.rng);
        let body = scene.ledger().publish(publisher, stream, bytes, removes);
        let flight = Flight {
            packet_id: self.packet_id(),
            body,
            is_released: false,
        };
        send(wire, &flight, (removes, false), &mut self.payload)?;
        self.flights.push_back(flight);
        Ok(())
    }

    fn packet_id(&mut self) -> PacketId {
        let is_free = |id: &PacketId| !self.flights.iter().any(|flight| flight.packet_id == *id);
        let from = match self.ids {
            Ids::Lowest => 1,
            Ids::Next => self.next_id,
        };
        let ids = (from..SUBSCRIBE_IDS)
            .chain(1..from)
            .filter_map(PacketId::new);
        let id = ids.into_iter().find(is_free).unwrap();
        self.next_id = id.get() % (SUBSCRIBE_IDS - 1) + 1;
        id
    }

    /// Everything that has come; says how many packets.
    fn take(&mut self, wire: &mut Wire, scene: &Scene) -> Result<usize, ClientError> {
        let mut count = 0;
        while let Some(said) = wire.next()? {
            count += 1;
            match said {
                Said::Publish(message) => self.receive(wire, scene, message)?,
                Said::PubRel(id) => {
                    self.received.remove(&id);
                    wire.answer(Answer::Comp, id)?;
                }
                Said::PubAck(id) => self.acknowledged(wire, scene, id, QoS::AtLeastOnce)?,
                Said::PubRec(id) => self.acknowledged(wire, scene, id, QoS::ExactlyOnce)?,
                Said::PubComp(id) => {
                    let is_it = |flight: &Flight| flight.packet_id == id && flight.is_released;
                    let at = self.flights.iter().position(is_it);
                    if at.and_then(|at| self.flights.remove(at)).is_none() {
                        self.fault(scene, format!("PUBCOMP {id:?} of nothing"));
                    }
                }
                Said::SubAck(id) => self.subscribed(scene, id),
                Said::Other(other) => self.fault(scene, format!("unexpected {other}")),
            }
        }
        Ok(count)
    }

    fn subscribed(&mut self, scene: &Scene, id: PacketId) {
        let at = id.get().wrapping_sub(SUBSCRIBE_IDS);
        let Some(one) = self.subscriptions.get_mut(usize::from(at)) else {
            self.fault(scene, format!("SUBACK {id:?} of nothing"));
            return;
        };
        one.is_acknowledged = true;
        let wants = one.wants;
        let to = to(self.index, wants);
        scene.ledger().subscribed(to, |stream| wants.has(stream));
    }

    /// A QoS 2 message whose id was not released is known: the application has it.
    fn receive(
        &mut self,
        wire: &mut Wire,
        scene: &Scene,
        message: Message,
    ) -> Result<(), ClientError> {
        let Some(id) = message.packet_id else {
            self.fault(scene, format!("{} with QoS 0", message.topic));
            return Ok(());
        };
        match message.qos {
            QoS::ExactlyOnce => {
                wire.answer(Answer::Rec, id)?;
                if let Some(known) = self.received.get(&id) {
                    if *known != message.payload {
                        let topic = &message.topic;
                        let what = format!("{topic}: {id:?} is another message, not released yet");
                        self.fault(scene, what);
                    }
                    return Ok(());
                }
                self.received.insert(id, message.payload.clone());
            }
            _ => wire.answer(Answer::Ack, id)?,
        }
        let stream = (0..STREAMS).find(|stream| {
            let prefix = ledger::topic(0, *stream);
            message.topic.starts_with(prefix.trim_end_matches('0'))
        });
        let wanted = self.subscriptions.iter().map(|one| one.wants);
        let mut wanted = wanted.filter(|wants| stream.is_some_and(|stream| wants.has(stream)));
        let Some((wants, stream)) = wanted.next().zip(stream) else {
            self.fault(scene, format!("{}, not subscribed to", message.topic));
            return Ok(());
        };
        let granted = wants.filter().1.min(ledger::qos(stream));
        if message.qos != granted || message.retain {
            let what = format!(
                "{} with {:?}, retain {}",
                message.topic, message.qos, message.retain
            );
            self.fault(scene, what);
        }
        let to = to(self.index, wants);
        scene
            .ledger()
            .receive(to, (&message.topic, granted), &message.payload);
        Ok(())
    }

    /// PUBACK or PUBREC.
    fn acknowledged(
        &mut self,
        wire: &mut Wire,
        scene: &Scene,
        id: PacketId,
        qos: QoS,
    ) -> Result<(), ClientError> {
        let is_it =
            |flight: &Flight| flight.packet_id == id && ledger::qos(flight.body.output) == qos;
        let Some(at) = self.flights.iter().position(is_it) else {
            self.fault(
                scene,
                format!("an answer to {id:?}, which is not in flight"),
            );
            return Ok(());
        };
        let flight = &mut self.flights[at];
        if !flight.is_released {
            scene.ledger().acknowledge(&flight.body);
            scene.acknowledged.notify_one();
        }
        if qos == QoS::ExactlyOnce {
            flight.is_released = true;
            wire.answer(Answer::Rel, id)?;
        } else {
            self.flights.remove(at);
        }
        Ok(())
    }

    fn fault(&self, scene: &Scene, what: String) {
        let what = format!("round {}: {}: {what}", scene.round, self.name());
        scene.ledger().faults.other(what);
    }
}

/// Whose receipt that is.
fn to(index: usize, wants: Wants) -> To {
    match wants {
        Wants::Share => To::Group,
        Wants::Both(_) | Wants::One(_) => To::Session(index),
    }
}

fn send(
    wire: &mut Wire,
    flight: &Flight,
    (removes, dup): (bool, bool),
    payload: &mut Vec<u8>,
) -> Result<(), ClientError> {
    let body = &flight.body;
    body.write(payload);
    if removes {
        payload.clear();
    }
    wire.publish(&Sending {
        topic: &ledger::topic(body.publisher, body.output),
        payload,
        qos: ledger::qos(body.output),
        packet_id: flight.packet_id,
        dup,
        retain: ledger::is_retained(body.output),
    })
}
