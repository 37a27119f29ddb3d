//! Carries packets from host to host: up the sender's line, down the receiver's, unless the network is cut between them.

use std::cmp::{Ordering, Reverse};
use std::collections::{BTreeMap, BinaryHeap};
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};
use tokio_tun::Tun;

use super::link::{Link, Passed, Shape};
use super::packet::Packet;

/// The largest packet that IPv4 knows.
const PACKET_MAX: usize = 65_536;
/// Packets handed over before the state is looked at again.
const BATCH: usize = 64;
/// How long the wire sleeps when nothing is on its way.
const IDLE: Duration = Duration::from_secs(3_600);

/// What one host gave to the wire for another, retransmissions included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flow {
    pub packets: u64,
    /// Whole IP packets.
    pub bytes: u64,
    /// What TCP and UDP carried: all but their headers and IP's.
    pub payload: u64,
    /// Packets lost by chance.
    pub lost: u64,
    /// Packets dropped before a line that was too narrow.
    pub full: u64,
    /// Packets dropped because the network was cut.
    pub cut: u64,
}

impl Flow {
    fn plus(self, other: Self) -> Self {
        Self {
            packets: self.packets + other.packets,
            bytes: self.bytes + other.bytes,
            payload: self.payload + other.payload,
            lost: self.lost + other.lost,
            full: self.full + other.full,
            cut: self.cut + other.cut,
        }
    }
}

/// The network between the hosts.
pub struct Wire {
    state: Mutex<State>,
    /// Something earlier than all else is on its way.
    news: Notify,
}

struct State {
    ports: Vec<Port>,
    routes: BTreeMap<Ipv4Addr, usize>,
    under_way: BinaryHeap<Reverse<Parcel>>,
    sent: u64,
    flows: BTreeMap<(usize, usize), Flow>,
}

/// A host's end of the wire.
struct Port {
    device: Arc<Tun>,
    up: Link,
    down: Link,
    /// Hosts on different sides of a cut do not hear each other.
    side: usize,
}

/// A packet under way.
struct Parcel {
    at: Instant,
    /// Of two that arrive at once, the one that was sent first.
    order: u64,
    from: usize,
    to: usize,
    /// Whether it has passed the receiver's line already.
    down: bool,
    bytes: Vec<u8>,
}

/// A packet at its receiver's door.
type Arrival = (Arc<Tun>, Vec<u8>);

impl Parcel {
    fn rank(&self) -> (Instant, u64) {
        (self.at, self.order)
    }
}

impl PartialEq for Parcel {
    fn eq(&self, other: &Self) -> bool {
        self.rank() == other.rank()
    }
}

impl Eq for Parcel {}

