// Numbers and names as people read them, and elements made of text alone: what peers say is never markup.

const SVG = "http://www.w3.org/2000/svg";

// An element with properties, and children that are elements or texts.
export function element(name, properties = {}, ...children) {
  return fill(document.createElement(name), properties, children);
}

export function drawn(name, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, name), attributes, children);
}

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === false || value === null || value === undefined) continue;
    if (name === "onclick") node.addEventListener("click", value);
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  node.append(...children.filter((child) => child !== null && child !== undefined && child !== ""));
  return node;
}

// Leaves what already says so alone: selections and the screen reader's place survive.
export function say(id, text) {
  const node = typeof id === "string" ? document.getElementById(id) : id;
  if (node.textContent !== text) node.textContent = text;
  return node;
}

export function show(id, visible) {
  const node = typeof id === "string" ? document.getElementById(id) : id;
  if (node.hidden === visible) node.hidden = !visible;
  return node;
}

// Puts children into a node unless what they say is what stands there.
export function put(id, signature, make) {
  const node = typeof id === "string" ? document.getElementById(id) : id;
  const said = JSON.stringify(signature);
  if (node.said === said) return node;
  node.said = said;
  node.replaceChildren(...make());
  return node;
}

// One child for each item, kept as long as its key is there.
export function keyed(parent, items, key, make, update) {
  const old = new Map([...parent.children].map((child) => [child.key, child]));
  let place = parent.firstElementChild;
  for (const item of items) {
    const name = key(item);
    let child = old.get(name);
    if (!child) {
      child = make(item);
      child.key = name;
    }
    old.delete(name);
    update(child, item);
    if (child === place) place = place.nextElementSibling;
    else parent.insertBefore(child, place);
  }
  for (const gone of old.values()) gone.remove();
}

const grouped = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });

export function whole(number) {
  return grouped.format(number);
}

export function loss(number, places = 3) {
  return Number.isFinite(number) ? number.toFixed(places) : "—";
}

export function bytes(number) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let power = 0;
  while (number >= 1024 && power < units.length - 1) {
    number /= 1024;
    power += 1;
  }
  return `${number.toFixed(power === 0 || number >= 100 ? 0 : 1)} ${units[power]}`;
}

export function duration(seconds) {
  if (!Number.isFinite(seconds)) return "";
  if (seconds < 90) return `${Math.max(0, Math.round(seconds))} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  if (seconds < 172800) return `${(seconds / 3600).toFixed(1)} h`;
  return `${Math.round(seconds / 86400)} days`;
}

export function clock(milliseconds) {
  return new Date(milliseconds).toLocaleTimeString("en-GB");
}

export function plural(number, one, many = `${one}s`) {
  return `${whole(number)} ${number === 1 ? one : many}`;
}

export function short(hex) {
  return String(hex).slice(0, 8);
}

// A colour that stays a member's own; it says nothing that words do not.
export function hue(hex) {
  return (parseInt(String(hex).slice(0, 6), 16) * 137.508) % 360 || 0;
}

export function swatch(hex) {
  const node = element("span", { class: "swatch", "aria-hidden": "true" });
  node.style.background = `hsl(${hue(hex)} 45% 55%)`;
  return node;
}

const ALPHABET = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz";

// The name that the network gives to the holder of a member's key.
export function peerOf(member) {
  if (!/^[0-9a-f]{64}$/.test(member)) return "";
  let number = BigInt(`0x002408011220${member}`);
  let text = "";
  while (number > 0n) {
    text = ALPHABET[Number(number % 58n)] + text;
    number /= 58n;
  }
  return `1${text}`;
}

export function tail(peer) {
  return `…${String(peer).slice(-6)}`;
}
