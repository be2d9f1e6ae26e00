//! Evaluation of rotary positions, the paged cache and attention.

use super::*;
use crate::rope::frequencies;

/// `rope_table`.
pub fn rope_table(cx: &mut EvalCx) -> Result<Vec<Datum>, EvalError> {
    let dim = cx.attrs.int("dim").max(0) as usize;
    let rows = cx.sizes_of(cx.attrs.dims("dims"))?.iter().product::<usize>();
    if rows.saturating_mul(dim) > MAX_ELEMENTS || !dim.is_multiple_of(2) {
        return Err(EvalError::Size { op: cx.op(), dims: dims_text(&[rows, dim]) });
    }
    let freqs = frequencies(cx.attrs);
    let scale = cx.attrs.float("scale") as f32;
    let table = par::rows(rows, dim, dim * 32, |p, row| {
        let (cos, sin) = row.split_at_mut(dim / 2);
        for (j, f) in freqs.iter().enumerate() {
            // The angle is the f32 product that references take; its sine is then exact to the last bit.
            let angle = f64::from(p as f32 * f);
            (cos[j], sin[j]) = (angle.cos() as f32 * scale, angle.sin() as f32 * scale);
        }
    });
    Ok(vec![cx.float_result(0, vec![rows, dim], table)])
}

/// `rope`.
pub fn rope(cx: &mut EvalCx) -> Result<Vec<Datum>, EvalError> {
    let (x, shape) = cx.floats(0)?;
    let (table, table_shape) = cx.floats(2)?;
    let ([t, width], [rows, d]) = (shape, table_shape) else {
        return Err(cx.bad(0, "[T, heads * D] with a table [C, D]"));
    };
    let (t, width, rows, d) = (*t, *width, *rows, *d);
    let pos = cx.ints_of(1, &[t])?;
    if d == 0 || d % 2 != 0 || width % d != 0 || rows == 0 {
        return Err(cx.bad(2, format!("[C, D] with at least one row and an even D that divides {width}")));
    }
    let y = par::rows(t, width, 4 * width, |r, out| {
        let p = (pos[r].max(0) as usize).min(rows - 1);
        let (cos, sin) = table[p * d..(p + 1) * d].split_at(d / 2);
        for (x, y) in x[r * width..(r + 1) * width].chunks(d).zip(out.chunks_mut(d)) {
            for j in 0..d / 2 {
                let (a, b) = (x[j], x[j + d / 2]);
                y[j] = a * cos[j] - b * sin[j];
                y[j + d / 2] = b * cos[j] + a * sin[j];
            }
        }
    });
    Ok(vec![cx.float_result(0, vec![t, width], y)])
}

/// Where the tokens of a step are: operands `pos`, `seq` and `pages`, from operand `at` on.
struct Step<'a> {
    pos: &'a [i32],
    seq: &'a [i32],
    pages: &'a [i32],
    per_seq: usize,
}

impl<'a> Step<'a> {
    fn read(cx: &EvalCx<'a>, at: usize, t: usize) -> Result<Step<'a>, EvalError> {
        let (pages, shape) = cx.ints(at + 2)?;
        match *shape {
            [_, per_seq] => Ok(Step { pos: cx.ints_of(at, &[t])?, seq: cx.ints_of(at + 1, &[t])?, pages, per_seq }),
            _ => Err(cx.bad(at + 2, "i32 [S, P]")),
        }
    }

    /// The page table row of a token; `None` for padding and for sequences that are not there.
    fn table(&self, token: usize) -> Option<&'a [i32]> {
        let s = usize::try_from(self.seq[token]).ok()?;
        self.pages.get(s.checked_mul(self.per_seq)?..(s + 1).checked_mul(self.per_seq)?)
    }
}

