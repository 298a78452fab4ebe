//! How fast this instance may send, so that all instances together stay below the provider's limit in every
//! second.
//!
//! The limit is the deployment's. An instance's share follows from the partitions of the provider's bulk
//! topic that it owns, so that the shares add up to the limit without a count of instances. A share shrinks
//! at once, before the partitions are revoked, and grows a second after they are assigned: in the seconds in
//! between a part of the limit is used by no instance rather than by two.
//!
//! After a silence connections have to be opened, and messages that wait for them arrive together with the
//! next ones. So the rate is half in the first second.
//!
//! When the provider throttles all the same, the rate is halved, and then restored step by step.

use std::{num::NonZeroU32, time::Duration};

use governor::{
    Quota,
    clock::Clock,
    middleware::NoOpMiddleware,
    state::{InMemoryState, NotKeyed},
};
use tokio::time::Instant;

/// How long after its assignment an added share is used.
const GROWS_AFTER: Duration = Duration::from_secs(1);
/// The steps from zero to the full rate: a ramp-up adds them one by one, a throttled route loses half of
/// them.
const STEPS: u32 = 20;
/// How long each lost step takes at least to be restored: a minute from half the rate to all of it.
const RESTORE_EVERY: Duration = Duration::from_secs(6);
/// After this time without a message connections may be closed: a Node.js server closes them then, others
/// later.
const SILENCE: Duration = Duration::from_secs(5);
/// How long the rate is half after a silence. Enough for connections that take half of that to open.
const WARM_UP: Duration = Duration::from_secs(1);
/// Below this rate, in messages per second, there is no warm-up: one message has arrived before the next one
/// is sent.
const WARM_UP_FROM: f64 = 2.0;
/// The part of its share that an instance uses.
const USED: f64 = 0.98;
/// The part of the limit for the instances that own urgent partitions only. As these use 0.98 of it, all
/// together use 0.9996 of the limit at most.
const MARGIN: f64 = 0.02;

/// The part of a provider's partitions that an instance owns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// Bulk partitions owned.
    pub bulk: u32,
    /// Bulk partitions of the topic.
    pub bulk_of: u32,
    /// Urgent partitions owned.
    pub urgent: u32,
    /// Urgent partitions of the topic.
    pub urgent_of: u32,
}

/// What follows from a share.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Allowance {
    /// Steady rate, messages per second.
    pub rate: f64,
    /// Messages that may be sent at one moment.
    pub burst: u32,
}

/// The rate limiter of one provider.
#[derive(Debug)]
pub struct RateLimiter {
    limit: u32,
    share: Share,
    /// A greater share, and when it is used.
    grows: Option<(Instant, Share)>,
    /// Out of [`STEPS`].
    step: u32,
    next_step_at: Instant,
    step_every: Duration,
    /// When messages were last admitted.
    last: Option<Instant>,
    /// The rate is half until then.
    warm_at: Option<Instant>,
    limiter: Limiter,
}

type Governor = governor::RateLimiter<NotKeyed, InMemoryState, TokioClock, NoOpMiddleware<Duration>>;

#[derive(Debug)]
enum Limiter {
    Unlimited,
    Nothing,
    Limited {
        allowance: Allowance,
        /// The part of the allowance's rate that is used: less than 1 while connections warm up.
        part: f64,
        clock: TokioClock,
        governor: Box<Governor>,
    },
}

/// tokio's clock, so that tests can pause it.
#[derive(Clone, Debug)]
struct TokioClock(Instant);

// === impl Share ===

impl Share {
    /// Owns no partition.
    pub const NONE: Self = Self { bulk: 0, bulk_of: 1, urgent: 0, urgent_of: 1 };
    /// Owns all partitions: a single instance.
    pub const WHOLE: Self = Self { bulk: 1, bulk_of: 1, urgent: 1, urgent_of: 1 };

