//! The multiple-mount protection (feature mmp): a block that whoever has the volume open keeps changing. Owns claiming,
//! refreshing and giving it up. The block is each side's own: it is written home directly and in no transaction.

use std::time::Duration;

use crate::ext4::Superblock;
use crate::ext4::mmp::{EXT4_MMP_SEQ_CLEAN, EXT4_MMP_SEQ_FSCK, EXT4_MMP_SEQ_MAX, Mmp};
use crate::fs::{Fs, FsError};
use crate::units::BlockNo;

/// A block that was not written for this long belongs to somebody who crashed. Longer than any check interval in use, since
/// it is the time of day that is compared and not the block that is watched.
const ABANDONED_SECS: i64 = 300;

/// A claim that was made.
pub(crate) struct Claim {
    seq: u32,
    next: Duration,
    interval: Duration,
}

impl Fs {
    fn mmp_block(&self) -> Option<(Superblock, BlockNo)> {
        let meta = self.meta.read();
        let block = BlockNo(meta.sb.s_mmp_block());
        (meta.sb.has_mmp() && block.0 != 0).then(|| (meta.sb.clone(), block))
    }

    /// Refuses when somebody else has the volume, else says that we have.
    pub(crate) fn claim_mmp(&self) -> Result<(), FsError> {
        let Some((sb, block)) = self.mmp_block() else {
            return Ok(());
        };
        let (mmp, _) = self.read_mmp(&sb, block)?;
        let age = self.clock.now().secs.saturating_sub(mmp.mmp_time() as i64);
        let fresh = (-ABANDONED_SECS..ABANDONED_SECS).contains(&age);
        if mmp.mmp_seq() == EXT4_MMP_SEQ_FSCK || (!mmp.is_clean() && fresh) {
            return Err(FsError::Unsupported(format!(
                "a volume that {} has open, or had until {age} s ago (multiple-mount protection); if it crashed: wait, or \
                 tune2fs -f -E clear_mmp",
                mmp.nodename()
            )));
        }
        let interval = Duration::from_secs(u64::from(sb.s_mmp_update_interval().max(1)));
        let seq = self.random.u32() % EXT4_MMP_SEQ_MAX + 1;
        self.write_mmp(&sb, block, seq)?;
        *self.mmp.lock() = Some(Claim {
            seq,
            next: self.clock.monotonic() + interval,
            interval,
        });
        Ok(())
    }

    /// Keeps the claim alive, when due.
    pub(crate) fn refresh_mmp(&self, now: Duration) -> Result<(), FsError> {
        let mut claim = self.mmp.lock();
        let Some(claim) = claim.as_mut().filter(|claim| claim.next <= now) else {
            return Ok(());
        };
        let Some((sb, block)) = self.mmp_block() else {
            return Ok(());
        };
        let (mmp, _) = self.read_mmp(&sb, block)?;
        if mmp.mmp_seq() != claim.seq {
            let why = format!(
                "{} took the volume over (multiple-mount protection)",
                mmp.nodename()
            );
            self.give_up(&why);
            return Err(FsError::Aborted(why));
        }
        claim.seq = claim.seq % EXT4_MMP_SEQ_MAX + 1;
        claim.next = now + claim.interval;
        self.write_mmp(&sb, block, claim.seq)
    }

    /// Gives the claim up. The caller flushes.
    pub(crate) fn release_mmp(&self) -> Result<(), FsError> {
        if self.mmp.lock().take().is_none() {
            return Ok(());
        }
        match self.mmp_block() {
            Some((sb, block)) => self.write_mmp(&sb, block, EXT4_MMP_SEQ_CLEAN),
            None => Ok(()),
        }
    }

    fn read_mmp(&self, sb: &Superblock, block: BlockNo) -> Result<(Mmp, Vec<u8>), FsError> {
        let mut bytes = vec![0; self.block_size];
        self.volume.read(block, &mut bytes)?;
        let mmp = Mmp::decode(sb, &bytes).map_err(|e| FsError::Corrupt {
            what: "MMP block",
            ino: None,
            block: Some(block),
            detail: e.to_string(),
        })?;
        Ok((mmp, bytes))
    }

    fn write_mmp(&self, sb: &Superblock, block: BlockNo, seq: u32) -> Result<(), FsError> {
        let (mut mmp, mut bytes) = self.read_mmp(sb, block)?;
        mmp.set_mmp_seq(seq);
        mmp.set_mmp_time(self.clock.now().secs as u64);
        let mut name = [0; 64];
        name[..8].copy_from_slice(b"lockstep");
        mmp.set_mmp_nodename(name);
        let image = mmp.encode(sb);
        bytes[..image.len()].copy_from_slice(image);
        self.volume.write(block, &bytes)?;
        Ok(self.volume.flush()?)
    }
}
