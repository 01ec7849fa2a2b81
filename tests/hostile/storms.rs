//! What takes more than one dialogue: floods, drips, storms. Each leaves nothing behind.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::common::{Hub, inputs, output};
use super::memory_kib;
use super::notation::{self, Names, shown};
use super::rows::Ports;
use super::socket::Socket;

/// As set in [`super::LIMITS`].
pub const SUBSCRIPTIONS: usize = 8_000;
pub const RETAINED: usize = 1_500;
pub const SESSIONS: usize = 400;
pub const QUEUE: usize = 2_000;

/// A storm in one version of MQTT.
pub struct Storm<'a> {
    pub hub: &'a Hub,
    pub ports: &'a Ports,
    pub is_v5: bool,
    /// Of the hub.
    pub process: u32,
}

/// A storm, and the clause that says what must come of it.
pub type Row = (&'static str, &'static str, &'static [bool], fn(&Storm<'_>));

const BOTH: &[bool] = &[false, true];
const FIVE: &[bool] = &[true];
const ONCE: &[bool] = &[false];

/// Those that make the hub hold much for a while.
#[rustfmt::skip]
pub const LARGE: &[Row] = &[
    ("SUBSCRIBEs beyond the limit", "§3.9.3", BOTH, subscriptions),
    ("a client that never reads", "§4.9, §5.4", BOTH, deaf),
    ("clients that vanish with all that waits for them", "§4.1", BOTH, vanishing),
    ("QoS 0 by the thousand, then DISCONNECT", "MQTT-3.14.4-3", BOTH, flood_and_leave),
    ("topic aliases that change all the time", "§3.3.2.3.4", FIVE, aliases),
    ("retained messages up to the limit", "§3.3.1.3", BOTH, retained),
    ("sessions up to the limit", "§3.2.2", BOTH, sessions),
    ("wills, all at once", "MQTT-3.1.2-8", BOTH, wills),
];

/// All others.
#[rustfmt::skip]
pub const OTHERS: &[Row] = &[
    ("SUBSCRIBE and UNSUBSCRIBE in turn", "MQTT-3.10.4-4", BOTH, fickle),
    ("PINGREQs by the hundred thousand", "MQTT-3.12.4-1", ONCE, pings),
    ("QoS 2 under every id, never released", "MQTT-4.3.3-2", BOTH, unreleased),
    ("the same, by a session that is kept", "MQTT-3.1.2-5", BOTH, unreleased_and_kept),
    ("300,000 distinct topics", "§4.7.3", ONCE, topics),
    ("takeovers, all at once", "MQTT-3.1.4-2", BOTH, takeovers),
    ("messages for who is away", "MQTT-3.1.2-5", BOTH, absent),
    ("a slow receiver loses nothing", "MQTT-4.5.0-1", BOTH, slow),
    ("a full queue, and a sender that insists", "§4.8 / §3.4.2.1", BOTH, full),
    ("20,000 clients come and go", "§4.1", ONCE, come_and_go),
    ("noise", "MQTT-3.1.0-1", BOTH, noise),
    ("a byte at a time", "§3.1.4", ONCE, drips),
];

/// One client.
pub struct Peer {
    socket: Socket,
    names: Names,
}

impl Storm<'_> {
    /// Connected, and nothing said.
    fn open(&self, name: &str) -> Peer {
        Peer {
            socket: Socket::open(self.ports.address("tcp")).unwrap(),
            names: Names {
                is_v5: self.is_v5,
                row: "storm".to_owned(),
                client: name.to_owned(),
            },
        }
    }

    fn login(&self, name: &str) -> Peer {
        let mut peer = self.open(name);
        // Without wanting reasons in words.
        peer.send("10('MQTT' L 02 0000 [(17 00)] &)");
        peer.connack(false);
        peer
    }

    /// With a session that is kept.
    fn kept(&self, name: &str, is_present: bool) -> Peer {
        let mut peer = self.open(name);
        peer.send("10('MQTT' L 00 0000 [(11 ffffffff)] &)");
        peer.connack(is_present);
        peer
    }

    /// A module's CONNECT with a clean session.
    fn hello(&self, module: &str, password: Option<&str>) -> Vec<u8> {
        let hello = self.hub.hello(module);
        let password = password.or(hello.password.as_deref()).unwrap();
        let level = if self.is_v5 { 5 } else { 4 };
        let mut body = notation::string("MQTT");
        body.extend([level, 0xc2, 0, 0]);
        body.extend(self.is_v5.then_some([2, 0x17, 0]).into_iter().flatten());
        for text in [module, hello.username.as_deref().unwrap(), password] {
            body.extend(notation::string(text));
        }
        let mut packet = vec![0x10];
        packet.extend(notation::variable(body.len()));
        packet.extend(body);
        packet
    }

    fn module(&self, module: &str) -> Peer {
        let mut peer = self.open(module);
        peer.socket.send(&self.hello(module, None));
        peer.connack(false);
        peer
    }

    /// Ends a session that was kept.
    fn forget(&self, name: &str) {
        self.login(name).leave();
    }

    /// Does something for each number, several at a time.
    fn many(&self, count: usize, each: impl Fn(usize) + Sync) {
        const BESIDE: usize = 8;
        let next = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..BESIDE {
                scope.spawn(|| {
                    loop {
                        let number = next.fetch_add(1, Ordering::Relaxed);
                        if number >= count {
                            return;
                        }
                        each(number);
                    }
                });
            }
        });
    }
}

