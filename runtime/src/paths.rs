//! Folders of the user that the program writes to.

use std::ffi::OsString;
use std::path::PathBuf;

use directories::ProjectDirs;

/// Names another folder for compiled kernels.
pub const CACHE_VARIABLE: &str = "GOSSAMER_CACHE_DIR";

/// The folder for files that can be made again: `GOSSAMER_CACHE_DIR`, else `gossamer` in the user's cache folder. `None` for a user without a home; then
/// nothing is cached.
pub fn cache_dir() -> Option<PathBuf> {
    with(&|name| std::env::var_os(name)).map(|(folder, _)| folder)
}

/// The folder of compiled kernels: `GOSSAMER_CACHE_DIR` itself, else `cubin` in [`cache_dir`].
pub fn kernel_cache() -> Option<PathBuf> {
    with(&|name| std::env::var_os(name)).map(|(folder, own)| if own { folder } else { folder.join("cubin") })
}

/// The cache folder, and whether the user named it.
fn with(env: &dyn Fn(&str) -> Option<OsString>) -> Option<(PathBuf, bool)> {
    match env(CACHE_VARIABLE).filter(|v| !v.is_empty()) {
        Some(folder) => Some((folder.into(), true)),
        None => ProjectDirs::from("", "", "gossamer").map(|dirs| (dirs.cache_dir().to_owned(), false)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_variable_comes_first_and_an_empty_one_counts_as_unset() {
        let (folder, own) = with(&|_| Some("/somewhere".into())).unwrap();
        assert_eq!((folder, own), (PathBuf::from("/somewhere"), true));
        if let Some((folder, own)) = with(&|_| Some("".into())) {
            assert!(!own && folder.ends_with("gossamer"), "{}", folder.display());
        }
    }
}
