//! `edge-cloud`: a stand-in for the cloud, for tests and demonstrations. It embeds the broker of
//! rumqttd, lets clients in by SAS token or lets everybody in, and prints every message that
//! reaches it as a line of JSON.
//!
//! - It keeps nothing on disk: one that is started again knows nothing of the one before, so what
//!   it prints then was sent again from a hub's disk.
//! - It speaks MQTT 3.1.1 to a hub with `[upstream] kind = "mqtt"`, whose client id is the device
//!   id. The client ids of `kind = "iothub"` are `DEVICE/MODULE`; rumqttd takes none with `/`, `+`,
//!   `#` or `$` and closes the connection without a CONNACK.
//! - A refused login, a keep-alive of 0 and a packet that does not read end the same way. Messages
//!   to topics that begin with `$` are acknowledged and reach nobody; a topic that begins with a
//!   character outside ASCII ends the broker and with it the process.
//! - A client that comes back while its old connection is still open can lose the new one too:
//!   rumqttd gives connections their numbers again.
//! - What it has acknowledged it prints before it ends at SIGTERM, SIGINT, `--messages` or
//!   `--until-stdin-ends`: first no answer leaves any more, then what is in the broker is printed.
//!   SIGKILL has no such order.
//! - Identities are read once. A client whose token expires stays.

mod broker;
mod login;
mod relay;

use std::fmt::Display;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use clap::Parser;
use edgehub::config::{Tls, TlsVersion};
use edgehub::server::tls::TlsState;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use tokio_rustls::TlsAcceptor;

use broker::{Broker, Message};
use login::Door;

/// The command line is wrong.
const USAGE: u8 = 64;
/// The system refused something, such as a port, or the broker ended.
const UNAVAILABLE: u8 = 69;
/// A file that the command line names is wrong.
const CONFIG: u8 = 78;

/// How long the messages in the broker may take to be printed at the end.
const END_LIMIT: Duration = Duration::from_secs(10);

/// A stand-in for the cloud: an MQTT broker in memory that prints what reaches it.
#[derive(Debug, Parser)]
#[command(name = "edge-cloud", version)]
struct Args {
    /// Where to listen; port 0 is any free one, and the ready line names it
    #[arg(long, default_value = "127.0.0.1:0")]
    bind: SocketAddr,
    /// Serve TLS with this certificate chain and key
    #[arg(long, num_args = 2, value_names = ["CERT", "KEY"])]
    tls: Option<Vec<PathBuf>>,
    /// Let in only who has a SAS token by the keys of this identities file
    #[arg(long, value_name = "FILE", requires = "iothub_hostname")]
    identities: Option<PathBuf>,
    /// The host name that tokens must be for
    #[arg(long, value_name = "NAME", requires = "identities")]
    iothub_hostname: Option<String>,
    /// End after so many messages
    #[arg(long)]
    messages: Option<u64>,
    /// End at the end of stdin: with whoever started it, however that one ends
    #[arg(long)]
    until_stdin_ends: bool,
    /// Print no messages
    #[arg(long)]
    quiet: bool,
}

/// Why it ends with an error: the exit code, and a line for stderr.
struct Failure {
    code: u8,
    line: String,
}

impl Failure {
    fn config(line: impl Display) -> Self {
        let line = line.to_string();
        Self { code: CONFIG, line }
    }

    fn unavailable(line: impl Display) -> Self {
        let line = line.to_string();
        Self {
            code: UNAVAILABLE,
            line,
        }
    }
}

fn main() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => {
            // Help and version are asked for; anything else is a wrong command line.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { USAGE } else { 0 });
        }
    };
    let result = tokio::runtime::Runtime::new()
        .map_err(Failure::unavailable)
        .and_then(|runtime| runtime.block_on(run(args)));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            // There is nobody left to tell.
            let _ = writeln!(io::stderr().lock(), "edge-cloud: {}", failure.line);
            ExitCode::from(failure.code)
        }
    }
}

