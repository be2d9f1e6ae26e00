//! Writing the paged key/value cache.

use gossamer_ir::{DType, StateDecl};

use super::{Cx, blocks, operand, single};
use crate::emit::{Text, c_type};
use crate::lower::{Arg, LowerError, Lowered, Part};

/// A cache declaration.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kv {
    /// Key/value heads.
    pub heads: i64,
    /// Elements a head.
    pub dim: i64,
    /// Tokens a page.
    pub page: i64,
    /// Element type in memory.
    pub dtype: DType,
}

/// The declaration behind operand `i`.
pub(super) fn declaration(cx: &Cx, i: usize) -> Result<Kv, LowerError> {
    match cx.state(i)? {
        StateDecl::Kv { heads, head_dim, page, dtype, .. } => {
            let kv = Kv { heads: *heads, dim: *head_dim, page: *page, dtype: *dtype };
            match kv.heads > 0 && kv.dim > 0 && kv.page > 0 && kv.dtype.is_float() {
                true => Ok(kv),
                false => Err(cx.unsupported(
                    format!(
                        "a {} cache of {} heads of {} elements and pages of {}",
                        kv.dtype, kv.heads, kv.dim, kv.page
                    ),
                    "a float cache with positive heads, head_dim and page",
                )),
            }
        }
        StateDecl::Counts { name, .. } => {
            Err(cx.malformed(format!("state `{name}` holds counts, expected a kv cache")))
        }
    }
}

/// Lowers `kv_write`.
pub fn lower(cx: &Cx) -> Result<Lowered, LowerError> {
    let kv = declaration(cx, 0)?;
    let (k, v) = (cx.plain(1)?, cx.plain(2)?);
    let &[sequences, row_pages] = cx.values(cx.plain(5)?)?.as_slice() else {
        return Err(cx.malformed("pages must have 2 dims"));
    };
    let widest = [k.dtype, v.dtype, kv.dtype].into_iter().filter_map(|d| d.bytes()).max().unwrap_or(4) as i64;
    let mut vector = 16 / widest;
    while kv.dim % vector != 0 {
        vector /= 2;
    }
    let n = cx.values(k)?.iter().product::<i64>() / vector;
    if n == 0 {
        return Ok(Lowered::default());
    }
    let types = [k.dtype, v.dtype].map(|d| format!("{d}[T, {}]", kv.heads * kv.dim));
    let ir = cx.ir(&[&["kv".to_string()], types.as_slice()].concat(), &["kv".into()]);
    let name = format!("kv_write_{}_{}_{}_h{}_d{}_p{}", k.dtype, v.dtype, kv.dtype, kv.heads, kv.dim, kv.page);
    let kernel = Text::new(name, ir, include_str!("cuda/kv_write.cu"))
        .set("k_type", c_type(k.dtype))
        .set("v_type", c_type(v.dtype))
        .set("kv_type", c_type(kv.dtype))
        .set("heads", kv.heads)
        .set("page", kv.page)
        .set("dim", kv.dim)
        .set("v", vector)
        .build();
    let part = |part| Arg::Operand { index: 0, part };
    let mut args = vec![part(Part::Keys), part(Part::Values)];
    args.extend((1..6).map(operand));
    args.extend([Arg::I64(n), Arg::I64(sequences), Arg::I64(row_pages)]);
    Ok(single(cx.launch(kernel, blocks(n, 256), 256, args)?))
}
