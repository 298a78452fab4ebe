//! FCM's access tokens and connections: an endpoint that issues none, tokens that FCM refuses, and the
//! rate after a wait for either.

use std::time::Duration;

use pushcast::{
    dispatch::{Gate, route},
    domain::ProviderId,
};
use sandbox::{Answer, Outage};
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::Instant,
};

use crate::{
    outages::FAILURE_MODES,
    sender::{all_sent, fcm_sender, fcm_sender_at, phones, recipients, sandbox},
};

#[tokio::test(start_paused = true)]
async fn a_token_endpoint_that_fails_in_any_mode_halts_no_route_and_loses_no_message() {
    for mode in FAILURE_MODES {
        let down = |seconds| {
            let lasting = Some(Duration::from_secs(seconds));
            Some(Outage { manner: mode, lasting, ..Outage::default() })
        };
        let sandbox = sandbox(|faults| faults.oauth.down = down(60)).await;
        let sender = fcm_sender(&sandbox, 0).await;
        let started = Instant::now();
        assert!(all_sent(&sender.broadcast(phones(ProviderId::Fcm, 300)).await), "{mode:?}");
        assert_eq!(
            (sandbox.statistics().fcm.requests, sender.ambiguous()),
            (300, 0),
            "{mode:?}: nothing is sent without an access token"
        );
        assert!(started.elapsed() < Duration::from_secs(60 + 70 + 45), "{mode:?}: {:?}", started.elapsed());

        // Later FCM refuses a token that was good, while the endpoint issues no new one.
        sandbox.faults().change(|faults| faults.oauth.down = down(30));
        sandbox.revoke_credentials();
        let others = recipients(ProviderId::Fcm, (0..300).map(|number| format!("other-{number}")));
        assert!(all_sent(&sender.broadcast(others).await), "{mode:?}");
        let seen = sandbox.statistics();
        assert_eq!(
            (seen.fcm.distinct_tokens, seen.fcm.duplicates, seen.credentials_issued),
            (600, 0, 2),
            "{mode:?}"
        );
        assert_eq!(*sender.route_sync.local_status().borrow(), None, "{mode:?}");
    }
}

/// A proxy to `origin` that opens each connection only after `handshake`, as over a slow network.
async fn slow_proxy(origin: &str, handshake: Duration) -> (String, JoinSet<()>) {
    let origin = origin.strip_prefix("http://").unwrap().to_owned();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let mut task = JoinSet::new();
    task.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((mut near, _)) = listener.accept().await {
            let origin = origin.clone();
            connections.spawn(async move {
                tokio::time::sleep(handshake).await;
                let mut far = TcpStream::connect(origin).await.unwrap();
                // In virtual time what the kernel delays by milliseconds arrives much later.
                near.set_nodelay(true).unwrap();
                far.set_nodelay(true).unwrap();
                let _ended = copy_bidirectional(&mut near, &mut far).await;
            });
        }
    });
    (url, task)
}

#[tokio::test(start_paused = true)]
async fn messages_that_have_waited_for_connections_to_open_are_sent_at_the_rate_limit() {
    const LIMIT: u32 = 1_000;
    for handshake in [100, 400] {
        let sandbox = sandbox(|_| {}).await;
        let (url, _task) = slow_proxy(&sandbox.fcm_url(), Duration::from_millis(handshake)).await;
        let sender = fcm_sender_at(&sandbox, url, LIMIT).await;
        assert!(all_sent(&sender.broadcast(phones(ProviderId::Fcm, 3_000)).await));
        let seen = sandbox.statistics().fcm;
        assert_eq!((seen.duplicates, sender.ambiguous()), (0, 0));
        assert!(
            seen.peak_per_second <= u64::from(LIMIT),
            "{handshake} ms: {} in one second",
            seen.peak_per_second
        );
    }
}

/// The first access token comes late; later FCM refuses it. What has filled the slots meanwhile must
/// not be sent all at once.
#[tokio::test(start_paused = true)]
async fn messages_that_have_waited_for_an_access_token_are_sent_at_the_rate_limit() {
    const LIMIT: u32 = 1_000;
    for (revoked, latency, handshake) in [(false, 50, 0), (false, 50, 400), (true, 50, 0), (true, 350, 0)] {
        let sandbox = sandbox(|faults| {
            faults.fcm.latency = Duration::from_millis(latency);
            faults.oauth.latency = Duration::from_secs(2);
        })
        .await;
        let (url, _task) = slow_proxy(&sandbox.fcm_url(), Duration::from_millis(handshake)).await;
        let sender = fcm_sender_at(&sandbox, url, LIMIT).await;
        let revocation = async {
            tokio::time::sleep(Duration::from_secs(3)).await;
            if revoked {
                sandbox.revoke_credentials();
            }
        };
        let (outcomes, ()) = tokio::join!(sender.broadcast(phones(ProviderId::Fcm, 5_000)), revocation);
        let seen = sandbox.statistics();
        let refused = seen.fcm.answered(Answer::CredentialsRefused);
        assert!(all_sent(&outcomes) && (refused > 0) == revoked, "{refused} were refused");
        assert_eq!((seen.fcm.distinct_tokens, seen.fcm.duplicates, sender.ambiguous()), (5_000, 0, 0));
        assert!(
            seen.fcm.peak_per_second <= u64::from(LIMIT),
            "{} in one second, {refused} refused",
            seen.fcm.peak_per_second
        );
    }
}

/// FCM accepts none of our access tokens, however new they are.
#[tokio::test(start_paused = true)]
async fn an_fcm_that_refuses_every_access_token_halts_the_route_until_an_operator_resumes_it() {
    let sandbox = sandbox(|_| {}).await;
    let mut sender = fcm_sender(&sandbox, 400).await;
    let mut route_sync = std::mem::replace(&mut sender.route_sync, route().1);
    let revocations = async {
        loop {
            sandbox.revoke_credentials();
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let operator = async {
        let reason = tokio::select! {
            reason = route_sync.halted() => reason.unwrap(),
            () = revocations => unreachable!(),
        };
        assert!(reason.contains("UNAUTHENTICATED"), "{reason}");
        tokio::time::sleep(Duration::from_secs(600)).await;
        // The token in use is still one of the refused ones.
        sandbox.revoke_credentials();
        route_sync.follow(Gate::Open);
        let halted_again = tokio::time::timeout(Duration::from_secs(60), route_sync.halted()).await;
        assert!(halted_again.is_err(), "one resume must suffice: {halted_again:?}");
    };
    let (outcomes, ()) = tokio::join!(sender.broadcast(phones(ProviderId::Fcm, 2_000)), operator);
    assert!(all_sent(&outcomes));
    let seen = sandbox.statistics().fcm;
    assert_eq!((seen.distinct_tokens, seen.duplicates), (2_000, 0));
}
