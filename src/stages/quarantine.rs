//! What evidence closes a route: the one place that decides it, for the answers to messages and for receipts
//! alike.
//!
//! **The brake.** Many dead tokens at once look the same when *we* are at fault (foreign credentials, another
//! project): then no token is dead, and no user was reached. So the rate of dead tokens brakes the route
//! before any of them is reported. Each instance counts the answers that it sees itself; what it finds, it
//! writes into the route's row, and that brakes all instances. A release by the operator
//! (`RouteState::Released`) lets pass what is held, and everything else that was written before it: the rest
//! of the same broadcast would brake the route again at once, and the operator has looked at just that. Work
//! that was written later counts from zero. A pause and a resume are no release.
//!
//! **Sent again.** Tokens that answers call dead are sent to again when the route is open again: one that was
//! misjudged gets its message, a dead one gets the same answer. After a release that second answer is
//! believed; after anything else it may brake the route again. Receipts can't be had again; they wait for a
//! release.
//!
//! **Refused credentials** in receipts halt the route, unless it was opened after the messages were sent.
//!
//! Everything here is a function of values; the callers read and write the route's row.

use std::{collections::VecDeque, time::Duration};

use crate::{
    dispatch::MessageOutcome,
    domain::Timestamp,
    store::{RouteRow, RouteState},
};

/// When dead tokens brake a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BrakeThresholds {
    /// Fewer dead tokens than that don't.
    pub dead_min: u64,
    /// More than this many dead in a hundred answers do.
    pub dead_percent: u64,
    /// How far back answers count.
    pub window: Duration,
}

/// The answers of the last minutes. At most one entry a second, so its size is bounded.
#[derive(Debug)]
pub(super) struct Brake {
    thresholds: BrakeThresholds,
    seconds: VecDeque<(Timestamp, AnswerCounts)>,
}

/// How many answers there were.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct AnswerCounts {
    /// In all.
    pub answers: u64,
    /// That call the token dead.
    pub dead: u64,
}

/// Answers to messages, as evidence against their tokens or against us.
#[derive(Debug)]
pub(super) struct DeadTokenEvidence {
    counts: AnswerCounts,
    answered_at: Timestamp,
    /// The brake has counted it.
    counted: bool,
    /// A decision has held it.
    held: bool,
}

/// Receipts, as evidence against tokens or against our credentials.
#[derive(Debug)]
pub(super) struct ReceiptEvidence {
    /// Receipts, and those that call the token dead.
    pub counts: AnswerCounts,
    /// Why Expo refuses our credentials, if it does.
    pub credentials_refused: Option<String>,
    /// When the messages were sent.
    pub sent_at: Timestamp,
    counted: bool,
    judged: bool,
}

/// What follows from evidence and the route's row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Decision {
    /// Dead tokens may be reported.
    Report,
    /// They were held, and the route is open: they are to be sent to again.
    SendAgain,
    /// They are held.
    Hold,
    /// This row is to be written; a row that brakes holds them too.
    Close(RouteRow),
}

/// What the answers of a page, to messages of a record written at `written_at`, lead to.
pub(super) fn decide_answers(
    evidence: &mut DeadTokenEvidence,
    written_at: Timestamp,
    route: &RouteRow,
    brake: &mut Brake,
    now: Timestamp,
) -> Decision {
    if evidence.held && route.state.sends() {
        return Decision::SendAgain;
    }
    if route.lets_pass(written_at) {
        return Decision::Report;
    }
    if !std::mem::replace(&mut evidence.counted, true) {
        brake.add(evidence.answered_at, evidence.counts);
    }
    let closes = match route.state {
        RouteState::Running | RouteState::Released => {
            // Only a release starts the count anew. If the braking did too, a handler that had read the route
            // just before would find no excess, and report its dead.
            brake.forget_before(route.since);
            brake.excess(now).map(|excess| braked(brake.describe(excess, "answers"), "delivery", now))
        }
        RouteState::Braked => {
            evidence.held = true;
            None
        }
        // Closed for another reason; opening it is no evidence for these tokens.
        RouteState::Paused | RouteState::Halted => {
            evidence.held |= brake.excess(now).is_some();
            None
        }
    };
    match closes {
        Some(row) => {
            evidence.held = true;
            Decision::Close(row)
        }
        None if evidence.held => Decision::Hold,
        None => Decision::Report,
    }
}

