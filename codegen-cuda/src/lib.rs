//! gossamer-codegen-cuda
