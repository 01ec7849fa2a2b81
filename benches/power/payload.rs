//! Messages that say who sent them and prove that every byte of them is right.

use crate::rng::Rng;

const MAGIC: &[u8; 4] = b"PWR1";
/// Magic, publisher, length (u32 each), counter, checksum (u64 each).
const HEAD_BYTES: usize = 28;
const CHECKSUM_AT: usize = 20;

/// The message of a publisher with a number: the same bytes each time.
pub fn payload(seed: u64, publisher: usize, counter: u64) -> Vec<u8> {
    let mut rng = Rng::new(seed ^ ((publisher as u64) << 48) ^ counter.wrapping_mul(0x9E37_79B9));
    let body_bytes = match rng.below(100) {
        0..70 => rng.below(400),
        70..96 => rng.below(2_000),
        96..99 => 3_500 + rng.below(2_000),
        _ => rng.below(20_000),
    };
    let bytes = HEAD_BYTES + body_bytes as usize;
    let mut payload = vec![0; bytes];
    payload[..4].copy_from_slice(MAGIC);
    payload[4..8].copy_from_slice(&(publisher as u32).to_le_bytes());
    payload[8..12].copy_from_slice(&(bytes as u32).to_le_bytes());
    payload[12..CHECKSUM_AT].copy_from_slice(&counter.to_le_bytes());
    rng.fill(&mut payload[HEAD_BYTES..]);
    let checksum = checksum(&payload);
    payload[CHECKSUM_AT..HEAD_BYTES].copy_from_slice(&checksum.to_le_bytes());
    payload
}

/// Publisher and counter of a message whose checksum is right and that is, byte for byte, what
/// was sent.
pub fn read(seed: u64, bytes: &[u8]) -> Option<(usize, u64)> {
    let head = bytes.get(..HEAD_BYTES)?;
    let word = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
    let long = |at: usize| u64::from(word(at)) | u64::from(word(at + 4)) << 32;
    if &head[..4] != MAGIC || word(8) as usize != bytes.len() {
        return None;
    }
    let (publisher, counter) = (word(4) as usize, long(12));
    let is_whole = long(CHECKSUM_AT) == checksum(bytes);
    (is_whole && payload(seed, publisher, counter) == bytes).then_some((publisher, counter))
}

/// FNV-1a over everything but the checksum itself.
fn checksum(bytes: &[u8]) -> u64 {
    let covered = bytes[..CHECKSUM_AT].iter().chain(&bytes[HEAD_BYTES..]);
    covered.fold(0xCBF2_9CE4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01B3)
    })
}
