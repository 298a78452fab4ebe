//! The driver alone: the same statements, whose answers are not evaluated.

use std::sync::Mutex;

use futures::{StreamExt, TryStreamExt, future::try_join, stream};
use pushcast::domain::Slice;
use scylla::{
    client::{session::Session, session_builder::SessionBuilder},
    response::PagingState,
    statement::prepared::PreparedStatement,
};

use crate::{
    cassandra::{PAGE, SLICES},
    child::{Figures, Meter, Task},
    tokens::{Names, State, version},
};

/// LOCAL_QUORUM is the driver's default.
async fn open(task: &Task) -> Session {
    SessionBuilder::new()
        .known_node(task.server().0)
        .use_keyspace(task.server().1, false)
        .build()
        .await
        .unwrap()
}

/// The statements of a registration, in their order.
struct Statements {
    user_hint: PreparedStatement,
    device_hint: PreparedStatement,
    token: PreparedStatement,
    put_token: PreparedStatement,
    device: PreparedStatement,
    deleted: PreparedStatement,
}

impl Statements {
    async fn of(session: &Session) -> Self {
        let prepare = async |text: &str| {
            let mut statement = session.prepare(text).await.unwrap();
            statement.set_is_idempotent(true);
            statement
        };
        Self {
            user_hint: prepare(
                "INSERT INTO tokens_by_user (user_id, push_token, ver) VALUES (?, ?, ?) USING TIMESTAMP ?",
            )
            .await,
            device_hint: prepare(
                "INSERT INTO tokens_by_device (device_id, push_token, ver) VALUES (?, ?, ?)
                 USING TIMESTAMP ?",
            )
            .await,
            token: prepare("SELECT st, seen_at FROM tokens WHERE push_token = ?").await,
            put_token: prepare("INSERT INTO tokens (push_token, st) VALUES (?, ?) USING TIMESTAMP ?").await,
            device: prepare("SELECT push_token, ver FROM tokens_by_device WHERE device_id = ?").await,
            deleted: prepare("SELECT ver FROM users_deleted WHERE user_id = ?").await,
        }
    }
}

pub async fn register(task: &Task) -> Figures {
    let session = open(task).await;
    let names = Names::new();
    let statements = Statements::of(&session).await;
    let mut meter = Meter::begin(task.number);
    let done = stream::iter(0..task.number).map(async |n| {
        let s = &statements;
        let session = &session;
        let version = version(n);
        let ver = version.as_i64();
        let token = names.token(n);
        let user = names.user(n);
        let device = names.device(n);
        let read = async |statement, key: &str| {
            let rows = session.execute_unpaged(statement, (key,)).await.unwrap().into_rows_result().unwrap();
            rows.rows_num()
        };
        let user_hint = session.execute_unpaged(&s.user_hint, (&user, &token, ver, ver));
        let device_hint = session.execute_unpaged(&s.device_hint, (&device, &token, ver, ver));
        try_join(user_hint, device_hint).await.unwrap();
        let before = read(&s.token, &token).await;
        session.execute_unpaged(&s.put_token, (&token, names.state(n, version), ver)).await.unwrap();
        let after = read(&s.token, &token).await;
        let (page, _) =
            session.execute_single_page(&s.device, (&device,), PagingState::start()).await.unwrap();
        let hints = page.into_rows_result().unwrap().rows_num();
        let rival = read(&s.token, &token).await;
        let deleted = read(&s.deleted, &user).await;
        assert_eq!((before, after, hints, rival, deleted), (0, 1, 1, 1, 0), "the rows that the store finds");
    });
    done.buffer_unordered(task.at_once).for_each(async |()| {}).await;
    meter.count(task.number);
    meter.end()
}

pub async fn scan(task: &Task) -> Figures {
    let session = open(task).await;
    let text = "SELECT token(push_token), push_token, st FROM tokens
                WHERE token(push_token) >= ? AND token(push_token) <= ?";
    let mut between = session.prepare(text).await.unwrap();
    between.set_page_size(i32::try_from(PAGE).unwrap());
    let meter = Mutex::new(Meter::begin(task.number));
    stream::iter(0..SLICES)
        .for_each_concurrent(task.at_once, async |index| {
            let pager =
                session.execute_iter(between.clone(), Slice { index, of: SLICES }.bounds()).await.unwrap();
            let mut rows = pager.rows_stream::<(i64, String, State)>().unwrap();
            while let Some((_, _, state)) = rows.try_next().await.unwrap() {
                meter.lock().unwrap().count(u64::from(state.active));
            }
        })
        .await;
    let meter = meter.into_inner().unwrap();
    assert_eq!(meter.done(), task.number, "each token is read once");
    meter.end()
}
