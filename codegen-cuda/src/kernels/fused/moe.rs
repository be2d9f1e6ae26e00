//! What templates that multiply rows with their experts share: the problem, which columns of the product a strip holds, and the code of the
//! epilogue at a token, choice and column.
//!
//! Both templates decode packed weights in the order of their multiplies and cut K into the same pieces, so a row has the same bits in each.

use gossamer_ir::{DType, Func, OpKind, TensorType, Type, Value};

use super::super::contraction::MAX_K;
use super::super::quant::{PACKED, PACKED_FAST};
use super::super::region::{Index, Need, Region, Sink, Source, Split, lift, malformed, split, text, unsupported};
use super::super::{Cx, blocks, rows_of};
use super::finish::product_sinks;
use super::{Body, Origin, Params, parameter};
use crate::lower::LowerError;

type Result<T> = std::result::Result<T, LowerError>;

/// Rows of w in a tile of the packed layout.
pub(super) const TILE: i64 = 16;
/// Columns of results that a lane makes together where it can.
const RUN: i64 = 4;
/// Bytes of a record of the packed layout.
pub(super) const RECORD: i64 = crate::layout::mxfp4::RECORD_BYTES as i64;
/// Room behind records in shared memory for the copy to begin as far into a line of 128 bytes as where it comes from, which is faster (measured on an H100):
/// memory holds records at multiples of 32 bytes.
pub(super) const ROOM: i64 = 96;

/// Bytes of the place of `count` records in shared memory, with `room` behind them: [`ROOM`], or 0.
pub(super) fn place(count: i64, room: i64) -> i64 {
    if room == 0 { count * RECORD } else { blocks(count * RECORD + room, 128) * 128 }
}

/// Most experts: tables sort rows by expert and row in one word.
const MAX_EXPERTS: i64 = 1 << 22;

/// The problem: each of `tokens * choices` rows of K times the N rows of its expert.
pub(super) struct Experts {
    /// Tokens.
    pub tokens: i64,
    /// Experts a token.
    pub choices: i64,
    /// Experts there are.
    pub experts: i64,
    /// Rows of an expert's weights.
    pub n: i64,
    /// Columns.
    pub k: i64,
    /// True if all choices of a token multiply the same row of x.
    pub shared_x: bool,
    /// True if scales are stored for one multiply a pair.
    pub fast: bool,
    /// The operand x; `None` if an earlier stage makes it.
    pub x: Option<usize>,
    /// The operand w.
    pub w: usize,
    /// The operand ids.
    pub ids: usize,
    /// The product, `[T, J, N]`.
    pub product: Value,
}

