import { readFileSync, writeFileSync } from "node:fs";
import { type EngineOptions, LLM } from "octavo";
import { Context } from "../../src/cuda/context.ts";
import { Device } from "../../src/cuda/device.ts";
import { openDriver, thisMachine } from "../../src/cuda/open-cuda.ts";

/** What ranks take to load a model, in bytes. */
export interface LoadingCosts {
  /** Of the host's memory, while they load, more than before. */
  readonly host: number;
  /** Of each GPU's, when they have loaded. */
  readonly gpus: readonly number[];
}

/** Loads a model on as many GPUs, and prints its `LoadingCosts`: the memory of a process is its own only in one of its own. */
const [folder, ranks] = [process.argv[2]!, Number(process.argv[3])];
const OPTIONS: EngineOptions = {
  ...{ device: "cuda", dtype: "bfloat16", tensorParallelSize: ranks, kvCacheMemoryBytes: 2 ** 26 },
  ...{
    skipTokenizerInit: true,
    enforceEager: true,
    maxNumSeqs: 8,
    maxNumBatchedTokens: 256,
    maxModelLen: 256,
  },
};

const { api } = openDriver(thisMachine());
// Contexts stay, so that what they take themselves is not counted.
const contexts = Array.from({ length: ranks }, (_, ordinal) =>
  Context.retain(api, Device.open(api, ordinal)),
);
const free = () =>
  contexts.map((context) => {
    context.makeCurrent();
    return context.memory().free;
  });
/** The most memory that this process has had at once. */
const peak = () => 1024 * Number(/VmHWM:\s*(\d+) kB/.exec(readFileSync("/proc/self/status", "utf8"))![1]);

// The driver, the libraries, kernels and what threads take in any case.
(await LLM.create(undefined, OPTIONS)).dispose();
Bun.gc(true);
writeFileSync("/proc/self/clear_refs", "5");
const [hostBefore, gpusBefore] = [peak(), free()];
await using llm = await LLM.create(folder, OPTIONS);
await llm.generate({ promptTokenIds: [1, 2, 3] }, { maxTokens: 2, ignoreEos: true });
const costs: LoadingCosts = {
  host: peak() - hostBefore,
  gpus: free().map((bytes, i) => gpusBefore[i]! - bytes),
};
console.log(JSON.stringify(costs));
