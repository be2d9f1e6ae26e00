//! Where a library and the programs of a toolkit may be: an ordered list of candidates, from environment variables and well-known folders.

use std::path::{Path, PathBuf};

use super::{Candidate, Env, Missing, Wanted};

/// Candidates in the order they are tried; only the override if there is one.
pub(super) fn candidates(wanted: &Wanted, env: Env) -> Result<Vec<Candidate>, Missing> {
    if let Some(value) = set(env, wanted.variable) {
        return overridden(wanted, value).map(|file| vec![Candidate::File(file)]);
    }
    let mut list: Vec<_> = wanted.names.iter().map(|n| Candidate::Name(n)).collect();
    let folders = beside(wanted, env)
        .into_iter()
        .chain(toolkits(env).into_iter().flat_map(|t| library_folders(&t)))
        .chain(wheels(wanted, env).into_iter().map(|w| w.join("lib")));
    list.extend(folders.filter_map(|f| library_in(wanted, &f)).map(Candidate::File));
    Ok(list)
}

/// Paths a program of the toolkit (`nvdisasm`) may have, best first: beside the library of the override, then `PATH`, then toolkits and wheels.
pub(super) fn tool_candidates(wanted: &Wanted, env: Env, tool: &str) -> Vec<PathBuf> {
    let mut folders = Vec::new();
    if let Some(value) = set(env, wanted.variable) {
        // The override is <root>, <root>/lib or <root>/lib/libnvrtc.so.N.
        folders.extend(value.ancestors().take(3).map(|a| a.join("bin")));
        folders.push(value.join("nvidia/cu13/bin"));
    }
    folders.extend(env("PATH").iter().flat_map(std::env::split_paths));
    folders.extend(toolkits(env).into_iter().chain(wheels(wanted, env)).map(|t| t.join("bin")));
    folders.into_iter().map(|f| f.join(tool)).filter(|p| p.is_file()).collect()
}

fn overridden(wanted: &Wanted, value: PathBuf) -> Result<PathBuf, Missing> {
    if value.is_file() {
        return Ok(value);
    }
    let found = if value.is_dir() {
        if let Some(file) = library_folders(&value).iter().find_map(|f| library_in(wanted, f)) {
            return Ok(file);
        }
        format!("there is no {} in that folder", wanted.stem)
    } else {
        "that path does not exist".to_owned()
    };
    Err(Missing::Override { path: value, found })
}

/// Folders of other libraries of the toolkit that the user pointed at.
fn beside(wanted: &Wanted, env: Env) -> Vec<PathBuf> {
    let values = wanted.beside.iter().filter_map(|n| set(env, n));
    let folders = values.map(|v| if v.is_file() { v.parent().map(Path::to_path_buf).unwrap_or_default() } else { v });
    folders.flat_map(|f| library_folders(&f)).collect()
}

/// Folders that may hold the libraries of a toolkit unpacked at `root`, itself included.
fn library_folders(root: &Path) -> [PathBuf; 5] {
    ["", "lib64", "lib", "targets/x86_64-linux/lib", "nvidia/cu13/lib"].map(|f| root.join(f))
}

fn toolkits(env: Env) -> Vec<PathBuf> {
    let named = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(|n| set(env, n));
    named.chain([PathBuf::from("/usr/local/cuda")]).collect()
}

/// Roots of NVIDIA wheels: `<site-packages>/nvidia/cu13` and older ones with a folder for each library.
fn wheels(wanted: &Wanted, env: Env) -> Vec<PathBuf> {
    let mut prefixes: Vec<PathBuf> = ["VIRTUAL_ENV", "CONDA_PREFIX"].into_iter().filter_map(|n| set(env, n)).collect();
    prefixes.extend(set(env, "HOME").map(|h| h.join(".local")));
    prefixes.extend(["/usr/local", "/usr"].map(PathBuf::from));
    let mut roots = Vec::new();
    for prefix in prefixes {
        let mut pythons = names_in(&prefix.join("lib"));
        pythons.retain(|n| n.starts_with("python3"));
        // Newest first: python3.12 before python3.9.
        pythons.sort_by_key(|n| std::cmp::Reverse(numbers(n)));
        for python in pythons {
            for packages in ["site-packages", "dist-packages"] {
                let nvidia = prefix.join("lib").join(&python).join(packages).join("nvidia");
                roots.extend(wanted.wheels.iter().map(|w| nvidia.join(w)).filter(|w| w.is_dir()));
            }
        }
    }
    roots
}

/// The copy of the library with the highest version in one folder.
fn library_in(wanted: &Wanted, folder: &Path) -> Option<PathBuf> {
    let mut names = names_in(folder);
    // This leaves out libnvrtc-builtins, libnvrtc.alt and the static archives.
    names.retain(|n| n.strip_prefix(wanted.stem).is_some_and(|rest| rest.is_empty() || rest.starts_with('.')));
    names.into_iter().max_by_key(|n| numbers(n)).map(|n| folder.join(n)).filter(|p| p.is_file())
}

