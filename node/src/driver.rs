//! The one loop: what happens becomes an input of the peer's state machine, what the machine wants becomes an effect.
//!
//! The loop owns the machine; the network, the merger and the training run beside it and talk to it through bounded
//! queues. It decides nothing that two peers could decide differently. Effects are carried out in the machine's order,
//! and a record is on disk before anybody is told of it.

mod averaging;
mod belonging;
mod effects;
mod event;
mod goal;
mod heads;
mod history;
mod judging;
mod refusals;
mod reports;
mod signals;
mod status;
mod transfers;
mod vouching;
mod work;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use mingle_protocol::hash::ContentHash;
use mingle_protocol::identity::{MemberKey, SecretKey};
use mingle_protocol::ledger::{Admitted, SlotState};
use mingle_protocol::machine::{Input, Machine};
use mingle_protocol::merge::Account;
use mingle_protocol::receipt::Receipt;
use mingle_protocol::record::{RecordId, SignedRecord, UnverifiedRecord};
use mingle_protocol::round::Round;
use tokio::sync::{mpsc, watch};

use crate::home::RoundHome;
use crate::judge::{Judge, Tried};
use crate::network::{self, Multiaddr, Network, NetworkConfig, NetworkEvent, NetworkHandle, PeerId};
use crate::store::Store;
pub use event::{Event, TrainingStatus};
pub use goal::{Goal, Outcome};
use history::Chronicle;
pub use history::{Happening, History, LossPoint, MergePoint, TrainedPoint};
use judging::{Judging, Scored};
pub(crate) use signals::Signals;
pub(crate) use status::unix_ms;
pub use status::{LinkStatus, MergedStatus, Phase, PrivacyStatus, SlotStatus, StandingStatus, Status, VerdictStatus};
pub use vouching::FaultStatus;
use vouching::Vouching;
pub use work::{Prepared, Training, TrainingDesk, Work};

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
    pub reach: network::ReachConfig,
    pub work: Work,
    /// What it judges others' adapters by, where the round asks for that.
    pub judge: Option<Judge>,
    pub goal: Goal,
    /// Shows what this peer is doing, a few times a second.
    pub show: Option<Show>,
}

/// Looks at a status and at the history with it, and must not take long.
pub type Show = Box<dyn FnMut(&Status, &Arc<History>) + Send>;

enum Job {
    Training(TrainingStatus),
    Prepared(Result<Prepared>),
    Averaged(Result<averaging::Report>),
    Served(Result<vouching::Stored>),
    Tried(Admitted, Result<Tried>),
    Scored(Result<Scored>),
    /// No adapter can be tried.
    Unable(anyhow::Error),
}

/// Runs the peer until its goal is reached or it is told to stop.
///
/// # Errors
/// Trouble of this machine: disk, address in use, a key that may not announce. Trouble with other peers is reported
/// through `observe` and survived.
pub async fn run(peer: Peer, mut observe: impl FnMut(&Event)) -> Result<Outcome> {
    let chronicle = Chronicle::open(peer.home.history_path());
    let told = chronicle.clone();
    let observe = move |event: &Event| {
        told.record(event);
        observe(event);
    };
    let mut driver = Driver::start(peer, chronicle, observe)?;
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
    vouching: Vouching,
    judging: Judging,
    stop: Arc<AtomicBool>,
    training: Option<std::thread::JoinHandle<()>>,
    /// Records to be made durable before the next effect that depends on them.
    unsaved: Vec<SignedRecord>,
    /// Records to be forgotten after that.
    forgotten: Vec<[u8; 32]>,
    /// What this process has said for its member.
    said: Option<RecordId>,
    /// Whom the network lets in, and whether that has to change.
    access: Option<BTreeSet<MemberKey>>,
    access_due: bool,
    /// An adapter whose member founders have not admitted yet.
    waiting: Option<Prepared>,
    /// Whether all it came for is to tell what founders decided.
    telling: bool,
    /// A withdrawal that waits until neighbours have told what this key said before.
    withdrawing: bool,
    /// Since when the merge has held as much as was asked for.
    enough_since: Option<Instant>,
    /// Fetches the network would not take.
    unstarted: Vec<ContentHash>,
    have: BTreeMap<ContentHash, u64>,
    merged: Option<(Receipt, PathBuf)>,
    /// What the rule did to single members in it.
    account: Account,
    listening: Vec<String>,
    phase: Phase,
    progress: Option<TrainingStatus>,
    role: &'static str,
    goal: Goal,
    started: Instant,
    show: Option<Show>,
    chronicle: Chronicle,
    observe: F,
}

