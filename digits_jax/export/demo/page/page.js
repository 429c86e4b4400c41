// The page: a paper, a pen, and what the network says of it.

import { SIDE, centred, linesOf, normalised } from "./ink.js";
import { openPicture } from "./photo.js";
import { compose, get, joint, middle, open, spell, whereItLooked } from "./reader.js";
import { bounds, cutOut, legible, paint, part, pieces } from "./strokes.js";
import * as tallies from "./tally.js";

const DIGIT = 280; // pixels of the paper's height, and of its width for each of two digits
const SURE = 0.6; // the network doubts what it gives less
const AT_ONCE = 16; // pieces that are read at once
const KEYS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

const $ = (id) => document.getElementById(id);
const [paper, seen] = [$("paper"), $("seen")];

let facts = null; // facts.json
let run = null; // the network, once it is there
let failed = ""; // why it never will be
let wrong = ""; // what went wrong with what is on the paper
let taken = 0; // goes up with all that is put on the paper: a photo that comes late is dropped
let strokes = [];
let photo = null; // instead of strokes: {canvas, lines}
let redo = null; // what Clear, Example or Photo took away, for Undo: {strokes, photo}
let cursor = null; // of the keyboard: {x, y, down}
let found = []; // what is read: pieces in lines, [[{left, top, right, bottom, key, heads, ...}, ...], ...]
let cache = new Map(); // key -> piece that was read
let chosen = null; // {piece, i}: the character that the details are about
let heat = new Map(); // key -> where the network looked
let tally = tallies.load();
const judged = new Map(); // key -> what a person said that it is
const pens = new Map(); // pointer -> its stroke

// ---- Paper

const pair = () => facts?.kind === "pair";

/** The paper's sides in its own pixels: as wide as the screen has it, and with room for all ink. */
function size() {
  if (pair()) return facts.axis ? [DIGIT, 2 * DIGIT] : [2 * DIGIT, DIGIT];
  const aspect = paper.clientWidth / paper.clientHeight || 2;
  const ink = photo ? { right: photo.canvas.width, bottom: photo.canvas.height } : bounds(thin(strokes));
  const height = Math.max(photo ? 1 : DIGIT, ink?.bottom ?? 0, (ink?.right ?? 0) / aspect);
  return [height * aspect, height];
}

const thin = (lines) => lines.map(({ points }) => ({ width: 0, points }));

/** From the left edge to what is on the paper: a photo is in its middle. */
const margin = () => (photo ? (size()[0] - photo.canvas.width) / 2 : 0);

/** Fits the canvas's own pixels to the screen's. */
function lay() {
  paper.className = pair() ? "pair" : "";
  if (pair()) paper.style.setProperty("--aspect", size()[0] / size()[1]);
  paper.width = Math.round(paper.clientWidth * devicePixelRatio);
  paper.height = Math.round(paper.clientHeight * devicePixelRatio);
  show();
}

function show() {
  const [width, height] = size();
  const style = getComputedStyle(paper);
  const context = paper.getContext("2d");
  context.setTransform(1, 0, 0, 1, 0, 0);
  context.clearRect(0, 0, paper.width, paper.height);
  context.scale(paper.width / width, paper.height / height);
  context.translate(margin(), 0);
  context.strokeStyle = style.borderTopColor;
  context.lineWidth = height / DIGIT;
  if (pair()) {
    context.setLineDash([4, 6]);
    context.strokeRect(...(facts.axis ? [-9, DIGIT, width + 18, height] : [DIGIT, -9, width, height + 18]));
    context.setLineDash([]);
  }
  if (photo) {
    context.drawImage(photo.canvas, 0, 0);
    context.lineWidth = (3 * height) / DIGIT;
    for (const { left, top, right, bottom, spelled } of found.flat()) {
      context.strokeStyle = spelled?.text === "?" ? style.getPropertyValue("--doubt") : style.outlineColor;
      context.strokeRect(left, top, right - left, bottom - top);
    }
  }
  context.strokeStyle = style.color;
  paint(context, strokes);
  for (const piece of found.flat()) if (heat.has(piece.key)) glow(context, piece, heat.get(piece.key));
  if (cursor && document.activeElement === paper) {
    context.strokeStyle = style.caretColor;
    context.lineWidth = cursor.down ? 4 : 2;
    context.beginPath();
    context.arc(cursor.x, cursor.y, Math.max(pen() / 2, 5) + 3, 0, 2 * Math.PI);
    context.stroke();
  }
}

