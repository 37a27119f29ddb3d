//! Requests over a real connection, answered by a base of drawn numbers whose tokens are bytes.

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::*;
use crate::engine::Limits;
use crate::shelf::Kind;
use crate::speech::{ChatLayout, testing};
use crate::token::Token;

struct Running {
    address: std::net::SocketAddr,
    shelf: Arc<Shelf>,
    _folder: TempDir,
}

async fn start(token: Option<&str>, limits: Limits) -> Running {
    let (folder, base) = testing::base();
    let shelf = Arc::new(Shelf::default());
    shelf.put(Kind::Base, "base", base.decoder());
    let listener = crate::bind(([127, 0, 0, 1], 0).into()).unwrap();
    let address = listener.local_addr().unwrap();
    let access = Access::new(address, token.map(|token| Token::new(token, "a test").unwrap())).unwrap();
    let speech = Speech::read(folder.path(), base.config(), ChatLayout::Template).unwrap();
    let server = Server { shelf: shelf.clone(), speech, access, limits };
    tokio::spawn(server.run(listener, std::future::pending()));
    Running { address, shelf, _folder: folder }
}

/// Status, headers in lower case, and the body without the borders of its chunks.
struct Got {
    status: u16,
    head: String,
    body: String,
}

impl Got {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }

    /// The data of server-sent events.
    fn events(&self) -> Vec<String> {
        assert!(self.head.contains("content-type: text/event-stream"), "{}", self.head);
        self.body.split("\n\n").filter_map(|event| event.strip_prefix("data: ")).map(str::to_owned).collect()
    }

    #[track_caller]
    fn refused(&self, status: u16, code: Value, part: &str) {
        let error = self.json()["error"].clone();
        assert_eq!((self.status, &error["code"]), (status, &code), "{error}");
        assert!(error["message"].as_str().unwrap().contains(part), "{error}");
        assert!(error["type"].is_string());
    }
}

fn unchunked(body: &[u8]) -> Vec<u8> {
    let (mut rest, mut whole) = (body, Vec::new());
    while let Some(at) = rest.windows(2).position(|pair| pair == b"\r\n") {
        let size = usize::from_str_radix(std::str::from_utf8(&rest[..at]).unwrap().trim(), 16).unwrap();
        whole.extend_from_slice(&rest[at + 2..][..size]);
        rest = &rest[at + 2 + size + 2..];
    }
    whole
}

impl Running {
    async fn send(&self, method: &str, path: &str, headers: &str, body: &str) -> Got {
        let mut connection = TcpStream::connect(self.address).await.unwrap();
        let head = format!("{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n{headers}", self.address);
        let head = format!("{head}Content-Type: application/json\r\nContent-Length: {}\r\n\r\n", body.len());
        let sent = async {
            connection.write_all(head.as_bytes()).await?;
            connection.write_all(body.as_bytes()).await
        };
        // A server may answer before it has heard all.
        let _ = sent.await;
        let mut all = Vec::new();
        let _ = connection.read_to_end(&mut all).await;
        let end = all.windows(4).position(|four| four == b"\r\n\r\n").expect("a head");
        let head = String::from_utf8_lossy(&all[..end]).to_lowercase();
        let body = match head.contains("transfer-encoding: chunked") {
            true => unchunked(&all[end + 4..]),
            false => all[end + 4..].to_vec(),
        };
        Got { status: head[9..12].parse().unwrap(), head, body: String::from_utf8(body).unwrap() }
    }

    async fn get(&self, path: &str) -> Got {
        self.send("GET", path, "", "").await
    }

    async fn post(&self, path: &str, body: Value) -> Got {
        self.send("POST", path, "", &body.to_string()).await
    }
}

