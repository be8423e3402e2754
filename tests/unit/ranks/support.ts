import type { RankMemory } from "../../../src/ranks/rank-group.ts";
import type { Job } from "./exchanging-worker.ts";

/** Starts rank `rank` of a job in a thread; resolves with what it posts at the end. */
export function startRank<T>(memory: RankMemory, rank: number, job: Job): Promise<T> {
  const { promise, resolve, reject } = Promise.withResolvers<T>();
  const worker = new Worker(new URL("./exchanging-worker.ts", import.meta.url));
  worker.onmessage = ({ data }) => {
    worker.terminate();
    resolve(data);
  };
  worker.onerror = ({ message }) => reject(new Error(message));
  worker.postMessage({ memory, rank, job });
  return promise;
}
