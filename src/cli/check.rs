//! `edgehub check`: every error of a configuration or a manifest, before anything runs.

use std::path::{Path, PathBuf};

use clap::Args;

use super::{CHECK_FAILED, Failure, print};
use crate::config::{Config, UpstreamKind};
use crate::diagnostic::{Diagnostic, Position, Severity, texts};
use crate::files;
use crate::limits::Limits;
use crate::message::Endpoint;
use crate::routes::RouteTable;
use crate::run;
use crate::server::tls::TlsState;

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(super) struct CheckArgs {
    /// The configuration file; the files that it names are checked too
    #[arg(long)]
    config: Option<PathBuf>,
    /// A deployment manifest alone
    #[arg(long)]
    manifest: Option<PathBuf>,
}

pub(super) fn check(args: &CheckArgs) -> Result<(), Failure> {
    let (lines, errors) = match (&args.config, &args.manifest) {
        (Some(config), _) => check_config(config),
        (None, Some(manifest)) => count(check_manifest(manifest, Limits::DEFAULT.max_routes).0),
        (None, None) => Default::default(),
    };
    if errors > 0 {
        return Err(Failure {
            code: CHECK_FAILED,
            lines,
        });
    }
    for line in lines {
        print(&line)?;
    }
    print("no errors")
}

fn check_config(path: &Path) -> (Vec<String>, usize) {
    let (config, mut diagnostics) = match Config::load(path) {
        Ok(loaded) => loaded,
        Err(diagnostics) => return count(diagnostics),
    };
    let (of_manifest, table) = check_manifest(&config.manifest, config.limits.max_routes);
    diagnostics.extend(of_manifest);
    if config.upstream.kind == UpstreamKind::None
        && table.is_some_and(|table| table.endpoints().contains(&Endpoint::Upstream))
    {
        diagnostics.push(
            Diagnostic::warning(
                &config.manifest,
                Position::WHOLE_FILE,
                "a route leads to $upstream, and upstream.kind is \"none\"",
            )
            .with_hint("such messages are acknowledged, counted as no_upstream, and not kept"),
        );
    }
    if let Some(users) = &config.users {
        diagnostics.extend(files::read_users(users).err().unwrap_or_default());
    }
    let (mut lines, mut errors) = count(diagnostics);
    let mut more = files::read_identities(&config.identities)
        .err()
        .unwrap_or_default();
    if let Some(tls) = &config.tls {
        more.extend(TlsState::load(tls, false).err());
    }
    more.extend(run::check_upstream(&config));
    errors += more.len();
    lines.extend(more);
    (lines, errors)
}

fn check_manifest(path: &Path, routes_max: usize) -> (Vec<Diagnostic>, Option<RouteTable>) {
    match files::read_manifest(path, routes_max) {
        Ok((_, table, diagnostics)) => (diagnostics, Some(table)),
        Err(diagnostics) => (diagnostics, None),
    }
}

fn count(diagnostics: Vec<Diagnostic>) -> (Vec<String>, usize) {
    let is_error = |diagnostic: &&Diagnostic| diagnostic.severity == Severity::Error;
    let errors = diagnostics.iter().filter(is_error).count();
    (texts(&diagnostics), errors)
}
