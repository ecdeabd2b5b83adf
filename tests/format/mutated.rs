//! One field or byte of metadata is changed at random, its checksum made right again or not: what e2fsck finds, our own check
//! finds, and it does not cry where e2fsck is content. Exceptions are listed, with reasons.
//!
//! `LOCKSTEP_MUTATIONS=200 LOCKSTEP_MUTATION_SEED=7 cargo test --test format mutated -- --nocapture` changes 200 bytes in each of ten
//! volumes and prints what both, neither and only one of the two saw; without them it is a run of half a minute at most.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use lockstepfs::ext4::{
    DirLayout, GroupDesc, Inode, Superblock, bitmap, checksum, extent, htree, xattr,
};
use lockstepfs::fs::check::{Class, Finding};
use lockstepfs::fs::owners::{Owned, Owner, owners};
use lockstepfs::units::{BlockNo, BlockRange, GroupNo, Ino};

use crate::checked::checked;
use crate::testkit::{self, FEATURE_SETS, LoopMount, Rng, mke2fs, mutate_tree, populate_tree};
use crate::{damaged, engine};

/// A pristine volume and where its metadata is.
struct Pristine {
    file: File,
    sb: Superblock,
    size: u64,
    /// By kind, so that the few descriptors are hit as often as the many directories.
    targets: Vec<Vec<Owned>>,
}

/// What nobody would call damage, whatever is there, is left out; `None` for that.
fn kind(owner: &Owner) -> Option<&'static str> {
    match owner {
        Owner::Superblock(GroupNo(0)) => Some("superblock"),
        Owner::Descriptors(GroupNo(0)) => Some("descriptors"),
        Owner::Superblock(_) | Owner::Descriptors(_) => Some("copies"),
        Owner::BlockBitmap(_) => Some("block bitmap"),
        Owner::InodeBitmap(_) => Some("inode bitmap"),
        Owner::InodeTable(..) => Some("inode table"),
        Owner::Reserved(_) | Owner::Mmp => Some("reserved"),
        Owner::Directory { .. } => Some("directory"),
        Owner::Map { .. } => Some("map"),
        Owner::Attributes { .. } => Some("attributes"),
        Owner::Free | Owner::Unknown | Owner::Boot | Owner::Journal | Owner::File { .. } => None,
    }
}

impl Pristine {
    fn new(image: &Path, block_size: u32) -> Pristine {
        let volume = engine::volume(vec![engine::file_disk(image, true)], block_size);
        let all = BlockRange::new(BlockNo(0), volume.blocks_count());
        let found = owners(&*volume, &[all], usize::MAX).expect("owners");
        let mut targets: BTreeMap<&str, Vec<Owned>> = BTreeMap::new();
        for owned in found.owned {
            if let Some(kind) = kind(&owned.owner) {
                targets.entry(kind).or_default().push(owned);
            }
        }
        let file = File::options()
            .read(true)
            .write(true)
            .open(image)
            .expect("opened");
        let mut bytes = [0; 1024];
        file.read_exact_at(&mut bytes, 1024).expect("read");
        Pristine {
            file,
            sb: Superblock::decode(&bytes).expect("a superblock"),
            size: block_size.into(),
            targets: targets.into_values().collect(),
        }
    }

    fn block(&self, block: BlockNo) -> Vec<u8> {
        let mut bytes = vec![0; self.size as usize];
        self.file
            .read_exact_at(&mut bytes, block.0 * self.size)
            .expect("read");
        bytes
    }

    fn put(&self, block: BlockNo, bytes: &[u8]) {
        self.file
            .write_all_at(bytes, block.0 * self.size)
            .expect("written");
    }

    fn desc(&self, group: GroupNo) -> (BlockNo, usize, GroupDesc) {
        let (block, offset) = self.sb.geometry().desc_location(group);
        let desc = GroupDesc::decode_unverified(&self.sb, &self.block(block)[offset..]);
        (block, offset, desc.expect("a descriptor"))
    }

    fn inode(&self, ino: Ino) -> Inode {
        let geometry = self.sb.geometry();
        let (group, index) = geometry.inode_location(ino).expect("an inode");
        let (_, _, desc) = self.desc(group);
        let (block, offset) = geometry.inode_place(desc.bg_inode_table(), index);
        Inode::decode_unverified(&self.sb, &self.block(block)[offset..]).expect("an inode")
    }

