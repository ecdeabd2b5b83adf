//! The figures: what a volume costs beside the kernel's ext4 on a loop device, without and with a mirror, in one run.
//!
//!     cargo bench --bench figures                        all of them, some minutes
//!     cargo bench --bench figures -- create append       those whose names contain one of the words
//!     cargo bench --bench figures -- --rounds 11         medians of so many rounds, the systems taking turns; smaller rounds
//!     cargo bench --bench figures -- --store DIR         the mirrors' copies there: on a disk of their own, or in memory
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

mod copies;
mod systems;
mod table;
mod work;

#[path = "../../tests/cluster/cluster.rs"]
mod cluster;
#[path = "../../tests/cluster/daemon.rs"]
mod daemon;
#[path = "../../tests/testkit/mod.rs"]
mod testkit;

use cluster::{Cluster, VOLUME};
use std::path::PathBuf;
use std::time::Duration;
use systems::{Elsewhere, Kernel, Lockstep, System, memory, place};
use table::{ALONE, Figures, MIRRORED, SYNC};
use testkit::{LoopMount, mke2fs, run};

const MIB: u64 = 1 << 20;

/// What is asked for.
struct Options {
    words: Vec<String>,
    smoke: bool,
    one_cpu: bool,
    rounds: u32,
    /// Where the mirrors' copies are, if not beside the master's.
    store: Option<PathBuf>,
}

impl Options {
    fn of_arguments() -> Options {
        let mut options = Options {
            words: Vec::new(),
            smoke: false,
            one_cpu: false,
            rounds: 1,
            store: None,
        };
        let mut arguments = std::env::args().skip(1);
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--rounds" => {
                    let rounds = arguments.next().and_then(|text| text.parse().ok());
                    options.rounds = rounds.filter(|n| *n > 0).expect("--rounds NUMBER");
                }
                "--smoke" => options.smoke = true,
                "--one-cpu" => options.one_cpu = true,
                "--store" => options.store = arguments.next().map(PathBuf::from),
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
        systems_at_work(&options, &mut figures, mib);
    }
    if options.wants("first copy") || options.wants("copy") {
        copies::first_copy(&options, &mut figures);
    }
    if options.wants("cut") {
        copies::cut(&options, &mut figures);
    }
    if options.wants("resync") {
        copies::resync(&options, &mut figures);
    }
    println!(
        "placement: {placement}; {} CPUs",
        std::thread::available_parallelism().unwrap()
    );
    println!("{}", figures.table());
    println!("{}", figures.json(placement));
}

/// The kernel's ext4, and volumes without a mirror, with one, and with one in sync mode: all there, one at work at a time.
fn systems_at_work(options: &Options, figures: &mut Figures, mib: u64) {
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
    let mut volumes = [ALONE, MIRRORED, SYNC].map(|name| volume(options, name, mib));
    for round in 0..options.rounds {
        work::workloads(options, figures, &mut kernel, round);
        for system in &mut volumes {
            work::workloads(options, figures, system, round);
        }
    }
    if options.wants("equal") {
        copies::until_equal(options, figures, &volumes[1]);
    }
    for mut system in volumes {
        let (name, cluster) = (system.name, &system.cluster);
        for (what, field) in [("now", "VmRSS:"), ("at most", "VmHWM:")] {
            for (whose, node) in [("master", &cluster.alpha), ("mirror", &cluster.beta)] {
                let figure = format!("memory: {whose}'s daemon, {what}");
                figures.put(&figure, "MiB", name, memory(node, field) / MIB as f64);
            }
        }
        if name != ALONE {
            system.settle();
            cluster.verify();
        }
        system.cluster.stop();
    }
    if let Some(store) = &options.store {
        std::fs::remove_dir_all(store).unwrap();
    }
}

fn volume(options: &Options, name: &'static str, mib: u64) -> Lockstep {
    let mut cluster = Cluster::linked();
    for node in cluster.nodes() {
        place(node, options.one_cpu);
    }
    cluster.volume(mib, &[]);
    let apart = |dir: &PathBuf| {
        let own = dir.join(name.replace(' ', "-"));
        std::fs::create_dir_all(&own).unwrap();
        Elsewhere::new(&cluster, &own)
    };
    let elsewhere = options.store.as_ref().map(apart);
    if name != ALONE {
        cluster.mirror(match name {
            SYNC => &["--mode", "sync"],
            _ => &[],
        });
        cluster.insync();
        cluster.mount_mirror();
        cluster.beta.wait_mounted(VOLUME, Duration::from_secs(30));
    }
    Lockstep {
        name,
        elsewhere,
        cluster,
        one_cpu: options.one_cpu,
    }
}
