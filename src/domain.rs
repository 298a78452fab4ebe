//! The values of the service and their rules: everything that needs no clock, no network and no serialiser.
//!
//! **Invariant:** nothing here is `async`, reads a clock or knows a wire format.

mod broadcast;
mod dose;
mod event;
mod ids;
mod job;
pub mod limits;
mod notification;
mod outcome;
mod provider;
pub mod recurrence;
mod regimen;
pub mod template;
mod token;
mod version;

pub use jiff::Timestamp;

pub use self::{
    broadcast::{BroadcastState, Cursor, PartId, Plan, Progress, Slice, StopReason},
    dose::{DoseKey, DueRow},
    event::{
        DeadToken, DoseOutcome, Post, PostEvent, RegimenEvent, Report, Tick, Ticket, TicketBatch,
        UpstreamDose,
    },
    ids::{BroadcastId, DeviceId, NotificationId, PostId, ProfileId, RegimenId, UserId},
    job::{DoseJob, Job, ListJob, Listeners, SliceJob, Work},
    notification::{Data, DataValue, Lane, Notification},
    outcome::{Counts, Outcome},
    provider::ProviderId,
    regimen::{EveryDay, LocalTime, Regimen, Rule},
    token::{InvalidToken, Platform, Recipient, Registration, Token, TokenChange, TokenHash, TokenKind},
    version::{Judged, Version},
};
