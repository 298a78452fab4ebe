//! A broadcast and the parts it is cut into.

use super::{BroadcastId, Counts, ProviderId, Token};

/// What was decided once about a broadcast. The first plan stands: a replay does not change it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Text and audience, in a format of the stages' own; the store does not parse it.
    pub spec: String,
    /// How many parts it has, over all providers.
    pub parts: u32,
}

/// The state of a broadcast. It only moves forward.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BroadcastState {
    /// Being sent.
    Planned,
    /// No further page is begun.
    Stopped {
        /// Why.
        reason: StopReason,
    },
    /// Every part is done and the total is published.
    Done,
}

/// Why a broadcast was stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// Upstream or an operator cancelled it.
    Cancelled,
    /// A provider refuses its payload, for every token.
    Refused,
    /// A reason that this release does not know, as the store holds it.
    Other(String),
}

/// Names one part.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PartId {
    /// The broadcast that it belongs to.
    pub broadcast: BroadcastId,
    /// The provider that it is sent through.
    pub provider: ProviderId,
    /// Its number, from 0.
    pub part: u32,
}

/// A piece of the token ring; all are equal where `of` is a power of two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Slice {
    /// Its number, from 0.
    pub index: u32,
    /// How many slices the ring is cut into.
    pub of: u32,
}

/// How far a part is. For a slice the position of the last token, for a list the number of users done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cursor(pub i64);

/// The progress row of a part.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Fences off earlier owners: each new owner raises it, and a write with a lower one is lost.
    pub epoch: i32,
    /// Everything up to here has its outcome, but for what is open; `None` = nothing yet.
    pub cursor: Option<Cursor>,
    /// Tokens before the cursor that have no outcome yet: they are sent to first. Rarely any, and of one page
    /// at most.
    pub open: Vec<Token>,
    /// Whether nothing more is to be sent of the part.
    pub done: bool,
    /// The outcomes so far.
    pub counts: Counts,
}

// === impl StopReason ===

impl StopReason {
    /// The text that the store keeps and operators read.
    pub fn label(&self) -> &str {
        match self {
            Self::Cancelled => "cancelled",
            Self::Refused => "refused",
            Self::Other(label) => label,
        }
    }

    /// The reason of that text.
    pub fn from_label(label: &str) -> Self {
        match label {
            "cancelled" => Self::Cancelled,
            "refused" => Self::Refused,
            other => Self::Other(other.to_owned()),
        }
    }
}

// === impl Slice ===

impl Slice {
    /// First and last position of the slice, both included. A slice that does not exist (`index` is not below
    /// `of`) holds nothing: its last position lies before its first.
    pub fn bounds(self) -> (i64, i64) {
        const RING: i128 = 1 << 64;
        if self.index >= self.of {
            return (i64::MAX, i64::MIN);
        }
        let border = |index: u32| i128::from(i64::MIN) + i128::from(index) * RING / i128::from(self.of);
        // Position i64::MIN belongs to no token: the ring of the CQL partitioner leaves it out.
        let low = border(self.index).max(i128::from(i64::MIN) + 1);
        let high = border(self.index + 1) - 1;
        #[expect(clippy::expect_used, reason = "index < of keeps both within 64 bits")]
        let position = |wide: i128| i64::try_from(wide).expect("a slice lies on the ring");
        (position(low), position(high))
    }

    /// What is left of it behind a cursor: first and last position, both included. `None` = nothing.
    pub fn after(self, cursor: Option<Cursor>) -> Option<(i64, i64)> {
        let (low, high) = self.bounds();
        let first = cursor.map_or(low, |Cursor(done)| low.max(done.saturating_add(1)));
        let is_done = cursor.is_some_and(|Cursor(done)| done >= high);
        (first <= high && !is_done).then_some((first, high))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_reads_back_from_its_text_and_an_unknown_text_is_kept() {
        for reason in [StopReason::Cancelled, StopReason::Refused, StopReason::Other("moved".to_owned())] {
            assert_eq!(StopReason::from_label(reason.label()), reason);
        }
    }

    #[test]
    fn the_slices_cover_the_ring_without_gap_or_overlap() {
        for of in [1, 2, 3, 64, 1000, 1024] {
            let bounds: Vec<_> = (0..of).map(|index| Slice { index, of }.bounds()).collect();
            assert_eq!(bounds[0].0, i64::MIN + 1);
            assert_eq!(bounds[of as usize - 1].1, i64::MAX);
            assert!(bounds.windows(2).all(|pair| pair[0].1 + 1 == pair[1].0));
        }
    }

    #[test]
    fn a_slice_that_does_not_exist_holds_nothing() {
        for (index, of) in [(0, 0), (1, 1), (64, 64), (u32::MAX, u32::MAX)] {
            let (low, high) = Slice { index, of }.bounds();
            assert!(low > high, "{index} of {of}");
        }
    }

    #[test]
    fn behind_a_cursor_lies_the_rest_of_the_slice_and_behind_its_end_nothing() {
        let whole = Slice { index: 0, of: 1 };
        assert_eq!(whole.after(None), Some((i64::MIN + 1, i64::MAX)));
        assert_eq!(whole.after(Some(Cursor(i64::MIN))), whole.after(None));
        assert_eq!(whole.after(Some(Cursor(7))), Some((8, i64::MAX)));
        assert_eq!(whole.after(Some(Cursor(i64::MAX - 1))), Some((i64::MAX, i64::MAX)));
        assert_eq!(whole.after(Some(Cursor(i64::MAX))), None);
        assert_eq!(Slice { index: 1, of: 1 }.after(None), None);
    }

    #[test]
    fn the_finest_slices_lie_on_the_ring() {
        let of = u32::MAX;
        assert_eq!(Slice { index: 0, of }.bounds().0, i64::MIN + 1);
        assert_eq!(Slice { index: of - 1, of }.bounds().1, i64::MAX);
    }
}
