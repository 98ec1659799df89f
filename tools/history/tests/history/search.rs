//! The naive check by definition (Wing & Gong 1993): tries all orders. For one key and few
//! operations.

use palisade_history::{Action, Completion, Operation};

/// Returns true if some order of the operations explains every response.
pub(crate) fn is_linearizable(history: &[Operation]) -> bool {
    let mut pending: Vec<Operation> = history
        .iter()
        .copied()
        .filter(|operation| match operation.outcome {
            Completion::Ok => true,
            Completion::Fail => false,
            Completion::Info => matches!(operation.action, Action::Write(_)),
        })
        .collect();
    extend(&mut pending, None)
}

/// Returns true if the pending operations have a valid order on a register that holds `state`.
fn extend(pending: &mut Vec<Operation>, state: Option<u64>) -> bool {
    // An operation may come next if no other pending one ended before it started.
    let Some(horizon) = pending
        .iter()
        .filter(|operation| operation.outcome == Completion::Ok)
        .map(|operation| operation.end_ns)
        .min()
    else {
        // The remaining operations are of unknown outcome, and need not take effect.
        return true;
    };
    for at in 0..pending.len() {
        let next = pending[at];
        if next.start_ns > horizon {
            continue;
        }
        let after = match next.action {
            Action::Write(value) => Some(value),
            Action::Read(value) if value == state => state,
            Action::Read(_) => continue,
        };
        pending.remove(at);
        let found = extend(pending, after);
        pending.insert(at, next);
        if found {
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::is_linearizable;
    use crate::script::{absent, info, read, write};

    #[test]
    fn exhaustive_search_follows_linearizability_definition() {
        assert!(is_linearizable(&[]));
        assert!(is_linearizable(&[absent(1, 2), write(1, 3, 4), read(1, 5, 6)]));
        assert!(is_linearizable(&[write(1, 1, 3), absent(3, 4)]));
        assert!(!is_linearizable(&[write(1, 1, 3), absent(4, 5)]));
        assert!(!is_linearizable(&[write(1, 1, 2), write(2, 3, 4), read(1, 5, 6)]));
        assert!(is_linearizable(&[info(write(1, 1, 2)), absent(3, 4), read(1, 5, 6)]));
        assert!(!is_linearizable(&[info(write(1, 1, 2)), read(1, 3, 4), absent(5, 6)]));
    }
}
