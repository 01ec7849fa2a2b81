//! Three connections of clients to one hub, from CONNECT to the last PUBCOMP, beside a model of
//! what each of them has to get: sessions, subscriptions, retained messages, wills, takeover.

use std::collections::{BTreeMap, VecDeque};

use arbitrary::{Arbitrary, Unstructured};
use edgehub::server;

use edgehub::topic::matches;

use super::pipe::{self, Connection, settle};
use super::receiver::{InFlight, Message, Session, Shared, Subscription, choose, shared};
use super::wire::{self, Answer};

const SLOTS: usize = 3;
const CLIENTS: [&str; 3] = ["a", "b", "c"];
const TOPICS: [&str; 7] = [
    "a",
    "a/b",
    "a/b/cccccccc",
    "bbbbbbbbb",
    "/",
    "s/111111111",
    "t/1",
];
/// The shared ones have a QoS of their own, and what they match no other does, so that a message
/// that comes tells why.
const FILTERS: [&str; 12] = [
    "a",
    "a/b",
    "a/#",
    "+/b",
    "+/b/#",
    "+",
    "a/+/cccccccc",
    "bbbbbbbbb/#",
    "/+",
    "a/b/cccccccc",
    "$share/g/s/#",
    "$share/h/t/+",
];
const STEPS_MAX: usize = 120;
/// In flight to a client that wants no less.
const WINDOW: u16 = 6;
/// Beyond it nothing is published: retained messages would have to wait (`AHEAD_MAX`).
const WAITING_MAX: usize = 40;
/// Any reason why a connection is closed.
const ANY_REASON: Answer = Answer::Disconnect(0);

#[derive(Debug, Arbitrary)]
enum Step {
    Connect {
        slot: u8,
        client: u8,
        is_v5: bool,
        is_clean: bool,
        is_kept: bool,
        window: u8,
        acknowledges: bool,
        will: Option<(u8, u8, bool)>,
        /// Topic aliases that it takes.
        aliases: u8,
    },
    Publish {
        slot: u8,
        topic: u8,
        flags: (bool, u8, bool),
        id: u8,
        is_empty: bool,
        alias: Option<u8>,
    },
    Subscribe {
        slot: u8,
        filters: Vec<(u8, u8)>,
        identifier: u8,
    },
    Unsubscribe {
        slot: u8,
        filters: Vec<u8>,
    },
    /// The client acknowledges one of what it got, or refuses it.
    Acknowledge {
        slot: u8,
        which: u8,
        refuses: bool,
    },
    /// The client releases one of its messages of QoS 2.
    Release {
        slot: u8,
        which: u8,
    },
    Ping(u8),
    Disconnect {
        slot: u8,
        with_will: bool,
    },
    Lose(u8),
    /// The client breaks the rules.
    Violate {
        slot: u8,
        how: u8,
    },
}

/// A connection that is in.
#[derive(Debug)]
struct Client {
    number: usize,
    is_v5: bool,
    is_kept: bool,
    window: usize,
    acknowledges: bool,
    will: Option<Message>,
    aliases: BTreeMap<u8, &'static str>,
    /// What the hub's aliases stand for.
    outgoing: wire::Aliases,
}

struct Model {
    hub: server::Shared,
    connections: [Option<Connection>; SLOTS],
    clients: [Option<Client>; SLOTS],
    /// What the hub has to answer on each connection, in this order.
    expected: [VecDeque<Answer>; SLOTS],
    sessions: [Session; CLIENTS.len()],
    retained: BTreeMap<&'static str, Message>,
    /// What one of several has to get.
    pool: Vec<Shared>,
    published: u32,
}

/// Runs one input.
pub fn run(input: &[u8]) {
    let steps: Vec<Step> = super::steps(&mut Unstructured::new(input), STEPS_MAX);
    let mut model = Model {
        hub: pipe::hub(WINDOW),
        connections: Default::default(),
        clients: Default::default(),
        expected: Default::default(),
        sessions: Default::default(),
        retained: BTreeMap::new(),
        pool: Vec::new(),
        published: 0,
    };
    for step in &steps {
        model.step(step);
    }
    // Everybody acknowledges everything: then nothing is left.
    for slot in 0..SLOTS {
        if let Some(client) = &mut model.clients[slot] {
            client.acknowledges = true;
        }
    }
    model.settle();
    for client in model.clients.iter().flatten() {
        let session = &model.sessions[client.number];
        assert!(session.in_flight.is_empty() && session.released.is_empty());
        assert!(session.resumed.is_empty() && session.new.is_empty());
    }
    for slot in 0..SLOTS {
        model.lose(slot);
    }
    assert_eq!(model.hub.hub.connected(), 0);
}

