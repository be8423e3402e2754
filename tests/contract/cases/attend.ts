import type { AttentionSpec, LayerCache } from "../../../src/backend/backend.ts";
import type { Case } from "../backend.contract.ts";
import { type Expected, expectClose, expectEqual } from "../compare.ts";
import type { Fixture, Uploaded } from "../fixture.ts";
import { batchTensors, type RaggedBatch, type RowShape, raggedBatch } from "../ragged-batch.ts";
import * as reference from "../reference.ts";

const EPS = 1e-6;

interface Shape {
  readonly numHeads: number;
  readonly numKvHeads: number;
  readonly headDim: number;
  /** Leading dimensions of a head that are rotated. */
  readonly rotaryDim: number;
  readonly blockSize: number;
  readonly window: number;
  readonly headNorm: boolean;
}

const BATCHES = {
  "one decode": [[1, 1]],
  "a decode past a block": [[17, 1]],
  "short decodes": [
    [16, 1],
    [17, 1],
    [40, 1],
  ],
  "long decodes": [
    [17, 1],
    [64, 1],
    [1000, 1],
  ],
  "one prefill": [[17, 17]],
  "many queries": [[130, 130]],
  "chunk with cached prefix": [
    [300, 13],
    [129, 4],
  ],
  "decode and chunk": [
    [5, 1],
    [33, 16],
  ],
  "decode, chunk and prompt": [
    [9, 1],
    [90, 75],
    [54, 54],
  ],
  mixed: [
    [5, 1],
    [130, 1],
    [33, 1],
    [74, 74],
    [90, 53],
  ],
} satisfies Readonly<Record<string, readonly RowShape[]>>;
type BatchName = keyof typeof BATCHES;

export function attendCases(addCase: Case): void {
  attentionCases(addCase);
  projectionCases(addCase);
}

/** What attention over the cache depends on: batches, blocks, windows, heads. */
function attentionCases(addCase: Case): void {
  let turn = 0;
  for (const name of [
    ...["one decode", "long decodes", "one prefill", "chunk with cached prefix", "mixed"],
  ] as BatchName[]) {
    for (const blockSize of [16, 64]) {
      for (const window of [0, 5, 100]) {
        const heads = { numHeads: 4, numKvHeads: 2, headDim: 64, rotaryDim: 64 };
        attendCase(addCase, name, { ...heads, blockSize, window, headNorm: turn++ % 2 === 1 });
      }
    }
  }
  for (const headDim of [64, 96, 128, 256]) {
    for (const [numHeads, numKvHeads] of [
      [4, 2],
      [8, 8],
      [8, 1],
      [7, 1],
    ] as const) {
      for (const name of ["long decodes", headDim === 96 ? "mixed" : "chunk with cached prefix"] as const) {
        const blockSize = turn % 2 === 0 ? 16 : 64;
        const window = [0, 100, 0, 5][turn++ % 4]!;
        const heads = { numHeads, numKvHeads, headDim, rotaryDim: headDim };
        attendCase(addCase, name, { ...heads, blockSize, window, headNorm: turn % 3 === 0 });
      }
    }
  }
}

/** What happens to the projections of each token: norm, rotation of all or part of a head, where they are stored. */
function projectionCases(addCase: Case): void {
  const heads = [
    [4, 2, 64],
    [8, 8, 128],
    [8, 1, 96],
    [7, 1, 256],
  ] as const;
  const batches = ["one decode", "short decodes", "decode and chunk", "decode, chunk and prompt"] as const;
  for (const [i, [numHeads, numKvHeads, headDim]] of heads.entries()) {
    for (const [j, name] of batches.entries()) {
      const blockSize = (i + j) % 2 === 0 ? 16 : 64;
      const rotaryDim = j === 2 ? headDim / 2 : headDim;
      const shape = { numHeads, numKvHeads, headDim, rotaryDim, blockSize, window: 0 };
      attendCase(addCase, name, { ...shape, headNorm: j !== 1 });
    }
  }
  // Pieces of a head that no vector covers, and those that are not rotated.
  for (const [name, numHeads, numKvHeads, headDim, rotaryDim] of [
    ["a decode past a block", 4, 4, 64, 64],
    ["many queries", 2, 1, 256, 256],
    ["decode and chunk", 5, 1, 128, 128],
    ["one prefill", 2, 2, 96, 32],
    ["short decodes", 2, 1, 96, 20],
    ["decode and chunk", 3, 1, 64, 2],
  ] as const) {
    const shape = { numHeads, numKvHeads, headDim, rotaryDim, blockSize: 16, window: 0 };
    for (const headNorm of [false, true]) attendCase(addCase, name, { ...shape, headNorm });
  }
}