/** Lays what counted over a piece, from nothing to red. */
function glow(context, { part, place }, counts) {
  const [height, width] = facts.shape;
  const layer = new OffscreenCanvas(width, height);
  const pixels = new ImageData(width, height);
  counts.forEach((value, i) => pixels.data.set([255, 64, 0, 200 * value], 4 * i));
  layer.getContext("2d").putImageData(pixels, 0, 0);
  const scale = part.scale ?? 1;
  const pixel = place.pixel * scale;
  context.drawImage(layer, part.left + place.left * scale, part.top + place.top * scale, width * pixel, height * pixel);
}

const pen = () => Number($("pen").value);

/** A person has put something on the paper. */
function touched() {
  taken++;
  wrong = "";
}

function begin(point) {
  touched();
  const stroke = { width: pen(), points: [point] };
  strokes.push(stroke);
  redo = null;
  return stroke;
}

function place(event) {
  const box = paper.getBoundingClientRect();
  const [width, height] = size();
  const on = (part, length) => Math.min(Math.max(part, 0), 1) * length;
  const x = on((event.clientX - box.left) / box.width, width);
  return [x - margin(), on((event.clientY - box.top) / box.height, height)];
}

paper.addEventListener("pointerdown", (event) => {
  if (event.button !== 0) return;
  event.preventDefault();
  paper.focus({ preventScroll: true, focusVisible: false });
  if (photo) return choose(place(event));
  paper.setPointerCapture(event.pointerId);
  cursor = null;
  pens.set(event.pointerId, begin(place(event)));
  changed();
});

paper.addEventListener("pointermove", (event) => {
  const stroke = pens.get(event.pointerId);
  if (!stroke) return;
  if (!event.buttons) return void lift(event); // it was lifted unseen
  const events = event.getCoalescedEvents?.() ?? [];
  for (const each of events.length ? events : [event]) stroke.points.push(place(each));
  changed();
});

function lift(event) {
  if (pens.delete(event.pointerId)) changed(true);
}
for (const type of ["pointerup", "pointercancel", "lostpointercapture"]) paper.addEventListener(type, lift);
paper.addEventListener("contextmenu", (event) => event.preventDefault());

paper.addEventListener("keydown", (event) => {
  const [width, height] = size();
  const move = KEYS[event.key];
  if (event.ctrlKey || event.metaKey || event.altKey) return; // the browser's
  if (event.key === "Escape") replace({});
  else if (photo) return;
  else if (move) {
    event.preventDefault();
    cursor ??= { x: width / 2, y: height / 2, down: null };
    const step = event.shiftKey ? 28 : 7;
    cursor.x = Math.min(Math.max(cursor.x + step * move[0], 0), width);
    cursor.y = Math.min(Math.max(cursor.y + step * move[1], 0), height);
    cursor.down?.points.push([cursor.x, cursor.y]);
    changed();
  } else if (event.key === " ") {
    event.preventDefault();
    cursor ??= { x: width / 2, y: height / 2, down: null };
    cursor.down = cursor.down ? null : begin([cursor.x, cursor.y]);
    changed(true);
  }
});
for (const type of ["focus", "blur"]) paper.addEventListener(type, show);

// ---- Tools

function liftAll() {
  pens.clear();
  if (cursor) cursor.down = null;
}

function undo() {
  touched();
  if (redo) [{ strokes, photo }, redo] = [redo, null];
  else strokes = strokes.slice(0, -1);
  liftAll();
  changed(true);
}

