//! Groups of options that several verbs share.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Args;
use mingle_protocol::round::{MergeRule, Round, RoundFile};

use super::base::{self, BaseArg};
use super::http::HttpArgs;
use super::source;
use crate::data::Template;
use crate::driver::{self, Event, Goal, Outcome, Peer, Work};
use crate::home::{self, Home};
use crate::judge::Judge;
use crate::network::web::{Identity, Web};
use crate::network::{Multiaddr, ReachConfig, Role};

/// Where the key, the store and the results are kept.
#[derive(Args, Clone, Debug)]
pub struct HomeArgs {
    /// Folder of this peer: its key, what it fetched, what it merged [default: ~/.mingle]
    #[arg(long, env = "MINGLE_HOME", hide_env_values = true, value_name = "DIR")]
    pub home: Option<PathBuf>,
}

impl HomeArgs {
    pub fn open(&self) -> Result<Home> {
        match &self.home {
            Some(folder) => Ok(Home::new(folder)),
            None => {
                let folder = home::default_folder().context("no home folder of the user is known; give --home")?;
                Ok(Home::new(folder))
            }
        }
    }
}

/// A peer's address; of what people write instead, the form that was meant is told.
pub fn multiaddr(text: &str) -> Result<Multiaddr, String> {
    text.parse().map_err(|_| {
        let (host, port) = text.rsplit_once(':').unwrap_or((text, "4001"));
        let kind = match host.parse::<std::net::IpAddr>() {
            Ok(std::net::IpAddr::V4(_)) => "ip4",
            Ok(std::net::IpAddr::V6(_)) => "ip6",
            Err(_) => "dns4",
        };
        let is_name = !host.is_empty() && host.chars().all(|character| character.is_ascii_alphanumeric() || ".-:".contains(character));
        match is_name && port.parse::<u16>().is_ok() {
            true => format!("no multiaddr; did you mean /{kind}/{host}/tcp/{port}?"),
            false => "no multiaddr, such as /ip4/10.0.0.7/tcp/4001 or /dns4/peer.example/udp/4001/quic-v1".to_owned(),
        }
    })
}

/// Where this peer is reached and whom it dials first.
#[derive(Args, Clone, Debug)]
pub struct NetworkArgs {
    /// Address to listen on; may be given several times [default: any port, TCP and QUIC, all interfaces]
    #[arg(long, value_name = "MULTIADDR", value_parser = multiaddr)]
    pub listen: Vec<Multiaddr>,
    /// Peer to dial and keep dialling, such as /ip4/10.0.0.7/tcp/4001; may be given several times
    #[arg(long = "peer", value_name = "MULTIADDR", value_parser = multiaddr)]
    pub peers: Vec<Multiaddr>,
    /// Look for peers on the local network by multicast DNS
    #[arg(long)]
    pub mdns: bool,
    /// Open no connection: do what can be done with what this home has, then end (see `mingle bundle`)
    #[arg(long, conflicts_with_all = ["listen", "peers", "mdns"])]
    pub offline: bool,
    #[command(flatten)]
    pub tls: TlsArgs,
    #[command(flatten)]
    pub reach: ReachArgs,
}

/// Whom to believe where a connection looks like one to a web server.
#[derive(Args, Clone, Debug, Default)]
pub struct TlsArgs {
    /// Certificates (PEM) of an institution's own authority, which are believed at /wss addresses beside the web's
    #[arg(long, value_name = "FILE")]
    pub tls_ca: Option<PathBuf>,
    /// What a seed shows there.
    #[arg(skip)]
    pub identity: Option<(PathBuf, PathBuf)>,
}

impl TlsArgs {
    /// # Errors
    /// A file that does not hold what it should.
    pub fn web(&self) -> Result<Web> {
        let identity = self.identity.as_ref().map(|(certificate, key)| Identity { certificate, key });
        Ok(Web::new(identity, self.tls_ca.as_deref())?)
    }
}

