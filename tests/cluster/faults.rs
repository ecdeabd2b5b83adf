//! What wears a node down without killing it: a disk that gives errors, a state directory without room, a line that is too
//! slow for what is written, and one that breaks again and again in the middle of anything.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::cluster::{Cluster, VOLUME, free_address, write_durably};
use crate::copies::assert_equal_blocks;
use crate::daemon::Node;
use crate::roles::{end_with, insync};
use crate::sizes::{MIB, choose};
use crate::testkit::{
    Rng, command, e2fsck, mke2fs_with, need_fuse, need_loop, need_netns, need_tool, run, wait_until,
};
use crate::writer::Writer;

/// A file system on a loop device whose file is on a tmpfs: when that is full, its writes fail with EIO.
struct Failing {
    tmpfs: PathBuf,
    at: PathBuf,
}

impl Failing {
    fn new(cluster: &Cluster, at: &Path) -> Failing {
        let tmpfs = cluster.path("tmpfs");
        std::fs::create_dir(&tmpfs).unwrap();
        run(
            "mount",
            &[
                "-t",
                "tmpfs",
                "-o",
                "size=64M",
                "tmpfs",
                tmpfs.to_str().unwrap(),
            ],
        )
        .unwrap();
        let failing = Failing {
            tmpfs,
            at: at.to_owned(),
        };
        let image = failing.tmpfs.join("image");
        // Without a journal it goes on after errors.
        mke2fs_with(&image, 400 << 20, "^has_journal", 4096).unwrap();
        failing.mount();
        failing
    }

    fn mount(&self) {
        let image = self.tmpfs.join("image");
        let at = [image.as_os_str(), self.at.as_os_str()];
        let options = "loop,errors=continue,noatime";
        run("mount", &["-o".as_ref(), options.as_ref(), at[0], at[1]]).unwrap();
    }

    fn unmount(&self) -> bool {
        let done = command("umount").arg(&self.at).output();
        done.is_ok_and(|out| out.status.success())
    }

    /// From now on, blocks that were never written can not be.
    fn fail(&self) {
        let mut filler = File::create(self.tmpfs.join("filler")).unwrap();
        while filler.write_all(&[1; 4096]).is_ok() {}
    }

    fn mend(&self) {
        std::fs::remove_file(self.tmpfs.join("filler")).unwrap();
    }
}

impl Drop for Failing {
    fn drop(&mut self) {
        for at in [&self.at, &self.tmpfs] {
            let _ = command("umount").arg("-l").arg(at).output();
        }
    }
}

/// A directory on a small file system of its own, which can be filled up.
pub struct Small {
    at: PathBuf,
}

impl Small {
    /// Puts a file system of `size` bytes, which is kept in `image`, under what is in the directory `at`.
    pub fn new(image: &Path, size: u64, at: &Path) -> Small {
        mke2fs_with(image, size, "", 4096).unwrap();
        let before = at.with_extension("before");
        std::fs::rename(at, &before).unwrap();
        std::fs::create_dir(at).unwrap();
        let what = [image.as_os_str(), at.as_os_str()];
        run("mount", &["-o".as_ref(), "loop".as_ref(), what[0], what[1]]).unwrap();
        let small = Small { at: at.to_owned() };
        let all = [before.join("."), at.to_owned()];
        run(
            "cp",
            &["-a".as_ref(), all[0].as_os_str(), all[1].as_os_str()],
        )
        .unwrap();
        small
    }

    fn filler(&self) -> PathBuf {
        self.at.join("filler")
    }

    /// Leaves no room.
    pub fn fill(&self) {
        let mut filler = File::create(self.filler()).unwrap();
        let mut write = |len| filler.write_all(&vec![1; len]).is_ok();
        // What was set aside for writing it out is free again once it is.
        while write(4096) {
            for len in [1 << 20, 4096, 1] {
                while write(len) {}
            }
            run("sync", &["-f", self.at.to_str().unwrap()]).unwrap();
        }
    }

    /// Makes room.
    pub fn empty(&self) {
        std::fs::remove_file(self.filler()).unwrap();
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = command("umount").arg("-l").arg(&self.at).output();
    }
}

