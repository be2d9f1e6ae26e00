//! State on the device: keys and values `[pages, heads, page, head_dim]` of each layer, and token counts u32 `[rows, vocab]`.

use gossamer_codegen_cuda::lower::Part;
use gossamer_ir::{DType, StateDecl};

use super::bind::Parts;
use crate::cuda::{CudaError, Device, DeviceBuffer, Stream};
use crate::exec::StateSpec;

/// The state of one executor, zeroed when made.
pub struct States {
    stores: Vec<Store>,
}

struct Store {
    spec: StateSpec,
    buffers: Vec<(Part, DeviceBuffer)>,
}

/// Device bytes of a state's buffers, by part; sizes below 0 count as 0.
pub fn buffer_bytes(spec: &StateSpec) -> Vec<(Part, u64)> {
    let size = |n: i64| u64::try_from(n).unwrap_or(0);
    let units = spec.units as u64;
    match &spec.decl {
        StateDecl::Kv { heads, head_dim, page, dtype, .. } => {
            let elements = [size(*heads), size(*page), size(*head_dim)].into_iter().fold(units, u64::saturating_mul);
            let bytes = dtype.storage_bytes(elements);
            vec![(Part::Keys, bytes), (Part::Values, bytes)]
        }
        StateDecl::Counts { vocab, .. } => vec![(Part::Counts, units.saturating_mul(size(*vocab)).saturating_mul(4))],
    }
}

impl States {
    /// Allocates and zeroes the state; waits for the zeroes.
    ///
    /// # Errors
    /// Too little memory, or what the device gives.
    pub fn new(device: &Device, stream: &Stream, specs: &[StateSpec]) -> Result<States, CudaError> {
        let mut stores = Vec::with_capacity(specs.len());
        for spec in specs {
            let mut buffers = Vec::new();
            for (part, bytes) in buffer_bytes(spec) {
                let what = match part {
                    Part::Counts => format!("token counts {}", spec.name),
                    _ => format!("KV cache {}", spec.name),
                };
                let buffer = DeviceBuffer::alloc(device, usize::try_from(bytes).unwrap_or(usize::MAX), &what)?;
                buffer.all().zero(stream)?;
                buffers.push((part, buffer));
            }
            stores.push(Store { spec: spec.clone(), buffers });
        }
        stream.synchronize()?;
        Ok(States { stores })
    }

    /// Addresses of the state `name`; `None` if it was not allocated.
    pub fn parts(&self, name: &str) -> Option<Parts> {
        let store = self.stores.iter().find(|s| s.spec.name == name)?;
        Some(store.buffers.iter().map(|(part, buffer)| (*part, buffer.ptr())).collect())
    }

    /// The buffers of keys and values: address, bytes and element type of each.
    pub fn caches(&self) -> impl Iterator<Item = (u64, usize, DType)> + '_ {
        let of = |store: &'_ Store| match store.spec.decl {
            StateDecl::Kv { dtype, .. } => Some(dtype),
            StateDecl::Counts { .. } => None,
        };
        self.stores
            .iter()
            .filter_map(move |s| Some((s, of(s)?)))
            .flat_map(|(s, dtype)| s.buffers.iter().map(move |(_, buffer)| (buffer.ptr(), buffer.len(), dtype)))
    }

    /// What was allocated for the state `name`.
    pub fn spec(&self, name: &str) -> Option<&StateSpec> {
        self.stores.iter().map(|s| &s.spec).find(|s| s.name == name)
    }

    /// Enqueues zeroing row `row` of the counts `name`; does nothing if there is no such state or row.
    ///
    /// # Errors
    /// What the device gives.
    pub fn clear_counts(&self, stream: &Stream, name: &str, row: usize) -> Result<(), CudaError> {
        let Some(store) = self.stores.iter().find(|s| s.spec.name == name && row < s.spec.units) else { return Ok(()) };
        for (part, buffer) in &store.buffers {
            if *part == Part::Counts {
                let bytes = buffer.len() / store.spec.units;
                buffer.slice(row * bytes, bytes)?.zero(stream)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_follow_the_declarations() {
        let (heads, head_dim, page, dtype) = (8, 64, 64, DType::BF16);
        let decl = StateDecl::Kv { name: "full".into(), heads, head_dim, page, window: None, dtype };
        let spec = StateSpec { name: "kv.0".into(), decl, units: 10 };
        let one = 10 * 8 * 64 * 64 * 2;
        assert_eq!(buffer_bytes(&spec), [(Part::Keys, one), (Part::Values, one)]);
        let decl = StateDecl::Counts { name: "seen".into(), vocab: 1000 };
        let spec = StateSpec { name: "seen".into(), decl, units: 3 };
        assert_eq!(buffer_bytes(&spec), [(Part::Counts, 12_000)]);
    }
}
