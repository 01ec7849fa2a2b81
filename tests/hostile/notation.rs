//! The notation of the tables: bytes of packets, with the lengths worked out.
//!
//! | written | bytes |
//! |---|---|
//! | `82 0001` | these |
//! | `( … )` | the length of what is inside as a variable byte integer, then that |
//! | `u16( … )`, `u24( … )` | the same with a length of two or three bytes |
//! | `'text'` | a string with its length; `@` in it is the row's own name, `&` the client's |
//! | `"text"` | the text alone; `\r\n` is the end of a line |
//! | `@`, `&` | the row's name and the client's as strings |
//! | `9*61` | nine times 61 |
//! | `[ … ]` | in MQTT 5 only; `~` is `[00]`, a list of no properties |
//! | `{ … |…}` | what stands before the bar in 3.1.1, what stands behind it in MQTT 5 |
//! | `L` | the protocol level |
//! | `#82( … )` | a WebSocket frame of a client that begins with 82, masked |

use std::iter::Peekable;
use std::str::Chars;

/// What the notation leaves open.
#[derive(Debug, Clone)]
pub struct Names {
    pub is_v5: bool,
    pub row: String,
    pub client: String,
}

/// The key that frames are masked with.
const MASK: [u8; 4] = [0x5a, 0x17, 0xc3, 0x08];

/// How a group's length is written.
enum Length {
    Variable,
    Two,
    Three,
    /// A WebSocket frame with this first byte.
    Frame(u8),
    /// Not at all; false: the group is left out.
    None(bool),
}

/// Bytes in the notation.
///
/// # Errors
/// What does not read.
pub fn bytes(text: &str, names: &Names) -> Result<Vec<u8>, String> {
    let mut chars = text.chars().peekable();
    let out = group(&mut chars, names, None)?;
    Ok(out)
}

/// As hex, for messages.
pub fn shown(bytes: &[u8]) -> String {
    const MOST: usize = 48;
    let start = &bytes[..bytes.len().min(MOST)];
    let digits: String = start.iter().map(|byte| format!("{byte:02x}")).collect();
    match bytes.len() {
        0 => "nothing".to_owned(),
        more if more > MOST => format!("{digits}… ({more} bytes)"),
        _ => digits,
    }
}

fn group(
    chars: &mut Peekable<Chars<'_>>,
    names: &Names,
    end: Option<char>,
) -> Result<Vec<u8>, String> {
    let mut out = Vec::new();
    loop {
        let Some(next) = chars.next() else {
            return match end {
                None => Ok(out),
                Some(end) => Err(format!("no {end}")),
            };
        };
        match next {
            _ if Some(next) == end => return Ok(out),
            ' ' => {}
            '(' => out.extend(enclosed(chars, names, &Length::Variable)?),
            '[' => {
                let inside = group(chars, names, Some(']'))?;
                out.extend(with_length(inside, &Length::None(names.is_v5)));
            }
            '{' => {
                let (three, five) = (
                    group(chars, names, Some('|'))?,
                    group(chars, names, Some('}'))?,
                );
                out.extend(if names.is_v5 { five } else { three });
            }
            '~' if names.is_v5 => out.push(0),
            '~' => {}
            'L' => out.push(if names.is_v5 { 5 } else { 4 }),
            '@' => out.extend(string(&names.row)),
            '&' => out.extend(string(&names.client)),
            '\'' => {
                let text = until(chars, '\'')?;
                let text = text.replace('@', &names.row).replace('&', &names.client);
                out.extend(string(&text));
            }
            '"' => out.extend(until(chars, '"')?.replace("\\r\\n", "\r\n").into_bytes()),
            'u' => {
                let length = match word(chars).as_str() {
                    "16" => Length::Two,
                    "24" => Length::Three,
                    other => return Err(format!("u{other}")),
                };
                opened(chars)?;
                out.extend(enclosed(chars, names, &length)?);
            }
            '#' => {
                let first = hex(&word(chars))?;
                let [first] = first[..] else {
                    return Err("a frame begins with one byte".to_owned());
                };
                opened(chars)?;
                out.extend(enclosed(chars, names, &Length::Frame(first))?);
            }
            digit => {
                let written = format!("{digit}{}", word(chars));
                match written.split_once('*') {
                    None => out.extend(hex(&written)?),
                    Some((count, unit)) => {
                        let count = count.parse().map_err(|_| format!("count {count}"))?;
                        out.extend(hex(unit)?.repeat(count));
                    }
                }
            }
        }
    }
}