/// How this peer is reached from outside.
#[derive(Args, Clone, Debug)]
pub struct ReachArgs {
    /// Address that leads here from outside, such as that of a forwarded port; may be given several times
    #[arg(long, value_name = "MULTIADDR", value_parser = multiaddr)]
    pub external: Vec<Multiaddr>,
    /// Ask the router to forward a port (UPnP)
    #[arg(long)]
    pub upnp: bool,
    /// Whether others can dial this peer: found out, or known
    #[arg(long, value_enum, default_value_t = ReachArg::Auto)]
    pub reach: ReachArg,
    /// Refuse new connections while this process holds more memory, in MiB [default: nine tenths of what there is]
    #[arg(long, value_name = "MIB")]
    pub memory_max: Option<usize>,
}

/// Whether others can dial this peer.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub enum ReachArg {
    /// Public peers are asked to dial back
    Auto,
    /// It can be dialled: it relays for others
    Public,
    /// It cannot be dialled: it reserves with relays at once
    Private,
}

impl NetworkArgs {
    /// # Errors
    /// A certificate or key that cannot be used.
    pub fn reach(&self) -> Result<ReachConfig> {
        let ReachArgs { external, upnp, reach, memory_max } = self.reach.clone();
        let role = match reach {
            ReachArg::Auto => Role::Auto,
            ReachArg::Public => Role::Public,
            ReachArg::Private => Role::Private,
        };
        let memory_max = memory_max.map(|mib| mib.saturating_mul(1 << 20));
        Ok(ReachConfig { role, external, upnp, memory_max, web: self.tls.web()? })
    }

    pub fn listen(&self) -> Vec<Multiaddr> {
        if !self.listen.is_empty() || self.offline {
            return self.listen.clone();
        }
        ["/ip4/0.0.0.0/udp/0/quic-v1", "/ip4/0.0.0.0/tcp/0"].iter().filter_map(|address| address.parse().ok()).collect()
    }
}

/// How adapters become one.
#[derive(Args, Clone, Debug)]
pub struct RuleArgs {
    /// How adapters become one (docs/rules.md)
    #[arg(long, value_enum, default_value_t = RuleArg::Mean)]
    pub rule: RuleArg,
    /// Values that a trimmed mean leaves out at either end of every coordinate
    #[arg(long, value_name = "B", required_if_eq("rule", "trimmed-mean"))]
    pub trim: Option<u32>,
    /// Bad adapters that multi-Krum looks for
    #[arg(long, value_name = "F", required_if_eq("rule", "multi-krum"))]
    pub faulty: Option<u32>,
    /// Largest norm of an adapter's update; what is larger is scaled down to it
    #[arg(long, value_name = "NORM", value_parser = crate::rule::millionths)]
    pub clip: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum RuleArg {
    /// Weighted mean
    Mean,
    /// All low-rank matrices side by side: the exact mean of the updates, of a rank that grows
    Stack,
    /// Mean without the ends of every coordinate
    TrimmedMean,
    /// Median of every coordinate
    Median,
    /// Mean without the adapters that lie furthest from the rest
    MultiKrum,
}

impl RuleArgs {
    /// # Errors
    /// An option of another rule.
    pub fn rule(&self) -> Result<MergeRule> {
        let rule = match self.rule {
            RuleArg::Mean => MergeRule::Mean,
            RuleArg::Stack => MergeRule::Stack,
            RuleArg::TrimmedMean => MergeRule::TrimmedMean { trim: self.trim.unwrap_or_default() },
            RuleArg::Median => MergeRule::Median,
            RuleArg::MultiKrum => MergeRule::MultiKrum { faulty: self.faulty.unwrap_or_default() },
        };
        ensure!(self.trim.is_none() || self.rule == RuleArg::TrimmedMean, "--trim is of the rule trimmed-mean, not of {}", rule.name());
        ensure!(self.faulty.is_none() || self.rule == RuleArg::MultiKrum, "--faulty is of the rule multi-krum, not of {}", rule.name());
        Ok(rule)
    }
}

/// How events are shown.
#[derive(Args, Clone, Copy, Debug)]
pub struct OutputArgs {
    /// One JSON object a line on standard output instead of sentences
    #[arg(long)]
    pub json: bool,
    /// Only trouble
    #[arg(long, short)]
    pub quiet: bool,
}

/// A prompt template by name.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub enum TemplateArg {
    Short,
    Alpaca,
}

