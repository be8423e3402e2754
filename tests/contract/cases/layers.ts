import type { AttentionSpec } from "../../../src/backend/attention-spec.ts";
import type { BatchTensors, LayerCache } from "../../../src/backend/backend.ts";
import type { Tensor } from "../../../src/backend/tensor.ts";
import { denseWeight, type Weight } from "../../../src/backend/weight.ts";
import type { Case } from "../backend.contract.ts";
import { roundoff } from "../compare.ts";
import type { Fixture } from "../fixture.ts";
import { batchTensors, raggedBatch } from "../ragged-batch.ts";

const EPS = 1e-6;
const LAYERS = 3;

/** Contexts of rows with one query token, short and in parts. */
const CONTEXTS = {
  "one row": [5],
  "one long row": [700],
  "three rows": [17, 1, 300],
  "eight rows": [1, 16, 33, 600, 2, 90, 128, 129],
} as const;

interface LayerShape {
  readonly hidden: number;
  readonly units: number;
  readonly numHeads: number;
  readonly numKvHeads: number;
  readonly headDim: number;
  readonly rotaryDim: number;
  readonly headNorm: boolean;
  /** See `HeadNormSpec.normsValues`. */
  readonly normsValues?: boolean;
  readonly bias: boolean;
  readonly window: number;
  /** The cache is in eight bits. */
  readonly float8?: boolean;
}

/** Of the caches of three layers in eight bits. */
const SCALES = [
  { keyScale: 0.02, valueScale: 0.05 },
  { keyScale: 0.01, valueScale: 0.013 },
  { keyScale: 0.04, valueScale: 0.003 },
];

const SHAPES: Readonly<Record<string, LayerShape>> = {
  "normed heads": {
    ...{ hidden: 512, units: 1024, numHeads: 4, numKvHeads: 2, headDim: 128, rotaryDim: 128 },
    ...{ headNorm: true, bias: false, window: 0 },
  },
  "biases and a window": {
    ...{ hidden: 1024, units: 512, numHeads: 8, numKvHeads: 1, headDim: 64, rotaryDim: 32 },
    ...{ headNorm: false, bias: true, window: 100 },
  },
  "normed heads and values, cached in eight bits": {
    ...{ hidden: 512, units: 1024, numHeads: 4, numKvHeads: 2, headDim: 128, rotaryDim: 128 },
    ...{ headNorm: true, normsValues: true, bias: false, window: 0, float8: true },
  },
  "narrow heads with a window, cached in eight bits": {
    ...{ hidden: 1024, units: 512, numHeads: 16, numKvHeads: 4, headDim: 96, rotaryDim: 32 },
    ...{ headNorm: false, bias: true, window: 100, float8: true },
  },
  "heads that are not rotated": {
    ...{ hidden: 512, units: 512, numHeads: 8, numKvHeads: 2, headDim: 64, rotaryDim: 0 },
    ...{ headNorm: false, bias: false, window: 0 },
  },
};

/** A backend may hold the ops of decode steps back, to launch whole layers at once. */
export function layersCases(addCase: Case): void {
  for (const [shapeName, shape] of Object.entries(SHAPES)) {
    for (const [name, contexts] of Object.entries(CONTEXTS)) {
      const title = `in layers of ${shapeName}, ${name}: in a row as one by one`;
      const body = (fixture: Fixture) => {
        const model = new Model(fixture, shape, contexts);
        const single = model.run(() => fixture.backend.synchronize());
        const first = model.run(() => {});
        const again = model.run(() => {});
        // What is rounded otherwise before it is stored may become the next value of eight bits.
        const stored = shape.float8 ? 2 ** -3 : 0;
        expectNear(first, single, Math.max(stored, 8 * LAYERS * roundoff(fixture.dtype)));
        expectNear(again, first, 0);
      };
      // Backends that hold nothing back show no more by other layers.
      const isSmall = name === "three rows" && shapeName === "heads that are not rotated";
      addCase("attend", title, body, isSmall ? undefined : "grid");
    }
  }
}

