import { Context } from "./context.ts";
import { Device } from "./device.ts";
import { openCublasLt, openDriver, openNvrtc, thisMachine } from "./open-cuda.ts";
import type { OpeningTask } from "./opening.ts";

declare const self: Worker;

/** Held until the main thread says that it holds its own. */
let context: Context | undefined;

self.onmessage = ({ data }: MessageEvent<OpeningTask | "release">) => {
  try {
    if (data === "release") context?.dispose();
    else if (data.part === "context") context = retainContext(data.ordinal);
    else {
      openCublasLt(thisMachine(), data.driverMajor);
      openNvrtc(thisMachine(), data.driverMajor);
    }
  } catch {
    // The main thread meets the same failure, and reports it.
  }
  self.postMessage("done");
};

function retainContext(ordinal: number): Context {
  const { api } = openDriver(thisMachine());
  return Context.retain(api, Device.open(api, ordinal));
}
