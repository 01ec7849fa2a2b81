//! Any bytes on a connection of a module or of a client without credentials, behind a CONNECT or
//! without one: the hub writes whole packets, nobody gets what is not theirs, and nothing is left.
//!
//! An input is a byte of flags, the size of the pieces that the bytes come in, and the bytes.

use edgehub::server::Shared;

use super::pipe::{self, Connection, MODULES, settle};
use super::wire::{self, Aliases, Answer};

const INPUT_BYTES_MAX: usize = 8192;
const WINDOW: u16 = 10;
const ROUTES: [&str; 3] = [
    "FROM /messages/modules/sensor/* INTO BrokeredEndpoint(\"/modules/filter/inputs/in\")",
    "FROM /topics/up/# INTO BrokeredEndpoint(\"/modules/filter/inputs/in\")",
    "FROM /messages/modules/sensor/outputs/topic INTO Topic(\"out/{output}/{property:line}\")",
];
/// Where its messages come to the module that the routes lead to.
const INPUT: &str = "devices/edge-1/modules/filter/inputs/in/";

/// Runs one input.
pub fn run(input: &[u8]) {
    let [flags, size, bytes @ ..] = &input[..input.len().min(INPUT_BYTES_MAX)] else {
        return;
    };
    let flag = |bit: u8| flags >> bit & 1 == 1;
    let (is_v5, is_module, says_connect, is_kept) = (flag(0), flag(1), flag(2), flag(3));
    let hub = pipe::hub(WINDOW);
    pipe::set_routes(&hub, &ROUTES);
    let mut connections = [
        Some(of_module(&hub, 1)),
        Some(Connection::new(&hub, true)),
        None,
    ];
    let client = connections[1].as_ref().unwrap();
    client.send(&connect("observer", true, false));
    client.send(&wire::subscribe(
        1,
        Some(&[]),
        &[("#", 2), ("$share/g/#", 1)],
    ));
    settle(&mut connections);
    check(&connections, is_module);
    for _ in 0..2 {
        connections[2] = Some(match is_module {
            true => Connection::of(&hub, is_v5, Some(MODULES[0])),
            false => Connection::new(&hub, is_v5),
        });
        let id = if is_module { MODULES[0].0 } else { "client" };
        if says_connect {
            connections[2]
                .as_ref()
                .unwrap()
                .send(&connect(id, is_v5, is_kept));
            settle(&mut connections);
        }
        // Once more, and what was kept is there.
        for piece in bytes.chunks(usize::from(*size).max(1)) {
            connections[2].as_ref().unwrap().send(piece);
            settle(&mut connections);
            check(&connections, is_module);
            if connections[2].as_ref().unwrap().is_over() {
                break;
            }
        }
        connections[2].as_ref().unwrap().close();
        settle(&mut connections);
        check(&connections, is_module);
        // A login that failed before is answered late, and nothing is read meanwhile.
        let last = connections[2].take().unwrap();
        assert!(last.is_over() || !says_connect, "the client has gone");
    }
    for connection in connections.iter().flatten() {
        assert!(!connection.is_over(), "others go on");
        connection.close();
    }
    settle(&mut connections);
    assert_eq!(hub.hub.connected(), 0);
}

/// The module that messages are routed to.
fn of_module(hub: &Shared, at: usize) -> Connection {
    let (id, _) = MODULES[at];
    let connection = Connection::of(hub, true, Some(MODULES[at]));
    connection.send(&connect(id, true, true));
    let filter = format!("devices/{}/#", id.replace('/', "/modules/"));
    connection.send(&wire::subscribe(1, Some(&[]), &[(&filter, 1)]));
    connection
}

fn connect(id: &str, is_v5: bool, is_kept: bool) -> Vec<u8> {
    let kept = [0x11, 0xff, 0xff, 0xff, 0xff];
    let list = if is_kept { &kept[..] } else { &[] };
    let connect = wire::Connect {
        client_id: id,
        is_clean: !is_kept,
        properties: is_v5.then_some(list),
        ..wire::Connect::default()
    };
    connect.bytes()
}

/// What the hub has written is whole packets, and for the one who gets it.
fn check(connections: &[Option<Connection>; 3], is_module: bool) {
    for (at, connection) in connections.iter().enumerate() {
        let Some(connection) = connection else {
            continue;
        };
        let bytes = connection.take();
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            // Whoever has not said yet which version it speaks is answered in 3.1.1.
            let is_v5 = connection.is_v5 && !is_connack_v311(rest);
            let (answer, length) = wire::answer(rest, is_v5).expect("whole packets");
            rest = &rest[length..];
            let Answer::Publish(mut delivery) = answer else {
                continue;
            };
            if at == 2 {
                continue;
            }
            Aliases::default().resolve(&mut delivery);
            let topic = &delivery.topic;
            if at == 1 {
                assert!(
                    !topic.starts_with('$') && !topic.starts_with("devices/"),
                    "{topic}"
                );
                continue;
            }
            let bag = topic.strip_prefix(INPUT).expect("its own input");
            // Who sent it is the connection, whatever the bag said.
            let sender = match is_module {
                true => "%24.cdid=edge-1&%24.cmid=sensor",
                false => "",
            };
            assert!(bag.ends_with(sender), "{topic}");
        }
    }
}

/// The answer to a CONNECT that is refused before its version counts.
fn is_connack_v311(bytes: &[u8]) -> bool {
    bytes.starts_with(&[0x20, 2])
}
