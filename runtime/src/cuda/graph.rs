//! CUDA graphs: captured from a stream or built node by node, then instantiated and replayed.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fmt;
use std::path::Path;

use cudarc::driver::sys;

use super::capture::{self, KeptModules};
use super::driver::{Device, call};
use super::error::CudaError;
use super::launch::{ArgList, LaunchConfig, cluster_value};
use super::module::Function;
use super::stream::Stream;

/// How one node waits for another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Dependency {
    /// Until it has ended.
    Full,
    /// Programmatic dependent launch: until all its blocks have asked for it or ended. Kernels only.
    Programmatic,
}

/// One dependency of a graph; `from` and `to` index [`Graph::edges`]' order of nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Edge {
    /// The node waited for.
    pub from: usize,
    /// The node that waits.
    pub to: usize,
    /// How it waits.
    pub dependency: Dependency,
}

/// A kernel node of a graph built by hand; valid for the graph that made it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GraphNode {
    graph: usize,
    index: usize,
}

/// How many nodes a graph has of each kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
pub struct NodeCounts {
    /// Kernel launches.
    pub kernels: usize,
    /// Copies.
    pub copies: usize,
    /// Fills.
    pub fills: usize,
    /// Allocations and frees; always 0 in a graph made by [`Stream::capture`].
    pub allocations: usize,
    /// Anything else: empty nodes, events, host calls, child graphs.
    pub others: usize,
}

impl NodeCounts {
    /// All nodes.
    pub fn total(&self) -> usize {
        self.kernels + self.copies + self.fills + self.allocations + self.others
    }
}

/// A graph as recorded: nodes and edges. Keeps the modules of its kernels loaded, but not the memory it uses. `Send` but
/// not `Sync`: the driver does not lock graphs.
pub struct Graph {
    device: Device,
    raw: sys::CUgraph,
    modules: KeptModules,
    /// Kernel nodes added by hand.
    added: Vec<sys::CUgraphNode>,
}

// SAFETY: a graph handle is not tied to a thread; `!Sync` (from the raw pointer) keeps use to one thread at a time.
unsafe impl Send for Graph {}

impl Stream {
    /// Records what `record` enqueues on this stream, instead of running it. Other streams join by waiting for an event of
    /// this one and must be joined back. While it records, this thread cannot allocate, synchronise or copy pageable memory;
    /// buffers dropped meanwhile are freed afterwards. Other threads are not restricted.
    ///
    /// # Errors
    /// What `record` returns; else [`CudaError::Capturing`] if this thread is capturing already,
    /// [`CudaError::GraphAllocates`], [`CudaError::Driver`] or [`CudaError::Poisoned`]. The stream leaves capture mode in
    /// each case, even when `record` panics.
    pub fn capture<T, E: From<CudaError>>(&self, record: impl FnOnce() -> Result<T, E>) -> Result<(Graph, T), E> {
        capture::refuse("a second capture")?;
        let device = self.device();
        device.enter()?;
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream is alive.
        unsafe { call!(device, "starting a graph capture", cuStreamBeginCapture_v2(self.raw(), mode))? };
        capture::begin();
        let mut guard = EndCapture { stream: self, ended: false };
        let recorded = record();
        let graph = guard.end();
        let value = recorded?;
        let graph = graph?;
        let nodes = graph.node_counts()?.allocations;
        if nodes > 0 {
            return Err(CudaError::GraphAllocates { nodes }.into());
        }
        Ok((graph, value))
    }
}

/// Ends a capture exactly once, also when recording panics.
struct EndCapture<'a> {
    stream: &'a Stream,
    ended: bool,
}

impl EndCapture<'_> {
    fn end(&mut self) -> Result<Graph, CudaError> {
        self.ended = true;
        let device = self.stream.device();
        let mut raw = std::ptr::null_mut();
        // A poisoned device fails here, and then there is no graph to take.
        let ended = device.enter().and_then(|()| {
            // SAFETY: this thread began the capture of this stream; `raw` is valid for one write.
            unsafe { call!(device, "ending a graph capture", cuStreamEndCapture(self.stream.raw(), &mut raw)) }
        });
        let modules = capture::end();
        ended?;
        if raw.is_null() {
            return Err(CudaError::Capturing { what: "something that invalidated the graph" });
        }
        Ok(Graph { device: device.clone(), raw, modules, added: Vec::new() })
    }
}

impl Drop for EndCapture<'_> {
    fn drop(&mut self) {
        if !self.ended {
            let _ = self.end();
        }
    }
}

