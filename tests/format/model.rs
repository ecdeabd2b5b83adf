//! A file system in memory, as simple as can be: what the engine must agree with. It knows names, types, contents, modes and
//! attributes; it knows nothing of blocks.

use std::collections::{BTreeMap, BTreeSet};

use lockstepfs::fs::{FallocMode, Fs, FsError, New, RenameFlags, SetAttr, XattrMode};
use lockstepfs::units::Ino;

use crate::engine::{self, ROOT};
use crate::testkit::Rng;

/// An inode of the model.
#[derive(Clone, Debug, Default)]
pub struct Node {
    /// Type and permissions.
    pub mode: u32,
    /// Names, for a directory.
    pub names: BTreeMap<Vec<u8>, u64>,
    /// Bytes, for a file; the target, for a symbolic link.
    pub bytes: Vec<u8>,
    pub uid: u32,
    pub gid: u32,
    pub rdev: u32,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    pub mtime: Option<(i64, u32)>,
}

/// The model, and which inode of the engine each of its inodes is.
#[derive(Clone, Debug)]
pub struct Model {
    nodes: BTreeMap<u64, Node>,
    inos: BTreeMap<u64, Ino>,
    next: u64,
    /// Longest file, in bytes.
    pub max_bytes: u64,
    /// The volume may be full: what it has no space for must change nothing.
    pub tight: bool,
    /// How often it was.
    pub refused: usize,
}

const TOP: u64 = 1;
const DIR: u32 = 0o040_000;
const REG: u32 = 0o100_000;
const LNK: u32 = 0o120_000;

fn errno(e: &FsError) -> i32 {
    e.errno()
}

impl Model {
    /// The model of a fresh volume with its lost+found.
    pub fn new(fs: &Fs) -> Model {
        let mut model = Model {
            nodes: BTreeMap::new(),
            inos: BTreeMap::new(),
            next: 3,
            max_bytes: 600_000,
            tight: false,
            refused: 0,
        };
        let node = |ino: Ino| {
            let attr = fs.getattr(ino).expect("it is there");
            Node {
                mode: attr.mode,
                uid: attr.uid,
                gid: attr.gid,
                ..Node::default()
            }
        };
        let lost = engine::at(fs, "lost+found").expect("lost+found").ino;
        model.nodes.insert(TOP, node(ROOT));
        model.inos.insert(TOP, ROOT);
        model.nodes.insert(2, node(lost));
        model.inos.insert(2, lost);
        model.node(TOP).names.insert(b"lost+found".to_vec(), 2);
        model
    }

    /// Whether an operation was refused for want of space, which a tight volume may do.
    fn no_space<T>(&mut self, result: &Result<T, FsError>) -> bool {
        let refused = self.tight && matches!(result, Err(FsError::NoSpace));
        self.refused += usize::from(refused);
        refused
    }

    fn node(&mut self, id: u64) -> &mut Node {
        self.nodes.get_mut(&id).expect("the node is there")
    }

    fn pick(&self, rng: &mut Rng, want: impl Fn(&Node) -> bool) -> Option<u64> {
        let ids: Vec<u64> = self
            .nodes
            .iter()
            .filter(|(id, node)| **id != 2 && want(node))
            .map(|(id, _)| *id)
            .collect();
        (!ids.is_empty()).then(|| *rng.pick(&ids))
    }

    fn directory(&self, rng: &mut Rng) -> u64 {
        self.pick(rng, |node| node.mode & DIR == DIR && node.mode & LNK != LNK)
            .expect("the top is one")
    }

    fn file(&self, rng: &mut Rng) -> Option<u64> {
        self.pick(rng, |node| node.mode & 0o170_000 == REG)
    }

    fn name(rng: &mut Rng) -> Vec<u8> {
        match rng.below(20) {
            0 => vec![b'n'; 200 + rng.below(56) as usize],
            1 => format!("ü{}", rng.below(40)).into_bytes(),
            _ => format!("name-{}", rng.below(60)).into_bytes(),
        }
    }

    /// A name of the directory, if it has any.
    fn known_name(&self, rng: &mut Rng, dir: u64) -> Vec<u8> {
        let names: Vec<&Vec<u8>> = self.nodes[&dir].names.keys().collect();
        if names.is_empty() || rng.chance(15) {
            return Model::name(rng);
        }
        (*rng.pick(&names)).clone()
    }

    fn links(&self, id: u64) -> usize {
        let count = |node: &Node| node.names.values().filter(|n| **n == id).count();
        self.nodes.values().map(count).sum()
    }

