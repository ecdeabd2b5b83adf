//! Blocks: allocating near a goal, freeing into quarantine, releasing.

use super::bits::{self, Run, View};
use super::reserve::RESERVED;
use super::zones::corrupt_group;
use super::{AllocError, Allocator, BitmapSum, MetaBlocks};
use crate::ext4::group_desc::EXT4_BG_BLOCK_UNINIT;
use crate::fs::FsError;
use crate::journal::Image;
use crate::units::{BlockNo, BlockRange, GroupNo, Ino, Txid};

/// Groups whose bitmaps are looked at before the longest run seen is good enough.
const EXAMINE_GROUPS: u32 = 8;
/// A run at the goal itself is taken when it has this many blocks, though a longer one may be elsewhere.
const GOOD_AT_GOAL_BLOCKS: u32 = 16;

/// A request for adjacent blocks.
#[derive(Clone, Copy, Debug)]
pub struct BlockRequest {
    /// Where they should be, if free.
    pub goal: BlockNo,
    /// Fewest blocks that are of use; at least 1.
    pub min: u32,
    /// Most blocks wanted.
    pub max: u32,
    /// Which of the last free blocks it may have.
    pub reach: Reach,
}

/// How far a request may reach into the last free blocks, as in ext4 (kernel: `ext4_has_free_clusters`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reach {
    /// Neither into the superuser's reserve nor into what is kept for extent trees.
    Anyone,
    /// Into the superuser's reserve.
    #[default]
    Superuser,
    /// Into everything: nodes of extent trees. Without one, data that has blocks could not be mapped, a hole not be
    /// punched; so it does not fail where anything else already does (kernel: `EXT4_MB_USE_RESERVED`).
    Tree,
}

/// A part of a range that lies in one group.
#[derive(Clone, Copy)]
pub(super) struct Piece {
    pub(super) group: usize,
    pub(super) start: u32,
    pub(super) range: BlockRange,
}

impl Piece {
    pub(super) fn run(&self) -> Run {
        Run {
            start: self.start,
            len: self.range.len as u32,
        }
    }
}

impl Allocator {
    /// Allocates between `min` and `max` adjacent blocks of one group: at the goal if free; else the first run of `max`
    /// blocks in the goal's group and those behind it; else the longest run found nearby.
    ///
    /// # Errors
    /// [`AllocError::NoSpace`]; [`AllocError::Quarantined`] when there might be space after [`Allocator::release`];
    /// [`FsError::Corrupt`]. Nothing has changed then.
    pub fn alloc_blocks<M: MetaBlocks + ?Sized>(
        &mut self,
        meta: &mut M,
        request: &BlockRequest,
    ) -> Result<BlockRange, AllocError> {
        let (group, run) = self.choose(meta, request)?;
        self.take(meta, group, run)?;
        let first = self.geometry.group_first_block(GroupNo(group as u32)).0;
        Ok(BlockRange::new(
            BlockNo(first + u64::from(run.start)),
            u64::from(run.len),
        ))
    }

    /// The group and run that a request gets; nothing is changed.
    pub(super) fn choose<M: MetaBlocks + ?Sized>(
        &mut self,
        meta: &M,
        request: &BlockRequest,
    ) -> Result<(usize, Run), AllocError> {
        let min = request.min.max(1);
        let keep = match request.reach {
            Reach::Anyone => self.reserved + self.for_trees,
            Reach::Superuser => self.for_trees,
            Reach::Tree => 0,
        };
        // Blocks promised to writes under way are free on disk, but no longer to be had.
        let promised = self.quarantine.of(RESERVED);
        let allowed = self.free_blocks.saturating_sub(keep + promised);
        if allowed < u64::from(min) {
            return Err(AllocError::NoSpace);
        }
        // What is in quarantine counts as free, so the superuser's reserve may lie there.
        let usable = self.free_blocks.saturating_sub(self.quarantine.total());
        let most = allowed.min(usable).min(request.max.max(min).into()) as u32;
        let found = match most >= min {
            true => self.search(meta, request.goal, min, most)?,
            false => None,
        };
        found.ok_or_else(|| match self.quarantine.total() - promised {
            0 => AllocError::NoSpace,
            blocks => AllocError::Quarantined { blocks },
        })
    }