impl Model {
    fn step(&mut self, step: &Step) {
        match step {
            Step::Connect { slot, .. } => self.connect(slot_of(*slot), step),
            Step::Publish { slot, .. } => self.publish(slot_of(*slot), step),
            Step::Subscribe {
                slot,
                filters,
                identifier,
            } => self.subscribe(slot_of(*slot), filters, *identifier),
            Step::Unsubscribe { slot, filters } => self.unsubscribe(slot_of(*slot), filters),
            Step::Acknowledge {
                slot,
                which,
                refuses,
            } => self.acknowledge(slot_of(*slot), usize::from(*which), *refuses),
            Step::Release { slot, which } => self.release(slot_of(*slot), usize::from(*which)),
            Step::Ping(slot) if self.clients[slot_of(*slot)].is_some() => {
                self.expected[slot_of(*slot)].push_back(Answer::PingResp);
                self.send(slot_of(*slot), &wire::PING);
            }
            Step::Ping(_) => {}
            Step::Disconnect { slot, with_will } => self.disconnect(slot_of(*slot), *with_will),
            Step::Lose(slot) => self.lose(slot_of(*slot)),
            Step::Violate { slot, how } => self.violate(slot_of(*slot), *how),
        }
        self.settle();
    }

    fn connect(&mut self, slot: usize, step: &Step) {
        let Step::Connect {
            client,
            is_v5,
            is_clean,
            is_kept,
            window,
            acknowledges,
            will,
            aliases,
            ..
        } = step
        else {
            return;
        };
        if self.clients[slot].is_some() {
            return;
        }
        let number = usize::from(*client) % CLIENTS.len();
        // In 3.1.1 a session that is not clean is kept, and only that.
        let is_kept = if *is_v5 { *is_kept } else { !*is_clean };
        let narrows = *is_v5 && *window > 0;
        let aliases_max = aliases % 4;
        let properties = properties(is_kept, *window, aliases_max);
        let will = will.map(|(topic, qos, retain)| Message {
            payload: self.payload(),
            qos: qos % 3,
            retain,
            ..message(topic, number)
        });
        let will_of = |will: &Message| (will.qos, will.retain);
        let connect = wire::Connect {
            client_id: CLIENTS[number],
            is_clean: *is_clean,
            keep_alive_seconds: 0,
            properties: is_v5.then_some(&properties),
            will: will.as_ref().map(|will| {
                let (qos, retain) = will_of(will);
                (will.topic, &will.payload[..], qos, retain)
            }),
        };
        let bytes = connect.bytes();
        self.take_over(number);
        let session = &mut self.sessions[number];
        let present = session.exists && !is_clean;
        if !present {
            let ended = std::mem::take(session);
            hand_on(&mut self.pool, ended.in_flight);
            loosen(&mut self.pool, number, None);
        }
        session.exists = true;
        let expected = &mut self.expected[slot];
        expected.push_back(Answer::ConnAck { present, reason: 0 });
        expected.extend(session.released.iter().map(|id| Answer::PubRel(*id, 0)));
        session.resumed = session.in_flight.drain(..).collect();
        let narrow = if narrows { u16::from(*window) } else { WINDOW };
        self.clients[slot] = Some(Client {
            number,
            is_v5: *is_v5,
            is_kept,
            window: usize::from(WINDOW.min(narrow)),
            acknowledges: *acknowledges,
            will,
            aliases: BTreeMap::new(),
            outgoing: wire::Aliases::new(aliases_max.into()),
        });
        self.connections[slot] = Some(Connection::new(&self.hub, *is_v5));
        self.send(slot, &bytes);
    }

    /// The connection that a client has goes when another one comes (MQTT-3.1.4-3).
    fn take_over(&mut self, number: usize) {
        for slot in 0..SLOTS {
            match &self.clients[slot] {
                Some(client) if client.number == number => {
                    if client.is_v5 {
                        self.expected[slot].push_back(Answer::Disconnect(0x8e));
                    }
                    self.leave(slot, true);
                }
                _ => {}
            }
        }
    }

