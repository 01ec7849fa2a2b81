//! A cloud to test against: a way to it that fails.
#![allow(dead_code, missing_docs, clippy::unwrap_used, clippy::expect_used)]
#![allow(clippy::indexing_slicing)]

pub mod faults;
pub mod port;

use std::thread;
use std::time::Duration;

use tokio::runtime::Runtime;

const STOP_LIMIT: Duration = Duration::from_secs(10);

/// Ends everything that a runtime does, wherever this is called.
fn stop(runtime: Runtime) {
    let stopper = thread::spawn(|| runtime.shutdown_timeout(STOP_LIMIT));
    let _ = stopper.join();
}
