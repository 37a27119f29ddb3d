//! A peer as a process: started, watched from outside, killed without warning, started again.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::net::{TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant, SystemTime};

use mingle::driver::{MergedStatus, SlotStatus, Status};
use mingle::home::{Home, RoundHome};
use mingle_protocol::round::RoundId;
use serde_json::Value;

/// Longer than anything here takes on two busy cores; a test that waits so long has failed.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// How peers reach each other on the loopback interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    Tcp,
    Quic,
}

/// An address that stays the same when its peer is started again.
pub fn address(transport: Transport) -> String {
    /// Below the ports that systems give to outgoing connections, so that only listeners compete for them.
    const FIRST: u16 = 20_000;
    const COUNT: u16 = 9_000;
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // Test processes that run at once begin apart from each other.
    let begin = (std::process::id() % 90) as u16 * 100;
    for _ in 0..COUNT {
        let port = FIRST + (begin + NEXT.fetch_add(1, Ordering::Relaxed)) % COUNT;
        let free = match transport {
            Transport::Tcp => TcpListener::bind(("127.0.0.1", port)).is_ok(),
            Transport::Quic => UdpSocket::bind(("127.0.0.1", port)).is_ok(),
        };
        match transport {
            _ if !free => {}
            Transport::Tcp => return format!("/ip4/127.0.0.1/tcp/{port}"),
            Transport::Quic => return format!("/ip4/127.0.0.1/udp/{port}/quic-v1"),
        }
    }
    panic!("no port is free on the loopback interface");
}

/// One peer: its command line, its home, and its process while it runs. Dropped, it is killed.
pub struct Peer {
    pub name: String,
    /// What is run: the program, and before it whatever runs it elsewhere.
    command: Vec<OsString>,
    arguments: Vec<OsString>,
    home: Home,
    round: RoundId,
    logs: PathBuf,
    process: Option<Child>,
    /// When the process that runs now, or ran last, began.
    began: SystemTime,
}

impl Peer {
    /// A peer that does not run yet. `--home` and `--json` are added to its arguments.
    pub fn new<A: Into<OsString>>(
        program: &str,
        folder: &Path,
        name: &str,
        round: RoundId,
        arguments: impl IntoIterator<Item = A>,
    ) -> Self {
        let folder = folder.join(name);
        std::fs::create_dir_all(&folder).expect("a folder for the peer");
        let home = Home::new(folder.join("home"));
        let arguments: Vec<OsString> = arguments.into_iter().map(Into::into).collect();
        Self {
            name: name.into(),
            command: vec![program.into()],
            arguments,
            home,
            round,
            logs: folder,
            process: None,
            began: SystemTime::UNIX_EPOCH,
        }
    }

    pub fn home(&self) -> &Home {
        &self.home
    }

    pub fn round_home(&self) -> RoundHome {
        self.home.round(self.round)
    }

    /// Adds arguments for the next start.
    pub fn argue<A: Into<OsString>>(&mut self, arguments: impl IntoIterator<Item = A>) {
        self.arguments.extend(arguments.into_iter().map(Into::into));
    }

    /// From the next start on, the program is run by the command that begins so.
    pub fn start_through<A: Into<OsString>>(&mut self, prefix: impl IntoIterator<Item = A>) {
        let program = self.command.pop();
        self.command = prefix.into_iter().map(Into::into).chain(program).collect();
    }

    pub fn start(&mut self) {
        assert!(self.process.is_none(), "{} runs already", self.name);
        let log = |name: &str| OpenOptions::new().create(true).append(true).open(self.logs.join(name)).expect("a log file");
        let began = SystemTime::now();
        let mut command = Command::new(&self.command[0]);
        // `MINGLE_TEST_LOG` is how to see what peers of a test say on standard error.
        match std::env::var_os("MINGLE_TEST_LOG") {
            Some(filter) => command.env("MINGLE_LOG", filter),
            None => command.env_remove("MINGLE_LOG"),
        };
        let process = command
            .args(&self.command[1..])
            .args(&self.arguments)
            .arg("--json")
            .arg("--home")
            .arg(self.home.folder())
            .stdin(Stdio::null())
            .stdout(log("out"))
            .stderr(log("err"))
            .spawn();
        self.process = Some(process.expect("the program can be started"));
        self.began = began;
    }

