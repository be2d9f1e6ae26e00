//! Pages of the KV cache: who holds which, and when a page that has left the window may be used again.

use gossamer_ir::StateDecl;

/// One KV declaration of a model and the free pages of its layers (all layers of a group use the same page numbers).
#[derive(Clone, Debug)]
pub struct Group {
    /// Name of the declaration; the page table input is `pages.{name}`.
    pub name: String,
    /// Tokens a page.
    pub page: usize,
    /// Keys that are ever read; `None`: all.
    pub window: Option<usize>,
    /// Pages there are.
    pub pages: usize,
    /// Free page numbers, the next one last.
    free: Vec<u32>,
}

impl Group {
    /// A group with every page free; low numbers are given out first.
    pub fn new(decl: &StateDecl, pages: usize) -> Option<Group> {
        match decl {
            StateDecl::Kv { name, page, window, .. } => Some(Group {
                name: name.to_string(),
                page: *page as usize,
                window: window.map(|w| w as usize),
                pages,
                free: (0..pages as u32).rev().collect(),
            }),
            StateDecl::Counts { .. } => None,
        }
    }

    /// Pages that `seqs` sequences of `context` tokens need when a step adds at most `step` tokens to one.
    pub fn pages_for(decl: &StateDecl, seqs: usize, context: usize, step: usize) -> usize {
        match decl {
            StateDecl::Kv { page, window, .. } => {
                let page = *page as usize;
                let all = context.div_ceil(page);
                // A window of w keys and a step of n tokens touch at most w - 1 + n positions, which may begin anywhere in a page.
                let held = window.map_or(all, |w| (w as usize + step).div_ceil(page) + 1);
                seqs * held.min(all)
            }
            StateDecl::Counts { .. } => 0,
        }
    }

    /// Free pages.
    pub fn free(&self) -> usize {
        self.free.len()
    }
}

/// Pages of one sequence in one group: entry i holds positions `i * page ..`; -1 where there is none (not yet, or no longer needed).
#[derive(Clone, Debug, Default)]
pub struct PageTable {
    entries: Vec<i32>,
    /// Entries before this one have been given back.
    released: usize,
}

impl PageTable {
    /// Page numbers by logical page.
    pub fn entries(&self) -> &[i32] {
        &self.entries
    }

    /// Pages that [`PageTable::grow`] to `tokens` would take.
    pub fn needed(&self, group: &Group, tokens: usize) -> usize {
        tokens.div_ceil(group.page).saturating_sub(self.entries.len())
    }

    /// Takes pages until `tokens` positions fit; false, taking none, if there are too few.
    pub fn grow(&mut self, group: &mut Group, tokens: usize) -> bool {
        let needed = self.needed(group, tokens);
        if needed > group.free.len() {
            return false;
        }
        for _ in 0..needed {
            if let Some(page) = group.free.pop() {
                self.entries.push(page as i32);
            }
        }
        true
    }

    /// Gives back pages that no later token reads, when the next token's position is `next`.
    pub fn release_behind(&mut self, group: &mut Group, next: usize) {
        let Some(window) = group.window else { return };
        // The token at `next` sees positions from next - window + 1 on.
        let first = (next + 1).saturating_sub(window) / group.page;
        while self.released < first.min(self.entries.len()) {
            let entry = std::mem::replace(&mut self.entries[self.released], -1);
            group.free.push(entry as u32);
            self.released += 1;
        }
    }

    /// Gives back the pages behind the first `tokens` positions.
    pub fn shrink(&mut self, group: &mut Group, tokens: usize) {
        let keep = tokens.div_ceil(group.page).min(self.entries.len());
        group.free.extend(self.entries.drain(keep..).filter(|p| *p >= 0).map(|p| p as u32).rev());
    }

    /// Gives everything back.
    pub fn clear(&mut self, group: &mut Group) {
        group.free.extend(self.entries.drain(..).filter(|p| *p >= 0).map(|p| p as u32));
        self.released = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gossamer_ir::DType;

    fn decl(window: Option<i64>) -> StateDecl {
        StateDecl::Kv { name: "kv".into(), heads: 1, head_dim: 8, page: 16, window, dtype: DType::BF16 }
    }

    #[test]
    fn a_window_group_never_needs_more_than_it_was_given() {
        for step in [1usize, 7, 16, 33] {
            let d = decl(Some(40));
            let pages = Group::pages_for(&d, 1, 10_000, step);
            let mut group = Group::new(&d, pages).unwrap();
            let (mut table, mut len) = (PageTable::default(), 0);
            while len + step <= 10_000 {
                assert!(table.grow(&mut group, len + step), "step {step} at {len}");
                // Every key that the first new token sees has a page.
                for p in (len + 1).saturating_sub(40)..len + step {
                    assert!(table.entries()[p / 16] >= 0);
                }
                len += step;
                table.release_behind(&mut group, len);
            }
            table.clear(&mut group);
            assert_eq!(group.free(), pages);
        }
    }

    #[test]
    fn pages_are_distinct_and_a_refusal_takes_nothing() {
        let mut group = Group::new(&decl(None), 4).unwrap();
        let (mut a, mut b) = (PageTable::default(), PageTable::default());
        assert!(a.grow(&mut group, 33) && b.grow(&mut group, 5));
        assert!(!b.grow(&mut group, 17) && group.free() == 0 && b.entries().len() == 1);
        let mut all: Vec<i32> = a.entries().iter().chain(b.entries()).copied().collect();
        all.sort_unstable();
        assert_eq!(all, vec![0, 1, 2, 3]);
    }
}
