//! Text of the warpgroup multiplies: one function a width, as the instruction names every register of its sums.
//!
//! Owns nothing but the spelling. Barriers, copies, descriptors and fences are in `cuda/wgmma.cuh` ([`crate::emit::Piece::Wgmma`]).

use gossamer_ir::DType;

/// Columns that the instruction takes: multiples of 8 up to 256.
pub(crate) fn is_width(n: i64) -> bool {
    (8..=256).contains(&n) && n % 8 == 0
}

/// `multiply(d, a, b, keep)`: d += a * b, or d = a * b if !keep, for 64 rows of a and `n` rows of b over 16 of K, both in shared memory. Sums: `d[4 j + 2 r + b]` is at row
/// `16 warp + lane / 4 + 8 r` and column `8 j + 2 (lane % 4) + b`.
pub(crate) fn multiply(n: i64, dtype: DType) -> String {
    function("multiply", "u64 a, ", &["l"], &["a"], ", 0, 0", n, dtype)
}

/// `multiply_held(d, a, b, keep)`: the same with a in registers: `a[j]` holds the elements k = 2 (lane % 4) + 8 (j / 2) and the next of row
/// `16 warp + lane / 4 + 8 (j % 2)`.
pub(crate) fn multiply_held(n: i64, dtype: DType) -> String {
    let a = ["a[0]", "a[1]", "a[2]", "a[3]"];
    function("multiply_held", "const u32 (&a)[4], ", &["r"; 4], &a, ", 0", n, dtype)
}

/// `multiply_across(d, a, b, keep)`: as `multiply_held`, with b lying across (`operand_across`): its rows are elements along K, each with `n` columns.
pub(crate) fn multiply_across(n: i64, dtype: DType) -> String {
    let a = ["a[0]", "a[1]", "a[2]", "a[3]"];
    function("multiply_across", "const u32 (&a)[4], ", &["r"; 4], &a, ", 1", n, dtype)
}

fn function(name: &str, param: &str, kinds: &[&str], a: &[&str], transposed: &str, n: i64, dtype: DType) -> String {
    assert!(is_width(n), "no wgmma of {n} columns");
    let sums = (n / 2) as usize;
    let list =
        |first: usize, count: usize| (first..first + count).map(|i| format!("%{i}")).collect::<Vec<_>>().join(", ");
    let d = list(0, sums);
    let first = match a.len() {
        1 => list(sums, 1),
        many => format!("{{{}}}", list(sums, many)),
    };
    let (b, keep) = (sums + a.len(), sums + a.len() + 1);
    let outputs = (0..sums).map(|i| format!("\"+f\"(d[{i}])")).collect::<Vec<_>>().join(", ");
    let inputs = kinds.iter().zip(a).map(|(k, a)| format!("\"{k}\"({a}), ")).collect::<String>();
    format!(
        "__device__ __forceinline__ void {name}(f32 (&d)[{sums}], {param}u64 b, bool keep) {{\n\
         \x20 asm volatile(\"{{\\n.reg .pred p;\\nsetp.ne.b32 p, %{keep}, 0;\\n\"\n\
         \x20              \"wgmma.mma_async.sync.aligned.m64n{n}k16.f32.{dtype}.{dtype} {{{d}}}, {first}, %{b}, p, 1, 1{transposed};\\n}}\"\n\
         \x20              : {outputs}\n\
         \x20              : {inputs}\"l\"(b), \"r\"((u32)keep));\n\
         }}"
    )
}

/// The narrowest multiply for `count` rows of x, as text; `SLOTS` is the widest.
pub(crate) fn narrowest(narrower: &[i64]) -> String {
    let tests = narrower.iter().map(|w| format!("count <= {w} ? {w} : "));
    format!("{}SLOTS", tests.collect::<String>())
}

/// Four multiplies of 16 k by an operand `a` that is held, into `sum`, as text: for all widths, the widest first. `first` says whether the first adds to what
/// the sums are.
pub(crate) fn multiplies_held(narrower: &[i64], slots: i64, first: &str) -> String {
    let mut lines = Vec::new();
    for (i, n) in narrower.iter().chain([&slots]).rev().enumerate() {
        let last = i == narrower.len();
        let test = if last { String::new() } else { format!("if (width == {n}) ") };
        lines.push(format!("{}{test}{{", if i == 0 { "" } else { "} else " }));
        lines.push("  multiply_begin();".to_string());
        for s in 0..4 {
            let keep = if s == 0 { first } else { "true" };
            let b = if s == 0 { "b".to_string() } else { format!("b + {}", 2 * s) };
            lines.push(format!("  multiply_held((f32(&)[{}])sum[p], a[i][{s}], operand_of({b}), {keep});", n / 2));
        }
        lines.push("  multiply_commit();".to_string());
    }
    lines.push("}".to_string());
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::{is_width, multiply, multiply_across, multiply_held};
    use gossamer_ir::DType;

    #[test]
    fn registers_are_numbered_in_order() {
        let ss = multiply(8, DType::BF16);
        assert!(ss.contains("m64n8k16.f32.bf16.bf16 {%0, %1, %2, %3}, %4, %5, p, 1, 1, 0, 0;"), "{ss}");
        assert!(ss.contains("setp.ne.b32 p, %6, 0;"), "{ss}");
        let rs = multiply_held(16, DType::F16);
        assert!(rs.contains("m64n16k16.f32.f16.f16"), "{rs}");
        assert!(rs.contains("%7}, {%8, %9, %10, %11}, %12, p, 1, 1, 0;"), "{rs}");
        assert!(rs.contains("setp.ne.b32 p, %13, 0;"), "{rs}");
        let across = multiply_across(16, DType::BF16);
        assert!(across.contains("{%8, %9, %10, %11}, %12, p, 1, 1, 1;"), "{across}");
        assert!(is_width(256) && !is_width(257) && !is_width(0) && !is_width(264));
    }
}
