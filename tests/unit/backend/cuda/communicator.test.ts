import { afterEach, beforeEach, describe, expect, setDefaultTimeout, test } from "bun:test";
import type { CudaBackend } from "../../../../src/backend/cuda/cuda-backend.ts";
import type { CudaCommunicator } from "../../../../src/backend/cuda/cuda-communicator.ts";
import { comparedSizes, crossover } from "../../../../src/backend/cuda/reduce-choice.ts";
import type { Tensor } from "../../../../src/backend/tensor.ts";
import { DeviceError, InvariantError } from "../../../../src/base/errors.ts";
import { Context } from "../../../../src/cuda/context.ts";
import { Device } from "../../../../src/cuda/device.ts";
import type { FakeLaunch } from "../../cuda/fake-cuda.ts";
import { FakeNccl } from "../../cuda/fake-nccl.ts";
import { FakeExchange, OTHER_BASE, otherMemory } from "./fake-exchange.ts";
import { FakeMachine } from "./fake-machine.ts";
import { namedArguments } from "./kernel-signatures.ts";

setDefaultTimeout(300_000);

const KIB = 2 ** 10;
let machine: FakeMachine;
let nccl: FakeNccl;
let exchange: FakeExchange;
let other: Context;
let backend: CudaBackend | undefined;

beforeEach(() => {
  machine = new FakeMachine({ memory: 2 ** 30 });
  for (const entry of ["reduce_add", "add_copied", "gather_words"]) machine.cuda.structBytes.set(entry, 64);
  machine.cuda.others = otherMemory();
  nccl = new FakeNccl();
  nccl.isAlone = true;
  exchange = new FakeExchange();
  other = Context.retain(machine.cuda.api, Device.open(machine.cuda.api, 0));
  exchange.answers.context = other.value;
  backend = undefined;
});

afterEach(() => {
  backend?.dispose();
  other.dispose();
  expect(machine.leftovers).toEqual([]);
  expect([...nccl.live]).toEqual([]);
  machine[Symbol.dispose]();
});

const noNccl = () => {
  throw new DeviceError("NCCL is missing");
};

function join({ open = () => nccl.api, batchInvariant = false } = {}): CudaCommunicator {
  backend = machine.backend("bfloat16", { batchInvariant, ranks: { exchange, openNccl: open } });
  try {
    backend.meetRanks();
  } catch (error) {
    backend.dispose();
    throw error;
  }
  return backend.communicator!;
}

/** What `run` launches. */
function launches(run: () => void): (Record<string, number> & { launch: FakeLaunch })[] {
  machine.cuda.launches.length = 0;
  run();
  return machine.cuda.launches.map((launch) => ({ ...namedArguments(launch), launch }) as never);
}

const stream = (elements: number): [Tensor, Tensor] => [
  backend!.empty("bfloat16", [1, elements]),
  backend!.empty("bfloat16", [1, elements]),
];

