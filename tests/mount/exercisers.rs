//! File system exercisers and a POSIX suite, each of which says itself whether what it read is what it wrote.

use std::path::PathBuf;

use crate::rig::{Rig, last_lines, possible, set};
use crate::testkit::{need_tool, run_for};

/// Everything that fsx can do, weighted towards changing the file.
const FSX: &str = "flen = 1048576
[opsize]
max = 131072
[weights]
close_open = 1
invalidate = 1
mapread = 5
mapwrite = 5
read = 10
write = 20
truncate = 5
fsync = 1
fdatasync = 1
posix_fallocate = 3
punch_hole = 3
sendfile = 1
posix_fadvise = 1
copy_file_range = 1
";

fn fsx(rig: &Rig, seeds: std::ops::Range<u32>) {
    let config = rig.scratch().join("fsx.toml");
    std::fs::write(&config, FSX).expect("written");
    let config = config.to_string_lossy();
    let scratch = rig.scratch();
    for seed in seeds {
        let file = rig.path(format!("fsx{seed}"));
        let args = [
            "-q",
            "-N",
            "3000",
            "-S",
            &seed.to_string(),
            "-f",
            &config,
            "-P",
            &scratch.to_string_lossy(),
            &file.to_string_lossy(),
        ];
        rig.tool(120, "fsx", &args);
    }
}

#[test]
fn fsx_reads_what_it_wrote() {
    if !(possible() && need_tool("fsx")) {
        return;
    }
    let rig = Rig::new(128);
    fsx(&rig, 1..4);
    rig.finish();
}

#[test]
fn fsx_reads_what_it_wrote_by_value_and_in_small_blocks() {
    if !(possible() && need_tool("fsx")) {
        return;
    }
    let rig = Rig::with(set("upstream-1k"), 128, true);
    fsx(&rig, 11..14);
    rig.finish();
}

/// What of the suite's optional parts holds here; the users have to exist everywhere.
const PJDFSTEST: &str = r#"
[features]
posix_fallocate = {}
rename_ctime = {}
utime_now = {}
utimensat = {}
[settings]
naptime = 0.01
allow_remount = false
[dummy_auth]
entries = [["nobody", "nogroup"], ["daemon", "daemon"]]
"#;

/// A directory of which the path is so long that the suite's arithmetic of longest paths works out (it overflows for one
/// length in 127), and short enough for sockets.
fn suited(rig: &Rig) -> PathBuf {
    const LEN: usize = 26;
    let so_far = rig.dir().as_os_str().len() + 1;
    let dir = rig.path("p".repeat(LEN.saturating_sub(so_far).max(1)));
    std::fs::create_dir(&dir).expect("a directory");
    dir
}

#[test]
fn pjdfstest_finds_nothing_that_is_not_posix() {
    if !(possible() && need_tool("pjdfstest")) {
        return;
    }
    let rig = Rig::new(256);
    let config = rig.scratch().join("pjdfstest.toml");
    std::fs::write(&config, PJDFSTEST).expect("written");
    let dir = suited(&rig);
    let args = [
        "-c",
        &config.to_string_lossy(),
        "-p",
        &dir.to_string_lossy(),
    ];
    let out = run_for(120, "pjdfstest", &args).expect("it runs");
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let failed: Vec<&str> = text.lines().filter(|l| l.ends_with("FAILED")).collect();
    let summary = text.lines().find(|l| l.contains("Summary"));
    assert!(
        failed.is_empty() && summary.is_some_and(|l| l.contains(" 0 failed")),
        "{}\n{}",
        failed.join("\n"),
        last_lines(&out, 5)
    );
    std::fs::remove_dir_all(&dir).expect("removed");
    rig.finish();
}

/// Jobs of fio; each writes, then reads all of it back against checksums in the blocks.
const FIO: &[(&str, &[&str])] = &[
    ("sequential", &["--rw=write", "--bs=256k"]),
    ("random", &["--rw=randwrite", "--bs=4k"]),
    (
        "odd",
        &["--rw=randwrite", "--bs=3k", "--verify_interval=1k"],
    ),
    ("mmap", &["--rw=randwrite", "--bs=4k", "--ioengine=mmap"]),
    ("direct", &["--rw=randwrite", "--bs=8k", "--direct=1"]),
    ("synced", &["--rw=randwrite", "--bs=16k", "--fsync=16"]),
    (
        "preallocated",
        &["--rw=randwrite", "--bs=4k", "--fallocate=posix"],
    ),
];

fn fio(rig: &Rig, (name, more): &(&str, &[&str])) {
    let name = format!("--name={name}");
    let dir = format!("--directory={}", rig.dir().display());
    let mut args = vec![
        name.as_str(),
        &dir,
        "--size=16m",
        "--verify=crc32c",
        "--verify_fatal=1",
        "--do_verify=1",
        // No file about it where the test runs.
        "--verify_state_save=0",
        "--randseed=7",
    ];
    args.extend(*more);
    let said = rig.tool(120, "fio", &args);
    assert!(!said.contains("verify:"), "{said}");
}

#[test]
fn fio_verifies_what_it_wrote() {
    if !(possible() && need_tool("fio")) {
        return;
    }
    for mirrored in [false, true] {
        let rig = Rig::with(set("debian-12"), 384, mirrored);
        for job in FIO {
            fio(&rig, job);
        }
        rig.finish();
    }
}

#[test]
fn many_clients_of_dbench_are_served() {
    if !(possible() && need_tool("dbench")) {
        return;
    }
    let rig = Rig::new(512);
    let dir = rig.dir().to_string_lossy().into_owned();
    rig.tool(60, "dbench", &["-D", &dir, "-t", "5", "4"]);
    rig.finish();
}

#[test]
fn a_database_stays_whole() {
    if !(possible() && need_tool("sqlite3")) {
        return;
    }
    let rig = Rig::with(set("debian-12"), 128, true);
    for mode in ["delete", "wal", "truncate"] {
        let db = rig.path(format!("{mode}.db"));
        let db = db.to_string_lossy();
        let sql = format!(
            "pragma journal_mode={mode}; create table t(a integer primary key, b text);
             with recursive c(x) as (select 1 union all select x+1 from c where x<20000)
             insert into t select x, hex(randomblob(30)) from c;
             delete from t where a % 3 = 0; update t set b = b || 'x' where a % 5 = 0; vacuum;"
        );
        rig.tool(60, "sqlite3", &[&db, &sql]);
        for i in 0..20 {
            let sql = format!("insert into t(b) values('row {i}');");
            rig.tool(60, "sqlite3", &[&db, &sql]);
        }
        let said = rig.tool(
            60,
            "sqlite3",
            &[&db, "pragma integrity_check; select count(*) from t;"],
        );
        assert_eq!(said.split_whitespace().collect::<Vec<_>>(), ["ok", "13354"]);
    }
    rig.finish();
}
