//! Dialogues of several clients with a hub, written down packet by packet.
//!
//! A line is a client, what happens, and a packet. A packet is its first byte and its body, whose
//! length is worked out: `'a/b'` is a string with its length, `=hi` text as it is, `?m` a packet id
//! that stands for the one that came where `m` was first expected, the rest are hex digits.
//!
//! | line | what happens |
//! |---|---|
//! | `a = 4`, `a = 5` | it connects in this version, clean, as `a`, without reasons in words |
//! | `a > 82 0001 'x' 01 & c0` | it sends packets, in one write |
//! | `a >~ c0 80 00` | it sends bytes as they are |
//! | `a < 90 0001 01` | it gets just this packet |
//! | `a <~ 20 0000` | it gets a packet that begins so, its length aside |
//! | `a <& 62 0001 & d0` | it gets these packets, in any order |
//! | `a \|` | the hub closes its connection |
//! | `a .` | it is gone without a word |

use std::collections::BTreeMap;
use std::net::SocketAddr;

use bytes::{Buf, BytesMut};
use edgehub::mqtt::packet_length;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::common::wire::hex;
use crate::common::{Hub, LIMIT, Setup};

/// A hub on which everybody may use all plain topics but those below `forbidden/`.
pub fn open() -> Setup {
    let mut setup = Setup::open("{}", &["a"]);
    setup.extra += "deny = [{ operations = [\"mqtt:publish\", \"mqtt:subscribe\"],\n\
        resources = [\"forbidden/#\"] }]\n";
    setup
}

/// The clients of a dialogue.
pub struct Talk {
    address: SocketAddr,
    clients: BTreeMap<String, Peer>,
    ids: BTreeMap<String, Vec<u8>>,
}

struct Peer {
    socket: TcpStream,
    input: BytesMut,
}

impl Talk {
    pub fn new(hub: &Hub) -> Self {
        Self {
            address: hub.tcp(),
            clients: BTreeMap::new(),
            ids: BTreeMap::new(),
        }
    }

    /// Plays lines, each of which has to come true.
    pub async fn play(&mut self, lines: &str) {
        for line in lines.lines().map(str::trim).filter(|line| !line.is_empty()) {
            let mut words = line.splitn(3, ' ');
            let (name, what) = (words.next().unwrap(), words.next().unwrap());
            self.step(name, what, words.next().unwrap_or_default(), line)
                .await;
        }
    }

    async fn step(&mut self, name: &str, what: &str, rest: &str, line: &str) {
        if what == "." {
            self.clients.remove(name).unwrap();
            return;
        }
        if !self.clients.contains_key(name) {
            let peer = Peer::open(self.address).await;
            self.clients.insert(name.to_owned(), peer);
        }
        let Self { clients, ids, .. } = self;
        let peer = clients.get_mut(name).unwrap();
        match what {
            "=" => {
                let properties = if rest == "5" { "02 17 00" } else { "" };
                let connect = format!("10 'MQTT' 0{rest} 02 003c {properties} '{name}'");
                peer.send(&packet(&connect, ids, &[])).await;
                let connack = peer.receive().await;
                assert_eq!(connack[0], 0x20, "{line}: {connack:02x?}");
                assert_eq!(connack[2..4], [0, 0], "{line}: {connack:02x?}");
            }
            ">" => {
                let all = rest.split(" & ").map(|one| packet(one, ids, &[]));
                let bytes = all.collect::<Vec<_>>().concat();
                peer.send(&bytes).await;
            }
            ">~" => peer.send(&hex(rest)).await,
            "<" => {
                let got = peer.receive().await;
                let wanted = packet(rest, ids, &got);
                assert_eq!(shown(&got), shown(&wanted), "{line}");
            }
            "<~" => {
                let got = peer.receive().await;
                assert!(!got.is_empty(), "{line}: the connection is closed");
                let wanted = packet(rest, ids, &got);
                let is_it = got[0] == wanted[0] && body(&got).starts_with(body(&wanted));
                assert!(is_it, "{line}: {}", shown(&got));
            }
            "<&" => {
                let all = rest.split(" & ").map(|one| packet(one, ids, &[]));
                let mut wanted: Vec<_> = all.map(|one| shown(&one)).collect();
                let mut got = Vec::new();
                for _ in &wanted {
                    got.push(shown(&peer.receive().await));
                }
                got.sort();
                wanted.sort();
                assert_eq!(got, wanted, "{line}");
            }
            "|" => {
                assert_eq!(shown(&peer.receive().await), "", "{line}");
                clients.remove(name);
            }
            other => panic!("{other} in {line}"),
        }
    }
}

impl Peer {
    async fn open(address: SocketAddr) -> Self {
        let socket = TcpStream::connect(address).await.unwrap();
        socket.set_nodelay(true).unwrap();
        Self {
            socket,
            input: BytesMut::new(),
        }
    }

    async fn send(&mut self, bytes: &[u8]) {
        self.socket.write_all(bytes).await.unwrap();
    }

    /// The next packet; nothing where the connection has ended.
    async fn receive(&mut self) -> Vec<u8> {
        loop {
            let length = packet_length(&self.input).unwrap();
            if let Some(length) = length.filter(|length| self.input.len() >= *length) {
                let packet = self.input[..length].to_vec();
                self.input.advance(length);
                return packet;
            }
            let read = self.socket.read_buf(&mut self.input);
            match tokio::time::timeout(LIMIT, read).await {
                Ok(Ok(1..)) => {}
                Ok(_) => return Vec::new(),
                Err(_) => panic!("nothing came in time, after {:02x?}", self.input),
            }
        }
    }
}

/// A packet from its words, as the head of this file says; packet ids that are not known yet are
/// those of the packet that came.
fn packet(text: &str, ids: &mut BTreeMap<String, Vec<u8>>, came: &[u8]) -> Vec<u8> {
    let mut words = text.split_whitespace();
    let mut packet = hex(words.next().unwrap());
    let mut bytes = Vec::new();
    for word in words {
        if let Some(text) = word.strip_prefix('\'') {
            let text = text.strip_suffix('\'').unwrap();
            bytes.extend(u16::try_from(text.len()).unwrap().to_be_bytes());
            bytes.extend(text.as_bytes());
        } else if let Some(text) = word.strip_prefix('=') {
            bytes.extend(text.as_bytes());
        } else if let Some(name) = word.strip_prefix('?') {
            let at = body(came).get(bytes.len()..bytes.len() + 2);
            let known = ids.entry(name.to_owned());
            let id = known.or_insert_with(|| at.unwrap_or_default().to_vec());
            bytes.extend_from_slice(id);
        } else {
            bytes.extend(hex(word));
        }
    }
    let mut length = bytes.len();
    while length > 127 {
        packet.push((length % 128) as u8 | 0x80);
        length /= 128;
    }
    packet.push(length as u8);
    packet.extend(bytes);
    packet
}

/// What stands behind the length.
fn body(packet: &[u8]) -> &[u8] {
    let length = packet.iter().skip(1).position(|byte| *byte < 128);
    length.map_or(&[], |at| &packet[at + 2..])
}

/// Hex digits, and the text in them.
fn shown(bytes: &[u8]) -> String {
    let digits: Vec<_> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let text = String::from_utf8_lossy(bytes).replace(|one: char| one.is_control(), ".");
    if bytes.is_empty() {
        String::new()
    } else {
        format!("{} {text}", digits.join(" "))
    }
}
