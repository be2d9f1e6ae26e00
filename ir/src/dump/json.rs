//! JSON for tools: everything the text holds, attributes with their defaults, and where each op was written.

use serde_json::{Map, Value as Json, json};

use crate::attr::{Attr, AttrKind};
use crate::dim::Dim;
use crate::graph::OpId;
use crate::module::{Func, Module, StateDecl};
use crate::op::OpKind;
use crate::text::{Names, float, order};
use crate::ty::{TensorType, Type};
use crate::{Op, Value};

/// Version of the JSON form, in its field `version`. It grows when a key changes its meaning or goes away; new keys do not raise it.
pub const JSON_VERSION: u32 = 1;

/// The module as JSON: keys in a fixed order, ops in print order, values by their printed names.
pub fn json(module: &Module) -> Json {
    json!({
        "format": "gir",
        "version": JSON_VERSION,
        "syms": module.syms.iter().map(|s| json!({"name": &*s.name, "min": s.min, "max": s.max})).collect::<Vec<_>>(),
        "states": module.states.iter().map(state).collect::<Vec<_>>(),
        "weights": module.weights.iter()
            .map(|w| json!({"name": &*w.name, "key": w.key, "type": tensor(&w.ty)})).collect::<Vec<_>>(),
        "buckets": module.buckets.iter().map(|b| {
            let sizes: Map<String, Json> = b.sizes.iter().map(|(k, v)| (k.to_string(), json!(v))).collect();
            json!({"name": &*b.name, "sizes": sizes})
        }).collect::<Vec<_>>(),
        "funcs": module.funcs.iter().map(func).collect::<Vec<_>>(),
    })
}

fn state(decl: &StateDecl) -> Json {
    match decl {
        StateDecl::Kv { name, heads, head_dim, page, window, dtype } => json!({
            "name": &**name, "family": "kv", "heads": heads, "head_dim": head_dim, "page": page, "window": window,
            "dtype": dtype.name(),
        }),
        StateDecl::Counts { name, vocab } => json!({"name": &**name, "family": "counts", "vocab": vocab}),
    }
}

fn func(func: &Func) -> Json {
    let order = order(func);
    let names = Names::new(func, &order);
    let params: Vec<Json> = func
        .params
        .iter()
        .enumerate()
        .map(|(i, p)| json!({"name": format!("%{}", names.param(i)), "type": ty(&p.ty), "weight": p.weight}))
        .collect();
    let is_statement = |id: &OpId| !matches!(func.graph.op(*id).kind, OpKind::Param | OpKind::Weight);
    let ops: Vec<Json> =
        order.iter().filter(|id| is_statement(id)).map(|id| op(func.graph.op(*id), *id, &names)).collect();
    let results: Vec<&str> = func.results.iter().map(|v| names.value(*v)).collect();
    json!({"name": format!("@{}", func.name), "params": params, "ops": ops, "results": results})
}

fn op(op: &Op, id: OpId, names: &Names) -> Json {
    let results: Vec<Json> = op
        .results
        .iter()
        .enumerate()
        .map(|(i, t)| json!({"name": names.value(Value { op: id, result: i as u16 }), "type": ty(t)}))
        .collect();
    let operands: Vec<&str> = op.operands.iter().map(|v| names.value(*v)).collect();
    let kind_of = |name: &str| op.kind.info().attrs.iter().find(|a| a.name == name).map(|a| a.kind);
    let attrs: Map<String, Json> = op.attrs.iter().map(|(n, v)| (n.to_string(), attribute(kind_of(n), v))).collect();
    let loc = op.loc.as_ref().map(|l| json!({"file": &*l.file, "line": l.line, "column": l.column}));
    json!({
        "op": op.kind.name(), "class": op.kind.class().name(), "results": results, "operands": operands, "attrs": attrs, "loc": loc,
    })
}

fn ty(t: &Type) -> Json {
    match t {
        Type::Tensor(t) => tensor(t),
        Type::State(family, name) => json!({"text": t.to_string(), "family": family.name(), "name": &**name}),
    }
}

fn tensor(t: &TensorType) -> Json {
    let dims: Vec<Json> = t.dims.iter().map(dim).collect();
    json!({"text": t.to_string(), "dtype": t.dtype.name(), "dims": dims, "layout": t.layout.as_deref()})
}

/// A number if it is a constant, else its text.
fn dim(d: &Dim) -> Json {
    d.as_const().map_or_else(|| json!(d.to_string()), |n| json!(n))
}

fn attribute(kind: Option<AttrKind>, value: &Attr) -> Json {
    match value {
        Attr::Int(i) => json!(i),
        // JSON has no infinities and no NaN.
        Attr::Float(x) if !x.is_finite() => json!(float(*x)),
        Attr::Float(x) => json!(x),
        Attr::Bool(b) => json!(b),
        Attr::Word(w) if kind == Some(AttrKind::Func) => json!(format!("@{w}")),
        Attr::Word(w) if kind == Some(AttrKind::Layout) => json!(format!("#{w}")),
        Attr::Word(w) => json!(&**w),
        Attr::DType(d) => json!(d.name()),
        Attr::Ints(v) => json!(v),
        Attr::Dims(v) => Json::Array(v.iter().map(dim).collect()),
        Attr::Kernel(k) => {
            json!({"template": &**k.template(), "regions": k.numbered().map(region).collect::<Vec<_>>()})
        }
    }
}

/// A region of a kernel, with the stage it belongs to: 0 is the first.
fn region((number, f): (usize, &Func)) -> Json {
    let mut out = func(f);
    out["stage"] = json!(number / 3);
    out
}
