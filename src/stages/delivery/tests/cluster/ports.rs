//! The ports of delivery over the cluster, with the latency and the defects of a [`ClusterClient`].

use std::time::Duration;

use consumer::{Message, Publish, PublishError, Unavailable};
use tokio::time::Instant;

use super::{CasRow, Cluster, ClusterClient, Defect, DoseRow, PartRow, StoreResult};
use crate::{
    domain::{
        BroadcastId, BroadcastState, Counts, Cursor, DoseKey, DueRow, Judged, Listeners, PartId, Plan,
        Progress, ProviderId, Regimen, RegimenId, Registration, Slice, StopReason, Timestamp, Token,
        TokenChange, TokenHash, UserId, Version,
    },
    events::topics,
    stages::delivery::reminder,
    store::{
        Audience, Broadcasts, Census, Checkpoint, Claim, Claimed, DoseMark, Doses, Lease, Marked, Page,
        Registry, RouteRow, Routes, Shard, Store, TokenRow, Total, Watermark, Watermarks,
        cql::{claim, part},
    },
};

/// How long a mark may take, read back and repeated, for the margin of a lease to hold.
const MARK_WITHIN: Duration = Duration::from_secs(9);

impl Broadcasts for ClusterClient {
    async fn plan(&self, _: &BroadcastId, _: &Plan, _: Timestamp) -> StoreResult<Plan> {
        unreachable!("delivery plans nothing")
    }

    async fn broadcast(&self, _: &BroadcastId) -> StoreResult<(Option<Plan>, Option<BroadcastState>)> {
        let read = |cluster: &mut Cluster| {
            let parts = u32::try_from(cluster.audiences.len()).unwrap();
            (Some(Plan { spec: String::new(), parts }), Some(cluster.state.clone()))
        };
        Ok(self.call(read).await)
    }

    async fn stop(&self, _: &BroadcastId, _: &StopReason) -> StoreResult<()> {
        unreachable!("no test stops the broadcast")
    }

    async fn close(&self, _: &BroadcastId) -> StoreResult<()> {
        self.call(|cluster| cluster.state = BroadcastState::Done).await;
        Ok(())
    }

    async fn take_over(&self, part: &PartId) -> StoreResult<Progress> {
        if self.lost().contains(&part.part) {
            return Ok(Progress { done: true, ..Progress::default() });
        }
        part::take_over(&PartRow(self, part.part), "take a part over").await
    }

    async fn checkpoint(&self, part: &PartId, progress: &Progress) -> StoreResult<Checkpoint> {
        let checkpoint =
            part::checkpoint(&PartRow(self, part.part), progress, "record a part's progress").await?;
        if checkpoint == Checkpoint::Lost && self.has(Defect::LostPartIsSettled) {
            self.lost().insert(part.part);
        }
        Ok(checkpoint)
    }

    async fn finish_part(&self, part: &PartId) -> StoreResult<u32> {
        if self.lost().remove(&part.part) {
            return Ok(0);
        }
        let before = self.call(|cluster| cluster.finished.len()).await;
        self.call(|cluster| cluster.finished.insert(part.part)).await;
        let finished = self.call(|cluster| cluster.finished.len()).await;
        Ok(u32::try_from(if self.has(Defect::FinishedReadFirst) { before } else { finished }).unwrap())
    }

    async fn progress(&self, _: &PartId) -> StoreResult<Option<Progress>> {
        unreachable!("delivery reads progress by taking a part over")
    }

    async fn total(&self, _: &BroadcastId, now: Timestamp) -> StoreResult<Total> {
        let closed_before = self.has(Defect::ClosedBeforeTotal);
        let beside = self.has(Defect::CountsBesideCheckpoint);
        let sum = |cluster: &mut Cluster| {
            if closed_before {
                cluster.state = BroadcastState::Done;
            }
            let mut counts = Counts::default();
            cluster.parts.values().filter_map(|row| row.value.as_ref()).for_each(|row| counts += row.counts);
            if beside {
                counts = Counts { sent: cluster.counted_beside, ..Counts::default() };
            }
            Total { counts, at: *cluster.total_at.get_or_insert(now) }
        };
        Ok(self.call(sum).await)
    }
}

impl Audience for ClusterClient {
    async fn page_of_slice(
        &self,
        _: ProviderId,
        slice: Slice,
        _: &Listeners,
        after: Option<Cursor>,
        limit: usize,
    ) -> StoreResult<Page> {
        let is_split = self.has(Defect::PositionSplit);
        let checkpoint_before_page = self.has(Defect::CheckpointBeforePage);
        let read = |cluster: &mut Cluster| {
            let audience = &cluster.audiences[slice.index as usize];
            let rest = audience.iter().filter(|(position, _)| after.is_none_or(|after| *position > after));
            let rest: Vec<(Cursor, Registration)> = rest.cloned().collect();
            let last = rest.get(limit - 1).map(|(position, _)| *position);
            let len = if is_split {
                limit.min(rest.len())
            } else {
                rest.partition_point(|(position, _)| last.is_none_or(|last| *position <= last))
            };
            let end = rest[..len].last().map(|(position, _)| *position).or(after).unwrap_or(Cursor(0));
            if let Some(CasRow { value: Some(row), .. }) =
                cluster.parts.get_mut(&slice.index).filter(|_| checkpoint_before_page)
            {
                row.cursor = row.cursor.max(Some(end));
            }
            let is_last = len == rest.len();
            let (positions, recipients) = rest
                .into_iter()
                .take(len)
                .map(|(position, registration)| (position, registration.into()))
                .unzip();
            Page { recipients, positions, end, last: is_last }
        };
        Ok(self.call(read).await)
    }
}

