//! The few facts of a cubin (an ELF file) that the gate needs: its kernels, their registers, stack and constant bank.
//!
//! Every offset and length in the image is checked, as images also come back from the disk cache.

use super::ResourceError;

const EM_CUDA: u16 = 190;
const SHT_SYMTAB: u32 = 2;
const STT_FUNC: u8 = 2;
/// Bit of a symbol's `st_other` that marks a kernel.
const STO_CUDA_ENTRY: u8 = 0x10;
/// `.nv.info` records: byte layout "size follows", registers per thread, and least stack.
const EIFMT_SVAL: u8 = 4;
const EIATTR_REGCOUNT: u8 = 0x2f;
const EIATTR_MIN_STACK_SIZE: u8 = 0x12;
const EIATTR_FRAME_SIZE: u8 = 0x11;
/// One record a parameter, in the `.nv.info.<kernel>` section.
const EIATTR_KPARAM_INFO: u8 = 0x17;

/// One kernel of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its symbol.
    pub name: String,
    /// Registers per thread.
    pub registers: u32,
    /// Stack per thread in bytes, callees included.
    pub stack_bytes: u32,
    /// Bytes of constant bank 0.
    pub const_bytes: u32,
    /// Number of parameters.
    pub params: u32,
    /// Bytes of machine code.
    pub code_bytes: u64,
}

/// The kernels of an `sm_90a` image, sorted by name.
pub fn entries(image: &[u8]) -> Result<Vec<Entry>, ResourceError> {
    let elf = Elf::open(image)?;
    let symbols = elf.symbols()?;
    let info = match elf.section(".nv.info") {
        Some(section) => kernel_info(elf.data(section)?, section.offset)?,
        None => Vec::new(),
    };
    let mut entries = Vec::new();
    for (index, symbol) in symbols.iter().enumerate() {
        if symbol.kind != STT_FUNC || symbol.other & STO_CUDA_ENTRY == 0 {
            continue;
        }
        let text = elf.section(&format!(".text.{}", symbol.name)).ok_or(malformed("kernel without code", symbol.at))?;
        let attribute = |which: u8| info.iter().filter(|i| i.1 as usize == index && i.0 == which).map(|i| i.2).max();
        let registers = attribute(EIATTR_REGCOUNT).ok_or(malformed("kernel without a register count", symbol.at))?;
        if registers > 255 {
            return Err(malformed("register count out of range", symbol.at));
        }
        let stack = attribute(EIATTR_MIN_STACK_SIZE).into_iter().chain(attribute(EIATTR_FRAME_SIZE)).max();
        let constants = elf.section(&format!(".nv.constant0.{}", symbol.name)).map_or(0, |s| s.size);
        let params = match elf.section(&format!(".nv.info.{}", symbol.name)) {
            Some(section) => kernel_info(elf.data(section)?, section.offset)?,
            None => Vec::new(),
        };
        entries.push(Entry {
            name: symbol.name.clone(),
            registers,
            stack_bytes: stack.unwrap_or(0),
            const_bytes: u32::try_from(constants).unwrap_or(u32::MAX),
            params: params.iter().filter(|i| i.0 == EIATTR_KPARAM_INFO).count() as u32,
            code_bytes: text.size as u64,
        });
    }
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(entries)
}

/// `(attribute, symbol index, value)` of the two-word records.
fn kernel_info(data: &[u8], base: usize) -> Result<Vec<(u8, u32, u32)>, ResourceError> {
    let mut records = Vec::new();
    let mut at = 0;
    while at < data.len() {
        let header = data.get(at..at + 4).ok_or(malformed("cut .nv.info record", base + at))?;
        let (format, attribute) = (header[0], header[1]);
        let size = usize::from(u16::from_le_bytes([header[2], header[3]]));
        at += 4;
        if format == EIFMT_SVAL {
            let body = data.get(at..at + size).ok_or(malformed("cut .nv.info record", base + at))?;
            if let (Some(symbol), Some(value)) = (u32_at(body, 0), u32_at(body, 4)) {
                records.push((attribute, symbol, value));
            }
            at += size;
        }
    }
    Ok(records)
}

struct Section {
    name: String,
    kind: u32,
    offset: usize,
    size: usize,
    link: usize,
}

struct Symbol {
    name: String,
    kind: u8,
    other: u8,
    /// Where its record lies, for messages.
    at: usize,
}

struct Elf<'a> {
    image: &'a [u8],
    sections: Vec<Section>,
}

