//! Kernels' text as C++: what stands in for inline assembly and for the operands of hardware.

/// Statements of inline assembly and what stands for them.
const ASSEMBLY: &[(&str, &str)] = &[
    (r#"asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));"#, "y = emu_f16_to_f32(x.bits);"),
    (r#"asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));"#, "y.bits = emu_bf16(x);"),
    (r#"asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));"#, "y.bits = emu_f16(x);"),
    (r#"asm("max.NaN.f32 %0, %1, %2;" : "=f"(z) : "f"(x), "f"(y));"#, "z = emu_max_nan(x, y);"),
    (r#"asm("min.NaN.f32 %0, %1, %2;" : "=f"(z) : "f"(x), "f"(y));"#, "z = emu_min_nan(x, y);"),
    (r#"asm("mul.bf16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));"#, "d = emu_mul2(a, b);"),
    (
        r#"asm("{\n.reg .b16 l, u;\nmov.b32 {l, u}, %1;\nmov.b32 %0, {u, u};\n}" : "=r"(d) : "r"(x));"#,
        "d = x >> 16 | (x & 0xffff0000u);",
    ),
    (
        r#"asm("{\n.reg .b16 l, u;\nmov.b32 {l, u}, %1;\nmov.b32 %0, {l, l};\n}" : "=r"(d) : "r"(x));"#,
        "d = (x & 0xffffu) | x << 16;",
    ),
    (
        r#"asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(y), "f"(x));"#,
        "d = (u32)emu_bf16(x) | (u32)emu_bf16(y) << 16;",
    ),
    (
        r#"asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(y), "f"(x));"#,
        "d = (u32)emu_f16(x) | (u32)emu_f16(y) << 16;",
    ),
    // Operands of multiplies: an address is 32 bits here, so it is kept in units of 16 bytes, and the shape that goes with it is always the same.
    ("return (u64)((at & 0x3ffffu) >> 4) | (u64)1 << 16 | (u64)64 << 32 | (u64)1 << 62;", "return at >> 4;"),
    ("return at >> 4 | 1u << 16;", "return at >> 4;"),
    ("return (u64)0x40000040u << 32 | low;", "return low;"),
    (
        "return (u64)((at & 0x3ffffu) >> 4) | (u64)(next >> 4) << 16 | (u64)64 << 32 | (u64)1 << 62;",
        "return at >> 4 | (u64)(next >> 4) << 32;",
    ),
    (r#"asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");"#, "emu_multiply_commit();"),
    (r#"asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");"#, "emu_multiply_wait(PENDING);"),
    (r#"asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));"#, "rank = running->rank;"),
    (
        r#"asm volatile("barrier.cluster.arrive.aligned;\nbarrier.cluster.wait.aligned;" ::: "memory");"#,
        "{ emu_cluster_arrive(); emu_cluster_wait(); }",
    ),
    (r#"asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");"#, "emu_cluster_arrive();"),
    (r#"asm volatile("barrier.cluster.wait.aligned;" ::: "memory");"#, "emu_cluster_wait();"),
    (
        r#"asm volatile("mapa.shared::cluster.u32 %0, %0, %1;" : "+r"(at) : "r"(rank));"#,
        "at = emu_address_in(at, rank);",
    ),
    (
        r#"asm volatile("mapa.shared::cluster.u32 %0, %0, %1;" : "+r"(signal) : "r"(rank));"#,
        "signal = emu_address_in(signal, rank);",
    ),
    (
        r#"asm volatile("ld.shared::cluster.u32 %0, [%1];" : "=r"(x) : "r"(at) : "memory");"#,
        "x = *(const u32*)emu_at(at);",
    ),
    (r#"asm volatile("st.shared::cluster.f32 [%0], %1;" ::"r"(at), "f"(x) : "memory");"#, "*(f32*)emu_at(at) = x;"),
    (
        r#"asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.b32 [%0], %1, [%2];" ::"r"(at), "r"(__float_as_uint(x)), "r"(signal) : "memory");"#,
        "emu_send(at, &x, 4, signal);",
    ),
    (
        r#"asm volatile("{\n.reg .b32 remote;\nmapa.shared::cluster.u32 remote, %0, %1;\nmbarrier.arrive.shared::cluster.b64 _, [remote];\n}" ::"r"(at), "r"(rank) : "memory");"#,
        "emu_signal_arrive(emu_address_in(at, rank));",
    ),
    ("(u32)__cvta_generic_to_shared(p)", "(u32)(uintptr_t)p"),
    (r#"asm volatile("ld.global.cg.s32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");"#, "v = *p;"),
    (r#"asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");"#, "v = *p;"),
    (r#"asm volatile("red.release.gpu.global.add.u32 [%0], %1;" ::"l"(p), "r"(x) : "memory");"#, "*p += x;"),
    (
        r#"asm volatile("atom.acq_rel.gpu.global.inc.u32 %0, [%1], %2;" : "=r"(v) : "l"(p), "r"(limit) : "memory");"#,
        "v = *p; *p = v >= limit ? 0 : v + 1;",
    ),
    (
        r#"asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(at) : "memory");"#,
        "emu_signal_arrive(at);",
    ),
    (r#"asm("mov.u32 %0, %%nsmid;" : "=r"(n));"#, "n = 132;"),
    (r#"asm volatile("bar.sync %0, %1;" ::"r"(id), "n"(THREADS) : "memory");"#, "emu_barrier(id, THREADS);"),
    (r#"asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));"#, "y = exp2f(x);"),
    (r#"asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));"#, "y = 1.0f / x;"),
    (
        r#"asm volatile("st.global.v2.b32 [%0], {%1,%2};" ::"l"(to), "r"(pack2<T>(a, b)), "r"(pack2<T>(c, d)));"#,
        "((u32*)to)[0] = pack2<T>(a, b); ((u32*)to)[1] = pack2<T>(c, d);",
    ),
    (
        r#"asm volatile("st.global.v4.f32 [%0], {%1,%2,%3,%4};" ::"l"(to), "f"(a), "f"(b), "f"(c), "f"(d));"#,
        "to[0] = a; to[1] = b; to[2] = c; to[3] = d;",
    ),
    (r#"asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));"#, "y = log2f(x);"),
    (r#"asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));"#, "policy = 0;"),
    (r#"asm volatile("griddepcontrol.wait;" ::: "memory");"#, ""),
    (r#"asm volatile("griddepcontrol.launch_dependents;" ::: "memory");"#, ""),
    (
        r#"asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(at) : "memory");"#,
        "v = *(const uint4*)(uintptr_t)at;",
    ),
    (
        r#"asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(at) : "memory");"#,
        "v = *(const uint4*)(uintptr_t)at;",
    ),
    (r#"asm volatile("ld.shared.u32 %0, [%1];" : "=r"(v) : "r"(at) : "memory");"#, "v = *(const u32*)(uintptr_t)at;"),
    (r#"asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(y) : "r"(x));"#, "y = emu_transpose8(x);"),
];

/// The text as C++ for the shim. `together`: several blocks run at a time, so each has shared memory of its own.
pub(super) fn host_text(text: &str, shared: u32, together: bool) -> String {
    let mut text = text.to_string();
    for (asm, host) in ASSEMBLY {
        text = text.replace(asm, host);
    }
    // What only keeps the compiler from moving things.
    while let Some(at) = text.find("asm volatile(\"\" :") {
        let end = at + text[at..].find(");").unwrap() + 2;
        text.replace_range(at..end, ";");
    }
    let mut out = String::new();
    let mut lines = text.lines().peekable();
    // Where the last function or type ends, and if what follows is a template.
    let (mut end, mut template) = (0, false);
    while let Some(line) = lines.next() {
        let trimmed = line.trim();
        if line == "}" || line == "};" {
            (end, template) = (out.len() + line.len() + 1, false);
        }
        template |= together && line.starts_with("template");
        if template && trimmed.starts_with("__shared__") {
            // The compiler ignores sections of what templates own, so they use a place outside.
            let (ty, name, dims) = declaration(trimmed);
            let (space, pointer) = (format!("space_{}", out.len()), format!("{ty} (*){dims}"));
            out.push_str(&format!("static_assert(sizeof(*({pointer})0) <= sizeof {space}, \"\");"));
            out.push_str(&format!("{ty} (&{name}){dims} = *({pointer}){space};"));
            out.insert_str(end, &format!("__shared__ uint4 {space}[2048];\n"));
        } else if trimmed.contains("extern __shared__") {
            let array = format!("[{}]", shared.div_ceil(16));
            out.push_str(&line.replace("extern __shared__", "__shared__").replace("[]", &array));
        } else if trimmed.starts_with("asm(\"mma.sync") {
            // A statement of three lines.
            let bf = line.contains(".bf16.");
            lines.next();
            lines.next();
            out.push_str(&format!("emu_mma({bf}, d, a0, a1, a2, a3, b0, b1);"));
        } else if trimmed.starts_with("asm(\"ld.global.nc") || trimmed.starts_with("asm volatile(\"ld.global.L1") {
            lines.next();
            lines.next();
            out.push_str("v = *(const decltype(v)*)p;");
        } else if trimmed.starts_with("asm volatile(\"st.shared.u32 [%0], %1;") {
            // One operand is an address, the other a word.
            let (_, operands) = trimmed.split_once("::\"r\"(").unwrap();
            let (at, word) = operands.split_once("), \"r\"(").unwrap();
            out.push_str(&format!("*(u32*)(uintptr_t)({at}) = {};", word.split_once(") :").unwrap().0));
        } else if trimmed == "asm volatile(\"ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];\"" {
            // A statement of four lines: results, the address, what is touched.
            let [_, at, _] = [(); 3].map(|()| lines.next().unwrap_or_default());
            let at = at.trim().strip_prefix(": \"r\"(").and_then(|at| at.strip_suffix(')')).unwrap();
            out.push_str(&format!("x = *(const uint4*)(uintptr_t)({at});"));
        } else if trimmed.starts_with("asm volatile(\"ldmatrix") {
            // A statement of four lines.
            lines.nth(2);
            out.push_str("emu_load_matrices(d, at);");
        } else if trimmed.starts_with("asm volatile(\"{\\n.reg .pred p;\\nsetp.ne") {
            // A statement of four lines: the instruction, sums, operands.
            let [instruction, _, operands] = [(); 3].map(|()| lines.next().unwrap_or_default());
            out.push_str(&multiply(instruction, operands));
        } else if trimmed.starts_with("asm volatile(\"cp.async.bulk.prefetch") {
            // Nothing that is seen.
        } else if trimmed.starts_with("asm volatile(\"cp.async.bulk.tensor") {
            out.push_str(if trimmed.contains("multicast") {
                "emu_fetch_box_to(to, map, column, row, signal, blocks);"
            } else {
                "emu_fetch_box(to, map, column, row, signal);"
            });
        } else if trimmed.starts_with("asm volatile(\"cp.async.bulk") {
            out.push_str("emu_fetch(to, from, bytes, signal);");
        } else if trimmed.contains("mbarrier.init") {
            out.push_str("emu_signal_init(at, arrivals);");
        } else if trimmed.starts_with("asm volatile(\"{\\n.reg .pred p;\\nelect.sync") {
            out.push_str("one = own_lane() == 0;");
        } else if trimmed.contains("void signal_arrive(") {
            out.push_str("inline void signal_arrive(u32 at) { emu_signal_arrive(at); }");
        } else if trimmed.contains("mbarrier.arrive.expect_tx") {
            out.push_str("emu_signal_expect(at, bytes);");
        } else if trimmed.contains("mbarrier.try_wait") {
            out.push_str("emu_signal_wait(at, parity);");
        } else if trimmed.starts_with("asm volatile(\"cp.async.cg") {
            let [to, from] =
                if trimmed.contains("(global)") { ["shared", "global"] } else { ["(void*)(uintptr_t)to", "from"] };
            out.push_str(&format!("if (bytes) memcpy({to}, {from}, 16); else memset({to}, 0, 16);"));
        } else if trimmed.starts_with("const u32 to = (u32)__cvta") {
        } else if ["cp.async", "griddepcontrol", "prefetch", "fence", "wgmma.", "setmaxnreg"]
            .iter()
            .any(|i| trimmed.contains(&format!("asm volatile(\"{i}")))
        {
            out.push_str(&line[..line.find("asm").unwrap()]);
            if trimmed.ends_with('}') {
                out.push('}');
            }
        } else if !(trimmed.starts_with("u32 at = (u32)__cvta") || trimmed.starts_with("#pragma unroll")) {
            out.push_str(line);
        }
        out.push('\n');
    }
    assert!(!out.contains("asm"), "{}", out.lines().find(|l| l.contains("asm")).unwrap());
    out
}

/// Type, name and dimensions of a variable in shared memory.
fn declaration(line: &str) -> (&str, &str, &str) {
    let all = line.strip_prefix("__shared__ ").and_then(|l| l.split_once(';')).unwrap().0;
    let (named, dims) = all.split_at(all.find('[').unwrap_or(all.len()));
    let (ty, name) = named.rsplit_once(' ').unwrap();
    (ty, name, dims)
}

/// A warpgroup multiply, from the lines of its statement that name the instruction and its operands.
fn multiply(instruction: &str, operands: &str) -> String {
    let between = |from: &str, to: &str| instruction.split_once(from).and_then(|(_, s)| s.split_once(to)).unwrap().0;
    let (columns, bf) = (between(".m64n", "k16"), instruction.contains("k16.f32.bf16"));
    let across = instruction.contains(", 1, 1, 1;");
    match operands.contains("a[0]") {
        true => format!("emu_multiply_held<{columns}, {bf}, {across}>(d, a, b, keep);"),
        false => format!("emu_multiply<{columns}, {bf}>(d, a, b, keep);"),
    }
}
