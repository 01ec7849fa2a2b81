//! The dialect's words: property bags, topics, user names and topic templates of any text.

use std::borrow::Cow;

use arbitrary::Arbitrary;
use edgehub::identity::Identity;
use edgehub::identity::policy::{Publication, authorize_publish};
use edgehub::iothub::bag;
use edgehub::iothub::topics::{self, Incoming, RID_BYTES_MAX, Subscription};
use edgehub::iothub::username::UserName;
use edgehub::limits::TOPIC_BYTES_MAX;
use edgehub::message::{Properties, SystemProperty, Value};
use edgehub::topic::template::{Template, Variable};
use edgehub::topic::{check_filter, check_name, matches};

/// No topic is longer.
const TEXT_BYTES_MAX: usize = TOPIC_BYTES_MAX + 1;
/// What is read from a bag and never sent in one.
const RECEIVED_ONLY: [SystemProperty; 2] =
    [SystemProperty::OutputName, SystemProperty::InterfaceId];
/// What does not go up.
const LOCAL: [SystemProperty; 2] = [SystemProperty::Ack, SystemProperty::Expiry];
const SENDERS: [&str; 3] = ["edge-1", "edge-1/sensor", "a.b:c@d/x-y_z"];

/// A property, and which of its characters are escaped: by a bit each, over and over.
#[derive(Debug, Arbitrary)]
struct Pair {
    name: String,
    value: String,
    escaped: u8,
}

/// Runs one input: a text, or with an odd first byte properties.
pub fn run(input: &[u8]) {
    match input.split_first() {
        Some((first, rest)) if first & 1 == 1 => {
            if let Some(pairs) = super::given::<Vec<Pair>>(rest) {
                written(&pairs);
            }
        }
        Some((_, text)) => {
            if let Ok(text) = std::str::from_utf8(text)
                && text.len() <= TEXT_BYTES_MAX
            {
                decoded(text);
                topic(text);
                user_name(text);
                template(text);
            }
        }
        None => {}
    }
}

/// What a bag says is what another one says that was made of it.
fn decoded(text: &str) {
    let mut properties = Properties::default();
    if bag::decode(text, &mut properties).is_err() {
        return;
    }
    assert!(properties.iter().count() <= bag::PROPERTIES_MAX);
    for sender in SENDERS {
        let sender = Identity::parse(sender).unwrap();
        let mut sent = Vec::new();
        bag::encode(&properties, &sender, &mut sent);
        let sent = String::from_utf8(sent).expect("a bag is text");
        assert!(!sent.contains(['/', '#', '+', '\0']), "{sent}: no level");
        let mut again = Properties::default();
        bag::decode(&sent, &mut again).expect("what was encoded reads");
        same(&properties, &again, &RECEIVED_ONLY);
        for (name, value) in properties.iter() {
            let found = bag::property(sent.as_bytes(), name);
            assert_eq!(found.as_deref(), Some(value.unwrap_or_default()), "{name}");
        }
        let own = bag::property(sent.as_bytes(), "$.cdid");
        assert_eq!(own.as_deref(), Some(sender.device_id()));
        let own = bag::property(sent.as_bytes(), "$.cmid");
        assert_eq!(own.as_deref(), sender.module_id());
        let mut forwarded = Vec::new();
        bag::forward(sent.as_bytes(), &mut forwarded);
        let forwarded = String::from_utf8(forwarded).expect("a bag is text");
        let mut up = Properties::default();
        bag::decode(&forwarded, &mut up).expect("what goes up reads");
        same(&properties, &up, &[RECEIVED_ONLY, LOCAL].concat());
    }
}

fn same(one: &Properties, other: &Properties, without: &[SystemProperty]) {
    assert!(one.iter().eq(other.iter()), "{one:?} and {other:?}");
    for property in SystemProperty::ALL {
        let expected = match one.system(property) {
            _ if without.contains(&property) => Value::Missing,
            value => value,
        };
        assert_eq!(other.system(property), expected, "{property:?}");
    }
}

/// Names that mean something else than a property of the application.
fn is_known(name: &str) -> bool {
    name.starts_with("$.")
        || [
            "deviceId",
            "moduleId",
            "$connectionDeviceId",
            "$connectionModuleId",
        ]
        .iter()
        .chain(&["ack", "iothub-operation"])
        .any(|known| known.eq_ignore_ascii_case(name))
}

/// Whatever properties are written, those are read: of equal names the last, and none if empty.
fn written(pairs: &[Pair]) {
    let pairs: Vec<&Pair> = pairs
        .iter()
        .filter(|pair| !pair.name.is_empty())
        .take(bag::PROPERTIES_MAX)
        .collect();
    let mut text = String::from("?");
    for pair in &pairs {
        if text.len() > 1 {
            text.push('&');
        }
        escape(&pair.name, pair.escaped, &mut text);
        text.push('=');
        escape(&pair.value, pair.escaped, &mut text);
    }
    let mut properties = Properties::default();
    bag::decode(&text, &mut properties).expect("it is escaped");
    for pair in pairs.iter().filter(|pair| !is_known(&pair.name)) {
        let is_same = |other: &&&Pair| other.name.eq_ignore_ascii_case(&pair.name);
        let last = &pairs.iter().rfind(is_same).unwrap().value;
        let expected = if last.is_empty() {
            Value::Null
        } else {
            Value::Text(last)
        };
        assert_eq!(properties.get(&pair.name), expected, "{text}");
    }
    decoded(&text);
}

