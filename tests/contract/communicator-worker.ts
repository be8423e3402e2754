import { CpuBackend } from "../../src/backend/cpu/cpu-backend.ts";
import { SharedMemoryCommunicator } from "../../src/backend/cpu/shared-memory-communicator.ts";
import { Exchange } from "../../src/ranks/exchange.ts";
import { RankGroup, type RankMemory } from "../../src/ranks/rank-group.ts";
import { takePart } from "./communicator-rounds.ts";

declare const self: Worker;

/** A rank on the CPU backend. */
self.onmessage = ({ data }: MessageEvent<{ memory: RankMemory; rank: number; rounds: number }>) => {
  const exchange = new Exchange(new RankGroup(data.memory, data.rank));
  self.postMessage(takePart(new CpuBackend(), new SharedMemoryCommunicator(exchange), data.rounds));
};