    /// `kill -9`: the process has no say in it.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().expect("the process can be killed");
            process.wait().expect("the process can be waited for");
        }
    }

    /// How the process ended, if it did.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        let ended = self.process.as_mut()?.try_wait().expect("the process can be asked");
        if ended.is_some() {
            self.process = None;
        }
        ended
    }

    pub fn runs(&mut self) -> bool {
        self.process.is_some() && self.ended().is_none()
    }

    /// The status this very process wrote; none as long as the file is still that of the one before.
    pub fn status(&self) -> Option<Status> {
        let status = Status::read(&self.round_home().status_path()).ok()?;
        let alive = self.process.as_ref().is_none_or(|process| process.id() == status.process);
        alive.then_some(status)
    }

    pub fn merged(&self) -> Option<MergedStatus> {
        self.status()?.merged
    }

    pub fn slots(&self) -> Vec<SlotStatus> {
        self.status().map(|status| status.slots).unwrap_or_default()
    }

    /// Every event of all its processes so far, the oldest first.
    pub fn events(&self) -> Vec<Value> {
        let text = std::fs::read(self.logs.join("out")).unwrap_or_default();
        // A process that was killed may have left half a line.
        String::from_utf8_lossy(&text).lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// Whether the process that runs now wrote something with this ending into a folder. What an earlier one left there
    /// does not count.
    pub fn writes(&self, folder: &Path, ending: &str) -> bool {
        let mut entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        entries.any(|entry| {
            let written = entry.metadata().and_then(|data| data.modified());
            entry.file_name().to_string_lossy().ends_with(ending) && written.is_ok_and(|written| written >= self.began)
        })
    }

    /// The events of one kind.
    pub fn events_named(&self, kind: &str) -> Vec<Value> {
        self.events().into_iter().filter(|event| event["event"] == kind).collect()
    }

    /// What it wrote to standard error.
    pub fn complaints(&self) -> String {
        std::fs::read_to_string(self.logs.join("err")).unwrap_or_default()
    }

    /// Waits until `found` finds something in this peer.
    #[track_caller]
    pub fn wait<T>(&mut self, what: &str, mut found: impl FnMut(&mut Self) -> Option<T>) -> T {
        let began = Instant::now();
        loop {
            if let Some(found) = found(self) {
                return found;
            }
            if began.elapsed() > PATIENCE {
                panic!("waited in vain for {what}; {}", self.told());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Where this peer stands, for the message of a failed test.
    pub fn told(&self) -> String {
        let events = self.events();
        let last: Vec<String> = events.iter().rev().take(12).rev().map(Value::to_string).collect();
        format!("{}: {:#?}\nlast events:\n{}\nstandard error:\n{}", self.name, self.status(), last.join("\n"), self.complaints())
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Waits until `found` finds something.
#[track_caller]
pub fn wait<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(found) = found() {
            return found;
        }
        assert!(began.elapsed() < PATIENCE, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Waits until all peers hold the merge of `adapters` adapters, and returns it: the same at each of them.
#[track_caller]
pub fn agree(peers: &mut [Peer], adapters: usize) -> MergedStatus {
    agree_within(PATIENCE, peers, adapters)
}

/// As [`agree`], for networks that take longer.
#[track_caller]
pub fn agree_within(patience: Duration, peers: &mut [Peer], adapters: usize) -> MergedStatus {
    let agreed = |peers: &mut [Peer]| {
        let found: Option<Vec<MergedStatus>> = peers.iter_mut().map(|peer| peer.merged().filter(|m| m.adapters == adapters)).collect();
        let found = found?;
        let same = |one: &&MergedStatus| (one.merged_hash, one.set_root, one.weight);
        let first = found.first()?.clone();
        found.iter().all(|one| same(&one) == same(&&first)).then_some(first)
    };
    let began = Instant::now();
    loop {
        if let Some(found) = agreed(peers) {
            return found;
        }
        if began.elapsed() > patience {
            let told: Vec<String> = peers.iter().map(Peer::told).collect();
            panic!("the peers do not come to agree on {adapters} adapters\n{}", told.join("\n\n"));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The bytes of a file that must be there.
#[track_caller]
pub fn bytes_of(path: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|mut file| std::io::Read::read_to_end(&mut file, &mut bytes));
    read.unwrap_or_else(|error| panic!("cannot read {}: {error}", path.display()));
    bytes
}
