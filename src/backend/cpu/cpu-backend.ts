import type { DType, FloatDType } from "../../base/dtype.ts";
import { InvariantError, invariant } from "../../base/errors.ts";
import type { AttentionSpec, ProjectionNormSpec } from "../attention-spec.ts";
import type {
  Activation,
  Backend,
  BatchTensors,
  Fence,
  LayerCache,
  LinearFusion,
  LmHead,
  LogprobTensors,
  Readback,
  RmsNormSpec,
  SampleRows,
  SlotTensors,
  StepAreas,
  StepBatch,
} from "../backend.ts";
import * as checks from "../checks.ts";
import type { Communicator } from "../communicator.ts";
import { checkDeltaNet, checkGateElements, type DeltaNetSpec, type StateCache } from "../delta-net.ts";
import { checkExperts, checkGateRows } from "../expert-checks.ts";
import type { ExpertFusion, ExpertSpec, ExpertWeights } from "../experts.ts";
import { byteLengthOf, type DeviceBuffer, Tensor } from "../tensor.ts";
import { denseWeight, type Weight } from "../weight.ts";
import { activation, gateRows, multiplyColumns } from "./activation.ts";
import { attend } from "./attend.ts";
import { attention } from "./attention.ts";
import { embed, gather, joinSlots, prepareBatch, scatter } from "./batch.ts";
import { deltaNet, gateElements } from "./delta-net.ts";
import { rowsOf } from "./dequantise.ts";
import { experts } from "./experts.ts";
import { bytes, floats, HostBuffer, ints, words } from "./host-buffer.ts";
import {
  hostAttention,
  hostBatch,
  hostExperts,
  hostRows,
  hostSamples,
  hostSlots,
  hostWeight,
  optionalFloats,
  pagedKv,
} from "./host-views.ts";
import { linear, type Product, product } from "./linear.ts";
import { logprobsRow } from "./logprobs.ts";
import { layerNorm, normProjections, rmsNorm, sumSquares } from "./norm.ts";
import { processRows } from "./process-logits.ts";
import { rotaryTable } from "./rotary-table.ts";
import { accept, bestOf, type Candidate, candidateOf, sampleRow } from "./sampling.ts";
import { Slot } from "./slots.ts";
import { tiledAttention } from "./tiled-attention.ts";
import { tiledProduct } from "./tiled-product.ts";

/** The inner loops that take the time. */
export interface CpuLoops {
  readonly product: Product;
  readonly attention: typeof attention;
}

/** The loops as their definitions read. */
export const PLAIN_LOOPS: CpuLoops = { product, attention };
/** The same results to the bit, several times faster. */
const TILED_LOOPS: CpuLoops = { product: tiledProduct, attention: tiledAttention };

/**
 * The reference backend: plain TypeScript, float32 storage, float64 arithmetic, runs anywhere. An op has finished when
 * its call returns. Besides shapes it checks indices (token ids, blocks, slots) and throws `InvariantError`.
 */
export class CpuBackend implements Backend {
  readonly name: Backend["name"] = "cpu-reference";
  readonly activationDtype = "float32";
  readonly matrixDtypes: readonly FloatDType[] = [];
  readonly headCodes = true;
  readonly #buffers = new Set<HostBuffer>();
  #disposed = false;

  readonly allReduceAdd?: NonNullable<Backend["allReduceAdd"]>;
  readonly gatherColumns?: (out: Tensor, part: Tensor) => void;

  /**
   * @param loops the fast ones, unless the plain ones are what is asked about.
   * @param communicator with the other ranks, where there are any
   */
  constructor(
    private readonly loops = TILED_LOOPS,
    private readonly communicator?: Communicator,
  ) {
    if (communicator === undefined) return;
    this.allReduceAdd = (residual, branch, compute) => {
      checks.checkAllReduceAdd("float32", residual, branch);
      compute?.({ start: 0, end: branch.dim(0) });
      communicator.allReduceAdd(residual, branch);
    };
    this.gatherColumns = (out, part) => {
      const { rows, width } = checks.checkGatherColumns(out, part, communicator.shard.size);
      const parts = this.#gather(part);
      const result = floats(out);
      for (const [rank, values] of parts.entries()) {
        for (let row = 0; row < rows; row++)
          result.set(rowOf(values, row, width), (row * parts.length + rank) * width);
      }
    };
  }