impl Peer {
    fn bytes(&self, text: &str) -> Vec<u8> {
        notation::bytes(text, &self.names).unwrap()
    }

    fn send(&mut self, text: &str) {
        let bytes = self.bytes(text);
        self.socket.send(&bytes);
    }

    /// Just these bytes come.
    fn expect(&mut self, text: &str) {
        let wanted = self.bytes(text);
        let got = self.socket.take(wanted.len()).unwrap();
        assert_eq!(shown(&got), shown(&wanted), "{}", self.names.client);
    }

    fn connack(&mut self, is_present: bool) {
        let got = self.socket.packet().unwrap();
        let is_it = (got[0], got[2], got[3]) == (0x20, is_present.into(), 0);
        assert!(is_it, "{}: {}", self.names.client, shown(&got));
    }

    fn ping(&mut self) {
        self.send("c000");
        self.expect("d000");
    }

    /// Everything up to the end.
    fn rest(mut self) -> Vec<u8> {
        self.socket.rest().unwrap()
    }

    fn leave(mut self) {
        self.send("e000");
        assert_eq!(shown(&self.rest()), "nothing");
    }
}

/// Ever new filters: as many as may be are granted, and no more; and a topic's match does not take
/// longer for them.
fn subscriptions(storm: &Storm<'_>) {
    const EACH: usize = 100;
    let mut peer = storm.login("subscriber");
    let before = quickest(&mut peer);
    for packet in 0..SUBSCRIPTIONS / EACH + 1 {
        let numbers = packet * EACH..(packet + 1) * EACH;
        let filters: String = numbers.map(|n| format!("'@/{n}/+/#' 00")).collect();
        peer.send(&format!("82(0007 ~ {filters})"));
        let is_over = packet == SUBSCRIPTIONS / EACH;
        let code = if is_over { "{80|97}" } else { "00" };
        peer.expect(&format!("90(0007 ~ {})", code.repeat(EACH)));
    }
    // One that is there may change.
    peer.send("82(0007 ~ '@/0/+/#' 01 '@/new' 00)");
    peer.expect("90(0007 ~ 01 {80|97})");
    let after = quickest(&mut peer);
    let most = 4 * before + Duration::from_millis(20);
    assert!(after < most, "{before:?} before, {after:?} with filters");
    peer.leave();
}

/// The quickest of a few batches of messages with ever new topics.
fn quickest(peer: &mut Peer) -> Duration {
    let batch = |round: usize| {
        let topics: String = (0..200)
            .map(|n| format!("32('@/ever/{round}/{n}' 0001 ~)"))
            .collect();
        let started = Instant::now();
        peer.send(&topics);
        peer.expect(&"40(0001 [10])".repeat(200));
        started.elapsed()
    };
    (0..5).map(batch).min().unwrap()
}

fn fickle(storm: &Storm<'_>) {
    const COUNT: usize = 2_000;
    let mut peer = storm.login("fickle");
    let both = peer.bytes("82(0001 ~ '@/+/fickle' 02) a2(0002 ~ '@/+/fickle')");
    peer.socket.send(&both.repeat(COUNT));
    peer.expect(&"90(0001 ~ 02) b0(0002 [00 00])".repeat(COUNT));
    peer.leave();
}

