//! Any bytes as packets of MQTT 5; a packet that was read is written as it was meant.

use bytes::BytesMut;
use edgehub::mqtt::v5::{
    decode_from_client, decode_from_server, encode_from_client, encode_from_server,
};

const PACKET_BYTES_MAX: usize = 4096;

/// Runs one input.
pub fn run(bytes: &[u8]) {
    let mut rest = bytes;
    while let Ok(Some((packet, length))) = decode_from_client(rest, PACKET_BYTES_MAX) {
        let mut out = BytesMut::new();
        encode_from_client(&packet, &mut out).expect("it was read");
        let again = decode_from_client(&out, 2 * PACKET_BYTES_MAX).expect("it was written");
        assert_eq!(again, Some((packet, out.len())));
        rest = &rest[length..];
    }
    let mut rest = bytes;
    while let Ok(Some((packet, length))) = decode_from_server(rest, PACKET_BYTES_MAX) {
        let mut out = BytesMut::new();
        encode_from_server(&packet, &mut out).expect("it was read");
        let again = decode_from_server(&out, 2 * PACKET_BYTES_MAX).expect("it was written");
        assert_eq!(again, Some((packet, out.len())));
        rest = &rest[length..];
    }
    // The same bytes followed by others give the same error.
    let error = decode_from_client(bytes, PACKET_BYTES_MAX).err();
    for end in 0..bytes.len().min(64) {
        if let Err(early) = decode_from_client(&bytes[..end], PACKET_BYTES_MAX) {
            assert_eq!(Some(early), error);
        }
    }
}
