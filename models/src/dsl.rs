//! The language models are written in: ordinary Rust that adds ops to a function.
//!
//! Every method infers the result type at once, so a shape error names the line of the model that made it. Weights are named by scope:
//! a layer function says `f.weight("attn.q.w", ..)` and a call `step.layer("layer", &args, "l3")` binds it to `@l3.attn.q.w`. Nothing here knows a
//! fused op.
//!
//! ```
//! use gossamer_ir::DType::{BF16, F32};
//! use gossamer_models::dsl::{ModelBuilder, dims};
//!
//! let mut m = ModelBuilder::new(|name| format!("model.{name}"));
//! m.symbol("T", 1, 64);
//! let mut f = m.func("mlp");
//! let x = f.input("x", BF16, &dims!["T", 64]);
//! let w = f.weight("up.w", BF16, &dims![128, 64]);
//! let y = f.matmul(x, w).unwrap();
//! f.finish(&[y]);
//! assert!(m.func("g").input("x", F32, &dims!["T"]).is_first());
//! ```

use std::panic::Location;

use gossamer_ir::{
    Attr, Attrs, DType, Dim, Func, InferError, Loc, Module, OpKind, Param, StateDecl, SymDecl, TensorType, Type, Value,
    WeightDecl,
};

/// A list of dims from integers and symbol names: `dims!["T", 2880]`.
#[macro_export]
macro_rules! dims {
    ($($d:expr),* $(,)?) => { [$($crate::dsl::IntoDim::into_dim($d)),*] };
}
pub use crate::dims;

/// Things that name a dim.
pub trait IntoDim {
    /// The dim.
    fn into_dim(self) -> Dim;
}

impl IntoDim for &str {
    fn into_dim(self) -> Dim {
        Dim::sym(self)
    }
}

impl IntoDim for usize {
    fn into_dim(self) -> Dim {
        Dim::from(self)
    }
}

impl IntoDim for i32 {
    fn into_dim(self) -> Dim {
        Dim::from(i64::from(self))
    }
}

impl IntoDim for &Dim {
    fn into_dim(self) -> Dim {
        self.clone()
    }
}

/// A value of the function being written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct T(Value);

impl T {
    /// The value in the graph.
    pub fn value(self) -> Value {
        self.0
    }

    /// True for the function's first parameter.
    pub fn is_first(self) -> bool {
        self.0.op.index() == 0
    }
}

/// Result of a DSL method.
pub type Built<V = T> = Result<V, InferError>;

/// A module being written.
pub struct ModelBuilder {
    module: Module,
    /// Checkpoint key of a weight by its name in the module.
    key: Box<dyn Fn(&str) -> String>,
}

impl ModelBuilder {
    /// An empty module. `key` maps a weight's name to its name in checkpoints.
    pub fn new(key: impl Fn(&str) -> String + 'static) -> ModelBuilder {
        ModelBuilder { module: Module::default(), key: Box::new(key) }
    }

    /// Declares a symbol with inclusive bounds.
    pub fn symbol(&mut self, name: &str, min: i64, max: i64) {
        self.module.syms.push(SymDecl { name: name.into(), min, max });
    }

    /// Declares state.
    pub fn state(&mut self, decl: StateDecl) {
        self.module.states.push(decl);
    }

    /// Starts a function; it becomes part of the module with [`FuncBuilder::finish`].
    pub fn func(&mut self, name: &str) -> FuncBuilder<'_> {
        FuncBuilder { model: self, func: Func::new(name, vec![]) }
    }

    /// The finished module.
    pub fn finish(self) -> Module {
        self.module
    }
}

/// A function being written.
pub struct FuncBuilder<'m> {
    model: &'m mut ModelBuilder,
    func: Func,
}

