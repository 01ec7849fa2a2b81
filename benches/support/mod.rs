//! What the proofs share: options, a place to run in, a start of the hub that is bounded.

pub mod checks;
pub mod clients;
pub mod ledger;
pub mod link;
pub mod plan;
pub mod pump;
pub mod rng;
pub mod starts;
pub mod targets;

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::common::{BINARY, Hub};

/// The longest that a hub may take until it says that it is ready.
pub const READY_LIMIT: Duration = Duration::from_secs(30);
/// Queues that nothing leaves for so long are stuck.
const STILL_LIMIT: Duration = Duration::from_secs(5);
/// Lines of the hub's log that are shown when something is wrong.
const LOG_LINES: usize = 30;

/// The command line: `--name value`, in any order.
pub struct Options(Vec<String>);

impl Options {
    pub fn read() -> Self {
        Self(std::env::args().collect())
    }

    pub fn text(&self, name: &str) -> Option<&str> {
        let at = self.0.iter().position(|arg| arg == name)?;
        let value = self.0.get(at + 1).map(String::as_str);
        Some(value.unwrap_or_else(|| panic!("{name} needs a value")))
    }

    pub fn number(&self, name: &str, default: u64) -> u64 {
        let parse = |text: &str| text.parse().unwrap_or_else(|_| panic!("{name}: a number"));
        self.text(name).map_or(default, parse)
    }

    pub fn flag(&self, name: &str) -> bool {
        self.0.iter().any(|arg| arg == name)
    }
}

/// A folder of its own below `--dir`, `target` by default.
pub fn folder(options: &Options) -> TempDir {
    let parent = PathBuf::from(options.text("--dir").unwrap_or("target"));
    fs::create_dir_all(&parent).unwrap();
    tempfile::tempdir_in(parent).unwrap()
}

/// A runtime with so many threads.
pub fn runtime(threads: usize) -> Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .enable_all()
        .build()
        .unwrap()
}

/// Starts the hub of a folder, or says within the limit why it did not.
pub fn start(dir: &Path) -> Result<Hub, String> {
    let mut child = spawn(dir);
    let mut stdout = child.stdout.take().unwrap();
    let (say, hear) = mpsc::channel();
    std::thread::spawn(move || {
        let mut line = String::new();
        let read = BufReader::new(&mut stdout).read_line(&mut line);
        // Nobody listens any more if that took too long.
        let _ = say.send((read.map(|_| line), stdout));
    });
    let line = match hear.recv_timeout(READY_LIMIT) {
        Ok((Ok(line), stdout)) if !line.is_empty() => {
            child.stdout = Some(stdout);
            line
        }
        heard => {
            let _ = child.kill();
            let status = child.wait();
            let why = if heard.is_err() { "in time" } else { "at all" };
            let log = log_end(dir);
            return Err(format!("no ready line {why} ({status:?})\n{log}"));
        }
    };
    let ready: Value = serde_json::from_str(&line).unwrap();
    let listeners = ready["listeners"].as_array().unwrap().iter();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let listeners = listeners
        .map(|listener| {
            let address = text(&listener["address"]).parse().unwrap();
            (text(&listener["transport"]), address)
        })
        .collect();
    Ok(Hub {
        child,
        dir: dir.to_owned(),
        listeners,
        log: dir.join("hub.log"),
    })
}

/// Starts the hub and cuts it off before it may have finished starting.
fn start_cut_off(dir: &Path, after: Duration) {
    let mut child = spawn(dir);
    std::thread::sleep(after);
    child.kill().unwrap();
    child.wait().unwrap();
}

fn spawn(dir: &Path) -> Child {
    let log = dir.join("hub.log");
    let log = fs::OpenOptions::new().create(true).append(true).open(log);
    Command::new(BINARY)
        .args(["run", "--config", "edgehub.toml"])
        .current_dir(dir)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log.unwrap())
        .spawn()
        .unwrap()
}

/// The last lines of the hub's log.
pub fn log_end(dir: &Path) -> String {
    let log = fs::read_to_string(dir.join("hub.log")).unwrap_or_default();
    // What is odd about the settings is said at every start.
    let odd = |line: &&str| !line.contains("edgehub.toml");
    let lines: Vec<&str> = log.lines().filter(odd).collect();
    let from = lines.len().saturating_sub(LOG_LINES);
    format!("--- end of the hub's log ---\n{}", lines[from..].join("\n"))
}

/// Messages that wait at the hub or are in flight from it.
pub fn queued(hub: &Hub) -> u64 {
    let status = hub.status();
    let queues = status["queues"].as_array().unwrap().iter();
    let messages = |queue: &Value| {
        let count = |key: &str| queue[key].as_u64().unwrap_or(0);
        count("messages").max(count("inFlight"))
    };
    queues.map(messages).sum()
}

/// Waits until everything that was acknowledged has been received and the hub's queues are empty;
/// false if nothing moves any more before that.
pub async fn drained(hub: &Hub, scene: &clients::Scene, limit: Duration) -> bool {
    let begin = Instant::now();
    let (mut seen, mut moved) = (0, begin);
    loop {
        tokio::time::sleep(Duration::from_millis(20)).await;
        let (backlog, now) = {
            let ledger = scene.ledger();
            (ledger.backlog(), ledger.receipts())
        };
        let calm = scene.phase.borrow().ge(&clients::Phase::Finish) && backlog == 0;
        if calm && queued(hub) == 0 {
            return true;
        }
        if seen != now {
            (seen, moved) = (now, Instant::now());
        }
        if moved.elapsed() > STILL_LIMIT || begin.elapsed() > limit {
            return false;
        }
    }
}
