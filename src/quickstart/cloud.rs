//! The stand-in cloud: a process of its own that is started, stopped, and started again on the
//! same port.

use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::thread;
use std::time::Duration;

use serde_json::Value;
use tokio::net::TcpSocket;
use tokio::sync::mpsc;

/// Its executable, beside our own: the hub is built without a broker.
const PROGRAM: &str = "edge-cloud";
/// How long it may take to begin and to end.
const LIMIT: Duration = Duration::from_secs(20);
/// Lines that wait to be taken. Behind them the cloud itself waits.
const LINES_MAX: usize = 100;

/// The stand-in cloud. Its process ends with this, whatever the reason.
#[derive(Debug)]
pub struct Cloud {
    program: PathBuf,
    address: SocketAddr,
    /// Bound and not listening: while the cloud is away nobody else is given its port.
    _reserved: TcpSocket,
    process: Option<Process>,
}

#[derive(Debug)]
struct Process {
    child: Child,
    lines: mpsc::Receiver<Value>,
}

impl Cloud {
    /// Looks for the executable and reserves a port. Nothing runs yet.
    ///
    /// # Errors
    /// A sentence that says how the executable is made, or that there is no port.
    pub fn find() -> Result<Self, String> {
        let own = std::env::current_exe().map_err(|error| format!("this executable: {error}"))?;
        let program = own.with_file_name(PROGRAM);
        if !program.is_file() {
            let release = if cfg!(debug_assertions) {
                ""
            } else {
                " --release"
            };
            return Err(format!(
                "{}: there is no stand-in cloud; \
                 `cargo build{release} --features edge-cloud` makes it",
                program.display()
            ));
        }
        let text = |error: std::io::Error| format!("no port for the cloud: {error}");
        let reserved = TcpSocket::new_v4().map_err(text)?;
        reserved.set_reuseaddr(true).map_err(text)?;
        reserved
            .bind((Ipv4Addr::LOCALHOST, 0).into())
            .map_err(text)?;
        Ok(Self {
            program,
            address: reserved.local_addr().map_err(text)?,
            _reserved: reserved,
            process: None,
        })
    }

    /// Where it listens while it runs.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Starts the process, with the certificate of a folder, and waits until it listens.
    ///
    /// # Errors
    /// It cannot be started, or ends at once; why is on stderr.
    pub async fn start(&mut self, dir: &Path) -> Result<(), String> {
        let text = |error: std::io::Error| format!("{}: {error}", self.program.display());
        // Ctrl-C in a terminal is for us alone; stdin tells the cloud when we are gone.
        let mut child = Command::new(&self.program)
            .arg("--until-stdin-ends")
            .args(["--bind", &self.address.to_string(), "--tls"])
            .args([dir.join("server.pem"), dir.join("server.key")])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .process_group(0)
            .spawn()
            .map_err(text)?;
        let stdout = child.stdout.take();
        let (sender, lines) = mpsc::channel(LINES_MAX);
        let mut process = Process { child, lines };
        thread::Builder::new()
            .name(PROGRAM.to_owned())
            .spawn(move || read(stdout, &sender))
            .map_err(text)?;
        let ready = tokio::time::timeout(LIMIT, process.lines.recv()).await;
        if !ready.is_ok_and(|line| line.is_some()) {
            return Err("the stand-in cloud does not start".to_owned());
        }
        self.process = Some(process);
        Ok(())
    }

    /// The topic of the next message that reaches it; waits for ever while it is stopped.
    ///
    /// # Errors
    /// The process ended by itself.
    pub async fn receive(&mut self) -> Result<String, String> {
        let Some(process) = &mut self.process else {
            return std::future::pending().await;
        };
        loop {
            let line = process.lines.recv().await;
            let line = line.ok_or("the stand-in cloud ended")?;
            if let Some(topic) = topic(&line) {
                return Ok(topic);
            }
        }
    }

    /// Ends the process and waits until it is gone. Returns the topics of what reached it and was
    /// not received yet: all that it acknowledged is among them.
    ///
    /// # Errors
    /// It did not end by itself, and was killed.
    pub async fn stop(&mut self) -> Result<Vec<String>, String> {
        let Some(mut process) = self.process.take() else {
            return Ok(Vec::new());
        };
        drop(process.child.stdin.take());
        let mut topics = Vec::new();
        let rest = async {
            while let Some(line) = process.lines.recv().await {
                topics.extend(topic(&line));
            }
        };
        let ended = tokio::time::timeout(LIMIT, rest).await;
        ended.map_err(|_| "the stand-in cloud does not end")?;
        let status = process.child.wait().map_err(|error| error.to_string())?;
        if !status.success() {
            return Err(format!("the stand-in cloud ended with {status}"));
        }
        Ok(topics)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Hands on its lines until it ends, or nobody takes them any more.
fn read(stdout: Option<ChildStdout>, lines: &mpsc::Sender<Value>) {
    for line in stdout
        .into_iter()
        .flat_map(|out| BufReader::new(out).lines())
    {
        let Some(line) = line.ok().and_then(|line| serde_json::from_str(&line).ok()) else {
            return;
        };
        if lines.blocking_send(line).is_err() {
            return;
        }
    }
}

/// The topic, if the line tells of a message.
fn topic(line: &Value) -> Option<String> {
    line.get("topic")?.as_str().map(ToOwned::to_owned)
}
