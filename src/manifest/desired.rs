//! Desired properties of one module: `properties.desired` as a whole, and the layered form, where
//! a key such as `properties.desired.routes.up` sets one part (facts §10.2).

use serde_json::{Map, Value};

use super::json::{Member, Node};

const WHOLE: &str = "properties.desired";

/// The parts that a module's object sets, in the order of the file.
#[derive(Debug)]
pub(super) struct Desired<'n, 'a> {
    parts: Vec<Part<'n, 'a>>,
}

#[derive(Debug)]
struct Part<'n, 'a> {
    /// Keys from the root of the desired properties down to the part; none: all of them.
    path: Vec<&'n str>,
    member: &'n Member<'a>,
}

/// A named thing of a section: a route, a module.
#[derive(Debug)]
pub(super) struct Entry<'n, 'a> {
    pub(super) name: String,
    /// Byte offset of the key.
    pub(super) offset: usize,
    pub(super) value: &'n Node<'a>,
    /// Whether it replaces an entry of an earlier part.
    pub(super) replaces: bool,
}

impl<'n, 'a> Desired<'n, 'a> {
    pub(super) fn of(module: &'n Node<'a>) -> Self {
        let mut parts: Vec<Part<'n, 'a>> = Vec::new();
        for member in module.members().unwrap_or_default() {
            let Some(rest) = member.name.strip_prefix(WHOLE) else {
                continue;
            };
            let path = match rest.strip_prefix('.') {
                Some(path) => path.split('.').collect(),
                None if rest.is_empty() => Vec::new(),
                None => continue,
            };
            // A key that is there twice: the last one wins.
            parts.retain(|part| part.path != path);
            parts.push(Part { path, member });
        }
        Self { parts }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// Whether there are parts only, as in a layered deployment.
    pub(super) fn is_layered(&self) -> bool {
        !self.is_empty() && self.whole().is_none()
    }

    /// The value of `properties.desired`.
    pub(super) fn whole(&self) -> Option<&'n Node<'a>> {
        let mut parts = self.parts.iter();
        let whole = parts.find(|part| part.path.is_empty());
        whole.map(|part| &part.member.value)
    }

    /// A value by its path; where several parts set it, the last one's.
    pub(super) fn find(&self, path: &[&str]) -> Option<&'n Node<'a>> {
        self.parts.iter().rev().find_map(|part| {
            let mut rest = path.strip_prefix(part.path.as_slice())?.iter();
            rest.try_fold(&part.member.value, |node, key| node.get(key))
        })
    }

    /// The entries of a section that is an object, from all parts; `None` where no part has it.
    pub(super) fn entries(&self, section: &str) -> Option<Vec<Entry<'n, 'a>>> {
        let mut entries: Vec<Entry<'n, 'a>> = Vec::new();
        let mut found = false;
        for part in &self.parts {
            let whole = match part.path.as_slice() {
                [] => part.member.value.get(section),
                [first] if *first == section => Some(&part.member.value),
                [first, rest @ ..] if *first == section => {
                    found = true;
                    let (name, member) = (rest.join("."), part.member);
                    add(&mut entries, name, member.offset, &member.value, false);
                    continue;
                }
                _ => continue,
            };
            found |= whole.is_some();
            for member in whole.and_then(Node::members).unwrap_or_default() {
                let same_part = whole.is_some_and(|whole| doubled(whole, &member.name));
                let name = member.name.clone();
                add(&mut entries, name, member.offset, &member.value, same_part);
            }
        }
        found.then_some(entries)
    }

    /// All parts as one object; `Err`: the offset of a part that does not fit.
    pub(super) fn merged(&self) -> Result<Map<String, Value>, usize> {
        let mut merged = Map::new();
        // The whole first, wherever it stands.
        let (whole, rest): (Vec<_>, Vec<_>) =
            self.parts.iter().partition(|part| part.path.is_empty());
        for part in whole.into_iter().chain(rest) {
            let node = &part.member.value;
            let value = serde_json::from_str(node.raw).map_err(|_| node.offset)?;
            match (part.path.split_last(), value) {
                (None, Value::Object(object)) => merged = object,
                (None, _) => return Err(node.offset),
                (Some((last, parents)), value) => {
                    let mut place = &mut merged;
                    for parent in parents {
                        let entry = place.entry(*parent);
                        let object = entry.or_insert_with(|| Value::Object(Map::new()));
                        place = object.as_object_mut().ok_or(part.member.offset)?;
                    }
                    place.insert((*last).to_owned(), value);
                }
            }
        }
        Ok(merged)
    }
}

fn doubled(object: &Node<'_>, name: &str) -> bool {
    let members = object.members().unwrap_or_default().iter();
    members.filter(|member| member.name == name).count() > 1
}

fn add<'n, 'a>(
    entries: &mut Vec<Entry<'n, 'a>>,
    name: String,
    offset: usize,
    value: &'n Node<'a>,
    doubled: bool,
) {
    let earlier = entries.iter().position(|entry| entry.name == name);
    let replaces = earlier.is_some() && !doubled;
    let entry = Entry {
        name,
        offset,
        value,
        replaces,
    };
    match earlier.and_then(|at| entries.get_mut(at)) {
        Some(place) => *place = entry,
        None => entries.push(entry),
    }
}
