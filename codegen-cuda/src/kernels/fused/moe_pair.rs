//! `moe_pair`: two matmuls with a row's experts in one launch. What the first makes of a row, its *middle row*, the second reads.
//!
//! Owns the part that any text needs: both problems, the cut of their columns, the code of both epilogues, operands, and memory for the middle rows. A
//! [`Skeleton`] is the text with a way to choose geometry. Slots that every text has besides its own:
//!
//! - `first`, `second`: the stages' constants, each in a namespace of that name: what [`Experts::constants`] prints, and `TILES`, `HEIGHT` (columns of the
//!   product in a strip), `ROW_TILES`, `K_TILES`, `FAST` and `tile(strip, r)`, the tile of 16 rows of w that is number r of a strip.
//! - `finish_first`: stores the middle row of token `t`, choice `j` at column `n` (of `WIDTH`), of strip `strip`. It stands where `using namespace first` holds and
//!   `total(choice, at)` gives the product of that choice at column `at` of the strip, `expert(choice)` its expert or `EXPERTS`. Middle rows are `bf16* h`, `[T, J, WIDTH]`.
//! - `finish_second`: the same for the results of token `t` at column `n`, with all choices at hand: there is no `j`.
//! - `shared_x`: true if all choices of a token read the same row of x. `early`: true if the ids are complete before the kernel in front is.
//! - `params`: parameters after `(const bf16* x, const u8* w_first, const u8* w_second, const i32* ids, u32 tokens, bf16* h, u32* counters`.

use gossamer_ir::{DType, Kernel, Type};

use super::super::region::{Index, unsupported};
use super::super::{Cx, operand, single};
use super::moe::{Experts, Held, Strips, TILE, To, combines, epilogue_to, results_of};
use super::{Body, Params};
use crate::emit::{Piece, Text};
use crate::lower::{Arg, LowerError, Lowered};

type Result<T> = std::result::Result<T, LowerError>;

/// The text of the kernel and what goes with it.
pub(super) struct Skeleton {
    /// The template.
    pub text: &'static str,
    /// Pieces of the prelude that it uses.
    pub pieces: &'static [Piece],
    /// How the work is cut. The last argument: strips of each stage hold an even number of tiles.
    pub plan: fn(&[Experts; 2], [bool; 2]) -> Result<Plan>,
}

