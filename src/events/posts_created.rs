//! `posts-created`: a post, or that it was cancelled.

use schemars::{JsonSchema, Schema, schema_for};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::{
    Unreadable,
    fields::{self, Id, Text},
    json,
};
use crate::domain::{Post, PostEvent, PostId, UserId, limits::AUDIENCE_USERS_MAX};

/// Reads a record.
///
/// # Errors
/// The record is neither a post nor a cancellation.
pub fn read(_key: Option<&[u8]>, value: Option<&[u8]>) -> Result<PostEvent, Unreadable> {
    match json::event_of(value)?.as_deref() {
        None | Some("posted") => json::object::<Posted>(value)?.post().map(PostEvent::Posted),
        Some("cancelled") => {
            let Cancelled { post_id } = json::object(value)?;
            Ok(PostEvent::Cancelled(PostId::new(post_id.0)))
        }
        Some(event) => Err(json::unknown_event(event, "posted, cancelled")),
    }
}

pub(super) fn schema() -> Schema {
    schema_for!(Event)
}

/// A post that users are notified of. Every name may be written in snake_case too.
#[derive(JsonSchema)]
#[schemars(tag = "event", rename_all = "camelCase", transform = json::first_event_by_default)]
#[expect(dead_code, reason = "only for the schema: `read` chooses the object by `event`")]
enum Event {
    /// A new post.
    Posted(Posted),
    /// The post was withdrawn: what has not been sent yet is not sent.
    Cancelled(Cancelled),
}

#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", expecting = "an object")]
struct Posted {
    /// The same post twice is one broadcast.
    #[serde(alias = "post_id")]
    post_id: Id,
    /// The author, who is not notified.
    #[serde(default, alias = "author_id", deserialize_with = "fields::optional")]
    author_id: Option<Id>,
    #[serde(default, alias = "author_name", deserialize_with = "fields::optional")]
    author_name: Option<Text>,
    #[serde(default, deserialize_with = "fields::optional")]
    title: Option<Text>,
    #[serde(default, deserialize_with = "fields::optional")]
    body: Option<Text>,
    /// What the app receives beside the text; wins over the `post_id` and `screen` that pushcast adds.
    #[serde(default, deserialize_with = "fields::object")]
    data: Map<String, Value>,
    /// Absent = all users but the author.
    #[serde(default)]
    audience: Option<Audience>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(expecting = "an object")]
struct Audience {
    /// The users who are notified.
    #[schemars(length(max = AUDIENCE_USERS_MAX))]
    users: Vec<Id>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", expecting = "an object")]
struct Cancelled {
    /// The post that was withdrawn.
    #[serde(alias = "post_id")]
    post_id: Id,
}

impl Posted {
    fn post(self) -> Result<Post, Unreadable> {
        let audience = self.audience.map(|audience| audience.users);
        if let Some(users) = audience.as_ref().filter(|users| users.len() > AUDIENCE_USERS_MAX) {
            return Err(json::invalid(
                "audience.users",
                format_args!("{} users, at most {AUDIENCE_USERS_MAX} are allowed", users.len()),
            ));
        }
        Ok(Post {
            id: PostId::new(self.post_id.0),
            author: self.author_id.map(|id| UserId::new(id.0)),
            author_name: self.author_name.map(|text| text.0),
            title: self.title.map(|text| text.0),
            body: self.body.map(|text| text.0),
            data: fields::data_of(self.data),
            audience: audience.map(|users| users.into_iter().map(|id| UserId::new(id.0)).collect()),
        })
    }
}
