import { afterEach, beforeEach, describe, expect, setDefaultTimeout, test } from "bun:test";
import { mkdirSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import type { CudaBackend } from "../../../../src/backend/cuda/cuda-backend.ts";
import type { CudaBackendOptions } from "../../../../src/backend/cuda/cuda-backend-options.ts";
import { type EngineOptions, resolveEngineConfig } from "../../../../src/base/config.ts";
import { EngineDeadError, ModelNotFoundError, RequestFailedError } from "../../../../src/base/errors.ts";
import type { CudaApi } from "../../../../src/cuda/driver-symbols.ts";
import { CudaError, CudaOutOfMemoryError, NvrtcError } from "../../../../src/cuda/errors.ts";
import { loadModel } from "../../../../src/llm/load-model.ts";
import { Outcomes } from "../../../simulation/outcomes.ts";
import { thrown } from "../../../support.ts";
import { add, drain, makeRequest, range } from "../../engine/helpers.ts";
import { FakeMachine } from "./fake-machine.ts";
import { namedArguments } from "./kernel-signatures.ts";

setDefaultTimeout(300_000);

const CONFIG = {
  ...{ architectures: ["LlamaForCausalLM"], model_type: "llama", vocab_size: 200, hidden_size: 64 },
  ...{
    intermediate_size: 96,
    num_hidden_layers: 2,
    num_attention_heads: 4,
    num_key_value_heads: 2,
    head_dim: 32,
  },
  ...{ max_position_embeddings: 128, rms_norm_eps: 1e-6, hidden_act: "silu", torch_dtype: "bfloat16" },
};
/** Hopper's own kernels take these. */
const HOPPER_SIZES = {
  ...{ hidden_size: 1024, intermediate_size: 1024, head_dim: 128, num_attention_heads: 8 },
  ...{ vocab_size: 256, max_position_embeddings: 4096 },
};
const OPTIONS: EngineOptions = {
  ...{ device: "cuda", loadFormat: "dummy", skipTokenizerInit: true },
  ...{ maxNumSeqs: 4, maxNumBatchedTokens: 32, maxModelLen: 64, kvCacheMemoryBytes: 2 ** 20 },
};

let machine: FakeMachine;
let folder: string;

beforeEach(() => {
  machine = new FakeMachine();
  folder = join(machine.cacheFolder, "model");
  mkdirSync(folder, { recursive: true });
  writeFileSync(join(folder, "config.json"), JSON.stringify(CONFIG));
  const wordsAt = (address: number) => new Int32Array(machine.cuda.bytesOf(address).buffer);
  // Every token drawn is 7, and gets to the host; without this, it would be what the memory happens to hold.
  machine.cuda.effects.set("sample_rows", (launch) => {
    wordsAt(namedArguments(launch)["out"]!).fill(7, 0, launch.grid[0]);
  });
  machine.cuda.effects.set("draw_rows", (launch) => {
    const { out, rows } = namedArguments(launch);
    wordsAt(out!).fill(7, 0, rows);
  });
  machine.cuda.effects.set("prepare_batch", (launch) => {
    wordsAt(namedArguments(launch)["steps"]!)[0]!++;
  });
  machine.cuda.effects.set("post", (launch) => {
    const { outbox, results, steps, areas, area_words, count } = namedArguments(launch);
    const area = (wordsAt(steps!)[0]! - 1) & (areas! - 1);
    wordsAt(outbox!).set(wordsAt(results!).subarray(0, count), area * area_words!);
  });
});

afterEach(() => {
  expect(machine.leftovers).toEqual([]);
  machine[Symbol.dispose]();
});

const load = (options: EngineOptions = {}, openBackend = () => machine.backend()) =>
  loadModel(folder, resolveEngineConfig({ ...OPTIONS, ...options }), { openBackend });

async function rejection(promise: Promise<unknown>): Promise<unknown> {
  return promise.then(
    () => undefined,
    (error: unknown) => error,
  );
}

describe("a model that loads", () => {
  test("needs no compiler beyond what was prepared while the weights loaded", async () => {
    let backend: CudaBackend | undefined;
    let prepared = 0;
    const loaded = await load({}, () => {
      backend = machine.backend();
      const prepare = backend.prepare.bind(backend);
      backend.prepare = (shape) =>
        prepare(shape).then(() => {
          prepared = machine.nvrtc.requests.length;
        });
      return backend;
    });
    expect(prepared).toBe(18);
    add(loaded.engine, makeRequest(range(0, 40), { maxTokens: 5, logprobs: 3 }));
    drain(loaded.engine);
    expect(machine.nvrtc.requests).toHaveLength(prepared);
    loaded.dispose();
  });

  test("captures steps that only launch: nothing is allocated, uploaded or waited for", async () => {
    const loaded = await load();
    const { calls } = machine.cuda;
    const begin = calls.lastIndexOf("cuGraphInstantiateWithFlags");
    expect(begin).toBeGreaterThan(0);
    const captured: string[] = [];
    let capturing = false;
    for (const call of calls) {
      if (call === "cuStreamEndCapture") capturing = false;
      if (capturing) captured.push(call);
      if (call === "cuStreamBeginCapture_v2") capturing = true;
    }
    expect([...new Set(captured)]).toEqual(["cuLaunchKernelEx"]);
    expect(machine.cuda.alive("graph")).toEqual([]);
    expect(machine.cuda.alive("graph exec")).toHaveLength(3);
    loaded.dispose();
  });

  test("a captured layer launches nine times: five kernels and four products", async () => {
    const loaded = await load();
    // The graph of one row was captured last: two layers, and the LM head.
    const products = machine.cublas.matmuls.filter(({ shape }) => shape[0] === 1).slice(-9);
    add(loaded.engine, makeRequest(range(0, 5), { maxTokens: 3 }));
    drain(loaded.engine);
    const entries = machine.cuda.launches.map(({ entry }) => entry);
    const step = entries.slice(entries.lastIndexOf("prepare_batch"));
    const layer = ["rms_norm", "attention_decode", "rms_norm", "gated_activation"];
    const model = ["prepare_batch", "gather_rows", ...layer, ...layer, "rms_norm"];
    expect(step).toEqual([...model, "sample_tiles", "sample_rows", "post"]);
    const residual = products[1]!.addTo;
    expect(residual).toBeGreaterThan(0);
    const sums = [undefined, residual, undefined, residual];
    expect(products.map(({ addTo }) => addTo)).toEqual([...sums, ...sums, undefined]);
    // Once a sequence needs its logits, a step of its own kind is captured, once.
    const instantiated = machine.cuda.count("cuGraphInstantiateWithFlags");
    add(loaded.engine, makeRequest(range(0, 5), { maxTokens: 5, temperature: 1, topK: 3 }));
    drain(loaded.engine);
    expect(machine.cuda.count("cuGraphInstantiateWithFlags")).toBe(instantiated + 1);
    const full = machine.cuda.launches.map(({ entry }) => entry);
    const captured = full.slice(full.lastIndexOf("prepare_batch"));
    expect(captured).toEqual([...model, "process_logits", "sample_tiles", "sample_rows", "post"]);
    loaded.dispose();
  });

  test("answers requests, with steps overlapping, and allocates nothing while it does", async () => {
    const { engine, dispose } = await load();
    const requests = [3, 20, 35].map((length) =>
      makeRequest(range(0, length), {
        ...{ maxTokens: 6, minP: length === 20 ? 0.1 : 0, temperature: 1 },
        ...(length === 35 && { logprobs: 20, promptLogprobs: 20 }),
      }),
    );
    const memory = machine.cuda.count("cuMemAlloc_v2");
    for (const request of requests) add(engine, request);
    const outcomes = drain(engine);
    for (const { id } of requests) expect(outcomes.completion(id).tokenIds).toEqual(Array(6).fill(7));
    expect(machine.cuda.count("cuMemAlloc_v2")).toBe(memory);
    expect(machine.cuda.count("cuGraphLaunch")).toBeGreaterThan(3);
    dispose();
    dispose();
  });
});

describe("a model of sizes that Hopper's own kernels take", () => {
  const options = {
    ...{ maxNumSeqs: 20, maxNumBatchedTokens: 2100, maxModelLen: 2400 },
    ...{ kvCacheMemoryBytes: 2 ** 24, enablePrefixCaching: false },
  };

  test("compiles, loads and allocates nothing for any request, nor does a capture", async () => {
    writeFileSync(join(folder, "config.json"), JSON.stringify({ ...CONFIG, ...HOPPER_SIZES }));
    const { engine, dispose } = await load(options);
    const used = ["cuMemAlloc_v2", "cuModuleLoadData"] as const;
    const counts = () => [...used.map((call) => machine.cuda.count(call)), machine.nvrtc.requests.length];
    const before = counts();
    machine.cuda.launches.length = 0;
    const lengths = [1, 5, 5, 20, 20, 60, 60, 120, 120, 250, 250, 300, 2300];
    const sampling = [{}, { topK: 3 }, { logprobs: 20, promptLogprobs: 20 }];
    for (const fields of sampling) {
      // One after the other, then together; some share steps with decode rows, some are cut.
      for (const length of lengths) {
        add(engine, makeRequest(range(0, length), { maxTokens: 3, temperature: 1, ...fields }));
        drain(engine);
      }
      const together = [...lengths, ...lengths].map((length) =>
        makeRequest(range(0, length), { maxTokens: 4, ...fields }),
      );
      for (const request of together) add(engine, request);
      const outcomes = drain(engine);
      for (const { id } of together) expect(outcomes.completion(id).tokenIds).toEqual([7, 7, 7, 7]);
    }
    expect(counts()).toEqual(before);
    const entries = new Set(machine.cuda.launches.map(({ entry }) => entry));
    for (const entry of ["decode_layers", "draw_small", "draw_wgmma", "linear_wgmma", "linear_large"])
      expect(entries).toContain(entry);
    expect(entries).toContain("attention_prefill_hopper");
    dispose();
  });
});

describe("a model of such sizes whose steps are small", () => {
  test.each<[number, CudaBackendOptions]>([
    [16, {}],
    [40, {}],
    [64, {}],
    [200, {}],
    [64, { batchInvariant: true }],
    [200, { batchInvariant: true }],
  ])("allocates nothing for steps of up to %d tokens, with %j", async (tokens, options) => {
    writeFileSync(join(folder, "config.json"), JSON.stringify({ ...CONFIG, ...HOPPER_SIZES }));
    // Any way of a product may be the fastest at any size; the second start finds what the first has chosen.
    let turn = tokens;
    machine.cuda.elapsed = () => {
      turn = (turn * 7 + 3) % 31;
      return 1 + turn;
    };
    for (let start = 0; start < 2; start++) {
      const sizes = { maxNumBatchedTokens: tokens, maxNumSeqs: 64, maxModelLen: 2 * tokens };
      const { engine, dispose } = await load({ ...sizes, ...options, kvCacheMemoryBytes: 2 ** 24 }, () =>
        machine.backend("bfloat16", options),
      );
      const memory = machine.cuda.count("cuMemAlloc_v2");
      for (const length of [1, 9, 9, 17, 17, 33, 33, 65, 65, 129, 129]) {
        if (length >= 2 * tokens) break;
        const request = makeRequest(range(0, length), { maxTokens: 3 });
        add(engine, request);
        expect(drain(engine).completion(request.id).tokenIds).toEqual([7, 7, 7]);
      }
      expect(machine.cuda.count("cuMemAlloc_v2")).toBe(memory);
      dispose();
    }
  });
});

describe("a start that fails leaves nothing", () => {
  const allocations = async (options: EngineOptions) => {
    const before = machine.cuda.count("cuMemAlloc_v2");
    (await load(options)).dispose();
    return machine.cuda.count("cuMemAlloc_v2") - before;
  };

  test("whichever allocation finds no memory", async () => {
    await allocations({ enforceEager: true }); // Products are tuned, which no later start does.
    const count = await allocations({ enforceEager: true });
    expect(count).toBeGreaterThan(30);
    for (let nth = 1; nth <= count; nth += nth < 4 || nth > count - 4 ? 1 : 3) {
      machine.cuda.fail("cuMemAlloc_v2", 2, nth);
      expect(await rejection(load({ enforceEager: true }))).toBeInstanceOf(CudaOutOfMemoryError);
      expect(machine.leftovers).toEqual([]);
    }
  });

  test.each<[keyof CudaApi, number]>([
    ["cuMemHostAlloc", 1],
    ["cuModuleLoadData", 5],
    ["cuModuleGetFunction", 3],
    ["cuMemcpyHtoDAsync_v2", 4],
    ["cuLaunchKernelEx", 10],
    ["cuStreamSynchronize", 1],
    ["cuStreamEndCapture", Infinity],
    ["cuGraphInstantiateWithFlags", Infinity],
  ])("%s fails, whether the device goes on or is lost", async (call, nth) => {
    (await load()).dispose();
    const before = machine.cuda.count(call);
    (await load()).dispose(); // What every start from now on does: matrix products are tuned.
    const total = machine.cuda.count(call) - before;
    for (const status of [1, 700]) {
      machine.cuda.fail(call, status, Math.min(nth, total));
      const error = await rejection(load());
      expect(error).toBeInstanceOf(CudaError);
      expect(error).toMatchObject({ call, status });
      expect(machine.leftovers).toEqual([]);
    }
  });

  test("the GPU is too small, with the need and what is free", async () => {
    machine[Symbol.dispose]();
    // The workspace of matrix products, and what the blocks of decode_layers.cu leave for one another.
    machine = new FakeMachine({ memory: 2 ** 25 + 655_360 + 1_098_240 + 528 + 4096 });
    mkdirSync(folder, { recursive: true });
    writeFileSync(join(folder, "config.json"), JSON.stringify(CONFIG));
    const error = (await rejection(load())) as CudaOutOfMemoryError;
    expect(error).toBeInstanceOf(CudaOutOfMemoryError);
    expect(error.message).toContain("for 25 KiB with 4 KiB of 33.7 MiB GPU memory free");
    rmSync(folder, { recursive: true });
  });

  test("a kernel does not compile", async () => {
    const { compile } = machine.nvrtc;
    machine.nvrtc.compile = (request) => {
      if (request.name !== "norm.cu") return compile.call(machine.nvrtc, request);
      throw new NvrtcError("nvrtcCompileProgram", 6, "NVRTC_ERROR_COMPILATION", "error: no", request.name);
    };
    expect(await rejection(load())).toBeInstanceOf(NvrtcError);
  });

  test("the weights fail while kernels compile", async () => {
    const error = await rejection(load({ loadFormat: "auto" }));
    expect(error).toBeInstanceOf(ModelNotFoundError);
    await Bun.sleep(1);
  });
});

describe("a step that fails", () => {
  const start = async () => {
    const loaded = await load();
    const [first, second] = [5, 9].map((length) => makeRequest(range(0, length), { maxTokens: 20 }));
    add(loaded.engine, first!);
    add(loaded.engine, second!);
    const outcomes = new Outcomes();
    for (let i = 0; i < 4; i++) outcomes.take(loaded.engine.step());
    return { ...loaded, outcomes };
  };

  test.each<[keyof CudaApi, number]>([
    ["cuGraphLaunch", 719],
    ["cuEventRecord", 700],
    ["cuEventSynchronize", 716],
  ])("for the loss of the device (%s: %d) ends every request and the engine", async (call, status) => {
    const { engine, dispose, outcomes } = await start();
    machine.cuda.fail(call, status);
    const death = thrown(() => drain(engine, outcomes));
    expect(death).toBeInstanceOf(EngineDeadError);
    expect(death).toMatchObject({ cause: { call, status, fatal: true } });
    expect(engine.hasUnfinished).toBe(false);
    expect(() => engine.step()).toThrow(EngineDeadError);
    expect(() => add(engine, makeRequest(range(0, 3)))).toThrow(EngineDeadError);
    dispose();
  });

  test.each<[keyof CudaApi, number]>([
    ["cuGraphLaunch", 2],
    ["cuEventRecord", 1],
    ["cuEventSynchronize", 2],
  ])("for another reason (%s: %d) ends the requests in it, and the engine goes on", async (call, status) => {
    const { engine, dispose, outcomes } = await start();
    machine.cuda.fail(call, status);
    const ends = drain(engine, outcomes).deltas.filter(({ finishReason }) => finishReason !== null);
    expect(ends.map(({ error }) => error)).toEqual([
      expect.any(RequestFailedError) as Error,
      expect.any(RequestFailedError) as Error,
    ]);
    expect(ends[0]!.error).toMatchObject({ code: "step_failed", cause: { call, status, fatal: false } });
    engine.checkIntegrity();
    const next = makeRequest(range(0, 9), { maxTokens: 3 });
    add(engine, next);
    expect(drain(engine).completion(next.id).tokenIds).toEqual([7, 7, 7]);
    dispose();
  });
});
