//! Reads one section key by key, collects every error with its place, and knows which keys were
//! asked for, so that the others can be called unknown.

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use toml::de::{DeTable, DeValue};

use super::VARIABLE_PREFIX;
use super::reader::{Origin, Reader, Value};
use super::values::{Refusal, Size, choose, did_you_mean, kind_of, parse_size};

/// One table of the file, read key by key; [`Section::finish`] complains about the rest.
pub(super) struct Section<'r, 'a> {
    pub(super) reader: &'r mut Reader<'a>,
    /// Path of the table: empty for the root, `store`, `listener[0]`.
    name: String,
    table: Option<&'a DeTable<'a>>,
    at: Origin,
    overridable: bool,
    known: Vec<&'static str>,
}

/// What a key holds.
enum Written<'a> {
    File(&'a DeValue<'a>),
    Variable(&'a str),
}

impl<'a> Section<'_, 'a> {
    pub(super) fn new<'r>(
        reader: &'r mut Reader<'a>,
        name: String,
        table: Option<&'a DeTable<'a>>,
        at: Origin,
        overridable: bool,
    ) -> Section<'r, 'a> {
        if table.is_some() && !name.is_empty() {
            reader.origins.insert(name.clone(), at.clone());
        }
        Section {
            reader,
            name,
            table,
            at,
            overridable,
            known: Vec::new(),
        }
    }

    /// A `[section]`; also one that is not in the file, since the environment may set its keys.
    pub(super) fn section(&mut self, key: &'static str) -> Section<'_, 'a> {
        self.known.push(key);
        let path = self.path_of(key);
        let found = self.value(key);
        let (table, at) = match found {
            Some(value) => (value.get_ref().as_table(), Origin::File(value.span().start)),
            None => (None, Origin::Absent),
        };
        if let (Some(_), None) = (found, table) {
            let hint = format!("write `[{key}]` in a line of its own");
            let message = format!("`{key}` must be a section");
            self.reader.error(&at, message, Some(hint));
        }
        Section::new(self.reader, path, table, at, true)
    }

    /// The tables of an `[[array]]`, or of an array of inline tables.
    pub(super) fn tables(&mut self, key: &'static str) -> Vec<&'a Value<'a>> {
        self.known.push(key);
        let Some(value) = self.value(key) else {
            return Vec::new();
        };
        let at = Origin::File(value.span().start);
        self.reader.origins.insert(self.path_of(key), at.clone());
        let Some(array) = value.get_ref().as_array() else {
            let hint = format!("write `[[{key}]]`, with two brackets");
            let message = format!("`{key}` must be an array of tables");
            self.reader.error(&at, message, Some(hint));
            return Vec::new();
        };
        array.iter().collect()
    }

    /// One of [`Section::tables`].
    pub(super) fn element(
        &mut self,
        key: &'static str,
        index: usize,
        value: &'a Value<'a>,
    ) -> Option<Section<'_, 'a>> {
        let at = Origin::File(value.span().start);
        let path = format!("{}[{index}]", self.path_of(key));
        let Some(table) = value.get_ref().as_table() else {
            let message = format!("`{key}` must hold tables, not {}", kind_of(value.get_ref()));
            self.reader.error(&at, message, None);
            return None;
        };
        Some(Section::new(self.reader, path, Some(table), at, false))
    }

    /// Whether the section is in the file, or one of the keys read so far in the environment.
    pub(super) fn is_written(&self) -> bool {
        self.reader.is_written(&self.name)
    }

    /// Complains if a key was not written at all; what is wrong with it has been said already.
    pub(super) fn require<T>(&mut self, key: &'static str, value: Option<T>) -> Option<T> {
        // It may stand in a line that is broken.
        let unseen = !self.reader.broken_syntax && !self.reader.is_written(&self.path_of(key));
        if value.is_none() && unseen {
            let message = format!("`{key}` is missing");
            self.reader.error(&self.at, message, None);
        }
        value
    }

    /// A text that is not empty.
    pub(super) fn text(&mut self, key: &'static str) -> Option<String> {
        self.parsed(key, |text| Ok(text.to_owned()))
    }

    /// A text that `parse` understands.
    pub(super) fn parsed<T>(
        &mut self,
        key: &'static str,
        parse: impl FnOnce(&str) -> Result<T, Refusal>,
    ) -> Option<T> {
        let (text, origin) = self.scalar_text(key)?;
        let parsed = if text.is_empty() {
            Err(("is empty".to_owned(), None))
        } else {
            parse(&text)
        };
        match parsed {
            Ok(value) => Some(value),
            Err((message, hint)) => {
                let message = format!("`{key}` {message}");
                self.reader.error(&origin, message, hint);
                None
            }
        }
    }

    /// A path, made relative to the file; one from the environment stays as it is.
    pub(super) fn path(&mut self, key: &'static str) -> Option<PathBuf> {
        let text = self.text(key)?;
        let origin = self.reader.origin(&[&self.path_of(key)]);
        Some(match origin {
            Origin::Variable(_) => PathBuf::from(text),
            Origin::File(_) | Origin::Absent => self.beside_file(&text),
        })
    }

    /// A path relative to the file's directory.
    pub(super) fn beside_file(&self, path: &str) -> PathBuf {
        let directory = self.reader.file.parent().unwrap_or_else(|| Path::new(""));
        directory.join(path)
    }

    /// One of some words.
    pub(super) fn choice<T: Copy>(
        &mut self,
        key: &'static str,
        choices: &[(&'static str, T)],
        default: T,
    ) -> T {
        self.parsed(key, |text| choose(text, choices))
            .unwrap_or(default)
    }

    /// `true` or `false`; `false` where it is not written.
    pub(super) fn flag(&mut self, key: &'static str) -> bool {
        let Some((written, origin)) = self.take(key) else {
            return false;
        };
        match written {
            Written::File(DeValue::Boolean(value)) => return *value,
            Written::Variable("true") => return true,
            Written::Variable("false") => {}
            Written::File(other) => self.wrong_type(key, "true or false", other, &origin),
            Written::Variable(other) => {
                let message = format!("`{key}` must be true or false, not {other:?}");
                self.reader.error(&origin, message, None);
            }
        }
        false
    }

    /// An integer in a range.
    pub(super) fn number<T>(&mut self, key: &'static str, range: RangeInclusive<T>, default: T) -> T
    where
        T: Copy + Display + PartialOrd + TryFrom<i128>,
    {
        let Some((written, origin)) = self.take(key) else {
            return default;
        };
        let (number, text) = match written {
            Written::File(DeValue::Integer(integer)) => {
                let number = i128::from_str_radix(integer.as_str(), integer.radix());
                (number.ok(), integer.to_string())
            }
            Written::Variable(text) => (text.trim().parse().ok(), text.to_owned()),
            Written::File(other) => {
                self.wrong_type(key, "an integer", other, &origin);
                return default;
            }
        };
        let number = number.and_then(|number| T::try_from(number).ok());
        match number.filter(|number| range.contains(number)) {
            Some(number) => number,
            None => {
                let (start, end) = (range.start(), range.end());
                let message = format!("`{key}` must be from {start} to {end}, not {text}");
                self.reader.error(&origin, message, None);
                default
            }
        }
    }

    /// A number of bytes: an integer, or a text with a unit.
    pub(super) fn size<T>(&mut self, key: &'static str, range: RangeInclusive<T>, default: T) -> T
    where
        T: Copy + PartialOrd + TryFrom<u64> + Into<Size>,
    {
        let Some((written, origin)) = self.take(key) else {
            return default;
        };
        let (bytes, text) = match written {
            Written::File(DeValue::Integer(integer)) => {
                let number = u64::from_str_radix(integer.as_str(), integer.radix());
                (number.ok(), integer.to_string())
            }
            Written::Variable(text) => match self.size_of_text(key, text, &origin) {
                Some(bytes) => (bytes, text.to_owned()),
                None => return default,
            },
            Written::File(DeValue::String(text)) => match self.size_of_text(key, text, &origin) {
                Some(bytes) => (bytes, text.to_string()),
                None => return default,
            },
            Written::File(other) => {
                self.wrong_type(key, "a size such as \"64MiB\"", other, &origin);
                return default;
            }
        };
        let size = bytes.and_then(|bytes| T::try_from(bytes).ok());
        match size.filter(|size| range.contains(size)) {
            Some(size) => size,
            None => {
                let (start, end): (Size, Size) = ((*range.start()).into(), (*range.end()).into());
                let message = format!("`{key}` must be from {start} to {end}, not {text}");
                self.reader.error(&origin, message, None);
                default
            }
        }
    }

    /// An array of texts, each as `parse` understands it; empty where it is not written.
    pub(super) fn list<T>(
        &mut self,
        key: &'static str,
        parse: impl Fn(&str) -> Result<T, Refusal>,
    ) -> Vec<T> {
        self.known.push(key);
        let Some(value) = self.value(key) else {
            return Vec::new();
        };
        let at = Origin::File(value.span().start);
        self.reader.origins.insert(self.path_of(key), at.clone());
        let Some(array) = value.get_ref().as_array() else {
            self.wrong_type(key, "an array of strings", value.get_ref(), &at);
            return Vec::new();
        };
        let mut list = Vec::new();
        for value in array {
            let at = Origin::File(value.span().start);
            let Some(text) = value.get_ref().as_str() else {
                self.wrong_type(key, "an array of strings", value.get_ref(), &at);
                continue;
            };
            match parse(text) {
                Ok(parsed) => list.push(parsed),
                Err((message, hint)) => {
                    let message = format!("`{key}` {message}");
                    self.reader.error(&at, message, hint);
                }
            }
        }
        list
    }

    /// A [`Section::list`] that must be there and hold something.
    pub(super) fn filled_list<T>(
        &mut self,
        key: &'static str,
        parse: impl Fn(&str) -> Result<T, Refusal>,
    ) -> Vec<T> {
        let list = self.list(key, parse);
        let value = self.value(key);
        let array = value.and_then(|value| value.get_ref().as_array());
        if let (Some(value), Some(0)) = (value, array.map(|array| array.len())) {
            let origin = Origin::File(value.span().start);
            let message = format!("`{key}` is empty");
            self.reader.error(&origin, message, None);
        }
        self.require(key, value);
        list
    }

    /// Ends the section: every key that was not read is unknown. `elsewhere` are the keys of the
    /// root, which end up in a section when they are written below its header.
    pub(super) fn finish(self, elsewhere: &[&str]) {
        let Some(table) = self.table else { return };
        if self.reader.broken_syntax && self.name.is_empty() {
            // Below a broken header, a section's keys look like the root's.
            return;
        }
        for (key, value) in table {
            let name: &str = key.get_ref();
            if self.known.contains(&name) {
                continue;
            }
            let value = value.get_ref();
            let section = value.is_table() || self.name.is_empty() && value.is_array();
            let what = if section { "section" } else { "key" };
            let place = match self.name.split('[').next() {
                Some(section) if !section.is_empty() => format!(" in `[{section}]`"),
                _ => String::new(),
            };
            let hint = if elsewhere.contains(&name) {
                Some(format!("write `{name}` above the first section"))
            } else {
                did_you_mean(name, self.known.iter().copied())
            };
            let origin = Origin::File(key.span().start);
            let message = format!("unknown {what} `{name}`{place}");
            self.reader.error(&origin, message, hint);
        }
    }

    /// The path of a key of this section in [`Reader::origin`].
    pub(super) fn path_of(&self, key: &str) -> String {
        if self.name.is_empty() {
            key.to_owned()
        } else {
            format!("{}.{key}", self.name)
        }
    }

    /// What the file has for a key.
    fn value(&self, key: &str) -> Option<&'a Value<'a>> {
        let value = self.table?.get(key)?;
        // Where the syntax is broken, the parser puts a stand-in that has no text.
        let stand_in = self.reader.broken_syntax && value.span().is_empty();
        (!stand_in).then_some(value)
    }

    fn take(&mut self, key: &'static str) -> Option<(Written<'a>, Origin)> {
        self.known.push(key);
        let path = self.path_of(key);
        if self.overridable {
            let variable = path.to_uppercase().replace('.', "_");
            let variable = format!("{VARIABLE_PREFIX}{variable}");
            let value = self.reader.environment.get(&variable);
            self.reader.variables.insert(variable.clone());
            if let Some(value) = value {
                let origin = Origin::Variable(variable);
                self.reader.origins.insert(path, origin.clone());
                let section = self.reader.origins.entry(self.name.clone());
                section.or_insert_with(|| origin.clone());
                return Some((Written::Variable(value), origin));
            }
        }
        let value = self.value(key)?;
        let origin = Origin::File(value.span().start);
        self.reader.origins.insert(path, origin.clone());
        Some((Written::File(value.get_ref()), origin))
    }

    fn scalar_text(&mut self, key: &'static str) -> Option<(String, Origin)> {
        let (written, origin) = self.take(key)?;
        match written {
            Written::Variable(text) => Some((text.to_owned(), origin)),
            Written::File(DeValue::String(text)) => Some((text.to_string(), origin)),
            Written::File(other) => {
                self.wrong_type(key, "a string", other, &origin);
                None
            }
        }
    }

    /// The outer `None`: an error was reported; the inner one: larger than any range.
    fn size_of_text(&mut self, key: &str, text: &str, origin: &Origin) -> Option<Option<u64>> {
        match parse_size(text) {
            Ok(bytes) => Some(bytes),
            Err(()) => {
                let message = format!("`{key}` is not a size: {text:?}");
                let hint = "a number of bytes, or a number with KiB, MiB, GiB, KB, MB or GB";
                self.reader.error(origin, message, Some(hint.to_owned()));
                None
            }
        }
    }

    fn wrong_type(&mut self, key: &str, expected: &str, found: &DeValue<'_>, origin: &Origin) {
        let found_kind = kind_of(found);
        let message = format!("`{key}` must be {expected}, not {found_kind}");
        let quotable = expected == "a string" && !(found.is_array() || found.is_table());
        let hint = quotable.then(|| "put the value in double quotes".to_owned());
        self.reader.error(origin, message, hint);
    }
}
