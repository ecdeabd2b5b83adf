//! Inodes that are to be deleted or cut when nobody holds them any more: the list that survives a crash. Owns both of
//! ext4's forms, the list through `s_last_orphan` and `i_dtime`, and the orphan file (feature orphan_file) with its
//! fixed slots; never deletes or truncates anything itself.
//!
//! Invariants: an inode is in the list at most once; what is in memory here is what the running transaction holds;
//! with an orphan file, the feature bit `orphan_present` is set exactly while one of its slots is taken (e2fsck objects
//! to either without the other). A full orphan file is no error: the list takes over, as in the kernel.
//!
//! Memory: a few words for each inode that is unlinked but open.

use std::collections::HashMap;

use crate::ext4::Superblock;
use crate::ext4::checksum::inode_seed;
use crate::ext4::features::ro_compat::ORPHAN_PRESENT;
use crate::ext4::orphan_file as noun;
use crate::fs::FsError;
use crate::journal::Image;
use crate::units::{BlockNo, FileBlock, Ino};

/// What the orphan list needs of the engine, within one operation of the running transaction.
pub trait OrphanStore {
    /// The volume's superblock.
    fn sb(&self) -> &Superblock;
    /// Sets `s_last_orphan`.
    fn set_s_last_orphan(&mut self, ino: u32) -> Result<(), FsError>;
    /// Sets or clears the ro_compat feature orphan_present.
    fn set_orphan_present(&mut self, present: bool) -> Result<(), FsError>;
    /// An inode's `i_dtime`, which holds the next inode of the list; `FsError::Corrupt` when the inode is not in use.
    fn i_dtime(&self, ino: Ino) -> Result<u32, FsError>;
    /// Sets an inode's `i_dtime`.
    fn set_i_dtime(&mut self, ino: Ino, value: u32) -> Result<(), FsError>;
    /// The orphan file's `i_generation` and size in blocks (only asked with the feature orphan_file).
    fn orphan_file(&self) -> Result<(u32, u32), FsError>;
    /// A block of the orphan file, and where it is.
    fn orphan_block(&self, block: FileBlock) -> Result<(BlockNo, Image), FsError>;
    /// The same, to be changed.
    fn modify_orphan_block(&mut self, block: FileBlock) -> Result<(BlockNo, &mut [u8]), FsError>;
}

/// Where an orphan stands.
#[derive(Clone, Copy, Debug)]
enum Place {
    /// In the list: the neighbours that came after and before it.
    Listed {
        newer: Option<Ino>,
        older: Option<Ino>,
    },
    /// In the orphan file.
    Slot { block: FileBlock, index: u32 },
}

/// The orphans of a volume that is open.
#[derive(Debug, Default)]
pub struct Orphans {
    places: HashMap<Ino, Place>,
    /// The newest of the list, as in `s_last_orphan`.
    newest: Option<Ino>,
    /// Slots taken in the orphan file.
    slots_taken: usize,
    /// Where to look for a free slot first.
    hint: u32,
}

fn corrupt(ino: Option<Ino>, block: Option<BlockNo>, detail: String) -> FsError {
    FsError::Corrupt {
        what: "orphan list",
        ino,
        block,
        detail,
    }
}

/// The inode number, if it can be that of an orphan.
fn checked(sb: &Superblock, number: u32, from: &str) -> Result<Ino, FsError> {
    if number < sb.first_ino() || number > sb.s_inodes_count() {
        return Err(corrupt(
            None,
            None,
            format!(
                "{from} names inode {number}, not one of {}..={}",
                sb.first_ino(),
                sb.s_inodes_count()
            ),
        ));
    }
    Ok(Ino(number))
}

impl Orphans {
    /// Reads the orphans at the opening of a volume.
    pub fn open(store: &impl OrphanStore) -> Result<Orphans, FsError> {
        let mut orphans = Orphans::default();
        orphans.read_list(store)?;
        if store.sb().has_orphan_file() {
            orphans.read_file(store)?;
        }
        Ok(orphans)
    }

    fn read_list(&mut self, store: &impl OrphanStore) -> Result<(), FsError> {
        let sb = store.sb();
        let mut newer = None;
        let mut number = sb.s_last_orphan();
        while number != 0 {
            let from = match newer {
                None => "s_last_orphan".to_owned(),
                Some(ino) => format!("i_dtime of inode {ino}"),
            };
            let ino = checked(sb, number, &from)?;
            if self.places.contains_key(&ino) {
                return Err(corrupt(Some(ino), None, "the list comes back to it".into()));
            }
            number = store.i_dtime(ino)?;
            let older = (number != 0).then_some(Ino(number));
            self.places.insert(ino, Place::Listed { newer, older });
            self.newest.get_or_insert(ino);
            newer = Some(ino);
        }
        Ok(())
    }

    fn read_file(&mut self, store: &impl OrphanStore) -> Result<(), FsError> {
        let sb = store.sb();
        let (_, blocks) = store.orphan_file()?;
        for number in 0..blocks {
            let block = FileBlock(number);
            let (at, image) = store.orphan_block(block)?;
            verify(store, at, &image)?;
            for (index, ino) in noun::orphans(&image) {
                let ino = checked(sb, ino.0, &format!("slot {index} of block {number}"))?;
                let index = index as u32;
                let place = Place::Slot { block, index };
                if self.places.insert(ino, place).is_some() {
                    return Err(corrupt(Some(ino), Some(at), "it is listed twice".into()));
                }
                self.slots_taken += 1;
            }
        }
        Ok(())
    }

