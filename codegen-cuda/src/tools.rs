//! Kernels that compute no op: the end of a step that feeds the next one, and what measuring needs.

use std::sync::Arc;

use gossamer_ir::DType;

pub use crate::emit::KernelSource;
use crate::emit::{Piece, Text, c_type};

/// Bytes in front of the results in a slot of the ring that [`Advance`] writes: the step's number (u32, from 1), and at byte 8 its end (u64 nanoseconds).
pub const SLOT_HEADER: usize = 64;

/// Bytes of time stamps that a [`stamped`] kernel writes.
pub const STAMP_BYTES: usize = 32 * 16;

/// The kernel at the end of a step whose results are inputs of the next: one block of 256 threads, launched dependently.
///
/// Arguments, all pointers: each result; for each of `fed` the input it replaces; each counted input; the input whose entries below 0 mark padding; a u32
/// that counts steps; the ring, which the host sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Advance {
    /// Entries of the inputs that change.
    pub entries: usize,
    /// Slots of the ring.
    pub slots: usize,
    /// Bytes of a slot, a multiple of 8.
    pub slot_bytes: usize,
    /// Of each result: its 4-byte words, and its first byte in a slot.
    pub results: Vec<(usize, usize)>,
    /// Results (i32, one an entry) that replace inputs.
    pub fed: Vec<usize>,
    /// Inputs that grow by one.
    pub counted: usize,
}

impl Advance {
    /// Its text.
    pub fn kernel(&self) -> Arc<KernelSource> {
        let results = (0..self.results.len()).map(|i| format!("const u32* r{i}, "));
        let fed = (0..self.fed.len()).map(|i| format!("i32* fed{i}, "));
        let counted = (0..self.counted).map(|i| format!("i32* count{i}, "));
        let params: String = results.chain(fed).chain(counted).collect();
        let publish = self.results.iter().enumerate().map(|(i, (words, at))| {
            format!("for (int i = threadIdx.x; i < {words}; i += 256) ((u32*)(slot + {at}))[i] = r{i}[i];")
        });
        let feed = self.fed.iter().enumerate().map(|(i, r)| format!("fed{i}[i] = (i32)r{r}[i];"));
        let count = (0..self.counted).map(|i| format!("count{i}[i]++;"));
        Text::new("advance", "", include_str!("kernels/cuda/tools/advance.cu"))
            .with(Piece::Dependent)
            .set("params", params)
            .set("publish", publish.collect::<Vec<_>>().join("\n"))
            .set("feed", feed.chain(count).collect::<Vec<_>>().join("\n"))
            .set("n", self.entries)
            .set("slots", self.slots)
            .set("slot_bytes", self.slot_bytes)
            .build()
    }
}

/// A kernel of one block of 32 threads, launched dependently, that ends when everything before it has.
pub fn mark() -> Arc<KernelSource> {
    Text::new("mark", "", include_str!("kernels/cuda/tools/mark.cu")).with(Piece::Dependent).build()
}

/// Writes pseudo-random values to an array of floats: any number of blocks of 256 threads; arguments: the array, its length (i64), a seed (u64).
/// `None` for a type that is not a float's.
pub fn fill_random(dtype: DType) -> Option<Arc<KernelSource>> {
    matches!(dtype, DType::F32 | DType::F16 | DType::BF16).then(|| {
        let body = include_str!("kernels/cuda/tools/fill_random.cu");
        Text::new(format!("fill_random_{dtype}"), "", body).set("type", c_type(dtype)).build()
    })
}

/// Reads memory once: two blocks of 512 threads a multiprocessor; arguments: the memory, its length in 16 bytes (i64), 4 bytes that may be written.
pub fn read_probe() -> Arc<KernelSource> {
    Text::new("read_probe", "", include_str!("kernels/cuda/tools/read_probe.cu")).build()
}

