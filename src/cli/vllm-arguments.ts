/** Short names of `vllm serve`. */
const SHORT: Readonly<Record<string, string>> = {
  ...{ tp: "tensor-parallel-size", pp: "pipeline-parallel-size", dp: "data-parallel-size" },
  ...{ dcp: "decode-context-parallel-size", pcp: "prefill-context-parallel-size" },
  ...{ ep: "enable-expert-parallel", asc: "api-server-count" },
  ...{ O: "compilation-config", cc: "compilation-config" },
};

/** Flags of which vLLM takes several values at once, where Octavo takes one and the flag again. */
const LISTS: ReadonlySet<string> = new Set(["--served-model-name", "--api-key"]);

/**
 * Arguments as `vllm serve` takes them, in Octavo's spelling: `--max_model_len` for `--max-model-len`, `-tp 2` for
 * `--tensor-parallel-size 2`, `-O3` and `--compilation-config.mode=3` for `--compilation-config`, and
 * `--served-model-name a b` for the flag twice. What follows `--` stays as it is.
 */
export function readVllmArguments(args: readonly string[]): readonly string[] {
  const end = args.includes("--") ? args.indexOf("--") : args.length;
  const flags = args.slice(0, end).map(longForm);
  return [...separateValues(flags), ...args.slice(end)];
}

function longForm(argument: string): string {
  const [, short, rest = ""] = argument.match(/^-([a-z]{1,3}|O)([\d.=].*)?$/s) ?? [];
  const long = short && SHORT[short];
  if (long) return longForm(`--${long}${rest.replace(/^\d/, "=$&")}`);
  if (!/^--[a-z]/.test(argument)) return argument;
  const [, flag, value = ""] = argument.match(/^(--[^.=]*)(?:\.[^=]*)?(=.*)?$/s)!;
  return flag!.replaceAll("_", "-") + value;
}

/** Repeats a list's flag before each of its values, unless one of them may be the model: where none comes before. */
function separateValues(args: readonly string[]): readonly string[] {
  const [command, model] = args;
  if (command !== "serve" || model === undefined || model.startsWith("-")) return args;
  let list: string | undefined;
  return args.flatMap((argument, i) => {
    if (argument.startsWith("-")) list = LISTS.has(argument) ? argument : undefined;
    else if (list !== undefined && args[i - 1] !== list) return [list, argument];
    return [argument];
  });
}
