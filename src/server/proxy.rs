//! The PROXY protocol: a proxy that is trusted says first of all whom it speaks for, in text
//! (version 1) or in binary (version 2). Source: proxy-protocol.txt of haproxy.org, §2.

use std::net::IpAddr;

use crc32c::{crc32c, crc32c_append};
use proxy_header::{Error, ParseConfig, Protocol, ProxyHeader};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

use crate::limits::PROXY_HEADER_BYTES_MAX;

const START_V1: &[u8] = b"PROXY ";
const START_V2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
/// Where a header of version 2 says how many bytes follow it (§2.2).
const LENGTH_V2: std::ops::Range<usize> = 14..16;
/// Longest line of version 1 with its end (§2.1).
const V1_BYTES_MAX: usize = 107;
/// The entry of version 2 that has the checksum (§2.2.4).
const PP2_TYPE_CRC32C: u8 = 3;
/// Bytes looked at in one go.
const CHUNK_BYTES: usize = 256;

/// What a proxy says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    /// The client's address; none where the proxy speaks for itself or does not know it.
    pub client: Option<IpAddr>,
}

/// What is wrong with a header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Malformed {
    #[error("the connection does not begin with a PROXY header")]
    Missing,
    #[error("the PROXY header is longer than {0} bytes")]
    TooLong(usize),
    #[error("the PROXY header does not read")]
    Broken,
    #[error("the PROXY header speaks of datagrams")]
    Datagrams,
    #[error("the PROXY header's checksum is wrong")]
    Checksum,
}

/// Reads a header from bytes as they come.
#[derive(Debug, Default)]
struct HeaderReader {
    held: Vec<u8>,
}

impl HeaderReader {
    /// Takes the next bytes of the connection. Says how many of them are the header's, and what it
    /// says once it is whole; what follows it is left alone.
    ///
    /// # Errors
    /// It can be no header, whatever follows.
    fn take(&mut self, bytes: &[u8]) -> Result<(usize, Option<Header>), Malformed> {
        let before = self.held.len();
        self.held.extend_from_slice(bytes);
        let held = &self.held[..];
        let begins = |start: &[u8]| {
            let common = held.len().min(start.len());
            held.get(..common) == start.get(..common)
        };
        let whole = if begins(START_V1) {
            line(held)?
        } else if begins(START_V2) {
            block(held)?
        } else {
            return Err(Malformed::Missing);
        };
        let Some(whole) = whole else {
            return Ok((bytes.len(), None));
        };
        let header = match ProxyHeader::parse(whole, ParseConfig::default()) {
            Ok((header, length)) if length == whole.len() => header,
            Ok(_) | Err(Error::BufferTooShort | _) => return Err(Malformed::Broken),
        };
        if header.crc32c().is_some_and(|crc| !is_checksum(crc, whole)) {
            return Err(Malformed::Checksum);
        }
        let client = match header.proxied_address() {
            Some(address) if address.protocol == Protocol::Datagram => {
                return Err(Malformed::Datagrams);
            }
            Some(address) => Some(address.source.ip().to_canonical()),
            None => None,
        };
        Ok((whole.len().saturating_sub(before), Some(Header { client })))
    }
}

/// The line of version 1, once its end is there.
fn line(held: &[u8]) -> Result<Option<&[u8]>, Malformed> {
    let seen = held.get(..V1_BYTES_MAX).unwrap_or(held);
    let Some(end) = seen.iter().position(|byte| *byte == b'\n') else {
        return match seen.len() {
            V1_BYTES_MAX => Err(Malformed::TooLong(V1_BYTES_MAX)),
            _ => Ok(None),
        };
    };
    let line = held.get(..=end);
    line.filter(|line| line.ends_with(b"\r\n"))
        .map(Some)
        .ok_or(Malformed::Broken)
}

/// The header of version 2, once it is all there.
fn block(held: &[u8]) -> Result<Option<&[u8]>, Malformed> {
    let Some(&[high, low]) = held.get(LENGTH_V2) else {
        return Ok(None);
    };
    let length = LENGTH_V2.end + usize::from(u16::from_be_bytes([high, low]));
    if length > PROXY_HEADER_BYTES_MAX {
        return Err(Malformed::TooLong(PROXY_HEADER_BYTES_MAX));
    }
    Ok(held.get(..length))
}

/// Whether a header that carries this CRC32c has it, with zeros in its place (§2.2.4).
fn is_checksum(crc: u32, whole: &[u8]) -> bool {
    let [a, b, c, d] = crc.to_be_bytes();
    let entry = [PP2_TYPE_CRC32C, 0, 4, a, b, c, d];
    // Another entry may have the same bytes in it.
    whole.windows(entry.len()).enumerate().any(|(at, seen)| {
        let (before, after) = (whole.get(..at + 3), whole.get(at + entry.len()..));
        let sum = crc32c(before.unwrap_or_default());
        let sum = crc32c_append(sum, &[0; 4]);
        seen == entry && crc32c_append(sum, after.unwrap_or_default()) == crc
    })
}

