// One page for one peer, or for all peers of a testnet: what /api/events says becomes panels.

import { Chart, smooth } from "./charts.js";
import * as panels from "./panels.js";
import { Stream } from "./stream.js";
import { clock, element, keyed, loss, plural, put, say, short, show } from "./words.js";

const TOKEN = "mingle-token";
const EMPTY = { training: [], held_out: [], trained: null, merges: [], base_loss: null, happened: [] };

const charts = {
  training: new Chart("training-chart", "Training loss by step"),
  scores: new Chart("scores-chart", "Held-out loss by adapters in the merge"),
};
let stream = null;
let chosen = null;
let status = null;
let history = EMPTY;

// A token may come with the address, once; it does not stay there.
function takeToken() {
  const address = new URL(location.href);
  const fragment = new URLSearchParams(address.hash.slice(1));
  const token = fragment.get("token") ?? address.searchParams.get("token");
  if (token) {
    sessionStorage.setItem(TOKEN, token);
    fragment.delete("token");
    address.searchParams.delete("token");
    address.hash = fragment.toString();
    window.history.replaceState(null, "", address);
  }
  chosen = fragment.get("peer");
  return sessionStorage.getItem(TOKEN);
}

function follow(token) {
  stream?.close();
  const query = chosen ? `?peer=${encodeURIComponent(chosen)}` : "";
  stream = new Stream(`api/events${query}`, token, {
    open: () => link("live", "live"),
    lost: (seconds) => link("lost", "connection lost", `again in ${seconds} s`),
    refused: () => {
      const tried = sessionStorage.getItem(TOKEN) !== null;
      sessionStorage.removeItem(TOKEN);
      link("wait", "locked");
      show("main", false);
      show("unlock", true);
      say("unlock-note", tried ? "That is not the token of this peer." : "");
      document.getElementById("token").focus();
    },
    told: (name, value) => {
      if (name === "peers") return peers(value);
      if (name === "status") status = { roster: [], links: [], transfers: [], uploads: [], faults: [], ...value };
      if (name === "history") history = { ...EMPTY, ...value };
      draw();
    },
  });
}

// The seconds are for eyes only: nobody wants them read out.
function link(state, text, again = "") {
  document.getElementById("link").dataset.state = state;
  say("link-text", text);
  say("link-again", again);
  document.getElementById("main").toggleAttribute("data-stale", state === "lost");
}

function draw() {
  if (!status) return;
  show("unlock", false);
  show("main", true);
  panels.title(status);
  panels.warnings(status);
  panels.tiles(status, history);
  panels.members(status);
  panels.network(status);
  panels.transfers(status);
  panels.about(status);
  training();
  scores();
  happened();
}

function legend(id, rows) {
  put(id, rows, () => rows.map(([name, tone, kind]) => element("span", {}, element("i", { "data-tone": tone, "data-kind": kind }), name)));
}

function training() {
  const points = history.training.map((point) => [point.step, point.loss]);
  const now = status.phase === "training" ? status.training : null;
  if (now && Number.isFinite(now.loss) && now.step > (points.at(-1)?.[0] ?? 0)) points.push([now.step, now.loss]);
  if (points.length === 0) {
    legend("training-legend", []);
    const why = { reader: "A reader trains nothing.", seed: "A seed trains nothing.", founder: "This peer trains nothing." }[status.role];
    return charts.training.show({ empty: why ?? (status.phase === "training" ? "The first step is under way." : "This peer has trained nothing here.") });
  }
  const held = history.held_out.map((point) => [point.step, point.loss]);
  const series = [{ points, tone: "faint" }];
  if (held.length > 0) series.push({ points: held, tone: "second", kind: "dots" });
  series.push({ points: smooth(points), kind: "area" });
  legend("training-legend", [["loss by step, smoothed", "", ""], ...(held.length > 0 ? [["held-out loss", "second", ""]] : [])]);
  charts.training.show({ series, read: ([step, value]) => `step ${step}: loss ${loss(value)}` });
}

function scores() {
  const base = history.base_loss;
  const scored = history.merges.filter((merge) => merge.loss !== null);
  if (scored.length === 0) {
    legend("scores-legend", []);
    const merges = history.merges.length;
    const why = merges === 0 ? "Nothing is merged yet." : `${plural(merges, "merge")} so far. A member with held-out data scores each of them.`;
    return charts.scores.show({ empty: why });
  }
  const steps = scored.map((merge) => [merge.adapters, merge.loss]);
  // What one adapter gains over the base would hide what the next ones do.
  if (base !== null && steps.length === 1) steps.unshift([0, base]);
  const points = steps.map(([, value], index) => [index, value]);
  const own = history.trained?.loss_after ?? null;
  const marks = own === null ? [] : [{ y: own, tone: "second" }];
  const known = base === null || steps[0][0] === 0 ? [] : [[`base ${loss(base)}`, "none", ""]];
  legend("scores-legend", [["held-out loss", "", ""], ...(own === null ? [] : [["own adapter alone", "second", "dash"]]), ...known]);
  charts.scores.show({
    series: [{ points, kind: "steps" }],
    marks,
    ticks: steps.map(([adapters], index) => [index, adapters === 0 ? "base" : plural(adapters, "adapter")]),
    read: ([index, value]) => `${steps[index][0] === 0 ? "base alone" : plural(steps[index][0], "adapter")}: loss ${loss(value)}`,
  });
}

