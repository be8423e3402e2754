import { ptr } from "bun:ffi";
import { dtypeSize, type FloatDType } from "../../../base/dtype.ts";
import type { TensorMapShape } from "../../../cuda/tensor-map.ts";
import type { HostValue } from "../argument-packer.ts";

/** Columns of a swizzled row. */
export const K_BLOCK = 64;
/** Tensor maps at one address that are kept. */
const MAX_MAPS = 512;
/** More features than a matrix has, and more rows than a box. */
const FEATURES_LIMIT = 2 ** 22;
const ROWS_LIMIT = 2 ** 8;

/** A tensor map as an argument of a launch, which its bytes keep alive. */
export interface HostMap extends HostValue {
  readonly bytes: Uint8Array;
}

export function encodeHostMap(
  dtype: FloatDType | "uint32",
  encode: (shape: TensorMapShape) => Uint8Array,
  shape: Omit<TensorMapShape, "dtype">,
): HostMap {
  const bytes = encode({ dtype: dtype === "float32" ? "bfloat16" : dtype, ...shape });
  return { bytes, hostAddress: ptr(bytes) };
}

/** Maps by address, and then by what else they differ in: numbers, as strings would cost more than the rest of a launch. */
export class HostMaps {
  readonly #maps = new Map<number, Map<number, HostMap>>();

  /**
   * The map of a key at an address, made when it is first asked for.
   * @param key tells apart all that maps there may say: once memory is freed, a matrix of another form may take its address
   */
  get(address: number, key: number, make: () => HostMap): HostMap {
    let known = this.#maps.get(address);
    if (known === undefined || known.size >= MAX_MAPS) {
      known = new Map();
      this.#maps.set(address, known);
    }
    let map = known.get(key);
    if (map === undefined) {
      map = make();
      known.set(key, map);
    }
    return map;
  }
}

/** Maps of activations [tokens, inFeatures], with boxes of some rows by `K_BLOCK` columns. */
export class InputMaps {
  readonly #maps = new HostMaps();

  constructor(
    private readonly dtype: FloatDType,
    private readonly encode: (shape: TensorMapShape) => Uint8Array,
  ) {}

  map(address: number, tokens: number, inFeatures: number, boxRows: number): HostMap {
    const extents = tokens * FEATURES_LIMIT + inFeatures;
    return this.#maps.get(address, extents * ROWS_LIMIT + boxRows, () =>
      encodeHostMap(this.dtype, this.encode, {
        address,
        extents: [inFeatures, tokens],
        strides: [inFeatures * dtypeSize(this.dtype)],
        box: [K_BLOCK, boxRows],
      }),
    );
  }
}
