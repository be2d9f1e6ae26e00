//! Running an op, and running a function with its calls and weights.

use std::collections::BTreeMap;
use std::rc::Rc;

use super::*;
use crate::graph::{Op, OpId, Value};
use crate::module::{Func, Module};

/// Evaluates one op on its operands. Leaves and calls are errors: the caller binds them.
///
/// `states` are the stores that state operands number; ops change them in place and return the same number.
pub fn eval_op(
    op: &Op,
    operands: &[Datum],
    states: &mut [StateStore],
    sizes: &Bindings,
    rounding: Rounding,
) -> Result<Vec<Datum>, EvalError> {
    let mut cx = EvalCx { kind: op.kind, operands, attrs: &op.attrs, results: &op.results, sizes, rounding, states };
    (op.kind.info().eval)(&mut cx)
}

/// Runs function `name` of `module`, with its calls.
///
/// `args` match the function's parameters; `weights` gives a weight by its name in the module and may be asked more than once; `sizes` binds
/// every symbol that occurs. A value is freed after its last use.
pub fn run_func(
    module: &Module,
    name: &str,
    args: Vec<Datum>,
    weights: &dyn Fn(&str) -> Result<Tensor, EvalError>,
    states: &mut [StateStore],
    sizes: &Bindings,
    rounding: Rounding,
) -> Result<Vec<Datum>, EvalError> {
    let index = module.funcs.iter().position(|f| &*f.name == name);
    let Some(index) = index else {
        return Err(bad_func(name, "is not defined in this module; check the name".into()));
    };
    let mut run = Run { module, weights, sizes, rounding, orders: BTreeMap::new() };
    run.func(index, args, states)
}

fn bad_func(name: &str, message: String) -> EvalError {
    EvalError::Func { name: name.into(), message }
}

/// What stays the same during a run.
struct Run<'a> {
    module: &'a Module,
    weights: &'a dyn Fn(&str) -> Result<Tensor, EvalError>,
    sizes: &'a Bindings,
    rounding: Rounding,
    /// Evaluation order of each function that was called, and how often each value is read.
    orders: BTreeMap<usize, Rc<Order>>,
}

struct Order {
    ops: Vec<OpId>,
    reads: BTreeMap<Value, usize>,
}

impl Order {
    fn of(f: &Func) -> Result<Order, EvalError> {
        let ops = f.graph.order().map_err(|_| bad_func(&f.name, "has a cycle; verify the module".into()))?;
        let mut reads = BTreeMap::new();
        let operands = ops.iter().flat_map(|id| &f.graph.op(*id).operands);
        for value in operands.chain(&f.results) {
            *reads.entry(*value).or_insert(0) += 1;
        }
        Ok(Order { ops, reads })
    }
}

/// Values that are still to be read.
struct Live {
    values: BTreeMap<Value, (Datum, usize)>,
}

impl Live {
    /// Reads a value; frees it if this was the last time.
    fn take(&mut self, f: &Func, value: Value) -> Result<Datum, EvalError> {
        let missing = || bad_func(&f.name, "reads a value that no op makes; verify the module".into());
        let (datum, left) = self.values.get_mut(&value).ok_or_else(missing)?;
        *left = left.saturating_sub(1);
        if *left > 0 {
            return Ok(datum.clone());
        }
        self.values.remove(&value).map(|(datum, _)| datum).ok_or_else(missing)
    }
}

