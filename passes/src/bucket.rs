//! Buckets: the sizes for which plans and graphs are made. A step runs in the smallest bucket that holds it; the rest is padding.

use gossamer_ir::{Bindings, Module};

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
        match self.decodes() {
            true => format!("decode.{}", self.tokens),
            false => format!("step.t{}.s{}.r{}", self.tokens, self.seqs, self.rows),
        }
    }

    /// Reads what [`StepSize::name`] writes. `decode.4` is four sequences with a token each, `step.t512.s4.r4` 512 tokens of four sequences, four of
    /// which get logits; every number is at least 1.
    ///
    /// # Errors
    /// [`BucketError::Syntax`], with examples.
    pub fn parse(text: &str) -> Result<StepSize, BucketError> {
        let number = |s: &str| s.parse::<u32>().ok().filter(|n| *n > 0 && !s.starts_with('+')).map(|n| n as usize);
        let parsed = match text.split('.').collect::<Vec<_>>()[..] {
            ["decode", n] => number(n).map(|n| StepSize { tokens: n, seqs: n, rows: n }),
            ["step", t, s, r] => {
                let part = |text: &str, letter| number(text.strip_prefix(letter)?);
                match (part(t, 't'), part(s, 's'), part(r, 'r')) {
                    (Some(tokens), Some(seqs), Some(rows)) => Some(StepSize { tokens, seqs, rows }),
                    _ => None,
                }
            }
            _ => None,
        };
        parsed.ok_or_else(|| BucketError::Syntax { found: text.to_string(), declared: String::new() })
    }

    /// True if every sequence has one token and gets logits: a step that decodes. Steps that feed prompts never have such a size, see [`choose_prompt`].
    pub fn decodes(&self) -> bool {
        self.tokens == self.seqs && self.rows == self.seqs
    }

    /// Values of the symbols T, S, R, with C positions and P pages a sequence.
    pub fn bindings(&self, context: usize, pages: usize) -> Bindings {
        sizes(self.tokens, self.seqs, self.rows, context, pages)
    }
}

/// A bucket that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BucketError {
    /// Not the name of a bucket.
    #[error(
        "unknown bucket `{found}`; expected decode.N or step.tN.sN.rN, for example decode.1, decode.16 or step.t512.s4.r4{declared}"
    )]
    Syntax {
        /// What was given.
        found: String,
        /// `; the module declares ..`, or nothing.
        declared: String,
    },
    /// Not a list of sizes.
    #[error("sizes are `{found}`, expected NAME=NUMBER separated by commas, for example T=4,S=4,R=4")]
    Sizes {
        /// What was given.
        found: String,
    },
    /// A symbol with two sizes.
    #[error("sizes name {symbol} twice, expected each symbol once")]
    Twice {
        /// The symbol.
        symbol: String,
    },
    /// A symbol that the module does not have.
    #[error("unknown symbol `{symbol}` in sizes; {known}")]
    Symbol {
        /// The symbol.
        symbol: String,
        /// What there is.
        known: String,
    },
    /// A size outside the bounds that the module declares.
    #[error("symbol {symbol} is {found}, expected {min} to {max}; choose a smaller step")]
    Bounds {
        /// The symbol.
        symbol: String,
        /// Its value.
        found: i64,
        /// Least.
        min: i64,
        /// Greatest.
        max: i64,
    },
}

/// Sizes of a bucket of `module`, by its name: one that the module declares, or as [`StepSize::parse`] reads it. A symbol that the bucket does not fix has its
/// greatest value.
///
/// # Errors
/// No such bucket, or a size outside the module's bounds.
pub fn named(module: &Module, text: &str) -> Result<Bindings, BucketError> {
    let given = match module.buckets.iter().find(|b| &*b.name == text) {
        Some(b) => b.sizes.clone(),
        None => match StepSize::parse(text) {
            Ok(step) => {
                let fixed = [("T", step.tokens), ("S", step.seqs), ("R", step.rows)];
                let known = fixed.into_iter().filter(|(name, _)| module.sym(name).is_some());
                known.map(|(name, n)| (name.into(), n as i64)).collect()
            }
            Err(_) => {
                let names: Vec<&str> = module.buckets.iter().map(|b| &*b.name).collect();
                let declared = match names.is_empty() {
                    true => String::new(),
                    false => format!("; the module declares {}", names.join(", ")),
                };
                return Err(BucketError::Syntax { found: text.to_string(), declared });
            }
        },
    };
    complete(module, given)
}

/// Sizes of `module` from text: `T=4,S=4`. A symbol that is not given has its greatest value.
///
/// # Errors
/// Text that is no such list, an unknown symbol, or a size outside the module's bounds.
pub fn given(module: &Module, text: &str) -> Result<Bindings, BucketError> {
    let mut sizes = Bindings::new();
    for part in text.split(',').filter(|p| !p.trim().is_empty()) {
        let pair = part.split_once('=').and_then(|(k, v)| Some((k.trim(), v.trim().parse::<i64>().ok()?)));
        let Some((name, value)) = pair else { return Err(BucketError::Sizes { found: text.to_string() }) };
        if module.sym(name).is_none() {
            let known: Vec<&str> = module.syms.iter().map(|s| &*s.name).collect();
            let known = match known.is_empty() {
                true => "the module declares none".to_string(),
                false => format!("known: {}", known.join(", ")),
            };
            return Err(BucketError::Symbol { symbol: name.to_string(), known });
        }
        if sizes.insert(name.into(), value).is_some() {
            return Err(BucketError::Twice { symbol: name.to_string() });
        }
    }
    complete(module, sizes)
}

