//! The identities that may connect, as `identities.json` lists them (`DESIGN` §3.3, facts §3.1).
//!
//! A registry is an immutable snapshot for those who authenticate; whoever edits one clones it
//! (entries are shared), changes the clone and writes [`Registry::to_json`]. Entries keep the text
//! in which they were written, so that editing one leaves all others as they were.

mod read;

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::Arc;

use serde_json::Value;
use thiserror::Error;

use self::read::{Around, position, read_entry, read_file};
use super::{Authentication, Entry, Identity, is_valid_id};

/// What is wrong with `identities.json`, and where. Never contains a value of the file but ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegistryError {
    /// Line of the mistake, or of the entry that has it; 1 is the first, 0 is unknown.
    pub line: usize,
    /// Column in bytes, likewise.
    pub column: usize,
    /// Which entry, by its place in the list, counted from 1.
    pub entry: Option<usize>,
    /// The field, as a path within the entry.
    pub field: Option<&'static str>,
    /// What is wrong.
    pub problem: Problem,
}

impl std::error::Error for RegistryError {}

impl fmt::Display for RegistryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.line > 0 {
            write!(f, "line {}, column {}: ", self.line, self.column)?;
        }
        if let Some(entry) = self.entry {
            write!(f, "identity {entry}: ")?;
        }
        if let Some(field) = self.field {
            write!(f, "{field}: ")?;
        }
        self.problem.fmt(f)
    }
}

/// What can be wrong with `identities.json`.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Problem {
    /// It is no JSON.
    #[error("{0}")]
    Syntax(String),
    /// The file, or an entry, is another kind of value.
    #[error("must be {0}")]
    Kind(&'static str),
    /// A field that must be there is not.
    #[error("is missing")]
    Missing,
    /// An id that no registry would give.
    #[error("must be 1 to 128 letters, digits or any of - : . + % _ # * ? ! ( ) , = @ ; $ '")]
    Id,
    /// A key that is not base64.
    #[error("must be base64")]
    Base64,
    /// A thumbprint of another form.
    #[error("must be a SHA-1 or SHA-256 hash, that is 40 or 64 hex digits")]
    Thumbprint,
    /// The same identity is listed twice.
    #[error("{0} is there already")]
    Duplicate(Identity),
}

/// Every identity that may connect.
#[derive(Clone, Default)]
pub struct Registry {
    entries: Vec<Arc<Entry>>,
    index: HashMap<Identity, usize>,
    /// Other top-level fields of the file, as written: those before and those after the list.
    around: Around,
}

impl Registry {
    /// Reads `identities.json`. Fields that are not known are kept and do not count.
    ///
    /// # Errors
    ///
    /// Everything that is wrong with it, at least one [`RegistryError`].
    pub fn parse(text: &str) -> Result<Self, Vec<RegistryError>> {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let (listed, around) = read_file(text).map_err(|error| vec![error])?;
        let mut registry = Self {
            around,
            ..Self::default()
        };
        let mut errors = Vec::new();
        for (at, raw) in listed.into_iter().enumerate() {
            let (line, column) = position(text, raw);
            let mut found = Vec::new();
            if let Some(entry) = read_entry(raw, &mut found)
                && let Err(error) = registry.add(entry)
            {
                found.push((None, error.problem));
            }
            errors.extend(found.into_iter().map(|(field, problem)| RegistryError {
                line,
                column,
                entry: Some(at + 1),
                field,
                problem,
            }));
        }
        if errors.is_empty() {
            Ok(registry)
        } else {
            Err(errors)
        }
    }

    /// The entry of an identity, if it is listed.
    #[must_use]
    pub fn get(&self, identity: &Identity) -> Option<&Entry> {
        self.find(identity.as_str())
    }

    /// The entry of the device that an identity is, or lives on.
    #[must_use]
    pub fn device_of(&self, identity: &Identity) -> Option<&Entry> {
        self.find(identity.device_id())
    }

    /// All entries in the order of the file.
    pub fn iter(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter().map(AsRef::as_ref)
    }

    /// How many identities are listed.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether none is listed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Whether any identity proves itself by a certificate, so that clients must be asked for one.
    #[must_use]
    pub fn has_x509(&self) -> bool {
        self.iter().any(|entry| match entry.authentication {
            Authentication::SelfSigned(_) | Authentication::CertificateAuthority => true,
            Authentication::Sas { .. } | Authentication::None => false,
        })
    }

    /// Adds an identity at the end.
    ///
    /// # Errors
    ///
    /// [`Problem::Duplicate`] if it is there already.
    pub fn add(&mut self, entry: Entry) -> Result<(), RegistryError> {
        if self.index.contains_key(&entry.identity) {
            let problem = Problem::Duplicate(entry.identity);
            return Err(RegistryError {
                line: 0,
                column: 0,
                entry: None,
                field: None,
                problem,
            });
        }
        self.index
            .insert(entry.identity.clone(), self.entries.len());
        self.entries.push(Arc::new(entry));
        Ok(())
    }

