//! cuBLASLt: dense matmul by NVIDIA's library, which is opened when it is first asked for.
//!
//! Nothing is linked: entry points are resolved from the copy that is found ([`WANTED`]). Matrices here are row-major; the library's are column-major,
//! so it is given their transposes, which are the same bytes ([`GemmShape::matrices`]). The algorithm is the first that its heuristics give for a shape
//! and a workspace size: the same at each start, but not the same for every number of rows.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::path::PathBuf;
use std::ptr;
use std::sync::{Arc, OnceLock};

use gossamer_codegen_cuda::dylib::{Candidate, Library, Missing, Refusal, Wanted, path_of};

use super::capture;
use super::driver::Device;
use super::error::CudaError;
use super::stream::Stream;

/// Where the library is looked for.
const WANTED: Wanted = Wanted {
    variable: "GOSSAMER_CUBLASLT",
    stem: "libcublasLt.so",
    names: &["libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so"],
    wheels: &["cu13", "cublas"],
    beside: &["GOSSAMER_NVRTC"],
};

/// The oldest version that is used, as the library counts: 12.0.0.
const OLDEST: usize = 120_000;

/// `cublasStatus_t`; an integer here, as a newer library may return values that no enum of ours lists.
type Status = c_int;
const SUCCESS: Status = 0;

/// Pointers to what the library owns: handles, descriptors, layouts, preferences.
type Raw = *mut c_void;
type Create = unsafe extern "C" fn(*mut Raw) -> Status;
type Destroy = unsafe extern "C" fn(Raw) -> Status;
type Set = unsafe extern "C" fn(Raw, c_int, *const c_void, usize) -> Status;

/// `cublasLtMatmulAlgo_t`.
type Algorithm = [u64; 8];

/// `cublasLtMatmulHeuristicResult_t`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Heuristic {
    algorithm: Algorithm,
    workspace: usize,
    state: Status,
    waves: f32,
    reserved: [c_int; 4],
}
const _: () = assert!(size_of::<Heuristic>() == 96);

/// Values of the library's enums, the same since version 11.
mod value {
    use std::ffi::c_int;

    pub const COMPUTE_F32: c_int = 68;
    pub const TRANSPOSE_A: c_int = 3;
    pub const TRANSPOSE_B: c_int = 4;
    pub const PREFER_WORKSPACE: c_int = 1;
    pub const PREFER_REDUCTIONS: c_int = 3;
    /// Of A; B, C and D follow.
    pub const PREFER_ALIGNMENT: c_int = 5;
    /// Parts of a sum that was split are added in f32 in the workspace, in a fixed order.
    pub const REDUCE_IN_F32: u32 = 2;
}

/// Alignment of every matrix in bytes that the algorithm may count on.
const ALIGNMENT: u32 = 16;
/// Algorithms asked for; the first that can be used is.
const ASKED: usize = 8;

/// Entry points of the library. It is never closed.
#[derive(Debug)]
struct Api {
    path: PathBuf,
    version: usize,
    create: Create,
    destroy: Destroy,
    status_name: unsafe extern "C" fn(Status) -> *const c_char,
    desc_create: unsafe extern "C" fn(*mut Raw, c_int, c_int) -> Status,
    desc_destroy: Destroy,
    desc_set: Set,
    layout_create: unsafe extern "C" fn(*mut Raw, c_int, u64, u64, i64) -> Status,
    layout_destroy: Destroy,
    preference_create: Create,
    preference_destroy: Destroy,
    preference_set: Set,
    heuristic: unsafe extern "C" fn(Raw, Raw, Raw, Raw, Raw, Raw, Raw, c_int, *mut Heuristic, *mut c_int) -> Status,
    matmul: unsafe extern "C" fn(
        Raw,
        Raw,
        *const c_void,
        *const c_void,
        Raw,
        *const c_void,
        Raw,
        *const c_void,
        *const c_void,
        Raw,
        *mut c_void,
        Raw,
        *const Algorithm,
        *mut c_void,
        usize,
        *mut c_void,
    ) -> Status,
}

