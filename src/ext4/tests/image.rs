//! An image file with a file system in it, and the tools that look at it.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::ext4::{GroupDesc, Superblock};
use crate::units::{BlockNo, GroupNo};

/// A way to call mke2fs.
#[derive(Clone, Copy)]
pub struct Variant {
    pub name: &'static str,
    pub size_kib: u32,
    pub options: &'static [&'static str],
    /// Directories get a hash index.
    pub indexed: bool,
    /// Files are mapped by extents.
    pub extents: bool,
}

pub const fn variant(
    name: &'static str,
    size_kib: u32,
    options: &'static [&'static str],
) -> Variant {
    Variant {
        name,
        size_kib,
        options,
        indexed: true,
        extents: true,
    }
}

pub const VARIANTS: &[Variant] = &[
    variant("default of 4 KiB", 64 << 10, &["-b", "4096"]),
    variant("1 KiB, short last group", 41 << 10, &["-b", "1024"]),
    variant("2 KiB", 70_002, &["-b", "2048"]),
    variant(
        "small groups",
        100_001,
        &["-b", "1024", "-g", "1024", "-G", "8"],
    ),
    variant(
        "gdt_csum",
        40 << 10,
        &["-b", "1024", "-O", "^metadata_csum,uninit_bg"],
    ),
    variant(
        "no checksums",
        40 << 10,
        &["-b", "4096", "-O", "^metadata_csum,^uninit_bg"],
    ),
    variant(
        "meta_bg",
        300 << 10,
        &["-b", "1024", "-O", "meta_bg,^resize_inode"],
    ),
    variant(
        "descriptors of 32 bytes",
        60 << 10,
        &["-b", "1024", "-O", "^64bit"],
    ),
    variant(
        "seed, orphan file, mmp, large_dir",
        64 << 10,
        &[
            "-b",
            "1024",
            "-O",
            "metadata_csum_seed,orphan_file,mmp,large_dir",
        ],
    ),
    variant(
        "sparse_super2",
        60 << 10,
        &["-b", "1024", "-O", "sparse_super2", "-E", "num_backup_sb=2"],
    ),
    variant(
        "no sparse_super, no flex_bg",
        60 << 10,
        &["-b", "1024", "-O", "^sparse_super,^flex_bg,^resize_inode"],
    ),
    variant(
        "inodes of 128 bytes",
        60 << 10,
        &["-b", "1024", "-I", "128"],
    ),
    variant(
        "inodes of 512 bytes, tea",
        60 << 10,
        &[
            "-b",
            "2048",
            "-I",
            "512",
            "-E",
            "hash_seed=11223344-5566-7788-99aa-bbccddeeff00",
        ],
    ),
    Variant {
        extents: false,
        ..variant(
            "block maps",
            60 << 10,
            &["-b", "1024", "-O", "^extent,^64bit,^flex_bg"],
        )
    },
    Variant {
        indexed: false,
        ..variant(
            "old features only",
            60 << 10,
            &[
                "-b",
                "1024",
                "-O",
                "^dir_index,^filetype,^64bit,^flex_bg,^huge_file,^dir_nlink,^extra_isize,^metadata_csum,^uninit_bg",
            ],
        )
    },
];

pub struct Image {
    pub variant: Variant,
    pub path: PathBuf,
    file: File,
    _dir: tempfile::TempDir,
}

/// Says why a test does nothing; fails where everything has to be there.
pub fn skip(why: &str) {
    assert!(
        std::env::var_os("LOCKSTEP_NO_SKIP").is_none(),
        "must not be skipped: {why}"
    );
    eprintln!("SKIPPED: {why}");
}

pub fn tool(name: &str) -> Command {
    let sbin = Path::new("/usr/sbin").join(name);
    let mut command = if sbin.exists() {
        Command::new(sbin)
    } else {
        Command::new(name)
    };
    command
        .env("DEBUGFS_PAGER", "cat")
        .env("LC_ALL", "C")
        .stdin(Stdio::null());
    command
}

/// Runs a tool to its end; its output.
pub fn run(command: &mut Command) -> Option<(bool, String)> {
    let output = command.output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    Some((output.status.success(), text))
}

