import { channelsOf, type DeltaNetShape } from "../../../src/backend/delta-net.ts";
import type { FloatDType } from "../../../src/base/dtype.ts";
import type { Case } from "../backend.contract.ts";
import { expectClose, expectEqual } from "../compare.ts";
import type { Fixture } from "../fixture.ts";
import { batchTensors, type RaggedBatch, type RowShape, raggedBatch } from "../ragged-batch.ts";

const EPS = 1e-6;
/** Length of an error, relative to that of what is right: of a token's outputs of a head, and of a head's state. */
const TOLERANCES: Record<FloatDType, number> = { float32: 1e-4, float16: 8e-3, bfloat16: 6e-2 };

const shapeOf = (
  numKeyHeads: number,
  numValueHeads: number,
  keyDim: number,
  valueDim: number,
  convWidth = 4,
): DeltaNetShape => ({ numKeyHeads, numValueHeads, keyDim, valueDim, convWidth });

const SMALL = shapeOf(2, 4, 16, 16);
const WIDE = shapeOf(2, 4, 128, 128);
/** Rows that begin their sequences, and rows that go on; of a token, of parts of 64, of whole ones and of many. */
const DECODES: readonly RowShape[] = [
  [1, 1],
  [2, 1],
  [900, 1],
];
const PROMPTS: readonly RowShape[] = [
  [2, 2],
  [64, 64],
  [65, 65],
  [33, 7],
  [300, 200],
  [130, 129],
];

/** The gated delta rule against its form without a recurrence, and gates of elements. */
export function deltaNetCases(addCase: Case): void {
  const add = (title: string, shape: DeltaNetShape, rows: readonly RowShape[], size?: "grid") =>
    addCase("deltaNet", title, (fixture) => check(fixture, shape, rows), size);
  add("rows of one token", SMALL, DECODES);
  add("rows of prompts", SMALL, PROMPTS);
  add("both, more values than keys a head", shapeOf(1, 2, 32, 64), [...DECODES, ...PROMPTS]);
  add("both, fewer values than keys a head, a wider convolution", shapeOf(2, 2, 64, 32, 5), [
    ...DECODES,
    ...PROMPTS,
  ]);
  add("heads of 128 dimensions", WIDE, [
    [7, 1],
    [70, 66],
  ]);
  add("heads of 128 dimensions, longer prompts", WIDE, [[7, 1], ...PROMPTS.slice(2)], "grid");
  add("many rows of one token", WIDE, Array(40).fill([5, 1]), "grid");
  addCase("gateElements", "each by its own", (fixture) => {
    const x = fixture.state(fixture.random.normals(3 * 40), [3, 40]);
    const gate = fixture.normals([3, 40], 3);
    fixture.backend.gateElements(x.tensor, gate.tensor);
    const values = Float64Array.from(x.values, (value, i) => value / (1 + Math.exp(-gate.values[i]!)));
    const actual = fixture.readFloats(x.tensor);
    expectClose(
      "x",
      actual,
      { values, magnitudes: values.map(Math.abs) },
      { dtype: fixture.dtype, reduction: 4 },
    );
  });
}

