use super::*;
use crate::mqtt::tests::hex;
use Malformed::*;

/// Every property with its bytes and the packets it may stand in, by the letters of [`place`].
const ALL: &[(&str, Property<'static>, &str)] = &[
    ("01 00", Property::PayloadFormat(false), "wpP"),
    ("01 01", Property::PayloadFormat(true), "wpP"),
    ("02 00000001", Property::MessageExpiry(1), "wpP"),
    ("03 0002 c3a9", Property::ContentType("é"), "wpP"),
    ("08 0003 612f62", Property::ResponseTopic("a/b"), "wpP"),
    ("09 0002 00ff", Property::CorrelationData(&[0, 255]), "wpP"),
    ("0b 01", Property::SubscriptionId(NonZeroU32::MIN), "Ps"),
    ("11 ffffffff", Property::SessionExpiry(u32::MAX), "cCd"),
    ("12 0001 61", Property::AssignedClientId("a"), "C"),
    ("13 0000", Property::ServerKeepAlive(0), "C"),
    ("15 0001 6d", Property::AuthenticationMethod("m"), "cCxX"),
    ("17 00", Property::RequestProblemInformation(false), "c"),
    ("18 00000000", Property::WillDelay(0), "w"),
    ("19 01", Property::RequestResponseInformation(true), "c"),
    ("1a 0000", Property::ResponseInformation(""), "C"),
    ("1c 0001 73", Property::ServerReference("s"), "CD"),
    ("1f 0001 72", Property::ReasonString("r"), "CarSUdDxX"),
    ("21 0001", Property::ReceiveMaximum(NonZeroU16::MIN), "cC"),
    ("22 0000", Property::TopicAliasMaximum(0), "cC"),
    ("23 ffff", Property::TopicAlias(NonZeroU16::MAX), "pP"),
    ("24 00", Property::MaximumQos(QoS::AtMostOnce), "C"),
    ("24 01", Property::MaximumQos(QoS::AtLeastOnce), "C"),
    ("25 01", Property::RetainAvailable(true), "C"),
    (
        "26 0001 6e 0000",
        Property::User("n", ""),
        "cwCpParsSuUdDxX",
    ),
    (
        "27 ffffffff",
        Property::MaximumPacketSize(NonZeroU32::MAX),
        "cC",
    ),
    ("28 00", Property::WildcardSubscriptionAvailable(false), "C"),
    ("29 01", Property::SubscriptionIdsAvailable(true), "C"),
    ("2a 00", Property::SharedSubscriptionAvailable(false), "C"),
];

/// The places, each with its letter: capitals are the server's.
const PLACES: &[(char, Place)] = &[
    ('c', Connect),
    ('w', Will),
    ('C', ConnAck),
    ('p', ClientPublish),
    ('P', ServerPublish),
    ('a', Received),
    ('r', Released),
    ('s', Subscribe),
    ('S', SubAck),
    ('u', Unsubscribe),
    ('U', UnsubAck),
    ('d', ClientDisconnect),
    ('D', ServerDisconnect),
    ('x', ClientAuth),
    ('X', ServerAuth),
];

fn parse(text: &str, place: Place) -> Result<Vec<String>, Malformed> {
    let bytes = hex(text);
    let properties = Properties::parse(&bytes, place)?;
    Ok(properties.iter().map(|one| format!("{one:?}")).collect())
}

#[test]
fn each_is_read_and_written_where_it_may_stand() {
    for (text, property, allowed) in ALL {
        for (letter, place) in PLACES {
            let mut out = BytesMut::from("before");
            let written = encode_properties(&mut out, *place, iter::once(*property));
            if allowed.contains(*letter) {
                assert_eq!(parse(text, *place), Ok(vec![format!("{property:?}")]));
                assert_eq!(written, Ok(()));
                assert_eq!(&out[6..], hex(text), "{text}");
            } else {
                let id = property.id();
                let why = match (id, place) {
                    (0x0b, ClientPublish) => SubscriptionIdOfClient,
                    _ => PropertyMisplaced(id),
                };
                assert_eq!(parse(text, *place), Err(why), "{text} {letter}");
                assert_eq!(written, Err(EncodeError::PropertyMisplaced(id)));
                assert_eq!(out, "before");
            }
        }
    }
}

#[test]
fn no_other_identifier_is_known() {
    let known: Vec<_> = ALL.iter().map(|row| row.1.id()).chain([0x16]).collect();
    for id in (0..=0xff).filter(|id| !known.contains(id)) {
        assert_eq!(
            Properties::parse(&[id, 0, 0, 0, 0], Connect),
            Err(PropertyUnknown(id))
        );
    }
}

#[test]
fn what_may_be_repeated() {
    for (text, property, allowed) in ALL {
        let twice = format!("{text} {text}");
        for (letter, place) in PLACES
            .iter()
            .filter(|(letter, _)| allowed.contains(*letter))
        {
            let read = parse(&twice, *place);
            match (property, place) {
                (Property::User(..), _) | (Property::SubscriptionId(_), ServerPublish) => {
                    assert_eq!(read.map(|all| all.len()), Ok(2), "{letter}");
                }
                _ => assert_eq!(read, Err(PropertyTwice(property.id())), "{letter}"),
            }
        }
    }
}

#[test]
fn values_that_cannot_be() {
    for (text, place, why) in [
        ("01 02", Will, PropertyFlag { id: 0x01, value: 2 }),
        ("17 02", Connect, PropertyFlag { id: 0x17, value: 2 }),
        ("24 02", ConnAck, PropertyFlag { id: 0x24, value: 2 }),
        ("0b 00", Subscribe, PropertyZero(0x0B)),
        ("0b 80 00", Subscribe, VariableInteger),
        ("0b 80 80 80 80 01", Subscribe, VariableInteger),
        ("0b ff ff ff ff", Subscribe, VariableInteger),
        ("21 0000", Connect, PropertyZero(0x21)),
        ("27 00000000", Connect, PropertyZero(0x27)),
        ("23 0000", ClientPublish, TopicAliasZero),
        ("16 0001 00", Connect, AuthenticationDataAlone),
        ("03 0001 ff", ClientPublish, Utf8),
        ("03 0001 00", ClientPublish, Nul),
        (
            "08 0001 23",
            ClientPublish,
            TopicName(topic::TopicError::WildcardInName),
        ),
        (
            "08 0000",
            ClientPublish,
            TopicName(topic::TopicError::Empty),
        ),
        ("02 000000", ClientPublish, Truncated),
        ("26 0001 6e", ClientPublish, Truncated),
        ("03", ClientPublish, Truncated),
        ("0b 80", Subscribe, Truncated),
    ] {
        assert_eq!(parse(text, place), Err(why), "{text}");
    }
    let read = parse("0b ff ff ff 7f", Subscribe).unwrap();
    assert_eq!(read, ["SubscriptionId(268435455)"]);
}

#[test]
fn authentication_data_is_not_shown() {
    let bytes = hex("15 0001 6d 16 0002 7331");
    let properties = Properties::parse(&bytes, ClientAuth).unwrap();
    let shown = format!("{properties:?}");
    assert!(shown.contains("AuthenticationMethod(\"m\")"), "{shown}");
    assert!(!shown.contains("115, 49"), "{shown}");
}

#[test]
fn a_list_that_could_not_be_read_is_not_written() {
    let long = "a".repeat(65_536);
    let over = NonZeroU32::new(VARIABLE_MAX + 1).unwrap();
    for (properties, place, why) in [
        (
            vec![Property::ContentType(&long)],
            Will,
            EncodeError::FieldTooLong { bytes: 65_536 },
        ),
        (
            vec![Property::ReasonString("\0")],
            Received,
            EncodeError::Nul,
        ),
        (
            vec![Property::SubscriptionId(over)],
            Subscribe,
            EncodeError::PropertyRange,
        ),
        (
            vec![Property::WillDelay(1), Property::WillDelay(2)],
            Will,
            EncodeError::Properties(PropertyTwice(0x18)),
        ),
    ] {
        let mut out = BytesMut::from("before");
        let written = encode_properties(&mut out, place, properties.into_iter());
        assert_eq!(written, Err(why));
        assert_eq!(out, "before");
    }
}
