import type { Command } from "commander";
import { AsyncLLM } from "../async/async-llm.ts";
import { ExitCode, InvalidRequestError, RequestFailedError } from "../base/errors.ts";
import { ChatInput } from "./chat-input.ts";
import { ChatSession } from "./chat-session.ts";
import { createCommand, modelOf, printNote, say } from "./command.ts";
import { addEngineFlags, textEngineOptions } from "./engine-flags.ts";
import { messageInFlags } from "./flag-names.ts";
import { objectValue } from "./flag-values.ts";
import { ProgressBar } from "./progress.ts";
import { ReplyWriter } from "./reply-writer.ts";
import { addSamplingFlags, samplingParams } from "./sampling-flags.ts";
import { readTextFile } from "./text-file.ts";

const HELP = `/reset        forget the conversation
/system TEXT  instructions for the model from now on; without TEXT, none
/help         this list
/bye          leave, as /exit and Ctrl-D do
A message is a line, a pasted text, or lines between """ and """. A line that begins with a space is never a
command. Ctrl-C stops a reply; twice, it leaves.`;

interface ChatFlags {
  readonly system?: string;
  readonly chatTemplateKwargs?: Readonly<Record<string, unknown>>;
  readonly schema?: string;
  readonly timing: boolean;
}

/** `chat`: a conversation in the terminal, or one message a line through a pipe. */
export function chatCommand(name: string): Command {
  const command = createCommand(name, [
    "octavo chat Qwen/Qwen3-0.6B --temperature 0.6",
    'echo "Name three rivers." | octavo chat Qwen/Qwen3-0.6B --system "Answer briefly."',
  ])
    .description(
      "Talks with a model in the terminal. Piped input is one message a line; replies go to stdout.",
    )
    .argument("[model]", "model folder, GGUF file or Hugging Face id (default: the embedded model)")
    .option("-m, --model <model>", "the same, for environment and configuration file")
    .option("--system <text>", "system message")
    .option(
      "--chat-template-kwargs <json>",
      'template variables, e.g. {"enable_thinking":false}',
      objectValue,
    )
    .option("--schema <file>", "JSON schema that every reply is valid under, after what the model thinks")
    .option("--no-timing", "do not show speed and time to first token after each reply")
    .addHelpText("after", `\nIn the chat:\n  ${HELP.replaceAll("\n", "\n  ")}`);
  addSamplingFlags(command, "chat");
  addEngineFlags(command);
  return command.action((model: string | undefined, flags: ChatFlags) => chat(model, flags, command));
}

async function chat(model: string | undefined, flags: ChatFlags, command: Command): Promise<void> {
  const schema = flags.schema === undefined ? undefined : readTextFile(flags.schema);
  const sampling = {
    ...samplingParams(command),
    ...(schema !== undefined && { structuredOutputs: { json: schema } }),
  };
  const engineOptions = textEngineOptions(command);
  const bar = new ProgressBar();
  await using llm = await AsyncLLM.create(modelOf(command, model), {
    ...engineOptions,
    onProgress: (progress) => bar.load(progress),
  });
  bar.stop();
  const session = new ChatSession(llm, {
    system: flags.system,
    sampling,
    chatTemplateKwargs: flags.chatTemplateKwargs,
    onTrim: (messages) => note(`the context is full: the oldest ${messages} messages were dropped`),
  });
  if (process.stdin.isTTY) note(`${llm.model} on ${llm.device}. /help lists the commands.`);
  await new Chat(session, flags.timing).run();
}

/** The conversation's loop: takes messages, runs commands, writes replies. */
class Chat {
  readonly #input = new ChatInput(() => this.#interrupt());
  readonly #writer = new ReplyWriter(
    (text) => process.stdout.write(text),
    process.stdout.isTTY ? () => process.stdout.columns : undefined,
    !process.env["NO_COLOR"],
  );
  /** Aborts the reply under way. */
  #reply: AbortController | undefined;
  /** The next Ctrl-C leaves: there was one since the last message, or since the reply under way began. */
  #leaving = false;

  constructor(
    private readonly session: ChatSession,
    private readonly timing: boolean,
  ) {}

  async run(): Promise<void> {
    using input = this.#input;
    for await (const { text, plain } of input.messages()) {
      this.#leaving = false;
      const [, name, argument] = (plain && text.match(/^\/(\S*)\s*(.*)$/)) || [];
      if (name === "bye" || name === "exit") break;
      if (name !== undefined) this.#command(name, argument!);
      else if (text.trim() !== "") await this.#answer(text.trim());
    }
  }

  #command(name: string, argument: string): void {
    if (name === "reset") this.session.reset();
    else if (name === "system") this.session.system = argument;
    else if (name === "help") note(HELP);
    else note(`there is no /${name}. /help lists the commands.`);
  }

  async #answer(text: string): Promise<void> {
    this.#reply = new AbortController();
    const started = performance.now();
    let firstToken = 0;
    let tokens = 0;
    try {
      for await (const delta of this.session.reply(text, this.#reply.signal)) {
        if (tokens === 0) firstToken = performance.now();
        tokens += delta.tokens;
        this.#writer.push(delta);
      }
      this.#writer.end();
      if (this.timing && tokens > 0)
        note(speed(tokens, firstToken - started, performance.now() - firstToken));
    } catch (error) {
      // An error of one message does not end the chat.
      if (!(error instanceof InvalidRequestError || error instanceof RequestFailedError)) throw error;
      if (tokens > 0) this.#writer.end();
      say(messageInFlags(error));
    } finally {
      this.#reply = undefined;
      this.#leaving = false;
    }
  }

  #interrupt(): void {
    if (this.#leaving) process.exit(ExitCode.interrupted);
    this.#leaving = true;
    if (this.#reply) this.#reply.abort();
    else note("\nCtrl-C again leaves");
  }
}

/** Writes words that are not the model's to standard error, dim where it is a terminal. */
function note(text: string): void {
  printNote(process.stderr.isTTY && !process.env["NO_COLOR"] ? `\x1b[2m${text}\x1b[0m` : text);
}

/** @param decode milliseconds from the first token to the last. */
function speed(tokens: number, toFirst: number, decode: number): string {
  const rate = tokens > 1 ? `, ${((tokens - 1) / (decode / 1000)).toFixed(1)} tokens/s` : "";
  return `${tokens} tokens, first after ${(toFirst / 1000).toFixed(2)} s${rate}`;
}
