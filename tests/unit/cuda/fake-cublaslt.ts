import { type Pointer, read, toArrayBuffer } from "bun:ffi";
import type { CublasLtApi } from "../../../src/cuda/cublaslt-symbols.ts";
import type { Address } from "../../../src/cuda/ffi.ts";

/** A product as it was asked for. */
export interface FakeMatmul {
  readonly x: number;
  readonly weight: number;
  readonly out: number;
  readonly bias: number | undefined;
  /** C, where β is not 0. */
  readonly addTo: number | undefined;
  /** First byte of the algorithm, which is all that fake algorithms differ in. */
  readonly algorithm: number;
  /** [tokens, inFeatures, outFeatures]. */
  readonly shape: readonly [number, number, number];
}

type Layout = { type: number; rows: number; columns: number; ld: number };

/**
 * cuBLASLt on float32 host memory, by the textbook: column-major, D = α · op(A) · op(B) + β · C + bias. Products of other
 * types are only recorded.
 */
export class FakeCublasLt {
  readonly live = new Map<number, Layout | Map<number, number>>();
  readonly preferences: Map<number, number>[] = [];
  readonly matmuls: FakeMatmul[] = [];
  /** Algorithms asked for at once, by search. */
  readonly searches: number[] = [];
  version = 130401n;
  /** Algorithms that were checked, by their first byte, and those that can run no problem but the one they were found for. */
  readonly checks: number[] = [];
  readonly unfit = new Set<number>();
  /** Algorithms that fail when they run, by their first byte. */
  readonly refused = new Set<number>();
  status = 0;
  heuristics: Uint8Array = heuristicResult({ workspaceBytes: 64 });
  #next = 0x1000;

  readonly api: CublasLtApi = {
    cublasLtGetVersion: () => this.version,
    cublasLtGetStatusName: (status) => `FAKE_STATUS_${status}`,
    cublasLtCreate: (out) => this.status || this.#make(out, new Map()),
    cublasLtDestroy: (handle) => this.#drop(handle),
    cublasLtMatmulDescCreate: (out) => this.#make(out, new Map()),
    cublasLtMatmulDescDestroy: (handle) => this.#drop(handle),
    cublasLtMatmulDescSetAttribute: (handle, attribute, value, bytes) =>
      this.#setAttribute(handle, attribute, value, bytes),
    cublasLtMatrixLayoutCreate: (out, type, rows, columns, ld) =>
      this.#make(out, { type, rows, columns, ld }),
    cublasLtMatrixLayoutDestroy: (handle) => this.#drop(handle),
    cublasLtMatmulPreferenceCreate: (out) => {
      this.preferences.push(new Map());
      return this.#make(out, this.preferences.at(-1)!);
    },
    cublasLtMatmulPreferenceDestroy: (handle) => this.#drop(handle),
    cublasLtMatmulPreferenceSetAttribute: (handle, attribute, value, bytes) =>
      this.#setAttribute(handle, attribute, value, bytes),
    cublasLtMatmulAlgoGetHeuristic: (...args) => {
      if (this.status !== 0) return this.status;
      const limit = args[7];
      this.searches.push(limit);
      (args[8] as Uint8Array).set(this.heuristics.subarray(0, limit * 96));
      (args[9] as Int32Array)[0] = Math.min(limit, this.heuristics.length / 96);
      return 0;
    },
    cublasLtMatmulAlgoCheck: (...args) => {
      const [algorithm, result] = [args[6], args[7] as Uint8Array];
      this.checks.push(read.u8(algorithm as Pointer));
      if (this.unfit.has(this.checks.at(-1)!)) return 15;
      new DataView(result.buffer).setBigUint64(64, 64n, true);
      return 0;
    },
    cublasLtMatmul: (
      _handle,
      desc,
      alpha,
      a,
      aLayout,
      b,
      bLayout,
      beta,
      c,
      cLayout,
      d,
      dLayout,
      algorithm,
    ) => {
      if (this.status !== 0 || this.refused.has(read.u8(algorithm as Pointer))) return this.status || 15;
      const attributes = this.#of(desc) as Map<number, number>;
      const [weights, inputs, outputs] = [aLayout, bLayout, dLayout].map(
        (layout) => this.#of(layout) as Layout,
      );
      this.matmuls.push({
        ...{ weight: a, x: b, out: d },
        bias: attributes.get(7) === 4 ? attributes.get(8) : undefined,
        addTo: (beta as Float32Array)[0] === 0 ? undefined : (c as number),
        algorithm: read.u8(algorithm as Pointer),
        shape: [inputs!.columns, weights!.rows, weights!.columns],
      });
      if (inputs!.type !== 0 || outputs!.type !== 0) return 0;
      const left = this.#matrix(a, aLayout, attributes.get(3) === 1);
      const right = this.#matrix(b, bLayout, attributes.get(4) === 1);
      const addend = this.#matrix(c, cLayout, false);
      const out = this.#matrix(d, dLayout, false);
      const bias = attributes.get(7) === 4 ? floats(attributes.get(8)!, out.rows) : undefined;
      const [scale, keep] = [(alpha as Float32Array)[0]!, (beta as Float32Array)[0]!];
      for (let row = 0; row < out.rows; row++) {
        for (let column = 0; column < out.columns; column++) {
          let sum = 0;
          for (let k = 0; k < left.columns; k++) sum += left.get(row, k) * right.get(k, column);
          const kept = keep === 0 ? 0 : keep * addend.get(row, column);
          out.set(row, column, scale * sum + kept + (bias?.[row] ?? 0));
        }
      }
      return 0;
    },
  };

  #make(out: Address, value: Layout | Map<number, number>): number {
    this.#next += 8;
    (out as BigUint64Array)[0] = BigInt(this.#next);
    this.live.set(this.#next, value);
    return 0;
  }

  #drop(handle: Address): number {
    return this.live.delete(handle as number) ? 0 : 7;
  }

  #of(handle: Address) {
    return this.live.get(handle as number)!;
  }

  #setAttribute(handle: Address, attribute: number, value: Address, bytes: number): number {
    const array = value as Int32Array | BigUint64Array;
    if (array.byteLength !== bytes) return 7;
    (this.#of(handle) as Map<number, number>).set(attribute, Number(array[0]));
    return 0;
  }

  #matrix(address: number, handle: Address, transposed: boolean) {
    const { rows, columns, ld } = this.#of(handle) as Layout;
    const values = floats(address, ld * columns);
    const at = (row: number, column: number) => (transposed ? row * ld + column : column * ld + row);
    return {
      rows: transposed ? columns : rows,
      columns: transposed ? rows : columns,
      get: (row: number, column: number) => values[at(row, column)]!,
      set: (row: number, column: number, value: number) => {
        values[at(row, column)] = value;
      },
    };
  }
}

export function floats(address: number, count: number): Float32Array {
  return new Float32Array(toArrayBuffer(address as Pointer, 0, count * 4));
}

export function heuristicResult({ workspaceBytes = 0, state = 0, fill = 7 }): Uint8Array {
  const bytes = new Uint8Array(96).fill(fill, 0, 64);
  const view = new DataView(bytes.buffer);
  view.setBigUint64(64, BigInt(workspaceBytes), true);
  view.setInt32(72, state, true);
  return bytes;
}
