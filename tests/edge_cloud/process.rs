//! The stand-in cloud as a process: the built binary, on port 0 unless told otherwise.
#![allow(dead_code)]

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver};

use edgehub::client::{Client, ClientError, Hello, tls_config};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::common::{LIMIT, unix_now};

pub const CLOUD: &str = env!("CARGO_BIN_EXE_edge-cloud");

/// A running stand-in cloud; killed when dropped.
pub struct Cloud {
    pub child: Child,
    pub address: SocketAddr,
    pub transport: String,
    lines: Receiver<Value>,
}

impl Cloud {
    pub fn start(args: &[&str]) -> Self {
        Self::start_with(args, Stdio::null())
    }

    pub fn start_with(args: &[&str], stdin: Stdio) -> Self {
        let mut child = Command::new(CLOUD)
            .args(args)
            .stdin(stdin)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        // What the test does not take stays in the pipe, and blocks the cloud when that is full.
        let (sender, lines) = mpsc::sync_channel(0);
        std::thread::spawn(move || {
            for line in stdout.lines() {
                // The test may have ended already.
                let _ = sender.send(serde_json::from_str(&line.unwrap()).unwrap());
            }
        });
        let ready: Value = lines.recv_timeout(LIMIT).expect("no ready line");
        assert_eq!(ready["event"], "ready");
        let [listener] = &ready["listeners"].as_array().unwrap()[..] else {
            panic!("{ready}");
        };
        Self {
            child,
            address: listener["address"].as_str().unwrap().parse().unwrap(),
            transport: listener["transport"].as_str().unwrap().to_owned(),
            lines,
        }
    }

    pub fn line(&self) -> Value {
        self.lines.recv_timeout(LIMIT).expect("no line in time")
    }

    /// The next message: topic and line.
    pub fn message(&self) -> (String, Value) {
        let line = self.line();
        assert_eq!(line["event"], "message", "{line}");
        assert!(line["time_ms"].as_u64().unwrap() / 1000 >= unix_now() - LIMIT.as_secs());
        (line["topic"].as_str().unwrap().to_owned(), line)
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Waits for its end: exit code, what was left on stdout, stderr.
    pub fn end(mut self) -> (Option<i32>, Vec<Value>, String) {
        let mut rest = Vec::new();
        loop {
            match self.lines.recv_timeout(LIMIT) {
                Ok(line) => rest.push(line),
                Err(mpsc::RecvTimeoutError::Disconnected) => break,
                Err(mpsc::RecvTimeoutError::Timeout) => panic!("does not end"),
            }
        }
        let mut errors = String::new();
        let mut stderr = self.child.stderr.take().unwrap();
        stderr.read_to_string(&mut errors).unwrap();
        (self.child.wait().unwrap().code(), rest, errors)
    }

    pub async fn tcp(&self, hello: &Hello) -> Result<(Client, bool), ClientError> {
        let mut client = Client::tcp(self.address).await?;
        let present = client.connect(hello).await?;
        Ok((client, present))
    }

    pub async fn tls(&self, ca: &Path, hello: &Hello) -> Result<Client, ClientError> {
        let config = tls_config(&fs::read(ca).unwrap(), None)?;
        let mut client = Client::tls(self.address, "localhost", config).await?;
        client.connect(hello).await?;
        Ok(client)
    }
}

impl Drop for Cloud {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
