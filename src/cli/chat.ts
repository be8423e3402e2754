import type { Command } from "commander";
import { AsyncLLM } from "../async/async-llm.ts";
import { ChatSession } from "./chat-session.ts";
import { createCommand, modelOf } from "./command.ts";
import { CONVERSATION_HELP, Conversation, note } from "./conversation.ts";
import { addEngineFlags, textEngineOptions } from "./engine-flags.ts";
import { objectValue } from "./flag-values.ts";
import { ProgressBar } from "./progress.ts";
import { addSamplingFlags, samplingParams } from "./sampling-flags.ts";
import { readTextFile } from "./text-file.ts";

export interface ChatFlags {
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
    .argument("[model]", "model folder, GGUF file or Hugging Face id (default: the embedded model)");
  addChatFlags(command);
  return command.action((model: string | undefined, flags: ChatFlags) =>
    converse(command, model, flags, (conversation, llm) => conversation.run(llm)),
  );
}

/** Adds the flags of conversations, and a text about their commands. */
export function addChatFlags(command: Command): void {
  command
    .option("-m, --model <model>", "the model, for environment and configuration file")
    .option("--system <text>", "system message")
    .option(
      "--chat-template-kwargs <json>",
      'template variables, e.g. {"enable_thinking":false}',
      objectValue,
    )
    .option("--schema <file>", "JSON schema that every reply is valid under, after what the model thinks")
    .option("--no-timing", "do not show speed and time to first token after each reply")
    .addHelpText("after", `\nIn the chat:\n  ${CONVERSATION_HELP.replaceAll("\n", "\n  ")}`);
  addSamplingFlags(command, "chat");
  addEngineFlags(command);
}

/** Loads the model, downloading it first if need be, and hands it to `run` with a conversation. */
export async function converse(
  command: Command,
  model: string | undefined,
  flags: ChatFlags,
  run: (conversation: Conversation, llm: AsyncLLM) => Promise<void>,
): Promise<void> {
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
  await run(new Conversation(session, flags.timing), llm);
}
