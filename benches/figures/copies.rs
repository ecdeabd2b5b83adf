//! How long a mirror takes to be equal: at first, behind a writer, after a cut, after a crack.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::cluster::{Cluster, VOLUME, sync_dir};
use crate::systems::{
    Elsewhere, Lockstep, System, acknowledged, cpu_seconds, drop_caches, place, wire_bytes,
};
use crate::table::{EXT4, Figures, MIRRORED};
use crate::testkit::{LoopMount, Rng, run};
use crate::{MIB, Options};

/// Fills with about this much: half in files of 64 KiB, half in large ones.
pub fn fill(dir: &Path, bytes: u64) {
    let megabyte = Rng(4).bytes(MIB as usize);
    for n in 0..bytes / 2 / (64 << 10) {
        std::fs::write(dir.join(format!("fill{n}")), &megabyte[..64 << 10]).unwrap();
    }
    let mut file = File::create(dir.join("filled")).unwrap();
    for _ in 0..bytes / 2 / MIB {
        file.write_all(&megabyte).unwrap();
    }
    file.sync_all().unwrap();
}

pub fn first_copy(options: &Options, figures: &mut Figures) {
    let bytes = options.size(1200, 20) * 1_000_000;
    let mut cluster = Cluster::linked();
    for node in cluster.nodes() {
        place(node, options.one_cpu);
    }
    cluster.volume(options.size(2048, 128), &[]);
    fill(&cluster.alpha.mnt(), bytes);
    rustix::fs::syncfs(File::open(cluster.alpha.mnt()).unwrap()).unwrap();
    sync_dir(&cluster.alpha.mnt());
    let cpu = |c: &Cluster| cpu_seconds(&c.alpha) + cpu_seconds(&c.beta);
    let (cpu_before, wire_before) = (cpu(&cluster), wire_bytes(&cluster));
    let began = Instant::now();
    cluster.mirror(&[]);
    cluster.insync();
    let took = began.elapsed();
    figures.put(
        "first copy: 1.2 GB allocated",
        "s",
        MIRRORED,
        took.as_secs_f64(),
    );
    figures.put(
        "first copy: CPU of both daemons",
        "s",
        MIRRORED,
        cpu(&cluster) - cpu_before,
    );
    figures.put(
        "first copy: on the wire",
        "MB",
        MIRRORED,
        (wire_bytes(&cluster) - wire_before) / 1e6,
    );
    figures.put(
        "first copy: sent by the replicator",
        "MB",
        MIRRORED,
        cluster.bytes_bulk() as f64 / 1e6,
    );
    cluster.mount_mirror();
    cluster.beta.wait_mounted(VOLUME, Duration::from_secs(30));
    cluster.verify();
    cluster.stop();
    let [master, _] = cluster.parts();
    let copy = cluster.path("copied");
    drop_caches();
    let began = Instant::now();
    run(
        "cp",
        &[
            "--sparse=always".as_ref(),
            master.as_os_str(),
            copy.as_os_str(),
        ],
    )
    .unwrap();
    File::open(&copy).unwrap().sync_all().unwrap();
    figures.put(
        "first copy: 1.2 GB allocated",
        "s",
        EXT4,
        began.elapsed().as_secs_f64(),
    );
}

pub fn until_equal(options: &Options, figures: &mut Figures, system: &Lockstep) {
    let dir = system.dir().join("equal");
    std::fs::create_dir(&dir).unwrap();
    let text = Rng(5).bytes(4096);
    for n in 0..options.size(10_000, 300) {
        std::fs::write(dir.join(format!("file{n}")), &text).unwrap();
    }
    system.sync();
    let began = Instant::now();
    acknowledged(&system.cluster);
    figures.put(
        "equal: after 10,000 files",
        "s",
        MIRRORED,
        began.elapsed().as_secs_f64(),
    );
    let shown = system.cluster.settle();
    figures.put(
        "equal: a name until it shows",
        "ms",
        MIRRORED,
        shown.as_secs_f64() * 1e3,
    );
}

/// `count` blocks of 4 KiB, scattered over a file of `of` bytes, made durable at the end; how long the longest took.
fn scatter(path: &Path, of: u64, count: u64, seed: u64, pace: Duration) -> Duration {
    let file = File::options().write(true).open(path).unwrap();
    let mut rng = Rng(seed);
    let mut worst = Duration::ZERO;
    let mut next = Instant::now();
    // No block twice: what has to be sent is known.
    let mut blocks: Vec<u64> = (0..of / 4096).collect();
    for done in 0..count as usize {
        let other = done + rng.below((blocks.len() - done) as u64) as usize;
        blocks.swap(done, other);
        let text = rng.bytes(4096);
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
        next += pace;
        let began = Instant::now();
        std::os::unix::fs::FileExt::write_all_at(&file, &text, blocks[done] * 4096).unwrap();
        if done % 64 == 63 {
            file.sync_data().unwrap();
        }
        worst = worst.max(began.elapsed());
    }
    file.sync_all().unwrap();
    worst
}

