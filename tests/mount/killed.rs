//! A process that is killed while it holds a mount.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use lockstepfs::fuse::clear_stale;

use crate::rig::{Live, MIB, judge, possible};
use crate::testkit::{DEBIAN_12, mke2fs, tree_digest};

/// Where the child finds what to mount.
const IMAGE: &str = "LOCKSTEP_TEST_IMAGE";
const DIR: &str = "LOCKSTEP_TEST_DIR";

/// Not a test by itself: the process that is killed.
#[test]
fn holds_a_mount_until_it_is_killed() {
    let (Some(image), Some(dir)) = (std::env::var_os(IMAGE), std::env::var_os(DIR)) else {
        return;
    };
    let live = Live::open(Path::new(&image), Path::new(&dir), true);
    println!("mounted");
    loop {
        std::thread::park();
        assert!(live.mount().is_mounted());
    }
}

/// Killed, and its mount taken away, whatever happens.
struct Holder {
    child: Child,
    dir: PathBuf,
}

impl Holder {
    fn start(image: &Path, dir: &Path) -> Holder {
        let program = std::env::current_exe().expect("this program");
        let mut child = Command::new(program)
            .args(["--exact", "killed::holds_a_mount_until_it_is_killed"])
            .args(["--nocapture", "--test-threads=1"])
            .env(IMAGE, image)
            .env(DIR, dir)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("started");
        let out = child.stdout.take().expect("piped");
        let mounted = BufReader::new(out)
            .lines()
            .map_while(Result::ok)
            .any(|line| line.contains("mounted"));
        let holder = Holder {
            child,
            dir: dir.to_path_buf(),
        };
        assert!(mounted, "the other process mounts");
        holder
    }

    fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        self.kill();
        let _ = clear_stale(&self.dir);
    }
}

#[test]
fn a_killed_process_leaves_a_mount_that_can_be_cleared_and_what_was_synced() {
    if !possible() {
        return;
    }
    let work = tempfile::tempdir().expect("a directory");
    let image = work.path().join("image");
    let dir = work.path().join("mnt");
    std::fs::create_dir(&dir).expect("made");
    mke2fs(&image, 64 * MIB, &DEBIAN_12).expect("mke2fs");
    assert!(!clear_stale(&dir).expect("nothing to clear"));
    for round in 0..3_u8 {
        let mut holder = Holder::start(&image, &dir);
        assert!(!clear_stale(&dir).expect("a live mount is left alone"));
        for earlier in 0..round {
            let bytes = std::fs::read(dir.join(format!("synced-{earlier}"))).expect("there");
            assert_eq!(bytes, vec![earlier; 200_000]);
        }
        let mut file = File::create(dir.join(format!("synced-{round}"))).expect("created");
        file.write_all(&vec![round; 200_000]).expect("written");
        file.sync_all().expect("synced");
        std::fs::write(dir.join("unsynced"), vec![round; 300_000]).expect("written");
        holder.kill();
        assert_eq!(
            std::fs::metadata(&dir)
                .expect_err("nobody serves it")
                .raw_os_error(),
            Some(libc::ENOTCONN)
        );
        drop(file);
        if round == 0 {
            assert!(clear_stale(&dir).expect("cleared"));
            assert_eq!(std::fs::read_dir(&dir).expect("listed").count(), 0);
        }
        // Otherwise mounting clears it.
    }
    let live = Live::open(&image, &dir, false);
    for round in 0..3_u8 {
        let bytes = std::fs::read(dir.join(format!("synced-{round}"))).expect("there");
        assert_eq!(bytes, vec![round; 200_000]);
    }
    let before = tree_digest(&dir).expect("listed");
    live.close();
    judge(&image, &before);
}
