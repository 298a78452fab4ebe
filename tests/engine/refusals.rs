//! Some tokens of a broadcast are refused: the others are sent to all the same.

use std::time::Duration;

use pushcast::domain::ProviderId;
use sandbox::{Answer, TokenFault, TokenRule, Which};

use crate::sender::{all_sent, expo_sender, fcm_sender, phones, sandbox};

#[tokio::test(start_paused = true)]
async fn a_busy_device_delays_no_other() {
    let sandbox = sandbox(|faults| {
        faults.fcm.tokens =
            vec![TokenRule { which: Which::Containing("-7".into()), fault: TokenFault::Busy }];
    })
    .await;
    let sender = fcm_sender(&sandbox, 0).await;
    let end_of_fault = async {
        tokio::time::sleep(Duration::from_secs(120)).await;
        let seen = sandbox.statistics().fcm;
        // phone-7, phone-70 … phone-799.
        assert_eq!(seen.distinct_tokens, 1_000 - 111, "the others have been sent to");
        assert!(
            seen.answered(Answer::Busy) < 111 * 10,
            "{} requests to busy devices",
            seen.answered(Answer::Busy)
        );
        sandbox.faults().change(|faults| faults.fcm.tokens.clear());
    };
    let (outcomes, ()) = tokio::join!(sender.broadcast(phones(ProviderId::Fcm, 1_000)), end_of_fault);
    assert!(all_sent(&outcomes));
}

#[tokio::test(start_paused = true)]
async fn tokens_of_another_project_cost_one_refusal_each_request_and_no_message() {
    let sandbox = sandbox(|faults| {
        faults.expo.tokens =
            vec![TokenRule { which: Which::Containing("-13".into()), fault: TokenFault::Foreign }];
    })
    .await;
    let sender = expo_sender(&sandbox, 0);
    assert!(all_sent(&sender.broadcast(phones(ProviderId::Expo, 2_000)).await));
    let seen = sandbox.statistics().expo;
    assert_eq!((seen.distinct_tokens, seen.duplicates), (2_000, 0));
    // Twenty requests, and what a refusal has reported is not asked again.
    assert!(seen.statuses[&400] <= 20, "{seen:?}");
}
