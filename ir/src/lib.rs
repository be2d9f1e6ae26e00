//! Tensor IR: what a model means, before anyone decides how to run it.
//!
//! Owns types, symbolic dims, the op table, the graph (on petgraph), the text format, the verifier, the reference interpreter and dumps.
//! Must never know e-graphs, CUDA, files or models.
//!
//! ```
//! use gossamer_ir::{Attr, Attrs, DType, Dim, Func, Module, OpKind, Param, SymDecl, Type};
//!
//! let mut module = Module::default();
//! module.syms.push(SymDecl { name: "T".into(), min: 1, max: 64 });
//! let x = Type::tensor(DType::F32, [Dim::sym("T"), Dim::from(8i64)]);
//! let mut f = Func::new("f", vec![Param { name: "x".into(), ty: x.clone(), weight: false }]);
//! let p = f.param(0).unwrap();
//! let y = f.add(&module, OpKind::Silu, vec![p], Attrs::default(), &["y"], None).unwrap();
//! f.results = y;
//! assert_eq!(f.result_types(), vec![x]);
//! module.funcs.push(f);
//! ```

pub mod attr;
pub mod diff;
pub mod dim;
pub mod dtype;
pub mod dump;
pub mod graph;
pub mod interp;
pub mod kernel;
pub mod module;
pub mod op;
pub mod ops;
pub mod rope;
pub mod template;
pub mod text;
pub mod ty;
pub mod verify;

pub use attr::{Attr, AttrKind, Attrs};
pub use dim::{Bindings, Dim, Sym};
pub use dtype::DType;
pub use graph::{Graph, Loc, Op, OpId, Use, Value};
pub use kernel::Kernel;
pub use module::{Bucket, Func, InferError, Module, Param, StateDecl, SymDecl, WeightDecl};
pub use op::{Class, OpInfo, OpKind};
pub use ty::{LayoutName, StateFamily, TensorType, Type};
