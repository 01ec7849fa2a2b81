//! `edgehub users`.

use std::io::{self, BufRead, IsTerminal, Read};
use std::path::PathBuf;

use clap::{Args, Subcommand};
use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};

use super::{CHECK_FAILED, CONFIG, Failure, UNAVAILABLE, USAGE, load, print};
use crate::diagnostic::{Diagnostic, texts};
use crate::files;
use crate::identity::password::{PASSWORD_BYTES_MAX, StoredHash};
use crate::identity::users;

#[derive(Debug, Subcommand)]
pub(super) enum UsersCommand {
    /// Add a user, or change its password, which is the first line of stdin
    Add(Of),
    /// Remove a user; its connections are closed
    Remove(Of),
    /// List users
    List(At),
}

#[derive(Debug, Args)]
pub(super) struct At {
    /// The configuration file, which names the users file
    #[arg(long)]
    config: PathBuf,
}

#[derive(Debug, Args)]
pub(super) struct Of {
    /// The user's name
    name: String,
    #[command(flatten)]
    at: At,
}

pub(super) fn users(command: UsersCommand) -> Result<(), Failure> {
    match command {
        UsersCommand::Add(of) => add(&of),
        UsersCommand::Remove(of) => remove(&of),
        UsersCommand::List(at) => list(&at),
    }
}

fn list(at: &At) -> Result<(), Failure> {
    let users = files::read_users(&file(at)?).map_err(|errors| wrong(CONFIG, &errors))?;
    users.names().try_for_each(print)
}

fn add(of: &Of) -> Result<(), Failure> {
    let file = file(&of.at)?;
    users::check_user_name(&of.name).map_err(|error| Failure::new(USAGE, error.to_string()))?;
    let unavailable = |error: io::Error| Failure::new(UNAVAILABLE, error.to_string());
    let password = password().map_err(unavailable)?;
    if password.is_empty() || password.len() > PASSWORD_BYTES_MAX {
        let text = format!("the password must have 1 to {PASSWORD_BYTES_MAX} bytes");
        return Err(Failure::new(USAGE, text));
    }
    let salt = files::random().map_err(unavailable)?;
    let hash = StoredHash::make(&password, salt);
    let hash = hash.map_err(|error| Failure::new(UNAVAILABLE, error))?;
    let mut known = false;
    files::edit_users(&file, |text| {
        known = users::without_user(text, &of.name).is_some();
        Some(users::with_user(text, &of.name, &hash))
    })
    .map_err(|errors| wrong(CHECK_FAILED, &errors))?;
    let what = if known { "changed" } else { "added" };
    print(&format!("{what} {}", of.name))
}

fn remove(of: &Of) -> Result<(), Failure> {
    let file = file(&of.at)?;
    let removed = files::edit_users(&file, |text| users::without_user(text, &of.name));
    if !removed.map_err(|errors| wrong(CHECK_FAILED, &errors))? {
        let text = format!(
            "there is no user {}; `edgehub users list` shows all",
            of.name
        );
        return Err(Failure::new(CHECK_FAILED, text));
    }
    print(&format!("removed {}", of.name))
}

fn file(at: &At) -> Result<PathBuf, Failure> {
    let (config, _) = load(&at.config)?;
    config.users.ok_or_else(|| {
        let file = at.config.display();
        let text = format!("{file}: there is no users file (hint: set `users = \"users.txt\"`)");
        Failure::new(CONFIG, text)
    })
}

fn wrong(code: u8, errors: &[Diagnostic]) -> Failure {
    Failure {
        code,
        lines: texts(errors),
    }
}

/// The first line of stdin. Somebody who types it is asked, and does not see it.
fn password() -> io::Result<Vec<u8>> {
    let mut input = io::stdin().lock();
    let shown = tcgetattr(&input).ok().filter(|_| input.is_terminal());
    if let Some(shown) = &shown {
        eprint!("password: ");
        let mut hidden = shown.clone();
        hidden.local_modes -= LocalModes::ECHO;
        tcsetattr(&input, OptionalActions::Flush, &hidden)?;
    }
    let mut line = Vec::new();
    let read = (&mut input)
        .take(PASSWORD_BYTES_MAX as u64 + 2)
        .read_until(b'\n', &mut line);
    if let Some(shown) = &shown {
        tcsetattr(&input, OptionalActions::Now, shown)?;
        eprintln!();
    }
    read?;
    let line = line.strip_suffix(b"\n").unwrap_or(&line);
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    Ok(line.to_vec())
}
