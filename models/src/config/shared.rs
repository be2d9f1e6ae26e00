//! Rules between fields that hold for every architecture. Zeros are placeholders of fields reported already.

use super::fields::Fields;

/// Query heads share key heads in equal groups, and rotation pairs the halves of a head.
pub(super) fn check_heads(f: &mut Fields<'_>, heads: usize, kv_heads: usize, head_dim: usize) {
    const FIX: &str = "take the values from the published config.json";
    if kv_heads != 0 && !heads.is_multiple_of(kv_heads) {
        f.problem("num_attention_heads", &format!("a multiple of num_key_value_heads, {kv_heads}"), FIX);
    }
    if !head_dim.is_multiple_of(2) {
        f.problem("head_dim", "an even number: rotation pairs the halves of a head", FIX);
    }
}

/// Warns of ids that no token can have.
pub(super) fn check_ids<'a>(f: &mut Fields<'_>, ids: impl Iterator<Item = &'a u32>, vocab: usize) {
    for id in ids.filter(|&&id| vocab != 0 && id as usize >= vocab) {
        f.warn(
            "eos_token_id or pad_token_id",
            &format!("{id} is outside the vocabulary of {vocab}; it will never be produced"),
        );
    }
}
