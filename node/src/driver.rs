//! The one loop: what happens becomes an input of the peer's state machine, what the machine wants becomes an effect.
//!
//! The loop owns the machine; the network, the merger and the training run beside it and talk to it through bounded
//! queues. It decides nothing that two peers could decide differently. Effects are carried out in the machine's order,
//! and a record is on disk before anybody is told of it.

mod averaging;
mod event;
mod status;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use mingle_protocol::hash::ContentHash;
use mingle_protocol::identity::SecretKey;
use mingle_protocol::ledger::SlotState;
use mingle_protocol::machine::{Input, Machine, Millis, Notice, Output, Verdict};
use mingle_protocol::receipt::Receipt;
use mingle_protocol::record::{Announcement, Losses, Record, SignedRecord, UnverifiedRecord};
use mingle_protocol::round::Round;
use tokio::sync::{mpsc, watch};

use crate::home::RoundHome;
use crate::merger::{CheckedAdapter, Unusable};
use crate::network::{self, Multiaddr, Network, NetworkConfig, NetworkEvent, NetworkHandle, PeerId};
use crate::store::Store;
pub use event::{Event, TrainingStatus};
pub use status::{MergedStatus, Phase, SlotStatus, Status};

/// Reports of the merger and the training that may wait for the loop.
const JOBS_MAX: usize = 64;
/// How often the machine is told the time and the status is written.
const TICK: Duration = Duration::from_millis(250);
/// A training that is told to stop writes a checkpoint first; after this it is left behind.
const TRAINING_STOP: Duration = Duration::from_secs(20);

/// A peer, about to run.
pub struct Peer {
    pub home: RoundHome,
    pub round: Round,
    pub key: SecretKey,
    pub listen: Vec<Multiaddr>,
    pub bootstrap: Vec<Multiaddr>,
    pub mdns: bool,
    pub work: Work,
    pub goal: Goal,
}

/// What this peer contributes.
pub enum Work {
    /// Nothing: it may not announce.
    Read,
    /// Nothing new: it serves what it has announced before.
    Serve,
    /// An adapter made elsewhere.
    Publish(Prepared),
    /// An adapter to be trained now.
    Train(Training),
}

/// What makes an adapter when it is called, on a thread of its own.
pub type Training = Box<dyn FnOnce(&TrainingDesk) -> Result<Prepared> + Send>;

/// An adapter file ready to be announced.
#[derive(Clone, Debug)]
pub struct Prepared {
    /// `adapter_model.safetensors`.
    pub weights: PathBuf,
    pub examples: u64,
    /// Held-out loss before and after, in nats a token.
    pub losses: Option<(f64, f64)>,
    pub seconds: f64,
}

/// A training's line to the loop.
pub struct TrainingDesk {
    stop: Arc<AtomicBool>,
    jobs: mpsc::Sender<Job>,
}

impl TrainingDesk {
    /// Whether the training shall write a checkpoint and end.
    pub fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Progress is for looking at: when the loop is busy it is dropped.
    pub fn report(&self, status: TrainingStatus) {
        let _ = self.jobs.try_send(Job::Training(status));
    }
}

/// When a run ends by itself. Without a goal it runs until it is stopped.
#[derive(Clone, Debug, Default)]
pub struct Goal {
    /// As soon as the merged adapter holds this many and all that is known.
    pub adapters: Option<usize>,
    /// At the latest after this.
    pub deadline: Option<Duration>,
}

/// How a run ended.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub merged: Option<(Receipt, PathBuf)>,
    /// Whether the goal was reached, rather than the deadline or a signal.
    pub reached: bool,
}

enum Job {
    Training(TrainingStatus),
    Prepared(Result<Prepared>),
    Averaged(Result<averaging::Report>),
}

/// Runs the peer until its goal is reached or it is told to stop.
///
/// # Errors
/// Trouble of this machine: disk, address in use, a key that may not announce. Trouble with other peers is reported
/// through `observe` and survived.
pub async fn run(peer: Peer, observe: impl FnMut(&Event)) -> Result<Outcome> {
    let mut driver = Driver::start(peer, observe)?;
    let outcome = driver.run().await;
    driver.stop().await;
    outcome
}