impl Api {
    /// The library, found and opened once.
    fn get() -> Result<&'static Api, CudaError> {
        static LOADED: OnceLock<Result<Api, CudaError>> = OnceLock::new();
        LOADED.get_or_init(|| Api::find(&|name| std::env::var_os(name))).as_ref().map_err(Clone::clone)
    }

    fn find(env: &dyn Fn(&str) -> Option<std::ffi::OsString>) -> Result<Api, CudaError> {
        let found = WANTED.find(env, |candidate| match Api::open(candidate)? {
            api if api.version < OLDEST => {
                Err(Refusal::Unfit(format!("{} is version {}", api.path.display(), version_text(api.version))))
            }
            api => Ok(api),
        });
        found.map_err(|missing| CudaError::NoCublasLt {
            detail: match missing {
                Missing::Override { path, found } => format!("GOSSAMER_CUBLASLT={}: {found}", path.display()),
                Missing::Nowhere { unusable } => format!(
                    "version 12 or newer not found in the loader's path, CUDA_HOME, CUDA_PATH, /usr/local/cuda or Python wheels{unusable}"
                ),
            },
        })
    }

    fn open(candidate: &Candidate) -> Result<Api, String> {
        let name = candidate.name()?;
        let library = Library::open(&name)?;
        // SAFETY: each type is the signature of that function in the library's C interface, the same in versions 11 to 13.
        unsafe {
            let version: unsafe extern "C" fn() -> usize = library.symbol(c"cublasLtGetVersion")?;
            Ok(Api {
                path: path_of(version as usize).unwrap_or_else(|| name.to_string_lossy().as_ref().into()),
                version: version(),
                create: library.symbol(c"cublasLtCreate")?,
                destroy: library.symbol(c"cublasLtDestroy")?,
                status_name: library.symbol(c"cublasLtGetStatusName")?,
                desc_create: library.symbol(c"cublasLtMatmulDescCreate")?,
                desc_destroy: library.symbol(c"cublasLtMatmulDescDestroy")?,
                desc_set: library.symbol(c"cublasLtMatmulDescSetAttribute")?,
                layout_create: library.symbol(c"cublasLtMatrixLayoutCreate")?,
                layout_destroy: library.symbol(c"cublasLtMatrixLayoutDestroy")?,
                preference_create: library.symbol(c"cublasLtMatmulPreferenceCreate")?,
                preference_destroy: library.symbol(c"cublasLtMatmulPreferenceDestroy")?,
                preference_set: library.symbol(c"cublasLtMatmulPreferenceSetAttribute")?,
                heuristic: library.symbol(c"cublasLtMatmulAlgoGetHeuristic")?,
                matmul: library.symbol(c"cublasLtMatmul")?,
            })
        }
    }

    fn check(&self, call: &'static str, status: Status, what: &dyn Fn() -> String) -> Result<(), CudaError> {
        if status == SUCCESS {
            return Ok(());
        }
        // SAFETY: returns null or a static C string for any value.
        let name = unsafe { (self.status_name)(status) };
        let name = match name.is_null() {
            true => format!("status {status}"),
            // SAFETY: a static C string, see above.
            false => unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned(),
        };
        Err(CudaError::CublasLt { call, status: name, what: what() })
    }
}

/// The library as found.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct CublasLtInfo {
    /// Its version, such as `13.0.0`.
    pub version: String,
    /// The file.
    pub path: PathBuf,
}

/// Element types of matrices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Element {
    /// 4 bytes.
    F32,
    /// 2 bytes, IEEE.
    F16,
    /// 2 bytes, bfloat16.
    Bf16,
}

impl Element {
    /// `cudaDataType`.
    fn code(self) -> c_int {
        match self {
            Element::F32 => 0,
            Element::F16 => 2,
            Element::Bf16 => 14,
        }
    }
}

/// `y[m, n] = x[m, k] w[n, k]^T`, row-major without gaps, summed in f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct GemmShape {
    /// Rows of x and y.
    pub m: u64,
    /// Rows of w, columns of y.
    pub n: u64,
    /// Columns of x and w.
    pub k: u64,
    /// Elements of x and w.
    pub input: Element,
    /// Elements of y.
    pub output: Element,
}

/// A column-major matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Matrix {
    element: Element,
    rows: u64,
    columns: u64,
    /// Elements from one column to the next.
    stride: u64,
}