impl Image {
    pub fn make(variant: &Variant, source: Option<&Path>) -> Option<Image> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)
            .unwrap();
        file.set_len(u64::from(variant.size_kib) * 1024).unwrap();
        let mut command = tool("mke2fs");
        command.args(["-q", "-F", "-t", "ext4", "-N", "8192", "-J", "size=4"]);
        command.args(variant.options);
        if let Some(source) = source {
            command.arg("-d").arg(source);
        }
        let Some((ok, text)) = run(command.arg(&path)) else {
            skip("mke2fs is not installed");
            return None;
        };
        assert!(ok, "{}: {text}", variant.name);
        if variant.name.ends_with("tea") {
            let (ok, text) = run(tool("tune2fs").args(["-E", "hash_alg=tea"]).arg(&path)).unwrap();
            assert!(ok, "{text}");
        }
        Some(Image {
            variant: *variant,
            path,
            file,
            _dir: dir,
        })
    }

    pub fn read(&self, offset: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.file.read_exact_at(&mut bytes, offset).unwrap();
        bytes
    }

    pub fn write(&self, offset: u64, bytes: &[u8]) {
        self.file.write_all_at(bytes, offset).unwrap();
    }

    pub fn sb(&self) -> Superblock {
        Superblock::decode(&self.read(1024, 1024))
            .unwrap_or_else(|e| panic!("{}: {e}", self.variant.name))
    }

    pub fn block(&self, sb: &Superblock, block: BlockNo) -> Vec<u8> {
        let size = sb.block_size();
        self.read(block.0 * u64::from(size), size as usize)
    }

    pub fn write_block(&self, sb: &Superblock, block: BlockNo, bytes: &[u8]) {
        self.write(block.0 * u64::from(sb.block_size()), bytes);
    }

    pub fn desc(&self, sb: &Superblock, group: GroupNo) -> GroupDesc {
        let (block, offset) = sb.geometry().desc_location(group);
        GroupDesc::decode(sb, group, &self.block(sb, block)[offset..])
            .unwrap_or_else(|e| panic!("{}, group {group}: {e}", self.variant.name))
    }

    pub fn write_desc(&self, sb: &Superblock, group: GroupNo, desc: &mut GroupDesc) {
        let (block, offset) = sb.geometry().desc_location(group);
        let at = block.0 * u64::from(sb.block_size()) + offset as u64;
        self.write(at, desc.encode(sb, group));
    }

    pub fn e2fsck(&self, options: &[&str]) {
        let (_, text) = run(tool("e2fsck").args(options).arg(&self.path)).unwrap();
        let status = tool("e2fsck").arg("-fn").arg(&self.path).output().unwrap();
        assert!(
            status.status.success(),
            "{}: {text}\n{}",
            self.variant.name,
            String::from_utf8_lossy(&status.stdout)
        );
    }

    /// What debugfs says to a request.
    pub fn debugfs(&self, request: &str) -> String {
        run(tool("debugfs").args(["-R", request]).arg(&self.path))
            .unwrap()
            .1
    }

    /// Mounts it with the kernel and runs `work` on the root directory. `None` (said loudly) where that can not be.
    pub fn with_mount<T>(&self, work: impl FnOnce(&Path) -> T) -> Option<T> {
        struct Unmount(PathBuf);
        impl Drop for Unmount {
            fn drop(&mut self) {
                let _ = run(Command::new("umount").arg(&self.0));
            }
        }
        let dir = tempfile::tempdir().unwrap();
        let mounted = run(Command::new("mount")
            .args(["-t", "ext4", "-o", "loop"])
            .arg(&self.path)
            .arg(dir.path()));
        match mounted {
            Some((true, _)) => {}
            other => {
                skip(&format!("no loop mount: {other:?}"));
                return None;
            }
        }
        let guard = Unmount(dir.path().to_path_buf());
        let result = work(dir.path());
        drop(guard);
        Some(result)
    }

    /// Compares superblock, geometry and descriptors with what dumpe2fs prints.
    pub fn check_against_dumpe2fs(&self) {
        let text = run(tool("dumpe2fs").arg(&self.path)).unwrap().1;
        let sb = self.sb();
        let name = self.variant.name;
        let value = |key: &str| -> Option<u64> {
            let line = text.lines().find(|l| l.starts_with(key))?;
            line[key.len()..].split_whitespace().next()?.parse().ok()
        };
        assert_eq!(
            value("Inode count:"),
            Some(sb.s_inodes_count().into()),
            "{name}"
        );
        assert_eq!(value("Block count:"), Some(sb.s_blocks_count()), "{name}");
        assert_eq!(
            value("Reserved block count:"),
            Some(sb.s_r_blocks_count()),
            "{name}"
        );
        assert_eq!(
            value("Free blocks:"),
            Some(sb.s_free_blocks_count()),
            "{name}"
        );
        assert_eq!(
            value("Free inodes:"),
            Some(sb.s_free_inodes_count().into()),
            "{name}"
        );
        assert_eq!(value("Block size:"), Some(sb.block_size().into()), "{name}");
        assert_eq!(
            value("Blocks per group:"),
            Some(sb.s_blocks_per_group().into()),
            "{name}"
        );
        assert_eq!(
            value("Inodes per group:"),
            Some(sb.s_inodes_per_group().into()),
            "{name}"
        );
        assert_eq!(value("Inode size:"), Some(sb.inode_size().into()), "{name}");
        assert_eq!(value("First inode:"), Some(sb.first_ino().into()), "{name}");
        assert_eq!(
            value("Inode blocks per group:"),
            Some(sb.geometry().itable_blocks().into()),
            "{name}"
        );
        let features = text
            .lines()
            .find(|l| l.starts_with("Filesystem features:"))
            .unwrap();
        let mut theirs: Vec<&str> = features.split_whitespace().skip(2).collect();
        let mut ours = crate::ext4::features::names(&sb);
        ours.sort();
        theirs.sort_unstable();
        assert_eq!(ours, theirs, "{name}");

        let geometry = sb.geometry();
        let mut groups = 0;
        let parts = text.split("\nGroup ").skip(1);
        for part in parts.filter(|part| part.starts_with(|c: char| c.is_ascii_digit())) {
            let group = GroupNo(groups);
            groups += 1;
            let desc = self.desc(&sb, group);
            let range = |key: &str| -> Option<(u64, u64)> {
                let at = part.find(key)? + key.len();
                let text = part[at..].split([' ', ',', '\n']).next()?;
                let (a, b) = text.split_once('-').unwrap_or((text, text));
                Some((a.parse().ok()?, b.parse().ok()?))
            };
            let one = |key: &str| range(key).map(|r| r.0);
            let blocks = geometry.group_blocks(group);
            let head = format!(
                "{group}: (Blocks {}-{})",
                blocks.start.0,
                blocks.end().0 - 1
            );
            assert!(part.starts_with(&head), "{name}: {head} in {part}");
            let base = geometry.base_meta(group);
            assert_eq!(
                one("superblock at "),
                base.superblock.map(|b| b.0),
                "{name}: {part}"
            );
            let some =
                |r: crate::units::BlockRange| (r.len > 0).then(|| (r.start.0, r.end().0 - 1));
            let descriptors = range("Group descriptors at ").or(range("Group descriptor at "));
            assert_eq!(descriptors, some(base.descriptors), "{name}: {part}");
            assert_eq!(
                range("Reserved GDT blocks at "),
                some(base.reserved),
                "{name}: {part}"
            );
            assert_eq!(
                one("Block bitmap at "),
                Some(desc.bg_block_bitmap().0),
                "{name}: {part}"
            );
            assert_eq!(
                one("Inode bitmap at "),
                Some(desc.bg_inode_bitmap().0),
                "{name}: {part}"
            );
            let table = desc.bg_inode_table().0;
            let end = table + u64::from(geometry.itable_blocks()) - 1;
            assert_eq!(
                range("Inode table at "),
                Some((table, end)),
                "{name}: {part}"
            );
            let counts = format!(
                "\n  {} free blocks, {} free inodes, {} directories",
                desc.bg_free_blocks_count(),
                desc.bg_free_inodes_count(),
                desc.bg_used_dirs_count()
            );
            assert!(part.contains(&counts), "{name}: {counts} in {part}");
            let unused = format!(", {} unused inodes", desc.bg_itable_unused());
            assert!(
                desc.bg_itable_unused() == 0 || part.contains(&unused),
                "{name}: {part}"
            );
        }
        assert_eq!(groups, sb.groups_count(), "{name}");
    }
}