#[tokio::test]
async fn models_are_listed_and_found_by_name() {
    let server = start(None, Limits::default()).await;
    assert_eq!(server.get("/health").await.json(), json!({ "status": "ok" }));
    let models = server.get("/v1/models").await.json();
    assert_eq!(models["data"][0]["id"], "base");
    assert_eq!(server.get("/v1/models/base").await.json()["fingerprint"], "base");
    server.get("/v1/models/merged").await.refused(404, "model_not_found".into(), "there is no model \"merged\"; there is base");
    let asked = json!({ "model": "gpt-4", "prompt": "x" });
    server.post("/v1/completions", asked).await.refused(404, "model_not_found".into(), "there is base");
    server.get("/v1/files").await.refused(404, "unknown_url".into(), "no GET /v1/files");
    server.get("/v1/completions").await.refused(405, serde_json::Value::Null, "/v1/completions is not to be asked by GET");
    server.shelf.remove(Kind::Base);
    server.post("/v1/completions", json!({ "prompt": "x" })).await.refused(404, "model_not_found".into(), "none is there yet");
}

#[tokio::test]
async fn fields_that_cannot_be_are_named() {
    let server = start(None, Limits { streams: 1, waiting: 3 }).await;
    for (field, value, status, part) in [
        ("temperature", json!(-1), 400, "temperature is -1, but must be a number from 0 to 2"),
        ("temperature", json!("hot"), 400, "temperature is \"hot\""),
        ("top_p", json!(1.5), 400, "from 0 to 1"),
        ("max_tokens", json!(0), 400, "whole number from 1 on"),
        ("max_tokens", json!(1000), 400, "context ends at 128"),
        ("n", json!(0), 400, "whole number from 1 to 128"),
        ("n", json!(5), 400, "4 places are all there are"),
        ("best_of", json!(3), 400, "best_of other than n"),
        ("stop", json!([1]), 400, "stop must be a string"),
        ("seed", json!("x"), 400, "seed is \"x\""),
        ("stream", json!(1), 400, "must be true or false"),
        ("stream_options", json!({ "include_usage": true }), 400, "for streams only"),
        ("logprobs", json!(50), 400, "from 0 to 20"),
        ("logit_bias", json!({ "a": 1 }), 400, "logit_bias must be"),
        ("echo", json!(true), 400, "echo is not done here"),
        ("suffix", json!("x"), 400, "suffix is not done here"),
        ("response_format", json!({ "type": "json_object" }), 400, "only text"),
        ("prompt", json!([300]), 400, "token 300 lies outside the vocabulary of 258"),
        ("prompt", json!(["a", 3]), 400, "a list of either"),
        ("prompt", json!([]), 400, "a prompt is empty"),
        ("prompt", json!("long ".repeat(50)), 400, "251 tokens, but the model's context ends at 128"),
        ("prompt", json!(null), 400, "prompt must be"),
    ] {
        let mut asked = json!({ "prompt": "x" });
        asked[field] = value;
        let got = server.post("/v1/completions", asked).await;
        let error = got.json()["error"].clone();
        assert!(got.status == status && error["message"].as_str().unwrap().contains(part), "{field}: {error}");
        let named = if part.contains("context ends") { "prompt" } else { field };
        assert_eq!(error["param"], named, "{error}");
    }
    let chat = |messages: Value| json!({ "messages": messages });
    for (messages, part) in [
        (json!([]), "one message at least"),
        (json!([{ "content": "x" }]), "no role"),
        (json!([{ "role": "tool", "content": "x" }]), "role \"tool\""),
        (json!([{ "role": "user", "content": [{ "type": "image_url" }] }]), "only text"),
    ] {
        server.post("/v1/chat/completions", chat(messages)).await.refused(400, "invalid_value".into(), part);
    }
    let mut tools = chat(json!([{ "role": "user", "content": "x" }]));
    tools["tools"] = json!([{ "type": "function" }]);
    server.post("/v1/chat/completions", tools).await.refused(400, "unsupported_parameter".into(), "tools");
    server.send("POST", "/v1/completions", "", "{").await.refused(400, Value::Null, "not JSON");
    server.send("POST", "/v1/completions", "", &" ".repeat(BODY_BYTES_MAX + 1)).await.refused(413, Value::Null, "longer than");
    // What is not known and what says nothing is passed over.
    let asked = json!({ "prompt": "x", "user": "me", "echo": false, "suffix": null, "metadata": {}, "frobnicate": 3 });
    assert_eq!(server.post("/v1/completions", asked).await.status, 200);
}