#[test]
fn a_state_directory_without_room_stops_nobody() {
    if !(need_fuse() && need_loop()) {
        return;
    }
    for masters in [true, false] {
        let mut cluster = Cluster::made(None);
        let node = match masters {
            true => &cluster.alpha,
            false => &cluster.beta,
        };
        let disk = Small::new(&cluster.path("image"), 64 << 20, &node.state());
        cluster.start();
        cluster.introduce();
        cluster.replicated(100, &["--buffer", "8M"]);
        write_durably(&cluster.alpha.path("before"), &[1; 100_000]);
        cluster.settle();
        disk.fill();
        let mut rng = Rng(11);
        // Overwritten, so that the log goes round: where it begins has to be noted.
        let file = File::create(cluster.alpha.path("file")).unwrap();
        let mut overwrite = |times| {
            for _ in 0..times {
                let begun = Instant::now();
                file.write_all_at(&rng.bytes(1 << 20), 0).unwrap();
                file.sync_all().unwrap();
                assert!(
                    begun.elapsed() < Duration::from_secs(10),
                    "a writer was held up"
                );
            }
        };
        overwrite(30);
        cluster.insync();
        cluster.alpha.ok(&["mirror", "pause", VOLUME, "beta"]);
        overwrite(12);
        let cracked = wait_until(Duration::from_secs(10), || {
            cluster.alpha.mirror(VOLUME, "beta")["cracked"] == true
        });
        assert!(cracked);
        cluster.alpha.ok(&["mirror", "continue", VOLUME, "beta"]);
        cluster.insync();
        cluster.verify();
        // A master counts from its start.
        let copied = match masters {
            true => 0,
            false => cluster.bytes_bulk(),
        };
        // What was saved meanwhile is what a restart goes by.
        let [alpha, beta] = cluster.nodes();
        let killed = if masters { alpha } else { beta };
        killed.kill();
        disk.empty();
        killed.start();
        cluster.insync();
        assert_eq!(cluster.bytes_bulk(), copied, "it is copied again");
        cluster.alpha.wait_mounted(VOLUME, Duration::from_secs(20));
        end_with(cluster);
        drop(disk);
    }
}

#[test]
fn a_mirrors_disk_with_errors_stops_only_the_mirror() {
    if !(need_fuse() && need_loop()) {
        return;
    }
    for mode in ["async", "sync"] {
        let mut cluster = Cluster::local();
        let store = cluster.beta.store();
        std::fs::create_dir_all(&store).unwrap();
        let disk = Failing::new(&cluster, &store);
        cluster.replicated(100, &["--buffer", "8M"]);
        cluster
            .alpha
            .ok(&["mirror", "set", VOLUME, "beta", "--mode", mode]);
        write_durably(&cluster.alpha.path("before"), &[1; 100_000]);
        cluster.settle();
        disk.fail();
        let mut rng = Rng(9);
        for n in 0..30 {
            let begun = Instant::now();
            write_durably(&cluster.alpha.path(format!("f{n}")), &rng.bytes(1 << 20));
            assert!(
                begun.elapsed() < Duration::from_secs(10),
                "a writer was held up"
            );
        }
        cluster.alpha.wait(VOLUME, "beta", "ERROR", 60);
        let mirror = cluster.alpha.mirror(VOLUME, "beta");
        let reason = mirror["reason"].as_str().unwrap();
        assert!(reason.contains("disk"), "{reason}");
        assert_eq!(mirror["degraded"], mode == "sync");
        write_durably(&cluster.alpha.path("after"), b"text");
        disk.mend();
        cluster.alpha.ok(&["mirror", "restart", VOLUME, "beta"]);
        cluster.insync();
        cluster.verify();
        cluster.settle();
        // What the cache said and what is on the disk may be two things after an error.
        cluster.stop();
        assert!(disk.unmount());
        disk.mount();
        let [master, mirror] = cluster.parts();
        e2fsck(&mirror).unwrap();
        assert_equal_blocks(&master, &mirror);
        drop(disk);
    }
}

/// A whole file and its name, durable, or the error that a program gets.
fn try_durably(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    File::open(path.parent().unwrap())?.sync_all()
}

