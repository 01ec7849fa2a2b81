//! Finds one path in raw JSON bytes without building a tree (facts §4.5).
//!
//! The whole document is read once, because a body that is cut off is undefined and because of
//! two equal keys the last one counts. What is not on the path is only skipped: its nesting,
//! keys and separators are checked, the insides of its strings and numbers are not.

use std::borrow::Cow;

use super::BODY_DEPTH_MAX;

/// A step of a body path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// A member of an object, in this very case.
    Key(Box<str>),
    /// An element of an array, from 0.
    Index(usize),
}

/// A value as it stands in the document.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Raw<'b> {
    Object(&'b [u8]),
    Array,
    /// Without quotes, escapes not resolved.
    Text {
        inner: &'b [u8],
        escaped: bool,
    },
    Number(&'b [u8]),
    Bool(bool),
    Null,
}

/// Why nothing can be found in a document.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Invalid {
    /// Not JSON, at this byte.
    At(usize),
    /// Nested deeper than [`BODY_DEPTH_MAX`].
    Depth,
    /// Valid so far, but the root is no object.
    Root,
}

type Found<'b> = Result<Option<Raw<'b>>, Invalid>;

/// Finds a path in a document whose root is an object; `None` where it is missing, also below
/// a value that has no members.
pub(super) fn find<'b>(document: &'b [u8], path: &[Step]) -> Found<'b> {
    let mut scan = Scan::new(document);
    if scan.blank() != Some(b'{') {
        return match scan.byte() {
            Some(_) => scan.skip().and(Err(Invalid::Root)),
            None => Err(scan.invalid()),
        };
    }
    let found = scan.value(path)?;
    match scan.blank() {
        None => Ok(found),
        Some(_) => Err(scan.invalid()),
    }
}

/// The keys of an object that [`find`] returned, for near misses.
pub(super) fn keys(object: &[u8]) -> Vec<String> {
    let mut scan = Scan::new(object);
    let mut keys = Vec::new();
    let _ = scan.members(|scan, key| {
        keys.extend(text(key.0, key.1).map(Cow::into_owned));
        scan.skip()
    });
    keys
}

struct Scan<'b> {
    bytes: &'b [u8],
    at: usize,
    /// Containers around this place.
    depth: u32,
}

impl<'b> Scan<'b> {
    fn new(bytes: &'b [u8]) -> Self {
        let at = if bytes.starts_with(b"\xEF\xBB\xBF") {
            3
        } else {
            0
        };
        Self {
            bytes,
            at,
            depth: 0,
        }
    }

    fn byte(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn invalid(&self) -> Invalid {
        Invalid::At(self.at)
    }

    /// The next byte that is no blank, which is not consumed.
    fn blank(&mut self) -> Option<u8> {
        loop {
            match self.byte() {
                Some(b' ' | b'\n' | b'\r' | b'\t') => self.at += 1,
                other => return other,
            }
        }
    }

    fn slice(&self, start: usize) -> &'b [u8] {
        self.bytes.get(start..self.at).unwrap_or_default()
    }