impl Experts {
    /// Reads a kernel whose main op is `moe_matmul` of weights that its prologue decodes.
    ///
    /// # Errors
    /// Weights, rows or sizes that the templates do not take.
    pub fn of(cx: &Cx, body: &Body) -> Result<Experts> {
        let main = body.main();
        let product = body.heavy()?;
        let op = main.graph.op(product.op);
        let (OpKind::MoeMatMul, &[rows, w, ids]) = (op.kind, op.operands.as_slice()) else {
            return Err(malformed("a template for experts holds a moe_matmul"));
        };
        let x = match body.main_value(rows) {
            Origin::Operand(x) => Some(x),
            Origin::Before(_) => None,
            _ => return Err(unsupported("computed rows", "operands in memory")),
        };
        let Origin::Operand(ids) = body.main_value(ids) else {
            return Err(unsupported("computed choices", "operands in memory"));
        };
        let packed = format!("mxfp4 #{PACKED} or #{PACKED_FAST} behind a dequant to bf16");
        let w = match body.main_value(w) {
            Origin::Prologue(v) => decoded(body, v).ok_or_else(|| unsupported("computed weights", packed.as_str()))?,
            _ => return Err(unsupported("experts whose weights are not packed", packed)),
        };
        let xt = match (x, main.graph.ty(rows)) {
            (Some(x), _) => cx.plain(x)?,
            (None, Type::Tensor(t)) => t,
            (None, _) => return Err(malformed("rows that are no tensor")),
        };
        let (wt, it) = (cx.operand(w)?, cx.plain(ids)?);
        let fast = match (wt.dtype, wt.layout.as_deref()) {
            (DType::Mxfp4, Some(PACKED)) => false,
            (DType::Mxfp4, Some(PACKED_FAST)) => true,
            _ => return Err(unsupported(format!("experts {wt}"), packed)),
        };
        if xt.dtype != DType::BF16 || !matches!(xt.rank(), 2 | 3) || wt.rank() != 3 || it.rank() != 2 {
            return Err(unsupported(
                format!("{xt} times experts {wt} chosen by {it}"),
                "bf16[T, K] or [T, J, K] times [E, N, K]",
            ));
        }
        let known = |t: &TensorType, i: usize| {
            t.dims[i]
                .as_const()
                .ok_or_else(|| unsupported(format!("{t} with a symbolic size"), "constant E, N, K and J"))
        };
        let [experts, n, k] = [known(wt, 0)?, known(wt, 1)?, known(wt, 2)?];
        let choices = known(it, 1)?;
        let tokens = cx.size(&it.dims[0])?.value;
        let columns_fit = n >= 1 && (32..MAX_K).contains(&k) && k % 32 == 0;
        if !columns_fit
            || !(1..=MAX_EXPERTS).contains(&experts)
            || choices < 1
            || experts.saturating_mul(n) > i64::from(i32::MAX) / 4
        {
            return Err(unsupported(
                format!("{experts} experts of {n} x {k} for {choices} choices"),
                "1 to 2^22 experts, E * N below 2^29, K a multiple of 32 below 2^24, at least one choice",
            ));
        }
        if tokens.saturating_mul(choices) > i64::from(i32::MAX) {
            return Err(unsupported(format!("{tokens} tokens of {choices} choices"), "fewer than 2^31 rows"));
        }
        let shared_x = xt.rank() == 2;
        Ok(Experts { tokens, choices, experts, n, k, shared_x, fast, x, w, ids, product })
    }

    /// The operands x, w and ids of a kernel of one stage.
    ///
    /// # Errors
    /// Rows that another stage makes.
    pub fn operands(&self) -> Result<[usize; 3]> {
        let x = self.x.ok_or_else(|| unsupported("rows that an earlier stage makes", "operands in memory"))?;
        Ok([x, self.w, self.ids])
    }

    /// Rows in all.
    pub fn rows(&self) -> i64 {
        self.tokens * self.choices
    }

    /// Tiles of 64 columns.
    pub fn k_tiles(&self) -> i64 {
        self.k.div_euclid(64) + i64::from(self.k % 64 != 0)
    }

    /// Row of x of row `row` of the product.
    pub fn x_row(&self) -> &'static str {
        if self.shared_x { "row / CHOICES" } else { "row" }
    }

    /// Constants of the kernels' text.
    pub fn constants(&self, strips: &Strips) -> String {
        [
            format!("constexpr int N = {};  // rows of w of an expert", self.n),
            format!("constexpr int K = {};", self.k),
            format!("constexpr int EXPERTS = {};", self.experts),
            format!("constexpr int CHOICES = {};", self.choices),
            format!("constexpr int STRIPS = {};", strips.count),
            format!("constexpr int OUTPUTS = {};  // columns of a strip", strips.outputs()),
            format!("constexpr int WIDTH = {};  // columns in all", strips.width(self.n)),
        ]
        .join("\n")
    }

    /// What the kernel holds, as a comment.
    pub fn ir(&self, body: &Body) -> String {
        let layout = if self.fast { PACKED_FAST } else { PACKED };
        let w = format!("mxfp4[{}, {}, {}] #{layout}", self.experts, self.n, self.k);
        format!("{}: {} times {w}, {} choices", body.kernel.summary(), rows_of(DType::BF16, self.k), self.choices)
    }
}