    fn drop_if_nameless(&mut self, id: u64) {
        if self.links(id) == 0 {
            self.nodes.remove(&id);
            self.inos.remove(&id);
        }
    }

    /// Whether `id` is `ancestor` or below it.
    fn inside(&self, id: u64, ancestor: u64) -> bool {
        let mut todo = vec![ancestor];
        while let Some(at) = todo.pop() {
            if at == id {
                return true;
            }
            todo.extend(
                self.nodes
                    .get(&at)
                    .into_iter()
                    .flat_map(|n| n.names.values()),
            );
        }
        false
    }

    fn is_dir(&self, id: u64) -> bool {
        self.nodes[&id].mode & 0o170_000 == DIR
    }

    /// One random operation on both; what it was. Fails the test when they disagree.
    pub fn step(&mut self, fs: &Fs, rng: &mut Rng) -> String {
        match rng.below(100) {
            0..16 => self.create(fs, rng),
            16..22 => self.symlink(fs, rng),
            22..27 => self.link(fs, rng),
            27..36 => self.remove(fs, rng),
            36..46 => self.rename(fs, rng),
            46..70 => self.write(fs, rng),
            70..77 => self.truncate(fs, rng),
            77..85 => self.fallocate(fs, rng),
            85..93 => self.xattr(fs, rng),
            93..97 => self.attributes(fs, rng),
            _ => self.read_back(fs, rng),
        }
    }

    fn create(&mut self, fs: &Fs, rng: &mut Rng) -> String {
        let dir = self.directory(rng);
        let name = Model::name(rng);
        let kind = match rng.below(10) {
            0..3 => DIR,
            3 => 0o010_000,
            4 => 0o020_000,
            _ => REG,
        };
        let new = New {
            mode: kind | (rng.below(0o1000) as u32),
            umask: 0o22,
            uid: rng.below(3) as u32 * 70_000,
            gid: rng.below(3) as u32 * 70_000,
            rdev: if kind == 0o020_000 { 0x1_2345 } else { 0 },
        };
        let what = format!("create {:o} {} in {dir}", new.mode, show(&name));
        let result = fs.create(self.inos[&dir], &name, &new);
        if self.no_space(&result) {
            return what;
        }
        if self.nodes[&dir].names.contains_key(&name) {
            assert_eq!(
                result.as_ref().map_err(errno).err(),
                Some(libc::EEXIST),
                "{what}"
            );
            return what;
        }
        let attr = result.unwrap_or_else(|e| panic!("{what}: {e}"));
        let id = self.next;
        self.next += 1;
        let node = Node {
            mode: new.mode & !0o22,
            uid: new.uid,
            gid: new.gid,
            rdev: new.rdev,
            ..Node::default()
        };
        self.nodes.insert(id, node);
        self.inos.insert(id, attr.ino);
        self.node(dir).names.insert(name, id);
        what
    }

    fn symlink(&mut self, fs: &Fs, rng: &mut Rng) -> String {
        let dir = self.directory(rng);
        let name = Model::name(rng);
        let len = *rng.pick(&[1, 20, 58, 59, 60, 61, 300, 1000]);
        let target = vec![b'a' + rng.below(26) as u8; len];
        let what = format!("symlink {} of {len} bytes in {dir}", show(&name));
        let result = fs.symlink(self.inos[&dir], &name, &target, 5, 6);
        if self.no_space(&result) {
            return what;
        }
        if self.nodes[&dir].names.contains_key(&name) {
            assert_eq!(
                result.as_ref().map_err(errno).err(),
                Some(libc::EEXIST),
                "{what}"
            );
            return what;
        }
        let attr = result.unwrap_or_else(|e| panic!("{what}: {e}"));
        let id = self.next;
        self.next += 1;
        let node = Node {
            mode: LNK | 0o777,
            uid: 5,
            gid: 6,
            bytes: target,
            ..Node::default()
        };
        self.nodes.insert(id, node);
        self.inos.insert(id, attr.ino);
        self.node(dir).names.insert(name, id);
        what
    }

