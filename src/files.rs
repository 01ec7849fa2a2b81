//! Files that the hub and its command line both read and write.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use ring::rand::{SecureRandom, SystemRandom};

use crate::diagnostic::{Diagnostic, Position};
use crate::hub::Routing;
use crate::identity::Identity;
use crate::identity::registry::Registry;
use crate::identity::users::{Users, UsersError};
use crate::limits;
use crate::manifest::Manifest;
use crate::routes::RouteTable;

/// Random bytes of the operating system.
///
/// # Errors
/// The operating system has none.
pub fn random<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| io::Error::other("no random bytes from the operating system"))?;
    Ok(bytes)
}

/// Reads a manifest and compiles its routes.
///
/// # Errors
/// Everything that is wrong with it, if there is no manifest at all. One with bad routes is `Ok`,
/// the bad ones are left out and among the diagnostics.
pub fn read_manifest(
    path: &Path,
    routes_max: usize,
) -> Result<(Manifest, RouteTable, Vec<Diagnostic>), Vec<Diagnostic>> {
    let whole = |message: String| vec![Diagnostic::error(path, Position::WHOLE_FILE, message)];
    let size = fs::metadata(path).map_err(|error| whole(format!("cannot be read: {error}")))?;
    if size.len() > limits::MANIFEST_BYTES_MAX as u64 {
        return Err(whole(format!(
            "larger than {} bytes",
            limits::MANIFEST_BYTES_MAX
        )));
    }
    let text =
        fs::read_to_string(path).map_err(|error| whole(format!("cannot be read: {error}")))?;
    let (manifest, mut diagnostics) = Manifest::parse(&text, path);
    let Some(mut manifest) = manifest else {
        return Err(diagnostics);
    };
    if let Some(first) = manifest.routes.get(routes_max) {
        let message = format!(
            "{} routes, over max_routes = {routes_max}",
            manifest.routes.len()
        );
        let diagnostic = Diagnostic::error(path, first.position(), message);
        diagnostics.push(diagnostic.with_hint("this one and those after it do not run"));
        manifest.routes.truncate(routes_max);
    }
    let (table, of_routes) = Routing::compile(&manifest, path);
    diagnostics.extend(of_routes);
    diagnostics.sort_by_key(Diagnostic::position);
    Ok((manifest, table, diagnostics))
}

/// Reads the identities file; a missing one is empty.
///
/// # Errors
/// A sentence for everything that is wrong.
pub fn read_identities(path: &Path) -> Result<Registry, Vec<String>> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => r#"{"identities":[]}"#.to_owned(),
        Err(error) => return Err(vec![format!("{}: {error}", path.display())]),
    };
    Registry::parse(&text).map_err(|errors| {
        let sentence = |error| format!("{}: {error}", path.display());
        errors.iter().map(sentence).collect()
    })
}

/// Edits the identities file under its lock, and replaces it in one step (mode 0600). `edit`
/// returns what the caller wants to know, or `None` to leave the file alone.
///
/// # Errors
/// A sentence for everything that is wrong.
pub fn edit_identities<T>(
    path: &Path,
    edit: impl FnOnce(&mut Registry) -> Result<Option<T>, String>,
) -> Result<Option<T>, Vec<String>> {
    let sentence = |error: io::Error| vec![format!("{}: {error}", path.display())];
    let _lock = lock(path).map_err(sentence)?;
    let mut registry = read_identities(path)?;
    let Some(answer) = edit(&mut registry).map_err(|error| vec![error])? else {
        return Ok(None);
    };
    write_private(path, registry.to_json().as_bytes()).map_err(sentence)?;
    Ok(Some(answer))
}

/// The lock under which a file is edited, until it is dropped.
fn lock(path: &Path) -> io::Result<File> {
    let lock = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(path.with_extension("lock"))?;
    lock.lock()?;
    Ok(lock)
}

/// Reads the users file.
///
/// # Errors
/// Everything that is wrong with it, a file that is not there included.
pub fn read_users(path: &Path) -> Result<Users, Vec<Diagnostic>> {
    let text = users_text(path).map_err(|error| {
        let diagnostic = whole_file(path, &error);
        let hint = "`edgehub users add NAME` makes the file";
        vec![match error.kind() {
            io::ErrorKind::NotFound => diagnostic.with_hint(hint),
            _ => diagnostic,
        }]
    })?;
    parse_users(path, &text)
}