/// The operand that the prologue decodes to give `v`.
fn decoded(body: &Body, v: Value) -> Option<usize> {
    let prologue = body.prologue()?;
    let op = prologue.graph.op(v.op);
    let to_bf16 = prologue.graph.ty(v).as_tensor().is_some_and(|t| t.dtype == DType::BF16);
    match op.kind == OpKind::Dequant && to_bf16 {
        true => parameter(prologue, op.operands[0]).and_then(|p| body.prologue_param(p)),
        false => None,
    }
}

/// Which columns of the product make one column of the results.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pairing {
    /// Itself, or any that are in the strip: the code goes over the product's columns.
    Each,
    /// Columns 2c and 2c + 1.
    Interleaved,
    /// Columns c and c + N / 2.
    Halves,
}

/// How the columns of the product are cut: a strip is some tiles of 16 rows of w.
pub(super) struct Strips {
    pairing: Pairing,
    tiles: i64,
    n: i64,
    /// How many there are.
    pub count: i64,
}

impl Strips {
    /// Strips of `tiles` tiles that hold together what the sinks need.
    ///
    /// # Errors
    /// Results that need columns in ways that do not go together.
    pub fn choose(found: &[Sink], n: i64, tiles: i64) -> Result<Strips> {
        let pairing = pairing(found, n)?;
        let tiles = if pairing == Pairing::Halves { (tiles + 1) / 2 * 2 } else { tiles };
        let per = match pairing {
            Pairing::Halves => (n / 2, TILE / 2 * tiles),
            _ => (n, TILE * tiles),
        };
        Ok(Strips { pairing, tiles, n, count: per.0.div_euclid(per.1) + i64::from(per.0 % per.1 != 0) })
    }

    /// Tiles of a strip: an even number if halves of the product go together.
    pub fn tiles(&self) -> i64 {
        self.tiles
    }

    /// Strips of some tiles, for tests.
    #[cfg(test)]
    pub fn of(tiles: i64, count: i64) -> Strips {
        let pairing = if tiles == 1 { Pairing::Each } else { Pairing::Halves };
        Strips { pairing, tiles, n: TILE * tiles * count, count }
    }

    /// Columns of results of a strip.
    pub fn outputs(&self) -> i64 {
        match self.pairing {
            Pairing::Each => TILE * self.tiles,
            _ => TILE / 2 * self.tiles,
        }
    }

    /// Columns of results in all.
    pub fn width(&self, n: i64) -> i64 {
        if self.pairing == Pairing::Each { n } else { n / 2 }
    }

    /// Tile `r` of strip `strip`, both variables of the text.
    pub fn tile(&self) -> String {
        match self.pairing {
            Pairing::Halves => {
                let half = "strip * (TILES / 2) + r".to_string();
                format!("r < TILES / 2 ? {half} : {} + {half} - TILES / 2", self.n / 2 / TILE)
            }
            _ => "strip * TILES + r".to_string(),
        }
    }

    /// Where column `column` of the product is in strip `strip`.
    pub fn local(&self, column: &Index) -> String {
        match self.pairing {
            Pairing::Halves if column.offset() >= self.n / 2 => {
                format!("{} - strip * OUTPUTS + OUTPUTS", column.plus(-self.n / 2).text())
            }
            Pairing::Halves => format!("{} - strip * OUTPUTS", column.text()),
            _ => format!("{} - strip * HEIGHT", column.text()),
        }
    }
}

fn pairing(found: &[Sink], n: i64) -> Result<Pairing> {
    let pairs = |f: &dyn Fn(&Sink) -> bool| found.iter().all(|s| 2 * s.columns == n && f(s));
    if pairs(&|s| s.need == Need::Interleaved { offset: 0 }) {
        return Ok(Pairing::Interleaved);
    }
    if pairs(&|s| s.need == Need::Halves { offset: 0, width: n / 2 }) {
        return match n / 2 % TILE {
            0 => Ok(Pairing::Halves),
            _ => Err(unsupported(
                format!("swiglu of halves of {} columns", n / 2),
                format!("halves that are multiples of {TILE}"),
            )),
        };
    }
    match found.iter().all(|s| matches!(s.need, Need::Same { offset: 0 } | Need::Interleaved { offset: 0 })) {
        true => Ok(Pairing::Each),
        false => Err(unsupported("results of experts that need different columns", "all of them, pairs or halves")),
    }
}

