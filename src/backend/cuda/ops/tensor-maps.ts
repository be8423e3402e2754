import { dtypeSize, type FloatDType } from "../../../base/dtype.ts";
import { TENSOR_MAP_BYTES, type TensorMapShape } from "../../../cuda/tensor-map.ts";
import type { DeviceBuffer, Tensor } from "../../tensor.ts";
import type { Addressed } from "../argument-packer.ts";

/** Columns of a box: those of a swizzled row. */
export const BOX_COLUMNS = 64;
/** Rows of a weight that a map permutes among themselves. */
export const ROW_GROUP = 32;
/** Maps whose memory is allocated at once. */
const SLAB_MAPS = 64;
/** A tensor map cannot have more rows. */
const MAX_ROWS = 2 ** 31 - 1;

export interface TensorMapOptions {
  readonly dtype: FloatDType;
  readonly upload: (address: number, bytes: Uint8Array) => void;
  readonly encodeTensorMap: (shape: TensorMapShape) => Uint8Array;
  /** Device memory that the backend frees. */
  readonly allocate: (byteLength: number) => DeviceBuffer;
}

interface KnownMap {
  readonly permuted: boolean;
  readonly rows: number;
  readonly columns: number;
  readonly boxRows: number;
  readonly map: Addressed;
}

/**
 * Matrices [rows, columns] as Hopper's copy engine sees them: maps in device memory, made and uploaded when first asked for,
 * which capturing forbids. A map says nothing of what is in the matrix, so it stays right when other memory takes its place.
 */
export class TensorMaps {
  /** By the matrix's address. */
  readonly #known = new Map<number, KnownMap[]>();
  #slab: DeviceBuffer | undefined;
  #used = 0;

  constructor(private readonly options: TensorMapOptions) {}

  /**
   * The map of a matrix with boxes of [boxRows, `BOX_COLUMNS`]. It has as many rows as fit in the tensor's buffer, so that
   * it is the same for any number of rows: a box beyond them reads what lies there, or zeros behind the buffer.
   */
  ofRows(tensor: Tensor, boxRows: number): Addressed {
    const columns = tensor.dim(1);
    const rowBytes = columns * dtypeSize(this.options.dtype);
    const rows = Math.min(Math.floor((tensor.buffer.byteLength - tensor.byteOffset) / rowBytes), MAX_ROWS);
    return this.#get(tensor.address, false, rows, columns, boxRows, () => ({
      ...{ extents: [columns, rows], strides: [rowBytes], box: [BOX_COLUMNS, boxRows] },
    }));
  }

  /**
   * The map of a weight, whose rows are a multiple of `ROW_GROUP` as those of a box are, for a wgmma whose threads store 16 bytes: row
   * 32g + 8m + 2c + e of a box is row 32g + 8c + 2m + e of the weight. A thread of a wgmma has columns 2c and 2c + 1 of every 8
   * of a result, so what it has of every 32 becomes neighbours. Boxes are [boxRows, `BOX_COLUMNS`]; behind the last row are zeros.
   */
  ofWeight(tensor: Tensor, boxRows: number): Addressed {
    const [rows, columns] = [tensor.dim(0), tensor.dim(1)];
    const rowBytes = columns * dtypeSize(this.options.dtype);
    return this.#get(tensor.address, true, rows, columns, boxRows, () => ({
      extents: [columns, 2, 4, 4, rows / ROW_GROUP],
      strides: [rowBytes, 8 * rowBytes, 2 * rowBytes, ROW_GROUP * rowBytes],
      box: [BOX_COLUMNS, 2, 4, 4, boxRows / ROW_GROUP],
    }));
  }

  #get(
    address: number,
    permuted: boolean,
    rows: number,
    columns: number,
    boxRows: number,
    shape: () => Pick<TensorMapShape, "extents" | "strides" | "box">,
  ): Addressed {
    const here = this.#known.get(address) ?? [];
    for (const each of here) {
      const same = each.rows === rows && each.columns === columns && each.boxRows === boxRows;
      if (same && each.permuted === permuted) return each.map;
    }
    const { dtype, encodeTensorMap, upload } = this.options;
    const map = this.#place();
    upload(
      map.address,
      encodeTensorMap({ dtype: dtype === "float16" ? "float16" : "bfloat16", address, ...shape() }),
    );
    this.#known.set(address, [...here, { permuted, rows, columns, boxRows, map }]);
    return map;
  }

  /** New maps get memory of their own: the copy engine may remember what it read at an address. */
  #place(): Addressed {
    if (this.#slab === undefined || this.#used === SLAB_MAPS) {
      this.#slab = this.options.allocate(SLAB_MAPS * TENSOR_MAP_BYTES);
      this.#used = 0;
    }
    return { address: this.#slab.address + this.#used++ * TENSOR_MAP_BYTES };
  }
}
