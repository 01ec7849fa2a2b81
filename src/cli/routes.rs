//! `edgehub routes`: dry runs of conditions and routes, and why a message was not routed.

use std::io::{self, BufRead, BufWriter, Write};
use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::{CHECK_FAILED, Failure, UNAVAILABLE, USAGE, print};
use crate::diagnostic::texts;
use crate::files;
use crate::limits::Limits;
use crate::routes::line::{self, MessageLine};
use crate::routes::{Explanation, explain_all};

#[derive(Debug, Subcommand)]
pub(super) enum RoutesCommand {
    /// Read JSON lines on stdin, write one JSON line each: does the condition or route match?
    Eval,
    /// Say for every route of a manifest whether it takes a message, and why not
    Explain(ExplainArgs),
}

#[derive(Debug, Args)]
pub(super) struct ExplainArgs {
    /// The deployment manifest
    #[arg(long)]
    manifest: PathBuf,
    /// The message, in the shape of `routes eval`: {"source":…,"body":…,"properties":{…}}
    #[arg(long)]
    message: String,
    /// One JSON line per route instead of text
    #[arg(long)]
    json: bool,
}

pub(super) fn routes(command: &RoutesCommand) -> Result<(), Failure> {
    match command {
        RoutesCommand::Eval => eval().map_err(|error| Failure::new(UNAVAILABLE, error.to_string())),
        RoutesCommand::Explain(args) => explain(args),
    }
}

fn eval() -> io::Result<()> {
    let mut out = BufWriter::new(io::stdout().lock());
    for line in io::stdin().lock().split(b'\n') {
        let line = line?;
        let line = String::from_utf8_lossy(&line);
        if line.trim().is_empty() {
            continue;
        }
        serde_json::to_writer(&mut out, &line::answer(&line))?;
        out.write_all(b"\n")?;
    }
    out.flush()
}

fn explain(args: &ExplainArgs) -> Result<(), Failure> {
    let message: MessageLine = serde_json::from_str(&args.message)
        .map_err(|error| Failure::new(USAGE, format!("--message: {error}")))?;
    let message = message.into_message();
    let (_, table, diagnostics) = files::read_manifest(&args.manifest, Limits::DEFAULT.max_routes)
        .map_err(|errors| Failure {
            code: CHECK_FAILED,
            lines: texts(&errors),
        })?;
    for line in texts(&diagnostics) {
        // A bad route explains itself; the good ones are explained below.
        let _ = writeln!(io::stderr().lock(), "{line}");
    }
    let explanations = explain_all(&table, &message.view());
    for explanation in &explanations {
        if args.json {
            print(&as_json(explanation).to_string())?;
        } else {
            print(&explanation.to_string())?;
        }
    }
    if !args.json && !explanations.iter().any(|explanation| explanation.matched) {
        print("no route takes this message: it is acknowledged, dropped and counted as no_route")?;
    }
    Ok(())
}

fn as_json(explanation: &Explanation) -> Value {
    let reasons: Vec<_> = explanation
        .reasons
        .iter()
        .map(|reason| {
            json!({
                "expression": reason.expression,
                "outcome": reason.outcome.to_string(),
                "why": reason.why,
            })
        })
        .collect();
    json!({
        "route": explanation.route,
        "matched": explanation.matched,
        "wins": explanation.wins,
        "endpoint": explanation.endpoint.to_string(),
        "priority": explanation.priority.to_string(),
        "sourceMatched": explanation.source_matched,
        "sourceReason": explanation.source_reason,
        "condition": explanation.condition.map(|outcome| outcome.to_string()),
        "reasons": reasons,
    })
}
