import { afterEach, beforeEach, describe, expect, setDefaultTimeout, test } from "bun:test";
import type { BatchTensors, LayerCache, LinearFusion } from "../../../../src/backend/backend.ts";
import type { CudaBackend } from "../../../../src/backend/cuda/cuda-backend.ts";
import type { Tensor } from "../../../../src/backend/tensor.ts";
import { denseWeight, type Weight } from "../../../../src/backend/weight.ts";
import { InvariantError } from "../../../../src/base/errors.ts";
import { FakeMachine } from "./fake-machine.ts";
import { FakeOperands } from "./fake-operands.ts";
import { namedArguments } from "./kernel-signatures.ts";

setDefaultTimeout(300_000);

const [HIDDEN, HEADS, KV_HEADS, HEAD_DIM, UNITS] = [1024, 16, 8, 128, 3072];
const LAYER_BYTES = 12 * 8;
const MAX_LAYERS = 40;

let machine: FakeMachine;
let backend: CudaBackend;

beforeEach(() => {
  machine = new FakeMachine();
  machine.cuda.structBytes.set("decode_layers", MAX_LAYERS * LAYER_BYTES);
  backend = machine.backend();
});
afterEach(() => machine[Symbol.dispose]());

const operands = new FakeOperands();
const { bf16, i32, batch: batchOf } = operands;
const weight = (n: number, k: number) => denseWeight(bf16(n, k));

interface Layer {
  readonly qkv: Weight;
  readonly output: Weight;
  readonly up: Weight;
  readonly down: Weight;
  readonly norms: readonly [Tensor, Tensor];
  readonly bias: Tensor;
  readonly cache: LayerCache;
}

function layer(): Layer {
  const paged = () => bf16(100, KV_HEADS, 16, HEAD_DIM);
  return {
    qkv: weight((HEADS + 2 * KV_HEADS) * HEAD_DIM, HIDDEN),
    output: weight(HIDDEN, HEADS * HEAD_DIM),
    up: weight(2 * UNITS, HIDDEN),
    down: weight(HIDDEN, UNITS),
    norms: [bf16(HIDDEN), bf16(HIDDEN)],
    bias: bf16((HEADS + 2 * KV_HEADS) * HEAD_DIM),
    cache: { keys: paged(), values: paged() },
  };
}

/** How a layer's calls differ from the usual. */
interface Changes {
  readonly window?: number;
  /** The call, by its number, whose input is not what the one before has written. */
  readonly elsewhere?: number;
  /** The call that has a bias besides the first. */
  readonly biased?: number;
  readonly eps?: number;
  /** Of the second norm. */
  readonly upEps?: number;
  readonly step?: BatchTensors;
}

/** A model's memory, and its calls. */
function model(rows: number, batch = batchOf({ decodeRows: rows, prefill: [] })) {
  const memory = {
    residual: bf16(rows, HIDDEN),
    qkv: bf16(rows, (HEADS + 2 * KV_HEADS) * HEAD_DIM),
    attended: bf16(rows, HEADS * HEAD_DIM),
    activated: bf16(rows, UNITS),
  };
  const { residual, qkv, attended, activated } = memory;
  const spec = {
    ...{ numHeads: HEADS, numKvHeads: KV_HEADS, headDim: HEAD_DIM, scale: 0.5, window: 0 },
    ...{
      cosSin: operands.f32(2048, HEAD_DIM),
      headNorm: { query: bf16(128), key: bf16(128), eps: 2 ** -10 },
    },
  };
  const calls = (l: Layer, changes: Changes = {}) => {
    const { window = 0, elsewhere = -1, biased = -1, eps = 2 ** -20, upEps = eps, step = batch } = changes;
    const input = (call: number, of: Tensor) => (call === elsewhere ? bf16(...of.shape) : of);
    /** The fusion of a call, with a bias if it is the one that has one. */
    const fused = (call: number, { shape }: Weight, fusion: LinearFusion) =>
      call === biased ? { ...fusion, bias: bf16(shape[0]) } : fusion;
    const norm = (weight: Tensor, eps: number) => ({ weight, eps });
    const activation = { kind: "silu", gated: true } as const;
    return [
      () => backend.linear(qkv, input(0, residual), l.qkv, { norm: norm(l.norms[0], eps), bias: l.bias }),
      () => backend.attend(attended, input(1, qkv), l.cache, step, { ...spec, window }),
      () => backend.linear(residual, input(2, attended), l.output, { addTo: residual }),
      () =>
        backend.linear(
          activated,
          input(3, residual),
          l.up,
          fused(3, l.up, { norm: norm(l.norms[1], upEps), activation }),
        ),
      () => backend.linear(residual, input(4, activated), l.down, fused(4, l.down, { addTo: residual })),
    ];
  };
  return { ...memory, spec, batch, calls };
}

