import { afterAll, beforeAll, beforeEach, describe, expect, setDefaultTimeout, spyOn, test } from "bun:test";
import type { CapturedGraph, LinearFusion } from "../../../../src/backend/backend.ts";
import { floats, ints } from "../../../../src/backend/cpu/host-buffer.ts";
import { Operands } from "../../../../src/backend/simd/operands.ts";
import { compileKernels, Place, PlacedPool } from "../../../../src/backend/simd/place.ts";
import { SimdBackend } from "../../../../src/backend/simd/simd-backend.ts";
import { Tensor } from "../../../../src/backend/tensor.ts";
import { denseWeight, type Weight } from "../../../../src/backend/weight.ts";
import { InvariantError } from "../../../../src/base/errors.ts";
import { AttentionStep } from "../../../contract/attention-step.ts";
import { Fixture } from "../../../contract/fixture.ts";
import { groupedWeight } from "../../../contract/quantised-weights.ts";
import { batchTensors, type RowShape, raggedBatch } from "../../../contract/ragged-batch.ts";

setDefaultTimeout(300_000);

const [M, N, K] = [3, 40, 256];

let backend: SimdBackend;
let fixture: Fixture;

/** Bytes of a copy: few rows at a time. */
const COPY_BYTES = 2 ** 12;

beforeAll(() => {
  backend = new SimdBackend({ threads: 1, sparedBytes: 16 * COPY_BYTES });
  fixture = new Fixture(backend);
});
afterAll(() => {
  fixture.dispose();
  backend.dispose();
});

/** As the runner does it: again, where that has moved what it works in. */
function capture(enqueue: () => void): CapturedGraph {
  const graph = backend.capture!(enqueue);
  return graph.isStale!() ? capture(enqueue) : graph;
}

/** A tensor that tests write to. */
function tensor(...shape: number[]): Tensor {
  const size = shape.reduce((product, extent) => product * extent, 1);
  return fixture.state(fixture.random.normals(size), shape).tensor;
}

/** New numbers in all of them. */
function redraw(...tensors: readonly Tensor[]): void {
  for (const each of tensors) floats(each).set(fixture.random.normals(each.size));
}

/** A copy in memory of the host that kernels do not reach. */
function hostTensor(source: Tensor): Tensor {
  const copy = new Tensor(backend.allocateShared(source.byteLength), source.dtype, source.shape);
  floats(copy).set(floats(source));
  return copy;
}

/** A launch of `run`, captured, leaves in `out` what a call does, whatever `inputs` hold by then. */
function expectSame(run: () => void, out: Tensor, inputs: readonly Tensor[]): void {
  floats(out).fill(7);
  const graph = capture(run);
  expect([...floats(out)]).toEqual(Array(out.size).fill(7));
  for (let i = 0; i < 2; i++) {
    redraw(...inputs);
    floats(out).fill(7);
    run();
    const expected = [...floats(out)];
    floats(out).fill(7);
    graph.launch();
    expect([...floats(out)]).toEqual(expected);
  }
  graph.dispose();
}

interface Fusion extends LinearFusion {
  readonly norm: NonNullable<LinearFusion["norm"]>;
  readonly bias: Tensor;
  readonly addTo: Tensor;
}

const WEIGHTS: Readonly<Record<string, () => Weight>> = {
  bfloat16: () => denseWeight(fixture.input(fixture.random.normals(N * K), [N, K], "bfloat16").tensor),
  "4 bits": () => groupedWeight(fixture, [N, K], { bits: 4, groupSize: 128, zeros: true }).weight,
};

