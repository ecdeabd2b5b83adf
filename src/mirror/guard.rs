//! The superblock's bits that are each side's own: the guard against mounting a half-copied volume, and RECOVER.
//!
//! Both are written straight home and flushed, not through the log: they say something about the log and the copy.

use crate::ext4::features::incompat::RECOVER;
use crate::ext4::{LOCKSTEP_INCOMPAT_GUARD, Superblock};
use crate::mirror::MirrorError;
use crate::units::planted;
use crate::volume::Volume;

/// Where the superblock is, in bytes from the start of the volume; its size is 1024 bytes.
const OFFSET: u64 = 1024;

/// Sets and clears incompat bits of a superblock's bytes, and mends its checksum. Bytes that are no superblock stay as
/// they are.
pub fn patch(raw: &mut [u8], set: u32, clear: u32) {
    let set = match planted::is("no-guard") {
        true => set & !LOCKSTEP_INCOMPAT_GUARD,
        false => set,
    };
    if let Ok(mut superblock) = Superblock::decode(raw)
        && superblock.set_incompat(clear, false).is_ok()
        && superblock.set_incompat(set, true).is_ok()
    {
        raw.copy_from_slice(superblock.encode());
    }
}

/// Where the superblock lies in the image of `block`, if it does.
pub fn superblock_in(block: u64, block_size: usize) -> Option<std::ops::Range<usize>> {
    let start = OFFSET as usize;
    (block == (start / block_size) as u64).then(|| start % block_size..start % block_size + 1024)
}

/// Writes `superblock` (1024 bytes) with the guard set: neither the kernel nor e2fsck touches the volume from now on.
pub fn write_guarded(volume: &Volume, superblock: &[u8]) -> Result<(), MirrorError> {
    let mut raw = superblock.to_vec();
    patch(&mut raw, LOCKSTEP_INCOMPAT_GUARD, RECOVER);
    volume.write_bytes(OFFSET, &raw)?;
    Ok(volume.flush()?)
}

/// Sets and clears bits of the superblock at home, durably.
pub fn change(volume: &Volume, set: u32, clear: u32) -> Result<(), MirrorError> {
    let mut raw = vec![0; 1024];
    volume.read_bytes(OFFSET, &mut raw)?;
    patch(&mut raw, set, clear);
    volume.write_bytes(OFFSET, &raw)?;
    Ok(volume.flush()?)
}

/// Sets the guard.
pub fn raise(volume: &Volume) -> Result<(), MirrorError> {
    change(volume, LOCKSTEP_INCOMPAT_GUARD, 0)
}

/// Sets the guard if it is not set.
pub fn raise_if_lowered(volume: &Volume) -> Result<(), MirrorError> {
    let mut raw = [0; 1024];
    volume.read_bytes(OFFSET, &mut raw)?;
    match Superblock::decode(&raw) {
        Ok(superblock) if !superblock.has_guard() => raise(volume),
        _ => Ok(()),
    }
}

/// Clears the guard: the copy is complete and consistent.
pub fn lower(volume: &Volume) -> Result<(), MirrorError> {
    change(volume, 0, LOCKSTEP_INCOMPAT_GUARD | RECOVER)
}

/// Clears the guard if it is set.
pub fn lower_if_raised(volume: &Volume) -> Result<(), MirrorError> {
    let mut raw = [0; 1024];
    volume.read_bytes(OFFSET, &mut raw)?;
    match Superblock::decode(&raw) {
        Ok(superblock) if superblock.has_guard() => lower(volume),
        _ => Ok(()),
    }
}

/// Says that the log may hold transactions.
pub fn set_recover(volume: &Volume) -> Result<(), MirrorError> {
    change(volume, RECOVER, 0)
}

/// Says that the log is empty.
pub fn clear_recover(volume: &Volume) -> Result<(), MirrorError> {
    change(volume, 0, RECOVER)
}

/// Makes an image from the master fit for this side's log: the superblock's RECOVER bit is on while the log is in use.
pub fn fit_image(block: u64, image: &mut [u8], guarded: bool) {
    if let Some(range) = superblock_in(block, image.len()) {
        let set = if guarded {
            LOCKSTEP_INCOMPAT_GUARD
        } else {
            RECOVER
        };
        let clear = if guarded {
            RECOVER
        } else {
            LOCKSTEP_INCOMPAT_GUARD
        };
        patch(&mut image[range], set, clear);
    }
}