/// Reads the header, and not a byte of what follows.
///
/// # Errors
/// Why there is none.
pub(super) async fn read_header(socket: &mut TcpStream) -> Result<Header, String> {
    let mut reader = HeaderReader::default();
    let mut chunk = [0; CHUNK_BYTES];
    loop {
        let seen = socket.peek(&mut chunk).await;
        let seen = seen.map_err(|error| error.to_string())?;
        if seen == 0 {
            return Err("the connection was closed within the PROXY header".to_owned());
        }
        let bytes = chunk.get(..seen).unwrap_or_default();
        let (used, header) = reader.take(bytes).map_err(|error| error.to_string())?;
        let taken = socket.read_exact(chunk.get_mut(..used).unwrap_or_default());
        taken.await.map_err(|error| error.to_string())?;
        if let Some(header) = header {
            return Ok(header);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proxy_header::{ProxiedAddress, Tlv};

    use super::*;

    const REST: &[u8] = b"\x10\x0e\0\x04MQTT PROXY \r\n";

    fn of(address: &str) -> Header {
        Header {
            client: Some(address.parse().unwrap()),
        }
    }

    const NOBODY: Header = Header { client: None };

    fn version_2(header: &ProxyHeader<'_>) -> Vec<u8> {
        let mut bytes = Vec::new();
        header.encode_v2(&mut bytes).unwrap();
        bytes
    }

    fn raw(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
        let length = u16::try_from(body.len()).unwrap().to_be_bytes();
        [START_V2, &[command, family], &length, body].concat()
    }

    /// A header with its checksum, and something before it that looks like one.
    fn summed(change: u32) -> Vec<u8> {
        let like = [PP2_TYPE_CRC32C, 0, 4, 0, 0, 0, 0];
        let with = |crc| {
            let said = [
                Tlv::UniqueId(like[..].into()),
                Tlv::Crc32c(crc),
                Tlv::Authority("gateway.local".into()),
            ];
            let four = addresses("203.0.113.9:4711", "10.0.0.1:8883");
            version_2(&ProxyHeader::with_tlvs(Some(four), said))
        };
        with(crc32c(&with(0)) ^ change)
    }

    fn addresses(source: &str, destination: &str) -> ProxiedAddress {
        ProxiedAddress::stream(source.parse().unwrap(), destination.parse().unwrap())
    }

    fn good() -> Vec<(Vec<u8>, Header)> {
        let four = addresses("203.0.113.9:4711", "10.0.0.1:8883");
        let six = addresses("[2001:db8::9]:4711", "[::1]:8883");
        let mapped = addresses("[::ffff:203.0.113.9]:4711", "[::1]:8883");
        let said = [
            Tlv::Authority("gateway.local".into()),
            Tlv::UniqueId(vec![b'\n'; 128].into()),
        ];
        let longest = format!("PROXY UNKNOWN {}\r\n", "x".repeat(V1_BYTES_MAX - 16));
        assert_eq!(longest.len(), V1_BYTES_MAX);
        let text = |line: &str| line.as_bytes().to_vec();
        vec![
            (
                text("PROXY TCP4 203.0.113.9 10.0.0.1 4711 8883\r\n"),
                of("203.0.113.9"),
            ),
            (
                text("PROXY TCP6 2001:db8::9 ::1 4711 8883\r\n"),
                of("2001:db8::9"),
            ),
            (text("PROXY UNKNOWN\r\n"), NOBODY),
            (text("PROXY UNKNOWN ffff::1 ::1 1 2\r\n"), NOBODY),
            (text(&longest), NOBODY),
            (
                version_2(&ProxyHeader::with_address(four.clone())),
                of("203.0.113.9"),
            ),
            (
                version_2(&ProxyHeader::with_address(six)),
                of("2001:db8::9"),
            ),
            (
                version_2(&ProxyHeader::with_address(mapped)),
                of("203.0.113.9"),
            ),
            (
                version_2(&ProxyHeader::with_tlvs(Some(four), said)),
                of("203.0.113.9"),
            ),
            (summed(0), of("203.0.113.9")),
            (version_2(&ProxyHeader::with_local()), NOBODY),
            // LOCAL counts, whatever addresses come with it (§2.2).
            (raw(0x20, 0x11, &[1; 12]), NOBODY),
            // The proxy does not know; and clients of a Unix socket have no address.
            (raw(0x21, 0x00, &[]), NOBODY),
            (raw(0x21, 0x31, &[0; 216]), NOBODY),
            (
                raw(0x21, 0x00, &vec![0; PROXY_HEADER_BYTES_MAX - 16]),
                NOBODY,
            ),
        ]
    }

    #[test]
    fn headers_are_read_however_they_are_cut() {
        for (bytes, expected) in good() {
            let all = [&bytes, REST].concat();
            for first in 1..all.len().min(400) {
                for then in [1, 7, all.len()] {
                    let mut reader = HeaderReader::default();
                    let (mut at, mut end) = (0, first);
                    let header = loop {
                        let part = all.get(at..end.min(all.len())).unwrap();
                        let (used, header) = reader.take(part).unwrap();
                        at += used;
                        if let Some(header) = header {
                            break header;
                        }
                        assert_eq!(used, part.len(), "{bytes:?}");
                        end = at + then;
                    };
                    assert_eq!(header, expected, "{bytes:?} {first} {then}");
                    assert_eq!(at, bytes.len(), "what follows is left alone");
                }
            }
        }
    }

    #[test]
    fn what_is_no_header_is_refused_at_once() {
        use Malformed::{Broken, Checksum, Datagrams, Missing, TooLong};
        let long_line = [b"PROXY UNKNOWN ".as_slice(), &[b'x'; 93]].concat();
        let long_block = raw(0x21, 0x11, &[1; PROXY_HEADER_BYTES_MAX - 15]);
        let long_head = &long_block[..LENGTH_V2.end];
        for (bytes, expected) in [
            (b"\x10".as_slice(), Missing),
            (b"\x16\x03\x01", Missing),
            (b"GET / HTTP/1.1", Missing),
            (b"PROXY-", Missing),
            (b"proxy ", Missing),
            (b"PRI", Missing),
            (b"\r\n\r\n\0\r\nQUIT\r", Missing),
            (b"\r\n\r\n\r", Missing),
            (b"PROXY \r\n", Broken),
            (b"PROXY TCP4\r\n", Broken),
            (b"PROXY TCP4 203.0.113.9\r\n", Broken),
            (b"PROXY TCP4 203.0.113.9 10.0.0.1 4711\r\n", Broken),
            (b"PROXY TCP4 203.0.113.9 10.0.0.1 4711 8883\n", Broken),
            (b"PROXY TCP4 203.0.113.9 10.0.0.1 4711 8883 1\r\n", Broken),
            (b"PROXY TCP4 203.0.113.9 10.0.0.1 4711 65536\r\n", Broken),
            (b"PROXY TCP4 203.0.113.256 10.0.0.1 4711 8883\r\n", Broken),
            (b"PROXY TCP4 2001:db8::9 ::1 4711 8883\r\n", Broken),
            (b"PROXY TCP6 203.0.113.9 10.0.0.1 4711 8883\r\n", Broken),
            (b"PROXY TCP5 203.0.113.9 10.0.0.1 4711 8883\r\n", Broken),
            (b"PROXY  TCP4 203.0.113.9 10.0.0.1 4711 8883\r\n", Broken),
            (b"PROXY TCP4 \xff.0.113.9 10.0.0.1 4711 8883\r\n", Broken),
            (&long_line, TooLong(V1_BYTES_MAX)),
            (long_head, TooLong(PROXY_HEADER_BYTES_MAX)),
            (&raw(0x31, 0x11, &[1; 12]), Broken),
            (&raw(0x22, 0x11, &[1; 12]), Broken),
            (&raw(0x21, 0x11, &[1; 11]), Broken),
            (&raw(0x21, 0x21, &[1; 35]), Broken),
            (&raw(0x21, 0x41, &[1; 36]), Broken),
            (&raw(0x21, 0x12, &[1; 12]), Datagrams),
            (&summed(1), Checksum),
        ] {
            let taken = HeaderReader::default().take(bytes);
            assert_eq!(taken, Err(expected), "{bytes:?}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_do_harm(
            start in prop_oneof![Just(START_V1), Just(START_V2), Just(&b""[..])],
            rest in proptest::collection::vec(any::<u8>(), 0..300),
            cut in 1_usize..64,
        ) {
            let bytes = [start, &rest].concat();
            let mut reader = HeaderReader::default();
            for part in bytes.chunks(cut) {
                match reader.take(part) {
                    Ok((used, None)) => prop_assert_eq!(used, part.len()),
                    Ok((used, Some(_))) => {
                        prop_assert!(used <= part.len());
                        break;
                    }
                    Err(_) => break,
                }
                prop_assert!(reader.held.len() <= PROXY_HEADER_BYTES_MAX);
            }
        }
    }
}
