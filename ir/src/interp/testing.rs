//! Helpers for the tests of evaluation functions: an op is checked by the op table's own type rule, then evaluated.

use std::collections::BTreeSet;

pub(crate) use super::*;
pub(crate) use crate::attr::Attr;
use crate::module::{Module, StateDecl, SymDecl};
use crate::op::{InferCx, infer};

/// One evaluation of an op.
pub(crate) struct Eval {
    kind: OpKind,
    operands: Vec<Datum>,
    attrs: Attrs,
    rounding: Rounding,
    pub(crate) states: Vec<StateStore>,
    decls: Vec<StateDecl>,
    sizes: Bindings,
}

impl Eval {
    pub(crate) fn new(kind: OpKind) -> Eval {
        Eval {
            kind,
            operands: vec![],
            attrs: Attrs::default(),
            rounding: Rounding::Exact,
            states: vec![],
            decls: vec![],
            sizes: Bindings::new(),
        }
    }

    pub(crate) fn on<const N: usize>(mut self, operands: [Tensor; N]) -> Eval {
        self.operands.extend(operands.into_iter().map(Datum::Tensor));
        self
    }

    pub(crate) fn state(mut self, decl: StateDecl, store: StateStore) -> Eval {
        self.operands.push(Datum::State(self.states.len()));
        self.states.push(store);
        self.decls.push(decl);
        self
    }

    pub(crate) fn attrs<const N: usize>(mut self, attrs: [(&'static str, Attr); N]) -> Eval {
        self.attrs = Attrs::from(attrs);
        self
    }

    pub(crate) fn set_attrs(&mut self, attrs: Attrs) {
        self.attrs = attrs;
    }

    pub(crate) fn rounding(mut self, rounding: Rounding) -> Eval {
        self.rounding = rounding;
        self
    }

    /// Every result, after checking that shapes and dtypes are those of the type rule.
    pub(crate) fn all(&mut self) -> Result<Vec<Datum>, EvalError> {
        let module = Module {
            states: self.decls.clone(),
            syms: vec![SymDecl { name: "T".into(), min: 0, max: 9 }],
            ..Module::default()
        };
        let types: Vec<Type> = self
            .operands
            .iter()
            .map(|d| match d {
                Datum::Tensor(t) => Type::tensor(t.dtype, t.shape.iter().map(|n| Dim::from(*n as i64))),
                Datum::State(s) => self.decls[*s].ty(),
            })
            .collect();
        let attrs = self.kind.complete_attrs(self.attrs.clone()).unwrap();
        let results = infer(self.kind, &InferCx { operands: &types, attrs: &attrs, module: &module }).unwrap();
        let mut cx = EvalCx {
            kind: self.kind,
            operands: &self.operands,
            attrs: &attrs,
            results: &results,
            sizes: &self.sizes,
            rounding: self.rounding,
            states: &mut self.states,
        };
        let out = (self.kind.info().eval)(&mut cx)?;
        assert_eq!(out.len(), results.len());
        for (datum, ty) in out.iter().zip(&results) {
            match (datum, ty) {
                (Datum::Tensor(t), Type::Tensor(want)) => {
                    let shape: Vec<i64> = t.shape.iter().map(|n| *n as i64).collect();
                    assert_eq!((t.dtype, shape), (want.dtype, want.shape(&self.sizes).unwrap()));
                    Tensor::new(t.dtype, &t.shape, t.data.clone()).unwrap();
                }
                (Datum::State(_), Type::State(..)) => {}
                _ => panic!("{datum:?} is not {ty}"),
            }
        }
        Ok(out)
    }

    /// The first result.
    pub(crate) fn tensor(mut self) -> Tensor {
        self.all().unwrap().remove(0).as_tensor().unwrap().clone()
    }

    /// The first result's elements.
    pub(crate) fn values(self) -> Vec<f32> {
        self.tensor().to_f32().into_owned()
    }

    pub(crate) fn error(mut self) -> EvalError {
        self.all().unwrap_err()
    }
}

pub(crate) fn dims(dims: &[i64]) -> Attr {
    Attr::Dims(dims.iter().map(|d| Dim::from(*d)).collect())
}

pub(crate) fn f32s(shape: &[usize], v: &[f32]) -> Tensor {
    Tensor::f32(shape, v.to_vec()).unwrap()
}

pub(crate) fn bf16s(shape: &[usize], v: &[f32]) -> Tensor {
    Tensor::bf16(shape, v.iter().map(|x| half::bf16::from_f32(*x)).collect()).unwrap()
}

pub(crate) fn i32s(shape: &[usize], v: &[i32]) -> Tensor {
    Tensor::i32(shape, v.to_vec()).unwrap()
}

/// Numbers in -1..1 from a small generator.
pub(crate) fn noise(n: usize, seed: u32) -> Vec<f32> {
    let mut s = seed.wrapping_mul(747796405).wrapping_add(1);
    (0..n)
        .map(|_| {
            s = s.wrapping_mul(1664525).wrapping_add(1013904223);
            (s >> 8) as f32 / 8388608.0 - 1.0
        })
        .collect()
}

pub(crate) fn bits(v: &[f32]) -> Vec<u32> {
    v.iter().map(|x| x.to_bits()).collect()
}

#[track_caller]
pub(crate) fn close(got: &[f32], want: &[f32], tolerance: f32) {
    assert_eq!(got.len(), want.len());
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        assert!((g - w).abs() <= tolerance * w.abs().max(1.0), "element {i}: {g}, expected {w}");
    }
}

/// Runs `f` on pools of 1, 2 and 5 threads and checks that the results are equal bits.
pub(crate) fn same_on_any_pool(f: impl Fn() -> Vec<f32> + Sync) -> Vec<f32> {
    let run = |n| rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap().install(&f);
    let results: Vec<Vec<f32>> = [1, 2, 5].into_iter().map(run).collect();
    let distinct: BTreeSet<_> = results.iter().map(|v| bits(v)).collect();
    assert_eq!(distinct.len(), 1, "results depend on the number of threads");
    results.into_iter().next().unwrap()
}
