//! The names of the topics, and of the headers that are read.

/// Events of device tokens.
pub const DEVICE_TOKENS: &str = "device-tokens";
/// Posts, and their cancellation.
pub const POSTS_CREATED: &str = "posts-created";
/// Regimens as they now are.
pub const MEDICATION_REGIMENS: &str = "medication-regimens";
/// Clock ticks, shards' ticks, doses that upstream found due.
pub const MEDICATION_TICKS: &str = "medication-ticks";
/// Doses to send through Expo.
pub const PUSH_EXPO_URGENT: &str = "push.expo.urgent";
/// Broadcasts to send through Expo.
pub const PUSH_EXPO_BULK: &str = "push.expo.bulk";
/// Doses to send through FCM.
pub const PUSH_FCM_URGENT: &str = "push.fcm.urgent";
/// Broadcasts to send through FCM.
pub const PUSH_FCM_BULK: &str = "push.fcm.bulk";
/// Tickets whose receipts are asked for later.
pub const EXPO_RECEIPTS: &str = "expo-receipts";
/// Dead tokens.
pub const INVALID_TOKENS: &str = "invalid-tokens";
/// Outcomes of notifications.
pub const PUSH_OUTCOMES: &str = "push-outcomes";
/// Records that could not be handled.
pub const DEAD_LETTERS: &str = "dead-letters";

/// All of them, in the order in which they are created and listed.
pub const ALL: [&str; 12] = [
    DEVICE_TOKENS,
    POSTS_CREATED,
    MEDICATION_REGIMENS,
    MEDICATION_TICKS,
    PUSH_EXPO_URGENT,
    PUSH_EXPO_BULK,
    PUSH_FCM_URGENT,
    PUSH_FCM_BULK,
    EXPO_RECEIPTS,
    INVALID_TOKENS,
    PUSH_OUTCOMES,
    DEAD_LETTERS,
];

/// Header of a replayed record: when the original was written, in milliseconds since 1970. With
/// [`ORIGIN_OFFSET`] it gives the record its original's version, so that a replayed login does not take a
/// token away from a later user.
pub const ORIGIN_TIMESTAMP: &str = "pushcast.origin.timestamp";
/// Header of a replayed record: the original's offset.
pub const ORIGIN_OFFSET: &str = "pushcast.origin.offset";
