// The label page: shows sets, takes keys, and never waits for the server between two sets.

import { Clock } from "./clock.js";
import { call, Down, Locked, newId, Outbox } from "./outbox.js";

const $ = (id) => document.getElementById(id);
const RATER = "dalle_ppo.rater";
const POLL = 500, RETRY = 5000;

let rater = null, outbox = null, shown = null, last = null, picks = [], undoing = false;
let queue = []; // sets to come, the one shown first
const answered = new Set(); // names of showings that were answered here
const flags = new Map(); // by picture: is it flagged?
const loaded = new Map(); // pictures by key, so that the browser has them decoded
const clock = new Clock(() => say(
  "Paused after 5 minutes without a key, and the clock with it. All answers so far are kept. Press any key to go on."
));

// --- what is said

function say(text) {
  $("line").textContent = text;
  $("line").hidden = !text;
}

function waitingAnswers() {
  const n = outbox ? outbox.rows().length : 0;
  return n === 0 ? "All answers are kept." : `${n === 1 ? "1 answer waits" : `${n} answers wait`} in this browser and will be sent then.`;
}

function explain(error) {
  if (error instanceof Locked) {
    return say(`The program was started again, with a new address. Open the address that it printed, in this browser. ${waitingAnswers()}`);
  }
  if (error instanceof Down) {
    const why = /^it could not/.test(error.message) ? error.message : "The program behind this page does not answer";
    return say(`${why}. Is it still running? Start it again with python -m dalle_ppo.label and open the address that it prints. ${waitingAnswers()}`);
  }
  say(error.message);
}

function showFigures(f) {
  $("progress").value = Math.min(1, f.total / f.goal);
  const mine = f.mine === f.total ? "" : `, ${f.mine} by you`;
  $("count").textContent = `${f.total} of ${f.goal} answers${mine}`;
  $("pace").textContent = f.per_minute === null ? "" : `${f.per_minute.toFixed(f.per_minute < 10 ? 1 : 0)} a minute`;
  $("agreement").textContent = f.repeats ? `${f.alike} of ${f.repeats} repeated pairs answered alike` : "";
}

// --- from the server

function take(state) {
  if (state.rater !== rater) return; // an answer of somebody else that had waited
  last = state.last;
  queue = state.queue.filter((showing) => !answered.has(showing.name));
  const keys = new Set(queue.flatMap((showing) => showing.images));
  for (const { images, flagged } of queue) images.forEach((key, place) => flags.set(key, flagged[place]));
  for (const key of loaded.keys()) if (!keys.has(key)) loaded.delete(key);
  keys.forEach(load);
  showFigures(state.figures);
  const error = state.error && !queue.length ? `No further pictures can be drawn: ${state.error}. All answers are kept.` : "";
  if (!clock.away) say(error || state.figures.warning);
  show();
}

function load(key) {
  if (loaded.has(key)) return;
  const image = new Image();
  image.alt = "";
  image.draggable = false;
  image.onload = () => image.classList.toggle("small", image.naturalWidth < 200);
  image.onerror = () => {
    loaded.delete(key);
    image.alt = "this picture is gone; skip the set";
  };
  image.src = `images/${key}.png`;
  image.decode().catch(() => {});
  loaded.set(key, image);
}

async function refresh() {
  const who = rater;
  try {
    if (outbox.rows().length) await outbox.send(take);
    const state = await call(`api/state?rater=${encodeURIComponent(who)}`);
    if (who === rater) take(state);
  } catch (error) {
    explain(error);
  }
}

// --- the set

function show() {
  const next = queue[0] || null;
  $("set").hidden = !next;
  $("wait").hidden = !!next;
  if (shown && next && shown.name === next.name) return;
  shown = next;
  picks = [];
  document.activeElement?.blur();
  document.body.classList.remove("reveal");
  if (!next) return;
  const many = next.images.length > 2;
  $("caption").textContent = next.caption;
  $("question").textContent = many ? "Best first: press the numbers in order" : "Which picture is better?";
  $("bad").textContent = many ? "All bad" : "Both bad";
  $("help").textContent = many
    ? "1–4 or click: best, second, … · arrows move, Enter picks · T: the rest are equal · B: all bad · S: skip · U: undo"
    : "1 or ← left · 2 or → right · T or ↑ tie · B or ↓ both bad · S skip · U undo";
  $("see").hidden = !next.flagged.some(Boolean);
  $("pictures").className = ["", "many three", "many"][next.images.length - 2];
  $("pictures").replaceChildren(...next.images.map((key, place) => card(key, place, next.flagged[place])));
  clock.restart();
}

function card(key, place, flagged) {
  const button = element("button", flagged ? "picture flagged" : "picture");
  button.type = "button";
  button.setAttribute("aria-label", `picture ${place + 1}${flagged ? ", flagged as unsafe" : ""}`);
  const frame = element("span", "frame");
  load(key);
  const veil = element("span", "veil");
  veil.textContent = "flagged as unsafe";
  frame.append(loaded.get(key), veil);
  const number = element("span", "number");
  number.textContent = place + 1;
  button.append(frame, number);
  button.addEventListener("click", () => act(() => pick(place)));
  return button;
}

function element(tag, className) {
  const made = document.createElement(tag);
  made.className = className;
  return made;
}

// --- answers

function pick(place) {
  const n = shown.images.length;
  if (place >= n || picks.includes(place)) return;
  picks.push(place);
  if (picks.length >= n - 1) return finish();
  showPicks();
}

function showPicks() {
  [...$("pictures").children].forEach((button, place) => {
    const rank = picks.indexOf(place);
    button.classList.toggle("ranked", rank >= 0);
    button.querySelector(".number").textContent = rank >= 0 ? `${["best", "2nd", "3rd"][rank]}` : place + 1;
  });
}