    /// The value here, followed along the path.
    fn value(&mut self, path: &[Step]) -> Found<'b> {
        match (self.blank(), path.split_first()) {
            (_, None) => self.target().map(Some),
            (Some(b'{'), Some((Step::Key(key), rest))) => {
                let mut found = None;
                self.members(|scan, (name, escaped)| {
                    if is_key(name, escaped, key) {
                        found = scan.value(rest)?;
                        Ok(())
                    } else {
                        scan.skip()
                    }
                })?;
                Ok(found)
            }
            (Some(b'['), Some((Step::Index(index), rest))) => self.element(*index, rest),
            _ => self.skip().map(|()| None),
        }
    }

    /// The value here, as it stands.
    fn target(&mut self) -> Result<Raw<'b>, Invalid> {
        let start = self.at;
        match self.byte() {
            Some(b'"') => {
                let (inner, escaped) = self.string()?;
                Ok(Raw::Text { inner, escaped })
            }
            first => {
                self.skip()?;
                match first {
                    Some(b'{') => Ok(Raw::Object(self.slice(start))),
                    Some(b'[') => Ok(Raw::Array),
                    Some(b't') => Ok(Raw::Bool(true)),
                    Some(b'f') => Ok(Raw::Bool(false)),
                    Some(b'n') => Ok(Raw::Null),
                    _ => Ok(Raw::Number(self.slice(start))),
                }
            }
        }
    }

    /// Visits the members of the object here; the visitor consumes each value.
    fn members(
        &mut self,
        mut visit: impl FnMut(&mut Self, (&'b [u8], bool)) -> Result<(), Invalid>,
    ) -> Result<(), Invalid> {
        self.enter()?;
        if self.blank() != Some(b'}') {
            loop {
                let key = self.key()?;
                visit(self, key)?;
                match self.blank() {
                    Some(b',') => self.at += 1,
                    Some(b'}') => break,
                    _ => return Err(self.invalid()),
                }
            }
        }
        self.leave();
        Ok(())
    }

    fn element(&mut self, index: usize, rest: &[Step]) -> Found<'b> {
        self.enter()?;
        let mut found = None;
        if self.blank() != Some(b']') {
            for position in 0.. {
                if position == index {
                    found = self.value(rest)?;
                } else {
                    self.skip()?;
                }
                match self.blank() {
                    Some(b',') => self.at += 1,
                    Some(b']') => break,
                    _ => return Err(self.invalid()),
                }
            }
        }
        self.leave();
        Ok(found)
    }

    fn enter(&mut self) -> Result<(), Invalid> {
        self.at += 1;
        self.depth += 1;
        if self.depth > BODY_DEPTH_MAX {
            return Err(Invalid::Depth);
        }
        Ok(())
    }

    fn leave(&mut self) {
        self.at += 1;
        self.depth -= 1;
    }

    /// A key and its colon.
    fn key(&mut self) -> Result<(&'b [u8], bool), Invalid> {
        if self.blank() != Some(b'"') {
            return Err(self.invalid());
        }
        let key = self.string()?;
        if self.blank() != Some(b':') {
            return Err(self.invalid());
        }
        self.at += 1;
        Ok(key)
    }

    /// Skips one value of any kind, without recursion: one bit per open container says whether
    /// it is an object.
    fn skip(&mut self) -> Result<(), Invalid> {
        let mut objects: u128 = 0;
        let outside = self.depth;
        loop {
            let first = self.blank();
            let empty = match first {
                Some(open @ (b'{' | b'[')) => {
                    self.enter()?;
                    objects = (objects << 1) | u128::from(open == b'{');
                    match (open, self.blank()) {
                        (b'{', Some(b'}')) | (b'[', Some(b']')) => true,
                        (b'{', _) => {
                            self.key()?;
                            false
                        }
                        _ => false,
                    }
                }
                _ => {
                    self.scalar(first)?;
                    true
                }
            };
            if !empty {
                continue;
            }
            loop {
                if self.depth == outside {
                    return Ok(());
                }
                let object = objects & 1 == 1;
                match self.blank() {
                    Some(b'}') if object => {}
                    Some(b']') if !object => {}
                    Some(b',') => {
                        self.at += 1;
                        if object {
                            self.key()?;
                        }
                        break;
                    }
                    _ => return Err(self.invalid()),
                }
                self.leave();
                objects >>= 1;
            }
        }
    }

    fn scalar(&mut self, first: Option<u8>) -> Result<(), Invalid> {
        match first {
            Some(b'"') => self.string().map(|_| ()),
            Some(b't') => self.word(b"true"),
            Some(b'f') => self.word(b"false"),
            Some(b'n') => self.word(b"null"),
            Some(b'-' | b'0'..=b'9') => {
                self.at += 1;
                while let Some(b'0'..=b'9' | b'.' | b'e' | b'E' | b'+' | b'-') = self.byte() {
                    self.at += 1;
                }
                Ok(())
            }
            _ => Err(self.invalid()),
        }
    }

    fn word(&mut self, word: &[u8]) -> Result<(), Invalid> {
        let end = self.at + word.len();
        if self.bytes.get(self.at..end) != Some(word) {
            return Err(self.invalid());
        }
        self.at = end;
        Ok(())
    }

    /// A string: what is between the quotes, and whether it has escapes.
    fn string(&mut self) -> Result<(&'b [u8], bool), Invalid> {
        let start = self.at + 1;
        let mut escaped = false;
        let mut from = start;
        loop {
            let rest = self.bytes.get(from..).unwrap_or_default();
            match quote_or_backslash(rest) {
                None => return Err(Invalid::At(self.bytes.len())),
                Some((at, b'"')) => {
                    self.at = from + at;
                    let inner = self.slice(start);
                    self.at += 1;
                    return Ok((inner, escaped));
                }
                Some((at, _)) => {
                    escaped = true;
                    from += at + 2;
                }
            }
        }
    }
}