impl Graph {
    /// An empty graph, to be built with [`Graph::add_kernel`].
    ///
    /// # Errors
    /// [`CudaError::Driver`] or [`CudaError::Poisoned`].
    pub fn new(device: &Device) -> Result<Self, CudaError> {
        device.enter()?;
        let mut raw = std::ptr::null_mut();
        // SAFETY: the context is current, flags must be 0, `raw` is valid for one write.
        unsafe { call!(device, "making a graph", cuGraphCreate(&mut raw, 0))? };
        Ok(Self { device: device.clone(), raw, modules: KeptModules::default(), added: Vec::new() })
    }

    /// Adds a kernel that waits for `after`. The dependencies say what is programmatic; `config.pdl` must be false.
    ///
    /// # Errors
    /// [`CudaError::BadLaunch`] if configuration, arguments or dependencies do not fit, [`CudaError::Driver`] or
    /// [`CudaError::Poisoned`].
    ///
    /// # Safety
    /// As [`Function::launch`], each time the graph runs.
    pub unsafe fn add_kernel(
        &mut self,
        after: &[(GraphNode, Dependency)],
        function: &Function,
        config: &LaunchConfig,
        args: &ArgList,
    ) -> Result<GraphNode, CudaError> {
        config.check(function.name(), &function.limits())?;
        args.check(function.name(), &function.info().params)?;
        let bad =
            |problem: &str| CudaError::BadLaunch { kernel: function.name().to_owned(), problem: problem.to_owned() };
        if config.pdl {
            return Err(bad("launch sets pdl on a graph node, expected a programmatic dependency instead"));
        }
        let (mut nodes, mut edges) = (Vec::new(), Vec::new());
        for (node, dependency) in after {
            let known = self.added.get(node.index).filter(|_| node.graph == self.id());
            nodes.push(*known.ok_or_else(|| bad("launch depends on a node of another graph"))?);
            edges.push(edge_data(*dependency));
        }
        self.device.enter()?;
        let device = &self.device;
        let what = || format!("adding {} to a graph", function.name());
        let mut node = std::ptr::null_mut();
        args.with_pointers(|pointers| {
            let mut params = kernel_params(function, config, pointers);
            // SAFETY: the graph and the nodes are alive, both arrays have `nodes.len()` entries, and the parameters follow
            // the checks above; the driver copies the arguments during the call.
            unsafe {
                call!(
                    device,
                    what(),
                    cuGraphAddNode_v2(&mut node, self.raw, nodes.as_ptr(), edges.as_ptr(), nodes.len(), &mut params)
                )
            }
        })?;
        if let Some(cluster) = config.cluster {
            let id = sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION;
            let value = cluster_value(cluster);
            // SAFETY: the node was just made; the value lives until the call returns.
            unsafe { call!(device, what(), cuGraphKernelNodeSetAttribute(node, id, &value))? };
        }
        self.modules.keep(function.module());
        self.added.push(node);
        Ok(GraphNode { graph: self.id(), index: self.added.len() - 1 })
    }

    /// Makes it ready to run. The graph may be dropped afterwards.
    ///
    /// # Errors
    /// [`CudaError::Capturing`], [`CudaError::Driver`] or [`CudaError::Poisoned`].
    pub fn instantiate(&self) -> Result<GraphExec, CudaError> {
        capture::refuse("instantiating a graph")?;
        self.device.enter()?;
        let mut raw = std::ptr::null_mut();
        // SAFETY: the graph is alive and `raw` is valid for one write.
        unsafe { call!(self.device, "instantiating a graph", cuGraphInstantiateWithFlags(&mut raw, self.raw, 0))? };
        Ok(GraphExec { device: self.device.clone(), raw, modules: self.modules.clone() })
    }

    /// Nodes by kind.
    ///
    /// # Errors
    /// [`CudaError::Driver`] or [`CudaError::Poisoned`].
    pub fn node_counts(&self) -> Result<NodeCounts, CudaError> {
        let mut counts = NodeCounts::default();
        for node in self.nodes()? {
            // Read as a number: a newer driver may know more kinds than the bindings list.
            let mut kind = u32::MAX;
            let out = (&raw mut kind).cast::<sys::CUgraphNodeType>();
            // SAFETY: the node belongs to the live graph; `out` is valid for one 4-byte write.
            unsafe { call!(self.device, "reading a graph", cuGraphNodeGetType(node, out))? };
            match kind {
                0 => counts.kernels += 1,
                1 => counts.copies += 1,
                2 => counts.fills += 1,
                10 | 11 => counts.allocations += 1,
                _ => counts.others += 1,
            }
        }
        Ok(counts)
    }

