import type { Command } from "commander";
import { ConfigError, ExitCode } from "../base/errors.ts";
import type { CompletionDelta, RequestOutput } from "../base/outputs.ts";
import type { SamplingParams } from "../base/sampling-params.ts";
import type { GenerateProgress, LLM } from "../llm/llm.ts";
import { createCommand, printNote, say } from "./command.ts";
import { addEngineFlags, textEngineOptions } from "./engine-flags.ts";
import { ProgressBar } from "./progress.ts";
import { DEFAULT_PROMPT, readPrompts } from "./prompts.ts";
import { addSamplingFlags, samplingParams } from "./sampling-flags.ts";
import { modelText } from "./terminal-style.ts";

/** Longest output of a command that continues texts, unless told. */
export const DEFAULT_MAX_TOKENS = 256;

interface GenerateFlags {
  readonly model?: string;
  readonly file?: string;
  readonly chat?: true;
  readonly system?: string;
  readonly json?: true;
}

/** `generate`: prompts in, text out. One prompt streams; many run as a batch with a progress bar. */
export function generateCommand(name: string): Command {
  const program = name.endsWith(".ts") ? `bun run ${name}` : `octavo ${name}`;
  const command = createCommand(name, [
    `${program} "The dog" "The cat" --temperature 0`,
    `${program} --model Qwen/Qwen3-0.6B --chat "Why is the sky blue?" --json`,
    `echo "Once there was a fox" | ${program} --seed 7`,
  ])
    .description("Continues prompts. Without a model, the embedded one tells a small children's story.")
    .argument("[prompts...]", `texts to continue (default: what is piped in, else "${DEFAULT_PROMPT}")`)
    .option("-m, --model <model>", "model folder, GGUF file or Hugging Face id (default: the embedded model)")
    .option("-f, --file <path>", "read prompts from a file, one a line; - is standard input")
    .option("--chat", "treat each prompt as a chat message")
    .option("--system <text>", "system message of the chat")
    .option("--json", "print one JSON document with texts, token ids and timings");
  addSamplingFlags(command);
  addEngineFlags(command);
  return command.action((prompts: string[], flags: GenerateFlags) => generate(prompts, flags, command));
}

async function generate(given: string[], flags: GenerateFlags, command: Command): Promise<void> {
  if (flags.system !== undefined && !flags.chat) throw new ConfigError("system", "--system needs --chat");
  if (command.getOptionValue("logprobs") !== undefined && !flags.json)
    throw new ConfigError("logprobs", "--logprobs needs --json");
  const params = samplingParams(command, { maxTokens: DEFAULT_MAX_TOKENS });
  const engineOptions = textEngineOptions(command);
  const prompts = await readPrompts(given, flags.file, () =>
    say(`nothing comes from standard input: continuing "${DEFAULT_PROMPT}"`),
  );
  const bar = new ProgressBar();
  const started = performance.now();
  const { LLM } = await import("../llm/llm.ts");
  await using llm = await LLM.create(flags.model, {
    ...engineOptions,
    onProgress: (progress) => bar.load(progress),
  });
  bar.stop();
  const loadSeconds = (performance.now() - started) / 1000;

  const interrupt = new AbortController();
  process.once("SIGINT", () => interrupt.abort());
  // Opening it takes some milliseconds, which are not the model's.
  const { stdout } = process;
  const run = new Run(llm, flags, params, interrupt.signal, bar, stdout);
  const single = prompts.length === 1 && (params.n ?? 1) === 1 && !flags.json;
  const usage = await (single ? run.stream(prompts[0]!) : run.batch(prompts, loadSeconds));
  if (!flags.json) {
    const { outputTokens, seconds } = usage;
    const rate = (outputTokens / seconds).toFixed(1);
    printNote(
      `\n${outputTokens} tokens in ${seconds.toFixed(2)} s, ${rate} tokens/s (${llm.model} on ${llm.device})`,
    );
  }
  if (interrupt.signal.aborted) process.exit(ExitCode.interrupted);
}

interface Usage {
  readonly outputTokens: number;
  readonly seconds: number;
}

class Run {
  constructor(
    private readonly llm: LLM,
    private readonly flags: GenerateFlags,
    private readonly params: SamplingParams,
    private readonly signal: AbortSignal,
    private readonly bar: ProgressBar,
    private readonly stdout: NodeJS.WriteStream,
  ) {}

  /** Prints the text of one prompt as it comes. */
  async stream(prompt: string): Promise<Usage> {
    const started = performance.now();
    let outputTokens = 0;
    let opening = this.flags.chat ? "" : prompt;
    for await (const delta of this.#open(prompt)) {
      if (delta.error) throw delta.error;
      // Only now is it certain that the prompt is one that can be continued.
      this.stdout.write(modelText(opening + delta.text, this.stdout));
      opening = "";
      outputTokens += delta.tokenIds.length;
    }
    this.stdout.write("\n");
    return { outputTokens, seconds: (performance.now() - started) / 1000 };
  }

  /** Runs all prompts together, then prints them in order. */
  async batch(prompts: readonly string[], loadSeconds: number): Promise<Usage> {
    const started = performance.now();
    const options = {
      signal: this.signal,
      onProgress: ({ finishedPrompts, totalPrompts, outputTokens }: GenerateProgress) =>
        this.bar.update("Generating", finishedPrompts, totalPrompts, `${outputTokens} tokens`),
    };
    const outputs = this.flags.chat
      ? await this.llm.chat(
          prompts.map((prompt) => this.#messages(prompt)),
          this.params,
          options,
        )
      : await this.llm.generate(prompts, this.params, options);
    this.bar.stop();
    const seconds = (performance.now() - started) / 1000;
    const completions = outputs.flatMap((output) => output.outputs);
    const outputTokens = completions.reduce((sum, { tokenIds }) => sum + tokenIds.length, 0);
    if (this.flags.json) this.#printJson(prompts, outputs, { loadSeconds, seconds, outputTokens });
    else this.#printText(prompts, outputs);
    const failure = completions.find(({ error }) => error)?.error;
    if (failure) throw failure;
    return { outputTokens, seconds };
  }

  #open(prompt: string): AsyncGenerator<CompletionDelta, void, undefined> {
    const options = { signal: this.signal };
    return this.flags.chat
      ? this.llm.streamChat(this.#messages(prompt), this.params, options)
      : this.llm.stream(prompt, this.params, options);
  }

  #messages(content: string) {
    const system = this.flags.system;
    const user = { role: "user", content };
    return system === undefined ? [user] : [{ role: "system", content: system }, user];
  }

  #printText(prompts: readonly string[], outputs: readonly RequestOutput[]): void {
    for (const [i, { outputs: completions }] of outputs.entries()) {
      for (const { text } of completions)
        console.log(
          modelText(`${this.flags.chat ? `> ${prompts[i]}\n` : prompts[i]}${text}\n`, process.stdout),
        );
    }
  }

  #printJson(prompts: readonly string[], outputs: readonly RequestOutput[], timing: object): void {
    const results = outputs.map(({ promptTokenIds, numCachedTokens, outputs: completions }, i) => ({
      prompt: prompts[i],
      promptTokens: promptTokenIds.length,
      cachedTokens: numCachedTokens,
      completions: completions.map(({ error, logprobs, ...completion }) => ({
        ...completion,
        ...(logprobs && { logprobs: logprobs.map((position) => Object.fromEntries(position)) }),
        ...(error && { error: error.message }),
      })),
    }));
    console.log(
      JSON.stringify({ model: this.llm.model, device: this.llm.device, results, ...timing }, null, 2),
    );
  }
}
