//! Rotary positions, the paged KV cache and attention, on ragged steps.
//!
//! A step has T tokens of S sequences. `pos[t]` is a token's position in its sequence, `seq[t]` the row of the page table that holds it; a row of
//! -1 marks padding, which writes nothing and attends to nothing. Position p of sequence s lives in page `pages[s, p / page]` at offset
//! `p mod page`.

use crate::attr::AttrKind;
use crate::dim::Dim;
use crate::dtype::DType;
use crate::interp::attention as eval;
use crate::op::{Class, Default, InferCx, OpInfo, OperandInfo, attr, one, optional};
use crate::ty::Type;

const POS: OperandInfo = one("pos", "i32 [T]: position of each token in its sequence");
const SEQ: OperandInfo = one("seq", "i32 [T]: sequence of each token, -1 for padding");
const PAGES: OperandInfo = one("pages", "i32 [S, P]: page table");

/// `rope_table`: cosines and sines of rotary angles.
pub static ROPE_TABLE: OpInfo = OpInfo {
    name: "rope_table",
    class: Class::Composite,
    summary: "Cosines and sines of rotary angles",
    doc: "Row p holds `cos(p * f_j) * scale` for j in 0..dim/2, then the sines. `f_j = theta^(-2j/dim)`; with `factor` above 1 the frequencies are \
          blended as `f_j / factor * (1 - m_j) + f_j * m_j`. Ramp over `pairs`, as YaRN does (Peng et al. 2023, arXiv:2309.00071): \
          `m_j = 1 - clamp((j - low) / (high - low), 0, 1)`, \
          `low, high = dim * ln(original / (beta * 2 pi)) / (2 ln theta)` for beta_fast and beta_slow, rounded outward only if `truncate`, then limited to \
          0..dim-1. Over `rotations`, as Llama 3 does: `m_j = clamp((original * f_j / (2 pi) - beta_slow) / (beta_fast - beta_slow), 0, 1)`. \
          `1 / theta^(2j/dim)`, the blend and the angles (position times frequency) \
          are f32; bounds are f64; cosine and sine are rounded to f32, then multiplied by `scale`.",
    operands: &[],
    attrs: &[
        attr("beta_fast", AttrKind::Float, Default::Float(32.0), "rotations above which a frequency is kept"),
        attr("beta_slow", AttrKind::Float, Default::Float(1.0), "rotations below which a frequency is divided"),
        attr("dim", AttrKind::Int, Default::Required, "elements a head, even"),
        attr("dims", AttrKind::Dims, Default::Required, "one dim: positions"),
        attr("factor", AttrKind::Float, Default::Float(1.0), "context extension; 1: plain RoPE"),
        attr("original", AttrKind::Int, Default::Int(4096), "context before extension, tokens"),
        attr(
            "ramp",
            AttrKind::OneOf(&["pairs", "rotations"]),
            Default::Word("pairs"),
            "what the share of a kept frequency is linear in",
        ),
        attr("scale", AttrKind::Float, Default::Float(1.0), "multiplies cosines and sines"),
        attr("theta", AttrKind::Float, Default::Float(10000.0), "base of the frequencies"),
        attr(
            "truncate",
            AttrKind::Bool,
            Default::Bool(false),
            "round the bounds of a ramp over pairs outward to integers",
        ),
    ],
    results: &["table"],
    infer: |cx| {
        let dim = cx.attrs.int("dim");
        let [rows] = cx.attrs.dims("dims") else {
            return Err("dims must have one entry, the number of positions".into());
        };
        match dim >= 2 && dim % 2 == 0 {
            true => Ok(vec![Type::tensor(DType::F32, [rows.clone(), dim.into()])]),
            false => Err(format!("dim is {dim}, expected an even number from 2")),
        }
    },
    eval: eval::rope_table,
    tolerance: 1e-6,
    decomposition: None,
};

/// `rope`: rotates pairs of elements by the position's angle.
pub static ROPE: OpInfo = OpInfo {
    name: "rope",
    class: Class::Composite,
    summary: "Rotates pairs of elements by the position's angle",
    doc: "Half-split form (Su et al. 2021, arXiv:2104.09864, as in GPT-NeoX): within each head of D elements, pair (j, j + D/2) becomes \
          `(a cos - b sin, b cos + a sin)` with row `pos[t]` of the table, in f32, rounded once. A position outside the table uses its nearest row.",
    operands: &[one("x", "float [T, heads * D]"), POS, one("table", "f32 [C, D] of rope_table")],
    attrs: &[],
    results: &["y"],
    infer: |cx| {
        let (x, table) = (cx.float_rank(0, 2)?, cx.tensor(2)?);
        cx.exact(1, DType::I32, &x.dims[..1])?;
        let d = match (table.dtype, table.dims.as_slice()) {
            (DType::F32, [_, d]) => d.as_const().filter(|d| *d > 0 && d % 2 == 0),
            _ => None,
        };
        let Some(d) = d else {
            return Err(format!("operand 2 is {table}, expected f32 [C, D] with an even constant D"));
        };
        match x.dims[1].as_const().is_some_and(|n| n % d == 0) {
            true => Ok(vec![x.clone().into()]),
            false => Err(format!("operand 0 is {x}, expected rows of whole heads of {d}")),
        }
    },
    eval: eval::rope,
    tolerance: 1e-2,
    decomposition: None,
};

