//! The figures: what a volume costs beside the kernel's ext4 on a loop device, without and with a mirror, in one run.
//!
//!     cargo bench --bench figures                        all of them, some minutes
//!     cargo bench --bench figures -- create append       those whose names contain one of the words
//!     cargo bench --bench figures -- --one-cpu           programs and daemons on one CPU (free otherwise)
//!     cargo bench --bench figures -- --smoke             a small round: only that they can be taken
//!
//! Prints a table, then the same as JSON. Needs root, FUSE, loop devices and network namespaces. The nodes are two daemons
//! in network namespaces with a virtual cable; every image is on the disk of the build directory.

#![allow(
    clippy::unwrap_used,
    reason = "a figure that can not be taken ends the run"
)]
#![allow(dead_code, reason = "the tests' cluster has more than is measured")]

#[path = "../tests/cluster/cluster.rs"]
mod cluster;
#[path = "../tests/cluster/daemon.rs"]
mod daemon;
#[path = "../tests/testkit/mod.rs"]
mod testkit;

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use cluster::{Cluster, VOLUME, sync_dir};
use daemon::Node;
use testkit::{LoopMount, Rng, mke2fs, run, wait_until};

const MIB: u64 = 1 << 20;

/// What is asked for.
struct Options {
    words: Vec<String>,
    smoke: bool,
    one_cpu: bool,
}

impl Options {
    fn of_arguments() -> Options {
        let mut options = Options {
            words: Vec::new(),
            smoke: false,
            one_cpu: false,
        };
        for argument in std::env::args().skip(1) {
            match argument.as_str() {
                "--smoke" => options.smoke = true,
                "--one-cpu" => options.one_cpu = true,
                // cargo's own.
                other if other.starts_with("--") => {}
                word => options.words.push(word.to_owned()),
            }
        }
        options
    }

    fn wants(&self, figure: &str) -> bool {
        self.words.is_empty() || self.words.iter().any(|w| figure.contains(w.as_str()))
    }

    fn size<T>(&self, whole: T, smoke: T) -> T {
        if self.smoke { smoke } else { whole }
    }
}

/// One line of the table.
struct Line {
    figure: String,
    unit: &'static str,
    /// By system, in the order they were measured.
    values: Vec<(&'static str, f64)>,
}

#[derive(Default)]
struct Figures(Vec<Line>);

impl Figures {
    fn put(&mut self, figure: &str, unit: &'static str, system: &'static str, value: f64) {
        eprintln!("{figure:42} {system:18} {value:12.1} {unit}");
        match self.0.iter_mut().find(|l| l.figure == figure) {
            Some(line) => line.values.push((system, value)),
            None => self.0.push(Line {
                figure: figure.to_owned(),
                unit,
                values: vec![(system, value)],
            }),
        }
    }

    fn table(&self) -> String {
        let mut text = format!(
            "{:42} {:>14} {:>14} {:>14} {:>14}  unit\n",
            "figure", EXT4, ALONE, MIRRORED, SYNC
        );
        for line in &self.0 {
            let cell = |system: &str| {
                let found = line.values.iter().find(|(s, _)| *s == system);
                found.map_or(String::new(), |(_, v)| format!("{v:.1}"))
            };
            text += &format!(
                "{:42} {:>14} {:>14} {:>14} {:>14}  {}\n",
                line.figure,
                cell(EXT4),
                cell(ALONE),
                cell(MIRRORED),
                cell(SYNC),
                line.unit
            );
        }
        text
    }

