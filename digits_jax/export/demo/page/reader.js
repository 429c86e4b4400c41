// The network, in the browser: onnxruntime-web, its WebAssembly, and the exported model.

import { SIDE } from "./ink.js";

const RUNTIME = "./runtime/ort.wasm.bundle.min.mjs";
const WASM = "./runtime/ort-wasm-simd-threaded.wasm";

/**
 * Loads all that reading takes; `progress` hears of the part that has come, from 0 to 1.
 *
 * `facts`: the page's facts.json. Returns read(digits), which takes Float32Arrays [28 * 28], one
 * for each digit, and returns {image: {values, width, height}, answers: [{text, p}, ...]}, best first.
 */
export async function open(facts, progress) {
  const [wasm, model, ort] = await Promise.all([
    ...(await fetchAll([WASM, `./${facts.model}`], progress)),
    import(RUNTIME),
  ]);
  ort.env.wasm.numThreads = 1; // more need headers that static hosts do not send
  ort.env.wasm.wasmBinary = wasm;
  const session = await ort.InferenceSession.create(model);

  async function run(values, batch, [height, width]) {
    const images = new ort.Tensor("float32", values, [batch, height, width]);
    const output = await session.run({ images });
    return session.outputNames.map((name) => output[name]);
  }

  async function read(digits) {
    const image = compose(digits, facts);
    const alone = facts.digits === 1; // a network of one digit reads each on its own
    const [values, batch] = alone ? [digits.flatMap((d) => [...d]), digits.length] : [image.values, 1];
    const outputs = await run(Float32Array.from(values), batch, facts.shape);
    const rows = outputs.flatMap(({ data, dims: [n, classes] }) =>
      Array.from({ length: n }, (_, i) => Array.from(data.slice(i * classes, (i + 1) * classes))),
    );
    const answers = rows.reduce(joint).map((p, i) => ({ text: name(i, digits.length), p }));
    return { image, answers: answers.sort((a, b) => b.p - a.p) };
  }

  await read(Array.from({ length: facts.digits }, () => new Float32Array(SIDE * SIDE))); // warms up
  return read;
}

/** Probabilities of two independent answers, the second counting up first. */
const joint = (first, second) => first.flatMap((p) => second.map((q) => p * q));

const name = (number, digits) => String(number).padStart(digits, "0");

/** The digits in one image, as the network's data set has them; where they overlap, the darker. */
function compose(digits, { axis, offset }) {
  const length = offset * (digits.length - 1) + SIDE;
  const [width, height] = axis === 0 ? [length, SIDE] : [SIDE, length];
  const values = new Float32Array(width * height);
  digits.forEach((digit, k) => {
    const [left, top] = axis === 0 ? [k * offset, 0] : [0, k * offset];
    digit.forEach((value, i) => {
      const place = (top + Math.floor(i / SIDE)) * width + left + (i % SIDE);
      values[place] = Math.max(values[place], value);
    });
  });
  return { values, width, height };
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
