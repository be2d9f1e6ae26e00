//! Evaluation of views and `concat`. A view that does not change the order of elements shares storage; others copy.
//!
//! MXFP4 storage is moved in whole rows. A dequantised tensor that is still stored as MXFP4 is decoded only if its last dim changes.

use std::sync::Arc;

use super::*;
use crate::dtype::MX_BLOCK;

/// Copies elements by strides: dims of the result, source stride of each, first element.
struct Gather {
    dims: Vec<usize>,
    strides: Vec<usize>,
    offset: usize,
}

impl Gather {
    /// The elements of `src`, counted in units of `unit`.
    fn copy<T: Copy>(&self, src: &[T], unit: usize) -> Vec<T> {
        let total = self.dims.iter().product::<usize>() * unit;
        let mut out = Vec::with_capacity(total);
        if total == 0 {
            return out;
        }
        // Inner dims that are contiguous in the source are copied at once.
        let (mut outer, mut run) = (self.dims.len(), 1);
        while outer > 0 && self.strides[outer - 1] == run {
            run *= self.dims[outer - 1];
            outer -= 1;
        }
        let mut index = vec![0; outer];
        let mut at = self.offset;
        loop {
            out.extend_from_slice(&src[at * unit..(at + run) * unit]);
            let mut axis = outer;
            loop {
                if axis == 0 {
                    return out;
                }
                axis -= 1;
                at += self.strides[axis];
                index[axis] += 1;
                if index[axis] < self.dims[axis] {
                    break;
                }
                at -= index[axis] * self.strides[axis];
                index[axis] = 0;
            }
        }
    }

    /// The same of a tensor. `last` is true if the last dim is copied whole and in order.
    fn apply(mut self, x: &Tensor, last: bool) -> Tensor {
        let shape = self.dims.clone();
        let data = match &x.data {
            Data::Mxfp4 { codes, scales } if last && !self.dims.is_empty() => {
                let width = x.width().max(1);
                self.dims.pop();
                self.strides.pop();
                self.strides.iter_mut().for_each(|s| *s /= width);
                self.offset /= width;
                Data::Mxfp4 {
                    codes: Arc::new(self.copy(codes, width / 2)),
                    scales: Arc::new(self.copy(scales, width / MX_BLOCK as usize)),
                }
            }
            Data::Mxfp4 { .. } => Data::F32(Arc::new(self.copy(&x.to_f32(), 1))),
            Data::F32(v) => Data::F32(Arc::new(self.copy(v, 1))),
            Data::BF16(v) => Data::BF16(Arc::new(self.copy(v, 1))),
            Data::I32(v) => Data::I32(Arc::new(self.copy(v, 1))),
            Data::U8(v) => Data::U8(Arc::new(self.copy(v, 1))),
        };
        Tensor { dtype: x.dtype, shape, data }
    }
}

/// Strides of a row-major shape.
fn strides(shape: &[usize]) -> Vec<usize> {
    let mut out = vec![1; shape.len()];
    for i in (1..shape.len()).rev() {
        out[i - 1] = out[i] * shape[i];
    }
    out
}

/// `reshape`.
pub fn reshape(cx: &mut EvalCx) -> Result<Vec<Datum>, EvalError> {
    let x = cx.tensor(0)?;
    let shape = cx.sizes_of(cx.attrs.dims("dims"))?;
    if shape.iter().product::<usize>() != x.elements() {
        return Err(cx.bad(0, format!("as many elements as {}", dims_text(&shape))));
    }
    let packed = matches!(x.data, Data::Mxfp4 { .. });
    let x = match packed && shape.last() != x.shape.last() {
        true if x.dtype == DType::Mxfp4 => return Err(cx.bad(0, "mxfp4 rows that keep their length")),
        true => x.plain(),
        false => x.clone(),
    };
    Ok(vec![Tensor { shape, ..x }.into()])
}

/// `split`.
pub fn split(cx: &mut EvalCx) -> Result<Vec<Datum>, EvalError> {
    let x = cx.tensor(0)?;
    let sizes: Vec<usize> = cx.attrs.ints("sizes").iter().filter_map(|n| usize::try_from(*n).ok()).collect();
    if x.shape.last() != Some(&sizes.iter().sum()) || x.dtype == DType::Mxfp4 {
        return Err(cx.bad(0, format!("rows that can be cut into {sizes:?}")));
    }
    let strides = strides(&x.shape);
    let mut offset = 0;
    let mut out = Vec::with_capacity(sizes.len());
    for n in sizes {
        let mut dims = x.shape.clone();
        if let Some(last) = dims.last_mut() {
            *last = n;
        }
        out.push(Gather { dims, strides: strides.clone(), offset }.apply(x, false).into());
        offset += n;
    }
    Ok(out)
}

