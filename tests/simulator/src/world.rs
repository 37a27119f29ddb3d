//! One history from its seed to its verdict: the agenda is worked off, and the checkers say what they think.

use std::collections::BTreeMap;

use mingle_protocol::hash::ContentHash;
use mingle_protocol::identity::MemberKey;

use crate::Name;
use crate::agenda::Agenda;
use crate::checks::Checks;
use crate::deeds::Deed;
use crate::dice::Dice;
use crate::figures::DIAL_INTERVAL;
use crate::ground::{Bytes, Ground};
use crate::peer::{Clock, Peer, Presence, Waiting};
use crate::plan::{Plan, Strike};
use crate::setting::{Class, Planted, Setting};
use crate::trace::Trace;
use crate::wire::{Link, Mail, Split};

/// How often peers are looked at once the faults are over.
const LOOK_MS: u64 = 50;
/// What they agreed on must hold for so long.
const STEADY_MS: u64 = 4_000;
/// After this nobody waits any more.
const GIVEN_UP_MS: u64 = 240_000;

/// A peer's process: what is meant for an earlier one comes to nothing.
#[derive(Clone, Copy)]
pub struct Visit {
    pub peer: Name,
    pub life: u32,
}

pub enum Event {
    Tick(Visit),
    Dial(Visit),
    /// The driver may go on.
    Drive(Visit),
    /// The disk has taken what it was given.
    Saved(Visit),
    Averaged(Visit),
    Mischief(Visit),
    Arrive {
        from: Name,
        to: Name,
        link: u64,
        mail: Mail,
    },
    Met {
        one: Name,
        other: Name,
    },
    Parted {
        at: Visit,
        with: Name,
        link: u64,
    },
    Unanswered {
        at: Visit,
        token: u64,
    },
    Transfer {
        at: Visit,
        adapter: ContentHash,
        ticket: u64,
    },
    Deed(Name, Deed),
    Strike(Strike),
    Start(Name),
    Heal,
    Look,
}

pub struct World {
    pub setting: Setting,
    pub planted: Planted,
    pub ground: Ground,
    pub peers: Vec<Peer>,
    pub links: BTreeMap<(Name, Name), Link>,
    pub splits: Vec<Split>,
    pub bootstraps: Vec<Name>,
    /// The peer that speaks for each member.
    pub voices: BTreeMap<MemberKey, Name>,
    pub agenda: Agenda<Event>,
    pub dice: Dice,
    pub checks: Checks,
    trace: Trace,
    failure: Option<String>,
    /// What kept the peers from agreeing when they were last looked at.
    last_doubt: String,
    pub healed: bool,
    pub heal_at: u64,
    /// When somebody who keeps the rules last said something.
    pub last_word: u64,
    /// How long each peer is away when it crashes next.
    pub away: Vec<u64>,
    pub remembered: Vec<(Name, Name, Mail)>,
    pub overheard: Vec<Bytes>,
    pub false_sequences: BTreeMap<usize, u64>,
    pub links_made: u64,
    pub tickets: u64,
    pub asked: u64,
    pub sent: u64,
    pub sent_bytes: u64,
}

/// What a history showed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    pub peers: usize,
    pub members: usize,
    /// Adapters in the merge at the end.
    pub merged: usize,
    /// From the end of the faults (without faults: from the last record) until all agreed for good.
    pub converged_ms: u64,
    pub questions: u64,
    pub messages: u64,
    pub message_bytes: u64,
    pub records: usize,
    /// How often each kind of thing happened.
    pub happened: BTreeMap<&'static str, u64>,
    /// Equal for equal histories.
    pub trace: String,
}

/// A checker's objection, and how to see it again.
#[derive(Clone, Debug)]
pub struct Failure {
    pub seed: u64,
    pub class: String,
    pub why: String,
    pub last: Vec<String>,
    pub converged_ms: Option<u64>,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for line in &self.last {
            writeln!(f, "{line}")?;
        }
        writeln!(f, "seed {}: {}", self.seed, self.why)?;
        write!(f, "again: cargo run --release -p mingle-simulator -- --first {} --seeds 1 {}", self.seed, self.class)
    }
}

