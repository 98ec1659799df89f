//! Spans of keys.

use std::ops::Bound;

use bytes::Bytes;

/// The span of the keys that begin with these bytes.
pub fn prefix(prefix: &[u8]) -> (Bound<Bytes>, Bound<Bytes>) {
    let begin = Bound::Included(Bytes::copy_from_slice(prefix));
    // The first key after it: the last byte that can be raised is, and nothing follows.
    let Some(last) = prefix.iter().rposition(|byte| *byte < u8::MAX) else {
        return (begin, Bound::Unbounded);
    };
    let mut end = prefix[..=last].to_vec();
    end[last] += 1;
    (begin, Bound::Excluded(end.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_holds_what_begins_with_it_and_nothing_else() {
        let keys: [&[u8]; 8] =
            [b"", b"a", b"a\0", b"a\xff\xff", b"b", b"\xfe", b"\xff", b"\xff\xff\x01"];
        for wanted in keys {
            let (begin, end) = prefix(wanted);
            for key in keys {
                let after_begin = matches!(&begin, Bound::Included(begin) if key >= &begin[..]);
                let before_end = match &end {
                    Bound::Excluded(end) => key < &end[..],
                    _ => true,
                };
                let expected = key.starts_with(wanted);
                assert_eq!(after_begin && before_end, expected, "{key:?} in {wanted:?}");
            }
        }
    }
}