const inOrder = (...calls: readonly (() => void)[]) => {
  for (const call of calls) call();
};
/** The kernels that `run` launches, with what was held back; of attention the one that attends. */
function launched(run: () => void) {
  machine.cuda.launches.length = 0;
  run();
  backend.synchronize();
  return machine.cuda.launches.filter(({ entry }) => entry !== "rope_store");
}
const entries = (run: () => void) => launched(run).map(({ entry }) => entry);

describe("whole layers", () => {
  test.each([1, 8])("of %d rows are one launch", (rows) => {
    const layers = [layer(), layer(), layer()] as const;
    const { residual, attended, activated, spec, batch, calls } = model(rows);
    const all = launched(() => inOrder(...layers.flatMap((each) => calls(each))));
    expect(all).toMatchObject([
      { entry: "decode_layers", grid: [132, 1, 1], block: [384, 1, 1], dependent: true },
    ]);
    const { table: _table, exchange, partials, epochs, ...rest } = namedArguments(all[0]!);
    expect(rest).toEqual({
      ...{ residual: residual.address, attended: attended.address, activated: activated.address },
      ...{ cos_sin: spec.cosSin.address, slot_mapping: batch.slotMapping.address },
      ...{ block_tables: batch.blockTables.address, row_slots: batch.rowSlots.address },
      ...{ context_lens: batch.contextLens.address, tokens: rows, layers: 3, kv_heads: 8, max_blocks: 64 },
      ...{
        window: 0,
        activation: 0,
        scale_log2: Math.fround(0.5 * Math.LOG2E),
        eps: 2 ** -20,
        head_eps: 2 ** -10,
      },
    });
    const table = new BigUint64Array(all[0]!.args[0]!.slice().buffer);
    for (const [i, { qkv, output, up, down, norms, bias, cache }] of layers.entries()) {
      const { query, key } = spec.headNorm;
      const tensors = [qkv.data, norms[0], bias, query, key, cache.keys, cache.values, output.data];
      expect([...table.slice(i * 12, i * 12 + 12)].map(Number)).toEqual([
        ...tensors.map(({ address }) => address),
        ...[0, up.data.address, norms[1].address, down.data.address],
      ]);
    }
    for (const scratch of [exchange!, partials!, epochs!])
      expect(machine.cuda.bytesOf(scratch).every((byte) => byte === 0)).toBe(true);
    expect(machine.cuda.bytesOf(epochs!)).toHaveLength(132 * 4);
  });

  test("of more than a launch has arguments for are two", () => {
    const { calls } = model(1);
    const all = launched(() => inOrder(...Array.from({ length: 41 }, layer).flatMap((each) => calls(each))));
    expect(all.map((each) => namedArguments(each)["layers"])).toEqual([40, 1]);
  });

  test("with caches in eight bits have scales in the table, and room for fewer", () => {
    machine.cuda.structBytes.set("decode_layers", 36 * 13 * 8);
    const { calls } = model(1);
    const layers = Array.from({ length: 37 }, (_, i) => {
      const scales = { keyScale: 2 ** -i, valueScale: 3 * 2 ** -i };
      return { ...layer(), cache: operands.float8Cache(KV_HEADS, HEAD_DIM, scales) };
    });
    const all = launched(() => inOrder(...layers.flatMap((each) => calls(each))));
    expect(all.map((each) => namedArguments(each)["layers"])).toEqual([36, 1]);
    const bytes = all[0]!.args[0]!.slice().buffer;
    const [table, floats] = [new BigUint64Array(bytes), new Float32Array(bytes)];
    for (const [i, { cache, output }] of layers.slice(0, 36).entries()) {
      const at = i * 13;
      expect([table[at + 5], table[at + 6], table[at + 8]].map(Number)).toEqual([
        ...[cache.keys.address, cache.values.address, output.data.address],
      ]);
      expect([...floats.slice((at + 7) * 2, (at + 8) * 2)]).toEqual([2 ** -i, 3 * 2 ** -i]);
    }
    expect(namedArguments(all[0]!)["scale_log2"]).toBe(Math.fround(0.5 * Math.LOG2E));
  });

  test("share one memory, whatever their rows", () => {
    const [few, many] = [model(2), model(8)];
    const [a, b] = [few, many].map(({ calls }) =>
      namedArguments(launched(() => inOrder(...calls(layer())))[0]!),
    );
    for (const name of ["exchange", "partials", "epochs"]) expect(a![name]).toBe(b![name]!);
  });
});

