import { afterEach, describe, expect, setDefaultTimeout, test } from "bun:test";
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { createSHA256 } from "hash-wasm";
import type { CudaBackend } from "../../../../src/backend/cuda/cuda-backend.ts";
import type { Tensor } from "../../../../src/backend/tensor.ts";
import { denseWeight } from "../../../../src/backend/weight.ts";
import { type EngineOptions, resolveEngineConfig } from "../../../../src/base/config.ts";
import type { ResolvedSamplingParams } from "../../../../src/base/sampling-params.ts";
import { Context } from "../../../../src/cuda/context.ts";
import { Device } from "../../../../src/cuda/device.ts";
import { Engine } from "../../../../src/engine/engine.ts";
import { loadPart } from "../../../../src/llm/load-part.ts";
import { readModelConfig } from "../../../../src/models/config.ts";
import type { Exchange } from "../../../../src/ranks/exchange.ts";
import { FakeNccl } from "../../cuda/fake-nccl.ts";
import { add, drain, makeRequest, range } from "../../engine/helpers.ts";
import { FakeMachine } from "./fake-machine.ts";
import { FakeOperands } from "./fake-operands.ts";
import { namedArguments } from "./kernel-signatures.ts";

setDefaultTimeout(300_000);

/** Rank 1 of 2 is this one. Rank 0 says the same, but for its GPU, and where its memory is. */
class EchoExchange {
  readonly shard = { rank: 1, size: 2 };
  readonly hasFailed = false;
  /** Times that all ranks came together. */
  meetings = 0;
  #asked = 0;

  constructor(private readonly otherContext: number) {}

