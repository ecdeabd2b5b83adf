//! Images: made by mke2fs with named sets of features, checked and recovered by e2fsck, cut into parts and joined again.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::{run_for, said};

/// One way to make an image; independent of the machine's mke2fs.conf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FeatureSet {
    /// What messages call it.
    pub name: &'static str,
    /// For `mke2fs -O`, beginning with `none`.
    pub features: &'static str,
    /// Bytes of a block.
    pub block_size: u32,
    /// Bytes of an inode.
    pub inode_size: u32,
    /// Further arguments.
    pub extra: &'static [&'static str],
    /// Whether every kernel mounts it; one without quotas refuses those.
    pub mounts: bool,
}

macro_rules! debian {
    ($($more:literal),*) => {
        concat!(
            "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg,sparse_super,large_file,",
            "huge_file,dir_nlink,extra_isize,metadata_csum",
            $(",", $more),*
        )
    };
}

const fn set(name: &'static str, features: &'static str, block_size: u32) -> FeatureSet {
    FeatureSet {
        name,
        features,
        block_size,
        inode_size: 256,
        extra: &[],
        mounts: true,
    }
}

/// The defaults of Debian 12 (e2fsprogs 1.47.0).
pub const DEBIAN_12: FeatureSet = set("debian-12", debian!(), 4096);

/// Everything that is to be read and written.
pub const FEATURE_SETS: &[FeatureSet] = &[
    DEBIAN_12,
    set("debian-12-1k", debian!(), 1024),
    set("debian-12-2k", debian!(), 2048),
    set(
        "upstream",
        debian!("metadata_csum_seed", "orphan_file"),
        4096,
    ),
    set(
        "upstream-1k",
        debian!("metadata_csum_seed", "orphan_file"),
        1024,
    ),
    set("csum-seed", debian!("metadata_csum_seed"), 4096),
    set("orphan-file", debian!("orphan_file"), 1024),
    set("gdt-csum", debian!("^metadata_csum", "uninit_bg"), 4096),
    set("gdt-csum-1k", debian!("^metadata_csum", "uninit_bg"), 1024),
    set("no-csum", debian!("^metadata_csum"), 4096),
    set("no-64bit", debian!("^64bit"), 4096),
    set(
        "no-64bit-gdt-csum",
        debian!("^64bit", "^metadata_csum", "uninit_bg"),
        1024,
    ),
    set("no-flex-bg", debian!("^flex_bg"), 1024),
    set("meta-bg", debian!("^resize_inode", "meta_bg"), 1024),
    set(
        "meta-bg-no-64bit",
        debian!("^resize_inode", "^64bit", "meta_bg"),
        2048,
    ),
    set("large-dir", debian!("large_dir"), 1024),
    set("no-dir-index", debian!("^dir_index"), 4096),
    set("no-resize-inode", debian!("^resize_inode"), 4096),
    set(
        "no-sparse-super",
        debian!("^sparse_super", "^resize_inode"),
        1024,
    ),
    set(
        "sparse-super2",
        debian!("^resize_inode", "sparse_super2"),
        1024,
    ),
    set("no-filetype", debian!("^filetype"), 4096),
    set("no-dir-nlink", debian!("^dir_nlink", "^huge_file"), 4096),
    set("stable-inodes", debian!("stable_inodes"), 4096),
    set("mmp", debian!("mmp"), 4096),
    FeatureSet {
        name: "quota",
        features: debian!("quota", "project"),
        block_size: 4096,
        inode_size: 256,
        extra: &[],
        mounts: false,
    },
    FeatureSet {
        name: "inode-128",
        features: debian!("^extra_isize"),
        block_size: 1024,
        inode_size: 128,
        extra: &[],
        mounts: true,
    },
    FeatureSet {
        name: "inode-512",
        features: debian!(),
        block_size: 4096,
        inode_size: 512,
        extra: &[],
        mounts: true,
    },
    FeatureSet {
        name: "packed-flex-bg",
        features: debian!(),
        block_size: 1024,
        inode_size: 256,
        extra: &["-G", "4", "-g", "1024"],
        mounts: true,
    },
];

/// What is to be read only: files without extents.
pub const LEGACY: &[FeatureSet] = &[
    set(
        "no-extents",
        debian!("^extent", "^64bit", "^huge_file"),
        1024,
    ),
    set(
        "ext3",
        "none,has_journal,ext_attr,resize_inode,dir_index,filetype,sparse_super,large_file",
        4096,
    ),
];

