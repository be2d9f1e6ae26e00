//! Scalar code of elementwise ops: the one table that single kernels and fused regions print from.
//!
//! Floats of any dtype are f32 here; the region that loads and stores them converts. An expression reads its arguments once and has no
//! side effects, so a region is one statement an op.

use gossamer_ir::{Attrs, DType, OpKind};

use crate::emit::f32_literal;

/// What a value is in registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scalar {
    /// A float of any dtype.
    F32,
    /// i32.
    I32,
    /// u8.
    U8,
    /// A truth value.
    Bool,
}

impl Scalar {
    /// How elements of `dtype` are held; `None` for MXFP4, which has no elements to load.
    pub fn of(dtype: DType) -> Option<Scalar> {
        match dtype {
            DType::F32 | DType::BF16 | DType::F16 => Some(Scalar::F32),
            DType::I32 => Some(Scalar::I32),
            DType::U8 => Some(Scalar::U8),
            DType::Bool => Some(Scalar::Bool),
            DType::Mxfp4 => None,
        }
    }

    /// Its C++ type.
    pub fn c_type(self) -> &'static str {
        match self {
            Scalar::F32 => "f32",
            Scalar::I32 => "i32",
            Scalar::U8 => "u8",
            Scalar::Bool => "bool",
        }
    }
}

/// An expression that reads a memory element `at` of `dtype` as its scalar.
pub fn load(dtype: DType, at: &str) -> String {
    match dtype {
        DType::F32 | DType::I32 | DType::U8 | DType::Mxfp4 => at.to_string(),
        DType::BF16 | DType::F16 => format!("to_f32({at})"),
        DType::Bool => format!("{at}.bits != 0"),
    }
}

/// An expression of the memory element of `dtype` that holds scalar `value`; the one place where results are rounded.
pub fn store(dtype: DType, value: &str) -> String {
    match dtype {
        DType::F32 | DType::I32 | DType::U8 | DType::Mxfp4 => value.to_string(),
        DType::BF16 => format!("from_f32<bf16>({value})"),
        DType::F16 => format!("from_f32<f16>({value})"),
        DType::Bool => format!("b8{{(u8){value}}}"),
    }
}

/// The expression of elementwise op `kind` for arguments (name, how it is held), and how its value is held. `None` if the op is not
/// elementwise or does not take these arguments.
pub fn expression(kind: OpKind, attrs: &Attrs, args: &[(&str, Scalar)]) -> Option<(Scalar, String)> {
    match *args {
        [(x, s)] if kind == OpKind::Cast => cast(attrs.dtype("to")?, x, s),
        [(x, Scalar::F32)] => Some((Scalar::F32, unary(kind, attrs, x)?)),
        [(x, s), (y, t)] if s == t && kind == OpKind::Cmp => {
            Some((Scalar::Bool, format!("{x} {} {y}", relation(attrs)?)))
        }
        [(x, Scalar::F32), (y, Scalar::F32)] => Some((Scalar::F32, float(kind, x, y)?)),
        [(x, Scalar::I32), (y, Scalar::I32)] => Some((Scalar::I32, integer(kind, x, y)?)),
        [(c, Scalar::Bool), (x, s), (y, t)] if s == t && kind == OpKind::Select => {
            Some((s, format!("{c} ? {x} : {y}")))
        }
        _ => None,
    }
}

fn unary(kind: OpKind, attrs: &Attrs, x: &str) -> Option<String> {
    Some(match kind {
        OpKind::Neg => format!("-{x}"),
        OpKind::Abs => format!("fabsf({x})"),
        OpKind::Exp => format!("expf({x})"),
        OpKind::Log => format!("logf({x})"),
        OpKind::Sqrt => format!("sqrtf({x})"),
        OpKind::Rsqrt => format!("1.0f / sqrtf({x})"),
        OpKind::Sigmoid => format!("logistic({x})"),
        OpKind::Tanh => format!("tanhf({x})"),
        OpKind::Silu => format!("{x} * logistic({x})"),
        OpKind::Gelu => {
            format!("0.5f * {x} * (1.0f + tanhf(0.7978845608f * ({x} + 0.044715f * {x} * {x} * {x})))")
        }
        OpKind::Clamp => {
            let (lo, hi) = (f32_literal(attrs.float("lo")), f32_literal(attrs.float("hi")));
            format!("min_nan(max_nan({x}, {lo}), {hi})")
        }
        _ => return None,
    })
}