/** Puts other things on the paper. */
function replace(others) {
  touched();
  if (strokes.length || photo) redo = { strokes, photo };
  ({ strokes = [], photo = null } = others);
  liftAll();
  changed(true);
}

/** Digits of facts.json's examples, side by side, or one in each part of the paper for two. */
function example() {
  const [width, height] = photo ? [2 * DIGIT, DIGIT] : size();
  const most = Math.max(Math.floor(width / (0.6 * DIGIT)), 1);
  const count = pair() ? 2 : 1 + Math.floor(Math.min(most, 5) * Math.random());
  const axis = pair() ? facts.axis : 0;
  const step = (axis ? height : width) / count;
  const room = Math.min(step, DIGIT);
  const drawn = Array.from({ length: count }, (_, k) => {
    const kinds = facts.examples[Math.floor(10 * Math.random())];
    const side = room * (0.45 + 0.25 * Math.random());
    const middle = [width / 2, height / 2].map((half, a) => (a === axis ? (k + 0.5) * step : half));
    const [left, top] = middle.map((at) => at - side / 2);
    return kinds[Math.floor(kinds.length * Math.random())].map((points) => ({
      width: Math.min(pen(), side / 5),
      points: points.map(([x, y]) => [left + x * side, top + y * side]),
    }));
  });
  replace({ strokes: drawn.flat() });
}

$("undo").addEventListener("click", undo);
$("clear").addEventListener("click", () => replace({}));
$("example").addEventListener("click", example);
document.addEventListener("keydown", (event) => {
  if (!(event.ctrlKey || event.metaKey) || event.key !== "z" || event.target === $("typed")) return;
  event.preventDefault();
  undo();
});
new ResizeObserver(lay).observe(paper);
addEventListener("resize", lay);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", show);

// ---- Photographs

async function take(file) {
  if (!file || pair()) return;
  const turn = ++taken;
  document.body.dataset.busy = "1";
  $("note").textContent = $("said").textContent = "Looking for digits ...";
  await new Promise((done) => setTimeout(done)); // which shows this
  if (turn !== taken) return;
  try {
    performance.mark("photo");
    const picture = await openPicture(file);
    performance.measure("photo", { start: "photo" });
    if (turn === taken) replace({ photo: picture });
  } catch (error) {
    if (turn !== taken) return;
    complain(error);
    changed(true);
  }
}

$("photo").addEventListener("click", () => $("file").click());
$("file").addEventListener("change", () => {
  take($("file").files[0]);
  $("file").value = ""; // the same one may be chosen again
});
document.addEventListener("dragover", (event) => event.preventDefault());
document.addEventListener("drop", (event) => {
  event.preventDefault();
  take(event.dataTransfer.files[0]);
});
document.addEventListener("paste", (event) => take(event.clipboardData.files[0]));

/** Asks about the character of a photo at a point; where in a piece each of them lies is not known. */
function choose([x, y]) {
  const inside = ({ left, top, right, bottom }) => left <= x && x <= right && top <= y && y <= bottom;
  const piece = found.flat().find(inside);
  if (!piece?.spelled) return; // paper, or the network is not there yet
  const count = piece.spelled.characters.length;
  const i = Math.floor((count * (x - piece.left)) / (piece.right - piece.left));
  ask({ piece, i: Math.min(i, count - 1) });
}

// ---- Reading

/** The pieces of what is on the paper, in lines, and what to say of them: {lines, note}. */
function prepare(strokes) {
  if (pair()) return prepareTwo(strokes);
  if (!strokes.length) return { lines: [], note: "Write a number." };
  const large = pieces(strokes).filter((piece) => legible(piece.strokes));
  return { lines: linesOf(large.map(ready)), note: large.length ? "" : "Too small to read." };
}

/** A piece with all that reading it takes, from the cache where it is there. */
function ready(piece) {
  const known = cache.get(piece.key);
  if (known) return known;
  const part = piece.part ?? cutOut(piece.strokes);
  const place = middle(normalised(part.ink), facts?.shape[1] ?? SIDE);
  return { ...piece, part, place, image: place.values };
}

