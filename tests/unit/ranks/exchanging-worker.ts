import { Exchange } from "../../../src/ranks/exchange.ts";
import { RankGroup, type RankMemory } from "../../../src/ranks/rank-group.ts";
import { StepRing } from "../../../src/ranks/step-ring.ts";
import { digestOfRounds } from "./rounds.ts";

declare const self: Worker;

export type Job = "rounds" | "ring" | "leave";

/** A rank that takes part in rounds of exchanges, sums up the messages of the leader, or leaves. */
self.onmessage = ({ data }: MessageEvent<{ memory: RankMemory; rank: number; job: Job }>) => {
  const group = new RankGroup(data.memory, data.rank);
  if (data.job === "leave") {
    Bun.sleepSync(5);
    group.leave();
    self.postMessage(undefined);
    return;
  }
  if (data.job === "rounds") {
    self.postMessage(digestOfRounds(new Exchange(group), data.rank));
    return;
  }
  const ring = new StepRing(group);
  const sums: number[] = [];
  for (let message = ring.next(); message !== undefined; message = ring.next())
    sums.push(message.reduce((sum, word, i) => (sum + word * (i + 1)) | 0, message.length));
  self.postMessage(sums);
};