fn pings(storm: &Storm<'_>) {
    const COUNT: usize = 300_000;
    let mut peer = storm.login("pings");
    let mut sender = peer.socket.tcp().try_clone().unwrap();
    std::thread::scope(|scope| {
        // The hub reads no more from who does not take its answers.
        scope.spawn(move || {
            std::io::Write::write_all(&mut sender, &[0xc0, 0].repeat(COUNT)).unwrap();
        });
        let got = peer.socket.take(2 * COUNT).unwrap();
        assert!(got == [0xd0, 0].repeat(COUNT));
    });
    peer.leave();
}

/// What waits for a client that reads nothing is bounded, and its sender is acknowledged.
fn deaf(storm: &Storm<'_>) {
    const COUNT: usize = 20_000;
    const MOST_KIB: u64 = 48 * 1024;
    let before = memory_kib(storm.process);
    let mut receiver = storm.login("deaf");
    receiver.send("82(0001 ~ '@/deaf' 01)");
    receiver.expect("90(0001 ~ 01)");
    let mut sender = storm.login("sender");
    let message = sender.bytes("32('@/deaf' 0001 ~ 2000*61)");
    for _ in 0..COUNT / 100 {
        sender.socket.send(&message.repeat(100));
        sender.expect(&"40(0001)".repeat(100));
    }
    let grown = memory_kib(storm.process).saturating_sub(before);
    assert!(grown < MOST_KIB, "{grown} KiB more");
    sender.leave();
    receiver.socket.reset();
}

/// What waited in memory for a session goes with it: many such sessions leave room for others.
fn vanishing(storm: &Storm<'_>) {
    const MOST_KIB: u64 = 24 * 1024;
    let before = memory_kib(storm.process);
    let mut sender = storm.login("sender");
    let message = sender.bytes("32('@/vanishing' 0001 ~ 2000*61)");
    for round in 0..12 {
        let mut receiver = storm.login(&format!("vanishing{round}"));
        receiver.send("82(0001 ~ '@/vanishing' 01)");
        receiver.expect("90(0001 ~ 01)");
        for _ in 0..40 {
            sender.socket.send(&message.repeat(100));
            sender.expect(&"40(0001)".repeat(100));
        }
        receiver.socket.reset();
    }
    let mut receiver = storm.login("receiver");
    receiver.send("82(0001 ~ '@/vanishing' 00)");
    receiver.expect("90(0001 ~ 00)");
    sender.socket.send(&message);
    sender.expect("40(0001)");
    receiver.expect("30('@/vanishing' ~ 2000*61)");
    receiver.leave();
    sender.leave();
    let grown = memory_kib(storm.process).saturating_sub(before);
    assert!(grown < MOST_KIB, "{grown} KiB more");
}

/// Every message before the DISCONNECT arrives, and no will after it.
fn flood_and_leave(storm: &Storm<'_>) {
    const COUNT: usize = 5_000;
    let mut receiver = storm.login("receiver");
    receiver.send("82(0001 ~ '@/flood/#' 00)");
    receiver.expect("90(0001 ~ 00)");
    let mut sender = storm.open("sender");
    sender.send("10('MQTT' L 06 0000 ~ & ~ '@/flood/will' 'will')");
    sender.connack(false);
    let mut flood = sender.bytes("30('@/flood/a' ~ \"message\")").repeat(COUNT);
    flood.extend(sender.bytes("e000 30('@/flood/a' ~ \"too late\")"));
    sender.socket.send(&flood);
    receiver.expect(&"30('@/flood/a' ~ \"message\")".repeat(COUNT));
    assert_eq!(shown(&sender.rest()), "nothing");
    receiver.ping();
    receiver.leave();
}

/// All packet ids of QoS 2 are in use, and what comes under them again is not taken twice.
fn unreleased(storm: &Storm<'_>) {
    take_all_ids(storm, storm.login("unreleased"));
}

/// All of it is on disk, and the last ids cost no more than the first.
fn unreleased_and_kept(storm: &Storm<'_>) {
    take_all_ids(storm, storm.kept("unreleased", false));
    storm.kept("unreleased", true).leave();
    storm.forget("unreleased");
}