impl<F: FnMut(&Event)> Driver<F> {
    fn start(peer: Peer, chronicle: Chronicle, mut observe: F) -> Result<Self> {
        let Peer { home, round, key, listen, bootstrap, mdns, reach, work, judge, goal, show } = peer;
        let member = key.member();
        if work.announces() {
            belonging::check_may_announce(&round, &member)?;
        }
        home.prepare(&round)?;
        let store = Store::open(home.store())?;
        let stored = store.records()?;
        let mut records = Vec::new();
        for (_, bytes) in &stored {
            match UnverifiedRecord(bytes).verify(&round) {
                Ok(record) => records.push(record),
                Err(error) => tracing::warn!(%error, "dropping a stored record"),
            }
        }
        let mut machine = Machine::new(round.clone(), records).remember_refused(refusals::remembered(&store)?);
        if let Work::Believe(quorum, _) = &work {
            machine = machine.believing(*quorum);
        }
        let access = belonging::access(&work, &machine);
        let network = NetworkConfig {
            secret: key.to_bytes(),
            listen,
            bootstrap,
            mdns,
            reach,
            topic: format!("/mingle/records/1/{}", round.id()),
            allowed: access.clone(),
            limits: network::Limits::default(),
        };
        let (network, events) = Network::start(network, store.clone())?;
        offer(&network, &round, &home)?;
        let (job_sender, jobs) = mpsc::channel(JOBS_MAX);
        let (orders, order) = watch::channel(averaging::Order::default());
        start_averaging(&round, &store, &home, order, job_sender.clone());
        let role = work.role();
        let manifest = round.manifest();
        observe(&Event::Started {
            role,
            member,
            round: round.id().to_string(),
            name: manifest.name.clone(),
            home: home.folder().to_owned(),
        });
        // Refused ones, and what a kill left behind between keeping a record and forgetting what it displaced.
        let kept: BTreeSet<[u8; 32]> = machine.ledger().records().map(|record| record.id().0.0).collect();
        let left: Vec<[u8; 32]> = stored.into_iter().map(|(id, _)| id).filter(|id| !kept.contains(id)).collect();
        if !left.is_empty() {
            store.remove_records(&left)?;
        }
        let vouching = Vouching::open(&store, &home.evidence(), job_sender.clone(), &work)?;
        let mut driver = Self {
            machine,
            key,
            home,
            store,
            network,
            events,
            jobs,
            orders,
            vouching,
            judging: Judging::new(judge, job_sender.clone()),
            stop: Arc::default(),
            training: None,
            unsaved: Vec::new(),
            forgotten: Vec::new(),
            unstarted: Vec::new(),
            said: None,
            access,
            access_due: false,
            waiting: None,
            telling: false,
            withdrawing: false,
            enough_since: None,
            have: BTreeMap::new(),
            merged: None,
            account: Account::default(),
            listening: Vec::new(),
            phase: Phase::Following,
            progress: None,
            role,
            goal,
            started: Instant::now(),
            show,
            chronicle,
            observe,
        };
        for (adapter, size) in driver.store.blobs()? {
            driver.have.insert(adapter, size);
            driver.handle(Input::BlobStored { adapter, size })?;
        }
        if driver.machine.merge_set().is_empty() && !matches!(work, Work::Believe(..)) {
            // Killed between the last withdrawal and its effect.
            crate::merged::unpublish(&driver.home.merged())?;
        }
        driver.begin(work, job_sender)?;
        driver.take_vouched()?;
        driver.collect_garbage()?;
        Ok(driver)
    }

    /// What this member itself has said, as the ledger has it.
    fn own_slot(&self) -> Option<SlotState<'_>> {
        self.machine.ledger().slot(&self.key.member())
    }

    /// Starts what this peer contributes, unless it already stands in the ledger.
    fn begin(&mut self, work: Work, jobs: mpsc::Sender<Job>) -> Result<()> {
        let own = self.own_slot();
        let stands = matches!(own, Some(SlotState::Adapter(_)));
        let withdrawn = matches!(own, Some(SlotState::Withdrawn));
        if work.announces() {
            let trained = crate::sent::sent_file(&self.home.adapter(), self.machine.round().kind());
            self.store_again(&trained)?;
        }
        match work {
            Work::Read | Work::Believe(..) | Work::Seed | Work::Serve => {}
            Work::Tell(records) => self.tell(records)?,
            Work::Publish(prepared) => self.announce(prepared)?,
            Work::Train(_) if stands => {
                self.phase = Phase::Announced;
                self.forget_training()?;
            }
            Work::Train(_) if withdrawn => {
                let why = "this member has withdrawn from the round; `mingle publish` announces an adapter again".into();
                (self.observe)(&Event::Trouble { why });
            }
            Work::Withdraw => self.withdrawing = true,
            Work::Train(train) => {
                self.phase = Phase::Training;
                let desk = TrainingDesk::new(self.stop.clone(), jobs.clone());
                let run = move || {
                    let trained = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| train(&desk)));
                    let panicked = |_| Err(anyhow::anyhow!("the training panicked; what it printed before says where"));
                    let prepared = trained.unwrap_or_else(panicked);
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
                    self.take_inbox()?;
                    self.handle(Input::Tick)?;
                    self.vouch()?;
                    self.judge()?;
                    // What it comes to believe may be here from before.
                    self.take_vouched()?;
                    self.write_status();
                }
            }
            self.follow_changes()?;
            let known = self.machine.has_compared() || self.own_slot().is_some();
            if self.withdrawing && known {
                self.withdrawing = false;
                self.withdraw()?;
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
        self.chronicle.keep(true);
        if let Some(training) = self.training.take() {
            let deadline = Instant::now() + TRAINING_STOP;
            while !training.is_finished() && Instant::now() < deadline {
                // Progress must be taken, or a training that reports could wait for us as we wait for it.
                let _ = tokio::time::timeout(Duration::from_millis(20), self.jobs.recv()).await;
            }
        }
        let _ = tokio::time::timeout(Duration::from_secs(3), self.network.shutdown()).await;
    }
}

/// Whoever knows the round's name may have its file from here.
fn offer(network: &NetworkHandle, round: &Round, home: &RoundHome) -> Result<()> {
    let path = home.round_file();
    let text = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(network.offer_round(round.id(), text.into())?)
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
        // It ends before the loop does only when it has panicked.
        let _ = jobs.send(Job::Averaged(Err(anyhow::anyhow!("the merger has stopped")))).await;
    });
}
