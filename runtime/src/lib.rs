//! gossamer-runtime
