//! One word of eight codes, and what a code and a scale mean.

/// Values of the sixteen E2M1 codes.
pub const CODE_VALUES: [f32; 16] =
    [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];

/// Value of a code (0..16) under a scale byte, exact except that it overflows to infinity beyond f32 (scales 253 and 254 with
/// the largest codes). Scale 255 gives NaN, as E8M0 says.
pub fn decode(code: u8, scale: u8) -> f32 {
    let factor = match scale {
        255 => f32::NAN,
        // 2^-127 is below the normal range.
        0 => f32::from_bits(0x0040_0000),
        s => f32::from_bits(u32::from(s) << 23),
    };
    CODE_VALUES[usize::from(code & 15)] * factor
}

/// Four checkpoint bytes (pairs of codes) as one word.
pub(super) fn pack_word(pairs: [u8; 4]) -> u32 {
    let [a, b, c, d] = pairs.map(|byte| PAIR[usize::from(byte)]);
    a | b >> 4 | c.rotate_right(10) | (d & 0x80c0_80c0) >> 6 | (d & 0x0100_0100) << 2
}

/// The four checkpoint bytes in a word: pair `j` with its first code in the low nibble.
pub fn unpack_word(word: u32) -> [u8; 4] {
    const MASK: u32 = 0x81c0_81c0;
    let last = word << 6 & 0x80c0_80c0 | word >> 2 & 0x0100_0100;
    [word & MASK, word << 4 & MASK, word.rotate_left(10) & MASK, last].map(|pair| {
        let code = |half: u32| (half >> 12 & 8 | half >> 6 & 7) as u8;
        code(pair & 0xffff) | code(pair >> 16) << 4
    })
}

/// A pair as it is multiplied, by checkpoint byte.
static PAIR: [u32; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let (low, high) = (byte as u32 & 15, byte as u32 >> 4);
        table[byte] = enc(low) | enc(high) << 16;
        byte += 1;
    }
    table
};

const fn enc(n: u32) -> u32 {
    (n & 8) << 12 | (n & 7) << 6
}
