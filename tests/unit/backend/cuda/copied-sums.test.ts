import { afterEach, beforeEach, describe, expect, setDefaultTimeout, test } from "bun:test";
import type { CudaBackend } from "../../../../src/backend/cuda/cuda-backend.ts";
import type { Tensor } from "../../../../src/backend/tensor.ts";
import type { Span } from "../../../../src/base/shard.ts";
import { Context } from "../../../../src/cuda/context.ts";
import { Device } from "../../../../src/cuda/device.ts";
import { FakeNccl } from "../../cuda/fake-nccl.ts";
import { type Copied, FakeExchange, otherMemory } from "./fake-exchange.ts";
import { FakeMachine } from "./fake-machine.ts";
import { namedArguments } from "./kernel-signatures.ts";

setDefaultTimeout(300_000);

const WIDTH = 4096;
/** Where copies begin in a rank's memory, and the bytes of one of two buffers. */
const COPIES = 2 * 2 * (2 ** 22 + 2 ** 16 * 8) + 4 * 8;
const BUFFER_BYTES = 2 ** 27;

let machine: FakeMachine;
let exchange: FakeExchange;
let other: Context;
let backend: CudaBackend;
let copied: Copied[];
let nccl: FakeNccl;

/** This rank is 1 of 2. */
function join(options: { batchInvariant?: boolean } = {}): void {
  backend = machine.backend("bfloat16", { ...options, ranks: { exchange, openNccl: () => nccl.api } });
  backend.meetRanks();
  copied.length = 0;
  machine.cuda.launches.length = 0;
}

beforeEach(() => {
  machine = new FakeMachine({ memory: 2 ** 30 });
  for (const entry of ["reduce_add", "add_copied", "gather_words"]) machine.cuda.structBytes.set(entry, 64);
  copied = [];
  machine.cuda.others = otherMemory(copied);
  nccl = new FakeNccl();
  nccl.isAlone = true;
  exchange = new FakeExchange();
  other = Context.retain(machine.cuda.api, Device.open(machine.cuda.api, 0));
  exchange.answers.context = other.value;
});

afterEach(() => {
  backend.dispose();
  other.dispose();
  expect(machine.leftovers).toEqual([]);
  machine[Symbol.dispose]();
});

/** Sums a message of so many rows, and what was done for it in its order. */
function sum(rows: number, residual = stream(rows), branch = stream(rows)) {
  const { cuda } = machine;
  cuda.launches.length = 0;
  cuda.calls.length = 0;
  copied.length = 0;
  const computed: Span[] = [];
  backend.allReduceAdd!(residual, branch, (piece) => {
    computed.push(piece);
    cuda.calls.push("compute" as never);
  });
  const launches = cuda.launches.map(
    (launch) => ({ ...namedArguments(launch), dependent: launch.dependent }) as never,
  );
  const entries = cuda.launches.map(({ entry }) => entry);
  return { computed, entries, launches: launches as Record<string, number>[], calls: [...cuda.calls] };
}

function stream(rows: number): Tensor {
  return backend.empty("bfloat16", [rows, WIDTH]);
}

describe("a sum of two ranks whose branch is yet to be computed", () => {
  test("is computed, sent and added piece by piece; a piece is sent when it is computed, added when it is sent", () => {
    join();
    const [residual, branch] = [stream(4096), stream(4096)];
    const { computed, entries, launches, calls } = sum(4096, residual, branch);
    expect(computed).toEqual([
      { start: 0, end: 2048 },
      { start: 2048, end: 4096 },
    ]);
    expect(copied).toEqual(
      [0, 1].map((i) => ({ to: COPIES + BUFFER_BYTES + i * 2 ** 24, byteLength: 2 ** 24 })),
    );
    expect(entries).toEqual(["add_copied", "add_copied"]);
    for (const [i, launch] of launches.entries())
      expect(launch).toMatchObject({
        residual: residual.address + i * 2 ** 24,
        branch: branch.address + i * 2 ** 24,
        size: 2 ** 23,
        // The first was when the ranks met.
        ...{ rank: 1, sequence: 2 + i, capacity: 2 ** 23, offset: COPIES - 4 * 8, dependent: false },
      });
    // In this rank's memory, where in the other's this rank has copied to.
    expect(launches[1]!["copies"]! - launches[0]!["copies"]!).toBe(2 ** 24);
    const sent = ["cuEventRecord", "cuStreamWaitEvent", "cuMemcpyDtoDAsync_v2", "cuEventRecord"];
    const added = ["cuStreamWaitEvent", "cuLaunchKernel"];
    expect(calls as string[]).toEqual(["compute", ...sent, "compute", ...sent, ...added, ...added]);
  });

  test("of more than fits goes in groups that take turns, of four pieces; all but the last are added at once", () => {
    join();
    const { computed, entries, launches } = sum(20_000);
    const ends = [2560, 5120, 7680, 10112, 12672, 15232, 17792, 20000];
    expect(computed.map(({ end }) => end)).toEqual(ends);
    const places = [0, 2560, 5120, 7680];
    const rows = copied.map(({ to }) => (to - COPIES) / WIDTH / 2);
    const second = BUFFER_BYTES / WIDTH / 2;
    expect(rows).toEqual([...places.map((row) => second + row), ...places]);
    expect(entries).toEqual(Array(4).fill("add_copied"));
    expect(launches.map(({ size }) => size! / WIDTH)).toEqual([7680, 2432, 7680, 2208]);
    expect(launches.map(({ sequence }) => sequence)).toEqual([2, 3, 4, 5]);
    const base = launches[2]!["copies"]!;
    expect(launches.map(({ copies: at }) => (at! - base) / WIDTH / 2)).toEqual([
      second,
      second + 7680,
      0,
      7680,
    ]);
    expect(sum(4097).computed.map(({ end }) => end)).toEqual([2176, 4097]);
    expect(copied.map(({ to }) => to - COPIES)).toEqual(
      [0, 2176].map((row) => BUFFER_BYTES + row * WIDTH * 2),
    );
  });

  test("that is small, or captured, or rehearsed, is computed as a whole", () => {
    join();
    expect(sum(2048)).toMatchObject({
      computed: [{ start: 0, end: 2048 }],
      entries: Array(4).fill("reduce_add"),
    });
    let inside: ReturnType<typeof sum> | undefined;
    const [residual, branch] = [stream(4096), stream(4096)];
    backend.rehearse(() => {
      inside = sum(4096, residual, branch);
    });
    expect(inside).toMatchObject({ computed: [{ start: 0, end: 4096 }], entries: ["add"] });
    const graph = backend.capture(() => {
      inside = sum(4096, residual, branch);
    });
    graph.dispose();
    expect(inside!.computed).toEqual([{ start: 0, end: 4096 }]);
    expect(copied).toEqual([]);
    expect(sum(4096).computed).toHaveLength(2);
  });

  test("is computed as a whole where rows must not depend on their batch, or GPUs do not reach each other", () => {
    join({ batchInvariant: true });
    expect(sum(4096).computed).toHaveLength(1);
    backend.dispose();
    exchange = new FakeExchange();
    Object.assign(exchange.answers, { context: other.value, reaches: 0 });
    join();
    nccl.failures.set("ncclAllReduce", 0);
    expect(sum(4096)).toMatchObject({ computed: [{ start: 0, end: 4096 }], entries: ["add"] });
  });
});