/// Makes an image of `size` bytes at `path`, a sparse file.
pub fn mke2fs(path: &Path, size: u64, set: &FeatureSet) -> Result<(), String> {
    let inode_size = set.inode_size.to_string();
    let mut extra = vec!["-I", inode_size.as_str()];
    extra.extend(set.extra);
    make(path, size, set.features, set.block_size, &extra).map_err(|e| format!("{}: {e}", set.name))
}

/// Makes an image with features as for `mke2fs -O`, on top of the machine's defaults unless they begin with `none`.
pub fn mke2fs_with(path: &Path, size: u64, features: &str, block_size: u32) -> Result<(), String> {
    make(path, size, features, block_size, &[])
}

fn make(path: &Path, size: u64, features: &str, block: u32, extra: &[&str]) -> Result<(), String> {
    let file = File::create(path).map_err(|e| e.to_string())?;
    file.set_len(size).map_err(|e| e.to_string())?;
    let block = block.to_string();
    let mut args = vec!["-q", "-F", "-t", "ext4", "-b", block.as_str()];
    if !features.is_empty() {
        args.extend(["-O", features]);
    }
    args.extend(extra);
    let path = path.to_str().ok_or("the path is not UTF-8")?;
    args.push(path);
    super::run("mke2fs", &args).map(drop)
}

/// Seconds that e2fsck gets: it may go round in circles on what it was not made for.
const E2FSCK_SECONDS: u32 = 120;

/// `e2fsck -fn`: clean, or everything it said.
pub fn e2fsck(path: &Path) -> Result<(), String> {
    let path = path.to_string_lossy();
    let out = run_for(E2FSCK_SECONDS, "e2fsck", &["-f", "-n", &path])?;
    let text = said(&out);
    // With -n it skips a journal that it ought to replay, and may call the rest clean.
    let skipped = text.contains("skipping journal recovery");
    if out.status.code() == Some(0) && !skipped {
        Ok(())
    } else {
        Err(format!("e2fsck -fn {path}: {}:\n{text}", out.status))
    }
}

/// Replays the journal as e2fsck does, and nothing else: with `-f` it would repair what it should report.
pub fn recover_journal(path: &Path) -> Result<(), String> {
    let path = path.to_string_lossy();
    let out = run_for(
        E2FSCK_SECONDS,
        "e2fsck",
        &["-y", "-E", "journal_only", &path],
    )?;
    match out.status.code() {
        Some(0 | 1) => Ok(()),
        _ => Err(format!(
            "e2fsck -E journal_only {path}: {}:\n{}",
            out.status,
            said(&out)
        )),
    }
}

/// Joins parts into one new, sparse file.
pub fn join_parts<P: AsRef<Path>>(parts: &[P], joined: &Path) -> io::Result<()> {
    let target = File::create(joined)?;
    let mut at = 0;
    for part in parts {
        let source = File::open(part)?;
        // Not the metadata's length: a part may be a device.
        let len = rustix::fs::seek(&source, rustix::fs::SeekFrom::End(0))?;
        copy(&source, 0, &target, at, len)?;
        at += len;
    }
    target.set_len(at)
}

/// Cuts an image into new, sparse part files of these sizes; what is behind the last size goes into one more.
pub fn split_parts(image: &Path, sizes: &[u64], dir: &Path) -> io::Result<Vec<PathBuf>> {
    let source = File::open(image)?;
    let total = source.metadata()?.len();
    let mut sizes = sizes.to_vec();
    let named: u64 = sizes.iter().sum();
    if named < total {
        sizes.push(total - named);
    }
    let mut at = 0;
    let mut parts = Vec::new();
    for (n, size) in sizes.iter().enumerate() {
        let path = dir.join(format!("part{n}"));
        let target = File::create(&path)?;
        target.set_len(*size)?;
        copy(&source, at, &target, 0, *size)?;
        at += size;
        parts.push(path);
    }
    Ok(parts)
}

fn copy(source: &File, from: u64, target: &File, to: u64, len: u64) -> io::Result<()> {
    let mut buf = vec![0; 1 << 20];
    let mut done = 0;
    while done < len {
        // Holes are skipped where the file system tells; what is zeros is left out anyhow.
        if let Ok(data) = rustix::fs::seek(source, rustix::fs::SeekFrom::Data(from + done)) {
            done = (data - from).max(done);
        }
        if done >= len {
            break;
        }
        let n = (len - done).min(buf.len() as u64) as usize;
        source.read_exact_at(&mut buf[..n], from + done)?;
        for (at, page) in buf[..n].chunks(4096).enumerate() {
            if page.iter().any(|b| *b != 0) {
                target.write_all_at(page, to + done + at as u64 * 4096)?;
            }
        }
        done += n as u64;
    }
    Ok(())
}
