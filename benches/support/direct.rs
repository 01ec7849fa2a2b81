//! The store without a hub: one thread that appends to one queue, and takes from it.

use std::path::Path;
use std::sync::Arc;
use std::task::{Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use edgehub::identity::Identity;
use edgehub::mailbox::Mailbox;
use edgehub::message::{Endpoint, Message, Origin, Priority};
use edgehub::store::disk::RealDisk;
use edgehub::store::{Append, Bounds, Copy, Options, Place, Queue, Store, SyncPolicy, wake};

use crate::stop::{self, Failure};

/// Nothing that the store is asked for takes longer.
const STALL: Duration = Duration::from_secs(20);
/// Files that did not change for so long are complete: the keeper looks once a second.
const CALM: Duration = Duration::from_millis(2500);
const SWEEP_EVERY: Duration = Duration::from_secs(1);
/// What a receiver may have in flight, as with the hub.
const ROOM: (usize, u64) = (100, 256 * 1024);
const TTL_MS: u64 = 7_200_000;
/// A frame's header, with one lane.
const HEADER_BYTES: usize = 48;

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.0.unpark();
    }
}

/// A running store and the thread that uses it.
pub struct Direct {
    pub store: Arc<Store>,
    queue: Arc<Queue>,
    copies: [Copy; 1],
    origin: Arc<Origin>,
    bag: Bytes,
    mailbox: Arc<Mailbox>,
    waker: Waker,
    began: Instant,
    swept: Instant,
    taken: u64,
    appended: u64,
    /// How often there was no segment to write to.
    pub held: u64,
}

/// How a store of this size is written here.
pub fn options(max_bytes: u64) -> Options {
    Options {
        sync: SyncPolicy::Always,
        max_syncs_per_second: 0,
        max_bytes,
        min_free_bytes: 0,
        segment_bytes: 8 << 20,
        message_bytes_max: 1 << 20,
        drop_oldest: false,
    }
}

fn wall_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    since.as_millis() as u64
}

impl Direct {
    /// A store in a folder, with its threads.
    pub fn open(dir: &Path, options: Options) -> Result<Self, Failure> {
        let bounds = Bounds {
            max_bytes: options.max_bytes,
            endpoint_max_bytes: 1 << 40,
            endpoint_max_messages: 1 << 40,
            drop_oldest: false,
        };
        let at = |error: std::io::Error| format!("{}: {error}", dir.display());
        let disk = Arc::new(RealDisk::new(dir).map_err(at)?);
        let began = Instant::now();
        let opened = Store::open(disk, options, bounds, wall_ms(), (0, wall_ms()));
        let store = Arc::new(opened.map_err(at)?.0);
        let clock: edgehub::store::NowMs = Arc::new(move || began.elapsed().as_millis() as u64);
        store.start(&clock).map_err(at)?;
        let queue = store.queue(&Endpoint::parse("c0/i0").unwrap());
        let copy = Copy {
            queue: Arc::clone(&queue),
            priority: Priority::DEFAULT,
            ttl_ms: Some(TTL_MS),
        };
        let sender = Identity::parse("edge-1/p0").unwrap();
        Ok(Self {
            store,
            queue,
            copies: [copy],
            origin: Arc::new(Origin::new(sender, Some("o0"))),
            bag: Bytes::from_static(b"%24.on=o0&%24.cdid=edge-1&%24.cmid=p0"),
            mailbox: Arc::default(),
            waker: Waker::from(Arc::new(Unpark(thread::current()))),
            began,
            swept: began,
            taken: 0,
            appended: 0,
            held: 0,
        })
    }

    /// Bytes of a message that nobody can do without.
    pub fn needed_bytes(&self, payload: usize) -> usize {
        HEADER_BYTES + self.origin.text().len() + self.bag.len() + payload
    }

    fn now_ms(&self) -> u64 {
        self.began.elapsed().as_millis() as u64
    }