    /// Removes an identity; `false` if it was not there.
    pub fn remove(&mut self, identity: &Identity) -> bool {
        let Some(at) = self.index.remove(identity) else {
            return false;
        };
        self.entries.remove(at);
        for later in self.index.values_mut().filter(|later| **later > at) {
            *later -= 1;
        }
        true
    }

    /// Adds every module of a device that is not there yet, with two fresh keys, and says which it
    /// added (`DESIGN` §3.3). Names that are no module ids are left out: the manifest's own check
    /// reports them.
    pub fn ensure_modules(
        &mut self,
        device_id: &str,
        names: impl IntoIterator<Item: AsRef<str>>,
        mut random: impl FnMut() -> [u8; 32],
    ) -> Vec<Identity> {
        let mut added = Vec::new();
        for name in names {
            if !is_valid_id(device_id) || !is_valid_id(name.as_ref()) {
                continue;
            }
            let identity = Identity::module(device_id, name.as_ref());
            if self.index.contains_key(&identity) {
                continue;
            }
            if self
                .add(Entry::sas(identity.clone(), &random(), &random()))
                .is_ok()
            {
                added.push(identity);
            }
        }
        added
    }

    /// The file: the entries that were read as they were written, the others pretty.
    #[must_use]
    pub fn to_json(&self) -> String {
        let entries: Vec<&str> = self.iter().map(|entry| entry.text.as_str()).collect();
        let list = match entries.is_empty() {
            true => "[]".to_owned(),
            false => format!("[\n    {}\n  ]", entries.join(",\n    ")),
        };
        let [before, after] = &self.around;
        let list = ("identities".to_owned(), list);
        let fields = before.iter().chain([&list]).chain(after);
        let fields: Vec<String> = fields
            .map(|(name, value)| format!("  {}: {value}", Value::from(name.as_str())))
            .collect();
        format!("{{\n{}\n}}\n", fields.join(",\n"))
    }

    fn find(&self, identity: &str) -> Option<&Entry> {
        let at = *self.index.get(identity)?;
        self.entries.get(at).map(AsRef::as_ref)
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(&self.entries).finish()
    }
}

