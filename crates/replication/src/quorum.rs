//! Majority arithmetic.

/// Returns how many of `voters` form a majority.
pub(crate) fn majority(voters: usize) -> usize {
    voters / 2 + 1
}

/// Returns the largest value that a majority has reached, or `u64::MAX` if `values` is empty.
pub(crate) fn reached_by_majority(values: &mut [u64]) -> u64 {
    if values.is_empty() {
        return u64::MAX;
    }
    values.sort_unstable_by(|a, b| b.cmp(a));
    values[majority(values.len()) - 1]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn majority_is_more_than_half_of_voters() {
        let table = [(1, 1), (2, 2), (3, 2), (4, 3), (5, 3), (6, 4), (7, 4)];
        for (voters, expected) in table {
            assert_eq!(majority(voters), expected, "of {voters}");
        }
    }

    #[test]
    fn majority_value_is_highest_reached_by_majority() {
        let table: [(&[u64], u64); 8] = [
            (&[], u64::MAX),
            (&[5], 5),
            (&[5, 3], 3),
            (&[0, 0, 9], 0),
            (&[1, 9, 4], 4),
            (&[7, 7, 7], 7),
            (&[1, 2, 3, 4], 2),
            (&[1, 2, 3, 4, 5], 3),
        ];
        for (values, expected) in table {
            assert_eq!(reached_by_majority(&mut values.to_vec()), expected, "of {values:?}");
        }
    }
}
