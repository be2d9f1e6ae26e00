//! Views as copies, and `concat`: one kernel family that copies between strided tensors.
//!
//! Dims that are contiguous on both sides are merged and elements are moved in the widest unit that divides every extent, stride and
//! offset for all values of the symbols, so most copies move 16 bytes a thread. MXFP4 tensors are copied twice, codes and scales, as
//! views keep their last dim: a block of 32 is one unit of 16 bytes and one of 1.

use gossamer_ir::{DType, OpKind, TensorType};

use super::{Cx, Size, blocks};
use crate::emit::Text;
use crate::lower::{Arg, Launch, LowerError, Lowered, Part};

/// One loop of a copy: extent and strides in elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Axis {
    extent: Size,
    from: Size,
    to: Size,
}

const ZERO: Size = Size::known(0);
const ONE: Size = Size::known(1);

/// Lowers `split`: a copy a piece.
fn split(cx: &Cx) -> Result<Lowered, LowerError> {
    let from = strides(&cx.shape(cx.plain(0)?)?);
    let mut lowered = Lowered::default();
    let mut start = ZERO;
    for (i, width) in cx.op.attrs.ints("sizes").iter().enumerate() {
        let y = cx.result(i)?;
        let out = cx.shape(y)?;
        let axes = pairs(&out, &from, &strides(&out));
        for (part, bytes) in parts(y) {
            let mut launch = copy(cx, 0, part, bytes, &axes, start, ZERO)?;
            if let Some(Arg::Result { index, .. }) = launch.as_mut().and_then(|l| l.args.get_mut(1)) {
                *index = i;
            }
            lowered.launches.extend(launch);
        }
        start = plus(start, Size::known(*width));
    }
    Ok(lowered)
}

/// Lowers `reshape`, `permute`, `slice`, `split`, `broadcast` and `concat`.
pub fn lower(cx: &Cx) -> Result<Lowered, LowerError> {
    if cx.op.kind == OpKind::Split {
        return split(cx);
    }
    let y = cx.result(0)?;
    let mut lowered = Lowered::default();
    let out = in_units(cx, y)?;
    let out_strides = strides(&out);
    let mut offset = ZERO;
    for i in 0..cx.operand_count() {
        let x = cx.operand(i)?;
        if x.layout.is_some() {
            return Err(cx.malformed(format!("operand {i} is {x}, expected a row-major tensor")));
        }
        let shape = in_units(cx, x)?;
        let from = strides(&shape);
        let (axes, x0, y0) = match cx.op.kind {
            OpKind::Reshape => (vec![Axis { extent: count(&out), from: ONE, to: ONE }], ZERO, ZERO),
            OpKind::Permute => {
                let perm = cx.op.attrs.ints("perm");
                let axis = |(d, p): (usize, &i64)| {
                    let from = from.get(*p as usize).copied()?;
                    Some(Axis { extent: out[d], from, to: out_strides[d] })
                };
                let axes: Option<Vec<_>> = perm.iter().enumerate().map(axis).collect();
                (axes.ok_or_else(|| cx.malformed("perm does not fit the operand"))?, ZERO, ZERO)
            }
            OpKind::Slice => {
                let (axis, start) = (cx.op.attrs.int("axis") as usize, cx.op.attrs.int("start"));
                let stride = from.get(axis).copied().ok_or_else(|| cx.malformed("axis does not fit the operand"))?;
                (pairs(&out, &from, &out_strides), times(stride, Size::known(start)), ZERO)
            }
            OpKind::Broadcast => {
                let lead = out.len() - shape.len().min(out.len());
                let axes = (0..out.len())
                    .map(|d| {
                        let repeated = d < lead || shape[d - lead] == ONE;
                        let from = if repeated { ZERO } else { from[d - lead] };
                        Axis { extent: out[d], from, to: out_strides[d] }
                    })
                    .collect();
                (axes, ZERO, ZERO)
            }
            _ => {
                let axis = cx.op.attrs.int("axis") as usize;
                let at = *out_strides.get(axis).ok_or_else(|| cx.malformed("axis does not fit the operand"))?;
                let y0 = times(at, offset);
                offset = plus(offset, shape[axis]);
                (pairs(&shape, &from, &out_strides), ZERO, y0)
            }
        };
        for (part, bytes) in parts(x) {
            lowered.launches.extend(copy(cx, i, part, bytes, &axes, x0, y0)?);
        }
    }
    Ok(lowered)
}

/// Buffers of a row-major tensor and bytes of a unit in each.
fn parts(t: &TensorType) -> Vec<(Part, i64)> {
    match t.dtype.bytes() {
        Some(bytes) => vec![(Part::Data, bytes as i64)],
        None => vec![(Part::Codes, 16), (Part::Scales, 1)],
    }
}

/// The shape in addressable units: elements, or MXFP4 blocks.
fn in_units(cx: &Cx, t: &TensorType) -> Result<Vec<Size>, LowerError> {
    let mut shape = cx.shape(t)?;
    if t.dtype == DType::Mxfp4 {
        let block = gossamer_ir::dtype::MX_BLOCK;
        match shape.last_mut() {
            Some(k) if k.value % block == 0 && k.constant => *k = Size::known(k.value / block),
            _ => return Err(cx.unsupported(t.to_string(), "mxfp4 with a constant last dim, a multiple of 32")),
        }
    }
    Ok(shape)
}

fn times(a: Size, b: Size) -> Size {
    Size { value: a.value * b.value, factor: a.factor * b.factor, constant: a.constant && b.constant }
}

fn plus(a: Size, b: Size) -> Size {
    Size { value: a.value + b.value, factor: gcd(a.factor, b.factor), constant: a.constant && b.constant }
}

