//! The rows of the tables: what is sent, what must come back, and which clause says so.
//!
//! A row is a line `name | versions | clause | steps`. The versions are `3` (3.1.1), `5`, `both`:
//! the row is run once for each. Where the clauses of the two differ, 3.1.1's stands first, before
//! a `/`. The steps are divided by `;`. A step may begin with the name of a client, a letter;
//! otherwise it is `a`'s. Bytes are in the notation of [`super::notation`].
//!
//! | step | what happens, or must |
//! |---|---|
//! | `port T`, `over T` | connects to the listener T; with `over` its handshakes are done |
//! | `in` | logs in without credentials, for a session that ends with the connection; in MQTT 5
//! | | without wanting reasons in words, so that acknowledgements are the same for all |
//! | `in kept`, `in again` | for one that is kept and new, for one that is there |
//! | `> BYTES`, `raw BYTES` | sends them; `raw`: beside TLS |
//! | `< BYTES` | just these come |
//! | `connack`, `connack present` | CONNACK of success comes |
//! | `refused A B` | CONNACK with this code in 3.1.1 and that one in 5, then the end |
//! | `close` | the end, and nothing before it |
//! | `close C` | the same in 3.1.1; in MQTT 5 DISCONNECT with this reason, then the end |
//! | `after S …` | what follows comes so many seconds after what was sent last |
//! | `ping` | the connection goes on: PINGREQ is answered, and nothing comes before |
//! | `silent S` | nothing comes for so many seconds |
//! | `upgrade P` | asks for a WebSocket with this sub-protocol |
//! | `http C` | an HTTP answer with this code comes, then the end |
//! | `alert C` | a TLS alert with this code comes, then the end |
//! | `shut`, `drop`, `reset`, `leave` | ends its side; leaves in one way or another |

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;

use super::notation::{Names, bytes, shown};
use super::socket::Socket;

/// A line of a table.
#[derive(Debug, Clone)]
pub struct Row {
    pub name: String,
    pub is_v5: bool,
    steps: Vec<String>,
}

/// Where the listeners are.
#[derive(Clone)]
pub struct Ports {
    pub listeners: Vec<(String, SocketAddr)>,
    pub tls: Arc<ClientConfig>,
}

impl Ports {
    /// Where a transport is spoken.
    pub fn address(&self, transport: &str) -> SocketAddr {
        let mut listeners = self.listeners.iter();
        let found = listeners.find(|(name, _)| name == transport);
        found.unwrap_or_else(|| panic!("no listener {transport}")).1
    }
}

/// How much later than it should an end may come.
const LATE: Duration = Duration::from_secs(2);

/// Reads a table.
///
/// # Errors
/// The line that does not read.
pub fn parse(table: &str) -> Result<Vec<Row>, String> {
    let mut rows = Vec::new();
    let lines = table.lines().map(str::trim);
    for line in lines.filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let columns: Vec<_> = line.split(" | ").map(str::trim).collect();
        let [name, versions, clause, steps] = columns[..] else {
            return Err(format!("not four columns: {line}"));
        };
        let versions: &[bool] = match versions {
            "3" => &[false],
            "5" => &[true],
            "both" => &[false, true],
            _ => return Err(format!("no version: {line}")),
        };
        if name.is_empty() || clause.is_empty() {
            return Err(format!("no name or no clause: {line}"));
        }
        let steps: Vec<_> = steps
            .split(';')
            .map(|step| step.trim().to_owned())
            .collect();
        rows.extend(versions.iter().map(|is_v5| Row {
            name: format!("{name} ({})", if *is_v5 { "5" } else { "3.1.1" }),
            is_v5: *is_v5,
            steps: steps.clone(),
        }));
    }
    Ok(rows)
}

/// Runs a row under a name of its own.
///
/// # Errors
/// Which step went wrong, and how.
pub fn run(row: &Row, own: &str, ports: &Ports) -> Result<(), String> {
    let mut run = Run {
        row,
        own,
        ports,
        clients: HashMap::new(),
    };
    for step in &row.steps {
        run.step(step)
            .map_err(|error| format!("{}: at `{step}`: {error}", row.name))?;
    }
    Ok(())
}

