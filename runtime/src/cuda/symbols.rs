//! The driver entry points this layer may call. The bindings panic at the first call of a missing one, so
//! [`super::Driver::load`] looks all of them up beforehand and reports a driver without them as too old.

/// Every driver entry point called anywhere in this module, sorted. A test keeps it complete.
pub(super) const REQUIRED: &[&str] = &[
    "cuCtxGetStreamPriorityRange",
    "cuCtxSetCurrent",
    "cuDeviceGet",
    "cuDeviceGetAttribute",
    "cuDeviceGetCount",
    "cuDeviceGetName",
    "cuDeviceGetPCIBusId",
    "cuDevicePrimaryCtxRelease_v2",
    "cuDevicePrimaryCtxRetain",
    "cuDeviceTotalMem_v2",
    "cuDriverGetVersion",
    "cuEventCreate",
    "cuEventDestroy_v2",
    "cuEventElapsedTime_v2",
    "cuEventQuery",
    "cuEventRecord",
    "cuEventSynchronize",
    "cuFuncGetAttribute",
    "cuFuncGetParamInfo",
    "cuFuncLoad",
    "cuFuncSetAttribute",
    "cuGetErrorName",
    "cuGetErrorString",
    "cuGraphAddNode_v2",
    "cuGraphCreate",
    "cuGraphDebugDotPrint",
    "cuGraphDestroy",
    "cuGraphExecDestroy",
    "cuGraphGetEdges_v2",
    "cuGraphGetNodes",
    "cuGraphInstantiateWithFlags",
    "cuGraphKernelNodeSetAttribute",
    "cuGraphLaunch",
    "cuGraphNodeGetType",
    "cuGraphUpload",
    "cuInit",
    "cuLaunchKernelEx",
    "cuMemAlloc_v2",
    "cuMemFreeHost",
    "cuMemFree_v2",
    "cuMemGetInfo_v2",
    "cuMemHostAlloc",
    "cuMemcpyDtoDAsync_v2",
    "cuMemcpyDtoHAsync_v2",
    "cuMemcpyHtoDAsync_v2",
    "cuMemsetD32Async",
    "cuMemsetD8Async",
    "cuModuleGetFunction",
    "cuModuleGetGlobal_v2",
    "cuModuleLoadData",
    "cuModuleUnload",
    "cuOccupancyMaxActiveBlocksPerMultiprocessor",
    "cuOccupancyMaxActiveClusters",
    "cuStreamBeginCapture_v2",
    "cuStreamCreateWithPriority",
    "cuStreamDestroy_v2",
    "cuStreamEndCapture",
    "cuStreamQuery",
    "cuStreamSynchronize",
    "cuStreamWaitEvent",
    "cuTensorMapEncodeTiled",
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Names called in source text: `sys::cuXyz(` and `call!(device, "what", cuXyz(`.
    fn called(source: &str, into: &mut BTreeSet<String>) {
        let bytes = source.as_bytes();
        for (at, _) in source.match_indices("cu") {
            let starts_word = at == 0 || !(bytes[at - 1].is_ascii_alphanumeric() || bytes[at - 1] == b'_');
            let rest = &source[at + 2..];
            let tail: String = rest.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
            let is_call = rest[tail.len()..].starts_with('(');
            if starts_word && is_call && tail.starts_with(|c: char| c.is_ascii_uppercase()) {
                into.insert(format!("cu{tail}"));
            }
        }
    }

    #[test]
    fn the_list_is_exactly_what_is_called() {
        let mut found = BTreeSet::new();
        for source in [
            include_str!("capture.rs"),
            include_str!("driver.rs"),
            include_str!("error.rs"),
            include_str!("event.rs"),
            include_str!("graph.rs"),
            include_str!("launch.rs"),
            include_str!("memory.rs"),
            include_str!("module.rs"),
            include_str!("pinned.rs"),
            include_str!("selftest.rs"),
            include_str!("stream.rs"),
            include_str!("tensor_map.rs"),
        ] {
            called(source, &mut found);
        }
        let listed: BTreeSet<String> = REQUIRED.iter().map(ToString::to_string).collect();
        assert_eq!(found, listed);
        assert!(REQUIRED.windows(2).all(|pair| pair[0] < pair[1]), "sorted, no repeats");
    }
}
