import { type LoadedModel, loadModel } from "../llm/load-model.ts";
import { EngineLoop } from "./engine-loop.ts";
import { encodeError } from "./error-codec.ts";
import type { EngineInfo, EngineMessage, EngineReply, LoadMessage } from "./worker-protocol.ts";

declare const self: Worker;

self.onmessage = async ({ data: { model, config } }: MessageEvent<LoadMessage>) => {
  try {
    const loaded = await loadModel(model, config, (progress) => post({ type: "progress", progress }));
    serve(loaded);
    post({ type: "ready", info: infoOf(loaded), stats: loaded.engine.stats() });
  } catch (error) {
    post({ type: "failed", error: encodeError(error) });
  }
};

function post(reply: EngineReply, transfer: ArrayBuffer[] = []): void {
  self.postMessage(reply, transfer);
}

function serve(loaded: LoadedModel): void {
  const loop = new EngineLoop(loaded.engine, post);
  self.onmessage = ({ data: message }: MessageEvent<EngineMessage>) => {
    if (message.type === "add") loop.add(message);
    else if (message.type === "abort") loop.abort(message.request);
    else if (message.type === "resetPrefixCache") loop.resetPrefixCache();
    else {
      loop.stop();
      loaded.dispose();
      post({ type: "closed" });
    }
  };
}

function infoOf({ engine, ...loaded }: LoadedModel): EngineInfo {
  const { name, folder, modelConfig, device, dtype, defaultSampling } = loaded;
  const { limits, cacheConfig, eosTokenIds } = engine;
  const { timeOrigin } = performance;
  return {
    ...{ name, folder, modelConfig, device, dtype, defaultSampling },
    ...{ limits, cacheConfig, eosTokenIds, timeOrigin },
  };
}
