//! What an identity may do: publish and subscribe as itself, and nothing else (`DESIGN` §2, §5).
//!
//! A decision that allows is a [`Permit`]; there is no other way to get one, so what needs a permit
//! cannot skip the decision.

use thiserror::Error;

use super::Identity;

/// What a client wants to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation<'a> {
    /// Send a message.
    Publish(Publication<'a>),
    /// Receive what matches this filter, which must be well formed (`topic::check_filter`).
    Subscribe(&'a str),
}

/// The kind of a topic that is published to, as the dialect has read it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Publication<'a> {
    /// Telemetry of the identity that the topic names (facts §1.6).
    Telemetry {
        /// The device in the topic.
        device: &'a str,
        /// The module in the topic, if any.
        module: Option<&'a str>,
    },
    /// A request or an answer under `$iothub/`, which names nobody: it is the connection's own.
    IotHub,
    /// Any other topic under `devices/` or `$`, which nobody may publish to.
    Reserved,
    /// A topic of the plain MQTT space.
    Plain,
}

/// What a [`Permit`] allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Permitted {
    /// To send telemetry as itself.
    Telemetry,
    /// To send a request or an answer under its own `$iothub/`.
    IotHub,
    /// To subscribe to a filter in its own space.
    Subscription,
}

/// Proof that an identity may do something; made by [`authorize`] only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Permit {
    identity: Identity,
    permitted: Permitted,
}

impl Permit {
    /// Who may.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// What it may do.
    #[must_use]
    pub fn permitted(&self) -> Permitted {
        self.permitted
    }
}

/// Why an operation was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Error)]
#[non_exhaustive]
pub enum Forbidden {
    /// The topic names another device or module (`DESIGN` §4).
    #[error("the topic names another identity than that of the connection")]
    OtherIdentity,
    /// A reserved topic that is not served to anybody.
    #[error("topics under devices/ and $ are reserved")]
    Reserved,
    /// A filter whose wildcard would reach into spaces of other identities (`DESIGN` §5).
    #[error("the filter's wildcard reaches beyond the connection's own topics")]
    Wildcard,
    /// A topic of the plain MQTT space, which rules have to allow ([`super::rules`]).
    #[error("no authorization rule allows it")]
    PlainTopics,
}

impl Forbidden {
    /// A short name for logs and metrics, which stays the same.
    #[must_use]
    pub fn reason(self) -> &'static str {
        match self {
            Self::OtherIdentity => "other_identity",
            Self::Reserved => "reserved_topic",
            Self::Wildcard => "wildcard",
            Self::PlainTopics => "plain_topic",
        }
    }
}

/// Decides whether an identity may do something.
///
/// # Errors
///
/// [`Forbidden`] with the reason if it may not.
pub fn authorize(identity: &Identity, operation: Operation<'_>) -> Result<Permit, Forbidden> {
    match operation {
        Operation::Publish(publication) => authorize_publish(identity, publication),
        Operation::Subscribe(filter) => authorize_subscribe(identity, filter),
    }
}

/// Decides whether an identity may publish: its own telemetry and its own `$iothub/` only.
///
/// # Errors
///
/// [`Forbidden`] with the reason if it may not.
pub fn authorize_publish(
    identity: &Identity,
    publication: Publication<'_>,
) -> Result<Permit, Forbidden> {
    let permitted = match publication {
        Publication::Telemetry { device, module } => {
            if device != identity.device_id() || module != identity.module_id() {
                return Err(Forbidden::OtherIdentity);
            }
            Permitted::Telemetry
        }
        Publication::IotHub => Permitted::IotHub,
        Publication::Reserved => return Err(Forbidden::Reserved),
        Publication::Plain => return Err(Forbidden::PlainTopics),
    };
    Ok(permit(identity, permitted))
}

/// Decides whether an identity may subscribe: to `$iothub/…`, which is its own, to
/// `devices/{own}/modules/{own}/…` as a module, and to `devices/{own}/messages/devicebound/…`
/// as a device.
///
/// # Errors
///
/// [`Forbidden`] with the reason if it may not.
pub fn authorize_subscribe(identity: &Identity, filter: &str) -> Result<Permit, Forbidden> {
    let mut levels = filter.split('/');
    match levels.next() {
        Some("$iothub") if levels.next().is_some() => {}
        Some("devices") => authorize_devices(identity, levels)?,
        Some("+" | "#") => return Err(Forbidden::Wildcard),
        Some(first) if first.starts_with('$') => return Err(Forbidden::Reserved),
        _ => return Err(Forbidden::PlainTopics),
    }
    Ok(permit(identity, Permitted::Subscription))
}

