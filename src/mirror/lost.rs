//! What only one side had, kept aside before it is given up: the blocks, and which files they belonged to.
//!
//! Owns the index's form and the order of writing: the blocks first, the index, which makes them count, last. Never
//! decides what is given up. An index that is there is whole, and so is what it names. Done again, as after a power cut
//! before it was given up, it comes to the same under the same name.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::Xxh3;

use crate::fs::FsError;
use crate::fs::check::Reader;
use crate::fs::owners::{Owned, Owner, owners};
use crate::journal::{Image, Journal, Transaction};
use crate::mirror::MirrorError;
use crate::mirror::committed::Committed;
use crate::mirror::ranges::RangeSet;
use crate::mirror::shipment::touched;
use crate::units::{BlockNo, BlockRange, Generation, Txid};

/// What was kept aside at one time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LostIndex {
    /// The volume.
    pub volume: String,
    /// Its id, in hexadecimal.
    pub volume_id: String,
    /// The node that had it.
    pub node: String,
    /// The master that it gave it up for.
    pub master: String,
    /// Bytes of a block.
    pub block_size: u32,
    /// The last transaction that both had.
    pub shared: u64,
    /// The last transaction of this side.
    pub last: u64,
    /// The generation of `last`, in hexadecimal.
    pub generation: String,
    /// Whether these are all blocks that only this side had; otherwise those that were still known.
    pub complete: bool,
    /// First block and number of blocks of each run, in the order in which their bytes are kept.
    pub ranges: Vec<(u64, u64)>,
    /// xxh3 of all bytes kept.
    pub xxh3: u64,
    /// What the blocks belonged to, as far as it could be found out.
    #[serde(default)]
    pub runs: Vec<LostRun>,
}

/// A run of blocks that were kept, and whose they were.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LostRun {
    /// Whose, for people.
    pub what: String,
    /// Of a file's contents: a path from the root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Of a file's contents: the byte with which the run begins, and the one behind it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<(u64, u64)>,
    /// First block of the volume.
    pub block: u64,
    /// Number of blocks.
    pub blocks: u64,
}

/// Runs that are told apart; what comes behind them is kept, too, without a name.
const MAX_RUNS: usize = 1 << 16;

/// Whose the blocks of `ranges` are, in the volume that `reader` shows.
pub fn whose(reader: &dyn Reader, ranges: &[BlockRange]) -> Vec<LostRun> {
    let found = match owners(reader, ranges, MAX_RUNS) {
        Ok(found) => found.owned,
        Err(error) => {
            tracing::warn!(%error, "whose the blocks are can not be found out");
            return Vec::new();
        }
    };
    let run = |owned: &Owned| {
        let (path, bytes) = match &owned.owner {
            Owner::File { path, bytes, .. } => (
                path.as_ref()
                    .map(|p| String::from_utf8_lossy(p).into_owned()),
                Some((bytes.start, bytes.end)),
            ),
            _ => (None, None),
        };
        LostRun {
            what: owned.owner.to_string(),
            path,
            bytes,
            block: owned.blocks.start.0,
            blocks: owned.blocks.len,
        }
    };
    found.iter().map(run).collect()
}

impl LostIndex {
    /// By which it is listed: the same for the same transactions, so that keeping them twice keeps them once.
    pub fn id(last: Txid, generation: Generation) -> String {
        format!("{}-{:08x}", last, (generation.0 >> 96) as u32)
    }

    /// Blocks kept.
    pub fn blocks(&self) -> u64 {
        self.ranges.iter().map(|(_, len)| len).sum()
    }
}

/// Where what is lost is kept.
pub trait LostStore: Send + Sync + std::fmt::Debug {
    /// Begins to keep something under `id`, in place of what was kept under it before.
    fn begin(&self, volume: &str, id: &str) -> io::Result<Box<dyn LostWriter>>;
}

/// Something that is being kept.
pub trait LostWriter {
    /// Appends bytes of blocks.
    fn put(&mut self, bytes: &[u8]) -> io::Result<()>;
    /// Makes them durable, then the index, and only then makes them count.
    fn finish(self: Box<Self>, index: &LostIndex) -> io::Result<()>;
}

/// What is given up, and for whom.
#[derive(Clone, Copy, Debug)]
pub struct Gone<'a> {
    /// The volume.
    pub name: &'a str,
    /// Its id.
    pub volume_id: u128,
    /// The node that has it.
    pub node: &'a str,
    /// The master that it is given up for.
    pub master: &'a str,
    /// The last transaction that both have.
    pub shared: Txid,
    /// The last transaction of this side.
    pub last: Txid,
    /// The generation of `last`.
    pub generation: Generation,
}

