//! Reading: names, attributes, data. Owns the requests that change nothing; they share the metadata lock and never wait for
//! a commit.

use std::ops::Range;

use crate::ext4::Inode;
use crate::fs::blocks::Blocks;
use crate::fs::dirfile::DirView;
use crate::fs::extent::Mapping;
use crate::fs::inode::{InodeStore, attr, blocks_of};
use crate::fs::meta::View;
use crate::fs::namei::Names;
use crate::fs::{Attr, DirEntry, Fs, FsError, Whence, dir};
use crate::journal::Image;
use crate::units::{BlockNo, BlockRange, FileBlock, Ino};

/// File blocks that one look at the map covers at most.
const MAP_BLOCKS: u32 = 32_768;

/// Where the bytes of a piece of a file come from.
enum Source {
    /// The volume, as the journal shows it.
    Volume(BlockRange),
    /// Nowhere: zeros, for this many blocks.
    Zeros(u64),
}

/// Everything needed to read a range of blocks of a file with no metadata lock held.
struct Plan {
    sources: Vec<Source>,
    /// Newer contents than the volume's, by block: what is not yet committed.
    uncommitted: Vec<(BlockNo, Image)>,
}

impl Fs {
    /// The attributes of `name` in `parent`; ENOENT when there is none.
    pub fn lookup(&self, parent: Ino, name: &[u8]) -> Result<Attr, FsError> {
        let _epoch = self.epoch();
        let view = self.view()?;
        let inode = view.directory(parent)?;
        let directory = DirView {
            store: &view,
            ino: parent,
            inode: &inode,
        };
        let found = dir::lookup(&directory, name)?.ok_or(FsError::Refused(libc::ENOENT))?;
        let inode = view.named_inode(found.ino, parent)?;
        Ok(attr(&view, found.ino, &inode))
    }

    /// The attributes of an inode; ESTALE when it was freed.
    pub fn getattr(&self, ino: Ino) -> Result<Attr, FsError> {
        let _epoch = self.epoch();
        let view = self.view()?;
        let inode = view.inode(ino)?;
        Ok(attr(&view, ino, &inode))
    }

