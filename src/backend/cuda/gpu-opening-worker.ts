import { Context } from "../../cuda/context.ts";
import { Device } from "../../cuda/device.ts";
import { openCublasLt, openCuda, openDriver, openNvrtc, thisMachine } from "../../cuda/open-cuda.ts";
import type { OpeningReply, OpeningTask, Rehearsal } from "./gpu-opening.ts";

declare const self: Worker;

/** Held until the main thread says that it holds its own. */
let context: Context | undefined;
let working = Promise.resolve();

self.onmessage = ({ data }: MessageEvent<OpeningTask | "end">) => {
  working = working.then(() => (data === "end" ? end() : run(data))).catch(() => {});
};

/** The main thread meets the same failures, and reports them. */
async function run(task: OpeningTask): Promise<void> {
  try {
    if (task.part === "context") context = retainContext(task.gpuIndex);
    else {
      openCublasLt(thisMachine(), task.driverMajor);
      openNvrtc(thisMachine(), task.driverMajor);
    }
  } finally {
    post("opened");
  }
  if (task.part === "context") await rehearse(task.gpuIndex, task.rehearsal);
}

function end(): void {
  try {
    context?.dispose();
  } finally {
    post("ended");
  }
}

function retainContext(gpuIndex: number): Context {
  const { api } = openDriver(thisMachine());
  return Context.retain(api, Device.open(api, gpuIndex));
}

/** The operands are whatever the memory holds: nobody looks at the result. */
async function rehearse(
  gpuIndex: number,
  { dtype, tokens, inFeatures, outFeatures }: Rehearsal,
): Promise<void> {
  // The context comes first: these modules take a while to load.
  const { CudaBackend } = await import("./cuda-backend.ts");
  const { denseWeight } = await import("../weight.ts");
  const backend = new CudaBackend(openCuda(gpuIndex), dtype);
  try {
    const x = backend.empty(dtype, [tokens, inFeatures]);
    const weight = denseWeight(backend.empty(dtype, [outFeatures, inFeatures]));
    backend.linear(backend.empty(dtype, [tokens, outFeatures]), x, weight);
    backend.synchronize();
  } finally {
    backend.dispose();
  }
}

function post(reply: OpeningReply): void {
  self.postMessage(reply);
}