/// Checks the levels after `devices`.
fn authorize_devices<'a>(
    identity: &Identity,
    mut levels: impl Iterator<Item = &'a str>,
) -> Result<(), Forbidden> {
    let wanted = match identity.module_id() {
        Some(module) => [identity.device_id(), "modules", module],
        None => [identity.device_id(), "messages", "devicebound"],
    };
    for wanted in wanted {
        match levels.next() {
            // An id may be "+" or "#"; a level that is one of these is a wildcard all the same.
            Some("+" | "#") => return Err(Forbidden::Wildcard),
            Some(level) if level == wanted => {}
            _ => return Err(Forbidden::OtherIdentity),
        }
    }
    if levels.next().is_none() {
        return Err(Forbidden::Reserved);
    }
    Ok(())
}

fn permit(identity: &Identity, permitted: Permitted) -> Permit {
    Permit {
        identity: identity.clone(),
        permitted,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> Identity {
        Identity::parse(text).unwrap()
    }

    #[test]
    fn telemetry_is_sent_as_oneself_only() {
        for (who, device, module, allowed) in [
            ("d/m", "d", Some("m"), true),
            ("d", "d", None, true),
            ("d/m", "d", None, false),
            ("d/m", "d", Some("n"), false),
            ("d/m", "e", Some("m"), false),
            ("d/m", "D", Some("m"), false),
            ("d", "d", Some("m"), false),
            ("d", "e", None, false),
        ] {
            let publication = Publication::Telemetry { device, module };
            let decided = authorize(&id(who), Operation::Publish(publication));
            match decided {
                Ok(permit) => {
                    assert!(allowed, "{who} {publication:?}");
                    assert_eq!(permit.identity(), &id(who));
                    assert_eq!(permit.permitted(), Permitted::Telemetry);
                }
                Err(why) => {
                    assert!(!allowed, "{who} {publication:?}");
                    assert_eq!(why.reason(), "other_identity");
                }
            }
        }
    }

    #[test]
    fn other_publications() {
        let who = id("d/m");
        let permit = authorize_publish(&who, Publication::IotHub).unwrap();
        assert_eq!(permit.permitted(), Permitted::IotHub);
        let refused = authorize_publish(&who, Publication::Plain).unwrap_err();
        assert_eq!(refused.to_string(), "no authorization rule allows it");
        let refused = authorize_publish(&who, Publication::Reserved);
        assert_eq!(refused, Err(Forbidden::Reserved));
    }

    #[test]
    fn subscriptions_stay_in_the_own_space() {
        for (who, filter) in [
            ("d/m", "devices/d/modules/m/inputs/#"),
            ("d/m", "devices/d/modules/m/#"),
            ("d/m", "devices/d/modules/m/inputs/in1"),
            ("d/m", "devices/d/modules/m/+/in1/+"),
            ("d/m", "$iothub/methods/POST/#"),
            ("d/m", "$iothub/#"),
            ("d", "devices/d/messages/devicebound/#"),
            ("d", "$iothub/twin/res/#"),
        ] {
            let permit = authorize(&id(who), Operation::Subscribe(filter)).unwrap();
            assert_eq!(
                permit.permitted(),
                Permitted::Subscription,
                "{who} {filter}"
            );
        }
    }

    #[test]
    fn subscriptions_to_anything_else_are_refused() {
        for (who, filter, why) in [
            (
                "d/m",
                "devices/d/modules/n/inputs/#",
                Forbidden::OtherIdentity,
            ),
            (
                "d/m",
                "devices/e/modules/m/inputs/#",
                Forbidden::OtherIdentity,
            ),
            (
                "d/m",
                "devices/d/messages/devicebound/#",
                Forbidden::OtherIdentity,
            ),
            ("d", "devices/d/modules/m/#", Forbidden::OtherIdentity),
            ("d", "devices/d/messages/events/#", Forbidden::OtherIdentity),
            ("d", "devices/d/#", Forbidden::Wildcard),
            ("d/m", "devices/#", Forbidden::Wildcard),
            ("d/m", "devices/+/modules/m/#", Forbidden::Wildcard),
            ("d/m", "devices/d/modules/+/inputs/#", Forbidden::Wildcard),
            ("+/#", "devices/+/modules/#", Forbidden::Wildcard),
            ("d/m", "devices/d/modules/m", Forbidden::Reserved),
            ("d/m", "devices", Forbidden::OtherIdentity),
            ("d/m", "#", Forbidden::Wildcard),
            ("d/m", "+/d/modules/m/#", Forbidden::Wildcard),
            ("d/m", "$iothub", Forbidden::Reserved),
            ("d/m", "$iothubx/a", Forbidden::Reserved),
            ("d/m", "$SYS/#", Forbidden::Reserved),
            ("d/m", "$share/g/devices/d/modules/n/#", Forbidden::Reserved),
            ("d/m", "$share/g/#", Forbidden::Reserved),
            ("d/m", "Devices/d/modules/m/#", Forbidden::PlainTopics),
            ("d/m", "/devices/d/modules/m/#", Forbidden::PlainTopics),
            ("d/m", "a/#", Forbidden::PlainTopics),
        ] {
            assert_eq!(
                authorize_subscribe(&id(who), filter),
                Err(why),
                "{who} {filter}"
            );
        }
    }
}
