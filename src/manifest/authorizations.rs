//! `mqttBroker.authorizations`: who may use plain topics (facts §5.1).
//!
//! A statement with anything wrong in it is left out as a whole, and so is one with a key that is
//! not known: a misspelt `deny` would allow too much.

use super::desired::Desired;
use super::json::{Kind, Node};
use super::read::Reader;
use crate::diagnostic::nearest;
use crate::identity::rules::{Grant, Operation, Statement, check_identity, check_resource};

const BROKER: &str = "mqttBroker";
const AUTHORIZATIONS: &str = "authorizations";
const BRIDGES: &str = "bridges";

impl Reader<'_> {
    /// The statements that are sound; a diagnostic says why another one is not among them.
    pub(super) fn authorizations(&mut self, hub: &Desired<'_, '_>) -> Vec<Statement> {
        let find = |path: &[&str]| hub.find(path).filter(|node| !node.is_null());
        if let Some(broker) = find(&[BROKER])
            && broker.members().is_none()
        {
            let kind = broker.kind_name();
            let message = format!("`{BROKER}` must be an object, not {kind}");
            self.error(broker.offset, message, None);
        }
        if let Some(bridges) = find(&[BROKER, BRIDGES]) {
            let message = format!("`{BROKER}.{BRIDGES}` has no effect");
            let hint = "`[upstream]` of the configuration leads to other brokers".to_owned();
            self.warning(bridges.offset, message, Some(hint));
        }
        let Some(node) = find(&[BROKER, AUTHORIZATIONS]) else {
            return Vec::new();
        };
        let Kind::Array(nodes) = &node.kind else {
            let kind = node.kind_name();
            let message = format!("`{AUTHORIZATIONS}` must be an array, not {kind}");
            self.error(node.offset, message, None);
            return Vec::new();
        };
        let mut statements = Vec::new();
        for (number, node) in (1..).zip(nodes) {
            let mut one = Authorization {
                reader: self,
                number,
                is_sound: true,
            };
            let statement = one.statement(node);
            if one.is_sound {
                statements.push(statement);
            }
        }
        statements
    }
}

/// One statement that is being read.
struct Authorization<'r, 't> {
    reader: &'r mut Reader<'t>,
    /// Its place in the array, from 1.
    number: usize,
    is_sound: bool,
}

impl Authorization<'_, '_> {
    fn statement(&mut self, node: &Node<'_>) -> Statement {
        if !self.is_object(node, AUTHORIZATIONS, &["identities", "allow", "deny"]) {
            return Statement::default();
        }
        Statement {
            identities: self.texts(node, "identities", true, |text| {
                stated(text, check_identity)
            }),
            allow: self.grants(node, "allow"),
            deny: self.grants(node, "deny"),
        }
    }

    fn grants(&mut self, statement: &Node<'_>, key: &str) -> Vec<Grant> {
        let nodes = self.array(statement, key, false);
        nodes.iter().map(|node| self.grant(node, key)).collect()
    }

    fn grant(&mut self, node: &Node<'_>, key: &str) -> Grant {
        if !self.is_object(node, key, &["operations", "resources"]) {
            return Grant::default();
        }
        let mut grant = Grant {
            operations: self.texts(node, "operations", true, operation),
            resources: Vec::new(),
        };
        let needed = grant.needs_resources();
        grant.resources = self.texts(node, "resources", needed, |text| {
            stated(text, check_resource)
        });
        grant
    }

    /// Whether a value of an array is an object; complains if not, and of keys that are not known.
    fn is_object(&mut self, node: &Node<'_>, array: &str, keys: &[&str]) -> bool {
        let Some(members) = node.members() else {
            let message = format!("`{array}` must hold objects, not {}", node.kind_name());
            self.wrong(node.offset, &message, None);
            return false;
        };
        for member in members {
            if !keys.contains(&member.name.as_str()) {
                let near = nearest(&member.name, keys.iter().copied());
                let hint = near.map(|near| format!("did you mean `{near}`?"));
                let message = format!("unknown key `{}`", member.name);
                self.wrong(member.offset, &message, hint);
            }
        }
        true
    }

    /// The texts of an array, each as `read` understands it.
    fn texts<T>(
        &mut self,
        parent: &Node<'_>,
        key: &str,
        needed: bool,
        read: impl Fn(&str) -> Result<T, Refusal>,
    ) -> Vec<T> {
        let mut texts = Vec::new();
        for node in self.array(parent, key, needed) {
            let Some(text) = node.text() else {
                let kind = node.kind_name();
                let message = format!("`{key}` must hold strings, not {kind}");
                self.wrong(node.offset, &message, None);
                continue;
            };
            match read(text) {
                Ok(read) => texts.push(read),
                Err((message, hint)) => {
                    self.wrong(node.offset, &format!("`{key}` {message}"), hint);
                }
            }
        }
        texts
    }

    /// The values of an array; `needed`: it must be there and hold something.
    fn array<'n, 'a>(&mut self, parent: &'n Node<'a>, key: &str, needed: bool) -> &'n [Node<'a>] {
        let Some(node) = parent.get(key).filter(|node| !node.is_null()) else {
            if needed {
                self.wrong(parent.offset, &format!("`{key}` is missing"), None);
            }
            return &[];
        };
        match &node.kind {
            Kind::Array(nodes) => {
                if needed && nodes.is_empty() {
                    self.wrong(node.offset, &format!("`{key}` is empty"), None);
                }
                nodes
            }
            _ => {
                let kind = node.kind_name();
                let message = format!("`{key}` must be an array, not {kind}");
                self.wrong(node.offset, &message, None);
                &[]
            }
        }
    }

    fn wrong(&mut self, offset: usize, message: &str, hint: Option<String>) {
        self.is_sound = false;
        let message = format!("authorization {}: {message}", self.number);
        self.reader.error(offset, message, hint);
    }
}

/// A message that follows the key, and perhaps a hint.
type Refusal = (String, Option<String>);

fn operation(text: &str) -> Result<Operation, Refusal> {
    let names = || Operation::NAMES.iter().map(|(name, _)| *name);
    let known = Operation::NAMES.iter().find(|(name, _)| *name == text);
    known.map(|(_, operation)| *operation).ok_or_else(|| {
        let known: Vec<_> = names().collect();
        let message = format!("has no {text:?}: there are {}", known.join(", "));
        let near = nearest(text, names());
        (message, near.map(|near| format!("did you mean `{near}`?")))
    })
}

/// A text of a statement, if its rules take it.
fn stated(text: &str, check: fn(&str) -> Result<(), String>) -> Result<String, Refusal> {
    let refused = |why| (format!("holds {text:?}, which {why}"), None);
    check(text).map_err(refused)?;
    Ok(text.to_owned())
}
