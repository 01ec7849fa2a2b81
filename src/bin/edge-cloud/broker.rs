//! rumqttd's broker on a loopback port, and the stream of messages that reach it.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use edgehub::files;
use rumqttd::local::{LinkRx, LinkTx};
use rumqttd::{Config, ConnectionSettings, Notification, RouterConfig, ServerSettings};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::oneshot;

use crate::login::Door;

/// How long the broker may take until it listens.
const START_LIMIT: Duration = Duration::from_secs(10);
/// Between two looks whether it does.
const START_CHECK: Duration = Duration::from_millis(1);
/// Clients at a time, with the link to this process.
const CONNECTIONS_MAX: usize = 1000;
/// How long a client may take until its CONNECT is there, in milliseconds.
const CONNECT_LIMIT_MS: u16 = 10_000;
/// Largest packet that the broker takes, in bytes.
const PACKET_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Packets that the broker handles at a time for one client.
const BATCH_MAX: usize = 200;
/// The broker keeps the last of its messages in so many segments of so many bytes. Only what waits
/// to be printed needs them.
const SEGMENTS: usize = 8;
const SEGMENT_BYTES: usize = 8 * 1024 * 1024;
/// The topic of the message that ends the stream. No client may publish to a wildcard.
const END_TOPIC: &str = "+";

/// A message that reached the broker.
#[derive(Debug)]
pub struct Message {
    /// Its topic.
    pub topic: String,
    /// Its body.
    pub payload: Bytes,
}

/// A running broker. It ends with the process.
pub struct Broker {
    address: SocketAddr,
    ended: oneshot::Receiver<String>,
    to_router: LinkTx,
    from_router: LinkRx,
    next_offset: u64,
}

impl fmt::Debug for Broker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Broker")
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

impl Broker {
    /// Starts the broker and waits until it listens. Without a door everybody may come in.
    ///
    /// rumqttd wants to know its port before it binds. The port is reserved by a socket that is
    /// bound to it and does not listen: the system then gives it to nobody who asks for any port.
    /// A process that asks for this very port, with `SO_REUSEADDR`, can still be faster; then the
    /// broker cannot bind, and this process ends with an error.
    ///
    /// # Errors
    /// A sentence about what the system or rumqttd refused.
    pub async fn start(door: Option<Door>) -> Result<Self, String> {
        let text = |error: std::io::Error| format!("the broker: {error}");
        let reserved = TcpSocket::new_v4().map_err(text)?;
        reserved.set_reuseaddr(true).map_err(text)?;
        reserved
            .bind((Ipv4Addr::LOCALHOST, 0).into())
            .map_err(text)?;
        let address = reserved.local_addr().map_err(text)?;

        let mut broker = rumqttd::Broker::new(config(address, door));
        // A client with the same id would take the link's place.
        let id: [u8; 16] = files::random().map_err(text)?;
        let id = format!("edge-cloud-{:032x}", u128::from_be_bytes(id));
        let (mut to_router, from_router) = broker.link(&id).map_err(|error| error.to_string())?;
        to_router
            .subscribe("#")
            .map_err(|error| error.to_string())?;
        let (end, ended) = oneshot::channel();
        thread::Builder::new()
            .name("broker".to_owned())
            .spawn(move || {
                let why = match broker.start() {
                    Ok(()) => format!("the broker does not serve {address}"),
                    Err(error) => format!("the broker: {error}"),
                };
                // Nobody waits for it when the process is about to end.
                let _ = end.send(why);
            })
            .map_err(text)?;
        let mut started = Self {
            address,
            ended,
            to_router,
            from_router,
            next_offset: 0,
        };
        tokio::select! {
            why = &mut started.ended => Err(ended_because(why)),
            listens = tokio::time::timeout(START_LIMIT, listens(address)) => match listens {
                Ok(()) => Ok(started),
                Err(_) => Err(format!("the broker does not listen on {address}")),
            },
        }
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The next message; `None` once [`Broker::finish`] was called and all before it are read.
    ///
    /// # Errors
    /// The broker ended, or gave up messages that were not read in time.
    pub async fn receive(&mut self) -> Result<Option<Message>, String> {
        loop {
            let notification = tokio::select! {
                notification = self.from_router.next() => notification,
                why = &mut self.ended => return Err(ended_because(why)),
            };
            let forward = match notification.map_err(|error| format!("the broker: {error}"))? {
                Some(Notification::Forward(forward)) => forward,
                Some(Notification::Unschedule) => {
                    self.from_router
                        .ready()
                        .map_err(|error| format!("the broker: {error}"))?;
                    continue;
                }
                _ => continue,
            };
            // Offsets have no gaps but those of messages that the broker gave up.
            if let Some((_, offset)) = forward.cursor {
                let lost = offset.saturating_sub(self.next_offset);
                if lost > 0 {
                    return Err(format!(
                        "{lost} messages came faster than they were printed"
                    ));
                }
                self.next_offset = offset.saturating_add(1);
            }
            let topic = String::from_utf8_lossy(&forward.publish.topic).into_owned();
            if topic == END_TOPIC {
                return Ok(None);
            }
            let payload = forward.publish.payload;
            return Ok(Some(Message { topic, payload }));
        }
    }

    /// Ends the stream behind all that the broker has acknowledged so far.
    ///
    /// # Errors
    /// The broker ended.
    pub fn finish(&mut self) -> Result<(), String> {
        self.to_router
            .publish(END_TOPIC, "end")
            .map(|_| ())
            .map_err(|error| format!("the broker: {error}"))
    }
}

fn ended_because(why: Result<String, oneshot::error::RecvError>) -> String {
    why.unwrap_or_else(|_| "the broker ended".to_owned())
}

/// Returns when somebody listens there.
async fn listens(address: SocketAddr) {
    while TcpStream::connect(address).await.is_err() {
        tokio::time::sleep(START_CHECK).await;
    }
}

fn config(address: SocketAddr, door: Option<Door>) -> Config {
    let mut server = ServerSettings {
        name: "mqtt".to_owned(),
        listen: address,
        tls: None,
        next_connection_delay_ms: 0,
        connections: ConnectionSettings {
            connection_timeout_ms: CONNECT_LIMIT_MS,
            max_payload_size: PACKET_BYTES_MAX,
            max_inflight_count: BATCH_MAX,
            auth: None,
            external_auth: None,
            dynamic_filters: false,
        },
    };
    if let Some(door) = door {
        server.set_auth_handler(move |client_id, username, password| {
            std::future::ready(door.admits(&client_id, &username, &password))
        });
    }
    Config {
        router: RouterConfig {
            max_connections: CONNECTIONS_MAX,
            max_outgoing_packet_count: BATCH_MAX as u64,
            max_segment_size: SEGMENT_BYTES,
            max_segment_count: SEGMENTS,
            ..RouterConfig::default()
        },
        v4: Some([(server.name.clone(), server)].into()),
        ..Config::default()
    }
}
