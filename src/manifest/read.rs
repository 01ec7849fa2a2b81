//! From the JSON document to the [`Manifest`], with every rule of the standard document.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::{Map, Value};

use super::desired::{Desired, Entry};
use super::json::{Kind, Member, Node};
use super::{Manifest, RouteText, Ttl};
use crate::diagnostic::{Diagnostic, Diagnostics, Position, nearest};
use crate::identity::is_valid_id;
use crate::limits::MANIFEST_BYTES_MAX;
use crate::message::Priority;

const AGENT: &str = "$edgeAgent";
const HUB: &str = "$edgeHub";
const STORE: &str = "storeAndForwardConfiguration";
const TTL: &str = "timeToLiveSecs";

/// Object routes came with this version.
const OBJECT_ROUTES_SINCE: (u32, u32) = (1, 1);

pub(super) fn manifest(text: &str, file: &Path) -> (Option<Manifest>, Vec<Diagnostic>) {
    // Some editors begin a file with a byte order mark.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut reader = Reader {
        text,
        file,
        diagnostics: Diagnostics::default(),
    };
    let manifest = reader.document();
    (manifest, reader.diagnostics.into_sorted())
}

/// What reads a document, and says what is wrong with it.
pub(super) struct Reader<'t> {
    text: &'t str,
    file: &'t Path,
    diagnostics: Diagnostics,
}

