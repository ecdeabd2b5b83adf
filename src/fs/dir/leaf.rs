//! One directory block as a chain of entries: finding, adding, removing, packing. Owns the bytes of entries only; never
//! the checksum tail behind them (`usable` is where it begins, or the block's end), never I/O.
//!
//! Invariant kept by every change: the entries' `rec_len` chain from offset 0 exactly to `usable`, each a multiple of
//! four and long enough for its name. Little-endian.

/// Bytes of an entry before its name.
const HEADER_BYTES: usize = 8;
/// The shortest `rec_len` that may follow another entry: a header and one byte of name, rounded up.
const MIN_REC_LEN: usize = 12;

/// One entry, checked against its block.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry<'a> {
    /// Byte offset in the block.
    pub offset: usize,
    /// `inode`; 0 marks unused space.
    pub ino: u32,
    /// `rec_len`, in bytes.
    pub rec_len: usize,
    /// The name's bytes.
    pub name: &'a [u8],
    /// `file_type` as on disk; 0 where the volume has none.
    pub file_type: u8,
}

/// Space that an entry with a name of `name_len` bytes needs.
pub(crate) fn size_of(name_len: usize) -> usize {
    (HEADER_BYTES + name_len + 3) & !3
}

fn u16_at(block: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([block[at], block[at + 1]])
}

fn u32_at(block: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]])
}

/// Walks the entries of a block; ends with one error at the first entry that ext4 does not allow.
pub(crate) struct Entries<'a> {
    block: &'a [u8],
    usable: usize,
    at: usize,
}

/// The entries in the first `usable` bytes of `block`, unused ones included.
pub(crate) fn entries(block: &[u8], usable: usize) -> Entries<'_> {
    Entries {
        block,
        usable: usable.min(block.len()),
        at: 0,
    }
}

impl<'a> Iterator for Entries<'a> {
    type Item = Result<Entry<'a>, &'static str>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.at >= self.usable {
            return None;
        }
        let found = entry_at(self.block, self.usable, self.at);
        self.at = match &found {
            Ok(entry) => self.at + entry.rec_len,
            Err(_) => self.usable,
        };
        Some(found)
    }
}

/// The entry that begins at `offset`.
fn entry_at(block: &[u8], usable: usize, offset: usize) -> Result<Entry<'_>, &'static str> {
    if offset + MIN_REC_LEN > usable {
        return Err("an entry too close to the end of the block");
    }
    let ino = u32_at(block, offset);
    let rec_len = usize::from(u16_at(block, offset + 4));
    let name_len = usize::from(block[offset + 6]);
    if rec_len < MIN_REC_LEN {
        return Err("rec_len is smaller than an entry");
    }
    if !rec_len.is_multiple_of(4) {
        return Err("rec_len is not a multiple of four");
    }
    if rec_len < size_of(name_len) {
        return Err("rec_len is too small for the name");
    }
    if offset + rec_len > usable {
        return Err("an entry runs over the end of the block");
    }
    if ino != 0 && name_len == 0 {
        return Err("an entry without a name");
    }
    Ok(Entry {
        offset,
        ino,
        rec_len,
        name: &block[offset + HEADER_BYTES..offset + HEADER_BYTES + name_len],
        file_type: block[offset + 7],
    })
}

/// Finds the entry in use with this name.
pub(crate) fn find<'a>(
    block: &'a [u8],
    usable: usize,
    name: &[u8],
) -> Result<Option<Entry<'a>>, &'static str> {
    for entry in entries(block, usable) {
        let entry = entry?;
        if entry.ino != 0 && entry.name == name {
            return Ok(Some(entry));
        }
    }
    Ok(None)
}

/// Finds where `insert` would put an entry of `need` bytes: the first entry with room.
pub(crate) fn room(
    block: &[u8],
    usable: usize,
    need: usize,
) -> Result<Option<usize>, &'static str> {
    for entry in entries(block, usable) {
        let entry = entry?;
        let used = if entry.ino == 0 {
            0
        } else {
            size_of(entry.name.len())
        };
        if entry.rec_len - used >= need {
            return Ok(Some(entry.offset));
        }
    }
    Ok(None)
}

