//! Plans a broadcast for each post, and produces its parts for delivery.
//!
//! The first plan counts: text, audience and providers are decided once and kept in the broadcast's row. The
//! parts are always produced from the stored plan, however often the record comes, because a crash may have
//! come between the row and the last of its parts. A part that arrives twice finds its progress row and is
//! not sent twice.
//!
//! A post whose parts are produced again after the broadcast was done costs a read of each part's row; that
//! is accepted.

use std::{collections::HashSet, sync::Arc, time::Duration};

use consumer::{Cause, Fate, Handler, HandlerError, Message, OrderingKey, Publish, Record, Rejected};
use futures::{StreamExt as _, TryStreamExt as _};
use serde::Deserialize;
use tokio_util::sync::CancellationToken;

use crate::{
    domain::{
        BroadcastId, Counts, Data, Job, ListJob, Listeners, Notification, Plan, Post, PostEvent, ProviderId,
        Report, Slice, SliceJob, StopReason, Timestamp, UserId, Work,
        limits::{self, LIST_USERS_MAX},
        template::{self, TemplateValue},
    },
    events::{
        broadcast_specs::{self, Audience, Spec},
        jobs, posts_created, push_outcomes, topics,
    },
    store::Broadcasts,
};

/// How many parts are on their way to Kafka at once.
const PARTS_IN_FLIGHT: usize = 64;

/// `[posts]` of config/default.toml.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "config/default.toml is the manual")]
pub struct Settings {
    pub slices: u32,
    pub include_anonymous: bool,
    pub title: String,
    pub body: String,
    pub screen: String,
    pub sound: String,
    pub channel: String,
}

/// What a broadcast's plan depends on beside the post.
#[derive(Clone, Debug)]
pub struct PlanRules {
    /// `[posts]`.
    pub settings: Settings,
    /// The providers that are configured.
    pub providers: Vec<ProviderId>,
    /// How long a broadcast is worth sending, from the post's record on.
    pub bulk_life: Duration,
    /// How many partitions a bulk topic has.
    pub partitions: u32,
}

/// The stage of `posts-created`.
#[derive(Debug)]
pub struct Posts<S, P> {
    store: S,
    publish: P,
    rules: Arc<PlanRules>,
}

impl<S: Broadcasts, P: Publish> Posts<S, P> {
    /// Plans by `rules`, in `store`, and produces the parts through `publish`.
    pub fn new(store: S, publish: P, rules: PlanRules) -> Self {
        Self { store, publish, rules: Arc::new(rules) }
    }

    async fn broadcast(
        &self,
        post: &Post,
        posted_at: Timestamp,
        now: Timestamp,
    ) -> Result<Fate, HandlerError> {
        let id = BroadcastId::of_post(&post.id);
        let spec = plan(post, &id, posted_at.min(now), &self.rules);
        let planned = self
            .store
            .plan(&id, &Plan { spec: broadcast_specs::write(&spec), parts: parts(&spec) }, now)
            .await?;
        let spec = match broadcast_specs::read(&planned.spec) {
            Ok(spec) => spec,
            Err(err) => {
                return Ok(Fate::DeadLetter(Cause::invalid(format_args!(
                    "the plan of {id} can't be read: {err}"
                ))));
            }
        };
        if planned.parts == 0 {
            // There is no last part to finish it, so it ends here.
            self.publish.publish(report_without_parts(&id, &spec)).await?;
            self.store.close(&id).await?;
            tracing::info!(broadcast.id = %id, "Broadcast {id} has no recipients");
            return Ok(Fate::Done);
        }
        futures::stream::iter(part_jobs(&id, &spec))
            .map(|job| Ok(message(&job, self.rules.partitions)))
            .try_for_each_concurrent(PARTS_IN_FLIGHT, |message| self.publish.publish(message))
            .await?;
        tracing::info!(
            broadcast.id = %id,
            parts = planned.parts,
            "Broadcast {id} is planned in {} parts",
            planned.parts
        );
        Ok(Fate::Done)
    }
}

impl<S: Broadcasts, P: Publish> Handler for Posts<S, P> {
    type Event = PostEvent;

    fn read(&self, record: &Record) -> Result<PostEvent, Rejected> {
        Ok(posts_created::read(record.key.as_deref(), record.value.as_deref())?)
    }

    /// A post and its cancelling keep their order.
    fn key(&self, event: &PostEvent) -> Option<OrderingKey> {
        Some(OrderingKey::of(match event {
            PostEvent::Posted(post) => post.id.as_str(),
            PostEvent::Cancelled(id) => id.as_str(),
        }))
    }

    async fn handle(
        &self,
        event: PostEvent,
        record: &Record,
        _: &CancellationToken,
    ) -> Result<Fate, HandlerError> {
        match event {
            PostEvent::Posted(post) => self.broadcast(&post, record.timestamp, Timestamp::now()).await,
            PostEvent::Cancelled(post) => {
                let id = BroadcastId::of_post(&post);
                self.store.stop(&id, &StopReason::Cancelled).await?;
                tracing::info!(broadcast.id = %id, "Broadcast {id} is cancelled");
                Ok(Fate::Done)
            }
        }
    }
}

