import type { DeviceName } from "../base/device-name.ts";
import type { DType, FloatDType, KvDType } from "../base/dtype.ts";
import type { Span } from "../base/shard.ts";
import type { AttentionForm, AttentionSpec, KvHeads, ProjectionNormSpec } from "./attention-spec.ts";
import type { DeltaNetOps, DeltaNetShape } from "./delta-net.ts";
import type { ExpertOps } from "./experts.ts";
import type { Activation, LinearFusion, RmsNormSpec } from "./linear-fusion.ts";
import type { DeviceBuffer, Tensor } from "./tensor.ts";
import type { Weight } from "./weight.ts";

export type { Activation, LinearActivation, LinearFusion, RmsNormSpec } from "./linear-fusion.ts";

/**
 * The ops that a model is made of, on one device. Ops are enqueued in order on one stream: each sees what the ones
 * before it wrote, and the host must call `download` or `synchronize` to see results. Implementations check shapes
 * and dtypes before they launch anything.
 *
 * Shapes: T tokens of a ragged batch, R rows (sequences) of it, S slots, V vocabulary, H hidden size, D head
 * dimension, NQ and NKV query and key/value heads, B blocks of BS tokens, G groups of layers, each with block tables of its own. Activations, norms' weights and biases have dtype
 * `activationDtype`, embedding tables too or one of `matrixDtypes`; a `Weight` and a `LayerCache` have dtypes of their own; statistics, logits and
 * softmax are float32. Inputs and outputs must not overlap, except where an op says that it works in place.
 */
export interface Backend extends ExpertOps, DeltaNetOps {
  readonly name: DeviceName;
  /** Dtype of ops' inputs and outputs, unless they say otherwise. */
  readonly activationDtype: FloatDType;
  /** Other dtypes that dense weights and embedding tables may have: a checkpoint's in one of these are kept as they are. */
  readonly matrixDtypes?: readonly FloatDType[];
  /**
   * An LM head that is the embedding table is multiplied by in the codes that the checkpoint has it in, if it has any, beside the table:
   * fewer bytes a token, but more memory. Default: by the table.
   */
  readonly headCodes?: boolean;

  // ── memory ──────────────────────────────────────────────────────────────────────────────────────────────────────