    /// A connection ends: its will goes out, and what is kept of its session stays.
    fn leave(&mut self, slot: usize, publishes_will: bool) {
        // The client itself is there until its will has gone out.
        let will = self.clients[slot]
            .as_mut()
            .and_then(|client| client.will.take());
        if let Some(will) = will.filter(|_| publishes_will) {
            self.spread(&will);
        }
        let Some(client) = self.clients[slot].take() else {
            return;
        };
        let session = &mut self.sessions[client.number];
        if !client.is_kept || session.keeps != Some(true) {
            loosen(&mut self.pool, client.number, None);
        }
        for one in &mut self.pool {
            one.is_loose |= one.message.qos == 0 && one.could.contains(&client.number);
        }
        session.in_flight.extend(session.resumed.drain(..));
        if !client.is_kept {
            let ended = std::mem::take(session);
            hand_on(&mut self.pool, ended.in_flight);
            return;
        }
        session.new.clear();
        session.live.clear();
        // What was in memory only is not kept.
        let lost = session.in_flight.extract_if(.., |flight| flight.is_live);
        hand_on(&mut self.pool, lost);
    }

    /// A message reaches everybody who has subscribed; returns how many that are.
    fn spread(&mut self, message: &Message) -> usize {
        if message.retain {
            match message.payload.is_empty() {
                true => drop(self.retained.remove(message.topic)),
                false => drop(self.retained.insert(message.topic, message.clone())),
            }
        }
        let mut receivers = 0;
        for (number, session) in self.sessions.iter_mut().enumerate() {
            let Some(choice) = choose(session, message, number) else {
                continue;
            };
            receivers += 1;
            let is_connected = self
                .clients
                .iter()
                .flatten()
                .any(|one| one.number == number);
            session.queue(message.clone(), choice.qos, is_connected);
        }
        receivers + self.share(message)
    }

    /// One of those who share a subscription gets it, somebody with a connection first.
    fn share(&mut self, message: &Message) -> usize {
        let mut receivers = 0;
        for filter in FILTERS {
            if !shared(filter).is_some_and(|inner| matches(inner, message.topic)) {
                continue;
            }
            let all = self.sessions.iter().enumerate();
            let members = all.filter(|(_, one)| one.subscriptions.contains_key(filter));
            let members: Vec<_> = members.collect();
            receivers += usize::from(!members.is_empty());
            let is_connected = |number: usize| {
                let mut clients = self.clients.iter().flatten();
                clients.any(|one| one.number == number)
            };
            let numbers = members.iter().map(|(number, _)| *number);
            let mut could: Vec<usize> = numbers.filter(|one| is_connected(*one)).collect();
            if could.is_empty() && message.qos > 0 {
                let keepers = members.iter().filter(|(_, one)| one.keeps == Some(true));
                could = keepers.map(|(number, _)| *number).collect();
            }
            if !could.is_empty() {
                let message = Message {
                    filter: Some(filter),
                    ..message.clone()
                };
                self.pool.push(Shared {
                    message,
                    could,
                    is_loose: false,
                });
            }
        }
        receivers
    }

    fn publish(&mut self, slot: usize, step: &Step) {
        let Step::Publish {
            topic,
            flags: (dup, qos, retain),
            id,
            is_empty,
            alias,
            ..
        } = step
        else {
            return;
        };
        let waiting = |session: &Session| session.kept.len() + session.live.len();
        let (qos, id) = (qos % 3, small(*id));
        let Some(client) = &self.clients[slot] else {
            return;
        };
        if self.sessions.iter().map(waiting).max() > Some(WAITING_MAX) {
            return;
        }
        let (number, is_v5) = (client.number, client.is_v5);
        let mut message = Message {
            payload: if *is_empty {
                Vec::new()
            } else {
                self.payload()
            },
            qos,
            retain: *retain,
            ..message(*topic, number)
        };
        let mut topic = message.topic;
        let mut list = Vec::new();
        if let Some(alias) = alias.filter(|_| is_v5) {
            let number = 1 + alias % 3;
            list.extend_from_slice(&[0x23, 0, number]);
            let aliases = &mut self.clients[slot].as_mut().unwrap().aliases;
            match aliases.get(&number) {
                Some(known) if alias > 100 => (topic, message.topic) = ("", *known),
                _ => drop(aliases.insert(number, topic)),
            }
        }
        let properties = is_v5.then_some(&list[..]);
        let flags = (*dup, qos, *retain);
        let bytes = wire::publish(flags, (topic, id), properties, &message.payload);
        let is_taken = self.sessions[number].unreleased.contains(&id);
        let mut reason = 0;
        if qos == 1 && is_v5 && is_taken {
            reason = 0x91;
        } else if qos < 2 || !is_taken {
            let receivers = self.spread(&message);
            reason = if is_v5 && receivers == 0 { 0x10 } else { 0 };
        }
        match qos {
            1 => self.expected[slot].push_back(Answer::PubAck(id, reason)),
            2 => {
                self.sessions[number].unreleased.insert(id);
                self.expected[slot].push_back(Answer::PubRec(id, reason));
            }
            _ => {}
        }
        self.send(slot, &bytes);
    }