/// `kv_write`.
pub fn kv_write(cx: &mut EvalCx) -> Result<Vec<Datum>, EvalError> {
    let round = cx.rounding == Rounding::Typed;
    let (k, shape) = cx.floats(1)?;
    let [t, width] = *shape else {
        return Err(cx.bad(1, "[T, heads * D]"));
    };
    let v = cx.floats_of(2, &[t, width])?;
    let step = Step::read(cx, 3, t)?;
    let wrong = cx.bad(1, "rows of the cache's heads * head_dim");
    let (handle, kv) = cx.kv(0)?;
    if width != kv.heads() * kv.head_dim() {
        return Err(wrong);
    }
    let page = kv.page().max(1);
    for token in 0..t {
        let Some((table, p)) = step.table(token).zip(usize::try_from(step.pos[token]).ok()) else { continue };
        if let Some(id) = table.get(p / page) {
            let row = token * width..(token + 1) * width;
            kv.write(*id, p % page, &k[row.clone()], &v[row], round);
        }
    }
    Ok(vec![Datum::State(handle)])
}

/// `attention`.
pub fn attention(cx: &mut EvalCx) -> Result<Vec<Datum>, EvalError> {
    let (q, shape) = cx.floats(0)?;
    let [t, width] = *shape else {
        return Err(cx.bad(0, "[T, heads * D]"));
    };
    let step = Step::read(cx, 2, t)?;
    let sinks = match cx.operands.len() > 5 {
        true => Some(cx.floats(5)?.0),
        false => None,
    };
    let (scale, window) = (cx.attrs.float("scale") as f32, cx.attrs.int("window").max(0) as usize);
    let wrong = [cx.bad(0, "rows of whole groups of the cache's heads"), cx.bad(5, "one sink a head")];
    let (_, kv) = cx.kv(1)?;
    let (d, kv_heads) = (kv.head_dim(), kv.heads());
    let [bad_q, bad_sinks] = wrong;
    if d == 0 || kv_heads == 0 || !width.is_multiple_of(d * kv_heads) {
        return Err(bad_q);
    }
    let (heads, group) = (width / d, width / d / kv_heads);
    if sinks.as_ref().is_some_and(|s| s.len() != heads) {
        return Err(bad_sinks);
    }
    let kv = &*kv;
    let longest = step.pos.iter().map(|p| (*p).max(0) as usize + 1).max().unwrap_or(0);
    let visible = if window > 0 { longest.min(window) } else { longest };
    let y = par::rows(t * heads, d, visible.saturating_mul(2 * d), |row, out| {
        let (token, head) = (row / heads, row % heads);
        let keys = Keys::of(&step, token, kv.page(), window);
        let q = &q[row * d..(row + 1) * d];
        attend(q, kv, head / group, &keys, scale, sinks.as_ref().map(|s| s[head]), out);
    });
    Ok(vec![cx.float_result(0, vec![t, width], y)])
}

/// The keys a token sees, as runs within pages: (page, first offset, count), in order of position. Pages that are not there are left out.
struct Keys(Vec<(i32, usize, usize)>);

impl Keys {
    fn of(step: &Step, token: usize, page: usize, window: usize) -> Keys {
        let mut runs = vec![];
        if let (Some(table), Ok(last)) = (step.table(token), usize::try_from(step.pos[token]))
            && page > 0
        {
            let first = if window > 0 { (last + 1).saturating_sub(window) } else { 0 };
            let mut p = first;
            while p <= last {
                let Some(id) = table.get(p / page) else { break };
                let end = (p / page * page + page).min(last + 1);
                runs.push((*id, p % page, end - p));
                p = end;
            }
        }
        Keys(runs)
    }
}