describe("a sum through peers' memory", () => {
  test("is one launch, early, of a block for 512 vectors, within limits", () => {
    join({ open: noNccl });
    for (const [elements, blocks] of [
      [8, 16],
      [2 ** 16, 16],
      [2 ** 16 + 8, 17],
      [2 ** 19, 128],
      [2 ** 21, 256],
    ] as const) {
      const [residual, branch] = stream(elements);
      const [sum, ...more] = launches(() => backend!.allReduceAdd!(residual, branch));
      expect(more).toEqual([]);
      expect(sum!.launch).toMatchObject({ entry: "reduce_add", grid: [blocks, 1, 1], block: [512, 1, 1] });
      expect(sum!.launch.dependent).toBe(true);
      expect(sum).toMatchObject({
        residual: residual.address,
        branch: branch.address,
        size: elements,
        rank: 1,
      });
      expect(sum).toMatchObject({ offset: 0, capacity: 2 ** 18 });
    }
  });

  test("is told where every rank's memory is, which began as zeros", () => {
    join({ open: noNccl });
    const [sum] = launches(() => backend!.allReduceAdd!(...stream(8)));
    const table = new BigUint64Array(sum!.launch.args[0]!.buffer);
    expect([...table].map(Number)).toEqual([OTHER_BASE, expect.any(Number), 0, 0, 0, 0, 0, 0]);
    expect(machine.cuda.count("cuCtxEnablePeerAccess")).toBe(1);
    const own = machine.cuda.bytesOf(Number(table[1]));
    expect(own).toHaveLength(2 * 2 * (2 ** 22 + 2 ** 16 * 8) + 4 * 8 + 2 * 2 ** 27);
    const cleared = own.subarray(0, own.length - 2 * 2 ** 27);
    // But for the count of the first copied sum.
    expect(cleared.findIndex((byte) => byte !== 0)).toBe(-1);
    const rounds = machine.cuda.bytesOf(sum!["rounds"]!);
    expect(rounds).toHaveLength(2 * 256 * 4);
    expect(rounds.every((byte) => byte === 0)).toBe(true);
  });

  test("goes in pieces where it is larger and there is no NCCL", () => {
    join({ open: noNccl });
    const [residual, branch] = stream(2 ** 22 + 24);
    const pieces = launches(() => backend!.allReduceAdd!(residual, branch));
    expect(pieces.map(({ size }) => size)).toEqual([2 ** 21, 2 ** 21, 24]);
    for (const [i, piece] of pieces.entries()) {
      expect(piece["residual"]! - residual.address).toBe(i * 2 ** 22);
      expect(piece["branch"]! - branch.address).toBe(i * 2 ** 22);
    }
  });

  test("is of residual streams: of their dtype, one as long as the other", () => {
    join({ open: noNccl });
    const [residual] = stream(8);
    const others = [backend!.empty("bfloat16", [1, 16]), backend!.empty("float32", [1, 8])];
    for (const branch of others)
      expect(() => backend!.allReduceAdd!(residual, branch)).toThrow(InvariantError);
    expect(() => backend!.allReduceAdd!(others[1]!, others[1]!)).toThrow(InvariantError);
  });

  test("of nothing is nothing: a round that sends nothing would let the next overtake", () => {
    const communicator = join({ open: noNccl });
    expect(launches(() => backend!.allReduceAdd!(...stream(0)))).toEqual([]);
    const none = backend!.empty("float32", [0]);
    expect(launches(() => communicator.allGather(none, none))).toEqual([]);
  });
});

describe("a norm of projections", () => {
  test("sums squares on each rank, gathers those, and divides by the root of their mean", () => {
    join();
    const [qkv, query, key] = [768, 512, 128].map((width) =>
      backend!.empty("bfloat16", width === 768 ? [3, width] : [width]),
    );
    const norm = { query: query!, key: key!, eps: 1e-5 };
    const all = launches(() => backend!.normProjections(qkv!, norm));
    expect(all.map(({ launch: { entry, grid } }) => [entry, grid])).toEqual([
      ["sum_projections", [3, 2, 1]],
      ["gather_words", expect.anything()],
      ["norm_projections", [3, 2, 1]],
    ]);
    const [sum, gathering, normed] = all;
    const common = { qkv: qkv!.address, query_width: 512, key_width: 128 };
    expect(sum).toMatchObject(common);
    expect(gathering).toMatchObject({ part: sum!["squares"], width: 6, words: 6 });
    const norms = { query: query!.address, key: key!.address, eps: Math.fround(1e-5) };
    expect(normed).toMatchObject({ ...common, ...norms, squares: gathering!["out"], ranks: 2 });
  });
});

describe("a gathering", () => {
  test("goes through peers' memory of its own, in pieces beside each other", () => {
    const communicator = join({ open: noNccl });
    const words = 2 ** 16 + 5;
    const [part, out] = [backend!.empty("int32", [words]), backend!.empty("int32", [2, words])];
    const pieces = launches(() => communicator.allGather(out, part));
    const told = pieces.map(({ first, words: count, width, capacity }) => [first, count, width, capacity]);
    expect(told).toEqual([
      [0, 2 ** 16, words, 2 ** 16],
      [2 ** 16, 5, words, 2 ** 16],
    ]);
    for (const piece of pieces) expect(piece).toMatchObject({ out: out.address, part: part.address });
    expect(pieces[0]!["offset"]).toBe(2 * 2 * 2 ** 22);
    const [sum] = launches(() => backend!.allReduceAdd!(...stream(8)));
    expect(pieces[0]!["rounds"]! - sum!["rounds"]!).toBe(256 * 4);
  });

  test("of columns puts the rows of all ranks beside each other", () => {
    join();
    const [part, out] = [backend!.empty("float32", [3, 50]), backend!.empty("float32", [3, 100])];
    const [gathering, ...more] = launches(() => backend!.gatherColumns!(out, part));
    expect(more).toEqual([]);
    expect(gathering).toMatchObject({
      width: 50,
      first: 0,
      words: 150,
      out: out.address,
      part: part.address,
    });
  });

  test("of columns is a call a row where there is NCCL alone", () => {
    exchange.answers.reaches = 0;
    join();
    const asked: number[][] = [];
    Object.assign(nccl.api, {
      ncclAllGather: (send: number, receive: number, count: number) =>
        asked.push([send, receive, count]) && 0,
    });
    const [part, out] = [backend!.empty("float32", [2, 50]), backend!.empty("float32", [2, 100])];
    backend!.gatherColumns!(out, part);
    expect(asked).toEqual([
      [part.address, out.address, 50],
      [part.address + 200, out.address + 400, 50],
    ]);
  });

  test("of more goes through NCCL", () => {
    const communicator = join();
    const [part, out] = [backend!.empty("int32", [2 ** 17]), backend!.empty("int32", [2, 2 ** 17])];
    nccl.failures.set("ncclAllGather", 0);
    expect(launches(() => communicator.allGather(out, part))).toEqual([]);
    expect(nccl.calls.at(-1)).toBe("ncclAllGather");
  });
});

