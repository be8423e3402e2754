import { messageOf } from "../../base/errors.ts";
import { NvrtcError } from "../../cuda/errors.ts";
import { reopenNvrtc } from "../../cuda/open-cuda.ts";
import type { CompileReply, CompileTask } from "./compile-pool.ts";

declare const self: Worker;

self.onmessage = ({ data }: MessageEvent<CompileTask>) => self.postMessage(compile(data));

/** Opening NVRTC again costs nothing once it is loaded. */
function compile({ files, request }: CompileTask): CompileReply {
  try {
    return reopenNvrtc(files).compile(request);
  } catch (error) {
    if (!(error instanceof NvrtcError)) return { message: messageOf(error) };
    const { call, status, statusText, log } = error;
    return { failure: { call, status, statusText, log } };
  }
}