function check(fixture: Fixture, shape: DeltaNetShape, rows: readonly RowShape[]): void {
  const { numKeyHeads, numValueHeads, keyDim, valueDim, convWidth } = shape;
  const { random, backend } = fixture;
  const batch = raggedBatch(fixture, rows, 16);
  const channels = channelsOf(shape);
  const [layers, layer, slots] = [3, 1, batch.numSlots];
  const projected = fixture.normals([batch.numTokens, channels + numValueHeads * valueDim]);
  const floats = (values: Float32Array, ...extents: number[]) => fixture.input(values, extents, "float32");
  const gates = floats(
    random.normals(batch.numTokens * 2 * numValueHeads),
    batch.numTokens,
    2 * numValueHeads,
  );
  const tailSize = convWidth * channels;
  const tails = fixture.state(random.normals(slots * layers * tailSize), [
    slots,
    layers,
    convWidth,
    channels,
  ]);
  const states = fixture.state(
    random.normals(slots * layers * numValueHeads * keyDim * valueDim, 0.3),
    [slots, layers, numValueHeads, keyDim, valueDim],
    "float32",
  );
  const convolution = fixture.normals([channels, convWidth], 0.6);
  const decayLog = floats(random.normals(numValueHeads, 1, -2), numValueHeads);
  const timeBias = floats(random.normals(numValueHeads), numValueHeads);
  const weight = fixture.normals([valueDim], 0.3, 1);
  const out = fixture.output(fixture.dtype, [batch.numTokens, numValueHeads * valueDim]);
  backend.deltaNet(
    ...([out, projected.tensor, gates.tensor] as const),
    { tails: tails.tensor, states: states.tensor, layer },
    batchTensors(fixture, batch),
    {
      ...{ ...shape, convolution: convolution.tensor, decayLog: decayLog.tensor, timeBias: timeBias.tensor },
      norm: { weight: weight.tensor, eps: EPS },
    },
  );
  const [outputs, newTails, newStates] = [out, tails.tensor, states.tensor].map((each) =>
    fixture.readFloats(each),
  );
  const stateSize = keyDim * valueDim;
  for (const [row, slot] of batch.rowSlots.entries()) {
    const at = (slot * layers + layer) * tailSize;
    const inputs = convolved(projected.values, tails.values, convolution.values, { batch, row, shape, at });
    const length = rows[row]![0];
    for (let position = Math.max(0, length - convWidth + 1); position < length; position++) {
      const place = at + (position % convWidth) * channels;
      expectEqual(`tail ${row}`, newTails!.subarray(place, place + channels), inputs.channelsAt(position));
    }
    for (let head = 0; head < numValueHeads; head++) {
      const at = ((slot * layers + layer) * numValueHeads + head) * stateSize;
      const first = batch.cuSeqlensQ[row]!;
      const isNew = rows[row]![0] === rows[row]![1];
      const before = isNew ? new Float32Array(stateSize) : states.values.subarray(at, at + stateSize);
      const keyHead = Math.floor((head * numKeyHeads) / numValueHeads);
      const part = (start: number, dim: number) => inputs.tokens.map((x) => x.slice(start, start + dim));
      const gateOf = (index: number, t: number) => gates.values[(first + t) * 2 * numValueHeads + index]!;
      const softplus = (x: number) => Math.log1p(Math.exp(x));
      const { o, state } = withoutRecurrence(before, {
        q: part(keyHead * keyDim, keyDim).map((q) => unit(q, 1 / Math.sqrt(keyDim))),
        k: part((numKeyHeads + keyHead) * keyDim, keyDim).map((k) => unit(k, 1)),
        v: part(2 * numKeyHeads * keyDim + head * valueDim, valueDim),
        g: inputs.tokens.map(
          (_, t) =>
            -Math.exp(decayLog.values[head]!) *
            softplus(gateOf(numValueHeads + head, t) + timeBias.values[head]!),
        ),
        beta: inputs.tokens.map((_, t) => 1 / (1 + Math.exp(-gateOf(head, t)))),
      });
      const tolerance = TOLERANCES[fixture.dtype];
      expectNear(`state ${row}, ${head}`, newStates!.subarray(at, at + stateSize), state, tolerance);
      for (const [t, values] of o.entries()) {
        const width = channels + numValueHeads * valueDim;
        const mean = values.reduce((sum, value) => sum + value * value, 0) / valueDim;
        const expected = values.map((value, i) => {
          const z = projected.values[(first + t) * width + channels + head * valueDim + i]!;
          return ((value / Math.sqrt(mean + EPS)) * weight.values[i]! * z) / (1 + Math.exp(-z));
        });
        const start = ((first + t) * numValueHeads + head) * valueDim;
        expectNear(
          `out ${row}, ${t}, ${head}`,
          outputs!.subarray(start, start + valueDim),
          expected,
          tolerance,
        );
      }
    }
  }
  // Other slots and layers are as they were.
  const others = (values: Float32Array, size: number) =>
    values.filter((_, i) => {
      const place = Math.floor(i / size);
      return place % layers !== layer || !batch.rowSlots.includes(Math.floor(place / layers));
    });
  const size = numValueHeads * stateSize;
  expectEqual("other states", others(newStates!, size), others(states.values, size));
  expectEqual("other tails", others(newTails!, tailSize), others(tails.values, tailSize));
}

