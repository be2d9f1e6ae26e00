//! Arrays between the host's form and the device's: bytes of the element type, little endian, row-major.

use gossamer_ir::DType;
use gossamer_ir::interp::{Data, Tensor};
use half::{bf16, f16};

use crate::exec::HostData;

/// Writes `data` as elements of `dtype`. Floats are rounded to nearest even; `None` if the kinds differ or the lengths do not agree.
pub fn encode(data: &HostData, dtype: DType, out: &mut [u8]) -> Option<()> {
    match (data, dtype) {
        (HostData::F32(v), DType::F32) => copy(bytemuck::cast_slice(v), out),
        (HostData::I32(v), DType::I32) => copy(bytemuck::cast_slice(v), out),
        (HostData::F32(v), DType::BF16) => each(v, out, |x| bf16::from_f32(x).to_le_bytes()),
        (HostData::F32(v), DType::F16) => each(v, out, |x| f16::from_f32(x).to_le_bytes()),
        (HostData::I32(v), DType::U8) => each(v, out, |x| [x as u8]),
        (HostData::I32(v), DType::Bool) => each(v, out, |x| [u8::from(x != 0)]),
        _ => None,
    }
}

/// Reads elements of `dtype`: integers as they are, everything else widened to f32, which is exact. `None` for MXFP4, whose elements have no address.
pub fn decode(bytes: &[u8], dtype: DType) -> Option<HostData> {
    let halves = |value: fn([u8; 2]) -> f32| bytes.chunks_exact(2).map(|b| value([b[0], b[1]])).collect();
    Some(match dtype {
        DType::I32 => HostData::I32(words(bytes, i32::from_le_bytes)),
        DType::F32 => HostData::F32(words(bytes, f32::from_le_bytes)),
        DType::BF16 => HostData::F32(halves(|b| bf16::from_le_bytes(b).to_f32())),
        DType::F16 => HostData::F32(halves(|b| f16::from_le_bytes(b).to_f32())),
        DType::U8 | DType::Bool => HostData::F32(bytes.iter().map(|b| f32::from(*b)).collect()),
        DType::Mxfp4 => return None,
    })
}

/// A tensor of the interpreter as the device holds it: elements of its dtype; MXFP4 as code bytes followed by scale bytes. `None` if the tensor's
/// storage cannot be its dtype.
pub fn tensor_bytes(t: &Tensor) -> Option<Vec<u8>> {
    let halves = |f: fn(f32) -> [u8; 2]| t.to_f32().iter().flat_map(|x| f(*x)).collect();
    Some(match (t.dtype, &t.data) {
        (DType::Mxfp4, Data::Mxfp4 { codes, scales }) => [codes.as_slice(), scales.as_slice()].concat(),
        (DType::BF16, Data::BF16(v)) => bytemuck::cast_slice(v).to_vec(),
        (DType::I32, Data::I32(v)) => bytemuck::cast_slice(v).to_vec(),
        (DType::U8 | DType::Bool, Data::U8(v)) => v.to_vec(),
        (DType::F32, _) => bytemuck::cast_slice(&t.to_f32()).to_vec(),
        (DType::BF16, _) => halves(|x| bf16::from_f32(x).to_le_bytes()),
        (DType::F16, _) => halves(|x| f16::from_f32(x).to_le_bytes()),
        _ => return None,
    })
}

fn words<T>(bytes: &[u8], value: fn([u8; 4]) -> T) -> Vec<T> {
    bytes.chunks_exact(4).map(|b| value([b[0], b[1], b[2], b[3]])).collect()
}

fn copy(from: &[u8], to: &mut [u8]) -> Option<()> {
    (from.len() == to.len()).then(|| to.copy_from_slice(from))
}

fn each<T: Copy, const N: usize>(values: &[T], out: &mut [u8], bytes: impl Fn(T) -> [u8; N]) -> Option<()> {
    if out.len() != values.len() * N {
        return None;
    }
    for (slot, value) in out.chunks_exact_mut(N).zip(values) {
        slot.copy_from_slice(&bytes(*value));
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn every_dtype_survives_the_round_trip() {
        let floats = HostData::F32(vec![0.0, -1.5, 3.0, f32::INFINITY]);
        for dtype in [DType::F32, DType::BF16, DType::F16] {
            let mut bytes = vec![0; 4 * dtype.bytes().unwrap() as usize];
            encode(&floats, dtype, &mut bytes).unwrap();
            assert_eq!(decode(&bytes, dtype).unwrap(), floats, "{dtype}");
        }
        let ints = HostData::I32(vec![i32::MIN, -1, 0, 7]);
        let mut bytes = vec![0; 16];
        encode(&ints, DType::I32, &mut bytes).unwrap();
        assert_eq!(decode(&bytes, DType::I32).unwrap(), ints);
        let mut bytes = vec![9; 4];
        encode(&HostData::I32(vec![0, 1, 2, 0]), DType::Bool, &mut bytes).unwrap();
        assert_eq!(bytes, [0, 1, 1, 0]);
    }

    #[test]
    fn rounding_is_to_nearest_even() {
        let mut bytes = [0; 4];
        encode(&HostData::F32(vec![1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0]), DType::BF16, &mut bytes).unwrap();
        assert_eq!(decode(&bytes, DType::BF16).unwrap().f32(), [1.0, 1.0 + 4.0 / 256.0]);
    }

    #[test]
    fn other_kinds_and_lengths_are_refused() {
        assert!(encode(&HostData::F32(vec![1.0]), DType::I32, &mut [0; 4]).is_none());
        assert!(encode(&HostData::I32(vec![1]), DType::F32, &mut [0; 4]).is_none());
        assert!(encode(&HostData::F32(vec![1.0]), DType::BF16, &mut [0; 4]).is_none());
        assert!(decode(&[0; 17], DType::Mxfp4).is_none());
    }

    #[test]
    fn tensors_keep_their_stored_bytes() {
        let t = Tensor {
            dtype: DType::Mxfp4,
            shape: vec![1, 32],
            data: Data::Mxfp4 { codes: Arc::new((0..16).collect()), scales: Arc::new(vec![120]) },
        };
        assert_eq!(tensor_bytes(&t).unwrap(), (0..16).chain([120]).collect::<Vec<u8>>());
        let t = Tensor { dtype: DType::BF16, shape: vec![2], data: Data::F32(Arc::new(vec![1.0, -2.0])) };
        assert_eq!(tensor_bytes(&t).unwrap(), [0x80, 0x3f, 0x00, 0xc0]);
        let t = Tensor { dtype: DType::I32, shape: vec![1], data: Data::F32(Arc::new(vec![1.0])) };
        assert!(tensor_bytes(&t).is_none());
    }
}