/// The code of an epilogue.
pub(super) struct Epilogue {
    /// Statements at row t, choice j (a variable, or all of them if rows of a token are together) and column n of the results.
    pub lines: Vec<String>,
}

/// How a template gives what it holds, as text.
pub(super) struct Held<'t> {
    /// The product of `[t, j]` at a column of the strip.
    pub product: &'t dyn Fn(&Index, &Index, &str) -> String,
    /// The expert of `[t, j]`; anything that is none is EXPERTS.
    pub expert: &'t dyn Fn(&Index, &Index) -> String,
}

/// What becomes of the product, in order of results.
///
/// # Errors
/// A result that the product is not part of, or that scalar code cannot make.
pub(super) fn results_of(body: &Body, experts: &Experts) -> Result<Vec<Sink>> {
    product_sinks(body, experts.product)
}

/// True if a result needs all choices of a token.
pub(super) fn combines(body: &Body, found: &[Sink]) -> bool {
    found.iter().any(|s| rank(body.epilogue(), s.value) == 2)
}

fn rank(f: &Func, v: Value) -> usize {
    f.graph.ty(v).as_tensor().map_or(0, |t| t.rank())
}

/// Prints the epilogue. `together`: the code runs once a token, with all its choices at hand; else once a row.
///
/// # Errors
/// An op that scalar code cannot make.
#[expect(clippy::too_many_arguments, reason = "what both templates know when they print it")]
pub(super) fn epilogue(
    cx: &Cx,
    body: &Body,
    experts: &Experts,
    strips: &Strips,
    found: &[Sink],
    together: bool,
    held: &Held,
    params: &mut Params,
) -> Result<Epilogue> {
    let func = body.epilogue();
    let product = |at: &[Index]| (held.product)(&at[0], &at[1], &strips.local(&at[2]));
    let (mut region, pointers) = printer(cx, body, experts, &product, held.expert, params)?;
    let (t, n) = (Index::var("t"), Index::var("n"));
    let mut lines = Vec::new();
    let (mut all, mut even) = (Vec::new(), Vec::new());
    for sink in found {
        let alternate = strips.pairing == Pairing::Each && matches!(sink.need, Need::Interleaved { .. });
        if alternate { even.push(sink) } else { all.push(sink) }
    }
    for (sinks, open) in [(all, "{"), (even, "if (n % 2 == 0) {")] {
        if sinks.is_empty() {
            continue;
        }
        let (inner, ()) = region.scope(|r| {
            for sink in sinks {
                let column = if strips.pairing == Pairing::Each { sink.column(&n) } else { n.clone() };
                for lead in leads(rank(func, sink.value), together, &t, experts.choices)? {
                    r.emit(sink, &pointers[sink.result], &lead, &column)?;
                }
            }
            Ok(())
        })?;
        lines.push(open.to_string());
        lines.extend(text(&inner).into_iter().map(|l| format!("  {l}")));
        lines.push("}".to_string());
    }
    params.sizes(cx, &region)?;
    Ok(Epilogue { lines })
}

/// Code of an epilogue whose lanes make neighbouring columns of a row together.
pub(super) struct Runs {
    /// How many: 4, or 1 where results do not come in such runs.
    pub columns: i64,
    /// Statements at column n, the first of a lane's: what depends on the expert and on columns alone.
    pub once: Vec<String>,
    /// Statements at row t, choice j. They read the product from `held`, see [`Runs::held`].
    pub each: Vec<String>,
    /// Declares `held`: what the lane's columns need of the row at `own_row` in shared memory, where the lane's place in a strip is `own`.
    pub held: String,
}

