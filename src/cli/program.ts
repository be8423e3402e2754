import { Command, CommanderError, InvalidArgumentError } from "commander";
import { ExitCode, messageOf, OctavoError } from "../base/errors.ts";

/** A command whose usage errors are one line on standard error and exit code 64, not commander's own. */
export function createCommand(name: string): Command {
  return new Command(name)
    .helpOption("-h, --help", "show this help")
    .exitOverride()
    .configureOutput({ outputError: () => {} })
    .showSuggestionAfterError(true);
}

/** Runs a command and ends the process with the exit code of what happened. Errors take one line. */
export async function runCommand(command: Command, args: readonly string[]): Promise<never> {
  // A reader such as `head` has what it wanted.
  process.stdout.on("error", (error: NodeJS.ErrnoException) =>
    process.exit(error.code === "EPIPE" ? ExitCode.ok : report(error)),
  );
  try {
    const end = args.includes("--") ? args.indexOf("--") : args.length;
    const flags = args.slice(0, end).map(hyphenate);
    await command.parseAsync([...flags, ...args.slice(end)], { from: "user" });
    process.exit(ExitCode.ok);
  } catch (error) {
    process.exit(report(error));
  }
}

/** Accepts `--max_model_len` for `--max-model-len` and `-tp` for `--tensor-parallel-size`, as vLLM does. */
function hyphenate(argument: string): string {
  if (argument === "-tp") return "--tensor-parallel-size";
  if (!/^--[a-z]/.test(argument)) return argument;
  const [flag, ...value] = argument.split("=");
  return [flag!.replaceAll("_", "-"), ...value].join("=");
}

function report(error: unknown): number {
  if (error instanceof CommanderError) {
    if (error.exitCode === 0) return ExitCode.ok;
    say(error.message.replace(/^error: /, ""));
    return ExitCode.usage;
  }
  say(messageOf(error));
  if (process.env.OCTAVO_DEBUG) console.error(error);
  return error instanceof OctavoError ? error.exitCode : ExitCode.internal;
}

function say(message: string): void {
  console.error(`octavo: ${message.replaceAll(/\s*\n\s*/g, " ")}`);
}

/** Parses the value of a numeric flag. */
export function numberValue(text: string): number {
  const value = Number(text);
  if (text.trim() === "" || !Number.isFinite(value))
    throw new InvalidArgumentError(`"${text}" is not a number.`);
  return value;
}

/** Parses the value of a flag that takes an integer. */
export function integerValue(text: string): number {
  const value = numberValue(text);
  if (!Number.isSafeInteger(value)) throw new InvalidArgumentError(`"${text}" is not an integer.`);
  return value;
}

/** Parses a 64-bit seed. */
export function seedValue(text: string): bigint {
  if (!/^-?\d{1,20}$/.test(text)) throw new InvalidArgumentError(`"${text}" is not an integer.`);
  return BigInt(text);
}

/** Parses a repeatable flag into a list. */
export function listValue(text: string, previous: readonly string[] = []): readonly string[] {
  return [...previous, text];
}
