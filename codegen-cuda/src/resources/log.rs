//! The `-v` lines of ptxas: per function spills, stack and shared memory, and the `C75..` messages.

use std::collections::BTreeMap;

/// What the log says about one function, kernel or not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct LogFunction {
    pub(super) spill_store_bytes: u32,
    pub(super) spill_load_bytes: u32,
    pub(super) stack_bytes: u32,
    pub(super) shared_bytes: u32,
}

/// A parsed log. Lines that are not understood are left out: the log is for people, and its wording may grow.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Log {
    pub(super) functions: BTreeMap<String, LogFunction>,
    pub(super) warnings: Vec<String>,
}

pub(super) fn parse(text: &str) -> Log {
    let mut log = Log::default();
    let mut function = String::new();
    for line in text.lines() {
        let body =
            line.split_once(':').filter(|(tag, _)| tag.starts_with("ptxas")).map_or(line, |(_, body)| body).trim();
        if line.contains("(C75") {
            log.warnings.push(body.to_owned());
        } else if let Some(name) = body.strip_prefix("Function properties for ") {
            function = name.trim().to_owned();
            log.functions.entry(function.clone()).or_default();
        } else if let Some(name) = body.strip_prefix("Compiling entry function '").and_then(|n| n.split('\'').next()) {
            function = name.to_owned();
            log.functions.entry(function.clone()).or_default();
        } else if let Some(entry) = log.functions.get_mut(&function) {
            let line = body.strip_prefix("ptxas").unwrap_or(body).trim_start_matches([' ', '.']);
            for (count, what) in line.split(',').filter_map(quantity) {
                match what {
                    "bytes stack frame" => entry.stack_bytes = entry.stack_bytes.max(count),
                    "bytes cumulative stack size" => entry.stack_bytes = entry.stack_bytes.max(count),
                    "bytes spill stores" => entry.spill_store_bytes = count,
                    "bytes spill loads" => entry.spill_load_bytes = count,
                    "bytes smem" => entry.shared_bytes = count,
                    _ => {}
                }
            }
        }
    }
    log
}

/// `12 bytes smem` as the number and the rest.
fn quantity(text: &str) -> Option<(u32, &str)> {
    let (count, what) = text.trim().split_once(' ')?;
    Some((count.parse().ok()?, what.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_13_0_writes() {
        let log = parse(
            "ptxas info    : (C7519) warpgroup.arrive is injected in around line 47 by compiler in function 'w'\n\
             ptxas info    : 0 bytes gmem\n\
             ptxas info    : Compiling entry function 'spills' for 'sm_90a'\n\
             ptxas info    : Function properties for spills\n\
             ptxas         .     6664 bytes stack frame, 6548 bytes spill stores, 16768 bytes spill loads\n\
             ptxas info    : Used 32 registers, used 1 barriers, 6664 bytes cumulative stack size\n\
             ptxas info    : Compile time = 821.161 ms\n\
             ptxas info    : Function properties for _Z6helperfi\n\
             ptxas         .     0 bytes stack frame, 4 bytes spill stores, 8 bytes spill loads\n\
             ptxas info    : Compiling entry function 'plain' for 'sm_90a'\n\
             ptxas info    : Function properties for plain\n\
             ptxas         .     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\n\
             ptxas info    : Used 14 registers, used 1 barriers, 1024 bytes smem, 380 bytes cmem[0]\n",
        );
        let of = |stores, loads, stack, shared| LogFunction {
            spill_store_bytes: stores,
            spill_load_bytes: loads,
            stack_bytes: stack,
            shared_bytes: shared,
        };
        let functions: Vec<_> = log.functions.iter().map(|(n, f)| (n.as_str(), f.clone())).collect();
        let expected =
            [("_Z6helperfi", of(4, 8, 0, 0)), ("plain", of(0, 0, 0, 1024)), ("spills", of(6548, 16768, 6664, 0))];
        assert_eq!(functions, expected);
        assert_eq!(
            log.warnings,
            ["(C7519) warpgroup.arrive is injected in around line 47 by compiler in function 'w'"]
        );
    }

    #[test]
    fn reads_the_indented_form_of_12() {
        let log = parse(
            "ptxas info    : Function properties for k\n    16 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\n",
        );
        assert_eq!(log.functions["k"].stack_bytes, 16);
    }

    #[test]
    fn nonsense_is_ignored() {
        assert_eq!(parse("hello\n: ,,, \n99999999999 bytes smem, x\nptxas . 5 bytes stack frame"), Log::default());
    }
}