struct Run<'a> {
    row: &'a Row,
    own: &'a str,
    ports: &'a Ports,
    clients: HashMap<char, Socket>,
}

impl Run<'_> {
    fn step(&mut self, step: &str) -> Result<(), String> {
        let mut chars = step.chars();
        let (client, step) = match (chars.next(), chars.next()) {
            (Some(client @ 'a'..='z'), Some(' ')) => (client, &step[2..]),
            _ => ('a', step),
        };
        let (verb, rest) = step.split_once(' ').unwrap_or((step, ""));
        match verb {
            "port" => {
                let socket = self.open(rest)?;
                self.clients.insert(client, socket);
                Ok(())
            }
            "over" => self.over(client, rest),
            "in" => self.log_in(client, rest),
            "drop" | "reset" => {
                let socket = self.clients.remove(&client).ok_or("not connected")?;
                if verb == "reset" {
                    socket.reset();
                }
                Ok(())
            }
            _ => self.talk(client, step),
        }
    }

    fn talk(&mut self, client: char, step: &str) -> Result<(), String> {
        let (verb, rest) = step.split_once(' ').unwrap_or((step, ""));
        if !self.clients.contains_key(&client) {
            self.over(client, "tcp")?;
        }
        let names = self.names(client);
        let socket = self.clients.get_mut(&client).ok_or("not connected")?;
        match verb {
            ">" => socket.send(&bytes(rest, &names)?),
            "raw" => socket.send_raw(&bytes(rest, &names)?),
            "<" => {
                let wanted = bytes(rest, &names)?;
                let got = socket.take(wanted.len())?;
                if got != wanted {
                    return Err(format!("{} instead of {}", shown(&got), shown(&wanted)));
                }
            }
            "shut" => socket.shut(),
            "leave" => {
                socket.send(&[0xe0, 0]);
                end(socket, names.is_v5, "")?;
                self.clients.remove(&client);
            }
            "ping" => {
                socket.send(&[0xc0, 0]);
                let got = socket.packet()?;
                if got != [0xd0, 0] {
                    return Err(format!("{} instead of PINGRESP", shown(&got)));
                }
            }
            "connack" => connack(socket, names.is_v5, rest == "present")?,
            "silent" => {
                let seconds = rest.parse().map_err(|_| "no seconds")?;
                socket.silent(Duration::from_secs_f64(seconds))?;
            }
            "upgrade" => upgrade(socket, rest),
            "after" => {
                let (seconds, rest) = rest.split_once(' ').ok_or("after what?")?;
                let due = seconds.parse().map_err(|_| "no seconds")?;
                let due = Duration::from_secs_f64(due);
                let sent = socket.sent;
                self.expect(client, rest)?;
                let took = sent.elapsed();
                // The hub's clock counts whole milliseconds.
                let early = due.saturating_sub(Duration::from_millis(50));
                if took < early || took > due + LATE {
                    return Err(format!("after {took:?}"));
                }
            }
            _ => self.expect(client, step)?,
        }
        Ok(())
    }

    /// The ways to end.
    fn expect(&mut self, client: char, step: &str) -> Result<(), String> {
        let (verb, rest) = step.split_once(' ').unwrap_or((step, ""));
        let is_v5 = self.row.is_v5;
        let mut socket = self.clients.remove(&client).ok_or("not connected")?;
        let socket = &mut socket;
        match verb {
            "close" => end(socket, is_v5, rest),
            "refused" => {
                let (three, five) = rest.split_once(' ').unwrap_or((rest, rest));
                let code = code(if is_v5 { five } else { three })?;
                let got = socket.packet()?;
                if got.len() < 4 || (got[0], got[2], got[3]) != (0x20, 0, code) {
                    return Err(format!("{} instead of CONNACK {code:#04x}", shown(&got)));
                }
                end(socket, is_v5, "")
            }
            "http" => {
                let got = String::from_utf8_lossy(&socket.rest()?).into_owned();
                let wanted = format!("HTTP/1.1 {rest} ");
                match got.starts_with(&wanted) {
                    true => Ok(()),
                    false => Err(format!("{got:?} instead of {wanted}")),
                }
            }
            "alert" => {
                let got = socket.rest()?;
                let wanted = [0x15, 3, 3, 0, 2, 2, code(rest)?];
                match got == wanted {
                    true => Ok(()),
                    false => Err(format!("{} instead of {}", shown(&got), shown(&wanted))),
                }
            }
            other => Err(format!("no such step: {other}")),
        }
    }

    fn names(&self, client: char) -> Names {
        Names {
            is_v5: self.row.is_v5,
            row: self.own.to_owned(),
            client: format!("{}{client}", self.own),
        }
    }

    fn open(&self, transport: &str) -> Result<Socket, String> {
        Socket::open(self.ports.address(transport))
    }

    fn over(&mut self, client: char, transport: &str) -> Result<(), String> {
        let mut socket = self.open(transport)?;
        if ["tls", "wss"].contains(&transport) {
            socket = socket.secure(&self.ports.tls)?;
        }
        if ["ws", "wss"].contains(&transport) {
            upgrade(&mut socket, "mqtt");
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.extend(socket.take(1)?);
            }
            if !head.starts_with(b"HTTP/1.1 101 ") {
                return Err(String::from_utf8_lossy(&head).into_owned());
            }
        }
        self.clients.insert(client, socket);
        Ok(())
    }

    fn log_in(&mut self, client: char, how: &str) -> Result<(), String> {
        let (connect, is_present) = match how {
            "" => ("10('MQTT' L 02 003c [(17 00)] &)", false),
            "kept" => ("10('MQTT' L 00 003c [(11 ffffffff 17 00)] &)", false),
            "again" => ("10('MQTT' L 00 003c [(11 ffffffff 17 00)] &)", true),
            other => return Err(format!("in {other}?")),
        };
        if !self.clients.contains_key(&client) {
            self.over(client, "tcp")?;
        }
        let names = self.names(client);
        let socket = self.clients.get_mut(&client).ok_or("not connected")?;
        socket.send(&bytes(connect, &names)?);
        connack(socket, names.is_v5, is_present)
    }
}

