import { type Pointer, toArrayBuffer } from "bun:ffi";
import { ModelDataError } from "../base/errors.ts";
import { ChunkReader } from "./chunk-reader.ts";
import type { ReadReply, ReadTask } from "./weight-reader.ts";

declare const self: Worker;

const reader = new ChunkReader();

self.onmessage = ({ data }: MessageEvent<ReadTask>) => self.postMessage(read(data));

/** The memory is the sender's: it outlives the task, and nobody else touches it meanwhile. */
function read({ chunk, address, byteLength }: ReadTask): ReadReply {
  try {
    reader.read(chunk, new Uint8Array(toArrayBuffer(address as Pointer, 0, byteLength)));
    return {};
  } catch (error) {
    if (!(error instanceof ModelDataError)) throw error;
    return { problem: error.message.slice(`${error.file}: `.length) };
  }
}