/// The dims T of `pos` and `seq`, and a check of the page table.
fn step(cx: &InferCx, pos: usize, t: &Dim) -> Result<(), String> {
    cx.exact(pos, DType::I32, std::slice::from_ref(t))?;
    cx.exact(pos + 1, DType::I32, std::slice::from_ref(t))?;
    cx.index(pos + 2, 2).map(drop)
}

/// `kv_write`: stores keys and values of a step's tokens.
pub static KV_WRITE: OpInfo = OpInfo {
    name: "kv_write",
    class: Class::State,
    summary: "Stores keys and values of a step's tokens",
    doc: "Replaces the state by one in which position `pos[t]` of sequence `seq[t]` holds row t of k and v, rounded to the cache's dtype. \
          Tokens are written in order. Padding, page ids outside the cache and positions outside the page table are skipped.",
    operands: &[
        one("kv", "kv state, consumed"),
        one("k", "float [T, heads * D]"),
        one("v", "float [T, heads * D]"),
        POS,
        SEQ,
        PAGES,
    ],
    attrs: &[],
    results: &["kv"],
    infer: |cx| {
        let (heads, head_dim, _, ty) = cx.kv(0)?;
        let (k, v) = (cx.float_rank(1, 2)?, cx.float_rank(2, 2)?);
        let width = Dim::from(heads * head_dim);
        if k.dims[1] != width || k.dims != v.dims {
            return Err(format!("k and v are {k} and {v}, expected [T, {width}] for {ty}"));
        }
        step(cx, 3, &k.dims[0])?;
        Ok(vec![ty.clone()])
    },
    eval: eval::kv_write,
    tolerance: 0.0,
    decomposition: None,
};

/// `attention`: causal attention over a paged cache.
pub static ATTENTION: OpInfo = OpInfo {
    name: "attention",
    class: Class::Composite,
    summary: "Causal grouped-query attention over a paged cache, with sinks and window",
    doc: "Query head h of token t reads key head `h / (heads / kv heads)` of its sequence at positions `j <= pos[t]`, and `j > pos[t] - window` if window is not 0. \
          `z_j = scale * q . k_j`; `p_j = e^(z_j - m) / (sum_i e^(z_i - m) + e^(sink_h - m))` with m the greatest of all z and the sink; `y = sum_j p_j v_j`, in f32, \
          rounded once to q's dtype. The sink is not scaled and has no value; without sinks its term is absent. Keys of the step itself must have been \
          written before. Padding, sequences outside the page table and tokens that see no key give 0; positions whose page is not there \
          (an id outside the cache, or beyond the page table) are left out.",
    operands: &[
        one("q", "float [T, heads * D]"),
        one("kv", "kv state"),
        POS,
        SEQ,
        PAGES,
        optional("sinks", "float [heads]: one extra logit a head"),
    ],
    attrs: &[
        attr(
            "decoded",
            AttrKind::Bool,
            Default::Bool(false),
            "sums in the order of steps that decode, in every step; no other meaning",
        ),
        attr("scale", AttrKind::Float, Default::Required, "multiplies q . k"),
        attr("window", AttrKind::Int, Default::Int(0), "keys a query sees, itself included; 0: all"),
    ],
    results: &["y"],
    infer: |cx| {
        let q = cx.float_rank(0, 2)?;
        let (kv_heads, head_dim, kept, ty) = cx.kv(1)?;
        let group = kv_heads * head_dim;
        let Some(width) = q.dims[1].as_const().filter(|w| group > 0 && *w > 0 && w % group == 0) else {
            return Err(format!("q is {q}, expected rows of a multiple of {group} elements for {ty}"));
        };
        step(cx, 2, &q.dims[0])?;
        if cx.operands.len() > 5 {
            let sinks = cx.float_rank(5, 1)?;
            if sinks.dims[0] != Dim::from(width / head_dim) {
                return Err(format!("sinks are {sinks}, expected one per head ({})", width / head_dim));
            }
        }
        let window = cx.attrs.int("window");
        match kept {
            _ if window < 0 => Err(format!("window is {window}, expected 0 or more")),
            Some(kept) if window == 0 || window > kept => {
                Err(format!("window is {window}, but {ty} keeps {kept} keys only"))
            }
            _ => Ok(vec![q.clone().into()]),
        }
    },
    eval: eval::attention,
    tolerance: 2e-2,
    decomposition: None,
};
