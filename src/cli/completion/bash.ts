import type { Candidates, CommandDescription, FlagDescription } from "./command-tree.ts";

/** A completion script for bash 3.2 and later, without the package bash-completion. */
export function bashScript(commands: readonly CommandDescription[]): string {
  const paths = commands.filter(({ path }) => path.length > 0).map(({ path }) => `"${path.join(" ")}"`);
  return `# Completion of octavo for bash: source <(octavo completion bash)
_octavo() {
  local cur=\${COMP_WORDS[COMP_CWORD]} prev=\${COMP_WORDS[COMP_CWORD-1]} path= i
  COMPREPLY=()
  for ((i = 1; i < COMP_CWORD; i++)); do
    case "\${path:+$path }\${COMP_WORDS[i]}" in
      ${paths.join("|")}) path="\${path:+$path }\${COMP_WORDS[i]}" ;;
    esac
  done
  case "$path" in
${commands.map(branch).join("\n")}
  esac
}
_octavo_words() { COMPREPLY=($(compgen -W "$1" -- "$cur")); }
_octavo_files() { local IFS=$'\\n'; COMPREPLY+=($(compgen -f -- "$cur")); }
_octavo_models() { _octavo_words "$(octavo list --quiet 2>/dev/null)"; }
complete -o filenames -o bashdefault -F _octavo octavo`;
}

function branch({ path, flags, commands, arguments: positional }: CommandDescription): string {
  const valued = flags.filter(({ value }) => value !== undefined);
  const names = flags.flatMap((flag) => flag.names).join(" ");
  const rest =
    commands.length > 0 ? `_octavo_words "${commands.map(({ name }) => name).join(" ")}"` : offer(positional);
  return `    "${path.join(" ")}")
      case "$prev" in
${valued.map(valueBranch).join("\n")}
        *) case "$cur" in -*) _octavo_words "${names}" ;; *) ${rest} ;; esac ;;
      esac ;;`;
}

function valueBranch({ names, value }: FlagDescription): string {
  return `        ${names.join("|")}) ${offer(value!)} ;;`;
}

function offer(candidates: Candidates): string {
  switch (candidates.kind) {
    case "words":
      return `_octavo_words "${candidates.words.join(" ")}"`;
    case "models":
      return `_octavo_models${candidates.paths ? "; _octavo_files" : ""}`;
    case "files":
      return "_octavo_files";
    case "nothing":
      return ":";
  }
}