  share(own: Uint8Array, receive: (pieces: readonly Uint8Array[], offset: number) => void): void {
    this.meetings++;
    receive([this.#other(own), own], 0);
  }

  minimum(value: number): number {
    this.meetings++;
    return value;
  }

  waitUntil(isDone: () => boolean): void {
    expect(isDone()).toBe(true);
  }

  #other(own: Uint8Array): Uint8Array {
    const numbers = new Float64Array(own.slice().buffer);
    if (this.#asked++ === 0) numbers[0]!++;
    else if (numbers.length === 2) numbers.set([this.otherContext, 2 ** 45]);
    return new Uint8Array(numbers.buffer);
  }
}

let machine: FakeMachine;
let nccl: FakeNccl;
let exchange: EchoExchange;
let other: Context;
let backend: CudaBackend;

/** A machine of that kind, and this rank's backend. */
function open(
  computeCapability: readonly [number, number] = [9, 0],
  options: { batchInvariant?: boolean } = {},
) {
  machine = new FakeMachine({ computeCapability, memory: 2 ** 30 });
  for (const entry of ["reduce_add", "add_copied", "gather_words"]) machine.cuda.structBytes.set(entry, 64);
  machine.cuda.others = (_, count) => new Uint8Array(count);
  nccl = new FakeNccl();
  nccl.isAlone = true;
  other = Context.retain(machine.cuda.api, Device.open(machine.cuda.api, 0));
  exchange = new EchoExchange(other.value);
  backend = machine.backend("bfloat16", { ...options, ranks: { exchange, openNccl: () => nccl.api } });
}

afterEach(() => {
  backend.dispose();
  other.dispose();
  expect(machine.leftovers).toEqual([]);
  expect([...nccl.live]).toEqual([]);
  machine[Symbol.dispose]();
});

function launches(run: () => void) {
  machine.cuda.launches.length = 0;
  run();
  return [...machine.cuda.launches];
}

describe("tokens are drawn from candidates that ranks exchange", () => {
  const { bf16, f32, i32, slotTables, sampleRows } = new FakeOperands();
  const address = (tensor: Tensor) => tensor.address;
  const [VOCAB, WIDTH] = [4096, 1024];
  const draw = (rows: number, vocab = VOCAB) => {
    const [slots, samples, out] = [slotTables(vocab), sampleRows(rows), i32(rows)];
    const weight = denseWeight(bf16(vocab / 2, WIDTH));
    const head = { weight, norm: { weight: bf16(WIDTH), eps: 1e-6 }, firstToken: vocab / 2 };
    const [x, logits] = [bf16(rows, WIDTH), f32(rows, vocab)];
    const all = launches(() => backend.drawTokens(out, x, head, logits, samples, slots));
    const last = namedArguments(all.at(-1)!);
    return { all, entries: all.map(({ entry }) => entry), last, out, logits };
  };
  /** A key of each rank for each row: two words, beside each other. */
  const expectExchange = ({ all, last, out }: ReturnType<typeof draw>, rows: number) => {
    const [best, gathering] = all.slice(-3).map(namedArguments);
    expect(gathering).toMatchObject({ part: best!["best"]!, width: 2, words: 2 * rows, first: 0 });
    expect(last).toMatchObject({ keys: gathering!["out"]!, parts: 2, rows, out: address(out) });
  };

  test.each([1, 8])("by few rows: %d", (rows) => {
    open();
    backend.meetRanks();
    const drawn = draw(rows);
    expect(drawn.entries).toEqual(["draw_small", "best_of_keys", "gather_words", "draw_rows"]);
    expect(namedArguments(drawn.all[0]!)).toMatchObject({ vocab: VOCAB / 2, first_token: VOCAB / 2 });
    const { keys, parts } = namedArguments(drawn.all[1]!);
    expect([keys, parts]).toEqual([namedArguments(drawn.all[0]!)["keys"], drawn.all[0]!.grid[0]!]);
    expectExchange(drawn, rows);
  });

  test("by more, of a part that is no whole number of tiles", () => {
    open();
    backend.meetRanks();
    const vocab = 2 * (4096 + 16);
    const drawn = draw(200, vocab);
    const entries = ["rms_norm", "draw_wgmma", "best_of_keys", "gather_words", "draw_rows"];
    expect(drawn.entries).toEqual(entries);
    const { tiles, ...told } = namedArguments(drawn.all[1]!);
    expect(told).toMatchObject({ vocab: vocab / 2, first_token: vocab / 2 });
    expect(tiles).toBe(33);
    expectExchange(drawn, 200);
  });

  test("from logits elsewhere", () => {
    open([8, 0]);
    backend.meetRanks();
    const drawn = draw(40);
    const entries = ["rms_norm", "sample_tiles", "best_of_tiles", "gather_words", "draw_rows"];
    expect(drawn.entries).toEqual(entries);
    const [, tiles, best] = drawn.all.map(namedArguments);
    expect(tiles).toMatchObject({ vocab: VOCAB / 2, first_token: VOCAB / 2, tiles: 4 });
    expect(best).toMatchObject({ stats: tiles!["stats"]!, tiles: 4, rows: 40 });
    expectExchange(drawn, 40);
  });

  test("or from all logits, where a rank's part cuts what has its noise in common", () => {
    open([8, 0]);
    backend.meetRanks();
    const { entries, logits, all } = draw(3, 2 * 2049);
    expect(entries).toEqual(["rms_norm", "gather_words", "sample_tiles", "sample_rows"]);
    const [, gathering, tiles] = all.map(namedArguments);
    expect(gathering).toMatchObject({ out: address(logits), width: 2049, words: 3 * 2049 });
    expect(tiles).toMatchObject({ logits: address(logits), vocab: 2 * 2049, first_token: 0 });
  });
});

const SHAPE = {
  ...{ model_type: "qwen3", architectures: ["Qwen3ForCausalLM"], vocab_size: 4128, num_hidden_layers: 2 },
  ...{ hidden_size: 512, intermediate_size: 2048, rms_norm_eps: 1e-6, hidden_act: "silu" },
  ...{ num_attention_heads: 8, num_key_value_heads: 4, head_dim: 64, max_position_embeddings: 4096 },
  ...{ torch_dtype: "bfloat16" },
};
const OPTIONS: EngineOptions = {
  ...{ device: "cuda", loadFormat: "dummy", skipTokenizerInit: true, maxNumSeqs: 20, tensorParallelSize: 2 },
  ...{ maxNumBatchedTokens: 512, maxModelLen: 1024, kvCacheMemoryBytes: 2 ** 24 },
};
const ASKED: readonly Partial<ResolvedSamplingParams>[] = [
  {},
  { temperature: 1 },
  { temperature: 0.7, topK: 20, topP: 0.9, minP: 0.1 },
  { logprobs: 3, promptLogprobs: 2 },
];
/** Kernels of the exchange with other ranks. */
const EXCHANGING = ["reduce_add", "gather_words"];

describe("a rank of a model", () => {
  /** Loads this rank's part, and an engine that runs it as if its runner were all ranks'. */
  async function load(fields: object = {}, options: EngineOptions = {}) {
    const folder = join(machine.cacheFolder, "model");
    mkdirSync(folder, { recursive: true });
    writeFileSync(join(folder, "config.json"), JSON.stringify({ ...SHAPE, ...fields }));
    for (const [entry, rowsOf] of [
      ["sample_rows", ({ grid }: { grid: readonly number[] }) => grid[0]!],
      ["draw_rows", (launch: Parameters<typeof namedArguments>[0]) => namedArguments(launch)["rows"]!],
    ] as const) {
      machine.cuda.effects.set(entry, (launch) => {
        const out = machine.cuda.bytesOf(namedArguments(launch)["out"]!);
        new Int32Array(out.buffer).fill(7, 0, rowsOf(launch));
      });
    }
    const config = resolveEngineConfig({ ...OPTIONS, ...options });
    const source = { folder, config, modelConfig: readModelConfig(folder), shard: exchange.shard };
    const part = await loadPart(source, backend, () => {});
    const compiled = machine.nvrtc.requests.length;
    machine.cuda.launches.length = 0;
    const runner = part.build(exchange as unknown as Exchange);
    const engine = new Engine({
      ...{ ...config, runner, overlap: true, eosTokenIds: [], hasher: await createSHA256() },
      ...{ clock: () => 0, nextSeed: () => 1n },
    });
    return { engine, compiled };
  }

  test.each([
    ["of a Hopper", [9, 0], {}],
    ["of an Ampere", [8, 0], {}],
    ["whose rows must not depend on one another", [9, 0], { batchInvariant: true }],
  ] as const)("%s compiles and allocates nothing once it has started", async (_name, capability, options) => {
    open(capability, options);
    const { engine, compiled } = await load({}, options);
    const counts = () => [machine.cuda.count("cuMemAlloc_v2"), machine.nvrtc.requests.length];
    const before = counts();
    for (const length of [1, 20, 20, 200, 200, 700])
      for (const asked of ASKED) {
        add(engine, makeRequest(range(0, length), { maxTokens: 3, ...asked }));
        drain(engine);
      }
    for (let i = 0; i < 20; i++) add(engine, makeRequest([i, 1, 2], { maxTokens: 2 + i, ...ASKED[i % 4] }));
    drain(engine);
    expect(counts()).toEqual(before);
    expect(machine.nvrtc.requests.length).toBe(compiled);
    engine.dispose();
  });

  test("sums over the ranks in every layer, and in no launch of whole layers", async () => {
    open();
    const { engine } = await load();
    add(engine, makeRequest(range(0, 5), { maxTokens: 3 }));
    drain(engine);
    const entries = machine.cuda.launches.map(({ entry }) => entry.replace(/^linear_.*/, "product"));
    const step = entries.slice(entries.lastIndexOf("prepare_batch"));
    const layer = [
      "product",
      "attention_decode",
      "product",
      "reduce_add",
      "product",
      "product",
      "reduce_add",
    ];
    const draw = ["draw_small", "best_of_keys", "gather_words", "draw_rows", "post"];
    expect(step).toEqual(["prepare_batch", "gather_rows", "reduce_add", ...layer, ...layer, ...draw]);
    expect(entries).not.toContain("decode_layers");
    engine.dispose();
  });

  test("waits for no other while it rehearses, and captures when all have nothing left to do", async () => {
    open();
    const { calls } = machine.cuda;
    const { engine } = await load();
    const entries = machine.cuda.launches.map(({ entry }) => entry);
    const rehearsed = entries.slice(entries.lastIndexOf("rotary_table"), entries.indexOf("draw_small"));
    expect(rehearsed.length).toBeGreaterThan(10);
    expect(rehearsed.filter((entry) => EXCHANGING.includes(entry))).toEqual([]);
    const graphs = machine.cuda.count("cuGraphInstantiateWithFlags");
    const before = exchange.meetings;
    add(engine, makeRequest(range(0, 5), { maxTokens: 3, topK: 3, temperature: 1 }));
    drain(engine);
    expect(machine.cuda.count("cuGraphInstantiateWithFlags")).toBe(graphs + 1);
    expect(exchange.meetings).toBe(before + 3);
    const begin = calls.lastIndexOf("cuStreamBeginCapture_v2");
    expect(calls.slice(begin - 2, begin)).toEqual(["cuEventRecord", "cuEventQuery"]);
    engine.dispose();
  });
});
