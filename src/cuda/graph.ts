import { DriverHandle } from "./driver-handle.ts";
import { CAPTURE_MODE_THREAD_LOCAL } from "./driver-symbols.ts";
import { callCuda } from "./errors.ts";
import { OutPointer } from "./ffi.ts";
import type { Stream } from "./stream.ts";

/** Device work recorded from a stream. Not needed any more once it is instantiated. */
export class Graph extends DriverHandle {
  protected readonly destroy = "cuGraphDestroy";

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
    return new Graph(context, out.value);
  }

  /** Makes the recording launchable. */
  instantiate(): GraphExec {
    return GraphExec.instantiate(this);
  }
}

/** A launchable graph. It holds the addresses that were recorded: their memory must outlive it. */
export class GraphExec extends DriverHandle {
  protected readonly destroy = "cuGraphExecDestroy";

  static instantiate(graph: Graph): GraphExec {
    const out = new OutPointer();
    callCuda(graph.api, "cuGraphInstantiateWithFlags", [out.array, graph.value, 0]);
    return new GraphExec(graph.context, out.value);
  }

  /** Moves the graph to the device ahead of its first launch. */
  upload(stream: Stream): void {
    callCuda(this.api, "cuGraphUpload", [this.value, stream.value]);
  }

  launch(stream: Stream): void {
    callCuda(this.api, "cuGraphLaunch", [this.value, stream.value]);
  }
}
