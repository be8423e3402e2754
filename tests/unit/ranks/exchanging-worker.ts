import { Exchange } from "../../../src/ranks/exchange.ts";
import { RankGroup, type RankMemory } from "../../../src/ranks/rank-group.ts";
import { StepRing } from "../../../src/ranks/step-ring.ts";
import { digestOfRounds } from "./rounds.ts";

declare const self: Worker;

/** A rank that takes part in rounds of exchanges, or sums up the messages of the leader. */
self.onmessage = ({ data }: MessageEvent<{ memory: RankMemory; rank: number; job: "rounds" | "ring" }>) => {
  const group = new RankGroup(data.memory, data.rank);
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