/// Bytes that entries in use need when packed.
pub(crate) fn used_bytes(block: &[u8], usable: usize) -> Result<usize, &'static str> {
    let mut sum = 0;
    for entry in entries(block, usable) {
        let entry = entry?;
        if entry.ino != 0 {
            sum += size_of(entry.name.len());
        }
    }
    Ok(sum)
}

/// Writes an entry's header and name at `offset`.
pub(crate) fn put(
    block: &mut [u8],
    offset: usize,
    rec_len: usize,
    ino: u32,
    name: &[u8],
    file_type: u8,
) {
    block[offset..offset + 4].copy_from_slice(&ino.to_le_bytes());
    set_rec_len(block, offset, rec_len);
    block[offset + 6] = name.len() as u8;
    block[offset + 7] = file_type;
    block[offset + HEADER_BYTES..offset + HEADER_BYTES + name.len()].copy_from_slice(name);
    let end = offset + size_of(name.len()).min(rec_len);
    block[offset + HEADER_BYTES + name.len()..end].fill(0);
}

fn set_rec_len(block: &mut [u8], offset: usize, rec_len: usize) {
    let rec_len = u16::try_from(rec_len).expect("blocks of directories are at most 4 KiB");
    block[offset + 4..offset + 6].copy_from_slice(&rec_len.to_le_bytes());
}

/// Adds an entry in the room that the entry at `offset` has (from `room`); returns the new entry's offset.
pub(crate) fn insert_at(
    block: &mut [u8],
    usable: usize,
    offset: usize,
    ino: u32,
    name: &[u8],
    file_type: u8,
) -> Result<usize, &'static str> {
    let host = entry_at(block, usable, offset)?;
    let (rec_len, used) = if host.ino == 0 {
        (host.rec_len, 0)
    } else {
        (host.rec_len, size_of(host.name.len()))
    };
    if rec_len - used < size_of(name.len()) {
        return Err("no room where room was found");
    }
    if used > 0 {
        set_rec_len(block, offset, used);
    }
    put(block, offset + used, rec_len - used, ino, name, file_type);
    Ok(offset + used)
}

/// Removes the entry at `offset`: its space joins the entry before it, or it becomes unused when it is the first.
pub(crate) fn remove_at(
    block: &mut [u8],
    usable: usize,
    offset: usize,
) -> Result<(), &'static str> {
    let mut before: Option<(usize, usize)> = None;
    let mut target = None;
    for entry in entries(block, usable) {
        let entry = entry?;
        if entry.offset == offset {
            target = Some(entry.rec_len);
            break;
        }
        before = Some((entry.offset, entry.rec_len));
    }
    let rec_len = target.ok_or("no entry begins there")?;
    // What is removed leaves no trace of its name on the medium, and equal contents give equal blocks.
    block[offset..offset + 4].fill(0);
    block[offset + 6..offset + rec_len].fill(0);
    if let Some((previous, previous_len)) = before {
        block[offset + 4..offset + 6].fill(0);
        set_rec_len(block, previous, previous_len + rec_len);
    }
    Ok(())
}

/// Changes the inode and type of the entry at `offset`.
pub(crate) fn set_target(block: &mut [u8], offset: usize, ino: u32, file_type: u8) {
    block[offset..offset + 4].copy_from_slice(&ino.to_le_bytes());
    block[offset + 7] = file_type;
}

/// Fills the first `usable` bytes of `block` with these entries, packed; the last one takes the rest.
pub(crate) fn pack<'a>(
    block: &mut [u8],
    usable: usize,
    kept: impl Iterator<Item = Entry<'a>>,
) -> Result<(), &'static str> {
    block[..usable].fill(0);
    let mut at = 0;
    let mut last = 0;
    for entry in kept {
        let size = size_of(entry.name.len());
        if at + size > usable {
            return Err("more entries than the block has room for");
        }
        put(block, at, size, entry.ino, entry.name, entry.file_type);
        last = at;
        at += size;
    }
    set_rec_len(block, last, usable - last);
    Ok(())
}
