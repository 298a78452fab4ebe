//! A cluster that requires a login: the errors when that of `store.url` is missing or wrong.
//!
//! The server of the tests requires none, so a fake node implements the protocol up to the end of the login.
//! Apache Cassandra 5 with PasswordAuthenticator, tried by hand, led to the same errors.

use pushcast::store::{
    Cluster, Login, Settings,
    cql::{CqlOpenError, CqlStore},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

/// Frames of the protocol's version 4.
const ERROR: u8 = 0x00;
const STARTUP: u8 = 0x01;
const AUTHENTICATE: u8 = 0x03;
const OPTIONS: u8 = 0x05;
const SUPPORTED: u8 = 0x06;
const AUTH_RESPONSE: u8 = 0x0f;
const BAD_CREDENTIALS: i32 = 0x0100;

const REFUSAL: &str = "Provided username ada and/or password are incorrect";

/// Starts a node that refuses every login; returns its address.
async fn node_that_refuses_logins(tasks: &mut JoinSet<()>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            connections.spawn(refuse(stream));
        }
    });
    address
}

async fn refuse(mut stream: TcpStream) {
    let mut header = [0; 9];
    while stream.read_exact(&mut header).await.is_ok() {
        let [_, _, stream_1, stream_2, opcode, length @ ..] = header;
        let mut body = vec![0; u32::from_be_bytes(length) as usize];
        stream.read_exact(&mut body).await.unwrap();
        let (opcode, body) = match opcode {
            OPTIONS => (SUPPORTED, vec![0, 0]),
            STARTUP => (AUTHENTICATE, text("org.apache.cassandra.auth.PasswordAuthenticator")),
            AUTH_RESPONSE => (ERROR, [&BAD_CREDENTIALS.to_be_bytes()[..], &text(REFUSAL)].concat()),
            other => panic!("frame {other:#x} before the login"),
        };
        let header =
            [&[0x84, 0, stream_1, stream_2, opcode][..], &u32::try_from(body.len()).unwrap().to_be_bytes()]
                .concat();
        if stream.write_all(&[header, body].concat()).await.is_err() {
            return;
        }
    }
}

fn text(text: &str) -> Vec<u8> {
    [&u16::try_from(text.len()).unwrap().to_be_bytes()[..], text.as_bytes()].concat()
}

async fn refusal(login: Option<Login>) -> CqlOpenError {
    let mut tasks = JoinSet::new();
    let nodes = vec![node_that_refuses_logins(&mut tasks).await];
    let cluster = Cluster { nodes, login, keyspace: "push".to_owned() };
    CqlStore::open(&cluster, &Settings::default()).await.err().expect("every login is refused")
}

#[tokio::test]
async fn a_missing_login_is_reported() {
    let refusal = refusal(None).await;
    assert!(matches!(refusal, CqlOpenError::NoLogin), "{refusal:?}");
    assert!(refusal.to_string().contains("scylla://user:password@"), "{refusal}");
}

#[tokio::test]
async fn a_wrong_login_is_reported_without_its_password() {
    let login = Login { user: "ada".to_owned(), password: "S3CRET".to_owned().into() };
    let refusal = refusal(Some(login)).await;
    assert!(matches!(&refusal, CqlOpenError::WrongLogin { message } if message == REFUSAL), "{refusal:?}");
    let text = refusal.to_string();
    assert!(
        text.contains("user or the password of store.url")
            && !format!("{text} {refusal:?}").contains("S3CRET"),
        "{text}"
    );
}
