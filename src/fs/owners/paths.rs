//! Paths of the inodes that were met: names from one pass over all directories, then up through "..".

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::fmt;

use super::{Owned, Owner, Table};
use crate::ext4::inode::reserved;
use crate::ext4::{Corrupt, DirLayout, Inode};
use crate::fs::FsError;
use crate::fs::check::walk::Visitor;
use crate::units::{BlockNo, BlockRange, Ino};

/// Longest way up, directories.
const MAX_DEPTH: usize = 4096;

/// A name, and the directory it is in.
type Named = (Ino, Vec<u8>);

/// Runs of a directory.
#[derive(Default)]
struct Runs(Vec<BlockRange>, u32);

impl Visitor for Runs {
    fn node(&mut self, _: BlockNo, _: u32) -> bool {
        self.1 += 1;
        self.1 < 1 << 16
    }
    fn data(&mut self, _: u32, blocks: BlockRange, _: bool) {
        self.0.push(blocks);
    }
    fn wrong(&mut self, _: Option<BlockNo>, _: &dyn fmt::Display, _: &dyn fmt::Display) {}
    fn corrupt(&mut self, _: Option<BlockNo>, _: &Corrupt) {}
    fn unreadable(&mut self, _: BlockNo, _: &dyn fmt::Display) {}
}

impl Table<'_> {
    /// Calls `each` with every entry of a directory until it returns `false`.
    fn entries(
        &self,
        ino: Ino,
        inode: &Inode,
        each: &mut dyn FnMut(&[u8], Ino) -> bool,
    ) -> Result<(), FsError> {
        let layout = DirLayout::new(self.sb);
        let mut runs = Runs::default();
        self.walk().visit(ino, inode, true, &mut runs);
        for block in runs.0.iter().flat_map(BlockRange::blocks) {
            let bytes = self.block(block)?;
            for entry in layout.entries(&bytes).map_while(Result::ok) {
                if let Some(target) = entry.ino
                    && !each(entry.name, target)
                {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// The directory above, and the name in it.
    fn above(&self, ino: Ino) -> Result<Option<Named>, FsError> {
        let mut parent = None;
        let Some(inode) = self.inode(ino)?.filter(Inode::is_dir) else {
            return Ok(None);
        };
        self.entries(ino, &inode, &mut |name, target| {
            if name == b".." {
                parent = Some(target);
            }
            parent.is_none()
        })?;
        let Some(parent) = parent else {
            return Ok(None);
        };
        let Some(inode) = self.inode(parent)?.filter(Inode::is_dir) else {
            return Ok(None);
        };
        let mut found = None;
        self.entries(parent, &inode, &mut |name, target| {
            if target == ino && name != b"." && name != b".." {
                found = Some((parent, name.to_vec()));
            }
            found.is_none()
        })?;
        Ok(found)
    }

    fn path(
        &self,
        first: Option<&Named>,
        ino: Ino,
        known: &mut HashMap<Ino, Option<Named>>,
    ) -> Result<Option<Vec<u8>>, FsError> {
        let mut names: Vec<Vec<u8>> = Vec::new();
        let mut at = ino;
        if let Some((parent, name)) = first {
            names.push(name.clone());
            at = *parent;
        }
        while at != reserved::ROOT {
            if names.len() > MAX_DEPTH {
                return Ok(None);
            }
            let above = match known.entry(at) {
                Entry::Occupied(entry) => entry.into_mut(),
                Entry::Vacant(entry) => entry.insert(self.above(at)?),
            };
            let Some((parent, name)) = above else {
                return Ok(None);
            };
            names.push(name.clone());
            at = *parent;
        }
        let mut path = Vec::new();
        for name in names.iter().rev() {
            path.push(b'/');
            path.extend(name);
        }
        if path.is_empty() {
            path.push(b'/');
        }
        Ok(Some(path))
    }
}

fn slot(owner: &mut Owner) -> Option<(Ino, &mut Option<Vec<u8>>)> {
    match owner {
        Owner::File { ino, path, .. }
        | Owner::Directory { ino, path }
        | Owner::Map { ino, path }
        | Owner::Attributes { ino, path } => Some((*ino, path)),
        _ => None,
    }
}

/// Gives every inode that was met a path.
pub(super) fn name(table: &Table<'_>, owned: &mut BTreeMap<u64, Owned>) -> Result<(), FsError> {
    // Directories are found by going up; only files need the pass over all entries.
    let mut files: HashMap<Ino, Option<Named>> = HashMap::new();
    let mut directories = Vec::new();
    for owned in owned.values_mut() {
        if let Some((ino, _)) = slot(&mut owned.owner)
            && !files.contains_key(&ino)
        {
            match table.inode(ino)?.is_some_and(|inode| inode.is_dir()) {
                true => directories.push(ino),
                false => drop(files.insert(ino, None)),
            }
        }
    }
    let mut missing = files.len();
    if missing > 0 {
        table.each_inode(&mut |dir, inode| {
            if !inode.is_dir() || missing == 0 {
                return Ok(());
            }
            table.entries(dir, inode, &mut |name, target| {
                if let Some(place @ None) = files.get_mut(&target) {
                    *place = Some((dir, name.to_vec()));
                    missing -= 1;
                }
                missing > 0
            })
        })?;
    }
    let mut known = HashMap::new();
    let mut paths: HashMap<Ino, Option<Vec<u8>>> = HashMap::new();
    for (ino, named) in &files {
        let path = match named {
            Some(_) => table.path(named.as_ref(), *ino, &mut known)?,
            None => None,
        };
        paths.insert(*ino, path);
    }
    for ino in directories {
        let path = table.path(None, ino, &mut known)?;
        paths.insert(ino, path);
    }
    for owned in owned.values_mut() {
        if let Some((ino, path)) = slot(&mut owned.owner) {
            *path = paths.get(&ino).cloned().flatten();
        }
    }
    Ok(())
}