fn take_all_ids(storm: &Storm<'_>, mut sender: Peer) {
    const EACH: u16 = 4_095;
    let mut receiver = storm.login("receiver");
    receiver.send("82(0001 ~ '@/again' 00)");
    receiver.expect("90(0001 ~ 00)");
    for first in (1..=u16::MAX - EACH + 1).step_by(EACH.into()) {
        let ids = first..=first + (EACH - 1);
        let packets = |packet: &str| -> String {
            ids.clone()
                .map(|id| packet.replace("ID", &format!("{id:04x}")))
                .collect()
        };
        sender.send(&packets("34('@/nobody' ID ~)"));
        sender.expect(&packets("50(ID [10])"));
    }
    sender.send("3c('@/again' 0001 ~ \"x\") 3c('@/again' fff0 ~ \"x\")");
    sender.expect("50(0001) 50(fff0)");
    sender.send("62(0001) 34('@/again' 0001 ~ \"y\")");
    sender.expect("70(0001) 50(0001)");
    receiver.expect("30('@/again' ~ \"y\")");
    receiver.ping();
    receiver.leave();
    sender.leave();
}

/// Ten aliases for ever new topics of 8,000 bytes.
fn aliases(storm: &Storm<'_>) {
    let mut peer = storm.login("aliases");
    peer.send("82(0001 ~ '+/last/#' 00)");
    peer.expect("90(0001 ~ 00)");
    let long = "x".repeat(7_900);
    for round in 0..60 {
        let packets: String = (1..=10)
            .map(|alias| format!("30('@/{round}/{alias}/{long}' (23 {alias:04x}))"))
            .collect();
        peer.send(&packets);
    }
    peer.send("30('@/last/10' (23 000a)) 30('' (23 000a))");
    peer.expect("30('@/last/10' 00) 30('@/last/10' 00)");
    peer.ping();
    peer.leave();
}

fn topics(storm: &Storm<'_>) {
    const COUNT: usize = 300_000;
    let mut peer = storm.login("topics");
    let before = memory_kib(storm.process);
    let numbers: Vec<_> = (0..COUNT).collect();
    for numbers in numbers.chunks(5_000) {
        let mut bytes = Vec::new();
        for number in numbers {
            let topic = format!("t/{number:06}/x");
            bytes.extend([0x30, (2 + topic.len() + usize::from(storm.is_v5)) as u8, 0]);
            bytes.push(topic.len() as u8);
            bytes.extend(topic.as_bytes());
        }
        peer.socket.send(&bytes);
        peer.ping();
    }
    let grown = memory_kib(storm.process).saturating_sub(before);
    assert!(grown < 4 * 1024, "{grown} KiB more");
    peer.leave();
}

/// As many as may be are retained; one more is refused, and none is forgotten. Filters that match
/// all of them bring all of them, however often; then they are deleted.
fn retained(storm: &Storm<'_>) {
    let mut sender = storm.login("sender");
    let packets = |each: &str, count: usize| -> String {
        (0..count)
            .map(|n| each.replace('N', &n.to_string()))
            .collect()
    };
    sender.send(&packets("33('@/kept/N' 0001 ~ \"kept\")", RETAINED));
    sender.expect(&"40(0001 [10])".repeat(RETAINED));
    sender.send("33('@/kept/more' 0001 ~ \"more\")");
    if storm.is_v5 {
        sender.expect("40(0001 97)");
    } else {
        // Nothing says no in 3.1.1 (§3.3.5), and nothing else is told.
        assert_eq!(shown(&sender.rest()), "nothing");
        sender = storm.login("sender");
    }
    // One that is there may change.
    sender.send("33('@/kept/0' 0001 ~ \"kept\")");
    sender.expect("40(0001 [10])");
    let mut greedy = storm.login("greedy");
    for _ in 0..20 {
        greedy.send("82(0001 ~ '@/kept/#' 01)");
    }
    let mut receiver = storm.login("receiver");
    receiver.send("82(0001 ~ '@/kept/+' 00)");
    receiver.expect("90(0001 ~ 00)");
    for _ in 0..RETAINED {
        let got = receiver.socket.packet().unwrap();
        assert!(got[0] == 0x31 && got.ends_with(b"kept"), "{}", shown(&got));
    }
    receiver.ping();
    receiver.leave();
    greedy.socket.reset();
    sender.send(&packets("33('@/kept/N' 0001 ~)", RETAINED));
    for _ in 0..RETAINED {
        let got = sender.socket.packet().unwrap();
        assert_eq!(got[..4], [0x40, got[1], 0, 1]);
    }
    let mut receiver = storm.login("receiver");
    receiver.send("82(0001 ~ '@/kept/#' 00)");
    receiver.expect("90(0001 ~ 00)");
    receiver.ping();
    receiver.leave();
    sender.leave();
}

