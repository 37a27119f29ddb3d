//! `mingle serve`: answers from a base and what lies over it, behind OpenAI's API.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use mingle_serve::{Access, ChatLayout, Limits, Token};

use super::args::{HomeArgs, OutputArgs};
use super::base::{self, BaseArg};
use super::source;
use super::training::ComputeArgs;
use crate::driver::Signals;
use crate::serving::{DEFAULT_ADDRESS, Over, Serving, Told};

const EXAMPLES: &str = "\
Examples:
  mingle serve --base ./tinyllama                              the base as it is
  mingle serve --base ./tinyllama --adapter ./merged
  mingle serve --round round.json                              what the peer of this home merges, as it comes
  mingle serve --round round.json --listen 0.0.0.0:8080 --token-file token

Any client of OpenAI's API works with the base URL http://127.0.0.1:8080/v1. Models: \"merged\" (or \"adapter\"), \"own\", \"base\";
the first that is there answers where a request names none. Answers are all that is given away: no file, no weight.
Other addresses than this machine's own need a token, in --token-file or $MINGLE_TOKEN.";

#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Hugging Face directory of the base, or the name of a model (`org/model`): from the Hugging Face cache, else from the hub [default: with --round, looked for as `mingle run` does]
    #[arg(long, value_name = "DIR|NAME", required_unless_present = "round")]
    base: Option<BaseArg>,
    /// PEFT directory of an adapter
    #[arg(long, value_name = "DIR", conflicts_with = "round")]
    adapter: Option<PathBuf>,
    /// Answer from what the peer of this home merges in this round, and from its own adapter
    #[arg(long, value_name = "FILE|LINK")]
    round: Option<PathBuf>,
    /// Address and port to answer at; port 0 takes any
    #[arg(long, value_name = "ADDRESS", default_value = DEFAULT_ADDRESS)]
    listen: SocketAddr,
    #[command(flatten)]
    serving: ServingArgs,
    #[command(flatten)]
    compute: ComputeArgs,
    #[command(flatten)]
    home: HomeArgs,
    #[command(flatten)]
    output: OutputArgs,
}

/// How answers are made and who gets them.
#[derive(clap::Args, Clone, Debug)]
pub struct ServingArgs {
    /// File with the token that requests must carry [default: $MINGLE_TOKEN, or none on this machine's own addresses]
    #[arg(long, help_heading = "Serving", value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// Answers that are made at once
    #[arg(long, help_heading = "Serving", value_name = "N", default_value_t = Limits::default().streams)]
    pub streams: usize,
    /// Answers that may wait for that; more are refused
    #[arg(long, help_heading = "Serving", value_name = "N", default_value_t = Limits::default().waiting)]
    pub queue: usize,
    /// Lay conversations out as training does, also where the base has a chat template
    #[arg(long, help_heading = "Serving")]
    pub plain_chat: bool,
}

impl ServingArgs {
    /// A server that is bound to its address and answers nothing yet.
    ///
    /// # Errors
    /// An address or a token that cannot be used.
    pub fn open(&self, listen: SocketAddr, base: PathBuf, over: Over, compute: &ComputeArgs) -> Result<Serving> {
        let token = Token::find(self.token_file.as_deref(), "MINGLE_TOKEN")?;
        let access = Access::new(listen, token)?;
        if self.streams == 0 {
            bail!("--streams 0 would answer nobody");
        }
        let listener = mingle_serve::bind(listen).with_context(|| format!("cannot answer at {listen}"))?;
        let layout = if self.plain_chat { ChatLayout::Training } else { ChatLayout::Template };
        let limits = Limits { streams: self.streams, waiting: self.queue };
        Ok(Serving { base, device: compute.device, precision: compute.precision, over, listener, access, limits, layout })
    }
}

pub fn run(args: Args) -> Result<ExitCode> {
    let (base, over) = match &args.round {
        Some(round) => of_round(round, args.base.as_ref(), &args.home)?,
        None => {
            let base = args.base.context("--base is needed, or --round")?.directory()?;
            (base, args.adapter.map_or(Over::Nothing, Over::Adapter))
        }
    };
    let serving = args.serving.open(args.listen, base, over, &args.compute)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the runtime")?;
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let mut signals = {
        let _inside = runtime.enter();
        Signals::new()?
    };
    let listen = move || {
        runtime.block_on(signals.received());
        let _ = stop.send(());
        // A second time is meant.
        runtime.block_on(signals.received());
        std::process::exit(130);
    };
    std::thread::Builder::new().name("signals".into()).spawn(listen).context("cannot start a thread")?;
    serving.run(teller(args.output), async move {
        let _ = stopped.await;
    })?;
    Ok(ExitCode::SUCCESS)
}

/// The round's base, and what its peer in this home makes.
fn of_round(round: &Path, given: Option<&BaseArg>, home: &HomeArgs) -> Result<(PathBuf, Over)> {
    let home = home.open()?;
    let file = source::read_round(round, &home)?;
    let base = base::of_round(given, &file, round, &home.digests(), false)?;
    Ok((base, Over::Round(home.round(file.id()))))
}

/// How a server's words reach people or programs.
pub fn teller(output: OutputArgs) -> impl Fn(&Told) + Send + 'static {
    move |told| match (output.json, told) {
        (true, told) => println!("{}", told.to_json()),
        (false, Told::Model { .. } | Told::Gone { .. }) if output.quiet => {}
        (false, told) => eprintln!("{told}"),
    }
}
