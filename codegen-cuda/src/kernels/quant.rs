//! MXFP4: expansion to floats from both layouts, and packing.
//!
//! Layouts `#mx64` and `#mx64.fast` are the packed layout of [`crate::layout::mxfp4`] with rows in checkpoint order. The first stores scales as they
//! are ([`ScaleMode::General`]) and so holds every one; the second holds scales up to 128 ([`ScaleMode::Fast`]), which only the loader can
//! know, so nothing here packs into it.

use gossamer_ir::{DType, OpKind, TensorType};

use super::{Cx, blocks, operand, product, result, rows_of, single};
use crate::emit::{Piece, Text, c_type};
use crate::layout::{Mxfp4Layout, RowOrder, ScaleMode};
use crate::lower::{Arg, LowerError, Lowered, Part};

/// Name of the packed layout in IR text, without `#`.
pub const PACKED: &str = "mx64";
/// The same with scales folded for one multiply a pair.
pub const PACKED_FAST: &str = "mx64.fast";

/// Lowers `dequant` and `relayout`.
pub fn lower(cx: &Cx) -> Result<Lowered, LowerError> {
    match cx.op.kind {
        OpKind::Dequant => dequant(cx),
        _ => relayout(cx),
    }
}

/// The packed layout of an MXFP4 tensor of these sizes; leading dims but the last two count as experts. `None` if it has no element.
pub(crate) fn packed(shape: &[i64]) -> Option<Result<Mxfp4Layout, crate::layout::LayoutError>> {
    let (&k, lead) = shape.split_last()?;
    let n = lead.last().copied().unwrap_or(1);
    let experts = lead.split_last().map_or(1, |(_, e)| product(e));
    if experts * n * k == 0 {
        return None;
    }
    Some(Mxfp4Layout::new(experts as usize, n as usize, k as usize, RowOrder::Identity, ScaleMode::General))
}

fn geometry(cx: &Cx, t: &TensorType) -> Result<Option<Mxfp4Layout>, LowerError> {
    match packed(&cx.values(t)?) {
        None => Ok(None),
        Some(Ok(layout)) => Ok(Some(layout)),
        Some(Err(e)) => Err(cx.unsupported(format!("{t} ({e})"), "mxfp4 whose last dim is a multiple of 32")),
    }
}

fn dequant(cx: &Cx) -> Result<Lowered, LowerError> {
    let (w, y) = (cx.operand(0)?, cx.result(0)?);
    let Some(layout) = geometry(cx, w)? else { return Ok(Lowered::default()) };
    let ty = c_type(y.dtype);
    let wide = y.dtype == DType::F32;
    match w.layout.as_deref() {
        None => {
            let n = product(&cx.values(y)?) / 8;
            let ir = cx.ir(&["mxfp4[..]".into()], &[format!("{}[..]", y.dtype)]);
            let kernel =
                Text::new(format!("dequant_{}", y.dtype), ir, include_str!("cuda/dequant.cu")).set("type", ty).build();
            let args = vec![
                Arg::Operand { index: 0, part: Part::Codes },
                Arg::Operand { index: 0, part: Part::Scales },
                result(0),
                Arg::I64(n),
            ];
            Ok(single(cx.launch(kernel, blocks(n, 256), 256, args)?))
        }
        Some(name @ (PACKED | PACKED_FAST)) => {
            let fast = name == PACKED_FAST;
            let stores = match wide {
                true => {
                    "const u32 pairs[4] = {v.x, v.y, v.z, v.w};\n\
                     #pragma unroll\n\
                     for (int p = 0; p < 4; p++) {\n\
                     \x20 to[2 * p] = __uint_as_float(pairs[p] << 16);\n\
                     \x20 to[2 * p + 1] = __uint_as_float(pairs[p] & 0xffff0000u);\n\
                     }"
                }
                false => "*(uint4*)to = v;",
            };
            let ir = cx.ir(&[format!("mxfp4[..] #{name}")], &[format!("{}[..]", y.dtype)]);
            let kernel = Text::new(format!("dequant_{name}_{}", y.dtype), ir, include_str!("cuda/dequant_mx64.cu"))
                .with(Piece::Mxfp4)
                .set("type", ty)
                .set("fast", fast)
                .set("stores", stores)
                .build();
            let mut args = vec![operand(0), result(0)];
            args.extend(tiles(&layout));
            Ok(single(cx.launch(kernel, fours(&layout), 128, args)?))
        }
        Some(other) => {
            Err(cx.unsupported(format!("layout #{other}"), format!("row-major, #{PACKED} and #{PACKED_FAST}")))
        }
    }
}

fn relayout(cx: &Cx) -> Result<Lowered, LowerError> {
    let (x, y) = (cx.operand(0)?, cx.result(0)?);
    let to = y.layout.as_deref().unwrap_or("");
    if x.dtype != DType::Mxfp4 || x.layout.is_some() || to != PACKED {
        return Err(cx.unsupported(format!("{x} to #{to}"), format!("row-major mxfp4 to #{PACKED}")));
    }
    let Some(layout) = geometry(cx, x)? else { return Ok(Lowered::default()) };
    let ir = cx.ir(&[rows_of(DType::Mxfp4, "K")], &[format!("{} #{PACKED}", rows_of(DType::Mxfp4, "K"))]);
    let kernel = Text::new("relayout_mx64", ir, include_str!("cuda/relayout_mx64.cu")).with(Piece::Mxfp4).build();
    let mut args =
        vec![Arg::Operand { index: 0, part: Part::Codes }, Arg::Operand { index: 0, part: Part::Scales }, result(0)];
    args.extend(tiles(&layout));
    Ok(single(cx.launch(kernel, fours(&layout), 128, args)?))
}

/// Blocks that take four row tiles each.
fn fours(layout: &Mxfp4Layout) -> i64 {
    (layout.experts() * layout.row_tiles().div_ceil(4) * layout.k_tiles()) as i64
}

/// Rows and columns of an expert, then tiles along both.
fn tiles(layout: &Mxfp4Layout) -> [Arg; 4] {
    [
        Arg::I64(layout.n() as i64),
        Arg::I64(layout.k() as i64),
        Arg::I32(layout.row_tiles() as i32),
        Arg::I32(layout.k_tiles() as i32),
    ]
}
