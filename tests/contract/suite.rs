//! What every store promises, as facts about `S: Store`.
//!
//! `contract!(open)` makes a test of each fact; `open` is an `async fn() -> (S, keep)` that gives a fresh,
//! empty store and whatever must live as long as it does. A fact that is missing from the lists below is dead
//! code to the compiler.

pub mod audience;
pub mod broadcasts;
pub mod doses;
pub mod oracle;
pub mod routes;
pub mod schedules;
pub mod tokens;

use pushcast::{
    domain::{DeviceId, Platform, Timestamp, Token, TokenChange, UserId, Version},
    store::Registry,
};

macro_rules! facts {
    ($open:ident, $port:ident: [$($fact:ident),+ $(,)?]) => {
        mod $port {
            use super::*;
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $fact() {
                    let (store, _keep) = $open().await;
                    $crate::suite::$port::$fact(&store).await;
                }
            )+
        }
    };
}

macro_rules! contract {
    ($open:ident) => {
        $crate::suite::facts!($open, tokens: [
            a_registered_token_is_found_by_its_user,
            the_same_token_twice_is_one_row,
            a_token_belongs_to_whoever_logged_in_last,
            an_older_event_changes_nothing,
            a_new_token_takes_the_place_of_its_kind_on_the_device,
            a_late_registration_does_not_take_the_device_back,
            a_late_newer_registration_replaces_what_is_on_the_device,
            a_previous_token_is_deactivated,
            a_previous_token_that_is_the_token_itself_lives,
            an_old_replacement_spares_what_registered_later,
            an_unregistered_token_is_nobodys,
            a_deleted_user_has_no_tokens_and_gets_none_of_older_events,
            a_user_who_comes_back_after_the_deletion_is_rung,
            the_deletion_of_a_former_owner_does_not_touch_the_token,
            opening_the_app_changes_no_ownership,
            opening_the_app_with_an_unknown_token_registers_nothing,
            a_verdict_revokes_the_registration_that_it_names,
            a_verdict_on_an_earlier_registration_is_ignored,
            an_outsiders_verdict_spares_what_registered_later,
            a_replayed_registration_does_not_revive_a_revoked_token,
            the_first_registration_is_remembered,
            a_token_is_found_by_its_hash,
            the_census_counts_by_provider,
        ]);
        $crate::suite::facts!($open, schedules: [any_schedule_ends_in_an_expected_state, schedules_with_equal_versions_end_in_an_expected_state]);
        $crate::suite::facts!($open, audience: [
            the_slices_hold_every_active_token_once,
            a_page_resumes_where_the_one_before_ended,
            a_page_leaves_out_the_author_and_if_told_so_nobodys_tokens,
            any_cursor_splits_a_slice_in_two,
            an_empty_slice_has_one_empty_page,
        ]);
        $crate::suite::facts!($open, broadcasts: [
            how_far_a_part_is_can_be_asked_without_owning_it,
            the_first_plan_stands,
            an_unknown_broadcast_has_no_plan_and_no_state,
            a_broadcast_may_be_stopped_before_it_is_planned,
            a_broadcast_only_moves_forward,
            a_new_owner_takes_over_where_the_last_one_was,
            a_former_owner_can_record_nothing,
            a_part_that_is_done_stays_done,
            a_checkpoint_told_twice_counts_once,
            pages_of_many_owners_are_counted_once,
            a_part_finishes_once,
            somebody_sees_the_last_part,
            totals_are_those_of_one_broadcast,
            a_total_says_the_same_each_time,
        ]);
        $crate::suite::facts!($open, doses: [
            a_regimen_is_read_as_it_was_written,
            who_claimed_a_dose_can_be_asked_without_claiming_it,
            an_older_definition_changes_nothing,
            a_removed_regimen_is_gone_for_older_definitions_too,
            the_sweep_meets_every_regimen_once,
            due_rows_come_by_time_and_regimen,
            pages_of_due_rows_miss_none_and_repeat_none,
            the_same_due_row_twice_is_one,
            due_rows_stay_in_their_shard,
            a_due_row_keeps_its_payload,
            missing_marks_name_the_command_that_writes_them,
            marks_only_rise,
            marks_rise_under_many_hands,
            writing_the_first_marks_again_changes_nothing,
            the_first_claim_wins_until_its_lease_is_over,
            a_claim_of_ones_own_is_renewed,
            a_marked_dose_is_claimed_by_nobody,
            a_claim_that_was_taken_over_cannot_mark,
            a_mark_told_twice_is_kept,
            each_provider_has_a_claim_of_its_own,
            one_of_many_claimers_wins,
        ]);
        $crate::suite::facts!($open, routes: [a_route_runs_until_somebody_says_otherwise, a_route_is_read_as_it_was_set, a_store_answers]);
    };
}

pub(crate) use {contract, facts};

/// The n-th moment of a test: ten milliseconds apart, as far as two versions must be to differ whatever their
/// offsets.
pub fn at(n: i64) -> Timestamp {
    Timestamp::from_millisecond(1_795_000_000_000 + n * 10).unwrap()
}

/// The version of an event at that moment.
pub fn v(n: i64) -> Version {
    Version::of_record(at(n), 0)
}

/// An Expo token.
pub fn expo(name: &str) -> Token {
    Token::parse(&format!("ExponentPushToken[{name}]")).unwrap()
}

/// A token of FCM.
pub fn fcm(name: &str) -> Token {
    Token::parse(&format!("{name:_<80}")).unwrap()
}

pub fn user(name: &str) -> UserId {
    UserId::new(name)
}

/// A registration of an Expo token, to be said in a sentence:
/// `login("t1").by("ann").on("phone").at(1).apply(&store)`.
pub fn login(token: &str) -> Login {
    login_with(expo(token))
}

/// The same with any token.
pub fn login_with(token: Token) -> Login {
    Login { token, user: None, device: None, previous: None, n: 0 }
}

#[derive(Clone)]
pub struct Login {
    token: Token,
    user: Option<UserId>,
    device: Option<DeviceId>,
    previous: Option<Token>,
    n: i64,
}

impl Login {
    pub fn by(self, name: &str) -> Self {
        Self { user: Some(user(name)), ..self }
    }

    pub fn on(self, device: &str) -> Self {
        Self { device: Some(DeviceId::new(device)), ..self }
    }

    pub fn instead_of(self, token: &str) -> Self {
        Self { previous: Some(expo(token)), ..self }
    }

    pub fn at(self, n: i64) -> Self {
        Self { n, ..self }
    }

    pub async fn apply(self, store: &impl Registry) {
        let version = v(self.n);
        let change = TokenChange::Registered {
            token: self.token,
            user: self.user,
            platform: Some(Platform::Ios),
            device: self.device,
            device_info: Some(r#"{"model":"X"}"#.to_owned()),
            previous: self.previous,
        };
        store.apply(&change, version).await.unwrap();
    }
}
