//! The rounds: a hub, its clients, the kill; and what is looked at after each start.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use edgehub::client::ClientError;
use edgehub::mqtt::{PacketId, QoS};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::client::{CALM, Client, Habit, Ids, Subscription, Wants};
use super::ledger::{Ledger, ONCE_AT_LEAST, ONCE_EXACTLY};
use super::scene::Scene;
use super::wire::{Answer, Hello, Said, Version, Wire};
use crate::common::{Hub, Setup};
use crate::support;
use crate::support::clients::{Phase, all};
use crate::support::rng::Rng;
use crate::support::starts::Starts;

/// The first acknowledgement of a round comes within this, or the round is a fault.
const TRAFFIC_LIMIT: Duration = Duration::from_secs(10);
/// Retained messages that the hub says it has come within this.
const RETAINED_LIMIT: Duration = Duration::from_secs(20);
/// The drain at the end.
const DRAIN_LIMIT: Duration = Duration::from_secs(180);
/// Queues that nothing leaves for so long are stuck.
const STILL_LIMIT: Duration = Duration::from_secs(10);
/// Sessions that end do so within this.
const EXPIRY_LIMIT: Duration = Duration::from_secs(20);
/// With more messages than this in the queues, publishers hold back.
const BACKLOG_MAX: i64 = 20_000;
/// New messages of one client in one round.
const MESSAGES_MAX: u64 = 300;
/// And in a round where it holds back.
const MESSAGES_MIN: u64 = 10;
/// Every so many rounds two sessions are made that are not kept for long, and one that is.
const BRIEF_EVERY: u32 = 8;

const EXTRA: &str = "[store]\nsync = \"always\"\nsegment_bytes = \"1MiB\"\n\
    [limits]\nmax_message_bytes = \"64KiB\"\n[log]\nlevel = \"warn\"\n";

pub struct Proof {
    setup: Setup,
    ledger: Arc<Mutex<Ledger>>,
    clients: Vec<Client>,
    sessions: usize,
    /// Rounds that each client still stays away.
    away: Vec<u64>,
    /// Sessions that are not kept for long, and such that are, by client id.
    brief: Vec<String>,
    long: Vec<String>,
    rng: Rng,
    pub rounds: u32,
    starts: Starts,
}

/// Everybody: who publishes, and what each subscribes to.
fn clients(rng: &mut Rng) -> (Vec<Client>, usize) {
    let now = |wants| Subscription {
        wants,
        from_round: 0,
        is_acknowledged: false,
    };
    let later = Subscription {
        from_round: 5,
        ..now(Wants::One(ONCE_EXACTLY))
    };
    let (exactly, at_least) = (QoS::ExactlyOnce, QoS::AtLeastOnce);
    let (both, share) = (now(Wants::Both(exactly)), now(Wants::Share));
    let one = now(Wants::One(ONCE_AT_LEAST));
    let (four, five) = (Version::Four, Version::Five);
    let plan = [
        (five, Ids::Lowest, true, vec![both]),
        (four, Ids::Lowest, true, vec![both]),
        (five, Ids::Next, true, vec![]),
        (four, Ids::Next, true, vec![]),
        (five, Ids::Lowest, true, vec![]),
        (four, Ids::Lowest, true, vec![]),
        (five, Ids::Next, false, vec![now(Wants::Both(at_least))]),
        (four, Ids::Next, false, vec![both]),
        (five, Ids::Next, false, vec![one, later]),
        (five, Ids::Next, false, vec![share]),
        (four, Ids::Next, false, vec![share]),
        (
            five,
            Ids::Next,
            false,
            vec![share, now(Wants::One(ONCE_EXACTLY))],
        ),
    ];
    let mut publishers = 0;
    let mut clients = Vec::new();
    for (index, (version, ids, publishes, subscriptions)) in plan.into_iter().enumerate() {
        let publisher = publishes.then_some(publishers);
        publishers += usize::from(publishes);
        let how = (version, ids);
        let client = Client::new(index, how, publisher, subscriptions, rng.split());
        clients.push(client);
    }
    (clients, publishers)
}

