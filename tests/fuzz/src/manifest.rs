//! Any text as a deployment manifest and as `identities.json`, and small manifests that were
//! edited.

use std::path::Path;

use arbitrary::Arbitrary;
use edgehub::diagnostic::{Diagnostic, Position, Severity};
use edgehub::identity::registry::Registry;
use edgehub::limits::{MANIFEST_BYTES_MAX, MANIFEST_DEPTH_MAX};
use edgehub::manifest::Manifest;
use edgehub::routes::Route;
use serde_json::{Map, Value};

const EDITS_MAX: usize = 12;
const TEXT_BYTES_MAX: usize = 64 * 1024;

/// Documents to edit: whole, with a layer, with authorizations, and a list of identities.
const BASES: [&str; 4] = [
    include_str!("../documents/whole.json"),
    include_str!("../documents/layered.json"),
    include_str!("../documents/authorizations.json"),
    include_str!("../documents/identities.json"),
];

/// Words that mean something somewhere.
const WORDS: [&str; 24] = [
    "properties.desired",
    "properties.desired.routes.up",
    "modulesContent",
    "$edgeHub",
    "$edgeAgent",
    "schemaVersion",
    "1.1",
    "1.3",
    "routes",
    "route",
    "priority",
    "timeToLiveSecs",
    "storeAndForwardConfiguration",
    "FROM /messages/* INTO $upstream",
    "mqttBroker",
    "authorizations",
    "identities",
    "allow",
    "deny",
    "operations",
    "mqtt:publish",
    "resources",
    "sensors/{{iot:device_id}}/#",
    "{{anonymous}}",
];

/// A change at a place that the path leads to: at each step the number of the member.
#[derive(Debug, Arbitrary)]
struct Edit {
    path: Vec<u8>,
    change: Change,
}

#[derive(Debug, Arbitrary)]
enum Change {
    Remove,
    Replace(Given),
    Add(u8, Given),
    Rename(u8),
    Nest(u8),
}

#[derive(Debug, Arbitrary)]
enum Given {
    Null,
    Bool(bool),
    Number(i64),
    Float(f64),
    Text(String),
    Word(u8),
    Array(Vec<u8>),
    Object(u8, u8),
}

impl Given {
    fn value(&self) -> Value {
        let text = |at: u8| Value::from(word(at));
        match self {
            Self::Null => Value::Null,
            Self::Bool(bool) => Value::from(*bool),
            Self::Number(number) => Value::from(*number),
            Self::Float(number) => Value::from(*number),
            Self::Text(chars) => Value::from(chars.as_str()),
            Self::Word(at) => text(*at),
            Self::Array(words) => words.iter().take(9).map(|at| text(*at)).collect(),
            Self::Object(name, value) => Map::from_iter([(word(*name), text(*value))]).into(),
        }
    }
}

fn word(at: u8) -> String {
    WORDS[usize::from(at) % WORDS.len()].to_owned()
}

/// Runs one input: a text, or if it does not begin as one, edits.
pub fn run(input: &[u8]) {
    match input.split_first() {
        Some((base, rest)) if *base < b' ' => edited(usize::from(*base), rest),
        _ => {
            let input = &input[..input.len().min(TEXT_BYTES_MAX)];
            if let Ok(text) = std::str::from_utf8(input) {
                manifest(text);
                identities(text);
            }
        }
    }
}

fn edited(base: usize, rest: &[u8]) {
    let Some(edits) = super::given::<Vec<Edit>>(rest) else {
        return;
    };
    let mut document: Value = serde_json::from_str(BASES[base % BASES.len()]).unwrap();
    for edit in edits.iter().take(EDITS_MAX) {
        apply(&mut document, &edit.path, &edit.change);
    }
    let compact = document.to_string();
    let pretty = serde_json::to_string_pretty(&document).unwrap();
    identities(&compact);
    let one = manifest(&compact);
    let other = manifest(&format!("\u{feff}{pretty}\n"));
    assert_eq!(one.is_some(), other.is_some(), "{compact}");
    let (Some(one), Some(other)) = (one, other) else {
        return;
    };
    assert_eq!(one.schema_version, other.schema_version);
    assert_eq!((one.ttl, &one.modules), (other.ttl, &other.modules));
    assert_eq!(one.desired, other.desired);
    assert_eq!(one.authorizations, other.authorizations);
    let routes = |manifest: &Manifest| -> Vec<_> {
        let routes = manifest.routes.iter();
        let parts = routes.map(|one| (one.name.clone(), one.text.clone(), one.priority));
        parts.collect()
    };
    assert_eq!(routes(&one), routes(&other));
}