/// Plays one seed.
///
/// # Errors
/// What the first checker that is not content says.
pub fn play(seed: u64, class: &Class) -> Result<Outcome, Box<Failure>> {
    let mut world = World::new(seed, class);
    let converged = world.run(class);
    let converged_ms = converged.as_ref().ok().copied();
    converged.and_then(|converged_ms| world.judge(class, converged_ms)).map_err(|why| {
        let Setting { peers, members, hostile, .. } = world.setting;
        let why = format!("{why} ({peers} peers, {members} members, {hostile} hostile)");
        Box::new(Failure { seed, class: class.words(), why, last: world.trace.words(), converged_ms })
    })
}

impl World {
    fn new(seed: u64, class: &Class) -> Self {
        let setting = Setting::draw(class, &mut Dice::new(seed, "setting"));
        let ground = Ground::new(&setting, &mut Dice::new(seed, "ground"));
        let plan = Plan::draw(&setting, class.faults, ground.files.len(), &mut Dice::new(seed, "plan"));
        let mut world = Self {
            peers: (0..setting.peers).map(|_| Peer::new(&ground.round)).collect(),
            links: BTreeMap::new(),
            voices: plan.members.iter().enumerate().map(|(key, name)| (ground.keys[key].member(), *name)).collect(),
            bootstraps: plan.bootstraps.clone(),
            agenda: Agenda::default(),
            dice: Dice::new(seed, "world"),
            checks: Checks::new(setting.peers, setting.open_roster),
            trace: Trace::default(),
            failure: None,
            last_doubt: String::new(),
            healed: false,
            heal_at: plan.heal_at,
            last_word: 0,
            away: vec![0; setting.peers],
            splits: plan.splits.clone(),
            planted: class.planted,
            remembered: Vec::new(),
            overheard: Vec::new(),
            false_sequences: BTreeMap::new(),
            links_made: 0,
            tickets: 0,
            asked: 0,
            sent: 0,
            sent_bytes: 0,
            setting,
            ground,
        };
        world.lay_out(plan);
        world
    }

    fn lay_out(&mut self, plan: Plan) {
        for (key, name) in plan.members.iter().enumerate() {
            self.peers[*name].key = Some(key);
        }
        for name in plan.hostile {
            self.peers[name].hostile = true;
        }
        for name in plan.slow {
            self.peers[name].slow = true;
        }
        for peer in 0..self.peers.len() {
            if self.setting.skewed {
                let (ahead, rate) = (self.dice.number() >> 20, 900 + self.dice.below(201) as u64);
                self.peers[peer].clock = Clock { begun: 0, ahead, rate };
            }
            if !plan.late.contains(&peer) {
                let when = self.dice.below(1_000) as u64;
                self.agenda.at(when, Event::Start(peer));
            }
        }
        for (at, peer, deed) in plan.deeds {
            if !self.peers[peer].hostile {
                self.agenda.at(at, Event::Deed(peer, deed));
            }
        }
        for (at, strike) in plan.strikes {
            self.agenda.at(at, Event::Strike(strike));
        }
        self.agenda.at(plan.heal_at, Event::Heal);
        self.agenda.at(plan.look_from, Event::Look);
    }

    /// The timers of a process that begins.
    pub fn begin_timers(&mut self, at: Name) {
        let visit = self.visit(at);
        let (tick, dial) = (self.dice.below(self.setting.tick_ms as usize), self.dice.below(DIAL_INTERVAL as usize / 4));
        self.agenda.after(dial as u64, Event::Dial(visit));
        if self.peers[at].hostile {
            self.agenda.after(1_000, Event::Mischief(visit));
        } else {
            self.agenda.after(tick as u64, Event::Tick(visit));
        }
    }

    pub fn visit(&self, at: Name) -> Visit {
        Visit { peer: at, life: self.peers[at].life }
    }

    pub fn note(&mut self, at: Name, what: &'static str, number: u64) {
        self.trace.note(self.agenda.now(), at, what, number);
    }

    pub fn fail(&mut self, why: String) {
        self.failure.get_or_insert(why);
    }

