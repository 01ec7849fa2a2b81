//! Who may connect, and which plain topics a client may use: the statements of `[[authorization]]`
//! and of the manifest's `mqttBroker.authorizations` (`DESIGN` §3.2, §5).
//!
//! Statements are taken in order. The first one that names the client and has a deny or an allow
//! that matches what the client wants decides, and there deny wins over allow. What no statement
//! decides is denied, except to connect.
//!
//! Topics that begin with `$` or whose first level is `devices` are not for rules: no resource
//! means them, and a request for one finds no rule.

mod resource;
#[cfg(test)]
mod tests;

use self::resource::Resource;
use super::Identity;
use crate::topic;

/// Any device or module of the registry: as an identity it names the client, in a resource it
/// stands for `device` or `device/module`.
pub const ANY_IDENTITY: &str = "{{iot:identity}}";
/// The clients without credentials, and what [`Who::name`] is for them.
pub const ANONYMOUS: &str = "{{anonymous}}";
/// Before the user name of a client that logged in by user name and password.
pub const USER_PREFIX: &str = "user:";
/// Before the common name of a certificate that names no identity of the registry.
pub const CERTIFICATE_PREFIX: &str = "cert:";

/// A client, as rules see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Who<'a> {
    /// What rules call it: `edge-1/sensor` or `leaf-7` for an identity of the registry, otherwise
    /// [`ANONYMOUS`], `user:NAME` or `cert:CN`.
    pub name: &'a str,
    /// The client id of its CONNECT.
    pub client_id: &'a str,
    /// Its device, for an identity of the registry only.
    pub device_id: Option<&'a str>,
    /// Its module, for a module of the registry only.
    pub module_id: Option<&'a str>,
    /// The edge device that the hub runs on.
    pub this_device_id: &'a str,
}

/// What a client wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action<'a> {
    /// To be let in.
    Connect,
    /// To publish to this topic name, which must have passed [`topic::check_name`].
    Publish(&'a str),
    /// To subscribe to this topic filter, which must have passed [`topic::check_filter`]. One of
    /// the form `$share/group/filter` is judged by its inner filter.
    Subscribe(&'a str),
}

/// What the rules say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// A statement allows it.
    Allowed,
    /// A statement denies it.
    Denied,
    /// No statement speaks of it. To connect it is no obstacle; anything else is denied.
    NoRule,
}

/// What a grant speaks about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operation {
    /// `mqtt:connect`
    Connect,
    /// `mqtt:publish`
    Publish,
    /// `mqtt:subscribe`
    Subscribe,
}

impl Operation {
    /// Every operation by its name in files.
    pub const NAMES: [(&'static str, Self); 3] = [
        ("mqtt:connect", Self::Connect),
        ("mqtt:publish", Self::Publish),
        ("mqtt:subscribe", Self::Subscribe),
    ];
}

/// Operations on resources.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Grant {
    /// What is done.
    pub operations: Vec<Operation>,
    /// Topic filters with variables. They say nothing about [`Operation::Connect`], and may be
    /// left out where there is no other operation.
    pub resources: Vec<String>,
}

impl Grant {
    /// Whether it means nothing without resources.
    #[must_use]
    pub fn needs_resources(&self) -> bool {
        let mut operations = self.operations.iter();
        operations.any(|operation| *operation != Operation::Connect)
    }
}

/// One statement: what some identities may do, and what they may not.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Statement {
    /// Whom it speaks of: names as in [`Who::name`], [`ANY_IDENTITY`], [`ANONYMOUS`].
    pub identities: Vec<String>,
    /// What they may do.
    pub allow: Vec<Grant>,
    /// What they may not do, even if the statement allows it.
    pub deny: Vec<Grant>,
}

impl Statement {
    /// Everything that is wrong with it; empty where nothing is.
    #[must_use]
    pub fn check(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        if self.identities.is_empty() {
            wrong.push("`identities` is empty".to_owned());
        }
        let named = |text: &String, why| format!("{text:?} {why}");
        for text in &self.identities {
            wrong.extend(check_identity(text).err().map(|why| named(text, why)));
        }
        for (effect, grants) in [("allow", &self.allow), ("deny", &self.deny)] {
            for grant in grants {
                if grant.operations.is_empty() {
                    wrong.push(format!("`operations` of `{effect}` is empty"));
                }
                if grant.needs_resources() && grant.resources.is_empty() {
                    wrong.push(format!("`resources` of `{effect}` is empty"));
                }
                for text in &grant.resources {
                    wrong.extend(check_resource(text).err().map(|why| named(text, why)));
                }
            }
        }
        wrong
    }
}

/// Checks an identity of a statement.
///
/// # Errors
///
/// What is wrong, as a phrase about the text: a variable that cannot stand there, or a name that
/// no client can have.
pub fn check_identity(text: &str) -> Result<(), String> {
    Subject::parse(text).map(drop)
}

/// Checks a resource of a grant: it must be a topic filter once every variable is replaced by one
/// level, and not lead to `$` or `devices/`.
///
/// # Errors
///
/// What is wrong, as a phrase about the text.
pub fn check_resource(text: &str) -> Result<(), String> {
    Resource::parse(text).map(drop)
}

/// All statements, ready to decide. Without any, nobody may use a plain topic.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rules {
    statements: Vec<Prepared>,
}

impl Rules {
    /// Takes the statements in their order. One that does not pass [`Statement::check`] is left
    /// out.
    #[must_use]
    pub fn new(statements: Vec<Statement>) -> Self {
        let sound = statements.iter().filter(|one| one.check().is_empty());
        Self {
            statements: sound.map(Prepared::from).collect(),
        }
    }