  /**
   * Uninitialised memory. Throws `DeviceError` when there is not enough.
   * @param isPool it is filled little by little, as KV caches are, and perhaps never to its end
   */
  allocate(byteLength: number, isPool?: boolean): DeviceBuffer;
  /**
   * Uninitialised memory of the host, `host` of the buffer, that ops read and write in place: small and slow for the device.
   * What the host wrote is seen by ops enqueued after that; what ops wrote, once the host has waited for them.
   */
  allocateShared(byteLength: number): DeviceBuffer;
  /** Shorthand: a tensor on memory of its own. */
  empty(dtype: DType, shape: readonly number[]): Tensor;
  /** Copies raw little-endian bytes of the tensor's dtype to the device; `data` may be reused on return. */
  upload(target: Tensor, data: ArrayBufferView): void;
  /** A tensor's bytes themselves, to be written in place of an upload. Undefined where the host does not reach them. */
  bytesOf?(target: Tensor): Uint8Array;
  /**
   * Memory that other threads fill and the device copies from, for uploads of gigabytes. One at a time, and no
   * `upload` until it is disposed of. Undefined where it would not be faster than `upload`.
   */
  bulkUpload?(): BulkUpload;
  /** Waits for the ops before it and copies the tensor's raw bytes to the host. */
  download(source: Tensor): Uint8Array;
  /** Enqueues the same copy and returns at once; the tensor may be overwritten by ops that follow. */
  readback(source: Tensor): Readback;
  /** Enqueues target = source, of one dtype and shape, which do not overlap. */
  copy(target: Tensor, source: Tensor): void;
  /** Sets every byte of the tensor. */
  fill(target: Tensor, byte: number): void;
  /** Marks the end of what is enqueued. */
  fence(): Fence;
  /** Waits for everything enqueued. */
  synchronize(): void;
  /**
   * Takes a loaded weight, of any format, in its canonical form and gives the one that `linear` multiplies by: the same, or one whose
   * memory is ordered as the device likes it. Called once for each weight, before anything multiplies by it, and then only the result
   * is used; what it replaces, the backend frees. Weights of `experts` stay canonical and are not prepared. Undefined where all do.
   */
  prepareWeight?(weight: Weight): Weight;
  /** Bytes of the device; undefined where memory is the host's. */
  memory?(): { readonly free: number; readonly total: number };
  /** Compiles ahead what a model of these sizes needs; what it does not foresee still works, later. */
  prepare?(shape: ModelShape): Promise<void>;
  /** Finds the fastest way to multiply by the weights used so far, at these numbers of tokens; at thousands only if it was used so. */
  tuneLinear?(tokenCounts: readonly number[]): void;
  /**
   * Makes the way to the other ranks, where there are any: all of them call it at the same time, once, ahead of the first op that
   * they have to do with.
   */
  meetRanks?(): void;
  /**
   * Waits for what is enqueued, or gives it up if another rank has failed; nothing but disposal may follow. What ranks reach of each
   * other's must not be freed before. Safe to call twice.
   */
  leaveRanks?(): void;
  /**
   * Runs ops whose results nobody will look at, as what a step needs is allocated by them: ranks run them each by itself, so that
   * none waits on its device for one that allocates. Undefined where that makes no difference.
   */
  rehearse?(run: () => void): void;
  /**
   * Records the ops that `enqueue` calls, without running them, for replay on the same memory. Inside, nothing may be
   * allocated, uploaded or downloaded. All ranks do it at the same point of their work. Undefined where the device has no such
   * thing.
   */
  capture?(enqueue: () => void): CapturedGraph;
  /** Every number of decode rows has a captured step of its own, recorded when it first comes. Default: a few have, ahead; needs `memory`. */
  readonly capturesEverySize?: boolean;
  /** Frees everything this backend allocated. Safe to call twice. */
  dispose(): void;

  // ── tables ──────────────────────────────────────────────────────────────────────────────────────────────────────

  /**
   * out float32 [positions, 2·H]: `amplitude` times the cosines of each position's angles, then their sines. The angles are
   * float32 products of a position and frequencies float32 [H], in radians: transformers computes them so, and models
   * were trained on those. What follows is computed in float64 and rounded once.
   */
  rotaryTable(out: Tensor, frequencies: Tensor, amplitude: number): void;

  // ── layers ──────────────────────────────────────────────────────────────────────────────────────────────────────

