//! The hub under test: its folder, its process.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use edgehub::client::Hello;
use edgehub::identity::{Authentication, Identity};
use serde_json::Value;

use crate::common::{self, Setup};
use crate::stop::Failure;

/// How long a start may take, recovery included.
const START_LIMIT: Duration = Duration::from_secs(10);
/// What is shown of the log.
const LOG_LINES: usize = 20;

/// The folder of the configuration, off the disk under test, and the modules' keys.
pub struct Home {
    setup: Setup,
}

impl Home {
    /// `store` is the text of `[store]`; every publisher's messages go to every consumer.
    pub fn new(data: &Path, store: &str, publishers: &[String], consumers: &[String]) -> Self {
        let pairs: Vec<(String, String)> = publishers
            .iter()
            .flat_map(|from| {
                let to = consumers.iter();
                to.map(move |to| (format!("{from}/out"), format!("{to}/in")))
            })
            .collect();
        let pairs: Vec<(&str, &str)> = pairs.iter().map(|(from, to)| (&**from, &**to)).collect();
        let modules: Vec<&str> = publishers
            .iter()
            .chain(consumers)
            .map(|name| &**name)
            .collect();
        let mut setup = Setup::new(&common::scene::routes(&pairs), &modules);
        setup.listeners = format!(
            "data_dir = \"{}\"\n[[listener]]\nbind = \"127.0.0.1:0\"\ntransport = \"tcp\"\n",
            data.display()
        );
        setup.extra = format!("[log]\nlevel = \"warn\"\n[store]\n{store}");
        setup.write_config();
        Self { setup }
    }

    /// How a module logs in; the hub has to have been started once.
    pub fn hello(&self, module: &str) -> Result<Hello, String> {
        let identity = format!("{}/{module}", common::DEVICE);
        let path = self.setup.path("identities.json");
        let registry = edgehub::files::read_identities(&path)
            .map_err(|error| format!("identities: {error:?}"))?;
        let entry = Identity::parse(&identity).and_then(|parsed| registry.get(&parsed));
        let entry = entry.ok_or_else(|| format!("no {identity}"))?;
        match entry.authentication() {
            Authentication::Sas { primary, .. } => Ok(common::hello(&identity, primary.as_bytes())),
            other => Err(format!("{identity}: {other:?}")),
        }
    }

    /// The end of what the hub has logged.
    pub fn log(&self) -> String {
        let text = fs::read_to_string(self.setup.path("hub.log")).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
    }

    /// A process that may not be ready yet.
    pub fn spawn(&self) -> Result<Process, String> {
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.setup.path("hub.log"))
            .map_err(|error| error.to_string())?;
        let child = Command::new(common::BINARY)
            .args(["run", "--config", "edgehub.toml"])
            .current_dir(self.setup.dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .process_group(0)
            .spawn()
            .map_err(|error| format!("{}: {error}", common::BINARY))?;
        Ok(Process(child))
    }

    /// A hub that is ready, and where it listens.
    pub fn start(&self) -> Result<(Process, SocketAddr), Failure> {
        let mut process = self.spawn()?;
        let (sender, ready) = mpsc::channel();
        if let Some(stdout) = process.0.stdout.take() {
            thread::spawn(move || {
                for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                    let _ = sender.send(line);
                }
            });
        }
        let line = ready.recv_timeout(START_LIMIT).map_err(|error| {
            let why = match error {
                RecvTimeoutError::Timeout => "not ready in time",
                RecvTimeoutError::Disconnected => "ended before it was ready",
            };
            Failure::Hub(why.to_owned())
        })?;
        let address = serde_json::from_str::<Value>(&line).ok().and_then(|ready| {
            let address = ready["listeners"][0]["address"].as_str()?;
            address.parse().ok()
        });
        let address = address.ok_or_else(|| Failure::Hub(format!("no ready line: {line}")))?;
        Ok((process, address))
    }
}

/// Killed when dropped.
pub struct Process(Child);

impl Process {
    pub fn is_running(&mut self) -> bool {
        matches!(self.0.try_wait(), Ok(None))
    }

    /// SIGKILL; returns when the process is gone.
    pub fn kill(self) {}
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