impl GemmShape {
    /// A, B and D of `D = A^T B`: w, x and y, each as its transpose. A row-major `[r, c]` is a column-major `c` by `r` with stride `c`; so A is `k` by
    /// `n`, B is `k` by `m`, and D, `n` by `m`, is the transpose of y.
    fn matrices(&self) -> [Matrix; 3] {
        let transposed =
            |element, rows: u64, columns: u64| Matrix { element, rows: columns, columns: rows, stride: columns };
        [
            transposed(self.input, self.n, self.k),
            transposed(self.input, self.m, self.k),
            transposed(self.output, self.m, self.n),
        ]
    }
}

impl std::fmt::Display for GemmShape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}x{}x{}", self.m, self.n, self.k)
    }
}

/// The library on one device. `Send + Sync`.
#[derive(Clone)]
pub struct CublasLt(Arc<Handle>);

struct Handle {
    api: &'static Api,
    raw: Raw,
    device: Device,
}

// SAFETY: a handle may be used from any thread, and from several at a time; it holds no state of a call.
unsafe impl Send for Handle {}
// SAFETY: see above.
unsafe impl Sync for Handle {}

impl CublasLt {
    /// Looks for the library, without a device.
    ///
    /// # Errors
    /// [`CudaError::NoCublasLt`].
    pub fn find() -> Result<CublasLtInfo, CudaError> {
        Api::get().map(|api| CublasLtInfo { version: version_text(api.version), path: api.path.clone() })
    }

    /// Prepares the library for a device.
    ///
    /// # Errors
    /// [`CudaError::NoCublasLt`] or [`CudaError::CublasLt`].
    pub fn new(device: &Device) -> Result<CublasLt, CudaError> {
        capture::refuse("preparing cuBLASLt")?;
        let api = Api::get()?;
        device.enter()?;
        let mut raw = ptr::null_mut();
        // SAFETY: the device's context is current and `raw` is valid for one write.
        let status = unsafe { (api.create)(&mut raw) };
        api.check("cublasLtCreate", status, &|| "preparing cuBLASLt".into())?;
        Ok(CublasLt(Arc::new(Handle { api, raw, device: device.clone() })))
    }

    /// Chooses how matmuls of a shape are computed with `workspace` bytes.
    ///
    /// # Errors
    /// [`CudaError::CublasLt`]: among others a shape that the library does not take.
    pub fn gemm(&self, shape: GemmShape, workspace: usize) -> Result<Gemm, CudaError> {
        capture::refuse("choosing an algorithm of cuBLASLt")?;
        let (handle, api) = (&self.0, self.0.api);
        handle.device.enter()?;
        let what = || format!("choosing an algorithm for a matmul of {shape}");
        let check = |call, status| api.check(call, status, &what);
        let mut desc = Owned { raw: ptr::null_mut(), destroy: api.desc_destroy };
        // SAFETY: handles are alive, out-pointers are valid for one write each, attributes have the sizes that the library documents, and what is
        // made is destroyed by its owner once.
        unsafe {
            check(
                "cublasLtMatmulDescCreate",
                (api.desc_create)(&mut desc.raw, value::COMPUTE_F32, Element::F32.code()),
            )?;
            for (name, transposed) in [(value::TRANSPOSE_A, 1i32), (value::TRANSPOSE_B, 0)] {
                let status = (api.desc_set)(desc.raw, name, (&raw const transposed).cast(), size_of::<i32>());
                check("cublasLtMatmulDescSetAttribute", status)?;
            }
            let layout = |m: Matrix| -> Result<Owned, CudaError> {
                let mut layout = Owned { raw: ptr::null_mut(), destroy: api.layout_destroy };
                let stride = i64::try_from(m.stride).unwrap_or(i64::MAX);
                let status = (api.layout_create)(&mut layout.raw, m.element.code(), m.rows, m.columns, stride);
                check("cublasLtMatrixLayoutCreate", status)?;
                Ok(layout)
            };
            let [a, b, d] = shape.matrices();
            let layouts = [layout(a)?, layout(b)?, layout(d)?];
            let algorithm = choose(handle, &desc, &layouts, workspace, &what)?;
            Ok(Gemm { handle: handle.clone(), desc, layouts, algorithm, workspace, shape })
        }
    }
}

