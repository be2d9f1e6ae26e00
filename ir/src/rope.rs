//! Frequencies of rotary positions. They depend on attributes alone, so the interpreter and generated code take the same numbers.

use std::f64::consts::PI;

use crate::attr::Attrs;

/// Angles per position of the `dim / 2` pairs of a [`RopeTable`](crate::OpKind::RopeTable) with these (complete) attributes, in f32 and in the
/// order of operations of the reference implementations, so that a table entry is within an ulp of theirs even at large positions. The op
/// table has the formulas.
pub fn frequencies(attrs: &Attrs) -> Vec<f32> {
    let (theta, factor, dim) = (attrs.float("theta"), attrs.float("factor"), attrs.int("dim").max(0) as usize);
    let period = |j: usize| theta.powf(f64::from((2 * j) as f32 / dim as f32)) as f32;
    if factor <= 1.0 {
        return (0..dim / 2).map(|j| 1.0 / period(j)).collect();
    }
    let (fast, slow) = (attrs.float("beta_fast"), attrs.float("beta_slow"));
    let (original, factor) = (attrs.int("original"), factor as f32);
    if attrs.word("ramp") == "rotations" {
        let blend = |j: usize| {
            let plain = 1.0 / period(j);
            let rotations = original as f32 / ((2.0 * PI) as f32 / plain);
            let keep = ((rotations - slow as f32) / (fast - slow) as f32).clamp(0.0, 1.0);
            (1.0 - keep) * plain / factor + keep * plain
        };
        return (0..dim / 2).map(blend).collect();
    }
    let bound = |beta: f64| dim as f64 * (original as f64 / (beta * 2.0 * PI)).ln() / (2.0 * theta.ln());
    let (mut low, mut high) = (bound(fast), bound(slow));
    if attrs.bool("truncate") {
        (low, high) = (low.floor(), high.ceil());
    }
    (low, high) = (low.max(0.0), high.min(dim as f64 - 1.0));
    if low == high {
        high += 0.001; // a step, not a division by zero
    }
    let blend = |j: usize| {
        let keep = 1.0 - ((j as f32 - low as f32) / (high - low) as f32).clamp(0.0, 1.0);
        1.0 / (factor * period(j)) * (1.0 - keep) + 1.0 / period(j) * keep
    };
    (0..dim / 2).map(blend).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attr::Attr;
    use crate::op::OpKind;

    fn attrs<const N: usize>(given: [(&'static str, Attr); N]) -> Attrs {
        let mut attrs = Attrs::from(given);
        attrs.set("dims", Attr::Dims(vec![]));
        OpKind::RopeTable.complete_attrs(attrs).unwrap()
    }

    #[test]
    #[expect(clippy::excessive_precision, reason = "as the specification prints them")]
    fn yarn_frequencies_are_those_of_the_specification() {
        #[rustfmt::skip]
        let want = [
            1.0, 6.890442967e-01, 4.747820497e-01, 3.271458745e-01, 2.254180014e-01, 1.553229839e-01, 1.070244163e-01, 7.374456525e-02,
            5.081327260e-02, 3.170569614e-02, 1.933500171e-02, 1.159204915e-02, 6.794959307e-03, 3.860359080e-03, 2.093792660e-03, 1.052602194e-03,
            4.564839182e-04, 1.293186942e-04, 3.830881178e-05, 2.639646846e-05, 1.818833698e-05, 1.253256960e-05, 8.635495760e-06, 5.950239483e-06,
            4.099978469e-06, 2.825066758e-06, 1.946596285e-06, 1.341290954e-06, 9.242089618e-07, 6.368209142e-07, 4.387978549e-07, 3.023511397e-07f32,
        ];
        let attrs = attrs([("dim", Attr::Int(64)), ("factor", Attr::Float(32.0)), ("theta", Attr::Float(150000.0))]);
        for (j, (got, want)) in frequencies(&attrs).iter().zip(want).enumerate() {
            assert!((got - want).abs() <= 1.2e-7 * want, "pair {j}: {got:e}, expected {want:e}");
        }
    }

    /// Llama 3.1: 8 times 8192, low and high frequency factors 1 and 4, checked against its formula in f64.
    #[test]
    fn a_ramp_over_rotations_is_that_of_llama_3() {
        let got = frequencies(&attrs([
            ("dim", Attr::Int(128)),
            ("theta", Attr::Float(500000.0)),
            ("factor", Attr::Float(8.0)),
            ("original", Attr::Int(8192)),
            ("beta_fast", Attr::Float(4.0)),
            ("beta_slow", Attr::Float(1.0)),
            ("ramp", Attr::from("rotations")),
        ]));
        let (mut kept, mut divided) = (0, 0);
        for (j, got) in got.iter().enumerate() {
            let f = 500000f64.powf(-(j as f64) / 64.0);
            let wavelength = 2.0 * PI / f;
            let want = if wavelength < 8192.0 / 4.0 {
                kept += 1;
                f
            } else if wavelength > 8192.0 {
                divided += 1;
                f / 8.0
            } else {
                let smooth = (8192.0 / wavelength - 1.0) / 3.0;
                (1.0 - smooth) * f / 8.0 + smooth * f
            };
            assert!((f64::from(*got) - want).abs() <= 1e-6 * want, "pair {j}: {got:e}, expected {want:e}");
        }
        assert_eq!((kept, divided), (29, 29));
    }
}
