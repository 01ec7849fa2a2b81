//! What a forwarder does, done by a module: takes what the hub has for it, sends it up, and
//! acknowledges it when the cloud has. Tries the proof itself with a hub that has no way up.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use edgehub::client::{ClientError, Hello};
use edgehub::mqtt::{self, FromServer, PacketId, Publish};
use tokio::time::{sleep, timeout};

use super::scene::{Kind, Scene};
use crate::common::{DEVICE, Hub, hello, inputs};
use crate::support::link::Link;

/// A cloud that owes an answer and says nothing for so long is gone.
const SILENCE: Duration = Duration::from_secs(3);
const BETWEEN_TRIES: Duration = Duration::from_millis(500);
const LOGIN_LIMIT: Duration = Duration::from_secs(2);

struct Carried {
    /// Its ids up there and at the hub.
    up: PacketId,
    at_hub: PacketId,
    topic: String,
    payload: Vec<u8>,
}

pub struct Bridge {
    hello: Hello,
    cloud: SocketAddr,
    next_id: u16,
    in_flight: VecDeque<Carried>,
}

impl Bridge {
    fn new(key: &[u8], cloud: SocketAddr) -> Self {
        Self {
            hello: Hello {
                keep_alive_seconds: 0,
                ..hello(&format!("{DEVICE}/bridge"), key)
            },
            cloud,
            next_id: 1,
            in_flight: VecDeque::new(),
        }
    }

    /// Begins to carry, where the hub does not do so itself.
    pub fn hire(kind: Kind, hub: &Hub, cloud: SocketAddr, scene: &Arc<Scene>) {
        if kind == Kind::Bridge {
            let bridge = Self::new(&hub.key("edge-1/bridge"), cloud);
            tokio::spawn(bridge.run(Arc::clone(scene)));
        }
    }

    /// Carries through all restarts of the hub.
    async fn run(mut self, scene: Arc<Scene>) {
        let mut hub = scene.hub.subscribe();
        loop {
            let address = match hub.wait_for(Option::is_some).await {
                Ok(address) => address.unwrap(),
                Err(_) => return,
            };
            if let Err(error) = self.with_hub(address).await {
                scene.judge("bridge", address, &error);
            }
            // A restart of the hub would be a restart of its forwarder.
            self.in_flight.clear();
            if hub.wait_for(|hub| *hub != Some(address)).await.is_err() {
                return;
            }
        }
    }

    async fn with_hub(&mut self, address: SocketAddr) -> Result<(), ClientError> {
        let (mut hub, session_present) = Link::login(address, &self.hello).await?;
        if !session_present {
            hub.subscribe(&inputs("bridge"))?;
        }
        hub.flush().await?;
        loop {
            let up = Hello {
                client_id: DEVICE.to_owned(),
                clean_session: false,
                ..Hello::default()
            };
            let Ok(Ok((mut cloud, session_present))) =
                timeout(LOGIN_LIMIT, Link::login(self.cloud, &up)).await
            else {
                tokio::select! {
                    () = sleep(BETWEEN_TRIES) => {}
                    read = hub.read() => {
                        read?;
                    }
                }
                continue;
            };
            for carried in &mut self.in_flight {
                if !session_present {
                    carried.up = take_id(&mut self.next_id);
                }
                let Carried { topic, payload, .. } = carried;
                cloud.publish(topic, carried.up, payload, session_present)?;
            }
            self.carry(&mut hub, &mut cloud).await?;
        }
    }

    /// Until the cloud has gone, which is no error.
    async fn carry(&mut self, hub: &mut Link, cloud: &mut Link) -> Result<(), ClientError> {
        loop {
            self.take(hub, cloud)?;
            hub.flush().await?;
            if cloud.flush().await.is_err() {
                return Ok(());
            }
            let silence = async {
                match self.in_flight.is_empty() {
                    true => std::future::pending().await,
                    false => sleep(SILENCE).await,
                }
            };
            tokio::select! {
                read = cloud.read() => if read.is_err() {
                    return Ok(());
                },
                read = hub.read() => read?,
                () = silence => return Ok(()),
            }
            self.acknowledge(hub, cloud)?;
        }
    }

    fn take(&mut self, hub: &mut Link, cloud: &mut Link) -> Result<(), ClientError> {
        let mut wrong = Ok(());
        hub.each(|packet, _| {
            let FromServer::Publish(Publish {
                topic,
                payload,
                packet_id: Some(at_hub),
                ..
            }) = packet
            else {
                return;
            };
            let bag = topic.rsplit('/').next().unwrap_or_default();
            let sender = bag.rsplit("%24.cmid=").next().unwrap_or_default();
            let carried = Carried {
                up: take_id(&mut self.next_id),
                at_hub,
                topic: format!("devices/{DEVICE}/modules/{sender}/messages/events/{bag}"),
                payload: payload.to_vec(),
            };
            let sent = cloud.publish(&carried.topic, carried.up, payload, false);
            if sent.is_err() {
                wrong = sent;
            }
            self.in_flight.push_back(carried);
        })?;
        wrong
    }

    fn acknowledge(&mut self, hub: &mut Link, cloud: &mut Link) -> Result<(), ClientError> {
        let in_flight = &mut self.in_flight;
        let taken = cloud.each(|packet, _| {
            if let FromServer::PubAck(id) = packet
                && let Some(at) = in_flight.iter().position(|carried| carried.up == id)
                && let Some(carried) = in_flight.remove(at)
            {
                mqtt::encode_puback(&mut hub.output, carried.at_hub);
            }
        });
        taken.map(drop)
    }
}

fn take_id(next_id: &mut u16) -> PacketId {
    let id = PacketId::new(*next_id).unwrap();
    *next_id = next_id.checked_add(1).unwrap_or(1);
    id
}
