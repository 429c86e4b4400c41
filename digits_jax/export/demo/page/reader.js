// The network, in the browser: onnxruntime-web, its WebAssembly, and the exported model.

import { SIDE } from "./ink.js";

const RUNTIME = "./runtime/ort.wasm.bundle.min.mjs";
const WASM = "./runtime/ort-wasm-simd-threaded.wasm";

/**
 * Loads all that reading takes; `progress` hears of the part that has come, from 0 to 1.
 *
 * `facts`: the page's facts.json. Returns run(images), which takes Float32Arrays of facts.shape and
 * returns for each of them its heads' probabilities, [Float32Array, ...].
 */
export async function open(facts, progress) {
  const [wasm, model, ort] = await Promise.all([
    ...(await fetchAll([WASM, `./${facts.model}`], progress)),
    import(RUNTIME),
  ]);
  ort.env.wasm.numThreads = 1; // more need headers that static hosts do not send
  ort.env.wasm.wasmBinary = wasm;
  const session = await ort.InferenceSession.create(model);
  const [height, width] = facts.shape;
  let last = Promise.resolve(); // a session answers one call at a time

  function run(images) {
    const values = new Float32Array(images.length * height * width);
    images.forEach((image, i) => values.set(image, i * height * width));
    const tensor = new ort.Tensor("float32", values, [images.length, height, width]);
    const answer = last.then(() => session.run({ images: tensor }));
    last = answer.catch(() => {});
    return answer.then((output) =>
      images.map((_, i) =>
        session.outputNames.map((name) => {
          const { data, dims } = output[name];
          return data.slice(i * dims[1], (i + 1) * dims[1]);
        }),
      ),
    );
  }

  await run([new Float32Array(height * width)]); // warms up
  return run;
}

/**
 * What the heads say of one image: {text, p, known, characters}; a character is {text, p, others},
 * and others are all answers in its place, [{text, p}, ...], the best first. The text is the
 * likeliest digits, with the probability p. It is `?` where `known`, the probability that all are
 * digits, is below the threshold; p is then that of no digit.
 */
export function spell(heads, { classes, threshold }) {
  const characters = [];
  let [p, known] = [1, 1];
  for (const [i, probabilities] of heads.entries()) {
    const others = Array.from(probabilities, (p, k) => ({ text: classes[i][k], p })).sort((a, b) => b.p - a.p);
    const best = others.find(({ text }) => text !== "?");
    p *= best.p;
    if (best.text === "") break; // nothing more
    known *= 1 - (others.find(({ text }) => text === "?")?.p ?? 0);
    characters.push({ ...best, others });
  }
  if (known >= threshold) return { text: characters.map(({ text }) => text).join(""), p, known, characters };
  return { text: "?", p: 1 - known, known, characters: [{ text: "?", p: 1 - known, others: characters[0].others }] };
}

/** The middle columns of a piece's image, which a network of single digits sees. */
export function middle({ values, width, height, left, top, pixel }, columns) {
  const before = (width - columns) / 2;
  const part = new Float32Array(columns * height);
  for (let y = 0; y < height; y++) part.set(values.subarray(y * width + before, y * width + before + columns), y * columns);
  return { values: part, width: columns, height, left: left + before * pixel, top, pixel };
}

/** Heads of two digits that are in every image as one head, of pairs. */
export const joint = (heads) => [heads.reduce((first, second) => Array.from(first).flatMap((p) => Array.from(second, (q) => p * q)))];

/** Two digits' images in one, as the network's data set has them; where they overlap, the darker. */
export function compose(digits, { axis, offset, shape: [height, width] }) {
  const values = new Float32Array(width * height);
  digits.forEach((digit, k) => {
    const [left, top] = axis === 0 ? [k * offset, 0] : [0, k * offset];
    digit.forEach((value, i) => {
      const place = (top + Math.floor(i / SIDE)) * width + left + (i % SIDE);
      values[place] = Math.max(values[place], value);
    });
  });
  return values;
}

const [PATCH, STEP, AT_ONCE] = [6, 2, 32]; // px of the image, and images

/**
 * How much each pixel counts for what is read: [0, 1] for each of the image's, 1 the most.
 *
 * The image is read again with a small patch of it blank (Zeiler and Fergus 2014): how much less the
 * network then believes in its answer to the whole, averaged over a pixel's patches.
 */
export async function whereItLooked(run, { image, heads, spelled }, facts) {
  const [height, width] = facts.shape;
  const texts = [...spelled.characters.map(({ text }) => text), ""].slice(0, heads.length); // up to the end
  const chosen = texts.map((text, i) => facts.classes[i].indexOf(text));
  const believes = (said) =>
    spelled.text === "?" ? 1 - spell(said, facts).known : chosen.reduce((product, k, i) => product * said[i][k], 1);
  const before = believes(heads);
  const patches = [];
  for (let top = STEP - PATCH; top < height; top += STEP) {
    for (let left = STEP - PATCH; left < width; left += STEP) {
      const pixels = [];
      for (let y = Math.max(top, 0); y < Math.min(top + PATCH, height); y++)
        for (let x = Math.max(left, 0); x < Math.min(left + PATCH, width); x++) pixels.push(y * width + x);
      if (pixels.some((i) => image[i] > 0.1)) patches.push(pixels);
    }
  }
  const [lost, count] = [new Float32Array(image.length), new Float32Array(image.length)];
  for (let start = 0; start < patches.length; start += AT_ONCE) {
    const some = patches.slice(start, start + AT_ONCE);
    const blanked = some.map((pixels) => {
      const other = Float32Array.from(image);
      for (const i of pixels) other[i] = 0;
      return other;
    });
    (await run(blanked)).forEach((said, k) => {
      const less = Math.max(before - believes(said), 0);
      for (const i of some[k]) {
        lost[i] += less;
        count[i] += 1;
      }
    });
  }
  const mean = lost.map((sum, i) => sum / (count[i] || 1));
  const most = Math.max(...mean, 1e-6);
  return mean.map((value) => value / most);
}

/** What `fetch` gives; an error that names the address where it does not come. */
export async function get(address) {
  const response = await fetch(address).catch(() => null);
  if (!response?.ok) throw new Error(`${address} cannot be read (${response?.status ?? "no answer"})`);
  return response;
}

/** The content of each address, as promises, with a common progress. */
async function fetchAll(addresses, progress) {
  const responses = await Promise.all(addresses.map(get));
  const sizes = responses.map(({ headers }) => Number(headers.get("Content-Length")));
  const total = sizes.reduce((sum, size) => sum + size, 0);
  let come = 0;
  return responses.map(async (response) => {
    const parts = [];
    for (const stream = response.body.getReader(); ; ) {
      const { done, value } = await stream.read();
      if (done) break;
      parts.push(value);
      come += value.length;
      progress(Math.min(come / (total || Infinity), 1));
    }
    return new Uint8Array(await new Blob(parts).arrayBuffer());
  });
}
