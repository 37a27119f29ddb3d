//! One download: conversations with its providers, and the schedule that says which piece is asked of whom, until the
//! blob is complete or nobody is left who could have the rest.
//!
//! What arrives verified is kept whatever happens next. A provider that lies is not asked again and is reported.

use std::sync::Arc;
use std::time::Duration;

use libp2p::PeerId;
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::blob_frames::Ask;
use crate::downloads::{Context, Ended, Hint, Wanted};
use crate::extent::Extent;
use crate::head::{Head, HeadVerdict};
use crate::limits::{LINKS_MAX, PROGRESS_INTERVAL};
use crate::link::{Heard, LinkError, Order, converse};
use crate::pieces::Pieces;
use crate::providers::{Providers, Verdict};
use crate::schedule::{Schedule, Step};
use crate::service::Report;
use crate::store::{PartialBlob, StoreError};
use crate::transfers::Transfer;

/// How often the last proof may find that our own disk changed bytes before we give up.
const REPAIRS_MAX: u32 = 3;
/// With nothing on its way for so long, whoever is still talked to does not have the rest either.
const FRUITLESS_MAX: Duration = Duration::from_secs(60);
/// The same where all who are talked to have nothing of it yet: peers that look for it as we do could wait for each other
/// for ever.
const EMPTY_HANDED_MAX: Duration = Duration::from_secs(5);
/// What the conversations may have said that the download has not heard yet.
const HEARD_MAX: usize = 64;
/// No piece: what is asked for the head's sake.
const HEAD: u32 = u32::MAX;

struct Download {
    context: Context,
    partial: Arc<PartialBlob>,
    extent: Extent,
    stop: CancellationToken,
    providers: Providers,
    schedule: Schedule<PeerId>,
    /// To be judged before anything else is fetched.
    head: Option<Head>,
    links: JoinSet<(PeerId, Result<(), LinkError>)>,
    heard: mpsc::Sender<(PeerId, Heard)>,
    began: Instant,
    /// When something new came last.
    moved: Instant,
    /// Whether the schedule may have something to ask.
    due: bool,
    /// Who sent something last, for the progress report.
    sender: Option<PeerId>,
    repairs: u32,
    /// Makes durable what has come, while more comes.
    commit: Option<JoinHandle<Result<(), StoreError>>>,
}

/// Runs a download to its end; `more` brings further providers while it runs.
pub async fn run(context: Context, wanted: Wanted, more: mpsc::Receiver<Hint>, stop: CancellationToken) -> Ended {
    let Wanted { hash, size, providers, head } = wanted;
    let store = context.store.clone();
    let begun = blocking(move || match store.blob_size(hash)? {
        Some(found) if found == size => Ok(None),
        Some(found) => Err(StoreError::SizeMismatch { hash, found, asked: size }),
        None => store.begin_download(hash, size).map(Some),
    });
    let partial = match begun.await {
        Ok(Some(partial)) => Arc::new(partial),
        Ok(None) => return Ended::Fetched,
        Err(why) => return Ended::Failed(why),
    };
    let (heard, hearing) = mpsc::channel(HEARD_MAX);
    let extent = Extent::whole(partial.clone());
    let mut download = Download {
        schedule: schedule(&extent),
        head: head.map(|check| Head::new(check, size)),
        extent,
        partial,
        stop,
        providers: Providers::default(),
        links: JoinSet::new(),
        heard,
        began: Instant::now(),
        moved: Instant::now(),
        due: true,
        sender: None,
        repairs: 0,
        commit: None,
        context,
    };
    providers.into_iter().for_each(|peer| download.providers.add(peer, true, Instant::now()));
    let ended = download.drive(hearing, more).await;
    // The conversations hold the partial blob: it is free for the next download only when they are gone.
    download.stop.cancel();
    // Never aborted, which could cut them off in the middle of a write.
    while download.links.join_next().await.is_some() {}
    if let Some(commit) = download.commit.take() {
        let _ = commit.await;
    }
    download.context.board.clear(hash);
    download.context.window.set(hash, 0);
    let Download { partial, extent, context, .. } = download;
    drop(extent);
    let kept = match &ended {
        Ended::Fetched | Ended::Part => Ok(()),
        Ended::Failed(_) | Ended::Cancelled => blocking(move || partial.commit()).await,
        // Nobody will ask for the rest.
        Ended::Refused(_) => {
            drop(partial);
            blocking(move || context.store.remove_blob(hash)).await
        }
    };
    if let Err(why) = kept {
        tracing::warn!(%hash, why, "what was fetched could not be made durable, or removed");
    }
    ended
}

fn schedule(extent: &Extent) -> Schedule<PeerId> {
    // Peers that begin together must not choose alike; whoever could foresee it would gain nothing.
    let seed = getrandom::u64().unwrap_or_default();
    Schedule::new(extent.pieces(), seed)
}

