//! An HTTP client by hand: what goes over the socket is what is written here.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Instant;

use serde_json::Value;

use crate::peer::PATIENCE;

/// What came back.
pub struct Answer {
    pub code: u16,
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Answer {
    /// Empty where it is not there.
    pub fn header(&self, name: &str) -> &str {
        self.headers.iter().find(|(header, _)| header == name).map_or("", |(_, value)| value)
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }
}

/// Sends a request as it stands, and leaves the connection where the body begins.
pub fn send(port: u16, request: &str) -> (BufReader<TcpStream>, u16, Vec<(String, String)>) {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("the port is open");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    stream.write_all(request.as_bytes()).expect("sent");
    let mut reader = BufReader::new(stream);
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).expect("an answer");
        if line.trim().is_empty() {
            break;
        }
        lines.push(line.trim().to_owned());
    }
    let code = lines[0].split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status code");
    let header = |line: &String| line.split_once(':').map(|(name, value)| (name.to_lowercase(), value.trim().to_owned()));
    (reader, code, lines[1..].iter().filter_map(header).collect())
}

/// A question with headers of the caller's own, each with its line's end.
pub fn ask_with(port: u16, method: &str, path: &str, headers: &str) -> Answer {
    let (mut reader, code, headers) = send(port, &format!("{method} {path} HTTP/1.1\r\n{headers}Connection: close\r\n\r\n"));
    let mut body = String::new();
    reader.read_to_string(&mut body).expect("a body");
    Answer { code, headers, body }
}

/// A question as this machine's browser asks it.
pub fn ask(port: u16, path: &str) -> Answer {
    ask_with(port, "GET", path, &format!("Host: localhost:{port}\r\n"))
}

/// An open stream of events.
pub struct Stream {
    reader: BufReader<TcpStream>,
    text: String,
}

impl Stream {
    pub fn open(port: u16, path: &str) -> Self {
        let (reader, code, headers) = send(port, &format!("GET {path} HTTP/1.1\r\nHost: localhost:{port}\r\n\r\n"));
        assert_eq!(code, 200);
        assert!(headers.contains(&("content-type".into(), "text/event-stream".into())), "{headers:?}");
        Self { reader, text: String::new() }
    }

    /// The next event, as its name and what it holds.
    pub fn next_told(&mut self) -> (String, Value) {
        loop {
            if let Some((event, rest)) = self.text.split_once("\n\n") {
                let of = |name: &str| event.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
                let told = of("event:").zip(of("data:")).map(|(name, data)| (name.to_owned(), serde_json::from_str(data).expect("JSON")));
                self.text = rest.to_owned();
                match told {
                    Some(told) => return told,
                    None => continue,
                }
            }
            let mut size = String::new();
            self.reader.read_line(&mut size).expect("a chunk");
            let mut chunk = vec![0; usize::from_str_radix(size.trim(), 16).expect("a size") + 2];
            self.reader.read_exact(&mut chunk).expect("a chunk");
            self.text += std::str::from_utf8(&chunk[..chunk.len() - 2]).expect("text");
        }
    }

    /// The first of this name that is as wanted.
    pub fn until(&mut self, name: &str, found: impl Fn(&Value) -> bool) -> Value {
        let began = Instant::now();
        loop {
            assert!(began.elapsed() < PATIENCE, "waited in vain for {name}");
            let (told, value) = self.next_told();
            if told == name && found(&value) {
                return value;
            }
        }
    }
}