/// `permute`.
pub fn permute(cx: &mut EvalCx) -> Result<Vec<Datum>, EvalError> {
    let x = cx.tensor(0)?;
    let perm: Vec<usize> = cx.attrs.ints("perm").iter().filter_map(|p| usize::try_from(*p).ok()).collect();
    let mut sorted = perm.clone();
    sorted.sort_unstable();
    let last = perm.last().is_none_or(|p| *p + 1 == perm.len());
    if sorted != (0..x.shape.len()).collect::<Vec<_>>() || x.dtype == DType::Mxfp4 && !last {
        return Err(cx.bad(0, format!("dims that {perm:?} permutes")));
    }
    let from = strides(&x.shape);
    let pick = |of: &[usize]| perm.iter().map(|p| of[*p]).collect::<Vec<_>>();
    let gather = Gather { dims: pick(&x.shape), strides: pick(&from), offset: 0 };
    Ok(vec![gather.apply(x, last).into()])
}

/// `slice`.
pub fn slice(cx: &mut EvalCx) -> Result<Vec<Datum>, EvalError> {
    let x = cx.tensor(0)?;
    let [axis, start, len] = ["axis", "start", "len"].map(|n| usize::try_from(cx.attrs.int(n)).unwrap_or(usize::MAX));
    let fits = x.shape.get(axis).is_some_and(|size| start.saturating_add(len) <= *size);
    let last = axis + 1 != x.shape.len();
    if !fits || x.dtype == DType::Mxfp4 && !last {
        return Err(cx.bad(0, format!("elements {start}..{} on axis {axis}", start.saturating_add(len))));
    }
    let strides = strides(&x.shape);
    let mut dims = x.shape.clone();
    dims[axis] = len;
    let offset = start * strides[axis];
    Ok(vec![Gather { dims, strides, offset }.apply(x, last).into()])
}

/// `broadcast`.
pub fn broadcast(cx: &mut EvalCx) -> Result<Vec<Datum>, EvalError> {
    let x = cx.tensor(0)?;
    let shape = cx.sizes_of(cx.attrs.dims("dims"))?;
    let fits = shape.len() >= x.shape.len()
        && x.shape.iter().rev().zip(shape.iter().rev()).all(|(have, want)| have == want || *have == 1);
    if !fits || x.dtype == DType::Mxfp4 {
        return Err(cx.bad(0, format!("dims that broadcast to {}", dims_text(&shape))));
    }
    let fresh = shape.len() - x.shape.len();
    let from = strides(&x.shape);
    let step = |i: usize| if i < fresh || x.shape[i - fresh] != shape[i] { 0 } else { from[i - fresh] };
    let strides = (0..shape.len()).map(step).collect();
    let last = shape.last() == x.shape.last() && !x.shape.is_empty();
    Ok(vec![Gather { dims: shape, strides, offset: 0 }.apply(x, last).into()])
}

/// Joins parts: for each of `outer` steps, `lens[i]` elements of each part in turn.
fn join<T: Copy>(parts: &[&[T]], lens: &[usize], outer: usize) -> Vec<T> {
    let mut out = Vec::with_capacity(parts.iter().map(|p| p.len()).sum());
    for step in 0..outer {
        for (part, len) in parts.iter().zip(lens) {
            out.extend_from_slice(&part[step * len..(step + 1) * len]);
        }
    }
    out
}