function attendCase(addCase: Case, name: BatchName, shape: Shape): void {
  const { numHeads, numKvHeads, headDim, rotaryDim, blockSize, window } = shape;
  const heads = `${numHeads}/${numKvHeads} heads of ${headDim} (${rotaryDim} rotated${shape.headNorm ? ", normed" : ""})`;
  const title = `${name}, ${heads}, blocks of ${blockSize}, window ${window}`;
  addCase("attend", title, (fixture) => {
    const batch = raggedBatch(fixture, BATCHES[name], blockSize);
    const width = (numHeads + 2 * numKvHeads) * headDim;
    const qkv = fixture.state(fixture.random.normals(batch.numTokens * width), [batch.numTokens, width]);
    const context = new CachedContext(fixture, batch, shape);
    const cosSin = angles(fixture, Math.max(...batch.rows.map(([contextLen]) => contextLen)), rotaryDim);
    const query = fixture.normals([headDim], 0.3, 1);
    const key = fixture.normals([headDim], 0.3, 1);
    const spec: AttentionSpec = {
      ...{ numHeads, numKvHeads, headDim, scale: 1 / Math.sqrt(headDim), window, cosSin: cosSin.tensor },
      headNorm: shape.headNorm ? { query: query.tensor, key: key.tensor, eps: EPS } : undefined,
    };
    const out = fixture.output(fixture.dtype, [batch.numTokens, numHeads * headDim]);
    fixture.backend.attend(out, qkv.tensor, context.cache, batchTensors(fixture, batch), spec);

    const norms = shape.headNorm ? { query: query.values, key: key.values } : undefined;
    const projected = project(qkv.values, batch, shape, cosSin.values, norms);
    const stored = context.checkStored(projected);
    const rows = batch.rows.map(([contextLen, queryLen], i) => ({
      ...{ firstToken: batch.cuSeqlensQ[i]!, queryLen, contextLen },
      ...{ keys: stored.keys[i]!, values: stored.values[i]! },
    }));
    const expected = reference.attention(projected.values, batch.numTokens, rows, spec);
    const longest = Math.max(...batch.rows.map(([contextLen]) => contextLen));
    const precision = { dtype: fixture.dtype, reduction: headDim + longest, intermediates: INTERMEDIATES };
    expectClose("out", fixture.readFloats(out), expected, precision);
  });
}

/**
 * Roundings that attention may make of each term: two of its weight, and those of the queries, which move the scores of
 * normally distributed keys by about as much as two more.
 */
const INTERMEDIATES = 4;

/** cosSin[positions, rotaryDim] with base 10,000. */
function angles(fixture: Fixture, positions: number, rotaryDim: number): Uploaded {
  const half = rotaryDim / 2;
  const values = Float32Array.from({ length: positions * rotaryDim }, (_, index) => {
    const i = index % rotaryDim;
    const angle = Math.floor(index / rotaryDim) * 10000 ** (-(i % half) / half);
    return i < half ? Math.cos(angle) : Math.sin(angle);
  });
  return fixture.input(values, [positions, rotaryDim], "float32");
}

/** The projections once queries and keys are normalised and rotated. */
function project(
  qkv: Float32Array,
  { numTokens, positions }: RaggedBatch,
  { numHeads, numKvHeads, headDim, rotaryDim }: Shape,
  cosSin: Float32Array,
  norms: { query: Float32Array; key: Float32Array } | undefined,
) {
  const [rotated, all] = [numHeads + numKvHeads, numHeads + 2 * numKvHeads];
  const normed = qkv.slice();
  for (let head = 0; norms !== undefined && head < numTokens * all; head++) {
    if (head % all >= rotated) continue;
    const span = normed.subarray(head * headDim, (head + 1) * headDim);
    span.set(reference.rmsNorm(span, head % all < numHeads ? norms.query : norms.key, EPS).values);
  }
  return reference.rotary(normed, all * headDim, rotated, headDim, cosSin, rotaryDim, positions);
}