    /// A run of `min..=want` usable blocks.
    pub(super) fn search<M: MetaBlocks + ?Sized>(
        &mut self,
        meta: &M,
        goal: BlockNo,
        min: u32,
        want: u32,
    ) -> Result<Option<(usize, Run)>, FsError> {
        let (first, goal_bit) = match self.geometry.locate(goal) {
            Some((group, bit)) => (group.0 as usize, bit),
            None => (0, 0),
        };
        let want = want.min(self.geometry.blocks_per_group);
        let count = self.groups.len();
        let mut best: Option<(usize, Run)> = None;
        let mut examined = 0;
        for i in 0..count {
            let group = (first + i) % count;
            let least = best.map_or(min, |(_, run)| run.len + 1);
            if self.largest[group] < least {
                continue;
            }
            let goal_bit = (i == 0).then_some(goal_bit);
            if let Some(run) = self.search_group(meta, group, goal_bit, least, want)? {
                best = Some((group, run));
                if run.len >= want || goal_bit == Some(run.start) {
                    break;
                }
            }
            examined += 1;
            if best.is_some() && examined >= EXAMINE_GROUPS {
                break;
            }
        }
        Ok(best)
    }

    /// The first run of `want` blocks of a group from the goal on, else from its start on, else its longest run if that has
    /// `least` blocks.
    fn search_group<M: MetaBlocks + ?Sized>(
        &mut self,
        meta: &M,
        group: usize,
        goal: Option<u32>,
        least: u32,
        want: u32,
    ) -> Result<Option<Run>, FsError> {
        let bitmap = self.block_bitmap(meta, group)?;
        let blocks = self.geometry.blocks_in_group(GroupNo(group as u32));
        let view = View::new(&bitmap, self.quarantine.mask(group), blocks);
        let cut = |run: Run| Run {
            len: run.len.min(want),
            ..run
        };
        let from = goal.unwrap_or(0);
        let good = want.min(GOOD_AT_GOAL_BLOCKS).max(least);
        let mut longest: Option<Run> = None;
        let mut next = from;
        while let Some(run) = view.next_run(next) {
            if run.len >= want || (goal == Some(run.start) && run.len >= good) {
                return Ok(Some(cut(run)));
            }
            if longest.is_none_or(|l| run.len > l.len) {
                longest = Some(run);
            }
            next = run.start + run.len;
        }
        // The runs before `from`; one may reach over it and is seen whole here.
        for run in view.runs().take_while(|run| run.start < from) {
            if run.len >= want {
                return Ok(Some(cut(run)));
            }
            if longest.is_none_or(|l| run.len > l.len) {
                longest = Some(run);
            }
        }
        // Every run was seen: the bound is exact now.
        self.largest[group] = longest.map_or(0, |run| run.len);
        Ok(longest.filter(|run| run.len >= least))
    }

    /// The group's block bitmap: checked, or made up when it was never written.
    fn block_bitmap<M: MetaBlocks + ?Sized>(
        &mut self,
        meta: &M,
        group: usize,
    ) -> Result<Image, FsError> {
        let desc = self.groups[group].desc;
        if desc.block_uninit(meta.sb()) {
            return Ok(self.made_up(group)?.into());
        }
        let image = meta.get(desc.bg_block_bitmap())?;
        if !self.groups[group].blocks_checked {
            let number = GroupNo(group as u32);
            super::check_block_bitmap(meta.sb(), &self.zones, number, &desc, &image)?;
            self.groups[group].blocks_checked = true;
        }
        Ok(image)
    }

