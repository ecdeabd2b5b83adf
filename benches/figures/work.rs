//! One program at work on one system.

use std::fs::File;
use std::io::{Read, Write};
use std::time::{Duration, Instant};

use crate::systems::System;
use crate::table::Figures;
use crate::testkit::Rng;
use crate::{MIB, Options};

/// Measures the work of `operations`, and what the system counted meanwhile.
pub fn measured(
    figures: &mut Figures,
    system: &dyn System,
    figure: &str,
    operations: f64,
    work: impl FnOnce(),
) -> Duration {
    system.settle();
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

pub fn per_second(count: f64, took: Duration) -> f64 {
    count / took.as_secs_f64()
}

pub fn workloads(options: &Options, figures: &mut Figures, system: &mut dyn System, round: u32) {
    let name = system.name();
    let dir = system.dir().join(format!("round{round}"));
    std::fs::create_dir(&dir).unwrap();
    let many = options.rounds > 1;
    let files: u64 = options.size(if many { 2000 } else { 10_000 }, 300);
    let large = options.size(if many { 128 } else { 1024 }, 16) * MIB;
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
            "sequential: to fsync",
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
        reads(figures, system, files, round);
    }
    // The next round finds the room that this one found.
    std::fs::remove_dir_all(system.dir().join(format!("round{round}"))).unwrap();
    system.settle();
}

pub fn reads(figures: &mut Figures, system: &mut dyn System, files: u64, round: u32) {
    let name = system.name();
    let dir = system.dir().join(format!("round{round}"));
    let made = |path: &str| dir.join(path).exists();
    if !made("large") || !made("small") {
        return;
    }
    system.sync();
    system.cool();
    // The kernel's is mounted anew, elsewhere.
    let dir = system.dir().join(format!("round{round}"));
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
