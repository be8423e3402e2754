import type { TextMessage } from "../../src/async/worker-protocol.ts";

declare const self: Worker;

/** Says that it has started, again when the engine worker has, and which folder it is to open. */
const channel = new BroadcastChannel("text worker");
new BroadcastChannel("engine worker").onmessage = () => channel.postMessage("started");
channel.postMessage("started");

self.onmessage = ({ data: { input } }: MessageEvent<TextMessage<"open">>) => {
  channel.postMessage(input.folder);
};