    fn link(&mut self, fs: &Fs, rng: &mut Rng) -> String {
        let dir = self.directory(rng);
        let name = Model::name(rng);
        let Some(id) = self.pick(rng, |_| true) else {
            return "nothing to link".into();
        };
        let what = format!("link {id} as {} in {dir}", show(&name));
        let result = fs.link(self.inos[&id], self.inos[&dir], &name);
        if self.no_space(&result) {
            return what;
        }
        let expect = if self.is_dir(id) {
            Some(libc::EPERM)
        } else if self.nodes[&dir].names.contains_key(&name) {
            Some(libc::EEXIST)
        } else {
            None
        };
        assert_eq!(result.as_ref().map_err(errno).err(), expect, "{what}");
        if expect.is_none() {
            self.node(dir).names.insert(name, id);
        }
        what
    }

    fn remove(&mut self, fs: &Fs, rng: &mut Rng) -> String {
        let dir = self.directory(rng);
        let name = self.known_name(rng, dir);
        let as_dir = rng.chance(40);
        let what = format!("remove {} from {dir} (directory: {as_dir})", show(&name));
        let result = match as_dir {
            true => fs.rmdir(self.inos[&dir], &name),
            false => fs.unlink(self.inos[&dir], &name),
        };
        let expect = match self.nodes[&dir].names.get(&name) {
            None => Some(libc::ENOENT),
            Some(id) => match (as_dir, self.is_dir(*id)) {
                (true, false) => Some(libc::ENOTDIR),
                (false, true) => Some(libc::EISDIR),
                (true, true) if !self.nodes[id].names.is_empty() => Some(libc::ENOTEMPTY),
                _ => None,
            },
        };
        assert_eq!(result.as_ref().map_err(errno).err(), expect, "{what}");
        if expect.is_none() {
            let id = self.node(dir).names.remove(&name).expect("was found");
            self.drop_if_nameless(id);
        }
        what
    }

    fn rename(&mut self, fs: &Fs, rng: &mut Rng) -> String {
        let (from, to) = (self.directory(rng), self.directory(rng));
        let name = self.known_name(rng, from);
        let new_name = if rng.chance(50) {
            self.known_name(rng, to)
        } else {
            Model::name(rng)
        };
        let flags = match rng.below(5) {
            0 => RenameFlags {
                noreplace: true,
                exchange: false,
            },
            1 => RenameFlags {
                noreplace: false,
                exchange: true,
            },
            _ => RenameFlags::default(),
        };
        let what = format!(
            "rename {} in {from} to {} in {to} {flags:?}",
            show(&name),
            show(&new_name)
        );
        let result = fs.rename(self.inos[&from], &name, self.inos[&to], &new_name, flags);
        if self.no_space(&result) {
            return what;
        }
        let expect = self.rename_model(from, &name, to, &new_name, flags);
        assert_eq!(result.as_ref().map_err(errno).err(), expect, "{what}");
        what
    }

    fn rename_model(
        &mut self,
        from: u64,
        name: &[u8],
        to: u64,
        new_name: &[u8],
        flags: RenameFlags,
    ) -> Option<i32> {
        let Some(&id) = self.nodes[&from].names.get(name) else {
            return Some(libc::ENOENT);
        };
        let target = self.nodes[&to].names.get(new_name).copied();
        if flags.noreplace && target.is_some() {
            return Some(libc::EEXIST);
        }
        if target == Some(id) {
            return None;
        }
        if from != to {
            if self.is_dir(id) && self.inside(to, id) {
                return Some(libc::EINVAL);
            }
            if let Some(target) = target.filter(|t| flags.exchange && self.is_dir(*t))
                && self.inside(from, target)
            {
                return Some(libc::EINVAL);
            }
        }
        if flags.exchange {
            let Some(target) = target else {
                return Some(libc::ENOENT);
            };
            self.node(from).names.insert(name.to_vec(), target);
            self.node(to).names.insert(new_name.to_vec(), id);
            return None;
        }
        if let Some(target) = target {
            match (self.is_dir(id), self.is_dir(target)) {
                (true, false) => return Some(libc::ENOTDIR),
                (false, true) => return Some(libc::EISDIR),
                (true, true) if !self.nodes[&target].names.is_empty() => {
                    return Some(libc::ENOTEMPTY);
                }
                _ => {}
            }
        }
        self.node(from).names.remove(name);
        self.node(to).names.insert(new_name.to_vec(), id);
        if let Some(target) = target {
            self.drop_if_nameless(target);
        }
        None
    }

    fn offset(&self, rng: &mut Rng, len: usize) -> u64 {
        let limit = match rng.below(4) {
            0 => self.max_bytes,
            1 => len as u64 + 1,
            _ => len as u64 + 20_000,
        };
        let at = rng.below(limit.min(self.max_bytes));
        if rng.chance(30) { at & !4095 } else { at }
    }