    /// All dependencies, sorted; nodes are numbered in the driver's order.
    ///
    /// # Errors
    /// [`CudaError::Driver`] or [`CudaError::Poisoned`].
    pub fn edges(&self) -> Result<Vec<Edge>, CudaError> {
        let number: BTreeMap<usize, usize> =
            self.nodes()?.iter().enumerate().map(|(index, &node)| (node as usize, index)).collect();
        let mut count = 0;
        let none = std::ptr::null_mut();
        // SAFETY: with null arrays the driver only writes the count.
        unsafe {
            call!(
                self.device,
                "reading a graph",
                cuGraphGetEdges_v2(self.raw, none, none, std::ptr::null_mut(), &mut count)
            )?;
        }
        let mut from = vec![std::ptr::null_mut(); count];
        let mut to = from.clone();
        let mut data = vec![edge_data(Dependency::Full); count];
        if count > 0 {
            // SAFETY: each array has `count` entries, as passed.
            unsafe {
                call!(
                    self.device,
                    "reading a graph",
                    cuGraphGetEdges_v2(self.raw, from.as_mut_ptr(), to.as_mut_ptr(), data.as_mut_ptr(), &mut count)
                )?;
            }
        }
        let index = |node: sys::CUgraphNode| number.get(&(node as usize)).copied().unwrap_or(usize::MAX);
        let mut edges: Vec<Edge> = (0..count.min(data.len()))
            .map(|i| Edge { from: index(from[i]), to: index(to[i]), dependency: dependency_of(&data[i]) })
            .collect();
        edges.sort_unstable();
        Ok(edges)
    }

    /// How many dependencies are programmatic.
    ///
    /// # Errors
    /// [`CudaError::Driver`] or [`CudaError::Poisoned`].
    pub fn programmatic_edges(&self) -> Result<usize, CudaError> {
        Ok(self.edges()?.iter().filter(|edge| edge.dependency == Dependency::Programmatic).count())
    }

    /// The driver's own drawing of the graph, in DOT, with kernel parameters and attributes.
    ///
    /// # Errors
    /// [`CudaError::File`] if no temporary file can be made, [`CudaError::Driver`] or [`CudaError::Poisoned`].
    pub fn dot(&self) -> Result<String, CudaError> {
        use sys::CUgraphDebugDot_flags_enum as F;
        self.device.enter()?;
        // The driver only writes to a file.
        let file = tempfile::NamedTempFile::new().map_err(|error| file_error(&std::env::temp_dir(), &error))?;
        let failed = |error| file_error(file.path(), &error);
        let path = CString::new(file.path().as_os_str().as_encoded_bytes()).map_err(|error| failed(error.into()))?;
        let flags = F::CU_GRAPH_DEBUG_DOT_FLAGS_KERNEL_NODE_PARAMS as u32
            | F::CU_GRAPH_DEBUG_DOT_FLAGS_KERNEL_NODE_ATTRIBUTES as u32
            | F::CU_GRAPH_DEBUG_DOT_FLAGS_MEMCPY_NODE_PARAMS as u32
            | F::CU_GRAPH_DEBUG_DOT_FLAGS_MEMSET_NODE_PARAMS as u32;
        // SAFETY: the graph is alive and the path NUL-terminated.
        unsafe { call!(self.device, "drawing a graph", cuGraphDebugDotPrint(self.raw, path.as_ptr(), flags))? };
        let text = std::fs::read(file.path()).map_err(failed)?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    /// Writes [`Graph::dot`] to a file.
    ///
    /// # Errors
    /// [`CudaError::File`], and those of [`Graph::dot`].
    pub fn write_dot(&self, path: &Path) -> Result<(), CudaError> {
        std::fs::write(path, self.dot()?).map_err(|error| file_error(path, &error))
    }

    fn id(&self) -> usize {
        self.raw as usize
    }

    fn nodes(&self) -> Result<Vec<sys::CUgraphNode>, CudaError> {
        self.device.enter()?;
        let mut count = 0;
        // SAFETY: with a null array the driver only writes the count.
        unsafe { call!(self.device, "reading a graph", cuGraphGetNodes(self.raw, std::ptr::null_mut(), &mut count))? };
        let mut nodes = vec![std::ptr::null_mut(); count];
        if count > 0 {
            // SAFETY: the array has `count` entries, as passed.
            unsafe {
                call!(self.device, "reading a graph", cuGraphGetNodes(self.raw, nodes.as_mut_ptr(), &mut count))?
            };
        }
        nodes.truncate(count);
        Ok(nodes)
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        if self.device.enter().is_ok() {
            // SAFETY: ours, destroyed once; executables made from it are independent.
            let _ = unsafe { sys::cuGraphDestroy(self.raw) };
        }
    }
}

impl fmt::Debug for Graph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Graph({:?})", self.raw)
    }
}

/// A graph ready to run. Keeps the modules of its kernels loaded, but not the memory it uses. `Send` but not `Sync`.
pub struct GraphExec {
    device: Device,
    raw: sys::CUgraphExec,
    modules: KeptModules,
}

// SAFETY: an executable graph is not tied to a thread; `!Sync` (from the raw pointer) keeps use to one thread at a time.
unsafe impl Send for GraphExec {}

