//! Real networks on one machine: hosts are network namespaces, and between them lies a wire of our own.
//!
//! Every host has a TUN interface whose other end this process holds, so all that hosts say to each other passes through
//! [`wire`], which delays it, loses some of it, lets through only so much a second, cuts the network in parts and counts
//! the bytes. The kernel's own shaper (`netem`) is not needed, and often not there. What runs inside is the program as it
//! is, with the kernel's TCP and UDP.
//!
//! It needs Linux, `/dev/net/tun`, the program `ip`, and the right to make namespaces (root); hosts behind a NAT need
//! `nft` besides. Where one is missing, a test says so and passes, unless `MINGLE_LAB=required` asks for the real thing.

mod link;
mod nat;
mod packet;
mod space;
mod wire;

use std::ffi::OsStr;
use std::net::Ipv4Addr;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use tokio::runtime::Runtime;
use tokio_tun::Tun;

use crate::peer::Peer;
pub use link::Shape;
pub use nat::Nat;
use space::Space;
pub use wire::{Flow, Wire};

/// The interface of a host, as the host knows it.
const INTERFACE: &str = "wire";
/// Packets that may wait in the kernel for this process to take them.
const KERNEL_QUEUE: u32 = 5_000;

/// A network of hosts. Dropped, it is gone with all its namespaces.
pub struct Lab {
    number: u32,
    seed: u64,
    hosts: usize,
    spaces: Vec<Space>,
    wire: Arc<Wire>,
    /// Carries the packets.
    runtime: Runtime,
}

/// One host, or what lies behind a NAT and shares its address with it.
#[derive(Clone, Debug)]
pub struct Host {
    pub name: String,
    /// Where others see it.
    pub address: Ipv4Addr,
    /// Its end of the wire.
    pub port: usize,
    namespace: String,
}

impl Lab {
    /// A network without hosts; none where this machine cannot have one, which is said.
    pub fn open(seed: u64) -> Option<Self> {
        match Self::try_open(seed) {
            Ok(lab) => Some(lab),
            Err(why) => skipped(&why),
        }
    }

    /// A network with NATs.
    pub fn open_with_nat(seed: u64) -> Option<Self> {
        let lab = Self::open(seed)?;
        match lab.space("try-nat").and_then(|space| nat::possible(&space)) {
            Ok(()) => Some(lab),
            Err(why) => skipped(&why),
        }
    }

    fn try_open(seed: u64) -> Result<Self, String> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        if !std::fs::exists("/dev/net/tun").unwrap_or(false) {
            return Err("this machine has no /dev/net/tun".into());
        }
        space::sweep()?;
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().map_err(|e| e.to_string())?;
        let lab = Self { number, seed, hosts: 0, spaces: Vec::new(), wire: Arc::new(Wire::new()), runtime };
        // Whatever is refused is refused here and not in the middle of a test.
        let (space, _device) = lab.wired("try", Ipv4Addr::new(11, 77, 255, 1))?;
        drop(space);
        lab.runtime.spawn(lab.wire.clone().carry());
        Ok(lab)
    }

    pub fn wire(&self) -> &Wire {
        &self.wire
    }

    /// A host with an address of its own. What it sends is shaped by `up`, what it receives by `down`.
    pub fn host(&mut self, name: &str, up: Shape, down: Shape) -> Host {
        let address = self.next_address();
        let (space, device) = self.wired(name, address).unwrap_or_else(|why| panic!("host {name}: {why}"));
        let namespace = space.name().to_owned();
        self.spaces.push(space);
        let port = self.plug(name, address, device, up, down);
        Host { name: name.into(), address, port, namespace }
    }

    /// A host with a private address, behind a NAT of its own that has the public one.
    pub fn host_behind(&mut self, nat: Nat, name: &str, up: Shape, down: Shape) -> Host {
        let router = self.host(&format!("{name}-nat"), up, down);
        let number = self.hosts as u8;
        let made = self.space(name).and_then(|inside| {
            let outside = self.spaces.last().ok_or("the NAT's namespace is missing")?;
            nat.put_between(&inside, outside, INTERFACE, number)?;
            Ok(inside)
        });
        let inside = made.unwrap_or_else(|why: String| panic!("host {name}: {why}"));
        let namespace = inside.name().to_owned();
        self.spaces.push(inside);
        Host { name: name.into(), namespace, ..router }
    }

    fn next_address(&mut self) -> Ipv4Addr {
        self.hosts += 1;
        // Addresses that look like the internet's; nothing here has a route to the real ones.
        Ipv4Addr::new(11, 77, (self.hosts / 250) as u8, (self.hosts % 250) as u8 + 1)
    }

    fn space(&self, name: &str) -> Result<Space, String> {
        Space::new(&format!("{}-{name}", self.number))
    }

    /// A namespace with its end of the wire, and our end.
    fn wired(&self, name: &str, address: Ipv4Addr) -> Result<(Space, Arc<Tun>), String> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let space = self.space(name)?;
        let temporary = format!("mt{}x{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let inside = self.runtime.enter();
        let made = Tun::builder().name(&temporary).build();
        let device = made.map_err(|error| format!("a TUN interface cannot be made: {error}"))?.pop().ok_or("no TUN interface was made")?;
        drop(inside);
        // An interface that moves stays with whoever opened it.
        space::ip(&["link", "set", "dev", &temporary, "netns", space.name()])?;
        space.batch(&[
            format!("link set dev {temporary} name {INTERFACE} txqueuelen {KERNEL_QUEUE}"),
            format!("address add {address}/32 dev {INTERFACE}"),
            format!("link set dev {INTERFACE} up"),
            format!("route add default dev {INTERFACE}"),
        ])?;
        Ok((space, Arc::new(device)))
    }

    fn plug(&self, name: &str, address: Ipv4Addr, device: Arc<Tun>, up: Shape, down: Shape) -> usize {
        let port = self.wire.plug(address, device.clone(), up.link(self.seed, name, "up"), down.link(self.seed, name, "down"));
        self.runtime.spawn(self.wire.clone().listen(port, device));
        port
    }
}

impl Host {
    /// What is written before a command to run it here.
    fn prefix(&self) -> [&str; 4] {
        ["ip", "netns", "exec", &self.namespace]
    }

    /// A program to be run here.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let [ip, arguments @ ..] = self.prefix();
        let mut command = Command::new(ip);
        command.args(arguments).arg(program);
        command
    }

    /// Runs a peer here from its next start on.
    pub fn runs(&self, peer: &mut Peer) {
        peer.start_through(self.prefix());
    }

    /// A multiaddress of this host.
    pub fn tcp(&self, port: u16) -> String {
        format!("/ip4/{}/tcp/{port}", self.address)
    }

    pub fn quic(&self, port: u16) -> String {
        format!("/ip4/{}/udp/{port}/quic-v1", self.address)
    }
}

/// Says why there is no network here; the test that asked passes.
fn skipped<T>(why: &str) -> Option<T> {
    assert!(std::env::var_os("MINGLE_LAB").is_none_or(|wish| wish != "required"), "a network of namespaces is required, but {why}");
    println!("skipped: {why}");
    None
}

/// Whether the full size was asked for, rather than what fits into a run of all tests.
pub fn full() -> bool {
    std::env::var_os("MINGLE_LAB_FULL").is_some_and(|wish| wish != "0")
}

/// The program that the peers run: the one of this build, unless another is named (a release build, say).
pub fn program(built: &str) -> String {
    std::env::var("MINGLE_LAB_PROGRAM").unwrap_or_else(|_| built.to_owned())
}