/// `concat`.
pub fn concat(cx: &mut EvalCx) -> Result<Vec<Datum>, EvalError> {
    let xs = (0..cx.operands.len()).map(|i| cx.tensor(i)).collect::<Result<Vec<_>, _>>()?;
    let first = cx.tensor(0)?;
    let axis = usize::try_from(cx.attrs.int("axis")).ok().filter(|a| *a < first.shape.len());
    let Some(axis) = axis else {
        return Err(cx.bad(0, format!("a dim {}", cx.attrs.int("axis"))));
    };
    for (i, x) in xs.iter().enumerate() {
        let alike = x.dtype == first.dtype
            && x.shape.len() == first.shape.len()
            && (0..x.shape.len()).all(|d| d == axis || x.shape[d] == first.shape[d]);
        if !alike || x.dtype == DType::Mxfp4 && axis + 1 == x.shape.len() {
            return Err(cx.bad(i, format!("{first} except along axis {axis}")));
        }
    }
    let mut shape = first.shape.clone();
    shape[axis] = xs.iter().map(|x| x.shape[axis]).sum();
    let outer = first.shape[..axis].iter().product();
    let lens: Vec<usize> = xs.iter().map(|x| x.shape[axis..].iter().product()).collect();
    macro_rules! join_as {
        ($get:expr) => {{
            let parts: Option<Vec<_>> = xs.iter().map($get).collect();
            parts.map(|parts| join(&parts, &lens, outer))
        }};
    }
    let data = if let Some(v) = join_as!(|x| if let Data::BF16(v) = &x.data { Some(v.as_slice()) } else { None }) {
        Data::BF16(Arc::new(v))
    } else if let Some(v) = join_as!(|x| x.as_i32()) {
        Data::I32(Arc::new(v))
    } else if let Some(v) = join_as!(|x| x.as_u8()) {
        Data::U8(Arc::new(v))
    } else if first.dtype == DType::Mxfp4 {
        let part = |unit: usize, pick: fn(&Data) -> &[u8]| {
            let parts: Vec<_> = xs.iter().map(|x| pick(&x.data)).collect();
            let lens: Vec<_> = lens.iter().map(|n| n / unit).collect();
            Arc::new(join(&parts, &lens, outer))
        };
        let codes = part(2, |d| if let Data::Mxfp4 { codes, .. } = d { codes } else { &[] });
        let scales = part(MX_BLOCK as usize, |d| if let Data::Mxfp4 { scales, .. } = d { scales } else { &[] });
        Data::Mxfp4 { codes, scales }
    } else {
        let parts: Vec<_> = xs.iter().map(|x| x.to_f32()).collect();
        let parts: Vec<&[f32]> = parts.iter().map(|p| &**p).collect();
        Data::F32(Arc::new(join(&parts, &lens, outer)))
    };
    Ok(vec![Tensor { dtype: first.dtype, shape, data }.into()])
}

#[cfg(test)]
mod tests {
    use crate::interp::testing::*;

    fn counting(shape: &[usize]) -> Tensor {
        let n: usize = shape.iter().product();
        i32s(shape, &(0..n as i32).collect::<Vec<_>>())
    }

    fn ints(e: Eval) -> Vec<i32> {
        e.tensor().as_i32().unwrap().to_vec()
    }

    /// Two rows of 64 codes with distinct nibbles and scales.
    fn packed() -> Tensor {
        let codes = (0..64).map(|i| (i % 16) as u8 | (((i + 3) % 16) as u8) << 4).collect();
        Tensor::mxfp4(&[2, 64], codes, vec![126, 127, 128, 129]).unwrap()
    }

    #[test]
    fn reshape_shares_and_checks() {
        let y = Eval::new(OpKind::Reshape).attrs([("dims", dims(&[3, 2]))]).on([counting(&[2, 3])]).tensor();
        assert_eq!((y.shape.as_slice(), y.as_i32().unwrap()), ([3, 2].as_slice(), [0, 1, 2, 3, 4, 5].as_slice()));
    }

    #[test]
    fn permute_moves_elements() {
        let perm = |p: &[i64], x: Tensor| Eval::new(OpKind::Permute).attrs([("perm", Attr::Ints(p.to_vec()))]).on([x]);
        assert_eq!(ints(perm(&[1, 0], counting(&[2, 3]))), [0, 3, 1, 4, 2, 5]);
        assert_eq!(ints(perm(&[1, 0, 2], counting(&[2, 2, 2]))), [0, 1, 4, 5, 2, 3, 6, 7]);
        assert_eq!(ints(perm(&[2, 0, 1], counting(&[1, 2, 3]))), [0, 3, 1, 4, 2, 5]);
        assert_eq!(ints(perm(&[], i32s(&[], &[7]))), [7]);
        assert!(ints(perm(&[1, 0], counting(&[0, 3]))).is_empty());
    }

