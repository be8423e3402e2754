/**
 * Decode attention from the plainest kernel on, one idea at a time, beside the one that the engine runs: each checked against the
 * reference backend, then timed over caches that no cache of the GPU holds. docs/book/paged-attention.md explains the steps.
 *
 *   bun run bench:naive                 needs a GPU
 *   bun run bench:naive --json FILE     writes a record, see bench/results/README.md
 */
import { CpuBackend } from "../src/backend/cpu/cpu-backend.ts";
import { CudaBackend } from "../src/backend/cuda/cuda-backend.ts";
import { KernelLibrary } from "../src/backend/cuda/kernel-library.ts";
import type { KernelUnit } from "../src/backend/cuda/kernel-source.ts";
import type { Tensor } from "../src/backend/tensor.ts";
import { narrow, widen } from "../src/base/dtype.ts";
import { createCommand, runCommand } from "../src/cli/command.ts";
import { Context } from "../src/cuda/context.ts";
import { Graph } from "../src/cuda/graph.ts";
import { openCuda } from "../src/cuda/open-cuda.ts";
import { Event, Stream } from "../src/cuda/stream.ts";
import { type AttentionOperands, attentionOperands, BLOCK_SIZE } from "./attention-cases.ts";
import { describeCeilings, MEASURED_FOLDER, measureCeilings } from "./ceilings.ts";
import { CaseMemory } from "./kernel-case.ts";
import type { TimedBackend } from "./profiling-backend.ts";
import { Randomness } from "./randomness.ts";
import { describeMachine, makeRecord, writeRecord } from "./record.ts";
import { median, sum } from "./stats.ts";

/** Of Qwen3-0.6B. */
const HEADS = { numHeads: 16, numKvHeads: 8, headDim: 128 } as const;
const GROUP_SIZE = HEADS.numHeads / HEADS.numKvHeads;
/** Bytes of a token's keys and values. */
const TOKEN_BYTES = 2 * HEADS.numKvHeads * HEADS.headDim * 2;
const LANE_BYTES = 16;
/** Tokens of a walker in the ring of the last step, of which one is computed with. */
const STAGES = 8;
/** Splits: so many blocks a multiprocessor together, of so many tokens at least. */
const BLOCKS_PER_MULTIPROCESSOR = 8;
const MIN_SPLIT_TOKENS = 256;

export const NAIVE_UNIT: KernelUnit = {
  file: "naive_decode.cu",
  constants: {
    ...{ HEAD_DIM: HEADS.headDim, NUM_KV_HEADS: HEADS.numKvHeads, GROUP_SIZE, BLOCK_SIZE, STAGES },
  },
};

/** A kernel of `naive_decode.cu`. */
interface Step {
  readonly name: string;
  readonly entry: string;
  /** Blocks of a row and a split. */
  readonly blocks: number;
  readonly isSplit: boolean;
  readonly sharedBytes: number;
}

const STEPS: readonly Step[] = [
  step("a thread a dimension, a token after another", "decode_naive", HEADS.numHeads, false),
  step("the same, long rows in splits", "decode_naive", HEADS.numHeads, true),
  step("16 bytes a lane, 8 tokens at once, no barriers", "decode_vector", HEADS.numHeads, true),
  step("heads of a group together", "decode_grouped", HEADS.numKvHeads, true),
  step(
    "tokens on their way by cp.async",
    "decode_pipelined",
    HEADS.numKvHeads,
    true,
    STAGES * 2 * HEADS.headDim * LANE_BYTES,
  ),
];

/** Contexts that are timed: of nano-vLLM's workload on average, of long prompts, of one very long one. */
const CONTEXTS: Readonly<Record<string, readonly number[]>> = {
  "256 × 660": Array<number>(256).fill(660),
  "16 × 16384": Array<number>(16).fill(16384),
  "1 × 32768": [32768],
};
/** Contexts that are checked: shorter and longer than a block, a tile, a split. */
const CHECKED = [1, 2, 15, 16, 17, 130, 257, 700, 1500];
/** Of results of values between −2 and 2: weights of the softmax and the result itself are rounded to bfloat16. */
const TOLERANCE = { absolute: 0.01, relative: 0.01 } as const;

/** Timed launches: about so long, on memory of several times any L2 cache. */
const GRAPH_MILLISECONDS = 20;
const MAX_LAUNCHES = 200;
const REPLAYS = 5;