pub(crate) fn gcd(a: i64, b: i64) -> i64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

fn count(shape: &[Size]) -> Size {
    shape.iter().fold(ONE, |n, s| times(n, *s))
}

fn strides(shape: &[Size]) -> Vec<Size> {
    (0..shape.len()).map(|d| count(&shape[d + 1..])).collect()
}

fn pairs(shape: &[Size], from: &[Size], to: &[Size]) -> Vec<Axis> {
    shape.iter().zip(from.iter().zip(to)).map(|(e, (f, t))| Axis { extent: *e, from: *f, to: *t }).collect()
}

/// Merges axes that are one contiguous run on both sides and drops those of constant extent 1. Decisions use what holds for all symbol values.
fn merge(axes: &[Axis]) -> Vec<Axis> {
    let mut out: Vec<Axis> = Vec::new();
    for a in axes.iter().filter(|a| a.extent != ONE) {
        if let Some(last) = out.last_mut() {
            // Equal values and factors: the outer stride is the inner extent times the inner stride by construction, not by chance.
            if last.from == times(a.extent, a.from) && last.to == times(a.extent, a.to) {
                *last = Axis { extent: times(last.extent, a.extent), ..*a };
                continue;
            }
        }
        out.push(*a);
    }
    out
}

/// The widest power of two, at most 16, of bytes that divides every extent, stride and offset.
fn unit(bytes: i64, axes: &[Axis], x0: Size, y0: Size) -> i64 {
    let Some(inner) = axes.last() else { return bytes };
    if inner.from != ONE || inner.to != ONE {
        return bytes;
    }
    let outer = axes[..axes.len() - 1].iter().flat_map(|a| [a.from.factor, a.to.factor]);
    let run = outer.chain([inner.extent.factor, x0.factor, y0.factor]).fold(0, gcd);
    let mut wide = 16;
    while wide > bytes && run * bytes % wide != 0 {
        wide /= 2;
    }
    wide
}

fn copy(
    cx: &Cx,
    i: usize,
    part: Part,
    bytes: i64,
    axes: &[Axis],
    x0: Size,
    y0: Size,
) -> Result<Option<Launch>, LowerError> {
    let axes = merge(axes);
    let wide = unit(bytes, &axes, x0, y0);
    let scale = wide / bytes;
    let n = axes.iter().map(|a| a.extent.value).product::<i64>() / scale;
    if n == 0 {
        return Ok(None);
    }
    let (mut params, mut steps) = (String::new(), Vec::new());
    let mut args = vec![Arg::Operand { index: i, part }, Arg::Result { index: 0, part }, Arg::I64(n)];
    for (d, a) in axes.iter().enumerate() {
        let inner = d + 1 == axes.len();
        params.push_str(&format!(", i64 d{d}, i64 from{d}, i64 to{d}"));
        // The innermost axis counts units; other strides shrink with the unit. Where units are single elements both are unchanged.
        let (extent, from, to) = match inner {
            true => (a.extent.value / scale, a.from.value, a.to.value),
            false => (a.extent.value, a.from.value / scale, a.to.value / scale),
        };
        args.extend([Arg::I64(extent), Arg::I64(from), Arg::I64(to)]);
    }
    for d in (0..axes.len()).rev() {
        let at = if d == 0 { "rest".to_string() } else { format!("take_dim(rest, d{d})") };
        steps.push(format!("const i64 c{d} = {at};"));
        steps.push(format!("from += c{d} * from{d};"));
        steps.push(format!("to += c{d} * to{d};"));
    }
    params.push_str(", i64 x0, i64 y0");
    args.extend([Arg::I64(x0.value / scale), Arg::I64(y0.value / scale)]);
    let kernel = Text::new(format!("copy_r{}_b{wide}", axes.len()), "", include_str!("cuda/copy.cu"))
        .set("bytes", wide)
        .set("unit", unit_type(wide))
        .set("params", params)
        .set("steps", steps.join("\n"))
        .build();
    cx.launch(kernel, blocks(n, 256), 256, args).map(Some)
}

/// The C++ type of a unit of `bytes` bytes.
pub(super) fn unit_type(bytes: i64) -> &'static str {
    match bytes {
        1 => "u8",
        2 => "u16",
        4 => "u32",
        8 => "u64",
        _ => "uint4",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size(n: i64) -> Size {
        Size::known(n)
    }

    #[test]
    fn contiguous_axes_merge_and_units_widen() {
        let t = Size { value: 5, factor: 1, constant: false };
        let shape = [t, size(8), size(64)];
        let s = strides(&shape);
        let whole = pairs(&shape, &s, &s);
        assert_eq!(merge(&whole).len(), 1);
        assert_eq!(unit(2, &merge(&whole), ZERO, ZERO), 16);
        // Heads first: [8, T, 64].
        let axes = [(1, size(8)), (0, t), (2, size(64))];
        let out = strides(&axes.map(|a| a.1));
        let axes: Vec<_> =
            axes.iter().zip(&out).map(|((d, e), to)| Axis { extent: *e, from: s[*d], to: *to }).collect();
        assert_eq!(merge(&axes).len(), 3);
        assert_eq!(unit(2, &merge(&axes), ZERO, ZERO), 16);
        // A slice of 3 columns from column 1.
        let axes = [Axis { extent: t, from: size(7), to: size(3) }, Axis { extent: size(3), from: ONE, to: ONE }];
        assert_eq!(unit(4, &axes, size(1), ZERO), 4);
        assert_eq!(unit(1, &[Axis { extent: size(12), from: ONE, to: ONE }], size(6), ZERO), 2);
    }
}