/// Edits the text of the users file under its lock, and replaces it in one step (mode 0600). A
/// missing one is empty. False if `edit` leaves it alone, by `None`.
///
/// # Errors
/// Everything that is wrong with it, before or after; then it stays as it was.
pub fn edit_users(
    path: &Path,
    edit: impl FnOnce(&str) -> Option<String>,
) -> Result<bool, Vec<Diagnostic>> {
    let failed = |error: io::Error| vec![whole_file(path, &error)];
    let _lock = lock(path).map_err(failed)?;
    let text = match users_text(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(failed(error)),
    };
    parse_users(path, &text)?;
    let Some(text) = edit(&text) else {
        return Ok(false);
    };
    parse_users(path, &text)?;
    write_private(path, text.as_bytes()).map_err(failed)?;
    Ok(true)
}

fn users_text(path: &Path) -> io::Result<String> {
    let max = limits::USERS_BYTES_MAX;
    let mut text = String::new();
    let file = File::open(path)?.take(max as u64 + 1);
    let bytes = BufReader::new(file).read_to_string(&mut text)?;
    if bytes > max {
        return Err(io::Error::other(format!("larger than {max} bytes")));
    }
    Ok(text)
}

fn parse_users(path: &Path, text: &str) -> Result<Users, Vec<Diagnostic>> {
    let told = |error: &UsersError| {
        let position = Position::of(text, error.offset);
        let mut diagnostic = Diagnostic::error(path, position, error.problem.to_string());
        diagnostic.hint = error.problem.hint().map(str::to_owned);
        diagnostic
    };
    Users::parse(text).map_err(|errors| errors.iter().map(told).collect())
}

fn whole_file(path: &Path, error: &io::Error) -> Diagnostic {
    Diagnostic::error(
        path,
        Position::WHOLE_FILE,
        format!("cannot be used: {error}"),
    )
}

/// Gives every module of the manifest that is not among the identities one with fresh keys.
///
/// # Errors
/// A sentence for everything that is wrong.
pub fn ensure_identities(
    path: &Path,
    device: &str,
    manifest: &Manifest,
) -> Result<Vec<Identity>, Vec<String>> {
    let missing = |registry: &Registry| {
        let names = manifest.modules.iter();
        names
            .filter(|name| registry.get(&Identity::module(device, name)).is_none())
            .count()
    };
    if missing(&read_identities(path)?) == 0 {
        return Ok(Vec::new());
    }
    let added = edit_identities(path, |registry| {
        let keys = 2 * missing(registry);
        let mut random = (0..keys)
            .map(|_| random::<32>())
            .collect::<io::Result<Vec<_>>>()
            .map_err(|error| error.to_string())?
            .into_iter();
        // As many as are missing are drawn, so there is always one left.
        let next = || random.next().unwrap_or_default();
        let names = manifest.modules.iter().map(String::as_str);
        Ok(Some(registry.ensure_modules(device, names, next)))
    })?;
    Ok(added.unwrap_or_default())
}

/// Writes a file that only its owner may read, in one step: written beside, synced, renamed.
///
/// # Errors
/// Whatever the file system answers.
pub fn write_private(path: &Path, content: &[u8]) -> io::Result<()> {
    write_beside(path, content, 0o600)
}

/// Like [`write_private`], for what everybody may read.
///
/// # Errors
/// Whatever the file system answers.
pub fn write_public(path: &Path, content: &[u8]) -> io::Result<()> {
    write_beside(path, content, 0o644)
}

fn write_beside(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let new = path.with_file_name(name);
    let mut file = OpenOptions::new()
        .create(true)
        .write(true)
        .truncate(true)
        .mode(mode)
        .open(&new)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    File::open(parent(path))?.sync_all()
}

/// Makes a folder that only its owner may enter, parents included.
///
/// # Errors
/// Whatever the file system answers.
pub fn make_private_dir(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
}

/// The folder of a file; `.` for a bare name.
#[must_use]
pub fn parent(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}
