//! Commits with conditions and deletes, through the client, over kills and restarts.
#![allow(clippy::disallowed_methods, reason = "tests run on the real machine")]

mod support;

use palisade_client::{
    Client, ClientError, Commit, Expected, MAX_COMMIT_PARTS, MAX_VALUE_BYTES, Rejection,
};
use palisade_cluster::Cluster;
use support::{BOTH_MODES, keys, kill_all, options, run, start_all};

async fn value(client: &Client, key: &[u8]) -> Option<Vec<u8>> {
    client.get(key.to_vec()).await.unwrap().map(|found| found.value.to_vec())
}

fn fails(result: &Result<palisade_client::Committed, ClientError>, expected: usize) {
    assert_eq!(*result, Err(ClientError::ConditionFailed { condition: expected }));
}

#[test]
fn conditions_hold_and_deletes_last_in_both_modes_and_over_a_restart() {
    run(async {
        let mut cluster = Cluster::start(options()).unwrap();
        let mut client = cluster.wait_until_serving().await.unwrap();
        for mode in BOTH_MODES {
            let key = keys(&client, mode).await.key(0).to_vec();
            let other = [&key[..], b"other"].concat();
            client.insert(key.clone(), "1").await.unwrap();
            fails(&client.insert(key.clone(), "2").await, 0);
            let seen = client.get(key.clone()).await.unwrap().unwrap();
            assert_eq!(seen.value, "1");

            let wrong = Expected::Value("9".into());
            fails(&client.compare_and_set(key.clone(), wrong, "2").await, 0);
            let version = Expected::Version(seen.version_ts);
            let set = client.compare_and_set(key.clone(), version.clone(), "2").await.unwrap();
            assert!(set.commit_ts > seen.version_ts);
            fails(&client.compare_and_set(key.clone(), version, "3").await, 0);

            // All or nothing.
            let commit = || Commit::new().expect(key.clone(), Expected::Value("2".into()));
            let both = || commit().put(key.clone(), "4").put(other.clone(), "4");
            fails(
                &client.commit(both().expect(other.clone(), Expected::Value("0".into()))).await,
                1,
            );
            assert_eq!(value(&client, &other).await, None);
            client.commit(both()).await.unwrap();
            assert_eq!(value(&client, &key).await.as_deref(), Some(&b"4"[..]));
            assert_eq!(value(&client, &other).await.as_deref(), Some(&b"4"[..]));

            client.delete(key.clone()).await.unwrap();
            assert_eq!(value(&client, &key).await, None);
            // Of what is not there.
            client.delete(key.clone()).await.unwrap();
        }
        kill_all(&mut cluster, 3);
        start_all(&mut cluster, 3);
        client = cluster.wait_until_serving().await.unwrap();
        for mode in BOTH_MODES {
            let key = keys(&client, mode).await.key(0).to_vec();
            let other = [&key[..], b"other"].concat();
            assert_eq!(value(&client, &key).await, None);
            assert_eq!(value(&client, &other).await.as_deref(), Some(&b"4"[..]));
            client.insert(key, "5").await.unwrap();
        }
    });
}

#[test]
fn what_a_commit_can_not_be_is_said_at_once() {
    run(async {
        let mut cluster = Cluster::start(options()).unwrap();
        let client = cluster.wait_until_serving().await.unwrap();
        let all = keys(&client, BOTH_MODES[0]).await;
        let (one, another) = (all.key(0), all.key(1));
        assert_ne!(all.range_of(0), all.range_of(1));
        let several = Commit::new().put(one.clone(), "1").put(another, "1");
        assert_eq!(client.commit(several).await, Err(ClientError::SeveralRanges));
        let size = |result: Result<_, ClientError>| {
            assert!(
                matches!(result, Err(ClientError::Rejected(Rejection::CommitSize { .. }))),
                "{result:?}"
            );
        };
        size(client.commit(Commit::new()).await);
        let many = (0..=MAX_COMMIT_PARTS).fold(Commit::new(), |c, _| c.put(one.clone(), ""));
        size(client.commit(many).await);
        let large = vec![0; MAX_VALUE_BYTES];
        size(client.commit(Commit::new().put("a", large.clone()).put("b", large)).await);
        cluster.kill(0).unwrap();
    });
}
