//! The topics and filters of the dialect (facts §1.5 to §1.7).
//!
//! Topics are read level by level as they stand on the wire: nothing before the property bag is
//! percent-decoded, and case counts.

use crate::identity::Identity;
use crate::identity::policy::{Forbidden, Publication, authorize_subscribe};
use crate::topic;

/// Longest request id, in bytes, that is answered; the SDKs' have 36. Answers carry it, and must
/// not outgrow a topic.
pub const RID_BYTES_MAX: usize = 1024;

/// Status of a method answer whose status is no number (facts §1.7).
pub const METHOD_STATUS_INVALID: i32 = 400_000;

/// What a client publishes, by its topic (facts §1.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Incoming<'a> {
    /// `devices/{device}[/modules/{module}]/messages/events[/{bag}[/]]`.
    Telemetry {
        /// The device that the topic names.
        device: &'a str,
        /// The module that the topic names.
        module: Option<&'a str>,
        /// The property bag, for [`super::bag::decode`]; may be empty.
        bag: &'a str,
    },
    /// `$iothub/twin/GET/?$rid={rid}`.
    TwinGet {
        /// The request id, as it stands.
        rid: &'a str,
    },
    /// `$iothub/twin/PATCH/properties/reported/?$rid={rid}`.
    TwinPatchReported {
        /// The request id, as it stands.
        rid: &'a str,
    },
    /// `$iothub/methods/res/{status}/?$rid={rid}`.
    MethodResponse {
        /// The method's status; [`METHOD_STATUS_INVALID`] if it is no number.
        status: i32,
        /// The request id, as it stands.
        rid: &'a str,
    },
    /// Anything else under `$iothub/`, also a request without an id or with one that is too long.
    OtherIotHub,
    /// Anything else under `devices/`.
    MalformedDevices(MalformedTopic),
    /// A topic of the plain MQTT space, or another one under `$`.
    Plain,
}

/// Why a topic under `devices/` is not telemetry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum MalformedTopic {
    /// The device or module level is empty or missing.
    #[error("the device or module is missing from the topic")]
    Identity,
    /// Not `messages/events` after the identity.
    #[error("the topic is not devices/DEVICE[/modules/MODULE]/messages/events/PROPERTIES")]
    Levels,
    /// A `/` within the property bag, which would have to be `%2F`.
    #[error("the topic has levels after its properties")]
    AfterBag,
}

impl<'a> Incoming<'a> {
    /// Reads the topic of a PUBLISH.
    #[must_use]
    pub fn read(topic: &'a str) -> Self {
        if let Some(rest) = topic.strip_prefix("devices/") {
            return read_devices(rest).unwrap_or_else(Self::MalformedDevices);
        }
        match topic.strip_prefix("$iothub/") {
            Some(rest) => read_iothub(rest).unwrap_or(Self::OtherIotHub),
            None => Self::Plain,
        }
    }

    /// What the policy has to decide about it. `topic` is the one that was read.
    #[must_use]
    pub fn publication(&self, topic: &str) -> Publication<'a> {
        match *self {
            Self::Telemetry { device, module, .. } => Publication::Telemetry { device, module },
            Self::TwinGet { .. }
            | Self::TwinPatchReported { .. }
            | Self::MethodResponse { .. }
            | Self::OtherIotHub => Publication::IotHub,
            Self::MalformedDevices(_) => Publication::Reserved,
            Self::Plain if topic.starts_with('$') => Publication::Reserved,
            Self::Plain => Publication::Plain,
        }
    }
}

/// Reads what follows `devices/`.
fn read_devices(rest: &str) -> Result<Incoming<'_>, MalformedTopic> {
    let (device, rest) = level(rest);
    let (module, rest) = match rest.and_then(|rest| rest.strip_prefix("modules/")) {
        Some(rest) => {
            let (module, rest) = level(rest);
            (Some(module), rest)
        }
        None => (None, rest),
    };
    if device.is_empty() || module == Some("") {
        return Err(MalformedTopic::Identity);
    }
    let end = rest.and_then(|rest| rest.strip_prefix("messages/events"));
    let bag = match end {
        Some("") => "",
        Some(end) => end.strip_prefix('/').ok_or(MalformedTopic::Levels)?,
        None => return Err(MalformedTopic::Levels),
    };
    let bag = bag.strip_suffix('/').unwrap_or(bag);
    if bag.contains('/') {
        return Err(MalformedTopic::AfterBag);
    }
    Ok(Incoming::Telemetry {
        device,
        module,
        bag,
    })
}