/// One query against its keys: scores, their softmax with the sink, and the weighted sum of values, each in order of position.
fn attend(q: &[f32], kv: &KvStore, kv_head: usize, keys: &Keys, scale: f32, sink: Option<f32>, out: &mut [f32]) {
    let d = q.len();
    let mut scores = Vec::with_capacity(keys.0.iter().map(|(_, _, n)| n).sum());
    for (page, from, n) in &keys.0 {
        if let Some(slab) = kv.keys(*page, kv_head) {
            let at = scores.len();
            scores.resize(at + n, 0.0);
            simd::dot_panel(q, &[0], &slab[from * d..(from + n) * d], d, &mut scores[at..]);
        }
    }
    if scores.is_empty() {
        return;
    }
    scores.iter_mut().for_each(|z| *z *= scale);
    let top = scores.iter().copied().fold(sink.unwrap_or(f32::NEG_INFINITY), elementwise::greater);
    scores.iter_mut().for_each(|z| *z = (*z - top).exp());
    let total = simd::sum(&scores) + sink.map_or(0.0, |s| (s - top).exp());
    let mut rest = scores.as_slice();
    for (page, from, n) in &keys.0 {
        if let Some(slab) = kv.values(*page, kv_head) {
            let (now, later) = rest.split_at(*n);
            rest = later;
            simd::weighted_sum(now, &slab[from * d..(from + n) * d], out);
        }
    }
    out.iter_mut().for_each(|y| *y /= total);
}

#[cfg(test)]
mod tests {
    use crate::interp::testing::*;
    use crate::module::StateDecl;

