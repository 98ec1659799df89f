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
fn commit_conditions_and_deletes_hold_across_restart() {
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

            // A commit writes all of its keys, or none if a condition fails.
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
            // A delete of an absent key succeeds.
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
fn scan_covers_all_ranges_in_both_directions() {
    run(async {
        let mut cluster = Cluster::start(options()).unwrap();
        let client = cluster.wait_until_serving().await.unwrap();
        let mut written = Vec::new();
        for mode in BOTH_MODES {
            let keys = keys(&client, mode).await;
            for at in 0..60 {
                client.put(keys.key(at), vec![at as u8; 2_000]).await.unwrap();
                if at % 5 == 0 {
                    client.delete(keys.key(at)).await.unwrap();
                } else {
                    written.push((keys.key(at).to_vec(), at as u8));
                }
            }
        }
        written.sort();
        let expect = async |scan: palisade_client::Scan, expected: Vec<(Vec<u8>, u8)>| {
            let found = scan.all().await.unwrap();
            let found: Vec<_> = found.iter().map(|row| (row.key.to_vec(), row.value[0])).collect();
            assert_eq!(found, expected);
        };
        expect(client.scan("", None), written.clone()).await;
        expect(client.scan("", None).page_rows(3), written.clone()).await;
        let backward: Vec<_> = written.iter().rev().cloned().collect();
        expect(client.scan("", None).backward().page_rows(7), backward).await;
        let (from, to) = (written[10].0.clone(), written[70].0.clone());
        let part = || client.scan(from.clone(), Some(to.clone().into()));
        expect(part(), written[10..70].to_vec()).await;
        expect(part().backward(), written[10..70].iter().rev().cloned().collect()).await;
        expect(client.scan("x", Some("b".into())), Vec::new()).await;
        expect(client.scan("x", Some("b".into())).backward(), Vec::new()).await;
        expect(client.scan("", Some("".into())).backward(), Vec::new()).await;
        let mut pages = part().page_rows(4);
        let first = pages.next_page().await.unwrap().unwrap();
        assert!((1..=4).contains(&first.len()) && first[0].key == written[10].0);
    });
}

#[test]
fn commit_rejects_several_ranges_and_invalid_sizes() {
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
    });
}
