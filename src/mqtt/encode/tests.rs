#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use super::super::tests::{CONNECT, MAX, publish, table};
use super::super::*;
use super::*;
use proptest::{collection::vec, prelude::*};

#[test]
fn what_could_not_be_read_is_not_written() {
    use TopicError::{Empty, TooLong, WildcardInName};
    use {EncodeError::*, FromClient as C, QoS::*};
    let long = "a".repeat(65536);
    let (once, again) = (
        publish(AtMostOnce, "a", b""),
        publish(AtLeastOnce, "a", b""),
    );
    let will = Will {
        topic: "w",
        payload: &[],
        qos: AtMostOnce,
        retain: true,
    };
    let connect = |will| {
        C::Connect(Connect {
            will: Some(will),
            ..CONNECT
        })
    };
    for (packet, error) in table! {
        C::Publish(publish(AtMostOnce, "", b"")) => TopicName(Empty);
        C::Publish(publish(AtMostOnce, "a/+", b"")) => TopicName(WildcardInName);
        C::Publish(publish(AtMostOnce, &long, b"")) => TopicName(TooLong { bytes: 65536 });
        C::Publish(Publish { dup: true, ..once }) => DupAtQosZero;
        C::Publish(Publish { packet_id: PacketId::new(1), ..once }) => PacketIdAgainstQos;
        C::Publish(Publish { packet_id: None, ..again }) => PacketIdAgainstQos;
        connect(Will { topic: "", ..will }) => TopicName(Empty);
        connect(Will { topic: "#", ..will }) => TopicName(WildcardInName);
        connect(Will { payload: long.as_bytes(), ..will }) => FieldTooLong { bytes: 65536 };
        C::Connect(Connect { client_id: "\0", ..CONNECT }) => Nul;
        C::Connect(Connect { username: Some("u\0"), ..CONNECT }) => Nul;
        C::Connect(Connect { client_id: &long, ..CONNECT }) => FieldTooLong { bytes: 65536 };
        C::Connect(Connect { password: Some(b""), ..CONNECT }) => PasswordWithoutUsername;
    } {
        let mut out = BytesMut::from("before");
        assert_eq!(encode_from_client(&packet, &mut out), Err(error));
        assert_eq!(out, "before");
    }
}

#[test]
fn what_a_list_or_a_refusal_cannot_be_is_not_written() {
    use {EncodeError::*, QoS::*};
    let (id, mut out) = (PacketId::new(1).unwrap(), BytesMut::new());
    let (session_present, code) = (true, ConnectReturnCode::NotAuthorized);
    let refusal = ConnAck {
        session_present,
        code,
    };
    let filters = [("a", AtMostOnce), ("a#", AtMostOnce)];
    let not_alone = TopicFilter(TopicError::MultiLevelNotAlone);
    let results = [
        encode_from_server(&FromServer::ConnAck(refusal), &mut out),
        encode_suback(&mut out, id, [].into_iter()),
        encode_unsubscribe(&mut out, id, [].into_iter()),
        encode_subscribe(&mut out, id, filters.into_iter()),
    ];
    let errors = [SessionPresentInRefusal, EmptyList, EmptyList, not_alone];
    assert_eq!(results, errors.map(Err));
    assert!(out.is_empty());
}

proptest! {
    #[test]
    fn what_is_written_is_read(
        topic in "[^\\p{Cc}+#]{1,20}", text in "[^\0]{0,150}", bytes in vec(any::<u8>(), 0..20000),
        bits: u8, number in 1_u16.., filters in vec("([^\\p{Cc}+#/]{1,8}|[+])(/[+])?(/#)?", 1..9),
    ) {
        let (mut out, id, bytes) = (BytesMut::new(), PacketId::new(number).unwrap(), &*bytes);
        let qos = QoS::from_bits(bits & 3).unwrap_or(QoS::ExactlyOnce);
        let (retain, dup) = (bits & 4 != 0, bits & 8 != 0 && qos != QoS::AtMostOnce);
        let packet_id = (qos != QoS::AtMostOnce).then_some(id);
        let sent = Publish { dup, qos, retain, topic: &topic, packet_id, payload: bytes };
        let packet = FromServer::Publish(sent);
        let will = Will { topic: &topic, payload: bytes, qos, retain };
        encode_from_server(&packet, &mut out).unwrap();
        prop_assert_eq!(decode_from_server(&out, MAX), Ok(Some((packet, out.len()))));
        let packet = FromClient::Connect(Connect {
            clean_session: bits & 16 != 0, keep_alive_seconds: number, client_id: &text,
            will: (bits & 32 != 0).then_some(will),
            username: (bits & 64 != 0).then_some(&text),
            password: (bits & 192 == 192).then_some(bytes),
        });
        out.clear();
        encode_from_client(&packet, &mut out).unwrap();
        prop_assert_eq!(decode_from_client(&out, MAX), Ok(Some((packet, out.len()))));
        out.clear();
        encode_subscribe(&mut out, id, filters.iter().map(|filter| (&**filter, qos))).unwrap();
        let Ok(Some((FromClient::Subscribe(read), _))) = decode_from_client(&out, MAX) else {
            return Err(TestCaseError::fail("not read"));
        };
        prop_assert!(read.filters.iter().eq(filters.iter().map(|filter| (&**filter, qos))));
    }
}