    fn subscribe(&mut self, slot: usize, filters: &[(u8, u8)], identifier: u8) {
        let Some(client) = &self.clients[slot] else {
            return;
        };
        let mut asked = Vec::new();
        let session = &mut self.sessions[client.number];
        let identifier = if client.is_v5 { identifier % 6 } else { 0 };
        for (filter, options) in filters.iter().take(3) {
            let filter = FILTERS[usize::from(*filter) % FILTERS.len()];
            let mut options = (options & 0x3c) | (options % 3);
            if !client.is_v5 {
                options &= 3;
            }
            if options >> 4 == 3 {
                options &= 0xf;
            }
            if shared(filter).is_some() {
                options = (1 + u8::from(filter == "$share/h/t/+")) | (options & 8);
            }
            asked.push((filter, options));
            let subscription = Subscription {
                qos: options & 3,
                no_local: options & 4 != 0,
                retain_as_published: options & 8 != 0,
                identifier: u32::from(identifier),
            };
            session.keeps.get_or_insert(client.is_kept);
            let old = session.subscriptions.insert(filter, subscription);
            let brings = options >> 4 == 0 || (options >> 4 == 1 && old.is_none());
            if brings && shared(filter).is_none() {
                session.new.retain(|(one, _)| *one != filter);
                session.new.push_back((filter, options & 3));
            }
        }
        if asked.is_empty() {
            return;
        }
        let codes = asked.iter().map(|(_, options)| options & 3);
        self.expected[slot].push_back(Answer::SubAck(7, codes.collect()));
        let list = [0x0b, identifier];
        let list = if identifier > 0 { &list[..] } else { &[] };
        let bytes = wire::subscribe(7, client.is_v5.then_some(list), &asked);
        self.send(slot, &bytes);
    }

    fn unsubscribe(&mut self, slot: usize, filters: &[u8]) {
        let Some(client) = &self.clients[slot] else {
            return;
        };
        let filters = filters.iter().take(3);
        let filters: Vec<_> = filters
            .map(|filter| FILTERS[usize::from(*filter) % FILTERS.len()])
            .collect();
        if filters.is_empty() {
            return;
        }
        let session = &mut self.sessions[client.number];
        let codes = filters.iter().map(|filter| {
            let existed = session.subscriptions.remove(filter).is_some();
            loosen(&mut self.pool, client.number, Some(filter));
            if existed { 0 } else { 0x11 }
        });
        let codes: Vec<u8> = codes.collect();
        let codes = if client.is_v5 { codes } else { Vec::new() };
        self.expected[slot].push_back(Answer::UnsubAck(8, codes));
        let bytes = wire::unsubscribe(8, client.is_v5, &filters);
        self.send(slot, &bytes);
    }

    /// The client acknowledges one of what it has, or refuses it.
    fn acknowledge(&mut self, slot: usize, which: usize, refuses: bool) {
        let Some(client) = &self.clients[slot] else {
            return;
        };
        let session = &mut self.sessions[client.number];
        let open = session.in_flight.len() + session.released.len();
        if open == 0 {
            return;
        }
        let which = which % open;
        let bytes = if which < session.in_flight.len() {
            let flight = session.in_flight.remove(which);
            match flight.qos {
                1 => wire::ack(4, flight.id, None),
                _ if refuses && client.is_v5 => wire::ack(5, flight.id, Some(0x80)),
                _ => {
                    session.released.insert(flight.id);
                    self.expected[slot].push_back(Answer::PubRel(flight.id, 0));
                    wire::ack(5, flight.id, None)
                }
            }
        } else {
            let id = session.released.iter().nth(which - session.in_flight.len());
            let id = *id.unwrap();
            session.released.remove(&id);
            wire::ack(7, id, None)
        };
        self.send(slot, &bytes);
    }

