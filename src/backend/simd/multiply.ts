import * as layout from "../../../kernels-wasm/layout.ts";
import { dtypeSize } from "../../base/dtype.ts";
import type { LinearFusion } from "../backend.ts";
import type { ExpertActivation, LimitedSwiglu } from "../experts.ts";
import type { Tensor } from "../tensor.ts";
import {
  type DenseWeight,
  type Fp8Weight,
  type GroupedWeight,
  MXFP4_GROUP,
  type Mxfp4Weight,
  SUPERBLOCK,
  type SuperblockWeight,
  type Weight,
} from "../weight.ts";
import { knows, type Operands } from "./operands.ts";
import type { Place } from "./place.ts";
import type { Arguments, ThreadPool } from "./thread-pool.ts";
import { type ProductCode, scalesKey, superblocksKey } from "./x64/product-code.ts";

/** Bytes of prepared inputs: more tokens are multiplied some at a time. */
const INPUT_BYTES = 2 ** 25;
/** Multiplications of a unit, or more. */
const UNIT_WORK = 2 ** 16;
/** Units for each thread, so that none waits long for the last. */
const UNITS_OF_THREAD = 8;

const DENSE_FORMS = {
  float32: layout.FLOAT32,
  bfloat16: layout.BFLOAT16,
  float16: layout.FLOAT16,
} as const;

const ACTIVATIONS = {
  silu: layout.SILU,
  gelu_tanh: layout.GELU_TANH,
  limited_swiglu: layout.LIMITED_SWIGLU,
} as const;

/** The steps around a product that kernels have. */
export interface MultiplyFusion extends Omit<LinearFusion, "activation"> {
  readonly activation?: (KernelActivation & { readonly gated: boolean }) | undefined;
}

/** Those of an expert and of a product that kernels have; of gates alone the limited one. */
export type KernelActivation = { readonly kind: "silu" | "gelu_tanh" } | LimitedSwiglu;

export function isOfKernels(activation: ExpertActivation): activation is KernelActivation {
  return activation.kind !== "gelu";
}

/** The fields of a fusion and of its norm that kernels know. */
const FUSIONS: ReadonlySet<string> = new Set<keyof LinearFusion>(["norm", "bias", "activation", "addTo"]);
const NORMS: ReadonlySet<string> = new Set<keyof NonNullable<LinearFusion["norm"]>>(["weight", "eps"]);

/** The weights that kernels multiply by. */
export type Multiplied = DenseWeight | Fp8Weight | GroupedWeight | Mxfp4Weight | SuperblockWeight;

/** The kernels have what surrounds this product; what they do not know, they must not ignore. */
export function canFuse(fusion: LinearFusion): boolean {
  return knows(fusion, FUSIONS) && (fusion.norm === undefined || knows(fusion.norm, NORMS));
}

/** The kernels have this weight's form. */
export function canMultiply(weight: Weight): weight is Multiplied {
  if (weight.shape[1] > layout.MAX_INPUTS) return false;
  if (weight.format === "fp8") return weight.blockColumns % 4 === 0 || weight.blockColumns >= weight.shape[1];
  return ["dense", "grouped", "mxfp4", "superblocks"].includes(weight.format);
}

/** Products [m, n] = [m, k] · [n, k]ᵀ. */
export interface ProductShape {
  readonly m: number;
  readonly n: number;
  readonly k: number;
}

/** A product with what surrounds it; see `Backend.linear`. */
export function multiply(
  pool: ThreadPool,
  operands: Operands,
  out: Tensor,
  x: Tensor,
  weight: Multiplied,
  { m, n, k }: ProductShape,
  { norm, bias, activation, addTo }: MultiplyFusion,
): void {
  const { place } = operands;
  const form = formOf(weight, operands);
  const assembled = assembledFor(pool.code?.products, form, k, norm !== undefined);
  const layoutOfX = assembled?.inputs ?? inputLayout(form, k, norm !== undefined);
  const outputs = activation?.gated ? n / 2 : n;
  const atATime = Math.max(1, Math.floor(INPUT_BYTES / (4 * k)));
  const kind = activation === undefined ? layout.NO_ACTIVATION : ACTIVATIONS[activation.kind];
  const fixed = {
    bias: operands.optional("bias", bias),
    norm: operands.optional("norm", norm?.weight),
    eps: norm?.eps ?? 0,
  };
  for (let first = 0; first < m; first += atATime) {
    const tokens = Math.min(atATime, m - first);
    const rows = (tensor: Tensor) => tensor.rows(first, first + tokens);
    const input = operands.read("x", rows(x));
    const prepared = layoutOfX.isPrepared
      ? prepare(pool, place, input, { ...layoutOfX, ...fixed, k, form, tokens })
      : { x: input, scales: 0 };
    const result = operands.write("out", rows(out));
    const addend = addTo && operands.read("addTo", rows(addTo));
    const macs = tokens * n * k;
    const unitRows = rowsOfUnit(outputs, macs, pool.threads);
    pool.run(place, {
      kernel: layout.MULTIPLY,
      units: Math.ceil(outputs / unitRows),
      work: macs,
      write: (args) => {
        args.words(layout.OUT, result.address, prepared.x, layoutOfX.stride, prepared.scales);
        args.words(layout.TOKENS, tokens, n, outputs, k);
        form.write(args);
        args.words(layout.ONE, ...(assembled?.words ?? [0]));
        args.words(layout.BIAS, fixed.bias, addend ?? 0, kind, Number(activation?.gated ?? false), unitRows);
        if (activation?.kind !== "limited_swiglu") return;
        args.float(layout.ALPHA, activation.alpha);
        args.float(layout.LIMIT, activation.limit);
      },
    });
    result.done();
  }
}

