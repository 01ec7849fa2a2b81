use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::PrivateKeyDer;
use rustls::server::WebPkiClientVerifier;
use rustls::version::{TLS12, TLS13};
use rustls::{RootCertStore, ServerConfig, SupportedProtocolVersion};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio_rustls::TlsAcceptor;

use super::*;

mod proxy;
mod websocket;

const HEDGE: Duration = Duration::from_millis(HEDGE_MS);

struct Ca {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
}

impl Ca {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap().der().clone();
        Self {
            issuer: Issuer::new(params, key),
            certificate,
        }
    }

    fn roots(&self) -> Arc<RootCertStore> {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.clone()).unwrap();
        Arc::new(roots)
    }

    /// For clients that trust this authority.
    fn client(&self) -> Option<Arc<ClientConfig>> {
        let provider = rustls::crypto::ring::default_provider();
        let builder = ClientConfig::builder_with_provider(provider.into());
        let builder = builder.with_safe_default_protocol_versions().unwrap();
        let builder = builder.with_root_certificates(self.roots());
        Some(Arc::new(builder.with_no_client_auth()))
    }

    /// A server with a certificate for `name`.
    fn server(&self, name: &str) -> TlsAcceptor {
        let names = CertificateParams::new([name.to_owned()]).unwrap();
        self.server_with(names, &[&TLS12, &TLS13], false)
    }

    fn server_with(
        &self,
        params: CertificateParams,
        versions: &[&'static SupportedProtocolVersion],
        asks: bool,
    ) -> TlsAcceptor {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap().der().clone();
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider));
        let builder = builder.with_protocol_versions(versions).unwrap();
        let builder = if asks {
            let verifier = WebPkiClientVerifier::builder_with_provider(self.roots(), provider);
            builder.with_client_cert_verifier(verifier.build().unwrap())
        } else {
            builder.with_no_client_auth()
        };
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let config = builder.with_single_cert(vec![certificate], key).unwrap();
        TlsAcceptor::from(Arc::new(config))
    }
}

async fn listen() -> (TcpListener, Server) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let server = server(listener.local_addr().unwrap());
    (listener, server)
}

fn server(address: SocketAddr) -> Server {
    let (host, port) = (address.ip().to_string(), address.port());
    Server { host, port }
}

/// A port that is taken and refuses, for as long as the socket lives.
fn refusing() -> (TcpSocket, Server) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    let server = server(socket.local_addr().unwrap());
    (socket, server)
}

fn plain(servers: &[&Server]) -> Reach {
    Reach {
        servers: servers.iter().copied().cloned().collect(),
        tls: None,
        websocket: None,
        proxy: None,
    }
}

fn secured(ca: &Ca, servers: &[&Server]) -> Reach {
    let tls = ca.client();
    Reach {
        tls,
        ..plain(servers)
    }
}

/// Serves one connection after the other: a handshake, then `word`.
async fn greet(listener: TcpListener, tls: TlsAcceptor, word: &'static [u8]) {
    loop {
        let (tcp, _) = listener.accept().await.unwrap();
        if let Ok(mut stream) = tls.accept(tcp).await {
            stream.write_all(word).await.unwrap();
            stream.flush().await.unwrap();
        }
    }
}

async fn read_word(dialed: &mut Dialed, length: usize) -> String {
    let mut word = vec![0; length];
    dialed.io.read_exact(&mut word).await.unwrap();
    String::from_utf8(word).unwrap()
}

async fn fails(reach: &Reach, reason: Reason, parts: &[&str]) {
    let failure = dial(reach).await.unwrap_err();
    assert_eq!(failure.reason, reason, "{failure}");
    for part in parts {
        assert!(failure.text.contains(part), "no '{part}' in '{failure}'");
    }
}

#[test]
fn servers_are_read_with_and_without_a_port() {
    for (text, host, port, written) in [
        ("hub.example", "hub.example", 8883, "hub.example:8883"),
        ("hub.example:443", "hub.example", 443, "hub.example:443"),
        ("a_b-c.example:1", "a_b-c.example", 1, "a_b-c.example:1"),
        ("10.0.0.1:65535", "10.0.0.1", 65535, "10.0.0.1:65535"),
        ("[::1]", "::1", 8883, "[::1]:8883"),
        ("[fe80::2]:99", "fe80::2", 99, "[fe80::2]:99"),
    ] {
        let server = Server::parse(text, 8883).unwrap();
        assert_eq!((&*server.host, server.port), (host, port), "{text}");
        assert_eq!(server.to_string(), written);
        assert_eq!(Server::parse(written, 1).unwrap(), server);
    }
}

