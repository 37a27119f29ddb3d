//! The laboratory itself: its lines delay, lose, narrow and part as they are told, and its NATs are what they are called.
//! Hosts run this very test program again, as servers and askers.
#![cfg(target_os = "linux")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use mingle_tests::lab::{Host, Lab, Nat, Shape};

/// Tells a copy of this program what it is to be.
const ROLE: &str = "MINGLE_LAB_ROLE";
const PORT: u16 = 4001;
/// Whence askers ask.
const ASKING: u16 = 4002;
/// How long an asker waits for one answer.
const ANSWER: Duration = Duration::from_millis(500);

/// Not a test by itself: what a copy of this program does inside a host.
#[test]
fn role() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let words: Vec<&str> = role.split_whitespace().collect();
    match words.as_slice() {
        ["server"] => serve(),
        ["ask", count, addresses @ ..] => ask(count.parse().unwrap(), addresses),
        ["pour", address, bytes] => pour(address.parse().unwrap(), bytes.parse().unwrap()),
        _ => panic!("no such role: {role}"),
    }
}

/// Tells everybody who asks by UDP under which address it came, and takes what is poured by TCP.
fn serve() {
    let socket = UdpSocket::bind(("0.0.0.0", PORT)).unwrap();
    let listener = TcpListener::bind(("0.0.0.0", PORT)).unwrap();
    println!("said: ready");
    std::thread::spawn(move || {
        let mut question = [0; 16];
        while let Ok((length, from)) = socket.recv_from(&mut question) {
            let answer = [&question[..length], from.to_string().as_bytes()].concat();
            let _ = socket.send_to(&answer, from);
        }
    });
    for stream in listener.incoming() {
        let mut stream = stream.unwrap();
        std::thread::spawn(move || {
            let mut size = [0; 8];
            stream.read_exact(&mut size).unwrap();
            let taken = std::io::copy(&mut (&stream).take(u64::from_le_bytes(size)), &mut std::io::sink()).unwrap();
            stream.write_all(&taken.to_le_bytes()).unwrap();
        });
    }
}

/// From one socket, asks each address so often; says how many answers came, the shortest way in microseconds, and the name
/// that the last answer gave us.
fn ask(count: u32, addresses: &[&str]) {
    let socket = UdpSocket::bind(("0.0.0.0", ASKING)).unwrap();
    for address in addresses {
        let (mut answers, mut shortest, mut name) = (0, Duration::MAX, "-".to_owned());
        for number in 0..count {
            let began = Instant::now();
            socket.send_to(&number.to_le_bytes(), address).unwrap();
            let mut answer = [0; 64];
            while let Some(left) = ANSWER.checked_sub(began.elapsed()).filter(|left| !left.is_zero()) {
                socket.set_read_timeout(Some(left)).unwrap();
                let Ok((length, _)) = socket.recv_from(&mut answer) else { break };
                // An answer to an earlier question may come late.
                if answer[..length].starts_with(&number.to_le_bytes()) {
                    answers += 1;
                    shortest = shortest.min(began.elapsed());
                    name = String::from_utf8_lossy(&answer[4..length]).into_owned();
                    break;
                }
            }
        }
        println!("said: {answers} {} {name}", shortest.as_micros());
    }
}

/// Sends so many bytes; says how many were taken and after how many microseconds it knew.
fn pour(address: SocketAddr, bytes: u64) {
    let began = Instant::now();
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(&bytes.to_le_bytes()).unwrap();
    std::io::copy(&mut std::io::repeat(7).take(bytes), &mut stream).unwrap();
    let mut taken = [0; 8];
    stream.read_exact(&mut taken).unwrap();
    println!("said: {} {}", u64::from_le_bytes(taken), began.elapsed().as_micros());
}

/// A copy of this program in a host. Dropped, it is killed.
struct Copy(Child);

impl Copy {
    fn new(host: &Host, role: &str) -> Self {
        let mut command: Command = host.command(std::env::current_exe().expect("this program"));
        command.args(["--exact", "role", "--nocapture"]).env(ROLE, role).stdout(Stdio::piped());
        Self(command.spawn().expect("a copy of this program"))
    }

