//! Publishers and consumers: MQTT clients that keep the ledger.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use edgehub::client::{Client, ClientError, Hello, Packet};
use edgehub::mqtt::{FromClient, PacketId, Publish, QoS};
use tokio::time::{Instant, timeout_at};

use crate::common;
use crate::ledger::{Ledger, WINDOW};
use crate::rng::Rng;

/// So many messages a publisher sends at its own pace between two cuts, and then slowly.
const MESSAGES_MAX: u64 = 3_000;

/// The ledger, for tasks.
#[derive(Clone)]
pub struct Shared(Arc<Mutex<Ledger>>);

impl Shared {
    pub fn new(ledger: Ledger) -> Self {
        Self(Arc::new(Mutex::new(ledger)))
    }

    pub fn lock(&self) -> MutexGuard<'_, Ledger> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How fast a publisher sends: so many messages, then a pause.
#[derive(Clone, Copy)]
pub struct Pace {
    burst: u64,
    pause: Duration,
}

impl Pace {
    const TRICKLE: Self = Self::new(1, 5);

    const fn new(burst: u64, pause_ms: u64) -> Self {
        Self {
            burst,
            pause: Duration::from_millis(pause_ms),
        }
    }

    pub fn any(rng: &mut Rng) -> Self {
        let (burst, pause_ms) = rng.one_of(&[(1, 5), (4, 2), (16, 4), (100, 0)]);
        Self::new(burst, pause_ms)
    }
}

async fn login(address: SocketAddr, hello: &Hello) -> Result<Client, ClientError> {
    let mut client = Client::tcp(address).await?;
    client.connect(hello).await?;
    Ok(client)
}

/// A publisher of the run.
#[derive(Clone)]
pub struct Publisher {
    pub number: usize,
    pub topic: String,
    pub hello: Hello,
    pub ledger: Shared,
}

impl Publisher {
    /// Connects, sends again what was not acknowledged, then one new message, and waits until all
    /// are acknowledged.
    pub async fn settle(&self, address: SocketAddr) -> Result<Client, ClientError> {
        let mut client = login(address, &self.hello).await?;
        let again = self.ledger.lock().send_again(self.number);
        for (id, payload) in again {
            self.publish(&mut client, id, &payload, true).await?;
        }
        self.publish_new(&mut client).await?;
        while self.ledger.lock().open(self.number) > 0 {
            self.receive(&mut client).await?;
        }
        Ok(client)
    }

    /// Publishes until the connection ends.
    pub async fn run(&self, mut client: Client, pace: Pace) -> ClientError {
        match self.try_run(&mut client, pace).await {
            Ok(never) => match never {},
            Err(error) => error,
        }
    }

    async fn try_run(&self, client: &mut Client, pace: Pace) -> Result<Infallible, ClientError> {
        let mut left = MESSAGES_MAX;
        loop {
            let pace = if left > 0 { pace } else { Pace::TRICKLE };
            let mut burst = pace.burst;
            let pause_end = Instant::now() + pace.pause;
            while burst > 0 {
                if self.ledger.lock().open(self.number) < WINDOW {
                    self.publish_new(client).await?;
                    (burst, left) = (burst - 1, left.saturating_sub(1));
                } else {
                    self.receive(client).await?;
                }
            }
            while let Ok(received) = timeout_at(pause_end, self.receive(client)).await {
                received?;
            }
        }
    }

    async fn publish_new(&self, client: &mut Client) -> Result<(), ClientError> {
        let (id, payload) = self.ledger.lock().send(self.number);
        self.publish(client, id, &payload, false).await
    }

    async fn publish(
        &self,
        client: &mut Client,
        id: PacketId,
        payload: &[u8],
        dup: bool,
    ) -> Result<(), ClientError> {
        let publish = Publish {
            dup,
            qos: QoS::AtLeastOnce,
            retain: false,
            topic: &self.topic,
            packet_id: Some(id),
            payload,
        };
        client.send(&FromClient::Publish(publish)).await
    }

    async fn receive(&self, client: &mut Client) -> Result<(), ClientError> {
        match client.receive().await? {
            Packet::PubAck(id) => self.ledger.lock().acknowledged(self.number, id),
            other => return Err(unexpected("PUBACK", &other)),
        }
        Ok(())
    }
}

/// A consumer of the run.
#[derive(Clone)]
pub struct Consumer {
    pub number: usize,
    pub module: String,
    pub hello: Hello,
    pub ledger: Shared,
}

impl Consumer {
    /// Connects, and takes messages until it has everything.
    pub async fn drain(&self, address: SocketAddr) -> Result<(), ClientError> {
        let mut client = self.listen(address).await?;
        while !self.ledger.lock().is_drained(self.number) {
            self.receive(&mut client).await?;
        }
        client.disconnect().await
    }

    /// Takes messages until the connection ends.
    pub async fn run(&self, address: SocketAddr) -> ClientError {
        match self.try_run(address).await {
            Ok(never) => match never {},
            Err(error) => error,
        }
    }

    async fn try_run(&self, address: SocketAddr) -> Result<Infallible, ClientError> {
        let mut client = self.listen(address).await?;
        loop {
            self.receive(&mut client).await?;
        }
    }

    /// Messages may come before the answer to the subscription.
    async fn listen(&self, address: SocketAddr) -> Result<Client, ClientError> {
        let mut client = login(address, &self.hello).await?;
        let mut subscribe = bytes::BytesMut::new();
        let inputs = common::inputs(&self.module);
        let filters = std::iter::once((&*inputs, QoS::AtLeastOnce));
        if let Some(id) = PacketId::new(1) {
            edgehub::mqtt::encode_subscribe(&mut subscribe, id, filters)?;
        }
        client.send_bytes(&subscribe).await?;
        Ok(client)
    }

    async fn receive(&self, client: &mut Client) -> Result<(), ClientError> {
        match client.receive().await? {
            Packet::Publish {
                topic,
                payload,
                packet_id,
                ..
            } => {
                self.ledger.lock().received(self.number, &topic, &payload);
                match packet_id {
                    Some(id) => client.acknowledge(id).await,
                    None => Err(unexpected("QoS 1", &"QoS 0")),
                }
            }
            Packet::SubAck(..) => Ok(()),
            other => Err(unexpected("PUBLISH", &other)),
        }
    }
}

fn unexpected(expected: &'static str, got: &impl std::fmt::Debug) -> ClientError {
    ClientError::Unexpected {
        expected,
        got: format!("{got:?}"),
    }
}
