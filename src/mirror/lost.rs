//! What only one side had, kept aside before it is given up: the blocks, and which files they belonged to.
//!
//! Owns the index's form and the order of writing: the blocks first, the index, which makes them count, last. Never
//! decides what is given up. An index that is there is whole, and so is what it names.

use std::io;

use serde::{Deserialize, Serialize};

use crate::fs::check::Reader;
use crate::fs::owners::{Owned, Owner, owners};
use crate::units::{BlockRange, Generation, Txid};

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

/// Bytes that are read and kept at a time.
pub const PIECE: u64 = 1 << 20;

/// The runs of `range` that are at most `PIECE` bytes long.
pub fn pieces(range: BlockRange, block_size: u32) -> impl Iterator<Item = BlockRange> {
    let step = (PIECE / u64::from(block_size)).max(1);
    (0..range.len.div_ceil(step)).map(move |n| {
        let start = range.start.0 + n * step;
        BlockRange::new(
            crate::units::BlockNo(start),
            step.min(range.end().0 - start),
        )
    })
}
