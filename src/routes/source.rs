//! Source paths of routes: what they match, and what they look as if they matched (facts §4.3).

use std::fmt;

use super::error::nearest;
use crate::topic;

/// The source of a route, as written and as it is matched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SourcePath {
    /// As it stands in the route.
    pub(super) text: Box<str>,
    /// Without wildcards at its end, with a `/` there, case folded: a message matches if its
    /// own source begins with this.
    pub(super) prefix: Box<str>,
    /// For `/topics/{filter}`, which takes messages of the plain topic space and no others.
    pub(super) filter: Option<Box<str>>,
}

/// Before the topic name of a message, and before the filter of a route.
const TOPICS: &str = "/topics/";

/// What stands behind `/topics/`; `None` if it begins with something else.
pub(super) fn topic_of(source: &str) -> Option<&str> {
    let (start, rest) = source.split_at_checked(TOPICS.len())?;
    start.eq_ignore_ascii_case(TOPICS).then_some(rest)
}

/// Source of reported-property changes.
pub(super) const TWIN_CHANGES: &str = "/twinchangenotifications/";

/// Sources that the cloud's own routes have and edge routes have not (facts §4.3).
const CLOUD_ONLY: [&str; 5] = [
    "/devicelifecycleevents/",
    "/devicejoblifecycleevents/",
    "/deviceconnectionstateevents/",
    "/digitaltwinchangeevents/",
    "/digitaltwinchangenotifications/",
];

impl SourcePath {
    pub(super) fn new(text: &str) -> Self {
        let trimmed = text.trim().trim_end_matches('*').trim_end_matches('/');
        let mut prefix = fold(trimmed);
        prefix.push('/');
        Self {
            text: text.into(),
            prefix: prefix.into(),
            filter: topic_of(text).map(Into::into),
        }
    }

    /// Whether a message with this source is taken.
    pub(super) fn matches(&self, source: &str) -> bool {
        match (&self.filter, topic_of(source)) {
            (Some(filter), Some(name)) => topic::matches(filter, name),
            (None, None) => folded(source).starts_with(&*self.prefix),
            _ => false,
        }
    }

    /// Why the filter is none, and what to write instead.
    pub(super) fn filter_error(&self) -> Option<(String, String)> {
        let filter = self.filter.as_deref()?;
        let wrong = match topic::check_filter(filter) {
            _ if filter.is_empty() => "a topic filter is missing behind /topics/".to_owned(),
            Err(error) => format!("`{filter}` is no topic filter: {error}"),
            Ok(()) if filter.split('/').any(|level| level == "*") => {
                "`*` is no wildcard of a topic filter".to_owned()
            }
            Ok(()) if filter.starts_with('$') || !topic::is_plain(filter) => {
                format!("`{filter}` matches nothing: it is no plain topic")
            }
            Ok(()) => return None,
        };
        let hint = "write /topics/# for all plain topics, /topics/+/temperature for some";
        Some((wrong, hint.to_owned()))
    }

    /// Why this source matches nothing or not what it seems to, and what to write instead.
    pub(super) fn suspicion(&self) -> Option<(String, Option<String>)> {
        if self.filter.is_some() {
            return None;
        }
        let prefix = &*self.prefix;
        let text = &self.text;
        let segments: Vec<&str> = prefix.split('/').filter(|part| !part.is_empty()).collect();
        if let Some(named) = segments.iter().position(|part| part.contains('*')) {
            let hint = match named {
                2 => "a module cannot be a wildcard in the middle; write one route per module",
                _ => "a wildcard stands at the end only",
            };
            let message = format!("`{text}` matches nothing: `*` in the middle is no wildcard");
            return Some((message, Some(hint.to_owned())));
        }
        let last = text.rsplit('/').next().unwrap_or_default();
        if last.len() > 1 && last.ends_with('*') && !last.starts_with('*') {
            let name = last.trim_end_matches('*');
            let message = format!("`{last}` is no prefix wildcard: it means exactly `{name}`");
            return Some((message, Some("name each module or output".to_owned())));
        }
        self.never(&segments)
    }

    /// Why no message has such a source.
    fn never(&self, segments: &[&str]) -> Option<(String, Option<String>)> {
        let text = &self.text;
        let hint = match segments {
            [] | ["messages"] | ["messages", "modules"] | ["messages", "modules", _] => {
                return None;
            }
            ["messages", "modules", _, "outputs"] | ["messages", "modules", _, "outputs", _] => {
                return None;
            }
            ["twinchangenotifications"] => return None,
            ["messages", "events", ..] => {
                "device messages come from /messages/*, module outputs from \
                 /messages/modules/{module}/outputs/{output}"
                    .to_owned()
            }
            ["messages", "modules", module, "inputs", ..] => {
                format!("messages come from outputs: /messages/modules/{module}/outputs/{{output}}")
            }
            ["messages", "modules", module, rest @ ..] => match rest {
                [other] if nearest(other, ["outputs"]).is_none() => {
                    format!("write /messages/modules/{module}/outputs/{other}")
                }
                [_, other, ..] => format!("write /messages/modules/{module}/outputs/{other}"),
                _ => format!("write /messages/modules/{module}/outputs/*"),
            },
            ["topics"] => "write /topics/# for all plain topics".to_owned(),
            ["modules", ..] => "write /messages/modules/…".to_owned(),
            _ if CLOUD_ONLY.contains(&&*self.prefix) => {
                "the cloud has this source, an edge hub has not".to_owned()
            }
            _ => known_sources(segments),
        };
        let message = format!("`{text}` matches nothing: no message has such a source");
        Some((message, Some(hint)))
    }
}

