import { ptr } from "bun:ffi";
import { readFileSync } from "node:fs";
import * as layout from "../../../kernels-wasm/layout.ts";
import { formatBytes } from "../../base/bytes.ts";
import { DeviceError, invariant } from "../../base/errors.ts";
import { programFile } from "../../base/program-file.ts";
import type { DeviceBuffer } from "../tensor.ts";
import { HUGE_PAGE_BYTES, Pages } from "./pages.ts";
import { functionAt } from "./x64/executable-memory.ts";

const MODULE = programFile("kernels-wasm/kernels.wasm");
const PAGE = 2 ** 16;
/** What 32-bit addresses reach, with where its last byte ends: kernels compare with ends. */
export const MAX_PLACE_BYTES = 2 ** 32 - PAGE;
/** Tensors begin at multiples of this. */
const ALIGNMENT = 64;
/** The least that a memory grows by. */
const GROWTH = 2 ** 22;

/** The kernels' exports; see kernels-wasm/index.ts. */
export interface Kernels {
  close(): void;
  open(): void;
  run(thread: number): void;
  finish(): number;
  listen(known: number, isAwake: boolean): number;
}

/** The compiled kernels. */
export function compileKernels(): WebAssembly.Module {
  return new WebAssembly.Module(readFileSync(MODULE));
}

/**
 * The kernels on a memory.
 * @param code address of assembled code that they may call, 0 for none
 */
export function instantiate(module: WebAssembly.Module, memory: WebAssembly.Memory, code: number): Kernels {
  const base = baseOf(memory);
  const execute = code === 0 ? undefined : functionAt(code);
  const call = (routine: number, parameters: number) =>
    execute!(base + (parameters >>> 0), base, code + routine);
  return new WebAssembly.Instance(module, { env: { memory }, code: { call } }).exports as unknown as Kernels;
}

/** Bytes that a place has for tensors and scratch memory when it is new. */
export function roomOf(maxBytes: number, threads: number): number {
  return maxBytes - PAGE - threads * layout.SCRATCH_BYTES;
}

/** Addresses for all that a memory may grow to. @throws DeviceError when the system does not give so many */
function reserve(maxBytes: number): WebAssembly.Memory {
  try {
    return new WebAssembly.Memory({ initial: 1, maximum: maxBytes / PAGE, shared: true });
  } catch (error) {
    throw new DeviceError(
      `cannot reserve ${formatBytes(maxBytes)} of address space for the CPU backend: does a limit (ulimit -v, ulimit -d) forbid it? The reference backend (cpu-reference) reserves none`,
      { cause: error },
    );
  }
}

/** The address of a memory. It never moves: all that it may grow to is reserved. */
function baseOf({ buffer }: WebAssembly.Memory): number {
  return ptr(new Uint8Array(buffer));
}

/** A part of a place's memory. */
interface Span {
  readonly start: number;
  readonly end: number;
}

/**
 * A memory of up to 4 GiB that all threads share, with the kernels on it, and what of it is in use. Kernels see one place: what they
 * read and write must all be there. Address 0 is nothing's. A memory grows as it is used and keeps its size.
 */
export class Place {
  readonly kernels: Kernels;
  /** A task's words, by address / 4. */
  readonly words: Int32Array;
  readonly #pages = new Pages();
  readonly #base: number;
  readonly #limit: number;
  /** Unused parts of what the memory has grown to, by address; none touches another. */
  readonly #free: Span[] = [];
  /** The first page holds the task at hand and constants. */
  #used = PAGE;
  readonly #scratch = new Map<string, PlacedBuffer>();
  #scratchMoves = 0;

  /**
   * @param maxBytes a multiple of 64 KiB
   * @param threads that need scratch memory of their own
   * @param code address of assembled code, 0 for none
   */
  constructor(
    module: WebAssembly.Module,
    maxBytes: number,
    threads: number,
    code = 0,
    readonly memory = reserve(maxBytes),
  ) {
    this.#base = baseOf(memory);
    this.#pages.prefer("huge", this.#base, maxBytes);
    this.kernels = instantiate(module, memory, code);
    this.words = new Int32Array(memory.buffer, 0, layout.FIRST_FREE / 4);
    this.#limit = maxBytes;
    const scratch = this.take(threads * layout.SCRATCH_BYTES, 0);
    if (scratch === undefined) throw new DeviceError(`no memory for ${threads} threads`);
    this.words[layout.SCRATCH / 4] = scratch.address;
  }

  /** All of the memory. */
  get bytes(): ArrayBufferLike {
    return this.memory.buffer;
  }

