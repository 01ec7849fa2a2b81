//! A stand-in for a hub's way up, to try the sink and the checks with: sends messages in order with
//! a window, and after a break again what was in flight, as the session wants it.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use edgehub::client::{Client, ClientError, Hello, Packet};
use edgehub::mqtt::{FromClient, PacketId, Publish, QoS};
use tokio::time::timeout;

/// A server that says nothing for so long is gone.
const SILENCE: Duration = Duration::from_millis(500);

#[derive(Debug)]
pub enum Broke {
    Silent,
    Client(ClientError),
}

impl From<ClientError> for Broke {
    fn from(error: ClientError) -> Self {
        Self::Client(error)
    }
}

pub struct StandIn {
    hello: Hello,
    window: usize,
    next_id: u16,
    /// Topic and payload.
    waiting: VecDeque<(String, Vec<u8>)>,
    in_flight: VecDeque<(PacketId, String, Vec<u8>)>,
    client: Option<Client>,
    pub acknowledged: usize,
}

impl StandIn {
    pub fn new(client_id: &str, window: usize) -> Self {
        let hello = Hello {
            client_id: client_id.to_owned(),
            clean_session: false,
            ..Hello::default()
        };
        Self {
            hello,
            window,
            next_id: 1,
            waiting: VecDeque::new(),
            in_flight: VecDeque::new(),
            client: None,
            acknowledged: 0,
        }
    }

    pub fn queue(&mut self, topic: String, payload: Vec<u8>) {
        self.waiting.push_back((topic, payload));
    }

    /// Goes on until so many more are acknowledged or none is left; connects first if it has to.
    pub async fn forward(&mut self, address: SocketAddr, count: usize) -> Result<(), Broke> {
        let going_on = self.try_forward(address, count).await;
        if going_on.is_err() {
            self.client = None;
        }
        going_on
    }

    async fn try_forward(&mut self, address: SocketAddr, count: usize) -> Result<(), Broke> {
        let end = self.acknowledged + count;
        if self.client.is_none() {
            self.connect(address).await?;
        }
        while self.acknowledged < end {
            while self.in_flight.len() < self.window
                && let Some((topic, payload)) = self.waiting.pop_front()
            {
                let id = self.take_id();
                self.in_flight.push_back((id, topic, payload));
                self.publish(self.in_flight.len() - 1, false).await?;
            }
            if self.in_flight.is_empty() {
                return Ok(());
            }
            self.acknowledgement().await?;
        }
        Ok(())
    }

    async fn connect(&mut self, address: SocketAddr) -> Result<(), Broke> {
        let login = async {
            let mut client = Client::tcp(address).await?;
            let session_present = client.connect(&self.hello).await?;
            Ok::<_, ClientError>((client, session_present))
        };
        let login = timeout(SILENCE, login).await;
        let (client, session_present) = login.map_err(|_| Broke::Silent)??;
        self.client = Some(client);
        for at in 0..self.in_flight.len() {
            if !session_present {
                self.in_flight[at].0 = self.take_id();
            }
            self.publish(at, session_present).await?;
        }
        Ok(())
    }

    async fn publish(&mut self, at: usize, dup: bool) -> Result<(), Broke> {
        let (id, topic, payload) = &self.in_flight[at];
        let packet = FromClient::Publish(Publish {
            dup,
            qos: QoS::AtLeastOnce,
            retain: false,
            topic,
            packet_id: Some(*id),
            payload,
        });
        let client = self.client.as_mut().unwrap();
        Ok(client.send(&packet).await?)
    }

    async fn acknowledgement(&mut self) -> Result<(), Broke> {
        let client = self.client.as_mut().unwrap();
        let packet = timeout(SILENCE, client.receive()).await;
        let packet = packet.map_err(|_| Broke::Silent)??;
        let Packet::PubAck(id) = packet else {
            panic!("expected PUBACK, got {packet:?}");
        };
        let at = self.in_flight.iter().position(|(open, _, _)| *open == id);
        self.in_flight
            .remove(at.expect("PUBACK of what was not sent"));
        self.acknowledged += 1;
        Ok(())
    }

    fn take_id(&mut self) -> PacketId {
        let id = PacketId::new(self.next_id).unwrap();
        self.next_id = self.next_id.checked_add(1).unwrap_or(1);
        id
    }
}