// Pictures that were not picked share the next rank.
function finish(allBad = false) {
  const ranks = shown.images.map((_, place) => {
    const rank = allBad ? -1 : picks.indexOf(place);
    return rank >= 0 ? rank + 1 : (allBad ? 0 : picks.length) + 1;
  });
  answer({ kind: "ranking", ranks, all_bad: allBad });
}

function answer(what) {
  const { name, set_id, caption, images } = shown;
  answered.add(name);
  outbox.add({ id: newId(), rater, name, set_id, caption, images, seconds: clock.seconds(), ...what });
  queue.shift();
  show();
  outbox.send(take).catch(explain);
}

async function undo() {
  if (picks.length) {
    picks.pop();
    return showPicks();
  }
  if (undoing) return;
  undoing = true;
  try {
    const row = outbox.pop(rater);
    if (row) return showAgain(row);
    await outbox.send(take);
    if (last) take(await call("api/undo", { id: newId(), rater, undoes: last }));
    else say("There is nothing to undo.");
  } catch (error) {
    explain(error);
  } finally {
    undoing = false;
  }
}

// An answer that the server never saw: its set is still in this page's hands.
function showAgain(row) {
  answered.delete(row.name);
  const flagged = row.images.map((key) => flags.get(key) ?? true);
  queue.unshift({ name: row.name, set_id: row.set_id, caption: row.caption, images: row.images, flagged });
  show();
}

const ACTIONS = {
  tie: () => finish(),
  bad: () => finish(true),
  skip: () => answer({ kind: "skip", ranks: null, all_bad: false }),
};

function wake() {
  say("");
  clock.restart();
  refresh();
}

// The first key after a pause only ends the pause: it was not meant as an answer.
function act(action) {
  if (clock.touch()) return wake();
  if (action === undo) undo();
  else if (shown) action();
}

// --- keys

const LETTERS = { t: ACTIONS.tie, b: ACTIONS.bad, s: ACTIONS.skip, u: undo, backspace: undo };
const PAIR_ARROWS = {
  ArrowLeft: () => pick(0), ArrowRight: () => pick(1), ArrowUp: ACTIONS.tie, ArrowDown: ACTIONS.bad,
};
const STEPS = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -2, ArrowDown: 2 };

function reveal(on) {
  document.body.classList.toggle("reveal", on);
}

function onKey(event) {
  if (event.target.tagName === "INPUT" || event.ctrlKey || event.metaKey || event.altKey || !rater) return;
  const pressed = event.key === "Enter" ? null : actionOf(event.key);
  if (event.key !== " " && !pressed) {
    if (clock.away) act(() => {});
    return;
  }
  event.preventDefault();
  if (event.repeat) return;
  if (event.key === " ") {
    return clock.touch() ? wake() : reveal(true);
  }
  act(pressed);
}

function actionOf(key) {
  if (/^[1-4]$/.test(key)) return () => pick(Number(key) - 1);
  if (key in STEPS) return shown?.images.length === 2 ? PAIR_ARROWS[key] : () => move(STEPS[key]);
  return LETTERS[key.toLowerCase()];
}

function move(step) {
  const cards = [...$("pictures").children];
  const from = cards.indexOf(document.activeElement);
  cards[from < 0 ? 0 : Math.min(cards.length - 1, Math.max(0, from + step))].focus();
}

function listen() {
  document.addEventListener("keydown", onKey);
  document.addEventListener("keyup", (event) => {
    if (event.key !== " " || event.target.tagName === "INPUT") return;
    event.preventDefault(); // a focused button would take it as a click
    reveal(false);
  });
  window.addEventListener("blur", () => reveal(false));
  for (const button of document.querySelectorAll("[data-do]")) {
    const name = button.dataset.do;
    button.addEventListener("click", () => { button.blur(); act(name === "undo" ? undo : ACTIONS[name]); });
  }
  $("see").addEventListener("pointerdown", () => (clock.touch() ? wake() : reveal(true)));
  for (const end of ["pointerup", "pointerleave", "pointercancel"]) $("see").addEventListener(end, () => reveal(false));
  $("rater").addEventListener("click", ask);
  $("who").addEventListener("submit", (event) => {
    event.preventDefault();
    enter($("name").value);
  });
}

// --- who

async function ask() {
  rater = shown = null;
  queue = [];
  for (const id of ["set", "wait", "rater"]) $(id).hidden = true;
  $("who").hidden = false;
  $("name").focus();
  try {
    const { raters } = await call("api/state");
    $("names").replaceChildren(...raters.map((name) => Object.assign(element("option", ""), { value: name })));
  } catch (error) {
    explain(error);
  }
}

async function enter(name) {
  name = name.trim().replace(/\s+/g, " ");
  try {
    await call(`api/state?rater=${encodeURIComponent(name)}`);
  } catch (error) {
    return explain(error);
  }
  rater = name;
  localStorage.setItem(RATER, name);
  $("who").hidden = true;
  $("rater").hidden = false;
  $("rater").textContent = `${name} – change`;
  clock.touch();
  say("");
  refresh();
}

async function start() {
  history.replaceState(null, "", location.pathname); // the token is in the cookie now
  listen();
  try {
    outbox = new Outbox((await call("api/state")).project);
    const name = localStorage.getItem(RATER);
    if (name) await enter(name);
    if (!rater) await ask();
  } catch (error) {
    explain(error);
  }
  setInterval(() => { if (rater && !shown && !clock.away) refresh(); }, POLL);
  setInterval(() => { if (rater && outbox.rows().length) refresh(); }, RETRY);
}

start();
