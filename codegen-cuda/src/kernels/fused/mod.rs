//! Fused kernels: one file a template of [`gossamer_ir::template`].
//!
//! Owns what the templates share: which operand a region's value comes from ([`Body`]) and the parameters of a kernel ([`Params`]). The scalar code of
//! regions is [`super::region`]'s. Kernels here may be launched before their predecessor has ended ([`crate::lower::Launch::dependent`]): before
//! `wait_for_predecessors()` they touch nothing that a step computes.

mod cublaslt;
mod finish;
mod gemm;
mod gemm_plan;
mod gemm_results;
mod gemm_text;
mod map;
mod moe;
mod moe_counter;
mod moe_gemm;
mod moe_pair;
mod moe_stream;
mod moe_tile;
mod moe_wide;
mod router;
mod row;
mod single;
mod stage;
mod stream;
mod tile;

use std::borrow::Cow;
use std::collections::BTreeSet;

use gossamer_ir::kernel::Source as From;
use gossamer_ir::{Func, Kernel, OpKind, StateDecl, Type, Value};

use super::region::{Region, Source, malformed, unsupported};
use super::{Cx, kv};
use crate::emit::c_type;
use crate::lower::{Arg, LowerError, Lowered, Matrix, Part};

/// Lowers `kernel`.
pub fn lower(cx: &Cx) -> Result<Lowered, LowerError> {
    let kernel = cx.op.attrs.kernel().ok_or_else(|| cx.malformed("a kernel without a body"))?;
    let body = Body::new(kernel);
    match &**kernel.template() {
        "stream" => stream::lower(cx, &body),
        "tile" => tile::lower(cx, &body),
        "gemm" | "gemm_pieces" => gemm::lower(cx, &body),
        "moe_stream" => moe_stream::lower(cx, &body),
        "moe_tile" => moe_tile::lower(cx, &body),
        "moe_wide" => moe_wide::lower(cx, &body),
        "moe_pair" => moe_pair::lower(cx, kernel),
        "moe_gemm" => moe_gemm::lower(cx, &body),
        "router" => router::lower(cx, &body),
        "row" => row::lower(cx, &body),
        "map" => map::lower(cx, &body),
        "single" | "attention" => single::lower(cx, &body),
        "cublaslt" => cublaslt::lower(cx, &body),
        other => {
            let known = "stream, tile, gemm, gemm_pieces, moe_stream, moe_pair, moe_tile, moe_wide, moe_gemm, router, attention, \
                         row, map, cublaslt, single";
            Err(cx.unsupported(format!("template `{other}`"), known))
        }
    }
}

/// See [`crate::lower::settles`].
pub fn settles(template: &str) -> bool {
    matches!(template, "moe_stream" | "moe_wide")
}

/// Where a value of a region comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// It is an operand of the kernel.
    Operand(usize),
    /// The prologue computes it.
    Prologue(Value),
    /// The main region computes it.
    Main(Value),
    /// An earlier stage computes it.
    Before(Value),
}

/// The regions of a stage of a kernel and how values pass between them; most kernels have one stage.
pub(crate) struct Body<'a> {
    /// The kernel.
    pub kernel: &'a Kernel,
    stage: usize,
    main: &'a Func,
    epilogue: Cow<'a, Func>,
}

impl<'a> Body<'a> {
    /// The regions of `kernel`; without an epilogue, main's results are stored as they are.
    pub fn new(kernel: &'a Kernel) -> Body<'a> {
        let epilogue = kernel.epilogue().map_or_else(|| Cow::Owned(store_all(kernel.main())), Cow::Borrowed);
        Body { kernel, stage: 0, main: kernel.main(), epilogue }
    }

    /// The regions of each stage of `kernel`.
    pub fn stages(kernel: &'a Kernel) -> Vec<Body<'a>> {
        let stage = |(stage, s): (usize, &'a gossamer_ir::kernel::Stage)| {
            let epilogue = s.epilogue.as_ref().map_or_else(|| Cow::Owned(store_all(&s.main)), Cow::Borrowed);
            Body { kernel, stage, main: &s.main, epilogue }
        };
        kernel.stages().enumerate().map(stage).collect()
    }

    /// The main region.
    pub fn main(&self) -> &'a Func {
        self.main
    }

    /// What is done to operands as they are read.
    pub fn prologue(&self) -> Option<&'a Func> {
        self.kernel.stages().nth(self.stage).and_then(|s| s.prologue.as_ref())
    }

    /// The last region, whose results are the stage's.
    pub fn epilogue(&self) -> &Func {
        &self.epilogue
    }

    /// The op of the main region, by its first result, if it is the only one.
    pub fn heavy(&self) -> Result<Value, LowerError> {
        gossamer_ir::template::heavy(self.main).ok_or_else(|| malformed("a kernel whose main region is empty"))
    }

    /// Where parameter `i` of the main region comes from.
    pub fn main_param(&self, i: usize) -> Origin {
        match self.main.param(i) {
            Some(v) => self.main_value(v),
            None => Origin::Operand(self.kernel.operand_types().len()),
        }
    }

    /// The operand that parameter `i` of the prologue is, if no earlier stage hands it on.
    pub fn prologue_param(&self, i: usize) -> Option<usize> {
        self.kernel.operand_of(3 * self.stage, i)
    }

    /// Where a value of the main region comes from.
    pub fn main_value(&self, v: Value) -> Origin {
        match self.kernel.source(3 * self.stage + 1, v) {
            From::Operand(i) => Origin::Operand(i),
            From::Made { region, value } => match region.checked_sub(3 * self.stage) {
                Some(0) => Origin::Prologue(value),
                Some(_) => Origin::Main(value),
                None => Origin::Before(value),
            },
        }
    }

