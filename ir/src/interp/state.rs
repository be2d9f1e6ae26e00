//! State of the interpreter.
/// KV
#[derive(Clone, Debug)]
pub struct KvStore {}
/// Counts
#[derive(Clone, Debug)]
pub struct CountsStore {}
/// A store.
#[derive(Clone, Debug)]
pub enum StateStore {
    /** kv */
    Kv(KvStore),
    /** counts */
    Counts(CountsStore),
}