impl From<TemplateArg> for Template {
    fn from(template: TemplateArg) -> Self {
        match template {
            TemplateArg::Short => Self::Short,
            TemplateArg::Alpaca => Self::Alpaca,
        }
    }
}

/// The peers to dial: those that were given, and those that the round file names.
pub fn peers_of(round: &Path, file: &RoundFile, given: &NetworkArgs) -> Result<Vec<Multiaddr>> {
    let mut peers = given.peers.clone();
    for peer in &file.peers {
        let address = peer.parse().with_context(|| format!("{} names {peer:?} as a peer, which is no address", round.display()))?;
        if !peers.contains(&address) {
            peers.push(address);
        }
    }
    Ok(peers)
}

/// Seconds as people write them.
pub fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| format!("{text:?} is not a number of seconds"))?;
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}

/// What every verb that runs a peer is given.
#[derive(Args, Clone, Debug)]
pub struct PeerArgs {
    /// The round file, or a link to it (`mingle:...`)
    #[arg(long, value_name = "FILE|LINK")]
    pub round: PathBuf,
    #[command(flatten)]
    pub home: HomeArgs,
    #[command(flatten)]
    pub network: NetworkArgs,
    #[command(flatten)]
    pub output: OutputArgs,
}

/// A peer whose round file and home were found.
pub struct OpenedPeer {
    pub round: Round,
    pub home: Home,
    /// What it judges others' adapters by.
    pub judge: Option<Judge>,
    /// Where it shows what it is doing.
    pub http: HttpArgs,
    file: RoundFile,
    network: NetworkArgs,
    output: OutputArgs,
}

impl PeerArgs {
    pub fn open(&self) -> Result<OpenedPeer> {
        let home = self.home.open()?;
        let mut network = self.network.clone();
        let file = source::read_signed(&self.round, &home, &network)?;
        network.peers = peers_of(&self.round, &file, &network)?;
        Ok(OpenedPeer { round: file.round.clone(), home, judge: None, http: HttpArgs::default(), file, network, output: self.output })
    }
}

impl OpenedPeer {
    /// The round's base: in the directory that was given, or looked for by its name.
    pub fn base(&self, given: Option<&BaseArg>, round: &Path) -> Result<PathBuf> {
        base::of_round(given, &self.round, round, &self.home.digests(), self.network.offline)
    }

    /// Runs until the goal is reached or the peer is stopped.
    pub fn run(self, work: Work, mut goal: Goal) -> Result<Outcome> {
        let Self { round, home, judge, http, file, network, output } = self;
        let shown = http.open()?;
        let (key, created) = home.key_or_create()?;
        let mut console = crate::console::Console::new(output.json, output.quiet);
        if created && !output.json && !output.quiet {
            console.line(&format!("made a key for this home: {}", home.key_path().display()));
        }
        if let Some(shown) = &shown {
            console.show(&Event::Shown { url: shown.server.url() });
        }
        let (_server, show) = shown.map(|shown| (shown.server, shown.show)).unzip();
        home.round(round.id()).keep(&file)?;
        goal.offline = network.offline;
        let (listen, reach, bootstrap, mdns) = (network.listen(), network.reach()?, network.peers, network.mdns);
        let peer = Peer { home: home.round(round.id()), round, key, listen, bootstrap, mdns, reach, work, judge, goal, show };
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().context("cannot start the runtime")?;
        runtime.block_on(driver::run(peer, |event| console.show(event)))
    }
}
