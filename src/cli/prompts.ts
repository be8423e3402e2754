import { fstatSync } from "node:fs";
import { ConfigError } from "../base/errors.ts";
import { readTextFile } from "./text-file.ts";

/** Continued when no prompt is given. */
export const DEFAULT_PROMPT = "Once upon a time";

/** A pipe of which nothing comes for so long is taken for one that nobody means to write to. */
const PIPE_PATIENCE_MS = 10_000;

/**
 * The prompts of a command line: its arguments; or the lines of a file (`-`: standard input); or all of standard input
 * as one prompt, where it is a pipe or a file; or the default one.
 * @throws ConfigError for both arguments and a file, and for a file without prompts; ModelNotFoundError for one that
 * cannot be read.
 */
export async function readPrompts(
  given: readonly string[],
  file: string | undefined,
  onIdlePipe: () => void,
): Promise<readonly string[]> {
  if (file === undefined) {
    if (given.length > 0) return given;
    const piped = isPiped(0) ? await readPiped(Bun.stdin.stream(), PIPE_PATIENCE_MS) : "";
    if (piped === undefined) onIdlePipe();
    return [piped?.trim() ? piped.replace(/[\r\n]+$/, "") : DEFAULT_PROMPT];
  }
  if (given.length > 0) throw new ConfigError("file", "give prompts as arguments or with --file, not both");
  const lines = readTextFile(file)
    .split(/\r?\n/)
    .filter((line) => line.trim() !== "");
  if (lines.length === 0) throw new ConfigError("file", `${file} holds no prompts`);
  return lines;
}

/**
 * The text of a command that continues one: its words, or what is piped in, without the line break at its end.
 * @throws ConfigError where there is neither
 */
export async function readText(words: readonly string[]): Promise<string> {
  if (words.length > 0) return words.join(" ");
  const piped = isPiped(0) ? ((await readPiped(Bun.stdin.stream(), PIPE_PATIENCE_MS)) ?? "") : "";
  if (piped === "")
    throw new ConfigError("prompt", "there is no text to continue: give a prompt, or pipe one in");
  return piped.replace(/\r?\n$/, "");
}

/**
 * The one message of a command that may have a conversation instead: its words, then what is piped in. Undefined where there is
 * neither, and a terminal to talk in.
 * @throws ConfigError where there is no terminal either
 */
export async function readMessage(
  words: readonly string[],
  onIdlePipe: () => void,
): Promise<string | undefined> {
  const piped = isPiped(0) ? await readPiped(Bun.stdin.stream(), PIPE_PATIENCE_MS) : "";
  if (piped === undefined && words.length > 0) onIdlePipe();
  const message = [words.join(" "), piped?.trim() ?? ""].filter((part) => part !== "").join("\n\n");
  if (message !== "") return message;
  if (process.stdin.isTTY) return undefined;
  throw new ConfigError("prompt", "there is no message: give a prompt, or pipe one in");
}

/** True for a descriptor that is open, and a pipe, socket or regular file rather than a terminal or /dev/null. */
function isPiped(descriptor: number): boolean {
  try {
    const stat = fstatSync(descriptor);
    return stat.isFIFO() || stat.isSocket() || stat.isFile();
  } catch {
    return false;
  }
}

/** The text of a stream, read to its end; undefined if nothing comes and it does not end within `patience` ms. */
export async function readPiped(
  stream: ReadableStream<Uint8Array>,
  patience: number,
): Promise<string | undefined> {
  const reader = stream.getReader();
  const decoder = new TextDecoder();
  const idle = Promise.withResolvers<undefined>();
  const timer = setTimeout(() => idle.resolve(undefined), patience);
  let part = await Promise.race([reader.read(), idle.promise]);
  clearTimeout(timer);
  if (part === undefined) return undefined;
  let text = "";
  while (!part.done) {
    text += decoder.decode(part.value, { stream: true });
    part = await reader.read();
  }
  return text + decoder.decode();
}
