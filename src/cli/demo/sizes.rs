//! How large things are in a demonstration, all from one number.

/// Bytes of everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// At most so much is copied in.
    pub tree: u64,
    /// The volume's journal: small, so that it is soon full.
    pub buffer: u64,
    /// What is overwritten while the mirror is paused: more than the buffer holds.
    pub over: u64,
    /// The volume.
    pub volume: u64,
}

impl Sizes {
    /// For a tree of at most `tree` bytes.
    pub fn of(tree: u64) -> Sizes {
        let mib = 1 << 20;
        let buffer = (tree / 8 / mib * mib).clamp(8 * mib, 24 * mib);
        let over = buffer / 2 * 3;
        // Room for the tree's metadata, and for the files that the steps write.
        let volume = tree + tree / 4 + buffer + 2 * over + 64 * mib;
        Sizes {
            tree,
            buffer,
            over,
            volume: volume.div_ceil(mib) * mib,
        }
    }

    /// Room that both copies need.
    pub fn room(&self) -> u64 {
        2 * self.volume
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_overwritten_does_not_fit_into_the_buffer_and_fits_into_the_volume() {
        for tree in [0, 16 << 20, 200 << 20, 1 << 40] {
            let sizes = Sizes::of(tree);
            assert!(sizes.over > sizes.buffer, "{sizes:?}");
            assert!(sizes.volume > sizes.tree + sizes.buffer + sizes.over);
            assert!(sizes.buffer < sizes.volume / 2 && sizes.volume.is_multiple_of(4096));
        }
    }
}
