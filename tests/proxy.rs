//! Clients behind a proxy: the PROXY protocol from those who are trusted with it, over every
//! transport, and from those who are not.
#![allow(missing_docs, clippy::unwrap_used, clippy::indexing_slicing)]

mod common;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use edgehub::client::{Client, Hello, tls_config};
use edgehub::mqtt::{self, ConnectReturnCode, FromServer};
use futures_core::Stream;
use futures_sink::Sink;
use proxy_header::{ProxiedAddress, ProxyHeader};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_tungstenite::client_async;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::HeaderValue;

use common::{Hub, LIMIT, Setup, TRANSPORTS, hello, wire};

const PROXY: &str = "127.0.0.1";
const STRANGER: &str = "127.0.0.2";
const CONNECT_TIMEOUT_SECONDS: u64 = 2;
const REFUSED: u8 = 5;

/// A listener of each transport, where loopback may be anonymous, all behind one proxy.
fn hub() -> (Setup, Hub) {
    start("")
}

fn start(more: &str) -> (Setup, Hub) {
    let mut setup = Setup::new("{}", &["a"]);
    setup.listeners.clear();
    for transport in TRANSPORTS {
        setup.listeners += &format!(
            "[[listener]]\nbind = \"127.0.0.1:0\"\ntransport = \"{transport}\"\n\
             anonymous = true\ntrusted_proxies = [\"10.0.0.0/8\", \"{PROXY}\"]\n{more}"
        );
    }
    setup.extra = format!("[limits]\nconnect_timeout_seconds = {CONNECT_TIMEOUT_SECONDS}\n");
    let hub = setup.start();
    (setup, hub)
}

fn v1(client: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    header(client).encode_v1(&mut bytes).unwrap();
    bytes
}

fn v2(client: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    header(client).encode_v2(&mut bytes).unwrap();
    bytes
}

fn header(client: &str) -> ProxyHeader<'static> {
    let source = SocketAddr::new(client.parse().unwrap(), 4711);
    let own: IpAddr = match source {
        SocketAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
        SocketAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
    };
    ProxyHeader::with_address(ProxiedAddress::stream(source, SocketAddr::new(own, 8883)))
}

async fn open(hub: &Hub, transport: &str, from: &str) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    let from = SocketAddr::new(from.parse().unwrap(), 0);
    socket.bind(from).unwrap();
    let socket = socket.connect(hub.address(transport)).await.unwrap();
    socket.set_nodelay(true).unwrap();
    socket
}

/// The return code of CONNACK; `None` where the connection ends without one.
async fn login(hub: &Hub, transport: &str, socket: TcpStream, who: &Hello) -> Option<u8> {
    let done = async {
        match transport {
            "tcp" => plain(socket, who).await,
            "tls" => plain(tls(hub, socket).await?, who).await,
            "ws" => web(socket, who).await,
            "wss" => web(tls(hub, socket).await?, who).await,
            other => panic!("{other}"),
        }
    };
    tokio::time::timeout(LIMIT, done).await.unwrap()
}

async fn tls(hub: &Hub, socket: TcpStream) -> Option<tokio_rustls::client::TlsStream<TcpStream>> {
    let ca = std::fs::read(hub.dir.join("certs/ca.pem")).unwrap();
    let connector = TlsConnector::from(tls_config(&ca, None).unwrap());
    let name = ServerName::try_from("localhost").unwrap();
    connector.connect(name, socket).await.ok()
}

async fn plain<S>(mut socket: S, who: &Hello) -> Option<u8>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    socket.write_all(&wire::connect(who)).await.ok()?;
    let mut connack = [0; 4];
    socket.read_exact(&mut connack).await.ok()?;
    Some(code(&connack))
}

async fn web<S: AsyncRead + AsyncWrite + Unpin>(socket: S, who: &Hello) -> Option<u8> {
    let mut request = "ws://localhost/".into_client_request().unwrap();
    let protocol = HeaderValue::from_static("mqtt");
    let headers = request.headers_mut();
    headers.insert("Sec-WebSocket-Protocol", protocol);
    let (mut socket, _) = client_async(request, socket).await.ok()?;
    let mut message = Some(Message::Binary(wire::connect(who).into()));
    std::future::poll_fn(|cx| {
        let mut socket = std::pin::Pin::new(&mut socket);
        if message.is_some() {
            std::task::ready!(socket.as_mut().poll_ready(cx))?;
            socket.as_mut().start_send(message.take().unwrap())?;
        }
        socket.poll_flush(cx)
    })
    .await
    .ok()?;
    let next = std::future::poll_fn(|cx| std::pin::Pin::new(&mut socket).poll_next(cx));
    match next.await?.ok()? {
        Message::Binary(connack) => Some(code(&connack)),
        _ => None,
    }
}