impl Run<'_> {
    fn func(&mut self, index: usize, args: Vec<Datum>, states: &mut [StateStore]) -> Result<Vec<Datum>, EvalError> {
        let f = &self.module.funcs[index];
        self.check_args(f, &args, states)?;
        let order = match self.orders.get(&index) {
            Some(order) => order.clone(),
            None => {
                let order = Rc::new(Order::of(f)?);
                self.orders.insert(index, order.clone());
                order
            }
        };
        let mut args: Vec<Option<Datum>> = args.into_iter().map(Some).collect();
        let mut live = Live { values: BTreeMap::new() };
        for id in &order.ops {
            let op = f.graph.op(*id);
            let operands = op.operands.iter().map(|v| live.take(f, *v)).collect::<Result<Vec<_>, _>>()?;
            let results = self.op(index, op, operands, &mut args, states)?;
            for (i, datum) in results.into_iter().enumerate() {
                let value = Value { op: *id, result: i as u16 };
                if let Some(reads) = order.reads.get(&value) {
                    live.values.insert(value, (datum, *reads));
                }
            }
        }
        f.results.iter().map(|v| live.take(f, *v)).collect()
    }

    fn op(
        &mut self,
        caller: usize,
        op: &Op,
        operands: Vec<Datum>,
        args: &mut [Option<Datum>],
        states: &mut [StateStore],
    ) -> Result<Vec<Datum>, EvalError> {
        match op.kind {
            OpKind::Param => {
                // Each parameter has one op, so the argument is handed over and can be freed after its last use.
                let arg = usize::try_from(op.attrs.int("index")).ok().and_then(|i| args.get_mut(i)?.take());
                let name = &self.module.funcs[caller].name;
                arg.map(|a| vec![a]).ok_or_else(|| bad_func(name, "reads a parameter that it does not declare".into()))
            }
            OpKind::Weight => (self.weights)(op.attrs.word("name")).map(|t| vec![t.into()]),
            OpKind::Call => {
                let name = op.attrs.word("callee");
                // Only functions before the caller: calls cannot recurse.
                match self.module.funcs[..caller].iter().position(|f| &*f.name == name) {
                    Some(callee) => self.func(callee, operands, states),
                    None => Err(bad_func(name, "is not defined before the function that calls it".into())),
                }
            }
            _ => eval_op(op, &operands, states, self.sizes, self.rounding),
        }
    }

    /// Arguments must have the declared types, so that evaluation cannot meet a shape it does not expect.
    fn check_args(&self, f: &Func, args: &[Datum], states: &[StateStore]) -> Result<(), EvalError> {
        if args.len() != f.params.len() {
            return Err(bad_func(&f.name, format!("has {} arguments, expected {}", args.len(), f.params.len())));
        }
        for (param, arg) in f.params.iter().zip(args) {
            let fits = match (&param.ty, arg) {
                (Type::Tensor(want), Datum::Tensor(t)) => {
                    let shape = want
                        .shape(self.sizes)
                        .map_err(|s| bad_func(&f.name, format!("symbol `{s}` has no value; bind it before running")))?;
                    t.dtype == want.dtype
                        && t.shape.len() == shape.len()
                        && t.shape.iter().zip(&shape).all(|(a, b)| *a as i64 == *b)
                }
                (Type::State(family, _), Datum::State(s)) => match states.get(*s) {
                    Some(StateStore::Kv(_)) => *family == crate::ty::StateFamily::Kv,
                    Some(StateStore::Counts(_)) => *family == crate::ty::StateFamily::Counts,
                    None => false,
                },
                _ => false,
            };
            if !fits {
                let found = match arg {
                    Datum::Tensor(t) => t.to_string(),
                    Datum::State(s) => format!("state {s}"),
                };
                return Err(bad_func(&f.name, format!("argument `%{}` is {found}, expected {}", param.name, param.ty)));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use crate::interp::testing::*;
    use crate::module::{Func, Module, Param, StateDecl, SymDecl, WeightDecl};
    use crate::ty::TensorType;

    fn param(name: &str, ty: &Type) -> Param {
        Param { name: name.into(), ty: ty.clone(), weight: false }
    }

    /// `@twice(x) = x * w * w` by two calls of `@scale(x, w) = x * w`, and a function that passes state through.
    fn module() -> Module {
        let x = Type::tensor(DType::F32, [Dim::sym("T"), Dim::from(2i64)]);
        let w = TensorType::new(DType::BF16, [Dim::from(2i64)]);
        let kv = StateDecl::Kv { name: "kv".into(), heads: 1, head_dim: 1, page: 1, window: None, dtype: DType::F32 };
        let mut m = Module {
            syms: vec![SymDecl { name: "T".into(), min: 0, max: 8 }],
            weights: vec![WeightDecl { name: "w".into(), ty: w.clone(), key: "w".into() }],
            states: vec![kv],
            ..Module::default()
        };
        let mut scale = Func::new("scale", vec![param("x", &x), param("w", &Type::Tensor(w))]);
        let args = vec![scale.param(0).unwrap(), scale.param(1).unwrap()];
        scale.results = scale.add(&m, OpKind::Mul, args, Attrs::default(), &["y"], None).unwrap();
        m.funcs.push(scale);
        let mut twice = Func::new("twice", vec![param("x", &x)]);
        let w = twice.weight(&m, "w").unwrap();
        let mut y = twice.param(0).unwrap();
        for _ in 0..2 {
            let callee = Attrs::from([("callee", Attr::from("scale"))]);
            y = twice.add(&m, OpKind::Call, vec![y, w], callee, &["y"], None).unwrap()[0];
        }
        twice.results = vec![y, twice.param(0).unwrap()];
        m.funcs.push(twice);
        let mut pass = Func::new("pass", vec![param("kv", &m.states[0].ty())]);
        pass.results = vec![pass.param(0).unwrap()];
        m.funcs.push(pass);
        m
    }

    fn weight(name: &str) -> Result<Tensor, EvalError> {
        match name {
            "w" => Ok(bf16s(&[2], &[2.0, 3.0])),
            _ => Err(EvalError::Weight { name: name.into(), message: "is missing".into() }),
        }
    }

    fn run(name: &str, args: Vec<Datum>, t: i64) -> Result<Vec<Datum>, EvalError> {
        let sizes = Bindings::from([("T".into(), t)]);
        let mut states = [StateStore::Kv(KvStore::new(1, 1, 1, 1, DType::F32))];
        run_func(&module(), name, args, &weight, &mut states, &sizes, Rounding::Exact)
    }

    #[test]
    fn calls_weights_and_parameters() {
        let x = f32s(&[2, 2], &[1.0, 1.0, 5.0, -1.0]);
        let out = run("twice", vec![x.clone().into()], 2).unwrap();
        assert_eq!(out[0].as_tensor().unwrap().to_f32().to_vec(), [4.0, 9.0, 20.0, -9.0]);
        assert_eq!(out[1].as_tensor().unwrap().to_f32(), x.to_f32());
        assert!(matches!(run("pass", vec![Datum::State(0)], 2).unwrap()[..], [Datum::State(0)]));
    }

    #[test]
    fn wrong_arguments_are_errors() {
        let x = f32s(&[2, 2], &[0.0; 4]);
        let text = |name: &str, args, t| run(name, args, t).unwrap_err().to_string();
        assert_eq!(text("nothing", vec![], 2), "function `@nothing`: is not defined in this module; check the name");
        assert_eq!(text("twice", vec![], 2), "function `@twice`: has 0 arguments, expected 1");
        assert_eq!(
            text("twice", vec![x.into()], 3),
            "function `@twice`: argument `%x` is f32[2, 2], expected f32[T, 2]"
        );
        assert_eq!(
            text("pass", vec![Datum::State(4)], 2),
            "function `@pass`: argument `%kv` is state 4, expected kv<kv>"
        );
    }
}