/** A kernel's time for some contexts. */
export interface NaiveTime {
  readonly version: string;
  readonly contexts: string;
  readonly microseconds: number;
  /** Reading keys and values once, at the read ceiling. */
  readonly limitMicroseconds: number;
}

/** Work that can be captured and timed. */
type TimedDevice = Pick<Required<TimedBackend>, "capture" | "mark" | "synchronize">;

interface Version {
  readonly name: string;
  readonly device: TimedDevice;
  /** Enqueues attention on cache `i`, counted round. */
  launch(operands: AttentionOperands, i: number): void;
}

const command = createCommand("bench:naive")
  .description("Measures decode attention from the plainest kernel on.")
  .option("--json <file>", "write a record");
command.action(async ({ json }: { json?: string }) => {
  const machine = describeMachine();
  const cuda = openCuda();
  using context = Context.retain(cuda.driver.api, cuda.device);
  const limits = measureCeilings(cuda);
  console.log(`${machine.gpu}: ${describeCeilings(limits)}`);
  const backend = new CudaBackend(cuda, "bfloat16");
  try {
    const library = KernelLibrary.create(context, cuda.nvrtc, { sourceFolder: MEASURED_FOLDER });
    const versions = versionsOn(backend, context, library);
    for (const { name, worst } of checkAll(backend, versions))
      console.log(`${name.padEnd(50)} worst error ${worst.toExponential(1)}`);
    const times: NaiveTime[] = [];
    for (const [contexts, lengths] of Object.entries(CONTEXTS)) {
      using memory = new CaseMemory(backend);
      const bytes = sum(lengths) * TOKEN_BYTES;
      const operands = attentionOperands(
        memory,
        HEADS,
        lengths,
        lengths.map(() => 1),
        memory.coldSets(bytes),
      );
      const limitMicroseconds = (1e6 * bytes) / limits.bytesPerSecond;
      for (const version of versions) {
        const microseconds = timeLaunches(backend, version, operands);
        times.push({ version: version.name, contexts, microseconds, limitMicroseconds });
        const share = ((100 * limitMicroseconds) / microseconds).toFixed(1);
        console.log(
          `${contexts.padEnd(12)} ${version.name.padEnd(50)} ${microseconds.toFixed(1).padStart(9)} µs  ${share.padStart(5)}%`,
        );
      }
    }
    if (json === undefined) return;
    const run = { benchmark: "naive-decode", model: "heads of Qwen3-0.6B", options: {} };
    writeRecord(json, makeRecord(run, { limits, times }, machine));
    console.log(`wrote ${json}`);
  } finally {
    backend.dispose();
  }
});
if (import.meta.main) await runCommand(command, process.argv.slice(2));

function step(name: string, entry: string, blocks: number, isSplit: boolean, sharedBytes = 0): Step {
  return { name, entry, blocks, isSplit, sharedBytes };
}

/** The steps, and what the engine runs. */
function versionsOn(backend: CudaBackend, context: Context, library: KernelLibrary): Version[] {
  const stream = Stream.create(context);
  const device: TimedDevice = {
    capture: (enqueue) => {
      using graph = Graph.capture(stream, enqueue);
      const replay = graph.instantiate();
      return { launch: () => replay.launch(stream), dispose: () => replay.dispose() };
    },
    mark: () => {
      const event = Event.create(context, { timing: true });
      event.record(stream);
      return event;
    },
    synchronize: () => stream.synchronize(),
  };
  const scratch = new CaseMemory(backend);
  const partials = scratch.empty("float32", 2 ** 24);
  const stats = scratch.empty("float32", 2 ** 20);
  const merge = library.kernel(NAIVE_UNIT, "merge_splits");
  const steps = STEPS.map(({ name, entry, blocks, isSplit, sharedBytes }): Version => {
    const kernel = library.kernel(NAIVE_UNIT, entry);
    return {
      ...{ name, device },
      launch({ out, qkv, caches, batch, spec }, i) {
        const { keys, values } = caches[i % caches.length]!;
        const { numRows, blockTables, contextLens } = batch;
        const maxBlocks = blockTables.dim(1);
        const splits = isSplit
          ? splitsOf(numRows * blocks, maxBlocks * BLOCK_SIZE, context.device.multiprocessors)
          : 1;
        kernel.launch(stream.value, blocks, numRows, splits, HEADS.headDim, sharedBytes, {
          ...{ out, partials, stats, qkv, keys, values },
          ...{ block_tables: blockTables, context_lens: contextLens, max_blocks: maxBlocks },
          scale_log2: spec.scale * Math.LOG2E,
        });
        if (splits > 1)
          merge.launch(stream.value, HEADS.numHeads, numRows, 1, HEADS.headDim, 0, {
            ...{ out, partials, stats, splits },
          });
      },
    };
  });
  const engine: Version = {
    ...{ name: "tensor cores, tiles in registers (the engine's)", device: backend },
    launch: ({ out, qkv, caches, batch, spec }, i) =>
      backend.attend(out, qkv, caches[i % caches.length]!, batch, spec),
  };
  return [...steps, engine];
}

