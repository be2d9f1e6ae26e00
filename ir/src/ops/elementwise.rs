//! Elementwise ops. The second operand of a binary op may have fewer dims: a suffix of the first's dims, repeated along the rest.

use crate::attr::AttrKind;
use crate::dtype::DType;
use crate::interp::elementwise as eval;
use crate::op::{Class, Default, InferCx, OpInfo, OperandInfo, attr, one};
use crate::ty::Type;

const X: &[OperandInfo] = &[one("x", "float, any dims")];
const XY: &[OperandInfo] = &[
    one("x", "float or i32, any dims"),
    one("y", "float if x is, else i32; x's dims or a suffix of them, repeated along the rest"),
];

fn unary(cx: &InferCx) -> Result<Vec<Type>, String> {
    Ok(vec![cx.float(0)?.clone().into()])
}

fn binary(cx: &InferCx) -> Result<Vec<Type>, String> {
    let (x, y) = (cx.tensor(0)?, cx.tensor(1)?);
    let kinds = (x.dtype.is_float() && y.dtype.is_float()) || (x.dtype == DType::I32 && y.dtype == DType::I32);
    if !kinds {
        return Err(format!("operands are {x} and {y}, expected both float or both i32"));
    }
    match x.layout.is_none() && y.layout.is_none() && x.dims.ends_with(&y.dims) {
        true => Ok(vec![x.clone().into()]),
        false => Err(format!("dims of {y} are not a suffix of those of {x}")),
    }
}

macro_rules! unary_ops {
    ($($ident:ident $name:literal $eval:ident $summary:literal $doc:literal $tol:literal;)*) => {$(
        #[doc = concat!("`", $name, "`: ", $summary, ".")]
        pub static $ident: OpInfo = OpInfo {
            name: $name, class: Class::Elementwise, summary: $summary, doc: $doc, operands: X, attrs: &[], results: &["y"],
            infer: unary, eval: eval::$eval, tolerance: $tol, decomposition: None,
        };
    )*};
}

unary_ops! {
    NEG "neg" neg "Negation" "`-x`." 0.0;
    ABS "abs" abs "Absolute value" "`|x|`." 0.0;
    EXP "exp" exp "Exponential" "`e^x`, computed in f32, rounded once." 1e-2;
    LOG "log" log "Natural logarithm" "`ln x`, computed in f32, rounded once; NaN below 0." 1e-2;
    SQRT "sqrt" sqrt "Square root" "Computed in f32, rounded once; NaN below 0." 1e-2;
    RSQRT "rsqrt" rsqrt "Reciprocal square root" "`1 / sqrt(x)`, computed in f32, rounded once." 1e-2;
    SIGMOID "sigmoid" sigmoid "Logistic function" "`1 / (1 + e^-x)`, computed in f32, rounded once." 1e-2;
    TANH "tanh" tanh "Hyperbolic tangent" "Computed in f32, rounded once." 1e-2;
    SILU "silu" silu "Sigmoid-weighted unit" "`x * sigmoid(x)`, computed in f32, rounded once." 1e-2;
    GELU "gelu" gelu "Gaussian error unit, tanh form" "`x/2 * (1 + tanh(sqrt(2/pi) * (x + 0.044715 x^3)))`, computed in f32, rounded once." 1e-2;
}

macro_rules! binary_ops {
    ($($ident:ident $name:literal $eval:ident $summary:literal $doc:literal;)*) => {$(
        #[doc = concat!("`", $name, "`: ", $summary, ".")]
        pub static $ident: OpInfo = OpInfo {
            name: $name, class: Class::Elementwise, summary: $summary, doc: $doc, operands: XY, attrs: &[], results: &["z"],
            infer: binary, eval: eval::$eval, tolerance: 1e-2, decomposition: None,
        };
    )*};
}

