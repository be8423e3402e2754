import { encodeError } from "../../threads/error-codec.ts";
import { ApiError } from "../errors.ts";
import type { BodyJob, BodyReply } from "./body-protocol.ts";
import { parseRequest } from "./parse-request.ts";

declare const self: Worker;

self.onmessage = ({ data: { job, kind, bytes, limits } }: MessageEvent<BodyJob>) => {
  self.postMessage({ job, ...outcome(() => parseRequest(kind, bytes, limits)) } as BodyReply);
};

function outcome(run: () => unknown): object {
  try {
    return { parsed: run() };
  } catch (error) {
    if (!(error instanceof ApiError)) return { error: encodeError(error) };
    const { status, code, message, param, headers } = error;
    return { refusal: { status, code, message, param, headers } };
  }
}
