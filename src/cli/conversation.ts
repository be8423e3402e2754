import type { AsyncLLM } from "../async/async-llm.ts";
import { ExitCode, InvalidRequestError, RequestFailedError } from "../base/errors.ts";
import { ChatInput } from "./chat-input.ts";
import type { ChatSession } from "./chat-session.ts";
import { printNote, say } from "./command.ts";
import { messageInFlags } from "./flag-names.ts";
import { ReplyWriter } from "./reply-writer.ts";
import { dim, hasStyle, isLive } from "./terminal-style.ts";

/** The commands of a conversation. */
export const CONVERSATION_HELP = `/reset        forget the conversation
/system TEXT  instructions for the model from now on; without TEXT, none
/help         this list
/bye          leave, as /exit and Ctrl-D do
A message is a line, a pasted text, or lines between """ and """. A line that begins with a space is never a
command. Ctrl-C stops a reply; twice, it leaves.`;

/** A conversation on standard input and output: takes messages, runs commands, writes replies. */
export class Conversation {
  readonly #writer = new ReplyWriter(
    (text) => process.stdout.write(text),
    isLive(process.stdout) ? () => process.stdout.columns : undefined,
    hasStyle(process.stdout),
  );
  /** Aborts the reply under way. */
  #reply: AbortController | undefined;
  /** The next Ctrl-C leaves: there was one since the last message, or since the reply under way began. */
  #leaving = false;

  /** @param timing whether speed and time to the first token follow each reply, on standard error */
  constructor(
    private readonly session: ChatSession,
    private readonly timing: boolean,
  ) {}

  /** Answers messages until there are no more. An error of one does not end it. */
  async run(llm: AsyncLLM): Promise<void> {
    using input = new ChatInput(() => this.#interrupt());
    if (process.stdin.isTTY) note(`${llm.model} on ${llm.device}. /help lists the commands.`);
    for await (const { text, plain } of input.messages()) {
      this.#leaving = false;
      const [, name, argument] = (plain && text.match(/^\/(\S*)\s*(.*)$/)) || [];
      if (name === "bye" || name === "exit") break;
      if (name !== undefined) this.#command(name, argument!);
      else if (text.trim() !== "") await this.#answer(text.trim());
    }
  }

  /**
   * Answers one message.
   * @throws InvalidRequestError or RequestFailedError, after what there is of the reply
   */
  async say(text: string, signal: AbortSignal): Promise<void> {
    const started = performance.now();
    let firstToken = 0;
    let tokens = 0;
    try {
      for await (const delta of this.session.reply(text, signal)) {
        if (tokens === 0) firstToken = performance.now();
        tokens += delta.tokens;
        this.#writer.push(delta);
      }
    } catch (error) {
      if (tokens > 0) this.#writer.end();
      throw error;
    }
    this.#writer.end();
    if (this.timing && tokens > 0) note(speed(tokens, firstToken - started, performance.now() - firstToken));
  }

  #command(name: string, argument: string): void {
    if (name === "reset") this.session.reset();
    else if (name === "system") this.session.system = argument;
    else if (name === "help") note(CONVERSATION_HELP);
    else note(`there is no /${name}. /help lists the commands.`);
  }

  async #answer(text: string): Promise<void> {
    this.#reply = new AbortController();
    try {
      await this.say(text, this.#reply.signal);
    } catch (error) {
      if (!(error instanceof InvalidRequestError || error instanceof RequestFailedError)) throw error;
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
export function note(text: string): void {
  printNote(dim(text, process.stderr));
}

/** @param decode milliseconds from the first token to the last. */
function speed(tokens: number, toFirst: number, decode: number): string {
  const rate = tokens > 1 ? `, ${((tokens - 1) / (decode / 1000)).toFixed(1)} tokens/s` : "";
  return `${tokens} tokens, first after ${(toFirst / 1000).toFixed(2)} s${rate}`;
}
