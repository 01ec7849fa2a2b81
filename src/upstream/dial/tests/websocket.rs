//! WebSocket handshakes with a server that does them, and with servers that do not.

use super::proxy::read_request;
use super::*;

/// Answers one handshake with `answer`; gives back the request.
async fn serve(answer: String) -> (tokio::task::JoinHandle<String>, Reach) {
    let (listener, server) = listen().await;
    let serving = tokio::spawn(async move {
        let (mut tcp, _) = listener.accept().await.unwrap();
        let request = read_request(&mut tcp).await;
        tcp.write_all(answer.as_bytes()).await.unwrap();
        // Until the client has read it and goes.
        let mut rest = Vec::new();
        let _ = tcp.read_to_end(&mut rest).await;
        request
    });
    let mut reach = plain(&[&server]);
    reach.websocket = Some(InWebSocket {
        path: "/$iothub/websocket?a=b".to_owned(),
        message_bytes_max: 1000,
    });
    (serving, reach)
}

#[tokio::test]
async fn bytes_go_in_messages_of_a_websocket() {
    for is_secured in [false, true] {
        let ca = Ca::new("authority");
        let tls = ca.server("127.0.0.1");
        let (listener, server) = listen().await;
        let serving = tokio::spawn(async move {
            let (tcp, _) = listener.accept().await.unwrap();
            if is_secured {
                echo(tls.accept(tcp).await.unwrap()).await;
            } else {
                echo(tcp).await;
            }
        });
        let mut reach = if is_secured {
            secured(&ca, &[&server])
        } else {
            plain(&[&server])
        };
        reach.websocket = Some(InWebSocket {
            path: "/mqtt".to_owned(),
            message_bytes_max: 100_000,
        });
        let mut dialed = dial(&reach).await.unwrap();
        assert_eq!(dialed.server, server.to_string());
        // Longer than one message is made.
        let sent: Vec<_> = (0..40_000_u32).map(|number| number as u8).collect();
        dialed.io.write_all(&sent).await.unwrap();
        dialed.io.flush().await.unwrap();
        let mut got = vec![0; sent.len()];
        dialed.io.read_exact(&mut got).await.unwrap();
        assert!(got == sent);
        drop(dialed);
        serving.await.unwrap();
    }
}

/// The server's half, by the hub's own adapter; sends back what it gets.
async fn echo<S: AsyncRead + AsyncWrite + Send + Unpin + 'static>(socket: S) {
    let socket = crate::server::WebSocket::accept(Box::new(socket), 100_000);
    let (mut from, mut to) = tokio::io::split(socket.await.unwrap());
    let _ = tokio::io::copy(&mut from, &mut to).await;
}

#[tokio::test]
async fn servers_without_a_websocket_are_quoted() {
    let upgrade = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n\
                   Upgrade: websocket\r\n";
    for (answer, parts) in [
        (
            "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n".to_owned(),
            &["404 Not Found", "`path` /$iothub/websocket?a=b"][..],
        ),
        (
            format!("{upgrade}Sec-WebSocket-Accept: x\r\n\r\n"),
            &["no WebSocket handshake", "`transport`"],
        ),
        (
            "SSH-2.0-server\r\n\r\n".to_owned(),
            &["no WebSocket handshake"],
        ),
    ] {
        let (serving, reach) = serve(answer).await;
        fails(&reach, Reason::Refused, parts).await;
        let request = serving.await.unwrap().to_lowercase();
        let host = reach.servers[0].to_string();
        for line in [
            "get /$iothub/websocket?a=b http/1.1\r\n",
            &format!("host: {host}\r\n"),
            "sec-websocket-protocol: mqtt\r\n",
            "sec-websocket-version: 13\r\n",
        ] {
            assert!(request.contains(line), "{line} in {request}");
        }
    }
    let (listener, server) = listen().await;
    let serving = tokio::spawn(async move {
        let (mut tcp, _) = listener.accept().await.unwrap();
        read_request(&mut tcp).await;
    });
    let mut reach = plain(&[&server]);
    reach.websocket = Some(InWebSocket {
        path: "/".to_owned(),
        message_bytes_max: 1000,
    });
    fails(&reach, Reason::Refused, &["closed the connection"]).await;
    serving.await.unwrap();
}
