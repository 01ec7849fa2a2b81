use super::*;

/// A proxy that answers every request with `answer`, and gives back the request.
async fn proxy(answer: Vec<u8>) -> (tokio::task::JoinHandle<(TcpStream, String)>, Reach) {
    let (listener, address) = listen().await;
    let proxy = tokio::spawn(async move {
        let (mut tcp, _) = listener.accept().await.unwrap();
        tcp.set_nodelay(true).unwrap();
        let request = read_request(&mut tcp).await;
        // In small pieces, so that heads arrive in parts. The client may be gone before the end.
        for piece in answer.chunks(3) {
            if tcp.write_all(piece).await.is_err() {
                break;
            }
            tokio::task::yield_now().await;
        }
        (tcp, request)
    });
    let mut reach = plain(&[&Server::parse("[2001:db8::1]:8883", 1).unwrap()]);
    reach.proxy = Some(address);
    (proxy, reach)
}

pub(super) async fn read_request(tcp: &mut TcpStream) -> String {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        request.push(tcp.read_u8().await.unwrap());
    }
    String::from_utf8(request).unwrap()
}

#[tokio::test]
async fn what_follows_the_proxys_answer_is_the_servers() {
    for head in [
        "HTTP/1.1 200 Connection established\r\nX: y\r\n\r\n",
        "HTTP/1.0 204 \r\n\r\n",
    ] {
        let (proxy, reach) = proxy(format!("{head}\r\n\r\nhello").into_bytes()).await;
        let mut dialed = dial(&reach).await.unwrap();
        assert_eq!(read_word(&mut dialed, 9).await, "\r\n\r\nhello");
        let proxied = reach.proxy.unwrap();
        let place = format!("[2001:db8::1]:8883 (proxy {proxied}, {proxied})");
        assert_eq!(dialed.server, place);
        let (_tcp, request) = proxy.await.unwrap();
        assert_eq!(
            request,
            "CONNECT [2001:db8::1]:8883 HTTP/1.1\r\nHost: [2001:db8::1]:8883\r\n\r\n"
        );
    }
}

#[tokio::test]
async fn proxies_that_refuse_are_quoted() {
    let endless = format!("HTTP/1.1 200 OK\r\n{}", "X: y\r\n".repeat(2000));
    for (answer, parts) in [
        (
            "HTTP/1.1 407 Proxy Authentication Required\r\nA: b\r\n\r\n",
            &["'HTTP/1.1 407 Proxy", "credentials are not supported"][..],
        ),
        (
            "HTTP/1.1 502 Bad\x1b[31m\r\n\r\n",
            &["502 Bad\\u{1b}", "not reach"],
        ),
        ("HTTP/1.1 500 \r\n\r\n", &["'HTTP/1.1 500'"]),
        ("HTTP/1.1 2000 OK\r\n\r\n", &["no HTTP proxy", "`proxy`"]),
        ("SSH-2.0-server\r\n", &["no HTTP proxy"]),
        (&endless, &["over 8 KiB"]),
    ] {
        let (proxy, reach) = proxy(answer.as_bytes().to_vec()).await;
        fails(&reach, Reason::Proxy, parts).await;
        proxy.await.unwrap();
    }
    let (listener, address) = listen().await;
    let mut reach = plain(&[&server((Ipv4Addr::LOCALHOST, 1).into())]);
    reach.proxy = Some(address);
    let serving = tokio::spawn(async move {
        let (mut tcp, _) = listener.accept().await.unwrap();
        read_request(&mut tcp).await;
    });
    fails(&reach, Reason::Proxy, &["closed the connection"]).await;
    serving.await.unwrap();
}

#[tokio::test]
async fn tls_runs_through_a_proxy() {
    let ca = Ca::new("ca");
    let ((at_server, mut named), (at_proxy, proxy)) = (listen().await, listen().await);
    let address = at_server.local_addr().unwrap();
    // Only the proxy can look this name up.
    "hub.invalid".clone_into(&mut named.host);
    tokio::spawn(greet(at_server, ca.server("hub.invalid"), b"through"));
    tokio::spawn(async move {
        let (mut tcp, _) = at_proxy.accept().await.unwrap();
        read_request(&mut tcp).await;
        let mut beyond = TcpStream::connect(address).await.unwrap();
        tcp.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
        tokio::io::copy_bidirectional(&mut tcp, &mut beyond).await
    });
    let mut reach = secured(&ca, &[&named]);
    reach.proxy = Some(proxy);
    let mut dialed = dial(&reach).await.unwrap();
    assert_eq!(read_word(&mut dialed, 7).await, "through");
}
