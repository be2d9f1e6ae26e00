//! Weight layouts: how checkpoint tensors are rearranged once, at load, for the kernels.
//!
//! Owns the packed MXFP4 layout ([`mxfp4`]), row orders ([`rows`]) and their device-side readers. Must not know model names,
//! files or device memory: it turns byte slices into byte slices.

pub mod mxfp4;
pub mod rows;

pub use mxfp4::{Mxfp4Layout, ScaleMode};
pub use rows::{PairSource, RowOrder};

/// A tensor cannot be put into a layout, or a buffer does not have its size.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// A dimension that the layout cannot take.
    #[error("layout dimension {dimension} is {found}, expected {expected}; the tensor cannot use this layout")]
    Dimension {
        /// `experts`, `n`, `k` or `head_dim`.
        dimension: &'static str,
        /// Its value.
        found: usize,
        /// What is legal.
        expected: &'static str,
    },
    /// A slice of the wrong length.
    #[error("{what} has {found} bytes, expected {expected}; pass exactly the bytes of the tensor")]
    Length {
        /// Which slice.
        what: &'static str,
        /// Its length.
        found: usize,
        /// What the layout needs.
        expected: usize,
    },
    /// A scale byte that the layout cannot hold.
    #[error("MXFP4 scale of expert {expert}, row {row}, block {block} is {found}, expected {expected}")]
    Scale {
        /// Expert index in the tensor.
        expert: usize,
        /// Source row.
        row: usize,
        /// Block of 32 along K.
        block: usize,
        /// The byte.
        found: u8,
        /// What is legal, and what to do.
        expected: &'static str,
    },
}