    /// Changes something; whose, what, and the blocks as they were.
    fn damage(&self, rng: &mut Rng) -> (&'static str, String, Vec<(BlockNo, Vec<u8>)>) {
        let of_kind = rng.pick(&self.targets);
        let owned = rng.pick(of_kind).clone();
        let block = BlockNo(owned.blocks.start.0 + rng.below(owned.blocks.len));
        let mut saved = vec![(block, self.block(block))];
        let mut bytes = saved[0].1.clone();
        let fix = rng.chance(60);
        let seed = |ino: Ino| self.inode(ino).seed(&self.sb, ino);
        let sums = self.sb.has_metadata_csum();
        let geometry = self.sb.geometry();
        let place = |rng: &mut Rng, from: usize, len: usize, bytes: &mut [u8]| {
            let at = from + rng.below(len as u64) as usize;
            let old = bytes[at];
            while bytes[at] == old {
                bytes[at] = match rng.below(4) {
                    0 => old ^ 1 << rng.below(8),
                    1 => old.wrapping_add(1),
                    2 => 0,
                    _ => rng.below(256) as u8,
                };
            }
            at
        };
        let size = bytes.len();
        let at = match &owned.owner {
            Owner::Superblock(GroupNo(0)) => {
                let start = (1024 % self.size) as usize;
                let at = place(rng, start, 0x290, &mut bytes);
                if fix && sums {
                    let sum = checksum::crc32c_raw(!0, &bytes[start..start + 0x3FC]);
                    bytes[start + 0x3FC..start + 0x400].copy_from_slice(&sum.to_le_bytes());
                }
                at
            }
            Owner::Descriptors(GroupNo(0)) => {
                let len = usize::from(geometry.desc_size);
                let groups = geometry.groups_count as usize;
                let group = rng.below(groups as u64) as usize;
                let (at_block, offset, _) = self.desc(GroupNo(group as u32));
                if at_block != block {
                    place(rng, 0, size, &mut bytes)
                } else {
                    let at = place(rng, offset, len, &mut bytes);
                    if fix {
                        let mut desc = GroupDesc::decode_unverified(&self.sb, &bytes[offset..])
                            .expect("a descriptor");
                        let fixed = desc.encode(&self.sb, GroupNo(group as u32)).to_vec();
                        bytes[offset..offset + fixed.len()].copy_from_slice(&fixed);
                    }
                    at
                }
            }
            Owner::BlockBitmap(group) | Owner::InodeBitmap(group) => {
                let at = place(rng, 0, size, &mut bytes);
                if fix {
                    let kind = match owned.owner {
                        Owner::BlockBitmap(_) => bitmap::Kind::Blocks,
                        _ => bitmap::Kind::Inodes,
                    };
                    let (desc_block, offset, mut desc) = self.desc(*group);
                    let before = self.block(desc_block);
                    bitmap::update(&self.sb, &mut desc, kind, &bytes);
                    let mut after = before.clone();
                    let fixed = desc.encode(&self.sb, *group);
                    after[offset..offset + fixed.len()].copy_from_slice(fixed);
                    self.put(desc_block, &after);
                    saved.push((desc_block, before));
                }
                at
            }
            Owner::InodeTable(_, inodes) => {
                let len = usize::from(geometry.inode_size);
                let slots = self.size / len as u64;
                let used = |slot: &usize| bytes[slot * len + 0x1A..][..2] != [0, 0];
                let used: Vec<usize> = (0..slots as usize).filter(used).collect();
                let slot = match used.is_empty() || rng.chance(10) {
                    true => rng.below(slots) as usize,
                    false => *rng.pick(&used),
                };
                let first = (block.0 - owned.blocks.start.0) * (self.size / len as u64);
                let ino = Ino(inodes.start + first as u32 + slot as u32);
                let at = place(rng, slot * len, 164.min(len), &mut bytes);
                if fix
                    && let Ok(mut inode) = Inode::decode_unverified(&self.sb, &bytes[slot * len..])
                {
                    let fixed = inode.encode(&self.sb, ino).to_vec();
                    bytes[slot * len..slot * len + len].copy_from_slice(&fixed);
                }
                at
            }
            Owner::Directory { ino, .. } => {
                // The heads of entries are few among the bytes of names and slack.
                let layout = DirLayout::new(&self.sb);
                let offsets: Vec<usize> = (layout.entries(&bytes))
                    .map_while(Result::ok)
                    .map(|entry| entry.offset)
                    .collect();
                let at = match offsets.is_empty() || rng.chance(30) {
                    true => place(rng, 0, size, &mut bytes),
                    false => {
                        let head = *rng.pick(&offsets);
                        place(rng, head, 12.min(size - head), &mut bytes)
                    }
                };
                if fix && htree::update(&layout, seed(*ino), &mut bytes).is_err() {
                    let _ = layout.update(seed(*ino), &mut bytes);
                }
                at
            }
            Owner::Map { ino, .. } => {
                let at = place(rng, 0, 48, &mut bytes);
                if fix && sums {
                    let _ = extent::update_block(seed(*ino), &mut bytes);
                }
                at
            }
            Owner::Attributes { .. } => {
                let at = place(rng, 0, 100, &mut bytes);
                if fix {
                    let _ = xattr::update_block(&self.sb, block, &mut bytes);
                }
                at
            }
            _ => place(rng, 0, size, &mut bytes),
        };
        self.put(block, &bytes);
        let fixed = if fix { ", checksum made right" } else { "" };
        let old = saved[0].1[at];
        let what = format!(
            "{} (block {block}), byte {at}: {old:#x} is {:#x}{fixed}",
            owned.owner, bytes[at]
        );
        (kind(&owned.owner).unwrap_or_default(), what, saved)
    }
}

