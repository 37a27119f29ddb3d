// What a status says, panel by panel. Texts and names come from peers: they are set as text, and nothing else.

import { bytes, drawn, duration, element, hue, keyed, loss, peerOf, plural, put, say, short, show, swatch, tail, whole } from "./words.js";

// More rows than this are told as a number.
const ROWS_MAX = 200;
const NODES_MAX = 16;

const PHASES = { training: "training", announced: "serving", waiting: "waiting", following: "following", failed: "failed" };

export function title(status) {
  document.title = `${status.name} · mingle`;
  say("round-name", status.name);
  put("round-facts", [status.round, status.rule, status.role, status.member], () => [
    element("span", {}, "round ", element("code", {}, short(status.round))),
    element("span", {}, `${status.role} `, element("code", {}, short(status.member))),
    status.rule ? element("span", {}, `rule: ${status.rule}`) : "",
  ]);
}

// What stands in a member's slot: a word, how it looks, and more words.
export function stateOf(slot, status) {
  const merged = status.merged;
  const transfer = status.transfers.find((transfer) => transfer.adapter === slot.adapter);
  if (slot.state === "conflict") return ["conflict", "bad", "signed two records at one sequence: counts for nothing"];
  if (slot.state === "withdrawn") return ["withdrawn", "idle", "took its adapter back"];
  if (slot.state === "reader") return ["reader now", "idle", "counts for nothing since founders decided so"];
  if (slot.state === "out") return ["put out", "idle", "counts for nothing since founders decided so"];
  if (slot.state === "expected") {
    if (slot.member === status.member && status.phase === "training") return ["training", "busy", ""];
    if (slot.member === status.member && status.phase === "waiting") return ["not admitted", "warn", "waits for the founders"];
    return ["not heard of", "idle", ""];
  }
  if (slot.refused) return ["refused", "bad", slot.refused];
  if (slot.merged && merged?.left_out?.includes(slot.member)) return ["left out", "warn", "the rule leaves it out of this merge"];
  if (slot.merged && merged?.clipped?.includes(slot.member)) return ["merged, clipped", "warn", "scaled down to the round's largest norm"];
  if (slot.merged) return ["merged", "good", ""];
  if (slot.have < slot.size && transfer) return ["fetching", "busy", `${bytes(slot.have)} of ${bytes(slot.size)}`];
  if (slot.have < slot.size) return ["announced", "idle", "to be fetched"];
  const approvals = slot.verdicts.filter((verdict) => verdict.approves).length;
  if (approvals < slot.approvals_needed) return ["candidate", "warn", `${approvals} of ${plural(slot.approvals_needed, "approval")}`];
  return ["here", "busy", "to be merged"];
}

export function members(status) {
  const heard = new Set(status.slots.map((slot) => slot.member));
  const self = status.role === "member" && !status.roster.includes(status.member) ? [status.member] : [];
  const expected = [...status.roster, ...self].filter((member) => !heard.has(member));
  const blank = { state: "expected", weight: 0, examples: 0, size: 0, have: 0, verdicts: [] };
  const slots = [...status.slots, ...expected.map((member) => ({ ...blank, member }))];
  slots.sort((one, other) => (other.member === status.member) - (one.member === status.member));
  const rows = slots.slice(0, ROWS_MAX);
  const body = document.querySelector("#members tbody");
  keyed(body, rows, (slot) => slot.member, memberRow, (row, slot) => updateMember(row, slot, status));
  const merged = status.slots.filter((slot) => slot.merged).length;
  const more = slots.length > rows.length ? `, the first ${ROWS_MAX} shown` : "";
  say("members-note", slots.length === 0 ? "nobody has said anything yet" : `${merged} merged of ${slots.length}${more}`);
}

function memberRow(slot) {
  const name = element("th", { scope: "row" }, element("span", { class: "who" }, swatch(slot.member), element("code", { title: slot.member }, short(slot.member)), element("span", { class: "you" })), element("span", { class: "under" }));
  const state = element("td", {}, element("span", { class: "state" }), element("span", { class: "under" }));
  const number = (spare) => element("td", { class: spare ? "number spare" : "number" });
  return element("tr", {}, name, state, number(false), number(true), number(true));
}