/// The first algorithm that the library's heuristics give.
fn choose(
    handle: &Handle,
    desc: &Owned,
    [a, b, d]: &[Owned; 3],
    workspace: usize,
    what: &dyn Fn() -> String,
) -> Result<Algorithm, CudaError> {
    let api = handle.api;
    let check = |call, status| api.check(call, status, what);
    let mut preference = Owned { raw: ptr::null_mut(), destroy: api.preference_destroy };
    let none = Heuristic { algorithm: [0; 8], workspace: 0, state: SUCCESS, waves: 0.0, reserved: [0; 4] };
    let (mut found, mut count) = ([none; ASKED], 0);
    // SAFETY: as in `CublasLt::gemm`; `found` has room for as many results as are asked for. C is D, which is not read as beta is 0.
    unsafe {
        check("cublasLtMatmulPreferenceCreate", (api.preference_create)(&mut preference.raw))?;
        let set = |name, value: *const c_void, bytes| {
            check("cublasLtMatmulPreferenceSetAttribute", (api.preference_set)(preference.raw, name, value, bytes))
        };
        let (reductions, alignment) = (value::REDUCE_IN_F32, ALIGNMENT);
        set(value::PREFER_WORKSPACE, (&raw const workspace).cast(), size_of::<usize>())?;
        set(value::PREFER_REDUCTIONS, (&raw const reductions).cast(), size_of::<u32>())?;
        for matrix in 0..4 {
            set(value::PREFER_ALIGNMENT + matrix, (&raw const alignment).cast(), size_of::<u32>())?;
        }
        let status = (api.heuristic)(
            handle.raw,
            desc.raw,
            a.raw,
            b.raw,
            d.raw,
            d.raw,
            preference.raw,
            ASKED as c_int,
            found.as_mut_ptr(),
            &mut count,
        );
        check("cublasLtMatmulAlgoGetHeuristic", status)?;
    }
    let usable = |h: &&Heuristic| h.state == SUCCESS && h.workspace <= workspace;
    let found = found.iter().take(usize::try_from(count).unwrap_or(0)).find(usable);
    found.map(|h| h.algorithm).ok_or_else(|| CudaError::CublasLt {
        call: "cublasLtMatmulAlgoGetHeuristic",
        status: format!("no algorithm within {workspace} bytes of workspace"),
        what: what(),
    })
}

/// A matmul whose algorithm is chosen. Keeps the library's handle. `Send + Sync`.
pub struct Gemm {
    // The handle last, for dropping.
    layouts: [Owned; 3],
    desc: Owned,
    algorithm: Algorithm,
    workspace: usize,
    shape: GemmShape,
    handle: Arc<Handle>,
}

// SAFETY: descriptors and layouts are plain memory that is only read after `CublasLt::gemm`.
unsafe impl Send for Gemm {}
// SAFETY: see above.
unsafe impl Sync for Gemm {}

impl Gemm {
    /// The shape.
    pub fn shape(&self) -> GemmShape {
        self.shape
    }

    /// Bytes of workspace that a launch needs.
    pub fn workspace(&self) -> usize {
        self.workspace
    }

    /// Enqueues the matmul; a capture records it. Run one once before it is captured: kernels are loaded at the first launch, which a capture refuses.
    ///
    /// # Errors
    /// [`CudaError::CublasLt`] or [`CudaError::Poisoned`].
    ///
    /// # Safety
    /// The addresses are of the stream's device and aligned to 16 bytes; x, w and y are matrices of the shape and the workspace is as large as
    /// [`Gemm::workspace`] says; all live, and nothing else writes them, until the stream has done this and every replay of what a capture
    /// recorded. y overlaps nothing.
    pub unsafe fn launch(&self, stream: &Stream, [x, w, y, workspace]: [u64; 4]) -> Result<(), CudaError> {
        let api = self.handle.api;
        stream.device().enter()?;
        let pointer = |address: u64| ptr::without_provenance_mut::<c_void>(address as usize);
        let (one, zero) = (1.0f32, 0.0f32);
        let [a, b, d] = &self.layouts;
        // SAFETY: handle, descriptor, layouts and algorithm are alive and belong together; the caller vouches for the addresses. The factors are read
        // before the call returns.
        let status = unsafe {
            (api.matmul)(
                self.handle.raw,
                self.desc.raw,
                (&raw const one).cast(),
                pointer(w),
                a.raw,
                pointer(x),
                b.raw,
                (&raw const zero).cast(),
                pointer(y),
                d.raw,
                pointer(y),
                d.raw,
                &self.algorithm,
                pointer(workspace),
                self.workspace,
                stream.raw().cast(),
            )
        };
        api.check("cublasLtMatmul", status, &|| format!("launching a matmul of {}", self.shape))
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        if self.device.enter().is_ok() {
            // SAFETY: made by this library and not used again; its kernels stay loaded.
            let _ = unsafe { (self.api.destroy)(self.raw) };
        }
    }
}

