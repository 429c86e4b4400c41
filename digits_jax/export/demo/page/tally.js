// Which readings were right, as people said: kept in this browser, and saved as NumPy's .npz.

import { SIDE } from "./ink.js";

const KEY = "digits_jax.tally";
const MOST = 2000; // drawings that are kept; a browser has room for some five million letters

/** {right, wrong, drawings: [{label, image}, ...]}; an image is 28x28 bytes, in base 64. */
export function load() {
  try {
    return { ...none(), ...JSON.parse(localStorage.getItem(KEY)) };
  } catch {
    return none(); // a browser that keeps nothing
  }
}

export function store(tally) {
  try {
    localStorage.setItem(KEY, JSON.stringify(tally));
  } catch {} // counted while the page is open
}

/** The tally with one more answer: what was `read`, what it is, and its image [28 * 28] in [0, 1]. */
export function count(tally, read, label, image) {
  const [right, wrong] = [tally.right + (read === label), tally.wrong + (read !== label)];
  const bytes = String.fromCharCode(...image.map((value) => Math.round(255 * value)));
  const drawing = /^\d$/.test(label) ? [{ label, image: btoa(bytes) }] : [];
  return { right, wrong, drawings: [...tally.drawings, ...drawing].slice(-MOST) };
}

export const none = () => ({ right: 0, wrong: 0, drawings: [] });

/** The drawings of single digits as an .npz: images [N, 28, 28] uint8 and labels [N] uint8. */
export function npz({ drawings }) {
  const images = new Uint8Array(drawings.length * SIDE * SIDE);
  drawings.forEach(({ image }, i) => images.set(Uint8Array.from(atob(image), (c) => c.charCodeAt(0)), i * SIDE * SIDE));
  const labels = Uint8Array.from(drawings, ({ label }) => Number(label));
  return zip({
    "images.npy": npy(images, [drawings.length, SIDE, SIDE]),
    "labels.npy": npy(labels, [drawings.length]),
  });
}

/** Bytes as NumPy's file of an array, format 1.0. */
function npy(bytes, shape) {
  const header = `{'descr': '|u1', 'fortran_order': False, 'shape': (${shape.map((side) => `${side},`).join(" ")}), }`;
  const length = 64 * Math.ceil((10 + header.length + 1) / 64) - 10;
  const text = `\x93NUMPY\x01\x00${String.fromCharCode(length & 255, length >> 8)}${header.padEnd(length - 1)}\n`;
  return new Uint8Array([...Array.from(text, (c) => c.charCodeAt(0)), ...bytes]);
}

/** {name: bytes} as a zip archive without compression. */
function zip(files) {
  const [parts, directory] = [[], []];
  let offset = 0;
  for (const [name, bytes] of Object.entries(files)) {
    // version, flags, method, time, date (1 January 1980), CRC, sizes, lengths of name and more
    const common = fields([20, 2], [0, 2], [0, 2], [0, 2], [33, 2], [crc(bytes), 4], [bytes.length, 4], [bytes.length, 4], [name.length, 2], [0, 2]);
    const letters = Array.from(name, (c) => c.charCodeAt(0));
    const local = [...fields([0x04034b50, 4]), ...common, ...letters];
    directory.push(...fields([0x02014b50, 4], [20, 2]), ...common, ...fields([0, 2], [0, 2], [0, 2], [0, 4], [offset, 4]), ...letters);
    parts.push(new Uint8Array(local), bytes);
    offset += local.length + bytes.length;
  }
  const count = Object.keys(files).length;
  const end = fields([0x06054b50, 4], [0, 2], [0, 2], [count, 2], [count, 2], [directory.length, 4], [offset, 4], [0, 2]);
  return new Blob([...parts, new Uint8Array([...directory, ...end])], { type: "application/zip" });
}

/** Numbers of so many bytes each, the lowest first. */
const fields = (...numbers) => numbers.flatMap(([value, size]) => Array.from({ length: size }, (_, i) => (value >>> (8 * i)) & 255));

/** CRC-32, as zip has it. */
function crc(bytes) {
  let sum = -1;
  for (const byte of bytes) {
    sum ^= byte;
    for (let bit = 0; bit < 8; bit++) sum = (sum >>> 1) ^ (0xedb88320 & -(sum & 1));
  }
  return ~sum >>> 0;
}