  /**
   * out[T, H] = table[V, H] at ids[T] (int32, each in [0, V)). With `firstId` the table has the rows of ids [firstId, firstId + V)
   * alone, and any other id gives zeros: the term of one rank in a sum over ranks. Rows are multiplied by `scale`, default 1.
   */
  embedding(out: Tensor, table: Tensor, ids: Tensor, firstId?: number, scale?: number): void;
  /** out[R, H] = x[T, H] at rows[R] (int32, each in [0, T)). */
  gatherRows(out: Tensor, x: Tensor, rows: Tensor): void;
  /**
   * out[T, N] = x[T, K] · weight[N, K]ᵀ, and what `fusion` says happens around the product. Without a bias, an activation
   * and a sum, `out` may also be float32. Sums of K products are float32; a backend that computes the parts one by one
   * rounds to `activationDtype` between them. A quantised weight stands for the real numbers that `Weight` defines, and x is not
   * rounded further.
   */
  linear(out: Tensor, x: Tensor, weight: Weight, fusion?: LinearFusion): void;
  /**
   * residual[T, H] += the sum of every rank's branch[T, H], in the order of the ranks; `branch` is undefined afterwards.
   * Undefined where this rank is the only one: products are then added to the residual stream by `linear`.
   * @param compute enqueues the ops that give rows of `branch`, if it is not there yet: called for all rows, or for one piece of
   * them after another, so that a backend can send some while it computes others
   */
  allReduceAdd?(residual: Tensor, branch: Tensor, compute?: (rows: Span) => void): void;
  /**
   * out[N, V] = every rank's part[N, V / ranks] beside each other, float32, in the order of the ranks. Undefined where this rank
   * is the only one.
   */
  gatherColumns?(out: Tensor, part: Tensor): void;
  /**
   * out[T, H] = x / rms(x) · weight[H], rms over the last dimension (Zhang & Sennrich 2019). With `addTo`, that is added to
   * addTo[T, H], which may be `out` itself, the sum multiplied by `scale` float32 [1], if there is one, and rounded once.
   */
  rmsNorm(out: Tensor, x: Tensor, weight: Tensor, eps: number, addTo?: Tensor, scale?: Tensor): void;
  /** out[T, H] = (x − mean) / sqrt(var + eps) · weight[H] + bias[H]. */
  layerNorm(out: Tensor, x: Tensor, weight: Tensor, bias: Tensor | undefined, eps: number): void;
  /** out[T, I] = act(x[T, I]); `out` may be `x`. */
  activation(out: Tensor, x: Tensor, activation: Activation): void;
  /** x[T, I] = x · factors[T, W] at columns [start, start + I), in place. */
  multiplyColumns(x: Tensor, factors: Tensor, start: number): void;
  /**
   * RMSNorm in place of the queries and the keys of qkv[T, (NQ + 2·NKV)·D], each over all of its heads at once, those of other
   * ranks too, which call it together.
   */
  normProjections(qkv: Tensor, norm: ProjectionNormSpec): void;
  /**
   * out[T, NQ·D]: causal attention on the packed projections qkv[T, (NQ + 2·NKV)·D] (queries, keys, values) of a ragged
   * batch. Queries and keys are normalised and rotated by their positions where the spec says so; keys and values are
   * stored in the paged cache at `batch.slotMapping`, unless the spec says that they are there already; then query t of row r, at position p = contextLens[r] − queryLen(r)
   * + t, sees the row's positions (p − window, p], those of this step and those cached before it, paged by
   * `batch.blockTables`. Of padding (slot mapping −1) nothing is stored, and its outputs are undefined, as `qkv` is afterwards.
   */
  attend(out: Tensor, qkv: Tensor, cache: LayerCache, batch: BatchTensors, spec: AttentionSpec): void;

  // ── the batch ───────────────────────────────────────────────────────────────────────────────────────────────────

  /**
   * A sequence takes each of N slots, whose tokens and parameters are in place: `joins` int32 [N, JOIN_WORDS], laid out by
   * `JoinWord`, sets the slot's length and computed tokens, and its token counts are made anew if it has penalties.
   */
  joinSlots(slots: SlotTensors, joins: Tensor): void;
  /**
   * Begins a step: turns its rows, int32 [R, rowWords(G)] laid out by `RowWord` at the start of the step's area of `inbox`, into
   * metadata, which fills the tensors of `batch` and `samples`. A row starts where its slot's computed tokens end, and they
   * now end where the row does; the blocks that it brings are in the slot's block tables first. Rows of one slot must not repeat
   * unless it is vacant. Tokens of the batch past those of the rows are padding: id and position 0, slot mappings −1.
   */
  prepareBatch(batch: StepBatch, samples: SampleRows, inbox: StepAreas, slots: SlotTensors): void;
  /** The first words of the area in `outbox` of the step that was begun last become results[N], 4-byte elements. */
  post(outbox: StepAreas, results: Tensor): void;
  /** target[indices[i]] = values[i], all 4-byte, N entries each; the indices are distinct. */
  scatter(target: Tensor, indices: Tensor, values: Tensor): void;

  // ── sampling: logits float32 [N, V], a row for each of `samples` ──────────────────────────────────────────────────