    /// Where parameter `i` of the epilogue comes from.
    pub fn epilogue_param(&self, i: usize) -> Origin {
        match self.main.results.get(i) {
            Some(v) => self.main_value(*v),
            None => {
                let before = (0..=3 * self.stage + 1).map(|r| self.kernel.operands_of(r)).sum::<usize>();
                Origin::Operand(before + i - self.main.results.len())
            }
        }
    }

    /// Sources of the prologue's parameters, all of which are operands.
    pub fn prologue_sources(&self, cx: &Cx, params: &mut Params) -> Result<Vec<Source<'static>>, LowerError> {
        let n = self.kernel.prologue().map_or(0, |f| f.params.len());
        (0..n).map(|i| params.source(cx, i)).collect()
    }

    /// Sources of the epilogue's parameters; `computed` gives those that the main region computes.
    pub fn epilogue_sources<'s>(
        &self,
        cx: &Cx,
        params: &mut Params,
        computed: impl Fn(Value) -> Option<Source<'s>>,
    ) -> Result<Vec<Source<'s>>, LowerError> {
        (0..self.epilogue.params.len())
            .map(|i| match self.epilogue_param(i) {
                Origin::Operand(o) => params.source(cx, o),
                Origin::Main(v) => {
                    computed(v).ok_or_else(|| unsupported("this result of main in an epilogue", "its first"))
                }
                Origin::Prologue(_) => {
                    let through = self.main.results.get(i).and_then(|v| computed(*v));
                    through
                        .ok_or_else(|| unsupported("a prologue's value in the epilogue", "main's results and operands"))
                }
                Origin::Before(_) => Err(unsupported("an earlier stage's value in the epilogue", "its main's results")),
            })
            .collect()
    }
}

/// A region that yields what it takes.
fn store_all(main: &Func) -> Func {
    let params = main.results.iter().map(|v| gossamer_ir::Param {
        name: "x".into(),
        ty: main.graph.ty(*v).clone(),
        weight: false,
    });
    let mut f = Func::new("epilogue", params.collect());
    f.results = (0..f.params.len()).filter_map(|i| f.param(i)).collect();
    f
}

/// The number of the parameter that a value is, if it is one.
pub(crate) fn parameter(f: &Func, v: Value) -> Option<usize> {
    let op = f.graph.op(v.op);
    (op.kind == OpKind::Param).then(|| op.attrs.int("index") as usize)
}

/// Parameters of a kernel and what they are bound to.
#[derive(Default)]
pub(crate) struct Params {
    text: Vec<String>,
    args: Vec<Arg>,
    operands: BTreeSet<usize>,
}

impl Params {
    /// The pointer to operand `i`, a row-major tensor.
    pub fn operand(&mut self, cx: &Cx, i: usize) -> Result<String, LowerError> {
        let t = cx.plain(i)?;
        let name = format!("x{i}");
        if self.operands.insert(i) {
            self.text.push(format!("const {}* {name}", c_type(t.dtype)));
            self.args.push(super::operand(i));
        }
        Ok(name)
    }

    /// Operand `i` as the source of a region's parameter.
    pub fn source(&mut self, cx: &Cx, i: usize) -> Result<Source<'static>, LowerError> {
        if !cx.is_state(i) {
            return self.operand(cx, i).map(Source::Memory);
        }
        let StateDecl::Kv { .. } = cx.state(i)? else {
            return Err(unsupported("token counts in a fused kernel", "kv caches"));
        };
        let (keys, values) = (format!("keys{i}"), format!("values{i}"));
        if self.operands.insert(i) {
            let element = c_type(kv::declaration(cx, i)?.dtype);
            for (name, part) in [(&keys, Part::Keys), (&values, Part::Values)] {
                self.text.push(format!("{element}* {name}"));
                self.args.push(Arg::Operand { index: i, part });
            }
        }
        Ok(Source::Cache { keys, values })
    }

    /// The pointer to result `r`; of a state, which lives in its operand's memory, none.
    pub fn result(&mut self, cx: &Cx, r: usize) -> Result<String, LowerError> {
        let name = format!("y{r}");
        if let Some(Type::Tensor(t)) = cx.op.results.get(r) {
            self.text.push(format!("{}* {name}", c_type(t.dtype)));
            self.args.push(super::result(r));
        }
        Ok(name)
    }

    /// How hardware copies boxes of operand `i`.
    pub fn tensor_map(&mut self, name: &str, i: usize, matrix: Matrix) {
        self.text.push(format!("const __grid_constant__ TensorMap {name}"));
        self.args.push(Arg::TensorMap { index: i, part: Part::Data, matrix });
    }

    /// An 8-byte integer.
    pub fn long(&mut self, name: &str, value: i64) {
        self.text.push(format!("i64 {name}"));
        self.args.push(Arg::I64(value));
    }

    /// A 4-byte integer.
    pub fn int(&mut self, name: &str, value: i64) {
        self.text.push(format!("i32 {name}"));
        self.args.push(Arg::I32(value as i32));
    }

    /// The symbolic dims that a region's text refers to.
    pub fn sizes(&mut self, cx: &Cx, region: &Region) -> Result<(), LowerError> {
        for (i, dim) in region.sizes().iter().enumerate() {
            self.text.push(format!("i64 {}{i}", region.tag()));
            self.args.push(Arg::I64(cx.size(dim)?.value));
        }
        Ok(())
    }

    /// The parameter list and the arguments.
    pub fn finish(self) -> (String, Vec<Arg>) {
        (self.text.join(", "), self.args)
    }
}