impl Download {
    async fn drive(&mut self, mut hearing: mpsc::Receiver<(PeerId, Heard)>, mut more: mpsc::Receiver<Hint>) -> Ended {
        let mut progress = interval(PROGRESS_INTERVAL);
        progress.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut told = 0;
        loop {
            if std::mem::take(&mut self.due) {
                match self.head.take() {
                    Some(head) => {
                        if let Some(ended) = self.plan_head(head) {
                            return ended;
                        }
                    }
                    None => self.plan(),
                }
            }
            if self.schedule.is_complete() {
                match self.finish().await {
                    Some(ended) => return ended,
                    None => continue,
                }
            }
            // Not before: what is here already needs nobody.
            self.connect();
            if self.links.is_empty() && self.providers.all_failed() {
                return Ended::Failed(self.providers.why_failed());
            }
            let patience = if self.providers.useful() == 0 { EMPTY_HANDED_MAX } else { FRUITLESS_MAX };
            if self.moved.elapsed() > patience && !self.schedule.is_waiting() && self.providers.talking().next().is_some() {
                return Ended::Failed("nobody who is connected has the rest of it".to_owned());
            }
            let next = self.providers.next_try().unwrap_or_else(Instant::now).max(Instant::now() + PROGRESS_INTERVAL);
            tokio::select! {
                () = self.stop.cancelled() => return Ended::Cancelled,
                Some((peer, heard)) = hearing.recv() => self.hear(peer, heard),
                Some(ended) = self.links.join_next() => match ended {
                    Ok((peer, outcome)) => if let Some(ended) = self.settle(peer, outcome).await {
                        return ended;
                    },
                    Err(error) => return Ended::Failed(format!("a conversation failed: {error}")),
                },
                committed = Self::committed(&mut self.commit), if self.commit.is_some() => {
                    self.commit = None;
                    if let Err(error) = committed {
                        return Ended::Failed(error.to_string());
                    }
                },
                Some((peer, named)) = more.recv() => self.providers.add(peer, named, Instant::now()),
                () = sleep_until(next) => {}
                _ = progress.tick() => {
                    self.due = true;
                    self.tell(&mut told);
                }
            }
        }
    }

    async fn committed(commit: &mut Option<JoinHandle<Result<(), StoreError>>>) -> Result<(), StoreError> {
        match commit {
            // A commit that was cut off is made up for at the end.
            Some(commit) => commit.await.unwrap_or(Ok(())),
            None => Ok(()),
        }
    }

    fn now(&self) -> Duration {
        self.began.elapsed()
    }

    /// Begins conversations while they promise something: no more than there are pieces to ask for, as long as it moves.
    fn connect(&mut self) {
        let now = Instant::now();
        let missing = self.schedule.missing();
        let patience = usize::try_from(now.saturating_duration_since(self.moved).as_secs()).unwrap_or(usize::MAX);
        let allowed = missing.saturating_add(patience).min(LINKS_MAX);
        while self.providers.useful() < allowed && self.links.len() < LINKS_MAX * 2 {
            let Some(peer) = self.providers.choose(&self.context.connected, self.partial.size(), self.began, now) else { return };
            let (orders, inbox) = mpsc::unbounded_channel();
            self.providers.talk(peer, orders);
            let (context, partial, heard, stop) = (self.context.clone(), self.partial.clone(), self.heard.clone(), self.stop.clone());
            self.links.spawn(async move { (peer, converse(context, partial, peer, inbox, heard, stop).await) });
        }
    }

    /// Judges the first bytes, or asks one provider for them.
    fn plan_head(&mut self, mut head: Head) -> Option<Ended> {
        let now = self.now();
        match head.judge(&self.partial) {
            Err(error) => return Some(Ended::Failed(error.to_string())),
            Ok(Some(HeadVerdict::Refused(why))) => return Some(Ended::Refused(why)),
            Ok(Some(verdict)) => {
                if let HeadVerdict::Part(bytes) = verdict {
                    self.extent.narrow(&bytes, &head.ranges(self.partial.size()));
                }
                self.schedule.resize(self.extent.pieces());
                self.due = true;
                return None;
            }
            Ok(None) => {}
        }
        let ranges = self.partial.missing_of(&head.ranges(self.partial.size()));
        let holders = self.schedule.holders(&Pieces::of(self.partial.size()).touched(&ranges));
        if let Some(peer) = head.next(holders.into_iter(), now) {
            self.providers.order(peer, Order::Want { piece: HEAD, ranges });
        }
        self.head = Some(head);
        None
    }

    fn plan(&mut self) {
        let now = self.now();
        self.on_its_way(now);
        for step in self.schedule.plan(now, self.context.window.room()) {
            match step {
                Step::Ask { peer, piece } => {
                    let ranges = Ask::first_of(&self.extent.missing_of(piece));
                    if ranges.is_empty() {
                        // Came by another way in the meantime.
                        let drops = self.schedule.finished(piece, peer, now);
                        self.drop_all(drops);
                        self.due = true;
                    } else {
                        self.providers.order(peer, Order::Want { piece, ranges });
                    }
                }
                Step::Drop { peer, piece } => self.providers.order(peer, Order::Drop { piece }),
            }
        }
        self.on_its_way(now);
    }

    /// Lets the other downloads know how much of the line this one fills.
    fn on_its_way(&self, now: Duration) {
        self.context.window.set(self.partial.hash(), self.schedule.on_its_way(now));
    }