function updateMember(row, slot, status) {
  const [word, tone, note] = stateOf(slot, status);
  const [name, state, weight, examples, size] = row.children;
  say(name.querySelector(".you"), slot.member === status.member ? "this peer" : "");
  say(name.querySelector(".under"), slot.adapter ? `adapter ${short(slot.adapter)}` : "");
  const label = say(state.querySelector(".state"), word);
  if (label.dataset.tone !== tone) label.dataset.tone = tone;
  say(state.querySelector(".under"), [note, verdictsOf(slot)].filter(Boolean).join("; "));
  progress(state, word === "fetching" ? slot.have / slot.size : null, `Fetching the adapter of ${short(slot.member)}`, "second");
  say(weight, slot.weight ? whole(slot.weight) : "—");
  say(examples, slot.examples ? whole(slot.examples) : "—");
  say(size, slot.size ? bytes(slot.size) : "—");
}

function verdictsOf(slot) {
  if (slot.verdicts.length === 0) return "";
  const approve = slot.verdicts.filter((verdict) => verdict.approves).length;
  const judged = slot.verdicts.map((verdict) => `${short(verdict.judge)} ${loss(verdict.with_loss ?? NaN)}`).slice(0, 3).join(", ");
  return `${approve} of ${plural(slot.verdicts.length, "verdict")} approve (loss with it: ${judged}${slot.verdicts.length > 3 ? ", …" : ""})`;
}

// A bar at the end of a node, where there is a share.
function progress(node, share, label, kind) {
  let bar = node.querySelector(".bar");
  if (share === null) return bar?.remove();
  if (!bar) {
    bar = element("div", { class: `bar ${kind}`, role: "progressbar", "aria-label": label, "aria-valuemin": 0, "aria-valuemax": 100 }, element("span"));
    node.append(bar);
  }
  setBar(bar, share);
}

function setBar(bar, share) {
  const percent = Math.round(100 * Math.min(1, Math.max(0, share || 0)));
  bar.setAttribute("aria-valuenow", String(percent));
  bar.firstElementChild.style.width = `${percent}%`;
}

export function tiles(status, history) {
  const merged = status.merged;
  const known = status.slots.filter((slot) => slot.adapter).length;
  say("merged-count", String(merged?.adapters ?? 0));
  const expected = Math.max(known, status.roster.length, merged?.adapters ?? 0);
  say("merged-of", expected > 0 ? `of ${plural(expected, "adapter")}` : "adapters");
  put("merged-note", merged?.merged_hash ?? "", () => (merged ? ["merged hash ", element("code", { title: merged.merged_hash }, merged.merged_hash.slice(0, 16))] : ["nothing is merged yet"]));
  const vouching = merged ? status.vouching : 0;
  const voices = Math.min(24, Math.max(merged?.adapters ?? 0, vouching));
  put("vouch-dots", [vouching, voices], () => Array.from({ length: voices }, (_, index) => element("i", { class: index < vouching ? "on" : "" })));
  say("vouch-note", merged ? `${plural(vouching, "member vouches", "members vouch")} for these bytes` : "");
  self(status, history);
  score(status, history);
  const { control_in, control_out, blob_in, blob_out } = status.traffic;
  pairs("traffic", [["adapters in", bytes(blob_in)], ["adapters out", bytes(blob_out)], ["all else in", bytes(control_in)], ["all else out", bytes(control_out)]]);
}

function self(status, history) {
  const training = status.phase === "training" ? status.training : null;
  say("phase", status.live ? (status.phase === "training" && !training ? "loading" : PHASES[status.phase]) : "not running");
  const bar = show("phase-bar", Boolean(training) && status.live);
  if (training) {
    setBar(bar, training.step / training.steps);
    const memory = training.resident_bytes ? `, ${bytes(training.resident_bytes)}` : "";
    say("phase-note", `epoch ${training.epoch} of ${training.epochs}, step ${whole(training.step)} of ${whole(training.steps)}; ${whole(training.tokens_per_second)} tokens/s${memory}; ${duration(training.seconds_left)} left`);
    return;
  }
  const trained = history.trained ? `trained on ${plural(history.trained.examples, "example")} in ${duration(history.trained.seconds)}` : "";
  const notes = {
    announced: trained || "has announced its adapter",
    waiting: "has an adapter, and waits until founders admit its key",
    following: status.role === "seed" ? "keeps and serves what others announce" : "fetches, verifies and merges; announces nothing",
    failed: "the training failed; the log says why",
    training: "the base and the data are being read",
  };
  say("phase-note", notes[status.phase] ?? "");
}