    /// Appends a message, after waiting where there is no room; its seq.
    pub fn append(&mut self, payload: &Bytes) -> Result<u64, Failure> {
        let now_ms = self.now_ms();
        let message = Arc::new(Message {
            origin: Arc::clone(&self.origin),
            bag: self.bag.clone(),
            payload: payload.clone(),
            received_ms: now_ms,
        });
        let append = Append {
            message: &message,
            copies: &self.copies,
            waiter: &self.mailbox,
            is_patient: true,
            is_last: false,
            now_ms,
        };
        let (mut idle, mut losses) = (Vec::new(), Vec::new());
        loop {
            match self.store.append(&append, &mut idle, &mut losses) {
                Ok(seq) => {
                    wake(&mut idle);
                    self.appended += 1;
                    return Ok(seq);
                }
                Err(full) => {
                    self.held += u64::from(full.place != Place::Writer);
                    self.wait()?;
                }
            }
        }
    }

    /// Waits until something has happened.
    pub fn wait(&self) -> Result<(), Failure> {
        let began = Instant::now();
        while self.mailbox.take(&self.waker) == 0 {
            thread::park_timeout(Duration::from_millis(100));
            stop::check()?;
            if began.elapsed() > STALL {
                return Err(Failure::Hub("the store stands still".to_owned()));
            }
        }
        Ok(())
    }

    /// Asks to be woken when everything up to `seq` is kept.
    pub fn ask(&self, seq: u64) {
        self.store.await_kept(seq, &self.mailbox);
    }

    /// Waits until everything up to `seq` is kept.
    pub fn kept(&mut self, seq: u64) -> Result<(), Failure> {
        while self.store.kept() < seq {
            self.ask(seq);
            self.wait()?;
        }
        self.sweep();
        Ok(())
    }

    /// Appends so many messages, and waits for each `batch` of them.
    pub fn append_all(
        &mut self,
        messages: usize,
        batch: usize,
        payload: &Bytes,
    ) -> Result<(), Failure> {
        for at in 1..=messages {
            let seq = self.append(payload)?;
            if at % batch == 0 || at == messages {
                self.kept(seq)?;
            }
        }
        Ok(())
    }

    /// Appends one message after the other; each is kept, delivered and acknowledged.
    pub fn append_and_take(&mut self, messages: usize, payload: &Bytes) -> Result<(), Failure> {
        for _ in 0..messages {
            let seq = self.append(payload)?;
            self.kept(seq)?;
            self.drain()?;
        }
        Ok(())
    }

    /// Takes and acknowledges everything that was appended.
    pub fn drain(&mut self) -> Result<(), Failure> {
        let (mut out, mut losses) = (Vec::new(), Vec::new());
        while self.taken < self.appended {
            let into = (&mut out, &mut losses);
            let now_ms = self.now_ms();
            self.store
                .fetch(&self.queue, &self.mailbox, ROOM, now_ms, into);
            if out.is_empty() {
                self.wait()?;
            }
            for delivery in out.drain(..) {
                let (priority, seq) = (delivery.priority, delivery.seq);
                self.store.acknowledge(&self.queue, priority, seq);
                self.taken += 1;
            }
            if !losses.is_empty() {
                return Err(Failure::Hub(format!("lost: {losses:?}")));
            }
            self.sweep();
        }
        Ok(())
    }

    /// What the hub does once a second.
    fn sweep(&mut self) {
        if self.swept.elapsed() < SWEEP_EVERY {
            return;
        }
        self.swept = Instant::now();
        let mut losses = Vec::new();
        self.store.sweep((self.now_ms(), wall_ms()), &mut losses);
    }

    /// Waits until the store has no more to do: its files stay as they are.
    pub fn settle(&mut self) -> Result<(), Failure> {
        let began = Instant::now();
        let (mut seen, mut since) = (self.store.disk_usage(), Instant::now());
        while since.elapsed() < CALM {
            stop::sleep(Duration::from_millis(50))?;
            self.sweep();
            let now = self.store.disk_usage();
            if now != seen {
                (seen, since) = (now, Instant::now());
            }
            if began.elapsed() > STALL {
                return Err(Failure::Hub("the files never stay as they are".to_owned()));
            }
        }
        Ok(())
    }

    pub fn close(self) {
        self.store.close(self.now_ms());
    }
}
