// The page: a paper, a pen, and what the network says of it.

import { SIDE, bounds, centre, ink, legible, paint, part } from "./ink.js";
import { get, open } from "./reader.js";

const DIGIT = 280; // pixels of the paper for each digit
const SURE = 0.6; // the network doubts what it gives less
const KEYS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

const $ = (id) => document.getElementById(id);
const [paper, seen] = [$("paper"), $("seen")];

let facts = null; // facts.json
let read = null; // once the network is there
let failed = ""; // why it never will be
let strokes = [];
let redo = null; // what Clear or Example took away, for Undo
let cursor = null; // of the keyboard: {x, y, down}
const pens = new Map(); // pointer -> its stroke

// ---- Paper

const count = () => Number(document.querySelector("input[name=count]:checked")?.value ?? 1);
const size = () => {
  const sides = [DIGIT, DIGIT];
  sides[facts?.axis ?? 0] *= count();
  return sides;
};

/** Fits the canvas's own pixels to the screen's. */
function lay() {
  const [width, height] = size();
  paper.style.aspectRatio = `${width} / ${height}`;
  paper.style.setProperty("--digits", width / height);
  const scale = (paper.clientWidth / width) * devicePixelRatio;
  paper.width = Math.round(width * scale);
  paper.height = Math.round(height * scale);
  show();
}

function show() {
  const [width, height] = size();
  const style = getComputedStyle(paper);
  const context = paper.getContext("2d");
  context.setTransform(1, 0, 0, 1, 0, 0);
  context.clearRect(0, 0, paper.width, paper.height);
  context.scale(paper.width / width, paper.height / height);
  if (count() > 1) {
    context.strokeStyle = style.borderTopColor;
    context.lineWidth = 1;
    context.setLineDash([4, 6]);
    context.strokeRect(...(facts?.axis ? [-9, DIGIT, width + 18, height] : [DIGIT, -9, width, height + 18]));
    context.setLineDash([]);
  }
  context.strokeStyle = style.color;
  paint(context, strokes);
  if (cursor && document.activeElement === paper) {
    context.strokeStyle = style.caretColor;
    context.lineWidth = cursor.down ? 4 : 2;
    context.beginPath();
    context.arc(cursor.x, cursor.y, Math.max(pen() / 2, 5) + 3, 0, 2 * Math.PI);
    context.stroke();
  }
}

const pen = () => Number($("pen").value);

function begin(point) {
  const stroke = { width: pen(), points: [point] };
  strokes.push(stroke);
  redo = null;
  return stroke;
}

function place(event) {
  const box = paper.getBoundingClientRect();
  const [width, height] = size();
  const on = (part, length) => Math.min(Math.max(part, 0), 1) * length;
  return [on((event.clientX - box.left) / box.width, width), on((event.clientY - box.top) / box.height, height)];
}

paper.addEventListener("pointerdown", (event) => {
  if (event.button !== 0) return;
  event.preventDefault();
  paper.focus({ preventScroll: true, focusVisible: false });
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
  if (move) {
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
  } else if (event.key === "Escape") replace([]);
});
for (const type of ["focus", "blur"]) paper.addEventListener(type, show);

// ---- Tools

function liftAll() {
  pens.clear();
  if (cursor) cursor.down = null;
}

function undo() {
  if (redo) [strokes, redo] = [redo, null];
  else strokes = strokes.slice(0, -1);
  liftAll();
  changed(true);
}

function replace(others) {
  if (strokes.length) redo = strokes;
  strokes = others;
  liftAll();
  changed(true);
}

/** Digits of facts.json's examples, one in each part of the paper. */
function example() {
  const digits = Array.from({ length: count() }, () => Math.floor(10 * Math.random()));
  const drawn = digits.flatMap((digit, k) => {
    const kinds = facts.examples[digit];
    const side = DIGIT * (0.45 + 0.25 * Math.random());
    const [left, top] = [0, 1].map((axis) => (axis === facts.axis ? k * DIGIT : 0) + (DIGIT - side) / 2);
    return kinds[Math.floor(kinds.length * Math.random())].map((points) => ({
      width: pen(),
      points: points.map(([x, y]) => [left + x * side, top + y * side]),
    }));
  });
  replace(drawn);
}

$("undo").addEventListener("click", undo);
$("clear").addEventListener("click", () => replace([]));
$("example").addEventListener("click", example);
document.addEventListener("keydown", (event) => {
  if (!(event.ctrlKey || event.metaKey) || event.key !== "z") return;
  event.preventDefault();
  undo();
});
$("count").addEventListener("change", renew);

/** An empty paper of the right size. */
function renew() {
  [strokes, redo, cursor] = [[], null, null];
  liftAll();
  lay();
  changed(true);
}
new ResizeObserver(lay).observe(paper);
addEventListener("resize", lay);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", show);

// ---- Reading

