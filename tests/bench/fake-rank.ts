import { CopyChecks } from "../../bench/copy-checks.ts";
import { RankChecks } from "../../bench/rank-checks.ts";
import { RankDevice } from "../../bench/rank-device.ts";
import { Rendezvous } from "../../bench/rendezvous.ts";
import type { Device } from "../../src/cuda/device.ts";
import { type Machine, thisMachine } from "../../src/cuda/open-cuda.ts";
import { FakeMachine } from "../unit/backend/cuda/fake-machine.ts";
import { installPeers } from "./fake-peers.ts";

/** A rank of the benchmark's checks, on a GPU that is none. */
export interface FakeRankTask {
  readonly memory: SharedArrayBuffer;
  readonly rank: number;
  readonly size: number;
  /** The sum, from 0, that this rank's GPU gets wrong. */
  readonly wrong?: number;
}

export interface FakeRankOutcome {
  readonly done: readonly string[];
  readonly error?: string;
}

declare const self: Worker;

self.onmessage = ({ data }: MessageEvent<FakeRankTask>) => {
  const done: string[] = [];
  const rendezvous = new Rendezvous(data.memory, data);
  try {
    run(data, rendezvous, done);
    postMessage({ done } satisfies FakeRankOutcome);
  } catch (error) {
    rendezvous.giveUp();
    postMessage({ done, error: (error as Error).message } satisfies FakeRankOutcome);
  }
};

function run({ rank, size, wrong }: FakeRankTask, rendezvous: Rendezvous, done: string[]): void {
  using fake = new FakeMachine({ memory: 2 ** 31 });
  installPeers(fake.cuda, size);
  if (wrong !== undefined) spoil(fake, wrong);
  const opened = fake.open();
  const device = Object.create(opened.device, { id: { value: rank }, ordinal: { value: rank } }) as Device;
  const machine: Machine = {
    ...thisMachine(),
    open: () => {
      throw new Error("none here");
    },
  };
  using ranked = new RankDevice(rendezvous, { ...opened, device }, machine);
  // Of more than fits at once, in pieces, for two: it takes a second a rank.
  const largest = size === 2 ? undefined : 2 ** 20;
  const checks = new RankChecks(ranked, 3, largest);
  done.push(`within ${checks.expectedError <= 1}`);
  checks.sums(16);
  done.push("sums");
  checks.gathers(3);
  done.push("gathers");
  checks.graphs(1);
  done.push("graphs");
  if (size === 2) {
    const copies = new CopyChecks(ranked, 3);
    copies.sums(8);
    copies.large(ranked.copiedSums({ pieceBytes: 2 ** 18, groupBytes: 2 ** 19 }), 5 * 2 ** 18, 256);
    done.push("copies");
  }
  checks.freeing();
  const [residual, branch] = [ranked.tensor("bfloat16", 8), ranked.tensor("bfloat16", 8)];
  for (const tensor of [residual, branch]) ranked.stream.fill(tensor.address, 0, 16);
  ranked.time(() => ranked.exchange.reduceAdd(ranked.stream.value, ranked.peers, residual, branch), 3);
  done.push("times");
}

function spoil({ cuda }: FakeMachine, wrong: number): void {
  const right = cuda.effects.get("reduce_add")!;
  let sums = 0;
  cuda.effects.set("reduce_add", (launch) => {
    right(launch);
    if (sums++ === wrong) {
      const address = Number(new BigUint64Array(launch.args[1]!.slice().buffer)[0]);
      cuda.bytesOf(address)[0]! ^= 1;
    }
  });
}