    /// Until all agree and stay so; when that began, counted from the end of the faults or the last record.
    fn run(&mut self, class: &Class) -> Result<u64, String> {
        let mut agreed_at = None;
        while let Some(event) = self.agenda.next_event() {
            let now = self.agenda.now();
            match event {
                Event::Look => {
                    let agree = self.checks.convergence.look(&self.peers, &self.ground);
                    agreed_at = agreed_at.filter(|_| agree.is_ok()).or(agree.is_ok().then_some(now));
                    if let Err(why) = &agree {
                        self.last_doubt.clone_from(why);
                    }
                    if let Some(since) = agreed_at.filter(|since| self.healed && now - since >= STEADY_MS) {
                        let from = if class.faults { self.heal_at.max(self.last_word) } else { self.last_word };
                        return Ok(since - from.min(since));
                    }
                    if let Err(why) = agree
                        && now > self.heal_at + GIVEN_UP_MS
                    {
                        return Err(format!("{} s after the faults {why}", GIVEN_UP_MS / 1_000));
                    }
                    self.agenda.after(LOOK_MS, Event::Look);
                }
                other => self.happen(other),
            }
            if let Some(why) = self.failure.take() {
                return Err(why);
            }
        }
        Err("nothing happens any more".into())
    }

    fn lives(&self, visit: Visit) -> bool {
        let peer = &self.peers[visit.peer];
        peer.presence == Presence::Up && peer.life == visit.life
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Arrive { from, to, link, mail } => self.arrive(from, to, link, mail),
            Event::Met { one, other } => self.met(one, other),
            Event::Deed(peer, deed) => self.decide(peer, deed),
            Event::Strike(strike) => self.strike(strike),
            Event::Start(peer) => self.start(peer),
            Event::Heal => self.heal(),
            Event::Look => {}
            Event::Tick(visit) if self.lives(visit) => {
                self.agenda.after(self.setting.tick_ms, Event::Tick(visit));
                // A tick that was missed is not made up for.
                let inbox = &self.peers[visit.peer].driver.inbox;
                if !inbox.iter().any(|waiting| matches!(waiting, Waiting::Tick)) {
                    self.wait(visit.peer, Waiting::Tick);
                }
            }
            Event::Dial(visit) if self.lives(visit) => self.dial(visit),
            Event::Drive(visit) if self.lives(visit) => self.drive(visit.peer),
            Event::Saved(visit) if self.lives(visit) => {
                self.peers[visit.peer].driver.saving = false;
                if self.commit(visit.peer) {
                    self.drive(visit.peer);
                }
            }
            Event::Averaged(visit) if self.lives(visit) => self.step_done(visit.peer),
            Event::Mischief(visit) if self.lives(visit) => self.mischief(visit),
            Event::Parted { at, with, link } if self.lives(at) => self.parted(at.peer, with, link),
            Event::Unanswered { at, token } if self.lives(at) => self.unanswered(at.peer, token),
            Event::Transfer { at, adapter, ticket } if self.lives(at) => self.transfer(at.peer, adapter, ticket),
            // Of a process that is gone.
            _ => {}
        }
    }

    /// The last word of the checkers.
    fn judge(&mut self, class: &Class, converged_ms: u64) -> Result<Outcome, String> {
        for (at, peer) in self.peers.iter().enumerate().filter(|(_, peer)| peer.is_judged()) {
            self.checks.acknowledged.remembers(at, peer.machine.ledger())?;
        }
        let all: Vec<&Peer> = self.peers.iter().filter(|peer| peer.is_judged()).collect();
        let first = all.first().ok_or("nobody is left")?;
        self.checks.acknowledged.nothing_is_lost(&self.peers, first.machine.ledger())?;
        self.checks.convergence.nobody_honest_contradicts(first.machine.ledger(), &self.peers, &self.ground)?;
        self.checks.agreement.of_one_ground(&self.ground, all.iter().map(|peer| peer.merge_set()))?;
        if converged_ms > class.patience_ms {
            let allowed = class.patience_ms as f64 / 1_000.0;
            let (took, last) = (converged_ms as f64 / 1_000.0, &self.last_doubt);
            return Err(format!("agreement took {took} s, {allowed} s are allowed; until then {last}"));
        }
        Ok(Outcome {
            peers: self.setting.peers,
            members: self.setting.members,
            merged: first.merge_set().len(),
            converged_ms,
            questions: self.asked,
            messages: self.sent,
            message_bytes: self.sent_bytes,
            records: self.checks.acknowledged.known(),
            happened: self.trace.counts().clone(),
            trace: self.trace.hash(),
        })
    }
}
