//! Writes kernels at full size with their launches, for programs that measure them.

use std::fmt::Write as _;

use gossamer_ir::{OpKind, Type};

use super::cases::{BF16, Case, F32, plain, t};
use super::fused::{head_of, out, qkv_of};
use crate::lower::{Arg, OpInstance, Part, lower};

fn line(case: &Case, tag: &str, folder: &str, all: &mut String) {
    let early: Vec<bool> = case
        .operands
        .iter()
        .enumerate()
        .map(|(i, o)| i == 1 || o.as_tensor().is_some_and(|t| t.dtype == gossamer_ir::DType::I32))
        .collect();
    let (operands, module, sizes) = (&case.operands, &case.module, &case.sizes);
    let lowered = match lower(&OpInstance { op: &case.op, operands, module, sizes, early: &early }) {
        Ok(l) => l,
        Err(e) => return println!("{tag}: {e}"),
    };
    for launch in &lowered.launches {
        std::fs::write(format!("{folder}/{}.cu", launch.kernel.entry), &launch.kernel.text).unwrap();
        let (l, g) = (launch, launch.grid);
        write!(
            all,
            "{tag} {} {} {} {} {} {}",
            l.kernel.entry,
            g[0],
            l.block,
            l.shared,
            u8::from(l.dependent),
            l.args.len()
        )
        .unwrap();
        for arg in &l.args {
            match arg {
                Arg::Operand { index, part } => write!(all, " o {index} {}", u8::from(*part == Part::Values)),
                Arg::Result { index, .. } => write!(all, " r {index}"),
                Arg::TensorMap { index, matrix, .. } => {
                    write!(all, " m {index} {} {} {}", matrix.rows, matrix.columns, matrix.box_rows)
                }
                Arg::I32(x) => write!(all, " i {x}"),
                Arg::I64(x) => write!(all, " l {x}"),
                other => panic!("{other:?}"),
            }
            .unwrap();
        }
        all.push('\n');
    }
    assert!(case.op.results.iter().all(|t| matches!(t, Type::Tensor(_) | Type::State(..))));
}

#[test]
fn dump() {
    let Ok(folder) = std::env::var("GOSSAMER_DUMP") else { return };
    std::fs::create_dir_all(&folder).unwrap();
    let mut all = String::new();
    let list = std::env::var("GOSSAMER_DUMP_LIST").unwrap();
    for entry in list.split(';').filter(|l| !l.trim().is_empty()) {
        // tag kind template rows n k
        let w: Vec<&str> = entry.split_whitespace().collect();
        let number = |i: usize| w[i].parse::<i64>().unwrap();
        let (rows, n, k) = (number(3), number(4), number(5));
        let sizes = format!("T={rows} R={rows} S={rows} P=64 C=131072");
        let case = match w[1] {
            "qkv" => qkv_of(w[2], false, k, (64, 8, 64), &sizes),
            "qkvn" => qkv_of(w[2], true, k, (64, 8, 64), &sizes),
            "out" => out(w[2], n, k, &sizes),
            "headn" => head_of(w[2], true, (n, k), 128, &sizes),
            "mm" => plain(
                OpKind::MatMul,
                vec![t(BF16, &format!("T {k}")), t(BF16, &format!("{n} {k}"))],
                [("out", F32.into())],
                &sizes,
            ),
            "head" => head_of(w[2], false, (n, k), 128, &sizes),
            other => panic!("{other}"),
        };
        line(&case, w[0], &folder, &mut all);
    }
    std::fs::write(format!("{folder}/list.txt"), all).unwrap();
}
