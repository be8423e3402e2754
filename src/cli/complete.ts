import type { Command } from "commander";
import { ExitCode } from "../base/errors.ts";
import { createCommand, modelOf } from "./command.ts";
import { addEngineFlags, textEngineOptions } from "./engine-flags.ts";
import { DEFAULT_MAX_TOKENS } from "./generate.ts";
import { ProgressBar } from "./progress.ts";
import { readText } from "./prompts.ts";
import { addSamplingFlags, samplingParams } from "./sampling-flags.ts";
import { modelText } from "./terminal-style.ts";

/** `complete`: the continuation of one text, and nothing else, on standard output. */
export function completeCommand(name: string): Command {
  const command = createCommand(name, [
    'octavo complete Qwen/Qwen3-0.6B-Base "The capital of France is" --max-tokens 4',
    "octavo complete ./model < beginning.txt >> beginning.txt",
  ])
    .description("Continues a text as it is, without a chat template, and prints what comes after it.")
    .argument(
      "[model]",
      "model folder, GGUF file or Hugging Face id (default: the embedded model, tiny-stories)",
    )
    .argument("[prompt...]", "text to continue (default: what is piped in, up to its last line break)")
    .option("-m, --model <model>", "the model, for environment and configuration file");
  addSamplingFlags(command, "chat");
  addEngineFlags(command);
  return command.action((model: string | undefined, words: string[]) =>
    complete(command, modelOf(command, model), words),
  );
}

async function complete(
  command: Command,
  model: string | undefined,
  words: readonly string[],
): Promise<void> {
  const params = samplingParams(command, { maxTokens: DEFAULT_MAX_TOKENS });
  const engineOptions = textEngineOptions(command);
  const prompt = await readText(words);
  const bar = new ProgressBar();
  const { LLM } = await import("../llm/llm.ts");
  await using llm = await LLM.create(model, {
    ...engineOptions,
    onProgress: (progress) => bar.load(progress),
  });
  bar.stop();
  const interrupt = new AbortController();
  process.once("SIGINT", () => interrupt.abort());
  for await (const delta of llm.stream(prompt, params, { signal: interrupt.signal })) {
    if (delta.error) throw delta.error;
    process.stdout.write(modelText(delta.text, process.stdout));
  }
  process.stdout.write("\n");
  if (interrupt.signal.aborted) process.exit(ExitCode.interrupted);
}