  /** logits[N, V] = cap · tanh(logits / cap), in place; see `LmHead.softCap`. */
  capLogits(logits: Tensor, cap: number): void;
  /**
   * out[N, V] = logits after the slot's repetition, presence and frequency penalties, logit edits (bias, bans),
   * allowed-token mask and bad words, for the token that follows position `samples.positions`. Mask, bad words and edits
   * come first, edits of one token add up, then the penalties, as in vLLM. Rows of slots without any `SlotFlag` are not
   * written. `out` may be `logits`.
   */
  processLogits(out: Tensor, logits: Tensor, samples: SampleRows, slots: SlotTensors): void;
  /**
   * Draws one token per row into out[N] (int32; a `NotDrawn` where there is none to draw): temperature, then min-p,
   * top-k, top-p, then Gumbel-max with noise from Philox4x32-10(key = slot seed, counter = (token / 4, position + 1));
   * temperature 0 is argmax, lowest id first on ties. Rows of slots with a `SlotFlag` draw from processed[N, V], which may
   * be `logits`, all others from logits[N, V]. A token drawn is appended to its slot's tokens, and counted if the slot has
   * penalties.
   */
  sample(out: Tensor, logits: Tensor, processed: Tensor, samples: SampleRows, slots: SlotTensors): void;
  /**
   * `sample` from the logits after hidden[N, H], for rows of slots that ask for no more than a temperature: no `SlotFlag`,
   * and no min-p, top-k or top-p unless the temperature is 0. The tokens are those that `linear` into `logits`, `capLogits` where
   * the head says so, and `sample` would draw. `logits` is room for them, undefined afterwards. Of a head that ranks divide, each rank finds the best token of
   * its own part, and those are exchanged instead of logits.
   */
  drawTokens(
    out: Tensor,
    hidden: Tensor,
    head: LmHead,
    logits: Tensor,
    samples: SampleRows,
    slots: SlotTensors,
  ): void;
  /**
   * Log-probabilities (log-softmax of unprocessed logits[N, V]) of rows[R], indices into `logits` and `tokens`; by default
   * of all N. Of `tokens[N]` into `chosen` float32 [R], its rank (the number of strictly greater logits) into `ranks` int32
   * [R], and the K most likely into topIds int32 [R, K] and topLogprobs float32 [R, K], best first, lowest id first on
   * ties. K may be 0. A token below 0 gives NaN and rank −1. For a row below 0 nothing is computed: its outputs are left
   * alone.
   */
  logprobs(out: LogprobTensors, logits: Tensor, tokens: Tensor, rows?: Tensor): void;
}

/** The attention of a model's layers. */
export interface LayerAttention extends AttentionForm {
  /** Default: those of the model. */
  readonly kvHeads?: KvHeads;
}

/** The sizes that a model's ops are specialised by. */
export interface ModelShape {
  readonly vocabSize: number;
  readonly hiddenSize: number;
  readonly intermediateSize: number;
  readonly numHeads: number;
  readonly numKvHeads: number;
  readonly headDim: number;
  /** The forms that its layers' attention has, each once with the same heads. */
  readonly attentionForms: readonly LayerAttention[];
  /** Tokens of a KV block. */
  readonly blockSize: number;
  /** Of layers with experts: how many there are, the intermediate size of one, and their weights' format where `matrices` are unknown. */
  readonly experts?:
    | {
        readonly count: number;
        readonly intermediateSize: number;
        readonly format?: "dense" | "fp8" | "mxfp4" | "int4" | "int8" | undefined;
      }
    | undefined;
  /** Of layers that keep a state, where there are any. */
  readonly deltaNet?: DeltaNetShape | undefined;
  /** Of keys and values. Default: that of activations. */
  readonly kvDtype?: KvDType;
  /** See `LmHead.softCap`. */
  readonly softCap?: number | undefined;
  /** Of feed-forward blocks' gates. Default: silu. */
  readonly activation?: Activation;
  /** The matrices that are multiplied by, without memory. Default: unknown, taken for floats. */
  readonly matrices?: readonly Weight[];
}