impl Reader<'_> {
    fn document(&mut self) -> Option<Manifest> {
        if self.text.len() > MANIFEST_BYTES_MAX {
            let message = format!("the manifest is larger than {MANIFEST_BYTES_MAX} bytes");
            let whole = Position::WHOLE_FILE;
            self.diagnostics
                .push(Diagnostic::error(self.file, whole, message));
            return None;
        }
        let root = match Node::parse(self.text) {
            Ok(root) => root,
            Err(error) => {
                self.error(
                    error.offset,
                    format!("invalid JSON: {}", error.message),
                    None,
                );
                return None;
            }
        };
        self.warn_of_doubles(&root);
        let root = root.get("content").unwrap_or(&root);
        let modules_content = self.child(root, "modulesContent", "the manifest")?;
        if modules_content.get(AGENT).is_none() {
            let message = format!("`{AGENT}` is missing");
            let hint = "the hub runs without it; other tools want it".to_owned();
            self.warning(modules_content.offset, message, Some(hint));
        }
        let (modules, desired) = self.modules(modules_content);
        let hub = self.child(modules_content, HUB, "`modulesContent`")?;
        let hub = Desired::of(hub).checked(self, hub)?;
        // Each of them speaks up, so that all is said at once.
        let schema_version = self.schema_version(&hub);
        let ttl = self.ttl(&hub);
        let routes = self.routes(&hub, schema_version.unwrap_or((1, 3)));
        let authorizations = self.authorizations(&hub.desired);
        Some(Manifest {
            schema_version: schema_version?,
            routes: routes?,
            ttl: ttl?,
            modules,
            desired,
            authorizations,
        })
    }

    /// A member that must be there and be an object.
    fn child<'n, 'a>(
        &mut self,
        parent: &'n Node<'a>,
        name: &str,
        parent_name: &str,
    ) -> Option<&'n Node<'a>> {
        let Some(members) = parent.members() else {
            let kind = parent.kind_name();
            let message = format!("{parent_name} must be an object, not {kind}");
            self.error(parent.offset, message, None);
            return None;
        };
        let Some(node) = parent.get(name) else {
            let hint = nearest(name, members.iter().map(|member| member.name.as_str()));
            let hint = hint.map(|near| format!("rename `{near}` to `{name}`"));
            self.error(parent.offset, format!("`{name}` is missing"), hint);
            return None;
        };
        if node.members().is_none() {
            let message = format!("`{name}` must be an object, not {}", node.kind_name());
            self.error(node.offset, message, None);
            return None;
        }
        Some(node)
    }

    /// Names of all modules, and desired properties of those that have any.
    fn modules(
        &mut self,
        content: &Node<'_>,
    ) -> (Vec<String>, BTreeMap<String, Map<String, Value>>) {
        let mut names = BTreeSet::new();
        let mut properties = BTreeMap::new();
        for Member {
            name,
            offset,
            value,
        } in content.members().unwrap_or_default()
        {
            if name == HUB || name == AGENT {
                continue;
            }
            if !self.is_module_name(name, *offset) {
                continue;
            }
            names.insert(name.clone());
            let desired = Desired::of(value);
            if desired.is_empty() {
                properties.remove(name);
                continue;
            }
            match desired.merged() {
                Ok(merged) => drop(properties.insert(name.clone(), merged)),
                Err(at) => {
                    let message = format!("desired properties of `{name}` must be an object");
                    let hint = "the module keeps those it has".to_owned();
                    self.error(at, message, Some(hint));
                }
            }
        }
        let agent = content.get(AGENT).map(Desired::of);
        for entry in agent
            .and_then(|agent| agent.entries("modules"))
            .unwrap_or_default()
        {
            let name = entry.name.split('.').next().unwrap_or_default();
            if self.is_module_name(name, entry.offset) {
                names.insert(name.to_owned());
            }
        }
        (names.into_iter().collect(), properties)
    }

    fn is_module_name(&mut self, name: &str, offset: usize) -> bool {
        if is_valid_id(name) {
            return true;
        }
        let message = format!("{name:?} is not a module name");
        let hint = "1 to 128 ASCII letters, digits and - : . + % _ # * ? ! ( ) , = @ ; $ '";
        self.error(offset, message, Some(hint.to_owned()));
        false
    }

    fn schema_version(&mut self, hub: &Hub<'_, '_>) -> Option<(u32, u32)> {
        let Some(node) = hub.desired.find(&["schemaVersion"]) else {
            if hub.desired.is_layered() {
                let message = "a layered deployment without its base";
                let hint = "schema version 1.1 and a time to live of 7200 s are assumed";
                self.warning(hub.offset, message.to_owned(), Some(hint.to_owned()));
                return Some(OBJECT_ROUTES_SINCE);
            }
            self.error(hub.offset, "`schemaVersion` is missing".to_owned(), None);
            return None;
        };
        let version = node.text().and_then(parse_version);
        if version.is_none() {
            let message = format!(
                "`schemaVersion` must be \"1.0\" to \"1.3\", not {}",
                node.raw
            );
            self.error(node.offset, message, None);
        }
        version
    }

    fn ttl(&mut self, hub: &Hub<'_, '_>) -> Option<Ttl> {
        let section = hub.desired.find(&[STORE]);
        if let Some(section) = section
            && section.members().is_none()
        {
            let message = format!("`{STORE}` must be an object, not {}", section.kind_name());
            self.error(section.offset, message, None);
            return None;
        }
        let Some(node) = hub.desired.find(&[STORE, TTL]) else {
            match section {
                Some(section) => {
                    let hint = "7200 s is assumed".to_owned();
                    self.warning(section.offset, format!("`{TTL}` is missing"), Some(hint));
                }
                None if hub.desired.is_layered() => {}
                None => {
                    self.error(hub.offset, format!("`{STORE}` is missing"), None);
                    return None;
                }
            }
            return Some(Ttl::DEFAULT);
        };
        match node
            .raw
            .parse::<i64>()
            .map(|seconds| (seconds, u32::try_from(seconds)))
        {
            Ok((0, _)) => {
                let message = format!("`{TTL}` is 0: messages expire at once");
                let hint = "a negative number keeps them until they are delivered".to_owned();
                self.warning(node.offset, message, Some(hint));
                Some(Ttl::Seconds(0))
            }
            Ok((_, Ok(seconds))) => Some(Ttl::Seconds(seconds)),
            Ok((..0, _)) => Some(Ttl::Forever),
            _ => {
                let raw = short(node);
                let message = format!("`{TTL}` must be a whole number of seconds, not {raw}");
                self.error(node.offset, message, None);
                None
            }
        }
    }

    fn routes(&mut self, hub: &Hub<'_, '_>, version: (u32, u32)) -> Option<Vec<RouteText>> {
        if let Some(node) = hub.desired.find(&["routes"])
            && node.members().is_none()
        {
            let message = format!("`routes` must be an object, not {}", node.kind_name());
            self.error(node.offset, message, None);
            return None;
        }
        let Some(entries) = hub.desired.entries("routes") else {
            if hub.desired.is_layered() {
                return Some(Vec::new());
            }
            let hint = "it may be empty: \"routes\": {}".to_owned();
            self.error(hub.offset, "`routes` is missing".to_owned(), Some(hint));
            return None;
        };
        let routes = entries.iter().filter_map(|entry| {
            if entry.replaces {
                let message = format!("route `{}` replaces one above", entry.name);
                self.warning(entry.offset, message, None);
            }
            self.route(entry, version)
        });
        Some(routes.collect())
    }

    /// One route; `None`: it is left out, which a diagnostic says.
    fn route(&mut self, entry: &Entry<'_, '_>, version: (u32, u32)) -> Option<RouteText> {
        let name = &entry.name;
        if name.is_empty() || name.contains(['.', '$', '#', ' ']) {
            let message = format!("{name:?} is not a route name");
            let hint = "at least one character, and none of . $ # and blank".to_owned();
            self.error(entry.offset, message, Some(hint));
            return None;
        }
        let node = entry.value;
        if node.is_null() || node.text().is_some_and(|text| text.trim().is_empty()) {
            let message = format!("route `{name}` is empty");
            if version < OBJECT_ROUTES_SINCE {
                self.warning(node.offset, message, Some("it is skipped".to_owned()));
            } else {
                self.error(node.offset, message, None);
            }
            return None;
        }
        match &node.kind {
            Kind::Text(_) => self.route_text(name, node),
            Kind::Object(_) if version < OBJECT_ROUTES_SINCE => {
                let message = format!("route `{name}` must be a text under schema version 1.0");
                let hint = "set `schemaVersion` to \"1.1\"".to_owned();
                self.error(node.offset, message, Some(hint));
                None
            }
            Kind::Object(members) => self.route_object(name, node, members),
            Kind::Array(_) | Kind::Other => {
                let kind = node.kind_name();
                let message = format!("route `{name}` must be a text or an object, not {kind}");
                self.error(node.offset, message, None);
                None
            }
        }
    }

    fn route_object(
        &mut self,
        name: &str,
        node: &Node<'_>,
        members: &[Member<'_>],
    ) -> Option<RouteText> {
        const KEYS: [&str; 3] = ["route", "priority", TTL];
        for member in members {
            if !KEYS.contains(&member.name.as_str()) {
                let message = format!("unknown key `{}` in route `{name}`", member.name);
                let near = nearest(&member.name, KEYS);
                let hint = near.map(|near| format!("did you mean `{near}`?"));
                self.warning(member.offset, message, hint);
            }
        }
        let text = node.get("route").filter(|text| !text.is_null());
        if text.is_none() {
            let message = format!("route `{name}` has no `route`");
            self.error(node.offset, message, None);
        }
        let priority = self.route_number(name, node, "priority", 9, |number| {
            Priority::new(u64::from(number))
        });
        let ttl = self.route_number(name, node, TTL, u32::MAX, Some);
        let route = self.route_text(name, text?)?;
        Some(RouteText {
            priority: priority?.unwrap_or(Priority::DEFAULT),
            // 0: the manifest's own.
            ttl_seconds: ttl?.filter(|seconds| *seconds > 0),
            ..route
        })
    }

    /// A number of a route object, from 0; `None`: it is broken; `Some(None)`: it is not there.
    fn route_number<T>(
        &mut self,
        name: &str,
        node: &Node<'_>,
        key: &str,
        max: u32,
        make: impl Fn(u32) -> Option<T>,
    ) -> Option<Option<T>> {
        let Some(value) = node.get(key).filter(|value| !value.is_null()) else {
            return Some(None);
        };
        let number = value.raw.parse::<u32>().ok().and_then(make);
        if number.is_none() {
            let raw = short(value);
            let message = format!("`{key}` of route `{name}` must be from 0 to {max}, not {raw}");
            self.error(value.offset, message, None);
            return None;
        }
        Some(number)
    }

    fn route_text(&mut self, name: &str, node: &Node<'_>) -> Option<RouteText> {
        let Some(text) = node.text().filter(|text| !text.trim().is_empty()) else {
            let kind = match node.kind {
                Kind::Text(_) => "an empty one",
                _ => node.kind_name(),
            };
            let message = format!("the text of route `{name}` must be a string, not {kind}");
            self.error(node.offset, message, None);
            return None;
        };
        Some(RouteText {
            name: name.to_owned(),
            text: text.to_owned(),
            priority: Priority::DEFAULT,
            ttl_seconds: None,
            literal: node.raw.to_owned(),
            start: Position::of(self.text, node.offset),
        })
    }

    fn warn_of_doubles(&mut self, node: &Node<'_>) {
        match &node.kind {
            Kind::Object(members) => {
                let mut names = BTreeSet::new();
                for member in members {
                    if !names.insert(member.name.as_str()) {
                        let message = format!("`{}` is here twice", member.name);
                        let hint = "the last one counts".to_owned();
                        self.warning(member.offset, message, Some(hint));
                    }
                    self.warn_of_doubles(&member.value);
                }
            }
            Kind::Array(values) => values.iter().for_each(|value| self.warn_of_doubles(value)),
            Kind::Text(_) | Kind::Other => {}
        }
    }

    pub(super) fn error(&mut self, offset: usize, message: String, hint: Option<String>) {
        let mut one = Diagnostic::error(self.file, Position::of(self.text, offset), message);
        one.hint = hint;
        self.diagnostics.push(one);
    }

    pub(super) fn warning(&mut self, offset: usize, message: String, hint: Option<String>) {
        let mut one = Diagnostic::warning(self.file, Position::of(self.text, offset), message);
        one.hint = hint;
        self.diagnostics.push(one);
    }
}