    /// The part of the deployment's limit that this instance may use. Instances that own urgent partitions
    /// only share the margin that [`Share::allowance`] leaves, by their partitions: with a hundredth of the
    /// limit for each, three of them exceeded 600/s in a simulation.
    pub fn fraction(self) -> f64 {
        if self.bulk > 0 {
            f64::from(self.bulk) / f64::from(self.bulk_of.max(1))
        } else {
            MARGIN * f64::from(self.urgent) / f64::from(self.urgent_of.max(1))
        }
    }

    /// What a share of `limit` messages per second allows. A burst of b at any moment and 0.98·s − b a second
    /// keep every window of one second at or below s, or at one message where s is less than that; a burst of
    /// at most a fiftieth of a second bounds what urgent messages wait for.
    pub fn allowance(self, limit: u32) -> Option<Allowance> {
        let s = f64::from(limit) * self.fraction();
        if s <= 0.0 {
            return None;
        }
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to 1..=100")]
        let burst = (s / 50.0).clamp(1.0, 100.0) as u32;
        // Near two messages a second a burst of one is most of the share. At half the share messages are a
        // second apart, or nearly.
        let rate = (USED * s - f64::from(burst)).max(s / 2.0);
        Some(Allowance { rate, burst })
    }
}

// === impl RateLimiter ===

impl RateLimiter {
    /// A rate limiter without a share: it admits nothing yet. `limit` in messages per second, 0 = no limit;
    /// the rate rises to it over `ramp_up`.
    pub fn new(limit: u32, ramp_up: Duration, now: Instant) -> Self {
        let (step, step_every) =
            if ramp_up.is_zero() { (STEPS, RESTORE_EVERY) } else { (1, ramp_up / STEPS) };
        Self {
            limit,
            share: Share::NONE,
            grows: None,
            step,
            next_step_at: now + step_every,
            step_every,
            last: None,
            warm_at: None,
            limiter: Limiter::Nothing,
        }
    }

    /// Changes the share: a smaller one counts at once, a greater one in a second.
    pub fn set_share(&mut self, share: Share, now: Instant) {
        if share.fraction() > self.share.fraction() {
            self.grows = Some((now + GROWS_AFTER, share));
        } else {
            self.grows = None;
            self.share = share;
            self.rebuild(now);
        }
    }

    /// Admits `n` messages, to be sent now.
    ///
    /// # Errors
    /// Not now: when to ask again; `None` = not before the share changes.
    pub fn admit(&mut self, n: usize, now: Instant) -> Result<(), Option<Instant>> {
        let later = self.grows.map(|(at, _)| at);
        match &self.limiter {
            Limiter::Unlimited => return Ok(()),
            Limiter::Nothing => return Err(later),
            Limiter::Limited { clock, governor, allowance, .. } => {
                let n = u32::try_from(n).ok().and_then(NonZeroU32::new).unwrap_or(NonZeroU32::MIN);
                debug_assert!(n.get() <= allowance.burst, "a request carries at most `batch_max` messages");
                match governor.check_n(n) {
                    Ok(Ok(())) => {}
                    Ok(Err(not_until)) => {
                        let at = now + not_until.wait_time_from(clock.now()).max(Duration::from_micros(100));
                        return Err([Some(at), self.warm_at, later].into_iter().flatten().min());
                    }
                    // More than the burst: not from our callers, which ask `batch_max` first. They are not
                    // sent, and ask again.
                    Err(_too_many) => return Err(Some(now + GROWS_AFTER)),
                }
            }
        }
        if self.last.replace(now).is_none_or(|last| now.duration_since(last) >= SILENCE) {
            self.warm_at = Some(now + WARM_UP);
            self.rebuild(now);
        }
        Ok(())
    }

