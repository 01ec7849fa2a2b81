//! A receiver that compares what comes with what was sent.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use edgehub::mqtt::{self, FromServer};
use tokio::sync::mpsc::UnboundedSender;

use crate::common::{self, Hub};
use crate::support::link::{Body, Link};
use crate::support::pump::hello;

const STALL: Duration = Duration::from_secs(30);
/// Output of the backlog, of urgent messages, of live ones.
pub const BULK: usize = 0;
pub const URGENT: usize = 1;
pub const LIVE: usize = 2;

/// What others see of a receiver while it runs.
#[derive(Default)]
pub struct Progress {
    /// Messages received, without urgent ones.
    pub received: AtomicU64,
    /// Microseconds that it waits before it acknowledges what it read.
    pub pause_us: AtomicU64,
}

/// A receiver with what it expects next of each publisher.
pub struct Consumer {
    link: Link,
    next: Vec<u32>,
    pub progress: Arc<Progress>,
    urgent: Option<UnboundedSender<(u32, Instant)>>,
}

impl Consumer {
    /// Gives the module a persistent session, and leaves.
    pub async fn hire(hub: &Hub, module: &str) -> Result<(), String> {
        let told = |error: edgehub::client::ClientError| format!("{module}: {error}");
        let login = Link::login(hub.tcp(), &hello(hub, module)).await;
        let (mut link, _) = login.map_err(told)?;
        link.subscribe(&common::inputs(module)).map_err(told)?;
        link.flush().await.map_err(told)?;
        link.read().await.map_err(told)?;
        link.each(|_, _| ()).map_err(told)?;
        link.leave().await.map_err(told)
    }

    /// Connected with the session that is there.
    pub async fn connect(hub: &Hub, module: &str, publishers: usize) -> Result<Self, String> {
        let login = Link::login(hub.tcp(), &hello(hub, module)).await;
        let (link, present) = login.map_err(|error| format!("{module}: {error}"))?;
        if !present {
            return Err(format!("{module}: the session has gone"));
        }
        Ok(Self {
            link,
            next: vec![0; publishers],
            progress: Arc::default(),
            urgent: None,
        })
    }

    /// Urgent messages are told with the time at which they came.
    pub fn tell(&mut self, urgent: UnboundedSender<(u32, Instant)>) {
        self.urgent = Some(urgent);
    }

    /// Receives and acknowledges until so many have come, urgent ones not counted.
    pub async fn run(mut self, messages: u64) -> Result<Self, String> {
        while self.progress.received.load(Ordering::Relaxed) < messages {
            self.take().await?;
            let pause = self.progress.pause_us.load(Ordering::Relaxed);
            if pause > 0 {
                tokio::time::sleep(Duration::from_micros(pause)).await;
            }
            self.flush().await?;
        }
        Ok(self)
    }

    /// Waits for something to come; its acknowledgements are not sent yet.
    pub async fn take(&mut self) -> Result<(), String> {
        // Some may have come together with the answer to the login.
        while self.taken()? == 0 {
            let read = tokio::time::timeout(STALL, self.link.read()).await;
            let read = read.map_err(|_| "nothing comes any more".to_owned())?;
            read.map_err(|error| error.to_string())?;
        }
        Ok(())
    }

    /// Compares what is there; how many packets that were.
    fn taken(&mut self) -> Result<usize, String> {
        let now = Instant::now();
        let (next, urgent, progress) = (&mut self.next, &self.urgent, &self.progress);
        let mut odd = None;
        let mut came = 0;
        let each = |packet: FromServer<'_>, out: &mut BytesMut| {
            let FromServer::Publish(publish) = packet else {
                odd = Some(format!("{packet:?}"));
                return;
            };
            if let Some(id) = publish.packet_id {
                mqtt::encode_puback(out, id);
            }
            match Body::read(publish.payload) {
                Some(body) if body.output == URGENT => {
                    let told = urgent.as_ref().map(|tell| tell.send((body.ordinal, now)));
                    if told.is_none_or(|told| told.is_err()) {
                        odd = Some(format!("nobody waits for {body:?}"));
                    }
                }
                Some(body) if next.get(body.publisher) == Some(&body.ordinal) => {
                    next[body.publisher] += 1;
                    came += 1;
                }
                body => odd = Some(format!("{body:?} instead of one of {next:?}")),
            }
        };
        let count = self.link.each(each).map_err(|error| error.to_string())?;
        progress.received.fetch_add(came, Ordering::Relaxed);
        odd.map_or(Ok(count), |odd| Err(format!("received {odd}")))
    }

    pub async fn flush(&mut self) -> Result<(), String> {
        self.link.flush().await.map_err(|error| error.to_string())
    }

    pub async fn leave(self) -> Result<(), String> {
        self.link.leave().await.map_err(|error| error.to_string())
    }
}
