import type { Backend, BatchTensors, LayerCache } from "../../../src/backend/backend.ts";
import { CpuBackend } from "../../../src/backend/cpu/cpu-backend.ts";
import type { Tensor } from "../../../src/backend/tensor.ts";
import { Workspace } from "../../../src/backend/workspace.ts";
import type { Shard } from "../../../src/base/shard.ts";
import { Checkpoint } from "../../../src/loader/checkpoint.ts";
import { loadWeights } from "../../../src/loader/weights.ts";
import { readModelConfig } from "../../../src/models/config.ts";
import type { ModelDefinition } from "../../../src/models/model.ts";
import { defineModel } from "../../../src/models/registry.ts";

const BLOCK_SIZE = 4;
/** The prompts' lengths. */
const ROWS = [9, 5];
const BLOCKS_PER_ROW = 3;

/** What is loaded of a model in `folder` for a rank, in float32, and the bytes that were read for it. */
export async function loadRank(folder: string, shard: Shard, backend: Backend) {
  const definition = defineModel(readModelConfig(folder), { shard });
  using checkpoint = Checkpoint.open(folder);
  let bytesRead = 0;
  const weights = await loadWeights(checkpoint, definition.parameters, backend, {
    ...{ dtype: "float32", ignored: definition.ignored },
    onProgress: (_, total) => {
      bytesRead = total;
    },
  });
  return { definition, weights, bytesRead };
}

/**
 * Logits [T, V] of two prompts, computed by `size` ranks in lockstep: ops are noted as a rank enqueues them, and run up to
 * the point where all ranks sum, one rank after another.
 */
export async function logitsOf(folder: string, size: number): Promise<Float32Array[]> {
  const ranks = await Promise.all(
    Array.from({ length: size }, (_, rank) => Rank.load(folder, { rank, size })),
  );
  try {
    for (let sum = 0; sum < Math.max(1, ranks[0]!.sums.length); sum++) {
      for (const rank of ranks) rank.run(sum);
      const branches = ranks.map((rank) => rank.sums[sum]?.branch).filter((branch) => branch !== undefined);
      if (branches.length === 0) break;
      const total = branches
        .map((branch) => floatsOf(ranks[0]!.cpu, branch))
        .reduce((all, part) => all.map((x, i) => x + part[i]!));
      for (const { cpu, sums } of ranks) {
        const { residual } = sums[sum]!;
        cpu.upload(
          residual,
          floatsOf(cpu, residual).map((x, i) => x + total[i]!),
        );
      }
    }
    for (const rank of ranks) rank.run(rank.sums.length);
    const parts = ranks.map(({ cpu, logits }) => floatsOf(cpu, logits));
    const tokens = ROWS.reduce((a, b) => a + b);
    return Array.from({ length: tokens }, (_, t) =>
      Float32Array.from(
        parts.flatMap((part) => [
          ...part.subarray((t * part.length) / tokens, ((t + 1) * part.length) / tokens),
        ]),
      ),
    );
  } finally {
    for (const { cpu } of ranks) cpu.dispose();
  }
}

/** A rank of a model and what it has enqueued. */
class Rank {
  /** Ops between one sum over ranks and the next. */
  readonly #ops: (() => void)[][] = [[]];
  readonly sums: { readonly residual: Tensor; readonly branch: Tensor }[] = [];

  private constructor(
    readonly cpu: CpuBackend,
    /** [T, V / size]: its part, once all has run. */
    public logits: Tensor,
  ) {}

  static async load(folder: string, shard: Shard): Promise<Rank> {
    const cpu = new CpuBackend();
    const { definition, weights } = await loadRank(folder, shard, cpu);
    const config = readModelConfig(folder);
    const batch = prompts(cpu, config.vocabSize);
    const logits = cpu.empty("float32", [batch.numTokens, config.vocabSize]);
    const rank = new Rank(cpu, logits);
    const backend = rank.#recorder(shard);
    const model = definition.build(weights, cpu, 64);
    const workspace = new Workspace(cpu);
    const hidden = model.forward({ backend, workspace, batch, kvCache: caches(cpu, definition) });
    model.logits({ backend, workspace }, logits, hidden);
    return rank;
  }

  /** Runs what was enqueued ahead of the nth sum, and after the one before. */
  run(n: number): void {
    for (const op of this.#ops[n]!.splice(0)) op();
  }

  /** A backend that notes ops. */
  #recorder(shard: Shard): Backend {
    const { cpu } = this;
    const enqueue = (op: () => void) => this.#ops.at(-1)!.push(op);
    const allReduceAdd: Backend["allReduceAdd"] = (residual, branch, compute) => {
      compute?.({ start: 0, end: branch.dim(0) });
      this.sums.push({ residual, branch });
      this.#ops.push([]);
    };
    const gatherColumns = (_: Tensor, part: Tensor) => {
      this.logits = part;
    };
    const ops: Partial<Backend> = {
      embedding: (...args) => void enqueue(() => cpu.embedding(...args)),
      fill: (...args) => void enqueue(() => cpu.fill(...args)),
      linear: (...args) => void enqueue(() => cpu.linear(...args)),
      attend: (...args) => void enqueue(() => cpu.attend(...args)),
      ...(shard.size > 1 && { allReduceAdd, gatherColumns }),
    };
    return { activationDtype: "float32", ...ops } as Backend;
  }
}

/** Two prompts as one batch. */
function prompts(backend: Backend, vocabSize: number): BatchTensors {
  const int32 = (values: readonly number[], ...shape: number[]) => {
    const tensor = backend.empty("int32", shape.length > 0 ? shape : [values.length]);
    backend.upload(tensor, Int32Array.from(values));
    return tensor;
  };
  const positions = ROWS.flatMap((length) => Array.from({ length }, (_, i) => i));
  const slotMapping = ROWS.flatMap((length, row) =>
    Array.from({ length }, (_, i) => row * BLOCKS_PER_ROW * BLOCK_SIZE + i),
  );
  const blocks = ROWS.length * BLOCKS_PER_ROW;
  return {
    ...{ numTokens: positions.length, numRows: ROWS.length, decodeRows: 0, blockSize: BLOCK_SIZE },
    maxQueryLen: Math.max(...ROWS),
    tokenIds: int32(positions.map((_, t) => (t * 97 + 13) % vocabSize)),
    positions: int32(positions),
    slotMapping: int32(slotMapping),
    cuSeqlensQ: int32([0, ROWS[0]!, ROWS[0]! + ROWS[1]!]),
    contextLens: int32(ROWS),
    rowSlots: int32([0, 1]),
    blockTables: int32([...Array(blocks).keys()], ROWS.length, BLOCKS_PER_ROW),
  };
}

function caches(backend: Backend, { cachedLayers }: ModelDefinition): LayerCache[] {
  return cachedLayers.map(({ numKvHeads, headDim }) => {
    const shape = [ROWS.length * BLOCKS_PER_ROW, numKvHeads, BLOCK_SIZE, headDim];
    return { keys: backend.empty("float32", shape), values: backend.empty("float32", shape) };
  });
}

function floatsOf(backend: Backend, tensor: Tensor): Float32Array {
  return new Float32Array(backend.download(tensor).buffer);
}
