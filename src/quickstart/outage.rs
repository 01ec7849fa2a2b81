//! An outage of the cloud to watch: readings reach it, it is stopped, they wait in the store, it
//! is started again, and they follow in order.

use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::time::Interval;

use super::cloud::Cloud;
use super::{modules, pace, say};
use crate::client::{Client, ClientError};
use crate::hub::Hub;
use crate::iothub::bag;

/// Between two lines that say how far everything is.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Between two looks whether the hub knows what the cloud has.
const CHECK: Duration = Duration::from_millis(5);
/// Readings of a round before its outage and during it, where no count was asked for.
const ROUND: (u64, u64) = (10, 20);

/// What is watched, and how far it is.
struct Show<'a> {
    dir: &'a Path,
    hub: &'a Hub,
    cloud: &'a mut Cloud,
    sensor: Client,
    monitor: Client,
    /// The beginning of this run's message ids: an earlier one may have left messages in the store.
    run: String,
    began: Instant,
    pace: Interval,
    look: Interval,
    sent: u64,
    at_monitor: u64,
    /// Readings that the cloud has, all from the first one on.
    in_cloud: u64,
    /// Messages that it got once more, and those of earlier runs.
    again: u64,
    earlier: u64,
}

/// Shows outages until it is stopped, or one of them in the middle of `messages` readings.
pub(super) async fn show(
    dir: &Path,
    hub: &Hub,
    cloud: &mut Cloud,
    (sensor, monitor): (Client, Client),
    messages: Option<u64>,
) -> Result<(), String> {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH);
    let began = Instant::now();
    let mut show = Show {
        dir,
        hub,
        cloud,
        sensor,
        monitor,
        run: format!("{}-", since_1970.map_or(0, |time| time.as_millis())),
        began,
        pace: pace(messages),
        look: tokio::time::interval_at((began + LOOK_EVERY).into(), LOOK_EVERY),
        sent: 0,
        at_monitor: 0,
        in_cloud: 0,
        again: 0,
        earlier: 0,
    };
    let (before, during) = match messages {
        Some(messages) => {
            let during = messages.div_ceil(3);
            ((messages - during) / 2, during)
        }
        None => ROUND,
    };
    loop {
        show.arrive(show.sent + before).await?;
        show.outage(show.sent + during).await?;
        show.catch_up(messages.unwrap_or(u64::MAX)).await?;
        if let Some(messages) = messages {
            show.arrive(messages).await?;
            return show.end().await;
        }
    }
}

impl Show<'_> {
    /// Readings go out until there are so many, and reach the cloud.
    async fn arrive(&mut self, until: u64) -> Result<(), String> {
        while self.in_cloud < until {
            self.step(until).await?;
        }
        self.settle().await
    }

    /// The cloud ends; readings go on until there are so many, and wait.
    async fn outage(&mut self, until: u64) -> Result<(), String> {
        for topic in self.cloud.stop().await? {
            self.arrived(&topic)?;
        }
        self.tell("the cloud is stopped: its process has ended");
        while self.sent < until {
            self.step(until).await?;
        }
        self.tell_numbers();
        Ok(())
    }

    /// The cloud is back; what waited follows, while readings go on.
    async fn catch_up(&mut self, until: u64) -> Result<(), String> {
        let (from, to) = (self.in_cloud, self.sent);
        self.cloud.start(self.dir).await?;
        let back = Instant::now();
        self.tell("the cloud is started again, on the same port");
        let mut first = None;
        while self.in_cloud < to {
            self.step(until).await?;
            if self.in_cloud > from {
                first.get_or_insert_with(|| back.elapsed());
            }
        }
        let last = back.elapsed().as_millis();
        let first = first.map_or(last, |first| first.as_millis());
        self.tell(&format!(
            "caught up: {} readings in order, the first {first} ms and the last {last} ms \
             after the cloud's return",
            to - from
        ));
        self.settle().await
    }

    /// The hub sees acknowledgements, and we see the cloud's lines: waits until both agree, and
    /// says how far everything is.
    async fn settle(&mut self) -> Result<(), String> {
        while self.hub.waiting_upward() as u64 + self.in_cloud != self.sent {
            tokio::select! {
                topic = self.cloud.receive() => self.arrived(&topic?)?,
                () = tokio::time::sleep(CHECK) => {}
            }
        }
        self.tell_numbers();
        Ok(())
    }

    async fn end(mut self) -> Result<(), String> {
        while self.at_monitor < self.sent {
            self.step(self.sent).await?;
        }
        say(&format!(
            "{} readings are in the cloud, in order, none lost; {} came twice",
            self.in_cloud, self.again
        ));
        self.sensor.disconnect().await.map_err(text)?;
        self.monitor.disconnect().await.map_err(text)
    }

    /// The next thing that happens; a reading goes out only while there are fewer than `until`.
    async fn step(&mut self, until: u64) -> Result<(), String> {
        tokio::select! {
            _ = self.pace.tick(), if self.sent < until => {
                let id = format!("{}{}", self.run, self.sent);
                let sent = modules::measure(&mut self.sensor, self.sent, &id).await;
                sent.map_err(text)?;
                self.sent += 1;
            }
            packet = self.monitor.receive() => {
                let packet = packet.map_err(text)?;
                let message = modules::take(&mut self.monitor, packet).await.map_err(text)?;
                let is_reading = |topic: &str| {
                    modules::input(topic) == "readings" && self.number(topic).is_some()
                };
                if message.is_some_and(|(topic, _)| is_reading(&topic)) {
                    self.at_monitor += 1;
                }
            }
            topic = self.cloud.receive() => self.arrived(&topic?)?,
            _ = self.look.tick() => self.tell_numbers(),
        }
        Ok(())
    }

    /// The cloud has a message. After an outage it may get one again; it never misses one.
    fn arrived(&mut self, topic: &str) -> Result<(), String> {
        let Some(number) = self.number(topic) else {
            self.earlier += 1;
            return Ok(());
        };
        if number > self.in_cloud {
            let due = self.in_cloud;
            return Err(format!("the cloud got reading {number} instead of {due}"));
        }
        if number == self.in_cloud {
            self.in_cloud += 1;
        } else {
            self.again += 1;
        }
        Ok(())
    }

    /// Which reading of this run it is, by the message id at the end of the topic.
    fn number(&self, topic: &str) -> Option<u64> {
        let properties = topic.rsplit('/').next()?;
        let id = bag::property(properties.as_bytes(), "$.mid")?;
        id.strip_prefix(&*self.run)?.parse().ok()
    }

    fn tell_numbers(&self) {
        let earlier = match self.earlier {
            0 => String::new(),
            earlier => format!(" and {earlier} of an earlier run"),
        };
        self.tell(&format!(
            "readings {}, at the monitor {}, in the cloud {}{earlier}, waiting {}",
            self.sent,
            self.at_monitor,
            self.in_cloud,
            self.hub.waiting_upward()
        ));
    }

    fn tell(&self, what: &str) {
        say(&format!(
            "{:6.1} s  {what}",
            self.began.elapsed().as_secs_f64()
        ));
    }
}

fn text(error: ClientError) -> String {
    error.to_string()
}