describe("the way", () => {
  const entries = (elements: number) =>
    launches(() => {
      nccl.failures.set("ncclAllReduce", 0);
      backend!.allReduceAdd!(...stream(elements));
    }).map(({ launch: { entry } }) => entry);

  test("of larger sums is NCCL's, and an addition", () => {
    expect(join().largestOwn).toBe(2 ** 25);
    expect(entries(2 ** 24)).toEqual(Array(8).fill("reduce_add"));
    expect(entries(2 ** 24 + 8)).toEqual(["add"]);
    expect(nccl.calls.at(-1)).toBe("ncclAllReduce");
  });

  test("is NCCL's alone where GPUs do not reach each other, as any rank may find", () => {
    exchange.answers.reaches = 0;
    expect(join().largestOwn).toBe(0);
    expect(entries(8)).toEqual(["add"]);
    expect(machine.cuda.calls).not.toContain("cuCtxEnablePeerAccess");
  });

  test("is that of peers alone where another rank has no NCCL", () => {
    exchange.answers.nccl = 0;
    expect(join().largestOwn).toBe(Infinity);
    expect(nccl.live.size).toBe(0);
  });

  test("does not change with the size where rows must not depend on their batch", () => {
    expect(join({ batchInvariant: true }).largestOwn).toBe(Infinity);
  });

  test("must exist, and between different GPUs", () => {
    machine.cuda.linked = false;
    expect(() => join({ open: noNccl })).toThrow(
      "the GPUs do not reach each other's memory, which takes NCCL: NCCL is missing",
    );
    exchange = new FakeExchange();
    exchange.answers.device = 0;
    expect(join).toThrow("ranks 0 and 1 are on the same GPU");
    exchange = new FakeExchange();
    exchange.answers.capability = 80;
    expect(join).toThrow("ranks need GPUs of one compute capability, these have 8.0, 9.0");
  });

  test.each([
    ["the slowest rank's times decide", [1, 1, 1, 9, 1, 1], 128 * KIB],
    ["where NCCL is never faster, all that is compared is Octavo's own", [1, 1, 1, 1, 1, 1], 2 ** 25],
    ["where it always is, only what is smaller was not asked", [9, 1, 1, 1, 1, 1], 16 * KIB],
  ])("is measured: %s", (_name, own, expected) => {
    machine.cuda.elapsed = () => 1.5;
    const sizes = comparedSizes(2 ** 25).length;
    exchange.answers.times = [...own, ...Array<number>(2 * sizes - own.length).fill(1.5)];
    expect(join().largestOwn).toBe(expected);
  });
});

test("sizes double from 32 KiB; a way is faster up to where it is first slower", () => {
  expect(comparedSizes(2 ** 18)).toEqual([2 ** 15, 2 ** 16, 2 ** 17, 2 ** 18]);
  expect(crossover([8, 16, 32], [1, 1, 1], [2, 1, 1])).toBe(32);
  expect(crossover([8, 16, 32], [1, 3, 1], [2, 2, 2])).toBe(8);
  expect(crossover([8, 16, 32], [3, 1, 1], [2, 2, 2])).toBe(4);
});

describe("a rehearsal", () => {
  test("waits for nobody: sums have one term, what is gathered is zeros", () => {
    join({ open: noNccl });
    const [residual, branch] = stream(8);
    const [part, out] = [backend!.empty("float32", [3, 50]), backend!.empty("float32", [3, 100])];
    backend!.fill(out, 255);
    const alone = launches(() =>
      backend!.rehearse(() => {
        backend!.allReduceAdd!(residual, branch);
        backend!.gatherColumns!(out, part);
        backend!.communicator!.allGather(out, part);
      }),
    );
    expect(alone.map(({ launch: { entry } }) => entry)).toEqual(["add"]);
    expect(backend!.download(out)).toEqual(new Uint8Array(1200));
    const together = launches(() => {
      expect(() =>
        backend!.rehearse(() => {
          throw new RangeError("no more");
        }),
      ).toThrow(RangeError);
      backend!.allReduceAdd!(residual, branch);
    });
    expect(together.map(({ launch: { entry } }) => entry)).toEqual(["reduce_add"]);
  });
});

