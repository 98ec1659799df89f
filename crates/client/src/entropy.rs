//! Randomness from the operating system.

use palisade_wire::SessionId;

use crate::ClientError;

/// Returns a session with a random name from the operating system. If two clients had one name,
/// each would receive outcomes of the other's commits.
pub(crate) fn fresh_session() -> Result<SessionId, ClientError> {
    let random = getrandom::u64().map_err(|error| ClientError::NoEntropy(error.to_string()))?;
    Ok(SessionId(random))
}