    fn release(&mut self, slot: usize, which: usize) {
        let Some(client) = &self.clients[slot] else {
            return;
        };
        let unreleased = &mut self.sessions[client.number].unreleased;
        // One that is not known is answered, too (MQTT 5 §3.7.2.1).
        let known = unreleased.iter().nth(which % 4).copied();
        let id = known.unwrap_or(9);
        unreleased.remove(&id);
        self.expected[slot].push_back(Answer::PubComp(id, 0));
        self.send(slot, &wire::ack(6, id, None));
    }

    fn disconnect(&mut self, slot: usize, with_will: bool) {
        let Some(client) = &self.clients[slot] else {
            return;
        };
        let with_will = with_will && client.is_v5;
        let bytes = match with_will {
            true => vec![0xe0, 1, 4],
            false => wire::DISCONNECT.to_vec(),
        };
        self.send(slot, &bytes);
        self.leave(slot, with_will);
    }

    fn lose(&mut self, slot: usize) {
        if let Some(connection) = &self.connections[slot] {
            connection.close();
            self.leave(slot, true);
            self.settle();
        }
    }

    /// Nothing is said in 3.1.1; in MQTT 5, why.
    fn violate(&mut self, slot: usize, how: u8) {
        let Some(client) = &self.clients[slot] else {
            return;
        };
        let is_v5 = client.is_v5;
        let list = is_v5.then_some(&[][..]);
        let bytes = match how % 12 {
            0 => wire::Connect::default().bytes(),
            1 => [&[0x80][..], &wire::subscribe(7, list, &[("a", 0)])[1..]].concat(),
            2 => wire::publish((false, 3, false), ("a", 5), list, b""),
            3 => wire::publish((false, 0, false), ("a/#", 0), list, b""),
            4 => wire::subscribe(0, list, &[("a", 0)]),
            5 => wire::publish((false, 1, false), ("a", 0), list, b""),
            6 => wire::subscribe(7, list, &[("a#b", 0)]),
            7 => wire::subscribe(7, list, &[]),
            8 => vec![0xf0, 0],
            9 => wire::packet(0x30, b"\0\x02\xc3\x28\0"),
            10 => vec![0x90, 3, 0, 1, 0],
            _ => vec![0x30, 0xff, 0xff, 0xff, 0xff, 0x7f],
        };
        self.send(slot, &bytes);
        if is_v5 {
            self.expected[slot].push_back(ANY_REASON);
        }
        self.leave(slot, true);
    }

    fn payload(&mut self) -> Vec<u8> {
        self.published += 1;
        self.published.to_string().into_bytes()
    }

    /// The client sends a packet, now and then in two pieces.
    fn send(&mut self, slot: usize, bytes: &[u8]) {
        let connection = self.connections[slot].as_ref().expect("there is one");
        if self.published % 3 == 2 {
            let (one, other) = bytes.split_at(bytes.len() / 2);
            connection.send(one);
            settle(&mut self.connections);
            self.connections[slot].as_ref().unwrap().send(other);
        } else {
            connection.send(bytes);
        }
    }

    /// The hub works until it rests; then everybody has what they have to. Clients that
    /// acknowledge at once do so, until nothing is open.
    fn settle(&mut self) {
        loop {
            settle(&mut self.connections);
            for slot in 0..SLOTS {
                self.read(slot);
            }
            for slot in 0..SLOTS {
                self.check(slot);
            }
            self.check_shared();
            let open = (0..SLOTS).filter(|slot| {
                let client = self.clients[*slot].as_ref();
                client.is_some_and(|client| {
                    let session = &self.sessions[client.number];
                    let open = session.in_flight.len() + session.released.len();
                    client.acknowledges && open > 0
                })
            });
            let open: Vec<_> = open.collect();
            if open.is_empty() {
                return;
            }
            open.into_iter()
                .for_each(|slot| self.acknowledge(slot, 0, false));
        }
    }

