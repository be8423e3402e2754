import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { dtypeSize } from "../../base/dtype.ts";
import { DeviceError } from "../../base/errors.ts";
import type { Context } from "../../cuda/context.ts";
import { type CublasLt, type MatmulAlgorithm, matmulAlgorithm } from "../../cuda/cublaslt.ts";
import { Graph } from "../../cuda/graph.ts";
import { LinearMatmul, type LinearShape } from "../../cuda/linear-matmul.ts";
import { DeviceMemory } from "../../cuda/memory.ts";
import { Event, type Stream } from "../../cuda/stream.ts";
import { algorithmKey, rowAlignment } from "./gemm-shape.ts";

/** Algorithms that are timed for each shape. */
const CANDIDATES = 8;
/** Above this the LM head's output, which nobody asks for, would not fit. */
const MANY_TOKENS = 1024;
/** Timed replays of a candidate; the fastest counts. */
const REPLAYS = 3;
/** What a timing cycles through comes to at least this many times the L2 cache, where the model has the weights for it. */
const L2_MULTIPLE = 3;
/**
 * Every byte of the inputs of a timed product: small numbers in either format. With zeros a GPU would draw so little power that
 * long products ran at clocks they never have.
 */
const INPUT_BYTE = 0x3c;

/** A shape without its number of tokens, which is the same for all products of a weight. */
type WeightShape = Omit<LinearShape, "tokens">;

/** The weights of a shape that the model multiplies by. */
interface SeenWeights {
  readonly shape: WeightShape;
  readonly addresses: Set<number>;
  /** The most tokens that one of them was multiplied by. */
  mostTokens: number;
}

/** A chosen algorithm as it is kept on disk. */
interface StoredAlgorithm {
  readonly algorithm: string;
  readonly workspaceBytes: number;
}

/**
 * Finds the fastest cuBLASLt algorithm of a shape. cuBLASLt's own ranking is a guess; the best of its first few is often much
 * faster at decode batch sizes, and by a tenth for thousands of tokens. Each is timed in a captured graph that cycles through the model's own weights of
 * that shape, so that every product reads its weight from memory, as in a real step. Choices are kept on disk for the
 * same GPU, driver and cuBLASLt.
 */
export class GemmTuner {
  readonly #weights = new Map<string, SeenWeights>();
  readonly #best = new Map<string, MatmulAlgorithm>();
  readonly #path: string;
  #dirty = false;

  constructor(
    private readonly context: Context,
    private readonly stream: Stream,
    private readonly cublas: CublasLt,
    private readonly workspace: DeviceMemory,
    folder: string,
    driverVersion: readonly number[],
  ) {
    const { name } = context.device;
    const versions = [driverVersion.join("."), cublas.api.cublasLtGetVersion()];
    const key = [name, ...versions, CANDIDATES, workspace.byteLength].join("\n");
    this.#path = join(folder, `gemm-${sha256(key).slice(0, 32)}`);
    this.#load();
  }

  /** Remembers that the model multiplies by the weight at an address, and by how many tokens. */
  observe({ tokens, ...shape }: LinearShape, weight: number): void {
    const key = algorithmKey({ ...shape, tokens: 0 });
    const known = this.#weights.get(key);
    if (known === undefined) {
      this.#weights.set(key, { shape, addresses: new Set([weight]), mostTokens: tokens });
      return;
    }
    known.addresses.add(weight);
    known.mostTokens = Math.max(known.mostTokens, tokens);
  }

  /** The fastest algorithm known for the shape. */
  best(shape: LinearShape): MatmulAlgorithm | undefined {
    return this.#best.get(algorithmKey(shape));
  }

