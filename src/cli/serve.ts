import type { Command } from "commander";
import { version } from "../../package.json";
import { type AsyncCreateOptions, AsyncLLM } from "../async/async-llm.ts";
import type { Replica } from "../async/replica-set.ts";
import { ConfigError, ExitCode } from "../base/errors.ts";
import { describeWeights } from "../base/weight-summary.ts";
import { Listener } from "../server/listener.ts";
import {
  checkExposure,
  resolveServerOptions,
  type ServerConfig,
  type ServerOptions,
} from "../server/options.ts";
import { createCommand, modelOf, say } from "./command.ts";
import { addEngineFlags, addReplicaFlags, engineOptions, replicaOptions } from "./engine-flags.ts";
import { integerValue } from "./flag-values.ts";
import { ProgressBar } from "./progress.ts";
import { addServerFlags, serverOptions } from "./server-flags.ts";

/** Interval at which the engines are asked whether they still live. */
const FAILURE_POLL_MS = 250;
/** Time that clients get to read that the engine has died. */
const LAST_WORDS_MS = 2000;

/** `serve`: a model over HTTP, until a signal. */
export function serveCommand(name: string): Command {
  const command = createCommand(name, [
    "octavo serve Qwen/Qwen3-0.6B --max-model-len 8192",
    "OCTAVO_API_KEY=secret octavo serve ./model --host 0.0.0.0 --served-model-name mine",
  ])
    .description(
      "Serves a model with OpenAI's HTTP API. SIGTERM and Ctrl-C let requests finish; twice, they do not.",
    )
    .argument("[model]", "model folder, GGUF file or Hugging Face id (default: the embedded model)")
    .option("-m, --model <model>", "the same, for environment and configuration file");
  addServerFlags(command);
  addEngineFlags(command);
  addReplicaFlags(command);
  command.option("--seed <integer>", "seeds requests that bring no seed (default: 0)", integerValue);
  return command.action((model: string | undefined, { seed }: { seed?: number }) =>
    serve(modelOf(command, model), serverOptions(command), {
      ...engineOptions(command),
      ...replicaOptions(command),
      ...(seed !== undefined && { seed }),
    }),
  );
}

async function serve(
  model: string | undefined,
  options: ServerOptions,
  createOptions: AsyncCreateOptions,
): Promise<void> {
  const config = checked(options, model);
  // A closed log is no reason to stop serving.
  for (const stream of [process.stdout, process.stderr])
    stream.removeAllListeners("error").on("error", () => {});
  const stopped = firstSignal();
  // A port in use is known at once, and clients are told that the model loads.
  const listener = new Listener(config.host, config.port);
  const bar = new ProgressBar();
  const started = performance.now();
  const loading = AsyncLLM.create(model, {
    ...createOptions,
    onProgress: (progress) => bar.load(progress),
  });
  // Other commands do without it, and this one loads it while the model is loaded.
  const serving = import("../server/serve.ts");
  const loaded = await Promise.race([loading, stopped]).finally(() => bar.stop());
  if (loaded === undefined) return;
  await using llm = loaded;
  const { startServer } = await serving;
  const server = startServer({ llm, options, listener });
  console.log(`${describe(llm)}, loaded in ${((performance.now() - started) / 1000).toFixed(1)} s`);
  console.log(
    `Octavo ${version} serves ${(options.servedModelNames ?? [llm.model]).join(", ")} at ${server.url}`,
  );

  await Promise.race([stopped, failure(llm)]);
  if (llm.failure) {
    await Promise.race([server.stop(), Bun.sleep(LAST_WORDS_MS)]);
    throw llm.failure;
  }
  const { shutdownDelaySeconds: delay, drainSeconds } = config;
  if (delay > 0) console.log(`Stopping: requests are taken for ${delay} s more`);
  else if (llm.numUnfinished > 0)
    console.log(`Stopping: ${llm.numUnfinished} requests get ${drainSeconds} s to finish`);
  await server.stop();
}

/** The server's options, checked before the model is loaded. */
function checked(options: ServerOptions, model: string | undefined): ServerConfig {
  const config = resolveServerOptions(options, model ?? "the embedded model");
  try {
    checkExposure(config);
  } catch (cause) {
    const remedy = "give --api-key (or set OCTAVO_API_KEY), or --allow-unauthenticated";
    throw new ConfigError("host", `--host ${config.host} can be reached from other machines: ${remedy}`, {
      cause,
    });
  }
  return config;
}

/** Resolves at the first SIGINT or SIGTERM. The second ends the process at once. */
function firstSignal(): Promise<undefined> {
  const { promise, resolve } = Promise.withResolvers<undefined>();
  let signalled = false;
  for (const [signal, code] of [
    ["SIGINT", ExitCode.interrupted],
    ["SIGTERM", ExitCode.terminated],
  ] as const) {
    process.on(signal, () => {
      if (signalled) process.exit(code);
      signalled = true;
      resolve(undefined);
    });
  }
  return promise;
}

/** Resolves when the last engine has died. Of those before it a line says so. */
async function failure(llm: AsyncLLM): Promise<void> {
  const told = new Set<Replica>();
  while (!llm.failure) {
    for (const [index, replica] of llm.replicas.entries()) {
      if (!replica.failure || told.has(replica)) continue;
      told.add(replica);
      say(`replica ${index} of ${llm.replicas.length} died, the others go on: ${replica.failure.message}`);
    }
    await Bun.sleep(FAILURE_POLL_MS);
  }
}

function describe({
  model,
  device,
  dtype,
  weights,
  maxModelLen,
  cacheConfig,
  replicas,
  config: { kvCacheDtype, tensorParallelSize },
}: AsyncLLM): string {
  const { numBlocks, blockSize, numGroups, numStates, numSnapshots } = cacheConfig;
  const groups = numGroups === undefined ? "" : ` for ${numGroups} groups of layers`;
  const bits = kvCacheDtype === "auto" ? "" : " in eight bits";
  const ranks = tensorParallelSize === 1 ? "" : `${tensorParallelSize} × `;
  const copies = replicas.length > 1 ? `, ${replicas.length} replicas` : "";
  const prefixes = numSnapshots ? `${numSnapshots} snapshots of states` : "no prefix caching";
  const states = numStates ? `, ${numStates} states, ${prefixes}` : "";
  return `${model} on ${ranks}${device}, ${dtype}, weights of ${describeWeights(weights)}, context of ${maxModelLen} tokens, ${numBlocks} KV blocks of ${blockSize} tokens${groups}${bits}${states}${copies}`;
}
