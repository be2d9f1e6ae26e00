//! Machine instructions of a cubin, through NVIDIA's `nvdisasm`: used by tests and `explain`, never by a run.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Expect, ResourceError};
use crate::nvrtc;

/// Instructions that show a kernel was compiled to what its author meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Instr {
    /// Warpgroup matrix multiply (`wgmma`).
    Hgmma,
    /// Warp matrix multiply (`mma.sync`).
    Hmma,
    /// Bulk copy between global and shared memory without a tensor map (`cp.async.bulk`).
    Ublkcp,
    /// Bulk load through a tensor map.
    Utmaldg,
    /// Bulk store through a tensor map.
    Utmastg,
    /// Barrier object in shared memory (`mbarrier`).
    Syncs,
    /// Asynchronous copy of up to 16 bytes (`cp.async`).
    Ldgsts,
    /// Matrix load from shared memory (`ldmatrix`).
    Ldsm,
    /// Packed bf16 multiply that keeps subnormals (`mul.bf16x2`).
    MulBf16x2,
    /// Wait for the kernel before (`griddepcontrol.wait`).
    Acqbulk,
    /// Let the kernel after start (`griddepcontrol.launch_dependents`).
    Preexit,
    /// 16-byte global load.
    Ldg128,
}

impl Instr {
    /// Name in messages.
    pub fn mnemonic(self) -> &'static str {
        match self {
            Instr::Hgmma => "HGMMA",
            Instr::Hmma => "HMMA",
            Instr::Ublkcp => "UBLKCP",
            Instr::Utmaldg => "UTMALDG",
            Instr::Utmastg => "UTMASTG",
            Instr::Syncs => "SYNCS",
            Instr::Ldgsts => "LDGSTS",
            Instr::Ldsm => "LDSM",
            Instr::MulBf16x2 => "HMUL2.BF16",
            Instr::Acqbulk => "ACQBULK",
            Instr::Preexit => "PREEXIT",
            Instr::Ldg128 => "LDG.E.128",
        }
    }

    /// Whether an opcode with its modifiers, such as `HMUL2.BF16_V2`, is this instruction.
    fn matches(self, opcode: &str) -> bool {
        let mut parts = opcode.split('.');
        let name = parts.next().unwrap_or("");
        match self {
            Instr::MulBf16x2 => {
                let bf16 = opcode.contains(".BF16");
                // The assembler also spells it as a fused multiply-add with -0.
                bf16 && (name == "HMUL2" || name == "HFMA2") && !opcode.contains("FTZ")
            }
            Instr::Ldg128 => name == "LDG" && parts.any(|m| m == "128"),
            // UBLKCP.S.G, UBLKCP.T.S and so on.
            other => name == other.mnemonic(),
        }
    }
}

/// How often each opcode, with modifiers, occurs in one kernel.
pub type Histogram = BTreeMap<String, usize>;

/// The disassembler.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nvdisasm {
    path: PathBuf,
}

impl Nvdisasm {
    /// Looks beside the NVRTC named by `GOSSAMER_NVRTC`, in `PATH`, `CUDA_HOME`, `CUDA_PATH` and Python wheels.
    pub fn find() -> Option<Nvdisasm> {
        let found = nvrtc::WANTED.tools(&|n| std::env::var_os(n), "nvdisasm");
        found.into_iter().next().map(|path| Nvdisasm { path })
    }

    /// The disassembler for a test: `None`, after printing why, when there is none.
    ///
    /// # Panics
    /// With `GOSSAMER_REQUIRE_NVRTC=1` a missing disassembler fails the test instead.
    pub fn for_tests() -> Option<Nvdisasm> {
        let found = Nvdisasm::find();
        let missing = "nvdisasm not found; install the wheel nvidia-cuda-nvdisasm 13.2.86 or newer";
        if found.is_none() {
            assert!(!nvrtc::required_by_tests(), "GOSSAMER_REQUIRE_NVRTC=1, but {missing}");
            eprintln!("skipped: {missing}");
        }
        found
    }

