//! Contents of a simulated disk: pages in a map, those that are not there being zeros. Owns reading, writing and
//! zeroing of byte ranges across them. Invariant: memory grows with what was written, not with the size of the disk; copies
//! of the map share their pages until one changes.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use crate::io::Disk;

/// Bytes of a page, the unit in which contents are kept in memory.
pub const PAGE: u64 = 4096;

/// The contents of a page.
pub type Page = [u8; PAGE as usize];

/// The pages that hold something, by their number.
pub type Pages = BTreeMap<u64, Arc<Page>>;

/// Fills `buf` from `offset` on.
pub fn read(pages: &Pages, buf: &mut [u8], offset: u64) {
    for (at, page, within, n) in pieces(offset, buf.len() as u64) {
        let target = &mut buf[at..at + n];
        match pages.get(&page) {
            Some(bytes) => target.copy_from_slice(&bytes[within..within + n]),
            None => target.fill(0),
        }
    }
}

/// Puts `data` at `offset`.
pub fn write(pages: &mut Pages, data: &[u8], offset: u64) {
    for (at, page, within, n) in pieces(offset, data.len() as u64) {
        let bytes = pages
            .entry(page)
            .or_insert_with(|| Arc::new([0; PAGE as usize]));
        Arc::make_mut(bytes)[within..within + n].copy_from_slice(&data[at..at + n]);
    }
}

/// Drops the pages within the range and blanks the parts of those at its ends.
pub fn zero(pages: &mut Pages, offset: u64, len: u64) {
    let (first_whole, end_whole) = (offset.div_ceil(PAGE), (offset + len) / PAGE);
    if first_whole < end_whole {
        let gone: Vec<u64> = pages
            .range(first_whole..end_whole)
            .map(|(n, _)| *n)
            .collect();
        for n in gone {
            pages.remove(&n);
        }
    }
    // The pages at the two ends that are covered in part only.
    let end = offset + len;
    let mut ends = [offset / PAGE, end / PAGE];
    if ends[0] == ends[1] {
        ends[1] = u64::MAX;
    }
    for n in ends {
        let Some(bytes) = pages.get_mut(&n) else {
            continue;
        };
        let from = offset.max(n * PAGE) - n * PAGE;
        let to = end.min((n + 1) * PAGE) - n * PAGE;
        if from < to {
            Arc::make_mut(bytes)[from as usize..to as usize].fill(0);
        }
    }
}

/// The pages that a range of bytes touches: (offset in the range, page, offset in the page, bytes).
fn pieces(offset: u64, len: u64) -> impl Iterator<Item = (usize, u64, usize, usize)> {
    let end = offset + len;
    let mut at = offset;
    std::iter::from_fn(move || {
        if at >= end {
            return None;
        }
        let page = at / PAGE;
        let n = ((page + 1) * PAGE).min(end) - at;
        let piece = (
            (at - offset) as usize,
            page,
            (at % PAGE) as usize,
            n as usize,
        );
        at += n;
        Some(piece)
    })
}

/// Copies the pages of any disk that hold something.
pub fn of(disk: &dyn Disk) -> io::Result<Pages> {
    /// Bytes looked at for a hole at once.
    const STRIDE: u64 = 1 << 20;
    let (mut pages, mut at) = (Pages::new(), 0);
    while at < disk.len() {
        let stride = STRIDE.min(disk.len() - at);
        if !disk.is_hole(at, stride) {
            let mut buf = vec![0; stride as usize];
            disk.read_at(&mut buf, at)?;
            for (n, chunk) in buf.chunks(PAGE as usize).enumerate() {
                if chunk.iter().any(|b| *b != 0) {
                    write(&mut pages, chunk, at + n as u64 * PAGE);
                }
            }
        }
        at += stride;
    }
    Ok(pages)
}
