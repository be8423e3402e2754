import { AsyncLLM, WORKER_SCRIPTS } from "../../src/async/async-llm.ts";
import { type EngineOptions, resolveEngineConfig } from "../../src/base/config.ts";
import { eventually } from "../support.ts";

/** The channel on which a replica is told, by its index, to die. */
export const DEATH_CHANNEL = "replicas that die";
/** The revision with which the second replica dies while it loads, and the first has no end of loading. */
export const SECOND_FAILS = "the second fails";

const SCRIPTS = { ...WORKER_SCRIPTS, engine: new URL("./mortal-engine-worker.ts", import.meta.url) };

/** The embedded model on the CPU, two replicas that can be killed. */
export function createReplicas(options: EngineOptions = {}): Promise<AsyncLLM> {
  const config = resolveEngineConfig({ device: "cpu", kvCacheMemoryBytes: 64 * 2 ** 20, ...options });
  return AsyncLLM.start(SCRIPTS, undefined, config, { dataParallelSize: 2 });
}

/** Ends a replica's worker from within. */
export async function kill(llm: AsyncLLM, replica: number): Promise<void> {
  const channel = new BroadcastChannel(DEATH_CHANNEL);
  channel.postMessage(replica);
  await eventually(() => llm.replicas[replica]!.failure !== undefined);
  channel.close();
}
