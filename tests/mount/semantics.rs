//! What programs rely on that is not in the POSIX suite: holes, mappings, direct I/O, files that lost their name.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};

use rustix::fs::{FallocateFlags, SeekFrom, fallocate, seek};

use crate::rig::{MIB, Rig, possible, set};
use crate::testkit::{need_tool, run_for};

fn runs(file: &File) -> Vec<(u64, u64)> {
    let (mut runs, mut from) = (Vec::new(), 0);
    while let Ok(start) = seek(file, SeekFrom::Data(from)) {
        let end = seek(file, SeekFrom::Hole(start)).expect("every run ends");
        runs.push((start, end));
        from = end;
    }
    runs
}

fn read_write() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    options
}

#[test]
fn holes_are_where_nothing_was_written_or_something_was_punched() {
    if !possible() {
        return;
    }
    let rig = Rig::new(64);
    let file = read_write().open(rig.path("holes")).expect("opened");
    file.write_all_at(&[1; 8192], 16384).expect("written");
    file.write_all_at(&[2; 4096], MIB).expect("written");
    file.set_len(2 * MIB).expect("lengthened");
    assert_eq!(runs(&file), [(16384, 24576), (MIB, MIB + 4096)]);
    // Written and not yet at home: still data.
    file.write_all_at(&[3; 65536], 4 * MIB).expect("written");
    assert_eq!(runs(&file).last(), Some(&(4 * MIB, 4 * MIB + 65536)));
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    fallocate(&file, punch, 4 * MIB + 4096, 8192).expect("punched");
    file.sync_all().expect("synced");
    assert_eq!(
        runs(&file)[2..],
        [
            (4 * MIB, 4 * MIB + 4096),
            (4 * MIB + 12288, 4 * MIB + 65536)
        ]
    );
    let mut buf = [9; 16384];
    file.read_exact_at(&mut buf, 4 * MIB).expect("read");
    assert!(buf[..4096].iter().all(|b| *b == 3));
    assert!(buf[4096..12288].iter().all(|b| *b == 0));
    assert!(buf[12288..].iter().all(|b| *b == 3));
    // Allocated, and reads as zeros.
    fallocate(&file, FallocateFlags::ZERO_RANGE, 16384, 4096).expect("zeroed");
    file.read_exact_at(&mut buf[..8192], 16384).expect("read");
    assert!(buf[..4096].iter().all(|b| *b == 0) && buf[4096..8192].iter().all(|b| *b == 1));
    fallocate(&file, FallocateFlags::KEEP_SIZE, 8 * MIB, MIB).expect("allocated");
    assert_eq!(file.metadata().expect("known").len(), 4 * MIB + 65536);
    assert!(file.metadata().expect("known").blocks() >= 2048);
    let collapse = fallocate(&file, FallocateFlags::COLLAPSE_RANGE, 0, 4096);
    assert_eq!(collapse, Err(rustix::io::Errno::OPNOTSUPP));
    drop(file);
    rig.finish();
}

#[test]
fn a_file_without_a_name_lives_until_it_is_closed() {
    if !possible() {
        return;
    }
    let rig = Rig::new(64);
    let free = || rustix::fs::statvfs(rig.dir()).expect("known").f_bfree;
    let mut file = read_write().open(rig.path("gone")).expect("opened");
    file.write_all(&vec![5; MIB as usize]).expect("written");
    std::fs::remove_file(rig.path("gone")).expect("unlinked");
    assert_eq!(file.metadata().expect("known").nlink(), 0);
    file.write_all(&vec![6; MIB as usize]).expect("written");
    file.sync_all().expect("synced");
    let held = free();
    let mut back = vec![0; 2 * MIB as usize];
    file.read_exact_at(&mut back, 0).expect("read");
    assert!(back[..MIB as usize].iter().all(|b| *b == 5));
    assert!(back[MIB as usize..].iter().all(|b| *b == 6));
    // Replaced while it is open.
    std::fs::write(rig.path("old"), b"old").expect("written");
    std::fs::write(rig.path("new"), b"new").expect("written");
    let mut old = File::open(rig.path("old")).expect("opened");
    std::fs::rename(rig.path("new"), rig.path("old")).expect("renamed");
    let mut text = String::new();
    old.read_to_string(&mut text).expect("read");
    assert_eq!(text, "old");
    assert_eq!(std::fs::read(rig.path("old")).expect("read"), b"new");
    drop((file, old));
    rig.sync();
    assert!(
        crate::testkit::wait_until(std::time::Duration::from_secs(10), || free() >= held + 500),
        "the space of a closed file without a name comes back"
    );
    // FUSE's answer to O_TMPFILE, where the server has none.
    let tmpfile = OpenOptions::new()
        .write(true)
        .custom_flags(libc::O_TMPFILE)
        .open(rig.dir());
    assert_eq!(
        tmpfile.expect_err("refused").raw_os_error(),
        Some(libc::EOPNOTSUPP)
    );
    rig.finish();
}