    fn json(&self, placement: &str) -> Value {
        let lines = self.0.iter().map(|line| {
            let values: serde_json::Map<_, _> = line
                .values
                .iter()
                .map(|(system, value)| ((*system).to_owned(), json!(value)))
                .collect();
            json!({"figure": line.figure, "unit": line.unit, "values": values})
        });
        json!({"version": 1, "placement": placement, "figures": lines.collect::<Vec<_>>()})
    }
}

const EXT4: &str = "ext4 on loop";
const ALONE: &str = "lockstep";
const MIRRORED: &str = "with a mirror";
const SYNC: &str = "in sync mode";

/// What the work is done on.
trait System {
    fn name(&self) -> &'static str;
    fn dir(&self) -> PathBuf;
    /// Makes everything written durable.
    fn sync(&self) {
        rustix::fs::syncfs(File::open(self.dir()).unwrap()).unwrap();
        sync_dir(&self.dir());
    }
    /// Forgets every cache.
    fn cool(&mut self);
    /// Counters of work done, where there are some: (name, value).
    fn counters(&self) -> Vec<(&'static str, f64)> {
        Vec::new()
    }
}

fn drop_caches() {
    std::fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
}

struct Kernel {
    image: PathBuf,
    mount: Option<LoopMount>,
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

struct Lockstep {
    name: &'static str,
    cluster: Cluster,
    one_cpu: bool,
}

impl System for Lockstep {
    fn name(&self) -> &'static str {
        self.name
    }
    fn dir(&self) -> PathBuf {
        self.cluster.alpha.mnt()
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

/// Bytes that the daemon made the disk write.
fn io_of(node: &Node) -> f64 {
    let path = format!("/proc/{}/io", node.pid().as_raw_nonzero());
    let text = std::fs::read_to_string(path).unwrap();
    let line = text.lines().find(|l| l.starts_with("wchar:")).unwrap();
    line["wchar:".len()..].trim().parse().unwrap()
}

/// A field of `/proc/PID/status`, bytes.
fn memory(node: &Node, field: &str) -> f64 {
    let path = format!("/proc/{}/status", node.pid().as_raw_nonzero());
    let text = std::fs::read_to_string(path).unwrap();
    let line = text.lines().find(|l| l.starts_with(field)).unwrap();
    let kib: f64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kib * 1024.0
}

/// CPU seconds that the daemon has used.
fn cpu_seconds(node: &Node) -> f64 {
    let path = format!("/proc/{}/stat", node.pid().as_raw_nonzero());
    let text = std::fs::read_to_string(path).unwrap();
    // Behind the name, which may hold anything: state is field 3, utime 14, stime 15; in hundredths.
    let (_, rest) = text.rsplit_once(')').unwrap();
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let ticks = |n: usize| fields[n - 3].parse::<f64>().unwrap();
    (ticks(14) + ticks(15)) / 100.0
}

/// Pins a daemon to the first CPU, if asked to.
fn place(node: &Node, one_cpu: bool) {
    if one_cpu {
        let pid = node.pid().as_raw_nonzero().to_string();
        run("taskset", &["-a", "-c", "-p", "0", &pid]).unwrap();
    }
}

/// Bytes that left both ends of the cable.
fn wire_bytes(cluster: &Cluster) -> f64 {
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

/// Measures the work of `operations`, and what the system counted meanwhile.
fn measured(
    figures: &mut Figures,
    system: &dyn System,
    figure: &str,
    operations: f64,
    work: impl FnOnce(),
) -> Duration {
    let before = system.counters();
    let began = Instant::now();
    work();
    let took = began.elapsed();
    for ((name, before), (_, after)) in before.into_iter().zip(system.counters()) {
        let figure = format!("  {name} an operation of {figure}");
        figures.put(&figure, "", system.name(), (after - before) / operations);
    }
    took
}

fn per_second(count: f64, took: Duration) -> f64 {
    count / took.as_secs_f64()
}

fn workloads(options: &Options, figures: &mut Figures, system: &mut dyn System) {
    let name = system.name();
    let dir = system.dir();
    let files: u64 = options.size(10_000, 300);
    let large = options.size(1024, 16) * MIB;
    let text = Rng(1).bytes(4096);
    let megabyte = Rng(2).bytes(MIB as usize);
    if options.wants("create") {
        std::fs::create_dir(dir.join("small")).unwrap();
        let mut created = Duration::ZERO;
        let took = measured(figures, system, "create", files as f64, || {
            let began = Instant::now();
            for n in 0..files {
                let mut file = File::create(dir.join(format!("small/file{n}"))).unwrap();
                file.write_all(&text).unwrap();
            }
            created = began.elapsed();
            system.sync();
        });
        figures.put(
            "create: files of 4 KiB",
            "files/s",
            name,
            per_second(files as f64, created),
        );
        figures.put(
            "create: and made durable",
            "files/s",
            name,
            per_second(files as f64, took),
        );
    }
    if options.wants("sequential") {
        let took = measured(figures, system, "sequential", (large / MIB) as f64, || {
            let mut file = File::create(dir.join("large")).unwrap();
            for _ in 0..large / MIB {
                file.write_all(&megabyte).unwrap();
            }
            file.sync_all().unwrap();
        });
        figures.put(
            "sequential: 1 GiB to fsync",
            "MB/s",
            name,
            per_second(large as f64 / 1e6, took),
        );
    }
    if options.wants("append") {
        let count = options.size(2000, 30);
        let took = measured(figures, system, "append", f64::from(count), || {
            let mut file = File::create(dir.join("appended")).unwrap();
            for _ in 0..count {
                file.write_all(&text).unwrap();
                file.sync_all().unwrap();
            }
        });
        figures.put(
            "append: 4 KiB and fsync",
            "1/s",
            name,
            per_second(f64::from(count), took),
        );
    }
    if options.wants("overwrite") && dir.join("large").exists() {
        let count = options.size(2000, 30_u64);
        let file = File::options().write(true).open(dir.join("large")).unwrap();
        let mut rng = Rng(3);
        let took = measured(figures, system, "overwrite", count as f64, || {
            for _ in 0..count {
                let at = rng.below(large / 4096) * 4096;
                std::os::unix::fs::FileExt::write_all_at(&file, &text, at).unwrap();
                file.sync_data().unwrap();
            }
        });
        figures.put(
            "overwrite: 4 KiB and fdatasync",
            "1/s",
            name,
            per_second(count as f64, took),
        );
    }
    if options.wants("read") {
        reads(figures, system, files);
    }
}

fn reads(figures: &mut Figures, system: &mut dyn System, files: u64) {
    let name = system.name();
    let dir = system.dir();
    let made = |path: &str| dir.join(path).exists();
    if !made("large") || !made("small") {
        return;
    }
    system.sync();
    system.cool();
    // The kernel's is mounted anew, elsewhere.
    let dir = system.dir();
    for how in ["cold", "warm"] {
        let mut buffer = vec![0; MIB as usize];
        let began = Instant::now();
        let mut file = File::open(dir.join("large")).unwrap();
        let mut total = 0;
        loop {
            match file.read(&mut buffer).unwrap() {
                0 => break,
                n => total += n,
            }
        }
        let rate = per_second(total as f64 / 1e6, began.elapsed());
        figures.put(&format!("read: sequential, {how}"), "MB/s", name, rate);
        let began = Instant::now();
        for n in 0..files {
            let read = std::fs::read(dir.join(format!("small/file{n}"))).unwrap();
            assert_eq!(read.len(), 4096);
        }
        let rate = per_second(files as f64, began.elapsed());
        figures.put(
            &format!("read: files of 4 KiB, {how}"),
            "files/s",
            name,
            rate,
        );
    }
    let began = Instant::now();
    for n in 0..files {
        std::fs::metadata(dir.join(format!("small/file{n}"))).unwrap();
    }
    figures.put(
        "read: stat, warm",
        "files/s",
        name,
        per_second(files as f64, began.elapsed()),
    );
}

/// Fills with about this much: half in files of 64 KiB, half in large ones.
fn fill(dir: &Path, bytes: u64) {
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

fn first_copy(options: &Options, figures: &mut Figures) {
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

fn until_equal(options: &Options, figures: &mut Figures, system: &Lockstep) {
    let dir = system.dir().join("equal");
    std::fs::create_dir(&dir).unwrap();
    let text = Rng(5).bytes(4096);
    for n in 0..options.size(10_000, 300) {
        std::fs::write(dir.join(format!("file{n}")), &text).unwrap();
    }
    system.sync();
    let began = Instant::now();
    let there = wait_until(Duration::from_secs(60), || {
        let mirror = system.cluster.alpha.mirror(VOLUME, "beta");
        mirror["txid_acked"] == mirror["txid_committed"]
    });
    assert!(there, "not equal after a minute");
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

fn main() {
    let options = Options::of_arguments();
    if !(testkit::need_loop() && testkit::need_fuse() && testkit::need_netns()) {
        return;
    }
    if options.one_cpu {
        let own = std::process::id().to_string();
        run("taskset", &["-a", "-c", "-p", "0", &own]).unwrap();
    }
    let placement = if options.one_cpu {
        "programs and daemons on CPU 0 (taskset)"
    } else {
        "free"
    };
    let mut figures = Figures::default();
    let mib = options.size(3072, 192);
    let any = [
        "create",
        "sequential",
        "append",
        "overwrite",
        "read",
        "equal",
        "memory",
    ];
    if any.iter().any(|figure| options.wants(figure)) {
        let dir = tempfile::Builder::new()
            .prefix("figures-")
            .tempdir_in(env!("CARGO_TARGET_TMPDIR"))
            .unwrap();
        let image = dir.path().join("image");
        mke2fs(&image, mib * MIB, &testkit::DEBIAN_12).unwrap();
        let mount = LoopMount::new(&image).unwrap();
        let mut kernel = Kernel {
            image,
            mount: Some(mount),
        };
        workloads(&options, &mut figures, &mut kernel);
        drop(kernel);
        drop(dir);
        for name in [ALONE, MIRRORED, SYNC] {
            let mut cluster = Cluster::linked();
            for node in cluster.nodes() {
                place(node, options.one_cpu);
            }
            cluster.volume(mib, &[]);
            if name != ALONE {
                cluster.mirror(match name {
                    SYNC => &["--mode", "sync"],
                    _ => &[],
                });
                cluster.insync();
                cluster.mount_mirror();
                cluster.beta.wait_mounted(VOLUME, Duration::from_secs(30));
            }
            let mut system = Lockstep {
                name,
                cluster,
                one_cpu: options.one_cpu,
            };
            workloads(&options, &mut figures, &mut system);
            if name == MIRRORED && options.wants("equal") {
                until_equal(&options, &mut figures, &system);
            }
            let cluster = &system.cluster;
            for (what, field) in [("now", "VmRSS:"), ("at most", "VmHWM:")] {
                let figure = format!("memory: master's daemon, {what}");
                figures.put(
                    &figure,
                    "MiB",
                    name,
                    memory(&cluster.alpha, field) / MIB as f64,
                );
                if name != ALONE {
                    let figure = format!("memory: mirror's daemon, {what}");
                    figures.put(
                        &figure,
                        "MiB",
                        name,
                        memory(&cluster.beta, field) / MIB as f64,
                    );
                }
            }
            if name != ALONE {
                system.cluster.insync();
                system.cluster.verify();
            }
            system.cluster.stop();
        }
    }
    if options.wants("first copy") || options.wants("copy") {
        first_copy(&options, &mut figures);
    }
    println!(
        "placement: {placement}; {} CPUs",
        std::thread::available_parallelism().unwrap()
    );
    println!("{}", figures.table());
    println!("{}", figures.json(placement));
}