// === What is planned ===

/// The broadcast that a post causes.
fn plan(post: &Post, id: &BroadcastId, posted_at: Timestamp, rules: &PlanRules) -> Spec {
    let PlanRules { settings, providers, bulk_life, .. } = rules;
    let audience = match &post.audience {
        Some(users) => Audience::Users(each_once(users, post.author.as_ref())),
        None => Audience::Everybody {
            slices: settings.slices,
            exclude: post.author.clone(),
            include_anonymous: settings.include_anonymous,
        },
    };
    let notification = Notification {
        id: id.notification(),
        title: shortened(render(&settings.title, post), limits::POST_TITLE_BYTES_MAX),
        body: shortened(render(&settings.body, post), limits::POST_BODY_BYTES_MAX),
        data: data(post, &settings.screen),
        sound: (!settings.sound.is_empty()).then(|| settings.sound.clone()),
        channel: settings.channel.clone(),
        expires_at: posted_at.saturating_add(*bulk_life).unwrap_or(Timestamp::MAX),
    };
    Spec { notification, audience, providers: providers.clone(), posted_at }
}

fn each_once(users: &[UserId], author: Option<&UserId>) -> Vec<UserId> {
    let mut listed: HashSet<&UserId> = author.into_iter().collect();
    users.iter().filter(|user| listed.insert(user)).cloned().collect()
}

/// What the app needs to open the post; the post's own data goes over it.
fn data(post: &Post, screen: &str) -> Data {
    let mut data = Data::new();
    data.insert("post_id".to_owned(), post.id.as_str().into());
    data.insert("screen".to_owned(), screen.into());
    data.extend(post.data.clone());
    data
}

/// How many parts a plan has, over all providers.
fn parts(spec: &Spec) -> u32 {
    let of_one = match &spec.audience {
        Audience::Everybody { slices, .. } => *slices,
        Audience::Users(users) => u32::try_from(users.len().div_ceil(LIST_USERS_MAX)).unwrap_or(u32::MAX),
    };
    let providers = u32::try_from(spec.providers.len()).unwrap_or(u32::MAX);
    of_one.saturating_mul(providers)
}

/// The parts of a plan. Providers alternate, so that none waits for the other's last part.
fn part_jobs<'a>(id: &'a BroadcastId, spec: &'a Spec) -> Box<dyn Iterator<Item = Job> + Send + 'a> {
    let works: Box<dyn Iterator<Item = Work> + Send + 'a> = match &spec.audience {
        Audience::Everybody { slices, exclude, include_anonymous } => Box::new((0..*slices).map(|index| {
            let to = Listeners { exclude: exclude.clone(), include_anonymous: *include_anonymous };
            Work::Slice(SliceJob { broadcast: id.clone(), slice: Slice { index, of: *slices }, to })
        })),
        Audience::Users(users) => {
            Box::new((0..).zip(users.chunks(LIST_USERS_MAX)).map(|(part, users)| {
                Work::List(ListJob { broadcast: id.clone(), part, users: users.to_vec() })
            }))
        }
    };
    Box::new(works.flat_map(move |work| {
        spec.providers.iter().map(move |provider| Job {
            provider: *provider,
            notification: spec.notification.clone(),
            work: work.clone(),
        })
    }))
}

/// A part as a record. Slices are spread over the partitions, so that work, partitions and rate share agree;
/// lists are partitioned by key.
fn message(job: &Job, partitions: u32) -> Message {
    let partition = match &job.work {
        Work::Slice(slice) => i32::try_from(slice.slice.index % partitions.max(1)).ok(),
        Work::List(_) | Work::Dose(_) => None,
    };
    let message = Message::new(jobs::topic(job.provider, job.work.lane()), jobs::key(job), jobs::write(job));
    Message { partition, ..message }
}

/// The outcome of a broadcast without parts; the same content whenever it is published again.
fn report_without_parts(id: &BroadcastId, spec: &Spec) -> Message {
    let report =
        Report::Broadcast { notification: id.notification(), counts: Counts::default(), at: spec.posted_at };
    Message::new(topics::PUSH_OUTCOMES, id.as_str().to_owned(), push_outcomes::write(&report))
}

// === Its text ===

/// A template with the post's fields in it.
fn render(template: &str, post: &Post) -> String {
    template::fill(template, |name| value(name, post)).trim().to_owned()
}

fn value<'a>(name: &str, post: &'a Post) -> TemplateValue<'a> {
    let value = match name {
        "author_name" => post.author_name.as_deref(),
        "title" => post.title.as_deref(),
        "body" => post.body.as_deref(),
        "post_id" => Some(post.id.as_str()),
        "author_id" => post.author.as_ref().map(UserId::as_str),
        _ => return TemplateValue::Unknown,
    };
    value.map_or(TemplateValue::Absent, TemplateValue::Text)
}

/// Cut where a character ends, and marked as cut.
fn shortened(mut text: String, bytes_max: usize) -> String {
    const MARK: char = '…';
    if text.len() > bytes_max {
        text.truncate(text.floor_char_boundary(bytes_max - MARK.len_utf8()));
        text.push(MARK);
    }
    text
}

#[cfg(test)]
mod tests;
