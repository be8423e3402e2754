import { type Pointer, ptr, read, toArrayBuffer } from "bun:ffi";
import {
  type CudaApi,
  CudaStatus,
  DeviceAttribute,
  driverSymbols,
  FunctionAttribute,
} from "../../../src/cuda/driver-symbols.ts";
import type { Address } from "../../../src/cuda/ffi.ts";
import { FakeMemory } from "./fake-memory.ts";
import { FakeStreams } from "./fake-streams.ts";

type Kind =
  | "context"
  | "device memory"
  | "pinned memory"
  | "stream"
  | "event"
  | "module"
  | "graph"
  | "graph exec";

export interface FakeLaunch {
  readonly entry: string;
  readonly grid: readonly number[];
  readonly block: readonly number[];
  readonly sharedBytes: number;
  readonly stream: number;
  /** The 8 bytes at each argument's address, or a struct's. */
  readonly args: readonly Uint8Array[];
  /** Set when launched with programmatic stream serialization. */
  readonly dependent: boolean;
}

export interface FakeGpu {
  readonly name: string;
  readonly computeCapability: readonly [number, number];
  readonly memory: number;
  /** Shared memory that a block may ask for. Default: that of Hopper. */
  readonly sharedBytesPerBlock?: number;
}

const INVALID_VALUE = 1;
const PEER_ACCESS_UNSUPPORTED = 217;
const INVALID_HANDLE = 400;
const NOT_FOUND = 500;
const CAPTURE_UNSUPPORTED = 900;
const LAUNCH_OUT_OF_RESOURCES = 701;
const DEFAULT_SHARED_BYTES = 48 * 1024;
/** Every kernel's own shared memory, and how many threads of it fit a multiprocessor. */
const STATIC_SHARED_BYTES = 7 * 1024;
const RESIDENT_THREADS = 1024;
/** Multiprocessors of a GPU. */
const MULTIPROCESSORS = 132;
/**
 * A CUDA driver in host memory: allocations are real, streams run at once (or as late as they may, when `streams.lazy`),
 * graphs replay. It keeps what is alive, notes every misuse in `violations`, and fails on request.
 */
export class FakeCuda {
  readonly api: CudaApi;
  readonly calls: string[] = [];
  readonly launches: FakeLaunch[] = [];
  /** Double frees, unknown handles, copies out of bounds. */
  readonly violations: string[] = [];
  /** What has been made and not given back, with its kind. */
  readonly live = new Map<number, Kind>();
  /** Kernels that modules contain, with their argument counts. */
  readonly kernels = new Map<string, number>();
  /** Bytes of the first argument of kernels that take a struct. */
  readonly structBytes = new Map<string, number>();
  /** What kernels do when they run, by their name; the others do nothing. */
  readonly effects = new Map<string, (launch: FakeLaunch) => void>();
  readonly streams = new FakeStreams();
  readonly #failures = new Map<string, Map<number, number>>();
  readonly #callCounts = new Map<string, number>();
  readonly #memory = new FakeMemory();
  readonly #graphs = new Map<number, (() => void)[]>();
  readonly #functions = new Map<number, { entry: string; allowedShared: number }>();
  /** Of kernels, by entry: the share of shared memory that was asked for, percent. */
  readonly sharedPercents = new Map<string, number>();
  /** Clusters that a GPU runs at once; undefined: as many as it has multiprocessors for. */
  clusters: number | undefined;
  readonly #statusStrings = new Map<string, Uint8Array>();
  #nextHandle = 0x7f00_0000_1000;
  /** Contexts whose memory another may use. */
  readonly #reached = new Set<number>();
  driverVersion = 13000;
  /** GPUs reach each other's memory. */
  linked = true;
  /** Bytes at an address that this GPU has not given out, if another has that it reaches. */
  others: (address: number, count: number) => Uint8Array | undefined = () => undefined;
  /** What the next elapsed time is, in milliseconds. */
  elapsed = () => 1.5;