/// Sessions that are kept: beyond the limit those without credentials are refused, those that are
/// there go on, and with one gone there is room.
fn sessions(storm: &Storm<'_>) {
    let created = AtomicUsize::new(0);
    storm.many(SESSIONS + 100, |number| {
        let mut peer = storm.open(&format!("session{number}"));
        peer.send("10('MQTT' L 00 0000 [(11 ffffffff)] &)");
        let got = peer.socket.packet().unwrap();
        match (got[0], got[2], got[3]) {
            (0x20, 0, 0) => {
                created.fetch_add(1, Ordering::Relaxed);
                peer.leave();
            }
            (0x20, 0, 3) if !storm.is_v5 => assert!(peer.rest().is_empty()),
            (0x20, 0, 0x97) if storm.is_v5 => assert!(peer.rest().is_empty()),
            _ => panic!("{}", shown(&got)),
        }
    });
    // The well-behaved clients and the module have theirs.
    let created = created.into_inner();
    assert!((SESSIONS - 8..=SESSIONS).contains(&created), "{created}");
    let is_there = |number: &usize| {
        let mut peer = storm.open(&format!("session{number}"));
        peer.send("10('MQTT' L 00 0000 [(11 ffffffff)] &)");
        let got = peer.socket.packet().unwrap();
        got[3] == 0 && got[2] == 1
    };
    let there: Vec<_> = (0..SESSIONS + 100).filter(is_there).collect();
    assert_eq!(there.len(), created);
    storm.many(there.len(), |at| {
        storm.forget(&format!("session{}", there[at]))
    });
    storm.kept("session", false).leave();
    storm.forget("session");
}

/// Clients with large wills vanish at once; each will comes, whole.
fn wills(storm: &Storm<'_>) {
    const COUNT: usize = 100;
    let mut receiver = storm.login("heir");
    receiver.send("82(0001 ~ '@/will/#' 00)");
    receiver.expect("90(0001 ~ 00)");
    let peers: Vec<_> = (0..COUNT)
        .map(|number| {
            let mut peer = storm.open(&format!("will{number}"));
            peer.send("10('MQTT' L 06 0000 ~ & ~ '@/will/&' ea60 60000*77)");
            peer.connack(false);
            peer
        })
        .collect();
    for peer in peers {
        peer.socket.reset();
    }
    let mut from: Vec<_> = (0..COUNT)
        .map(|_| {
            let got = receiver.socket.packet().unwrap();
            assert!(
                got[0] == 0x30 && got.ends_with(&[0x77; 60_000]),
                "{}",
                shown(&got)
            );
            let topic = usize::from(got[5]);
            got[6..6 + topic].to_vec()
        })
        .collect();
    from.sort_unstable();
    from.dedup();
    assert_eq!(from.len(), COUNT);
    receiver.ping();
    receiver.leave();
}

/// Hundreds of connections with one client id: each is let in or was overtaken while it waited, at
/// most one stays, and the next one gets in.
fn takeovers(storm: &Storm<'_>) {
    const COUNT: usize = 400;
    let stay = AtomicUsize::new(0);
    storm.many(COUNT, |_| {
        let mut peer = storm.open("contested");
        peer.send("10('MQTT' L 02 0000 ~ &)");
        match peer.socket.packet() {
            Ok(got) => assert_eq!((got[0], got[2], got[3]), (0x20, 0, 0)),
            // Overtaken before its CONNACK, after which alone DISCONNECT may come (MQTT-3.14.0-1).
            Err(error) => assert_eq!(error, "closed after nothing"),
        }
        peer.send("c000");
        match peer.socket.take(2).as_deref() {
            Ok([0xd0, 0]) => {
                stay.fetch_add(1, Ordering::Relaxed);
            }
            Ok([0xe0, _]) if storm.is_v5 => assert_eq!(peer.rest().first(), Some(&0x8e)),
            Ok(got) => panic!("{}", shown(got)),
            Err(error) => assert_eq!(error, "closed after nothing"),
        }
    });
    assert!(stay.into_inner() > 0);
    let mut last = storm.login("contested");
    last.ping();
    last.leave();
}