fn connack(socket: &mut Socket, is_v5: bool, is_present: bool) -> Result<(), String> {
    let got = socket.packet()?;
    let is_it = got.len() >= 4 && (got[0], got[2], got[3]) == (0x20, is_present.into(), 0);
    if !is_it || (!is_v5 && got.len() != 4) {
        return Err(format!("{} instead of CONNACK", shown(&got)));
    }
    Ok(())
}

/// Nothing more but, in MQTT 5, DISCONNECT with a reason; and the end.
fn end(socket: &mut Socket, is_v5: bool, reason: &str) -> Result<(), String> {
    let rest = socket.rest()?;
    if !is_v5 || reason.is_empty() {
        return match rest.is_empty() {
            true => Ok(()),
            false => Err(format!("{} before the end", shown(&rest))),
        };
    }
    let code = code(reason)?;
    // It may say why in words, and nothing else (§3.14.2.2.3).
    let is_it = match rest[..] {
        [0xe0, 1, said] => said == code,
        [0xe0, length, said, properties, 0x1f, 0, text, ..] => {
            let all = usize::from(length) + 2 == rest.len();
            said == code && all && properties + 2 == length && text + 3 == properties
        }
        _ => false,
    };
    match is_it {
        true => Ok(()),
        false => Err(format!(
            "{} instead of DISCONNECT {code:#04x}",
            shown(&rest)
        )),
    }
}

fn code(text: &str) -> Result<u8, String> {
    u8::from_str_radix(text.trim(), 16).map_err(|_| format!("{text:?} is no code"))
}

fn upgrade(socket: &mut Socket, protocol: &str) {
    let request = format!(
        "GET /mqtt HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
         Sec-WebSocket-Protocol: {protocol}\r\n\r\n"
    );
    socket.send(request.as_bytes());
}
