//! Words. Owns the one way in which an enum of this crate gets its stable spelling: a list of all its values, the word
//! of each, and the way back. Never chooses a word: those stand beside the variants they name.

use core::fmt;

/// A word that names none of the values that were expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownWord {
    /// What the word should have named, for example `state`.
    pub expected: &'static str,
}

impl fmt::Display for UnknownWord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no such {}", self.expected)
    }
}

impl core::error::Error for UnknownWord {}

/// Defines a fieldless enum whose variants have words: `ALL`, `word`, `Display` (which honours a width) and `FromStr`.
macro_rules! spelled {
    (
        $(#[$attribute:meta])*
        pub enum $name:ident as $noun:literal {
            $($(#[$doc:meta])* $variant:ident = $word:literal,)+
        }
    ) => {
        $(#[$attribute])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name {
            $($(#[$doc])* $variant,)+
        }

        impl $name {
            /// Every value, in the order of their definition.
            pub const ALL: &'static [$name] = &[$($name::$variant,)+];

            /// The stable spelling.
            pub const fn word(self) -> &'static str {
                match self {
                    $($name::$variant => $word,)+
                }
            }
        }

        impl core::fmt::Display for $name {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                f.pad(self.word())
            }
        }

        impl core::str::FromStr for $name {
            type Err = $crate::spelled::UnknownWord;

            fn from_str(word: &str) -> Result<$name, $crate::spelled::UnknownWord> {
                match word {
                    $($word => Ok($name::$variant),)+
                    _ => Err($crate::spelled::UnknownWord { expected: $noun }),
                }
            }
        }
    };
}

pub(crate) use spelled;
