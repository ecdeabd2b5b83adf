//! Reading the committed, published state: the newest image where one waits to go home, else home. No lock is held while
//! the disk is read; what moved meanwhile is looked up again.

use super::format::unescape;
use super::overlay::Entry;
use super::scan::Logged;
use super::{CorruptKind, Image, Journal, JournalError};
use crate::units::{BlockNo, BlockRange, Txid};

/// How often blocks that move during the read are looked up again before home is taken as it is. Each turn takes a
/// publication and a checkpoint of the same blocks within one read.
const TURNS: usize = 8;

impl Journal {
    /// Fills `buf` (whole blocks) with the blocks from `start` on, as the last published transaction left them.
    pub fn read(&self, start: BlockNo, buf: &mut [u8]) -> Result<(), JournalError> {
        let size = self.log.block_size();
        let count = buf.len() / size;
        let range = BlockRange::new(start, count as u64);
        let mut from_log: Vec<(usize, Txid, Logged)> = Vec::new();
        let mut missing = vec![true; count];
        let mut missing_count = count;
        for turn in 0..TURNS {
            {
                let state = self.state.read();
                for (block, entry) in state.overlay.range(range) {
                    let at = (block.0 - start.0) as usize;
                    if !std::mem::take(&mut missing[at]) {
                        continue;
                    }
                    missing_count -= 1;
                    match &entry.image {
                        Some(image) => {
                            buf[at * size..(at + 1) * size].copy_from_slice(image);
                        }
                        None => from_log.push((at, entry.txid, entry.logged)),
                    }
                }
            }
            for (at, txid, logged) in std::mem::take(&mut from_log) {
                let out = &mut buf[at * size..(at + 1) * size];
                if !self.read_logged(txid, &logged, out)? {
                    missing[at] = true;
                    missing_count += 1;
                }
            }
            if missing_count == 0 {
                return Ok(());
            }
            self.read_home(start, &missing, buf)?;
            let moved = self
                .state
                .read()
                .overlay
                .range(range)
                .any(|(block, _)| missing[(block.0 - start.0) as usize]);
            if !moved || turn + 1 == TURNS {
                break;
            }
        }
        Ok(())
    }

    /// The block's image that is not home yet; `None` when home has the newest bytes.
    pub fn image(&self, block: BlockNo) -> Result<Option<Image>, JournalError> {
        loop {
            let Some(Entry {
                txid,
                logged,
                image,
            }) = self.state.read().overlay.get(block).cloned()
            else {
                return Ok(None);
            };
            if image.is_some() {
                return Ok(image);
            }
            let mut bytes = vec![0; self.log.block_size()];
            if self.read_logged(txid, &logged, &mut bytes)? {
                return Ok(Some(bytes.into()));
            }
        }
    }

    /// Reads an image from the log. `false`: it went home meanwhile and its place may have been written again.
    fn read_logged(
        &self,
        txid: Txid,
        logged: &Logged,
        out: &mut [u8],
    ) -> Result<bool, JournalError> {
        let format = self.state.read().format;
        self.log.read(logged.pos, out)?;
        let found = format.tag_checksum(logged.tid, out);
        let still = self
            .state
            .read()
            .overlay
            .get(logged.block)
            .is_some_and(|e| e.txid == txid);
        if !still {
            return Ok(false);
        }
        if found != logged.checksum {
            return Err(JournalError::corrupt(
                self.log.block_at(logged.pos),
                CorruptKind::Checksum,
                format!("{:#010x}", logged.checksum),
                format!("{found:#010x}"),
            ));
        }
        if logged.escaped {
            unescape(out);
        }
        Ok(true)
    }

    fn read_home(
        &self,
        start: BlockNo,
        missing: &[bool],
        buf: &mut [u8],
    ) -> Result<(), JournalError> {
        let size = self.log.block_size();
        let mut at = 0;
        while at < missing.len() {
            if !missing[at] {
                at += 1;
                continue;
            }
            let run = missing[at..].iter().take_while(|m| **m).count();
            self.volume
                .read(
                    BlockNo(start.0 + at as u64),
                    &mut buf[at * size..(at + run) * size],
                )
                .map_err(JournalError::io("reading blocks"))?;
            at += run;
        }
        Ok(())
    }
}
