import { DeviceError } from "../../base/errors.ts";
import { workerScript } from "../../base/program-file.ts";
import { NvrtcError } from "../../cuda/errors.ts";
import type { CompileRequest, CompileResult } from "../../cuda/nvrtc.ts";
import type { NvrtcFiles } from "../../cuda/open-cuda.ts";

/** A message to a compile worker. */
export interface CompileTask {
  readonly files: NvrtcFiles;
  readonly request: CompileRequest;
}

/** The worker's answer. Errors lose their class on the way, so fields travel. */
export type CompileReply =
  | CompileResult
  | { readonly failure: Pick<NvrtcError, "call" | "status" | "statusText" | "log"> }
  | { readonly message: string };

/**
 * Compiles on `count` Workers; results in the order of the requests. Rejects with a failure once no Worker is inside
 * NVRTC any more.
 */
export async function compileInWorkers(
  requests: readonly CompileRequest[],
  files: NvrtcFiles,
  count: number,
): Promise<CompileResult[]> {
  const results: CompileResult[] = new Array(requests.length);
  const workers = Array.from(
    { length: count },
    () => new Worker(workerScript("src/backend/cuda/compile-worker.ts")),
  );
  const queue = requests.entries();
  const lanes = await Promise.allSettled(
    workers.map(async (worker) => {
      for (const [i, request] of queue) {
        results[i] = unwrap(await ask(worker, { files, request }), request.name);
      }
    }),
  );
  for (const worker of workers) worker.terminate();
  for (const lane of lanes) if (lane.status === "rejected") throw lane.reason;
  return results;
}

function ask(worker: Worker, task: CompileTask): Promise<CompileReply> {
  const { promise, resolve, reject } = Promise.withResolvers<CompileReply>();
  worker.onmessage = ({ data }: MessageEvent<CompileReply>) => resolve(data);
  worker.onerror = ({ message }) => reject(new DeviceError(`a compile worker failed: ${message}`));
  worker.postMessage(task);
  return promise;
}

function unwrap(reply: CompileReply, program: string): CompileResult {
  if ("cubin" in reply) return reply;
  if ("message" in reply) throw new DeviceError(`${program}: ${reply.message}`);
  const { call, status, statusText, log } = reply.failure;
  throw new NvrtcError(call, status, statusText, log, program);
}