/// 500 messages of QoS 1 are acknowledged while their receiver is away, and it gets all of them.
fn absent(storm: &Storm<'_>) {
    const COUNT: usize = 500;
    let mut receiver = storm.kept("absent", false);
    receiver.send("82(0001 ~ '@/absent' 01)");
    receiver.expect("90(0001 ~ 01)");
    receiver.leave();
    let mut sender = storm.login("sender");
    let messages: String = (0..COUNT)
        .map(|n| format!("32('@/absent' 0001 ~ \"{n}\")"))
        .collect();
    sender.send(&messages);
    sender.expect(&"40(0001)".repeat(COUNT));
    sender.leave();
    let mut receiver = storm.kept("absent", true);
    numbered(&mut receiver, COUNT, Duration::ZERO);
    receiver.leave();
    storm.forget("absent");
}

/// The queue of a module's input is full: the sender is told, or held back and then closed, and
/// again when it insists. Once the module has taken its messages there is room.
fn full(storm: &Storm<'_>) {
    let topic = output("c", "out", "");
    let mut sender = storm.module("edge-1/c");
    let messages: String = (0..QUEUE)
        .map(|n| format!("32('{topic}' 0001 ~ \"{n}\")"))
        .collect();
    sender.send(&messages);
    sender.expect(&"40(0001)".repeat(QUEUE));
    for flags in ["32", "3a"] {
        sender.send(&format!("{flags}('{topic}' 0001 ~ \"{QUEUE}\")"));
        if storm.is_v5 {
            sender.expect("40(0001 97)");
        } else {
            // No acknowledgement, and the end after `publish_stall_seconds`.
            let since = Instant::now();
            assert_eq!(shown(&sender.rest()), "nothing");
            assert!(since.elapsed() > Duration::from_millis(900));
            sender = storm.module("edge-1/c");
        }
    }
    let three = Storm {
        is_v5: false,
        ..*storm
    };
    let mut receiver = three.module("edge-1/b");
    receiver.send(&format!("82(0001 '{}' 01)", inputs("b")));
    receiver.expect("90(0001 01)");
    numbered(&mut receiver, QUEUE, Duration::ZERO);
    sender.send(&format!("3a('{topic}' 0001 ~ \"0\")"));
    sender.expect("40(0001)");
    numbered(&mut receiver, 1, Duration::ZERO);
    receiver.leave();
    sender.leave();
}

/// A module with the wrong password tries a hundred times; with the right one it is let in.
pub fn refused(storm: &Storm<'_>) {
    let wrong = storm.hello(
        "edge-1/d",
        Some("SharedAccessSignature sr=x&sig=y&se=9999999999"),
    );
    let connect = || {
        let mut socket = Socket::open(storm.ports.address("tcp")).unwrap();
        socket.send(&wrong);
        socket
    };
    let tries: Vec<_> = (0..100).map(|_| connect()).collect();
    let code = if storm.is_v5 { 0x87 } else { 5 };
    for mut socket in tries {
        let got = socket.packet().unwrap();
        assert_eq!((got[0], got[2], got[3]), (0x20, 0, code));
        assert_eq!(socket.rest(), Ok(Vec::new()));
    }
    storm.module("edge-1/d").leave();
}

/// A connected client that takes its time gets everything, in order.
fn slow(storm: &Storm<'_>) {
    const COUNT: usize = 500;
    let mut receiver = storm.kept("slow", false);
    receiver.send("82(0001 ~ '@/slow' 01)");
    receiver.expect("90(0001 ~ 01)");
    let mut sender = storm.login("sender");
    let messages: String = (0..COUNT)
        .map(|n| format!("32('@/slow' 0001 ~ \"{n}\")"))
        .collect();
    sender.send(&messages);
    sender.expect(&"40(0001)".repeat(COUNT));
    numbered(&mut receiver, COUNT, Duration::from_millis(1));
    receiver.ping();
    receiver.leave();
    sender.leave();
    storm.forget("slow");
}

/// Takes numbered messages of QoS 1 in order, and acknowledges each after a while.
fn numbered(receiver: &mut Peer, count: usize, while_: Duration) {
    for number in 0..count {
        let got = receiver.socket.packet().unwrap();
        assert_eq!(got[0], 0x32);
        let text = number.to_string();
        let id = got.len() - text.len() - 2 - usize::from(receiver.names.is_v5);
        assert!(
            got.ends_with(text.as_bytes()),
            "{} is not {number}",
            shown(&got)
        );
        std::thread::sleep(while_);
        let acknowledgement = [0x40, 2, got[id], got[id + 1]];
        receiver.socket.send(&acknowledgement);
    }
}

