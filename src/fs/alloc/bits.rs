//! Searching and changing bitmaps: bit `i` is bit `i % 8` of byte `i / 8`, set means in use. Owns the word-wise search for
//! free runs through two bitmaps at once (in use, or free but not yet to be used). Never allocates memory.

/// A bitmap of one group, seen through a mask: a bit is free when it is clear in both.
#[derive(Clone, Copy)]
pub(crate) struct View<'a> {
    bits: &'a [u8],
    mask: Option<&'a [u8]>,
    /// Number of bits that mean something.
    len: u32,
}

/// A run of free bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    pub start: u32,
    pub len: u32,
}

impl<'a> View<'a> {
    /// `bits` and `mask` have whole 64-bit words (a block); bits behind them do not exist.
    pub(crate) fn new(bits: &'a [u8], mask: Option<&'a [u8]>, len: u32) -> View<'a> {
        let room = bits.len().min(mask.map_or(usize::MAX, <[u8]>::len)) / 8 * 64;
        View {
            bits,
            mask,
            len: len.min(room as u32),
        }
    }

    /// Free bits of word `i` as ones.
    fn free_word(&self, i: u32) -> u64 {
        let at = i as usize * 8;
        let word = |b: &[u8]| u64::from_le_bytes(b[at..at + 8].try_into().expect("eight bytes"));
        let used = word(self.bits) | self.mask.map_or(0, word);
        let end = self.len - i * 64;
        if end < 64 {
            !used & ((1 << end) - 1)
        } else {
            !used
        }
    }

    /// First free bit at or after `from`.
    pub(crate) fn next_free(&self, from: u32) -> Option<u32> {
        if from >= self.len {
            return None;
        }
        let mut i = from / 64;
        let mut word = self.free_word(i) & (!0 << (from % 64));
        while word == 0 {
            i += 1;
            if i * 64 >= self.len {
                return None;
            }
            word = self.free_word(i);
        }
        Some(i * 64 + word.trailing_zeros())
    }

    /// First bit in use at or after `from` (which exists), or the end.
    fn next_used(&self, from: u32) -> u32 {
        let mut i = from / 64;
        let mut word = !self.free_word(i) & (!0 << (from % 64));
        while word == 0 {
            i += 1;
            if i * 64 >= self.len {
                return self.len;
            }
            word = !self.free_word(i);
        }
        (i * 64 + word.trailing_zeros()).min(self.len)
    }

    /// The first free run at or after `from` (its part from there on).
    pub(crate) fn next_run(&self, from: u32) -> Option<Run> {
        let start = self.next_free(from)?;
        Some(Run {
            start,
            len: self.next_used(start) - start,
        })
    }

    /// All free runs, in order.
    pub(crate) fn runs(self) -> impl Iterator<Item = Run> + use<'a> {
        let mut from = 0;
        std::iter::from_fn(move || {
            let run = self.next_run(from)?;
            from = run.start + run.len;
            Some(run)
        })
    }

    /// Number of free bits.
    pub(crate) fn count_free(&self) -> u32 {
        (0..self.len.div_ceil(64))
            .map(|i| self.free_word(i).count_ones())
            .sum()
    }

    /// Whether all of `start..start + len` is free.
    pub(crate) fn is_free(&self, start: u32, len: u32) -> bool {
        self.next_run(start)
            .is_some_and(|run| run.start == start && run.len >= len)
    }

    /// Whether all of `start..start + len` is in use.
    pub(crate) fn is_used(&self, start: u32, len: u32) -> bool {
        match self.next_free(start) {
            Some(free) => free - start >= len,
            None => true,
        }
    }
}

/// Sets or clears `start..start + len`.
pub(crate) fn fill(bits: &mut [u8], start: u32, len: u32, used: bool) {
    let (mut at, end) = (start, start + len);
    while at < end {
        let byte = &mut bits[(at / 8) as usize];
        if at % 8 == 0 && end - at >= 8 {
            *byte = if used { 0xff } else { 0 };
            at += 8;
            continue;
        }
        let bit = 1u8 << (at % 8);
        *byte = if used { *byte | bit } else { *byte & !bit };
        at += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn runs_are_what_a_bit_by_bit_search_finds(
            bits in proptest::collection::vec(any::<u8>(), 32),
            mask in proptest::collection::vec(prop_oneof![Just(0u8), Just(0xff), any::<u8>()], 32),
            len in 1u32..=256,
            from in 0u32..256,
        ) {
            let used = |i: u32| {
                (bits[(i / 8) as usize] | mask[(i / 8) as usize]) >> (i % 8) & 1 == 1
            };
            let view = View::new(&bits, Some(&mask), len);
            let start = (from..len).find(|&i| !used(i));
            let run = start.map(|start| {
                let end = (start..len).find(|&i| used(i)).unwrap_or(len);
                Run { start, len: end - start }
            });
            prop_assert_eq!(view.next_run(from), run);
            prop_assert_eq!(view.count_free(), (0..len).filter(|&i| !used(i)).count() as u32);
            prop_assert_eq!(view.runs().map(|r| r.len).sum::<u32>(), view.count_free());
        }

        #[test]
        fn filling_changes_just_the_range(start in 0u32..200, len in 0u32..56, used: bool) {
            let mut bits = vec![0x5a; 32];
            fill(&mut bits, start, len, used);
            for i in 0..256u32 {
                let was = 0x5a >> (i % 8) & 1 == 1;
                let is = bits[(i / 8) as usize] >> (i % 8) & 1 == 1;
                let inside = (start..start + len).contains(&i);
                prop_assert_eq!(is, if inside { used } else { was });
            }
        }
    }
}
