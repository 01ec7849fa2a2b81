//! Resources of a grant: topic filters with variables that stand for something of the client.

use std::borrow::Cow;

use super::{Who, is_reserved};
use crate::topic;

/// What stands for a variable while its resource is checked.
const ONE_LEVEL: &str = "x";

/// A topic filter with variables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Resource {
    parts: Vec<Part>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(Box<str>),
    Variable(Variable),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Variable {
    /// `device` or `device/module`: the only one that may be two levels.
    Identity,
    DeviceId,
    ModuleId,
    ClientId,
    ThisDeviceId,
}

const VARIABLES: [(&str, Variable); 5] = [
    ("iot:identity", Variable::Identity),
    ("iot:device_id", Variable::DeviceId),
    ("iot:module_id", Variable::ModuleId),
    ("mqtt:client_id", Variable::ClientId),
    ("iot:this_device_id", Variable::ThisDeviceId),
];

impl Resource {
    /// Reads a resource; `Err`: what is wrong with it, as a phrase about it.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let unpaired = || "has {{ without }}, or }} without {{".to_owned();
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once("{{") {
            if before.contains("}}") {
                return Err(unpaired());
            }
            let (name, after) = after.split_once("}}").ok_or_else(unpaired)?;
            let known = VARIABLES.iter().find(|(known, _)| *known == name);
            let Some((_, variable)) = known else {
                let known = VARIABLES.map(|(known, _)| format!("{{{{{known}}}}}"));
                let known = known.join(", ");
                return Err(format!(
                    "has an unknown variable {{{{{name}}}}}: there are {known}"
                ));
            };
            if !before.is_empty() {
                parts.push(Part::Text(before.into()));
            }
            parts.push(Part::Variable(*variable));
            rest = after;
        }
        if rest.contains("}}") {
            return Err(unpaired());
        }
        if !rest.is_empty() {
            parts.push(Part::Text(rest.into()));
        }
        let resource = Self { parts };
        let filter = resource.joined(|_| Some(Cow::Borrowed(ONE_LEVEL)));
        let filter = filter.unwrap_or_default();
        topic::check_filter(&filter).map_err(|error| format!("is no topic filter: {error}"))?;
        if is_reserved(&filter) {
            return Err("is under $ or devices/, which rules are not for".to_owned());
        }
        Ok(resource)
    }

    /// The filter that it is for a client; `None`: it matches nothing.
    pub(super) fn filter(&self, who: &Who<'_>) -> Option<Cow<'_, str>> {
        if let [Part::Text(text)] = &*self.parts {
            return Some(Cow::Borrowed(text));
        }
        let filter = self.joined(|variable| variable.of(who))?;
        (!is_reserved(&filter)).then_some(Cow::Owned(filter))
    }

    fn joined<'w>(&self, value: impl Fn(Variable) -> Option<Cow<'w, str>>) -> Option<String> {
        let mut joined = String::new();
        for part in &self.parts {
            match part {
                Part::Text(text) => joined.push_str(text),
                Part::Variable(variable) => joined.push_str(&value(*variable)?),
            }
        }
        Some(joined)
    }
}

impl Variable {
    /// What it stands for; `None` where the client has no such thing, or one that is not safe in
    /// a level.
    fn of<'w>(self, who: &Who<'w>) -> Option<Cow<'w, str>> {
        let one = match self {
            Self::Identity => match (level(who.device_id?)?, who.module_id) {
                (device, Some(module)) => {
                    return Some(Cow::Owned(format!("{device}/{}", level(module)?)));
                }
                (device, None) => Some(device),
            },
            Self::DeviceId => who.device_id,
            Self::ModuleId => who.module_id,
            Self::ClientId => Some(who.client_id),
            Self::ThisDeviceId => Some(who.this_device_id),
        };
        one.and_then(level).map(Cow::Borrowed)
    }
}

/// A value that is one level and no wildcard; nobody who chooses a value chooses levels.
fn level(value: &str) -> Option<&str> {
    let safe = !value.is_empty() && !value.contains(['/', '+', '#', '\0']);
    safe.then_some(value)
}
