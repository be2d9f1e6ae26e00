//! Names of what stays in memory: weights, and the results of work done once at load.

use gossamer_ir::{Func, OpKind, Value};

/// A name for a resident value that is equal for equal values of any plan: the weight's name, or the recipe that makes it. Plans for different
/// buckets and heads so share one copy. Sizes are not part of it: what is made at load depends on weights and on sizes that an engine never changes (C, P).
pub fn resident_key(f: &Func, v: Value) -> String {
    let op = f.graph.op(v.op);
    match op.kind {
        OpKind::Weight => op.attrs.word("name").to_string(),
        _ => {
            let attrs: Vec<String> = op.attrs.iter().map(|(k, a)| format!("{k}={a}")).collect();
            let operands: Vec<String> = op.operands.iter().map(|o| resident_key(f, *o)).collect();
            format!("{}.{}({}){{{}}}", op.kind.name(), v.result, operands.join(","), attrs.join(","))
        }
    }
}
