// A photograph: opened in the browser, and its ink found.

import { find } from "./ink.js";

const LONGEST = 1600; // px of its longer side; larger ones are reduced
const MOST = 300; // pieces of ink; further ones are not read
let count = 0; // of photographs

/** A picture (a Blob) as {canvas, lines}: upright, and its pieces of ink in lines. */
export async function openPicture(blob) {
  const bitmap = await createImageBitmap(blob).catch(() => {
    throw new Error("this is no picture that the browser can open");
  });
  const scale = Math.min(LONGEST / Math.max(bitmap.width, bitmap.height), 1);
  const [width, height] = [bitmap.width, bitmap.height].map((side) => Math.max(Math.round(scale * side), 1));
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.fillStyle = "#fff"; // the paper of what is transparent
  context.fillRect(0, 0, width, height);
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, width, height);
  bitmap.close();
  const name = `photo ${++count}`;
  let left = MOST;
  const lines = find(context.getImageData(0, 0, width, height)).map((line, i) => {
    const some = line.slice(0, left);
    left -= some.length;
    return some.map((part, k) => ({ ...part, part, key: `${name}, ${i}, ${k}` }));
  });
  return { canvas, lines: lines.filter((line) => line.length) };
}
