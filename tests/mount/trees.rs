//! Whole trees, written by several programs at once, compared with where they came from; and what stress-ng makes of it.

use std::process::Stdio;

use crate::rig::{Rig, possible, set};
use crate::testkit::tree::Compare;
use crate::testkit::{command, need_tool, populate_tree, run_for, said, tree_digest};

#[test]
fn a_tree_unpacked_by_several_is_the_tree_that_was_packed() {
    if !(possible() && need_tool("tar") && need_tool("diff")) {
        return;
    }
    let rig = Rig::with(set("upstream"), 384, false);
    let source = rig.scratch().join("tree");
    std::fs::create_dir(&source).expect("made");
    populate_tree(&source, 5, 1500).expect("filled");
    // tar leaves sockets out, and diff knows no device.
    let top = source.to_string_lossy();
    rig.tool(
        60,
        "find",
        &[
            &top, "-not", "-type", "f", "-not", "-type", "d", "-not", "-type", "l", "-delete",
        ],
    );
    let archive = rig.scratch().join("tree.tar");
    let archive = archive.to_string_lossy().into_owned();
    let from = source.to_string_lossy().into_owned();
    rig.tool(
        60,
        "tar",
        &[
            "--xattrs", "--acls", "-S", "-cf", &archive, "-C", &from, ".",
        ],
    );
    let mut children = Vec::new();
    for i in 0..4 {
        let to = rig.path(format!("copy-{i}"));
        std::fs::create_dir(&to).expect("made");
        let child = command("timeout")
            .args([
                "120",
                "tar",
                "--xattrs",
                "--xattrs-include=*",
                "--acls",
                "-S",
                "-xpf",
                &archive,
                "-C",
            ])
            .arg(&to)
            .stderr(Stdio::inherit())
            .spawn()
            .expect("started");
        children.push((to, child));
    }
    for (_, child) in &mut children {
        assert!(child.wait().expect("waited for").success());
    }
    let packed = tree_digest(&source).expect("listed");
    for (to, _) in &children {
        let to_name = to.to_string_lossy();
        rig.tool(120, "diff", &["-r", "--no-dereference", &from, &to_name]);
        let unpacked = tree_digest(to).expect("listed");
        packed.assert_same(&unpacked, Compare::VISIBLE);
    }
    // Half of them go, while another copy is made from within.
    let (old, new) = (rig.path("copy-0"), rig.path("again"));
    std::thread::scope(|scope| {
        for i in 1..3 {
            let rig = &rig;
            scope.spawn(move || {
                std::fs::remove_dir_all(rig.path(format!("copy-{i}"))).expect("removed")
            });
        }
        rig.tool(
            120,
            "cp",
            &["-a", &old.to_string_lossy(), &new.to_string_lossy()],
        );
    });
    let again = tree_digest(&new).expect("listed");
    packed.assert_same(&again, Compare::VISIBLE);
    rig.finish();
}

/// Stressors of the class that make sense on a file system of their own, most of them checking what they read. Left out: what
/// needs another file system or a device, what the kernel refuses on every FUSE mount, and what only counts.
const STRESSORS: &[&str] = &[
    "access",
    "chdir",
    "chmod",
    "chown",
    "copy-file",
    "dentry",
    "dir",
    "dirdeep",
    "dirmany",
    "dup",
    "eventfd",
    "fallocate",
    "fcntl",
    "fiemap",
    "file-ioctl",
    "filename",
    "flock",
    "fpunch",
    "fsize",
    "fstat",
    "getdent",
    "handle",
    "hdd",
    "io",
    "iomix",
    "lease",
    "link",
    "locka",
    "lockf",
    "lockofd",
    "mknod",
    "open",
    "readahead",
    "rename",
    "seek",
    "sendfile",
    "symlink",
    "sync-file",
    "touch",
    "utime",
    "verity",
    "xattr",
];

#[test]
fn stress_ng_verifies_what_it_does() {
    if !(possible() && need_tool("stress-ng")) {
        return;
    }
    let rig = Rig::new(1024);
    let mut failed = Vec::new();
    for stressor in STRESSORS {
        let flag = format!("--{stressor}");
        let path = rig.dir().to_string_lossy();
        // Not every stressor keeps to its path: some leave files where they are started.
        let args = [
            "--chdir",
            &path,
            "stress-ng",
            flag.as_str(),
            "1",
            "--verify",
            "--timeout",
            "1",
            "--temp-path",
            &path,
            "--metrics-brief",
        ];
        let out = run_for(60, "env", &args).expect("it runs");
        // 3: no resources, or not implemented on this kernel; 4: not implemented.
        if !matches!(out.status.code(), Some(0 | 3 | 4)) {
            failed.push(format!("{stressor}: {}\n{}", out.status, said(&out)));
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
    rig.finish_unread();
}
