// Looks at the dashboard of a real round in Chromium: a testnet whose peers are on one page, from training to the end.
//
//   apt-get install -y chromium; npm install playwright-core        (anywhere above this file, or give its folder in NODE_PATH)
//   cargo build --workspace --bins
//   node tests/by_hand/dashboard.mjs target/debug/mingle-testnet [FOLDER FOR PICTURES]
//
// It fails on an error in the console, a request that leaves the port, a part that the keyboard does not reach or whose focus
// is not seen, a line wider than the screen at 390 px, or text with less contrast than WCAG AA asks for.

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import fs from "node:fs";
import { createRequire } from "node:module";
import os from "node:os";
import path from "node:path";

const require = createRequire(path.join(process.env.NODE_PATH ?? import.meta.dirname, "x.js"));
const { chromium } = require("playwright-core");
const [program, pictures = fs.mkdtempSync(path.join(os.tmpdir(), "dashboard-"))] = process.argv.slice(2);
const WIDTHS = [390, 1440];
const SCHEMES = ["light", "dark"];
const MEMBERS = 4;

const testnet = spawn(program, ["--members", String(MEMBERS), "--rounds", "0", "--no-centralised", "--http", "127.0.0.1:0"]);
const url = await new Promise((found, failed) => {
  let said = "";
  testnet.stderr.on("data", (data) => {
    said += data;
    const url = /on one page: (\S+)/.exec(said)?.[1];
    if (url) found(url);
  });
  testnet.on("exit", () => failed(new Error(said)));
});
console.log(`looking at ${url}; pictures go to ${pictures}`);

const profile = fs.mkdtempSync(path.join(os.tmpdir(), "profile-"));
const quiet = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync";
const browser = await chromium.launchPersistentContext(profile, { executablePath: "/usr/bin/chromium", headless: true, args: quiet.split(" ") });
const complaints = [];
browser.on("console", (message) => ["error", "warning"].includes(message.type()) && complaints.push(message.text()));
browser.on("weberror", (error) => complaints.push(String(error.error())));
const foreign = [];
browser.on("request", (request) => {
  const asked = new URL(request.url());
  if (asked.protocol !== "data:" && asked.origin !== new URL(url).origin) foreign.push(request.url());
});

async function open(width, scheme) {
  const page = await browser.newPage();
  await page.setViewportSize({ width, height: 900 });
  await page.emulateMedia({ colorScheme: scheme });
  await page.goto(url);
  await page.locator("#main").waitFor();
  return page;
}

