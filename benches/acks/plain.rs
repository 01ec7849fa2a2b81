//! The least that a server can do with these publishers: one thread that reads what the sockets
//! have, writes one block and syncs it, and acknowledges. It checks nothing and keeps nothing.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::thread::{self, JoinHandle};

use bytes::BytesMut;
use edgehub::mqtt::{self, ConnAck, ConnectReturnCode, FromClient, FromServer};
use rustix::event::epoll;

use crate::{BLOCK_BYTES, BLOCKS};

const PACKET_MAX: usize = 1 << 20;
/// The listener, among the numbers of connections.
const LISTENER: u64 = u64::MAX;

struct Connection {
    socket: TcpStream,
    input: Vec<u8>,
    output: BytesMut,
    had_one: bool,
}

/// Serves until all who came have gone.
pub fn serve(file: &Path) -> io::Result<(SocketAddr, JoinHandle<io::Result<()>>)> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    let file = File::options().write(true).open(file)?;
    let thread = thread::Builder::new().name("plain-server".to_owned());
    Ok((address, thread.spawn(move || run(&listener, &file))?))
}

fn run(listener: &TcpListener, file: &File) -> io::Result<()> {
    let poll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let data = epoll::EventData::new_u64;
    epoll::add(&poll, listener, data(LISTENER), epoll::EventFlags::IN)?;
    let mut connections: HashMap<u64, Connection> = HashMap::new();
    let mut buffer = vec![0; 1 << 16];
    let block = [7_u8; BLOCK_BYTES];
    let mut writes = 0;
    loop {
        let mut events: Vec<epoll::Event> = Vec::with_capacity(128);
        epoll::wait(&poll, rustix::buffer::spare_capacity(&mut events), None)?;
        let mut ready = Vec::with_capacity(events.len());
        for event in events {
            let number = event.data.u64();
            if number == LISTENER {
                let (socket, _) = listener.accept()?;
                socket.set_nonblocking(true)?;
                socket.set_nodelay(true)?;
                let number = connections.len() as u64;
                epoll::add(&poll, &socket, data(number), epoll::EventFlags::IN)?;
                let (input, output) = (Vec::new(), BytesMut::new());
                let connection = Connection {
                    socket,
                    input,
                    output,
                    had_one: false,
                };
                connections.insert(number, connection);
            } else if let Some(connection) = connections.get_mut(&number) {
                let read = connection.socket.read(&mut buffer)?;
                if read == 0 {
                    epoll::delete(&poll, &connection.socket)?;
                    connections.remove(&number);
                    if connections.is_empty() {
                        return Ok(());
                    }
                    continue;
                }
                connection.input.extend_from_slice(&buffer[..read]);
                connection.take()?;
                ready.push(number);
            }
        }
        if ready.iter().any(|number| connections[number].had_one) {
            file.write_all_at(&block, writes % BLOCKS * BLOCK_BYTES as u64)?;
            file.sync_data()?;
            writes += 1;
        }
        for number in ready {
            let connection = connections.get_mut(&number).expect("it was there");
            connection.had_one = false;
            connection.socket.write_all(&connection.output)?;
            connection.output.clear();
        }
    }
}

impl Connection {
    /// Prepares the answers to what has come.
    fn take(&mut self) -> io::Result<()> {
        let mut at = 0;
        while let Some((packet, used)) =
            mqtt::decode_from_client(&self.input[at..], PACKET_MAX).map_err(io::Error::other)?
        {
            at += used;
            let answer = match packet {
                FromClient::Connect(_) => FromServer::ConnAck(ConnAck {
                    session_present: false,
                    code: ConnectReturnCode::Accepted,
                }),
                FromClient::Publish(publish) => {
                    self.had_one = true;
                    FromServer::PubAck(publish.packet_id.expect("QoS 1"))
                }
                _ => continue,
            };
            mqtt::encode_from_server(&answer, &mut self.output).map_err(io::Error::other)?;
        }
        self.input.drain(..at);
        Ok(())
    }
}
