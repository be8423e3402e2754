import type { Backend, CapturedGraph } from "../src/backend/backend.ts";
import type { Tensor } from "../src/backend/tensor.ts";
import { sum } from "./stats.ts";

/** A point in the backend's work with a timestamp. */
export interface Mark {
  /** The work before it has finished. */
  readonly isDone: boolean;
  /** Milliseconds; both marks must have happened. */
  elapsedSince(start: Mark): number;
  dispose(): void;
}

/** A backend whose work can be timed, such as `CudaBackend`. */
export interface TimedBackend extends Backend {
  mark(): Mark;
}

export type OpClass =
  | "embedding"
  | "norm"
  /** Products, with the norm before them, and bias, activation or sum after them. */
  | "linear"
  | "experts"
  /** Rotary embedding and the store of keys and values included. */
  | "attention"
  /** What layers with a state have in its place. */
  | "delta rule"
  | "activation"
  | "all-reduce"
  | "LM head"
  | "sampling"
  | "batch update";

/** Methods that enqueue no op of their own, or none that a step calls. */
type Support =
  | (
      | "name"
      | "activationDtype"
      | "matrixDtypes"
      | "headCodes"
      | "allocate"
      | "allocateShared"
      | "empty"
      | "upload"
      | "bytesOf"
      | "bulkUpload"
      | "download"
      | "readback"
      | "fill"
      | "rotaryTable"
    )
  | ("fence" | "synchronize" | "memory" | "prepare" | "prepareWeight" | "tuneLinear" | "capture" | "dispose")
  | ("meetRanks" | "leaveRanks" | "rehearse" | "capturesEverySize");

const CLASSES: Readonly<Record<Exclude<keyof Backend, Support>, OpClass>> = {
  embedding: "embedding",
  copy: "batch update",
  gatherRows: "embedding",
  linear: "linear",
  experts: "experts",
  deltaNet: "delta rule",
  gateElements: "attention",
  gateRows: "experts",
  allReduceAdd: "all-reduce",
  gatherColumns: "LM head",
  rmsNorm: "norm",
  layerNorm: "norm",
  activation: "activation",
  multiplyColumns: "activation",
  normProjections: "norm",
  attend: "attention",
  joinSlots: "batch update",
  prepareBatch: "batch update",
  post: "batch update",
  scatter: "batch update",
  capLogits: "sampling",
  processLogits: "sampling",
  sample: "sampling",
  drawTokens: "LM head",
  logprobs: "sampling",
};

/** When a step's ops ran, in milliseconds. */
export interface StepTime {
  /** From its first op's start to its last op's end. */
  readonly busy: number;
  /** From the end of the step before; undefined for the first. */
  readonly idle: number | undefined;
}

/** One decode step op by op. */
export interface DecodeProfile {
  readonly rows: number;
  readonly ops: readonly { readonly class: OpClass; readonly milliseconds: number }[];
}

/** What `Profiler.decode` found: steps op by op, and the same steps replayed as graphs. */
export interface DecodeProfiles {
  readonly eager: readonly DecodeProfile[];
  /** Milliseconds of each replay. */
  readonly graph: readonly number[];
}

const FILLER_BYTES = 256 * 2 ** 20;
/** A few milliseconds of fills on a fast GPU. */
const FIRST_FILLS = 64;
const MAX_FILLS = 4096;

/** Op timings under way. */
interface OpRecording {
  readonly classes: OpClass[];
  readonly marks: Mark[];
  rows: number;
}

/**
 * Times the device work that goes through the backend it wraps. While nothing is asked of it, it adds a call to each op
 * and no device work. Ops inside a captured graph cannot be timed one by one, so `decode` runs the recorded ops again,
 * eagerly, in the graph's place: the same ops on the same memory.
 */
export class Profiler {
  #backend: TimedBackend | undefined;
  #filler: Tensor | undefined;
  #fills = FIRST_FILLS;
  #mode: "off" | "steps" | "decode" = "off";
  #capturing = false;
  #recording: OpRecording | undefined;
  #spans: { start: Mark; end?: Mark }[] = [];
  #decodeSteps: { recording: OpRecording; late: boolean }[] = [];