    fn length(rng: &mut Rng) -> usize {
        let most = *rng.pick(&[10, 1024, 5000, 5000, 33_000, 40_000, 200_000]);
        let len = 1 + rng.below(most) as usize;
        if rng.chance(30) {
            (len | 4095) + 1
        } else {
            len
        }
    }

    fn write(&mut self, fs: &Fs, rng: &mut Rng) -> String {
        let Some(id) = self.file(rng) else {
            return "no file to write".into();
        };
        let at = self.offset(rng, self.nodes[&id].bytes.len());
        let len = Model::length(rng);
        let data = match rng.chance(20) {
            true => vec![0; len],
            false => rng.bytes(len),
        };
        let what = format!("write {len} bytes at {at} of {id}");
        let result = fs.write(self.inos[&id], at, &data);
        if self.no_space(&result) {
            return what;
        }
        let done = result.unwrap_or_else(|e| panic!("{what}: {e}"));
        assert!(done == len || self.tight && done > 0, "{what}");
        let (len, data) = (done, &data[..done]);
        let bytes = &mut self.node(id).bytes;
        let end = at as usize + len;
        if bytes.len() < end {
            bytes.resize(end, 0);
        }
        bytes[at as usize..end].copy_from_slice(data);
        self.node(id).mtime = None;
        what
    }

    fn truncate(&mut self, fs: &Fs, rng: &mut Rng) -> String {
        let Some(id) = self.file(rng) else {
            return "no file to truncate".into();
        };
        let size = self.offset(rng, self.nodes[&id].bytes.len());
        let what = format!("truncate {id} to {size}");
        let change = SetAttr {
            size: Some(size),
            ..SetAttr::default()
        };
        let attr = fs
            .setattr(self.inos[&id], &change)
            .unwrap_or_else(|e| panic!("{what}: {e}"));
        assert_eq!(attr.size, size, "{what}");
        self.node(id).bytes.resize(size as usize, 0);
        self.node(id).mtime = None;
        what
    }

    fn fallocate(&mut self, fs: &Fs, rng: &mut Rng) -> String {
        let Some(id) = self.file(rng) else {
            return "no file to fallocate".into();
        };
        let at = self.offset(rng, self.nodes[&id].bytes.len());
        let len = Model::length(rng);
        let keep_size = rng.chance(40);
        let mode = match rng.below(3) {
            0 => FallocMode::Allocate { keep_size },
            1 => FallocMode::PunchHole,
            _ => FallocMode::ZeroRange { keep_size },
        };
        let what = format!("{mode:?} {len} bytes at {at} of {id}");
        let result = fs.fallocate(self.inos[&id], mode, at, len as u64);
        let keep_size = self.no_space(&result) || {
            result.unwrap_or_else(|e| panic!("{what}: {e}"));
            keep_size
        };
        let bytes = &mut self.node(id).bytes;
        let end = at as usize + len;
        let inside = end.min(bytes.len());
        if !matches!(mode, FallocMode::Allocate { .. }) && (at as usize) < inside {
            bytes[at as usize..inside].fill(0);
        }
        if !keep_size && mode != FallocMode::PunchHole && bytes.len() < end {
            bytes.resize(end, 0);
        }
        self.node(id).mtime = None;
        what
    }

    fn xattr(&mut self, fs: &Fs, rng: &mut Rng) -> String {
        // The kernel shows attributes of users on files and directories only.
        let Some(id) = self.pick(rng, |node| matches!(node.mode & 0o170_000, REG | DIR)) else {
            return "nothing for an attribute".into();
        };
        let name = format!("user.a{}", rng.below(8)).into_bytes();
        let known = self.nodes[&id].xattrs.contains_key(&name);
        if rng.chance(30) {
            let what = format!("removexattr {} of {id}", show(&name));
            let result = fs.removexattr(self.inos[&id], &name);
            let expect = if known { None } else { Some(libc::ENODATA) };
            assert_eq!(result.as_ref().map_err(errno).err(), expect, "{what}");
            self.node(id).xattrs.remove(&name);
            return what;
        }
        let len = *rng.pick(&[0, 1, 20, 100, 300, 700]);
        let value = rng.bytes(len);
        let what = format!("setxattr {} of {id}, {len} bytes", show(&name));
        match fs.setxattr(self.inos[&id], &name, &value, XattrMode::Any) {
            Ok(()) => {
                self.node(id).xattrs.insert(name, value);
            }
            // Inode and block are full: nothing may have changed.
            Err(FsError::NoSpace) => {}
            Err(e) => panic!("{what}: {e}"),
        }
        what
    }