/// The desired properties of the hub, and where they start.
struct Hub<'n, 'a> {
    desired: Desired<'n, 'a>,
    offset: usize,
}

impl<'n, 'a> Desired<'n, 'a> {
    /// For the hub: something must be there, and the whole must be an object.
    fn checked(self, reader: &mut Reader<'_>, module: &Node<'_>) -> Option<Hub<'n, 'a>> {
        let whole = self.whole();
        if let Some(whole) = whole
            && whole.members().is_none()
        {
            let kind = whole.kind_name();
            let message = format!("`properties.desired` must be an object, not {kind}");
            reader.error(whole.offset, message, None);
            return None;
        }
        if self.is_empty() {
            let message = format!("`properties.desired` of `{HUB}` is missing");
            reader.error(module.offset, message, None);
            return None;
        }
        let offset = whole.map_or(module.offset, |whole| whole.offset);
        Some(Hub {
            desired: self,
            offset,
        })
    }
}

/// `1.1`, or `1.1.0`.
fn parse_version(text: &str) -> Option<(u32, u32)> {
    let mut components = text.split('.').map(|component| {
        let digits = component.bytes().all(|byte| byte.is_ascii_digit());
        component.parse::<u32>().ok().filter(|_| digits)
    });
    let (major, minor) = (components.next()??, components.next()??);
    if let Some(third) = components.next() {
        third?;
    }
    let known = major == 1 && minor <= 3 && components.next().is_none();
    known.then_some((major, minor))
}

/// A scalar as written, or the kind of anything larger.
fn short<'a>(node: &Node<'a>) -> &'a str {
    match node.kind {
        Kind::Object(_) | Kind::Array(_) => node.kind_name(),
        Kind::Text(_) | Kind::Other => node.raw,
    }
}