    /// The bitmap of a group that was never written.
    fn made_up(&self, group: usize) -> Result<Vec<u8>, FsError> {
        let number = GroupNo(group as u32);
        let bitmap = self.zones.synthesise(&self.geometry, number);
        let blocks = self.geometry.blocks_in_group(number);
        let free = View::new(&bitmap, None, blocks).count_free();
        let desc = &self.groups[group].desc;
        if free != desc.bg_free_blocks_count() {
            let detail = format!(
                "uninitialised with {free} free blocks, the descriptor says {}",
                desc.bg_free_blocks_count()
            );
            return Err(corrupt_group(number, desc.bg_block_bitmap(), detail));
        }
        Ok(bitmap)
    }

    /// Writes the bitmap of a group that has none yet. The caller stores the descriptor.
    pub(super) fn initialise_blocks<M: MetaBlocks + ?Sized>(
        &mut self,
        meta: &mut M,
        group: usize,
    ) -> Result<(), FsError> {
        if !self.groups[group].desc.block_uninit(meta.sb()) {
            return Ok(());
        }
        let bitmap = self.made_up(group)?;
        let sum = BitmapSum::new(meta.sb()).of(&bitmap, self.geometry.blocks_per_group);
        let g = &mut self.groups[group];
        meta.create(g.desc.bg_block_bitmap())?
            .copy_from_slice(&bitmap);
        g.desc
            .set_bg_flags(g.desc.bg_flags() & !EXT4_BG_BLOCK_UNINIT);
        if let Some(sum) = sum {
            g.desc.set_bg_block_bitmap_csum(sum);
        }
        g.blocks_checked = true;
        Ok(())
    }

    /// Marks a run as in use.
    pub(super) fn take<M: MetaBlocks + ?Sized>(
        &mut self,
        meta: &mut M,
        group: usize,
        run: Run,
    ) -> Result<(), FsError> {
        self.initialise_blocks(meta, group)?;
        self.change_bits(meta, group, run, true)?;
        let desc = &mut self.groups[group].desc;
        desc.set_bg_free_blocks_count(desc.bg_free_blocks_count() - run.len);
        self.free_blocks -= u64::from(run.len);
        self.bound(group);
        self.store(meta, group)
    }

    /// The longest run can not be longer than what is usable.
    pub(super) fn bound(&mut self, group: usize) {
        self.largest[group] = self.largest[group].min(self.usable(group));
    }

    fn change_bits<M: MetaBlocks + ?Sized>(
        &mut self,
        meta: &mut M,
        group: usize,
        run: Run,
        used: bool,
    ) -> Result<(), FsError> {
        let sum = BitmapSum::new(meta.sb());
        let desc = &mut self.groups[group].desc;
        let bitmap = meta.modify(desc.bg_block_bitmap())?;
        bits::fill(bitmap, run.start, run.len, used);
        if let Some(sum) = sum.of(bitmap, self.geometry.blocks_per_group) {
            desc.set_bg_block_bitmap_csum(sum);
        }
        Ok(())
    }

    /// Frees blocks in transaction `txid`: they are free on disk, and in quarantine until [`Allocator::release`].
    ///
    /// # Errors
    /// [`FsError::Corrupt`] when a block is outside the volume, the volume's own, or free already: nothing has changed then.
    pub fn free_blocks_in<M: MetaBlocks + ?Sized>(
        &mut self,
        meta: &mut M,
        range: BlockRange,
        txid: Txid,
    ) -> Result<(), AllocError> {
        let pieces = self.pieces(range)?;
        if self.is_system(range) {
            return Err(corrupt_free(range, "it holds metadata of the volume").into());
        }
        for piece in &pieces {
            let bitmap = self.block_bitmap(meta, piece.group)?;
            let blocks = self.geometry.blocks_in_group(GroupNo(piece.group as u32));
            let run = piece.run();
            if !View::new(&bitmap, None, blocks).is_used(run.start, run.len) {
                return Err(corrupt_free(piece.range, "it is free already").into());
            }
        }
        for piece in pieces {
            self.change_bits(meta, piece.group, piece.run(), false)?;
            let desc = &mut self.groups[piece.group].desc;
            desc.set_bg_free_blocks_count(desc.bg_free_blocks_count() + piece.range.len as u32);
            self.free_blocks += piece.range.len;
            let size = self.geometry.block_size;
            self.quarantine
                .add(txid, piece.range, piece.group, piece.start, size);
            self.store(meta, piece.group)?;
        }
        Ok(())
    }