impl<'a> Elf<'a> {
    fn open(image: &'a [u8]) -> Result<Elf<'a>, ResourceError> {
        if image.get(..4) != Some(b"\x7fELF") {
            return Err(malformed("no ELF header", 0));
        }
        // 64 bits, little endian.
        if image.get(4..6) != Some(&[2, 1]) || u16_at(image, 18) != Some(EM_CUDA) {
            return Err(malformed("ELF header of another machine", 4));
        }
        let flags = u32_at(image, 48).ok_or(malformed("cut ELF header", 48))?;
        // The architecture is in the lowest byte (ABI 7 and before) or in the next one (ABI 8).
        if flags & 0xff != 90 && (flags >> 8) & 0xff != 90 {
            return Err(malformed("code for another architecture", 48));
        }
        let table = u64_at(image, 40).ok_or(malformed("cut ELF header", 40))? as usize;
        let header = |at| u16_at(image, at).map(usize::from).ok_or(malformed("cut ELF header", at));
        let (record, count, names) = (header(58)?, header(60)?, header(62)?);
        if record < 64 {
            return Err(malformed("bad section record size", 58));
        }
        let mut raw = Vec::with_capacity(count);
        for i in 0..count {
            let at = table.checked_add(i * record).ok_or(malformed("bad section table", 40))?;
            let s = at.checked_add(64).and_then(|end| image.get(at..end)).ok_or(malformed("cut section table", at))?;
            let word = |o| u32_at(s, o).unwrap_or(0);
            let long = |o| u64_at(s, o).unwrap_or(0) as usize;
            raw.push((word(0) as usize, word(4), long(24), long(32), word(40) as usize));
        }
        let &(_, _, offset, size, _) = raw.get(names).ok_or(malformed("no section names", 62))?;
        let strings = slice(image, offset, size)?;
        let sections = raw
            .iter()
            .map(|&(name, kind, offset, size, link)| {
                Ok(Section { name: string_at(strings, name, offset)?, kind, offset, size, link })
            })
            .collect::<Result<_, _>>()?;
        Ok(Elf { image, sections })
    }

    fn section(&self, name: &str) -> Option<&Section> {
        self.sections.iter().find(|s| s.name == name)
    }

    fn data(&self, section: &Section) -> Result<&'a [u8], ResourceError> {
        slice(self.image, section.offset, section.size)
    }

    fn symbols(&self) -> Result<Vec<Symbol>, ResourceError> {
        let Some(table) = self.sections.iter().find(|s| s.kind == SHT_SYMTAB) else {
            return Ok(Vec::new());
        };
        let strings = self.sections.get(table.link).ok_or(malformed("no symbol names", table.offset))?;
        let strings = self.data(strings)?;
        let symbol = |(i, s): (usize, &[u8])| {
            let at = table.offset + i * 24;
            let name = string_at(strings, u32_at(s, 0).unwrap_or(0) as usize, at)?;
            Ok(Symbol { name, kind: s[4] & 0xf, other: s[5], at })
        };
        self.data(table)?.chunks_exact(24).enumerate().map(symbol).collect()
    }
}

fn slice(image: &[u8], offset: usize, size: usize) -> Result<&[u8], ResourceError> {
    offset.checked_add(size).and_then(|end| image.get(offset..end)).ok_or(malformed("section beyond the end", offset))
}

fn string_at(strings: &[u8], offset: usize, at: usize) -> Result<String, ResourceError> {
    let tail = strings.get(offset..).ok_or(malformed("name beyond the string table", at))?;
    let end = tail.iter().position(|&b| b == 0).ok_or(malformed("name without an end", at))?;
    Ok(String::from_utf8_lossy(&tail[..end]).into_owned())
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

fn malformed(what: &'static str, offset: usize) -> ResourceError {
    ResourceError::Malformed { what, offset }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nvrtc::{self, Source};
    use proptest::prelude::*;

    fn image() -> Option<Vec<u8>> {
        let text = "extern \"C\" __global__ void k(float* p) { p[threadIdx.x] *= 2; }";
        Some(nvrtc::for_tests()?.compile(&Source::new("k", text)).unwrap().cubin)
    }

    #[test]
    fn every_cut_is_an_error_or_a_whole_image() {
        let Some(image) = image() else { return };
        let whole = entries(&image).unwrap();
        assert_eq!(whole.len(), 1);
        assert!(whole[0].registers > 0 && whole[0].code_bytes > 0 && whole[0].const_bytes > 0, "{whole:?}");
        for cut in 0..image.len() {
            if let Ok(found) = entries(&image[..cut]) {
                assert_eq!(found, whole);
            }
        }
    }

    #[test]
    fn random_damage_never_panics() {
        let Some(image) = image() else { return };
        let mut runner = proptest::test_runner::TestRunner::deterministic();
        let damage = proptest::collection::vec((0..image.len(), any::<u8>()), 1..8);
        runner
            .run(&damage, |changes| {
                let mut bytes = image.clone();
                for (at, value) in changes {
                    bytes[at] = value;
                }
                let _ = entries(&bytes);
                Ok(())
            })
            .unwrap();
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = entries(&bytes);
            for (at, byte) in b"\x7fELF\x02\x01".iter().enumerate().take(bytes.len()) {
                bytes[at] = *byte;
            }
            if bytes.len() > 50 {
                bytes[18..20].copy_from_slice(&EM_CUDA.to_le_bytes());
                bytes[48] = 90;
            }
            let _ = entries(&bytes);
        }
    }
}
