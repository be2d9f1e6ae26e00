//! The input block: all tensor inputs of a step in one stretch of bytes, so that one copy brings them to the device. Output arrays are laid out the
//! same way on the host.

use gossamer_ir::{DType, TensorType};
use gossamer_passes::Plan;
use gossamer_passes::buffers::ALIGN;

use super::bind::kernel_error;
use crate::exec::ExecError;

/// One array of a block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Name of the parameter, or of the result's value.
    pub name: String,
    /// Element type.
    pub dtype: DType,
    /// Number of elements.
    pub elements: usize,
    /// First byte, a multiple of [`ALIGN`].
    pub offset: usize,
    /// Length in bytes.
    pub bytes: usize,
}

/// Arrays one after the other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Block {
    /// In order.
    pub slots: Vec<Slot>,
    /// Length in bytes, with padding.
    pub bytes: usize,
}

impl Block {
    /// Adds an array of type `ty` at the sizes of `plan`.
    ///
    /// # Errors
    /// A symbol without a value, or a dim below 0.
    pub fn push(&mut self, plan: &Plan, name: &str, ty: &TensorType) -> Result<&Slot, ExecError> {
        let wrong = |what: String| kernel_error(format!("`{name}` of type {ty}: {what}; verify the module"));
        let shape = ty.shape(&plan.sizes).map_err(|s| wrong(format!("symbol {s} has no value")))?;
        let sizes: Option<Vec<usize>> = shape.iter().map(|d| usize::try_from(*d).ok()).collect();
        let elements = sizes.and_then(|s| s.into_iter().try_fold(1usize, usize::checked_mul));
        let elements = elements.ok_or_else(|| wrong(format!("dims {shape:?} are not a size")))?;
        let bytes = ty.dtype.storage_bytes(elements as u64) as usize;
        let slot = Slot { name: name.to_string(), dtype: ty.dtype, elements, offset: self.bytes, bytes };
        self.bytes += bytes.next_multiple_of(ALIGN as usize);
        self.slots.push(slot);
        Ok(&self.slots[self.slots.len() - 1])
    }
}

/// The tensor inputs of a plan that it reads, as (parameter number, slot number), with their layout.
///
/// # Errors
/// As [`Block::push`].
pub fn inputs(plan: &Plan) -> Result<(Block, Vec<(usize, usize)>), ExecError> {
    let (mut block, mut index) = (Block::default(), Vec::new());
    for (i, p) in plan.func.params.iter().enumerate() {
        if let (Some(t), Some(_)) = (p.ty.as_tensor(), plan.func.param(i)) {
            index.push((i, block.slots.len()));
            block.push(plan, &p.name, t)?;
        }
    }
    Ok((block, index))
}

/// Layout of a plan's tensor results, in order.
///
/// # Errors
/// As [`Block::push`].
pub fn outputs(plan: &Plan) -> Result<Block, ExecError> {
    let mut block = Block::default();
    for v in &plan.func.results {
        if let Some(t) = plan.func.graph.ty(*v).as_tensor() {
            block.push(plan, &plan.func.graph.op(v.op).names[v.result as usize].clone(), t)?;
        }
    }
    Ok(block)
}

#[cfg(test)]
mod tests {
    use super::super::testing::decode_plan;
    use super::*;

    #[test]
    fn inputs_are_aligned_and_disjoint() {
        let plan = decode_plan(3);
        let (block, index) = inputs(&plan).unwrap();
        let names: Vec<&str> = block.slots.iter().map(|s| s.name.as_str()).collect();
        assert_eq!(names, ["tokens", "pos", "seq", "rows", "pages.window", "pages.full"]);
        for pair in block.slots.windows(2) {
            assert!(pair[0].offset + pair[0].bytes <= pair[1].offset);
        }
        assert!(block.slots.iter().all(|s| s.offset.is_multiple_of(256)));
        let tokens = &block.slots[0];
        assert_eq!((tokens.dtype, tokens.elements, tokens.bytes, tokens.offset), (DType::I32, 3, 12, 0));
        assert_eq!(block.slots[4].elements, 3 * 8);
        assert_eq!(block.bytes, 256 * 6);
        assert_eq!(index.len(), block.slots.len());
        assert!(index.iter().all(|(p, s)| *plan.func.params[*p].name == block.slots[*s].name));
    }

    #[test]
    fn outputs_leave_out_the_states() {
        let block = outputs(&decode_plan(3)).unwrap();
        let sizes: Vec<_> = block.slots.iter().map(|s| (s.dtype, s.elements)).collect();
        assert_eq!(sizes, [(DType::I32, 3)]);
    }

    #[test]
    fn an_unbound_symbol_is_one_line() {
        let mut plan = decode_plan(1);
        plan.sizes.remove("T");
        let line = inputs(&plan).unwrap_err().to_string();
        assert_eq!(line, "`tokens` of type i32[T]: symbol T has no value; verify the module");
    }
}
