//! The way up: what is routed to `$upstream` leaves for the cloud.
//!
//! A [`Forwarder`] runs one [`line::Line`] for all senders (`kind = "mqtt"`) or one for each
//! (`kind = "iothub"`). A line gets connections ([`dial`]), as [`link`] says when, and talks on
//! them ([`talk`]); what is sent, and in which order, the hub decides.

pub mod dial;
pub mod filters;
mod intake;
pub mod line;
pub mod link;
pub mod network;
mod proxy;
pub mod settings;
pub mod standing;
pub mod talk;
mod words;

use std::collections::HashSet;
use std::sync::Arc;

use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use crate::hub::Hub;
use crate::mailbox::{DRAIN, Mailbox};
use crate::server::Clock;
use line::{Line, Surroundings, mail};
use settings::{Account, Settings};

/// What forwards messages to the cloud, as long as it is kept.
#[derive(Debug)]
pub struct Forwarder {
    hub: Arc<Hub>,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Forwarder {
    /// Starts forwarding; must be called within a runtime.
    #[must_use]
    pub fn start(settings: Settings, hub: &Arc<Hub>, clock: Clock) -> Self {
        hub.set_forwarding(Some((*settings.forwarding).clone()));
        let (stop, stopped) = watch::channel(false);
        let around = Surroundings {
            hub: Arc::clone(hub),
            clock,
            settings: Arc::new(settings),
            network: network::watch(),
            stop: stopped,
        };
        Self {
            hub: Arc::clone(hub),
            stop,
            task: tokio::spawn(run(around)),
        }
    }

    /// Takes leave of the cloud; what was not acknowledged stays in its queues.
    pub async fn stop(self) {
        let _ = self.stop.send(true);
        self.hub.announce_upward(DRAIN);
        // A task that panicked has ended, too.
        let _ = self.task.await;
    }
}

async fn run(mut around: Surroundings) {
    if let Account::Mqtt { .. } = around.settings.account {
        return Line::new(around, None).run().await;
    }
    let mailbox = Arc::new(Mailbox::default());
    around.hub.watch_senders(&mailbox);
    let mut lines = JoinSet::new();
    let mut known = HashSet::new();
    loop {
        for sender in around.hub.upward_senders() {
            if known.insert(sender.clone()) {
                lines.spawn(Line::new(around.clone(), Some(sender)).run());
            }
        }
        tokio::select! {
            _ = around.stop.wait_for(|stop| *stop) => break,
            _ = mail(&mailbox) => {}
        }
    }
    while lines.join_next().await.is_some() {}
}
