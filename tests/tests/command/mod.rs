//! Running the command from outside.

use std::path::PathBuf;

use assert_cmd::Command;

/// The repository.
pub fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The command with these arguments.
pub fn gossamer(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gossamer-under-test"));
    command.args(args).env("GOSSAMER_DEMO", root().join("models/demo")).env_remove("GOSSAMER_DEVICE");
    command
}

/// What a command did.
pub struct Ran {
    pub code: i32,
    pub out: String,
    pub err: String,
}

/// Runs a command to its end.
pub fn run(args: &[&str]) -> Ran {
    let output = gossamer(args).output().unwrap();
    Ran {
        code: output.status.code().unwrap_or(-1),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// Runs a command that must fail with `code` and one `error:` line that holds all of `parts`.
pub fn fails(args: &[&str], code: i32, parts: &[&str]) {
    let ran = run(args);
    assert_eq!(ran.code, code, "{args:?}: {}", ran.err);
    assert!(!ran.err.contains("panicked"), "{args:?}: {}", ran.err);
    let line = ran.err.lines().find(|l| l.starts_with("error:")).unwrap_or_else(|| panic!("{args:?}: {}", ran.err));
    for part in parts {
        assert!(line.contains(part), "{args:?}: `{part}` is not in: {line}");
    }
}
