//! Removing a range of a file from its tree, from the end towards the start, in steps of bounded size.

use std::collections::BTreeSet;

use super::edit::Tree;
use super::node::{self, Extent};
use super::{Change, MAX_FILE_BLOCKS, Owner, ROOT_BYTES, check_data};
use crate::fs::FsError;
use crate::fs::blocks::BlocksMut;
use crate::units::{BlockNo, BlockRange, FileBlock};

/// What one call of [`remove`] did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// The extents (or parts) that are no longer the file's, highest file block first. They are NOT freed yet: the caller
    /// does that, in the same transaction.
    pub data: Vec<Extent>,
    /// Node blocks allocated (a hole punched into one extent) and freed; those are freed already.
    pub change: Change,
    /// The budget ran out: everything from this file block on is gone, what is before it waits for the next call.
    pub stopped_at: Option<FileBlock>,
}

/// Removes file blocks `from..to` from the tree, last ones first.
///
/// `budget` bounds the metadata blocks that the call and the freeing of its data change: nodes, and for each group touched a
/// bitmap and a descriptor, and the superblock. At least one extent is removed however small it is. Call again with
/// `to = stopped_at` in another transaction.
///
/// # Errors
/// As [`super::insert`]. Steps before the failing one stay done; after an error other than `NoSpace` the transaction must not
/// be committed.
pub fn remove<B: BlocksMut + ?Sized>(
    blocks: &mut B,
    owner: Owner,
    root: &mut [u8; ROOT_BYTES],
    from: FileBlock,
    to: u64,
    budget: usize,
) -> Result<Removed, FsError> {
    let mut tree = Tree::new(blocks, owner, root);
    let mut groups = BTreeSet::new();
    let mut removed = Removed::default();
    let from = u64::from(from.0);
    let mut end = to.min(MAX_FILE_BLOCKS);
    while end > from {
        let path = tree.descend((end - 1) as u32)?;
        let step = path.last();
        if step.at == 0 {
            // Nothing of this leaf is before `end`; what precedes the leaf is under a smaller key.
            if step.lower >= end {
                break;
            }
            end = step.lower;
            continue;
        }
        let levels = path.steps.len();
        // Entries first..step.at go, from the last one down.
        let mut first = step.at;
        let mut tail = None;
        let mut head = None;
        while first > 0 {
            let e = node::extent(&path.leaf, first - 1);
            let Some(part) = e.part(from, end) else { break };
            check_data(tree.blocks, owner, &part)?;
            groups.extend(groups_of(tree.blocks.sb(), part.range));
            let cost = cost(tree.touched.len() + levels, groups.len());
            if cost > budget && !removed.data.is_empty() {
                removed.stopped_at = Some(FileBlock(end as u32));
                break;
            }
            if first == step.at {
                tail = e.part(end, e.end());
            }
            head = e.part(0, from);
            end = u64::from(part.file.0);
            removed.data.push(part);
            first -= 1;
        }
        if first == step.at {
            // Nothing in reach ends behind `from`, or the budget was used up before this leaf.
            break;
        }
        let window: Vec<Extent> = head.into_iter().chain(tail).collect();
        tree.rewrite(path, first, step.at, &window)?;
        if removed.stopped_at.is_some() {
            break;
        }
        if first > 0 {
            // The entry before is wholly before `from`.
            break;
        }
    }
    tree.collapse()?;
    removed.change = tree.change;
    Ok(removed)
}

/// Metadata blocks changed: nodes, bitmap and descriptor of each group, superblock.
fn cost(nodes: usize, groups: usize) -> usize {
    nodes + 2 * groups + 1
}

fn groups_of(sb: &crate::ext4::Superblock, range: BlockRange) -> std::ops::RangeInclusive<u64> {
    let first = u64::from(sb.s_first_data_block());
    let per_group = u64::from(sb.s_blocks_per_group().max(1));
    let group = |b: BlockNo| b.0.saturating_sub(first) / per_group;
    group(range.start)..=group(BlockNo(range.end().0 - 1))
}

impl<B: BlocksMut + ?Sized> Tree<'_, B> {
    /// While the root has one child whose entries fit into the inode, they move there and the child goes.
    fn collapse(&mut self) -> Result<(), FsError> {
        while node::depth(self.root) > 0 && node::entries(self.root) == 1 {
            let path = self.descend(0)?;
            let step = path.steps[1];
            if step.entries > node::ROOT_MAX {
                return Ok(());
            }
            let block = node::child(self.root, 0);
            let (entries, depth) = {
                let image = self.blocks.get(block)?;
                (node::all(&image), node::depth(&image))
            };
            node::init(self.root, depth, node::ROOT_MAX);
            node::splice(self.root, 0, 0, &entries);
            self.touched.insert(block);
            self.blocks.free(BlockRange::new(block, 1))?;
            self.change.metadata_freed += 1;
        }
        Ok(())
    }
}
