//! Why there is no fused function.

use gossamer_ir::InferError;

use super::extract::ExtractError;

/// Why fusion stopped.
#[derive(Debug, thiserror::Error)]
pub enum FuseError {
    /// A rule made two classes equal that cannot be.
    #[error(
        "in @{func}: rule {rule} makes {left} equal to {right}; the rule is unsound, disable it with --disable-rule {rule} and report this"
    )]
    Conflict {
        /// The function.
        func: String,
        /// The rule.
        rule: String,
        /// One type.
        left: String,
        /// The other.
        right: String,
    },
    /// The e-graph grew beyond its limits.
    #[error(
        "in @{func}: the e-graph reached {nodes} nodes in {classes} classes after {rounds} rounds (limits: {max_nodes} nodes, {max_rounds} rounds); rule {rule} made most of it ({made} kernels)"
    )]
    Limit {
        /// The function.
        func: String,
        /// Nodes.
        nodes: usize,
        /// Classes.
        classes: usize,
        /// Rounds.
        rounds: usize,
        /// Most nodes allowed.
        max_nodes: usize,
        /// Most rounds allowed.
        max_rounds: usize,
        /// The rule that made most kernels.
        rule: &'static str,
        /// How many it made.
        made: usize,
    },
    /// Nothing runs an op.
    #[error(
        "in @{func}: `{op}` (%{value}) has no kernel at these sizes; rules that could give it one: {rules}; enable one of them or choose another bucket"
    )]
    NoKernel {
        /// The function.
        func: String,
        /// The op.
        op: &'static str,
        /// Its value.
        value: String,
        /// Rules that start kernels with it.
        rules: String,
    },
    /// No choice of kernels reaches the results.
    #[error("in @{func}: {source}")]
    Extract {
        /// The function.
        func: String,
        /// Why.
        source: ExtractError,
    },
    /// An op that its type rule refuses.
    #[error(transparent)]
    Infer(#[from] InferError),
}