fn code(bytes: &[u8]) -> u8 {
    match mqtt::decode_from_server(&BytesMut::from(bytes), 64).unwrap() {
        Some((FromServer::ConnAck(connack), _)) => connack.code as u8,
        other => panic!("{other:?}"),
    }
}

fn anonymous(client_id: &str) -> Hello {
    Hello {
        client_id: client_id.to_owned(),
        clean_session: true,
        ..Hello::default()
    }
}

fn badly_closed(hub: &Hub) -> f64 {
    hub.metric(
        "edgehub_connections_closed_total",
        &["reason=\"proxy_header\""],
    )
}

#[tokio::test]
async fn the_headers_address_is_the_clients() {
    let (_setup, hub) = hub();
    let right = hub.hello("edge-1/a");
    let wrong = hello("edge-1/a", &[9; 32]);
    let mut number = 0;
    for transport in TRANSPORTS {
        for header in [v1 as fn(&str) -> Vec<u8>, v2] {
            for (who, expected, said) in [(&right, 0, "connected"), (&wrong, REFUSED, "token")] {
                number += 1;
                for client in [
                    format!("203.0.113.{number}"),
                    format!("2001:db8::{number:x}"),
                ] {
                    let mut socket = open(&hub, transport, PROXY).await;
                    socket.write_all(&header(&client)).await.unwrap();
                    let code = login(&hub, transport, socket, who).await;
                    assert_eq!(code, Some(expected), "{transport} {client}");
                    hub.until("the client's own address is in the log", |hub| {
                        let log = hub.log_text();
                        let word = format!("address={client}");
                        log.lines()
                            .any(|line| line.contains(&word) && line.contains(said))
                    });
                }
            }
        }
    }
    assert!(!hub.log_text().contains(&format!("address={PROXY}")));
}

#[tokio::test]
async fn a_header_may_come_in_pieces_or_with_what_follows() {
    let (_setup, hub) = hub();
    let connect = wire::connect(&hub.hello("edge-1/a"));
    for bytes in [
        v1("203.0.113.1"),
        v2("203.0.113.1"),
        v1("2001:db8::1"),
        v2("2001:db8::1"),
    ] {
        let all = [&bytes[..], &connect].concat();
        for piece in [1, 20, all.len()] {
            let mut socket = open(&hub, "tcp", PROXY).await;
            for piece in all.chunks(piece) {
                socket.write_all(piece).await.unwrap();
            }
            let mut connack = [0; 4];
            let read = socket.read_exact(&mut connack);
            tokio::time::timeout(LIMIT, read).await.unwrap().unwrap();
            assert_eq!(code(&connack), 0);
        }
    }
}

#[tokio::test]
async fn only_near_clients_are_anonymous_behind_a_proxy_that_is_near() {
    let unknown = || b"PROXY UNKNOWN\r\n".to_vec();
    let local = || b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0".to_vec();
    let (_setup, strict) = hub();
    let (_setup, open_to_all) = start("allow_remote_anonymous = true\n");
    // Always another client, so that no answer is held back.
    let mut number = 0;
    for transport in TRANSPORTS {
        for (bytes, expected) in [
            (v1("127.0.0.9"), 0),
            (v2("::1"), 0),
            (v2("::ffff:127.0.0.9"), 0),
            (v1("203.0.113.1"), REFUSED),
            (v2("2001:db8::1"), REFUSED),
            (v2("::ffff:203.0.113.1"), REFUSED),
            (unknown(), REFUSED),
            (local(), REFUSED),
        ] {
            for (hub, expected) in [(&strict, expected), (&open_to_all, 0)] {
                let mut socket = open(hub, transport, PROXY).await;
                socket.write_all(&bytes).await.unwrap();
                number += 1;
                let who = anonymous(&format!("x{number}"));
                let code = login(hub, transport, socket, &who).await;
                assert_eq!(code, Some(expected), "{transport} {bytes:?}");
            }
        }
        // Who comes itself has no header, and its own address counts.
        let socket = open(&strict, transport, STRANGER).await;
        let code = login(&strict, transport, socket, &anonymous("x")).await;
        assert_eq!(code, Some(0), "{transport}");
    }
}

#[tokio::test]
async fn without_an_address_the_proxys_own_is_logged() {
    let (_setup, hub) = hub();
    let mut socket = open(&hub, "tls", PROXY).await;
    socket.write_all(b"PROXY UNKNOWN\r\n").await.unwrap();
    let code = login(&hub, "tls", socket, &hub.hello("edge-1/a")).await;
    assert_eq!(code, Some(0));
    hub.until("the proxy's address is in the log", |hub| {
        hub.log_text().contains(&format!("address={PROXY}"))
    });
}

