//! Sets of classes as bits of words.

/// Adds `c`.
pub(super) fn insert(set: &mut [u64], c: usize) {
    set[c / 64] |= 1 << (c % 64);
}

/// Takes `c` out.
pub(super) fn remove(set: &mut [u64], c: usize) {
    set[c / 64] &= !(1 << (c % 64));
}

/// True if `c` is in.
pub(super) fn contains(set: &[u64], c: usize) -> bool {
    set[c / 64] >> (c % 64) & 1 == 1
}

/// `set` becomes the union of the sets of `children`; `sets` holds one of the same length for each class.
pub(super) fn union(set: &mut [u64], sets: &[u64], children: &[usize]) {
    set.fill(0);
    let words = set.len();
    for child in children {
        for (to, from) in set.iter_mut().zip(&sets[child * words..]) {
            *to |= from;
        }
    }
}

/// Numbers of the bits that are set, ascending.
pub(super) fn bits(set: &[u64]) -> impl Iterator<Item = usize> + '_ {
    set.iter().enumerate().flat_map(|(w, word)| {
        let mut rest = *word;
        std::iter::from_fn(move || {
            (rest != 0).then(|| {
                let bit = rest.trailing_zeros() as usize;
                rest &= rest - 1;
                w * 64 + bit
            })
        })
    })
}