/** Recorded ops. It holds addresses: their memory must outlive it. */
export interface CapturedGraph {
  /** Enqueues the ops once more. */
  launch(): void;
  /** The backend has moved memory that they work in, perhaps by capturing them: they must be captured anew. Undefined: never. */
  isStale?(): boolean;
  dispose(): void;
}

/** Host memory in buffers, each filled, committed and filled again, independently of the others. */
export interface BulkUpload {
  readonly buffers: readonly UploadBuffer[];
  /** Waits for every copy and gives the buffers back: nobody may be writing to them. Safe to call twice. */
  dispose(): void;
}

/** A piece of host memory that the device copies from. */
export interface UploadBuffer {
  /** Valid on every thread of this process; aligned for every dtype. */
  readonly address: number;
  readonly byteLength: number;
  /** Waits until the buffer may be written to: until the copy of what was committed last is done. */
  wait(): void;
  /** Enqueues the copy of the buffer's first `target.byteLength` bytes, raw little-endian ones of its dtype. */
  commit(target: Tensor): void;
}

/** A point in a backend's work. */
export interface Fence {
  /** Waits for what was enqueued before it. Call it once. */
  wait(): void;
}

/** A copy to the host under way. */
export interface Readback {
  /** Waits for the copy; the bytes are the caller's. Call it once. */
  wait(): Uint8Array;
}

/** The model's last product, from the residual stream to logits: logits[N, V] = norm(x[N, H]) · weight[V, H]ᵀ. */
export interface LmHead {
  readonly weight: Weight;
  /** The ranks divide the vocabulary: `weight` has the tokens from here on, as many as any other rank's. */
  readonly firstToken?: number | undefined;
  readonly norm?: RmsNormSpec | undefined;
  /** Keeps logits within ±softCap, positive: each becomes softCap · tanh(logit / softCap). Default: they stay as they are. */
  readonly softCap?: number | undefined;
}

/**
 * One layer's paged keys and values, each [B, NKV, BS, D]: a head's tokens within a block are contiguous. Both have one
 * dtype, that of activations or float8_e4m3. What is cached in eight bits stands for its product with a scale: x is stored as
 * x / scale, rounded to nearest even, and values past ±448 become ±448. All tokens are attended to as they are stored, those of
 * the step itself too, so that it makes no difference which of them came from the cache.
 */
export interface LayerCache extends KvScales {
  readonly keys: Tensor;
  readonly values: Tensor;
  /** The group of layers whose blocks these are: their numbers are in its block tables. Default 0. */
  readonly group?: number;
}

/** Scales of what a layer caches in eight bits: positive, default 1. Nothing else has any. */
export interface KvScales {
  readonly keyScale?: number;
  readonly valueScale?: number;
}

/** Device metadata of one step's ragged batch, as layers of one group see it. Rows `[0, decodeRows)` have exactly one query token. */
export interface BatchTensors {
  /** Tokens, T, and rows, R, of this step. */
  readonly numTokens: number;
  readonly numRows: number;
  readonly decodeRows: number;
  /** The most tokens of one row, for launch shapes. */
  readonly maxQueryLen: number;
  /** int32 [T]: token ids; positions; and block · BS + offset, where the token's keys and values are stored. */
  readonly tokenIds: Tensor;
  readonly positions: Tensor;
  readonly slotMapping: Tensor;
  /** int32 [R + 1]: token offsets of the rows. */
  readonly cuSeqlensQ: Tensor;
  /** int32 [R]: cached tokens after this step's are stored. */
  readonly contextLens: Tensor;
  /** int32 [R]: the row's slot, which indexes blockTables. */
  readonly rowSlots: Tensor;
  /** int32 [S, max blocks]: block ids of each slot. Entries past the context are never read. */
  readonly blockTables: Tensor;
  /** Tokens of a KV block. */
  readonly blockSize: number;
}

