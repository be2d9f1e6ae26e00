//! Evaluation of the ops that choose tokens. This page is the recipe that kernels follow to the letter.
//!
//! # Philox
//! [`philox`] is Philox-4x32-10 (Salmon et al. 2011): four counter words, two key words, ten rounds, multipliers 0xD2511F53 and 0xCD9E8D57, key
//! increments 0x9E3779B9 and 0xBB67AE85.
//!
//! # Drawing a token of row r
//! All steps are f32 with correctly rounded `+`, `-`, `*`, `/` unless they say otherwise; there is no fused multiply-add.
//!
//! 1. A NaN logit counts as minus infinity. If `temperature[r] > 0` is false, the token is the greatest logit, ties to the lower index.
//! 2. `l_i = logit_i / temperature`, `m = max l_i`. If m is not finite, the token is that of step 1.
//! 3. `top_k` in 1..V: a token stays if `l_i >= t`, t being the top_k-th greatest `l` with repetition.
//! 4. `min_p > 0`: a token stays if `w_i >= min(min_p, 1)` with `w_i = exp(l_i - m)`.
//! 5. `top_p < 1`: its mass is the integer `q_i = trunc(w_i * 2^40)` (exact in f32, then to 64 bits), so that sums do not depend on their order.
//!    With Q the sum of the masses of tokens that stay, the target is `max(1, ceil(f64(top_p) * f64(Q)))`. The threshold is the greatest `l` of a staying
//!    token such that the masses of staying tokens with at least this `l` add up to the target or more; a token stays if `l_i` is not below it.
//! 6. Noise of token i: x is word `i mod 4` of `philox(counter = [i / 4, pos[r], 0, 0], key = [seed[r][0], seed[r][1]])`,
//!    `v = min((f32(x) + 0.5) * 2^-32, 1 - 2^-24)` with f32(x) rounded to nearest, `g_i = -ln(-log1p(-v))`. (v is a uniform number near
//!    0 with all the precision of f32, so the noise has a correct upper tail; `1 - v` is the u of the usual formula.)
//! 7. The token is the staying one with the greatest `l_i + g_i`, ties to the lower index.
//!
//! `top_k` of 0 or less or of V or more, `top_p` of 1 or more or NaN, and `min_p` of 0 or less or NaN are off. `top_p` of 0 or less keeps the greatest
//! only, with its ties.

use super::reduce::{greatest, log_sum_exp};
use super::*;

/// Philox-4x32-10: four random words from a counter and a key.
pub fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let a = u64::from(counter[0]) * 0xD251_1F53;
        let b = u64::from(counter[2]) * 0xCD9E_8D57;
        counter = [(b >> 32) as u32 ^ counter[1] ^ key[0], b as u32, (a >> 32) as u32 ^ counter[3] ^ key[1], a as u32];
        key = [key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)];
    }
    counter
}

/// Standard Gumbel noise from a random word.
pub fn gumbel(word: u32) -> f32 {
    let v = ((word as f32 + 0.5) * (1.0 / 4294967296.0)).min(1.0 - 1.0 / 16777216.0);
    -(-(-v).ln_1p()).ln()
}

/// How one row draws.
#[derive(Clone, Copy, Debug)]
struct Draw {
    temperature: f32,
    top_k: i32,
    top_p: f32,
    min_p: f32,
    seed: [u32; 2],
    pos: u32,
}