  constructor(
    readonly gpus: readonly FakeGpu[] = [{ name: "Fake GPU", computeCapability: [9, 0], memory: 2 ** 24 }],
  ) {
    const functions = this.#functionsOfDriver();
    const api = Object.keys(driverSymbols).map((name) => {
      const implementation = functions[name as keyof CudaApi] as (...args: unknown[]) => number;
      const call = (...args: unknown[]) => {
        this.calls.push(name);
        const count = (this.#callCounts.get(name) ?? 0) + 1;
        this.#callCounts.set(name, count);
        return this.#failures.get(name)?.get(count) ?? implementation(...args);
      };
      return [name, call];
    });
    this.api = Object.fromEntries(api) as CudaApi;
  }

  /** Makes the nth call from now of a function (the first is 1) return `status` and do nothing. */
  fail(name: keyof CudaApi, status: number, nth = 1): void {
    const at = this.#failures.get(name) ?? new Map<number, number>();
    at.set((this.#callCounts.get(name) ?? 0) + nth, status);
    this.#failures.set(name, at);
  }

  /** The live handles of one kind. */
  alive(kind: Kind): number[] {
    return [...this.live].filter(([, which]) => which === kind).map(([handle]) => handle);
  }

  /** How often a function has been called. */
  count(name: keyof CudaApi): number {
    return this.#callCounts.get(name) ?? 0;
  }

  /** Bytes of device memory allocated. */
  get allocatedBytes(): number {
    return this.alive("device memory").reduce((sum, address) => sum + this.bytesOf(address).length, 0);
  }

  /** The bytes of a live allocation. */
  bytesOf(address: number): Uint8Array {
    return this.#memory.bytesOf(address);
  }

  #functionsOfDriver(): CudaApi {
    return {
      cuInit: () => (this.gpus.length === 0 ? CudaStatus.noDevice : 0),
      cuDriverGetVersion: (out) => store(out, this.driverVersion),
      cuGetErrorName: (status, out) => this.#storeString(out, `FAKE_STATUS_${status}`),
      cuGetErrorString: (status, out) => this.#storeString(out, `what ${status} means`),

      cuDeviceGetCount: (out) => store(out, this.gpus.length),
      cuDeviceGet: (out, ordinal) => (ordinal < this.gpus.length ? store(out, ordinal) : 101),
      cuDeviceGetName: (out, _length, id) => {
        (out as Uint8Array).set(new TextEncoder().encode(`${this.gpus[id]!.name}\0`));
        return 0;
      },
      cuDeviceTotalMem_v2: (out, id) => store(out, this.gpus[id]!.memory),
      cuDeviceGetAttribute: (out, attribute, id) => {
        const { computeCapability, sharedBytesPerBlock = 227 * 1024 } = this.gpus[id]!;
        const [major, minor] = computeCapability;
        const values: Record<number, number> = {
          [DeviceAttribute.computeCapabilityMajor]: major,
          [DeviceAttribute.computeCapabilityMinor]: minor,
          [DeviceAttribute.multiprocessorCount]: MULTIPROCESSORS,
          [DeviceAttribute.l2CacheSize]: 50 * 2 ** 20,
          [DeviceAttribute.maxSharedMemoryPerBlockOptin]: sharedBytesPerBlock,
          [DeviceAttribute.maxSharedMemoryPerMultiprocessor]: 228 * 1024,
        };
        return attribute in values ? store(out, values[attribute]!) : INVALID_VALUE;
      },

      cuDevicePrimaryCtxRetain: (out) => store(out, this.#make("context")),
      cuDevicePrimaryCtxRelease_v2: () => this.#drop(this.alive("context").at(-1) ?? 0, "context"),
      cuCtxSetCurrent: (context) => this.#expect(context, "context"),
      cuDeviceCanAccessPeer: (out, device, peer) => store(out, this.linked && device !== peer ? 1 : 0),
      cuCtxEnablePeerAccess: (peer) => {
        if (!this.linked) return PEER_ACCESS_UNSUPPORTED;
        if (this.#reached.has(peer as number)) return CudaStatus.peerAccessAlreadyEnabled;
        this.#reached.add(peer as number);
        return this.#expect(peer, "context");
      },

      cuMemGetInfo_v2: (free, total) => {
        store(free, this.gpus[0]!.memory - this.allocatedBytes);
        return store(total, this.gpus[0]!.memory);
      },
      cuMemAlloc_v2: (out, bytes) => {
        if (bytes === 0) return INVALID_VALUE;
        if (this.streams.capturing) return CAPTURE_UNSUPPORTED;
        if (this.allocatedBytes + bytes > this.gpus[0]!.memory) return CudaStatus.outOfMemory;
        return store(out, this.#makeMemory("device memory", bytes));
      },
      cuMemFree_v2: (address) => this.streams.runAll() || this.#dropMemory(address, "device memory"),
      cuMemHostAlloc: (out, bytes) => store(out, this.#makeMemory("pinned memory", bytes)),
      cuMemFreeHost: (address) =>
        this.streams.runAll() || this.#dropMemory(address as number, "pinned memory"),
      cuMemcpyHtoDAsync_v2: (target, source, bytes, stream) => this.#copy(target, source, bytes, stream),
      cuMemcpyDtoHAsync_v2: (target, source, bytes, stream) => this.#copy(target, source, bytes, stream),
      cuMemcpyDtoDAsync_v2: (target, source, bytes, stream) => this.#copy(target, source, bytes, stream),
      cuMemsetD8Async: (address, byte, count, stream) => {
        const target = this.#bytes(address, count);
        return target === undefined ? INVALID_VALUE : this.#enqueue(stream, () => target.fill(byte));
      },

      cuStreamCreate: (out) => store(out, this.#make("stream")),
      cuStreamDestroy_v2: (stream) => {
        this.streams.endCapture(stream as number);
        return this.#drop(stream as number, "stream");
      },
      cuStreamSynchronize: (stream) => this.#whenNotCapturing(stream) || this.streams.run(stream as number),
      cuStreamWaitEvent: (stream, event) =>
        this.#expect(event, "event") ||
        this.#enqueue(stream, () => {
          this.streams.runTo(event as number);
        }),
      cuEventCreate: (out) => store(out, this.#make("event")),
      cuEventDestroy_v2: (event) => this.#drop(event as number, "event"),
      cuEventRecord: (event, stream) => this.#expect(event, "event") || this.#mark(event as number, stream),
      cuEventQuery: (event) =>
        this.#expect(event, "event") || (this.streams.awaits(event as number) ? CudaStatus.notReady : 0),
      cuEventSynchronize: (event) => this.#expect(event, "event") || this.streams.runTo(event as number),
      cuEventElapsedTime: (out, start, end) =>
        this.#expect(start, "event") || this.#expect(end, "event") || store(out, this.elapsed()),

      cuModuleLoadData: (out, image) =>
        (image as Uint8Array).length === 0 ? 200 : store(out, this.#make("module")),
      cuModuleUnload: (module) => this.#drop(module as number, "module"),
      cuModuleGetFunction: (out, module, entry) => {
        if (!this.kernels.has(entry)) return NOT_FOUND;
        const handle = this.#newHandle();
        this.#functions.set(handle, { entry, allowedShared: DEFAULT_SHARED_BYTES });
        return this.#expect(module, "module") || store(out, handle);
      },
      cuFuncGetAttribute: (out) => store(out, STATIC_SHARED_BYTES),
      cuOccupancyMaxActiveBlocksPerMultiprocessor: (out, _fn, threads) =>
        store(out, Math.floor(RESIDENT_THREADS / (threads as number))),
      // Clusters along z, one CTA a multiprocessor.
      cuOccupancyMaxActiveClusters: (out, _fn, config) =>
        store(out, this.clusters ?? Math.floor(MULTIPROCESSORS / read.u32(config as Pointer, 8))),
      cuFuncSetAttribute: (fn, attribute, value) => {
        const known = this.#functions.get(fn as number)!;
        if (attribute === FunctionAttribute.preferredSharedPercent)
          this.sharedPercents.set(known.entry, value as number);
        else known.allowedShared = value;
        return 0;
      },
      cuLaunchKernel: (fn, gx, gy, gz, bx, by, bz, shared, stream, args) =>
        this.#launch(
          fn as number,
          [gx, gy, gz],
          [bx, by, bz],
          shared,
          stream as number,
          args as number,
          false,
        ),
      // Words: address, type, rank, extents.
      cuTensorMapEncodeTiled: (map, type, rank, address, extents) => {
        (map as Uint8Array).fill(0);
        new BigUint64Array((map as Uint8Array).buffer, (map as Uint8Array).byteOffset, 3 + rank).set([
          ...[BigInt(address), BigInt(type), BigInt(rank)],
          ...(extents as BigUint64Array),
        ]);
        return 0;
      },
      cuLaunchKernelEx: (config, fn, args) => {
        const at = config as Pointer;
        const words = Array.from({ length: 7 }, (_, i) => read.u32(at, 4 * i));
        const attributes = Number(read.u64(at, 40)) as Pointer;
        const dependent =
          read.u32(at, 48) === 1 && read.u32(attributes, 0) === 6 && read.i32(attributes, 8) === 1;
        const stream = Number(read.u64(at, 32));
        return this.#launch(
          fn as number,
          words.slice(0, 3),
          words.slice(3, 6),
          words[6]!,
          stream,
          args as number,
          dependent,
        );
      },

      cuStreamBeginCapture_v2: (stream) => {
        if (this.streams.captures(stream as number)) return INVALID_VALUE;
        this.streams.beginCapture(stream as number);
        return this.#expect(stream, "stream");
      },
      cuStreamEndCapture: (stream, out) => {
        const nodes = this.streams.endCapture(stream as number);
        if (nodes === undefined) return INVALID_VALUE;
        const graph = this.#make("graph");
        this.#graphs.set(graph, nodes);
        return store(out, graph);
      },
      cuGraphInstantiateWithFlags: (out, graph) => {
        const misuse = this.#expect(graph, "graph");
        if (misuse) return misuse;
        const exec = this.#make("graph exec");
        this.#graphs.set(exec, [...this.#graphs.get(graph as number)!]);
        return store(out, exec);
      },
      cuGraphUpload: (exec, stream) => this.#expect(exec, "graph exec") || this.#expect(stream, "stream"),
      cuGraphLaunch: (exec, stream) => {
        const misuse = this.#expect(exec, "graph exec") || this.#expect(stream, "stream");
        const nodes = this.#graphs.get(exec as number) ?? [];
        return (
          misuse ||
          this.#enqueue(stream, () => {
            for (const node of nodes) node();
          })
        );
      },
      cuGraphExecDestroy: (exec) => this.#drop(exec as number, "graph exec"),
      cuGraphDestroy: (graph) => this.#drop(graph as number, "graph"),
    };
  }

  #newHandle(): number {
    this.#nextHandle += 16;
    return this.#nextHandle;
  }

  #make(kind: Kind): number {
    const handle = this.#newHandle();
    this.live.set(handle, kind);
    return handle;
  }

  #makeMemory(kind: Kind, bytes: number): number {
    const address = this.#memory.allocate(bytes);
    this.live.set(address, kind);
    return address;
  }

