// A photograph: opened in the browser as digits_jax/data/pictures.py opens it, and its ink found.

import { find, median, round } from "./ink.js";

const LONGEST = 1600; // px of its longer side; larger ones are reduced
const MOST = 300; // pieces of ink; further ones are not read
const AT_ONCE = 1 << 20; // px that are taken from a large picture at once
let count = 0; // of photographs

/** A picture (a Blob) as {canvas, lines}: upright, and its pieces of ink in lines. */
export async function openPicture(blob) {
  const pixels = await opened(blob);
  const canvas = new OffscreenCanvas(pixels.width, pixels.height);
  canvas.getContext("2d").putImageData(pixels, 0, 0);
  const name = `photo ${++count}`;
  let left = MOST;
  const lines = find(pixels).map((line, i) => {
    const some = line.slice(0, left);
    left -= some.length;
    return some.map((part, k) => ({ ...part, part, key: `${name}, ${i}, ${k}` }));
  });
  return { canvas, lines: lines.filter((line) => line.length) };
}

/** A picture's ImageData: upright, reduced, its transparency filled with paper. */
export async function opened(blob) {
  const how = { colorSpaceConversion: "none", premultiplyAlpha: "none" };
  const bitmap = await createImageBitmap(blob, how).catch(() => {
    throw new Error("this is no picture that the browser can open");
  });
  const pixels = filled(reduced(bitmap, blob.type === "image/jpeg"));
  bitmap.close();
  return pixels;
}

/**
 * The bitmap with LONGEST as its longest side: {means, width, height}, of each pixel red, green and
 * blue, times alpha, and alpha, from 0 to 255.
 *
 * A pixel is the mean of those whose centres lie in it, of rows first. A JPEG's are means of
 * squares before, as Pillow reduces it while it decodes it.
 */
function reduced(bitmap, jpeg) {
  const scale = Math.min(LONGEST / Math.max(bitmap.width, bitmap.height), 1);
  const [width, height] = [bitmap.width, bitmap.height].map((side) => Math.max(round(scale * side), 1));
  const times = Math.min(Math.floor(bitmap.width / width), Math.floor(bitmap.height / height));
  const square = jpeg ? [8, 4, 2, 1].find((side) => side <= times) : 1;
  const [columns, rows] = [ends(bitmap.width, width, square), ends(bitmap.height, height, square)];

  const some = Math.max(Math.floor(AT_ONCE / bitmap.width), 1); // rows at once
  const how = { willReadFrequently: true, alpha: !jpeg };
  const context = new OffscreenCanvas(bitmap.width, some).getContext("2d", how);
  context.globalCompositeOperation = "copy";
  const means = new Float32Array(4 * width * height);
  for (let start = 0, row = 0; start < bitmap.height; start += some) {
    const end = Math.min(start + some, bitmap.height);
    context.drawImage(bitmap, 0, -start);
    const { data } = context.getImageData(0, 0, bitmap.width, end - start);
    for (let y = start, i = 0; y < end; y++) {
      if (y === rows[row]) row++;
      for (let column = 0, at = 4 * width * row, x = 0; column < width; column++, at += 4) {
        let [red, green, blue, alpha] = [0, 0, 0, 0];
        const count = columns[column] - x;
        for (; x < columns[column]; x++, i += 4) {
          const part = data[i + 3] / 255;
          red += data[i] * part;
          green += data[i + 1] * part;
          blue += data[i + 2] * part;
          alpha += data[i + 3];
        }
        means[at] += Math.floor(red / count + 0.5);
        means[at + 1] += Math.floor(green / count + 0.5);
        means[at + 2] += Math.floor(blue / count + 0.5);
        means[at + 3] += Math.floor(alpha / count + 0.5);
      }
    }
  }
  for (let row = 0, i = 0; row < height; row++) {
    const count = rows[row] - (rows[row - 1] ?? 0);
    for (const end = i + 4 * width; i < end; i++) means[i] /= count;
  }
  return { means, width, height };
}

/** The pixels of a side of `length` as `count` cells: where each of these ends. */
function ends(length, count, square) {
  const cell = Math.ceil(length / square) / count;
  return Uint32Array.from({ length: count }, (_, k) =>
    k + 1 < count ? square * Math.floor((k + 1) * cell + 0.5) : length,
  );
}

/** What is transparent becomes paper: most of the picture is. Where most is transparent, the rest is ink. */
function filled({ means, width, height }) {
  const pixels = new ImageData(width, height);
  const paper = paperOf(means);
  for (let i = 0; i < means.length; i += 4) {
    const alpha = means[i + 3] / 255;
    for (let k = 0; k < 3; k++) pixels.data[i + k] = Math.floor(means[i + k] + (1 - alpha) * paper[k] + 0.5);
    pixels.data[i + 3] = 255;
  }
  return pixels;
}

function paperOf(means) {
  const opaque = [[], [], []];
  let [clear, alphas] = [false, 0];
  for (let i = 3; i < means.length; i += 4) {
    alphas += means[i] / 255;
    clear ||= means[i] < 254.5;
  }
  if (!clear) return [0, 0, 0]; // none is seen
  for (let i = 0; i < means.length; i += 4) {
    const alpha = means[i + 3] / 255;
    if (alpha > 0.5) opaque.forEach((channel, k) => channel.push(means[i + k] / alpha));
  }
  const inside = opaque.map(median);
  if (alphas > (0.5 * means.length) / 4) return inside;
  return Array(3).fill(inside[0] + inside[1] + inside[2] < 3 * 127.5 ? 255 : 0);
}
