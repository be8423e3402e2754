import type { Command } from "commander";
import { ExitCode } from "../base/errors.ts";
import { addChatFlags, type ChatFlags, converse } from "./chat.ts";
import { createCommand, say } from "./command.ts";
import { readMessage } from "./prompts.ts";

/** `run`: a model at once, downloaded if need be: one reply to a prompt or to what is piped in, else a conversation. */
export function runModelCommand(name: string): Command {
  const command = createCommand(name, [
    "octavo run Qwen/Qwen3-0.6B                      a conversation",
    'octavo run Qwen/Qwen3-0.6B "Name three rivers."',
    'octavo run Qwen/Qwen3-0.6B "In one sentence:" < README.md',
  ])
    .description(
      "Runs a model, which it downloads first if need be: one reply to a prompt, what is piped in or both; else a chat.",
    )
    .argument(
      "[model]",
      "model folder, GGUF file or Hugging Face id (default: the embedded model, tiny-stories)",
    )
    .argument("[prompt...]", "message; what is piped in comes after it");
  addChatFlags(command);
  return command.action(async (model: string | undefined, words: string[], flags: ChatFlags) => {
    const message = await readMessage(words, () =>
      say("nothing comes from standard input: going on without it"),
    );
    const interrupt = new AbortController();
    await converse(command, model, flags, (conversation, llm) => {
      if (message === undefined) return conversation.run(llm);
      process.once("SIGINT", () => interrupt.abort());
      return conversation.say(message, interrupt.signal);
    });
    if (interrupt.signal.aborted) process.exit(ExitCode.interrupted);
  });
}