#[tokio::test]
async fn a_header_of_somebody_else_is_a_bad_first_packet() {
    let (_setup, hub) = hub();
    let who = hub.hello("edge-1/a");
    for transport in TRANSPORTS {
        for bytes in [v1("127.0.0.1"), v2("127.0.0.1"), v1("203.0.113.1")] {
            let mut socket = open(&hub, transport, STRANGER).await;
            socket.write_all(&bytes).await.unwrap();
            let code = login(&hub, transport, socket, &who).await;
            assert_eq!(code, None, "{transport} {bytes:?}");
            // A client that claims another address through the proxy gets no further.
            let mut socket = open(&hub, transport, PROXY).await;
            let twice = [v2("203.0.113.7"), bytes].concat();
            socket.write_all(&twice).await.unwrap();
            let code = login(&hub, transport, socket, &who).await;
            assert_eq!(code, None, "{transport} {twice:?}");
        }
    }
    assert!(!hub.log_text().contains("client connected"));
    assert_eq!(badly_closed(&hub), 0.0);
}

#[tokio::test]
async fn a_proxy_without_a_good_header_is_closed_counted_and_logged() {
    let (_setup, hub) = hub();
    let who = hub.hello("edge-1/a");
    let endless = [b"PROXY UNKNOWN ".as_slice(), &[b'x'; 400]].concat();
    let large = [
        b"\r\n\r\n\0\r\nQUIT\n\x21\x11\xff\xff".as_slice(),
        &[1; 400],
    ]
    .concat();
    let mut count = 0.0;
    for transport in TRANSPORTS {
        for bytes in [
            &b""[..],
            b"PROXY TCP4 203.0.113.1\r\n",
            b"\r\n\r\n\0\r\nQUIT\n\x31\0\0\0",
            &endless,
            &large,
        ] {
            let mut socket = open(&hub, transport, PROXY).await;
            // The hub may close while this is still sent.
            let _ = socket.write_all(bytes).await;
            assert_eq!(login(&hub, transport, socket, &who).await, None);
            count += 1.0;
            assert_eq!(badly_closed(&hub), count, "{transport} {bytes:?}");
        }
    }
    let log = hub.log_text();
    for said in ["does not begin", "does not read", "longer than"] {
        let line = log.lines().find(|line| line.contains(said)).unwrap();
        assert!(line.contains("WARN") && line.contains(PROXY), "{line}");
    }
}

#[tokio::test]
async fn half_a_header_is_waited_for_as_long_as_for_connect() {
    let (_setup, hub) = hub();
    for bytes in [&v1("203.0.113.1")[..20], &v2("203.0.113.1")[..20]] {
        let before = badly_closed(&hub);
        let mut socket = open(&hub, "tls", PROXY).await;
        let began = std::time::Instant::now();
        socket.write_all(bytes).await.unwrap();
        let mut rest = Vec::new();
        let end = tokio::time::timeout(LIMIT, socket.read_to_end(&mut rest));
        assert_eq!(end.await.unwrap().unwrap_or(0), 0);
        assert!(began.elapsed() >= Duration::from_secs(CONNECT_TIMEOUT_SECONDS));
        assert_eq!(badly_closed(&hub), before + 1.0);
    }
    // One that ends in between costs nobody time.
    let mut socket = open(&hub, "tcp", PROXY).await;
    socket.write_all(b"PROXY ").await.unwrap();
    drop(socket);
    hub.until("the end of the proxy is noticed", |hub| {
        badly_closed(hub) >= 3.0
    });
}

/// Guessing gets slower for the address that guesses, not for all behind the proxy.
#[tokio::test]
async fn failed_logins_are_held_against_the_headers_address() {
    let (_setup, hub) = hub();
    let hub = Arc::new(hub);
    let wrong = hello("edge-1/a", &[9; 32]);
    let guess = |client: &'static str| {
        let (hub, wrong) = (Arc::clone(&hub), wrong.clone());
        async move {
            let mut socket = open(&hub, "tcp", PROXY).await;
            socket.write_all(&v1(client)).await.unwrap();
            let mut client = Client::over(socket);
            let began = std::time::Instant::now();
            let refused = client.connect(&wrong).await.unwrap_err();
            let code = ConnectReturnCode::NotAuthorized;
            assert!(
                matches!(refused, edgehub::client::ClientError::Refused(c) if c == code),
                "{refused}"
            );
            began.elapsed()
        }
    };
    for _ in 0..3 {
        guess("203.0.113.1").await;
    }
    let slow = tokio::spawn(guess("203.0.113.1"));
    guess("203.0.113.2").await;
    assert!(
        !slow.is_finished(),
        "the other address was answered no sooner"
    );
    assert!(slow.await.unwrap() >= Duration::from_millis(800));
}
