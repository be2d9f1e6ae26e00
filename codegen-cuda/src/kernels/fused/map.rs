//! `map`: scalar code over the elements of results with equal dims; rows by index, gated activations and sums over choices included.

use super::super::region::{Index, Region, malformed};
use super::super::{Cx, blocks, product, scalar, single};
use super::{Body, Origin, Params};
use crate::emit::{Piece, Text, c_type};
use crate::lower::{LowerError, Lowered};

/// Elements of a thread, for results of so many elements at least: there are enough to fill the machine, and blocks that make one each cost more to start
/// than to run; the more bytes a thread has under way, the better.
const EACH: [(i64, i64); 2] = [(1 << 23, 8), (1 << 20, 4)];

/// Lowers a kernel of template `map`.
pub fn lower(cx: &Cx, body: &Body) -> Result<Lowered, LowerError> {
    let main = body.kernel.main();
    let first = cx.result(0)?;
    let n = product(&cx.values(first)?);
    if n == 0 {
        return Ok(Lowered::default());
    }
    let mut params = Params::default();
    let sources = (0..main.params.len())
        .map(|i| match body.main_param(i) {
            Origin::Operand(o) => params.source(cx, o),
            _ => Err(malformed("template `map` has one region")),
        })
        .collect::<Result<Vec<_>, _>>()?;
    let mut region = Region::new(main, cx.module(), sources);
    let mut code = Vec::new();
    for (i, dim) in first.dims.iter().enumerate().skip(1).rev() {
        code.push(format!("const i32 i{i} = (i32)take_dim(rest, {});", region.size(dim)));
    }
    if first.rank() > 0 {
        code.push("const i32 i0 = (i32)rest;".to_string());
    }
    let index: Vec<Index> = (0..first.rank()).map(|i| Index::var(format!("i{i}"))).collect();
    let (mut held, mut store, mut keep) = (Vec::new(), Vec::new(), Vec::new());
    for (r, value) in main.results.iter().enumerate() {
        let pointer = params.result(cx, r)?;
        let dtype = cx.result(r)?.dtype;
        let element = region.element(*value, &index)?;
        held.push(format!("{} held{r}[EACH];", c_type(dtype)));
        keep.push(format!("held{r}[e] = {};", scalar::store(dtype, &element)));
        // Results have equal dims.
        store.push(format!("{pointer}[at] = held{r}[e];"));
    }
    code.extend(region.take());
    code.extend(keep);
    let each = EACH.into_iter().find(|(least, _)| n >= *least).map_or(1, |(_, each)| each);
    params.sizes(cx, &region)?;
    params.long("n", n);
    let (params, args) = params.finish();
    let source = Text::new("map", body.kernel.summary(), include_str!("../cuda/map.cu"))
        .with(Piece::Dependent)
        .set("params", params)
        .set("each", each)
        .set("held", held.join("\n"))
        .set("code", code.join("\n"))
        .set("store", store.join("\n"))
        .build();
    let mut launch = cx.launch(source, blocks(n, 256 * each), 256, args)?;
    launch.dependent = true;
    Ok(single(launch))
}
