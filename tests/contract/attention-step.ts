import type { AttentionSpec } from "../../src/backend/attention-spec.ts";
import type { KvScales, LayerCache } from "../../src/backend/backend.ts";
import type { Tensor } from "../../src/backend/tensor.ts";
import type { KvDType } from "../../src/base/dtype.ts";
import { type Expected, expectClose, expectEqual, expectFloat8, type Precision } from "./compare.ts";
import type { Fixture, Uploaded } from "./fixture.ts";
import type { RaggedBatch } from "./ragged-batch.ts";
import * as reference from "./reference.ts";

const EPS = 1e-6;

export interface AttentionShape {
  readonly numHeads: number;
  readonly numKvHeads: number;
  readonly headDim: number;
  /** Leading dimensions of a head that are rotated; 0: no rotation at all. */
  readonly rotaryDim: number;
  readonly blockSize: number;
  readonly window: number;
  readonly headNorm: boolean;
  /** See `HeadNormSpec.normsValues`. */
  readonly normsValues?: boolean;
  /** See `AttentionSpec.readsOnly`. */
  readonly readsOnly?: boolean;
  /** Queries are scaled by their position. */
  readonly queryScales?: boolean;
  /** See `AttentionSpec.softCap`. */
  readonly softCap?: number;
  readonly sinks?: boolean;
  /** Default 1 / sqrt(headDim). */
  readonly scale?: number;
  /** Of the cache, where it is in eight bits. */
  readonly scales?: Required<KvScales>;
}

/** The operands of `attend` for a batch, and what it must have made of them. */
export class AttentionStep {
  readonly out: Tensor;
  readonly qkv: Uploaded;
  readonly spec: AttentionSpec;
  readonly #context: CachedContext;
  readonly #tables: Tables;
  readonly #norms: { readonly query: Float32Array; readonly key: Float32Array } | undefined;

  constructor(
    private readonly fixture: Fixture,
    private readonly batch: RaggedBatch,
    private readonly shape: AttentionShape,
  ) {
    const { numHeads, numKvHeads, headDim, rotaryDim, window, softCap, normsValues, readsOnly } = shape;
    const width = headsOf(shape).all * headDim;
    this.qkv = fixture.state(fixture.random.normals(batch.numTokens * width), [batch.numTokens, width]);
    this.#context = new CachedContext(fixture, batch, shape);
    const positions = Math.max(...batch.rows.map(([contextLen]) => contextLen));
    const cosSin = angles(fixture, positions, rotaryDim);
    const floats = (size: number, scale: number, mean: number) =>
      fixture.input(fixture.random.normals(size, scale, mean), [size], "float32");
    const queryScales = shape.queryScales ? floats(positions, 0.2, 1) : undefined;
    const sinks = shape.sinks ? floats(numHeads, 2, 2) : undefined;
    this.#tables = { cosSin: cosSin.values, queryScales: queryScales?.values, sinks: sinks?.values };
    const query = fixture.normals([headDim], 0.3, 1);
    const key = fixture.normals([headDim], 0.3, 1);
    this.spec = {
      ...{ numHeads, numKvHeads, headDim, scale: shape.scale ?? 1 / Math.sqrt(headDim), window, softCap },
      cosSin: rotaryDim > 0 ? cosSin.tensor : undefined,
      ...{ queryScales: queryScales?.tensor, sinks: sinks?.tensor },
      headNorm: shape.headNorm
        ? { query: query.tensor, key: readsOnly ? undefined : key.tensor, eps: EPS, normsValues }
        : undefined,
      readsOnly,
    };
    this.#norms = shape.headNorm ? { query: query.values, key: key.values } : undefined;
    this.out = fixture.output(fixture.dtype, [batch.numTokens, numHeads * headDim]);
  }

  get cache(): LayerCache {
    return this.#context.cache;
  }