    #[test]
    fn slice_takes_a_range() {
        let run = |axis: i64, start: i64, len: i64| {
            let attrs = [("axis", Attr::Int(axis)), ("start", Attr::Int(start)), ("len", Attr::Int(len))];
            ints(Eval::new(OpKind::Slice).attrs(attrs).on([counting(&[3, 4])]))
        };
        assert_eq!(run(0, 1, 2), [4, 5, 6, 7, 8, 9, 10, 11]);
        assert_eq!(run(1, 1, 2), [1, 2, 5, 6, 9, 10]);
    }

    #[test]
    fn broadcast_repeats() {
        let run = |to: &[i64], x: Tensor| ints(Eval::new(OpKind::Broadcast).attrs([("dims", dims(to))]).on([x]));
        assert_eq!(run(&[2, 3], i32s(&[2, 1], &[1, 2])), [1, 1, 1, 2, 2, 2]);
        assert_eq!(run(&[2, 2], i32s(&[2], &[1, 2])), [1, 2, 1, 2]);
        assert_eq!(run(&[2, 1, 2], i32s(&[1, 2], &[1, 2])), [1, 2, 1, 2]);
        assert_eq!(run(&[3], i32s(&[], &[5])), [5, 5, 5]);
        assert_eq!(run(&[1, 1], i32s(&[1], &[5])), [5]);
    }

    #[test]
    fn concat_joins() {
        let run =
            |axis: i64, a: Tensor, b: Tensor| Eval::new(OpKind::Concat).attrs([("axis", Attr::Int(axis))]).on([a, b]);
        assert_eq!(ints(run(0, counting(&[1, 2]), counting(&[2, 2]))), [0, 1, 0, 1, 2, 3]);
        assert_eq!(ints(run(1, counting(&[2, 1]), counting(&[2, 2]))), [0, 0, 1, 1, 2, 3]);
        let mixed = run(0, f32s(&[1], &[1.0]), f32s(&[1], &[2.0])).values();
        assert_eq!(mixed, [1.0, 2.0]);
        assert!(matches!(run(0, bf16s(&[1], &[1.0]), bf16s(&[1], &[2.0])).tensor().data, Data::BF16(_)));
    }

    #[test]
    fn mxfp4_moves_whole_rows() {
        let x = packed();
        let (a, b) = (x.to_f32()[..64].to_vec(), x.to_f32()[64..].to_vec());
        let row =
            Eval::new(OpKind::Slice).attrs([("axis", Attr::Int(0)), ("start", Attr::Int(1)), ("len", Attr::Int(1))]);
        let row = row.on([x.clone()]).tensor();
        assert!(matches!(row.data, Data::Mxfp4 { .. }));
        assert_eq!(row.to_f32().to_vec(), b);
        let both = Eval::new(OpKind::Concat).attrs([("axis", Attr::Int(0))]).on([row.clone(), x.clone()]).values();
        assert_eq!(both, [b.clone(), a.clone(), b.clone()].concat());
        let cube = Eval::new(OpKind::Reshape).attrs([("dims", dims(&[1, 2, 64]))]).on([x.clone()]).tensor();
        let swapped = Eval::new(OpKind::Permute).attrs([("perm", Attr::Ints(vec![1, 0, 2]))]).on([cube]).tensor();
        assert_eq!((swapped.shape.as_slice(), swapped.to_f32().to_vec()), ([2, 1, 64].as_slice(), x.to_f32().to_vec()));
    }

    #[test]
    fn a_lazily_dequantised_tensor_is_decoded_where_its_rows_break() {
        let x = packed();
        let lazy = Tensor { dtype: DType::BF16, ..x.clone() };
        let t = Eval::new(OpKind::Permute).attrs([("perm", Attr::Ints(vec![1, 0]))]).on([lazy.clone()]).values();
        assert_eq!(t[1], x.to_f32()[64]);
        let r = Eval::new(OpKind::Reshape).attrs([("dims", dims(&[4, 32]))]).on([lazy.clone()]).values();
        assert_eq!(r, x.to_f32().to_vec());
        let s =
            Eval::new(OpKind::Slice).attrs([("axis", Attr::Int(1)), ("start", Attr::Int(3)), ("len", Attr::Int(2))]);
        assert_eq!(s.on([lazy.clone()]).values(), [x.to_f32()[3], x.to_f32()[4], x.to_f32()[67], x.to_f32()[68]]);
        let b = Eval::new(OpKind::Broadcast).attrs([("dims", dims(&[2, 2, 64]))]).on([lazy]).values();
        assert_eq!(b, [x.to_f32(), x.to_f32()].concat());
    }
}