/// What the receipts of a batch lead to. Called again because a row could not be written, it counts them once
/// all the same; [`ReceiptEvidence::judged`] ends that.
pub(super) fn decide_receipts(
    evidence: &mut ReceiptEvidence,
    route: &RouteRow,
    brake: &mut Brake,
    now: Timestamp,
) -> Decision {
    if !evidence.judged {
        if let Some(row) = closed_by_receipts(evidence, route, brake, now) {
            return Decision::Close(row);
        }
        evidence.judged = true;
    }
    if route.state == RouteState::Braked && evidence.counts.dead > 0 {
        Decision::Hold
    } else {
        Decision::Report
    }
}

fn closed_by_receipts(
    evidence: &mut ReceiptEvidence,
    route: &RouteRow,
    brake: &mut Brake,
    now: Timestamp,
) -> Option<RouteRow> {
    if !route.state.sends() {
        return None;
    }
    if let Some(why) = evidence.credentials_refused.as_ref().filter(|_| route.since < evidence.sent_at) {
        return Some(RouteRow {
            state: RouteState::Halted,
            since: now,
            set_by: "receipts".to_owned(),
            detail: format!("Expo's receipts say that our credentials are refused: {why}"),
        });
    }
    if route.lets_pass(evidence.sent_at) {
        return None;
    }
    brake.forget_before(route.since);
    if !std::mem::replace(&mut evidence.counted, true) {
        brake.add(now, evidence.counts);
    }
    let excess = brake.excess(now)?;
    Some(braked(brake.describe(excess, "receipts"), "receipts", now))
}

fn braked(detail: String, set_by: &str, now: Timestamp) -> RouteRow {
    RouteRow { state: RouteState::Braked, since: now, set_by: set_by.to_owned(), detail }
}

// === impl DeadTokenEvidence ===

impl DeadTokenEvidence {
    /// The evidence of these outcomes.
    pub(super) fn of<'a>(
        outcomes: impl IntoIterator<Item = &'a MessageOutcome>,
        answered_at: Timestamp,
    ) -> Self {
        let mut counts = AnswerCounts::default();
        for outcome in outcomes {
            counts.answers += u64::from(!matches!(outcome, MessageOutcome::Expired));
            counts.dead += u64::from(is_dead(outcome));
        }
        Self { counts, answered_at, counted: false, held: false }
    }

    /// Whether the route's row matters: evidence without a dead token is counted, and closes nothing.
    pub(super) fn names_dead_tokens(&self) -> bool {
        self.counts.dead > 0
    }

    /// Counts evidence that names no dead token.
    pub(super) fn count(&self, brake: &mut Brake) {
        brake.add(self.answered_at, self.counts);
    }
}

/// Whether the answer was that the token is dead.
pub(super) fn is_dead(outcome: &MessageOutcome) -> bool {
    matches!(outcome, MessageOutcome::Dead { .. })
}

// === impl ReceiptEvidence ===

impl ReceiptEvidence {
    /// Evidence that no decision has seen.
    pub(super) fn new(counts: AnswerCounts, credentials_refused: Option<String>, sent_at: Timestamp) -> Self {
        Self { counts, credentials_refused, sent_at, counted: false, judged: false }
    }

    /// The row that closes the route is written: this evidence closes nothing again.
    pub(super) fn judged(&mut self) {
        self.judged = true;
    }
}

// === impl Brake ===

impl Brake {
    pub(super) fn new(thresholds: BrakeThresholds) -> Self {
        Self { thresholds, seconds: VecDeque::new() }
    }

    /// The excess as a sentence, for the route's row.
    fn describe(&self, excess: AnswerCounts, of: &str) -> String {
        format!(
            "{} of {} {of} in {:?} call the token dead",
            excess.dead, excess.answers, self.thresholds.window
        )
    }