  /** Uninitialised memory; undefined when less than `spared` bytes would be left. */
  take(byteLength: number, spared: number): PlacedBuffer | undefined {
    const size = Math.max(ALIGNMENT, Math.ceil(byteLength / ALIGNMENT) * ALIGNMENT);
    if (this.#used + size + spared > this.#limit) return undefined;
    let index = this.#free.findIndex(({ start, end }) => end - start >= size);
    if (index < 0) {
      const last = this.#free.at(-1);
      const grown = this.bytes.byteLength;
      const missing = size - (last?.end === grown ? grown - last.start : 0);
      if (grown + missing > this.#limit) return undefined;
      const wanted = Math.min(Math.max(missing, GROWTH), this.#limit - grown);
      if (!this.#grow(wanted)) return undefined;
      index = this.#free.length - 1;
    }
    const { start, end } = this.#free[index]!;
    if (end - start === size) this.#free.splice(index, 1);
    else this.#free[index] = { start: start + size, end };
    this.#used += size;
    return new PlacedBuffer(this, start, byteLength, () => {
      this.#used -= size;
      this.#give({ start, end: start + size });
    });
  }

  /** `take`, of memory that is filled little by little: it is in small pages until `PlacedPool.holds` says otherwise. */
  takePool(byteLength: number, spared: number): PlacedPool | undefined {
    const buffer = this.take(byteLength, spared);
    if (buffer === undefined) return undefined;
    const prefer = (size: "huge" | "small") =>
      this.#pages.preferWithin(size, this.#base + buffer.address, byteLength);
    prefer("small");
    return new PlacedPool(buffer, () => prefer("huge"));
  }

  /** How often scratch memory has been given another address than before. */
  get scratchMoves(): number {
    return this.#scratchMoves;
  }

  /** Scratch memory called `name`, of at least this size: its contents last until the name's next use. */
  scratch(name: string, byteLength: number): number {
    let buffer = this.#scratch.get(name);
    if (buffer === undefined || buffer.byteLength < byteLength) {
      // Memory that is gone must not be found again when there is none for its successor.
      this.#scratch.delete(name);
      if (buffer !== undefined) this.#scratchMoves++;
      buffer?.dispose();
      buffer = this.take(Math.ceil(byteLength * 1.25), 0);
      if (buffer === undefined)
        throw new DeviceError(`cannot allocate ${byteLength} bytes of scratch memory`);
      this.#scratch.set(name, buffer);
    }
    return buffer.address;
  }

  /**
   * Nobody computes here any more, and what tensors held is lost: the system has the memory back now, not when the collector finds the
   * place. The first page stays, where threads see that they have ended. Safe to call twice.
   */
  dispose(): void {
    this.#pages.giveBack(this.#base + PAGE, this.bytes.byteLength - PAGE);
  }

  #grow(bytes: number): boolean {
    const start = this.bytes.byteLength;
    try {
      this.memory.grow(Math.ceil(bytes / PAGE));
    } catch {
      return false;
    }
    this.#give({ start, end: this.bytes.byteLength });
    return true;
  }

  /** Joins unused memory with what it touches. */
  #give({ start, end }: Span): void {
    let index = this.#free.findIndex((span) => span.start >= end);
    if (index < 0) index = this.#free.length;
    const before = this.#free[index - 1];
    const after = this.#free[index];
    const isAfter = before?.end === start;
    const isBefore = after?.start === end;
    const joined = { start: isAfter ? before.start : start, end: isBefore ? after.end : end };
    this.#free.splice(index - Number(isAfter), Number(isAfter) + Number(isBefore), joined);
  }
}

/** Memory in a place. Reading it after `dispose()` throws `InvariantError`. */
export class PlacedBuffer implements DeviceBuffer {
  #release: (() => void) | undefined;

  constructor(
    readonly place: Place,
    readonly address: number,
    readonly byteLength: number,
    release: () => void,
  ) {
    this.#release = release;
  }

  get host(): ArrayBufferLike {
    invariant(this.#release !== undefined, "host buffer used after dispose()");
    return this.place.bytes;
  }

  dispose(): void {
    this.#release?.();
    this.#release = undefined;
  }
}

/** A huge page of keys and one of values: a layer that has cached less would leave parts of both unused. */
const FILLED = 2 * HUGE_PAGE_BYTES;

/** Memory in a place that is filled little by little. */
export class PlacedPool extends PlacedBuffer {
  #preferHuge: (() => void) | undefined;

  constructor(buffer: PlacedBuffer, preferHuge: () => void) {
    super(buffer.place, buffer.address, buffer.byteLength, () => {
      // For whoever has the memory next.
      this.#grow();
      buffer.dispose();
    });
    this.#preferHuge = preferHuge;
  }

  /** So many bytes of it are in use. Once they fill huge pages, what is used for the first time from here on is in huge ones. */
  holds(byteLength: number): void {
    if (byteLength >= FILLED) this.#grow();
  }

  #grow(): void {
    this.#preferHuge?.();
    this.#preferHuge = undefined;
  }
}
