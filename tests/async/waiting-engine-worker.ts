import type { EngineReply } from "../../src/async/worker-protocol.ts";
import { RequestFailedError } from "../../src/base/errors.ts";
import { encodeError } from "../../src/threads/error-codec.ts";

declare const self: Worker;

const post = (reply: EngineReply) => self.postMessage(reply);

/** Knows its folder once the text worker has started, and has loaded, which is to fail, once that has its tokenizer. */
self.onmessage = () => {
  new BroadcastChannel("text worker").onmessage = ({ data }: { data: unknown }) => {
    if (data === "started") post({ type: "folder", folder: "a folder" });
    else post({ type: "failed", error: encodeError(new RequestFailedError("met", String(data))) });
  };
  new BroadcastChannel("engine worker").postMessage("started");
};
