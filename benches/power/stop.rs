//! Why a run ends early, and the signals and the time limit that end it.

use std::sync::atomic::{AtomicU8, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};

const GO_ON: u8 = 0;
const INTERRUPTED: u8 = 1;
const TIME_IS_UP: u8 = 2;
const STEP: Duration = Duration::from_millis(10);

static STOP: AtomicU8 = AtomicU8::new(GO_ON);

/// Why no more cuts are made.
#[derive(Debug)]
pub enum Failure {
    /// A signal.
    Interrupted,
    TimeIsUp,
    /// This machine or this command: nothing is said about the hub.
    System(String),
    /// The hub does not do what it has to.
    Hub(String),
}

impl From<String> for Failure {
    fn from(message: String) -> Self {
        Self::System(message)
    }
}

/// From now on signals and the limit stop the run.
pub fn watch(runtime: &Runtime, limit: Duration) -> std::io::Result<()> {
    let _guard = runtime.enter();
    for kind in [
        SignalKind::interrupt(),
        SignalKind::terminate(),
        SignalKind::hangup(),
    ] {
        let mut signals = signal(kind)?;
        runtime.spawn(async move {
            while signals.recv().await.is_some() {
                STOP.store(INTERRUPTED, Ordering::Relaxed);
            }
        });
    }
    runtime.spawn(async move {
        tokio::time::sleep(limit).await;
        let _ = STOP.compare_exchange(GO_ON, TIME_IS_UP, Ordering::Relaxed, Ordering::Relaxed);
    });
    Ok(())
}

pub fn check() -> Result<(), Failure> {
    match STOP.load(Ordering::Relaxed) {
        INTERRUPTED => Err(Failure::Interrupted),
        TIME_IS_UP => Err(Failure::TimeIsUp),
        _ => Ok(()),
    }
}

/// Sleeps unless the run is stopped.
pub fn sleep(time: Duration) -> Result<(), Failure> {
    let started = Instant::now();
    loop {
        check()?;
        let left = time.saturating_sub(started.elapsed());
        if left.is_zero() {
            return Ok(());
        }
        thread::sleep(left.min(STEP));
    }
}

/// Resolves when the run is stopped.
pub async fn stopped() -> Failure {
    loop {
        if let Err(failure) = check() {
            return failure;
        }
        tokio::time::sleep(STEP).await;
    }
}
