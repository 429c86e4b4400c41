// Strokes: {width, points: [[x, y], ...]} in pixels of the paper; which of them make a digit.

import { SLIGHT, apart, grouped, heightOf, image } from "./ink.js";

const LEAST = 12; // pixels of the paper: what is smaller is a dot, not a digit

/** Draws the strokes, smooth and round. */
export function paint(context, strokes) {
  context.lineCap = context.lineJoin = "round";
  for (const { width, points } of strokes) {
    context.lineWidth = width;
    context.beginPath();
    context.moveTo(...points[0]);
    for (let i = 1; i + 1 < points.length; i++) {
      const [[x, y], [nextX, nextY]] = [points[i], points[i + 1]];
      context.quadraticCurveTo(x, y, (x + nextX) / 2, (y + nextY) / 2);
    }
    const [x, y] = points.at(-1);
    context.lineTo(x + 0.01, y); // a dot has a length, too
    context.stroke();
  }
}

/** Strokes as a part: their ink, one pixel of it to a pixel of the paper. */
export function cutOut(strokes) {
  const box = bounds(strokes);
  const [left, top] = [box.left, box.top].map((edge) => Math.floor(edge) - 1);
  const [right, bottom] = [box.right, box.bottom].map((edge) => Math.ceil(edge) + 1);
  const [width, height] = [right - left, bottom - top];
  const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  context.translate(-left, -top);
  paint(context, strokes);
  const { data } = context.getImageData(0, 0, width, height);
  const ink = image(width, height);
  for (let i = 0; i < ink.values.length; i++) ink.values[i] = data[4 * i + 3] / 255;
  return { left, top, right, bottom, ink };
}

/** Where the ink is: {left, right, top, bottom}, or null where there is none. */
export function bounds(strokes) {
  const box = { left: Infinity, right: -Infinity, top: Infinity, bottom: -Infinity };
  for (const { width, points } of strokes) {
    for (const [x, y] of points) {
      box.left = Math.min(box.left, x - width / 2);
      box.right = Math.max(box.right, x + width / 2);
      box.top = Math.min(box.top, y - width / 2);
      box.bottom = Math.max(box.bottom, y + width / 2);
    }
  }
  return strokes.length ? box : null;
}

/** Whether the lines, apart from the pen's width, are as long as a digit's. */
export function legible(strokes) {
  const { left, right, top, bottom } = bounds(strokes.map((stroke) => ({ ...stroke, width: 0 })));
  return Math.max(right - left, bottom - top) >= LEAST;
}

/**
 * The strokes in pieces: [{left, top, right, bottom, strokes, key}, ...]; the key names all ink in it.
 *
 * Strokes whose ink touches are one piece, and those above each other. A small one, as a five's bar,
 * belongs to one that it is above or below, else to one that it is beside.
 */
export function pieces(strokes) {
  const groups = connected(strokes).map((group) => ({ group, ...bounds(group) }));
  const size = heightOf(groups);
  const small = ({ top, bottom }) => bottom - top < SLIGHT * size;
  const far = (a, b) => {
    const { across, down, shared } = apart(a, b);
    if (shared && down < 0.35 * size) return down;
    return Math.max(across, down) < 0.12 * size ? size + Math.max(across, down) : Infinity;
  };
  const hosts = new Map();
  for (const one of groups.filter(small)) {
    const others = groups.filter((other) => other !== one && far(one, other) < Infinity);
    hosts.set(one, others.sort((a, b) => far(one, a) - far(one, b))[0]);
  }
  const near = (a, b) => {
    if (small(a) || small(b)) return hosts.get(a) === b || hosts.get(b) === a;
    const { down, shared } = apart(a, b);
    return shared && down < 0.2 * size;
  };
  return grouped(groups, near).map((some) => {
    const group = some.flatMap((each) => each.group);
    const key = group.map(({ points, width }) => [width, points.length, ...points.at(-1), ...points[0]].join());
    return { ...bounds(group), strokes: group, key: key.sort().join(";") };
  });
}

/**
 * The strokes of two digits, in order along `axis` (0: beside each other, 1: one above the other)
 * of paper that is `length` long.
 *
 * Strokes whose ink touches belong together. The pieces are parted at their widest gap, preferably
 * one in the middle of the paper; without a gap each goes to the half that it lies in, and what
 * is of one piece is cut. Returns {digits: [first, second], note}; one of the two is empty where there
 * is only one digit.
 */