impl Doses for ClusterClient {
    async fn claim(&self, _: &DoseKey, owner: &str, now: Timestamp, until: Timestamp) -> StoreResult<Claim> {
        let asked_at = self.now();
        let lease = until.duration_since(now);
        let until = asked_at + lease;
        let process = format!("process {}", self.process);
        let owner = if self.has(Defect::OwnerIsTheProcess) { &process } else { owner };
        let now = if self.has(Defect::LeaseNotAwaited) { until + lease } else { asked_at };
        let extra = match self.defect {
            Defect::NoDeadline => Duration::from_secs(60 * 60),
            Defect::NoMargin => reminder::MARGIN,
            _ => Duration::ZERO,
        };
        Ok(match claim::claim(&DoseRow(self), owner, now, until, "claim a dose").await? {
            Claim::Mine(lease) => {
                Claim::Mine(Lease { until: self.on_the_test_clock(lease.until) + extra, ..lease })
            }
            Claim::Held(until) => Claim::Held(self.on_the_test_clock(until)),
            marked @ Claim::Marked(_) => marked,
        })
    }

    async fn claimed(&self, _: &DoseKey) -> StoreResult<Option<Claimed>> {
        unreachable!("only an operator asks for that")
    }

    async fn mark(&self, _: &DoseKey, lease: &Lease, mark: &DoseMark) -> StoreResult<Marked> {
        let started_at = Instant::now();
        let marked = claim::mark(&DoseRow(self), lease, mark, "mark a dose").await;
        self.cluster().slow_marks += usize::from(started_at.elapsed() > MARK_WITHIN);
        marked
    }

    async fn put_regimen(&self, _: &RegimenId, _: Option<&Regimen>, _: Version) -> StoreResult<()> {
        unreachable!("delivery knows no regimen")
    }

    async fn regimen(&self, _: &RegimenId) -> StoreResult<Option<Regimen>> {
        unreachable!("delivery knows no regimen")
    }

    async fn regimens(&self, _: Option<&RegimenId>, _: usize) -> StoreResult<Vec<(RegimenId, Regimen)>> {
        unreachable!("delivery knows no regimen")
    }

    async fn insert_due(&self, _: Shard, _: &DueRow) -> StoreResult<()> {
        unreachable!("delivery knows no due row")
    }

    async fn due_rows(
        &self,
        _: Shard,
        _: Timestamp,
        _: Timestamp,
        _: Option<&DueRow>,
        _: usize,
    ) -> StoreResult<Vec<DueRow>> {
        unreachable!("delivery knows no due row")
    }

    async fn marks(&self, _: Shard) -> StoreResult<Watermarks> {
        unreachable!("delivery knows no shard")
    }

    async fn init_marks(&self, _: Timestamp) -> StoreResult<()> {
        unreachable!("delivery knows no shard")
    }

    async fn raise(&self, _: Shard, _: Watermark, _: Timestamp) -> StoreResult<()> {
        unreachable!("delivery knows no shard")
    }
}

impl Registry for ClusterClient {
    async fn tokens_of(&self, _: &UserId) -> StoreResult<Vec<Registration>> {
        Ok(self.call(|cluster| cluster.devices.clone()).await)
    }

    async fn apply(&self, _: &TokenChange, _: Version) -> StoreResult<()> {
        unreachable!("delivery applies nothing")
    }

    async fn revoke(&self, _: &Token, _: Judged, _: &str) -> StoreResult<bool> {
        unreachable!("delivery revokes nothing")
    }

    async fn inspect(&self, token: &Token) -> StoreResult<Option<TokenRow>> {
        let row = |cluster: &mut Cluster| {
            let found = cluster
                .audiences
                .iter()
                .flatten()
                .find(|(_, registration)| registration.token == *token)?
                .1
                .clone();
            let token = found.token.clone();
            let version = found.version;
            Some(TokenRow {
                token,
                version,
                registration: Some(found),
                reason: None,
                created_at: None,
                seen_at: None,
            })
        };
        Ok(self.call(row).await)
    }

    async fn inspect_hash(&self, _: TokenHash) -> StoreResult<Option<TokenRow>> {
        unreachable!("delivery inspects nothing")
    }

    async fn census(&self) -> StoreResult<Vec<Census>> {
        unreachable!("delivery counts no tokens")
    }
}

impl Routes for ClusterClient {
    async fn route(&self, _: ProviderId) -> StoreResult<RouteRow> {
        self.may_fail(|cluster| cluster.route_unavailable).await?;
        Ok(self.call(|cluster| cluster.route.clone()).await)
    }

    async fn set_route(&self, _: ProviderId, route: &RouteRow) -> StoreResult<()> {
        self.may_fail(|cluster| cluster.route_unavailable).await?;
        self.call(|cluster| cluster.route = route.clone()).await;
        Ok(())
    }
}

impl Store for ClusterClient {
    async fn ping(&self) -> StoreResult<()> {
        unreachable!("delivery does not ping")
    }
}

impl Publish for ClusterClient {
    async fn publish(&self, message: Message) -> Result<(), PublishError> {
        if let Err(error) = self.may_fail(|cluster| cluster.kafka_unavailable).await {
            return Err(Unavailable::kafka("publishing", error).into());
        }
        let keep = |cluster: &mut Cluster| {
            if message.topic == topics::PUSH_OUTCOMES {
                cluster.outcomes.push(String::from_utf8(message.value.unwrap_or_default()).unwrap());
            }
        };
        self.call(keep).await;
        Ok(())
    }
}