/** What to say of the strokes before the network is asked: {digits, note}; null digits: nothing. */
export function prepare(strokes, wanted, axis) {
  const [width, height] = axis === 0 ? [wanted * DIGIT, DIGIT] : [DIGIT, wanted * DIGIT];
  const normal = (part) => centre(ink(part, width, height));
  if (!strokes.length) return { digits: null, note: wanted > 1 ? "Draw two digits." : "Draw a digit." };
  if (!legible(strokes)) return { digits: null, note: "Too small to read." };
  if (wanted === 1) {
    const { left, right, top, bottom } = bounds(strokes);
    const sides = [right - left, bottom - top];
    const two = [0, 1].some((axis) => {
      const { digits, note } = part(strokes, axis, axis ? top + bottom : left + right);
      return digits.every((digit) => digit.length) && !note.includes("touch") && sides[axis] > 1.2 * sides[1 - axis];
    });
    return { digits: [normal(strokes)], note: two ? "These look like two digits." : "" };
  }
  const { digits, note } = part(strokes, axis, wanted * DIGIT);
  if (!digits.every((digit) => digit.length && legible(digit))) {
    return { digits: null, note: `One digit so far; draw another ${axis ? "above or below" : "beside"} it.` };
  }
  return { digits: digits.map(normal), note };
}

let waiting = false;
let asked = 0; // how many answers were asked for

/** After every change; `whole` at the end of a stroke. */
function changed(whole = false) {
  show();
  if (whole) answer(true);
  else if (!waiting) {
    waiting = true;
    requestAnimationFrame(() => {
      waiting = false;
      answer(false);
    });
  }
}

async function answer(aloud) {
  try {
    await say(aloud);
  } catch (error) {
    failed = error.message;
    $("note").textContent = $("said").textContent = `This went wrong: ${error.message}`;
  }
}

async function say(aloud) {
  const began = performance.now();
  const turn = ++asked;
  document.body.dataset.busy = "1";
  const { digits, note } = prepare(strokes, count(), facts?.axis ?? 0);
  const reading = digits && read ? await read(digits) : null;
  if (turn !== asked) return; // there is more ink by now
  const { answers, image } = reading ?? { answers: [], image: null };
  const doubt = answers.length && answers[0].p < SURE;
  const unsure = doubt ? `Not sure: it could be ${answers[0].text} or ${answers[1].text}.` : "";
  const without = failed || (digits ? "The network is still loading." : "");
  const words = [note, unsure, reading ? "" : without].filter(Boolean).join(" ");
  $("answer").textContent = answers.length ? answers[0].text : "\u00a0";
  $("answer").classList.toggle("doubt", Boolean(doubt || note));
  $("note").textContent = words || "\u00a0";
  $("bars").replaceChildren(...answers.slice(0, 5).map(bar));
  look(image);
  document.body.dataset.busy = "0"; // all ink is read
  $("undo").disabled = !strokes.length && !redo;
  $("clear").disabled = !strokes.length;
  if (aloud) {
    const best = answers.length ? `Reads ${answers[0].text}, ${percent(answers[0].p)}.` : "";
    $("said").textContent = `${best} ${words}`.trim();
    if (reading) performance.measure("answer", { start: began });
  }
}

const percent = (p) => `${(100 * p).toFixed(1)} %`;

function bar({ text, p }) {
  const item = document.createElement("li");
  const [digit, share, length] = ["b", "span", "i"].map((tag) => document.createElement(tag));
  digit.textContent = text;
  share.textContent = percent(p);
  length.style.setProperty("--part", p);
  item.append(digit, length, share);
  return item;
}

/** Shows the network's image, ink on paper as on the screen. */
function look(image) {
  const [width, height] = image ? [image.width, image.height] : [...(facts?.shape ?? [SIDE, SIDE])].reverse();
  [seen.width, seen.height] = [width, height];
  seen.style.setProperty("--digits", width / height);
  $("size").textContent = `${height}×${width}`;
  if (!image) return;
  const [red, green, blue] = getComputedStyle(paper).color.match(/[\d.]+/g).map(Number);
  const pixels = new ImageData(width, height);
  image.values.forEach((value, i) => pixels.data.set([red, green, blue, 255 * value], 4 * i));
  seen.getContext("2d").putImageData(pixels, 0, 0);
}

/** What is drawn: a copy of its points, stroke by stroke. */
export const lines = () => strokes.map(({ points }) => points.slice());

// ---- Begin

lay();
changed();
performance.mark("drawable");
try {
  facts = await (await get("./facts.json")).json();
  const before = size().join();
  const wanted = facts.counts.includes(count()) ? count() : Math.min(...facts.counts);
  for (const radio of document.getElementsByName("count")) {
    radio.disabled = !facts.counts.includes(Number(radio.value));
    radio.checked = Number(radio.value) === wanted;
  }
  $("count").hidden = facts.counts.length === 1;
  $("card").textContent = facts.card;
  $("example").disabled = false;
  if (size().join() === before) changed(true);
  else renew();
  read = await open(facts, (part) => ($("progress").value = part));
  $("loading").hidden = true;
  performance.mark("ready");
} catch (error) {
  failed = `The network could not be loaded: ${error.message}.`;
  $("loading").textContent = failed;
  $("loading").className = "error";
}
changed(true);