    fn attributes(&mut self, fs: &Fs, rng: &mut Rng) -> String {
        let Some(id) = self.pick(rng, |node| node.mode & 0o170_000 != LNK) else {
            return "nothing to change".into();
        };
        let mode = rng.below(0o1000) as u32;
        let mtime = (
            rng.below(1 << 33) as i64 - 1_000_000,
            rng.below(1_000_000_000) as u32,
        );
        let uid = rng.below(100_000) as u32;
        let what = format!("setattr {id}: {mode:o}, {uid}, {mtime:?}");
        let change = SetAttr {
            mode: Some(mode),
            uid: Some(uid),
            mtime: Some(lockstepfs::fs::SetTime::At(lockstepfs::io::Timespec {
                secs: mtime.0,
                nanos: mtime.1,
            })),
            ..SetAttr::default()
        };
        fs.setattr(self.inos[&id], &change)
            .unwrap_or_else(|e| panic!("{what}: {e}"));
        let node = self.node(id);
        node.mode = node.mode & 0o170_000 | mode;
        node.uid = uid;
        what
    }

    fn read_back(&mut self, fs: &Fs, rng: &mut Rng) -> String {
        let Some(id) = self.file(rng) else {
            return "no file to read".into();
        };
        let attr = fs.getattr(self.inos[&id]).expect("it is there");
        let bytes = engine::contents(fs, &attr).expect("it can be read");
        assert!(bytes == self.nodes[&id].bytes, "contents of {id}");
        format!("read {id}")
    }

    /// Compares everything.
    pub fn assert_same(&self, fs: &Fs) {
        let mut seen = BTreeSet::new();
        let mut todo = vec![TOP];
        while let Some(id) = todo.pop() {
            if !seen.insert(id) {
                continue;
            }
            let node = &self.nodes[&id];
            let attr = fs
                .getattr(self.inos[&id])
                .unwrap_or_else(|e| panic!("{id}: {e}"));
            assert_eq!(attr.mode, node.mode, "mode of {id}");
            assert_eq!((attr.uid, attr.gid), (node.uid, node.gid), "owner of {id}");
            assert_eq!(attr.rdev, node.rdev, "device of {id}");
            let xattrs: BTreeMap<Vec<u8>, Vec<u8>> = fs
                .listxattr(attr.ino)
                .expect("listed")
                .into_iter()
                .map(|name| {
                    let value = fs.getxattr(attr.ino, &name).expect("it was listed");
                    (name, value)
                })
                .collect();
            assert!(xattrs == node.xattrs, "attributes of {id}");
            match node.mode & 0o170_000 {
                DIR => {
                    let mut names = BTreeMap::new();
                    fs.readdir(attr.ino, 0, &mut |entry| {
                        if entry.name != b"." && entry.name != b".." {
                            names.insert(entry.name.to_vec(), entry.ino);
                        }
                        true
                    })
                    .expect("listed");
                    let expect: BTreeMap<Vec<u8>, Ino> = node
                        .names
                        .iter()
                        .map(|(name, id)| (name.clone(), self.inos[id]))
                        .collect();
                    assert_eq!(names, expect, "names of {id}");
                    let dirs = node.names.values().filter(|id| self.is_dir(**id)).count();
                    assert_eq!(attr.nlink as usize, 2 + dirs, "links of {id}");
                    todo.extend(node.names.values());
                }
                LNK => {
                    let target = fs.readlink(attr.ino).expect("read");
                    assert_eq!(target, node.bytes, "target of {id}");
                    assert_eq!(attr.nlink as usize, self.links(id), "links of {id}");
                }
                REG => {
                    let bytes = engine::contents(fs, &attr).expect("read");
                    assert_eq!(bytes.len(), node.bytes.len(), "length of {id}");
                    assert!(bytes == node.bytes, "contents of {id}");
                    assert_eq!(attr.nlink as usize, self.links(id), "links of {id}");
                }
                _ => {}
            }
        }
        assert_eq!(seen.len(), self.nodes.len(), "every node has a name");
    }
}

fn show(name: &[u8]) -> String {
    let name = String::from_utf8_lossy(name);
    if name.len() > 20 {
        format!("(long, {})", name.len())
    } else {
        name.into_owned()
    }
}
