import { Command, CommanderError } from "commander";
import { ConfigError, ExitCode, OctavoError } from "../base/errors.ts";
import { messageInFlags } from "./flag-names.ts";
import { addConfigFlag, applySettings } from "./settings.ts";
import { harmless } from "./terminal-style.ts";
import { readVllmArguments } from "./vllm-arguments.ts";
import { effectlessFlagNotes, unsupportedFlag } from "./vllm-flags.ts";

/** Makes a command whose usage errors are one line on standard error and exit code 64, not commander's own. */
export function createCommand(name: string, examples: readonly string[] = []): Command {
  const command = new Command(name)
    .helpOption("-h, --help", "show this help")
    .exitOverride()
    .configureOutput({ outputError: () => {} })
    .showSuggestionAfterError(true);
  if (examples.length > 0) command.addHelpText("after", `\nExamples:\n  ${examples.join("\n  ")}`);
  return command;
}

/** The model that a command was given, as its argument or with --model. */
export function modelOf(command: Command, argument: string | undefined): string | undefined {
  if (argument !== undefined && command.getOptionValueSource("model") === "cli")
    throw new ConfigError("model", "give the model as an argument or with --model, not both");
  return argument ?? command.getOptionValue("model");
}

/**
 * Runs a command and ends the process with the exit code of what happened. Errors take one line. Options come from flags,
 * the environment and a configuration file, in this order.
 */
export async function runCommand(command: Command, args: readonly string[]): Promise<never> {
  // A reader such as `head` that leaves early is no error.
  process.stdout.on("error", (error: NodeJS.ErrnoException) =>
    process.exit(error.code === "EPIPE" ? ExitCode.ok : report(error)),
  );
  for (const leaf of leaves(command)) addConfigFlag(leaf);
  command.hook("preAction", (_, action) => {
    applySettings(action);
    for (const note of effectlessFlagNotes(action)) say(note);
  });
  try {
    await command.parseAsync(readVllmArguments(args), { from: "user" });
    process.exit(ExitCode.ok);
  } catch (error) {
    process.exit(report(error));
  }
}

function leaves(command: Command): readonly Command[] {
  return command.commands.length === 0 ? [command] : command.commands.flatMap(leaves);
}

function report(error: unknown): number {
  if (error instanceof CommanderError) {
    if (error.exitCode === 0) return ExitCode.ok;
    // A group of commands was given none and has shown its help.
    if (error.code === "commander.help") return ExitCode.usage;
    const unknown = error.message.match(/unknown option '([^'=]+)/)?.[1];
    say((unknown && unsupportedFlag(unknown)) ?? error.message.replace(/^error: /, ""));
    return ExitCode.usage;
  }
  say(messageInFlags(error));
  if (process.env["OCTAVO_DEBUG"]) console.error(error);
  return error instanceof OctavoError ? error.exitCode : ExitCode.internal;
}

/** Writes a line to standard error as it is: `console.error` would make it red on a terminal. */
export function printNote(text: string): void {
  process.stderr.write(`${text}\n`);
}

/** One line on standard error, in the program's name. What it quotes does nothing to a terminal. */
export function say(message: string): void {
  printNote(`octavo: ${harmless(message.replaceAll(/\s*\n\s*/g, " "))}`);
}
