//! Elementwise ops: one thread for a few adjacent elements, scalar code from [`super::scalar`].

use gossamer_ir::TensorType;

use super::{Cx, Size, blocks, operand, result, scalar, single};
use crate::emit::{Text, c_type};
use crate::lower::{Arg, LowerError, Lowered};

const THREADS: i64 = 256;

/// Lowers an elementwise op.
pub fn lower(cx: &Cx) -> Result<Lowered, LowerError> {
    let y = cx.result(0)?;
    let shape = cx.shape(y)?;
    let n: i64 = shape.iter().map(|s| s.value).product();
    if n == 0 {
        return Ok(Lowered::default());
    }
    let types: Vec<&TensorType> = (0..cx.operand_count()).map(|i| cx.plain(i)).collect::<Result<_, _>>()?;
    let shapes: Vec<Vec<Size>> = types.iter().map(|t| cx.shape(t)).collect::<Result<_, _>>()?;
    let v = vector(y, &shape, &types, &shapes);

    let (mut params, mut loads, mut region, mut args) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mut scalars = Vec::new();
    for (i, t) in types.iter().enumerate() {
        let c = c_type(t.dtype);
        let held = scalar::Scalar::of(t.dtype).ok_or_else(|| cx.malformed(format!("operand {i} is {t}")))?;
        params.push(format!("const {c}* x{i}"));
        args.push(operand(i));
        match access(cx, i, t, &shapes[i], shape.len())? {
            Access::Same => loads.push(format!("const auto p{i} = *(const Pack<{c}, V>*)(x{i} + i);")),
            Access::Scalar => loads.push(format!("const {c} p{i} = *x{i};")),
            Access::Repeat(Period::Const(p)) => {
                loads.push(format!("const auto p{i} = *(const Pack<{c}, V>*)(x{i} + i % {p});"));
            }
            Access::Repeat(Period::Arg(p)) => {
                params.push(format!("i64 m{i}"));
                args.push(Arg::I64(p));
                loads.push(format!("const auto p{i} = *(const Pack<{c}, V>*)(x{i} + i % m{i});"));
            }
        }
        let at = if matches!(access(cx, i, t, &shapes[i], shape.len())?, Access::Scalar) {
            format!("p{i}")
        } else {
            format!("p{i}.at[e]")
        };
        region.push(format!("const {} v{i} = {};", held.c_type(), scalar::load(t.dtype, &at)));
        scalars.push((format!("v{i}"), held));
    }
    let named: Vec<_> = scalars.iter().map(|(n, s)| (n.as_str(), *s)).collect();
    let (held, value) = scalar::expression(cx.op.kind, &cx.op.attrs, &named)
        .ok_or_else(|| cx.malformed(format!("operands of {} do not fit", cx.name())))?;
    region.push(format!("const {} z = {value};", held.c_type()));
    region.push(format!("out.at[e] = {};", scalar::store(y.dtype, "z")));
    params.push(format!("{}* y", c_type(y.dtype)));
    args.extend([result(0), Arg::I64(n)]);

    let ir =
        cx.ir(&types.iter().map(|t| format!("{}[..]", t.dtype)).collect::<Vec<_>>(), &[format!("{}[..]", y.dtype)]);
    let dtypes: Vec<_> = types.iter().map(|t| t.dtype.name()).collect();
    let kernel = Text::new(format!("{}_{}", cx.name(), dtypes.join("_")), ir, include_str!("cuda/elementwise.cu"))
        .set("params", params.join(", "))
        .set("loads", loads.join("\n"))
        .set("region", region.join("\n"))
        .set("y_type", c_type(y.dtype))
        .set("v", v)
        .build();
    Ok(single(cx.launch(kernel, blocks(n, THREADS * v), THREADS as u32, args)?))
}

enum Period {
    Const(i64),
    Arg(i64),
}

/// How an operand is addressed.
enum Access {
    /// Element by element.
    Same,
    /// One element for all.
    Scalar,
    /// Repeated along the leading dims.
    Repeat(Period),
}

fn access(cx: &Cx, i: usize, t: &TensorType, shape: &[Size], rank: usize) -> Result<Access, LowerError> {
    if t.rank() == rank {
        return Ok(Access::Same);
    }
    if t.rank() > rank {
        return Err(cx.malformed(format!("operand {i} is {t}, which has more dims than the result")));
    }
    let value: i64 = shape.iter().map(|s| s.value).product();
    Ok(match constant(shape) {
        true if value == 1 => Access::Scalar,
        true => Access::Repeat(Period::Const(value)),
        false => Access::Repeat(Period::Arg(value)),
    })
}

/// Elements a thread handles: as many as keep every access within 16 bytes and whole, whatever the symbols are.
fn vector(y: &TensorType, shape: &[Size], types: &[&TensorType], shapes: &[Vec<Size>]) -> i64 {
    let factor = |s: &[Size]| s.iter().map(|s| s.factor).product::<i64>();
    let widest = types.iter().map(|t| t.dtype).chain([y.dtype]).filter_map(|d| d.bytes()).max().unwrap_or(4) as i64;
    let mut v = 16 / widest;
    let whole = |v: i64| {
        factor(shape) % v == 0
            && types
                .iter()
                .zip(shapes)
                .all(|(t, s)| t.rank() == 0 || factor(s) == 1 && constant(s) || factor(s) % v == 0)
    };
    while v > 1 && !whole(v) {
        v /= 2;
    }
    v
}

fn constant(shape: &[Size]) -> bool {
    shape.iter().all(|s| s.constant)
}