interface RowOf {
  readonly batch: RaggedBatch;
  readonly row: number;
  readonly shape: DeltaNetShape;
  /** Of the row's tail. */
  readonly at: number;
}

/** The channels of a row's tokens after convolution and silu, and those of a position before. */
function convolved(
  projected: Float32Array,
  tails: Float32Array,
  weights: Float32Array,
  { batch, row, shape, at }: RowOf,
): { readonly tokens: Float64Array[]; readonly channelsAt: (position: number) => Float32Array } {
  const { convWidth, numValueHeads, valueDim } = shape;
  const channels = channelsOf(shape);
  const width = channels + numValueHeads * valueDim;
  const [contextLen, queryLen] = batch.rows[row]!;
  const start = contextLen - queryLen;
  const channelsAt = (position: number) => {
    if (position < 0) return new Float32Array(channels);
    const [of, from] =
      position >= start
        ? [projected, (batch.cuSeqlensQ[row]! + position - start) * width]
        : [tails, at + (position % convWidth) * channels];
    return of.subarray(from, from + channels);
  };
  const tokens = Array.from({ length: queryLen }, (_, t) => {
    const seen = Array.from({ length: convWidth }, (__, w) => channelsAt(start + t - convWidth + 1 + w));
    return Float64Array.from({ length: channels }, (__, c) => {
      const sum = seen.reduce((total, x, w) => total + weights[c * convWidth + w]! * x[c]!, 0);
      return sum / (1 + Math.exp(-sum));
    });
  });
  return { tokens, channelsAt };
}

interface Tokens {
  readonly q: readonly Float64Array[];
  readonly k: readonly Float64Array[];
  readonly v: readonly Float64Array[];
  /** Logarithm of the decay. */
  readonly g: readonly number[];
  readonly beta: readonly number[];
}

/** Each token's update from those before it and the first state, by a triangular system. */
function withoutRecurrence(before: Float32Array, { q, k, v, g, beta }: Tokens) {
  const valueDim = v[0]!.length;
  const sums = g.map((_, t) => g.slice(0, t + 1).reduce((sum, x) => sum + x, 0));
  const decay = (from: number, to: number) => Math.exp(sums[to]! - (from < 0 ? 0 : sums[from]!));
  const dot = (a: Float64Array, b: Float64Array) => a.reduce((sum, x, i) => sum + x * b[i]!, 0);
  const ofState = (x: Float64Array, j: number) =>
    x.reduce((sum, xi, i) => sum + xi * before[i * valueDim + j]!, 0);
  const updates: Float64Array[] = [];
  const o = k.map((key, t) => {
    const seen = updates.map((_, s) => decay(s, t) * dot(k[s]!, key));
    updates.push(
      v[t]!.map((value, j) => {
        const known = updates.reduce((sum, update, s) => sum + seen[s]! * update[j]!, 0);
        return beta[t]! * (value - decay(-1, t) * ofState(key, j) - known);
      }),
    );
    const asked = updates.map((_, s) => decay(s, t) * dot(k[s]!, q[t]!));
    return Float64Array.from(
      { length: valueDim },
      (_, j) =>
        decay(-1, t) * ofState(q[t]!, j) +
        updates.reduce((sum, update, s) => sum + asked[s]! * update[j]!, 0),
    );
  });
  const last = k.length - 1;
  const state = Float64Array.from(before, (value, at) => {
    const [i, j] = [Math.floor(at / valueDim), at % valueDim];
    return updates.reduce(
      (sum, update, s) => sum + decay(s, last) * k[s]![i]! * update[j]!,
      decay(-1, last) * value,
    );
  });
  return { o, state };
}

function unit(x: Float64Array, scale: number): Float64Array {
  const squares = x.reduce((sum, value) => sum + value * value, 1e-6);
  return x.map((value) => (scale * value) / Math.sqrt(squares));
}

function expectNear(label: string, actual: Float32Array, expected: Float64Array, tolerance: number): void {
  let [error, length] = [0, 0];
  for (const [i, value] of expected.entries()) {
    error += (actual[i]! - value) ** 2;
    length += value ** 2;
  }
  const relative = Math.sqrt(error / length);
  if (!(relative <= tolerance))
    throw new Error(`${label}: an error of ${relative}, allowed are ${tolerance}`);
}
