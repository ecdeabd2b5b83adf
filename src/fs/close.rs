//! Closing a volume so that anybody can open it: what is unlinked goes, everything is committed and brought home, the log is
//! empty, and only then RECOVER is cleared.

use crate::ext4::superblock::SUPERBLOCK_OFFSET;
use crate::fs::open::set_incompat_recover;
use crate::fs::{Fs, FsError, FsRole, read_superblock};
use crate::volume::facts::{LogHead, OutsideStamps};

/// What a clean close leaves behind, for the fact file.
#[derive(Clone, Debug)]
pub struct CloseReport {
    /// Where the log ends; `None` when nothing was opened for writing.
    pub head: Option<LogHead>,
    /// By which a change from outside is noticed later.
    pub stamps: OutsideStamps,
}

impl Fs {
    /// Deletes what is unlinked, commits, checkpoints everything and clears RECOVER. Every later request fails. A mirror
    /// does the same, but for the first: its transactions come from the master.
    pub fn close(&self) -> Result<CloseReport, FsError> {
        let _epoch = (self.role == FsRole::Mirror).then(|| self.epoch.write());
        if self.role == FsRole::Master {
            if !self.is_closed() && self.check_alive().is_ok() {
                // What can not be deleted stays in the orphan list, where e2fsck and the kernel find it.
                let _ = self.bury_orphans();
            }
            self.sync()?;
        }
        self.meta.write().closed = true;
        let head = match self.role {
            FsRole::ReadOnly => None,
            FsRole::Master | FsRole::Mirror => Some(self.empty_log()?),
        };
        Ok(CloseReport {
            head,
            stamps: self.stamps()?,
        })
    }

    fn is_closed(&self) -> bool {
        self.meta.read().closed
    }

    /// Everything goes home; then the volume says that it needs no recovery.
    fn empty_log(&self) -> Result<LogHead, FsError> {
        self.check_alive()?;
        if self.role == FsRole::Master {
            // Changes that came between the last commit and the closing.
            let _committer = self.commit.lock();
            self.commit_locked()?;
        }
        let head = self.journal.close()?;
        let mut sb = read_superblock(&self.volume)?;
        set_incompat_recover(&mut sb, false)?;
        sb.set_wtime(self.clock.now().secs);
        self.volume.write_bytes(SUPERBLOCK_OFFSET, sb.encode())?;
        self.release_mmp()?;
        self.volume.flush()?;
        Ok(head)
    }

    /// What something else that writes to the volume would change.
    pub fn stamps(&self) -> Result<OutsideStamps, FsError> {
        let sb = read_superblock(&self.volume)?;
        Ok(OutsideStamps {
            s_mnt_count: sb.s_mnt_count(),
            s_mtime: sb.mtime(),
            s_wtime: sb.wtime(),
            s_lastcheck: sb.lastcheck(),
            journal_sequence: self.journal.s_sequence(),
            ctimes: self
                .volume
                .parts()
                .iter()
                .map(|part| part.changed_at())
                .collect(),
        })
    }
}
