//! The log: to stderr, as text or JSON lines, with a level that changes while running.

use std::io;
use std::str::FromStr;

use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, fmt, reload};

use crate::config::{Log, LogFormat};
use crate::run::SetLevel;

/// Starts the log of this process and returns what changes its level.
///
/// # Errors
/// A level that does not read, or a log that was started already.
pub fn start(log: &Log) -> Result<SetLevel, String> {
    let targets = targets(&log.level)?;
    let (filter, handle) = reload::Layer::new(targets);
    let lines = fmt::layer().with_writer(io::stderr);
    let lines: Box<dyn Layer<_> + Send + Sync> = match log.format {
        LogFormat::Json => Box::new(lines.json()),
        LogFormat::Text => {
            let colours = io::IsTerminal::is_terminal(&io::stderr());
            Box::new(lines.with_ansi(colours))
        }
    };
    Registry::default()
        .with(lines.with_filter(filter))
        .try_init()
        .map_err(|error| error.to_string())?;
    Ok(Box::new(move |level| {
        handle
            .reload(self::targets(level)?)
            .map_err(|error| error.to_string())
    }))
}

fn targets(level: &str) -> Result<Targets, String> {
    Targets::from_str(level).map_err(|error| format!("log.level '{level}': {error}"))
}
