//! Little-endian fields at fixed offsets. Owns the one macro that turns a table (offset, type, field, meaning) into
//! accessors, their documentation, and a compile-time proof that the table has no gap, no overlap and the right size.

/// A value with a fixed little-endian encoding.
pub(crate) trait Le: Sized {
    /// Bytes on disk.
    const SIZE: usize;
    /// Reads from the first `SIZE` bytes of `bytes`, which the caller has made sure of.
    fn get(bytes: &[u8]) -> Self;
    /// Writes to the first `SIZE` bytes of `bytes`.
    fn put(&self, bytes: &mut [u8]);
}

macro_rules! le_integer {
    ($($ty:ty),*) => {$(
        impl Le for $ty {
            const SIZE: usize = size_of::<$ty>();
            fn get(bytes: &[u8]) -> $ty {
                let mut b = [0; size_of::<$ty>()];
                b.copy_from_slice(&bytes[..Self::SIZE]);
                <$ty>::from_le_bytes(b)
            }
            fn put(&self, bytes: &mut [u8]) {
                bytes[..Self::SIZE].copy_from_slice(&self.to_le_bytes());
            }
        }
    )*};
}
le_integer!(u8, u16, u32, u64);

impl<T: Le + Copy + Default, const N: usize> Le for [T; N] {
    const SIZE: usize = N * T::SIZE;
    fn get(bytes: &[u8]) -> [T; N] {
        let mut all = [T::default(); N];
        for (i, one) in all.iter_mut().enumerate() {
            *one = T::get(&bytes[i * T::SIZE..]);
        }
        all
    }
    fn put(&self, bytes: &mut [u8]) {
        for (i, one) in self.iter().enumerate() {
            one.put(&mut bytes[i * T::SIZE..]);
        }
    }
}

/// The integer at byte `at`; the caller has checked the length.
pub(crate) fn get<T: Le>(bytes: &[u8], at: usize) -> T {
    T::get(&bytes[at..])
}

/// Writes the integer at byte `at`; the caller has checked the length.
pub(crate) fn put<T: Le>(bytes: &mut [u8], at: usize, value: T) {
    value.put(&mut bytes[at..]);
}

/// Accessors of a type that keeps its bytes in `raw`. One row a field:
/// `offset type getter [setter] "meaning";`. Rows are contiguous from `start` to `end`, or it does not compile.
macro_rules! layout {
    ($name:ident, $start:literal .. $end:literal; $($at:literal $ty:ty, $get:ident $($set:ident)? $meaning:literal;)*) => {
        const _: () = {
            use $crate::ext4::layout::Le;
            let fields: &[(usize, usize)] = &[$(($at, <$ty as Le>::SIZE)),*];
            let mut end: usize = $start;
            let mut i = 0;
            while i < fields.len() {
                assert!(fields[i].0 == end, "a gap or an overlap in the layout");
                end += fields[i].1;
                i += 1;
            }
            assert!(end == $end, "the layout has another size");
        };

        /// On disk, little-endian:
        ///
        /// | offset | type | field | meaning |
        /// |---|---|---|---|
        $(#[doc = concat!("| ", stringify!($at), " | `", stringify!($ty), "` | `", stringify!($get), "` | ", $meaning, " |")])*
        impl $name {
            $(
                #[doc = $meaning]
                pub fn $get(&self) -> $ty {
                    $crate::ext4::layout::get(&self.raw[..], $at)
                }
                $(
                    #[doc = concat!("Sets `", stringify!($get), "`: ", $meaning)]
                    pub fn $set(&mut self, value: $ty) {
                        $crate::ext4::layout::put(&mut self.raw[..], $at, value);
                    }
                )?
            )*
        }
    };
}