#[test]
fn a_masters_disk_with_errors_ends_its_writing_and_nothing_acknowledged_is_lost() {
    if !(need_fuse() && need_loop()) {
        return;
    }
    for (mode, promoted) in [("async", false), ("sync", true)] {
        let mut cluster = Cluster::local();
        let store = cluster.path("disk");
        std::fs::create_dir(&store).unwrap();
        let disk = Failing::new(&cluster, &store);
        let part = format!("{}=100M", store.join("part0").display());
        let buffer = ["--buffer", "8M"];
        cluster
            .alpha
            .ok(&[&["volume", "create", VOLUME, "--part", &part][..], &buffer].concat());
        cluster.mount_master();
        cluster.mirror(&["--mode", mode]);
        cluster.insync();
        cluster.mount_mirror();
        cluster.beta.wait_mounted(VOLUME, Duration::from_secs(10));
        let mut rng = Rng(10);
        let mut acknowledged = vec![("before".to_string(), rng.bytes(300_000))];
        write_durably(&cluster.alpha.path("before"), &acknowledged[0].1);
        let held = File::create(cluster.alpha.path("held")).unwrap();
        cluster.settle();

        disk.fail();
        held.write_all_at(&[1; 4096], 0).unwrap();
        let refused = (0..60).find_map(|n| {
            let (name, bytes) = (format!("f{n}"), rng.bytes(1 << 20));
            let done = try_durably(&cluster.alpha.path(&name), &bytes);
            acknowledged.extend(done.is_ok().then_some((name, bytes)));
            done.err()
        });
        assert!(refused.is_some(), "the disk fails, and no program is told");
        // Nor is it forgotten: not by who asks again, not by who asks for the first time, not when there is room.
        for n in 0..6 {
            if n == 3 {
                disk.mend();
            }
            let asked = held.sync_all().map_err(|error| error.raw_os_error());
            assert_eq!(asked, Err(Some(libc::EIO)), "after {n} errors");
            let other = try_durably(&cluster.alpha.path(format!("later{n}")), b"text");
            assert!(other.is_err(), "after {n} errors");
        }
        let before = std::fs::read(cluster.alpha.path("before")).unwrap();
        assert!(before == acknowledged[0].1, "what is there can be read");

        // Status says so, and what to do; so does the log.
        let told = wait_until(Duration::from_secs(10), || {
            cluster.alpha.volume(VOLUME)["condition"] == "failed"
        });
        let shown = cluster.alpha.volume(VOLUME);
        assert!(told && shown["read_only"] == true, "{shown}");
        let reason = shown["reason"].as_str().unwrap();
        for word in ["part0", "restart the daemon", "lockstep promote"] {
            assert!(reason.contains(word), "no {word:?} in {reason}");
        }
        assert!(cluster.alpha.log().contains("restart the daemon"));
        let (_, said) = cluster.alpha.refused(&["switchover", VOLUME, "beta"]);
        assert!(said.contains("lockstep promote"), "{said}");

        // Of what was acknowledged, nothing is missing on the mirror, and nothing is there by halves.
        cluster.insync();
        let missing = |on: &Node| -> Vec<String> {
            let there = |name: &str| std::fs::read(on.path(name)).unwrap_or_default();
            let differ = acknowledged
                .iter()
                .filter(|(name, bytes)| there(name) != *bytes);
            differ.map(|(name, _)| name.clone()).collect()
        };
        let all = wait_until(Duration::from_secs(10), || {
            missing(&cluster.beta).is_empty()
        });
        assert!(all, "the mirror lacks {:?}", missing(&cluster.beta));
        cluster.alpha.end_failed();
        if promoted {
            cluster.beta.ok(&["promote", VOLUME]);
            cluster.beta.wait_mounted(VOLUME, Duration::from_secs(20));
            write_durably(&cluster.beta.path("by-beta"), b"text");
        }
        // The cache shows what is not on the disk.
        assert!(disk.unmount());
        disk.mount();
        cluster.alpha.start();
        let [master, mirror] = match promoted {
            false => [&cluster.alpha, &cluster.beta],
            true => [&cluster.beta, &cluster.alpha],
        };
        insync(master, mirror);
        master.wait_mounted(VOLUME, Duration::from_secs(20));
        let warned = master.volume(VOLUME)["warnings"].to_string();
        assert_eq!(warned.contains("volume check"), !promoted, "{warned}");
        master.ok(&["umount", VOLUME]);
        master.ok(&["volume", "check", VOLUME]);
        master.ok(&["mount", VOLUME, master.mnt().to_str().unwrap()]);
        assert_eq!(missing(master), [""; 0]);
        write_durably(&master.path("after"), b"text");
        if promoted {
            std::mem::swap(&mut cluster.alpha, &mut cluster.beta);
        }
        end_with(cluster);
        drop(disk);
    }
}