struct Driver<F> {
    machine: Machine<PeerId>,
    key: SecretKey,
    home: RoundHome,
    store: Store,
    network: NetworkHandle,
    events: mpsc::Receiver<NetworkEvent>,
    jobs: mpsc::Receiver<Job>,
    orders: watch::Sender<averaging::Order>,
    stop: Arc<AtomicBool>,
    training: Option<std::thread::JoinHandle<()>>,
    /// Records to be made durable before the next effect that depends on them.
    unsaved: Vec<SignedRecord>,
    have: BTreeMap<ContentHash, u64>,
    merged: Option<(Receipt, PathBuf)>,
    listening: Vec<String>,
    phase: Phase,
    progress: Option<TrainingStatus>,
    role: &'static str,
    goal: Goal,
    started: Instant,
    observe: F,
}

impl<F: FnMut(&Event)> Driver<F> {
    fn start(peer: Peer, mut observe: F) -> Result<Self> {
        let Peer { home, round, key, listen, bootstrap, mdns, work, goal } = peer;
        let member = key.member();
        if !matches!(work, Work::Read) {
            anyhow::ensure!(
                round.manifest().roster.admits(&member),
                "member {member} is not in the roster of round \"{}\"",
                round.manifest().name
            );
        }
        home.prepare(&round)?;
        let store = Store::open(home.store())?;
        let mut records = Vec::new();
        for (id, bytes) in store.records()? {
            match UnverifiedRecord(&bytes).verify(&round) {
                Ok(record) => records.push(record),
                Err(error) => {
                    tracing::warn!(%error, "dropping a stored record");
                    store.remove_record(id)?;
                }
            }
        }
        let network = NetworkConfig {
            secret: key.to_bytes(),
            listen,
            bootstrap,
            mdns,
            topic: format!("/mingle/records/1/{}", round.id()),
            allowed: None,
            limits: network::Limits::default(),
        };
        let (network, events) = Network::start(network, store.clone())?;
        let (job_sender, jobs) = mpsc::channel(JOBS_MAX);
        let (orders, order) = watch::channel(averaging::Order::default());
        start_averaging(&round, &store, &home, order, job_sender.clone());
        let role = if matches!(work, Work::Read) { "reader" } else { "member" };
        let manifest = round.manifest();
        observe(&Event::Started {
            role,
            member,
            round: round.id().to_string(),
            name: manifest.name.clone(),
            home: home.folder().to_owned(),
        });
        let machine = Machine::new(round, records);
        let mut driver = Self {
            machine,
            key,
            home,
            store,
            network,
            events,
            jobs,
            orders,
            stop: Arc::default(),
            training: None,
            unsaved: Vec::new(),
            have: BTreeMap::new(),
            merged: None,
            listening: Vec::new(),
            phase: Phase::Following,
            progress: None,
            role,
            goal,
            started: Instant::now(),
            observe,
        };
        for (adapter, size) in driver.store.blobs()? {
            driver.have.insert(adapter, size);
            driver.handle(Input::BlobStored { adapter, size })?;
        }
        driver.begin(work, job_sender)?;
        Ok(driver)
    }

    /// Starts what this peer contributes, unless it already stands in the ledger.
    fn begin(&mut self, work: Work, jobs: mpsc::Sender<Job>) -> Result<()> {
        let stands = matches!(self.machine.own_slot(&self.key.member()), Some(SlotState::Adapter(_)));
        match work {
            Work::Read | Work::Serve => {}
            Work::Publish(prepared) => self.announce(prepared)?,
            Work::Train(_) if stands => self.phase = Phase::Announced,
            Work::Train(train) => {
                self.phase = Phase::Training;
                let desk = TrainingDesk { stop: self.stop.clone(), jobs: jobs.clone() };
                let run = move || {
                    let prepared = train(&desk);
                    let _ = jobs.blocking_send(Job::Prepared(prepared));
                };
                self.training = Some(std::thread::Builder::new().name("training".into()).stack_size(64 << 20).spawn(run)?);
            }
        }
        Ok(())
    }

    async fn run(&mut self) -> Result<Outcome> {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut signals = Signals::new()?;
        loop {
            tokio::select! {
                biased;
                () = signals.received() => return Ok(self.outcome(false)),
                Some(job) = self.jobs.recv() => self.job(job)?,
                event = self.events.recv() => self.event(event.context("the network has stopped")?)?,
                _ = tick.tick() => {
                    self.handle(Input::Tick)?;
                    self.write_status();
                }
            }
            if let Some(outcome) = self.finished() {
                self.write_status();
                return Ok(outcome);
            }
        }
    }

