import type { Context } from "./context.ts";
import { CAPTURE_MODE_THREAD_LOCAL, type CudaApi } from "./driver-symbols.ts";
import { callCuda } from "./errors.ts";
import { OutPointer } from "./ffi.ts";
import { Handle } from "./handle.ts";
import type { Stream } from "./stream.ts";

/** Device work recorded from a stream. Not needed any more once it is instantiated. */
export class Graph extends Handle {
  private constructor(
    private readonly api: CudaApi,
    value: number,
    private readonly context: Context,
  ) {
    super(value, context);
  }

  /**
   * Records what `enqueue` puts on `stream` instead of running it. When `enqueue` throws, the recording is dropped
   * and the stream is usable again.
   */
  static capture(stream: Stream, enqueue: () => void): Graph {
    const { context } = stream;
    const { api } = context;
    const out = new OutPointer();
    callCuda(api, "cuStreamBeginCapture_v2", [stream.value, CAPTURE_MODE_THREAD_LOCAL]);
    try {
      enqueue();
    } catch (error) {
      const ended = api.cuStreamEndCapture(stream.value, out.array);
      if (ended === 0 && out.value !== 0) api.cuGraphDestroy(out.value);
      throw error;
    }
    callCuda(api, "cuStreamEndCapture", [stream.value, out.array]);
    return new Graph(api, out.value, context);
  }

  /** Makes the recording launchable. */
  instantiate(): GraphExec {
    return GraphExec.instantiate(this.context, this);
  }

  protected override release(value: number): void {
    callCuda(this.api, "cuGraphDestroy", [value]);
  }
}

/** A launchable graph. It holds the addresses that were recorded: their memory must outlive it. */
export class GraphExec extends Handle {
  private constructor(
    private readonly api: CudaApi,
    value: number,
    context: Context,
  ) {
    super(value, context);
  }

  static instantiate(context: Context, graph: Graph): GraphExec {
    const { api } = context;
    const out = new OutPointer();
    callCuda(api, "cuGraphInstantiateWithFlags", [out.array, graph.value, 0]);
    return new GraphExec(api, out.value, context);
  }

  /** Moves the graph to the device ahead of its first launch. */
  upload(stream: Stream): void {
    callCuda(this.api, "cuGraphUpload", [this.value, stream.value]);
  }

  launch(stream: Stream): void {
    callCuda(this.api, "cuGraphLaunch", [this.value, stream.value]);
  }

  protected override release(value: number): void {
    callCuda(this.api, "cuGraphExecDestroy", [value]);
  }
}