fn draw(logits: &[f32], how: Draw) -> i32 {
    let greedy = || greatest(logits) as i32;
    if how.temperature.is_nan() || how.temperature <= 0.0 {
        return greedy();
    }
    let scaled = |x: &f32| if x.is_nan() { f32::NEG_INFINITY } else { x / how.temperature };
    let l: Vec<f32> = logits.iter().map(scaled).collect();
    let m = l.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    if !m.is_finite() {
        return greedy();
    }
    let mut least = f32::NEG_INFINITY;
    if let Ok(k) = usize::try_from(how.top_k)
        && (1..l.len()).contains(&k)
    {
        let mut sorted = l.clone();
        least = *sorted.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a)).1;
    }
    let floor = if how.min_p > 0.0 { how.min_p.min(1.0) } else { f32::NEG_INFINITY };
    let stays = |l: f32| l >= least && (l - m).exp() >= floor;
    let mut kept: Vec<u32> = (0..l.len() as u32).filter(|i| stays(l[*i as usize])).collect();
    if how.top_p < 1.0 {
        let edge = nucleus(kept.iter().map(|i| l[*i as usize]).collect(), m, how.top_p);
        kept.retain(|i| l[*i as usize] >= edge);
    }
    let (mut best, mut winner) = (f32::NEG_INFINITY, kept.first().copied().unwrap_or(0));
    let (mut block, mut words) = (u32::MAX, [0; 4]);
    for i in kept {
        if i / 4 != block {
            block = i / 4;
            words = philox([block, how.pos, 0, 0], how.seed);
        }
        let score = l[i as usize] + gumbel(words[i as usize % 4]);
        if score > best {
            (best, winner) = (score, i);
        }
    }
    winner as i32
}

/// The least logit of the nucleus of staying tokens.
fn nucleus(mut l: Vec<f32>, m: f32, top_p: f32) -> f32 {
    let mass = |l: f32| ((l - m).exp() * 1_099_511_627_776.0) as u64;
    let total = l.iter().fold(0u64, |sum, l| sum.saturating_add(mass(*l)));
    let target = ((f64::from(top_p) * total as f64).ceil() as u64).max(1);
    l.sort_unstable_by(|a, b| b.total_cmp(a));
    let mut sum = 0u64;
    for l in &l {
        sum = sum.saturating_add(mass(*l));
        if sum >= target {
            return *l;
        }
    }
    f32::NEG_INFINITY
}

/// Rows of f32 logits: elements, rows, columns.
fn logits<'a>(cx: &EvalCx<'a>) -> Result<(Cow<'a, [f32]>, usize, usize), EvalError> {
    let (x, shape) = cx.floats(0)?;
    match *shape {
        [r, v] if u32::try_from(v).is_ok() => Ok((x, r, v)),
        _ => Err(cx.bad(0, "f32 [R, V]")),
    }
}

/// `sample`.
pub fn sample(cx: &mut EvalCx) -> Result<Vec<Datum>, EvalError> {
    let (x, r, v) = logits(cx)?;
    let row = [r];
    let (temperature, top_k) = (cx.floats_of(1, &row)?, cx.ints_of(2, &row)?);
    let (top_p, min_p) = (cx.floats_of(3, &row)?, cx.floats_of(4, &row)?);
    let (seed, pos) = (cx.ints_of(5, &[r, 2])?, cx.ints_of(6, &row)?);
    let tokens = par::map(r, v * 4, |i| {
        let how = Draw {
            temperature: temperature[i],
            top_k: top_k[i],
            top_p: top_p[i],
            min_p: min_p[i],
            seed: [seed[2 * i] as u32, seed[2 * i + 1] as u32],
            pos: pos[i] as u32,
        };
        draw(&x[i * v..(i + 1) * v], how)
    });
    Ok(vec![Tensor::raw_i32(vec![r], tokens).into()])
}

/// `token_logprob`.
pub fn token_logprob(cx: &mut EvalCx) -> Result<Vec<Datum>, EvalError> {
    let (x, r, v) = logits(cx)?;
    let tokens = cx.ints_of(1, &[r])?;
    let y = par::map(r, v * 16, |i| {
        let row = &x[i * v..(i + 1) * v];
        match usize::try_from(tokens[i]).ok().and_then(|t| row.get(t)) {
            Some(logit) => logit - log_sum_exp(row),
            None => f32::NEG_INFINITY,
        }
    });
    Ok(vec![cx.float_result(0, vec![r], y)])
}