    /// The next `count` sayings.
    fn said(&mut self, count: usize) -> Vec<Vec<String>> {
        let lines = BufReader::new(self.0.stdout.take().expect("its output")).lines().map(|line| line.expect("text"));
        // The harness begins a line of its own before the first saying.
        let said = lines.filter_map(|line| line.split_once("said: ").map(|(_, said)| said.split(' ').map(str::to_owned).collect()));
        said.take(count).collect()
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn server(host: &Host) -> Copy {
    let mut copy = Copy::new(host, "server");
    assert_eq!(copy.said(1), [["ready"]], "{} serves", host.name);
    copy
}

struct Answer {
    count: u32,
    shortest: Duration,
    name: String,
}

fn asked(from: &Host, count: u32, of: &[&Host]) -> Vec<Answer> {
    let addresses: Vec<String> = of.iter().map(|host| format!("{}:{PORT}", host.address)).collect();
    let said = Copy::new(from, &format!("ask {count} {}", addresses.join(" "))).said(of.len());
    let answer = |words: &Vec<String>| Answer {
        count: words[0].parse().unwrap(),
        shortest: Duration::from_micros(words[1].parse().unwrap_or(u64::MAX)),
        name: words[2].clone(),
    };
    said.iter().map(answer).collect()
}

fn poured(from: &Host, to: &Host, bytes: u64) -> Duration {
    let said = Copy::new(from, &format!("pour {}:{PORT} {bytes}", to.address)).said(1);
    assert_eq!(said[0][0], bytes.to_string());
    Duration::from_micros(said[0][1].parse().unwrap())
}

#[test]
fn lines_are_as_long_lossy_and_narrow_as_they_are_told() {
    let Some(mut lab) = Lab::open(1) else { return };
    let far = lab.host("far", Shape::delayed(30), Shape::delayed(10));
    let lossy = lab.host("lossy", Shape::default().lossy(0.5), Shape::default());
    let narrow = lab.host("narrow", Shape::default().at_rate(1_000_000), Shape::default());
    let plain = lab.host("plain", Shape::default(), Shape::default());
    let _servers = [server(&far), server(&lossy), server(&plain)];

    let answers = asked(&plain, 40, &[&far, &lossy]);
    assert_eq!(answers[0].count, 40);
    assert!(answers[0].shortest >= Duration::from_millis(40), "{:?}", answers[0].shortest);
    assert!((5..36).contains(&answers[1].count), "{} of 40 answers came", answers[1].count);
    let flow = lab.wire().flow(lossy.port, plain.port);
    assert_eq!(u64::from(40 - answers[1].count), flow.lost, "{flow:?}");

    // A megabit and a half through a line of one.
    assert!(poured(&narrow, &plain, 187_500) >= Duration::from_millis(1_400));
    let flow = lab.wire().flow(narrow.port, plain.port);
    assert!(flow.payload >= 187_500 && flow.bytes > flow.payload + 20 * flow.packets, "{flow:?}");
}

#[test]
fn a_cut_parts_the_network_until_it_is_healed() {
    let Some(mut lab) = Lab::open(2) else { return };
    let [one, two, three] = ["one", "two", "three"].map(|name| lab.host(name, Shape::default(), Shape::default()));
    let _servers = [server(&two), server(&three)];
    lab.wire().cut(&[&[one.port, two.port]]);
    let counts = |answers: Vec<Answer>| answers.iter().map(|answer| answer.count).collect::<Vec<_>>();
    assert_eq!(counts(asked(&one, 3, &[&two, &three])), [3, 0]);
    assert_eq!(lab.wire().flow(one.port, three.port).cut, 3);
    lab.wire().heal();
    assert_eq!(counts(asked(&one, 3, &[&two, &three])), [3, 3]);
}

#[test]
fn nats_name_their_hosts_as_they_are_called_and_let_nobody_in_unasked() {
    let Some(mut lab) = Lab::open_with_nat(3) else { return };
    let [one, two] = ["one", "two"].map(|name| lab.host(name, Shape::default(), Shape::default()));
    let kind = lab.host_behind(Nat::PortPreserving, "kind", Shape::default(), Shape::default());
    let strict = lab.host_behind(Nat::Symmetric, "strict", Shape::default(), Shape::default());
    let _servers = [server(&one), server(&two)];

    let names = |host: &Host| asked(host, 2, &[&one, &two]).into_iter().map(|answer| answer.name).collect::<Vec<_>>();
    let own = format!("{}:{ASKING}", kind.address);
    assert_eq!(names(&kind), [own.clone(), own]);
    let named = names(&strict);
    assert!(named.iter().all(|name| name.starts_with(&format!("{}:", strict.address))), "{named:?}");
    assert_ne!(named[0], named[1]);

    let _behind = server(&kind);
    drop(asked(&kind, 1, &[&one]));
    assert_eq!(asked(&two, 3, &[&kind])[0].count, 0);
    let flow = lab.wire().flow(two.port, kind.port);
    assert!(flow.packets >= 3, "it was asked: {flow:?}");
}

#[test]
fn the_wire_carries_what_many_hosts_say_at_once() {
    const BYTES: u64 = 32 << 20;
    let Some(mut lab) = Lab::open(4) else { return };
    let shape = Shape::delayed(1);
    let hosts: Vec<Host> = (0..8).map(|index| lab.host(&format!("host-{index}"), shape, shape)).collect();
    let _servers: Vec<Copy> = hosts[4..].iter().map(server).collect();
    let began = Instant::now();
    std::thread::scope(|scope| {
        for (from, to) in hosts[..4].iter().zip(&hosts[4..]) {
            scope.spawn(move || poured(from, to, BYTES));
        }
    });
    let (taken, total) = (began.elapsed(), lab.wire().total());
    assert!(total.payload >= 4 * BYTES && total.lost + total.cut == 0, "{total:?}");
    let rate = total.bytes as f64 * 8.0 / taken.as_secs_f64() / 1e6;
    println!("4 streams of 32 MiB over 4 ms: {rate:.0} Mbit/s, {:.0} packets a second", total.packets as f64 / taken.as_secs_f64());
}
