import type { Backend } from "../backend/backend.ts";
import type { EngineConfig } from "../base/config.ts";
import { ConfigError, DeviceError } from "../base/errors.ts";
import type { ModelConfig } from "../models/config.ts";
import { kvBlockBytes } from "./kv-cache.ts";

/** KV pool where memory is the host's, unless `kvCacheMemoryBytes` says otherwise. */
const HOST_POOL_BYTES = 2 ** 30;
/** Share of a GPU's lease that activations and batch state are assumed to leave, before they are measured. */
const POOL_SHARE_ESTIMATE = 0.8;

type Options = Pick<
  EngineConfig,
  "maxModelLen" | "maxNumSeqs" | "blockSize" | "gpuMemoryUtilization" | "kvCacheMemoryBytes"
>;

/** Decides how long sequences may be and how many KV blocks there are. */
export class KvPlan {
  /** Prompt plus output tokens that one sequence can have. */
  readonly maxModelLen: number;
  readonly #blockBytes: number;

  /** @throws ConfigError when `maxModelLen` exceeds what the model or the memory holds. */
  constructor(
    model: ModelConfig,
    private readonly options: Options,
    private readonly backend: Backend,
  ) {
    const limit = model.maxPositionEmbeddings;
    const asked = options.maxModelLen;
    if (asked !== undefined && asked > limit)
      throw new ConfigError("maxModelLen", `maxModelLen ${asked} exceeds the model's limit of ${limit}`);
    const { blockSize } = options;
    this.#blockBytes = kvBlockBytes({ ...model, blockSize }, backend.activationDtype);
    const estimate = this.#poolBytes() * (this.#isMeasured ? POOL_SHARE_ESTIMATE : 1);
    const fits = this.#tokensIn(estimate);
    this.maxModelLen = asked ?? Math.min(limit, fits);
    // On a GPU the estimate only picks a default: what is asked for is held against the measured pool.
    if (this.maxModelLen === 0 || (!this.#isMeasured && this.maxModelLen > fits)) throw this.#tooSmall(fits);
  }

  /**
   * Blocks of the pool. On a GPU: what `gpuMemoryUtilization` of its memory leaves when everything else is allocated.
   * @throws DeviceError or ConfigError when one sequence of `maxModelLen` tokens does not fit, naming what would.
   */
  numBlocks(): number {
    const { blockSize, maxNumSeqs } = this.options;
    const blocks = Math.floor(this.#poolBytes() / this.#blockBytes);
    if (blocks * blockSize < this.maxModelLen) throw this.#tooSmall(Math.max(0, blocks * blockSize));
    const most = Math.ceil(this.maxModelLen / blockSize) * maxNumSeqs;
    return this.#isMeasured ? blocks : Math.min(blocks, most);
  }

  get #isMeasured(): boolean {
    return this.backend.memory !== undefined && this.options.kvCacheMemoryBytes === undefined;
  }

  #poolBytes(): number {
    const { kvCacheMemoryBytes, gpuMemoryUtilization } = this.options;
    if (kvCacheMemoryBytes !== undefined) return kvCacheMemoryBytes;
    const memory = this.backend.memory?.();
    if (memory === undefined) return HOST_POOL_BYTES;
    return Math.max(0, gpuMemoryUtilization * memory.total - (memory.total - memory.free));
  }

  #tokensIn(bytes: number): number {
    return Math.floor(bytes / this.#blockBytes) * this.options.blockSize;
  }

  #tooSmall(fits: number): Error {
    const { blockSize, gpuMemoryUtilization } = this.options;
    const wanted = Math.max(this.maxModelLen, 1);
    const needed = mebibytes(Math.ceil(wanted / blockSize) * this.#blockBytes);
    const available = mebibytes(this.#poolBytes());
    const facts = `a context of ${wanted} tokens needs ${needed} of KV cache, there is room for ${available}`;
    const length = fits > 0 ? `maxModelLen to ${fits} at most` : "nothing smaller would fit; free memory";
    if (!this.#isMeasured)
      return new ConfigError("kvCacheMemoryBytes", `${facts}: raise it, or set ${length}`);
    return new DeviceError(
      `${facts} within gpuMemoryUtilization ${gpuMemoryUtilization}: raise it, or set ${length}`,
    );
  }
}

function mebibytes(bytes: number): string {
  return `${Math.ceil(bytes / 2 ** 20)} MiB`;
}
