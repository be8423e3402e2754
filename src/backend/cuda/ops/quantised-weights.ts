import type { FloatDType } from "../../../base/dtype.ts";
import { invariant } from "../../../base/errors.ts";
import { byteLengthOf, type DeviceBuffer, type Tensor } from "../../tensor.ts";
import { type DenseWeight, denseWeight, type Weight } from "../../weight.ts";
import type { KernelOptions } from "../kernel.ts";
import type { KernelLibrary } from "../kernel-library.ts";
import type { KernelUnit } from "../kernel-source.ts";
import { Scratch } from "../scratch.ts";
import { KernelVariants } from "./kernel-variants.ts";
import {
  BLOCK_BYTES,
  formDefines,
  formKey,
  formOf,
  isQuantised,
  ORDER_CONSTANTS,
  type QuantisedForm,
  type QuantisedWeight,
  STRIP_ROWS,
} from "./quantised-form.ts";

const THREADS = 256;
/** Codes that are reordered at once, by way of other memory: a head's are many. */
const REORDERED_BYTES = 64 * 2 ** 20;

const SOURCE = { file: "quantised_weights.cu", constants: ORDER_CONSTANTS } as const;
const REORDER_CODES = {
  ...SOURCE,
  entry: "reorder_codes",
  pointers: ["out", "codes"],
  scalars: ["inputs", "rows"],
} as const;
const REORDER_ROWS = {
  ...SOURCE,
  entry: "reorder_rows",
  pointers: ["out", "from"],
  scalars: ["groups", "rows", "bytes"],
} as const;
const DEQUANTISE = {
  ...SOURCE,
  pointers: ["out", "codes", "scales", "zeros", "units"],
  scalars: ["inputs", "group_size", "groups", "block_rows"],
} as const;
const DEQUANTISE_ORDERED = { ...DEQUANTISE, entry: "dequantise_ordered" } as const;
const DEQUANTISE_ROWS = { ...DEQUANTISE, entry: "dequantise_rows" } as const;
const PERMUTE_COLUMNS = {
  ...SOURCE,
  entry: "permute_columns",
  pointers: ["out", "x", "permutation"],
  scalars: ["tokens", "inputs"],
} as const;

export interface QuantisedWeightsOptions extends KernelOptions {
  /** Device memory that the backend frees. */
  readonly allocate: (byteLength: number) => DeviceBuffer;
  /** Enqueues a copy on the device. */
  readonly copy: (target: number, source: number, byteLength: number) => void;
}

/** Quantised weights as a whole: their order in memory and their elements, by `quantised_weights.cu`. */
export class QuantisedWeights {
  readonly #reorderCodes: KernelVariants<typeof REORDER_CODES>;
  readonly #reorderRows: KernelVariants<typeof REORDER_ROWS>;
  readonly #ordered: KernelVariants<typeof DEQUANTISE_ORDERED>;
  readonly #rows: KernelVariants<typeof DEQUANTISE_ROWS>;
  readonly #permute: KernelVariants<typeof PERMUTE_COLUMNS>;
  readonly #forms = new WeakMap<QuantisedWeight, QuantisedForm>();
  /** A weight's elements, one weight at a time. */
  readonly #elements: Scratch;
  readonly #permuted: Scratch;

  constructor(
    library: KernelLibrary,
    private readonly dtype: FloatDType,
    private readonly options: QuantisedWeightsOptions,
  ) {
    this.#reorderCodes = new KernelVariants(library, REORDER_CODES, dtype, options);
    this.#reorderRows = new KernelVariants(library, REORDER_ROWS, dtype, options);
    this.#ordered = new KernelVariants(library, DEQUANTISE_ORDERED, dtype, options);
    this.#rows = new KernelVariants(library, DEQUANTISE_ROWS, dtype, options);
    this.#permute = new KernelVariants(library, PERMUTE_COLUMNS, dtype, options);
    this.#elements = new Scratch(options.allocate);
    this.#permuted = new Scratch(options.allocate);
  }

