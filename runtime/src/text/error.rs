//! Errors of the tokenizer and of everything that needs its control tokens.

/// Why a tokenizer could not be loaded or used. Every message is one line that names the file.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// A file is missing or unreadable.
    #[error("{file}: cannot read: {reason}; give a checkpoint folder or a tokenizer.json that exists and is readable")]
    Read {
        /// The path as given.
        file: String,
        /// What the system said.
        reason: String,
    },
    /// A file is not JSON of the expected shape.
    #[error("{file}: malformed: {reason}; expected a Hugging Face {expected}, copy the file from the checkpoint again")]
    Malformed {
        /// The path as given.
        file: String,
        /// What is wrong, with line and column where the JSON reader knows them.
        reason: String,
        /// The kind of file expected, such as `tokenizer.json`.
        expected: &'static str,
    },
    /// A file is well-formed JSON whose values contradict each other or ask for something that is not supported.
    #[error("{file}: {field}: found {found}, expected {expected}")]
    Invalid {
        /// The path as given.
        file: String,
        /// The JSON field, such as `model.vocab`.
        field: String,
        /// The value found.
        found: String,
        /// The values accepted, or how to correct the file.
        expected: String,
    },
    /// The harmony format was asked of a tokenizer that lacks one of its control tokens.
    #[error(
        "{file}: added_tokens: found no {token}, expected every harmony control token; use the tokenizer.json of a GPT-OSS checkpoint or prompt without the chat format"
    )]
    MissingControl {
        /// The path the tokenizer was loaded from.
        file: String,
        /// The missing token's name.
        token: &'static str,
    },
}

/// Shortens and flattens a piece of a foreign file for an error message: one line, at most 80 characters, quoted.
pub(super) fn quote(text: &str) -> String {
    let mut out = String::from("\"");
    for (i, c) in text.chars().enumerate() {
        if i == 80 {
            out.push('…');
            break;
        }
        out.extend(c.escape_debug());
    }
    out.push('"');
    out
}

/// Flattens a library's error text to one line of at most 240 characters.
pub(super) fn one_line(error: &dyn std::fmt::Display) -> String {
    let text = error.to_string();
    let flat: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    match flat.char_indices().nth(240) {
        Some((end, _)) => format!("{}…", &flat[..end]),
        None => flat,
    }
}