/// Keeps the contents of `changed` that are in use in the state that `reader` shows, but for the journal's own blocks,
/// `log`. Durable when it returns; the name under which they are kept.
pub fn keep_aside(
    store: &dyn LostStore,
    reader: Arc<impl Reader + Send + Sync + 'static>,
    gone: &Gone<'_>,
    changed: &RangeSet,
    log: &[BlockRange],
) -> Result<String, MirrorError> {
    let block_size = reader.block_size();
    let committed = Committed::load(Arc::clone(&reader), block_size as usize)?;
    let mut wanted = RangeSet::default();
    for range in changed.iter() {
        for piece in committed.allocated(range)? {
            wanted.insert(piece);
        }
    }
    for range in log {
        wanted.remove(*range);
    }
    let id = LostIndex::id(gone.last, gone.generation);
    let failed = |source| MirrorError::Lost {
        id: id.clone(),
        source,
    };
    let mut writer = store.begin(gone.name, &id).map_err(failed)?;
    let mut hash = Xxh3::new();
    let mut bytes = Vec::new();
    for range in wanted.iter() {
        for piece in pieces(range, block_size) {
            bytes.resize((piece.len * u64::from(block_size)) as usize, 0);
            reader.read(piece.start, &mut bytes)?;
            hash.update(&bytes);
            writer.put(&bytes).map_err(failed)?;
        }
    }
    let ranges: Vec<BlockRange> = wanted.iter().collect();
    let index = LostIndex {
        volume: gone.name.to_string(),
        volume_id: format!("{:032x}", gone.volume_id),
        node: gone.node.to_string(),
        master: gone.master.to_string(),
        block_size,
        shared: gone.shared.0,
        last: gone.last.0,
        generation: gone.generation.to_string(),
        complete: true,
        ranges: ranges.iter().map(|r| (r.start.0, r.len)).collect(),
        xxh3: hash.digest(),
        runs: whose(&*reader, &ranges),
    };
    writer.finish(&index).map_err(failed)?;
    Ok(id)
}

/// The state behind transactions that are in a log and not shown. Their fresh data is home: nothing that is shown uses
/// those blocks.
#[derive(Debug)]
pub struct Unshown {
    journal: Arc<Journal>,
    images: BTreeMap<BlockNo, Image>,
    changed: RangeSet,
}

impl Unshown {
    /// Of `txns`, which follow what the journal shows, in order.
    pub fn new<'a>(
        journal: Arc<Journal>,
        txns: impl IntoIterator<Item = &'a Transaction>,
    ) -> Unshown {
        let mut images = BTreeMap::new();
        let mut changed = RangeSet::default();
        for txn in txns {
            touched(txn).for_each(|range| changed.insert(range));
            let home = txn.refs.iter().map(|reference| reference.range);
            for block in home
                .chain(txn.zeroed.iter().copied())
                .flat_map(|r| r.blocks())
            {
                images.remove(&block);
            }
            let values = txn.images.iter();
            images.extend(values.map(|(block, image)| (*block, image.clone())));
        }
        Unshown {
            journal,
            images,
            changed,
        }
    }

    /// Every block that they change.
    pub fn changed(&self) -> &RangeSet {
        &self.changed
    }
}

impl Reader for Unshown {
    fn block_size(&self) -> u32 {
        self.journal.block_size()
    }

    fn blocks_count(&self) -> u64 {
        self.journal.blocks_count()
    }

    fn read(&self, start: BlockNo, buf: &mut [u8]) -> Result<(), FsError> {
        Reader::read(&*self.journal, start, buf)?;
        let size = self.block_size() as usize;
        let range = BlockRange::new(start, (buf.len() / size) as u64);
        for (block, image) in self.images.range(range.start..range.end()) {
            let at = (block.0 - start.0) as usize * size;
            buf[at..at + size].copy_from_slice(image);
        }
        Ok(())
    }
}

/// Bytes that are read and kept at a time.
const PIECE: u64 = 1 << 20;

/// The runs of `range` that are at most `PIECE` bytes long.
fn pieces(range: BlockRange, block_size: u32) -> impl Iterator<Item = BlockRange> {
    let step = (PIECE / u64::from(block_size)).max(1);
    (0..range.len.div_ceil(step)).map(move |n| {
        let start = range.start.0 + n * step;
        BlockRange::new(BlockNo(start), step.min(range.end().0 - start))
    })
}