describe.each(Object.keys(WEIGHTS))("a captured product by %s", (name) => {
  let weight: Weight;
  let x: Tensor;
  let out: Tensor;
  let fusion: Fusion;

  beforeEach(() => {
    weight = WEIGHTS[name]!();
    x = tensor(M, K);
    out = fixture.output("float32", [M, N]);
    fusion = { norm: { weight: tensor(K), eps: 1e-6 }, bias: tensor(N), addTo: tensor(M, N) };
  });

  test("is of what its operands hold when it is launched", () => {
    const { norm, bias, addTo } = fusion;
    const others: readonly LinearFusion[] = [{}, fusion, { norm }, { bias }, { addTo }];
    for (const around of others)
      expectSame(() => backend.linear(out, x, weight, around), out, [x, norm.weight, bias, addTo]);
  });

  test("with an activation that kernels have, or do not have, too", () => {
    for (const kind of ["silu", "gelu_tanh", "gelu"] as const) {
      expectSame(() => backend.linear(out, x, weight, { activation: { kind, gated: false } }), out, [x]);
      const gated = fixture.output("float32", [M, N / 2]);
      expectSame(() => backend.linear(gated, x, weight, { activation: { kind, gated: true } }), gated, [x]);
    }
  });

  test("copies operands that lie elsewhere for each launch, and results back", () => {
    const elsewhere = { ...fusion, bias: hostTensor(fusion.bias), addTo: hostTensor(fusion.addTo) };
    const { bias, addTo } = elsewhere;
    expectSame(() => backend.linear(out, x, weight, elsewhere), out, [x, bias, addTo]);
    const far = hostTensor(out);
    expectSame(() => backend.linear(far, x, weight, fusion), far, [x]);
  });

  test("is not in the way of larger ones that come between", () => {
    const run = () => backend.linear(out, x, weight, fusion);
    const graph = capture(run);
    const many = 400 * M;
    const larger = fixture.output("float32", [many, N]);
    backend.linear(larger, tensor(many, K), weight, { norm: fusion.norm });
    if (graph.isStale!()) graph.dispose();
    const current = graph.isStale!() ? capture(run) : graph;
    // What lies where scratch memory was must stay.
    const claimed = tensor(M, K);
    const before = [...floats(claimed)];
    run();
    const expected = [...floats(out)];
    current.launch();
    expect([...floats(out)]).toEqual(expected);
    expect([...floats(claimed)]).toEqual(before);
  });
});

test("graphs are stale when one has moved the memory that they work in, that one too, until it is captured again", () => {
  const own = new SimdBackend({ threads: 1 });
  const of = new Fixture(own);
  const weight = groupedWeight(of, [N, K], { bits: 4, groupSize: 128, zeros: true }).weight;
  const norm = { weight: of.normals([K]).tensor, eps: 1e-6 };
  const ofRows = (rows: number) => {
    const [x, out] = [of.normals([rows, K]).tensor, of.output("float32", [rows, N])];
    return () => own.capture!(() => own.linear(out, x, weight, { norm }));
  };
  const [small, large] = [ofRows(1), ofRows(3000)];
  const first = small();
  // It took memory where there was none.
  expect(first.isStale!()).toBe(false);
  const graphs = [first, large(), large(), small()];
  expect(graphs.map((graph) => graph.isStale!())).toEqual([true, true, false, false]);
  of.dispose();
  own.dispose();
});

test("a product may outgrow the memory of one before it in the same step", () => {
  const weight = WEIGHTS["4 bits"]!();
  const norm = { weight: tensor(K), eps: 1e-6 };
  const [few, many] = [tensor(2, K), tensor(5000, K)];
  const [first, last] = [fixture.output("float32", [2, N]), fixture.output("float32", [5000, N])];
  expectSame(
    () => {
      backend.linear(first, few, weight, { norm });
      backend.linear(last, many, weight, { norm });
    },
    first,
    [few],
  );
});

test("the scratch memory of captured tasks is not that of others", () => {
  const place = new Place(compileKernels(), 2 ** 24, 1);
  const [captured, others] = [new Operands(place, 2 ** 20, true), new Operands(place, 2 ** 20)];
  const address = captured.scratch("inputs", 1000);
  const { scratchMoves } = place;
  expect(captured.scratch("inputs", 900)).toBe(address);
  expect(place.scratchMoves).toBe(scratchMoves);
  for (const bytes of [900, 9000, 90_000]) {
    const other = others.scratch("inputs", bytes);
    expect(other + bytes <= address || address + 1000 <= other).toBe(true);
  }
  expect(captured.scratch("inputs", 1000)).toBe(address);
});

test("norms, caps and ops of the host keep their order among products", () => {
  const weight = WEIGHTS["bfloat16"]!();
  const [x, hidden, normed, out] = [tensor(M, K), tensor(M, K), tensor(M, K), tensor(M, N)];
  const [gamma, beta] = [tensor(K), tensor(K)];
  const rows = fixture.ints([2, 0, 1]);
  const [index, zero] = [fixture.ints([5]), fixture.ints([0])];
  expectSame(
    () => {
      backend.gatherRows(hidden, x, rows);
      backend.rmsNorm(normed, hidden, gamma, 1e-6, hidden);
      backend.activation(normed, normed, "silu");
      backend.layerNorm(hidden, normed, gamma, beta, 1e-5);
      backend.linear(out, hidden, weight);
      backend.capLogits(out, 3);
      backend.scatter(out.reshape(M * N), index, zero);
    },
    out,
    [x, gamma, beta],
  );
});