    /// Whether there are no statements.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.statements.is_empty()
    }

    /// Whether a statement speaks of this client.
    #[must_use]
    pub fn names(&self, who: &Who<'_>) -> bool {
        let mut subjects = self.statements.iter().flat_map(|one| &one.subjects);
        subjects.any(|one| one.is(who))
    }

    /// What the rules say of what a client wants.
    #[must_use]
    pub fn decide(&self, who: &Who<'_>, action: Action<'_>) -> Decision {
        let action = match action {
            Action::Publish(name) if is_reserved(name) => return Decision::NoRule,
            Action::Subscribe(filter) => match without_share(filter) {
                Some(inner) if !is_reserved(inner) => Action::Subscribe(inner),
                _ => return Decision::NoRule,
            },
            action => action,
        };
        for statement in &self.statements {
            if !statement.subjects.iter().any(|one| one.is(who)) {
                continue;
            }
            let denies = |clause: &Clause| clause.matches(who, action, topic::overlaps);
            if statement.deny.iter().any(denies) {
                return Decision::Denied;
            }
            let allows = |clause: &Clause| clause.matches(who, action, topic::covers);
            if statement.allow.iter().any(allows) {
                return Decision::Allowed;
            }
        }
        Decision::NoRule
    }
}

/// A [`Statement`] that was read into its parts.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Prepared {
    subjects: Vec<Subject>,
    allow: Vec<Clause>,
    deny: Vec<Clause>,
}

impl From<&Statement> for Prepared {
    fn from(statement: &Statement) -> Self {
        let identities = statement.identities.iter();
        let clauses = |grants: &[Grant]| grants.iter().map(Clause::from).collect();
        Self {
            subjects: identities
                .filter_map(|text| Subject::parse(text).ok())
                .collect(),
            allow: clauses(&statement.allow),
            deny: clauses(&statement.deny),
        }
    }
}

/// An identity of a statement.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Subject {
    /// Every device and module of the registry.
    Registry,
    /// The device or module of this name.
    Identity(Identity),
    /// Anonymous clients, a user, or a certificate. No client of the registry is meant, though
    /// `user:x` may be the id of a device.
    Other(Box<str>),
}

impl Subject {
    fn parse(text: &str) -> Result<Self, String> {
        if text == ANY_IDENTITY {
            return Ok(Self::Registry);
        }
        if text == ANONYMOUS {
            return Ok(Self::Other(text.into()));
        }
        if text.contains("{{") {
            return Err(format!(
                "has an unknown variable: there are {ANY_IDENTITY} and {ANONYMOUS}"
            ));
        }
        let other = text.strip_prefix(USER_PREFIX);
        let subject = match other.or_else(|| text.strip_prefix(CERTIFICATE_PREFIX)) {
            Some(name) => (!name.is_empty()).then(|| Self::Other(text.into())),
            None => Identity::parse(text).map(Self::Identity),
        };
        let names = "DEVICE, DEVICE/MODULE, user:NAME or cert:NAME";
        subject.ok_or_else(|| format!("is no identity, such as {names}"))
    }

    fn is(&self, who: &Who<'_>) -> bool {
        match self {
            Self::Registry => who.device_id.is_some(),
            Self::Identity(identity) => who.device_id.is_some() && identity.as_str() == who.name,
            Self::Other(name) => who.device_id.is_none() && **name == *who.name,
        }
    }
}

/// A [`Grant`] that was read into its parts.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Clause {
    operations: Vec<Operation>,
    resources: Vec<Resource>,
}

impl From<&Grant> for Clause {
    fn from(grant: &Grant) -> Self {
        let resources = grant.resources.iter();
        Self {
            operations: grant.operations.clone(),
            resources: resources
                .filter_map(|text| Resource::parse(text).ok())
                .collect(),
        }
    }
}

impl Clause {
    /// Whether it speaks of this; `relation` says how a resource must stand to a filter.
    fn matches(
        &self,
        who: &Who<'_>,
        action: Action<'_>,
        relation: impl Fn(&str, &str) -> bool,
    ) -> bool {
        let speaks_of = |operation| self.operations.contains(&operation);
        let any = |holds: &dyn Fn(&str) -> bool| {
            let mut resources = self.resources.iter();
            resources.any(|resource| resource.filter(who).is_some_and(|filter| holds(&filter)))
        };
        match action {
            Action::Connect => speaks_of(Operation::Connect),
            Action::Publish(name) => {
                speaks_of(Operation::Publish) && any(&|filter| topic::matches(filter, name))
            }
            Action::Subscribe(wanted) => {
                speaks_of(Operation::Subscribe) && any(&|filter| relation(filter, wanted))
            }
        }
    }
}

/// The filter that a subscription reads: the inner one of `$share/group/filter`, which is `None`
/// where that form is broken.
fn without_share(filter: &str) -> Option<&str> {
    let Some(shared) = filter.strip_prefix("$share/") else {
        return Some(filter);
    };
    let (group, inner) = shared.split_once('/')?;
    let sound = !group.is_empty() && !group.contains(['+', '#']) && !inner.is_empty();
    sound.then_some(inner)
}

/// Whether a topic or a filter is in the space of the dialect, which rules do not speak of.
fn is_reserved(text: &str) -> bool {
    text.starts_with('$') || text.split('/').next() == Some("devices")
}