/** The same of all groups of layers, but for block tables, which slots have: what `Backend.prepareBatch` fills. */
export interface StepBatch extends Omit<BatchTensors, "slotMapping" | "blockTables"> {
  /** int32 [G, T at least]: each group's `slotMapping` begins its row. */
  readonly slotMappings: Tensor;
}

/**
 * Areas of shared memory that steps have in turn. Which one is a step's the device counts for itself, so that a captured step
 * finds another at each replay, and the host can use one while the step before has its own.
 */
export interface StepAreas {
  /** uint32 [1]: steps begun since the start, modulo 2³². */
  readonly steps: Tensor;
  /** int32 [A, W] in memory of `allocateShared`: step s, from 0, has row s mod A. A is a power of two. */
  readonly areas: Tensor;
}

/** Words of the record of a sequence that takes a slot; lengths in tokens. */
export const JoinWord = { slot: 0, promptLength: 1, length: 2, numComputedTokens: 3 } as const;
export const JOIN_WORDS = 4;

/**
 * Per-slot state that lives on the device for as long as a sequence runs. Steps advance it themselves: the host need not
 * know how far a sequence has come to launch its next step. A slot of length 0 is vacant: rows in it are padding, which
 * computes its first positions and changes nothing here.
 */
export interface SlotTensors {
  /** int32 [S, L]: prompt and output tokens. */
  readonly tokens: Tensor;
  /** int32 [S]: tokens known, of prompt and output. `sample` appends. */
  readonly lengths: Tensor;
  /** int32 [S]: leading tokens whose keys and values are in the cache, or will be after the steps enqueued. */
  readonly numComputedTokens: Tensor;
  /** int32 [G, S, max blocks]. */
  readonly blockTables: Tensor;
  /** uint32 [S, SLOT_WORDS]: the sampling parameters, laid out by `SlotWord`. */
  readonly params: Tensor;
  /** uint32 [S, MAX_LOGIT_EDITS, LOGIT_EDIT_WORDS]: what is added to logits, and until when. */
  readonly edits: Tensor;
  /** uint32 [S, MAX_BAD_WORD_TOKENS]: length-prefixed token sequences, ended by 0; matched in prompt and output. */
  readonly badWords: Tensor;
  /** uint32 [S, ceil(V / 32)]: bit set = token allowed. Read only when the slot's flag says so. */
  readonly allowed: Tensor;
  /** uint32 [S, V]: times the token was generated, and `COUNT_IN_PROMPT`. Kept only for penalties. */
  readonly counts: Tensor;
}

/** Words of a slot's parameter record. Floats are stored as their bits. */
export const SlotWord = {
  temperature: 0,
  topP: 1,
  minP: 2,
  topK: 3,
  repetitionPenalty: 4,
  presencePenalty: 5,
  frequencyPenalty: 6,
  flags: 7,
  seedLow: 8,
  seedHigh: 9,
  editCount: 10,
} as const;
export const SLOT_WORDS = 16;

/** Words of a logit edit: token id, float32 value, first drawn position where it no longer applies. */
export const LOGIT_EDIT_WORDS = 3;

/** Bit of a word of `SlotTensors.counts`: the token is in the prompt. The other bits count how often it was generated. */
export const COUNT_IN_PROMPT = 0x8000_0000;

/** Bits of `SlotWord.flags`: which processing a slot needs at all. */
export const SlotFlag = { penalties: 1, edits: 2, allowed: 4, badWords: 8 } as const;

/** The origin of the N rows of logits to sample. */
export interface SampleRows {
  /** int32 [N]: the slot whose parameters apply. */
  readonly slots: Tensor;
  /** int32 [N]: position of the token that the logits follow. */
  readonly positions: Tensor;
  /** int32 [N]: index of that token in the batch. */
  readonly tokenIndices: Tensor;
}

export interface LogprobTensors {
  readonly chosen: Tensor;
  readonly ranks: Tensor;
  readonly topIds: Tensor;
  readonly topLogprobs: Tensor;
}