// Texts whose contrast with what is behind them is below WCAG AA.
function pale() {
  const parse = (color) => color.match(/[\d.]+/g).map(Number);
  const over = ([r, g, b, a = 1], [under, below, beneath]) => [r * a + under * (1 - a), g * a + below * (1 - a), b * a + beneath * (1 - a)];
  const light = (rgb) => {
    const [r, g, b] = rgb.slice(0, 3).map((part) => (part / 255 <= 0.04045 ? part / 255 / 12.92 : ((part / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (node) => {
    const layers = [];
    for (let at = node; at; at = at.parentElement) layers.unshift(parse(getComputedStyle(at).backgroundColor));
    return layers.reduce((under, layer) => over(layer, under), [255, 255, 255]);
  };
  const found = [];
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const node = texts.currentNode.parentElement;
    if (!texts.currentNode.textContent.trim() || !node.checkVisibility() || node.closest(".unseen, .skip, noscript")) continue;
    const style = getComputedStyle(node);
    const [one, other] = [light(parse(node.closest("svg") ? style.fill : style.color)), light(behind(node))];
    const contrast = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
    const large = parseFloat(style.fontSize) >= 24;
    if (contrast < (large ? 3 : 4.5)) found.push(`${contrast.toFixed(2)} ${texts.currentNode.textContent.trim().slice(0, 40)}`);
  }
  return found;
}

async function check(page, width, scheme, name) {
  const [wide, screen] = await page.evaluate(() => [document.documentElement.scrollWidth, window.innerWidth]);
  assert.ok(wide <= screen, `${name}: ${wide} px on a screen of ${width}`);
  assert.deepEqual(await page.evaluate(pale), [], `${name} in ${scheme}: too little contrast`);
  await page.screenshot({ path: path.join(pictures, `${name}-${width}-${scheme}.png`), fullPage: true });
}

// Everything that the tabulator key reaches, and whether its focus is seen.
async function reached(page) {
  const found = [];
  await page.evaluate(() => document.activeElement?.blur());
  for (let step = 0; step < 60; step += 1) {
    await page.keyboard.press("Tab");
    const at = await page.evaluate(() => {
      const node = document.activeElement;
      if (!node || node === document.body) return null;
      const style = getComputedStyle(node);
      return { name: node.id || node.className, seen: style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2 };
    });
    if (at === null) break;
    found.push(at);
  }
  return found;
}

try {
  // While it trains.
  const page = await open(1440, "light");
  await page.locator(".peer").nth(MEMBERS).waitFor({ timeout: 120_000 });
  await page.locator("#training-chart path.trace").first().waitFor({ timeout: 120_000 });
  for (const width of WIDTHS) for (const scheme of SCHEMES) await open(width, scheme).then((page) => check(page, width, scheme, "training").then(() => page.close()));

  // All hold one merge, and know what it is worth.
  const peers = MEMBERS + 1;
  await page.getByText(`${peers} of ${peers} peers hold merge`).waitFor({ timeout: 600_000 });
  await page.locator("#scores-chart circle.point").first().waitFor({ timeout: 60_000 });
  assert.equal(await page.locator("#members tbody tr").count(), MEMBERS);
  assert.equal(await page.locator("#members .state", { hasText: "merged" }).count(), MEMBERS);
  await page.getByText(/members? vouch(es)? for these bytes/).waitFor();

  // By keyboard alone.
  const keys = await reached(page);
  assert.equal(keys[0].name, "skip");
  const names = keys.map((key) => key.name);
  assert.equal(names.filter((name) => name === "peer").length, peers, names.join(", "));
  for (const name of ["training-chart", "scores-chart", "log"]) assert.ok(names.includes(name), `${name} is not reached`);
  assert.deepEqual(keys.filter((key) => !key.seen), [], "the focus is not seen");
  await page.locator("#training-chart").focus();
  await page.keyboard.press("Home");
  assert.match(await page.locator("#training-chart .readout").textContent(), /^step 1: loss/);
  assert.match(await page.locator("#training-chart").getAttribute("aria-valuetext"), /^step 1: loss/);
  await page.keyboard.press("Escape");
  const before = await page.locator("#about dd").first().textContent();
  await page.locator(".peer").nth(1).focus();
  await page.keyboard.press("Enter");
  await page.waitForFunction((before) => document.querySelector("#about dd").textContent !== before, before);
  assert.equal(await page.locator(".peer[aria-current=true]").count(), 1);
  const landmarks = await page.evaluate(() => ["header", "nav", "main", "footer", "h1"].filter((name) => !document.querySelector(name)));
  assert.deepEqual(landmarks, []);

  for (const width of WIDTHS) {
    for (const scheme of SCHEMES) {
      const page = await open(width, scheme);
      await page.locator("#scores-chart circle.point").first().waitFor();
      await check(page, width, scheme, "merged");
      await page.close();
    }
  }
  assert.deepEqual(complaints, [], "the console");
  assert.deepEqual(foreign, [], "requests that leave the port");

  // The testnet ends: the page says so, and keeps what it knew.
  testnet.kill("SIGINT");
  await page.getByText("connection lost").waitFor({ timeout: 30_000 });
  assert.equal(await page.locator("#members tbody tr").count(), MEMBERS);
  await page.screenshot({ path: path.join(pictures, "lost-1440-light.png"), fullPage: true });
  console.log(`all is well: ${names.length} stops by keyboard, ${WIDTHS.length * SCHEMES.length * 2} pictures`);
} finally {
  testnet.kill("SIGINT");
  await browser.close();
  fs.rmSync(profile, { recursive: true, force: true });
}