describe("what does not go on is launched by itself, in order:", () => {
  const SINGLES = ["linear_small", "attention_decode", "linear_small", "linear_small", "linear_small"];

  test("a layer whose cache is in eight bits, after one whose is not", () => {
    const { calls } = model(1);
    const other = { ...layer(), cache: operands.float8Cache(KV_HEADS, HEAD_DIM) };
    expect(entries(() => inOrder(...calls(layer()), ...calls(other)))).toEqual(["decode_layers", ...SINGLES]);
  });

  test.each([1, 2, 3, 4])("the first %d calls of a layer", (count) => {
    const { calls } = model(1);
    expect(entries(() => inOrder(...calls(layer()).slice(0, count)))).toEqual(SINGLES.slice(0, count));
    const more = [...calls(layer()), ...calls(layer()).slice(0, count)];
    expect(entries(() => inOrder(...more))).toEqual(["decode_layers", ...SINGLES.slice(0, count)]);
  });

  test("calls out of order", () => {
    const { calls } = model(1);
    const [qkv, attend, output, up, down] = calls(layer());
    expect(entries(() => inOrder(qkv!, attend!, up!, output!, down!))).toEqual([
      "linear_small",
      "attention_decode",
      "linear_small",
      "linear_small",
      "linear_small",
    ]);
    expect(entries(() => inOrder(output!, up!, down!, qkv!, attend!))).toEqual([
      "linear_small",
      "linear_small",
      "linear_small",
      "linear_small",
      "attention_decode",
    ]);
    expect(entries(() => inOrder(qkv!, qkv!, attend!, output!, up!, down!))).toEqual([
      "linear_small",
      "decode_layers",
    ]);
  });

  test("a layer with another window, or of another batch, than the one before", () => {
    const { batch, calls } = model(1);
    const differing: Changes[] = [{ window: 100 }, { step: batchOf({ decodeRows: 1, prefill: [] }) }];
    for (const changes of differing) {
      const all = launched(() => inOrder(...calls(layer()), ...calls(layer(), changes)));
      expect(all.map(({ entry }) => entry)).toEqual(["decode_layers", ...SINGLES]);
      const { window = 0, step = batch } = changes;
      const attended = [all[0]!, all[2]!].map(namedArguments);
      expect(attended.map((given) => [given["window"], given["context_lens"]])).toEqual([
        [0, batch.contextLens.address],
        [window, step.contextLens.address],
      ]);
    }
  });

  test("layers of two epsilons, each in a launch", () => {
    const { calls } = model(1);
    const all = launched(() => inOrder(...calls(layer()), ...calls(layer(), { eps: 2 ** -10 })));
    expect(all.map((each) => namedArguments(each)["eps"])).toEqual([2 ** -20, 2 ** -10]);
  });

  test.each([3, 4])("a layer with a bias at call %d, which the kernel does not add", (biased) => {
    const { calls } = model(1);
    expect(entries(() => inOrder(...calls(layer(), { biased })))).toEqual(SINGLES);
  });

  test("a layer whose norms differ in more than weights", () => {
    const { calls } = model(1);
    expect(entries(() => inOrder(...calls(layer(), { upEps: 2 ** -10 })))).toEqual(SINGLES);
  });

  test.each([1, 2, 3, 4])("call %d of a layer with an input from elsewhere", (elsewhere) => {
    const { calls } = model(1);
    expect(entries(() => inOrder(...calls(layer(), { elsewhere })))).toEqual(SINGLES);
    const second = () => inOrder(...calls(layer()), ...calls(layer(), { elsewhere: 0 }));
    expect(entries(second)).toEqual(["decode_layers", ...SINGLES]);
  });

  test("prompts, also of one token, and more rows than there is room for", () => {
    const prompt = model(5, batchOf({ decodeRows: 0, prefill: [5] }));
    expect(entries(() => inOrder(...prompt.calls(layer())))).not.toContain("decode_layers");
    const single = model(1, batchOf({ decodeRows: 0, prefill: [1] }));
    expect(entries(() => inOrder(...single.calls(layer())))).not.toContain("decode_layers");
    expect(entries(() => inOrder(...model(9).calls(layer())))).not.toContain("decode_layers");
  });
});

