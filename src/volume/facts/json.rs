//! How units stand in JSON: numbers as numbers, 64- and 128-bit identities and hashes as hexadecimal strings. Owns the
//! translation only; a string or number out of range is an error.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::units::{BlockNo, Generation, LogBlock, Txid};

/// A newtype over an unsigned number.
pub trait Number: Copy {
    fn get(self) -> u64;
    fn put(value: u64) -> Option<Self>;
}

impl Number for Txid {
    fn get(self) -> u64 {
        self.0
    }
    fn put(value: u64) -> Option<Txid> {
        Some(Txid(value))
    }
}

impl Number for BlockNo {
    fn get(self) -> u64 {
        self.0
    }
    fn put(value: u64) -> Option<BlockNo> {
        Some(BlockNo(value))
    }
}

impl Number for LogBlock {
    fn get(self) -> u64 {
        u64::from(self.0)
    }
    fn put(value: u64) -> Option<LogBlock> {
        u32::try_from(value).ok().map(LogBlock)
    }
}

fn put<'de, T: Number, D: Deserializer<'de>>(value: u64) -> Result<T, D::Error> {
    T::put(value).ok_or_else(|| D::Error::custom(format_args!("{value} is out of range")))
}

pub mod number {
    //! A unit as a number.
    use super::*;

    pub fn serialize<T: Number, S: Serializer>(value: &T, s: S) -> Result<S::Ok, S::Error> {
        value.get().serialize(s)
    }

    pub fn deserialize<'de, T: Number, D: Deserializer<'de>>(d: D) -> Result<T, D::Error> {
        put::<T, D>(u64::deserialize(d)?)
    }
}

fn parse<'de, D: Deserializer<'de>>(d: D, digits: usize) -> Result<u128, D::Error> {
    let text = String::deserialize(d)?;
    let plain = text.len() == digits && text.bytes().all(|b| b.is_ascii_hexdigit());
    u128::from_str_radix(&text, 16)
        .ok()
        .filter(|_| plain)
        .ok_or_else(|| {
            D::Error::custom(format_args!("{text:?} is not {digits} hexadecimal digits"))
        })
}

pub mod hex {
    //! 128 bits as 32 hexadecimal digits.
    use super::*;

    pub fn serialize<S: Serializer>(value: &u128, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(&format_args!("{value:032x}"))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<u128, D::Error> {
        parse(d, 32)
    }
}

pub mod hex64 {
    //! 64 bits as 16 hexadecimal digits.
    use super::*;

    pub fn serialize<S: Serializer>(value: &u64, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(&format_args!("{value:016x}"))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<u64, D::Error> {
        Ok(parse(d, 16)? as u64)
    }
}

pub mod generation {
    //! A generation as 32 hexadecimal digits, the way it is printed.
    use super::*;

    pub fn serialize<S: Serializer>(value: &Generation, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(value)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Generation, D::Error> {
        Ok(Generation(parse(d, 32)?))
    }
}
