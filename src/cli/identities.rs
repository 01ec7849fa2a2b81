//! `edgehub identity` and `edgehub token`.

use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use clap::{Args, Subcommand, ValueEnum};

use super::{CHECK_FAILED, CONFIG, Failure, USAGE, load, print};
use crate::config::Config;
use crate::files;
use crate::identity::{Authentication, Entry, Identity, Registry, Secret};
use crate::iothub::sas;

#[derive(Debug, Subcommand)]
pub(super) enum IdentityCommand {
    /// List identities, how they authenticate and whether they are enabled
    List(At),
    /// Add an identity; one with keys gets fresh ones
    Add {
        #[command(flatten)]
        of: Of,
        /// How it authenticates
        #[arg(long = "type", value_enum, default_value_t = Kind::Sas)]
        kind: Kind,
        /// SHA-1 or SHA-256 of its certificate in hex, for `--type self-signed`
        #[arg(long)]
        thumbprint: Option<String>,
    },
    /// Remove an identity; a connected client of it is disconnected
    Remove(Of),
    /// Print the connection string that an SDK takes
    ConnectionString(Of),
}

#[derive(Debug, Args)]
pub(super) struct At {
    /// The configuration file, which names the identities file
    #[arg(long)]
    config: PathBuf,
}

#[derive(Debug, Args)]
pub(super) struct Of {
    /// DEVICE or DEVICE/MODULE
    id: String,
    #[command(flatten)]
    at: At,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Kind {
    Sas,
    SelfSigned,
    CertificateAuthority,
}

#[derive(Debug, Args)]
pub(super) struct TokenArgs {
    #[command(flatten)]
    at: At,
    /// DEVICE or DEVICE/MODULE
    #[arg(long)]
    identity: String,
    /// How long it is valid, in seconds
    #[arg(long, default_value_t = 3600)]
    ttl: u64,
}

pub(super) fn identity(command: IdentityCommand) -> Result<(), Failure> {
    match command {
        IdentityCommand::List(at) => list(&at),
        IdentityCommand::Add {
            of,
            kind,
            thumbprint,
        } => add(&of, kind, thumbprint.as_deref()),
        IdentityCommand::Remove(of) => remove(&of),
        IdentityCommand::ConnectionString(of) => connection_string(&of),
    }
}

fn list(at: &At) -> Result<(), Failure> {
    let (config, _) = load(&at.config)?;
    for entry in read(&config)?.iter() {
        let kind = match entry.authentication() {
            Authentication::Sas { .. } => "sas",
            Authentication::SelfSigned(_) => "selfSigned",
            Authentication::CertificateAuthority => "certificateAuthority",
            Authentication::None => "none",
        };
        let status = if entry.is_enabled() {
            "enabled"
        } else {
            "disabled"
        };
        print(&format!("{}\t{kind}\t{status}", entry.identity()))?;
    }
    Ok(())
}

fn add(of: &Of, kind: Kind, thumbprint: Option<&str>) -> Result<(), Failure> {
    let identity = parse(&of.id)?;
    let entry = match (kind, thumbprint) {
        (Kind::Sas, None) => {
            let random =
                || files::random().map_err(|error| Failure::new(CONFIG, error.to_string()));
            Entry::sas(identity.clone(), &random()?, &random()?)
        }
        (Kind::CertificateAuthority, None) => Entry::certificate_authority(identity.clone()),
        (Kind::SelfSigned, Some(thumbprint)) => {
            let entry = Entry::self_signed(identity.clone(), thumbprint);
            let bad = "the thumbprint must be 40 (SHA-1) or 64 (SHA-256) hex digits";
            entry.ok_or_else(|| Failure::new(USAGE, bad))?
        }
        (Kind::SelfSigned, None) => {
            let missing = "--type self-signed needs --thumbprint";
            return Err(Failure::new(USAGE, missing));
        }
        (_, Some(_)) => {
            let extra = "--thumbprint goes with --type self-signed only";
            return Err(Failure::new(USAGE, extra));
        }
    };
    edit(of, |registry| {
        registry.add(entry).map_err(|error| error.to_string())?;
        Ok(Some(()))
    })?;
    print(&format!("added {identity}"))
}

fn remove(of: &Of) -> Result<(), Failure> {
    let identity = parse(&of.id)?;
    let removed = edit(of, |registry| Ok(registry.remove(&identity).then_some(())))?;
    if removed.is_none() {
        return Err(unknown(&identity));
    }
    print(&format!("removed {identity}"))
}

fn connection_string(of: &Of) -> Result<(), Failure> {
    let (config, _) = load(&of.at.config)?;
    let identity = parse(&of.id)?;
    let key = key(&config, &identity)?;
    let gateway = Some(config.gateway_hostname.as_str());
    print(&sas::connection_string(
        &config.iothub_hostname,
        gateway,
        &identity,
        &key,
    ))
}

pub(super) fn token(args: &TokenArgs) -> Result<(), Failure> {
    let (config, _) = load(&args.at.config)?;
    let identity = parse(&args.identity)?;
    let key = key(&config, &identity)?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let expiry = now.map_or(0, |now| now.as_secs()).saturating_add(args.ttl);
    let resource = sas::resource(&config.iothub_hostname, &identity);
    print(&sas::sign(key.as_bytes(), &resource, expiry))
}

fn key(config: &Config, identity: &Identity) -> Result<Secret, Failure> {
    let registry = read(config)?;
    let entry = registry.get(identity).ok_or_else(|| unknown(identity))?;
    match entry.authentication() {
        Authentication::Sas { primary, .. } => Ok(primary.clone()),
        _ => Err(Failure::new(
            CHECK_FAILED,
            format!("{identity} authenticates by certificate and has no key"),
        )),
    }
}

fn read(config: &Config) -> Result<Registry, Failure> {
    files::read_identities(&config.identities).map_err(|lines| Failure {
        code: CONFIG,
        lines,
    })
}

fn edit<T>(
    of: &Of,
    change: impl FnOnce(&mut Registry) -> Result<Option<T>, String>,
) -> Result<Option<T>, Failure> {
    let (config, _) = load(&of.at.config)?;
    files::edit_identities(&config.identities, change).map_err(|lines| Failure {
        code: CHECK_FAILED,
        lines,
    })
}

fn parse(id: &str) -> Result<Identity, Failure> {
    Identity::parse(id)
        .ok_or_else(|| Failure::new(USAGE, format!("'{id}' is neither DEVICE nor DEVICE/MODULE")))
}

fn unknown(identity: &Identity) -> Failure {
    let hint = "`edgehub identity list` shows all";
    Failure::new(
        CHECK_FAILED,
        format!("there is no identity {identity}; {hint}"),
    )
}