/// The identities whose clients must authenticate again after a reload: those that were added,
/// removed or changed, and the modules of a device that was.
#[must_use]
pub fn changed(old: &Registry, new: &Registry) -> Vec<Identity> {
    let all = || {
        let gone = old
            .iter()
            .filter(|entry| new.get(&entry.identity).is_none());
        new.iter().chain(gone).map(Entry::identity)
    };
    let differs = |identity: &&Identity| old.get(identity) != new.get(identity);
    let direct: HashSet<&str> = all().filter(differs).map(Identity::as_str).collect();
    let affected = |identity: &&Identity| {
        direct.contains(identity.as_str()) || direct.contains(identity.device_id())
    };
    all().filter(affected).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::Thumbprint;

    const FILE: &str = r#"{
  "version": 3,
  "identities": [
    {"zebra": [1,  2], "deviceId":"edge-1","moduleId":"sensor","status":"Enabled",
     "authentication":{"type":"sas","symmetricKey":{"primaryKey":"AAEC","secondaryKey":"AwQF"}}},
    {"deviceId":"edge-1", "capabilities": {"iotEdge": true}, "moduleId":"camera",
     "authentication":{"type":"selfSigned","x509Thumbprint":{"secondaryThumbprint":"",
       "primaryThumbprint":"00:01:02:03:04:05:06:07:08:09:0A:0b:0c:0d:0e:0f 10 11 12 13"}}},
    {"deviceId":"leaf-7","authentication":{"type":"certificateAuthority"}},
    {"deviceId":"leaf-8","status":"disabled","authentication":{"type":"none"}}
  ],
  "a note": {"b": 1}
}
"#;

    fn id(text: &str) -> Identity {
        Identity::parse(text).unwrap()
    }

    #[test]
    fn reads_and_writes_the_file_as_it_is() {
        let registry = Registry::parse(FILE).unwrap();
        assert_eq!(
            (registry.len(), registry.is_empty(), registry.has_x509()),
            (4, false, true)
        );
        let names: Vec<_> = registry
            .iter()
            .map(|entry| entry.identity().as_str())
            .collect();
        assert_eq!(
            names,
            ["edge-1/sensor", "edge-1/camera", "leaf-7", "leaf-8"]
        );
        let Authentication::SelfSigned(hashes) =
            registry.get(&id("edge-1/camera")).unwrap().authentication()
        else {
            panic!("another type");
        };
        let expected: [u8; 20] = std::array::from_fn(|at| at as u8);
        assert_eq!(hashes[..], [Thumbprint::Sha1(expected)]);
        assert!(!registry.get(&id("leaf-8")).unwrap().is_enabled());
        assert_eq!(registry.to_json(), FILE);
        assert!(!format!("{registry:?}").contains("AAEC"));
        let empty = Registry::parse("{\"identities\":[]}").unwrap();
        assert_eq!(empty.to_json(), "{\n  \"identities\": []\n}\n");
        assert!(!empty.has_x509());
    }

    #[test]
    fn reports_every_mistake_with_its_place() {
        let file = r#"{"identities":[
 {"deviceId":"a b","authentication":{"type":"sas","symmetricKey":{"primaryKey":"SECRET!"}}},
 {"deviceId":"d","moduleId":7,"status":"on","authentication":{"type":"magic"}},
 {"deviceId":"e","authentication":
   {"type":"selfSigned","x509Thumbprint":{"primaryThumbprint":"AB"}}},
 {"deviceId":"f","authentication":{"type":"none"}},
   {"deviceId":"f","authentication":{"type":"none"}},
 {"moduleId":"m"}, {"deviceId":"g",
   "authentication":{"type":"sas","symmetricKey":"SECRET"}}, "SECRET"]}"#;
        let errors = Registry::parse(file).unwrap_err();
        let errors: Vec<String> = errors.iter().map(ToString::to_string).collect();
        let id = "must be 1 to 128 letters, digits or any of - : . + % _ # * ? ! ( ) , = @ ; $ '";
        let hash = "must be a SHA-1 or SHA-256 hash, that is 40 or 64 hex digits";
        let sas = "/authentication/symmetricKey/primaryKey";
        let x509 = "/authentication/x509Thumbprint/primaryThumbprint";
        assert_eq!(
            errors,
            [
                format!("line 2, column 2: identity 1: /deviceId: {id}"),
                format!("line 2, column 2: identity 1: {sas}: must be base64"),
                "line 3, column 2: identity 2: /moduleId: must be text".to_owned(),
                "line 3, column 2: identity 2: /status: must be enabled or disabled".to_owned(),
                "line 3, column 2: identity 2: /authentication/type: must be sas, selfSigned, \
             certificateAuthority or none"
                    .to_owned(),
                format!("line 4, column 2: identity 3: {x509}: {hash}"),
                "line 7, column 4: identity 5: f is there already".to_owned(),
                "line 8, column 2: identity 6: /deviceId: is missing".to_owned(),
                "line 8, column 2: identity 6: /authentication: is missing".to_owned(),
                format!("line 8, column 20: identity 7: {sas}: is missing"),
                "line 9, column 62: identity 8: must be an object".to_owned(),
            ]
        );
    }

    #[test]
    fn broken_files_are_located() {
        for (file, said) in [
            (
                "{\"identities\":[\n {]}",
                "line 2, column 3: key must be a string",
            ),
            ("", "line 1, column 0: EOF while parsing a value"),
            ("\"SECRET\"", "must be an object with the list identities"),
            (
                "{\"identity\":[]}",
                "line 1, column 1: identities: is missing",
            ),
            (
                "{\n\"identities\":{}}",
                "line 2, column 14: identities: must be a list",
            ),
        ] {
            let errors = Registry::parse(file).unwrap_err();
            assert_eq!(errors.len(), 1);
            assert!(
                errors[0].to_string().contains(said),
                "{file}: {}",
                errors[0]
            );
            assert!(!errors[0].to_string().contains("SECRET"));
        }
    }

    #[test]
    fn edits_keep_everything_else() {
        let mut registry = Registry::parse(FILE).unwrap();
        let before = registry.clone();
        let mut fresh = 0_u8;
        let random = || {
            fresh += 1;
            [fresh; 32]
        };
        let added =
            registry.ensure_modules("edge-1", ["sensor", "filter", "a b", "filter"], random);
        assert_eq!(added, [id("edge-1/filter")]);
        assert_eq!(fresh, 2);
        registry
            .add(Entry::certificate_authority(id("leaf-9")))
            .unwrap();
        let twice = registry
            .add(Entry::certificate_authority(id("leaf-9")))
            .unwrap_err();
        assert_eq!(twice.to_string(), "leaf-9 is there already");
        registry
            .add(Entry::self_signed(id("l"), &"ab".repeat(32)).unwrap())
            .unwrap();
        assert!(registry.remove(&id("edge-1/camera")) && !registry.remove(&id("edge-1/camera")));
        let json = registry.to_json();
        let again = Registry::parse(&json).unwrap();
        assert_eq!(again.to_json(), json);
        assert!(again.iter().eq(registry.iter()));
        assert!(json.contains("\"zebra\": [1,  2]"));
        let mut names: Vec<_> = changed(&before, &again)
            .iter()
            .map(Identity::to_string)
            .collect();
        names.sort();
        assert_eq!(names, ["edge-1/camera", "edge-1/filter", "l", "leaf-9"]);
        assert!(changed(&again, &registry).is_empty());
        let with_device = |status| {
            Registry::parse(&json.replace(
                "\"identities\": [",
                &format!(
                    "\"identities\": [{{\"deviceId\":\"edge-1\",\"status\":\"{status}\",\
              \"authentication\":{{\"type\":\"none\"}}}},"
                ),
            ))
            .unwrap()
        };
        let names = changed(&with_device("enabled"), &with_device("disabled"));
        assert_eq!(
            names,
            [id("edge-1"), id("edge-1/sensor"), id("edge-1/filter")]
        );
    }
}