    /// The program in use.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Text of the machine code of a whole image.
    pub fn disassemble(&self, image: &[u8]) -> Result<String, ResourceError> {
        let failed = |reason: String| ResourceError::Disassembler { reason: reason.trim().replace('\n', " ") };
        let mut file = tempfile::Builder::new().suffix(".cubin").tempfile().map_err(|e| failed(e.to_string()))?;
        file.write_all(image).map_err(|e| failed(e.to_string()))?;
        let output = Command::new(&self.path).arg("--print-code").arg(file.path()).output();
        let output = output.map_err(|e| failed(format!("{}: {e}", self.path.display())))?;
        if !output.status.success() {
            return Err(failed(String::from_utf8_lossy(&output.stderr).into_owned()));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Opcodes of each kernel of an image, by entry name.
    pub fn histograms(&self, image: &[u8]) -> Result<BTreeMap<String, Histogram>, ResourceError> {
        Ok(count_opcodes(&self.disassemble(image)?))
    }
}

/// Checks that a kernel's machine code holds every instruction of `expect.must_contain`; gives its opcodes.
pub fn check_instructions(image: &[u8], expect: &Expect, nvdisasm: &Nvdisasm) -> Result<Histogram, ResourceError> {
    let mut kernels = nvdisasm.histograms(image)?;
    let Some(histogram) = kernels.remove(expect.entry) else {
        let found = kernels.keys().cloned().collect::<Vec<_>>().join(", ");
        return Err(ResourceError::MissingEntry { entry: expect.entry.to_owned(), found });
    };
    match expect.must_contain.iter().find(|i| !histogram.keys().any(|o| i.matches(o))) {
        Some(missing) => {
            Err(ResourceError::MissingInstruction { entry: expect.entry.to_owned(), instruction: missing.mnemonic() })
        }
        None => Ok(histogram),
    }
}

/// Reads lines such as `/*0010*/  @!P0 LDG.E R26, desc[UR4][R4.64] ;` below headers `.section .text.<entry>,...`.
fn count_opcodes(text: &str) -> BTreeMap<String, Histogram> {
    let mut kernels: BTreeMap<String, Histogram> = BTreeMap::new();
    let mut entry = None;
    for line in text.lines().map(str::trim) {
        if let Some(section) = line.strip_prefix(".section") {
            let name = section.trim().split([',', '\t', ' ']).next().unwrap_or("").trim_matches('"');
            entry = name.strip_prefix(".text.").map(str::to_owned);
        } else if let (Some(entry), Some(code)) = (&entry, line.strip_prefix("/*").and_then(|l| l.split_once("*/"))) {
            let mut words = code.1.split_whitespace().skip_while(|w| w.starts_with('@') || *w == "{");
            if let Some(opcode) = words.next().filter(|o| o.starts_with(|c: char| c.is_ascii_uppercase())) {
                let opcode = opcode.trim_end_matches(';').to_owned();
                *kernels.entry(entry.clone()).or_default().entry(opcode).or_default() += 1;
            }
        }
    }
    kernels
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nvrtc::Source;

    #[test]
    fn opcodes_are_counted_per_kernel() {
        let text = "\t.target\tsm_90a\n\t.section\t.text.a,\"ax\",@progbits\n.text.a:\n\
                    /*0000*/                   LDC R1, c[0x0][0x28] ;\n\
                    /*0010*/               @!P0 LDG.E.128 R4, desc[UR4][R2.64] ;\n\
                    /*0020*/                   LDC R2, c[0x0][0x30] ;\n\
                    \t.section\t.text.b,\"ax\",@progbits\n        /*0000*/                   EXIT ;\n\
                    \t.section\t.nv.info,\"\"\n        /*0000*/ \t.byte\t0x04, 0x2f\n";
        let kernels = count_opcodes(text);
        assert_eq!(kernels["a"], Histogram::from([("LDC".to_owned(), 2), ("LDG.E.128".to_owned(), 1)]));
        assert_eq!(kernels["b"], Histogram::from([("EXIT".to_owned(), 1)]));
        assert_eq!(kernels.len(), 2);
    }

    #[test]
    fn instructions_are_told_apart() {
        assert!(Instr::Hmma.matches("HMMA.16816.F32.BF16") && !Instr::Hmma.matches("HGMMA.64x8x16.F32.BF16"));
        assert!(Instr::MulBf16x2.matches("HMUL2.BF16_V2") && Instr::MulBf16x2.matches("HFMA2.MMA.BF16_V2"));
        assert!(!Instr::MulBf16x2.matches("HMUL2") && !Instr::MulBf16x2.matches("HMUL2.BF16_V2.FTZ"));
        assert!(Instr::Ldg128.matches("LDG.E.128.CONSTANT") && !Instr::Ldg128.matches("LDG.E.64"));
        assert!(Instr::Ublkcp.matches("UBLKCP.S.G"));
    }

    #[test]
    fn expected_instructions_are_found_and_missed_ones_named() {
        let (Some(nvrtc), Some(nvdisasm)) = (nvrtc::for_tests(), Nvdisasm::for_tests()) else {
            return;
        };
        let text = r#"extern "C" __global__ void m(const uint4* p, float* o) {
            uint4 a = p[threadIdx.x]; float d[4] = {0, 0, 0, 0};
            asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%4,%5}, {%0,%1,%2,%3};"
                : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w));
            o[threadIdx.x] = d[0] + d[1] + d[2] + d[3];
        }"#;
        let cubin = nvrtc.compile(&Source::new("m", text)).unwrap().cubin;
        let expect = |must_contain: &'static [Instr]| Expect { must_contain, ..Expect::new("m", 32) };
        let histogram = check_instructions(&cubin, &expect(&[Instr::Hmma, Instr::Ldg128]), &nvdisasm).unwrap();
        assert!(histogram.values().sum::<usize>() > 5);
        let error = check_instructions(&cubin, &expect(&[Instr::Hmma, Instr::Hgmma]), &nvdisasm).unwrap_err();
        assert!(error.to_string().starts_with("kernel m holds no HGMMA instruction"), "{error}");
        let error = check_instructions(&cubin, &Expect::new("absent", 32), &nvdisasm).unwrap_err();
        assert!(error.to_string().contains("which holds m"), "{error}");
        assert!(matches!(nvdisasm.disassemble(b"no image"), Err(ResourceError::Disassembler { .. })));
    }
}
