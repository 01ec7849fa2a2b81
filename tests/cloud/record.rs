//! The file in which the sink writes down what happened: frames of length, CRC-32C and body, in
//! the order of events. What a kill tore off at the end is not there.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use crc32c::crc32c;

const HEAD_BYTES: usize = 8;
const STARTED: u8 = 1;
const CONNECTED: u8 = 2;
const MESSAGE: u8 = 3;
const ENDED: u8 = 4;

/// Microseconds since 1970.
pub fn now_us() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    now.as_micros() as u64
}

/// One event; times are microseconds since 1970.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// The sink was started, for the first time or again.
    Started { time_us: u64 },
    /// A client was let in.
    Connected(Connected),
    /// A PUBLISH.
    Message(Message),
    /// A connection ended.
    Ended(Ended),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connected {
    pub time_us: u64,
    /// Connections are numbered from 1 on, over all starts.
    pub connection: u64,
    pub client_id: String,
    pub username: String,
    pub clean_session: bool,
    /// What the CONNACK said.
    pub session_present: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    pub time_us: u64,
    pub connection: u64,
    pub client_id: String,
    /// 0 with QoS 0.
    pub packet_id: u16,
    pub dup: bool,
    pub topic: String,
    pub payload: Vec<u8>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    pub time_us: u64,
    pub connection: u64,
    pub why: Why,
}

/// Why a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// The client took leave.
    Disconnect,
    /// The client closed without a word, or the way broke.
    Lost,
    /// The same client connected again.
    TakenOver,
    /// Its token is past.
    TokenExpired,
    /// What came is not what an MQTT client of QoS 0 and 1 sends.
    Protocol,
}

impl Why {
    const ALL: [Self; 5] = [
        Self::Disconnect,
        Self::Lost,
        Self::TakenOver,
        Self::TokenExpired,
        Self::Protocol,
    ];
}

impl Entry {
    fn write(&self, out: &mut Vec<u8>) {
        let begin = out.len();
        out.extend([0; HEAD_BYTES]);
        match self {
            Self::Started { time_us } => {
                out.push(STARTED);
                out.extend(time_us.to_le_bytes());
            }
            Self::Connected(connected) => {
                out.push(CONNECTED);
                out.extend(connected.time_us.to_le_bytes());
                out.extend(connected.connection.to_le_bytes());
                put(out, connected.client_id.as_bytes());
                put(out, connected.username.as_bytes());
                out.push(u8::from(connected.clean_session));
                out.push(u8::from(connected.session_present));
            }
            Self::Message(message) => {
                out.push(MESSAGE);
                out.extend(message.time_us.to_le_bytes());
                out.extend(message.connection.to_le_bytes());
                put(out, message.client_id.as_bytes());
                out.extend(message.packet_id.to_le_bytes());
                out.push(u8::from(message.dup));
                put(out, message.topic.as_bytes());
                put(out, &message.payload);
            }
            Self::Ended(ended) => {
                out.push(ENDED);
                out.extend(ended.time_us.to_le_bytes());
                out.extend(ended.connection.to_le_bytes());
                out.push(ended.why as u8);
            }
        }
        let body = &out[begin + HEAD_BYTES..];
        let (bytes, sum) = (body.len() as u32, crc32c(body));
        out[begin..begin + 4].copy_from_slice(&bytes.to_le_bytes());
        out[begin + 4..begin + HEAD_BYTES].copy_from_slice(&sum.to_le_bytes());
    }

    fn read(body: &[u8]) -> Option<Self> {
        let mut fields = Fields(body);
        let entry = match fields.byte()? {
            STARTED => Self::Started {
                time_us: fields.long()?,
            },
            CONNECTED => Self::Connected(Connected {
                time_us: fields.long()?,
                connection: fields.long()?,
                client_id: fields.text()?,
                username: fields.text()?,
                clean_session: fields.byte()? == 1,
                session_present: fields.byte()? == 1,
            }),
            MESSAGE => Self::Message(Message {
                time_us: fields.long()?,
                connection: fields.long()?,
                client_id: fields.text()?,
                packet_id: u16::from_le_bytes(fields.array()?),
                dup: fields.byte()? == 1,
                topic: fields.text()?,
                payload: fields.bytes()?.to_vec(),
            }),
            ENDED => Self::Ended(Ended {
                time_us: fields.long()?,
                connection: fields.long()?,
                why: *Why::ALL.get(usize::from(fields.byte()?))?,
            }),
            _ => return None,
        };
        fields.0.is_empty().then_some(entry)
    }
}

fn put(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend((bytes.len() as u32).to_le_bytes());
    out.extend(bytes);
}

/// What is left of a body.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1).map(|bytes| bytes[0])
    }

    fn long(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn bytes(&mut self) -> Option<&'a [u8]> {
        let count = u32::from_le_bytes(self.array()?);
        self.take(count as usize)
    }

    fn text(&mut self) -> Option<String> {
        String::from_utf8(self.bytes()?.to_vec()).ok()
    }
}

/// Reads a record from its beginning, and on from there when there is more.
pub struct Reader {
    file: File,
    /// Bytes of whole entries that were read.
    pub offset: u64,
}

impl Reader {
    pub fn open(path: &Path) -> io::Result<Self> {
        Ok(Self {
            file: File::open(path)?,
            offset: 0,
        })
    }

    /// The entries since the last call.
    ///
    /// # Errors
    /// Bytes that are no entry, other than the beginning of one at the end.
    pub fn more(&mut self) -> io::Result<Vec<Entry>> {
        // What was torn off may have been cut away since.
        self.file.seek(SeekFrom::Start(self.offset))?;
        let mut bytes = Vec::new();
        self.file.read_to_end(&mut bytes)?;
        let mut entries = Vec::new();
        let mut rest = &bytes[..];
        while let Some((head, after)) = rest.split_at_checked(HEAD_BYTES) {
            let number = |from: usize| u32::from_le_bytes(head[from..from + 4].try_into().unwrap());
            let (length, sum) = (number(0) as usize, number(4));
            let Some((body, after)) = after.split_at_checked(length) else {
                break;
            };
            let entry = (crc32c(body) == sum).then(|| Entry::read(body)).flatten();
            let wrong = || io::Error::other(format!("no entry at {}", self.offset));
            entries.push(entry.ok_or_else(wrong)?);
            self.offset += (HEAD_BYTES + length) as u64;
            rest = after;
        }
        Ok(entries)
    }
}

/// All entries of a record.
pub fn read(path: &Path) -> io::Result<Vec<Entry>> {
    Reader::open(path)?.more()
}

/// Appends to a record.
pub struct Writer {
    file: File,
    buffer: Vec<u8>,
}

impl Writer {
    /// Goes on with a record or begins it; the entries that are there. An entry that is torn off
    /// is cut away.
    pub fn open(path: &Path) -> io::Result<(Self, Vec<Entry>)> {
        let mut options = OpenOptions::new();
        options.create(true).truncate(false).write(true);
        let mut file = options.open(path)?;
        let mut reader = Reader::open(path)?;
        let entries = reader.more()?;
        file.set_len(reader.offset)?;
        file.seek(SeekFrom::End(0))?;
        let buffer = Vec::new();
        Ok((Self { file, buffer }, entries))
    }

    /// Adds an entry to what the next [`Writer::sync`] writes.
    pub fn add(&mut self, entry: &Entry) {
        entry.write(&mut self.buffer);
    }

    /// Writes what was added, and waits until it is on disk.
    pub fn sync(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        self.file.write_all(&self.buffer)?;
        self.buffer.clear();
        self.file.sync_data()
    }
}