#[tokio::test]
async fn streams_say_what_whole_answers_say() {
    let server = start(None, Limits::default()).await;
    let asked = json!({ "model": "base", "prompt": "Once", "max_tokens": 24, "seed": 5, "ignore_eos": true, "logprobs": 2, "n": 2 });
    let whole = server.post("/v1/completions", asked.clone()).await;
    assert!(whole.head.contains("x-mingle-fingerprint: base") && whole.head.contains("x-mingle-model: base"));
    let whole = whole.json();
    assert_eq!((whole["object"].as_str(), whole["system_fingerprint"].as_str()), (Some("text_completion"), Some("base")));
    assert_eq!(whole["usage"], json!({ "prompt_tokens": 5, "completion_tokens": 48, "total_tokens": 53 }));
    assert_ne!(whole["choices"][0]["text"], whole["choices"][1]["text"], "each answer draws by a seed of its own");
    let again = server.post("/v1/completions", asked.clone()).await.json();
    assert_eq!(whole["choices"], again["choices"], "the same seed gives the same answers");
    let mut streamed = asked;
    streamed["stream"] = true.into();
    streamed["stream_options"] = json!({ "include_usage": true });
    let mut events = server.post("/v1/completions", streamed).await.events();
    assert_eq!(events.pop().as_deref(), Some("[DONE]"));
    let mut chunks: Vec<Value> = events.iter().map(|event| serde_json::from_str(event).unwrap()).collect();
    let last = chunks.pop().unwrap();
    assert_eq!((&last["usage"], &last["choices"]), (&whole["usage"], &json!([])));
    for index in 0..2 {
        let mine: Vec<&Value> = chunks.iter().map(|chunk| &chunk["choices"][0]).filter(|choice| choice["index"] == index).collect();
        let text: String = mine.iter().map(|choice| choice["text"].as_str().unwrap()).collect();
        let expected = &whole["choices"][index];
        assert_eq!(text, expected["text"]);
        assert_eq!(mine.last().unwrap()["finish_reason"], expected["finish_reason"]);
        assert!(chunks.iter().all(|chunk| chunk["usage"].is_null() && chunk["id"] == chunks[0]["id"]));
        for list in ["tokens", "token_logprobs", "text_offset", "top_logprobs"] {
            let parts = mine.iter().filter_map(|choice| choice["logprobs"][list].as_array()).flatten();
            assert_eq!(parts.collect::<Vec<_>>(), expected["logprobs"][list].as_array().unwrap().iter().collect::<Vec<_>>());
        }
        assert_eq!(expected["logprobs"]["tokens"].as_array().unwrap().len(), 24);
        assert!(expected["logprobs"]["token_logprobs"].as_array().unwrap().iter().all(|logprob| logprob.as_f64().unwrap() < 0.0));
    }
}

