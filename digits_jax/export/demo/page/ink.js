// Ink from paper: the twin of digits_jax/data/ink.py.
//
// An image is {values, width, height}, row by row; ink is one with values from 0 (paper) to 1. A
// part is connected ink: {left, top, right, bottom, ink}, its places in pixels of what it is cut from.

export const SIDE = 28; // of a digit's image, in its own pixels
const BOX = 20; // which the ink is scaled to fit
export const SLIGHT = 0.6; // of the digits' height: what is lower may be part of one
const WIDTH = 56; // of a piece's image
const WIDE = 1.1; // times its height: up to here a piece is fitted to 20x20, as MNIST's digits are
const WIDEST = 48; // px of a piece's ink

export const image = (width, height, values = new Float32Array(width * height)) => ({ values, width, height });
const clip = (value, low, high) => Math.min(Math.max(value, low), high);

/** As Python rounds: a half to the even neighbour. */
export const round = (value) => (value % 1 === 0.5 ? 2 * Math.round(value / 2) : Math.round(value));

// ---- A piece as the network's image

/**
 * Ink [h, w] as an image [28, 56]: {values, width, height, left, top, pixel}, bright ink on dark; the
 * last three say where the image lies on the ink, in its pixels, and how wide a pixel is.
 *
 * The ink fits 20x20 px, with its centre of mass in the middle. Where it is more than 1.1 times as
 * wide as high, it is 20 px high instead, but at most 48 wide.
 */
export function normalised(ink) {
  const [[top, bottom], [left, right]] = profilesOf(ink).map(span);
  const [high, wide] = [bottom - top, right - left];
  const pixel = wide <= WIDE * high ? Math.max(high, wide) / BOX : Math.max(high / BOX, wide / WIDEST);
  return placed(ink, pixel, WIDTH);
}

/** Ink [h, w] as an image [28, 28], as MNIST has it. */
export function centred(ink) {
  const [[top, bottom], [left, right]] = profilesOf(ink).map(span);
  return placed(ink, Math.max(bottom - top, right - left) / BOX, SIDE);
}

/** The sums of rows and of columns. */
function profilesOf({ values, width, height }) {
  const [rows, columns] = [new Float64Array(height), new Float64Array(width)];
  for (let y = 0, i = 0; y < height; y++) {
    for (let x = 0; x < width; x++, i++) {
      rows[y] += values[i];
      columns[x] += values[i];
    }
  }
  return [rows, columns];
}

/** Ink as an image [28, columns] whose pixels are `pixel` of the ink's; its centre of mass is in the middle. */
function placed(ink, pixel, columns) {
  const { values, width, height } = ink;
  const [top, left] = profilesOf(ink).map((profile, axis) => {
    const half = [SIDE, columns][axis] / 2;
    const [start, end] = span(profile);
    // All ink stays inside, however far its centre of mass is from the middle.
    return clip(mean(profile), end - (half - 0.5) * pixel, start + (half + 0.5) * pixel) - (half + 0.5) * pixel;
  });

  const narrow = new Float64Array(height * columns);
  weights(left, pixel, width, columns).forEach(([first, kernel], x) => {
    for (let y = 0; y < height; y++) {
      let sum = 0;
      for (let k = 0; k < kernel.length; k++) sum += kernel[k] * values[y * width + first + k];
      narrow[y * columns + x] = sum;
    }
  });
  const digit = new Float64Array(SIDE * columns);
  weights(top, pixel, height, SIDE).forEach(([first, kernel], y) => {
    for (let x = 0; x < columns; x++) {
      let sum = 0;
      for (let k = 0; k < kernel.length; k++) sum += kernel[k] * narrow[(first + k) * columns + x];
      digit[y * columns + x] = sum;
    }
  });
  // Thin strokes fade when they are made small.
  const most = Math.max(...digit);
  const strong = median(digit.filter((value) => value > 0.5 * most));
  const pixels = Float32Array.from(digit, (value) => round(255 * clip(value / strong, 0, 1)) / 255);
  return { ...image(columns, SIDE, pixels), left, top, pixel };
}

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