impl Proof {
    pub fn new(seed: u64) -> Self {
        let mut setup = Setup::open("{}", &["a"]);
        setup.extra += EXTRA;
        setup.write_config();
        let mut rng = Rng::new(seed);
        let (clients, publishers) = clients(&mut rng);
        let sessions = clients.len();
        Self {
            setup,
            ledger: Arc::new(Mutex::new(Ledger::new(publishers, sessions))),
            clients,
            sessions,
            away: vec![0; sessions],
            brief: Vec::new(),
            long: Vec::new(),
            rng,
            rounds: 0,
            starts: Starts::default(),
        }
    }

    pub fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap()
    }

    pub fn log_end(&self) -> String {
        support::log_end(self.setup.dir.path())
    }

    /// So many rounds, no more than fit into the time, and the drain.
    ///
    /// # Errors
    /// A hub that does not start, a client that does not end.
    pub async fn run(&mut self, rounds: u32, seconds_max: u64) -> Result<(), String> {
        let end = Instant::now() + Duration::from_secs(seconds_max);
        while self.rounds < rounds && Instant::now() < end {
            self.round().await?;
            self.rounds += 1;
            if self.rounds.is_multiple_of((rounds / 10).max(1)) {
                self.tell();
            }
        }
        self.drain().await
    }

    async fn round(&mut self) -> Result<(), String> {
        let mut hub = self.starts.next(self.setup.dir.path(), &mut self.rng)?;
        let scene = Scene::new(hub.tcp(), self.rounds, &self.ledger);
        scene.ledger().round = self.rounds;
        scene.ledger().clock.start();
        self.look_at_retained(&hub).await?;
        let open = self.brief_sessions(&hub).await?;
        let running = self.send_out(&scene);
        let traffic = timeout(TRAFFIC_LIMIT, scene.acknowledged.notified()).await;
        if traffic.is_err() {
            let what = format!("round {}: no acknowledgement", self.rounds);
            scene.ledger().faults.other(what);
        }
        tokio::time::sleep(Duration::from_millis(self.rng.between(5, 300))).await;
        if let Ok(Some(status)) = hub.child.try_wait() {
            let what = format!("round {}: the hub ended by itself: {status}", self.rounds);
            scene.ledger().faults.other(what);
        }
        scene.down();
        hub.kill();
        drop(open);
        let back: Vec<Client> = all(running).await?;
        self.clients.extend(back);
        self.clients.sort_by_key(Client::index);
        self.ledger().hub_broke();
        Ok(())
    }

    /// Starts the clients; those that are away stay in `clients`.
    fn send_out(&mut self, scene: &Arc<Scene>) -> Vec<JoinHandle<Client>> {
        let hold_back = self.ledger().backlog() > BACKLOG_MAX;
        let mut running = Vec::new();
        for client in std::mem::take(&mut self.clients) {
            let rng = &mut self.rng;
            let away = &mut self.away[client.index()];
            // All are there in the first round, so that each has a session; the first always is.
            let may_go = self.rounds > 0 && client.index() > 0;
            if *away == 0 && may_go && rng.one_in(8) {
                *away = rng.between(1, 6);
            }
            if *away > 0 {
                *away -= 1;
                self.clients.push(client);
                continue;
            }
            let after = Duration::from_millis(rng.between(1, 100));
            let most = if hold_back {
                MESSAGES_MIN
            } else {
                MESSAGES_MAX
            };
            let habit = Habit {
                window: [1, 2, 4, 16][rng.below(4) as usize],
                gap: Duration::from_micros([0, 0, 500, 2_000][rng.below(4) as usize]),
                messages: rng.between(MESSAGES_MIN, most),
                pause: rng
                    .one_in(4)
                    .then(|| Duration::from_millis(rng.between(1, 5))),
                break_off: rng.one_in(5).then(|| (after, rng.between(1, 3) as u32)),
            };
            running.push(tokio::spawn(client.run(Arc::clone(scene), habit)));
        }
        running
    }

    /// A fresh subscriber gets what is retained, before anybody publishes again.
    async fn look_at_retained(&mut self, hub: &Hub) -> Result<(), String> {
        let status = hub.status();
        let count = status["retainedMessages"].as_u64().unwrap_or(0) as usize;
        let even = self.rounds.is_multiple_of(2);
        let version = if even { Version::Five } else { Version::Four };
        let collect = collect_retained(hub, version, count);
        let found = timeout(RETAINED_LIMIT, collect).await;
        let found = match found {
            Ok(Ok(found)) => found,
            Ok(Err(error)) => return Err(format!("a fresh subscriber: {error}")),
            Err(_) => {
                let what = format!("round {}: not all of {count} retained", self.rounds);
                self.ledger().faults.other(what);
                return Ok(());
            }
        };
        self.ledger().retained(&found);
        Ok(())
    }

    /// Now and then sessions that leave at once or break with the hub; the open one comes back.
    async fn brief_sessions(&mut self, hub: &Hub) -> Result<Option<Wire>, String> {
        if !self.rounds.is_multiple_of(BRIEF_EVERY) {
            return Ok(None);
        }
        let mut open = None;
        for (kind, expiry_s) in [("left", 1), ("open", 1), ("long", 3600)] {
            let client_id = format!("{kind}-{}", self.rounds);
            let wire = short_session(hub, &client_id, expiry_s).await;
            let wire = wire.map_err(|error| format!("{client_id}: {error}"))?;
            if kind == "open" {
                open = Some(wire);
            } else {
                let left = wire.leave().await;
                left.map_err(|error| format!("{client_id}: {error}"))?;
            }
            match kind {
                "long" => self.long.push(client_id),
                _ => self.brief.push(client_id),
            }
        }
        Ok(open)
    }

    /// Publishers get their last acknowledgements, receivers everything.
    async fn drain(&mut self) -> Result<(), String> {
        self.tell();
        let hub = self.starts.next(self.setup.dir.path(), &mut self.rng)?;
        let scene = Scene::new(hub.tcp(), self.rounds, &self.ledger);
        scene.ledger().round = self.rounds;
        scene.ledger().clock.start();
        self.look_at_retained(&hub).await?;
        scene.phase.send_replace(Phase::Finish);
        let clients = self.clients.drain(..);
        let running: Vec<_> = clients
            .map(|client| tokio::spawn(client.run(Arc::clone(&scene), CALM)))
            .collect();
        if !self.drained(&hub).await {
            let what = format!("the queues did not drain: {} wait", support::queued(&hub));
            scene.ledger().faults.other(what);
        }
        scene.phase.send_replace(Phase::Over);
        self.clients = all(running).await?;
        let open: usize = self.clients.iter().map(Client::open).sum();
        if open > 0 {
            let what = format!("{open} messages were never acknowledged");
            scene.ledger().faults.other(what);
        }
        self.look_at_retained(&hub).await?;
        self.look_at_sessions(&hub).await?;
        scene.down();
        let code = hub.terminate();
        if code != Some(0) {
            let what = format!("SIGTERM: exit code {code:?}");
            scene.ledger().faults.other(what);
        }
        self.ledger().settle();
        Ok(())
    }

    /// Waits until everything has been received that was acknowledged; false if nothing moves any
    /// more before that.
    async fn drained(&self, hub: &Hub) -> bool {
        let began = Instant::now();
        let (mut seen, mut moved, mut calm) = ((0, 0), began, 0);
        loop {
            tokio::time::sleep(Duration::from_millis(20)).await;
            let (backlog, now) = {
                let ledger = self.ledger();
                (ledger.backlog(), (ledger.receipts(), ledger.acknowledged))
            };
            // A few times, as publishers still send what was not acknowledged.
            let is_calm = seen == now && backlog == 0 && support::queued(hub) == 0;
            calm = if is_calm { calm + 1 } else { 0 };
            if calm > 10 {
                return true;
            }
            if seen != now {
                (seen, moved) = (now, Instant::now());
            }
            if moved.elapsed() > STILL_LIMIT || began.elapsed() > DRAIN_LIMIT {
                return false;
            }
        }
    }

    /// Sessions that were to be kept for a second are gone, the others are there.
    async fn look_at_sessions(&mut self, hub: &Hub) -> Result<(), String> {
        let expected = self.sessions + self.long.len();
        let began = Instant::now();
        loop {
            let status = hub.status();
            let sessions = status["clients"].as_array().map_or(0, Vec::len);
            if sessions <= expected {
                break;
            }
            if began.elapsed() > EXPIRY_LIMIT {
                let what = format!("{sessions} sessions, where {expected} have not expired");
                self.ledger().faults.other(what);
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let gone = self.brief.iter().map(|id| (id, false));
        let kept = self.long.iter().map(|id| (id, true));
        for (client_id, expected) in gone.chain(kept) {
            let hello = Hello {
                client_id: client_id.clone(),
                version: Version::Five,
                clean: false,
                expiry_s: 0,
            };
            let login = Wire::login(hub.tcp(), &hello).await;
            let (_, present) = login.map_err(|error| format!("{client_id}: {error}"))?;
            if present != expected {
                let what = format!("{client_id}: session present is {present}");
                self.ledger().faults.other(what);
            }
        }
        Ok(())
    }

    fn tell(&self) {
        let ledger = self.ledger();
        println!(
            "round {:>5}: published {}, acknowledged {}, received {}, backlog {}, again {}",
            self.rounds,
            ledger.published,
            ledger.acknowledged,
            ledger.received,
            ledger.backlog(),
            ledger.came_again + ledger.copies[0] + ledger.copies[1],
        );
    }

    pub fn report(&self, took: Duration) {
        let (seconds, starts) = (took.as_secs_f64(), &self.starts);
        println!("rounds {} in {seconds:.0} s, {starts}", self.rounds);
        self.ledger().print();
    }
}

/// Subscribes, and reads so many retained messages of as many topics.
async fn collect_retained(
    hub: &Hub,
    version: Version,
    count: usize,
) -> Result<BTreeMap<String, Vec<u8>>, ClientError> {
    let hello = Hello {
        client_id: "fresh".to_owned(),
        version,
        clean: true,
        expiry_s: 0,
    };
    let (mut wire, _) = Wire::login(hub.tcp(), &hello).await?;
    wire.subscribe(PacketId::new(1).unwrap(), "r/#", QoS::AtLeastOnce)?;
    wire.flush().await?;
    let (mut found, mut is_subscribed) = (BTreeMap::new(), false);
    while found.len() < count || !is_subscribed {
        match wire.next()? {
            Some(Said::SubAck(_)) => is_subscribed = true,
            Some(Said::Publish(message)) => {
                if let Some(id) = message.packet_id {
                    wire.answer(Answer::Ack, id)?;
                    wire.flush().await?;
                }
                found.insert(message.topic, message.payload);
            }
            Some(_) => {}
            None => wire.read().await?,
        }
    }
    wire.leave().await?;
    Ok(found)
}

/// A session with a subscription, whose SUBACK has come.
async fn short_session(hub: &Hub, client_id: &str, expiry_s: u32) -> Result<Wire, ClientError> {
    let hello = Hello {
        client_id: client_id.to_owned(),
        version: Version::Five,
        clean: true,
        expiry_s,
    };
    let (mut wire, _) = Wire::login(hub.tcp(), &hello).await?;
    wire.subscribe(PacketId::new(1).unwrap(), "short/#", QoS::AtLeastOnce)?;
    wire.flush().await?;
    let answered = async {
        loop {
            match wire.next()? {
                Some(Said::SubAck(_)) => return Ok::<_, ClientError>(()),
                _ => wire.read().await?,
            }
        }
    };
    let late = |_| ClientError::Unexpected {
        expected: "SUBACK",
        got: "nothing in time".to_owned(),
    };
    timeout(TRAFFIC_LIMIT, answered).await.map_err(late)??;
    Ok(wire)
}
