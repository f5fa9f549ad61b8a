//! The live view, by a client that writes its WebSocket frames itself.

use std::time::Duration;

use serde_json::{Value, json};
use throughline_tests::flow::{FlowServer, login, now};
use throughline_tests::prelude::*;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};

/// A reader of the live view.
pub(crate) struct Reader {
    stream: TcpStream,
}

impl Reader {
    /// Opens the view with further header lines; the status when it is refused.
    async fn open(server: &FlowServer, more: &str) -> Result<Reader, String> {
        // A small window, so that what is not read comes back to the server soon.
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        let mut stream = socket.connect(server.api).await.unwrap();
        let head = format!(
            "GET /api/v1/live HTTP/1.1\r\nHost: {}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{more}\r\n",
            server.api
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            answer.push(within("the answer to an upgrade", stream.read_u8()).await.unwrap());
        }
        let answer = String::from_utf8(answer).unwrap();
        let status = answer.split(' ').nth(1).unwrap().to_owned();
        if status != "101" {
            return Err(status);
        }
        assert!(
            answer.to_ascii_lowercase().contains("sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo="),
            "{answer}"
        );
        Ok(Reader { stream })
    }

    async fn subscribed(server: &FlowServer, filters: Value) -> Reader {
        let mut reader = Reader::open(server, "").await.unwrap();
        reader.send(&json!({ "type": "subscribe", "filters": filters }).to_string()).await;
        // The server has no answer to a subscription: a ping behind it is answered when it has been taken.
        reader.frame(9, b"taken").await;
        loop {
            let (kind, payload) = reader.next().await;
            if kind == 10 && payload == b"taken" {
                return reader;
            }
        }
    }

    async fn send(&mut self, text: &str) {
        self.frame(1, text.as_bytes()).await;
    }

    async fn frame(&mut self, kind: u8, payload: &[u8]) {
        let mask = [1, 2, 3, 4];
        let length = u16::try_from(payload.len()).unwrap();
        let mut frame = vec![0x80 | kind];
        if length < 126 {
            frame.push(0x80 | u8::try_from(length).unwrap());
        } else {
            frame.push(0x80 | 126);
            frame.extend(length.to_be_bytes());
        }
        frame.extend(mask);
        frame.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
        self.stream.write_all(&frame).await.unwrap();
    }

    /// Kind and payload of the next frame.
    async fn next(&mut self) -> (u8, Vec<u8>) {
        within("a frame", async {
            let kind = self.stream.read_u8().await.unwrap() & 15;
            let length = match self.stream.read_u8().await.unwrap() & 127 {
                126 => u64::from(self.stream.read_u16().await.unwrap()),
                127 => self.stream.read_u64().await.unwrap(),
                short => u64::from(short),
            };
            let mut payload = vec![0; usize::try_from(length).unwrap()];
            self.stream.read_exact(&mut payload).await.unwrap();
            (kind, payload)
        })
        .await
    }

    async fn text(&mut self) -> String {
        loop {
            let (kind, payload) = self.next().await;
            if kind == 1 {
                return String::from_utf8(payload).unwrap();
            }
            assert!(kind != 8, "closed: {}", String::from_utf8_lossy(&payload));
        }
    }

    async fn message(&mut self) -> Value {
        serde_json::from_str(&self.text().await).unwrap()
    }
}

/// What a reader is told of one login, from its start to its end.
pub(crate) async fn messages_of_a_login(server: &FlowServer) -> Vec<String> {
    let mut reader = Reader::subscribed(server, json!({ "operation": "login" })).await;
    server.send(&login(99, now())).await;
    let mut messages = Vec::new();
    loop {
        let text = reader.text().await;
        let done = text.contains("flow_complete");
        messages.push(text);
        if done {
            return messages;
        }
    }
}

#[tokio::test]
async fn a_flow_is_told_while_it_happens_to_those_who_asked_for_it() {
    let server = FlowServer::start().await;
    let mut logins =
        Reader::subscribed(&server, json!({ "operation": "login", "environment": "production" })).await;
    let mut others = Reader::subscribed(&server, json!({ "operation": "browse" })).await;
    let mut whole = login(7, now());
    let late = whole.resource_spans.pop().unwrap();
    server.send(&whole).await;
    let start = logins.message().await;
    assert_eq!(start["type"], "flow_start");
    for (key, expected) in [
        ("flowId", json!(format!("flow-{}", "07".repeat(16)))),
        ("operationName", json!("login")),
        ("currentService", json!("web")),
        ("elapsedTime", json!(150.0)),
    ] {
        assert_eq!(start["data"][key], expected, "{key}");
    }
    server.send(&throughline_tests::flow::export(vec![late])).await;
    assert_eq!(logins.message().await["type"], "flow_update");
    let complete = logins.message().await;
    assert_eq!((&complete["type"], &complete["data"]["progress"]), (&json!("flow_complete"), &json!(100)));
    assert_eq!(complete["data"]["spanCount"], 3);
    // Had the other one been told anything, it would come before the answer to this.
    others.send("{\"type\":\"hello\"}").await;
    let complaint = others.message().await;
    assert_eq!(complaint["type"], "error");
    assert!(complaint["data"]["message"].as_str().unwrap().starts_with("want {"), "{complaint}");
}

#[tokio::test]
async fn pages_of_other_origins_may_not_look() {
    let server = FlowServer::start().await;
    assert_eq!(
        Reader::open(&server, "Origin: http://evil.example.com\r\n").await.err().as_deref(),
        Some("403")
    );
    let own = format!("Origin: http://{}\r\n", server.api);
    assert!(Reader::open(&server, &own).await.is_ok());
}

#[tokio::test]
async fn a_reader_that_does_not_read_is_let_go_and_a_hundred_others_are_told() {
    let server = FlowServer::start().await;
    let _stuck = Reader::subscribed(&server, json!({})).await;
    let mut readers = Vec::new();
    for _ in 0..100 {
        readers.push(Reader::subscribed(&server, json!({ "operation": "login" })).await);
    }
    assert_eq!(server.counted("throughline_flow_live_readers").await, 101.0);
    server.send(&login(7, now())).await;
    for reader in &mut readers {
        assert_eq!(reader.message().await["type"], "flow_start");
    }
    drop(readers);
    let mut noise = 0_u8;
    eventually("the stuck reader to be let go", || {
        noise = noise.wrapping_add(1);
        let server = &server;
        let resource_spans = (0..=255_u8)
            .flat_map(|trace| {
                let mut sent = login(trace, now());
                for spans in &mut sent.resource_spans {
                    for span in spans.scope_spans.iter_mut().flat_map(|scope| &mut scope.spans) {
                        span.trace_id = [vec![trace, noise], vec![9; 14]].concat();
                        span.status = Some(opentelemetry_proto::tonic::trace::v1::Status {
                            code: 2,
                            message: String::new(),
                        });
                    }
                }
                sent.resource_spans
            })
            .collect();
        async move {
            server.send(&throughline_tests::flow::export(resource_spans)).await;
            tokio::time::sleep(Duration::from_millis(20)).await;
            let dropped = server.counted("throughline_flow_live_dropped_total").await;
            let left = server.counted("throughline_flow_live_readers").await;
            (dropped > 0.0 || left == 0.0).then_some(())
        }
    })
    .await;
    // And whoever comes now is served.
    let mut reader = Reader::subscribed(&server, json!({ "operation": "login" })).await;
    assert!(reader.message().await["type"].is_string());
}