test("a rank records when no other has work left, and makes a step of it when none records any more", () => {
  join({ open: noNccl });
  const tensors = stream(8);
  const { calls } = machine.cuda;
  calls.length = 0;
  const { share } = exchange;
  exchange.share = function (this: FakeExchange, ...args) {
    calls.push("meet" as never);
    share.apply(this, args);
  };
  backend!.capture(() => backend!.allReduceAdd!(...tensors)).dispose();
  expect(calls.filter((name) => /meet|Graph|Capture/.test(name))).toEqual([
    ...["meet", "cuStreamBeginCapture_v2", "cuStreamEndCapture"],
    ...["meet", "cuGraphInstantiateWithFlags", "cuGraphUpload"],
    ...["meet", "cuGraphDestroy", "cuGraphExecDestroy"],
  ] as never[]);
});

describe("a failure", () => {
  const pending = () => {
    let looks = 0;
    Object.assign(machine.cuda.api, { cuEventQuery: () => (++looks < 2000 ? 600 : 0) });
    return () => looks;
  };

  test("of NCCL's work is found while it is waited for", () => {
    join();
    pending();
    backend!.synchronize();
    pending();
    nccl.asyncError = 6;
    expect(() => backend!.synchronize()).toThrow("ncclCommGetAsyncError failed: fake error 6 (6)");
    expect(nccl.calls.at(-1)).toBe("ncclCommAbort");
  });

  test("of another rank ends the wait for what is enqueued, and what waits on the GPU", () => {
    join();
    const [sum] = launches(() => backend!.allReduceAdd!(...stream(8)));
    const givenUp = new Uint32Array(machine.cuda.bytesOf(sum!["given_up"]!).buffer);
    const looks = pending();
    const fence = backend!.fence();
    exchange.hasFailed = true;
    expect(() => fence.wait()).toThrow("rank 0 failed");
    expect(looks()).toBeLessThan(10);
    expect([givenUp[0], nccl.live.size]).toEqual([1, 0]);
  });

  test("while steps are captured that use NCCL: another thread aborts it, as that waits for them", () => {
    const aborted: number[] = [];
    const joined: boolean[] = [];
    const ranks = {
      exchange,
      openNccl: () => nccl.api,
      abortNccl: (comm: number) => {
        aborted.push(comm);
        return { join: () => void joined.push(machine.cuda.calls.includes("cuGraphExecDestroy")) };
      },
    };
    backend = machine.backend("bfloat16", { ranks });
    backend.meetRanks();
    const tensors = stream(8);
    const graph = backend.capture(() => backend!.allReduceAdd!(...tensors));
    exchange.hasFailed = true;
    backend.leaveRanks();
    expect(aborted).toEqual([...nccl.live.keys()]);
    expect(nccl.calls).not.toContain("ncclCommAbort");
    nccl.live.clear();
    machine.cuda.calls.length = 0;
    expect(graph).toBeDefined();
    backend.dispose();
    // Which is over when disposal is: it may have waited for the steps.
    expect(joined).toEqual([true]);
  });

  test("of another rank that has nothing left to do: NCCL's end is not released, but given up", () => {
    join();
    exchange.hasFailed = true;
    backend!.leaveRanks();
    backend!.leaveRanks();
    expect(nccl.calls.filter((name) => name === "ncclCommAbort")).toHaveLength(1);
    backend!.dispose();
    expect(nccl.calls).not.toContain("ncclCommDestroy");
  });

  test("of another rank ends all that waits for it: kernels and NCCL", () => {
    const communicator = join();
    const [sum] = launches(() => backend!.allReduceAdd!(...stream(8)));
    const givenUp = new Uint32Array(machine.cuda.bytesOf(sum!["given_up"]!).buffer);
    expect(givenUp[0]).toBe(0);
    communicator.abort();
    communicator.abort();
    expect(givenUp[0]).toBe(1);
    expect(nccl.calls.filter((name) => name === "ncclCommAbort")).toHaveLength(1);
    expect(nccl.live.size).toBe(0);
  });
});