impl GraphExec {
    /// Enqueues one run of the graph. Runs of one executable never overlap.
    ///
    /// # Errors
    /// [`CudaError::Driver`] or [`CudaError::Poisoned`]; errors of its kernels appear at a later call.
    ///
    /// # Safety
    /// All memory that the recorded work uses must stay allocated, and be used by nobody in conflict, until it has run.
    pub unsafe fn launch(&self, stream: &Stream) -> Result<(), CudaError> {
        self.device.enter()?;
        // SAFETY: both handles are alive; the caller answers for the memory.
        unsafe { call!(self.device, "running a graph", cuGraphLaunch(self.raw, stream.raw())) }
    }

    /// Enqueues the transfer of the graph to the device, so that the first [`GraphExec::launch`] is as quick as the rest.
    ///
    /// # Errors
    /// [`CudaError::Capturing`], [`CudaError::Driver`] or [`CudaError::Poisoned`].
    pub fn upload(&self, stream: &Stream) -> Result<(), CudaError> {
        capture::refuse("uploading a graph")?;
        self.device.enter()?;
        // SAFETY: both handles are alive.
        unsafe { call!(self.device, "uploading a graph", cuGraphUpload(self.raw, stream.raw())) }
    }
}

impl Drop for GraphExec {
    fn drop(&mut self) {
        let (device, raw) = (self.device.clone(), self.raw);
        let modules = std::mem::take(&mut self.modules);
        capture::free_when_allowed(move || {
            if device.enter().is_ok() {
                // SAFETY: ours, destroyed once; the driver lets a run in progress end first.
                let _ = unsafe { sys::cuGraphExecDestroy(raw) };
            }
            drop(modules);
        });
    }
}

impl fmt::Debug for GraphExec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GraphExec({:?})", self.raw)
    }
}

fn kernel_params(
    function: &Function,
    config: &LaunchConfig,
    pointers: *mut *mut std::ffi::c_void,
) -> sys::CUgraphNodeParams {
    let kernel = sys::CUDA_KERNEL_NODE_PARAMS_v3 {
        func: function.raw(),
        gridDimX: config.grid[0],
        gridDimY: config.grid[1],
        gridDimZ: config.grid[2],
        blockDimX: config.block[0],
        blockDimY: config.block[1],
        blockDimZ: config.block[2],
        sharedMemBytes: config.shared,
        kernelParams: pointers,
        extra: std::ptr::null_mut(),
        kern: std::ptr::null_mut(),
        ctx: std::ptr::null_mut(),
    };
    // The driver wants every unused byte to be zero.
    let mut params = sys::CUgraphNodeParams {
        type_: sys::CUgraphNodeType::CU_GRAPH_NODE_TYPE_KERNEL,
        reserved0: [0; 3],
        __bindgen_anon_1: sys::CUgraphNodeParams_st__bindgen_ty_1 { reserved1: [0; 29] },
        reserved2: 0,
    };
    params.__bindgen_anon_1.kernel = kernel;
    params
}

fn edge_data(dependency: Dependency) -> sys::CUgraphEdgeData {
    let (from_port, type_) = match dependency {
        Dependency::Full => (sys::CU_GRAPH_KERNEL_NODE_PORT_DEFAULT, 0),
        Dependency::Programmatic => (
            sys::CU_GRAPH_KERNEL_NODE_PORT_PROGRAMMATIC,
            sys::CUgraphDependencyType_enum::CU_GRAPH_DEPENDENCY_TYPE_PROGRAMMATIC as u8,
        ),
    };
    sys::CUgraphEdgeData { from_port: from_port as u8, to_port: 0, type_, reserved: [0; 5] }
}

fn dependency_of(data: &sys::CUgraphEdgeData) -> Dependency {
    match data.type_ {
        1 => Dependency::Programmatic,
        _ => Dependency::Full,
    }
}

fn file_error(path: &Path, error: &std::io::Error) -> CudaError {
    CudaError::File { path: path.display().to_string(), problem: error.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edge_data_round_trips() {
        for dependency in [Dependency::Full, Dependency::Programmatic] {
            assert_eq!(dependency_of(&edge_data(dependency)), dependency);
        }
        let programmatic = edge_data(Dependency::Programmatic);
        assert_eq!((programmatic.from_port, programmatic.to_port, programmatic.type_), (1, 0, 1));
        let full = edge_data(Dependency::Full);
        assert_eq!((full.from_port, full.to_port, full.type_), (0, 0, 0));
    }

    #[test]
    fn counts_add_up() {
        let counts = NodeCounts { kernels: 3, copies: 2, fills: 1, allocations: 0, others: 4 };
        assert_eq!(counts.total(), 10);
    }
}