function prepareTwo(strokes) {
  const nothing = (note) => ({ lines: [], note });
  if (!strokes.length) return nothing("Draw two digits.");
  if (!legible(strokes)) return nothing("Too small to read.");
  const { digits, note } = part(strokes, facts.axis, 2 * DIGIT);
  if (!digits.every((digit) => digit.length && legible(digit))) {
    return nothing(`One digit so far; draw another ${facts.axis ? "above or below" : "beside"} it.`);
  }
  const image = compose(digits.map((digit) => centred(cutOut(digit).ink).values), facts);
  return { lines: [[{ ...bounds(strokes), key: image.join(), image }]], note };
}

/** Lets the network read those of the pieces that it has not read yet. */
async function readAll(some) {
  const fresh = some.filter((piece) => !piece.heads);
  for (let start = 0; start < fresh.length; start += AT_ONCE) {
    const part = fresh.slice(start, start + AT_ONCE);
    const heads = await run(part.map(({ image }) => image));
    part.forEach((piece, k) => {
      piece.heads = pair() ? joint(heads[k]) : heads[k];
      piece.spelled = spell(piece.heads, facts);
      cache.set(piece.key, piece);
    });
  }
  return fresh;
}

const textOf = ({ spelled }) => spelled.text;
const textOfAll = (lines) => lines.map((line) => line.map(textOf).join("")).join("\n");

/** What strokes are read as; else what there is to say of them. */
export async function reads(strokes) {
  const { lines, note } = prepare(strokes);
  await readAll(lines.flat());
  return lines.length ? textOfAll(lines) : note;
}

/** What a picture (a Blob) is read as: {text, boxes}, a box of each piece. */
export async function readsPicture(blob) {
  const lines = (await openPicture(blob)).lines.map((line) => line.map(ready));
  await readAll(lines.flat());
  return { text: textOfAll(lines), boxes: lines.map((line) => line.map(({ left, top, right, bottom }) => [left, top, right, bottom])) };
}

let waiting = false;
let asking = false;
let again = null; // what is to be read next: {aloud, began}

/** After every change; `whole` at the end of a stroke. */
function changed(whole = false) {
  heat = new Map();
  $("where").ariaPressed = "false";
  $("fix").hidden = true;
  show();
  document.body.dataset.busy = "1";
  if (whole) answer(true);
  else if (!waiting) {
    waiting = true;
    requestAnimationFrame(() => {
      waiting = false;
      answer(false);
    });
  }
}

/** Reads what is on the paper; what comes while it reads is read afterwards, all at once. */
async function answer(aloud) {
  again = { aloud: aloud || Boolean(again?.aloud), began: performance.now() };
  if (asking) return;
  asking = true;
  while (again) {
    const now = again;
    again = null;
    await say(now).catch(complain);
  }
  asking = false;
}

function complain(error) {
  wrong = `This went wrong: ${error.message}.`;
  $("note").textContent = $("said").textContent = wrong;
  document.body.dataset.busy = "0";
}

async function say({ aloud, began }) {
  const { lines, note } = photo ? photographed() : prepare(strokes);
  const all = lines.flat();
  const fresh = run ? await readAll(all) : all;
  if (again) return; // there is more ink by now
  cache = new Map(all.filter(({ heads }) => heads).map((piece) => [piece.key, piece]));
  [found, chosen] = [lines, null];
  $("fix").hidden = true; // it was about what was found before
  const newest = fresh.at(-1) ?? all.at(-1);
  const last = newest?.spelled && Math.max(newest.spelled.characters.length - 1, 0);
  const without = failed || (all.length && !run ? "The network is still loading." : "");
  const words = [note, all.length && run ? doubts(all) : "", without, wrong].filter(Boolean).join(" ");
  $("answer").classList.toggle("doubt", Boolean(note));
  answerWith(run ? lines : []);
  $("note").textContent = words || "\u00a0";
  details(newest?.spelled ? newest : null, last);
  if (!newest?.spelled) look(newest?.image);
  show();
  buttons();
  document.body.dataset.busy = "0"; // all ink is read
  if (aloud) {
    const read = run && all.length ? `Reads ${textOfAll(lines)}, ${percent(sureOf(all))}.` : "";
    $("said").textContent = `${read} ${words}`.trim();
    if (read) performance.measure("answer", { start: began });
  }
}

