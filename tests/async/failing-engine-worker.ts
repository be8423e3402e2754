import type { EngineMessage, EngineReply, LoadMessage } from "../../src/async/worker-protocol.ts";
import { EngineDeadError } from "../../src/base/errors.ts";
import { CudaError } from "../../src/cuda/errors.ts";
import { encodeError } from "../../src/threads/error-codec.ts";

declare const self: Worker;

const post = (reply: EngineReply) => self.postMessage(reply);

/** Loads nothing, and fails at the first request in the manner that the model's name tells. Its sizes tell its GPU. */
self.onmessage = ({ data: { model, config, inbox } }: MessageEvent<LoadMessage>) => {
  if (model === "crash while loading") throw new TypeError("no such thing");
  if (model === "end while loading") process.exit(7);
  inbox.onmessage = ({ data: message }: MessageEvent<EngineMessage>) => {
    if (message.type === "shutdown" && model !== "hang") post({ type: "closed" });
    if (message.type !== "add") return;
    if (model === "crash") throw new RangeError("out of everything");
    if (model === "end") process.exit(7);
    if (model === "die") post({ type: "dead", error: encodeError(death()) });
  };
  const stats = {
    ...{ running: 0, waiting: 0, kvUsage: 0, cachedBlocks: 0, steps: 0, preemptions: 0 },
    ...{ prefixQueries: 0, prefixHits: 0, promptTokens: 0, generationTokens: 0 },
  };
  const info = {
    ...{ name: "nothing", modelConfig: {} as never, device: "cpu" as const },
    ...{ dtype: "float32" as const, weights: { format: "float32", bytes: 0 }, defaultSampling: {} },
    ...{ limits: { maxModelLen: 64 - config.gpuIndex, poolTokens: 64, vocabSize: 64, eosTokenIds: [] } },
    ...{ cacheConfig: { blockSize: 16, numBlocks: 4 + config.gpuIndex }, timeOrigin: performance.timeOrigin },
  };
  post({ type: "ready", info, stats });
};

function death(): EngineDeadError {
  const cause = new CudaError("cuStreamSynchronize", 700, "CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal access");
  return new EngineDeadError("the GPU is gone", { cause });
}