    /// Where the window begins.
    fn from(&self, now: Timestamp) -> Timestamp {
        now.saturating_sub(self.thresholds.window).unwrap_or(Timestamp::MIN)
    }

    /// Adds a batch of answers.
    fn add(&mut self, now: Timestamp, counts: AnswerCounts) {
        self.forget_before(self.from(now));
        match self.seconds.back_mut() {
            Some((at, sum)) if at.as_second() == now.as_second() => {
                sum.answers += counts.answers;
                sum.dead += counts.dead;
            }
            _ => self.seconds.push_back((now, counts)),
        }
    }

    /// Forgets what came before `at`.
    fn forget_before(&mut self, at: Timestamp) {
        while self.seconds.front().is_some_and(|(first, _)| *first < at) {
            self.seconds.pop_front();
        }
    }

    /// The answers of the window, if more of them call the token dead than the thresholds allow.
    fn excess(&self, now: Timestamp) -> Option<AnswerCounts> {
        let from = self.from(now);
        let mut sum = AnswerCounts::default();
        for (_, one) in self.seconds.iter().filter(|(at, _)| *at >= from) {
            sum.answers += one.answers;
            sum.dead += one.dead;
        }
        let BrakeThresholds { dead_min, dead_percent, .. } = self.thresholds;
        (sum.dead >= dead_min && sum.dead * 100 > sum.answers * dead_percent).then_some(sum)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const THRESHOLDS: BrakeThresholds =
        BrakeThresholds { dead_min: 50, dead_percent: 30, window: Duration::from_secs(300) };

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    #[test]
    fn fifty_dead_and_more_than_thirty_percent_brake() {
        let brakes = |answers, dead| {
            let mut brake = Brake::new(THRESHOLDS);
            brake.add(at(0), AnswerCounts { answers, dead });
            brake.excess(at(0)).is_some()
        };
        assert!(brakes(50, 50));
        assert!(!brakes(49, 49));
        assert!(brakes(166, 50));
        assert!(!brakes(200, 60));
        assert!(brakes(200, 61));
    }

    #[test]
    fn a_deployment_may_set_other_thresholds() {
        let mut brake =
            Brake::new(BrakeThresholds { dead_min: 5, dead_percent: 60, window: Duration::from_secs(10) });
        brake.add(at(0), AnswerCounts { answers: 10, dead: 6 });
        assert_eq!(brake.excess(at(0)), None);
        brake.add(at(1), AnswerCounts { answers: 10, dead: 7 });
        let excess = brake.excess(at(2)).unwrap();
        assert_eq!(brake.describe(excess, "answers"), "13 of 20 answers in 10s call the token dead");
        assert_eq!(brake.excess(at(20)), None);
    }

    #[test]
    fn answers_older_than_five_minutes_do_not_count() {
        let mut brake = Brake::new(THRESHOLDS);
        brake.add(at(0), AnswerCounts { answers: 40, dead: 40 });
        brake.add(at(301), AnswerCounts { answers: 20, dead: 20 });
        assert_eq!(brake.excess(at(301)), None);
        brake.add(at(302), AnswerCounts { answers: 30, dead: 30 });
        assert_eq!(brake.excess(at(302)), Some(AnswerCounts { answers: 50, dead: 50 }));
    }

    #[test]
    fn after_a_release_nothing_from_before_counts() {
        let mut brake = Brake::new(THRESHOLDS);
        brake.add(at(0), AnswerCounts { answers: 60, dead: 60 });
        brake.forget_before(at(10));
        assert_eq!(brake.excess(at(10)), None);
    }

    fn route(state: RouteState, since: Timestamp) -> RouteRow {
        RouteRow { state, since, set_by: "ann".to_owned(), detail: String::new() }
    }

    fn evidence(sent: usize, dead: usize) -> DeadTokenEvidence {
        let sent = std::iter::repeat_n(MessageOutcome::Sent { ticket: None }, sent);
        let dead = std::iter::repeat_n(MessageOutcome::Dead { reason: "UNREGISTERED".to_owned() }, dead);
        DeadTokenEvidence::of(&sent.chain(dead).collect::<Vec<_>>(), at(100))
    }

    /// The decision for a page with so many dead tokens in this state of the route, and after the route has
    /// been opened.
    fn decided(state: RouteState, dead: usize) -> (Decision, Decision) {
        let mut brake = Brake::new(THRESHOLDS);
        let mut evidence = evidence(0, dead);
        let row = route(state, at(0));
        let first = decide_answers(&mut evidence, at(50), &row, &mut brake, at(100));
        let reopened = route(RouteState::Running, at(200));
        (first, decide_answers(&mut evidence, at(50), &reopened, &mut brake, at(201)))
    }

    #[test]
    fn a_few_dead_tokens_are_reported_whatever_the_route_but_a_braked_one() {
        for state in [RouteState::Running, RouteState::Released, RouteState::Paused, RouteState::Halted] {
            assert_eq!(decided(state, 10).0, Decision::Report, "{state:?}");
        }
        assert_eq!(decided(RouteState::Braked, 10), (Decision::Hold, Decision::SendAgain));
    }

    #[test]
    fn many_dead_tokens_brake_an_open_route_are_held_by_a_closed_one_and_sent_to_again() {
        let (closes, again) = decided(RouteState::Running, 60);
        let Decision::Close(row) = closes else { panic!("{closes:?}") };
        assert_eq!((row.state, row.set_by.as_str()), (RouteState::Braked, "delivery"));
        assert_eq!(row.detail, "60 of 60 answers in 300s call the token dead");
        assert_eq!(again, Decision::SendAgain);
        for state in [RouteState::Braked, RouteState::Paused, RouteState::Halted] {
            assert_eq!(decided(state, 60), (Decision::Hold, Decision::SendAgain), "{state:?}");
        }
    }

    #[test]
    fn what_was_written_before_a_release_is_reported() {
        let mut brake = Brake::new(THRESHOLDS);
        let released = route(RouteState::Released, at(60));
        let decision = decide_answers(&mut evidence(0, 60), at(50), &released, &mut brake, at(100));
        assert_eq!((decision, brake.excess(at(100))), (Decision::Report, None));
    }

    fn receipts(dead: u64, credentials_refused: Option<&str>) -> ReceiptEvidence {
        let counts = AnswerCounts { answers: dead + u64::from(credentials_refused.is_some()), dead };
        ReceiptEvidence::new(counts, credentials_refused.map(str::to_owned), at(50))
    }

    #[test]
    fn receipts_brake_an_open_route_wait_for_a_braked_one_and_pass_others() {
        let decide = |state| {
            let mut brake = Brake::new(THRESHOLDS);
            decide_receipts(&mut receipts(60, None), &route(state, at(0)), &mut brake, at(100))
        };
        assert!(
            matches!(decide(RouteState::Running), Decision::Close(row) if row.state == RouteState::Braked)
        );
        assert_eq!(decide(RouteState::Braked), Decision::Hold);
        assert_eq!(
            [decide(RouteState::Paused), decide(RouteState::Halted)],
            [Decision::Report, Decision::Report]
        );
    }

    #[test]
    fn refused_credentials_halt_the_route_unless_it_was_opened_after_the_messages() {
        let decide = |since| {
            let mut brake = Brake::new(THRESHOLDS);
            let row = route(RouteState::Running, since);
            decide_receipts(&mut receipts(0, Some("Bad key")), &row, &mut brake, at(100))
        };
        assert!(matches!(decide(at(0)), Decision::Close(row) if row.state == RouteState::Halted));
        assert_eq!(decide(at(51)), Decision::Report);
    }

    #[test]
    fn receipts_are_counted_once_however_often_the_row_can_not_be_written() {
        let mut brake = Brake::new(THRESHOLDS);
        let mut evidence = receipts(60, None);
        let running = route(RouteState::Running, at(0));
        for second in 100..105 {
            let decision = decide_receipts(&mut evidence, &running, &mut brake, at(second));
            let Decision::Close(row) = decision else { panic!("{decision:?}") };
            assert_eq!(row.detail, "60 of 60 receipts in 300s call the token dead");
        }
        evidence.judged();
        assert_eq!(decide_receipts(&mut evidence, &running, &mut brake, at(105)), Decision::Report);
    }
}