function score(status, history) {
  const scored = history.merges.filter((merge) => merge.loss !== null).at(-1);
  if (!scored) {
    put("score", "none", () => [element("span", { class: "none" }, "—")]);
    return say("score-note", "held-out loss with the merge, where this peer holds data out");
  }
  say(put("score", "some", () => []), loss(scored.loss));
  const gain = history.base_loss === null ? "" : `, ${loss(Math.abs(scored.loss - history.base_loss))} ${scored.loss <= history.base_loss ? "below" : "above"} the base`;
  say("score-note", `held-out loss with ${plural(scored.adapters, "adapter")}${gain}`);
}

function pairs(id, rows) {
  put(id, rows, () => rows.flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)]));
}

export function warnings(status) {
  const found = [];
  for (const fault of status.faults) {
    found.push(["bad", "Contradiction", `members ${fault.members.map(short).join(" and ")} signed different merges of one set (${short(fault.set_root)}); the evidence is kept`]);
  }
  for (const slot of status.slots) {
    if (slot.state === "conflict") found.push(["bad", "Conflict", `member ${short(slot.member)} signed two records at sequence ${slot.sequence}`]);
    if (slot.refused) found.push(["bad", "Refused", `the adapter of ${short(slot.member)}: ${slot.refused}`]);
  }
  const merged = status.merged;
  if (merged?.left_out?.length) found.push(["warn", "Left out", `the rule leaves out ${merged.left_out.map(short).join(", ")}`]);
  if (merged?.clipped?.length) found.push(["warn", "Clipped", `the updates of ${merged.clipped.map(short).join(", ")} were scaled down`]);
  if (status.phase === "failed") found.push(["bad", "Failed", "this peer's training failed"]);
  show("warnings", found.length > 0);
  const shown = found.slice(0, 8);
  if (found.length > shown.length) shown.push(["warn", "More", `${found.length - shown.length} other warnings`]);
  put("warnings", shown, () => shown.map(([tone, name, text]) => element("p", { "data-tone": tone }, element("b", {}, name), ` — ${text}`)));
}

export function transfers(status) {
  const list = document.getElementById("transfers");
  const owners = new Map(status.slots.map((slot) => [slot.adapter, slot.member]));
  const rate = status.transfers.flatMap((transfer) => transfer.providers).reduce((sum, provider) => sum + provider.bytes_per_second, 0);
  const served = status.uploads.reduce((sum, upload) => sum + upload.bytes_per_second, 0);
  say("transfers-note", [rate > 0 ? `${bytes(rate)}/s in` : "", served > 0 ? `${bytes(served)}/s out` : ""].filter(Boolean).join(", "));
  const sent = status.uploads.filter((upload) => upload.bytes > 0);
  const rows = [
    ...status.transfers.slice(0, 12).map((transfer) => ({ key: `in ${transfer.adapter}`, transfer })),
    ...sent.slice(0, 12).map((upload) => ({ key: `out ${upload.peer}`, upload })),
  ];
  if (rows.length === 0) rows.push({ key: "none" });
  const names = namesOf(status);
  const make = () => element("li", {}, element("div", { class: "row" }, element("span"), element("span")));
  keyed(list, rows, (row) => row.key, make, (item, { transfer, upload }) => {
    const [left, right] = item.firstElementChild.children;
    item.classList.toggle("quiet", !transfer && !upload);
    if (!transfer && !upload) return void say(left, "Nothing is on its way.");
    if (upload) {
      say(left, `to ${names.get(upload.peer) ?? tail(upload.peer)}`);
      return void say(right, `${bytes(upload.bytes)} sent${upload.bytes_per_second > 0 ? `, ${bytes(upload.bytes_per_second)}/s` : ""}`);
    }
    const owner = owners.get(transfer.adapter);
    const from = transfer.providers.filter((provider) => provider.state === "sending").length;
    say(left, owner ? `adapter of ${short(owner)}` : `file ${short(transfer.adapter)}`);
    say(right, `${bytes(transfer.have)} of ${bytes(transfer.size)} from ${plural(from, "peer")}`);
    progress(item, transfer.have / transfer.size, `Fetching ${short(transfer.adapter)}`, "second");
  });
}

// Peers that are known as members go by their short keys.
function namesOf(status) {
  const keys = new Set([...status.roster, ...status.slots.map((slot) => slot.member)]);
  return new Map([...keys].map((key) => [peerOf(key), short(key)]));
}