  /** Throws unless the new keys and values are in the cache, everything else is as it was, and `out` is right. */
  check(): void {
    const { fixture, batch, shape, spec } = this;
    const projected = project(this.qkv.values, batch, shape, this.#tables, this.#norms);
    const stored = this.#context.checkStored(projected);
    const rows = batch.rows.map(([contextLen, queryLen], i) => ({
      ...{ firstToken: batch.cuSeqlensQ[i]!, queryLen, contextLen },
      ...{ keys: stored.keys[i]!, values: stored.values[i]! },
    }));
    const expected = reference.attention(projected.values, batch.numTokens, rows, {
      ...spec,
      sinks: this.#tables.sinks,
    });
    const longest = Math.max(...batch.rows.map(([contextLen]) => contextLen));
    const precision = {
      ...{ dtype: fixture.dtype, reduction: shape.headDim + longest, intermediates: INTERMEDIATES },
    };
    expectClose("out", fixture.readFloats(this.out), expected, precision);
  }
}

/**
 * Roundings that attention may make of each term: two of its weight, and those of the queries, which move the scores of
 * normally distributed keys by about as much as two more.
 */
const INTERMEDIATES = 4;

/** Heads of a token's projections: those that are rotated, and all. */
function headsOf({ numHeads, numKvHeads, readsOnly }: AttentionShape) {
  return readsOnly
    ? { rotated: numHeads, all: numHeads }
    : { rotated: numHeads + numKvHeads, all: numHeads + 2 * numKvHeads };
}

/** cosSin[positions, rotaryDim] with base 10,000. */
function angles(fixture: Fixture, positions: number, rotaryDim: number): Uploaded {
  const half = rotaryDim / 2;
  const values = new Float32Array(positions * rotaryDim);
  for (let i = 0; i < half; i++) {
    const frequency = 10000 ** (-i / half);
    for (let position = 0; position < positions; position++) {
      values[position * rotaryDim + i] = Math.cos(position * frequency);
      values[position * rotaryDim + half + i] = Math.sin(position * frequency);
    }
  }
  return fixture.input(values, [positions, rotaryDim], "float32");
}

/** The projections once they are normalised, and queries and keys rotated. */
function project(
  qkv: Float32Array,
  { numTokens, positions }: RaggedBatch,
  shape: AttentionShape,
  { cosSin, queryScales }: Tables,
  norms: { query: Float32Array; key: Float32Array } | undefined,
) {
  const { numHeads, headDim, rotaryDim } = shape;
  const { rotated, all } = headsOf(shape);
  const ones = new Float32Array(headDim).fill(1);
  const normed = qkv.slice();
  for (let head = 0; norms !== undefined && head < numTokens * all; head++) {
    if (head % all >= rotated && !shape.normsValues) continue;
    const span = normed.subarray(head * headDim, (head + 1) * headDim);
    const weight = head % all < numHeads ? norms.query : head % all < rotated ? norms.key : ones;
    span.set(reference.rmsNorm(span, weight, EPS).values);
  }
  const projected = reference.rotary(normed, all * headDim, rotated, headDim, cosSin, rotaryDim, positions);
  for (const [t, position] of positions.entries()) {
    for (let i = t * all * headDim; i < (t * all + numHeads) * headDim; i++) {
      projected.values[i]! *= queryScales?.[position] ?? 1;
      projected.magnitudes[i]! *= queryScales?.[position] ?? 1;
    }
  }
  return projected;
}

/** What attention reads besides the projections and the cache. */
interface Tables {
  readonly cosSin: Float32Array;
  readonly queryScales: Float32Array | undefined;
  readonly sinks: Float32Array | undefined;
}

/**
 * A layer's cache that holds what came before this step's tokens, and theirs if the layer only reads it, and NaN everywhere else.
 * What it holds is not yet scaled.
 */
class CachedContext {
  readonly cache: LayerCache;
  readonly #before: { readonly keys: Float32Array; readonly values: Float32Array };

  constructor(
    private readonly fixture: Fixture,
    private readonly batch: RaggedBatch,
    private readonly shape: AttentionShape,
  ) {
    const { numBlocks, blockSize } = batch;
    const { numKvHeads, headDim } = shape;
    const upload = (scale = 1) => {
      const paged = new Float32Array(numBlocks * numKvHeads * blockSize * headDim).fill(Number.NaN);
      for (const [row, [contextLen, queryLen]] of batch.rows.entries()) {
        for (let p = 0; p < contextLen - this.#stored(queryLen); p++)
          for (let head = 0; head < numKvHeads; head++)
            paged.set(fixture.random.normals(headDim, 1 / scale), this.#at(row, p, head));
      }
      return fixture.state(paged, [numBlocks, numKvHeads, blockSize, headDim], this.#dtype);
    };
    const { keyScale, valueScale } = shape.scales ?? {};
    const [keys, values] = [upload(keyScale), upload(valueScale)];
    this.cache = { keys: keys.tensor, values: values.tensor, ...shape.scales };
    this.#before = { keys: keys.values, values: values.values };
  }

  /** Of a row's tokens, those that the layer stores. */
  #stored(queryLen: number): number {
    return this.shape.readsOnly ? 0 : queryLen;
  }

  /** Of the cache. */
  get #dtype(): KvDType {
    return this.shape.scales === undefined ? this.fixture.dtype : "float8_e4m3";
  }

  /**
   * Throws unless the projected tokens lie where the batch says, and everything else is as it was. Returns each row's
   * context as the cache now holds it, [contextLen, numKvHeads, headDim], scaled.
   */
  checkStored(projected: Expected) {
    const { fixture, batch } = this;
    const { numHeads, numKvHeads, headDim, headNorm, normsValues, scales } = this.shape;
    const width = (numHeads + 2 * numKvHeads) * headDim;
    const contexts = (name: "keys" | "values") => {
      const scale = scales?.[name === "keys" ? "keyScale" : "valueScale"] ?? 1;
      const actual = fixture.readFloats(this.cache[name]);
      const expected = {
        values: new Float64Array(actual.length),
        magnitudes: new Float64Array(actual.length),
      };
      expected.values.set(this.#before[name]);
      const offset = (numHeads + (name === "keys" ? 0 : numKvHeads)) * headDim;
      for (const [row, [contextLen, queryLen]] of batch.rows.entries()) {
        for (let t = 0; t < this.#stored(queryLen); t++) {
          for (let head = 0; head < numKvHeads; head++) {
            const from = (batch.cuSeqlensQ[row]! + t) * width + offset + head * headDim;
            const to = this.#at(row, contextLen - queryLen + t, head);
            for (const part of ["values", "magnitudes"] as const) {
              for (let i = 0; i < headDim; i++) expected[part][to + i] = projected[part][from + i]! / scale;
            }
          }
        }
      }
      const { dtype } = fixture;
      const isExact = name === "values" && !normsValues;
      const precision: Precision = !isExact
        ? { dtype, reduction: headDim, intermediates: headNorm ? 2 : 0 }
        : { dtype: "float32", reduction: 1 };
      if (scales !== undefined) expectFloat8(name, actual, expected, precision);
      else if (!isExact) expectClose(name, actual, expected, precision);
      else expectEqual(name, actual, expected.values);
      for (let i = 0; i < actual.length; i++) actual[i]! *= scale;
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
