import { ptr } from "bun:ffi";
import { dtypeSize, type FloatDType } from "../../../base/dtype.ts";
import { type AttentionForm, attentionFormOf } from "../../attention-spec.ts";
import type { ModelShape } from "../../backend.ts";
import type { DeviceBuffer, Tensor } from "../../tensor.ts";
import type { HostValue } from "../argument-packer.ts";
import type { Kernel } from "../kernel.ts";
import type { KernelLibrary } from "../kernel-library.ts";
import type { KernelUnit, Macros } from "../kernel-source.ts";
import { ACTIVATION_CODES, ACTIVATION_CONSTANTS } from "./activation.ts";
import { contextArguments, scoreArguments } from "./attention-arguments.ts";
import { projectionDefines } from "./attention-form.ts";
import { DECODE_TILE } from "./decode-tiles.ts";
import { headPart, headPartDefines } from "./head-part.ts";
import { headDefines, MAX_GROUP_SIZE, MAX_HEAD_DIM } from "./head-shape.ts";
import { type ArgumentsOf, KernelVariants, VECTOR_BYTES, WARP } from "./kernel-variants.ts";
import type { AttendCall, LayerCall, LayerCalls, LinearCall } from "./layer-ops.ts";
import {
  LINEAR_ROW_PADDING,
  LINEAR_SUM_PADDING,
  LINEAR_WARPS,
  MAX_SMALL_TOKENS,
  type SmallLinearOptions,
  smallTileRows,
} from "./small-linear.ts";

/** Room for a launch's layers: they are arguments, of which there are 4 KiB. */
const TABLE_BYTES = 3840;
/** Addresses of a layer. Scales of its cache take as much room as one more. */
const LAYER_POINTERS = 12;
/** Columns of a slice of weights, which has 8 rows. */
const SLICE_COLUMNS = 512;
const SLICE_ROWS = 8;
/** The most inputs of a product: x stays in registers. */
const MAX_IN_FEATURES = 3072;
/** The most inputs and outputs. */
const EXCHANGE_WIDTH = 4096;
/** Outputs that stages leave for the next. */
const STREAMS = 5;
/** The most dimensions of a head and queries of a key, for which attention has registers. */
const MAX_LAYER_HEAD_DIM = 128;
const MAX_LAYER_GROUP = 8;
/** Slices of a block that are under way at once: about latency × bandwidth of the memory. */
const IN_FLIGHT = 3;
/** Registers of a thread for x with its tags, the norm's weight, and weights that wait for them. */
const LAYER_REGISTERS = 104;
/** The least tiles of a part of a context: below, merging parts takes longer than it saves. */
const SPLIT_TILES = 8;
/** Threads of a block: those that multiply, a warp that fetches weights, and three idle ones beside it. */
const LAYER_THREADS = (LINEAR_WARPS + 4) * WARP;
/** Alignment. */
const SLACK_BYTES = 512;

const DECODE_LAYERS = {
  file: "decode_layers.cu",
  constants: {
    ...{ LINEAR_WARPS, LINEAR_ROW_PADDING, LINEAR_SUM_PADDING, LINEAR_MAX_TOKENS: MAX_SMALL_TOKENS },
    ...{ DECODE_TILE, DECODE_SLICES: 1, MAX_HEAD_DIM, MAX_GROUP_SIZE },
    ...{
      LAYER_THREADS,
      SLICE_COLUMNS,
      EXCHANGE_WIDTH,
      IN_FLIGHT,
      LAYER_REGISTERS,
      SPLIT_TILES,
    },
    ...ACTIVATION_CONSTANTS,
  },
  entry: "decode_layers",
  pointers: [
    ...(["residual", "attended", "activated", "exchange", "partials", "epochs", "cos_sin"] as const),
    ...(["slot_mapping", "block_tables", "row_slots", "context_lens"] as const),
  ],
  scalars: [
    ...(["tokens", "layers", "kv_heads", "max_blocks", "window", "activation"] as const),
    ...(["scale_log2", "eps", "head_eps"] as const),
  ],
  values: ["table"],
} as const;

/** The pair of float32 in the table, where another entry is an address. */
type Scales = readonly [key: number, value: number];

