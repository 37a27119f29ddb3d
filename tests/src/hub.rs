//! A hub on this machine, for one model: what huggingface.co does with a request, over a folder's files.
//!
//! Large files lie behind a redirection to a store of another name, with their SHA-256 as their tag, as there. It can
//! break connections, send wrong bytes and ask for a token.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use futures_rustls::rustls::{ServerConfig, ServerConnection, StreamOwned, crypto};
use sha2::{Digest, Sha256};

/// The commit that all its files are of.
pub const COMMIT: &str = "1a2b3c4d5e6f708192a3b4c5d6e7f8091a2b3c4d";
/// Files from here on lie in the store.
const LARGE: usize = 4096;

/// What it does otherwise than a good hub.
#[derive(Clone, Default)]
pub struct Manners {
    /// Bytes after which a connection to the store breaks.
    pub break_after: Option<usize>,
    /// The store sends other bytes than the hub promised.
    pub wrong: bool,
    /// Who has no such token is told that there is nothing.
    pub token: Option<String>,
    /// The model is given under another name than it is asked for.
    pub renamed: bool,
}

/// What was asked: method, path, the `Range` and the `Authorization`.
#[derive(Clone, Debug, PartialEq)]
pub struct Asked {
    pub line: String,
    pub range: String,
    pub token: String,
}

pub struct TestHub {
    url: String,
    pub manners: Arc<Mutex<Manners>>,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl TestHub {
    /// Answers for `org/tiny` with the files of this folder until the test ends.
    pub fn of(folder: &Path) -> Self {
        Self::start(folder, None)
    }

    /// The same behind TLS, as the hub itself, with the certificate of these names and its key.
    pub fn with_tls(folder: &Path, certificate: CertificateDer<'static>, key: PrivateKeyDer<'static>) -> Self {
        let config = ServerConfig::builder_with_provider(Arc::new(crypto::ring::default_provider())).with_safe_default_protocol_versions();
        let config = config.expect("versions").with_no_client_auth().with_single_cert(vec![certificate], key).expect("a key that fits");
        Self::start(folder, Some(Arc::new(config)))
    }

    fn start(folder: &Path, tls: Option<Arc<ServerConfig>>) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
        let port = listener.local_addr().expect("an address").port();
        // By another name than that of its store.
        let scheme = if tls.is_some() { "https" } else { "http" };
        let hub = Self { url: format!("{scheme}://127.0.0.1:{port}"), manners: Arc::default(), asked: Arc::default() };
        let (folder, manners, asked) = (folder.to_owned(), hub.manners.clone(), hub.asked.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (folder, manners, asked, tls) = (folder.clone(), manners.clone(), asked.clone(), tls.clone());
                let store = format!("{scheme}://localhost:{port}/store");
                std::thread::spawn(move || {
                    stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a timeout");
                    match tls {
                        None => serve(stream, &store, &folder, &manners, &asked),
                        Some(tls) => {
                            let session = ServerConnection::new(tls).expect("a session");
                            serve(StreamOwned::new(session, stream), &store, &folder, &manners, &asked);
                        }
                    }
                });
            }
        });
        hub
    }

    pub fn url(&self) -> String {
        self.url.clone()
    }

    /// What was asked since it was last looked at.
    pub fn asked(&self) -> Vec<Asked> {
        std::mem::take(&mut *self.asked.lock().expect("no panic"))
    }
}

/// The tag that the hub gives a file's bytes: of small ones it is git's, which nobody recomputes here.
pub fn tag(bytes: &[u8]) -> String {
    let hash: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    if bytes.len() < LARGE { hash[..40].to_owned() } else { hash }
}

fn files(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).expect("the model");
    entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

