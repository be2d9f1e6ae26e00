//! Library calls of plans: which matmul, on which memory, and the algorithms that were chosen so far.

use std::collections::BTreeMap;
use std::sync::Arc;

use gossamer_codegen_cuda::lower::{GEMM_WORKSPACE, Lowered};
use gossamer_ir::{DType, OpId};
use gossamer_passes::Plan;

use super::bind::{Address, BoundArg, BoundWanted, Homes, bind_args, kernel_error, op_label};
use crate::cuda::{CublasLt, Device, Element, Gemm, GemmShape};
use crate::exec::ExecError;

/// A matmul of the library with its arguments.
#[derive(Clone, Debug, PartialEq)]
pub struct BoundGemm {
    /// What it is called in lists of kernels.
    pub name: String,
    /// Its shape.
    pub shape: GemmShape,
    /// Where x, w, y and the workspace are.
    pub places: [Address; 4],
    /// The op it belongs to.
    pub op: OpId,
}

/// The library call of a lowered op, if it is one.
///
/// # Errors
/// An argument that names no place, or an element type that the library is not asked for: code generation and the plan do not agree.
pub fn bind_gemm(plan: &Plan, id: OpId, lowered: &Lowered, homes: &Homes) -> Result<Option<BoundGemm>, ExecError> {
    let Some(gemm) = &lowered.library else { return Ok(None) };
    let wrong =
        || kernel_error(format!("{}: a library call that cannot be bound; please report it", op_label(plan, id)));
    let element = |dtype| match dtype {
        DType::F32 => Ok(Element::F32),
        DType::F16 => Ok(Element::F16),
        DType::BF16 => Ok(Element::Bf16),
        _ => Err(wrong()),
    };
    let (input, output) = (element(gemm.input)?, element(gemm.output)?);
    let shape = GemmShape { m: gemm.m, n: gemm.n, k: gemm.k, input, output };
    let name = gemm.name();
    let args =
        bind_args(plan, id, lowered, &[gemm.x, gemm.w, gemm.y, gemm.workspace], &name, homes, BoundWanted::default())?;
    match args[..] {
        [BoundArg::Address(x), BoundArg::Address(w), BoundArg::Address(y), BoundArg::Address(workspace)] => {
            Ok(Some(BoundGemm { name, shape, places: [x, w, y, workspace], op: id }))
        }
        _ => Err(wrong()),
    }
}

/// Matmuls by shape; the library is opened for the first.
#[derive(Default)]
pub struct Gemms {
    library: Option<CublasLt>,
    chosen: BTreeMap<GemmShape, Arc<Gemm>>,
}

impl Gemms {
    /// The matmul of a shape, chosen at its first use.
    ///
    /// # Errors
    /// No library, or a shape that it does not take.
    pub fn get(&mut self, device: &Device, shape: GemmShape) -> Result<Arc<Gemm>, ExecError> {
        if let Some(gemm) = self.chosen.get(&shape) {
            return Ok(gemm.clone());
        }
        let library = match self.library.take() {
            Some(library) => library,
            None => CublasLt::new(device)?,
        };
        let gemm = library.gemm(shape, GEMM_WORKSPACE as usize).map(Arc::new);
        self.library = Some(library);
        let gemm = gemm?;
        self.chosen.insert(shape, gemm.clone());
        Ok(gemm)
    }
}
