//! One communication round of real peers: every member trains, announces, fetches and merges; readers follow.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use mingle::driver::{MergedStatus, Status};
use mingle::home::Home;
use mingle_protocol::round::Round;

use crate::live::LiveView;
use crate::options::Options;
use crate::page::Page;
use crate::peer::{Peer, Program, Role};
use crate::setting::Setting;

/// After all adapters are known everywhere, hashes agree within this or something is wrong.
const SETTLE_MAX: Duration = Duration::from_secs(120);
/// With a page, peers are looked at for so long after the round, until their merges are scored and vouched for.
const SCORE_MAX: Duration = Duration::from_secs(15);
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// What one peer holds at the end of a round.
#[derive(Clone, Debug, serde::Serialize)]
pub struct PeerResult {
    pub role: Role,
    pub peer: String,
    pub merged_hash: String,
    pub set_root: String,
    pub admitted: usize,
}

/// A finished round.
pub struct RoundResult {
    pub round: Round,
    pub file: PathBuf,
    pub peers: Vec<PeerResult>,
    pub seconds: f64,
    /// A member's merged directory.
    pub merged: PathBuf,
    /// Each member's own adapter directory, in order.
    pub own: Vec<PathBuf>,
}

impl RoundResult {
    /// Whether all peers hold the same merge of all members' adapters.
    pub fn hash_equal(&self, members: usize) -> bool {
        let same = |peer: &PeerResult| peer.merged_hash == self.peers[0].merged_hash && peer.set_root == self.peers[0].set_root;
        self.peers.iter().all(|peer| peer.admitted == members && same(peer))
    }
}

/// How a round is run.
pub struct RoundPlan<'a> {
    pub options: &'a Options,
    pub setting: &'a Setting,
    pub program: &'a Program,
    /// Members keep their homes here from round to round.
    pub folder: PathBuf,
    pub name: String,
    pub epochs: u32,
    pub readers: u32,
    /// The merged directory this round goes on from.
    pub parent: Option<PathBuf>,
    /// Seed of shuffling; it differs between rounds, so that no round repeats another's order.
    pub training_seed: u64,
}