fn opened(chars: &mut Peekable<Chars<'_>>) -> Result<(), String> {
    match chars.next() {
        Some('(') => Ok(()),
        other => Err(format!("{other:?} instead of (")),
    }
}

fn enclosed(
    chars: &mut Peekable<Chars<'_>>,
    names: &Names,
    length: &Length,
) -> Result<Vec<u8>, String> {
    let inside = group(chars, names, Some(')'))?;
    Ok(with_length(inside, length))
}

fn with_length(inside: Vec<u8>, length: &Length) -> Vec<u8> {
    let bytes = inside.len();
    let mut out = match length {
        Length::None(true) => return inside,
        Length::None(false) => return Vec::new(),
        Length::Variable => variable(bytes),
        Length::Two => (bytes as u16).to_be_bytes().to_vec(),
        Length::Three => (bytes as u32).to_be_bytes()[1..].to_vec(),
        Length::Frame(first) => return frame(*first, &inside),
    };
    out.extend(inside);
    out
}

/// A variable byte integer (MQTT 5 §1.5.5).
pub fn variable(mut number: usize) -> Vec<u8> {
    let mut out = Vec::new();
    loop {
        let low = (number & 0x7f) as u8;
        number >>= 7;
        if number == 0 {
            out.push(low);
            return out;
        }
        out.push(low | 0x80);
    }
}

/// A masked frame (RFC 6455 §5.2).
pub fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut out = vec![first];
    match payload.len() {
        bytes @ ..126 => out.push(0x80 | bytes as u8),
        bytes @ ..65_536 => {
            out.push(0x80 | 126);
            out.extend((bytes as u16).to_be_bytes());
        }
        bytes => {
            out.push(0x80 | 127);
            out.extend((bytes as u64).to_be_bytes());
        }
    }
    out.extend(MASK);
    let masked = payload.iter().zip(MASK.iter().cycle());
    out.extend(masked.map(|(byte, mask)| byte ^ mask));
    out
}

/// A string with its length (MQTT 5 §1.5.4).
pub fn string(text: &str) -> Vec<u8> {
    let mut out = (text.len() as u16).to_be_bytes().to_vec();
    out.extend(text.as_bytes());
    out
}

fn until(chars: &mut Peekable<Chars<'_>>, end: char) -> Result<String, String> {
    let mut text = String::new();
    for next in chars.by_ref() {
        if next == end {
            return Ok(text);
        }
        text.push(next);
    }
    Err(format!("no {end} after {text}"))
}

/// Digits, letters and `*` up to anything else.
fn word(chars: &mut Peekable<Chars<'_>>) -> String {
    let mut word = String::new();
    while let Some(next) = chars.next_if(|next| next.is_ascii_alphanumeric() || *next == '*') {
        word.push(next);
    }
    word
}

fn hex(digits: &str) -> Result<Vec<u8>, String> {
    let bad = || format!("{digits} is not hex");
    if !digits.is_ascii() || !digits.len().is_multiple_of(2) {
        return Err(bad());
    }
    let pairs = (0..digits.len()).step_by(2);
    pairs
        .map(|at| u8::from_str_radix(&digits[at..at + 2], 16).map_err(|_| bad()))
        .collect()
}

#[test]
fn lengths_and_versions() {
    let names = |is_v5| Names {
        is_v5,
        row: "r".to_owned(),
        client: "rb".to_owned(),
    };
    for (text, three, five) in [
        ("82 0001", "820001", "820001"),
        (
            "82(0001 ~ 'a@' 00)",
            "820700010002617200",
            "82080001000002617200",
        ),
        ("10(L &)", "1005040002 7262", "1005050002 7262"),
        ("[10] 3*00", "000000", "10000000"),
        ("{80|87 00}", "80", "8700"),
        (
            "(200*61)",
            &format!("c801{}", "61".repeat(200)),
            &format!("c801{}", "61".repeat(200)),
        ),
        (
            "16 u16(01 u24(0303))",
            "16000601 0000020303",
            "160006010000020303",
        ),
        ("\"a\\r\\n\"", "610d0a", "610d0a"),
        ("#82(00 00)", "82825a17c3085a17", "82825a17c3085a17"),
    ] {
        let wanted = |digits: &str| hex(&digits.replace(' ', "")).unwrap();
        assert_eq!(bytes(text, &names(false)).unwrap(), wanted(three), "{text}");
        assert_eq!(bytes(text, &names(true)).unwrap(), wanted(five), "{text}");
    }
    for wrong in ["1", "zz", "(00", "'a", "u8(00)", "#8(00)", "x*00"] {
        assert!(bytes(wrong, &names(true)).is_err(), "{wrong}");
    }
}
