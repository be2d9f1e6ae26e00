//! Lists of numbers on the command line.

use crate::cli::output::Failure;

/// Sequences at a time, at most.
pub const MAX_BATCH: usize = 4096;
/// Tokens of a sequence, at most; the model may allow fewer.
pub const MAX_TOKENS: usize = 1 << 24;

/// `1,8,64`: numbers from 1 to `most`, each once, in the order given.
pub fn list(option: &str, text: &str, most: usize) -> Result<Vec<usize>, Failure> {
    let expected = format!("expected numbers from 1 to {most} separated by commas, for example 1,8,64");
    let mut out = Vec::new();
    for entry in text.split(',').map(str::trim) {
        let wrong = |what: &str| Failure::Usage(format!("{option}: `{entry}` in `{text}` {what}; {expected}"));
        let number = match entry.parse::<usize>() {
            _ if entry.starts_with('+') => return Err(wrong("is no number")),
            Ok(n) if (1..=most).contains(&n) => n,
            Ok(_) => return Err(wrong("is out of range")),
            Err(_) => return Err(wrong("is no number")),
        };
        if out.contains(&number) {
            return Err(wrong("is there twice"));
        }
        out.push(number);
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_keep_their_order() {
        assert_eq!(list("--batch", "8, 1,64", 64).unwrap(), [8, 1, 64]);
        for (bad, what) in [
            ("", "is no number"),
            ("1,,2", "is no number"),
            ("0", "is out of range"),
            ("65", "is out of range"),
            ("-1", "is no number"),
            ("2,2", "is there twice"),
            ("+3", "is no number"),
        ] {
            let Err(Failure::Usage(line)) = list("--batch", bad, 64) else { panic!("{bad}") };
            assert!(line.starts_with("--batch: `") && line.contains(what) && line.contains("1 to 64"), "{line}");
        }
    }
}
