//! Code generation for NVIDIA Hopper (SM90): CUDA C++ text, cubins, and the weight layouts that kernels read.
//!
//! Owns kernel templates and launch geometry, weight layouts ([`layout`]), compiling through NVRTC ([`nvrtc`]), the disk cache of
//! cubins ([`cache`]) and checks of compiled kernels that need no GPU ([`resources`]). Must never know model names, device memory
//! or tokens.
//!
//! ```no_run
//! use gossamer_codegen_cuda::cache::{self, KernelCache};
//! use gossamer_codegen_cuda::nvrtc::{Nvrtc, Source};
//! use gossamer_codegen_cuda::resources::{self, Expect};
//!
//! let nvrtc = Nvrtc::load()?;
//! let kernels = cache::default_folder().map_or_else(KernelCache::disabled, KernelCache::at);
//! let text = r#"extern "C" __global__ void twice(float* x) { x[threadIdx.x] *= 2; }"#;
//! let compiled = kernels.get_or_compile(&Source::new("twice", text), &nvrtc)?;
//! println!("{}", resources::check(&compiled, &Expect::new("twice", 128))?);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod cache;
pub mod dylib;
mod emit;
mod kernels;
pub mod layout;
pub mod lower;
pub mod machines;
pub mod nvrtc;
pub mod resources;
pub mod tools;
