import type { Candidates, CommandDescription, FlagDescription } from "./command-tree.ts";

/** A completion script for zsh: sourced after `compinit`, or a file `_octavo` on its `fpath`. */
export function zshScript(commands: readonly CommandDescription[]): string {
  return `#compdef octavo
# Completion of octavo for zsh: source <(octavo completion zsh)
${commands.map(functionOf).join("\n")}
_octavo_models() {
  local -a models
  models=(\${(f)"$(octavo list --quiet 2>/dev/null)"})
  compadd -a models
}
_octavo_models_or_files() { _octavo_models; _files }
if [ "$funcstack[1]" = _octavo ]; then _octavo "$@"; else compdef _octavo octavo; fi`;
}

function functionOf({ path, flags, commands, arguments: positional }: CommandDescription): string {
  const specs = flags.flatMap(specsOf);
  const name = nameOf(path);
  if (commands.length === 0) {
    const rest = `"*:argument:${offer(positional)}"`;
    return `${name}() {\n  _arguments -s \\\n    ${[...specs, rest].join(" \\\n    ")}\n}`;
  }
  const list = commands.map((command) => quoted(`${command.name}:${command.text}`)).join(" ");
  const branches = commands.map((command) => `${command.name}) ${nameOf([...path, command.name])} ;;`);
  return `${name}() {
  local curcontext=$curcontext state line
  local -a commands
  commands=(${list})
  _arguments -C \\
    ${[...specs, "'1:command:->command'", "'*::argument:->argument'"].join(" \\\n    ")}
  case $state in
    command) _describe command commands ;;
    argument) case $line[1] in ${branches.join(" ")} esac ;;
  esac
}`;
}

function nameOf(path: readonly string[]): string {
  return ["_octavo", ...path].join("_").replaceAll("-", "_");
}

function specsOf({ names, text, value }: FlagDescription): readonly string[] {
  const described = text.replaceAll(/[[\]\\:]/g, "\\$&");
  const action = value === undefined ? "" : `:value:${offer(value)}`;
  return names.map((name) => quoted(`${name}[${described}]${action}`));
}

function offer(candidates: Candidates): string {
  switch (candidates.kind) {
    case "words":
      return `(${candidates.words.join(" ")})`;
    case "models":
      return candidates.paths ? "_octavo_models_or_files" : "_octavo_models";
    case "files":
      return "_files";
    case "nothing":
      return " ";
  }
}

function quoted(text: string): string {
  return `'${text.replaceAll("'", "'\\''")}'`;
}