/// Something that the library made.
struct Owned {
    raw: Raw,
    destroy: Destroy,
}

impl Drop for Owned {
    fn drop(&mut self) {
        if !self.raw.is_null() {
            // SAFETY: made by this library and not destroyed before; plain host memory.
            let _ = unsafe { (self.destroy)(self.raw) };
        }
    }
}

/// `13.1.0` of 130100.
fn version_text(version: usize) -> String {
    format!("{}.{}.{}", version / 10_000, version / 100 % 100, version % 100)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: GemmShape = GemmShape { m: 3, n: 4, k: 5, input: Element::Bf16, output: Element::F32 };

    /// `D = A^T B` over column-major matrices, as the library computes it.
    fn column_major([a, b, d]: [Matrix; 3], x: &[f32], w: &[f32]) -> Vec<f32> {
        assert_eq!((a.rows, d.rows, d.columns), (b.rows, a.columns, b.columns));
        let at = |m: &Matrix, r: u64, c: u64| (r + c * m.stride) as usize;
        let mut y = vec![f32::NAN; (d.stride * d.columns) as usize];
        for r in 0..d.rows {
            for c in 0..d.columns {
                y[at(&d, r, c)] = (0..a.rows).map(|i| w[at(&a, i, r)] * x[at(&b, i, c)]).sum();
            }
        }
        y
    }

    #[test]
    fn row_major_matrices_are_given_as_their_transposes() {
        let (m, n, k) = (SHAPE.m as usize, SHAPE.n as usize, SHAPE.k as usize);
        let x: Vec<f32> = (0..m * k).map(|i| (i * 7 % 11) as f32 - 4.0).collect();
        let w: Vec<f32> = (0..n * k).map(|i| (i * 5 % 13) as f32 - 6.0).collect();
        let dot = |r: usize, c: usize| (0..k).map(|i| x[r * k + i] * w[c * k + i]).sum::<f32>();
        let expected: Vec<f32> = (0..m * n).map(|i| dot(i / n, i % n)).collect();
        assert_eq!(column_major(SHAPE.matrices(), &x, &w), expected);
        let [a, b, d] = SHAPE.matrices();
        assert_eq!([a.element, b.element, d.element], [Element::Bf16, Element::Bf16, Element::F32]);
        assert_eq!([a.stride, b.stride, d.stride], [5, 5, 4]);
    }

    #[test]
    fn a_missing_library_is_one_line_with_a_fix() {
        let folder = tempfile::tempdir().unwrap();
        let value = folder.path().as_os_str().to_owned();
        let error = Api::find(&|n| (n == "GOSSAMER_CUBLASLT").then(|| value.clone())).unwrap_err();
        let line = error.to_string();
        assert!(line.starts_with("no cuBLASLt: GOSSAMER_CUBLASLT="), "{line}");
        assert!(line.contains("there is no libcublasLt.so in that folder; ") && !line.contains('\n'), "{line}");
        assert!(line.ends_with(error.fix()), "{line}");
        // A file that is no library does not panic either.
        let file = folder.path().join("libcublasLt.so.13");
        std::fs::write(&file, "text").unwrap();
        let line = Api::find(&|n| (n == "GOSSAMER_CUBLASLT").then(|| file.clone().into())).unwrap_err().to_string();
        assert!(line.starts_with("no cuBLASLt: GOSSAMER_CUBLASLT=") && !line.contains('\n'), "{line}");
    }

    #[test]
    fn looking_for_it_never_panics() {
        match CublasLt::find() {
            Ok(info) => assert!(info.path.display().to_string().contains("cublasLt"), "{}", info.path.display()),
            Err(e) => assert!(matches!(e, CudaError::NoCublasLt { .. }), "{e}"),
        }
        assert_eq!(version_text(130_100), "13.1.0");
        assert_eq!(version_text(120_804), "12.8.4");
    }
}