fn complete(module: &Module, mut sizes: Bindings) -> Result<Bindings, BucketError> {
    for s in &module.syms {
        let value = *sizes.entry(s.name.clone()).or_insert(s.max);
        if value < s.min || value > s.max {
            let symbol = s.name.to_string();
            return Err(BucketError::Bounds { symbol, found: value, min: s.min, max: s.max });
        }
    }
    Ok(sizes)
}

/// The symbol that counts the rows of prompts, if these are the sizes of a step that feeds prompts. Such rows may be summed in another order than decoded ones, and in the
/// same one in every step: see [`gossamer_ir::template::Order`].
pub fn prompt_rows(sizes: &Bindings) -> Option<&'static str> {
    let of = |name: &str| sizes.get(name).and_then(|n| usize::try_from(*n).ok());
    let step = StepSize { tokens: of("T")?, seqs: of("S")?, rows: of("R")? };
    (!step.decodes()).then_some("T")
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
    let seqs = step.seqs.next_power_of_two().min(max.seqs.max(step.seqs));
    if step.decodes() {
        return StepSize { tokens: seqs, seqs, rows: seqs };
    }
    let rows = step.rows.next_power_of_two().min(max.rows.max(step.rows));
    StepSize { tokens: token_bucket(step.tokens).min(max.tokens.max(step.tokens)), seqs, rows }
}

/// [`choose`] for a step that feeds prompts: the bucket always has more tokens than sequences, even for one token of each, so that how a prompt is
/// summed does not depend on how it is cut. Attention knows prompts by that.
pub fn choose_prompt(step: StepSize, max: StepSize) -> StepSize {
    let bucket = choose(step, max);
    StepSize { tokens: bucket.tokens.max(bucket.seqs + 1), ..bucket }
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
        let prompt = |tokens, seqs, rows| choose_prompt(StepSize { tokens, seqs, rows }, max);
        assert_eq!(prompt(1, 1, 1), StepSize { tokens: 2, seqs: 1, rows: 1 });
        assert_eq!(prompt(3, 3, 3), StepSize { tokens: 5, seqs: 4, rows: 4 });
        assert_eq!(prompt(65, 1, 1), step(65, 1, 1));
        assert!(
            (1..200).all(|n| [prompt(n, n.min(100), 1), prompt(n, 1, n), prompt(n, n, n)]
                .iter()
                .all(|s| s.tokens > s.seqs))
        );
    }

    #[test]
    fn names_read_back() {
        for step in [(1, 1, 1), (16, 16, 16), (512, 4, 4), (512, 4, 1), (2, 1, 1)] {
            let step = StepSize { tokens: step.0, seqs: step.1, rows: step.2 };
            assert_eq!(StepSize::parse(&step.name()), Ok(step));
        }
        for bad in [
            "",
            "decode",
            "decode.0",
            "decode.x",
            "decode.1.2",
            "prefill.4",
            "step.t4.s1",
            "step.4.1.1",
            "decode.99999999999",
            "decode.+1",
        ] {
            let e = StepSize::parse(bad).unwrap_err().to_string();
            assert!(e.starts_with(&format!("unknown bucket `{bad}`; expected decode.N or step.tN.sN.rN")), "{e}");
        }
    }

    #[test]
    fn buckets_of_a_module() {
        let text = "gir 1\nsym T in 1..=64\nsym P in 0..=9\nbucket small {T = 2}\nfunc @f(%x: f32[T, P]) -> f32[T, P] {\n  return %x\n}";
        let m = gossamer_ir::text::parse("m.gir", text).unwrap();
        let sizes = |t: i64, p: i64| Bindings::from([("T".into(), t), ("P".into(), p)]);
        assert_eq!(named(&m, "small"), Ok(sizes(2, 9)));
        assert_eq!(named(&m, "step.t8.s1.r1"), Ok(sizes(8, 9)));
        assert_eq!(given(&m, "P = 3, T=1"), Ok(sizes(1, 3)));
        let error = |r: Result<Bindings, BucketError>| r.unwrap_err().to_string();
        assert!(error(named(&m, "big")).ends_with("the module declares small"));
        assert_eq!(error(named(&m, "decode.65")), "symbol T is 65, expected 1 to 64; choose a smaller step");
        assert_eq!(error(given(&m, "Q=1")), "unknown symbol `Q` in sizes; known: T, P");
        assert_eq!(error(given(&m, "T=1,P=2,T=3")), "sizes name T twice, expected each symbol once");
        assert!(error(given(&m, "T:1")).starts_with("sizes are `T:1`, expected NAME=NUMBER"));
    }
}