#[tokio::test]
async fn chats_have_their_own_shape_and_stops_are_never_shown() {
    let server = start(None, Limits::default()).await;
    let asked = |more: Value| {
        let mut asked = json!({ "messages": [{ "role": "user", "content": [{ "type": "text", "text": "Hi" }] }], "temperature": 0,
            "max_completion_tokens": 30, "ignore_eos": true });
        more.as_object().unwrap().iter().for_each(|(name, value)| asked[name] = value.clone());
        asked
    };
    let whole = server.post("/v1/chat/completions", asked(json!({ "logprobs": true, "top_logprobs": 3 }))).await.json();
    let text = whole["choices"][0]["message"]["content"].as_str().unwrap().to_owned();
    assert_eq!((&whole["object"], &whole["choices"][0]["finish_reason"]), (&json!("chat.completion"), &json!("length")));
    assert_eq!(whole["choices"][0]["message"]["role"], "assistant");
    let told = whole["choices"][0]["logprobs"]["content"].as_array().unwrap();
    assert_eq!((told.len(), told[0]["top_logprobs"].as_array().unwrap().len()), (30, 3));
    assert_eq!(told[0]["token"], told[0]["top_logprobs"][0]["token"], "the likeliest was taken");
    // Each answer stops before a text from its own midst, of several tokens.
    let characters: Vec<char> = text.chars().collect();
    let stop: String = characters[characters.len() / 2..].iter().take(3).collect();
    let before = text.split(&stop).next().unwrap();
    let stopped = server.post("/v1/chat/completions", asked(json!({ "stop": [stop] }))).await.json();
    assert_eq!(
        (stopped["choices"][0]["message"]["content"].as_str(), stopped["choices"][0]["finish_reason"].as_str()),
        (Some(before), Some("stop"))
    );
    assert!(stopped["usage"]["completion_tokens"].as_u64().unwrap() < 30);
    let events = server.post("/v1/chat/completions", asked(json!({ "stop": stop, "stream": true }))).await.events();
    let chunks: Vec<Value> = events.iter().filter(|event| *event != "[DONE]").map(|event| serde_json::from_str(event).unwrap()).collect();
    assert_eq!(chunks[0]["choices"][0]["delta"], json!({ "role": "assistant", "content": "" }));
    let said: String = chunks.iter().filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(said, before);
    assert_eq!(chunks.last().unwrap()["choices"][0]["finish_reason"], "stop");
    assert!(chunks.iter().all(|chunk| chunk["object"] == "chat.completion.chunk" && chunk.get("usage").is_none()));
}

#[tokio::test]
async fn who_is_too_many_is_told_so_and_who_leaves_makes_room() {
    let server = start(None, Limits { streams: 1, waiting: 1 }).await;
    let long = json!({ "prompt": "x", "max_tokens": 100, "stream": true, "ignore_eos": true }).to_string();
    let request = format!("POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n{long}", long.len());
    let asked = json!({ "prompt": "x", "max_tokens": 1 });
    // Over and over, because each is done soon: at some time both places are taken.
    for _ in 0..200 {
        let mut connections = Vec::new();
        for _ in 0..2 {
            let mut connection = TcpStream::connect(server.address).await.unwrap();
            connection.write_all(request.as_bytes()).await.unwrap();
            connections.push(connection);
        }
        let got = server.post("/v1/completions", asked.clone()).await;
        drop(connections);
        if got.status == 429 {
            got.refused(429, "rate_limit_exceeded".into(), "try again");
            assert!(got.head.contains("retry-after: 1"));
            for _ in 0..500 {
                if server.post("/v1/completions", asked.clone()).await.status == 200 {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            panic!("no place is free again");
        }
    }
    panic!("nobody was refused");
}

#[tokio::test]
async fn a_token_is_asked_for_where_there_is_one() {
    let server = start(Some("0123456789abcdef"), Limits::default()).await;
    let got = server.get("/v1/models").await;
    got.refused(401, "invalid_api_key".into(), "Authorization: Bearer");
    assert!(got.head.contains("www-authenticate: bearer"));
    assert_eq!(server.send("GET", "/v1/models", "Authorization: Bearer 0123456789abcdef\r\n", "").await.status, 200);
    assert_eq!(server.get("/health").await.status, 200);
    let open = start(None, Limits::default()).await;
    let got = open.send("GET", "/v1/models", "Origin: https://evil.example\r\n", "").await;
    got.refused(403, Value::Null, "other sites' pages");
}
