//! The recording cloud as a process, so that it can be killed: this program, started again.

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitCode, Stdio};

use edgehub::mqtt::ConnectReturnCode;

use crate::cloud::port::Port;
use crate::cloud::sink::Sink;
use crate::support::Options;

/// What the process is told on its standard input, one word a line. It ends with that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Word {
    /// Hold PUBACKs back.
    Hold,
    Release,
    /// Refuse logins.
    Refuse,
    Accept,
}

impl Word {
    const ALL: [(&str, Self); 4] = [
        ("hold", Self::Hold),
        ("release", Self::Release),
        ("refuse", Self::Refuse),
        ("accept", Self::Accept),
    ];
}

/// The process: serves until its standard input ends.
pub fn serve(options: &Options) -> ExitCode {
    let address = options.text("--address").unwrap().parse().unwrap();
    let record = Path::new(options.text("--record").unwrap());
    let sink = Sink::start(address, record).unwrap();
    sink.turn(|knobs| knobs.tokens_expire = true);
    println!("ready");
    for line in std::io::stdin().lines().map_while(Result::ok) {
        let word = Word::ALL.iter().find(|(name, _)| *name == line).unwrap().1;
        sink.turn(|knobs| match word {
            Word::Hold => knobs.hold = true,
            Word::Release => knobs.hold = false,
            Word::Refuse => knobs.refuse_all = Some(ConnectReturnCode::ServerUnavailable),
            Word::Accept => knobs.refuse_all = None,
        });
    }
    ExitCode::SUCCESS
}

/// The process as the one that started it sees it.
pub struct Process {
    pub record: PathBuf,
    port: Port,
    running: Option<(Child, ChildStdin)>,
}

impl Process {
    /// Started, with a record in this folder.
    pub fn start(dir: &Path) -> Self {
        let mut process = Self {
            record: dir.join("record"),
            port: Port::reserve().unwrap(),
            running: None,
        };
        process.restart();
        process
    }

    pub fn address(&self) -> SocketAddr {
        self.port.address()
    }

    /// Starts it again on the same port and record, after a kill.
    pub fn restart(&mut self) {
        let address = self.port.address().to_string();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["sink", "--address", &address, "--record"])
            .arg(&self.record)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let stdout = child.stdout.take().unwrap();
        BufReader::new(stdout).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n", "the sink did not start");
        let stdin = child.stdin.take().unwrap();
        self.running = Some((child, stdin));
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        if let Some((mut child, _)) = self.running.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    pub fn tell(&mut self, word: Word) {
        let name = Word::ALL
            .iter()
            .find(|(_, known)| *known == word)
            .unwrap()
            .0;
        let (_, stdin) = self.running.as_mut().unwrap();
        writeln!(stdin, "{name}").unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}