fn names_in(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries.filter_map(|e| e.file_name().into_string().ok()).collect();
    names.sort();
    names
}

/// The decimal numbers in a name, in order: `libnvrtc.so.13.0` gives `[13, 0]`.
pub(crate) fn numbers(name: &str) -> Vec<u64> {
    name.split(|c: char| !c.is_ascii_digit()).filter_map(|d| d.parse().ok()).collect()
}

/// A variable that is set to something; an empty value counts as unset.
fn set(env: Env, name: &str) -> Option<PathBuf> {
    env(name).filter(|v| !v.is_empty()).map(PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nvrtc::WANTED;
    use std::collections::BTreeMap;
    use std::fs;

    fn touch(path: &Path) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "").unwrap();
    }

    fn files(vars: &[(&str, &Path)]) -> Vec<PathBuf> {
        let vars: BTreeMap<_, _> = vars.iter().map(|(n, p)| (n.to_string(), p.as_os_str().to_owned())).collect();
        let list = candidates(&WANTED, &|n| vars.get(n).cloned()).unwrap();
        list.into_iter().filter_map(|c| if let Candidate::File(p) = c { Some(p) } else { None }).collect()
    }

    #[test]
    fn the_override_wins_and_takes_every_form() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("nvidia/cu13/lib/libnvrtc.so.13");
        touch(&file);
        for value in [root.path(), &root.path().join("nvidia/cu13"), &root.path().join("nvidia/cu13/lib"), &file] {
            assert_eq!(files(&[("GOSSAMER_NVRTC", value), ("CUDA_HOME", root.path())]), std::slice::from_ref(&file));
        }
    }

    #[test]
    fn toolkits_come_before_wheels_and_newer_pythons_first() {
        let root = tempfile::tempdir().unwrap();
        let cuda = root.path().join("cuda/lib64/libnvrtc.so.12.8.93");
        let old = root.path().join("venv/lib/python3.9/site-packages/nvidia/cuda_nvrtc/lib/libnvrtc.so.12");
        let new = root.path().join("venv/lib/python3.12/site-packages/nvidia/cu13/lib/libnvrtc.so.13");
        for file in [&cuda, &old, &new] {
            touch(file);
        }
        let found = files(&[("CUDA_PATH", &root.path().join("cuda")), ("VIRTUAL_ENV", &root.path().join("venv"))]);
        let ours: Vec<_> = found.into_iter().filter(|p| p.starts_with(root.path())).collect();
        assert_eq!(ours, [cuda, new, old]);
    }

    #[test]
    fn the_newest_library_of_a_folder_is_taken_and_builtins_are_not() {
        let root = tempfile::tempdir().unwrap();
        for name in [
            "libnvrtc.so.9.2",
            "libnvrtc.so.13.0.88",
            "libnvrtc.alt.so.14",
            "libnvrtc-builtins.so.15.0",
            "libnvrtc_static.a",
        ] {
            touch(&root.path().join(name));
        }
        assert_eq!(library_in(&WANTED, root.path()), Some(root.path().join("libnvrtc.so.13.0.88")));
        assert_eq!(library_in(&WANTED, &root.path().join("absent")), None);
    }

    #[test]
    fn a_library_is_found_beside_another() {
        let root = tempfile::tempdir().unwrap();
        let library = root.path().join("lib/libcublasLt.so.13");
        touch(&library);
        let nvrtc = root.path().join("lib/libnvrtc.so.13");
        touch(&nvrtc);
        let wanted = Wanted {
            variable: "CUBLASLT",
            stem: "libcublasLt.so",
            names: &[],
            wheels: &[],
            beside: &["GOSSAMER_NVRTC"],
        };
        for value in [root.path().to_path_buf(), root.path().join("lib"), nvrtc] {
            let env = |n: &str| (n == "GOSSAMER_NVRTC").then(|| value.clone().into());
            let found = candidates(&wanted, &env).unwrap();
            assert_eq!(found.first(), Some(&Candidate::File(library.clone())));
        }
    }

    #[test]
    fn tools_are_found_beside_the_library() {
        let root = tempfile::tempdir().unwrap();
        let tool = root.path().join("bin/nvdisasm");
        touch(&tool);
        touch(&root.path().join("lib/libnvrtc.so.13"));
        for value in ["", "lib", "lib/libnvrtc.so.13"] {
            let value = root.path().join(value);
            let found =
                tool_candidates(&WANTED, &|n| (n == "GOSSAMER_NVRTC").then(|| value.clone().into()), "nvdisasm");
            assert_eq!(found.first(), Some(&tool));
        }
    }
}