  allocate(byteLength: number): DeviceBuffer {
    invariant(!this.#disposed, "CPU backend used after dispose()");
    const buffer = new HostBuffer(byteLength, (freed) => this.#buffers.delete(freed));
    this.#buffers.add(buffer);
    return buffer;
  }

  allocateShared(byteLength: number): DeviceBuffer {
    return this.allocate(byteLength);
  }

  empty(dtype: DType, shape: readonly number[]): Tensor {
    return new Tensor(this.allocate(byteLengthOf(dtype, shape)), dtype, shape);
  }

  upload(target: Tensor, data: ArrayBufferView): void {
    if (data.byteLength !== target.byteLength)
      throw new InvariantError(`upload of ${data.byteLength} bytes to ${target}`);
    bytes(target).set(new Uint8Array(data.buffer, data.byteOffset, data.byteLength));
  }

  bytesOf(target: Tensor): Uint8Array {
    return bytes(target);
  }

  download(source: Tensor): Uint8Array {
    return bytes(source).slice();
  }

  readback(source: Tensor): Readback {
    const snapshot = this.download(source);
    return { wait: () => snapshot };
  }

  copy(target: Tensor, source: Tensor): void {
    checks.checkCopy(target, source);
    bytes(target).set(bytes(source));
  }

  fill(target: Tensor, byte: number): void {
    bytes(target).fill(byte);
  }

  fence(): Fence {
    return { wait: () => {} };
  }

  synchronize(): void {}

  dispose(): void {
    this.#disposed = true;
    for (const buffer of this.#buffers) buffer.dispose();
  }

  rotaryTable(out: Tensor, frequencies: Tensor, amplitude: number): void {
    checks.checkRotaryTable(out, frequencies);
    rotaryTable(floats(out), floats(frequencies), amplitude);
  }

  embedding(out: Tensor, table: Tensor, ids: Tensor, firstId?: number, scale = 1): void {
    const { vocab, width } = checks.checkEmbedding("float32", out, table, ids, this.matrixDtypes);
    const source = rowsOf(denseWeight(table));
    const read = (target: Float32Array, row: number) => source.dequantise(target, row, row + 1);
    const result = floats(out);
    embed(result, { rows: vocab, read }, ints(ids), width, firstId);
    if (scale !== 1) for (const i of result.keys()) result[i]! *= scale;
  }

  gatherRows(out: Tensor, x: Tensor, rows: Tensor): void {
    const { width } = checks.checkGatherRows("float32", out, x, rows);
    gather(floats(out), floats(x), ints(rows), width);
  }

  linear(out: Tensor, x: Tensor, weight: Weight, fusion: LinearFusion = {}): void {
    const shape = checks.checkLinear("float32", out, x, weight, fusion, this.matrixDtypes);
    const { norm, bias, activation, addTo } = fusion;
    const host = {
      norm: norm && { weight: floats(norm.weight), eps: norm.eps },
      ...{ bias: optionalFloats(bias), activation, addTo: optionalFloats(addTo) },
    };
    linear(floats(out), floats(x), hostWeight(weight), shape, host, this.loops.product);
  }

  experts(
    out: Tensor,
    x: Tensor,
    logits: Tensor,
    weights: ExpertWeights,
    spec: ExpertSpec,
    fusion: ExpertFusion = {},
  ): void {
    const shape = checkExperts("float32", out, x, logits, weights, spec, fusion, this.matrixDtypes);
    const { norm, addTo } = fusion;
    experts(
      ...([floats(out), floats(x), floats(logits), hostExperts(weights), shape, spec] as const),
      { norm: norm && { weight: floats(norm.weight), eps: norm.eps }, addTo: optionalFloats(addTo) },
      this.loops.product,
    );
  }

  gateRows(y: Tensor, x: Tensor, gate: Weight, norm?: RmsNormSpec): void {
    const { tokens, hidden, width } = checkGateRows("float32", y, x, gate, norm, this.matrixDtypes);
    const logits = new Float32Array(tokens);
    const fusion = {
      norm: norm && { weight: floats(norm.weight), eps: norm.eps },
      ...{ bias: undefined, activation: undefined, addTo: undefined },
    };
    const shape = { m: tokens, n: 1, k: hidden };
    linear(logits, floats(x), hostWeight(gate), shape, fusion, this.loops.product);
    gateRows(floats(y), logits, width);
  }

  deltaNet(
    out: Tensor,
    projected: Tensor,
    gates: Tensor,
    cache: StateCache,
    batch: BatchTensors,
    spec: DeltaNetSpec,
  ): void {
    const shape = checkDeltaNet("float32", out, projected, gates, cache, batch, spec);
    const { convolution, decayLog, timeBias, norm } = spec;
    deltaNet(
      ...([floats(out), floats(projected), floats(gates)] as const),
      { ...shape, layer: cache.layer, tails: floats(cache.tails), states: floats(cache.states) },
      hostBatch(batch),
      {
        ...{ ...spec, channels: shape.channels, convolution: floats(convolution) },
        ...{ decayLog: floats(decayLog), timeBias: floats(timeBias) },
        norm: { weight: floats(norm.weight), eps: norm.eps },
      },
    );
  }

  gateElements(x: Tensor, gate: Tensor): void {
    checkGateElements("float32", x, gate);
    gateElements(floats(x), floats(gate));
  }

  rmsNorm(out: Tensor, x: Tensor, weight: Tensor, eps: number, addTo?: Tensor, scale?: Tensor): void {
    checks.checkRmsNorm("float32", out, x, weight, addTo, scale);
    const factor = scale && floats(scale)[0]!;
    rmsNorm(floats(out), floats(x), floats(weight), eps, optionalFloats(addTo), factor);
  }

  layerNorm(out: Tensor, x: Tensor, weight: Tensor, bias: Tensor | undefined, eps: number): void {
    checks.checkLayerNorm("float32", out, x, weight, bias);
    layerNorm(floats(out), floats(x), floats(weight), optionalFloats(bias), eps);
  }

  activation(out: Tensor, x: Tensor, name: Activation): void {
    checks.checkActivation("float32", out, x);
    activation(floats(out), floats(x), name);
  }

  multiplyColumns(x: Tensor, factors: Tensor, start: number): void {
    const { width, stride } = checks.checkMultiplyColumns("float32", x, factors, start);
    multiplyColumns(floats(x), floats(factors), width, stride, start);
  }

  normProjections(qkv: Tensor, { query, key, eps }: ProjectionNormSpec): void {
    const { tokens, queryWidth, keyWidth } = checks.checkNormProjections("float32", qkv, { query, key, eps });
    const squares = this.empty("float32", [tokens, 2]);
    sumSquares(floats(squares), floats(qkv), queryWidth, keyWidth);
    const parts = this.communicator === undefined ? [floats(squares)] : this.#gather(squares);
    normProjections(floats(qkv), parts, floats(query), floats(key), eps);
    squares.buffer.dispose();
  }

  attend(out: Tensor, qkv: Tensor, cache: LayerCache, batch: BatchTensors, spec: AttentionSpec): void {
    const shape = checks.checkAttend("float32", out, qkv, cache, batch, spec);
    attend(
      floats(out),
      floats(qkv),
      pagedKv(cache, shape),
      { ...hostBatch(batch), blockTables: ints(batch.blockTables), maxBlocks: shape.maxBlocks },
      hostAttention(spec, shape.rotaryDim),
      this.loops.attention,
    );
  }

  joinSlots(slots: SlotTensors, joins: Tensor): void {
    const shape = checks.checkJoinSlots(slots, joins);
    joinSlots(hostSlots(slots, shape), ints(joins));
  }

  prepareBatch(batch: StepBatch, samples: SampleRows, inbox: StepAreas, slots: SlotTensors): void {
    const shape = checks.checkPrepareBatch(batch, samples, inbox, slots);
    const steps = words(inbox.steps);
    const rows = areaOf(inbox, steps[0]!);
    steps[0]!++;
    prepareBatch(
      {
        tokenIds: ints(batch.tokenIds),
        ...hostRows(batch),
        ...{ slotMappings: ints(batch.slotMappings), mappingStride: shape.mappingStride },
      },
      { ...hostSamples(samples), tokenIndices: ints(samples.tokenIndices) },
      rows,
      {
        ...shape,
        tokens: ints(slots.tokens),
        lengths: ints(slots.lengths),
        numComputedTokens: ints(slots.numComputedTokens),
        blockTables: ints(slots.blockTables),
      },
    );
  }

  post(outbox: StepAreas, results: Tensor): void {
    checks.checkPost(outbox, results);
    areaOf(outbox, words(outbox.steps)[0]! - 1).set(ints(results));
  }

  scatter(target: Tensor, indices: Tensor, values: Tensor): void {
    checks.checkScatter(target, indices, values);
    scatter(words(target), ints(indices), words(values));
  }

  capLogits(logits: Tensor, cap: number): void {
    checks.checkCapLogits(logits, cap);
    const values = floats(logits);
    for (const [i, logit] of values.entries()) values[i] = cap * Math.tanh(logit / cap);
  }

  processLogits(out: Tensor, logits: Tensor, samples: SampleRows, slots: SlotTensors): void {
    const shape = checks.checkProcessLogits(out, logits, samples, slots);
    processRows(floats(out), floats(logits), hostSamples(samples), hostSlots(slots, shape));
  }

  sample(out: Tensor, logits: Tensor, processed: Tensor, samples: SampleRows, slots: SlotTensors): void {
    const shape = checks.checkSample(out, logits, processed, samples, slots);
    const [result, rowSlots, positions] = [ints(out), ints(samples.slots), ints(samples.positions)];
    const host = hostSlots(slots, shape);
    for (let row = 0; row < shape.rows; row++) {
      const slot = new Slot(host, rowSlots[row]!);
      const from = floats(slot.word("flags") === 0 ? logits : processed);
      result[row] = sampleRow(rowOf(from, row, shape.vocab), slot, positions[row]!);
    }
  }

  drawTokens(
    out: Tensor,
    hidden: Tensor,
    head: LmHead,
    logits: Tensor,
    samples: SampleRows,
    slots: SlotTensors,
  ): void {
    const { weight, norm, firstToken, softCap } = head;
    const ranks = firstToken === undefined ? 1 : (this.communicator?.shard.size ?? 1);
    const args = [out, hidden, head, logits, samples, slots, ranks, this.matrixDtypes] as const;
    const shape = checks.checkDrawTokens("float32", ...args);
    if (firstToken === undefined) {
      this.linear(logits, hidden, weight, { norm });
      if (softCap !== undefined) this.capLogits(logits, softCap);
      this.sample(out, logits, logits, samples, slots);
      return;
    }
    const width = weight.shape[0];
    const part = new Tensor(logits.buffer, "float32", [shape.rows, width], logits.byteOffset);
    this.linear(part, hidden, weight, { norm });
    if (softCap !== undefined) this.capLogits(part, softCap);
    const [result, values, positions] = [ints(out), floats(part), ints(samples.positions)];
    const host = hostSlots(slots, shape);
    const drawing = Array.from(ints(samples.slots), (slot) => new Slot(host, slot));
    const own = drawing.map((slot, row) =>
      candidateOf(rowOf(values, row, width), slot, positions[row]!, firstToken),
    );
    const candidates = this.#gatherCandidates(own);
    for (const [row, slot] of drawing.entries())
      result[row] = accept(bestOf(candidates.map((ofRank) => ofRank[row]!)), slot);
  }

  /** Every rank's candidates, as many as this rank's. */
  #gatherCandidates(own: readonly Candidate[]): Candidate[][] {
    const part = this.empty("int32", [own.length, CANDIDATE_WORDS]);
    this.upload(part, Float64Array.from(own.flatMap(({ key, token }) => [key, token])));
    const all = this.#gather(part).map(({ buffer, byteOffset }) => {
      const values = new Float64Array(buffer, byteOffset, 2 * own.length);
      return own.map((_, row) => ({ key: values[2 * row]!, token: values[2 * row + 1]! }));
    });
    part.buffer.dispose();
    return all;
  }