/// Prints the epilogue for a template whose rows of a token are apart.
///
/// # Errors
/// As [`epilogue`].
pub(super) fn runs(
    cx: &Cx,
    body: &Body,
    experts: &Experts,
    strips: &Strips,
    found: &[Sink],
    params: &mut Params,
) -> Result<Runs> {
    let float = |s: &Sink| body.epilogue().graph.ty(s.value).as_tensor().is_some_and(|t| t.dtype.is_float());
    let whole = |s: &Sink| s.columns % RUN == 0 && s.columns == strips.width(experts.n) && float(s);
    let expert = |_: &Index, _: &Index| "expert".to_string();
    if !found.iter().all(whole) {
        let product = |_: &Index, _: &Index, local: &str| format!("own_row[{local}]");
        let held = Held { product: &product, expert: &expert };
        let code = epilogue(cx, body, experts, strips, found, false, &held, params)?;
        return Ok(Runs { columns: 1, once: Vec::new(), each: code.lines, held: String::new() });
    }
    let half = experts.n / 2;
    let product = |at: &[Index]| match (strips.pairing, at[2].offset()) {
        (Pairing::Halves, c) if c >= half => format!("held[{}]", c - half + RUN),
        (_, c) => format!("held[{c}]"),
    };
    let (mut region, pointers) = printer(cx, body, experts, &product, &expert, params)?;
    let (lines, ()) = region.scope(|r| {
        for sink in found {
            for lead in leads(rank(body.epilogue(), sink.value), false, &Index::var("t"), experts.choices)? {
                r.store_four(sink.value, &pointers[sink.result], &[lead, vec![Index::var("n")]].concat())?;
            }
        }
        Ok(())
    })?;
    params.sizes(cx, &region)?;
    let (once, each) = lift(&lines, &["held", "t", "j"]);
    let load =
        |to: i64, from: &str| format!("*(Pack<f32, 4>*)(held + {to}) = *(const Pack<f32, 4>*)(own_row + {from});");
    let loads = match strips.pairing {
        Pairing::Each => vec![load(0, "own")],
        Pairing::Interleaved => vec![load(0, "2 * own"), load(4, "2 * own + 4")],
        Pairing::Halves => vec![load(0, "own"), load(4, "OUTPUTS + own")],
    };
    let held = format!("alignas(16) f32 held[{}];\n{}", 4 * loads.len(), loads.join("\n"));
    Ok(Runs { columns: RUN, once, each, held })
}

/// A printer of the epilogue, and the pointers to results. `product` gives the product at an index, `expert` the expert of a row.
fn printer<'s>(
    cx: &'s Cx,
    body: &'s Body,
    experts: &Experts,
    product: &'s dyn Fn(&[Index]) -> String,
    expert: &'s dyn Fn(&Index, &Index) -> String,
    params: &mut Params,
) -> Result<(Region<'s>, Vec<String>)> {
    let func = body.epilogue();
    let mut sources = Vec::new();
    for i in 0..func.params.len() {
        sources.push(match body.epilogue_param(i) {
            Origin::Operand(o) if only_picks_expert(cx, func, i, o, experts) => {
                Source::Given(Box::new(move |at: &[Index]| expert(&at[0], &at[1])))
            }
            Origin::Operand(o) => params.source(cx, o)?,
            Origin::Main(v) if v == experts.product => Source::Given(Box::new(product)),
            _ => return Err(unsupported("this value in an epilogue", "the product and operands")),
        });
    }
    let pointers = (0..cx.op.results.len()).map(|r| params.result(cx, r)).collect::<Result<Vec<_>>>()?;
    Ok((Region::new(func, cx.module(), sources), pointers))
}

/// Where an epilogue puts its results, and what tells its names from another's.
pub(super) struct To<'t> {
    /// Pointers to the results, by number.
    pub pointers: &'t [String],
    /// See [`Region::tagged`].
    pub tag: Option<&'static str>,
}

