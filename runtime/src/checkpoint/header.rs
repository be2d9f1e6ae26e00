//! The header of a safetensors file, from bounded reads. The safetensors crate parses and validates it; this file adds
//! what the crate cannot see: the limit, the file's true length, and names given twice.

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::marker::PhantomData;

use safetensors::tensor::Metadata;
use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};

use super::error::{Problem, quoted};

/// Largest header read, in bytes. The published checkpoints stay below 100 KB.
pub(super) const HEADER_CAP: u64 = 16 << 20;
/// Every file starts with the header's length as a little-endian 64-bit number.
const PREFIX: u64 = 8;
const FETCH: &str = "fetch the file again";

/// A tensor as a header describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct HeaderTensor {
    pub(super) name: String,
    /// The safetensors name of the element type.
    pub(super) dtype: String,
    pub(super) shape: Vec<usize>,
    /// First byte, from the start of the file.
    pub(super) offset: u64,
    pub(super) bytes: u64,
}

/// Reads the header of a file of `len` bytes through `read_at(offset, buffer)`. Tensors come in file order; their byte
/// ranges are disjoint, and together with the header they are the whole file.
pub(super) fn read_header(
    place: &str,
    len: u64,
    read_at: impl Fn(u64, &mut [u8]) -> io::Result<()>,
) -> Result<Vec<HeaderTensor>, Problem> {
    let problem = |found: String, expected: &str| Problem::new(place, found, expected, FETCH);
    let read = |offset, buffer: &mut [u8]| {
        read_at(offset, buffer).map_err(|e| problem(format!("an unreadable file ({e})"), "a safetensors file"))
    };
    if len < PREFIX {
        return Err(problem(format!("{len} bytes"), "a safetensors file, at least 8 bytes"));
    }
    let mut prefix = [0; PREFIX as usize];
    read(0, &mut prefix)?;
    let header_len = u64::from_le_bytes(prefix);
    if header_len > HEADER_CAP {
        return Err(problem(
            format!("a header length of {header_len} bytes"),
            &format!("at most {HEADER_CAP}: this is not a safetensors file"),
        ));
    }
    let data_start = PREFIX + header_len;
    if data_start > len {
        return Err(problem(
            format!("{len} bytes"),
            &format!("at least {data_start}: the file is cut short within its header"),
        ));
    }
    let mut header = vec![0; header_len as usize];
    read(PREFIX, &mut header)?;
    parse_header(place, &header, data_start, len)
}

fn parse_header(place: &str, header: &[u8], data_start: u64, len: u64) -> Result<Vec<HeaderTensor>, Problem> {
    let problem = |found: String, expected: &str| Problem::new(place, found, expected, FETCH);
    let malformed = |e: serde_json::Error| {
        problem(
            format!("a bad header ({})", quoted(&e.to_string())),
            "tensors back to back, each as large as its shape and type",
        )
    };
    let text = str::from_utf8(header)
        .map_err(|e| problem(format!("a header that is not UTF-8 at byte {}", e.valid_up_to()), "a JSON header"))?;
    let entries: Entries<IgnoredAny> = serde_json::from_str(text).map_err(malformed)?;
    let mut seen = BTreeSet::new();
    if let Some((name, _)) = entries.0.iter().find(|(name, _)| !seen.insert(name)) {
        return Err(problem(format!("tensor {} twice in the header", quoted(name)), "each name once"));
    }
    let metadata: Metadata = serde_json::from_str(text).map_err(malformed)?;
    let end = data_start.checked_add(metadata.data_len() as u64);
    if end != Some(len) {
        let end = end.map_or_else(|| "more than any file".to_owned(), |end| end.to_string());
        return Err(problem(
            format!("{len} bytes"),
            &format!("{end}, as the header says: the file is cut short or has grown"),
        ));
    }
    let tensors = metadata.offset_keys().into_iter().filter_map(|name| {
        let info = metadata.info(&name)?;
        Some(HeaderTensor {
            dtype: info.dtype.to_string(),
            shape: info.shape.clone(),
            offset: data_start + info.data_offsets.0 as u64,
            bytes: (info.data_offsets.1 - info.data_offsets.0) as u64,
            name,
        })
    });
    Ok(tensors.collect())
}

/// A JSON object as the list of its entries, so that names given twice stay visible.
pub(super) struct Entries<V>(pub(super) Vec<(String, V)>);

impl<'de, V: Deserialize<'de>> Deserialize<'de> for Entries<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct EntriesVisitor<V>(PhantomData<V>);
        impl<'de, V: Deserialize<'de>> Visitor<'de> for EntriesVisitor<V> {
            type Value = Entries<V>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries<V>, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Entries(entries))
            }
        }
        deserializer.deserialize_map(EntriesVisitor(PhantomData))
    }
}