describe("calls that are held back", () => {
  test("come before every other op, copy and wait, and before memory is freed", () => {
    const { residual, calls } = model(1);
    const [real, buffer] = [backend.empty("bfloat16", [1, HIDDEN]), backend.allocate(4)];
    const graph = backend.capture(() => backend.fill(real, 0));
    const others: Record<string, () => unknown> = {
      norm: () => backend.rmsNorm(bf16(1, HIDDEN), residual, bf16(HIDDEN), 1e-6),
      product: () => backend.linear(bf16(9, HIDDEN), bf16(9, 2048), weight(HIDDEN, 2048)),
      rows: () => backend.gatherRows(bf16(1, HIDDEN), residual, i32(1)),
      upload: () => backend.upload(real, new Uint16Array(HIDDEN)),
      download: () => backend.download(real),
      fill: () => backend.fill(real, 0),
      synchronize: () => backend.synchronize(),
      mark: () => backend.mark().dispose(),
      replay: () => graph.launch(),
      capture: () => backend.capture(() => {}).dispose(),
      tune: () => backend.tuneLinear([]),
      dispose: () => buffer.dispose(),
    };
    for (const [name, other] of Object.entries(others)) {
      machine.cuda.launches.length = 0;
      inOrder(...calls(layer()));
      expect([name, machine.cuda.launches.length]).toEqual([name, 0]);
      other();
      expect([name, machine.cuda.launches[0]?.entry]).toEqual([name, "decode_layers"]);
    }
    graph.dispose();
    real.buffer.dispose();
  });

  test("are in the graph that is captured, and not after a capture that fails", () => {
    const { calls } = model(1);
    const graph = backend.capture(() => inOrder(...calls(layer())));
    expect(entries(() => {})).toEqual([]);
    expect(entries(() => graph.launch())).toEqual(["decode_layers"]);
    graph.dispose();
    const failing = () => {
      calls(layer())[0]!();
      throw new Error("half way");
    };
    expect(() => backend.capture(failing)).toThrow("half way");
    expect(entries(() => {})).toEqual([]);
  });

  test("are checked when they are made", () => {
    const { residual, qkv } = model(1);
    const wrong = () =>
      backend.linear(qkv, residual, weight(4096, 512), { norm: { weight: bf16(HIDDEN), eps: 1 } });
    expect(wrong).toThrow(InvariantError);
    expect(entries(() => {})).toEqual([]);
  });
});

test.each([
  ["before Hopper", { computeCapability: [8, 9] }, {}],
  ["where rows must not depend on one another", {}, { batchInvariant: true }],
] as const)("there are no such launches %s", (_, gpu, options) => {
  using other = new FakeMachine(gpu);
  const usual = backend;
  backend = other.backend("bfloat16", options);
  try {
    inOrder(...model(1).calls(layer()));
    backend.synchronize();
  } finally {
    backend = usual;
  }
  const all = other.cuda.launches.map(({ entry }) => entry);
  expect(all).toContain("attention_decode");
  expect(all).not.toContain("decode_layers");
});