#[test]
fn bad_servers_are_told_what_to_write() {
    for (text, says) in [
        ("", "the host is missing"),
        (":8883", "the host is missing"),
        ("mqtts://hub.example", "without a scheme"),
        ("hub.example/path", "without a scheme"),
        ("user:secret@hub.example:1", "passwords are not supported"),
        ("http://user:secret@proxy:1", "passwords are not supported"),
        ("::1", "goes into brackets"),
        ("fe80::2:8883", "goes into brackets"),
        ("[::1", "not closed"),
        ("[hub.example]:1", "no IPv6 address"),
        ("[10.0.0.1]:1", "no IPv6 address"),
        ("[::1]8883", "only :port"),
        ("[::1]:", "from 1 to 65535"),
        ("hub.example:", "from 1 to 65535"),
        ("hub.example:0", "from 1 to 65535"),
        ("hub.example:65536", "from 1 to 65535"),
        ("hub.example:+1", "from 1 to 65535"),
        ("hub.example:secret", "from 1 to 65535"),
        ("hub example", "neither a host name"),
        (" hub.example", "neither a host name"),
        ("hub..example", "neither a host name"),
        ("bücher.example", "neither a host name"),
        ("1.2.3:1", "neither a host name"),
        ("hub\r\nX: y:1", "goes into brackets"),
        ("hub\r\nX", "neither a host name"),
    ] {
        let error = Server::parse(text, 8883).unwrap_err();
        assert!(error.contains(says), "{text}: {error}");
        assert!(!error.contains("secret"), "{error}");
    }
}

#[tokio::test]
async fn what_cannot_be_reached_is_told_from_what_cannot_be_found() {
    let (_socket, refused) = refusing();
    let nowhere = Server::parse("nowhere.invalid", 8883).unwrap();
    let address = refused.to_string();
    fails(
        &plain(&[&refused]),
        Reason::Unreachable,
        &[&address, "refused", "is the server running"],
    )
    .await;
    fails(
        &plain(&[&nowhere]),
        Reason::Dns,
        &["nowhere.invalid:8883", "does not resolve", "name server"],
    )
    .await;
    // The more telling failure, whichever comes first.
    let both = plain(&[&nowhere, &refused]);
    fails(&both, Reason::Unreachable, &[&address]).await;
    let mut reach = plain(&[&refused]);
    reach.proxy = Some(nowhere);
    fails(&reach, Reason::Dns, &["proxy nowhere.invalid:8883"]).await;
    fails(&plain(&[]), Reason::Unreachable, &["`servers`"]).await;
}

#[tokio::test]
async fn a_server_that_refuses_makes_way_for_the_next_at_once() {
    let (_socket, refused) = refusing();
    let (listener, second) = listen().await;
    let dialed = dial(&plain(&[&refused, &second])).await.unwrap();
    assert!(dialed.took < HEDGE, "{dialed:?}");
    assert_eq!(dialed.server, second.to_string());
    let (mut tcp, _) = listener.accept().await.unwrap();
    drop(dialed);
    assert_eq!(tcp.read(&mut [0]).await.unwrap(), 0);
}

#[tokio::test]
async fn a_silent_server_gets_company_and_is_dropped_when_the_other_is_done() {
    let ca = Ca::new("ca");
    let ((silent, first), (listener, second)) = (listen().await, listen().await);
    let swallowed = tokio::spawn(async move {
        let (mut tcp, _) = silent.accept().await.unwrap();
        // Up to its end, though nothing was ever answered.
        let read = tcp.read_to_end(&mut Vec::new()).await;
        (silent, read.unwrap())
    });
    tokio::spawn(greet(listener, ca.server("127.0.0.1"), b"second"));
    let mut dialed = dial(&secured(&ca, &[&first, &second])).await.unwrap();
    assert!(
        dialed.took >= HEDGE && dialed.took < 3 * HEDGE,
        "{dialed:?}"
    );
    assert_eq!(read_word(&mut dialed, 6).await, "second");
    let (_, hello_bytes) = swallowed.await.unwrap();
    assert!(hello_bytes > 100, "{hello_bytes}");
}

