//! Whether a volume was changed from outside: by the kernel, by e2fsck, by hand.
//!
//! Owns the reading and the comparison of what such a change leaves behind. A change that leaves nothing behind can only
//! be found by comparing the copies.

use crate::ext4::Superblock;
use crate::fs::read_superblock;
use crate::journal::Transaction;
use crate::mirror::{MirrorError, guard};
use crate::units::BlockNo;
use crate::volume::Volume;
use crate::volume::facts::{Facts, OutsideStamps};

/// The stamps of a volume that is closed.
pub fn read(volume: &Volume) -> Result<OutsideStamps, MirrorError> {
    let superblock = read_superblock(volume)?;
    Ok(OutsideStamps {
        s_mnt_count: superblock.s_mnt_count(),
        s_mtime: i64::from(superblock.s_mtime()),
        s_wtime: i64::from(superblock.s_wtime()),
        s_lastcheck: i64::from(superblock.s_lastcheck()),
        journal_sequence: 0,
        ctimes: volume
            .parts()
            .iter()
            .map(|part| part.changed_at())
            .collect(),
    })
}

/// The stamps of a volume that is open: those that its own use does not move.
pub fn read_open(volume: &Volume) -> Result<OutsideStamps, MirrorError> {
    Ok(OutsideStamps {
        s_wtime: 0,
        ctimes: Vec::new(),
        ..read(volume)?
    })
}

/// Whether the facts know the copy as closed: then any write to its parts, our own too, is a change.
pub fn are_of_closed(facts: &Facts) -> bool {
    let stamps = facts.stamps.as_ref();
    stamps.is_some_and(|stamps| !stamps.ctimes.is_empty())
}

/// What an opening as the master, at `now` in seconds since 1970, does to the stamps: those that it finds once the journal is
/// recovered, and those that it leaves. One write of the superblock leads from the first to the others, so whoever
/// knows both beforehand knows, after a power cut, whether somebody else wrote.
pub fn of_opening(
    volume: &Volume,
    now: i64,
) -> Result<(OutsideStamps, OutsideStamps), MirrorError> {
    let before = read_open(volume)?;
    let mut superblock = read_superblock(volume)?;
    superblock.set_mtime(now);
    let after = OutsideStamps {
        s_mnt_count: before.s_mnt_count.saturating_add(1),
        s_mtime: i64::from(superblock.s_mtime()),
        ..before.clone()
    };
    Ok((before, after))
}

/// The stamps that a transaction's image of the superblock brings, as of an open volume.
pub fn carried(txn: &Transaction, block_size: u32) -> Option<OutsideStamps> {
    let block = 1024 / u64::from(block_size.max(1024));
    let image = txn.images.get(&BlockNo(block))?;
    let range = guard::superblock_in(block, image.len())?;
    let superblock = Superblock::decode(&image[range]).ok()?;
    Some(OutsideStamps {
        s_mnt_count: superblock.s_mnt_count(),
        s_mtime: i64::from(superblock.s_mtime()),
        s_lastcheck: i64::from(superblock.s_lastcheck()),
        ..OutsideStamps::default()
    })
}

/// What says that somebody else wrote to a copy that has a history, in words; `None` if nothing does.
pub fn outside(facts: &Facts, volume: &Volume) -> Result<Option<String>, MirrorError> {
    match &facts.stamps {
        Some(_) => Ok(differ(facts, &read(volume)?)),
        // While a copy is made or repaired nothing is recorded.
        None if !facts.generations.is_empty() => Ok(Some(
            "nothing was recorded by which it would be seen that it was not".to_string(),
        )),
        None => Ok(None),
    }
}

/// What changed since the facts were saved, in words; `None` if nothing did, or if nothing was recorded.
pub fn differ(facts: &Facts, found: &OutsideStamps) -> Option<String> {
    let expected = facts.stamps.as_ref()?;
    let mut others = facts.other_stamps.iter();
    changed(expected, found).filter(|_| others.all(|other| changed(other, found).is_some()))
}

/// What changed since `expected` was recorded, in words; `None` if nothing did.
pub fn changed(expected: &OutsideStamps, found: &OutsideStamps) -> Option<String> {
    if expected.s_mnt_count != found.s_mnt_count {
        return Some(format!(
            "it was mounted (mount count {}, expected {})",
            found.s_mnt_count, expected.s_mnt_count
        ));
    }
    if expected.s_lastcheck != found.s_lastcheck {
        return Some("it was checked by e2fsck".to_string());
    }
    if expected.s_mtime != found.s_mtime {
        return Some("it was mounted (mount time)".to_string());
    }
    if expected.ctimes.is_empty() {
        return None;
    }
    if expected.s_wtime != found.s_wtime {
        return Some("its superblock was written".to_string());
    }
    let moved = expected
        .ctimes
        .iter()
        .zip(&found.ctimes)
        .position(|(before, now)| before.is_some() && before != now);
    moved.map(|part| format!("part {part} was written or touched"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn use_by_ourselves_is_no_change_from_outside() {
        let open = OutsideStamps {
            s_mnt_count: 3,
            s_mtime: 100,
            ..OutsideStamps::default()
        };
        let after_a_crash = OutsideStamps {
            s_wtime: 777,
            ctimes: vec![Some(9)],
            ..open.clone()
        };
        assert_eq!(changed(&open, &after_a_crash), None);
        let mounted = OutsideStamps {
            s_mnt_count: 4,
            ..after_a_crash.clone()
        };
        assert!(changed(&open, &mounted).is_some());
        let touched = OutsideStamps {
            ctimes: vec![Some(10)],
            ..after_a_crash.clone()
        };
        assert!(changed(&after_a_crash, &touched).is_some());
        assert_eq!(changed(&after_a_crash, &after_a_crash), None);
    }
}
