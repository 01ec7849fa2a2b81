//! The load generator: one thread, a publisher and a subscriber, a window of unacknowledged
//! messages, many packets per read and per write.

use std::fmt;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::common::cpu_time;
use bytes::{Buf, BytesMut};
use edgehub::client::Hello;
use edgehub::mqtt::{
    self, Connect, FromClient, FromServer, PacketId, PublishParts, QoS, decode_from_server,
};
use rustix::event::{PollFd, PollFlags, poll};

const PACKET_MAX: usize = 1 << 20;
const STALL: Duration = Duration::from_secs(10);

/// What to send.
pub struct Load {
    pub messages: usize,
    pub bytes: usize,
    pub window: usize,
}

/// What one round showed.
#[derive(Clone, Copy)]
pub struct Measured {
    pub per_second: f64,
    /// CPU time of the server per message, in microseconds.
    pub cpu_us: f64,
}

impl fmt::Display for Measured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { per_second, cpu_us } = self;
        write!(
            f,
            "{per_second:>9.0} messages/s  {cpu_us:>6.2} us CPU per message"
        )
    }
}

/// A connection that is written and read by hand.
pub struct Connection {
    socket: TcpStream,
    input: BytesMut,
    output: BytesMut,
}

impl Connection {
    pub fn login(socket: TcpStream, hello: &Hello) -> Self {
        socket.set_nodelay(true).unwrap();
        let mut connection = Self {
            socket,
            input: BytesMut::with_capacity(1 << 18),
            output: BytesMut::with_capacity(1 << 18),
        };
        let connect = FromClient::Connect(Connect {
            clean_session: true,
            keep_alive_seconds: 0,
            client_id: &hello.client_id,
            will: None,
            username: hello.username.as_deref(),
            password: hello.password.as_deref().map(str::as_bytes),
        });
        mqtt::encode_from_client(&connect, &mut connection.output).unwrap();
        connection.exchange();
        connection
    }

    pub fn subscribe(&mut self, filter: &str) {
        let id = PacketId::new(1).unwrap();
        let filters = std::iter::once((filter, QoS::AtLeastOnce));
        mqtt::encode_subscribe(&mut self.output, id, filters).unwrap();
        self.exchange();
    }

    /// Writes what waits and reads one packet.
    fn exchange(&mut self) {
        self.socket.write_all(&self.output).unwrap();
        self.output.clear();
        loop {
            if let Some((_, used)) = decode_from_server(&self.input, PACKET_MAX).unwrap() {
                self.input.advance(used);
                return;
            }
            self.read();
        }
    }

    /// Reads once; false if nothing is there.
    fn read(&mut self) -> bool {
        let mut buffer = [0; 1 << 16];
        match self.socket.read(&mut buffer) {
            Ok(0) => panic!("the server closed the connection"),
            Ok(read) => {
                self.input.extend_from_slice(&buffer[..read]);
                true
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => false,
            Err(error) => panic!("{error}"),
        }
    }

    fn write(&mut self) {
        while !self.output.is_empty() {
            match self.socket.write(&self.output) {
                Ok(written) => self.output.advance(written),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) => panic!("{error}"),
            }
        }
    }
}

impl Load {
    /// Sends all messages and waits until all have arrived; counts what the server used.
    pub fn run(
        &self,
        mut publisher: Connection,
        mut subscriber: Connection,
        topic: &str,
        server: u32,
    ) -> Measured {
        publisher.socket.set_nonblocking(true).unwrap();
        subscriber.socket.set_nonblocking(true).unwrap();
        let payload = vec![b'x'; self.bytes];
        let (mut sent, mut acknowledged, mut received) = (0_usize, 0_usize, 0_usize);
        let cpu = cpu_time(server);
        let started = Instant::now();
        let mut progress = Instant::now();
        while received < self.messages || acknowledged < self.messages {
            while sent < self.messages && sent - acknowledged < self.window {
                publish(&mut publisher.output, topic, sent, &payload);
                sent += 1;
            }
            publisher.write();
            let before = (acknowledged, received);
            if publisher.read() {
                acknowledged += acks(&mut publisher.input);
            }
            if subscriber.read() {
                received += deliveries(&mut subscriber);
                subscriber.write();
            }
            if before != (acknowledged, received) {
                progress = Instant::now();
            } else {
                wait(&publisher, &subscriber);
                assert!(
                    progress.elapsed() < STALL,
                    "stalled at {sent}/{acknowledged}/{received}"
                );
            }
        }
        let elapsed = started.elapsed().as_secs_f64();
        let cpu = (cpu_time(server) - cpu).as_secs_f64();
        Measured {
            per_second: self.messages as f64 / elapsed,
            cpu_us: cpu * 1e6 / self.messages as f64,
        }
    }
}

