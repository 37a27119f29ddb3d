//! `mingle serve` as a process, and a client that knows no more of HTTP than it needs.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use serde_json::Value;

use crate::peer::PATIENCE;

/// A server's process. Dropped, it is killed.
pub struct Served {
    process: Child,
    said: Receiver<Value>,
    /// `host:port`
    pub address: String,
}

/// What came back.
#[derive(Debug)]
pub struct Got {
    pub status: u16,
    /// In lower case.
    pub head: String,
    pub body: String,
}

impl Served {
    /// Starts the program with these arguments and waits until it answers.
    pub fn start<A: Into<OsString>>(program: &str, home: &Path, arguments: impl IntoIterator<Item = A>) -> Self {
        let mut command = Command::new(program);
        command.arg("serve").args(arguments.into_iter().map(Into::into)).args(["--listen", "127.0.0.1:0", "--json", "--home"]).arg(home);
        let command = command.env_remove("MINGLE_LOG").env_remove("MINGLE_TOKEN").stdin(Stdio::null()).stdout(Stdio::piped());
        let mut process = command.spawn().expect("the program can be started");
        let output = BufReader::new(process.stdout.take().expect("its output"));
        let (sender, said) = channel();
        std::thread::spawn(move || {
            let lines = output.lines().map_while(Result::ok).filter_map(|line| serde_json::from_str(&line).ok());
            lines.map_while(|event: Value| sender.send(event).ok()).for_each(drop);
        });
        let mut server = Self { process, said, address: String::new() };
        server.address = address_of(&server.next("serving"));
        server
    }

    /// The next event of a kind.
    #[track_caller]
    pub fn next(&self, kind: &str) -> Value {
        loop {
            let event = self.said.recv_timeout(PATIENCE).unwrap_or_else(|error| panic!("waited in vain for {kind}: {error}"));
            if event["event"] == kind {
                return event;
            }
        }
    }

    pub fn post(&self, path: &str, body: &Value) -> Got {
        post(&self.address, path, body)
    }

    pub fn get(&self, path: &str) -> Got {
        send(&self.address, "GET", path, "")
    }

    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// Its exit code, once it has ended by itself.
    #[track_caller]
    pub fn ended(&mut self) -> Option<i32> {
        crate::wait("the server to end", || self.process.try_wait().expect("the process can be asked")).code()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Where a server says that it answers.
pub fn address_of(event: &Value) -> String {
    let url = event["url"].as_str().expect("a URL");
    url.trim_start_matches("http://").trim_end_matches("/v1").to_owned()
}

pub fn post(address: &str, path: &str, body: &Value) -> Got {
    send(address, "POST", path, &body.to_string())
}

fn send(address: &str, method: &str, path: &str, body: &str) -> Got {
    let mut connection = TcpStream::connect(address).expect("a connection");
    connection.set_read_timeout(Some(Duration::from_secs(60))).expect("a patience");
    let head = format!("{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Type: application/json\r\n");
    write!(connection, "{head}Content-Length: {}\r\n\r\n{body}", body.len()).expect("a request that is taken");
    let mut all = Vec::new();
    connection.read_to_end(&mut all).expect("an answer");
    let end = all.windows(4).position(|four| four == b"\r\n\r\n").expect("a head");
    let head = String::from_utf8_lossy(&all[..end]).to_lowercase();
    let body = if head.contains("transfer-encoding: chunked") { unchunked(&all[end + 4..]) } else { all[end + 4..].to_vec() };
    Got { status: head[9..12].parse().expect("a status"), head, body: String::from_utf8(body).expect("text") }
}

fn unchunked(mut rest: &[u8]) -> Vec<u8> {
    let mut whole = Vec::new();
    while let Some(at) = rest.windows(2).position(|pair| pair == b"\r\n") {
        let size = String::from_utf8_lossy(&rest[..at]).into_owned();
        let size = usize::from_str_radix(size.trim(), 16).expect("a chunk's size");
        whole.extend_from_slice(&rest[at + 2..][..size]);
        rest = &rest[at + 2 + size + 2..];
    }
    whole
}

impl Got {
    /// The body of an answer that was right.
    #[track_caller]
    pub fn right(&self) -> Value {
        assert_eq!(self.status, 200, "{}", self.body);
        serde_json::from_str(&self.body).expect("JSON")
    }

    /// The error of one that was not.
    #[track_caller]
    pub fn wrong(&self, status: u16) -> Value {
        assert_eq!(self.status, status, "{}", self.body);
        serde_json::from_str::<Value>(&self.body).expect("JSON")["error"].clone()
    }

    /// The chunks of a stream, which ends as streams do.
    #[track_caller]
    pub fn chunks(&self) -> Vec<Value> {
        assert!(self.status == 200 && self.head.contains("text/event-stream"), "{self:?}");
        let mut data: Vec<&str> = self.body.split("\n\n").filter_map(|event| event.strip_prefix("data: ")).collect();
        assert_eq!(data.pop(), Some("[DONE]"));
        data.into_iter().map(|chunk| serde_json::from_str(chunk).expect("a chunk")).collect()
    }
}
