//! One run of the hub between two kills.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use edgehub::client::ClientError;
use tokio::sync::{Notify, watch};

use super::ledger::Ledger;
use crate::support::clients::Phase;

/// One run of the hub, as its clients see it.
pub struct Scene {
    pub address: SocketAddr,
    pub round: u32,
    pub ledger: Arc<Mutex<Ledger>>,
    pub phase: watch::Sender<Phase>,
    /// Told at every acknowledgement of a message.
    pub acknowledged: Notify,
    /// Whether a connection that ends is the hub's fault.
    pub up: AtomicBool,
}

impl Scene {
    pub fn new(address: SocketAddr, round: u32, ledger: &Arc<Mutex<Ledger>>) -> Arc<Self> {
        Arc::new(Self {
            address,
            round,
            ledger: Arc::clone(ledger),
            phase: watch::Sender::new(Phase::Traffic),
            acknowledged: Notify::new(),
            up: AtomicBool::new(true),
        })
    }

    pub fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap()
    }

    /// The hub is about to end: connections may.
    pub fn down(&self) {
        self.up.store(false, Ordering::Release);
        self.ledger().clock.stop();
    }

    /// A client's turn ended: was it to?
    pub fn judge(&self, name: &str, ended: Result<(), ClientError>) {
        let up = self.up.load(Ordering::Acquire);
        let is_end =
            |error: &ClientError| matches!(error, ClientError::Io(_) | ClientError::Closed);
        match ended {
            Err(error) if up || !is_end(&error) => {
                let when = if up { ", with the hub up" } else { "" };
                let what = format!("round {}: {name}: {error}{when}", self.round);
                self.ledger().faults.other(what);
            }
            _ => {}
        }
    }
}
