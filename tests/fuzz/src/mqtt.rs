//! Any bytes as MQTT packets; a packet that was read is written as it was.

use bytes::BytesMut;
use edgehub::mqtt::{
    FromClient, FromServer, decode_from_client, decode_from_server, encode_from_client,
    encode_from_server, packet_length, peek_publish,
};

const PACKET_BYTES_MAX: usize = 4096;

/// Runs one input.
pub fn run(bytes: &[u8]) {
    let mut rest = bytes;
    while let Ok(Some((packet, length))) = decode_from_client(rest, PACKET_BYTES_MAX) {
        client(&packet, &rest[..length]);
        rest = &rest[length..];
    }
    let mut rest = bytes;
    while let Ok(Some((packet, length))) = decode_from_server(rest, PACKET_BYTES_MAX) {
        server(&packet, &rest[..length]);
        rest = &rest[length..];
    }
    let _ = packet_length(bytes);
    let _ = peek_publish(bytes);
    // The same bytes followed by others give the same error.
    let error = decode_from_client(bytes, PACKET_BYTES_MAX).err();
    for end in 0..bytes.len().min(64) {
        if let Err(early) = decode_from_client(&bytes[..end], PACKET_BYTES_MAX) {
            assert_eq!(Some(early), error);
        }
    }
}

fn client(packet: &FromClient<'_>, bytes: &[u8]) {
    assert_eq!(packet_length(bytes), Ok(Some(bytes.len())));
    let mut out = BytesMut::new();
    encode_from_client(packet, &mut out).expect("it was read");
    let again = decode_from_client(&out, PACKET_BYTES_MAX).expect("it was written");
    let (again, length) = again.expect("all of it");
    assert_eq!((&again, length), (packet, out.len()));
    assert!(matches!(packet, FromClient::Publish(_)) == peek_publish(bytes).is_some());
}

fn server(packet: &FromServer<'_>, bytes: &[u8]) {
    assert_eq!(packet_length(bytes), Ok(Some(bytes.len())));
    let mut out = BytesMut::new();
    encode_from_server(packet, &mut out).expect("it was read");
    let again = decode_from_server(&out, PACKET_BYTES_MAX).expect("it was written");
    let (again, length) = again.expect("all of it");
    assert_eq!((&again, length), (packet, out.len()));
}