    /// How many messages a request may carry now: the provider's maximum, or a part of the burst. Half of it
    /// while many request slots are free, because timers fire up to a millisecond late: with the other half
    /// left the next request makes up for it. The more of the slots are `busy` (0 to 1) the more, because a
    /// slow provider occupies them, and the size of requests then decides whether they suffice for the rate.
    /// Never all of it: what the burst gains in that millisecond would be lost.
    pub fn batch_max(&mut self, provider_max: usize, busy: f64, now: Instant) -> usize {
        self.advance(now);
        match &self.limiter {
            Limiter::Limited { allowance, .. } => {
                let burst = f64::from(allowance.burst);
                let half = (burst / 2.0).ceil();
                let most = half.max(burst - (allowance.rate / 1_000.0).ceil());
                #[expect(
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    reason = "from half the burst to all of it"
                )]
                let carried = (burst * busy).ceil().clamp(half, most) as usize;
                provider_max.min(carried)
            }
            Limiter::Unlimited | Limiter::Nothing => provider_max,
        }
    }

    /// Messages per second that this instance may send, except in the first second after a silence; infinite
    /// without a limit.
    pub fn rate(&self) -> f64 {
        match &self.limiter {
            Limiter::Unlimited => f64::INFINITY,
            Limiter::Nothing => 0.0,
            Limiter::Limited { allowance, .. } => allowance.rate,
        }
    }

    /// Applies a greater share and steps that are due.
    fn advance(&mut self, now: Instant) {
        if let Some((at, share)) = self.grows
            && at <= now
        {
            self.grows = None;
            self.share = share;
            self.rebuild(now);
        } else if self.take_due_steps(now) || self.warm_at.is_some_and(|at| at <= now) {
            self.rebuild(now);
        }
    }

    /// Takes the steps that are due. Returns whether there were any.
    fn take_due_steps(&mut self, now: Instant) -> bool {
        let before = self.step;
        while self.step < STEPS && self.next_step_at <= now {
            self.step += 1;
            self.next_step_at += self.step_every;
        }
        self.step > before
    }

    /// The provider throttles us: half of the rate from now on, restored step by step.
    pub fn halve(&mut self, now: Instant) {
        self.take_due_steps(now);
        self.step = (self.step / 2).max(1);
        self.step_every = self.step_every.max(RESTORE_EVERY);
        self.next_step_at = now + self.step_every;
        self.rebuild(now);
    }

    /// What was admitted last has not been sent after all: the silence goes on.
    pub fn not_sent(&mut self) {
        self.last = None;
    }

    /// Replaces the governor if its rate changes. A new one starts empty, because what the old one has
    /// admitted still counts in this second.
    fn rebuild(&mut self, now: Instant) {
        self.take_due_steps(now);
        self.warm_at = self.warm_at.filter(|&at| now < at);
        if self.share.fraction() <= 0.0 {
            self.limiter = Limiter::Nothing;
            return;
        }
        if self.limit == 0 {
            self.limiter = Limiter::Unlimited;
            return;
        }
        let stepped =
            Share { bulk: self.share.bulk * self.step, bulk_of: self.share.bulk_of * STEPS, ..self.share };
        let Some(allowance) = stepped.allowance(self.limit) else {
            self.limiter = Limiter::Nothing;
            return;
        };
        let part = if self.warm_at.is_some() && allowance.rate >= WARM_UP_FROM { 0.5 } else { 1.0 };
        // One that would not change is kept: emptied again and again it would admit nothing.
        let is_same = matches!(
            &self.limiter,
            Limiter::Limited { allowance: a, part: p, .. } if (*a, *p) == (allowance, part)
        );
        if !is_same {
            self.limiter = Limiter::limited(allowance, part, now);
        }
    }
}

// === impl Limiter ===

impl Limiter {
    fn limited(allowance: Allowance, part: f64, now: Instant) -> Self {
        let clock = TokioClock(now);
        let burst = NonZeroU32::new(allowance.burst).unwrap_or(NonZeroU32::MIN);
        let Some(quota) = Quota::with_period(Duration::from_secs_f64(1.0 / (allowance.rate * part))) else {
            return Self::Unlimited; // More than one message a nanosecond.
        };
        let governor = governor::RateLimiter::direct_with_clock(quota.allow_burst(burst), clock.clone());
        let _emptied = governor.check_n(burst);
        Self::Limited { allowance, part, clock, governor: Box::new(governor) }
    }
}

// === impl TokioClock ===

impl Clock for TokioClock {
    type Instant = Duration;

    fn now(&self) -> Duration {
        self.0.elapsed()
    }
}

#[cfg(test)]
mod tests;