/// The kernel with one more parameter at the end, [`STAMP_BYTES`] of zeros, in which it leaves when its first block began and its last warp ended
/// ([`read_stamps`]). Entry name and everything else stay. `None` for a text that has no such entry.
pub fn stamped(kernel: &KernelSource) -> Option<KernelSource> {
    let text = &kernel.text;
    let at = text.find("__global__")?;
    let name = at + text[at..].find(&format!("{}(", kernel.entry))?;
    let open = name + kernel.entry.len();
    let close = open + closing(&text[open..])?;
    let body = close + text[close..].find('{')? + 1;
    let before = text[..at].rfind("extern \"C\"")?;
    let comma = if text[open + 1..close].trim().is_empty() { "" } else { ", " };
    let mut out = String::with_capacity(text.len() + 2048);
    out.push_str(&text[..before]);
    out.push_str(include_str!("kernels/cuda/tools/stamp.cuh"));
    out.push_str(&text[before..close]);
    out.push_str(&format!("{comma}unsigned long long* gs_stamps"));
    out.push_str(&text[close..body]);
    out.push_str("\n  const GsStamp gs_stamp(gs_stamps);");
    out.push_str(&text[body..]);
    Some(KernelSource { entry: kernel.entry.clone(), text: out })
}

/// Place of the parenthesis that closes the one at the start.
fn closing(text: &str) -> Option<usize> {
    let mut depth = 0;
    text.char_indices().find_map(|(i, c)| {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            _ => {}
        }
        (depth == 0).then_some(i)
    })
}

/// First start and last end that a [`stamped`] kernel left, in nanoseconds; `None` if it did not run.
pub fn read_stamps(bytes: &[u8]) -> Option<(u64, u64)> {
    let words = bytes.chunks_exact(8).map(|b| u64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]));
    let (mut start, mut end) = (0, 0);
    for (i, word) in words.enumerate() {
        match i % 2 {
            0 => start = word.max(start),
            _ => end = word.max(end),
        }
    }
    (start != 0 && end != 0).then_some((!start, end))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nvrtc::{Nvrtc, Source, for_tests};

    fn advance() -> Advance {
        let results = vec![(4, 64), (4, 80), (80, 96)];
        Advance { entries: 4, slots: 64, slot_bytes: 448, results, fed: vec![0], counted: 2 }
    }

    fn params(nvrtc: &Nvrtc, kernel: &KernelSource) -> u32 {
        let compiled = nvrtc.compile(&Source::new(&kernel.entry, &kernel.text)).unwrap_or_else(|e| panic!("{e}"));
        compiled.kernel(&kernel.entry).unwrap().params
    }

    #[test]
    fn the_end_of_a_step_says_what_it_does() {
        let text = advance().kernel().text.clone();
        for line in [
            "(const u32* r0, const u32* r1, const u32* r2, i32* fed0, i32* count0, i32* count1, const i32* live, u32* steps, u8* ring)",
            "  for (int i = threadIdx.x; i < 80; i += 256) ((u32*)(slot + 96))[i] = r2[i];",
            "    fed0[i] = (i32)r0[i];",
            "    count1[i]++;",
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }
        assert!(!text.contains("${"));
    }

    #[test]
    fn tools_compile_with_and_without_stamps() {
        let Some(nvrtc) = for_tests() else { return };
        let fills = [DType::BF16, DType::F16, DType::F32].map(|d| fill_random(d).unwrap());
        assert!(fill_random(DType::I32).is_none());
        for kernel in [advance().kernel(), mark(), read_probe()].into_iter().chain(fills) {
            let plain = params(&nvrtc, &kernel);
            let stamped = stamped(&kernel).unwrap();
            assert_eq!((params(&nvrtc, &stamped), &stamped.entry), (plain + 1, &kernel.entry));
        }
    }

    #[test]
    fn stamps_go_behind_nested_parameters_only() {
        let text = "// k( is no entry\nextern \"C\" __global__ void __launch_bounds__(32)\nk(int (*f)(int), int n) {\n  if (n) return;\n}\n";
        let found = stamped(&KernelSource { entry: "k".into(), text: text.into() }).unwrap().text;
        let expected = "k(int (*f)(int), int n, unsigned long long* gs_stamps) {\n  const GsStamp gs_stamp(gs_stamps);\n  if (n) return;\n}\n";
        assert!(found.ends_with(expected), "{found}");
        assert!(stamped(&KernelSource { entry: "other".into(), text: text.into() }).is_none());
    }

    #[test]
    fn stamps_are_read_over_all_blocks() {
        let mut bytes = vec![0u8; STAMP_BYTES];
        assert_eq!(read_stamps(&bytes), None);
        for (pair, start, end) in [(3, 100u64, 220u64), (31, 90, 200)] {
            bytes[pair * 16..][..8].copy_from_slice(&(!start).to_le_bytes());
            bytes[pair * 16 + 8..][..8].copy_from_slice(&end.to_le_bytes());
        }
        assert_eq!(read_stamps(&bytes), Some((90, 220)));
    }
}