/// Reads what follows `$iothub/`.
fn read_iothub(rest: &str) -> Option<Incoming<'_>> {
    if let Some(query) = rest.strip_prefix("twin/GET/") {
        return rid(query).map(|rid| Incoming::TwinGet { rid });
    }
    if let Some(query) = rest.strip_prefix("twin/PATCH/properties/reported/") {
        return rid(query).map(|rid| Incoming::TwinPatchReported { rid });
    }
    let (status, query) = level(rest.strip_prefix("methods/res/")?);
    let status = status.parse().unwrap_or(METHOD_STATUS_INVALID);
    rid(query?).map(|rid| Incoming::MethodResponse { status, rid })
}

/// The request id of `?$rid={rid}[&…]`, in any place.
fn rid(query: &str) -> Option<&str> {
    let mut fields = query.strip_prefix('?')?.split('&');
    let rid = fields.find_map(|field| field.strip_prefix("$rid="))?;
    (!rid.is_empty() && rid.len() <= RID_BYTES_MAX).then_some(rid)
}

/// The first level, and what follows its `/`.
fn level(topic: &str) -> (&str, Option<&str>) {
    match topic.split_once('/') {
        Some((level, rest)) => (level, Some(rest)),
        None => (topic, None),
    }
}

/// What a filter asks for (facts §1.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subscription {
    /// Messages to inputs of the module.
    Inputs,
    /// Method calls: under `$iothub/methods/POST/`.
    Methods,
    /// Changes of desired properties: under `$iothub/twin/PATCH/properties/desired/`.
    TwinDesired,
    /// Answers to twin requests: under `$iothub/twin/res/`.
    TwinResponses,
    /// Messages from the cloud to the device.
    CloudToDevice,
    /// Any other filter in the client's own space: granted, and matched like any filter.
    OwnIotHub,
    /// Not granted.
    Refused(Forbidden),
    /// A filter of the plain MQTT space.
    Plain,
}

impl Subscription {
    /// Reads a well-formed filter of a client (`topic::check_filter`).
    #[must_use]
    pub fn read(identity: &Identity, filter: &str) -> Self {
        match authorize_subscribe(identity, filter) {
            Err(Forbidden::PlainTopics) => return Self::Plain,
            Err(why) => return Self::Refused(why),
            Ok(_) => {}
        }
        for (prefix, subscription) in [
            ("$iothub/methods/POST/", Self::Methods),
            ("$iothub/twin/PATCH/properties/desired/", Self::TwinDesired),
            ("$iothub/twin/res/", Self::TwinResponses),
        ] {
            if filter.starts_with(prefix) {
                return subscription;
            }
        }
        if filter.starts_with("$iothub/") {
            return Self::OwnIotHub;
        }
        match (identity.module_id(), filter.split('/').nth(4)) {
            (None, _) => Self::CloudToDevice,
            (Some(_), Some("#" | "+" | "inputs")) => Self::Inputs,
            (Some(_), _) => Self::OwnIotHub,
        }
    }
}

/// The highest granted QoS with which a session's filters let a message to an input through, if any
/// does. A filter matches if it matches the delivery's topic, whatever its bag, or the same topic
/// without a bag, which facts §1.5 shows as a trap.
#[must_use]
pub fn input_qos(filters: &[(String, u8)], identity: &Identity, input: &str) -> Option<u8> {
    // No filter can contain this bag, so it stands for any.
    let name = format!("{}\0", input_prefix(identity, input));
    let without_bag = name.strip_suffix("/\0").unwrap_or(&name);
    let lets_through = |filter: &str| {
        (topic::matches(filter, &name) || topic::matches(filter, without_bag))
            && Subscription::read(identity, filter) == Subscription::Inputs
    };
    let qos = filters
        .iter()
        .filter(|(filter, _)| lets_through(filter))
        .map(|(_, qos)| *qos);
    qos.max()
}

/// The topic of an identity's telemetry, up to the property bag (facts §1.6).
#[must_use]
pub fn events_prefix(identity: &Identity) -> String {
    let path = identity.as_str().replacen('/', "/modules/", 1);
    format!("devices/{path}/messages/events/")
}

/// The topic of a delivery to a module's input, up to the bag, which must follow (facts §1.7).
#[must_use]
pub fn input_prefix(identity: &Identity, input: &str) -> String {
    let (device, module) = (
        identity.device_id(),
        identity.module_id().unwrap_or_default(),
    );
    format!("devices/{device}/modules/{module}/inputs/{input}/")
}

