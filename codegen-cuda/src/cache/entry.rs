//! Keys and the bytes of one entry file.
//!
//! All numbers are little endian:
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 8 | magic `GSKERNEL` |
//! | 8 | 4 | format version |
//! | 12 | 4 | zero |
//! | 16 | 32 | key |
//! | 48 | 8 | length of the image |
//! | 56 | 8 | length of the log |
//! | 64 | 32 | SHA-256 of everything else, in file order |
//! | 96 | | image, then log, then nothing |

use std::fmt;

use sha2::{Digest, Sha256};

use crate::nvrtc::{Compiled, Source, TARGET};

/// Part of every key and header; raise it when the meaning of either changes.
pub const FORMAT_VERSION: u32 = 1;
/// No entry is larger: a kernel is some 100 kB, so a larger file is damage and not worth reading.
pub const MAX_BYTES: u64 = 256 << 20;

const MAGIC: &[u8; 8] = b"GSKERNEL";
const CHECKSUM: std::ops::Range<usize> = 64..96;
const HEADER: usize = 96;

/// Identifies a compiled kernel by everything its bytes depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key([u8; 32]);

impl Key {
    /// The key of a source under a compiler.
    pub fn of(source: &Source, fingerprint: &str) -> Key {
        let mut hash = Sha256::new();
        let mut field = |bytes: &[u8]| {
            // The length keeps "ab" + "c" apart from "a" + "bc".
            hash.update((bytes.len() as u64).to_le_bytes());
            hash.update(bytes);
        };
        field(b"gossamer kernel");
        field(&FORMAT_VERSION.to_le_bytes());
        field(TARGET.as_bytes());
        field(fingerprint.as_bytes());
        field(source.text.as_bytes());
        source.all_options().for_each(|o| field(o.as_bytes()));
        Key(hash.finalize().into())
    }

    /// The hash itself.
    pub fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

/// The bytes of an entry.
pub fn encode(key: &Key, compiled: &Compiled) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER + compiled.cubin.len() + compiled.log.len());
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(&key.0);
    bytes.extend_from_slice(&(compiled.cubin.len() as u64).to_le_bytes());
    bytes.extend_from_slice(&(compiled.log.len() as u64).to_le_bytes());
    bytes.extend_from_slice(&[0; 32]);
    bytes.extend_from_slice(&compiled.cubin);
    bytes.extend_from_slice(compiled.log.as_bytes());
    let sum = checksum(&bytes);
    bytes[CHECKSUM].copy_from_slice(&sum);
    bytes
}

/// The kernel in an entry, if every byte is as [`encode`] wrote it for this key.
pub fn decode(bytes: &[u8], key: &Key) -> Option<Compiled> {
    let header = bytes.get(..HEADER)?;
    let long = |at: usize| Some(u64::from_le_bytes(header.get(at..at + 8)?.try_into().ok()?));
    let (cubin_bytes, log_bytes) = (usize::try_from(long(48)?).ok()?, usize::try_from(long(56)?).ok()?);
    let total = HEADER.checked_add(cubin_bytes)?.checked_add(log_bytes)?;
    let sound = &header[..8] == MAGIC
        && header[8..12] == FORMAT_VERSION.to_le_bytes()
        && header[16..48] == key.0
        && bytes.len() == total
        && header[CHECKSUM] == checksum(bytes);
    if !sound {
        return None;
    }
    let (cubin, log) = bytes[HEADER..].split_at(cubin_bytes);
    Compiled::new(cubin.to_vec(), String::from_utf8(log.to_vec()).ok()?).ok()
}

fn checksum(bytes: &[u8]) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(&bytes[..CHECKSUM.start]);
    hash.update(&bytes[CHECKSUM.end..]);
    hash.finalize().into()
}