#[test]
fn hard_links_and_renames_are_what_they_say() {
    if !possible() {
        return;
    }
    let rig = Rig::new(64);
    let (a, b, d) = (rig.path("a"), rig.path("b"), rig.path("d"));
    std::fs::write(&a, b"text").expect("written");
    std::fs::create_dir(&d).expect("made");
    std::fs::hard_link(&a, &b).expect("linked");
    std::fs::hard_link(&a, d.join("c")).expect("linked");
    assert_eq!(std::fs::metadata(&a).expect("known").nlink(), 3);
    std::fs::write(&b, b"other").expect("written");
    assert_eq!(std::fs::read(d.join("c")).expect("read"), b"other");
    std::fs::remove_file(&a).expect("unlinked");
    assert_eq!(std::fs::metadata(&b).expect("known").nlink(), 2);
    let cwd = rustix::fs::CWD;
    let flags = rustix::fs::RenameFlags::NOREPLACE;
    let refused = rustix::fs::renameat_with(cwd, &b, cwd, d.join("c"), flags);
    assert_eq!(refused, Err(rustix::io::Errno::EXIST));
    std::fs::create_dir(rig.path("e")).expect("made");
    std::fs::write(rig.path("e/inside"), b"x").expect("written");
    let flags = rustix::fs::RenameFlags::EXCHANGE;
    rustix::fs::renameat_with(cwd, &b, cwd, rig.path("e"), flags).expect("exchanged");
    assert_eq!(std::fs::read(rig.path("b/inside")).expect("read"), b"x");
    assert_eq!(std::fs::read(rig.path("e")).expect("read"), b"other");
    let into_itself = std::fs::rename(&d, d.join("below"));
    assert_eq!(
        into_itself.expect_err("refused").raw_os_error(),
        Some(libc::EINVAL)
    );
    rig.finish();
}

/// Writes through a mapping, has it written back, and leaves a part that nobody asked to be.
const MAPPER: &str = "
import mmap, os, sys
fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
os.ftruncate(fd, 1 << 20)
m = mmap.mmap(fd, 1 << 20)
for i in range(0, 1 << 20, 8192):
    m[i:i+5] = b'mmap!'
m.flush()
assert os.pread(fd, 5, 8192) == b'mmap!'
os.pwrite(fd, b'pwrite', 4096)
assert m[4096:4102] == b'pwrite'
m[100:105] = b'later'
";

#[test]
fn mappings_and_writes_see_each_other() {
    if !(possible() && need_tool("python3")) {
        return;
    }
    let rig = Rig::with(set("upstream-1k"), 64, true);
    let path = rig.path("mapped");
    let args = ["-c", MAPPER, &path.to_string_lossy()];
    rig.tool(30, "python3", &args);
    let bytes = std::fs::read(&path).expect("read");
    assert_eq!(&bytes[100..105], b"later");
    assert_eq!(&bytes[4096..4102], b"pwrite");
    assert!(
        (0..1 << 20)
            .step_by(8192)
            .all(|i| &bytes[i..i + 5] == b"mmap!")
    );
    rig.finish();
}