/// Half of them leave, half of them vanish.
fn come_and_go(storm: &Storm<'_>) {
    const COUNT: usize = 20_000;
    let before = memory_kib(storm.process);
    let connects = [false, true].map(|is_v5| {
        let names = Names {
            is_v5,
            row: String::new(),
            client: "passer-by".to_owned(),
        };
        move |number: usize| {
            let client = format!("passer-by{}", number % 100);
            let names = Names {
                client,
                ..names.clone()
            };
            notation::bytes("10('MQTT' L 02 0000 ~ &)", &names).unwrap()
        }
    });
    storm.many(COUNT, |number| {
        let mut socket = Socket::open(storm.ports.address("tcp")).unwrap();
        socket.send(&connects[number % 2](number));
        // Another one of the same name may be faster.
        if let Ok(got) = socket.packet() {
            assert_eq!((got[0], got[2], got[3]), (0x20, 0, 0));
        }
        if number % 4 < 2 {
            socket.send(&[0xe0, 0]);
        }
        socket.reset();
    });
    let grown = memory_kib(storm.process).saturating_sub(before);
    assert!(grown < 8 * 1024, "{grown} KiB more");
}

/// Bytes that are the same in every run, before and after CONNECT.
fn noise(storm: &Storm<'_>) {
    let noise = |seed: usize| {
        let mut state = (seed as u32).wrapping_mul(2_654_435_761) | 1;
        let mut next = move || {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            (state >> 11) as u8
        };
        let bytes: Vec<_> = (0..1 + seed * 11 % 3_000).map(|_| next()).collect();
        bytes
    };
    storm.many(400, |seed| {
        let mut peer = match seed % 2 {
            0 => storm.open(&format!("noise{seed}")),
            _ => storm.login(&format!("noise{seed}")),
        };
        peer.socket.send(&noise(seed));
        peer.socket.shut();
        peer.rest();
    });
}

/// Connections that say one byte after the other: each ends when CONNECT is due. A request for a
/// WebSocket may end before that: so many pieces with so little in them are no browser's.
fn drips(storm: &Storm<'_>) {
    const EACH: usize = 40;
    let names = |is_v5| Names {
        is_v5,
        row: String::new(),
        client: String::new(),
    };
    let bytes = |text, is_v5| notation::bytes(text, &names(is_v5)).unwrap();
    let connect = "10('MQTT' L 02 003c ~ 2000 2000*78)";
    let upgrade = "\"GET /mqtt HTTP/1.1\\r\\nHost: localhost\\r\\nX-Padding: \"";
    let hello = "16 0301 3fff 01 003ffb 0303 200*07";
    let kinds = [
        ("tcp", bytes(connect, false), 1_900),
        ("tcp", bytes(connect, true), 1_900),
        ("ws", bytes(upgrade, true), 500),
        ("tls", bytes(hello, true), 1_900),
        ("wss", bytes(hello, true), 1_900),
    ];
    std::thread::scope(|scope| {
        for (transport, bytes, from_ms) in kinds {
            let due = Duration::from_millis(from_ms)..Duration::from_secs(4);
            scope.spawn(move || dribble(storm.ports, transport, (&bytes, EACH), &due));
        }
    });
}

/// Says the bytes one by one on so many connections, and goes on with others until all have ended,
/// each of them when it is due.
fn dribble(ports: &Ports, transport: &str, say: (&[u8], usize), due: &Range<Duration>) {
    let (bytes, count) = say;
    let started = Instant::now();
    let address = ports.address(transport);
    let mut open: Vec<_> = (0..count).map(|_| Socket::open(address).unwrap()).collect();
    for byte in bytes.iter().chain(std::iter::repeat(&b'x')) {
        open.retain_mut(|socket| {
            socket.send(&[*byte]);
            let ended = socket.has_ended();
            let took = started.elapsed();
            assert!(!ended || due.contains(&took), "{transport} after {took:?}");
            !ended
        });
        if open.is_empty() {
            return;
        }
        let took = started.elapsed();
        assert!(took < due.end, "{transport}: {} are open", open.len());
        // The drip.
        std::thread::sleep(Duration::from_millis(20));
    }
}
