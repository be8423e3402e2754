import type { Command, Option } from "commander";

/** The words that may come at a place of the command line. */
export type Candidates =
  | { readonly kind: "words"; readonly words: readonly string[] }
  /** Names of models on this machine, and perhaps their paths. */
  | { readonly kind: "models"; readonly paths: boolean }
  | { readonly kind: "files" }
  | { readonly kind: "nothing" };

export interface FlagDescription {
  /** With dashes, long before short. */
  readonly names: readonly string[];
  readonly text: string;
  /** Its value; undefined for a switch. */
  readonly value: Candidates | undefined;
}

/** A command, and those below it. */
export interface CommandDescription {
  /** Words that lead to it from the program's name; empty for the program itself. */
  readonly path: readonly string[];
  readonly text: string;
  readonly flags: readonly FlagDescription[];
  /** Commands below, which come in place of arguments. */
  readonly commands: readonly { readonly name: string; readonly text: string }[];
  readonly arguments: Candidates;
}

/** Values of flags that the help lists in words. */
const VALUES: Readonly<Record<string, readonly string[]>> = {
  "--device": ["auto", "cuda", "cpu", "cpu-reference"],
  "--dtype": ["auto", "bfloat16", "float16", "float32"],
  "--quantization": ["fp8", "fp8_per_channel", "fp8_per_block"],
  "--kv-cache-dtype": ["auto", "fp8"],
  "--load-format": ["auto", "dummy"],
  "--generation-config": ["auto", "vllm"],
};

/** All commands of a program, itself first, as far as its help shows them. */
export function describeCommands(
  program: Command,
  path: readonly string[] = [],
): readonly CommandDescription[] {
  const help = program.createHelp();
  const below = help.visibleCommands(program).filter((command) => command.name() !== "help");
  const description: CommandDescription = {
    path,
    text: program.description(),
    flags: help.visibleOptions(program).map(describeFlag),
    commands: below.map((command) => ({ name: command.name(), text: command.description() })),
    arguments: argumentsOf(program),
  };
  return [description, ...below.flatMap((command) => describeCommands(command, [...path, command.name()]))];
}

function describeFlag(option: Option): FlagDescription {
  const names = [option.long, option.short].filter((name) => name !== undefined);
  const takesValue = option.required || option.optional;
  return { names, text: option.description, value: takesValue ? valuesOf(option) : undefined };
}

function valuesOf({ long, flags }: Option): Candidates {
  const words = VALUES[long ?? ""];
  if (words !== undefined) return { kind: "words", words };
  if (/<(?:file|path|folder|template)>/.test(flags)) return { kind: "files" };
  return long === "--model" ? { kind: "models", paths: true } : { kind: "nothing" };
}

function argumentsOf(command: Command): Candidates {
  const [first] = command.registeredArguments;
  if (first?.argChoices !== undefined) return { kind: "words", words: first.argChoices };
  if (!/^models?$/.test(first?.name() ?? "")) return { kind: "nothing" };
  return { kind: "models", paths: !first!.variadic };
}
