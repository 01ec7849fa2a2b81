//! A child process that ends with its owner, and whose standard output arrives line by line.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

/// How much of a log is shown when a test fails.
const LOG_TAIL: usize = 8 * 1024;

pub struct Process {
    name: String,
    child: Child,
    lines: Receiver<String>,
    log: PathBuf,
}

impl Process {
    /// Starts `command` with its errors appended to `log`.
    pub fn start(name: &str, command: &mut Command, log: &Path) -> Self {
        let errors = File::options().create(true).append(true).open(log).unwrap();
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(errors)
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
        let output = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        Self {
            name: name.to_owned(),
            child,
            lines,
            log: log.to_owned(),
        }
    }

    /// Runs `command` to its end, which must be a good one, and returns what it printed.
    pub fn run(name: &str, command: &mut Command, log: &Path, patience: Duration) -> String {
        let mut process = Self::start(name, command, log);
        drop(process.stdin());
        let deadline = Instant::now() + patience;
        let mut output = String::new();
        while let Some(line) = process.next_line(deadline) {
            output.push_str(&line);
            output.push('\n');
        }
        let status = process.wait();
        assert!(status.success(), "{name}: {status}\n{output}");
        output
    }

    /// The standard input, once.
    pub fn stdin(&mut self) -> ChildStdin {
        self.child.stdin.take().unwrap()
    }

    /// The next line of standard output, or none at its end.
    pub fn next_line(&self, deadline: Instant) -> Option<String> {
        let left = deadline.saturating_duration_since(Instant::now());
        match self.lines.recv_timeout(left) {
            Ok(line) => Some(line),
            Err(RecvTimeoutError::Disconnected) => None,
            Err(RecvTimeoutError::Timeout) => panic!("{}: nothing more in time", self.name),
        }
    }

    /// SIGKILL: the process gets no chance to tidy up.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        self.wait();
    }

    fn wait(&mut self) -> ExitStatus {
        self.child.wait().unwrap()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            let log = fs::read(&self.log).unwrap_or_default();
            let tail = String::from_utf8_lossy(&log[log.len().saturating_sub(LOG_TAIL)..]);
            eprintln!("---- log of {}\n{tail}\n----", self.name);
        }
    }
}