  #expect(handle: Address, kind: Kind): number {
    if (this.live.get(handle as number) === kind) return 0;
    this.violations.push(`${this.calls.at(-1)}: ${handle} is no live ${kind}`);
    return INVALID_HANDLE;
  }

  #drop(handle: number, kind: Kind): number {
    const misuse = this.#expect(handle, kind);
    this.live.delete(handle);
    return misuse;
  }

  #dropMemory(address: number, kind: Kind): number {
    const misuse = this.#drop(address, kind);
    if (!misuse) this.#memory.free(address);
    return misuse;
  }

  /** `count` bytes at an address, which must lie in one live allocation, or of a typed array. */
  #bytes(address: Address, count: number): Uint8Array | undefined {
    if (typeof address !== "number") return new Uint8Array(address.buffer, address.byteOffset, count);
    const bytes = this.#memory.at(address, count) ?? this.others(address, count);
    if (bytes === undefined)
      this.violations.push(`${this.calls.at(-1)}: ${count} bytes at ${address} are not allocated`);
    return bytes;
  }

  #copy(target: Address, source: Address, count: number, stream: Address): number {
    const to = this.#bytes(target, count);
    const from = this.#bytes(source, count);
    if (to === undefined || from === undefined) return INVALID_VALUE;
    return this.#enqueue(stream, () => to.set(from));
  }

  #enqueue(stream: Address, run: () => void): number {
    const misuse = this.#expect(stream, "stream");
    if (!misuse) this.streams.enqueue(stream as number, run);
    return misuse;
  }

  #mark(event: number, stream: Address): number {
    const misuse = this.#whenNotCapturing(stream);
    if (!misuse) this.streams.mark(event, stream as number);
    return misuse;
  }

  #whenNotCapturing(stream: Address): number {
    return this.streams.captures(stream as number) ? CAPTURE_UNSUPPORTED : this.#expect(stream, "stream");
  }

  #launch(
    fn: number,
    grid: readonly number[],
    block: readonly number[],
    sharedBytes: number,
    stream: number,
    args: number,
    dependent: boolean,
  ): number {
    const { entry, allowedShared } = this.#functions.get(fn)!;
    if (sharedBytes > allowedShared) return INVALID_VALUE;
    if (block.reduce((a, b) => a * b, 1) > 1024) return LAUNCH_OUT_OF_RESOURCES;
    const values = Array.from({ length: this.kernels.get(entry)! }, (_, i) => {
      const address = Number(read.u64(args as Pointer, 8 * i));
      const bytes = i === 0 ? (this.structBytes.get(entry) ?? 8) : 8;
      return new Uint8Array(toArrayBuffer(address as Pointer, 0, bytes)).slice();
    });
    const launch = { entry, grid, block, sharedBytes, stream, args: values, dependent };
    return this.#enqueue(stream, () => {
      this.launches.push(launch);
      this.effects.get(entry)?.(launch);
    });
  }

  #storeString(out: Address, text: string): number {
    const bytes = this.#statusStrings.get(text) ?? Uint8Array.from(Buffer.from(`${text}\0`));
    this.#statusStrings.set(text, bytes);
    return store(out, ptr(bytes));
  }
}

/** Writes to an out parameter. */
function store(out: Address, value: number): 0 {
  if (out instanceof BigUint64Array) out[0] = BigInt(value);
  else (out as Int32Array | Float32Array)[0] = value;
  return 0;
}