/// Variables of the text: the code of an epilogue at column `n` of the results of token `t`, of choice `j` or of all choices.
pub(super) struct Place {
    /// The token.
    pub t: Index,
    /// The choice; `None`: rows of a token are together.
    pub j: Option<Index>,
    /// The column.
    pub n: Index,
}

/// Prints an epilogue at several places, each cut into what needs no product, where experts are known from the start, and the rest.
///
/// # Errors
/// An op that scalar code cannot make, or results that need columns in different ways.
#[expect(clippy::too_many_arguments, reason = "what a template knows when it prints it")]
pub(super) fn split_epilogue(
    cx: &Cx,
    body: &Body,
    experts: &Experts,
    strips: &Strips,
    found: &[Sink],
    held: &Held,
    to: &To,
    params: &mut Params,
    places: &[Place],
) -> Result<Vec<Split>> {
    let func = body.epilogue();
    if strips.pairing == Pairing::Each && found.iter().any(|s| matches!(s.need, Need::Interleaved { .. })) {
        return Err(unsupported(
            "results of pairs of columns beside others",
            "one or the other; template `moe_stream`",
        ));
    }
    let mut sources = Vec::new();
    for i in 0..func.params.len() {
        sources.push(match body.epilogue_param(i) {
            Origin::Operand(o) if only_picks_expert(cx, func, i, o, experts) => {
                Source::Ready(Box::new(|at: &[Index]| (held.expert)(&at[0], &at[1])))
            }
            Origin::Operand(o) => params.source(cx, o)?,
            Origin::Main(v) if v == experts.product => {
                Source::Given(Box::new(|at: &[Index]| (held.product)(&at[0], &at[1], &strips.local(&at[2]))))
            }
            _ => return Err(unsupported("this value in an epilogue", "the product and operands")),
        });
    }
    let mut region = Region::new(func, cx.module(), sources);
    if let Some(tag) = to.tag {
        region = region.tagged(tag);
    }
    let mut out = Vec::new();
    for place in places {
        let (lines, ()) = region.scope(|r| {
            for sink in found {
                let column = if strips.pairing == Pairing::Each { sink.column(&place.n) } else { place.n.clone() };
                let leads = match &place.j {
                    Some(j) => vec![vec![place.t.clone(), j.clone()]],
                    None => leads(rank(func, sink.value), true, &place.t, experts.choices)?,
                };
                for lead in leads {
                    r.emit(sink, &to.pointers[sink.result], &lead, &column)?;
                }
            }
            Ok(())
        })?;
        out.push(split(&lines));
    }
    params.sizes(cx, &region)?;
    Ok(out)
}

/// Indices in front of the column at which a value of this rank is stored.
fn leads(rank: usize, together: bool, t: &Index, choices: i64) -> Result<Vec<Vec<Index>>> {
    match (rank, together) {
        (2, true) => Ok(vec![vec![t.clone()]]),
        (3, true) => Ok((0..choices).map(|j| vec![t.clone(), Index::constant(j)]).collect()),
        (3, false) => Ok(vec![vec![t.clone(), Index::var("j")]]),
        _ => Err(unsupported("a sum over choices where rows of a token are apart", "template `moe_stream`")),
    }
}

/// True if parameter `i` of the epilogue is the choices that the product is made with, and is read only to pick rows of tables with at most a row an
/// expert: then the template knows the row, and what is no expert is outside of them.
fn only_picks_expert(cx: &Cx, func: &Func, i: usize, operand: usize, experts: &Experts) -> bool {
    let same = cx.op.operands.get(operand).is_some_and(|v| cx.op.operands.get(experts.ids) == Some(v));
    let Some(param) = func.param(i) else { return false };
    let picks = func.graph.users(param).iter().all(|(user, position)| {
        let op = func.graph.op(*user);
        let rows = func.graph.ty(op.operands[0]).as_tensor().and_then(|t| t.dims.first()).and_then(|d| d.as_const());
        op.kind == OpKind::GatherRows && *position == 1 && rows.is_some_and(|r| r <= experts.experts)
    });
    same && picks && !func.results.contains(&param)
}