fn escape(text: &str, escaped: u8, out: &mut String) {
    for (at, char) in text.chars().enumerate() {
        let must = char.is_control() || "%&=?/#+".contains(char);
        if must || escaped >> (at % 8) & 1 == 1 {
            let mut bytes = [0; 4];
            for byte in char.encode_utf8(&mut bytes).bytes() {
                let upper = format!("%{byte:02X}");
                out.push_str(&if at % 2 == 0 {
                    upper
                } else {
                    upper.to_lowercase()
                });
            }
        } else {
            out.push(char);
        }
    }
}

/// A topic is put together again from what was read of it.
fn topic(text: &str) {
    let read = Incoming::read(text);
    let publication = read.publication(text);
    match read {
        Incoming::Telemetry {
            device,
            module,
            bag,
        } => {
            let module_level = module.map(|module| format!("/modules/{module}"));
            let module_level = module_level.unwrap_or_default();
            let start = format!("devices/{device}{module_level}/messages/events");
            let rest = text.strip_prefix(&start).expect("it begins like that");
            let rest = rest.strip_prefix('/').unwrap_or(rest);
            assert_eq!(rest.strip_suffix('/').unwrap_or(rest), bag);
            assert!(!device.is_empty() && !device.contains('/') && !bag.contains('/'));
            assert_eq!(publication, Publication::Telemetry { device, module });
        }
        Incoming::TwinGet { rid }
        | Incoming::TwinPatchReported { rid }
        | Incoming::MethodResponse { rid, .. } => {
            assert!(!rid.is_empty() && rid.len() <= RID_BYTES_MAX);
            assert!(text.starts_with("$iothub/") && text.contains(&format!("$rid={rid}")));
            assert_eq!(publication, Publication::IotHub);
        }
        Incoming::OtherIotHub => assert!(text.starts_with("$iothub/")),
        Incoming::MalformedDevices(_) => {
            assert!(text.starts_with("devices/"));
            assert_eq!(publication, Publication::Reserved);
        }
        Incoming::Plain => assert!(!text.starts_with("devices/")),
    }
    let reserved = text.starts_with("devices/") || text.starts_with('$');
    assert_eq!(publication != Publication::Plain, reserved);
    if let Some(identity) = Identity::parse(text) {
        assert_eq!(identity.as_str(), text);
        let events = topics::events_prefix(&identity);
        let own = Incoming::read(&events).publication(&events);
        assert!(authorize_publish(&identity, own).is_ok(), "{events}");
    }
    filter(text);
}

/// Whatever is granted in the space of the dialect matches no topic of somebody else.
fn filter(text: &str) {
    if check_filter(text).is_err() {
        return;
    }
    for own in SENDERS {
        let identity = Identity::parse(own).unwrap();
        match Subscription::read(&identity, text) {
            Subscription::Refused(_) | Subscription::Plain => continue,
            _ => {}
        }
        for other in SENDERS.iter().filter(|other| **other != own) {
            let other = Identity::parse(other).unwrap();
            let mut theirs = vec![topics::events_prefix(&other) + "a=1"];
            if other.module_id().is_some() {
                theirs.push(topics::input_prefix(&other, "in") + "a=1");
            }
            for name in theirs {
                assert!(!matches(text, &name), "{own} gets {name} by {text}");
            }
        }
    }
}

fn user_name(text: &str) {
    if let Ok(name) = UserName::parse(text) {
        let id = name.identity.as_str();
        assert_eq!(Identity::parse(id).as_ref(), Some(&name.identity));
        assert!(!name.api_version.trim().is_empty());
    }
}

/// Whatever stands in the places, a topic name comes out.
fn template(text: &str) {
    let template = match Template::parse(text) {
        Ok(template) => template,
        Err(error) => {
            assert!(text.is_char_boundary(error.offset), "{error}");
            return;
        }
    };
    for value in ["", "x", text, "a/b+#\0\u{7f}é", "$share", "devices"] {
        let place = |variable: &Variable| match variable {
            Variable::Output => None,
            _ => Some(Cow::Borrowed(value)),
        };
        let mut out = Vec::new();
        if template.write(place, &mut out).is_ok() {
            let name = String::from_utf8(out).expect("a topic is text");
            assert_eq!(check_name(&name), Ok(()), "{text:?} with {value:?}");
            assert_eq!(
                name.split('/').count(),
                text.split('/').count() - slashes_in_places(text),
                "a place is within one level: {name}"
            );
        }
    }
}

/// Slashes in the names of places, which are no levels.
fn slashes_in_places(text: &str) -> usize {
    let (mut slashes, mut rest) = (0, text);
    while let Some((name, after)) = rest
        .split_once('{')
        .and_then(|(_, place)| place.split_once('}'))
    {
        slashes += name.matches('/').count();
        rest = after;
    }
    slashes
}
