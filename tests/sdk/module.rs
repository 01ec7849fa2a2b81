//! A module under test: a program on one of the SDKs, driven by JSON lines.

use std::collections::VecDeque;
use std::io::Write;
use std::process::{ChildStdin, Command};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::hub::{GATEWAY, Hub, connection_field};
use crate::install;
use crate::messages::is_end;
use crate::process::Process;

/// For one answer or event; a thousand messages take seconds.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sdk {
    Python,
    Node,
}

pub struct Module {
    process: Process,
    commands: ChildStdin,
    /// Events that came while another was waited for.
    waiting: VecDeque<Value>,
}

impl Module {
    /// Starts the program and connects it as `module`.
    pub fn connect(sdk: Sdk, hub: &Hub, module: &str) -> Self {
        let mut this = Self::start(sdk, hub, &hub.connection_string(module));
        this.ask(json!({ "cmd": "connect" })).expect("connected");
        this.connection(true);
        this
    }

    /// Starts the program; nothing is sent to the hub yet.
    pub fn start(sdk: Sdk, hub: &Hub, connection: &str) -> Self {
        let mut command = match sdk {
            Sdk::Python => {
                let mut command = Command::new(install::python());
                command.arg(install::source("module.py"));
                command
            }
            Sdk::Node => {
                let mut command = Command::new("node");
                command.env("NODE_PATH", install::node_modules());
                command.arg(install::source("module.js"));
                command
            }
        };
        command
            .args([GATEWAY, &hub.address().to_string()])
            .env("EdgeHubConnectionString", connection)
            .env("EdgeModuleCACertificateFile", hub.path("certs/ca.pem"));
        let module = connection_field(connection, "ModuleId");
        let log = hub.path(&format!("{module}.log"));
        let mut process = Process::start(&format!("{sdk:?} {module}"), &mut command, &log);
        let commands = process.stdin();
        Self {
            process,
            commands,
            waiting: VecDeque::new(),
        }
    }

    /// Gives one command and waits for its result, or the error's name and text.
    pub fn ask(&mut self, command: Value) -> Result<Value, (String, String)> {
        writeln!(self.commands, "{command}").unwrap();
        let mut answer = self.next("answer");
        match answer["error"].as_str() {
            None => Ok(answer["result"].take()),
            Some(error) => Err((error.to_owned(), answer["text"].to_string())),
        }
    }

    /// Asks for the messages to the module's inputs.
    pub fn listen(&mut self) {
        self.ask(json!({ "cmd": "listen" })).unwrap();
    }

    /// Sends all messages without waiting in between; returns when each is acknowledged.
    pub fn send(&mut self, output: &str, messages: &[Value]) {
        let command = json!({ "cmd": "send", "output": output, "messages": messages });
        self.ask(command).expect("every message acknowledged");
    }

    /// Waits until the client says that it is connected, or is not.
    pub fn connection(&mut self, connected: bool) {
        while self.next("connection")["connected"] != connected {}
    }

    /// The next desired properties that the client was given.
    pub fn desired(&mut self) -> Value {
        self.next("desired")["patch"].take()
    }

    /// All messages received until each of these inputs has had the one that ends a test.
    pub fn messages_to_end(&mut self, inputs: &[&str]) -> Vec<Value> {
        let mut messages = Vec::new();
        let mut open = inputs.len();
        while open > 0 {
            let message = self.message();
            open -= usize::from(is_end(&message));
            messages.push(message);
        }
        messages
    }

    /// The next few messages received.
    pub fn messages(&mut self, count: usize) -> Vec<Value> {
        (0..count).map(|_| self.message()).collect()
    }

    fn message(&mut self) -> Value {
        let mut message = self.next("message");
        message.as_object_mut().unwrap().remove("event");
        message
    }

    /// The next event of one kind; others are kept.
    fn next(&mut self, kind: &str) -> Value {
        if let Some(at) = self.waiting.iter().position(|event| event["event"] == kind) {
            return self.waiting.remove(at).unwrap();
        }
        let deadline = Instant::now() + PATIENCE;
        loop {
            let line = self.process.next_line(deadline);
            let line = line.unwrap_or_else(|| panic!("the module has ended; no {kind}"));
            let event: Value = serde_json::from_str(&line).expect("a JSON line");
            if event["event"] == kind {
                return event;
            }
            self.waiting.push_back(event);
        }
    }
}
