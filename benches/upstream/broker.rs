//! mosquitto as the cloud.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const PROGRAMS: [&str; 2] = ["/usr/sbin/mosquitto", "mosquitto"];
const START_LIMIT: Duration = Duration::from_secs(10);

/// A running mosquitto, without persistence and without limits.
pub struct Broker {
    child: Child,
    pub address: SocketAddr,
}

impl Broker {
    pub fn start(dir: &Path, address: SocketAddr) -> Result<Self, String> {
        let path = dir.join(format!("mosquitto-{}.conf", address.port()));
        let config = format!(
            "listener {} 127.0.0.1\nallow_anonymous true\npersistence false\n\
             set_tcp_nodelay true\nmax_inflight_messages 0\nmax_queued_messages 0\n\
             log_dest none\n",
            address.port()
        );
        fs::write(&path, config).map_err(|error| error.to_string())?;
        let child = PROGRAMS.into_iter().find_map(|program| {
            let mut command = Command::new(program);
            command.arg("-c").arg(&path);
            command.stdout(Stdio::null()).stderr(Stdio::null());
            command.spawn().ok()
        });
        let child = child.ok_or("mosquitto is not installed")?;
        let broker = Self { child, address };
        let began = Instant::now();
        while TcpStream::connect(address).is_err() {
            if began.elapsed() > START_LIMIT {
                return Err("mosquitto does not listen".to_owned());
            }
            std::thread::yield_now();
        }
        Ok(broker)
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
