//! The byte-to-character map of byte-level BPE.
//!
//! Vocabulary entries are written as text in which every byte is one printable character: the bytes that are printable in
//! Latin-1 stand for themselves, the other 68 are the characters from U+0100 on, in byte order.

/// The character that stands for `byte` in a byte-level vocabulary entry.
pub(super) fn byte_to_char(byte: u8) -> char {
    if is_plain(byte) {
        return char::from(byte);
    }
    let rank = (0..byte).filter(|&b| !is_plain(b)).count() as u32;
    char::from_u32(0x100 + rank).unwrap_or(char::REPLACEMENT_CHARACTER)
}

/// Maps the characters of a vocabulary entry back to bytes.
pub(super) struct CharToByte {
    /// Indexed by code point; the map's characters all lie below U+0144.
    table: [Option<u8>; 0x144],
}

impl CharToByte {
    pub(super) fn new() -> Self {
        let mut table = [None; 0x144];
        for byte in 0..=255u8 {
            if let Some(slot) = table.get_mut(byte_to_char(byte) as usize) {
                *slot = Some(byte);
            }
        }
        Self { table }
    }

    /// Appends the bytes that `entry` stands for. An entry with a character outside the map stands for its own UTF-8, as in
    /// the byte-level decoder of the `tokenizers` library.
    pub(super) fn decode_into(&self, entry: &str, out: &mut Vec<u8>) {
        let start = out.len();
        for c in entry.chars() {
            match self.table.get(c as usize).copied().flatten() {
                Some(byte) => out.push(byte),
                None => {
                    out.truncate(start);
                    out.extend_from_slice(entry.as_bytes());
                    return;
                }
            }
        }
    }
}

fn is_plain(byte: u8) -> bool {
    matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_characters() {
        assert_eq!(byte_to_char(b' '), 'Ġ');
        assert_eq!(byte_to_char(b'\n'), 'Ċ');
        assert_eq!(byte_to_char(b'a'), 'a');
        assert_eq!(byte_to_char(0), '\u{100}');
        assert_eq!(byte_to_char(0xAD), '\u{143}');
        assert_eq!(byte_to_char(0xE9), 'é');
    }

    #[test]
    fn every_byte_round_trips() {
        let back = CharToByte::new();
        for byte in 0..=255u8 {
            let mut out = Vec::new();
            back.decode_into(&byte_to_char(byte).to_string(), &mut out);
            assert_eq!(out, [byte]);
        }
    }

    #[test]
    fn foreign_characters_stand_for_themselves() {
        let mut out = vec![1];
        CharToByte::new().decode_into("a中Ġ", &mut out);
        assert_eq!(out, ["\u{1}".as_bytes(), "a中Ġ".as_bytes()].concat());
    }
}