/// How the work of both stages is cut, and the launch.
pub(super) struct Plan {
    /// Tiles of 16 rows of w in a strip of each stage.
    pub tiles: [i64; 2],
    /// Blocks.
    pub blocks: i64,
    /// Threads of a block.
    pub threads: u32,
    /// Bytes of dynamic shared memory of a block.
    pub shared: u32,
    /// Words of [`Arg::Counters`].
    pub counters: u32,
    /// Slots of the text.
    pub slots: Vec<(&'static str, String)>,
}

/// The text in use. There is none yet: rule `chain/moe-pair` is off, and who enables it gets the two kernels all the same, with this template's refusal.
const SKELETON: Option<Skeleton> = None;

/// Lowers a kernel of template `moe_pair`.
pub fn lower(cx: &Cx, kernel: &Kernel) -> Result<Lowered> {
    let apart = "its stages as kernels of template `moe_stream` (leave rule chain/moe-pair off)";
    let skeleton = SKELETON.ok_or_else(|| unsupported("template `moe_pair`, which has no text yet", apart))?;
    lower_with(cx, kernel, &skeleton)
}

/// As [`lower`], with any text.
fn lower_with(cx: &Cx, kernel: &Kernel, skeleton: &Skeleton) -> Result<Lowered> {
    let Ok([a, b]) = <[Body; 2]>::try_from(Body::stages(kernel)) else {
        return Err(unsupported(format!("{} stages", kernel.depth()), "two"));
    };
    let shapes = [Experts::of(cx, &a)?, Experts::of(cx, &b)?];
    let [first, second] = &shapes;
    if first.tokens == 0 {
        return Ok(Lowered::default());
    }
    let (Some(x), None) = (first.x, second.x) else {
        return Err(unsupported("stages that do not read each other's rows", "a second stage of the first one's rows"));
    };
    if cx.op.operands.get(first.ids) != cx.op.operands.get(second.ids) {
        return Err(unsupported("stages with choices of their own", "the same ids in both"));
    }
    let found = [results_of(&a, first)?, results_of(&b, second)?];
    let middle = match a.epilogue().result_types().as_slice() {
        [Type::Tensor(t)] if t.dtype == DType::BF16 && t.rank() == 3 && !combines(&a, &found[0]) => t.clone(),
        types => {
            let types: Vec<String> = types.iter().map(Type::to_string).collect();
            return Err(unsupported(format!("{} between stages", types.join(", ")), "one bf16[T, J, K]"));
        }
    };
    let even = |i: usize| Ok(Strips::choose(&found[i], shapes[i].n, 1)?.tiles() == 2);
    let plan = (skeleton.plan)(&shapes, [even(0)?, even(1)?])?;
    let strips = [0, 1].map(|i| Strips::choose(&found[i], shapes[i].n, plan.tiles[i]));
    let [first_strips, second_strips] = strips;
    let (first_strips, second_strips) = (first_strips?, second_strips?);

    let mut params = Params::default();
    let product = |_: &Index, j: &Index, local: &str| format!("total({}, {local})", j.text());
    let expert = |_: &Index, j: &Index| format!("expert({})", j.text());
    let held = Held { product: &product, expert: &expert };
    let to = To { pointers: &["h".to_string()], tag: Some("m") };
    let finish_first = epilogue_to(cx, &a, first, &first_strips, &found[0], false, &held, &to, &mut params)?;
    let results = (0..cx.op.results.len()).map(|r| params.result(cx, r)).collect::<Result<Vec<_>>>()?;
    let to = To { pointers: &results, tag: None };
    let finish_second = epilogue_to(cx, &b, second, &second_strips, &found[1], true, &held, &to, &mut params)?;

    let (list, more) = params.finish();
    let list = if list.is_empty() { list } else { format!(", {list}") };
    let mut args = vec![
        operand(x),
        operand(first.w),
        operand(second.w),
        operand(first.ids),
        Arg::I32(first.tokens as i32),
        Arg::Scratch(0),
        Arg::Counters,
    ];
    args.extend(more);
    let name = format!("moe_pair_e{}_n{}_k{}_n{}_k{}", first.experts, first.n, first.k, second.n, second.k);
    let mut text = Text::new(name, kernel.summary(), skeleton.text)
        .set("first", namespace("first", first, &first_strips))
        .set("second", namespace("second", second, &second_strips))
        .set("finish_first", finish_first.lines.join("\n"))
        .set("finish_second", finish_second.lines.join("\n"))
        .set("shared_x", first.shared_x)
        .set("early", cx.early(first.ids))
        .set("params", list);
    for piece in skeleton.pieces {
        text = text.with(*piece);
    }
    for (slot, value) in &plan.slots {
        text = text.set(slot, value);
    }
    let mut launch = cx.launch(text.build(), plan.blocks, plan.threads, args)?;
    launch.shared = plan.shared;
    launch.dependent = true;
    let bytes = 2 * cx.values(&middle)?.iter().product::<i64>().max(0) as u64;
    Ok(Lowered { scratch: vec![bytes], counters: plan.counters, ..single(launch) })
}

/// A stage's constants.
fn namespace(name: &str, shape: &Experts, strips: &Strips) -> String {
    format!(
        "namespace {name} {{
{}
constexpr int TILES = {};  // of 16 rows of w in a strip
constexpr int HEIGHT = TILES * {TILE};
constexpr int ROW_TILES = (N + 15) / 16;
constexpr int K_TILES = (K + 63) / 64;
constexpr bool FAST = {};  // scales are stored as scale + 126
__device__ __forceinline__ int tile(int strip, int r) {{
  const int tile = {};
  return tile < ROW_TILES ? tile : ROW_TILES - 1;
}}
}}  // namespace {name}",
        shape.constants(strips),
        strips.tiles(),
        shape.fast,
        strips.tile(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::Cx;
    use crate::kernels::tests::cases::Case;
    use crate::kernels::tests::{emulate, pair};
    use crate::lower::OpInstance;

    /// A text that computes one element after the other, in one block: what the slots mean.
    const PLAIN: Skeleton = Skeleton {
        text: include_str!("../tests/moe_pair_plain.cu"),
        pieces: &[Piece::Dependent, Piece::Mxfp4],
        plan: |_, even| {
            let tiles = even.map(|even| if even { 2 } else { 3 });
            Ok(Plan { tiles, blocks: 1, threads: 256, shared: 0, counters: 1, slots: vec![] })
        },
    };

    fn plain(case: &Case) -> Result<Lowered> {
        let early = vec![false; case.operands.len()];
        let (operands, module, sizes) = (case.operands.as_slice(), &case.module, &case.sizes);
        let cx = Cx::new(OpInstance { op: &case.op, operands, module, sizes, early: &early });
        lower_with(&cx, case.op.attrs.kernel().unwrap(), &PLAIN)
    }

    #[test]
    fn without_a_text_it_is_refused_in_one_line() {
        for case in pair::cases() {
            let error = case.lower().unwrap_err().to_string();
            assert_eq!(error.lines().count(), 1);
            assert!(error.contains("moe_pair") && error.contains("chain/moe-pair"), "{error}");
        }
    }

    #[test]
    fn operands_are_bound_once() {
        for case in pair::cases() {
            let lowered = plain(&case).unwrap_or_else(|e| panic!("{}: {e}", case.name));
            let [launch] = lowered.launches.as_slice() else { panic!("{}", case.name) };
            let rows = case.sizes["T"] as u64 * pair::CHOICES as u64;
            assert_eq!(lowered.scratch, [rows * pair::MIDDLE as u64 * 2], "{}", case.name);
            assert_eq!((lowered.counters, launch.dependent), (1, true));
            let text = &launch.kernel.text;
            assert!(!text.contains("${"), "{text}");
            for (i, arg) in launch.args.iter().enumerate() {
                assert!(!launch.args[..i].contains(arg) || matches!(arg, Arg::I32(_) | Arg::I64(_)), "{arg:?} twice");
            }
            // Both epilogues pick rows of tables by the expert that is known.
            assert!(text.contains("expert(j)") && text.contains("expert(0)") && text.contains("h["), "{text}");
        }
    }

    #[test]
    fn choices_of_their_own_are_refused() {
        let mut case = pair::cases().remove(0);
        let ids = case.operands.iter().rposition(|t| t.to_string().starts_with("i32")).unwrap();
        let all: Vec<usize> = (0..case.operands.len()).filter(|i| case.operands[*i] == case.operands[ids]).collect();
        // The ids of the second stage's main op: the third time that they are an operand.
        case.op.operands[all[2]] = case.op.operands[0];
        let error = plain(&case).err().unwrap().to_string();
        assert!(error.contains("choices of their own"), "{error}");
    }

    #[test]
    fn the_slots_compile() {
        let Some(nvrtc) = crate::nvrtc::for_tests() else { return };
        for case in pair::cases() {
            let launch = plain(&case).unwrap().launches.remove(0);
            let source = crate::nvrtc::Source::new("pair", launch.kernel.text.clone());
            nvrtc.compile(&source).unwrap_or_else(|e| panic!("{}: {e}", case.name));
        }
    }

    /// What the printed stages compute, on the CPU against the interpreter. Needs g++: see [`emulate`].
    #[test]
    fn emulated_stages_agree_with_the_interpreter() {
        if emulate::filter().is_none() {
            return;
        }
        let cases = pair::cases();
        let wrong = emulate::run_with(&cases.iter().collect::<Vec<_>>(), &plain);
        assert!(wrong.is_empty(), "{wrong:?}");
    }
}
