//! Buckets: the sizes for which plans and graphs are made. A step runs in the smallest bucket that holds it; the rest is padding.

use gossamer_ir::Bindings;

/// Sizes of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StepSize {
    /// Tokens.
    pub tokens: usize,
    /// Sequences.
    pub seqs: usize,
    /// Rows that get logits.
    pub rows: usize,
}

impl StepSize {
    /// `decode.4`, or `step.t512.s4.r4`.
    pub fn name(&self) -> String {
        match self.tokens == self.seqs && self.seqs == self.rows {
            true => format!("decode.{}", self.tokens),
            false => format!("step.t{}.s{}.r{}", self.tokens, self.seqs, self.rows),
        }
    }

    /// Values of the symbols T, S, R, with C positions and P pages a sequence.
    pub fn bindings(&self, context: usize, pages: usize) -> Bindings {
        sizes(self.tokens, self.seqs, self.rows, context, pages)
    }
}

/// Values of the symbols of a step.
pub fn sizes(tokens: usize, seqs: usize, rows: usize, context: usize, pages: usize) -> Bindings {
    [("T", tokens), ("S", seqs), ("R", rows), ("C", context), ("P", pages)]
        .into_iter()
        .map(|(k, v)| (k.into(), v as i64))
        .collect()
}

/// The bucket for a step of the given size: powers of two for sequences; for tokens powers of two up to 64, then also the points halfway, so that at most
/// a third of a large step is padding. Never above the limits, which are buckets themselves.
pub fn choose(step: StepSize, max: StepSize) -> StepSize {
    let decode = step.tokens == step.seqs && step.rows == step.seqs;
    let seqs = step.seqs.next_power_of_two().min(max.seqs.max(step.seqs));
    if decode {
        return StepSize { tokens: seqs, seqs, rows: seqs };
    }
    let rows = step.rows.next_power_of_two().min(max.rows.max(step.rows));
    StepSize { tokens: token_bucket(step.tokens).min(max.tokens.max(step.tokens)), seqs, rows }
}

fn token_bucket(tokens: usize) -> usize {
    let up = tokens.max(1).next_power_of_two();
    let halfway = up / 4 * 3;
    if up > 64 && tokens <= halfway { halfway } else { up }
}

/// Every decode bucket up to `max_seqs`.
pub fn decode_ladder(max_seqs: usize) -> Vec<usize> {
    let mut out: Vec<usize> =
        std::iter::successors(Some(1usize), |n| Some(n * 2)).take_while(|n| *n < max_seqs).collect();
    out.push(max_seqs.max(1));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_bucket_that_holds_the_step() {
        let max = StepSize { tokens: 2048, seqs: 100, rows: 100 };
        let step = |tokens, seqs, rows| choose(StepSize { tokens, seqs, rows }, max);
        assert_eq!(step(3, 3, 3), StepSize { tokens: 4, seqs: 4, rows: 4 });
        assert_eq!(step(70, 70, 70), StepSize { tokens: 100, seqs: 100, rows: 100 });
        assert_eq!(step(65, 1, 1), StepSize { tokens: 96, seqs: 1, rows: 1 });
        assert_eq!(step(97, 3, 1), StepSize { tokens: 128, seqs: 4, rows: 1 });
        assert_eq!(step(2000, 1, 1).tokens, 2048);
        assert_eq!(decode_ladder(6), vec![1, 2, 4, 6]);
    }
}