    fn drop_all(&mut self, steps: Vec<Step<PeerId>>) {
        for step in steps {
            if let Step::Drop { peer, piece } = step {
                self.providers.order(peer, Order::Drop { piece });
            }
        }
    }

    fn hear(&mut self, peer: PeerId, heard: Heard) {
        // A conversation that has ended may have left words behind; its provider is out of the schedule.
        if !self.providers.is_talking(peer) {
            return;
        }
        let now = self.now();
        match heard {
            Heard::Holds(holds) => {
                self.providers.holds(peer, &holds);
                self.schedule.holds(peer, holds, now);
                self.due = true;
            }
            Heard::Have(pieces) => {
                self.providers.offers(peer);
                pieces.into_iter().for_each(|piece| self.schedule.has(peer, piece));
                self.due = true;
            }
            Heard::Alive { bytes } => {
                self.context.window.arrived(bytes);
                self.schedule.alive(peer, bytes, now);
            }
            Heard::Moved { piece, bytes, new, told } => {
                self.context.window.arrived(bytes.saturating_sub(told));
                self.schedule.moved(peer, piece, bytes.saturating_sub(told), new, now);
                if new < bytes {
                    tracing::debug!(%peer, piece, bytes, new, "TWICE");
                }
                self.providers.brought(peer, bytes);
                self.sender = Some(peer);
                if new > 0 {
                    self.moved = Instant::now();
                }
                if self.commit.is_none() && self.partial.commit_is_due() {
                    let partial = self.partial.clone();
                    self.commit = Some(tokio::task::spawn_blocking(move || partial.commit()));
                }
            }
            Heard::Answered { piece: HEAD } | Heard::Cannot { piece: HEAD } => {
                if let Some(head) = &mut self.head {
                    head.settled(peer);
                }
                self.due = true;
            }
            Heard::Answered { piece } => {
                let left = self.extent.left_of(piece);
                if left == 0 {
                    let drops = self.schedule.finished(piece, peer, now);
                    self.drop_all(drops);
                } else {
                    self.schedule.released(peer, piece, left, now);
                }
                self.due = true;
            }
            Heard::Cannot { piece } => {
                self.schedule.lacks(peer, piece, now);
                self.due = true;
            }
        }
    }

    /// What a conversation's end means for its provider; `Some` when it ends the download.
    async fn settle(&mut self, peer: PeerId, outcome: Result<(), LinkError>) -> Option<Ended> {
        self.schedule.gone(peer);
        if let Some(head) = &mut self.head {
            head.settled(peer);
        }
        self.due = true;
        if let Err(error) = &outcome {
            tracing::debug!(hash = %self.partial.hash(), %error, "a conversation about a blob ended");
        }
        let verdict = match outcome {
            Err(LinkError::Store(error)) => return Some(Ended::Failed(error.to_string())),
            outcome => self.providers.ended(peer, outcome, Instant::now()),
        };
        if let Some(Verdict { offence, close }) = verdict {
            if let Some(offence) = offence {
                let _ = self.context.reports.send(Report::Misbehaved { peer, offence }).await;
            }
            if let Some(connection) = close {
                // The watchdog's second half: a connection that carries nothing blocks whoever shares it.
                let _ = self.context.reports.send(Report::Close(connection)).await;
            }
        }
        None
    }

    /// Seals the blob, or makes the part of it durable that was wanted; `None` when the disk changed bytes and they are fetched again.
    async fn finish(&mut self) -> Option<Ended> {
        let (partial, part) = (self.partial.clone(), self.extent.is_part());
        let sealed = tokio::task::spawn_blocking(move || if part { partial.commit() } else { partial.finish() }).await;
        match sealed {
            Ok(Ok(())) if part => Some(Ended::Part),
            Ok(Ok(())) => Some(Ended::Fetched),
            Ok(Err(StoreError::Incomplete { .. })) if self.repairs < REPAIRS_MAX => {
                self.repairs += 1;
                // Everybody is asked anew what it holds: simple, and it happens to broken disks only.
                self.schedule = schedule(&self.extent);
                self.providers.hang_up();
                self.due = true;
                None
            }
            Ok(Err(error)) => Some(Ended::Failed(error.to_string())),
            Err(error) => Some(Ended::Failed(format!("the last proof failed: {error}"))),
        }
    }

    fn tell(&self, told: &mut u64) {
        let hash = self.partial.hash();
        let (have, size) = self.extent.have();
        let providers = self.providers.status(|peer| self.schedule.rate(peer, self.now()));
        self.context.board.show(Transfer { hash, size, have, providers });
        // How much is wanted is known when the head was judged.
        if let (Some(from), true) = (self.sender, self.head.is_none() && have != *told) {
            *told = have;
            // Progress is not worth waiting for.
            let _ = self.context.reports.try_send(Report::Progress { hash, have, size, from });
        }
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, StoreError> + Send + 'static) -> Result<T, String> {
    match tokio::task::spawn_blocking(work).await {
        Ok(outcome) => outcome.map_err(|error| error.to_string()),
        Err(error) => Err(format!("a disk task failed: {error}")),
    }
}
