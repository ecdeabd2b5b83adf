//! The multiple-mount protection (feature mmp): a block that whoever has the volume open keeps changing. Owns claiming,
//! refreshing and giving it up. The block is each side's own: it is written home directly and in no transaction.

use std::time::Duration;

use tracing::warn;

use crate::ext4::Superblock;
use crate::ext4::mmp::{
    EXT4_MMP_MIN_CHECK_INTERVAL, EXT4_MMP_SEQ_CLEAN, EXT4_MMP_SEQ_FSCK, EXT4_MMP_SEQ_MAX, Mmp,
};
use crate::fs::open::read_superblock;
use crate::fs::{Fs, FsError};
use crate::io::{Clock, Random};
use crate::units::BlockNo;
use crate::volume::Volume;

/// Longest time that is added to a check interval, in seconds (kernel: `ext4_multi_mount_protect`).
const MAX_EXTRA_SECS: u64 = 60;

/// A claim that was made.
pub struct Claim {
    seq: u32,
    next: Duration,
    interval: Duration,
}

impl std::fmt::Debug for Claim {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Claim").field("seq", &self.seq).finish()
    }
}

/// Claims a volume that has the feature, before anything is written to it; `None` where it has not.
///
/// As the kernel and e2fsck do: a block that does not say "clean" is watched for twice its check interval; who has the volume
/// open changes it in that time. A crash leaves it unclean, so the first opening after one takes that long.
///
/// Other than the kernel, a clean block is claimed without watching it afterwards for somebody who did so in the same moment:
/// that would keep every opening waiting, and the first refresh finds it out.
///
/// # Errors
/// [`FsError::Unsupported`] when somebody has the volume open, or e2fsck is at work on it.
pub fn claim_volume(
    volume: &Volume,
    clock: &dyn Clock,
    random: &dyn Random,
) -> Result<Option<Claim>, FsError> {
    let sb = read_superblock(volume)?;
    let block = BlockNo(sb.s_mmp_block());
    if !sb.has_mmp() || block.0 == 0 {
        return Ok(None);
    }
    let (mmp, _) = read_mmp(volume, &sb, block)?;
    let update = sb.s_mmp_update_interval();
    if mmp.mmp_seq() == EXT4_MMP_SEQ_FSCK {
        return Err(FsError::Unsupported(format!(
            "opening a volume that e2fsck is at work on at {} (multiple-mount protection); if it was killed: \
             tune2fs -f -E clear_mmp",
            mmp.nodename()
        )));
    }
    if !mmp.is_clean() {
        let check = update
            .max(EXT4_MMP_MIN_CHECK_INTERVAL)
            .max(mmp.mmp_check_interval());
        let check = u64::from(check);
        let wait = (2 * check + 1).min(check + MAX_EXTRA_SECS);
        warn!(seconds = wait, host = %mmp.nodename(),
            "the volume may be open elsewhere (multiple-mount protection): watching it");
        clock.sleep(Duration::from_secs(wait));
        let (now, _) = read_mmp(volume, &sb, block)?;
        if now.mmp_seq() != mmp.mmp_seq() {
            return Err(FsError::Unsupported(format!(
                "opening a volume that {} has open (multiple-mount protection); close or unmount it there first",
                now.nodename()
            )));
        }
    }
    let interval = Duration::from_secs(u64::from(update.max(1)));
    let seq = random.u32() % EXT4_MMP_SEQ_MAX + 1;
    write_mmp(volume, &sb, block, seq, clock)?;
    Ok(Some(Claim {
        seq,
        next: clock.monotonic() + interval,
        interval,
    }))
}

impl Fs {
    fn mmp_block(&self) -> Option<(Superblock, BlockNo)> {
        let meta = self.meta.read();
        let block = BlockNo(meta.sb.s_mmp_block());
        (meta.sb.has_mmp() && block.0 != 0).then(|| (meta.sb.clone(), block))
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
        let (mmp, _) = read_mmp(&self.volume, &sb, block)?;
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
        write_mmp(&self.volume, &sb, block, claim.seq, &*self.clock)
    }

    /// Gives the claim up. The caller flushes.
    pub(crate) fn release_mmp(&self) -> Result<(), FsError> {
        if self.mmp.lock().take().is_none() {
            return Ok(());
        }
        match self.mmp_block() {
            Some((sb, block)) => {
                write_mmp(&self.volume, &sb, block, EXT4_MMP_SEQ_CLEAN, &*self.clock)
            }
            None => Ok(()),
        }
    }
}

fn read_mmp(volume: &Volume, sb: &Superblock, block: BlockNo) -> Result<(Mmp, Vec<u8>), FsError> {
    let mut bytes = vec![0; volume.block_size() as usize];
    volume.read(block, &mut bytes)?;
    let mmp = Mmp::decode(sb, &bytes).map_err(|e| FsError::Corrupt {
        what: "MMP block",
        ino: None,
        block: Some(block),
        detail: e.to_string(),
    })?;
    Ok((mmp, bytes))
}

fn write_mmp(
    volume: &Volume,
    sb: &Superblock,
    block: BlockNo,
    seq: u32,
    clock: &dyn Clock,
) -> Result<(), FsError> {
    let (mut mmp, mut bytes) = read_mmp(volume, sb, block)?;
    mmp.set_mmp_seq(seq);
    mmp.set_mmp_time(clock.now().secs as u64);
    let mut name = [0; 64];
    name[..8].copy_from_slice(b"lockstep");
    mmp.set_mmp_nodename(name);
    let image = mmp.encode(sb);
    bytes[..image.len()].copy_from_slice(image);
    volume.write(block, &bytes)?;
    Ok(volume.flush()?)
}
