//! A cloud to test against: a way to it that fails, a server that writes down what it gets, and the
//! checks of what it wrote down.
#![allow(dead_code, missing_docs, clippy::unwrap_used, clippy::expect_used)]
#![allow(clippy::indexing_slicing)]

pub mod checks;
pub mod faults;
pub mod port;
pub mod record;
pub mod sink;
pub mod stand_in;

use std::thread;
use std::time::Duration;

use tokio::runtime::Runtime;

const STOP_LIMIT: Duration = Duration::from_secs(10);

/// Ends everything that a runtime does, wherever this is called.
fn stop(runtime: Runtime) {
    let stopper = thread::spawn(|| runtime.shutdown_timeout(STOP_LIMIT));
    let _ = stopper.join();
}