impl PartialOrd for Parcel {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Parcel {
    fn cmp(&self, other: &Self) -> Ordering {
        self.rank().cmp(&other.rank())
    }
}

impl State {
    /// The instant at which a packet has passed a line, up or down; none when it does not.
    fn pass(&mut self, from: usize, to: usize, down: bool, now: Instant, bytes: usize) -> Option<Instant> {
        let flow = self.flows.entry((from, to)).or_default();
        if self.ports[from].side != self.ports[to].side {
            flow.cut += 1;
            return None;
        }
        let link = if down { &mut self.ports[to].down } else { &mut self.ports[from].up };
        match link.pass(now, bytes) {
            Passed::At(at) => return Some(at),
            Passed::Lost => flow.lost += 1,
            Passed::Full => flow.full += 1,
        }
        None
    }
}

impl Wire {
    pub(super) fn new() -> Self {
        let state = State { ports: Vec::new(), routes: BTreeMap::new(), under_way: BinaryHeap::new(), sent: 0, flows: BTreeMap::new() };
        Self { state: Mutex::new(state), news: Notify::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn plug(&self, address: Ipv4Addr, device: Arc<Tun>, up: Link, down: Link) -> usize {
        let mut state = self.state();
        let port = state.ports.len();
        state.ports.push(Port { device, up, down, side: 0 });
        state.routes.insert(address, port);
        port
    }

    /// Changes a host's line while it is in use.
    pub fn reshape(&self, port: usize, up: Shape, down: Shape) {
        let mut state = self.state();
        state.ports[port].up.reshape(up);
        state.ports[port].down.reshape(down);
    }

    /// Cuts the network: the hosts of each part hear each other and nobody else. Those not named are one more part.
    pub fn cut(&self, parts: &[&[usize]]) {
        let mut state = self.state();
        for (port, end) in state.ports.iter_mut().enumerate() {
            end.side = parts.iter().position(|part| part.contains(&port)).map_or(0, |part| part + 1);
        }
    }

    /// Mends every cut.
    pub fn heal(&self) {
        self.cut(&[]);
    }

    /// What `from` has sent to `to` so far.
    pub fn flow(&self, from: usize, to: usize) -> Flow {
        self.state().flows.get(&(from, to)).copied().unwrap_or_default()
    }

    /// What this host has sent to all others so far.
    pub fn sent(&self, port: usize) -> Flow {
        self.sum(|from, _| from == port)
    }

    /// What all others have sent to this host so far.
    pub fn received(&self, port: usize) -> Flow {
        self.sum(|_, to| to == port)
    }

    /// All that was ever sent.
    pub fn total(&self) -> Flow {
        self.sum(|_, _| true)
    }

    fn sum(&self, counts: impl Fn(usize, usize) -> bool) -> Flow {
        let state = self.state();
        let flows = state.flows.iter().filter(|((from, to), _)| counts(*from, *to));
        flows.fold(Flow::default(), |sum, (_, flow)| sum.plus(*flow))
    }

    /// Takes what a host sends until its interface is gone.
    pub(super) async fn listen(self: Arc<Self>, port: usize, device: Arc<Tun>) {
        let mut buffer = vec![0; PACKET_MAX];
        while let Ok(length) = device.recv(&mut buffer).await {
            if let Some(device) = self.take(port, &buffer[..length], Instant::now()) {
                let _ = device.try_send(&buffer[..length]);
            }
        }
    }

    /// Takes one packet. Where neither line has a shape, it is to be handed over at once.
    fn take(&self, from: usize, bytes: &[u8], now: Instant) -> Option<Arc<Tun>> {
        let packet = Packet::read(bytes)?;
        let mut state = self.state();
        let to = *state.routes.get(&packet.to)?;
        let flow = state.flows.entry((from, to)).or_default();
        flow.packets += 1;
        flow.bytes += bytes.len() as u64;
        flow.payload += packet.payload as u64;
        let mut at = state.pass(from, to, false, now, bytes.len())?;
        let down = at <= now;
        if down {
            at = state.pass(from, to, true, now, bytes.len())?;
            if at <= now {
                return Some(state.ports[to].device.clone());
            }
        }
        let earliest = state.under_way.peek().is_none_or(|Reverse(first)| at < first.at);
        state.sent += 1;
        let order = state.sent;
        state.under_way.push(Reverse(Parcel { at, order, from, to, down, bytes: bytes.to_vec() }));
        drop(state);
        if earliest {
            self.news.notify_one();
        }
        None
    }

    /// What has arrived by now, and when the next does.
    fn arrived(&self, now: Instant) -> (Vec<Arrival>, Instant) {
        let mut state = self.state();
        let mut arrived = Vec::new();
        while arrived.len() < BATCH {
            let Some(Reverse(first)) = state.under_way.peek() else { return (arrived, now + IDLE) };
            if first.at > now {
                return (arrived, first.at);
            }
            let Some(Reverse(parcel)) = state.under_way.pop() else { break };
            if parcel.down {
                arrived.push((state.ports[parcel.to].device.clone(), parcel.bytes));
            } else if let Some(at) = state.pass(parcel.from, parcel.to, true, parcel.at, parcel.bytes.len()) {
                state.under_way.push(Reverse(Parcel { at, down: true, ..parcel }));
            }
        }
        (arrived, now)
    }

    /// Hands packets over when they arrive, for ever.
    pub(super) async fn carry(self: Arc<Self>) {
        loop {
            let (arrived, next) = self.arrived(Instant::now());
            for (device, bytes) in arrived {
                // A host whose interface is gone hears nothing; that is all.
                let _ = device.try_send(&bytes);
            }
            if next > Instant::now() {
                tokio::select! {
                    () = self.news.notified() => {}
                    () = sleep_until(next) => {}
                }
            } else {
                tokio::task::yield_now().await;
            }
        }
    }
}