#[tokio::test]
async fn a_slow_handshake_goes_on_beside_a_younger_one() {
    let ca = Ca::new("ca");
    let (listener, slow) = listen().await;
    let tls = ca.server("127.0.0.1");
    let serving = tokio::spawn(async move {
        let (older, _) = listener.accept().await.unwrap();
        // Only after the hedge; the younger one is left alone.
        let (younger, _) = listener.accept().await.unwrap();
        let mut stream = tls.accept(older).await.unwrap();
        stream.write_all(b"older").await.unwrap();
        (stream, younger)
    });
    let mut dialed = dial(&secured(&ca, &[&slow])).await.unwrap();
    assert!(dialed.took >= HEDGE, "{dialed:?}");
    assert_eq!(read_word(&mut dialed, 5).await, "older");
    serving.await.unwrap();
}

#[tokio::test]
async fn who_turned_us_away_is_not_asked_again() {
    let (ca, other) = (Ca::new("ca"), Ca::new("other"));
    let ((strange, first), (listener, second)) = (listen().await, listen().await);
    let (told, mut asked) = tokio::sync::mpsc::unbounded_channel();
    let strange_tls = other.server("127.0.0.1");
    tokio::spawn(async move {
        loop {
            let (tcp, _) = strange.accept().await.unwrap();
            told.send(()).unwrap();
            strange_tls.accept(tcp).await.unwrap_err();
        }
    });
    let tls = ca.server("127.0.0.1");
    let serving = tokio::spawn(async move {
        let (silent, _) = listener.accept().await.unwrap();
        let (younger, _) = listener.accept().await.unwrap();
        (tls.accept(younger).await.unwrap(), silent)
    });
    let dialed = dial(&secured(&ca, &[&first, &second])).await.unwrap();
    assert_eq!(dialed.server, second.to_string());
    serving.await.unwrap();
    assert_eq!(asked.recv().await, Some(()));
    assert!(
        asked.try_recv().is_err(),
        "the first server was asked again"
    );
}

#[test]
fn attempts_are_bounded_and_the_oldest_stays() {
    let servers: Vec<_> = (1..=10)
        .map(|port| server((Ipv4Addr::LOCALHOST, port).into()))
        .collect();
    let reach = plain(&servers.iter().collect::<Vec<_>>());
    let mut race = Race {
        reach: &reach,
        running: Vec::new(),
        next: 0,
        silent_at: Instant::now(),
        turned_away: vec![8],
        failure: None,
    };
    for _ in 0..11 {
        race.begin();
    }
    let servers: Vec<_> = race.running.iter().map(|one| one.server).collect();
    assert_eq!(servers, [0, 4, 5, 6, 7, 9, 0, 1]);
    assert_eq!(race.next, 12);
}

#[test]
fn silence_to_the_end_is_unreachable_unless_somebody_refused() {
    let reach = plain(&[&server((Ipv4Addr::LOCALHOST, 7).into())]);
    let silent = |failure: Option<(Reason, &str)>| {
        let race = Race {
            reach: &reach,
            running: Vec::new(),
            next: 0,
            silent_at: Instant::now(),
            turned_away: Vec::new(),
            failure: failure.map(|(reason, text)| Failure {
                reason,
                text: text.to_owned(),
            }),
        };
        let Failure { reason, text } = race.timed_out();
        (reason, text)
    };
    let silence = "127.0.0.1:7: no answer within 20 s";
    assert_eq!(silent(None), (Reason::Unreachable, silence.to_owned()));
    for reason in [Reason::Dns, Reason::Unreachable] {
        let expected = (Reason::Unreachable, format!("{silence}; why"));
        assert_eq!(silent(Some((reason, "why"))), expected);
    }
    let expected = (Reason::Tls, "why".to_owned());
    assert_eq!(silent(Some((Reason::Tls, "why"))), expected);
}