/** A matrix as the kernels see it. */
interface Form {
  /** Its number in layout.ts. */
  readonly number: number;
  /** Key of its scales in assembled code. */
  readonly scales: string;
  readonly isInteger: boolean;
  /** Columns of a scale. */
  readonly group: number;
  /** Of integers: columns of inputs with one scale, or a multiple of them; bits of a code that inputs are prepared for; their permutation. */
  readonly inputs: number;
  readonly bits: number;
  readonly permutation: number;
  /** Writes the matrix's arguments. */
  readonly write: (args: Arguments) => void;
}

function formOf(weight: Multiplied, operands: Operands): Form {
  const k = weight.shape[1];
  const data = operands.read("data", weight.data);
  const floats = {
    ...{ scales: "", isInteger: false, group: k, inputs: k, bits: 0, permutation: 0 },
  };
  const matrix = (args: Arguments, form: number, rowBytes: number) =>
    args.words(layout.DATA, data, rowBytes, form);
  if (weight.format === "dense") {
    const { dtype } = weight.data;
    const number = DENSE_FORMS[dtype as keyof typeof DENSE_FORMS];
    return {
      ...floats,
      number,
      write: (args) => {
        matrix(args, number, k * dtypeSize(dtype));
        args.words(layout.SCALES, 0, 0, 0, 1, k, 0);
      },
    };
  }
  if (weight.format === "superblocks") {
    const { bits, groupSize, minima } = weight;
    const [steps, units] = [operands.read("steps", weight.steps), operands.read("units", weight.units)];
    const number = bits === 4 ? layout.NIBBLE_SUPERBLOCKS : layout.BYTE_SUPERBLOCKS;
    return {
      ...{ number, scales: superblocksKey(SUPERBLOCK / groupSize, minima) },
      ...{ isInteger: true, group: groupSize, inputs: layout.CODES, bits: 4, permutation: 0 },
      write: (args) => {
        matrix(args, number, (k * bits) / 8);
        args.words(layout.SCALES, steps, layout.FLOAT16, k / groupSize, 1, groupSize, 0);
        args.words(layout.SUPERBLOCK_UNITS, units, Number(minima));
      },
    };
  }
  const scales = operands.read("scales", weight.scales);
  if (weight.format === "fp8") {
    const { blockRows, blockColumns } = weight;
    return {
      ...floats,
      number: layout.FLOAT8,
      group: blockColumns,
      write: (args) => {
        matrix(args, layout.FLOAT8, k);
        args.words(
          layout.SCALES,
          scales,
          layout.FLOAT32,
          Math.ceil(k / blockColumns),
          blockRows,
          blockColumns,
          0,
        );
      },
    };
  }
  if (weight.format === "mxfp4") {
    return {
      ...{
        number: layout.MXFP4,
        scales: scalesKey(layout.MXFP4, false),
        isInteger: true,
        group: MXFP4_GROUP,
        inputs: MXFP4_GROUP,
        bits: 4,
        permutation: 0,
      },
      write: (args) => {
        matrix(args, layout.MXFP4, k / 2);
        args.words(layout.SCALES, scales, layout.MXFP4, k / MXFP4_GROUP, 1, MXFP4_GROUP, 0);
      },
    };
  }
  const { bits, groupSize } = weight;
  const zeros = operands.optional("zeros", weight.zeros);
  const scaleForm = weight.scales.dtype === "float16" ? layout.FLOAT16 : layout.BFLOAT16;
  const number = bits === 4 ? layout.INT4 : layout.INT8;
  return {
    ...{ number, scales: scalesKey(scaleForm, zeros !== 0) },
    ...{ isInteger: true, group: groupSize, inputs: groupSize, bits },
    permutation: operands.optional("permutation", weight.permutation),
    write: (args) => {
      matrix(args, number, (k * bits) / 8);
      args.words(layout.SCALES, scales, scaleForm, k / groupSize, 1, groupSize, zeros);
    },
  };
}