async fn run(args: Args) -> Result<(), Failure> {
    let tls = match args.tls.as_deref() {
        Some([certificate, key]) => Some(acceptor(certificate, key)?),
        _ => None,
    };
    let door = match (&args.identities, args.iothub_hostname) {
        (Some(file), Some(hostname)) => Some(Door::open(file, hostname).map_err(Failure::config)?),
        _ => None,
    };
    // From here on no signal is lost.
    let mut terminate = signal(SignalKind::terminate()).map_err(Failure::unavailable)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(Failure::unavailable)?;
    let left = args.until_stdin_ends.then(end_of_stdin).transpose();
    let mut left = left.map_err(Failure::unavailable)?;
    let mut broker = Broker::start(door).await.map_err(Failure::unavailable)?;
    let refused = |error| Failure::unavailable(format!("cannot listen on {}: {error}", args.bind));
    let listener = TcpListener::bind(args.bind).await.map_err(refused)?;
    let address = listener.local_addr().map_err(refused)?;
    let transport = if tls.is_some() { "tls" } else { "tcp" };
    let (stop, stopped) = oneshot::channel();
    let relay = tokio::spawn(relay::serve(listener, tls, broker.address(), stopped));
    let listeners = json!([{ "transport": transport, "address": address.to_string() }]);
    say(&json!({ "event": "ready", "listeners": listeners }));

    let mut count = 0;
    while args.messages.is_none_or(|messages| count < messages) {
        let message = tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            () = told(&mut left) => break,
            message = broker.receive() => message.map_err(Failure::unavailable)?,
        };
        let Some(message) = message else { break };
        count += 1;
        show(&message, args.quiet);
    }

    // First no acknowledgement leaves any more, then everything acknowledged is printed.
    drop(stop);
    relay.await.map_err(Failure::unavailable)?;
    broker.finish().map_err(Failure::unavailable)?;
    let rest = async {
        while let Some(message) = broker.receive().await? {
            count += 1;
            show(&message, args.quiet);
        }
        Ok::<_, String>(())
    };
    tokio::time::timeout(END_LIMIT, rest)
        .await
        .map_err(|_| Failure::unavailable("the broker does not give its messages"))?
        .map_err(Failure::unavailable)?;
    say(&json!({ "event": "end", "messages": count }));
    Ok(())
}

/// Tells of the end of stdin, from a thread of its own: reading it cannot be called off.
fn end_of_stdin() -> io::Result<oneshot::Receiver<()>> {
    let (end, ended) = oneshot::channel();
    thread::Builder::new()
        .name("stdin".to_owned())
        .spawn(move || {
            // One that cannot be read has ended, too.
            let _ = io::copy(&mut io::stdin().lock(), &mut io::sink());
            let _ = end.send(());
        })?;
    Ok(ended)
}

/// Waits for an end that may never be told.
async fn told(end: &mut Option<oneshot::Receiver<()>>) {
    match end {
        // A thread that is gone has nothing to wait for.
        Some(end) => drop(end.await),
        None => std::future::pending().await,
    }
}

/// TLS as the hub's own listeners serve it, without client certificates.
fn acceptor(certificate: &Path, key: &Path) -> Result<TlsAcceptor, Failure> {
    let tls = Tls {
        certificate: certificate.to_owned(),
        key: key.to_owned(),
        client_ca: None,
        min_version: TlsVersion::Tls12,
    };
    let state = TlsState::load(&tls, false).map_err(Failure::config)?;
    Ok(TlsAcceptor::from(Arc::clone(&state.config)))
}

/// Prints a message: its body as text, or as base64 where it is none.
fn show(message: &Message, quiet: bool) {
    if quiet {
        return;
    }
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH);
    let time_ms = since_1970.map_or(0, |time| time.as_millis() as u64);
    let topic = &message.topic;
    say(&match std::str::from_utf8(&message.payload) {
        Ok(text) => {
            json!({ "event": "message", "time_ms": time_ms, "topic": topic, "payload": text })
        }
        Err(_) => {
            let base64 = BASE64_STANDARD.encode(&message.payload);
            json!({
                "event": "message", "time_ms": time_ms, "topic": topic, "payload_base64": base64,
            })
        }
    });
}

fn say(line: &serde_json::Value) {
    // A closed stdout ends the show, not the cloud.
    let mut out = io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}