export function network(status) {
  const names = namesOf(status);
  const keys = new Map([...status.roster, ...status.slots.map((slot) => slot.member)].map((key) => [peerOf(key), key]));
  const sent = new Map(status.uploads.map((upload) => [upload.peer, upload]));
  const sending = new Set(status.transfers.flatMap((transfer) => transfer.providers).filter((provider) => provider.state === "sending").map((provider) => provider.peer));
  const links = [...status.links].sort((one, other) => (one.peer < other.peer ? -1 : 1));
  const relayed = links.filter((link) => link.relayed).length;
  const reached = { public: "others can dial it", private: "reached through relays" }[status.reachability];
  say("network-note", [plural(links.length, "neighbour"), relayed > 0 ? `${relayed} relayed` : "", reached ?? ""].filter(Boolean).join(", "));
  const nodes = links.slice(0, NODES_MAX).map((link) => ({
    name: names.get(link.peer) ?? tail(link.peer),
    key: keys.get(link.peer) ?? "",
    relayed: link.relayed,
    in: sending.has(link.peer),
    out: (sent.get(link.peer)?.bytes_per_second ?? 0) > 0,
    trip: tripOf(link),
  }));
  const size = document.getElementById("network").clientWidth;
  put("network", [nodes, size, links.length], () => [nodes.length > 0 ? picture(nodes, size, links.length) : element("p", { class: "none" }, "No neighbour yet. It keeps dialling.")]);
  const row = () => element("tr", {}, element("th", { scope: "row" }, element("code")), element("td", {}, element("span", { class: "state" })), element("td", { class: "number" }), element("td", { class: "number" }));
  keyed(document.querySelector("#links tbody"), links.slice(0, ROWS_MAX), (link) => link.peer, row, (line, link) => {
    const [name, path, trip, out] = line.children;
    const code = say(name.firstElementChild, names.get(link.peer) ?? tail(link.peer));
    if (code.title !== link.peer) code.title = link.peer;
    const label = say(path.firstElementChild, link.relayed ? "relayed" : "direct");
    label.dataset.tone = link.relayed ? "warn" : "good";
    say(trip, tripOf(link) || "—");
    say(out, bytes(sent.get(link.peer)?.bytes ?? 0));
  });
  show("links", links.length > 0);
}

function tripOf(link) {
  const trip = link.round_trip_ms;
  return Number.isFinite(trip) ? `${trip < 10 ? trip.toFixed(1) : Math.round(trip)} ms` : "";
}

// This peer in the middle, its neighbours around it.
function picture(nodes, width, all) {
  const height = 236;
  const [x, y] = [width / 2, height / 2 - 4];
  const [far, high] = [Math.min(width / 2 - 44, 190), height / 2 - 36];
  const svg = drawn("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `This peer and ${plural(all, "neighbour")}; the table below says the same` });
  const spots = nodes.map((_, index) => {
    const angle = (index / nodes.length) * 2 * Math.PI - Math.PI / 2 + (nodes.length === 2 ? Math.PI / 2 : 0);
    return [x + far * Math.cos(angle), y + high * Math.sin(angle)];
  });
  nodes.forEach((node, index) => {
    const [toX, toY] = spots[index];
    const d = `M${x} ${y}L${toX} ${toY}`;
    svg.append(drawn("path", { class: "wire", d, "data-path": node.relayed ? "relayed" : "direct" }));
    if (node.in) svg.append(drawn("path", { class: "flow", d, "data-way": "in" }));
    if (node.out) svg.append(drawn("path", { class: "flow", d, "data-way": "out" }));
  });
  nodes.forEach((node, index) => {
    const [toX, toY] = spots[index];
    const dot = drawn("circle", { class: "node", cx: toX, cy: toY, r: 9 });
    dot.style.fill = node.key ? `hsl(${hue(node.key)} 45% 55%)` : "var(--line-strong)";
    const below = toY >= y - 1;
    svg.append(dot, drawn("text", { class: "name", x: toX, y: below ? toY + 24 : toY - 16 }, node.name));
  });
  svg.append(drawn("circle", { class: "halo", cx: x, cy: y, r: 22 }), drawn("circle", { class: "self", cx: x, cy: y, r: 11 }));
  if (all > nodes.length) svg.append(drawn("text", { x, y: height - 2 }, `and ${all - nodes.length} more`));
  return svg;
}

export function about(status) {
  const rows = [["peer", status.peer], ["member", status.member], ["round", status.round], ["listening", status.listening.join("  ") || "nowhere"], ["home", status.home]];
  if (status.reached_at.length > 0) rows.splice(4, 0, ["reached at", status.reached_at.join("  ")]);
  if (status.merged) rows.push(["merged", status.merged.merged_hash], ["set root", status.merged.set_root]);
  pairs("about", rows);
}