#[tokio::test]
async fn certificates_are_checked_and_the_hint_fits() {
    let (ca, other, twin) = (Ca::new("ca"), Ca::new("other"), Ca::new("ca"));
    let host = || CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
    let all: &[_] = &[&TLS12, &TLS13];
    let mut expired = host();
    expired.not_before = rcgen::date_time_ymd(2019, 1, 1);
    expired.not_after = rcgen::date_time_ymd(2020, 2, 3);
    let mut early = host();
    early.not_before = rcgen::date_time_ymd(3000, 4, 5);
    early.not_after = rcgen::date_time_ymd(3001, 1, 1);
    let mut purpose = host();
    purpose.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
    let nameless = CertificateParams::default();
    let (names, bare) = ("hub.example", "127.0.0.1");
    for (tls, parts) in [
        (other.server(bare), vec!["not trusted", "`ca`"]),
        (twin.server(bare), vec!["not trusted", "`ca`"]),
        (ca.server(names), vec!["another name", "(hub.example)"]),
        (ca.server("10.9.8.7"), vec!["another name", "(10.9.8.7)"]),
        (ca.server_with(nameless, all, false), vec!["no name"]),
        (
            ca.server_with(expired, all, false),
            vec!["until 2020-02-03", "clock says 2"],
        ),
        (
            ca.server_with(early, all, false),
            vec!["from 3000-04-05", "clock says 2"],
        ),
        (ca.server_with(purpose, all, false), vec!["serverAuth"]),
        (
            ca.server_with(host(), &[&TLS12], true),
            vec!["`certificate` and `key`"],
        ),
    ] {
        let (listener, server) = listen().await;
        let serving = tokio::spawn(greet(listener, tls, b"no"));
        fails(&secured(&ca, &[&server]), Reason::Tls, &parts).await;
        serving.abort();
    }
}

#[tokio::test]
async fn a_certificate_that_is_asked_for_late_is_told_by_the_first_read() {
    let ca = Ca::new("ca");
    let params = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
    let tls = ca.server_with(params, &[&TLS13], true);
    let (listener, server) = listen().await;
    tokio::spawn(greet(listener, tls, b"no"));
    let mut dialed = dial(&secured(&ca, &[&server])).await.unwrap();
    let error = dialed.io.read(&mut [0]).await.unwrap_err();
    let failure = tls_failure(&dialed.server, &error).unwrap();
    assert_eq!(failure.reason, Reason::Tls);
    assert!(failure.text.contains("set `certificate`"), "{failure}");
    let reset = std::io::ErrorKind::ConnectionReset.into();
    assert_eq!(tls_failure("there", &reset), None);
}

#[tokio::test]
async fn what_speaks_no_tls_is_told_so() {
    let ca = Ca::new("ca");
    for (answer, part) in [
        (&b"HTTP/1.1 400 Bad Request\r\n\r\n"[..], "is no TLS"),
        (b"", "closed the connection"),
    ] {
        let (listener, server) = listen().await;
        let serving = tokio::spawn(async move {
            let (mut tcp, _) = listener.accept().await.unwrap();
            tcp.read_exact(&mut [0; 64]).await.unwrap();
            tcp.write_all(answer).await.unwrap();
        });
        fails(&secured(&ca, &[&server]), Reason::Tls, &[part]).await;
        serving.await.unwrap();
    }
}

#[tokio::test]
async fn names_and_ipv6_addresses_are_hosts() {
    let ca = Ca::new("ca");
    let (listener, mut named) = listen().await;
    "localhost".clone_into(&mut named.host);
    tokio::spawn(greet(listener, ca.server("localhost"), b"name"));
    let mut dialed = dial(&secured(&ca, &[&named])).await.unwrap();
    let (address, port) = (IpAddr::from(Ipv4Addr::LOCALHOST), named.port);
    assert_eq!(dialed.server, format!("{named} ({address}:{port})"));
    assert_eq!(read_word(&mut dialed, 4).await, "name");

    let listener = TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).await.unwrap();
    let ipv6 = server(listener.local_addr().unwrap());
    tokio::spawn(greet(listener, ca.server("::1"), b"ipv6"));
    let mut dialed = dial(&secured(&ca, &[&ipv6])).await.unwrap();
    assert_eq!(dialed.server, format!("[::1]:{}", ipv6.port));
    assert_eq!(read_word(&mut dialed, 4).await, "ipv6");
}