fn publish(out: &mut BytesMut, topic: &str, number: usize, payload: &[u8]) {
    let id = PacketId::new((number % 65_535) as u16 + 1);
    let head = PublishParts {
        dup: false,
        qos: QoS::AtLeastOnce,
        retain: false,
        topic_prefix: topic.as_bytes(),
        topic_suffix: b"",
        packet_id: id,
        properties: None,
        payload_len: payload.len(),
    };
    mqtt::encode_publish_head(out, head).unwrap();
    out.extend_from_slice(payload);
}

fn acks(input: &mut BytesMut) -> usize {
    let mut count = 0;
    while let Some((packet, used)) = decode_from_server(input, PACKET_MAX).unwrap() {
        assert!(matches!(packet, FromServer::PubAck(_)), "{packet:?}");
        input.advance(used);
        count += 1;
    }
    count
}

fn deliveries(subscriber: &mut Connection) -> usize {
    let mut count = 0;
    while let Some((packet, used)) = decode_from_server(&subscriber.input, PACKET_MAX).unwrap() {
        let FromServer::Publish(publish) = packet else {
            panic!("{packet:?}");
        };
        mqtt::encode_puback(&mut subscriber.output, publish.packet_id.unwrap());
        subscriber.input.advance(used);
        count += 1;
    }
    count
}

fn wait(publisher: &Connection, subscriber: &Connection) {
    let flags = |connection: &Connection| {
        if connection.output.is_empty() {
            PollFlags::IN
        } else {
            PollFlags::IN | PollFlags::OUT
        }
    };
    let mut fds = [
        PollFd::new(&publisher.socket, flags(publisher)),
        PollFd::new(&subscriber.socket, flags(subscriber)),
    ];
    let second = rustix::time::Timespec {
        tv_sec: 1,
        tv_nsec: 0,
    };
    let _ = poll(&mut fds, Some(&second));
}

/// Keeps another process, with all its threads, on one core.
pub fn move_to_core(pid: u32, core: usize) {
    let moved = Command::new("taskset")
        .args(["-a", "-p", "-c", &core.to_string(), &pid.to_string()])
        .stdout(Stdio::null())
        .status()
        .unwrap();
    assert!(moved.success());
}

/// Keeps this process on one core.
pub fn pin_to_core(core: usize) {
    let mut set = rustix::thread::CpuSet::new();
    set.set(core);
    rustix::thread::sched_setaffinity(None, &set).unwrap();
}

/// Sends as fast as the window allows until told to stop; returns how many were acknowledged.
/// A receiver that is given reads and acknowledges, any other does not.
pub fn flood(
    mut publisher: Connection,
    mut receiver: Option<&mut Connection>,
    topic: &str,
    stop: &AtomicBool,
) -> usize {
    const WINDOW: usize = 100;
    publisher.socket.set_nonblocking(true).unwrap();
    if let Some(receiver) = &receiver {
        receiver.socket.set_nonblocking(true).unwrap();
    }
    let payload = [b'x'; 256];
    let (mut sent, mut acknowledged) = (0, 0);
    while !stop.load(Ordering::Acquire) {
        while sent - acknowledged < WINDOW {
            publish(&mut publisher.output, topic, sent, &payload);
            sent += 1;
        }
        publisher.write();
        let mut idle = true;
        if publisher.read() {
            acknowledged += acks(&mut publisher.input);
            idle = false;
        }
        if let Some(receiver) = &mut receiver
            && receiver.read()
        {
            deliveries(receiver);
            receiver.write();
            idle = false;
        }
        if idle {
            let mut fds = vec![PollFd::new(&publisher.socket, PollFlags::IN)];
            if let Some(receiver) = &receiver {
                fds.push(PollFd::new(&receiver.socket, PollFlags::IN));
            }
            let moment = rustix::time::Timespec {
                tv_sec: 0,
                tv_nsec: 50_000_000,
            };
            let _ = poll(&mut fds, Some(&moment));
        }
    }
    acknowledged
}