/** A layer's entry of the table, in the order of `Layer` in decode_layers.cu. */
function entryOf({ qkv, attend, output, up, down }: LayerCalls): (Tensor | Scales | undefined)[] {
  const { cache, spec } = attend;
  const { keys, values, keyScale = 1, valueScale = 1 } = cache;
  const scales: readonly Scales[] = keys.dtype === "float8_e4m3" ? [[keyScale, valueScale]] : [];
  return [
    ...[qkv.weight.data, qkv.fusion.norm?.weight, qkv.fusion.bias, spec.headNorm?.query, spec.headNorm?.key],
    ...[keys, values, ...scales],
    ...[output.weight.data, output.fusion.bias, up.weight.data, up.fusion.norm?.weight, down.weight.data],
  ];
}

/** A product as the kernel is specialised by it. */
interface Stage {
  readonly inFeatures: number;
  readonly outFeatures: number;
  readonly gated: boolean;
}

/** Parameters that a kernel is specialised by. */
interface LayerShape {
  readonly qkv: Stage;
  readonly output: Stage;
  readonly up: Stage;
  readonly down: Stage;
  readonly headDim: number;
  readonly group: number;
  readonly blockSize: number;
  readonly form: AttentionForm;
  readonly float8: boolean;
}

interface Variant {
  readonly kernel: Kernel<ArgumentsOf<typeof DECODE_LAYERS>>;
  readonly sharedBytes: number;
  /** The most layers of a launch. */
  readonly maxLayers: number;
}

export interface DecodeLayersOptions extends SmallLinearOptions {
  /** Memory of zeros. */
  readonly allocateZeroed: (byteLength: number) => DeviceBuffer;
}

/**
 * Layers of a decoder for few rows of one token each, in one launch: `decode_layers.cu`. All launches share the memory in which
 * blocks exchange results, as they follow one another on one stream; it is allocated at once, so that capturing never does.
 * What a launch needs of its layers is copied with its arguments, so a graph holds it as long as it lives.
 */
export class DecodeLayers {
  readonly #kernels: KernelVariants<typeof DECODE_LAYERS>;
  readonly #variants = new Map<string, Variant>();
  readonly #exchange: DeviceBuffer;
  readonly #partials: DeviceBuffer;
  readonly #epochs: DeviceBuffer;
  readonly #table = new Uint32Array(TABLE_BYTES / 4);
  readonly #tableFloats = new Float32Array(this.#table.buffer);
  readonly #tableAddress: HostValue = { hostAddress: ptr(this.#table) };

  constructor(
    library: KernelLibrary,
    readonly dtype: FloatDType,
    private readonly options: DecodeLayersOptions,
  ) {
    const { smCount, allocateZeroed } = options;
    this.#kernels = new KernelVariants(library, DECODE_LAYERS, dtype, options);
    // Pairs of elements with their tags.
    this.#exchange = allocateZeroed(((STREAMS * MAX_SMALL_TOKENS * EXCHANGE_WIDTH) / 2) * 8);
    const partialFloats = MAX_LAYER_GROUP * (MAX_LAYER_HEAD_DIM + 2);
    this.#partials = allocateZeroed(smCount * partialFloats * 8);
    this.#epochs = allocateZeroed(smCount * 4);
  }

  /** True if the call, of some part of a layer, is of a size that the kernel can take. */
  takes(call: LayerCall): boolean {
    return call.kind === "linear" ? this.#takesLinear(call) : this.#takesAttend(call);
  }

