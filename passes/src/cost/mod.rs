//! Costs in microseconds (provisional).

use gossamer_ir::{Bindings, Kernel, Module, OpKind, Type};

/// A machine.
#[derive(Clone, Debug)]
pub struct Machine {
    /// Bytes a microsecond.
    pub bytes_per_us: f64,
    /// Flops a microsecond.
    pub flops_per_us: f64,
    /// Microseconds a launch.
    pub launch_us: f64,
}

impl Default for Machine {
    fn default() -> Machine {
        Machine { bytes_per_us: 3.0e6, flops_per_us: 600.0e6, launch_us: 1.2 }
    }
}

/// Terms.
#[derive(Clone, Debug)]
pub struct Terms {
    /// Sum.
    pub total_us: f64,
}

/// Cost of a kernel.
///
/// # Errors
/// An unbound symbol.
pub fn kernel(kernel: &Kernel, _: &Module, sizes: &Bindings, machine: &Machine) -> Result<Terms, String> {
    let mut bytes = 0f64;
    let mut flops = 0f64;
    let rows = |t: &gossamer_ir::TensorType| t.bytes(sizes).map_err(|s| s.to_string());
    let experts = kernel.ops().find(|(_, _, o)| o.kind == OpKind::MoeMatMul).map(|(f, _, o)| {
        let w = f.graph.ty(o.operands[1]).as_tensor().and_then(|t| t.dims[0].as_const()).unwrap_or(1) as f64;
        let ids = f.graph.ty(o.operands[2]).as_tensor().and_then(|t| t.shape(sizes).ok()).unwrap_or_default();
        let (t, k) = (ids.first().copied().unwrap_or(1) as f64, ids.get(1).copied().unwrap_or(1) as f64);
        (1.0 - (1.0 - k / w).powf(t)).min(1.0)
    });
    for t in kernel.operand_types().iter().filter_map(Type::as_tensor) {
        let scale = if t.rank() == 3 && t.dims[0].as_const().is_some() { experts.unwrap_or(1.0) } else { 1.0 };
        bytes += rows(t)? as f64 * scale;
    }
    for t in kernel.result_types().iter().filter_map(Type::as_tensor) {
        bytes += rows(t)? as f64;
    }
    for (f, _, op) in kernel.ops() {
        if matches!(op.kind, OpKind::MatMul | OpKind::MoeMatMul) {
            let y = op.results[0].as_tensor().and_then(|t| t.elements().eval(sizes).ok()).unwrap_or(0) as f64;
            let k = f.graph.ty(op.operands[0]).as_tensor().and_then(|t| t.dims.last()?.as_const()).unwrap_or(1) as f64;
            flops += 2.0 * y * k;
        }
    }
    let slow = if &**kernel.template() == "single" { 1.5 } else { 1.0 };
    let launches = if &**kernel.template() == "moe_tile" { 2.0 } else { 1.0 };
    Ok(Terms {
        total_us: machine.launch_us * launches
            + slow * (bytes / machine.bytes_per_us).max(flops / machine.flops_per_us),
    })
}
