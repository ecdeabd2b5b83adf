//! What is measured: the kernel's ext4 on a loop device, and volumes with and without a mirror.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use crate::cluster::{Cluster, VOLUME, sync_dir};
use crate::daemon::Node;
use crate::table::{ALONE, EXT4};
use crate::testkit::{LoopMount, run, wait_until};

/// What the work is done on.
pub trait System {
    fn name(&self) -> &'static str;
    fn dir(&self) -> PathBuf;
    /// Makes everything written durable.
    fn sync(&self) {
        rustix::fs::syncfs(File::open(self.dir()).unwrap()).unwrap();
        sync_dir(&self.dir());
    }
    /// Waits until nothing of earlier work is under way.
    fn settle(&self) {
        self.sync();
    }
    /// Forgets every cache.
    fn cool(&mut self);
    /// Counters of work done, where there are some: (name, value).
    fn counters(&self) -> Vec<(&'static str, f64)> {
        Vec::new()
    }
}

pub fn drop_caches() {
    std::fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
}

pub struct Kernel {
    pub image: PathBuf,
    pub mount: Option<LoopMount>,
}

impl System for Kernel {
    fn name(&self) -> &'static str {
        EXT4
    }
    fn dir(&self) -> PathBuf {
        self.mount.as_ref().unwrap().dir().to_owned()
    }
    fn cool(&mut self) {
        self.mount.take().unwrap().unmount().unwrap();
        drop_caches();
        self.mount = Some(LoopMount::new(&self.image).unwrap());
    }
}

pub struct Lockstep {
    pub name: &'static str,
    /// Dropped before the cluster removes its directory.
    pub elsewhere: Option<Elsewhere>,
    pub cluster: Cluster,
    pub one_cpu: bool,
}

impl System for Lockstep {
    fn name(&self) -> &'static str {
        self.name
    }
    fn dir(&self) -> PathBuf {
        self.cluster.alpha.mnt()
    }
    fn settle(&self) {
        self.sync();
        if self.name != ALONE {
            self.cluster.insync();
            acknowledged(&self.cluster);
        }
    }
    fn cool(&mut self) {
        self.cluster.alpha.stop();
        drop_caches();
        self.cluster.alpha.start();
        place(&self.cluster.alpha, self.one_cpu);
        self.cluster
            .alpha
            .wait_mounted(VOLUME, Duration::from_secs(30));
        if self.name != ALONE {
            self.cluster.insync();
        }
    }
    fn counters(&self) -> Vec<(&'static str, f64)> {
        let text = self.cluster.alpha.ok(&["volume", "show", VOLUME, "--json"]);
        let shown: Value = serde_json::from_str(&text).unwrap();
        let mut found = Vec::new();
        for name in ["requests", "flushes", "bytes_written"] {
            let value = &shown["counters"][name];
            if let Some(value) = value.as_f64() {
                found.push((name, value));
            }
        }
        let disk = io_of(&self.cluster.alpha);
        found.push(("bytes written by the daemon", disk));
        found
    }
}

/// The mirror's store somewhere else, until dropped: on a disk of its own, or in memory.
pub struct Elsewhere {
    store: String,
}

impl Elsewhere {
    pub fn new(cluster: &Cluster, dir: &Path) -> Elsewhere {
        let store = cluster.beta.store();
        std::fs::create_dir_all(&store).unwrap();
        let store = store.to_str().unwrap().to_owned();
        run("mount", &["--bind", dir.to_str().unwrap(), &store]).unwrap();
        Elsewhere { store }
    }
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        // The daemon may still have files open there.
        let _ = run("umount", &["--lazy", &self.store]);
    }
}

/// Waits until the mirror has everything that is committed.
pub fn acknowledged(cluster: &Cluster) {
    let there = wait_until(Duration::from_secs(60), || {
        let mirror = cluster.alpha.mirror(VOLUME, "beta");
        mirror["txid_acked"] == mirror["txid_committed"]
    });
    assert!(there, "not equal after a minute");
}

/// Bytes that the daemon made the disk write.
pub fn io_of(node: &Node) -> f64 {
    let path = format!("/proc/{}/io", node.pid().as_raw_nonzero());
    let text = std::fs::read_to_string(path).unwrap();
    let line = text.lines().find(|l| l.starts_with("wchar:")).unwrap();
    line["wchar:".len()..].trim().parse().unwrap()
}

/// A field of `/proc/PID/status`, bytes.
pub fn memory(node: &Node, field: &str) -> f64 {
    let path = format!("/proc/{}/status", node.pid().as_raw_nonzero());
    let text = std::fs::read_to_string(path).unwrap();
    let line = text.lines().find(|l| l.starts_with(field)).unwrap();
    let kib: f64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kib * 1024.0
}

/// CPU seconds that the daemon has used.
pub fn cpu_seconds(node: &Node) -> f64 {
    let path = format!("/proc/{}/stat", node.pid().as_raw_nonzero());
    let text = std::fs::read_to_string(path).unwrap();
    // Behind the name, which may hold anything: state is field 3, utime 14, stime 15; in hundredths.
    let (_, rest) = text.rsplit_once(')').unwrap();
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let ticks = |n: usize| fields[n - 3].parse::<f64>().unwrap();
    (ticks(14) + ticks(15)) / 100.0
}

/// Pins a daemon to the first CPU, if asked to.
pub fn place(node: &Node, one_cpu: bool) {
    if one_cpu {
        let pid = node.pid().as_raw_nonzero().to_string();
        run("taskset", &["-a", "-c", "-p", "0", &pid]).unwrap();
    }
}

/// Bytes that left both ends of the cable.
pub fn wire_bytes(cluster: &Cluster) -> f64 {
    let hosts = cluster.hosts.as_ref().unwrap();
    let mut sum = 0.0;
    for (host, device) in [(&hosts.a, "lsa"), (&hosts.b, "lsb")] {
        let text = run(
            "ip",
            &["-n", host.name(), "-s", "-j", "link", "show", device],
        )
        .unwrap();
        let shown: Value = serde_json::from_str(&text).unwrap();
        sum += shown[0]["stats64"]["tx"]["bytes"].as_f64().unwrap();
    }
    sum
}
