//! Two nodes that know each other. Everything goes away when the cluster is dropped, also by a panic.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::daemon::{Node, is_mount, mounts_below};
use crate::testkit::{Compare, Namespaces, Tree, tree_digest, wait_until};

/// The volume that most tests use.
pub const VOLUME: &str = "data";

/// A first copy or a repair of a test's volume takes less, s.
pub const COPY_SECONDS: u32 = 120;

/// What happens on the master shows on the mirror within this: the promise is a second, the rest is for machines that
/// run other tests meanwhile.
pub const VISIBLE_WITHIN: Duration = Duration::from_secs(10);

/// Two nodes, `alpha` (which gets the volumes) and `beta` (which gets the mirrors).
#[derive(Debug)]
pub struct Cluster {
    /// The master's node.
    pub alpha: Node,
    /// The mirror's node.
    pub beta: Node,
    /// The hosts, with the cable between them.
    pub hosts: Option<Namespaces>,
    dir: Option<TempDir>,
    markers: AtomicU32,
}

impl Cluster {
    /// Two nodes on this host, started, each the other's peer.
    pub fn local() -> Cluster {
        Cluster::started(None)
    }

    /// Two nodes on hosts of their own, started, each the other's peer.
    pub fn linked() -> Cluster {
        Cluster::started(Some(Namespaces::new().unwrap()))
    }

    fn started(hosts: Option<Namespaces>) -> Cluster {
        let mut cluster = Cluster::made(hosts);
        cluster.start();
        cluster.introduce();
        cluster
    }

    /// Two nodes that do not run and do not know each other.
    pub fn made(hosts: Option<Namespaces>) -> Cluster {
        // Below target/, which is on a disk; /tmp may be memory.
        let dir = tempfile::Builder::new()
            .prefix("cluster-")
            .tempdir_in(env!("CARGO_TARGET_TMPDIR"))
            .unwrap();
        let make = |name: &str| {
            let (address, namespace) = match (&hosts, name) {
                (Some(h), "alpha") => (format!("{}:7420", h.a.address()), Some(h.a.name().into())),
                (Some(h), _) => (format!("{}:7420", h.b.address()), Some(h.b.name().into())),
                (None, _) => (free_address(), None),
            };
            Node::init(dir.path().join(name), name, &address, namespace)
        };
        Cluster {
            alpha: make("alpha"),
            beta: make("beta"),
            hosts,
            dir: Some(dir),
            markers: AtomicU32::new(0),
        }
    }

    /// Starts both daemons.
    pub fn start(&mut self) {
        for node in self.nodes() {
            node.start();
        }
    }

    /// Stops both, cleanly: the master first, so that it drains to its mirror.
    pub fn stop(&mut self) {
        for node in self.nodes() {
            node.stop();
        }
    }

    /// Makes each the other's peer.
    pub fn introduce(&self) {
        self.acquaint(&self.alpha, &self.beta);
    }

    /// Makes each of two nodes the other's peer.
    pub fn acquaint(&self, a: &Node, b: &Node) {
        for (one, other) in [(a, b), (b, a)] {
            let fingerprint = other.ok(&["node", "fingerprint"]);
            one.ok(&[
                "peer",
                "add",
                &other.name,
                &other.address,
                "--fingerprint",
                fingerprint.trim(),
            ]);
        }
    }

    /// The directory of everything.
    pub fn dir(&self) -> &Path {
        self.dir.as_ref().expect("there until drop").path()
    }

    /// A path in it.
    pub fn path(&self, relative: &str) -> PathBuf {
        self.dir().join(relative)
    }

    /// Both nodes.
    pub fn nodes(&mut self) -> [&mut Node; 2] {
        [&mut self.alpha, &mut self.beta]
    }

    /// Makes the volume of one part on `alpha` and mounts it.
    pub fn volume(&self, size_mib: u64, more: &[&str]) {
        let part = format!("{}={size_mib}M", self.path("part0").display());
        let mut args = vec!["volume", "create", VOLUME, "--part", &part];
        args.extend(more);
        self.alpha.ok(&args);
        self.mount_master();
    }

    /// Mounts the volume on `alpha`.
    pub fn mount_master(&self) {
        let mnt = self.alpha.mnt();
        self.alpha.ok(&["mount", VOLUME, mnt.to_str().unwrap()]);
        assert!(is_mount(&mnt));
    }

    /// Asks for the mirror's mount on `beta`.
    pub fn mount_mirror(&self) {
        let mnt = self.beta.mnt();
        self.beta.ok(&["mount", VOLUME, mnt.to_str().unwrap()]);
    }