    fn yarn(extra: &[(&'static str, Attr)], rows: i64) -> Tensor {
        let mut attrs = Attrs::from([
            ("dim", Attr::Int(64)),
            ("dims", dims(&[rows])),
            ("factor", Attr::Float(32.0)),
            ("theta", Attr::Float(150000.0)),
        ]);
        extra.iter().for_each(|(k, v)| attrs.set(k, v.clone()));
        let mut e = Eval::new(OpKind::RopeTable);
        e.set_attrs(attrs);
        e.tensor()
    }

    #[test]
    fn yarn_table_check_values() {
        let scale = [("scale", Attr::Float(1.3465735902799727))];
        let t = yarn(&scale, 1001);
        let row = &t.to_f32()[1000 * 64..];
        close(&[row[12], row[44], row[17], row[49]], &[1.1740467, 0.6594504, 1.3353297, 0.1736522], 1e-6);
        close(&t.to_f32()[..64], &[[1.3465736; 32], [0.0; 32]].concat(), 1e-7);
        // Truncated bounds change pairs 9 to 17 only; pair 17 by 76 percent.
        let (a, b) = (yarn(&[], 2), yarn(&[("truncate", Attr::Bool(true))], 2));
        let sines = |t: &Tensor| t.to_f32()[64 + 32..].to_vec();
        let (a, b) = (sines(&a), sines(&b));
        assert_eq!(a[..9], b[..9]);
        assert_eq!(a[18..], b[18..]);
        assert!((b[17] / a[17] - 1.763).abs() < 1e-3);
    }

    #[test]
    fn plain_table() {
        let attrs = [("dim", Attr::Int(4)), ("dims", dims(&[3])), ("theta", Attr::Float(100.0))];
        let t = Eval::new(OpKind::RopeTable).attrs(attrs).values();
        close(&t[8..], &[2f32.cos(), 0.2f32.cos(), 2f32.sin(), 0.2f32.sin()], 1e-6);
    }

    #[test]
    fn rope_rotates_halves_and_clamps_positions() {
        let table = f32s(&[2, 4], &[1.0, 1.0, 0.0, 0.0, 0.0, 0.6, 1.0, 0.8]);
        let x = f32s(&[4, 8], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0].repeat(4));
        let y = Eval::new(OpKind::Rope).on([x.clone(), i32s(&[4], &[0, 1, 9, -1]), table]).values();
        assert_eq!(y[..8], x.to_f32()[..8]);
        close(&y[8..16], &[-3.0, 1.2 - 3.2, 1.0, 2.4 + 1.6, -7.0, 3.6 - 6.4, 5.0, 4.8 + 4.8], 1e-6);
        assert_eq!((&y[16..24], &y[24..]), (&y[8..16], &y[..8]));
    }

    const PAGE: usize = 16;

    fn decl(heads: i64, d: i64, window: Option<i64>) -> StateDecl {
        StateDecl::Kv { name: "kv".into(), heads, head_dim: d, page: PAGE as i64, window, dtype: DType::BF16 }
    }

    /// Sequences of a test: keys and values of `len` tokens each in pages taken from the back of the cache.
    struct World {
        decl: StateDecl,
        store: StateStore,
        pages: Tensor,
        k: Vec<Vec<f32>>,
        v: Vec<Vec<f32>>,
    }

    fn world(lens: &[usize], heads: usize, d: usize) -> World {
        let decl = decl(heads as i64, d as i64, None);
        let per_seq = lens.iter().max().unwrap().div_ceil(PAGE);
        let total = per_seq * lens.len();
        let mut store = StateStore::for_decl(&decl, total);
        let ids: Vec<i32> = (0..total as i32).rev().collect();
        let pages = i32s(&[lens.len(), per_seq], &ids);
        let (mut k, mut v) = (vec![], vec![]);
        for (s, len) in lens.iter().enumerate() {
            let (ks, vs) = (noise(len * heads * d, s as u32 + 1), noise(len * heads * d, s as u32 + 50));
            let step = [i32s(&[*len], &(0..*len as i32).collect::<Vec<_>>()), i32s(&[*len], &vec![s as i32; *len])];
            let [pos, seq] = step;
            let shape = [*len, heads * d];
            let mut e = Eval::new(OpKind::KvWrite).state(decl.clone(), store).on([
                f32s(&shape, &ks),
                f32s(&shape, &vs),
                pos,
                seq,
                pages.clone(),
            ]);
            e.all().unwrap();
            store = e.states.pop().unwrap();
            k.push(ks);
            v.push(vs);
        }
        World { decl, store, pages, k, v }
    }

    fn attend(w: &World, q: &Tensor, pos: &[i32], seq: &[i32], window: i64, sinks: Option<&[f32]>) -> Vec<f32> {
        let attrs = [("scale", Attr::Float(0.125)), ("window", Attr::Int(window))];
        let n = pos.len();
        let e = Eval::new(OpKind::Attention).attrs(attrs).on([q.clone()]).state(w.decl.clone(), w.store.clone());
        let e = e.on([i32s(&[n], pos), i32s(&[n], seq), w.pages.clone()]);
        match sinks {
            Some(s) => e.on([f32s(&[s.len()], s)]).values(),
            None => e.values(),
        }
    }

    /// The definition, in f64.
    #[expect(clippy::too_many_arguments, reason = "the oracle takes everything it uses")]
    fn oracle(
        w: &World,
        q: &[f32],
        s: usize,
        pos: usize,
        window: usize,
        sinks: Option<&[f32]>,
        kv_heads: usize,
        d: usize,
    ) -> Vec<f32> {
        let heads = q.len() / d;
        let first = if window > 0 { (pos + 1).saturating_sub(window) } else { 0 };
        let mut out = vec![];
        for h in 0..heads {
            let g = h / (heads / kv_heads);
            let at = |j: usize, i: usize| (j * kv_heads + g) * d + i;
            let z: Vec<f64> = (first..=pos)
                .map(|j| 0.125 * (0..d).map(|i| f64::from(q[h * d + i]) * f64::from(w.k[s][at(j, i)])).sum::<f64>())
                .collect();
            let total = z.iter().map(|z| z.exp()).sum::<f64>() + sinks.map_or(0.0, |s| f64::from(s[h]).exp());
            for i in 0..d {
                let y = (first..=pos).zip(&z).map(|(j, z)| z.exp() * f64::from(w.v[s][at(j, i)])).sum::<f64>();
                out.push((y / total) as f32);
            }
        }
        out
    }

    #[test]
    fn attention_follows_its_definition_at_the_window_edges() {
        let (heads, kv_heads, d) = (4, 2, 8);
        let w = world(&[257, 3], kv_heads, d);
        let q = f32s(&[1, heads * d], &noise(heads * d, 9).iter().map(|x| x * 8.0).collect::<Vec<_>>());
        let sinks = [-10.0, 0.0, 10.0, 1.0];
        for (s, pos) in [(0, 0), (0, 126), (0, 127), (0, 128), (0, 129), (0, 256), (1, 2)] {
            for window in [0, 128, 1] {
                for sinks in [None, Some(&sinks[..])] {
                    let got = attend(&w, &q, &[pos as i32], &[s as i32], window as i64, sinks);
                    close(&got, &oracle(&w, &q.to_f32(), s, pos, window, sinks, kv_heads, d), 2e-6);
                }
            }
        }
    }

    #[test]
    fn padding_and_missing_pages_give_zero() {
        let w = world(&[20, 20], 1, 8);
        let q = f32s(&[5, 8], &noise(40, 1));
        let y = attend(&w, &q, &[3, 3, -1, 3, 19], &[-1, 2, 0, 0, 1], 0, Some(&[0.5]));
        assert!(y[..24].iter().all(|v| *v == 0.0));
        assert!(y[24..].iter().all(|v| *v != 0.0));
        // A position beyond the page table sees the keys that are there.
        let far = attend(&w, &q, &[31, 1000, 0, 0, 0], &[1; 5], 0, None);
        assert!(far.iter().all(|v| v.is_finite()));
        let gone = World { pages: i32s(&[2, 2], &[-1, 7, 99, -5]), ..w };
        assert!(attend(&gone, &q, &[5; 5], &[0, 1, 0, 1, 0], 0, None).iter().all(|v| *v == 0.0));
    }

    #[test]
    fn a_row_is_the_same_alone_and_in_a_batch_and_on_any_pool() {
        let (heads, d) = (8, 64);
        let w = world(&[200, 37, 130], 2, d);
        let pos = [199, 36, 129, 0, 63, 64];
        let seq = [0, 1, 2, 0, 2, 2];
        let q = noise(6 * heads * d, 3);
        let sinks = noise(heads, 4);
        let run = || attend(&w, &f32s(&[6, heads * d], &q), &pos, &seq, 128, Some(&sinks));
        let all = same_on_any_pool(run);
        for r in 0..6 {
            let row = r * heads * d..(r + 1) * heads * d;
            let one = f32s(&[1, heads * d], &q[row.clone()]);
            assert_eq!(bits(&attend(&w, &one, &pos[r..=r], &seq[r..=r], 128, Some(&sinks))), bits(&all[row]));
        }
    }

    #[test]
    fn the_cache_rounds_to_its_type_only_when_asked() {
        for (rounding, want) in [(Rounding::Exact, 1.001), (Rounding::Typed, 1.0)] {
            let args = [
                f32s(&[1, 2], &[1.001; 2]),
                f32s(&[1, 2], &[1.001; 2]),
                i32s(&[1], &[1]),
                i32s(&[1], &[0]),
                i32s(&[1, 1], &[0]),
            ];
            let d = decl(1, 2, None);
            let store = StateStore::for_decl(&d, 1);
            let mut e = Eval::new(OpKind::KvWrite).rounding(rounding).state(d, store).on(args);
            e.all().unwrap();
            let StateStore::Kv(kv) = &e.states[0] else { panic!() };
            assert_eq!(kv.keys(0, 0).unwrap()[2..4], [want; 2]);
        }
    }

    #[test]
    fn writes_outside_are_skipped() {
        let n = 4;
        let args = [
            f32s(&[n, 2], &[1.0; 8]),
            f32s(&[n, 2], &[1.0; 8]),
            i32s(&[n], &[0, -1, 16, 0]),
            i32s(&[n], &[-1, 0, 0, 5]),
            i32s(&[2, 1], &[0, -1]),
        ];
        let d = decl(1, 2, None);
        let store = StateStore::for_decl(&d, 1);
        let mut e = Eval::new(OpKind::KvWrite).state(d, store).on(args);
        e.all().unwrap();
        let StateStore::Kv(kv) = &e.states[0] else { panic!() };
        assert!(kv.keys(0, 0).unwrap().iter().all(|v| *v == 0.0));
    }
}