binary_ops! {
    ADD "add" add "Sum" "`x + y`; floats are added in f32 and rounded once to x's dtype, i32 wraps.";
    SUB "sub" sub "Difference" "`x - y`; in f32, rounded once to x's dtype; i32 wraps.";
    MUL "mul" mul "Product" "`x * y`; in f32, rounded once to x's dtype; i32 wraps.";
    DIV "div" div "Quotient" "`x / y`; in f32, rounded once to x's dtype. i32 divides toward zero; by zero gives 0.";
    MAX "max" max "Greater of two" "In f32; NaN if either is NaN.";
    MIN "min" min "Lesser of two" "In f32; NaN if either is NaN.";
}

/// `cast`: converts the element type; the one place where a model asks for rounding.
pub static CAST: OpInfo = OpInfo {
    name: "cast",
    class: Class::Elementwise,
    summary: "Converts the element type",
    doc: "Float to float rounds to nearest, ties to even. Float to i32 or u8 truncates and saturates, NaN gives 0; i32 to u8 saturates. i32, u8 and bool to float \
          are rounded. To bool: true if not 0 (NaN is not 0).",
    operands: &[one("x", "any dtype but mxfp4, any dims")],
    attrs: &[attr("to", AttrKind::DType, Default::Required, "element type of the result")],
    results: &["y"],
    infer: |cx| {
        let x = cx.tensor(0)?;
        match cx.attrs.dtype("to") {
            Some(to) if to != DType::Mxfp4 && x.dtype != DType::Mxfp4 && x.layout.is_none() => {
                Ok(vec![x.with_dtype(to).into()])
            }
            _ => Err(format!("{x} cannot be cast; use `dequant` for mxfp4")),
        }
    },
    eval: eval::cast,
    tolerance: 0.0,
    decomposition: None,
};

/// `clamp`: limits values to a range.
pub static CLAMP: OpInfo = OpInfo {
    name: "clamp",
    class: Class::Elementwise,
    summary: "Limits values to a range",
    doc: "`min(max(x, lo), hi)`; NaN stays NaN.",
    operands: X,
    attrs: &[
        attr("hi", AttrKind::Float, Default::Float(f64::INFINITY), "upper limit"),
        attr("lo", AttrKind::Float, Default::Float(f64::NEG_INFINITY), "lower limit"),
    ],
    results: &["y"],
    infer: unary,
    eval: eval::clamp,
    tolerance: 0.0,
    decomposition: None,
};

/// `cmp`: compares.
pub static CMP: OpInfo = OpInfo {
    name: "cmp",
    class: Class::Elementwise,
    summary: "Compares",
    doc: "`x op y` as bool; comparisons with NaN are false, except `ne`.",
    operands: XY,
    attrs: &[attr("op", AttrKind::OneOf(&["eq", "ne", "lt", "le", "gt", "ge"]), Default::Required, "the relation")],
    results: &["z"],
    infer: |cx| {
        binary(cx)?;
        Ok(vec![cx.tensor(0)?.with_dtype(DType::Bool).into()])
    },
    eval: eval::cmp,
    tolerance: 0.0,
    decomposition: None,
};

/// `select`: picks from one of two.
pub static SELECT: OpInfo = OpInfo {
    name: "select",
    class: Class::Elementwise,
    summary: "Picks from one of two",
    doc: "`cond ? x : y`, element by element.",
    operands: &[one("cond", "bool, x's dims"), one("x", "any dtype but mxfp4"), one("y", "x's type")],
    attrs: &[],
    results: &["z"],
    infer: |cx| {
        let (c, x, y) = (cx.tensor(0)?, cx.tensor(1)?, cx.tensor(2)?);
        if *c != x.with_dtype(DType::Bool) {
            return Err(format!("operand 0 is {c}, expected {}", x.with_dtype(DType::Bool)));
        }
        match x == y && x.dtype != DType::Mxfp4 {
            true => Ok(vec![x.clone().into()]),
            false => Err(format!("operands 1 and 2 are {x} and {y}, expected equal types")),
        }
    },
    eval: eval::select,
    tolerance: 0.0,
    decomposition: None,
};
