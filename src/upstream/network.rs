//! Tells when the device's network changed: a link, an address or a route came or went.
//!
//! The kernel multicasts such news on a netlink socket, to anybody. What they say is not read:
//! whether the way is open again, only a try can tell.

use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, socket_with};
use tokio::net::UnixDatagram;
use tokio::sync::watch::{self, Receiver, Sender};
use tokio::time::{Instant, timeout_at};

/// `RTMGRP_LINK`, `_IPV4_IFADDR`, `_IPV4_ROUTE`, `_IPV6_IFADDR` and `_IPV6_ROUTE`.
const GROUPS: u32 = 0x1 | 0x10 | 0x40 | 0x100 | 0x400;
/// News are one change until it has been quiet for so long,
const QUIET: Duration = Duration::from_millis(100);
/// and for so long at most.
const BURST_MAX: Duration = Duration::from_secs(1);

/// Counts changes of the device's network from now on; it never counts where the system does not
/// tell. To be called within a tokio runtime. The task behind it ends with the last receiver.
#[must_use]
pub fn watch() -> Receiver<u64> {
    let (sender, receiver) = watch::channel(0);
    match open() {
        Ok(news) => drop(tokio::spawn(run(news, sender))),
        Err(error) => {
            tracing::debug!(%error, "changes of the network are not told");
            drop(tokio::spawn(async move { sender.closed().await }));
        }
    }
    receiver
}

fn open() -> io::Result<UnixDatagram> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    // No protocol is number 0, NETLINK_ROUTE.
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?;
    bind(&socket, &SocketAddrNetlink::new(0, GROUPS))?;
    pollable(socket)
}

/// There is no type for netlink; receiving is the same on every socket of messages.
fn pollable(socket: OwnedFd) -> io::Result<UnixDatagram> {
    UnixDatagram::from_std(socket.into())
}

/// Feeds the receivers until all have gone.
async fn run(news: UnixDatagram, sender: Sender<u64>) {
    tokio::select! {
        error = count(&news, &sender) => {
            tracing::debug!(%error, "changes of the network are no longer told");
        }
        () = sender.closed() => return,
    }
    // A receiver whose sender has gone would report that again and again.
    sender.closed().await;
}

/// Counts changes; ends with the socket's error.
async fn count(news: &UnixDatagram, sender: &Sender<u64>) -> io::Error {
    loop {
        if let Err(error) = burst(news).await {
            return error;
        }
        sender.send_modify(|changes| *changes += 1);
    }
}

/// Waits for news, and until they have come to rest.
async fn burst(news: &UnixDatagram) -> io::Result<()> {
    receive(news).await?;
    let end = Instant::now() + BURST_MAX;
    while Instant::now() < end {
        let quiet = end.min(Instant::now() + QUIET);
        match timeout_at(quiet, receive(news)).await {
            Ok(received) => received?,
            Err(_) => break,
        }
    }
    Ok(())
}

/// Takes one message, or the word that some were lost.
async fn receive(news: &UnixDatagram) -> io::Result<()> {
    // The rest of a longer message is thrown away with it.
    let mut bytes = [0; 64];
    told(news.recv(&mut bytes).await)
}

/// A message is news, and so is a queue that ran over.
fn told(received: io::Result<usize>) -> io::Result<()> {
    match received {
        Ok(0) => Err(ErrorKind::UnexpectedEof.into()),
        Ok(_) => Ok(()),
        Err(error) if Errno::from_io_error(&error) == Some(Errno::NOBUFS) => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    use super::*;

    /// A stream, because it has an end.
    fn pair() -> (UnixStream, UnixDatagram) {
        let (theirs, ours) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        (theirs, pollable(ours.into()).unwrap())
    }

    #[tokio::test]
    async fn the_kernel_lets_anybody_listen_and_the_task_ends_with_its_receivers() {
        let news = open().unwrap();
        let (sender, receiver) = watch::channel(0);
        let task = tokio::spawn(run(news, sender));
        let other = receiver.clone();
        drop(receiver);
        assert!(!task.is_finished());
        drop(other);
        task.await.unwrap();
    }

    #[tokio::test]
    #[ignore = "changes the network: to be run in a namespace of its own (unshare -rn)"]
    async fn the_kernel_tells_of_links_addresses_and_routes() {
        let mut changes = watch();
        for change in [
            "link set lo up",
            "address add 192.0.2.1/32 dev lo",
            "address add 2001:db8::1/128 dev lo nodad",
            "route add 198.51.100.0/24 dev lo",
            "route add 2001:db8:1::/64 dev lo",
            "link set lo down",
        ] {
            let ip = std::process::Command::new("ip")
                .args(change.split(' '))
                .status();
            assert!(ip.unwrap().success(), "{change}");
            changes.changed().await.unwrap();
        }
        assert_eq!(*changes.borrow(), 6);
    }

    #[tokio::test]
    async fn news_in_a_row_are_one_change() {
        let (mut theirs, news) = pair();
        let (sender, mut changes) = watch::channel(0);
        let since = Instant::now();
        tokio::spawn(run(news, sender));
        // Far more than one takes at a time.
        theirs.write_all(&[1; 4096]).unwrap();
        changes.changed().await.unwrap();
        assert_eq!(*changes.borrow_and_update(), 1);
        assert!(since.elapsed() >= QUIET);
        theirs.write_all(&[1]).unwrap();
        changes.changed().await.unwrap();
        assert_eq!(*changes.borrow_and_update(), 2);
    }

    #[tokio::test]
    async fn news_without_end_are_a_change_all_the_same() {
        let (mut theirs, news) = pair();
        let (sender, mut changes) = watch::channel(0);
        let since = Instant::now();
        tokio::spawn(run(news, sender));
        let mut every = tokio::time::interval(QUIET / 4);
        loop {
            tokio::select! {
                changed = changes.changed() => break changed.unwrap(),
                _ = every.tick() => theirs.write_all(&[1]).unwrap(),
            }
        }
        assert!(since.elapsed() >= BURST_MAX);
        assert!(since.elapsed() < 3 * BURST_MAX);
    }

    #[tokio::test]
    async fn a_source_that_ends_leaves_the_receivers_in_peace() {
        let (theirs, news) = pair();
        let (sender, mut changes) = watch::channel(0);
        let task = tokio::spawn(run(news, sender));
        drop(theirs);
        let changed = tokio::time::timeout(2 * QUIET, changes.changed()).await;
        assert!(changed.is_err(), "neither a change nor an end");
        drop(changes);
        task.await.unwrap();
    }

    #[test]
    fn a_queue_that_ran_over_is_news() {
        let error = |errno: Errno| told(Err(errno.into()));
        assert!(told(Ok(16)).is_ok());
        assert!(error(Errno::NOBUFS).is_ok());
        assert!(error(Errno::BADF).is_err());
    }
}