class Model {
  readonly #residual: Tensor;
  readonly #input: Uint8Array;
  readonly #qkv: Tensor;
  readonly #attended: Tensor;
  readonly #activated: Tensor;
  readonly #batch: BatchTensors;
  readonly #spec: AttentionSpec;
  readonly #layers: readonly {
    readonly norms: readonly [Tensor, Tensor];
    readonly qkv: Weight;
    readonly output: Weight;
    readonly up: Weight;
    readonly down: Weight;
    readonly bias: Tensor | undefined;
    readonly cache: LayerCache;
  }[];

  constructor(
    private readonly fixture: Fixture,
    shape: LayerShape,
    contexts: readonly number[],
  ) {
    const { hidden, units, numHeads, numKvHeads, headDim, rotaryDim, normsValues } = shape;
    const { dtype } = fixture;
    const [rows, projected] = [contexts.length, (numHeads + 2 * numKvHeads) * headDim];
    const residual = fixture.state(fixture.random.normals(rows * hidden), [rows, hidden]);
    this.#residual = residual.tensor;
    this.#input = fixture.backend.download(residual.tensor);
    this.#qkv = fixture.output(dtype, [rows, projected]);
    this.#attended = fixture.output(dtype, [rows, numHeads * headDim]);
    this.#activated = fixture.output(dtype, [rows, units]);
    const ragged = raggedBatch(
      fixture,
      contexts.map((context) => [context, 1] as const),
      16,
    );
    this.#batch = batchTensors(fixture, ragged);
    const norm = (size: number) => fixture.normals([size], 0.3, 1).tensor;
    const angles = fixture.random.normals((1024 * rotaryDim) / 2);
    const cosSin = new Float32Array(1024 * rotaryDim);
    for (const [i, angle] of angles.entries()) {
      const [position, pair] = [Math.floor(i / (rotaryDim / 2)), i % (rotaryDim / 2)];
      cosSin[position * rotaryDim + pair] = Math.cos(angle);
      cosSin[position * rotaryDim + rotaryDim / 2 + pair] = Math.sin(angle);
    }
    this.#spec = {
      ...{ numHeads, numKvHeads, headDim, scale: headDim ** -0.5, window: shape.window },
      cosSin: rotaryDim > 0 ? fixture.input(cosSin, [1024, rotaryDim], "float32").tensor : undefined,
      headNorm: shape.headNorm
        ? { query: norm(headDim), key: norm(headDim), eps: EPS, normsValues }
        : undefined,
    };
    const weight = (n: number, k: number) => denseWeight(fixture.normals([n, k], 1 / Math.sqrt(k)).tensor);
    const paged = (scale = 1) => {
      const pool = [ragged.numBlocks, numKvHeads, 16, headDim];
      const values = fixture.random.normals(
        pool.reduce((a, b) => a * b),
        1 / scale,
      );
      return fixture.state(values, pool, shape.float8 ? "float8_e4m3" : dtype).tensor;
    };
    const cache = (layer: number): LayerCache => {
      const scales = shape.float8 ? SCALES[layer]! : undefined;
      return { keys: paged(scales?.keyScale), values: paged(scales?.valueScale), ...scales };
    };
    this.#layers = Array.from({ length: LAYERS }, (_, layer) => ({
      norms: [norm(hidden), norm(hidden)] as const,
      ...{ qkv: weight(projected, hidden), output: weight(hidden, numHeads * headDim) },
      ...{ up: weight(2 * units, hidden), down: weight(hidden, units) },
      bias: shape.bias ? fixture.normals([projected]).tensor : undefined,
      cache: cache(layer),
    }));
  }

  /** The residual stream after the layers, and what else they leave behind; `after` is called after each op. */
  run(after: () => void): readonly Float32Array[] {
    const { backend } = this.fixture;
    const [residual, qkv, attended, activated] = [this.#residual, this.#qkv, this.#attended, this.#activated];
    backend.upload(residual, this.#input);
    for (const { norms, bias, cache, ...weights } of this.#layers) {
      backend.linear(qkv, residual, weights.qkv, { norm: { weight: norms[0], eps: EPS }, bias });
      after();
      backend.attend(attended, qkv, cache, this.#batch, this.#spec);
      after();
      backend.linear(residual, attended, weights.output, { addTo: residual });
      after();
      const activation = { kind: "silu", gated: true } as const;
      backend.linear(activated, residual, weights.up, { norm: { weight: norms[1], eps: EPS }, activation });
      after();
      backend.linear(residual, activated, weights.down, { addTo: residual });
      after();
    }
    const { keys, values } = this.#layers.at(-1)!.cache;
    return [residual, attended, activated, keys, values].map((tensor) => this.fixture.readFloats(tensor));
  }
}

/** Within `tolerance` of the largest element of each tensor. */
function expectNear(
  actual: readonly Float32Array[],
  expected: readonly Float32Array[],
  tolerance: number,
): void {
  for (const [i, values] of actual.entries()) {
    const scale = expected[i]!.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
    for (const [j, value] of values.entries()) {
      if (!(Math.abs(value - expected[i]![j]!) <= tolerance * scale))
        throw new Error(`output ${i} [${j}] is ${value}, expected ${expected[i]![j]} ± ${tolerance * scale}`);
    }
  }
}