/// Goes down by the path as far as it leads, and changes what is there.
fn apply(here: &mut Value, path: &[u8], change: &Change) {
    if let Some((step, rest)) = path.split_first() {
        let step = usize::from(*step);
        match here {
            Value::Object(members) if !members.is_empty() => {
                let name = members.keys().nth(step % members.len()).unwrap().clone();
                match change {
                    Change::Remove if rest.is_empty() => drop(members.remove(&name)),
                    Change::Rename(to) if rest.is_empty() => {
                        let value = members.remove(&name).unwrap();
                        members.insert(word(*to), value);
                    }
                    _ => apply(members.get_mut(&name).unwrap(), rest, change),
                }
                return;
            }
            Value::Array(values) if !values.is_empty() => {
                let at = step % values.len();
                match change {
                    Change::Remove if rest.is_empty() => drop(values.remove(at)),
                    _ => apply(&mut values[at], rest, change),
                }
                return;
            }
            _ => {}
        }
    }
    match change {
        Change::Replace(given) => *here = given.value(),
        Change::Add(name, given) => match here {
            Value::Object(members) => drop(members.insert(word(*name), given.value())),
            Value::Array(values) => values.push(given.value()),
            _ => {}
        },
        Change::Nest(times) => {
            // Twice is deeper than is allowed.
            for _ in 0..times % 40 {
                *here = vec![here.take()].into();
            }
        }
        Change::Remove | Change::Rename(_) => {}
    }
}

/// Whatever the text is, findings have a place in it, and what was read is sound.
fn manifest(text: &str) -> Option<Manifest> {
    let (manifest, diagnostics) = Manifest::parse(text, Path::new("manifest.json"));
    let own = text.strip_prefix('\u{feff}').unwrap_or(text);
    places(own, &diagnostics);
    let errors = diagnostics
        .iter()
        .filter(|one| one.severity == Severity::Error);
    assert!(
        manifest.is_some() || errors.count() > 0,
        "refused without a word"
    );
    let is_json = match serde_json::from_str::<Value>(own) {
        Ok(value) => depth(&value) <= MANIFEST_DEPTH_MAX && own.len() <= MANIFEST_BYTES_MAX,
        Err(_) => false,
    };
    let refused = diagnostics
        .iter()
        .any(|one| one.message.starts_with("invalid JSON"));
    assert!(!is_json || !refused, "{diagnostics:?}");
    let manifest = manifest?;
    assert!(manifest.modules.is_sorted());
    for module in manifest.desired.keys() {
        assert!(manifest.has_module(module));
    }
    for statement in &manifest.authorizations {
        assert_eq!(statement.check(), Vec::<String>::new());
    }
    for route in &manifest.routes {
        let compiled = Route::compile(&route.name, &route.text, route.priority, None);
        let findings = compiled
            .as_ref()
            .map_or_else(Clone::clone, |route| route.warnings().to_vec());
        let offsets = findings.iter().map(|finding| finding.offset);
        for offset in offsets.chain([0, route.text.len(), usize::MAX]) {
            let place = route.locate(offset);
            assert!(route.position() <= place);
            inside(own, place);
        }
    }
    Some(manifest)
}

fn depth(value: &Value) -> usize {
    match value {
        Value::Array(values) => 1 + values.iter().map(depth).max().unwrap_or(0),
        Value::Object(members) => 1 + members.values().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}

fn places(text: &str, diagnostics: &[Diagnostic]) {
    for one in diagnostics {
        inside(text, one.position());
        let _ = one.to_string();
    }
}

/// The place is in the text, or right behind its end; (0, 0) is the whole of it.
pub fn inside(text: &str, place: Position) {
    if place == Position::WHOLE_FILE {
        return;
    }
    let line = text.split('\n').nth(place.line as usize - 1);
    let line = line.unwrap_or_else(|| panic!("{place:?} is not in {text:?}"));
    let columns = line.chars().count() + 1;
    assert!(
        (1..=columns).contains(&(place.column as usize)),
        "{place:?}: {text:?}"
    );
}

/// A list of identities is the same once it was written and read again.
fn identities(text: &str) {
    match Registry::parse(text) {
        Ok(registry) => {
            let written = registry.to_json();
            let again = Registry::parse(&written).unwrap_or_else(|errors| panic!("{errors:?}"));
            assert_eq!(again.to_json(), written);
            assert_eq!(again.len(), registry.len());
            for entry in registry.iter() {
                assert_eq!(again.get(entry.identity()), Some(entry));
            }
        }
        Err(errors) => {
            assert!(!errors.is_empty());
            let own = text.strip_prefix('\u{feff}').unwrap_or(text);
            for error in errors {
                let _ = error.to_string();
                if error.line > 0 {
                    let line = own.split('\n').nth(error.line - 1);
                    let line = line.unwrap_or_else(|| panic!("{error:?} in {text:?}"));
                    assert!(error.column <= line.len() + 1, "{error:?} in {text:?}");
                }
            }
        }
    }
}