const sureOf = (some) => some.reduce((product, { spelled }) => product * spelled.p, 1);

function photographed() {
  const lines = photo.lines.map((line) => line.map(ready));
  return { lines, note: lines.length ? "" : "No ink found in this picture." };
}

/** What the network isn't sure of, in words. */
function doubts(all) {
  const unknown = all.some((piece) => textOf(piece) === "?");
  const unsure = all.flatMap((piece) => (textOf(piece) === "?" ? [] : piece.spelled.characters)).find(({ p }) => p < SURE);
  return [
    unsure ? `Not sure: it could be ${unsure.others.slice(0, 2).map(nameOf).join(" or ")}.` : "",
    unknown ? "A ? is no digit that it knows." : "",
  ].filter(Boolean).join(" ");
}

const nameOf = ({ text }) => (text === "?" ? "no digit" : text || "nothing");
const percent = (p) => `${(100 * p).toFixed(1)} %`;

function answerWith(lines) {
  const elements = lines.map(lineOf);
  $("answer").replaceChildren(...elements);
  $("answer").style.setProperty("--most", Math.max(...elements.map(({ children }) => children.length), 1));
}

function lineOf(line) {
  const element = document.createElement("div");
  element.append(...line.flatMap(buttonsOf));
  return element;
}

/** A button for each character of a piece. */
function buttonsOf(piece) {
  const whole = textOf(piece);
  return piece.spelled.characters.map(({ text, p }, i) => {
    const button = document.createElement("button");
    button.textContent = text;
    button.dataset.p = `${(100 * p).toFixed(0)} %`;
    button.ariaLabel = `${text === "?" ? "no digit" : text}, ${percent(p)}`;
    button.title = pair() ? "" : "Wrong? Say what it is.";
    button.classList.toggle("doubt", text === "?" || p < SURE);
    if (judged.has(piece.key)) button.classList.add(judged.get(piece.key) === whole ? "right" : "wrong");
    button.addEventListener("click", () => ask({ piece, i }));
    return button;
  });
}

/** Shows what the network saw of a piece, and what it makes of its character i. */
function details(piece, i) {
  chosen = piece && { piece, i };
  const others = piece?.spelled.characters[i]?.others ?? [];
  $("bars").replaceChildren(...others.slice(0, 5).map(bar));
  look(piece?.image);
}

function bar({ text, p }) {
  const item = document.createElement("li");
  const [digit, share, length] = ["b", "span", "i"].map((tag) => document.createElement(tag));
  digit.textContent = text || "–"; // nothing more
  share.textContent = percent(p);
  length.style.setProperty("--part", p);
  item.append(digit, length, share);
  return item;
}

/** Shows the network's image, ink on paper as on the screen. */
function look(image) {
  const [height, width] = facts?.shape ?? [SIDE, SIDE];
  [seen.width, seen.height] = [width, height];
  seen.style.setProperty("--aspect", width / height);
  $("size").textContent = `${height}×${width}`;
  if (!image) return;
  const [red, green, blue] = getComputedStyle(paper).color.match(/[\d.]+/g).map(Number);
  const pixels = new ImageData(width, height);
  image.forEach((value, i) => pixels.data.set([red, green, blue, 255 * value], 4 * i));
  seen.getContext("2d").putImageData(pixels, 0, 0);
}