    /// Calls `each` for the names behind `cookie` (0: from the start), "." and ".." included, until it returns false (the
    /// entry was not taken). Cookies stay valid while names come and go.
    pub fn readdir(
        &self,
        ino: Ino,
        cookie: u64,
        each: &mut dyn FnMut(&DirEntry<'_>) -> bool,
    ) -> Result<(), FsError> {
        let _epoch = self.epoch();
        let view = self.view()?;
        let inode = view.directory(ino)?;
        let directory = DirView {
            store: &view,
            ino,
            inode: &inode,
        };
        dir::read(&directory, cookie, &mut |entry| {
            each(&DirEntry {
                ino: entry.ino,
                kind: entry.file_type,
                name: entry.name,
                next_cookie: entry.next_cookie,
            })
        })
    }

    /// A symbolic link's target.
    pub fn readlink(&self, ino: Ino) -> Result<Vec<u8>, FsError> {
        let _epoch = self.epoch();
        let view = self.view()?;
        let inode = view.inode(ino)?;
        if !inode.is_symlink() {
            return Err(FsError::Refused(libc::EINVAL));
        }
        let size = inode.i_size(view.sb());
        let bad = |detail: String| FsError::Corrupt {
            what: "symbolic link",
            ino: Some(ino),
            block: None,
            detail,
        };
        if inode.is_fast_symlink(view.sb()) {
            let target = inode.i_block();
            let target = target.get(..size as usize);
            let target = target.ok_or_else(|| bad(format!("its length is {size}")))?;
            return Ok(target.to_vec());
        }
        if size == 0 || size > self.block_size as u64 {
            return Err(bad(format!("its length is {size}")));
        }
        let Mapping::Mapped { block, .. } = view.map(ino, &inode, FileBlock(0), 1)? else {
            return Err(bad("its block is not there".into()));
        };
        let image = view.get(block)?;
        Ok(image[..size as usize].to_vec())
    }

    /// Reads up to `buf.len()` bytes at `offset`; fewer at the end of the file. ESTALE when the inode is not `generation`'s.
    pub fn read(
        &self,
        ino: Ino,
        generation: u32,
        offset: u64,
        buf: &mut [u8],
    ) -> Result<usize, FsError> {
        let _epoch = self.epoch();
        let state = self.inodes.get(ino, self.committed());
        let _data = state.data.read();
        let view = self.view()?;
        let inode = view.inode(ino)?;
        if inode.i_generation() != generation {
            return Err(FsError::Stale);
        }
        if inode.is_dir() {
            return Err(FsError::Refused(libc::EISDIR));
        }
        if !inode.is_reg() {
            return Err(FsError::Refused(libc::EINVAL));
        }
        let size = inode.i_size(view.sb());
        let len = size.saturating_sub(offset).min(buf.len() as u64) as usize;
        if len == 0 {
            return Ok(0);
        }
        let buf = &mut buf[..len];
        let block_size = self.block_size as u64;
        let blocks = offset / block_size..blocks_of(offset + len as u64, self.block_size);
        let plan = self.plan(&view, ino, &inode, blocks)?;
        drop(view);
        self.read_plan(&plan, (offset % block_size) as usize, buf)?;
        Ok(len)
    }

    /// Looks up where `blocks` of a file are.
    fn plan(
        &self,
        view: &View<'_>,
        ino: Ino,
        inode: &Inode,
        blocks: Range<u64>,
    ) -> Result<Plan, FsError> {
        let mut plan = Plan {
            sources: Vec::new(),
            uncommitted: Vec::new(),
        };
        let mut at = blocks.start;
        while at < blocks.end {
            let file_block = file_block(at)?;
            let want = (blocks.end - at).min(u64::from(MAP_BLOCKS)) as u32;
            let source = match view.map(ino, inode, file_block, want)? {
                Mapping::Mapped {
                    block,
                    len,
                    unwritten: false,
                } => Source::Volume(BlockRange::new(block, u64::from(len))),
                Mapping::Mapped { len, .. } | Mapping::Hole(len) => Source::Zeros(u64::from(len)),
            };
            if let Source::Volume(range) = source {
                view.meta.uncommitted_in(range, |block, image| {
                    plan.uncommitted.push((block, image.clone()));
                });
            }
            at += source.len();
            plan.push(source);
        }
        Ok(plan)
    }

    /// Reads a plan's bytes from `skip` on. Whole blocks go straight into the caller's buffer.
    fn read_plan(&self, plan: &Plan, mut skip: usize, mut buf: &mut [u8]) -> Result<(), FsError> {
        let block_size = self.block_size;
        for source in &plan.sources {
            let bytes = (source.len() as usize * block_size - skip).min(buf.len());
            let (target, rest) = std::mem::take(&mut buf).split_at_mut(bytes);
            buf = rest;
            match source {
                Source::Zeros(_) => target.fill(0),
                Source::Volume(range) => self.read_range(plan, *range, skip, target)?,
            }
            skip = 0;
        }
        Ok(())
    }

    /// Reads `target.len()` bytes of a range of blocks, from byte `skip` of the range (less than a block) on.
    fn read_range(
        &self,
        plan: &Plan,
        range: BlockRange,
        skip: usize,
        mut target: &mut [u8],
    ) -> Result<(), FsError> {
        let block_size = self.block_size;
        let mut start = range.start;
        let edge = |start: BlockNo, skip: usize, target: &mut [u8]| -> Result<(), FsError> {
            let mut block = vec![0; block_size];
            self.read_blocks(plan, start, &mut block)?;
            target.copy_from_slice(&block[skip..skip + target.len()]);
            Ok(())
        };
        if skip > 0 {
            let bytes = (block_size - skip).min(target.len());
            let (head, rest) = target.split_at_mut(bytes);
            edge(start, skip, head)?;
            target = rest;
            start = BlockNo(start.0 + 1);
        }
        let whole = target.len() / block_size * block_size;
        let (middle, tail) = target.split_at_mut(whole);
        if whole > 0 {
            self.read_blocks(plan, start, middle)?;
            start = BlockNo(start.0 + (whole / block_size) as u64);
        }
        if !tail.is_empty() {
            edge(start, 0, tail)?;
        }
        Ok(())
    }

    /// Reads whole blocks, uncommitted ones from the plan.
    fn read_blocks(&self, plan: &Plan, start: BlockNo, buf: &mut [u8]) -> Result<(), FsError> {
        let count = buf.len() / self.block_size;
        let range = BlockRange::new(start, count as u64);
        let newer = || plan.uncommitted.iter().filter(|(b, _)| range.contains(*b));
        if newer().count() < count {
            self.journal.read(start, buf)?;
        }
        for (block, image) in newer() {
            let at = (block.0 - start.0) as usize * self.block_size;
            buf[at..at + self.block_size].copy_from_slice(image);
        }
        Ok(())
    }

    /// The offset of the next data or hole at or after `offset`; ENXIO at or past the end.
    pub fn seek(&self, ino: Ino, offset: u64, whence: Whence) -> Result<u64, FsError> {
        let _epoch = self.epoch();
        let state = self.inodes.get(ino, self.committed());
        let _data = state.data.read();
        let view = self.view()?;
        let inode = view.inode(ino)?;
        if !inode.is_reg() && !inode.is_dir() {
            return Err(FsError::Refused(libc::EINVAL));
        }
        let size = inode.i_size(view.sb());
        if offset >= size {
            return Err(FsError::Refused(libc::ENXIO));
        }
        let block_size = self.block_size as u64;
        let end = blocks_of(size, self.block_size);
        let mut at = offset / block_size;
        while at < end {
            let want = (end - at).min(u64::from(u32::MAX)) as u32;
            let (is_data, len) = match view.map(ino, &inode, file_block(at)?, want)? {
                Mapping::Mapped {
                    len,
                    unwritten: false,
                    ..
                } => (true, len),
                Mapping::Mapped { len, .. } | Mapping::Hole(len) => (false, len),
            };
            if is_data == (whence == Whence::Data) {
                return Ok(offset.max(at * block_size));
            }
            at += u64::from(len);
        }
        match whence {
            Whence::Hole => Ok(size),
            Whence::Data => Err(FsError::Refused(libc::ENXIO)),
        }
    }
}

impl Source {
    /// Its length in blocks.
    fn len(&self) -> u64 {
        match self {
            Source::Volume(range) => range.len,
            Source::Zeros(len) => *len,
        }
    }
}

impl Plan {
    /// Adds a source, joined with the one before where they are adjacent: one read instead of two.
    fn push(&mut self, source: Source) {
        match (self.sources.last_mut(), &source) {
            (Some(Source::Volume(last)), Source::Volume(next)) if last.end() == next.start => {
                last.len += next.len;
            }
            (Some(Source::Zeros(last)), Source::Zeros(next)) => *last += next,
            _ => self.sources.push(source),
        }
    }
}

/// A block of a file, which has fewer than 2^32.
pub(crate) fn file_block(at: u64) -> Result<FileBlock, FsError> {
    u32::try_from(at)
        .map(FileBlock)
        .map_err(|_| FsError::Refused(libc::EFBIG))
}