  /** Units for layers of these sizes; none if the kernel cannot take them. */
  units(model: ModelShape): KernelUnit[] {
    const { hiddenSize, intermediateSize, numHeads, numKvHeads, headDim, blockSize } = model;
    const float8 = model.kvDtype === "float8_e4m3";
    const group = numHeads / numKvHeads;
    const shape = {
      qkv: { inFeatures: hiddenSize, outFeatures: (numHeads + 2 * numKvHeads) * headDim, gated: false },
      output: { inFeatures: numHeads * headDim, outFeatures: hiddenSize, gated: false },
      up: { inFeatures: hiddenSize, outFeatures: 2 * intermediateSize, gated: true },
      down: { inFeatures: intermediateSize, outFeatures: hiddenSize, gated: false },
      ...{ headDim, group, blockSize, float8 },
    };
    const takes =
      [shape.qkv, shape.output, shape.up, shape.down].every(isTaken) && areHeadsTaken(headDim, group);
    if (!takes) return [];
    return model.attentionForms
      .filter((form) => form.kvHeads === undefined && isFormTaken(form))
      .map((form) => this.#kernels.unit(this.#plan({ ...shape, form }).defines));
  }

  /** Enqueues layers that repeat one another, all of whose calls it takes. */
  launch(stream: number, layers: readonly LayerCalls[]): void {
    if (layers.length === 0) return;
    const variant = this.#variant(layers[0]!);
    for (let first = 0; first < layers.length; first += variant.maxLayers)
      this.#launch(stream, layers.slice(first, first + variant.maxLayers), variant);
  }

  #launch(stream: number, layers: readonly LayerCalls[], { kernel, sharedBytes }: Variant): void {
    const { qkv, attend, up } = layers[0]!;
    const { batch, spec } = attend;
    let word = 0;
    for (const layer of layers) {
      for (const part of entryOf(layer)) {
        if (part !== undefined && "length" in part) this.#tableFloats.set(part, word);
        else {
          const address = part?.address ?? 0;
          this.#table[word] = address;
          this.#table[word + 1] = address / 0x1_0000_0000;
        }
        word += 2;
      }
    }
    const { activation } = up.fusion;
    // As many blocks in all launches: each counts them for itself.
    kernel.launch(stream, this.options.smCount, 1, 1, LAYER_THREADS, sharedBytes, {
      table: this.#tableAddress,
      ...{ residual: qkv.x, attended: attend.out, activated: up.out },
      ...{ exchange: this.#exchange, partials: this.#partials, epochs: this.#epochs },
      ...{ cos_sin: spec.cosSin ?? null, slot_mapping: batch.slotMapping, ...contextArguments(batch, spec) },
      scale_log2: scoreArguments(spec, {}).scale_log2,
      ...{ tokens: batch.numTokens, layers: layers.length, kv_heads: spec.numKvHeads },
      activation: activation === undefined ? -1 : ACTIVATION_CODES[activation.kind],
      ...{ eps: qkv.fusion.norm!.eps, head_eps: spec.headNorm?.eps ?? 0 },
    });
  }

  #takesLinear({ out, x, weight, fusion: { norm, bias, addTo, activation } }: LinearCall): boolean {
    const [outFeatures, inFeatures] = weight.shape;
    return (
      x.dim(0) <= MAX_SMALL_TOKENS &&
      out.dtype === this.dtype &&
      isTaken({ inFeatures, outFeatures, gated: activation?.gated ?? false }) &&
      [out, x, weight.data, norm?.weight, bias, addTo].every(isAligned)
    );
  }