/// What each saw, how often.
#[derive(Default, Debug)]
struct Rates {
    both: u32,
    /// By both, but e2fsck ends with 0.
    named: u32,
    /// By whose it was.
    neither: BTreeMap<&'static str, u32>,
    missed: Vec<String>,
    stricter: BTreeMap<String, u32>,
    alarms: Vec<String>,
}

/// What we call damage and e2fsck -n does not, and why that is right: the first finding, of which others may come.
fn stricter(finding: &Finding) -> Option<&'static str> {
    let (expected, found) = (&finding.expected, &finding.found);
    match finding.class {
        Class::Orphans => Some("e2fsck -n does not follow the list of orphans"),
        Class::Index if expected.contains("hashes") => {
            Some("a name where the kernel's search does not look for it")
        }
        Class::Map if expected.contains("depth") || found.contains("eh_depth") => {
            Some("a depth below the root, for which the kernel refuses the file")
        }
        Class::Attributes if found.starts_with("h_hash") => Some(
            "the hash of an attribute block, which only sharing uses; the kernel and we keep it right",
        ),
        Class::Attributes if expected.contains("zeros") => {
            Some("a name with zeros, for which the kernel refuses the attributes")
        }
        Class::Inode
            if finding.place.starts_with("inode 7,")
                && (expected.contains("slot") || expected.contains("its copy")) =>
        {
            Some(
                "e2fsck looks at the first quarter of the blocks reserved for descriptors, resizing at all",
            )
        }
        _ => None,
    }
}

fn mutate(image: &Path, block_size: u32, rng: &mut Rng, rounds: u32, rates: &mut Rates) {
    let pristine = Pristine::new(image, block_size);
    for _ in 0..rounds {
        let (kind, what, saved) = pristine.damage(rng);
        let path = image.to_string_lossy();
        let out = testkit::run_for(60, "e2fsck", &["-f", "-n", &path]).expect("e2fsck");
        // Of some things it says so, asks, takes its own "no" for an answer and ends with 0.
        let theirs = out.status.code() != Some(0);
        let named = testkit::said(&out).contains("? no");
        let report = checked(image, block_size);
        let ours = !report.is_clean();
        for (block, bytes) in saved.iter().rev() {
            pristine.put(*block, bytes);
        }
        match (theirs, ours) {
            (true, true) => rates.both += 1,
            (false, false) => *rates.neither.entry(kind).or_default() += 1,
            (true, false) => {
                let said = testkit::said(&out);
                rates.missed.push(format!("{what}\n{said}"));
            }
            (false, true) if named => rates.named += 1,
            (false, true) => {
                let why = match report.findings.first() {
                    Some(first) => stricter(first),
                    None => Some("a feature that the check does not know, as it says"),
                };
                match why {
                    Some(why) => *rates.stricter.entry(why.to_owned()).or_default() += 1,
                    None => rates.alarms.push(format!(
                        "{what}: {:?} {:?}\n{}",
                        report.findings,
                        report.unchecked,
                        testkit::said(&out)
                    )),
                }
            }
        }
    }
    assert!(
        checked(image, block_size).is_clean(),
        "what was changed was not put back"
    );
}

#[test]
fn what_e2fsck_finds_is_found() {
    if !testkit::need_loop() {
        return;
    }
    let number = |name: &str, default: u64| -> u64 {
        let text = std::env::var(name).ok();
        text.and_then(|text| text.parse().ok()).unwrap_or(default)
    };
    let rounds = number("LOCKSTEP_MUTATIONS", 60) as u32;
    let mut rng = Rng(number("LOCKSTEP_MUTATION_SEED", 1));
    let dir = tempfile::tempdir().expect("a directory");
    let mut rates = Rates::default();
    for name in [
        "debian-12-1k",
        "upstream",
        "gdt-csum-1k",
        "no-csum",
        "inode-128",
    ] {
        let set = FEATURE_SETS
            .iter()
            .find(|set| set.name == name)
            .expect("a set");
        let image = dir.path().join(name);
        mke2fs(&image, 48 << 20, set).expect("mke2fs");
        let mount = LoopMount::new(&image).expect("mount");
        populate_tree(mount.dir(), 21, 120).expect("populate");
        mutate_tree(mount.dir(), 22, 60).expect("changes");
        drop(mount);
        mutate(&image, set.block_size, &mut rng, rounds, &mut rates);
        let own = dir.path().join("own");
        damaged::filled(set).save(&own).expect("saved");
        mutate(&own, set.block_size, &mut rng, rounds, &mut rates);
    }
    eprintln!(
        "damage found by both {} (e2fsck ended with 0 in {} more), by neither {}, by e2fsck only {}, by us only {} justified and {} not",
        rates.both,
        rates.named,
        rates.neither.values().sum::<u32>(),
        rates.missed.len(),
        rates.stricter.values().sum::<u32>(),
        rates.alarms.len()
    );
    eprintln!("neither, by what was changed: {:?}", rates.neither);
    eprintln!("by us only: {:?}", rates.stricter);
    for text in rates.missed.iter().chain(&rates.alarms) {
        eprintln!("- {text}");
    }
    assert!(rates.missed.is_empty() && rates.alarms.is_empty());
}
