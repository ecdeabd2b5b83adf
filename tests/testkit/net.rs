//! Two hosts on one machine: network namespaces with a cable between them that can be cut and slowed down.

use std::net::{IpAddr, Ipv4Addr};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use super::{command, run};

/// One of the two hosts.
#[derive(Debug)]
pub struct Namespace {
    name: String,
    device: String,
    address: Ipv4Addr,
}

impl Namespace {
    /// The namespace's name, as for `ip netns`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its address on the cable.
    pub fn address(&self) -> IpAddr {
        self.address.into()
    }

    /// A command that runs on this host. Not by `ip netns exec`, which hides mounts made under it.
    pub fn command(&self, program: &str) -> Command {
        let mut nsenter = command("nsenter");
        nsenter.arg(format!("--net=/run/netns/{}", self.name));
        nsenter.arg(super::find(program).unwrap_or_else(|| program.into()));
        nsenter
    }

    /// Runs a function in a thread that is on this host: sockets it makes are, too, and keep being so.
    pub fn enter<T: Send>(&self, f: impl FnOnce() -> T + Send) -> Result<T, String> {
        let path = format!("/run/netns/{}", self.name);
        let ns = std::fs::File::open(&path).map_err(|e| format!("{path}: {e}"))?;
        std::thread::scope(|scope| {
            let thread = scope.spawn(move || {
                use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
                let network = Some(LinkNameSpaceType::Network);
                move_into_link_name_space(std::os::fd::AsFd::as_fd(&ns), network)
                    .map_err(|e| format!("setns {path}: {e}"))?;
                Ok(f())
            });
            thread
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    fn ip(&self, args: &[&str]) -> Result<String, String> {
        let mut all = vec!["-n", self.name.as_str()];
        all.extend(args);
        run("ip", &all)
    }
}

/// Two hosts; both go away on drop (what runs on them does not).
#[derive(Debug)]
pub struct Namespaces {
    /// One host.
    pub a: Namespace,
    /// The other.
    pub b: Namespace,
}

/// Counts the pairs of this process.
static PAIRS: AtomicU32 = AtomicU32::new(0);

impl Namespaces {
    /// Makes both, connected.
    pub fn new() -> Result<Namespaces, String> {
        let (pid, n) = (std::process::id(), PAIRS.fetch_add(1, Ordering::Relaxed));
        let host = |which: char, last: u8| Namespace {
            name: format!("lockstep-{pid}-{n}-{which}"),
            // An interface's name has at most 15 bytes; it is unique within its namespace.
            device: format!("ls{which}"),
            address: Ipv4Addr::new(10, 251, (n % 250) as u8, last),
        };
        // Made before anything can fail, so that drop removes what there is.
        let pair = Namespaces {
            a: host('a', 1),
            b: host('b', 2),
        };
        for ns in [&pair.a, &pair.b] {
            run("ip", &["netns", "add", &ns.name])?;
            ns.ip(&["link", "set", "lo", "up"])?;
        }
        let (a, b) = (&pair.a, &pair.b);
        a.ip(&[
            "link", "add", &a.device, "type", "veth", "peer", "name", &b.device, "netns", &b.name,
        ])?;
        for ns in [a, b] {
            ns.ip(&[
                "address",
                "add",
                &format!("{}/24", ns.address),
                "dev",
                &ns.device,
            ])?;
            ns.ip(&["link", "set", &ns.device, "up"])?;
        }
        Ok(pair)
    }

    /// Cuts the cable: packets vanish, connections are not told.
    pub fn cut(&self) -> Result<(), String> {
        self.a
            .ip(&["link", "set", &self.a.device, "down"])
            .map(drop)
    }

    /// Mends it.
    pub fn mend(&self) -> Result<(), String> {
        self.a.ip(&["link", "set", &self.a.device, "up"]).map(drop)
    }

    /// Lets at most this many bytes per second through, each way.
    pub fn limit(&self, bytes_per_second: u64) -> Result<(), String> {
        for ns in [&self.a, &self.b] {
            let rate = format!("{bytes_per_second}bps");
            let burst = (bytes_per_second / 50).max(64 << 10).to_string();
            run(
                "tc",
                &[
                    "-n", &ns.name, "qdisc", "replace", "dev", &ns.device, "root", "tbf", "rate",
                    &rate, "burst", &burst, "latency", "50ms",
                ],
            )?;
        }
        Ok(())
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        for ns in [&self.a, &self.b] {
            // Also takes the cable with it. One that was never made is no news.
            let _ = run("ip", &["netns", "delete", &ns.name]);
        }
    }
}