/// The cable is cut for ten seconds, in which 64 MiB are overwritten in pieces of 4 KiB.
pub fn cut(options: &Options, figures: &mut Figures) {
    let count = options.size(16_384, 512);
    let pace = Duration::from_secs(9) / count as u32;
    let large = options.size(512, 16) * MIB;
    let cluster = Cluster::linked();
    cluster.volume(options.size(2048, 192), &[]);
    let path = cluster.alpha.path("large");
    std::fs::write(&path, Rng(6).bytes(large as usize)).unwrap();
    sync_dir(&cluster.alpha.mnt());
    cluster.mirror(&[]);
    cluster.insync();
    let worst = |seed| scatter(&path, large, count, seed, pace).as_secs_f64() * 1e3;
    figures.put("cut: longest write, link up", "ms", MIRRORED, worst(7));
    acknowledged(&cluster);
    let hosts = cluster.hosts.as_ref().unwrap();
    let wire = wire_bytes(&cluster);
    let began = Instant::now();
    hosts.cut().unwrap();
    figures.put("cut: longest write, link cut", "ms", MIRRORED, worst(8));
    std::thread::sleep(Duration::from_secs(10).saturating_sub(began.elapsed()));
    let bulk = cluster.bytes_bulk();
    let began = Instant::now();
    hosts.mend().unwrap();
    cluster.insync();
    acknowledged(&cluster);
    let took = began.elapsed().as_secs_f64();
    figures.put("cut: equal after the heal", "s", MIRRORED, took);
    let sent = (wire_bytes(&cluster) - wire) / 1e6;
    figures.put("cut: 64 MiB overwritten, on the wire", "MB", MIRRORED, sent);
    assert_eq!(cluster.bytes_bulk(), bulk, "replay, not a copy");
    cluster.verify();
}

/// A mirror cracks while it is paused, and is made equal again: what that costs on volumes of different sizes.
pub fn resync(options: &Options, figures: &mut Figures) {
    let large = options.size(512, 128) * MIB;
    // Copies are sparse, but a mirror's node takes none for which it has no room.
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let image = dir.path().join("store");
    let (text, few_inodes) = (image.to_str().unwrap(), (64 * MIB).to_string());
    run(
        "mke2fs",
        &["-q", "-t", "ext4", "-i", &few_inodes, text, "200G"],
    )
    .unwrap();
    for gib in [1, 10, 100] {
        let store = LoopMount::new(&image).unwrap();
        let mut cluster = Cluster::linked();
        let own = store.dir().join(format!("{gib}"));
        std::fs::create_dir(&own).unwrap();
        let elsewhere = Elsewhere::new(&cluster, &own);
        cluster.volume(gib * 1024, &["--buffer", "64M"]);
        let path = cluster.alpha.path("large");
        std::fs::write(&path, Rng(9).bytes(large as usize)).unwrap();
        sync_dir(&cluster.alpha.mnt());
        cluster.mirror(&[]);
        cluster.insync();
        for mib in options.size([100, 200, 400], [70, 80, 90]) {
            cluster.alpha.ok(&["mirror", "pause", VOLUME, "beta"]);
            scatter(&path, large, mib * MIB / 4096, mib, Duration::ZERO);
            let (bulk, wire) = (cluster.bytes_bulk(), wire_bytes(&cluster));
            let began = Instant::now();
            cluster.alpha.ok(&["mirror", "continue", VOLUME, "beta"]);
            cluster.insync();
            acknowledged(&cluster);
            let name = format!("resync: {mib} MiB differ of {gib} GiB");
            figures.put(&name, "s", MIRRORED, began.elapsed().as_secs_f64());
            let copied = (cluster.bytes_bulk() - bulk) as f64 / 1e6;
            figures.put(&format!("{name}, copied"), "MB", MIRRORED, copied);
            let sent = (wire_bytes(&cluster) - wire) / 1e6;
            figures.put(&format!("{name}, on the wire"), "MB", MIRRORED, sent);
        }
        cluster.verify();
        cluster.stop();
        drop(elsewhere);
        store.unmount().unwrap();
    }
}
