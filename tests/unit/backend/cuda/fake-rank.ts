import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { CudaBackend } from "../../../../src/backend/cuda/cuda-backend.ts";
import { type EngineOptions, resolveEngineConfig } from "../../../../src/base/config.ts";
import { DeviceError } from "../../../../src/base/errors.ts";
import type { Device } from "../../../../src/cuda/device.ts";
import { loadPart } from "../../../../src/llm/load-part.ts";
import { readModelConfig } from "../../../../src/models/config.ts";
import { Exchange } from "../../../../src/ranks/exchange.ts";
import type { RankGroup } from "../../../../src/ranks/rank-group.ts";
import type { ModelRunner } from "../../../../src/runner/model-runner.ts";
import { installPeers } from "../../../bench/fake-peers.ts";
import { FakeMachine } from "./fake-machine.ts";
import { namedArguments } from "./kernel-signatures.ts";

const MODEL = {
  ...{ model_type: "qwen3", architectures: ["Qwen3ForCausalLM"], vocab_size: 4128, num_hidden_layers: 2 },
  ...{ hidden_size: 256, intermediate_size: 512, rms_norm_eps: 1e-6, hidden_act: "silu" },
  ...{ num_attention_heads: 4, num_key_value_heads: 2, head_dim: 64, max_position_embeddings: 4096 },
  ...{ torch_dtype: "bfloat16" },
};
const OPTIONS: EngineOptions = {
  ...{ device: "cuda", loadFormat: "dummy", skipTokenizerInit: true, maxNumSeqs: 12, tensorParallelSize: 2 },
  ...{ maxNumBatchedTokens: 64, maxModelLen: 256, kvCacheMemoryBytes: 2 ** 22 },
};

/**
 * One of two ranks, on a fake GPU of its own. Kernels that exchange messages wait for the other rank as those of GPUs do: in its
 * memory, when the host waits for them or frees anything. Other kernels do nothing, and every token drawn is 7.
 */
export class FakeRank {
  readonly machine = new FakeMachine({ memory: 2 ** 30 });
  readonly exchange: Exchange;
  readonly config = resolveEngineConfig(OPTIONS);

  constructor(group: RankGroup) {
    const { cuda } = this.machine;
    this.exchange = new Exchange(group);
    installPeers(cuda, group.size, () => group.failure !== undefined);
    const wordsAt = (address: number) => new Int32Array(cuda.bytesOf(address).buffer);
    cuda.effects.set("sample_rows", (launch) => {
      wordsAt(namedArguments(launch)["out"]!).fill(7, 0, launch.grid[0]);
    });
    cuda.effects.set("draw_rows", (launch) => {
      const { out, rows } = namedArguments(launch);
      wordsAt(out!).fill(7, 0, rows);
    });
    cuda.effects.set("prepare_batch", (launch) => {
      wordsAt(namedArguments(launch)["steps"]!)[0]!++;
    });
    cuda.effects.set("post", (launch) => {
      const { outbox, results, steps, areas, area_words, count } = namedArguments(launch);
      const area = (wordsAt(steps!)[0]! - 1) & (areas! - 1);
      wordsAt(outbox!).set(wordsAt(results!).subarray(0, count), area * area_words!);
    });
  }

  /** Loads the rank's part and builds its runner, as both ranks do at the same time. */
  async build(): Promise<{ readonly runner: ModelRunner; readonly backend: CudaBackend }> {
    const { machine, exchange, config } = this;
    const { shard } = exchange;
    const folder = join(machine.cacheFolder, "model");
    mkdirSync(folder, { recursive: true });
    writeFileSync(join(folder, "config.json"), JSON.stringify(MODEL));
    const opened = machine.open();
    const ordinal = { value: shard.rank };
    const device = Object.create(opened.device, { id: ordinal, ordinal }) as Device;
    const openNccl = () => {
      throw new DeviceError("NCCL is missing");
    };
    const backend = new CudaBackend({ ...opened, device }, "bfloat16", { ranks: { exchange, openNccl } });
    const source = { folder, config, modelConfig: readModelConfig(folder), shard };
    const part = await loadPart(source, backend, () => {});
    return { runner: exchange.starting(() => part.build(exchange)), backend };
  }
}