macro_rules! ops {
    ($($(#[$doc:meta])* $name:ident($($arg:ident),*) = $kind:ident;)*) => {$(
        $(#[$doc])*
        #[track_caller]
        pub fn $name(&mut self, $($arg: T),*) -> Built {
            self.one(OpKind::$kind, &[$($arg),*], Attrs::default())
        }
    )*};
}

impl FuncBuilder<'_> {
    fn param(&mut self, name: &str, ty: Type, weight: bool) -> T {
        let mut params = std::mem::take(&mut self.func.params);
        let index = params.len();
        params.push(Param { name: name.into(), ty: ty.clone(), weight });
        self.func.params = params;
        let op = self.func.graph.add(gossamer_ir::Op {
            kind: OpKind::Param,
            attrs: Attrs::from([("index", Attr::Int(index as i64))]),
            operands: vec![],
            results: vec![ty],
            names: vec![name.into()],
            seq: 0,
            loc: None,
        });
        T(Value { op, result: 0 })
    }

    /// A tensor parameter.
    pub fn input(&mut self, name: &str, dtype: DType, dims: &[Dim]) -> T {
        self.param(name, Type::tensor(dtype, dims.iter().cloned()), false)
    }

    /// A state parameter of the declared state `decl`.
    pub fn state_input(&mut self, name: &str, decl: &StateDecl) -> T {
        self.param(name, decl.ty(), false)
    }

    /// A weight parameter: bound by scope and name at each call, see [`FuncBuilder::layer`].
    pub fn weight(&mut self, name: &str, dtype: DType, dims: &[Dim]) -> T {
        self.param(name, Type::tensor(dtype, dims.iter().cloned()), true)
    }

    /// A parameter that callers fill with the result of weight-only work, such as a table.
    pub fn table_input(&mut self, name: &str, dtype: DType, dims: &[Dim]) -> T {
        self.weight(name, dtype, dims)
    }

    /// A weight of the module itself, declared at its first use.
    #[track_caller]
    pub fn module_weight(&mut self, name: &str, dtype: DType, dims: &[Dim]) -> Built {
        self.declare(name, TensorType::new(dtype, dims.iter().cloned()));
        self.func.weight(&self.model.module, name).map(T)
    }

    fn declare(&mut self, name: &str, ty: TensorType) {
        if self.model.module.weight(name).is_none() {
            let key = (self.model.key)(name);
            self.model.module.weights.push(WeightDecl { name: name.into(), ty, key });
        }
    }

    /// The type of a value.
    pub fn ty(&self, x: T) -> &Type {
        self.func.graph.ty(x.0)
    }

    /// Gives a value its name in dumps.
    pub fn name(&mut self, x: T, name: &str) -> T {
        self.func.graph.op_mut(x.0.op).names[x.0.result as usize] = name.into();
        x
    }

    /// Adds any op of the table.
    #[track_caller]
    pub fn op(&mut self, kind: OpKind, operands: &[T], attrs: Attrs) -> Built<Vec<T>> {
        let here = Location::caller();
        let loc = Loc { file: here.file().into(), line: here.line(), column: here.column() };
        let operands = operands.iter().map(|t| t.0).collect();
        let names = kind.info().results;
        let values = self.func.add(&self.model.module, kind, operands, attrs, names, Some(loc))?;
        Ok(values.into_iter().map(T).collect())
    }

    #[track_caller]
    fn one(&mut self, kind: OpKind, operands: &[T], attrs: Attrs) -> Built {
        self.op(kind, operands, attrs).map(|v| v[0])
    }

    ops! {
        /// `x + y`; y's dims may be a suffix of x's.
        add(x, y) = Add;
        /// `x - y`.
        sub(x, y) = Sub;
        /// `x * y`.
        mul(x, y) = Mul;
        /// `x * sigmoid(x)`.
        silu(x) = Silu;
        /// Rows of x times the transpose of `w`, in f32.
        matmul(x, w) = MatMul;
        /// Rows of x times the chosen experts' weights, in f32.
        moe_matmul(x, w, ids) = MoeMatMul;
        /// Weighted sum over the chosen experts.
        moe_combine(x, weights) = MoeCombine;
        /// Expands an MXFP4 weight.
        dequant(w) = Dequant;
        /// Rows of x by index.
        gather_rows(x, ids) = GatherRows;
        /// Softmax of the last axis.
        softmax(x) = Softmax;
        /// Index of the greatest element of the last axis.
        argmax(x) = ArgMax;
        /// `ln sum e^x` of the last axis.
        logsumexp(x) = LogSumExp;
        /// Rotary embedding.
        rope(x, pos, table) = Rope;
        /// Stores keys and values.
        kv_write(kv, k, v, pos, seq, pages) = KvWrite;
        /// Log probability of given tokens.
        token_logprob(logits, tokens) = TokenLogprob;
    }

    /// Converts the element type.
    #[track_caller]
    pub fn cast(&mut self, x: T, to: DType) -> Built {
        self.one(OpKind::Cast, &[x], Attrs::from([("to", Attr::DType(to))]))
    }

    /// Other dims for the same elements.
    #[track_caller]
    pub fn reshape(&mut self, x: T, dims: &[Dim]) -> Built {
        self.one(OpKind::Reshape, &[x], Attrs::from([("dims", Attr::Dims(dims.to_vec()))]))
    }

    /// Repeats axes of size 1.
    #[track_caller]
    pub fn broadcast(&mut self, x: T, dims: &[Dim]) -> Built {
        self.one(OpKind::Broadcast, &[x], Attrs::from([("dims", Attr::Dims(dims.to_vec()))]))
    }

    /// `x w^T + b`, in f32.
    #[track_caller]
    pub fn linear(&mut self, x: T, w: T, b: T) -> Built {
        let y = self.matmul(x, w)?;
        self.add(y, b)
    }

    /// Root mean square normalisation.
    #[track_caller]
    pub fn rms_norm(&mut self, x: T, w: T, eps: f64) -> Built {
        self.one(OpKind::RmsNorm, &[x, w], Attrs::from([("eps", Attr::Float(eps))]))
    }

    /// The k greatest of the last axis: values and indices.
    #[track_caller]
    pub fn topk(&mut self, x: T, k: usize) -> Built<(T, T)> {
        let v = self.op(OpKind::TopK, &[x], Attrs::from([("k", Attr::Int(k as i64))]))?;
        Ok((v[0], v[1]))
    }

    /// Attention over a paged cache; see the op table for `attrs`.
    #[track_caller]
    pub fn attention(&mut self, operands: &[T], scale: f64, window: usize) -> Built {
        let attrs = Attrs::from([("scale", Attr::Float(scale)), ("window", Attr::Int(window as i64))]);
        self.one(OpKind::Attention, operands, attrs)
    }

    /// Clamped gated activation over interleaved gate and up.
    #[track_caller]
    pub fn swiglu(&mut self, x: T, alpha: f64, limit: f64) -> Built {
        self.one(OpKind::Swiglu, &[x], Attrs::from([("alpha", Attr::Float(alpha)), ("limit", Attr::Float(limit))]))
    }

    /// An integer constant of rank 0.
    #[track_caller]
    pub fn int(&mut self, value: i64) -> Built {
        let attrs = Attrs::from([
            ("dims", Attr::Dims(vec![])),
            ("dtype", Attr::DType(DType::I32)),
            ("value", Attr::Float(value as f64)),
        ]);
        self.one(OpKind::Const, &[], attrs)
    }

    /// Calls a finished function. Its `weight` parameters beyond `args` are bound to the module weights `{scope}.{parameter}`, declared here.
    #[track_caller]
    pub fn layer(&mut self, callee: &str, args: &[T], scope: &str) -> Built<Vec<T>> {
        let params = self.model.module.func(callee).map(|f| f.params.clone()).unwrap_or_default();
        let mut operands = args.to_vec();
        for p in params.iter().skip(args.len()) {
            if let (true, Type::Tensor(ty)) = (p.weight, &p.ty) {
                let name = format!("{scope}.{}", p.name);
                self.declare(&name, ty.clone());
                operands.push(T(self.func.weight(&self.model.module, &name)?));
            }
        }
        self.op(OpKind::Call, &operands, Attrs::from([("callee", Attr::from(callee))]))
    }

    /// Ends the function and adds it to the module.
    pub fn finish(mut self, results: &[T]) {
        self.func.results = results.iter().map(|t| t.0).collect();
        self.model.module.funcs.push(self.func);
    }
}