function splitsOf(blocks: number, maxContext: number, multiprocessors: number): number {
  const wanted = Math.ceil((BLOCKS_PER_MULTIPROCESSOR * multiprocessors) / blocks);
  return Math.max(1, Math.min(wanted, Math.floor(maxContext / MIN_SPLIT_TOKENS)));
}

/** Each version's worst error. @throws Error when a version is off by more than the tolerance. */
function checkAll(
  backend: CudaBackend,
  versions: readonly Version[],
): readonly { readonly name: string; readonly worst: number }[] {
  const cpu = new CpuBackend();
  using host = new CaseMemory(cpu);
  using memory = new CaseMemory(backend);
  const queries = CHECKED.map(() => 1);
  const reference = attentionOperands(host, HEADS, CHECKED, queries, 1);
  const operands = attentionOperands(memory, HEADS, CHECKED, queries, 1);
  const inputs = ({ qkv, caches: [cache] }: AttentionOperands) => [qkv, cache!.keys, cache!.values];
  const random = new Randomness(1);
  for (const [i, tensor] of inputs(reference).entries()) {
    const values = new Float32Array(tensor.size);
    for (let j = 0; j < values.length; j++) values[j] = 4 * random.next() - 2;
    const rounded = narrow(values, "bfloat16");
    widen(rounded, "bfloat16", values);
    cpu.upload(tensor, values);
    backend.upload(inputs(operands)[i]!, rounded);
  }
  cpu.attend(reference.out, reference.qkv, reference.caches[0]!, reference.batch, reference.spec);
  const expected = new Float32Array(reference.out.size);
  widen(cpu.download(reference.out), "float32", expected);
  // The engine's kernel stores the new tokens' keys and values, which the steps find in the cache.
  const [engine] = versions.slice(-1);
  engine!.launch(operands, 0);
  return versions.map((version) => {
    backend.fill(operands.out, 0xff);
    backend.synchronize();
    version.launch(operands, 0);
    version.device.synchronize();
    return { name: version.name, worst: worstError(version.name, backend, operands.out, expected) };
  });
}

function worstError(name: string, backend: CudaBackend, out: Tensor, expected: Float32Array): number {
  const actual = new Float32Array(out.size);
  widen(backend.download(out), "bfloat16", actual);
  let worst = 0;
  for (const [i, value] of expected.entries()) {
    const error = Math.abs(actual[i]! - value);
    if (!(error <= TOLERANCE.absolute + TOLERANCE.relative * Math.abs(value)))
      throw new Error(`${name}: output ${i} is ${actual[i]} instead of ${value}`);
    worst = Math.max(worst, error);
  }
  return worst;
}

/** Microseconds of a launch, in a graph of many: the median replay. */
function timeLaunches(
  backend: CudaBackend,
  { device, launch }: Version,
  operands: AttentionOperands,
): number {
  backend.synchronize();
  const milliseconds = (run: () => void) => {
    const start = device.mark();
    run();
    const end = device.mark();
    device.synchronize();
    const elapsed = end.elapsedSince(start);
    for (const mark of [start, end]) mark.dispose();
    return elapsed;
  };
  launch(operands, 0);
  const once = milliseconds(() => launch(operands, 1));
  const launches = Math.max(2, Math.min(MAX_LAUNCHES, Math.ceil(GRAPH_MILLISECONDS / once)));
  const graph = device.capture(() => {
    for (let i = 0; i < launches; i++) launch(operands, i);
  });
  try {
    graph.launch();
    const times = Array.from({ length: REPLAYS }, () => milliseconds(() => graph.launch()));
    return (1000 * median(times)) / launches;
  } finally {
    graph.dispose();
  }
}
