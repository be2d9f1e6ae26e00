use super::word::{pack_word, unpack_word};
use super::*;
use crate::layout::PairSource;
use crate::nvrtc::{self, Source};
use crate::resources::{Expect, Instr, check, sass};
use half::bf16;
use proptest::prelude::*;

const ORDERS: [RowOrder; 4] = [
    RowOrder::Identity,
    RowOrder::PairedRows(PairSource::Interleaved),
    RowOrder::PairedRows(PairSource::Halves),
    RowOrder::RopePairs { head_dim: 32 },
];

/// Bytes from a small generator, so that shapes and not data are what proptest shrinks.
fn bytes(len: usize, seed: u64, limit: u8) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    (0..len).map(|_| ((next() >> 32) % (u64::from(limit) + 1)) as u8).collect()
}

struct Tensor {
    layout: Mxfp4Layout,
    blocks: Vec<u8>,
    scales: Vec<u8>,
    packed: Vec<u8>,
}

fn tensor(experts: usize, n: usize, k: usize, order: RowOrder, mode: ScaleMode, seed: u64) -> Tensor {
    let layout = Mxfp4Layout::new(experts, n, k, order, mode).unwrap();
    let limit = if mode == ScaleMode::Fast { 128 } else { 254 };
    let blocks = bytes(experts * layout.block_bytes(), seed, 255);
    let scales = bytes(experts * layout.scale_bytes(), seed + 1, limit);
    // Packing must write every byte, padding too.
    let mut packed = vec![0xff; layout.bytes()];
    layout.pack(&blocks, &scales, &mut packed).unwrap();
    Tensor { layout, blocks, scales, packed }
}

impl Tensor {
    /// Code and scale straight from the checkpoint bytes.
    fn expected(&self, e: usize, row: usize, k: usize) -> (u8, u8) {
        let index = (e * self.layout.n() + row) * self.layout.k() + k;
        let byte = self.blocks[index / 2];
        (if k.is_multiple_of(2) { byte & 15 } else { byte >> 4 }, self.scales[index / 32])
    }

    fn round_trips(&self) -> bool {
        let mut blocks = vec![0xaa; self.blocks.len()];
        let mut scales = vec![0xaa; self.scales.len()];
        let per_expert = blocks
            .chunks_exact_mut(self.layout.block_bytes())
            .zip(scales.chunks_exact_mut(self.layout.scale_bytes()))
            .zip(self.packed.chunks_exact(self.layout.expert_bytes()));
        for ((blocks, scales), packed) in per_expert {
            self.layout.unpack_expert(packed, blocks, scales).unwrap();
        }
        blocks == self.blocks && scales == self.scales
    }
}

fn order_for(n: usize, pick: usize) -> RowOrder {
    let order = ORDERS[pick];
    if order.check(n).is_ok() { order } else { RowOrder::Identity }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn unpack_undoes_pack(e in 1usize..4, n in 1usize..200, blocks in 1usize..8, pick in 0usize..4, fast: bool, seed: u64) {
        let mode = if fast { ScaleMode::Fast } else { ScaleMode::General };
        let t = tensor(e, n, 32 * blocks, order_for(n, pick), mode, seed % 1000);
        prop_assert!(t.round_trips());
        for i in 0..50usize {
            let (e, row, k) = (i % e, i * 7919 % n, i * 104_729 % t.layout.k());
            prop_assert_eq!(t.layout.element(&t.packed, e, row, k), Some(t.expected(e, row, k)));
        }
    }
}

#[test]
fn shapes_of_the_model_and_odd_ones_round_trip() {
    for (n, k) in [(5760, 2880), (2880, 2880), (96, 96), (128, 192), (1, 32), (65, 32), (64, 64), (130, 160)] {
        for order in ORDERS.into_iter().filter(|o| o.check(n).is_ok()) {
            let t = tensor(1, n, k, order, ScaleMode::Fast, n as u64);
            assert!(t.round_trips(), "{order:?} {n} x {k}");
        }
    }
}