/// `logit_bias`.
pub fn logit_bias(cx: &mut EvalCx) -> Result<Vec<Datum>, EvalError> {
    let (x, r, v) = logits(cx)?;
    let (ids, shape) = cx.ints(1)?;
    let values = cx.floats_of(2, shape)?;
    let b = match *shape {
        [rows, b] if rows == r => b,
        _ => return Err(cx.bad(1, format!("i32 [{r}, B]"))),
    };
    let mut y = x.into_owned();
    for (i, (id, value)) in ids.iter().zip(values.iter()).enumerate() {
        if let Some(id) = usize::try_from(*id).ok().filter(|id| *id < v) {
            y[i / b * v + id] += value;
        }
    }
    Ok(vec![cx.float_result(0, vec![r, v], y)])
}

/// `count_tokens`.
pub fn count_tokens(cx: &mut EvalCx) -> Result<Vec<Datum>, EvalError> {
    let (tokens, shape) = cx.ints(1)?;
    let (pos, seq) = (cx.ints_of(2, shape)?, cx.ints_of(3, shape)?);
    let (slots, shape) = cx.ints(4)?;
    let prompt = cx.ints_of(5, shape)?;
    let (handle, counts) = cx.counts(0)?;
    for (i, token) in tokens.iter().enumerate() {
        let s = usize::try_from(seq[i]).ok().filter(|s| *s < slots.len());
        if let Some(s) = s {
            counts.record(slots[s], *token, pos[i] >= prompt[s]);
        }
    }
    Ok(vec![Datum::State(handle)])
}

/// `penalize`.
pub fn penalize(cx: &mut EvalCx) -> Result<Vec<Datum>, EvalError> {
    let (x, r, v) = logits(cx)?;
    let row = [r];
    let slots = cx.ints_of(2, &row)?;
    let (repetition, presence, frequency) = (cx.floats_of(3, &row)?, cx.floats_of(4, &row)?, cx.floats_of(5, &row)?);
    let wrong = cx.bad(1, format!("counts of {v} tokens"));
    let (_, counts) = cx.counts(1)?;
    if counts.vocab() != v {
        return Err(wrong);
    }
    let mut y = x.into_owned();
    for i in 0..r {
        let Some(words) = counts.row(slots[i]) else { continue };
        for (logit, word) in y[i * v..(i + 1) * v].iter_mut().zip(words).filter(|(_, w)| **w != 0) {
            *logit = if *logit > 0.0 { *logit / repetition[i] } else { *logit * repetition[i] };
            let count = word & !state::PROMPT_BIT;
            if count > 0 {
                *logit = *logit - frequency[i] * count as f32 - presence[i];
            }
        }
    }
    Ok(vec![cx.float_result(0, vec![r, v], y)])
}

#[cfg(test)]
mod tests {
    use super::{Draw, draw, gumbel, philox};
    use crate::interp::testing::*;
    use crate::module::StateDecl;

    const INF: f32 = f32::INFINITY;
    const NAN: f32 = f32::NAN;

    #[test]
    fn philox_known_answers() {
        // Random123's kat_vectors for philox4x32 with 10 rounds.
        assert_eq!(philox([0; 4], [0; 2]), [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8]);
        assert_eq!(philox([u32::MAX; 4], [u32::MAX; 2]), [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd]);
        let (counter, key) = ([0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344], [0xa4093822, 0x299f31d0]);
        assert_eq!(philox(counter, key), [0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1]);
    }

    #[test]
    fn noise_is_finite_at_both_ends() {
        close(&[gumbel(0)], &[33.0 * std::f32::consts::LN_2], 1e-6);
        close(&[gumbel(u32::MAX)], &[-(24.0 * std::f32::consts::LN_2).ln()], 1e-6);
        close(&[gumbel(1 << 31)], &[-std::f32::consts::LN_2.ln()], 1e-6);
    }

    fn plain(pos: u32) -> Draw {
        Draw { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0, seed: [7, 9], pos }
    }

