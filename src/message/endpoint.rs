//! Where messages go, and how urgent they are.

use std::fmt;
use std::sync::Arc;

use crate::identity::Identity;

/// Where a route sends messages (facts §4.1).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Endpoint {
    /// The cloud, or the hub above this one: what routes say.
    Upstream,
    /// What waits for the cloud of one sender, each in a queue of its own, so that none of them
    /// holds another up.
    Cloud {
        /// Whose messages they are.
        sender: Identity,
        /// Those that came while the link was up, where they do not wait behind a backlog.
        live: bool,
    },
    /// What waits for the session of one client in the plain topic space.
    Session {
        /// Whose session it is.
        client: Identity,
        /// It is in memory, and ends with the connection.
        live: bool,
    },
    /// A plain topic: what routes say. Nothing waits there, only for those who have subscribed.
    Topic {
        /// Its name, with places to fill in ([`crate::topic::template`]).
        template: Arc<str>,
    },
    /// An input of a module of this device.
    Input {
        /// The receiving module.
        module: Arc<str>,
        /// Its input.
        input: Arc<str>,
    },
}

impl Endpoint {
    const UPSTREAM: &'static str = "$upstream";
    const UPSTREAM_LIVE: &'static str = "$upstream-live";
    const SESSION: &'static str = "$session";
    const SESSION_LIVE: &'static str = "$session-live";

    /// Whether it is the cloud's, or one sender's part of it.
    #[must_use]
    pub fn is_upward(&self) -> bool {
        matches!(self, Self::Upstream | Self::Cloud { .. })
    }

    /// Whether what waits is in memory only.
    #[must_use]
    pub fn is_live(&self) -> bool {
        matches!(self, Self::Session { live: true, .. })
    }

    /// Reads what [`fmt::Display`] writes.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        if text == Self::UPSTREAM {
            return Some(Self::Upstream);
        }
        let (module, input) = text.split_once('/')?;
        if module == Self::UPSTREAM || module == Self::UPSTREAM_LIVE {
            let sender = Identity::parse(input)?;
            let live = module == Self::UPSTREAM_LIVE;
            return Some(Self::Cloud { sender, live });
        }
        if module == Self::SESSION || module == Self::SESSION_LIVE {
            let client = Identity::read(input)?;
            let live = module == Self::SESSION_LIVE;
            return Some(Self::Session { client, live });
        }
        Some(Self::Input {
            module: module.into(),
            input: input.into(),
        })
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Upstream => f.write_str(Self::UPSTREAM),
            Self::Cloud { sender, live } => {
                let way = if *live {
                    Self::UPSTREAM_LIVE
                } else {
                    Self::UPSTREAM
                };
                write!(f, "{way}/{sender}")
            }
            Self::Session { client, live } => {
                let space = if *live {
                    Self::SESSION_LIVE
                } else {
                    Self::SESSION
                };
                write!(f, "{space}/{client}")
            }
            Self::Topic { template } => write!(f, "Topic({template:?})"),
            Self::Input { module, input } => write!(f, "{module}/{input}"),
        }
    }
}

/// Priority of a route: 0 is the most urgent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Priority(u8);

impl Priority {
    /// Priority of a route that names none: after 9 (facts §4.8: 2,000,000,000).
    pub const DEFAULT: Self = Self(10);
    /// Number of different priorities.
    pub const COUNT: usize = 11;

    /// A priority from a manifest, 0 to 9.
    #[must_use]
    pub fn new(priority: u64) -> Option<Self> {
        (priority <= 9).then_some(Self(priority as u8))
    }

    /// 0 to 9, or 10 for the default; an index below [`Priority::COUNT`].
    #[must_use]
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

impl fmt::Display for Priority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::DEFAULT {
            f.write_str("2000000000")
        } else {
            write!(f, "{}", self.0)
        }
    }
}

/// One copy of a message: the endpoint by its place in the route table, and how urgent it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target {
    /// Index into the route table's endpoints.
    pub endpoint: usize,
    /// Smallest priority number among the routes that matched.
    pub priority: Priority,
    /// Time to live of that route in seconds; `None`: the manifest's.
    pub ttl_seconds: Option<u32>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_read_as_they_are_printed() {
        let sender = Identity::module("edge-1", "sensor");
        for (endpoint, text) in [
            (Endpoint::Upstream, "$upstream"),
            (
                Endpoint::Cloud {
                    sender: sender.clone(),
                    live: false,
                },
                "$upstream/edge-1/sensor",
            ),
            (
                Endpoint::Session {
                    client: Identity::module("{{anonymous}}", "a/b c"),
                    live: false,
                },
                "$session/{{anonymous}}/a/b c",
            ),
            (
                Endpoint::Session {
                    client: sender.clone(),
                    live: true,
                },
                "$session-live/edge-1/sensor",
            ),
            (
                Endpoint::Cloud { sender, live: true },
                "$upstream-live/edge-1/sensor",
            ),
            (
                Endpoint::Cloud {
                    sender: Identity::device("leaf"),
                    live: false,
                },
                "$upstream/leaf",
            ),
            (
                Endpoint::Input {
                    module: "m".into(),
                    input: "i".into(),
                },
                "m/i",
            ),
        ] {
            assert_eq!(endpoint.to_string(), text);
            assert_eq!(Endpoint::parse(text), Some(endpoint));
        }
        assert_eq!(Endpoint::parse("m"), None);
        assert_eq!(Endpoint::parse("$upstream/"), None);
    }

    #[test]
    fn priorities_print_as_the_replaced_system_prints_them() {
        assert_eq!(Priority::new(0).unwrap().to_string(), "0");
        assert_eq!(Priority::new(10), None);
        assert_eq!(Priority::DEFAULT.to_string(), "2000000000");
    }
}