#[test]
fn throttle_slows_writers_to_what_the_line_carries_and_nothing_cracks() {
    if !(need_fuse() && need_netns() && need_tool("mke2fs")) {
        return;
    }
    let total: u64 = choose(32, 256) * MIB;
    const LINE: u64 = 6 << 20;
    const BUFFER: u64 = 8 << 20;
    let cluster = Cluster::linked();
    cluster.volume(400, &["--buffer", "8M"]);
    let path = cluster.alpha.path("file");
    std::fs::write(&path, vec![7; 64 << 20]).unwrap();
    cluster.mirror(&["--on-full", "throttle", "--compress", "off"]);
    cluster.insync();
    cluster.mount_mirror();
    cluster.beta.wait_mounted(VOLUME, Duration::from_secs(10));
    cluster.settle();
    cluster.hosts.as_ref().unwrap().limit(LINE).unwrap();
    let watched = Arc::new(AtomicBool::new(true));
    let began = Instant::now();
    let highest = std::thread::scope(|scope| {
        let watching = Arc::clone(&watched);
        let alpha = &cluster.alpha;
        let watcher = scope.spawn(move || {
            let mut highest = 0;
            while watching.load(Ordering::Relaxed) {
                let mirror = alpha.mirror(VOLUME, "beta");
                assert_eq!(mirror["state"], "INSYNC", "{mirror}");
                assert_eq!(mirror["cracked"], false, "{mirror}");
                highest = highest.max(mirror["buffer_used"].as_u64().unwrap());
                std::thread::sleep(Duration::from_millis(50));
            }
            highest
        });
        let file = File::options().write(true).open(&path).unwrap();
        let mut rng = Rng(5);
        for n in 0..total / 65536 {
            let at = (n * 65536) % (64 << 20);
            file.write_all_at(&rng.bytes(65536), at).unwrap();
            if n % 16 == 15 {
                file.sync_data().unwrap();
            }
        }
        file.sync_all().unwrap();
        watched.store(false, Ordering::Relaxed);
        watcher.join().unwrap()
    });
    let took = began.elapsed();
    eprintln!("{total} bytes in {took:.1?}, at most {highest} bytes in the buffer");
    assert!(highest <= BUFFER, "{highest} bytes in a buffer of {BUFFER}");
    assert!(highest > BUFFER / 4, "{highest}: it was never put to use");
    let least = (total - BUFFER) / LINE;
    assert!(
        took >= Duration::from_secs(least * 3 / 4),
        "{took:?}: the line can not have carried {total} bytes"
    );
    let outofsync = cluster
        .alpha
        .events()
        .iter()
        .any(|e| e.to_string().contains("OUTOFSYNC"));
    assert!(!outofsync, "it fell out of sync");
    cluster.insync();
    cluster.assert_same_trees();
    cluster.verify();
    cluster.end_clean();
}

/// Between two nodes: passes bytes on, and cuts every connection after some of them.
struct Proxy {
    address: String,
    bad: Arc<AtomicBool>,
    cuts: Arc<AtomicU64>,
}