    /// How often each token is drawn over many positions.
    fn histogram(logits: &[f32], n: u32, how: impl Fn(Draw) -> Draw) -> Vec<f32> {
        let mut counts = vec![0.0; logits.len()];
        for pos in 0..n {
            counts[draw(logits, how(plain(pos))) as usize] += 1.0 / n as f32;
        }
        counts
    }

    #[test]
    fn greedy_and_degenerate_rows() {
        let greedy = |x: &[f32], t: f32| draw(x, Draw { temperature: t, ..plain(0) });
        for t in [0.0, -1.0, NAN] {
            assert_eq!(greedy(&[1.0, 3.0, 3.0, NAN], t), 1);
        }
        for t in [0.0, 1.0, 1e-45] {
            assert_eq!(greedy(&[NAN, -INF, NAN], t), 1);
            assert_eq!(greedy(&[NAN, NAN], t), 0);
            assert_eq!(greedy(&[0.0, INF, 5.0, INF], t), 1);
        }
        assert_eq!(greedy(&[1e30, 2e30], 1e-40), 1, "scaled logits overflow");
        assert_eq!(greedy(&[], 1.0), 0);
        for pos in 0..200 {
            let d = draw(&[0.0, -INF, NAN, 0.0], plain(pos));
            assert!(d == 0 || d == 3);
        }
    }

    #[test]
    fn frequencies_are_those_of_the_softmax() {
        let logits = [2.0, 1.0, 0.5, 0.25];
        let p = [0.566642, 0.208456, 0.126435, 0.098468];
        for (got, want) in histogram(&logits, 40_000, |d| d).iter().zip(p) {
            assert!((got - want).abs() < 0.01, "{got} {want}");
        }
        let warm = histogram(&logits.map(|l| l * 3.0), 40_000, |d| Draw { temperature: 3.0, ..d });
        for (got, want) in warm.iter().zip(p) {
            assert!((got - want).abs() < 0.01, "{got} {want}");
        }
    }

    #[test]
    fn filters_keep_what_they_say() {
        let kept = |x: &[f32], how: &dyn Fn(Draw) -> Draw| {
            let h = histogram(x, 3000, how);
            (0..x.len()).filter(|i| h[*i] > 0.0).collect::<Vec<_>>()
        };
        let x = [1.0, 3.0, 2.0, 2.0, 0.0]; // p = .075 .552 .203 .203 .027 (sum of the rest)
        assert_eq!(kept(&x, &|d| Draw { top_k: 1, ..d }), [1]);
        assert_eq!(kept(&x, &|d| Draw { top_k: 2, ..d }), [1, 2, 3], "a tie at the edge");
        assert_eq!(kept(&x, &|d| Draw { top_k: 99, ..d }), [0, 1, 2, 3, 4]);
        assert_eq!(kept(&x, &|d| Draw { top_p: 0.0, ..d }), [1]);
        assert_eq!(kept(&x, &|d| Draw { top_p: 0.5, ..d }), [1]);
        assert_eq!(kept(&x, &|d| Draw { top_p: 0.6, ..d }), [1, 2, 3], "the one that crosses, and its tie");
        assert_eq!(kept(&x, &|d| Draw { top_p: NAN, ..d }), [0, 1, 2, 3, 4]);
        assert_eq!(kept(&x, &|d| Draw { min_p: 0.3, ..d }), [1, 2, 3]);
        assert_eq!(kept(&x, &|d| Draw { min_p: 5.0, ..d }), [1]);
        // top_p is of the probabilities after top_k: 0.552 / (0.552 + 0.406) = 0.576 alone reaches 0.57.
        assert_eq!(kept(&x, &|d| Draw { top_k: 3, top_p: 0.57, ..d }), [1]);
        // top_p 1 - epsilon must still keep what it needs.
        assert_eq!(kept(&x, &|d| Draw { top_p: 1.0 - f32::EPSILON, ..d }), [0, 1, 2, 3, 4]);
    }

