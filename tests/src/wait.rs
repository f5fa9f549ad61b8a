//! Waiting: for a condition, never for a time. The deadline only turns a hang into a failure that says what
//! was awaited.

use std::future::Future;
use std::time::Duration;

/// How long anything on loopback may take before the scenario calls it hung. Generous, as two cores may be
/// shared with a compiler, and ten Envoys that compile the module at once take 20 s then.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// How often a condition that cannot notify is looked at again.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// The future's outcome, or a failure naming `what` when it hangs.
pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(outcome) => outcome,
        Err(_) => panic!("waited {PATIENCE:?} in vain for {what}"),
    }
}

/// Looks at `probe` until it has an answer.
pub async fn eventually<T, F>(what: &str, mut probe: impl FnMut() -> F) -> T
where
    F: Future<Output = Option<T>>,
{
    within(what, async {
        loop {
            if let Some(found) = probe().await {
                return found;
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    })
    .await
}