    /// Puts blocks that an earlier opening freed in `txid` into quarantine again. Those in use by now stay out of it.
    ///
    /// # Errors
    /// [`FsError::Corrupt`] when a block is outside the volume, or a bitmap is damaged.
    pub fn quarantine_again<M: MetaBlocks + ?Sized>(
        &mut self,
        meta: &M,
        range: BlockRange,
        txid: Txid,
    ) -> Result<(), FsError> {
        for piece in self.pieces(range)? {
            let first = self.geometry.group_first_block(GroupNo(piece.group as u32));
            let bitmap = self.block_bitmap(meta, piece.group)?;
            let end = piece.start + piece.range.len as u32;
            let mut next = piece.start;
            loop {
                // Seen through the mask: what is there already is not added twice.
                let view = View::new(&bitmap, self.quarantine.mask(piece.group), end);
                let Some(run) = view.next_run(next) else {
                    break;
                };
                next = run.start + run.len;
                let start = BlockNo(first.0 + u64::from(run.start));
                let range = BlockRange::new(start, run.len.into());
                let size = self.geometry.block_size;
                self.quarantine
                    .add(txid, range, piece.group, run.start, size);
            }
            self.bound(piece.group);
        }
        Ok(())
    }

    /// Lets go of the blocks freed in transactions up to `through`; returns them (to be punched, for instance).
    pub fn release(&mut self, through: Txid) -> Vec<BlockRange> {
        let released = self.quarantine.take(through);
        for range in &released {
            for piece in self.pieces(*range).unwrap_or_default() {
                let run = piece.run();
                self.quarantine.remove(piece.group, run.start, run.len);
                self.largest[piece.group] = self.usable(piece.group);
            }
        }
        released
    }

    /// Whether a block of the range is in quarantine.
    pub fn is_quarantined(&self, range: BlockRange) -> bool {
        let pieces = self.pieces(range).unwrap_or_default();
        pieces.iter().any(|piece| {
            let bits = self.geometry.blocks_in_group(GroupNo(piece.group as u32));
            let run = piece.run();
            self.quarantine.holds(piece.group, run.start, run.len, bits)
        })
    }

    /// Where the first block of an inode should be: the start of its group.
    pub fn goal_of(&self, ino: Ino) -> BlockNo {
        let group = self
            .geometry
            .inode_location(ino)
            .map_or(GroupNo(0), |l| l.0);
        self.geometry.group_first_block(group)
    }

    /// The range by groups.
    pub(super) fn pieces(&self, range: BlockRange) -> Result<Vec<Piece>, FsError> {
        let end = range.start.0.checked_add(range.len);
        if range.len == 0 || end.is_none_or(|end| end > self.geometry.blocks_count) {
            return Err(corrupt_free(range, "it is not in the volume"));
        }
        let mut pieces = Vec::with_capacity(1);
        let mut next = range.start;
        while next < range.end() {
            let Some((group, start)) = self.geometry.locate(next) else {
                return Err(corrupt_free(range, "it is not in the volume"));
            };
            let end = self.geometry.group_blocks(group).end().min(range.end());
            pieces.push(Piece {
                group: group.0 as usize,
                start,
                range: BlockRange::new(next, end.0 - next.0),
            });
            next = end;
        }
        Ok(pieces)
    }
}

fn corrupt_free(range: BlockRange, why: &str) -> FsError {
    FsError::Corrupt {
        what: "file's blocks",
        ino: None,
        block: Some(range.start),
        // Not Display: an overflowing range has no end.
        detail: format!("{} blocks from {}, but {why}", range.len, range.start),
    }
}