#[test]
fn direct_reads_see_buffered_writes_and_the_other_way_round() {
    if !(possible() && need_tool("dd")) {
        return;
    }
    let rig = Rig::new(64);
    let path = rig.path("direct");
    std::fs::write(&path, vec![7; MIB as usize]).expect("written");
    let input = format!("if={}", path.display());
    let copy = format!("of={}", rig.path("copy").display());
    rig.tool(
        30,
        "dd",
        &[&input, &copy, "bs=64k", "iflag=direct", "oflag=direct"],
    );
    assert_eq!(
        std::fs::read(rig.path("copy")).expect("read"),
        vec![7; MIB as usize]
    );
    // Over what the kernel has in its cache.
    let over = format!("of={}", path.display());
    let args = [
        "if=/dev/zero",
        &over,
        "bs=4k",
        "count=3",
        "seek=10",
        "oflag=direct",
        "conv=notrunc",
    ];
    rig.tool(30, "dd", &args);
    let bytes = std::fs::read(&path).expect("read");
    assert!(bytes[10 * 4096..13 * 4096].iter().all(|b| *b == 0));
    assert!(bytes[13 * 4096..].iter().all(|b| *b == 7));
    rig.finish();
}

#[test]
fn access_control_lists_and_attributes_hold() {
    if !(possible() && need_tool("setfacl") && need_tool("getfacl")) {
        return;
    }
    let rig = Rig::new(64);
    let dir = rig.path("dir");
    let dir_name = dir.to_string_lossy().into_owned();
    std::fs::create_dir(&dir).expect("made");
    rig.tool(
        10,
        "setfacl",
        &["-m", "u:nobody:rwx,g:daemon:r-x", &dir_name],
    );
    rig.tool(
        10,
        "setfacl",
        &["-d", "-m", "u:daemon:rw-,g::r--", &dir_name],
    );
    std::fs::create_dir(dir.join("sub")).expect("made");
    std::fs::write(dir.join("sub/file"), b"text").expect("written");
    let sub = dir.join("sub/file").to_string_lossy().into_owned();
    let said = rig.tool(10, "getfacl", &["-p", "-c", &sub]);
    assert!(said.contains("user:daemon:rw-"), "{said}");
    assert!(said.contains("group::r--"), "{said}");
    let said = rig.tool(10, "getfacl", &["-p", "-c", &dir_name]);
    assert!(
        said.contains("user:nobody:rwx") && said.contains("default:user:daemon:rw-"),
        "{said}"
    );
    // Enforced, not only kept.
    rig.tool(10, "chmod", &["700", &dir_name]);
    rig.tool(10, "setfacl", &["-m", "u:nobody:r-x", &dir_name]);
    for parent in [rig.dir(), rig.dir().parent().expect("has one")] {
        rig.tool(10, "chmod", &["755", &parent.to_string_lossy()]);
    }
    let list = |user: &str| {
        let args = [
            "--reuid",
            user,
            "--regid",
            "nogroup",
            "--clear-groups",
            "ls",
            &dir_name,
        ];
        let out = run_for(10, "setpriv", &args).expect("it runs");
        out.status.success()
    };
    assert!(list("nobody"), "the list lets nobody in");
    assert!(!list("daemon"), "and nobody else");
    rig.tool(10, "setfacl", &["-b", &dir_name]);
    assert!(!list("nobody"));

    let file = dir.join("sub/file");
    let set = |name: &str, value: &[u8]| {
        rustix::fs::setxattr(&file, name, value, rustix::fs::XattrFlags::empty())
    };
    set("user.small", b"value").expect("set");
    set("user.large", &[9; 3000]).expect("set");
    set("trusted.one", b"").expect("set");
    assert_eq!(set("user.huge", &[1; 5000]), Err(rustix::io::Errno::NOSPC));
    let mut buf = [0; 4000];
    let len = rustix::fs::getxattr(&file, "user.large", &mut buf[..]).expect("got");
    assert_eq!(&buf[..len], &[9; 3000]);
    rustix::fs::removexattr(&file, "user.large").expect("removed");
    let gone = rustix::fs::getxattr(&file, "user.large", &mut buf[..]);
    assert_eq!(gone, Err(rustix::io::Errno::NODATA));
    rig.finish();
}
