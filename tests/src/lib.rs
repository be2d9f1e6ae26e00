//! gossamer-tests