impl RoundPlan<'_> {
    /// Runs the round to its end.
    ///
    /// # Errors
    /// A peer that fails, with the end of its log, or peers that do not agree in time.
    pub fn run(&self, live: &mut LiveView) -> Result<RoundResult> {
        let started = Instant::now();
        std::fs::create_dir_all(&self.folder)?;
        let file = self.make_round_file()?;
        let round = Round::from_json(&std::fs::read(&file)?)?;
        let mut peers: Vec<Peer> = Vec::new();
        let mut bootstrap: Option<String> = None;
        for member in 0..self.options.members as usize {
            let mut peer = self.start_member(member, &file, &round, bootstrap.as_deref())?;
            if bootstrap.is_none() {
                bootstrap = peer.addresses()?.into_iter().find(|address| address.contains("/tcp/"));
            }
            peers.push(peer);
        }
        let bootstrap = bootstrap.context("the first member listens on no TCP address")?;
        for reader in 0..self.readers as usize {
            peers.push(self.start_reader(reader, &file, &round, &bootstrap)?);
        }
        live.begin(&self.name, &peers);
        let results = self.wait(&mut peers, live)?;
        let seconds = started.elapsed().as_secs_f64();
        watch_scores(&peers, live);
        live.end();
        for peer in &mut peers {
            peer.stop();
        }
        let members = &peers[..self.options.members as usize];
        let merged = members[0].home.round(round.id()).merged_current();
        let own = members.iter().map(|peer| peer.home.round(round.id()).adapter()).collect();
        Ok(RoundResult { round, file, peers: results, seconds, merged, own })
    }

    fn make_round_file(&self) -> Result<PathBuf> {
        let file = self.folder.join(format!("{}.json", self.name));
        let (out, base) = (file.to_string_lossy(), self.setting.base.to_string_lossy());
        let (rank, alpha, seed) = (self.options.rank.to_string(), self.options.alpha().to_string(), format!("{:064x}", self.options.seed));
        let (subspaces, interval) = (self.options.subspaces.to_string(), self.options.interval.to_string());
        // The first member founds the round.
        let founder = self.folder.join("member-1").to_string_lossy().into_owned();
        let mut arguments = vec!["round", "new", "--name", &self.name, "--out", &out, "--weight", "examples", "--home", &founder];
        let parent = self.parent.as_ref().map(|parent| parent.to_string_lossy());
        match &parent {
            Some(parent) => arguments.extend(["--parent", parent]),
            None => arguments.extend([
                "--base",
                &base,
                "--base-name",
                &self.setting.base_name,
                "--rank",
                &rank,
                "--alpha",
                &alpha,
                "--seed",
                &seed,
                "--method",
                &self.options.method,
                "--subspaces",
                &subspaces,
                "--interval",
                &interval,
            ]),
        }
        self.program.call(&arguments, &self.folder.join("round-new.txt"))?;
        Ok(file)
    }

    fn start_member(&self, member: usize, file: &std::path::Path, round: &Round, bootstrap: Option<&str>) -> Result<Peer> {
        let options = self.options;
        // Members share the machine: each computes on its part of the processors.
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let threads = (processors / options.members as usize).max(1).to_string();
        let texts = [
            file.to_string_lossy().into_owned(),
            self.setting.base.to_string_lossy().into_owned(),
            self.setting.shards[member].to_string_lossy().into_owned(),
            self.epochs.to_string(),
            options.batch_size.to_string(),
            options.learning_rate.to_string(),
            options.max_length.to_string(),
            self.training_seed.to_string(),
            threads,
        ];
        let flags =
            ["--round", "--base", "--data", "--epochs", "--batch-size", "--learning-rate", "--max-length", "--training-seed", "--threads"];
        let mut arguments = vec!["run"];
        for (flag, text) in flags.iter().zip(&texts) {
            arguments.extend([*flag, text]);
        }
        arguments.extend(["--listen", "/ip4/127.0.0.1/tcp/0", "--listen", "/ip4/127.0.0.1/udp/0/quic-v1"]);
        if options.http.is_some() {
            arguments.push("--score-merges");
        }
        if let Some(bootstrap) = bootstrap {
            arguments.extend(["--peer", bootstrap]);
        }
        // One of them answers.
        let serve = options.serve.filter(|_| member == 0).map(|address| address.to_string());
        if let Some(serve) = &serve {
            arguments.extend(["--serve", serve]);
        }
        let name = format!("member {}", member + 1);
        let home = Home::new(self.folder.join(format!("member-{}", member + 1)));
        Peer::start(self.program, Role::Member, &name, home, round.id(), &arguments)
    }

    fn start_reader(&self, reader: usize, file: &std::path::Path, round: &Round, bootstrap: &str) -> Result<Peer> {
        let name = format!("reader {}", reader + 1);
        let home = Home::new(self.folder.join(format!("reader-{}", reader + 1)));
        let out = home.folder().join("merged").to_string_lossy().into_owned();
        let (file, adapters) = (file.to_string_lossy(), self.options.members.to_string());
        let arguments = [
            "fetch",
            "--round",
            &file,
            "--adapters",
            &adapters,
            "--out",
            &out,
            "--peer",
            bootstrap,
            "--listen",
            "/ip4/127.0.0.1/tcp/0",
            "--listen",
            "/ip4/127.0.0.1/udp/0/quic-v1",
        ];
        Peer::start(self.program, Role::Reader, &name, home, round.id(), &arguments)
    }

    /// Waits until all peers hold all adapters, then takes down what each holds.
    fn wait(&self, peers: &mut [Peer], live: &mut LiveView) -> Result<Vec<PeerResult>> {
        let mut settling: Option<Instant> = None;
        loop {
            for peer in peers.iter_mut() {
                let ended = peer.check()?;
                if ended && peer.role == Role::Member {
                    bail!("{} has ended before the round was over", peer.name);
                }
            }
            let statuses: Vec<Option<Status>> = peers.iter().map(Peer::status).collect();
            live.show(&statuses);
            let members = self.options.members as usize;
            let whole = |status: &Status| status.merged.as_ref().filter(|merged| merged.adapters == members).cloned();
            let merged: Option<Vec<(String, MergedStatus)>> =
                statuses.iter().map(|status| status.as_ref().and_then(|status| Some((status.peer.clone(), whole(status)?)))).collect();
            if let Some(merged) = merged {
                return Ok(peers.iter().zip(merged).map(|(peer, (id, merged))| result(peer.role, id, &merged)).collect());
            }
            let announced = statuses.iter().flatten().any(|status| whole(status).is_some());
            let since = *settling.get_or_insert_with(Instant::now);
            if !announced {
                settling = None;
            } else if since.elapsed() > SETTLE_MAX {
                bail!("peers do not hold the same {members} adapters {} s after the first of them did", SETTLE_MAX.as_secs());
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }
}

/// Goes on showing peers that have all they came for until they also know what it is worth.
fn watch_scores(peers: &[Peer], live: &mut LiveView) {
    let began = Instant::now();
    let all = peers.iter().filter(|peer| peer.role == Role::Member).count();
    let vouched = |status: &Status| status.role != "member" || status.vouching >= all;
    while live.page().is_some() && began.elapsed() < SCORE_MAX {
        let statuses: Vec<Option<Status>> = peers.iter().map(Peer::status).collect();
        live.show(&statuses);
        if statuses.iter().flatten().all(vouched) && live.page().is_some_and(Page::is_scored) {
            return;
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

fn result(role: Role, peer: String, merged: &MergedStatus) -> PeerResult {
    PeerResult { role, peer, merged_hash: merged.merged_hash.to_string(), set_root: merged.set_root.to_string(), admitted: merged.adapters }
}
