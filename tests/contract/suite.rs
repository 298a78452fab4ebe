//! What every store promises, as facts about `S: Store`.
//!
//! `contract!(open)` makes a test of each fact; `open` is an `async fn() -> (S, keep)` that returns an empty
//! store and a value that must live as long as it does. A fact that is missing from the lists below is dead
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
            a_token_belongs_to_the_user_who_logged_in_last,
            an_older_event_changes_nothing,
            a_new_token_replaces_the_one_of_its_kind_on_the_device,
            a_late_registration_does_not_take_the_device_back,
            a_late_newer_registration_replaces_what_is_on_the_device,
            a_previous_token_is_deactivated,
            a_previous_token_that_is_the_token_itself_stays_active,
            an_old_replacement_spares_what_registered_later,
            an_unregistered_token_is_inactive,
            a_deleted_user_has_no_tokens_and_gets_none_of_older_events,
            a_user_who_registers_after_the_deletion_has_the_token,
            the_deletion_of_a_former_owner_does_not_touch_the_token,
            opening_the_app_changes_no_ownership,
            opening_the_app_with_an_unknown_token_registers_nothing,
            a_verdict_revokes_the_registration_that_it_names,
            a_verdict_on_an_earlier_registration_is_ignored,
            an_outsiders_verdict_spares_what_registered_later,
            a_replayed_registration_does_not_reactivate_a_revoked_token,
            the_time_of_the_first_registration_is_kept,
            a_token_is_found_by_its_hash,
            the_census_counts_by_provider,
        ]);
        $crate::suite::facts!($open, schedules: [
            any_schedule_ends_in_an_expected_state,
            schedules_with_equal_versions_end_in_an_expected_state,
        ]);
        $crate::suite::facts!($open, audience: [
            the_slices_contain_every_active_token_once,
            a_page_resumes_where_the_one_before_ended,
            a_page_leaves_out_the_author_and_on_request_tokens_without_a_user,
            any_cursor_splits_a_slice_in_two,
            an_empty_slice_has_one_empty_page,
        ]);
        $crate::suite::facts!($open, broadcasts: [
            progress_can_be_read_without_owning_the_part,
            the_first_plan_is_kept,
            an_unknown_broadcast_has_no_plan_and_no_state,
            a_broadcast_may_be_stopped_before_it_is_planned,
            a_broadcast_only_moves_forward,
            a_new_owner_takes_over_at_the_last_checkpoint,
            a_former_owner_is_fenced,
            a_part_that_is_done_stays_done,
            a_repeated_checkpoint_counts_once,
            pages_of_many_owners_are_counted_once,
            a_part_finishes_once,
            one_of_many_callers_sees_the_last_part,
            a_total_is_that_of_one_broadcast,
            a_total_is_the_same_each_time,
        ]);
        $crate::suite::facts!($open, doses: [
            a_regimen_is_read_as_it_was_written,
            a_claim_can_be_read_without_claiming_the_dose,
            an_older_definition_changes_nothing,
            an_older_definition_does_not_restore_a_removed_regimen,
            the_pages_of_regimens_contain_each_of_them_once,
            due_rows_are_ordered_by_time_and_regimen,
            pages_of_due_rows_miss_none_and_repeat_none,
            the_same_due_row_twice_is_one,
            due_rows_stay_in_their_shard,
            a_due_row_keeps_its_payload,
            the_error_of_missing_watermarks_names_the_command_that_writes_them,
            watermarks_only_rise,
            a_watermark_that_many_raise_at_once_ends_at_the_highest,
            writing_the_first_watermarks_again_changes_nothing,
            the_first_claim_wins_until_its_lease_ends,
            an_owner_renews_its_claim,
            a_marked_dose_cannot_be_claimed,
            a_claim_that_was_taken_over_cannot_mark,
            a_repeated_mark_is_kept,
            each_provider_has_a_claim_of_its_own,
            one_of_many_claimers_wins,
        ]);
        $crate::suite::facts!($open, routes: [
            a_route_is_running_until_it_is_set,
            a_route_is_read_as_it_was_set,
            a_ping_succeeds,
        ]);
    };
}

pub(crate) use {contract, facts};

/// The n-th moment of a test: ten milliseconds apart, so that the versions of two moments differ at any
/// offset.
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

/// An FCM token.
pub fn fcm(name: &str) -> Token {
    Token::parse(&format!("{name:_<80}")).unwrap()
}

pub fn user(name: &str) -> UserId {
    UserId::new(name)
}

/// Builds a registration of an Expo token: `login("t1").by("ann").on("phone").at(1).apply(&store)`.
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
