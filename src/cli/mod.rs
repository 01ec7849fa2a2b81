//! The command line (`DESIGN` §3.1). Errors go to stderr in words; exit codes follow sysexits.

mod check;
mod identities;
mod logging;
mod routes;
mod store;
mod users;

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::certs::Authority;
use crate::config::Config;
use crate::quickstart::{self, Cloud};
use crate::run::{self, StartError};

/// Everything went well.
const OK: u8 = 0;
/// A check found errors.
const CHECK_FAILED: u8 = 1;
/// The command line is wrong.
const USAGE: u8 = 64;
/// The system refused something, such as a port or a file.
const UNAVAILABLE: u8 = 69;
/// The configuration is wrong.
const CONFIG: u8 = 78;

/// An on-device MQTT message hub with module identities and routes.
#[derive(Debug, Parser)]
#[command(name = "edgehub", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a hub and two demo modules with no configuration, and show what passes
    Quickstart {
        /// Where certificates, identities and the configuration go
        #[arg(long, default_value = "certs/quickstart")]
        dir: PathBuf,
        /// Stop by itself after so many messages
        #[arg(long)]
        messages: Option<u64>,
        /// Forward to a stand-in cloud as well, and show how its outages pass
        #[arg(long)]
        upstream: bool,
    },
    /// Run the hub in the foreground
    Run(ConfigArg),
    /// Check a configuration or a manifest and report every error
    Check(check::CheckArgs),
    /// Try routes and conditions, and see why a message is not routed
    Routes {
        #[command(subcommand)]
        command: routes::RoutesCommand,
    },
    /// Edit the identities file, print a connection string
    Identity {
        #[command(subcommand)]
        command: identities::IdentityCommand,
    },
    /// Edit the users file: who logs in by user name and password
    Users {
        #[command(subcommand)]
        command: users::UsersCommand,
    },
    /// Print a SAS token
    Token(identities::TokenArgs),
    /// Look into the store of a hub, check it, drop what waits for an endpoint
    Store {
        #[command(subcommand)]
        command: store::StoreCommand,
    },
    /// Make certificates for development
    Certs {
        #[command(subcommand)]
        command: CertsCommand,
    },
}

#[derive(Debug, Subcommand)]
enum CertsCommand {
    /// Make an authority (unless the folder has one), a server certificate and client certificates
    New {
        /// The folder
        #[arg(long)]
        dir: PathBuf,
        /// Name or address that clients connect to; may be given more than once
        #[arg(long, required = true)]
        hostname: Vec<String>,
        /// Identity (DEVICE or DEVICE/MODULE) to make a client certificate for; more than once
        #[arg(long)]
        client: Vec<String>,
    },
}

#[derive(Debug, Args)]
struct ConfigArg {
    /// The configuration file
    #[arg(long)]
    config: PathBuf,
}

/// What a command ends with: its exit code, and the lines for stderr.
struct Failure {
    code: u8,
    lines: Vec<String>,
}

impl Failure {
    fn new(code: u8, line: impl Into<String>) -> Self {
        Self {
            code,
            lines: vec![line.into()],
        }
    }
}

impl From<StartError> for Failure {
    fn from(error: StartError) -> Self {
        match error {
            StartError::Configuration(lines) => Self {
                code: CONFIG,
                lines,
            },
            StartError::System(line) => Self::new(UNAVAILABLE, line),
        }
    }
}

/// Runs the command line of this process.
#[must_use]
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are asked for; anything else is a wrong command line.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { USAGE } else { OK });
        }
    };
    match run_command(cli.command) {
        Ok(()) => ExitCode::from(OK),
        Err(failure) => {
            let mut err = io::stderr().lock();
            for line in failure.lines {
                // There is nobody left to tell.
                let _ = writeln!(err, "{line}");
            }
            ExitCode::from(failure.code)
        }
    }
}

fn run_command(command: Command) -> Result<(), Failure> {
    match command {
        Command::Quickstart {
            dir,
            messages,
            upstream,
        } => start_quickstart(&dir, messages, upstream),
        Command::Run(ConfigArg { config }) => start_hub(&config),
        Command::Check(args) => check::check(&args),
        Command::Routes { command } => routes::routes(&command),
        Command::Identity { command } => identities::identity(command),
        Command::Users { command } => users::users(command),
        Command::Token(args) => identities::token(&args),
        Command::Store { command } => store::store(&command),
        Command::Certs { command } => certs(command),
    }
}

fn start_hub(path: &Path) -> Result<(), Failure> {
    let (config, warnings) = load(path)?;
    let set_level = logging::start(&config.log).map_err(|error| Failure::new(CONFIG, error))?;
    run::report(&warnings);
    let runtime = runtime(config.server.workers)?;
    let result = runtime.block_on(run::run(config, set_level));
    runtime.shutdown_timeout(std::time::Duration::from_millis(100));
    Ok(result?)
}

fn start_quickstart(dir: &Path, messages: Option<u64>, upstream: bool) -> Result<(), Failure> {
    let unavailable = |error: String| Failure::new(UNAVAILABLE, error);
    let cloud = upstream.then(Cloud::find).transpose();
    let cloud = cloud.map_err(unavailable)?;
    let config = quickstart::prepare(dir, cloud.as_ref()).map_err(unavailable)?;
    let set_level = logging::start(&config.log).map_err(|error| Failure::new(CONFIG, error))?;
    let runtime = runtime(config.server.workers)?;
    runtime.block_on(quickstart::run(dir, config, set_level, messages, cloud))?;
    runtime.shutdown_timeout(std::time::Duration::from_millis(100));
    Ok(())
}

fn runtime(workers: usize) -> Result<tokio::runtime::Runtime, Failure> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    if workers > 0 {
        builder.worker_threads(workers);
    }
    builder
        .thread_name("edgehub")
        .enable_all()
        .build()
        .map_err(|error| Failure::new(UNAVAILABLE, format!("no threads: {error}")))
}

/// Reads the configuration; all its errors at once are the failure.
fn load(path: &Path) -> Result<(Config, Vec<crate::diagnostic::Diagnostic>), Failure> {
    Config::load(path).map_err(|diagnostics| Failure {
        code: CONFIG,
        lines: crate::diagnostic::texts(&diagnostics),
    })
}

fn certs(command: CertsCommand) -> Result<(), Failure> {
    let CertsCommand::New {
        dir,
        hostname,
        client,
    } = command;
    let unavailable =
        |error: crate::certs::CertsError| Failure::new(UNAVAILABLE, error.to_string());
    let authority = Authority::open(&dir).map_err(unavailable)?;
    authority.server(&hostname).map_err(unavailable)?;
    for identity in &client {
        authority.client(identity).map_err(unavailable)?;
    }
    print(&format!("certificates are in {}", dir.display()))
}

/// Prints a line; a closed stdout is no error of ours.
fn print(line: &str) -> Result<(), Failure> {
    let _ = writeln!(io::stdout().lock(), "{line}");
    Ok(())
}
