//! gossamer-models
