//! Bytes to text, a few bytes at a time.

/// Turns a stream of byte chunks into text without ever splitting a character.
///
/// A character may span tokens, so the bytes of one token need not be text. The stream emits every character as soon as it is
/// complete, holds an incomplete tail back (at most three bytes), and replaces each invalid sequence by U+FFFD exactly where
/// [`String::from_utf8_lossy`] would: however the bytes are cut, the pieces join to that string.
///
/// ```
/// use gossamer_runtime::text::Utf8Stream;
///
/// let mut stream = Utf8Stream::new();
/// assert_eq!(stream.push(b"caf\xC3"), "caf");
/// assert_eq!(stream.push(b"\xA9 \xE2\x82"), "é ");
/// assert_eq!(stream.finish(), "\u{FFFD}");
/// ```
#[derive(Clone, Debug, Default)]
pub struct Utf8Stream {
    /// The incomplete tail, and while pushing the chunk behind it.
    pending: Vec<u8>,
}

impl Utf8Stream {
    /// An empty stream.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds bytes and returns the characters they complete.
    pub fn push(&mut self, bytes: &[u8]) -> String {
        let mut out = String::new();
        self.push_into(bytes, &mut out);
        out
    }

    /// Adds bytes and appends the characters they complete to `out`.
    pub fn push_into(&mut self, bytes: &[u8], out: &mut String) {
        if self.pending.is_empty() {
            let held = decode(bytes, out);
            self.pending.extend_from_slice(&bytes[bytes.len() - held..]);
        } else {
            self.pending.extend_from_slice(bytes);
            let held = decode(&self.pending, out);
            self.pending.drain(..self.pending.len() - held);
        }
    }

    /// Ends the stream: a truncated character becomes one U+FFFD. The stream is then empty and may be used again.
    pub fn finish(&mut self) -> String {
        let tail = String::from_utf8_lossy(&self.pending).into_owned();
        self.pending.clear();
        tail
    }

    /// How many bytes of an incomplete character are held back (0 to 3).
    pub fn held(&self) -> usize {
        self.pending.len()
    }
}

/// Appends the text of `bytes` to `out`; returns how many bytes at the end are an incomplete character.
fn decode(mut bytes: &[u8], out: &mut String) -> usize {
    loop {
        let error = match std::str::from_utf8(bytes) {
            Ok(text) => {
                out.push_str(text);
                return 0;
            }
            Err(error) => error,
        };
        let (valid, rest) = bytes.split_at(error.valid_up_to());
        out.push_str(&String::from_utf8_lossy(valid));
        match error.error_len() {
            Some(invalid) => {
                out.push(char::REPLACEMENT_CHARACTER);
                bytes = &rest[invalid..];
            }
            None => return rest.len(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::fuzz;
    use proptest::prelude::*;

    #[test]
    fn emits_only_complete_characters() {
        let mut stream = Utf8Stream::new();
        let mut seen = Vec::new();
        for byte in "a€🦊é".bytes() {
            seen.push(stream.push(&[byte]));
        }
        assert_eq!(seen, ["a", "", "", "€", "", "", "", "🦊", "", "é"]);
        assert_eq!(stream.held(), 0);
        assert_eq!(stream.finish(), "");
    }

    #[test]
    fn truncated_tail_is_one_replacement() {
        let mut stream = Utf8Stream::new();
        assert_eq!(stream.push(b"x\xF0\x9F\xA6"), "x");
        assert_eq!(stream.held(), 3);
        assert_eq!(stream.finish(), "\u{FFFD}");
        assert_eq!(stream.push(b"again"), "again");
    }

    #[test]
    fn invalid_bytes_do_not_hold_up_the_rest() {
        let mut stream = Utf8Stream::new();
        assert_eq!(stream.push(b"\xFFa\xC3"), "\u{FFFD}a");
        assert_eq!(stream.push(b"b"), "\u{FFFD}b");
    }

    proptest! {
        #[test]
        fn pieces_join_to_the_lossy_string(
            bytes in prop_oneof![
                proptest::collection::vec(any::<u8>(), 0..64),
                any::<String>().prop_map(String::into_bytes),
                proptest::collection::vec(
                    prop_oneof![Just(0xF0u8), Just(0x9F), Just(0xA6), Just(0xE2), Just(0x82), Just(0xC3), Just(b'a')],
                    0..32,
                ),
            ],
            cuts in proptest::collection::vec(1usize..9, 1..6),
        ) {
            fuzz::utf8_stream(&bytes, &cuts);
        }
    }
}