export function part(strokes, axis, length) {
  const middle = length / 2;
  const whole = extent(strokes, axis);
  const across = extent(strokes, 1 - axis);
  const astride = whole.low < middle && middle < whole.high;

  const pieces = connected(strokes).sort((a, b) => centreOf(a, axis) - centreOf(b, axis));
  const wideEnough = 0.3 * (across.high - across.low);
  const { gap, cut, gaps } = widestGap(pieces, axis, middle);
  if (cut && (astride || gap > wideEnough)) {
    const more = gaps.filter((other) => other > wideEnough).length > 1;
    return {
      digits: [pieces.slice(0, cut).flat(), pieces.slice(cut).flat()],
      note: more ? "These look like more than two digits." : "",
    };
  }
  // Two digits are wider than one.
  const wide = (whole.high - whole.low) / (across.high - across.low);
  if (!astride || wide < (strokes.length === 1 ? 1.1 : 0.8)) {
    const first = (whole.low + whole.high) / 2 < middle;
    return { digits: first ? [strokes, []] : [[], strokes], note: "" };
  }
  const alone = strokes.map((stroke) => [stroke]);
  for (const groups of [pieces, alone, strokes.flatMap(cutUp)]) {
    for (const where of [middle, (whole.low + whole.high) / 2]) {
      const side = (group) => centreOf(group, axis) < where;
      const first = groups.filter(side).flat();
      const second = groups.filter((group) => !side(group)).flat();
      const note = "The digits touch; they were cut apart.";
      if (first.length && second.length) return { digits: [first, second], note };
    }
  }
  return { digits: [strokes, []], note: "" };
}

/** How wide the best gap between neighbouring pieces is, how many of them lie before it, and all gaps. */
function widestGap(pieces, axis, middle) {
  let best = { gap: 0, cut: 0, score: 0 };
  const gaps = [];
  for (let cut = 1; cut < pieces.length; cut++) {
    const end = extent(pieces.slice(0, cut).flat(), axis).high;
    const start = extent(pieces.slice(cut).flat(), axis).low;
    const gap = start - end;
    gaps.push(gap);
    const score = gap + (end <= middle && middle <= start ? middle / 2 : 0);
    if (gap > 0 && score > best.score) best = { gap, cut, score };
  }
  return { ...best, gaps };
}

function extent(strokes, axis) {
  const { left, right, top, bottom } = bounds(strokes);
  return axis === 0 ? { low: left, high: right } : { low: top, high: bottom };
}

/** A stroke as short ones of two neighbouring points. */
function cutUp({ width, points }) {
  const line = dense(points);
  return line.slice(1).map((point, i) => [{ width, points: [line[i], point] }]);
}

function centreOf(strokes, axis) {
  const { low, high } = extent(strokes, axis);
  return (low + high) / 2;
}

/** The strokes in groups whose ink touches. */
function connected(strokes) {
  const groups = [];
  for (const stroke of strokes) {
    const near = groups.filter((group) => group.some((other) => touch(stroke, other)));
    for (const group of near) groups.splice(groups.indexOf(group), 1);
    groups.push([...near.flat(), stroke]);
  }
  return groups;
}

function touch(one, other) {
  const reach = (one.width + other.width) / 2;
  const [a, b] = [bounds([one]), bounds([other])];
  if (a.left > b.right || b.left > a.right || a.top > b.bottom || b.top > a.bottom) return false;
  return dense(one.points, Math.max(reach / 2, 2)).some((point) => distance(point, other.points) < reach);
}

/** The same line, its points no further apart than `step` pixels. */
function dense(points, step = 2) {
  return points.flatMap(([x, y], i) => {
    const [fromX, fromY] = points[Math.max(i - 1, 0)];
    const steps = Math.ceil(Math.hypot(x - fromX, y - fromY) / step) || 1;
    return Array.from({ length: steps }, (_, k) => {
      const t = (k + 1) / steps;
      return [fromX + t * (x - fromX), fromY + t * (y - fromY)];
    });
  });
}

const clip = (value, low, high) => Math.min(Math.max(value, low), high);

/** From a point to a line through points. */
function distance([x, y], points) {
  let least = Infinity;
  points.forEach(([ax, ay], i) => {
    const [bx, by] = points[Math.max(i - 1, 0)];
    const [dx, dy] = [bx - ax, by - ay];
    const squared = dx * dx + dy * dy;
    const along = squared ? clip(((x - ax) * dx + (y - ay) * dy) / squared, 0, 1) : 0;
    least = Math.min(least, Math.hypot(x - ax - along * dx, y - ay - along * dy));
  });
  return least;
}