  /** What weights of a form need. */
  units(form: QuantisedForm): KernelUnit[] {
    return [this.#ordered.unit(formDefines(form))];
  }

  /**
   * Puts a loaded weight in the order of quantised.cuh, in place, where its extents allow it.
   * @param asElements also takes the memory that `dequantise` will need, while there is some
   */
  prepare(stream: number, weight: QuantisedWeight, asElements: boolean): void {
    const form = formOf(weight);
    this.#forms.set(weight, form);
    if (asElements) this.#elements.atLeast(byteLengthOf(this.dtype, weight.shape));
    if (!form.ordered) return;
    const [rows, inputs] = weight.shape;
    const [key, defines] = [formKey(form), formDefines(form)];
    const { data } = weight;
    const kernel = this.#reorderCodes.get(key, defines);
    const strips = Math.max(1, Math.floor((REORDERED_BYTES / data.byteLength) * (rows / STRIP_ROWS)));
    for (let start = 0; start < rows; start += strips * STRIP_ROWS) {
      const codes = data.rows(start, Math.min(rows, start + strips * STRIP_ROWS));
      const scratch = this.#elements.atLeast(codes.byteLength);
      kernel.launch(stream, Math.ceil(codes.byteLength / 4 / THREADS), 1, 1, THREADS, 0, {
        ...{ out: scratch, codes, inputs, rows: codes.dim(0) },
      });
      this.options.copy(codes.address, scratch.address, codes.byteLength);
    }
    if (form.float8) return;
    for (const tensor of [form.factors, form.zeros, form.units]) {
      if (tensor === undefined) continue;
      // A superblock's steps stay together.
      const groups = tensor === form.units ? tensor.dim(1) : (form.units?.dim(1) ?? form.groups);
      const bytes = tensor.byteLength / (rows * groups);
      const scratch = this.#elements.atLeast(tensor.byteLength);
      this.#reorderRows
        .get(key, defines)
        .launch(stream, Math.ceil((rows * groups) / THREADS), 1, 1, THREADS, 0, {
          ...{ out: scratch, from: tensor, groups, rows, bytes },
        });
      this.options.copy(tensor.address, scratch.address, tensor.byteLength);
    }
  }

  /** Whether a weight was prepared: its codes may lie in an order that only products by `form` know. */
  isPrepared(weight: Weight): boolean {
    return isQuantised(weight) && this.#forms.has(weight);
  }

  /** The form of a weight that was prepared. */
  form(weight: QuantisedWeight): QuantisedForm {
    const form = this.#forms.get(weight);
    invariant(form !== undefined, `a ${weight.format} weight was not prepared`);
    return form;
  }

  /** The elements of a weight, its columns in the order of codes, in memory that the next one overwrites. */
  dequantise(stream: number, weight: QuantisedWeight): DenseWeight {
    const form = this.form(weight);
    const [rows, inputs] = weight.shape;
    const out = this.#elements.tensor(this.dtype, weight.shape);
    const { groupSize, groups, blockRows, bits } = form;
    const args = {
      ...{
        out,
        codes: weight.data,
        scales: form.factors,
        zeros: form.zeros ?? null,
        units: form.units ?? null,
      },
      ...{ inputs, group_size: groupSize, groups, block_rows: blockRows },
    };
    const [key, defines] = [formKey(form), formDefines(form)];
    if (form.ordered) {
      const threads = (STRIP_ROWS * inputs * bits) / 8 / (BLOCK_BYTES / 4);
      const kernel = this.#ordered.get(key, defines);
      kernel.launch(stream, rows / STRIP_ROWS, Math.ceil(threads / THREADS), 1, THREADS, 0, args);
    } else {
      const kernel = this.#rows.get(key, defines);
      kernel.launch(stream, rows, Math.ceil(inputs / THREADS), 1, THREADS, 0, args);
    }
    return denseWeight(out);
  }

  /** x with its columns in the order of a permuted weight's codes, in memory that the next one overwrites; x itself for others. */
  permute(stream: number, x: Tensor, weight: QuantisedWeight): Tensor {
    if (weight.format !== "grouped" || weight.permutation === undefined) return x;
    const { permutation } = weight;
    const form = this.form(weight);
    const [tokens, inputs] = [x.dim(0), x.dim(1)];
    const out = this.#permuted.tensor(this.dtype, [tokens, inputs]);
    this.#permute
      .get(formKey(form), formDefines(form))
      .launch(stream, Math.ceil((tokens * inputs) / THREADS), 1, 1, THREADS, 0, {
        ...{ out, x, permutation, tokens, inputs },
      });
    return out;
  }
}
