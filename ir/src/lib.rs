//! gossamer-ir