#[test]
fn sizes_equal_the_checkpoint_where_nothing_is_padded() {
    let layout =
        Mxfp4Layout::new(32, 5760, 2880, RowOrder::PairedRows(PairSource::Interleaved), ScaleMode::Fast).unwrap();
    assert_eq!((layout.row_tiles(), layout.k_tiles()), (360, 45));
    assert_eq!(layout.strip_bytes(), 45 * 544);
    assert_eq!(layout.expert_bytes(), 8_812_800);
    assert_eq!(layout.bytes(), 32 * (layout.block_bytes() + layout.scale_bytes()));
    assert_eq!(layout.record_offset(1, 2, 3), 8_812_800 + 2 * layout.strip_bytes() + 3 * 544);
    let padded = Mxfp4Layout::new(1, 65, 96, RowOrder::Identity, ScaleMode::Fast).unwrap();
    assert_eq!((padded.row_tiles(), padded.k_tiles(), padded.bytes()), (5, 2, 10 * 544));
}

#[test]
fn positions_follow_the_fragment_formula() {
    let mut seen = vec![false; 32 * 4 * 8];
    for thread in 0..32 {
        let (g, c) = (thread / 4, thread % 4);
        for word in 0..4 {
            for pair in 0..4 {
                for half in 0..2 {
                    let row = g + 8 * (pair & 1);
                    let k = 16 * word + 8 * (pair >> 1) + 2 * c + half;
                    let scale = 4 * g + 2 * (pair & 1) + k / 32;
                    assert_eq!(position(row, k), Position { thread, word, pair, half, scale });
                    seen[((thread * 4 + word) * 4 + pair) * 2 + half] = true;
                }
            }
        }
    }
    assert!(seen.iter().all(|&s| s));
}

#[test]
fn packed_bytes_lie_where_the_formula_says() {
    // One non-zero code, then one scale: exactly one word, one byte of the record may differ from zero.
    let layout = Mxfp4Layout::new(1, 16, 64, RowOrder::Identity, ScaleMode::Fast).unwrap();
    for (row, k) in [(0, 0), (5, 3), (9, 40), (15, 63), (12, 17), (8, 32)] {
        let mut blocks = vec![0; layout.block_bytes()];
        blocks[row * 32 + k / 2] = 0x9 << (4 * (k % 2));
        let mut scales = vec![0; layout.scale_bytes()];
        scales[row * 2 + k / 32] = 2;
        let mut packed = vec![0; layout.bytes()];
        layout.pack(&blocks, &scales, &mut packed).unwrap();
        let at = position(row, k);
        for (i, word) in packed[..CODE_BYTES].chunks_exact(4).enumerate() {
            let mut pairs = [0; 4];
            pairs[at.pair] = 9 << (4 * at.half);
            let expected = if i == 4 * at.thread + at.word { pack_word(pairs) } else { 0 };
            assert_eq!(u32::from_le_bytes(word.try_into().unwrap()), expected, "({row}, {k}) word {i}");
        }
        for (i, &byte) in packed[CODE_BYTES..].iter().enumerate() {
            assert_eq!(byte, 126 + 2 * u8::from(i == at.scale), "({row}, {k}) scale {i}");
        }
    }
}

#[test]
fn padding_is_zero() {
    for mode in [ScaleMode::Fast, ScaleMode::General] {
        let t = tensor(1, 3, 32, RowOrder::Identity, mode, 5);
        for row in 0..16 {
            for k in 0..64 {
                let at = position(row, k);
                let word = &t.packed[16 * at.thread + 4 * at.word..][..4];
                let byte = unpack_word(u32::from_le_bytes(word.try_into().unwrap()))[at.pair];
                if row >= 3 || k >= 32 {
                    assert_eq!(byte >> (4 * at.half) & 15, 0);
                    assert_eq!(t.packed[CODE_BYTES + at.scale], 0);
                }
            }
        }
    }
}

#[test]
fn words_hold_any_codes() {
    for slot in 0..4 {
        for byte in 0..=255 {
            for others in [0, 0xff, 0x5a] {
                let mut pairs = [others; 4];
                pairs[slot] = byte;
                assert_eq!(unpack_word(pack_word(pairs)), pairs);
            }
        }
    }
}