impl Proxy {
    fn new(to: &str, seed: u64) -> Proxy {
        let address = free_address();
        let listener = TcpListener::bind(&address).unwrap();
        let bad = Arc::new(AtomicBool::new(false));
        let cuts = Arc::new(AtomicU64::new(0));
        let (to, stop, cut) = (to.to_owned(), Arc::clone(&bad), Arc::clone(&cuts));
        // It ends with the test's process; nobody calls it by then.
        std::thread::spawn(move || {
            let mut rng = Rng(seed);
            for near in listener.incoming().flatten() {
                let Ok(far) = TcpStream::connect(&to) else {
                    continue;
                };
                for (from, into) in [(&near, &far), (&far, &near)] {
                    // From a handshake that is cut off to a megabyte of the stream.
                    let budget = 1 << (5 + rng.below(16));
                    let budget = budget + rng.below(budget);
                    let (from, into) = (from.try_clone().unwrap(), into.try_clone().unwrap());
                    let (bad, cuts) = (Arc::clone(&stop), Arc::clone(&cut));
                    let delay = Duration::from_millis(rng.below(4));
                    std::thread::spawn(move || pump(from, into, budget, delay, &bad, &cuts));
                }
            }
        });
        Proxy { address, bad, cuts }
    }
}

fn pump(
    mut from: TcpStream,
    mut into: TcpStream,
    mut budget: u64,
    delay: Duration,
    bad: &AtomicBool,
    cuts: &AtomicU64,
) {
    let mut chunk = [0; 4096];
    while let Ok(n @ 1..) = from.read(&mut chunk) {
        let mut pass = n;
        if bad.load(Ordering::Relaxed) {
            std::thread::sleep(delay);
            pass = n.min(budget as usize);
            budget -= pass as u64;
        }
        if into.write_all(&chunk[..pass]).is_err() {
            break;
        }
        if pass < n {
            cuts.fetch_add(1, Ordering::Relaxed);
            break;
        }
    }
    for stream in [&from, &into] {
        let _ = stream.shutdown(Shutdown::Both);
    }
}

#[test]
fn a_line_that_breaks_at_any_byte_ends_in_sync_and_equal() {
    if !(need_fuse() && need_tool("mke2fs")) {
        return;
    }
    let mut cluster = Cluster::made(None);
    cluster.start();
    let to_beta = Proxy::new(&cluster.beta.address, 1);
    let to_alpha = Proxy::new(&cluster.alpha.address, 2);
    for (one, other, proxy) in [
        (&cluster.alpha, &cluster.beta, &to_beta),
        (&cluster.beta, &cluster.alpha, &to_alpha),
    ] {
        let key = other.ok(&["node", "fingerprint"]);
        let args = [
            "peer",
            "add",
            &other.name,
            &proxy.address,
            "--fingerprint",
            key.trim(),
        ];
        one.ok(&args);
    }
    cluster.replicated(256, &["--buffer", "32M"]);
    let set_bad = |bad: bool| {
        for proxy in [&to_beta, &to_alpha] {
            proxy.bad.store(bad, Ordering::Relaxed);
        }
    };
    let cuts = || to_beta.cuts.load(Ordering::Relaxed) + to_alpha.cuts.load(Ordering::Relaxed);
    let writer = Writer::paced(cluster.alpha.path("writer"), 6, Duration::from_millis(10));
    writer.wait_for(20, Duration::from_secs(30));
    let mut acknowledged = None;
    let mut writer = Some(writer);
    for mode in ["async", "sync"] {
        cluster
            .alpha
            .ok(&["mirror", "set", VOLUME, "beta", "--mode", mode]);
        let before = cuts();
        set_bad(true);
        let often = wait_until(Duration::from_secs(choose(60, 240)), || {
            cuts() - before >= choose(15, 100)
        });
        set_bad(false);
        assert!(often, "{} cuts", cuts() - before);
        cluster.insync();
        if mode == "sync" {
            acknowledged = writer.take().map(Writer::stop);
        }
    }
    eprintln!("cut {} times", cuts());
    let acknowledged = acknowledged.unwrap();
    cluster.insync();
    cluster.beta.wait_mounted(VOLUME, Duration::from_secs(20));
    cluster.assert_same_trees();
    acknowledged.assert_kept(&cluster.beta.path("writer"));
    cluster.verify();
    cluster.stop();
    let [master, mirror] = cluster.parts();
    e2fsck(&mirror).unwrap();
    assert_equal_blocks(&master, &mirror);
}