    /// Ends the training with a checkpoint and the network with a farewell.
    async fn stop(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(training) = self.training.take() {
            let deadline = Instant::now() + TRAINING_STOP;
            while !training.is_finished() && Instant::now() < deadline {
                // Progress must be taken, or a training that reports could wait for us as we wait for it.
                let _ = tokio::time::timeout(Duration::from_millis(20), self.jobs.recv()).await;
            }
        }
        let _ = tokio::time::timeout(Duration::from_secs(3), self.network.shutdown()).await;
    }

    fn outcome(&self, reached: bool) -> Outcome {
        Outcome { merged: self.merged.clone(), reached }
    }

    fn finished(&self) -> Option<Outcome> {
        if self.goal.deadline.is_some_and(|deadline| self.started.elapsed() >= deadline) {
            return Some(self.outcome(false));
        }
        let wanted = self.goal.adapters?;
        let (receipt, _) = self.merged.as_ref()?;
        let complete = self.machine.is_complete() && receipt.admitted == self.machine.merge_set();
        (complete && receipt.admitted.len() >= wanted).then(|| self.outcome(true))
    }

    fn handle(&mut self, input: Input<PeerId>) -> Result<()> {
        self.handle_from(input, None)
    }

    /// `origin` is what a verdict or an answer is for.
    fn handle_from(&mut self, input: Input<PeerId>, origin: Option<Origin>) -> Result<()> {
        let mut outputs = Vec::new();
        let now = Millis(u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX));
        self.machine.handle(input, now, &mut outputs);
        for output in outputs {
            self.perform(output, origin.as_ref())?;
        }
        self.save()
    }

    fn perform(&mut self, output: Output<PeerId>, origin: Option<&Origin>) -> Result<()> {
        // Only more records to keep, and words for people, may come before the disk has what was kept.
        if !matches!(output, Output::Keep(_) | Output::Notice(_)) {
            self.save()?;
        }
        match output {
            Output::Keep(record) => self.unsaved.push(record),
            Output::Forget(id) => self.store.remove_record(id.0.0)?,
            Output::Verdict(verdict) => {
                if let Some(Origin::Gossip { message, from }) = origin {
                    self.send(|network| network.report(message.clone(), *from, verdict_of(verdict)));
                }
            }
            Output::Gossip(bytes) => self.send(|network| network.publish(bytes)),
            Output::Request { to, bytes } => self.send(|network| network.sync_request(to, bytes)),
            Output::Respond(bytes) => {
                if let Some(Origin::Question(token)) = origin {
                    self.send(|network| network.sync_respond(*token, bytes));
                }
            }
            Output::Fetch { adapter, size } => {
                let announcers = self.machine.ledger().admitted().filter(|entry| entry.adapter == adapter);
                let providers = announcers.filter_map(|entry| network::peer_of(&entry.member)).collect();
                self.send(|network| network.fetch(adapter, size, providers));
            }
            Output::CancelFetch(adapter) => self.send(|network| network.cancel_fetch(adapter)),
            Output::Merge(set) => {
                let admitting = |record: &&SignedRecord| set.iter().any(|entry| entry.record == record.id());
                let records = self.machine.ledger().records().filter(admitting).cloned().collect();
                self.orders.send_replace(averaging::Order { set, records });
            }
            Output::Notice(notice) => self.notice(notice),
        }
        Ok(())
    }

    /// Makes what is to be kept durable, in one commit.
    fn save(&mut self) -> Result<()> {
        if self.unsaved.is_empty() {
            return Ok(());
        }
        let records: Vec<([u8; 32], &[u8])> = self.unsaved.iter().map(|record| (record.id().0.0, record.bytes())).collect();
        tokio::task::block_in_place(|| self.store.put_records(&records))?;
        self.unsaved.clear();
        Ok(())
    }

    /// A network that takes no command now is caught up with by reconciliation.
    fn send(&mut self, command: impl FnOnce(&NetworkHandle) -> Result<(), network::NetworkError>) {
        if let Err(error) = command(&self.network) {
            (self.observe)(&Event::Trouble { why: error.to_string() });
        }
    }

    fn notice(&mut self, notice: Notice) {
        let event = match notice {
            Notice::Recorded(record) => Event::heard(&record),
            Notice::Conflict(record) => Event::Conflict { member: record.record().member(), sequence: record.record().sequence() },
            Notice::RecordRefused(error) => Event::RecordRefused { why: error.to_string() },
            Notice::SyncRefused(why) => Event::Trouble { why },
            Notice::AdapterRefused { adapter, why } => Event::AdapterRefused { adapter, why },
        };
        (self.observe)(&event);
    }

    fn event(&mut self, event: NetworkEvent) -> Result<()> {
        match event {
            NetworkEvent::Listening(address) => {
                let address = address.to_string();
                (self.observe)(&Event::Listening { address: address.clone() });
                self.listening.push(address);
            }
            NetworkEvent::PeerConnected(peer) => {
                let neighbours = self.network.connected_peers().len();
                (self.observe)(&Event::Connected { peer: peer.to_string(), neighbours });
                self.handle(Input::Connected(peer))?;
            }
            NetworkEvent::PeerDisconnected(peer) => {
                let neighbours = self.network.connected_peers().len();
                (self.observe)(&Event::Disconnected { peer: peer.to_string(), neighbours });
                self.handle(Input::Disconnected(peer))?;
            }
            NetworkEvent::Gossip { message_id, from, bytes } => {
                self.handle_from(Input::Gossip { bytes }, Some(Origin::Gossip { message: message_id, from }))?;
            }
            NetworkEvent::SyncRequest { token, bytes, .. } => {
                self.handle_from(Input::SyncRequest { bytes }, Some(Origin::Question(token)))?
            }
            NetworkEvent::SyncResponse { from, bytes } => self.handle(Input::SyncResponse { from, bytes })?,
            NetworkEvent::SyncFailed { from, why } => tracing::debug!(%from, why, "reconciliation failed"),
            NetworkEvent::BlobProgress { hash, have, size, .. } => {
                self.have.insert(hash, have);
                (self.observe)(&Event::Fetching { adapter: hash, have, size });
            }
            NetworkEvent::BlobFetched { hash } => {
                if let Some(size) = self.store.blob_size(hash)? {
                    self.have.insert(hash, size);
                    (self.observe)(&Event::Fetched { adapter: hash });
                    self.handle(Input::BlobStored { adapter: hash, size })?;
                }
            }
            NetworkEvent::BlobFailed { hash, why } => {
                tracing::debug!(%hash, why, "fetch failed");
                self.handle(Input::BlobFailed { adapter: hash })?;
            }
            NetworkEvent::BlobDamaged { hash } => self.lost(hash)?,
        }
        Ok(())
    }

    fn lost(&mut self, adapter: ContentHash) -> Result<()> {
        self.have.remove(&adapter);
        (self.observe)(&Event::Trouble { why: format!("the stored file of adapter {adapter} is gone or damaged; fetching it again") });
        self.handle(Input::BlobLost { adapter })
    }

    fn job(&mut self, job: Job) -> Result<()> {
        match job {
            Job::Training(status) => {
                (self.observe)(&Event::Training(status.clone()));
                self.progress = Some(status);
                Ok(())
            }
            Job::Prepared(Ok(prepared)) => {
                let (loss_before, loss_after) = prepared.losses.unzip();
                (self.observe)(&Event::Trained { examples: prepared.examples, loss_before, loss_after, seconds: prepared.seconds });
                self.announce(prepared)
            }
            Job::Prepared(Err(error)) => {
                self.phase = Phase::Failed;
                self.write_status();
                Err(error.context("training failed"))
            }
            Job::Averaged(report) => self.averaged(report),
        }
    }

    fn averaged(&mut self, report: Result<averaging::Report>) -> Result<()> {
        let averaging::Report { unusable, merged } = report.context("merging failed")?;
        if let Some((receipt, folder)) = &merged {
            let status = MergedStatus::new(receipt, folder.clone());
            let MergedStatus { adapters, weight, merged_hash, set_root, folder } = status;
            (self.observe)(&Event::Merged { adapters, weight, merged_hash, set_root, folder });
        }
        self.merged = merged;
        for unusable in unusable {
            match unusable {
                Unusable::Refused { adapter, why } => {
                    self.have.remove(&adapter);
                    self.store.remove_blob(adapter)?;
                    self.handle(Input::BlobRefused { adapter, why })?;
                }
                Unusable::Lost { adapter } => self.lost(adapter)?,
            }
        }
        self.write_status();
        Ok(())
    }

    /// Stores the adapter, signs for it, and tells the network; in this order.
    fn announce(&mut self, prepared: Prepared) -> Result<()> {
        let Self { store, machine, key, .. } = self;
        let round = machine.round().clone();
        let file = std::fs::File::open(&prepared.weights).with_context(|| format!("cannot read {}", prepared.weights.display()))?;
        let checked = tokio::task::block_in_place(|| CheckedAdapter::read(file, round.tensors()))
            .with_context(|| format!("{} cannot be announced in round \"{}\"", prepared.weights.display(), round.manifest().name))?;
        let member = key.member();
        self.phase = Phase::Announced;
        if let Some(SlotState::Adapter(said)) = machine.own_slot(&member)
            && said.adapter == checked.hash
        {
            return Ok(());
        }
        let (adapter, size) = tokio::task::block_in_place(|| store.put_blob_from_file(&prepared.weights))?;
        anyhow::ensure!(adapter == checked.hash, "{} changed while it was read", prepared.weights.display());
        let sequence = machine.ledger().sequence(&member) + 1;
        let weight = round.manifest().weight.weight(prepared.examples);
        let losses = prepared.losses.map(|(before, after)| Losses { before_micronats: micro(before), after_micronats: micro(after) });
        let base = round.manifest().base.digest;
        let announcement =
            Announcement { round: round.id(), member, sequence, adapter, size, weight, base, examples: prepared.examples, losses };
        let record = SignedRecord::sign(&Record::Announcement(announcement), key, &round)?;
        self.have.insert(adapter, size);
        self.handle(Input::BlobStored { adapter, size })?;
        self.handle(Input::Publish(record))?;
        (self.observe)(&Event::Announced { adapter, sequence, weight });
        self.write_status();
        Ok(())
    }

    fn write_status(&mut self) {
        let ledger = self.machine.ledger();
        let receipt = self.merged.as_ref().map(|(receipt, _)| receipt);
        let manifest = self.machine.round().manifest();
        let status = Status {
            updated_unix_ms: status::unix_ms(),
            process: std::process::id(),
            role: self.role.into(),
            member: self.key.member(),
            peer: self.network.local_peer().to_string(),
            round: self.machine.round().id().to_string(),
            name: manifest.name.clone(),
            listening: self.listening.clone(),
            neighbours: self.network.connected_peers().len(),
            phase: self.phase,
            training: self.progress.clone(),
            slots: status::slots(ledger, receipt, &self.have, self.machine.refused()),
            merged: self.merged.as_ref().map(|(receipt, folder)| MergedStatus::new(receipt, folder.clone())),
            home: self.home.folder().to_owned(),
        };
        // A status is for looking at: a full disk must not stop the peer for its sake.
        if let Err(error) = status.write(&self.home.status_path()) {
            tracing::warn!(%error, "cannot write the status");
        }
    }
}