describe("captured attention", () => {
  const shape = {
    ...{ numHeads: 4, numKvHeads: 2, headDim: 64, rotaryDim: 64, blockSize: 16 },
    ...{ window: 0, headNorm: true },
  };

  /** Two layers' attention of rows that decode. */
  function decodes(rows: readonly RowShape[], window = 0) {
    const batch = raggedBatch(fixture, rows, shape.blockSize);
    const layers = [0, window].map((own) => new AttentionStep(fixture, batch, { ...shape, window: own }));
    const tensors = { ...batchTensors(fixture, batch), decodeRows: rows.length };
    const run = () => {
      for (const { out, qkv, cache, spec } of layers) backend.attend(out, qkv.tensor, cache, tensors, spec);
    };
    const projections = layers.map(({ qkv }) => backend.download(qkv.tensor));
    const restore = () => {
      for (const [i, { qkv }] of layers.entries()) backend.upload(qkv.tensor, projections[i]!);
    };
    const results = () => layers.flatMap(({ out }) => [...floats(out)]);
    return { tensors, layers, run, restore, results };
  }

  test.each([0, 5])("is of the contexts that rows have when it is launched, windows of %d", (window) => {
    const { tensors, layers, run, restore, results } = decodes(
      [
        [40, 1],
        [200, 1],
        [17, 1],
      ],
      window,
    );
    const graph = capture(run);
    graph.launch();
    for (const layer of layers) layer.check();
    // Shorter contexts of other slots.
    const [positions, contextLens] = [ints(tensors.positions), ints(tensors.contextLens)];
    ints(tensors.rowSlots).reverse();
    ints(tensors.slotMapping).reverse();
    for (const [row, length] of [9, 150, 33].entries()) {
      contextLens[row] = length;
      positions[row] = length - 1;
    }
    for (const { cache } of layers)
      for (const memory of [cache.keys, cache.values])
        for (const [i, value] of floats(memory).entries()) if (Number.isNaN(value)) floats(memory)[i] = 0;
    restore();
    run();
    const expected = results();
    restore();
    graph.launch();
    expect(results()).toEqual(expected);
  });

  test("refuses what a call refuses, each time it is launched", () => {
    const { tensors, run, restore } = decodes([
      [40, 1],
      [20, 1],
    ]);
    const graph = capture(run);
    const [positions, tables] = [ints(tensors.positions), ints(tensors.blockTables)];
    const refusals: readonly (readonly [Int32Array, number])[] = [
      [positions, 1000],
      [ints(tensors.slotMapping), 2 ** 20],
      [ints(tensors.contextLens), 2 ** 20],
      [tables.subarray(ints(tensors.rowSlots)[1]! * tensors.blockTables.dim(1)), 2 ** 30],
    ];
    for (const [memory, wrong] of refusals) {
      const right = memory[0]!;
      memory[0] = wrong;
      expect(run).toThrow(InvariantError);
      expect(() => graph.launch()).toThrow(InvariantError);
      memory[0] = right;
      restore();
      graph.launch();
    }
  });

  test("checks the contexts of a layer that sees others than the layer before it", () => {
    const rows: readonly RowShape[] = [
      [40, 1],
      [20, 1],
    ];
    const batch = raggedBatch(fixture, rows, shape.blockSize);
    const tensors = { ...batchTensors(fixture, batch), decodeRows: rows.length };
    const { out, qkv, cache, spec } = new AttentionStep(fixture, batch, { ...shape, window: 5 });
    const { keys, values } = cache;
    const others = [
      [{ ...spec, window: 0 }, cache],
      [{ ...spec, cosSin: spec.cosSin!.rows(0, 30) }, cache],
      [{ ...spec, queryScales: tensor(30) }, cache],
      [spec, { keys: keys.rows(0, 1), values: values.rows(0, 1) }],
    ] as const;
    const table = ints(tensors.blockTables).subarray(ints(tensors.rowSlots)[0]! * tensors.blockTables.dim(1));
    const attend = (own: typeof spec, into: typeof cache) =>
      backend.attend(out, qkv.tensor, into, tensors, own);
    for (const [other, smaller] of others) {
      // What a window has left behind, only a layer without one sees.
      const right = table[0]!;
      if (other.window === 0) table[0] = 2 ** 30;
      expect(() => attend(spec, cache)).not.toThrow();
      expect(() => attend(other, smaller)).toThrow(InvariantError);
      const graph = capture(() => {
        attend(spec, cache);
        attend(other, smaller);
      });
      expect(() => graph.launch()).toThrow(InvariantError);
      table[0] = right;
    }
  });

  test("finds block tables where they lie", () => {
    const { tensors, layers, restore } = decodes([
      [40, 1],
      [200, 1],
    ]);
    const far = new Tensor(
      backend.allocateShared(tensors.blockTables.byteLength),
      "int32",
      tensors.blockTables.shape,
    );
    ints(far).set(ints(tensors.blockTables));
    const { out, qkv, cache, spec } = layers[0]!;
    const elsewhere = { ...tensors, blockTables: far };
    const run = () => backend.attend(out, qkv.tensor, cache, elsewhere, spec);
    run();
    layers[0]!.check();
    const expected = [...floats(out)];
    const graph = capture(run);
    floats(out).fill(7);
    restore();
    graph.launch();
    expect([...floats(out)]).toEqual(expected);
  });

  test("of prompts beside decodes is cut as the batch is by then", () => {
    const batch = raggedBatch(
      fixture,
      [
        [40, 1],
        [20, 9],
      ],
      shape.blockSize,
    );
    const step = new AttentionStep(fixture, batch, shape);
    const tensors = batchTensors(fixture, batch);
    capture(() => backend.attend(step.out, step.qkv.tensor, step.cache, tensors, step.spec)).launch();
    step.check();
  });

  test("copies what lies elsewhere for each launch, some rows at a time", () => {
    const { layers, tensors } = decodes([40, 200, 17, 33, 5].map((length) => [length, 1]));
    const { out, qkv, cache, spec } = layers[0]!;
    const original = floats(qkv.tensor).slice();
    expect(original.byteLength).toBeGreaterThan(2 * COPY_BYTES);
    const [far, projections] = [hostTensor(out), hostTensor(qkv.tensor)];
    const run = () => backend.attend(far, projections, cache, tensors, spec);
    run();
    const expected = [...floats(far)];
    const graph = capture(run);
    for (let i = 0; i < 2; i++) {
      floats(projections).set(original);
      floats(far).fill(7);
      graph.launch();
      expect([...floats(far)]).toEqual(expected);
    }
  });

  describe("in pools", () => {
    const holds = spyOn(PlacedPool.prototype, "holds");
    beforeEach(() => holds.mockClear());
    afterAll(() => holds.mockRestore());

    /** A layer's attention of 40 and 24 tokens, its cache in a pool. */
    function pooledDecodes() {
      const { tensors, layers, restore } = decodes([
        [40, 1],
        [24, 1],
      ]);
      const { out, qkv, cache, spec } = layers[0]!;
      const buffer = backend.allocate(2 * cache.keys.byteLength, true);
      const part = (offset: number) => new Tensor(buffer, "float32", cache.keys.shape, offset);
      const pooled = { keys: part(0), values: part(cache.keys.byteLength) };
      floats(pooled.keys).fill(0);
      floats(pooled.values).fill(0);
      const run = () => backend.attend(out, qkv.tensor, pooled, tensors, spec);
      return { tensors, restore, run };
    }

    test("tells them how much of them is in use", () => {
      const { tensors, restore, run } = pooledDecodes();
      const graph = capture(run);
      const tokenBytes = 2 * 4 * shape.numKvHeads * shape.headDim;
      restore();
      graph.launch();
      expect(holds.mock.lastCall).toEqual([64 * tokenBytes]);
      ints(tensors.contextLens)[0] = 30;
      restore();
      graph.launch();
      expect(holds.mock.lastCall).toEqual([54 * tokenBytes]);
    });

    test("tells one that layers share once in a launch", () => {
      const { run } = pooledDecodes();
      const graph = capture(() => {
        run();
        run();
      });
      holds.mockClear();
      graph.launch();
      expect(holds).toHaveBeenCalledTimes(1);
    });
  });
});

test("a graph that was disposed of is not launched", () => {
  const [out, x] = [tensor(M, K), tensor(M, K)];
  const graph = capture(() => backend.rmsNorm(out, x, tensor(K), 1e-6));
  graph.dispose();
  graph.dispose();
  expect(() => graph.launch()).toThrow(InvariantError);
});

test("what fails while a step is captured leaves the backend computing", () => {
  const [x, out] = [tensor(M, K), tensor(M, K)];
  expect(() =>
    capture(() => {
      backend.activation(out, x, "silu");
      throw new Error("no");
    }),
  ).toThrow("no");
  const before = [...floats(out)];
  backend.activation(out, x, "silu");
  expect([...floats(out)]).not.toEqual(before);
});

test("ranks capture nothing", () => {
  const communicator = { shard: { rank: 0, size: 2 } } as never;
  const ranked = new SimdBackend({ threads: 1, communicator });
  expect(ranked.capture).toBeUndefined();
  ranked.dispose();
});