function buttons() {
  const empty = !strokes.length && !photo;
  const all = run ? found.flat() : [];
  $("undo").disabled = empty && !redo;
  $("undo").disabled ||= Boolean(photo && !redo);
  $("clear").disabled = empty;
  $("where").disabled = !all.length;
  $("right").disabled = all.every(({ key }) => judged.has(key));
  $("save").disabled = !tally.drawings.length;
  $("forget").disabled = !tally.right && !tally.wrong;
  const { right, wrong, drawings } = tally;
  const counted = `You checked ${right + wrong}: ${right} right, ${wrong} wrong. ${drawings.length} single digits can be saved, to train with.`;
  $("tally").textContent = right + wrong ? counted : "Is it right? Tap a wrong digit and say what it is, or “All right”.";
}

// ---- Where it looked

$("where").addEventListener("click", async () => {
  if (heat.size) heat = new Map();
  else {
    const map = (heat = new Map());
    const whole = found;
    for (const piece of whole.flat()) {
      const counts = await whereItLooked(run, piece, facts);
      if (heat !== map) return; // there is other ink by now
      heat.set(piece.key, counts);
      show();
    }
  }
  $("where").ariaPressed = String(heat.size > 0);
  show();
});

// ---- Right or wrong

/** Asks what a character is. */
function ask({ piece, i }) {
  details(piece, i);
  $("fix").hidden = pair() || judged.has(piece.key);
  if ($("fix").hidden) return;
  $("typed").value = "";
  $("typed").placeholder = textOf(piece); // all of it, as it is to be typed
  $("choices").firstElementChild.focus({ preventScroll: true });
}

function judge(piece, label) {
  judged.set(piece.key, label);
  tally = tallies.count(tally, textOf(piece), label, centred(piece.part.ink).values);
}

/** The chosen piece is a `label`. */
function fix(label) {
  judge(chosen.piece, label);
  judgedAll();
}

/** The chosen character is `text`; the others of its piece are what they were read as. */
function fixOne(text) {
  fix(chosen.piece.spelled.characters.map((read, i) => (i === chosen.i ? text : read.text)).join(""));
}

function judgedAll() {
  tallies.store(tally);
  $("fix").hidden = true;
  answerWith(found);
  buttons();
  paper.focus({ preventScroll: true, focusVisible: false });
}

for (const label of [..."0123456789", "?"]) {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = label === "?" ? "no digit" : label;
  button.addEventListener("click", () => fixOne(label));
  $("choices").append(button);
}
$("fix").addEventListener("submit", (event) => {
  event.preventDefault();
  if ($("typed").value) fix($("typed").value);
});
$("fix").addEventListener("keydown", (event) => {
  if (event.key === "Escape") $("fix").hidden = true;
  else if (/^\d$/.test(event.key) && event.target !== $("typed")) fixOne(event.key);
});
$("right").addEventListener("click", () => {
  for (const piece of found.flat()) if (!judged.has(piece.key)) judge(piece, textOf(piece));
  judgedAll();
});
$("forget").addEventListener("click", () => {
  tally = tallies.none();
  judged.clear();
  judgedAll();
});
$("save").addEventListener("click", () => {
  const link = Object.assign(document.createElement("a"), { download: "digits.npz" });
  link.href = URL.createObjectURL(tallies.npz(tally));
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
});

/** What is drawn: a copy of its points, stroke by stroke. */
export const lines = () => strokes.map(({ points }) => points.slice());

// ---- Begin

lay();
changed();
performance.mark("drawable");
try {
  facts = await (await get("./facts.json")).json();
  document.body.dataset.kind = facts.kind;
  if (pair()) $("title").textContent = document.title = "Draw two digits";
  $("card").textContent = facts.card;
  $("example").disabled = false;
  cache = new Map();
  lay();
  changed(true);
  run = await open(facts, (part) => ($("progress").value = part));
  $("loading").hidden = true;
  performance.mark("ready");
} catch (error) {
  failed = `The network could not be loaded: ${error.message}.`;
  $("loading").textContent = failed;
  $("loading").className = "error";
}
changed(true);
