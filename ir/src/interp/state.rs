//! State that lives across runs: paged key/value caches and token counts.

use super::tensor::round_all;
use crate::dtype::DType;
use crate::module::StateDecl;

/// Paged keys and values of one layer: two buffers `[pages, heads, page, head_dim]` of f32.
#[derive(Clone, Debug)]
pub struct KvStore {
    pages: usize,
    heads: usize,
    page: usize,
    head_dim: usize,
    dtype: DType,
    k: Vec<f32>,
    v: Vec<f32>,
}

impl KvStore {
    /// An empty cache of `pages` pages of `page` tokens; `dtype` is what values are rounded to when rounding is on.
    pub fn new(pages: usize, heads: usize, page: usize, head_dim: usize, dtype: DType) -> KvStore {
        let n = pages * heads * page * head_dim;
        KvStore { pages, heads, page, head_dim, dtype, k: vec![0.0; n], v: vec![0.0; n] }
    }

    /// Number of pages.
    pub fn pages(&self) -> usize {
        self.pages
    }

    /// Key/value heads.
    pub fn heads(&self) -> usize {
        self.heads
    }

    /// Tokens a page.
    pub fn page(&self) -> usize {
        self.page
    }

    /// Elements a head.
    pub fn head_dim(&self) -> usize {
        self.head_dim
    }

    /// Keys of one head in one page: `page` rows of `head_dim`. `None` for a page or head that does not exist.
    pub fn keys(&self, page: i32, head: usize) -> Option<&[f32]> {
        self.slab(page, head).map(|at| &self.k[at])
    }

    /// Values of one head in one page, like [`KvStore::keys`].
    pub fn values(&self, page: i32, head: usize) -> Option<&[f32]> {
        self.slab(page, head).map(|at| &self.v[at])
    }

    /// Stores keys and values of one token, `[heads, head_dim]` each, rounded to the cache's dtype if `round`. A page or offset that does not
    /// exist is skipped.
    pub fn write(&mut self, page: i32, offset: usize, k: &[f32], v: &[f32], round: bool) {
        if offset >= self.page || k.len() != self.heads * self.head_dim || v.len() != k.len() {
            return;
        }
        let d = self.head_dim;
        for head in 0..self.heads {
            let Some(slab) = self.slab(page, head) else { return };
            let at = slab.start + offset * d..slab.start + (offset + 1) * d;
            for (dst, src) in [(&mut self.k, k), (&mut self.v, v)] {
                let row = &mut dst[at.clone()];
                row.copy_from_slice(&src[head * d..(head + 1) * d]);
                if round {
                    round_all(self.dtype, row);
                }
            }
        }
    }

    fn slab(&self, page: i32, head: usize) -> Option<std::ops::Range<usize>> {
        let page = usize::try_from(page).ok().filter(|p| *p < self.pages && head < self.heads)?;
        let n = self.page * self.head_dim;
        let start = (page * self.heads + head) * n;
        Some(start..start + n)
    }
}

/// Token counts, one row of `vocab` words a sequence slot.
///
/// A word holds the number of generated occurrences in its low 31 bits and, in bit 31, whether the token occurred in the prompt. Counts stop at
/// 2^31 - 1.
#[derive(Clone, Debug)]
pub struct CountsStore {
    vocab: usize,
    words: Vec<u32>,
}

/// Bit of a [`CountsStore`] word that marks a prompt token.
pub const PROMPT_BIT: u32 = 1 << 31;

impl CountsStore {
    /// Zero counts for `rows` slots.
    pub fn new(rows: usize, vocab: usize) -> CountsStore {
        CountsStore { vocab, words: vec![0; rows * vocab] }
    }

    /// Tokens counted.
    pub fn vocab(&self) -> usize {
        self.vocab
    }

    /// The words of a slot; `None` if there is no such slot.
    pub fn row(&self, slot: i32) -> Option<&[u32]> {
        let slot = usize::try_from(slot).ok()?;
        self.words.chunks_exact(self.vocab.max(1)).nth(slot)
    }

    /// Forgets everything about a slot, for its next sequence.
    pub fn reset(&mut self, slot: usize) {
        if let Some(row) = self.words.chunks_exact_mut(self.vocab.max(1)).nth(slot) {
            row.fill(0);
        }
    }

    /// Marks a token of the prompt, or counts a generated one. A slot or token that does not exist is skipped.
    pub fn record(&mut self, slot: i32, token: i32, generated: bool) {
        let at = usize::try_from(slot).ok().zip(usize::try_from(token).ok()).filter(|(_, t)| *t < self.vocab);
        let word = at.and_then(|(s, t)| self.words.get_mut(s.checked_mul(self.vocab)?.checked_add(t)?));
        match word {
            Some(w) if !generated => *w |= PROMPT_BIT,
            Some(w) if *w & !PROMPT_BIT < !PROMPT_BIT => *w += 1,
            _ => {}
        }
    }
}

/// A store of some family; a state value is its number among the stores of a run.
#[derive(Clone, Debug)]
pub enum StateStore {
    /// Keys and values of a layer.
    Kv(KvStore),
    /// Token counts.
    Counts(CountsStore),
}

impl StateStore {
    /// A store for a declaration: `size` is the number of pages (kv) or slots (counts). Negative sizes in the declaration count as 0.
    pub fn for_decl(decl: &StateDecl, size: usize) -> StateStore {
        let at_least_0 = |n: &i64| usize::try_from(*n).unwrap_or(0);
        match decl {
            StateDecl::Kv { heads, head_dim, page, dtype, .. } => {
                let (heads, page, head_dim) = (at_least_0(heads), at_least_0(page), at_least_0(head_dim));
                StateStore::Kv(KvStore::new(size, heads, page, head_dim, *dtype))
            }
            StateDecl::Counts { vocab, .. } => StateStore::Counts(CountsStore::new(size, at_least_0(vocab))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kv_pages_hold_rows_per_head() {
        let mut kv = KvStore::new(2, 2, 4, 1, DType::BF16);
        kv.write(1, 3, &[1.0, 2.0], &[3.0, 1.0 + 1.0 / 512.0], true);
        assert_eq!(kv.keys(1, 1).unwrap(), [0.0, 0.0, 0.0, 2.0]);
        assert_eq!(kv.values(1, 0).unwrap(), [0.0, 0.0, 0.0, 3.0]);
        assert_eq!(kv.values(1, 1).unwrap()[3], 1.0, "rounded to bf16");
        kv.write(2, 0, &[9.0; 2], &[9.0; 2], false);
        kv.write(-1, 0, &[9.0; 2], &[9.0; 2], false);
        kv.write(0, 4, &[9.0; 2], &[9.0; 2], false);
        assert!(kv.keys(2, 0).is_none() && kv.keys(-1, 0).is_none() && kv.keys(0, 2).is_none());
        assert!(kv.keys(0, 0).unwrap().iter().all(|x| *x == 0.0));
    }

    #[test]
    fn counts_mark_prompts_and_count_output() {
        let mut c = CountsStore::new(2, 3);
        c.record(1, 2, false);
        c.record(1, 2, true);
        c.record(1, 2, true);
        for (slot, token) in [(2, 0), (-1, 0), (0, 3), (0, -1)] {
            c.record(slot, token, true);
        }
        assert_eq!(c.row(1).unwrap(), [0, 0, PROMPT_BIT | 2]);
        assert_eq!(c.row(0).unwrap(), [0, 0, 0]);
        assert!(c.row(2).is_none() && c.row(-1).is_none());
        c.reset(1);
        assert_eq!(c.row(1).unwrap(), [0, 0, 0]);
    }
}
