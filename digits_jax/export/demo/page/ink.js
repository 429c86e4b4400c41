// From strokes to what a network reads: the twin of digits_jax/data/pictures.py.
//
// A stroke is {width, points: [[x, y], ...]} in pixels of the paper; ink is {values, width, height}
// with values from 0 (paper) to 1, row by row.

export const SIDE = 28; // of a digit's image, in its own pixels
const BOX = 20; // which the ink is scaled to fit
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

/** The strokes as ink on paper of that size. */
export function ink(strokes, width, height) {
  const paper = Object.assign(document.createElement("canvas"), { width, height });
  const context = paper.getContext("2d", { willReadFrequently: true });
  paint(context, strokes);
  const { data } = context.getImageData(0, 0, width, height);
  const values = new Float32Array(width * height);
  for (let i = 0; i < values.length; i++) values[i] = data[4 * i + 3] / 255;
  return { values, width, height };
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

/** Float32Array [28 * 28]: the ink scaled to fit 20x20, its centre of mass on pixel 14, 14. */
export function centre({ values, width, height }) {
  if (!values.some((value) => value > 0)) return new Float32Array(SIDE * SIDE);
  const columns = new Float64Array(width);
  const rows = new Float64Array(height);
  values.forEach((value, i) => {
    columns[i % width] += value;
    rows[Math.floor(i / width)] += value;
  });
  const spans = [rows, columns].map(span);
  const pixel = Math.max(...spans.map(([start, end]) => end - start)) / BOX;
  const [vertical, horizontal] = [rows, columns].map((profile, axis) => {
    const [start, end] = spans[axis];
    // All ink stays inside, however lopsided.
    const middle = clip(mean(profile), end - 13.5 * pixel, start + 14.5 * pixel);
    return weights(middle - 14.5 * pixel, pixel, profile.length);
  });

  const narrow = new Float64Array(height * SIDE);
  for (let y = 0; y < height; y++) {
    horizontal.forEach(([first, kernel], x) => {
      let sum = 0;
      for (let k = 0; k < kernel.length; k++) sum += kernel[k] * values[y * width + first + k];
      narrow[y * SIDE + x] = sum;
    });
  }
  const digit = new Float64Array(SIDE * SIDE);
  vertical.forEach(([first, kernel], y) => {
    for (let x = 0; x < SIDE; x++) {
      let sum = 0;
      for (let k = 0; k < kernel.length; k++) sum += kernel[k] * narrow[(first + k) * SIDE + x];
      digit[y * SIDE + x] = sum;
    }
  });
  // Thin strokes fade when they are made small.
  const most = Math.max(...digit);
  const strong = median(digit.filter((value) => value > 0.5 * most));
  return Float32Array.from(digit, (value) => Math.round(255 * clip(value / strong, 0, 1)) / 255);
}

const clip = (value, low, high) => Math.min(Math.max(value, low), high);

/** [first, last + 1] of what is not zero. */
function span(profile) {
  const inked = Array.from(profile, (value) => value > 0);
  return [inked.indexOf(true), inked.lastIndexOf(true) + 1];
}

function mean(profile) {
  let [sum, moment] = [0, 0];
  profile.forEach((value, i) => {
    sum += value;
    moment += value * (i + 0.5);
  });
  return moment / sum;
}

function median(values) {
  const sorted = values.sort();
  const half = sorted.length >> 1;
  return sorted.length % 2 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2;
}

/** For each of 28 pixels from `start` on, where its kernel begins and that kernel (Hamming's). */
function weights(start, pixel, length) {
  const reach = Math.max(pixel, 1);
  return Array.from({ length: SIDE }, (_, i) => {
    const middle = start + (i + 0.5) * pixel;
    const [first, end] = [middle - reach, middle + reach].map((x) => Math.floor(x + 0.5));
    const kernel = Array.from({ length: end - first }, (_, k) =>
      hamming((first + k + 0.5 - middle) / reach),
    );
    const total = kernel.reduce((sum, weight) => sum + weight, 0);
    const inside = clip(first, 0, length); // beyond the paper there is no ink
    return [
      inside,
      kernel.slice(inside - first, Math.max(length - first, 0)).map((weight) => weight / total),
    ];
  });
}

/** A sinc within Hamming's window, 0 from 1 on. */
function hamming(x) {
  const angle = Math.PI * Math.abs(x);
  if (angle === 0) return 1;
  if (angle >= Math.PI) return 0;
  return (Math.sin(angle) / angle) * (0.54 + 0.46 * Math.cos(angle));
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