    fn sample_rows(x: Tensor, seeds: &[i32], pos: &[i32]) -> Vec<i32> {
        let r = pos.len();
        let ones = f32s(&[r], &vec![1.0; r]);
        let zeros = f32s(&[r], &vec![0.0; r]);
        let e = Eval::new(OpKind::Sample).on([x, ones.clone(), i32s(&[r], &vec![0; r]), ones, zeros]);
        e.on([i32s(&[r, 2], seeds), i32s(&[r], pos)]).tensor().as_i32().unwrap().to_vec()
    }

    #[test]
    fn a_draw_depends_on_its_row_only() {
        let (r, v) = (5, 1000);
        let x = noise(r * v, 1);
        let seeds: Vec<i32> = (0..10).map(|i| i * 1_000_003 - 5).collect();
        let pos = [0, 1, 2, -3, 100];
        let all = sample_rows(f32s(&[r, v], &x), &seeds, &pos);
        for i in 0..r {
            let alone = sample_rows(f32s(&[1, v], &x[i * v..(i + 1) * v]), &seeds[2 * i..2 * i + 2], &pos[i..=i]);
            assert_eq!(alone, all[i..=i]);
        }
        let moved = sample_rows(f32s(&[r, v], &x), &seeds, &pos.map(|p| p + 1));
        assert_ne!(moved, all);
    }

    #[test]
    fn logprob_of_tokens() {
        let x = f32s(&[3, 2], &[0.0, 0.0, 1.0, 3.0, 1.0, 3.0]);
        let y = Eval::new(OpKind::TokenLogprob).on([x, i32s(&[3], &[1, 0, 2])]).values();
        close(&y[..2], &[-std::f32::consts::LN_2, -2.126928], 1e-6);
        assert_eq!(y[2], -INF);
    }

    #[test]
    fn biases_add_and_skip() {
        let x = f32s(&[2, 3], &[0.0; 6]);
        let ids = i32s(&[2, 2], &[2, -1, 3, 0]);
        let y = Eval::new(OpKind::LogitBias).on([x, ids, f32s(&[2, 2], &[1.0, 2.0, 3.0, -INF])]).values();
        assert_eq!(y, [0.0, 0.0, 1.0, -INF, 0.0, 0.0]);
        let y = Eval::new(OpKind::LogitBias).on([f32s(&[1, 2], &[1.0, 2.0]), i32s(&[1, 0], &[]), f32s(&[1, 0], &[])]);
        assert_eq!(y.values(), [1.0, 2.0]);
    }

    #[test]
    fn penalties_of_counted_tokens() {
        let decl = StateDecl::Counts { name: "seen".into(), vocab: 4 };
        let store = StateStore::for_decl(&decl, 2);
        // Sequence 0 is slot 1: prompt token 0 (and 9, outside), output 1, 1; sequence 1 has no slot.
        let tokens = [0, 9, 1, 1, 2, 3];
        let pos = [0, 1, 2, 3, 0, 0];
        let seq = [0, 0, 0, 0, 1, -1];
        let step = [i32s(&[6], &tokens), i32s(&[6], &pos), i32s(&[6], &seq), i32s(&[2], &[1, -1]), i32s(&[2], &[2, 0])];
        let mut count = Eval::new(OpKind::CountTokens).state(decl.clone(), store).on(step);
        count.all().unwrap();
        let store = count.states.pop().unwrap();
        let x = f32s(&[3, 4], &[2.0, 2.0, 2.0, 2.0, -1.0, -1.0, -1.0, -1.0, 5.0, 5.0, 5.0, 5.0]);
        let all = |v: f32| f32s(&[3], &[v; 3]);
        let e = Eval::new(OpKind::Penalize).on([x]).state(decl, store);
        let y = e.on([i32s(&[3], &[1, 1, -1]), all(2.0), all(0.25), all(0.5)]).values();
        assert_eq!(y, [1.0, 1.0 - 1.0 - 0.25, 2.0, 2.0, -2.0, -2.0 - 1.0 - 0.25, -1.0, -1.0, 5.0, 5.0, 5.0, 5.0]);
    }
}
