//! A publisher that keeps so many messages in flight and times their PUBACKs.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use edgehub::client::Hello;
use edgehub::mqtt::{FromServer, PacketId};
use hdrhistogram::Histogram;

use super::link::{Body, Link};
use crate::common::{self, Hub};

/// The longest that nothing may come.
const STALL: Duration = Duration::from_secs(30);

/// A histogram of nanoseconds, up to a minute.
pub fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000_000, 3).unwrap()
}

/// A percentile in microseconds.
pub fn micros(times: &Histogram<u64>, percentile: f64) -> f64 {
    times.value_at_percentile(percentile) as f64 / 1e3
}

/// How a module introduces itself; no keep-alive, persistent session.
pub fn hello(hub: &Hub, module: &str) -> Hello {
    let mut hello = hub.hello(&format!("edge-1/{module}"));
    hello.keep_alive_seconds = 0;
    hello
}

/// When to stop, and what to time.
#[derive(Clone, Copy)]
pub struct Span {
    /// Messages at the most.
    pub messages: u32,
    /// PUBACKs from here on are timed.
    pub from: Instant,
    /// No message after this, and no PUBACK is timed.
    pub until: Instant,
}

impl Span {
    /// So many messages, all timed.
    pub fn count(messages: u32) -> Self {
        let from = Instant::now();
        Self {
            messages,
            from,
            until: from + Duration::from_secs(86_400),
        }
    }
}

/// A publisher `p{number}`, and one of its outputs.
pub struct Pump {
    link: Link,
    topic: String,
    number: usize,
    output: usize,
    bytes: usize,
    sent: u32,
    flying: VecDeque<(PacketId, Instant)>,
    body: Vec<u8>,
}

impl Pump {
    /// Connected as `p{number}`, for messages of so many bytes to one of its outputs.
    pub async fn connect(
        hub: &Hub,
        number: usize,
        output: usize,
        bytes: usize,
    ) -> Result<Self, String> {
        let hello = hello(hub, &format!("p{number}"));
        Self::login(hub.tcp(), &hello, (number, output), bytes).await
    }

    /// The same at a server of any kind.
    pub async fn login(
        address: SocketAddr,
        hello: &Hello,
        (number, output): (usize, usize),
        bytes: usize,
    ) -> Result<Self, String> {
        let (link, _) = Link::login(address, hello)
            .await
            .map_err(|error| format!("p{number}: {error}"))?;
        Ok(Self {
            link,
            topic: common::output(&format!("p{number}"), &format!("o{output}"), ""),
            number,
            output,
            bytes,
            sent: 0,
            flying: VecDeque::new(),
            body: Vec::new(),
        })
    }

    /// Sends with so many in flight until the span ends, and waits for what is in flight then.
    pub async fn run(&mut self, window: usize, span: Span) -> Result<Histogram<u64>, String> {
        let mut times = histogram();
        let first = self.sent;
        loop {
            let now = Instant::now();
            while now < span.until
                && self.sent - first < span.messages
                && self.flying.len() < window
            {
                self.publish(now)?;
            }
            if self.flying.is_empty() {
                return Ok(times);
            }
            self.exchange().await?;
            self.acknowledged(&mut times, &span)?;
        }
    }

    /// One message; resolves with the time at which it was sent, once it is acknowledged.
    pub async fn one(&mut self) -> Result<Instant, String> {
        let began = Instant::now();
        self.run(1, Span::count(1)).await?;
        Ok(began)
    }

    fn publish(&mut self, now: Instant) -> Result<(), String> {
        let id = PacketId::new((self.sent % 65_535) as u16 + 1).unwrap();
        let body = Body {
            publisher: self.number,
            output: self.output,
            ordinal: self.sent,
            counter: self.sent,
            bytes: self.bytes,
        };
        body.write(&mut self.body);
        let sent = self.link.publish(&self.topic, id, &self.body, false);
        sent.map_err(|error| error.to_string())?;
        self.flying.push_back((id, now));
        self.sent += 1;
        Ok(())
    }

    async fn exchange(&mut self) -> Result<(), String> {
        let exchange = async {
            self.link.flush().await?;
            self.link.read().await
        };
        let done = tokio::time::timeout(STALL, exchange).await;
        let done = done.map_err(|_| format!("p{}: no PUBACK in time", self.number))?;
        done.map_err(|error| format!("p{}: {error}", self.number))
    }

    fn acknowledged(&mut self, times: &mut Histogram<u64>, span: &Span) -> Result<(), String> {
        let now = Instant::now();
        let counts = now >= span.from && now < span.until;
        let flying = &mut self.flying;
        let mut odd = None;
        let each = |packet: FromServer<'_>, _: &mut bytes::BytesMut| {
            let FromServer::PubAck(id) = packet else {
                odd = Some(format!("{packet:?}"));
                return;
            };
            match flying.pop_front() {
                Some((expected, at)) if expected == id => {
                    if counts {
                        times.saturating_record((now - at).as_nanos() as u64);
                    }
                }
                other => odd = Some(format!("PUBACK {id:?}, expected {other:?}")),
            }
        };
        self.link.each(each).map_err(|error| error.to_string())?;
        odd.map_or(Ok(()), |odd| Err(format!("p{}: {odd}", self.number)))
    }

    pub async fn leave(self) -> Result<(), String> {
        self.link.leave().await.map_err(|error| error.to_string())
    }
}