    /// Makes the mirror on `beta`.
    pub fn mirror(&self, more: &[&str]) {
        let mut args = vec!["mirror", "create", VOLUME, "beta"];
        args.extend(more);
        self.alpha.ok(&args);
    }

    /// Waits for INSYNC.
    #[track_caller]
    pub fn insync(&self) {
        self.alpha.wait(VOLUME, "beta", "INSYNC", COPY_SECONDS);
    }

    /// A mounted volume with a mirror in sync, mounted too.
    pub fn replicated(&self, size_mib: u64, more: &[&str]) {
        self.volume(size_mib, more);
        self.mirror(&[]);
        self.insync();
        self.mount_mirror();
        self.beta.wait_mounted(VOLUME, Duration::from_secs(10));
    }

    /// The parts of the volume on both sides, the first of each: as [`Cluster::volume`] makes them.
    pub fn parts(&self) -> [PathBuf; 2] {
        [
            self.path("part0"),
            self.beta.store().join(VOLUME).join("part0"),
        ]
    }

    /// Makes everything written on the master durable, and waits until the mirror's mount shows it: a new name that is
    /// committed last shows last.
    #[track_caller]
    pub fn settle(&self) -> Duration {
        let n = self.markers.fetch_add(1, Ordering::Relaxed);
        let name = format!(".settled-{n}");
        // What the kernel still holds; a FUSE server hears nothing of it but the writes.
        rustix::fs::syncfs(File::open(self.alpha.mnt()).unwrap()).unwrap();
        let mut file = File::create(self.alpha.path(&name)).unwrap();
        file.write_all(name.as_bytes()).unwrap();
        file.sync_all().unwrap();
        File::open(self.alpha.mnt()).unwrap().sync_all().unwrap();
        let began = Instant::now();
        let there = self.beta.path(&name);
        let shown = wait_until(VISIBLE_WITHIN, || {
            std::fs::read(&there).is_ok_and(|bytes| bytes == name.as_bytes())
        });
        assert!(
            shown,
            "{name} did not appear on the mirror: {}",
            self.alpha.ok(&["status"])
        );
        began.elapsed()
    }

    /// Both mounts show the same tree, in every respect; the mirror's is returned. (On the master, the kernel remembers the
    /// sectors taken from before it wrote its cache back.)
    #[track_caller]
    pub fn assert_same_trees(&self) -> Tree {
        self.settle();
        let master = tree_digest(&self.alpha.mnt()).unwrap();
        let mirror = tree_digest(&self.beta.mnt()).unwrap();
        let all = Compare {
            blocks: false,
            ..Compare::ALL
        };
        master.assert_same(&mirror, all);
        mirror
    }

    /// `verify` finds no difference.
    #[track_caller]
    pub fn verify(&self) {
        self.alpha.ok(&["verify", VOLUME]);
    }

    /// Bytes sent by the bulk replicator since `alpha` started.
    #[track_caller]
    pub fn bytes_bulk(&self) -> u64 {
        self.alpha.mirror(VOLUME, "beta")["bytes_bulk"]
            .as_u64()
            .unwrap()
    }

    /// Bytes sent by sequencing since `alpha` started.
    #[track_caller]
    pub fn bytes_sequenced(&self) -> u64 {
        self.alpha.mirror(VOLUME, "beta")["bytes_sequenced"]
            .as_u64()
            .unwrap()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for node in self.nodes() {
            node.clear();
        }
        if std::thread::panicking() {
            for node in self.nodes() {
                node.show_log();
            }
        }
        let dir = self.dir.take().expect("there until drop");
        // Never empty a directory through a mount.
        if !mounts_below(dir.path()).is_empty() {
            eprintln!("left behind: {}", dir.keep().display());
        }
    }
}

/// An address of this host for one node: of the 16 million that it has, and with a port that the kernel gives to nobody by
/// itself, so that it is free again whenever the daemon is.
pub fn free_address() -> String {
    static NODES: AtomicU32 = AtomicU32::new(1);
    let n = NODES.fetch_add(1, Ordering::Relaxed);
    let [_, _, high, low] = std::process::id().to_be_bytes();
    format!("127.{high}.{low}.{n}:7420")
}

/// Writes a whole file and makes it durable, its name too.
pub fn write_durably(path: &Path, bytes: &[u8]) {
    let mut file = File::create(path).unwrap();
    file.write_all(bytes).unwrap();
    file.sync_all().unwrap();
    sync_dir(path.parent().unwrap());
}

/// Makes the names in a directory durable.
pub fn sync_dir(dir: &Path) {
    File::open(dir).unwrap().sync_all().unwrap();
}

/// Changes permission bits.
pub fn chmod(path: &Path, mode: u32) -> std::io::Result<()> {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
}
