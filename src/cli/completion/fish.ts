import type { Candidates, CommandDescription, FlagDescription } from "./command-tree.ts";

/** A completion script for fish. */
export function fishScript(commands: readonly CommandDescription[]): string {
  return `# Completion of octavo for fish: octavo completion fish > ~/.config/fish/completions/octavo.fish
function __octavo_at
    set -l path
    for word in (commandline -opc)[2..]
        set -l next (string join ' ' -- $path $word)
        contains -- "$next" ${commands
          .slice(1)
          .map(({ path }) => quoted(path.join(" ")))
          .join(" ")}
        and set path $next
    end
    test "$path" = "$argv"
end
complete -c octavo -f
${commands.flatMap(linesOf).join("\n")}`;
}

function linesOf({ path, flags, commands, arguments: positional }: CommandDescription): readonly string[] {
  const start = `complete -c octavo -n ${quoted(`__octavo_at ${path.join(" ")}`.trimEnd())}`;
  const rest = offer(positional);
  return [
    ...commands.map(({ name, text }) => `${start} -a ${name} -d ${quoted(text)}`),
    ...flags.map((flag) => `${start} ${flagOf(flag)}`),
    ...(commands.length === 0 ? [`${start} ${rest}`] : []),
  ];
}

function flagOf({ names, text, value }: FlagDescription): string {
  const spelled = names.map((name) =>
    name.startsWith("--") ? `-l ${name.slice(2)}` : `-s ${name.slice(1)}`,
  );
  const action = value === undefined ? [] : ["-r", offer(value)];
  return [...spelled, "-d", quoted(text), ...action].join(" ").trimEnd();
}

function offer(candidates: Candidates): string {
  switch (candidates.kind) {
    case "words":
      return `-f -a ${quoted(candidates.words.join(" "))}`;
    case "models":
      return `${candidates.paths ? "-F" : "-f"} -a ${quoted("(octavo list --quiet 2>/dev/null)")}`;
    case "files":
      return "-F";
    case "nothing":
      return "-f";
  }
}

function quoted(text: string): string {
  return `'${text.replaceAll("\\", "\\\\").replaceAll("'", "\\'")}'`;
}