/// Most strings are short: the first bytes are looked at one by one.
fn quote_or_backslash(bytes: &[u8]) -> Option<(usize, u8)> {
    const NEAR: usize = 16;
    for (at, byte) in bytes.iter().take(NEAR).enumerate() {
        if matches!(byte, b'"' | b'\\') {
            return Some((at, *byte));
        }
    }
    let far = bytes.get(NEAR..)?;
    let at = memchr::memchr2(b'"', b'\\', far)?;
    far.get(at).map(|byte| (NEAR + at, *byte))
}

fn is_key(name: &[u8], escaped: bool, key: &str) -> bool {
    if escaped {
        text(name, true).is_some_and(|name| name == key)
    } else {
        name == key.as_bytes()
    }
}

/// A string's text; `None` where an escape is wrong. Bytes that are no UTF-8 become
/// replacement characters, as in the replaced system.
pub(super) fn text(inner: &[u8], escaped: bool) -> Option<Cow<'_, str>> {
    let plain = String::from_utf8_lossy(inner);
    if !escaped {
        return Some(plain);
    }
    let mut units: Vec<u16> = Vec::with_capacity(plain.len());
    let mut chars = plain.chars();
    while let Some(c) = chars.next() {
        if c != '\\' {
            units.extend_from_slice(c.encode_utf16(&mut [0; 2]));
            continue;
        }
        let unit = match chars.next()? {
            same @ ('"' | '\\' | '/') => same as u16,
            'b' => 8,
            'f' => 12,
            'n' => 10,
            'r' => 13,
            't' => 9,
            'u' => {
                let mut code = 0;
                for _ in 0..4 {
                    code = code * 16 + chars.next()?.to_digit(16)?;
                }
                u16::try_from(code).ok()?
            }
            _ => return None,
        };
        units.push(unit);
    }
    Some(String::from_utf16_lossy(&units).into())
}

/// A number by JSON's rules; `None` where the scanner was more generous than they are.
pub(super) fn number(raw: &[u8]) -> Option<f64> {
    let text = std::str::from_utf8(raw).ok()?;
    let unsigned = text.strip_prefix('-').unwrap_or(text);
    let leading_zero =
        unsigned.starts_with('0') && unsigned.as_bytes().get(1).is_some_and(u8::is_ascii_digit);
    let point_at_edge = match unsigned.split_once('.') {
        Some((whole, fraction)) => {
            whole.is_empty() || !fraction.starts_with(|c: char| c.is_ascii_digit())
        }
        None => !unsigned.starts_with(|c: char| c.is_ascii_digit()),
    };
    if leading_zero || point_at_edge {
        return None;
    }
    text.parse().ok()
}