    /// The orphans, in no order that matters.
    pub fn list(&self) -> Vec<Ino> {
        let mut list: Vec<Ino> = self.places.keys().copied().collect();
        list.sort_unstable();
        list
    }

    /// Whether an inode is among them.
    pub fn contains(&self, ino: Ino) -> bool {
        self.places.contains_key(&ino)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// Adds an inode, in the transaction that makes it an orphan. An inode that is there already stays.
    pub fn add(&mut self, store: &mut impl OrphanStore, ino: Ino) -> Result<(), FsError> {
        if self.contains(ino) {
            return Ok(());
        }
        if store.sb().has_orphan_file()
            && let Some(place) = self.take_slot(store, ino)?
        {
            self.places.insert(ino, place);
            return Ok(());
        }
        let older = self.newest;
        store.set_i_dtime(ino, older.map_or(0, |ino| ino.0))?;
        store.set_s_last_orphan(ino.0)?;
        if let Some(Place::Listed { newer, .. }) =
            older.and_then(|older| self.places.get_mut(&older))
        {
            *newer = Some(ino);
        }
        let place = Place::Listed { newer: None, older };
        self.places.insert(ino, place);
        self.newest = Some(ino);
        Ok(())
    }

    /// Takes a free slot of the orphan file; `None` when it is full.
    fn take_slot(
        &mut self,
        store: &mut impl OrphanStore,
        ino: Ino,
    ) -> Result<Option<Place>, FsError> {
        let (_, blocks) = store.orphan_file()?;
        for step in 0..blocks {
            let block = FileBlock((self.hint % blocks + step) % blocks);
            let (at, image) = store.orphan_block(block)?;
            verify(store, at, &image)?;
            let Some(index) = noun::free_slot(&image) else {
                continue;
            };
            if self.slots_taken == 0 {
                store.set_orphan_present(true)?;
            }
            self.write_slot(store, block, index, Some(ino))?;
            self.slots_taken += 1;
            self.hint = block.0;
            let index = index as u32;
            return Ok(Some(Place::Slot { block, index }));
        }
        Ok(None)
    }

    fn write_slot(
        &self,
        store: &mut impl OrphanStore,
        block: FileBlock,
        index: usize,
        ino: Option<Ino>,
    ) -> Result<(), FsError> {
        let seed = seed(store)?;
        let sb = store.sb().clone();
        let (at, bytes) = store.modify_orphan_block(block)?;
        if index >= noun::slots(bytes.len()) {
            return Err(corrupt(ino, Some(at), format!("no slot {index} in it")));
        }
        noun::set_slot(bytes, index, ino);
        noun::update(&sb, seed, at, bytes);
        Ok(())
    }

    /// Removes an inode, in the transaction that frees it or has finished cutting it. Leaves its `i_dtime` 0 when it was
    /// in the list; the caller sets the time of deletion afterwards. An inode that is not there is no error.
    pub fn remove(&mut self, store: &mut impl OrphanStore, ino: Ino) -> Result<(), FsError> {
        match self.places.get(&ino).copied() {
            None => return Ok(()),
            Some(Place::Slot { block, index }) => {
                self.write_slot(store, block, index as usize, None)?;
                self.slots_taken -= 1;
                self.hint = block.0;
                if self.slots_taken == 0 {
                    store.set_orphan_present(false)?;
                }
            }
            Some(Place::Listed { newer, older }) => {
                let older_number = older.map_or(0, |ino| ino.0);
                match newer {
                    None => {
                        store.set_s_last_orphan(older_number)?;
                        self.newest = older;
                    }
                    Some(newer) => store.set_i_dtime(newer, older_number)?,
                }
                store.set_i_dtime(ino, 0)?;
                if let Some(newer) = newer
                    && let Some(Place::Listed { older: link, .. }) = self.places.get_mut(&newer)
                {
                    *link = older;
                }
                if let Some(older) = older
                    && let Some(Place::Listed { newer: link, .. }) = self.places.get_mut(&older)
                {
                    *link = newer;
                }
            }
        }
        self.places.remove(&ino);
        Ok(())
    }

    /// Makes the feature bit say what the orphan file holds: after the opening of a volume that the kernel left, which
    /// keeps the bit set while it is mounted.
    pub fn settle(&self, store: &mut impl OrphanStore) -> Result<(), FsError> {
        if store.sb().has_orphan_file() {
            let present = self.slots_taken > 0;
            if store.sb().has_ro_compat(ORPHAN_PRESENT) != present {
                store.set_orphan_present(present)?;
            }
        }
        Ok(())
    }
}

/// The seed of the orphan file's checksums.
fn seed(store: &impl OrphanStore) -> Result<u32, FsError> {
    let sb = store.sb();
    let (generation, _) = store.orphan_file()?;
    let ino = Ino(sb.s_orphan_file_inum());
    Ok(inode_seed(sb.csum_seed(), ino, generation))
}

/// Checks a block of the orphan file.
fn verify(store: &impl OrphanStore, at: BlockNo, image: &[u8]) -> Result<(), FsError> {
    noun::verify(store.sb(), seed(store)?, at, image)
        .map_err(|why| corrupt(None, Some(at), why.to_string()))
}

#[cfg(test)]
mod tests;
