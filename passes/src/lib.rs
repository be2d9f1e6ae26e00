//! gossamer-passes