/** A layer's cache that holds what came before this step's tokens, and NaN everywhere else. */
class CachedContext {
  readonly cache: LayerCache;
  readonly #before: { readonly keys: Float32Array; readonly values: Float32Array };

  constructor(
    private readonly fixture: Fixture,
    private readonly batch: RaggedBatch,
    private readonly shape: Shape,
  ) {
    const { numBlocks, blockSize } = batch;
    const { numKvHeads, headDim } = shape;
    const upload = () => {
      const paged = new Float32Array(numBlocks * numKvHeads * blockSize * headDim).fill(Number.NaN);
      for (const [row, [contextLen, queryLen]] of batch.rows.entries()) {
        for (let p = 0; p < contextLen - queryLen; p++)
          for (let head = 0; head < numKvHeads; head++)
            paged.set(fixture.random.normals(headDim), this.#at(row, p, head));
      }
      return fixture.state(paged, [numBlocks, numKvHeads, blockSize, headDim]);
    };
    const [keys, values] = [upload(), upload()];
    this.cache = { keys: keys.tensor, values: values.tensor };
    this.#before = { keys: keys.values, values: values.values };
  }

  /**
   * Throws unless the projected tokens lie where the batch says, and everything else is as it was. Returns each row's
   * context as the cache now holds it, [contextLen, numKvHeads, headDim].
   */
  checkStored(projected: Expected) {
    const { fixture, batch } = this;
    const { numHeads, numKvHeads, headDim, headNorm } = this.shape;
    const width = (numHeads + 2 * numKvHeads) * headDim;
    const contexts = (name: "keys" | "values") => {
      const actual = fixture.readFloats(this.cache[name]);
      const expected = {
        values: new Float64Array(actual.length),
        magnitudes: new Float64Array(actual.length),
      };
      expected.values.set(this.#before[name]);
      const offset = (numHeads + (name === "keys" ? 0 : numKvHeads)) * headDim;
      for (const [row, [contextLen, queryLen]] of batch.rows.entries()) {
        for (let t = 0; t < queryLen; t++) {
          for (let head = 0; head < numKvHeads; head++) {
            const from = (batch.cuSeqlensQ[row]! + t) * width + offset + head * headDim;
            const to = this.#at(row, contextLen - queryLen + t, head);
            for (const part of ["values", "magnitudes"] as const)
              expected[part].set(projected[part].subarray(from, from + headDim), to);
          }
        }
      }
      const { dtype } = fixture;
      if (name === "keys")
        expectClose(name, actual, expected, { dtype, reduction: headDim, intermediates: headNorm ? 2 : 0 });
      else expectEqual(name, actual, expected.values);
      return batch.rows.map(([contextLen], row) => this.#context(actual, row, contextLen));
    };
    return { keys: contexts("keys"), values: contexts("values") };
  }

  #context(paged: Float32Array, row: number, contextLen: number): Float32Array {
    const { numKvHeads, headDim } = this.shape;
    const context = new Float32Array(contextLen * numKvHeads * headDim);
    for (let p = 0; p < contextLen; p++) {
      for (let head = 0; head < numKvHeads; head++) {
        const at = this.#at(row, p, head);
        context.set(paged.subarray(at, at + headDim), (p * numKvHeads + head) * headDim);
      }
    }
    return context;
  }

  /** Index of the first element of a position's head. */
  #at(row: number, position: number, head: number): number {
    const { rowSlots, blockTables, maxBlocks, blockSize } = this.batch;
    const { numKvHeads, headDim } = this.shape;
    const block = blockTables[rowSlots[row]! * maxBlocks + Math.floor(position / blockSize)]!;
    return ((block * numKvHeads + head) * blockSize + (position % blockSize)) * headDim;
  }
}
