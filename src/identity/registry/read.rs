//! Reads `identities.json` with all its mistakes, and where they are.
//!
//! The file is taken apart into the texts of its entries first, because these are kept. No message
//! here may show a value: it could be a key.

use std::collections::BTreeMap;

use serde_json::Value;
use serde_json::value::RawValue;

use super::{Problem, RegistryError};
use crate::identity::credentials::Secret;
use crate::identity::{Authentication, Entry, Identity, Thumbprint, is_valid_id};

pub(super) type Around = [Vec<(String, String)>; 2];

/// Splits the file into the entries of its list, and what stands before and after the list.
pub(super) fn read_file(text: &str) -> Result<(Vec<&RawValue>, Around), RegistryError> {
    let fields: BTreeMap<String, &RawValue> = serde_json::from_str(text)
        .map_err(|error| broken(&error, "an object with the list identities"))?;
    let mut fields: Vec<_> = fields.into_iter().collect();
    fields.sort_by_key(|(_, raw)| raw.get().as_ptr());
    let mut listed = None;
    let mut around = Around::default();
    for (name, raw) in fields {
        let [before, after] = &mut around;
        match listed {
            None if name == "identities" => listed = Some(raw),
            None => before.push((name, raw.get().to_owned())),
            Some(_) => after.push((name, raw.get().to_owned())),
        }
    }
    let field = Some("identities");
    let Some(raw) = listed else {
        let problem = Problem::Missing;
        return Err(RegistryError {
            line: 1,
            column: 1,
            entry: None,
            field,
            problem,
        });
    };
    let listed = serde_json::from_str(raw.get()).map_err(|_| {
        let (line, column) = position(text, raw);
        RegistryError {
            line,
            column,
            entry: None,
            field,
            problem: Problem::Kind("a list"),
        }
    })?;
    Ok((listed, around))
}

/// What `serde_json` says of a file that it could not read; of values of the wrong kind it would
/// show the value, so these get a text of our own.
fn broken(error: &serde_json::Error, wanted: &'static str) -> RegistryError {
    let problem = if error.is_data() {
        Problem::Kind(wanted)
    } else {
        let said = error.to_string();
        let said = said.split(" at line ").next().unwrap_or_default();
        Problem::Syntax(said.to_owned())
    };
    let (line, column) = (error.line(), error.column());
    RegistryError {
        line,
        column,
        entry: None,
        field: None,
        problem,
    }
}

/// Line and column, from 1, of a value within the text that it was read from.
pub(super) fn position(text: &str, raw: &RawValue) -> (usize, usize) {
    let offset = (raw.get().as_ptr() as usize).saturating_sub(text.as_ptr() as usize);
    let before = text.get(..offset).unwrap_or_default();
    let line_start = before.rfind('\n').map_or(0, |at| at + 1);
    (before.matches('\n').count() + 1, offset - line_start + 1)
}

pub(super) type Found = Vec<(Option<&'static str>, Problem)>;

/// Reads one entry; notes everything that is wrong with it.
pub(super) fn read_entry(raw: &RawValue, found: &mut Found) -> Option<Entry> {
    let entry = match serde_json::from_str::<Value>(raw.get()) {
        Ok(entry) if entry.is_object() => entry,
        _ => {
            found.push((None, Problem::Kind("an object")));
            return None;
        }
    };
    let device = required(&entry, "/deviceId", found);
    let module = text(&entry, "/moduleId", found);
    for (id, field) in [(device, "/deviceId"), (module, "/moduleId")] {
        if id.is_some_and(|id| !is_valid_id(id)) {
            note(found, field, Problem::Id);
        }
    }
    let enabled = match text(&entry, "/status", found)
        .map(str::to_ascii_lowercase)
        .as_deref()
    {
        None | Some("enabled") => true,
        Some("disabled") => false,
        Some(_) => {
            note(found, "/status", Problem::Kind("enabled or disabled"));
            false
        }
    };
    let authentication = read_authentication(&entry, found);
    if !found.is_empty() {
        return None;
    }
    let identity = match (device?, module) {
        (device, Some(module)) => Identity::module(device, module),
        (device, None) => Identity::device(device),
    };
    Some(Entry {
        identity,
        enabled,
        authentication: authentication?,
        text: raw.get().to_owned(),
    })
}

fn read_authentication(entry: &Value, found: &mut Found) -> Option<Authentication> {
    if entry.get("authentication").is_none_or(Value::is_null) {
        note(found, "/authentication", Problem::Missing);
        return None;
    }
    let kind = required(entry, "/authentication/type", found)?;
    if kind.eq_ignore_ascii_case("sas") {
        let primary = key(entry, "/authentication/symmetricKey/primaryKey", found);
        let secondary = key(entry, "/authentication/symmetricKey/secondaryKey", found);
        if primary.is_none() && found.is_empty() {
            note(
                found,
                "/authentication/symmetricKey/primaryKey",
                Problem::Missing,
            );
        }
        let primary = primary?;
        Some(Authentication::Sas { primary, secondary })
    } else if kind.eq_ignore_ascii_case("selfSigned") {
        let primary = "/authentication/x509Thumbprint/primaryThumbprint";
        let hashes = [
            primary,
            "/authentication/x509Thumbprint/secondaryThumbprint",
        ];
        let hashes = hashes.map(|field| thumbprint(entry, field, found));
        let hashes: Vec<Thumbprint> = hashes.into_iter().flatten().collect();
        if hashes.is_empty() && found.is_empty() {
            note(found, primary, Problem::Missing);
        }
        Some(Authentication::SelfSigned(hashes))
    } else if kind.eq_ignore_ascii_case("certificateAuthority") {
        Some(Authentication::CertificateAuthority)
    } else if kind.eq_ignore_ascii_case("none") {
        Some(Authentication::None)
    } else {
        let kinds = Problem::Kind("sas, selfSigned, certificateAuthority or none");
        note(found, "/authentication/type", kinds);
        None
    }
}

fn key(entry: &Value, field: &'static str, found: &mut Found) -> Option<Secret> {
    let text = text(entry, field, found).filter(|text| !text.is_empty())?;
    let key = Secret::from_base64(text);
    if key.is_none() {
        note(found, field, Problem::Base64);
    }
    key
}

fn thumbprint(entry: &Value, field: &'static str, found: &mut Found) -> Option<Thumbprint> {
    let text = text(entry, field, found).filter(|text| !text.is_empty())?;
    let hash = Thumbprint::parse(text);
    if hash.is_none() {
        note(found, field, Problem::Thumbprint);
    }
    hash
}

/// A field that must be there.
fn required<'a>(entry: &'a Value, field: &'static str, found: &mut Found) -> Option<&'a str> {
    if entry.pointer(field).is_none_or(Value::is_null) {
        note(found, field, Problem::Missing);
    }
    text(entry, field, found)
}

/// A text field; `None` if it is missing or null, or, which is noted, of another kind.
fn text<'a>(entry: &'a Value, field: &'static str, found: &mut Found) -> Option<&'a str> {
    match entry.pointer(field) {
        None | Some(Value::Null) => None,
        Some(Value::String(text)) => Some(text),
        Some(_) => {
            note(found, field, Problem::Kind("text"));
            None
        }
    }
}

fn note(found: &mut Found, field: &'static str, problem: Problem) {
    found.push((Some(field), problem));
}