fn known_sources(segments: &[&str]) -> String {
    let known = ["messages", "modules", "twinChangeNotifications", "topics"];
    for segment in segments {
        if known.iter().any(|name| name.eq_ignore_ascii_case(segment)) {
            continue;
        }
        if let Some(near) = nearest(segment, known) {
            return format!("did you mean `{near}`?");
        }
    }
    "sources are /*, /messages/*, /messages/modules/{module}/outputs/{output}, \
     /twinChangeNotifications and /topics/{filter}"
        .to_owned()
}

/// Case folded for comparison, with a `/` at its end.
pub(super) fn folded(source: &str) -> String {
    let mut folded = fold(source);
    if !folded.ends_with('/') {
        folded.push('/');
    }
    folded
}

fn fold(text: &str) -> String {
    super::text::lower(text)
}

/// A source in parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Parts<'s> {
    Any,
    Messages,
    Modules,
    Module(&'s str),
    Output(&'s str, Option<&'s str>),
    TwinChange,
    Other,
}

fn parts(folded: &str) -> Parts<'_> {
    let segments: Vec<&str> = folded.split('/').filter(|part| !part.is_empty()).collect();
    match *segments {
        [] => Parts::Any,
        ["messages"] => Parts::Messages,
        ["messages", "modules"] => Parts::Modules,
        ["messages", "modules", module] => Parts::Module(module),
        ["messages", "modules", module, "outputs"] => Parts::Output(module, None),
        ["messages", "modules", module, "outputs", output] => Parts::Output(module, Some(output)),
        ["twinchangenotifications"] => Parts::TwinChange,
        _ => Parts::Other,
    }
}

/// Why a route with this source does not take a message from that one, in words.
pub(super) fn mismatch(route: &SourcePath, message: &str) -> String {
    match (&route.filter, topic_of(message)) {
        (Some(filter), Some(name)) => {
            return format!("the message comes from topic '{name}', the route takes '{filter}'");
        }
        (Some(_), None) => return "the route takes messages of plain topics only".to_owned(),
        (None, Some(name)) => {
            return format!(
                "the message comes from topic '{name}', which only routes FROM /topics/... take"
            );
        }
        (None, None) => {}
    }
    if let Some((message, hint)) = route.suspicion() {
        return match hint {
            Some(hint) => format!("{message}; {hint}"),
            None => message,
        };
    }
    let message = folded(message);
    let from = From(parts(&message));
    match (parts(&route.prefix), from.0) {
        (Parts::TwinChange, _) => format!("{from}, the route takes twin changes only"),
        (_, Parts::TwinChange) => format!("{from}, the route takes messages only"),
        (
            Parts::Module(wanted) | Parts::Output(wanted, _),
            Parts::Module(module) | Parts::Output(module, _),
        ) if wanted != module => {
            let near = match nearest(module, [wanted]) {
                Some(_) => ", a similar name",
                None => "",
            };
            format!("{from}, the route takes only module '{wanted}'{near}")
        }
        (Parts::Output(..), Parts::Module(module)) => format!(
            "module '{module}' named no output, the route takes only {}; end the source with \
             /messages/modules/{module}/* to take all",
            outputs(&route.prefix)
        ),
        (Parts::Output(_, Some(wanted)), Parts::Output(_, Some(output))) => {
            let near = match nearest(output, [wanted]) {
                Some(_) => ", a similar name",
                None => "",
            };
            format!("{from}, the route takes only output '{wanted}'{near}")
        }
        (Parts::Modules | Parts::Module(_) | Parts::Output(..), Parts::Messages) => {
            format!("{from}, the route takes messages of modules only")
        }
        _ => format!("{from}, the route takes only `{}`", route.text),
    }
}

fn outputs(prefix: &str) -> String {
    match parts(prefix) {
        Parts::Output(_, Some(output)) => format!("output '{output}'"),
        _ => "named outputs".to_owned(),
    }
}

struct From<'s>(Parts<'s>);

impl fmt::Display for From<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Parts::Messages => f.write_str("the message comes from a device"),
            Parts::Module(module) => write!(f, "the message comes from module '{module}'"),
            Parts::Output(module, Some(output)) => {
                write!(
                    f,
                    "the message comes from output '{output}' of module '{module}'"
                )
            }
            Parts::TwinChange => f.write_str("the message is a twin change"),
            _ => f.write_str("the message has another source"),
        }
    }
}