  /** Every rank's `part`, as float32, whatever it is. */
  #gather(part: Tensor): Float32Array[] {
    invariant(this.communicator !== undefined, "there are no other ranks");
    const { size } = this.communicator.shard;
    const all = this.empty(part.dtype, [size, ...part.shape]);
    this.communicator.allGather(all, part);
    const values = floats(all).slice();
    all.buffer.dispose();
    return Array.from({ length: size }, (_, rank) => rowOf(values, rank, part.size));
  }

  logprobs(out: LogprobTensors, logits: Tensor, tokens: Tensor, rows?: Tensor): void {
    const { rows: count, samples, vocab, top } = checks.checkLogprobs(out, logits, tokens, rows);
    const result = {
      chosen: floats(out.chosen),
      ranks: ints(out.ranks),
      topIds: ints(out.topIds),
      topLogprobs: floats(out.topLogprobs),
      top,
    };
    const [input, ids, indices] = [floats(logits), ints(tokens), rows && ints(rows)];
    for (let i = 0; i < count; i++) {
      const row = indices === undefined ? i : indices[i]!;
      if (row < 0) continue;
      invariant(row < samples, `logprobs: row ${row} of ${samples}`);
      logprobsRow(result, i, rowOf(input, row, vocab), ids[row]!);
    }
  }
}

/** Words of a candidate on its way between ranks: key and token, float64. */
const CANDIDATE_WORDS = 4;

/** The area that a step has. */
function areaOf({ areas }: StepAreas, step: number): Int32Array {
  const [count, size] = [areas.dim(0), areas.dim(1)];
  const index = step & (count - 1);
  return ints(areas).subarray(index * size, (index + 1) * size);
}

function rowOf(matrix: Float32Array, row: number, width: number): Float32Array {
  return matrix.subarray(row * width, (row + 1) * width);
}
