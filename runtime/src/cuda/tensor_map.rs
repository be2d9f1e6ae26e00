//! Tensor maps: what the copy engine must know of a matrix to move boxes of it into shared memory.

use bytemuck::NoUninit;
use cudarc::driver::sys;

use super::cublaslt::Element;
use super::error::{CudaError, driver_error};

/// Columns of a box: 128 bytes, the widest row that the swizzle of `wgmma` operands takes.
const BOX_COLUMNS: u32 = 64;

/// A row-major matrix without gaps and the boxes that are copied of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Boxes {
    /// Device address of the first element, a multiple of 16.
    pub address: u64,
    /// Element type: one of 2 bytes.
    pub element: Element,
    /// Rows, 1 to 2^32.
    pub rows: u64,
    /// Columns, a multiple of 8, at least 8.
    pub columns: u64,
    /// Rows of a box, 1 to 256. A box has 64 columns, and rows of 128 bytes with the 128-byte swizzle in shared memory.
    pub box_rows: u32,
}

/// A kernel argument of 128 bytes (`const __grid_constant__`), bound to the address it was made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, NoUninit)]
#[repr(C, align(64))]
pub struct TensorMap {
    words: [u64; 16],
}

impl TensorMap {
    /// The map of a matrix. Nothing in memory is touched.
    ///
    /// # Errors
    /// [`CudaError::Driver`] for an address, size or element type that the copy engine does not take.
    pub fn new(boxes: &Boxes) -> Result<TensorMap, CudaError> {
        use sys::CUtensorMapDataType as Type;
        let element = match boxes.element {
            Element::F32 => Type::CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
            Element::F16 => Type::CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
            Element::Bf16 => Type::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
        };
        let mut map = TensorMap { words: [0; 16] };
        let dims = [boxes.columns, boxes.rows];
        let strides = [boxes.columns.saturating_mul(2)];
        let (sizes, steps) = ([BOX_COLUMNS, boxes.box_rows], [1u32, 1]);
        // SAFETY: the map is 128 bytes at a multiple of 64, as the driver asks, and it writes nothing else; the arrays have an entry for each of the two
        // dims (strides: for all but the innermost). The address is encoded, not followed.
        let result = unsafe {
            sys::cuTensorMapEncodeTiled(
                std::ptr::from_mut(&mut map).cast(),
                element,
                2,
                boxes.address as *mut std::ffi::c_void,
                dims.as_ptr(),
                strides.as_ptr(),
                sizes.as_ptr(),
                steps.as_ptr(),
                sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
                sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        };
        match result {
            sys::CUresult::CUDA_SUCCESS => Ok(map),
            failed => Err(driver_error(
                "cuTensorMapEncodeTiled",
                failed,
                &format!(
                    "describing {} x {} elements at {:#x} to the copy engine",
                    boxes.rows, boxes.columns, boxes.address
                ),
            )),
        }
    }
}