/// The topic of an answer to a twin request (facts §1.7).
#[must_use]
pub fn twin_response(status: u16, rid: &str, version: Option<u64>) -> String {
    match version {
        Some(version) => format!("$iothub/twin/res/{status}/?$rid={rid}&$version={version}"),
        None => format!("$iothub/twin/res/{status}/?$rid={rid}"),
    }
}

/// The topic of a change of desired properties (facts §1.7).
#[must_use]
pub fn twin_desired(version: u64) -> String {
    format!("$iothub/twin/PATCH/properties/desired/?$version={version}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::policy::authorize_publish;
    use proptest::prelude::*;

    fn telemetry<'a>(device: &'a str, module: Option<&'a str>, bag: &'a str) -> Incoming<'a> {
        Incoming::Telemetry {
            device,
            module,
            bag,
        }
    }

    #[test]
    fn telemetry_topics() {
        let sdk = "%24.on=OUT&%24.mid=1&%24.ct=a%2Fb&k=v";
        for (who, module) in [("D", None), ("D/modules/M", Some("M"))] {
            for bag in ["", "a=1", "?a=1", sdk] {
                for end in ["", "/"] {
                    let topic = format!("devices/{who}/messages/events/{bag}{end}");
                    assert_eq!(
                        Incoming::read(&topic),
                        telemetry("D", module, bag),
                        "{topic}"
                    );
                }
            }
            let topic = format!("devices/{who}/messages/events");
            assert_eq!(
                Incoming::read(&topic),
                telemetry("D", module, ""),
                "{topic}"
            );
        }
        let odd = Incoming::read("devices/modules/messages/events");
        assert_eq!(odd, telemetry("modules", None, ""));
    }

    #[test]
    fn malformed_topics() {
        for (topic, why) in [
            ("devices/", MalformedTopic::Identity),
            ("devices//messages/events/", MalformedTopic::Identity),
            (
                "devices/D/modules//messages/events/",
                MalformedTopic::Identity,
            ),
            ("devices/D/modules/", MalformedTopic::Identity),
            ("devices/D", MalformedTopic::Levels),
            ("devices/D/modules/M", MalformedTopic::Levels),
            ("devices/D/messages/eventsX", MalformedTopic::Levels),
            ("devices/D/Messages/events/", MalformedTopic::Levels),
            ("devices/D/modules/M/inputs/i/a=1", MalformedTopic::Levels),
            ("devices/D/messages/devicebound/a=1", MalformedTopic::Levels),
            (
                "devices/D/messages/events/a=1/b=2",
                MalformedTopic::AfterBag,
            ),
            ("devices/D/messages/events/a=1//", MalformedTopic::AfterBag),
        ] {
            let read = Incoming::read(topic);
            assert_eq!(read, Incoming::MalformedDevices(why), "{topic}");
            assert_eq!(read.publication(topic), Publication::Reserved);
        }
        for plain in [
            "devices",
            "Devices/D/messages/events",
            "/devices/D",
            "a/b",
            "%24iothub/x",
        ] {
            let read = Incoming::read(plain);
            assert_eq!(read, Incoming::Plain, "{plain}");
            assert_eq!(read.publication(plain), Publication::Plain);
        }
        assert_eq!(
            Incoming::read("$SYS/x").publication("$SYS/x"),
            Publication::Reserved
        );
    }

    #[test]
    fn twin_and_method_topics() {
        let rid = "1b2c-%2F/é";
        for (topic, expected) in [
            (
                format!("$iothub/twin/GET/?$rid={rid}"),
                Incoming::TwinGet { rid },
            ),
            (
                format!("$iothub/twin/GET/?a=b&$rid={rid}&$version=1"),
                Incoming::TwinGet { rid },
            ),
            (
                format!("$iothub/twin/PATCH/properties/reported/?$rid={rid}"),
                Incoming::TwinPatchReported { rid },
            ),
            (
                format!("$iothub/methods/res/200/?$rid={rid}"),
                Incoming::MethodResponse { status: 200, rid },
            ),
            (
                format!("$iothub/methods/res/-1/?$rid={rid}"),
                Incoming::MethodResponse { status: -1, rid },
            ),
            (
                format!("$iothub/methods/res/ok/?$rid={rid}"),
                Incoming::MethodResponse {
                    status: METHOD_STATUS_INVALID,
                    rid,
                },
            ),
        ] {
            assert_eq!(Incoming::read(&topic), expected, "{topic}");
            assert_eq!(expected.publication(&topic), Publication::IotHub);
        }
        let long = format!("$iothub/twin/GET/?$rid={}", "r".repeat(RID_BYTES_MAX + 1));
        for other in [
            "$iothub/",
            "$iothub/x",
            "$iothub/twin/GET/",
            "$iothub/twin/GET/?$rid=",
            "$iothub/twin/GET?$rid=1",
            "$iothub/twin/PATCH/properties/desired/?$rid=1",
            "$iothub/twin/PATCH/tags/?$rid=1",
            "$iothub/methods/res/200",
            "$iothub/methods/res/200/",
            &long,
        ] {
            assert_eq!(Incoming::read(other), Incoming::OtherIotHub, "{other}");
        }
    }

    #[test]
    fn filters() {
        let (module, device) = (Identity::module("D", "M"), Identity::device("D"));
        for (who, filter, expected) in [
            (
                &module,
                "devices/D/modules/M/inputs/#",
                Subscription::Inputs,
            ),
            (&module, "devices/D/modules/M/#", Subscription::Inputs),
            (
                &module,
                "devices/D/modules/M/inputs/in1",
                Subscription::Inputs,
            ),
            (
                &module,
                "devices/D/modules/M/messages/#",
                Subscription::OwnIotHub,
            ),
            (&module, "$iothub/methods/POST/#", Subscription::Methods),
            (&module, "$iothub/twin/res/#", Subscription::TwinResponses),
            (
                &module,
                "$iothub/twin/PATCH/properties/desired/#",
                Subscription::TwinDesired,
            ),
            (&module, "$iothub/#", Subscription::OwnIotHub),
            (
                &device,
                "devices/D/messages/devicebound/#",
                Subscription::CloudToDevice,
            ),
            (&device, "a/#", Subscription::Plain),
            (&device, "#", Subscription::Refused(Forbidden::Wildcard)),
            (
                &device,
                "devices/D/modules/M/#",
                Subscription::Refused(Forbidden::OtherIdentity),
            ),
        ] {
            assert_eq!(Subscription::read(who, filter), expected, "{filter}");
        }
    }

    #[test]
    fn filters_that_let_an_input_through() {
        let module = Identity::module("D", "M");
        for (filter, lets_through) in [
            ("devices/D/modules/M/inputs/#", true),
            ("devices/D/modules/M/#", true),
            ("devices/D/modules/M/inputs/in", true),
            ("devices/D/modules/M/inputs/in/", false),
            ("devices/D/modules/M/inputs/in/#", true),
            ("devices/D/modules/M/inputs/in/+", true),
            ("devices/D/modules/M/inputs/+/+", true),
            ("devices/D/modules/M/inputs/other", false),
            ("devices/D/modules/M/inputs/in/x", false),
            ("devices/D/modules/N/inputs/#", false),
            ("#", false),
            ("+/D/modules/M/inputs/#", false),
            ("devices/+/modules/M/inputs/#", false),
            ("$iothub/#", false),
        ] {
            let granted = input_qos(&[(filter.to_owned(), 1)], &module, "in");
            assert_eq!(granted, lets_through.then_some(1), "{filter}");
        }
        let filter = |text: &str, qos| (text.to_owned(), qos);
        let all = [
            filter("devices/D/modules/M/#", 0),
            filter("devices/D/modules/M/inputs/in/#", 1),
            filter("devices/D/modules/M/inputs/other/#", 2),
        ];
        assert_eq!(input_qos(&all, &module, "in"), Some(1));
        assert_eq!(input_qos(&all, &module, "none"), Some(0));
        assert_eq!(input_qos(&[], &module, "in"), None);
    }

    #[test]
    fn topics_that_the_hub_sends() {
        let module = Identity::module("D", "M");
        assert_eq!(
            input_prefix(&module, "in"),
            "devices/D/modules/M/inputs/in/"
        );
        assert_eq!(
            twin_response(200, "r%2F", None),
            "$iothub/twin/res/200/?$rid=r%2F"
        );
        assert_eq!(
            twin_response(204, "r", Some(7)),
            "$iothub/twin/res/204/?$rid=r&$version=7"
        );
        assert_eq!(
            twin_desired(7),
            "$iothub/twin/PATCH/properties/desired/?$version=7"
        );
    }

    proptest! {
        #[test]
        fn any_topic_is_safe(end in "([a/?=$#+]|\\PC){0,20}", first in 0_usize..4) {
            let first = ["", "devices/", "$iothub/", "devices/D/modules/M/"][first];
            let (topic, module) = (format!("{first}{end}"), Identity::module("D", "M"));
            let _ = authorize_publish(&module, Incoming::read(&topic).publication(&topic));
            let _ = Subscription::read(&module, &topic);
            let _ = input_qos(&[(topic, 1)], &module, &end);
        }
    }
}