/// What `gs_mxfp4_decode8` computes for one pair, with the multiply done in f64 and rounded to bf16.
fn device_decode(word: u32, stored: u8, mode: ScaleMode) -> [u32; 4] {
    const MASK: u32 = 0x81c0_81c0;
    let last = word << 6 & 0x80c0_80c0 | word >> 2 & 0x0100_0100;
    let factor = match (mode, stored) {
        (ScaleMode::General, 0) => 0x0040_0040,
        _ => u32::from(stored) * 0x0080_0080,
    };
    let mul = |a: u32, b: u32| {
        let half = |x: u32, i: u32| bf16::from_bits((x >> (16 * i)) as u16).to_f64();
        let product = |i| u32::from(bf16::from_f64(half(a, i) * half(b, i)).to_bits()) << (16 * i);
        product(0) | product(1)
    };
    [word & MASK, word << 4 & MASK, word.rotate_left(10) & MASK, last].map(|pair| match mode {
        ScaleMode::Fast => mul(pair, factor),
        ScaleMode::General => mul(mul(pair, 0x7e80_7e80), factor),
    })
}

#[test]
fn every_code_and_scale_decodes_exactly_in_both_modes() {
    for (mode, limit) in [(ScaleMode::Fast, 128u8), (ScaleMode::General, 254)] {
        let layout = Mxfp4Layout::new(1, 64, 64, RowOrder::Identity, mode).unwrap();
        for scale in 0..=limit {
            let stored = layout.stored_scale(scale);
            assert_eq!(layout.checkpoint_scale(stored), scale);
            for code in 0..16u8 {
                let exact = bf16::from_f32(decode(code, scale));
                if scale <= 252 {
                    assert_eq!(exact.to_f32(), decode(code, scale), "a bf16 holds code {code} at scale {scale}");
                }
                for slot in 0..4 {
                    for half in 0..2 {
                        let mut pairs = [0u8; 4];
                        pairs[slot] = code << (4 * half);
                        let got = device_decode(pack_word(pairs), stored, mode);
                        for (i, got) in got.into_iter().enumerate() {
                            let expected = if i == slot { u32::from(exact.to_bits()) << (16 * half) } else { 0 };
                            assert_eq!(got, expected, "{mode:?} code {code} scale {scale} slot {slot} half {half}");
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn host_decode_knows_the_edges() {
    // The test block of the format's description.
    let values: Vec<f32> = (0..16).map(|c| decode(c, 125)).collect();
    assert_eq!(values[..8], [0.0, 0.125, 0.25, 0.375, 0.5, 0.75, 1.0, 1.5]);
    assert!(values[8] == 0.0 && values[8].is_sign_negative());
    assert_eq!(decode(1, 0), 2f32.powi(-64) * 2f32.powi(-64));
    assert_eq!(decode(7, 254), f32::INFINITY);
    assert_eq!(decode(3, 254), 1.5 * 2f32.powi(127));
    assert!(decode(1, 255).is_nan());
}

#[test]
fn scales_choose_the_mode_and_bad_ones_are_named() {
    assert_eq!(ScaleMode::for_scales(&[0, 128, 5]), ScaleMode::Fast);
    assert_eq!(ScaleMode::for_scales(&[0, 129, 5]), ScaleMode::General);
    assert_eq!(ScaleMode::for_scales(&[]), ScaleMode::Fast);
    let pack = |mode, bad: u8| {
        let layout = Mxfp4Layout::new(2, 3, 64, RowOrder::Identity, mode).unwrap();
        let mut scales = vec![1; 12];
        scales[6 + 5] = bad;
        let mut out = vec![7; layout.bytes()];
        let error = layout.pack(&[0; 192], &scales, &mut out).map_err(|e| e.to_string());
        error.unwrap_err()
    };
    let text = pack(ScaleMode::Fast, 129);
    assert!(text.starts_with("MXFP4 scale of expert 1, row 2, block 1 is 129, expected at most 128"), "{text}");
    let text = pack(ScaleMode::General, 255);
    assert!(text.contains("is 255, expected at most 254") && text.lines().count() == 1, "{text}");
}

#[test]
fn impossible_shapes_and_lengths_are_refused() {
    let new =
        |e, n, k, order| Mxfp4Layout::new(e, n, k, order, ScaleMode::Fast).map_err(|e| e.to_string()).unwrap_err();
    assert!(new(0, 1, 32, RowOrder::Identity).contains("experts is 0"));
    assert!(new(1, 0, 32, RowOrder::Identity).contains("n is 0"));
    assert!(new(1, 1, 48, RowOrder::Identity).contains("k is 48, expected a multiple of 32"));
    assert!(new(1, 7, 32, RowOrder::PairedRows(PairSource::Halves)).contains("n is 7"));
    assert!(new(usize::MAX, usize::MAX, usize::MAX - 31, RowOrder::Identity).contains("fits memory"));
    let layout = Mxfp4Layout::new(1, 64, 64, RowOrder::Identity, ScaleMode::Fast).unwrap();
    let mut out = vec![0; layout.bytes()];
    let text = layout.pack(&[0; 5], &[0; 128], &mut out).unwrap_err().to_string();
    assert_eq!(text, "blocks has 5 bytes, expected 2048; pass exactly the bytes of the tensor");
    assert!(layout.pack(&[0; 2048], &[0; 128], &mut out[1..]).is_err());
    assert!(layout.unpack_expert(&out[1..], &mut [0; 2048], &mut [0; 128]).is_err());
    assert_eq!(layout.element(&out, 1, 0, 0), None);
    assert_eq!(layout.element(&out[..100], 0, 63, 63), None);
}

#[test]
fn device_functions_compile_small_and_keep_subnormals() {
    let Some(nvrtc) = nvrtc::for_tests() else {
        return;
    };
    let kernels = r#"
        template <bool FAST> __device__ __forceinline__ void mma(const void* w, unsigned k_tiles, const uint4* x, float* y) {
            unsigned t = threadIdx.x & 31, w_tile = 4 * blockIdx.x + (threadIdx.x >> 5); float d[4] = {0, 0, 0, 0};
            #pragma unroll 4
            for (unsigned i = 0; i < k_tiles; i++) {
                const unsigned char* r = gs_mxfp4_record(w, 4 * gridDim.x, k_tiles, blockIdx.y, w_tile, i);
                unsigned a[4][4];
                gs_mxfp4_decode_tile<FAST>(gs_mxfp4_load_codes(r, t), gs_mxfp4_load_scales(r, t), a);
                uint4 b[2] = {x[i * 64 + 2 * t], x[i * 64 + 2 * t + 1]};
                const unsigned* bw = (const unsigned*)b;
                #pragma unroll
                for (int s = 0; s < 4; s++)
                    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                        : "r"(a[s][0]), "r"(a[s][1]), "r"(a[s][2]), "r"(a[s][3]), "r"(bw[2 * s]), "r"(bw[2 * s + 1]));
            }
            for (int i = 0; i < 4; i++) y[(blockIdx.x * 128 + threadIdx.x) * 4 + i] = d[i];
        }
        extern "C" __global__ void fast(const void* w, unsigned k, const uint4* x, float* y) { mma<true>(w, k, x, y); }
        extern "C" __global__ void general(const void* w, unsigned k, const uint4* x, float* y) { mma<false>(w, k, x, y); }
        template <bool FAST> __device__ __forceinline__ void all(const unsigned char* w, float* y) {
            unsigned row = threadIdx.x >> 4, k = (threadIdx.x & 15) * 4;
            for (unsigned i = 0; i < 4; i++) y[row * 64 + k + i] = gs_mxfp4_value<FAST>(w, row, k + i);
        }
        extern "C" __global__ void values_fast(const unsigned char* w, float* y) { all<true>(w, y); }
        extern "C" __global__ void values_general(const unsigned char* w, float* y) { all<false>(w, y); }"#;
    let compiled = nvrtc.compile(&Source::new("mxfp4_decode", format!("{DEVICE_DECODE}\n{kernels}"))).unwrap();
    for (entry, threads) in [("fast", 128), ("general", 128), ("values_fast", 256), ("values_general", 256)] {
        let report = check(&compiled, &Expect::new(entry, threads)).unwrap();
        assert!(report.kernel.registers <= 128, "{report}");
    }
    let Some(nvdisasm) = sass::Nvdisasm::for_tests() else {
        return;
    };
    for entry in ["fast", "general"] {
        let must_contain = &[Instr::Hmma, Instr::MulBf16x2, Instr::Ldg128];
        let histogram =
            sass::check_instructions(&compiled.cubin, &Expect { must_contain, ..Expect::new(entry, 128) }, &nvdisasm);
        let flushing = |o: &&String| o.contains("BF16") && o.contains("FTZ");
        assert_eq!(histogram.unwrap().keys().find(flushing), None);
    }
}