  #takesAttend({ out, qkv, cache, spec, batch }: AttendCall): boolean {
    const { numHeads, numKvHeads, headDim, cosSin, headNorm } = spec;
    const tensors = [out, qkv, cache.keys, cache.values, cosSin, headNorm?.query, headNorm?.key];
    return (
      batch.numTokens > 0 &&
      areHeadsTaken(headDim, numHeads / numKvHeads) &&
      isFormTaken(attentionFormOf(spec)) &&
      tensors.every(isAligned)
    );
  }

  #variant(layer: LayerCalls): Variant {
    const stageOf = ({ weight, fusion }: LinearCall): Stage => {
      const [outFeatures, inFeatures] = weight.shape;
      return { inFeatures, outFeatures, gated: fusion.activation?.gated ?? false };
    };
    const { qkv, attend, output, up, down } = layer;
    const { numHeads, numKvHeads, headDim } = attend.spec;
    const { defines, ...plan } = this.#plan({
      ...{ qkv: stageOf(qkv), output: stageOf(output), up: stageOf(up), down: stageOf(down) },
      ...{
        headDim,
        group: numHeads / numKvHeads,
        blockSize: attend.batch.blockSize,
        form: attentionFormOf(attend.spec),
        float8: attend.cache.keys.dtype === "float8_e4m3",
      },
    });
    const key = JSON.stringify(defines);
    let variant = this.#variants.get(key);
    if (variant === undefined) {
      variant = { kernel: this.#kernels.get(this.#variants.size, defines), ...plan };
      this.#variants.set(key, variant);
    }
    return variant;
  }

  #plan(shape: LayerShape): Omit<Variant, "kernel"> & { readonly defines: Macros } {
    const { smCount, sharedBytesPerBlock } = this.options;
    const { headDim, group, form, float8 } = shape;
    const stages = [shape.qkv, shape.output, shape.up, shape.down];
    const blocks = fewestRows(stages, smCount);
    const tileRows = (stage: Stage) => smallTileRows(stage.outFeatures, stage.gated, smCount);
    const sumRows = Math.max(
      ...stages.map((stage) => groupTiles(stage, tileRows(stage), blocks) * tileRows(stage)),
    );
    const elementBytes = dtypeSize(this.dtype);
    const sums = 2 * LINEAR_WARPS * MAX_SMALL_TOKENS * (sumRows + LINEAR_SUM_PADDING) * 4;
    const rest =
      LINEAR_WARPS * 2 * DECODE_TILE * headDim * (float8 ? 1 : elementBytes) +
      Math.max(sums, LINEAR_WARPS * group * (headDim + 2) * 4) +
      LINEAR_WARPS * MAX_SMALL_TOKENS * 4 +
      (group + 2) * (headDim * elementBytes + VECTOR_BYTES) +
      (float8 ? 2 * headDim : 0) +
      MAX_SMALL_TOKENS * 16 +
      SLACK_BYTES;
    const sliceBytes = SLICE_ROWS * (SLICE_COLUMNS * elementBytes + LINEAR_ROW_PADDING) + 16;
    const slices = Math.floor((sharedBytesPerBlock - rest) / sliceBytes);
    const sharedBytes = slices * sliceBytes + rest;
    const stageDefine = (stage: Stage) =>
      [stage.inFeatures, stage.outFeatures, tileRows(stage), stage.gated ? 1 : 0].join(",");
    const pointers = LAYER_POINTERS + Number(float8);
    const maxLayers = Math.floor(TABLE_BYTES / (8 * pointers));
    const defines = {
      ...{ MAX_LAYERS: maxLayers, LAYER_POINTERS: pointers },
      ...{ STAGE_QKV: stageDefine(shape.qkv), STAGE_OUTPUT: stageDefine(shape.output) },
      ...{ STAGE_UP: stageDefine(shape.up), STAGE_DOWN: stageDefine(shape.down) },
      ...{ CTAS: blocks, RING_SLICES: slices, SUM_ROWS: sumRows, LAYERS_SHARED_BYTES: sharedBytes },
      ...headDefines(shape),
      ...headPartDefines(form.rotaryDim, headPart(this.dtype, headDim, form.rotaryDim)),
      ...projectionDefines(form),
    };
    return { defines, sharedBytes, maxLayers };
  }
}

function isAligned(tensor: Tensor | undefined): boolean {
  return tensor === undefined || tensor.address % VECTOR_BYTES === 0;
}

function areHeadsTaken(headDim: number, group: number): boolean {
  return headDim % 32 === 0 && headDim <= MAX_LAYER_HEAD_DIM && group <= MAX_LAYER_GROUP;
}

/** Layers with more than a rotation, or without keys and values of their own, are launched op by op. */
function isFormTaken({ hasQueryScales, hasSoftCap, hasSinks, readsOnly }: AttentionForm): boolean {
  return !hasQueryScales && !hasSoftCap && !hasSinks && !readsOnly;
}

function isTaken({ inFeatures, outFeatures, gated }: Stage): boolean {
  return (
    inFeatures % SLICE_COLUMNS === 0 &&
    inFeatures <= MAX_IN_FEATURES &&
    outFeatures % 16 === 0 &&
    (gated ? outFeatures / 2 : outFeatures) <= EXCHANGE_WIDTH
  );
}

/** The least blocks with which the busiest has the fewest weights. */
function fewestRows(stages: readonly Stage[], smCount: number): number {
  const work = (blocks: number) =>
    stages.reduce((sum, { inFeatures, outFeatures, gated }) => {
      const tileRows = smallTileRows(outFeatures, gated, smCount);
      return sum + Math.ceil(outFeatures / tileRows / blocks) * tileRows * inFeatures;
    }, 0);
  let best = smCount;
  for (let blocks = smCount - 1; blocks > 0; blocks--) if (work(blocks) <= work(best)) best = blocks;
  return best;
}

/** Tiles whose sums are finished together, by a thread an output. */
function groupTiles({ outFeatures, gated }: Stage, tileRows: number, blocks: number): number {
  const outputs = (LINEAR_WARPS * WARP) / MAX_SMALL_TOKENS;
  return Math.min(outputs / (gated ? tileRows / 2 : tileRows), Math.ceil(outFeatures / tileRows / blocks));
}
