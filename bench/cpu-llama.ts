import { join } from "node:path";

/** The part of node-llama-cpp that is used. */
interface LlamaModule {
  getLlama(options: object): Promise<{ loadModel(options: object): Promise<LlamaModel> }>;
}
interface LlamaModel {
  createContext(options: object): Promise<LlamaContext>;
  dispose(): Promise<void>;
}
interface LlamaContext {
  getSequence(): LlamaSequence;
  dispose(): Promise<void>;
}
interface LlamaSequence {
  evaluate(tokens: readonly number[], options: object): AsyncIterable<number>;
  evaluateWithoutGeneratingNewTokens(tokens: readonly number[]): Promise<void>;
  clearHistory(): Promise<void>;
}

/**
 * One stream and a prompt of a GGUF file through llama.cpp, tokens a second.
 * @param folder has node_modules/node-llama-cpp, which is no dependency of this package
 */
export async function measureLlamaCpp(
  folder: string,
  file: string,
  threads: number,
  { tokens, prompt, runs }: { readonly tokens: number; readonly prompt: number; readonly runs: number },
): Promise<{ readonly stream: number; readonly prefill: number }> {
  const { getLlama } = (await import(
    join(folder, "node_modules/node-llama-cpp/dist/index.js")
  )) as LlamaModule;
  const llama = await getLlama({ gpu: false, build: "never", logLevel: "error", maxThreads: threads });
  const model = await llama.loadModel({ modelPath: file, gpuLayers: 0 });
  const contextSize = prompt + tokens + 32;
  const context = await model.createContext({
    contextSize,
    batchSize: prompt,
    threads: { ideal: threads, min: threads },
  });
  const sequence = context.getSequence();
  const ids = Array.from({ length: prompt }, (_, i) => 100 + ((31 * i) % 2000));
  let [stream, prefill] = [Infinity, Infinity];
  for (let run = 0; run < runs; run++) {
    await sequence.clearHistory();
    let start = performance.now();
    await sequence.evaluateWithoutGeneratingNewTokens(ids);
    prefill = Math.min(prefill, (performance.now() - start) / 1000);
    await sequence.clearHistory();
    let written = 0;
    for await (const _ of sequence.evaluate(ids.slice(0, 8), { temperature: 0, yieldEogToken: true })) {
      if (written === 0) start = performance.now();
      if (written++ === tokens) break;
    }
    stream = Math.min(stream, (performance.now() - start) / 1000);
  }
  await context.dispose();
  await model.dispose();
  return { stream: tokens / stream, prefill: prompt / prefill };
}