fn serve<S: Read + Write>(stream: S, store: &str, folder: &Path, manners: &Mutex<Manners>, asked: &Mutex<Vec<Asked>>) {
    let mut reader = BufReader::new(stream);
    loop {
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).unwrap_or(0) == 0 {
                return;
            }
            match line.trim() {
                "" => break,
                line => lines.push(line.to_owned()),
            }
        }
        let header = |name: &str| {
            let found = lines.iter().filter_map(|line| line.split_once(':')).find(|(found, _)| found.eq_ignore_ascii_case(name));
            found.map(|(_, value)| value.trim().to_owned()).unwrap_or_default()
        };
        let (range, token, host) = (header("range"), header("authorization"), header("host"));
        let words: Vec<&str> = lines[0].split(' ').collect();
        let (method, path) = (words[0], words[1]);
        asked.lock().expect("no panic").push(Asked { line: format!("{method} {path}"), range: range.clone(), token: token.clone() });
        let manners = manners.lock().expect("no panic").clone();
        let mut answer = Answer { stream: reader.get_mut(), body: method == "GET" };
        let stored = path.strip_prefix("/store/").filter(|_| host.starts_with("localhost"));
        let file = path.strip_prefix(&format!("/org/tiny/resolve/{COMMIT}/"));
        let whole = match (stored, file) {
            (Some(file), _) => answer.store(&folder.join(file), &range, &manners),
            _ if manners.token.as_ref().is_some_and(|wanted| token != format!("Bearer {wanted}")) => {
                answer.say("401 Unauthorized", &[], b"")
            }
            (None, Some(file)) => answer.file(&folder.join(file), &format!("{store}/{file}")),
            _ if manners.renamed && path.starts_with("/api/models/org/tiny/") => {
                answer.say("307 Temporary Redirect", &[("location", &path.replace("org/tiny", "org/moved"))], b"")
            }
            _ if path == "/api/models/org/tiny/revision/main" || path == "/api/models/org/moved/revision/main" => {
                let files: Vec<_> = files(folder).into_iter().map(|file| serde_json::json!({ "rfilename": file })).collect();
                let listing = serde_json::json!({ "id": "org/tiny", "sha": COMMIT, "siblings": files, "tags": ["safetensors"] });
                answer.say("200 OK", &[], listing.to_string().as_bytes())
            }
            _ => answer.say("404 Not Found", &[("x-error-code", "RepoNotFound")], b"Repository not found"),
        };
        if !whole {
            return;
        }
    }
}

struct Answer<'a, S> {
    stream: &'a mut S,
    body: bool,
}

impl<S: Write> Answer<'_, S> {
    /// Whether the connection is still of use.
    fn say(&mut self, status: &str, headers: &[(&str, &str)], body: &[u8]) -> bool {
        let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n{headers}\r\n", body.len());
        let body = if self.body { body } else { b"" };
        self.stream.write_all(head.as_bytes()).and_then(|()| self.stream.write_all(body)).and_then(|()| self.stream.flush()).is_ok()
    }

    fn file(&mut self, path: &Path, place: &str) -> bool {
        let Ok(bytes) = std::fs::read(path) else { return self.say("404 Not Found", &[("x-error-code", "EntryNotFound")], b"") };
        let (tag, size) = (format!("\"{}\"", tag(&bytes)), bytes.len().to_string());
        if bytes.len() < LARGE {
            return self.say("200 OK", &[("etag", &tag), ("x-repo-commit", COMMIT)], &bytes);
        }
        let headers = [("x-linked-etag", &*tag), ("x-linked-size", &size), ("x-repo-commit", COMMIT), ("location", place)];
        self.say("302 Found", &headers, b"Found. Redirecting")
    }

    fn store(&mut self, path: &Path, range: &str, manners: &Manners) -> bool {
        let mut bytes = std::fs::read(path).expect("a file of the model");
        if manners.wrong {
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
        }
        let from = range.strip_prefix("bytes=").and_then(|range| range.trim_end_matches('-').parse().ok()).unwrap_or(0);
        let rest = &bytes[from..];
        let shown = format!("bytes {from}-{}/{}", bytes.len() - 1, bytes.len());
        let (status, headers) =
            if range.is_empty() { ("200 OK", vec![]) } else { ("206 Partial Content", vec![("content-range", &*shown)]) };
        match manners.break_after.filter(|most| *most < rest.len()) {
            Some(most) => {
                let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
                let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n{headers}\r\n", rest.len());
                let _ = self
                    .stream
                    .write_all(head.as_bytes())
                    .and_then(|()| self.stream.write_all(&rest[..most]))
                    .and_then(|()| self.stream.flush());
                false
            }
            None => self.say(status, &headers, rest),
        }
    }
}

/// What a cache holds, by path: links by where they lead, files by their size.
pub fn cache(hub: &Path) -> BTreeMap<String, String> {
    let (mut found, mut folders) = (BTreeMap::new(), vec![PathBuf::new()]);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(hub.join(&folder)).into_iter().flatten().flatten() {
            let (path, kind) = (folder.join(entry.file_name()), entry.file_type().expect("a type"));
            let what = match (kind.is_symlink(), kind.is_dir()) {
                (true, _) => std::fs::read_link(entry.path()).expect("a link").display().to_string(),
                (_, true) => {
                    folders.push(path);
                    continue;
                }
                _ => entry.metadata().expect("a file").len().to_string(),
            };
            found.insert(path.display().to_string(), what);
        }
    }
    found
}
