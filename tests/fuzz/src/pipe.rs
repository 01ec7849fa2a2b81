//! A hub in memory, and connections to it whose streams are plain buffers: everything happens when
//! it is told to, in the same order each time.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

use edgehub::hub::{Durable, Hub, Peer, Settings};
use edgehub::identity::rules::{ANONYMOUS, ANY_IDENTITY, Grant, Operation, Statement};
use edgehub::identity::{ClientCertificate, Entry, Identity, Registry};
use edgehub::limits::Limits;
use edgehub::manifest::Manifest;
use edgehub::message::Priority;
use edgehub::observe::Metrics;
use edgehub::routes::{Route, RouteTable};
use edgehub::server::{Clock, Shared, serve};
use edgehub::store::journal::Journal;
use edgehub::store::{Bounds, Store};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::runtime::{Builder, Runtime};

/// Turns after which nothing may be left to do.
const TURNS_MAX: usize = 10_000;

/// For the connections' timers, which never fire: nobody drives them.
static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
    let mut builder = Builder::new_current_thread();
    builder.enable_time().build().expect("a runtime")
});

/// The modules of the registry; the hash of each one's certificate is all of this byte.
pub const MODULES: [(&str, u8); 2] = [("edge-1/sensor", 1), ("edge-1/filter", 2)];

/// A hub that lets everybody in and has all plain topics free.
pub fn hub(max_inflight: u16) -> Shared {
    let bounds = Bounds {
        max_bytes: 1 << 30,
        endpoint_max_bytes: 1 << 30,
        endpoint_max_messages: 1 << 20,
        drop_oldest: false,
    };
    let settings = Settings {
        device_id: "edge-1".to_owned(),
        iothub_hostname: "hub.example".to_owned(),
        gateway_hostname: "localhost".to_owned(),
        limits: Limits {
            max_inflight,
            ..Limits::DEFAULT
        },
        bounds,
        log: None,
    };
    let clock = Clock::start();
    let now = clock.now();
    let durable = Durable {
        store: Arc::new(Store::memory(bounds, (now.ms, now.wall_ms))),
        journal: Journal::memory(),
        sessions: BTreeMap::new(),
        lost_messages: 0,
        purged_messages: 0,
    };
    let metrics = Metrics::new("hub.example", "edge-1", "1");
    let mut registry = Registry::default();
    for (module, byte) in MODULES {
        let identity = Identity::parse(module).unwrap();
        let thumbprint = format!("{byte:02x}").repeat(32);
        let entry = Entry::self_signed(identity, &thumbprint).unwrap();
        registry.add(entry).unwrap();
    }
    let hub = Hub::new(settings, registry, durable, metrics);
    hub.set_authorization(vec![Statement {
        identities: vec![ANONYMOUS.to_owned(), ANY_IDENTITY.to_owned()],
        allow: vec![Grant {
            operations: vec![Operation::Publish, Operation::Subscribe],
            resources: vec!["#".to_owned()],
        }],
        deny: Vec::new(),
    }]);
    Shared::new(Arc::new(hub), clock, Arc::default())
}

/// Gives a hub these routes.
pub fn set_routes(hub: &Shared, routes: &[&str]) {
    let text = r#"{"modulesContent": {"$edgeAgent": {}, "$edgeHub": {"properties.desired": {
        "schemaVersion": "1.1", "routes": {},
        "storeAndForwardConfiguration": {"timeToLiveSecs": 7200}}}}}"#;
    let (manifest, _) = Manifest::parse(text, Path::new("manifest.json"));
    let compiled = routes.iter().map(|text| {
        let route = Route::compile(text, text, Priority::DEFAULT, None);
        Arc::new(route.expect(text))
    });
    let table = RouteTable::new(compiled.collect());
    hub.hub.set_routes(table, &manifest.unwrap(), Vec::new());
}

/// What is on its way between a client and the hub.
#[derive(Debug, Default)]
struct Bytes {
    to_hub: VecDeque<u8>,
    from_hub: Vec<u8>,
    /// The client has closed it.
    is_closed: bool,
    /// Something was read or written.
    has_moved: bool,
}

#[derive(Debug, Clone, Default)]
struct Stream(Arc<Mutex<Bytes>>);

impl Stream {
    fn lock(&self) -> MutexGuard<'_, Bytes> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut bytes = self.lock();
        if bytes.to_hub.is_empty() && !bytes.is_closed {
            return Poll::Pending;
        }
        let read = bytes.to_hub.len().min(buf.remaining());
        bytes
            .to_hub
            .drain(..read)
            .for_each(|byte| buf.put_slice(&[byte]));
        bytes.has_moved = true;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        written: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut bytes = self.lock();
        if bytes.is_closed {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        bytes.from_hub.extend_from_slice(written);
        bytes.has_moved = true;
        Poll::Ready(Ok(written.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Notes that somebody was woken.
#[derive(Debug, Default)]
struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Release);
    }
}

/// One connection; `serving` is gone once the hub is done with it.
pub struct Connection {
    stream: Stream,
    serving: Option<Pin<Box<dyn Future<Output = ()>>>>,
    pub is_v5: bool,
}

impl Connection {
    /// One of a client that shows nothing.
    pub fn new(hub: &Shared, is_v5: bool) -> Self {
        Self::of(hub, is_v5, None)
    }

    /// One of a module that shows its certificate: [`MODULES`].
    pub fn of(hub: &Shared, is_v5: bool, module: Option<(&str, u8)>) -> Self {
        let stream = Stream::default();
        let peer = Peer {
            address: [127, 0, 0, 1].into(),
            certificate: module.map(|(id, byte)| ClientCertificate {
                sha1: [byte; 20],
                sha256: [byte; 32],
                common_name: Some(id.to_owned()),
                is_ca: false,
                is_for_client_auth: true,
                not_before: 0,
                not_after: u64::MAX,
                ca_trusted: false,
            }),
            anonymous: module.is_none(),
        };
        let _inside = RUNTIME.enter();
        let (own, shared) = (stream.clone(), hub.clone());
        Self {
            stream,
            serving: Some(Box::pin(async move { serve(own, peer, shared).await })),
            is_v5,
        }
    }

    /// The client sends.
    pub fn send(&self, bytes: &[u8]) {
        self.stream.lock().to_hub.extend(bytes);
    }

    /// The client closes its end.
    pub fn close(&self) {
        self.stream.lock().is_closed = true;
    }

    /// Whether the hub has closed it.
    pub fn is_over(&self) -> bool {
        self.serving.is_none()
    }

    /// What the hub has written since this was last asked.
    pub fn take(&self) -> Vec<u8> {
        std::mem::take(&mut self.stream.lock().from_hub)
    }
}

/// Lets the hub work until nothing is left to do.
pub fn settle(connections: &mut [Option<Connection>]) {
    let _inside = RUNTIME.enter();
    for _ in 0..TURNS_MAX {
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(Arc::clone(&woken));
        let mut cx = Context::from_waker(&waker);
        let mut has_moved = false;
        for connection in connections.iter_mut().flatten() {
            let Some(serving) = &mut connection.serving else {
                continue;
            };
            if serving.as_mut().poll(&mut cx).is_ready() {
                connection.serving = None;
                has_moved = true;
            }
            has_moved |= std::mem::take(&mut connection.stream.lock().has_moved);
        }
        if !has_moved && !woken.0.load(Ordering::Acquire) {
            return;
        }
    }
    panic!("the hub does not come to rest");
}
