import { bytes } from "../cpu/host-buffer.ts";
import type { Tensor } from "../tensor.ts";
import { type Place, PlacedBuffer } from "./place.ts";

/** A result's address; `done` brings it to where it belongs. */
export interface Result {
  readonly address: number;
  done(): void;
}

/** Whether all that a spec says is among the fields that kernels know: what they do not know, they must not ignore. */
export function knows(spec: object, fields: ReadonlySet<string>): boolean {
  for (const field in spec)
    if (!fields.has(field) && spec[field as keyof typeof spec] !== undefined) return false;
  return true;
}

/**
 * The operands of one op in the place that it works in. What lies elsewhere is copied to scratch memory there, and results back,
 * some rows at a time: the op works where its largest operand is.
 */
export class Operands {
  #haveCopies = false;

  /**
   * @param copyBytes of one copy, at most, where an op can take some rows at a time
   * @param isCaptured their addresses are kept with tasks that are to be repeated
   */
  constructor(
    readonly place: Place,
    private readonly copyBytes: number,
    private readonly isCaptured = false,
  ) {}

  /** Scratch memory: see `Place.scratch`. Captured tasks have their own, which ops that run beside them do not outgrow. */
  scratch(name: string, byteLength: number): number {
    return this.place.scratch(this.isCaptured ? `captured ${name}` : name, byteLength);
  }

  /** Rows of these tensors that are copied at once, those of a tensor that lies elsewhere; Infinity where none does. */
  rowsAtATime(...tensors: readonly (Tensor | undefined)[]): number {
    let most = Infinity;
    for (const tensor of tensors) {
      if (tensor === undefined || this.has(tensor)) continue;
      const rowBytes = tensor.byteLength / Math.max(1, tensor.dim(0));
      most = Math.min(most, Math.max(1, Math.floor(this.copyBytes / rowBytes)));
    }
    return most;
  }

  /** Some lie elsewhere. Of captured ones nothing is copied: their tasks are of no use. */
  get haveCopies(): boolean {
    return this.#haveCopies;
  }

  /** The address of a tensor that is read. No two operands of an op have one name. */
  read(name: string, tensor: Tensor): number {
    if (this.has(tensor)) return tensor.address;
    const address = this.#copy(name, tensor);
    if (address !== 0) new Uint8Array(this.place.bytes, address, tensor.byteLength).set(bytes(tensor));
    return address;
  }

  /** 0 for none. */
  optional(name: string, tensor: Tensor | undefined): number {
    return tensor === undefined ? 0 : this.read(name, tensor);
  }

  /** The address of a tensor all of which is written. */
  write(name: string, tensor: Tensor): Result {
    if (this.has(tensor)) return { address: tensor.address, done: () => {} };
    return this.#result(this.#copy(name, tensor), tensor);
  }

  /** The address of a tensor that is read and written. */
  change(name: string, tensor: Tensor): Result {
    const address = this.read(name, tensor);
    return this.has(tensor) ? { address, done: () => {} } : this.#result(address, tensor);
  }

  /** Memory for a copy; 0 for captured operands. */
  #copy(name: string, { byteLength }: Tensor): number {
    this.#haveCopies = true;
    return this.isCaptured ? 0 : this.scratch(name, byteLength);
  }

  #result(address: number, tensor: Tensor): Result {
    if (address === 0) return { address, done: () => {} };
    return {
      address,
      done: () => bytes(tensor).set(new Uint8Array(this.place.bytes, address, tensor.byteLength)),
    };
  }

  /** Whether a tensor lies in the place: its address stays the same. */
  has({ buffer }: Tensor): boolean {
    return buffer instanceof PlacedBuffer && buffer.place === this.place;
  }
}