  /** For `loadModel`: wraps the backend of one model. */
  readonly wrap = (backend: Backend): Backend => {
    if (!isTimed(backend)) throw new TypeError(`backend ${backend.name} cannot be timed`);
    this.#backend = backend;
    this.#filler = backend.empty("uint32", [FILLER_BYTES / 4]);
    const methods = new Map<PropertyKey, unknown>();
    return new Proxy<Backend>(backend, {
      get: (_, name) => {
        if (!methods.has(name)) methods.set(name, this.#method(backend, name));
        return methods.get(name);
      },
    });
  };

  /** The times of the steps that `run` takes. A step ends where the host will wait for it. */
  async steps(run: () => Promise<unknown>): Promise<StepTime[]> {
    this.#mode = "steps";
    await run();
    this.#mode = "off";
    this.#backend!.synchronize();
    const spans = this.#spans.filter((span): span is { start: Mark; end: Mark } => span.end !== undefined);
    const times = spans.map(({ start, end }, i) => ({
      busy: end.elapsedSince(start),
      idle: i === 0 ? undefined : start.elapsedSince(spans[i - 1]!.end),
    }));
    for (const { start, end } of this.#spans) for (const mark of [start, end]) mark?.dispose();
    this.#spans = [];
    return times;
  }

  /**
   * The decode steps that `run` takes, alternately as a graph and op by op. Before each, the device is given work to do,
   * so that all of the step is enqueued before it starts and the host's pace does not show; op-by-op steps where it was
   * not enough are left out. Timestamps keep ops apart that overlap in a graph: the sum exceeds the graph's time.
   */
  decode(run: () => void): DecodeProfiles {
    this.#mode = "decode";
    run();
    this.#mode = "off";
    this.#backend!.synchronize();
    const eager = this.#decodeSteps
      .filter(({ late }) => !late)
      .map(({ recording: { rows, classes, marks } }) => ({
        rows,
        ops: classes.map((name, i) => ({
          class: name,
          milliseconds: marks[i + 1]!.elapsedSince(marks[i]!),
        })),
      }));
    const graph = this.#spans.map(({ start, end }) => end!.elapsedSince(start));
    for (const { recording } of this.#decodeSteps) for (const mark of recording.marks) mark.dispose();
    for (const { start, end } of this.#spans) for (const mark of [start, end]) mark?.dispose();
    [this.#decodeSteps, this.#spans] = [[], []];
    return { eager, graph };
  }

  #method(backend: TimedBackend, name: PropertyKey): unknown {
    const value: unknown = Reflect.get(backend, name, backend);
    if (typeof value !== "function") return value;
    if (name === "capture") return (enqueue: () => void) => this.#capture(backend, enqueue);
    const opClass = CLASSES[name as keyof typeof CLASSES];
    return (...args: unknown[]): unknown => {
      this.#before(backend, name);
      const result: unknown = Reflect.apply(value, backend, args);
      if (opClass !== undefined) this.#after(backend, name, opClass, args);
      return result;
    };
  }

  #capture(backend: TimedBackend, enqueue: () => void): CapturedGraph {
    this.#capturing = true;
    const graph = backend.capture!(enqueue);
    this.#capturing = false;
    return {
      launch: () => {
        if (this.#mode === "off") graph.launch();
        else if (this.#mode === "steps") this.#launch(backend, graph);
        else if (this.#spans.length > this.#decodeSteps.length) this.#runOps(backend, enqueue);
        else {
          this.#fill(backend);
          this.#launch(backend, graph);
        }
      },
      dispose: () => graph.dispose(),
    };
  }

  #launch(backend: TimedBackend, graph: CapturedGraph): void {
    const start = backend.mark();
    graph.launch();
    this.#spans.push({ start, end: backend.mark() });
  }

  #runOps(backend: TimedBackend, enqueue: () => void): void {
    this.#fill(backend);
    const recording: OpRecording = { classes: [], marks: [backend.mark()], rows: 0 };
    this.#recording = recording;
    enqueue();
    this.#recording = undefined;
    const late = recording.marks[0]!.isDone;
    if (late) this.#fills = Math.min(2 * this.#fills, MAX_FILLS);
    this.#decodeSteps.push({ recording, late });
  }

  #fill(backend: Backend): void {
    for (let i = 0; i < this.#fills; i++) backend.fill(this.#filler!, i & 255);
  }

  /** Steps that are not graphs begin with `prepareBatch` and end where the host marks their end. */
  #before(backend: TimedBackend, name: PropertyKey): void {
    if (this.#mode !== "steps" || this.#capturing) return;
    const last = this.#spans.at(-1);
    const open = last !== undefined && last.end === undefined;
    if (name === "prepareBatch" && !open) this.#spans.push({ start: backend.mark() });
    if (name === "fence" && open) last.end = backend.mark();
  }

  #after(backend: TimedBackend, name: PropertyKey, opClass: OpClass, [out]: unknown[]): void {
    const recording = this.#recording;
    if (recording === undefined) return;
    if (name === "sample" || name === "drawTokens") recording.rows = (out as Tensor).dim(0);
    // The last product of a step gives the logits.
    if (name === "processLogits") recording.classes[recording.classes.lastIndexOf("linear")] = "LM head";
    recording.classes.push(opClass);
    recording.marks.push(backend.mark());
  }
}

/** An op class's part of a step. */
export interface ClassTime {
  readonly class: OpClass;
  /** Ops of a step. */
  readonly ops: number;
  readonly milliseconds: number;
}

/** Each class's time in a step, greatest first. */
export function timeByClass({ ops }: DecodeProfile): ClassTime[] {
  const classes = Map.groupBy(ops, (op) => op.class);
  return [...classes]
    .map(([name, all]) => ({
      class: name,
      ops: all.length,
      milliseconds: sum(all.map((op) => op.milliseconds)),
    }))
    .sort((a, b) => b.milliseconds - a.milliseconds);
}

function isTimed(backend: Backend): backend is TimedBackend {
  return "mark" in backend;
}