function happened() {
  const rows = [...history.happened].reverse();
  put("log", rows, () =>
    rows.length === 0
      ? [element("li", {}, element("span", {}, "Nothing yet."))]
      : rows.map((row) => {
          const time = element("time", { datetime: new Date(row.unix_ms).toISOString() }, clock(row.unix_ms));
          return element("li", { "data-warning": row.warning }, time, element("span", {}, row.times > 1 ? `${row.text} (${row.times} times)` : row.text));
        }),
  );
}

function peers(all) {
  const nav = show("peers", all.length > 1);
  if (all.length < 2) return;
  const groups = [...new Set(all.map((peer) => peer.group))];
  const current = chosen ?? all[0].id;
  keyed(nav, groups, (group) => group, makeGroup, (section, group) => {
    const inside = all.filter((peer) => peer.group === group);
    const [name, note] = section.firstElementChild.children;
    say(name, group || "Peers");
    say(note, agreement(inside));
    keyed(section.lastElementChild, inside, (peer) => peer.id, makePeer, (item, peer) => updatePeer(item, peer, current));
  });
}

function makeGroup() {
  return element("section", {}, element("h2", {}, element("span"), element("small")), element("ul"));
}

// How many of these peers hold the merge that most of them hold.
function agreement(peers) {
  const held = new Map();
  for (const { merged_hash: hash } of peers) if (hash) held.set(hash, (held.get(hash) ?? 0) + 1);
  const [hash, times] = [...held].sort((one, other) => other[1] - one[1])[0] ?? [];
  return hash ? `${times} of ${plural(peers.length, "peer")} hold merge ${short(hash)}` : plural(peers.length, "peer");
}

function makePeer(peer) {
  const choose = () => {
    chosen = peer.id;
    window.history.replaceState(null, "", `#peer=${encodeURIComponent(peer.id)}`);
    document.querySelectorAll(".peer").forEach((card) => card.setAttribute("aria-current", String(card === button)));
    history = EMPTY;
    follow(sessionStorage.getItem(TOKEN));
  };
  const row = () => element("span", { class: "row" }, element("span"), element("span"));
  const head = element("span", { class: "row" }, element("b"), element("span", { class: "state" }));
  const button = element("button", { type: "button", class: "peer", onclick: choose }, head, row(), element("div", { class: "bar", "aria-hidden": "true" }, element("span")));
  return element("li", {}, button);
}

const TONES = { training: "busy", announced: "good", waiting: "warn", following: "good", failed: "bad" };

function updatePeer(item, peer, current) {
  const button = item.firstElementChild;
  const [head, facts, bar] = button.children;
  button.setAttribute("aria-current", String(peer.id === current));
  say(head.firstElementChild, peer.name);
  const words = { training: "training", announced: "serving", waiting: "waiting", following: "reading", failed: "failed" };
  const state = say(head.lastElementChild, peer.warnings > 0 ? plural(peer.warnings, "warning") : peer.live ? words[peer.phase] : "ended");
  state.dataset.tone = peer.warnings > 0 ? "bad" : peer.live ? TONES[peer.phase] : "idle";
  const trains = peer.live && peer.phase === "training" && peer.steps;
  say(facts.firstElementChild, trains ? `${peer.step} / ${peer.steps} steps` : `${peer.merged} merged`);
  say(facts.lastElementChild, trains ? `loss ${loss(peer.loss ?? NaN)}` : peer.merged_hash ? short(peer.merged_hash) : "");
  bar.firstElementChild.style.width = `${trains ? (100 * peer.step) / peer.steps : peer.adapters > 0 ? (100 * peer.merged) / peer.adapters : 0}%`;
  bar.classList.toggle("second", Boolean(trains));
}

document.getElementById("unlock").addEventListener("submit", (event) => {
  event.preventDefault();
  const field = document.getElementById("token");
  sessionStorage.setItem(TOKEN, field.value.trim());
  field.value = "";
  show("unlock", false);
  follow(sessionStorage.getItem(TOKEN));
});
window.addEventListener("hashchange", () => /(token|peer)=/.test(location.hash) && follow(takeToken()));
let resized = 0;
window.addEventListener("resize", () => {
  cancelAnimationFrame(resized);
  resized = requestAnimationFrame(draw);
});
follow(takeToken());