fn float(kind: OpKind, x: &str, y: &str) -> Option<String> {
    Some(match kind {
        OpKind::Add => format!("{x} + {y}"),
        OpKind::Sub => format!("{x} - {y}"),
        OpKind::Mul => format!("{x} * {y}"),
        OpKind::Div => format!("{x} / {y}"),
        OpKind::Max => format!("max_nan({x}, {y})"),
        OpKind::Min => format!("min_nan({x}, {y})"),
        _ => return None,
    })
}

/// Integers wrap; the unsigned detour keeps that defined in C++.
fn integer(kind: OpKind, x: &str, y: &str) -> Option<String> {
    Some(match kind {
        OpKind::Add => format!("(i32)((u32){x} + (u32){y})"),
        OpKind::Sub => format!("(i32)((u32){x} - (u32){y})"),
        OpKind::Mul => format!("(i32)((u32){x} * (u32){y})"),
        // -1 apart: the quotient of the least integer does not exist.
        OpKind::Div => format!("{y} == 0 ? 0 : {y} == -1 ? (i32)(0u - (u32){x}) : {x} / {y}"),
        OpKind::Max => format!("{x} > {y} ? {x} : {y}"),
        OpKind::Min => format!("{x} < {y} ? {x} : {y}"),
        _ => return None,
    })
}

fn relation(attrs: &Attrs) -> Option<&'static str> {
    Some(match attrs.word("op") {
        "eq" => "==",
        "ne" => "!=",
        "lt" => "<",
        "le" => "<=",
        "gt" => ">",
        "ge" => ">=",
        _ => return None,
    })
}

fn cast(to: DType, x: &str, from: Scalar) -> Option<(Scalar, String)> {
    let target = Scalar::of(to)?;
    let text = match (from, target) {
        // Rounding here too, so that a fused region continues with what an unfused one would read back.
        (Scalar::F32, Scalar::F32) if to != DType::F32 => format!("to_f32({})", store(to, x)),
        (Scalar::F32, Scalar::I32) => format!("__float2int_rz({x})"),
        (Scalar::F32, Scalar::U8) => format!("(u8)__float2uint_rz(fminf(fmaxf({x}, 0.0f), 255.0f))"),
        (Scalar::Bool, Scalar::F32) => format!("{x} ? 1.0f : 0.0f"),
        (_, Scalar::F32) if from != Scalar::F32 => format!("__int2float_rn({x})"),
        (Scalar::I32, Scalar::U8) => format!("(u8)({x} < 0 ? 0 : {x} > 255 ? 255 : {x})"),
        (_, Scalar::Bool) if from != Scalar::Bool => format!("{x} != 0"),
        (Scalar::U8 | Scalar::Bool, Scalar::I32) => format!("(i32){x}"),
        (Scalar::Bool, Scalar::U8) => format!("(u8){x}"),
        _ => x.to_string(),
    };
    Some((target, text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_elementwise_op_has_an_expression_for_its_arguments() {
        for kind in OpKind::ALL.iter().filter(|k| k.class() == gossamer_ir::Class::Elementwise) {
            let attrs = gossamer_ir::Attrs::from([("to", DType::BF16.into()), ("op", "lt".into())]);
            let args: &[(&str, Scalar)] = match (kind, kind.info().operands.len()) {
                (OpKind::Select, _) => &[("c", Scalar::Bool), ("x", Scalar::U8), ("y", Scalar::U8)],
                (_, 1) => &[("x", Scalar::F32)],
                _ => &[("x", Scalar::F32), ("y", Scalar::F32)],
            };
            assert!(expression(*kind, &attrs, args).is_some(), "{}", kind.name());
        }
        assert_eq!(expression(OpKind::MatMul, &Attrs::default(), &[("x", Scalar::F32), ("y", Scalar::F32)]), None);
    }
}