/// What a verdict or an answer is for.
enum Origin {
    Gossip { message: network::MessageId, from: PeerId },
    Question(network::SyncToken),
}

fn verdict_of(verdict: Verdict) -> network::Verdict {
    match verdict {
        Verdict::Accept => network::Verdict::Accept,
        Verdict::Reject => network::Verdict::Reject,
        Verdict::Ignore => network::Verdict::Ignore,
    }
}

fn micro(nats: f64) -> u64 {
    (nats * 1e6).round().clamp(0.0, 1e15) as u64
}

fn start_averaging(round: &Round, store: &Store, home: &RoundHome, orders: watch::Receiver<averaging::Order>, jobs: mpsc::Sender<Job>) {
    let (reports, mut finished) = mpsc::channel(1);
    averaging::start(round.clone(), store.clone(), home.merged(), orders, reports);
    tokio::spawn(async move {
        while let Some(report) = finished.recv().await {
            if jobs.send(Job::Averaged(report)).await.is_err() {
                return;
            }
        }
    });
}

/// Ctrl-C, and what service managers send.
struct Signals {
    #[cfg(unix)]
    terminate: tokio::signal::unix::Signal,
}

impl Signals {
    fn new() -> Result<Self> {
        Ok(Self {
            #[cfg(unix)]
            terminate: tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?,
        })
    }

    async fn received(&mut self) {
        #[cfg(unix)]
        tokio::select! {
            _ = tokio::signal::ctrl_c() => {}
            _ = self.terminate.recv() => {}
        }
        #[cfg(not(unix))]
        let _ = tokio::signal::ctrl_c().await;
    }
}
