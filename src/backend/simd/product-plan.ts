import * as layout from "../../../kernels-wasm/layout.ts";
import { dtypeSize } from "../../base/dtype.ts";
import {
  type DenseWeight,
  type Fp8Weight,
  type GroupedWeight,
  MXFP4_GROUP,
  type Mxfp4Weight,
  SUPERBLOCK,
  type SuperblockWeight,
  tensorsOf,
} from "../weight.ts";
import type { Operands } from "./operands.ts";
import type { Arguments } from "./thread-pool.ts";
import { type ProductCode, scalesKey, superblocksKey } from "./x64/product-code.ts";

const DENSE_FORMS = {
  float32: layout.FLOAT32,
  bfloat16: layout.BFLOAT16,
  float16: layout.FLOAT16,
} as const;

/** The weights that kernels multiply by. */
export type Multiplied = DenseWeight | Fp8Weight | GroupedWeight | Mxfp4Weight | SuperblockWeight;

/** How products by a weight are computed, of any number of tokens. */
export interface ProductPlan {
  readonly form: Form;
  /** The task's arguments from `layout.ONE` on, which name assembled code. */
  readonly routines: readonly number[];
  readonly inputs: InputLayout;
}

/** The plans of weights, made when they are first multiplied by. */
export class ProductPlans {
  readonly #plain = new WeakMap<Multiplied, ProductPlan>();
  readonly #normed = new WeakMap<Multiplied, ProductPlan>();

  constructor(private readonly code: ProductCode | undefined) {}

  /** @param isNormalised inputs pass through a norm */
  find(weight: Multiplied, operands: Operands, isNormalised: boolean): ProductPlan {
    const known = isNormalised ? this.#normed : this.#plain;
    let plan = known.get(weight);
    if (plan !== undefined) return plan;
    plan = this.make(weight, operands, isNormalised);
    // Copies of tensors that lie elsewhere are made for each product.
    if (tensorsOf(weight).every((tensor) => operands.has(tensor))) known.set(weight, plan);
    return plan;
  }

  /** A plan for one product. */
  make(weight: Multiplied, operands: Operands, isNormalised: boolean): ProductPlan {
    const form = formOf(weight, operands);
    const k = weight.shape[1];
    return (
      assembledFor(this.code, form, k, isNormalised) ?? {
        ...{ form, routines: [0], inputs: inputLayout(form, k, isNormalised) },
      }
    );
  }
}

/** A matrix as the kernels see it. */
export interface Form {
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

/** Undefined where there is no code for the form, or no memory for a panel's scales, or what has one scale is no whole number of its steps. */
function assembledFor(
  code: ProductCode | undefined,
  form: Form,
  k: number,
  isNormalised: boolean,
): ProductPlan | undefined {
  const { number, scales, group, permutation } = form;
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
    form,
    routines: [one, unpack, code.tiles, convert, code.isa.lanes, part, wide],
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

export interface InputLayout {
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