/** Of an array of numbers; 0 of none. */
export function median(values) {
  if (!values.length) return 0;
  const some = new Float64Array(values);
  const half = some.length >> 1;
  const upper = smallest(some, half);
  if (some.length % 2) return upper;
  let lower = some[0];
  for (let i = 1; i < half; i++) if (some[i] > lower) lower = some[i];
  return (lower + upper) / 2;
}

/** The k-th smallest from 0 on; afterwards no value before it is larger (Hoare's selection). */
function smallest(values, k) {
  for (let [low, high] = [0, values.length - 1]; low < high; ) {
    const pivot = values[(low + high) >> 1];
    let [i, j] = [low, high];
    while (i <= j) {
      while (values[i] < pivot) i++;
      while (values[j] > pivot) j--;
      if (i > j) break;
      [values[i], values[j]] = [values[j], values[i]];
      i++;
      j--;
    }
    if (k <= j) high = j;
    else if (k >= i) low = i;
    else break;
  }
  return values[k];
}

/** For each of `count` pixels from `start` on, where its kernel begins and that kernel (Hamming's). */
function weights(start, pixel, length, count) {
  const reach = Math.max(pixel, 1);
  return Array.from({ length: count }, (_, i) => {
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

// ---- Pieces and lines

/** How far box `b` is from `a`: {across, down, shared}: whether they share half of the narrower's columns. */
export function apart(a, b) {
  const across = Math.max(a.left, b.left) - Math.min(a.right, b.right);
  const down = Math.max(a.top, b.top) - Math.min(a.bottom, b.bottom);
  return { across, down, shared: -across > 0.5 * Math.min(a.right - a.left, b.right - b.left) };
}

/** Boxes in groups, each of which is `near(a, b)` another one of its group. */
export function grouped(boxes, near) {
  const group = boxes.map((_, i) => i);
  boxes.forEach((a, i) => {
    boxes.slice(0, i).forEach((b, j) => {
      const [one, other] = [group[i], group[j]];
      if (one !== other && near(a, b)) group.forEach((g, k) => g === other && (group[k] = one));
    });
  });
  return [...new Set(group)].map((g) => boxes.filter((_, i) => group[i] === g));
}

/** Parts in groups that only one digit each can be: small ones that are near, and those above each other. */
function joined(found) {
  const size = heightOf(found);
  return grouped(found, (a, b) => {
    const { across, down, shared } = apart(a, b);
    if (Math.min(a.bottom - a.top, b.bottom - b.top) < SLIGHT * size) return Math.max(across, down) < 0.12 * size;
    return shared && down < 0.2 * size;
  });
}

/** The height of digits: the median of all at least half as high as the highest. */
export function heightOf(found) {
  const heights = found.map(({ top, bottom }) => bottom - top);
  const most = Math.max(...heights);
  return median(heights.filter((height) => height >= 0.5 * most));
}

/** The box around several. */
export const around = (boxes) => ({
  left: Math.min(...boxes.map((box) => box.left)),
  top: Math.min(...boxes.map((box) => box.top)),
  right: Math.max(...boxes.map((box) => box.right)),
  bottom: Math.max(...boxes.map((box) => box.bottom)),
});

/** Boxes in lines from top to bottom, from left to right: each is beside the one before it. */
export function linesOf(boxes) {
  const lines = [];
  for (const box of [...boxes].sort((a, b) => a.left - b.left)) {
    let [most, best] = [0.4, null];
    for (const line of lines) {
      const last = line.at(-1);
      const shared = Math.min(box.bottom, last.bottom) - Math.max(box.top, last.top);
      const share = shared / Math.min(box.bottom - box.top, last.bottom - last.top);
      if (share > most) [most, best] = [share, line];
    }
    if (best) best.push(box);
    else lines.push([box]);
  }
  const middle = (line) => line.reduce((sum, box) => sum + box.top + box.bottom, 0) / line.length;
  return lines.sort((a, b) => middle(a) - middle(b));
}

// ---- Ink from a photograph

const LEAST_CONTRAST = 0.06; // between ink and paper, of the paper's brightness
const LONGEST = 1000; // px of the largest picture that is searched
const SIZES = [10, 72]; // px: heights of digits that are searched for at each scale
const MOST = 1000; // pieces of a picture; smaller ones are left out
const SMALL = 100; // px: up to here a picture is taken as cut out around its digits
const SIZE = 64; // px: about the height to which larger digits are reduced before they are cut out
const CORE = 0.45; // of the ink's darkness: this is ink, and what it touches is one piece
const FAINT = 0.25; // of the ink's darkness: this and less is paper
const WEAK = 0.4; // of the darkness of most of the ink: a weaker piece is a trace of line or shadow

/** ImageData -> lines of parts, [[part, ...], ...], in pixels of the picture; `scale`: of the ink's. */
export function find(picture) {
  const { found, factor, corner } = cut(brightness(picture));
  const pieces = joined(found).map((group) => (group.length > 1 ? union(group) : group[0]));
  return linesOf(pieces).map((line) =>
    line.map(({ left, top, right, bottom, ink }) => {
      const [x, end] = [left, right].map((at) => clip(factor * at + corner[0], 0, picture.width));
      const [y, below] = [top, bottom].map((at) => clip(factor * at + corner[1], 0, picture.height));
      return { left: x, top: y, right: end, bottom: below, ink, scale: factor };
    }),
  );
}

/** The connected pieces of ink, in px that are `factor` of the picture wide, from `corner` on. */
function cut(light) {
  const margin = Math.max(light.width, light.height) <= SMALL ? SMALL : 0; // digits may fill a small picture
  light = padded(light, margin, 1);
  const { size, box } = search(light);
  if (!size) return { found: [], factor: 1, corner: [0, 0] };
  const factor = Math.max(round(size / SIZE), 1);
  const near = factor * Math.ceil((1.5 * size) / factor);
  const [left, top] = [box.left, box.top].map((start) => Math.max(Math.floor(start / factor) * factor - near, 0));
  const right = Math.min(box.right + near, light.width);
  const bottom = Math.min(box.bottom + near, light.height);
  // In steps: similar pictures are cut alike.
  let found = partsOf(reduced(cropped(light, left, top, right, bottom), factor), 16 * Math.ceil(size / factor / 16));
  if (!found.length) return { found, factor: 1, corner: [0, 0] };
  const masses = found.map(({ level, ink }) => level * total(ink));
  const { level } = found[masses.indexOf(Math.max(...masses))];
  found = found.filter((part) => part.level > WEAK * level);
  const high = heightOf(found);
  found = found.filter((part) => Math.max(part.bottom - part.top, part.right - part.left) > 0.3 * high);
  found.sort((a, b) => b.bottom - b.top - (a.bottom - a.top)).splice(MOST);
  return { found, factor, corner: [left - margin, top - margin] };
}

/** About 1 where there is paper, less where there is ink, of whatever colour. */
function brightness({ data, width, height }) {
  const light = image(width, height);
  const grey = image(width, height);
  for (let i = 0; i < grey.values.length; i++) grey.values[i] = (data[4 * i] + data[4 * i + 1] + data[4 * i + 2]) / 765;
  const bright = !isDark(grey);
  const levels = Float32Array.from({ length: 256 }, (_, value) => (bright ? 255 - value : value) / 255);
  const [down, across] = [height, width].map((side) => Math.floor(side / 200) + 1);
  const paper = [0, 1, 2].map((channel) => {
    const sample = [];
    for (let y = 0; y < height; y += down) for (let x = 0; x < width; x += across) sample.push(levels[data[4 * (y * width + x) + channel]]);
    return median(sample);
  });
  if (Math.max(...paper) < LEAST_CONTRAST) return image(width, height, light.values.fill(1)); // nothing can be darker
  const [red, green, blue] = paper.map((value) => levels.map((level) => level / Math.max(value, LEAST_CONTRAST)));
  for (let i = 0, k = 0; i < light.values.length; i++, k += 4) {
    light.values[i] = Math.min(red[data[k]], green[data[k + 1]], blue[data[k + 2]]);
  }
  return light;
}

/** Whether ink is darker than paper: ink is what is narrow. */
function isDark(grey) {
  const small = reduced(grey, Math.ceil(Math.max(grey.width, grey.height) / 200));
  const [dark, bright] = [small, mapped(small, (value) => 1 - value)].map((side) =>
    [3, 5, 9, 17, 33].reduce((sum, wide) => {
      const paper = closed(side, wide).values;
      return sum + side.values.reduce((s, value, i) => s + (paper[i] - value) ** 2, 0) / wide ** 1.5;
    }, 0),
  );
  return dark >= bright;
}

/** Without what is dark and too narrow for a square of `wide` px; beyond the picture all is dark. */
function closed(light, wide) {
  const paper = lowest(highest(padded(light, wide, 0), wide), wide);
  return cropped(paper, wide, wide, wide + light.width, wide + light.height);
}

/** The height of the digits in px, 0 where there are none; the box that holds them all. */
function search(light) {
  const longest = Math.max(light.width, light.height);
  const scales = [];
  for (let factor = Math.ceil(longest / LONGEST); longest >= factor * SIZES[0]; factor *= 2) {
    const seen = partsOf(reduced(light, factor), 40).filter(({ top, bottom }) => SIZES[0] <= bottom - top && bottom - top <= SIZES[1]);
    if (!seen.length) continue;
    const mass = seen.reduce((sum, { ink }) => sum + total(ink), 0) * factor ** 2;
    const box = Object.fromEntries(Object.entries(around(seen)).map(([edge, at]) => [edge, at * factor]));
    scales.push({ mass, size: heightOf(seen) * factor, box });
  }
  const most = Math.max(...scales.map(({ mass }) => mass));
  return scales.find(({ mass }) => mass > 0.8 * most) ?? { size: 0 };
}

/** Brightness -> 0 paper to 1 black, smooth and sharp, without lines fainter than ink; and its noise. */
function darkness(light, size) {
  const smooth = averaged(light, 2 * Math.floor(0.035 * size) + 1);
  const paper = closed(smooth, 2 * round(0.35 * size) + 3).values;
  const part = (value, i) => 1 - value / Math.max(paper[i], 0.02);
  let dark = mapped(smooth, part);
  const middle = median(dark.values);
  dark = mapped(dark, (value) => value - middle);
  const noise = 1.5 * median(mapped(dark, Math.abs).values);
  const [long, thick] = [2 * round(size), 2 * round(0.08 * size) + 1];
  const [down, across] = [0, 1].map((axis) => {
    // Straight, nearly along this axis, longer and thinner than strokes.
    const wide = filtered(filtered(dark, thick, 1 - axis, LOWEST), thick, 1 - axis, HIGHEST).values;
    const thin = mapped(dark, (value, i) => value - wide[i]);
    const near = filtered(filtered(thin, 5, 1 - axis, HIGHEST), thick + 2, axis, HIGHEST);
    return filtered(filtered(near, long, axis, LOWEST), long, axis, HIGHEST).values;
  });
  const faint = mapped(dark, (value, i) => value < 1.5 * Math.max(down[i], across[i], 0)).values;
  return {
    dark: mapped(dark, (value, i) => (faint[i] ? 0 : value)),
    sharp: mapped(light, (value, i) => (faint[i] ? 0 : part(value, i) - middle)),
    noise,
  };
}

/** The connected ink of digits about `size` px high, without specks. */
function partsOf(light, size) {
  const { width, height } = light;
  const { dark, sharp, noise } = darkness(light, size);
  const least = Math.max(LEAST_CONTRAST, 5 * noise);
  const reach = Math.max(round(0.04 * size), 1);
  const large = (boxes) => boxes.filter((box) => Math.max(box.right - box.left, box.bottom - box.top) > 0.2 * size);

  // Each piece has its own level of ink: that of most of its darker half.
  const first = labelled(dark, (value) => value > least);
  const level = image(width, height);
  for (const box of large(first.boxes)) {
    const inside = box.pixels;
    const values = inside.map((i) => dark.values[i]);
    const most = values.reduce((a, b) => Math.max(a, b), 0);
    const own = median(values.filter((value) => value > 0.5 * most));
    for (const i of inside) level.values[i] = own;
  }
  const core = labelled(dark, (value, i) => level.values[i] > 0 && value > CORE * level.values[i]);
  const wide = highest(level, 2 * reach + 1);
  const ink = mapped(sharp, (value, i) =>
    clip((value / Math.max(wide.values[i], LEAST_CONTRAST) - FAINT) / (1 - FAINT), 0, 1),
  );
  const darkest = ({ left, top, right, bottom }) =>
    cropped(wide, left, top, right, bottom).values.reduce((most, value) => Math.max(most, value), LEAST_CONTRAST);
  const found = [];
  for (const box of large(core.boxes)) {
    const [left, top] = [Math.max(box.left - reach, 0), Math.max(box.top - reach, 0)];
    const [right, bottom] = [Math.min(box.right + reach, width), Math.min(box.bottom + reach, height)];
    const labels = cropped(core, left, top, right, bottom);
    const near = highest(mapped(labels, (label) => label === box.label), 2 * reach + 1).values;
    const own = mapped(cropped(ink, left, top, right, bottom), (value, i) =>
      near[i] && (labels.values[i] === box.label || labels.values[i] === 0) ? value : 0,
    );
    const edges = inked(own, 0.5);
    if (!edges) continue;
    const part = { left: left + edges.left, top: top + edges.top, right: left + edges.right, bottom: top + edges.bottom };
    found.push({ ...part, level: darkest(box), ink: cropped(own, edges.left, edges.top, edges.right, edges.bottom) });
  }
  return found;
}

/** Several parts as one. */
function union(parts) {
  const box = around(parts);
  const ink = image(box.right - box.left, box.bottom - box.top);
  for (const part of parts) {
    part.ink.values.forEach((value, i) => {
      const x = part.left - box.left + (i % part.ink.width);
      const at = (part.top - box.top + Math.floor(i / part.ink.width)) * ink.width + x;
      ink.values[at] = Math.max(ink.values[at], value);
    });
  }
  return { ...box, ink };
}

// ---- Images

function mapped({ values, width, height }, f) {
  const result = image(width, height);
  for (let i = 0; i < values.length; i++) result.values[i] = f(values[i], i);
  return result;
}

function total({ values }) {
  let sum = 0;
  for (let i = 0; i < values.length; i++) sum += values[i];
  return sum;
}

function cropped({ values, width }, left, top, right, bottom) {
  const part = image(right - left, bottom - top);
  for (let y = top; y < bottom; y++) part.values.set(values.subarray(y * width + left, y * width + right), (y - top) * part.width);
  return part;
}

function padded({ values, width, height }, margin, filling) {
  const larger = image(width + 2 * margin, height + 2 * margin);
  larger.values.fill(filling);
  for (let y = 0; y < height; y++)
    larger.values.set(values.subarray(y * width, (y + 1) * width), (y + margin) * larger.width + margin);
  return larger;
}

/** The box around all above `least`, or null. */
function inked({ values, width }, least) {
  const box = { left: Infinity, top: Infinity, right: 0, bottom: 0 };
  values.forEach((value, i) => {
    if (!(value > least)) return;
    const [x, y] = [i % width, Math.floor(i / width)];
    box.left = Math.min(box.left, x);
    box.right = Math.max(box.right, x + 1);
    box.top = Math.min(box.top, y);
    box.bottom = Math.max(box.bottom, y + 1);
  });
  return box.right ? box : null;
}

/** Means of squares of `factor` x `factor` px, those cut off at the end, too. */
function reduced(light, factor) {
  if (factor === 1) return light;
  const { values, width, height } = light;
  const small = image(Math.ceil(width / factor), Math.ceil(height / factor));
  for (let y = 0, i = 0; y < height; y++) {
    const row = Math.floor(y / factor) * small.width;
    for (let x = 0, end = factor; x < width; end += factor) {
      const last = Math.min(end, width);
      let sum = 0;
      for (; x < last; x++, i++) sum += values[i];
      small.values[row + end / factor - 1] += sum;
    }
  }
  const inside = (place, length) => Math.min(factor, length - place * factor);
  return mapped(small, (sum, i) => sum / inside(i % small.width, width) / inside(Math.floor(i / small.width), height));
}

const highest = (light, size) => filtered(filtered(light, size, 0, HIGHEST), size, 1, HIGHEST);
const lowest = (light, size) => filtered(filtered(light, size, 0, LOWEST), size, 1, LOWEST);

const HIGHEST = 1;
const LOWEST = -1;

let used = new Float32Array(0); // by each call of `filtered` anew: to ask for memory takes its time

/** Two arrays of a length. */
function room(length) {
  if (used.length < 2 * length) used = new Float32Array(2 * length);
  return [used.subarray(0, length), used.subarray(length, 2 * length)];
}

/**
 * The highest or lowest of `size` neighbours along an axis (0: down), in three operations for each
 * pixel however many they are: of blocks, from their beginning and from their end (van Herk 1992).
 */
function filtered({ values, width, height }, size, axis, sign) {
  const result = image(width, height);
  const [lines, length, step] = axis ? [height, width, 1] : [1, height, width];
  const before = (size >> 1) * step; // of even sizes there is one more before than after
  const block = size * step;
  const whole = block * Math.ceil((length + size) / size + 1);
  const [up, down] = room(whole);
  const [extent, last] = [length * step, block - step];
  for (let k = 0; k < lines * extent; k += extent) {
    up.fill(-Infinity);
    for (let i = 0; i < extent; i++) up[before + i] = sign * values[k + i];
    down.set(up);
    for (let start = 0; start < whole; start += block) {
      const end = start + block;
      for (let i = start + step; i < end; i++) if (up[i - step] > up[i]) up[i] = up[i - step];
      for (let i = end - step - 1; i >= start; i--) if (down[i + step] > down[i]) down[i] = down[i + step];
    }
    for (let i = 0; i < extent; i++) {
      const [from, to] = [down[i], up[last + i]];
      result.values[k + i] = sign * (from > to ? from : to);
    }
  }
  return result;
}

/** Means of size x size px; beyond the picture its border goes on. */
function averaged({ values, width, height }, size) {
  const before = size >> 1;
  for (const [count, length, step, stride] of [[width, height, width, 1], [height, width, 1, width]]) {
    const result = new Float32Array(values.length);
    const line = new Float64Array(length + size);
    for (let k = 0; k < count; k++) {
      for (let i = 0; i < line.length; i++) line[i] = values[k * stride + clip(i - before, 0, length - 1) * step];
      let sum = 0;
      for (let i = 0; i < size; i++) sum += line[i];
      for (let i = 0; i < length; i++) {
        result[k * stride + i * step] = sum / size;
        sum += line[i + size] - line[i];
      }
    }
    values = result;
  }
  return image(width, height, values);
}

/** Connected pixels, corners too, for which `test` holds: labels from 1, and each one's box and pixels. */
function labelled({ values, width, height }, test) {
  const ink = padded(mapped(image(width, height, values), (value, i) => (test(value, i) ? -1 : 0)), 1, 0); // -1: no label yet
  const labels = ink.values;
  const near = [-1, 0, 1].flatMap((y) => [-1, 0, 1].map((x) => y * ink.width + x));
  const boxes = [];
  for (let start = 0; start < labels.length; start++) {
    if (labels[start] !== -1) continue;
    const label = boxes.length + 1;
    labels[start] = label;
    const found = [start];
    const box = { label, left: width, top: height, right: 0, bottom: 0 };
    for (let k = 0; k < found.length; k++) {
      const [x, y] = [(found[k] % ink.width) - 1, Math.floor(found[k] / ink.width) - 1];
      if (x < box.left) box.left = x;
      if (x >= box.right) box.right = x + 1;
      if (y < box.top) box.top = y;
      if (y >= box.bottom) box.bottom = y + 1;
      for (const step of near) {
        if (labels[found[k] + step] !== -1) continue;
        labels[found[k] + step] = label;
        found.push(found[k] + step);
      }
      found[k] = y * width + x;
    }
    boxes.push({ ...box, pixels: found });
  }
  return { ...cropped(ink, 1, 1, width + 1, height + 1), boxes };
}