/** Assembled code for a product. */
interface Assembled {
  /** The task's arguments from `layout.ONE` on. */
  readonly words: readonly number[];
  readonly inputs: InputLayout;
}

/** Undefined where there is no code for the form, or no memory for a panel's scales, or what has one scale is no whole number of its steps. */
function assembledFor(
  code: ProductCode | undefined,
  { number, scales, group, permutation }: Form,
  k: number,
  isNormalised: boolean,
): Assembled | undefined {
  const routines = code?.forms[number];
  if (code === undefined || routines === undefined) return undefined;
  const { columns, isScaled, one, unpack } = routines;
  if (k % columns !== 0 || (group < k && group % columns !== 0)) return undefined;
  const part = isScaled ? partOf(group, k, columns) : 0;
  if (part > 0 && (layout.PANEL_ROWS * k) / part > layout.MOST_SCALES) return undefined;
  const wide = part === 0 ? layout.WIDE : layout.WIDE - (layout.WIDE % part);
  const convert = code.convert[scales] ?? 0;
  const isSplit = columns === layout.CODES;
  const isPrepared = isNormalised || isSplit || permutation !== 0;
  return {
    words: [one, unpack, code.tiles, convert, code.isa.lanes, part, wide],
    inputs: { isPrepared, isInteger: false, isSplit, stride: 4 * k, blocks: 0 },
  };
}

/** The most columns of one scale that panels, groups and rows are whole numbers of. */
function partOf(group: number, k: number, columns: number): number {
  let part = Math.min(group, k, layout.WIDE);
  part -= part % columns;
  while (k % part !== 0 || (group < k && group % part !== 0)) part -= columns;
  return part;
}

interface InputLayout {
  /** They are not the inputs as they are. */
  readonly isPrepared: boolean;
  readonly isInteger: boolean;
  /** Of each 32 those at even columns come first. */
  readonly isSplit: boolean;
  /** Bytes from one token's to the next. */
  readonly stride: number;
  /** Of integers. */
  readonly blocks: number;
}

/** The form of inputs for the kernels' own products. */
function inputLayout(
  { isInteger, inputs: group, bits }: Form,
  k: number,
  isNormalised: boolean,
): InputLayout {
  const isSplit = false;
  if (!isInteger) {
    const stride = 16 * Math.ceil(k / 4);
    return { isPrepared: isNormalised || k % 4 !== 0, isInteger, isSplit, stride, blocks: 0 };
  }
  const block = Math.min(group, layout.BLOCK);
  const blocks = Math.ceil(group / block) * (k / group);
  const inputBytes = bits === 4 ? 3 : 4;
  const padded = layout.CODES * Math.ceil(block / layout.CODES);
  return { isPrepared: true, isInteger, isSplit, stride: blocks * padded * inputBytes, blocks };
}

interface Preparation extends InputLayout {
  readonly form: Form;
  readonly tokens: number;
  readonly k: number;
  readonly norm: number;
  readonly eps: number;
}

/** Inputs as the product reads them, in scratch memory. */
function prepare(pool: ThreadPool, place: Place, x: number, preparation: Preparation) {
  const { form, tokens, k, isInteger, isSplit, stride, blocks, norm, eps } = preparation;
  const prepared = place.scratch("inputs", tokens * stride);
  const recordBytes = form.bits === 4 ? layout.NIBBLE_SCALES : layout.BLOCK_SCALES;
  const scales = isInteger ? place.scratch("input scales", recordBytes * tokens * blocks) : 0;
  pool.run(place, {
    kernel: isInteger ? layout.PREPARE_INTEGERS : layout.PREPARE_FLOATS,
    units: tokens,
    work: tokens * k * (isInteger ? 8 : 1),
    write: (args) => {
      args.words(0, x, prepared, stride, k, norm);
      args.float(5, eps);
      args.words(6, scales, form.inputs, form.bits, form.permutation, Number(isSplit));
    },
  });
  return { x: prepared, scales };
}

/** Rows of a matrix that one unit multiplies: whole panels, enough for its time to count, and as many units for one thread as for another. */
function rowsOfUnit(outputs: number, work: number, threads: number): number {
  const worthwhile = Math.max(1, Math.floor(work / UNIT_WORK));
  const rounds = Math.min(UNITS_OF_THREAD, Math.floor(worthwhile / threads));
  const units = rounds === 0 ? worthwhile : rounds * threads;
  return layout.PANEL_ROWS * Math.max(1, Math.ceil(outputs / layout.PANEL_ROWS / units));
}