    fn read(&mut self, slot: usize) {
        let Some(connection) = &self.connections[slot] else {
            return;
        };
        let bytes = connection.take();
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let (answer, length) = wire::answer(rest, connection.is_v5).expect("whole packets");
            rest = &rest[length..];
            if let Answer::Publish(mut delivery) = answer {
                let client = self.clients[slot].as_mut();
                let client = client.expect("nothing is sent to whoever has gone");
                client.outgoing.resolve(&mut delivery);
                self.sessions[client.number].new_messages(&self.retained);
                let who = (client.number, client.is_v5);
                self.sessions[client.number].receive(who, &delivery, &mut self.pool);
                continue;
            }
            let expected = self.expected[slot].pop_front();
            match (&expected, &answer) {
                (Some(ANY_REASON), Answer::Disconnect(reason)) => assert!(*reason >= 0x80),
                _ => assert_eq!(Some(&answer), expected.as_ref()),
            }
        }
        assert_eq!(self.expected[slot], [], "not answered");
        assert_eq!(connection.is_over(), self.clients[slot].is_none());
        if connection.is_over() {
            self.connections[slot] = None;
        }
    }

    /// Nobody who could have it has room for what is shared, or it would be there.
    fn check_shared(&self) {
        let has_room = |number: &usize| {
            let mut clients = self.clients.iter().flatten();
            let client = clients.find(|client| client.number == *number);
            let session = &self.sessions[*number];
            let open = session.in_flight.len() + session.released.len();
            client.is_some_and(|client| open < client.window) && session.resumed.is_empty()
        };
        for one in self.pool.iter().filter(|one| !one.is_loose) {
            assert!(!one.could.iter().all(has_room), "not delivered: {one:?}");
        }
    }

    fn check(&mut self, slot: usize) {
        let Some(client) = &self.clients[slot] else {
            return;
        };
        let session = &mut self.sessions[client.number];
        session.new_messages(&self.retained);
        let (kept, live) = (session.kept.len(), session.live.len());
        let mut gone = Vec::new();
        for message in session.kept.iter().chain(&session.live) {
            let is_wanted = choose(session, message, client.number).is_some();
            gone.push(message.may_be_gone || !is_wanted);
        }
        assert_eq!(gone.len(), kept + live);
        let messages = session.kept.iter_mut().chain(&mut session.live);
        for (message, gone) in messages.zip(gone) {
            message.may_be_gone = gone;
        }
        let open = session.in_flight.len() + session.released.len();
        assert!(open <= client.window.max(open.min(session.released.len())));
        if open >= client.window {
            return;
        }
        assert!(
            session.resumed.is_empty(),
            "there is room for {:?}",
            session.resumed
        );
        session.kept.retain(|message| !message.may_be_gone);
        session.live.retain(|message| !message.may_be_gone);
        assert!(session.kept.is_empty(), "not delivered: {:?}", session.kept);
        assert!(session.live.is_empty(), "not delivered: {:?}", session.live);
    }
}

/// Those of CONNECT in MQTT 5; what is 0 is left out.
fn properties(is_kept: bool, receive_max: u8, aliases_max: u8) -> Vec<u8> {
    let mut properties = Vec::new();
    if is_kept {
        properties.extend_from_slice(&[0x11, 0xff, 0xff, 0xff, 0xff]);
    }
    for (number, value) in [(0x21, receive_max), (0x22, aliases_max)] {
        if value > 0 {
            properties.extend_from_slice(&[number, 0, value]);
        }
    }
    properties
}

fn slot_of(slot: u8) -> usize {
    usize::from(slot) % SLOTS
}

/// Few packet ids, so that they meet.
fn small(id: u8) -> u16 {
    1 + u16::from(id % 4)
}

fn message(topic: u8, sender: usize) -> Message {
    Message {
        topic: TOPICS[usize::from(topic) % TOPICS.len()],
        payload: Vec::new(),
        qos: 0,
        retain: false,
        sender,
        filter: None,
        is_retained: false,
        may_be_gone: false,
    }
}

/// What a member has not acknowledged, of QoS 1, may go to another when its session ends.
fn hand_on(pool: &mut Vec<Shared>, flights: impl IntoIterator<Item = InFlight>) {
    let shared = flights.into_iter().filter(|flight| {
        flight.qos == 1
            && flight
                .message
                .filter
                .is_some_and(|one| shared(one).is_some())
    });
    pool.extend(shared.map(|flight| Shared {
        message: flight.message,
        could: Vec::new(),
        is_loose: true,
    }));
}

/// A session has gone, or one of its subscriptions: what it shared may be lost, or another one's.
fn loosen(pool: &mut [Shared], number: usize, filter: Option<&str>) {
    for one in pool {
        let is_it = filter.is_none() || filter == one.message.filter;
        one.is_loose |= is_it && one.could.contains(&number);
    }
}