  /**
   * Times the algorithms of every weight seen so far at these token counts, where the choice is not known yet; at thousands
   * of tokens only of weights seen with as many. What cannot be timed, for want of memory or because cuBLASLt refuses, is left
   * to cuBLASLt's own ranking.
   */
  tune(tokenCounts: readonly number[]): void {
    for (const { shape, addresses, mostTokens } of this.#weights.values()) {
      for (const tokens of tokenCounts) {
        if (tokens > Math.max(mostTokens, MANY_TOKENS)) continue;
        const whole = { ...shape, tokens };
        if (!this.#best.has(algorithmKey(whole))) attempt(() => this.#time(whole, [...addresses]));
      }
    }
    if (this.#dirty) this.#store();
  }

  #time(shape: LinearShape, weights: readonly number[]): void {
    const { tokens, inFeatures, outFeatures, inputType, outputType } = shape;
    const xBytes = tokens * inFeatures * dtypeSize(inputType);
    const outBytes = tokens * outFeatures * dtypeSize(outputType);
    const bytes = inFeatures * outFeatures * dtypeSize(inputType) + xBytes + outBytes;
    const wanted = Math.ceil((L2_MULTIPLE * this.context.device.l2CacheSize) / bytes);
    const used = weights.slice(0, Math.max(1, wanted));
    using x = DeviceMemory.allocate(this.context, xBytes);
    using out = DeviceMemory.allocate(this.context, outBytes);
    using bias = DeviceMemory.allocate(this.context, outFeatures * dtypeSize(outputType));
    using matmul = new LinearMatmul(this.cublas, shape);
    this.stream.fill(x.value, INPUT_BYTE, x.byteLength);
    for (const memory of [out, bias]) this.stream.fill(memory.value, 0, memory.byteLength);
    const common = { out: out.value, x: x.value, bias: bias.value, addTo: out.value };
    let best: { algorithm: MatmulAlgorithm; milliseconds: number } | undefined;
    for (const algorithm of matmul.algorithms(CANDIDATES, this.workspace.byteLength, rowAlignment(shape))) {
      const enqueue = () => {
        for (const weight of used)
          matmul.run(this.stream.value, algorithm, this.workspace.value, { ...common, weight });
      };
      const milliseconds = attempt(() => this.#replayTime(enqueue)) ?? Infinity;
      if (milliseconds < (best?.milliseconds ?? Infinity)) best = { algorithm, milliseconds };
    }
    if (best === undefined) return;
    this.#best.set(algorithmKey(shape), best.algorithm);
    this.#dirty = true;
  }

  #replayTime(enqueue: () => void): number {
    using start = Event.create(this.context, { timing: true });
    using end = Event.create(this.context, { timing: true });
    using graph = Graph.capture(this.stream, enqueue);
    using replay = graph.instantiate();
    let best = Infinity;
    for (let i = 0; i <= REPLAYS; i++) {
      start.record(this.stream);
      replay.launch(this.stream);
      end.record(this.stream);
      end.synchronize();
      if (i > 0) best = Math.min(best, end.elapsedSince(start));
    }
    return best;
  }

  /** A file that is missing or damaged is as good as none: shapes are timed again. */
  #load(): void {
    try {
      const [digest, text] = readFileSync(this.#path, "utf8").split("\n");
      if (text === undefined || digest !== sha256(text)) return;
      for (const [key, stored] of Object.entries(JSON.parse(text) as Record<string, StoredAlgorithm>)) {
        const bytes = Buffer.from(stored.algorithm, "hex");
        this.#best.set(key, matmulAlgorithm(bytes, stored.workspaceBytes));
      }
    } catch {
      // There is no file yet.
    }
  }

  #store(): void {
    const stored = [...this.#best].map(([key, { bytes, workspaceBytes }]): [string, StoredAlgorithm] => [
      key,
      { algorithm: Buffer.from(bytes).toString("hex"), workspaceBytes },
    ]);
    const text = JSON.stringify(Object.fromEntries(stored));
    try {
      mkdirSync(join(this.#path, ".."), { recursive: true, mode: 0o700 });
      writeFileSync(this.#path, `${sha256(text)}\n${text}`);
    } catch {
      // The cache is never in the way: the shapes are timed again at the next start.
    }
    this.#dirty = false;
  }
}

/** The result of `run`; undefined when the device refused, but goes on. */
function attempt<T>(run: () => T): T | undefined {
  try {
    return run();
  } catch (error) {
    if (error instanceof DeviceError && !error.fatal) return undefined;
    throw error;
  }
}

function sha256(text: string): string {
  return new Bun.CryptoHasher("sha256").update(text).digest("hex");
}
